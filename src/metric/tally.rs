//! Counting on the hot path: one [`Tally`] per thread, merged when somebody looks.
//!
//! A tally is written by its owner alone, so counting is a load and a store of a line that no other thread
//! writes. What it knows of labels are places in tables: segments by [`SegmentSlot`], the rest in [`Words`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

use super::distribution::{Distribution, Snapshot, bump};
use crate::record::Rcode;

/// How many segments have a label of their own.
const NAMED: usize = 64;
/// Clients without a segment, the named ones, and `other`.
const SEGMENTS: usize = NAMED + 2;
/// Room for the words of each kind in [`Words`].
const WORDS: usize = 32;
/// 0 to 10, BADVERS, BADCOOKIE, and `other`.
const RCODES: usize = 14;
/// Room for transports.
const TRANSPORTS: usize = 8;
/// Room for verdicts.
const VERDICTS: usize = 4;
/// Room for dissents.
const DISSENTS: usize = 4;

/// The label words of a sample, each in the order of the enum that the caller counts by. Words past the room
/// for them (4 verdicts, 32 reasons, 8 transports, 4 dissents) are not counted.
#[derive(Clone, Copy, Debug)]
pub struct Words {
    /// `allow`, `deny`, `error`.
    pub verdicts: &'static [&'static str],
    /// Why a query got its verdict.
    pub reasons: &'static [&'static str],
    /// `udp`, `tcp`, …
    pub transports: &'static [&'static str],
    /// How a candidate policy may disagree.
    pub dissents: &'static [&'static str],
}

/// The place of a segment's counters. Made by [`Tallies::segment`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentSlot(u8);

impl SegmentSlot {
    /// The client is in no segment; the label `none`.
    pub const NONE: Self = Self(0);
    /// A segment past the 64th; the label `other`.
    pub const OTHER: Self = Self(65);
}

/// Which path answered a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// The worker that received it.
    Fast,
    /// Upstreams, firewalls.
    Slow,
}

impl Path {
    /// Every path.
    pub const ALL: [Self; 2] = [Self::Fast, Self::Slow];

    /// The word in metric labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Slow => "slow",
        }
    }
}

/// What the cache did for a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cached {
    /// The answer was known.
    Hit,
    /// It was not.
    Miss,
    /// An answer that had ended was told.
    Stale,
    /// That it fails was known.
    Failure,
}

/// One query and what became of it, in 24 bytes. `verdict`, `reason` and `transport` are places in [`Words`].
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// The client's segment.
    pub segment: SegmentSlot,
    /// The verdict.
    pub verdict: u8,
    /// Why.
    pub reason: u8,
    /// Whether it counts as a refusal: denied, or failed.
    pub refused: bool,
    /// What the client was told; `None`: silence.
    pub response: Option<Rcode>,
    /// How it came.
    pub transport: u8,
    /// Who answered it.
    pub path: Path,
    /// Of a query that the cache may answer: what it did.
    pub cache: Option<Cached>,
    /// How a candidate policy disagrees, as a place in [`Words`].
    pub dissent: Option<u8>,
    /// Receipt to record, in microseconds.
    pub micros: u64,
}

/// One thread's counters.
#[derive(Debug)]
pub struct Tally(Arc<Cells>);

impl Tally {
    /// Counts one query.
    pub fn count(&mut self, sample: &Sample) {
        let cells = &*self.0;
        let reason = usize::from(sample.reason);
        let row = cells.queries.get(usize::from(sample.segment.0));
        row.and_then(|row| row.get(usize::from(sample.verdict))).into_iter().for_each(bump);
        if sample.refused {
            cells.refusals.get(reason).into_iter().for_each(bump);
        }
        match sample.response {
            Some(rcode) => {
                let row = cells.responses.get(rcode_slot(rcode));
                row.and_then(|row| row.get(usize::from(sample.transport))).into_iter().for_each(bump);
            }
            None => cells.silences.get(reason).into_iter().for_each(bump),
        }
        match sample.cache {
            Some(Cached::Hit) => bump(&cells.hits),
            Some(Cached::Miss) => bump(&cells.misses),
            Some(Cached::Stale) => bump(&cells.stale),
            Some(Cached::Failure) => bump(&cells.failures),
            None => {}
        }
        if let Some(dissent) = sample.dissent {
            let row = cells.dissents.get(usize::from(sample.segment.0));
            row.and_then(|row| row.get(usize::from(dissent))).into_iter().for_each(bump);
        }
        cells.durations(sample.path).record_alone(sample.micros);
    }
}

