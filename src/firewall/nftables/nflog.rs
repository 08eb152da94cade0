//! Packets that the rules refuse, as they are logged to a group of nfnetlink_log.
//!
//! Source: linux/netfilter/nfnetlink_log.h. The rules give the first bytes of the packet, and say in the prefix why it is
//! logged. They log at most 50 packets a second of each segment: what is beyond is refused, and not told.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd};

use netlink_sys::Socket as Raw;
use nix::errno::Errno;

use super::events::receive_buffer;
use super::expression::{TCP, UDP};
use super::socket::{DATAGRAM, Failure, Socket};
use super::wire::{self, ACK, Message, Messages, number, text};
use crate::firewall::{Endpoints, FirewallError, Refused, Sight};
use crate::time::Wall;

/// What the prefix begins with of every packet that our rules log; a colon and why follow.
pub(super) const DENY: &str = "outgate:deny:";
/// Of packets to a destination that is denied to everybody.
pub(super) const DENIED: &str = "outgate:denied:";
/// Of packets that are let pass, since the segment observes.
pub(super) const OBSERVE: &str = "outgate:observe:";

/// NFNL_SUBSYS_ULOG with NFULNL_MSG_PACKET and NFULNL_MSG_CONFIG.
const PACKET: u16 = 4 << 8;
const CONFIGURE: u16 = PACKET | 1;

/// NFULA_*.
const TIMESTAMP: u16 = 3;
const PAYLOAD: u16 = 9;
const PREFIX: u16 = 10;
const SEQUENCE: u16 = 12;

/// How long the kernel gathers packets before it hands them out, in hundredths of a second; less than
/// [`GATHERED`](crate::firewall::GATHERED).
const GATHER: u32 = 10;

const LOOK: usize = 4096;

/// The socket that hears of them.
pub(super) struct Group {
    raw: Raw,
    received: Vec<u8>,
    /// The number of the packet to come.
    next: Option<u32>,
}

/// What one look at a [`Group`] came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Heard {
    pub(super) more: bool,
    pub(super) lost: u64,
}

impl Group {
    /// Opens it; a group has one reader.
    pub(super) fn open(group: u16, buffer: usize, socket: Socket) -> Result<Self, FirewallError> {
        let error = |failure: Failure| match failure.errno {
            Errno::EPERM | Errno::EBUSY if is_read(group) => FirewallError::Group(group),
            _ => failure.lacks("nfnetlink_log", ""),
        };
        let mut orders = Vec::new();
        let mut socket = socket;
        let first = socket.next();
        let mut order = |place: u32, body: &dyn Fn(&mut wire::Attributes<'_>)| {
            wire::group_request(&mut orders, (CONFIGURE, ACK), (first.wrapping_add(place), group), body);
        };
        // NFULNL_CFG_CMD_BIND.
        order(0, &|a| a.bytes(1, &[1]));
        order(1, &|a| {
            // NFULNL_COPY_PACKET.
            a.bytes(2, &[0, 0, 0xff, 0xff, 2, 0]);
            a.number(4, GATHER);
            // NFULNL_CFG_F_SEQ.
            a.bytes(6, &[0, 1]);
        });
        let mut refused = Ok(());
        socket
            .order(&orders, 2, |_, done| {
                if let (Ok(()), Err(errno)) = (&refused, done) {
                    refused = Err(errno.into());
                }
            })
            .and(refused)
            .map_err(error)?;
        let raw = socket.into_raw();
        raw.set_non_blocking(true).map_err(|failed| error(failed.into()))?;
        receive_buffer(&raw, buffer).map_err(error)?;
        Ok(Self { raw, received: Vec::with_capacity(DATAGRAM), next: None })
    }

