//! Questions, records and answers: DNS as data, uncompressed.

mod data;
pub mod service;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

pub use self::data::{read_data, write_data};
use crate::name::Name;
use crate::net::Prefix;
use crate::time::Ttl;

/// A record type (RFC 1035 §3.2.2, IANA registry). Unknown types print as `TYPE731` (RFC 3597 §5).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordType(pub u16);

macro_rules! record_types {
    ($($name:ident = $value:literal $text:literal;)*) => {
        impl RecordType {
            $(#[doc = concat!("`", $text, "`, ", stringify!($value), ".")] pub const $name: Self = Self($value);)*
            /// Every type that has a mnemonic here.
            const KNOWN: &[(Self, &str)] = &[$((Self::$name, $text)),*];

            /// Its mnemonic, where it has one here.
            #[must_use]
            pub const fn mnemonic(self) -> Option<&'static str> {
                match self {
                    $(Self::$name => Some($text),)*
                    _ => None,
                }
            }
        }
    };
}

record_types! {
    A = 1 "A"; NS = 2 "NS"; CNAME = 5 "CNAME"; SOA = 6 "SOA"; NULL = 10 "NULL"; PTR = 12 "PTR"; HINFO = 13 "HINFO";
    MX = 15 "MX"; TXT = 16 "TXT"; RP = 17 "RP"; AFSDB = 18 "AFSDB"; SIG = 24 "SIG"; KEY = 25 "KEY"; AAAA = 28 "AAAA";
    LOC = 29 "LOC"; SRV = 33 "SRV"; NAPTR = 35 "NAPTR"; DNAME = 39 "DNAME"; OPT = 41 "OPT"; DS = 43 "DS";
    SSHFP = 44 "SSHFP"; RRSIG = 46 "RRSIG"; NSEC = 47 "NSEC"; DNSKEY = 48 "DNSKEY"; NSEC3 = 50 "NSEC3";
    NSEC3PARAM = 51 "NSEC3PARAM"; TLSA = 52 "TLSA"; SMIMEA = 53 "SMIMEA"; CDS = 59 "CDS"; CDNSKEY = 60 "CDNSKEY";
    OPENPGPKEY = 61 "OPENPGPKEY"; SVCB = 64 "SVCB"; HTTPS = 65 "HTTPS"; SPF = 99 "SPF"; TKEY = 249 "TKEY";
    TSIG = 250 "TSIG"; IXFR = 251 "IXFR"; AXFR = 252 "AXFR"; MAILB = 253 "MAILB"; MAILA = 254 "MAILA"; ANY = 255 "ANY";
    URI = 256 "URI"; CAA = 257 "CAA";
}

impl RecordType {
    /// True for types whose records hold an address that a client connects to.
    #[must_use]
    pub fn is_address(self) -> bool {
        self == Self::A || self == Self::AAAA
    }

    /// True for types whose records bind a service to where it is served (RFC 9460).
    #[must_use]
    pub fn is_service(self) -> bool {
        self == Self::HTTPS || self == Self::SVCB
    }
}

impl fmt::Display for RecordType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mnemonic() {
            Some(text) => f.write_str(text),
            None => write!(f, "TYPE{}", self.0),
        }
    }
}

impl fmt::Debug for RecordType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for RecordType {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let upper = text.to_ascii_uppercase();
        if let Some((known, _)) = Self::KNOWN.iter().find(|(_, known)| *known == upper) {
            return Ok(*known);
        }
        upper.strip_prefix("TYPE").and_then(|number| number.parse().ok()).map(Self).ok_or(())
    }
}

/// A response code (RFC 1035 §4.1.1, RFC 6891 §6.1.3).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rcode(pub u16);

