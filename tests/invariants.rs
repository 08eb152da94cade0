//! The invariants I1 to I4 and I7 as properties of the whole gate: whatever is sent, whenever.
//!
//! [`World::send`] checks I1, I4 and I7 at every packet; here are the packets that nobody would write by hand.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

#[expect(dead_code, reason = "the scenarios use all of it")]
mod gate;
mod junk;

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use gate::{Act, Answer, Ask, Plan, Reply, Setup, World};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, NULL};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use outgate::audit::Transport;
use outgate::grant::Terms;
use outgate::policy::Source;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

/// `shop` may ask a few names below example.com; nobody may ask anything below example.net.
const POLICY: &str = r#"
[[segment]]
name    = "shop"
clients = ["192.0.2.0/25"]
[[segment]]
name    = "office"
clients = ["192.0.2.128/25"]
refusal = "refused"
[[rule]]
id       = "all"
action   = "allow"
segments = ["shop", "office"]
names    = ["**.example.com"]
[[rule]]
id       = "no-ads"
action   = "deny"
segments = ["*"]
names    = ["ads.example.com", "**.ads.example.com"]
"#;

/// In `shop`, in `office`, in no segment.
const CLIENTS: [&str; 3] = ["192.0.2.1", "192.0.2.201", "203.0.113.9"];

fn world(upstreams: Vec<Plan>, terms: Terms) -> World {
    let policy = vec![Source { file: "policy.toml".to_owned(), text: POLICY.to_owned() }];
    World::start(Setup { policy, upstreams, terms, ..Setup::default() }).unwrap()
}

fn upstream(name: &str, segments: &[&str]) -> Plan {
    let segments = segments.iter().map(|segment| (*segment).to_owned()).collect();
    Plan { name: name.to_owned(), zones: Vec::new(), segments, private: vec!["198.51.100.0/24".parse().unwrap()] }
}

fn answers(world: &World, name: &str, ttl: u32) {
    for server in &world.servers {
        let owner = Name::from_ascii(name).unwrap();
        let record = Record::from_rdata(owner, ttl, RData::A(A::new(198, 51, 100, 7)));
        let (rcode, records) = (ResponseCode::NoError, vec![record]);
        let answer = Answer { rcode, records, authority: Vec::new(), ede: None, truncated: false };
        server.script(name, RecordType::A, Act::Answer(answer));
    }
}

/// Runs `property` over `cases` inputs; nothing is written into the tree where one fails.
fn check<S: Strategy>(cases: u32, strategy: &S, property: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    TestRunner::new(config).run(strategy, property).unwrap();
}

/// One packet, and who sends it how.
#[derive(Clone, Debug)]
struct Sent {
    packet: Vec<u8>,
    client: IpAddr,
    port: u16,
    transport: Transport,
}

impl Sent {
    fn by(&self) -> SocketAddr {
        SocketAddr::new(self.client, self.port)
    }
}

/// `name` with the letters at the set bits of `upper` in upper case.
fn cased(name: &str, upper: u64) -> String {
    let letter = |(at, letter): (usize, char)| {
        if upper >> (at % 64) & 1 == 1 { letter.to_ascii_uppercase() } else { letter }
    };
    name.chars().enumerate().map(letter).collect()
}

/// A query for `name` and `kind` in any shape that a client may give it.
fn asked(name: String, kind: RecordType) -> impl Strategy<Value = Vec<u8>> {
    let options = prop::collection::vec((any::<u16>(), prop::collection::vec(any::<u8>(), 0..24)), 0..3);
    let edns = prop::option::of((any::<u16>(), any::<bool>(), options));
    (any::<u16>(), any::<u64>(), edns, any::<[bool; 3]>()).prop_map(move |(id, upper, edns, [rd, cd, ad])| {
        let mut ask = Ask::new(&cased(&name, upper), kind);
        (ask.recursion_desired, ask.checking_disabled, ask.authentic_data) = (rd, cd, ad);
        ask.edns = None;
        if let Some((size, dnssec_ok, options)) = edns {
            (ask.edns, ask.dnssec_ok, ask.options) = (Some(size), dnssec_ok, options);
        }
        ask.bytes(id)
    })
}

