//! The gate: one query's life, on two paths that end in one sealed reply.
//!
//! [`Gate::fast`] runs on the door's own thread: parse, segment, cover, decide. What it cannot settle becomes a
//! [`Job`] for [`Gate::slow`]: resolve, inspect, offer, wait for the firewalls. Both end in a [`Conclusion`], which
//! an [`Outbox`] seals: bytes and record together. The bytes come out of it only after the record has been handed to
//! the kernel.

mod fast;
mod granter;
mod inflight;
mod reply;
mod slow;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use foldhash::quality::RandomState;

pub use fast::{Arrival, Fast, Finished, Job};
pub use granter::{
    EnforcerCounts, GrantCounts, GrantEntry, GrantQuery, Granter, GranterError, GranterParts, NotGranted,
};
pub use inflight::{Slot, Slots};
pub use reply::{Conclusion, Failure, Outbox, Prepared, Released};

use crate::audit::RecordId;
use crate::cache::{Answers, Cover, Who};
use crate::grant::Terms;
use crate::metric::SegmentSlot;
use crate::net::SegmentId;
use crate::policy::{Asker, GrantScope, Policy};
use crate::time::{Clock, Wall};
use crate::upstream::Upstreams;
use crate::zones::Zones;

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

/// Deadlines of the slow path.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// For all of it: below the 2 s at which the quickest stubs ask again.
    pub query: Duration,
    /// For the firewalls' acknowledgement.
    pub firewall: Duration,
}

/// The gate. One per process, shared by every door.
#[derive(Debug)]
pub struct Gate {
    /// The rulebook in force.
    pub rulebook: Arc<ArcSwap<Rulebook>>,
    /// Upstreams.
    pub upstreams: Upstreams,
    /// What is known.
    pub answers: Answers<RecordId>,
    /// For whom it is open.
    pub cover: Cover<Arc<Prepared>>,
    /// The granter.
    pub granter: Granter,
    /// Room on the slow path.
    pub slots: Slots,
    /// Which threads have passed which epoch.
    pub passed: Passed,
    /// Lease numbers.
    pub terms: Terms,
    /// Deadlines.
    pub deadlines: Deadlines,
    /// Time.
    pub clock: Clock,
}

/// For whom a reply to `asker` is prepared: where grants are the segment's, so are the replies.
fn who(policy: &Policy, asker: Asker) -> Who {
    let segment = policy.segment(asker);
    let own = segment.scope == GrantScope::Client && policy.forwarder(asker).is_none();
    Who { segment: segment.id, client: own.then_some(asker.client) }
}
