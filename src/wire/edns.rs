//! EDNS (RFC 6891): the OPT record and the options that we read and write: Extended DNS Errors (RFC 8914), client subnet
//! (RFC 7871) where a forwarder names its clients by it, cookies (RFC 7873) and, on streams, keepalive (RFC 7828) and padding (RFC 7830).

use std::time::Duration;

use super::cookie::read_cookie;
use super::reader::{RawRecord, Reader};
use super::{Echo, Fault, TCP_LIMIT, UDP_SIZE, UDP_SIZE_PLAIN, Written};
use crate::record::{ExtendedError, Rcode, RecordType};

/// An OPT record without options: root, type, class, TTL, length.
const OPT_LENGTH: usize = 11;
/// The option code of an Extended DNS Error, its length field and INFO-CODE: 6 octets before the text.
const EDE_HEAD: usize = 6;

const DNSSEC_OK: u16 = 0x8000;
pub(super) const OPTION_SUBNET: u16 = 8;
pub(super) const OPTION_COOKIE: u16 = 10;
const OPTION_KEEPALIVE: u16 = 11;
const OPTION_PADDING: u16 = 12;
const OPTION_EDE: u16 = 15;

/// An option's code and length.
pub(super) const OPTION_HEAD: usize = 4;

/// RFC 8467 §4.1: a server "SHOULD pad the corresponding response to a multiple of 468 octets".
const BLOCK: usize = 468;

/// What a client said of itself in its OPT record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edns {
    /// The datagram that it takes, within 512..=1232.
    pub size: u16,
    /// DO: it wants DNSSEC records.
    pub dnssec_ok: bool,
    /// It wants to know how long a connection may be idle.
    pub keepalive: bool,
    /// It padded its query.
    pub padding: bool,
}

/// What a stream's reply can say that a datagram's must not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamOptions {
    /// How long the connection may be idle; `None`: something else than DNS keeps it.
    pub idle: Option<Duration>,
    /// Nobody on the way can read it, but anybody can measure it.
    pub encrypted: bool,
}

/// The data of a client's options, as in [`Echo`].
#[derive(Default)]
pub(super) struct Told<'a> {
    pub(super) subnet: Option<&'a [u8]>,
    pub(super) cookie: Option<&'a [u8]>,
}

/// An OPT record as it stands.
pub(super) struct Opt<'a> {
    pub(super) size: u16,
    pub(super) rcode_high: u8,
    pub(super) version: u8,
    pub(super) dnssec_ok: bool,
    options: &'a [u8],
}

impl<'a> Opt<'a> {
    pub(super) fn from_record(record: &RawRecord<'a>) -> Self {
        let [rcode_high, version, high, low] = record.ttl.to_be_bytes();
        Self {
            size: record.class,
            rcode_high,
            version,
            dnssec_ok: u16::from_be_bytes([high, low]) & DNSSEC_OK != 0,
            options: record.data,
        }
    }

    /// As a client's, its options not read. RFC 6891 §6.2.3: "Values lower than 512 MUST be treated as equal to 512."
    pub(super) fn client(&self) -> Edns {
        let size = self.size.clamp(UDP_SIZE_PLAIN, UDP_SIZE);
        Edns { size, dnssec_ok: self.dnssec_ok, keepalive: false, padding: false }
    }

    /// Each option's code and data; checks that they fill the record.
    pub(super) fn options(&self) -> impl Iterator<Item = Result<(u16, &'a [u8]), Fault>> {
        let mut reader = Reader::new(self.options);
        std::iter::from_fn(move || {
            (!reader.is_at_end()).then(|| {
                let option = (|| {
                    let (code, length) = (reader.u16()?, reader.u16()?);
                    Ok((code, reader.take(length.into())?))
                })();
                if option.is_err() {
                    reader = Reader::new(&[]);
                }
                option.map_err(|_: Fault| Fault::OptLength)
            })
        })
    }

