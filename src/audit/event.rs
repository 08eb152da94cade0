//! The records of version 1, as borrowed views: fields in the order of docs/log.md, absent = `None`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use super::format::json::Rendered;
use crate::flow::{Carrier, Class, Detail, Flow, Judgement, Named, Origin, QueryId};
use crate::name::Name;
use crate::net::{Element, Services};
use crate::policy::{Dissent, Reason, Rule, Summary};
use crate::record::{ExtendedError, Rcode, Record, RecordType};
use crate::time::Wall;

/// A record's id: boot - shard - sequence. Sequences are gapless over all record types of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecordId {
    /// Random per process start.
    pub boot: u64,
    /// Which thread's sequence.
    pub shard: u16,
    /// From 1.
    pub sequence: u64,
}

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{}-{}", self.boot, self.shard, self.sequence)
    }
}

impl From<QueryId> for RecordId {
    fn from(QueryId { boot, shard, sequence }: QueryId) -> Self {
        Self { boot, shard, sequence }
    }
}

impl From<RecordId> for QueryId {
    fn from(RecordId { boot, shard, sequence }: RecordId) -> Self {
        Self { boot, shard, sequence }
    }
}

impl FromStr for RecordId {
    type Err = ();

    /// Reads what `Display` writes.
    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.splitn(3, '-');
        let mut part = || parts.next().ok_or(());
        let (boot, shard, sequence) = (part()?, part()?, part()?);
        Ok(Self {
            boot: u64::from_str_radix(boot, 16).map_err(|_| ())?,
            shard: shard.parse().map_err(|_| ())?,
            sequence: sequence.parse().map_err(|_| ())?,
        })
    }
}

/// Anything that a thread other than the log itself records.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// One query and what became of it.
    Query(QueryEvent<'a>),
    /// One change of one grant.
    Grant(GrantEvent<'a>),
    /// A policy was loaded or refused.
    Policy(PolicyEvent<'a>),
    /// An operator changed something while the node runs.
    Change(ChangeEvent<'a>),
    /// What went out, or was refused.
    Flow(FlowEvent<'a>),
}

/// How a query reached us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// A datagram.
    Udp,
    /// A stream message.
    Tcp,
    /// A stream message over TLS.
    Dot,
    /// An HTTPS request.
    Doh,
    /// A stream of QUIC.
    Doq,
    /// An HTTPS request over HTTP/3.
    Doh3,
}

impl Transport {
    /// The word in records and metric labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
            Self::Dot => "dot",
            Self::Doh => "doh",
            Self::Doq => "doq",
            Self::Doh3 => "doh3",
        }
    }
}

/// The verdict of a query record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Answered as the policy allows.
    Allow,
    /// Refused by the policy.
    Deny,
    /// Something failed; closed.
    Error,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 3] = [Self::Allow, Self::Deny, Self::Error];

    /// The word in records and metric labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Error => "error",
        }
    }
}

/// What the cache did for a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CacheUse {
    /// Known, and open for this client.
    Hit,
    /// Known, but to be opened first.
    Open,
    /// Asked for.
    Miss,
    /// A local zone.
    Zone,
    /// It had ended, and upstream gave no other.
    Stale,
    /// It failed a moment before, and was not asked again.
    Failure,
}

impl CacheUse {
    /// The word in records.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Open => "open",
            Self::Miss => "miss",
            Self::Zone => "zone",
            Self::Stale => "stale",
            Self::Failure => "failure",
        }
    }
}

/// One datagram or stream message that reached us.
#[derive(Clone, Debug)]
pub struct QueryEvent<'a> {
    /// When it was received.
    pub at: Wall,
    /// The client (the forwarder where it names none).
    pub client: IpAddr,
    /// Its port (of a client named by subnet, the forwarder's).
    pub port: u16,
    /// How it came.
    pub transport: Transport,
    /// The forwarder that asked for it.
    pub asked_by: Option<&'a str>,
    /// The name in the client's certificate that named its segment.
    pub certificate: Option<&'a str>,
    /// What its cookie proves.
    pub cookie: Option<&'static str>,
    /// The segment's name, and its tags as one JSON object (empty: none).
    pub segment: Option<(&'a str, &'a str)>,
    /// The client's labels as one JSON object; empty: none.
    pub labels: &'a str,
    /// The DNS id; `None` where the packet is too short to have one.
    pub qid: Option<u16>,
    /// What became of it.
    pub stated: Stated<'a>,
    /// The reply's header flags, bytes 2 and 3. With TC, no answers were told.
    pub flags: u16,
    /// The reply's length; 0: silence.
    pub bytes: usize,
    /// What the cache did.
    pub cache: Option<CacheUse>,
    /// The TTL that all answers were told with.
    pub ttl: u32,
    /// All services of the statement are open until then at least; `None`: nothing had to be opened.
    pub until: Option<Wall>,
    /// What a candidate policy says otherwise.
    pub shadow: Option<&'a Shadow<'a>>,
    /// Receipt to record, in microseconds.
    pub latency_us: u64,
}

