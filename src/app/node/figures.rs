//! Figures as an operator is shown them.

use std::sync::atomic::Ordering;

use crate::gate::{EnforcerCounts, GrantCounts};

/// The elements in a firewall's fullest table and the room there; of one that has no bound what the granter holds.
pub(super) fn room(firewall: &EnforcerCounts, counts: &GrantCounts) -> (u64, Option<u64>) {
    match firewall.load.each_ref().map(|count| count.load(Ordering::Relaxed)) {
        [_, 0] => (counts.live.load(Ordering::Relaxed), None),
        [elements, capacity] => (elements, Some(capacity)),
    }
}

/// A count as a gauge: these are floats in Prometheus.
#[expect(clippy::cast_precision_loss, reason = "exact below 2^53, and no count here comes near it")]
pub(super) const fn number(count: u64) -> f64 {
    count as f64
}
