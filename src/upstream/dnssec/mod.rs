//! DNSSEC (RFC 4033 to 4035): whether an answer is what its zone signed.
//!
//! The validator is hickory's. What is ours is what it is given: one link of the chain at a time, so that a CNAME into
//! another zone is proved there; records counted before anything is computed (KeyTrap, CVE-2023-50387; NSEC3 floods,
//! CVE-2023-50868); and a thread of its own, so that a costly zone delays only those who ask for signed names.
//!
//! Keys and delegations are asked of the same upstream: DNSKEY, DS and NS of names at or above those of the answer, and
//! nothing else (the exception of I1).

mod keys;
mod link;
mod reply;
mod settings;
mod thread;
mod wildcard;
mod work;

use std::sync::Arc;

use hickory_net::dnssec::DnssecDnsHandle;
use hickory_net::proto::dnssec::Proof as Verdict;
use hickory_net::proto::op::{DnsRequestOptions, DnsResponse};
use hickory_net::proto::serialize::binary::BinEncodable as _;
use hickory_net::xfer::{DnsHandle, FirstAnswer};
use hickory_net::{DnsError, NetError};
use tokio::time::Instant;

use self::link::Link;
use self::work::{Asker, WORK, Work};
use super::failure::UpstreamError;
use crate::name::Name;
use crate::record::{Answer, Proof, Question, Record, RecordType};
use crate::time::Ttl;
use crate::wire;

pub(super) use self::keys::Keys;
pub(super) use self::settings::read_mode;
pub use self::settings::{Anchors, Mode};
pub(super) use self::thread::Validators;

/// NSEC3 iterations above which a zone counts as unsigned (RFC 9276 §3.2 allows any number; PowerDNS and Knot take 50),
/// and above which it counts as an attack.
const ITERATIONS: [u16; 2] = [50, 150];

/// RRsets of one answer, and of the keys and delegations above it, that are verified once.
const VERIFIED: usize = 256;

/// What validation says of an answer.
#[derive(Clone, Debug)]
struct Checked {
    /// How long its signatures allow it to be kept (RFC 4035 §5.3.3).
    ttl: Ttl,
    /// Where every link of it is signed, what proves it; else some zone on the way provably is not.
    proof: Option<Proof>,
}

/// Validates `reply`, a message that answers `question`, with what `asker` says of keys. What lies below a name of `insecure` is
/// taken as unsigned (RFC 7646).
///
/// What was verified is known within one answer only: the validator knows a set again by 64 bits of a hash without a secret.
///
/// # Errors
/// [`UpstreamError::Bogus`]; or whatever befell the questions for keys.
async fn check(
    asker: Asker,
    (insecure, anchors): (&[Name], &Anchors),
    question: &Question,
    reply: Vec<u8>,
    deadline: Instant,
) -> Result<Checked, UpstreamError> {
    let bogus = |why: String| UpstreamError::Bogus { name: question.name.clone(), why: why.into() };
    let response = DnsResponse::from_buffer(reply).map_err(|error| bogus(format!("it cannot be read: {error}")))?;
    let no_chain = || bogus("its CNAME chain is too long, or its signatures differ in what they sign".to_owned());
    let links = link::links(&response, MAX_LINKS).ok_or_else(no_chain)?;
    let work = Work::new(&response, &links, deadline).map_err(|excess| bogus(excess.to_string()))?;
    let [unsigned, attack] = ITERATIONS;
    let keys = Arc::clone(&asker.keys);
    let validator = DnssecDnsHandle::with_trust_anchor(asker, anchors.keys())
        .nsec3_iteration_limits(Some(unsigned), Some(attack))
        .validation_cache_size(VERIFIED);
    WORK.scope(work, async {
        let mut checked = Checked { ttl: Ttl::MAX, proof: Some(Proof::default()) };
        for link in links {
            if insecure.iter().any(|name| link.name.is_within(name)) {
                checked.proof = None;
                continue;
            }
            let verified = verify(&validator, &link).await.map_err(|why| {
                WORK.try_with(Work::failure).ok().flatten().unwrap_or_else(|| {
                    // One of them may be what is wrong.
                    keys.forget(&WORK.try_with(Work::used).unwrap_or_default());
                    bogus(why)
                })
            })?;
            checked.ttl = checked.ttl.min(verified.ttl);
            checked.proof = checked.proof.zip(verified.proof).map(|(mut proof, more)| {
                proof.answers.extend(more.answers);
                proof.authority.extend(more.authority);
                proof
            });
        }
        Ok(checked)
    })
    .await
}

/// A chain of more is refused before it comes here; one for the name that is asked, one for each CNAME.
const MAX_LINKS: usize = 9;

