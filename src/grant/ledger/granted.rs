//! [`Granted`]: the proof that an answer may be told, and [`Offered`], what becomes it.

use smallvec::SmallVec;

use super::Ledger;
use super::entry::Entry;
use crate::net::Element;
use crate::policy::Cleared;
use crate::time::Tick;

/// Proof that everything an answer needs is open for at least as long as the answer is told.
///
/// Made by [`Ledger::settle`] and [`Granted::nothing_to_open`] alone.
#[derive(Debug)]
pub struct Granted {
    cleared: Cleared,
    told_until: Tick,
    open_until: Option<Tick>,
}

impl Granted {
    /// An answer without openings is granted at once; one with openings comes back.
    ///
    /// # Errors
    /// The answer, where it does need openings.
    #[expect(clippy::result_large_err, reason = "the answer goes back to a caller that holds it by value anyway")]
    pub fn nothing_to_open(cleared: Cleared, told_until: Tick) -> Result<Self, Cleared> {
        if cleared.openings().is_empty() { Ok(Self { cleared, told_until, open_until: None }) } else { Err(cleared) }
    }

    /// The answer.
    #[must_use]
    pub const fn cleared(&self) -> &Cleared {
        &self.cleared
    }

    /// It may be told until here.
    #[must_use]
    pub const fn told_until(&self) -> Tick {
        self.told_until
    }

    /// The first of its openings ends here; `None` where it needed none.
    #[must_use]
    pub const fn open_until(&self) -> Option<Tick> {
        self.open_until
    }
}

/// An answer whose openings are in the batch being filled, or open already.
#[derive(Debug)]
pub struct Offered {
    pub(super) cleared: Cleared,
    pub(super) told_until: Tick,
    pub(super) added: SmallVec<[Added; 1]>,
    pub(super) revocations: u64,
}

/// What became of an [`Offered`].
#[derive(Debug)]
pub struct Settled {
    /// The proof, or the elements that are not open.
    pub granted: Result<Granted, Vec<Element>>,
    /// The reasons that the offer added or renewed.
    pub added: SmallVec<[Added; 1]>,
}

/// A reason that an offer added or renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Added {
    /// Where.
    pub element: Element,
    /// The reason counts until here: for the journal.
    pub open_until: Tick,
    /// What it means for the element: for the firewalls and the records.
    pub effect: Effect,
}

/// What a reason means for its element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It was not open and shall be, until here.
    Opens(Tick),
    /// It was open and shall be for longer, until here.
    Extends(Tick),
    /// It is open long enough for other reasons; no firewall is told.
    Joins,
}

impl Offered {
    /// The answer that was offered.
    #[must_use]
    pub const fn cleared(&self) -> &Cleared {
        &self.cleared
    }

    /// No client is told longer.
    #[must_use]
    pub const fn told_until(&self) -> Tick {
        self.told_until
    }

    /// The reasons that this offer added or renewed; not those that were new enough.
    #[must_use]
    pub fn added(&self) -> &[Added] {
        &self.added
    }
}

impl Ledger {
    /// What an offer added, and the proof that its answer may be told from `now` on: every opening is in force, until
    /// the told end at least, and was not revoked since.
    #[must_use]
    pub fn settle(&self, offered: Offered, now: Tick) -> Settled {
        let Offered { cleared, told_until, added, revocations } = offered;
        let mut open_until: Option<Tick> = None;
        let mut missing = Vec::new();
        let none_revoked = revocations == self.revocations;
        for opening in cleared.openings() {
            let entry = self.table.get(&opening.element);
            let is_for = |entry: &&Entry| entry.is_for(cleared.basis(), told_until);
            let in_force = entry.filter(|entry| none_revoked || is_for(entry)).map_or(Tick(0), |entry| entry.in_force);
            if in_force > now && in_force >= told_until {
                open_until = Some(open_until.map_or(in_force, |least: Tick| least.min(in_force)));
            } else {
                missing.push(opening.element);
            }
        }
        let granted = if missing.is_empty() { Ok(Granted { cleared, told_until, open_until }) } else { Err(missing) };
        Settled { granted, added }
    }
}
