//! The guard: addresses that no answer may open.
//!
//! Two kinds of rows. What is *never* granted stays closed whatever a rule, a zone or an upstream says: loopback,
//! link-local, metadata services, multicast, public resolvers, this node's own addresses. What is *special* (private,
//! reserved, transition ranges) is closed until somebody vouches for it: a local zone, `private` of an upstream or of
//! a rule. An IPv6 address that carries an IPv4 address is judged by both.
//!
//! Source: the IANA IPv4 and IPv6 special-purpose address registries (RFC 6890). The IPv6 metadata addresses are from
//! general knowledge, not yet checked against the clouds' documentation.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use smallvec::SmallVec;

use super::load::Settings;
use super::resolvers::RESOLVERS;
use crate::net::{Prefix, PrefixMap};

/// Prefix, what an address in it is, who says so.
type Line = (&'static str, &'static str, &'static str);

/// Never granted.
const NEVER: &[Line] = &[
    ("0.0.0.0/8", "unspecified", "RFC 791"),
    ("127.0.0.0/8", "loopback", "RFC 1122"),
    ("169.254.0.0/16", "link-local", "RFC 3927"),
    ("169.254.169.254/32", "a metadata service", "cloud providers"),
    ("168.63.129.16/32", "a metadata service", "Azure"),
    ("100.100.100.200/32", "a metadata service", "Alibaba Cloud"),
    ("192.0.0.192/32", "a metadata service", "Oracle Cloud"),
    ("224.0.0.0/4", "multicast", "RFC 5771"),
    ("255.255.255.255/32", "broadcast", "RFC 919"),
    ("::/128", "unspecified", "RFC 4291"),
    ("::1/128", "loopback", "RFC 4291"),
    // A socket that connects to a mapped address sends IPv4: an opening for the IPv6 form would open nothing.
    ("::ffff:0:0/96", "IPv4-mapped", "RFC 4291"),
    ("fe80::/10", "link-local", "RFC 4291"),
    ("ff00::/8", "multicast", "RFC 4291"),
    ("fd00:ec2::/32", "a metadata service", "AWS"),
    ("fd20:ce::254/128", "a metadata service", "Google Cloud"),
    ("fd00:c1::a9fe:a9fe/128", "a metadata service", "Oracle Cloud"),
    ("fd00:42::42/128", "a metadata service", "Scaleway"),
];

/// Granted only where somebody vouches for it.
const SPECIAL: &[Line] = &[
    ("10.0.0.0/8", "private", "RFC 1918"),
    ("100.64.0.0/10", "shared address space", "RFC 6598"),
    ("172.16.0.0/12", "private", "RFC 1918"),
    ("192.0.0.0/24", "a protocol assignment", "RFC 6890"),
    ("192.0.2.0/24", "documentation", "RFC 5737"),
    ("192.31.196.0/24", "AS112", "RFC 7535"),
    ("192.52.193.0/24", "AMT", "RFC 7450"),
    ("192.88.99.0/24", "a 6to4 relay", "RFC 7526"),
    ("192.168.0.0/16", "private", "RFC 1918"),
    ("192.175.48.0/24", "AS112", "RFC 7534"),
    ("198.18.0.0/15", "benchmarking", "RFC 2544"),
    ("198.51.100.0/24", "documentation", "RFC 5737"),
    ("203.0.113.0/24", "documentation", "RFC 5737"),
    ("240.0.0.0/4", "reserved", "RFC 1112"),
    ("::/96", "IPv4-compatible", "RFC 4291"),
    ("::ffff:0:0:0/96", "IPv4-translated", "RFC 2765"),
    ("64:ff9b::/96", "NAT64", "RFC 6052"),
    ("64:ff9b:1::/48", "NAT64", "RFC 8215"),
    ("100::/64", "discard-only", "RFC 6666"),
    ("100:0:0:1::/64", "a dummy prefix", "RFC 9780"),
    ("2001::/32", "Teredo", "RFC 4380"),
    ("2001:2::/48", "benchmarking", "RFC 5180"),
    ("2001:10::/28", "ORCHID", "RFC 4843"),
    ("2001:20::/28", "ORCHIDv2", "RFC 7343"),
    ("2001:db8::/32", "documentation", "RFC 3849"),
    ("2002::/16", "6to4", "RFC 3056"),
    ("2620:4f:8000::/48", "AS112", "RFC 7534"),
    ("3fff::/20", "documentation", "RFC 9637"),
    ("5f00::/16", "segment routing", "RFC 9602"),
    ("fc00::/7", "private", "RFC 4193"),
    ("fec0::/10", "site-local", "RFC 3879"),
    ("::/0", "not global unicast", "RFC 4291"),
];

/// The part of `::/0` that is.
const GLOBAL_UNICAST: &str = "2000::/3";

/// The compiled tables.
#[derive(Debug, Default)]
pub(super) struct Guard {
    never: PrefixMap<Row>,
    special: PrefixMap<Option<Row>>,
    /// Every row of `never`, for overlaps.
    rows: Vec<Row>,
}

/// One row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) prefix: Prefix,
    what: &'static str,
    source: &'static str,
    /// From outgate.toml or the node itself.
    pub(super) local: bool,
}

