//! What is not notable, in sums: of each window of time one `summary` record for each segment, name, rule and outcome.
//!
//! Windows are of the records' own time, and end when a later record comes; heartbeats come every 30 seconds. A record that
//! comes late counts in the window that is open. So the same lines make the same sums, whenever they are read.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::time::Duration;

use serde::Serialize;

use super::line::Head;
use crate::audit::RecordId;
use crate::audit::read::micros;

/// Names that one window tells apart; what comes beyond is summed under the name `*`.
const NAMES: usize = 4096;
/// Sums that one window has; beyond, segment and rule are `*` as well.
const SUMS: usize = NAMES + 1024;
/// Bits in which clients are counted: within 10 % up to 5,000, and never more than 15,600.
const BITS: usize = 2048;
/// Shards that one record lists.
const LISTED: usize = 32;

/// The sums of one window.
#[derive(Default)]
pub(super) struct Window {
    /// Its number since 1970.
    number: u64,
    sums: HashMap<String, Sum>,
    key: String,
}

struct Sum {
    /// Its place among those of the window.
    order: usize,
    of: Box<str>,
    segment: Option<Box<str>>,
    qname: Option<Box<str>>,
    rule: Option<Box<str>>,
    outcome: Option<Box<str>>,
    detail: Option<Box<str>>,
    node: Box<str>,
    count: u64,
    bytes_out: u64,
    bytes_in: u64,
    first: Box<str>,
    last: Box<str>,
    clients: Box<[u64; BITS / 64]>,
    ids: Vec<Ids>,
}

/// Records of one shard.
struct Ids {
    first: RecordId,
    last: RecordId,
    count: u64,
}

impl Window {
    /// Nothing is summed.
    pub(super) fn is_empty(&self) -> bool {
        self.sums.is_empty()
    }

    /// Whether a record belongs to a later window of this length.
    pub(super) fn is_over(&self, head: &Head<'_>, length: Duration) -> bool {
        !self.is_empty() && number(head, length) > self.number
    }

    /// Counts a record in.
    pub(super) fn add(&mut self, head: &Head<'_>, id: RecordId, length: Duration) {
        if self.is_empty() {
            self.number = number(head, length);
        }
        let detail = if &*head.kind == "flow" { &head.class } else { &head.op };
        let parts = [&head.segment, &head.qname, &head.rule].map(|part| part.as_deref());
        let outcome = [head.outcome(), detail.as_deref()];
        let mut told = parts;
        self.key_of(&head.kind, told, outcome);
        if !self.sums.contains_key(&self.key) && self.sums.len() >= NAMES {
            let [segment, qname, rule] = parts;
            told = [segment, qname.and(Some("*")), rule];
            self.key_of(&head.kind, told, outcome);
            if !self.sums.contains_key(&self.key) && self.sums.len() >= SUMS {
                told = [segment.and(Some("*")), qname.and(Some("*")), rule.and(Some("*"))];
                self.key_of(&head.kind, told, outcome);
            }
        }
        let order = self.sums.len();
        let owned = |text: Option<&str>| text.map(Into::into);
        let sum = self.sums.entry(self.key.clone()).or_insert_with(|| {
            let [segment, qname, rule] = told;
            Sum {
                order,
                of: (*head.kind).into(),
                segment: owned(segment),
                qname: owned(qname),
                rule: owned(rule),
                outcome: owned(head.outcome()),
                detail: owned(detail.as_deref()),
                node: head.node.as_deref().unwrap_or_default().into(),
                count: 0,
                bytes_out: 0,
                bytes_in: 0,
                first: (*head.ts).into(),
                last: (*head.ts).into(),
                clients: Box::new([0; BITS / 64]),
                ids: Vec::new(),
            }
        });
        sum.add(head, id);
    }

    fn key_of(&mut self, kind: &str, parts: [Option<&str>; 3], outcome: [Option<&str>; 2]) {
        self.key.clear();
        self.key.push_str(kind);
        for part in parts.into_iter().chain(outcome) {
            self.key.push('\0');
            self.key.push_str(part.unwrap_or("\u{1}"));
        }
    }

