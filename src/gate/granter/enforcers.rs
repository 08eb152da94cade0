//! The firewalls as the granter drives them: all at once, required ones first, each with its counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::returning::{Returning, is_much};
use crate::firewall::{Cut, Cutter, Firewall, FirewallError};
use crate::grant::{Change, Ledger};
use crate::metric::Distribution;
use crate::net::Element;
use crate::policy::Layout;
use crate::time::{Clock, Tick};

/// From here on an acknowledgement is worth a warning.
const SLOW: Duration = Duration::from_millis(50);

/// How long an advisory firewall that cannot be used is left alone: each trial may take its deadline, and answers
/// would wait meanwhile.
const REST: Duration = Duration::from_secs(5);

/// How long a gateway that cannot be used is left alone.
const AWAY: Duration = Duration::from_millis(100);

/// From so many elements on they are restored instead of listed: a tenth of a second in nftables.
const RESTORED: usize = 50_000;

/// How often the operator is told of elements that are not taken.
const QUIET: Duration = Duration::from_secs(10);

/// One firewall's numbers.
#[derive(Debug)]
pub struct EnforcerCounts {
    /// Its name.
    pub name: Arc<str>,
    /// Whether answers wait for it.
    pub required: bool,
    /// Whether it took its last order.
    pub usable: AtomicBool,
    /// It cannot be used, and lets nothing new through: no answer waits for it.
    pub fenced: AtomicBool,
    /// Elements in its fullest table, and the room there.
    pub load: [AtomicU64; 2],
    /// Changes that it did not take.
    pub errors: AtomicU64,
    /// Answers that failed closed because of it.
    pub failed_closed: AtomicU64,
    /// Times that somebody else's change was repaired.
    pub repairs: AtomicU64,
    /// The last acknowledgement, in microseconds.
    pub last_ack_us: AtomicU64,
    /// All acknowledgements.
    pub acks: Arc<Distribution>,
}

impl EnforcerCounts {
    pub(super) fn ready(&self) -> bool {
        !self.required || self.usable.load(Ordering::Relaxed) || self.fenced.load(Ordering::Relaxed)
    }
}

/// What became of a batch: the changes that some required firewall did not take, and the first that said so.
#[derive(Debug, Default)]
pub(super) struct Applied {
    /// Indexes, sorted.
    pub(super) failed: Vec<usize>,
    /// Which firewall, by its place, and why.
    pub(super) by: Option<(usize, String)>,
    /// Every required firewall with the time it took, in microseconds.
    pub(super) acks: Vec<(Arc<str>, u64)>,
}

/// Every firewall of the node.
pub(super) struct Enforcers {
    firewalls: Vec<Box<dyn Firewall>>,
    /// Shared with whoever shows them, through the granter's counts.
    counts: Arc<super::GrantCounts>,
    /// Until when an advisory firewall that cannot be used is left alone, by its place.
    rest_until: Vec<Tick>,
    /// Set once no gateway is waited for any more.
    hurry: Arc<AtomicBool>,
    /// Gateways that are being brought up to date, by place.
    returning: Vec<Option<Returning>>,
    /// Until when elements that are not taken are not told to the operator again, by place.
    quiet_until: Vec<Tick>,
    clock: Clock,
}

impl Enforcers {
    pub(super) fn new(
        mut firewalls: Vec<(Box<dyn Firewall>, Arc<Distribution>)>,
        held: Arc<Distribution>,
        clock: Clock,
    ) -> Self {
        let enforcer = |(firewall, acks): &(Box<dyn Firewall>, Arc<Distribution>)| EnforcerCounts {
            name: Arc::from(firewall.name()),
            required: firewall.required(),
            usable: AtomicBool::new(true),
            fenced: AtomicBool::new(false),
            load: [AtomicU64::new(0), AtomicU64::new(0)],
            errors: AtomicU64::new(0),
            failed_closed: AtomicU64::new(0),
            repairs: AtomicU64::new(0),
            last_ack_us: AtomicU64::new(0),
            acks: Arc::clone(acks),
        };
        let counts = super::GrantCounts {
            live: AtomicU64::new(0),
            pending: AtomicU64::new(0),
            held,
            journal_usable: AtomicBool::new(true),
            enforcers: firewalls.iter().map(enforcer).collect(),
        };
        let hurry = Arc::default();
        firewalls.iter_mut().for_each(|(firewall, _)| firewall.heed(&hurry));
        Self {
            hurry,
            rest_until: vec![Tick(0); firewalls.len()],
            returning: firewalls.iter().map(|_| None).collect(),
            quiet_until: vec![Tick(0); firewalls.len()],
            firewalls: firewalls.into_iter().map(|(firewall, _)| firewall).collect(),
            counts: Arc::new(counts),
            clock,
        }
    }

