//! The rulebook: what is decided by, and how one takes the place of another.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::Duration;

use arc_swap::Guard;

use crate::cache::{Flush, Flushed};
use crate::firewall::FirewallError;
use crate::gate::{Candidate, Closed, Designation, Gate, GrantsOf, Secrets};
use crate::metric::{SegmentSlot, Tallies};
use crate::policy::{Asker, Policy};
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
    pub zones: Arc<Zones>,
    /// Grows with every load and change, and when grants are closed on demand; a prepared reply of another epoch is not told.
    pub epoch: u64,
    /// How often was flushed under it.
    flushes: AtomicU64,
    /// When it was loaded.
    pub loaded: Wall,
    /// What is told of our encrypted doors.
    pub designation: Option<Arc<Designation>>,
    /// What cookies are made with; `None`: none are.
    pub cookies: Option<Arc<Secrets>>,
    /// What is decided beside the policy, and not obeyed.
    pub candidate: Option<Arc<Candidate>>,
    /// The places of the segments' counters, in the order of the policy's segments.
    slots: Box<[SegmentSlot]>,
}

impl Rulebook {
    /// A rulebook of what was loaded at `now`.
    #[must_use]
    pub fn new(policy: Arc<Policy>, zones: Zones, epoch: u64, now: Wall, tallies: &Tallies) -> Self {
        let slots = policy.segments().iter().map(|segment| tallies.segment(&segment.name));
        Self {
            slots: slots.collect(),
            policy,
            zones: Arc::new(zones),
            epoch,
            flushes: AtomicU64::new(0),
            loaded: now,
            designation: None,
            cookies: None,
            candidate: None,
        }
    }

    /// The one that takes the place of this one where only the policy is another.
    #[must_use]
    pub fn followed_by(&self, policy: Arc<Policy>, tallies: &Tallies) -> Self {
        let slots = policy.segments().iter().map(|segment| tallies.segment(&segment.name)).collect();
        Self { policy, slots, ..self.renewed() }
    }

    /// The same, with what is told of our encrypted doors.
    #[must_use]
    pub fn designating(self, designation: Option<Designation>) -> Self {
        Self { designation: designation.map(Arc::new), ..self }
    }

    /// The same, with what cookies are made with.
    #[must_use]
    pub fn giving_cookies(self, secrets: Secrets) -> Self {
        Self { cookies: Some(Arc::new(secrets)), ..self }
    }

    /// The same with a candidate beside its policy.
    #[must_use]
    pub fn beside(self, candidate: Option<Arc<Candidate>>) -> Self {
        Self { candidate, ..self }
    }

    /// The same under the next epoch: whatever was prepared under this one is prepared anew.
    fn renewed(&self) -> Self {
        Self {
            policy: Arc::clone(&self.policy),
            zones: Arc::clone(&self.zones),
            epoch: self.epoch + 1,
            flushes: AtomicU64::new(0),
            loaded: self.loaded,
            designation: self.designation.clone(),
            cookies: self.cookies.clone(),
            candidate: self.candidate.clone(),
            slots: self.slots.clone(),
        }
    }

    /// What a thread keeps for itself stands under this number, which never comes twice: there are fewer than 2^32 loads,
    /// and fewer flushes under each.
    #[must_use]
    pub fn edition(&self) -> u64 {
        self.epoch << 32 | self.flushes.load(Ordering::Relaxed)
    }

    /// The place of the counters of an asker's segment.
    #[must_use]
    pub fn slot(&self, asker: Asker) -> SegmentSlot {
        self.slots.get(asker.place()).copied().unwrap_or(SegmentSlot::OTHER)
    }
}

/// The epoch that each door's thread last took a rulebook with, or that it is parked. A reload revokes grants
/// only after every thread has passed it.
#[derive(Debug, Default)]
pub struct Passed(parking_lot::Mutex<Vec<Arc<AtomicU64>>>);

/// A thread that waits for work holds no rulebook.
const PARKED: u64 = u64::MAX;