impl Rcode {
    /// No error.
    pub const NOERROR: Self = Self(0);
    /// The query could not be read.
    pub const FORMERR: Self = Self(1);
    /// It failed here or upstream.
    pub const SERVFAIL: Self = Self(2);
    /// The name does not exist.
    pub const NXDOMAIN: Self = Self(3);
    /// Not an operation of ours.
    pub const NOTIMP: Self = Self(4);
    /// Not for this client.
    pub const REFUSED: Self = Self(5);
    /// An EDNS version other than 0.
    pub const BADVERS: Self = Self(16);
    /// The server cookie is not the server's (RFC 7873 §8).
    pub const BADCOOKIE: Self = Self(23);

    /// Its mnemonic, where it has one here.
    #[must_use]
    pub const fn mnemonic(self) -> Option<&'static str> {
        Some(match self.0 {
            0 => "NOERROR",
            1 => "FORMERR",
            2 => "SERVFAIL",
            3 => "NXDOMAIN",
            4 => "NOTIMP",
            5 => "REFUSED",
            6 => "YXDOMAIN",
            7 => "YXRRSET",
            8 => "NXRRSET",
            9 => "NOTAUTH",
            10 => "NOTZONE",
            16 => "BADVERS",
            23 => "BADCOOKIE",
            _ => return None,
        })
    }
}

impl fmt::Display for Rcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mnemonic() {
            Some(text) => f.write_str(text),
            None => write!(f, "RCODE{}", self.0),
        }
    }
}

impl fmt::Debug for Rcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Rcode {
    type Err = ();

    /// Reads what `Display` writes.
    fn from_str(text: &str) -> Result<Self, ()> {
        if let Some(number) = text.strip_prefix("RCODE") {
            return number.parse().map(Self).map_err(|_| ());
        }
        (0..=Self::BADCOOKIE.0).map(Self).find(|known| known.mnemonic() == Some(text)).ok_or(())
    }
}

/// An Extended DNS Error (RFC 8914): a registered code and a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtendedError {
    /// The INFO-CODE.
    pub code: u16,
    /// EXTRA-TEXT, UTF-8, may be empty.
    pub text: Box<str>,
}

impl ExtendedError {
    /// Other Error.
    pub const OTHER: u16 = 0;
    /// Stale Answer.
    pub const STALE: u16 = 3;
    /// Stale NXDOMAIN Answer.
    pub const STALE_NXDOMAIN: u16 = 19;
    /// Cached Error: it failed before, and was not tried again.
    pub const CACHED_ERROR: u16 = 13;
    /// Blocked: "on the operator's policy".
    pub const BLOCKED: u16 = 15;
    /// Filtered.
    pub const FILTERED: u16 = 17;
    /// Prohibited: this client may not ask here.
    pub const PROHIBITED: u16 = 18;
    /// Not Ready.
    pub const NOT_READY: u16 = 14;
    /// No Reachable Authority: every upstream failed to answer.
    pub const NO_REACHABLE_AUTHORITY: u16 = 22;
    /// Network Error.
    pub const NETWORK_ERROR: u16 = 23;
    /// 6: DNSSEC validation failed.
    pub const BOGUS: u16 = 6;

    /// A code with its sentence.
    #[must_use]
    pub fn new(code: u16, text: impl Into<Box<str>>) -> Self {
        Self { code, text: text.into() }
    }

    /// The name of its code (RFC 8914 §5.2), where that has one.
    #[must_use]
    pub fn title(&self) -> Option<&'static str> {
        const TITLES: [&str; 25] = [
            "Other Error",
            "Unsupported DNSKEY Algorithm",
            "Unsupported DS Digest Type",
            "Stale Answer",
            "Forged Answer",
            "DNSSEC Indeterminate",
            "DNSSEC Bogus",
            "Signature Expired",
            "Signature Not Yet Valid",
            "DNSKEY Missing",
            "RRSIGs Missing",
            "No Zone Key Bit Set",
            "NSEC Missing",
            "Cached Error",
            "Not Ready",
            "Blocked",
            "Censored",
            "Filtered",
            "Prohibited",
            "Stale NXDOMAIN Answer",
            "Not Authoritative",
            "Not Supported",
            "No Reachable Authority",
            "Network Error",
            "Invalid Data",
        ];
        TITLES.get(usize::from(self.code)).copied()
    }
}

