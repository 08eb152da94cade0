//! Why a server gave no answer, and what that comes to when none did.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::record::{ExtendedError, Rcode};
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
    /// Its reply is not a DNS message.
    #[error("sent a broken reply ({0})")]
    Unreadable(Fault),
    /// Its reply makes no sense.
    #[error("sent a wrong reply ({0})")]
    Nonsense(Nonsense),
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
    /// A server's reply could not be used.
    #[error("{0}")]
    Malformed(Attempts),
    /// Too many questions are being asked at once.
    #[error("8192 questions are in flight already")]
    Busy,
}

impl UpstreamError {
    /// What it comes to when every server failed so: the most telling failure gives the variant, in the order
    /// code, broken reply, timeout, network.
    #[must_use]
    pub(super) fn of(attempts: Vec<(SocketAddr, Failure)>) -> Self {
        let rank = |failure: &Failure| match failure {
            Failure::Rcode(..) => 0,
            Failure::Unreadable(_) | Failure::Nonsense(_) => 1,
            Failure::Timeout => 2,
            Failure::Network(_) => 3,
        };
        let telling = attempts.iter().map(|(_, failure)| failure).min_by_key(|failure| rank(failure)).cloned();
        let attempts = Attempts(Arc::from(attempts));
        match telling {
            Some(Failure::Rcode(rcode, ede)) => Self::ServerFailure { rcode, ede, attempts },
            Some(Failure::Unreadable(_) | Failure::Nonsense(_)) => Self::Malformed(attempts),
            Some(Failure::Network(_)) => Self::Network(attempts),
            Some(Failure::Timeout) | None => Self::Timeout(attempts),
        }
    }

    /// Whether it is worth remembering: not where we are to blame, or ran out of time.
    #[must_use]
    pub const fn is_of_upstream(&self) -> bool {
        match self {
            Self::Timeout(_) | Self::ServerFailure { .. } | Self::Network(_) | Self::Malformed(_) => true,
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
            Self::Malformed(_) => {
                ExtendedError::new(ExtendedError::NETWORK_ERROR, "upstream sent a reply that cannot be used")
            }
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
