//! Several servers, one answer: who is asked first, when the next is asked as well, and what all failures come to.
//!
//! The first server is asked; the next one as soon as it fails, or after one and a half of its usual round trips
//! while it is still listened to. The first good answer wins. Servers that are out are asked only once every
//! other has failed.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use smallvec::SmallVec;
use tokio::time::{Instant, sleep_until};

use super::Ports;
use super::failure::{Failure, UpstreamError};
use super::health::Standing;
use super::server::{Reply, Server};
use super::udp::Pace;
use crate::record::{Origin, Question};

/// Puts `question` to the servers until one answers or `deadline` has passed.
///
/// # Errors
/// What each server did.
pub(super) async fn exchange<'a>(
    servers: &'a [Server],
    question: &Question,
    origin: &Origin,
    ports: &Ports,
    deadline: Instant,
) -> Result<Reply, UpstreamError> {
    let (order, mut ready) = order(servers);
    // Each server takes its turn: it is sent its query again when all were asked.
    let turns = u32::try_from(ready).unwrap_or(u32::MAX).max(1);
    let refused = AtomicBool::new(false);
    let ask = |server: &'a Server, begin: Instant, patience: Duration| {
        let resend = patience.saturating_mul(turns).min(Duration::from_secs(60));
        let pace = Pace { begin, deadline, resend };
        server.ask(question, origin, pace, ports, || refused.store(true, Ordering::Relaxed))
    };
    let mut race = Race { attempts: SmallVec::new() };
    let mut rest = order.into_iter();
    let mut ask_next = true;
    loop {
        if ask_next {
            let now = Instant::now();
            match rest.next() {
                Some(server) if race.attempts.is_empty() || now < deadline => {
                    let patience = server.patience();
                    race.begin(server, now + patience, ask(server, now, patience));
                }
                // Nobody else is asked.
                _ => ready = 0,
            }
        }
        // Every attempt ends by itself at the deadline, and with the last one the loop.
        if !race.is_running() {
            return Err(UpstreamError::of(race.failures()));
        }
        let may_hedge = race.attempts.len() < ready;
        let next_at = race.attempts.last().map_or(deadline, |last| last.due);
        let event = tokio::select! {
            biased;
            event = poll_fn(|context| race.poll(context, &refused)) => event,
            () = sleep_until(next_at), if may_hedge => Event::Late,
        };
        ask_next = match event {
            Event::Answered(winner, reply) => {
                race.settle(winner);
                return Ok(reply);
            }
            // Those that are out only where nothing else is left to wait for.
            Event::Failed => may_hedge || !race.is_running(),
            Event::Refused => may_hedge,
            Event::Late => true,
        };
    }
}

/// The servers in the order of asking, and how many of them are asked without need.
fn order(servers: &[Server]) -> (SmallVec<[&Server; 4]>, usize) {
    let mut ranked: SmallVec<[_; 4]> = servers.iter().map(|server| (server.rank(), server)).collect();
    // Stable: the configured order breaks ties.
    ranked.sort_by_key(|(rank, _)| *rank);
    let out = ranked.iter().filter(|((standing, _), _)| *standing == Standing::Out).count();
    let ready = if out == ranked.len() { out } else { ranked.len() - out };
    (ranked.into_iter().map(|(_, server)| server).collect(), ready)
}

/// The attempts for one question, in the order of asking. They are polled where they are: none is a task of its own.
struct Race<'a, F> {
    attempts: SmallVec<[Attempt<'a, F>; 1]>,
}

struct Attempt<'a, F> {
    server: &'a Server,
    /// Until when it should have answered.
    due: Instant,
    state: State<F>,
}

enum State<F> {
    Running(Pin<Box<F>>),
    Failed(Failure),
}

enum Event {
    /// The attempt of this index.
    Answered(usize, Reply),
    Failed,
    /// A server's port seems to be closed: another had better be asked already.
    Refused,
    /// The last one asked did not answer in its time.
    Late,
}

impl<'a, F: Future<Output = Result<Reply, Failure>>> Race<'a, F> {
    fn begin(&mut self, server: &'a Server, due: Instant, attempt: F) {
        self.attempts.push(Attempt { server, due, state: State::Running(Box::pin(attempt)) });
    }

