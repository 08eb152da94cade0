//! DNSSEC against zones that a real Knot signs, through a forwarder that may alter what it hands on.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME, NS};
use hickory_proto::rr::{RData, Record, RecordType};

use crate::dns::{Client, Stream, addresses, code, extended_error, query, with_edns};
use crate::harness::{Site, free_port, loopback, until};
use crate::programs::{Running, are_here, command};
use crate::upstream::Upstream;

/// The zones below example.org, which is trusted: how each is signed, what its parent says of it, and what is in it.
const ZONES: [(&str, &str, Parent, &str); 9] = [
    ("example.org", "nsec", Parent::None, "www A 198.51.100.1\nout CNAME www.plain.example.org.\n"),
    (
        "signed.example.org",
        "nsec",
        Parent::Signs,
        "www A 198.51.100.2\n AAAA 2001:db8::2\n TXT \"text\"\nalias CNAME www.hashed.example.org.\nnothing CNAME v6.hashed.example.org.\n\
         gone CNAME no.hashed.example.org.\n*.wild A 198.51.100.3\nto CNAME one.wild\nplain CNAME www.plain.example.org.\n\
         old DNAME hashed.example.org.\ntampered A 198.51.100.4\nturns A 198.51.100.12\nflood A 198.51.100.5\nstripped A 198.51.100.6\n",
    ),
    ("hashed.example.org", "nsec3", Parent::Signs, "www A 198.51.100.7\nv6 AAAA 2001:db8::7\n*.wild A 198.51.100.8\n"),
    ("plain.example.org", "", Parent::Unsigned, "www A 198.51.100.9\n"),
    ("bogus.example.org", "nsec", Parent::Lies, "www A 198.51.100.10\n"),
    ("lost.example.org", "", Parent::Lies, "www A 198.51.100.11\n"),
    ("opt.example.org", "optout", Parent::Signs, "www A 198.51.100.13\n"),
    ("open.opt.example.org", "", Parent::Unsigned, "www A 198.51.100.14\n"),
    ("odd.example.org", "", Parent::Odd, "www A 198.51.100.15\n"),
];

/// What the parent zone says of a zone.
#[derive(PartialEq, Eq)]
enum Parent {
    None,
    /// The DS of its key.
    Signs,
    /// No DS.
    Unsigned,
    /// A DS of no key of it.
    Lies,
    /// A DS of an algorithm that nobody here knows: as good as none.
    Odd,
}

/// A running `knotd`, with the DNSKEY of example.org.
struct Knot {
    _running: Running,
    address: SocketAddr,
    anchor: String,
}

