//! Prepared: a granted answer with its record, both written once and told often.

use std::time::Duration;

use crate::audit::{Outcome, RecordId, Rendered, Statement};
use crate::cache::Reply;
use crate::grant::Granted;
use crate::net::{Service, Services};
use crate::policy::{Judged, Opinion, Reason, Standing};
use crate::record::{ExtendedError, RecordType};
use crate::wire::{self, Template};

/// A granted answer, ready to be told to any client it was granted to, for as long as its [`crate::cache::Covered`] says.
#[derive(Debug, PartialEq, Eq)]
pub struct Prepared {
    pub(super) template: Template,
    /// The same with its signatures, where it has some: for who asks for them (DO).
    pub(super) signed: Option<Box<Template>>,
    /// What every record of it says.
    pub(super) rendered: Rendered,
    pub(super) outcome: Outcome,
    pub(super) enforced: bool,
    pub(super) reason: Reason,
    /// What a candidate says of the answer.
    pub(super) judged: Option<Box<Judged>>,
    /// See [`Prepared::renewed_within`].
    renewed_within: Duration,
}

impl Prepared {
    /// Prepares what was granted; `origin` is the query that fetched it, if one did.
    #[must_use]
    pub fn new(granted: &Granted, origin: Option<RecordId>, renewed_within: Duration) -> Self {
        let cleared = granted.cleared();
        let (permit, answer) = (cleared.permit(), cleared.answer());
        let policy = permit.policy();
        let withheld = cleared.withheld();
        let ede = match withheld {
            Some(withheld) if withheld.enforced => {
                Some(ExtendedError::new(ExtendedError::FILTERED, withheld.why.clone()))
            }
            _ => answer.ede.clone(),
        };
        // A negative answer of our own making has an SOA like any refusal, so that stubs may keep it (RFC 2308 §5).
        let own_soa =
            (answer.records.is_empty() && answer.soa.is_none()).then(|| wire::refusal_soa(&permit.question().name));
        let soa = answer.soa.as_ref().or(own_soa.as_ref());
        let (question, records, ede_told) = (permit.question(), &answer.records, ede.as_ref());
        let (template, signed) = match &answer.proof {
            None => (Template::new(question, answer.rcode, answer.authoritative, records, soa, ede_told), None),
            Some(proof) => {
                let [plain, signed] = Template::authentic(question, answer.rcode, records, soa, ede_told, proof);
                (plain, Some(Box::new(signed)))
            }
        };
        let Opinion { standing, reason, rule } = cleared.opinion();
        let (outcome, enforced) = match standing {
            Standing::Allowed => (Outcome::Allow, true),
            Standing::Observed => (Outcome::Deny, false),
            Standing::Denied => (Outcome::Deny, true),
        };
        let services: Vec<Service> = cleared.openings().iter().map(|opening| opening.element.service).collect();
        let rendered = Rendered::new(&Statement {
            qname: Some(permit.question().name.as_wire()),
            qtype: Some(permit.question().kind),
            outcome,
            enforced,
            reason,
            rule: rule.map(|rule| policy.rule(rule).into()),
            policy: policy.revision(),
            rcode: Some(answer.rcode),
            answers: &answer.records,
            services: &Services::merge(&services),
            ede: ede.as_ref(),
            why: withheld.map(|withheld| &*withheld.why).or(cleared.left_out()),
            upstream: Some(&answer.origin.name),
            origin,
        });
        Self { template, signed, rendered, outcome, enforced, reason, judged: None, renewed_within }
    }

    /// The same with what a candidate says of the answer.
    pub(in crate::gate) fn judged(self, judged: Option<Box<Judged>>) -> Self {
        Self { judged, ..self }
    }

    /// Who asks for it this shortly before its end has it renewed; zero where it is not.
    pub(in crate::gate) const fn renewed_within(&self) -> Duration {
        self.renewed_within
    }

    /// About how many bytes it takes.
    #[must_use]
    pub fn weight(&self) -> usize {
        let signed = self.signed.as_ref().map_or(0, |signed| size_of::<Template>() + signed.weight());
        let judged = self.judged.as_ref().map_or(0, |judged| judged.weight());
        size_of::<Self>() + self.template.weight() + signed + self.rendered.weight() + judged
    }
}

impl Reply for Prepared {
    fn answers(&self, name: &[u8], kind: RecordType) -> bool {
        self.template.answers(name, kind)
    }

    fn name(&self) -> &[u8] {
        self.template.name()
    }
}
