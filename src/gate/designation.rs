//! The designation of our encrypted doors (RFC 9462): what `_dns.resolver.arpa` SVCB is answered with.

use std::borrow::Cow;
use std::net::IpAddr;

use crate::name::{Name, is_within};
use crate::record::service::{Service, key};
use crate::record::{Question, Rcode, Record, RecordType};
use crate::time::Ttl;
use crate::wire::{Query, Template};

/// `_dns.resolver.arpa`.
const OWNER: &[u8] = b"\x04_dns\x08resolver\x04arpa\x00";

/// `resolver.arpa`.
const ZONE: &[u8] = b"\x08resolver\x04arpa\x00";

/// How long a designation may be kept: a certificate that holds other names is known within this time.
pub(super) const LIFE: Ttl = Ttl::from_wire(300);

/// How many addresses are told at most.
const HINTS: usize = 16;

/// One encrypted door.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Door {
    /// Its application protocols, the preferred one first.
    pub protocols: &'static [&'static str],
    /// Its port.
    pub port: u16,
    /// The URI template of DNS over HTTPS.
    pub path: Option<&'static str>,
}

/// What clients that know only our address are told of our encrypted doors.
#[derive(Debug)]
pub struct Designation {
    /// The records.
    pub(super) records: Box<[Record]>,
    /// The reply.
    pub(super) template: Template,
}

impl Designation {
    /// Designates `doors`, the preferred one first, under a name and the addresses that the certificate holds. `None`
    /// where there are no doors, or where no client could verify them: RFC 9462 §4.2, the certificate must hold the
    /// address that the client knows.
    #[must_use]
    pub fn new(target: &Name, addresses: &[IpAddr], doors: &[Door]) -> Option<Self> {
        if doors.is_empty() || addresses.is_empty() {
            return None;
        }
        let owner = Name::from_wire(OWNER).ok()?;
        let records: Vec<Record> = (1_u16..)
            .zip(doors)
            .map(|(priority, door)| Record {
                name: owner.clone(),
                kind: RecordType::SVCB,
                ttl: LIFE,
                data: service(priority, target, addresses, door).into(),
            })
            .collect();
        let question = Question { name: owner, kind: RecordType::SVCB };
        let template = Template::new(&question, Rcode::NOERROR, true, &records, None, None);
        Some(Self { records: records.into(), template })
    }

    /// Whether it is ours to answer, never an upstream's, be it with NODATA.
    pub(super) fn answers(query: &Query<'_>) -> bool {
        query.name.ends_with(ZONE) && is_within(query.name, ZONE)
    }

    /// Whether it is this that is asked.
    pub(super) fn is_asked(query: &Query<'_>) -> bool {
        query.kind == RecordType::SVCB && query.name == OWNER
    }
}

/// The data of one SVCB record (RFC 9460 §2.2).
fn service(priority: u16, target: &Name, addresses: &[IpAddr], door: &Door) -> Vec<u8> {
    let protocols = door.protocols.iter().flat_map(|protocol| {
        let length = u8::try_from(protocol.len()).unwrap_or(0);
        [&[length], protocol.as_bytes()].concat()
    });
    let mut hints = [Vec::new(), Vec::new()];
    let [four, six] = &mut hints;
    for address in addresses.iter().take(HINTS) {
        match address {
            IpAddr::V4(address) => four.extend(address.octets()),
            IpAddr::V6(address) => six.extend(address.octets()),
        }
    }
    let [four, six] = hints;
    let parameters = [
        (key::ALPN, protocols.collect()),
        (key::PORT, door.port.to_be_bytes().to_vec()),
        (key::IPV4_HINT, four),
        (key::IPV6_HINT, six),
        (key::DOH_PATH, door.path.unwrap_or_default().as_bytes().to_vec()),
    ];
    let parameters = parameters.into_iter().filter(|(_, value)| !value.is_empty());
    let parameters = parameters.map(|(key, value)| (key, Cow::Owned(value))).collect();
    let mut data = Vec::new();
    Service { priority, target: target.clone(), parameters }.write(&mut data);
    data
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Canonical, parse};

    const DOT: Door = Door { protocols: &["dot"], port: 853, path: None };
    const DOH: Door = Door { protocols: &["h2", "http/1.1"], port: 8443, path: Some("/dns-query{?dns}") };

    fn target() -> Name {
        Name::parse("dns.example.org").unwrap()
    }

    #[test]
    fn says_these_octets() {
        let addresses = ["192.0.2.1", "2001:db8::1", "192.0.2.2"].map(|address| address.parse().unwrap());
        let found = Designation::new(&target(), &addresses, &[DOT, DOH]).unwrap();
        let [dot, doh] = &*found.records else { panic!("two records") };
        assert_eq!((dot.name.to_string().as_str(), dot.kind), ("_dns.resolver.arpa", RecordType::SVCB));
        let hints = [
            b"\0\x04\0\x08\xc0\0\x02\x01\xc0\0\x02\x02\0\x06\0\x10".as_slice(),
            &"2001:db8::1".parse::<std::net::Ipv6Addr>().unwrap().octets(),
        ]
        .concat();
        let name = target();
        let expected = [b"\0\x01", name.as_wire(), b"\0\x01\0\x04\x03dot\0\x03\0\x02\x03\x55", &hints].concat();
        assert_eq!(&*dot.data, &*expected);
        let path = b"\0\x07\0\x10/dns-query{?dns}".as_slice();
        let protocols = b"\0\x01\0\x0c\x02h2\x08http/1.1\0\x03\0\x02\x20\xfb".as_slice();
        let expected = [b"\0\x02", name.as_wire(), protocols, &hints, path].concat();
        assert_eq!(&*doh.data, &*expected);
    }

    #[test]
    fn without_a_door_or_an_address_to_verify_there_is_none() {
        assert!(Designation::new(&target(), &[[192, 0, 2, 1].into()], &[]).is_none());
        assert!(Designation::new(&target(), &[], &[DOT]).is_none());
    }

    #[test]
    fn answers_its_zone_and_tells_itself_to_who_asks_for_it() {
        let of = |name: &[u8], kind: u16| {
            let packet = [b"\0\0\x01\0\0\x01\0\0\0\0\0\0", name, &kind.to_be_bytes(), b"\0\x01"].concat();
            let mut room = Canonical::new();
            let query = parse(&packet, &mut room).unwrap();
            (Designation::answers(&query), Designation::is_asked(&query))
        };
        assert_eq!(of(b"\x04_DNS\x08resolver\x04aRpa\0", 64), (true, true));
        assert_eq!(of(b"\x04_dns\x08resolver\x04arpa\0", 1), (true, false));
        assert_eq!(of(b"\x08resolver\x04arpa\0", 64), (true, false));
        assert_eq!(of(b"\x01x\x04_dns\x08resolver\x04arpa\0", 64), (true, false));
        assert_eq!(of(b"\x04arpa\0", 64), (false, false));
        assert_eq!(of(b"\x0fa\x08resolver\x04arpa\0", 64), (false, false), "one label that looks like two");
    }
}
