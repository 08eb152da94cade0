//! The words of a flow: what carries it, what it is classed as and why, where it was seen.

use std::fmt;
use std::str::FromStr;

use crate::net::Services;

/// What carries a flow: a port of TCP or UDP, or another protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Carrier {
    /// To a TCP port.
    Tcp(u16),
    /// To a UDP port.
    Udp(u16),
    /// ICMP of the address's family.
    Icmp,
    /// Another protocol, by its number.
    Protocol(u8),
}

impl Carrier {
    /// Of an IP protocol number and the port that the flow goes to.
    #[must_use]
    pub const fn of(protocol: u8, port: u16) -> Self {
        match protocol {
            6 => Self::Tcp(port),
            17 => Self::Udp(port),
            1 | 58 => Self::Icmp,
            other => Self::Protocol(other),
        }
    }

    /// Whether this is among `services`.
    #[must_use]
    pub const fn is_in(self, services: Services) -> bool {
        match (services, self) {
            (Services::Any, _) | (Services::Icmp, Self::Icmp) => true,
            (Services::Tcp(first, last), Self::Tcp(port)) | (Services::Udp(first, last), Self::Udp(port)) => {
                first <= port && port <= last
            }
            _ => false,
        }
    }
}

impl fmt::Display for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(port) => write!(f, "tcp/{port}"),
            Self::Udp(port) => write!(f, "udp/{port}"),
            Self::Icmp => f.write_str("icmp"),
            Self::Protocol(number) => write!(f, "protocol/{number}"),
        }
    }
}

impl FromStr for Carrier {
    type Err = ();

    /// Reads what `Display` writes.
    fn from_str(text: &str) -> Result<Self, ()> {
        Ok(match text.split_once('/') {
            None if text == "icmp" => Self::Icmp,
            Some(("tcp", port)) => Self::Tcp(port.parse().map_err(|_| ())?),
            Some(("udp", port)) => Self::Udp(port.parse().map_err(|_| ())?),
            Some(("protocol", number)) => Self::Protocol(number.parse().map_err(|_| ())?),
            _ => return Err(()),
        })
    }
}

/// Makes an enum of words: its variants, `ALL`, and the words in records and metric labels.
macro_rules! words {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$doc])* $variant),+ }

        impl $name {
            /// Every one.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The word in records and metric labels.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }

            /// The one that this word is of.
            #[must_use]
            pub fn of_word(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|known| known.as_str() == word)
            }
        }
    };
}

words! {
    /// What a flow went out by, judged at its start.
    Class {
        /// One name was told to the client for this address, and held when the flow began.
        Exact = "exact",
        /// Several were.
        Ambiguous = "ambiguous",
        /// One was, and had ended.
        Stale = "stale",
        /// None was.
        None = "none",
        /// A rule for networks covers the address, or it is a resolver.
        Static = "static",
        /// The log does not say all that is needed.
        Unknown = "unknown",
    }
}

words! {
    /// A class told more exactly.
    Detail {
        /// Ambiguous: all names are by one rule.
        SameRule = "same_rule",
        /// Ambiguous: they are by several rules.
        Mixed = "mixed",
        /// Stale: what was told had ended, the firewall was still open.
        Grace = "grace",
        /// Stale: the firewall's end had passed, too.
        Cached = "cached",
        /// None: the address was told to others for a name that is denied to this client.
        DeniedName = "denied_name",
        /// None: the address was told to others only.
        PeerName = "peer_name",
        /// None: nobody was told the address.
        UnknownAddress = "unknown_address",
        /// None: a name was told for the address and opened other services than this one.
        OtherService = "other_service",
        /// Unknown: records of the query log are missing.
        LogGap = "log_gap",
        /// Unknown: the client was told more addresses than the record of its query has room for.
        Unlisted = "unlisted",
        /// Unknown: the source lost events.
        EventsLost = "events_lost",
        /// Unknown: the flow's beginning was not seen.
        Start = "start",
        /// Unknown: the client is none that asks here; its address may have been translated.
        Nat = "nat",
        /// Unknown: the history does not reach back far enough.
        Young = "young",
    }
}

words! {
    /// Where a flow was seen.
    Origin {
        /// The kernel's table of connections.
        Conntrack = "conntrack",
        /// The firewall's log of what it refused.
        Nflog = "nflog",
        /// Flow logs of an AWS VPC.
        Vpc = "vpc",
        /// `conn.log` of Zeek.
        Zeek = "zeek",
    }
}

impl Class {
    /// Whether the bytes of such a flow are explained: by one name, by a network, or by names of one rule.
    #[must_use]
    pub fn explains(self, detail: Option<Detail>) -> bool {
        matches!((self, detail), (Self::Exact | Self::Static, _) | (_, Some(Detail::SameRule)))
    }
}

/// The id of a query's record, as three numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueryId {
    /// The process that wrote it.
    pub boot: u64,
    /// Which of its threads.
    pub shard: u16,
    /// The number.
    pub sequence: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn carriers_round_trip() {
        for carrier in [Carrier::of(6, 443), Carrier::of(17, 53), Carrier::of(58, 0), Carrier::of(47, 9)] {
            assert_eq!(carrier.to_string().parse(), Ok(carrier));
        }
        for text in ["tcp/65536", "sctp/1", "protocol/256", "tcp", ""] {
            text.parse::<Carrier>().unwrap_err();
        }
    }

    #[test]
    fn a_carrier_is_in_the_services_that_name_it() {
        let rows = [
            ("any", "protocol/47", true),
            ("icmp", "icmp", true),
            ("tcp/80-90", "tcp/90", true),
            ("tcp/80-90", "udp/90", false),
            ("udp/53", "udp/54", false),
        ];
        for (services, carrier, expected) in rows {
            assert_eq!(carrier.parse::<Carrier>().unwrap().is_in(services.parse().unwrap()), expected, "{carrier}");
        }
    }

    #[test]
    fn words_are_read_back() {
        assert!(Class::ALL.iter().all(|class| Class::of_word(class.as_str()) == Some(*class)));
        assert!(Detail::ALL.iter().all(|detail| Detail::of_word(detail.as_str()) == Some(*detail)));
        assert_eq!(Origin::of_word("vpn"), None);
    }
}
