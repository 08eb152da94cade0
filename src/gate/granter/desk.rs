//! The granter's thread.
//!
//! It commits in groups: whatever was offered while one batch was in the kernel is the next batch. The order of one
//! batch is fixed: journal, firewalls, acknowledgement, grant records, and only then the [`Granted`]s go back.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::oneshot;

use super::chore::{Chore, Listing};
use super::closing::HeldBack;
use super::enforcers::Enforcers;
use super::journal::Journal;
use super::queue::Inbox;
use super::record::{self, GrantLog};
use super::{Closed, Cutting, GrantCounts, GrantEntry, GrantQuery, GranterError, GranterParts, GrantsOf, NotGranted};
use crate::audit::RecordId;
use crate::firewall::FirewallError;
use crate::gate::Rulebook;
use crate::grant::{Added, Change, Effect, Granted, Ledger, Offered, Settled};
use crate::policy::{Cleared, Layout, Policy};
use crate::time::{Clock, Now, Tick, Wall};

/// Offers that go into one batch at most, so that one batch stays within one netlink message or two.
pub(super) const BATCH: usize = 256;

/// How often the granter looks after itself when nobody asks: ends, drift, observe segments that end.
const IDLE: Duration = Duration::from_millis(250);

/// The same while a gateway is being brought up to date: how long it may wait for the next part.
const TURN: Duration = Duration::from_millis(1);

/// How often the firewalls are asked how full they are.
const MEASURE: Duration = Duration::from_secs(1);

/// Elements whose grace or end has come that are looked at before a batch, at most.
const EXPIRE: usize = 512;

/// What the granter is told to do.
#[expect(clippy::large_enum_variant, reason = "nearly all are offers; a box each would be freed by another thread")]
pub(super) enum Order {
    Offer(Offer),
    Arrange { rulebook: Arc<Rulebook>, reply: oneshot::Sender<Result<(), (Arc<str>, FirewallError)>> },
    Revoke { reply: oneshot::Sender<Closed> },
    Hold { filter: Weak<GrantsOf>, reply: oneshot::Sender<()> },
    Close { filter: Arc<GrantsOf>, why: Arc<str>, reply: oneshot::Sender<Closed> },
    Cut { what: Cutting, reply: oneshot::Sender<Vec<Ended>> },
    List { query: GrantQuery, reply: oneshot::Sender<Vec<GrantEntry>> },
    Stop,
}

/// How many connections a firewall ended, or why it did not.
pub(super) type Ended = (Arc<str>, Result<u64, String>);

/// An inspected answer that waits to be granted.
pub(super) struct Offer {
    cleared: Cleared,
    told_until: Tick,
    query: Option<RecordId>,
    reply: oneshot::Sender<Result<Granted, NotGranted>>,
}

impl Order {
    pub(super) fn offer(
        cleared: Cleared,
        told_until: Tick,
        query: Option<RecordId>,
        reply: oneshot::Sender<Result<Granted, NotGranted>>,
    ) -> Self {
        Self::Offer(Offer { cleared, told_until, query, reply })
    }
}

impl Offer {
    /// Says that it is not granted.
    pub(super) fn refuse(self, why: NotGranted) {
        // Nobody may wait any more.
        drop(self.reply.send(Err(why)));
    }
}

/// An offer whose openings are in the batch.
struct Waiting {
    offered: Offered,
    query: Option<RecordId>,
    reply: oneshot::Sender<Result<Granted, NotGranted>>,
}

/// What the thread owns.
pub(super) struct Desk {
    pub(super) ledger: Ledger,
    pub(super) enforcers: Enforcers,
    pub(super) journal: Journal,
    pub(super) log: GrantLog,
    pub(super) rulebook: Arc<ArcSwap<Rulebook>>,
    /// What is done in slices, in turns.
    pub(super) chores: VecDeque<Chore>,
    /// What waits for a closing.
    pub(super) held_back: HeldBack,
    /// Held once by every cut that is under way, besides here.
    pub(super) cuts_under_way: Arc<()>,
    /// The policy whose layout the firewalls have: for a moment of a swap, not yet that of the rulebook.
    laid: Arc<Policy>,
    /// When its layout changes by itself: the next observe segment ends.
    layout_ends: Option<Wall>,
    /// When the firewalls are asked again how full they are.
    measure_at: Tick,
    /// More elements have ended than were looked at.
    behind: bool,
    pub(super) clock: Clock,
}