    /// Reads what a client's options ask for; the others are passed over (RFC 6891 §6.1.2).
    pub(super) fn read_options(&self, edns: &mut Edns) -> Result<Told<'a>, Fault> {
        let Told { mut subnet, mut cookie } = Told::default();
        for option in self.options() {
            match option? {
                (OPTION_KEEPALIVE, _) => edns.keepalive = true,
                (OPTION_PADDING, _) => edns.padding = true,
                // Who sends two leaves open which one counts: no data is no option's.
                (OPTION_SUBNET, data) => subnet = Some(if subnet.is_none() { data } else { &[] }),
                (OPTION_COOKIE, data) if cookie.is_none() => cookie = Some(read_cookie(data)?),
                _ => {}
            }
        }
        Ok(Told { subnet, cookie })
    }

    /// The first Extended DNS Error, its text made valid UTF-8.
    pub(super) fn extended_error(&self) -> Option<ExtendedError> {
        let (_, data) = self.options().flatten().find(|(code, _)| *code == OPTION_EDE)?;
        let (code, text) = data.split_first_chunk::<2>()?;
        // RFC 8914 §2: "EXTRA-TEXT may be null terminated but MUST NOT be assumed to be".
        let text = text.strip_suffix(b"\0").unwrap_or(text);
        Some(ExtendedError::new(u16::from_be_bytes(*code), String::from_utf8_lossy(text)))
    }
}

/// The octets that [`push_opt`] appends.
pub(super) const fn opt_length(ede: Option<(u16, &str)>) -> usize {
    match ede {
        Some((_, text)) => OPT_LENGTH + EDE_HEAD + text.len(),
        None => OPT_LENGTH,
    }
}

/// Appends our OPT record: version 0, our size, at most one option.
#[inline]
pub(super) fn push_opt(out: &mut Vec<u8>, rcode_high: u8, dnssec_ok: bool, ede: Option<(u16, &str)>) {
    let ([kind, kind_low], [size, size_low]) = (RecordType::OPT.0.to_be_bytes(), UDP_SIZE.to_be_bytes());
    let [flags, _] = if dnssec_ok { DNSSEC_OK } else { 0 }.to_be_bytes();
    let [length, length_low] = length_field(ede.map_or(0, |(_, text)| EDE_HEAD + text.len()));
    out.extend_from_slice(&[0, kind, kind_low, size, size_low, rcode_high, 0, flags, 0, length, length_low]);
    if let Some((code, text)) = ede {
        let ([option, option_low], [code, code_low]) = (OPTION_EDE.to_be_bytes(), code.to_be_bytes());
        let [length, length_low] = length_field(2 + text.len());
        out.extend_from_slice(&[option, option_low, length, length_low, code, code_low]);
        out.extend_from_slice(text.as_bytes());
    }
}

/// Adds to the reply that ends `out` what its query asks of a stream.
///
/// RFC 7828 §3.3.2: a server may "include the edns-tcp-keepalive option in the response to signal the expected idle
/// timeout on a connection". RFC 7830 §4: "Responders MUST pad DNS responses when the respective DNS query included
/// the "Padding" option"; what anybody can read is not worth padding.
pub fn extend(out: &mut Vec<u8>, written: Written, echo: &Echo<'_>, options: StreamOptions) -> Written {
    let Some(edns) = echo.edns.filter(|edns| edns.keepalive || edns.padding) else { return written };
    let start = out.len() - written.len;
    let room = |out: &Vec<u8>| TCP_LIMIT.saturating_sub(out.len() - start);
    if let Some(idle) = options.idle.filter(|_| edns.keepalive && room(out) >= OPTION_HEAD + 2) {
        // In units of 100 milliseconds.
        let idle = u16::try_from(idle.as_millis() / 100).unwrap_or(u16::MAX);
        out.extend_from_slice(&OPTION_KEEPALIVE.to_be_bytes());
        out.extend_from_slice(&length_field(2));
        out.extend_from_slice(&idle.to_be_bytes());
    }
    if options.encrypted && edns.padding && room(out) >= OPTION_HEAD {
        out.extend_from_slice(&OPTION_PADDING.to_be_bytes());
        let length = out.len() + 2 - start;
        let padded = length.next_multiple_of(BLOCK).min(TCP_LIMIT);
        out.extend_from_slice(&length_field(padded - length));
        out.resize(start + padded, 0);
    }
    ended(out, written, start)
}

/// The reply that began at `start` after options were added to its OPT, which is the last record of every reply.
pub(super) fn ended(out: &mut [u8], written: Written, start: usize) -> Written {
    let len = out.len() - start;
    let options = written.options + len - written.len;
    // The length field stands before the options.
    let field = out.len().checked_sub(options + 2);
    if let Some(field) = field.and_then(|field| out.get_mut(field..field + 2)) {
        field.copy_from_slice(&length_field(options));
    }
    Written { len, options, ..written }
}