/// What is asked, in class IN.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Question {
    /// The name, canonical.
    pub name: Name,
    /// The type.
    pub kind: RecordType,
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.kind)
    }
}

/// One record of class IN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The owner.
    pub name: Name,
    /// The type.
    pub kind: RecordType,
    /// As the source gave it.
    pub ttl: Ttl,
    /// RDATA in wire format, names in it uncompressed.
    pub data: Arc<[u8]>,
}

impl Record {
    /// The address of an A or AAAA record whose data has the right length.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        match self.kind {
            RecordType::A => <[u8; 4]>::try_from(&*self.data).ok().map(|octets| Ipv4Addr::from(octets).into()),
            RecordType::AAAA => <[u8; 16]>::try_from(&*self.data).ok().map(|octets| Ipv6Addr::from(octets).into()),
            _ => None,
        }
    }

    /// The name that a CNAME points to.
    #[must_use]
    pub fn target(&self) -> Option<Name> {
        (self.kind == RecordType::CNAME).then(|| Name::from_wire(&self.data).ok()).flatten()
    }

    /// The host that an MX or SRV record names (RFC 1035 §3.3.9, RFC 2782).
    #[must_use]
    pub fn host(&self) -> Option<Name> {
        let numbers = match self.kind {
            RecordType::MX => 2,
            RecordType::SRV => 6,
            _ => return None,
        };
        self.data.get(numbers..).and_then(|host| Name::from_wire(host).ok())
    }

    /// An A or AAAA record.
    #[must_use]
    pub fn of_address(name: Name, ttl: Ttl, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => {
                Self { name, kind: RecordType::A, ttl, data: Arc::from(address.octets().as_slice()) }
            }
            IpAddr::V6(address) => {
                Self { name, kind: RecordType::AAAA, ttl, data: Arc::from(address.octets().as_slice()) }
            }
        }
    }

    /// The type that an RRSIG signs (RFC 4034 §3.1.1).
    #[must_use]
    pub fn covers(&self) -> Option<RecordType> {
        let kind = self.data.first_chunk::<2>().filter(|_| self.kind == RecordType::RRSIG)?;
        Some(RecordType(u16::from_be_bytes(*kind)))
    }

    /// Whether an RRSIG signs a wildcard, of which its owner was made (RFC 4034 §3.1.3).
    #[must_use]
    pub fn signs_wildcard(&self) -> bool {
        let labels = self.data.get(3).filter(|_| self.kind == RecordType::RRSIG);
        labels.is_some_and(|labels| usize::from(*labels) < self.name.label_count())
    }

    /// The last field of an SOA: its MINIMUM, which bounds negative caching (RFC 2308 §4).
    #[must_use]
    pub fn soa_minimum(&self) -> Option<Ttl> {
        let tail = self.data.last_chunk::<4>().filter(|_| self.kind == RecordType::SOA)?;
        Some(Ttl::from_wire(u32::from_be_bytes(*tail)))
    }
}

/// Where an answer came from, and what that means for the private-address guard.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The zone's or upstream's name.
    pub name: Arc<str>,
    /// What its addresses may be.
    pub trust: AddressTrust,
}

/// Which guarded addresses an origin may hand out.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum AddressTrust {
    /// A local zone: the operator wrote the addresses, the guard is skipped.
    Zone,
    /// An upstream: these private prefixes and no others (`private` of `[[upstream]]`).
    Upstream(Arc<[Prefix]>),
}

