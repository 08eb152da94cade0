//! A gateway that comes back, or whose connection was made anew: it is given what it lacks in parts, while offers go on,
//! and counts once it has all.

use crate::firewall::{Firewall, FirewallError};
use crate::grant::{Change, Compared, Ledger};
use crate::net::Element;
use crate::policy::Layout;
use crate::time::Tick;

/// Slots that are looked at in one step, and changes that are handed over (guessed): a millisecond or two.
pub(super) const PART: usize = 4096;

/// What is owed, at most: with more, all begins anew.
const MOST: usize = 1 << 20;

/// See the module.
#[derive(Default)]
pub(super) struct Returning {
    compared: Compared,
    /// All that it holds was compared.
    listed: bool,
    /// The slots before this one were gone through.
    next: usize,
    /// What it is told of last, as it is by then: what it holds and should not, and what changed since all this began.
    owed: Vec<Element>,
    /// It has not answered yet what it was told.
    asked: bool,
    /// How much it was told.
    changes: usize,
}

impl Returning {
    /// One step of `returning`, which begins with the first: how many changes it took, once the gateway has all.
    ///
    /// # Errors
    /// The gateway's; the next step begins anew.
    pub(super) fn step(
        returning: &mut Option<Self>,
        firewall: &mut dyn Firewall,
        ledger: &Ledger,
        layout: impl Fn() -> Layout,
        now: Tick,
    ) -> Result<Option<usize>, FirewallError> {
        let Some(mut one) = returning.take() else {
            firewall.begin_adopting(&layout())?;
            *returning = Some(Self::default());
            return Ok(None);
        };
        let has_all = one.go_on(firewall, ledger, now)?;
        let changes = one.changes;
        if !has_all {
            *returning = Some(one);
        }
        Ok(has_all.then_some(changes))
    }

    fn go_on(&mut self, firewall: &mut dyn Firewall, ledger: &Ledger, now: Tick) -> Result<bool, FirewallError> {
        if self.asked {
            let Some(failed) = firewall.became()? else { return Ok(false) };
            taken(&failed)?;
            self.asked = false;
        }
        if !self.listed {
            if let Some(listed) = firewall.listed()? {
                self.owed.extend(ledger.compare(&listed.elements, &mut self.compared, now));
                self.listed = !listed.more;
            }
            return Ok(false);
        }
        let last = self.next >= ledger.slots() && self.owed.len() <= PART;
        let changes: Vec<Change> = if self.next < ledger.slots() {
            let slots = self.next..self.next + PART;
            self.next = slots.end;
            ledger.missing(slots, &self.compared, now).collect()
        } else {
            let rest = self.owed.len().saturating_sub(PART);
            self.owed.drain(rest..).map(|element| ledger.told(&element, now)).collect()
        };
        self.changes += changes.len();
        if last {
            // It is waited for, as for any batch: what changes from here on it is told with all the others.
            taken(&firewall.apply(&changes, now)?)?;
        } else if !changes.is_empty() {
            firewall.begin(&changes, now);
            self.asked = true;
        }
        Ok(last)
    }

    /// Notes what all others are told meanwhile; false where that is too much.
    pub(super) fn note(&mut self, changes: &[Change]) -> bool {
        self.owed.extend(changes.iter().map(Change::element));
        self.owed.len() <= MOST
    }
}

/// What it did not take is missing there, or open although it should not be.
fn taken(failed: &[usize]) -> Result<(), FirewallError> {
    match failed.len() {
        0 => Ok(()),
        count => Err(FirewallError::Refused(format!("{count} elements; is its set full, or max_grants met?"))),
    }
}

/// Whether what a firewall holds is so much that it is handed over while offers go on.
pub(super) const fn is_much(changes: &[Change]) -> bool {
    changes.len() > PART
}

#[cfg(test)]
mod tests;
