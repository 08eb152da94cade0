//! Junk from an upstream, octet by octet, through the whole gate: nothing of it reaches a client or the firewall, and
//! everybody is answered.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{RData, RecordType};
use outgate::audit::Transport;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};

use super::gate::{Act, Reply, World};
use super::{upstream, world};
use crate::gate::Ask;

const CLIENT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 9)), 4000);
/// A pointer to the question's name.
const QNAME: &[u8] = &[0xc0, 12];
/// Where the records begin: every name here is as long.
const RECORDS: usize = 12 + "n000.example.com".len() + 2 + 4;

/// One record.
fn record(owner: &[u8], kind: u16, class: u16, data: &[u8]) -> Vec<u8> {
    let head = [kind.to_be_bytes(), class.to_be_bytes(), [0, 0], [0, 60]].concat();
    [owner, &head, &u16::try_from(data.len()).unwrap().to_be_bytes(), data].concat()
}

fn address(last: u8) -> Vec<u8> {
    record(QNAME, 1, 1, &[198, 51, 100, last])
}

/// A response: flags and code, how many records are counted, and the sections as they stand.
fn response(flags: u16, counts: [u16; 3], sections: &[Vec<u8>]) -> Vec<u8> {
    let header = [
        [0, 0],
        flags.to_be_bytes(),
        [0, 1],
        counts[0].to_be_bytes(),
        counts[1].to_be_bytes(),
        counts[2].to_be_bytes(),
    ];
    [header.concat(), b"\x04n000\x07example\x03com\0\0\x01\0\x01".to_vec(), sections.concat()].concat()
}

fn plain(sections: &[Vec<u8>]) -> Vec<u8> {
    response(0x8180, [u16::try_from(sections.len()).unwrap(), 0, 0], sections)
}

/// A name of one label below the root.
fn label(text: &str) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap()], text.as_bytes(), &[0]].concat()
}

/// CNAMEs from the question's name over `length` others, and an address at the end.
fn chain(length: usize) -> Vec<Vec<u8>> {
    let name = |at: usize| if at == 0 { QNAME.to_vec() } else { label(&format!("l{at}")) };
    let links = (0..length).map(|at| record(&name(at), 5, 1, &name(at + 1)));
    links.chain([record(&name(length), 1, 1, &[198, 51, 100, 1])]).collect()
}

fn asked(number: usize) -> String {
    format!("n{number:03}.example.com.")
}

fn junk_world() -> World {
    world(vec![upstream("default", &[])], outgate::grant::Terms::default())
}

/// The reply to a question that the upstream answers with these octets.
fn told(world: &mut World, number: usize, octets: Vec<u8>) -> Result<Reply, String> {
    world.servers[0].script(&asked(number), RecordType::A, Act::Octets(octets));
    let packet = Ask::new(&asked(number), RecordType::A).bytes(77);
    let exchange = world.send(&packet, CLIENT, Transport::Udp)?;
    Reply::read(&exchange.reply.ok_or("silence")?)
}

