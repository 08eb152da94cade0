//! `new`: names that a segment asked for in the period and never before, as far as the log reaches.

use std::collections::HashSet;
use std::hash::BuildHasher;

use foldhash::fast::RandomState;

use super::bounded::{Amount, Bounded};
use super::sheet::{Cell, Seen, Sheet, Table, number, text};
use super::top::note_of_room;
use super::{Asked, Fate, Period, Report, reach};
use crate::time::Wall;

/// Names of segments that are remembered from before the period, 9 to 18 octets each.
const BEFORE: usize = 4_000_000;

/// See the module.
#[derive(Debug)]
pub struct Fresh {
    period: Period,
    /// Hashes of segment and name: two in some 10^12 are the same, and one of them is then not listed.
    before: HashSet<u64, RandomState>,
    hasher: RandomState,
    /// Names of before that were not remembered.
    forgotten: u64,
    names: Bounded<New>,
}

/// One new name.
#[derive(Debug, Default)]
struct New {
    seen: Seen,
    rule: Box<str>,
    id: Box<str>,
}

impl Amount for New {
    fn weight(&self) -> u64 {
        self.seen.count
    }

    fn join(&mut self, other: Self) {
        self.seen.join(other.seen);
    }
}

impl Fresh {
    /// Begins with nothing.
    #[must_use]
    pub fn new(period: Period) -> Self {
        Self {
            period,
            before: HashSet::default(),
            hasher: RandomState::default(),
            forgotten: 0,
            names: Bounded::default(),
        }
    }
}

impl Report for Fresh {
    fn asked(&mut self, query: &Asked<'_>) {
        if !matches!(query.fate, Fate::Allowed | Fate::Passed) || query.qname.is_empty() {
            return;
        }
        let hash = self.hasher.hash_one((query.segment, query.qname));
        if !self.period.has_begun(query.at) {
            if self.before.len() < BEFORE {
                self.before.insert(hash);
            } else if !self.before.contains(&hash) {
                self.forgotten += 1;
            }
            return;
        }
        if self.before.contains(&hash) {
            return;
        }
        let new = self.names.at(&[query.segment, query.qname]);
        if new.seen.first.is_none_or(|first| query.at < first) {
            new.rule = query.rule.into();
            new.id = query.id.into();
        }
        new.seen.add(query.at, query.client, "");
    }

    fn finish(mut self: Box<Self>, span: Option<(Wall, Wall)>, limit: usize) -> Sheet {
        let mut notes = reach(self.period, span);
        let since = self.period.since;
        match (since, span) {
            (Some(since), Some((first, _))) if first < since => {
                notes.push(format!("new is what was not asked for from {first} to {since}"));
            }
            _ => notes.push("the log has nothing from before that time: every name is new to it".to_owned()),
        }
        if self.forgotten > 0 {
            notes.push(format!(
                "there was room to remember {BEFORE} names from before: {} queries were for further ones, and these may be \
                 listed although they are not new",
                self.forgotten
            ));
        }
        // Records of different threads may stand in the file a little out of order.
        let (before, hasher) = (&self.before, &self.hasher);
        self.names.retain(|key| {
            let (segment, name) = key.split_once('\0').unwrap_or(("", key));
            !before.contains(&hasher.hash_one((segment, name)))
        });
        let ranked = self.names.finish(usize::MAX);
        note_of_room(&ranked, &mut notes);
        let mut rows = ranked.rows;
        let found = rows.len() as u64;
        rows.sort_by_key(|(_, new)| new.seen.first);
        rows.truncate(limit);
        let rows: Vec<Vec<Cell>> = rows
            .iter()
            .map(|(parts, New { seen, rule, id })| {
                let part = |at: usize| parts.get(at).map_or(Cell::Empty, |part| part.as_str().into());
                vec![
                    Cell::moment(seen.first),
                    Cell::Count(seen.count),
                    part(0),
                    part(1),
                    (&**rule).into(),
                    Cell::few(&seen.clients),
                    (&**id).into(),
                ]
            })
            .collect();
        let table = Table {
            key: "rows",
            title: format!("Names first asked for in that time, and let through: {found}"),
            columns: vec![
                text("first", "first"),
                number("queries", "queries"),
                text("segment", "segment"),
                text("name", "name"),
                text("rule", "rule"),
                text("clients", "clients"),
                text("query", "first query"),
            ],
            other: None,
            total: None,
            unlisted: found.saturating_sub(rows.len() as u64) + ranked.others,
            rows,
            empty: "no name was new",
        };
        Sheet { report: "new", notes, tables: vec![table] }
    }
}
