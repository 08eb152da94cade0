//! Flow: what really went out, and which look-up or rule it went out by.
//!
//! [`Index`] is fed with what the query log says, in its order: who was [told](Index::told) what, what was
//! [opened](Index::opened) and [ended](Index::ended) before its time, who was [denied](Index::denied) what, and of which time
//! something is [missing](Index::gap). [`Index::judge`] then says of a flow what it went out by, at its start:
//!
//! | class | when |
//! |---|---|
//! | static | a rule for networks, or a resolver, covers the address and the service |
//! | exact | one name was told to the client for the address, and what was told held at the start |
//! | ambiguous | several names were, and the address was open for them |
//! | stale | one was, and had ended: what was told (grace), or the opening too, at most the look-back before (cached) |
//! | none | none was, all the look-back |
//! | unknown | none is known of, and not everything is known of that time, of the flow's beginning or of the client |
//!
//! - An interval is a name told to a client for an address: `from <= told_until <= open_until`. A telling while the address is
//!   still open prolongs it, and the interval counts as told from its beginning until the end that was told last.
//! - An address is open at `t` where `from − ε <= t < open_until + ε`, and told where `t < told_until + ε`; ε is what the
//!   clocks of the flow's source and of the log may be apart.
//! - What is open for a whole segment explains a flow where nothing that the client itself was told does.
//! - An interval explains what its services hold. A name that was told and opens other services is no explanation, and is
//!   said.
//!
//! No I/O, no clock, and bounded: [`Limits`].

mod gaps;
mod index;
mod intern;
mod interval;
mod judge;
mod room;
pub mod source;
mod statics;
#[cfg(test)]
mod tests;
mod track;
mod words;

use std::net::IpAddr;
use std::time::Duration;

pub use index::{Holds, Index, Limits};
pub use judge::{Judgement, Named};
pub use statics::Static;
pub use words::{Carrier, Class, Detail, Origin, QueryId};

use crate::net::Services;
use crate::time::Wall;

/// A client was told a name's addresses.
#[derive(Clone, Copy, Debug)]
pub struct Told<'a> {
    /// When the answer left.
    pub at: Wall,
    /// To whom.
    pub client: IpAddr,
    /// Its segment.
    pub segment: Option<&'a str>,
    /// The name asked for.
    pub qname: &'a str,
    /// The rule's id; empty: none, as where a segment observes.
    pub rule: &'a str,
    /// The query.
    pub query: Option<QueryId>,
    /// What was told; empty: only that the client asked.
    pub addresses: &'a [IpAddr],
    /// Addresses that were told and are not among these.
    pub unlisted: Unlisted,
    /// What was opened of them.
    pub services: &'a [Services],
    /// When the told TTL ends.
    pub told_until: Wall,
    /// Until when the addresses are open, as far as the answer's record knows.
    pub open_until: Wall,
}

/// Addresses that a client was told and that its query's record has no room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unlisted {
    /// There are none.
    None,
    /// Each was [opened](Index::opened) by itself, before.
    Opened,
    /// Nobody knows which.
    Unknown,
}

/// For whom something is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum For {
    /// The client that asked.
    Client(IpAddr),
    /// Everybody in the segment.
    Segment,
}

/// A firewall was opened, or holds open for longer.
#[derive(Clone, Copy, Debug)]
pub struct Opened<'a> {
    /// When.
    pub at: Wall,
    /// For whom.
    pub to: For,
    /// The segment.
    pub segment: &'a str,
    /// The name asked for.
    pub qname: &'a str,
    /// The rule's id.
    pub rule: &'a str,
    /// The query that caused it.
    pub query: Option<QueryId>,
    /// What was opened.
    pub address: IpAddr,
    /// What of it.
    pub services: &'a [Services],
    /// When it ends by itself.
    pub until: Wall,
    /// It was found open at a start: it was told before, nobody knows for how long.
    pub adopted: bool,
}

/// What is open ends sooner than was said.
#[derive(Clone, Copy, Debug)]
pub struct Ended<'a> {
    /// When that was decided.
    pub at: Wall,
    /// For whom it was open.
    pub to: For,
    /// The segment.
    pub segment: &'a str,
    /// The name.
    pub qname: &'a str,
    /// The rule's id.
    pub rule: &'a str,
    /// The address.
    pub address: IpAddr,
    /// What of it.
    pub services: &'a [Services],
    /// Its end now; not before `at`.
    pub until: Wall,
}

/// A client was refused a name, or asked for one that has no address.
#[derive(Clone, Copy, Debug)]
pub struct Denied<'a> {
    /// When.
    pub at: Wall,
    /// Who.
    pub client: IpAddr,
    /// Its segment.
    pub segment: Option<&'a str>,
    /// The name; `None`: no more is known than that the client asks here.
    pub qname: Option<&'a str>,
}

/// A flow to be judged.
#[derive(Clone, Copy, Debug)]
pub struct Flow<'a> {
    /// When it began.
    pub at: Wall,
    /// When it ended.
    pub end: Option<Wall>,
    /// From where, before any translation.
    pub client: IpAddr,
    /// The client's segment, where that is known otherwise than by what it asked.
    pub segment: Option<&'a str>,
    /// To where.
    pub address: IpAddr,
    /// What carried it.
    pub carrier: Carrier,
    /// False where its beginning was not seen, and `at` is when it was seen first.
    pub started: bool,
    /// The firewall refused it.
    pub denied: bool,
    /// ε: how far the clocks of its source and of the log may be apart.
    pub error: Duration,
}
