//! The whole gate without its doors: real rooms, a log in a directory of its own, a firewall that remembers, upstream
//! servers on loopback, and a clock that a test moves. Real time passes for I/O alone.
//!
//! What every reply must keep is checked at every reply, whatever the test is about: see [`World::send`].

mod packet;
mod upstream;

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use outgate::audit::{self, Log, Transport};
use outgate::cache::{self, Answers, Cover, Failures, Named};
use outgate::document::Mistake;
use outgate::firewall::{Memory, MemoryHandle};
use outgate::gate::{
    Arrival, Candidate, Deadlines, Fast, Finished, Gate, GrantQuery, Granter, GranterParts, Hurry, Outbox, Passed,
    Refreshes, Rulebook, Secrets, Slots, WORDS, WarmCounts, Warmer,
};
use outgate::grant::{Caps, Ledger, Terms};
use outgate::metric::Registry;
use outgate::net::{Prefix, Scope};
use outgate::policy::{self, Forwarder, Site};
use outgate::time::Clock;
use outgate::upstream::{ServerSettings, Settings, Transport as UpstreamTransport, Upstreams};
use outgate::wire::read_proxy;
use outgate::zones::{self, Zones};
use serde_json::Value;

pub(crate) use packet::{Ask, Reply};
pub(crate) use upstream::{Act, Answer, Server};

/// What its cookies are made with.
const SECRET: [u8; 16] = *b"a secret of ours";

/// What a gate is built from.
#[derive(Clone, Debug, Default)]
pub(crate) struct Setup {
    /// Policy files.
    pub(crate) policy: Vec<policy::Source>,
    /// Files of a candidate; none: there is none.
    pub(crate) candidate: Vec<policy::Source>,
    /// Zone files.
    pub(crate) zones: Vec<zones::Source>,
    /// Who asks for others.
    pub(crate) forwarders: Vec<Forwarder>,
    /// `[grant]`.
    pub(crate) terms: Terms,
    /// `[cache]`.
    pub(crate) cache: cache::Settings,
    /// Each gets a server of its own. None: one named `default` for everything, which may answer with the addresses
    /// that are reserved for documentation.
    pub(crate) upstreams: Vec<Plan>,
}

/// One upstream.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) name: String,
    pub(crate) zones: Vec<outgate::name::Name>,
    pub(crate) segments: Vec<String>,
    pub(crate) private: Vec<Prefix>,
}

impl Plan {
    fn default_upstream() -> Self {
        let private = ["198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32"];
        let private = private.iter().map(|prefix| prefix.parse().unwrap()).collect();
        Self { name: "default".to_owned(), zones: Vec::new(), segments: Vec::new(), private }
    }

    fn sites(&self) -> impl Iterator<Item = Site> {
        let segments: Vec<Arc<str>> = self.segments.iter().map(|segment| segment.as_str().into()).collect();
        let server = policy::Server::Upstream(segments);
        self.zones.iter().map(move |zone| Site { apex: zone.clone(), server: server.clone() })
    }
}

/// Nothing on this machine takes this long; it only bounds a test that fails.
const BOUND: Duration = Duration::from_secs(20);

/// All of a query on the slow path, as the app has it.
const QUERY_DEADLINE: Duration = Duration::from_millis(1900);

/// A running gate and everything around it.
pub(crate) struct World {
    pub(crate) clock: Clock,
    pub(crate) gate: Arc<Gate>,
    pub(crate) firewall: MemoryHandle,
    pub(crate) servers: Vec<Server>,
    pub(crate) runtime: tokio::runtime::Runtime,
    outbox: Outbox<()>,
    warmer: Warmer,
    registry: Registry,
    zones: Vec<zones::Source>,
    forwarders: Vec<Forwarder>,
    own_addresses: Vec<Prefix>,
    /// What each upstream serves, and for whom.
    routes: Vec<Site>,
    log: Log,
    granter: std::thread::JoinHandle<()>,
    directory: Directory,
    /// The log as it is being written, read up to what was seen.
    lines: File,
    /// Packets sent so far.
    sent: usize,
    /// Query records seen so far.
    recorded: usize,
}

/// The log and the journal; gone with the world.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.0);
    }
}

/// A packet whose reply is not sealed yet.
pub(crate) struct Held {
    packet: Vec<u8>,
    arrival: Arrival,
    /// Packets that went upstream before it came.
    before: usize,
    finished: Option<Finished>,
    decided_under: u64,
}

/// What came of a packet.
#[derive(Debug)]
pub(crate) struct Exchange {
    /// The reply; `None`: silence.
    pub(crate) reply: Option<Vec<u8>>,
    /// The records written meanwhile, in the order of the file.
    pub(crate) records: Vec<Value>,
}