#[test]
fn junk_is_servfail_with_its_reason_and_opens_nothing() {
    let many =
        |count: usize| -> Vec<Vec<u8>> { (0..count).map(|at| address(u8::try_from(at % 250).unwrap())).collect() };
    let behind_a_cname = |count: usize| -> Vec<Vec<u8>> {
        let addresses = (0..count).map(|at| record(&label("a"), 1, 1, &[198, 51, 100, u8::try_from(at).unwrap()]));
        [record(QNAME, 5, 1, &label("a"))].into_iter().chain(addresses).collect()
    };
    let rows: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", Vec::new()),
        ("an octet", vec![0]),
        ("a header", response(0x8180, [0; 3], &[])[..12].to_vec()),
        ("half a question", response(0x8180, [0; 3], &[])[..20].to_vec()),
        ("a query", response(0x0100, [0; 3], &[])),
        ("another opcode", response(0xa980, [1, 0, 0], &[address(1)])),
        ("a count without its record", response(0x8180, [2, 0, 0], &[address(1)])),
        ("a count without its record in authority", response(0x8180, [1, 1, 0], &[address(1)])),
        ("a count of everything", response(0x8180, [0xffff; 3], &[address(1)])),
        ("octets behind the end", [plain(&[address(1)]), vec![1]].concat()),
        ("a record that is not counted", response(0x8180, [1, 0, 0], &[address(1), address(2)])),
        (
            "an owner that points to itself",
            plain(&[record(&[0xc0, u8::try_from(RECORDS).unwrap()], 1, 1, &[198, 51, 100, 1])]),
        ),
        ("an owner that points forward", plain(&[record(&[0xc0, 0xff], 1, 1, &[198, 51, 100, 1])])),
        ("an owner that points into the header", plain(&[record(&[0xc0, 0], 1, 1, &[198, 51, 100, 1])])),
        ("an extended label", plain(&[record(&[0x41, 0], 1, 1, &[198, 51, 100, 1])])),
        ("a reserved label", plain(&[record(&[0x80, 0], 1, 1, &[198, 51, 100, 1])])),
        (
            "a name of 256 octets",
            plain(&[record(&[[3, b'a', b'a', b'a'].repeat(64), vec![0]].concat(), 1, 1, &[198, 51, 100, 1])]),
        ),
        ("an address of 3 octets", plain(&[record(QNAME, 1, 1, &[198, 51, 100])])),
        ("an address of 5 octets", plain(&[record(QNAME, 1, 1, &[198, 51, 100, 1, 1])])),
        ("an address of none", plain(&[record(QNAME, 1, 1, &[])])),
        ("a good address and a bad one", plain(&[address(1), record(QNAME, 1, 1, &[198])])),
        ("data longer than the message", [plain(&[address(1)]), vec![]].concat()[..RECORDS + 13].to_vec()),
        ("a CNAME to nothing", plain(&[record(QNAME, 5, 1, &[])])),
        ("a CNAME to half a name", plain(&[record(QNAME, 5, 1, &[5, b'a'])])),
        ("a CNAME that points to itself", plain(&[record(QNAME, 5, 1, &[0xc0, u8::try_from(RECORDS + 12).unwrap()])])),
        ("a CNAME to the name itself", plain(&[record(QNAME, 5, 1, QNAME)])),
        ("a loop of two", plain(&[record(QNAME, 5, 1, &label("a")), record(&label("a"), 5, 1, QNAME)])),
        ("two CNAMEs", plain(&[record(QNAME, 5, 1, &label("a")), record(QNAME, 5, 1, &label("b"))])),
        ("nine CNAMEs", plain(&chain(9))),
        ("two hundred CNAMEs", plain(&chain(200))),
        ("101 addresses", plain(&many(101))),
        ("257 addresses", plain(&many(257))),
        ("101 addresses behind a CNAME", plain(&behind_a_cname(101))),
        ("four thousand addresses", plain(&many(4000))),
        ("two OPT", response(0x8180, [0, 0, 2], &[record(&[0], 41, 1232, &[]), record(&[0], 41, 1232, &[])])),
        ("an OPT among the answers", plain(&[record(&[0], 41, 1232, &[])])),
        (
            "an OPT with half an option",
            response(0x8180, [1, 0, 1], &[address(1), record(&[0], 41, 1232, &[0, 10, 0, 9, 1])]),
        ),
        ("an OPT with a name", response(0x8180, [1, 0, 1], &[address(1), record(&label("a"), 41, 1232, &[])])),
        ("NXDOMAIN with an address", response(0x8183, [1, 0, 0], &[address(1)])),
        ("SERVFAIL with an address", response(0x8182, [1, 0, 0], &[address(1)])),
        ("REFUSED with an address", response(0x8185, [1, 0, 0], &[address(1)])),
        ("a code that nobody knows", response(0x818f, [1, 0, 0], &[address(1)])),
        (
            "a referral",
            response(
                0x8180,
                [0, 1, 1],
                &[record(QNAME, 2, 1, &label("ns")), record(&label("ns"), 1, 1, &[198, 51, 100, 1])],
            ),
        ),
        ("truncated, over TCP too", response(0x8380, [1, 0, 0], &[address(1)])),
    ];
    let mut world = junk_world();
    for (number, (name, octets)) in rows.into_iter().enumerate() {
        let reply = told(&mut world, number, octets).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(reply.message.metadata.response_code, ResponseCode::ServFail, "{name}: {reply:?}");
        assert!(reply.message.answers.is_empty(), "{name}");
        let (code, _) = reply.ede().unwrap_or_else(|| panic!("{name}: no reason"));
        assert!([22, 23].contains(&code), "{name}: {code}");
        assert!(world.firewall.elements().is_empty(), "{name}: {:?}", world.firewall.elements());
    }
    world.finish().unwrap();
}

