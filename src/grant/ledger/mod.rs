//! The ledger: offer, acknowledge, settle, expire, revoke; adopt at start, repair after a foreign hand.
//!
//! What holds between any two calls, and what the model in `tests.rs` checks after each:
//!
//! - An element ends with the last of its reasons. What the firewalls were last told says the same, or the batch
//!   being filled does.
//! - One word per element and batch; between [`Ledger::take_batch`] and [`Ledger::acknowledge`] nothing else is called.
//!
//! A million elements may be live: every element costs some 250 bytes, an offer the same few steps however many there
//! are, and what must look at all of them ([`Ledger::revoke`], [`Ledger::held`]) is done slot by slot, so that a caller
//! can go on offering in between.

mod caps;
mod entry;
mod grace;
mod granted;
mod packed;
mod recall;
mod revoke;
mod table;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::ops::Range;
use std::time::Duration;

use foldhash::quality::RandomState;
use smallvec::SmallVec;

pub use self::caps::{Caps, Full};
pub use self::entry::{Reason, Revoked};
pub use self::granted::{Added, Effect, Granted, Offered, Settled};
pub use self::recall::Compared;

use self::entry::{Enlisted, Entry, Kept};
use self::grace::Owners;
use self::packed::Packer;
use self::table::{Slot, Table};
use crate::grant::{Change, Lease, Terms};
use crate::net::{Element, SegmentId};
use crate::policy::{Basis, Cleared};
use crate::time::{Now, Tick};

/// One live element, for listings and snapshots.
#[derive(Clone, Copy, Debug)]
pub struct Held<'a> {
    /// Which.
    pub element: &'a Element,
    /// When the firewalls drop it; `None` while no acknowledgement has come.
    pub in_force: Option<Tick>,
    reasons: &'a [Kept],
}

impl Held<'_> {
    /// Why, each made for the caller.
    pub fn reasons(&self) -> impl Iterator<Item = Reason> {
        self.reasons.iter().map(Kept::reason)
    }
}

/// Which element is open, for which reasons, until when. See the room's front page.
#[derive(Debug)]
pub struct Ledger {
    terms: Terms,
    caps: Caps,
    table: Table,
    owners: Owners,
    packer: Packer,
    /// When to look at which element: when its grace begins and when it ends, or earlier, where that was moved since.
    /// An alarm that is not the element's own any more is passed over.
    alarms: BinaryHeap<Reverse<(Tick, Slot)>>,
    batch: Vec<Change>,
    /// The number of the batch being filled.
    batch_number: u32,
    /// Where in the batch the change of an element is that is gone: its closing, or an opening that is over.
    gone: HashMap<Element, u32, RandomState>,
    /// How often reasons were revoked: an offer that saw one looks for its reasons when it is settled.
    revocations: u64,
}

/// What a firewall may hold an element longer than it was told: its clock is coarser than ours (guessed; nftables'
/// is off by 30 ms).
const ROUNDING: Duration = Duration::from_secs(1);

/// A microsecond: what follows `told_until`.
const NEXT: Duration = Duration::from_micros(1);

/// Alarms are never swept below this many.
const SWEEP_FROM: usize = 1 << 16;

impl Ledger {
    /// An empty ledger.
    #[must_use]
    pub fn new(terms: Terms, caps: Caps) -> Self {
        Self {
            terms,
            caps,
            table: Table::default(),
            owners: Owners::default(),
            packer: Packer::default(),
            alarms: BinaryHeap::new(),
            batch: Vec::new(),
            batch_number: 1,
            gone: HashMap::default(),
            revocations: 0,
        }
    }

