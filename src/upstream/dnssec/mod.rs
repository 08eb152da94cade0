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
mod settings;
mod thread;
mod wildcard;
mod work;

use std::sync::Arc;

use hickory_net::dnssec::DnssecDnsHandle;
use hickory_net::proto::dnssec::Proof as Verdict;
use hickory_net::proto::op::{DnsRequestOptions, DnsResponse};
use hickory_net::proto::rr::Record as HickoryRecord;
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

pub(super) use self::settings::read_mode;
pub use self::settings::{Anchors, Mode};
pub(super) use self::thread::Validators;

/// NSEC3 iterations above which a zone counts as unsigned (RFC 9276 §3.2 allows any number; PowerDNS and Knot take 50),
/// and above which it counts as an attack.
const ITERATIONS: [u16; 2] = [50, 150];

/// What an upstream's answers are validated with.
type Validator = DnssecDnsHandle<Asker>;

fn validator(asker: Asker, anchors: &Anchors) -> Validator {
    let [insecure, bogus] = ITERATIONS;
    DnssecDnsHandle::with_trust_anchor(asker, anchors.keys()).nsec3_iteration_limits(Some(insecure), Some(bogus))
}

/// What validation says of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Checked {
    /// Every link of it is signed; else some zone on the way provably is not.
    secure: bool,
    /// How long its signatures allow it to be kept (RFC 4035 §5.3.3).
    ttl: Ttl,
}

/// Validates `reply`, a message that answers `question`. What lies below a name of `insecure` is taken as unsigned
/// (RFC 7646).
///
/// # Errors
/// [`UpstreamError::Bogus`]; or whatever befell the questions for keys.
async fn check(
    validator: &Validator,
    insecure: &[Name],
    question: &Question,
    reply: Vec<u8>,
    deadline: Instant,
) -> Result<Checked, UpstreamError> {
    let bogus = |why: String| UpstreamError::Bogus { name: question.name.clone(), why: why.into() };
    let response = DnsResponse::from_buffer(reply).map_err(|error| bogus(format!("it cannot be read: {error}")))?;
    let links = link::links(&response, MAX_LINKS).ok_or_else(|| bogus("its CNAME chain is too long".to_owned()))?;
    let work = Work::new(&response, &links, deadline).map_err(|excess| bogus(excess.to_string()))?;
    WORK.scope(work, async {
        let mut checked = Checked { secure: true, ttl: Ttl::MAX };
        for link in links {
            if insecure.iter().any(|name| link.name.is_within(name)) {
                checked.secure = false;
                continue;
            }
            let (verdict, ttl) = verify(validator, &link).await.map_err(|why| {
                let failed = WORK.try_with(Work::failure).ok().flatten();
                failed.unwrap_or_else(|| bogus(why))
            })?;
            checked.secure &= verdict == Verdict::Secure;
            checked.ttl = checked.ttl.min(ttl);
        }
        Ok(checked)
    })
    .await
}

/// A chain of more is refused before it comes here; one for the name that is asked, one for each CNAME.
const MAX_LINKS: usize = 9;

/// Validates one link: [`Verdict::Secure`] or [`Verdict::Insecure`].
async fn verify(validator: &Validator, link: &Link) -> Result<(Verdict, Ttl), String> {
    WORK.try_with(|work| work.give(link)).map_err(|_| "there is no validation under way".to_owned())?;
    let outcome = validator.lookup(link.query.clone(), DnsRequestOptions::default()).first_answer().await;
    let message = match outcome {
        Ok(message) => message,
        Err(NetError::Dns(DnsError::Nsec { proof: Verdict::Insecure, .. })) => {
            return Ok((Verdict::Insecure, Ttl::MAX));
        }
        Err(NetError::Dns(DnsError::Nsec { response, .. })) if wildcard::is_closest(&response, link.query.name()) => {
            *response
        }
        Err(NetError::Dns(DnsError::Nsec { .. })) => {
            return Err(format!("what is said not to be is not proved, for {} {}", link.name, RecordType(link.kind())));
        }
        Err(error) => return Err(format!("{} {}: {error}", link.name, RecordType(link.kind()))),
    };
    let told = |record: &&HickoryRecord| record.record_type() != RRSIG;
    let records = || message.answers.iter().chain(&message.authorities).filter(told);
    if let Some(wrong) = records().find(|record| !matches!(record.proof, Verdict::Secure | Verdict::Insecure)) {
        let (kind, name) = (RecordType(wrong.record_type().into()), link::ours(&wrong.name));
        return Err(format!("{kind} of {} has no valid signature", name.as_ref().unwrap_or(&link.name)));
    }
    let secure = records().all(|record| record.proof == Verdict::Secure);
    let ttl = records().map(|record| Ttl::from_wire(record.ttl)).min().unwrap_or(Ttl::ZERO);
    Ok((if secure { Verdict::Secure } else { Verdict::Insecure }, ttl))
}

const RRSIG: hickory_net::proto::rr::RecordType = hickory_net::proto::rr::RecordType::RRSIG;

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
