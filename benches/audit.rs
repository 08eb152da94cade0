//! What a query's record costs its worker: rendered, and written to a real file in batches, by one shard and by two.
//! Last, what it costs the thread in the background that hashes closed files.
//!
//! Processor time of those threads (`getrusage`), not of what the kernel writes back later.
//! `cargo bench --bench audit` prints every row; `cargo bench --bench audit -- render hot 100000` runs one of them alone,
//! for callgrind.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Barrier;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use outgate::audit::{
    CacheUse, Counts, Durability, Encoder, Event, Log, Outcome, QueryEvent, RecordId, Rendered, Ruled, Settings, Shard,
    Stated, Statement, Transport,
};
use outgate::name::Name;
use outgate::net::Services;
use outgate::policy::Reason;
use outgate::record::{ExtendedError, Rcode, Record, RecordType};
use outgate::time::{Clock, Ttl, Wall};

/// Records per row.
const RECORDS: usize = 600_000;
const BOOT: u64 = 0x7f3a_91c2_0b1d_44e0;

/// What the records borrow.
struct Specimen {
    qname: Name,
    answers: Vec<Record>,
    services: Vec<Services>,
    ede: ExtendedError,
    rendered: Option<Rendered>,
}

impl Specimen {
    #[expect(clippy::unwrap_used, reason = "a benchmark's own data")]
    fn new() -> Self {
        let qname = Name::parse("n12345.example.org").unwrap();
        let answer = Record::of_address(qname.clone(), Ttl::from_wire(300), Ipv4Addr::new(198, 51, 100, 131).into());
        let mut specimen = Self {
            answers: vec![answer],
            services: vec![Services::Tcp(443, 443)],
            ede: ExtendedError::new(ExtendedError::BLOCKED, "no rule of segment build allows this name"),
            qname,
            rendered: None,
        };
        specimen.rendered = Some(Rendered::new(&specimen.answer()));
        specimen
    }

    /// Of a cached, open answer.
    fn answer(&self) -> Statement<'_> {
        Statement {
            qname: Some(self.qname.as_wire()),
            qtype: Some(RecordType::A),
            outcome: Outcome::Allow,
            enforced: true,
            reason: Reason::Rule,
            rule: Some(Ruled { id: "packages", owner: None, ticket: None }),
            policy: 0x9c1f_5be2_7a40_d3e1,
            rcode: Some(Rcode::NOERROR),
            answers: &self.answers,
            services: &self.services,
            ede: None,
            why: None,
            upstream: Some("default"),
            origin: Some(RecordId { boot: BOOT, shard: 1, sequence: 1_734_017 }),
        }
    }

    /// Of a refused name.
    fn refusal(&self) -> Statement<'_> {
        Statement {
            outcome: Outcome::Deny,
            reason: Reason::Default,
            rule: None,
            rcode: Some(Rcode::NXDOMAIN),
            answers: &[],
            services: &[],
            ede: Some(&self.ede),
            upstream: None,
            origin: None,
            ..self.answer()
        }
    }

    /// The `n`-th query.
    fn query<'a>(&self, n: u64, stated: Stated<'a>) -> QueryEvent<'a> {
        QueryEvent {
            at: Wall(1_795_233_184_000_000 + n * 3),
            client: IpAddr::V4(Ipv4Addr::from_bits(0x7f01_0000 | (n as u32 & 0xffff))),
            port: 1024 + (n % 60_000) as u16,
            transport: Transport::Udp,
            asked_by: None,
            certificate: None,
            cookie: None,
            labels: "",
            segment: Some(("build", "")),
            qid: Some(n as u16),
            stated,
            flags: 0x8180,
            bytes: 66,
            cache: None,
            ttl: 300 - (n / 4096) as u32 % 300,
            until: None,
            shadow: None,
            latency_us: 3 + n % 16,
        }
    }

    fn told<'a>(&self, n: u64, stated: Stated<'a>) -> QueryEvent<'a> {
        let until = Some(Wall(1_795_233_584_000_000 + n * 7));
        QueryEvent { cache: Some(CacheUse::Hit), until, ..self.query(n, stated) }
    }

    fn first(&self, n: u64) -> QueryEvent<'_> {
        self.told(n, Stated::Plain(self.answer()))
    }

    fn hot(&self, n: u64) -> QueryEvent<'_> {
        self.told(n, self.rendered.as_ref().map_or_else(|| Stated::Plain(self.answer()), Stated::Rendered))
    }

    fn denied(&self, n: u64) -> QueryEvent<'_> {
        self.query(n, Stated::Plain(self.refusal()))
    }
}