    /// How many elements are live or pending.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether nothing is open.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many slots the elements are in: what is live from now on until a sweep over all of these is in one of them,
    /// or came later.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.table.slots()
    }

    /// What is live or pending in some slots.
    pub fn held(&self, slots: Range<usize>) -> impl Iterator<Item = Held<'_>> {
        self.table.taken(slots).filter_map(|slot| self.at(slot))
    }

    /// An element that is live or pending.
    #[must_use]
    pub fn find(&self, element: &Element) -> Option<Held<'_>> {
        self.at(self.table.find(element)?)
    }

    fn at(&self, slot: Slot) -> Option<Held<'_>> {
        let (element, entry) = self.table.element(slot).zip(self.table.entry(slot))?;
        let in_force = (entry.in_force > Tick(0)).then_some(entry.in_force);
        Some(Held { element, in_force, reasons: &entry.reasons })
    }

    /// Puts the openings of an answer that is told until `told_until` into the batch being filled. An opening
    /// that is in force long enough adds nothing; one that is pending joins the same batch.
    ///
    /// # Errors
    /// A cap is met and too little of that owner is in grace: nothing was added, nobody's grant was cut.
    pub fn offer(&mut self, cleared: Cleared, told_until: Tick, at: Now) -> Result<Offered, Full> {
        let now = at.tick;
        let told_until = told_until.max(now);
        let segment = SegmentId::of(&cleared.basis().segment);
        self.make_room(cleared.openings(), segment, now)?;
        let mut added = SmallVec::new();
        for opening in cleared.openings() {
            let ends = opening.ends.map(|ends| at.tick_at(ends));
            let lease = self.terms.lease(told_until, opening.hold, ends, now);
            added.extend(self.add(opening.element, cleared.basis(), lease, segment, now));
        }
        Ok(Offered { cleared, told_until, added, revocations: self.revocations })
    }

    /// Adds or renews a reason; `None` where the one that is known will do.
    fn add(&mut self, element: Element, basis: &Basis, lease: Lease, segment: SegmentId, now: Tick) -> Option<Added> {
        let slot = self.table.find(&element).unwrap_or_else(|| self.insert(element, segment));
        let entry = self.table.entry_mut(slot)?;
        let before = entry.place;
        let was_open = entry.in_force > now;
        if !was_open {
            // It has ended and was not expired yet.
            entry.in_force = Tick(0);
        }
        let enlisted = entry.enlist(basis, lease, &self.terms, &mut self.packer, now);
        let (after, in_force) = (entry.place, entry.in_force);
        if segment != before.segment {
            self.move_to(slot, segment);
        }
        if after.told_until != before.told_until || after.open_until != before.open_until {
            self.refile(slot);
        }
        let until = after.open_until;
        let told = in_force == until;
        if !told {
            self.change(slot, Change::Open { element, until });
        }
        let effect = match (was_open, told) {
            (false, _) => Effect::Opens(until),
            (true, false) => Effect::Extends(until),
            (true, true) => Effect::Joins,
        };
        match enlisted {
            Enlisted::Known => None,
            Enlisted::Until(open_until) => Some(Added { element, open_until, effect }),
        }
    }

    /// A new element; it has no place yet.
    fn insert(&mut self, element: Element, segment: SegmentId) -> Slot {
        let mut entry = Entry::new(segment);
        if let Some(at) = self.gone.remove(&element) {
            entry.batched = (self.batch_number, at);
        }
        self.owners.add(&element, segment);
        self.table.insert(element, entry)
    }

    /// An element that is another segment's from here on.
    fn move_to(&mut self, slot: Slot, segment: SegmentId) {
        let Some(element) = self.table.element(slot).copied() else { return };
        self.owners.leave_grace(&mut self.table, slot);
        if let Some(entry) = self.table.entry_mut(slot) {
            self.owners.remove(&element, entry.place.segment);
            entry.place.segment = segment;
            self.owners.add(&element, segment);
        }
        self.refile(slot);
    }

    /// After an element's place has changed: it is in grace, where it is, once its alarm has said so.
    fn refile(&mut self, slot: Slot) {
        self.owners.leave_grace(&mut self.table, slot);
        self.arm(slot, |entry| (entry.place.told_until + NEXT).min(entry.place.open_until));
    }

    /// Sets the alarm of an element, where it has none that is as early.
    fn arm(&mut self, slot: Slot, when: impl FnOnce(&Entry) -> Tick) {
        let Some(entry) = self.table.entry_mut(slot) else { return };
        let when = when(entry);
        if entry.alarm == Tick(0) || when < entry.alarm {
            entry.alarm = when;
            self.alarms.push(Reverse((when, slot)));
            if self.alarms.len() > SWEEP_FROM.max(2 * self.table.len()) {
                let mut alarms = std::mem::take(&mut self.alarms).into_vec();
                let own = |slot, when| self.table.entry(slot).is_some_and(|entry| entry.alarm == when);
                alarms.retain(|Reverse((when, slot))| own(*slot, *when));
                // A slot that is taken again and again by elements that end at once has as many.
                alarms.sort_unstable();
                alarms.dedup();
                self.alarms = alarms.into();
            }
        }
    }

    /// One change per element and batch: the later word replaces the earlier.
    fn change(&mut self, slot: Slot, change: Change) {
        let number = self.batch_number;
        let Some(entry) = self.table.entry_mut(slot) else { return };
        if entry.batched.0 != number {
            entry.batched = (number, u32::try_from(self.batch.len()).unwrap_or(u32::MAX));
            self.batch.push(change);
        } else if let Some(place) = self.batch.get_mut(entry.batched.1 as usize) {
            *place = change;
        }
    }

    /// Closes an element and forgets it.
    fn close(&mut self, slot: Slot) {
        let Some(element) = self.table.element(slot).copied() else { return };
        self.change(slot, Change::Close { element });
        self.remove(slot);
    }

    fn remove(&mut self, slot: Slot) {
        self.owners.leave_grace(&mut self.table, slot);
        if let Some((element, entry)) = self.table.remove(slot) {
            self.owners.remove(&element, entry.place.segment);
            if entry.batched.0 == self.batch_number {
                self.gone.insert(element, entry.batched.1);
            }
        }
    }

    /// Hands over the batch that was filled; the next one starts empty.
    #[must_use]
    pub fn take_batch(&mut self) -> Vec<Change> {
        self.batch_number = self.batch_number.checked_add(1).unwrap_or(1);
        self.gone.clear();
        std::mem::take(&mut self.batch)
    }

    /// Every required firewall has applied `changes`, except those at the indexes `failed`. What takes these back: one
    /// firewall may have made what another refused, so all of them are to be told.
    #[must_use]
    pub fn acknowledge(&mut self, changes: &[Change], failed: &[usize]) -> Vec<Change> {
        let mut taken = vec![true; changes.len()];
        for at in failed {
            if let Some(taken) = taken.get_mut(*at) {
                *taken = false;
            }
        }
        let mut back = Vec::with_capacity(failed.len());
        for (change, taken) in changes.iter().zip(taken) {
            if !taken {
                back.push(self.fall_back(*change.element()));
            } else if let Change::Open { element, until } = change
                && let Some(slot) = self.table.find(element)
                && let Some(entry) = self.table.entry_mut(slot)
            {
                entry.in_force = *until;
            }
        }
        back
    }

    /// What was in force before goes on until its end, and nothing more is promised; what was not is gone.
    fn fall_back(&mut self, element: Element) -> Change {
        let Some(slot) = self.table.find(&element) else { return Change::Close { element } };
        let until = self.table.entry(slot).map_or(Tick(0), |entry| entry.in_force);
        if until == Tick(0) {
            self.remove(slot);
            return Change::Close { element };
        }
        if let Some(entry) = self.table.entry_mut(slot) {
            entry.end_by(until);
        }
        self.refile(slot);
        Change::Open { element, until }
    }

    /// Drops what has ended; the firewalls have dropped it by themselves. Looks at `most` elements and goes on the next
    /// time: an element that is still there counts against caps and is not open. Whether there are more.
    pub fn expire(&mut self, now: Tick, most: usize) -> bool {
        for _ in 0..most {
            let Some(Reverse((when, slot))) = self.alarms.peek().copied().filter(|Reverse((when, _))| *when <= now)
            else {
                return false;
            };
            self.alarms.pop();
            let Some(entry) = self.table.entry_mut(slot).filter(|entry| entry.alarm == when) else { continue };
            entry.alarm = Tick(0);
            let place = entry.place;
            if place.open_until <= now {
                self.remove(slot);
            } else if place.told_until < now {
                self.owners.enter_grace(&mut self.table, slot);
                self.arm(slot, |entry| entry.place.open_until);
            } else {
                self.refile(slot);
            }
        }
        true
    }
}
