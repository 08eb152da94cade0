//! The log's documentation and the log itself say the same: docs/log.md has every field, and records have no other.
//!
//! `OUTGATE_WRITE_DOCS=1 cargo test --test docs_log` writes the tables of docs/log.md anew.

#![expect(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "the helpers of tests")]

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use outgate::audit::{
    BackendAck, CacheUse, ChangeEvent, Encoder, Event, FIELDS, FlowEvent, FlowOp, GrantEvent, GrantOp, Log, MAX_LINE,
    Outcome, PolicyEvent, QueryEvent, RecordId, Rendered, Ruled, Settings, Shadow, Stated, Statement, Transport,
};
use outgate::flow::{Carrier, Class, Detail, Named, Origin};
use outgate::name::{Name, NameBuf};
use outgate::net::{Element, Scope, SegmentId, Service, Services};
use outgate::policy::{Dissent, Listed, Reason, Summary};
use outgate::record::{ExtendedError, Rcode, Record, RecordType};
use outgate::time::{Clock, Ttl, Wall};
use proptest::prelude::*;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

/// The keys of a JSON value in the order in which they are written.
#[derive(Debug, Default)]
struct Keys(Vec<(String, Self)>);

impl Keys {
    /// `answers[].ttl`, `grant.until`, …; what stands in lists counts once.
    fn paths(&self, prefix: &str, paths: &mut Vec<String>) {
        for (key, inner) in &self.0 {
            let path = match key.strip_prefix("[].") {
                Some(key) => format!("{}[].{key}", prefix.trim_end_matches('.')),
                None => format!("{prefix}{key}"),
            };
            if !paths.contains(&path) {
                paths.push(path.clone());
            }
            // Free keys are values, not fields.
            if !matches!(path.as_str(), "tags" | "labels" | "sequences") {
                inner.paths(&format!("{path}."), paths);
            }
        }
    }
}

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Keys;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("JSON")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
                let mut keys = Keys::default();
                while let Some((key, value)) = map.next_entry::<String, Keys>()? {
                    assert!(keys.0.iter().all(|(known, _)| *known != key), "{key} is there twice");
                    keys.0.push((key, value));
                }
                Ok(keys)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Keys, A::Error> {
                let mut keys = Keys::default();
                while let Some(item) = list.next_element::<Keys>()? {
                    keys.0.extend(item.0.into_iter().map(|(key, inner)| (format!("[].{key}"), inner)));
                }
                Ok(keys)
            }

            fn visit_str<E>(self, _: &str) -> Result<Keys, E> {
                Ok(Keys::default())
            }

            fn visit_u64<E>(self, _: u64) -> Result<Keys, E> {
                Ok(Keys::default())
            }

            fn visit_bool<E>(self, _: bool) -> Result<Keys, E> {
                Ok(Keys::default())
            }
        }
        deserializer.deserialize_any(Read)
    }
}

/// Panics unless `line` is one JSON line within the limit whose keys are those of `record`, in order.
fn assert_documented(line: &[u8], record: &str) {
    let text = std::str::from_utf8(line).expect("UTF-8");
    assert!(text.len() <= MAX_LINE && text.ends_with('\n') && text.matches('\n').count() == 1, "{}", text.len());
    let keys: Keys = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let mut paths = Vec::new();
    keys.paths("", &mut paths);
    let mut fields = FIELDS.iter().filter(|field| field.record == "*" || field.record == record);
    for path in &paths {
        assert!(fields.any(|field| field.name == path), "{path} is not a field of {record}, or out of order: {text}");
    }
}

const ID: RecordId = RecordId { boot: u64::MAX, shard: u16::MAX, sequence: u64::MAX };

fn encoded(event: &Event<'_>, node: &str) -> Vec<u8> {
    let mut line = Vec::new();
    Encoder::new(ID.boot, ID.shard, node).encode(&mut line, ID, event);
    line
}

/// What an event borrows.
#[derive(Clone, Debug)]
struct Parts {
    words: Vec<String>,
    qname: Name,
    tags: String,
    answers: Vec<Record>,
    services: Vec<Services>,
    ede: ExtendedError,
    numbers: (u64, u16, u32),
    present: u32,
    address: IpAddr,
}

impl Parts {
    fn has(&self, bit: u32) -> bool {
        self.present & 1 << bit != 0
    }