/// Pads a query that ends with an OPT record without options to a multiple of `block` octets (RFC 7830).
pub fn pad_query(query: &mut Vec<u8>, block: usize) {
    let padding = (query.len() + OPTION_HEAD).next_multiple_of(block) - query.len() - OPTION_HEAD;
    begin_option(query, OPTION_PADDING, padding);
    query.resize(query.len() + padding, 0);
}

/// Shows a cookie (RFC 7873 §4) in a query that ends with an OPT record without options.
pub fn show_cookie(query: &mut Vec<u8>, client: [u8; 8], server: &[u8]) {
    begin_option(query, OPTION_COOKIE, client.len() + server.len());
    query.extend_from_slice(&client);
    query.extend_from_slice(server);
}

/// The head of the one option of a query's OPT.
fn begin_option(query: &mut Vec<u8>, code: u16, length: usize) {
    if let Some(field) = query.last_chunk_mut::<2>() {
        *field = length_field(OPTION_HEAD + length);
    }
    query.extend_from_slice(&code.to_be_bytes());
    query.extend_from_slice(&length_field(length));
}

/// What is seen of a message without reading its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Glance<'a> {
    /// All 12 bits.
    pub rcode: Rcode,
    /// The data of its first COOKIE option, of whatever length.
    pub cookie: Option<&'a [u8]>,
}

/// Passes over a message to its OPT. `None`: it has no three whole sections behind one question.
#[must_use]
pub fn glance(message: &[u8]) -> Option<Glance<'_>> {
    let mut reader = Reader::new(message);
    reader.u16().ok()?;
    let flags = reader.u16().ok()?;
    let [questions, records @ ..] = [reader.u16(), reader.u16(), reader.u16(), reader.u16()].map(Result::ok);
    if questions != Some(1) {
        return None;
    }
    reader.skip_name().and_then(|_| reader.take(4)).ok()?;
    let mut seen = Glance { rcode: Rcode(flags & 0xf), cookie: None };
    for _ in 0..records.into_iter().flatten().map(usize::from).sum() {
        reader.skip_name().ok()?;
        let record = reader.record().ok()?;
        if RecordType(record.kind) == RecordType::OPT {
            let opt = Opt::from_record(&record);
            seen.rcode = Rcode(u16::from(opt.rcode_high) << 4 | flags & 0xf);
            seen.cookie = opt.options().flatten().find(|(code, _)| *code == OPTION_COOKIE).map(|(_, data)| data);
        }
    }
    Some(seen)
}

