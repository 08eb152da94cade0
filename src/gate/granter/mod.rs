//! The granter: one thread that owns the ledger, the journal and the firewalls, and is the only clock for grants.
//!
//! This is its handle: what the slow path, the reload and the operator ask of it. The thread is in `desk`.

mod chore;
mod closing;
mod cutting;
mod desk;
mod enforcers;
mod journal;
mod queue;
mod record;
mod returning;

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use desk::{Desk, Order};
pub use enforcers::EnforcerCounts;
use queue::{Refused, Sender};
use tokio::sync::oneshot;

use crate::audit::{RecordId, Shard};
use crate::firewall::{Cut, Firewall, FirewallError};
use crate::gate::Rulebook;
use crate::grant::{Full, Granted, Ledger};
use crate::metric::Distribution;
use crate::name::Name;
use crate::net::{Element, Prefix, Scope, Service};
use crate::policy::{Basis, Cleared};
use crate::time::{Clock, Tick, Wall};

/// Offers that may wait at once; more are refused, closed.
const QUEUE: usize = 16_384;

/// How often what must be put in looks whether the queue has room again.
const FULL: Duration = Duration::from_millis(1);

/// Why an answer may not be told.
#[derive(Debug)]
pub enum NotGranted {
    /// The policy changed since it was inspected, or what it would open was closed: decide again.
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
    pub client: Option<IpAddr>,
    /// Only to this address.
    pub address: Option<IpAddr>,
    /// Only for this name.
    pub name: Option<Name>,
    /// Only of this segment.
    pub segment: Option<String>,
    /// Only under this rule.
    pub rule: Option<Arc<str>>,
    /// At most so many.
    pub limit: usize,
}

/// Which reasons for grants are closed: those of which all is so that is said here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GrantsOf {
    /// What is open for this client alone, or for what connects in its place.
    pub client: Option<IpAddr>,
    /// To an address in here.
    pub address: Option<Prefix>,
    /// For this name, or through it: an alias on the way, a target.
    pub name: Option<Name>,
    /// And for the names below it.
    pub below: bool,
    /// Of this segment.
    pub segment: Option<Arc<str>>,
    /// Under this rule.
    pub rule: Option<Arc<str>>,
}

/// What was closed.
#[derive(Clone, Debug, Default)]
pub struct Closed {
    /// How many reasons went.
    pub reasons: u64,
    /// What is open for no reason any more, and closed in every firewall that is not named in `unclosed`.
    pub elements: Vec<Element>,
    /// How many elements other reasons hold open.
    pub still_open: u64,
    /// Firewalls that did not take all of it yet: they are told again until they do.
    pub unclosed: Vec<Arc<str>>,
}

/// Which connections are to end.
#[derive(Debug)]
pub(super) enum Cutting {
    /// These.
    Named(Vec<Cut>),
    /// Those that these elements let begin, as far as they are closed.
    Of(Vec<Element>),
}

/// One reason for which one element is open.
#[derive(Clone, Debug)]
pub struct GrantEntry {
    /// From whom.
    pub from: Scope,
    /// To where.
    pub to: IpAddr,
    /// By what.
    pub service: Service,
    /// Why.
    pub basis: Arc<Basis>,
    /// Until when, by the monotonic clock and the wall clock.
    pub until: (Tick, Wall),
}

/// What the granter did so far and holds now.
#[derive(Debug)]
pub struct GrantCounts {
    /// Live elements.
    pub live: AtomicU64,
    /// Offers waiting.
    pub pending: AtomicU64,
    /// How long offers waited.
    pub held: Arc<Distribution>,
    /// Whether the journal could be written last.
    pub journal_usable: AtomicBool,
    /// Each firewall's, in the order of the configuration.
    pub enforcers: Vec<EnforcerCounts>,
}

impl GrantCounts {
    /// Whether every required firewall is usable.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.enforcers.iter().all(EnforcerCounts::ready)
    }
}

/// A handle to the granter.
#[derive(Clone, Debug)]
pub struct Granter {
    orders: Sender<Order>,
    counts: Arc<GrantCounts>,
    hurry: Arc<AtomicBool>,
    clock: Clock,
}

/// Why the granter could not start.
#[derive(Debug, thiserror::Error)]
pub enum GranterError {
    /// A required firewall cannot be used.
    #[error("firewall \"{0}\": {1}")]
    Firewall(Arc<str>, FirewallError),
    /// The journal cannot be read or written.
    #[error("the journal in {0}: {1}; {remedy}", remedy = remedy(.1))]
    Journal(String, io::Error),
    /// No thread.
    #[error("the granter's thread could not be started: {0}")]
    Thread(io::Error),
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull => "free some space there",
        _ => "make the state directory writable for this user",
    }
}

/// What a new granter needs.
pub struct GranterParts {
    /// An empty ledger with its terms and caps.
    pub ledger: Ledger,
    /// The firewalls, none adopted yet, each with where its acknowledgements are counted.
    pub firewalls: Vec<(Box<dyn Firewall>, Arc<Distribution>)>,
    /// Where the time that answers are held is counted.
    pub held: Arc<Distribution>,
    /// Its own shard of the log.
    pub shard: Shard,
    /// The rulebook in force.
    pub rulebook: Arc<ArcSwap<Rulebook>>,
    /// Time.
    pub clock: Clock,
}

/// An offer that waits; its time is counted when it ends, also where nobody waits for it any more.
struct Pending<'a> {
    granter: &'a Granter,
    since: Tick,
}

