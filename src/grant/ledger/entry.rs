//! One element of the ledger and its reasons.

use smallvec::SmallVec;

use super::grace::Links;
use super::packed::{Packed, Packer};
use crate::grant::{Lease, Terms};
use crate::net::{Element, SegmentId};
use crate::policy::Basis;
use crate::time::Tick;

/// One reason for which an element is open: a name under a rule. Whoever asks for the same name under the same rule
/// renews it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// The answer that needed it; of several, the last that renewed it.
    pub basis: Basis,
    /// No client was told longer.
    pub told_until: Tick,
    /// It counts until here.
    pub open_until: Tick,
}

/// A reason that was taken away before its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revoked {
    /// The element.
    pub element: Element,
    /// The reason that is gone.
    pub basis: Basis,
    /// The end that the remaining reasons give it; `None`: it is closed.
    pub remains: Option<Tick>,
}

/// The most reasons that one element keeps (I5): under `**.example.com` a client can ask for any number of names that
/// share an address. At the cap the reason that ends first gives way to the new one; the element stays open as long
/// as before. What is lost is only that the name that gave way would hold the element when the others are revoked.
pub(super) const MAX_REASONS: usize = 64;

/// A [`Reason`] as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) basis: Packed,
    pub(super) told_until: Tick,
    pub(super) open_until: Tick,
}

impl Kept {
    pub(super) fn reason(&self) -> Reason {
        Reason { basis: self.basis.unpack(), told_until: self.told_until, open_until: self.open_until }
    }
}

/// What an element is filed under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Whose cap it counts against, besides its client's.
    pub(super) segment: SegmentId,
    /// The latest end that anybody was told; past it the element is in grace and may be evicted.
    pub(super) told_until: Tick,
    /// The latest end of its reasons.
    pub(super) open_until: Tick,
}

/// One element: 144 bytes.
#[derive(Debug)]
pub(super) struct Entry {
    /// At most [`MAX_REASONS`].
    pub(super) reasons: SmallVec<[Kept; 1]>,
    /// The firewalls hold it at least until here; zero before they said so.
    pub(super) in_force: Tick,
    /// The maxima over the reasons; the ledger files the element under it.
    pub(super) place: Place,
    /// When the ledger looks at it next; zero: not filed yet.
    pub(super) alarm: Tick,
    /// Its change's batch, and where in that it is.
    pub(super) batched: (u32, u32),
    /// Its neighbours among those in grace.
    pub(super) links: Links,
}

/// What came of adding a reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Enlisted {
    /// The one that is known lasts and says the same.
    Known,
    /// It counts until here, and has to be journalled.
    Until(Tick),
}

impl Entry {
    /// An element that is not open yet and has no reason yet.
    pub(super) fn new(segment: SegmentId) -> Self {
        Self {
            reasons: SmallVec::new(),
            in_force: Tick(0),
            place: Place { segment, told_until: Tick(0), open_until: Tick(0) },
            alarm: Tick(0),
            batched: (0, 0),
            links: Links::default(),
        }
    }

    /// Whether it is open for this name under this rule, and known to be told until `told_until`.
    pub(super) fn is_for(&self, basis: &Basis, told_until: Tick) -> bool {
        self.reasons.iter().any(|reason| reason.basis.is_of(basis) && reason.told_until >= told_until)
    }

    /// Adds or renews a reason, and drops those that have ended.
    pub(super) fn enlist(
        &mut self,
        basis: &Basis,
        lease: Lease,
        terms: &Terms,
        packer: &mut Packer,
        now: Tick,
    ) -> Enlisted {
        let Lease { told_until, open_until } = lease;
        let in_force = self.in_force;
        self.reasons.retain(|known| known.open_until > now);
        let enlisted = match self.reasons.iter_mut().find(|known| known.basis.is_of(basis)) {
            Some(known) => {
                known.told_until = known.told_until.max(told_until);
                let same = known.basis.is_decided_as(basis);
                let lasts = terms.covers(in_force.min(known.open_until), lease);
                if !lasts {
                    known.open_until = known.open_until.max(open_until);
                }
                if same && lasts {
                    Enlisted::Known
                } else {
                    // What a policy to come decides of it is what is told now.
                    known.basis = packer.pack(basis);
                    Enlisted::Until(known.open_until)
                }
            }
            None => {
                self.push(Kept { basis: packer.pack(basis), told_until, open_until });
                Enlisted::Until(open_until)
            }
        };
        self.settle_place(now);
        enlisted
    }

    /// Adds a reason that is of no name and rule that is there.
    pub(super) fn push(&mut self, reason: Kept) {
        if self.reasons.len() >= MAX_REASONS {
            self.give_way();
        }
        self.reasons.push(reason);
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
            if reason.open_until <= now {
                return true;
            }
            let basis = reason.basis.unpack();
            let kept = keep(&basis, element);
            if !kept {
                revoked.push(Revoked { element: *element, basis, remains: None });
            }
            kept
        });
    }

    /// Drops the reasons that have ended and computes the place from the others; false where there are none, and the
    /// place is as it was.
    pub(super) fn settle_place(&mut self, now: Tick) -> bool {
        self.reasons.retain(|reason| reason.open_until > now);
        let Some(told_until) = self.reasons.iter().map(|reason| reason.told_until).max() else { return false };
        self.place.told_until = told_until;
        self.place.open_until = self.reasons.iter().map(|reason| reason.open_until).max().unwrap_or(told_until);
        true
    }
}
