//! Reverse look-ups: the PTR of an address that is open for who asks is the names that it was opened under. It is answered
//! here, opens nothing, and goes nowhere: whoever holds a reverse zone reads what is asked below it, 128 bits a question.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use smallvec::SmallVec;

use crate::gate::{Gate, Rulebook, who};
use crate::grant::Granted;
use crate::name::{Name, labels};
use crate::policy::{Own, Refusal, Verdict, decide};
use crate::record::{Record, RecordType};
use crate::time::{Now, Ttl};
use crate::wire::Query;

/// The longest life of such an answer: what is closed before its time shows soon.
const LIFE: Duration = Duration::from_secs(60);

impl Gate {
    /// What a question is answered with that the policy refuses, no rule by name.
    pub(super) fn pointer(&self, rulebook: &Rulebook, refusal: &Refusal, query: &Query<'_>, now: Now) -> Option<Own> {
        if query.kind != RecordType::PTR || refusal.rule.is_some() {
            return None;
        }
        let address = address(query.name)?;
        let (policy, asker) = (&rulebook.policy, refusal.asker);
        let kind = if address.is_ipv4() { RecordType::A } else { RecordType::AAAA };
        // A policy that came later may have closed what was open.
        let upheld = |name: &Name| {
            let verdict = decide(policy, asker, name.as_wire(), kind, now.wall);
            matches!(verdict, Verdict::Permit(permit) if permit.observed().is_none())
        };
        let mut names = self.named.get(who(policy, asker), address, now.tick);
        names.retain(|(name, _)| upheld(name));
        let left = names.iter().map(|(_, until)| until.since(now.tick)).min()?;
        let ttl = Ttl::from_wire(u32::try_from(left.min(LIFE).as_secs()).unwrap_or(0));
        let names: Vec<Name> = names.into_iter().map(|(name, _)| name).collect();
        Own::pointing(query.name, &names, ttl)
    }

    /// Remembers under which name the addresses of an answer are open.
    pub(super) fn name_addresses(&self, rulebook: &Rulebook, granted: &Granted) {
        let (cleared, now) = (granted.cleared(), self.clock.tick());
        let Some(until) = granted.open_until() else { return };
        let who = who(&rulebook.policy, cleared.permit().asker());
        for address in cleared.answer().records.iter().filter_map(Record::address) {
            self.named.put(who, address, &cleared.permit().question().name, until, now);
        }
    }
}

/// The address of a reverse name (RFC 1035 §3.5, RFC 3596 §2.5), which is in lower case.
fn address(name: &[u8]) -> Option<IpAddr> {
    let labels: SmallVec<[&[u8]; 34]> = labels(name).collect();
    match labels.as_slice() {
        [octets @ .., b"in-addr", b"arpa"] => {
            let octet = |label: &&[u8]| std::str::from_utf8(label).ok()?.parse::<u8>().ok();
            // Another spelling of the same number is another name.
            let plain =
                |label: &&[u8]| label.first() != Some(&b'+') && (label.len() == 1 || label.first() != Some(&b'0'));
            let octets: SmallVec<[u8; 4]> =
                octets.iter().rev().filter(|label| plain(label)).filter_map(octet).collect();
            let four = <[u8; 4]>::try_from(octets.as_slice()).ok()?;
            (labels.len() == 6).then(|| four.into())
        }
        [nibbles @ .., b"ip6", b"arpa"] if nibbles.len() == 32 => {
            nibbles.iter().rev().try_fold(0_u128, |bits, label| {
                let [digit] = label else { return None };
                Some(bits << 4 | u128::from(char::from(*digit).to_digit(16)?))
            })
        }
        .map(|bits| Ipv6Addr::from_bits(bits).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_address_of_a_reverse_name() {
        let six = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa";
        let rows = [
            ("4.3.2.1.in-addr.arpa", Some("1.2.3.4")),
            ("255.0.0.10.in-addr.arpa", Some("10.0.0.255")),
            (six, Some("2001:db8::1")),
            ("3.2.1.in-addr.arpa", None),
            ("5.4.3.2.1.in-addr.arpa", None),
            ("04.3.2.1.in-addr.arpa", None),
            ("+4.3.2.1.in-addr.arpa", None),
            ("256.3.2.1.in-addr.arpa", None),
            ("x.4.3.2.1.in-addr.arpa", None),
            ("4.3.2.1.in-addr.arpa.example", None),
            (&six[2..], None),
            ("ip6.arpa", None),
            (".", None),
        ];
        for (name, expected) in rows {
            let found = address(Name::parse(name).unwrap().as_wire());
            assert_eq!(found, expected.map(|text| text.parse().unwrap()), "{name}");
        }
    }
}