impl<'a> Pending<'a> {
    fn new(granter: &'a Granter) -> Self {
        granter.counts.pending.fetch_add(1, Ordering::Relaxed);
        Self { granter, since: granter.clock.tick() }
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.granter.counts.pending.fetch_sub(1, Ordering::Relaxed);
        self.granter.counts.held.record(self.granter.clock.tick().since(self.since));
    }
}

impl Granter {
    /// Adopts what is in force, re-decides it under the present policy, and starts the thread. When this returns the
    /// firewalls enforce the policy and the doors may open.
    ///
    /// # Errors
    /// A firewall or the journal cannot be used; nothing was opened.
    pub fn start(parts: GranterParts, state: &Path) -> Result<(Self, std::thread::JoinHandle<()>), GranterError> {
        let clock = parts.clock.clone();
        let desk = Desk::open(parts, state)?;
        let (counts, hurry) = (Arc::clone(desk.counts()), Arc::clone(desk.enforcers.hurry()));
        let (orders, inbox) = queue::queue(QUEUE);
        let thread = std::thread::Builder::new()
            .name("granter".into())
            .spawn(move || desk.run(inbox))
            .map_err(GranterError::Thread)?;
        Ok((Self { orders, counts, hurry, clock }, thread))
    }

    /// Offers an inspected answer that may be told until `told_until`, for `query` where one asked, and waits until every required firewall
    /// has acknowledged its openings.
    ///
    /// # Errors
    /// [`NotGranted`]; nothing may be told.
    pub async fn offer(
        &self,
        cleared: Cleared,
        told_until: Tick,
        query: Option<RecordId>,
    ) -> Result<Granted, NotGranted> {
        let _pending = Pending::new(self);
        let granted = self.ask(|reply| Order::offer(cleared, told_until, query, reply)).await;
        granted.unwrap_or(Err(NotGranted::Busy))
    }

    /// Lays the layout of a rulebook that is about to be published out in every firewall; where one refuses, the
    /// others are put back.
    ///
    /// # Errors
    /// The firewall that refused, and why.
    pub async fn arrange(&self, rulebook: Arc<Rulebook>) -> Result<(), (Arc<str>, FirewallError)> {
        let arranged = self.insist(|reply| Order::Arrange { rulebook, reply }).await;
        arranged.unwrap_or_else(|| Err((Arc::from("granter"), FirewallError::Deadline)))
    }

    /// Re-decides every live grant under the published policy and closes what it would not make.
    pub async fn revoke(&self) -> Closed {
        self.insist(|reply| Order::Revoke { reply }).await.unwrap_or_default()
    }

    /// From here on offers of what `filter` takes wait, until [`Granter::close`] has closed it or nobody has the filter any
    /// more.
    pub(in crate::gate) async fn hold(&self, filter: &Arc<GrantsOf>) {
        let filter = Arc::downgrade(filter);
        self.insist(|reply| Order::Hold { filter, reply }).await;
    }

    /// Closes what `filter` takes, whatever the policy says; `why` is what its records say.
    pub(in crate::gate) async fn close(&self, filter: Arc<GrantsOf>, why: Arc<str>) -> Closed {
        self.insist(|reply| Order::Close { filter, why, reply }).await.unwrap_or_default()
    }

    /// Ends live connections in every firewall: how many, or why it could not. Grants stay: what is still granted begins
    /// anew.
    pub async fn cut(&self, cuts: Vec<Cut>) -> Vec<(Arc<str>, Result<u64, String>)> {
        self.insist(|reply| Order::Cut { what: Cutting::Named(cuts), reply }).await.unwrap_or_default()
    }

    /// Ends the live connections that elements let begin, but for those that are open again, or still, by now.
    pub async fn cut_closed(&self, elements: Vec<Element>) -> Vec<(Arc<str>, Result<u64, String>)> {
        self.insist(|reply| Order::Cut { what: Cutting::Of(elements), reply }).await.unwrap_or_default()
    }

    /// Puts an order to the thread that is never given up where the queue is full, unlike an offer: what is to be closed
    /// must be (I6). `None` where the thread has ended.
    async fn insist<T>(&self, order: impl FnOnce(oneshot::Sender<T>) -> Order) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        let mut order = order(reply);
        while let Err(Refused::Full(back)) = self.orders.put(order) {
            order = back;
            tokio::time::sleep(FULL).await;
        }
        answer.await.ok()
    }

    /// Lists grants.
    pub async fn list(&self, query: GrantQuery) -> Vec<GrantEntry> {
        self.ask(|reply| Order::List { query, reply }).await.unwrap_or_default()
    }

    /// Puts an order to the thread; `None` where its queue is full or it has ended.
    async fn ask<T>(&self, order: impl FnOnce(oneshot::Sender<T>) -> Order) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.orders.put(order(reply)).ok()?;
        answer.await.ok()
    }

    /// Ends the thread after what is queued; the firewalls keep what they hold.
    pub fn stop(&self) {
        // Where the queue is closed it has ended already.
        while let Err(Refused::Full(_)) = self.orders.put(Order::Stop) {
            std::thread::sleep(FULL);
        }
    }

    /// From here on no gateway is waited for. What one misses it is given by the next process.
    pub fn hurry(&self) {
        self.hurry.store(true, Ordering::Release);
    }

    /// Numbers for metrics and status.
    #[must_use]
    pub const fn counts(&self) -> &Arc<GrantCounts> {
        &self.counts
    }
}