/// Names that nobody may ask, and allowed ones with types that nobody may ask; who asks them, and from where.
fn refused() -> impl Strategy<Value = (Vec<u8>, usize)> {
    let outside = prop::collection::vec("[a-z0-9_][a-z0-9_-]{0,11}", 0..4).prop_map(|mut labels| {
        labels.push("example.net.".to_owned());
        labels.join(".")
    });
    let denied = "([a-z]{1,9}\\.)?ads\\.example\\.com\\.";
    let types = prop::sample::select(vec![1_u16, 2, 5, 6, 12, 15, 16, 28, 33, 43, 48, 64, 65, 99, 255, 257, 731]);
    let others = prop::sample::select(vec![2_u16, 5, 6, 16, 33, 43, 46, 47, 48, 64, 65, 731]);
    let kind = RecordType::from;
    let name = prop_oneof![outside, denied];
    prop_oneof![
        4 => (name, types, 0..CLIENTS.len())
            .prop_flat_map(move |(name, number, client)| (asked(name, kind(number)), Just(client))),
        2 => ("[a-z]{1,9}\\.example\\.com\\.", others, 0..CLIENTS.len())
            .prop_flat_map(move |(name, number, client)| (asked(name, kind(number)), Just(client))),
        // A client in no segment, an allowed name.
        1 => "[a-z]{1,9}\\.example\\.com\\.".prop_flat_map(move |name| (asked(name, RecordType::A), Just(2))),
    ]
}

/// What is done to a packet on its way. A name that nobody may ask stays one: its last labels are too far from those
/// of an allowed name for so few octets.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let name = prop::collection::vec("[a-z0-9]{1,12}", 0..3).prop_map(|mut labels| {
        labels.push("some-other-zone.example.net.".to_owned());
        labels.join(".")
    });
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    let tail = prop::collection::vec(any::<u8>(), 0..12);
    let cut = prop::option::weighted(0.2, any::<prop::sample::Index>());
    let packet = name.prop_flat_map(|name| asked(name, RecordType::A));
    let of_query = (packet, changes, tail, cut).prop_map(|(mut packet, changes, tail, cut)| {
        for (at, octet) in changes {
            let at = at.index(packet.len());
            packet[at] = octet;
        }
        packet.extend(tail);
        packet.truncate(cut.map_or(packet.len(), |at| at.index(packet.len())));
        packet
    });
    prop_oneof![4 => of_query, 1 => prop::collection::vec(any::<u8>(), 0..600)]
}

fn sent(packet: Vec<u8>, client: usize, port: u16, tcp: bool) -> Sent {
    let transport = if tcp { Transport::Tcp } else { Transport::Udp };
    Sent { packet, client: CLIENTS[client].parse().unwrap(), port, transport }
}

/// I1, I7: what nobody may ask never goes upstream, and each packet has its one record.
#[test]
fn i1_what_is_refused_never_goes_upstream() {
    let world = RefCell::new(world(Vec::new(), Terms::default()));
    let strategy = (refused(), 1..u16::MAX, any::<bool>())
        .prop_map(|((packet, client), port, tcp)| sent(packet, client, port, tcp));
    check(4_000, &strategy, |sent| {
        let exchange = world.borrow_mut().send(&sent.packet, sent.by(), sent.transport);
        let exchange = exchange.map_err(TestCaseError::fail)?;
        prop_assert_eq!(&exchange.record()["verdict"], "deny", "{}", exchange.record());
        let reply = Reply::read(exchange.reply.as_ref().expect("a reply")).map_err(TestCaseError::fail)?;
        prop_assert_eq!(reply.message.answers.len(), 0);
        Ok(())
    });
    let world = world.into_inner();
    assert_eq!(world.upstream_packets(), 0);
    assert_eq!(world.firewall.elements(), []);
    world.finish().unwrap();
}

/// I1, I7: neither does anything that can be made of such a packet, nor any junk.
#[test]
fn i1_broken_packets_never_go_upstream() {
    let world = RefCell::new(world(Vec::new(), Terms::default()));
    let strategy = (mutated(), 0..CLIENTS.len(), 1..u16::MAX, any::<bool>())
        .prop_map(|(packet, client, port, tcp)| sent(packet, client, port, tcp));
    check(6_000, &strategy, |sent| {
        let exchange = world.borrow_mut().send(&sent.packet, sent.by(), sent.transport);
        let exchange = exchange.map_err(TestCaseError::fail)?;
        prop_assert_eq!(&exchange.record()["verdict"], "deny", "{}", exchange.record());
        Ok(())
    });
    let world = world.into_inner();
    assert_eq!(world.upstream_packets(), 0);
    assert_eq!(world.firewall.elements(), []);
    world.finish().unwrap();
}