    fn is_running(&self) -> bool {
        self.attempts.iter().any(|attempt| matches!(attempt.state, State::Running(_)))
    }

    fn poll(&mut self, context: &mut Context<'_>, refused: &AtomicBool) -> Poll<Event> {
        for (index, attempt) in self.attempts.iter_mut().enumerate() {
            let State::Running(future) = &mut attempt.state else { continue };
            match future.as_mut().poll(context) {
                Poll::Pending => {}
                Poll::Ready(Ok(reply)) => return Poll::Ready(Event::Answered(index, reply)),
                Poll::Ready(Err(failure)) => {
                    attempt.state = State::Failed(failure);
                    return Poll::Ready(Event::Failed);
                }
            }
        }
        if refused.swap(false, Ordering::Relaxed) { Poll::Ready(Event::Refused) } else { Poll::Pending }
    }

    /// The winner answered: the codes that others gave speak against them, and so does the silence of those whose time
    /// was up.
    fn settle(&self, winner: usize) {
        let others = self.attempts.iter().enumerate().filter(|(index, _)| *index != winner);
        for (_, attempt) in others {
            match attempt.state {
                State::Failed(Failure::Rcode(..)) => attempt.server.blame(),
                State::Running(_) if attempt.due <= Instant::now() => attempt.server.outrun(),
                _ => {}
            }
        }
    }

