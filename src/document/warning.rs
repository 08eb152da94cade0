//! What is no mistake and yet worth a look: every kind in one table.

use std::fmt;

use super::{Mistake, Place};

macro_rules! kinds {
    ($($name:ident = $word:literal $meaning:literal;)*) => {
        /// What a warning is of.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum WarningKind {
            $(#[doc = $meaning] $name,)*
        }

        impl WarningKind {
            /// Every kind, in the order of docs/policy.md.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Its word, which stays the same whatever the sentence says.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)*
                }
            }
        }
    };
}

kinds! {
    Denied = "denied" "A rule allows nothing but what others deny.";
    Redundant = "redundant" "A rule opens nothing that others do not open.";
    Tenants = "tenants" "A wildcard holds names that anybody can have.";
    Channel = "channel" "A wildcard with a type whose data is free.";
    Caps = "caps" "More would be open than may be.";
    Special = "special" "A special-use name that nobody serves is allowed.";
    Private = "private" "`private` holds what stays closed.";
    IdleSegment = "idle_segment" "No rule is for a segment.";
    UnusedGroup = "unused_group" "No rule names a group.";
    NoAuthority = "no_authority" "A certificate names a segment, and nobody's are trusted.";
    Expired = "expired" "A rule has ended.";
    Expiring = "expiring" "A rule ends soon.";
    Enforcing = "enforcing" "A segment that was to observe enforces.";
    EnforcingSoon = "enforcing_soon" "A segment begins to enforce soon.";
    ClearText = "clear_text" "An upstream is asked in clear text where encryption fails.";
    Multicast = "multicast" "A zone that many hosts ask by multicast is served.";
    Change = "change" "A change made while the node runs cannot be laid over the policy, or the file of clients cannot be read.";
    Certificate = "certificate" "The node's own certificate or key.";
}

/// A mistake that stops nothing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Warning {
    /// Where, what, and what to do.
    pub said: Mistake,
    /// What it is of.
    pub kind: WarningKind,
}

impl Warning {
    /// A warning that concerns no single line.
    pub fn general(kind: WarningKind, fact: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { said: Mistake::general(fact, remedy), kind }
    }

    /// A warning at a place.
    pub fn at(kind: WarningKind, place: Place, fact: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { said: Mistake::at(place, fact, remedy), kind }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.said, f)
    }
}
