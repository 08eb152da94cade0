//! Warm names: resolved and opened for their segments before anybody asks, and again before they end.
//!
//! By the road of any answer: a permit, inspection, an offer to the granter. Where it fails, what was opened last stays
//! open until its end, and the name is tried again.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use foldhash::quality::RandomState;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::gate::reply::Failure;
use crate::gate::slow::Asking;
use crate::gate::{Gate, Rulebook};
use crate::policy::{Reason, Warm, decide_warm};
use crate::record::ExtendedError;
use crate::time::{Tick, Wall};
use crate::upstream::Ports;

/// How often it is looked which names are due.
const LOOK: Duration = Duration::from_millis(250);
/// Names that are resolved at once: a dead upstream holds each for 1.9 s.
const AT_ONCE: usize = 256;
/// A name is due in so many thousandths of what is left of its answer, and up to 100 more: those that were resolved
/// together part.
const SHARE: u64 = 700;
/// A name that failed is tried again after this, doubled each time, up to 30 s: back within seconds of its upstream.
const RETRY: Duration = Duration::from_secs(2);
const RETRY_AT_MOST: Duration = Duration::from_secs(30);

/// How many names are kept warm.
#[derive(Debug, Default)]
pub struct WarmCounts {
    /// All, each once a segment and type.
    pub names: AtomicU64,
    /// Those that failed when they were resolved last.
    pub failing: AtomicU64,
}

/// Keeps the names of the rulebook in force warm.
#[derive(Debug)]
pub struct Warmer {
    gate: Arc<Gate>,
    ports: Arc<Ports>,
    /// Of the rulebook that the names are of.
    epoch: u64,
    /// When a rule of it ends.
    ends: Option<Wall>,
    names: HashMap<Warm, Kept>,
    tasks: JoinSet<Ended>,
    spread: RandomState,
}

/// A name, its rulebook's epoch, and until when its answer lives.
type Ended = (Warm, u64, Result<Tick, Failure>);

/// What is known of a warm name.
#[derive(Debug, Default)]
struct Kept {
    /// When it is resolved next; `None` while it is.
    due: Option<Tick>,
    /// Its answer lives until here.
    lives_until: Tick,
    /// How often it failed in a row.
    failed: u32,
}

impl Warmer {
    /// Nothing is resolved yet.
    #[must_use]
    pub fn new(gate: Arc<Gate>) -> Self {
        let ports = Arc::new(gate.upstreams.ports());
        let (names, tasks, spread) = (HashMap::new(), JoinSet::new(), RandomState::default());
        Self { gate, ports, epoch: 0, ends: None, names, tasks, spread }
    }

    /// Keeps names warm until it is dropped.
    pub async fn run(mut self) {
        loop {
            self.settle().await;
            sleep(LOOK).await;
        }
    }

    /// Resolves what is due until nothing is.
    pub async fn settle(&mut self) {
        loop {
            self.take_over();
            self.begin();
            match self.tasks.join_next().await {
                Some(Ok(ended)) => self.end(ended),
                // A panic: its name is resolved no more, and what is open ends.
                Some(Err(_)) => {}
                None => return,
            }
        }
    }

    /// Takes the names of the rulebook in force. Each is opened under it at once, also those that were warm: another
    /// rule may open other ports.
    fn take_over(&mut self) {
        let rulebook = self.gate.rulebook();
        let wall = self.gate.clock.now().wall;
        // An end of a rule may let a name be warm that was refused.
        if rulebook.epoch == self.epoch && self.ends.is_none_or(|ends| wall < ends) {
            return;
        }
        self.ends = rulebook.policy.next_change(wall);
        let now = self.gate.clock.tick();
        self.epoch = rulebook.epoch;
        let mut before = std::mem::take(&mut self.names);
        let kept = |warm: Warm| {
            let known = before.remove(&warm).unwrap_or(Kept { due: Some(now), ..Kept::default() });
            (warm, Kept { due: known.due.map(|_| now), lives_until: Tick(0), ..known })
        };
        self.names = rulebook.policy.warm(self.gate.clock.now().wall).into_iter().map(kept).collect();
        self.count();
    }

    /// Begins what is due, as many as there may be.
    fn begin(&mut self) {
        let now = self.gate.clock.tick();
        let due = self.names.iter_mut().filter(|(_, kept)| kept.due.is_some_and(|due| due <= now));
        for (warm, kept) in due.take(AT_ONCE.saturating_sub(self.tasks.len())) {
            kept.due = None;
            // Any answer will do that lives longer than the one before.
            let renews = kept.lives_until.max(Tick(1));
            let (gate, ports, warm) = (Arc::clone(&self.gate), Arc::clone(&self.ports), warm.clone());
            self.tasks.spawn(async move {
                let rulebook = gate.rulebook();
                let lives_until = gate.warm_up(&rulebook, &warm, &ports, renews).await;
                (warm, rulebook.epoch, lives_until)
            });
        }
    }

    fn end(&mut self, (warm, epoch, result): Ended) {
        let now = self.gate.clock.tick();
        let Some(kept) = self.names.get_mut(&warm) else { return };
        if epoch != self.epoch {
            kept.due = Some(now);
            return;
        }
        if decide_warm(&self.gate.rulebook().policy, &warm, self.gate.clock.now().wall).is_none() {
            // Its rules have ended.
            self.names.remove(&warm);
            self.count();
            return;
        }
        let Warm { segment, question } = &warm;
        match result {
            Ok(lives_until) => {
                if kept.failed > 0 {
                    tracing::info!(%segment, %question, "a name is kept warm again");
                }
                let left = lives_until.since(now);
                let share = SHARE + self.spread.hash_one((&warm, lives_until)) % 100;
                let wait = Duration::from_micros(u64::try_from(left.as_micros()).unwrap_or(u64::MAX) / 1000 * share);
                *kept = Kept { due: Some(now + wait), lives_until, failed: 0 };
            }
            Err(failure) => {
                if kept.failed == 0 {
                    let why = &*failure.why;
                    tracing::warn!(%segment, %question, why, "a name cannot be kept warm; what is open stays open until its end");
                }
                kept.due = Some(now + (RETRY * (1 << kept.failed.min(4))).min(RETRY_AT_MOST));
                kept.failed += 1;
            }
        }
        self.count();
    }

    fn count(&self) {
        let counts = &self.gate.warm;
        counts.names.store(self.names.len() as u64, Ordering::Relaxed);
        let failing = self.names.values().filter(|kept| kept.failed > 0).count();
        counts.failing.store(failing as u64, Ordering::Relaxed);
    }
}

impl Gate {
    /// Resolves a warm name and opens it for its segment; until when its answer lives.
    async fn warm_up(&self, rulebook: &Rulebook, warm: &Warm, ports: &Ports, renews: Tick) -> Result<Tick, Failure> {
        let changed = || Failure::new(Reason::Rule, ExtendedError::NOT_READY, "the policy changed meanwhile");
        let permit = decide_warm(&rulebook.policy, warm, self.clock.now().wall).ok_or_else(changed)?;
        let asking = Asking { id: None, ports, deadline: Instant::now() + self.deadlines.query, renews };
        let opened = self.open(rulebook, permit, &asking).await?.ok_or_else(changed)?;
        match opened.granted.cleared().withheld() {
            Some(withheld) => Err(Failure::new(withheld.reason, ExtendedError::FILTERED, withheld.why.clone())),
            None => Ok(opened.granted.told_until()),
        }
    }
}
