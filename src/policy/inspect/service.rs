//! HTTPS and SVCB (RFC 9460): records that send a client elsewhere and hint at addresses.
//!
//! A hint is an address that a client connects to without asking for it. So it is judged and opened as if the rule had
//! been asked for A or AAAA, or it is not told.

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::net::IpAddr;

use super::address::{MAX_ADDRESSES, Told};
use super::target::Kept;
use super::{Admitted, Held};
use crate::name::Name;
use crate::net::{Service as Port, Services};
use crate::policy::Policy;
use crate::policy::decide::{Case, Rules};
use crate::policy::rule::Https;
use crate::policy::verdict::{Reason, RuleIndex};
use crate::record::service::{Service, hints, key, protocols};
use crate::record::{Origin, Record, RecordType};

/// The most records of one answer that are looked at; services have one or two (guessed).
const MAX_SERVICES: usize = 16;

/// What is kept of a record that is filtered, besides hints. What other keys make a client do, nobody here knows; `ech`
/// hides the name that it connects to.
const KEPT: [u16; 4] = [key::MANDATORY, key::ALPN, key::NO_DEFAULT_ALPN, key::PORT];

impl Policy {
    /// An answer of HTTPS or SVCB records.
    pub(super) fn admit_services(
        &self,
        rules: &[RuleIndex],
        mut told: Told<'_>,
        records: &[Record],
    ) -> Result<Admitted, Held> {
        let rules = self.telling_services(rules);
        let passes = rules.iter().any(|rule| self.rule(*rule).https == Https::Pass);
        let mut kept = Kept::default();
        let mut targets: Vec<Name> = Vec::new();
        let mut count = 0;
        for record in records {
            if record.kind == RecordType::CNAME {
                kept.lead(record);
                continue;
            }
            count += 1;
            // RFC 9460 §2.2: "If any RRs are malformed, the client MUST reject the entire RRSet".
            let service = Service::read(&record.data).map_err(|flaw| {
                let why = format!("the {} record of {} is malformed: {flaw}", record.kind, record.name);
                Held::new(Reason::Upstream, None, why)
            })?;
            if count > MAX_SERVICES {
                let why = format!("more than {MAX_SERVICES} {} records", record.kind);
                return Err(Held::new(Reason::Upstream, None, why));
            }
            let mark = told.mark();
            let target = service.target.clone();
            let judged = if passes {
                pass(&mut told, &rules, &record.name, &service).map(|()| record.clone())
            } else {
                let port = service.port().or_else(|| default_port(records.first(), record.kind));
                let filtered = filter(&mut told, &rules, &record.name, service, port);
                filtered.map(|(service, lacking)| {
                    lacking.into_iter().for_each(|held| kept.lacks_hints(held));
                    let mut data = Vec::with_capacity(record.data.len());
                    service.write(&mut data);
                    Record { data: data.into(), ..record.clone() }
                })
            };
            match judged {
                Ok(record) => {
                    if told.mark() != mark && !is_own(&target, &record.name) && !targets.contains(&target) {
                        targets.push(target);
                    }
                    kept.keep(record);
                }
                Err(held) if passes => return Err(held),
                Err(held) => {
                    told.back_to(mark);
                    kept.leave_out(held);
                }
            }
        }
        Ok(Admitted { openings: told.openings, targets, until: told.until, ..kept.finish()? })
    }

    /// Those of the rules that say what is told of a service: where one lets records pass, those that do.
    pub(super) fn telling_services(&self, rules: &[RuleIndex]) -> Rules {
        let passing: Rules = rules.iter().copied().filter(|rule| self.rule(*rule).https == Https::Pass).collect();
        if passing.is_empty() { rules.iter().copied().collect() } else { passing }
    }

