//! What is taken away before its end (I6).

use std::ops::Range;

use super::table::Slot;
use super::{Ledger, Revoked};
use crate::grant::Change;
use crate::net::Element;
use crate::policy::Basis;
use crate::time::Tick;

impl Ledger {
    /// Takes away every reason in some slots that `keep` does not uphold: the batch gets the closings, and the lowered
    /// ends of elements that other reasons still hold. Asks once per live reason.
    pub fn revoke(
        &mut self,
        slots: Range<usize>,
        now: Tick,
        mut keep: impl FnMut(&Basis, &Element) -> bool,
    ) -> Vec<Revoked> {
        let mut revoked = Vec::new();
        let slots: Vec<Slot> = self.table.taken(slots).collect();
        for slot in slots {
            self.revoke_one(slot, now, &mut keep, &mut revoked);
        }
        self.revocations += u64::from(!revoked.is_empty());
        revoked
    }

    fn revoke_one(
        &mut self,
        slot: Slot,
        now: Tick,
        keep: impl FnMut(&Basis, &Element) -> bool,
        revoked: &mut Vec<Revoked>,
    ) {
        let Some(element) = self.table.element(slot).copied() else { return };
        let Some(entry) = self.table.entry_mut(slot) else { return };
        let first = revoked.len();
        entry.revoke(&element, now, keep, revoked);
        if revoked.len() == first {
            return;
        }
        let remains = self.shorten(slot, element, now);
        for one in revoked.iter_mut().skip(first) {
            one.remains = remains;
        }
    }

    /// Lets an element end with the reasons that it has left; `None`: it has none, and is to be closed.
    fn shorten(&mut self, slot: Slot, element: Element, now: Tick) -> Option<Tick> {
        let number = self.batch_number;
        let entry = self.table.entry_mut(slot)?;
        if !entry.settle_place(now) {
            self.close(slot);
            return None;
        }
        let until = entry.place.open_until;
        // What waits in the batch may say otherwise, so it is put right even where the old end is the new one.
        let changes = entry.in_force != until || entry.batched.0 == number;
        if changes {
            // Until the firewalls say which, only the earlier of both ends can be relied upon.
            entry.in_force = entry.in_force.min(until);
        }
        self.refile(slot);
        if changes {
            self.change(slot, Change::Open { element, until });
        }
        Some(until)
    }

    /// Closes elements whatever their reasons; the batch gets the closings.
    pub fn abandon<'a>(&mut self, elements: impl IntoIterator<Item = &'a Element>) {
        self.revocations += 1;
        for element in elements {
            if let Some(slot) = self.table.find(element) {
                self.close(slot);
            }
        }
    }
}