impl fmt::Display for Row {
    /// `private (10.0.0.0/8, RFC 1918)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {})", self.what, self.prefix, self.source)
    }
}

/// An address that may not be granted, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Guarded {
    address: IpAddr,
    /// The address itself or the one that it carries.
    face: IpAddr,
    row: Row,
}

impl fmt::Display for Guarded {
    /// `10.0.0.1 is private (10.0.0.0/8, RFC 1918)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.face == self.address {
            write!(f, "{} is {}", self.address, self.row)
        } else {
            write!(f, "{} carries {}, which is {}", self.address, self.face, self.row)
        }
    }
}

impl Guard {
    /// The built-in tables and what this node adds.
    pub(super) fn new(settings: &Settings) -> Self {
        let mut guard = Self::default();
        let row =
            |(prefix, what, source): &Line| Some(Row { prefix: prefix.parse().ok()?, what, source, local: false });
        let resolvers = RESOLVERS.iter().map(|(prefix, who)| (*prefix, "a public resolver", *who));
        let local = |list: &[Prefix], what, source| {
            list.iter().map(|prefix| Row { prefix: prefix.trunc(), what, source, local: true }).collect::<Vec<_>>()
        };
        // Later rows replace earlier ones of the same prefix: the built-in reason is the better one to show.
        guard.rows.extend(local(&settings.own_addresses, "an address of this node or its resolvers", "outgate.toml"));
        guard.rows.extend(local(&settings.never_grant, "on the never_grant list", "outgate.toml"));
        guard.rows.extend(resolvers.filter_map(|line| row(&line)));
        guard.rows.extend(NEVER.iter().filter_map(row));
        for row in &guard.rows {
            guard.never.insert(row.prefix, *row);
        }
        for row in SPECIAL.iter().filter_map(row) {
            guard.special.insert(row.prefix, Some(row));
        }
        if let Ok(global) = GLOBAL_UNICAST.parse() {
            guard.special.insert(global, None);
        }
        guard
    }

    /// Why `address` may not be granted; `lifted` says for which special addresses somebody vouches.
    pub(super) fn refuses(&self, address: IpAddr, lifted: impl Fn(IpAddr) -> bool) -> Option<Guarded> {
        let faces = faces(address);
        let never = faces.iter().find_map(|face| self.never.longest(*face).map(|row| (*face, *row)));
        let refused = never.or_else(|| {
            faces.iter().filter(|face| !lifted(**face)).find_map(|face| {
                let row = self.special.longest(*face).copied().flatten()?;
                Some((*face, row))
            })
        });
        refused.map(|(face, row)| Guarded { address, face, row })
    }

    /// The rows of what is never granted that share addresses with `prefix`.
    pub(super) fn never_within(&self, prefix: Prefix) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |row| row.prefix.contains(&prefix) || prefix.contains(&row.prefix))
    }
}

/// What is never granted, for those who do not know the policy: enforcers.
#[derive(Debug, Default)]
pub struct NeverGranted(Guard);

impl NeverGranted {
    /// The built-in table and what is never granted here besides.
    #[must_use]
    pub fn new(never_grant: Vec<Prefix>) -> Self {
        Self(Guard::new(&Settings { never_grant, ..Settings::default() }))
    }

    /// Why `address` is never granted, whoever asks.
    #[must_use]
    pub fn refuses(&self, address: IpAddr) -> Option<impl fmt::Display + use<>> {
        self.0.refuses(address, |_| true)
    }
}

/// The address and every IPv4 address that it carries.
fn faces(address: IpAddr) -> SmallVec<[IpAddr; 4]> {
    let mut faces = SmallVec::new();
    faces.push(address);
    if let IpAddr::V6(six) = address {
        faces.extend(carried(six).into_iter().flatten().map(IpAddr::V4));
    }
    faces
}

