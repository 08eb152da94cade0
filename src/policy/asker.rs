//! Who asks: the sender of a query, or the client that a forwarder names in it.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;

use super::Policy;
use super::verdict::SegmentIndex;
use crate::document::Place;
use crate::net::{Prefix, PrefixMap, canonical};

/// A resolver or proxy below us that asks for others.
#[derive(Clone, Debug)]
pub struct Forwarder {
    /// Unique.
    pub name: String,
    /// Where it asks from.
    pub addresses: Vec<Prefix>,
    /// How it says who asked.
    pub identity: Identity,
    /// The segment of the queries that it names no client of; `None`: they are refused.
    pub segment: Option<String>,
    /// Where it stands.
    pub place: Place,
}

/// How a forwarder says who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// Not at all.
    None,
    /// By EDNS client subnet (RFC 7871) of one whole address.
    Subnet,
    /// By a PROXY header, version 2, before the message or the connection.
    Proxy,
}

impl Identity {
    /// Each with its word in the configuration.
    pub const ALL: [(Self, &'static str); 3] = [(Self::None, "none"), (Self::Subnet, "ecs"), (Self::Proxy, "proxy")];
}

/// Who asks: the client's address, the segment it belongs to, and the forwarder that asked for it, if any.
/// Made by [`Policy::asker`] and [`Policy::named`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Asker {
    /// The client; where a forwarder names none, the forwarder.
    pub client: IpAddr,
    /// The forwarder named the client.
    pub(super) named: bool,
    pub(super) segment: SegmentIndex,
    /// Its place in the policy's forwarders, from 1: an asker is kept with every reply that a worker told last.
    pub(super) forwarder: Option<NonZeroU32>,
}

impl Asker {
    /// The place of its segment in [`Policy::segments`].
    #[must_use]
    pub const fn place(&self) -> usize {
        self.segment.0 as usize
    }

    /// Who named the client; `None`: it is the sender. With the client's address this is all that an asker depends on.
    #[must_use]
    pub const fn named_by(&self) -> Option<NonZeroU32> {
        if self.named { self.forwarder } else { None }
    }
}

/// Whose which addresses are.
#[derive(Debug, Default)]
pub(super) struct Directory {
    pub(super) clients: PrefixMap<SegmentIndex>,
    pub(super) forwarders: PrefixMap<Relay>,
    /// In their order.
    pub(super) names: Vec<Arc<str>>,
    /// A forwarder names clients by subnet, or by PROXY header: else nothing of the kind is looked at.
    pub(super) subnets: bool,
    pub(super) proxies: bool,
}

/// A forwarder as its address is known.
#[derive(Clone, Copy, Debug)]
pub(super) struct Relay {
    /// As in [`Asker`].
    pub(super) number: Option<NonZeroU32>,
    pub(super) identity: Identity,
    pub(super) segment: Option<SegmentIndex>,
}

impl Policy {
    /// Who asks where the sender's address is all that is known: the forwarder's segment where it is a forwarder, else the
    /// segment with the longest prefix; `None` where there is none.
    #[must_use]
    pub fn asker(&self, sender: IpAddr) -> Option<Asker> {
        let client = canonical(sender);
        // It stands for whole segments; no packet comes from there.
        if client.is_unspecified() {
            return None;
        }
        if let Some(relay) = self.directory.forwarders.longest(client) {
            return Some(Asker { client, named: false, segment: relay.segment?, forwarder: relay.number });
        }
        self.member(client)
    }

    /// The client at this address, whoever else it may be.
    pub(super) fn member(&self, client: IpAddr) -> Option<Asker> {
        let client = canonical(client);
        if client.is_unspecified() {
            return None;
        }
        let segment = *self.directory.clients.longest(client)?;
        Some(Asker { client, named: false, segment, forwarder: None })
    }

    /// Who asks where the forwarder at `sender` says that it is `client`: of the segment with the longest prefix, whatever
    /// the forwarder's own is. `None` where there is none, and where nobody who names clients has that address.
    #[must_use]
    pub fn named(&self, sender: IpAddr, client: IpAddr) -> Option<Asker> {
        let relay = self.directory.forwarders.longest(canonical(sender))?;
        let forwarder = relay.number.filter(|_| relay.identity != Identity::None)?;
        Some(Asker { named: true, forwarder: Some(forwarder), ..self.member(client)? })
    }

    /// How the forwarder at this address says who asked; `None`: there is none.
    #[must_use]
    pub fn identity(&self, sender: IpAddr) -> Option<Identity> {
        self.directory.forwarders.longest(canonical(sender)).map(|relay| relay.identity)
    }

    /// Whether this sender names clients by subnet.
    #[must_use]
    pub fn takes_subnet(&self, sender: IpAddr) -> bool {
        self.directory.subnets && self.identity(sender) == Some(Identity::Subnet)
    }

