//! Packets that are no proper query: a specified reply or silence, one record each, and never a crash.

use std::net::UdpSocket;

use hickory_proto::op::{Message, ResponseCode};
use serde_json::Value;

use crate::dns::{Client, Stream, a, code, with_edns};
use crate::harness::{Site, until};
use crate::upstream::Upstream;

/// `www.corp.example A IN`.
const QUESTION: &[u8] = b"\x03www\x04corp\x07example\x00\x00\x01\x00\x01";
const OPT: &[u8] = b"\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00";

/// What a packet must meet: a reply with this code, or silence.
type Meets = Option<ResponseCode>;

fn packet(flags: u16, counts: [u16; 4], parts: &[&[u8]]) -> Vec<u8> {
    let header = [0x1234, flags].into_iter().chain(counts);
    header.flat_map(u16::to_be_bytes).chain(parts.concat()).collect()
}

fn asking(kind: u16, class: u16) -> Vec<u8> {
    packet(0x0100, [1, 0, 0, 0], &[&QUESTION[..18], &kind.to_be_bytes(), &class.to_be_bytes()])
}

/// Every kind of bad packet: what it is, its bytes, what it meets.
fn cases() -> Vec<(String, Vec<u8>, Meets)> {
    use ResponseCode::{FormErr, NotImp, Refused};
    // 16 is BADVERS in an OPT record and BADSIG in a TSIG record; the library knows the latter.
    const BADVERS: ResponseCode = ResponseCode::BADSIG;
    let whole = packet(0x0100, [1, 0, 0, 0], &[QUESTION]);
    let mut cases: Vec<(String, Vec<u8>, Meets)> = Vec::new();
    for length in 0..whole.len() {
        let meets = (length >= 12).then_some(FormErr);
        cases.push((format!("the first {length} octets of a query"), whole[..length].to_vec(), meets));
    }
    for opcode in 1..16_u16 {
        let bytes = packet(opcode << 11, [1, 0, 0, 0], &[QUESTION]);
        cases.push((format!("opcode {opcode}"), bytes, Some(NotImp)));
        cases.push((format!("opcode {opcode}, nothing else"), packet(opcode << 11, [0; 4], &[]), Some(NotImp)));
    }
    for class in [0, 2, 3, 4, 254, 255, 65_535] {
        cases.push((format!("class {class}"), asking(1, class), Some(Refused)));
    }
    for (kind, meets) in [(251, Refused), (252, Refused), (0, FormErr), (41, FormErr), (128, FormErr), (250, FormErr)] {
        cases.push((format!("type {kind}"), asking(kind, 1), Some(meets)));
    }
    for kind in [129, 249, 253, 254] {
        cases.push((format!("type {kind}"), asking(kind, 1), Some(NotImp)));
    }
    let huge = [&OPT[..9], &60_000_u16.to_be_bytes(), &[0, 12], &59_996_u16.to_be_bytes(), &[0; 59_996]].concat();
    let longer = [&OPT[..9], b"\x00\x04\x00\x0c\x00\xff"].concat();
    let loops = b"\xc0\x0c\x00\x01\x00\x01";
    let forward = b"\xc0\xff\x00\x01\x00\x01";
    let long_name = [[63; 64].as_slice(), &[63; 64], &[63; 64], &[63; 64], b"\x00\x00\x01\x00\x01"].concat();
    let record = b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\xc0\x00\x02\x01";
    let tsig = b"\x00\x00\xfa\x00\xff\x00\x00\x00\x00\x00\x00";
    let rest: Vec<(&str, Vec<u8>, Meets)> = vec![
        ("no question", packet(0x0100, [0; 4], &[]), Some(FormErr)),
        ("no question, and the octets of one", packet(0x0100, [0; 4], &[QUESTION]), Some(FormErr)),
        ("two questions", packet(0x0100, [2, 0, 0, 0], &[QUESTION, QUESTION]), Some(FormErr)),
        ("two questions, one of them there", packet(0x0100, [2, 0, 0, 0], &[QUESTION]), Some(FormErr)),
        ("65,535 questions", packet(0x0100, [65_535, 0, 0, 0], &[QUESTION]), Some(FormErr)),
        ("65,535 of everything", packet(0x0100, [65_535; 4], &[QUESTION]), Some(FormErr)),
        ("a name that points at itself", packet(0x0100, [1, 0, 0, 0], &[loops]), Some(FormErr)),
        ("a name that points behind the end", packet(0x0100, [1, 0, 0, 0], &[forward]), Some(FormErr)),
        ("a name of 257 octets", packet(0, [1, 0, 0, 0], &[&long_name]), Some(FormErr)),
        ("an unknown label type", packet(0, [1, 0, 0, 0], &[b"\x83www\x00\x00\x01\x00\x01"]), Some(FormErr)),
        ("octets after the question", packet(0, [1, 0, 0, 0], &[QUESTION, b"!"]), Some(FormErr)),
        ("a response", packet(0x8180, [1, 0, 0, 0], &[QUESTION]), None),
        ("a response with an answer", packet(0x8180, [1, 1, 0, 0], &[QUESTION, record]), None),
        ("a response to a NOTIFY", packet(0xa000, [1, 0, 0, 0], &[QUESTION]), None),
        ("a query with an answer", packet(0x0100, [1, 1, 0, 0], &[QUESTION, record]), Some(FormErr)),
        ("a query with authority, as of IXFR", packet(0x0100, [1, 0, 1, 0], &[QUESTION, record]), Some(FormErr)),
        ("an update", packet(5 << 11, [1, 0, 1, 0], &[QUESTION, record]), Some(NotImp)),
        ("a signature", packet(0x0100, [1, 0, 0, 1], &[QUESTION, tsig]), Some(NotImp)),
        ("EDNS version 1", packet(0, [1, 0, 0, 1], &[QUESTION, b"\0\0\x29\x04\xd0\0\x01\0\0\0\0"]), Some(BADVERS)),
        ("two OPT records", packet(0, [1, 0, 0, 2], &[QUESTION, OPT, OPT]), Some(FormErr)),
        ("an OPT record of a name", packet(0, [1, 0, 0, 1], &[QUESTION, b"\x01x", OPT]), Some(FormErr)),
        ("an option longer than its record", packet(0, [1, 0, 0, 1], &[QUESTION, &longer]), Some(FormErr)),
        ("60,000 octets of EDNS", packet(0, [1, 0, 0, 1], &[QUESTION, &huge]), Some(FormErr)),
        ("nothing but ones", vec![0xff; 500], None),
        ("nothing but zeros", vec![0; 500], Some(FormErr)),
    ];
    cases.extend(rest.into_iter().map(|(what, bytes, meets)| (what.to_owned(), bytes, meets)));
    cases
}

