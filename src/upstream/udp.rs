//! UDP to one server: sockets with random ports, one query in flight on each.
//!
//! A guesser must hit id, port and letter case at once. Every query takes a socket of its own: a fresh one at a low
//! rate, one picked at random out of 512 at a high one. A socket is used for 32 queries or 10 s, and never again
//! once a query ended on it without its reply, or was sent on it twice: a late reply would meet the next query.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

use super::failure::Failure;
use super::query::{Match, Query, is_truncated};
use crate::time::{Clock, Tick};
use crate::wire::UDP_SIZE;

/// From this many sockets on they are used again: 9 bits of the port's 16 that a guesser must still hit.
const SOCKETS: usize = 512;
/// A socket's life in queries.
const USES: u32 = 32;
/// A socket's life in time.
const LIFE: Duration = Duration::from_secs(10);
/// Ports below are privileged (IANA system ports).
const FIRST_PORT: u16 = 1024;
/// Binds of random ports before the kernel chooses one.
const BIND_ATTEMPTS: usize = 8;
/// This many messages that are not the reply, in one query's time, mean that somebody guesses.
const MISMATCHES: u32 = 2;
/// A query is sent at most so often.
const SENDS: u32 = 5;
/// A closed port refuses at once and again; a forged ICMP error would have to guess the port twice.
const REFUSALS: u32 = 2;

/// What UDP came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The whole reply.
    Reply(Vec<u8>),
    /// The server answered, but too much for a datagram, or in other letter case: ask it over TCP.
    Incomplete,
    /// Messages came that are not the reply: ask over TCP, where nobody can guess.
    Suspect,
}

/// How long to try.
pub(super) struct Pace {
    /// The end.
    pub(super) deadline: Instant,
    /// The query is sent again after this, then after twice as long, and so on.
    pub(super) resend: Duration,
}

/// The sockets to one server.
#[derive(Debug)]
pub(super) struct Sockets {
    server: SocketAddr,
    clock: Clock,
    pool: Mutex<Pool>,
}

#[derive(Debug, Default)]
struct Pool {
    idle: Vec<Slot>,
    busy: usize,
    swept: Tick,
}

#[derive(Debug)]
struct Slot {
    socket: UdpSocket,
    opened: Tick,
    uses: u32,
}

/// One query's claim on the pool, given up when dropped.
struct Loan<'a> {
    sockets: &'a Sockets,
    /// The socket, if it may be used again.
    back: Option<Slot>,
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        let mut pool = self.sockets.pool.lock();
        pool.busy = pool.busy.saturating_sub(1);
        pool.idle.extend(self.back.take());
    }
}

impl Sockets {
    pub(super) fn new(server: SocketAddr, clock: Clock) -> Self {
        Self { server, clock, pool: Mutex::default() }
    }

    /// Sends `query` until its reply comes. `refused` is called at each ICMP error, `mismatch` at each message
    /// that is not the reply; neither ends the wait by itself.
    ///
    /// # Errors
    /// [`Failure::Timeout`] or [`Failure::Network`].
    pub(super) async fn ask(
        &self,
        query: &Query,
        pace: &Pace,
        mut refused: impl FnMut(),
        mut mismatch: impl FnMut(),
    ) -> Result<Outcome, Failure> {
        let (mut loan, slot) = self.borrow().await?;
        // One octet more than asked for, to see what is too long.
        let mut buffer = [0; UDP_SIZE as usize + 1];
        let (mut sends, mut refusals, mut mismatches) = (0, 0, 0);
        // Whatever the server's pace, the query goes out three times before the deadline: datagrams get lost.
        let mut resend = pace.resend.min(pace.deadline.saturating_duration_since(Instant::now()) / 3);
        loop {
            let sent = match slot.socket.send(query.bytes()).await {
                // An ICMP error of the send before is told by this one, which then did not send.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => slot.socket.send(query.bytes()).await,
                other => other,
            };
            sends += 1;
            match sent {
                Err(error) if error.kind() != io::ErrorKind::ConnectionRefused => return Err(error.into()),
                _ => {}
            }
            let until = if sends < SENDS { (Instant::now() + resend).min(pace.deadline) } else { pace.deadline };
            resend *= 2;
            while let Ok(received) = timeout_at(until, slot.socket.recv_from(&mut buffer)).await {
                let (length, from) = match received {
                    Ok(received) => received,
                    Err(error) => {
                        refusals += 1;
                        refused();
                        if refusals >= REFUSALS {
                            return Err(error.into());
                        }
                        continue;
                    }
                };
                let message = buffer.get(..length).unwrap_or_default();
                // Before it was connected, the socket took datagrams from anywhere.
                let matched = if is_same(from, self.server) { query.matches(message) } else { Match::Mismatch };
                match matched {
                    Match::Mismatch => {
                        mismatches += 1;
                        mismatch();
                        if mismatches >= MISMATCHES {
                            return Ok(Outcome::Suspect);
                        }
                    }
                    Match::OtherCase => {
                        mismatch();
                        return Ok(Outcome::Incomplete);
                    }
                    Match::Reply => {
                        let complete = !is_truncated(message) && length <= usize::from(UDP_SIZE);
                        let message = message.to_vec();
                        if sends == 1 && mismatches == 0 {
                            loan.back = self.renewable(slot);
                        }
                        return Ok(if complete { Outcome::Reply(message) } else { Outcome::Incomplete });
                    }
                }
            }
            if Instant::now() >= pace.deadline {
                return Err(Failure::Timeout);
            }
        }
    }