/// Validates one link.
async fn verify(validator: &DnssecDnsHandle<Asker>, link: &Link) -> Result<Checked, String> {
    WORK.try_with(|work| work.give(link)).map_err(|_| "there is no validation under way".to_owned())?;
    let outcome = validator.lookup(link.query.clone(), DnsRequestOptions::default()).first_answer().await;
    let of_link = |what: &str| format!("{} {}: {what}", link.name, RecordType(link.kind()));
    let (message, denied) = match outcome {
        Ok(message) => (message, true),
        // Of a zone with too many iterations nothing is denied, and what it signs must hold all the same.
        Err(NetError::Dns(DnsError::Nsec { response, proof: Verdict::Insecure, .. })) => (*response, false),
        Err(NetError::Dns(DnsError::Nsec { response, .. })) if wildcard::is_closest(&response, link.query.name()) => {
            (*response, true)
        }
        Err(NetError::Dns(DnsError::Nsec { .. })) => return Err(of_link("what is said not to be is not proved")),
        Err(error) => return Err(of_link(&error.to_string())),
    };
    let told = |record: &&Signed| record.record_type() != RRSIG;
    let records = || message.answers.iter().chain(&message.authorities).filter(told);
    if let Some(wrong) = records().find(|record| !matches!(record.proof, Verdict::Secure | Verdict::Insecure)) {
        let (kind, name) = (RecordType(wrong.record_type().into()), link::ours(&wrong.name));
        return Err(format!("{kind} of {} has no valid signature", name.as_ref().unwrap_or(&link.name)));
    }
    let ttl = records().map(|record| Ttl::from_wire(record.ttl)).min().unwrap_or(Ttl::ZERO);
    // RFC 5155 §9.2: of what opt-out leaves open nothing is authentic.
    let open = message.answers.is_empty() && message.authorities.iter().any(reply::opts_out);
    let secure = records().next().is_some() && records().all(|record| record.proof == Verdict::Secure);
    let proof = (denied && secure && !open).then(|| proved(&message, link));
    Ok(Checked { ttl, proof: proof.flatten() })
}

/// A record as the validator has it: with what it found out.
type Signed = hickory_net::proto::rr::Record;

const RRSIG: hickory_net::proto::rr::RecordType = hickory_net::proto::rr::RecordType::RRSIG;

/// What a client needs to see for itself that a link holds, of what was verified.
fn proved(message: &DnsResponse, link: &Link) -> Option<Proof> {
    let dname = RecordType(link.kind()) == RecordType::DNAME;
    let besides = |record: &&Signed| record.proof == Verdict::Secure && (record.record_type() == RRSIG || dname);
    let soa = |record: &&Signed| RecordType(record.record_type().into()) != RecordType::SOA;
    let answers = message.answers.iter().filter(besides).map(as_ours).collect::<Option<_>>()?;
    let denies = message.authorities.iter().filter(|record| record.proof == Verdict::Secure).filter(soa);
    Some(Proof { answers, authority: denies.map(as_ours).collect::<Option<_>>()? })
}

fn as_ours(record: &Signed) -> Option<Record> {
    let kind = RecordType(record.record_type().into());
    let data = Arc::from(record.data.to_bytes().ok()?);
    Some(Record { name: link::ours(&record.name)?, kind, ttl: Ttl::from_wire(record.ttl), data })
}

/// Puts what `message` holds to prove `answer` at its side: RRSIGs, the DNAMEs that its CNAMEs were made from, and what denies.
pub(super) fn prove(answer: &mut Answer, question: &Question, message: &[u8]) {
    let Ok(message) = wire::parse_reply(message, question) else { return };
    let owns = |name: &Name| *name == question.name || answer.records.iter().any(|record| record.name == *name);
    let above = |name: &Name| answer.records.iter().any(|record| record.name != *name && record.name.is_within(name));
    let wanted = |record: &Record| match (record.kind, record.covers()) {
        (RecordType::DNAME, _) | (_, Some(RecordType::DNAME)) => above(&record.name),
        (_, covered) => covered.is_some() && owns(&record.name),
    };
    let answers: Vec<Record> = message.answers.into_iter().filter(wanted).collect();
    // A name made from a wildcard comes with the proof that there is no closer one.
    let from_wildcard = answers.iter().any(Record::signs_wildcard);
    let zone = answer.soa.as_ref().map(|soa| &soa.name);
    let denies = |record: &Record| {
        let kind = record.covers().unwrap_or(record.kind);
        let denies = [RecordType::NSEC, RecordType::NSEC3].contains(&kind);
        let of_zone = zone.is_some_and(|zone| record.name.is_within(zone));
        let of_soa = record.covers() == Some(RecordType::SOA);
        denies && (of_zone || from_wildcard) || of_soa && zone == Some(&record.name)
    };
    let authority = message.authority.into_iter().filter(denies).collect();
    answer.proof = Some(Arc::new(Proof { answers, authority }));
}
