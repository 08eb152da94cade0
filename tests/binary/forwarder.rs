//! Behind forwarders that say who asks: dnsdist as contrib/dnsdist has it, and one that does what contrib/coredns says.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, ResponseCode};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use serde_json::Value;

use crate::dns::{Client, Stream, a, addresses, code};
use crate::harness::{BOUND, Site, free_port, until};
use crate::programs::{Running, are_here, command};
use crate::upstream::Upstream;

/// Two segments by the client's address; the forwarder is in neither.
const POLICY: &str = r#"
[[segment]]
name    = "shop"
clients = ["127.0.0.7"]
[[segment]]
name    = "till"
clients = ["127.0.0.8"]
[[rule]]
id       = "shop"
action   = "allow"
segments = ["shop"]
names    = ["www.example.net"]
private  = ["198.51.100.0/24"]
[[rule]]
id       = "till"
action   = "allow"
segments = ["till"]
names    = ["pay.example.net"]
private  = ["198.51.100.0/24"]
"#;

const SHOP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 7));
const TILL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 8));

/// Where the forwarder asks from.
const FORWARDER: [u8; 4] = [127, 0, 0, 53];

fn site(name: &'static str, identity: &str, upstream: &Upstream) -> Site {
    let forwarder =
        format!("[[forwarder]]\nname = \"{name}\"\naddresses = [\"127.0.0.53\"]\nidentity = \"{identity}\"");
    let site = Site::new().with_servers(&[upstream.address]).with("forwarder", forwarder);
    site.file("policy/loop.toml", POLICY);
    site
}

/// dnsdist with an example of contrib, its addresses those of this test; `None`: it is not installed.
fn dnsdist(site: &Site, example: &str) -> Option<(Running, SocketAddr)> {
    if !are_here(&["dnsdist"]) {
        return None;
    }
    let address = SocketAddr::from((FORWARDER, free_port()));
    let text = fs::read_to_string(format!("{}/contrib/dnsdist/{example}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let text = text.replace("192.0.2.10:53", &address.to_string()).replace("192.0.2.10", "127.0.0.53");
    let text = text.replace("192.0.2.53:53", &site.dns.to_string()).replace("192.0.2.0/24", "127.0.0.0/8");
    // It would ask its maker whether it is up to date.
    site.file("dnsdist.conf", &format!("setSecurityPollSuffix(\"\")\n{text}"));
    let log = || File::create(site.path("dnsdist.log")).unwrap();
    let mut dnsdist = command("dnsdist");
    dnsdist.args(["--supervised", "--disable-syslog", "-C"]).arg(site.path("dnsdist.conf"));
    let running = Running::start(dnsdist.stdout(log()).stderr(log()));
    until("dnsdist answers", || {
        let client = Client::from([127, 0, 0, 9].into(), address).patience(Duration::from_millis(200));
        client.ask(&a("ready.example.net")).is_some()
    });
    Some((running, address))
}

/// A connection to `server` from this address.
fn stream_from(local: IpAddr, server: SocketAddr) -> Stream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((local, 0)).into()).unwrap();
    socket.connect(&server.into()).unwrap();
    socket.set_read_timeout(Some(BOUND)).unwrap();
    Stream(socket.into())
}

/// The records of this client, in order: transport, name, segment, verdict; all asked by the forwarder.
fn seen(site: &Site, client: IpAddr, forwarder: &str) -> Vec<String> {
    let mine = |record: &Value| record["client"] == client.to_string();
    let records = site.queries().into_iter().filter(mine).map(|record| {
        assert_eq!(record["asked_by"], forwarder, "{record}");
        let word = |key: &str| record[key].as_str().unwrap_or("-").to_owned();
        format!("{} {} {} {}", word("transport"), word("qname"), word("segment"), word("verdict"))
    });
    records.collect()
}

/// Each client gets its own verdicts, over both transports, twice: the second time they are known here.
fn each_client_has_its_own_verdicts(site: &Site, address: SocketAddr, name: &str, streams: bool) {
    let allowed = |reply: &Message| assert_eq!(addresses(reply), ["198.51.100.7"], "{reply}");
    let denied = |reply: &Message| assert_eq!(code(reply), ResponseCode::NXDomain, "{reply}");
    for (client, own, other) in
        [(SHOP, "www.example.net", "pay.example.net"), (TILL, "pay.example.net", "www.example.net")]
    {
        let asker = Client::from(client, address);
        for _ in 0..2 {
            allowed(&asker.told(own));
            denied(&asker.told(other));
        }
        if streams {
            let mut stream = stream_from(client, address);
            allowed(&stream.ask(&a(own)));
            denied(&stream.ask(&a(other)));
        }
    }
    for (client, segment, own, other) in
        [(SHOP, "shop", "www.example.net", "pay.example.net"), (TILL, "till", "pay.example.net", "www.example.net")]
    {
        let mut expected = Vec::new();
        let lines = |transport: &str| {
            [format!("{transport} {own} {segment} allow"), format!("{transport} {other} {segment} deny")]
        };
        expected.extend([lines("udp"), lines("udp")].into_iter().flatten());
        if streams {
            expected.extend(lines("tcp"));
        }
        assert_eq!(seen(site, client, name), expected);
    }
    // One grant each, for the client itself.
    let grants = site.records().into_iter().filter(|record| record["type"] == "grant");
    let opened: Vec<String> = grants.map(|record| record["client"].as_str().unwrap_or("-").to_owned()).collect();
    assert_eq!(opened, [SHOP.to_string(), TILL.to_string()]);
}

