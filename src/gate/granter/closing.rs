//! What is taken away before its end: what a policy would not make any more, and what an operator names. It is done in
//! slices, as other chores are.
//!
//! Offers of what an operator names wait meanwhile, and are decided anew afterwards: nothing of it is opened before it was
//! closed and told after that.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::oneshot;

use super::chore::Chore;
use super::desk::{BATCH, Desk, Offer};
use super::{Closed, GrantsOf, NotGranted, QUEUE};
use crate::grant::Revoked;
use crate::name::Name;
use crate::net::{Element, Scope};
use crate::policy::{Basis, Cleared};
use crate::time::Tick;

impl GrantsOf {
    /// Whether it takes a reason for an element.
    fn takes(&self, basis: &Basis, element: &Element) -> bool {
        let named = |wanted| {
            let is = |name: &Name| if self.below { name.is_within(wanted) } else { name == wanted };
            is(&basis.question.name) || basis.chain.iter().chain(&*basis.targets).any(is)
        };
        // What is open for a whole segment is not one client's, whoever asked for it last.
        let own = |client| matches!(element.from, Scope::Client(from) if from == client || basis.client == client);
        self.client.is_none_or(own)
            && self.address.is_none_or(|prefix| prefix.contains(&element.to))
            && self.name.as_ref().is_none_or(named)
            && self.segment.as_ref().is_none_or(|segment| basis.segment == *segment)
            && self.rule.as_ref().is_none_or(|rule| basis.rule == *rule)
    }
}

/// What is taken away.
#[derive(Clone)]
enum What {
    /// What the policy in force would not make.
    Policy,
    /// What an operator names, and why.
    Named(Arc<GrantsOf>, Arc<str>),
}

/// A closing, in part done.
pub(super) struct Closing {
    what: What,
    next: usize,
    /// How long it has taken so far, in slices.
    pub(super) took: Duration,
    closed: Closed,
    failed: bool,
    unjournalled: bool,
    unrecorded: bool,
    /// Who wait for its end.
    replies: Vec<oneshot::Sender<Closed>>,
}

impl Closing {
    fn new(what: What, reply: Option<oneshot::Sender<Closed>>) -> Self {
        Self {
            what,
            next: 0,
            took: Duration::ZERO,
            closed: Closed::default(),
            failed: false,
            unjournalled: false,
            unrecorded: false,
            replies: reply.into_iter().collect(),
        }
    }
}

/// Offers that wait for a closing.
#[derive(Default)]
pub(super) struct HeldBack {
    /// What they wait for: gone with who asked for it.
    filters: Vec<Weak<GrantsOf>>,
    offers: Vec<Offer>,
}

impl HeldBack {
    /// Whether something is about to be closed.
    fn holds(&self) -> bool {
        self.filters.iter().any(|filter| filter.strong_count() > 0)
    }

    /// Whether there are offers that nothing holds back any more.
    pub(super) fn is_over(&self) -> bool {
        !self.offers.is_empty() && !self.holds()
    }

    /// Whether an answer has to wait.
    pub(super) fn takes(&self, cleared: &Cleared) -> bool {
        let openings = || cleared.openings().iter();
        let takes = |filter: &GrantsOf| openings().any(|opening| filter.takes(cleared.basis(), &opening.element));
        self.filters.iter().filter_map(Weak::upgrade).any(|filter| takes(&filter))
    }

    /// Keeps an offer until nothing holds it back; as many as may wait in the queue.
    pub(super) fn put(&mut self, offer: Offer) {
        if self.offers.len() < QUEUE {
            self.offers.push(offer);
        } else {
            offer.refuse(NotGranted::Busy);
        }
    }

    /// Lets go of the offers that nothing holds back any more. They were inspected before: who still waits is decided anew,
    /// and what nobody waits for is not opened again.
    pub(super) fn release(&mut self) {
        if !self.filters.is_empty() && !self.holds() {
            self.filters.clear();
            for offer in self.offers.drain(..) {
                offer.refuse(NotGranted::Stale);
            }
        }
    }
}

impl Desk {
    /// From here on offers of what a filter takes wait until that is gone.
    pub(super) fn hold(&mut self, filter: Weak<GrantsOf>) {
        self.held_back.filters.push(filter);
    }

