//! What a new grant costs, end to end: `cargo bench --bench granter [-- CASE...]`.
//!
//! The real granter with its journal, its ledger and its shard of the log, in a directory of its own; a firewall that
//! takes everything at once, or this kernel's nftables in a network namespace of its own (needs root). Every offer is
//! of one new address for one name of some 20 letters. Offers are made by one thread, as many at once as the row
//! says; the CPU of the granter's thread is read from /proc, kernel included, so that rows can be compared on a machine
//! that does other things too.
//!
//! Cases: `offers` (CPU and wait per grant by how many wait at once), `rate` (the wait at 5,000 new grants a second),
//! `few` (20,000 offers, 64 at once, for `valgrind --tool=callgrind`),
//! `million` (a million live: memory, a revocation that keeps all and one that ends all with offers meanwhile, restart).

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use outgate::audit::{self, Log, RecordId};
use outgate::firewall::nftables::{Hook, Nftables};
use outgate::firewall::{Common, Cut, Cutter, Firewall, FirewallError, nftables};
use outgate::gate::{GrantQuery, Granter, GranterParts, Rulebook, WORDS};
use outgate::grant::{Caps, Change, Ledger, Terms};
use outgate::metric::Registry;
use outgate::name::Name;
use outgate::net::Element;
use outgate::policy::{self, Cleared, Layout, Policy, Source, Verdict, compile, decide, inspect};
use outgate::record::{AddressTrust, Answer, Origin, Rcode, Record, RecordType};
use outgate::time::{Clock, Tick, Ttl, Wall};
use outgate::zones::Zones;

/// Segments of equal size, so that a million elements fit under the segments' cap.
const SEGMENTS: u32 = 8;
/// Clients in each, so that they fit under the clients' cap.
const CLIENTS: u32 = 1000;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// A firewall that takes everything at once and remembers nothing.
struct Void;

impl Firewall for Void {
    fn name(&self) -> &str {
        "void"
    }

    fn required(&self) -> bool {
        true
    }

    fn adopt(&mut self, _: &Layout, _: Tick) -> Result<Vec<(Element, Tick)>, FirewallError> {
        Ok(Vec::new())
    }

    fn arrange(&mut self, _: &Layout) -> Result<(), FirewallError> {
        Ok(())
    }

    fn apply(&mut self, _: &[Change], _: Tick) -> Result<Vec<usize>, FirewallError> {
        Ok(Vec::new())
    }

    fn cutter(&self, _: &Arc<[Cut]>) -> Cutter {
        Box::new(|| Ok(0))
    }

    fn drifted(&mut self) -> Result<bool, FirewallError> {
        Ok(false)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Void,
    Nftables,
}

impl Kind {
    const fn word(self) -> &'static str {
        match self {
            Self::Void => "void",
            Self::Nftables => "nftables",
        }
    }

    fn build(self, clock: &Clock) -> Outcome<Box<dyn Firewall>> {
        Ok(match self {
            Self::Void => Box::new(Void),
            Self::Nftables => {
                let settings = nftables::Settings::new(Hook::Sets);
                Box::new(Nftables::new(Common::new("kernel"), settings, clock.clone())?)
            }
        })
    }
}

fn policy_text() -> String {
    let segment = |n: u32| format!("[[segment]]\nname = \"segment-{n}\"\nclients = [\"10.{n}.0.0/16\"]\n");
    let mut text: String = (0..SEGMENTS).map(segment).collect();
    text.push_str("[[rule]]\nid = \"web\"\naction = \"allow\"\nsegments = [\"*\"]\nnames = [\"**.example.org\"]\n");
    text
}

/// Who makes offers.
struct Asking {
    clock: Clock,
    policy: Arc<Policy>,
    granter: Granter,
}

/// A granter and what is around it.
struct Node {
    asking: Arc<Asking>,
    thread: JoinHandle<()>,
    log: Log,
    directory: PathBuf,
}

impl Node {
    fn start(kind: Kind) -> Outcome<Self> {
        let directory = std::env::temp_dir().join(format!("outgate-granter-{}", std::process::id()));
        Self::start_in(kind, directory)
    }

