//! Flows in order of time, however many: sorted in parts, which lie in unnamed files, and merged.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::net::{IpAddr, Ipv6Addr};
use std::os::unix::fs::OpenOptionsExt;
use std::vec;

use nix::fcntl::OFlag;

use crate::app::cli::Failure;
use crate::flow::Carrier;
use crate::flow::source::{Direction, Seen};
use crate::time::Wall;

/// Flows of a part, some 70 MB.
const PART: usize = 1 << 19;
/// A flow in a file.
const SIZE: usize = 112;

/// What flows are sorted by.
type Key = (Wall, (u64, u32));

/// One flow and its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) seen: Seen,
    pub(super) id: (u64, u32),
}

impl Row {
    const fn key(&self) -> Key {
        (self.seen.at, self.id)
    }
}

/// Takes flows in any order.
pub(super) struct Order {
    rows: Vec<Row>,
    parts: Vec<File>,
    part: usize,
    len: u64,
}

impl Order {
    pub(super) const fn new() -> Self {
        Self { rows: Vec::new(), parts: Vec::new(), part: PART, len: 0 }
    }

    pub(super) const fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn push(&mut self, row: Row) -> io::Result<()> {
        self.rows.push(row);
        self.len += 1;
        if self.rows.len() >= self.part { self.spill() } else { Ok(()) }
    }

    fn spill(&mut self) -> io::Result<()> {
        self.rows.sort_unstable_by_key(Row::key);
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(OFlag::O_TMPFILE.bits());
        let mut out = BufWriter::with_capacity(1 << 17, options.open(std::env::temp_dir())?);
        for row in self.rows.drain(..) {
            out.write_all(&row.bytes())?;
        }
        let mut file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.rewind()?;
        self.parts.push(file);
        Ok(())
    }

    /// All flows, the earliest first.
    pub(super) fn finish(mut self) -> io::Result<Sorted> {
        self.rows.sort_unstable_by_key(Row::key);
        let mut sorted = Sorted { parts: Vec::new(), heap: BinaryHeap::new() };
        let files = self.parts.into_iter().map(|file| Part::File(BufReader::with_capacity(1 << 16, file)));
        for part in files.chain([Part::Memory(self.rows.into_iter())]) {
            sorted.parts.push((part, None));
            sorted.refill(sorted.parts.len() - 1)?;
        }
        Ok(sorted)
    }
}

enum Part {
    File(BufReader<File>),
    Memory(vec::IntoIter<Row>),
}

/// Flows in order.
pub(super) struct Sorted {
    /// Each with its first flow.
    parts: Vec<(Part, Option<Row>)>,
    heap: BinaryHeap<Reverse<(Key, usize)>>,
}

impl Sorted {
    fn refill(&mut self, number: usize) -> io::Result<()> {
        let Some((part, head)) = self.parts.get_mut(number) else { return Ok(()) };
        *head = match part {
            Part::Memory(rows) => rows.next(),
            Part::File(file) => {
                let mut bytes = [0; SIZE];
                match file.read_exact(&mut bytes) {
                    Ok(()) => Row::read(&bytes),
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => None,
                    Err(error) => return Err(error),
                }
            }
        };
        if let Some(row) = head {
            self.heap.push(Reverse((row.key(), number)));
        }
        Ok(())
    }
}

impl Iterator for Sorted {
    type Item = io::Result<Row>;

    fn next(&mut self) -> Option<io::Result<Row>> {
        let Reverse((_, number)) = self.heap.pop()?;
        let row = self.parts.get_mut(number)?.1.take()?;
        Some(self.refill(number).map(|()| row))
    }
}

/// What `None` is in a file; no counter and no time is that large.
const NONE: u64 = u64::MAX;