    fn word(&self, index: usize) -> &str {
        &self.words[index % self.words.len()]
    }

    fn statement(&self) -> Statement<'_> {
        let (large, small, _) = self.numbers;
        Statement {
            qname: self.has(4).then_some(self.qname.as_wire()),
            qtype: self.has(5).then_some(RecordType(small)),
            outcome: Outcome::ALL[usize::from(small) % 3],
            enforced: self.has(6),
            reason: Reason::ALL[usize::from(small) % Reason::ALL.len()],
            rule: self.has(7).then_some(Ruled {
                id: self.word(2),
                owner: self.has(5).then_some(self.word(0)),
                ticket: self.has(6).then_some(self.word(1)),
            }),
            policy: large,
            rcode: self.has(8).then_some(Rcode(small)),
            answers: &self.answers,
            services: &self.services,
            ede: self.has(11).then_some(&self.ede),
            why: self.has(12).then_some(self.word(3)),
            upstream: self.has(13).then_some(self.word(4)),
            origin: self.has(14).then_some(RecordId { sequence: large, ..ID }),
        }
    }

    fn query<'a>(&'a self, stated: Stated<'a>) -> QueryEvent<'a> {
        let (large, small, middle) = self.numbers;
        QueryEvent {
            at: Wall(large % 253_402_300_800_000_000),
            client: self.address,
            port: small,
            transport: if self.has(0) { Transport::Udp } else { Transport::Tcp },
            asked_by: self.has(1).then_some(self.word(0)),
            certificate: self.has(1).then_some(self.word(0)),
            cookie: self.has(2).then_some("invalid"),
            segment: self.has(2).then_some((self.word(1), self.tags.as_str())),
            labels: if self.has(4) { r#"{"pod":"a"}"# } else { "" },
            qid: self.has(3).then_some(small),
            stated,
            // TC more seldom than not: with it there are no answers.
            flags: if self.has(15) && self.has(16) { 0xffff } else { small & !0x0200 },
            bytes: middle as usize,
            cache: self.has(9).then_some(CacheUse::Zone),
            ttl: middle,
            until: self.has(10).then_some(Wall(large % 253_402_300_800_000_000)),
            shadow: None,
            latency_us: large,
        }
    }

    fn shadow(&self) -> Shadow<'_> {
        let (large, small, _) = self.numbers;
        Shadow {
            dissent: Dissent::ALL[usize::from(small) % 3],
            outcome: Outcome::ALL[usize::from(small) % 2],
            enforced: self.has(6),
            reason: Reason::ALL[usize::from(small) % Reason::ALL.len()],
            rule: self.has(18).then_some(self.word(0)),
            segment: self.has(19).then_some(self.word(1)),
            policy: large,
            why: self.has(20).then_some(self.word(2)),
        }
    }

    fn check(&self) {
        let (large, small, _) = self.numbers;
        let plain = self.query(Stated::Plain(self.statement()));
        assert_documented(&encoded(&Event::Query(plain.clone()), self.word(5)), "query");
        let shadow = self.shadow();
        let shadowed = Event::Query(QueryEvent { shadow: Some(&shadow), ..plain });
        assert_documented(&encoded(&shadowed, self.word(5)), "query");
        let backends: Vec<_> = self.words.iter().map(|name| BackendAck { name, acked_us: large }).collect();
        let grant = GrantEvent {
            at: Wall(1),
            op: GrantOp::Open,
            client: self.has(2).then_some(self.address),
            element: Element {
                from: if self.has(1) { Scope::Client(self.address) } else { Scope::Segment(SegmentId(7)) },
                to: self.address,
                service: Service::Icmp,
            },
            segment: self.word(0),
            rule: self.word(1),
            qname: &self.qname,
            services: &self.services,
            until: Wall(2),
            query: self.has(2).then_some(RecordId { boot: large, shard: small, sequence: large }),
            why: self.has(3).then_some(self.word(2)),
            backends: &backends,
        };
        assert_documented(&encoded(&Event::Grant(grant), self.word(5)), "grant");
        let ids = |from: usize| (0..from * usize::from(small) % 13).map(|at| Arc::from(self.word(at))).collect();
        let listed = |from| Listed { added: ids(from), removed: ids(from + 1), changed: ids(from + 2) };
        let changes = Summary { segments: listed(1), rules: listed(2), names_added: large, names_removed: 0 };
        let policy = PolicyEvent {
            at: Wall(1),
            op: "reload",
            revision: large,
            previous: self.has(1).then_some(large),
            segments: usize::from(small),
            rules: usize::MAX,
            revoked: large,
            changes: self.has(4).then_some(&changes),
            why: self.has(2).then_some(self.word(3)),
        };
        assert_documented(&encoded(&Event::Policy(policy), self.word(5)), "policy");
        let change = ChangeEvent {
            at: Wall(1),
            op: "allow",
            change: self.has(1).then_some(self.word(0)),
            by: self.has(2).then_some(self.word(1)),
            targets: if self.has(3) { &self.words } else { &[] },
            client: self.has(4).then_some(self.address),
            segments: if self.has(5) { &self.words } else { &[] },
            until: self.has(6).then_some(Wall(2)),
            why: self.has(7).then_some(self.word(2)),
            ticket: self.has(8).then_some(self.word(3)),
            clients: self.has(9).then_some(usize::MAX),
            revoked: large,
            cut: self.has(10).then_some(large),
            unsaved: self.has(11),
        };
        assert_documented(&encoded(&Event::Change(change), self.word(5)), "change");
        assert_documented(&encoded(&Event::Flow(self.flow(&self.flow_names())), self.word(5)), "flow");
    }

    fn flow_names(&self) -> Vec<Named<'_>> {
        let names = self.words.iter().map(|word| Named {
            qname: word,
            rule: self.word(1),
            query: self.has(3).then_some(ID.into()),
            told: Wall(self.numbers.0),
            until: Wall(1),
        });
        names.collect()
    }

    fn flow<'a>(&'a self, names: &'a [Named<'a>]) -> FlowEvent<'a> {
        let (large, small, _) = self.numbers;
        FlowEvent {
            at: Wall(1),
            op: if self.has(0) { FlowOp::Close } else { FlowOp::Refuse },
            client: self.address,
            port: self.has(1).then_some(small),
            segment: self.has(2).then_some((self.word(1), self.tags.as_str())),
            address: self.address,
            service: if self.has(3) { Carrier::Protocol(255) } else { Carrier::Tcp(small) },
            denied: self.has(4),
            class: Class::ALL[usize::from(small) % Class::ALL.len()],
            detail: self.has(5).then_some(Detail::ALL[usize::from(small) % Detail::ALL.len()]),
            why: self.has(6).then_some(self.word(2)),
            qname: self.has(7).then_some(self.word(3)),
            rule: self.has(8).then_some(self.word(4)),
            query: self.has(9).then_some(ID),
            names,
            names_omitted: if self.has(10) { large >> 1 } else { 0 },
            late_us: self.has(11).then_some(large),
            outlived_us: self.has(12).then_some(large),
            bytes_out: self.has(13).then_some(large),
            bytes_in: self.has(14).then_some(large),
            packets_out: self.has(15).then_some(large),
            packets_in: self.has(16).then_some(large),
            end: self.has(17).then_some(Wall(large)),
            started: self.has(18),
            source: Origin::ALL[usize::from(small) % Origin::ALL.len()],
        }
    }
}

