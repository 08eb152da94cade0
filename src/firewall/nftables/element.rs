//! Grants as set elements: an [`Element`] ↔ the set that holds it and the bytes of its key.
//!
//! A key is a row of registers: every part begins at a multiple of four bytes.

use std::net::IpAddr;
use std::time::Duration;

use smallvec::SmallVec;

use super::expression::{Family, TCP, Tail, UDP};
use super::wire::{Attributes, Batch, CREATE, Reader, Verb, wide};
use crate::net::{Element, Scope, SegmentId, Service};
use crate::time::Tick;

/// Bytes of elements in one message: an attribute holds 65,535 at most, one element far less than 5,000.
const MESSAGE: usize = 60_000;

/// What the kernel's own arithmetic may take off a timeout: it counts in jiffies (10 ms at most), cuts off the
/// fraction, and starts from the last tick. Two jiffies more make `kernel expiry >= until`.
const SLACK: Duration = Duration::from_millis(20);

/// The bytes of a key; the longest is two IPv6 addresses, a protocol and a port.
pub(super) type Key = SmallVec<[u8; 40]>;

/// One of the eight sets of grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Grants {
    pub(super) family: Family,
    /// For every source of a segment, not for one client.
    pub(super) shared: bool,
    /// Every protocol and port.
    pub(super) any: bool,
}

impl Grants {
    /// All of them.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        Family::BOTH.into_iter().flat_map(|family| {
            [(false, false), (false, true), (true, false), (true, true)].map(|(shared, any)| Self {
                family,
                shared,
                any,
            })
        })
    }

    /// `host4`, `hostany4`, `shared4`, `sharedany4` and the same with 6.
    pub(super) const fn name(self) -> &'static str {
        match (self.family, self.shared, self.any) {
            (Family::Four, false, false) => "host4",
            (Family::Four, false, true) => "hostany4",
            (Family::Four, true, false) => "shared4",
            (Family::Four, true, true) => "sharedany4",
            (Family::Six, false, false) => "host6",
            (Family::Six, false, true) => "hostany6",
            (Family::Six, true, false) => "shared6",
            (Family::Six, true, true) => "sharedany6",
        }
    }

    /// The set and the key of a grant; `None` where client and destination are of different families, which no
    /// packet can be.
    pub(super) fn key(element: &Element) -> Option<(Self, Key)> {
        let family = Family::of(element.to);
        let mut key = Key::new();
        let shared = match element.from {
            Scope::Client(client) if Family::of(client) != family => return None,
            Scope::Client(client) => {
                push(&mut key, client);
                false
            }
            Scope::Segment(SegmentId(number)) => {
                key.extend_from_slice(&number.to_ne_bytes());
                true
            }
        };
        push(&mut key, element.to);
        let (protocol, port) = match element.service {
            Service::Tcp(port) => (TCP, port),
            Service::Udp(port) => (UDP, port),
            Service::Icmp => (family.icmp(), 0),
            Service::Any => return Some((Self { family, shared, any: true }, key)),
        };
        let [high, low] = port.to_be_bytes();
        key.extend_from_slice(&[protocol, 0, 0, 0, high, low, 0, 0]);
        Some((Self { family, shared, any: false }, key))
    }

    /// The grant of a key; `None` where no grant has this key, so that it is not ours.
    pub(super) fn element(self, key: &[u8]) -> Option<Element> {
        let (from, rest) = if self.shared {
            let (number, rest) = key.split_first_chunk()?;
            (Scope::Segment(SegmentId(u32::from_ne_bytes(*number))), rest)
        } else {
            let (client, rest) = pull(self.family, key)?;
            (Scope::Client(client), rest)
        };
        let (to, rest) = pull(self.family, rest)?;
        let service = match *rest {
            [] if self.any => Service::Any,
            [protocol, 0, 0, 0, high, low, 0, 0] if !self.any => match (protocol, u16::from_be_bytes([high, low])) {
                (TCP, port) => Service::Tcp(port),
                (UDP, port) => Service::Udp(port),
                (icmp, 0) if icmp == self.family.icmp() => Service::Icmp,
                _ => return None,
            },
            _ => return None,
        };
        Some(Element { from, to, service })
    }

    /// What the rules read into the key behind the two addresses.
    pub(super) fn tails(self) -> &'static [Tail] {
        if self.any { &[Tail::Any] } else { &[Tail::Port, Tail::Icmp] }
    }
}

