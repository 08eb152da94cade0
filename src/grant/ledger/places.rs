//! Where each element stands: by its end, for expiry; by its told end, for eviction, within its client, its segment
//! and the node; and how many there are of each.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr};

use foldhash::quality::RandomState;

use crate::net::{Element, Scope, SegmentId, Service};
use crate::time::Tick;

/// What an element is filed under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Whose cap it counts against, besides its client's.
    pub(super) segment: SegmentId,
    /// The latest end that anybody was told; past it the element is in grace and may be evicted.
    pub(super) told_until: Tick,
    /// The latest end of its reasons.
    pub(super) open_until: Tick,
}

/// Every element under its [`Place`].
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Places {
    by_end: BTreeSet<(Tick, Element)>,
    by_told: BTreeSet<(Tick, Element)>,
    by_client: BTreeSet<(IpAddr, Tick, Element)>,
    by_segment: BTreeSet<(SegmentId, Tick, Element)>,
    clients: HashMap<IpAddr, usize, RandomState>,
    segments: HashMap<SegmentId, usize, RandomState>,
}

/// The element that sorts before every other.
const LEAST: Element = Element {
    from: Scope::Client(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
    to: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    service: Service::Tcp(0),
};

impl Places {
    /// Moves an element from one place to another; `None` is outside.
    pub(super) fn refile(&mut self, element: Element, before: Option<Place>, after: Option<Place>) {
        if before == after {
            return;
        }
        if let Some(place) = before {
            self.by_end.remove(&(place.open_until, element));
            self.by_told.remove(&(place.told_until, element));
            self.by_segment.remove(&(place.segment, place.told_until, element));
            decrement(&mut self.segments, &place.segment);
            if let Scope::Client(client) = element.from {
                self.by_client.remove(&(client, place.told_until, element));
                decrement(&mut self.clients, &client);
            }
        }
        if let Some(place) = after {
            self.by_end.insert((place.open_until, element));
            self.by_told.insert((place.told_until, element));
            self.by_segment.insert((place.segment, place.told_until, element));
            *self.segments.entry(place.segment).or_default() += 1;
            if let Scope::Client(client) = element.from {
                self.by_client.insert((client, place.told_until, element));
                *self.clients.entry(client).or_default() += 1;
            }
        }
    }

    /// The end that comes first, and whose it is.
    pub(super) fn first_end(&self) -> Option<(Tick, Element)> {
        self.by_end.first().copied()
    }

    /// How many elements a client has.
    pub(super) fn of_client(&self, client: IpAddr) -> usize {
        self.clients.get(&client).copied().unwrap_or(0)
    }

    /// How many elements a segment has.
    pub(super) fn of_segment(&self, segment: SegmentId) -> usize {
        self.segments.get(&segment).copied().unwrap_or(0)
    }

    /// What nobody is told any more at `now`, longest ago first: a client's.
    pub(super) fn untold_of_client(&self, client: IpAddr, now: Tick) -> impl Iterator<Item = Element> {
        self.by_client.range((client, Tick(0), LEAST)..(client, now, LEAST)).map(|(.., element)| *element)
    }

    /// What nobody is told any more at `now`, longest ago first: a segment's.
    pub(super) fn untold_of_segment(&self, segment: SegmentId, now: Tick) -> impl Iterator<Item = Element> {
        self.by_segment.range((segment, Tick(0), LEAST)..(segment, now, LEAST)).map(|(.., element)| *element)
    }

    /// What nobody is told any more at `now`, longest ago first.
    pub(super) fn untold(&self, now: Tick) -> impl Iterator<Item = Element> {
        self.by_told.range(..(now, LEAST)).map(|(_, element)| *element)
    }
}

fn decrement<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize, RandomState>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}
