//! The netlink sockets: one that writes and dumps, one that listens.
//!
//! nf_tables works within `send`: when it returns, the transaction is done and its acknowledgement waits to be read.

use std::time::Duration;
use std::{fs, io};

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket as Raw, SocketAddr};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::SockRef;

use super::wire::{self, Batch, DONE, ERROR, INTERRUPTED, Message, Messages, Verb, number};
use crate::firewall::FirewallError;

/// The group of sockets that hear of every change (NFNLGRP_NFTABLES).
const CHANGES: u32 = 7;

/// More than the kernel puts into one datagram (32 KiB).
pub(super) const DATAGRAM: usize = 128 << 10;

/// How often a dump is tried again that another program's change has broken in two.
const ATTEMPTS: usize = 16;

/// Why the kernel did not do something.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) errno: Errno,
    /// The kernel's own words, where it has some.
    pub(super) reason: Option<String>,
    /// True where it concerns the whole request: a right that is missing, a socket, a time-out.
    pub(super) whole: bool,
}

impl Failure {
    /// As the trait tells it; `what` is what was tried.
    pub(super) fn error(self, what: &str, table: &str) -> FirewallError {
        let words = || self.reason.clone().unwrap_or_else(|| self.errno.desc().to_owned());
        match self.errno {
            Errno::EPERM if self.whole => FirewallError::Forbidden,
            Errno::EPERM => FirewallError::Owned(table.to_owned()),
            Errno::EAGAIN => FirewallError::Deadline,
            errno => FirewallError::Kernel { what: what.to_owned(), why: format!("{errno:?}: {}", words()) },
        }
    }
}

impl Failure {
    /// The same, where nothing but a part of the kernel can be missing.
    pub(super) fn lacks(self, what: &str, table: &str) -> FirewallError {
        match self.errno {
            Errno::ENOENT | Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT => {
                FirewallError::Unsupported(format!("{what} ({})", self.errno.desc()))
            }
            _ => self.error(what, table),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self { errno: Errno::from_raw(error.raw_os_error().unwrap_or(0)), reason: None, whole: true }
    }
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self { errno, reason: None, whole: true }
    }
}

/// The socket that writes. A table with an owner belongs to it, so that all writes go through this one.
pub(super) struct Socket {
    raw: Raw,
    port: u32,
    sequence: u32,
    send_buffer: usize,
    received: Vec<u8>,
}

impl Socket {
    /// Opens it; no answer is waited for longer than `deadline`.
    pub(super) fn open(deadline: Duration) -> Result<Self, Failure> {
        let mut raw = Raw::new(NETLINK_NETFILTER)?;
        let port = raw.bind_auto()?.port_number();
        raw.connect(&SocketAddr::new(0, 0))?;
        raw.set_ext_ack(true)?;
        raw.set_cap_ack(true)?;
        SockRef::from(&raw).set_read_timeout(Some(deadline))?;
        // A batch that fails may be answered with an error per message. Without the right for more than the
        // machine's limit, the limit will do.
        if setsockopt(&raw, sockopt::RcvBufForce, &(4 << 20)).is_err() {
            SockRef::from(&raw).set_recv_buffer_size(4 << 20)?;
        }
        Ok(Self { raw, port, sequence: 1, send_buffer: 0, received: Vec::with_capacity(DATAGRAM) })
    }

    /// The number by which the kernel knows it.
    pub(super) const fn port(&self) -> u32 {
        self.port
    }

    /// An empty batch.
    pub(super) fn batch(&self) -> Batch {
        Batch::new(self.sequence)
    }

