//! Restarts that nobody notices: the test is the service manager that holds the sockets.

use std::collections::HashSet;
use std::io::Write;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as SocketName, UnixDatagram};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;
use nix::sys::signal::Signal;
use serde_json::Value;
use socket2::{Domain, Socket, Type};

use crate::dns::{Client, Stream, a, addresses, code, extended_error, framed, query, with_edns};
use crate::harness::{BOUND, Site, ZONE, free_port, in_own_network, loopback, privileged, until};
use crate::tls;
use crate::upstream::{Upstream, with_addresses};

/// What a query may wait for its answer, over a restart too.
const PATIENCE: Duration = Duration::from_secs(1);

/// Restarts under load.
const RESTARTS: usize = 6;

/// A socket as a service manager makes it.
fn held(kind: Type, address: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::for_address(address), kind, None).unwrap();
    // ReusePort=yes, for those that share an address.
    socket.set_reuse_port(true).unwrap();
    if kind == Type::STREAM {
        socket.set_reuse_address(true).unwrap();
    }
    if address.is_ipv6() {
        socket.set_only_v6(true).unwrap();
    }
    socket.bind(&address.into()).unwrap();
    if kind == Type::STREAM {
        socket.listen(128).unwrap();
    }
    socket
}

pub(crate) fn udp(address: SocketAddr) -> Socket {
    held(Type::DGRAM, address)
}

pub(crate) fn tcp(address: SocketAddr) -> Socket {
    held(Type::STREAM, address)
}

/// The queries of a load: from a zone, from the cache, for the first time, denied.
fn question(client: usize, number: usize) -> Message {
    match number % 4 {
        0 => a("www.corp.example"),
        1 => a(&format!("x{}.example.net", number % 16)),
        2 => a(&format!("r{client}-{number}.example.net")),
        _ => a("example.org"),
    }
}

/// How long each query waited that was asked once, over UDP, until `over`.
fn ask_once(site: &Site, number: usize, over: &AtomicBool) -> Vec<Duration> {
    let client = Client::new(site.dns);
    let ask = |count| {
        let question = question(number, count);
        let start = Instant::now();
        let reply = client.ask(&question).unwrap_or_else(|| panic!("a datagram was lost: {question}"));
        assert_ne!(code(&reply), ResponseCode::ServFail, "{reply}");
        start.elapsed()
    };
    (0..).take_while(|_| !over.load(Ordering::SeqCst)).map(ask).collect()
}

/// The same over TCP, asked again where the connection had ended before the answer.
fn ask_again(site: &Site, number: usize, over: &AtomicBool) -> Vec<Duration> {
    let mut stream = Stream::new(site.dns);
    let mut waited = Vec::new();
    for count in (0..).take_while(|_| !over.load(Ordering::SeqCst)) {
        let question = question(number, count).to_vec().unwrap();
        let start = Instant::now();
        // What a restart closes, it closes once.
        let answered = (0..2 * RESTARTS).any(|_| {
            let sent = stream.0.write_all(&framed(&question));
            let reply = sent.ok().and_then(|()| stream.receive());
            if reply.is_none() {
                stream = Stream::new(site.dns);
            }
            reply.is_some()
        });
        assert!(answered, "connections end before they bring an answer");
        waited.push(start.elapsed());
    }
    waited
}

