//! The granter's thread.
//!
//! It commits in groups: whatever was offered while one batch was in the kernel is the next batch. The order of one
//! batch is fixed: journal, firewalls, acknowledgement, grant records, and only then the [`Granted`]s go back.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::oneshot;

use super::enforcers::{Enforcers, Found};
use super::journal::{Journal, Reasons};
use super::record::GrantLog;
use super::{GrantCounts, GrantEntry, GrantQuery, GranterError, GranterParts, NotGranted};
use crate::audit::RecordId;
use crate::firewall::FirewallError;
use crate::gate::Rulebook;
use crate::grant::{Change, Effect, Granted, Ledger, Offered};
use crate::net::Element;
use crate::policy::{Basis, Cleared, Policy};
use crate::time::{Clock, Now, Tick, Wall};

/// Offers that go into one batch at most, so that one batch stays within one netlink message or two.
const BATCH: usize = 256;

/// How often the granter looks after itself when nobody asks: ends, drift, observe segments that end.
const IDLE: Duration = Duration::from_millis(250);

/// How often the firewalls are asked how full they are.
const MEASURE: Duration = Duration::from_secs(1);

/// What the granter is told to do.
pub(super) enum Order {
    Offer(Box<Offer>),
    Arrange { rulebook: Arc<Rulebook>, reply: oneshot::Sender<Result<(), (Arc<str>, FirewallError)>> },
    Revoke { reply: oneshot::Sender<u64> },
    List { query: GrantQuery, reply: oneshot::Sender<Vec<GrantEntry>> },
    Stop,
}

/// An inspected answer that waits to be granted.
pub(super) struct Offer {
    cleared: Cleared,
    told_until: Tick,
    query: RecordId,
    reply: oneshot::Sender<Result<Granted, NotGranted>>,
}

impl Order {
    pub(super) fn offer(
        cleared: Cleared,
        told_until: Tick,
        query: RecordId,
        reply: oneshot::Sender<Result<Granted, NotGranted>>,
    ) -> Self {
        Self::Offer(Box::new(Offer { cleared, told_until, query, reply }))
    }
}

/// An offer whose openings are in the batch.
struct Waiting {
    offered: Offered,
    query: RecordId,
    reply: oneshot::Sender<Result<Granted, NotGranted>>,
}

/// What the thread owns.
pub(super) struct Desk {
    ledger: Ledger,
    enforcers: Enforcers,
    journal: Journal,
    log: GrantLog,
    rulebook: Arc<ArcSwap<Rulebook>>,
    /// The policy whose layout the firewalls have: for a moment of a swap, not yet that of the rulebook.
    laid: Arc<Policy>,
    /// When its layout changes by itself: the next observe segment ends.
    layout_ends: Option<Wall>,
    /// When the firewalls are asked again how full they are.
    measure_at: Tick,
    clock: Clock,
}

impl Desk {
    /// Reads the journal, adopts the firewalls, re-decides what they hold.
    pub(super) fn open(parts: GranterParts, state: &Path) -> Result<Self, GranterError> {
        let named = |error| GranterError::Journal(state.display().to_string(), error);
        let GranterParts { ledger, firewalls, held, shard, rulebook, clock } = parts;
        let (journal, reasons) = Journal::open(state).map_err(named)?;
        let enforcers = Enforcers::new(firewalls, held, clock.clone());
        let laid = Arc::clone(&rulebook.load().policy);
        let log = GrantLog::new(shard);
        let mut desk =
            Self { ledger, enforcers, journal, log, rulebook, laid, layout_ends: None, measure_at: Tick(0), clock };
        desk.adopt(reasons)?;
        desk.journal.rewrite(&desk.ledger).map_err(named)?;
        Ok(desk)
    }

    pub(super) const fn counts(&self) -> &Arc<GrantCounts> {
        self.enforcers.counts()
    }

