//! What of a reply about keys and delegations the validator is given: the records asked for with their signatures, or what
//! denies them. It takes whatever else a message holds at its word: a DS of another zone, a CNAME that nobody signed.

use hickory_net::proto::dnssec::rdata::{DNSSECRData, NSEC3};
use hickory_net::proto::op::{DnsResponse, Message, Query};
use hickory_net::proto::rr::{Name, RData, Record, RecordType};

use super::link::{denial, set};

/// NSEC3 iterations above which nothing is computed.
const MAX_ITERATIONS: u16 = 150;

/// The reply to a question for DNSKEY, DS or NS, less what was not asked for.
pub(super) fn asked_for(response: &DnsResponse, query: &Query) -> Message {
    let (name, kind) = (query.name(), query.query_type());
    let mut message = Message::response(response.metadata.id, response.metadata.op_code);
    message.metadata.response_code = response.metadata.response_code;
    message.add_query(query.clone());
    let answers = set(response, name, kind);
    if answers.is_empty() && kind != RecordType::NS {
        let mut authority = denial(response, name);
        if kind == RecordType::DS && !is_unsigned_delegation(&authority, name) {
            authority.retain(|record| nsec3(record).is_none_or(|nsec3| !nsec3.opt_out()) || is_hash_of(record, name));
        }
        message.insert_authorities(authority);
    }
    message.insert_answers(answers);
    message
}

fn nsec3(record: &Record) -> Option<&NSEC3> {
    match &record.data {
        RData::DNSSEC(DNSSECRData::NSEC3(nsec3)) => Some(nsec3),
        _ => None,
    }
}

/// Whether NSEC3 records with opt-out show that there may be an unsigned delegation at `name` (RFC 5155 §8.6): they prove its
/// closest encloser, and cover the name one label below. A record that covers the hash of `name` alone proves nothing: the hash of
/// any name below a signed zone falls somewhere in the zone above.
fn is_unsigned_delegation(authority: &[Record], name: &Name) -> bool {
    let mut next_closer = name.clone();
    while !next_closer.is_root() {
        let encloser = next_closer.base_name();
        let of_zone = |record: &&Record| record.name.base_name().zone_of(&encloser);
        let found = authority.iter().filter(of_zone).filter(|record| nsec3(record).is_some());
        let is_apex = |record: &Record| record.name.base_name() == encloser;
        let exists = |record: &Record| {
            is_apex(record) || is_hash_of(record, &encloser) && nsec3(record).is_some_and(|nsec3| !leads_away(nsec3))
        };
        if found.clone().any(exists) {
            let covers = |record: &Record| nsec3(record).is_some_and(NSEC3::opt_out) && covers(record, &next_closer);
            return found.clone().any(covers);
        }
        next_closer = encloser;
    }
    false
}

/// Whether a record is one that leaves unsigned delegations out.
pub(super) fn opts_out(record: &Record) -> bool {
    nsec3(record).is_some_and(NSEC3::opt_out)
}

/// Whether what is below a name lies in another zone, or nowhere.
fn leads_away(nsec3: &NSEC3) -> bool {
    let types = nsec3.type_set();
    types.contains(RecordType::DNAME) || types.contains(RecordType::NS) && !types.contains(RecordType::SOA)
}

/// The hash that an NSEC3 record is about (RFC 5155 §3).
fn owner_hash(record: &Record) -> Option<Vec<u8>> {
    let label = record.name.iter().next()?.to_ascii_uppercase();
    data_encoding::BASE32HEX_NOPAD.decode(&label).ok()
}

/// The hash of a name as an NSEC3 record makes it.
fn hash(record: &Record, name: &Name) -> Option<Vec<u8>> {
    let nsec3 = nsec3(record).filter(|nsec3| nsec3.iterations() <= MAX_ITERATIONS)?;
    let hash = nsec3.hash_algorithm().hash(nsec3.salt(), name, nsec3.iterations()).ok()?;
    Some(hash.as_ref().to_vec())
}

fn is_hash_of(record: &Record, name: &Name) -> bool {
    owner_hash(record).is_some_and(|owner| hash(record, name) == Some(owner))
}

