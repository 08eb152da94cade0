//! What policy says: [`Verdict`], [`Permit`] and [`Cleared`], with the facts that records and replies need.
//!
//! A `Permit` is made by `decide`, a `Cleared` by `inspect`, both in this room and nowhere else: their fields
//! are private, and the next stage of the walk takes them by value.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use crate::name::Name;
use crate::net::{Element, Service, Services};
use crate::policy::{Asker, Policy, Segment};
use crate::record::{Answer, Origin, Question, Record, RecordType};
use crate::time::{Ttl, Wall};

/// Why a query got the verdict it got; the `reason` of its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// A rule named the name.
    Rule,
    /// No rule named the name: unmatched is denied.
    Default,
    /// The client is in no segment.
    NoSegment,
    /// The name is allowed, this type of it is not.
    Type,
    /// A name that the answer leads to is denied, not trusted or not allowed, or the CNAME chain was left open.
    Cname,
    /// The addresses may not be granted.
    Address,
    /// The segment has no source prefix of the addresses' family, or filters it.
    Family,
    /// A table of grants is at its cap.
    Budget,
    /// The client asked too much at once.
    Rate,
    /// The packet is not a query that can be read.
    Malformed,
    /// No upstream gave an answer that can be used.
    Upstream,
    /// A signature did not hold.
    Dnssec,
    /// A required firewall did not acknowledge.
    Firewall,
    /// The record could not be written.
    Audit,
    /// The node is stopping.
    Shutdown,
    /// Answered by the node itself.
    Local,
    /// A special-use name.
    Special,
}

impl Reason {
    /// Every reason, in the order of the interface.
    pub const ALL: [Self; 17] = [
        Self::Rule,
        Self::Default,
        Self::NoSegment,
        Self::Type,
        Self::Cname,
        Self::Address,
        Self::Family,
        Self::Budget,
        Self::Rate,
        Self::Malformed,
        Self::Upstream,
        Self::Dnssec,
        Self::Firewall,
        Self::Audit,
        Self::Shutdown,
        Self::Local,
        Self::Special,
    ];

    /// The word in records and metric labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rule => "rule",
            Self::Default => "default",
            Self::NoSegment => "no_segment",
            Self::Type => "type",
            Self::Cname => "cname",
            Self::Address => "address",
            Self::Family => "family",
            Self::Budget => "budget",
            Self::Rate => "rate",
            Self::Malformed => "malformed",
            Self::Upstream => "upstream",
            Self::Dnssec => "dnssec",
            Self::Firewall => "firewall",
            Self::Audit => "audit",
            Self::Shutdown => "shutdown",
            Self::Local => "local",
            Self::Special => "special",
        }
    }
}

/// A segment's place in its policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SegmentIndex(pub(in crate::policy) u32);

/// A rule's place in its policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleIndex(pub(in crate::policy) u32);

/// A name's place among those that are not left to the rules alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReservedIndex(pub(in crate::policy) u32);

/// What `decide` says of a question.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// It may be resolved.
    Permit(Permit),
    /// It is refused here.
    Refuse(Refusal),
    /// This node answers it itself.
    Answer(Own),
}

/// What the record of a question would say, as far as that is known before any answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said {
    /// The verdict is allow, and not deny.
    pub allows: bool,
    /// False where it is denied and passes, in an observe segment.
    pub enforced: bool,
    /// Why.
    pub reason: Reason,
    /// The rule that the record names.
    pub rule: Option<RuleIndex>,
    /// What the client sees; `None`: an answer.
    pub shown: Option<Shown>,
}

impl Said {
    /// Of a client in no segment.
    pub const NO_SEGMENT: Self =
        Self { allows: false, enforced: true, reason: Reason::NoSegment, rule: None, shown: Some(Shown::Refused) };
}

impl Verdict {
    /// What the record would say.
    #[must_use]
    pub fn said(&self) -> Said {
        let answered = Said { allows: true, enforced: true, reason: Reason::Rule, rule: None, shown: None };
        match self {
            Self::Permit(permit) => match permit.observed {
                Some((rule, reason)) => Said { allows: false, enforced: false, reason, rule, ..answered },
                None => Said { rule: permit.rule(), ..answered },
            },
            Self::Refuse(Refusal { rule, reason, shown, .. }) => {
                Said { allows: false, enforced: true, reason: *reason, rule: *rule, shown: Some(*shown) }
            }
            Self::Answer(own) => Said { reason: own.reason, ..answered },
        }
    }

