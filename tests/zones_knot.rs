//! The zones against Knot DNS: the same random zone files, the same questions, the same answers. Where Knot refers to
//! the servers of a delegation, its NS records and glue are what is told here; the rest is for an upstream.
//!
//! A real `knotd` is started on a loopback port. Without one the test says so and passes, unless `CI=true`.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

mod knot;
mod programs;

use std::net::UdpSocket;
use std::path::Path;
use std::sync::Arc;

use hickory_proto::op::{Edns, Message, Query};
use hickory_proto::rr::{Name as WireName, RData, RecordType as WireType};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder, NameEncoding};
use knot::{Knot, PATIENCE};
use outgate::name::Name;
use outgate::record::{Question, RecordType};
use outgate::zones::{Source, Zones};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

const ZONES: usize = 40;
const QUESTIONS: usize = 100;

/// Knot with these zones. The second half of each is included.
fn start(sources: &[Source]) -> Option<Knot> {
    let (mut zones, mut files) = (Vec::new(), Vec::new());
    for source in sources {
        let domain = source.file.strip_suffix(".zone").unwrap();
        let middle = source.text.len() / 2 + source.text[source.text.len() / 2..].find('\n').unwrap() + 1;
        let (first, second) = source.text.split_at(middle);
        files.push((source.file.to_string(), format!("{first}$INCLUDE half/{domain}\n")));
        files.push((format!("half/{domain}"), second.to_owned()));
        zones.push(domain.to_owned());
    }
    // The port is free now; nothing else here asks for one.
    let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    Knot::start(port, &zones, &files)
}

fn ask(knot: &Knot, socket: &UdpSocket, id: u16, question: &Question) -> Message {
    let mut query = Message::query();
    query.metadata.id = id;
    let name = WireName::from_labels(question.name.labels()).unwrap();
    query.add_query(Query::query(name, WireType::from(question.kind.0)));
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    query.set_edns(edns);
    socket.send_to(&query.to_vec().unwrap(), knot.address).unwrap();
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer).unwrap();
    let reply = Message::from_vec(&buffer[..length]).unwrap();
    assert_eq!(reply.metadata.id, id);
    assert!(!reply.metadata.truncation, "{question}");
    reply
}

fn theirs(reply: &Message) -> String {
    let soa = reply.authorities.iter().find(|record| record.record_type() == WireType::SOA).map(their_line);
    let rcode = u16::from(reply.metadata.response_code);
    lines(rcode, reply.answers.iter().map(their_line).collect(), soa)
}

fn their_line(record: &hickory_proto::rr::Record) -> String {
    shown(&owner(record), record.ttl, u16::from(record.record_type()), &wire(&record.data))
}

fn owner(record: &hickory_proto::rr::Record) -> Name {
    Name::parse(&record.name.to_ascii()).unwrap()
}

/// The delegation that a reply refers to.
fn referral(reply: &Message) -> Option<Name> {
    let none = !reply.authorities.iter().any(|record| record.record_type() == WireType::SOA);
    let cut = reply.authorities.iter().find(|record| record.record_type() == WireType::NS).map(owner);
    cut.filter(|_| none && !reply.answers.iter().any(|record| record.record_type() != WireType::CNAME))
}

/// Checks what is said at and below a delegation against Knot's referral to it.
fn refers_as_knot_does(zones: &Zones, question: &Question, cut: &Name, reply: &Message) {
    let mut known: Vec<String> = reply.authorities.iter().map(their_line).collect();
    for record in reply.authorities.iter().chain(&reply.additionals) {
        let asked = Question { name: owner(record), kind: RecordType(u16::from(record.record_type())) };
        let told = zones.answer(&asked).unwrap_or_else(|| panic!("{asked} is not told, of\n{reply}"));
        assert!(told.records.iter().map(our_line).any(|line| line == their_line(record)), "{asked}: {told:?}\n{reply}");
        known.push(their_line(record));
    }
    let ours = zones.answer(question);
    let records = ours.iter().flat_map(|answer| &answer.records);
    let (below, chain): (Vec<_>, Vec<_>) = records.partition(|record| record.name.is_within(cut));
    assert!(ours.iter().all(|answer| answer.rcode.0 == 0 && answer.soa.is_none()), "{question}: {ours:?}");
    assert!(below.iter().all(|record| known.contains(&our_line(record))), "{question}: {below:?}\n{reply}");
    let chain: Vec<_> = chain.into_iter().map(our_line).collect();
    assert_eq!(chain, reply.answers.iter().map(their_line).collect::<Vec<_>>(), "{question}\n{reply}");
}

fn wire(data: &RData) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_name_encoding(NameEncoding::UncompressedLowercase);
    data.emit(&mut encoder).unwrap();
    bytes
}

fn shown(name: &Name, ttl: u32, kind: u16, data: &[u8]) -> String {
    format!("{name} {ttl} {} {}", RecordType(kind), data.escape_ascii())
}

/// An answer as text; the order of records in a set is nobody's promise, the order of the chain is in its names.
fn lines(rcode: u16, mut answers: Vec<String>, soa: Option<String>) -> String {
    answers.sort();
    format!("rcode {rcode}\n{}\nauthority {}", answers.join("\n"), soa.unwrap_or_default())
}