fn push(key: &mut Key, address: IpAddr) {
    match address {
        IpAddr::V4(address) => key.extend_from_slice(&address.octets()),
        IpAddr::V6(address) => key.extend_from_slice(&address.octets()),
    }
}

fn pull(family: Family, key: &[u8]) -> Option<(IpAddr, &[u8])> {
    match family {
        Family::Four => key.split_first_chunk::<4>().map(|(address, rest)| (IpAddr::from(*address), rest)),
        Family::Six => key.split_first_chunk::<16>().map(|(address, rest)| (IpAddr::from(*address), rest)),
    }
}

/// The timeout, in milliseconds, that keeps an element live until `until`; `None` where that is over.
pub(super) fn timeout(until: Tick, now: Tick) -> Option<u64> {
    let left = until.since(now);
    let rounded_up = left.saturating_add(SLACK + Duration::from_micros(999)).as_millis();
    // The kernel refuses what does not fit into its jiffies; a century does.
    const CENTURY: u64 = 100 * 365 * 86_400_000;
    (!left.is_zero()).then(|| u64::try_from(rounded_up).unwrap_or(CENTURY).min(CENTURY))
}

/// One entry of a set or map, to be written.
pub(super) struct Entry<'a> {
    pub(super) key: &'a [u8],
    /// The last key of a range, in a set of concatenated ranges.
    pub(super) last: Option<&'a [u8]>,
    /// A range of a plain interval set ends before this key (NFT_SET_ELEM_INTERVAL_END).
    pub(super) closes: bool,
    pub(super) value: Value<'a>,
}

/// What an entry holds besides its key.
#[derive(Clone, Copy)]
pub(super) enum Value<'a> {
    /// Nothing.
    None,
    /// Its life in milliseconds.
    Timeout(u64),
    /// A life in milliseconds of which only the second number is left.
    Partly(u64, u64),
    /// A number.
    Number(u32),
    /// The chain to go to.
    Chain(&'a str),
}

impl<'a> Entry<'a> {
    /// An entry that is only a key and a value.
    pub(super) const fn new(key: &'a [u8], value: Value<'a>) -> Self {
        Self { key, last: None, closes: false, value }
    }

    fn write(&self, a: &mut Attributes<'_>) {
        a.nest(1, |a| {
            a.nest(1, |a| a.bytes(1, self.key));
            if let Some(last) = self.last {
                a.nest(10, |a| a.bytes(1, last));
            }
            if self.closes {
                a.number(3, 1);
            }
            match self.value {
                Value::None => {}
                // Without the expiration, an element that is added again with the timeout it had keeps its old end
                // although the kernel acknowledges (Linux 6.12 and later).
                Value::Timeout(milliseconds) => life(a, milliseconds, milliseconds),
                Value::Partly(milliseconds, left) => life(a, milliseconds, left),
                Value::Number(number) => a.nest(2, |a| a.bytes(1, &number.to_ne_bytes())),
                Value::Chain(chain) => a.nest(2, |a| super::expression::Action::Goto(chain).write(a)),
            }
        });
    }
}

fn life(a: &mut Attributes<'_>, milliseconds: u64, left: u64) {
    a.wide(4, milliseconds);
    a.wide(5, left);
}

/// Adds or deletes entries of one set, in as many messages as they need.
pub(super) fn write<'a>(
    batch: &mut Batch,
    verb: Verb,
    (table, set): (&str, &str),
    entries: impl IntoIterator<Item = Entry<'a>>,
) {
    let flags = if verb == Verb::NewElements { CREATE } else { 0 };
    let mut entries = entries.into_iter().peekable();
    while entries.peek().is_some() {
        batch.message(verb, flags, |a| {
            a.text(1, table);
            a.text(2, set);
            a.nest(3, |a| {
                let start = a.len();
                while a.len() - start < MESSAGE {
                    match entries.next() {
                        Some(entry) => entry.write(a),
                        None => break,
                    }
                }
            });
        });
    }
}