    /// Sends a batch in one piece and waits for its end. A batch without messages is done already.
    pub(super) fn commit(&mut self, batch: Batch) -> Result<(), Failure> {
        if batch.is_empty() {
            return Ok(());
        }
        let sealed = batch.finish();
        self.sequence = sealed.next;
        self.reserve(sealed.bytes.len())?;
        self.raw.send(&sealed.bytes, 0)?;
        drop(sealed.bytes);
        let mut failure = None;
        loop {
            self.receive()?;
            for message in Messages(&self.received).filter(|message| message.kind == ERROR) {
                if message.sequence == sealed.first && message.errno() != 0 {
                    return Err(refusal(&message, true));
                }
                // Another number: an answer that came too late for its own request.
                if message.sequence.wrapping_sub(sealed.first) > sealed.acknowledged.wrapping_sub(sealed.first) {
                    continue;
                }
                if message.errno() != 0 && failure.is_none() {
                    failure = Some(refusal(&message, false));
                }
                if message.sequence == sealed.acknowledged {
                    return failure.map_or(Ok(()), Err);
                }
            }
        }
    }

    /// The number of the ruleset: every transaction in this network namespace counts it up.
    pub(super) fn generation(&mut self) -> Result<Option<u32>, Failure> {
        let mut found = None;
        self.dump(
            |sequence| wire::ask(Verb::GetGeneration, sequence),
            |message| {
                // NFTA_GEN_ID.
                let id = message.and_then(|message| message.attributes().find(|(kind, _)| *kind == 1));
                found = id.and_then(|(_, value)| number(value)).or(found);
            },
        )?;
        Ok(found)
    }

    /// Waits until every transaction is done that has begun, and what it changed told: an empty one waits for its turn.
    pub(super) fn wait_for_others(&mut self) -> Result<(), Failure> {
        let sealed = self.batch().finish();
        self.sequence = sealed.next;
        self.raw.send(&sealed.bytes, 0)?;
        Ok(())
    }

    /// Sends the request for a list, with its number, and calls `each` with every message of it. A list that somebody's change has broken in two
    /// is asked for again from the start: `each` then hears `None` first.
    pub(super) fn dump(
        &mut self,
        request: impl Fn(u32) -> Vec<u8>,
        mut each: impl FnMut(Option<Message<'_>>),
    ) -> Result<(), Failure> {
        for _ in 0..ATTEMPTS {
            each(None);
            let sequence = self.sequence;
            self.sequence = sequence.wrapping_add(1);
            self.raw.send(&request(sequence), 0)?;
            let mut interrupted = false;
            'list: loop {
                self.receive()?;
                for message in Messages(&self.received).filter(|message| message.sequence == sequence) {
                    interrupted |= message.flags & INTERRUPTED != 0;
                    match message.kind {
                        DONE | ERROR if message.errno() != 0 => return Err(refusal(&message, true)),
                        DONE | ERROR => break 'list,
                        _ => each(Some(message)),
                    }
                }
            }
            if !interrupted {
                return Ok(());
            }
        }
        Err(Errno::EBUSY.into())
    }

    /// Sends orders that stand for themselves, `count` of them numbered from [`Socket::next`] on, each asking for an
    /// acknowledgement; calls `each` with the place of every one and what came of it.
    pub(super) fn order(
        &mut self,
        orders: &[u8],
        count: u32,
        mut each: impl FnMut(u32, Result<(), Errno>),
    ) -> Result<(), Failure> {
        let first = self.sequence;
        self.sequence = first.wrapping_add(count);
        self.raw.send(orders, 0)?;
        let mut open = count;
        while open > 0 {
            self.receive()?;
            for message in Messages(&self.received).filter(|message| message.kind == ERROR) {
                let place = message.sequence.wrapping_sub(first);
                if place < count {
                    open = open.saturating_sub(1);
                    each(place, if message.errno() == 0 { Ok(()) } else { Err(Errno::from_raw(message.errno())) });
                }
            }
        }
        Ok(())
    }

    /// The socket itself, for one that goes on to listen.
    pub(super) fn into_raw(self) -> Raw {
        self.raw
    }

    /// The number of the next request.
    pub(super) const fn next(&self) -> u32 {
        self.sequence
    }