    /// The window's records, as lines of the log without line feeds, each with its head's fields; empty after it.
    pub(super) fn take(&mut self, length: Duration) -> Vec<String> {
        let mut sums: Vec<Sum> = self.sums.drain().map(|(_, sum)| sum).collect();
        sums.sort_by_key(|sum| sum.order);
        sums.iter().filter_map(|sum| serde_json::to_string(&sum.record(length)).ok()).collect()
    }

    /// Forgets what was summed.
    pub(super) fn clear(&mut self) {
        self.sums.clear();
    }
}

/// The window that a record belongs to.
fn number(head: &Head<'_>, length: Duration) -> u64 {
    micros(&head.ts).unwrap_or(0) / u64::try_from(length.as_micros()).unwrap_or(u64::MAX).max(1)
}

impl Sum {
    fn add(&mut self, head: &Head<'_>, id: RecordId) {
        self.count += 1;
        self.bytes_out = self.bytes_out.saturating_add(head.bytes_out);
        self.bytes_in = self.bytes_in.saturating_add(head.bytes_in);
        // RFC 3339 in UTC: as text, earlier is less.
        if *head.ts < *self.first {
            self.first = (*head.ts).into();
        } else if *head.ts > *self.last {
            self.last = (*head.ts).into();
        }
        if let Some(client) = &head.client {
            // Always the same hash: the same lines make the same sums.
            let hash = foldhash::quality::FixedState::default().hash_one(&**client);
            let bit = usize::try_from(hash % BITS as u64).unwrap_or(0);
            if let Some(word) = self.clients.get_mut(bit / 64) {
                *word |= 1 << (bit % 64);
            }
        }
        match self.ids.iter_mut().find(|ids| (ids.first.boot, ids.first.shard) == (id.boot, id.shard)) {
            Some(ids) => {
                ids.count += 1;
                if id.sequence < ids.first.sequence {
                    ids.first = id;
                } else if id.sequence > ids.last.sequence {
                    ids.last = id;
                }
            }
            None => self.ids.push(Ids { first: id, last: id, count: 1 }),
        }
    }

    /// How many clients, by linear counting (Whang et al. 1990): −m ln(z / m) where z of m bits are 0.
    fn clients(&self) -> u64 {
        let set: u32 = self.clients.iter().map(|word| word.count_ones()).sum();
        let all = f64::from(u32::try_from(BITS).unwrap_or(u32::MAX));
        let zero = (all - f64::from(set)).max(1.0);
        // At most all × ln(all) = 15,616.
        (all * (all / zero).ln()).round() as u64
    }

    fn record(&self, length: Duration) -> Line<'_> {
        let outcome = self.outcome.as_deref();
        let detail = self.detail.as_deref();
        let flow = &*self.of == "flow";
        Line {
            v: 1,
            kind: "summary",
            // The first record's own: the same sum has the same id.
            id: self.ids.first().map(|ids| format!("{}-summary", ids.first)).unwrap_or_default(),
            ts: &self.first,
            node: &self.node,
            of: &self.of,
            segment: self.segment.as_deref(),
            qname: self.qname.as_deref(),
            verdict: outcome.filter(|_| !flow),
            op: detail.filter(|_| !flow),
            action: outcome.filter(|_| flow),
            class: detail.filter(|_| flow),
            rule: self.rule.as_deref(),
            count: self.count,
            clients: self.clients(),
            bytes_out: flow.then_some(self.bytes_out),
            bytes_in: flow.then_some(self.bytes_in),
            last: &self.last,
            window_s: length.as_secs(),
            ids: self.ids.iter().take(LISTED).map(Ids::line).collect(),
            ids_omitted: Some(self.ids.len().saturating_sub(LISTED)).filter(|omitted| *omitted > 0),
        }
    }
}

impl Ids {
    fn line(&self) -> IdsLine {
        IdsLine { first: self.first.to_string(), last: self.last.to_string(), count: self.count }
    }
}

/// The record, its fields in the order of docs/log.md.
#[derive(Serialize)]
struct Line<'a> {
    v: u32,
    #[serde(rename = "type")]
    kind: &'static str,
    id: String,
    ts: &'a str,
    node: &'a str,
    of: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    segment: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    qname: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    verdict: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    op: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    action: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    class: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<&'a str>,
    count: u64,
    clients: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_out: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_in: Option<u64>,
    last: &'a str,
    window_s: u64,
    ids: Vec<IdsLine>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ids_omitted: Option<usize>,
}

