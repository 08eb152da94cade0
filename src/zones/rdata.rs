//! Record data from text to wire, one table of formats for the types that a zone file is made of.
//!
//! Everything the table does not name goes to hickory's reader (HTTPS, SVCB, OPENPGPKEY, CERT, …), or is written
//! `\# LENGTH HEX` (RFC 3597 §5). Names are encoded uncompressed and in lower case.

use hickory_proto::rr::RData;
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder, NameEncoding};
use hickory_proto::serialize::txt::parse_ttl;

use super::entry::{Fault, Token};
use crate::name::{Name, NameBuf, NameError};
use crate::record::RecordType;

/// One field of a type's text.
#[derive(Clone, Copy)]
enum Field {
    V4,
    V6,
    Name,
    U8,
    U16,
    U32,
    /// Seconds, with units: `1h30m`.
    Seconds,
    /// One character string, its length before it.
    Text,
    /// One character string or more, to the end.
    Texts,
    /// One string to the end of the data, without a length.
    Tail,
    /// Hexadecimal digits to the end, blanks between them.
    Hex,
}

/// The formats: RFC 1035 §3.3, RFC 1183, RFC 3596, RFC 2782, RFC 3403, RFC 4255, RFC 6698, RFC 7553, RFC 8659.
const fn fields(kind: RecordType) -> Option<&'static [Field]> {
    use Field::{Hex, Name, Seconds, Tail, Text, Texts, U8, U16, U32, V4, V6};
    Some(match kind {
        RecordType::A => &[V4],
        RecordType::AAAA => &[V6],
        RecordType::NS | RecordType::CNAME | RecordType::PTR => &[Name],
        RecordType::SOA => &[Name, Name, U32, Seconds, Seconds, Seconds, Seconds],
        RecordType::MX | RecordType::AFSDB => &[U16, Name],
        RecordType::RP => &[Name, Name],
        RecordType::SRV => &[U16, U16, U16, Name],
        RecordType::TXT | RecordType::SPF => &[Texts],
        RecordType::HINFO => &[Text, Text],
        RecordType::NAPTR => &[U16, U16, Text, Text, Text, Name],
        RecordType::CAA => &[U8, Text, Tail],
        RecordType::SSHFP => &[U8, U8, Hex],
        RecordType::TLSA | RecordType::SMIMEA => &[U8, U8, U8, Hex],
        RecordType::URI => &[U16, U16, Tail],
        _ => return None,
    })
}

impl Field {
    const fn is(self) -> &'static str {
        match self {
            Self::V4 => "an IPv4 address",
            Self::V6 => "an IPv6 address",
            Self::Name => "a domain name",
            Self::U8 => "a number from 0 to 255",
            Self::U16 => "a number from 0 to 65535",
            Self::U32 => "a number from 0 to 4294967295",
            Self::Seconds => "a time in seconds or like 1h30m",
            Self::Text | Self::Texts | Self::Tail => "a character string",
            Self::Hex => "hexadecimal digits",
        }
    }

    /// Appends what `token` means.
    fn encode(self, token: Token<'_>, origin: &Name, data: &mut Vec<u8>) -> Result<(), Fault> {
        let wrong = || {
            let fact = format!("\"{}\" is not {}", token.raw, self.is());
            Fault::new(token.at, fact, format!("write {} here", self.is()))
        };
        match self {
            Self::V4 => {
                data.extend(token.raw.parse::<std::net::Ipv4Addr>().map_err(|_| wrong())?.octets());
            }
            Self::V6 => {
                data.extend(token.raw.parse::<std::net::Ipv6Addr>().map_err(|_| wrong())?.octets());
            }
            Self::Name => data.extend_from_slice(name(token, origin)?.as_wire()),
            Self::U8 => data.push(token.raw.parse().map_err(|_| wrong())?),
            Self::U16 => data.extend(token.raw.parse::<u16>().map_err(|_| wrong())?.to_be_bytes()),
            Self::U32 => data.extend(token.raw.parse::<u32>().map_err(|_| wrong())?.to_be_bytes()),
            Self::Seconds => data.extend(parse_ttl(token.raw).map_err(|_| wrong())?.to_be_bytes()),
            Self::Text | Self::Texts => {
                let octets = octets(token)?;
                let length = u8::try_from(octets.len()).map_err(|_| {
                    let fact = format!("a character string of {} octets; 255 is the most", octets.len());
                    Fault::new(token.at, fact, "split it: \"first part\" \"second part\"; readers join the parts")
                })?;
                data.push(length);
                data.extend(octets);
            }
            Self::Tail => data.extend(octets(token)?),
            Self::Hex => data.extend(hex(token.raw).ok_or_else(wrong)?),
        }
        Ok(())
    }
}