/// The IPv4 addresses that transition mechanisms put into an IPv6 address.
fn carried(address: Ipv6Addr) -> [Option<Ipv4Addr>; 3] {
    let [a, b, c, d, e, f, g, h] = address.segments();
    let four = |high: u16, low: u16| Some(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)));
    let [first, second] = match (a, b, c, d, e, f) {
        // ::/96 compatible, ::ffff:0:0/96 mapped, ::ffff:0:0:0/96 translated, 64:ff9b::/96 and 64:ff9b:1::/48 NAT64.
        (0, 0, 0, 0, 0, 0 | 0xffff) | (0, 0, 0, 0, 0xffff, 0) | (0x64, 0xff9b, 0, 0, 0, 0) | (0x64, 0xff9b, 1, ..) => {
            [four(g, h), None]
        }
        // RFC 3056 §2: the IPv4 address follows 2002::/16.
        (0x2002, ..) => [four(b, c), None],
        // RFC 4380 §4: the server, and the client "obfuscated" by inverting each bit.
        (0x2001, 0, ..) => [four(c, d), four(!g, !h)],
        _ => [None, None],
    };
    // RFC 5214 §6.1: the interface identifier is 00-00-5E-FE or 02-00-5E-FE and the IPv4 address.
    let isatap = if matches!((e, f), (0 | 0x0200, 0x5efe)) { four(g, h) } else { None };
    [first, second, isatap]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(prefix: &str) -> [IpAddr; 2] {
        let prefix: Prefix = prefix.parse().unwrap();
        assert_eq!(prefix, prefix.trunc(), "host bits");
        match prefix {
            Prefix::V4(net) => [net.network().into(), net.broadcast().into()],
            Prefix::V6(net) => [net.network().into(), net.broadcast().into()],
        }
    }

    #[test]
    fn every_row_holds_from_its_first_to_its_last_address() {
        let guard = Guard::new(&Settings::default());
        for (prefix, ..) in SPECIAL {
            for address in ends(prefix) {
                assert!(guard.refuses(address, |_| false).is_some(), "{address} of {prefix}");
            }
        }
        let never = NEVER.iter().map(|(prefix, ..)| *prefix).chain(RESOLVERS.iter().map(|(prefix, _)| *prefix));
        for prefix in never {
            for address in ends(prefix) {
                assert!(guard.refuses(address, |_| true).is_some(), "{address} of {prefix}");
            }
        }
        assert_eq!(guard.rows.len(), NEVER.len() + RESOLVERS.len(), "every row was read");
        for (one, (prefix, ..)) in NEVER.iter().chain(SPECIAL).enumerate() {
            assert!(!NEVER.iter().chain(SPECIAL).skip(one + 1).any(|(other, ..)| other == prefix), "{prefix} twice");
        }
    }

    #[test]
    fn tells_what_an_address_is() {
        let settings = Settings {
            own_addresses: vec!["198.51.100.53/32".parse().unwrap()],
            never_grant: vec!["10.9.0.0/16".parse().unwrap(), "0.0.0.0/1".parse().unwrap()],
            ..Settings::default()
        };
        let guard = Guard::new(&settings);
        // Address, whether somebody vouches for everything, what is said.
        let rows = [
            ("192.88.98.1", false, None),
            ("2606:2800::1", false, None),
            ("192.168.0.1", false, Some("192.168.0.1 is private (192.168.0.0/16, RFC 1918)")),
            ("192.168.0.1", true, None),
            ("203.0.113.9", true, None),
            (
                "198.51.100.53",
                true,
                Some("198.51.100.53 is an address of this node or its resolvers (198.51.100.53/32, outgate.toml)"),
            ),
            ("10.9.1.1", true, Some("10.9.1.1 is on the never_grant list (10.9.0.0/16, outgate.toml)")),
            ("100.64.0.1", true, Some("100.64.0.1 is on the never_grant list (0.0.0.0/1, outgate.toml)")),
            ("168.63.129.16", true, Some("168.63.129.16 is a metadata service (168.63.129.16/32, Azure)")),
            ("8.8.8.8", true, Some("8.8.8.8 is a public resolver (8.8.8.0/24, Google)")),
            ("::ffff:192.0.2.1", true, Some("::ffff:192.0.2.1 is IPv4-mapped (::ffff:0.0.0.0/96, RFC 4291)")),
            ("4000::1", false, Some("4000::1 is not global unicast (::/0, RFC 4291)")),
        ];
        for (address, vouched, expected) in rows {
            let said = guard.refuses(address.parse().unwrap(), |_| vouched).map(|guarded| guarded.to_string());
            assert_eq!(said.as_deref(), expected, "{address}");
        }
    }

    #[test]
    fn judges_a_carried_address_as_well() {
        let guard = Guard::new(&Settings::default());
        // 169.254.169.254 in each coat: nobody can vouch for it.
        let rows = [
            "::169.254.169.254",
            "::ffff:169.254.169.254",
            "::ffff:0:169.254.169.254",
            "64:ff9b::169.254.169.254",
            "64:ff9b:1::169.254.169.254",
            "2002:a9fe:a9fe::1",
            "2001:0:a9fe:a9fe::1",
            "2001:0:c633:6401:0:0:5601:5601",
            "2606:2800::5efe:169.254.169.254",
            "2606:2800::200:5efe:169.254.169.254",
        ];
        for address in rows {
            assert!(guard.refuses(address.parse().unwrap(), |_| true).is_some(), "{address}");
        }
        // Somebody vouches for the coat, not for what it carries.
        let nat64: Prefix = "64:ff9b::/96".parse().unwrap();
        let said = |address: &str| {
            guard.refuses(address.parse().unwrap(), |face| nat64.contains(&face)).map(|guarded| guarded.to_string())
        };
        assert_eq!(said("64:ff9b::192.88.98.1"), None);
        let expected = "64:ff9b::a00:1 carries 10.0.0.1, which is private (10.0.0.0/8, RFC 1918)";
        assert_eq!(said("64:ff9b::10.0.0.1").as_deref(), Some(expected));
    }
}
