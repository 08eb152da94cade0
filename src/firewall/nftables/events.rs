//! Connections that begin and end, as ctnetlink tells of them.
//!
//! Source: linux/netfilter/nfnetlink_conntrack.h, net/netfilter/nf_conntrack_netlink.c.
//!
//! An event carries the mark that the rules have set: it is told of when the packet that began the connection has left
//! all hooks. What is refused never gets so far, and is none.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_sys::Socket as Raw;
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::SockRef;

use super::Hook;
use super::conntrack::{CUT, DELETE, ID, MARK, NEW, ORIGINAL, REPLY, STATUS, tuple};
use super::socket::{DATAGRAM, Failure, Socket};
use super::wire::{self, DUMP, Message, Messages, Reader, number, wide};
use super::witness::DEADLINE;
use crate::firewall::{Count, Seen, Sight};
use crate::time::Wall;

/// NFNLGRP_CONNTRACK_NEW and NFNLGRP_CONNTRACK_DESTROY.
const GROUPS: [u32; 2] = [1, 3];

/// IPCTNL_MSG_CT_GET_STATS_CPU: a few numbers for each processor.
const STATISTICS: u16 = 1 << 8 | 4;

/// CTA_*.
const COUNTS_THERE: u16 = 9;
const COUNTS_BACK: u16 = 10;
const TIMES: u16 = 20;
const EVENT_TIME: u16 = 27;

/// Messages of one look, so that who looks gets to do something with them.
const LOOK: usize = 16_384;

/// Which connections were admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admitted {
    /// Those with this bit of the mark, and those that lost it because they were cut.
    Marked(u32),
    /// All: the rules are the operator's.
    All,
}

impl Admitted {
    pub(super) fn new(hook: Hook, mark: u32) -> Self {
        if hook == Hook::Sets { Self::All } else { Self::Marked(mark) }
    }

    const fn holds(self, mark: u32, status: u32) -> bool {
        match self {
            Self::All => true,
            Self::Marked(bit) => mark & bit != 0 || status & CUT != 0,
        }
    }
}

/// The socket that hears of them.
pub(super) struct Events {
    raw: Raw,
    received: Vec<u8>,
    admitted: Admitted,
}

/// What one look at [`Events`] came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Heard {
    pub(super) more: bool,
    pub(super) lost: bool,
}

impl Events {
    /// Opens it; what happens from now on is heard. The kernel keeps `buffer` bytes of it, and says so (ENOBUFS) where
    /// that was too little.
    pub(super) fn open(admitted: Admitted, buffer: usize) -> Result<Self, Failure> {
        // To join a group has the kernel load what tells it, some time later, and says nothing of it; until then nothing is
        // told. A request waits for that.
        let request = |sequence| {
            let mut bytes = Vec::new();
            wire::request(&mut bytes, (STATISTICS, DUMP), (sequence, 0), |_| ());
            bytes
        };
        Socket::open(DEADLINE)?.dump(request, |_| ())?;
        let mut raw = Raw::new(NETLINK_NETFILTER)?;
        raw.bind_auto()?;
        raw.set_non_blocking(true)?;
        receive_buffer(&raw, buffer)?;
        for group in GROUPS {
            raw.add_membership(group)?;
        }
        Ok(Self { raw, received: Vec::with_capacity(DATAGRAM), admitted })
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
                    Messages(&self.received).filter_map(|message| sight(&message, self.admitted)).for_each(&mut *each);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(heard),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // What is still to be read happened before; until that is read, nothing more is kept.
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => heard.lost = true,
                Err(error) => return Err(error.into()),
            }
        }
        heard.more = true;
        Ok(heard)
    }
}

/// The memory of a socket. Without the right for more than the machine's limit, the limit will do.
pub(super) fn receive_buffer(raw: &Raw, bytes: usize) -> Result<(), Failure> {
    if setsockopt(raw, sockopt::RcvBufForce, &bytes).is_err() {
        SockRef::from(raw).set_recv_buffer_size(bytes)?;
    }
    Ok(())
}

fn sight(message: &Message<'_>, admitted: Admitted) -> Option<Sight> {
    let seen = seen(message, admitted);
    match message.kind {
        NEW => seen.filter(|seen| seen.admitted).map(Sight::Began),
        DELETE => seen.map(Sight::Ended),
        _ => None,
    }
}

