//! Gates around which things change at the wrong moment: firewalls that fail or lag behind, ends of observing, swaps.

mod closing;
mod under_way;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::*;
use crate::audit::{Log, Settings as AuditSettings};
use crate::firewall::{Cut, Cutter, Firewall, FirewallError, Memory, MemoryHandle, Mode};
use crate::grant::{Caps, Change, Ledger};
use crate::metric::Registry;
use crate::name::Name;
use crate::net::Element;
use crate::policy::{Layout, Permit, Source, Verdict, compile, decide, inspect};
use crate::record::{AddressTrust, Answer, Origin, Question, Rcode, Record, RecordType};
use crate::time::{Tick, Ttl, Wall};
use crate::upstream::{ServerSettings, Settings as UpstreamSettings, Transport as UpstreamTransport};
use crate::zones::Zones;

/// Nothing on this machine takes this long; it only bounds a test that fails.
const BOUND: Duration = Duration::from_secs(20);

/// How long past its end an answer may be told.
const STALE: Duration = Duration::from_secs(3_600);

const POLICY: &str = r#"
[[segment]]
name    = "shop"
clients = ["192.0.2.0/24"]
[[rule]]
id       = "api"
action   = "allow"
segments = ["*"]
names    = ["*.example.com"]
"#;

/// A firewall that outlives its granter, and fails in all it is told to.
#[derive(Clone)]
struct Gateway {
    memory: Arc<Mutex<Memory>>,
    handle: MemoryHandle,
    required: bool,
    broken: Arc<AtomicBool>,
    /// Cuts go on for as long as this holds.
    cutting: Arc<AtomicBool>,
}

impl Gateway {
    fn new(clock: &Clock, required: bool) -> Self {
        let memory = Memory::new(if required { "gateway" } else { "advisory" }, clock.clone());
        let handle = memory.handle();
        Self { memory: Arc::new(Mutex::new(memory)), handle, required, broken: Arc::default(), cutting: Arc::default() }
    }

    fn check(&self) -> Result<(), FirewallError> {
        if self.broken.load(Ordering::SeqCst) { Err(FirewallError::Deadline) } else { Ok(()) }
    }

    /// The segments that observe.
    fn observing(&self) -> Vec<String> {
        let layout = self.handle.layout();
        layout.segments.iter().filter(|segment| segment.observe).map(|segment| segment.name.to_string()).collect()
    }
}

impl Firewall for Gateway {
    fn name(&self) -> &str {
        if self.required { "gateway" } else { "advisory" }
    }

    fn required(&self) -> bool {
        self.required
    }

    fn adopt(&mut self, layout: &Layout, now: Tick) -> Result<Vec<(Element, Tick)>, FirewallError> {
        self.check()?;
        self.memory.lock().adopt(layout, now)
    }

    fn arrange(&mut self, layout: &Layout) -> Result<(), FirewallError> {
        self.check()?;
        self.memory.lock().arrange(layout)
    }

    fn apply(&mut self, changes: &[Change], now: Tick) -> Result<Vec<usize>, FirewallError> {
        self.check()?;
        self.memory.lock().apply(changes, now)
    }

    fn cutter(&self, cuts: &Arc<[Cut]>) -> Cutter {
        let (checked, cutter) = (self.check(), self.memory.lock().cutter(cuts));
        let cutting = Arc::clone(&self.cutting);
        Box::new(move || {
            while cutting.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            checked.and_then(|()| cutter())
        })
    }

    fn drifted(&mut self) -> Result<bool, FirewallError> {
        self.check()?;
        self.memory.lock().drifted()
    }
}

/// A gate with a state directory of its own.
struct World {
    gate: Arc<Gate>,
    /// Not running yet.
    refresher: Option<Refresher>,
    clock: Clock,
    runtime: tokio::runtime::Runtime,
    registry: Registry,
    outbox: Outbox<()>,
    thread: std::thread::JoinHandle<()>,
    log: Log,
}

