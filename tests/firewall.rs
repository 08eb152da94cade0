//! The nftables backend against this machine's kernel, in network namespaces that end with their threads.
//!
//! Needs root and the programs `nft` and `ip`; without them a test says so and passes, but fails where `CI=true`.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{Sender, TryRecvError, channel};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use outgate::firewall::nftables::{Hook, Nftables, Settings};
use outgate::firewall::{Common, Firewall, FirewallError};
use outgate::grant::Change;
use outgate::net::{Element, Scope, SegmentId, Service};
use outgate::policy::{Layout, SegmentLayout};
use outgate::time::{Clock, Tick};

/// A network namespace: a thread of its own that does what it is told there.
struct Host {
    jobs: Sender<Box<dyn FnOnce() + Send>>,
    task: i32,
}

impl Host {
    fn new() -> Option<Self> {
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

    fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = channel();
        self.jobs.send(Box::new(move || drop(done.send(job())))).unwrap();
        // An error: the job has panicked, with a message of its own.
        result.recv().unwrap()
    }
}

/// Runs `test` in a namespace of its own, or says why it cannot.
fn alone(test: impl FnOnce() + Send + 'static) {
    if let Some(host) = host() {
        host.run(test);
    }
}

fn host() -> Option<Host> {
    let programs = ["nft", "ip"].iter().all(|program| Command::new(program).arg("-V").output().is_ok());
    let host = Host::new().filter(|_| programs);
    if host.is_none() {
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "needs root, nft and ip");
        eprintln!("skipped: needs root, nft and ip");
    }
    host
}

/// Runs a program in the namespace of the calling thread; what it printed.
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    text
}

