//! What operators change while the node runs: orders as they come over the admin socket, and what became of them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::policy::Action;

/// Allow or deny something for a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangeOrder {
    /// What it does.
    pub action: ChangeAction,
    /// Names and patterns as in a rule, or addresses and prefixes; not both.
    pub targets: Vec<String>,
    /// For which segments; empty: for all, which only a deny may be for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub segments: Vec<String>,
    /// For this client alone; its segment is the one that it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<IpAddr>,
    /// For how long, in seconds; absent: until it is retracted, which only a deny may be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub for_s: Option<u64>,
    /// As in a rule; empty: as a rule without them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<String>,
    /// As in a rule; empty: as a rule without them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub types: Vec<String>,
    /// As in a rule: private addresses that it may open.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub private: Vec<String>,
    /// What for.
    pub reason: String,
    /// Where that was agreed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticket: Option<String>,
    /// Of an allow: at its end connections are cut too.
    #[serde(default)]
    pub cut: bool,
}

/// What a change does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeAction {
    /// Lets names be resolved and addresses be reached.
    Allow,
    /// Refuses, closes and cuts.
    Deny,
}

impl ChangeAction {
    /// The word in records and rules.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }

    /// As rules have it.
    #[must_use]
    pub const fn of_rule(self) -> Action {
        match self {
            Self::Allow => Action::Allow,
            Self::Deny => Action::Deny,
        }
    }
}

/// Place a client in a segment, whatever the prefixes of segments say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlaceOrder {
    /// Which.
    pub client: IpAddr,
    /// Its segment's name.
    pub segment: String,
    /// For how long, in seconds; absent: until it is taken out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub for_s: Option<u64>,
    /// Words of your own that its records carry.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// A client that is placed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientRow {
    /// Which.
    pub client: IpAddr,
    /// Its segment's name.
    pub segment: String,
    /// When it goes back to where the prefixes of segments have it, RFC 3339; absent: it stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// Words that its records carry.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The watched file says so, and nobody by hand.
    pub from_file: bool,
}

/// Close what is open now; it may be opened again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevokeOrder {
    /// Of this client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<IpAddr>,
    /// To this address, or an address of this prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// For this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// And for the names below it.
    #[serde(default)]
    pub below: bool,
    /// Of this segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segment: Option<String>,
    /// Under this rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Cut the connections too.
    #[serde(default)]
    pub cut: bool,
    /// What for.
    pub reason: String,
}

/// Close and cut everything of a client, and take it out of the segment that it was placed in: its address is about to be
/// another's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForgetOrder {
    /// Which.
    pub client: IpAddr,
    /// What for.
    pub reason: String,
}