    pub(super) const fn counts(&self) -> &Arc<super::GrantCounts> {
        &self.counts
    }

    /// What is set once no gateway is waited for any more.
    pub(super) const fn hurry(&self) -> &Arc<AtomicBool> {
        &self.hurry
    }

    /// The counts of the firewall at a place.
    pub(super) fn at(&self, place: usize) -> Option<&EnforcerCounts> {
        self.counts.enforcers.get(place)
    }

    /// Takes over what is in force, of each firewall; [`Enforcers::even_out`] has to follow. `recalled` is what the
    /// journal says.
    ///
    /// # Errors
    /// A required firewall cannot be used.
    pub(super) fn adopt(
        &mut self,
        layout: &Layout,
        recalled: &[(Element, Tick)],
        now: Tick,
    ) -> Result<Vec<Found>, (Arc<str>, FirewallError)> {
        let mut all = Vec::with_capacity(self.firewalls.len());
        for (firewall, counts) in self.firewalls.iter_mut().zip(&self.counts.enforcers) {
            let found = match take_over(&mut **firewall, layout, recalled, now) {
                Ok(live) => live,
                Err(error) if counts.required && !firewall.is_away() => return Err((Arc::clone(&counts.name), error)),
                Err(error) => {
                    counts.usable.store(false, Ordering::Relaxed);
                    if counts.required {
                        tracing::error!(firewall = %counts.name, %error, "a required firewall cannot be used yet; answers fail closed until it can");
                    } else {
                        tracing::warn!(firewall = %counts.name, %error, "an advisory firewall cannot be used");
                    }
                    Found::default()
                }
            };
            all.push(found);
        }
        Ok(all)
    }

    /// Gives each firewall what the ledger took over and it lacks, be it that another one held it, and closes what
    /// nothing upholds; how many were closed. `found` is what [`Enforcers::adopt`] gave.
    ///
    /// # Errors
    /// A required firewall does not take it all.
    pub(super) fn even_out(
        &mut self,
        found: &[Found],
        ledger: &Ledger,
        now: Tick,
    ) -> Result<usize, (Arc<str>, FirewallError)> {
        let mut closed = 0;
        for ((firewall, counts), found) in self.firewalls.iter_mut().zip(&self.counts.enforcers).zip(found) {
            if !counts.usable.load(Ordering::Relaxed) {
                continue;
            }
            let changes = ledger.repair(found, now);
            if changes.is_empty() {
                firewall.caught_up();
                continue;
            }
            if firewall.is_away() && is_much(&changes) {
                counts.usable.store(false, Ordering::Relaxed);
                continue;
            }
            let error = match firewall.apply(&changes, now) {
                Ok(failed) if failed.is_empty() => {
                    firewall.caught_up();
                    closed += changes.iter().filter(|change| matches!(change, Change::Close { .. })).count();
                    continue;
                }
                Ok(failed) => FirewallError::Kernel {
                    what: "putting in force what was open before and is still right".into(),
                    why: format!("{} of {} changes were not taken", failed.len(), changes.len()),
                },
                Err(error) => error,
            };
            if counts.required && !firewall.is_away() {
                return Err((Arc::clone(&counts.name), error));
            }
            counts.usable.store(false, Ordering::Relaxed);
            tracing::warn!(firewall = %counts.name, %error, "a firewall cannot be used yet");
        }
        Ok(closed)
    }