fn fails(program: &str, arguments: &[&str]) {
    assert!(!Command::new(program).args(arguments).output().unwrap().status.success(), "{program} {arguments:?}");
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn element(from: &str, to: &str, service: Service) -> Element {
    let from = from.parse().map_or_else(|_| Scope::Segment(SegmentId::of(from)), Scope::Client);
    Element { from, to: ip(to), service }
}

fn web(number: u32) -> Element {
    let to = IpAddr::from((0xc633_6400 + number).to_be_bytes());
    Element { from: Scope::Client(ip("192.0.2.1")), to, service: Service::Tcp(443) }
}

fn segment(name: &str, sources: &[&str], networks: &[(&str, &str)]) -> SegmentLayout {
    SegmentLayout {
        id: SegmentId::of(name),
        name: Arc::from(name),
        observe: name.starts_with("observed"),
        sources: sources.iter().map(|prefix| prefix.parse().unwrap()).collect(),
        networks: networks.iter().map(|(p, s)| (p.parse().unwrap(), s.parse().unwrap())).collect(),
    }
}

fn layout(segments: Vec<SegmentLayout>) -> Layout {
    Layout { segments }
}

fn forward() -> Settings {
    Settings { inside: vec!["lan".into()], size: 1 << 16, ..Settings::new(Hook::Forward) }
}

fn firewall(settings: Settings) -> Nftables {
    let common = Common { deadline: Duration::from_secs(5), ..Common::new("gateway") };
    Nftables::new(common, settings, Clock::system()).unwrap()
}

fn now() -> Tick {
    Clock::system().tick()
}

/// What is live in the kernel, in seconds of remaining life, as a second look of the backend tells.
fn live(firewall: &mut Nftables, layout: &Layout) -> BTreeMap<Element, f64> {
    let now = now();
    let elements = firewall.adopt(layout, now).unwrap();
    elements.into_iter().map(|(element, until)| (element, until.since(now).as_secs_f64())).collect()
}

fn open(firewall: &mut Nftables, elements: &[Element], life: Duration) -> Vec<usize> {
    let now = now();
    let changes: Vec<_> =
        elements.iter().map(|element| Change::Open { element: *element, until: now + life }).collect();
    firewall.apply(&changes, now).unwrap()
}

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn elements_open_extend_shorten_and_close() {
    alone(|| {
        let layout = layout(vec![segment("office", &["192.0.2.0/24", "2001:db8::/32"], &[])]);
        let mut firewall = firewall(forward());
        assert_eq!(firewall.adopt(&layout, now()).unwrap(), []);
        let all = [
            web(1),
            element("192.0.2.1", "198.51.100.2", Service::Udp(443)),
            element("192.0.2.1", "198.51.100.2", Service::Icmp),
            element("192.0.2.1", "198.51.100.2", Service::Any),
            element("2001:db8::1", "2001:db8::2", Service::Tcp(443)),
            element("2001:db8::1", "2001:db8::2", Service::Icmp),
            element("2001:db8::1", "2001:db8::2", Service::Any),
            element("office", "198.51.100.2", Service::Tcp(443)),
            element("office", "198.51.100.2", Service::Any),
            element("office", "2001:db8::2", Service::Udp(443)),
            element("office", "2001:db8::2", Service::Any),
        ];
        assert_eq!(open(&mut firewall, &all, MINUTE), [0; 0]);
        let found = live(&mut firewall, &layout);
        assert_eq!(
            found.keys().copied().collect::<Vec<_>>(),
            BTreeMap::from(all.map(|e| (e, ()))).into_keys().collect::<Vec<_>>()
        );
        assert!(found.values().all(|left| (59.0..60.1).contains(left)), "{found:?}");

        // Half of the life goes by: poll until the kernel shows less, then ask for the same life again.
        open(&mut firewall, &all, Duration::from_secs(10));
        while live(&mut firewall, &layout).values().any(|left| *left > 9.9) {}
        open(&mut firewall, &all, Duration::from_secs(10));
        let again = live(&mut firewall, &layout);
        assert!(again.values().all(|left| *left > 9.9), "the same timeout must count from now: {again:?}");
        open(&mut firewall, &all, Duration::from_secs(600));
        assert!(live(&mut firewall, &layout).values().all(|left| *left > 590.0), "longer");
        open(&mut firewall, &all, Duration::from_secs(5));
        assert!(live(&mut firewall, &layout).values().all(|left| *left < 5.1), "shorter");

        // Of changes to one element the last counts; closing what is not there is no failure.
        let now = now();
        let close = |element| Change::Close { element };
        let changes = [
            Change::Open { element: web(1), until: now + MINUTE },
            close(web(1)),
            close(web(99)),
            close(web(2)),
            Change::Open { element: web(2), until: now + MINUTE },
            Change::Open { element: web(3), until: now },
        ];
        assert_eq!(firewall.apply(&changes, now).unwrap(), [0; 0]);
        let found = live(&mut firewall, &layout);
        assert!(!found.contains_key(&web(1)) && found.contains_key(&web(2)) && !found.contains_key(&web(3)));
        run("nft", &["list", "ruleset"]);
    });
}

#[test]
fn the_kernel_keeps_an_element_at_least_as_long_as_asked() {
    alone(|| {
        let layout = Layout::default();
        let mut firewall = firewall(forward());
        firewall.adopt(&layout, now()).unwrap();
        for life in [1, 7, 40, 999, 1000, 60_001].map(Duration::from_millis) {
            let until = now() + life;
            firewall.apply(&[Change::Open { element: web(1), until }], now()).unwrap();
            let asked = now();
            let found = firewall.adopt(&layout, asked).unwrap();
            // The list is made after `asked`; what has passed since is not in it.
            let passed = now().since(asked);
            match found.first() {
                Some((_, end)) => assert!(*end + passed >= until, "{life:?}: {end:?} + {passed:?} < {until:?}"),
                None => assert!(now() >= until, "{life:?}: gone too early"),
            }
        }
    });
}

#[test]
fn a_full_set_fails_only_what_does_not_fit() {
    alone(|| {
        let layout = Layout::default();
        let mut firewall = firewall(Settings { size: 8, ..forward() });
        firewall.adopt(&layout, now()).unwrap();
        let mut all: Vec<_> = (0..12).map(web).collect();
        all.push(element("office", "198.51.100.2", Service::Tcp(443)));
        let failed = open(&mut firewall, &all, MINUTE);
        assert_eq!(failed.len(), 4, "{failed:?}");
        assert!(!failed.contains(&12), "another set has room");
        let found = live(&mut firewall, &layout);
        let done: Vec<_> = (0..13).filter(|index| !failed.contains(index)).map(|index| all[index]).collect();
        assert!(found.len() == 9 && done.iter().all(|element| found.contains_key(element)));
        assert_eq!(open(&mut firewall, &done, MINUTE), [0; 0], "what is there can still be extended");
        if let Some(load) = firewall.load().unwrap() {
            assert_eq!((load.elements, load.capacity), (8, 8));
        }
    });
}

#[test]
fn a_successor_takes_over_table_and_elements() {
    alone(|| {
        let old = layout(vec![segment("a", &["192.0.2.0/24"], &[]), segment("b", &["198.51.100.0/24"], &[])]);
        let mut first = firewall(forward());
        first.adopt(&old, now()).unwrap();
        open(&mut first, &[web(1)], MINUTE);
        let mut rival = firewall(forward());
        let refused = rival.adopt(&old, now());
        assert_eq!(refused, Err(FirewallError::Owned("outgate".into())));
        // An owned table: no foreign hand, not even root's.
        fails("nft", &["delete", "table", "inet", "outgate"]);
        fails("nft", &["add", "element", "inet", "outgate", "host4", "{ 192.0.2.1 . 192.0.2.2 . tcp . 1 timeout 9s }"]);
        run("nft", &["flush", "ruleset"]);
        assert_eq!(first.drifted(), Ok(false));
        let before = run("nft", &["list", "table", "inet", "outgate"]);
        assert!(before.contains("segment_a") && before.contains("198.51.100.1"), "{before}");

        drop(first);
        let orphan = run("nft", &["list", "table", "inet", "outgate"]);
        assert!(orphan.contains("hook forward") && orphan.contains("198.51.100.1"), "the table outlives its owner");
        let new = layout(vec![segment("b", &["192.0.2.0/24"], &[]), segment("observed-c", &["2001:db8::/32"], &[])]);
        // The first rival is still there; it may take over now.
        let found = rival.adopt(&new, now()).unwrap();
        assert_eq!(found.iter().map(|(element, _)| *element).collect::<Vec<_>>(), [web(1)]);
        let text = run("nft", &["list", "table", "inet", "outgate"]);
        assert!(
            !text.contains("segment_a") && text.contains("segment_b") && text.contains("outgate:observe:observed-c"),
            "{text}"
        );
        fails("nft", &["delete", "table", "inet", "outgate"]);
    });
}

#[test]
fn a_plain_table_is_kept_watched_and_repaired() {
    alone(|| {
        // What a kernel without owners leaves behind; also with a set of another shape and chains of somebody else.
        let plain = "add table inet outgate; add set inet outgate host4 { type ipv4_addr; }; \
                     add set inet outgate strange { type ipv4_addr; }; add chain inet outgate strange; \
                     add chain inet outgate forward { type filter hook input priority 0; }; \
                     add rule inet outgate forward ip saddr @strange jump strange";
        run("nft", &[plain]);
        let layout = layout(vec![segment("office", &["192.0.2.0/24"], &[])]);
        let mut firewall = firewall(forward());
        firewall.adopt(&layout, now()).unwrap();
        open(&mut firewall, &[web(1), web(2)], MINUTE);
        assert_eq!(firewall.drifted(), Ok(false), "our own changes are no drift");
        firewall.arrange(&layout).unwrap();
        assert_eq!(firewall.drifted(), Ok(false), "our own changes are no drift");
        let text = run("nft", &["list", "ruleset"]);
        assert!(!text.contains("strange") && text.contains("hook forward"), "{text}");

        run("nft", &["add table inet other; add chain inet other x"]);
        assert_eq!(firewall.drifted(), Ok(false), "another table is not ours");
        run("nft", &["delete element inet outgate host4 { 192.0.2.1 . 198.51.100.2 . tcp . 443 }"]);
        run("nft", &["add element inet outgate host4 { 192.0.2.1 . 198.51.100.2 . sctp . 443 }"]);
        assert_eq!(firewall.drifted(), Ok(true));
        assert_eq!(firewall.drifted(), Ok(false), "told once");
        assert_eq!(live(&mut firewall, &layout).into_keys().collect::<Vec<_>>(), [web(1)]);
        assert!(!run("nft", &["list", "ruleset"]).contains("sctp"), "what can be no grant goes");

        run("nft", &["flush", "ruleset"]);
        assert!(firewall.apply(&[Change::Open { element: web(1), until: now() + MINUTE }], now()).is_err());
        assert_eq!(firewall.drifted(), Ok(true));
        assert_eq!(firewall.adopt(&layout, now()).unwrap(), []);
        assert_eq!(open(&mut firewall, &[web(1)], MINUTE), [0; 0]);
        assert!(run("nft", &["list", "ruleset"]).contains("segment_office"));
    });
}

#[test]
fn a_new_layout_keeps_the_grants() {
    alone(|| {
        let mut firewall = firewall(forward());
        let mut all = Layout::default();
        firewall.adopt(&all, now()).unwrap();
        open(&mut firewall, &[web(1)], MINUTE);
        let networks =
            [("203.0.113.0/24", "tcp/22"), ("203.0.113.128/25", "tcp/20-30"), ("0.0.0.0/0", "icmp"), ("::/0", "any")];
        for number in 0..20_u8 {
            let outer = format!("10.{number}.0.0/16");
            let inner = format!("10.{}.7.0/24", (number + 1) % 20);
            all.segments.push(segment(
                &format!("s{number}"),
                &[&outer, &inner, "2001:db8::/32"][..2 + usize::from(number == 0)],
                &networks,
            ));
            firewall.arrange(&all).unwrap();
        }
        run("nft", &["list", "ruleset"]);
        all.segments.truncate(3);
        firewall.arrange(&all).unwrap();
        let text = run("nft", &["list", "ruleset"]);
        assert!(text.contains("segment_s2") && !text.contains("segment_s3"), "{text}");
        assert!(live(&mut firewall, &all).contains_key(&web(1)));
    });
}

#[test]
fn without_rights_it_is_forbidden() {
    if std::env::var("OUTGATE_TEST_WITHOUT_RIGHTS").is_ok() {
        assert_eq!(firewall(forward()).adopt(&Layout::default(), now()), Err(FirewallError::Forbidden));
        return;
    }
    alone(|| {
        // This test again, as nobody.
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", "without_rights_it_is_forbidden"]).env("OUTGATE_TEST_WITHOUT_RIGHTS", "1");
        match again.uid(65534).gid(65534).current_dir("/").output() {
            Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout)),
            Err(error) => eprintln!("skipped: nobody cannot run this test: {error}"),
        }
    });
}