type Case = fn(&Specimen, u64) -> QueryEvent<'_>;

/// A cached answer whose record was prepared, the same one told for the first time, a refused name.
const CASES: [(&str, Case); 3] = [("hot", Specimen::hot), ("first", Specimen::first), ("denied", Specimen::denied)];

/// User and system time in microseconds.
struct Spent(f64, f64);

impl Spent {
    /// Processor time so far.
    #[expect(clippy::unwrap_used, reason = "a benchmark")]
    fn by(who: UsageWho) -> Self {
        let micros = |time: TimeVal| time.tv_sec() as f64 * 1e6 + time.tv_usec() as f64;
        let usage = getrusage(who).unwrap();
        Self(micros(usage.user_time()), micros(usage.system_time()))
    }

    /// What was spent on `work`.
    fn on<T>(who: UsageWho, work: impl FnOnce() -> T) -> (Self, T) {
        let before = Self::by(who);
        let done = work();
        let now = Self::by(who);
        (Self(now.0 - before.0, now.1 - before.1), done)
    }
}

fn row(name: &str, records: usize, bytes: u64, Spent(user, system): Spent) {
    let n = records as f64;
    println!("{name:<40} {:>7.0} {:>9.3} {:>9.3} {:>9.3}", bytes as f64 / n, (user + system) / n, user / n, system / n);
}

/// Renders into a buffer that is emptied every 64 records; how many bytes that gave.
fn render(case: Case, records: usize) -> u64 {
    let specimen = Specimen::new();
    let mut out = Vec::new();
    let mut bytes = 0;
    let mut encoder = Encoder::new(BOOT, 3, "og-eu1-a");
    for n in 0..records as u64 {
        if n % 64 == 0 {
            bytes += out.len() as u64;
            out.clear();
        }
        let id = RecordId { boot: BOOT, shard: 3, sequence: 1_829_331 + n };
        encoder.encode(&mut out, id, &Event::Query(case(&specimen, n)));
        black_box(&out);
    }
    bytes + out.len() as u64
}

/// A log of its own on the disk that the build is on; removed at the end.
struct Files(PathBuf);

