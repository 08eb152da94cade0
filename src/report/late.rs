//! `late`: flows that came after their grant had ended, and the `hold` that would have covered them.

use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasher;
use std::time::Duration;

use foldhash::fast::RandomState;

use super::bounded::{Amount, Bounded, Few};
use super::sheet::{Cell, Seen, Sheet, Table, number, text};
use super::top::note_of_room;
use super::{Asked, Needs, Period, Report, Step, Went, reach};
use crate::flow::{Class, Detail};
use crate::time::Wall;

/// Queries whose grants are remembered, twice: the newest, and those before. Some 25 MB each.
const REMEMBERED: usize = 1_000_000;

/// Whole seconds, each counted up to 256, and beyond that rounded up to less than 1 % more: 30,000 counts at most.
#[derive(Clone, Debug, Default)]
struct Seconds(BTreeMap<u64, u64>);

impl Seconds {
    fn add(&mut self, duration: Duration) {
        let seconds = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
        let step = 1 << (seconds.max(1).ilog2().saturating_sub(7));
        *self.0.entry(seconds.next_multiple_of(step)).or_default() += 1;
    }

    fn join(&mut self, other: Self) {
        other.0.into_iter().for_each(|(seconds, count)| *self.0.entry(seconds).or_default() += count);
    }

    /// What this part of all is at most; `None`: there are none.
    fn part(&self, percent: u64) -> Option<Duration> {
        let all: u64 = self.0.values().sum();
        let wanted = (all * percent).div_ceil(100);
        let mut counted = 0;
        let mut upto = self.0.iter().map(|(seconds, count)| {
            counted += count;
            (*seconds, counted)
        });
        upto.find(|(_, counted)| *counted >= wanted).map(|(seconds, _)| Duration::from_secs(seconds))
    }
}

/// Late flows under one rule in one segment.
#[derive(Debug, Default)]
struct Lateness {
    seen: Seen,
    refused: u64,
    late: Seconds,
    /// From the look-up to the flow, where both are known.
    age: Seconds,
    names: Few<Box<str>>,
}

impl Amount for Lateness {
    fn weight(&self) -> u64 {
        self.seen.count
    }

    fn join(&mut self, other: Self) {
        self.seen.join(other.seen);
        self.refused += other.refused;
        self.late.join(other.late);
        self.age.join(other.age);
        self.names.join(other.names);
    }
}

/// How long what queries opened was open, by a hash of the query's id.
#[derive(Debug, Default)]
struct Lives {
    hasher: RandomState,
    now: HashMap<u64, Duration, RandomState>,
    before: HashMap<u64, Duration, RandomState>,
}

impl Lives {
    fn put(&mut self, query: &str, life: Duration) {
        if self.now.len() >= REMEMBERED {
            self.before = std::mem::take(&mut self.now);
        }
        self.now.insert(self.hasher.hash_one(query), life);
    }

    fn of(&self, query: &str) -> Option<Duration> {
        let hash = self.hasher.hash_one(query);
        self.now.get(&hash).or_else(|| self.before.get(&hash)).copied()
    }
}

/// See the module.
#[derive(Debug)]
pub struct Late {
    period: Period,
    lives: Lives,
    rules: Bounded<Lateness>,
    clients: Bounded<Lateness>,
    flows: bool,
    unknown: u64,
}

impl Late {
    /// Begins with nothing.
    #[must_use]
    pub fn new(period: Period) -> Self {
        // A row has a list of seconds.
        let [rules, clients] = [2_000, 10_000].map(Bounded::new);
        Self { period, lives: Lives::default(), rules, clients, flows: false, unknown: 0 }
    }
}

impl Report for Late {
    fn needs(&self) -> Needs {
        Needs { answers: false, grants: true }
    }

    fn asked(&mut self, query: &Asked<'_>) {
        if let Some(until) = query.open_until {
            self.lives.put(query.id, Duration::from_micros(until.0.saturating_sub(query.at.0)));
        }
    }

    fn went(&mut self, flow: &Went<'_>) {
        self.flows = true;
        // In its grace a flow came after what was told, and not after its grant.
        let ended = flow.class == Some(Class::Stale) && flow.detail != Some(Detail::Grace);
        let late = flow.late.filter(|_| ended && flow.step != Step::Began);
        let Some(late) = late.filter(|_| self.period.has_begun(flow.at)) else { return };
        let age = self.lives.of(flow.query).map(|life| life + late);
        self.unknown += u64::from(age.is_none());
        let client = flow.client.to_string();
        let rows = [self.rules.at(&[flow.rule, flow.segment]), self.clients.at(&[&client, flow.qname, flow.rule])];
        for row in rows {
            row.seen.add(flow.at, flow.client, flow.segment);
            row.refused += u64::from(flow.step == Step::Refused);
            row.late.add(late);
            age.into_iter().for_each(|age| row.age.add(age));
            if !flow.qname.is_empty() {
                row.names.add(flow.qname);
            }
        }
    }

