//! A line being written: literal keys, and values that are escaped where they could need it.

use std::fmt::{self, Write};
use std::net::IpAddr;

use smallvec::SmallVec;

use super::figures;
use super::{CHANGED, ID, NAME, SERVICES};
use crate::name::{self, MAX_WIRE};
use crate::net::Services;
use crate::policy::Summary;
use crate::record::{self, Record};

/// A key behind another field, and the colon.
macro_rules! key {
    ($name:literal) => {
        concat!(",\"", $name, "\":")
    };
}

/// As [`key!`], with the quote that opens its value.
macro_rules! open {
    ($name:literal) => {
        concat!(",\"", $name, "\":\"")
    };
}

pub(super) use {key, open};

/// Appends to a buffer. Keys come as literals with their punctuation: see [`key!`] and [`open!`].
pub(in crate::audit::format) struct Line<'a>(pub(in crate::audit::format) &'a mut Vec<u8>);

impl Line<'_> {
    /// Text that needs no escape.
    #[inline(always)]
    pub(in crate::audit::format) fn raw(&mut self, text: &str) {
        self.0.extend_from_slice(text.as_bytes());
    }

    /// A value of ours in quotes, which needs no escape; `open` ends in the first quote.
    #[inline(always)]
    pub(super) fn word(&mut self, open: &str, word: &str) {
        self.raw(open);
        self.raw(word);
        self.0.push(b'"');
    }

    #[inline(always)]
    pub(in crate::audit::format) fn number(&mut self, key: &str, number: u64) {
        self.raw(key);
        figures::number(self.0, number);
    }

    /// Sixteen hex digits.
    pub(super) fn hex(&mut self, open: &str, number: u64) {
        self.raw(open);
        self.0.extend_from_slice(figures::hex(number.to_be_bytes()).as_flattened());
        self.0.push(b'"');
    }

    pub(super) fn address(&mut self, open: &str, address: IpAddr) {
        self.raw(open);
        figures::address(self.0, address);
        self.0.push(b'"');
    }

    /// A registered number's mnemonic, or a word with the number.
    pub(super) fn mnemonic(&mut self, open: &str, mnemonic: Option<&str>, other: &str, number: u16) {
        self.raw(open);
        match mnemonic {
            Some(mnemonic) => self.raw(mnemonic),
            None => {
                self.raw(other);
                figures::number(self.0, number.into());
            }
        }
        self.0.push(b'"');
    }

    /// A foreign string; what would take more than `cap` bytes is cut, which `…` shows.
    pub(in crate::audit::format) fn text(&mut self, open: &str, text: &str, cap: usize) {
        self.raw(open);
        if text.len() <= cap && is_plain(text.as_bytes()) {
            self.raw(text);
        } else {
            let end = self.0.len() + cap;
            if (Escape { out: self.0, end }).write_str(text).is_err() {
                self.raw("…");
            }
        }
        self.0.push(b'"');
    }

    pub(super) fn text_of(&mut self, open: &str, text: Option<&str>, cap: usize) {
        if let Some(text) = text {
            self.text(open, text, cap);
        }
    }

    /// A name in presentation format.
    pub(super) fn name(&mut self, open: &str, wire: &[u8]) {
        self.raw(open);
        let end = self.0.len() + NAME;
        // A name always has the room.
        let _ = self.name_until(wire, end);
        self.0.push(b'"');
    }

    fn name_until(&mut self, wire: &[u8], end: usize) -> fmt::Result {
        if self.plain_name(wire) { Ok(()) } else { name::write_presentation(wire, &mut Escape { out: self.0, end }) }
    }

    /// A name whose presentation is its labels and dots; false, and nothing written, where it is another one.
    fn plain_name(&mut self, wire: &[u8]) -> bool {
        let wire = if wire.len() > MAX_WIRE { &[] } else { wire };
        let Some((&first, Some((0, inner)))) = wire.split_first().map(|(first, rest)| (first, rest.split_last()))
        else {
            return false;
        };
        let start = self.0.len();
        self.0.extend_from_slice(inner);
        let text = self.0.get_mut(start..).unwrap_or_default();
        let (mut at, mut dots) = (usize::from(first), 0_u32);
        while let Some(length) = text.get_mut(at).filter(|length| **length > 0) {
            at += 1 + usize::from(*length);
            *length = b'.';
            dots += 1;
        }
        let plain = at == text.len() && text.iter().map(|octet| in_name(*octet)).sum::<u32>() == dots;
        if !plain {
            self.0.truncate(start);
        }
        plain
    }

    /// The items in brackets, with commas between them.
    pub(in crate::audit::format) fn list<T>(
        &mut self,
        open: &str,
        items: impl IntoIterator<Item = T>,
        mut write: impl FnMut(&mut Self, T),
    ) {
        self.raw(open);
        self.0.push(b'[');
        for (index, item) in items.into_iter().enumerate() {
            if index > 0 {
                self.0.push(b',');
            }
            write(self, item);
        }
        self.0.push(b']');
    }

    pub(super) fn services(&mut self, key: &str, services: &[Services]) {
        self.list(key, services.iter().take(SERVICES), |line, services| {
            let (protocol, first, last) = match *services {
                Services::Tcp(first, last) => ("\"tcp/", first, last),
                Services::Udp(first, last) => ("\"udp/", first, last),
                Services::Icmp => return line.raw("\"icmp\""),
                Services::Any => return line.raw("\"any\""),
            };
            line.number(protocol, first.into());
            if first != last {
                line.number("-", last.into());
            }
            line.0.push(b'"');
        });
        if let Some(omitted) = services.len().checked_sub(SERVICES).filter(|omitted| *omitted > 0) {
            self.number(key!("ports_omitted"), omitted as u64);
        }
    }

    /// What a reload changed.
    pub(super) fn changes(&mut self, changes: &Summary) {
        let Summary { segments, rules, names_added, names_removed } = changes;
        self.raw(key!("changes"));
        self.raw("{");
        let mut omitted = 0;
        for (open, ids) in [
            ("\"segments_added\":", &segments.added),
            ("\"segments_removed\":", &segments.removed),
            ("\"segments_changed\":", &segments.changed),
            ("\"rules_added\":", &rules.added),
            ("\"rules_removed\":", &rules.removed),
            ("\"rules_changed\":", &rules.changed),
        ] {
            if !ids.is_empty() {
                self.list(open, ids.iter().take(CHANGED), |line, id| line.text("\"", id, ID));
                self.raw(",");
                omitted += ids.len().saturating_sub(CHANGED);
            }
        }
        self.number("\"omitted\":", omitted as u64);
        self.number(key!("names_added"), *names_added);
        self.number(key!("names_removed"), *names_removed);
        self.raw("}");
    }

    /// An answer up to its TTL.
    ///
    /// # Errors
    /// The line would be longer than `end`, as for [`Line::answer_data`].
    pub(super) fn answer(&mut self, answer: &Record, end: usize) -> fmt::Result {
        self.raw("{\"name\":\"");
        self.name_until(answer.name.as_wire(), end)?;
        self.mnemonic("\",\"type\":\"", answer.kind.mnemonic(), "TYPE", answer.kind.0);
        self.raw(",\"ttl\":");
        Ok(())
    }

    /// An answer behind its TTL.
    pub(super) fn answer_data(&mut self, answer: &Record, end: usize) -> fmt::Result {
        self.raw(",\"data\":\"");
        match answer.address() {
            Some(address) => figures::address(self.0, address),
            None => record::write_data(answer, &mut Escape { out: self.0, end })?,
        }
        self.raw("\"}");
        if self.0.len() > end { Err(fmt::Error) } else { Ok(()) }
    }
}

