//! EDNS (RFC 6891): the OPT record, and the one option we read and write, Extended DNS Errors (RFC 8914).

use super::reader::{RawRecord, Reader};
use super::{Fault, UDP_SIZE, UDP_SIZE_PLAIN};
use crate::record::{ExtendedError, RecordType};

/// An OPT record without options: root, type, class, TTL, length.
const OPT_LENGTH: usize = 11;
/// The option code of an Extended DNS Error, its length field and INFO-CODE: 6 octets before the text.
const EDE_HEAD: usize = 6;

const DNSSEC_OK: u16 = 0x8000;
const OPTION_EDE: u16 = 15;

/// What a client said of itself in its OPT record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edns {
    /// The datagram that it takes, within 512..=1232.
    pub size: u16,
    /// DO: it wants DNSSEC records.
    pub dnssec_ok: bool,
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

    /// As a client's. RFC 6891 §6.2.3: "Values lower than 512 MUST be treated as equal to 512."
    pub(super) fn client(&self) -> Edns {
        Edns { size: self.size.clamp(UDP_SIZE_PLAIN, UDP_SIZE), dnssec_ok: self.dnssec_ok }
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

/// A length on the wire. The caller has checked that the reply stays under its limit, so it fits.
fn length_field(length: usize) -> [u8; 2] {
    u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes()
}
