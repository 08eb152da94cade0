//! What was counted of flows, for /metrics.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::firewall::Count;
use crate::flow::Class;
use crate::metric::{self, Registry};

/// Segments that are counted by name; those after them share `other`.
const NAMED: usize = 64;

/// The label of who is in no segment, and of the segments beyond [`NAMED`].
const NONE: &str = "none";
const OTHER: &str = "other";

/// The counters; the flow thread counts, whoever shows them reads.
#[derive(Default)]
pub(in crate::app) struct Gauges {
    segments: Mutex<BTreeMap<Arc<str>, Segment>>,
    /// Times that the kernel had no room for events, and refusals that it did not tell of.
    pub(super) lost: AtomicU64,
    pub(super) live: AtomicU64,
    /// Flows that there was no room for.
    pub(super) untold: AtomicU64,
}

#[derive(Default)]
struct Segment {
    flows: BTreeMap<Class, [u64; 3]>,
    refused: BTreeMap<&'static str, u64>,
}

impl Gauges {
    /// A flow ended.
    pub(super) fn flow(&self, segment: Option<&Arc<str>>, class: Class, counts: Option<[Count; 2]>) {
        self.of(segment, |segment| {
            let [flows, there, back] = segment.flows.entry(class).or_default();
            *flows += 1;
            if let Some([out, into]) = counts {
                *there += out.bytes;
                *back += into.bytes;
            }
        });
    }

    /// A packet was refused.
    pub(super) fn refused(&self, segment: Option<&Arc<str>>, why: &'static str) {
        self.of(segment, |segment| *segment.refused.entry(why).or_default() += 1);
    }

    fn of(&self, segment: Option<&Arc<str>>, count: impl FnOnce(&mut Segment)) {
        let mut segments = self.segments.lock();
        let name = match segment {
            None => Arc::from(NONE),
            Some(name) if segments.contains_key(name) => Arc::clone(name),
            Some(name) if segments.len() < NAMED => Arc::clone(name),
            Some(_) => Arc::from(OTHER),
        };
        count(segments.entry(name).or_default());
    }

    /// Puts them into the registry.
    pub(in crate::app) fn show(&self, registry: &Registry) {
        for (name, segment) in &*self.segments.lock() {
            for (class, [flows, there, back]) in &segment.flows {
                registry.absolute(metric::FLOWS, [name, class.as_str()], *flows);
                registry.absolute(metric::FLOW_BYTES, [name, class.as_str(), "out"], *there);
                registry.absolute(metric::FLOW_BYTES, [name, class.as_str(), "in"], *back);
            }
            for (why, refused) in &segment.refused {
                registry.absolute(metric::FLOWS_REFUSED, [name, why], *refused);
            }
        }
        registry.absolute(metric::FLOW_EVENTS_LOST, [], self.lost.load(Ordering::Relaxed));
        let live = u32::try_from(self.live.load(Ordering::Relaxed)).unwrap_or(u32::MAX);
        registry.set_gauge(metric::FLOWS_LIVE, [], f64::from(live));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metric::Words;

    #[test]
    fn segments_beyond_the_first_are_counted_together() {
        let gauges = Gauges::default();
        let bytes = |bytes| Count { packets: 1, bytes };
        for number in 0..200 {
            let name: Arc<str> = Arc::from(format!("s{number}"));
            gauges.flow(Some(&name), Class::Exact, Some([bytes(10), bytes(100)]));
        }
        gauges.refused(None, "unknown_address");
        let words = Words { verdicts: &[], reasons: &[], transports: &[], dissents: &[] };
        let registry = Registry::new(words);
        gauges.show(&registry);
        let text = registry.render();
        let series = |name: &str| text.lines().filter(|line| line.starts_with(name)).count();
        assert_eq!(series("outgate_flows_total{"), NAMED + 1);
        assert_eq!(series("outgate_flow_bytes_total{"), 2 * (NAMED + 1));
        assert!(text.contains("outgate_flows_total{segment=\"other\",class=\"exact\"} 136\n"), "{text}");
        assert!(text.contains("outgate_flow_bytes_total{segment=\"s0\",class=\"exact\",direction=\"in\"} 100\n"));
        assert!(text.contains("outgate_flows_refused_total{segment=\"none\",why=\"unknown_address\"} 1\n"));
    }
}
