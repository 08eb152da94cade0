//! What was open before: at start, what a journal and the firewalls say; later, what a firewall holds after somebody
//! else changed it.
//!
//! At start, in this order and before anything else: [`Ledger::recall`] and [`Ledger::forget`] as the journal goes on,
//! [`Ledger::confirm`] for every element that a firewall holds, [`Ledger::adopt`].

use std::ops::Range;

use super::entry::Kept;
use super::table::Slot;
use super::{Entry, Held, Ledger, ROUNDING};
use crate::grant::Change;
use crate::net::{Element, Scope, SegmentId};
use crate::policy::Basis;
use crate::time::Tick;

impl Ledger {
    /// A reason that an element had; the later word on a name and rule counts.
    pub fn recall(&mut self, element: Element, basis: &Basis, told_until: Tick, open_until: Tick) {
        let slot = self.table.find(&element).unwrap_or_else(|| self.table.insert(element, Entry::new(SegmentId(0))));
        let reason = Kept { basis: self.packer.pack(basis), told_until, open_until };
        if let Some(entry) = self.table.entry_mut(slot) {
            entry.reasons.retain(|known| !known.basis.is_of(basis));
            entry.push(reason);
        }
    }

    /// An element was closed: it has no reasons any more.
    pub fn forget(&mut self, element: &Element) {
        if let Some(slot) = self.table.find(element) {
            self.table.remove(slot);
        }
    }

    /// What was recalled and has not ended, each element with the end of its last reason.
    #[must_use]
    pub fn recalled(&self, now: Tick) -> Vec<(Element, Tick)> {
        let end = |held: Held<'_>| Some((*held.element, held.reasons.iter().map(|reason| reason.open_until).max()?));
        self.held(0..self.slots()).filter_map(end).filter(|(_, end)| *end > now).collect()
    }

    /// What the firewalls were last told and has not ended.
    #[must_use]
    pub fn in_force(&self, now: Tick) -> Vec<(Element, Tick)> {
        let told = |held: Held<'_>| Some((*held.element, held.in_force?));
        self.held(0..self.slots()).filter_map(told).filter(|(_, end)| *end > now).collect()
    }

    /// A firewall holds an element until then; of several, the longest counts.
    pub fn confirm(&mut self, element: &Element, until: Tick) {
        if let Some(slot) = self.table.find(element)
            && let Some(entry) = self.table.entry_mut(slot)
        {
            entry.in_force = entry.in_force.max(until);
        }
    }

    /// Takes over what was recalled and confirmed, as far as `keep` upholds its reasons, and forgets the rest. No cap is
    /// asked: it is open. The firewalls have to be told what differs ([`Ledger::repair`]).
    pub fn adopt(&mut self, now: Tick, mut keep: impl FnMut(&Basis, &Element) -> bool) {
        let slots: Vec<Slot> = self.table.taken(0..self.slots()).collect();
        for slot in slots {
            if self.adopt_one(slot, now, &mut keep).is_some() {
                self.refile(slot);
            } else {
                self.table.remove(slot);
            }
        }
    }

    /// `None`: it is not open for any reason that counts.
    fn adopt_one(&mut self, slot: Slot, now: Tick, mut keep: impl FnMut(&Basis, &Element) -> bool) -> Option<()> {
        let element = *self.table.element(slot)?;
        let terms = self.terms;
        let entry = self.table.entry_mut(slot)?;
        let in_force = entry.in_force;
        let mut segment: Option<SegmentId> = None;
        entry.reasons.retain(|reason| {
            reason.open_until = reason.open_until.min(in_force);
            if reason.open_until <= now {
                return false;
            }
            let basis = reason.basis.unpack();
            let kept = keep(&basis, &element);
            if kept {
                let told = reason.told_until.max(terms.told_at_most(reason.open_until, now));
                reason.told_until = told.min(reason.open_until);
                segment = Some(SegmentId::of(&basis.segment));
            }
            kept
        });
        let last = segment?;
        entry.settle_place(now);
        entry.in_force = entry.place.open_until;
        entry.place.segment = if let Scope::Segment(segment) = element.from { segment } else { last };
        let segment = entry.place.segment;
        self.owners.add(&element, segment);
        Some(())
    }

    /// After a firewall lost or gained elements behind our back: `found` is what it holds; what must be opened again,
    /// what must end sooner and what must go, so that it holds what was last acknowledged. The batch being filled comes
    /// on top of that.
    #[must_use]
    pub fn repair(&self, found: &[(Element, Tick)], now: Tick) -> Vec<Change> {
        let mut compared = Compared::default();
        let foreign = self.compare(found, &mut compared, now);
        let mut changes: Vec<_> = foreign.into_iter().map(|element| Change::Close { element }).collect();
        changes.extend(self.missing(0..self.slots(), &compared, now));
        changes
    }

    /// The first half of a repair that is made in parts: notes what of `found` is right, and gives what must go. What
    /// changes from here on the caller has to see to.
    #[must_use]
    pub fn compare(&self, found: &[(Element, Tick)], compared: &mut Compared, now: Tick) -> Vec<Element> {
        let right = &mut compared.right;
        right.resize(right.len().max(self.slots()), false);
        let mut foreign = Vec::new();
        for (element, held) in found {
            let slot = self.table.find(element);
            let entry = slot.and_then(|slot| self.table.entry(slot)).filter(|entry| entry.place.open_until > now);
            match (slot, entry) {
                (Some(slot), Some(entry)) => {
                    if let Some(right) = right.get_mut(slot.number()) {
                        *right = (entry.in_force..=entry.in_force + ROUNDING).contains(held);
                    }
                }
                _ => foreign.push(*element),
            }
        }
        foreign
    }

    /// The second half, of some slots: what must be opened again, or end at another time.
    pub fn missing(&self, slots: Range<usize>, compared: &Compared, now: Tick) -> impl Iterator<Item = Change> {
        self.table.taken(slots).filter_map(move |slot| {
            let until = self.table.entry(slot).map_or(Tick(0), |entry| entry.in_force);
            let element = *self.table.element(slot).filter(|_| until > now)?;
            (compared.right.get(slot.number()) != Some(&true)).then_some(Change::Open { element, until })
        })
    }

    /// What the firewalls were last told of an element.
    #[must_use]
    pub fn told(&self, element: &Element, now: Tick) -> Change {
        match self.find(element).and_then(|held| held.in_force).filter(|until| *until > now) {
            Some(until) => Change::Open { element: *element, until },
            None => Change::Close { element: *element },
        }
    }
}

/// What of that which a firewall holds was found to be right.
#[derive(Debug, Default)]
pub struct Compared {
    /// By slot.
    right: Vec<bool>,
}