#[derive(Debug)]
struct Cells {
    queries: [[AtomicU64; VERDICTS]; SEGMENTS],
    dissents: [[AtomicU64; DISSENTS]; SEGMENTS],
    refusals: [AtomicU64; WORDS],
    silences: [AtomicU64; WORDS],
    responses: [[AtomicU64; TRANSPORTS]; RCODES],
    hits: AtomicU64,
    misses: AtomicU64,
    stale: AtomicU64,
    failures: AtomicU64,
    fast: Distribution,
    slow: Distribution,
}

impl Cells {
    fn new() -> Self {
        Self {
            queries: std::array::from_fn(|_| Default::default()),
            dissents: std::array::from_fn(|_| Default::default()),
            refusals: Default::default(),
            silences: Default::default(),
            responses: Default::default(),
            hits: AtomicU64::default(),
            misses: AtomicU64::default(),
            stale: AtomicU64::default(),
            failures: AtomicU64::default(),
            fast: Distribution::default(),
            slow: Distribution::default(),
        }
    }

    const fn durations(&self, path: Path) -> &Distribution {
        match path {
            Path::Fast => &self.fast,
            Path::Slow => &self.slow,
        }
    }
}

/// Every thread's counters.
#[derive(Debug)]
pub struct Tallies {
    words: Words,
    segments: Mutex<Vec<String>>,
    cells: Mutex<Vec<Arc<Cells>>>,
}

impl Tallies {
    pub(super) const fn new(words: Words) -> Self {
        Self { words, segments: Mutex::new(Vec::new()), cells: Mutex::new(Vec::new()) }
    }

    /// Counters for one thread. Those of a thread that ended are handed on with what they hold, so that no count
    /// is lost and none is kept for longer than needed.
    #[must_use]
    pub fn register(&self) -> Tally {
        let mut cells = self.cells.lock();
        // `get_mut` succeeds only where no tally holds the cells any more, and orders us after its last write.
        if let Some(free) = cells.iter_mut().find_map(|cells| Arc::get_mut(cells).is_some().then_some(cells)) {
            return Tally(Arc::clone(free));
        }
        let new = Arc::new(Cells::new());
        cells.push(Arc::clone(&new));
        Tally(new)
    }

    /// The place of a segment's counters: the same for the same name, for as long as the process lives. To be
    /// asked when a policy is loaded, not per query. The 65th name and those after it share `other`.
    #[must_use]
    pub fn segment(&self, name: &str) -> SegmentSlot {
        match name {
            "none" => return SegmentSlot::NONE,
            "other" => return SegmentSlot::OTHER,
            _ => {}
        }
        let mut segments = self.segments.lock();
        let known = segments.iter().position(|known| known == name);
        let place = known.unwrap_or_else(|| {
            if segments.len() < NAMED {
                segments.push(name.to_owned());
                segments.len() - 1
            } else {
                NAMED
            }
        });
        u8::try_from(place + 1).map_or(SegmentSlot::OTHER, SegmentSlot)
    }

    /// Queries by verdict, in the order of [`Words::verdicts`], over all segments and threads.
    #[must_use]
    pub fn verdicts(&self) -> [u64; VERDICTS] {
        let mut sums = [0; VERDICTS];
        for row in &self.merge().queries {
            for (sum, count) in sums.iter_mut().zip(row) {
                *sum += count;
            }
        }
        sums
    }

    /// What all threads counted so far.
    pub(super) fn merge(&self) -> Merged {
        let mut merged = Merged::default();
        for cells in self.cells.lock().iter() {
            for (sums, row) in merged.queries.iter_mut().zip(&cells.queries) {
                add(sums, row);
            }
            for (sums, row) in merged.dissents.iter_mut().zip(&cells.dissents) {
                add(sums, row);
            }
            add(&mut merged.refusals, &cells.refusals);
            add(&mut merged.silences, &cells.silences);
            for (sums, row) in merged.responses.iter_mut().zip(&cells.responses) {
                add(sums, row);
            }
            merged.hits = merged.hits.wrapping_add(cells.hits.load(Relaxed));
            merged.misses = merged.misses.wrapping_add(cells.misses.load(Relaxed));
            merged.stale = merged.stale.wrapping_add(cells.stale.load(Relaxed));
            merged.failures = merged.failures.wrapping_add(cells.failures.load(Relaxed));
            for (sum, path) in merged.durations.iter_mut().zip(Path::ALL) {
                *sum = sum.plus(&cells.durations(path).snapshot());
            }
        }
        merged
    }

