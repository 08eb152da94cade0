//! What a sink's thread tells of itself, for metrics and `outgate status`.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::time::Wall;

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
    /// Bytes that were not read yet.
    pub(super) behind: AtomicU64,
    /// Records that were read and not delivered.
    pub(super) pending: AtomicU64,
    /// When the oldest of them happened, in microseconds since 1970; 0: there is none.
    pub(super) oldest: AtomicU64,
    /// Records and bytes of the log that were read.
    pub(super) records: AtomicU64,
    pub(super) bytes: AtomicU64,
}

/// How far a sink is behind the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lag {
    /// Records that are not delivered: those that were read, and an estimate from the bytes that were not.
    pub records: u64,
    /// Bytes of the log that were not read, as they lie on the disk.
    pub bytes: u64,
    /// How long ago the oldest record that was read and not delivered happened.
    pub age: Duration,
}

/// What a record of the log takes where none was read yet.
const TYPICAL: u64 = 700;

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

    /// Lines of the log that were no records.
    #[must_use]
    pub fn damaged(&self) -> u64 {
        self.damaged.load(Ordering::Relaxed)
    }

    /// Times that records were missing: each was told by a `gap` record.
    #[must_use]
    pub fn gaps(&self) -> u64 {
        self.gaps.load(Ordering::Relaxed)
    }

    /// How far it is behind.
    #[must_use]
    pub fn lag(&self, now: Wall) -> Lag {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let bytes = load(&self.behind);
        let each = load(&self.bytes).checked_div(load(&self.records)).unwrap_or(TYPICAL).max(1);
        let oldest = load(&self.oldest);
        Lag {
            records: load(&self.pending) + bytes.div_ceil(each),
            bytes,
            age: Duration::from_micros(if oldest == 0 { 0 } else { now.0.saturating_sub(oldest) }),
        }
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
