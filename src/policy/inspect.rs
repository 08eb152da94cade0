//! [`inspect`]: may these addresses be opened, and what of the answer may be told? [`Policy::upholds`] asks the same
//! of one element that is open already.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use super::decide::{Rules, Ruling};
use super::guard::Guarded;
use super::rule::Cname;
use super::verdict::{Asker, Basis, Cleared, Opening, Permit, Reason, RuleIndex, SegmentIndex, Withheld};
use super::{GrantScope, Policy, Rule};
use crate::name::Name;
use crate::net::{Element, Prefix, Scope, Service, canonical};
use crate::record::{AddressTrust, Answer, Origin, Rcode, Record, RecordType};

/// The longest CNAME chain, counted in names after the question's own. As Unbound had it; public chains stay below.
const MAX_CHAIN: usize = 8;
/// The most addresses of one answer that are told and opened.
const MAX_ADDRESSES: usize = 16;

/// May these addresses be opened, and what of the answer may be told?
#[must_use]
pub fn inspect(permit: Permit, mut answer: Answer) -> Cleared {
    let cnames = answer.records.iter().filter(|record| record.kind == RecordType::CNAME).count();
    let (end, chain) = if cnames > MAX_CHAIN {
        (permit.question.name.clone(), Vec::new())
    } else {
        answer.chain(&permit.question.name)
    };
    let records = keep_chain(std::mem::take(&mut answer.records), &permit, &chain, &end);
    let inspected = if cnames > MAX_CHAIN {
        Err(Held::new(Reason::Cname, None, format!("{cnames} CNAME records are more than {MAX_CHAIN}")))
    } else if permit.observed.is_some() {
        // Enforcing would not have asked: whatever came may be told here, and nothing is opened for it.
        Ok((records.clone(), Vec::new()))
    } else {
        permit.policy.admit_answer(&permit, &chain, &answer.origin, &records)
    };
    let (openings, withheld) = match inspected {
        Ok((kept, openings)) => {
            answer.records = kept;
            (openings, None)
        }
        Err(Held { reason, rule, why }) => {
            if permit.observing {
                answer.records = records;
            } else {
                answer.rcode = Rcode::NOERROR;
                answer.soa = None;
            }
            (Vec::new(), Some(Withheld { reason, rule, why: why.into(), enforced: !permit.observing }))
        }
    };
    let policy = &permit.policy;
    let basis = Basis {
        client: permit.asker.client,
        forwarder: policy.forwarder(permit.asker).cloned(),
        question: permit.question.clone(),
        chain: chain.into(),
        origin: answer.origin.clone(),
        segment: Arc::clone(&permit.segment().name),
        rule: permit.rule().map_or_else(|| Arc::from(""), |rule| Arc::clone(policy.rule_id(rule))),
    };
    Cleared { answer, openings, basis: Arc::new(basis), withheld, permit }
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

/// What one rule says of one address.
enum Admission {
    Admitted,
    Outside,
    Guarded(Guarded),
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
    ) -> Result<(Vec<Record>, Vec<Opening>), Held> {
        let asker = permit.asker;
        let kind = permit.question.kind;
        let rules = self.trusting(asker.segment, &permit.rules, kind, chain)?;
        if !kind.is_address() {
            return Ok((records.to_vec(), Vec::new()));
        }
        let mut kept = Vec::with_capacity(records.len());
        let mut openings: Vec<Opening> = Vec::new();
        let mut told: SmallVec<[IpAddr; MAX_ADDRESSES]> = SmallVec::new();
        let mut trimmed = None;
        for record in records {
            let Some(address) = record.address() else {
                kept.push(record.clone());
                continue;
            };
            // Every address is judged, also those past the cap: one bad address condemns its RRset.
            let admitting = self.admitting_rules(&rules, origin, address)?;
            if admitting.is_empty() {
                trimmed = Some(address);
            } else if told.len() < MAX_ADDRESSES && !told.contains(&address) {
                let from = self.scope(asker, address)?;
                self.open(&admitting, from, address, &mut openings);
                told.push(address);
                kept.push(record.clone());
            }
        }
        if let (Some(address), true) = (trimmed, told.is_empty()) {
            let rule = rules.first().copied();
            let who = rule.map_or("", |rule| self.rule_id(rule));
            return Err(Held::new(Reason::Address, rule, format!("{address} is not within what rule {who} names")));
        }
        Ok((kept, openings))
    }

    /// The rules that accept this CNAME chain.
    fn trusting(
        &self,
        segment: SegmentIndex,
        rules: &[RuleIndex],
        kind: RecordType,
        chain: &[Name],
    ) -> Result<Rules, Held> {
        if chain.len() > MAX_CHAIN {
            let why = format!("a chain of {} names is longer than {MAX_CHAIN}", chain.len());
            return Err(Held::new(Reason::Cname, None, why));
        }
        for name in chain {
            if let Some((rule, _)) = self.denied(segment, name.as_wire()) {
                let why = format!("the answer leads to {name}, which rule {} denies", self.rule_id(rule));
                return Err(Held::new(Reason::Cname, Some(rule), why));
            }
        }
        let distrusted = |rule: RuleIndex| {
            chain.iter().find(|name| match &self.rule(rule).cname {
                Cname::Trust => false,
                Cname::Inspect => !matches!(self.rule_on(segment, name.as_wire(), kind), Ruling::Allowed(_)),
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

    /// The rules that admit this address, perhaps none; `Err` where the guard forbids it to all of them.
    fn admitting_rules(&self, rules: &[RuleIndex], origin: &Origin, address: IpAddr) -> Result<Rules, Held> {
        let mut admitting = Rules::new();
        let mut outside = false;
        let mut forbidden = None;
        for rule in rules {
            match self.admission(self.rule(*rule), origin, address) {
                Admission::Admitted => admitting.push(*rule),
                Admission::Outside => outside = true,
                Admission::Guarded(guarded) => forbidden = forbidden.or(Some(guarded)),
            }
        }
        match forbidden {
            Some(guarded) if admitting.is_empty() && !outside => {
                Err(Held::new(Reason::Address, None, guarded.to_string()))
            }
            _ => Ok(admitting),
        }
    }

    fn admission(&self, rule: &Rule, origin: &Origin, address: IpAddr) -> Admission {
        let holds = |prefixes: &[Prefix], address: IpAddr| prefixes.iter().any(|prefix| prefix.contains(&address));
        let lifted = |address: IpAddr| {
            holds(&rule.private, address)
                || match &origin.trust {
                    AddressTrust::Zone => true,
                    AddressTrust::Upstream(private) => holds(private, address),
                }
        };
        match self.guard.refuses(address, lifted) {
            Some(guarded) => Admission::Guarded(guarded),
            None if rule.within.is_empty() || holds(&rule.within, address) => Admission::Admitted,
            None => Admission::Outside,
        }
    }

    /// For whom `address` is opened when `asker` is told it.
    fn scope(&self, asker: Asker, address: IpAddr) -> Result<Scope, Held> {
        let segment = self.segment(asker);
        let own = segment.scope == GrantScope::Client && asker.forwarder.is_none();
        if own && asker.client.is_ipv4() == address.is_ipv4() {
            Ok(Scope::Client(asker.client))
        } else if segment.reaches(address) {
            Ok(Scope::Segment(segment.id))
        } else {
            let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
            let why = format!("segment {} has no {family} source", segment.name);
            Err(Held::new(Reason::Family, None, why))
        }
    }

    /// Adds what the rules open of one address. `any` stands for every other service.
    fn open(&self, admitting: &[RuleIndex], from: Scope, to: IpAddr, openings: &mut Vec<Opening>) {
        let rules = admitting.iter().map(|rule| self.rule(*rule));
        let hold: Option<Duration> = rules.clone().filter_map(|rule| rule.hold).max();
        let mut services: Vec<Service> =
            rules.flat_map(|rule| rule.ports.iter()).flat_map(|ports| ports.expand()).collect();
        if services.contains(&Service::Any) {
            services = vec![Service::Any];
        }
        services.sort_unstable();
        services.dedup();
        openings.extend(services.into_iter().map(|service| Opening { element: Element { from, to, service }, hold }));
    }

    /// The rule by which this policy would grant `element` on `basis` today; `None`: it would not (I6).
    #[must_use]
    pub fn upholds(&self, basis: &Basis, element: &Element) -> Option<RuleIndex> {
        let asker = self.asker(canonical(basis.client))?;
        let question = &basis.question;
        let asked = if element.to.is_ipv4() { RecordType::A } else { RecordType::AAAA };
        if question.kind != asked || self.scope(asker, element.to).ok()? != element.from {
            return None;
        }
        let Ruling::Allowed(rules) = self.rule_on(asker.segment, question.name.as_wire(), question.kind) else {
            return None;
        };
        let rules = self.trusting(asker.segment, &rules, question.kind, &basis.chain).ok()?;
        let admitting = self.admitting_rules(&rules, &basis.origin, element.to).ok()?;
        admitting.into_iter().find(|rule| self.rule(*rule).ports.iter().any(|ports| ports.contains(element.service)))
    }
}
