//! Figures: numbers, times, addresses and ids as text. They are on every query's path, so `core::fmt` is not in them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::audit::RecordId;
use crate::time::Wall;

/// Appends the first `length` octets of `text`: a copy of constant length and a cut are cheaper than a copy of an
/// unknown one.
fn front<const N: usize>(out: &mut Vec<u8>, text: &[u8; N], length: usize) {
    let end = out.len() + length;
    out.extend_from_slice(text);
    out.truncate(end);
}

/// Decimal.
pub(super) fn number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Every octet in lower-case hex.
#[expect(clippy::indexing_slicing, reason = "out of bounds, it would not compile")]
const HEX: [[u8; 2]; 256] = {
    let digits = b"0123456789abcdef";
    let mut table = [[0; 2]; 256];
    let mut octet = 0;
    while octet < 256 {
        table[octet] = [digits[octet / 16], digits[octet % 16]];
        octet += 1;
    }
    table
};

/// The octets in hex, the first one first.
pub(super) fn hex<const N: usize>(octets: [u8; N]) -> [[u8; 2]; N] {
    octets.map(|octet| *HEX.get(usize::from(octet)).unwrap_or(b"00"))
}

/// What [`RecordId`] displays.
pub(super) fn id(out: &mut Vec<u8>, id: RecordId) {
    out.extend_from_slice(hex(id.boot.to_be_bytes()).as_flattened());
    out.push(b'-');
    number(out, id.shard.into());
    out.push(b'-');
    number(out, id.sequence);
}

/// Writes times as [`Wall`] displays them. Keeps the last one up to its second: many that follow are of the same, and
/// nearly all of the same day.
pub(super) struct Calendar {
    day: u64,
    second: u64,
    /// `2026-11-21T03:53:04.`
    text: [u8; 20],
}

impl Calendar {
    pub(super) const fn new() -> Self {
        // No time is that late.
        Self { day: u64::MAX, second: u64::MAX, text: [0; 20] }
    }

    pub(super) fn write(&mut self, out: &mut Vec<u8>, at: Wall) {
        let second = at.0 / 1_000_000;
        if second != self.second && !self.turn(second) {
            // A year of five digits.
            out.extend_from_slice(at.to_string().as_bytes());
            return;
        }
        let micros = (at.0 % 1_000_000) as u32;
        let [[a, b], [c, d], [e, f]] = [micros / 10_000, micros / 100 % 100, micros % 100].map(pair);
        out.extend_from_slice(&self.text);
        out.extend_from_slice(&[a, b, c, d, e, f, b'Z']);
    }

    /// Turns to a second; false where it has no room.
    fn turn(&mut self, second: u64) -> bool {
        let day = second / 86_400;
        if day != self.day {
            let text = Wall(second * 1_000_000).to_string();
            match text.as_bytes().split_first_chunk() {
                Some((text, b"000000Z")) => (self.day, self.text) = (day, *text),
                _ => return false,
            }
        }
        let of_day = (second % 86_400) as u32;
        let [[a, b], [c, d], [e, f]] = [of_day / 3600, of_day / 60 % 60, of_day % 60].map(pair);
        if let Some(time) = self.text.last_chunk_mut() {
            *time = [a, b, b':', c, d, b':', e, f, b'.'];
        }
        self.second = second;
        true
    }
}

/// Every number below 100 as two digits.
#[expect(clippy::indexing_slicing, reason = "out of bounds, it would not compile")]
const PAIRS: [[u8; 2]; 100] = {
    let mut table = [[0; 2]; 100];
    let mut number = 0;
    while number < 100 {
        table[number] = [b'0' + (number / 10) as u8, b'0' + (number % 10) as u8];
        number += 1;
    }
    table
};

fn pair(number: u32) -> [u8; 2] {
    *PAIRS.get(number as usize).unwrap_or(b"00")
}

/// What the address displays.
pub(super) fn address(out: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(address) => four(out, address),
        IpAddr::V6(address) => match address.to_ipv4_mapped() {
            Some(address) => {
                out.extend_from_slice(b"::ffff:");
                four(out, address);
            }
            None => six(out, address),
        },
    }
}

