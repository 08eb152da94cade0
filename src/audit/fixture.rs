//! What this room's tests share: directories that vanish, settings, events.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::{CacheUse, Event, Log, Outcome, QueryEvent, Settings, Shard, Stated, Statement, Transport};
use crate::policy::Reason;
use crate::record::{Rcode, RecordType};
use crate::time::{Clock, Wall};

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

/// Reserves, appends and commits `count` queries.
pub(super) fn write(shard: &mut Shard, clock: &Clock, count: usize) {
    for _ in 0..count {
        let id = shard.reserve();
        shard.append(id, &query(clock.now().wall));
    }
    shard.commit().unwrap();
}
