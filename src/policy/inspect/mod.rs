//! [`inspect`]: may these addresses be opened, and what of the answer may be told? [`Policy::upholds`] asks the same
//! of one element that is open already.

mod address;
mod service;
mod target;
#[cfg(test)]
mod tests;
mod uphold;

use std::sync::Arc;

pub(super) use self::address::MAX_ADDRESSES;
use self::address::{NEVER, Told};
use super::Policy;
use super::decide::{Case, Condemned, Rules};
use super::rule::Cname;
use super::verdict::{Basis, Cleared, Opening, Permit, Reason, RuleIndex, Withheld};
use crate::name::Name;
use crate::record::{Answer, Origin, Rcode, Record, RecordType};
use crate::time::Wall;

/// The longest CNAME chain, counted in names after the question's own. As Unbound had it; public chains stay below.
const MAX_CHAIN: usize = 8;

/// May these addresses be opened, and what of the answer may be told?
#[must_use]
pub fn inspect(permit: Permit, mut answer: Answer) -> Cleared {
    let cnames = answer.records.iter().filter(|record| record.kind == RecordType::CNAME).count();
    let (end, chain) = if cnames > MAX_CHAIN {
        (permit.question.name.clone(), Vec::new())
    } else {
        answer.chain(&permit.question.name)
    };
    let proved = answer.proof.is_some().then(|| answer.records.clone());
    let records = keep_chain(std::mem::take(&mut answer.records), &permit, &chain, &end);
    let inspected = if cnames > MAX_CHAIN {
        Err(Held::new(Reason::Cname, None, format!("{cnames} CNAME records are more than {MAX_CHAIN}")))
    } else if permit.observed.is_some() {
        // Enforcing would not have asked: whatever came may be told here, and nothing is opened for it.
        Ok(Admitted { records: records.clone(), ..Admitted::default() })
    } else {
        permit.policy.admit_answer(&permit, &chain, &answer.origin, &records)
    };
    let (admitted, withheld) = match inspected {
        Ok(mut admitted) => {
            answer.records = std::mem::take(&mut admitted.records);
            (admitted, None)
        }
        Err(Held { reason, rule, why }) => {
            if permit.observing {
                answer.records = records;
            } else {
                answer.rcode = Rcode::NOERROR;
                answer.soa = None;
                answer.proof = None;
            }
            let withheld = Withheld { reason, rule, why: why.into(), enforced: !permit.observing };
            (Admitted::default(), Some(withheld))
        }
    };
    // What is told in part, or altered, is not what was signed.
    if proved.is_some_and(|proved| proved != answer.records) {
        answer.proof = None;
    }
    let policy = &permit.policy;
    let basis = Basis {
        client: permit.asker.client,
        forwarder: policy.forwarder(permit.asker).cloned(),
        certificate: policy.certificate(permit.asker).cloned(),
        question: permit.question.clone(),
        chain: chain.into(),
        targets: admitted.targets.into(),
        origin: answer.origin.clone(),
        segment: Arc::clone(&permit.segment().name),
        rule: permit.rule().map_or_else(|| Arc::from(""), |rule| Arc::clone(policy.rule_id(rule))),
    };
    let until = Some(admitted.until).filter(|until| *until != NEVER);
    let mut openings = admitted.openings;
    if until.is_some() {
        openings.iter_mut().for_each(|opening| opening.ends = opening.ends.into_iter().chain(until).min());
    }
    let left_out = admitted.left_out.map(String::into_boxed_str);
    Cleared { answer, openings, basis: Arc::new(basis), withheld, left_out, until, permit }
}

/// What may be told of an answer, and what has to be open for that.
struct Admitted {
    records: Vec<Record>,
    openings: Vec<Opening>,
    /// Names that were judged because hints of theirs are opened.
    targets: Vec<Name>,
    /// Why not all of it is told.
    left_out: Option<String>,
    /// When a rule ends that vouches for one of its names; [`NEVER`]: none does.
    until: Wall,
}

