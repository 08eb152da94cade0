//! One element of the ledger and its reasons.

use std::sync::Arc;

use smallvec::SmallVec;

use super::places::Place;
use crate::grant::{Lease, Terms};
use crate::net::{Element, SegmentId};
use crate::policy::Basis;
use crate::time::Tick;

/// One reason for which an element is open: a name under a rule. Whoever asks for the same name under the same rule
/// renews it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// The answer that needed it; of several, the last that renewed it.
    pub basis: Arc<Basis>,
    /// No client was told longer.
    pub told_until: Tick,
    /// It counts until here.
    pub open_until: Tick,
}

impl Reason {
    pub(super) fn new(basis: &Arc<Basis>, lease: Lease) -> Self {
        Self { basis: Arc::clone(basis), told_until: lease.told_until, open_until: lease.open_until }
    }

    fn is_of(&self, basis: &Basis) -> bool {
        self.basis.question.name == basis.question.name && self.basis.rule == basis.rule
    }
}

/// A reason that was taken away before its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revoked {
    /// The element.
    pub element: Element,
    /// The reason that is gone.
    pub basis: Arc<Basis>,
    /// The end that the remaining reasons give it; `None`: it is closed.
    pub remains: Option<Tick>,
}

/// The most reasons that one element keeps (I5): under `**.example.com` a client can ask for any number of names that
/// share an address. At the cap the reason that ends first gives way to the new one; the element stays open as long
/// as before. What is lost is only that the name that gave way would hold the element when the others are revoked.
pub(super) const MAX_REASONS: usize = 64;

/// One element.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// At most [`MAX_REASONS`].
    pub(super) reasons: SmallVec<[Reason; 1]>,
    /// The firewalls hold it at least until here; `None` before they said so.
    pub(super) in_force: Option<Tick>,
    /// The maxima over the reasons; the ledger files the element under it.
    pub(super) place: Place,
}

impl Entry {
    /// An element that is not open yet and has no reason yet.
    pub(super) fn new(segment: SegmentId) -> Self {
        let place = Place { segment, told_until: Tick(0), open_until: Tick(0) };
        Self { reasons: SmallVec::new(), in_force: None, place }
    }

    /// Whether it is open for this name under this rule, and known to be told until `told_until`.
    pub(super) fn is_for(&self, basis: &Basis, told_until: Tick) -> bool {
        self.reasons.iter().any(|reason| reason.is_of(basis) && reason.told_until >= told_until)
    }

    /// Adds or renews a reason, and drops those that have ended; the end of the reason, where it was not in force long
    /// enough before.
    pub(super) fn enlist(&mut self, reason: Reason, terms: &Terms, now: Tick) -> Option<Tick> {
        self.reasons.retain(|known| known.open_until > now);
        let in_force = self.in_force;
        let lease = Lease { told_until: reason.told_until, open_until: reason.open_until };
        let renewed = match self.reasons.iter_mut().find(|known| known.is_of(&reason.basis)) {
            Some(known) => {
                known.told_until = known.told_until.max(reason.told_until);
                if in_force.is_some_and(|until| terms.covers(until.min(known.open_until), lease)) {
                    None
                } else {
                    known.open_until = known.open_until.max(reason.open_until);
                    known.basis = reason.basis;
                    Some(known.open_until)
                }
            }
            None => {
                if self.reasons.len() >= MAX_REASONS {
                    self.give_way();
                }
                self.reasons.push(reason);
                Some(lease.open_until)
            }
        };
        self.settle_place(now);
        renewed
    }

    /// Drops the reason that ends first. What was told for it is remembered with the one that ends last.
    fn give_way(&mut self) {
        let first = self.reasons.iter().enumerate().min_by_key(|(_, reason)| reason.open_until).map(|(at, _)| at);
        let Some(gone) = first.map(|at| self.reasons.swap_remove(at)) else { return };
        if let Some(last) = self.reasons.iter_mut().max_by_key(|reason| reason.open_until) {
            last.told_until = last.told_until.max(gone.told_until);
        }
    }

    /// Lets nothing outlive `end`.
    pub(super) fn end_by(&mut self, end: Tick) {
        for reason in &mut self.reasons {
            reason.open_until = reason.open_until.min(end);
            reason.told_until = reason.told_until.min(end);
        }
        self.place.open_until = self.place.open_until.min(end);
        self.place.told_until = self.place.told_until.min(end);
    }

    /// Moves the live reasons that `keep` does not uphold to `revoked`; [`Entry::settle_place`] has to follow.
    pub(super) fn revoke(
        &mut self,
        element: &Element,
        now: Tick,
        mut keep: impl FnMut(&Basis, &Element) -> bool,
        revoked: &mut Vec<Revoked>,
    ) {
        self.reasons.retain(|reason| {
            let kept = reason.open_until <= now || keep(&reason.basis, element);
            if !kept {
                revoked.push(Revoked { element: *element, basis: Arc::clone(&reason.basis), remains: None });
            }
            kept
        });
    }

    /// Drops the reasons that have ended and computes the place from the others; false where there are none, and the
    /// place is as it was.
    pub(super) fn settle_place(&mut self, now: Tick) -> bool {
        self.reasons.retain(|reason| reason.open_until > now);
        if self.reasons.is_empty() {
            return false;
        }
        let latest = |of: fn(&Reason) -> Tick| self.reasons.iter().map(of).max().unwrap_or(Tick(0));
        self.place.told_until = latest(|reason| reason.told_until);
        self.place.open_until = latest(|reason| reason.open_until);
        true
    }
}
