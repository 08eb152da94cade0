//! RDATA as text, for people: written and read.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use data_encoding::HEXLOWER_PERMISSIVE;

use super::service::Service;
use super::{Record, RecordType};
use crate::name::Name;

/// RDATA as the log shows it: addresses and names plainly, MX and SRV with their numbers before, HTTPS and SVCB as
/// [`Service`] is shown, anything else as `\# LENGTH HEX` (RFC 3597 §5).
pub fn write_data(record: &Record, out: &mut impl fmt::Write) -> fmt::Result {
    if let Some(address) = record.address() {
        return write!(out, "{address}");
    }
    if let Some(host) = record.host() {
        let numbers = record.data.get(..record.data.len() - host.as_wire().len()).unwrap_or_default();
        for number in numbers.as_chunks().0 {
            write!(out, "{} ", u16::from_be_bytes(*number))?;
        }
        return write!(out, "{host}");
    }
    if let (true, Ok(service)) = (record.kind.is_service(), Service::read(&record.data)) {
        return write!(out, "{service}");
    }
    if let (true, Ok(name)) = (is_name(record.kind), Name::from_wire(&record.data)) {
        return write!(out, "{name}");
    }
    write!(out, "\\# {}", record.data.len())?;
    if !record.data.is_empty() {
        out.write_char(' ')?;
    }
    record.data.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
}

/// The RDATA that [`write_data`] shows as this text; `None` where it shows none so.
#[must_use]
pub fn read_data(kind: RecordType, text: &str) -> Option<Vec<u8>> {
    if let Some(generic) = text.strip_prefix("\\# ") {
        let (length, hex) = generic.split_once(' ').unwrap_or((generic, ""));
        let data = HEXLOWER_PERMISSIVE.decode(hex.as_bytes()).ok()?;
        return (length.parse() == Ok(data.len())).then_some(data);
    }
    match kind {
        RecordType::A => text.parse().ok().map(|address: Ipv4Addr| address.octets().to_vec()),
        RecordType::AAAA => text.parse().ok().map(|address: Ipv6Addr| address.octets().to_vec()),
        RecordType::MX => numbered(text, 1),
        RecordType::SRV => numbered(text, 3),
        kind if is_name(kind) => numbered(text, 0),
        kind if kind.is_service() => Service::parse(text).map(|service| {
            let mut data = Vec::new();
            service.write(&mut data);
            data
        }),
        _ => None,
    }
}

/// Whether the data is one name.
fn is_name(kind: RecordType) -> bool {
    matches!(kind, RecordType::CNAME | RecordType::NS | RecordType::PTR | RecordType::DNAME)
}

/// So many numbers, then a name.
fn numbered(text: &str, numbers: usize) -> Option<Vec<u8>> {
    let mut words = text.split(' ');
    let mut data = Vec::new();
    for _ in 0..numbers {
        data.extend(words.next()?.parse::<u16>().ok()?.to_be_bytes());
    }
    data.extend_from_slice(Name::parse(words.next()?).ok()?.as_wire());
    words.next().is_none().then_some(data)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::time::Ttl;

    fn shown(kind: RecordType, data: &[u8]) -> String {
        let mut text = String::new();
        write_data(&Record { name: Name::root(), kind, ttl: Ttl::ZERO, data: Arc::from(data) }, &mut text).unwrap();
        text
    }

    #[test]
    fn data_is_shown_as_people_write_it() {
        let host = Name::parse("mail.example").unwrap();
        let rows = [
            (RecordType::MX, b"\0\x0a".as_slice(), "10 mail.example"),
            (RecordType::SRV, b"\0\x01\0\x02\x01\xbb", "1 2 443 mail.example"),
            (RecordType::NS, b"", "mail.example"),
            (RecordType::HTTPS, b"\0\x01", "1 mail.example"),
            (RecordType::TXT, b"", r"\# 14 046d61696c076578616d706c6500"),
            // What has not the form of its type.
            (RecordType::MX, b"\0", r"\# 15 00046d61696c076578616d706c6500"),
            (RecordType::SVCB, b"\0", r"\# 15 00046d61696c076578616d706c6500"),
        ];
        for (kind, before, expected) in rows {
            let data = [before, host.as_wire()].concat();
            assert_eq!(shown(kind, &data), expected, "{kind}");
            assert_eq!(read_data(kind, expected), Some(data), "{kind}");
        }
    }

    #[test]
    fn what_is_no_data_is_not_read() {
        let rows = [
            (RecordType::A, "2001:db8::1"),
            (RecordType::A, ""),
            (RecordType::AAAA, "192.0.2.1"),
            (RecordType::MX, "mail.example"),
            (RecordType::MX, "65536 mail.example"),
            (RecordType::MX, "10 mail.example more"),
            (RecordType::CNAME, "a..example"),
            (RecordType::TXT, "text"),
            (RecordType::TXT, r"\# 2 01"),
            (RecordType::TXT, r"\# 1 0"),
            (RecordType::HTTPS, "1"),
            (RecordType::HTTPS, "1 . port"),
            (RecordType::HTTPS, "1 . port=65536"),
            (RecordType::HTTPS, "1 . colour=00"),
        ];
        for (kind, text) in rows {
            assert_eq!(read_data(kind, text), None, "{kind} {text}");
        }
    }

    /// Names of any octets, wire format.
    fn name() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop::collection::vec(any::<u8>(), 1..12), 0..5).prop_map(|labels| {
            let labels = labels.iter().flat_map(|label| std::iter::once(label.len() as u8).chain(label.clone()));
            labels.chain([0]).collect::<Vec<u8>>().to_ascii_lowercase()
        })
    }

    proptest! {
        /// Names in data are in lower case wherever data comes from.
        #[test]
        fn what_is_shown_is_read(
            number in prop::sample::select(vec![1_u16, 2, 5, 12, 15, 16, 28, 33, 39, 64, 65, 731]),
            junk in prop::collection::vec(any::<u8>(), 0..40),
            name in name(),
            parameters in prop::collection::btree_map(0_u16..9, prop::collection::vec(any::<u8>(), 0..34), 0..6),
        ) {
            let (kind, junk) = (RecordType(number), junk.to_ascii_lowercase());
            let mut service = [b"\0\x01".as_slice(), &name].concat();
            for (key, value) in &parameters {
                service.extend([key.to_be_bytes(), (value.len() as u16).to_be_bytes()].as_flattened());
                service.extend(value);
            }
            let numbers = [junk.get(..2), junk.get(..6)].map(Option::unwrap_or_default);
            let forms = [
                name.clone(),
                numbers.map(|numbers| [numbers, &name].concat()).concat(),
                [numbers[0], &name].concat(),
                [numbers[1], &name].concat(),
                service,
                junk,
            ];
            for data in forms {
                prop_assert_eq!(read_data(kind, &shown(kind, &data)), Some(data.clone()), "{}", shown(kind, &data));
            }
        }

        #[test]
        fn foreign_text_does_no_harm(number in 0_u16..70, text in "(\\\\# )?[ -~]{0,40}") {
            let _ = read_data(RecordType(number), &text);
        }
    }
}