    /// A required firewall of which it is not known what is in force.
    pub(super) fn unusable(&self) -> Option<&EnforcerCounts> {
        self.counts.enforcers.iter().find(|counts| !counts.ready())
    }

    /// The names of all of which it is not known what is in force.
    pub(super) fn all_unusable(&self) -> Vec<Arc<str>> {
        let unusable = self.counts.enforcers.iter().filter(|counts| !counts.usable.load(Ordering::Relaxed));
        unusable.map(|counts| Arc::clone(&counts.name)).collect()
    }

    /// What ends connections in each firewall, with its name.
    pub(super) fn cutters(&self, cuts: &Arc<[Cut]>) -> Vec<(Arc<str>, Cutter)> {
        let each = self.firewalls.iter().zip(&self.counts.enforcers);
        each.map(|(firewall, counts)| (Arc::clone(&counts.name), firewall.cutter(cuts))).collect()
    }

    /// Tells every required firewall; changes that any of them did not take have failed.
    pub(super) fn apply(&mut self, changes: &[Change], now: Tick) -> Applied {
        let mut applied = Applied::default();
        if changes.is_empty() {
            return applied;
        }
        self.note(changes);
        for (firewall, counts) in self.firewalls.iter_mut().zip(&self.counts.enforcers) {
            if counts.required && counts.usable.load(Ordering::Relaxed) {
                firewall.begin(changes, now);
            }
        }
        let firewalls = self.firewalls.iter_mut().zip(&self.counts.enforcers).zip(&mut self.quiet_until);
        for (place, ((firewall, counts), quiet_until)) in firewalls.enumerate() {
            if !counts.required {
                continue;
            }
            if !counts.usable.load(Ordering::Relaxed) {
                if counts.fenced.load(Ordering::Relaxed) {
                    continue;
                }
                // It is told all when it is repaired; to ask it now would cost another deadline.
                applied.by.get_or_insert_with(|| (place, "it cannot be used".into()));
                applied.failed.extend(0..changes.len());
                continue;
            }
            let sent = self.clock.tick();
            let result = firewall.apply(changes, now);
            let took = self.clock.tick().since(sent);
            let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
            counts.acks.record(took);
            counts.last_ack_us.store(micros, Ordering::Relaxed);
            applied.acks.push((Arc::clone(&counts.name), micros));
            if took > SLOW {
                tracing::warn!(firewall = %counts.name, took_us = micros, "a firewall took long to acknowledge");
            }
            let failed = match result {
                Ok(failed) if failed.is_empty() => continue,
                Ok(failed) => {
                    let why = "it did not take the element; its set may be full";
                    applied.by.get_or_insert_with(|| (place, why.into()));
                    if *quiet_until <= now {
                        *quiet_until = now + QUIET;
                        tracing::error!(firewall = %counts.name, failed = failed.len(), "a firewall does not take new elements; is its set full? see `size`");
                    }
                    if leaves_open(changes, &failed) {
                        // The ledger has forgotten it: it is found and closed when the firewall is taken over again.
                        counts.usable.store(false, Ordering::Relaxed);
                        tracing::error!(firewall = %counts.name, "a required firewall did not close what it was told to; it is told again");
                    }
                    failed
                }
                Err(error) => {
                    // What is in force is not known any more: it is taken over again before the next batch.
                    if counts.usable.swap(false, Ordering::Relaxed) {
                        tracing::error!(firewall = %counts.name, %error, "a required firewall did not take a batch; answers fail closed until it does");
                    }
                    applied.by.get_or_insert_with(|| (place, error.to_string()));
                    (0..changes.len()).collect()
                }
            };
            counts.errors.fetch_add(failed.len() as u64, Ordering::Relaxed);
            applied.failed.extend(failed);
        }
        applied.failed.sort_unstable();
        applied.failed.dedup();
        applied
    }

    /// What changes while a gateway is being brought up to date it is told in the end.
    fn note(&mut self, changes: &[Change]) {
        for returning in &mut self.returning {
            returning.take_if(|one| !one.note(changes));
        }
    }