    /// What to wait for.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.raw.as_fd()
    }

    /// Hands out what was heard.
    pub(super) fn listen(&mut self, each: &mut dyn FnMut(Sight)) -> Result<Heard, Failure> {
        let mut heard = Heard::default();
        for _ in 0..LOOK {
            self.received.clear();
            match self.raw.recv(&mut self.received, 0) {
                Ok(_) => {
                    for message in Messages(&self.received).filter(|message| message.kind == PACKET) {
                        let logged = Logged::read(&message);
                        if let Some(sequence) = logged.sequence {
                            heard.lost += u64::from(sequence.wrapping_sub(self.next.unwrap_or(sequence)));
                            self.next = Some(sequence.wrapping_add(1));
                        }
                        if let Some(refused) = logged.refused() {
                            each(Sight::Refused(refused));
                        }
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(heard),
                // What was lost is missing in the numbers.
                Err(error)
                    if error.kind() == io::ErrorKind::Interrupted
                        || error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {}
                Err(error) => return Err(error.into()),
            }
        }
        heard.more = true;
        Ok(heard)
    }
}

/// Whether some program reads a group: net/netfilter/nfnetlink_log.c, seq_show.
fn is_read(group: u16) -> bool {
    let groups = fs::read_to_string("/proc/thread-self/net/netfilter/nfnetlink_log").unwrap_or_default();
    groups.lines().any(|line| line.split_ascii_whitespace().next().and_then(|first| first.parse().ok()) == Some(group))
}

/// One message of a group.
#[derive(Default)]
struct Logged<'a> {
    prefix: &'a str,
    packet: &'a [u8],
    at: Option<Wall>,
    sequence: Option<u32>,
}

impl<'a> Logged<'a> {
    fn read(message: &Message<'a>) -> Self {
        let mut logged = Self::default();
        for (kind, value) in message.attributes() {
            match kind {
                TIMESTAMP => logged.at = time(value),
                PAYLOAD => logged.packet = value,
                PREFIX => logged.prefix = text(value).unwrap_or_default(),
                SEQUENCE => logged.sequence = number(value),
                _ => {}
            }
        }
        logged
    }

    fn refused(&self) -> Option<Refused> {
        let denied = self.prefix.starts_with(DENIED);
        if !denied && !self.prefix.starts_with(DENY) {
            return None;
        }
        Some(Refused { ends: ends(self.packet)?, at: self.at, denied })
    }
}

/// Seconds and microseconds since 1970.
fn time(value: &[u8]) -> Option<Wall> {
    let part = |at: usize| value.get(at..at + 8).and_then(wire::wide);
    part(0)?.checked_mul(1_000_000)?.checked_add(part(8)?).filter(|micros| *micros > 0).map(Wall)
}

/// From where to where a packet goes (RFC 791, RFC 8200). A fragment that is not the first one has no ports.
fn ends(packet: &[u8]) -> Option<Endpoints> {
    let byte = |at: usize| packet.get(at).copied();
    let half = |at: usize| packet.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes);
    let (from, to, protocol, behind): (IpAddr, IpAddr, _, _) = match byte(0)? >> 4 {
        4 => {
            let address = |at: usize| packet.get(at..at + 4)?.try_into().ok().map(|four: [u8; 4]| Ipv4Addr::from(four));
            let first = half(6)? & 0x1fff == 0;
            let header = usize::from(byte(0)? & 0x0f) * 4;
            (address(12)?.into(), address(16)?.into(), byte(9)?, first.then_some(header))
        }
        6 => {
            let address = |at: usize| packet.get(at..at + 16)?.try_into().ok().map(|six: [u8; 16]| Ipv6Addr::from(six));
            let (protocol, behind) = behind_extensions(packet, byte(6)?);
            (address(8)?.into(), address(24)?.into(), protocol, behind)
        }
        _ => return None,
    };
    let ports = behind.filter(|_| [TCP, UDP].contains(&protocol)).and_then(|at| Some([half(at)?, half(at + 2)?]));
    Some(Endpoints { from, to, protocol, ports: ports.unwrap_or_default() })
}