/// Reads an event, or one message of a dump.
pub(super) fn seen(message: &Message<'_>, admitted: Admitted) -> Option<Seen> {
    let (mut ends, mut reply, mut id, mut mark, mut status) = (None, None, None, 0, 0);
    let (mut began, mut ended, mut at, mut there, mut back) = (None, None, None, None, None);
    for (kind, value) in message.attributes() {
        match kind {
            ORIGINAL => ends = tuple(value),
            REPLY => reply = tuple(value),
            ID => id = number(value),
            MARK => mark = number(value)?,
            STATUS => status = number(value)?,
            COUNTS_THERE => there = count(value),
            COUNTS_BACK => back = count(value),
            EVENT_TIME => at = time(value),
            TIMES => {
                for (kind, value) in Reader(value) {
                    match kind {
                        1 => began = time(value),
                        2 => ended = time(value),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let ends = ends?;
    let translated = reply.map(|reply| reply.from).filter(|from| *from != ends.to);
    let admitted = admitted.holds(mark, status);
    let counts = there.zip(back).map(|(there, back)| [there, back]);
    Some(Seen { id: id?, ends, translated, admitted, began, ended, at, counts })
}

/// CTA_COUNTERS_PACKETS and CTA_COUNTERS_BYTES.
fn count(value: &[u8]) -> Option<Count> {
    let find = |wanted| Reader(value).find(|(kind, _)| *kind == wanted).and_then(|(_, value)| wide(value));
    Some(Count { packets: find(1)?, bytes: find(2)? })
}

/// Nanoseconds since 1970; 0 says nothing.
fn time(value: &[u8]) -> Option<Wall> {
    wide(value).filter(|nanoseconds| *nanoseconds > 0).map(|nanoseconds| Wall(nanoseconds / 1000))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::wire::Attributes;
    use super::*;
    use crate::firewall::Endpoints;

    fn event(kind: u16, body: impl FnOnce(&mut Attributes<'_>)) -> Vec<u8> {
        let mut bytes = Vec::new();
        wire::request(&mut bytes, (kind, 0), (0, 2), body);
        bytes
    }

    fn addresses(a: &mut Attributes<'_>, from: [u8; 4], to: [u8; 4], ports: [u16; 2]) {
        a.nest(1, |a| {
            a.bytes(1, &from);
            a.bytes(2, &to);
        });
        a.nest(2, |a| {
            a.bytes(1, &[6]);
            a.bytes(2, &ports[0].to_be_bytes());
            a.bytes(3, &ports[1].to_be_bytes());
        });
    }

    #[test]
    fn a_connection_that_ended_is_read_with_what_it_carried() {
        let (client, service, real) = ([192, 0, 2, 1], [198, 51, 100, 7], [203, 0, 113, 7]);
        let body = |mark: u32, status: u32| {
            move |a: &mut Attributes<'_>| {
                a.nest(ORIGINAL, |a| addresses(a, client, service, [40_000, 443]));
                a.nest(REPLY, |a| addresses(a, real, client, [443, 40_000]));
                a.number(ID, 77);
                a.number(STATUS, status);
                a.number(MARK, mark);
                for (kind, packets, bytes) in [(COUNTS_THERE, 5, 400), (COUNTS_BACK, 6, 9000)] {
                    a.nest(kind, |a| {
                        a.wide(1, packets);
                        a.wide(2, bytes);
                    });
                }
                a.nest(TIMES, |a| {
                    a.wide(1, 1_700_000_000_000_001_999);
                    a.wide(2, 1_700_000_001_000_000_000);
                });
                a.wide(EVENT_TIME, 0);
            }
        };
        let read =
            |kind, mark, status, admitted| sight(&Messages(&event(kind, body(mark, status))).next().unwrap(), admitted);
        let ends = Endpoints { from: client.into(), to: service.into(), protocol: 6, ports: [40_000, 443] };
        let wanted = Seen {
            id: 77,
            ends,
            translated: Some(real.into()),
            admitted: true,
            began: Some(Wall(1_700_000_000_000_001)),
            ended: Some(Wall(1_700_000_001_000_000)),
            at: None,
            counts: Some([Count { packets: 5, bytes: 400 }, Count { packets: 6, bytes: 9000 }]),
        };
        let marked = Admitted::new(Hook::Forward, 0x1_0000);
        assert_eq!(read(DELETE, 0x3_0000, 0, marked), Some(Sight::Ended(wanted)));
        assert_eq!(read(NEW, 0x3_0000, 0, marked), Some(Sight::Began(wanted)));
        assert_eq!(read(NEW, 0x2_0000, 0, marked), None);
        // One that was cut has lost its mark.
        assert_eq!(read(DELETE, 0, CUT, marked), Some(Sight::Ended(wanted)));
        let foreign = Sight::Ended(Seen { admitted: false, ..wanted });
        assert_eq!(read(DELETE, 0, 0, marked), Some(foreign));
        assert_eq!(read(NEW, 0, 0, Admitted::new(Hook::Sets, 0x1_0000)), Some(Sight::Began(wanted)));
    }

    proptest! {
        #[test]
        fn reading_foreign_events_ends(kind in prop::sample::select(vec![NEW, DELETE]), bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let bytes = event(kind, |a| a.raw(&bytes));
            for message in Messages(&bytes) {
                _ = sight(&message, Admitted::All);
            }
        }
    }
}
