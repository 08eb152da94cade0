//! A thread with a network namespace of its own, and shorthands.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use outgate::firewall::nftables::{Hook, Nftables, Settings};
use outgate::firewall::{Common, Firewall};
use outgate::grant::Change;
use outgate::net::{Element, Scope, SegmentId, Service};
use outgate::policy::{Layout, SegmentLayout};
use outgate::time::{Clock, Tick};

/// A network namespace: a thread of its own that does what it is told there.
pub(crate) struct Host {
    jobs: Sender<Box<dyn FnOnce() + Send>>,
    pub(crate) task: i32,
}

impl Host {
    pub(crate) fn new() -> Option<Self> {
        let (jobs, queue) = channel::<Box<dyn FnOnce() + Send>>();
        let (ready, task) = channel();
        thread::spawn(move || {
            let made = unshare(CloneFlags::CLONE_NEWNET).map(|()| nix::unistd::gettid().as_raw());
            ready.send(made).unwrap();
            if made.is_ok() {
                run("ip", &["link", "set", "lo", "up"]);
                queue.into_iter().for_each(|job| job());
            }
        });
        task.recv().unwrap().ok().map(|task| Self { jobs, task })
    }

    pub(crate) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = channel();
        self.jobs.send(Box::new(move || drop(done.send(job())))).unwrap();
        // An error: the job has panicked, with a message of its own.
        result.recv().unwrap()
    }
}

/// Runs `test` in a namespace of its own, or says why it cannot.
pub(crate) fn alone(test: impl FnOnce() + Send + 'static) {
    if let Some(host) = host() {
        host.run(test);
    }
}

pub(crate) fn host() -> Option<Host> {
    let programs = ["nft", "ip"].iter().all(|program| Command::new(program).arg("-V").output().is_ok());
    let host = Host::new().filter(|_| programs);
    if host.is_none() {
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "needs root, nft and ip");
        eprintln!("skipped: needs root, nft and ip");
    }
    host
}

/// Runs a program in the namespace of the calling thread; what it printed.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    text
}

pub(crate) fn fails(program: &str, arguments: &[&str]) {
    assert!(!tries(program, arguments), "{program} {arguments:?}");
}

/// Whether a program does what it is told.
pub(crate) fn tries(program: &str, arguments: &[&str]) -> bool {
    Command::new(program).args(arguments).output().unwrap().status.success()
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn element(from: &str, to: &str, service: Service) -> Element {
    let from = from.parse().map_or_else(|_| Scope::Segment(SegmentId::of(from)), Scope::Client);
    Element { from, to: ip(to), service }
}

pub(crate) fn web(number: u32) -> Element {
    let to = IpAddr::from((0xc633_6400 + number).to_be_bytes());
    Element { from: Scope::Client(ip("192.0.2.1")), to, service: Service::Tcp(443) }
}

pub(crate) fn segment(name: &str, sources: &[&str], networks: &[(&str, &str)]) -> SegmentLayout {
    SegmentLayout {
        id: SegmentId::of(name),
        name: Arc::from(name),
        observe: name.starts_with("observed"),
        sources: sources.iter().map(|prefix| prefix.parse().unwrap()).collect(),
        networks: networks.iter().map(|(p, s)| (p.parse().unwrap(), s.parse().unwrap())).collect(),
        ends: Vec::new(),
    }
}

pub(crate) fn layout(segments: Vec<SegmentLayout>) -> Layout {
    Layout { segments, ..Layout::default() }
}

pub(crate) fn forward() -> Settings {
    Settings { inside: vec!["lan".into()], size: 1 << 16, ..Settings::new(Hook::Forward) }
}

pub(crate) fn firewall(settings: Settings) -> Nftables {
    let common = Common { deadline: Duration::from_secs(5), ..Common::new("gateway") };
    Nftables::new(common, settings, Clock::system()).unwrap()
}

pub(crate) fn now() -> Tick {
    Clock::system().tick()
}

/// Whether the table here has an owner, as every table with a chain of ours must since Linux 6.9.
pub(crate) fn owned() -> bool {
    let owned = run("nft", &["list", "table", "inet", "outgate"]).contains("flags owner");
    assert!(owned || !since([6, 9]));
    owned
}

/// Whether this kernel is of this release, or a later one.
pub(crate) fn since(release: [u32; 2]) -> bool {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse::<u32>().unwrap_or(0));
    [numbers.next().unwrap(), numbers.next().unwrap()] >= release
}

/// What is live in the kernel, in seconds of remaining life, as a second look of the backend tells.
pub(crate) fn live(firewall: &mut Nftables, layout: &Layout) -> BTreeMap<Element, f64> {
    let now = now();
    let elements = firewall.adopt(layout, now).unwrap();
    elements.into_iter().map(|(element, until)| (element, until.since(now).as_secs_f64())).collect()
}

pub(crate) fn open(firewall: &mut Nftables, elements: &[Element], life: Duration) -> Vec<usize> {
    let now = now();
    let changes: Vec<_> =
        elements.iter().map(|element| Change::Open { element: *element, until: now + life }).collect();
    firewall.apply(&changes, now).unwrap()
}

pub(crate) const MINUTE: Duration = Duration::from_secs(60);
