//! A gate that is ready to answer: real rooms, a real log in a directory of its own, a firewall that remembers, an
//! upstream on loopback, and names that were asked for once. Benchmarks run its fast path.

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use outgate::audit::{Log, Settings as AuditSettings, Transport};
use outgate::cache::{Answers, Cover, Failures, Named};
use outgate::firewall::Memory;
use outgate::gate::{
    Arrival, Deadlines, Fast, Gate, Granter, GranterParts, Hurry, Outbox, Passed, Refreshes, Rulebook, Slots, WORDS,
    WarmCounts,
};
use outgate::grant::{Caps, Ledger, Terms};
use outgate::metric::Registry;
use outgate::name::Name;
use outgate::policy::{GrantScope, Settings as PolicySettings, Source, compile};
use outgate::record::{Question, Rcode, Record, RecordType};
use outgate::time::{Clock, Ttl};
use outgate::upstream::{
    Ports, ServerSettings, Settings as UpstreamSettings, Transport as UpstreamTransport, Upstreams,
};
use outgate::wire::{Canonical, Template, encode_query, parse};
use outgate::zones::Zones;

/// Datagrams that a door takes at once.
const BATCH: usize = 64;

/// Names of one rule.
const NAMES_PER_RULE: usize = 100;

/// What a stage is set with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    /// Names that policy allows.
    pub(crate) allowed: usize,
    /// Names of these that were asked for by every client.
    pub(crate) cached: usize,
    /// Clients, at most 254.
    pub(crate) clients: u8,
    /// For whom they are open.
    pub(crate) scope: GrantScope,
}

/// The gate and what keeps it alive.
pub(crate) struct Stage {
    /// The gate.
    pub(crate) gate: Arc<Gate>,
    outbox: Outbox<SocketAddr>,
    ports: Ports,
    runtime: tokio::runtime::Runtime,
    directory: PathBuf,
    size: Size,
    threads: Vec<JoinHandle<()>>,
    upstream: SocketAddr,
    log: Option<Log>,
}

/// One packet and who sent it.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    packet: Box<[u8]>,
    peer: SocketAddr,
}

#[expect(clippy::unwrap_used, reason = "a benchmark's own data")]
impl Stage {
    /// Builds the gate and asks for every cached name once.
    pub(crate) fn new(size: Size) -> Self {
        let mut stage = Self::empty(size);
        stage.fill();
        stage
    }