impl Exchange {
    /// The query's record.
    pub(crate) fn record(&self) -> &Value {
        self.records.iter().find(|record| record["type"] == "query").expect("every packet has a record")
    }
}

impl World {
    /// Builds the rooms as the app does, without its sockets.
    pub(crate) fn start(setup: Setup) -> Result<Self, Vec<Mistake>> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let clock = Clock::manual();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let Setup { policy, candidate, zones, forwarders, terms, cache, mut upstreams } = setup;
        if upstreams.is_empty() {
            upstreams.push(Plan::default_upstream());
        }
        let servers: Vec<Server> =
            upstreams.iter().map(|plan| runtime.block_on(Server::start(plan.name.clone()))).collect();
        let routes: Vec<Site> = upstreams.iter().flat_map(Plan::sites).collect();
        let settings = upstreams.into_iter().zip(&servers).map(|(plan, server)| Settings {
            name: plan.name.into(),
            zones: plan.zones,
            segments: plan.segments.into_iter().map(|segment| (segment.into(), None)).collect(),
            servers: vec![ServerSettings { address: server.address, transport: UpstreamTransport::Udp }],
            private: plan.private,
            authorities: None,
            dnssec: outgate::upstream::Mode::Off,
        });
        let upstreams = Upstreams::new(settings.collect(), &clock)?;
        let own_addresses: Vec<Prefix> = servers.iter().map(|server| server.address.ip().into()).collect();
        let (policy, compiled) = compile(&policy, &zones, &forwarders, &own_addresses, &routes)?;
        let beside = match &*candidate {
            [] => None,
            files => Some(compile(files, &zones, &forwarders, &own_addresses, &routes)?.0),
        };
        let beside = beside.map(|policy| Arc::new(Candidate::new(Arc::new(policy), clock.now().wall, 0)));