/// Record data in wire form from its tokens; `end` is where a missing token would stand.
pub(super) fn read(kind: RecordType, tokens: &[Token<'_>], origin: &Name, end: usize) -> Result<Vec<u8>, Fault> {
    let generic = tokens.split_first().filter(|(first, _)| first.raw == r"\#" && !first.quoted);
    let data = match (fields(kind), generic) {
        (None, None) => by_hickory(kind, tokens, origin, end)?,
        (None, Some((mark, rest))) => read_generic(*mark, rest)?,
        (Some(_), Some((mark, _))) => {
            let fact = format!("{kind} has a format of its own; \\# is for unknown types");
            return Err(Fault::new(mark.at, fact, format!("write the data as {kind} is written")));
        }
        (Some(fields), None) => by_fields(kind, fields, tokens, origin, end)?,
    };
    if data.len() > usize::from(u16::MAX) {
        return Err(Fault::new(
            end,
            format!("the data is {} octets long; 65535 is the most", data.len()),
            "shorten it",
        ));
    }
    Ok(data)
}

fn by_fields(
    kind: RecordType,
    fields: &[Field],
    tokens: &[Token<'_>],
    origin: &Name,
    end: usize,
) -> Result<Vec<u8>, Fault> {
    let mut data = Vec::new();
    let mut tokens = tokens.iter();
    for field in fields {
        let token = tokens
            .next()
            .ok_or_else(|| Fault::new(end, format!("the data of {kind} ends early"), format!("add {}", field.is())))?;
        field.encode(*token, origin, &mut data)?;
        if matches!(field, Field::Texts | Field::Hex) {
            tokens.by_ref().try_for_each(|token| field.encode(*token, origin, &mut data))?;
        }
    }
    match tokens.next() {
        None => Ok(data),
        Some(extra) => {
            let fact = format!("\"{}\" is more than {kind} holds", extra.raw);
            Err(Fault::new(extra.at, fact, "remove it, or put text with blanks in quotes"))
        }
    }
}

/// `\# LENGTH HEX` after its mark (RFC 3597 §5).
fn read_generic(mark: Token<'_>, rest: &[Token<'_>]) -> Result<Vec<u8>, Fault> {
    let parsed = rest.split_first().and_then(|(length, digits)| {
        let digits: String = digits.iter().map(|token| token.raw).collect();
        let data = hex(&digits)?;
        (length.raw.parse() == Ok(data.len())).then_some(data)
    });
    parsed.ok_or_else(|| {
        Fault::new(
            mark.at,
            r"after \# stand the length and that many octets in hexadecimal digits",
            r"write e.g. \# 2 c0a8",
        )
    })
}

/// The types that the table does not name. Hickory resolves no relative name in them, so the target of HTTPS and
/// SVCB is made absolute first; their parameters are sorted (RFC 9460 §2.2: "SHALL appear in increasing numeric
/// order").
fn by_hickory(kind: RecordType, tokens: &[Token<'_>], origin: &Name, end: usize) -> Result<Vec<u8>, Fault> {
    let at = tokens.first().map_or(end, |token| token.at);
    let service = matches!(kind, RecordType::SVCB | RecordType::HTTPS);
    let mut text = String::new();
    for (index, token) in tokens.iter().enumerate() {
        match (token.quoted, service && index == 1 && token.raw != ".") {
            (_, true) => text.push_str(&format!("{}. ", name(*token, origin)?)),
            (true, _) => text.push_str(&format!("\"{}\" ", token.raw)),
            (false, _) => text.push_str(&format!("{} ", token.raw)),
        }
    }
    let wrong = |error: &dyn std::fmt::Display| {
        let remedy = format!(r"correct it, or write the data as {kind} \# LENGTH HEX (RFC 3597)");
        Fault::new(at, format!("the data of {kind} cannot be read: {error}"), remedy)
    };
    let mut data = RData::try_from_str(kind.0.into(), &text).map_err(|error| wrong(&error))?;
    if let RData::SVCB(service) | RData::HTTPS(hickory_proto::rr::rdata::HTTPS(service)) = &mut data {
        service.svc_params.sort_by_key(|(key, _)| u16::from(*key));
    }
    let mut wire = Vec::new();
    let mut encoder = BinEncoder::new(&mut wire);
    encoder.set_name_encoding(NameEncoding::UncompressedLowercase);
    data.emit(&mut encoder).map_err(|error| wrong(&error))?;
    Ok(wire)
}

/// A domain name: `@` is the origin, a name without a final dot is relative to it.
pub(super) fn name(token: Token<'_>, origin: &Name) -> Result<Name, Fault> {
    if token.raw == "@" && !token.quoted {
        return Ok(origin.clone());
    }
    let escaped = |raw: &str| raw.bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 1;
    let absolute = token.raw.strip_suffix('.').is_some_and(|before| !escaped(before));
    let read = || -> Result<Name, NameError> {
        let written = Name::parse(token.raw)?;
        if absolute {
            return Ok(written);
        }
        let mut whole = NameBuf::new();
        written.labels().chain(origin.labels()).try_for_each(|label| whole.push_label(label))?;
        Ok(whole.to_name())
    };
    read().map_err(|error| {
        let fact = format!("\"{}\" is not a domain name: {error}", token.raw);
        Fault::new(token.at, fact, "write a name like www, www.example.org. or @")
    })
}

fn octets(token: Token<'_>) -> Result<Vec<u8>, Fault> {
    token.octets().ok_or_else(|| {
        let fact = format!("{} in \"{}\"", NameError::BadEscape, token.raw);
        Fault::new(token.at, fact, r"write \\ for a backslash")
    })
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    text.as_bytes()
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => Some(digit(high)? << 4 | digit(low)?),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::entry::Entries;
    use super::*;
    use crate::record::{Record, write_data};
    use proptest::prelude::*;

    /// `TYPE data` → the data as the log shows it, but numbers with names by their octets; or `column: fact`.
    fn data(text: &str) -> String {
        let entry = Entries::new(text, 0).next().unwrap().unwrap();
        let (first, rest) = entry.tokens.split_first().unwrap();
        let kind: RecordType = first.raw.parse().unwrap();
        let name = Name::parse("example.org").unwrap();
        match read(kind, rest, &name, entry.end) {
            Ok(data) => {
                let mut text = String::new();
                let mixed = matches!(kind, RecordType::MX | RecordType::SRV) || kind.is_service();
                let kind = if mixed { RecordType(65_280) } else { kind };
                let record = Record { name, kind, ttl: crate::time::Ttl::ZERO, data: data.into() };
                write_data(&record, &mut text).unwrap();
                text
            }
            Err(fault) => format!("{}: {}", fault.at, fault.fact),
        }
    }

    #[test]
    fn every_format_encodes() {
        let host = "026e31076578616d706c65036f726700"; // n1.example.org
        let rows = [
            ("A 192.0.2.1", "192.0.2.1".to_owned()),
            ("AAAA 2001:db8::1", "2001:db8::1".to_owned()),
            ("CNAME www", "www.example.org".to_owned()),
            ("CNAME @", "example.org".to_owned()),
            ("PTR WWW.Example.NET.", "www.example.net".to_owned()),
            (r"NS a\.b\065.", r"a\.ba".to_owned()),
            (r"NS a\.", r"a\..example.org".to_owned()),
            ("MX 10 n1", format!(r"\# 18 000a{host}")),
            ("SRV 1 2 443 n1", format!(r"\# 22 0001000201bb{host}")),
            ("SOA n1 n1 7 1h 15m 1w 1h30m", format!(r"\# 52 {host}{host}0000000700000e100000038400093a8000001518")),
            (r#"TXT "a b" c"#, r"\# 6 03612062 0163".to_owned()),
            (r#"TXT ( "v=DKIM1; " "p=\"x\"" )"#, r"\# 16 09763d444b494d313b2005703d227822".to_owned()),
            (r"TXT \195\169 é", r"\# 6 02c3a902c3a9".to_owned()),
            (r#"TXT """#, r"\# 1 00".to_owned()),
            (r#"HINFO "PC" x"#, r"\# 5 02504301 78".to_owned()),
            (r#"CAA 0 issue "ca.example; x""#, r"\# 20 00056973737565 63612e6578616d706c653b2078".to_owned()),
            (r#"NAPTR 1 2 "u" "" "!^.*$!\\1!" ."#, r"\# 18 00010002017500 09215e2e2a24215c3121 00".to_owned()),
            ("SSHFP 4 2 ( abCD 01 )", r"\# 5 0402abcd01".to_owned()),
            ("TLSA 3 1 1 ff", r"\# 4 030101ff".to_owned()),
            ("URI 1 2 \"https://a\"", r"\# 13 0001000268747470733a2f2f61".to_owned()),
            // RFC 9460 §2.2: alpn (1) before port (3) before ipv4hint (4), however they are written.
            (
                r#"HTTPS 1 n1 ipv4hint=192.0.2.1 port=8443 alpn="h2,h3""#,
                format!(r"\# 42 0001{host}0001000602683202683300030002 20fb00040004c0000201"),
            ),
            ("HTTPS 0 .", r"\# 3 000000".to_owned()),
            ("SVCB 1 @ alpn=h2", r"\# 22 0001076578616d706c65036f72670000010003026832".to_owned()),
            (r"TYPE65280 \# 3 abcd 01", r"\# 3 abcd01".to_owned()),
            (r"TYPE65280 \# 0", r"\# 0".to_owned()),
        ];
        for (text, expected) in rows {
            assert_eq!(data(text).replace(' ', ""), expected.replace(' ', ""), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_where_it_is() {
        let long = format!("TXT \"ok\" \"{}\"", "x".repeat(256));
        let rows = [
            ("A 192.0.2", "2: \"192.0.2\" is not an IPv4 address"),
            ("AAAA 192.0.2.1", "5: \"192.0.2.1\" is not an IPv6 address"),
            ("A 192.0.2.1 192.0.2.2", "12: \"192.0.2.2\" is more than A holds"),
            ("MX mail", "3: \"mail\" is not a number from 0 to 65535"),
            ("MX 10 ; none", "5: the data of MX ends early"),
            ("TXT", "3: the data of TXT ends early"),
            (
                r"TXT ok \300",
                r#"7: a backslash must be followed by three digits up to 255 or by one character in "\300""#,
            ),
            (&long, "9: a character string of 256 octets; 255 is the most"),
            ("CNAME a..b", "6: \"a..b\" is not a domain name: it has an empty label"),
            ("SSHFP 4 2 abc", "10: \"abc\" is not hexadecimal digits"),
            (r"A \# 4 c0000201", r"2: A has a format of its own; \# is for unknown types"),
            (r"TYPE65280 \# 3 abcd", r"10: after \# stand the length and that many octets in hexadecimal digits"),
            (
                "HTTPS 1 . ipv4hint=192.0.2",
                "6: the data of HTTPS cannot be read: network address parse error: invalid IPv4 address syntax",
            ),
            ("LOC 1 2 3", "4: the data of LOC cannot be read: unsupported RecordType: Unknown"),
        ];
        for (text, expected) in rows {
            assert_eq!(data(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(kind in 0u16..300, text in "[a-c0-9 .@=,\"\\\\#\u{e9}-]{0,40}") {
            let origin = Name::root();
            for entry in Entries::new(&text, 0).flatten() {
                let _ = read(RecordType(kind), &entry.tokens, &origin, entry.end);
            }
        }

        #[test]
        fn service_parameters_never_panic(text in "(alpn|port|ipv4hint|key[0-9]{1,5}|mandatory|ech|no-default-alpn)(=[a-c0-9.,\"\\\\]{0,9})?") {
            for kind in [RecordType::HTTPS, RecordType::SVCB] {
                for entry in Entries::new(&format!("1 . {text}"), 0).flatten() {
                    let _ = read(kind, &entry.tokens, &Name::root(), entry.end);
                }
            }
        }
    }
}
