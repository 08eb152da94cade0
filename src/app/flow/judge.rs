//! What a flow was judged as, kept for as long as it lives, and its record.

use std::net::IpAddr;
use std::sync::Arc;

use crate::app::history::Segment;
use crate::audit::{FlowEvent, FlowOp};
use crate::firewall::{Count, Endpoints};
use crate::flow::{Carrier, Class, Detail, Judgement, Named, Origin, QueryId};
use crate::time::Wall;

/// What is known of a flow's reason since it began. Flows of one client to one name share it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Judged {
    pub(super) segment: Option<Segment>,
    pub(super) class: Class,
    pub(super) detail: Option<Detail>,
    pub(super) why: Option<Box<str>>,
    qname: Option<Box<str>>,
    rule: Option<Box<str>>,
    query: Option<QueryId>,
    names: Box<[Name]>,
    names_omitted: u64,
    late_us: Option<u64>,
    /// Its beginning is known.
    pub(super) started: bool,
}

/// One of several names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Name {
    qname: Box<str>,
    rule: Box<str>,
    query: Option<QueryId>,
    told: Wall,
    until: Wall,
}

impl Default for Judged {
    /// Nothing is known.
    fn default() -> Self {
        Self {
            segment: None,
            class: Class::Unknown,
            detail: None,
            why: None,
            qname: None,
            rule: None,
            query: None,
            names: Box::default(),
            names_omitted: 0,
            late_us: None,
            started: false,
        }
    }
}

impl Judged {
    pub(super) fn new(judgement: &Judgement<'_>, segment: Option<Segment>, started: bool) -> Self {
        let names = judgement.names.iter().map(|name| Name {
            qname: name.qname.into(),
            rule: name.rule.into(),
            query: name.query,
            told: name.told,
            until: name.until,
        });
        Self {
            segment,
            class: judgement.class,
            detail: judgement.detail,
            why: judgement.why().map(Into::into),
            qname: judgement.qname().map(Into::into),
            rule: judgement.rule().map(Into::into),
            query: judgement.name.and_then(|name| name.query),
            names: names.collect(),
            names_omitted: judgement.names_omitted,
            late_us: judgement.late_us,
            started,
        }
    }

    /// What is known of a flow whose end, or beginning, nobody told of.
    pub(super) fn lost(segment: Option<Segment>, started: bool, why: &str) -> Self {
        let detail = Some(Detail::EventsLost);
        Self { segment, detail, why: Some(why.into()), started, ..Self::default() }
    }

    /// Something had opened its way.
    pub(super) const fn is_open(&self) -> bool {
        let in_grace = matches!((self.class, self.detail), (Class::Stale, Some(Detail::Grace)));
        matches!(self.class, Class::Static | Class::Exact | Class::Ambiguous) || in_grace
    }

    /// The label by which refusals are counted.
    pub(super) fn word(&self) -> &'static str {
        self.detail.map_or(self.class.as_str(), Detail::as_str)
    }

    /// Hands the record of a flow to `write`.
    pub(super) fn record(&self, flow: &Told, write: impl FnOnce(FlowEvent<'_>)) {
        let names = self.names.iter().map(|name| Named {
            qname: &name.qname,
            rule: &name.rule,
            query: name.query,
            told: name.told,
            until: name.until,
        });
        let names: Vec<Named<'_>> = names.collect();
        let [out, into] = flow.counts.map_or([None; 2], |counts| counts.map(Some));
        let bytes = |count: Option<Count>| count.map(|count| count.bytes);
        let packets = |count: Option<Count>| count.map(|count| count.packets);
        let Endpoints { from, to, protocol, ports: [port, service] } = flow.ends;
        let carrier = Carrier::of(protocol, service);
        write(FlowEvent {
            at: flow.at,
            op: flow.op,
            client: from,
            port: matches!(carrier, Carrier::Tcp(_) | Carrier::Udp(_)).then_some(port),
            segment: self.segment.as_ref().map(|segment| (&*segment.name, &*segment.tags)),
            address: to,
            service: carrier,
            denied: flow.op == FlowOp::Refuse,
            class: self.class,
            detail: self.detail,
            why: flow.why.or(self.why.as_deref()),
            qname: self.qname.as_deref(),
            rule: self.rule.as_deref(),
            query: self.query.map(Into::into),
            names: &names,
            names_omitted: self.names_omitted,
            late_us: self.late_us,
            outlived_us: flow.outlived_us,
            bytes_out: bytes(out),
            bytes_in: bytes(into),
            packets_out: packets(out),
            packets_in: packets(into),
            end: flow.end,
            started: self.started,
            source: flow.source,
        });
    }
}

/// What a record says of a flow besides what it was judged as.
#[derive(Clone, Debug)]
pub(super) struct Told<'a> {
    pub(super) op: FlowOp,
    pub(super) at: Wall,
    pub(super) ends: Endpoints,
    pub(super) end: Option<Wall>,
    pub(super) counts: Option<[Count; 2]>,
    pub(super) outlived_us: Option<u64>,
    /// In place of why it was judged so.
    pub(super) why: Option<&'a str>,
    pub(super) source: Origin,
}

impl Told<'_> {
    /// The bare record of an operation.
    pub(super) const fn new(op: FlowOp, at: Wall, ends: Endpoints) -> Self {
        let source = if matches!(op, FlowOp::Refuse) { Origin::Nflog } else { Origin::Conntrack };
        Self { op, at, ends, end: None, counts: None, outlived_us: None, why: None, source }
    }
}

/// Judgements that are alike, each once.
#[derive(Default)]
pub(super) struct Shared(std::collections::HashSet<Arc<Judged>, foldhash::quality::RandomState>);

/// Judgements that are kept to be shared: some tens of megabytes.
const SHARED: usize = 1 << 16;

impl Shared {
    pub(super) fn of(&mut self, judged: Judged) -> Arc<Judged> {
        if let Some(known) = self.0.get(&judged) {
            return Arc::clone(known);
        }
        if self.0.len() >= SHARED {
            self.0.retain(|known| Arc::strong_count(known) > 1);
        }
        let new = Arc::new(judged);
        if self.0.len() < SHARED {
            self.0.insert(Arc::clone(&new));
        }
        new
    }
}

/// The address under which a client's look-ups stand: of a host that governs itself, all of its own are one client.
pub(super) fn place(of_host: Option<&std::collections::HashSet<IpAddr>>, address: IpAddr) -> IpAddr {
    match of_host {
        Some(here) if address.is_loopback() || here.contains(&address) => IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
        _ => address,
    }
}
