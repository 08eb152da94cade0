//! A server's message made an [`Answer`]: the CNAME chain and the RRset at its end, and nothing else. Pure.
//!
//! Only the answer section is read, and of the authority section the SOA of a negative answer; additional records
//! and everything off the chain are dropped, so that nothing can be learned that was not asked. The parser bounds
//! a section to 256 records.

use std::collections::HashSet;
use std::sync::Arc;

use super::failure::{Failure, Nonsense};
use crate::name::Name;
use crate::record::{Answer, ExtendedError, Origin, Question, Rcode, Record, RecordType};
use crate::time::Ttl;
use crate::wire::Message;

/// The most octets that are kept of a server's reason; it may send 64 KiB, and it ends up in records.
const MAX_REASON: usize = 255;
/// The most records of one RRset, which is what BIND takes too (max-records-per-type, CVE-2024-1737): real ones seldom have
/// more than 30, and each costs all who read them.
const MAX_RRSET: usize = 100;
/// The longest CNAME chain; BIND stops at 16, Unbound at 11, real ones seldom have more than 4.
const MAX_CHAIN: usize = 8;

/// The answer that `message` gives to `question`.
///
/// # Errors
/// A code other than NOERROR and NXDOMAIN, or a message that contradicts itself.
pub(super) fn answer(question: &Question, message: Message, origin: &Origin) -> Result<Answer, Failure> {
    if message.rcode != Rcode::NOERROR && message.rcode != Rcode::NXDOMAIN {
        return Err(Failure::Rcode(message.rcode, message.ede.map(shortened)));
    }
    let mut records = Vec::new();
    let mut at = question.name.clone();
    let mut answers = message.answers;
    let found = loop {
        let found = rrset(&mut answers, &at, question.kind);
        if found.len() > MAX_RRSET {
            return Err(Failure::Nonsense(Nonsense::Crowd));
        }
        if !found.is_empty() {
            break found;
        }
        let Some((cname, target)) = cname(&mut answers, &at)? else { break found };
        records.push(cname);
        if records.iter().any(|record: &Record| record.name == target) {
            return Err(Failure::Nonsense(Nonsense::Loop));
        }
        if records.len() > MAX_CHAIN {
            return Err(Failure::Nonsense(Nonsense::Chain));
        }
        at = target;
    };
    // RFC 6604 §3: the code is about the last name of the chain.
    if message.rcode == Rcode::NXDOMAIN && !found.is_empty() {
        return Err(Failure::Nonsense(Nonsense::Contradiction));
    }
    let soa = if found.is_empty() { negative_soa(&message.authority, &at) } else { None };
    // RFC 2308 §2.2: a reply without answer and SOA, but with NS records, is a referral.
    let refers = message.authority.iter().any(|record| record.kind == RecordType::NS);
    if message.rcode == Rcode::NOERROR && found.is_empty() && soa.is_none() && refers {
        return Err(Failure::Nonsense(Nonsense::Referral));
    }
    if records.is_empty() {
        records = found;
    } else {
        records.extend(found);
    }
    Ok(Answer {
        rcode: message.rcode,
        authoritative: false,
        records,
        soa,
        ede: message.ede.map(shortened),
        proof: None,
        origin: origin.clone(),
    })
}

fn shortened(ede: ExtendedError) -> ExtendedError {
    let end = ede.text.floor_char_boundary(MAX_REASON);
    ExtendedError::new(ede.code, ede.text.get(..end).unwrap_or_default())
}

/// Takes the records of a name and type out of `answers`: each once, all with their smallest TTL.
///
/// RFC 2181 §5.2: "the client should treat the RRs for all purposes as if all TTLs in the RRSet had been set to the
/// value of the lowest TTL in the RRSet."
fn rrset(answers: &mut Vec<Record>, name: &Name, kind: RecordType) -> Vec<Record> {
    let of_set = |record: &Record| record.name == *name && record.kind == kind;
    // Nearly always that is all there is.
    let mut set = if answers.iter().all(of_set) {
        std::mem::take(answers)
    } else {
        answers.extract_if(.., |record| of_set(record)).collect()
    };
    if set.len() > 1 {
        let mut seen = HashSet::new();
        set.retain(|record| seen.insert((record.kind, Arc::clone(&record.data))));
    }
    let ttl = set.iter().map(|record| record.ttl).min().unwrap_or(Ttl::ZERO);
    set.iter_mut().for_each(|record| record.ttl = ttl);
    set
}

