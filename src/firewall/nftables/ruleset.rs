//! The chains of the table and their rules.
//!
//! ```text
//! forward  deny sets, replies, flows that were admitted; a source in a segment → egress; inside without segment → closed
//! output   the same for this machine's own flows, which stand under its loopback address
//! egress4  related ICMP, ungated destinations, our resolvers; → grants4; then the segment's verdict
//! grants4  DNS elsewhere → back, whatever is granted; grants of the client, of the segment, static rules → admit
//! deny_X   log, refuse                observe_X   log, admit                closed   log, refuse
//! ```
//! The packet mark and other bits of the connection mark belong to others: a segment's number stays in registers.

use super::element::Grants;
use super::expression::{Action, ESTABLISHED, Family, INVALID, RELATED, Rule, Source, TCP, Tail, UDP};
use super::sets::{self, Shape};
use super::wire::{APPEND, Batch, CREATE, Reader, Verb, number, text};
use super::{Hook, Settings};
use crate::net::{PrefixMap, SegmentId};
use crate::policy::{Layout, SegmentLayout};

/// Before the filters of others: what we refuse is refused before they see it, what we accept they still judge.
const PRIORITY: i32 = -10;

/// A chain as the kernel lists it: its name and, of a base chain, hook and priority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Present {
    pub(super) name: String,
    base: Option<(u32, u32)>,
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

/// The chain that judges what no grant of a segment admits.
pub(super) fn chain_of(segment: &SegmentLayout) -> String {
    format!("{}_{}", word(segment), segment.name)
}

const fn word(segment: &SegmentLayout) -> &'static str {
    if segment.observe { "observe" } else { "deny" }
}

/// Everything but the grants, in the order that the kernel needs: rules go before what they name, and come after it.
/// `old_sets` and `old_chains` are what is there now.
pub(super) fn write(
    batch: &mut Batch,
    settings: &Settings,
    layout: &Layout,
    (old_sets, old_chains): (&[sets::Present], &[Present]),
) {
    let table = settings.table.as_str();
    let shapes = sets::shapes(settings);
    let chains = chains(settings, layout);
    if !old_chains.is_empty() {
        batch.message(Verb::DeleteRule, 0, |a| a.text(1, table));
    }
    let kept = |shape: &Shape| old_sets.iter().any(|old| shape.name == old.name && shape.fits(old));
    let (kept, new): (Vec<_>, Vec<_>) = shapes.into_iter().partition(kept);
    sets::flush(batch, table, &kept);
    for old in old_chains {
        let stays = chains.iter().any(|(name, base)| *name == old.name && *base == old.base);
        if !stays {
            batch.message(Verb::DeleteChain, 0, |a| {
                a.text(1, table);
                a.text(3, &old.name);
            });
        }
    }
    for old in old_sets.iter().filter(|old| !old.is_anonymous() && kept.iter().all(|shape| shape.name != old.name)) {
        batch.message(Verb::DeleteSet, 0, |a| {
            a.text(1, table);
            a.text(2, &old.name);
        });
    }
    let resized = |shape: &&Shape| old_sets.iter().any(|old| old.name == shape.name && shape.resizes(old));
    for (number, shape) in (1..).zip(kept.iter().filter(resized).chain(&new)) {
        shape.create(batch, table, number);
    }
    for (name, base) in &chains {
        batch.message(Verb::NewChain, CREATE, |a| {
            a.text(1, table);
            a.text(3, name);
            if let Some((hook, priority)) = base {
                a.nest(4, |a| {
                    a.number(1, *hook);
                    a.number(2, *priority);
                });
                a.number(5, 1);
                a.text(7, "filter");
            }
        });
    }
    sets::fill(batch, settings, layout);
    if settings.has_chains() {
        Rules { batch, settings, layout }.write();
    }
}

/// Every chain by name, with the hook and the priority of the base chain.
fn chains(settings: &Settings, layout: &Layout) -> Vec<(String, Option<(u32, u32)>)> {
    let Some((name, hook)) = settings.hook.base() else { return Vec::new() };
    let mut chains = vec![(name.to_owned(), Some((hook, PRIORITY.cast_unsigned())))];
    chains.extend(["refuse", "closed"].map(|name| (name.to_owned(), None)));
    for family in Family::BOTH {
        chains.extend(["grants", "egress"].map(|name| (format!("{name}{}", family.digit()), None)));
    }
    chains.extend(layout.segments.iter().map(|segment| (chain_of(segment), None)));
    chains
}

struct Rules<'a> {
    batch: &'a mut Batch,
    settings: &'a Settings,
    layout: &'a Layout,
}

