//! UDP to one server: sockets with random ports, one query in flight on each.
//!
//! A guesser must hit id, port and letter case at once. Every query takes a socket of its own: a fresh one at a low
//! rate, one picked at random out of 512 at a high one. A socket is used for 32 queries or 10 s, and never again
//! once a query ended on it without its reply, or was sent on it twice: a late reply would meet the next query.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use parking_lot::Mutex;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, timeout_at};

use super::failure::Failure;
use super::query::{Match, Query, is_truncated};
use super::random::Random;
use crate::net::ignore_path_mtu;
use crate::time::Tick;
use crate::wire::UDP_SIZE;

/// From this many sockets on they are used again: 9 bits of the port's 16 that a guesser must still hit.
pub(super) const SOCKETS: usize = 512;
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

/// What a socket is watched for: datagrams and ICMP errors, and not that each send has left.
const WATCHED: Interest = Interest::READABLE.add(Interest::ERROR);

/// What UDP came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The whole reply.
    Reply(Vec<u8>),
    /// The server answered, but too much for a datagram, or in a doubtful way: ask it over TCP.
    Incomplete,
    /// Messages came that are not the reply: ask over TCP, where nobody can guess.
    Suspect,
}

/// How long to try.
pub(super) struct Pace {
    /// Now.
    pub(super) begin: Instant,
    /// The end.
    pub(super) deadline: Instant,
    /// The query is sent again after this, then after twice as long, and so on.
    pub(super) resend: Duration,
}

/// The sockets to one server. The runtime on which they are first used watches them: they belong to that one.
#[derive(Debug)]
pub(super) struct Sockets {
    server: SocketAddr,
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
    socket: AsyncFd<UdpSocket>,
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
    pub(super) fn new(server: SocketAddr) -> Self {
        Self { server, pool: Mutex::default() }
    }

    /// Sends `query` from `now` on until its reply comes. `refused` is called at each ICMP error, `mismatch` at each message
    /// that is not the reply; neither ends the wait by itself.
    ///
    /// # Errors
    /// [`Failure::Timeout`] or [`Failure::Network`].
    pub(super) async fn ask(
        &self,
        query: &Query,
        pace: &Pace,
        now: Tick,
        random: &Random,
        mut refused: impl FnMut(),
        mut mismatch: impl FnMut(),
    ) -> Result<Outcome, Failure> {
        let (mut loan, mut slot) = self.borrow(now, random)?;
        let (mut sends, mut refusals, mut mismatches) = (0, 0, 0);
        // Datagrams get lost. Whatever the server's pace, the query goes out three times: now, after a quarter of the
        // time and after three.
        let mut resend = pace.resend.min(pace.deadline.saturating_duration_since(pace.begin) / 4);
        let mut until = pace.begin;
        loop {
            let sent = match slot.socket.get_ref().send(query.bytes()) {
                // An ICMP error of the send before is told by this one, which then did not send.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    slot.socket.get_ref().send(query.bytes())
                }
                other => other,
            };
            sends += 1;
            match sent {
                // No room to send: lost, as on the way.
                Err(error) if !matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::WouldBlock) => {
                    return Err(error.into());
                }
                _ => {}
            }
            until = if sends < SENDS { (until + resend).min(pace.deadline) } else { pace.deadline };
            resend *= 2;
            while let Ok(received) = timeout_at(until, receive(&mut slot.socket, self.server, query)).await {
                match received {
                    Err(error) => {
                        refusals += 1;
                        refused();
                        if refusals >= REFUSALS {
                            return Err(error.into());
                        }
                    }
                    Ok(Received::Mismatch) => {
                        mismatches += 1;
                        mismatch();
                        if mismatches >= MISMATCHES {
                            return Ok(Outcome::Suspect);
                        }
                    }
                    Ok(Received::Doubtful) => {
                        mismatch();
                        return Ok(Outcome::Incomplete);
                    }
                    Ok(Received::Reply(message)) => {
                        if sends == 1 && mismatches == 0 {
                            loan.back = slot.renewed(now);
                        }
                        return Ok(message.map_or(Outcome::Incomplete, Outcome::Reply));
                    }
                }
            }
            if Instant::now() >= pace.deadline {
                return Err(Failure::Timeout);
            }
        }
    }

    fn borrow(&self, now: Tick, random: &Random) -> Result<(Loan<'_>, Slot), Failure> {
        let dice = u32::from_ne_bytes(random.take()?);
        let reused = {
            let mut pool = self.pool.lock();
            pool.sweep(now);
            pool.busy += 1;
            if pool.idle.len() + pool.busy > SOCKETS { pool.pick(dice) } else { None }
        };
        // From here on the drop of the loan keeps the count.
        let loan = Loan { sockets: self, back: None };
        let slot = match reused {
            Some(slot) => slot,
            // Out of descriptors, an idle one must do.
            None => self.open(random, now).or_else(|error| self.pool.lock().pick(dice).ok_or(error))?,
        };
        Ok((loan, slot))
    }

    fn open(&self, random: &Random, now: Tick) -> io::Result<Slot> {
        let any: IpAddr = match self.server {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = Socket::new(Domain::for_address(self.server), Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
        let bind = |port| socket.bind(&SocketAddr::new(any, port).into());
        let mut bound = false;
        for _ in 0..BIND_ATTEMPTS {
            match bind(random_port(random)?) {
                Ok(()) => {
                    bound = true;
                    break;
                }
                // Also for a port that another program's wildcard socket forbids.
                Err(error) if matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied) => {}
                Err(error) => return Err(error),
            }
        }
        if !bound {
            bind(0)?;
        }
        ignore_path_mtu(&socket, self.server.is_ipv6())?;
        socket.connect(&self.server.into())?;
        #[expect(
            deprecated,
            reason = "what replaces it is unsafe for types that change their descriptor; this one does not"
        )]
        let socket = AsyncFd::with_interest(UdpSocket::from(socket), WATCHED)?;
        Ok(Slot { socket, opened: now, uses: 0 })
    }
}