fn covers(record: &Record, name: &Name) -> bool {
    let (Some(owner), Some(hash), Some(nsec3)) = (owner_hash(record), hash(record, name), nsec3(record)) else {
        return false;
    };
    let (owner, hash, next) = (owner.as_slice(), hash.as_slice(), nsec3.next_hashed_owner_name());
    // The last one of a zone leads back to the first.
    if owner < next { owner < hash && hash < next } else { owner < hash || hash < next }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_net::proto::dnssec::Nsec3HashAlgorithm;
    use hickory_net::proto::op::OpCode;
    use hickory_net::proto::rr::rdata::{A, CNAME, NS};
    use std::str::FromStr;

    fn name(text: &str) -> Name {
        Name::from_str(text).unwrap()
    }

    fn hash_of(text: &str) -> Vec<u8> {
        Nsec3HashAlgorithm::SHA1.hash(&[], &name(text), 0).unwrap().as_ref().to_vec()
    }

    /// An NSEC3 of `zone` whose owner hashes to `from`, whose next to `to`.
    fn nsec3_of(zone: &str, from: &[u8], to: &[u8], opt_out: bool, types: &[RecordType]) -> Record {
        let label = data_encoding::BASE32HEX_NOPAD.encode(from);
        let data = NSEC3::new(Nsec3HashAlgorithm::SHA1, opt_out, 0, vec![], to.to_vec(), types.to_vec());
        Record::from_rdata(name(&format!("{label}.{zone}")), 60, RData::DNSSEC(DNSSECRData::NSEC3(data)))
    }

    /// One that covers the hash of a name, barely.
    fn around(zone: &str, covered: &str, opt_out: bool) -> Record {
        let step = |by: i8| {
            let mut hash = hash_of(covered);
            let last = hash.last_mut().unwrap();
            *last = last.wrapping_add_signed(by);
            hash
        };
        nsec3_of(zone, &step(-1), &step(1), opt_out, &[RecordType::A])
    }

    fn matching(zone: &str, owner: &str, types: &[RecordType]) -> Record {
        nsec3_of(zone, &hash_of(owner), &[0xff; 20], false, types)
    }

    #[test]
    fn an_unsigned_delegation_is_shown_by_its_closest_encloser() {
        let (asked, com) = ("www.victim.com.", "com.");
        let none: &[RecordType] = &[];
        let rows: [(&str, Vec<Record>, &str, bool); 8] = [
            ("the name below the apex is covered", vec![around(com, "victim.com.", true)], "victim.com.", true),
            ("the same, two labels below", vec![around(com, "victim.com.", true)], asked, true),
            ("without opt-out", vec![around(com, "victim.com.", false)], "victim.com.", false),
            ("another name's hash is covered", vec![around(com, asked, true)], asked, false),
            (
                "an encloser that is there",
                vec![matching(com, "victim.com.", none), around(com, asked, true)],
                asked,
                true,
            ),
            (
                "an encloser that is a zone of its own",
                vec![matching(com, "victim.com.", &[RecordType::NS, RecordType::DS]), around(com, asked, true)],
                asked,
                false,
            ),
            ("of a zone beside", vec![around("net.", "victim.com.", true)], "victim.com.", false),
            ("nothing", vec![], "victim.com.", false),
        ];
        for (reason, authority, asked, expected) in rows {
            assert_eq!(is_unsigned_delegation(&authority, &name(asked)), expected, "{reason}");
        }
    }

    #[test]
    fn only_what_was_asked_for_is_handed_on() {
        let mut message = Message::response(1, OpCode::Query);
        message.add_query(Query::query(name("victim.com."), RecordType::NS));
        let record = |owner: &str, data| Record::from_rdata(name(owner), 60, data);
        for one in [
            record("victim.com.", RData::CNAME(CNAME(name("x.example.")))),
            record("victim.com.", RData::NS(NS(name("ns.victim.com.")))),
            record("x.example.", RData::NS(NS(name("ns.x.example.")))),
        ] {
            message.add_answer(one);
        }
        message.add_additional(record("ns.victim.com.", RData::A(A::new(192, 0, 2, 1))));
        message.add_authority(record("example.", RData::NS(NS(name("ns.example.")))));
        let response = DnsResponse::from_message(message).unwrap();
        let given = asked_for(&response, &Query::query(name("victim.com."), RecordType::NS));
        assert_eq!(given.answers.iter().map(|one| one.name.to_string()).collect::<Vec<_>>(), ["victim.com."]);
        assert_eq!(given.answers[0].record_type(), RecordType::NS);
        assert!(given.authorities.is_empty() && given.additionals.is_empty());
        let given = asked_for(&response, &Query::query(name("victim.com."), RecordType::DS));
        assert!(given.answers.is_empty() && given.authorities.is_empty());
    }
}