impl Knot {
    /// Starts it below the directory of `site`, with all zones signed; `None`: it is not installed.
    fn start(site: &Site) -> Option<Self> {
        if !are_here(&["knotd", "keymgr"]) {
            return None;
        }
        let root = site.path("knot");
        fs::create_dir_all(root.join("keys")).unwrap();
        let address = loopback(free_port());
        let shown = root.display();
        let mut config = format!(
            "server:\n    rundir: \"{shown}\"\n    listen: 127.0.0.1@{port}\n    udp-workers: 1\n    tcp-workers: 1\n    \
             background-workers: 1\ncontrol:\n    listen: \"{shown}/control\"\ndatabase:\n    storage: \"{shown}\"\npolicy:\n",
            port = address.port()
        );
        for (policy, nsec3) in [("nsec", "off"), ("nsec3", "on"), ("optout", "on\n    nsec3-opt-out: on")] {
            let algorithm = "ecdsap256sha256";
            writeln!(config, "  - id: {policy}\n    manual: on\n    algorithm: {algorithm}\n    nsec3: {nsec3}")
                .unwrap();
        }
        writeln!(config, "template:\n  - id: default\n    storage: \"{shown}\"\n    zonefile-sync: -1").unwrap();
        writeln!(config, "    zonefile-load: difference\nzone:").unwrap();
        for (zone, policy, ..) in ZONES {
            writeln!(config, "  - domain: {zone}\n    file: \"{zone}.zone\"").unwrap();
            if !policy.is_empty() {
                writeln!(config, "    dnssec-signing: on\n    dnssec-policy: {policy}").unwrap();
            }
        }
        fs::write(root.join("knot.conf"), config).unwrap();
        let keymgr = |arguments: &[&str]| {
            let conf = root.join("knot.conf");
            let mut keymgr = command("keymgr");
            let ended =
                keymgr.arg("-c").arg(conf).args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).output();
            let ended = ended.unwrap();
            assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
            String::from_utf8(ended.stdout).unwrap()
        };
        let mut delegations: BTreeMap<&str, String> = BTreeMap::new();
        for (zone, policy, parent, records) in ZONES {
            if !policy.is_empty() {
                keymgr(&[zone, "generate", "algorithm=ECDSAP256SHA256", "ksk=yes", "zsk=yes"]);
            }
            let mut text = "$TTL 300\n@ SOA ns1 hostmaster ( 1 1h 15m 7d 1m )\n NS ns1\nns1 A 192.0.2.53\n".to_owned();
            text += records;
            fs::write(root.join(format!("{zone}.zone")), text).unwrap();
            if parent == Parent::None {
                continue;
            }
            let delegations = delegations.entry(zone.split_once('.').unwrap().1).or_default();
            writeln!(delegations, "{zone}. NS ns1.{zone}.\nns1.{zone}. A 192.0.2.53").unwrap();
            let digest = "ab".repeat(32);
            match parent {
                Parent::None | Parent::Unsigned => {}
                Parent::Signs => *delegations += &keymgr(&[zone, "ds"]),
                Parent::Lies => writeln!(delegations, "{zone}. DS 4711 13 2 {digest}").unwrap(),
                Parent::Odd => writeln!(delegations, "{zone}. DS 4711 16 2 {digest}").unwrap(),
            }
        }
        for (parent, delegations) in delegations {
            let parent = root.join(format!("{parent}.zone"));
            fs::write(&parent, fs::read_to_string(&parent).unwrap() + &delegations).unwrap();
        }
        let anchor = keymgr(&["example.org", "dnskey"]).replace("DNSKEY", "3600 IN DNSKEY");
        let log = fs::File::create(root.join("log")).unwrap();
        let running = Running::start(command("knotd").arg("-c").arg(root.join("knot.conf")).stderr(log));
        let knot = Self { _running: running, address, anchor };
        for (zone, ..) in ZONES {
            until("knotd serves its zones", || {
                let Ok(mut stream) = Stream::connect(address) else { return false };
                stream.ask(&query(&format!("{zone}."), RecordType::SOA)).answers.len() == 1
            });
        }
        Some(knot)
    }
}

/// A forwarder to Knot that alters a few names' answers, and counts the questions for keys.
fn forwarder(knot: SocketAddr, keys: Arc<AtomicUsize>) -> Upstream {
    let turns = AtomicUsize::new(0);
    Upstream::saying(move |question| {
        let asked = question.queries[0].clone();
        if [RecordType::DNSKEY, RecordType::DS].contains(&asked.query_type()) {
            keys.fetch_add(1, Ordering::SeqCst);
        }
        let mut reply = Stream::new(knot).ask(question);
        if asked.name().to_lowercase().to_ascii().starts_with("hijack.") {
            hijack(knot, question, &mut reply);
            return Some(reply);
        }
        let is_signature = |kind| kind == RecordType::RRSIG;
        match asked.name().to_lowercase().to_ascii().split('.').next() {
            Some(name @ ("tampered" | "turns")) if name == "tampered" || turns.fetch_add(1, Ordering::SeqCst) > 0 => {
                for record in &mut reply.answers {
                    if let RData::A(address) = &mut record.data {
                        *address = A::new(198, 51, 100, 99);
                    }
                }
            }
            Some("stripped") => reply.answers.retain(|record| !is_signature(record.record_type())),
            // As in KeyTrap: every one of them would have to be tried with every key.
            Some("flood") => {
                let signature = reply.answers.iter().find(|record| is_signature(record.record_type())).unwrap().clone();
                reply.answers.extend(std::iter::repeat_n(signature, 200));
            }
            _ => {}
        }
        Some(reply)
    })
}