/// Asserts that the reply is one to this packet, with this code.
fn replies(what: &str, sent: &[u8], reply: &[u8], meets: Meets) {
    let message = Message::from_vec(reply).unwrap_or_else(|error| panic!("{what}: {error}: {reply:02x?}"));
    assert_eq!(Some(code(&message)), meets, "{what}");
    assert_eq!(reply[..2], sent[..2], "{what}: the id");
    assert_eq!(reply[2] & 0xf9, sent[2] & 0x79 | 0x80, "{what}: QR, opcode, RD and no AA");
    assert!(reply.len() <= 512 && message.answers.is_empty(), "{what}: {message:?}");
}

/// The query records of one client port.
fn of_port<'a>(records: &'a [Value], socket: &UdpSocket) -> Vec<&'a Value> {
    let port = socket.local_addr().unwrap().port();
    records.iter().filter(|record| record["port"] == port).collect()
}

#[test]
fn over_udp_each_meets_what_is_specified_and_has_one_record() {
    let site = Site::new();
    let mut node = site.start();
    let cases = cases();
    let clients: Vec<Client> = cases.iter().map(|_| Client::new(site.dns)).collect();
    for ((what, bytes, meets), client) in cases.iter().zip(&clients) {
        let sent = client.socket.send(bytes);
        assert_eq!(sent.unwrap(), bytes.len());
        // One socket's packets are answered in order: what comes before this reply is the packet's.
        let sentinel = a("www.corp.example").to_vec().unwrap();
        client.socket.send(&sentinel).unwrap();
        let mut reply = client.receive().unwrap();
        if meets.is_some() {
            replies(what, bytes, &reply, *meets);
            reply = client.receive().unwrap();
        }
        assert_eq!(reply[..2], sentinel[..2], "{what}: the sentinel's reply");
    }
    let queries = site.queries();
    for ((what, bytes, meets), client) in cases.iter().zip(&clients) {
        let [record, sentinel] = of_port(&queries, &client.socket)[..] else { panic!("{what}: not two records") };
        assert_eq!(sentinel["verdict"], "allow", "{what}");
        assert_eq!((&record["verdict"], &record["reason"]), (&"deny".into(), &"malformed".into()), "{what}");
        assert_eq!(record["rcode"].is_string(), meets.is_some(), "{what}");
        assert_eq!(record["qid"].is_number(), bytes.len() >= 2, "{what}");
        assert!(record["why"].is_string() && record["transport"] == "udp", "{what}");
    }
    assert_eq!(queries.len(), 2 * cases.len());
    assert_eq!(node.stop(), Some(0));
    assert!(!node.stderr().contains("panicked"), "{}", node.stderr());
    site.verified();
}