/// A directory that is removed at the end.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("outgate-gate-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl World {
    fn start(place: &Place, clock: &Clock, policy: &str, gateways: &[&Gateway], server: Option<SocketAddr>) -> Self {
        let settings = AuditSettings {
            file: place.0.join("query.jsonl"),
            rotate_size: 1 << 20,
            min_free: 0,
            ..AuditSettings::default()
        };
        let (log, shards) = Log::open(settings, "test", clock.clone(), 7, 2).unwrap();
        let [granter_shard, outbox_shard] = <[_; 2]>::try_from(shards).unwrap();
        let registry = Registry::new(WORDS);
        let rulebook = Arc::new(ArcSwap::from(rulebook(policy, 1, clock, &registry)));
        let firewall = |gateway: &&Gateway| (Box::new((*gateway).clone()) as Box<dyn Firewall>, Arc::default());
        let parts = GranterParts {
            ledger: Ledger::new(Terms::default(), Caps::default()),
            firewalls: gateways.iter().map(firewall).collect(),
            held: Arc::default(),
            shard: granter_shard,
            rulebook: Arc::clone(&rulebook),
            clock: clock.clone(),
        };
        let (granter, thread) = Granter::start(parts, &place.0).unwrap();
        let upstream = |address| UpstreamSettings {
            name: Arc::from("default"),
            zones: Vec::new(),
            segments: Vec::new(),
            servers: vec![ServerSettings { address, transport: UpstreamTransport::Udp }],
            private: vec!["198.51.100.0/24".parse().unwrap()],
            authorities: None,
            dnssec: crate::upstream::Mode::Off,
        };
        let (refreshes, refresher) = Refreshes::new();
        let gate = Gate {
            rulebook,
            upstreams: Upstreams::new(server.map(upstream).into_iter().collect(), clock).unwrap(),
            answers: Answers::new(1 << 20, STALE),
            failures: Failures::new(1 << 20),
            warm: WarmCounts::default(),
            refreshes,
            cover: Cover::new(1 << 20),
            named: Named::new(1 << 20),
            granter,
            slots: Slots::default(),
            passed: Passed::default(),
            terms: Terms::default(),
            deadlines: Deadlines { query: BOUND, firewall: BOUND },
            hurry: Hurry::default(),
            clock: clock.clone(),
        };
        Self {
            gate: Arc::new(gate),
            refresher: Some(refresher),
            clock: clock.clone(),
            runtime: tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap(),
            outbox: Outbox::new(outbox_shard, registry.tallies().register()),
            registry,
            thread,
            log,
        }
    }

    /// Gives the granter something to do until it has done what is expected of it.
    fn until(&self, done: impl Fn() -> bool) {
        for _ in 0..1000 {
            if done() {
                return;
            }
            self.runtime.block_on(self.gate.granter.list(GrantQuery::default()));
        }
        panic!("the granter does not do it");
    }

    fn offer(&self) -> Result<crate::grant::Granted, NotGranted> {
        let told_until = self.clock.now().tick + Duration::from_secs(60);
        let id = RecordId { boot: 7, shard: 1, sequence: 1 };
        self.runtime.block_on(self.gate.granter.offer(inspect(self.permit(), answer()), told_until, Some(id)))
    }

    /// A permit to ask for [`question`].
    fn permit(&self) -> Permit {
        let policy = Arc::clone(&self.gate.rulebook().policy);
        let asker = policy.asker("192.0.2.1".parse().unwrap()).unwrap();
        let question = question();
        match decide(&policy, asker, question.name.as_wire(), question.kind, self.clock.now().wall) {
            Verdict::Permit(permit) => permit,
            other => panic!("the policy allows it: {other:?}"),
        }
    }

    fn stop(self) {
        self.gate.granter.stop();
        self.thread.join().unwrap();
        drop(self.gate);
        drop(self.outbox);
        self.log.close().unwrap();
    }
}

fn rulebook(policy: &str, epoch: u64, clock: &Clock, registry: &Registry) -> Arc<Rulebook> {
    let source = Source { file: "test.toml".into(), text: policy.into() };
    let policy = Arc::new(compile([source], &crate::policy::Settings::default()).unwrap());
    Arc::new(Rulebook::new(policy, Zones::empty(), epoch, clock.now().wall, registry.tallies()))
}

fn question() -> Question {
    Question { name: Name::parse("api.example.com").unwrap(), kind: RecordType::A }
}

/// The answer to [`question`].
fn answer() -> Answer {
    let address = "198.51.100.7".parse().unwrap();
    Answer {
        rcode: Rcode::NOERROR,
        authoritative: false,
        records: vec![Record::of_address(question().name, Ttl::from_wire(60), address)],
        soa: None,
        ede: None,
        proof: None,
        origin: Origin { name: Arc::from("zone"), trust: AddressTrust::Zone },
    }
}

/// Three segments that observe for 10, 20 and 30 s from here.
fn observing(clock: &Clock) -> String {
    let segment = |number: u64| {
        let until = Wall(clock.now().wall.0 + number * 10_000_000);
        format!(
            "[[segment]]\nname = \"s{number}\"\nclients = [\"192.0.{number}.0/24\"]\nmode = \"observe\"\nuntil = {until}\n"
        )
    };
    (1..=3).map(segment).collect()
}

/// I8 with two firewalls: the one that lost its elements, or is new, is given them before an answer relies on it.
#[test]
fn a_restart_gives_every_firewall_what_any_of_them_holds() {
    let (place, clock) = (Place::new(), Clock::manual());
    let (one, two) = (Gateway::new(&clock, true), Gateway::new(&clock, true));
    let world = World::start(&place, &clock, POLICY, &[&one], None);
    world.offer().unwrap();
    world.stop();
    let before = one.handle.elements();
    assert_eq!(before.len(), 1);
    let world = World::start(&place, &clock, POLICY, &[&two, &one], None);
    assert_eq!((two.handle.elements(), one.handle.elements()), (before.clone(), before));
    world.offer().unwrap();
    world.stop();
    // What is not upheld any more goes from both.
    let world = World::start(&place, &clock, "[[segment]]\nname = \"shop\"\n", &[&two, &one], None);
    assert_eq!((two.handle.elements(), one.handle.elements()), (vec![], vec![]));
    world.stop();
}

