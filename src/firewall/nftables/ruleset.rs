//! The chains of the table and their rules.
//!
//! ```text
//! forward    deny sets; flows that were admitted and ICMP about them; the source's segment; inside without segment →
//!            closed; from elsewhere: what begins is admitted
//! output     the same for this machine's own flows, which stand under its loopback address, and replies
//! segment_X  → egress; grants of the segment, static rules → admit; else log, then refuse (in observe: admit)
//! denied     log, refuse: a destination that is denied to everybody
//! closed     ungated to ungated → admit; our resolvers; log, refuse
//! egress4    ungated destinations, our resolvers → admit; DNS elsewhere → back, whatever is granted;
//!            grants of the client → admit
//! ```
//! "Admit" marks the connection, and the mark is all that lets a routed packet pass later. That it is the reply of
//! a connection says nothing: who forges a source can make connection tracking believe that his packets are.
//! The packet mark and other bits of the connection mark belong to others. What is used here is what the program
//! nft can print: it dies of a map in a concatenation, and would take every listing of the machine with it.

use super::conntrack::CUT;
use super::element::Grants;
use super::expression::{
    Action, ESTABLISHED, Family, INVALID, NEW, PROHIBITED, RELATED, RESET, Rule, Source, TCP, Tail, UDP,
};
use super::sets::{self, Content, Names};
use super::wire::{APPEND, Batch, CREATE, Reader, Verb, number, text};
use super::{Hook, Settings, nflog};
use crate::net::{PrefixMap, SegmentId};
use crate::policy::{Layout, SegmentLayout};

const ICMP_SIX: u8 = Family::Six.icmp();

/// Before the filters of others: what we refuse is refused before they see it, what we accept they still judge.
const PRIORITY: i32 = -10;

/// Hook and priority of a base chain; `None` for every other.
type Base = Option<(u32, u32)>;

/// A chain as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Present {
    pub(super) name: String,
    base: Base,
}

impl Present {
    /// Reads one NEWCHAIN of a dump.
    pub(super) fn read(attributes: Reader<'_>) -> Option<Self> {
        let (mut name, mut base) = (None, None);
        for (kind, value) in attributes {
            match kind {
                3 => name = text(value).map(str::to_owned),
                4 => {
                    let find = |wanted| Reader(value).find(|(kind, _)| *kind == wanted).and_then(|(_, v)| number(v));
                    base = Some((find(1)?, find(2)?));
                }
                _ => {}
            }
        }
        Some(Self { name: name?, base })
    }
}

impl Hook {
    /// The base chain's name and NF_INET_FORWARD or NF_INET_LOCAL_OUT.
    const fn base(self) -> Option<(&'static str, u32)> {
        match self {
            Self::Forward => Some(("forward", 2)),
            Self::Output => Some(("output", 3)),
            Self::Sets => None,
        }
    }
}

/// The chain of a segment.
pub(super) fn chain_of(segment: &SegmentLayout) -> String {
    format!("segment_{}", segment.name)
}

/// A chain as it is to be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Chain<'a> {
    pub(super) name: String,
    base: Base,
    content: Kind<'a>,
}

impl Chain<'_> {
    /// As the kernel lists it, whatever rules it has.
    pub(super) fn present(&self) -> Present {
        Present { name: self.name.clone(), base: self.base }
    }

    /// NEWCHAIN, without rules.
    pub(super) fn create(&self, batch: &mut Batch, table: &str) {
        batch.message(Verb::NewChain, CREATE, |a| {
            a.text(1, table);
            a.text(3, &self.name);
            if let Some((hook, priority)) = self.base {
                a.nest(4, |a| {
                    a.number(1, hook);
                    a.number(2, priority);
                });
                a.number(5, 1);
                a.text(7, "filter");
            }
        });
    }

    /// Its rules.
    pub(super) fn fill(&self, batch: &mut Batch, settings: &Settings, names: &Names) {
        Rules { batch, settings, names, chain: &self.name }.write(&self.content);
    }

    /// The sets that its rules look at, of those that a layout fills.
    pub(super) fn sets(&self) -> Vec<Content> {
        match self.content {
            Kind::Base(..) => {
                Family::BOTH.into_iter().flat_map(|f| [Content::Denied(f), Content::Segments(f)]).collect()
            }
            Kind::EgressOf(family) => vec![Content::Ungated(family), Content::Resolvers(family), Content::Dns],
            Kind::Closed => {
                Family::BOTH.into_iter().flat_map(|f| [Content::Ungated(f), Content::Resolvers(f)]).collect()
            }
            Kind::Segment { families, .. } => {
                let networks = Family::BOTH.into_iter().zip(families).filter(|(_, has)| has.networks);
                networks.map(|(family, _)| Content::Networks(family)).chain([Content::Dns]).collect()
            }
            Kind::Egress | Kind::Denied | Kind::Refuse => Vec::new(),
        }
    }
}