    fn start_in(kind: Kind, directory: PathBuf) -> Outcome<Self> {
        fs::create_dir_all(&directory)?;
        let clock = Clock::system();
        let source = Source { file: "policy.toml".to_owned(), text: policy_text() };
        let policy = compile([source], &policy::Settings::default()).map_err(|mistakes| format!("{mistakes:?}"))?;
        let policy = Arc::new(policy);
        let settings = audit::Settings { file: directory.join("query.jsonl"), min_free: 0, ..Default::default() };
        let (log, shards) = Log::open(settings, "bench", clock.clone(), clock.now().wall.0, 1)?;
        let registry = Registry::new(WORDS);
        let zones = Zones::compile(&[]).map_err(|mistakes| format!("{mistakes:?}"))?;
        let rulebook = Rulebook::new(Arc::clone(&policy), zones, 1, clock.now().wall, registry.tallies());
        let parts = GranterParts {
            ledger: Ledger::new(Terms::default(), Caps::default()),
            firewalls: vec![(kind.build(&clock)?, Arc::default())],
            held: Arc::default(),
            shard: shards.into_iter().next().ok_or("no shard")?,
            rulebook: Arc::new(ArcSwap::from_pointee(rulebook)),
            clock: clock.clone(),
        };
        let (granter, thread) = Granter::start(parts, &directory)?;
        // Once it has answered, its thread has its name.
        runtime()?.block_on(granter.list(GrantQuery::default()));
        Ok(Self { asking: Arc::new(Asking { clock, policy, granter }), thread, log, directory })
    }

    /// Ends it; the directory stays.
    fn stop(self) -> Outcome<PathBuf> {
        self.asking.granter.stop();
        self.thread.join().map_err(|_| "the granter panicked")?;
        self.log.close()?;
        Ok(self.directory)
    }

    /// Ends it and removes the directory.
    fn end(self) -> Outcome<()> {
        Ok(fs::remove_dir_all(self.stop()?)?)
    }
}

impl Asking {
    /// The inspected answer to the `n`-th question.
    fn cleared(&self, n: u32) -> Outcome<Cleared> {
        let client = Ipv4Addr::new(
            10,
            u8::try_from(n % SEGMENTS)?,
            u8::try_from(n / SEGMENTS % CLIENTS / 250)?,
            u8::try_from(n / SEGMENTS % CLIENTS % 250)? + 1,
        );
        let name = Name::parse(&format!("n{n:07}.example.org"))?;
        let asker = self.policy.asker(IpAddr::V4(client)).ok_or("no segment")?;
        let Verdict::Permit(permit) = decide(&self.policy, asker, name.as_wire(), RecordType::A, Wall(0)) else {
            return Err("refused".into());
        };
        let address = IpAddr::V4(Ipv4Addr::from_bits(0x2000_0000 + n));
        let answer = Answer {
            rcode: Rcode::NOERROR,
            authoritative: false,
            records: vec![Record::of_address(name, Ttl::from_wire(300), address)],
            soa: None,
            ede: None,
            proof: None,
            origin: Origin { name: Arc::from("default"), trust: AddressTrust::Upstream(Arc::from([])) },
        };
        Ok(inspect(permit, answer))
    }

    async fn offer(&self, n: u32) -> bool {
        let Ok(cleared) = self.cleared(n) else { return false };
        let query = RecordId { boot: 7, shard: 1, sequence: n.into() };
        self.granter.offer(cleared, self.clock.tick() + Duration::from_secs(300), Some(query)).await.is_ok()
    }
}

/// CPU time of the granter's thread, in microseconds, the kernel's on its behalf included.
fn granter_cpu() -> Outcome<f64> {
    for task in fs::read_dir("/proc/self/task")? {
        let task = task?.path();
        if fs::read_to_string(task.join("comm"))?.trim() == "granter" {
            let text = fs::read_to_string(task.join("schedstat"))?;
            let nanoseconds: f64 = text.split(' ').next().ok_or("no schedstat")?.parse()?;
            return Ok(nanoseconds / 1000.0);
        }
    }
    Err("no granter".into())
}

/// CPU time of the whole process, in microseconds.
fn process_cpu() -> Outcome<f64> {
    let mut sum = 0.0;
    for task in fs::read_dir("/proc/self/task")? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        sum += text.split(' ').next().ok_or("no schedstat")?.parse::<f64>()? / 1000.0;
    }
    Ok(sum)
}

