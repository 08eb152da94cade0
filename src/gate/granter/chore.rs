//! What takes long and is done in slices, so that offers go on meanwhile: closings, listings, and rewriting the
//! journal. Each goes through the ledger slot by slot; what comes into a slot that is behind it came under the policy
//! that it asks.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::closing::Closing;
use super::desk::Desk;
use super::{GrantEntry, GrantQuery};
use crate::grant::{Held, Ledger};
use crate::time::{Now, Tick};

/// How long one slice takes, about: what an offer may have to wait for besides the batch before its own.
const SLICE: Duration = Duration::from_micros(200);

/// A closing that goes on takes longer and longer slices, up to this: what it closes is open meanwhile.
const LONGEST: Duration = Duration::from_millis(10);

/// Slots between two looks at the clock.
const STEP: usize = 32;

/// Something to do, in part done.
pub(super) enum Chore {
    Close(Closing),
    List(Listing),
    /// Up to this slot.
    Rewrite(usize),
}

/// A listing.
pub(super) struct Listing {
    next: usize,
    query: GrantQuery,
    entries: Vec<GrantEntry>,
    reply: oneshot::Sender<Vec<GrantEntry>>,
}

impl Listing {
    pub(super) const fn new(query: GrantQuery, reply: oneshot::Sender<Vec<GrantEntry>>) -> Self {
        Self { next: 0, query, entries: Vec::new(), reply }
    }
}

impl Desk {
    /// One slice of the chore whose turn it is: of a closing, where there is one.
    pub(super) fn chore(&mut self) {
        let first = self.chores.iter().position(|chore| matches!(chore, Chore::Close(_))).unwrap_or(0);
        let Some(chore) = self.chores.remove(first) else { return };
        let begin = self.clock.tick();
        let end = begin + SLICE;
        let rest = match chore {
            Chore::Close(mut closing) => {
                let end = begin + (closing.took / 8).clamp(SLICE, LONGEST);
                closing.took += end.since(begin);
                self.close(closing, end).map(Chore::Close)
            }
            Chore::List(listing) => self.list(listing, end).map(Chore::List),
            Chore::Rewrite(next) => self.rewrite(next, end).map(Chore::Rewrite),
        };
        self.chores.extend(rest);
    }

    /// Hands slots from `next` on to `each`, [`STEP`] at a time, until `end`; where to go on, `None` where all are through.
    pub(super) fn sweep(
        &mut self,
        mut next: usize,
        end: Tick,
        mut each: impl FnMut(&mut Self, std::ops::Range<usize>) -> bool,
    ) -> Option<usize> {
        while next < self.ledger.slots() {
            let on = each(self, next..next + STEP);
            next += STEP;
            if !on || self.clock.tick() >= end {
                return Some(next);
            }
        }
        None
    }

    fn list(&mut self, mut listing: Listing, end: Tick) -> Option<Listing> {
        let now = self.clock.now();
        let Listing { next, query, entries, .. } = &mut listing;
        let next = self.sweep(*next, end, |desk, slots| {
            list(&desk.ledger, slots, query, now, entries);
            entries.len() < query.limit
        });
        if let Some(next) = next.filter(|_| listing.entries.len() < listing.query.limit) {
            return Some(Listing { next, ..listing });
        }
        // Nobody may wait any more.
        drop(listing.reply.send(listing.entries));
        None
    }

    /// Rewrites some of the journal.
    fn rewrite(&mut self, next: usize, end: Tick) -> Option<usize> {
        let mut result = Ok(());
        let next = self.sweep(next, end, |desk, slots| {
            result = desk.journal.rewrite_slots(&desk.ledger, slots);
            result.is_ok()
        });
        if let (Ok(()), Some(next)) = (&result, next) {
            return Some(next);
        }
        if let Err(error) = result.and_then(|()| self.journal.finish_rewriting()) {
            tracing::warn!(%error, "the journal could not be rewritten; it goes on growing");
        }
        None
    }
}

/// What of some slots is asked for.
fn list(ledger: &Ledger, slots: std::ops::Range<usize>, query: &GrantQuery, now: Now, entries: &mut Vec<GrantEntry>) {
    let wanted = |held: &Held<'_>| query.address.is_none_or(|address| held.element.to == address);
    for held in ledger.held(slots).filter(wanted) {
        let Some(in_force) = held.in_force else { continue };
        for reason in held.reasons().filter(|reason| reason.open_until > now.tick) {
            let basis = reason.basis;
            let wanted = query.client.is_none_or(|client| basis.client == client)
                && query.name.as_ref().is_none_or(|name| basis.question.name == *name)
                && query.segment.as_ref().is_none_or(|segment| *basis.segment == **segment)
                && query.rule.as_ref().is_none_or(|rule| basis.rule == *rule);
            if !wanted {
                continue;
            }
            if entries.len() >= query.limit {
                return;
            }
            let until = reason.open_until.min(in_force);
            entries.push(GrantEntry {
                from: held.element.from,
                to: held.element.to,
                service: held.element.service,
                basis: Arc::new(basis),
                until: (until, now.wall_at(until)),
            });
        }
    }
}
