//! What a configuration says of flows: who is in which segment, and what is open without a look-up.

use std::net::IpAddr;
use std::sync::Arc;

use crate::firewall;
use crate::flow::Static;
use crate::net::{Prefix, PrefixMap, Services};
use crate::policy::{Action, Policy};

/// A segment as records name it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::app) struct Segment {
    pub(in crate::app) name: Arc<str>,
    /// Its tags as one JSON object; empty: none.
    pub(in crate::app) tags: Arc<str>,
}

/// Segments by where their flows come from.
#[derive(Default)]
pub(in crate::app) struct Sources(PrefixMap<Segment>);

impl Sources {
    pub(in crate::app) fn new(policy: &Policy) -> Self {
        let mut map = PrefixMap::default();
        for segment in policy.segments() {
            let named = Segment { name: Arc::clone(&segment.name), tags: Arc::from(&*segment.tags_json) };
            for source in &segment.sources {
                map.insert(*source, named.clone());
            }
        }
        Self(map)
    }

    pub(in crate::app) fn of(&self, address: IpAddr) -> Option<&Segment> {
        self.0.longest(address)
    }
}

/// What a policy opens without look-ups.
pub(in crate::app) fn statics(policy: &Policy) -> Vec<Static> {
    let mut statics = Vec::new();
    for (segment, rule) in policy.network_rules().filter(|(_, rule)| rule.action == Action::Allow) {
        statics.extend(rule.networks.iter().map(|network| Static {
            segment: Some((&*segment.name).into()),
            rule: Some((&*rule.id).into()),
            network: *network,
            services: rule.ports.clone(),
            until: rule.expires,
        }));
    }
    statics
}

/// The address of a resolver.
pub(in crate::app) fn resolver(address: IpAddr) -> Static {
    Static { segment: None, rule: None, network: Prefix::from(address), services: vec![Services::Any], until: None }
}

/// What a firewall opens to everybody: resolvers, and what it does not gate.
pub(in crate::app) fn spared(firewall: &firewall::Settings) -> impl Iterator<Item = Static> + use<> {
    let open = |(network, services)| Static { segment: None, rule: None, network, services, until: None };
    firewall.plan.spared().into_iter().map(open)
}