    fn failures(self) -> Vec<(std::net::SocketAddr, Failure)> {
        let failure = |attempt: Attempt<'_, F>| match attempt.state {
            State::Failed(failure) => Some((attempt.server.address, failure)),
            State::Running(_) => None,
        };
        self.attempts.into_iter().filter_map(failure).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Answer, Rcode, Record, RecordType};
    use crate::time::{Clock, Ttl};
    use crate::upstream::connection::Link;
    use crate::upstream::fake::{Fake, address, changed, closed_port, good, origin, question, response};
    use crate::upstream::query::Wanted;
    use crate::upstream::{ServerHealth, ServerSettings, Transport};
    use std::sync::Arc;
    use tokio_rustls::rustls::RootCertStore;

    /// Longer than any of this takes: what ends early does not end by it.
    const LONG: Duration = Duration::from_secs(30);

    fn servers(settings: &[ServerSettings], clock: &Clock) -> Vec<Server> {
        let nobody = Arc::new(RootCertStore::empty());
        let server = |(number, one): (usize, &ServerSettings)| {
            Server::new(number, one.transport.clone(), Link::new(one, &nobody).unwrap(), Wanted::default(), clock)
        };
        settings.iter().enumerate().map(server).collect()
    }

    async fn ask(servers: &[Server], patience: Duration) -> Result<Answer, UpstreamError> {
        let ports = Ports::new(servers.iter());
        exchange(servers, &question(), &origin(), &ports, Instant::now() + patience).await.map(|reply| reply.answer)
    }

    fn report(server: &Server) -> ServerHealth {
        server.report(&Arc::from("default"))
    }

    #[tokio::test]
    async fn the_next_server_answers_where_the_first_does_not() {
        type Respond = fn(&[u8]) -> Vec<Vec<u8>>;
        let rows: [(&str, Respond); 8] = [
            ("silent", |_| Vec::new()),
            ("SERVFAIL", |query| vec![response(query, Rcode::SERVFAIL, &[])]),
            ("REFUSED", |query| vec![response(query, Rcode::REFUSED, &[])]),
            ("FORMERR", |query| vec![response(query, Rcode::FORMERR, &[])]),
            ("NOTIMP", |query| vec![response(query, Rcode::NOTIMP, &[])]),
            ("a count without its record", |query| vec![changed(response(query, Rcode::NOERROR, &[]), 7, 1)]),
            ("NXDOMAIN with records", |query| vec![response(query, Rcode::NXDOMAIN, &[address()])]),
            ("hangs up on TCP after TC", |query| vec![changed(response(query, Rcode::NOERROR, &[]), 2, 0x02)]),
        ];
        for (name, respond) in rows {
            let bad = Fake::start(move |seen, _| if seen.over_tcp { vec![Vec::new()] } else { respond(&seen.message) });
            let (bad, good) = (bad.await, Fake::start(|seen, _| vec![good(&seen.message)]).await);
            let servers = servers(&[bad.settings(), good.settings()], &Clock::system());
            assert_eq!(ask(&servers, LONG).await.unwrap().records, [address()], "{name}");
            let (bad, good) = (report(&servers[0]), report(&servers[1]));
            assert_eq!((bad.answered, bad.timeouts + bad.failures), (0, 1), "{name}: {bad:?}");
            assert_eq!((good.answered, good.timeouts + good.failures), (1, 0), "{name}: {good:?}");
            assert_eq!(servers[0].rank().0, Standing::Doubtful, "{name}: asked last for a while");
        }
    }

    #[tokio::test]
    async fn a_refused_packet_moves_on_at_once() {
        let good = Fake::start(|seen, _| vec![good(&seen.message)]).await;
        let closed = ServerSettings { address: closed_port().await, transport: Transport::Udp };
        let servers = servers(&[closed, good.settings()], &Clock::system());
        servers.iter().for_each(|server| server.heard(Duration::from_secs(5)));
        ask(&servers, LONG).await.unwrap();
        assert_eq!(report(&servers[1]).answered, 1);
        assert_eq!(report(&servers[0]).timeouts, 0, "the first server's time was not waited for");
    }

    #[tokio::test]
    async fn the_first_server_may_still_win_after_the_next_was_asked() {
        // The second is silent, the first answers only what it is sent again.
        let late = Fake::start(|seen, number| if number == 0 { Vec::new() } else { vec![good(&seen.message)] }).await;
        let silent = Fake::start(|_, _| Vec::new()).await;
        let servers = servers(&[late.settings(), silent.settings()], &Clock::system());
        assert_eq!(ask(&servers, LONG).await.unwrap().records, [address()]);
        assert!(!silent.seen().is_empty());
    }

    #[tokio::test]
    async fn a_long_answer_comes_over_tcp() {
        let records: Vec<Record> = (0..16)
            .map(|number| Record {
                kind: RecordType::A,
                ttl: Ttl::from_wire(60),
                data: Arc::from(vec![number; 4]),
                name: question().name,
            })
            .chain((0..14).map(|number| Record {
                // Not asked for: on the wire for its length, not in the answer.
                kind: RecordType::TXT,
                ttl: Ttl::from_wire(60),
                data: Arc::from([vec![255], vec![number; 255]].concat()),
                name: question().name,
            }))
            .collect();
        let expected = records[..16].to_vec();
        let fake = Fake::start(move |seen, _| {
            let whole = response(&seen.message, Rcode::NOERROR, &records);
            assert!(whole.len() > 4096);
            let cut = changed(response(&seen.message, Rcode::NOERROR, &[]), 2, 0x02);
            vec![if seen.over_tcp { whole } else { cut }]
        })
        .await;
        let servers = servers(&[fake.settings()], &Clock::system());
        assert_eq!(ask(&servers, LONG).await.unwrap().records, expected);
        assert_eq!(fake.seen().iter().map(|seen| seen.over_tcp).collect::<Vec<_>>(), [false, true]);
        assert_eq!(fake.seen().len(), 2);
    }

    #[tokio::test]
    async fn guesses_and_other_letter_case_are_answered_by_tcp() {
        type Respond = fn(Vec<u8>) -> Vec<Vec<u8>>;
        let rows: [(u64, Respond); 2] = [
            (2, |good| vec![changed(good.clone(), 1, 1), changed(good, 0, 1)]),
            (1, |good| vec![changed(good, 13, 0x20)]),
        ];
        for (mismatches, respond) in rows {
            let fake = Fake::start(move |seen, _| {
                let good = good(&seen.message);
                if seen.over_tcp { vec![good] } else { respond(good) }
            })
            .await;
            let servers = servers(&[fake.settings()], &Clock::system());
            assert_eq!(ask(&servers, LONG).await.unwrap().records, [address()]);
            assert_eq!(report(&servers[0]).mismatches, mismatches);
            assert!(fake.seen()[1].over_tcp);
        }
    }

    #[tokio::test]
    async fn a_tcp_server_is_never_sent_a_datagram() {
        let fake = Fake::start(|seen, _| vec![good(&seen.message)]).await;
        let settings = ServerSettings { address: fake.address, transport: Transport::Tcp };
        ask(&servers(&[settings], &Clock::system()), LONG).await.unwrap();
        assert!(fake.seen().iter().all(|seen| seen.over_tcp));
    }

    #[tokio::test]
    async fn a_failure_says_what_each_server_did() {
        let refuses = Fake::start(|seen, _| vec![response(&seen.message, Rcode::REFUSED, &[])]).await;
        let silent = Fake::start(|_, _| Vec::new()).await;
        let servers = servers(&[refuses.settings(), silent.settings()], &Clock::system());
        let error = ask(&servers, Duration::from_secs(1)).await.unwrap_err();
        assert_eq!(error.to_string(), format!("{} said REFUSED, {} did not answer", refuses.address, silent.address));
        assert!(matches!(error, UpstreamError::ServerFailure { rcode: Rcode::REFUSED, .. }));
        assert!(silent.seen().len() >= 3, "datagrams get lost: {}", silent.seen().len());
    }

    #[tokio::test]
    async fn a_code_that_all_give_speaks_against_the_question() {
        let fails = |seen: &crate::upstream::fake::Seen, _| vec![response(&seen.message, Rcode::SERVFAIL, &[])];
        let (one, two) = (Fake::start(fails).await, Fake::start(fails).await);
        let servers = servers(&[one.settings(), two.settings()], &Clock::manual());
        for _ in 0..5 {
            ask(&servers, LONG).await.unwrap_err();
        }
        assert!(servers.iter().all(|server| server.rank().0 == Standing::Ready));
        assert_eq!((one.seen().len(), two.seen().len()), (5, 5));
    }

    #[tokio::test]
    async fn a_server_that_failed_thrice_is_left_out_until_its_trial() {
        let clock = Clock::manual();
        let healed = Arc::new(AtomicBool::new(false));
        let bad = {
            let healed = Arc::clone(&healed);
            Fake::start(move |seen, _| {
                let healed = healed.load(Ordering::SeqCst);
                vec![if healed { good(&seen.message) } else { response(&seen.message, Rcode::REFUSED, &[]) }]
            })
            .await
        };
        let good = Fake::start(|seen, _| vec![good(&seen.message)]).await;
        let servers = servers(&[bad.settings(), good.settings()], &clock);
        for _ in 0..3 {
            ask(&servers, LONG).await.unwrap();
            clock.advance(Duration::from_millis(1000));
        }
        assert_eq!(bad.seen().len(), 3);
        clock.advance(Duration::from_millis(1000));
        ask(&servers, LONG).await.unwrap();
        assert_eq!(bad.seen().len(), 4, "the trial");
        for _ in 0..10 {
            ask(&servers, LONG).await.unwrap();
        }
        assert_eq!(bad.seen().len(), 4, "out");
        assert!(report(&servers[0]).out);
        healed.store(true, Ordering::SeqCst);
        clock.advance(Duration::from_secs(30));
        ask(&servers, LONG).await.unwrap();
        ask(&servers, LONG).await.unwrap();
        assert_eq!(bad.seen().len(), 6, "back in its configured place");
        assert!(!report(&servers[0]).out);
    }

    #[tokio::test]
    async fn servers_that_are_out_are_asked_where_nothing_else_is_left() {
        let fake = Fake::start(|seen, _| vec![good(&seen.message)]).await;
        let refuses = Fake::start(|seen, _| vec![response(&seen.message, Rcode::REFUSED, &[])]).await;
        let servers = servers(&[fake.settings(), refuses.settings()], &Clock::manual());
        for _ in 0..3 {
            servers[0].blame();
        }
        assert_eq!(order(&servers).1, 1);
        assert_eq!(ask(&servers, LONG).await.unwrap().records, [address()]);
        for server in &servers {
            (0..3).for_each(|_| server.blame());
        }
        assert_eq!(order(&servers).1, 2, "all are out: none is left out");
    }

    #[tokio::test]
    async fn no_server_is_no_wait() {
        assert_eq!(ask(&[], LONG).await.unwrap_err().to_string(), "no server gave an answer");
    }
}
