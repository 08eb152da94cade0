//! Special-use names (RFC 6761): what they are answered with here, whatever the DNS would say of them.
//!
//! They mean the same everywhere, or something on one host or site alone. None of them goes upstream, no rule but a deny
//! changes what they are, and nothing is opened for them. A row that is not fixed gives way to who serves its names
//! here: a local zone, or an upstream that was named for them; then rules decide as of any name.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::name::Name;
use crate::record::{Record, RecordType};
use crate::time::Ttl;

/// How long an answer may be kept: a zone that takes its place is known within this time.
const LIFE: Ttl = Ttl::from_wire(300);

/// How the names of a row are answered, and the names below them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// They do not exist.
    Nothing,
    /// A zone with nothing in it: SOA and NS at the name, nothing below (RFC 6303 §3).
    Empty,
    /// They exist, and so does everything below them, without data.
    Blank,
    /// 127.0.0.1 and `::1`, and so is everything below them.
    Loopback,
    /// A PTR to this name; nothing below.
    Pointer(&'static str),
    /// The addresses by which a host finds out how IPv6 is translated (RFC 7050); nothing below.
    Translated,
}

/// Names that are answered alike.
#[derive(Debug)]
pub(super) struct Row {
    /// `16-31.172.in-addr.arpa` stands for sixteen.
    names: &'static [&'static str],
    pub(super) kind: Kind,
    /// It stays whatever zones there are.
    pub(super) fixed: bool,
    pub(super) source: &'static str,
}

const fn row(names: &'static [&'static str], kind: Kind, source: &'static str) -> Row {
    Row { names, kind, fixed: false, source }
}

const fn fixed(names: &'static [&'static str], kind: Kind, source: &'static str) -> Row {
    Row { names, kind, fixed: true, source }
}

/// `::1`, reversed.
const LOOPBACK_SIX: &str = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.ip6.arpa";
/// `::`, reversed.
const UNSPECIFIED_SIX: &str = "0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.ip6.arpa";

/// The IANA registries of special-use names and of locally-served zones.
pub(super) const ROWS: &[Row] = &[
    // RFC 6761 §6.3: "Name resolution APIs and libraries SHOULD recognize localhost names as special and SHOULD always
    // return the IP loopback address for address queries and negative responses for all other query types."
    fixed(&["localhost"], Kind::Loopback, "RFC 6761"),
    fixed(&["invalid"], Kind::Nothing, "RFC 6761"),
    fixed(&["onion"], Kind::Nothing, "RFC 7686"),
    fixed(&["alt"], Kind::Nothing, "RFC 9476"),
    // RFC 9462 §6.4: "DNS resolvers that support DDR by responding to queries for _dns.resolver.arpa MUST treat
    // resolver.arpa as a locally served zone per [RFC6303]."
    fixed(&["resolver.arpa"], Kind::Blank, "RFC 9462"),
    row(&["test"], Kind::Nothing, "RFC 6761"),
    row(&["local"], Kind::Nothing, "RFC 6762"),
    row(&["internal"], Kind::Nothing, "ICANN, for private use"),
    row(&["home.arpa"], Kind::Empty, "RFC 8375"),
    row(&["service.arpa"], Kind::Nothing, "RFC 9665"),
    row(&["ipv4only.arpa"], Kind::Translated, "RFC 8880"),
    row(&["170.0.0.192.in-addr.arpa", "171.0.0.192.in-addr.arpa"], Kind::Pointer("ipv4only.arpa"), "RFC 8880"),
    row(&["empty.as112.arpa"], Kind::Nothing, "RFC 7535"),
    row(&["eap-noob.arpa"], Kind::Nothing, "RFC 9140"),
    row(&["6tisch.arpa"], Kind::Nothing, "RFC 9031"),
    row(&["1.0.0.127.in-addr.arpa", LOOPBACK_SIX], Kind::Pointer("localhost"), "RFC 6303"),
    row(
        &[
            "10.in-addr.arpa",
            "16-31.172.in-addr.arpa",
            "168.192.in-addr.arpa",
            "0.in-addr.arpa",
            "127.in-addr.arpa",
            "254.169.in-addr.arpa",
            "2.0.192.in-addr.arpa",
            "100.51.198.in-addr.arpa",
            "113.0.203.in-addr.arpa",
            "255.255.255.255.in-addr.arpa",
            UNSPECIFIED_SIX,
            "d.f.ip6.arpa",
            "8.e.f.ip6.arpa",
            "9.e.f.ip6.arpa",
            "a.e.f.ip6.arpa",
            "b.e.f.ip6.arpa",
            "8.b.d.0.1.0.0.2.ip6.arpa",
        ],
        Kind::Empty,
        "RFC 6303",
    ),
    row(&["64-127.100.in-addr.arpa"], Kind::Empty, "RFC 7793"),
];

impl Row {
    /// Every name of the row.
    pub(super) fn names(&self) -> impl Iterator<Item = Name> {
        self.names.iter().flat_map(|text| spelled_out(text)).filter_map(|text| Name::parse(&text).ok())
    }
}

/// The names that one entry of a row stands for.
fn spelled_out(text: &'static str) -> Vec<String> {
    let range = text.split_once('.').and_then(|(first, rest)| {
        let (from, to) = first.split_once('-')?;
        let range = from.parse::<u8>().ok()?..=to.parse::<u8>().ok()?;
        Some(range.map(|number| format!("{number}.{rest}")).collect())
    });
    range.unwrap_or_else(|| vec![text.to_owned()])
}