#[test]
fn sets_alone_leave_the_rules_to_the_operator() {
    alone(|| {
        let layout = layout(vec![segment("office", &["192.0.2.0/24"], &[("203.0.113.0/24", "tcp/22")])]);
        let mut firewall = firewall(Settings { size: 1 << 10, ..Settings::new(Hook::Sets) });
        firewall.adopt(&layout, now()).unwrap();
        let grants = [web(1), element("office", "198.51.100.2", Service::Tcp(443))];
        assert_eq!(open(&mut firewall, &grants, MINUTE), [0; 0]);
        let text = run("nft", &["list", "table", "inet", "outgate"]);
        let number = format!("192.0.2.0/24 : {:#010x}", SegmentId::of("office").0);
        assert!(
            !text.contains("chain") && text.contains(&number) && text.contains("198.51.100.2 . tcp . 443"),
            "{text}"
        );
        let found: Vec<_> = live(&mut firewall, &layout).into_keys().collect();
        assert_eq!(found, grants);
    });
}

/// A client, a gateway that forwards and is governed, a server; each a namespace.
struct Net {
    client: Host,
    gateway: Host,
    server: Host,
}

const CLIENT: [&str; 2] = ["192.0.2.1", "2001:db8:1::1"];
const STRANGER: [&str; 2] = ["192.0.2.200", "2001:db8:1::200"];
const SERVER: [&str; 2] = ["198.51.100.1", "2001:db8:2::1"];
const OTHER: [&str; 2] = ["198.51.100.2", "2001:db8:2::2"];