impl Desk {
    /// Reads the journal, adopts the firewalls, re-decides what they hold.
    pub(super) fn open(parts: GranterParts, state: &Path) -> Result<Self, GranterError> {
        let named = |error| GranterError::Journal(state.display().to_string(), error);
        let GranterParts { mut ledger, firewalls, held, shard, rulebook, clock } = parts;
        let journal = Journal::open(state, &mut ledger).map_err(named)?;
        let enforcers = Enforcers::new(firewalls, held, clock.clone());
        let laid = Arc::clone(&rulebook.load().policy);
        let log = GrantLog::new(shard);
        let mut desk = Self {
            ledger,
            enforcers,
            journal,
            log,
            rulebook,
            chores: VecDeque::new(),
            held_back: HeldBack::default(),
            cuts_under_way: Arc::default(),
            laid,
            layout_ends: None,
            measure_at: Tick(0),
            behind: false,
            clock,
        };
        desk.adopt()?;
        desk.journal.rewrite(&desk.ledger).map_err(named)?;
        Ok(desk)
    }

    pub(super) const fn counts(&self) -> &Arc<GrantCounts> {
        self.enforcers.counts()
    }

    /// Serves until told to stop: a batch, a slice of a chore, and so on.
    pub(super) fn run(mut self, mut inbox: Inbox<Order>) {
        let mut orders = VecDeque::new();
        let mut offers = Vec::new();
        loop {
            // It waits only where there is nothing to do.
            let busy = !self.chores.is_empty() || self.behind || self.held_back.is_over();
            let idle = if self.enforcers.is_at_it() { TURN } else { IDLE };
            let patience = (orders.is_empty() && !busy).then_some(idle);
            if orders.len() < BATCH && !inbox.take(&mut orders, patience) && orders.is_empty() {
                return;
            }
            self.look_after();
            self.held_back.release();
            if !self.serve(&mut orders, &mut offers) {
                return;
            }
            self.chore();
        }
    }

    /// The next batch, and the orders before it. False where it is to stop.
    fn serve(&mut self, orders: &mut VecDeque<Order>, offers: &mut Vec<Offer>) -> bool {
        while offers.len() < BATCH
            && let Some(order) = orders.pop_front()
        {
            match order {
                Order::Offer(offer) => offers.push(offer),
                other => {
                    // Offers that came before an order are decided before it.
                    self.grant(offers);
                    if !self.obey(other) {
                        return false;
                    }
                    if self.enforcers.unusable().is_some() {
                        // What waits is decided after the next try to repair it.
                        return true;
                    }
                }
            }
        }
        self.grant(offers);
        true
    }

    /// False where it is to stop. A reply that nobody waits for any more is dropped.
    fn obey(&mut self, order: Order) -> bool {
        match order {
            Order::Offer(offer) => self.grant(&mut vec![offer]),
            Order::Arrange { rulebook, reply } => drop(reply.send(self.arrange(&rulebook.policy))),
            Order::Revoke { reply } => self.begin_revocation(Some(reply)),
            Order::Hold { filter, reply } => {
                self.hold(filter);
                _ = reply.send(());
            }
            Order::Close { filter, why, reply } => self.begin_closing(filter, why, reply),
            Order::Cut { what, reply } => self.cut(what, reply),
            Order::List { query, reply } => self.chores.push_back(Chore::List(Listing::new(query, reply))),
            Order::Stop => {
                // What was revoked must close.
                while self.closes() {
                    self.chore();
                }
                return false;
            }
        }
        true
    }

