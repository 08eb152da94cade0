//! One query as it is sent, and which datagrams are its reply.

use super::cookie::{Proof, Shown};
use super::random::Random;
use crate::record::Question;
use crate::wire;

/// A header's length (RFC 1035 §4.1.1); the question stands behind it.
const HEADER: usize = 12;
/// What encrypted queries are padded to.
const BLOCK: usize = 128;
/// CD in the fourth octet.
const CD: u8 = 0x10;
/// Type and class behind a question's name.
const TYPE_AND_CLASS: usize = 4;

/// An encoded query: canonical name in random case, random id, nothing of the client's (I2).
#[derive(Clone, Debug)]
pub(super) struct Query {
    bytes: Vec<u8>,
    /// Where the question ends.
    end: usize,
    /// What it shows of a cookie, and so what its reply must.
    cookie: Option<Shown>,
}

/// What a query asks for besides its answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// DO: signatures (RFC 3225).
    pub(super) dnssec_ok: bool,
    /// CD: an answer even where the server holds it to be forged (RFC 4035 §3.2.2).
    pub(super) checking_disabled: bool,
}

/// What a message from the server is to a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Match {
    /// Its reply.
    Reply,
    /// Its reply, but that the letters of the name are in another case, or that it lacks the cookie that the server
    /// shows: a server that lower-cases or has forgotten its cookies, or a guess.
    Doubtful,
    /// Something else, maybe forged.
    Mismatch,
}

impl Query {
    /// Encodes `question` with a fresh id and fresh letter case.
    ///
    /// # Errors
    /// The system has no randomness to give.
    pub(super) fn new(question: &Question, wanted: Wanted, random: &Random) -> Result<Self, getrandom::Error> {
        let id = u16::from_ne_bytes(random.take()?);
        // One bit for each letter; a name has fewer letters than octets, and at most 255 of those.
        let mut case = [0; 32];
        let case = case.get_mut(..question.name.as_wire().len().div_ceil(8)).unwrap_or_default();
        random.fill(case)?;
        let mut letter = 0;
        let upper = || {
            let octet = case.get(letter / 8).copied().unwrap_or(0);
            letter += 1;
            octet >> (letter % 8) & 1 == 1
        };
        let end = HEADER + question.name.as_wire().len() + TYPE_AND_CLASS;
        let mut bytes = Vec::with_capacity(end + 11);
        wire::encode_query(&mut bytes, id, question, wanted.dnssec_ok, upper);
        if let Some(flags) = bytes.get_mut(3).filter(|_| wanted.checking_disabled) {
            *flags |= CD;
        }
        Ok(Self { bytes, end, cookie: None })
    }

    /// The query with a cookie in it.
    pub(super) fn showing(mut self, cookie: Option<Shown>) -> Self {
        if let Some(Shown { client, server }) = &cookie {
            wire::show_cookie(&mut self.bytes, *client, server);
        }
        self.cookie = cookie;
        self
    }

    /// The query at a length that tells nothing of its name's. RFC 8467 §4.1: "Clients SHOULD pad queries to the
    /// closest multiple of 128 octets"; only where it is encrypted, which nobody else can measure better.
    pub(super) fn padded(mut self) -> Self {
        wire::pad_query(&mut self.bytes, BLOCK);
        self
    }

    /// What is sent over UDP.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The message without its id, for a connection that numbers its queries itself.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// What `message`, which came from the server asked, is to this query. Accepted as its reply only with its id,
    /// QR, opcode QUERY, exactly its question, and the cookie that it was shown.
    pub(super) fn matches(&self, message: &[u8]) -> Match {
        if message.get(..2) != self.bytes.get(..2) {
            return Match::Mismatch;
        }
        let matched = self.matches_but_id(message);
        match (&self.cookie, matched) {
            (None, _) | (_, Match::Mismatch) => matched,
            (Some(cookie), _) => match cookie.judge(message) {
                Proof::Good => matched,
                Proof::Missing => Match::Doubtful,
                Proof::Wrong => Match::Mismatch,
            },
        }
    }

    /// [`Query::matches`] where the id is known to be right, and no cookie is needed.
    pub(super) fn matches_but_id(&self, message: &[u8]) -> Match {
        /// QR and the four bits of the opcode.
        const QR_AND_OPCODE: u8 = 0b1111_1000;
        /// QR set, opcode QUERY.
        const RESPONSE: u8 = 0b1000_0000;
        let flags = message.get(2).is_some_and(|flags| flags & QR_AND_OPCODE == RESPONSE);
        let one_question = message.get(4..6) == Some(&[0, 1]);
        let (Some(asked), Some(answered), true, true) =
            (self.bytes.get(HEADER..self.end), message.get(HEADER..self.end), flags, one_question)
        else {
            return Match::Mismatch;
        };
        // Type and class hold octets that look like letters, and those must be equal as they are.
        let name = asked.len() - TYPE_AND_CLASS;
        if asked == answered {
            Match::Reply
        } else if asked.eq_ignore_ascii_case(answered) && asked.get(name..) == answered.get(name..) {
            Match::Doubtful
        } else {
            Match::Mismatch
        }
    }
}