impl Files {
    fn open(number: u16, shards: u16, durability: Durability) -> (Self, Log, Vec<Shard>) {
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("bench-audit-{number}"));
        let _ = std::fs::remove_dir_all(&directory);
        #[expect(clippy::unwrap_used, reason = "a benchmark")]
        std::fs::create_dir_all(&directory).unwrap();
        let settings = Settings {
            file: directory.join("query.jsonl"),
            rotate_size: 512 << 20,
            min_free: 0,
            durability,
            ..Settings::default()
        };
        #[expect(clippy::unwrap_used, reason = "a benchmark")]
        let (log, shards) = Log::open(settings, "og-eu1-a", Clock::system(), BOOT, shards).unwrap();
        (Self(directory), log, shards)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Appends and commits in batches. `busy` is what else is done for each record, counted in renderings.
#[expect(clippy::unwrap_used, reason = "a benchmark")]
fn write(shard: &mut Shard, case: Case, records: usize, batch: usize, busy: usize) {
    let specimen = Specimen::new();
    for first in (0..records as u64).step_by(batch) {
        render(case, batch * busy);
        for n in first..first + batch as u64 {
            let id = shard.reserve();
            shard.append(id, &Event::Query(case(&specimen, n)));
        }
        shard.commit().unwrap();
    }
}

/// One shard.
fn alone(case: Case, records: usize, batch: usize) -> (u64, Spent) {
    let (_files, log, mut shards) = Files::open(0, 1, Durability::Process);
    let before = log.counts().bytes;
    let write = || shards.iter_mut().for_each(|shard| write(shard, case, records, batch, 0));
    let (spent, ()) = Spent::on(UsageWho::RUSAGE_THREAD, write);
    (log.counts().bytes - before, spent)
}

/// Two shards on two threads: in one file, or each in its own.
fn two(records: usize, batch: usize, files: u16, busy: usize) -> (u64, Spent) {
    let mut opened: Vec<_> = (0..files).map(|number| Files::open(number, 2 / files, Durability::Process)).collect();
    let count = |opened: &[(Files, Log, Vec<Shard>)]| opened.iter().map(|(_, log, _)| log.counts().bytes).sum::<u64>();
    let before = count(&opened);
    let shards: Vec<Shard> = opened.iter_mut().flat_map(|(_, _, shards)| shards.drain(..)).collect();
    let start = Barrier::new(2);
    let (spent, ()) = Spent::on(UsageWho::RUSAGE_SELF, || {
        std::thread::scope(|scope| {
            for mut shard in shards {
                let start = &start;
                scope.spawn(move || {
                    start.wait();
                    write(&mut shard, Specimen::hot, records / 2, batch, busy);
                });
            }
        });
    });
    (count(&opened) - before, spent)
}

/// Threads that commit batches without pause, each its own shard: commits of each and records of all a second, by the
/// clock on the wall.
fn committed(durability: Durability, threads: u16, batch: usize, commits: usize) -> (f64, f64) {
    let (_files, _log, shards) = Files::open(0, threads, durability);
    let clock = Clock::system();
    let began = clock.tick();
    std::thread::scope(|scope| {
        for mut shard in shards {
            scope.spawn(move || write(&mut shard, Specimen::hot, commits * batch, batch, 0));
        }
    });
    let rate = commits as f64 / clock.tick().since(began).as_secs_f64();
    (rate, rate * batch as f64 * f64::from(threads))
}

/// A file is filled and closed; what it takes to read and hash it.
#[expect(clippy::unwrap_used, reason = "a benchmark")]
fn seal(records: usize) -> (u64, Spent) {
    let (_files, mut log, mut shards) = Files::open(0, 1, Durability::Process);
    shards.iter_mut().for_each(|shard| write(shard, Specimen::hot, records, 64, 0));
    drop(shards);
    log.tick().unwrap();
    let Counts { bytes, rotations, .. } = log.counts();
    assert_eq!(rotations, 1, "it was not full");
    let (spent, ()) = Spent::on(UsageWho::RUSAGE_SELF, || log.close().unwrap());
    (bytes, spent)
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    if let ["render", case, records] = *words {
        let case = CASES.iter().find(|(name, _)| *name == case);
        let bytes = case.zip(records.parse().ok()).map(|((_, case), records)| render(*case, records));
        println!("{bytes:?} bytes");
        return;
    }
    println!("{:<40} {:>7} {:>9} {:>9} {:>9}", "", "bytes", "us", "user", "system");
    for (name, case) in CASES {
        let (spent, bytes) = Spent::on(UsageWho::RUSAGE_THREAD, || render(case, RECORDS));
        row(&format!("render {name}"), RECORDS, bytes, spent);
    }
    for (name, case) in CASES {
        for batch in [64, 8, 1] {
            let (bytes, spent) = alone(case, RECORDS, batch);
            row(&format!("write {name} by {batch}"), RECORDS, bytes, spent);
        }
    }
    for (batch, busy) in [(64, 0), (64, 16), (1, 0), (1, 16)] {
        for files in [1, 2] {
            let (bytes, spent) = two(RECORDS, batch, files, busy);
            row(&format!("two threads, files {files}, by {batch}, busy {busy}"), RECORDS, bytes, spent);
        }
    }
    println!("{:<40} {:>12} {:>12}", "", "commits/s", "records/s");
    for (durability, commits) in [(Durability::Process, 2000), (Durability::Disk, 500)] {
        for (threads, batch) in [(1, 1), (1, 64), (1, 1024), (4, 1), (4, 64), (4, 1024)] {
            let (commits, records) = committed(durability, threads, batch, commits);
            let name = format!("{durability:?}, threads {threads}, by {batch}");
            println!("{name:<40} {commits:>12.0} {records:>12.0}");
        }
    }
    let (bytes, spent) = seal(RECORDS);
    row("hash a closed file", RECORDS, bytes, spent);
}