    /// Whether a gateway is being brought up to date.
    pub(super) fn is_at_it(&self) -> bool {
        self.returning.iter().any(Option::is_some)
    }

    /// Takes changes back that some firewall refused, in all that can be used. The others, and one that does not take
    /// even that, are adopted and repaired before the next batch; to ask them now would cost another deadline.
    pub(super) fn take_back(&mut self, changes: &[Change], now: Tick) {
        if changes.is_empty() {
            return;
        }
        self.note(changes);
        for (firewall, counts) in self.firewalls.iter_mut().zip(&self.counts.enforcers) {
            if !counts.usable.load(Ordering::Relaxed) {
                continue;
            }
            let why = match firewall.apply(changes, now) {
                Ok(failed) if failed.is_empty() => continue,
                Ok(failed) => format!("{} of {} changes were not taken", failed.len(), changes.len()),
                Err(error) => error.to_string(),
            };
            counts.usable.store(false, Ordering::Relaxed);
            tracing::warn!(firewall = %counts.name, why, "failed changes could not be taken back; the firewall will be repaired");
        }
    }

    /// Tells the firewalls that no answer waits for.
    pub(super) fn advise(&mut self, changes: &[Change], now: Tick) {
        for (firewall, counts) in self.firewalls.iter_mut().zip(&self.counts.enforcers) {
            // What one that cannot be used misses here it is given when it is repaired.
            if counts.required || changes.is_empty() || !counts.usable.load(Ordering::Relaxed) {
                continue;
            }
            match firewall.apply(changes, now) {
                Ok(failed) => {
                    counts.errors.fetch_add(failed.len() as u64, Ordering::Relaxed);
                    if leaves_open(changes, &failed) {
                        counts.usable.store(false, Ordering::Relaxed);
                    }
                }
                Err(error) => {
                    counts.usable.store(false, Ordering::Relaxed);
                    counts.errors.fetch_add(changes.len() as u64, Ordering::Relaxed);
                    tracing::warn!(firewall = %counts.name, %error, "an advisory firewall did not take a batch");
                }
            }
        }
    }

    /// Where somebody else changed a firewall, or it failed: takes it over again, restores what is missing, closes what
    /// is foreign. Offers wait meanwhile: no answer is told into a hole.
    pub(super) fn repair(&mut self, ledger: &Ledger, layout: impl Fn() -> Layout, now: Tick) {
        let firewalls = self.firewalls.iter_mut().zip(&self.counts.enforcers).zip(&mut self.returning);
        for (((firewall, counts), returning), rest) in firewalls.zip(&mut self.rest_until) {
            let usable = counts.usable.load(Ordering::Relaxed);
            if usable && matches!(firewall.drifted(), Ok(false)) {
                continue;
            }
            let (is_fenced, was_fenced) = (firewall.is_fenced(now), counts.fenced.load(Ordering::Relaxed));
            if is_fenced.is_ok() != was_fenced {
                counts.fenced.store(is_fenced.is_ok(), Ordering::Relaxed);
                if !was_fenced {
                    tracing::warn!(firewall = %counts.name, "a gateway is silent and must have fenced; answers do not wait for it until it is back");
                }
            }
            if !usable && now < *rest {
                continue;
            }
            let repaired = if firewall.is_away() {
                match Returning::step(returning, &mut **firewall, ledger, &layout, now) {
                    Ok(None) => {
                        if counts.usable.swap(false, Ordering::Relaxed) {
                            tracing::warn!(firewall = %counts.name, "a gateway is brought up to date; answers fail closed until it is");
                        }
                        continue;
                    }
                    Ok(Some(changes)) => Ok((changes, 0)),
                    Err(error) => Err(error),
                }
            } else {
                let in_force = if ledger.len() >= RESTORED { ledger.in_force(now) } else { Vec::new() };
                take_over(&mut **firewall, &layout(), &in_force, now).and_then(|found| {
                    let changes = ledger.repair(&found, now);
                    firewall.apply(&changes, now).map(|failed| (changes.len(), failed.len()))
                })
            };
            // What it did not take is missing there, or open although it should not be.
            let whole = matches!(repaired, Ok((_, 0)));
            if whole {
                firewall.caught_up();
                counts.fenced.store(false, Ordering::Relaxed);
            }
            counts.usable.store(whole, Ordering::Relaxed);
            if !whole && !counts.required {
                *rest = now + REST;
            } else if !whole && firewall.is_away() {
                *rest = now + AWAY;
            }
            match repaired {
                Ok(_) if !whole && !usable => {}
                Ok((changes, failed)) => {
                    counts.repairs.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(firewall = %counts.name, changes, failed, "the firewall was changed by somebody else, had failed or was away; it is repaired");
                }
                Err(error) if usable => {
                    tracing::error!(firewall = %counts.name, %error, "the firewall was changed by somebody else, or is away, and cannot be repaired; answers fail closed until it can");
                }
                Err(_) => {}
            }
        }
    }

