//! Messages made again are held against those that the wire room writes, and read by hickory-proto.

use hickory_proto::op::Message as Parsed;
use hickory_proto::rr::RecordType as Kind;
use proptest::prelude::*;
use prost::Message as _;

use super::protobuf::Dnstap;
use super::*;
use crate::audit::{Encoder, Event, Outcome, RecordId, Stated, Statement, Transport, fixture};
use crate::name::NameBuf;
use crate::policy::Reason;
use crate::record::{ExtendedError, Question, Rcode, Record, RecordType};
use crate::time::{Ttl, Wall};
use crate::wire::{Echo, Edns, TCP_LIMIT, Template, Written, write_refusal};

const AT: Wall = Wall(1_795_233_184_117_302);

/// The line of a query.
fn line(statement: Statement<'_>, written: Written, transport: Transport) -> String {
    let Event::Query(mut event) = fixture::query(AT) else { unreachable!() };
    (event.transport, event.flags, event.bytes, event.ttl) = (transport, written.flags, written.len, 60);
    let statement = Event::Query(crate::audit::QueryEvent { stated: Stated::Plain(statement), ..event });
    let (id, mut out) = (RecordId { boot: 1, shard: 3, sequence: 7 }, Vec::new());
    Encoder::new(id.boot, id.shard, "og-eu1-a").encode(&mut out, id, &statement);
    String::from_utf8(out).unwrap().trim_end().to_owned()
}

/// The frames of a line.
fn frames(line: &str) -> Vec<Dnstap> {
    let mut out = b"before".to_vec();
    assert!(write(line, &mut out), "{line}");
    let mut rest = out.strip_prefix(b"before").unwrap();
    let mut frames = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk() {
        let (frame, after) = after.split_at(u32::from_be_bytes(*length) as usize);
        frames.push(Dnstap::decode(frame).unwrap());
        rest = after;
    }
    assert!(rest.is_empty());
    frames
}

fn messages(line: &str) -> [Message; 2] {
    let frames: Vec<_> = frames(line).into_iter().map(|frame| frame.message.unwrap()).collect();
    frames.try_into().unwrap()
}

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

fn record(owner: &str, kind: RecordType, data: impl AsRef<[u8]>) -> Record {
    Record { name: name(owner), kind, ttl: Ttl::from_wire(60), data: data.as_ref().into() }
}

fn echo(question: &[u8], edns: bool) -> Echo<'_> {
    Echo {
        id: 4711,
        opcode: 0,
        recursion_desired: true,
        authentic_data: false,
        checking_disabled: true,
        question,
        edns: edns.then_some(Edns { size: 1232, dnssec_ok: false, keepalive: false, padding: false }),
        subnet: None,
        cookie: None,
    }
}

