//! Who asks: the sender of a query, the client that a forwarder names in it, or who showed a certificate.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;

use super::verdict::SegmentIndex;
use super::{GrantScope, Policy};
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
/// Made by [`Policy::asker`], [`Policy::named`] and [`Policy::certified`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Asker {
    /// The client; where a forwarder names none, the forwarder.
    pub client: IpAddr,
    /// The forwarder named the client, or the certificate its segment.
    pub(super) named: bool,
    pub(super) segment: SegmentIndex,
    /// The place, from 1, of the forwarder among the policy's, or behind all of them of the name in the certificate: an
    /// asker is kept with every reply that a worker told last.
    pub(super) voucher: Option<NonZeroU32>,
}

impl Asker {
    /// The place of its segment in [`Policy::segments`].
    #[must_use]
    pub const fn place(&self) -> usize {
        self.segment.0 as usize
    }

    /// What named the client or its segment; `None`: the sender's address. With the client's address this is all that an
    /// asker depends on.
    #[must_use]
    pub const fn named_by(&self) -> Option<NonZeroU32> {
        if self.named { self.voucher } else { None }
    }
}

/// Whose which addresses are.
#[derive(Debug, Default)]
pub(super) struct Directory {
    pub(super) clients: PrefixMap<SegmentIndex>,
    pub(super) forwarders: PrefixMap<Relay>,
    /// The names of the forwarders in their order, then those of certificates.
    pub(super) names: Vec<Arc<str>>,
    pub(super) forwarder_count: usize,
    /// By the name in the certificate, and its place from 1 among `names`.
    pub(super) certificates: HashMap<Arc<str>, (Option<NonZeroU32>, SegmentIndex)>,
    /// Whose flows come from where: what firewalls know a segment by.
    pub(super) sources: PrefixMap<SegmentIndex>,
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
            return Some(Asker { client, named: false, segment: relay.segment?, voucher: relay.number });
        }
        self.member(client)
    }

    /// The client at this address, whoever else it may be.
    pub(super) fn member(&self, client: IpAddr) -> Option<Asker> {
        let client = canonical(client);
        if client.is_unspecified() {
            return None;
        }
        let segment = match self.placed.get(&client) {
            Some(placed) => placed.segment,
            None => *self.directory.clients.longest(client)?,
        };
        Some(Asker { client, named: false, segment, voucher: None })
    }

    /// Who asks where the forwarder at `sender` says that it is `client`: of the segment with the longest prefix, whatever
    /// the forwarder's own is. `None` where there is none, and where nobody who names clients has that address.
    #[must_use]
    pub fn named(&self, sender: IpAddr, client: IpAddr) -> Option<Asker> {
        let relay = self.directory.forwarders.longest(canonical(sender))?;
        let forwarder = relay.number.filter(|_| relay.identity != Identity::None)?;
        Some(Asker { named: true, voucher: Some(forwarder), ..self.member(client)? })
    }

    /// Who asks where the sender has shown a certificate of these names: of the segment that one of them names, else as
    /// [`Policy::asker`] has it. `None` also where they name several segments, and where no firewall would let this address
    /// have what is opened: flows are known by their sources alone. A forwarder's certificate says nothing of its clients.
    #[must_use]
    pub fn certified(&self, sender: IpAddr, names: &[Box<str>]) -> Option<Asker> {
        let client = canonical(sender);
        let mut known = names.iter().filter_map(|name| self.directory.certificates.get(&**name));
        let Some((voucher, segment)) = known.next().filter(|_| self.identity(client).is_none()) else {
            return self.asker(client);
        };
        let asker = Asker { client, named: true, segment: *segment, voucher: *voucher };
        (known.all(|(_, other)| other == segment) && self.is_reachable(asker)).then_some(asker)
    }

    /// The same of one whose certificate has this name that [`Policy::certificate`] told; I6 asks it again.
    pub(super) fn certified_as(&self, client: IpAddr, name: &str) -> Option<Asker> {
        let (voucher, segment) = self.directory.certificates.get(name)?;
        let asker = Asker { client: canonical(client), named: true, segment: *segment, voucher: *voucher };
        self.is_reachable(asker).then_some(asker)
    }

    /// Whether what is opened for this asker lets it connect.
    fn is_reachable(&self, asker: Asker) -> bool {
        let placed = self.placed.get(&asker.client).map(|placed| &placed.segment);
        let source = placed.or_else(|| self.directory.sources.longest(asker.client));
        let segment = self.segment(asker);
        match segment.scope {
            GrantScope::Client => source.is_some(),
            GrantScope::Segment => !segment.clients_connect || source == Some(&asker.segment),
        }
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
        self.numbered(asker.voucher).filter(|_| !self.is_certified(asker))
    }

    /// The name in a certificate by which the asker is of its segment.
    #[must_use]
    pub fn certificate(&self, asker: Asker) -> Option<&Arc<str>> {
        self.numbered(asker.voucher).filter(|_| self.is_certified(asker))
    }

    fn is_certified(&self, asker: Asker) -> bool {
        asker.voucher.is_some_and(|voucher| voucher.get() as usize > self.directory.forwarder_count)
    }

    fn numbered(&self, voucher: Option<NonZeroU32>) -> Option<&Arc<str>> {
        self.directory.names.get(voucher?.get() as usize - 1)
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

    #[test]
    fn a_certificate_names_the_segment_where_firewalls_know_the_address() {
        let text = r#"
[[segment]]
name    = "office"
clients = ["192.0.2.0/24"]
[[segment]]
name    = "build"
certificates = ["build.corp.example", "spiffe://corp.example/build"]
[[segment]]
name    = "deploy"
certificates = ["Deploy.corp.example"]
scope   = "segment"
connects_from = ["198.51.100.1"]
[[segment]]
name    = "shared"
clients = ["203.0.113.0/25"]
certificates = ["shared.corp.example"]
scope   = "segment"
"#;
        let place = Place { file: "outgate.toml".into(), line: 1, column: 1 };
        let relay = Forwarder {
            name: "edge".to_owned(),
            addresses: vec!["192.0.2.53/32".parse().unwrap()],
            identity: Identity::Proxy,
            segment: Some("office".to_owned()),
            place,
        };
        let policy = policy_with(text, &Settings { forwarders: vec![relay], ..Settings::default() });
        for (reason, sender, names, expected) in [
            ("by name", "192.0.2.1", &["build.corp.example"][..], "build by build.corp.example"),
            ("by URI", "192.0.2.1", &["spiffe://corp.example/build"], "build by spiffe://corp.example/build"),
            ("among others", "::ffff:192.0.2.1", &["x", "deploy.corp.example"], "deploy by deploy.corp.example"),
            (
                "twice the same",
                "192.0.2.1",
                &["build.corp.example", "spiffe://corp.example/build"],
                "build by build.corp.example",
            ),
            ("a name of no segment", "192.0.2.1", &["build.corp.example.org", "BUILD.corp.example"], "office"),
            ("none", "192.0.2.1", &[], "office"),
            ("two segments", "192.0.2.1", &["build.corp.example", "deploy.corp.example"], "nobody"),
            ("an address of no flows", "10.0.0.1", &["build.corp.example"], "nobody"),
            ("a proxy connects", "10.0.0.1", &["deploy.corp.example"], "deploy by deploy.corp.example"),
            ("opened for others' flows", "192.0.2.1", &["shared.corp.example"], "nobody"),
            ("opened for its own flows", "203.0.113.1", &["shared.corp.example"], "shared by shared.corp.example"),
            ("a forwarder", "192.0.2.53", &["build.corp.example"], "office"),
        ] {
            let names: Vec<Box<str>> = names.iter().map(|name| (*name).into()).collect();
            let asker = policy.certified(address(sender), &names);
            let shown = asker.map_or_else(
                || "nobody".to_owned(),
                |asker| {
                    let by = policy.certificate(asker).map_or_else(String::new, |name| format!(" by {name}"));
                    assert_eq!(asker.named_by().is_some(), !by.is_empty());
                    format!("{}{by}", policy.segment(asker).name)
                },
            );
            assert_eq!(shown, expected, "{reason}");
        }
    }
}