impl Rules<'_> {
    fn rule(&mut self, chain: &str, expressions: impl FnOnce(&mut Rule<'_, '_>)) {
        self.batch.message(Verb::NewRule, CREATE | APPEND, |a| {
            a.text(1, &self.settings.table);
            a.text(2, chain);
            a.nest(4, |a| expressions(&mut Rule(a)));
        });
    }

    fn write(&mut self) {
        let mark = self.settings.mark;
        self.rule("refuse", |r| r.protocol(TCP).reset());
        self.rule("refuse", |r| r.prohibit());
        self.log("closed", "outgate:deny:");
        self.rule("closed", |r| r.act(Action::Goto("refuse")));
        for segment in &self.layout.segments {
            let chain = chain_of(segment);
            self.log(&chain, &format!("outgate:{}:{}", word(segment), segment.name));
            self.rule(&chain, |r| {
                if segment.observe { r.mark(mark).act(Action::Accept) } else { r.act(Action::Goto("refuse")) }
            });
        }
        for family in Family::BOTH {
            if let Some(source) = self.source(family) {
                self.grants(family, source);
                self.egress(family, source);
            }
        }
        match self.settings.hook {
            Hook::Forward => self.forward(),
            Hook::Output => self.output(),
            Hook::Sets => {}
        }
    }

    /// Where the flows of the hook come from; `None` where this machine is in no segment.
    fn source(&self, family: Family) -> Option<Source> {
        if self.settings.hook != Hook::Output {
            return Some(Source::Packet);
        }
        let client = super::local::address(family);
        let mut map = PrefixMap::default();
        for segment in &self.layout.segments {
            for prefix in &segment.sources {
                map.insert(*prefix, segment.id);
            }
        }
        map.longest(client).map(|SegmentId(segment)| Source::Host { client, segment: *segment })
    }

    fn log(&mut self, chain: &str, prefix: &str) {
        let group = self.settings.nflog;
        self.rule(chain, |r| r.limited().log(group, prefix));
    }

    /// What comes first in every hook: the emergency, and flows that were let in before.
    fn head(&mut self, chain: &str) {
        let mark = self.settings.mark;
        for family in Family::BOTH {
            let deny = format!("deny{}", family.digit());
            self.rule(chain, |r| r.family(family).source_in(family, &deny).act(Action::Drop));
            self.rule(chain, |r| r.family(family).destination_in(family, &deny).act(Action::Drop));
        }
        // A reply is not egress: whoever let the flow in has judged it, this table or, for connections from
        // outside, another one.
        self.rule(chain, |r| r.is_reply().state(ESTABLISHED).act(Action::Accept));
        self.rule(chain, |r| r.state(ESTABLISHED).marked(mark).act(Action::Accept));
    }

    fn forward(&mut self) {
        self.head("forward");
        for family in Family::BOTH {
            let egress = format!("egress{}", family.digit());
            self.rule("forward", |r| r.family(family).segment(Source::Packet, family).act(Action::Goto(&egress)));
        }
        let settings = self.settings;
        for interface in &settings.inside {
            self.rule("forward", |r| r.enters(interface).act(Action::Goto("closed")));
        }
    }

    fn output(&mut self) {
        let Settings { mark, own_user, .. } = *self.settings;
        self.rule("output", |r| r.leaves("lo").act(Action::Accept));
        self.head("output");
        // This process: upstreams and log sinks, wherever they are. The mark carries what it sends without a
        // socket (resets, the end of a connection).
        if let Some(user) = own_user {
            self.rule("output", |r| r.user(user).mark(mark).act(Action::Accept));
        }
        // Neighbour and router discovery, multicast listeners (RFC 4861, RFC 3810).
        for (first, last) in [(130, 136), (143, 143)] {
            self.rule("output", |r| r.protocol(Family::Six.icmp()).icmp_type(first, last).act(Action::Accept));
        }
        for (source, destination) in [(68, 67), (546, 547)] {
            self.rule("output", |r| r.protocol(UDP).ports(source, destination).act(Action::Accept));
        }
        for family in Family::BOTH {
            if self.source(family).is_some() {
                let egress = format!("egress{}", family.digit());
                self.rule("output", |r| r.family(family).act(Action::Goto(&egress)));
            }
        }
        self.rule("output", |r| r.act(Action::Goto("closed")));
    }

    fn egress(&mut self, family: Family, source: Source) {
        let digit = family.digit();
        let egress = format!("egress{digit}");
        self.rule(&egress, |r| r.state(RELATED).protocol(family.icmp()).act(Action::Accept));
        self.rule(&egress, |r| r.state(INVALID).act(Action::Drop));
        self.rule(&egress, |r| r.destination_in(family, &format!("ungated{digit}")).act(Action::Accept));
        for protocol in [UDP, TCP] {
            let resolver = format!("resolver{digit}");
            self.rule(&egress, |r| {
                r.destination_in(family, &resolver).protocol(protocol).destination_port(53).act(Action::Accept);
            });
        }
        self.rule(&egress, |r| r.act(Action::Jump(&format!("grants{digit}"))));
        self.rule(&egress, |r| r.judge(source, family));
        self.rule(&egress, |r| r.act(Action::Goto("closed")));
    }

    fn grants(&mut self, family: Family, source: Source) {
        let mark = self.settings.mark;
        let chain = format!("grants{}", family.digit());
        self.rule(&chain, |r| r.port_in("dns").act(Action::Return));
        for grants in Grants::all().filter(|grants| grants.family == family) {
            for tail in grants.tails() {
                self.rule(&chain, |r| {
                    if *tail == Tail::Icmp {
                        r.protocol(family.icmp());
                    }
                    if grants.shared {
                        r.segment_granted(source, family, *tail, grants.name());
                    } else {
                        r.client_granted(source, family, *tail, grants.name());
                    }
                    r.mark(mark).act(Action::Accept);
                });
            }
        }
        let network = format!("network{}", family.digit());
        self.rule(&chain, |r| {
            r.segment_granted(source, family, Tail::Port, &network).mark(mark).act(Action::Accept);
        });
    }
}