impl Default for Admitted {
    fn default() -> Self {
        Self { records: Vec::new(), openings: Vec::new(), targets: Vec::new(), left_out: None, until: NEVER }
    }
}

/// Why an answer is withheld.
struct Held {
    reason: Reason,
    rule: Option<RuleIndex>,
    why: String,
}

impl Held {
    const fn new(reason: Reason, rule: Option<RuleIndex>, why: String) -> Self {
        Self { reason, rule, why }
    }
}

/// The CNAMEs from the question's name to `end`, then the records of the asked type there. Anything else is dropped.
fn keep_chain(records: Vec<Record>, permit: &Permit, chain: &[Name], end: &Name) -> Vec<Record> {
    let kind = permit.question.kind;
    let mut kept = Vec::with_capacity(records.len());
    let mut owner = &permit.question.name;
    for next in chain {
        let link = records.iter().find(|record| record.name == *owner && record.target().as_ref() == Some(next));
        kept.extend(link.cloned());
        owner = next;
    }
    let asked = |record: &Record| {
        record.name == *end
            && record.kind == kind
            && kind != RecordType::CNAME
            && (record.address().is_some() || !kind.is_address())
    };
    kept.extend(records.into_iter().filter(asked));
    kept
}

impl Policy {
    /// The records that may be told and the openings they need.
    fn admit_answer(
        &self,
        permit: &Permit,
        chain: &[Name],
        origin: &Origin,
        records: &[Record],
    ) -> Result<Admitted, Held> {
        let case = permit.asker.case(permit.decided);
        let kind = permit.question.kind;
        let mut until = NEVER;
        let rules = self.trusting(case, &permit.rules, kind, chain, &mut until)?;
        if kind.is_address() {
            self.admit_addresses(&rules, Told::none(self, permit, origin, until), records)
        } else if kind.is_service() {
            self.admit_services(&rules, Told::none(self, permit, origin, until), records)
        } else if kind == RecordType::MX || kind == RecordType::SRV {
            self.admit_hosts(case, records, until)
        } else {
            Ok(Admitted { records: records.to_vec(), until, ..Admitted::default() })
        }
    }

    /// The rules that accept this CNAME chain; `until` is lowered to the first end of a rule that one of them relies on.
    fn trusting(
        &self,
        case: Case,
        rules: &[RuleIndex],
        kind: RecordType,
        chain: &[Name],
        until: &mut Wall,
    ) -> Result<Rules, Held> {
        if chain.len() > MAX_CHAIN {
            let why = format!("a chain of {} names is longer than {MAX_CHAIN}", chain.len());
            return Err(Held::new(Reason::Cname, None, why));
        }
        for name in chain {
            let (rule, why) = match self.condemns(case, name.as_wire()) {
                None => continue,
                Some(Condemned::Rule(rule)) => {
                    (Some(rule), format!("the answer leads to {name}, which rule {} denies", self.rule_id(rule)))
                }
                Some(Condemned::Barred(why)) => (None, format!("the answer leads to {name}: {why}")),
            };
            return Err(Held::new(Reason::Cname, rule, why));
        }
        let mut distrusted = |rule: RuleIndex| {
            chain.iter().find(|name| match &self.rule(rule).cname {
                Cname::Trust => false,
                Cname::Inspect => !self.opens(case, name.as_wire(), kind, until),
                Cname::Pinned(pins) => !pins.contains(name.as_wire()),
            })
        };
        let trusting: Rules = rules.iter().copied().filter(|rule| distrusted(*rule).is_none()).collect();
        match rules.first().filter(|_| trusting.is_empty()) {
            None => Ok(trusting),
            Some(rule) => {
                let name = distrusted(*rule).map(ToString::to_string).unwrap_or_default();
                let why = format!("the answer leads to {name}, which rule {} does not trust", self.rule_id(*rule));
                Err(Held::new(Reason::Cname, Some(*rule), why))
            }
        }
    }
}