    /// Builds the gate, nothing cached yet.
    pub(crate) fn empty(size: Size) -> Self {
        let clock = Clock::system();
        let directory = std::env::temp_dir().join(format!("outgate-stage-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let settings = AuditSettings { file: directory.join("query.jsonl"), min_free: 0, ..AuditSettings::default() };
        let (log, shards) = Log::open(settings, "stage", clock.clone(), 7, 2).unwrap();
        let mut shards = shards.into_iter();
        let registry = Registry::new(WORDS);
        let source = Source { file: "policy.toml".into(), text: policy(size.allowed, size.scope) };
        let policy = compile([source], &PolicySettings::default()).unwrap();
        let rulebook = Rulebook::new(Arc::new(policy), Zones::empty(), 1, clock.now().wall, registry.tallies());
        let rulebook = Arc::new(ArcSwap::from_pointee(rulebook));
        let parts = GranterParts {
            ledger: Ledger::new(Terms::default(), Caps::default()),
            firewalls: vec![(Box::new(Memory::new("memory", clock.clone())), Arc::default())],
            held: Arc::default(),
            shard: shards.next().unwrap(),
            rulebook: Arc::clone(&rulebook),
            clock: clock.clone(),
        };
        let (granter, granter_thread) = Granter::start(parts, &directory).unwrap();
        let (upstream, upstream_thread) = serve();
        let upstreams = UpstreamSettings {
            servers: vec![ServerSettings { address: upstream, transport: UpstreamTransport::Udp }],
            private: vec!["198.51.100.0/24".parse().unwrap()],
            ..UpstreamSettings::for_everything("default", [])
        };
        let gate = Gate {
            rulebook,
            upstreams: Upstreams::new(vec![upstreams], &clock).unwrap(),
            answers: Answers::new(256 << 20, Duration::ZERO),
            failures: Failures::new(1 << 20),
            warm: WarmCounts::default(),
            refreshes: Refreshes::new().0,
            cover: Cover::new(256 << 20),
            named: Named::new(16 << 20),
            granter,
            slots: Slots::default(),
            passed: Passed::default(),
            terms: Terms::default(),
            deadlines: Deadlines { query: Duration::from_secs(10), firewall: Duration::from_secs(10) },
            hurry: Hurry::default(),
            clock,
        };
        let ports = gate.upstreams.ports();
        Self {
            gate: Arc::new(gate),
            ports,
            outbox: Outbox::new(shards.next().unwrap(), registry.tallies().register()),
            runtime: tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap(),
            directory,
            size,
            threads: vec![granter_thread, upstream_thread],
            upstream,
            log: Some(log),
        }
    }

    /// Every client asks for every cached name once.
    pub(crate) fn fill(&mut self) {
        for asked in self.cached() {
            self.ask(&asked);
        }
    }

    /// Every client's query for every cached name.
    pub(crate) fn cached(&self) -> Vec<Asked> {
        let names = 0..self.size.cached;
        names.flat_map(|name| (1..=self.size.clients).map(move |client| asked(&allowed(name), client))).collect()
    }

    /// Queries for names under nothing that is allowed.
    pub(crate) fn denied(&self) -> Vec<Asked> {
        (0..1_000).map(|name| asked(&format!("x{name}.unknown.example.net"), 1)).collect()
    }

    /// Queries that announce two questions and have one.
    pub(crate) fn malformed(&self) -> Vec<Asked> {
        let mut queries = self.denied();
        for questions in queries.iter_mut().filter_map(|asked| asked.packet.get_mut(5)) {
            *questions = 2;
        }
        queries
    }

    /// One query until its reply has left.
    fn ask(&mut self, asked: &Asked) {
        let arrival = Arrival::new(asked.peer, Transport::Udp, self.gate.clock.now());
        let rulebook = self.gate.rulebook();
        if let Fast::Slow(job) = self.gate.fast(&rulebook, &asked.packet, arrival, &mut self.outbox, || asked.peer) {
            let finished = self.runtime.block_on(self.gate.slow(job, &self.ports));
            assert!(self.gate.finish(finished, &mut self.outbox, || asked.peer).is_none());
        }
        assert_eq!(self.outbox.release().unwrap().iter().count(), 1);
    }

    /// All of `queries` as a door takes them: in batches, each under the rulebook in force, recorded, then released.
    /// How many octets were told.
    #[inline(never)]
    pub(crate) fn run(&mut self, queries: &[Asked]) -> usize {
        let mut told = 0;
        for batch in queries.chunks(BATCH) {
            let rulebook = self.gate.rulebook();
            let at = self.gate.clock.now();
            for asked in batch {
                let arrival = Arrival::new(asked.peer, Transport::Udp, at);
                let fast = self.gate.fast(&rulebook, &asked.packet, arrival, &mut self.outbox, || asked.peer);
                assert!(matches!(fast, Fast::Done), "it is cached, or refused");
            }
            told += self.outbox.release().unwrap().iter().map(|(bytes, _)| bytes.len()).sum::<usize>();
        }
        told
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.gate.granter.stop();
        // An empty datagram ends the upstream.
        let _ = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.send_to(&[], self.upstream));
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        drop(self.log.take());
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// The nth allowed name.
pub(crate) fn allowed(name: usize) -> String {
    format!("h{name}.service-{}.example.com", name / NAMES_PER_RULE)
}

/// One segment, and a rule for every hundred names.
pub(crate) fn policy(names: usize, scope: GrantScope) -> String {
    let mut text = String::from(
        "[[segment]]\nname = \"shop\"\nclients = [\"192.0.2.0/24\"]\ntags = { service = \"shop\", stage = \"bench\" }\n",
    );
    if scope == GrantScope::Segment {
        text.push_str("scope = \"segment\"\n");
    }
    for first in (0..names).step_by(NAMES_PER_RULE) {
        let _ =
            write!(text, "[[rule]]\nid = \"service-{first}\"\naction = \"allow\"\nsegments = [\"shop\"]\nnames = [");
        for name in first..names.min(first + NAMES_PER_RULE) {
            let _ = write!(text, "\"{}\", ", allowed(name));
        }
        text.push_str("]\n");
    }
    text
}

/// The address of a client.
pub(crate) fn address(client: u8) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, client).into()
}

/// An A query with EDNS.
#[expect(clippy::unwrap_used, reason = "a benchmark's own data")]
fn asked(name: &str, client: u8) -> Asked {
    let question = Question { name: Name::parse(name).unwrap(), kind: RecordType::A };
    let mut packet = Vec::new();
    encode_query(&mut packet, 4711, &question, false, || false);
    let peer = SocketAddr::new(address(client), 40_112);
    Asked { packet: packet.into(), peer }
}

/// A name server that gives every name one address, until it gets an empty datagram.
#[expect(clippy::unwrap_used, reason = "a benchmark's own data")]
fn serve() -> (SocketAddr, JoinHandle<()>) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        let mut packet = [0; 1500];
        let mut reply = Vec::new();
        let mut last = 0_u8;
        while let Ok((length, peer)) = socket.recv_from(&mut packet) {
            let mut room = Canonical::new();
            let Some(Ok(query)) = packet.get(..length).map(|packet| parse(packet, &mut room)) else { break };
            let question = query.question();
            last = last.wrapping_add(1);
            let address = IpAddr::V4(Ipv4Addr::new(198, 51, 100, last));
            let record = Record::of_address(question.name.clone(), Ttl::from_wire(3600), address);
            let template = Template::new(&question, Rcode::NOERROR, false, &[record], None, None);
            reply.clear();
            template.write(&mut reply, &query.echo, Ttl::from_wire(3600), 1232);
            let _ = socket.send_to(&reply, peer);
        }
    });
    (address, thread)
}
