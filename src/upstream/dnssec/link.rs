//! The links of an answer's chain, each a message of its own: the validator proves one name at a time.

use hickory_net::proto::dnssec::rdata::{DNSSECRData, RRSIG};
use hickory_net::proto::op::{DnsResponse, Message, Query, ResponseCode};
use hickory_net::proto::rr::{Name as HickoryName, RData, Record, RecordType};

use crate::name::{Name, NameBuf};

/// What is to be proved of one name.
#[derive(Debug)]
pub(super) struct Link {
    /// The name, as ours.
    pub(super) name: Name,
    pub(super) query: Query,
    /// What the reply holds of it.
    pub(super) message: Message,
}

impl Link {
    /// The type in question.
    pub(super) fn kind(&self) -> u16 {
        self.query.query_type().into()
    }

    fn new(
        response: &DnsResponse,
        name: &HickoryName,
        kind: RecordType,
        answers: Vec<Record>,
        authority: Vec<Record>,
    ) -> Option<Self> {
        let query = Query::query(name.clone(), kind);
        let mut message = Message::response(response.metadata.id, response.metadata.op_code);
        message.metadata.response_code =
            if answers.is_empty() { response.metadata.response_code } else { ResponseCode::NoError };
        message.add_query(query.clone());
        message.insert_answers(answers);
        message.insert_authorities(authority);
        Some(Self { name: ours(name)?, query, message })
    }
}

/// Our form of a name.
pub(super) fn ours(name: &HickoryName) -> Option<Name> {
    let mut buffer = NameBuf::new();
    name.iter().try_for_each(|label| buffer.push_label(label)).ok()?;
    Some(buffer.to_name())
}

/// The links of `response` in the order of its chain; `None` where there are more than `most`, or a name cannot be read, or
/// signatures of one set differ in who made them or for how long a name: which of them holds would say what else is proved.
pub(super) fn links(response: &DnsResponse, most: usize) -> Option<Vec<Link>> {
    let query = response.queries.first()?;
    let kind = query.query_type();
    let mut at = query.name().clone();
    let mut links = Vec::new();
    while links.len() < most {
        let found = consistent(set(response, &at, kind))?;
        if !found.is_empty() {
            let authority = closest(response, &at, &found);
            links.push(Link::new(response, &at, kind, found, authority)?);
            return Some(links);
        }
        let cname = consistent(set(response, &at, RecordType::CNAME))?;
        let target = cname.iter().find_map(|record| match &record.data {
            RData::CNAME(target) => Some(target.0.clone()),
            _ => None,
        });
        let Some(target) = target else {
            if !links.is_empty() && is_open(response) {
                return Some(links);
            }
            links.push(Link::new(response, &at, kind, Vec::new(), denial(response, &at))?);
            return Some(links);
        };
        // RFC 6672 §5.3.1: a CNAME that was made from a DNAME is not signed; the DNAME is.
        let dname = if cname.iter().any(is_signature) { None } else { dname(response, &at, &target) };
        let link = match dname {
            Some(owner) => {
                let found = consistent(set(response, &owner, RecordType::DNAME))?;
                Link::new(response, &owner, RecordType::DNAME, found, Vec::new())?
            }
            None => {
                let authority = closest(response, &at, &cname);
                Link::new(response, &at, kind, cname, authority)?
            }
        };
        links.push(link);
        at = target;
    }
    None
}

fn is_signature(record: &Record) -> bool {
    record.record_type() == RecordType::RRSIG
}

/// The type that a signature is for.
pub(super) fn covered(record: &Record) -> Option<RecordType> {
    signature(record).map(|signature| signature.input().type_covered)
}

/// Whether the chain just ends, without a word on its last name: that one is asked for, and validated, on its own.
fn is_open(response: &DnsResponse) -> bool {
    let no_error = response.metadata.response_code == ResponseCode::NoError;
    no_error && !response.authorities.iter().any(|record| record.record_type() == RecordType::SOA)
}

/// What an RRSIG says.
pub(super) fn signature(record: &Record) -> Option<&RRSIG> {
    match &record.data {
        RData::DNSSEC(DNSSECRData::RRSIG(signature)) => Some(signature),
        _ => None,
    }
}

/// The records of a name and type in the answer section, with their signatures; empty where there are only signatures.
pub(super) fn set(response: &DnsResponse, name: &HickoryName, kind: RecordType) -> Vec<Record> {
    let of_set = |record: &&Record| {
        record.name == *name
            && (record.record_type() == kind
                || signature(record).is_some_and(|signature| signature.input().type_covered == kind))
    };
    let found: Vec<Record> = response.answers.iter().filter(of_set).cloned().collect();
    if found.iter().any(|record| record.record_type() == kind) { found } else { Vec::new() }
}

/// A set whose signatures agree.
fn consistent(set: Vec<Record>) -> Option<Vec<Record>> {
    let of = |signature: &RRSIG| (signature.input().num_labels, signature.input().signer_name.clone());
    let mut made = set.iter().filter_map(signature).map(of);
    let first = made.next();
    made.all(|other| Some(other) == first).then_some(set)
}

/// Of records that were made from a wildcard, the proof that no closer name is there (RFC 4035 §5.3.4).
fn closest(response: &DnsResponse, name: &HickoryName, records: &[Record]) -> Vec<Record> {
    let labels = name.num_labels();
    let made = records.iter().filter_map(signature).find(|signature| signature.input().num_labels < labels);
    let Some(signature) = made else { return Vec::new() };
    let zone = &signature.input().signer_name;
    authority(response, |record| zone.zone_of(&record.name) && record.record_type() != RecordType::SOA)
}

/// The proof that a name, or a type of it, is not there: the SOA of its zone, and what denies.
pub(super) fn denial(response: &DnsResponse, name: &HickoryName) -> Vec<Record> {
    let soa = |record: &&Record| record.record_type() == RecordType::SOA && record.name.zone_of(name);
    let zone = response.authorities.iter().filter(soa).max_by_key(|soa| soa.name.num_labels()).map(|soa| &soa.name);
    authority(response, |record| {
        zone.is_none_or(|zone| match record.record_type() {
            RecordType::SOA => record.name == *zone,
            _ => zone.zone_of(&record.name),
        })
    })
}

/// The records of the authority section that prove something, of those that `is_wanted`, with their signatures.
fn authority(response: &DnsResponse, is_wanted: impl Fn(&Record) -> bool) -> Vec<Record> {
    let proves = |kind| matches!(kind, RecordType::SOA | RecordType::NSEC | RecordType::NSEC3);
    let wanted = |record: &&Record| {
        is_wanted(record) && proves(signature(record).map_or(record.record_type(), |one| one.input().type_covered))
    };
    response.authorities.iter().filter(wanted).cloned().collect()
}

/// The owner of the DNAME that makes `name` a name for `target`.
fn dname(response: &DnsResponse, name: &HickoryName, target: &HickoryName) -> Option<HickoryName> {
    let (name, target) = (ours(name)?, ours(target)?);
    let makes = |record: &Record| {
        let RData::Unknown { code: RecordType::DNAME, rdata } = &record.data else { return None };
        let (owner, new) = (ours(&record.name)?, Name::from_wire(&rdata.anything).ok()?);
        let kept = name.label_count().checked_sub(owner.label_count()).filter(|kept| *kept > 0)?;
        let mut made = NameBuf::new();
        name.labels().take(kept).chain(new.labels()).try_for_each(|label| made.push_label(label)).ok()?;
        (name.is_within(&owner) && made.to_name() == target).then(|| record.name.clone())
    };
    response.answers.iter().find_map(makes)
}