    /// One batch, in the fixed order.
    fn grant(&mut self, offers: &mut Vec<Offer>) {
        if offers.is_empty() {
            return;
        }
        if let Some(counts) = self.enforcers.unusable() {
            // Also for what the ledger holds to be open: nobody knows whether it still is.
            for offer in offers.drain(..) {
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
        // What it holds is not known any more, and neither is what the ledger says was open before.
        let unusable = self.enforcers.unusable().map(|counts| Arc::clone(&counts.name));
        let back = self.ledger.acknowledge(&changes, &applied.failed);
        self.enforcers.take_back(&back, now.tick);
        // Written with the next batch: what was never told is not worth a write of its own.
        self.journal_closings(&back);
        let failed_by = applied.by.as_ref().and_then(|(place, why)| Some((self.enforcers.at(*place)?, why.as_str())));
        let acknowledged = self.clock.tick();
        let backends = record::backends(&applied.acks);
        let mut settled = Vec::with_capacity(waiting.len());
        for Waiting { offered, query, reply } in waiting {
            let basis = Arc::clone(offered.cleared().basis());
            let Settled { granted, added } = self.ledger.settle(offered, acknowledged);
            let result = granted.map_err(|missing| {
                let Some((counts, why)) = &failed_by else {
                    return NotGranted::Firewall(
                        Arc::from("ledger"),
                        format!("{} addresses are not open", missing.len()),
                    );
                };
                counts.failed_closed.fetch_add(1, Ordering::Relaxed);
                NotGranted::Firewall(Arc::clone(&counts.name), (*why).to_owned())
            });
            let result = match (&unusable, result) {
                (Some(name), Ok(_)) => Err(NotGranted::Firewall(Arc::clone(name), "it cannot be used".to_owned())),
                (_, result) => result,
            };
            let failure = if let Err(NotGranted::Firewall(_, why)) = &result { Some(why.as_str()) } else { None };
            self.log.offered(&basis, &added, query, failure, &backends, now);
            settled.push((reply, result, added));
        }
        let recorded = self.log.commit().is_ok();
        let closings = match recorded {
            true => Vec::new(),
            false => self.close_unrecorded(settled.iter().flat_map(|(.., added)| added), now),
        };
        for (reply, result, _) in settled {
            drop(reply.send(if recorded { result } else { result.and(Err(NotGranted::Audit)) }));
        }
        // What a required firewall refused was taken back everywhere, and is not advised now.
        let mut taken = changes;
        let mut at = 0..;
        taken.retain(|_| at.next().is_none_or(|at| applied.failed.binary_search(&at).is_err()));
        self.after(&taken, now);
        self.after(&closings, now);
    }

    /// Closes what was opened and could not be recorded: no answer tells it, so nothing may hold it. The closings, for
    /// those that are advised.
    fn close_unrecorded<'a>(&mut self, added: impl Iterator<Item = &'a Added>, now: Now) -> Vec<Change> {
        let opened = added.filter(|added| matches!(added.effect, Effect::Opens(..))).map(|added| &added.element);
        self.ledger.abandon(opened);
        let changes = self.ledger.take_batch();
        self.journal_closings(&changes);
        let applied = self.enforcers.apply(&changes, now.tick);
        let back = self.ledger.acknowledge(&changes, &applied.failed);
        self.enforcers.take_back(&back, now.tick);
        changes
    }

    /// Puts every offer that still counts into the batch being filled.
    fn offer(&mut self, offers: &mut Vec<Offer>, now: Now) -> Vec<Waiting> {
        let rulebook = self.rulebook.load_full();
        let mut waiting = Vec::with_capacity(offers.len());
        for offer in offers.drain(..) {
            if offer.reply.is_closed() {
                continue;
            }
            // A permit can grow stale between its decision and here (I6).
            if !Arc::ptr_eq(offer.cleared.permit().policy(), &rulebook.policy) {
                offer.refuse(NotGranted::Stale);
                continue;
            }
            if self.held_back.takes(&offer.cleared) {
                self.held_back.put(offer);
                continue;
            }
            let Offer { cleared, told_until, query, reply } = offer;
            match self.ledger.offer(cleared, told_until, now) {
                Ok(offered) => waiting.push(Waiting { offered, query, reply }),
                Err(full) => drop(reply.send(Err(NotGranted::Full(full)))),
            }
        }
        waiting
    }

    /// The batch on disk, before any firewall is told.
    fn write_journal(&mut self, waiting: &[Waiting], changes: &[Change]) -> std::io::Result<()> {
        for one in waiting {
            let elements = one.offered.added().iter().map(|added| (added.element, added.open_until));
            if elements.len() > 0 {
                self.journal.opened(one.offered.cleared().basis(), one.offered.told_until(), elements);
            }
        }
        self.journal_closings(changes);
        self.journal.write()
    }

    pub(super) fn journal_closings(&mut self, changes: &[Change]) {
        let closed = changes.iter().filter(|change| matches!(change, Change::Close { .. })).map(Change::element);
        self.journal.closed(closed);
    }

    /// What nobody waits for.
    pub(super) fn after(&mut self, changes: &[Change], now: Now) {
        self.enforcers.advise(changes, now.tick);
        if self.journal.is_large() {
            match self.journal.begin_rewriting() {
                Ok(()) => self.chores.push_back(Chore::Rewrite(0)),
                Err(error) => tracing::warn!(%error, "the journal could not be rewritten; it goes on growing"),
            }
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
        self.behind = self.ledger.expire(now.tick, EXPIRE);
        self.enforcers.repair(&self.ledger, || self.laid.layout(now.wall), now.tick);
        if self.layout_ends.is_some_and(|end| end <= now.wall) {
            let laid = Arc::clone(&self.laid);
            if let Err((firewall, error)) = self.arrange(&laid) {
                tracing::error!(%firewall, %error, "a rule or an observe segment ended and that could not be enforced in the firewall yet; answers fail closed until it is");
                // The firewall is not usable now; its repair lays the layout of that moment.
                self.layout_ends = laid.next_change(now.wall);
            }
            // What was granted under a rule ends with it by itself; not so where the rule had another end at the time.
            self.begin_revocation(None);
        }
        self.count();
    }

    /// The layout that the firewalls have.
    pub(super) fn layout(&self) -> Layout {
        self.laid.layout(self.clock.now().wall)
    }

    fn arrange(&mut self, policy: &Arc<Policy>) -> Result<(), (Arc<str>, FirewallError)> {
        let wall = self.clock.now().wall;
        self.enforcers.arrange(&policy.layout(wall), || self.laid.layout(wall))?;
        self.layout_ends = policy.next_change(wall);
        self.laid = Arc::clone(policy);
        Ok(())
    }

    fn adopt(&mut self) -> Result<(), GranterError> {
        let now = self.clock.now();
        let policy = Arc::clone(&self.rulebook.load().policy);
        let unusable = |(name, error)| GranterError::Firewall(name, error);
        let recalled = self.ledger.recalled(now.tick);
        let found = self.enforcers.adopt(&policy.layout(now.wall), &recalled, now.tick).map_err(unusable)?;
        drop(recalled);
        self.layout_ends = policy.next_change(now.wall);
        // What any of them holds; the others are given it below, before an answer relies on it.
        for (element, until) in found.iter().flatten() {
            self.ledger.confirm(element, *until);
        }
        self.ledger.adopt(now.tick, |basis, element| policy.upholds(basis, element, now.wall).is_some());
        let closed = self.enforcers.even_out(&found, &self.ledger, now.tick).map_err(unusable)?;
        if !self.ledger.is_empty() || closed > 0 {
            tracing::info!(adopted = self.ledger.len(), closed, "took over the grants of the process before");
        }
        for held in self.ledger.held(0..self.ledger.slots()) {
            self.log.adopted(&held, now);
        }
        if self.log.commit().is_err() {
            tracing::error!("adopted grants could not be recorded");
        }
        self.enforcers.measure();
        self.count();
        Ok(())
    }
}