/// I2: of one name, type and view the packets upstream are all the same, but for their id and the case of their
/// letters, whatever the clients sent. The cookie is the server's.
#[test]
fn i2_no_octet_of_a_client_goes_upstream() {
    let world = RefCell::new(world(vec![upstream("default", &[]), upstream("office", &["office"])], Terms::default()));
    answers(&world.borrow(), "api.example.com.", 5);
    let strategy = (asked("api.example.com.".to_owned(), RecordType::A), 0..2_usize, 1..u16::MAX, any::<bool>())
        .prop_map(|(packet, client, port, tcp)| sent(packet, client, port, tcp));
    check(300, &strategy, |sent| {
        let mut world = world.borrow_mut();
        // Nothing is known any more: every one of them is asked.
        world.clock.advance(Duration::from_secs(6));
        let exchange = world.send(&sent.packet, sent.by(), sent.transport).map_err(TestCaseError::fail)?;
        prop_assert_eq!(&exchange.record()["cache"], "miss", "{}", exchange.record());
        Ok(())
    });
    let world = world.into_inner();
    let mut masked: Vec<Vec<u8>> = Vec::new();
    let (mut whole, mut cookies) = (0, Vec::new());
    for server in &world.servers {
        let seen = server.seen();
        assert!(seen.len() > 50, "{}: {}", server.name, seen.len());
        whole += seen.len();
        let of_server = seen.into_iter().map(|seen| {
            let mut message = seen.message;
            message[..2].fill(0);
            message[12..29].make_ascii_lowercase();
            let cookie = message.split_off(message.len() - 8);
            (message, cookie)
        });
        let (messages, shown): (Vec<_>, Vec<_>) = of_server.unzip();
        assert!(shown.iter().all(|cookie| *cookie == shown[0]), "one cookie for a server, whoever asks");
        masked.extend(messages);
        cookies.push(shown[0].clone());
    }
    assert!(whole >= 300 && cookies[0] != cookies[1], "{cookies:?}");
    assert!(masked.iter().all(|message| *message == masked[0]));
    world.finish().unwrap();
}