/// TC of a message that [matches](Query::matches).
pub(super) fn is_truncated(message: &[u8]) -> bool {
    message.get(2).is_some_and(|flags| flags & 0b0000_0010 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::Name;
    use crate::record::RecordType;
    use proptest::prelude::*;

    fn question(name: &str, kind: RecordType) -> Question {
        Question { name: Name::parse(name).unwrap(), kind }
    }

    fn reply(query: &Query, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut bytes = query.bytes().to_vec();
        bytes[2] |= 0x80;
        change(&mut bytes);
        bytes
    }

    #[test]
    fn only_its_own_reply_is_accepted() {
        // TYPE16705 is 0x4141, "AA": letters where none are compared as such.
        let query = Query::new(&question("api.example.org", RecordType(0x4141)), Wanted::default(), &Random::default())
            .unwrap();
        let last = query.end - 1;
        type Change<'a> = &'a dyn Fn(&mut Vec<u8>);
        let rows: [(&str, Match, Change<'_>); 13] = [
            ("as asked", Match::Reply, &|_| {}),
            ("with AA, TC, RA and a code", Match::Reply, &|b| (b[2], b[3]) = (b[2] | 6, 0x83)),
            ("other first octet of the id", Match::Mismatch, &|b| b[0] ^= 1),
            ("other second octet of the id", Match::Mismatch, &|b| b[1] ^= 0x80),
            ("a query", Match::Mismatch, &|b| b[2] &= 0x7f),
            ("other opcode", Match::Mismatch, &|b| b[2] |= 0x28),
            ("no question", Match::Mismatch, &|b| b[5] = 0),
            ("two questions", Match::Mismatch, &|b| b[5] = 2),
            ("other name", Match::Mismatch, &|b| b[13] ^= 1),
            ("one letter in other case", Match::Doubtful, &|b| b[13] ^= 0x20),
            ("other type that differs like a letter's case", Match::Mismatch, &|b| b[last - 3] ^= 0x20),
            ("other class", Match::Mismatch, &|b| b[last] = 3),
            ("cut off", Match::Mismatch, &|b| b.truncate(last)),
        ];
        for (name, expected, change) in rows {
            assert_eq!(query.matches(&reply(&query, |bytes| change(bytes))), expected, "{name}");
        }
        assert_eq!(query.matches_but_id(&reply(&query, |bytes| bytes[0] ^= 1)), Match::Reply);
        assert_eq!(query.matches(&[]), Match::Mismatch);
    }

    #[test]
    fn every_letter_of_the_longest_name_is_randomised() {
        let label = "a".repeat(63);
        let name = format!("{label}.{label}.{label}.{}", "a".repeat(61));
        let question = question(&name, RecordType::A);
        let (mut upper, mut lower) = (vec![false; 255], vec![false; 255]);
        for _ in 0..64 {
            let query = Query::new(&question, Wanted::default(), &Random::default()).unwrap();
            for (at, byte) in query.bytes()[HEADER..HEADER + 255].iter().enumerate() {
                upper[at] |= *byte == b'A';
                lower[at] |= *byte == b'a';
            }
        }
        let letters: Vec<bool> = question.name.as_wire().iter().map(|byte| *byte == b'a').collect();
        assert_eq!((&upper, &lower), (&letters, &letters));
    }

    proptest! {
        /// I2: after masking id and case, what is sent depends on name and type alone, however the name was written.
        #[test]
        fn i2_only_name_and_type_travel(
            labels in prop::collection::vec("[a-zA-Z0-9_-]{1,20}", 1..6),
            kind in any::<u16>(),
        ) {
            let text = labels.join(".");
            let masked = |text: &str| {
                let mut bytes = Query::new(&question(text, RecordType(kind)), Wanted::default(), &Random::default()).unwrap().into_bytes();
                let name = HEADER..HEADER + text.len() + 2;
                bytes[..2].fill(0);
                bytes[name].make_ascii_lowercase();
                bytes
            };
            let sent = masked(&text);
            prop_assert_eq!(&sent, &masked(&text.to_ascii_uppercase()));
            // Header: RD alone; one question, one additional record: OPT, root, size 1232, no flag, no option.
            prop_assert_eq!(&sent[..HEADER], &[0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1]);
            prop_assert_eq!(&sent[sent.len() - 11..], &[0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0, 0, 0]);
            prop_assert_eq!(sent.len(), HEADER + text.len() + 2 + 4 + 11);
        }

        /// I2: of an encrypted query even the length tells no more than how many blocks its name fills.
        #[test]
        fn padding_fills_blocks(labels in prop::collection::vec("[a-z]{1,40}", 1..6)) {
            let question = question(&labels.join("."), RecordType::A);
            let plain = Query::new(&question, Wanted::default(), &Random::default()).unwrap();
            let padded = plain.clone().padded().into_bytes();
            prop_assert_eq!(padded.len() % BLOCK, 0);
            prop_assert!(padded.len() < plain.bytes().len() + 4 + BLOCK);
            let (plain, padded) = (wire::parse_message(plain.bytes()).unwrap(), wire::parse_message(&padded).unwrap());
            prop_assert_eq!(plain, padded);
        }

        #[test]
        fn foreign_bytes_never_panic(message in prop::collection::vec(any::<u8>(), 0..64)) {
            let query = Query::new(&question("a.example", RecordType::A), Wanted::default(), &Random::default()).unwrap();
            prop_assert_ne!(query.matches(&message), Match::Reply);
            is_truncated(&message);
        }
    }
}