prop_compose! {
    fn names()(labels in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..=63), 0..6)) -> Name {
        let mut name = NameBuf::new();
        // A label that no longer fits is left out.
        for label in &labels { let _ = name.push_label(label); }
        name.to_name()
    }
}

prop_compose! {
    fn records()(
        name in names(),
        kind in prop_oneof![Just(1_u16), Just(5), Just(16), Just(28), any::<u16>()],
        data in prop::collection::vec(any::<u8>(), 0..700),
    ) -> Record {
        Record { name, kind: RecordType(kind), ttl: Ttl::ZERO, data: Arc::from(data) }
    }
}

prop_compose! {
    fn parts()(
        words in prop::collection::vec(prop_oneof!["[a-z]{0,20}", "\\PC{0,80}", ".{0,900}", "[\u{0}-\u{1f}\"\\\\]{0,600}"], 1..20),
        qname in names(),
        tags in prop::collection::btree_map("[a-z]{1,20}", ".{0,300}", 0..20),
        answers in prop::collection::vec(records(), 0..40),
        services in prop::collection::vec((any::<u16>(), any::<u16>()).prop_map(|(a, b)| Services::Tcp(a, b)), 0..100),
        code in any::<u16>(),
        numbers in any::<(u64, u16, u32)>(),
        present in any::<u32>(),
        address in any::<IpAddr>(),
    ) -> Parts {
        let ede = ExtendedError::new(code, words[0].as_str());
        let tags = if tags.is_empty() { String::new() } else { serde_json::to_string(&tags).expect("a map") };
        Parts { words, qname, tags, answers, services, ede, numbers, present, address }
    }
}