/// An address that nobody signed, made to look as if below a zone cut where nobody signs: by a DS of another zone, genuine and
/// of an algorithm that is not known, behind a CNAME.
fn hijack(knot: SocketAddr, question: &Message, reply: &mut Message) {
    let asked = question.queries[0].clone();
    let of_name = |data| Record::from_rdata(asked.name().clone(), 300, data);
    reply.metadata.response_code = ResponseCode::NoError;
    reply.authorities.clear();
    reply.answers = match asked.query_type() {
        RecordType::A => vec![of_name(RData::A(A::new(198, 51, 100, 99)))],
        RecordType::NS => vec![of_name(RData::NS(NS(asked.name().clone())))],
        RecordType::DS => {
            let mut other = with_edns(query("odd.example.org.", RecordType::DS), 1232);
            other.edns.as_mut().unwrap().set_dnssec_ok(true);
            let odd = Stream::new(knot).ask(&other).answers;
            assert_eq!(odd.len(), 2, "a DS and its signature");
            [vec![of_name(RData::CNAME(CNAME(other.queries[0].name().clone())))], odd].concat()
        }
        _ => return,
    };
}

/// A node that asks the forwarder, with this in its `[[upstream]]`.
fn site(upstream: &Upstream, knot: &Knot, keys: &str) -> Site {
    let site = Site::new().with(
        "upstream",
        format!(
            "[[upstream]]\nname = \"signed\"\nservers = [\"udp://{}\"]\nprivate = [\"198.51.100.0/24\", \"2001:db8::/32\"]\n{keys}",
            upstream.address
        ),
    );
    site.file("anchors", &knot.anchor);
    site.file(
        "policy/loop.toml",
        "[[segment]]\nname = \"loop\"\nclients = [\"127.0.0.0/8\", \"::1/128\"]\n[[rule]]\nid = \"all\"\naction = \"allow\"\n\
         segments = [\"loop\"]\nnames = [\"**.example.org\"]\ntypes = [\"A\", \"AAAA\", \"TXT\"]\n",
    );
    site
}

/// `name` asked with DO or AD.
fn ask(site: &Site, name: &str, kind: RecordType, dnssec_ok: bool, authentic_data: bool) -> Message {
    let mut message = with_edns(query(name, kind), 1232);
    message.metadata.authentic_data = authentic_data;
    message.edns.as_mut().unwrap().set_dnssec_ok(dnssec_ok);
    let reply = Client::new(site.dns).ask(&message).unwrap();
    if !reply.metadata.truncation {
        return reply;
    }
    Stream::new(site.dns).ask(&message)
}

fn count(reply: &Message, kind: RecordType) -> usize {
    reply.answers.iter().chain(&reply.authorities).filter(|record| record.record_type() == kind).count()
}

