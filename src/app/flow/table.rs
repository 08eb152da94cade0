//! The flows that live, as they were judged when they began.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use foldhash::quality::RandomState;

use super::judge::Judged;
use crate::firewall::{Endpoints, Seen};
use crate::time::Wall;

/// Which flow: its two ends, and the kernel's number, since the same ends may meet again at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// IPv4 as it is mapped into IPv6: an address of a packet never looks so.
    from: [u8; 16],
    to: [u8; 16],
    ports: [u16; 2],
    id: u32,
    protocol: u8,
}

impl Key {
    pub(super) fn of(seen: &Seen) -> Self {
        let Endpoints { from, to, protocol, ports } = seen.ends;
        Self { from: mapped(from), to: mapped(to), ports, id: seen.id, protocol }
    }

    pub(super) fn ends(&self) -> Endpoints {
        let address = |octets| IpAddr::V6(Ipv6Addr::from(octets)).to_canonical();
        Endpoints { from: address(self.from), to: address(self.to), protocol: self.protocol, ports: self.ports }
    }
}

fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(four) => four.to_ipv6_mapped().octets(),
        IpAddr::V6(six) => six.octets(),
    }
}

/// A flow that lives.
#[derive(Clone, Debug)]
pub(super) struct Live {
    /// When it began, or was seen first.
    pub(super) since: Wall,
    pub(super) judged: Arc<Judged>,
}

/// What is known at once.
pub(super) struct Table {
    flows: HashMap<Key, Live, RandomState>,
    most: usize,
}

impl Table {
    /// With room for `most`.
    pub(super) fn new(most: usize) -> Self {
        Self { flows: HashMap::default(), most }
    }

    pub(super) fn len(&self) -> usize {
        self.flows.len()
    }

    pub(super) fn has(&self, key: &Key) -> bool {
        self.flows.contains_key(key)
    }

    /// `false`: there is no room.
    pub(super) fn put(&mut self, key: Key, live: Live) -> bool {
        if self.flows.len() >= self.most && !self.flows.contains_key(&key) {
            return false;
        }
        self.flows.insert(key, live);
        true
    }

    pub(super) fn take(&mut self, key: &Key) -> Option<Live> {
        let live = self.flows.remove(key);
        // What a crowd needed is given back; an eighth is not worth the copying.
        if self.flows.capacity() > 1 << 16 && self.flows.len() < self.flows.capacity() / 8 {
            self.flows.shrink_to(self.flows.len() * 2);
        }
        live
    }

    /// Those that are not among `living`.
    pub(super) fn gone(&self, living: &HashSet<Key, RandomState>) -> Vec<Key> {
        self.flows.keys().filter(|key| !living.contains(key)).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::flow::judge::Judged;

    fn seen(from: &str, id: u32) -> Seen {
        let ends = Endpoints {
            from: from.parse().unwrap(),
            to: "198.51.100.7".parse().unwrap(),
            protocol: 6,
            ports: [40_000, 443],
        };
        Seen { id, ends, translated: None, admitted: true, began: None, ended: None, at: None, counts: None }
    }

    #[test]
    fn a_live_flow_takes_64_bytes() {
        assert_eq!(size_of::<(Key, Live)>(), 64);
    }

    #[test]
    fn a_key_tells_its_ends() {
        for from in ["192.0.2.1", "2001:db8::1"] {
            let seen = seen(from, 7);
            assert_eq!(Key::of(&seen).ends(), seen.ends);
        }
    }

    #[test]
    fn a_full_table_takes_no_more_and_keeps_what_it_has() {
        let mut table = Table::new(2);
        let live = Live { since: Wall(1), judged: Arc::new(Judged::default()) };
        let keys = [1, 2, 3].map(|id| Key::of(&seen("192.0.2.1", id)));
        assert!(table.put(keys[0], live.clone()) && table.put(keys[1], live.clone()));
        assert!(!table.put(keys[2], live.clone()) && table.put(keys[0], live));
        assert_eq!(table.gone(&HashSet::from_iter([keys[1]])), [keys[0]]);
        assert!(table.take(&keys[0]).is_some() && table.take(&keys[0]).is_none());
        assert_eq!(table.len(), 1);
    }
}
