//! The firewalls as the granter drives them: all at once, required ones first, each with its counts.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use foldhash::quality::RandomState;

use crate::firewall::{Firewall, FirewallError};
use crate::grant::{Change, Ledger};
use crate::metric::Distribution;
use crate::net::Element;
use crate::policy::Layout;
use crate::time::{Clock, Tick};

/// From here on an acknowledgement is worth a warning.
const SLOW: Duration = Duration::from_millis(50);

/// One firewall's numbers.
#[derive(Debug)]
pub struct EnforcerCounts {
    /// Its name.
    pub name: Arc<str>,
    /// Whether answers wait for it.
    pub required: bool,
    /// Whether it took its last order.
    pub usable: AtomicBool,
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
        !self.required || self.usable.load(Ordering::Relaxed)
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
    clock: Clock,
}

impl Enforcers {
    pub(super) fn new(
        firewalls: Vec<(Box<dyn Firewall>, Arc<Distribution>)>,
        held: Arc<Distribution>,
        clock: Clock,
    ) -> Self {
        let enforcer = |(firewall, acks): &(Box<dyn Firewall>, Arc<Distribution>)| EnforcerCounts {
            name: Arc::from(firewall.name()),
            required: firewall.required(),
            usable: AtomicBool::new(true),
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
            enforcers: firewalls.iter().map(enforcer).collect(),
        };
        Self {
            firewalls: firewalls.into_iter().map(|(firewall, _)| firewall).collect(),
            counts: Arc::new(counts),
            clock,
        }
    }

    pub(super) const fn counts(&self) -> &Arc<super::GrantCounts> {
        &self.counts
    }

    /// The counts of the firewall at a place.
    pub(super) fn at(&self, place: usize) -> Option<&EnforcerCounts> {
        self.counts.enforcers.get(place)
    }

    /// Takes over what is in force; each element with the end that all required firewalls give it at least.
    ///
    /// # Errors
    /// A required firewall cannot be used.
    pub(super) fn adopt(&mut self, layout: &Layout, now: Tick) -> Result<Found, (Arc<str>, FirewallError)> {
        let mut found = Found::default();
        for (firewall, counts) in self.firewalls.iter_mut().zip(&self.counts.enforcers) {
            match firewall.adopt(layout, now) {
                Ok(live) => {
                    for (element, until) in live {
                        found.entry(element).and_modify(|known| *known = (*known).min(until)).or_insert(until);
                    }
                }
                Err(error) if counts.required => return Err((Arc::clone(&counts.name), error)),
                Err(error) => {
                    counts.usable.store(false, Ordering::Relaxed);
                    tracing::warn!(firewall = %counts.name, %error, "an advisory firewall cannot be used");
                }
            }
        }
        Ok(found)
    }

    /// Tells every required firewall; changes that any of them did not take have failed.
    pub(super) fn apply(&mut self, changes: &[Change], now: Tick) -> Applied {
        let mut applied = Applied::default();
        if changes.is_empty() {
            return applied;
        }
        for (place, (firewall, counts)) in self.firewalls.iter_mut().zip(&self.counts.enforcers).enumerate() {
            if !counts.required {
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

    /// Takes changes back that some firewall refused, in all of them. One that does not take even that is not usable:
    /// it is adopted and repaired before the next batch.
    pub(super) fn take_back(&mut self, changes: &[Change], now: Tick) {
        if changes.is_empty() {
            return;
        }
        for (firewall, counts) in self.firewalls.iter_mut().zip(&self.counts.enforcers) {
            if let Err(error) = firewall.apply(changes, now) {
                counts.usable.store(false, Ordering::Relaxed);
                tracing::warn!(firewall = %counts.name, %error, "failed changes could not be taken back; the firewall will be repaired");
            }
        }
    }

    /// Tells the firewalls that no answer waits for.
    pub(super) fn advise(&mut self, changes: &[Change], now: Tick) {
        for (firewall, counts) in self.firewalls.iter_mut().zip(&self.counts.enforcers) {
            if counts.required || changes.is_empty() {
                continue;
            }
            let failed = firewall.apply(changes, now);
            counts.usable.store(failed.is_ok(), Ordering::Relaxed);
            match failed {
                Ok(failed) => drop(counts.errors.fetch_add(failed.len() as u64, Ordering::Relaxed)),
                Err(error) => {
                    counts.errors.fetch_add(changes.len() as u64, Ordering::Relaxed);
                    tracing::warn!(firewall = %counts.name, %error, "an advisory firewall did not take a batch");
                }
            }
        }
    }

    /// Where somebody else changed a firewall, or it failed: takes it over again, restores what is missing, closes what
    /// is foreign. Offers wait meanwhile: no answer is told into a hole.
    pub(super) fn repair(&mut self, ledger: &Ledger, layout: impl Fn() -> Layout, now: Tick) {
        for (firewall, counts) in self.firewalls.iter_mut().zip(&self.counts.enforcers) {
            if counts.usable.load(Ordering::Relaxed) && matches!(firewall.drifted(), Ok(false)) {
                continue;
            }
            let repaired = firewall.adopt(&layout(), now).and_then(|found| {
                let changes = ledger.repair(&found.into_iter().collect(), now);
                let failed = firewall.apply(&changes, now)?;
                Ok((changes.len(), failed.len(), leaves_open(&changes, &failed)))
            });
            let right = matches!(repaired, Ok((.., false)));
            let usable = counts.usable.swap(right, Ordering::Relaxed);
            match repaired {
                // Once for as long as it does not close what it should.
                Ok((.., true)) if !usable => {}
                Ok((changes, failed, _)) => {
                    counts.repairs.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(firewall = %counts.name, changes, failed, "the firewall was changed by somebody else, or had failed; it is repaired");
                }
                Err(error) if usable => {
                    tracing::error!(firewall = %counts.name, %error, "the firewall was changed by somebody else and cannot be repaired; answers fail closed until it can");
                }
                Err(_) => {}
            }
        }
    }

    /// Lays a layout out in every firewall; where one refuses, those before it get `old` back.
    ///
    /// # Errors
    /// The firewall that refused.
    pub(super) fn arrange(
        &mut self,
        layout: &Layout,
        old: impl FnOnce() -> Layout,
    ) -> Result<(), (Arc<str>, FirewallError)> {
        for place in 0..self.firewalls.len() {
            let Some(firewall) = self.firewalls.get_mut(place) else { break };
            let Err(error) = firewall.arrange(layout) else { continue };
            let name = Arc::from(firewall.name());
            let old = old();
            for undone in self.firewalls.iter_mut().take(place) {
                if let Err(error) = undone.arrange(&old) {
                    tracing::error!(firewall = undone.name(), %error, "the old layout could not be put back");
                }
            }
            return Err((name, error));
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

/// Whether a closing is among the changes that failed: something is open that should not be.
fn leaves_open(changes: &[Change], failed: &[usize]) -> bool {
    failed.iter().any(|at| matches!(changes.get(*at), Some(Change::Close { .. })))
}

/// Elements in force, each with its end.
pub(super) type Found = HashMap<Element, Tick, RandomState>;
