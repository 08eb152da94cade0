//! The sets and maps of the table: their shapes, and what the layout fills into those that are not grants.

use std::collections::HashMap;
use std::net::IpAddr;

use super::element::{Entry, Grants, Value, write};
use super::expression::{Family, TCP, UDP};
use super::ranges::{Range, flatten, union};
use super::wire::{Attributes, Batch, CREATE, Reader, Verb, number, text};
use super::{Hook, Settings};
use crate::net::Prefix;
use crate::policy::Layout;

/// Flags of a set.
const ANONYMOUS: u32 = 1;
const INTERVAL: u32 = 4;
const MAP: u32 = 8;
const TIMEOUT: u32 = 0x10;
const CONCAT: u32 = 0x80;

/// Expired elements count against the size until they are collected, so that is done often.
const COLLECT_MILLISECONDS: u32 = 5000;

/// Where DNS goes: DNS, DNS over TLS and over QUIC (RFC 7858, RFC 9250), and the port that QUIC had in drafts.
const DNS_PORTS: [u16; 3] = [53, 853, 8853];

/// One part of a key.
#[derive(Clone, Copy, Debug)]
enum Part {
    Address(Family),
    Protocol,
    Port,
    /// nft prints a segment's number as a mark.
    Segment,
}

impl Part {
    /// nft's number of the type (by which it prints it), and its length in bytes.
    const fn kind(self) -> (u32, u32) {
        match self {
            Self::Address(Family::Four) => (7, 4),
            Self::Address(Family::Six) => (8, 16),
            Self::Protocol => (12, 1),
            Self::Port => (13, 2),
            Self::Segment => (19, 4),
        }
    }
}

/// What a map gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gives {
    Nothing,
    Segment,
    Verdict,
}

/// The shape of a set.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) name: String,
    key: Vec<Part>,
    flags: u32,
    gives: Gives,
    size: Option<u32>,
}

/// What the kernel says of a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Present {
    pub(super) name: String,
    flags: u32,
    key: (u32, u32),
    data: Option<u32>,
    size: Option<u32>,
    count: Option<u32>,
}

impl Present {
    /// Reads one NEWSET of a dump.
    pub(super) fn read(attributes: Reader<'_>) -> Option<Self> {
        let (mut name, mut flags, mut kind, mut length) = (None, 0, 0, 0);
        let (mut data, mut size, mut count) = (None, None, None);
        for (attribute, value) in attributes {
            match attribute {
                2 => name = text(value).map(str::to_owned),
                3 => flags = number(value)?,
                4 => kind = number(value)?,
                5 => length = number(value)?,
                6 => data = number(value),
                9 => size = Reader(value).find(|(kind, _)| *kind == 1).and_then(|(_, size)| number(size)),
                // NFTA_SET_COUNT, Linux 6.17.
                20 => count = number(value),
                _ => {}
            }
        }
        Some(Self { name: name?, flags, key: (kind, length), data, size, count })
    }

    /// How many elements it has and may have, those that are over and not collected yet among them; where the
    /// kernel tells.
    pub(super) fn load(&self) -> Option<(u32, u32)> {
        self.count.zip(self.size)
    }

    /// True where it belongs to a single rule and goes with it.
    pub(super) const fn is_anonymous(&self) -> bool {
        self.flags & ANONYMOUS != 0
    }
}

impl Shape {
    fn key(&self) -> (u32, u32) {
        let single = self.key.len() == 1;
        self.key.iter().fold((0, 0), |(kinds, length), part| {
            let (kind, bytes) = part.kind();
            (kinds << 6 | kind, length + if single { bytes } else { bytes.next_multiple_of(4) })
        })
    }

    const fn data(&self) -> Option<u32> {
        match self.gives {
            Gives::Nothing => None,
            Gives::Segment => Some(Part::Segment.kind().0),
            // NFT_DATA_VERDICT
            Gives::Verdict => Some(0xffff_ff00),
        }
    }

