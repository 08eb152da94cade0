//! One exchange of DNS over HTTPS (RFC 8484): a request becomes a message, a reply becomes a response.

use std::time::Duration;

use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Body, Bytes};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use tokio::time::timeout;

use crate::wire;

/// Where queries are taken: the path that clients try of themselves.
const PATH: &str = "/dns-query";

/// RFC 8484 §6.
const MEDIA_TYPE: &str = "application/dns-message";

/// Why a request does not reach the gate, or its reply not the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::serve) enum Refusal {
    /// There is no message in it, or one that deserves no reply.
    NoMessage,
    /// Another path.
    Path,
    /// Neither GET nor POST.
    Method,
    /// The body did not come in time.
    Slow,
    /// The body is longer than a message may be.
    LongBody,
    /// The `dns` parameter is.
    LongParameter,
    /// The body is no DNS message.
    MediaType,
    /// No record, no answer.
    Unrecorded,
}

impl Refusal {
    pub(super) fn response(self) -> Response<Full<Bytes>> {
        let (status, text) = match self {
            Self::NoMessage => (StatusCode::BAD_REQUEST, "this is not a DNS query (RFC 8484)\n"),
            Self::Path => (StatusCode::NOT_FOUND, "queries are taken at /dns-query\n"),
            Self::Method => (StatusCode::METHOD_NOT_ALLOWED, "use GET or POST\n"),
            Self::Slow => (StatusCode::REQUEST_TIMEOUT, "the query did not come in time\n"),
            Self::LongBody => (StatusCode::PAYLOAD_TOO_LARGE, "the query is too long\n"),
            Self::LongParameter => (StatusCode::URI_TOO_LONG, "the query is too long\n"),
            Self::MediaType => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "send application/dns-message\n"),
            Self::Unrecorded => (StatusCode::SERVICE_UNAVAILABLE, "the query could not be recorded\n"),
        };
        let mut response = response(status, "text/plain", Bytes::from_static(text.as_bytes()), None);
        // RFC 9110 §15.5.6: "The origin server MUST generate an Allow header field in a 405 response".
        if self == Self::Method {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, POST"));
        }
        response
    }
}

/// The message of a request, of at most `largest` octets; its body has `patience` to come.
pub(super) async fn message<B>(request: Request<B>, largest: usize, patience: Duration) -> Result<Vec<u8>, Refusal>
where
    B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>,
{
    if request.uri().path() != PATH {
        return Err(Refusal::Path);
    }
    match *request.method() {
        Method::GET => parameter(request.uri().query().unwrap_or_default(), largest),
        Method::POST => {
            let kind = request.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
            let kind = kind.and_then(|kind| kind.split(';').next()).unwrap_or_default();
            let is_ours = kind.trim().eq_ignore_ascii_case(MEDIA_TYPE);
            // What is a little too long, or of another type, is read to its end: a stream that is closed before looks broken
            // to some clients.
            let most = 2 * largest;
            if request.body().size_hint().lower() > most as u64 {
                return Err(Refusal::LongBody);
            }
            let body = timeout(patience, Limited::new(request.into_body(), most).collect());
            match body.await {
                Ok(_) if !is_ours => Err(Refusal::MediaType),
                Ok(Ok(body)) => {
                    let message = body.to_bytes();
                    if message.len() > largest { Err(Refusal::LongBody) } else { Ok(message.into()) }
                }
                Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Refusal::LongBody),
                Ok(Err(_)) => Err(Refusal::NoMessage),
                Err(_) => Err(Refusal::Slow),
            }
        }
        _ => Err(Refusal::Method),
    }
}

/// RFC 8484 §4.1: with GET, "the single variable "dns" is defined as the content of the DNS request […] encoded with
/// base64url".
fn parameter(query: &str, largest: usize) -> Result<Vec<u8>, Refusal> {
    let text = query.split('&').find_map(|pair| pair.strip_prefix("dns=")).ok_or(Refusal::NoMessage)?;
    if text.len() > largest.div_ceil(3) * 4 {
        return Err(Refusal::LongParameter);
    }
    match base64url(text.as_bytes()).ok_or(Refusal::NoMessage)? {
        message if message.len() > largest => Err(Refusal::LongParameter),
        message => Ok(message),
    }
}