/// Records of one shard that are meant.
#[derive(Serialize)]
pub(super) struct IdsLine {
    pub(super) first: String,
    pub(super) last: String,
    pub(super) count: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::FIELDS;
    use serde_json::Value;

    const MINUTE: Duration = Duration::from_secs(60);

    fn add(window: &mut Window, sequence: u64, seconds: u64, rest: &str) -> bool {
        let ts = crate::time::Wall((1_795_233_180 + seconds) * 1_000_000);
        let line = format!(r#"{{"v":1,"type":"query","id":"1-1-{sequence}","ts":"{ts}","node":"n"{rest}}}"#);
        let (head, _) = Head::read(line.as_bytes()).unwrap();
        let over = window.is_over(&head, MINUTE);
        if !over {
            window.add(&head, RecordId { boot: 1, shard: 1, sequence }, MINUTE);
        }
        over
    }

    fn query(name: &str, client: u32) -> String {
        let client = std::net::Ipv4Addr::from(0x0a00_0000 + client);
        format!(r#","client":"{client}","segment":"s","qname":"{name}","verdict":"allow","rule":"r""#)
    }

    fn lines(window: &mut Window) -> Vec<Value> {
        window.take(MINUTE).iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_window_is_summed_by_name_and_ends_with_a_later_record() {
        let mut window = Window::default();
        for sequence in 1..=500 {
            let name = if sequence % 5 == 0 { "b.example" } else { "a.example" };
            assert!(!add(&mut window, sequence, sequence % 60, &query(name, sequence as u32 % 50)));
        }
        assert!(add(&mut window, 501, 60, &query("a.example", 1)));
        let lines = lines(&mut window);
        assert_eq!(lines.len(), 2);
        let first = &lines[0];
        assert_eq!(
            (&first["qname"], &first["count"], &first["verdict"]),
            (&"a.example".into(), &400.into(), &"allow".into())
        );
        assert_eq!(first["id"], "0000000000000001-1-1-summary");
        assert_eq!(first["ids"][0]["last"], "0000000000000001-1-499");
        assert_eq!((&first["clients"], &lines[1]["clients"]), (&40.into(), &10.into()));
        assert!(window.is_empty());
    }

    #[test]
    fn a_late_record_counts_in_the_window_that_is_open() {
        let mut window = Window::default();
        add(&mut window, 1, 61, &query("a.example", 1));
        assert!(!add(&mut window, 2, 59, &query("a.example", 1)));
        let lines = lines(&mut window);
        assert_eq!(lines[0]["count"], 2);
        assert!(lines[0]["ts"].as_str() < lines[0]["last"].as_str());
    }

    #[test]
    fn names_beyond_the_cap_are_summed_together_and_none_is_lost() {
        let mut window = Window::default();
        let names = 2 * SUMS as u64;
        for sequence in 1..=names {
            add(&mut window, sequence, 0, &query(&format!("n{sequence}.example"), 1));
        }
        let lines = lines(&mut window);
        assert_eq!(lines.len(), NAMES + 1);
        assert_eq!(lines.last().unwrap()["qname"], "*");
        assert_eq!(lines.iter().map(|line| line["count"].as_u64().unwrap()).sum::<u64>(), names);
    }

    #[test]
    fn clients_are_counted_well_enough() {
        for clients in [1, 10, 300, 5000] {
            let mut window = Window::default();
            for client in 0..2 * clients {
                add(&mut window, u64::from(client) + 1, 0, &query("a.example", client % clients));
            }
            let counted = lines(&mut window)[0]["clients"].as_u64().unwrap();
            assert!(counted.abs_diff(clients.into()) * 10 <= u64::from(clients), "{counted} of {clients}");
        }
    }

    #[test]
    fn its_fields_are_documented_in_order() {
        let mut window = Window::default();
        add(&mut window, 1, 0, &query("a.example", 1));
        let line = window.take(MINUTE).remove(0);
        let mut fields = FIELDS.iter().filter(|field| matches!(field.record, "*" | "summary"));
        for key in line.split('"').skip(1).step_by(2).filter(|word| line.contains(&format!("\"{word}\":"))) {
            let known = |field: &&crate::audit::Field| field.name == key || field.name == format!("ids[].{key}");
            assert!(fields.any(|field| known(&field)), "{key}: {line}");
        }
    }
}