#[test]
fn over_tcp_each_meets_what_is_specified_and_has_one_record() {
    let site = Site::new();
    let mut node = site.start();
    let mut sent = 0;
    for (what, bytes, meets) in cases().into_iter().filter(|(_, bytes, _)| (1..=4096).contains(&bytes.len())) {
        let mut stream = Stream::new(site.dns);
        stream.send(&bytes);
        if meets.is_some() {
            replies(&what, &bytes, &stream.receive().unwrap_or_else(|| panic!("{what}: no reply")), meets);
        }
        // It does not cost the connection.
        let sentinel = a("www.corp.example");
        assert_eq!(stream.ask(&sentinel).metadata.id, sentinel.metadata.id, "{what}");
        stream.0.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(stream.receive(), None, "{what}: nothing more");
        sent += 2;
    }
    assert_eq!(site.queries().len(), sent);
    assert_eq!(node.stop(), Some(0));
    assert!(!node.stderr().contains("panicked"), "{}", node.stderr());
    site.verified();
}

#[test]
fn a_stranger_gets_nothing_for_junk_and_refused_for_a_query() {
    let site = Site::new();
    site.file("policy/loop.toml", &crate::harness::POLICY.replace("127.0.0.0/8", "127.0.0.1"));
    let _node = site.start();
    let stranger = Client::from("127.0.0.9".parse().unwrap(), site.dns);
    for (_, bytes, _) in cases() {
        stranger.socket.send(&bytes).unwrap();
    }
    // Nothing came before this reply.
    let query = with_edns(a("www.corp.example"), 1232).to_vec().unwrap();
    stranger.socket.send(&query).unwrap();
    let reply = stranger.receive().unwrap();
    assert_eq!(reply[..2], query[..2]);
    let reply = Message::from_vec(&reply).unwrap();
    assert_eq!((code(&reply), crate::dns::extended_error(&reply)), (ResponseCode::Refused, Some(18)));
    assert_eq!(of_port(&site.queries(), &stranger.socket).len(), cases().len() + 1);
}

/// Small, and the same on every machine (Marsaglia's xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).unwrap()
    }
}

#[test]
fn ten_thousand_mutated_packets_are_ten_thousand_records() {
    const PACKETS: usize = 10_000;
    /// So few at once fit any socket's queue.
    const AT_ONCE: usize = 25;
    let upstream = Upstream::start();
    let site = Site::new().with_servers(&[upstream.address]);
    let mut node = site.start();
    let mut seeds: Vec<Vec<u8>> = cases().into_iter().map(|(_, bytes, _)| bytes).collect();
    seeds.retain(|bytes| bytes.len() < 1000);
    seeds.extend(["www.corp.example", "x.example.net"].map(|name| with_edns(a(name), 1232).to_vec().unwrap()));
    let mut random = Random(0x6f75_7467_6174_6531);
    let client = Client::new(site.dns);
    let mut sentinels = 0;
    for _ in 0..PACKETS / AT_ONCE {
        for _ in 0..AT_ONCE {
            let mut bytes = seeds[random.below(seeds.len())].clone();
            for _ in 0..=random.below(4) {
                let at = random.below(bytes.len() + 1);
                let octet = u8::try_from(random.below(256)).unwrap();
                match random.below(4) {
                    0 => bytes.insert(at, octet),
                    1 => bytes.truncate(at),
                    2 => bytes.extend_from_within(at..),
                    _ => bytes.iter_mut().skip(at).take(1).for_each(|one| *one = octet),
                }
            }
            client.socket.send(&bytes).unwrap();
        }
        let sentinel = a(&format!("s{sentinels}.corp.example"));
        sentinels += 1;
        let packet = sentinel.to_vec().unwrap();
        client.socket.send(&packet).unwrap();
        while !client.receive().unwrap()[12..].starts_with(&packet[12..]) {}
        assert!(!node.has_ended(), "{}", node.stderr());
    }
    // Those that had to ask the upstream may come last.
    until("each has its record", || site.queries().len() >= PACKETS + sentinels);
    let queries = site.queries();
    assert_eq!(of_port(&queries, &client.socket).len(), PACKETS + sentinels);
    let mut ids: Vec<&str> = queries.iter().map(|record| record["id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), PACKETS + sentinels);
    assert!(queries.iter().any(|record| record["verdict"] == "allow"), "some are still questions");
    assert_eq!(node.stop(), Some(0));
    assert!(!node.stderr().contains("panicked"), "{}", node.stderr());
    site.verified();
}