    /// True where the elements of `present` can stay.
    pub(super) fn fits(&self, present: &Present) -> bool {
        self.name == present.name && (self.flags, self.key(), self.data()) == (present.flags, present.key, present.data)
    }

    /// True where `present` has another size; to declare it again changes that.
    pub(super) fn resizes(&self, present: &Present) -> bool {
        self.name == present.name && self.size.is_some() && self.size != present.size
    }

    /// True where the layout fills it; the others hold what came with time.
    const fn is_static(&self) -> bool {
        self.flags & TIMEOUT == 0
    }

    /// NEWSET; `number` is its number within the batch.
    pub(super) fn create(&self, batch: &mut Batch, table: &str, number: u32) {
        let (kind, length) = self.key();
        batch.message(Verb::NewSet, CREATE, |a| {
            a.text(1, table);
            a.text(2, &self.name);
            a.number(3, self.flags);
            a.number(4, kind);
            a.number(5, length);
            if let Some(data) = self.data() {
                a.number(6, data);
                a.number(7, 4);
            }
            a.nest(9, |a| {
                if let Some(size) = self.size {
                    a.number(1, size);
                }
                if self.flags & CONCAT != 0 {
                    a.nest(2, |a| {
                        for part in &self.key {
                            a.nest(1, |a: &mut Attributes<'_>| a.number(1, part.kind().1));
                        }
                    });
                }
            });
            a.number(10, number);
            if self.gives == Gives::Segment {
                // NFTNL_UDATA_SET_DATABYTEORDER, four bytes: in host order (1), so that nft prints the number as it is.
                a.bytes(13, &[[1, 4].as_slice(), &1_u32.to_ne_bytes()].concat());
            }
            if !self.is_static() {
                a.number(12, COLLECT_MILLISECONDS);
            }
        });
    }
}

/// The shape of every set of the table.
pub(super) fn shapes(settings: &Settings, names: &Names) -> Vec<Shape> {
    let mut shapes = Vec::new();
    for grants in Grants::all() {
        let address = Part::Address(grants.family);
        let mut key = vec![if grants.shared { Part::Segment } else { address }, address];
        if !grants.any {
            key.extend([Part::Protocol, Part::Port]);
        }
        let size = Some(settings.size);
        shapes.push(Shape { name: grants.name().into(), key, flags: TIMEOUT, gives: Gives::Nothing, size });
    }
    for content in Content::all() {
        let (key, flags, gives) = match content {
            Content::Denied(family) | Content::Ungated(family) => {
                (vec![Part::Address(family)], INTERVAL, Gives::Nothing)
            }
            Content::Segments(family) => {
                let gives = if settings.hook == Hook::Sets { Gives::Segment } else { Gives::Verdict };
                (vec![Part::Address(family)], INTERVAL | MAP, gives)
            }
            Content::Networks(family) => {
                let key = vec![Part::Segment, Part::Address(family), Part::Protocol, Part::Port];
                (key, INTERVAL | CONCAT, Gives::Nothing)
            }
            Content::Resolvers(family) => (vec![Part::Address(family)], 0, Gives::Nothing),
            Content::Dns => (vec![Part::Protocol, Part::Port], 0, Gives::Nothing),
        };
        shapes.push(Shape { name: names.of(content), key, flags, gives, size: None });
    }
    shapes
}

/// What a set of the layout holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Content {
    Denied(Family),
    Segments(Family),
    Networks(Family),
    Ungated(Family),
    Resolvers(Family),
    Dns,
}

impl Content {
    /// All of them.
    fn all() -> impl Iterator<Item = Self> {
        let families = Family::BOTH.into_iter();
        families
            .flat_map(|family| {
                [
                    Self::Denied(family),
                    Self::Segments(family),
                    Self::Networks(family),
                    Self::Ungated(family),
                    Self::Resolvers(family),
                ]
            })
            .chain([Self::Dns])
    }