#[test]
fn what_is_signed_is_validated() {
    let keys = Arc::new(AtomicUsize::new(0));
    let base = Site::new();
    let Some(knot) = Knot::start(&base) else { return };
    let upstream = forwarder(knot.address, Arc::clone(&keys));
    let site = site(&upstream, &knot, "dnssec = \"validate\"\nanchors = \"anchors\"");
    let mut node = site.start();
    use RecordType as Kind;
    // Name, type, then code, addresses or records, whether it is authentic.
    let rows: [(&str, Kind, &str, usize, bool); 19] = [
        ("www.example.org.", Kind::A, "No Error", 1, true),
        ("www.signed.example.org.", Kind::A, "No Error", 1, true),
        ("www.signed.example.org.", Kind::TXT, "No Error", 1, true),
        ("no.signed.example.org.", Kind::A, "Non-Existent Domain", 0, true),
        ("www.signed.example.org.", Kind::AAAA, "No Error", 1, true),
        ("tampered.signed.example.org.", Kind::AAAA, "No Error", 0, true),
        ("www.hashed.example.org.", Kind::A, "No Error", 1, true),
        ("no.hashed.example.org.", Kind::A, "Non-Existent Domain", 0, true),
        ("one.wild.signed.example.org.", Kind::A, "No Error", 1, true),
        ("one.wild.hashed.example.org.", Kind::A, "No Error", 1, true),
        ("to.signed.example.org.", Kind::A, "No Error", 2, true),
        ("alias.signed.example.org.", Kind::A, "No Error", 2, true),
        ("nothing.signed.example.org.", Kind::A, "No Error", 1, true),
        ("gone.signed.example.org.", Kind::A, "Non-Existent Domain", 1, true),
        ("www.old.signed.example.org.", Kind::A, "No Error", 2, true),
        ("www.plain.example.org.", Kind::A, "No Error", 1, false),
        ("www.opt.example.org.", Kind::A, "No Error", 1, true),
        ("www.open.opt.example.org.", Kind::A, "No Error", 1, false),
        ("www.odd.example.org.", Kind::A, "No Error", 1, false),
    ];
    for (name, kind, rcode, records, authentic) in rows {
        let reply = ask(&site, name, kind, false, true);
        let seen = (code(&reply).to_string(), reply.answers.len(), reply.metadata.authentic_data);
        assert_eq!(
            (seen.0.as_str(), seen.1, seen.2),
            (rcode, records, authentic),
            "{name} {kind}: {reply} {}",
            site.queries().pop().unwrap()
        );
        assert_eq!(count(&reply, Kind::RRSIG), 0, "signatures are for those who ask: {name}");
    }
    let reply = ask(&site, "plain.signed.example.org.", Kind::A, false, true);
    assert_eq!((addresses(&reply), reply.metadata.authentic_data), (vec!["198.51.100.9".to_owned()], false));
    // Neither DO nor AD: nobody asked whether it is authentic.
    assert!(!ask(&site, "www.example.org.", Kind::A, false, false).metadata.authentic_data);
    // What a client needs to see it for itself.
    let signed = ask(&site, "alias.signed.example.org.", Kind::A, true, false);
    assert!(signed.metadata.authentic_data && count(&signed, Kind::RRSIG) == 2, "{signed}");
    let denied = ask(&site, "no.signed.example.org.", Kind::A, true, false);
    assert!(count(&denied, Kind::NSEC) > 0 && count(&denied, Kind::RRSIG) > 1, "{denied}");
    let denied = ask(&site, "gone.signed.example.org.", Kind::A, true, false);
    assert!(count(&denied, Kind::NSEC3) > 0 && count(&denied, Kind::RRSIG) > 2, "{denied}");
    // Keys are kept.
    let before = keys.load(Ordering::SeqCst);
    ask(&site, "two.wild.signed.example.org.", Kind::A, false, false);
    assert_eq!(keys.load(Ordering::SeqCst), before);
    for (name, why) in [
        ("www.bogus.example.org.", "A of www.bogus.example.org has no valid signature"),
        ("www.lost.example.org.", "A of www.lost.example.org has no valid signature"),
        ("tampered.signed.example.org.", "A of tampered.signed.example.org has no valid signature"),
        ("stripped.signed.example.org.", "A of stripped.signed.example.org has no valid signature"),
        ("hijack.signed.example.org.", "A of hijack.signed.example.org has no valid signature"),
        ("flood.signed.example.org.", "a record set has more than 8 signatures"),
    ] {
        let reply = ask(&site, name, Kind::A, true, false);
        assert_eq!((code(&reply).to_string().as_str(), extended_error(&reply)), ("Server Failure", Some(6)), "{name}");
        assert_eq!(addresses(&reply), [""; 0]);
        let record = site.queries().pop().unwrap();
        assert_eq!(
            (record["verdict"].as_str(), record["reason"].as_str()),
            (Some("error"), Some("dnssec")),
            "{record}"
        );
        assert!(record["why"].as_str().unwrap().contains(why), "{record}");
        assert!(record.get("grant").is_none());
    }
    assert_eq!(node.stop(), Some(0));
    assert!(!node.stderr().contains("RRSIG"), "what forgers send is in the records: {}", node.stderr());
    // Nothing was opened for what is bogus.
    let opened: Vec<String> =
        site.records().iter().filter_map(|r| Some(r.get("address")?.as_str()?.to_owned())).collect();
    for never in ["198.51.100.4", "198.51.100.5", "198.51.100.6", "198.51.100.10", "198.51.100.11", "198.51.100.99"] {
        assert!(!opened.iter().any(|address| address == never), "{never}");
    }
}