/// The protocol that follows the extension headers of IPv6, and where (RFC 8200, section 4).
fn behind_extensions(packet: &[u8], first: u8) -> (u8, Option<usize>) {
    let (mut protocol, mut at) = (first, 40_usize);
    loop {
        let Some([next, length]) = packet.get(at..at + 2).and_then(|two| <[u8; 2]>::try_from(two).ok()) else {
            return (protocol, None);
        };
        match protocol {
            // Hop-by-hop options, routing, destination options.
            0 | 43 | 60 => at += (usize::from(length) + 1) * 8,
            // Fragment.
            44 => {
                let offset = packet.get(at + 2..at + 4).and_then(|two| <[u8; 2]>::try_from(two).ok());
                if offset.is_none_or(|offset| u16::from_be_bytes(offset) & !7 != 0) {
                    return (next, None);
                }
                at += 8;
            }
            _ => return (protocol, Some(at)),
        }
        protocol = next;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn four(protocol: u8, fragment: u16, behind: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; 24];
        packet[0] = 0x46;
        packet[6..8].copy_from_slice(&fragment.to_be_bytes());
        packet[9] = protocol;
        packet[12..16].copy_from_slice(&[192, 0, 2, 1]);
        packet[16..20].copy_from_slice(&[198, 51, 100, 7]);
        packet.extend_from_slice(behind);
        packet
    }

    fn six(first: u8, behind: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; 40];
        (packet[0], packet[6], packet[8], packet[24]) = (0x60, first, 0x20, 0x30);
        packet.extend_from_slice(behind);
        packet
    }

    #[test]
    fn a_packet_is_read_from_its_first_bytes() {
        let ports = [0x9c, 0x40, 1, 0xbb];
        for (packet, wanted) in [
            (four(TCP, 0, &ports), Some((TCP, [40_000, 443]))),
            (four(UDP, 0x4000, &ports), Some((UDP, [40_000, 443]))),
            // The second fragment, a protocol without ports, a packet that is cut.
            (four(UDP, 1, &ports), Some((UDP, [0, 0]))),
            (four(47, 0, &ports), Some((47, [0, 0]))),
            (four(TCP, 0, &ports[..3]), Some((TCP, [0, 0]))),
            (four(TCP, 0, &[])[..19].to_vec(), None),
            (six(TCP, &ports), Some((TCP, [40_000, 443]))),
            (six(58, &[128, 0, 0, 0]), Some((58, [0, 0]))),
            (six(60, &[&[TCP, 0, 0, 0, 0, 0, 0, 0][..], &ports].concat()), Some((TCP, [40_000, 443]))),
            (six(44, &[&[UDP, 0, 0, 1, 0, 0, 0, 0][..], &ports].concat()), Some((UDP, [40_000, 443]))),
            (six(44, &[&[UDP, 0, 0, 8, 0, 0, 0, 0][..], &ports].concat()), Some((UDP, [0, 0]))),
            (six(0, &[]), Some((0, [0, 0]))),
            (vec![0x50; 64], None),
            (Vec::new(), None),
        ] {
            let read = ends(&packet);
            assert_eq!(read.map(|read| (read.protocol, read.ports)), wanted, "{packet:?}");
            if let Some(read) = read {
                let from = if packet[0] == 0x46 { "192.0.2.1" } else { "2000::" };
                assert_eq!(read.from, from.parse::<IpAddr>().unwrap());
            }
        }
    }

    #[test]
    fn the_prefix_says_why() {
        let packet = four(TCP, 0, &[0; 4]);
        for (prefix, denied) in [
            ("outgate:deny:office", Some(false)),
            ("outgate:deny:", Some(false)),
            ("outgate:denied:", Some(true)),
            ("outgate:observe:office", None),
            ("somebody else", None),
        ] {
            let mut bytes = Vec::new();
            wire::request(&mut bytes, (PACKET, 0), (0, 2), |a| {
                a.bytes(TIMESTAMP, &[0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 7]);
                a.bytes(PAYLOAD, &packet);
                a.text(PREFIX, prefix);
            });
            let refused = Messages(&bytes).next().and_then(|message| Logged::read(&message).refused());
            assert_eq!(refused.map(|refused| refused.denied), denied, "{prefix}");
            assert!(refused.is_none_or(|refused| refused.at == Some(Wall(2_000_007))));
        }
    }

    proptest! {
        #[test]
        fn reading_foreign_packets_ends(version in prop::sample::select(vec![0_u8, 0x45, 0x4f, 0x60]), mut bytes in prop::collection::vec(any::<u8>(), 0..128)) {
            if let Some(first) = bytes.first_mut() {
                *first = version;
            }
            _ = ends(&bytes);
            _ = time(&bytes);
        }

        #[test]
        fn reading_a_foreign_group_ends(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let mut message = Vec::new();
            wire::request(&mut message, (PACKET, 0), (0, 2), |a| a.raw(&bytes));
            _ = Messages(&message).next().map(|message| Logged::read(&message).refused());
        }
    }
}