/// A complete answer to one question, as its origin gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// NOERROR or NXDOMAIN; anything else is a failure and no `Answer`.
    pub rcode: Rcode,
    /// From a local zone.
    pub authoritative: bool,
    /// The answer section in order: the CNAME chain from the question's name, then the RRset.
    pub records: Vec<Record>,
    /// The SOA of a negative answer (RFC 2308).
    pub soa: Option<Record>,
    /// The origin's own extended error.
    pub ede: Option<ExtendedError>,
    /// Why it is what its zones signed; `None`: nobody says so.
    pub proof: Option<Arc<Proof>>,
    /// Who gave it.
    pub origin: Origin,
}

/// That an answer is authentic (RFC 4035 §3.2.3), with what a client needs to see it for itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proof {
    /// Besides the answer section's records: their RRSIGs, and the DNAMEs that CNAMEs were made from.
    pub answers: Vec<Record>,
    /// Besides a negative answer's SOA: its RRSIG, and what denies the name or type.
    pub authority: Vec<Record>,
}

impl Answer {
    /// The time this answer may be kept: the smallest TTL of its records; of a negative answer
    /// min(SOA TTL, SOA MINIMUM) (RFC 2308 §5) and its CNAMEs' TTLs; zero where there is neither.
    #[must_use]
    pub fn ttl(&self) -> Ttl {
        let negative = self.soa.as_ref().map(|soa| soa.ttl.min(soa.soa_minimum().unwrap_or(soa.ttl)));
        self.records.iter().map(|record| record.ttl).chain(negative).min().unwrap_or(Ttl::ZERO)
    }

    /// Whether it may be kept. RFC 2308 §5: "Negative responses without SOA records SHOULD NOT be cached as there is no
    /// way to prevent the negative responses looping forever between a pair of servers even with a short TTL."
    #[must_use]
    pub fn may_be_kept(&self) -> bool {
        self.soa.is_some() || self.rcode == Rcode::NOERROR && !self.records.is_empty()
    }

    /// Follows the CNAMEs of the answer section from `name`; the last name reached, and all names on the
    /// way without `name` itself. Ends at a loop.
    #[must_use]
    pub fn chain(&self, name: &Name) -> (Name, Vec<Name>) {
        let mut at = name.clone();
        let mut passed = Vec::new();
        while let Some(next) = self.records.iter().find(|record| record.name == at).and_then(Record::target) {
            if next == *name || passed.contains(&next) {
                break;
            }
            passed.push(next.clone());
            at = next;
        }
        (at, passed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_round_trip() {
        for text in ["A", "AAAA", "HTTPS", "TYPE731"] {
            assert_eq!(text.parse::<RecordType>().unwrap().to_string(), text);
        }
        assert_eq!("aaaa".parse(), Ok(RecordType::AAAA));
        assert_eq!("TYPE1".parse(), Ok(RecordType::A));
        "BOGUS".parse::<RecordType>().unwrap_err();
    }

    #[test]
    fn codes_round_trip() {
        for code in (0..30).chain([4095]).map(Rcode) {
            assert_eq!(code.to_string().parse(), Ok(code));
        }
        for text in ["", "noerror", "RCODE", "RCODEx"] {
            text.parse::<Rcode>().unwrap_err();
        }
    }

    #[test]
    fn a_chain_ends_at_a_loop() {
        let name = |text: &str| Name::parse(text).unwrap();
        let cname = |from: &str, to: &str| Record {
            name: name(from),
            kind: RecordType::CNAME,
            ttl: Ttl::from_wire(60),
            data: Arc::from(name(to).as_wire()),
        };
        let answer = Answer {
            rcode: Rcode::NOERROR,
            authoritative: false,
            records: vec![cname("a.example", "b.example"), cname("b.example", "a.example")],
            soa: None,
            ede: None,
            proof: None,
            origin: Origin { name: Arc::from("default"), trust: AddressTrust::Zone },
        };
        assert_eq!(answer.chain(&name("a.example")), (name("b.example"), vec![name("b.example")]));
        assert_eq!(answer.ttl().seconds(), 60);
    }
}