#[test]
fn every_end_of_observing_reaches_the_firewall() {
    let (place, clock) = (Place::new(), Clock::manual());
    let gateway = Gateway::new(&clock, true);
    let world = World::start(&place, &clock, &observing(&clock), &[&gateway], None);
    let ready = || world.gate.granter.counts().ready();
    assert_eq!(gateway.observing(), ["s1", "s2", "s3"]);
    clock.advance(Duration::from_secs(10));
    world.until(|| gateway.observing() == ["s2", "s3"]);
    clock.advance(Duration::from_secs(10));
    world.until(|| gateway.observing() == ["s3"]);
    // It does not take the third at first.
    gateway.broken.store(true, Ordering::SeqCst);
    clock.advance(Duration::from_secs(10));
    world.until(|| !ready());
    gateway.broken.store(false, Ordering::SeqCst);
    world.until(|| gateway.observing().is_empty() && ready());
    world.stop();
}

#[test]
fn an_advisory_firewall_holds_nothing_up() {
    let (place, clock) = (Place::new(), Clock::manual());
    let (advisory, gateway) = (Gateway::new(&clock, false), Gateway::new(&clock, true));
    advisory.broken.store(true, Ordering::SeqCst);
    let world = World::start(&place, &clock, POLICY, &[&advisory, &gateway], None);
    world.offer().unwrap();
    let next = rulebook(&observing(&clock), 2, &clock, &world.registry);
    assert_eq!(world.runtime.block_on(world.gate.swap(next)).unwrap().reasons, 1, "one grant is revoked");
    assert_eq!((gateway.observing().len(), gateway.handle.elements()), (3, vec![]));
    // As soon as it can be used, it has all that the others have.
    let next = rulebook(POLICY, 3, &clock, &world.registry);
    world.runtime.block_on(world.gate.swap(next)).unwrap();
    world.offer().unwrap();
    advisory.broken.store(false, Ordering::SeqCst);
    clock.advance(Duration::from_secs(5));
    world.until(|| !advisory.handle.elements().is_empty());
    assert_eq!(advisory.handle.elements(), gateway.handle.elements());
    assert_eq!(advisory.handle.layout(), gateway.handle.layout());
    world.stop();
}

/// I3: what a required firewall refuses was not granted, in no firewall.
#[test]
fn an_advisory_firewall_opens_nothing_that_was_refused() {
    let (place, clock) = (Place::new(), Clock::manual());
    let (advisory, gateway) = (Gateway::new(&clock, false), Gateway::new(&clock, true));
    let world = World::start(&place, &clock, POLICY, &[&advisory, &gateway], None);
    gateway.handle.set_mode(Mode::FailTo("198.51.100.7".parse().unwrap()));
    assert!(world.offer().is_err());
    world.runtime.block_on(world.gate.granter.list(GrantQuery::default()));
    assert_eq!(advisory.handle.elements(), []);
    world.stop();
}

/// What the ledger holds to be open may not be, in a firewall that cannot be asked.
#[test]
fn nothing_is_granted_while_a_required_firewall_cannot_be_used() {
    let (place, clock) = (Place::new(), Clock::manual());
    let gateway = Gateway::new(&clock, true);
    let world = World::start(&place, &clock, POLICY, &[&gateway], None);
    world.offer().unwrap();
    gateway.broken.store(true, Ordering::SeqCst);
    gateway.handle.lose();
    let refused = world.offer();
    assert!(matches!(&refused, Err(NotGranted::Firewall(name, _)) if &**name == "gateway"), "{refused:?}");
    gateway.broken.store(false, Ordering::SeqCst);
    world.offer().unwrap();
    assert_eq!(gateway.handle.elements().len(), 1, "it was repaired first");
    world.stop();
}

/// I6: while a batch made under a rulebook has not left, what it tells is not closed.
#[test]
fn a_swap_waits_for_who_uses_the_rulebook_before() {
    let (place, clock) = (Place::new(), Clock::manual());
    let gateway = Gateway::new(&clock, true);
    let world = World::start(&place, &clock, POLICY, &[&gateway], None);
    world.offer().unwrap();
    let slot = world.gate.passed.register();
    let in_use = world.gate.use_rulebook(&slot);
    let next = rulebook("[[segment]]\nname = \"shop\"\n", 2, &clock, &world.registry);
    let gate = Arc::clone(&world.gate);
    let swap = world.runtime.spawn(async move { gate.swap(next).await });
    while world.gate.rulebook().epoch == 1 {
        std::thread::yield_now();
    }
    // Orders pass through the granter: a revocation that did not wait would be among them.
    for _ in 0..100 {
        world.runtime.block_on(world.gate.granter.list(GrantQuery::default()));
    }
    assert_eq!((in_use.epoch, gateway.handle.elements().len()), (1, 1));
    drop(in_use);
    assert_eq!(world.runtime.block_on(swap).unwrap().unwrap().reasons, 1);
    assert_eq!(gateway.handle.elements(), []);
    assert_eq!(world.gate.use_rulebook(&slot).epoch, 2);
    world.stop();
}