fn set(setting: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/{setting}"), value).unwrap();
}

fn address(interface: &str, addresses: &[&str]) {
    for address in addresses {
        let address = format!("{address}/{}", if address.contains(':') { 64 } else { 24 });
        let mut arguments = vec!["addr", "add", &address, "dev", interface];
        if address.contains(':') {
            arguments.push("nodad");
        }
        run("ip", &arguments);
    }
    run("ip", &["link", "set", interface, "up"]);
}

fn routes(gateway: [&'static str; 2]) {
    for gateway in gateway {
        let family = if gateway.contains(':') { "-6" } else { "-4" };
        run("ip", &[family, "route", "add", "default", "via", gateway]);
    }
}

impl Net {
    fn new() -> Option<Self> {
        let (client, gateway, server) = (host()?, host()?, host()?);
        let (left, right) = (client.task.to_string(), server.task.to_string());
        gateway.run(move || {
            for (interface, task) in [("lan", left), ("wan", right)] {
                run("ip", &["link", "add", interface, "type", "veth", "peer", "name", "eth0", "netns", &task]);
            }
            set("ipv4/ip_forward", "1");
            set("ipv6/conf/all/forwarding", "1");
            address("lan", &["192.0.2.254", "2001:db8:1::fe"]);
            address("wan", &["198.51.100.254", "2001:db8:2::fe"]);
        });
        client.run(|| {
            address("eth0", &CLIENT);
            address("eth0", &STRANGER);
            routes(["192.0.2.254", "2001:db8:1::fe"]);
        });
        server.run(|| {
            address("eth0", &SERVER);
            address("eth0", &OTHER);
            routes(["198.51.100.254", "2001:db8:2::fe"]);
            for port in [443, 80, 22, 53, 853] {
                serve(TcpListener::bind(("::", port)).unwrap());
                for address in SERVER.into_iter().chain(OTHER) {
                    echo(UdpSocket::bind((address, port)).unwrap());
                }
            }
        });
        Some(Self { client, gateway, server })
    }
}

/// Answers every byte of every connection with itself; ends with the process.
fn serve(listener: TcpListener) {
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || drop(std::io::copy(&mut &stream, &mut &stream)));
        }
    });
}