/// A length on the wire. The caller has checked that the reply stays under its limit, so it fits.
pub(super) fn length_field(length: usize) -> [u8; 2] {
    u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Record;
    use crate::time::Ttl;
    use crate::wire::{Canonical, parse, parse_message, write_refusal};

    const TLS: StreamOptions = StreamOptions { idle: Some(Duration::from_secs(10)), encrypted: true };
    const TCP: StreamOptions = StreamOptions { encrypted: false, ..TLS };
    const HTTPS: StreamOptions = StreamOptions { idle: None, ..TLS };

    /// A query for a.example.org with an OPT of these options, or none.
    fn query(options: Option<&[u8]>) -> Vec<u8> {
        let header = [0x1234, 0x0100, 1, 0, 0, u16::from(options.is_some())].map(u16::to_be_bytes).concat();
        let opt = options.map_or_else(Vec::new, |options| {
            let length = u16::try_from(options.len()).unwrap().to_be_bytes();
            [b"\0\0\x29\x04\xd0\0\0\0\0".as_slice(), &length, options].concat()
        });
        [&header, b"\x01a\x07example\x03org\0\0\x01\0\x01".as_slice(), &opt].concat()
    }

    /// The options of a message that ends with its OPT: code, data.
    fn options(message: &[u8]) -> Vec<(u16, Vec<u8>)> {
        let mut reader = Reader::new(message);
        reader.take(12 + 19).unwrap();
        let count = u16::from_be_bytes([message[8], message[9]]) + u16::from_be_bytes([message[6], message[7]]);
        for _ in 0..count {
            reader.skip_name().unwrap();
            reader.record().unwrap();
        }
        reader.skip_name().unwrap();
        let record = reader.record().unwrap();
        assert!(reader.is_at_end());
        Opt::from_record(&record)
            .options()
            .map(|option| option.map(|(code, data)| (code, data.to_vec())).unwrap())
            .collect()
    }

    const KEEPALIVE: &[u8] = b"\0\x0b\0\0";
    const PADDING: &[u8] = b"\0\x0c\0\x03\0\0\0";

    #[test]
    #[expect(clippy::type_complexity, reason = "a table")]
    fn says_what_was_asked_for_where_it_may() {
        let both = [KEEPALIVE, PADDING].concat();
        let rows: [(&str, Option<&[u8]>, StreamOptions, &[u16]); 9] = [
            ("no EDNS", None, TLS, &[]),
            ("nothing is asked", Some(b""), TLS, &[15]),
            ("an option of no concern", Some(b"\0\x64\0\x01x"), TLS, &[15]),
            ("keepalive", Some(KEEPALIVE), TLS, &[15, 11]),
            ("keepalive in clear", Some(KEEPALIVE), TCP, &[15, 11]),
            ("keepalive over HTTP", Some(KEEPALIVE), HTTPS, &[15]),
            ("padding", Some(PADDING), TLS, &[15, 12]),
            ("padding in clear", Some(PADDING), TCP, &[15]),
            ("both", Some(&both), TLS, &[15, 11, 12]),
        ];
        let ede = ExtendedError::new(ExtendedError::BLOCKED, "no rule allows this name");
        for (reason, asked, stream, expected) in rows {
            let packet = query(asked);
            let mut canonical = Canonical::new();
            let echo = parse(&packet, &mut canonical).unwrap().echo;
            let mut out = b"before".to_vec();
            let plain = write_refusal(&mut out, &echo, Rcode::NXDOMAIN, Some(&ede), TCP_LIMIT);
            let before = parse_message(&out[6..]).unwrap();
            let written = extend(&mut out, plain, &echo, stream);
            let message = out.split_off(6);
            assert_eq!(out, b"before");
            assert_eq!(written.len, message.len(), "{reason}");
            assert_eq!(parse_message(&message).as_ref(), Ok(&before), "{reason}: all else is the same");
            let found = if asked.is_some() { options(&message) } else { Vec::new() };
            assert_eq!(found.iter().map(|(code, _)| *code).collect::<Vec<_>>(), expected, "{reason}");
            for (code, data) in found {
                match code {
                    11 => assert_eq!(data, [0, 100], "10 s in units of 100 ms"),
                    12 => assert!(message.len() == 468 && data.iter().all(|octet| *octet == 0)),
                    _ => {}
                }
            }
        }
    }

    #[test]
    fn pads_to_blocks_and_never_past_the_largest_message() {
        let both = [KEEPALIVE, PADDING].concat();
        let packet = query(Some(&both));
        let mut canonical = Canonical::new();
        let query = parse(&packet, &mut canonical).unwrap();
        // 12 + 19 + 12 + 11 octets around one record's data; keepalive takes 6, an empty padding 4.
        for (reason, data, expected) in [
            ("one block", 468 - 64, 468),
            ("one octet more", 469 - 64, 936),
            ("the last whole block", 65_520 - 64, 65_520),
            ("a part of a block", 65_521 - 64, 65_535),
            ("no room for padding", 65_536 - 64, 65_532),
            ("no room for keepalive", 65_530 - 54, 65_535),
            ("no room for either", 65_535 - 54, 65_535),
            ("truncated", 65_536 - 54, 468),
        ] {
            let record = Record {
                name: query.question().name,
                kind: RecordType::TXT,
                ttl: Ttl::ZERO,
                data: vec![0; data].into(),
            };
            let template = crate::wire::Template::new(&query.question(), Rcode::NOERROR, false, &[record], None, None);
            let mut out = Vec::new();
            let plain = template.write(&mut out, &query.echo, Ttl::ZERO, TCP_LIMIT);
            let written = extend(&mut out, plain, &query.echo, TLS);
            assert_eq!((written.len, out.len()), (expected, expected), "{reason}");
            assert!(parse_message(&out).is_ok(), "{reason}");
        }
    }
}
