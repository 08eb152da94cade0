//! Live connections, through ctnetlink.
//!
//! Source: linux/netfilter/nfnetlink_conntrack.h, nf_conntrack_common.h.
//!
//! A connection is not deleted where our rules stand: connection tracking would take it for one that begins with whoever
//! speaks first, which may be the other side, and that is let in. It loses the mark of what was admitted, so that what is
//! sent on it is judged anew, and its end is fixed: by that bit the rules know it ([`CUT`]).

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::Duration;

use nix::errno::Errno;

use super::expression::{Family, TCP, UDP};
use super::socket::{Failure, Socket};
use super::wire::{self, ACK, DUMP, Message, Reader, number};
use crate::firewall::cut::{Connection, Cuts};
use crate::firewall::{Endpoints, FirewallError};
use crate::net::Service;

/// IPS_FIXED_TIMEOUT: packets do not put its end off.
pub(super) const CUT: u32 = 1 << 10;

/// NFNL_SUBSYS_CTNETLINK and IPCTNL_MSG_CT_*.
pub(super) const NEW: u16 = 1 << 8;
pub(super) const GET: u16 = NEW | 1;
pub(super) const DELETE: u16 = NEW | 2;

/// CTA_*.
pub(super) const ORIGINAL: u16 = 1;
pub(super) const REPLY: u16 = 2;
pub(super) const STATUS: u16 = 3;
const TIMEOUT: u16 = 7;
pub(super) const MARK: u16 = 8;
pub(super) const ID: u16 = 12;
const ZONE: u16 = 18;
pub(super) const MARK_MASK: u16 = 21;

/// A connection that was cut is known as such for so long at least, in seconds: what the other side sends meanwhile does
/// not begin another. UDP is forgotten after two minutes by itself; who sends for longer than this without being answered
/// is no program that anybody misses (guessed).
const KNOWN: u32 = 600;

/// Orders that are sent at once: their acknowledgements fit into the receive buffer.
const ORDERS: u32 = 256;

/// The list is gone through a second time, since it may change under the reader, and again where the kernel said no: a
/// connection may change between a look at it and the order.
const PASSES: std::ops::RangeInclusive<u32> = 2..=5;

/// How connections are ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// What has the mark loses it.
    Judge {
        /// The bit.
        mark: u32,
    },
    /// They are deleted: the rules are the operator's.
    Delete,
}

/// What the kernel says of a connection.
struct Tracked<'a> {
    connection: Connection,
    id: u32,
    family: u8,
    status: u32,
    timeout: u32,
    mark: u32,
    original: &'a [u8],
    zone: Option<&'a [u8]>,
}

/// Ends what `cuts` take; how many.
pub(super) fn cut(cuts: &Cuts, way: Way, deadline: Duration) -> Result<u64, FirewallError> {
    let error = |failure: Failure| match failure.errno {
        Errno::EPERM => FirewallError::Forbidden,
        Errno::EAGAIN => FirewallError::Deadline,
        Errno::EINVAL | Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT => {
            FirewallError::Unsupported("nf_conntrack_netlink".to_owned())
        }
        errno => FirewallError::Kernel { what: "cutting connections".to_owned(), why: errno.desc().to_owned() },
    };
    let mut cutting = Cutting {
        socket: Socket::open(deadline).map_err(error)?,
        way,
        orders: Vec::new(),
        ids: Vec::new(),
        ended: HashSet::new(),
        refused: None,
    };
    let mut list = Socket::open(deadline).map_err(error)?;
    for pass in 1..=*PASSES.end() {
        cutting.refused = None;
        let mut broken = Ok(());
        let listed = list.dump(
            |sequence| {
                let mut bytes = Vec::with_capacity(64);
                // AF_UNSPEC: both families.
                wire::request(&mut bytes, (GET, DUMP), (sequence, 0), |a| {
                    if let Way::Judge { mark } = way {
                        a.number(MARK, mark);
                        a.number(MARK_MASK, mark);
                    }
                });
                bytes
            },
            |message| {
                let tracked = message.as_ref().and_then(Tracked::read);
                if let Some(tracked) = tracked.filter(|tracked| way.governs(tracked) && cuts.take(&tracked.connection))
                    && broken.is_ok()
                {
                    broken = cutting.add(&tracked);
                }
            },
        );
        listed.and(broken).and_then(|()| cutting.send()).map_err(error)?;
        if pass >= *PASSES.start() && cutting.refused.is_none() {
            return Ok(cutting.ended.len() as u64);
        }
    }
    let why = cutting.refused.map_or("they come back", Errno::desc);
    Err(FirewallError::Kernel { what: "cutting connections".to_owned(), why: why.to_owned() })
}