/// Every octet as its digits and a dot, the first digit lowest, and their length in bits.
#[expect(clippy::indexing_slicing, reason = "out of bounds, it would not compile")]
const OCTETS: [(u32, u32); 256] = {
    let mut table = [(0, 0); 256];
    let mut octet = 0;
    while octet < 256 {
        let digits = [b'0' + (octet / 100) as u8, b'0' + (octet / 10 % 10) as u8, b'0' + (octet % 10) as u8, b'.'];
        let skipped = if octet < 10 { 2 } else { (octet < 100) as u32 };
        table[octet] = (u32::from_le_bytes(digits) >> (8 * skipped), 8 * (4 - skipped));
        octet += 1;
    }
    table
};

fn four(out: &mut Vec<u8>, address: Ipv4Addr) {
    let (mut text, mut bits) = (0_u128, 0);
    for octet in address.octets() {
        let (digits, width) = *OCTETS.get(usize::from(octet)).unwrap_or(&(0, 0));
        text |= u128::from(digits) << bits;
        bits += width;
    }
    // Without the last dot.
    front(out, &text.to_le_bytes(), bits as usize / 8 - 1);
}

/// RFC 5952 §4: no leading zeros, the longest run of two or more zero fields as `::`, of equal ones the first.
fn six(out: &mut Vec<u8>, address: Ipv6Addr) {
    let fields = address.segments();
    let (mut run, mut longest) = (0..0, 0..0);
    for (at, field) in fields.iter().enumerate() {
        run = if *field != 0 { at + 1..at + 1 } else { run.start..at + 1 };
        if run.len() > longest.len() {
            longest = run.clone();
        }
    }
    let hidden = if longest.len() > 1 { longest } else { 8..8 };
    for (at, field) in fields.into_iter().enumerate() {
        if hidden.contains(&at) {
            if at == hidden.start {
                out.extend_from_slice(b"::");
            }
            continue;
        }
        if at > 0 && at != hidden.end {
            out.push(b':');
        }
        let zeros = (field | 1).leading_zeros() as usize / 4;
        out.extend_from_slice(hex(field.to_be_bytes()).as_flattened().get(zeros..).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = b"before ".to_vec();
        write(&mut out);
        String::from_utf8(out).unwrap().strip_prefix("before ").unwrap().to_owned()
    }

    #[test]
    fn a_calendar_turns_back_and_forth() {
        let mut calendar = Calendar::new();
        let midnight = 1_795_219_200_000_000;
        for at in [midnight, midnight - 1, midnight + 86_399_999_999, 0, u64::MAX, midnight, 253_402_300_800_000_000] {
            assert_eq!(text(|out| calendar.write(out, Wall(at))), Wall(at).to_string());
        }
    }

    #[test]
    fn addresses_are_those_of_rfc_5952() {
        for shown in ["::", "::1", "2001:db8::", "2001:db8::1:0:0:1", "2001:db8:0:1:1:1:1:1", "1:0:0:2:0:0:0:3"] {
            let shown: IpAddr = shown.parse().unwrap();
            assert_eq!(text(|out| address(out, shown)), shown.to_string());
        }
        for octet in 0..=255 {
            let shown = IpAddr::from([octet, 0, 255, octet]);
            assert_eq!(text(|out| address(out, shown)), shown.to_string());
        }
    }

    /// Fields that are zero as often as not, because runs of zeros are what addresses are written by.
    fn six() -> impl Strategy<Value = IpAddr> {
        prop::array::uniform8(prop_oneof![Just(0), any::<u16>()]).prop_map(IpAddr::from)
    }

    proptest! {
        #[test]
        fn figures_are_what_is_displayed(
            at in 0..300_000_000_000_000_000_u64,
            shown in prop_oneof![any::<IpAddr>(), six()],
            (boot, shard, sequence) in any::<(u64, u16, u64)>(),
        ) {
            let id = RecordId { boot, shard, sequence };
            prop_assert_eq!(text(|out| Calendar::new().write(out, Wall(at))), Wall(at).to_string());
            prop_assert_eq!(text(|out| address(out, shown)), shown.to_string());
            prop_assert_eq!(text(|out| super::id(out, id)), id.to_string());
            prop_assert_eq!(text(|out| number(out, at)), at.to_string());
            prop_assert_eq!(text(|out| out.extend(hex(at.to_be_bytes()).as_flattened())), format!("{at:016x}"));
        }
    }
}
