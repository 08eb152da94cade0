//! What a firewall let pass and what it refused, as the kernel tells of it.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::FirewallError;
use crate::time::Wall;

/// How long a refusal may be kept back before it is told: the kernel gathers them, and its timers are late by some ticks.
pub const GATHERED: Duration = Duration::from_millis(150);

/// Tells of flows and of refusals. Driven by one thread.
pub trait Witness: Send {
    /// Waits until there is something to look at, or `stop` can be read, or `longest` is over.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    fn wait(&mut self, stop: BorrowedFd<'_>, longest: Duration) -> Result<(), FirewallError>;

    /// Hands out what was seen since the last call, each source in its order. Does not block.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    fn look(&mut self, each: &mut dyn FnMut(Sight)) -> Result<Looked, FirewallError>;

    /// Hands out every live connection that was admitted. `None` comes first, and again where the list begins anew.
    ///
    /// # Errors
    /// The kernel cannot be asked, or does not answer in time.
    fn list(&mut self, each: &mut dyn FnMut(Option<Seen>)) -> Result<(), FirewallError>;

    /// What the operator should know: what cannot be counted here, and the remedy.
    fn remarks(&self) -> &[String];
}

/// What is sought of a [`Witness`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sought {
    /// Flows that begin and end.
    pub flows: bool,
    /// Packets that are refused.
    pub refused: bool,
    /// The memory in which the kernel keeps what was not looked at yet, in bytes.
    pub buffer: usize,
}

/// One thing seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// A connection began. Only those that were admitted.
    Began(Seen),
    /// A connection ended, whether it was admitted or not: one that was cut does not look so any more.
    Ended(Seen),
    /// A packet was refused.
    Refused(Refused),
}

/// What a look came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Looked {
    /// There is more to look at already.
    pub more: bool,
    /// Connections began or ended that nobody told of: the kernel had no room left. They are among what happened
    /// since the last look that came to the end.
    pub lost: bool,
    /// Refusals that nobody told of, for the same reason.
    pub lost_refusals: u64,
}

/// From where to where, and by what: the packet that began a flow, before any translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Endpoints {
    /// Source.
    pub from: IpAddr,
    /// Destination.
    pub to: IpAddr,
    /// The protocol's number.
    pub protocol: u8,
    /// Ports of source and destination; 0 where the protocol has none.
    pub ports: [u16; 2],
}

/// A connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The kernel's number of it, of which few live connections share one.
    pub id: u32,
    /// As it began.
    pub ends: Endpoints,
    /// Whither its destination was translated.
    pub translated: Option<IpAddr>,
    /// Our rules let it pass, or the rules are not ours.
    pub admitted: bool,
    /// When it began, where the kernel keeps that.
    pub began: Option<Wall>,
    /// When it ended, where the kernel keeps that.
    pub ended: Option<Wall>,
    /// When this happened that is told of, where the kernel says so (Linux 6.14).
    pub at: Option<Wall>,
    /// There and back, where the kernel counts.
    pub counts: Option<[Count; 2]>,
}

/// What passed in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes, headers of the network layer among them.
    pub bytes: u64,
}

/// A packet that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// From where to where.
    pub ends: Endpoints,
    /// When, where the kernel says so.
    pub at: Option<Wall>,
    /// Its destination is denied to everybody.
    pub denied: bool,
}
