//! What is open without a look-up, as the policy in force and this node's own settings say.

use crate::app::history;
use crate::firewall;
use crate::flow::Static;
use crate::net::{Prefix, Services};
use crate::policy::Policy;
use crate::upstream::Upstreams;

/// What is open without a look-up: by rules for networks and by the firewall's settings; on a host that governs itself, its
/// own upstream servers too.
pub(super) fn statics(policy: &Policy, firewall: &firewall::Settings, upstreams: &Upstreams) -> Vec<Static> {
    let mut all = history::statics(policy);
    let open = |network, services| Static { segment: None, rule: None, network, services, until: None };
    all.extend(history::spared(firewall));
    if firewall.plan.local_clients_only() {
        for server in upstreams.all().iter().flat_map(|upstream| upstream.described().collect::<Vec<_>>()) {
            let (address, port) = (server.address.ip(), server.address.port());
            all.push(open(Prefix::from(address), vec![Services::Tcp(port, port), Services::Udp(port, port)]));
        }
    }
    all
}
