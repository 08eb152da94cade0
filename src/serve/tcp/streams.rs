//! Who is connected: the limits, the seats taken, and how connections ended.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;

use crate::gate::STREAM_IDLE;
use crate::net::host;

/// What connections may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections in all.
    pub total: usize,
    /// Connections of clients in no segment, all together: they are told REFUSED, and must not take the others' seats.
    pub strangers: usize,
    /// Connections of one client, as [`host`] counts it.
    pub per_client: usize,
    /// Connections of one forwarder, which asks for many.
    pub per_forwarder: usize,
    /// Queries of one connection that wait for their answers; while so many do, nothing more is read.
    pub in_flight: usize,
    /// How long a TLS handshake may take.
    pub handshake: Duration,
    /// The longest message that is read, in bytes, at most 65,535. Queries are short.
    pub message: usize,
    /// How long a connection may stay without a query, its first one included.
    pub idle: Duration,
    /// How long a message may take from its first byte to its last.
    pub receive: Duration,
    /// How long the client may take to make room for one answer.
    pub send: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            total: 1_024,
            strangers: 64,
            per_client: 16,
            per_forwarder: 256,
            in_flight: 16,
            handshake: Duration::from_secs(3),
            message: 4_096,
            idle: STREAM_IDLE,
            receive: Duration::from_secs(3),
            send: Duration::from_secs(3),
        }
    }
}

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ending {
    /// The client closed it.
    Peer,
    /// The handshake failed, or was not complete within [`Limits::handshake`].
    Handshake,
    /// A forwarder's PROXY header was missing, broken, or not complete within [`Limits::receive`].
    Unproxied,
    /// No query for [`Limits::idle`].
    Idle,
    /// A message was not complete within [`Limits::receive`].
    Partial,
    /// A message of length 0.
    Empty,
    /// A message above [`Limits::message`].
    Oversize,
    /// An answer was not taken within [`Limits::send`].
    Stalled,
    /// Reading or writing failed, or what came is not what is spoken there.
    Broken,
    /// The node stops.
    Stopped,
    /// Closed at once: [`Limits::total`] or [`Limits::strangers`].
    Full,
    /// Closed at once: [`Limits::per_client`] or [`Limits::per_forwarder`].
    Client,
}

impl Ending {
    /// Every ending.
    pub const ALL: [Self; 12] = [
        Self::Peer,
        Self::Handshake,
        Self::Unproxied,
        Self::Idle,
        Self::Partial,
        Self::Empty,
        Self::Oversize,
        Self::Stalled,
        Self::Broken,
        Self::Stopped,
        Self::Full,
        Self::Client,
    ];

    /// The word in metric labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Peer => "peer",
            Self::Handshake => "handshake",
            Self::Unproxied => "unproxied",
            Self::Idle => "idle",
            Self::Partial => "partial",
            Self::Empty => "empty",
            Self::Oversize => "oversize",
            Self::Stalled => "stalled",
            Self::Broken => "broken",
            Self::Stopped => "stopped",
            Self::Full => "full",
            Self::Client => "client",
        }
    }
}

/// Who a peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// A client of a segment.
    Client,
    /// It asks for many.
    Forwarder,
    /// In no segment.
    Stranger,
}

/// The connections of all stream doors together.
#[derive(Debug)]
pub struct Streams {
    limits: Limits,
    seats: Mutex<Seats>,
    /// In the order of [`Ending::ALL`].
    endings: [AtomicU64; Ending::ALL.len()],
}

/// Connections, in all and by peer; a peer without any has no entry, so the table is bounded by the total.
#[derive(Debug, Default)]
struct Seats {
    taken: usize,
    strangers: usize,
    by_peer: HashMap<IpAddr, usize>,
}

