//! The log's counters, for whoever shows them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::shard::{Seat, Shared};
use super::sink::Readers;

/// What was written and lost since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Records written, the log's own among them.
    pub records: u64,
    /// Bytes written.
    pub bytes: u64,
    /// Records that could not be written, and whose answers were not sent.
    pub refused: u64,
    /// Records that could not be written, and whose answers were sent.
    pub dropped: u64,
    /// `gap` records written.
    pub gaps: u64,
    /// Files closed.
    pub rotations: u64,
    /// Archives deleted.
    pub removed: u64,
}

/// Reads a log's counters from any thread; cheap to clone.
#[derive(Clone)]
pub struct Meter {
    shared: Arc<Shared>,
    seats: Arc<[Arc<Seat>]>,
    files: Arc<Files>,
    readers: Readers,
}

#[derive(Default)]
struct Files {
    rotations: AtomicU64,
    removed: AtomicU64,
}

impl Meter {
    pub(super) fn new(shared: Arc<Shared>, seats: Arc<[Arc<Seat>]>) -> Self {
        Self { shared, seats, files: Arc::default(), readers: Readers::default() }
    }

    /// Every shard's seat, shard 0 first.
    pub(super) const fn seats(&self) -> &Arc<[Arc<Seat>]> {
        &self.seats
    }

    /// Who reads the log behind the shards.
    pub(super) const fn readers(&self) -> &Readers {
        &self.readers
    }

    pub(super) fn rotated(&self) {
        self.files.rotations.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn removed(&self) {
        self.files.removed.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether the last write succeeded.
    #[must_use]
    pub fn usable(&self) -> bool {
        !self.shared.full.load(Ordering::Relaxed)
    }

    /// All counters, merged over the shards.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let sum = |counter: fn(&Seat) -> &AtomicU64| {
            self.seats.iter().map(|seat| counter(seat).load(Ordering::Relaxed)).sum()
        };
        Counts {
            records: sum(|seat| &seat.records),
            bytes: sum(|seat| &seat.bytes),
            refused: sum(|seat| &seat.refused),
            dropped: sum(|seat| &seat.dropped),
            gaps: sum(|seat| &seat.gaps),
            rotations: self.files.rotations.load(Ordering::Relaxed),
            removed: self.files.removed.load(Ordering::Relaxed),
        }
    }
}
