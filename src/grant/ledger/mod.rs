//! The ledger: offer, acknowledge, settle, expire, revoke; adopt at start, repair after a foreign hand.
//!
//! What holds between any two calls, and what the model in `tests.rs` checks after each:
//!
//! - An element ends with the last of its reasons. What the firewalls were last told says the same, or the batch
//!   being filled does.
//! - One word per element and batch; between [`Ledger::take_batch`] and [`Ledger::acknowledge`] nothing else is called.

mod caps;
mod entry;
mod granted;
mod places;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, hash_map};
use std::time::Duration;

use foldhash::quality::RandomState;

pub use self::caps::{Caps, Full};
pub use self::entry::{Reason, Revoked};
pub use self::granted::{Added, Effect, Granted, Offered};

use self::entry::Entry;
use self::places::Places;
use crate::grant::{Change, Terms};
use crate::net::{Element, Scope, SegmentId};
use crate::policy::{Basis, Cleared};
use crate::time::Tick;

/// One live element, for listings and snapshots.
#[derive(Clone, Copy, Debug)]
pub struct Held<'a> {
    /// Which.
    pub element: &'a Element,
    /// When the firewalls drop it; `None` while no acknowledgement has come.
    pub in_force: Option<Tick>,
    /// Why.
    pub reasons: &'a [Reason],
}

/// Which element is open, for which reasons, until when. See the room's front page.
#[derive(Debug)]
pub struct Ledger {
    terms: Terms,
    caps: Caps,
    entries: HashMap<Element, Entry, RandomState>,
    places: Places,
    batch: Vec<Change>,
    /// Where in the batch an element's change is.
    batched: HashMap<Element, usize, RandomState>,
    /// How often reasons were revoked: an offer that saw one looks for its reasons when it is settled.
    revocations: u64,
}

/// What a firewall may hold an element longer than it was told: its clock is coarser than ours (guessed; nftables'
/// is off by 30 ms).
const ROUNDING: Duration = Duration::from_secs(1);

impl Ledger {
    /// An empty ledger.
    #[must_use]
    pub fn new(terms: Terms, caps: Caps) -> Self {
        Self {
            terms,
            caps,
            entries: HashMap::default(),
            places: Places::default(),
            batch: Vec::new(),
            batched: HashMap::default(),
            revocations: 0,
        }
    }