/// A client that names another in a client subnet of its own.
fn forging(client: IpAddr) -> Message {
    let mut message = a("www.example.net");
    let mut edns = Edns::new();
    let IpAddr::V4(client) = client else { panic!("these clients have IPv4") };
    let data = [[0, 1, 32, 0], client.octets()].concat();
    edns.options_mut().insert(EdnsOption::Unknown(8, data));
    message.set_edns(edns);
    message
}

#[test]
fn dnsdist_names_its_clients_by_subnet() {
    let upstream = Upstream::start();
    let site = site("dnsdist", "ecs", &upstream);
    let mut node = site.start();
    let Some((dnsdist, address)) = dnsdist(&site, "ecs.conf") else { return };
    each_client_has_its_own_verdicts(&site, address, "dnsdist", true);
    assert_eq!(upstream.asked(), 2, "each name was asked once");
    // Whom a client names does not count.
    let reply = Client::from(TILL, address).ask(&forging(SHOP)).unwrap();
    assert_eq!(code(&reply), ResponseCode::NXDomain);
    assert_eq!(seen(&site, TILL, "dnsdist").pop().unwrap(), "udp www.example.net till deny");
    // One that is in no segment is refused, and recorded by its own address.
    assert_eq!(code(&Client::from([127, 0, 0, 9].into(), address).told("www.example.net")), ResponseCode::Refused);
    assert!(seen(&site, [127, 0, 0, 9].into(), "dnsdist").contains(&"udp www.example.net - deny".to_owned()));
    drop(dnsdist);
    assert_eq!(node.stop(), Some(0));
    site.verified();
}

#[test]
fn dnsdist_names_its_clients_by_proxy_header() {
    let upstream = Upstream::start();
    let site = site("dnsdist", "proxy", &upstream);
    let mut node = site.start();
    let Some((dnsdist, address)) = dnsdist(&site, "proxy.conf") else { return };
    each_client_has_its_own_verdicts(&site, address, "dnsdist", true);
    assert_eq!(upstream.asked(), 2, "each name was asked once");
    let reply = Client::from(TILL, address).ask(&forging(SHOP)).unwrap();
    assert_eq!(code(&reply), ResponseCode::NXDomain);
    drop(dnsdist);
    // The same address without a header.
    let plain = Client::from(FORWARDER.into(), site.dns);
    assert_eq!(code(&plain.told("www.example.net")), ResponseCode::Refused);
    let mut stream = stream_from(FORWARDER.into(), site.dns);
    stream.send(&a("www.example.net").to_vec().unwrap());
    assert_eq!(stream.receive(), None, "the connection is closed");
    until("both are recorded", || {
        let mut broken = site.queries();
        broken.retain(|record| record["why"] == "no PROXY header, version 2");
        broken.len() == 2 && broken.iter().all(|record| record["asked_by"] == "dnsdist")
    });
    assert_eq!(site.metric("outgate_streams_closed_total{why=\"unproxied\"}"), 1.0);
    assert_eq!(node.stop(), Some(0));
    site.verified();
}

#[test]
fn a_proxy_header_stands_before_tls() {
    let (site, address) = crate::tls::site("tls");
    let forwarder = "[[forwarder]]\nname = \"edge\"\naddresses = [\"127.0.0.53\"]\nidentity = \"proxy\"";
    let site = site.with("forwarder", forwarder);
    site.file("policy/loop.toml", &POLICY.replace("www.example.net", "www.corp.example"));
    let mut node = site.start();
    let header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x7f\0\0\x07\x7f\0\0\x01\x12\x34\x03\x55";
    let mut stream = crate::tls::connect_from(FORWARDER, address, &crate::tls::client(&site, &[b"dot"]));
    stream.0.sock.write_all(header).unwrap();
    assert_eq!(addresses(&stream.ask(&a("www.corp.example"))), ["192.0.2.80"]);
    let record = site.queries().pop().unwrap();
    assert_eq!([&record["client"], &record["segment"], &record["transport"]], ["127.0.0.7", "shop", "dot"]);
    assert_eq!((&record["asked_by"], &record["port"]), (&"edge".into(), &0x1234.into()));
    assert_eq!(node.stop(), Some(0));
    site.verified();
}