impl Streams {
    /// Nobody is connected.
    #[must_use]
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            limits: Limits { message: limits.message.min(usize::from(u16::MAX)), ..limits },
            seats: Mutex::default(),
            endings: Default::default(),
        })
    }

    /// What each of them may take.
    #[cfg(feature = "quic")]
    pub(in crate::serve) const fn limits(&self) -> &Limits {
        &self.limits
    }

    /// How many connections are open.
    #[must_use]
    pub fn open(&self) -> usize {
        self.seats.lock().taken
    }

    /// How many connections ended, by reason.
    pub fn endings(&self) -> impl Iterator<Item = (Ending, u64)> {
        Ending::ALL.into_iter().zip(self.endings.iter().map(|count| count.load(Relaxed)))
    }

    pub(in crate::serve) fn count(&self, ending: Ending) {
        let counts = Ending::ALL.iter().zip(&self.endings).filter(|(each, _)| **each == ending);
        counts.for_each(|(_, count)| _ = count.fetch_add(1, Relaxed));
    }

    /// A seat for one connection.
    ///
    /// # Errors
    /// [`Ending::Full`] or [`Ending::Client`].
    pub(in crate::serve) fn admit(self: &Arc<Self>, peer: IpAddr, standing: Standing) -> Result<Seat, Ending> {
        let peer = host(peer);
        let most = if standing == Standing::Forwarder { self.limits.per_forwarder } else { self.limits.per_client };
        let stranger = standing == Standing::Stranger;
        let mut seats = self.seats.lock();
        if seats.taken >= self.limits.total || stranger && seats.strangers >= self.limits.strangers {
            return Err(Ending::Full);
        }
        let of_peer = seats.by_peer.get(&peer).copied().unwrap_or(0);
        if of_peer >= most {
            return Err(Ending::Client);
        }
        seats.by_peer.insert(peer, of_peer + 1);
        seats.taken += 1;
        seats.strangers += usize::from(stranger);
        drop(seats);
        Ok(Seat { streams: Arc::clone(self), peer, stranger })
    }
}

/// One connection's place, given back when dropped.
#[derive(Debug)]
pub(in crate::serve) struct Seat {
    streams: Arc<Streams>,
    peer: IpAddr,
    stranger: bool,
}

impl Seat {
    pub(in crate::serve) fn limits(&self) -> &Limits {
        &self.streams.limits
    }

    /// Gives the place back and counts why.
    pub(in crate::serve) fn leave(self, ending: Ending) {
        self.streams.count(ending);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seats = self.streams.seats.lock();
        seats.taken -= 1;
        seats.strangers -= usize::from(self.stranger);
        if let Some(count) = seats.by_peer.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                seats.by_peer.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SMALL: Limits = Limits {
        total: 10,
        strangers: 3,
        per_client: 2,
        per_forwarder: 4,
        in_flight: 1,
        handshake: Duration::ZERO,
        message: 512,
        idle: Duration::ZERO,
        receive: Duration::ZERO,
        send: Duration::ZERO,
    };

    #[test]
    fn a_mapped_address_is_the_same_client() {
        let streams = Streams::new(SMALL);
        let admit = |peer: &str| streams.admit(peer.parse().unwrap(), Standing::Client);
        let seats = ["192.0.2.1", "::ffff:192.0.2.1"].map(|peer| admit(peer).unwrap());
        assert_eq!(admit("192.0.2.1").unwrap_err(), Ending::Client);
        drop(seats);
        assert!(streams.seats.lock().by_peer.is_empty());
    }

    proptest! {
        #[test]
        fn no_sequence_of_comings_and_goings_passes_a_limit(steps in prop::collection::vec((any::<bool>(), 0..10_u8), 0..200)) {
            let address = |n: u8| IpAddr::from([192, 0, 2, n]);
            // 0 and 1 are forwarders, 6 and above strangers.
            let standing = |n: u8| match n {
                0 | 1 => Standing::Forwarder,
                2..6 => Standing::Client,
                _ => Standing::Stranger,
            };
            let streams = Streams::new(SMALL);
            let mut seated: Vec<(u8, Seat)> = Vec::new();
            for (comes, n) in steps {
                if comes {
                    let mine = seated.iter().filter(|(peer, _)| *peer == n).count();
                    let most = if n < 2 { 4 } else { 2 };
                    let strangers = seated.iter().filter(|(peer, _)| *peer >= 6).count();
                    let full = seated.len() == 10 || n >= 6 && strangers == 3;
                    match streams.admit(address(n), standing(n)) {
                        Ok(seat) => { prop_assert!(!full && mine < most); seated.push((n, seat)); }
                        Err(Ending::Full) => prop_assert!(full),
                        Err(ending) => { prop_assert_eq!(ending, Ending::Client); prop_assert_eq!(mine, most); }
                    }
                } else if let Some(at) = seated.iter().position(|(peer, _)| *peer == n) {
                    seated.remove(at);
                }
                prop_assert_eq!(streams.open(), seated.len());
            }
        }
    }
}