#[test]
fn a_response_is_made_again_octet_by_octet() {
    let asked = Question { name: name("www.example.org"), kind: RecordType::A };
    let section = [asked.name.as_wire(), b"\0\x01\0\x01"].concat();
    let chain = [
        record("www.example.org", RecordType::CNAME, name("a.cdn.example.net").as_wire()),
        record("a.cdn.example.net", RecordType::A, [192, 0, 2, 1]),
        record("a.cdn.example.net", RecordType::A, [192, 0, 2, 2]),
    ];
    let rare = [
        record("www.example.org", RecordType::MX, [b"\0\x0a", name("mail.example.org").as_wire()].concat()),
        record("www.example.org", RecordType::TXT, b"\x05hello"),
        record("www.example.org", RecordType::HTTPS, b"\0\x01\0\0\x01\0\x03\x02h2\0\x04\0\x04\xc0\0\x02\x01"),
        record("www.example.org", RecordType(731), b""),
        record("www.example.org", RecordType::AAAA, [0x20; 16]),
    ];
    let ede = ExtendedError::new(15, "no rule allows it");
    let rows: [(&str, Outcome, Rcode, &[Record], bool); 7] = [
        ("an answer", Outcome::Allow, Rcode::NOERROR, &chain, false),
        ("rarer types", Outcome::Allow, Rcode::NOERROR, &rare, false),
        ("an answer with a note", Outcome::Allow, Rcode::NOERROR, &chain, true),
        ("a refusal with its SOA", Outcome::Deny, Rcode::NXDOMAIN, &[], true),
        ("NODATA with its SOA", Outcome::Deny, Rcode::NOERROR, &[], true),
        ("REFUSED", Outcome::Deny, Rcode::REFUSED, &[], true),
        ("a failure", Outcome::Error, Rcode::SERVFAIL, &[], true),
    ];
    for (reason, outcome, rcode, answers, noted) in rows {
        let ede = noted.then_some(&ede);
        for edns in [false, true] {
            let (mut sent, echo) = (Vec::new(), echo(&section, edns));
            let written = match outcome {
                Outcome::Allow => Template::new(&asked, rcode, true, answers, None, ede).write(
                    &mut sent,
                    &echo,
                    Ttl::from_wire(60),
                    TCP_LIMIT,
                ),
                _ => write_refusal(&mut sent, &echo, rcode, ede, TCP_LIMIT),
            };
            let statement = Statement {
                qname: Some(asked.name.as_wire()),
                outcome,
                reason: Reason::Rule,
                rcode: Some(rcode),
                answers,
                ede,
                ..fixture::statement()
            };
            let [query, response] = messages(&line(statement, written, Transport::Udp));
            assert_eq!(response.response_message.unwrap(), sent, "{reason}, EDNS {edns}");
            let opt = if edns { b"\0\0\x29\x04\xd0\0\0\0\0\0\0".as_slice() } else { &[] };
            let header = [0x12, 0x67, 1, 0x10, 0, 1, 0, 0, 0, 0, 0, u8::from(edns)];
            assert_eq!(query.query_message.unwrap(), [&header, section.as_slice(), opt].concat(), "{reason}");
        }
    }
}

#[test]
fn a_frame_says_who_asked_and_when_and_what_was_done() {
    let written = Written { len: 90, truncated: false, flags: 0x8183, options: 0 };
    let statement = Statement { rule: None, ..fixture::statement() };
    let text = line(statement, written, Transport::Doh3).replace("\"192.0.2.1\"", "\"2001:db8::5\"");
    let [query, response] = <[Dnstap; 2]>::try_from(frames(&text)).unwrap();
    for frame in [&query, &response] {
        assert_eq!(frame.identity.as_deref(), Some(b"og-eu1-a".as_slice()));
        assert!(frame.version.as_deref().unwrap().starts_with(b"outgate "));
        assert_eq!(
            std::str::from_utf8(frame.extra.as_deref().unwrap()).unwrap(),
            r#"{"id":"0000000000000001-3-7","segment":"checkout","policy":"9c1f5be27a40d3e1","verdict":"deny","reason":"default"}"#
        );
    }
    let (query, response) = (query.message.unwrap(), response.message.unwrap());
    assert_eq!((query.kind, response.kind), (5, 6));
    assert_eq!((query.socket_family, query.socket_protocol, query.http_protocol), (Some(2), Some(4), Some(3)));
    assert_eq!(query.query_address.as_ref().map(Vec::len), Some(16));
    assert_eq!((query.query_time_sec, query.query_time_nsec), (Some(1_795_233_184), Some(117_302_000)));
    assert_eq!((response.response_time_sec, response.response_time_nsec), (Some(1_795_233_184), Some(117_344_000)));
    assert_eq!((query.policy, query.response_message), (None, None));
    let policy = response.policy.unwrap();
    assert_eq!((policy.kind.as_deref(), policy.rule, policy.action), (Some("outgate"), None, Some(1)));
    assert_eq!((policy.matched, policy.value.unwrap().as_slice()), (Some(1), b"\x07example\x03org\0".as_slice()));
}

