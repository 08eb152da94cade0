//! Text of `conntrack -E -o timestamp,id` (events) and `conntrack -L` (a list).
//!
//! The first addresses of a line are those of the original direction: before any translation. An event without a time is
//! [not timed](Seen::timed): that of its file is not its own.

use std::collections::HashMap;
use std::net::IpAddr;

use super::{Direction, Line, Seen, seconds};
use crate::flow::Carrier;
use crate::time::Wall;

/// Connections that are remembered from their beginning to their end; those beyond have none that is known.
const OPEN: usize = 1 << 20;

/// The connections whose end is still to come.
#[derive(Debug)]
pub(super) struct Events {
    taken: Wall,
    open: HashMap<Key, Seen>,
}

/// What a connection is known by: its ends, and its id where it is told. The kernel gives an id to others later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    id: Option<u32>,
    ends: (IpAddr, Option<u16>, IpAddr, Carrier),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    New,
    Update,
    Destroy,
    Listed,
}

impl Events {
    pub(super) fn new(taken: Wall) -> Self {
        Self { taken, open: HashMap::new() }
    }

    pub(super) fn line(&mut self, line: &str) -> Line {
        // What the program says of itself.
        if line.starts_with("conntrack v") {
            return Line::Nothing;
        }
        let Some((event, key, mut seen)) = self.read(line) else { return Line::Damaged };
        match event {
            Event::New => {
                if self.open.len() < OPEN {
                    self.open.insert(key, Seen { started: seen.timed, ..seen });
                }
                Line::Nothing
            }
            Event::Update => Line::Nothing,
            Event::Listed => Line::Flow(seen),
            Event::Destroy => {
                if let Some(begun) = self.open.remove(&key) {
                    (seen.at, seen.started, seen.timed) = (begun.at, begun.started, begun.timed && seen.timed);
                }
                Line::Flow(seen)
            }
        }
    }

    pub(super) fn rest(&mut self) -> Vec<Seen> {
        self.open.drain().map(|(_, seen)| Seen { end: None, ..seen }).collect()
    }

    fn read(&self, line: &str) -> Option<(Event, Key, Seen)> {
        let mut event = Event::Listed;
        let mut at = None;
        let mut protocol = None;
        let mut values = Values::default();
        let mut before = "";
        for word in line.split_ascii_whitespace() {
            match word.split_once('=') {
                Some((name, value)) => values.set(name, value)?,
                None => match word.strip_prefix('[').map(|word| word.strip_suffix(']').unwrap_or(word)) {
                    Some("NEW") => event = Event::New,
                    Some("UPDATE") => event = Event::Update,
                    Some("DESTROY") => event = Event::Destroy,
                    Some(stamp) if at.is_none() && stamp.starts_with(|first: char| first.is_ascii_digit()) => {
                        at = Some(seconds(stamp)?);
                    }
                    Some(_) => {}
                    // `tcp 6`, behind `ipv4 2` in the long form.
                    None if values.client.is_none()
                        && !matches!(before, "ipv4" | "ipv6" | "")
                        && protocol.is_none() =>
                    {
                        protocol = word.parse::<u8>().ok();
                    }
                    None => {}
                },
            }
            before = word;
        }
        let carrier = Carrier::of(protocol?, values.to.unwrap_or(0));
        let (client, address) = (values.client?, values.address?);
        let port = values.from.filter(|_| matches!(carrier, Carrier::Tcp(_) | Carrier::Udp(_)));
        let key = Key { id: values.id, ends: (client, port, address, carrier) };
        let timed = at.is_some() || event == Event::Listed;
        let now = at.unwrap_or(self.taken);
        let lived = values.lived.filter(|_| timed).map(|lived| lived.saturating_mul(1_000_000));
        let ended = event == Event::Destroy && timed;
        Some((
            event,
            key,
            Seen {
                at: Wall(now.0.saturating_sub(lived.unwrap_or(0))),
                end: ended.then_some(now),
                client,
                port,
                address,
                carrier,
                denied: false,
                started: lived.is_some(),
                timed,
                bytes_out: values.bytes.0,
                bytes_in: values.bytes.1,
                packets_out: values.packets.0,
                packets_in: values.packets.1,
                direction: Direction::Forth,
                tap: 0,
            },
        ))
    }
}

/// What stands in a line as `name=value`; of what stands there twice, the first is the original direction.
#[derive(Default)]
struct Values {
    client: Option<IpAddr>,
    address: Option<IpAddr>,
    from: Option<u16>,
    to: Option<u16>,
    packets: (Option<u64>, Option<u64>),
    bytes: (Option<u64>, Option<u64>),
    lived: Option<u64>,
    id: Option<u32>,
    icmp: bool,
}

impl Values {
    fn set(&mut self, name: &str, value: &str) -> Option<()> {
        let twice = |pair: &mut (Option<u64>, Option<u64>)| {
            let number = value.parse().ok()?;
            let half = if pair.0.is_none() { &mut pair.0 } else { &mut pair.1 };
            *half = Some(number);
            Some(())
        };
        match name {
            "src" if self.client.is_none() => self.client = Some(value.parse().ok()?),
            "dst" if self.address.is_none() => self.address = Some(value.parse().ok()?),
            "sport" if self.from.is_none() => self.from = Some(value.parse().ok()?),
            "dport" if self.to.is_none() => self.to = Some(value.parse().ok()?),
            "packets" => twice(&mut self.packets)?,
            "bytes" => twice(&mut self.bytes)?,
            "delta-time" => self.lived = Some(value.parse().ok()?),
            "code" => self.icmp = true,
            // Of ICMP, the echo's own id stands behind its code, once in each direction.
            "id" if self.icmp => self.icmp = false,
            "id" => self.id = Some(value.parse().ok()?),
            _ => {}
        }
        Some(())
    }
}