    /// What would be opened of each address of an answer, where no `within` leaves it out; ranges as few as may be.
    #[must_use]
    pub fn ports(&self) -> Vec<Services> {
        let Self::Permit(permit) = self else { return Vec::new() };
        let kind = permit.question.kind;
        if permit.observed.is_some() || !(kind.is_address() || kind.is_service()) {
            return Vec::new();
        }
        let ports = permit.rules.iter().flat_map(|rule| &permit.policy.rule(*rule).ports);
        let services: Vec<_> = ports.flat_map(|ports| ports.expand()).collect();
        if services.contains(&Service::Any) { vec![Services::Any] } else { Services::merge(&services) }
    }
}

impl Shown {
    /// Each with its word in files.
    pub const ALL: [(&'static str, Self); 3] =
        [("nxdomain", Self::NxDomain), ("nodata", Self::NoData), ("refused", Self::Refused)];

    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NxDomain => "nxdomain",
            Self::NoData => "nodata",
            Self::Refused => "refused",
        }
    }
}

/// What a refused client is shown (docs/policy.md, "What a refused client sees").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// NXDOMAIN with SOA.
    NxDomain,
    /// NOERROR without records, with SOA.
    NoData,
    /// REFUSED.
    Refused,
}

/// A refusal: nothing travels upstream, nothing is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Who asked.
    pub asker: Asker,
    /// The deny rule, where one said no; of a refused type the allow rule that is the nearest.
    pub rule: Option<RuleIndex>,
    /// Why.
    pub reason: Reason,
    /// What the client sees.
    pub shown: Shown,
    /// The name that is not left to the rules, with [`Reason::Special`].
    pub(in crate::policy) reserved: Option<ReservedIndex>,
}

/// An answer of this node's own: nothing travels upstream, nothing is opened. An address in it is one that is open to
/// everybody, or to nobody: loopback, and those of `ipv4only.arpa`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own {
    pub(in crate::policy) reason: Reason,
    pub(in crate::policy) records: Vec<Record>,
    pub(in crate::policy) why: Box<str>,
}

impl Own {
    /// Tells under which names the address of a reverse name is open for who asks; `None` where there are none.
    #[must_use]
    pub fn pointing(reverse: &[u8], names: &[Name], ttl: Ttl) -> Option<Self> {
        let owner = Name::from_wire(reverse).ok().filter(|_| !names.is_empty())?;
        let record =
            |name: &Name| Record { name: owner.clone(), kind: RecordType::PTR, ttl, data: name.as_wire().into() };
        let records = names.iter().map(record).collect();
        Some(Self { reason: Reason::Local, records, why: "open for this client under these names".into() })
    }

    /// What ANY of a name that may be asked for is answered with. RFC 8482 §4.2: a responder may answer with "a synthesized
    /// HINFO resource record", whose CPU field is "RFC8482" and whose OS field is empty.
    pub(in crate::policy) fn any(name: &[u8]) -> Self {
        let record = |name| Record {
            name,
            kind: RecordType::HINFO,
            ttl: Ttl::from_wire(300),
            data: b"\x07RFC8482\0".as_slice().into(),
        };
        let records = Name::from_wire(name).map(record).into_iter().collect();
        Self { reason: Reason::Local, records, why: "ANY is answered with as little as there may be (RFC 8482)".into() }
    }

    /// Why it is answered here.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        self.reason
    }

    /// Its records, all of the question's name; none: NODATA.
    #[must_use]
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// One clause for the record's `why`.
    #[must_use]
    pub const fn why(&self) -> &str {
        &self.why
    }
}

/// Proof that this question of this client may be resolved. Demanded by the upstreams and by [`inspect`].
///
/// [`inspect`]: crate::policy::inspect()
#[derive(Clone, Debug)]
pub struct Permit {
    pub(in crate::policy) policy: Arc<Policy>,
    pub(in crate::policy) asker: Asker,
    pub(in crate::policy) question: Question,
    /// The allow rules that admit this name and type, the one that the record names first; empty only where
    /// enforcing would have refused. They open nothing there.
    pub(in crate::policy) rules: SmallVec<[RuleIndex; 4]>,
    /// In an observe segment: the refusal that enforcing would have given.
    pub(in crate::policy) observed: Option<(Option<RuleIndex>, Reason)>,
    /// The segment observed when this was decided: what `inspect` finds is told, not enforced.
    pub(in crate::policy) observing: bool,
    /// When.
    pub(in crate::policy) decided: Wall,
}

impl Permit {
    /// The policy that decided.
    #[must_use]
    pub const fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// Who asks.
    #[must_use]
    pub const fn asker(&self) -> Asker {
        self.asker
    }

