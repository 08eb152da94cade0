//! What is not proposed, and why.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use super::evidence::Evidence;
use super::propose::{Member, Segment, TYPES};
use super::shape::looks_random;
use super::{Below, MAX_BELOW, shown};
use crate::draft::names::is_host_text;
use crate::name::labels;
use crate::policy::registrable;

/// Names that a log of a single day must have been asked for.
const ONE_DAY: u64 = 5;
/// Names of each kind that are shown below the rules.
const SHOWN: usize = 20;
/// Names below one, nearly all of them asked for once, from which on they may carry data.
const CROWD: usize = 32;

/// Why a name is not proposed; in the order in which they are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Doubt {
    Denied,
    Seldom,
    Random,
    Channel,
    Gone,
    Search,
    Single,
    Text,
    Reserved,
    Types,
}

impl Doubt {
    const fn why(self) -> &'static str {
        match self {
            Self::Denied => "a rule denies them",
            Self::Seldom => "asked for by one client on one day, or twice at most",
            Self::Random => "the registered name looks random, and few clients or days know it",
            Self::Channel => "so many names below one, asked for once: data may be in them",
            Self::Gone => "no such name",
            Self::Search => "no such name: another one with a search suffix behind it",
            Self::Single => "a single label: a search list, or a look-up of the host's own",
            Self::Text => "not a name of a host",
            Self::Reserved => "answered here, or on the bypass list: no rule opens them without saying more",
            Self::Types => "asked for with unusual types alone",
        }
    }
}

/// What is not proposed, by why.
pub(super) type Doubts<'a> = BTreeMap<Doubt, Vec<Member<'a>>>;

impl<'a> Segment<'a> {
    /// Registered names below which most names were asked for once, and many of them.
    pub(super) fn crowds(&self, names: &[Member<'a>]) -> HashMap<&'a [u8], (usize, usize)> {
        let mut crowds: HashMap<&[u8], (usize, usize)> = HashMap::new();
        for (name, evidence) in names {
            let (all, once) = crowds.entry(registrable(name).unwrap_or(name)).or_default();
            *all += 1;
            *once += usize::from(evidence.clients.count() < 2 && evidence.day_count() < 2);
        }
        crowds
    }

    /// Why a name should not be proposed.
    pub(super) fn doubt(
        &self,
        name: &[u8],
        text: &str,
        evidence: &Evidence,
        crowds: &HashMap<&[u8], (usize, usize)>,
    ) -> Option<Doubt> {
        let (clients, days) = (evidence.clients.count(), evidence.day_count());
        if evidence.denied {
            return Some(Doubt::Denied);
        }
        if labels(name).count() < 2 {
            return Some(Doubt::Single);
        }
        if evidence.gone && !evidence.found {
            return Some(if self.is_search(name) { Doubt::Search } else { Doubt::Gone });
        }
        if !is_host_text(text) || text.contains('*') {
            return Some(Doubt::Text);
        }
        if !evidence.types.iter().any(|kind| kind.is_address() || kind.is_service() || TYPES.contains(kind)) {
            return Some(Doubt::Types);
        }
        let owner = registrable(name).unwrap_or(name);
        let usual = match self.days {
            true => evidence.queries >= 3 && (clients >= 2 || days >= 2),
            false => clients >= 2 || evidence.queries >= ONE_DAY,
        };
        if !usual {
            let crowd = crowds.get(owner).is_some_and(|(all, once)| *all > CROWD && *once * 10 > *all * 9);
            return Some(if crowd { Doubt::Channel } else { Doubt::Seldom });
        }
        let registered = labels(owner).next().and_then(|label| std::str::from_utf8(label).ok());
        if registered.is_some_and(looks_random) && (clients < 3 || (self.days && days < 2)) {
            return Some(Doubt::Random);
        }
        None
    }

    /// Whether a name is another one that was asked for, with a suffix behind it.
    fn is_search(&self, name: &[u8]) -> bool {
        let mut front = Vec::with_capacity(name.len());
        let mut count = 0;
        for label in labels(name) {
            front.push(u8::try_from(label.len()).unwrap_or(0));
            front.extend_from_slice(label);
            count += 1;
            front.push(0);
            let known = self.table.names.get(front.as_slice());
            if count >= 2 && front.len() < name.len() && known.is_some_and(|known| known.found) {
                return true;
            }
            front.pop();
        }
        false
    }

    /// What is not proposed, and why.
    pub(super) fn tail(&self, name: &str) -> Vec<String> {
        let mut tail = vec![format!("Not proposed for the segment {name}:")];
        for (doubt, names) in &self.doubts {
            let mut names = names.clone();
            names.sort_by_key(|(name, evidence)| (Reverse(evidence.queries), *name));
            let queries: u64 = names.iter().map(|(_, evidence)| evidence.queries).sum();
            tail.push(format!("{} names, {queries} queries: {}", names.len(), doubt.why()));
            tail.extend(names.iter().take(SHOWN).map(|(name, evidence)| format!("  {}  {evidence}", shown(name))));
            if let Some(more) = names.len().checked_sub(SHOWN).filter(|more| *more > 0) {
                tail.push(format!("  and {more} more"));
            }
        }
        for (suffix, count) in &self.tenants {
            tail.push(format!("{count} names below {suffix}, one by one if at all: anyone may have a name there"));
        }
        let full = self.table.below.iter().filter(|(_, below)| below.past > 0);
        let mut full: Vec<(String, &Below)> = full.map(|(owner, below)| (shown(owner), below)).collect();
        full.sort_by(|a, b| a.0.cmp(&b.0));
        for (owner, below) in full {
            let queries = below.past;
            tail.push(format!("{queries} queries for more than {MAX_BELOW} names below {owner}: data may be in them"));
        }
        let fates = self.table.fates;
        for (count, what) in [
            (self.table.reverse, "reverse look-ups: answered from what is open"),
            (fates.allowed, "queries that rules allow already"),
            (fates.refused, "queries that were refused: nobody observed them"),
            (fates.denied, "queries that a rule denies"),
            (fates.barred, "queries for names that are not left to rules, or with answers that are withheld"),
            (fates.other, "queries that were answered here, or not at all"),
        ] {
            if count > 0 {
                tail.push(format!("{count} {what}"));
            }
        }
        if tail.len() == 1 { Vec::new() } else { tail }
    }
}