/// What decides the rules of a chain.
#[derive(Debug, PartialEq, Eq)]
enum Kind<'a> {
    Base(Hook, [Option<&'a str>; 2]),
    Egress,
    EgressOf(Family),
    Closed,
    Denied,
    Refuse,
    Segment { id: SegmentId, name: &'a str, observe: bool, families: [Has; 2] },
}

/// What a segment has of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Has {
    sources: bool,
    networks: bool,
}

/// Every chain. Of the hook output only the segments that hold this machine are reached.
pub(super) fn chains<'a>(settings: &Settings, layout: &'a Layout) -> Vec<Chain<'a>> {
    let mut chains = common(settings, layout);
    if !chains.is_empty() {
        chains.extend(layout.segments.iter().map(of_segment));
    }
    chains
}

/// Those that are of no segment.
pub(super) fn common<'a>(settings: &Settings, layout: &'a Layout) -> Vec<Chain<'a>> {
    let Some((name, hook)) = settings.hook.base() else { return Vec::new() };
    let plain = |name: String, content| Chain { name, base: None, content };
    let here = Family::BOTH.map(|family| segment_here(settings, layout, family));
    let base = Kind::Base(settings.hook, here.map(|segment| segment.map(|segment| segment.name.as_ref())));
    let mut chains = vec![
        Chain { name: name.to_owned(), base: Some((hook, PRIORITY.cast_unsigned())), content: base },
        plain("egress".into(), Kind::Egress),
        plain("closed".into(), Kind::Closed),
        plain("denied".into(), Kind::Denied),
        plain("refuse".into(), Kind::Refuse),
    ];
    chains.extend(Family::BOTH.map(|family| plain(format!("egress{}", family.digit()), Kind::EgressOf(family))));
    chains
}

fn of_segment(segment: &SegmentLayout) -> Chain<'_> {
    let families = Family::BOTH.map(|family| Has {
        sources: segment.sources.iter().any(|prefix| sets::of(*prefix) == family),
        networks: segment.networks.iter().any(|(prefix, _)| sets::of(*prefix) == family),
    });
    let content = Kind::Segment { id: segment.id, name: segment.name.as_ref(), observe: segment.observe, families };
    Chain { name: chain_of(segment), base: None, content }
}

/// The segment that holds this machine, with hook output.
fn segment_here<'a>(settings: &Settings, layout: &'a Layout, family: Family) -> Option<&'a SegmentLayout> {
    if settings.hook != Hook::Output {
        return None;
    }
    let mut map = PrefixMap::default();
    for segment in &layout.segments {
        for prefix in &segment.sources {
            map.insert(*prefix, segment);
        }
    }
    map.longest(super::local::address(family)).copied()
}

struct Rules<'a> {
    batch: &'a mut Batch,
    settings: &'a Settings,
    names: &'a Names,
    chain: &'a str,
}

