//! Metrics: every one in [`TABLE`], and the [`Registry`] that holds their values.
//!
//! A value can only be set through a constant of the table, with as many label values as the metric has labels:
//! an unknown name or a missing label does not compile. Labels are bounded: configuration, the words of small
//! enums, and at most 64 segments; never a client's address or a queried name.
//!
//! What is counted per query is counted by [`Tally`], one per thread, and merged when the registry is rendered.

mod distribution;
mod registry;
mod table;
mod tally;

pub use distribution::Distribution;
pub use registry::Registry;
pub use table::*;
pub use tally::{Cached, Path, Sample, SegmentSlot, Tallies, Tally, Words};

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Goes up only.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts of values up to a bound.
    Histogram,
    /// A gauge that is always 1: its labels are the message. A new set of labels replaces the one before.
    Info,
}

impl Kind {
    /// The word in docs/metrics.md; Prometheus knows an info as a gauge.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Info => "info",
        }
    }
}

/// What a metric counts or measures in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Things.
    Count,
    /// Seconds.
    Seconds,
    /// Bytes.
    Bytes,
    /// 0 to 1.
    Ratio,
}

impl Unit {
    /// The word in docs/metrics.md and in the metric's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Seconds => "seconds",
            Self::Bytes => "bytes",
            Self::Ratio => "ratio",
        }
    }
}

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// The name as Prometheus sees it, with the prefix `outgate_`.
    pub name: &'static str,
    /// The name without the prefix.
    pub short: &'static str,
    /// What it is.
    pub kind: Kind,
    /// What it is in.
    pub unit: Unit,
    /// Its labels, in the order in which their values are given.
    pub labels: &'static [&'static str],
    /// One sentence.
    pub help: &'static str,
}

/// A counter with `N` labels.
#[derive(Clone, Copy, Debug)]
pub struct Counter<const N: usize>(Row<N>);

/// A gauge with `N` labels.
#[derive(Clone, Copy, Debug)]
pub struct Gauge<const N: usize>(Row<N>);

/// A histogram of durations with `N` labels.
#[derive(Clone, Copy, Debug)]
pub struct Histogram<const N: usize>(Row<N>);

/// An info with `N` labels.
#[derive(Clone, Copy, Debug)]
pub struct Info<const N: usize>(Row<N>);

/// A row whose number of labels the compiler knows.
#[derive(Clone, Copy, Debug)]
struct Row<const N: usize> {
    name: &'static str,
    labels: [&'static str; N],
}
