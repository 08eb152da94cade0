//! [`compare_question`]: one recorded question under two policies.

use std::net::IpAddr;
use std::sync::Arc;

use super::opens::{beyond, of_all, plain, written};
use super::{Change, Word};
use crate::policy::{Asker, Policy, RuleIndex, Verdict, decide};
use crate::record::RecordType;
use crate::time::Wall;

impl Policy {
    /// Who asked, as a record has it: by the name in the certificate where one named the segment, else by the address.
    #[must_use]
    pub fn recorded(&self, client: IpAddr, certificate: Option<&str>) -> Option<Asker> {
        let shown: Option<Box<str>> = certificate.map(Into::into);
        self.certified(client, shown.as_slice())
    }
}

/// What becomes of a question under a new policy that did not under the old one; `None`: the same. Unlike
/// [`super::compare`] it asks what a client would see now: a segment that observes lets pass what no rule allows.
#[must_use]
pub fn compare_question(
    policies: [&Arc<Policy>; 2],
    askers: [Option<Asker>; 2],
    name: &[u8],
    kind: RecordType,
    now: Wall,
) -> Option<(Change, Word, Word)> {
    let mut said = policies.into_iter().zip(askers).map(|(policy, asker)| said(policy, asker, name, kind, now));
    let (before, after) = (said.next()?, said.next()?);
    let (lost, gained) = (beyond(&before.parts, &after.parts), beyond(&after.parts, &before.parts));
    let change = match (before.verdict, after.verdict) {
        (before, after) if before == after => match (lost.is_empty(), gained.is_empty()) {
            (true, true) => return None,
            (true, false) => Change::Widened,
            (false, true) => Change::Narrowed,
            (false, false) => Change::Altered,
        },
        ("deny", _) | ("observe", "allow" | "answer") => Change::Allowed,
        _ => Change::Denied,
    };
    Some((change, before.word(), after.word()))
}

struct Said<'a> {
    policy: &'a Policy,
    verdict: &'static str,
    rules: Vec<RuleIndex>,
    parts: Vec<super::Part>,
}

fn said<'a>(policy: &'a Arc<Policy>, asker: Option<Asker>, name: &[u8], kind: RecordType, now: Wall) -> Said<'a> {
    let verdict = asker.map(|asker| decide(policy, asker, name, kind, now));
    let (verdict, rules) = match verdict {
        None => ("deny", Vec::new()),
        Some(Verdict::Refuse(refusal)) => ("deny", refusal.rule.into_iter().collect()),
        Some(Verdict::Answer(_)) => ("answer", Vec::new()),
        Some(Verdict::Permit(permit)) => match permit.observed() {
            Some((rule, _)) => ("observe", rule.into_iter().collect()),
            None => ("allow", permit.rules.to_vec()),
        },
    };
    let allowing: Vec<_> = rules.iter().filter(|_| verdict == "allow").map(|rule| policy.rule(*rule)).collect();
    Said { parts: plain(of_all(&allowing, kind)), policy, verdict, rules }
}

impl Said<'_> {
    fn word(&self) -> Word {
        let place = |rule: &RuleIndex| {
            let rule = self.policy.rule(*rule);
            (Arc::clone(&rule.id), rule.place.clone())
        };
        Word { verdict: self.verdict, rules: self.rules.iter().map(place).collect(), opens: written(&self.parts) }
    }
}
