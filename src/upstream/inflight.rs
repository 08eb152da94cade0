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
