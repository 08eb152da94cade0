//! [`Policy::upholds`]: would this policy grant what is open already?

use super::address::NEVER;
use crate::net::{Element, Scope};
use crate::policy::decide::{Case, Ruling};
use crate::policy::verdict::{Basis, RuleIndex, SegmentIndex};
use crate::policy::{Asker, GrantScope, Policy};
use crate::record::RecordType;
use crate::time::Wall;

impl Policy {
    /// The rule by which this policy would grant `element` on `basis` now; `None`: it would not (I6).
    #[must_use]
    pub fn upholds(&self, basis: &Basis, element: &Element, now: Wall) -> Option<RuleIndex> {
        let segment = self.holder(basis, element)?;
        let case = Case { segment, client: basis.client, now };
        let question = &basis.question;
        let asked = if element.to.is_ipv4() { RecordType::A } else { RecordType::AAAA };
        let service = question.kind.is_service();
        if question.kind != asked && !service {
            return None;
        }
        let Ruling::Allowed(mut rules) = self.rule_on(case, question.name.as_wire(), question.kind) else {
            return None;
        };
        if basis.is_warm() {
            rules.retain(|rule| self.rule(*rule).warm.contains(&question.name));
        }
        // Whether it stands is asked, not until when.
        let mut until = NEVER;
        let rules = self.trusting(case, &rules, question.kind, &basis.chain, &mut until).ok()?;
        let admitting = if service {
            if basis.targets.iter().any(|target| self.refuses_target(case, target, &mut until).is_some()) {
                return None;
            }
            self.admitting_hint(case, &self.telling_services(&rules), &basis.origin, element.to)
        } else {
            self.admitting_rules(&rules, &basis.origin, element.to, now)
        };
        let opening = self.opening(&admitting.ok()?, element.from);
        opening.into_iter().find(|rule| self.rule(*rule).ports.iter().any(|ports| ports.contains(element.service)))
    }

    /// The segment whose grant `element` would be today. What a segment of scope `segment` was granted is the
    /// segment's: who asked may have left it, others were told the same address meanwhile. So is what was opened for a
    /// warm name.
    fn holder(&self, basis: &Basis, element: &Element) -> Option<SegmentIndex> {
        if let Some(place) = self.place_of(&basis.segment)
            && let Some(segment) = self.segments.get(place.0 as usize)
            && (segment.scope == GrantScope::Segment || basis.is_warm())
            && element.from == Scope::Segment(segment.id)
        {
            return segment.reaches(element.to).then_some(place);
        }
        let holds = |asker: &Asker| self.scope(*asker, element.to).is_ok_and(|scope| scope == element.from);
        if let Some(name) = &basis.certificate {
            return self.certified_as(basis.client, name).filter(holds).map(|asker| asker.segment);
        }
        let named = || basis.forwarder.as_ref().and_then(|_| self.member(basis.client));
        let asker = self.asker(basis.client).filter(holds).or_else(|| named().filter(holds))?;
        Some(asker.segment)
    }
}