    /// Whether this sender names clients by PROXY header.
    #[must_use]
    pub fn takes_proxy(&self, sender: IpAddr) -> bool {
        self.directory.proxies && self.identity(sender) == Some(Identity::Proxy)
    }

    /// The name of the forwarder at this address.
    #[must_use]
    pub fn forwarder_at(&self, sender: IpAddr) -> Option<&Arc<str>> {
        self.numbered(self.directory.forwarders.longest(canonical(sender))?.number)
    }

    /// The name of the forwarder that asked, if one did.
    #[must_use]
    pub fn forwarder(&self, asker: Asker) -> Option<&Arc<str>> {
        self.numbered(asker.forwarder)
    }

    fn numbered(&self, forwarder: Option<NonZeroU32>) -> Option<&Arc<str>> {
        self.directory.names.get(forwarder?.get() as usize - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Settings;
    use crate::policy::testing::{address, policy_with};

    #[test]
    fn who_asks_is_who_sent_it_or_whom_a_forwarder_names() {
        let text = r#"
[[segment]]
name    = "cluster"
clients = ["192.0.2.0/24"]
scope   = "segment"
[[segment]]
name    = "shop"
clients = ["192.0.2.64/26", "2001:db8::/64"]
[[segment]]
name    = "probes"
"#;
        let place = Place { file: "outgate.toml".into(), line: 1, column: 1 };
        let forwarder = |name: &str, from: &str, identity, segment: Option<&str>| Forwarder {
            name: name.to_owned(),
            addresses: vec![from.parse().unwrap()],
            identity,
            segment: segment.map(str::to_owned),
            place: place.clone(),
        };
        let forwarders = vec![
            forwarder("plain", "203.0.113.1/32", Identity::None, Some("cluster")),
            forwarder("ecs", "203.0.113.2/32", Identity::Subnet, Some("probes")),
            forwarder("proxy", "203.0.113.3/32", Identity::Proxy, None),
            // Its address is a client's as well: whom it names is never looked up among the forwarders.
            forwarder("inside", "192.0.2.65/32", Identity::Subnet, None),
        ];
        let policy = policy_with(text, &Settings { forwarders, ..Settings::default() });
        let shown = |asker: Option<Asker>| {
            asker.map_or_else(
                || "nobody".to_owned(),
                |asker| {
                    let by = policy.forwarder(asker).map_or_else(String::new, |name| format!(" by {name}"));
                    let own = if asker.named_by().is_some() { " named" } else { "" };
                    format!("{} in {}{by}{own}", asker.client, policy.segment(asker).name)
                },
            )
        };
        for (sender, named, expected) in [
            ("192.0.2.1", None, "192.0.2.1 in cluster"),
            ("::ffff:192.0.2.66", None, "192.0.2.66 in shop"),
            ("198.51.100.1", None, "nobody"),
            ("203.0.113.1", None, "203.0.113.1 in cluster by plain"),
            ("203.0.113.1", Some("192.0.2.66"), "nobody"),
            ("203.0.113.2", None, "203.0.113.2 in probes by ecs"),
            ("203.0.113.2", Some("192.0.2.66"), "192.0.2.66 in shop by ecs named"),
            ("203.0.113.2", Some("::ffff:192.0.2.66"), "192.0.2.66 in shop by ecs named"),
            ("203.0.113.2", Some("192.0.2.1"), "192.0.2.1 in cluster by ecs named"),
            ("203.0.113.2", Some("198.51.100.1"), "nobody"),
            ("203.0.113.2", Some("203.0.113.1"), "nobody"),
            ("203.0.113.3", None, "nobody"),
            ("::ffff:203.0.113.3", Some("2001:db8::7"), "2001:db8::7 in shop by proxy named"),
            ("203.0.113.3", Some("192.0.2.65"), "192.0.2.65 in shop by proxy named"),
            ("192.0.2.65", None, "nobody"),
            ("192.0.2.1", Some("192.0.2.66"), "nobody"),
        ] {
            let asker = match named {
                None => policy.asker(address(sender)),
                Some(client) => policy.named(address(sender), address(client)),
            };
            assert_eq!(shown(asker), expected, "{sender} {named:?}");
        }
        let takes = |sender: &str| (policy.takes_subnet(address(sender)), policy.takes_proxy(address(sender)));
        assert_eq!(
            ["203.0.113.1", "203.0.113.2", "203.0.113.3", "192.0.2.66"].map(takes),
            [(false, false), (true, false), (false, true), (false, false)]
        );
        assert_eq!(policy.forwarder_at(address("203.0.113.3")).map(AsRef::as_ref), Some("proxy"));
    }
}