/// RFC 4648 §5, and RFC 8484 §6: "Padding characters for base64url MUST NOT be included".
fn base64url(text: &[u8]) -> Option<Vec<u8>> {
    let mut octets = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for group in text.chunks(4) {
        let mut bits = 0_u32;
        for letter in group {
            let value = match letter {
                b'A'..=b'Z' => letter - b'A',
                b'a'..=b'z' => letter - b'a' + 26,
                b'0'..=b'9' => letter - b'0' + 52,
                b'-' => 62,
                b'_' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(value);
        }
        // A group of n letters is n − 1 octets; the bits left over must be zero, so that a message has one spelling.
        let spare = match group.len() {
            4 => 0,
            3 => 2,
            2 => 4,
            _ => return None,
        };
        if bits & ((1 << spare) - 1) != 0 {
            return None;
        }
        let [_, first, second, third] = (bits >> spare << (24 - (group.len() - 1) * 8)).to_be_bytes();
        octets.extend([first, second, third].iter().take(group.len() - 1));
    }
    Some(octets)
}

/// A DNS message as a response, whatever its code: RFC 8484 §4.2.1, "a successful HTTP response with a 2xx status code
/// is used for any valid DNS response".
pub(super) fn answer(reply: Vec<u8>) -> Response<Full<Bytes>> {
    let fresh = wire::freshness(&reply);
    response(StatusCode::OK, MEDIA_TYPE, reply.into(), fresh.map(crate::time::Ttl::seconds))
}

/// Kept for `fresh` seconds, by its client alone: what is told to one is open for that one. Without, by nobody.
fn response(status: StatusCode, kind: &'static str, body: Bytes, fresh: Option<u32>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let kept = fresh.and_then(|seconds| HeaderValue::try_from(format!("private, max-age={seconds}")).ok());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, kept.unwrap_or(HeaderValue::from_static("no-store")));
    response
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 8484 §4.1.1: a query for www.example.com.
    const EXAMPLE: &str = "AAABAAABAAAAAAAAA3d3dwdleGFtcGxlA2NvbQAAAQAB";

    fn request(method: &str, uri: &str, kind: Option<&str>, body: &[u8]) -> Request<Full<Bytes>> {
        let mut request = Request::builder().method(method).uri(uri);
        if let Some(kind) = kind {
            request = request.header(CONTENT_TYPE, kind);
        }
        request.body(Full::new(Bytes::copy_from_slice(body))).unwrap()
    }

    #[tokio::test]
    async fn takes_the_messages_of_get_and_post() {
        let expected = b"\0\0\x01\0\0\x01\0\0\0\0\0\0\x03www\x07example\x03com\0\0\x01\0\x01";
        for (method, uri, kind, body) in [
            ("GET", format!("/dns-query?dns={EXAMPLE}"), None, &b""[..]),
            ("GET", format!("https://dns.example.org/dns-query?ct&dns={EXAMPLE}&x=1"), None, b""),
            ("POST", "/dns-query".to_owned(), Some("application/dns-message"), expected),
            ("POST", "/dns-query?dns=x".to_owned(), Some("Application/DNS-message; q=1"), expected),
        ] {
            let message = message(request(method, &uri, kind, body), 512, Duration::ZERO).await;
            assert_eq!(message.as_deref(), Ok(&expected[..]), "{method} {uri}");
        }
    }

    #[tokio::test]
    #[expect(clippy::type_complexity, reason = "a table")]
    async fn says_what_is_wrong_with_a_request() {
        let dns = Some(MEDIA_TYPE);
        let long = "A".repeat(32);
        let rows: [(&str, &str, Option<&str>, usize, Refusal, u16); 16] = [
            ("GET", "/", None, 0, Refusal::Path, 404),
            ("GET", "/dns-query/", None, 0, Refusal::Path, 404),
            ("POST", "/resolve", dns, 9, Refusal::Path, 404),
            ("HEAD", "/dns-query?dns=AAAB", None, 0, Refusal::Method, 405),
            ("PUT", "/dns-query", dns, 9, Refusal::Method, 405),
            ("GET", "/dns-query", None, 0, Refusal::NoMessage, 400),
            ("GET", "/dns-query?DNS=AAAB", None, 0, Refusal::NoMessage, 400),
            ("GET", "/dns-query?dns=AA==", None, 0, Refusal::NoMessage, 400),
            ("GET", "/dns-query?dns=A+/B", None, 0, Refusal::NoMessage, 400),
            ("GET", "/dns-query?dns=A", None, 0, Refusal::NoMessage, 400),
            ("GET", "/dns-query?dns=AAAB%20", None, 0, Refusal::NoMessage, 400),
            ("GET", &format!("/dns-query?dns={long}"), None, 0, Refusal::LongParameter, 414),
            ("POST", "/dns-query", None, 9, Refusal::MediaType, 415),
            ("POST", "/dns-query", Some("application/json"), 9, Refusal::MediaType, 415),
            ("POST", "/dns-query", Some("application/dns-message-x"), 9, Refusal::MediaType, 415),
            ("POST", "/dns-query", dns, 17, Refusal::LongBody, 413),
        ];
        for (method, uri, kind, body, expected, status) in rows {
            let refused = message(request(method, uri, kind, &vec![0; body]), 16, Duration::ZERO).await;
            assert_eq!(refused, Err(expected), "{method} {uri}");
            let response = expected.response();
            assert_eq!(response.status(), status);
            assert_eq!(response.headers()[CACHE_CONTROL], "no-store");
            assert_eq!(response.headers().contains_key(ALLOW), status == 405);
        }
    }

    #[test]
    fn only_its_client_may_keep_an_answer() {
        let noerror =
            b"\0\0\x81\x80\0\x01\0\x01\0\0\0\0\x01a\0\0\x01\0\x01\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\xc0\0\x02\x01";
        let mut servfail = noerror.to_vec();
        servfail[3] = 0x82;
        for (reply, kept) in [(noerror.to_vec(), "private, max-age=60"), (servfail, "no-store")] {
            let response = answer(reply);
            assert_eq!(response.status(), 200);
            assert_eq!(response.headers()[CONTENT_TYPE], MEDIA_TYPE);
            assert_eq!(response.headers()[CACHE_CONTROL], kept);
        }
    }

    /// The other direction, for the test alone.
    fn encode(octets: &[u8]) -> String {
        const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let bits: Vec<u8> = octets.iter().flat_map(|octet| (0..8).rev().map(move |bit| octet >> bit & 1)).collect();
        let letter = |six: &[u8]| {
            let value = (0..6).fold(0, |value, bit| value << 1 | usize::from(six.get(bit).copied().unwrap_or(0)));
            char::from(LETTERS[value])
        };
        bits.chunks(6).map(letter).collect()
    }

    proptest! {
        #[test]
        fn every_message_has_one_spelling(octets in prop::collection::vec(any::<u8>(), 0..40)) {
            let text = encode(&octets);
            prop_assert_eq!(base64url(text.as_bytes()), Some(octets));
        }

        #[test]
        fn what_decodes_was_encoded_so(text in "[A-Za-z0-9_=+/-]{0,12}") {
            if let Some(octets) = base64url(text.as_bytes()) {
                prop_assert_eq!(encode(&octets), text);
            }
        }
    }
}