fn echo(socket: UdpSocket) {
    thread::spawn(move || {
        let mut byte = [0];
        while let Ok((_, from)) = socket.recv_from(&mut byte) {
            drop(socket.send_to(&byte, from));
        }
    });
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Arrives,
    /// Refused at once.
    Refused,
}

/// A silent drop is no refusal; nobody here is slower than this.
const PATIENCE: Duration = Duration::from_secs(3);

fn source(from: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip(from), port)
}

/// Connects from one address to another, and says a byte and hears it.
fn tcp(from: &str, to: &str, port: u16) -> Result<TcpStream, ErrorKind> {
    let to = SocketAddr::new(ip(to), port);
    let socket = socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, None).unwrap();
    socket.bind(&source(from, 0).into()).unwrap();
    socket.connect_timeout(&to.into(), PATIENCE).map_err(|error| error.kind())?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    talk(&mut stream).map(|()| stream)
}

fn talk(stream: &mut TcpStream) -> Result<(), ErrorKind> {
    let mut byte = [0];
    stream.write_all(b"x").and_then(|()| stream.read_exact(&mut byte)).map_err(|error| error.kind())
}

fn udp(from: &str, to: &str, port: u16) -> Fate {
    let socket = UdpSocket::bind(source(from, 0)).unwrap();
    socket.connect(SocketAddr::new(ip(to), port)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    // What the sender's own machine refuses, `send` says already.
    let said = socket.send(b"x").and_then(|_| socket.recv(&mut [0; 8]));
    fate(said.map(|_| ()), &format!("udp {from} {to} {port}"))
}

fn fate(said: std::io::Result<()>, what: &str) -> Fate {
    match said {
        Ok(()) => Fate::Arrives,
        Err(error) => {
            assert_ne!(error.kind(), ErrorKind::WouldBlock, "{what}: dropped in silence");
            Fate::Refused
        }
    }
}

/// An echo request by a raw socket.
fn ping(from: &str, to: &str) -> Fate {
    use socket2::{Domain, Protocol, Socket, Type};
    let four = ip(to).is_ipv4();
    let (domain, protocol) = if four { (Domain::IPV4, Protocol::ICMPV4) } else { (Domain::IPV6, Protocol::ICMPV6) };
    let socket = Socket::new(domain, Type::RAW, Some(protocol)).unwrap();
    socket.bind(&source(from, 0).into()).unwrap();
    socket.connect(&SocketAddr::new(ip(to), 0).into()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    // Type, code, checksum (of IPv4; the kernel writes the other), identifier 0, sequence 1.
    let request = if four { [8, 0, 0xf7, 0xfe, 0, 0, 0, 1] } else { [128, 0, 0, 0, 0, 0, 0, 1] };
    let mut reply = [0; 128];
    let said = socket.send(&request).and_then(|_| (&socket).read(&mut reply));
    if said.is_ok() {
        assert_eq!(if four { reply[20] } else { reply[0] }, if four { 0 } else { 129 }, "not an echo reply");
    }
    fate(said.map(|_| ()), &format!("ping {from} {to}"))
}

/// Tries `service` from the client.
fn try_from(net: &Net, from: &'static str, to: &'static str, service: &'static str) -> Fate {
    net.client.run(move || match service.split_once('/') {
        Some(("tcp", port)) => match tcp(from, to, port.parse().unwrap()) {
            Ok(_) => Fate::Arrives,
            Err(kind) => {
                assert_eq!(kind, ErrorKind::ConnectionRefused, "{from} {to} {service}");
                Fate::Refused
            }
        },
        Some((_, port)) => udp(from, to, port.parse().unwrap()),
        None => ping(from, to),
    })
}

/// Errors of ICMPv6 are limited to one a second and destination; the tests ask faster.
fn unlimited() {
    set("ipv4/icmp_ratelimit", "0");
    set("ipv6/icmp/ratelimit", "0");
}

#[test]
fn only_what_is_granted_passes_a_gateway() {
    use Fate::{Arrives, Refused};
    let Some(net) = Net::new() else { return };
    let networks = [("198.51.100.2/32", "tcp/22-23"), ("2001:db8:2::2/128", "icmp")];
    let layout = layout(vec![segment("office", &["192.0.2.0/25", "2001:db8:1::/120"], &networks)]);
    let mut wall = net.gateway.run(move || {
        unlimited();
        let mut wall = firewall(forward());
        wall.adopt(&layout, now()).unwrap();
        wall
    });
    for at in 0..2 {
        let (client, stranger, server, other) = (CLIENT[at], STRANGER[at], SERVER[at], OTHER[at]);
        let grants = [
            element(client, server, Service::Tcp(443)),
            element(client, server, Service::Udp(443)),
            element(client, server, Service::Icmp),
            element(client, server, Service::Tcp(853)),
            element("office", other, Service::Tcp(80)),
        ];
        wall = net.gateway.run(move || {
            assert_eq!(open(&mut wall, &grants, MINUTE), [0; 0]);
            wall
        });
        let four = ip(client).is_ipv4();
        for (from, to, service, fate, why) in [
            (client, server, "tcp/443", Arrives, "granted"),
            (client, server, "udp/443", Arrives, "granted"),
            (client, server, "icmp", Arrives, "granted"),
            (client, server, "tcp/80", Refused, "another port"),
            (client, server, "udp/80", Refused, "another port"),
            (client, other, "tcp/443", Refused, "another address"),
            (client, other, "udp/443", Refused, "another address"),
            (client, other, "tcp/80", Arrives, "granted to the segment"),
            (client, other, "udp/80", Refused, "another protocol"),
            (client, server, "tcp/853", Refused, "DNS elsewhere, though granted"),
            (client, server, "udp/53", Refused, "DNS elsewhere"),
            (client, other, "tcp/22", if four { Arrives } else { Refused }, "a static rule, of IPv4"),
            (client, other, "icmp", if four { Refused } else { Arrives }, "a static rule, of IPv6"),
            (stranger, server, "tcp/443", Refused, "in no segment"),
            (stranger, other, "tcp/80", Refused, "in no segment"),
            (stranger, server, "udp/443", Refused, "in no segment"),
        ] {
            assert_eq!(try_from(&net, from, to, service), fate, "{from} → {to} {service}: {why}");
        }
        // Every protocol, for one client and for the segment; DNS still not.
        let any = [element(client, server, Service::Any), element("office", other, Service::Any)];
        wall = net.gateway.run(move || {
            open(&mut wall, &any, MINUTE);
            wall
        });
        for (to, service, fate) in [
            (server, "tcp/80", Arrives),
            (server, "udp/80", Arrives),
            (other, "udp/22", Arrives),
            (other, "icmp", Arrives),
            (server, "udp/853", Refused),
            (other, "tcp/53", Refused),
        ] {
            assert_eq!(try_from(&net, client, to, service), fate, "any: {client} → {to} {service}");
        }
    }
    // From outside to inside: a connection that another table let in may be answered.
    let listener = net.client.run(|| TcpListener::bind("[::]:8080").unwrap());
    serve(listener);
    for at in 0..2 {
        net.server.run(move || tcp(SERVER[at], CLIENT[at], 8080).unwrap());
    }
    net.gateway.run(|| run("nft", &["list", "ruleset"]));
    drop(wall);
}

#[test]
fn a_live_flow_survives_its_grant_and_a_restart() {
    let Some(net) = Net::new() else { return };
    let layout = layout(vec![segment("office", &["192.0.2.0/24", "2001:db8:1::/64"], &[])]);
    for at in 0..2 {
        let (client, server) = (CLIENT[at], SERVER[at]);
        let first = layout.clone();
        let mut wall = net.gateway.run(move || {
            let mut wall = firewall(forward());
            wall.adopt(&first, now()).unwrap();
            open(&mut wall, &[element(client, server, Service::Tcp(443))], MINUTE);
            wall
        });
        let mut stream = net.client.run(move || tcp(client, server, 443).unwrap());
        // The grant ends by itself.
        let second = layout.clone();
        wall = net.gateway.run(move || {
            open(&mut wall, &[element(client, server, Service::Tcp(443))], Duration::from_millis(10));
            while !live(&mut wall, &second).is_empty() {}
            wall
        });
        assert_eq!(try_from(&net, client, server, "tcp/443"), Fate::Refused, "a new flow");
        talk(&mut stream).unwrap();
        // The resolver dies: what was refused stays refused, what was live lives.
        drop(wall);
        assert_eq!(try_from(&net, client, server, "tcp/443"), Fate::Refused, "without an owner");
        talk(&mut stream).unwrap();
        let third = layout.clone();
        let wall = net.gateway.run(move || {
            let mut wall = firewall(forward());
            wall.adopt(&third, now()).unwrap();
            wall
        });
        talk(&mut stream).unwrap();
        drop(wall);
    }
}

#[test]
fn a_change_of_layout_opens_and_closes_nothing_for_a_moment() {
    let Some(net) = Net::new() else { return };
    let office = || segment("office", &["192.0.2.0/24"], &[]);
    let other = || segment("other", &["192.0.2.128/25", "203.0.113.0/24"], &[("198.51.100.0/24", "any")]);
    let grants = [element(CLIENT[0], SERVER[0], Service::Tcp(443)), element("office", SERVER[0], Service::Tcp(80))];
    let mut wall = net.gateway.run(move || {
        let mut wall = firewall(forward());
        wall.adopt(&layout(vec![office()]), now()).unwrap();
        open(&mut wall, &grants, MINUTE);
        wall
    });
    let (done, end) = channel::<()>();
    thread::scope(|scope| {
        let gateway = &net.gateway;
        scope.spawn(move || {
            gateway.run(move || {
                for round in 0..20 {
                    wall.arrange(&layout(vec![office(), other()])).unwrap();
                    open(&mut wall, &grants, MINUTE + Duration::from_secs(round));
                    wall.adopt(&layout(vec![office()]), now()).unwrap();
                    // As after a crash: the next process takes over.
                    drop(wall);
                    wall = firewall(forward());
                    wall.adopt(&layout(vec![office()]), now()).unwrap();
                }
                drop(done);
                wall
            })
        });
        let tries = net.client.run(move || {
            let mut tries = 0;
            while end.try_recv() == Err(TryRecvError::Empty) {
                tcp(CLIENT[0], SERVER[0], 443).unwrap();
                tcp(CLIENT[0], SERVER[0], 80).unwrap();
                assert_eq!(tcp(CLIENT[0], SERVER[0], 22).map(|_| ()), Err(ErrorKind::ConnectionRefused));
                tries += 1;
            }
            tries
        });
        assert!(tries > 0);
    });
}

#[test]
fn settings_and_segments_decide_what_is_governed() {
    use Fate::{Arrives, Refused};
    let Some(net) = Net::new() else { return };
    // The client is in the inner segment; what the outer one may is not its business.
    let layout = layout(vec![
        segment("inner", &["192.0.2.0/28", "2001:db8:1::/112"], &[]),
        segment("observed", &["192.0.2.200/32", "2001:db8:1::200/128"], &[]),
        segment(
            "outer",
            &["192.0.2.0/24", "2001:db8:1::/64"],
            &[("198.51.100.0/24", "any"), ("2001:db8:2::/64", "any")],
        ),
    ]);
    let wall = net.gateway.run(move || {
        unlimited();
        let mut wall = firewall(Settings {
            ungated: vec!["198.51.100.2/32".parse().unwrap(), "2001:db8:2::2/128".parse().unwrap()],
            resolvers: vec![ip(SERVER[0]), ip(SERVER[1])],
            ..forward()
        });
        wall.adopt(&layout, now()).unwrap();
        let shared: Vec<_> = SERVER.map(|server| element("outer", server, Service::Tcp(443))).into();
        assert_eq!(open(&mut wall, &shared, MINUTE), [0; 0]);
        wall
    });
    for at in 0..2 {
        let (client, observed) = (CLIENT[at], STRANGER[at]);
        for (from, to, service, fate, why) in [
            (client, SERVER[at], "tcp/443", Refused, "granted to the outer segment"),
            (client, SERVER[at], "tcp/80", Refused, "a static rule of the outer segment"),
            (client, OTHER[at], "tcp/80", Arrives, "not governed"),
            (client, SERVER[at], "udp/53", Arrives, "a resolver"),
            (client, SERVER[at], "tcp/53", Arrives, "a resolver"),
            (client, SERVER[at], "tcp/853", Refused, "not the resolver's port"),
            (observed, SERVER[at], "tcp/80", Arrives, "observed"),
            (observed, SERVER[at], "udp/853", Arrives, "observed"),
        ] {
            assert_eq!(try_from(&net, from, to, service), fate, "{from} → {to} {service}: {why}");
        }
    }
    drop(wall);
}

#[test]
fn a_host_governs_its_own_flows() {
    use Fate::{Arrives, Refused};
    let Some(net) = Net::new() else { return };
    let mut wall = net.client.run(|| {
        unlimited();
        let mut wall = firewall(Settings { own_uid: Some(65533), ..Settings::new(Hook::Output) });
        wall.adopt(&layout(vec![segment("host", &["127.0.0.0/8", "::1/128"], &[])]), now()).unwrap();
        wall
    });
    for at in 0..2 {
        let (client, server) = (CLIENT[at], SERVER[at]);
        assert_eq!(try_from(&net, client, server, "udp/443"), Refused, "before");
        wall = net.client.run(move || {
            // Asked from the loopback, from an address of the machine, by the segment, and from elsewhere.
            let (loopback, elsewhere) = (["127.0.0.1", "::1"][at], ["203.0.113.9", "2001:db8:9::9"][at]);
            let grants = [
                element(loopback, server, Service::Tcp(443)),
                element(client, server, Service::Udp(443)),
                element("host", server, Service::Icmp),
                element(elsewhere, server, Service::Tcp(80)),
            ];
            assert_eq!(open(&mut wall, &grants, MINUTE), [0; 0]);
            run("nft", &["list", "ruleset"]);
            wall
        });
        for (service, fate) in [
            ("tcp/443", Arrives),
            ("udp/443", Arrives),
            ("icmp", Arrives),
            ("tcp/80", Refused),
            ("udp/80", Refused),
            ("tcp/53", Refused),
            ("udp/853", Refused),
        ] {
            assert_eq!(try_from(&net, client, server, service), fate, "{server} {service}");
        }
        // Within the machine, and answers to whoever asks it.
        net.client.run(|| TcpListener::bind("[::]:8081").map(serve).unwrap_or(()));
        net.client.run(move || tcp(client, client, 8081).unwrap());
        net.server.run(move || tcp(server, client, 8081).unwrap());
    }
    // The resolver's own user speaks to whom it must, DNS elsewhere too.
    net.client.run(|| {
        let mut wall = wall;
        let first = Settings { own_uid: Some(nix::unistd::geteuid().as_raw()), ..Settings::new(Hook::Output) };
        let root = Nftables::new(Common::new("host"), first, Clock::system()).map(|_| ());
        assert_eq!(root, Err(FirewallError::OwnUser), "root is nobody's own user");
        wall.arrange(&Layout::default()).unwrap();
    });
    assert_eq!(try_from(&net, CLIENT[0], SERVER[0], "tcp/80"), Refused, "without a segment");
}

#[test]
fn ten_thousand_segments_fit_into_one_transaction() {
    alone(|| {
        let mut firewall = firewall(Settings { size: 1 << 20, ..forward() });
        let segments = (0..10_000_u32).map(|number| {
            let prefix = |part: u32| format!("10.{}.{}.{}/30", number / 250, number % 250, part * 8);
            let sources: Vec<_> = (0..5).map(prefix).collect();
            segment(&format!("segment-{number}"), &sources.iter().map(String::as_str).collect::<Vec<_>>(), &[])
        });
        let mut all = layout(segments.collect());
        let clock = Clock::system();
        let timed = |what: &str, since: Tick| eprintln!("{what}: {:?}", clock.tick().since(since));
        let start = clock.tick();
        firewall.adopt(&all, start).unwrap();
        timed("adopt 10,000 segments, 50,000 prefixes", start);
        let elements: Vec<_> = (0..100_000).map(web).collect();
        let start = clock.tick();
        assert_eq!(open(&mut firewall, &elements, MINUTE), [0; 0]);
        timed("open 100,000", start);
        let start = clock.tick();
        for number in 0..1000 {
            open(&mut firewall, &[web(number)], 2 * MINUTE);
        }
        timed("extend 1,000 one by one", start);
        all.segments.pop();
        let start = clock.tick();
        firewall.arrange(&all).unwrap();
        timed("arrange, one segment fewer", start);
        let start = clock.tick();
        assert_eq!(firewall.adopt(&all, start).unwrap().len(), 100_000);
        timed("adopt again, 100,000 elements", start);
    });
}