    /// Each counter with its labels: `(segment, verdict)` of segments that are known, whatever the count.
    pub(super) fn queries(&self, merged: &Merged, mut each: impl FnMut([&str; 2], u64)) {
        self.by_segment(self.words.verdicts, &merged.queries, |labels, count| each(labels, count));
    }

    /// Each counter with its labels: `(segment, kind)` that occurred.
    pub(super) fn dissents(&self, merged: &Merged, mut each: impl FnMut([&str; 2], u64)) {
        self.by_segment(self.words.dissents, &merged.dissents, |labels, count| {
            if count > 0 {
                each(labels, count);
            }
        });
    }

    fn by_segment<const N: usize>(&self, words: &[&str], rows: &[[u64; N]], mut each: impl FnMut([&str; 2], u64)) {
        let segments = self.segments.lock();
        let names = std::iter::once("none")
            .chain((0..NAMED).map(|place| segments.get(place).map_or("", String::as_str)))
            .chain(["other"]);
        for (segment, counts) in names.zip(rows).filter(|(segment, _)| !segment.is_empty()) {
            for (word, count) in words.iter().zip(counts) {
                each([segment, word], *count);
            }
        }
    }

    /// Each counter with its label: every reason, whatever the count.
    pub(super) fn refusals(&self, merged: &Merged, mut each: impl FnMut([&str; 1], u64)) {
        for (reason, count) in self.words.reasons.iter().zip(&merged.refusals) {
            each([reason], *count);
        }
    }

    /// Each counter with its label, of reasons that silenced something.
    pub(super) fn silences(&self, merged: &Merged, mut each: impl FnMut([&str; 1], u64)) {
        for (reason, count) in self.words.reasons.iter().zip(&merged.silences).filter(|(_, count)| **count > 0) {
            each([reason], *count);
        }
    }

    /// Each counter with its labels: `(rcode, transport)` that occurred.
    pub(super) fn responses(&self, merged: &Merged, mut each: impl FnMut([&str; 2], u64)) {
        for (slot, counts) in merged.responses.iter().enumerate() {
            for (transport, count) in self.words.transports.iter().zip(counts).filter(|(_, count)| **count > 0) {
                each([&rcode_label(slot), transport], *count);
            }
        }
    }
}

/// The sum of all tallies at one moment.
#[derive(Debug)]
pub(super) struct Merged {
    queries: [[u64; VERDICTS]; SEGMENTS],
    dissents: [[u64; DISSENTS]; SEGMENTS],
    refusals: [u64; WORDS],
    silences: [u64; WORDS],
    responses: [[u64; TRANSPORTS]; RCODES],
    pub(super) hits: u64,
    pub(super) misses: u64,
    pub(super) stale: u64,
    pub(super) failures: u64,
    /// In the order of [`Path::ALL`].
    pub(super) durations: [Snapshot; 2],
}

impl Default for Merged {
    fn default() -> Self {
        Self {
            queries: [[0; VERDICTS]; SEGMENTS],
            dissents: [[0; DISSENTS]; SEGMENTS],
            refusals: [0; WORDS],
            silences: [0; WORDS],
            responses: [[0; TRANSPORTS]; RCODES],
            hits: 0,
            misses: 0,
            stale: 0,
            failures: 0,
            durations: [Snapshot::default(); 2],
        }
    }
}

fn add(sums: &mut [u64], counters: &[AtomicU64]) {
    for (sum, counter) in sums.iter_mut().zip(counters) {
        *sum = sum.wrapping_add(counter.load(Relaxed));
    }
}

fn rcode_slot(rcode: Rcode) -> usize {
    match rcode.0 {
        low @ 0..=10 => usize::from(low),
        16 => 11,
        23 => 12,
        _ => 13,
    }
}

