//! What all flows come to.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::IpAddr;

use serde_json::{Value, json};

use crate::audit::FlowEvent;
use crate::flow::{Carrier, Class, Detail, Holds};

/// Destinations that are counted; at the cap, the half with the fewest bytes goes.
const PLACES: usize = 1 << 16;
/// Those that are told.
const TOP: usize = 10;

/// Flows and their bytes, both ways.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    flows: u64,
    bytes: u64,
}

impl Count {
    fn add(&mut self, bytes: u64) {
        self.flows += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct Summary {
    all: Count,
    denied: u64,
    explained: Count,
    classes: BTreeMap<(Class, Option<Detail>), Count>,
    places: HashMap<(IpAddr, Carrier), Count>,
    /// Lines that are part of another line's flow.
    pub(super) joined: u64,
    /// What the index held at the end.
    pub(super) held: Holds,
}

impl Summary {
    pub(super) fn add(&mut self, event: &FlowEvent<'_>) {
        let bytes = event.bytes_out.unwrap_or(0).saturating_add(event.bytes_in.unwrap_or(0));
        self.classes.entry((event.class, event.detail)).or_default().add(bytes);
        if event.denied {
            self.denied += 1;
            return;
        }
        self.all.add(bytes);
        if event.class.explains(event.detail) {
            self.explained.add(bytes);
            return;
        }
        if self.places.len() >= PLACES {
            let mut sizes: Vec<u64> = self.places.values().map(|count| count.bytes).collect();
            let half = sizes.len() / 2;
            let (_, median, _) = sizes.select_nth_unstable(half);
            let median = *median;
            self.places.retain(|_, count| count.bytes > median);
        }
        self.places.entry((event.address, event.service)).or_default().add(bytes);
    }

    /// The destinations with the most bytes that are not explained.
    fn top(&self) -> Vec<((IpAddr, Carrier), Count)> {
        let mut places: Vec<_> = self.places.iter().map(|(place, count)| (*place, *count)).collect();
        places.sort_unstable_by_key(|(place, count)| (std::cmp::Reverse((count.bytes, count.flows)), *place));
        places.truncate(TOP);
        places
    }

    pub(super) fn object(&self) -> Value {
        let classes: Vec<Value> = self
            .classes
            .iter()
            .map(|((class, detail), count)| {
                json!({
                    "class": class.as_str(), "detail": detail.map(Detail::as_str), "flows": count.flows,
                    "bytes": count.bytes,
                })
            })
            .collect();
        let top = self.top().into_iter().map(|((address, service), count)| {
            json!({
                "address": address.to_string(), "service": service.to_string(), "flows": count.flows,
                "bytes": count.bytes,
            })
        });
        json!({
            "flows": self.all.flows + self.denied, "denied": self.denied, "joined": self.joined,
            "bytes": self.all.bytes, "explained_bytes": self.explained.bytes, "explained_flows": self.explained.flows,
            "classes": classes, "unexplained": top.collect::<Vec<_>>(),
            "index": { "intervals": self.held.intervals, "bytes": self.held.bytes, "evicted": self.held.evicted },
        })
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { all, denied, explained, .. } = self;
        let share = |part: u64, of: u64| part.saturating_mul(1000).checked_div(of).unwrap_or(1000);
        let permille =
            if all.bytes > 0 { share(explained.bytes, all.bytes) } else { share(explained.flows, all.flows) };
        writeln!(f, "{} flows of {} bytes, and {denied} refused", all.flows, all.bytes)?;
        writeln!(f, "{}.{} % of the bytes are explained", permille / 10, permille % 10)?;
        for ((class, detail), count) in &self.classes {
            let detail = detail.map_or("", Detail::as_str);
            writeln!(f, "  {:<10} {detail:<16} {:>10} flows {:>16} bytes", class.as_str(), count.flows, count.bytes)?;
        }
        let top = self.top();
        if !top.is_empty() {
            writeln!(f, "most bytes that are not explained")?;
        }
        for ((address, service), count) in top {
            writeln!(f, "  {address} {service}  {} flows, {} bytes", count.flows, count.bytes)?;
        }
        Ok(())
    }
}
