//! DNS cookies for clients (RFC 7873, RFC 9018): a client that shows again what it was given has heard our replies, so its
//! address is not forged; and a reply with its own half is not a guesser's.
//!
//! Nothing is kept of any client: a cookie is a time and a hash of it with the client's half, its address and a secret.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use data_encoding::HEXLOWER_PERMISSIVE;
use siphasher::sip::SipHasher24;
use smallvec::SmallVec;

use crate::time::Wall;
use crate::wire::{CLIENT_COOKIE as CLIENT, ServerCookie};

/// The only version that there is (RFC 9018 §8).
const VERSION: u8 = 1;
/// RFC 9018 §4.3: "The DNS server SHOULD allow cookies within a 1-hour period in the past and a 5-minute period into the
/// future".
const PAST: i32 = 3_600;
const FUTURE: i32 = 300;
/// RFC 9018 §4.3: "SHOULD generate a new Server Cookie at least if the received Server Cookie from the client is more than
/// half an hour old".
const RENEWED_AFTER: i32 = 1_800;

/// The octets of a secret: a key of SipHash.
const SECRET: usize = 16;

/// What cookies are made and checked with.
#[derive(Clone, PartialEq, Eq)]
pub struct Secrets {
    /// Makes cookies.
    current: [u8; SECRET],
    /// Cookies made with it are good too: nodes that share an address change one after the other (RFC 9018 §5).
    other: Option<[u8; SECRET]>,
}

impl fmt::Debug for Secrets {
    /// Nothing of them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets")
    }
}

/// What a client's server cookie says of its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    /// It was given to this address, within the hour.
    Valid,
    /// It was not.
    Invalid,
}

impl Proof {
    /// The word in records.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Invalid => "invalid",
        }
    }
}

impl Secrets {
    /// A secret of these octets.
    #[must_use]
    pub const fn new(current: [u8; SECRET]) -> Self {
        Self { current, other: None }
    }

    /// Reads one or two lines of 32 hexadecimal digits: the secret that makes cookies, and another that is good.
    ///
    /// # Errors
    /// The first line, from 1, that is not one.
    pub fn read(text: &str) -> Result<Self, u32> {
        let secret = |line: &str| HEXLOWER_PERMISSIVE.decode(line.trim_end().as_bytes()).ok()?.try_into().ok();
        let mut lines = (1_u32..).zip(text.lines()).map(|(at, line)| secret(line).ok_or(at));
        let (current, other) = (lines.next().unwrap_or(Err(1))?, lines.next().transpose()?);
        if lines.next().is_some() { Err(3) } else { Ok(Self { current, other }) }
    }

    /// The server's half for who shows `cookie` from an address; and what the one that it shows says.
    pub(super) fn answer(&self, cookie: &[u8], from: IpAddr, now: Wall) -> (ServerCookie, Option<Proof>) {
        let seconds = Duration::from_micros(now.0).as_secs() as u32;
        let (client, shown) = cookie.split_at_checked(CLIENT).unwrap_or_default();
        let fresh = || {
            let head = u64::from(VERSION) << 56 | u64::from(seconds);
            u128::from(head) << 64 | u128::from(hash(self.current, client, head, from))
        };
        if shown.is_empty() {
            return (fresh().to_be_bytes(), None);
        }
        match self.judge(client, shown, from, seconds) {
            Some(Age::Young) => (shown.try_into().unwrap_or_default(), Some(Proof::Valid)),
            Some(Age::Old) => (fresh().to_be_bytes(), Some(Proof::Valid)),
            None => (fresh().to_be_bytes(), Some(Proof::Invalid)),
        }
    }