/// Calls `each` with key and remaining milliseconds of every live element that a message of a dump lists;
/// `None` for an element that never ends.
pub(super) fn read(attributes: Reader<'_>, mut each: impl FnMut(&[u8], Option<u64>)) {
    let lists = attributes.filter(|(kind, _)| *kind == 3).map(|(_, list)| Reader(list));
    for (_, element) in lists.flatten() {
        let (mut key, mut left) = (None, None);
        for (kind, value) in Reader(element) {
            match kind {
                1 => key = Reader(value).find(|(kind, _)| *kind == 1).map(|(_, key)| key),
                5 => left = wide(value),
                _ => {}
            }
        }
        if let Some(key) = key {
            each(key, left);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::super::wire::Messages;
    use super::*;

    fn any_element() -> impl Strategy<Value = Element> {
        let service = prop_oneof![
            any::<u16>().prop_map(Service::Tcp),
            any::<u16>().prop_map(Service::Udp),
            Just(Service::Icmp),
            Just(Service::Any)
        ];
        (any::<[u8; 16]>(), any::<[u8; 16]>(), any::<u32>(), any::<bool>(), any::<bool>(), service).prop_map(
            |(client, to, number, four, shared, service)| {
                let address = |bytes: [u8; 16]| {
                    if four {
                        IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]))
                    } else {
                        IpAddr::V6(Ipv6Addr::from(bytes))
                    }
                };
                let from = if shared { Scope::Segment(SegmentId(number)) } else { Scope::Client(address(client)) };
                Element { from, to: address(to), service }
            },
        )
    }

    proptest! {
        #[test]
        fn a_grant_survives_its_key(element in any_element()) {
            let (set, key) = Grants::key(&element).unwrap();
            prop_assert_eq!(set.element(&key), Some(element));
        }

        #[test]
        fn foreign_keys_are_no_grants_or_round_trip(which in 0usize..8, key in prop::collection::vec(any::<u8>(), 0..48)) {
            let set = Grants::all().nth(which).unwrap();
            if let Some(element) = set.element(&key) {
                let (back, bytes) = Grants::key(&element).unwrap();
                prop_assert_eq!((back, bytes.as_slice()), (set, key.as_slice()));
            }
        }

        #[test]
        fn an_element_outlives_what_was_asked(now in 0u64..1 << 50, left in 1u64..1 << 40) {
            let milliseconds = timeout(Tick(now + left), Tick(now)).unwrap();
            // Seen from a kernel of 100 ticks a second that began to count a tick ago.
            let kernel = (milliseconds / 10 * 10).saturating_sub(10) * 1000;
            prop_assert!(kernel >= left, "{kernel} < {left}");
            prop_assert!(kernel <= left + 20_000);
        }

        #[test]
        fn many_elements_are_cut_into_messages(count in 0usize..4000) {
            let keys: Vec<_> = (0..count).map(|n| { let mut key = [0; 40]; key[..8].copy_from_slice(&n.to_be_bytes()); key }).collect();
            let mut batch = Batch::new(1);
            write(&mut batch, Verb::NewElements, ("t", "host6"), keys.iter().map(|key| Entry::new(key, Value::Timeout(9))));
            let sealed = batch.finish();
            let mut read_back = Vec::new();
            for message in Messages(&sealed.bytes) {
                read(message.attributes(), |key, left| read_back.push((key.to_vec(), left)));
            }
            prop_assert_eq!(read_back.len(), count);
            prop_assert!(read_back.iter().zip(&keys).all(|((key, left), wanted)| key == wanted && *left == Some(9)));
        }

        #[test]
        fn reading_foreign_elements_ends(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            read(Reader(&bytes), |_, _| ());
        }
    }

    #[test]
    fn what_is_over_has_no_timeout() {
        assert_eq!(timeout(Tick(5), Tick(5)), None);
        assert_eq!(timeout(Tick(5), Tick(6)), None);
        assert_eq!(timeout(Tick(1_000_000), Tick(0)), Some(1020));
        assert_eq!(timeout(Tick(1_000_001), Tick(0)), Some(1021));
    }

    #[test]
    fn families_do_not_mix() {
        let from = Scope::Client("192.0.2.1".parse().unwrap());
        assert_eq!(Grants::key(&Element { from, to: "2001:db8::1".parse().unwrap(), service: Service::Icmp }), None);
    }
}
