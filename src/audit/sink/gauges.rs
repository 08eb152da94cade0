//! What a sink's thread tells of itself, for metrics and `outgate status`.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

/// One sink's counters.
#[derive(Debug, Default)]
pub struct Gauges {
    pub(super) delivered: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) failures: AtomicU64,
    pub(super) damaged: AtomicU64,
    pub(super) gaps: AtomicU64,
    pub(super) down: AtomicBool,
    pub(super) last_error: Mutex<Option<String>>,
}

impl Gauges {
    /// Records that the other side took.
    #[must_use]
    pub fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }

    /// Records that the other side will never take.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Deliveries that failed.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Whether the last delivery succeeded.
    #[must_use]
    pub fn up(&self) -> bool {
        !self.down.load(Ordering::Relaxed)
    }

    /// Why the last one that failed did.
    #[must_use]
    pub fn last_error(&self) -> Option<String> {
        self.last_error.lock().clone()
    }
}