    /// The rules that admit an address that a service hints at: those that would if its type were asked for.
    pub(super) fn admitting_hint(
        &self,
        case: Case,
        rules: &[RuleIndex],
        origin: &Origin,
        address: IpAddr,
    ) -> Result<Rules, Held> {
        let kind = if address.is_ipv4() { RecordType::A } else { RecordType::AAAA };
        if address.is_ipv6() && self.filters_aaaa(case.segment) {
            let name = self.segments.get(case.segment.0 as usize).map_or("", |segment| &*segment.name);
            return Err(Held::new(Reason::Family, None, format!("segment {name} filters AAAA")));
        }
        let of_kind: Rules = rules.iter().copied().filter(|rule| self.rule(*rule).types.contains(&kind)).collect();
        let Some(rule) = rules.first().filter(|_| of_kind.is_empty()) else {
            return self.admitting_rules(&of_kind, origin, address, case.now);
        };
        let why = format!("it hints at {address}, and rule {} does not allow {kind}", self.rule_id(*rule));
        Err(Held::new(Reason::Type, Some(*rule), why))
    }
}

/// RFC 9460 §2.5.2: of a service the target "." is "the owner name of this record"; §2.5.1: of an alias it is no name
/// at all.
fn is_own(target: &Name, owner: &Name) -> bool {
    *target == Name::root() || target == owner
}

/// A record as it is, or why nothing of the answer may be told.
fn pass(told: &mut Told<'_>, rules: &[RuleIndex], owner: &Name, service: &Service<'_>) -> Result<(), Held> {
    check_target(told, owner, service)?;
    service.hints().try_for_each(|address| match hint(told, rules, address)? {
        Hint::Told => Ok(()),
        Hint::Outside => Err(told.policy.outside(rules, address)),
        Hint::Crowded => Err(crowded()),
    })
}

/// What of a record may be told, and why its hints are not all there; or why none of it may. `port` is that of the service,
/// where it is known.
fn filter<'a>(
    told: &mut Told<'_>,
    rules: &[RuleIndex],
    owner: &Name,
    mut service: Service<'a>,
    port: Option<u16>,
) -> Result<(Service<'a>, Option<Held>), Held> {
    check_target(told, owner, &service)?;
    if service.priority == 0 {
        // RFC 9460 §2.4.2: of an alias, "recipients MUST ignore any SvcParams that are present".
        service.parameters.clear();
        return Ok((service, None));
    }
    if let Some(port) = service.port().filter(|port| !opens(told.policy, rules, *port)) {
        // Without it a client would go to another port than the record means.
        let why = format!("the service is at port {port}, which no rule opens");
        return Err(Held::new(Reason::Address, rules.first().copied(), why));
    }
    let mut lacking = None;
    let has_udp = opens_udp(told.policy, rules, port);
    service.parameters.retain_mut(|(key, value)| match *key {
        // A client would try it first, be refused by the firewall, and be slow.
        key::ALPN if !has_udp => {
            let kept = protocols(value).unwrap_or_default().into_iter().filter(|protocol| !needs_udp(protocol));
            *value = Cow::Owned(kept.flat_map(|protocol| [&[length(protocol)], protocol].concat()).collect());
            !value.is_empty()
        }
        key::IPV4_HINT | key::IPV6_HINT => match filter_hints(told, rules, *key, value) {
            Ok(kept) => {
                *value = Cow::Owned(kept);
                !value.is_empty()
            }
            Err(held) => {
                lacking.get_or_insert(held);
                false
            }
        },
        other => KEPT.contains(&other),
    });
    match service.missing() {
        None => Ok((service, lacking)),
        Some(key::ALPN) => {
            let why = "the service is had over UDP alone, which no rule opens at its port";
            Err(Held::new(Reason::Address, rules.first().copied(), why.to_owned()))
        }
        Some(key) => {
            let why = format!("the service needs key {key}, which is filtered");
            Err(Held::new(Reason::Address, rules.first().copied(), why))
        }
    }
}

