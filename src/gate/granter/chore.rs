//! What takes long and is done in slices, so that offers go on meanwhile: revocations, listings, and rewriting the
//! journal. Each goes through the ledger slot by slot; what comes into a slot that is behind it came under the policy
//! that it asks.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::desk::Desk;
use super::{GrantEntry, GrantQuery};
use crate::grant::{Held, Ledger};
use crate::time::{Now, Tick};

/// How long one slice takes, about: what an offer may have to wait for besides the batch before its own.
const SLICE: Duration = Duration::from_micros(200);

/// A revocation that goes on takes longer and longer slices, up to this: what it closes is open meanwhile.
const LONGEST: Duration = Duration::from_millis(10);

/// Slots between two looks at the clock.
const STEP: usize = 32;

/// Something to do, in part done.
pub(super) enum Chore {
    Revoke(Revocation),
    List(Listing),
    /// Up to this slot.
    Rewrite(usize),
}

/// A revocation under the policy in force.
#[derive(Default)]
pub(super) struct Revocation {
    next: usize,
    /// How long it has taken so far, in slices.
    took: Duration,
    revoked: u64,
    failed: bool,
    unjournalled: bool,
    unrecorded: bool,
    /// Who wait for its end.
    replies: Vec<oneshot::Sender<u64>>,
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
    /// Begins to revoke. One that is under way begins anew: what it has been through was asked of an older policy.
    pub(super) fn begin_revocation(&mut self, reply: Option<oneshot::Sender<u64>>) {
        let under_way = self.chores.iter_mut().find_map(|chore| match chore {
            Chore::Revoke(revocation) => Some(revocation),
            _ => None,
        });
        match under_way {
            Some(revocation) => {
                revocation.next = 0;
                revocation.replies.extend(reply);
            }
            None => {
                let replies = reply.into_iter().collect();
                self.chores.push_back(Chore::Revoke(Revocation { replies, ..Revocation::default() }));
            }
        }
    }

    /// Whether a revocation is under way.
    pub(super) fn revokes(&self) -> bool {
        self.chores.iter().any(|chore| matches!(chore, Chore::Revoke(_)))
    }

    /// One slice of the chore whose turn it is: of a revocation, where there is one.
    pub(super) fn chore(&mut self) {
        let first = self.chores.iter().position(|chore| matches!(chore, Chore::Revoke(_))).unwrap_or(0);
        let Some(chore) = self.chores.remove(first) else { return };
        let begin = self.clock.tick();
        let end = begin + SLICE;
        let rest = match chore {
            Chore::Revoke(mut revocation) => {
                let end = begin + (revocation.took / 8).clamp(SLICE, LONGEST);
                revocation.took += end.since(begin);
                self.revoke(revocation, end).map(Chore::Revoke)
            }
            Chore::List(listing) => self.list(listing, end).map(Chore::List),
            Chore::Rewrite(next) => self.rewrite(next, end).map(Chore::Rewrite),
        };
        self.chores.extend(rest);
    }

    /// Hands slots from `next` on to `each`, [`STEP`] at a time, until `end`; where to go on, `None` where all are through.
    fn sweep(
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

    /// Re-decides some live grants; what the policy would not make is closed before the next slice.
    fn revoke(&mut self, mut revocation: Revocation, end: Tick) -> Option<Revocation> {
        let now = self.clock.now();
        let policy = Arc::clone(&self.rulebook.load().policy);
        let mut revoked = Vec::new();
        let next = self.sweep(revocation.next, end, |desk, slots| {
            revoked.extend(
                desk.ledger
                    .revoke(slots, now.tick, |basis, element| policy.upholds(basis, element, now.wall).is_some()),
            );
            revoked.len() < super::desk::BATCH
        });
        let changes = self.ledger.take_batch();
        // A reason may go without a change: the element is open as long for another one.
        if !revoked.is_empty() || !changes.is_empty() {
            self.journal_closings(&changes);
            revocation.unjournalled |= self.journal.write().is_err();
            let applied = self.enforcers.apply(&changes, now.tick);
            let back = self.ledger.acknowledge(&changes, &applied.failed);
            self.enforcers.take_back(&back, now.tick);
            revocation.failed |= applied.by.is_some();
            self.log.revoked(&revoked, "policy", &applied.acks, now);
            revocation.unrecorded |= self.log.commit().is_err();
            revocation.revoked += revoked.len() as u64;
            self.after(&changes, now);
        }
        if let Some(next) = next {
            return Some(Revocation { next, ..revocation });
        }
        self.revoked(revocation);
        None
    }

    /// The end of a revocation.
    fn revoked(&mut self, revocation: Revocation) {
        let Revocation { revoked, failed, unjournalled, unrecorded, replies, .. } = revocation;
        if failed {
            tracing::error!("a revocation failed; it is tried again");
        }
        if unjournalled {
            tracing::error!("a revocation could not be journalled; it is in force all the same");
        }
        if unrecorded {
            tracing::error!("revocations could not be recorded");
        }
        let answer = move || {
            for reply in replies {
                // Nobody may wait any more.
                let _ = reply.send(revoked);
            }
        };
        if revoked == 0 {
            return answer();
        }
        // The disk may take long: nobody but who asked waits for it.
        let file = self.journal.file();
        let sync = move || {
            if let Err(error) = file.and_then(|file| file.sync_data()) {
                tracing::error!(%error, "a revocation could not be synced to the disk; it is in force all the same");
            }
            answer();
        };
        // Without a thread nobody is told; the senders that are dropped with it say that it is over.
        drop(std::thread::Builder::new().name("sync".into()).spawn(sync));
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
                && query.segment.as_ref().is_none_or(|segment| *basis.segment == **segment);
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
