//! The granter: one thread that owns the ledger, the journal and the firewalls, and is the only clock for grants.
//!
//! It commits in groups: whatever was offered while one batch was in the kernel is the next batch. The order of one
//! batch is fixed: journal, firewalls, acknowledgement, grant records, and only then the [`Granted`]s go back.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use arc_swap::ArcSwap;
use foldhash::quality::RandomState;
use tokio::sync::oneshot;

use crate::audit::{BackendAck, Event, GrantEvent, GrantOp, RecordId, Shard};
use crate::firewall::{Firewall, FirewallError};
use crate::gate::Rulebook;
use crate::gate::journal::{Journal, Reasons};
use crate::grant::{Change, Full, Granted, Ledger, Offered, Revoked};
use crate::net::{Element, Scope, Service, Services};
use crate::policy::{Basis, Cleared};
use crate::time::{Clock, Now, Tick, Wall};

/// Offers that may wait at once; more are refused, closed.
const QUEUE: usize = 16_384;

/// Offers that go into one batch at most, so that one batch stays within one netlink message or two.
const BATCH: usize = 256;

/// How often the granter looks after itself when nobody asks: ends, drift, observe segments that end.
const IDLE: Duration = Duration::from_millis(250);

/// Why an answer may not be told.
#[derive(Debug)]
pub enum NotGranted {
    /// The policy changed since it was inspected: decide again.
    Stale,
    /// A cap is met.
    Full(Full),
    /// A required firewall did not take it; its name and why.
    Firewall(Arc<str>, String),
    /// The journal could not be written.
    Journal(String),
    /// The grant's record could not be written.
    Audit,
    /// Too many offers are waiting, or the node is stopping.
    Busy,
}

/// Which grants a listing shows.
#[derive(Clone, Debug, Default)]
pub struct GrantQuery {
    /// Only grants of this client.
    pub client: Option<std::net::IpAddr>,
    /// Only to this address.
    pub address: Option<std::net::IpAddr>,
    /// Only for this name.
    pub name: Option<crate::name::Name>,
    /// Only of this segment.
    pub segment: Option<String>,
    /// At most so many.
    pub limit: usize,
}

/// One reason for which one address is open.
#[derive(Clone, Debug)]
pub struct GrantEntry {
    /// From whom.
    pub from: Scope,
    /// To where.
    pub to: std::net::IpAddr,
    /// By what.
    pub service: Service,
    /// Why.
    pub basis: Arc<Basis>,
    /// Until when, by the monotonic clock and the wall clock.
    pub until: (Tick, Wall),
}

/// What the granter did so far and holds now.
#[derive(Debug, Default)]
pub struct GrantCounts {
    /// Live elements.
    pub live: AtomicU64,
    /// Offers waiting.
    pub pending: AtomicU64,
    /// Times that a firewall was found changed by somebody else and repaired.
    pub repairs: AtomicU64,
    /// Batches that a firewall failed, wholly or in part.
    pub errors: AtomicU64,
    /// The last batch's acknowledgement, in microseconds.
    pub last_ack_us: AtomicU64,
    /// All acknowledgements, in microseconds, and how many.
    pub ack_us: AtomicU64,
    /// How many batches were acknowledged.
    pub acks: AtomicU64,
    /// 1 while every required firewall is usable.
    pub ready: AtomicU64,
}

enum Order {
    Offer { cleared: Cleared, told_until: Tick, query: RecordId, reply: oneshot::Sender<Result<Granted, NotGranted>> },
    Arrange { reply: oneshot::Sender<Result<(), (Arc<str>, FirewallError)>>, rulebook: Arc<Rulebook> },
    Revoke { reply: oneshot::Sender<u64> },
    List { query: GrantQuery, reply: oneshot::Sender<Vec<GrantEntry>> },
    Stop,
}

/// A handle to the granter.
#[derive(Clone, Debug)]
pub struct Granter {
    orders: SyncSender<Order>,
    counts: Arc<GrantCounts>,
}

