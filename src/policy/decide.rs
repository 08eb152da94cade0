//! [`decide`]: may this question be resolved?

use std::sync::Arc;

use smallvec::SmallVec;

use super::rule::is_never_answered;
use super::verdict::{Asker, Permit, Reason, Refusal, RuleIndex, SegmentIndex, Shown, Verdict};
use super::{Policy, Rule};
use crate::name::Name;
use crate::record::{Question, RecordType};
use crate::time::Wall;

/// Rules that admit a question, the most specific first.
pub(super) type Rules = SmallVec<[RuleIndex; 4]>;

/// What the rules of a segment say of a question, whether they are enforced or not.
pub(super) enum Ruling {
    /// These rules admit it; never empty.
    Allowed(Rules),
    /// Refused.
    Refused { rule: Option<RuleIndex>, reason: Reason, shown: Shown },
}

/// May this question be resolved? `name` is canonical: complete, wire format, lower case; anything else is refused as
/// malformed. Allocates nothing for a refusal.
#[must_use]
pub fn decide(policy: &Arc<Policy>, asker: Asker, name: &[u8], kind: RecordType, now: Wall) -> Verdict {
    // A length octet is at most 63, so an octet `A`..`Z` is always part of a label. A name that is not lower case could
    // slip past a deny.
    if name.iter().any(u8::is_ascii_uppercase) {
        return Verdict::Refuse(malformed(asker));
    }
    let observing = policy.segment(asker).observes(now);
    let (rules, observed) = match policy.rule_on(asker.segment, name, kind) {
        Ruling::Allowed(rules) => (rules, None),
        Ruling::Refused { rule, reason, shown } => {
            if !observing || is_never_answered(kind) {
                return Verdict::Refuse(Refusal { asker, rule, reason, shown });
            }
            (policy.admitting(asker.segment, name, kind).unwrap_or_default(), Some((rule, reason)))
        }
    };
    let Ok(name) = Name::from_wire(name) else { return Verdict::Refuse(malformed(asker)) };
    let question = Question { name, kind };
    Verdict::Permit(Permit { policy: Arc::clone(policy), asker, question, rules, observed, observing })
}

const fn malformed(asker: Asker) -> Refusal {
    Refusal { asker, rule: None, reason: Reason::Malformed, shown: Shown::Refused }
}

impl Policy {
    /// The one place where rules are weighed: [`decide`], `cname = "inspect"` and [`Policy::upholds`] all ask here.
    pub(super) fn rule_on(&self, segment: SegmentIndex, name: &[u8], kind: RecordType) -> Ruling {
        if let Some((rule, whole)) = self.denied(segment, name) {
            // Where the deny covers everything below as well, nothing can be asked there.
            let shown = if whole { self.refusal_of(segment) } else { self.shown(segment, name) };
            return Ruling::Refused { rule: Some(rule), reason: Reason::Rule, shown };
        }
        match self.admitting(segment, name, kind) {
            Ok(rules) => Ruling::Allowed(rules),
            Err(Some(nearest)) => Ruling::Refused { rule: Some(nearest), reason: Reason::Type, shown: Shown::NoData },
            Err(None) => Ruling::Refused { rule: None, reason: Reason::Default, shown: self.shown(segment, name) },
        }
    }

    /// The deny rule that is the nearest to the name, and whether one of them denies all names below it too.
    pub(super) fn denied(&self, segment: SegmentIndex, name: &[u8]) -> Option<(RuleIndex, bool)> {
        let mut nearest: Option<(u16, RuleIndex)> = None;
        let mut whole = false;
        for hit in self.deny.hits(segment, name) {
            let rule = self.rule(hit.rule);
            if rule.except.contains(name) {
                continue;
            }
            whole |= hit.whole && rule.except.is_empty();
            let found = (hit.rank, hit.rule);
            nearest = Some(nearest.map_or(found, |known| known.min(found)));
        }
        nearest.map(|(_, rule)| (rule, whole))
    }

    /// The allow rules for this name and type, the most specific first; `Err` where there is none, with the nearest rule
    /// for the name, whatever its types.
    fn admitting(&self, segment: SegmentIndex, name: &[u8], kind: RecordType) -> Result<Rules, Option<RuleIndex>> {
        let mut nearest: Option<(u16, RuleIndex)> = None;
        let mut found: SmallVec<[(u16, RuleIndex); 4]> = SmallVec::new();
        for hit in self.allow.hits(segment, name) {
            let rule = self.rule(hit.rule);
            if rule.except.contains(name) {
                continue;
            }
            if rule.admits_type(kind) {
                found.push((hit.rank, hit.rule));
            } else {
                let other = (hit.rank, hit.rule);
                nearest = Some(nearest.map_or(other, |known| known.min(other)));
            }
        }
        found.sort_unstable();
        let mut rules = Rules::new();
        for (_, rule) in found {
            if !rules.contains(&rule) {
                rules.push(rule);
            }
        }
        if rules.is_empty() { Err(nearest.map(|(_, rule)| rule)) } else { Ok(rules) }
    }

    fn refusal_of(&self, segment: SegmentIndex) -> Shown {
        self.segments.get(segment.0 as usize).map_or(Shown::NxDomain, |segment| segment.refusal)
    }

    /// What a client sees of a refused name. RFC 8020 §2: NXDOMAIN "means that there is nothing underneath", so it is
    /// never said where this segment may ask something below.
    fn shown(&self, segment: SegmentIndex, name: &[u8]) -> Shown {
        let below = self.parents.holds(segment, name)
            || self.allow.hits(segment, name).any(|hit| hit.whole && !self.rule(hit.rule).except.covers(name));
        if below { Shown::NoData } else { self.refusal_of(segment) }
    }
}

impl Rule {
    fn admits_type(&self, kind: RecordType) -> bool {
        self.types.contains(&kind)
    }
}