#[test]
fn a_forwarder_is_checked_and_explained() {
    let upstream = Upstream::start();
    let site = site("dnsdist", "ecs", &upstream);
    let explained = |client: &str| site.run(&["explain", "--client", client, "www.example.net"]).stdout;
    let told = explained("127.0.0.53");
    assert!(told.contains("asked by 127.0.0.53 through forwarder dnsdist, in no segment"), "{told}");
    assert!(told.contains("sees REFUSED and EDE 18: the forwarder does not name its client"), "{told}");
    assert!(told.contains("it names its clients, who are explained by their own addresses"), "{told}");
    assert!(explained("127.0.0.7").contains("asked by 127.0.0.7, segment shop"));
    for (keys, told) in [
        ("identity = \"ecs\"\nsegment = \"shop\"", "valid: "),
        ("identity = \"proxy\"", "valid: "),
        ("identity = \"xff\"", "`identity` cannot be \"xff\"\n  write \"none\", \"ecs\" or \"proxy\""),
        (
            "",
            "`segment` is missing\n  name the segment that its queries belong to, or let it say who asks: identity = ",
        ),
        (
            "segment = \"shop\"",
            "the forwarder edge hides who asks, and the segment shop (policy/loop.toml:2:1) opens for",
        ),
        (
            "identity = \"ecs\"\nsegment = \"attic\"",
            "the forwarder edge asks for the segment \"attic\", which no policy",
        ),
    ] {
        let forwarder = format!("[[forwarder]]\nname = \"edge\"\naddresses = [\"127.0.0.53\"]\n{keys}");
        let site = Site::new().with("forwarder", forwarder);
        site.file("policy/loop.toml", POLICY);
        let checked = site.run(&["check"]);
        let said = checked.stdout + &checked.stderr;
        assert!(said.contains(told), "{keys}: {said}");
        assert!(told.starts_with("valid") || said.contains("outgate.toml:"), "{said}");
    }
}

/// What CoreDNS does with `rewrite edns0 subnet set 32 128` and `forward`: the first client subnet of a query becomes the
/// client's address, or one is added; the reply is passed on.
struct CoreDns {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl CoreDns {
    fn start(server: SocketAddr) -> Self {
        let socket = UdpSocket::bind(SocketAddr::from((FORWARDER, 0))).unwrap();
        let address = socket.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let thread = std::thread::spawn(move || {
            let server = Client::from(FORWARDER.into(), server);
            let mut buffer = [0; 4_096];
            while !stopped.load(Ordering::SeqCst) {
                let Ok((length, client)) = socket.recv_from(&mut buffer) else { continue };
                let mut query = Message::from_vec(&buffer[..length]).unwrap();
                let IpAddr::V4(from) = client.ip() else { continue };
                let data = [[0, 1, 32, 0], from.octets()].concat();
                let mut edns = query.edns.take().unwrap_or_default();
                edns.options_mut().remove(EdnsCode::Subnet);
                edns.options_mut().insert(EdnsOption::Unknown(8, data.clone()));
                query.set_edns(edns);
                let reply = server.exchange(&query.to_vec().unwrap()).unwrap();
                // For this client and no other: whoever heeds it keeps the reply apart.
                let scoped = [&[0, 8, 0, 8, 0, 1, 32, 32], &data[4..]].concat();
                assert!(reply.windows(12).any(|part| part == scoped), "{reply:x?}");
                socket.send_to(&reply, client).unwrap();
            }
        });
        Self { address, stop, thread: Some(thread) }
    }
}

impl Drop for CoreDns {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || ended.is_none_or(|ended| ended.is_ok()));
    }
}

#[test]
fn coredns_names_its_clients_by_subnet() {
    let corefile = include_str!("../../contrib/coredns/Corefile");
    let said: Vec<&str> = corefile.lines().map(str::trim).filter(|line| !line.starts_with('#')).collect();
    assert!(said.contains(&"rewrite edns0 subnet set 32 128") && !said.iter().any(|line| line.starts_with("cache")));
    let upstream = Upstream::start();
    let site = site("coredns", "ecs", &upstream);
    let mut node = site.start();
    let coredns = CoreDns::start(site.dns);
    each_client_has_its_own_verdicts(&site, coredns.address, "coredns", false);
    let reply = Client::from(TILL, coredns.address).ask(&forging(SHOP)).unwrap();
    assert_eq!(code(&reply), ResponseCode::NXDomain);
    drop(coredns);
    assert_eq!(node.stop(), Some(0));
    site.verified();
}