    fn receive(&mut self) -> Result<(), Failure> {
        self.received.clear();
        loop {
            match self.raw.recv(&mut self.received, 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return Ok(other.map(|_| ())?),
            }
        }
    }

    /// The kernel takes a batch only where the send buffer holds it.
    fn reserve(&mut self, bytes: usize) -> Result<(), Failure> {
        if bytes > self.send_buffer {
            let wanted = bytes.max(1 << 20).next_power_of_two();
            setsockopt(&self.raw, sockopt::SndBufForce, &wanted)
                .or_else(|_| setsockopt(&self.raw, sockopt::SndBuf, &wanted))?;
            self.send_buffer = wanted;
        }
        Ok(())
    }
}

fn refusal(message: &Message<'_>, whole: bool) -> Failure {
    Failure { errno: Errno::from_raw(message.errno()), reason: message.reason().map(str::to_owned), whole }
}

/// The socket that listens to what others change.
pub(super) struct Watch {
    chains: Chains,
    raw: Raw,
    received: Vec<u8>,
}

impl Watch {
    /// Opens it; what happens from now on is heard.
    pub(super) fn open(chains: Chains) -> Result<Self, Failure> {
        let mut raw = Raw::new(NETLINK_NETFILTER)?;
        raw.bind_auto()?;
        raw.add_membership(CHANGES)?;
        raw.set_non_blocking(true)?;
        // Our own changes are heard too, an event per element.
        if setsockopt(&raw, sockopt::RcvBufForce, &(16 << 20)).is_err() {
            SockRef::from(&raw).set_recv_buffer_size(16 << 20)?;
        }
        Ok(Self { chains, raw, received: Vec::with_capacity(DATAGRAM) })
    }

    /// Which chains it is about.
    pub(super) const fn chains(&self) -> Chains {
        self.chains
    }

    /// Reads all that was heard of changes of `table` by others than `port`.
    pub(super) fn listen(&mut self, table: &str, port: u32) -> Result<Heard, Failure> {
        let mut heard = Heard::Nothing;
        loop {
            self.received.clear();
            match self.raw.recv(&mut self.received, 0) {
                Ok(_) if Messages(&self.received).any(|message| concerns(&message, self.chains, table, port)) => {
                    heard = Heard::Foreign;
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(heard),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => heard = heard.max(Heard::TooMuch),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Whether a socket of this network namespace hears of every change: our own [`Watch`], `nft monitor`.
pub(super) fn anybody_listens() -> bool {
    // sk, protocol, port, groups: Documentation/filesystems/proc.rst, net/netlink/af_netlink.c.
    let listens = |line: &str| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let protocol = fields.next().and_then(|field| field.parse().ok());
        let groups = fields.nth(1).and_then(|field| u32::from_str_radix(field, 16).ok());
        protocol == Some(NETLINK_NETFILTER) && groups.is_none_or(|groups| groups >> (CHANGES - 1) & 1 == 1)
    };
    fs::read_to_string("/proc/thread-self/net/netlink").map_or(true, |sockets| sockets.lines().any(listens))
}

/// Whose the chains of the table are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chains {
    /// Nobody else may touch them.
    Ours,
    /// The operator's, who changes them at will (hook sets).
    Theirs,
}

/// What a [`Watch`] heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Heard {
    /// Nobody else changed anything.
    Nothing,
    /// More happened than could be kept: somebody may have.
    TooMuch,
    /// Somebody did.
    Foreign,
}

/// The first attribute of every object of nf_tables is the name of its table; only a generation's is a number.
fn concerns(message: &Message<'_>, chains: Chains, table: &str, port: u32) -> bool {
    message.is_nf_tables()
        && (chains == Chains::Ours || !message.is_of_chains())
        && message.port != port
        && message.attributes().any(|(kind, value)| kind == 1 && wire::text(value) == Some(table))
}