    /// All, or those that differ from the layout `before`.
    pub(super) fn stale(layout: &Layout, before: Option<&Layout>) -> Vec<Self> {
        Self::all().filter(|content| before.is_none_or(|before| !content.is_same(layout, before))).collect()
    }

    /// The name of the set that holds it, the first of those that it has in turn.
    fn set(self) -> String {
        match self {
            Self::Denied(family) => format!("deny{}", family.digit()),
            Self::Segments(family) => format!("segment{}", family.digit()),
            Self::Networks(family) => format!("network{}", family.digit()),
            Self::Ungated(family) => format!("ungated{}", family.digit()),
            Self::Resolvers(family) => format!("resolver{}", family.digit()),
            Self::Dns => "dns".into(),
        }
    }

    /// True where the set that holds it under one layout holds it under the other.
    fn is_same(self, one: &Layout, other: &Layout) -> bool {
        let denied = one.denied == other.denied;
        let (one, other) = (one.segments.iter(), other.segments.iter());
        match self {
            Self::Denied(_) => denied,
            Self::Segments(_) => one.map(|s| (&s.name, &s.sources)).eq(other.map(|s| (&s.name, &s.sources))),
            Self::Networks(_) => one.map(|s| (s.id, &s.networks)).eq(other.map(|s| (s.id, &s.networks))),
            Self::Ungated(_) | Self::Resolvers(_) | Self::Dns => true,
        }
    }
}

/// Under which names the sets stand that hold a layout: where another set takes the place of one, it needs another name.
/// Those that are not here have the first one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Names(HashMap<Content, String>);

impl Names {
    /// The name in force.
    pub(super) fn of(&self, content: Content) -> String {
        self.0.get(&content).cloned().unwrap_or_else(|| content.set())
    }

    /// Another name, none of those that are `taken`. There are two sets of a kind at most, the old one and the new one;
    /// a third name is for what a crash left behind.
    pub(super) fn renew(&mut self, content: Content, taken: impl Fn(&str) -> bool) {
        let first = content.set();
        let names = [first.clone(), format!("{first}-2"), format!("{first}-3")];
        let name = names.into_iter().find(|name| !taken(name)).unwrap_or(first);
        self.0.insert(content, name);
    }
}

/// The sets that a layout fills, as they are to be written.
pub(super) struct Fill<'a> {
    settings: &'a Settings,
    layout: &'a Layout,
    stale: Vec<Content>,
}

impl<'a> Fill<'a> {
    /// Of those that are `stale`.
    pub(super) const fn new(settings: &'a Settings, layout: &'a Layout, stale: Vec<Content>) -> Self {
        Self { settings, layout, stale }
    }

    /// Empties those of `kept`.
    pub(super) fn flush(&self, batch: &mut Batch, kept: &[Shape], names: &Names) {
        let stale = self.stale.iter().map(|content| names.of(*content));
        for set in stale.filter(|set| kept.iter().any(|shape| shape.name == *set)) {
            batch.message(Verb::DeleteElements, 0, |a| {
                a.text(1, &self.settings.table);
                a.text(2, &set);
            });
        }
    }

    /// Fills them.
    pub(super) fn write(&self, batch: &mut Batch, names: &Names) {
        for content in &self.stale {
            let set = names.of(*content);
            let set = (self.settings.table.as_str(), set.as_str());
            match *content {
                Content::Segments(family) => self.segments(batch, set, family),
                Content::Networks(family) => self.networks(batch, set, family),
                Content::Denied(family) => prefixes(batch, set, family, &self.layout.denied),
                Content::Ungated(family) => prefixes(batch, set, family, &self.settings.ungated),
                Content::Resolvers(family) => {
                    let addresses = self.settings.resolvers.iter().filter(|address| Family::of(**address) == family);
                    let keys: Vec<_> = addresses.map(|address| bytes(family, to_number(*address))).collect();
                    write(batch, Verb::NewElements, set, keys.iter().map(|key| Entry::new(key, Value::None)));
                }
                Content::Dns => {
                    let ports = DNS_PORTS.iter().flat_map(|port| [service(TCP, *port), service(UDP, *port)]);
                    let keys: Vec<_> = ports.collect();
                    write(batch, Verb::NewElements, set, keys.iter().map(|key| Entry::new(key, Value::None)));
                }
            }
        }
    }

