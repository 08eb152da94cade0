//! The rulebook: what is decided by, and how one takes the place of another.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use foldhash::quality::RandomState;

use crate::firewall::FirewallError;
use crate::gate::Gate;
use crate::metric::{SegmentSlot, Tallies};
use crate::net::SegmentId;
use crate::policy::Policy;
use crate::time::Wall;
use crate::zones::Zones;

/// How long a swap waits for a thread to take the new rulebook before it revokes: each takes one per batch, or is
/// parked.
const PASS: Duration = Duration::from_secs(2);

/// What is decided by: policy and zones of one load, swapped together.
#[derive(Debug)]
pub struct Rulebook {
    /// The policy.
    pub policy: Arc<Policy>,
    /// The local zones.
    pub zones: Zones,
    /// Grows with every load; a prepared reply of another epoch is not told.
    pub epoch: u64,
    /// When it was loaded.
    pub loaded: Wall,
    /// When the firewalls' layout changes by itself: the next observe segment ends.
    pub layout_ends: Option<Wall>,
    /// Set once the layout has been laid out again after that.
    pub relaid: AtomicBool,
    /// The places of the segments' counters.
    pub slots: HashMap<SegmentId, SegmentSlot, RandomState>,
}

impl Rulebook {
    /// A rulebook of what was loaded at `now`.
    #[must_use]
    pub fn new(policy: Arc<Policy>, zones: Zones, epoch: u64, now: Wall, tallies: &Tallies) -> Self {
        let slots = policy.segments().iter().map(|segment| (segment.id, tallies.segment(&segment.name)));
        Self {
            slots: slots.collect(),
            layout_ends: policy.next_change(now),
            relaid: AtomicBool::new(false),
            policy,
            zones,
            epoch,
            loaded: now,
        }
    }

    /// The place of a segment's counters.
    #[must_use]
    pub fn slot(&self, segment: SegmentId) -> SegmentSlot {
        self.slots.get(&segment).copied().unwrap_or(SegmentSlot::OTHER)
    }
}

/// The epoch that each door's thread last took a rulebook with, or that it is parked. A reload revokes grants
/// only after every thread has passed it.
#[derive(Debug, Default)]
pub struct Passed(parking_lot::Mutex<Vec<Arc<AtomicU64>>>);

/// A thread that waits for work holds no rulebook.
const PARKED: u64 = u64::MAX;

impl Passed {
    /// Adds a thread.
    #[must_use]
    pub fn register(&self) -> Arc<AtomicU64> {
        let slot = Arc::new(AtomicU64::new(PARKED));
        self.0.lock().push(Arc::clone(&slot));
        slot
    }

    /// Marks a thread as parked.
    pub fn park(slot: &AtomicU64) {
        slot.store(PARKED, Ordering::SeqCst);
    }

    /// Whether every thread has taken `epoch` or is parked.
    #[must_use]
    pub fn all_past(&self, epoch: u64) -> bool {
        self.0.lock().iter().all(|slot| slot.load(Ordering::SeqCst) >= epoch)
    }
}

impl Gate {
    /// Puts a rulebook in force: firewalls first, then the rulebook, then the threads, then the grants
    /// (ARCHITECTURE: a Permit can grow stale). How many reasons for grants went.
    ///
    /// # Errors
    /// The firewall that refused its layout, and why; nothing has changed.
    pub async fn swap(&self, rulebook: Arc<Rulebook>) -> Result<u64, (Arc<str>, FirewallError)> {
        self.granter.arrange(Arc::clone(&rulebook)).await?;
        self.rulebook.store(Arc::clone(&rulebook));
        let pass = async {
            while !self.passed.all_past(rulebook.epoch) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        if tokio::time::timeout(PASS, pass).await.is_err() {
            tracing::warn!("a worker did not take the new policy in time; grants are revoked all the same");
        }
        Ok(self.granter.revoke().await)
    }
}