impl Slot {
    /// The socket, if it may be used once more.
    fn renewed(mut self, now: Tick) -> Option<Self> {
        self.uses += 1;
        (self.uses < USES && now.since(self.opened) < LIFE).then_some(self)
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
    fn pick(&mut self, dice: u32) -> Option<Slot> {
        let length = u32::try_from(self.idle.len()).ok().filter(|length| *length > 0)?;
        Some(self.idle.swap_remove(usize::try_from(dice % length).ok()?))
    }
}

/// What a datagram is to the query in flight.
enum Received {
    /// The reply; `None`: not the whole of it.
    Reply(Option<Vec<u8>>),
    Doubtful,
    Mismatch,
}

/// Waits for one datagram.
///
/// # Errors
/// An ICMP error that came for this socket.
async fn receive(socket: &mut AsyncFd<UdpSocket>, server: SocketAddr, query: &Query) -> io::Result<Received> {
    loop {
        let mut ready = socket.ready_mut(WATCHED).await?;
        // One octet more than asked for, to see what is too long.
        let mut buffer = [0; UDP_SIZE as usize + 1];
        let (length, from) = match ready.get_inner().recv_from(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                ready.clear_ready();
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        let message = buffer.get(..length).unwrap_or_default();
        // Before it was connected, the socket took datagrams from anywhere.
        let matched = if is_same(from, server) { query.matches(message) } else { Match::Mismatch };
        return Ok(match matched {
            Match::Mismatch => Received::Mismatch,
            Match::Doubtful => Received::Doubtful,
            Match::Reply => {
                // Nothing more is awaited; what comes next is told anew.
                ready.clear_ready();
                let whole = !is_truncated(message) && length <= usize::from(UDP_SIZE);
                Received::Reply(whole.then(|| message.to_vec()))
            }
        });
    }
}

/// The same address and port; the flow label and scope of IPv6 do not count.
fn is_same(a: SocketAddr, b: SocketAddr) -> bool {
    a.ip() == b.ip() && a.port() == b.port()
}

/// An even pick of 1024–65535.
fn random_port(random: &Random) -> io::Result<u16> {
    loop {
        let port = u16::from_ne_bytes(random.take().map_err(|_| io::ErrorKind::Other)?);
        if port >= FIRST_PORT {
            return Ok(port);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::fake::{Fake, changed, closed_port, good, question};
    use crate::upstream::query::Wanted;
    use std::collections::{HashMap, HashSet};
    use std::sync::Arc;
    use tokio::net::UdpSocket;
    use tokio::sync::Barrier;

    fn pace(resend_ms: u64, deadline_ms: u64) -> Pace {
        let (begin, resend) = (Instant::now(), Duration::from_millis(resend_ms));
        Pace { begin, deadline: begin + Duration::from_millis(deadline_ms), resend }
    }

    async fn ask(sockets: &Sockets, pace: &Pace) -> (Result<Outcome, Failure>, u32) {
        ask_at(Tick(0), sockets, pace).await
    }

    async fn ask_at(now: Tick, sockets: &Sockets, pace: &Pace) -> (Result<Outcome, Failure>, u32) {
        let mut mismatches = 0;
        let random = Random::default();
        let query = Query::new(&question(), Wanted::default(), &random).unwrap();
        let outcome = sockets.ask(&query, pace, now, &random, || (), || mismatches += 1).await;
        (outcome, mismatches)
    }

    #[tokio::test]
    async fn ports_vary_and_are_used_again_only_at_a_rate() {
        let fake = Fake::start(|seen, _| vec![good(&seen.message)]).await;
        let sockets = Sockets::new(fake.address);
        for _ in 0..SOCKETS {
            assert!(matches!(ask(&sockets, &pace(2000, 9000)).await, (Ok(Outcome::Reply(_)), 0)));
        }
        let ports = |from: usize| -> HashSet<u16> { fake.seen()[from..].iter().map(|seen| seen.from.port()).collect() };
        let first = ports(0);
        assert!(first.len() >= 400, "{} of 512", first.len());
        assert!(first.iter().all(|port| *port >= FIRST_PORT));
        for _ in 0..SOCKETS {
            ask(&sockets, &pace(2000, 9000)).await.0.unwrap();
        }
        let second = ports(SOCKETS);
        assert!(second.len() >= 256, "picked at random: {}", second.len());
        assert!(second.difference(&first).count() < 64, "open ones are used again");
        for _ in 0..32 {
            ask_at(Tick(0) + LIFE, &sockets, &pace(2000, 9000)).await.0.unwrap();
        }
        assert!(ports(2 * SOCKETS).intersection(&first).count() < 8, "after 10 s no socket is what it was");
        assert!(sockets.pool.lock().idle.len() <= 32);
    }

    #[tokio::test]
    async fn a_socket_ends_after_its_uses() {
        let fake = Fake::start(|seen, _| vec![good(&seen.message)]).await;
        let sockets = Sockets::new(fake.address);
        // As if all the others were busy: the one idle socket is picked each time.
        sockets.pool.lock().busy = SOCKETS;
        for _ in 0..3 * USES {
            ask(&sockets, &pace(2000, 9000)).await.0.unwrap();
        }
        let mut uses = HashMap::new();
        fake.seen().iter().for_each(|seen| *uses.entry(seen.from.port()).or_insert(0) += 1);
        assert_eq!(uses.into_values().collect::<Vec<u32>>(), [USES; 3]);
    }

    #[tokio::test]
    async fn each_socket_has_one_query_in_flight() {
        const QUERIES: usize = 600;
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let sockets = Arc::new(Sockets::new(socket.local_addr().unwrap()));
        let start = Arc::new(Barrier::new(QUERIES));
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..QUERIES {
            let (sockets, start) = (Arc::clone(&sockets), Arc::clone(&start));
            tasks.spawn(async move {
                start.wait().await;
                ask(&sockets, &pace(20_000, 60_000)).await.0.unwrap()
            });
        }
        // Nothing is answered before everything is in flight.
        let mut queries = HashMap::new();
        let mut buffer = [0; 512];
        while queries.len() < QUERIES {
            let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
            assert_eq!(queries.insert(from, buffer[..length].to_vec()), None, "one query a socket");
        }
        for (from, query) in queries {
            socket.send_to(&good(&query), from).await.unwrap();
        }
        assert_eq!(tasks.join_all().await.len(), QUERIES);
        assert_eq!(sockets.pool.lock().busy, 0);
    }

    #[tokio::test]
    async fn one_forged_message_is_ignored_and_two_mean_tcp() {
        type Forge = fn(Vec<u8>) -> Vec<u8>;
        let rows: [(&str, Forge); 7] = [
            ("id", |message| changed(message, 0, 1)),
            ("question", |message| changed(message, 14, 1)),
            ("type", |message| {
                let end = message.iter().skip(12).position(|byte| *byte == 0).unwrap() + 12;
                changed(message, end + 2, 1)
            }),
            ("a query", |message| changed(message, 2, 0x80)),
            ("opcode", |message| changed(message, 2, 0x10)),
            ("no question", |message| changed(message, 5, 1)),
            ("nothing", |_| Vec::new()),
        ];
        for (name, forge) in rows {
            let fake = Fake::start(move |seen, number| {
                let (good, bad) = (good(&seen.message), forge(good(&seen.message)));
                if number == 0 { vec![bad, good] } else { vec![bad.clone(), bad, good] }
            })
            .await;
            let sockets = Sockets::new(fake.address);
            assert!(matches!(ask(&sockets, &pace(2000, 9000)).await, (Ok(Outcome::Reply(_)), 1)), "{name}");
            assert!(sockets.pool.lock().idle.is_empty(), "a socket that was guessed at is not used again");
            assert_eq!(ask(&sockets, &pace(2000, 9000)).await, (Ok(Outcome::Suspect), 2), "{name}");
        }
    }

    #[tokio::test]
    async fn a_message_from_elsewhere_never_arrives() {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let elsewhere = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let sockets = Sockets::new(socket.local_addr().unwrap());
        let answering = async {
            let mut buffer = [0; 512];
            let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
            for _ in 0..3 {
                let _refused = elsewhere.send_to(&good(&buffer[..length]), from).await;
            }
            socket.send_to(&good(&buffer[..length]), from).await.unwrap();
        };
        let pace = pace(2000, 9000);
        let (outcome, ()) = tokio::join!(ask(&sockets, &pace), answering);
        assert!(matches!(outcome, (Ok(Outcome::Reply(_)), 0)), "{outcome:?}");
    }

    #[tokio::test]
    async fn what_is_no_whole_answer_goes_to_tcp() {
        type Spoil = fn(Vec<u8>) -> Vec<u8>;
        let rows: [(&str, u32, Spoil); 3] = [
            ("truncated", 0, |message| changed(message, 2, 0x02)),
            ("longer than was asked for", 0, |message| [message, vec![0; usize::from(UDP_SIZE)]].concat()),
            ("in other letter case", 1, |message| changed(message, 13, 0x20)),
        ];
        for (name, mismatches, spoil) in rows {
            let fake = Fake::start(move |seen, _| vec![spoil(good(&seen.message))]).await;
            let sockets = Sockets::new(fake.address);
            assert_eq!(ask(&sockets, &pace(2000, 9000)).await, (Ok(Outcome::Incomplete), mismatches), "{name}");
        }
    }

    #[tokio::test]
    async fn a_lost_query_is_sent_again_on_its_socket() {
        let fake = Fake::start(|seen, number| if number < 2 { Vec::new() } else { vec![good(&seen.message)] }).await;
        let sockets = Sockets::new(fake.address);
        assert!(matches!(ask(&sockets, &pace(20, 9000)).await, (Ok(Outcome::Reply(_)), 0)));
        let seen = fake.seen();
        assert!(seen.iter().all(|one| one.from == seen[0].from && one.message == seen[0].message));
        assert!(sockets.pool.lock().idle.is_empty(), "a late reply would meet the next query");
    }

    #[tokio::test]
    async fn silence_ends_at_the_deadline_after_three_queries() {
        let fake = Fake::start(|_, _| Vec::new()).await;
        let sockets = Sockets::new(fake.address);
        assert_eq!(ask(&sockets, &pace(60_000, 400)).await, (Err(Failure::Timeout), 0));
        assert_eq!(fake.seen().len(), 3);
        assert_eq!(sockets.pool.lock().busy, 0);
    }

    #[tokio::test]
    async fn a_closed_port_is_told_at_once_and_believed_the_second_time() {
        let sockets = Sockets::new(closed_port().await);
        let mut refused = 0;
        let random = Random::default();
        let query = Query::new(&question(), Wanted::default(), &random).unwrap();
        let outcome = sockets.ask(&query, &pace(20, 60_000), Tick(0), &random, || refused += 1, || ()).await;
        assert_eq!(outcome, Err(Failure::Network(io::ErrorKind::ConnectionRefused)));
        assert_eq!(refused, 2);
    }
}