    fn segments(&self, batch: &mut Batch, set: (&str, &str), family: Family) {
        let sources = (0..).zip(&self.layout.segments).flat_map(|(index, segment)| {
            segment.sources.iter().filter(move |prefix| of(**prefix) == family).map(move |prefix| (*prefix, index))
        });
        let flat = flatten(sources.collect(), |open| open.last().map_or(0_usize, |(_, index)| *index));
        let chains: Vec<_> = self.layout.segments.iter().map(super::ruleset::chain_of).collect();
        let value = |index: usize| match self.settings.hook {
            Hook::Sets => self.layout.segments.get(index).map_or(Value::None, |segment| Value::Number(segment.id.0)),
            Hook::Forward | Hook::Output => chains.get(index).map_or(Value::None, |chain| Value::Chain(chain)),
        };
        intervals(batch, set, family, flat.iter().map(|(range, index)| (*range, value(*index))));
    }

    fn networks(&self, batch: &mut Batch, set: (&str, &str), family: Family) {
        let segments = self.layout.segments.iter();
        let keys: Vec<_> =
            segments.flat_map(|segment| super::networks::boxes(segment.id, family, &segment.networks)).collect();
        let entries =
            keys.iter().map(|(first, last)| Entry { key: first, last: Some(last), closes: false, value: Value::None });
        write(batch, Verb::NewElements, set, entries);
    }
}

pub(super) const fn of(prefix: Prefix) -> Family {
    match prefix {
        Prefix::V4(_) => Family::Four,
        Prefix::V6(_) => Family::Six,
    }
}

const fn to_number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits() as u128,
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// An address in network order.
pub(super) fn bytes(family: Family, number: u128) -> Vec<u8> {
    let all = number.to_be_bytes();
    match family {
        Family::Four => all.last_chunk::<4>().map_or_else(Vec::new, |four| four.to_vec()),
        Family::Six => all.to_vec(),
    }
}

pub(super) fn service(protocol: u8, port: u16) -> [u8; 8] {
    let [high, low] = port.to_be_bytes();
    [protocol, 0, 0, 0, high, low, 0, 0]
}

/// The prefixes of one family, whether they nest or not.
fn prefixes(batch: &mut Batch, set: (&str, &str), family: Family, all: &[Prefix]) {
    let ranges = all.iter().filter(|prefix| of(**prefix) == family).map(|prefix| Range::of(*prefix));
    intervals(batch, set, family, union(ranges.collect()).into_iter().map(|range| (range, Value::None)));
}

/// Ranges as a plain interval set holds them: an entry where one begins, another behind its end.
fn intervals<'a>(
    batch: &mut Batch,
    set: (&str, &str),
    family: Family,
    ranges: impl Iterator<Item = (Range, Value<'a>)>,
) {
    let highest = if family == Family::Four { u128::from(u32::MAX) } else { u128::MAX };
    let keys: Vec<_> = ranges
        .map(|(range, value)| {
            let end = (range.last < highest).then(|| bytes(family, range.last + 1));
            (bytes(family, range.first), end, value)
        })
        .collect();
    let entries = keys.iter().flat_map(|(first, end, value)| {
        let open = Entry::new(first, *value);
        let close = end.as_ref().map(|end| Entry { key: end, last: None, closes: true, value: Value::None });
        std::iter::once(open).chain(close)
    });
    write(batch, Verb::NewElements, set, entries);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn reading_foreign_sets_ends(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let _ = Present::read(Reader(&bytes));
        }
    }
}
