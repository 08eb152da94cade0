//! The same question asked once: those who ask while it is under way share its answer.
//!
//! Many queries for one name in flight at once would let a guesser hit any of them (the birthday attack, RFC 5452
//! §5), and would load the upstream for nothing.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::future::Future;
use std::hash::Hash;
use std::mem::ManuallyDrop;
use std::time::Duration;

use foldhash::quality::RandomState;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::failure::{Attempts, UpstreamError};

/// The most exchanges under way at once: as many as there is room for on the slow path, where each segment has its share.
/// At the cap, new questions fail and those under way go on.
const CAP: usize = 8_192;
/// An exchange that had less time than this says nothing of the servers; guessed, half of a query's deadline.
const FAIR: Duration = Duration::from_millis(950);
/// Less time than this is not worth another exchange; guessed, a few near round trips.
const WORTHWHILE: Duration = Duration::from_millis(100);

type Outcome<T> = Result<T, UpstreamError>;
/// Those who wait for an outcome.
type Waiting<T> = Vec<oneshot::Sender<Outcome<T>>>;

/// Exchanges under way, by what they ask, with those who wait for their outcome.
#[derive(Debug)]
pub(super) struct Inflight<K, T>(Mutex<HashMap<K, Waiting<T>, RandomState>>);

/// Takes the question off the table when its exchange ends, in whatever way.
struct Entered<'a, K: Eq + Hash, T> {
    inflight: &'a Inflight<K, T>,
    key: &'a K,
}

impl<K: Eq + Hash, T> Entered<'_, K, T> {
    fn leave(&mut self) -> Waiting<T> {
        self.inflight.0.lock().remove(self.key).unwrap_or_default()
    }

    /// Leaves, once: those who waited.
    fn left(self) -> Waiting<T> {
        let mut entered = ManuallyDrop::new(self);
        entered.leave()
    }
}

impl<K: Eq + Hash, T> Drop for Entered<'_, K, T> {
    fn drop(&mut self) {
        // Those who waited see that nobody asks for them any more.
        drop(self.leave());
    }
}

/// What somebody who asks is to do.
enum Part<'a, K: Eq + Hash, T> {
    /// To make the exchange, for all who come while it is under way.
    First(Entered<'a, K, T>),
    /// To wait for it.
    Later(oneshot::Receiver<Outcome<T>>),
}

impl<K: Eq + Hash + Clone, T: Clone> Inflight<K, T> {
    pub(super) fn new() -> Self {
        Self(Mutex::default())
    }

    /// The outcome for `key`: that of the exchange under way, else of the one that `begin` makes, which ends before
    /// `deadline`. Who begins it makes it, on his own thread; where he gives up, the next one does.
    ///
    /// # Errors
    /// Those of the exchange; [`UpstreamError::Hurried`] at `deadline`; [`UpstreamError::Busy`] at the cap.
    pub(super) async fn join<F>(&self, key: &K, deadline: Instant, begin: impl Fn() -> F) -> Outcome<T>
    where
        F: Future<Output = Outcome<T>>,
    {
        loop {
            let outcome = match self.enter(key)? {
                Part::First(entered) => {
                    let hurried = deadline < Instant::now() + FAIR;
                    let outcome = match begin().await {
                        Err(UpstreamError::Timeout(attempts)) if hurried => Err(UpstreamError::Hurried(attempts)),
                        outcome => outcome,
                    };
                    // Off the table before it is told: who comes now asks anew, and is not taken off with this one.
                    for waiting in entered.left() {
                        let _gone = waiting.send(outcome.clone());
                    }
                    return outcome;
                }
                Part::Later(outcome) => timeout_at(deadline, outcome).await,
            };
            match outcome {
                Err(_) => return Err(UpstreamError::Hurried(Attempts::default())),
                // Who began it gave up.
                Ok(Err(_)) => {}
                // Who began it had too little time; we have more.
                Ok(Ok(Err(UpstreamError::Hurried(_)))) if Instant::now() + WORTHWHILE < deadline => {}
                Ok(Ok(outcome)) => return outcome,
            }
        }
    }

