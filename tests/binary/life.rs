//! From start to stop, under odd circumstances.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::dns::{Client, Stream, a, addresses};
use crate::harness::{BOUND, OUTGATE, POLICY, Site, until};
use crate::programs::{Running, are_here, command};
use crate::upstream::{Upstream, with_addresses};

/// An upstream that takes this long.
fn slow(takes: Duration) -> Upstream {
    Upstream::saying(move |question| {
        std::thread::sleep(takes);
        Some(with_addresses(question, 1))
    })
}

fn closed_in_order(site: &Site) {
    let records = site.records();
    assert_eq!(records.last().unwrap()["op"], "close", "{records:?}");
    site.verified();
}

#[test]
fn what_was_taken_is_answered_before_the_end() {
    let upstream = slow(Duration::from_millis(300));
    let site = Site::new().with_servers(&[upstream.address]);
    let mut node = site.start();
    let clients: Vec<Client> = (0..8).map(|_| Client::new(site.dns)).collect();
    for (number, client) in clients.iter().enumerate() {
        client.socket.send(&a(&format!("x{number}.example.net")).to_vec().unwrap()).unwrap();
    }
    let mut stream = Stream::new(site.dns);
    stream.send(&a("tcp.example.net").to_vec().unwrap());
    until("the upstream is asked", || upstream.asked() >= 9);
    let start = Instant::now();
    node.signal(Signal::SIGTERM);
    // Who is impatient changes nothing.
    node.signal(Signal::SIGTERM);
    node.signal(Signal::SIGINT);
    for client in &clients {
        assert!(client.receive().is_some(), "it was taken, and is answered");
    }
    assert!(stream.receive().is_some());
    assert_eq!(stream.receive(), None);
    assert_eq!(node.wait(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert_eq!(site.queries().len(), 9);
    closed_in_order(&site);
}

#[test]
fn monitoring_sees_that_it_is_stopping() {
    let upstream = slow(Duration::from_secs(1));
    let site = Site::new().with_servers(&[upstream.address]);
    let mut node = site.start();
    let client = Client::new(site.dns);
    client.socket.send(&a("x.example.net").to_vec().unwrap()).unwrap();
    until("the upstream is asked", || upstream.asked() >= 1);
    node.signal(Signal::SIGTERM);
    until("it is not ready any more", || site.get("/health/ready").is_some_and(|(status, _)| status == 503));
    assert_eq!(site.get("/health/ready").unwrap().1.trim(), r#"{"ready":false,"waiting":["the node is stopping"]}"#);
    assert_eq!(site.run(&["status"]).code, Some(0));
    assert!(client.receive().is_some());
    assert_eq!(node.wait(), Some(0));
    assert!(site.get("/health/live").is_none() && !site.path("admin.sock").exists());
    closed_in_order(&site);
}

#[test]
fn an_idle_connection_does_not_hold_up_the_end() {
    let site = Site::new();
    let mut node = site.start();
    let mut idle = Stream::new(site.dns);
    idle.ask(&a("www.corp.example"));
    let _silent = Stream::new(site.health);
    let start = Instant::now();
    assert_eq!(node.stop(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert_eq!(idle.receive(), None);
    closed_in_order(&site);
}

#[test]
fn a_signal_during_the_start_ends_it_in_order_or_at_once() {
    let site = Site::new();
    let mut policy = POLICY.to_owned();
    for number in 0..5_000 {
        write!(
            policy,
            "[[rule]]\nid=\"r{number}\"\naction=\"allow\"\nsegments=[\"loop\"]\nnames=[\"r{number}.example.com\"]\n"
        )
        .unwrap();
    }
    site.file("policy/loop.toml", &policy);
    for number in 0..8 {
        let mut node = site.spawn();
        // Spread over the start, wherever this machine is by then.
        std::thread::sleep(Duration::from_millis(number * 20));
        node.signal(Signal::SIGTERM);
        // No code: before it could take signals.
        assert!(matches!(node.wait(), Some(0) | None), "{}", node.stderr());
        assert!(!node.stderr().contains("panicked"), "{}", node.stderr());
    }
    site.file("policy/loop.toml", POLICY);
    assert_eq!(site.start().stop(), Some(0));
    closed_in_order(&site);
}

/// Takes a lease on a file: whoever opens it waits until this ends, as on a network file system that hangs.
const HOLD: &str = "import fcntl, signal, sys
signal.signal(signal.SIGIO, signal.SIG_IGN)
file = open(sys.argv[1], 'r+')
fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print('held', flush=True)
sys.stdin.read()";

#[test]
fn a_reload_that_hangs_does_not_prevent_the_end() {
    let site = Site::new();
    let mut node = site.start();
    let policy = site.path("policy/loop.toml").display().to_string();
    if !are_here(&["python3"]) {
        return;
    }
    let mut python = command("python3");
    let python = python.args(["-c", HOLD, &policy]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let Running(holder) = &mut Running::start(python);
    let mut line = String::new();
    BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "held\n");
    node.signal(Signal::SIGHUP);
    until("the reload waits for its file", || {
        fs::read_to_string("/proc/locks")
            .unwrap()
            .lines()
            .any(|line| line.contains("LEASE") && line.contains("BREAKING"))
    });
    // Nobody who asks notices.
    assert_eq!(addresses(&Client::new(site.dns).told("www.corp.example")), ["192.0.2.80"]);
    assert_eq!(node.stop(), Some(0), "{}", node.stderr());
    drop(holder.stdin.take());
    holder.wait().unwrap();
    closed_in_order(&site);
}

#[test]
fn a_reader_of_its_messages_that_goes_away_is_no_reason_to_end() {
    let site = Site::new();
    // As `outgate run 2>&1 | head -1`.
    let mut child = site.command(&["run"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("configuration"), "{line}");
    until("it is ready", || site.get("/health/ready").is_some_and(|(status, _)| status == 200));
    // Each of these has something to say.
    site.run(&["reload"]);
    site.file("policy/loop.toml", "nonsense");
    assert_eq!(site.run(&["reload"]).code, Some(2));
    assert_eq!(addresses(&Client::new(site.dns).told("www.corp.example")), ["192.0.2.80"]);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    closed_in_order(&site);
}

#[test]
fn verbs_whose_reader_goes_away_end_quietly() {
    let site = Site::new();
    let _node = site.start();
    let client = Client::new(site.dns);
    for _ in 0..2000 {
        client.told("www.corp.example");
    }
    for verb in
        ["log tail -n 100000", "log verify", "status", "grants", "check", "explain --client 127.0.0.1 a.b", "--help"]
    {
        let script = format!("{OUTGATE} {verb} | head -c 1 >/dev/null; exit ${{PIPESTATUS[0]}}");
        let ended = Command::new("bash").args(["-c", &script]).current_dir(&site.directory).output().unwrap();
        assert_eq!((ended.status.code(), ended.stderr.as_slice()), (Some(0), &b""[..]), "{verb}");
    }
}

#[test]
fn starts_without_standard_streams() {
    let site = Site::new();
    let script = format!("exec {OUTGATE} run <&- >&- 2>&-");
    let mut command = Command::new("bash");
    command.args(["-c", &script]).current_dir(&site.directory);
    let mut node = site.spawn_command(&mut command);
    until("it is ready", || site.get("/health/ready").is_some_and(|(status, _)| status == 200));
    // None of its messages went into a file that got the number of a standard stream.
    for file in ["state/lock", "state/journal", "query.jsonl"] {
        assert!(!fs::read_to_string(site.path(file)).unwrap().contains("INFO"), "{file}");
    }
    assert_eq!(node.stop(), Some(0));
    closed_in_order(&site);
}

#[test]
fn its_working_directory_may_go_away() {
    let site = Site::new();
    let gone = site.path("gone");
    fs::create_dir(&gone).unwrap();
    let config = site.path("outgate.toml").display().to_string();
    let mut command = site.command(&["run", "-c", &config]);
    command.current_dir(&gone);
    let mut node = site.spawn_command(&mut command);
    until("it is ready", || site.get("/health/ready").is_some_and(|(status, _)| status == 200));
    fs::remove_dir(&gone).unwrap();
    assert_eq!(site.run(&["reload", "-c", &config]).code, Some(0));
    assert_eq!(addresses(&Client::new(site.dns).told("www.corp.example")), ["192.0.2.80"]);
    assert_eq!(node.stop(), Some(0));
    closed_in_order(&site);
}

/// Sets the limit of open files, hard and soft.
fn with_open_files(site: &Site, limit: u64) -> Command {
    let mut command = Command::new("bash");
    command.args(["-c", &format!("ulimit -n {limit}; exec {OUTGATE} run")]).current_dir(&site.directory);
    command.env_remove("RUST_LOG").process_group(0);
    command
}

#[test]
fn few_open_files_are_enough_or_told() {
    let upstream = Upstream::start();
    let site = Site::new().with_servers(&[upstream.address]);
    let mut node = site.spawn_command(&mut with_open_files(&site, 128));
    until("it is ready", || site.get("/health/ready").is_some_and(|(status, _)| status == 200));
    let before = node.descriptors();
    // More connections than there are descriptors, from many addresses.
    let mut held = Vec::new();
    for number in 0..150_u8 {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&std::net::SocketAddr::from(([127, 0, 2, number % 100 + 1], 0)).into()).unwrap();
        socket.connect(&site.dns.into()).unwrap();
        held.push(socket);
    }
    until("it is told", || node.stderr().contains("limit of open files"));
    // What needs no new descriptor goes on.
    assert_eq!(addresses(&Client::new(site.dns).told("www.corp.example")), ["192.0.2.80"]);
    drop(held);
    until("descriptors are free again", || node.descriptors() <= before + 2);
    assert_eq!(addresses(&Client::new(site.dns).told("x.example.net")), ["198.51.100.7"]);
    assert_eq!(node.stop(), Some(0));
    closed_in_order(&site);
}

#[test]
fn a_limit_of_open_files_that_load_would_meet_is_said() {
    let site = Site::new();
    let mut node = site.spawn_command(&mut with_open_files(&site, 1_000));
    while site.get("/health/ready").is_none_or(|(status, _)| status != 200) {
        assert!(!node.has_ended(), "{}", node.stderr());
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(node.stop(), Some(0));
    let said = node.stderr();
    assert!(said.contains("at most 1000 files may be open") && said.contains("LimitNOFILE"), "{said}");
}

#[test]
fn too_few_open_files_are_one_sentence() {
    for limit in [8, 12, 16, 20, 24] {
        let site = Site::new();
        let mut node = site.spawn_command(&mut with_open_files(&site, limit));
        let start = Instant::now();
        while !node.has_ended() && start.elapsed() < BOUND {
            if site.get("/health/ready").is_some_and(|(status, _)| status == 200) {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        if !node.has_ended() {
            assert_eq!(node.stop(), Some(0), "{limit}: {}", node.stderr());
            continue;
        }
        assert_eq!(node.wait(), Some(1), "{limit}");
        let said = node.stderr();
        let sentence = said.starts_with("outgate: ") && said.lines().count() == 1;
        assert!(sentence && said.contains("open files"), "{limit}: {said}");
    }
}