/// What a candidate policy, which decides nothing, says of a query otherwise than the policy in force.
#[derive(Clone, Debug)]
pub struct Shadow<'a> {
    /// In what it disagrees.
    pub dissent: Dissent,
    /// What would have become of the query.
    pub outcome: Outcome,
    /// False where an observe segment would have let it pass.
    pub enforced: bool,
    /// Why.
    pub reason: Reason,
    /// The candidate's rule.
    pub rule: Option<&'a str>,
    /// The client's segment, where the candidate has it in another one.
    pub segment: Option<&'a str>,
    /// The candidate's revision.
    pub policy: u64,
    /// One clause more.
    pub why: Option<&'a str>,
}

/// A statement, said once or often.
#[derive(Clone, Debug)]
pub enum Stated<'a> {
    /// For this record alone.
    Plain(Statement<'a>),
    /// Of a prepared reply: rendered when that was prepared. The line is the same.
    Rendered(&'a Rendered),
}

/// What a record says of a reply: the same each time that it is told, to whomever.
#[derive(Clone, Debug)]
pub struct Statement<'a> {
    /// The name in canonical wire form; `None` where it could not be read.
    pub qname: Option<&'a [u8]>,
    /// The type.
    pub qtype: Option<RecordType>,
    /// What became of the query.
    pub outcome: Outcome,
    /// False where an observe segment let it pass.
    pub enforced: bool,
    /// Why.
    pub reason: Reason,
    /// The rule.
    pub rule: Option<Ruled<'a>>,
    /// The policy's revision.
    pub policy: u64,
    /// The code that the client sees; `None`: silence.
    pub rcode: Option<Rcode>,
    /// The answer section.
    pub answers: &'a [Record],
    /// What was opened for the answers.
    pub services: &'a [Services],
    /// The extended error that was sent, or would have been to a client with EDNS.
    pub ede: Option<&'a ExtendedError>,
    /// One clause more.
    pub why: Option<&'a str>,
    /// The upstream or zone that answered.
    pub upstream: Option<&'a str>,
    /// The query that fetched the answer; not said in its own record.
    pub origin: Option<RecordId>,
}

/// The rule that a record names, and who answers for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ruled<'a> {
    /// Its id.
    pub id: &'a str,
    /// Who answers for it.
    pub owner: Option<&'a str>,
    /// Where it was agreed.
    pub ticket: Option<&'a str>,
}

impl<'a> From<&'a Rule> for Ruled<'a> {
    fn from(rule: &'a Rule) -> Self {
        Self { id: &rule.id, owner: rule.owner.as_deref(), ticket: rule.ticket.as_deref() }
    }
}

/// What happened to a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GrantOp {
    /// It was not open before.
    Open,
    /// It is open for longer.
    Extend,
    /// It ends sooner: a reason for it went away.
    Shorten,
    /// It was closed before its end.
    Revoke,
    /// A required firewall did not take it.
    Fail,
    /// Found in place at start, and still right.
    Adopt,
}

impl GrantOp {
    /// The word in records.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Extend => "extend",
            Self::Shorten => "shorten",
            Self::Revoke => "revoke",
            Self::Fail => "fail",
            Self::Adopt => "adopt",
        }
    }
}

/// What one firewall said to a grant.
#[derive(Clone, Copy, Debug)]
pub struct BackendAck<'a> {
    /// The firewall's name.
    pub name: &'a str,
    /// Send to acknowledgement, in microseconds.
    pub acked_us: u64,
}

/// One change of the grants for one address.
#[derive(Clone, Debug)]
pub struct GrantEvent<'a> {
    /// When.
    pub at: Wall,
    /// What.
    pub op: GrantOp,
    /// The client that asked; `None`: a rule keeps the name warm.
    pub client: Option<IpAddr>,
    /// From whom and to where; its service is the first of `services`.
    pub element: Element,
    /// The segment's name.
    pub segment: &'a str,
    /// The rule's id.
    pub rule: &'a str,
    /// The name that was asked.
    pub qname: &'a Name,
    /// Every service of this address that changed alike.
    pub services: &'a [Services],
    /// When it ends.
    pub until: Wall,
    /// The query that caused it.
    pub query: Option<RecordId>,
    /// Why, where that is not plain: `"policy"`, `"drift"`, an error.
    pub why: Option<&'a str>,
    /// Who acknowledged.
    pub backends: &'a [BackendAck<'a>],
}

