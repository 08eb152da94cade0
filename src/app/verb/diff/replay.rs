//! The replay: every recorded question under both policies, and what becomes of it otherwise.

use std::collections::HashMap;
use std::io::Write as _;
use std::net::IpAddr;
use std::sync::Arc;

use crate::audit::Query;
use crate::name::Name;
use crate::policy::{Asker, Change, Policy, Word, compare_question};
use crate::record::RecordType;
use crate::time::Wall;

/// Client, name and type that differ, some 150 bytes each; the queries of others are counted.
const ROWS: usize = 100_000;

/// Questions whose outcome is remembered, some 150 bytes each; then they are decided anew.
const REMEMBERED: usize = 1 << 20;

/// Ways to differ, some 500 bytes each; the queries that differ in others are counted.
const EFFECTS: usize = 1 << 16;

/// What becomes of a question.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Effect {
    pub(super) change: Change,
    pub(super) before: Word,
    pub(super) after: Word,
}

/// Questions of one client for one name and type.
#[derive(Clone, Copy, Debug)]
pub(super) struct Count {
    pub(super) queries: u64,
    pub(super) last: Wall,
}

/// Who asked what, and which effect that has.
type Row = (IpAddr, Name, RecordType, u32);

/// See the module.
pub(super) struct Replay {
    policies: [Arc<Policy>; 2],
    now: Wall,
    /// Rules are for single clients.
    by_client: bool,
    effects: Vec<Effect>,
    numbers: HashMap<Effect, u32>,
    /// By segments, name and type as the record has them; where that matters, by client.
    remembered: HashMap<Box<[u8]>, Option<u32>>,
    key: Vec<u8>,
    pub(super) rows: HashMap<Row, Count>,
    /// Queries that differ and have no row.
    pub(super) unlisted: u64,
    /// Queries without a name or a type that can be read.
    pub(super) unreadable: u64,
    /// When the first and the last one came.
    pub(super) span: Option<(Wall, Wall)>,
}

impl Replay {
    pub(super) fn new(policies: [Arc<Policy>; 2], now: Wall) -> Self {
        Self {
            by_client: policies.iter().any(|policy| policy.tells_clients_apart()),
            policies,
            now,
            effects: Vec::new(),
            numbers: HashMap::new(),
            remembered: HashMap::new(),
            key: Vec::new(),
            rows: HashMap::new(),
            unlisted: 0,
            unreadable: 0,
            span: None,
        }
    }

    /// True where nothing differs.
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.unlisted == 0
    }

    /// What a row's effect is.
    pub(super) fn effect(&self, effect: u32) -> Option<&Effect> {
        self.effects.get(effect as usize)
    }

    /// Takes one record.
    pub(super) fn query(&mut self, query: &Query<'_>) {
        let (Some(qname), Some(qtype)) = (query.qname.as_deref(), query.qtype.as_deref()) else {
            self.unreadable += 1;
            return;
        };
        let askers = [0, 1].map(|side| {
            self.policies
                .get(side)
                .and_then(|policy: &Arc<Policy>| policy.recorded(query.client, query.certificate.as_deref()))
        });
        let segment =
            |asker: Option<Asker>| asker.map_or(u32::MAX, |asker| u32::try_from(asker.place()).unwrap_or(u32::MAX));
        self.key.clear();
        for asker in askers {
            self.key.extend_from_slice(&segment(asker).to_le_bytes());
        }
        if self.by_client {
            // Writing to a vector cannot fail.
            let _ = write!(self.key, "{} ", query.client);
        }
        self.key.extend_from_slice(qtype.as_bytes());
        self.key.push(b' ');
        self.key.extend_from_slice(qname.as_bytes());
        let effect = match self.remembered.get(self.key.as_slice()) {
            Some(effect) => *effect,
            None => {
                let Some(effect) = self.decide(askers, qname, qtype) else {
                    self.unreadable += 1;
                    return;
                };
                if self.remembered.len() >= REMEMBERED {
                    self.remembered.clear();
                }
                self.remembered.insert(self.key.as_slice().into(), effect);
                effect
            }
        };
        let at = query.at();
        let (first, last) = self.span.unwrap_or((at, at));
        self.span = Some((first.min(at), last.max(at)));
        if let Some(effect) = effect {
            self.count(query.client, qname, qtype, effect, at);
        }
    }

    /// The effect; `None`: what is asked cannot be read.
    fn decide(&mut self, askers: [Option<Asker>; 2], qname: &str, qtype: &str) -> Option<Option<u32>> {
        let (name, kind) = (Name::parse(qname).ok()?, qtype.parse().ok()?);
        let [old, new] = &self.policies;
        let found = compare_question([old, new], askers, name.as_wire(), kind, self.now);
        Some(found.map(|(change, before, after)| self.number(Effect { change, before, after })))
    }

    fn number(&mut self, effect: Effect) -> u32 {
        if let Some(known) = self.numbers.get(&effect) {
            return *known;
        }
        if self.effects.len() >= EFFECTS {
            return u32::MAX;
        }
        let number = u32::try_from(self.effects.len()).unwrap_or(u32::MAX);
        self.effects.push(effect.clone());
        self.numbers.insert(effect, number);
        number
    }

    fn count(&mut self, client: IpAddr, qname: &str, qtype: &str, effect: u32, at: Wall) {
        let (Ok(name), Ok(kind)) = (Name::parse(qname), qtype.parse()) else { return };
        let key = (client, name, kind, effect);
        let full = self.rows.len() >= ROWS || self.effect(effect).is_none();
        match self.rows.get_mut(&key) {
            Some(row) => {
                row.queries += 1;
                row.last = row.last.max(at);
            }
            None if full => self.unlisted += 1,
            None => drop(self.rows.insert(key, Count { queries: 1, last: at })),
        }
    }
}