#[test]
fn records_of_other_names_and_classes_are_nobodys() {
    let other = |owner: &[u8], class| record(owner, 1, class, &[198, 51, 100, 66]);
    let rows = [
        ("another name alone", vec![other(&label("evil"), 1)], 0),
        ("another class", vec![other(QNAME, 3)], 0),
        ("the parent", vec![other(&[0xc0, 17], 1)], 0),
        ("another name before and behind", vec![other(&label("evil"), 1), address(1), other(&label("evil"), 1)], 1),
        ("eight CNAMEs", chain(8), 1),
        ("a hundred addresses", (0..100).map(address).collect(), 16),
    ];
    let mut world = junk_world();
    for (number, (name, records, told_of)) in rows.into_iter().enumerate() {
        let before = world.firewall.elements().len();
        let reply = told(&mut world, number, plain(&records)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(reply.message.metadata.response_code, ResponseCode::NoError, "{name}: {reply:?}");
        assert_eq!(reply.addresses().count(), told_of, "{name}");
        assert!(world.firewall.elements().len() <= before + told_of, "{name}");
        let evil = IpAddr::from([198, 51, 100, 66]);
        assert!(
            name == "a hundred addresses" || world.firewall.elements().iter().all(|(element, _)| element.to != evil)
        );
    }
    world.finish().unwrap();
}

/// A response with a chain, addresses and all sections, of which octets are changed, inserted or cut off.
fn spoiled() -> impl Strategy<Value = Vec<u8>> {
    let records = [chain(2), vec![record(&label("l2"), 1, 1, &[198, 51, 100, 2])]].concat();
    let authority = record(&[0xc0, 17], 2, 1, &label("ns"));
    // No reason of its own, which would be passed on.
    let opt = record(&[0], 41, 1232, &[0, 12, 0, 3, 0, 0, b'x']);
    let whole = response(0x8180, [4, 1, 1], &[records, vec![authority, opt]].concat());
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..8_u8), 1..5);
    changes.prop_map(move |changes| {
        let mut octets = whole.clone();
        for (index, octet, how) in changes {
            // The counts, or anything behind the question.
            let places: Vec<usize> = (2..12).chain(RECORDS..octets.len()).collect();
            let at = places[index.index(places.len())];
            match how {
                0 => octets.truncate(at.max(12)),
                1 => octets.insert(at, octet),
                2 => drop(octets.remove(at)),
                3 => octets[at] ^= 1 << (octet % 8),
                _ => octets[at] = octet,
            }
        }
        octets
    })
}

#[test]
fn of_a_spoiled_answer_only_what_it_says_is_told_and_opened() {
    let mut world = junk_world();
    // The same every time.
    let config = Config { cases: 1, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let (mut opened, mut failures, mut answers) = (BTreeSet::new(), 0, 0);
    for number in 0..600 {
        let octets = spoiled().new_tree(&mut runner).unwrap().current();
        let mut check = || -> Result<(), TestCaseError> {
            let reply = told(&mut world, number, octets.clone()).map_err(TestCaseError::fail)?;
            let addresses: Vec<IpAddr> = reply.addresses().map(|(address, _)| address).collect();
            match reply.message.metadata.response_code {
                ResponseCode::ServFail => {
                    prop_assert!(reply.message.answers.is_empty());
                    // 0: a chain that was cut short leads to a name that this client may not ask for.
                    prop_assert!(reply.ede().is_some_and(|(code, _)| [0, 22, 23].contains(&code)), "{:?}", reply.ede());
                    failures += 1;
                }
                ResponseCode::NoError | ResponseCode::NXDomain => answers += 1,
                other => return Err(TestCaseError::fail(format!("said {other}"))),
            }
            // Another reader finds them there too, where it reads as much as ours; they are not made up in any case.
            if !addresses.is_empty() {
                // As they were sent: behind the question that was asked.
                let question = &Ask::new(&asked(number), RecordType::A).bytes(0)[12..RECORDS];
                let sent = [&octets[..12], question, &octets[RECORDS..]].concat();
                let message = Message::from_vec(&sent).ok();
                let said = |address: &IpAddr| match (&message, address) {
                    (Some(message), IpAddr::V4(address)) => {
                        message.answers.iter().any(|record| matches!(record.data, RData::A(said) if said.0 == *address))
                    }
                    (_, IpAddr::V4(address)) => sent[RECORDS..].windows(4).any(|octets| octets == address.octets()),
                    _ => false,
                };
                prop_assert!(addresses.iter().all(said), "{addresses:?}");
            }
            opened.extend(addresses);
            let open: BTreeSet<IpAddr> = world.firewall.elements().iter().map(|(element, _)| element.to).collect();
            prop_assert!(open.is_subset(&opened), "{open:?}");
            Ok(())
        };
        let result = check();
        if let Err(error) = result {
            panic!("case {number}: {error}: {octets:02x?}");
        }
    }
    assert!(failures > 200 && answers > 20, "{failures} failures, {answers} answers");
    world.finish().unwrap();
}