proptest! {
    #[test]
    fn every_event_is_one_documented_line(parts in parts()) {
        parts.check();
    }

    /// One statement, made of a fresh answer and rendered, in the records of several clients.
    #[test]
    fn a_rendered_statement_makes_the_same_line(
        parts in parts(),
        fetched_here in any::<bool>(),
        others in prop::collection::vec((0..32_u32, any::<u32>(), any::<IpAddr>(), any::<u32>(), 0..3000_usize), 1..4),
    ) {
        let statement =
            Statement { origin: if fetched_here { Some(ID) } else { parts.statement().origin }, ..parts.statement() };
        let rendered = Rendered::new(&statement);
        for (bits, ttl, client, bytes, tags) in others {
            // What stands before the answers decides how many there is room for.
            let tags = format!("{{\"a\":\"{}\"}}", "b".repeat(tags));
            let told = |stated| {
                let event = parts.query(stated);
                let flags = event.flags ^ (parts.present >> 17) as u16 & !0x0200;
                let ttl = ttl.checked_shr(bits).unwrap_or(0);
                let segment = Some(("segment", tags.as_str()));
                let event = QueryEvent { ttl, client, bytes: bytes as usize, segment, flags, ..event };
                encoded(&Event::Query(event), parts.word(5))
            };
            let plain = told(Stated::Plain(statement.clone()));
            prop_assert_eq!(String::from_utf8(plain).unwrap(), String::from_utf8(told(Stated::Rendered(&rendered))).unwrap());
        }
    }
}

#[test]
fn the_largest_event_is_one_line_too() {
    let mut qname = NameBuf::new();
    for length in [63, 63, 63, 61] {
        qname.push_label(&vec![0xff; length]).expect("it fits");
    }
    let qname = qname.to_name();
    let address = IpAddr::V6(Ipv6Addr::from([0xffff; 8]));
    let record = |data: usize| Record {
        name: qname.clone(),
        kind: RecordType(u16::MAX),
        ttl: Ttl::ZERO,
        data: Arc::from(vec![0; data]),
    };
    let word = "\u{1}".repeat(2000);
    Parts {
        words: vec![word.clone(); 30],
        tags: format!("{{\"a\":\"{}\"}}", "b".repeat(3072 - 8)),
        answers: vec![record(65_535), record(1)],
        services: vec![Services::Tcp(65_534, 65_535); 1000],
        ede: ExtendedError::new(u16::MAX, word),
        numbers: (u64::MAX, u16::MAX, u32::MAX),
        // Everything, and not enforced, which takes more room.
        present: !(1 << 6),
        address,
        qname,
    }
    .check();
}

#[test]
fn answers_that_do_not_fit_are_counted() {
    let name = Name::parse("a.example.org").expect("a name");
    let answer = |last: u8| Record::of_address(name.clone(), Ttl::ZERO, Ipv4Addr::new(198, 51, 100, last).into());
    let parts = Parts {
        words: vec!["w".to_owned()],
        qname: name.clone(),
        tags: String::new(),
        answers: (0..=255).map(answer).collect(),
        services: vec![Services::Tcp(443, 443)],
        ede: ExtendedError::new(0, ""),
        numbers: (1, 1, 60),
        present: u32::MAX,
        address: Ipv4Addr::new(192, 0, 2, 1).into(),
    };
    let told = |present| {
        let parts = Parts { present, ..parts.clone() };
        let line = encoded(&Event::Query(parts.query(Stated::Plain(parts.statement()))), "node");
        serde_json::from_slice::<serde_json::Value>(&line).expect("JSON")
    };
    let record = told(!(1 << 15));
    let count = record["answers"].as_array().expect("a list").len();
    assert!(count > 60, "{count}");
    assert_eq!(record["answers_omitted"], 256 - count);
    assert_eq!(record["answers"][1]["data"], "198.51.100.1");
    // The room ends at every place of an answer once, for a rendered statement at the same one.
    let rendered = Rendered::new(&parts.statement());
    for node in 0..100 {
        let told = |stated| {
            let query = QueryEvent { flags: 0, ..parts.query(stated) };
            String::from_utf8(encoded(&Event::Query(query), &"n".repeat(node))).expect("UTF-8")
        };
        assert_eq!(told(Stated::Plain(parts.statement())), told(Stated::Rendered(&rendered)));
    }
    // Truncated, none were told.
    let record = told(u32::MAX);
    assert!(record.get("answers").is_none() && record.get("answers_omitted").is_none());
}

