//! What this room's tests share: directories that vanish, settings, events.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{
    CacheUse, Encoder, Event, Log, Outcome, QueryEvent, RecordId, Ruled, Settings, Shard, Stated, Statement, Transport,
};
use crate::name::{Name, NameBuf};
use crate::policy::Reason;
use crate::record::{ExtendedError, Rcode, Record, RecordType};
use crate::time::{Clock, Ttl, Wall};

/// A directory of its own, removed at the end.
pub(super) struct Directory(PathBuf);

impl Directory {
    pub(super) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("outgate-audit-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn log(&self) -> PathBuf {
        self.0.join("query.jsonl")
    }

    /// Settings for a log here, small enough to rotate often.
    pub(super) fn settings(&self) -> Settings {
        Settings { file: self.log(), rotate_size: 16 << 10, min_free: 0, ..Settings::default() }
    }

    pub(super) fn open(&self, clock: &Clock, boot: u64, shards: u16) -> (Log, Vec<Shard>) {
        Log::open(self.settings(), "node", clock.clone(), boot, shards).unwrap()
    }

    pub(super) fn text(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A denied query at a time.
pub(super) fn query(at: Wall) -> Event<'static> {
    Event::Query(QueryEvent {
        at,
        client: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
        port: 40_112,
        transport: Transport::Udp,
        asked_by: None,
        certificate: None,
        cookie: None,
        labels: "",
        segment: Some(("checkout", "{\"service\":\"checkout\"}")),
        qid: Some(4711),
        stated: Stated::Plain(statement()),
        flags: 0x8180,
        bytes: 90,
        cache: Some(CacheUse::Miss),
        ttl: 5,
        until: None,
        shadow: None,
        latency_us: 42,
    })
}

/// What became of it.
pub(super) const fn statement() -> Statement<'static> {
    Statement {
        qname: Some(b"\x07example\x03org\0"),
        qtype: Some(RecordType::A),
        outcome: Outcome::Deny,
        enforced: true,
        reason: Reason::Default,
        rule: None,
        policy: 0x9c1f_5be2_7a40_d3e1,
        rcode: Some(Rcode::NXDOMAIN),
        answers: &[],
        services: &[],
        ede: None,
        why: None,
        upstream: None,
        origin: None,
    }
}

/// Text that breaks what reads it carelessly: controls, quotes, what parts fields elsewhere, what moves a cursor, what ends
/// a line in Unicode or turns its direction, a `\` at the end.
pub(super) const HOSTILE: [&str; 14] = [
    "a\0b\x01c\x1f\x7f",
    "\"quoted\" 'and' `so`",
    "two\nlines\r\n<134>1 2026-11-21T03:53:04Z forged - - - -",
    "CEF:0|a|b|c=d|e\\=f",
    "\u{2028}\u{2029}\u{85}",
    "\x1b[2J\x1b]0;title\x07\u{9b}31m",
    "\u{202e}txt.exe\u{200b}\u{feff}\u{e0041}",
    "ends in a backslash\\",
    "\\\\\\",
    "</script><script>alert(1)</script>",
    "%0a%00 {{1}} ${jndi:x} $(x) ;--",
    "\t,\t;\t",
    "\u{1f600} \u{e9}\u{301}",
    "{\"v\":1,\"type\":\"query\"}\n",
];

/// Names to break what reads the log, each with the record of its query: it stands in the question, in answers, and its
/// text in every field that others fill.
pub(super) fn hostile() -> Vec<(Name, String)> {
    let mut names = Vec::new();
    for text in HOSTILE {
        let mut name = NameBuf::new();
        text.as_bytes().chunks(63).for_each(|label| name.push_label(label).unwrap());
        names.push(name.to_name());
        name.push_label(b"example").unwrap();
        names.push(name.to_name());
    }
    // 255 octets, of which each is written as four; every octet once; every case of DNS 0x20; dots within labels.
    let labels: [&[&[u8]]; 6] = [
        &[&[0xff; 63], &[0; 63], &[b'\\'; 63], &[b'.'; 61]],
        &[&[b'a'; 63], &[b'"'; 63], &[b'b'; 63], &[b'c'; 61]],
        &[b"wWw", b"ExAmPlE", b"OrG"],
        &[b"a.b", b"c\\.d", b"example"],
        &[b"."],
        &[],
    ];
    for labels in labels {
        let mut name = NameBuf::new();
        labels.iter().for_each(|label| name.push_label(label).unwrap());
        names.push(name.to_name());
    }
    let octets: Vec<u8> = (0..=255).collect();
    for octets in octets.chunks(63) {
        let mut name = NameBuf::new();
        name.push_label(octets).unwrap();
        names.push(name.to_name());
    }
    let record = |name: Name| {
        let text = HOSTILE.concat();
        let alias = Record { kind: RecordType::CNAME, data: Arc::from(name.as_wire()), ..answer(&name) };
        let answers = [alias, answer(&name)];
        let ede = ExtendedError::new(ExtendedError::BLOCKED, text.as_str());
        let Event::Query(event) = query(Wall(1_795_233_184_117_302)) else { return None };
        let statement = Statement {
            qname: Some(name.as_wire()),
            rule: Some(Ruled { id: &text, owner: Some(&text), ticket: Some(&text) }),
            outcome: Outcome::Allow,
            rcode: Some(Rcode::NOERROR),
            answers: &answers,
            ede: Some(&ede),
            why: Some(&text),
            upstream: Some(&text),
            ..statement()
        };
        let tags = serde_json::json!({ "service": text }).to_string();
        let event = QueryEvent {
            asked_by: Some(&text),
            certificate: Some(&text),
            segment: Some((&text, &tags)),
            stated: Stated::Plain(statement),
            ..event
        };
        let mut line = Vec::new();
        let id = RecordId { boot: 1, shard: 1, sequence: 1 };
        Encoder::new(1, 1, &text).encode(&mut line, id, &Event::Query(event));
        let line = String::from_utf8(line).unwrap().trim_end_matches('\n').to_owned();
        Some((name, line))
    };
    names.into_iter().filter_map(record).collect()
}

/// An address of this name.
fn answer(name: &Name) -> Record {
    Record::of_address(name.clone(), Ttl::ZERO, Ipv4Addr::new(198, 51, 100, 7).into())
}

/// Reserves, appends and commits `count` queries.
pub(super) fn write(shard: &mut Shard, clock: &Clock, count: usize) {
    for _ in 0..count {
        let id = shard.reserve();
        shard.append(id, &query(clock.now().wall));
    }
    shard.commit().unwrap();
}
