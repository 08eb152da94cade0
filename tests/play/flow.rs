//! OPEN and CLOSED: from whom to where by what, and for how long.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use outgate::net::{Element, Scope, SegmentId};

use super::script::address;

/// From whom to where by what; what is not said is any.
#[derive(Debug, Default)]
pub(crate) struct Flow {
    from: Option<Scope>,
    to: Option<IpAddr>,
    service: Option<String>,
    text: String,
}

impl Flow {
    pub(crate) fn covers(&self, element: &Element) -> bool {
        self.from.is_none_or(|from| from == element.from)
            && self.to.is_none_or(|to| to == element.to)
            && self.service.as_ref().is_none_or(|service| *service == element.service.to_string())
    }

    /// `FROM > TO [SERVICE]`.
    pub(super) fn read(words: &[String]) -> Result<Self, String> {
        let [from, arrow, to, service @ ..] = words else { return Err("write FROM > TO SERVICE".to_owned()) };
        if arrow != ">" || service.len() > 1 {
            return Err("write FROM > TO SERVICE".to_owned());
        }
        let from = match from.strip_prefix("segment:") {
            _ if from == "*" => None,
            Some(name) => Some(Scope::Segment(SegmentId::of(name))),
            None => Some(Scope::Client(address(from)?)),
        };
        let to = if to == "*" { None } else { Some(address(to)?) };
        Ok(Self { from, to, service: service.first().cloned(), text: words.join(" ") })
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// How long something should stay open.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    Any,
    In(Duration),
    AtLeast(Duration),
}

impl End {
    pub(crate) fn holds(self, left: Duration) -> bool {
        match self {
            Self::Any => true,
            // Less than a second is what the TTL's rounding gives away.
            Self::In(wanted) => left.as_secs() == wanted.as_secs(),
            Self::AtLeast(least) => left >= least,
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => Ok(()),
            Self::In(wanted) => write!(f, " for {wanted:?}"),
            Self::AtLeast(least) => write!(f, " for at least {least:?}"),
        }
    }
}