/// Resident memory in bytes, without what is mapped from files.
fn resident() -> Outcome<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("RssAnon")).ok_or("no RssAnon")?;
    let kilobytes: f64 = line.split_whitespace().nth(1).ok_or("no number")?.parse()?;
    Ok(kilobytes * 1024.0)
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// Offers `numbers`, `at_once` at a time; how long each waited, in microseconds.
fn offer_all(asking: &Arc<Asking>, numbers: std::ops::Range<u32>, at_once: u32) -> Outcome<Vec<u64>> {
    let runtime = runtime()?;
    let next = Arc::new(AtomicU64::new(numbers.start.into()));
    let end = u64::from(numbers.end);
    let local = tokio::task::LocalSet::new();
    let waits = local.block_on(&runtime, async {
        let tasks: Vec<_> = (0..at_once)
            .map(|_| {
                let (asking, next) = (Arc::clone(asking), Arc::clone(&next));
                tokio::task::spawn_local(async move {
                    let mut waits = Vec::new();
                    loop {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        if n >= end {
                            return Some(waits);
                        }
                        let since = asking.clock.tick();
                        if !asking.offer(u32::try_from(n).ok()?).await {
                            return None;
                        }
                        waits.push(u64::try_from(asking.clock.tick().since(since).as_micros()).ok()?);
                    }
                })
            })
            .collect();
        let mut waits = Vec::new();
        for task in tasks {
            waits.extend(task.await.ok().flatten()?);
        }
        Some(waits)
    });
    let mut waits = waits.ok_or("an offer failed")?;
    waits.sort_unstable();
    Ok(waits)
}

fn quantile(sorted: &[u64], part: f64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a place in a list"
    )]
    let place = (sorted.len().saturating_sub(1) as f64 * part).round() as usize;
    sorted.get(place).copied().unwrap_or(0)
}

fn offers(kind: Kind) -> Outcome<()> {
    println!(
        "{:<10} {:>8} {:>12} {:>12} {:>9} {:>9} {:>9}",
        "firewall", "at once", "granter us", "process us", "p50 us", "p99 us", "max us"
    );
    for (at_once, count) in [(1, 20_000), (4, 40_000), (16, 100_000), (64, 100_000), (256, 100_000)] {
        let node = Node::start(kind)?;
        offer_all(&node.asking, 0..5_000, at_once)?;
        let (granter, process) = (granter_cpu()?, process_cpu()?);
        let waits = offer_all(&node.asking, 5_000..5_000 + count, at_once)?;
        let (granter, process) = (granter_cpu()? - granter, process_cpu()? - process);
        println!(
            "{:<10} {:>8} {:>12.2} {:>12.2} {:>9} {:>9} {:>9}",
            kind.word(),
            at_once,
            granter / f64::from(count),
            process / f64::from(count),
            quantile(&waits, 0.5),
            quantile(&waits, 0.99),
            quantile(&waits, 1.0)
        );
        node.end()?;
    }
    Ok(())
}

/// Offers at `rate` a second from `first` on until `stop`; sorted waits, and how many were made.
fn paced(asking: &Arc<Asking>, first: u32, rate: u32, stop: &Arc<AtomicBool>) -> Outcome<Vec<u64>> {
    let runtime = runtime()?;
    let local = tokio::task::LocalSet::new();
    let waits = local.block_on(&runtime, async {
        let start = asking.clock.tick();
        let mut tasks = Vec::new();
        let mut n = 0_u32;
        while !stop.load(Ordering::Relaxed) {
            // Everything that is due by now, then a short sleep: offers come in clumps of a millisecond's worth.
            let due = asking.clock.tick().since(start).as_micros() * u128::from(rate) / 1_000_000;
            while u128::from(n) < due {
                let (asking, number) = (Arc::clone(asking), first + n);
                let planned = start + Duration::from_micros(u64::from(n) * 1_000_000 / u64::from(rate));
                tasks.push(tokio::task::spawn_local(async move {
                    // Not since it was due: the pacing's own delay is no wait for the firewall.
                    let since = asking.clock.tick().max(planned);
                    asking.offer(number).await.then(|| asking.clock.tick().since(since).as_micros())
                }));
                n += 1;
            }
            tokio::time::sleep(Duration::from_micros(100)).await;
        }
        let mut waits = Vec::new();
        for task in tasks {
            waits.push(u64::try_from(task.await.ok().flatten()?).ok()?);
        }
        Some(waits)
    });
    let mut waits = waits.ok_or("an offer failed")?;
    waits.sort_unstable();
    Ok(waits)
}

