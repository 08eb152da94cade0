//! What holds between the two directions, against an independent implementation and against random bytes.

use hickory_proto::op::{self, OpCode};
use hickory_proto::rr;
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder};
use proptest::prelude::*;

use super::*;
use crate::name::Name;
use crate::record::{ExtendedError, Question, Rcode, Record, RecordType};
use crate::time::Ttl;

/// Names from few labels, so that many share a suffix.
fn name() -> impl Strategy<Value = Name> {
    let label = prop_oneof![
        Just("a".to_owned()),
        Just("www".to_owned()),
        Just("example".to_owned()),
        Just("org".to_owned()),
        Just("l".repeat(60)),
        "[a-z0-9]{1,12}"
    ];
    prop::collection::vec(label, 0..5)
        .prop_map(|labels| if labels.is_empty() { Name::root() } else { Name::parse(&labels.join(".")).unwrap() })
}

/// Records of types with every shape of RDATA, valid in the eyes of others too.
fn record() -> impl Strategy<Value = Record> {
    let join = |parts: &[&[u8]]| parts.concat();
    let data = (name(), name(), any::<[u8; 16]>(), 0..11_u8).prop_map(move |(one, two, octets, shape)| {
        let (one, two) = (one.as_wire(), two.as_wire());
        match shape {
            0 => (1, octets[..4].to_vec()),
            1 => (28, octets.to_vec()),
            2 => (2, one.to_vec()),
            3 => (5, one.to_vec()),
            4 => (12, one.to_vec()),
            5 => (6, join(&[one, two, &octets, b"\0\0\0\x05"])),
            6 => (15, join(&[&octets[..2], one])),
            7 => (33, join(&[&octets[..6], one])),
            8 => (16, join(&[&[16], &octets])),
            9 => (35, join(&[&octets[..4], b"\x01u\x03sip\x00", one])),
            _ => (731, join(&[one, &octets])),
        }
    });
    (name(), data, 0..=0x7fff_ffff_u32).prop_map(|(name, (kind, data), ttl)| Record {
        name,
        kind: RecordType(kind),
        ttl: Ttl::from_wire(ttl),
        data: data.into(),
    })
}

fn question() -> impl Strategy<Value = Question> {
    (name(), 1..41_u16).prop_map(|(name, kind)| Question { name, kind: RecordType(kind) })
}

/// A question section in which each letter's case is taken from `bits`; it lives as long as the test.
fn in_case(question: &Question, bits: u64) -> &'static [u8] {
    let mut out = Vec::new();
    let mut bit = 0;
    encode_query(&mut out, 0, question, false, || {
        bit += 1;
        bits >> (bit % 64) & 1 == 1
    });
    &out.leak()[HEADER..][..question.name.as_wire().len() + 4]
}

fn echo() -> impl Strategy<Value = (Question, Echo<'static>)> {
    let edns = prop::option::of((512..=1232_u16, any::<bool>()));
    (question(), any::<(u16, bool, bool, u64)>(), edns).prop_map(
        |(question, (id, recursion_desired, checking_disabled, bits), edns)| {
            let echo = Echo {
                id,
                opcode: 0,
                recursion_desired,
                authentic_data: false,
                checking_disabled,
                question: in_case(&question, bits),
                edns: edns.map(|(size, dnssec_ok)| Edns { size, dnssec_ok, keepalive: false, padding: false }),
                subnet: None,
                cookie: None,
            };
            (question, echo)
        },
    )
}

/// Octets as the other implementation writes them: canonical, nothing compressed.
fn octets(value: &impl BinEncodable) -> Vec<u8> {
    let mut out = Vec::new();
    let mut encoder = BinEncoder::new(&mut out);
    encoder.set_canonical_form(true);
    value.emit(&mut encoder).unwrap();
    out
}

fn from_theirs(record: &rr::Record) -> Record {
    Record {
        name: Name::from_wire(&octets(&record.name)).unwrap(),
        kind: RecordType(record.record_type().into()),
        ttl: Ttl::from_wire(record.ttl),
        data: octets(&record.data).into(),
    }
}

/// Carries records over to the other implementation, uncompressed.
fn to_theirs(records: &[Record]) -> Vec<rr::Record> {
    let mut packet = vec![0, 0, 0x80, 0, 0, 0];
    packet.extend(u16::try_from(records.len()).unwrap().to_be_bytes());
    packet.extend([0; 4]);
    for record in records {
        packet.extend_from_slice(record.name.as_wire());
        packet.extend(record.kind.0.to_be_bytes());
        packet.extend(IN.to_be_bytes());
        packet.extend(record.ttl.seconds().to_be_bytes());
        packet.extend(u16::try_from(record.data.len()).unwrap().to_be_bytes());
        packet.extend_from_slice(&record.data);
    }
    op::Message::from_vec(&packet).unwrap().answers
}

