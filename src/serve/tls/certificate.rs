//! What a certificate says of itself that neither rustls nor its verifier tells: how long it is valid, and of whom.

use std::net::IpAddr;

use crate::name::Name;
use crate::time::Wall;

const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const OBJECT: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
/// The explicit tag of the version, which certificates of version 1 lack.
const VERSION: u8 = 0xa0;
/// The explicit tag of the extensions.
const EXTENSIONS: u8 = 0xa3;
/// subjectAltName, 2.5.29.17, and three kinds of names in it (RFC 5280 §4.2.1.6).
const ALTERNATIVE_NAMES: &[u8] = &[0x55, 0x1d, 0x11];
const DNS_NAME: u8 = 0x82;
const URI: u8 = 0x86;
const IP_ADDRESS: u8 = 0x87;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Certificate {
    pub(super) not_before: Wall,
    pub(super) not_after: Wall,
    /// The names of hosts in it; wildcards are left out.
    pub(super) names: Vec<Name>,
    /// The URIs in it.
    pub(super) uris: Vec<Box<str>>,
    /// The addresses in it.
    pub(super) addresses: Vec<IpAddr>,
}

impl Certificate {
    /// Reads DER; `None`: it is not a certificate.
    ///
    /// RFC 5280 §4.1: `Certificate ::= SEQUENCE { tbsCertificate SEQUENCE { version [0] OPTIONAL, serialNumber INTEGER,
    /// signature SEQUENCE, issuer SEQUENCE, validity SEQUENCE { notBefore Time, notAfter Time }, subject SEQUENCE,
    /// subjectPublicKeyInfo SEQUENCE, …, extensions [3] OPTIONAL }, … }`
    pub(super) fn read(certificate: &[u8]) -> Option<Self> {
        let mut fields = Der(Der(Der(certificate).take(SEQUENCE)?).take(SEQUENCE)?);
        if fields.0.first() == Some(&VERSION) {
            fields.take(VERSION)?;
        }
        fields.take(INTEGER)?;
        fields.take(SEQUENCE)?;
        fields.take(SEQUENCE)?;
        let mut validity = Der(fields.take(SEQUENCE)?);
        let (not_before, not_after) = (validity.time()?, validity.time()?);
        let mut found = Self { not_before, not_after, names: Vec::new(), uris: Vec::new(), addresses: Vec::new() };
        while let Some((tag, contents)) = fields.next() {
            if tag == EXTENSIONS {
                found.read_names(Der(Der(contents).take(SEQUENCE)?));
            }
        }
        Some(found)
    }

    /// `Extension ::= SEQUENCE { extnID OBJECT IDENTIFIER, critical BOOLEAN DEFAULT FALSE, extnValue OCTET STRING }`
    fn read_names(&mut self, mut extensions: Der<'_>) -> Option<()> {
        loop {
            let mut extension = Der(extensions.take(SEQUENCE)?);
            if extension.take(OBJECT)? != ALTERNATIVE_NAMES {
                continue;
            }
            if extension.0.first() == Some(&BOOLEAN) {
                extension.take(BOOLEAN)?;
            }
            let mut names = Der(Der(extension.take(OCTET_STRING)?).take(SEQUENCE)?);
            while let Some((tag, name)) = names.next() {
                match tag {
                    DNS_NAME if !name.starts_with(b"*") => {
                        let name = std::str::from_utf8(name).ok().and_then(|name| Name::parse(name).ok());
                        self.names.extend(name);
                    }
                    URI => self.uris.extend(std::str::from_utf8(name).ok().map(Box::from)),
                    IP_ADDRESS => {
                        let four = <[u8; 4]>::try_from(name).map(IpAddr::from);
                        let six = || <[u8; 16]>::try_from(name).map(IpAddr::from);
                        self.addresses.extend(four.or_else(|_| six()));
                    }
                    _ => {}
                }
            }
        }
    }
}

