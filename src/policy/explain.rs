//! Words and lists for people: which rules match a name, and what a refused client is told.

use std::cmp::Reverse;
use std::net::IpAddr;

use super::asker::Asker;
use super::load::number;
use super::verdict::{Reason, Refusal, RuleIndex, SegmentIndex, Withheld};
use super::{Action, Policy, Rule, Segment};
use crate::net::{Prefix, canonical};
use crate::record::ExtendedError;
use crate::time::Wall;

/// What refused clients are told, written once: a refusal allocates nothing.
#[derive(Debug)]
pub(super) struct Sentences {
    /// One a segment, in its order: no rule allows the name.
    segments: Box<[ExtendedError]>,
    /// One a segment: it filters AAAA.
    families: Box<[ExtendedError]>,
    malformed: ExtendedError,
    no_segment: ExtendedError,
    unnamed: ExtendedError,
}

impl Sentences {
    pub(super) fn new(segments: &[Segment]) -> Self {
        let blocked = |text: String| ExtendedError::new(ExtendedError::BLOCKED, text);
        let segment = |segment: &Segment| blocked(format!("no rule allows this name for segment {}", segment.name));
        let family = |segment: &Segment| {
            ExtendedError::new(ExtendedError::FILTERED, format!("segment {} filters AAAA", segment.name))
        };
        Self {
            segments: segments.iter().map(segment).collect(),
            families: segments.iter().map(family).collect(),
            malformed: blocked("this is not a name".to_owned()),
            no_segment: ExtendedError::new(ExtendedError::PROHIBITED, "this client is in no segment"),
            unnamed: ExtendedError::new(ExtendedError::PROHIBITED, "the forwarder does not name its client"),
        }
    }
}

/// What a rule that names a name says to who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Voice {
    /// What it has to say.
    Heard,
    /// Nothing: it ended.
    Ended(Wall),
    /// Nothing: it is for other clients of the segment.
    OtherClients,
}

/// Prefixes that are named to a client of no segment.
const NEAR: usize = 3;

impl Policy {
    /// What a rule of the asker's segment says to it now.
    #[must_use]
    pub fn voice(&self, rule: RuleIndex, asker: Asker, now: Wall) -> Voice {
        let rule = self.rule(rule);
        match rule.expires.filter(|_| !rule.lives(now)) {
            Some(end) => Voice::Ended(end),
            None if rule.is_heard(&asker.case(now)) => Voice::Heard,
            None => Voice::OtherClients,
        }
    }

    /// The allow rules that name `name`, live now, and are not for the asker's segment; by id.
    #[must_use]
    pub fn elsewhere(&self, asker: Asker, name: &[u8], now: Wall) -> Vec<RuleIndex> {
        let found = self.find(name);
        let of_others = |index: &RuleIndex| {
            let rule = self.rule(*index);
            rule.action == Action::Allow
                && rule.lives(now)
                && !rule.audience.contains(asker.segment)
                && !rule.except.contains(name)
        };
        let mut rules: Vec<_> = found.rules(&self.rules).filter(of_others).collect();
        rules.sort_unstable();
        rules.dedup();
        rules
    }

    /// The segments that a rule is for, in order of name.
    pub fn segments_of(&self, rule: RuleIndex) -> impl Iterator<Item = &Segment> {
        let audience = &self.rule(rule).audience;
        let all = (0..).map(SegmentIndex).zip(self.segments.iter());
        all.filter(|(place, _)| audience.contains(*place)).map(|(_, segment)| segment)
    }

    /// The prefixes of segments that have most of their leading bits in common with a client, each with its segment; those
    /// that have none at all are not near.
    #[must_use]
    pub fn near(&self, client: IpAddr) -> Vec<(Prefix, &Segment)> {
        let client = canonical(client);
        let common = |prefix: &Prefix| match (prefix.network(), client) {
            (IpAddr::V4(one), IpAddr::V4(other)) => (one.to_bits() ^ other.to_bits()).leading_zeros(),
            (IpAddr::V6(one), IpAddr::V6(other)) => (one.to_bits() ^ other.to_bits()).leading_zeros(),
            _ => 0,
        };
        let known = self.directory.clients.iter().map(|(prefix, segment)| (Reverse(common(&prefix)), prefix, *segment));
        let mut known: Vec<_> = known.filter(|(Reverse(bits), ..)| *bits > 0).collect();
        known.sort_unstable();
        let segment = |place: SegmentIndex| self.segments.get(place.0 as usize);
        known.into_iter().take(NEAR).filter_map(|(_, prefix, place)| Some((prefix, segment(place)?))).collect()
    }

    /// The rule for networks that denies this address to all now, or else the first that opens it for the asker's segment.
    #[must_use]
    pub fn static_rule(&self, asker: Asker, address: IpAddr, now: Wall) -> Option<RuleIndex> {
        let opens = |(_, rule): &(usize, &Rule)| {
            rule.action == Action::Allow
                && rule.lives(now)
                && rule.audience.contains(asker.segment)
                && rule.networks.iter().any(|prefix| prefix.contains(&address))
        };
        let opening = || self.rules.iter().enumerate().find(opens).map(|(at, _)| number(at, RuleIndex));
        self.denies_address(address, now).or_else(opening)
    }

    /// Every rule for networks with every segment that it is for.
    pub fn network_rules(&self) -> impl Iterator<Item = (&Segment, &Rule)> {
        let rules = self.rules.iter().enumerate().filter(|(_, rule)| !rule.networks.is_empty());
        rules.flat_map(|(at, rule)| self.segments_of(number(at, RuleIndex)).map(move |segment| (segment, rule)))
    }

    /// Every rule of the asker's segment that names `name` (canonical wire form), allow and deny, whatever its types; the
    /// most specific first, then by id.
    #[must_use]
    pub fn matching(&self, asker: Asker, name: &[u8]) -> Vec<RuleIndex> {
        let found = self.find(name);
        let hits = found.hits(&self.rules, asker.segment);
        let mut found: Vec<_> =
            hits.filter(|hit| !self.rule(hit.rule).except.contains(name)).map(|hit| (hit.rank, hit.rule)).collect();
        found.sort_unstable();
        let mut rules = Vec::with_capacity(found.len());
        for (_, rule) in found {
            if !rules.contains(&rule) {
                rules.push(rule);
            }
        }
        rules
    }

    /// The extended error of a refusal of this policy: code and one clause. Allocates nothing.
    #[must_use]
    pub fn describe(&self, refusal: &Refusal) -> &ExtendedError {
        let Sentences { segments, families, malformed, .. } = &*self.sentences;
        if let Some(reserved) = refusal.reserved {
            return &self.reserved.entry(reserved).told;
        }
        let told = match (refusal.reason, refusal.rule) {
            (Reason::Malformed, _) => None,
            (Reason::Family, _) => families.get(refusal.asker.segment.0 as usize),
            (_, Some(rule)) => Some(&self.rule(rule).told),
            (_, None) => segments.get(refusal.asker.segment.0 as usize),
        };
        told.unwrap_or(malformed)
    }

    /// The extended error for a client that is in no segment, or that its forwarder does not name: code and one clause.
    #[must_use]
    pub fn describe_no_segment(&self, unnamed: bool) -> &ExtendedError {
        if unnamed { &self.sentences.unnamed } else { &self.sentences.no_segment }
    }
}

impl Withheld {
    /// The extended error of a withheld answer: code and one clause.
    #[must_use]
    pub fn describe(&self) -> (u16, &str) {
        (ExtendedError::FILTERED, &self.why)
    }
}