/// The hints of one parameter that are told; one that may never be opened condemns all beside it.
fn filter_hints(told: &mut Told<'_>, rules: &[RuleIndex], key: u16, value: &[u8]) -> Result<Vec<u8>, Held> {
    // Each is judged: no answer makes that long.
    if hints(key, value).count() > MAX_ADDRESSES {
        return Err(crowded());
    }
    let mark = told.mark();
    let mut kept = Vec::new();
    for address in hints(key, value) {
        match (hint(told, rules, address), address) {
            (Ok(Hint::Told), IpAddr::V4(address)) => kept.extend(address.octets()),
            (Ok(Hint::Told), IpAddr::V6(address)) => kept.extend(address.octets()),
            (Ok(Hint::Outside | Hint::Crowded), _) => {}
            (Err(held), _) => {
                told.back_to(mark);
                return Err(held);
            }
        }
    }
    Ok(kept)
}

/// What becomes of one hint.
enum Hint {
    /// It is opened, and told.
    Told,
    /// No rule names it.
    Outside,
    /// Enough others are.
    Crowded,
}

fn hint(told: &mut Told<'_>, rules: &[RuleIndex], address: IpAddr) -> Result<Hint, Held> {
    if told.holds(address) {
        return Ok(Hint::Told);
    }
    let admitting = told.policy.admitting_hint(told.case, rules, told.origin, address)?;
    if admitting.is_empty() {
        return Ok(Hint::Outside);
    }
    if told.is_full() {
        return Ok(Hint::Crowded);
    }
    told.add(&admitting, address)?;
    Ok(Hint::Told)
}

fn crowded() -> Held {
    Held::new(Reason::Address, None, format!("it hints at more than {MAX_ADDRESSES} addresses"))
}

fn check_target(told: &mut Told<'_>, owner: &Name, service: &Service<'_>) -> Result<(), Held> {
    let target = &service.target;
    let refused =
        if is_own(target, owner) { None } else { told.policy.refuses_target(told.case, target, &mut told.until) };
    refused.map_or(Ok(()), Err)
}

/// Whether one of the rules opens a port.
fn opens(policy: &Policy, rules: &[RuleIndex], port: u16) -> bool {
    let mut ports = rules.iter().flat_map(|rule| &policy.rule(*rule).ports);
    ports.any(|ports| ports.contains(Port::Tcp(port)) || ports.contains(Port::Udp(port)))
}

/// The same for UDP; at whatever port where that is not known.
fn opens_udp(policy: &Policy, rules: &[RuleIndex], port: Option<u16>) -> bool {
    let mut ports = rules.iter().flat_map(|rule| &policy.rule(*rule).ports);
    ports.any(|ports| match port {
        Some(port) => ports.contains(Port::Udp(port)),
        None => matches!(ports, Services::Udp(..) | Services::Any),
    })
}

/// The port of a service that names none. RFC 9460 §9.1: of HTTPS the origin's, which stands before the name that is asked
/// for where it is not 443; of SVCB it is a matter of what is bound.
fn default_port(first: Option<&Record>, kind: RecordType) -> Option<u16> {
    let asked = first.filter(|_| kind == RecordType::HTTPS)?.name.as_wire();
    let label = asked.split_first().and_then(|(length, rest)| rest.get(..usize::from(*length)));
    let port = label.and_then(|label| str::from_utf8(label.strip_prefix(b"_")?).ok()?.parse().ok());
    Some(port.unwrap_or(443))
}

/// Whether a protocol runs over QUIC: those of the IANA registry, and the drafts of HTTP/3 that came before it.
fn needs_udp(protocol: &[u8]) -> bool {
    matches!(protocol, b"h3" | b"doq") || protocol.starts_with(b"h3-")
}

/// The octet before a protocol that was read behind one.
fn length(protocol: &[u8]) -> u8 {
    u8::try_from(protocol.len()).unwrap_or(u8::MAX)
}