#[test]
fn what_was_done_is_an_action_where_dnstap_has_it() {
    let base = line(fixture::statement(), Written { len: 1, truncated: false, flags: 0, options: 0 }, Transport::Udp);
    let of = |edits: &[(&str, &str)]| {
        let text = edits.iter().fold(base.clone(), |text, (from, to)| text.replace(from, to));
        let frames = frames(&text);
        let policy = frames.last().unwrap().message.clone().unwrap().policy.unwrap();
        (frames.len(), policy.action, policy.matched)
    };
    let allow = ("\"deny\"", "\"allow\"");
    let noerror = ("NXDOMAIN", "NOERROR");
    assert_eq!(of(&[]), (2, Some(1), Some(1)));
    assert_eq!(of(&[noerror]), (2, Some(2), Some(1)));
    assert_eq!(of(&[("NXDOMAIN", "REFUSED"), ("\"default\"", "\"no_segment\"")]), (2, None, Some(2)));
    assert_eq!(of(&[(",\"rcode\":\"NXDOMAIN\"", "")]), (1, Some(4), Some(1)), "silence");
    assert_eq!(of(&[allow, noerror, ("\"default\"", "\"rule\"")]), (2, Some(3), Some(1)));
    assert_eq!(of(&[allow, noerror, ("\"default\"", "\"local\"")]), (2, Some(6), Some(1)));
    assert_eq!(of(&[("\"deny\",", "\"deny\",\"enforced\":false,")]), (2, Some(3), Some(1)));
    assert_eq!(of(&[("\"deny\"", "\"error\""), ("\"default\"", "\"upstream\"")]), (2, None, None));
    assert_eq!(of(&[("\"default\"", "\"address\"")]), (2, Some(1), Some(3)));
}

#[test]
fn what_is_left_out_is_counted() {
    let asked = Question { name: name("example.org"), kind: RecordType::TXT };
    let many: Vec<_> =
        (0..200).map(|_| record("example.org", RecordType::TXT, b"\x1fabcdefghijklmnopqrstuvwxyz01234")).collect();
    let statement = Statement {
        qname: Some(asked.name.as_wire()),
        qtype: Some(asked.kind),
        outcome: Outcome::Allow,
        rcode: Some(Rcode::NOERROR),
        answers: &many,
        ..fixture::statement()
    };
    let text = line(statement, Written { len: 9_000, truncated: false, flags: 0x8180, options: 0 }, Transport::Tcp);
    let text = text.replacen("\"data\":\"\\\\# 32", "\"data\":\"\\\\# 31", 1);
    let frames = frames(&text);
    let response = frames[1].message.clone().unwrap().response_message.unwrap();
    let told = Parsed::from_vec(&response).unwrap().answers.len();
    let extra: serde_json::Value = serde_json::from_slice(frames[1].extra.as_deref().unwrap()).unwrap();
    assert!(told > 0);
    assert_eq!(extra["answers_omitted"], 200 - told, "one is unreadable, others did not fit the line");
}

#[test]
fn only_queries_have_a_form() {
    let mut out = b"before".to_vec();
    let query = line(fixture::statement(), Written { len: 1, truncated: false, flags: 0, options: 0 }, Transport::Udp);
    for text in [
        "",
        "{}",
        "[",
        &query[..query.len() - 1],
        &query.replace("\"query\"", "\"grant\""),
        &query.replace("2026-11-21T", "yesterday "),
        &query.replace("\"192.0.2.1\"", "\"localhost\""),
    ] {
        assert!(!write(text, &mut out), "{text}");
        assert_eq!(out, b"before");
    }
}

#[test]
fn a_packet_of_which_little_is_known_has_no_more_in_its_frames() {
    let statement =
        Statement { qname: None, qtype: None, rcode: None, reason: Reason::Malformed, ..fixture::statement() };
    let text = line(statement, Written { len: 0, truncated: false, flags: 0, options: 0 }, Transport::Udp);
    let [frame] = <[Dnstap; 1]>::try_from(frames(&text)).unwrap();
    assert_eq!(frame.message.unwrap().query_message.unwrap(), b"\x12\x67\0\0\0\0\0\0\0\0\0\0");
    let [frame] = <[Dnstap; 1]>::try_from(frames(&text.replace("\"qid\":4711,", ""))).unwrap();
    assert_eq!(frame.message.unwrap().query_message, None);
}

#[test]
fn the_page_has_every_field() {
    let page = include_str!("../../../../docs/dnstap.md");
    for (table, shown) in [
        ("", format!("{:?}", Dnstap::default())),
        ("message.", format!("{:?}", Message::default())),
        ("policy.", format!("{:?}", Policy::default())),
    ] {
        let fields = shown.split(['{', ',', '}']).filter_map(|part| part.split_once(':')).map(|(name, _)| name.trim());
        for field in fields.filter(|field| !(table.is_empty() && ["kind", "message"].contains(field))) {
            let name = match field {
                "kind" => "type",
                "matched" => "match",
                other => other,
            };
            assert!(page.contains(&format!("`{table}{name}`")), "{table}{name}");
        }
    }
}

