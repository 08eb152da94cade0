//! That a name which was made from a wildcard has no closer match (RFC 4035 §5.3.4, RFC 6840 §4.1).
//!
//! The validator's own look at this wants the wildcard itself denied where it is the name's nearest ancestor, and so holds
//! most such answers for forged.

use hickory_net::proto::dnssec::Proof as Verdict;
use hickory_net::proto::dnssec::rdata::{DNSSECRData, NSEC};
use hickory_net::proto::op::Message;
use hickory_net::proto::rr::{Name, RData, Record, RecordType};

use super::link::signature;

/// Whether an NSEC of `message`, of which every record was verified, denies the name one label below the wildcard's parent:
/// then nothing is closer to `name` than the wildcard.
pub(super) fn is_closest(message: &Message, name: &Name) -> bool {
    let labels = name.num_labels();
    let proved = |record: &&Record| record.proof == Verdict::Secure;
    let made = |record: &Record| signature(record).map(|one| one.input().num_labels).filter(|signed| *signed < labels);
    let Some(signed) = message.answers.iter().filter(proved).find_map(made) else { return false };
    let next_closer = name.trim_to(usize::from(signed) + 1);
    message.authorities.iter().filter(proved).any(|record| match &record.data {
        RData::DNSSEC(DNSSECRData::NSEC(nsec)) => denies(&record.name, nsec, &next_closer),
        _ => false,
    })
}

/// Whether an NSEC says that there is no `name`, nor anything below it.
fn denies(owner: &Name, nsec: &NSEC, name: &Name) -> bool {
    let next = nsec.next_domain_name();
    // The last NSEC of a zone points to its beginning.
    let covers = owner < name && (name < next || next <= owner && next.zone_of(name));
    // A parent's NSEC at a delegation, or one at a DNAME, says nothing of what is below.
    let types = nsec.type_set();
    let delegates = types.contains(RecordType::NS) && !types.contains(RecordType::SOA);
    let leads_away = owner.zone_of(name) && (delegates || types.contains(RecordType::DNAME));
    covers && !name.zone_of(next) && !leads_away
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::str::FromStr;

    #[test]
    fn an_nsec_denies_what_lies_between_it_and_the_next() {
        use RecordType as Kind;
        for (reason, owner, next, types, name, expected) in [
            ("between", "b.example.", "d.example.", Kind::A, "c.example.", true),
            ("its own name", "c.example.", "d.example.", Kind::A, "c.example.", false),
            ("the next name", "b.example.", "c.example.", Kind::A, "c.example.", false),
            ("before", "d.example.", "e.example.", Kind::A, "c.example.", false),
            ("the last of its zone", "b.example.", "example.", Kind::A, "c.example.", true),
            ("the last of another zone", "b.example.", "example.", Kind::A, "c.f.", false),
            ("something is below it", "b.example.", "x.c.example.", Kind::A, "c.example.", false),
            ("below a wildcard", "*.example.", "d.example.", Kind::A, "c.example.", true),
            ("below a delegation", "b.example.", "d.example.", Kind::NS, "x.b.example.", false),
            ("below a DNAME", "b.example.", "d.example.", Kind::DNAME, "x.b.example.", false),
            ("beside a delegation", "b.example.", "d.example.", Kind::NS, "c.example.", true),
        ] {
            let of = |text: &str| Name::from_str(text).unwrap();
            let nsec = NSEC::new(of(next), [types, Kind::RRSIG, Kind::NSEC]);
            assert_eq!(denies(&of(owner), &nsec, &of(name)), expected, "{reason}");
        }
    }
}