    /// How many elements are live or pending.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Everything that is live or pending.
    pub fn iter(&self) -> impl Iterator<Item = Held<'_>> {
        self.entries.iter().map(|(element, entry)| Held { element, in_force: entry.in_force, reasons: &entry.reasons })
    }

    /// Puts the openings of an answer that is told until `told_until` into the batch being filled. An opening
    /// that is in force long enough adds nothing; one that is pending joins the same batch.
    ///
    /// # Errors
    /// A cap is met and too little of that owner is in grace: nothing was added, nobody's grant was cut.
    pub fn offer(&mut self, cleared: Cleared, told_until: Tick, now: Tick) -> Result<Offered, Full> {
        self.expire(now);
        let told_until = told_until.max(now);
        let segment = SegmentId::of(&cleared.basis().segment);
        self.make_room(cleared.openings(), segment, now)?;
        let mut added = Vec::new();
        for opening in cleared.openings() {
            let reason = Reason::new(cleared.basis(), self.terms.lease(told_until, opening.hold, now));
            added.extend(self.add(opening.element, reason, segment, now));
        }
        Ok(Offered { cleared, told_until, added, revocations: self.revocations })
    }

    /// Adds or renews a reason; `None` where the one that is known will do.
    fn add(&mut self, element: Element, reason: Reason, segment: SegmentId, now: Tick) -> Option<Added> {
        let (entry, before) = match self.entries.entry(element) {
            hash_map::Entry::Occupied(known) => {
                let known = known.into_mut();
                let place = known.place;
                (known, Some(place))
            }
            hash_map::Entry::Vacant(vacant) => (vacant.insert(Entry::new(segment)), None),
        };
        entry.place.segment = segment;
        let was_open = entry.in_force.is_some_and(|until| until > now);
        let open_until = entry.enlist(reason, &self.terms, now);
        self.places.refile(element, before, Some(entry.place));
        let until = entry.place.open_until;
        let told = entry.in_force == Some(until);
        if !told {
            self.change(Change::Open { element, until });
        }
        let effect = match (was_open, told) {
            (false, _) => Effect::Opens(until),
            (true, false) => Effect::Extends(until),
            (true, true) => Effect::Joins,
        };
        open_until.map(|open_until| Added { element, open_until, effect })
    }

    /// One change per element and batch: the later word replaces the earlier.
    fn change(&mut self, change: Change) {
        match self.batched.get(change.element()) {
            Some(&at) => {
                if let Some(slot) = self.batch.get_mut(at) {
                    *slot = change;
                }
            }
            None => {
                self.batched.insert(*change.element(), self.batch.len());
                self.batch.push(change);
            }
        }
    }

    fn remove(&mut self, element: &Element) {
        if let Some(entry) = self.entries.remove(element) {
            self.places.refile(*element, Some(entry.place), None);
        }
    }

    /// Hands over the batch that was filled; the next one starts empty.
    #[must_use]
    pub fn take_batch(&mut self) -> Vec<Change> {
        self.batched.clear();
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
                && let Some(entry) = self.entries.get_mut(element)
            {
                entry.in_force = Some(*until);
            }
        }
        back
    }

    /// What was in force before goes on until its end, and nothing more is promised; what was not is gone.
    fn fall_back(&mut self, element: Element) -> Change {
        let Some(entry) = self.entries.get_mut(&element) else { return Change::Close { element } };
        let Some(until) = entry.in_force else {
            self.remove(&element);
            return Change::Close { element };
        };
        let before = entry.place;
        entry.end_by(until);
        self.places.refile(element, Some(before), Some(entry.place));
        Change::Open { element, until }
    }

    /// Drops what has ended; the firewalls have dropped it by themselves. How many elements.
    pub fn expire(&mut self, now: Tick) -> usize {
        let mut ended = 0;
        while let Some((_, element)) = self.places.first_end().filter(|(until, _)| *until <= now) {
            self.remove(&element);
            ended += 1;
        }
        ended
    }

    /// When the next element ends.
    #[must_use]
    pub fn next_end(&self) -> Option<Tick> {
        self.places.first_end().map(|(until, _)| until)
    }

    /// Takes away every reason that `keep` does not uphold (I6): the batch gets the closings, and the lowered
    /// ends of elements that other reasons still hold. Asks once per live reason; what stays costs no allocation.
    pub fn revoke(&mut self, now: Tick, mut keep: impl FnMut(&Basis, &Element) -> bool) -> Vec<Revoked> {
        let mut revoked = Vec::new();
        let mut touched = Vec::new();
        for (element, entry) in &mut self.entries {
            let first = revoked.len();
            entry.revoke(element, now, &mut keep, &mut revoked);
            if revoked.len() > first {
                touched.push((*element, first..revoked.len()));
            }
        }
        self.revocations += u64::from(!revoked.is_empty());
        for (element, theirs) in touched {
            let remains = self.shorten(element, now);
            for one in revoked.get_mut(theirs).unwrap_or_default() {
                one.remains = remains;
            }
        }
        revoked
    }

    /// Lets an element end with the reasons that it has left; `None`: it has none, and is to be closed.
    fn shorten(&mut self, element: Element, now: Tick) -> Option<Tick> {
        let entry = self.entries.get_mut(&element)?;
        let before = entry.place;
        if !entry.settle_place(now) {
            self.remove(&element);
            self.change(Change::Close { element });
            return None;
        }
        let until = entry.place.open_until;
        self.places.refile(element, Some(before), Some(entry.place));
        // What waits in the batch may say otherwise, so it is put right even where the old end is the new one.
        if entry.in_force != Some(until) || self.batched.contains_key(&element) {
            // Until the firewalls say which, only the earlier of both ends can be relied upon.
            entry.in_force = entry.in_force.map(|known| known.min(until));
            self.change(Change::Open { element, until });
        }
        Some(until)
    }

    /// Takes over an element that was found in force at start until `in_force`, with the reasons that the journal
    /// gives for it and the present policy upholds, oldest first. Where they end sooner the batch gets the lowered end,
    /// where none counts any more its closing; then it is false. No cap is asked: it is open.
    pub fn adopt(&mut self, element: Element, in_force: Tick, reasons: Vec<Reason>, now: Tick) -> bool {
        for mut reason in reasons {
            reason.open_until = reason.open_until.min(in_force);
            if reason.open_until <= now {
                continue;
            }
            let told = reason.told_until.max(self.terms.told_at_most(reason.open_until, now));
            reason.told_until = told.min(reason.open_until);
            let segment = match element.from {
                Scope::Segment(segment) => segment,
                Scope::Client(_) => SegmentId::of(&reason.basis.segment),
            };
            self.add(element, reason, segment, now);
        }
        let Some(entry) = self.entries.get_mut(&element) else {
            self.change(Change::Close { element });
            return false;
        };
        let until = entry.place.open_until;
        entry.in_force = Some(until);
        if in_force <= until + ROUNDING {
            self.withdraw(&element);
        }
        true
    }

    /// Takes an element's change out of the batch.
    fn withdraw(&mut self, element: &Element) {
        if let Some(at) = self.batched.remove(element) {
            self.batch.swap_remove(at);
            if let Some(moved) = self.batch.get(at) {
                self.batched.insert(*moved.element(), at);
            }
        }
    }

    /// After a firewall lost or gained elements behind our back: `found` is what it holds; what must be opened again,
    /// what must end sooner and what must go, so that it holds what was last acknowledged. The batch being filled comes
    /// on top of that.
    #[must_use]
    pub fn repair(&self, found: &HashMap<Element, Tick, RandomState>, now: Tick) -> Vec<Change> {
        let wrong = self.entries.iter().filter_map(|(element, entry)| {
            let until = entry.in_force.filter(|until| *until > now)?;
            let held = found.get(element).is_some_and(|held| (until..=until + ROUNDING).contains(held));
            (!held).then_some(Change::Open { element: *element, until })
        });
        let live = |element: &Element| self.entries.get(element).is_some_and(|entry| entry.place.open_until > now);
        let foreign = found.keys().filter(|element| !live(element));
        wrong.chain(foreign.map(|element| Change::Close { element: *element })).collect()
    }
}