/// Why the granter could not start.
#[derive(Debug, thiserror::Error)]
pub enum GranterError {
    /// A required firewall cannot be used.
    #[error("firewall \"{0}\": {1}")]
    Firewall(Arc<str>, FirewallError),
    /// The journal cannot be read or written.
    #[error("the journal in {0}: {1}; make the state directory writable for this user")]
    Journal(String, io::Error),
    /// No thread.
    #[error("the granter's thread could not be started: {0}")]
    Thread(io::Error),
}

/// What a new granter needs.
pub struct GranterParts {
    /// An empty ledger with its terms and caps.
    pub ledger: Ledger,
    /// The firewalls, none adopted yet.
    pub firewalls: Vec<Box<dyn Firewall>>,
    /// Its own shard of the log.
    pub shard: Shard,
    /// The rulebook in force.
    pub rulebook: Arc<ArcSwap<Rulebook>>,
    /// Time.
    pub clock: Clock,
}

impl Granter {
    /// Adopts what is in force, re-decides it under the present policy, and starts the thread. When this returns the
    /// firewalls enforce the policy and the doors may open.
    ///
    /// # Errors
    /// A firewall or the journal cannot be used; nothing was opened.
    pub fn start(parts: GranterParts, state: &Path) -> Result<(Self, std::thread::JoinHandle<()>), GranterError> {
        let named = |error| GranterError::Journal(state.display().to_string(), error);
        let (journal, reasons) = Journal::open(state).map_err(named)?;
        let counts = Arc::new(GrantCounts::default());
        let GranterParts { ledger, firewalls, shard, rulebook, clock } = parts;
        let names = firewalls.iter().map(|firewall| Arc::from(firewall.name())).collect();
        let usable = vec![true; firewalls.len()];
        let mut desk =
            Desk { ledger, firewalls, names, journal, shard, rulebook, clock, counts: Arc::clone(&counts), usable };
        desk.adopt(reasons)?;
        desk.journal.rewrite(&desk.ledger).map_err(named)?;
        let (orders, inbox) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new()
            .name("granter".into())
            .spawn(move || desk.run(&inbox))
            .map_err(GranterError::Thread)?;
        Ok((Self { orders, counts }, thread))
    }

    /// Offers an inspected answer that may be told until `told_until`, and waits until every required firewall
    /// has acknowledged its openings.
    ///
    /// # Errors
    /// [`NotGranted`]; nothing may be told.
    pub async fn offer(&self, cleared: Cleared, told_until: Tick, query: RecordId) -> Result<Granted, NotGranted> {
        let (reply, answer) = oneshot::channel();
        self.counts.pending.fetch_add(1, Ordering::Relaxed);
        let sent = self.orders.try_send(Order::Offer { cleared, told_until, query, reply });
        let result = match sent {
            Ok(()) => answer.await.unwrap_or(Err(NotGranted::Busy)),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => Err(NotGranted::Busy),
        };
        self.counts.pending.fetch_sub(1, Ordering::Relaxed);
        result
    }

