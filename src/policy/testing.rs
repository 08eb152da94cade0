//! Short words for this room's tests.

use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::rr::RData;
use hickory_proto::serialize::binary::BinEncodable;

use super::{Asker, Cleared, Permit, Policy, Settings, Source, Verdict, compile, decide};
use crate::name::Name;
use crate::net::Prefix;
use crate::record::{AddressTrust, Answer, Origin, Rcode, Record, RecordType};
use crate::time::{Ttl, Wall};

/// A moment at which no segment of these tests observes, unless it says so.
pub(super) const NOW: Wall = Wall(1_000_000_000_000_000);

pub(super) fn policy_with(text: &str, settings: &Settings) -> Arc<Policy> {
    let source = Source { file: "test.toml".to_owned(), text: text.to_owned() };
    Arc::new(compile([source], settings).unwrap_or_else(|mistakes| panic!("{mistakes:#?}")))
}

pub(super) fn policy(text: &str) -> Arc<Policy> {
    policy_with(text, &Settings::default())
}

pub(super) fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

pub(super) fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(super) fn asker(policy: &Policy, client: &str) -> Asker {
    policy.asker(address(client)).unwrap()
}

pub(super) fn permit(policy: &Arc<Policy>, client: &str, asked: &str, kind: RecordType) -> Permit {
    match decide(policy, asker(policy, client), name(asked).as_wire(), kind, NOW) {
        Verdict::Permit(permit) => permit,
        other => panic!("{asked} {kind}: {other:?}"),
    }
}

/// `permit ID…`, `observe REASON` or `REASON SHOWN [RULE]`, as one line.
pub(super) fn verdict(policy: &Arc<Policy>, client: &str, asked: &str, kind: RecordType, now: Wall) -> String {
    let id = |rule| policy.rule_id(rule).to_string();
    match decide(policy, asker(policy, client), name(asked).as_wire(), kind, now) {
        Verdict::Permit(permit) => match permit.observed() {
            Some((rule, reason)) => {
                format!("observe {} {}", reason.as_str(), rule.map(id).unwrap_or_default()).trim_end().to_owned()
            }
            None => format!("permit {}", permit.rules.iter().map(|rule| id(*rule)).collect::<Vec<_>>().join(" ")),
        },
        Verdict::Refuse(refusal) => {
            let rule = refusal.rule.map(id).unwrap_or_default();
            format!("{} {:?} {rule}", refusal.reason.as_str(), refusal.shown).trim_end().to_owned()
        }
        Verdict::Answer(own) => format!("{} answered {}", own.reason.as_str(), own.records.len()),
    }
}

pub(super) fn upstream(private: &[&str]) -> Origin {
    let private: Vec<Prefix> = private.iter().map(|prefix| prefix.parse().unwrap()).collect();
    Origin { name: Arc::from("default"), trust: AddressTrust::Upstream(private.into()) }
}

pub(super) fn zone() -> Origin {
    Origin { name: Arc::from("corp.example"), trust: AddressTrust::Zone }
}

/// RDATA from the text of a zone file, by a library that the product reads it without, or from `\\# HEX`.
pub(super) fn rdata(kind: RecordType, text: &str) -> Arc<[u8]> {
    if let Some(hex) = text.strip_prefix(r"\# ") {
        return (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
    }
    RData::try_from_str(kind.0.into(), text).unwrap().to_bytes().unwrap().into()
}

/// An answer of lines `OWNER CNAME TARGET`, `OWNER ADDRESS`, `OWNER TXT`, or `OWNER MX …`, `SRV`, `HTTPS` and `SVCB`.
pub(super) fn answer(origin: Origin, lines: &[&str]) -> Answer {
    let ttl = Ttl::from_wire(60);
    let record = |line: &&str| match line.split(' ').collect::<Vec<_>>()[..] {
        [owner, "CNAME", target] => {
            let data = Arc::from(name(target).as_wire());
            Record { name: name(owner), kind: RecordType::CNAME, ttl, data }
        }
        [owner, "TXT"] => {
            Record { name: name(owner), kind: RecordType::TXT, ttl, data: Arc::from(b"\x01x".as_slice()) }
        }
        [owner, kind @ ("MX" | "SRV" | "HTTPS" | "SVCB"), ..] => {
            let (_, text) = line.split_once(kind).unwrap();
            let kind = kind.parse().unwrap();
            Record { name: name(owner), kind, ttl, data: rdata(kind, text.trim()) }
        }
        [owner, to] => Record::of_address(name(owner), ttl, address(to)),
        _ => panic!("{line}"),
    };
    let records = lines.iter().map(record).collect();
    Answer { rcode: Rcode::NOERROR, authoritative: false, records, soa: None, ede: None, proof: None, origin }
}

/// What is told, one line a record; what is opened, one line an element; why it was withheld.
pub(super) fn summary(cleared: &Cleared) -> (Vec<String>, Vec<String>, Option<String>) {
    let told = cleared.answer().records.iter().map(|record| {
        let mut data = String::new();
        crate::record::write_data(record, &mut data).unwrap();
        format!("{} {data}", record.name)
    });
    let opened = cleared.openings().iter().map(|opening| {
        let from = match opening.element.from {
            crate::net::Scope::Client(client) => client.to_string(),
            crate::net::Scope::Segment(_) => "segment".to_owned(),
        };
        let hold = opening.hold.map(|hold| format!(" {}s", hold.as_secs())).unwrap_or_default();
        format!("{from} > {} {}{hold}", opening.element.to, opening.element.service)
    });
    let withheld = cleared.withheld().map(|withheld| {
        let not = if withheld.enforced { "" } else { "not enforced: " };
        format!("{not}{}: {}", withheld.reason.as_str(), withheld.why)
    });
    (told.collect(), opened.collect(), withheld)
}
