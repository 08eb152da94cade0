//! Several servers, one answer: who is asked first, when the next is asked as well, and what all failures come to.
//!
//! The first server is asked; the next one as soon as it fails, or after one and a half of its usual round trips
//! while it is still listened to. The first good answer wins. Servers that are out are asked only once every
//! other has failed.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::failure::{Failure, UpstreamError};
use super::health::Standing;
use super::server::Server;
use super::udp::Pace;
use crate::record::{Answer, Origin, Question};

/// Puts `question` to the servers until one answers or `deadline` has passed.
///
/// # Errors
/// What each server did.
pub(super) async fn exchange(
    servers: &[Arc<Server>],
    question: &Question,
    origin: &Origin,
    deadline: Instant,
) -> Result<Answer, UpstreamError> {
    let (order, ready) = order(servers);
    let (refused, mut refusals) = mpsc::channel(order.len().max(1));
    let mut race =
        Race { question, origin, deadline, rounds: ready, refused, asked: Vec::new(), running: JoinSet::new() };
    let mut failed = Vec::new();
    let mut rest = order.iter();
    let mut next_at = deadline;
    if let Some(first) = rest.next() {
        next_at = race.ask(first);
    }
    // Every attempt ends by itself at the deadline, and with the last one the loop.
    while !race.running.is_empty() {
        let may_hedge = race.asked.len() < ready;
        let ask_next = tokio::select! {
            Some(done) = race.running.join_next() => match done {
                Ok((server, Ok(answer))) => {
                    race.settle(&server, &failed);
                    return Ok(answer);
                }
                Ok((server, Err(failure))) => {
                    failed.push((server, failure));
                    // Those that are out only where nothing else is left to wait for.
                    may_hedge || race.running.is_empty()
                }
                // The task panicked: as good as no reply.
                Err(_) => true,
            },
            Some(()) = refusals.recv() => may_hedge,
            () = sleep_until(next_at), if may_hedge => true,
        };
        if ask_next && Instant::now() < deadline {
            if let Some(server) = rest.next() {
                next_at = race.ask(server);
            }
        }
    }
    Err(UpstreamError::of(failed.into_iter().map(|(server, failure)| (server.address, failure)).collect()))
}

/// The servers in the order of asking, and how many of them are asked without need.
fn order(servers: &[Arc<Server>]) -> (Vec<Arc<Server>>, usize) {
    let mut ranked: Vec<_> = servers.iter().map(|server| (server.rank(), server)).collect();
    // Stable: the configured order breaks ties.
    ranked.sort_by_key(|(rank, _)| *rank);
    let out = ranked.iter().filter(|((standing, _), _)| *standing == Standing::Out).count();
    let ready = if out == ranked.len() { out } else { ranked.len() - out };
    (ranked.into_iter().map(|(_, server)| Arc::clone(server)).collect(), ready)
}

/// The attempts under way for one question.
struct Race<'a> {
    question: &'a Question,
    origin: &'a Origin,
    deadline: Instant,
    /// How many servers take turns: each is sent its query again when all were asked.
    rounds: usize,
    refused: mpsc::Sender<()>,
    /// Who was asked, and until when it should have answered.
    asked: Vec<(Arc<Server>, Instant)>,
    running: JoinSet<(Arc<Server>, Result<Answer, Failure>)>,
}

impl Race<'_> {
    /// Asks one more server; until when to wait for it alone.
    fn ask(&mut self, server: &Arc<Server>) -> Instant {
        let patience = server.patience();
        let due = Instant::now() + patience;
        self.asked.push((Arc::clone(server), due));
        let turns = u32::try_from(self.rounds).unwrap_or(u32::MAX).max(1);
        let pace =
            Pace { deadline: self.deadline, resend: patience.saturating_mul(turns).min(Duration::from_secs(60)) };
        let (server, question, origin) = (Arc::clone(server), self.question.clone(), self.origin.clone());
        let refused = self.refused.clone();
        self.running.spawn(async move {
            let result = server.ask(&question, &origin, pace, || _ = refused.try_send(())).await;
            (server, result)
        });
        due
    }

    /// `winner` answered: the codes that others gave speak against them, and so does the silence of those whose time
    /// was up.
    fn settle(&self, winner: &Arc<Server>, failed: &[(Arc<Server>, Failure)]) {
        for (server, failure) in failed {
            if matches!(failure, Failure::Rcode(..)) {
                server.blame();
            }
        }
        let now = Instant::now();
        for (server, due) in &self.asked {
            let silent = !Arc::ptr_eq(server, winner) && !failed.iter().any(|(failed, _)| Arc::ptr_eq(failed, server));
            if silent && *due <= now {
                server.outrun();
            }
        }
    }
}