proptest! {
    /// Any other resolver reads from a template what went into it; our own reader does too.
    #[test]
    fn a_reply_reads_as_the_records_given(
        (question, echo) in echo(),
        records in prop::collection::vec(record(), 0..12),
        soa in prop::option::of(record()),
        (ttl, aa, text) in (0..=0x7fff_ffff_u32, any::<bool>(), prop::option::of("[a-z ]{0,40}")),
        limit in 600..3000_usize,
    ) {
        let ede = text.map(|text| ExtendedError::new(15, text));
        let template = Template::new(&question, Rcode::NXDOMAIN, aa, &records, soa.as_ref(), ede.as_ref());
        let mut out = Vec::new();
        let written = template.write(&mut out, &echo, Ttl::from_wire(ttl), limit);
        prop_assert!(out.len() <= limit);
        prop_assert_eq!(written.len, out.len());
        prop_assert_eq!(written.flags.to_be_bytes(), [out[2], out[3]]);
        prop_assert_eq!(&out[HEADER..HEADER + echo.question.len()], echo.question, "bit for bit");

        let told = |record: &Record| Record { ttl: Ttl::from_wire(ttl), ..record.clone() };
        let answers: Vec<Record> = if written.truncated { vec![] } else { records.iter().map(told).collect() };
        let authority: Vec<Record> = if written.truncated { vec![] } else { soa.iter().map(told).collect() };

        let theirs = op::Message::from_vec(&out).unwrap();
        prop_assert_eq!(theirs.answers.iter().map(from_theirs).collect::<Vec<_>>(), &*answers);
        prop_assert_eq!(theirs.authorities.iter().map(from_theirs).collect::<Vec<_>>(), &*authority);
        prop_assert_eq!(theirs.metadata.id, echo.id);
        prop_assert_eq!(theirs.metadata.authoritative, aa);
        prop_assert_eq!(theirs.metadata.truncation, written.truncated);
        prop_assert_eq!(theirs.metadata.recursion_desired, echo.recursion_desired);
        prop_assert_eq!(theirs.metadata.checking_disabled, echo.checking_disabled);
        prop_assert!(theirs.metadata.recursion_available && !theirs.metadata.authentic_data);
        prop_assert_eq!(theirs.metadata.response_code, op::ResponseCode::NXDomain);
        prop_assert_eq!(theirs.edns.as_ref().map(|edns| edns.flags().dnssec_ok), echo.edns.map(|edns| edns.dnssec_ok));

        let ours = parse_message(&out).unwrap();
        prop_assert_eq!(ours.question, Some((echo.question.into(), question)));
        prop_assert_eq!((ours.answers, ours.authority), (answers, authority));
    }

    /// What another implementation compresses, we expand to the same records.
    #[test]
    fn a_message_of_theirs_reads_as_they_meant_it(
        question in question(),
        sections in prop::array::uniform3(prop::collection::vec(record(), 0..6)),
    ) {
        let [answers, authority, additional] = &sections;
        let mut theirs = op::Message::response(77, OpCode::Query);
        let asked = rr::Name::from_labels(question.name.labels()).unwrap();
        theirs.add_query(op::Query::query(asked, question.kind.0.into()));
        theirs.metadata.response_code = op::ResponseCode::BADVERS;
        theirs.insert_answers(to_theirs(answers));
        theirs.insert_authorities(to_theirs(authority));
        theirs.insert_additionals(to_theirs(additional));
        theirs.set_edns({
            let mut edns = op::Edns::new();
            edns.set_max_payload(1400);
            edns
        });
        let message = parse_message(&theirs.to_vec().unwrap()).unwrap();
        prop_assert_eq!(message.question.map(|(_, question)| question), Some(question));
        prop_assert_eq!([message.answers, message.authority, message.additional], sections);
        prop_assert_eq!(message.edns, Some(MessageEdns { size: 1400, version: 0, dnssec_ok: false }));
        prop_assert_eq!((message.id, message.rcode), (77, Rcode(16)));
    }

    /// I2: of a client's query nothing but name and type is left in the packet for the upstream.
    #[test]
    fn a_query_reads_as_asked_and_forwards_as_a_function_of_its_question(
        (question, echo) in echo(),
        bits in any::<u64>(),
    ) {
        let mut sent = Vec::new();
        encode_query(&mut sent, echo.id, &question, true, || false);
        sent.splice(HEADER..sent.len() - 11, in_case(&question, bits).iter().copied());
        let mut room = Canonical::new();
        let query = parse(&sent, &mut room).unwrap();
        prop_assert_eq!(query.name, question.name.as_wire());
        prop_assert_eq!(query.question(), question.clone());
        prop_assert_eq!(query.echo.question, in_case(&question, bits));
        let (mut one, mut two) = (Vec::new(), Vec::new());
        encode_query(&mut one, 1, &query.question(), false, || false);
        encode_query(&mut two, 1, &question, false, || false);
        prop_assert_eq!(one, two);
    }

    #[test]
    fn random_octets_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = parse(&bytes, &mut Canonical::new());
        let _ = parse_message(&bytes);
    }
}

