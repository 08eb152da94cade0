//! Words and lists for people: which rules match a name, and what a refused client is told.

use super::Policy;
use super::verdict::{Asker, Reason, Refusal, RuleIndex, Withheld};
use crate::record::ExtendedError;

impl Policy {
    /// Every rule of the asker's segment that names `name` (canonical wire form), allow and deny, whatever its types; the
    /// most specific first, then by id.
    #[must_use]
    pub fn matching(&self, asker: Asker, name: &[u8]) -> Vec<RuleIndex> {
        let hits = [&self.deny, &self.allow].into_iter().flat_map(|index| index.hits(asker.segment, name));
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

    /// The extended error of a refusal of this policy: code and one clause.
    #[must_use]
    pub fn describe(&self, refusal: &Refusal) -> (u16, String) {
        let text = match (refusal.reason, refusal.rule) {
            (Reason::Rule, Some(rule)) => format!("denied by rule {}", self.rule_id(rule)),
            (Reason::Type, Some(rule)) => format!("rule {} does not allow this type", self.rule_id(rule)),
            (Reason::Malformed, _) => "this is not a name".to_owned(),
            _ => format!("no rule allows this name for segment {}", self.segment(refusal.asker).name),
        };
        (ExtendedError::BLOCKED, text)
    }
}

impl Withheld {
    /// The extended error of a withheld answer: code and one clause.
    #[must_use]
    pub fn describe(&self) -> (u16, &str) {
        (ExtendedError::FILTERED, &self.why)
    }
}

/// The extended error for a client that is in no segment: code and one clause.
#[must_use]
pub const fn describe_no_segment() -> (u16, &'static str) {
    (ExtendedError::PROHIBITED, "this client is in no segment")
}