    fn finish(self: Box<Self>, span: Option<(Wall, Wall)>, limit: usize) -> Sheet {
        let mut notes = reach(self.period, span);
        if !self.flows {
            notes.push(super::NO_FLOWS.to_owned());
        }
        if self.unknown > 0 {
            notes.push(format!(
                "of {} late flows the log does not have the look-up: they are not in `hold`",
                self.unknown
            ));
        }
        notes.push("`hold` of the rule, or of [grant], from which on 99 % of these would have been in time".to_owned());
        let span = |seconds: Option<Duration>| seconds.map_or(Cell::Empty, Cell::Span);
        let counted = |row: &Lateness| {
            [
                Cell::Count(row.seen.count),
                Cell::Count(row.refused),
                span(row.late.part(50)),
                span(row.late.part(99)),
                span(row.late.part(100)),
                span(row.age.part(99)),
            ]
        };
        let columns = |more: &[&'static str]| {
            let mut columns = vec![
                number("flows", "flows"),
                number("refused", "refused"),
                number("late_median", "late by"),
                number("late_99", "99 %"),
                number("late_most", "most"),
                number("hold", "hold"),
            ];
            columns.extend(more.iter().map(|head| text(head, head)));
            columns
        };
        let ranked = self.rules.finish(limit);
        note_of_room(&ranked, &mut notes);
        let other = |row: &Lateness, others: u64, width: usize| {
            let mut cells: Vec<Cell> = counted(row).to_vec();
            cells.push(Cell::Text(format!("other ({others} rows)")));
            cells.resize(width, Cell::Empty);
            (others > 0).then_some(cells)
        };
        let part = |parts: &[String], at: usize| parts.get(at).map_or(Cell::Empty, |part| part.as_str().into());
        let rules = Table {
            key: "rules",
            title: "Flows after the end of their grant, by rule and segment".into(),
            columns: columns(&["rule", "segment", "names", "clients"]),
            other: other(&ranked.other, ranked.others, 10),
            total: None,
            unlisted: ranked.others,
            rows: ranked
                .rows
                .iter()
                .map(|(parts, row)| {
                    let who = [part(parts, 0), part(parts, 1), Cell::few(&row.names), Cell::few(&row.seen.clients)];
                    counted(row).into_iter().chain(who).collect()
                })
                .collect(),
            empty: "no flow was late",
        };
        let ranked = self.clients.finish(limit);
        note_of_room(&ranked, &mut notes);
        let clients = Table {
            key: "clients",
            title: "By client and name".into(),
            columns: columns(&["client", "name", "rule", "last"]),
            other: other(&ranked.other, ranked.others, 10),
            total: None,
            unlisted: ranked.others,
            rows: ranked
                .rows
                .iter()
                .map(|(parts, row)| {
                    let who = [part(parts, 0), part(parts, 1), part(parts, 2), Cell::moment(row.seen.last)];
                    counted(row).into_iter().chain(who).collect()
                })
                .collect(),
            empty: "no flow was late",
        };
        Sheet { report: "late", notes, tables: vec![rules, clients] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_covers_what_it_says() {
        let mut seconds = Seconds::default();
        assert_eq!(seconds.part(99), None);
        (1..=100).for_each(|second| seconds.add(Duration::from_millis(second * 1000 - 500)));
        let part = |percent| seconds.part(percent).map(|found| found.as_secs());
        assert_eq!([part(50), part(99), part(100)], [Some(50), Some(99), Some(100)]);
        let mut long = Seconds::default();
        (0..100_000_u64).for_each(|second| long.add(Duration::from_secs(second)));
        let found = long.part(99).unwrap().as_secs();
        assert!((98_999..=99_990).contains(&found) && long.0.len() < 2_000, "{found} {}", long.0.len());
    }

    #[test]
    fn the_newest_queries_are_remembered() {
        let mut lives = Lives::default();
        (0..3 * REMEMBERED).for_each(|number| lives.put(&number.to_string(), Duration::from_secs(number as u64)));
        assert_eq!(lives.of("0"), None);
        assert_eq!(lives.of("2999999"), Some(Duration::from_secs(2_999_999)));
        assert!(lives.now.len() + lives.before.len() <= 2 * REMEMBERED);
    }
}