/// Every `log` record that a life of the log brings forth.
#[test]
fn the_logs_own_records_are_documented() {
    let directory = std::env::temp_dir().join(format!("outgate-docs-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory");
    let file = directory.join("query.jsonl");
    let settings =
        Settings { file: file.clone(), rotate_size: 4096, max_size: 8192, min_free: 0, ..Settings::default() };
    let clock = Clock::manual();
    let mut lines = std::collections::BTreeSet::new();
    let mut read = || {
        let text = std::fs::read_to_string(&file).expect("text");
        lines.extend(text.split_inclusive('\n').map(str::to_owned));
    };
    for boot in 1..=2 {
        let (mut log, shards) = Log::open(settings.clone(), "node", clock.clone(), boot, 200).expect("a log");
        // Closed files are read by another thread, and only then removed: until that is done, bounded.
        for _ in 0..200_000 {
            clock.advance(std::time::Duration::from_secs(30));
            log.tick().expect("a tick");
            read();
            if log.counts().removed > 0 {
                break;
            }
        }
        drop(shards);
        log.close().expect("the end");
        read();
    }
    std::fs::remove_dir_all(&directory).expect("gone");
    let mut seen: Vec<String> = Vec::new();
    for line in &lines {
        let record: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let op = record["op"].as_str().expect("an operation").to_owned();
        assert_documented(line.as_bytes(), &format!("log {op}"));
        seen.push(op);
    }
    for op in ["open", "rotate", "removed", "heartbeat", "close"] {
        assert!(seen.iter().any(|seen| seen == op), "no {op}");
    }
}

/// One table per record type, as docs/log.md holds it.
fn tables() -> Vec<(&'static str, String)> {
    let mut tables: Vec<(&str, String)> = Vec::new();
    for field in FIELDS {
        if tables.last().is_none_or(|(record, _)| *record != field.record) {
            tables.push((field.record, "| field | kind | meaning |\n|---|---|---|\n".to_owned()));
        }
        if let Some((_, table)) = tables.last_mut() {
            writeln!(table, "| `{}` | {} | {} |", field.name, field.kind, field.meaning).expect("a string");
        }
    }
    tables
}

#[test]
fn every_class_of_flows_is_documented() {
    let document = include_str!("../docs/flows.md");
    for word in Class::ALL.iter().map(|class| class.as_str()).chain(Detail::ALL.iter().map(|detail| detail.as_str())) {
        assert!(document.contains(&format!("| `{word}` |")), "docs/flows.md lacks {word}");
    }
}

#[test]
fn the_document_has_every_field() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/log.md");
    let document = std::fs::read_to_string(path).expect("docs/log.md");
    let mut expected = document.clone();
    for (record, table) in tables() {
        let (begin, end) = (format!("<!-- fields: {record} -->\n"), "<!-- end -->");
        let from = expected.find(&begin).unwrap_or_else(|| panic!("docs/log.md lacks {begin}")) + begin.len();
        let to = from + expected[from..].find(end).expect("an end");
        expected.replace_range(from..to, &table);
    }
    for reason in Reason::ALL {
        assert!(document.contains(&format!("| `{}` |", reason.as_str())), "docs/log.md lacks {}", reason.as_str());
    }
    if std::env::var_os("OUTGATE_WRITE_DOCS").is_some() {
        std::fs::write(path, expected).expect("written");
    } else {
        assert!(document == expected, "run OUTGATE_WRITE_DOCS=1 cargo test --test docs_log");
    }
}