/// Elements of DER one after the other.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The contents of the next element, if it has this tag.
    fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        let (found, contents) = self.next()?;
        (found == tag).then_some(contents)
    }

    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let ([tag, first], mut rest) = self.0.split_first_chunk::<2>()?;
        let mut length = usize::from(*first);
        if length >= 0x80 {
            let octets;
            (octets, rest) = rest.split_at_checked(length - 0x80)?;
            length = octets
                .iter()
                .try_fold(0, |length: usize, octet| length.checked_mul(0x100)?.checked_add(usize::from(*octet)))?;
        }
        let contents;
        (contents, self.0) = rest.split_at_checked(length)?;
        Some((*tag, contents))
    }

    /// RFC 5280 §4.1.2.5: always in UTC and with seconds, `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ`.
    fn time(&mut self) -> Option<Wall> {
        let (tag, text) = self.next()?;
        let digits = text.strip_suffix(b"Z")?;
        let (year, rest) = match tag {
            UTC_TIME => {
                let (year, rest) = digits.split_at_checked(2)?;
                let year = number(year)?;
                // "Where YY is greater than or equal to 50, the year SHALL be interpreted as 19YY".
                (if year >= 50 { 1900 + year } else { 2000 + year }, rest)
            }
            GENERALIZED_TIME => {
                let (year, rest) = digits.split_at_checked(4)?;
                (number(year)?, rest)
            }
            _ => return None,
        };
        let (pairs, []) = rest.as_chunks::<2>() else { return None };
        let [month, day, hour, minute, second] = pairs else { return None };
        let of_day = (number(hour)? * 60 + number(minute)?) * 60 + number(second)?;
        Some(Wall::from_civil(year, number(month)?, number(day)?, of_day))
    }
}

fn number(digits: &[u8]) -> Option<i64> {
    digits.iter().try_fold(0, |number, digit| digit.is_ascii_digit().then(|| number * 10 + i64::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    fn certificate(from: (i32, u8, u8), until: (i32, u8, u8)) -> Vec<u8> {
        let mut params = CertificateParams::new(["dns.example.org".to_owned()]).unwrap();
        params.not_before = date_time_ymd(from.0, from.1, from.2);
        params.not_after = date_time_ymd(until.0, until.1, until.2);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn reads_both_kinds_of_time() {
        let rows = [
            ((1975, 1, 1), "1975-01-01T00:00:00.000000Z", (2049, 12, 31), "2049-12-31T00:00:00.000000Z"),
            ((2024, 2, 29), "2024-02-29T00:00:00.000000Z", (2050, 1, 1), "2050-01-01T00:00:00.000000Z"),
            ((1949, 6, 1), "1970-01-01T00:00:00.000000Z", (9999, 12, 31), "9999-12-31T00:00:00.000000Z"),
        ];
        for (from, first, until, last) in rows {
            let Certificate { not_before, not_after, .. } = Certificate::read(&certificate(from, until)).unwrap();
            assert_eq!((not_before.to_string().as_str(), not_after.to_string().as_str()), (first, last));
        }
    }

    #[test]
    fn reads_the_names_of_hosts_and_addresses() {
        let names = ["*.example.org", "dns.example.org", "192.0.2.1", "2001:db8::1", "ns1.example.net"];
        let params = CertificateParams::new(names.map(str::to_owned)).unwrap();
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let found = Certificate::read(certificate.der()).unwrap();
        let names: Vec<_> = found.names.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["dns.example.org", "ns1.example.net"]);
        assert_eq!(found.uris, []);
        assert_eq!(found.addresses, ["192.0.2.1", "2001:db8::1"].map(|address| address.parse::<IpAddr>().unwrap()));
    }

    #[test]
    fn a_cut_certificate_has_none() {
        let whole = certificate((2024, 1, 1), (2034, 1, 1));
        for length in 0..whole.len() {
            assert_eq!(Certificate::read(&whole[..length]), None, "{length}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..64), change in any::<(prop::sample::Index, u8)>()) {
            let _ = Certificate::read(&bytes);
            let mut certificate = certificate((2024, 1, 1), (2034, 1, 1));
            let at = change.0.index(certificate.len());
            certificate[at] = change.1;
            let _ = Certificate::read(&certificate);
        }
    }
}