/// I1: special-use names and those of the bypass list go nowhere, whatever rules say, whoever asks. Of each name what A,
/// AAAA, PTR, SVCB and ANY are answered with: an answer, NODATA or NXDOMAIN.
#[test]
fn i1_no_special_name_goes_upstream() {
    const TYPES: [u16; 5] = [1, 28, 12, 64, 255];
    const NONE: &str = "nx nx nx nx nx";
    const EMPTY: &str = "no no no no no";
    const POINTS: &str = "no no 1 no no";
    const ROWS: &[(&str, &str)] = &[
        ("localhost.", "1 1 no no no"),
        ("a.b.localhost.", "1 1 no no no"),
        ("1.0.0.127.in-addr.arpa.", POINTS),
        ("1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.ip6.arpa.", POINTS),
        ("invalid.", NONE),
        ("x.invalid.", NONE),
        ("test.", NONE),
        ("www.test.", NONE),
        ("local.", NONE),
        ("printer.local.", NONE),
        ("onion.", NONE),
        ("x.onion.", NONE),
        ("alt.", NONE),
        ("x.alt.", NONE),
        ("internal.", NONE),
        ("db.internal.", NONE),
        ("home.arpa.", EMPTY),
        ("nas.home.arpa.", NONE),
        ("resolver.arpa.", EMPTY),
        ("_dns.resolver.arpa.", EMPTY),
        ("service.arpa.", NONE),
        ("default.service.arpa.", NONE),
        ("ipv4only.arpa.", "2 no no no no"),
        ("x.ipv4only.arpa.", NONE),
        ("170.0.0.192.in-addr.arpa.", POINTS),
        ("171.0.0.192.in-addr.arpa.", POINTS),
        ("empty.as112.arpa.", NONE),
        ("eap-noob.arpa.", NONE),
        ("6tisch.arpa.", NONE),
        ("10.in-addr.arpa.", EMPTY),
        ("4.3.2.10.in-addr.arpa.", NONE),
        ("4.3.16.172.in-addr.arpa.", NONE),
        ("4.3.31.172.in-addr.arpa.", NONE),
        ("4.3.168.192.in-addr.arpa.", NONE),
        ("4.3.254.169.in-addr.arpa.", NONE),
        ("4.3.2.0.in-addr.arpa.", NONE),
        ("4.3.2.127.in-addr.arpa.", NONE),
        ("4.2.0.192.in-addr.arpa.", NONE),
        ("4.100.51.198.in-addr.arpa.", NONE),
        ("4.113.0.203.in-addr.arpa.", NONE),
        ("255.255.255.255.in-addr.arpa.", EMPTY),
        ("4.3.64.100.in-addr.arpa.", NONE),
        ("4.3.127.100.in-addr.arpa.", NONE),
        ("0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.ip6.arpa.", EMPTY),
        ("1.d.f.ip6.arpa.", NONE),
        ("1.8.e.f.ip6.arpa.", NONE),
        ("1.9.e.f.ip6.arpa.", NONE),
        ("1.a.e.f.ip6.arpa.", NONE),
        ("1.b.e.f.ip6.arpa.", NONE),
        ("1.8.b.d.0.1.0.0.2.ip6.arpa.", NONE),
        ("wpad.example.com.", NONE),
        ("isatap.example.com.", NONE),
        ("use-application-dns.net.", NONE),
        ("mask.icloud.com.", NONE),
        ("mask-h2.icloud.com.", NONE),
        ("dns.google.", NONE),
        ("chrome.cloudflare-dns.com.", NONE),
        // An address that is nobody's here, and a label alone.
        ("4.3.2.11.in-addr.arpa.", NONE),
        ("printserver.", NONE),
    ];
    let text = format!(
        "{POLICY}[[rule]]\nid = \"wide\"\naction = \"allow\"\nsegments = [\"*\"]\ntypes = [\"A\", \"AAAA\", \"PTR\"]\n\
         names = [\"**.test\", \"**.local\", \"**.internal\", \"**.home.arpa\", \"**.10.in-addr.arpa\", \
         \"**.icloud.com\", \"*.use-application-dns.example\"]\n"
    );
    let policy = vec![Source { file: "policy.toml".to_owned(), text }];
    let mut world = World::start(Setup { policy, ..Setup::default() }).unwrap();
    for (name, expected) in ROWS {
        let told: Vec<String> = TYPES
            .iter()
            .map(|kind| {
                let packet = Ask::new(name, RecordType::from(*kind)).bytes(7);
                let sent = sent(packet, 0, 40_000, false);
                let exchange = world.send(&sent.packet, sent.by(), sent.transport).unwrap();
                let reply = Reply::read(exchange.reply.as_ref().expect("a reply")).unwrap();
                let message = &reply.message;
                match (message.metadata.response_code, message.answers.len()) {
                    (ResponseCode::NXDomain, 0) => "nx".to_owned(),
                    (ResponseCode::NoError, 0) => "no".to_owned(),
                    (ResponseCode::NoError, count) => count.to_string(),
                    (other, _) => other.to_string(),
                }
            })
            .collect();
        assert_eq!(told.join(" "), *expected, "{name}");
    }
    assert_eq!(world.upstream_packets(), 0);
    world.finish().unwrap();
}

/// I4: at whatever age and in whatever order names are asked, what is told is open for as long as it is told.
#[test]
fn i4_what_is_told_is_open_that_long() {
    // Nothing is open for longer than it must be.
    let tight = Terms { grace: Duration::ZERO, hold: Duration::ZERO, ..Terms::default() };
    let world = RefCell::new(world(Vec::new(), tight));
    let names = [("a", 5), ("b", 17), ("c", 60), ("d", 299), ("e", 86_400), ("f", 0)];
    for (label, ttl) in names {
        answers(&world.borrow(), &format!("{label}.example.com."), ttl);
    }
    let strategy = (0..names.len(), 0..2_usize, 0..40_000_000_u64);
    check(1_500, &strategy, |(name, client, micros)| {
        let mut world = world.borrow_mut();
        world.clock.advance(Duration::from_micros(micros));
        let packet = Ask::new(&format!("{}.example.com.", names[name].0), RecordType::A).bytes(7);
        let sent = sent(packet, client, 40_000, false);
        let exchange = world.send(&sent.packet, sent.by(), sent.transport).map_err(TestCaseError::fail)?;
        let reply = Reply::read(exchange.reply.as_ref().expect("a reply")).map_err(TestCaseError::fail)?;
        let told: Vec<u32> = reply.addresses().map(|(_, ttl)| ttl).collect();
        prop_assert!(matches!(told.as_slice(), [1..=300]), "{told:?}");
        Ok(())
    });
    world.into_inner().finish().unwrap();
}