/// Whether a byte stands for itself in a JSON string.
const fn is_safe(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') & (byte != b'"') & (byte != b'\\')
}

/// Of the octets of a name: 0 for one that stands for itself, 1 for a dot, more than all dots of a line together for any
/// other.
fn in_name(octet: u8) -> u32 {
    #[expect(clippy::indexing_slicing, reason = "out of bounds, it would not compile")]
    const TABLE: [u16; 256] = {
        let mut table = [u16::MAX; 256];
        let mut octet = b'!';
        while octet <= b'~' {
            if is_safe(octet) {
                table[octet as usize] = (octet == b'.') as u16;
            }
            octet += 1;
        }
        table
    };
    TABLE.get(usize::from(octet)).map_or(u32::MAX, |weight| u32::from(*weight))
}

/// Without an early end, so that it is done many bytes at a time.
fn is_plain(text: &[u8]) -> bool {
    text.iter().fold(true, |plain, byte| plain & is_safe(*byte))
}

/// Writes the inside of a JSON string, up to `end`, then fails.
struct Escape<'a> {
    out: &'a mut Vec<u8>,
    end: usize,
}

impl Escape<'_> {
    fn push(&mut self, bytes: &[u8]) -> fmt::Result {
        if self.out.len() + bytes.len() > self.end {
            return Err(fmt::Error);
        }
        self.out.extend_from_slice(bytes);
        Ok(())
    }
}