impl Way {
    /// Whether a connection is one of those that are ended so.
    const fn governs(self, tracked: &Tracked<'_>) -> bool {
        match self {
            Self::Judge { mark } => tracked.mark & mark != 0,
            Self::Delete => true,
        }
    }
}

/// Orders on the way to the kernel.
struct Cutting {
    socket: Socket,
    way: Way,
    orders: Vec<u8>,
    ids: Vec<u32>,
    ended: HashSet<u32>,
    /// Why one was not ended.
    refused: Option<Errno>,
}

impl Cutting {
    fn add(&mut self, tracked: &Tracked<'_>) -> Result<(), Failure> {
        let sequence = self.socket.next().wrapping_add(u32::try_from(self.ids.len()).unwrap_or(0));
        let kind = if self.way == Way::Delete { DELETE } else { NEW };
        wire::request(&mut self.orders, (kind, ACK), (sequence, tracked.family), |a| {
            a.nest(ORIGINAL, |a| a.raw(tracked.original));
            if let Some(zone) = tracked.zone {
                a.bytes(ZONE, zone);
            }
            match self.way {
                Way::Delete => a.number(ID, tracked.id),
                Way::Judge { mark } => {
                    // An end that is fixed already cannot be changed.
                    if tracked.status & CUT == 0 && tracked.timeout < KNOWN {
                        a.number(TIMEOUT, KNOWN);
                    }
                    a.number(STATUS, tracked.status | CUT);
                    a.number(MARK, 0);
                    a.number(MARK_MASK, mark);
                }
            }
        });
        self.ids.push(tracked.id);
        if self.ids.len() >= ORDERS as usize { self.send() } else { Ok(()) }
    }

    fn send(&mut self) -> Result<(), Failure> {
        if self.ids.is_empty() {
            return Ok(());
        }
        let Self { socket, orders, ids, ended, refused, .. } = self;
        let sent = socket.order(orders, u32::try_from(ids.len()).unwrap_or(0), |place, result| {
            match result {
                Ok(()) => ended.extend(ids.get(place as usize)),
                // It has ended by itself.
                Err(Errno::ENOENT | Errno::ETIME) => {}
                Err(errno) => *refused = Some(errno),
            }
        });
        orders.clear();
        ids.clear();
        sent
    }
}

impl<'a> Tracked<'a> {
    /// Reads one message of a dump.
    fn read(message: &Message<'a>) -> Option<Self> {
        let (mut original, mut reply, mut zone): (_, _, Option<&[u8]>) = (None, None, None);
        let (mut id, mut status, mut timeout, mut mark) = (None, None, 0, 0);
        for (kind, value) in message.attributes() {
            match kind {
                ORIGINAL => original = Some((value, tuple(value)?)),
                REPLY => reply = tuple(value),
                STATUS => status = number(value),
                TIMEOUT => timeout = number(value)?,
                MARK => mark = number(value)?,
                ID => id = number(value),
                ZONE => zone = Some(value),
                _ => {}
            }
        }
        let (original, ends) = original?;
        let translated = reply.map_or(ends.to, |reply| reply.from);
        let connection = Connection { from: ends.from, to: [ends.to, translated], service: service(&ends) };
        let family = *message.body.first()?;
        Some(Self { connection, id: id?, family, status: status?, timeout, mark, original, zone })
    }
}