impl Rules<'_> {
    fn rule(&mut self, expressions: impl FnOnce(&mut Rule<'_, '_>)) {
        self.batch.message(Verb::NewRule, CREATE | APPEND, |a| {
            a.text(1, &self.settings.table);
            a.text(2, self.chain);
            a.nest(4, |a| expressions(&mut Rule(a)));
        });
    }

    fn write(&mut self, content: &Kind<'_>) {
        match *content {
            Kind::Base(Hook::Forward, _) => self.forward(),
            Kind::Base(Hook::Output, here) => self.output(here),
            Kind::Base(Hook::Sets, _) => {}
            Kind::Egress => {
                for family in Family::BOTH {
                    let egress = format!("egress{}", family.digit());
                    self.rule(|r| r.family(family).act(Action::Jump(&egress)));
                }
            }
            Kind::EgressOf(family) => self.egress(family),
            Kind::Closed => {
                if self.settings.hook == Hook::Output {
                    self.rule(|r| r.act(Action::Jump("egress")));
                } else {
                    self.stranger();
                }
                self.log(nflog::DENY);
                self.rule(|r| r.act(Action::Goto("refuse")));
            }
            Kind::Denied => {
                self.log(nflog::DENIED);
                self.rule(|r| r.act(Action::Goto("refuse")));
            }
            Kind::Refuse => {
                self.rule(|r| r.protocol(TCP).reject(RESET));
                self.rule(|r| r.reject(PROHIBITED));
            }
            Kind::Segment { id, name, observe, families } => {
                self.rule(|r| r.act(Action::Jump("egress")));
                for (family, has) in Family::BOTH.into_iter().zip(families) {
                    self.segment(id, family, has);
                }
                self.end(name, observe);
            }
        }
    }

    fn segment(&mut self, SegmentId(number): SegmentId, family: Family, has: Has) {
        if !has.sources {
            return;
        }
        let source = Source::Segment(number);
        for grants in Grants::all().filter(|grants| grants.family == family && grants.shared) {
            for tail in grants.tails() {
                self.grant(source, family, *tail, grants.name());
            }
        }
        if has.networks {
            let networks = self.names.of(Content::Networks(family));
            self.grant(source, family, Tail::Port, &networks);
        }
    }

    /// A grant admits its flow; DNS elsewhere it never does, which has left the chain of the clients' grants before.
    fn grant(&mut self, source: Source, family: Family, tail: Tail, set: &str) {
        let (mark, dns) = (self.settings.mark, self.names.of(Content::Dns));
        self.rule(|r| {
            r.family(family);
            if tail == Tail::Icmp {
                r.protocol(family.icmp());
            } else if let Source::Segment(_) = source {
                r.port_not_in(&dns);
            }
            r.granted(source, family, tail, set).mark(mark).act(Action::Accept);
        });
    }

    /// What nothing has admitted.
    fn end(&mut self, name: &str, observe: bool) {
        let mark = self.settings.mark;
        self.log(&format!("{}{name}", if observe { nflog::OBSERVE } else { nflog::DENY }));
        self.rule(|r| if observe { r.mark(mark).act(Action::Accept) } else { r.act(Action::Goto("refuse")) });
    }

    fn log(&mut self, prefix: &str) {
        let group = self.settings.nflog;
        self.rule(|r| r.limited().log(group, prefix));
    }

    /// What comes first in every hook: the emergency. Who sends there is told so; what comes from there is not answered.
    fn denied(&mut self) {
        for family in Family::BOTH {
            let deny = self.names.of(Content::Denied(family));
            self.rule(|r| r.family(family).source_in(family, &deny).act(Action::Drop));
            self.rule(|r| r.family(family).destination_in(family, &deny).act(Action::Goto("denied")));
        }
    }

    fn forward(&mut self) {
        self.denied();
        let mark = self.settings.mark;
        self.rule(|r| r.state(ESTABLISHED).marked(mark).act(Action::Accept));
        for family in Family::BOTH {
            self.rule(|r| r.state(RELATED).marked(mark).protocol(family.icmp()).act(Action::Accept));
        }
        for family in Family::BOTH {
            let segments = self.names.of(Content::Segments(family));
            self.rule(|r| r.family(family).judged_by(family, &segments));
        }
        let settings = self.settings;
        for interface in &settings.inside {
            self.rule(|r| r.enters(interface).act(Action::Goto("closed")));
        }
        // The other side of a connection that was cut does not begin it anew. Of TCP it is heard, so that who is here
        // answers, is refused, and knows.
        self.rule(|r| r.protocol_but(TCP).status(CUT).act(Action::Drop));
        // From elsewhere: others judge it, and its replies pass. TCP counts from its SYN: connection tracking takes
        // a connection that it has lost for one that begins with whoever speaks first.
        self.rule(|r| r.goes_on().act(Action::Accept));
        self.rule(|r| {
            r.state(NEW).mark(mark);
        });
    }

    /// A source in no segment that enters by `inside`. What it is admitted to may be answered, so it must not be able
    /// to name a source outside and have a client answer there.
    fn stranger(&mut self) {
        let mark = self.settings.mark;
        for family in Family::BOTH {
            let ungated = self.names.of(Content::Ungated(family));
            self.rule(|r| {
                r.family(family).source_in(family, &ungated).destination_in(family, &ungated).mark(mark);
                r.act(Action::Accept);
            });
        }
        self.rule(|r| r.state(INVALID).act(Action::Drop));
        for family in Family::BOTH {
            let resolvers = self.names.of(Content::Resolvers(family));
            for protocol in [UDP, TCP] {
                self.rule(|r| r.resolver(family, protocol, &resolvers).act(Action::Accept));
            }
        }
    }

    fn output(&mut self, here: [Option<&str>; 2]) {
        let Settings { mark, own_uid, .. } = *self.settings;
        self.rule(|r| r.leaves("lo").act(Action::Accept));
        self.denied();
        // A reply is not egress, and nobody here but root can forge one: what comes in has been judged there.
        self.rule(|r| r.is_reply().state(ESTABLISHED).act(Action::Accept));
        self.rule(|r| r.state(ESTABLISHED).marked(mark).act(Action::Accept));
        for family in Family::BOTH {
            self.rule(|r| r.state(RELATED).protocol(family.icmp()).act(Action::Accept));
        }
        // This process: upstreams and log sinks, wherever they are. The mark carries what it sends without a
        // socket (resets, the end of a connection).
        if let Some(user) = own_uid {
            self.rule(|r| r.user(user).mark(mark).act(Action::Accept));
        }
        // Neighbour and router discovery, multicast listeners (RFC 4861, RFC 3810).
        for (first, last) in [(130, 136), (143, 143)] {
            self.rule(|r| r.family(Family::Six).protocol(ICMP_SIX).icmp_type(first, last).act(Action::Accept));
        }
        // DHCP (RFC 2131, RFC 8415).
        for (family, source, destination) in [(Family::Four, 68, 67), (Family::Six, 546, 547)] {
            self.rule(|r| r.family(family).protocol(UDP).ports(source, destination).act(Action::Accept));
        }
        for (family, here) in Family::BOTH.into_iter().zip(here) {
            let chain = here.map_or_else(|| "closed".to_owned(), |name| format!("segment_{name}"));
            self.rule(|r| r.family(family).act(Action::Goto(&chain)));
        }
    }

    fn egress(&mut self, family: Family) {
        let mark = self.settings.mark;
        let ungated = self.names.of(Content::Ungated(family));
        self.rule(|r| r.family(family).destination_in(family, &ungated).mark(mark).act(Action::Accept));
        self.rule(|r| r.state(INVALID).act(Action::Drop));
        let resolvers = self.names.of(Content::Resolvers(family));
        for protocol in [UDP, TCP] {
            self.rule(|r| r.resolver(family, protocol, &resolvers).mark(mark).act(Action::Accept));
        }
        let dns = self.names.of(Content::Dns);
        self.rule(|r| r.port_in(&dns).act(Action::Return));
        let source = match self.settings.hook {
            Hook::Output => Source::Host(super::local::address(family)),
            Hook::Forward | Hook::Sets => Source::Packet,
        };
        for grants in Grants::all().filter(|grants| grants.family == family && !grants.shared) {
            for tail in grants.tails() {
                self.grant(source, family, *tail, grants.name());
            }
        }
    }
}