    fn enter<'a>(&'a self, key: &'a K) -> Result<Part<'a, K, T>, UpstreamError> {
        let mut table = self.0.lock();
        let full = table.len() >= CAP;
        match table.entry(key.clone()) {
            Entry::Occupied(mut entry) => {
                let (sender, receiver) = oneshot::channel();
                entry.get_mut().push(sender);
                Ok(Part::Later(receiver))
            }
            Entry::Vacant(_) if full => Err(UpstreamError::Busy),
            Entry::Vacant(entry) => {
                entry.insert(Vec::new());
                Ok(Part::First(Entered { inflight: self, key }))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Answer, Rcode};
    use crate::upstream::fake::origin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::sync::{Notify, Semaphore};

    fn answer() -> Answer {
        Answer {
            rcode: Rcode::NOERROR,
            authoritative: false,
            records: Vec::new(),
            soa: None,
            ede: None,
            proof: None,
            origin: origin(),
        }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[tokio::test(start_paused = true)]
    async fn who_stops_waiting_disturbs_nobody() {
        let (inflight, begun, gate) = (Inflight::new(), AtomicU32::new(0), Arc::new(Notify::new()));
        let begin = || {
            begun.fetch_add(1, Ordering::SeqCst);
            let gate = Arc::clone(&gate);
            async move {
                gate.notified().await;
                Ok(answer())
            }
        };
        let first = inflight.join(&1, soon(), begin);
        let second = inflight.join(&1, Instant::now() + Duration::from_millis(10), begin);
        let third = inflight.join(&1, soon(), begin);
        let opened = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            gate.notify_one();
        };
        let (first, second, third, ()) = tokio::join!(first, second, third, opened);
        assert_eq!((first, second), (Ok(answer()), Err(UpstreamError::Hurried(Attempts::default()))));
        assert_eq!((third, begun.load(Ordering::SeqCst)), (Ok(answer()), 1));
        assert!(inflight.0.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn where_who_began_gives_up_the_next_one_begins_anew() {
        let (inflight, begun) = (Inflight::new(), AtomicU32::new(0));
        let begin = || {
            let number = begun.fetch_add(1, Ordering::SeqCst);
            async move {
                tokio::time::sleep(Duration::from_millis(50)).await;
                assert_ne!(number, 0, "given up");
                Ok(answer())
            }
        };
        let first = tokio::time::timeout(Duration::from_millis(10), inflight.join(&1, soon(), begin));
        let (second, third) = (inflight.join(&1, soon(), begin), inflight.join(&1, soon(), begin));
        let (first, second, third) = tokio::join!(first, second, third);
        assert!(first.is_err());
        assert_eq!((second, third), (Ok(answer()), Ok(answer())));
        assert_eq!(begun.load(Ordering::SeqCst), 2);
        assert!(inflight.0.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_more_time_asks_again_where_the_first_had_too_little() {
        for (first_has, asks, later) in [
            (Duration::from_millis(500), 2, Ok(answer())),
            // It had its time: the servers are asked no more.
            (FAIR, 1, Err(UpstreamError::Timeout(Attempts::default()))),
        ] {
            asks_again(first_has, asks, later).await;
        }
    }

    async fn asks_again(first_has: Duration, asks: u32, later: Outcome<Answer>) {
        let (inflight, begun) = (Inflight::new(), AtomicU32::new(0));
        let begin = || {
            let number = begun.fetch_add(1, Ordering::SeqCst);
            async move {
                tokio::time::sleep(Duration::from_millis(50)).await;
                if number == 0 { Err(UpstreamError::Timeout(Attempts::default())) } else { Ok(answer()) }
            }
        };
        let first = inflight.join(&1, Instant::now() + first_has, begin);
        let (first, late) = tokio::join!(first, inflight.join(&1, soon(), begin));
        assert!(matches!(first, Err(UpstreamError::Timeout(_) | UpstreamError::Hurried(_))));
        assert_eq!((late, begun.load(Ordering::SeqCst)), (later, asks));
    }

    #[tokio::test]
    async fn at_the_cap_new_questions_fail_and_old_ones_are_shared() {
        let (inflight, gate) = (Arc::new(Inflight::new()), Arc::new(Semaphore::new(0)));
        let begin = |gate: &Arc<Semaphore>| {
            let gate = Arc::clone(gate);
            move || {
                let gate = Arc::clone(&gate);
                async move {
                    let _open = gate.acquire().await.unwrap();
                    Ok(answer())
                }
            }
        };
        let mut waiting = tokio::task::JoinSet::new();
        for key in 0..CAP {
            let (inflight, begin) = (Arc::clone(&inflight), begin(&gate));
            waiting.spawn(async move { inflight.join(&key, soon(), begin).await });
        }
        while inflight.0.lock().len() < CAP {
            tokio::task::yield_now().await;
        }
        assert_eq!(inflight.join(&CAP, soon(), begin(&gate)).await, Err(UpstreamError::Busy));
        gate.add_permits(1);
        assert_eq!(inflight.join(&0, soon(), begin(&gate)).await, Ok(answer()));
        assert!(waiting.join_all().await.iter().all(Result::is_ok));
        assert!(inflight.0.lock().is_empty());
    }
}