/// The one CNAME of a name, and its target.
fn cname(answers: &mut Vec<Record>, name: &Name) -> Result<Option<(Record, Name)>, Failure> {
    let mut set = rrset(answers, name, RecordType::CNAME);
    // RFC 2181 §10.1: "a CNAME RR [...] there may be only one such record".
    match (set.pop(), set.is_empty()) {
        (None, _) => Ok(None),
        (Some(one), true) => match one.target() {
            Some(target) => Ok(Some((one, target))),
            None => Err(Failure::Nonsense(Nonsense::Cname)),
        },
        (Some(_), false) => Err(Failure::Nonsense(Nonsense::Cname)),
    }
}

/// The SOA of the zone that lacks `name`: the nearest whose owner is `name` or above it.
fn negative_soa(authority: &[Record], name: &Name) -> Option<Record> {
    authority
        .iter()
        .filter(|record| record.kind == RecordType::SOA && name.is_within(&record.name))
        .max_by_key(|record| record.name.as_wire().len())
        .cloned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::AddressTrust;

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    fn origin() -> Origin {
        Origin { name: Arc::from("default"), trust: AddressTrust::Upstream(Arc::from([])) }
    }

    fn address(owner: &str, ttl: u32, address: &str) -> Record {
        Record::of_address(name(owner), Ttl::from_wire(ttl), address.parse().unwrap())
    }

    fn named(owner: &str, kind: RecordType, target: &str) -> Record {
        Record { name: name(owner), kind, ttl: Ttl::from_wire(300), data: Arc::from(name(target).as_wire()) }
    }

    fn soa(owner: &str) -> Record {
        let mut data = [name("ns.example").as_wire(), name("admin.example").as_wire()].concat();
        data.extend([0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0, 60]);
        Record { name: name(owner), kind: RecordType::SOA, ttl: Ttl::from_wire(900), data: Arc::from(data) }
    }

    fn message(rcode: Rcode, answers: Vec<Record>, authority: Vec<Record>) -> Message {
        Message {
            id: 0,
            response: true,
            opcode: 0,
            rcode,
            authoritative: true,
            truncated: false,
            authentic: false,
            question: None,
            answers,
            authority,
            additional: vec![address("a.example", 60, "198.51.100.99")],
            edns: None,
            ede: None,
        }
    }

    fn ask(rcode: Rcode, answers: Vec<Record>, authority: Vec<Record>) -> Result<Answer, Failure> {
        let question = Question { name: name("a.example"), kind: RecordType::A };
        answer(&question, message(rcode, answers, authority), &origin())
    }

    #[test]
    fn takes_the_chain_in_order_and_nothing_else() {
        let got = ask(
            Rcode::NOERROR,
            vec![
                address("c.example", 60, "192.0.2.2"),
                named("b.example", RecordType::CNAME, "c.example"),
                address("evil.example", 60, "198.51.100.1"),
                named("a.example", RecordType::CNAME, "b.example"),
                named("example", RecordType::DNAME, "example.net"),
                address("c.example", 30, "192.0.2.1"),
                address("c.example", 90, "192.0.2.2"),
                address("a.example.net", 90, "192.0.2.3"),
            ],
            vec![named("example", RecordType::NS, "ns.evil.example"), soa("example")],
        )
        .unwrap();
        assert_eq!(
            got.records,
            [
                named("a.example", RecordType::CNAME, "b.example"),
                named("b.example", RecordType::CNAME, "c.example"),
                address("c.example", 30, "192.0.2.2"),
                address("c.example", 30, "192.0.2.1"),
            ]
        );
        assert_eq!((got.soa, got.authoritative, got.origin), (None, false, origin()));
    }

    #[test]
    fn a_question_for_cname_ends_at_the_first() {
        let question = Question { name: name("a.example"), kind: RecordType::CNAME };
        let records = vec![
            named("a.example", RecordType::CNAME, "b.example"),
            named("b.example", RecordType::CNAME, "c.example"),
        ];
        let got = answer(&question, message(Rcode::NOERROR, records.clone(), Vec::new()), &origin()).unwrap();
        assert_eq!(got.records, records[..1]);
    }

    #[test]
    fn a_negative_answer_has_the_soa_of_its_own_zone_only() {
        let chain = vec![named("a.example", RecordType::CNAME, "b.test.example.net")];
        let all = vec![soa("example"), soa("net"), soa("example.net"), soa("c.b.test.example.net"), soa("example.org")];
        for rcode in [Rcode::NOERROR, Rcode::NXDOMAIN] {
            let got = ask(rcode, chain.clone(), all.clone()).unwrap();
            assert_eq!((got.rcode, &got.records, &got.soa), (rcode, &chain, &Some(soa("example.net"))));
            let got = ask(rcode, Vec::new(), vec![soa("a.example")]).unwrap();
            assert_eq!(got.soa, Some(soa("a.example")), "equal to the name");
            let got = ask(rcode, Vec::new(), vec![soa("example.org")]).unwrap();
            assert_eq!(got.soa, None);
        }
    }

    #[test]
    fn refuses_what_makes_no_sense() {
        let chain = |length: usize| -> Vec<Record> {
            let label = |n: usize| if n == 0 { "a.example".to_owned() } else { format!("n{n}.example") };
            (0..length).map(|n| named(&label(n), RecordType::CNAME, &label(n + 1))).collect()
        };
        assert_eq!(ask(Rcode::NOERROR, chain(8), Vec::new()).unwrap().records.len(), 8);
        let addresses =
            |count: u8| -> Vec<_> { (0..count).map(|n| address("a.example", 60, &format!("192.0.2.{n}"))).collect() };
        let twice = [addresses(100), addresses(100)].concat();
        assert_eq!(ask(Rcode::NOERROR, twice, Vec::new()).unwrap().records.len(), 100, "each is there once");
        let rows = [
            (Nonsense::Chain, ask(Rcode::NOERROR, chain(9), Vec::new())),
            (Nonsense::Loop, ask(Rcode::NOERROR, vec![named("a.example", RecordType::CNAME, "a.example")], Vec::new())),
            (
                Nonsense::Loop,
                ask(
                    Rcode::NOERROR,
                    vec![
                        named("a.example", RecordType::CNAME, "b.example"),
                        named("b.example", RecordType::CNAME, "c.example"),
                        named("c.example", RecordType::CNAME, "b.example"),
                    ],
                    Vec::new(),
                ),
            ),
            (
                Nonsense::Cname,
                ask(
                    Rcode::NOERROR,
                    vec![
                        named("a.example", RecordType::CNAME, "b.example"),
                        named("a.example", RecordType::CNAME, "c.example"),
                    ],
                    Vec::new(),
                ),
            ),
            (Nonsense::Crowd, ask(Rcode::NOERROR, addresses(101), Vec::new())),
            (Nonsense::Contradiction, ask(Rcode::NXDOMAIN, vec![address("a.example", 60, "192.0.2.1")], Vec::new())),
            (Nonsense::Referral, ask(Rcode::NOERROR, Vec::new(), vec![named("example", RecordType::NS, "ns.example")])),
        ];
        for (expected, got) in rows {
            assert_eq!(got, Err(Failure::Nonsense(expected)));
        }
    }

    #[test]
    fn a_failure_keeps_its_reason() {
        let question = Question { name: name("a.example"), kind: RecordType::A };
        for (sent, kept) in [("bogus", "bogus"), (&"ü".repeat(1000), &*"ü".repeat(127))] {
            let mut failed = message(Rcode::SERVFAIL, Vec::new(), Vec::new());
            failed.ede = Some(ExtendedError::new(6, sent));
            let expected = Failure::Rcode(Rcode::SERVFAIL, Some(ExtendedError::new(6, kept)));
            assert_eq!(answer(&question, failed, &origin()), Err(expected));
        }
    }
}