impl Write for Escape<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if is_plain(text.as_bytes()) && self.out.len() + text.len() <= self.end {
            return self.push(text.as_bytes());
        }
        text.chars().try_for_each(|c| self.write_char(c))
    }

    fn write_char(&mut self, c: char) -> fmt::Result {
        match c {
            '"' => self.push(b"\\\""),
            '\\' => self.push(b"\\\\"),
            ' '..='~' => self.push(&[u8::try_from(c).unwrap_or(b'?')]),
            c if is_hidden(c) => {
                // Both halves of a surrogate pair or none: one alone is not JSON (RFC 8259 §8.2).
                let mut escaped: SmallVec<[u8; 12]> = SmallVec::new();
                for unit in c.encode_utf16(&mut [0; 2]) {
                    escaped.extend_from_slice(b"\\u");
                    escaped.extend_from_slice(figures::hex(unit.to_be_bytes()).as_flattened());
                }
                self.push(&escaped)
            }
            c => self.push(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

/// Characters that change how the rest of a line is shown, or are not shown: C0, DEL, C1, line and paragraph
/// separators, zero-width characters, and those that turn the writing direction (Unicode UAX #9 §2).
/// In the file they are escaped, so that the file itself is safe to look at.
pub(in crate::audit) const fn is_hidden(c: char) -> bool {
    matches!(c,
        '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
        | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::NameBuf;
    use proptest::prelude::*;

    #[test]
    fn a_cut_never_parts_a_surrogate_pair() {
        for room in 0..40 {
            let mut out = Vec::new();
            let _ = Escape { out: &mut out, end: room }.write_str("a\u{e0001}\u{e0001}\u{e0001}");
            let text = format!("\"{}\"", String::from_utf8(out).unwrap());
            assert!(serde_json::from_str::<String>(&text).is_ok(), "{text}");
        }
    }

    /// Octets that lengths, dots and escapes are made of.
    fn octet() -> impl Strategy<Value = u8> {
        prop_oneof![b'a'..=b'z', Just(b'.'), Just(b'"'), Just(b'\\'), Just(b' '), 0..=63_u8, any::<u8>()]
    }

    proptest! {
        #[test]
        fn a_name_is_its_presentation(
            labels in prop::collection::vec(prop::collection::vec(octet(), 1..=63), 0..5),
            plain in prop::collection::vec("[!-~]{1,40}", 0..5),
            // What is behind the root is of no name.
            bytes in prop::collection::vec(octet(), 0..40).prop_filter("the root", |bytes| !bytes.starts_with(&[0, 0])),
        ) {
            let mut name = NameBuf::new();
            for label in labels.iter().map(Vec::as_slice).chain(plain.iter().map(String::as_bytes)) {
                let _ = name.push_label(label);
            }
            for wire in [&*name, &bytes] {
                let mut presentation = String::new();
                name::write_presentation(wire, &mut presentation).unwrap();
                let mut out = b"{".to_vec();
                Line(&mut out).name("\"", wire);
                out.remove(0);
                prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), presentation);
            }
        }
    }
}