/// Ends a load, also where a test fails meanwhile.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// The addresses that are open.
fn open(site: &Site) -> HashSet<String> {
    let grants: Value = serde_json::from_str(&site.run(&["grants", "--json"]).stdout).unwrap();
    grants.as_array().unwrap().iter().map(|grant| grant["address"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn no_query_is_lost_over_restarts_under_load() {
    restart_under_load("[[firewall]]\nname = \"memory\"\nkind = \"memory\"", |_| {});
}

#[test]
fn what_the_kernel_has_open_stays_open_over_restarts_under_load() {
    if !privileged() {
        return;
    }
    in_own_network(|| {
        let nftables = "[[firewall]]\nname = \"gateway\"\nkind = \"nftables\"\nhook = \"forward\"\ninside = [\"lo\"]";
        restart_under_load(nftables, |site| {
            assert!(open(site).contains("198.51.100.8"), "{:?}", open(site));
        });
    });
}

/// Restarts a node under load; `look` at it before each.
fn restart_under_load(firewall: &str, look: impl Fn(&Site)) {
    // One address that no other name has.
    let upstream = Upstream::saying(|question| {
        let live = question.queries[0].name().to_ascii().to_lowercase().starts_with("live");
        Some(with_addresses(question, if live { 2 } else { 1 }))
    });
    let site = Site::new().with_servers(&[upstream.address]).with("firewall", firewall);
    let (udp, tcp) = (udp(site.dns), tcp(site.dns));
    let sockets = [&udp, &tcp];
    let mut node = site.start_given(&sockets);
    assert!(!node.stderr().contains("WARN"), "{}", node.stderr());
    Client::new(site.dns).told("live.example.net");
    let denied = site.run(&["deny", "www2.corp.example", "--segment", "loop", "--reason", "test"]);
    assert_eq!(denied.code, Some(0), "{denied:?}");
    let over = AtomicBool::new(false);
    let waited: Vec<Duration> = std::thread::scope(|scope| {
        let (site, over) = (&site, &over);
        let mut askers: Vec<_> = (0..3).map(|number| scope.spawn(move || ask_once(site, number, over))).collect();
        askers.push(scope.spawn(move || ask_again(site, 3, over)));
        let ends = Ends(over);
        for _ in 0..RESTARTS {
            let before = site.metric_sum("outgate_queries_total");
            until("queries are answered", || site.metric_sum("outgate_queries_total") > before + 200.0);
            look(site);
            assert_eq!(node.stop(), Some(0), "{}", node.stderr());
            node = site.start_given(&sockets);
        }
        look(site);
        drop(ends);
        askers.into_iter().flat_map(|asker| asker.join().unwrap()).collect()
    });
    let longest = waited.iter().max().unwrap();
    println!("{RESTARTS} restarts, {} queries, the longest waited {longest:?}", waited.len());
    assert!(*longest < PATIENCE, "{longest:?}");
    let status: Value = serde_json::from_str(&site.run(&["status", "--json"]).stdout).unwrap();
    assert_eq!(status["changes"]["rules"].as_array().unwrap().len(), 1, "{status}");
    assert_eq!(node.stop(), Some(0));
    let closes = site.records().iter().filter(|record| record["op"] == "close").count();
    assert_eq!(closes, RESTARTS + 1);
    site.verified();
}

#[test]
fn what_waits_in_the_sockets_is_answered_by_the_next_process() {
    let (site, dot) = tls::site("tls");
    let port = site.dns.port();
    let any = SocketAddr::from(([0, 0, 0, 0], port));
    let listen = format!("[listen]\ndns = [\"{any}\"]\nworkers = 2\ntls = [\"{dot}\"]");
    let site = site.with("listen", listen);
    let (udp, tcp, over_tls) = (udp(any), tcp(any), tcp(dot));
    // Nobody has started yet.
    let clients: Vec<Client> = (1..100).map(|last| Client::new(([127, 0, 0, last], port).into())).collect();
    for client in &clients {
        client.socket.send(&a("www.corp.example").to_vec().unwrap()).unwrap();
    }
    let mut stream = Stream::new(site.dns);
    stream.send(&a("www.corp.example").to_vec().unwrap());
    let node = site.start_given(&[&udp, &tcp, &over_tls]);
    for client in &clients {
        // A connected socket takes the reply from the address that it asked, and from no other.
        let reply = Message::from_vec(&client.receive().expect("it had waited")).unwrap();
        assert_eq!(addresses(&reply), ["192.0.2.80"]);
    }
    assert!(stream.receive().is_some());
    let mut encrypted = tls::connect(dot, &tls::client(&site, &[]));
    assert_eq!(addresses(&encrypted.ask(&a("www.corp.example"))), ["192.0.2.80"]);
    assert!(!node.stderr().contains("WARN"), "{}", node.stderr());
}

#[test]
fn every_socket_is_served_however_many_workers_there_are() {
    for (sockets, workers) in [(1, 4), (2, 1), (2, 3), (3, 2)] {
        let site = Site::new();
        let listen = format!("[listen]\ndns = [\"{}\"]\nworkers = {workers}", site.dns);
        let site = site.with("listen", listen);
        let held: Vec<Socket> = (0..sockets).map(|_| udp(site.dns)).collect();
        let node = site.start_given(&held.iter().collect::<Vec<_>>());
        // The kernel chooses a socket by the client's port.
        for _ in 0..64 {
            assert_eq!(addresses(&Client::new(site.dns).told("www.corp.example")), ["192.0.2.80"]);
        }
        let missing = format!(
            "[listen].dns: the service manager gives no socket for {0}, which is bound here: nobody answers there \
             during a restart; add ListenStream={0} to outgate.socket",
            site.dns
        );
        assert!(node.stderr().contains(&missing), "{}", node.stderr());
        assert_eq!(node.stderr().matches("WARN").count(), 1, "{}", node.stderr());
        Stream::new(site.dns).ask(&a("www.corp.example"));
    }
}

#[test]
fn sockets_that_no_door_can_have_stop_the_start() {
    let site = Site::new();
    let elsewhere = loopback(free_port());
    let all = SocketAddr::from(([0; 16], free_port()));
    let both = Socket::new(Domain::IPV6, Type::DGRAM, None).unwrap();
    both.set_only_v6(false).unwrap();
    both.bind(&all.into()).unwrap();
    let idle = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    idle.bind(&elsewhere.into()).unwrap();
    let (health, health_too) = (tcp(site.health), tcp(site.health));
    let file = Socket::from(OwnedFd::from(std::fs::File::open(site.path("outgate.toml")).unwrap()));
    let no_door = |protocol: &str| {
        format!(
            "1 mistake; nothing was started or changed\nthe service manager gives a socket for {elsewhere} ({protocol}), \
             and no door is configured there\n  \
             add the address to [listen], or take it out of outgate.socket: nobody would answer there"
        )
    };
    let useless = "1 mistake; nothing was started or changed\ndescriptor 3, which the service manager gives, is no UDP \
        socket and none that listens for TCP\n  \
        give addresses with their ports in ListenDatagram= and ListenStream= of outgate.socket, and leave Accept= out";
    let twice = format!(
        "1 mistake; nothing was started or changed\nthe service manager gives {} (TCP) more than once, and \
         [health].listen takes one\n  leave one of them in outgate.socket",
        site.health
    );
    let mixed = format!(
        "1 mistake; nothing was started or changed\nthe socket for {all} that the service manager gives takes IPv4 as \
         well\n  write BindIPv6Only=ipv6-only in outgate.socket, and a line with 0.0.0.0 for IPv4"
    );
    let strange = udp(elsewhere);
    let refuses = |sockets: &[&Socket], text: &str| {
        let mut node = site.spawn_given(sockets);
        assert_eq!(node.wait(), Some(2));
        assert_eq!(node.stderr(), format!("outgate: {text}\n"));
        assert!(!site.path("state").exists() && !site.path("query.jsonl").exists());
    };
    refuses(&[&strange], &no_door("UDP"));
    refuses(&[&idle], useless);
    refuses(&[&file], useless);
    refuses(&[&health, &health_too], &twice);
    refuses(&[&both], &mixed);
    drop(idle);
    refuses(&[&tcp(elsewhere)], &no_door("TCP"));
}

#[test]
fn sockets_for_another_process_are_left_alone() {
    let site = Site::new();
    let mut node = site.spawn_command(site.command(&["run"]).env("LISTEN_FDS", "2").env("LISTEN_PID", "1"));
    until("it is ready", || node.has_ended() || site.get("/health/ready").is_some_and(|(status, _)| status == 200));
    assert!(!node.stderr().contains("WARN"), "{}", node.stderr());
    assert_eq!(node.stop(), Some(0), "{}", node.stderr());
}

#[test]
fn an_upstream_that_hangs_does_not_hold_up_the_end() {
    let upstream = Upstream::silent();
    let site = Site::new().with_servers(&[upstream.address]);
    let mut node = site.start();
    let client = Client::new(site.dns);
    client.socket.send(&with_edns(a("udp.example.net"), 1232).to_vec().unwrap()).unwrap();
    let mut stream = Stream::new(site.dns);
    for name in ["one.example.net", "two.example.net"] {
        stream.send(&with_edns(a(name), 1232).to_vec().unwrap());
    }
    until("the upstream is asked", || upstream.asked() >= 3);
    node.signal(Signal::SIGTERM);
    let replies = [client.receive(), stream.receive(), stream.receive()];
    for reply in replies {
        let reply = Message::from_vec(&reply.expect("it was taken, and is answered")).unwrap();
        // RFC 8914 §4.15: Not Ready.
        assert_eq!((code(&reply), extended_error(&reply)), (ResponseCode::ServFail, Some(14)), "{reply}");
    }
    assert_eq!(stream.receive(), None);
    assert_eq!(node.wait(), Some(0), "{}", node.stderr());
    assert!(!node.stderr().contains("are cut"), "{}", node.stderr());
    let queries = site.queries();
    assert_eq!(queries.len(), 3);
    assert!(queries.iter().all(|record| record["reason"] == "shutdown"), "{queries:?}");
    site.verified();
}

#[test]
fn a_client_that_takes_no_answers_does_not_hold_up_the_end() {
    let site = Site::new();
    site.file("zones/corp.example.zone", &format!("{ZONE}long TXT {}\n", vec!["x".repeat(250); 100].join(" ")));
    let mut node = site.start();
    let mut stream = Stream::new(site.dns);
    stream.0.set_write_timeout(Some(PATIENCE / 5)).unwrap();
    // It asks until it can send no more, and reads nothing.
    let questions = framed(&query("long.corp.example", RecordType::TXT).to_vec().unwrap()).repeat(1_000);
    while stream.0.write_all(&questions).is_ok() {}
    node.signal(Signal::SIGTERM);
    let start = Instant::now();
    assert_eq!(node.wait(), Some(0), "{}", node.stderr());
    assert!(start.elapsed() < PATIENCE * 8 / 5, "{:?}", start.elapsed());
    site.verified();
}

#[test]
fn the_service_manager_is_told_that_it_serves_and_that_it_stops() {
    let site = Site::new();
    let path = site.path("notify");
    let abstract_name = format!("outgate-test-{}", std::process::id());
    let sockets = [
        (path.display().to_string(), UnixDatagram::bind(&path).unwrap()),
        (
            format!("@{abstract_name}"),
            UnixDatagram::bind_addr(&SocketName::from_abstract_name(&abstract_name).unwrap()).unwrap(),
        ),
    ];
    for (name, manager) in sockets {
        manager.set_read_timeout(Some(BOUND)).unwrap();
        let told = || {
            let mut buffer = [0; 64];
            let length = manager.recv(&mut buffer).unwrap();
            String::from_utf8(buffer[..length].to_vec()).unwrap()
        };
        let mut node = site.spawn_command(site.command(&["run"]).env("NOTIFY_SOCKET", name));
        assert_eq!(told(), "READY=1");
        // From here on, and not before: nobody asks twice.
        assert_eq!(addresses(&Client::new(site.dns).told("www.corp.example")), ["192.0.2.80"]);
        assert_eq!(node.stop(), Some(0), "{}", node.stderr());
        assert_eq!(told(), "STOPPING=1");
    }
}
