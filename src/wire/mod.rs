//! Wire: bytes ↔ [`Query`] / reply bytes / upstream [`Message`]s.
//!
//! Pure: no I/O, no clock, no logging; every loop is bounded by the packet's length, nothing recurses, and no
//! byte of a packet can panic it. What is promised:
//!
//! - [`parse`] reads a client's packet without allocating or copying more than the name, in lower case. What cannot
//!   become a [`Query`] is a [`Malformed`] that carries all its record and its reply need: the [`Fault`], the id, name and
//!   type as far as they could be read, and the rcode and [`Echo`] to answer with, or none where silence is the answer.
//! - [`read_proxy`] and [`named_by_subnet`] read whom a forwarder names, and [`echo_subnet`] repeats it.
//! - [`Template`] is the encoded body of an answer, independent of id, case, flags, EDNS and TTL;
//!   [`Template::write`] makes it a reply to one [`Echo`] without allocating (given capacity in `out`).
//! - [`write_refusal`] is the same for replies without records: errors, and refusals with their SOA.
//! - [`extend`] adds to either what a stream's client asked for and a datagram's cannot be told.
//! - [`encode_query`] is a function of its arguments alone (I2), and so are [`pad_query`] and [`show_cookie`];
//!   [`parse_reply`] reads what came back, [`glance`] no more of it than its code and its cookie.

mod compression;
mod cookie;
mod edns;
mod fault;
mod message;
mod proxy;
mod query;
mod rdata;
mod reader;
mod reply;
mod subnet;
#[cfg(test)]
mod tests;

pub use cookie::{CLIENT_COOKIE, ServerCookie, cookie_room, echo_cookie};
pub use edns::{Edns, Glance, StreamOptions, extend, glance, pad_query, show_cookie};
pub use fault::Fault;
pub use message::{Message, MessageEdns, encode_query, freshness, parse_message, parse_reply};
pub use proxy::{PROXY_HEAD, Proxied, proxy_length, read_proxy};
pub use query::{Canonical, Echo, Malformed, Query, parse};
pub use reply::{REFUSAL_TTL, Template, Written, refusal_soa, write_refusal};
pub use subnet::{echo_subnet, named_by_subnet, subnet_room};

/// The largest datagram that we send and ask for. No path may fragment it: 1280, the smallest MTU of IPv6
/// (RFC 8200 §5), less 40 for IPv6 and 8 for UDP.
pub const UDP_SIZE: u16 = 1232;
/// The largest datagram to a client without EDNS (RFC 1035 §4.2.1).
pub const UDP_SIZE_PLAIN: u16 = 512;
/// The largest stream message: its length has two octets (RFC 1035 §4.2.2).
pub const TCP_LIMIT: usize = 65_535;

/// A header's length; the question's name starts here.
const HEADER: usize = 12;
/// The class IN.
const IN: u16 = 1;

/// The bits of header octets 2 and 3 (RFC 1035 §4.1.1, RFC 4035 §3).
mod flag {
    pub(super) const QR: u16 = 0x8000;
    pub(super) const AA: u16 = 0x0400;
    pub(super) const TC: u16 = 0x0200;
    pub(super) const RD: u16 = 0x0100;
    pub(super) const RA: u16 = 0x0080;
    pub(super) const AD: u16 = 0x0020;
    pub(super) const CD: u16 = 0x0010;
}
