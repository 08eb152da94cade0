//! What arrived, and from whom: the sender, and what it says of whose query it is.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::audit::Transport;
use crate::net::canonical;
use crate::policy::{Asker, Policy};
use crate::time::{Now, Wall};
use crate::wire::{Echo, Fault, Malformed, Proxied, Query, named_by_subnet, read_proxy};

/// One datagram or stream message, besides its bytes.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Who sent it.
    pub peer: SocketAddr,
    /// How.
    pub transport: Transport,
    /// When it was received.
    pub at: Now,
    /// What came with it.
    pub said: Said,
}

/// What a sender says of who asks.
#[derive(Clone, Debug)]
pub enum Said {
    /// Nothing: it asks itself, unless it is a forwarder whose queries say more.
    Nothing,
    /// A PROXY header: this client.
    Proxied(SocketAddr),
    /// A client subnet: this client.
    Subnet(IpAddr),
    /// That it asks for somebody, and not for whom.
    Nobody,
    /// Nothing, where every message has to have a PROXY header.
    Unproxied,
    /// A certificate: it asks itself, and these are its names.
    Certificate(Arc<Shown>),
}

/// A client's certificate as the handshake found it good.
#[derive(Debug)]
pub struct Shown {
    /// Of hosts, in lower case, and URIs.
    pub names: Vec<Box<str>>,
    /// The end of its life: a connection and a resumed session may outlive it.
    pub not_after: Wall,
    /// Its authority is still among those that are trusted.
    pub trusted: Arc<AtomicBool>,
}

impl Shown {
    /// What it says at `now`.
    fn names(&self, now: Wall) -> &[Box<str>] {
        if now <= self.not_after && self.trusted.load(Ordering::Acquire) { &self.names } else { &[] }
    }
}

impl Said {
    /// What a PROXY header says, and what comes behind it: of no header, all of it.
    #[must_use]
    pub fn of_header(packet: &[u8]) -> (Self, &[u8]) {
        match read_proxy(packet) {
            Some((Proxied::Client(client), message)) => (Self::Proxied(client), message),
            Some((Proxied::Sender, message)) => (Self::Nothing, message),
            Some((Proxied::Nobody, message)) => (Self::Nobody, message),
            None => (Self::Unproxied, packet),
        }
    }
}

impl Arrival {
    /// From a sender that has said nothing of who asks.
    #[must_use]
    pub const fn new(peer: SocketAddr, transport: Transport, at: Now) -> Self {
        Self { peer, transport, at, said: Said::Nothing }
    }

    /// The sender's address in canonical form.
    #[must_use]
    pub const fn sender(&self) -> IpAddr {
        canonical(self.peer.ip())
    }

    /// Whose query it is, as its record says: the client's address in canonical form, and the port that it is known to ask
    /// from.
    #[must_use]
    pub const fn client(&self) -> SocketAddr {
        let (address, port) = match self.said {
            Said::Proxied(client) => (client.ip(), client.port()),
            Said::Subnet(client) => (client, self.peer.port()),
            Said::Nothing | Said::Nobody | Said::Unproxied | Said::Certificate(_) => (self.peer.ip(), self.peer.port()),
        };
        SocketAddr::new(canonical(address), port)
    }

    /// To whom a cookie is given: who sent it, or whom a PROXY header names, which is who hears the reply.
    pub(super) const fn hearer(&self) -> IpAddr {
        match self.said {
            Said::Proxied(client) => canonical(client.ip()),
            _ => self.sender(),
        }
    }

    /// Who asks under `policy`; `None`: nobody of a segment.
    #[must_use]
    pub fn asker(&self, policy: &Policy) -> Option<Asker> {
        match &self.said {
            Said::Nothing => policy.asker(self.sender()),
            Said::Proxied(_) | Said::Subnet(_) => policy.named(self.sender(), self.client().ip()),
            Said::Nobody | Said::Unproxied => None,
            Said::Certificate(shown) => policy.certified(self.sender(), shown.names(self.at.wall)),
        }
    }

    /// Whether the sender is one to say who asks, and has not said it.
    pub(super) fn is_unnamed(&self, policy: &Policy) -> bool {
        match &self.said {
            Said::Nothing => policy.forwarder_at(self.sender()).is_some(),
            Said::Nobody | Said::Unproxied => true,
            Said::Proxied(_) | Said::Subnet(_) | Said::Certificate(_) => false,
        }
    }

    /// What is behind the header of a datagram from a forwarder that names its clients so.
    pub(super) fn read_header<'a>(&mut self, packet: &'a [u8]) -> &'a [u8] {
        let (said, message) = Said::of_header(packet);
        self.said = said;
        message
    }

    /// Judges a message over QUIC, one that lacks its PROXY header, or one with a client subnet: the word of a forwarder that names its clients
    /// so. Anybody else's is nothing, and not repeated.
    #[cold]
    pub(super) fn judge<'a>(
        &mut self,
        policy: &Policy,
        read: Result<Query<'a>, Malformed<'a>>,
    ) -> Result<Query<'a>, Malformed<'a>> {
        if matches!(self.said, Said::Unproxied) {
            return Err(match read {
                Ok(query) => faulty(&query, Fault::Unproxied),
                Err(malformed) => Malformed { why: Fault::Unproxied, answer: None, ..malformed },
            });
        }
        let mut query = read?;
        if self.transport == Transport::Doq {
            // RFC 9250 §4.2.1: "the DNS Message ID MUST be set to 0", and §5.5.2: "Clients MUST NOT send the
            // edns-tcp-keepalive EDNS(0) Option"; either is a fatal error (§4.3.3).
            if query.echo.id != 0 {
                return Err(faulty(&query, Fault::Id));
            }
            if query.echo.edns.is_some_and(|edns| edns.keepalive) {
                return Err(faulty(&query, Fault::Keepalive));
            }
            if query.echo.subnet.is_none() {
                return Ok(query);
            }
        }
        if matches!(self.said, Said::Nothing | Said::Certificate(_)) && policy.takes_subnet(self.sender()) {
            match query.echo.subnet.map_or(Ok(None), named_by_subnet) {
                Ok(client) => self.said = client.map_or(Said::Nobody, Said::Subnet),
                Err(fault) => return Err(faulty(&query, fault)),
            }
        } else {
            query.echo.subnet = None;
        }
        Ok(query)
    }
}

/// A query that is no use for this fault of what came with it.
pub(super) fn faulty<'a>(query: &Query<'a>, why: Fault) -> Malformed<'a> {
    let echo = Echo { subnet: None, ..query.echo };
    let answer = why.rcode().map(|rcode| (rcode, echo));
    Malformed { why, id: Some(echo.id), name: Some(query.name), kind: Some(query.kind), answer }
}