/// The data of an HTTPS record that hints at addresses, some of which may never be opened; now and then cut.
fn hinting() -> impl Strategy<Value = Vec<u8>> {
    let address = prop_oneof![6 => (1..20_u8).prop_map(|last| [198, 51, 100, last]), 1 => Just(GUARDED)];
    let hints = prop::collection::vec(address, 1..4).prop_map(|addresses| (4_u16, addresses.concat()));
    let six = (1..9_u8).prop_map(|last| (6_u16, [&[0x20, 1, 0x0d, 0xb8][..], &[0; 11], &[last]].concat()));
    let parameters = (prop::option::weighted(0.8, hints), prop::option::weighted(0.2, six), any::<bool>());
    let cut = prop::option::weighted(0.05, any::<prop::sample::Index>());
    (prop::sample::select(vec![0_u16, 1, 1, 1]), parameters, cut).prop_map(|(priority, (four, six, alpn), cut)| {
        let mut data = [&priority.to_be_bytes()[..], &[0]].concat();
        let alpn = alpn.then(|| (1, b"\x02h2".to_vec()));
        for (key, value) in [alpn, four, six].into_iter().flatten() {
            data.extend(key.to_be_bytes());
            data.extend(u16::try_from(value.len()).unwrap().to_be_bytes());
            data.extend(value);
        }
        data.truncate(cut.map_or(data.len(), |at| 1 + at.index(data.len() - 1)));
        data
    })
}

/// A private address for which nobody vouches.
const GUARDED: [u8; 4] = [10, 222, 173, 1];

/// I3, I4: whatever an upstream hints at, what may not be opened is neither opened nor told, and what is told is open.
#[test]
fn i3_no_hint_passes_the_guard_by() {
    const HTTPS: &str = r#"
[[segment]]
name    = "shop"
clients = ["192.0.2.0/24"]
[[rule]]
id       = "filter"
action   = "allow"
segments = ["*"]
names    = ["*.filter.example.com"]
https    = "filter"
[[rule]]
id       = "pass"
action   = "allow"
segments = ["*"]
names    = ["*.pass.example.com"]
https    = "pass"
"#;
    let policy = vec![Source { file: "policy.toml".to_owned(), text: HTTPS.to_owned() }];
    let upstreams = vec![upstream("default", &[])];
    let world = RefCell::new(World::start(Setup { policy, upstreams, ..Setup::default() }).unwrap());
    let number = std::cell::Cell::new(0);
    let told = std::cell::Cell::new(0);
    check(600, &(prop::collection::vec(hinting(), 1..4), any::<bool>()), |(records, filters)| {
        let mut world = world.borrow_mut();
        number.set(number.get() + 1);
        let name = format!("n{}.{}.example.com.", number.get(), if filters { "filter" } else { "pass" });
        let record = |data: &Vec<u8>| {
            let data = RData::Unknown { code: RecordType::HTTPS, rdata: NULL::with(data.clone()) };
            Record::from_rdata(Name::from_ascii(&name).unwrap(), 60, data)
        };
        let records: Vec<Record> = records.iter().map(record).collect();
        let rcode = ResponseCode::NoError;
        let answer = Answer { rcode, records, authority: Vec::new(), ede: None, truncated: false };
        world.servers[0].script(&name, RecordType::HTTPS, Act::Answer(answer));
        let packet = Ask::new(&name, RecordType::HTTPS).bytes(7);
        let sent = sent(packet, 0, 40_000, false);
        let exchange = world.send(&sent.packet, sent.by(), sent.transport).map_err(TestCaseError::fail)?;
        let reply = exchange.reply.as_ref().expect("a reply");
        prop_assert!(!reply.windows(4).any(|octets| octets == GUARDED), "{}", exchange.record());
        told.set(told.get() + Reply::read(reply).map_err(TestCaseError::fail)?.addresses().count());
        Ok(())
    });
    let world = world.into_inner();
    assert!(told.get() > 300, "{}", told.get());
    assert!(world.firewall.elements().iter().all(|(element, _)| element.to != IpAddr::from(GUARDED)));
    world.finish().unwrap();
}