    /// Serves until told to stop.
    pub(super) fn run(mut self, inbox: &Receiver<Order>) {
        loop {
            let first = match inbox.recv_timeout(IDLE) {
                Ok(order) => Some(order),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            self.look_after();
            let mut offers = Vec::new();
            for order in first.into_iter().chain(inbox.try_iter().take(BATCH - 1)) {
                match order {
                    Order::Offer(offer) => offers.push(*offer),
                    other => {
                        // Offers that came before an order are decided before it.
                        self.grant(std::mem::take(&mut offers));
                        if !self.obey(other) {
                            return;
                        }
                        if self.enforcers.unusable().is_some() {
                            // What waits is decided after the next try to repair it.
                            break;
                        }
                    }
                }
            }
            self.grant(offers);
        }
    }

    /// False where it is to stop. A reply that nobody waits for any more is dropped.
    fn obey(&mut self, order: Order) -> bool {
        match order {
            Order::Offer(offer) => self.grant(vec![*offer]),
            Order::Arrange { rulebook, reply } => drop(reply.send(self.arrange(&rulebook.policy))),
            Order::Revoke { reply } => drop(reply.send(self.revoke())),
            Order::List { query, reply } => drop(reply.send(self.list(&query))),
            Order::Stop => return false,
        }
        true
    }

    /// One batch, in the fixed order.
    fn grant(&mut self, offers: Vec<Offer>) {
        if offers.is_empty() {
            return;
        }
        if let Some(counts) = self.enforcers.unusable() {
            // Also for what the ledger holds to be open: nobody knows whether it still is.
            for offer in offers {
                counts.failed_closed.fetch_add(1, Ordering::Relaxed);
                let why = "it cannot be used".to_owned();
                drop(offer.reply.send(Err(NotGranted::Firewall(Arc::clone(&counts.name), why))));
            }
            return;
        }
        let now = self.clock.now();
        let waiting = self.offer(offers, now);
        let changes = self.ledger.take_batch();
        let written = self.write_journal(&waiting, &changes);
        let usable = self.counts().journal_usable.swap(written.is_ok(), Ordering::Relaxed);
        if let Err(error) = written {
            if usable {
                tracing::error!(%error, "the journal in the state directory cannot be written; new answers with addresses fail closed until it can");
            }
            // No firewall was told. What was to be closed is closed all the same: the ledger has forgotten it.
            let all: Vec<usize> = (0..changes.len()).collect();
            let mut back = self.ledger.acknowledge(&changes, &all);
            back.retain(|change| matches!(change, Change::Close { .. }));
            self.enforcers.take_back(&back, now.tick);
            for one in waiting {
                drop(one.reply.send(Err(NotGranted::Journal(error.to_string()))));
            }
            return;
        }
        if !usable {
            tracing::info!("the journal can be written again");
        }
        let applied = self.enforcers.apply(&changes, now.tick);
        let back = self.ledger.acknowledge(&changes, &applied.failed);
        self.enforcers.take_back(&back, now.tick);
        // Written with the next batch: what was never told is not worth a write of its own.
        self.journal_closings(&back);
        let failed_by = applied.by.as_ref().and_then(|(place, why)| Some((self.enforcers.at(*place)?, why.as_str())));
        let acknowledged = self.clock.tick();
        let mut settled = Vec::with_capacity(waiting.len());
        let mut opened: HashSet<Element> = HashSet::new();
        for Waiting { offered, query, reply } in waiting {
            let added = offered.added().to_vec();
            let basis = Arc::clone(offered.cleared().basis());
            let result = self.ledger.settle(offered, acknowledged).map_err(|missing| {
                let Some((counts, why)) = &failed_by else {
                    return NotGranted::Firewall(
                        Arc::from("ledger"),
                        format!("{} addresses are not open", missing.len()),
                    );
                };
                counts.failed_closed.fetch_add(1, Ordering::Relaxed);
                NotGranted::Firewall(Arc::clone(&counts.name), (*why).to_owned())
            });
            let failure = if let Err(NotGranted::Firewall(_, why)) = &result { Some(why.as_str()) } else { None };
            self.log.offered(&basis, &added, query, failure, &applied.acks, now);
            let new = added.iter().filter(|added| matches!(added.effect, Effect::Opens(..)));
            opened.extend(new.map(|added| added.element));
            settled.push((reply, result));
        }
        let recorded = self.log.commit().is_ok();
        if !recorded {
            self.close_unrecorded(&opened, now);
        }
        for (reply, result) in settled {
            drop(reply.send(if recorded { result } else { result.and(Err(NotGranted::Audit)) }));
        }
        // What a required firewall refused was taken back everywhere, and is not advised now.
        let refused = |at: &usize| applied.failed.binary_search(at).is_ok();
        let taken: Vec<Change> =
            changes.iter().enumerate().filter(|(at, _)| !refused(at)).map(|(_, change)| *change).collect();
        self.after(&taken, now);
    }

    /// Closes what was opened and could not be recorded: no answer tells it, so nothing may hold it.
    fn close_unrecorded(&mut self, opened: &HashSet<Element>, now: Now) {
        if opened.is_empty() {
            return;
        }
        drop(self.ledger.revoke(now.tick, |_, element| !opened.contains(element)));
        let changes = self.ledger.take_batch();
        self.journal_closings(&changes);
        let applied = self.enforcers.apply(&changes, now.tick);
        let back = self.ledger.acknowledge(&changes, &applied.failed);
        self.enforcers.take_back(&back, now.tick);
    }

    /// Puts every offer that still counts into the batch being filled.
    fn offer(&mut self, offers: Vec<Offer>, now: Now) -> Vec<Waiting> {
        let rulebook = self.rulebook.load_full();
        let mut waiting = Vec::with_capacity(offers.len());
        for Offer { cleared, told_until, query, reply } in offers {
            if reply.is_closed() {
                continue;
            }
            // A permit can grow stale between its decision and here (I6).
            if !Arc::ptr_eq(cleared.permit().policy(), &rulebook.policy) {
                drop(reply.send(Err(NotGranted::Stale)));
                continue;
            }
            match self.ledger.offer(cleared, told_until, now.tick) {
                Ok(offered) => waiting.push(Waiting { offered, query, reply }),
                Err(full) => drop(reply.send(Err(NotGranted::Full(full)))),
            }
        }
        waiting
    }

    /// The batch on disk, before any firewall is told.
    fn write_journal(&mut self, waiting: &[Waiting], changes: &[Change]) -> std::io::Result<()> {
        for one in waiting {
            let elements: Vec<(Element, Tick)> =
                one.offered.added().iter().map(|added| (added.element, added.open_until)).collect();
            if !elements.is_empty() {
                self.journal.opened(one.offered.cleared().basis(), one.offered.told_until(), &elements);
            }
        }
        self.journal_closings(changes);
        self.journal.write(false)
    }

    fn journal_closings(&mut self, changes: &[Change]) {
        let close = |change: &Change| if let Change::Close { element } = change { Some(*element) } else { None };
        let closed: Vec<Element> = changes.iter().filter_map(close).collect();
        if !closed.is_empty() {
            self.journal.closed(closed.iter());
        }
    }

    /// What nobody waits for.
    fn after(&mut self, changes: &[Change], now: Now) {
        self.enforcers.advise(changes, now.tick);
        if let Err(error) = self.journal.compact(&self.ledger) {
            tracing::warn!(%error, "the journal could not be rewritten; it goes on growing");
        }
        self.count();
    }

    fn count(&self) {
        self.counts().live.store(self.ledger.len() as u64, Ordering::Relaxed);
    }

    /// Ends, drift, observe segments that end. Before every batch: no answer is told into a hole.
    fn look_after(&mut self) {
        let now = self.clock.now();
        if self.measure_at <= now.tick {
            self.measure_at = now.tick + MEASURE;
            self.enforcers.measure();
        }
        self.ledger.expire(now.tick);
        self.enforcers.repair(&self.ledger, || self.laid.layout(now.wall), now.tick);
        if self.layout_ends.is_some_and(|end| end <= now.wall) {
            let laid = Arc::clone(&self.laid);
            if let Err((firewall, error)) = self.arrange(&laid) {
                tracing::error!(%firewall, %error, "an observe segment ended and could not be enforced in the firewall yet; answers fail closed until it is");
                // The firewall is not usable now; its repair lays the layout of that moment.
                self.layout_ends = laid.next_change(now.wall);
            }
        }
        self.count();
    }

    fn arrange(&mut self, policy: &Arc<Policy>) -> Result<(), (Arc<str>, FirewallError)> {
        let wall = self.clock.now().wall;
        self.enforcers.arrange(&policy.layout(wall), || self.laid.layout(wall))?;
        self.layout_ends = policy.next_change(wall);
        self.laid = Arc::clone(policy);
        Ok(())
    }

    fn revoke(&mut self) -> u64 {
        let now = self.clock.now();
        let policy = Arc::clone(&self.rulebook.load().policy);
        let revoked = self.ledger.revoke(now.tick, |basis, element| policy.upholds(basis, element).is_some());
        let changes = self.ledger.take_batch();
        self.journal_closings(&changes);
        if let Err(error) = self.journal.write(true) {
            tracing::error!(%error, "a revocation could not be journalled; it is in force all the same");
        }
        let applied = self.enforcers.apply(&changes, now.tick);
        let back = self.ledger.acknowledge(&changes, &applied.failed);
        self.enforcers.take_back(&back, now.tick);
        if let Some((_, error)) = applied.by {
            tracing::error!(error, failed = applied.failed.len(), "a revocation failed; it is tried again");
        }
        self.log.revoked(&revoked, "policy", &applied.acks, now);
        if self.log.commit().is_err() {
            tracing::error!("revocations could not be recorded");
        }
        self.after(&changes, now);
        revoked.len() as u64
    }

    fn adopt(&mut self, mut reasons: Reasons) -> Result<(), GranterError> {
        let now = self.clock.now();
        let policy = Arc::clone(&self.rulebook.load().policy);
        let unusable = |(name, error)| GranterError::Firewall(name, error);
        let found = self.enforcers.adopt(&policy.layout(now.wall), now.tick).map_err(unusable)?;
        self.layout_ends = policy.next_change(now.wall);
        // What any of them holds; the others are given it below, before an answer relies on it.
        let mut whole = Found::default();
        for (element, until) in found.iter().flatten() {
            whole.entry(*element).and_modify(|known| *known = (*known).max(*until)).or_insert(*until);
        }
        let mut adopted: Vec<(Element, Tick, Arc<Basis>)> = Vec::new();
        for (element, until) in whole {
            let mut upheld = reasons.remove(&element).unwrap_or_default();
            upheld.retain(|reason| policy.upholds(&reason.basis, &element).is_some());
            let basis = upheld.first().map(|reason| Arc::clone(&reason.basis));
            if self.ledger.adopt(element, until, upheld, now.tick) {
                adopted.extend(basis.map(|basis| (element, until, basis)));
            }
        }
        // Each firewall gets changes of its own instead.
        drop(self.ledger.take_batch());
        let closed = self.enforcers.even_out(&found, &self.ledger, now.tick).map_err(unusable)?;
        if !adopted.is_empty() || closed > 0 {
            tracing::info!(adopted = adopted.len(), closed, "took over the grants of the process before");
        }
        for (element, until, basis) in adopted {
            self.log.adopted(element, until, &basis, now);
        }
        if self.log.commit().is_err() {
            tracing::error!("adopted grants could not be recorded");
        }
        self.enforcers.measure();
        self.count();
        Ok(())
    }

    fn list(&self, query: &GrantQuery) -> Vec<GrantEntry> {
        let now = self.clock.now();
        let mut entries: Vec<GrantEntry> = Vec::new();
        for held in self.ledger.iter() {
            if query.address.is_some_and(|address| held.element.to != address) {
                continue;
            }
            let Some(in_force) = held.in_force else { continue };
            for reason in held.reasons.iter().filter(|reason| reason.open_until > now.tick) {
                let basis = &reason.basis;
                let wanted = query.client.is_none_or(|client| basis.client == client)
                    && query.name.as_ref().is_none_or(|name| basis.question.name == *name)
                    && query.segment.as_ref().is_none_or(|segment| *basis.segment == **segment);
                if !wanted {
                    continue;
                }
                if entries.len() >= query.limit {
                    return entries;
                }
                let until = reason.open_until.min(in_force);
                entries.push(GrantEntry {
                    from: held.element.from,
                    to: held.element.to,
                    service: held.element.service,
                    basis: Arc::clone(basis),
                    until: (until, now.wall_at(until)),
                });
            }
        }
        entries
    }
}
