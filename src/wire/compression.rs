//! Compression of the names of a reply (RFC 1035 §4.1.4), with a bound on the work and not on the matches alone
//! (CVE-2024-8508).

use smallvec::SmallVec;

use super::HEADER;
use crate::name::ancestors;

/// Names that later ones may point to.
const MAX_KNOWN: usize = 64;
/// Look-ups in a message, each over at most [`MAX_KNOWN`] names; later names are written in full. An answer of
/// 100 records with a common owner takes 100.
const MAX_LOOKUPS: usize = 512;
/// A pointer has 14 bits.
const MAX_OFFSET: usize = 0x3fff;

/// The names written so far.
pub(super) struct Compressor<'a> {
    known: SmallVec<[(&'a [u8], u16); MAX_KNOWN]>,
    lookups: usize,
}

impl<'a> Compressor<'a> {
    /// Knows the question's name, which stands after the header.
    pub(super) fn new(question: &'a [u8]) -> Self {
        let mut new = Self { known: SmallVec::new(), lookups: 0 };
        for suffix in ancestors(question).take_while(|suffix| suffix.len() > 1) {
            new.learn(suffix, HEADER + question.len() - suffix.len());
        }
        new
    }

    /// Appends `name` to `out`, whose first octet stands at offset `base` of the message.
    pub(super) fn push_name(&mut self, out: &mut Vec<u8>, base: usize, name: &'a [u8]) {
        for suffix in ancestors(name).take_while(|suffix| suffix.len() > 1) {
            if let Some(offset) = self.find(suffix) {
                out.extend_from_slice(&(0xc000 | offset).to_be_bytes());
                return;
            }
            self.learn(suffix, base + out.len());
            let label = suffix.first().map_or(0, |&length| usize::from(length));
            out.extend_from_slice(suffix.get(..=label).unwrap_or_default());
        }
        out.push(0);
    }

    fn find(&mut self, suffix: &[u8]) -> Option<u16> {
        if self.lookups == MAX_LOOKUPS {
            return None;
        }
        self.lookups += 1;
        self.known.iter().find(|(known, _)| *known == suffix).map(|(_, offset)| *offset)
    }

    fn learn(&mut self, suffix: &'a [u8], offset: usize) {
        if let (Ok(short), true) = (u16::try_from(offset), offset <= MAX_OFFSET && self.known.len() < MAX_KNOWN) {
            self.known.push((suffix, short));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::Name;

    #[test]
    fn writes_names_in_full_once_its_lookups_are_spent() {
        let name = Name::parse("example.org").unwrap();
        let mut names = Compressor::new(name.as_wire());
        let mut out = Vec::new();
        for index in 0..=MAX_LOOKUPS {
            out.clear();
            names.push_name(&mut out, HEADER, name.as_wire());
            assert_eq!(out.len(), if index < MAX_LOOKUPS { 2 } else { name.as_wire().len() });
        }
    }

    #[test]
    fn knows_no_more_names_than_its_cap_and_none_beyond_a_pointers_reach() {
        let name = Name::parse(&"a.".repeat(100)).unwrap();
        assert_eq!(Compressor::new(name.as_wire()).known.len(), MAX_KNOWN);

        let (near, far) = (Name::parse("near").unwrap(), Name::parse("far").unwrap());
        let mut names = Compressor::new(&[0]);
        let mut out = Vec::new();
        names.push_name(&mut out, 0x3fff, near.as_wire());
        names.push_name(&mut out, 0x3fff, far.as_wire());
        out.clear();
        names.push_name(&mut out, 0, near.as_wire());
        names.push_name(&mut out, 0, far.as_wire());
        assert_eq!(out, b"\xff\xff\x03far\x00");
    }
}