impl Row {
    fn bytes(&self) -> [u8; SIZE] {
        let Seen { at, end, client, port, address, carrier, denied, started, timed, direction, tap, .. } = self.seen;
        let mut bytes = [0; SIZE];
        let mut rest = bytes.as_mut_slice();
        // The array has the room.
        let mut put = |part: &[u8]| _ = rest.write_all(part);
        put(&at.0.to_le_bytes());
        put(&end.map_or(NONE, |end| end.0).to_le_bytes());
        for address in [client, address] {
            put(&[u8::from(address.is_ipv4())]);
            put(&match address {
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                IpAddr::V6(address) => address.octets(),
            });
        }
        put(&port.map_or(u32::MAX, u32::from).to_le_bytes());
        let (kind, number) = match carrier {
            Carrier::Tcp(port) => (0_u8, port),
            Carrier::Udp(port) => (1, port),
            Carrier::Icmp => (2, 0),
            Carrier::Protocol(number) => (3, number.into()),
        };
        put(&[kind]);
        put(&number.to_le_bytes());
        put(&[
            u8::from(denied),
            u8::from(started),
            u8::from(timed),
            match direction {
                Direction::Forth => 0,
                Direction::Back => 1,
                Direction::Unclear => 2,
            },
        ]);
        let Seen { bytes_out, bytes_in, packets_out, packets_in, .. } = self.seen;
        for number in [bytes_out, bytes_in, packets_out, packets_in] {
            put(&number.unwrap_or(NONE).to_le_bytes());
        }
        put(&tap.to_le_bytes());
        put(&self.id.0.to_le_bytes());
        put(&self.id.1.to_le_bytes());
        bytes
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let (at, end) = (take(&mut rest)?, take(&mut rest)?);
        let (client, address) = (take_address(&mut rest)?, take_address(&mut rest)?);
        let port = u32::from_le_bytes(array(&mut rest)?);
        let [kind] = array(&mut rest)?;
        let number = u16::from_le_bytes(array(&mut rest)?);
        let [denied, started, timed, direction] = array(&mut rest)?;
        let mut counter = || take(&mut rest).map(|number| (number != NONE).then_some(number));
        let (bytes_out, bytes_in, packets_out, packets_in) = (counter()?, counter()?, counter()?, counter()?);
        Some(Self {
            seen: Seen {
                at: Wall(at),
                end: (end != NONE).then_some(Wall(end)),
                client,
                port: u16::try_from(port).ok(),
                address,
                carrier: match kind {
                    0 => Carrier::Tcp(number),
                    1 => Carrier::Udp(number),
                    2 => Carrier::Icmp,
                    _ => Carrier::Protocol(u8::try_from(number).ok()?),
                },
                denied: denied != 0,
                started: started != 0,
                timed: timed != 0,
                bytes_out,
                bytes_in,
                packets_out,
                packets_in,
                direction: match direction {
                    0 => Direction::Forth,
                    1 => Direction::Back,
                    _ => Direction::Unclear,
                },
                tap: u32::from_le_bytes(array(&mut rest)?),
            },
            id: (take(&mut rest)?, u32::from_le_bytes(array(&mut rest)?)),
        })
    }
}

fn array<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk()?;
    *rest = tail;
    Some(*head)
}

fn take(rest: &mut &[u8]) -> Option<u64> {
    array(rest).map(u64::from_le_bytes)
}

fn take_address(rest: &mut &[u8]) -> Option<IpAddr> {
    let [four] = array(rest)?;
    let address = Ipv6Addr::from(array::<16>(rest)?);
    Some(if four != 0 { IpAddr::V4(address.to_ipv4_mapped()?) } else { IpAddr::V6(address) })
}

/// What to do where the parts cannot be kept.
pub(super) fn failed(error: &io::Error) -> Failure {
    let place = std::env::temp_dir();
    Failure::Failed(format!(
        "{}: {error}\n  flows are sorted there, some 110 bytes each; name another directory with the variable TMPDIR",
        place.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    prop_compose! {
        fn seen()(
            (at, end) in (0..50_u64, any::<Option<u32>>()),
            (client, address) in any::<(IpAddr, IpAddr)>(),
            port in any::<Option<u16>>(),
            carrier in prop_oneof![
                any::<u16>().prop_map(Carrier::Tcp),
                any::<u16>().prop_map(Carrier::Udp),
                Just(Carrier::Icmp),
                any::<u8>().prop_map(Carrier::Protocol),
            ],
            (denied, started, timed) in any::<(bool, bool, bool)>(),
            counters in any::<[Option<u32>; 4]>(),
            direction in prop_oneof![Just(Direction::Forth), Just(Direction::Back), Just(Direction::Unclear)],
            tap in any::<u32>(),
        ) -> Seen {
            let [bytes_out, bytes_in, packets_out, packets_in] = counters.map(|counter| counter.map(u64::from));
            Seen {
                at: Wall(at),
                end: end.map(|end| Wall(end.into())),
                client,
                port,
                address,
                carrier,
                denied,
                started,
                timed,
                bytes_out,
                bytes_in,
                packets_out,
                packets_in,
                direction,
                tap,
            }
        }
    }

    proptest! {
        #[test]
        fn flows_come_in_order_and_whole(
            seen in prop::collection::vec((seen(), any::<(u64, u32)>()), 0..60),
            part in 1..20_usize,
        ) {
            let mut rows: Vec<_> = seen.into_iter().map(|(seen, id)| Row { seen, id }).collect();
            let mut order = Order { part, ..Order::new() };
            for row in &rows {
                order.push(*row).unwrap();
            }
            prop_assert_eq!(order.len(), rows.len() as u64);
            let sorted: Vec<_> = order.finish().unwrap().map(Result::unwrap).collect();
            rows.sort_by_key(Row::key);
            prop_assert_eq!(sorted, rows);
        }
    }
}
