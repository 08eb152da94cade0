//! Words and lists for people: which rules match a name, and what a refused client is told.

use super::asker::Asker;
use super::verdict::{Reason, Refusal, RuleIndex, Withheld};
use super::{Policy, Segment};
use crate::record::ExtendedError;

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

impl Policy {
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
