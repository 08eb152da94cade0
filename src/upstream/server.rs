//! One server: a question put to it, over whatever it is asked, its health, and its counters.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::answer::answer;
use super::connection::Link;
use super::cookie::Cookies;
use super::endpoint::{ServerSettings, Transport};
use super::failure::Failure;
use super::health::{Health, Standing};
use super::query::{Query, Wanted};
use super::random::Random;
use super::udp::{Outcome, Pace};
use super::{Port, Ports};
use crate::record::{Answer, Origin, Question};
use crate::time::Clock;
use crate::wire;

/// A server's reply.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub(super) answer: Answer,
    /// As it came.
    pub(super) message: Vec<u8>,
    /// The server says that it validated it (AD), and nobody else can have said so.
    pub(super) authentic: bool,
}

/// A server with everything that is kept for it.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) address: SocketAddr,
    /// Its number among the servers of all upstreams.
    number: usize,
    transport: Transport,
    wanted: Wanted,
    clock: Clock,
    link: Arc<Link>,
    cookies: Cookies,
    health: Mutex<Health>,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    answered: AtomicU64,
    timeouts: AtomicU64,
    failures: AtomicU64,
    mismatches: AtomicU64,
}

/// One server's state, for metrics and status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerHealth {
    /// The upstream's name.
    pub upstream: Arc<str>,
    /// The server's address.
    pub address: SocketAddr,
    /// How it is asked: udp, tcp, tls or https.
    pub transport: &'static str,
    /// Questions that it answered.
    pub answered: u64,
    /// Questions that it did not answer in time.
    pub timeouts: u64,
    /// Questions to which it gave an error code or a reply of no use, or for which it could not be reached.
    pub failures: u64,
    /// Messages from its address that were not the reply awaited: forged, late or altered.
    pub mismatches: u64,
    /// Connections that were opened to it.
    pub connections: u64,
    /// TLS handshakes in which it proved who it is.
    pub handshakes: u64,
    /// TLS handshakes that failed.
    pub handshake_failures: u64,
    /// The smoothed round trip; `None` before its first reply.
    pub round_trip: Option<Duration>,
    /// Three failures in a row or more: it is asked only where the others failed, and for a trial now and then.
    pub out: bool,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Server {
    pub(super) fn new(number: usize, transport: Transport, link: Link, wanted: Wanted, clock: &Clock) -> Self {
        Self {
            address: link.address,
            number,
            transport,
            wanted,
            clock: clock.clone(),
            link: Arc::new(link),
            cookies: Cookies::default(),
            health: Mutex::default(),
            counts: Counts::default(),
        }
    }

    /// Where and how it is asked.
    pub(super) fn described(&self) -> ServerSettings {
        ServerSettings { address: self.address, transport: self.transport.clone() }
    }

    /// How it is connected to.
    pub(super) const fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// How many descriptors one runtime has open to it under load.
    pub(super) const fn sockets(&self) -> usize {
        if matches!(self.transport, Transport::Udp) { super::udp::SOCKETS } else { 1 }
    }

    /// Puts the question to this server and takes its answer. `refused` is called where another server had better
    /// be asked already.
    ///
    /// # Errors
    /// What the server did instead of answering.
    pub(super) async fn ask(
        &self,
        question: &Question,
        origin: &Origin,
        pace: Pace,
        ports: &Ports,
        refused: impl FnMut(),
    ) -> Result<Reply, Failure> {
        let result = self.exchange(question, origin, pace, ports, refused).await;
        count(match result {
            Ok(_) => &self.counts.answered,
            Err(Failure::Timeout) => &self.counts.timeouts,
            Err(_) => &self.counts.failures,
        });
        match result {
            Ok(_) => self.health.lock().answered(),
            // Whether a code speaks against the server or the question is seen by what the others say.
            Err(Failure::Rcode(..)) => {}
            Err(_) => self.blame(),
        }
        result
    }

    async fn exchange(
        &self,
        question: &Question,
        origin: &Origin,
        pace: Pace,
        ports: &Ports,
        refused: impl FnMut(),
    ) -> Result<Reply, Failure> {
        let random = &ports.random;
        let deadline = pace.deadline;
        let port = ports.of_servers.get(self.number).ok_or(std::io::ErrorKind::AddrNotAvailable)?;
        let over_udp = match self.transport {
            Transport::Udp => self.ask_over_udp(question, pace, port, random, refused).await?,
            _ => None,
        };
        let message = match over_udp {
            Some(message) => message,
            None => {
                let query = Query::new(question, self.wanted, random)?;
                if self.transport == Transport::Udp {
                    let query = query.showing(self.cookies.show(random)?);
                    let message = port.connection.ask(query, deadline).await?;
                    self.cookies.learn_for_sure(&message);
                    message
                } else {
                    let started = self.clock.tick();
                    let message = port.connection.ask(query, deadline).await?;
                    self.heard(self.clock.tick().since(started));
                    message
                }
            }
        };
        // It repeats the question: that made it the reply.
        let parsed = wire::parse_reply(&message, question).map_err(Failure::Unreadable)?;
        let authentic = parsed.authentic && self.vouches();
        Ok(Reply { answer: answer(question, parsed, origin)?, message, authentic })
    }

    /// Whether nobody on the way can have said what it says: it is on this host, or it has proved who it is.
    fn vouches(&self) -> bool {
        self.link.is_encrypted() || self.address.ip().is_loopback()
    }

    /// The whole reply; `None`: ask over TCP.
    async fn ask_over_udp(
        &self,
        question: &Question,
        mut pace: Pace,
        port: &Port,
        random: &Random,
        mut refused: impl FnMut(),
    ) -> Result<Option<Vec<u8>>, Failure> {
        // RFC 7873 §5.3: of BADCOOKIE the client "should retry the request using the new Server Cookie", and where that
        // is refused too, "it SHOULD retry the request using TCP".
        for _ in 0..2 {
            let started = self.clock.tick();
            let cookie = self.cookies.show(random)?;
            let shows = cookie.is_some();
            let query = Query::new(question, self.wanted, random)?.showing(cookie);
            let mismatch = || count(&self.counts.mismatches);
            let outcome = port.sockets.ask(&query, &pace, started, random, &mut refused, mismatch).await?;
            if outcome != Outcome::Suspect {
                self.heard(self.clock.tick().since(started));
            }
            match outcome {
                Outcome::Reply(message) if shows && self.cookies.learn(&message) => pace.begin = Instant::now(),
                Outcome::Reply(message) => return Ok(Some(message)),
                Outcome::Incomplete | Outcome::Suspect => return Ok(None),
            }
        }
        Ok(None)
    }

    /// A reply came after this time.
    pub(super) fn heard(&self, round_trip: Duration) {
        self.health.lock().heard(round_trip);
    }

    /// It failed where it should not have.
    pub(super) fn blame(&self) {
        let now = self.clock.tick();
        self.health.lock().failed(now);
    }

    /// Another server answered before this one did, although this one was given its time.
    pub(super) fn outrun(&self) {
        count(&self.counts.timeouts);
        self.blame();
    }

    /// What servers are ordered by: the standing, then the round trip in steps. A server that failed is on trial
    /// for one question, and the caller must ask it.
    pub(super) fn rank(&self) -> (Standing, u128) {
        let mut health = self.health.lock();
        let standing = if health.is_well() { Standing::Ready } else { health.standing(self.clock.tick()) };
        (standing, health.pace())
    }

    /// How long to wait before another server is asked as well.
    pub(super) fn patience(&self) -> Duration {
        self.health.lock().patience()
    }

    /// Its state.
    pub(super) fn report(&self, upstream: &Arc<str>) -> ServerHealth {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let health = self.health.lock();
        ServerHealth {
            upstream: Arc::clone(upstream),
            address: self.address,
            transport: self.transport.as_str(),
            answered: read(&self.counts.answered),
            timeouts: read(&self.counts.timeouts),
            failures: read(&self.counts.failures),
            mismatches: read(&self.counts.mismatches),
            connections: read(&self.link.connections),
            handshakes: read(&self.link.handshakes),
            handshake_failures: read(&self.link.handshake_failures),
            round_trip: health.smoothed(),
            out: health.is_out(),
        }
    }
}