/// The inverse of [`rcode_slot`].
fn rcode_label(slot: usize) -> String {
    match slot {
        11 => Rcode::BADVERS.to_string(),
        12 => Rcode(23).to_string(),
        low @ 0..=10 => Rcode(u16::try_from(low).unwrap_or(u16::MAX)).to_string(),
        _ => "other".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEST: Words = Words {
        verdicts: &["allow", "deny"],
        reasons: &["rule", "default"],
        transports: &["udp", "tcp"],
        dissents: &[],
    };

    fn sample(segment: SegmentSlot) -> Sample {
        Sample {
            segment,
            verdict: 1,
            reason: 1,
            refused: true,
            response: Some(Rcode::NXDOMAIN),
            transport: 0,
            path: Path::Fast,
            cache: None,
            dissent: None,
            micros: 40,
        }
    }

    fn queries(tallies: &Tallies) -> Vec<(String, u64)> {
        let mut all = Vec::new();
        tallies.queries(&tallies.merge(), |labels, count| all.push((labels.join("/"), count)));
        all
    }

    #[test]
    fn threads_are_summed_and_a_threads_end_loses_nothing() {
        let tallies = Tallies::new(TEST);
        let segment = tallies.segment("a");
        // All three before any of them ends, so that none inherits another's.
        let three: [Tally; 3] = std::array::from_fn(|_| tallies.register());
        std::thread::scope(|scope| {
            for mut tally in three {
                scope.spawn(move || (0..1_000).for_each(|_| tally.count(&sample(segment))));
            }
        });
        let mut heir = tallies.register();
        heir.count(&sample(segment));
        assert_eq!(tallies.cells.lock().len(), 3, "the counters of an ended thread are used again");
        assert!(queries(&tallies).contains(&("a/deny".to_owned(), 3_001)));
        let merged = tallies.merge();
        tallies.refusals(&merged, |labels, count| assert_eq!(count, if labels == ["default"] { 3_001 } else { 0 }));
        tallies.responses(&merged, |labels, count| assert_eq!((labels, count), (["NXDOMAIN", "udp"], 3_001)));
    }

    #[test]
    fn the_65th_segment_is_other() {
        let tallies = Tallies::new(TEST);
        let slots: Vec<_> = (0..64).map(|n| tallies.segment(&format!("s{n}"))).collect();
        assert_eq!(tallies.segment("s63"), slots[63]);
        assert_ne!(slots[63], SegmentSlot::OTHER);
        assert_eq!(tallies.segment("one-more"), SegmentSlot::OTHER);
        assert_eq!(tallies.segment("other"), SegmentSlot::OTHER, "no second series of that label");
        tallies.register().count(&sample(SegmentSlot::OTHER));
        assert!(queries(&tallies).contains(&("other/deny".to_owned(), 1)));
        assert_eq!(queries(&tallies).len(), SEGMENTS * TEST.verdicts.len());
    }

    #[test]
    fn answers_that_are_not_cached_are_neither_hits_nor_misses() {
        let tallies = Tallies::new(TEST);
        let mut tally = tallies.register();
        let of = [Cached::Hit, Cached::Miss, Cached::Hit, Cached::Stale, Cached::Failure];
        for cache in of.map(Some).into_iter().chain([None]) {
            tally.count(&Sample { cache, ..sample(SegmentSlot::NONE) });
        }
        let merged = tallies.merge();
        assert_eq!((merged.hits, merged.misses, merged.stale, merged.failures), (2, 1, 1, 1));
    }

    #[test]
    fn silence_is_no_response() {
        let tallies = Tallies::new(TEST);
        tallies.register().count(&Sample { response: None, ..sample(SegmentSlot::NONE) });
        let merged = tallies.merge();
        let mut silences = Vec::new();
        tallies.silences(&merged, |labels, count| silences.push((labels[0].to_owned(), count)));
        assert_eq!(silences, [("default".to_owned(), 1)]);
        tallies.responses(&merged, |labels, _| panic!("{labels:?}"));
    }

    proptest! {
        #[test]
        fn every_rcode_has_its_label(code in 0..=u16::MAX) {
            let label = rcode_label(rcode_slot(Rcode(code)));
            prop_assert!(label == Rcode(code).to_string() || label == "other");
        }

        #[test]
        fn no_sample_panics(verdict in 0..64_u8, reason in 0..64_u8, transport in 0..64_u8) {
            let tallies = Tallies::new(TEST);
            tallies.register().count(&Sample { verdict, reason, transport, ..sample(SegmentSlot::NONE) });
        }
    }
}