    /// `None`: it is not one that was given to this client.
    fn judge(&self, client: &[u8], shown: &[u8], from: IpAddr, seconds: u32) -> Option<Age> {
        let whole = u128::from_be_bytes(shown.try_into().ok()?);
        let (head, told) = ((whole >> 64) as u64, whole as u64);
        // RFC 9018 §4.3: "All comparisons involving these fields MUST use "Serial number arithmetic"".
        let age = seconds.wrapping_sub(head as u32).cast_signed();
        if head >> 56 != u64::from(VERSION) || !(-FUTURE..=PAST).contains(&age) {
            return None;
        }
        // RFC 9018 §4.2: the reserved octets are hashed as they are; nobody "enforces" that they are zero.
        let made_with = |secret| hash(secret, client, head, from) == told;
        if made_with(self.current) {
            return Some(if age > RENEWED_AFTER { Age::Old } else { Age::Young });
        }
        self.other.filter(|other| made_with(*other)).map(|_| Age::Old)
    }
}

/// Whether a good cookie is told again, or another.
enum Age {
    Young,
    Old,
}

/// RFC 9018 §4.4: SipHash-2-4 of `Client Cookie | Version | Reserved | Timestamp | Client-IP`, its octets as they stand in a
/// cookie.
fn hash(secret: [u8; SECRET], client: &[u8], head: u64, from: IpAddr) -> u64 {
    let mut octets: SmallVec<[u8; 32]> = client.into();
    octets.extend_from_slice(&head.to_be_bytes());
    match from {
        IpAddr::V4(from) => octets.extend_from_slice(&from.octets()),
        IpAddr::V6(from) => octets.extend_from_slice(&from.octets()),
    }
    SipHasher24::new_with_key(&secret).hash(&octets).swap_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET_A: &str = "e5e973e5a6b2a43f48e7dc849e37bfcf";

    /// What is answered: the whole cookie, and what the one that was shown proves.
    fn answered(secrets: &str, cookie: &str, from: &str, seconds: u64) -> (String, Option<Proof>) {
        let cookie = data_encoding::HEXLOWER.decode(cookie.as_bytes()).unwrap();
        let now = Wall(seconds * 1_000_000 + 999_999);
        let (server, proof) = Secrets::read(secrets).unwrap().answer(&cookie, from.parse().unwrap(), now);
        (data_encoding::HEXLOWER.encode(&[&cookie[..8], &server].concat()), proof)
    }

    #[test]
    fn gives_the_cookies_of_its_rfc() {
        let rolled = "445536bcd2513298075a5d379663c962\ndd3bdf9344b678b185a6f5cb60fca715\n";
        // RFC 9018 appendix A, in its order.
        let rows = [
            (
                "A.1 a new cookie",
                SECRET_A,
                "2464c4abcf10c957",
                "198.51.100.100",
                1_559_731_985,
                "2464c4abcf10c957010000005cf79f111f8130c3eee29480",
                None,
            ),
            (
                "A.2 the same client, 40 minutes later",
                SECRET_A,
                "2464c4abcf10c957010000005cf79f111f8130c3eee29480",
                "198.51.100.100",
                1_559_734_385,
                "2464c4abcf10c957010000005cf7a871d4a564a1442aca77",
                Some(Proof::Valid),
            ),
            (
                "A.3 another client, an hour and 52 minutes after its cookie",
                SECRET_A,
                "fc93fc62807ddb8601abcdef5cf78f71a314227b6679ebf5",
                "203.0.113.203",
                1_559_734_700,
                "fc93fc62807ddb86010000005cf7a9acf73a7810aca2381e",
                Some(Proof::Invalid),
            ),
            (
                "the same in time, with what the reserved octets hold",
                SECRET_A,
                "fc93fc62807ddb8601abcdef5cf78f71a314227b6679ebf5",
                "203.0.113.203",
                1_559_728_000,
                "fc93fc62807ddb8601abcdef5cf78f71a314227b6679ebf5",
                Some(Proof::Valid),
            ),
            (
                "A.4 IPv6, and another secret since",
                rolled,
                "22681ab97d52c298010000005cf7c57926556bd0934c72f8",
                "2001:db8:220:1:59de:d0f4:8769:82b8",
                1_559_741_961,
                "22681ab97d52c298010000005cf7c609a6bb79d16625507a",
                Some(Proof::Valid),
            ),
        ];
        for (what, secrets, shown, from, seconds, expected, proof) in rows {
            assert_eq!(answered(secrets, shown, from, seconds), (expected.to_owned(), proof), "{what}");
        }
    }

    #[test]
    fn a_cookie_is_good_for_an_hour_at_its_address_and_renewed_in_between() {
        let given = 1_559_731_985;
        let (cookie, _) = answered(SECRET_A, "2464c4abcf10c957", "192.0.2.1", given);
        let (same, other) = (Some(Proof::Valid), Some(Proof::Invalid));
        let rows = [
            ("at once", 0, "192.0.2.1", same, true),
            ("half an hour", 1_800, "192.0.2.1", same, true),
            ("a little more", 1_801, "192.0.2.1", same, false),
            ("an hour", 3_600, "192.0.2.1", same, false),
            ("more than that", 3_601, "192.0.2.1", other, false),
            ("of a clock that is ahead", -300, "192.0.2.1", same, true),
            ("too far ahead", -301, "192.0.2.1", other, false),
            ("another address", 0, "192.0.2.2", other, false),
            ("another family", 0, "2001:db8::1", other, false),
        ];
        for (what, passed, from, proof, kept) in rows {
            let (told, proved) = answered(SECRET_A, &cookie, from, given.checked_add_signed(passed).unwrap());
            assert_eq!((proved, told == cookie), (proof, kept), "{what}");
        }
        // The seconds pass 2^32 in 2106.
        let end = 1 << 32;
        let (cookie, _) = answered(SECRET_A, "2464c4abcf10c957", "192.0.2.1", end - 10);
        assert_eq!(answered(SECRET_A, &cookie, "192.0.2.1", end + 10), (cookie, same));
    }

    #[test]
    fn what_was_not_made_here_is_invalid() {
        let given = 1_559_731_985;
        let (cookie, _) = answered(SECRET_A, "2464c4abcf10c957", "192.0.2.1", given);
        let changed = |at: usize| {
            let mut octets = cookie.clone().into_bytes();
            octets[at] = if octets[at] == b'0' { b'1' } else { b'0' };
            String::from_utf8(octets).unwrap()
        };
        let others = (0..48).map(changed).chain([cookie[..32].to_owned(), format!("{cookie}00"), "c".repeat(80)]);
        for shown in others {
            let (told, proof) = answered(SECRET_A, &shown, "192.0.2.1", given);
            assert_eq!((proof, &told[..16]), (Some(Proof::Invalid), &shown[..16]), "{shown}");
            let (next, proof) = answered(SECRET_A, &told, "192.0.2.1", given);
            assert_eq!((next, proof), (told, Some(Proof::Valid)));
        }
    }

    #[test]
    fn secrets_are_one_or_two_lines_of_32_digits() {
        let (a, b) = ("e5e973e5a6b2a43f48e7dc849e37bfcf", "445536BCD2513298075A5D379663C962");
        for text in [a.to_owned(), format!("{a}\n"), format!("{a}\r\n{b}\n"), format!("{b}\n{a}")] {
            assert!(Secrets::read(&text).is_ok(), "{text:?}");
        }
        let rows = [
            (String::new(), 1),
            ("\n".to_owned(), 1),
            (a[..30].to_owned(), 1),
            (format!("{a}00"), 1),
            (format!("# a comment\n{a}"), 1),
            (format!("{a}\n\n"), 2),
            (format!("{a}\nx{}", &b[1..]), 2),
            (format!("{a}\n{b}\n{a}"), 3),
        ];
        for (text, line) in rows {
            assert_eq!(Secrets::read(&text), Err(line), "{text:?}");
        }
        assert_eq!(format!("{:?}", Secrets::read(a)), "Ok(Secrets)", "nobody reads them in a log");
    }
}