#[test]
fn what_lies_below_a_negative_anchor_is_taken_as_it_is() {
    let base = Site::new();
    let Some(knot) = Knot::start(&base) else { return };
    let upstream = forwarder(knot.address, Arc::default());
    let keys = "dnssec = \"validate\"\nanchors = \"anchors\"\ninsecure = [\"bogus.example.org\"]";
    let site = site(&upstream, &knot, keys);
    let mut node = site.start();
    let reply = ask(&site, "www.bogus.example.org.", RecordType::A, true, true);
    assert_eq!((addresses(&reply), reply.metadata.authentic_data), (vec!["198.51.100.10".to_owned()], false));
    assert_eq!(extended_error(&ask(&site, "www.lost.example.org.", RecordType::A, true, true)), Some(6));
    assert_eq!(node.stop(), Some(0));
}

#[test]
fn what_turns_bogus_is_not_answered_from_before() {
    let base = Site::new();
    let Some(knot) = Knot::start(&base) else { return };
    let upstream = forwarder(knot.address, Arc::default());
    let site = site(&upstream, &knot, "dnssec = \"validate\"\nanchors = \"anchors\"");
    let site = site.with("grant", "[grant]\nttl_min = \"1s\"\nttl_max = \"1s\"");
    let mut node = site.start();
    let reply = ask(&site, "turns.signed.example.org.", RecordType::A, true, true);
    assert_eq!((addresses(&reply), reply.metadata.authentic_data), (vec!["198.51.100.12".to_owned()], true));
    until("the answer is asked for again", || {
        let reply = ask(&site, "turns.signed.example.org.", RecordType::A, true, true);
        assert!(addresses(&reply).is_empty() || addresses(&reply) == ["198.51.100.12"]);
        extended_error(&reply) == Some(6)
    });
    assert_eq!(extended_error(&ask(&site, "turns.signed.example.org.", RecordType::A, true, true)), Some(6));
    assert_eq!(node.stop(), Some(0));
}

#[test]
fn what_another_says_it_validated_is_believed_where_it_may() {
    let upstream = Upstream::saying(|question| {
        let mut reply = crate::upstream::with_addresses(question, 1);
        // Only where it was asked for, and not where it should not have looked.
        reply.metadata.authentic_data = question.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok);
        assert!(!question.metadata.checking_disabled);
        Some(reply)
    });
    for (mode, authentic) in [("trust", true), ("off", false)] {
        let site = Site::new().with(
            "upstream",
            format!(
                "[[upstream]]\nservers = [\"udp://{}\"]\nprivate = [\"198.51.100.0/24\"]\ndnssec = \"{mode}\"",
                upstream.address
            ),
        );
        let mut node = site.start();
        let reply = ask(&site, "x.example.net.", RecordType::A, true, true);
        assert_eq!((addresses(&reply).len(), reply.metadata.authentic_data), (1, authentic), "{mode}");
        assert_eq!(node.stop(), Some(0));
    }
}
