//! Why a server gave no answer, and what that comes to when none did.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::name::Name;
use crate::record::{ExtendedError, Rcode};
use crate::time::Wall;
use crate::wire::Fault;

/// Why one server gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// No reply came in time.
    #[error("did not answer")]
    Timeout,
    /// It answered with a code that is no answer, and maybe said why.
    #[error("said {0}")]
    Rcode(Rcode, Option<ExtendedError>),
    /// It could not be reached.
    #[error("could not be reached ({0})")]
    Network(io::ErrorKind),
    /// It did not prove who it is, or TLS failed otherwise.
    #[error("{0}")]
    Tls(TlsFault),
    /// Its HTTP response holds no reply.
    #[error("{0}")]
    Http(HttpFault),
    /// Its reply is not a DNS message.
    #[error("sent a broken reply ({0})")]
    Unreadable(Fault),
    /// Its reply makes no sense.
    #[error("sent a wrong reply ({0})")]
    Nonsense(Nonsense),
}

/// Why there is no encrypted connection to a server. Names in it are those of its certificate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsFault {
    /// Its certificate is for others.
    #[error("has a certificate for {presented}, not for {expected}")]
    Name {
        /// The name of the configuration.
        expected: Arc<str>,
        /// The first names of the certificate.
        presented: Arc<str>,
    },
    /// Its certificate's time is over.
    #[error("has a certificate that ended on {}", day(*.0))]
    Ended(Wall),
    /// Its certificate's time has not begun.
    #[error("has a certificate that begins on {}", day(*.0))]
    NotYet(Wall),
    /// Nobody trusted vouches for it.
    #[error("has a certificate that no trusted authority issued")]
    Issuer,
    /// Its key has another digest.
    #[error("has another key than the pinned one")]
    Key,
    /// Its certificate is wrong in another way.
    #[error("has a certificate that cannot be used ({0})")]
    Certificate(Arc<str>),
    /// What it said is something else.
    #[error("does not speak TLS")]
    NotTls,
    /// It speaks neither of the protocols that were offered.
    #[error("does not speak DNS over this TLS")]
    Protocol,
    /// It ended the handshake.
    #[error("refused the TLS handshake ({0})")]
    Refused(Arc<str>),
    /// It left the handshake unfinished.
    #[error("did not finish the TLS handshake in time")]
    Slow,
    /// Anything else.
    #[error("failed at TLS ({0})")]
    Other(Arc<str>),
}

/// The date, without the time of day.
fn day(time: Wall) -> String {
    let mut text = time.to_string();
    text.truncate("2026-11-21".len());
    text
}

/// Why an HTTP response holds no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HttpFault {
    /// It is not a successful one. A redirect is not followed.
    #[error("answered with HTTP status {0}")]
    Status(u16),
    /// Its body is something else.
    #[error("answered with another media type than application/dns-message")]
    MediaType,
    /// Its body is longer than a DNS message can be.
    #[error("answered with more than a DNS message can be")]
    Long,
    /// The server speaks TLS, and no HTTP/2 in it.
    #[error("does not speak HTTP/2")]
    Version,
    /// It broke the rules of HTTP/2, or reset the request.
    #[error("broke off the HTTP exchange")]
    Broken,
}

/// What is wrong with a reply that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Nonsense {
    /// Its question is not the one that was asked, on a connection where nobody can guess.
    #[error("not the question that was asked")]
    Question,
    /// Its CNAMEs lead back to where they were.
    #[error("a CNAME loop")]
    Loop,
    /// Its CNAMEs lead on and on.
    #[error("a CNAME chain of more than 8")]
    Chain,
    /// A name has two CNAMEs, or one whose target cannot be read.
    #[error("a CNAME that leads nowhere or to several names")]
    Cname,
    /// NXDOMAIN, and yet records of the name (RFC 2308 §2.1).
    #[error("NXDOMAIN with records")]
    Contradiction,
    /// A name has more records of a type than are taken.
    #[error("more than 100 records of one name and type")]
    Crowd,
    /// It names other servers to ask: it is no resolver.
    #[error("a referral")]
    Referral,
    /// It is truncated, over TCP.
    #[error("truncated over TCP")]
    Truncated,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Network(error.kind())
    }
}

impl From<io::ErrorKind> for Failure {
    fn from(kind: io::ErrorKind) -> Self {
        Self::Network(kind)
    }
}

impl From<getrandom::Error> for Failure {
    fn from(_: getrandom::Error) -> Self {
        Self::Network(io::ErrorKind::Other)
    }
}

/// Who was asked, and what each did: `192.0.2.53:53 did not answer, 192.0.2.54:53 said SERVFAIL`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attempts(pub Arc<[(SocketAddr, Failure)]>);

impl fmt::Display for Attempts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no server gave an answer");
        }
        for (index, (server, failure)) in self.0.iter().enumerate() {
            write!(f, "{}{server} {failure}", if index > 0 { ", " } else { "" })?;
        }
        Ok(())
    }
}

