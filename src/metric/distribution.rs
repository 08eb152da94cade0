//! Histograms of durations: counts per bucket, shared or worker-local.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds of the buckets in microseconds, and as Prometheus writes them in seconds. They start below a
/// cached answer and end above the slow path's deadline of 1.9 s.
const BOUNDS: [(u64, &str); 16] = [
    (25, "0.000025"),
    (50, "0.00005"),
    (100, "0.0001"),
    (250, "0.00025"),
    (500, "0.0005"),
    (1_000, "0.001"),
    (2_500, "0.0025"),
    (5_000, "0.005"),
    (10_000, "0.01"),
    (25_000, "0.025"),
    (50_000, "0.05"),
    (100_000, "0.1"),
    (250_000, "0.25"),
    (500_000, "0.5"),
    (1_000_000, "1"),
    (2_000_000, "2"),
];

/// How many buckets, the last one without a bound.
const BUCKETS: usize = BOUNDS.len() + 1;

/// How often durations fell below each bound.
#[derive(Debug, Default)]
pub struct Distribution {
    /// Not cumulative; the last one has no bound.
    counts: [AtomicU64; BUCKETS],
    micros: AtomicU64,
}

impl Distribution {
    /// Counts one duration; from any thread.
    pub fn record(&self, duration: Duration) {
        let micros = micros(duration);
        if let Some(count) = self.counts.get(bucket(micros)) {
            count.fetch_add(1, Relaxed);
        }
        self.micros.fetch_add(micros, Relaxed);
    }

    /// Counts one duration; only one thread may write to this distribution.
    pub(super) fn record_alone(&self, micros: u64) {
        if let Some(count) = self.counts.get(bucket(micros)) {
            bump(count);
        }
        self.micros.store(self.micros.load(Relaxed).wrapping_add(micros), Relaxed);
    }

    /// What was counted so far.
    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot { counts: self.counts.each_ref().map(|count| count.load(Relaxed)), micros: self.micros.load(Relaxed) }
    }
}

/// Adds one to a counter that no other thread writes: a load and a store, no locked instruction.
pub(super) fn bump(counter: &AtomicU64) {
    counter.store(counter.load(Relaxed).wrapping_add(1), Relaxed);
}

/// A distribution at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Snapshot {
    counts: [u64; BUCKETS],
    micros: u64,
}

impl Snapshot {
    /// Both together.
    pub(super) fn plus(mut self, other: &Self) -> Self {
        for (mine, theirs) in self.counts.iter_mut().zip(other.counts) {
            *mine = mine.wrapping_add(theirs);
        }
        self.micros = self.micros.wrapping_add(other.micros);
        self
    }

    /// One series in Prometheus text format 0.0.4. `labels` is `name="value",…`, escaped, or empty. The buckets are
    /// cumulative and the count is their sum, so that the two agree while other threads go on counting.
    pub(super) fn write(&self, name: &str, labels: &str, out: &mut String) {
        let comma = if labels.is_empty() { "" } else { "," };
        let bounds = BOUNDS.iter().map(|(_, text)| *text).chain(["+Inf"]);
        let mut total = 0_u64;
        for (bound, count) in bounds.zip(self.counts) {
            total = total.wrapping_add(count);
            // Writing to a String cannot fail.
            let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {total}");
        }
        let braces = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        let _ = writeln!(out, "{name}_sum{braces} {}.{:06}", self.micros / 1_000_000, self.micros % 1_000_000);
        let _ = writeln!(out, "{name}_count{braces} {total}");
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// The first bucket whose bound is not below `micros`: Prometheus' `le` includes its bound.
fn bucket(micros: u64) -> usize {
    // Most are cached answers, and below the first bound.
    if micros <= BOUNDS[0].0 { 0 } else { BOUNDS.partition_point(|(bound, _)| *bound < micros) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        for (micros, expected) in [(0, 0), (25, 0), (26, 1), (2_000_000, 15), (2_000_001, 16), (u64::MAX, 16)] {
            assert_eq!(bucket(micros), expected, "{micros} µs");
        }
    }

    #[test]
    fn bounds_rise_and_text_is_the_number() {
        assert!(BOUNDS.is_sorted_by(|a, b| a.0 < b.0));
        for (micros, text) in BOUNDS {
            #[expect(clippy::cast_precision_loss, reason = "small numbers")]
            let seconds = micros as f64 / 1e6;
            assert_eq!(text.parse::<f64>(), Ok(seconds));
        }
    }

    #[test]
    fn writes_cumulative_buckets() {
        let distribution = Distribution::default();
        for micros in [10, 60, 60, 5_000_000] {
            distribution.record(Duration::from_micros(micros));
        }
        let mut out = String::new();
        distribution.snapshot().write("x", "path=\"fast\"", &mut out);
        let lines: Vec<_> = out.lines().collect();
        assert_eq!(lines[0], "x_bucket{path=\"fast\",le=\"0.000025\"} 1");
        assert_eq!(lines[2], "x_bucket{path=\"fast\",le=\"0.0001\"} 3");
        assert_eq!(lines[16], "x_bucket{path=\"fast\",le=\"+Inf\"} 4");
        assert_eq!(lines[17], "x_sum{path=\"fast\"} 5.000130");
        assert_eq!(lines[18], "x_count{path=\"fast\"} 4");
    }
}
