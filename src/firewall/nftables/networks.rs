//! Static rules (`networks` of a policy) as boxes of address × protocol × port.
//!
//! Rules may overlap, the boxes of one set may not: the kernel refuses them.

use super::expression::{Family, TCP, UDP};
use super::ranges::{Range, flatten, union};
use super::sets::{bytes, of, service};
use crate::net::{Prefix, SegmentId, Services};

/// Protocol and port as one number, so that a rule's services are ranges.
const PORTS: u128 = 1 << 16;

fn line(services: Services, family: Family) -> Range {
    let ports = |protocol: u8, first: u16, last: u16| Range {
        first: u128::from(protocol) * PORTS + u128::from(first),
        last: u128::from(protocol) * PORTS + u128::from(last),
    };
    match services {
        Services::Tcp(first, last) => ports(TCP, first, last),
        Services::Udp(first, last) => ports(UDP, first, last),
        Services::Icmp => ports(family.icmp(), 0, u16::MAX),
        Services::Any => Range { first: 0, last: 256 * PORTS - 1 },
    }
}

/// The static rules of one segment as first and last keys of disjoint boxes: rules may overlap, boxes of one set
/// may not.
pub(super) fn boxes(id: SegmentId, family: Family, rules: &[(Prefix, Services)]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let rules = rules.iter().filter(|(prefix, _)| of(*prefix) == family);
    let flat = flatten(rules.copied().collect(), |open| {
        union(open.iter().map(|(_, services)| line(*services, family)).collect())
    });
    let mut keys = Vec::new();
    for (range, services) in flat {
        for services in services.iter().flat_map(|services| split(*services)) {
            let key = |address: u128, (protocol, port): (u8, u16)| {
                let mut key = id.0.to_ne_bytes().to_vec();
                key.extend(bytes(family, address));
                key.extend(service(protocol, port));
                key
            };
            keys.push((key(range.first, services.0), key(range.last, services.1)));
        }
    }
    keys
}

/// A range of protocol and port as boxes of protocols × ports.
fn split(range: Range) -> Vec<((u8, u16), (u8, u16))> {
    let parts = |number: u128| ((number / PORTS) as u8, (number % PORTS) as u16);
    let ((first, low), (last, high)) = (parts(range.first), parts(range.last));
    if first == last || (low == 0 && high == u16::MAX) {
        return vec![((first, low), (last, high))];
    }
    let mut boxes = Vec::new();
    let mut middle = (first, last);
    if low > 0 {
        boxes.push(((first, low), (first, u16::MAX)));
        middle.0 += 1;
    }
    if high < u16::MAX {
        boxes.push(((last, 0), (last, high)));
        middle.1 -= 1;
    }
    if middle.0 <= middle.1 {
        boxes.push(((middle.0, 0), (middle.1, u16::MAX)));
    }
    boxes
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    fn any_services() -> impl Strategy<Value = Services> {
        let ports = || (any::<u16>(), any::<u16>()).prop_map(|(a, b)| (a.min(b), a.max(b)));
        prop_oneof![
            ports().prop_map(|(a, b)| Services::Tcp(a, b)),
            ports().prop_map(|(a, b)| Services::Udp(a, b)),
            Just(Services::Icmp),
            Just(Services::Any),
        ]
    }

    /// A key of `boxes` as numbers: address, protocol, port.
    fn point(key: &[u8]) -> (u32, u8, u16) {
        (u32::from_be_bytes(key[4..8].try_into().unwrap()), key[8], u16::from_be_bytes(key[12..14].try_into().unwrap()))
    }

    proptest! {
        #[test]
        fn boxes_of_static_rules_are_disjoint_and_cover_the_rules(
            rules in prop::collection::vec((any::<u8>(), 24u8..=32, any_services()), 0..8),
            probes in prop::collection::vec((any::<u8>(), prop_oneof![Just(1u8), Just(6), Just(17), any::<u8>()], any::<u16>()), 32),
        ) {
            let rules: Vec<(Prefix, Services)> = rules.into_iter()
                .map(|(low, length, services)| (format!("192.0.2.{low}/{length}").parse::<Prefix>().unwrap().trunc(), services))
                .collect();
            let keys = boxes(SegmentId(9), Family::Four, &rules);
            for (low, protocol, port) in probes {
                let address = u32::from_be_bytes([192, 0, 2, low]);
                let inside = keys.iter().filter(|(first, last)| {
                    let (first, last) = (point(first), point(last));
                    (first.0..=last.0).contains(&address) && (first.1..=last.1).contains(&protocol) && (first.2..=last.2).contains(&port)
                }).count();
                let wanted = rules.iter().any(|(prefix, services)| {
                    prefix.contains(&IpAddr::from(address.to_be_bytes())) && match *services {
                        Services::Tcp(a, b) => protocol == 6 && (a..=b).contains(&port),
                        Services::Udp(a, b) => protocol == 17 && (a..=b).contains(&port),
                        Services::Icmp => protocol == 1,
                        Services::Any => true,
                    }
                });
                prop_assert_eq!(inside, usize::from(wanted));
            }
        }
    }
}