        let directory = Directory(std::env::temp_dir().join(format!("outgate-gate-{}-{number}", std::process::id())));
        fs::create_dir_all(&directory.0).unwrap();
        let settings = audit::Settings {
            file: directory.0.join("query.jsonl"),
            rotate_size: 1 << 20,
            min_free: 0,
            ..audit::Settings::default()
        };
        let (log, shards) = Log::open(settings, "test", clock.clone(), number, 2).unwrap();
        let lines = File::open(directory.0.join("query.jsonl")).unwrap();
        let [granter_shard, outbox_shard] = <[_; 2]>::try_from(shards).expect("two shards");
        let registry = Registry::new(WORDS);
        let rulebook = Rulebook::new(Arc::new(policy), compiled, 1, clock.now().wall, registry.tallies())
            .giving_cookies(Secrets::new(SECRET))
            .beside(beside);
        let rulebook = Arc::new(ArcSwap::from_pointee(rulebook));
        let memory = Memory::new("memory", clock.clone());
        let firewall = memory.handle();
        let parts = GranterParts {
            ledger: Ledger::new(terms, Caps::default()),
            firewalls: vec![(Box::new(memory), Arc::default())],
            held: Arc::default(),
            shard: granter_shard,
            rulebook: Arc::clone(&rulebook),
            clock: clock.clone(),
        };
        let (granter, thread) = Granter::start(parts, &directory.0).unwrap();
        let (refreshes, refresher) = Refreshes::new();
        let gate = Gate {
            rulebook,
            upstreams,
            answers: Answers::new(1 << 22, cache.stale),
            failures: Failures::new(1 << 20),
            warm: WarmCounts::default(),
            refreshes,
            cover: Cover::new(1 << 22),
            named: Named::new(1 << 20),
            granter,
            slots: Slots::default(),
            passed: Passed::default(),
            terms,
            deadlines: Deadlines { query: QUERY_DEADLINE, firewall: BOUND },
            hurry: Hurry::default(),
            clock: clock.clone(),
        };
        let gate = Arc::new(gate);
        runtime.spawn(refresher.run(Arc::clone(&gate)));
        let mut world = Self {
            clock,
            warmer: Warmer::new(Arc::clone(&gate)),
            gate,
            firewall,
            servers,
            runtime,
            outbox: Outbox::new(outbox_shard, registry.tallies().register()),
            registry,
            zones,
            forwarders,
            own_addresses,
            routes,
            log,
            granter: thread,
            directory,
            lines,
            sent: 0,
            recorded: 0,
        };
        world.new_records();
        Ok(world)
    }

    /// The server of an upstream.
    pub(crate) fn server(&self, name: &str) -> Option<&Server> {
        self.servers.iter().find(|server| server.name == name)
    }

    /// One packet, both paths, until its reply has left or it is clear that there is none. Fails where the reply, its
    /// record or the firewall breaks what all of them must keep:
    ///
    /// - one record for the packet, and none for a packet that was not sent (I7);
    /// - of a refusal nothing went upstream (I1);
    /// - every address told is open for this client, for the TTL told at least (I4);
    /// - the id, the question's octets and RD are the query's; QR and RA are set, AD is not; OPT only for an OPT.
    pub(crate) fn send(&mut self, packet: &[u8], peer: SocketAddr, transport: Transport) -> Result<Exchange, String> {
        let held = self.hold(packet, peer, transport);
        self.release(held)
    }

    /// The first half of [`World::send`]: until it is decided what becomes of the packet, before that is sealed.
    pub(crate) fn hold(&mut self, packet: &[u8], peer: SocketAddr, transport: Transport) -> Held {
        self.sent += 1;
        let arrival = Arrival::new(peer, transport, self.clock.now());
        let before = self.upstream_packets();
        let finished = match self.gate.fast(&self.gate.rulebook(), packet, arrival.clone(), &mut self.outbox, || ()) {
            Fast::Done => None,
            Fast::Slow(job) => Some(self.runtime.block_on(self.gate.slow(job, &self.gate.upstreams.ports()))),
        };
        let decided_under = self.gate.rulebook().epoch;
        Held { packet: packet.to_vec(), arrival, before, finished, decided_under }
    }

    /// The second half: the reply is sealed and leaves.
    pub(crate) fn release(&mut self, held: Held) -> Result<Exchange, String> {
        let Held { packet, arrival, before, finished, decided_under } = held;
        // What the policy before allowed may have been asked before this one came.
        let before = if decided_under == self.gate.rulebook().epoch { before } else { self.upstream_packets() };
        let mut finished = finished;
        while let Some(one) = finished {
            let again = self.gate.finish(one, &mut self.outbox, || ());
            finished = again.map(|job| self.runtime.block_on(self.gate.slow(job, &self.gate.upstreams.ports())));
        }
        self.rest();
        self.end(&packet, arrival, before)
    }

    /// Until nothing is asked upstream any more.
    fn rest(&self) {
        let rested = async {
            while !self.gate.refreshes.is_empty() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let rested = self.runtime.block_on(async { tokio::time::timeout(BOUND, rested).await });
        assert!(rested.is_ok(), "a refresh does not end");
    }

    /// Takes the one reply out, and judges it.
    fn end(&mut self, packet: &[u8], arrival: Arrival, before: usize) -> Result<Exchange, String> {
        let replies: Vec<Vec<u8>> = {
            let released = self.outbox.release().map_err(|error| error.to_string())?;
            released.iter().map(|(bytes, ())| bytes.to_vec()).collect()
        };
        let records = self.new_records();
        let queries: Vec<&Value> = records.iter().filter(|record| record["type"] == "query").collect();
        let [record] = queries.as_slice() else {
            return Err(format!("one packet, and {} query records", queries.len()));
        };
        let refused = record["verdict"] == "deny" && record["cache"].is_null();
        if refused && self.upstream_packets() != before {
            return Err(format!("refused, and yet a packet went upstream (I1): {record}"));
        }
        if replies.len() > 1 {
            return Err(format!("one packet, and {} replies", replies.len()));
        }
        let reply = replies.into_iter().next();
        if let Some(reply) = &reply {
            // A forwarder's header stands before the message.
            let proxied = self.gate.rulebook().policy.takes_proxy(arrival.sender());
            let message = read_proxy(packet).filter(|_| proxied).map_or(packet, |(_, message)| message);
            let parsed = Reply::read(reply)?;
            parsed.check_echo(message)?;
            // What the node answers of itself opens nothing: loopback, and the addresses of ipv4only.arpa.
            if record["reason"] != "special" {
                self.check_open(&parsed, &arrival, record)?;
            }
        }
        Ok(Exchange { reply, records })
    }

    /// I4: what is told is open for who was told it, for as long as it was told.
    fn check_open(&self, reply: &Reply, arrival: &Arrival, record: &Value) -> Result<(), String> {
        let rulebook = self.gate.rulebook();
        let named = |segment: &&policy::Segment| record["segment"] == *segment.name;
        let Some(segment) = rulebook.policy.segments().iter().find(named) else {
            return reply
                .addresses()
                .next()
                .map_or(Ok(()), |told| Err(format!("{told:?} was told to nobody's client")));
        };
        let client =
            record["client"].as_str().and_then(|client| client.parse().ok()).ok_or("a record without client")?;
        if rulebook.policy.identity(arrival.sender()).is_none() && client != arrival.sender() {
            return Err(format!("the record of {} is {client}'s", arrival.sender()));
        }
        if segment.observes(arrival.at.wall) {
            return Ok(());
        }
        let elements = self.firewall.elements();
        for (address, ttl) in reply.addresses() {
            let until = arrival.at.tick + Duration::from_secs(ttl.into());
            let mine = |from| from == Scope::Client(client) || from == Scope::Segment(segment.id);
            if !elements.iter().any(|(element, ends)| element.to == address && mine(element.from) && *ends >= until) {
                return Err(format!("{address} was told with TTL {ttl} and is not open that long (I4)"));
            }
        }
        Ok(())
    }

    /// How many packets went upstream, a repetition of the same not counted.
    pub(crate) fn upstream_packets(&self) -> usize {
        self.servers.iter().map(|server| server.seen().len()).sum()
    }

    /// Time passes, and what is to be kept warm is.
    pub(crate) fn pass(&mut self, time: Duration) {
        self.clock.advance(time);
        self.runtime.block_on(self.warmer.settle());
        // What the time ends in the granter has ended when it answers.
        let _ = self.runtime.block_on(self.gate.granter.list(GrantQuery::default()));
    }

    /// Another policy takes the place of the one in force, as on a reload; how many reasons for grants went.
    pub(crate) fn reload(&mut self, files: &[policy::Source]) -> Result<u64, Vec<Mistake>> {
        let (policy, zones) = compile(files, &self.zones, &self.forwarders, &self.own_addresses, &self.routes)?;
        let epoch = self.gate.rulebook().epoch + 1;
        let rulebook = Rulebook::new(Arc::new(policy), zones, epoch, self.clock.now().wall, self.registry.tallies())
            .giving_cookies(Secrets::new(SECRET))
            .beside(self.gate.rulebook().candidate.clone());
        let revoked = self.runtime.block_on(self.gate.swap(Arc::new(rulebook)));
        self.runtime.block_on(self.warmer.settle());
        revoked
            .map(|closed| closed.reasons)
            .map_err(|(name, error)| vec![Mistake::general(format!("{name}: {error}"), "")])
    }

    /// The records that were written since the last call, in the order of the file.
    pub(crate) fn new_records(&mut self) -> Vec<Value> {
        let mut lines = String::new();
        self.lines.read_to_string(&mut lines).unwrap();
        let records: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        self.recorded += records.iter().filter(|record| record["type"] == "query").count();
        records
    }

    /// Stops everything; the log must be whole, with one query record for every packet (I7).
    pub(crate) fn finish(self) -> Result<(), String> {
        let Self { gate, outbox, log, granter, directory, sent, recorded, runtime, .. } = self;
        gate.granter.stop();
        granter.join().map_err(|_| "the granter panicked".to_owned())?;
        drop(outbox);
        drop(runtime);
        log.close().map_err(|error| error.to_string())?;
        let report = audit::verify(&directory.0.join("query.jsonl"), &mut |_| ()).map_err(|error| error.to_string())?;
        let mut wrong = String::new();
        if !report.is_clean() || !report.notes.is_empty() {
            _ = write!(wrong, "the log is not whole (I7): {report}");
        }
        if sent != recorded {
            _ = write!(wrong, "{sent} packets and {recorded} records (I7)");
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }
}

/// Policy and zones as the app reads them: what an upstream serves within a zone is not of it.
fn compile(
    files: &[policy::Source],
    zones: &[zones::Source],
    forwarders: &[Forwarder],
    own_addresses: &[Prefix],
    routes: &[Site],
) -> Result<(policy::Policy, Zones), Vec<Mistake>> {
    let mut zones = Zones::compile(zones)?;
    let local = zones.apexes().map(|apex| Site { apex: apex.clone(), server: policy::Server::Zone });
    let settings = policy::Settings {
        forwarders: forwarders.to_vec(),
        client_ca: false,
        own_addresses: own_addresses.to_vec(),
        never_grant: Vec::new(),
        sites: local.chain(routes.iter().cloned()).collect(),
        caps: None,
        directory: String::new(),
    };
    for Site { apex, .. } in routes {
        zones.carve(apex);
    }
    Ok((policy::compile(files.iter().cloned(), &settings)?, zones))
}

/// Who asks where a test does not say.
pub(crate) fn client() -> IpAddr {
    IpAddr::from([192, 0, 2, 1])
}
