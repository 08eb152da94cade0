//! What a policy says of flows: who is in which segment, and what is open without a look-up.

use std::net::IpAddr;
use std::sync::Arc;

use crate::app::history;
use crate::firewall;
use crate::flow::Static;
use crate::net::{Prefix, PrefixMap, Services};
use crate::policy::Policy;
use crate::upstream::Upstreams;

/// A segment as records name it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Segment {
    pub(super) name: Arc<str>,
    /// Its tags as one JSON object; empty: none.
    pub(super) tags: Arc<str>,
}

/// By where flows come from.
#[derive(Default)]
pub(super) struct Sources(PrefixMap<Segment>);

impl Sources {
    pub(super) fn new(policy: &Policy) -> Self {
        let mut map = PrefixMap::default();
        for segment in policy.segments() {
            let named = Segment { name: Arc::clone(&segment.name), tags: Arc::from(&*segment.tags_json) };
            for source in &segment.sources {
                map.insert(*source, named.clone());
            }
        }
        Self(map)
    }

    pub(super) fn of(&self, address: IpAddr) -> Option<&Segment> {
        self.0.longest(address)
    }
}

/// What is open without a look-up: by rules for networks and by the firewall's settings; on a host that governs itself, its
/// own upstream servers too.
pub(super) fn statics(policy: &Policy, firewall: &firewall::Settings, upstreams: &Upstreams) -> Vec<Static> {
    let mut all = history::statics(policy);
    let open = |network, services| Static { segment: None, rule: None, network, services, until: None };
    all.extend(firewall.plan.spared().into_iter().map(|(network, services)| open(network, services)));
    if firewall.plan.local_clients_only() {
        for server in upstreams.all().iter().flat_map(|upstream| upstream.described().collect::<Vec<_>>()) {
            let (address, port) = (server.address.ip(), server.address.port());
            all.push(open(Prefix::from(address), vec![Services::Tcp(port, port), Services::Udp(port, port)]));
        }
    }
    all
}
