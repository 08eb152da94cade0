//! What a large policy costs: `cargo bench --bench rules`. A million names and ten thousand wildcards over a thousand segments
//! are compiled, asked, and weighed; a hash map of the same names is asked beside them, and unbound and pdns_recursor load
//! them as they do a list, where they are installed.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a benchmark's own data")]
#![expect(clippy::disallowed_methods, reason = "what is measured is time")]

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use outgate::name::Name;
use outgate::policy::{Policy, Settings, Source, Verdict, compile, decide};
use outgate::record::RecordType;
use outgate::time::Wall;

const SEGMENTS: usize = 1_000;
const NAMES: usize = 1_000;
const WILDCARDS: usize = 10;
/// Questions of one round, in no order.
const QUESTIONS: usize = 200_000;
const ROUNDS: usize = 5;
/// A moment at which nothing observes.
const NOW: Wall = Wall(1_000_000_000_000_000);

fn main() {
    let directory = std::env::temp_dir().join(format!("outgate-rules-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    println!("{:<28} {:>10} {:>12} {:>10}", "load of the list", "seconds", "MiB", "B/name");
    let policy = load();
    ask(&policy);
    for (name, begin) in [("unbound", unbound as fn(&Path) -> Command), ("pdns_recursor", pdns_recursor)] {
        peer(name, begin(&directory), &directory);
    }
    let _ = fs::remove_dir_all(&directory);
}

/// A name of a segment.
fn written(segment: usize, number: usize) -> String {
    let tld = ["com", "net", "org", "de", "io", "fr", "jp", "info"][number % 8];
    match number % 3 {
        0 => format!("site{number:x}-{segment:x}.{tld}"),
        1 => format!("www.site{number:x}-{segment:x}.{tld}"),
        _ => format!("api.site{number:x}-{segment:x}.{tld}"),
    }
}

/// One file for each segment, as teams have them.
fn file(segment: usize) -> Source {
    let client = Ipv4Addr::from_bits((10 << 24) | (segment as u32) << 8);
    let mut text =
        format!("[[segment]]\nname = \"s{segment}\"\nclients = [\"{client}/24\"]\n[[rule]]\nid = \"r{segment}\"\n");
    write!(text, "action = \"allow\"\nsegments = [\"s{segment}\"]\nnames = [\n").unwrap();
    (0..NAMES).for_each(|number| writeln!(text, "  \"{}\",", written(segment, number)).unwrap());
    (0..WILDCARDS).for_each(|number| writeln!(text, "  \"*.w{number}-{segment}.example\",").unwrap());
    Source { file: format!("s{segment}.toml"), text: text + "]\n" }
}

fn load() -> Arc<Policy> {
    let (before, start) = (resident("self"), Instant::now());
    let policy = Arc::new(compile((0..SEGMENTS).map(file), &Settings::default()).unwrap());
    row("outgate: parse and compile", start.elapsed(), resident("self").saturating_sub(before));
    policy
}

fn row(what: &str, time: Duration, bytes: usize) {
    let names = SEGMENTS * (NAMES + WILDCARDS);
    println!("{what:<28} {:>10.2} {:>12} {:>10}", time.as_secs_f64(), bytes >> 20, bytes / names);
}

fn ask(policy: &Arc<Policy>) {
    let wires = |written: fn(usize, usize) -> String| -> Vec<(IpAddr, Name)> {
        let mut state = 1_u64;
        let mut random = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        let question = |_| {
            let (segment, number) = (random(SEGMENTS), random(NAMES));
            let client = Ipv4Addr::from_bits((10 << 24) | (segment as u32) << 8 | 7);
            (client.into(), Name::parse(&written(segment, number)).unwrap())
        };
        (0..QUESTIONS).map(question).collect()
    };
    let all = (0..SEGMENTS).flat_map(|segment| (0..NAMES).map(move |number| written(segment, number)));
    let map: HashMap<Name, u32, RandomState> = all.map(|name| Name::parse(&name).unwrap()).zip(0..).collect();
    println!("\n{:<28} {:>10} {:>12} {:>10}", "one question, ns", "decide", "hash map", "ratio");
    for (what, questions, permitted) in [
        ("hit", wires(written), true),
        (
            "hit of a wildcard",
            wires(|segment, number| format!("h{number}.w{}-{segment}.example", number % WILDCARDS)),
            true,
        ),
        ("miss, beside a name", wires(|segment, number| format!("x.{}", written(segment, number))), false),
        ("miss, nowhere near", wires(|segment, number| format!("x{number}.no{segment}.com")), false),
    ] {
        let askers: Vec<_> = questions.iter().map(|(client, _)| policy.asker(*client).unwrap()).collect();
        let decided = best(|| {
            for ((_, name), asker) in questions.iter().zip(&askers) {
                let verdict = decide(policy, *asker, name.as_wire(), RecordType::A, NOW);
                assert_eq!(matches!(black_box(verdict), Verdict::Permit(_)), permitted);
            }
        });
        let looked_up = best(|| {
            for (_, name) in &questions {
                black_box(map.get(name.as_wire()));
            }
        });
        println!("{what:<28} {decided:>10.0} {looked_up:>12.0} {:>10.2}", decided / looked_up);
    }
    println!("\n{:<28} {:>10} {:>12} {:>10}", "load of the list", "seconds", "MiB", "B/name");
}

/// The best round's nanoseconds for one question: others only ever add.
fn best(mut round: impl FnMut()) -> f64 {
    let mut rounds: Vec<f64> = Vec::new();
    for _ in 0..ROUNDS {
        let start = Instant::now();
        round();
        rounds.push(start.elapsed().as_secs_f64() * 1e9 / QUESTIONS as f64);
    }
    rounds.into_iter().fold(f64::INFINITY, f64::min)
}

/// Resident bytes of a process.
fn resident(process: &str) -> usize {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kibibytes| kibibytes.parse::<usize>().ok()).unwrap_or(0) << 10
}

const PORT: u16 = 15_353;

/// A program that is killed in the end.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How long a program takes until it answers, and what it weighs then. A list of its own makes it grow: what it weighs
/// without one is a few MiB.
fn peer(name: &str, mut command: Command, directory: &Path) {
    let start = Instant::now();
    let log = fs::File::create(directory.join("log")).unwrap();
    let spawned =
        command.current_dir(directory).stdout(log.try_clone().unwrap()).stderr(log).stdin(Stdio::null()).spawn();
    let Ok(child) = spawned else {
        println!("{name:<28} {:>10}", "not here");
        return;
    };
    let mut running = Running(child);
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.connect((Ipv4Addr::LOCALHOST, PORT)).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
    let last = Name::parse(&written(SEGMENTS - 1, NAMES - 1)).unwrap();
    let query = [&[0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0], last.as_wire(), &[0, 1, 0, 1]].concat();
    let mut reply = [0; 512];
    while running.0.try_wait().unwrap().is_none() && start.elapsed() < Duration::from_secs(120) {
        let _ = socket.send(&query);
        if socket.recv(&mut reply).is_ok() {
            row(name, start.elapsed(), resident(&running.0.id().to_string()));
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    println!("{name:<28} {:>10}", "no answer");
}

fn each_name(mut each: impl FnMut(&str)) {
    for segment in 0..SEGMENTS {
        (0..NAMES).for_each(|number| each(&written(segment, number)));
        (0..WILDCARDS).for_each(|number| each(&format!("*.w{number}-{segment}.example")));
    }
}

/// A local zone each; a zone is its own wildcard.
fn unbound(directory: &Path) -> Command {
    let mut text = format!(
        "server:\n directory: \"{0}\"\n chroot: \"\"\n username: \"\"\n pidfile: \"\"\n use-syslog: no\n do-daemonize: no\n \
         interface: 127.0.0.1@{PORT}\n num-threads: 1\n module-config: \"iterator\"\n",
        directory.display()
    );
    each_name(|name| writeln!(text, " local-zone: \"{}\" always_refuse", name.trim_start_matches("*.")).unwrap());
    fs::write(directory.join("unbound.conf"), text).unwrap();
    let mut command = Command::new("unbound");
    command.args(["-d", "-c", "unbound.conf"]);
    command
}

/// A response policy zone.
fn pdns_recursor(directory: &Path) -> Command {
    let mut zone = "$TTL 60\n@ SOA localhost. root.localhost. 1 60 60 60 60\n@ NS localhost.\n".to_owned();
    each_name(|name| writeln!(zone, "{name} CNAME .").unwrap());
    fs::write(directory.join("list.rpz"), zone).unwrap();
    let lua = format!("rpzFile(\"{}/list.rpz\", {{policyName=\"list\"}})\n", directory.display());
    fs::write(directory.join("rpz.lua"), lua).unwrap();
    let text = format!(
        "local-address=127.0.0.1\nlocal-port={PORT}\ndaemon=no\nthreads=1\ndnssec=off\nsocket-dir={0}\n\
         lua-config-file={0}/rpz.lua\nloglevel=3\n",
        directory.display()
    );
    fs::write(directory.join("recursor.conf"), text).unwrap();
    let mut command = Command::new("pdns_recursor");
    command.arg(format!("--config-dir={}", directory.display()));
    command
}