/// A rulebook in use: while it is held, no swap revokes what it allowed.
#[derive(Debug)]
pub struct InUse<'a> {
    rulebook: Guard<Arc<Rulebook>>,
    slot: &'a AtomicU64,
}

impl Deref for InUse<'_> {
    type Target = Rulebook;

    fn deref(&self) -> &Rulebook {
        &self.rulebook
    }
}

impl Drop for InUse<'_> {
    fn drop(&mut self) {
        self.slot.store(PARKED, Ordering::SeqCst);
    }
}

impl Passed {
    /// Adds a thread.
    #[must_use]
    pub fn register(&self) -> Arc<AtomicU64> {
        let slot = Arc::new(AtomicU64::new(PARKED));
        self.0.lock().push(Arc::clone(&slot));
        slot
    }

    /// Whether every thread has taken `epoch` or is parked.
    #[must_use]
    pub fn all_past(&self, epoch: u64) -> bool {
        self.0.lock().iter().all(|slot| slot.load(Ordering::SeqCst) >= epoch)
    }
}

impl Gate {
    /// The rulebook in force, for a batch of the thread whose slot this is. Whatever it makes must have left when it is
    /// dropped: then a swap may revoke it.
    pub fn use_rulebook<'a>(&self, slot: &'a AtomicU64) -> InUse<'a> {
        let mut rulebook = self.rulebook.load();
        loop {
            slot.store(rulebook.epoch, Ordering::SeqCst);
            // Pairs with the fence of `swap`: either the swap sees this epoch and waits, or its rulebook is seen here.
            fence(Ordering::SeqCst);
            let newest = self.rulebook.load();
            if newest.epoch == rulebook.epoch {
                return InUse { rulebook: newest, slot };
            }
            rulebook = newest;
        }
    }

    /// Drops what is cached of some names: what is known, what failed, and what is prepared, also what each thread keeps.
    /// What is being asked meanwhile is not kept. What is open stays open.
    pub fn flush(&self, flush: &Flush) -> Flushed {
        // First: who looks up what is gone asks anew.
        self.upstreams.forget();
        let flushed = Flushed {
            answers: self.answers.flush(flush),
            failures: self.failures.flush(flush),
            replies: self.cover.flush(flush),
        };
        // Last: what a thread looks up again is gone by then.
        self.rulebook.load().flushes.fetch_add(1, Ordering::Relaxed);
        flushed
    }

    /// Puts a rulebook in force: firewalls first, then the rulebook, then the threads, then the grants
    /// (ARCHITECTURE: a Permit can grow stale). What was closed. One at a time: the caller sees to it.
    ///
    /// # Errors
    /// The firewall that refused its layout, and why; nothing has changed.
    pub async fn swap(&self, rulebook: Arc<Rulebook>) -> Result<Closed, (Arc<str>, FirewallError)> {
        self.granter.arrange(Arc::clone(&rulebook)).await?;
        self.publish(rulebook).await;
        Ok(self.granter.revoke().await)
    }

    /// Closes what `filter` takes, whatever the policy says; it is open again for who asks again. `why` is what its records
    /// say. What is told meanwhile was asked for after it was closed. Not while a [`Gate::swap`] is under way: the caller
    /// sees to it.
    pub async fn close(&self, filter: GrantsOf, why: Arc<str>) -> Closed {
        let filter = Arc::new(filter);
        // First: nothing that is to be closed is opened from here on.
        self.granter.hold(&filter).await;
        // Then: nothing that was opened before is told any more, prepared or under way.
        self.publish(Arc::new(self.rulebook.load().renewed())).await;
        self.granter.close(filter, why).await
    }

    /// Puts a rulebook in force and waits until every thread has taken it.
    async fn publish(&self, rulebook: Arc<Rulebook>) {
        self.rulebook.store(Arc::clone(&rulebook));
        fence(Ordering::SeqCst);
        let pass = async {
            while !self.passed.all_past(rulebook.epoch) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        if tokio::time::timeout(PASS, pass).await.is_err() {
            tracing::warn!("a worker did not take the new policy in time; grants are revoked all the same");
        }
    }
}