/// Long names without a common suffix, over and over: the table stays small, the work bounded, the reply right.
#[test]
fn compression_stops_at_its_caps_and_stays_right() {
    let question = Question { name: Name::root(), kind: RecordType::A };
    let records: Vec<Record> = (0..200)
        .map(|index| {
            let labels: String = (0..60).map(|label| format!("{}.", (index * 7 + label * 13) % 10)).collect();
            Record::of_address(Name::parse(&labels).unwrap(), Ttl::ZERO, [192, 0, 2, 1].into())
        })
        .collect();
    let template = Template::new(&question, Rcode::NOERROR, false, &records, None, None);
    let echo = Echo {
        id: 0,
        opcode: 0,
        recursion_desired: false,
        authentic_data: false,
        checking_disabled: false,
        question: in_case(&question, 0),
        edns: None,
        subnet: None,
        cookie: None,
    };
    let mut out = Vec::new();
    assert!(!template.write(&mut out, &echo, Ttl::ZERO, TCP_LIMIT).truncated);
    assert_eq!(parse_message(&out).unwrap().answers, records);
}

/// 200,000 mutations of valid packets: no panic, and every answer to one is itself a message within 512 octets.
#[test]
fn mutated_packets_never_panic_and_are_answered_with_messages() {
    let question = Question { name: Name::parse("www.api.example.org").unwrap(), kind: RecordType::A };
    let mut query = Vec::new();
    encode_query(&mut query, 1, &question, true, || true);
    let soa = refusal_soa(&Name::parse("example.org").unwrap());
    let target = Record { kind: RecordType::CNAME, data: question.name.as_wire().into(), ..soa.clone() };
    let address = Record::of_address(question.name.clone(), Ttl::ZERO, [192, 0, 2, 1].into());
    let mut reply = Vec::new();
    Template::new(&question, Rcode::NOERROR, false, &[target, address], Some(&soa), None).write(
        &mut reply,
        &parse(&query, &mut Canonical::new()).unwrap().echo,
        Ttl::ZERO,
        1232,
    );

    // xorshift64: the same mutations on every run.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 33).unwrap() % below
    };
    let interesting = [0, 1, 0x0c, 0x29, 0x3f, 0x40, 0x80, 0xc0, 0xff];
    let (mut read, mut packet, mut out) = ([0_u32; 2], Vec::new(), Vec::new());
    for round in 0..200_000 {
        packet.clear();
        packet.extend_from_slice(if round % 2 == 0 { &query } else { &reply });
        for _ in 0..=random(3) {
            let at = random(packet.len());
            match random(4) {
                0 => packet[at] = interesting[random(interesting.len())],
                1 => packet[at] ^= 1 << random(8),
                2 => packet.truncate(at.max(1)),
                _ => packet.insert(at, u8::try_from(random(256)).unwrap()),
            }
        }
        out.clear();
        if round % 2 == 1 {
            read[1] += u32::from(parse_message(&packet).is_ok());
            continue;
        }
        match parse(&packet, &mut Canonical::new()) {
            Ok(query) => {
                read[0] += 1;
                write_refusal(&mut out, &query.echo, Rcode::NXDOMAIN, None, query.echo.udp_limit());
            }
            Err(Malformed { answer: Some((rcode, echo)), .. }) => {
                write_refusal(&mut out, &echo, rcode, None, 512);
            }
            Err(_) => continue,
        }
        assert!((HEADER..=512).contains(&out.len()));
        match parse_message(&out) {
            Ok(message) => assert!(message.response),
            Err(fault) => assert_eq!(fault, Fault::Class, "{packet:02x?}"),
        }
    }
    assert!(read.iter().all(|read| *read > 1000), "mutations must not all be fatal: {read:?}");
}