impl Kind {
    /// What a question about `name` is answered with, which is the name `apex` of a row or below it: records, perhaps
    /// none; `None`: there is no such name.
    pub(super) fn answer(self, apex: &Name, name: &[u8], kind: RecordType) -> Option<Vec<Record>> {
        let here = name == apex.as_wire();
        let records = |data: Vec<Vec<u8>>| {
            let Ok(name) = Name::from_wire(name) else { return Vec::new() };
            let record = |data: Vec<u8>| Record { name: name.clone(), kind, ttl: LIFE, data: data.into() };
            data.into_iter().map(record).collect()
        };
        let data = match (self, kind) {
            (Self::Nothing, _) => return None,
            (Self::Empty | Self::Pointer(_) | Self::Translated, _) if !here => return None,
            (Self::Empty, RecordType::SOA) => vec![soa(apex)],
            (Self::Empty, RecordType::NS) => vec![apex.as_wire().to_vec()],
            (Self::Loopback, RecordType::A) => vec![Ipv4Addr::LOCALHOST.octets().to_vec()],
            (Self::Loopback, RecordType::AAAA) => vec![Ipv6Addr::LOCALHOST.octets().to_vec()],
            (Self::Pointer(to), RecordType::PTR) => {
                Name::parse(to).map(|to| to.as_wire().to_vec()).into_iter().collect()
            }
            (Self::Translated, RecordType::A) => vec![vec![192, 0, 0, 170], vec![192, 0, 0, 171]],
            _ => Vec::new(),
        };
        Some(records(data))
    }
}

/// RFC 6303 §3: `@ 10800 IN SOA @ nobody.invalid. 1 3600 1200 604800 10800`.
fn soa(apex: &Name) -> Vec<u8> {
    let numbers = [1_u32, 3600, 1200, 604_800, 10_800].map(u32::to_be_bytes);
    [apex.as_wire(), b"\x06nobody\x07invalid\0", numbers.as_flattened()].concat()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::record::write_data;

    #[test]
    fn every_name_of_the_table_is_there_once() {
        let names: Vec<Name> = ROWS.iter().flat_map(Row::names).collect();
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len());
        let written: usize = ROWS.iter().map(|row| row.names.len()).sum();
        assert_eq!(names.len(), written - 2 + 16 + 64, "every name could be read, two of them stand for many");
        for name in ["31.172.in-addr.arpa", "64.100.in-addr.arpa", "127.100.in-addr.arpa", "6tisch.arpa"] {
            assert!(names.contains(&Name::parse(name).unwrap()), "{name}");
        }
    }

    #[test]
    fn answers_what_each_kind_says() {
        let rows = [
            (Kind::Nothing, "onion", "onion", "A", "no such name"),
            (Kind::Empty, "home.arpa", "home.arpa", "A", ""),
            (Kind::Empty, "home.arpa", "home.arpa", "NS", "home.arpa"),
            (Kind::Empty, "home.arpa", "x.home.arpa", "A", "no such name"),
            (Kind::Blank, "resolver.arpa", "x.resolver.arpa", "A", ""),
            (Kind::Loopback, "localhost", "localhost", "A", "127.0.0.1"),
            (Kind::Loopback, "localhost", "a.b.localhost", "AAAA", "::1"),
            (Kind::Loopback, "localhost", "localhost", "MX", ""),
            (Kind::Pointer("localhost"), "1.0.0.127.in-addr.arpa", "1.0.0.127.in-addr.arpa", "PTR", "localhost"),
            (Kind::Pointer("localhost"), "1.0.0.127.in-addr.arpa", "1.0.0.127.in-addr.arpa", "A", ""),
            (Kind::Pointer("localhost"), "1.0.0.127.in-addr.arpa", "x.1.0.0.127.in-addr.arpa", "PTR", "no such name"),
            (Kind::Translated, "ipv4only.arpa", "ipv4only.arpa", "A", "192.0.0.170 192.0.0.171"),
            (Kind::Translated, "ipv4only.arpa", "ipv4only.arpa", "AAAA", ""),
            (Kind::Translated, "ipv4only.arpa", "x.ipv4only.arpa", "A", "no such name"),
        ];
        for (kind, apex, name, asked, expected) in rows {
            let [apex, name] = [apex, name].map(|name| Name::parse(name).unwrap());
            let told = match kind.answer(&apex, name.as_wire(), asked.parse().unwrap()) {
                None => "no such name".to_owned(),
                Some(records) => {
                    let data = records.iter().map(|record| {
                        assert_eq!(record.name, name);
                        let mut text = String::new();
                        write_data(record, &mut text).unwrap();
                        text
                    });
                    data.collect::<Vec<_>>().join(" ")
                }
            };
            assert_eq!(told, expected, "{name} {asked}");
        }
        let apex = Name::parse("10.in-addr.arpa").unwrap();
        let [soa] =
            <[Record; 1]>::try_from(Kind::Empty.answer(&apex, apex.as_wire(), RecordType::SOA).unwrap()).unwrap();
        assert_eq!(soa.soa_minimum(), Some(Ttl::from_wire(10_800)));
    }
}