    /// Lays the layout of a rulebook that is about to be published out in every firewall; where one refuses, the
    /// others are put back.
    ///
    /// # Errors
    /// The firewall that refused, and why.
    pub async fn arrange(&self, rulebook: Arc<Rulebook>) -> Result<(), (Arc<str>, FirewallError)> {
        let (reply, answer) = oneshot::channel();
        let gone = || (Arc::from("granter"), FirewallError::Deadline);
        self.orders.try_send(Order::Arrange { reply, rulebook }).map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Re-decides every live grant under the published policy and closes what it would not make; how many reasons
    /// went.
    pub async fn revoke(&self) -> u64 {
        let (reply, answer) = oneshot::channel();
        if self.orders.try_send(Order::Revoke { reply }).is_err() {
            return 0;
        }
        answer.await.unwrap_or(0)
    }

    /// Lists grants.
    pub async fn list(&self, query: GrantQuery) -> Vec<GrantEntry> {
        let (reply, answer) = oneshot::channel();
        if self.orders.try_send(Order::List { query, reply }).is_err() {
            return Vec::new();
        }
        answer.await.unwrap_or_default()
    }

    /// Ends the thread after what is queued; the firewalls keep what they hold.
    pub fn stop(&self) {
        let _ = self.orders.send(Order::Stop);
    }

    /// Numbers for metrics and status.
    #[must_use]
    pub const fn counts(&self) -> &Arc<GrantCounts> {
        &self.counts
    }
}

/// What the granter's thread owns.
struct Desk {
    ledger: Ledger,
    firewalls: Vec<Box<dyn Firewall>>,
    names: Vec<Arc<str>>,
    journal: Journal,
    shard: Shard,
    rulebook: Arc<ArcSwap<Rulebook>>,
    clock: Clock,
    counts: Arc<GrantCounts>,
    /// Which firewalls are usable, in their order.
    usable: Vec<bool>,
}

struct Waiting {
    offered: Offered,
    query: RecordId,
    reply: oneshot::Sender<Result<Granted, NotGranted>>,
}

/// What became of a batch: the changes that some required firewall did not take, and the first that said so.
struct Applied {
    failed: Vec<usize>,
    by: Option<(Arc<str>, String)>,
    acks: Vec<(Arc<str>, u64)>,
}

impl Desk {
    fn run(mut self, inbox: &Receiver<Order>) {
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
                    Order::Offer { cleared, told_until, query, reply } => {
                        offers.push((cleared, told_until, query, reply))
                    }
                    other => {
                        self.grant(std::mem::take(&mut offers));
                        if !self.obey(other) {
                            return;
                        }
                    }
                }
            }
            self.grant(offers);
        }
    }

    fn obey(&mut self, order: Order) -> bool {
        match order {
            Order::Offer { .. } => {}
            Order::Arrange { reply, rulebook } => drop(reply.send(self.arrange(&rulebook))),
            Order::Revoke { reply } => drop(reply.send(self.revoke())),
            Order::List { query, reply } => drop(reply.send(self.list(&query))),
            Order::Stop => return false,
        }
        true
    }

    /// One batch, in the fixed order.
    fn grant(&mut self, offers: Vec<(Cleared, Tick, RecordId, oneshot::Sender<Result<Granted, NotGranted>>)>) {
        if offers.is_empty() {
            return;
        }
        let now = self.clock.now();
        let rulebook = self.rulebook.load_full();
        let mut waiting: Vec<Waiting> = Vec::with_capacity(offers.len());
        for (cleared, told_until, query, reply) in offers {
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
        let changes = self.ledger.take_batch();
        for one in &waiting {
            let elements: Vec<(Element, Tick)> =
                one.offered.changed.iter().map(|(element, until, _)| (*element, *until)).collect();
            if !elements.is_empty() {
                self.journal.opened(one.offered.cleared().basis(), one.offered.told_until(), &elements);
            }
        }
        self.journal_closings(&changes);
        if let Err(error) = self.journal.write(false) {
            let all: Vec<usize> = (0..changes.len()).collect();
            self.ledger.acknowledge(&changes, &all);
            for one in waiting {
                drop(one.reply.send(Err(NotGranted::Journal(error.to_string()))));
            }
            return;
        }
        let applied = self.apply(&changes, now);
        self.ledger.acknowledge(&changes, &applied.failed);
        self.close_what_failed(&changes, &applied.failed, now);
        let mut settled = Vec::with_capacity(waiting.len());
        for Waiting { offered, query, reply } in waiting {
            let changed = offered.changed.clone();
            let (basis, result) = match self.ledger.settle(offered) {
                Ok(granted) => (Arc::clone(granted.cleared().basis()), Ok(granted)),
                Err((cleared, missing)) => {
                    let (name, why) = applied.by.clone().unwrap_or_else(|| {
                        (Arc::from("ledger"), format!("{} of its addresses are not open", missing.len()))
                    });
                    (Arc::clone(cleared.basis()), Err(NotGranted::Firewall(name, why)))
                }
            };
            let failure = match &result {
                Err(NotGranted::Firewall(_, why)) => Some(why.as_str()),
                _ => None,
            };
            self.record_offer(&basis, &changed, query, failure, &applied.acks, now);
            settled.push((reply, result));
        }
        let recorded = self.shard.commit().is_ok();
        for (reply, result) in settled {
            let result = if recorded { result } else { result.and(Err(NotGranted::Audit)) };
            drop(reply.send(result));
        }
        self.after(&changes, now);
    }

    /// What nobody waits for: firewalls that are not required, and the journal's size.
    fn after(&mut self, changes: &[Change], now: Now) {
        if !changes.is_empty() {
            for firewall in self.firewalls.iter_mut().filter(|firewall| !firewall.required()) {
                if let Err(error) = firewall.apply(changes, now.tick) {
                    tracing::warn!(firewall = firewall.name(), %error, "an advisory firewall did not take a batch");
                }
            }
        }
        if let Err(error) = self.journal.compact(&self.ledger) {
            tracing::warn!(%error, "the journal could not be rewritten; it goes on growing");
        }
        self.counts.live.store(self.ledger.len() as u64, Ordering::Relaxed);
    }

    /// Tells every required firewall; changes that any of them did not take have failed.
    fn apply(&mut self, changes: &[Change], now: Now) -> Applied {
        let mut applied = Applied { failed: Vec::new(), by: None, acks: Vec::new() };
        if changes.is_empty() {
            return applied;
        }
        self.repair_drift(now);
        for (firewall, name) in self.firewalls.iter_mut().zip(&self.names).filter(|(firewall, _)| firewall.required()) {
            let sent = self.clock.tick();
            let failed = match firewall.apply(changes, now.tick) {
                Ok(failed) => failed,
                Err(error) => {
                    tracing::error!(firewall = %name, %error, "a required firewall did not take a batch; its answers fail closed");
                    applied.by.get_or_insert_with(|| (Arc::clone(name), error.to_string()));
                    (0..changes.len()).collect()
                }
            };
            let took = u64::try_from(self.clock.tick().since(sent).as_micros()).unwrap_or(u64::MAX);
            applied.acks.push((Arc::clone(name), took));
            self.counts.last_ack_us.store(took, Ordering::Relaxed);
            self.counts.ack_us.fetch_add(took, Ordering::Relaxed);
            self.counts.acks.fetch_add(1, Ordering::Relaxed);
            if took > 50_000 {
                tracing::warn!(firewall = %name, took_us = took, "a firewall took long to acknowledge");
            }
            if !failed.is_empty() {
                self.counts.errors.fetch_add(1, Ordering::Relaxed);
                applied.by.get_or_insert_with(|| (Arc::clone(name), "the kernel did not take the element".into()));
            }
            applied.failed.extend(failed);
        }
        applied.failed.sort_unstable();
        applied.failed.dedup();
        applied
    }

    /// An opening that one firewall refused may stand in another: take it back there.
    fn close_what_failed(&mut self, changes: &[Change], failed: &[usize], now: Now) {
        let closings: Vec<Change> = failed
            .iter()
            .filter_map(|at| changes.get(*at))
            .filter(|change| !self.ledger.holds(change.element()))
            .map(|change| Change::Close { element: *change.element() })
            .collect();
        if closings.is_empty() {
            return;
        }
        for firewall in &mut self.firewalls {
            if let Err(error) = firewall.apply(&closings, now.tick) {
                tracing::warn!(firewall = firewall.name(), %error, "a failed opening could not be taken back; it ends by itself");
            }
        }
    }

    fn journal_closings(&mut self, changes: &[Change]) {
        let mut closed = changes
            .iter()
            .filter_map(|change| if let Change::Close { element } = change { Some(element) } else { None })
            .peekable();
        if closed.peek().is_some() {
            self.journal.closed(closed);
        }
    }

    /// Ends, drift, observe segments that end.
    fn look_after(&mut self) {
        let now = self.clock.now();
        self.ledger.expire(now.tick);
        self.repair_drift(now);
        let rulebook = self.rulebook.load_full();
        if rulebook.layout_ends.is_some_and(|end| end <= now.wall) && !rulebook.relaid.swap(true, Ordering::Relaxed) {
            if let Err((firewall, error)) = self.arrange(&rulebook) {
                tracing::error!(%firewall, %error, "an observe segment ended and could not be enforced in the firewall yet");
                rulebook.relaid.store(false, Ordering::Relaxed);
            }
        }
        self.counts.live.store(self.ledger.len() as u64, Ordering::Relaxed);
    }

    /// Where somebody else changed a firewall: takes it over again and restores what is missing, closes what is
    /// foreign. Offers wait meanwhile: no answer is told into a hole.
    fn repair_drift(&mut self, now: Now) {
        let Self { firewalls, usable, ledger, rulebook, counts, .. } = self;
        for (firewall, usable) in firewalls.iter_mut().zip(usable.iter_mut()) {
            if *usable && matches!(firewall.drifted(), Ok(false)) {
                continue;
            }
            let layout = rulebook.load().policy.layout(now.wall);
            let repaired = firewall.adopt(&layout, now.tick).and_then(|found| {
                let found: HashMap<Element, Tick, RandomState> = found.into_iter().collect();
                let changes = ledger.repair(&found, now.tick);
                firewall.apply(&changes, now.tick).map(|failed| (changes.len(), failed.len()))
            });
            *usable = repaired.is_ok();
            let name = firewall.name();
            match repaired {
                Ok((changes, failed)) => {
                    counts.repairs.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(
                        firewall = name,
                        changes,
                        failed,
                        "somebody else changed the firewall; it was repaired"
                    );
                }
                Err(error) => {
                    tracing::error!(firewall = name, %error, "somebody else changed the firewall, and it could not be repaired yet");
                }
            }
        }
        let ready = firewalls.iter().zip(usable.iter()).all(|(firewall, usable)| *usable || !firewall.required());
        counts.ready.store(u64::from(ready), Ordering::Relaxed);
    }

    fn arrange(&mut self, rulebook: &Rulebook) -> Result<(), (Arc<str>, FirewallError)> {
        let now = self.clock.now();
        let layout = rulebook.policy.layout(now.wall);
        for at in 0..self.firewalls.len() {
            let Some(firewall) = self.firewalls.get_mut(at) else { break };
            let Err(error) = firewall.arrange(&layout) else { continue };
            let name: Arc<str> = Arc::from(firewall.name());
            let old = self.rulebook.load().policy.layout(now.wall);
            for undone in self.firewalls.iter_mut().take(at) {
                if let Err(error) = undone.arrange(&old) {
                    tracing::error!(firewall = undone.name(), %error, "the old layout could not be put back");
                }
            }
            return Err((name, error));
        }
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
        let applied = self.apply(&changes, now);
        if let Some((firewall, error)) = applied.by {
            tracing::error!(%firewall, error, "a revocation failed; the element ends by itself");
        }
        self.record_revoked(&revoked, "policy", &applied.acks, now);
        if self.shard.commit().is_err() {
            tracing::error!("revocations could not be recorded");
        }
        self.after(&changes, now);
        revoked.len() as u64
    }

    fn adopt(&mut self, mut reasons: Reasons) -> Result<(), GranterError> {
        let now = self.clock.now();
        let policy = Arc::clone(&self.rulebook.load().policy);
        let layout = policy.layout(now.wall);
        let mut in_force: HashMap<Element, Tick, RandomState> = HashMap::default();
        for (firewall, name) in self.firewalls.iter_mut().zip(&self.names) {
            let found = match firewall.adopt(&layout, now.tick) {
                Ok(found) => found,
                Err(error) if firewall.required() => return Err(GranterError::Firewall(Arc::clone(name), error)),
                Err(error) => {
                    tracing::warn!(firewall = %name, %error, "an advisory firewall cannot be used");
                    continue;
                }
            };
            for (element, until) in found {
                in_force.entry(element).and_modify(|known| *known = (*known).min(until)).or_insert(until);
            }
        }
        let mut adopted: Vec<(Element, Tick, Arc<Basis>)> = Vec::new();
        for (element, until) in in_force {
            let mut upheld = reasons.remove(&element).unwrap_or_default();
            upheld.retain(|reason| policy.upholds(&reason.basis, &element).is_some());
            let basis = upheld.first().map(|reason| Arc::clone(&reason.basis));
            if self.ledger.adopt(element, until, upheld, now.tick) {
                adopted.extend(basis.map(|basis| (element, until, basis)));
            }
        }
        let closings = self.ledger.take_batch();
        let applied = self.apply(&closings, now);
        if let Some((firewall, why)) = applied.by {
            return Err(GranterError::Firewall(
                firewall,
                FirewallError::Kernel { what: "closing what the policy no longer allows".into(), why },
            ));
        }
        if !adopted.is_empty() || !closings.is_empty() {
            tracing::info!(
                adopted = adopted.len(),
                closed = closings.len(),
                "took over the grants of the process before"
            );
        }
        for (element, until, basis) in adopted {
            let id = self.shard.reserve();
            let event = grant_event(now, GrantOp::Adopt, &basis, element, until);
            self.shard.append(id, &Event::Grant(GrantEvent { services: &[element.service.into()], ..event }));
        }
        if self.shard.commit().is_err() {
            tracing::error!("adopted grants could not be recorded");
        }
        self.counts.ready.store(1, Ordering::Relaxed);
        self.counts.live.store(self.ledger.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// One record per address that changed: the services that changed alike.
    fn record_offer(
        &mut self,
        basis: &Basis,
        changed: &[(Element, Tick, bool)],
        query: RecordId,
        failure: Option<&str>,
        acks: &[(Arc<str>, u64)],
        now: Now,
    ) {
        let backends: Vec<BackendAck<'_>> =
            acks.iter().map(|(name, acked_us)| BackendAck { name, acked_us: *acked_us }).collect();
        for group in changed.chunk_by(|a, b| a.0.from == b.0.from && a.0.to == b.0.to && a.2 == b.2) {
            let Some((element, until, was_open)) = group.first().copied() else { continue };
            let services: Vec<Service> = group.iter().map(|(element, ..)| element.service).collect();
            let op = match (failure, was_open) {
                (Some(_), _) => GrantOp::Fail,
                (None, true) => GrantOp::Extend,
                (None, false) => GrantOp::Open,
            };
            let id = self.shard.reserve();
            let event = grant_event(now, op, basis, element, until);
            let services = Services::merge(&services);
            let event =
                GrantEvent { services: &services, query: Some(query), why: failure, backends: &backends, ..event };
            self.shard.append(id, &Event::Grant(event));
        }
    }

    fn record_revoked(&mut self, revoked: &[Revoked], why: &str, acks: &[(Arc<str>, u64)], now: Now) {
        let backends: Vec<BackendAck<'_>> =
            acks.iter().map(|(name, acked_us)| BackendAck { name, acked_us: *acked_us }).collect();
        for one in revoked {
            let op = if one.remains.is_some() { GrantOp::Shorten } else { GrantOp::Revoke };
            let id = self.shard.reserve();
            let event = grant_event(now, op, &one.basis, one.element, one.remains.unwrap_or(now.tick));
            let services = [one.element.service.into()];
            let event = GrantEvent { services: &services, why: Some(why), backends: &backends, ..event };
            self.shard.append(id, &Event::Grant(event));
        }
    }

    fn list(&self, query: &GrantQuery) -> Vec<GrantEntry> {
        let now = self.clock.now();
        let mut entries: Vec<GrantEntry> = Vec::new();
        for held in self.ledger.iter() {
            if entries.len() >= query.limit {
                break;
            }
            let Some(in_force) = held.in_force else { continue };
            let wanted = query.address.is_none_or(|address| held.element.to == address);
            for reason in held.reasons.iter().filter(|reason| wanted && reason.open_until > now.tick) {
                let basis = &reason.basis;
                if query.client.is_none_or(|client| basis.client == client)
                    && query.name.as_ref().is_none_or(|name| basis.question.name == *name)
                    && query.segment.as_ref().is_none_or(|segment| *basis.segment == **segment)
                {
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
        }
        entries
    }
}

fn grant_event<'a>(now: Now, op: GrantOp, basis: &'a Basis, element: Element, until: Tick) -> GrantEvent<'a> {
    GrantEvent {
        at: now.wall,
        op,
        client: basis.client,
        element,
        segment: &basis.segment,
        rule: &basis.rule,
        qname: &basis.question.name,
        services: &[],
        until: now.wall_at(until),
        query: None,
        why: None,
        backends: &[],
    }
}