/// Offers at a rate while `meanwhile` runs.
fn paced_while<T>(
    asking: &Arc<Asking>,
    first: u32,
    rate: u32,
    meanwhile: impl FnOnce() -> T,
) -> Outcome<(T, Vec<u64>)> {
    let stop = Arc::new(AtomicBool::new(false));
    let pacing = {
        let (asking, stop) = (Arc::clone(asking), Arc::clone(&stop));
        std::thread::spawn(move || paced(&asking, first, rate, &stop).map_err(|error| error.to_string()))
    };
    let done = meanwhile();
    stop.store(true, Ordering::Relaxed);
    let waits = pacing.join().map_err(|_| "the pacing panicked")??;
    Ok((done, waits))
}

fn show_waits(what: &str, waits: &[u64]) {
    let [p50, p99, p999, max] = [0.5, 0.99, 0.999, 1.0].map(|part| quantile(waits, part));
    println!("{what}: {} offers waited p50 {p50} us, p99 {p99} us, p99.9 {p999} us, max {max} us", waits.len());
}

fn few(kind: Kind) -> Outcome<()> {
    let node = Node::start(kind)?;
    offer_all(&node.asking, 0..20_000, 64)?;
    node.end()
}

fn rate(kind: Kind) -> Outcome<()> {
    let node = Node::start(kind)?;
    let sleep = || std::thread::sleep(Duration::from_secs(5));
    let (before, ((), waits)) = (granter_cpu()?, paced_while(&node.asking, 0, 5_000, sleep)?);
    #[expect(clippy::cast_precision_loss, reason = "a count of thousands")]
    let each = (granter_cpu()? - before) / waits.len() as f64;
    show_waits(&format!("{} at 5,000/s, {each:.2} us of granter each", kind.word()), &waits);
    node.end()
}

fn million(kind: Kind) -> Outcome<()> {
    const LIVE: u32 = 1_000_000;
    let node = Node::start(kind)?;
    let (memory, cpu) = (resident()?, granter_cpu()?);
    let waits = offer_all(&node.asking, 0..LIVE, 64)?;
    let word = kind.word();
    show_waits(&format!("{word}: filling to 1,000,000"), &waits);
    drop(waits);
    println!("{word}: {:.2} us of granter per grant on the way", (granter_cpu()? - cpu) / f64::from(LIVE));
    println!("{word}: {:.0} bytes per live grant", (resident()? - memory) / f64::from(LIVE));
    let size = fs::metadata(node.directory.join("journal"))?.len();
    println!("{word}: journal of {} MB", size >> 20);

    let revoke = || -> Outcome<_> {
        let since = node.asking.clock.tick();
        let revoked = runtime()?.block_on(node.asking.granter.revoke()).reasons;
        Ok((revoked, node.asking.clock.tick().since(since)))
    };
    let (done, waits) = paced_while(&node.asking, LIVE, 1_000, revoke)?;
    let (revoked, took) = done?;
    show_waits(&format!("{word}: {revoked} revoked of 1,000,000 in {took:?}"), &waits);

    let clock = node.asking.clock.clone();
    let directory = node.stop()?;
    let since = clock.tick();
    let node = Node::start_in(kind, directory)?;
    let live = node.asking.granter.counts().live.load(Ordering::Relaxed);
    println!("{word}: started again with {live} live in {:?}", clock.tick().since(since));
    node.end()
}

fn main() -> Outcome<()> {
    let mut cases: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    if cases.is_empty() {
        cases = ["offers", "rate", "million"].map(str::to_owned).to_vec();
    }
    let mut kinds = vec![Kind::Void, Kind::Nftables];
    if cases.iter().any(|case| kinds.iter().any(|kind| kind.word() == case)) {
        kinds.retain(|kind| cases.iter().any(|case| kind.word() == case));
    }
    // The granter's thread inherits it.
    if nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).is_err() {
        println!("nftables is left out: not root");
        kinds.retain(|kind| *kind != Kind::Nftables);
    }
    for kind in kinds {
        for case in &cases {
            match case.as_str() {
                "offers" => offers(kind)?,
                "rate" => rate(kind)?,
                "million" => million(kind)?,
                "few" => few(kind)?,
                "void" | "nftables" => {}
                other => return Err(format!("no case {other}").into()),
            }
        }
    }
    Ok(())
}