/// A policy was loaded, or refused.
#[derive(Clone, Debug)]
pub struct PolicyEvent<'a> {
    /// When.
    pub at: Wall,
    /// `load`, `reload`, `promote` or `refused`.
    pub op: &'a str,
    /// The revision in force after it.
    pub revision: u64,
    /// The revision before it.
    pub previous: Option<u64>,
    /// How many segments.
    pub segments: usize,
    /// How many rules.
    pub rules: usize,
    /// Grants that the new policy would not make, and that were revoked.
    pub revoked: u64,
    /// Of a reload or a promotion: what it changed.
    pub changes: Option<&'a Summary>,
    /// Of a refused load the first mistake; of a promotion who asked for it, and why.
    pub why: Option<&'a str>,
}

/// An operator changed something while the node runs, or that ended.
#[derive(Clone, Debug, Default)]
pub struct ChangeEvent<'a> {
    /// When.
    pub at: Wall,
    /// What: see docs/log.md.
    pub op: &'a str,
    /// The id of the rule that was made, or taken back.
    pub change: Option<&'a str>,
    /// Who: user name and number; `None`: the node itself.
    pub by: Option<&'a str>,
    /// Names, patterns, addresses or prefixes that are meant.
    pub targets: &'a [String],
    /// The client that is meant.
    pub client: Option<IpAddr>,
    /// The segments that are meant.
    pub segments: &'a [String],
    /// When it ends.
    pub until: Option<Wall>,
    /// Why.
    pub why: Option<&'a str>,
    /// Where that was agreed.
    pub ticket: Option<&'a str>,
    /// Clients that are placed from here on, where that changed.
    pub clients: Option<usize>,
    /// Grants that were closed for it.
    pub revoked: u64,
    /// Connections that were cut for it; `None`: none were looked for.
    pub cut: Option<u64>,
    /// It could not be written to the state directory: a restart forgets it.
    pub unsaved: bool,
}

/// What a record says of a flow's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FlowOp {
    /// It began.
    Open,
    /// It ended.
    Close,
    /// The firewall refused it.
    Refuse,
    /// It is in another system's log.
    Seen,
}

impl FlowOp {
    /// The word in records.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Close => "close",
            Self::Refuse => "refuse",
            Self::Seen => "seen",
        }
    }
}

/// One flow, and what it went out by.
#[derive(Clone, Debug)]
pub struct FlowEvent<'a> {
    /// When it began; of a refusal, when its packet came.
    pub at: Wall,
    /// What of its life.
    pub op: FlowOp,
    /// From where, before any translation.
    pub client: IpAddr,
    /// The port it came from.
    pub port: Option<u16>,
    /// The client's segment, and its tags as one JSON object (empty: none).
    pub segment: Option<(&'a str, &'a str)>,
    /// To where, as the client addressed it.
    pub address: IpAddr,
    /// What carried it.
    pub service: Carrier,
    /// The firewall refused it.
    pub denied: bool,
    /// What it went out by.
    pub class: Class,
    /// The same more exactly.
    pub detail: Option<Detail>,
    /// Why, in a sentence.
    pub why: Option<&'a str>,
    /// The name in presentation format, where it is one.
    pub qname: Option<&'a str>,
    /// The rule's id, where it is one.
    pub rule: Option<&'a str>,
    /// The query that was told that name's address.
    pub query: Option<RecordId>,
    /// The names where there are several, the newest first.
    pub names: &'a [Named<'a>],
    /// Names beyond those.
    pub names_omitted: u64,
    /// How long after the end of what was told it began, in microseconds.
    pub late_us: Option<u64>,
    /// How long it lived on after its grant had ended, in microseconds.
    pub outlived_us: Option<u64>,
    /// Bytes from the client; `None`: not counted.
    pub bytes_out: Option<u64>,
    /// Bytes to it.
    pub bytes_in: Option<u64>,
    /// Packets from the client.
    pub packets_out: Option<u64>,
    /// Packets to it.
    pub packets_in: Option<u64>,
    /// When it ended.
    pub end: Option<Wall>,
    /// False where its beginning was not seen.
    pub started: bool,
    /// Where it was seen.
    pub source: Origin,
}

impl<'a> FlowEvent<'a> {
    /// A flow as it was judged; counters, port and tags are the caller's to add. `why` is what the judgement says.
    #[must_use]
    pub fn judged(
        op: FlowOp,
        source: Origin,
        flow: &Flow<'_>,
        judgement: &'a Judgement<'a>,
        why: Option<&'a str>,
    ) -> Self {
        Self {
            at: flow.at,
            op,
            client: flow.client,
            port: None,
            segment: judgement.segment.map(|segment| (segment, "")),
            address: flow.address,
            service: flow.carrier,
            denied: flow.denied,
            class: judgement.class,
            detail: judgement.detail,
            why,
            qname: judgement.qname(),
            rule: judgement.rule(),
            query: judgement.name.and_then(|name| name.query).map(RecordId::from),
            names: &judgement.names,
            names_omitted: judgement.names_omitted,
            late_us: judgement.late_us,
            outlived_us: judgement.outlived_us,
            bytes_out: None,
            bytes_in: None,
            packets_out: None,
            packets_in: None,
            end: flow.end,
            started: flow.started,
            source,
        }
    }
}
