//! Learning: from what an observe segment's clients asked to rules for what they use.
//!
//! - A name is proposed where it was asked for on several days or by several clients, and exists.
//! - A wildcard is proposed where exact names would not do: machines make new labels there, on several days, for several
//!   clients. Never on a public suffix, nor where the names below one domain look like a channel.
//! - What a rule denied, or what is not left to rules, is never proposed. What is not proposed is told, with why.
//! - Memory is bounded by [`MAX_NAMES`] and [`MAX_BELOW`], whatever the log holds.

mod doubt;
mod evidence;
mod propose;
mod shape;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod week;
mod wild;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use foldhash::fast::RandomState;

use super::Draft;
use crate::name::{Name, labels};
use crate::net::Services;
use crate::policy::registrable;
use crate::record::RecordType;
use crate::time::Wall;
use evidence::{Evidence, Numbers, day};

/// The most names that are kept; with all that is made of them some 250 MB. Queries for further ones are counted.
const MAX_NAMES: usize = 500_000;
/// The most names that are kept below one registered name; more than any wildcard needs to be seen.
const MAX_BELOW: usize = 4096;

/// What to learn.
#[derive(Clone, Debug, Default)]
pub struct LearnTerms {
    /// Of this segment alone.
    pub segment: Option<String>,
    /// Also what a rule allows already, as if there were no rules.
    pub all: bool,
    /// How the rules' ids begin; `None`: with their segment.
    pub id: Option<String>,
}

/// One query of the log.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// When.
    pub at: Wall,
    /// Who asked.
    pub client: IpAddr,
    /// Its segment.
    pub segment: &'a str,
    /// The name, canonical wire form.
    pub name: &'a [u8],
    /// The type.
    pub kind: RecordType,
    /// What became of it.
    pub fate: Fate,
    /// Whether the answer said that the name exists; `None`: it said neither.
    pub exists: Option<bool>,
    /// What was open for the answer.
    pub ports: &'a [Services],
}

/// What became of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// A rule allowed it.
    Allowed,
    /// No rule did, and the segment observed.
    Passed,
    /// No rule did, and it was refused.
    Refused,
    /// A rule denied it, whether that was enforced or not.
    Denied,
    /// A name that is not left to rules, or an answer that they withhold.
    Barred,
    /// It was answered here, or not at all.
    Other,
}

/// Queries by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Fates {
    allowed: u64,
    refused: u64,
    denied: u64,
    barred: u64,
    other: u64,
}

/// One segment.
#[derive(Debug, Default)]
struct Table {
    names: HashMap<Box<[u8]>, Evidence, RandomState>,
    /// By registered name: how many names are kept.
    below: HashMap<Box<[u8]>, Below, RandomState>,
    fates: Fates,
    /// Queries of [`Fate::Passed`], and of [`Fate::Allowed`] where those are learned.
    learned: u64,
    /// An observe segment let something pass.
    observed: bool,
    reverse: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Below {
    kept: usize,
    /// Queries for names that were not kept.
    past: u64,
}

/// Collects queries; [`Learner::finish`] proposes.
#[derive(Debug)]
pub struct Learner {
    terms: LearnTerms,
    segments: BTreeMap<Box<str>, Table>,
    clients: Numbers,
    names: usize,
    /// Queries for names that were not kept because there were [`MAX_NAMES`].
    past: u64,
    first: Option<Wall>,
    last: Wall,
}

/// What was proposed.
#[derive(Debug)]
pub struct Learned {
    /// The rules, and below them what is not proposed.
    pub draft: Draft,
    /// Queries that it was learned from.
    pub queries: u64,
    /// Of these, those that the rules allow.
    pub covered: u64,
    /// Names in rules.
    pub lines: usize,
    /// Names that were asked for and that those allow.
    pub names: usize,
}

impl Learner {
    /// Begins with nothing.
    #[must_use]
    pub fn new(terms: LearnTerms) -> Self {
        Self {
            terms,
            segments: BTreeMap::new(),
            clients: Numbers::default(),
            names: 0,
            past: 0,
            first: None,
            last: Wall::default(),
        }
    }

    /// Takes one query in, in any order of time.
    pub fn see(&mut self, seen: &Seen<'_>) {
        if self.terms.segment.as_deref().is_some_and(|only| only != seen.segment) {
            return;
        }
        if !self.segments.contains_key(seen.segment) {
            self.segments.insert(seen.segment.into(), Table::default());
        }
        let Some(table) = self.segments.get_mut(seen.segment) else { return };
        let first = *self.first.get_or_insert(seen.at);
        self.last = self.last.max(seen.at);
        match seen.fate {
            Fate::Allowed => table.fates.allowed += 1,
            Fate::Passed => table.observed = true,
            Fate::Refused => table.fates.refused += 1,
            Fate::Denied => table.fates.denied += 1,
            Fate::Barred => table.fates.barred += 1,
            Fate::Other => table.fates.other += 1,
        }
        let wanted = seen.fate == Fate::Passed || (seen.fate == Fate::Allowed && self.terms.all);
        if !wanted && seen.fate != Fate::Denied {
            return;
        }
        if is_reverse(seen.name) {
            table.reverse += u64::from(wanted);
            return;
        }
        table.learned += u64::from(wanted);
        if !table.names.contains_key(seen.name) && !table.admit(seen, &mut self.names, &mut self.past) {
            return;
        }
        let Some(evidence) = table.names.get_mut(seen.name) else { return };
        evidence.denied |= seen.fate == Fate::Denied;
        let days = day(seen.at).saturating_sub(day(first));
        evidence.add(seen.at, days, self.clients.of(seen.client), seen.kind);
        evidence.found |= seen.exists == Some(true);
        evidence.gone |= seen.exists == Some(false);
        for ports in seen.ports {
            if !evidence.ports.contains(ports) {
                evidence.ports.push(*ports);
            }
        }
    }

    /// Rules for what was seen. `source` is what was read, for people.
    #[must_use]
    pub fn finish(self, source: &str) -> Learned {
        propose::propose(self, source)
    }
}

impl Table {
    /// Makes room for a new name, or counts what there is no room for.
    fn admit(&mut self, seen: &Seen<'_>, all: &mut usize, past: &mut u64) -> bool {
        let name = seen.name;
        if *all == MAX_NAMES {
            *past += 1;
            return false;
        }
        let below = self.below.entry(registrable(name).unwrap_or(name).into()).or_default();
        if below.kept == MAX_BELOW {
            below.past += 1;
            return false;
        }
        below.kept += 1;
        *all += 1;
        self.names.insert(name.into(), Evidence::new(seen.at));
        true
    }
}

/// Names of addresses: answered from what is open, and never needed.
fn is_reverse(name: &[u8]) -> bool {
    let mut last: [&[u8]; 2] = [b"", b""];
    for label in labels(name) {
        last = [last[1], label];
    }
    last[1] == b"arpa" && matches!(last[0], b"in-addr" | b"ip6")
}

/// A name as rules have it.
fn shown(wire: &[u8]) -> String {
    Name::from_wire(wire).map(|name| name.to_string()).unwrap_or_default()
}
