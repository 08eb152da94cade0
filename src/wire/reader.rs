//! A cursor over a packet that cannot leave it, and the reading of names.

use super::{Fault, HEADER};
use crate::name::{MAX_WIRE, NameBuf};

/// The most compression pointers that one name may take.
const MAX_HOPS: usize = 32;

/// A position in a packet: the octets from there to its end.
#[derive(Clone)]
pub(super) struct Reader<'a> {
    packet: &'a [u8],
    rest: &'a [u8],
}

/// A record after its owner: type, class and TTL as they stand, and its RDATA.
pub(super) struct RawRecord<'a> {
    pub(super) kind: u16,
    pub(super) class: u16,
    pub(super) ttl: u32,
    pub(super) data: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) const fn new(packet: &'a [u8]) -> Self {
        Self { packet, rest: packet }
    }

    /// At an offset of `packet`; at its end where it is shorter.
    fn at(packet: &'a [u8], offset: usize) -> Self {
        Self { packet, rest: packet.get(offset..).unwrap_or_default() }
    }

    /// At the question section of a packet that has a header.
    pub(super) fn after_header(packet: &'a [u8]) -> Self {
        Self::at(packet, HEADER)
    }

    /// The offset of the next octet.
    pub(super) const fn position(&self) -> usize {
        self.packet.len() - self.rest.len()
    }

    pub(super) const fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }

    /// The octets from `start`, a reader's place before, to here.
    pub(super) fn since(&self, start: &Self) -> &'a [u8] {
        start.rest.get(..start.rest.len() - self.rest.len()).unwrap_or_default()
    }

    /// The octets from here to the end.
    pub(super) const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(super) fn take(&mut self, length: usize) -> Result<&'a [u8], Fault> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(Fault::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(Fault::Truncated)?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Fault> {
        self.array().map(u8::from_be_bytes)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Fault> {
        self.array().map(u16::from_be_bytes)
    }

    /// A cursor at the start of `data`, which ends here: it cannot read past `data`, and may follow pointers to
    /// before it.
    pub(super) fn back_to_start_of(&self, data: &[u8]) -> Self {
        let packet = self.packet.get(..self.position()).unwrap_or_default();
        Self::at(packet, packet.len().saturating_sub(data.len()))
    }

    /// A name that may not be compressed, as it stands: complete, at most [`MAX_WIRE`] octets.
    pub(super) fn plain_name(&mut self) -> Result<&'a [u8], Fault> {
        let mut length = 0;
        // The root's octet is still to come.
        while length < MAX_WIRE {
            let label = *self.rest.get(length).ok_or(Fault::Truncated)?;
            length += 1 + usize::from(label);
            match label {
                0 => return self.take(length),
                1..=63 => {}
                64..=0xbf => return Err(Fault::Label),
                0xc0.. => return Err(Fault::Pointer),
            }
        }
        Err(Fault::NameTooLong)
    }

    /// A name that may be compressed (RFC 1035 §4.1.4). Each pointer must lead before the run of labels that
    /// it ends: so offsets only fall, and a loop cannot be written.
    pub(super) fn name(&mut self) -> Result<NameBuf, Fault> {
        let mut name = NameBuf::new();
        let mut reader = self.clone();
        let mut run = reader.position();
        let mut resume = None;
        for _ in 0..=MAX_HOPS {
            let pointer = loop {
                let length = reader.u8()?;
                match length {
                    0 => {
                        self.rest = resume.unwrap_or(reader.rest);
                        return Ok(name);
                    }
                    1..=63 => push(&mut name, reader.take(length.into())?)?,
                    0xc0.. => break usize::from(length & 0x3f) << 8 | usize::from(reader.u8()?),
                    64..=0xbf => return Err(Fault::Label),
                }
            };
            if pointer >= run || pointer < HEADER {
                return Err(Fault::PointerLoop);
            }
            resume.get_or_insert(reader.rest);
            reader = Self::at(self.packet, pointer);
            run = pointer;
        }
        Err(Fault::PointerLoop)
    }

    /// Passes over a name without following its pointer; how many octets it takes here.
    pub(super) fn skip_name(&mut self) -> Result<usize, Fault> {
        let start = self.clone();
        loop {
            match self.u8()? {
                0 => break,
                length @ 1..=63 => drop(self.take(length.into())?),
                0xc0.. => {
                    self.u8()?;
                    break;
                }
                64..=0xbf => return Err(Fault::Label),
            }
        }
        let length = self.since(&start).len();
        if length > MAX_WIRE { Err(Fault::NameTooLong) } else { Ok(length) }
    }

    /// What follows a record's owner.
    pub(super) fn record(&mut self) -> Result<RawRecord<'a>, Fault> {
        let [kind, kind_low, class, class_low, ttl @ .., length, length_low] = self.array::<10>()?;
        Ok(RawRecord {
            kind: u16::from_be_bytes([kind, kind_low]),
            class: u16::from_be_bytes([class, class_low]),
            ttl: u32::from_be_bytes(ttl),
            data: self.take(u16::from_be_bytes([length, length_low]).into())?,
        })
    }
}

/// The label is known to have 1 to 63 octets.
fn push(name: &mut NameBuf, label: &[u8]) -> Result<(), Fault> {
    name.push_label(label).map_err(|_| Fault::NameTooLong)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads the name at offset `at` of a packet whose octets from 12 on are `body`.
    fn name_at(body: &[u8], at: usize) -> Result<(String, usize), Fault> {
        let mut packet = vec![0; HEADER];
        packet.extend_from_slice(body);
        let mut reader = Reader::new(&packet);
        reader.take(at)?;
        let name = reader.name()?;
        Ok((name.to_name().to_string(), reader.position()))
    }

    #[test]
    #[expect(clippy::type_complexity, reason = "a table")]
    fn follows_pointers_backwards_only() {
        let rows: [(&str, &[u8], usize, Result<(&str, usize), Fault>); 9] = [
            ("no pointer", b"\x01a\x00", 12, Ok(("a", 15))),
            ("a suffix", b"\x01a\x00\x01b\xc0\x0c", 15, Ok(("b.a", 19))),
            ("a pointer to a pointer", b"\x01a\x00\xc0\x0c\xc0\x0f", 17, Ok(("a", 19))),
            ("to itself", b"\xc0\x0c", 12, Err(Fault::PointerLoop)),
            ("to the label before it", b"\x01a\xc0\x0c", 12, Err(Fault::PointerLoop)),
            ("forward", b"\xc0\x0e\x00", 12, Err(Fault::PointerLoop)),
            ("into the header", b"\xc0\x00", 12, Err(Fault::PointerLoop)),
            ("half a pointer", b"\xc0", 12, Err(Fault::Truncated)),
            ("an extended label", b"\x41\x00", 12, Err(Fault::Label)),
        ];
        for (reason, body, at, expected) in rows {
            assert_eq!(name_at(body, at), expected.map(|(name, end)| (name.to_owned(), end)), "{reason}");
        }
    }

    #[test]
    fn takes_thirty_two_pointers_and_no_more() {
        let chain = |hops: usize| {
            let mut body = vec![0];
            for hop in 0..hops {
                let target = if hop == 0 { HEADER } else { HEADER + 1 + 2 * (hop - 1) };
                body.extend([0xc0, u8::try_from(target).unwrap()]);
            }
            name_at(&body, HEADER + 1 + 2 * (hops - 1))
        };
        assert_eq!(chain(32).unwrap().0, ".");
        assert_eq!(chain(33), Err(Fault::PointerLoop));
    }
}
