//! A [`Site`] is one directory with a configuration; a [`Node`] is one outgate that runs in it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use socket2::Socket;

use crate::programs::{Running, skip};

/// The program under test.
pub(crate) const OUTGATE: &str = env!("CARGO_BIN_EXE_outgate");

/// Nothing here takes this long; it only bounds a test that fails.
pub(crate) const BOUND: Duration = Duration::from_secs(15);

/// The user without rights.
pub(crate) const NOBODY: u32 = 65_534;

pub(crate) const POLICY: &str = r#"
[[segment]]
name    = "loop"
clients = ["127.0.0.0/8", "::1/128"]

[[rule]]
id       = "corp"
action   = "allow"
segments = ["loop"]
names    = ["*.corp.example"]
types    = ["A", "AAAA", "TXT"]

[[rule]]
id       = "outside"
action   = "allow"
segments = ["loop"]
names    = ["**.example.net"]
private  = ["198.51.100.0/24"]

[[rule]]
id       = "never"
action   = "deny"
segments = ["loop"]
names    = ["never.corp.example"]
"#;

pub(crate) const ZONE: &str = r#"$TTL 5m
@     SOA  ns1 hostmaster ( 1 1h 15m 7d 1m )
      NS   ns1
ns1   A    192.0.2.53
www   A    192.0.2.80
      AAAA 2001:db8::80
never A    192.0.2.81
"#;

/// One directory below the temporary one, removed in the end; its configuration is written by [`Site::write`].
pub(crate) struct Site {
    pub(crate) directory: PathBuf,
    pub(crate) dns: SocketAddr,
    pub(crate) health: SocketAddr,
    /// Tables of the configuration by name; the first, "", has the keys that are in none.
    pub(crate) tables: BTreeMap<&'static str, String>,
}