    /// Lays a layout out in every firewall; where a required one refuses, those before it get `old` back.
    ///
    /// # Errors
    /// The required firewall that refused.
    pub(super) fn arrange(
        &mut self,
        layout: &Layout,
        old: impl FnOnce() -> Layout,
    ) -> Result<(), (Arc<str>, FirewallError)> {
        for place in 0..self.firewalls.len() {
            let (Some(firewall), Some(counts)) = (self.firewalls.get_mut(place), self.counts.enforcers.get(place))
            else {
                break;
            };
            let Err(error) = firewall.arrange(layout) else { continue };
            // Which layout it has is not known: it is taken over again, with the one that is in force by then.
            counts.usable.store(false, Ordering::Relaxed);
            if let Some(returning) = self.returning.get_mut(place) {
                *returning = None;
            }
            if !counts.required {
                tracing::warn!(firewall = %counts.name, %error, "an advisory firewall did not take the layout");
                continue;
            }
            // Answers wait for it, or it lets nothing new through: it is given the new layout before it counts.
            if firewall.is_away() {
                tracing::warn!(firewall = %counts.name, %error, "a gateway did not take the layout; it is given it when it is taken over");
                continue;
            }
            let old = old();
            // What is not usable is not asked to take it back.
            self.returning.fill_with(|| None);
            for (undone, counts) in self.firewalls.iter_mut().zip(&self.counts.enforcers).take(place) {
                if counts.usable.load(Ordering::Relaxed)
                    && let Err(error) = undone.arrange(&old)
                {
                    counts.usable.store(false, Ordering::Relaxed);
                    tracing::error!(firewall = %counts.name, %error, "the old layout could not be put back");
                }
            }
            return Err((Arc::clone(&counts.name), error));
        }
        Ok(())
    }

    /// Reads how full each firewall is.
    pub(super) fn measure(&mut self) {
        for (firewall, counts) in self.firewalls.iter_mut().zip(&self.counts.enforcers) {
            if let Ok(Some(load)) = firewall.load() {
                let [elements, capacity] = &counts.load;
                elements.store(load.elements.into(), Ordering::Relaxed);
                capacity.store(load.capacity.into(), Ordering::Relaxed);
            }
        }
    }
}

/// What a firewall holds: what it lists, or `known`, put in force, where that is much.
fn take_over(
    firewall: &mut dyn Firewall,
    layout: &Layout,
    known: &[(Element, Tick)],
    now: Tick,
) -> Result<Found, FirewallError> {
    // Where that fails, nothing has changed, and listing tells why or works.
    if known.len() >= RESTORED && matches!(firewall.restore(layout, known, now), Ok(true)) {
        return Ok(known.to_vec());
    }
    firewall.adopt(layout, now)
}

/// Whether a closing is among the changes that failed: something is open that should not be.
fn leaves_open(changes: &[Change], failed: &[usize]) -> bool {
    failed.iter().any(|at| matches!(changes.get(*at), Some(Change::Close { .. })))
}

/// Elements in force, each with its end.
pub(super) type Found = Vec<(Element, Tick)>;