fn ours(zones: &Zones, question: &Question) -> String {
    let answer = zones.answer(question).unwrap();
    lines(answer.rcode.0, answer.records.iter().map(our_line).collect(), answer.soa.as_ref().map(our_line))
}

fn our_line(record: &outgate::record::Record) -> String {
    shown(&record.name, record.ttl.seconds(), record.kind.0, &record.data)
}

/// Relative owners of one to three labels out of few, so that they meet.
const OWNER: &str = r"(a|b|c|d|e|\*)(\.(a|b|\*)){0,2}";

/// One line of a zone file.
fn line() -> impl Strategy<Value = String> {
    let target = prop_oneof![8 => OWNER.prop_map(|name| name), 1 => Just("out.example.com.".to_owned())];
    prop_oneof![
        4 => (OWNER, 1..9u8).prop_map(|(owner, n)| format!("{owner} 300 A 192.0.2.{n}")),
        1 => OWNER.prop_map(|owner| format!("{owner} 200 AAAA 2001:db8::1")),
        2 => (OWNER, 1..9u8).prop_map(|(owner, n)| format!("{owner} 60 TXT \"text {n}\" \"\\195;\"")),
        1 => (OWNER, OWNER).prop_map(|(owner, host)| format!("{owner} 30 MX 10 {host}")),
        2 => (OWNER, prop_oneof![Just("ns"), Just("ns.a"), Just("b"), Just("ns.b.a")])
            .prop_map(|(owner, server)| format!("{owner} 40 NS {server}")),
        1 => prop::sample::select(vec!["ns.a", "b", "ns.b.a"]).prop_map(|owner| format!("{owner} 50 A 192.0.2.77")),
        4 => (OWNER, target).prop_map(|(owner, target)| format!("{owner} 120 CNAME {target}")),
    ]
}

/// A zone file that loads: lines are left out until it does (CNAMEs beside data, loops, long chains, data below
/// delegations).
fn zone(runner: &mut TestRunner, number: usize) -> Source {
    let mut lines = prop::collection::vec(line(), 4..24).new_tree(runner).unwrap().current();
    loop {
        let minimum = 7 * number;
        let head = format!("@ 77 SOA ns hostmaster 1 3600 900 604800 {minimum}\n@ 900 NS ns\nns 900 A 192.0.2.53\n");
        let text = format!("{head}{}\n", lines.join("\n"));
        let source = Source { file: Arc::from(format!("z{number}.example.zone")), text };
        match Zones::compile(std::slice::from_ref(&source)) {
            Ok(_) => return source,
            Err(mistakes) => {
                let place = mistakes.iter().find_map(|mistake| mistake.place.as_ref()).unwrap();
                let meant = |fact: &str| ["CNAME", "delegat", "the TTL of"].iter().any(|part| fact.contains(part));
                assert!(mistakes.iter().all(|mistake| meant(&mistake.fact)), "{mistakes:?}");
                lines.remove(place.line as usize - 4);
            }
        }
    }
}

#[test]
fn answers_as_knot_does() {
    let mut runner = TestRunner::deterministic();
    let sources: Vec<_> = (0..ZONES).map(|number| zone(&mut runner, number)).collect();
    let Some(knot) = start(&sources) else { return };
    let zones = Zones::load(&knot.directory, false).unwrap();
    assert_eq!(zones.records(), Zones::compile(&sources).unwrap().records());
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();

    let names = prop_oneof![5 => OWNER.prop_map(|owner| format!("{owner}.")), 2 => r"((a|b|f|\*)\.){1,5}", 1 => ""];
    let kinds = prop::sample::select(vec!["A", "A", "AAAA", "TXT", "MX", "CNAME", "SOA", "NS", "NS"]);
    let questions = prop::collection::vec((names, kinds), QUESTIONS);
    let (mut id, mut seen) = (0, [0; 4]);
    for source in &sources {
        let origin = Path::new(&*source.file).file_stem().unwrap().to_str().unwrap();
        for (name, kind) in questions.new_tree(&mut runner).unwrap().current() {
            let question = Question { name: format!("{name}{origin}").parse().unwrap(), kind: kind.parse().unwrap() };
            id += 1;
            let reply = ask(&knot, &socket, id, &question);
            if let Some(cut) = referral(&reply) {
                refers_as_knot_does(&zones, &question, &cut, &reply);
                seen[3] += 1;
                continue;
            }
            assert!(reply.metadata.authoritative, "{question}");
            let ours = ours(&zones, &question);
            assert_eq!(ours, theirs(&reply), "{question} (ours, then knot's) of\n{}", source.text);
            seen[0] += usize::from(ours.contains("rcode 3"));
            seen[1] += usize::from(ours.contains("rcode 0\n\n"));
            seen[2] += usize::from(ours.contains(" CNAME ") && question.kind != RecordType::CNAME);
        }
    }
    println!(
        "{id} questions: {} NXDOMAIN, {} without data, {} with a CNAME, {} referred",
        seen[0], seen[1], seen[2], seen[3]
    );
    assert!(seen.iter().all(|count| *count > ZONES), "the zones are too plain to show anything: {seen:?}");
}