/// Why there is no answer. Its text is one clause for the record's `why`; [`UpstreamError::ede`] is what the client
/// is told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// No server answered before the deadline.
    #[error("{0}")]
    Timeout(Attempts),
    /// The same, and too little time was left for an answer to be expected.
    #[error("{0}")]
    Hurried(Attempts),
    /// A server said that it failed, or that it does not serve us.
    #[error("{attempts}")]
    ServerFailure {
        /// Its code.
        rcode: Rcode,
        /// Its reason.
        ede: Option<ExtendedError>,
        /// Who was asked.
        attempts: Attempts,
    },
    /// No server could be reached.
    #[error("{0}")]
    Network(Attempts),
    /// A server did not prove who it is, or TLS failed otherwise.
    #[error("{0}")]
    Unproven(Attempts),
    /// A server's reply could not be used.
    #[error("{0}")]
    Malformed(Attempts),
    /// The answer is not what its zones signed.
    #[error("the answer for {name} is bogus: {why}")]
    Bogus {
        /// The name asked for.
        name: Name,
        /// What is wrong, with the name in the chain.
        why: Arc<str>,
    },
    /// Too many questions are being asked at once.
    #[error("8192 questions are in flight already")]
    Busy,
}

impl UpstreamError {
    /// What it comes to when every server failed so: the most telling failure gives the variant, in the order
    /// code, broken reply, TLS, timeout, network.
    #[must_use]
    pub(super) fn of(attempts: Vec<(SocketAddr, Failure)>) -> Self {
        let rank = |failure: &Failure| match failure {
            Failure::Rcode(..) => 0,
            Failure::Unreadable(_) | Failure::Nonsense(_) | Failure::Http(_) => 1,
            Failure::Tls(_) => 2,
            Failure::Timeout => 3,
            Failure::Network(_) => 4,
        };
        let telling = attempts.iter().map(|(_, failure)| failure).min_by_key(|failure| rank(failure)).cloned();
        let attempts = Attempts(Arc::from(attempts));
        match telling {
            Some(Failure::Rcode(rcode, ede)) => Self::ServerFailure { rcode, ede, attempts },
            Some(Failure::Unreadable(_) | Failure::Nonsense(_) | Failure::Http(_)) => Self::Malformed(attempts),
            Some(Failure::Tls(_)) => Self::Unproven(attempts),
            Some(Failure::Network(_)) => Self::Network(attempts),
            Some(Failure::Timeout) | None => Self::Timeout(attempts),
        }
    }

    /// Whether it is worth remembering: not where we are to blame, or ran out of time.
    #[must_use]
    pub const fn is_of_upstream(&self) -> bool {
        match self {
            Self::Timeout(_)
            | Self::ServerFailure { .. }
            | Self::Network(_)
            | Self::Unproven(_)
            | Self::Malformed(_)
            | Self::Bogus { .. } => true,
            Self::Hurried(_) | Self::Busy => false,
        }
    }

    /// The extended error for the client (RFC 8914 §4): a server's own reason where it gave one, no addresses of
    /// ours.
    #[must_use]
    pub fn ede(&self) -> ExtendedError {
        match self {
            Self::Timeout(_) | Self::Hurried(_) => {
                ExtendedError::new(ExtendedError::NO_REACHABLE_AUTHORITY, "no upstream answered in time")
            }
            Self::ServerFailure { ede: Some(ede), .. } => ede.clone(),
            Self::ServerFailure { rcode, .. } => {
                ExtendedError::new(ExtendedError::NO_REACHABLE_AUTHORITY, format!("upstream said {rcode}"))
            }
            Self::Network(_) => ExtendedError::new(ExtendedError::NETWORK_ERROR, "no upstream could be reached"),
            Self::Unproven(_) => {
                ExtendedError::new(ExtendedError::NETWORK_ERROR, "no upstream could be reached over TLS")
            }
            Self::Malformed(_) => {
                ExtendedError::new(ExtendedError::NETWORK_ERROR, "upstream sent a reply that cannot be used")
            }
            Self::Bogus { why, .. } => ExtendedError::new(ExtendedError::BOGUS, &**why),
            Self::Busy => ExtendedError::new(ExtendedError::OTHER, "too many questions at once"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_telling_failure_names_the_error() {
        let at = |text: &str| text.parse().unwrap();
        let refused = Failure::Rcode(Rcode::REFUSED, None);
        let error = UpstreamError::of(vec![
            (at("192.0.2.53:53"), Failure::Network(io::ErrorKind::ConnectionRefused)),
            (at("192.0.2.54:53"), Failure::Timeout),
            (at("192.0.2.55:53"), refused),
        ]);
        assert!(matches!(error, UpstreamError::ServerFailure { rcode: Rcode::REFUSED, .. }));
        assert_eq!(
            error.to_string(),
            "192.0.2.53:53 could not be reached (connection refused), 192.0.2.54:53 did not answer, \
             192.0.2.55:53 said REFUSED"
        );
        assert_eq!(error.ede(), ExtendedError::new(22, "upstream said REFUSED"));
        assert_eq!(UpstreamError::of(Vec::new()).to_string(), "no server gave an answer");
    }
}
