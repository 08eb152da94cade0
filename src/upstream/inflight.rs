//! The same question asked once: those who ask while it is under way share its answer.
//!
//! Many queries for one name in flight at once would let a guesser hit any of them (the birthday attack, RFC 5452
//! §5), and would load the upstream for nothing.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::failure::{Attempts, UpstreamError};
use crate::record::Answer;

/// The most exchanges under way at once; at the cap, new questions fail and those under way go on.
const CAP: usize = 2048;
/// Less time than this is not worth another exchange; guessed, a few near round trips.
const WORTHWHILE: Duration = Duration::from_millis(100);

type Outcome = Result<Answer, UpstreamError>;

/// Exchanges under way, by what they ask.
#[derive(Debug)]
pub(super) struct Inflight<K>(Arc<Table<K>>);

type Table<K> = Mutex<HashMap<K, watch::Receiver<Option<Outcome>>>>;

/// Takes the question off the table when its exchange ends, in whatever way.
struct Entered<K: Eq + Hash> {
    table: Arc<Table<K>>,
    key: K,
}

impl<K: Eq + Hash> Drop for Entered<K> {
    fn drop(&mut self) {
        self.table.lock().remove(&self.key);
    }
}

impl<K: Eq + Hash + Clone + Send + 'static> Inflight<K> {
    pub(super) fn new() -> Self {
        Self(Arc::default())
    }

    /// The outcome for `key`: that of the exchange under way, else of the one that `begin` makes. It runs on its own,
    /// whoever stops waiting for it.
    ///
    /// # Errors
    /// Those of the exchange; [`UpstreamError::Timeout`] at `deadline`; [`UpstreamError::Busy`] at the cap.
    pub(super) async fn join<F>(&self, key: &K, deadline: Instant, begin: impl Fn() -> F) -> Outcome
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        loop {
            let (mut outcome, joined) = self.enter(key, &begin)?;
            let waited = timeout_at(deadline, outcome.wait_for(Option::is_some)).await;
            let outcome = match waited {
                Ok(Ok(outcome)) => outcome.clone(),
                // The exchange panicked.
                Ok(Err(_)) => None,
                Err(_) => return Err(UpstreamError::Timeout(Attempts::default())),
            };
            match outcome {
                // It ended at the deadline of who began it; ours is later.
                Some(Err(UpstreamError::Timeout(_))) if joined && Instant::now() + WORTHWHILE < deadline => {}
                Some(outcome) => return outcome,
                None => return Err(UpstreamError::Timeout(Attempts::default())),
            }
        }
    }

    /// The exchange for `key`, begun where there is none; true where there was one.
    fn enter<F>(
        &self,
        key: &K,
        begin: impl FnOnce() -> F,
    ) -> Result<(watch::Receiver<Option<Outcome>>, bool), UpstreamError>
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let mut table = self.0.lock();
        let full = table.len() >= CAP;
        match table.entry(key.clone()) {
            Entry::Occupied(entry) => Ok((entry.get().clone(), true)),
            Entry::Vacant(_) if full => Err(UpstreamError::Busy),
            Entry::Vacant(entry) => {
                let (sender, receiver) = watch::channel(None);
                entry.insert(receiver.clone());
                let entered = Entered { table: Arc::clone(&self.0), key: key.clone() };
                let exchange = begin();
                tokio::spawn(async move {
                    let outcome = exchange.await;
                    // Off the table before it is told: who comes now asks anew.
                    drop(entered);
                    sender.send_replace(Some(outcome));
                });
                Ok((receiver, false))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Rcode;
    use crate::upstream::fake::origin;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::sync::{Notify, Semaphore};

    fn answer() -> Answer {
        Answer {
            rcode: Rcode::NOERROR,
            authoritative: false,
            records: Vec::new(),
            soa: None,
            ede: None,
            origin: origin(),
        }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_up_disturbs_nobody() {
        let (inflight, begun, gate) = (Inflight::new(), AtomicU32::new(0), Arc::new(Notify::new()));
        let begin = || {
            begun.fetch_add(1, Ordering::SeqCst);
            let gate = Arc::clone(&gate);
            async move {
                gate.notified().await;
                Ok(answer())
            }
        };
        let first = inflight.join(&1, Instant::now() + Duration::from_millis(10), begin);
        assert_eq!(first.await, Err(UpstreamError::Timeout(Attempts::default())));
        let (second, third) = (inflight.join(&1, soon(), begin), inflight.join(&1, soon(), begin));
        let opened = async { gate.notify_one() };
        let (second, third, ()) = tokio::join!(second, third, opened);
        assert_eq!((second, third), (Ok(answer()), Ok(answer())));
        assert_eq!(begun.load(Ordering::SeqCst), 1);
        assert!(inflight.0.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn who_came_late_asks_again_where_the_first_ran_out_of_time() {
        let (inflight, begun) = (Inflight::new(), AtomicU32::new(0));
        let begin = || {
            let number = begun.fetch_add(1, Ordering::SeqCst);
            async move {
                tokio::time::sleep(Duration::from_millis(50)).await;
                if number == 0 { Err(UpstreamError::Timeout(Attempts::default())) } else { Ok(answer()) }
            }
        };
        let (first, late) = tokio::join!(inflight.join(&1, soon(), begin), inflight.join(&1, soon(), begin));
        assert_eq!(first, Err(UpstreamError::Timeout(Attempts::default())));
        assert_eq!(late, Ok(answer()));
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

    #[tokio::test]
    async fn a_panic_leaves_no_trace() {
        let inflight = Inflight::new();
        let outcome = inflight.join(&1, soon(), || async { panic!("in a test") }).await;
        assert_eq!(outcome, Err(UpstreamError::Timeout(Attempts::default())));
        assert_eq!(inflight.join(&1, soon(), || async { Ok(answer()) }).await, Ok(answer()));
    }
}