    /// Begins to close what an operator names.
    pub(super) fn begin_closing(&mut self, filter: Arc<GrantsOf>, why: Arc<str>, reply: oneshot::Sender<Closed>) {
        self.chores.push_back(Chore::Close(Closing::new(What::Named(filter, why), Some(reply))));
    }

    /// Begins to revoke. One that is under way begins anew: what it has been through was asked of an older policy.
    pub(super) fn begin_revocation(&mut self, reply: Option<oneshot::Sender<Closed>>) {
        let under_way = self.chores.iter_mut().find_map(|chore| match chore {
            Chore::Close(closing) if matches!(closing.what, What::Policy) => Some(closing),
            _ => None,
        });
        match under_way {
            Some(closing) => {
                closing.next = 0;
                closing.replies.extend(reply);
            }
            None => self.chores.push_back(Chore::Close(Closing::new(What::Policy, reply))),
        }
    }

    /// Whether a closing is under way.
    pub(super) fn closes(&self) -> bool {
        self.chores.iter().any(|chore| matches!(chore, Chore::Close(_)))
    }

    /// Looks at some live grants; what is to go is closed before the next slice.
    pub(super) fn close(&mut self, mut closing: Closing, end: Tick) -> Option<Closing> {
        let now = self.clock.now();
        let policy = Arc::clone(&self.rulebook.load().policy);
        let what = closing.what.clone();
        let keep = |basis: &Basis, element: &Element| match &what {
            What::Policy => policy.upholds(basis, element, now.wall).is_some(),
            What::Named(filter, _) => !filter.takes(basis, element),
        };
        let mut gone = Vec::new();
        let next = self.sweep(closing.next, end, |desk, slots| {
            gone.extend(desk.ledger.revoke(slots, now.tick, keep));
            gone.len() < BATCH
        });
        let changes = self.ledger.take_batch();
        // A reason may go without a change: the element is open as long for another one.
        if !gone.is_empty() || !changes.is_empty() {
            self.journal_closings(&changes);
            self.journal_remains(&gone);
            closing.unjournalled |= self.journal.write().is_err();
            let applied = self.enforcers.apply(&changes, now.tick);
            let back = self.ledger.acknowledge(&changes, &applied.failed);
            self.enforcers.take_back(&back, now.tick);
            closing.failed |= applied.by.is_some();
            let why = if let What::Named(_, why) = &closing.what { why } else { "policy" };
            self.log.revoked(&gone, why, &applied.acks, now);
            closing.unrecorded |= self.log.commit().is_err();
            closing.closed.add(&gone);
            self.after(&changes, now);
        }
        if let Some(next) = next {
            return Some(Closing { next, ..closing });
        }
        self.closed(closing);
        None
    }

    /// What elements that stay open are open for, so that what went does not come back at the next start.
    fn journal_remains(&mut self, gone: &[Revoked]) {
        for one in gone.chunk_by(|a, b| a.element == b.element).filter_map(|of_element| of_element.first()) {
            let Some(held) = one.remains.and_then(|_| self.ledger.find(&one.element)) else { continue };
            self.journal.closed(std::iter::once(&one.element));
            for reason in held.reasons() {
                let element = std::iter::once((one.element, reason.open_until));
                self.journal.opened(&reason.basis, reason.told_until, element);
            }
        }
    }

    /// The end of a closing.
    fn closed(&mut self, closing: Closing) {
        let Closing { mut closed, failed, unjournalled, unrecorded, replies, .. } = closing;
        if failed {
            tracing::error!("a revocation failed; it is tried again");
        }
        if unjournalled {
            tracing::error!("a revocation could not be journalled; it is in force all the same");
        }
        if unrecorded {
            tracing::error!("revocations could not be recorded");
        }
        closed.unclosed = self.enforcers.all_unusable();
        let nothing = closed.reasons == 0;
        let answer = move || {
            for reply in replies {
                // Nobody may wait any more.
                let _ = reply.send(closed.clone());
            }
        };
        if nothing {
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
}

impl Closed {
    fn add(&mut self, gone: &[Revoked]) {
        self.reasons += gone.len() as u64;
        for one in gone.chunk_by(|a, b| a.element == b.element).filter_map(|of_element| of_element.first()) {
            match one.remains {
                None => self.elements.push(one.element),
                Some(_) => self.still_open += 1,
            }
        }
    }
}