/// From where to where, and by what.
pub(super) fn tuple(bytes: &[u8]) -> Option<Endpoints> {
    let (mut from, mut to, mut protocol, mut ports) = (None, None, None, [0; 2]);
    let port = |value: &[u8]| value.try_into().ok().map_or(0, u16::from_be_bytes);
    for (part, inner) in Reader(bytes) {
        for (kind, value) in Reader(inner) {
            match (part, kind) {
                (1, 1 | 3) => from = address(value),
                (1, 2 | 4) => to = address(value),
                (2, 1) => protocol = value.first().copied(),
                (2, 2) => ports[0] = port(value),
                (2, 3) => ports[1] = port(value),
                _ => {}
            }
        }
    }
    Some(Endpoints { from: from?, to: to?, protocol: protocol?, ports })
}

/// By what, as grants name it.
fn service(ends: &Endpoints) -> Option<Service> {
    match ends.protocol {
        TCP => Some(Service::Tcp(ends.ports[1])),
        UDP => Some(Service::Udp(ends.ports[1])),
        icmp if icmp == Family::of(ends.to).icmp() => Some(Service::Icmp),
        _ => None,
    }
}

fn address(value: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(value).map(IpAddr::from);
    four.or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from)).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::wire::{Attributes, Messages};
    use super::*;

    /// A message of a dump, with these attributes.
    fn listed(family: u8, body: impl FnOnce(&mut Attributes<'_>)) -> Vec<u8> {
        let mut bytes = Vec::new();
        wire::request(&mut bytes, (NEW, 0), (1, family), body);
        bytes
    }

    fn one_tuple(a: &mut Attributes<'_>, addresses: [&[u8]; 2], protocol: u8, port: u16) {
        let first = if addresses[0].len() == 4 { 1 } else { 3 };
        a.nest(1, |a| {
            a.bytes(first, addresses[0]);
            a.bytes(first + 1, addresses[1]);
        });
        a.nest(2, |a| {
            a.bytes(1, &[protocol]);
            a.bytes(2, &40_000_u16.to_be_bytes());
            a.bytes(3, &port.to_be_bytes());
        });
    }

    #[test]
    fn a_connection_is_read_with_where_it_was_translated_to() {
        let (client, virtual_one, real) = ([192, 0, 2, 1], [198, 51, 100, 7], [203, 0, 113, 7]);
        for (protocol, port, service) in [
            (TCP, 443, Some(Service::Tcp(443))),
            (UDP, 53, Some(Service::Udp(53))),
            (1, 0, Some(Service::Icmp)),
            (58, 0, None),
            (47, 0, None),
        ] {
            let bytes = listed(2, |a| {
                a.nest(ORIGINAL, |a| one_tuple(a, [&client, &virtual_one], protocol, port));
                a.nest(REPLY, |a| one_tuple(a, [&real, &client], protocol, 40_000));
                a.number(STATUS, 0x18e);
                a.number(TIMEOUT, 100);
                a.number(MARK, 0x0001_0002);
                a.number(ID, 77);
            });
            let message = Messages(&bytes).next().unwrap();
            let tracked = Tracked::read(&message).unwrap();
            let wanted = Connection { from: client.into(), to: [virtual_one.into(), real.into()], service };
            assert_eq!((tracked.connection, tracked.id, tracked.family), (wanted, 77, 2));
            assert_eq!((tracked.status, tracked.timeout, tracked.mark), (0x18e, 100, 0x0001_0002));
            assert!(Way::Judge { mark: 0x0001_0000 }.governs(&tracked) && !Way::Judge { mark: 4 }.governs(&tracked));
        }
        let six = [[1; 16], [2; 16]];
        let bytes = listed(10, |a| {
            a.nest(ORIGINAL, |a| one_tuple(a, [&six[0], &six[1]], 58, 0));
            a.number(STATUS, 0);
            a.number(ID, 1);
        });
        let tracked =
            Messages(&bytes).next().and_then(|message| Tracked::read(&message).map(|tracked| tracked.connection));
        let wanted = Connection { from: six[0].into(), to: [six[1].into(); 2], service: Some(Service::Icmp) };
        assert_eq!(tracked, Some(wanted));
    }

    proptest! {
        #[test]
        fn reading_foreign_connections_ends(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let message = listed(2, |a| a.raw(&bytes));
            _ = Messages(&message).next().map(|message| Tracked::read(&message).is_some());
            _ = tuple(&bytes);
        }
    }
}
