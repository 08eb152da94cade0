//! Room on the slow path: so many queries in all, per segment, per client, per forwarder. Past it a query fails closed
//! at once, so that one client's flood is that client's own, and one segment's is that segment's (I5).

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::quality::RandomState;
use parking_lot::Mutex;

use crate::net::{SegmentId, host};

/// Queries on the slow path in all; each holds a packet and a task, some kilobytes.
const ALL: usize = 8_192;
/// Per segment: however many clients it has, three quarters are left to the others.
const SEGMENT: usize = ALL / 4;
/// Per client, as [`host`] counts it: a busy host's burst at start (guessed; Unbound's wait-limit is of that size).
const CLIENT: usize = 256;
/// Per forwarder: it asks for many, up to its segment's share.
const FORWARDER: usize = SEGMENT;

/// Room on the slow path.
#[derive(Clone, Debug, Default)]
pub struct Slots(Arc<Mutex<Taken>>);

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    segments: HashMap<SegmentId, usize, RandomState>,
    clients: HashMap<IpAddr, usize, RandomState>,
}

/// One query's place; dropping it makes room.
#[derive(Debug)]
pub struct Slot {
    slots: Slots,
    segment: SegmentId,
    client: IpAddr,
}

impl Slots {
    /// A place for a query of `client`, if there is room.
    #[must_use]
    pub fn take(&self, segment: SegmentId, client: IpAddr, is_forwarder: bool) -> Option<Slot> {
        let client = host(client);
        let mut taken = self.0.lock();
        let of_client = taken.clients.get(&client).copied().unwrap_or(0);
        let of_segment = taken.segments.get(&segment).copied().unwrap_or(0);
        let most = if is_forwarder { FORWARDER } else { CLIENT };
        if taken.all >= ALL || of_segment >= SEGMENT || of_client >= most {
            return None;
        }
        taken.all += 1;
        taken.segments.insert(segment, of_segment + 1);
        taken.clients.insert(client, of_client + 1);
        Some(Slot { slots: self.clone(), segment, client })
    }

    /// How many are taken.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.0.lock().all
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.slots.0.lock();
        taken.all -= 1;
        give_back(&mut taken.segments, &self.segment);
        give_back(&mut taken.clients, &self.client);
    }
}

fn give_back<K: Hash + Eq>(counts: &mut HashMap<K, usize, RandomState>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take_all(slots: &Slots, segment: u32, client: impl Fn(u32) -> IpAddr) -> Vec<Slot> {
        let take = |number| slots.take(SegmentId(segment), client(number), false);
        (0..2 * ALL as u32).filter_map(take).collect()
    }

    #[test]
    fn one_client_cannot_fill_the_slow_path() {
        let slots = Slots::default();
        let held = take_all(&slots, 1, |_| "192.0.2.1".parse().unwrap());
        assert_eq!(held.len(), CLIENT);
        let other = slots.take(SegmentId(1), "192.0.2.2".parse().unwrap(), false).unwrap();
        drop(held);
        assert_eq!(slots.taken(), 1);
        drop(other);
        let taken = slots.0.lock();
        assert!(taken.clients.is_empty() && taken.segments.is_empty(), "what is given back leaves no trace");
    }

    #[test]
    fn all_addresses_of_a_prefix_of_64_are_one_client() {
        let slots = Slots::default();
        let held = take_all(&slots, 1, |number| {
            std::net::Ipv6Addr::from_bits((0x2001_0db8 << 96) + u128::from(number)).into()
        });
        assert_eq!(held.len(), CLIENT);
    }

    #[test]
    fn one_segment_cannot_fill_the_slow_path() {
        let slots = Slots::default();
        let held = take_all(&slots, 1, |number| IpAddr::V4(std::net::Ipv4Addr::from_bits(0x0a00_0000 + number)));
        assert_eq!(held.len(), SEGMENT);
        assert!(slots.take(SegmentId(2), "192.0.2.2".parse().unwrap(), false).is_some());
    }
}