impl Site {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("outgate-{}-{number}", std::process::id()));
        // A directory of this name was left behind by a process that was killed.
        let _ = fs::remove_dir_all(&directory);
        let (dns, health) = (loopback(free_port()), loopback(free_port()));
        let tables = [
            ("", "node = \"test\"\nstate = \"state\"".to_owned()),
            ("admin", "[admin]\nsocket = \"admin.sock\"".into()),
            ("audit", "[audit]\nfile = \"query.jsonl\"\nrotate_size = \"64MiB\"".into()),
            ("firewall", "[[firewall]]\nname = \"memory\"\nkind = \"memory\"".into()),
            ("health", format!("[health]\nlisten = \"{health}\"")),
            ("listen", format!("[listen]\ndns = [\"{dns}\"]\nworkers = 2")),
            ("policy", "[policy]\ndirectory = \"policy\"".into()),
            ("upstream", format!("[[upstream]]\nname = \"default\"\nservers = [\"udp://127.0.0.1:{}\"]", free_port())),
            ("zones", "[zones]\ndirectory = \"zones\"".into()),
        ];
        let site = Self { directory, dns, health, tables: tables.into() };
        site.file("policy/loop.toml", POLICY);
        site.file("zones/corp.example.zone", ZONE);
        site.write()
    }

    /// The same site with another table.
    pub(crate) fn with(mut self, table: &'static str, text: impl Into<String>) -> Self {
        self.tables.insert(table, text.into());
        self.write()
    }

    /// With these upstream servers.
    pub(crate) fn with_servers(self, servers: &[SocketAddr]) -> Self {
        let servers: Vec<String> = servers.iter().map(|server| format!("\"udp://{server}\"")).collect();
        self.with("upstream", format!("[[upstream]]\nname = \"default\"\nservers = [{}]", servers.join(", ")))
    }

    fn write(self) -> Self {
        let tables: Vec<&str> = self.tables.values().map(String::as_str).collect();
        self.file("outgate.toml", &(tables.join("\n\n") + "\n"));
        self
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Writes one file, at once: a reader sees the old one or the new one.
    pub(crate) fn file(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let beside = path.with_extension("beside");
        fs::write(&beside, text).unwrap();
        fs::rename(&beside, &path).unwrap();
    }

    /// `outgate ARGUMENTS…` in the directory.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(OUTGATE);
        // What the tests run under must not colour what they read.
        command.args(arguments).current_dir(&self.directory).env_remove("RUST_LOG").stdin(Stdio::null());
        command
    }

    /// Runs one verb to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Ended {
        end(&mut self.command(arguments))
    }

    /// Runs one verb to its end as [`NOBODY`].
    pub(crate) fn run_as_nobody(&self, arguments: &[&str]) -> Ended {
        end(self.command(arguments).uid(NOBODY).gid(NOBODY))
    }

    /// Lets [`NOBODY`] have the directory and all that is in it.
    pub(crate) fn give_to_nobody(&self) {
        let mut pending = vec![self.directory.clone()];
        while let Some(path) = pending.pop() {
            if path.is_dir() {
                pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            }
            std::os::unix::fs::chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
    }

    /// Starts `outgate run` and waits until it is ready.
    pub(crate) fn start(&self) -> Node {
        let mut node = self.spawn();
        let ready = || self.get("/health/ready").is_some_and(|(status, _)| status == 200);
        until("outgate is ready", || node.has_ended() || ready());
        assert!(!node.has_ended(), "outgate ended instead of serving: {}", node.stderr());
        node
    }

    /// Starts `outgate run` and waits for nothing.
    pub(crate) fn spawn(&self) -> Node {
        self.spawn_command(&mut self.command(&["run"]))
    }

    pub(crate) fn spawn_command(&self, command: &mut Command) -> Node {
        let stderr = File::create(self.path("stderr")).unwrap();
        self.spawn_as_is(command.stdout(Stdio::null()).stderr(stderr))
    }

    /// Starts one that says what it says to the file `stderr`.
    fn spawn_as_is(&self, command: &mut Command) -> Node {
        Node { running: Running::start(command), stderr: self.path("stderr") }
    }

    /// Starts `outgate run` as a service manager does that holds these sockets, and waits until it is ready.
    pub(crate) fn start_given(&self, sockets: &[&Socket]) -> Node {
        let mut node = self.spawn_given(sockets);
        let ready = || self.get("/health/ready").is_some_and(|(status, _)| status == 200);
        until("outgate is ready", || node.has_ended() || ready());
        assert!(!node.has_ended(), "outgate ended instead of serving: {}", node.stderr());
        node
    }

    /// The same, and waits for nothing.
    pub(crate) fn spawn_given(&self, sockets: &[&Socket]) -> Node {
        self.spawn_as_is(&mut self.given(sockets))
    }

    /// `outgate run`, given these sockets, three at most, as descriptors 3 and on. They come to a shell as its standard
    /// streams, and what it says goes to the file `stderr`.
    pub(crate) fn given(&self, sockets: &[&Socket]) -> Command {
        let places = ["3<&0", "4<&1", "5<&2"];
        let script = format!(
            "exec env LISTEN_PID=$$ LISTEN_FDS={} {OUTGATE} run {} </dev/null >/dev/null 2>stderr",
            sockets.len(),
            places[..sockets.len()].join(" "),
        );
        let mut command = Command::new("sh");
        command.args(["-c", &script]).current_dir(&self.directory).env_remove("RUST_LOG");
        let mut streams = sockets.iter().map(|socket| Stdio::from(OwnedFd::from(socket.try_clone().unwrap())));
        let mut next = || streams.next().unwrap_or_else(Stdio::null);
        command.stdin(next()).stdout(next()).stderr(next());
        command
    }

    /// One request to the health door: status and body.
    pub(crate) fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(self.health).ok()?;
        stream.set_read_timeout(Some(BOUND)).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }

    /// The value of a series of `/metrics`, labels included: `outgate_grants`; 0 where it is not there.
    pub(crate) fn metric(&self, series: &str) -> f64 {
        let (_, text) = self.get("/metrics").unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok());
        value.unwrap_or(0.0)
    }

    /// The sum over all labels.
    pub(crate) fn metric_sum(&self, name: &str) -> f64 {
        let (_, text) = self.get("/metrics").unwrap();
        let lines = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('{'));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Every whole record of the log, archives first.
    pub(crate) fn records(&self) -> Vec<Value> {
        let archive = fs::read_dir(self.path("archive")).into_iter().flatten();
        let mut files: Vec<PathBuf> = archive.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files.push(self.path("query.jsonl"));
        let bytes: Vec<u8> = files.iter().flat_map(|file| fs::read(file).unwrap_or_default()).collect();
        let text = String::from_utf8_lossy(&bytes);
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// The query records.
    pub(crate) fn queries(&self) -> Vec<Value> {
        self.records().into_iter().filter(|record| record["type"] == "query").collect()
    }

    /// Asserts that the log is whole; what `outgate log verify` said.
    pub(crate) fn verified(&self) -> String {
        let ended = self.run(&["log", "verify"]);
        assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
        ended.stdout
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}

/// One outgate; killed when dropped.
pub(crate) struct Node {
    running: Running,
    stderr: PathBuf,
}

impl Node {
    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.running.0.id()).unwrap()), signal).unwrap();
    }

    pub(crate) fn id(&self) -> u32 {
        self.running.0.id()
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.running.0.try_wait().unwrap().is_some()
    }

    /// Everything that it said so far.
    pub(crate) fn stderr(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    /// Waits for its end; its exit code.
    pub(crate) fn wait(&mut self) -> Option<i32> {
        until("outgate ends", || self.has_ended());
        self.running.0.wait().unwrap().code()
    }

    /// SIGTERM; its exit code.
    pub(crate) fn stop(&mut self) -> Option<i32> {
        self.signal(Signal::SIGTERM);
        self.wait()
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.running.kill();
    }

    /// How many file descriptors it has open.
    pub(crate) fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.running.0.id())).unwrap().count()
    }
}

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs a command to its end, which must come within [`BOUND`].
pub(crate) fn end(command: &mut Command) -> Ended {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let drain = |mut pipe: Box<dyn Read + Send>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            pipe.read_to_end(&mut bytes).unwrap();
            String::from_utf8(bytes).unwrap()
        })
    };
    let stdout = drain(Box::new(child.stdout.take().unwrap()));
    let stderr = drain(Box::new(child.stderr.take().unwrap()));
    let start = Instant::now();
    let code = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status.code();
        }
        if start.elapsed() > BOUND {
            child.kill().unwrap();
            panic!("{command:?} did not end: {}", stderr.join().unwrap());
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    Ended { code, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
}

/// Polls until the fact holds.
pub(crate) fn until(fact: &str, holds: impl FnMut() -> bool) {
    until_within(BOUND, fact, holds);
}

/// As [`until`], for what takes its time.
pub(crate) fn until_within(bound: Duration, fact: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < bound, "not within {bound:?}: {fact}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(crate) fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// A port that nobody uses over UDP or TCP, of either family. Below the range that the kernel chooses from, so that
/// nobody is given it by chance before it is bound again.
pub(crate) fn free_port() -> u16 {
    const FIRST: u16 = 10_000;
    const EACH: u16 = 1_000;
    /// This process's ports: those after the one that it holds, which keeps other test runs off them.
    static OURS: LazyLock<(TcpListener, u16)> = LazyLock::new(|| {
        let mut firsts = (FIRST..FIRST + 20 * EACH).step_by(EACH.into());
        let claim = |first| Some((TcpListener::bind((Ipv4Addr::LOCALHOST, first)).ok()?, first));
        firsts.find_map(claim).unwrap_or_else(|| panic!("twenty test runs at once"))
    });
    static NEXT: AtomicU16 = AtomicU16::new(0);
    for _ in 0..EACH {
        let port = OURS.1 + 1 + NEXT.fetch_add(1, Ordering::Relaxed) % (EACH - 1);
        let four = (Ipv4Addr::UNSPECIFIED, port);
        let six = (Ipv6Addr::LOCALHOST, port);
        let free = UdpSocket::bind(four).is_ok() && TcpListener::bind(four).is_ok();
        if free && UdpSocket::bind(six).is_ok() && TcpListener::bind(six).is_ok() {
            return port;
        }
    }
    panic!("no free port");
}

/// Whether root's powers are here; if not, says so, and fails where `CI=true`.
pub(crate) fn privileged() -> bool {
    let root = nix::unistd::geteuid().is_root();
    let works = root && std::thread::spawn(|| unshare(CloneFlags::CLONE_NEWNS).is_ok()).join().unwrap();
    if !works {
        skip("root");
    }
    works
}

/// Runs `test` in a network of its own, with a loopback interface and nothing else.
pub(crate) fn in_own_network(test: impl FnOnce() + Send) {
    alone(CloneFlags::CLONE_NEWNET, || {
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
        assert!(up.is_ok_and(|status| status.success()), "ip link set lo up");
        test();
    });
}

/// Runs `test` where mounts are nobody else's.
pub(crate) fn with_own_mounts(test: impl FnOnce() + Send) {
    alone(CloneFlags::CLONE_NEWNS, || {
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        test();
    });
}

fn alone(space: CloneFlags, test: impl FnOnce() + Send) {
    let job = || {
        unshare(space).unwrap();
        test();
    };
    let done = std::thread::scope(|scope| scope.spawn(job).join());
    if let Err(panic) = done {
        std::panic::resume_unwind(panic);
    }
}

/// Mounts a disk of this many bytes of memory.
pub(crate) fn small_disk(at: &Path, bytes: usize) {
    fs::create_dir_all(at).unwrap();
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some(&*format!("size={bytes}"))).unwrap();
}