/// Names of any octets, up to the longest.
fn any_name() -> impl Strategy<Value = Name> {
    let label = prop_oneof![
        prop::collection::vec(any::<u8>(), 1..64),
        prop::collection::vec(prop::sample::select(b"aZ.\\\"\n\r\t\0 |=,\x1b\x7f\xff".to_vec()), 1..20),
    ];
    prop::collection::vec(label, 0..9).prop_map(|labels| {
        let mut name = NameBuf::new();
        labels.iter().for_each(|label| drop(name.push_label(label)));
        name.to_name()
    })
}

fn any_record() -> impl Strategy<Value = Record> {
    let kind = prop::sample::select(vec![1, 2, 5, 6, 12, 15, 16, 28, 33, 39, 43, 46, 64, 65, 99, 257, 731, 65_535]);
    let data = (any_name(), prop::collection::vec(any::<u8>(), 0..80), 0..4);
    (any_name(), kind, data).prop_map(|(name, kind, (target, junk, form))| {
        let kind = RecordType(kind);
        let data = match (form, kind) {
            (_, RecordType::A) => [junk.as_slice(), &[7; 4]].concat()[..4].to_vec(),
            (_, RecordType::AAAA) => [junk.as_slice(), &[7; 16]].concat()[..16].to_vec(),
            // Names in data are in lower case wherever data comes from.
            (0, _) => junk.to_ascii_lowercase(),
            (1, _) => target.as_wire().to_vec(),
            (2, _) => [&[0, 9], target.as_wire()].concat(),
            _ => [&[0, 1, 0, 2, 0, 53], target.as_wire()].concat(),
        };
        Record { name, kind, ttl: Ttl::from_wire(60), data: data.into() }
    })
}

proptest! {
    /// Whatever the log can say: both messages are read, by another hand, as the names, types and codes that it says.
    #[test]
    fn every_record_is_read_by_others_as_what_it_says(
        asked in prop::option::of((any_name(), any::<u16>())),
        answers in prop::collection::vec(any_record(), 0..6),
        outcome in prop::sample::select(Outcome::ALL.to_vec()),
        reason in prop::sample::select(Reason::ALL.to_vec()),
        rcode in prop::option::of((0..24_u16).prop_map(Rcode)),
        (flags, len) in (any::<u16>(), 0..2_000_usize),
        ede in prop::option::of((any::<u16>(), ".{0,80}")),
    ) {
        let answers = if asked.is_some() { answers } else { Vec::new() };
        let ede = ede.map(|(code, text)| ExtendedError::new(code, text));
        let statement = Statement {
            qname: asked.as_ref().map(|(name, _)| name.as_wire()),
            qtype: asked.as_ref().map(|(_, kind)| RecordType(*kind)),
            outcome, reason, rcode,
            answers: &answers,
            ede: ede.as_ref(),
            ..fixture::statement()
        };
        let frames = frames(&line(statement, Written { len, truncated: false, flags, options: 0 }, Transport::Dot));
        prop_assert_eq!(frames.len(), 1 + usize::from(rcode.is_some()));
        for frame in frames {
            let message = frame.message.unwrap();
            let wire = message.query_message.or(message.response_message).unwrap();
            // hickory-proto does not take RDATA that has not the form of its type; the wire room takes all but addresses.
            let read = crate::wire::parse_message(&wire);
            let parsed = Parsed::from_vec(&wire);
            if let Some((name, kind)) = &asked {
                prop_assert_eq!(&wire[12..12 + name.as_wire().len()], name.as_wire());
                if let Ok(parsed) = &parsed {
                    prop_assert_eq!(parsed.queries[0].query_type(), Kind::from(*kind));
                }
            }
            if answers.is_empty() {
                prop_assert!(parsed.is_ok(), "{:?}", parsed);
            }
            if message.kind == protobuf::CLIENT_RESPONSE {
                let told = u16::from_be_bytes([wire[6], wire[7]]);
                prop_assert_eq!(usize::from(told), if flags & 0x200 == 0 { answers.len() } else { 0 });
                if let Ok(read) = read {
                    prop_assert_eq!(Some(read.rcode), rcode);
                    prop_assert!(told == 0 || read.answers == answers);
                }
            }
        }
    }
}
