//! DNS cookies in queries of clients and their replies (RFC 7873 §4): read, and answered.

use super::edns::{OPTION_COOKIE, OPTION_HEAD, ended, length_field};
use super::{Echo, Fault, Written};

/// The octets of the client's half; they come first.
pub const CLIENT_COOKIE: usize = 8;
/// The server's half as this node makes it (RFC 9018 §4); others' may have 8 to 32 octets.
pub type ServerCookie = [u8; 16];

/// The data of a cookie option, of a length that a cookie can have.
///
/// # Errors
/// RFC 7873 §5.2.2: "If the COOKIE option is too short to contain a Client Cookie, then FORMERR is generated." So it is where
/// what follows is no server cookie by its length.
pub(super) const fn read_cookie(data: &[u8]) -> Result<&[u8], Fault> {
    if matches!(data.len(), CLIENT_COOKIE | 16..=40) { Ok(data) } else { Err(Fault::Cookie) }
}

/// The octets that [`echo_cookie`] adds to the reply.
#[must_use]
pub const fn cookie_room(echo: &Echo<'_>) -> usize {
    if echo.cookie.is_some() { OPTION_HEAD + CLIENT_COOKIE + size_of::<ServerCookie>() } else { 0 }
}

/// Adds the client's half of the query's cookie, and the server's, to the reply that ends `out`.
pub fn echo_cookie(out: &mut Vec<u8>, written: Written, echo: &Echo<'_>, server: ServerCookie) -> Written {
    let Some(client) = echo.cookie.and_then(<[u8]>::first_chunk::<CLIENT_COOKIE>) else { return written };
    let start = out.len() - written.len;
    out.extend_from_slice(&OPTION_COOKIE.to_be_bytes());
    out.extend_from_slice(&length_field(client.len() + server.len()));
    out.extend_from_slice(client);
    out.extend_from_slice(&server);
    ended(out, written, start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{ExtendedError, Rcode};
    use crate::wire::{Canonical, Malformed, Query, glance, parse, parse_message, write_refusal};

    /// A query for a.example.org, or for nothing, with these options.
    fn query(questions: u16, options: &[u8]) -> Vec<u8> {
        let header = [0x1234, 0x0100, questions, 0, 0, 1].map(u16::to_be_bytes).concat();
        let question: &[u8] = if questions == 1 { b"\x01a\x07example\x03org\0\0\x01\0\x01" } else { b"" };
        let length = u16::try_from(options.len()).unwrap().to_be_bytes();
        [&header, question, b"\0\0\x29\x04\xd0\0\0\0\0".as_slice(), &length, options].concat()
    }

    fn option(length: u8) -> Vec<u8> {
        [[0, 10, 0, length].as_slice(), &vec![b'c'; length.into()]].concat()
    }

    #[test]
    fn a_cookie_of_another_length_is_a_format_error() {
        for length in 0..=60 {
            let packet = query(1, &option(length));
            let mut canonical = Canonical::new();
            let read = parse(&packet, &mut canonical).map_err(|malformed| malformed.why);
            match read {
                Ok(Query { echo, .. }) => {
                    assert!(length == 8 || (16..=40).contains(&length), "{length}");
                    assert_eq!(echo.cookie.unwrap().len(), usize::from(length));
                }
                Err(fault) => {
                    assert!(length < 8 || (9..16).contains(&length) || length > 40, "{length}");
                    assert_eq!((fault, fault.rcode()), (Fault::Cookie, Some(Rcode::FORMERR)));
                }
            }
        }
        let packet = query(1, &[option(8), option(24)].concat());
        assert_eq!(parse(&packet, &mut Canonical::new()).unwrap().echo.cookie.unwrap().len(), 8, "the first counts");
    }

    #[test]
    fn a_cookie_may_come_without_a_question() {
        let read = |packet: &[u8]| {
            let mut canonical = Canonical::new();
            let Malformed { why, answer, .. } = parse(packet, &mut canonical).unwrap_err();
            let (rcode, echo) = answer.unwrap();
            (why, rcode, echo.cookie.map(<[u8]>::len))
        };
        assert_eq!(read(&query(0, &option(24))), (Fault::CookieAlone, Rcode::NOERROR, Some(24)));
        assert_eq!(read(&query(0, &option(7))), (Fault::QuestionCount, Rcode::FORMERR, None));
        assert_eq!(read(&query(0, b"\0\x0b\0\0")), (Fault::QuestionCount, Rcode::FORMERR, None));
        let trailing = [query(0, &option(8)), vec![0]].concat();
        assert_eq!(read(&trailing), (Fault::QuestionCount, Rcode::FORMERR, Some(8)));
    }

    #[test]
    fn is_answered_with_both_halves() {
        let packet = query(1, &option(40));
        let mut canonical = Canonical::new();
        let echo = parse(&packet, &mut canonical).unwrap().echo;
        for ede in [None, Some(ExtendedError::new(ExtendedError::BLOCKED, "no rule"))] {
            let mut out = b"before".to_vec();
            let plain = write_refusal(&mut out, &echo, Rcode::NXDOMAIN, ede.as_ref(), 512);
            let before = parse_message(&out[6..]).unwrap();
            let written = echo_cookie(&mut out, plain, &echo, *b"the server's one");
            assert_eq!(written.len, plain.len + cookie_room(&echo));
            assert_eq!(glance(&out[6..]).unwrap().cookie, Some(b"ccccccccthe server's one".as_slice()));
            assert_eq!(parse_message(&out[6..]).as_ref(), Ok(&before), "all else is the same");
            assert_eq!(out.len(), 6 + written.len);
        }
    }
}