    /// What is asked.
    #[must_use]
    pub const fn question(&self) -> &Question {
        &self.question
    }

    /// The asker's segment.
    #[must_use]
    pub fn segment(&self) -> &Segment {
        self.policy.segment(self.asker)
    }

    /// The refusal that enforcing would have given, where an observe segment let the question pass.
    #[must_use]
    pub const fn observed(&self) -> Option<(Option<RuleIndex>, Reason)> {
        self.observed
    }

    /// The rules that admit it, that which the record names first.
    #[must_use]
    pub fn rules(&self) -> &[RuleIndex] {
        &self.rules
    }

    /// The rule that the record names.
    #[must_use]
    pub fn rule(&self) -> Option<RuleIndex> {
        self.rules.first().copied()
    }

    /// When it has to be decided anew: the first of its rules ends, or the segment begins to enforce.
    #[must_use]
    pub fn ends(&self) -> Option<Wall> {
        let rules = self.policy.first_end(&self.rules);
        rules.into_iter().chain(self.segment().observe_until.filter(|_| self.observing)).min()
    }
}

/// One opening that an inspected answer needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    /// From whom, to where, by what.
    pub element: Element,
    /// The minimum life that the rules ask for (`hold`), before `[grant].hold` is considered.
    pub hold: Option<Duration>,
    /// When the last of the rules that open it ends; `None`: one of them has no end.
    pub ends: Option<Wall>,
}

/// Why an address was granted: everything needed to decide it again under another policy (I6).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Basis {
    /// The client that asked; see [`Basis::is_warm`].
    pub client: IpAddr,
    /// The forwarder that asked for it.
    pub forwarder: Option<Arc<str>>,
    /// The name in the client's certificate that named its segment.
    pub certificate: Option<Arc<str>>,
    /// What was asked.
    pub question: Question,
    /// The names of the CNAME chain, the question's own not among them.
    pub chain: Arc<[Name]>,
    /// The targets of HTTPS or SVCB records whose hints were granted, but for records that bind their own name.
    pub targets: Arc<[Name]>,
    /// Who gave the answer.
    pub origin: Origin,
    /// The segment's name at the time.
    pub segment: Arc<str>,
    /// The rule that the record names.
    pub rule: Arc<str>,
}

/// An inspected answer: what may be told, and what must be open before. Demanded by the ledger.
#[derive(Clone, Debug)]
pub struct Cleared {
    pub(in crate::policy) permit: Permit,
    pub(in crate::policy) answer: Answer,
    pub(in crate::policy) openings: Vec<Opening>,
    pub(in crate::policy) basis: Arc<Basis>,
    pub(in crate::policy) withheld: Option<Withheld>,
    pub(in crate::policy) left_out: Option<Box<str>>,
    /// When a rule ends that vouches for one of its names.
    pub(in crate::policy) until: Option<Wall>,
}

/// Why an answer, or the verdict on it, is not what upstream gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Withheld {
    /// [`Reason::Address`], [`Reason::Cname`], [`Reason::Family`], [`Reason::Type`] or [`Reason::Upstream`].
    pub reason: Reason,
    /// The rule that said so, where one did.
    pub rule: Option<RuleIndex>,
    /// One clause for the record's `why` and the client's EDE text: `"10.0.0.1 is private (10.0.0.0/8)"`.
    pub why: Box<str>,
    /// False in an observe segment: the answer was given all the same.
    pub enforced: bool,
}

impl Cleared {
    /// The permit it was inspected under.
    #[must_use]
    pub const fn permit(&self) -> &Permit {
        &self.permit
    }

    /// What may be told: records trimmed or, where all were withheld, none.
    #[must_use]
    pub const fn answer(&self) -> &Answer {
        &self.answer
    }

    /// What must be open before it is told; empty where there is nothing to open.
    #[must_use]
    pub fn openings(&self) -> &[Opening] {
        &self.openings
    }

    /// When it has to be inspected anew: a rule ends that it stands on. Not told for longer.
    #[must_use]
    pub fn ends(&self) -> Option<Wall> {
        self.permit.ends().into_iter().chain(self.until).min()
    }

    /// Why these openings are made.
    #[must_use]
    pub const fn basis(&self) -> &Arc<Basis> {
        &self.basis
    }

    /// Set where the whole answer was withheld (or would have been, in an observe segment).
    #[must_use]
    pub const fn withheld(&self) -> Option<&Withheld> {
        self.withheld.as_ref()
    }

    /// Of an answer that is told: why records of it, or hints in them, are not.
    #[must_use]
    pub fn left_out(&self) -> Option<&str> {
        self.left_out.as_deref()
    }
}