    /// The socket, if it may be used once more.
    fn renewable(&self, mut slot: Slot) -> Option<Slot> {
        slot.uses += 1;
        (slot.uses < USES && self.clock.tick().since(slot.opened) < LIFE).then_some(slot)
    }

    async fn borrow(&self) -> Result<(Loan<'_>, Slot), Failure> {
        let now = self.clock.tick();
        let mut random = [0; 4];
        getrandom::fill(&mut random)?;
        let reused = {
            let mut pool = self.pool.lock();
            pool.sweep(now);
            pool.busy += 1;
            if pool.idle.len() + pool.busy > SOCKETS { pool.pick(random) } else { None }
        };
        // From here on the drop of the loan keeps the count.
        let loan = Loan { sockets: self, back: None };
        let slot = match reused {
            Some(slot) => slot,
            // Out of descriptors, an idle one must do.
            None => self.open(now).await.or_else(|error| self.pool.lock().pick(random).ok_or(error))?,
        };
        Ok((loan, slot))
    }

    async fn open(&self, now: Tick) -> io::Result<Slot> {
        let any: IpAddr = match self.server {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let mut bound = None;
        for _ in 0..BIND_ATTEMPTS {
            match UdpSocket::bind((any, random_port()?)).await {
                Ok(socket) => {
                    bound = Some(socket);
                    break;
                }
                // Also for a port that another program's wildcard socket forbids.
                Err(error) if matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied) => {}
                Err(error) => return Err(error),
            }
        }
        let socket = match bound {
            Some(socket) => socket,
            None => UdpSocket::bind((any, 0)).await?,
        };
        socket.connect(self.server).await?;
        Ok(Slot { socket, opened: now, uses: 0 })
    }
}

impl Pool {
    /// Closes what is too old, now and then.
    fn sweep(&mut self, now: Tick) {
        if now.since(self.swept) >= LIFE / 10 {
            self.swept = now;
            self.idle.retain(|slot| now.since(slot.opened) < LIFE);
        }
    }

    /// An idle socket at random.
    fn pick(&mut self, random: [u8; 4]) -> Option<Slot> {
        let length = u32::try_from(self.idle.len()).ok().filter(|length| *length > 0)?;
        let index = u32::from_ne_bytes(random) % length;
        Some(self.idle.swap_remove(usize::try_from(index).ok()?))
    }
}

/// The same address and port; the flow label and scope of IPv6 do not count.
fn is_same(a: SocketAddr, b: SocketAddr) -> bool {
    a.ip() == b.ip() && a.port() == b.port()
}

/// An even pick of 1024–65535.
fn random_port() -> io::Result<u16> {
    loop {
        let mut random = [0; 2];
        getrandom::fill(&mut random).map_err(|_| io::ErrorKind::Other)?;
        let port = u16::from_ne_bytes(random);
        if port >= FIRST_PORT {
            return Ok(port);
        }
    }
}
