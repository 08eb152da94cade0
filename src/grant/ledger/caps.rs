//! How many elements may be live, and what gives way at a cap (I5).
//!
//! Only what is in grace gives way: acknowledged, and past every end that was told. A client at its cap gives way to
//! itself alone. Where too little is in grace the offer fails, and nothing has changed.

use std::collections::BTreeSet;
use std::net::IpAddr;

use smallvec::SmallVec;

use super::Ledger;
use crate::grant::Change;
use crate::net::{Element, Scope, SegmentId};
use crate::policy::Opening;
use crate::time::Tick;

/// How many elements may be live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// For one client.
    pub client: usize,
    /// For one segment, its clients' elements included.
    pub segment: usize,
    /// In all.
    pub all: usize,
}

impl Default for Caps {
    fn default() -> Self {
        Self { client: 4_096, segment: 262_144, all: 1_048_576 }
    }
}

/// Which cap an offer met with too little in grace to evict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// The client's.
    Client,
    /// The segment's.
    Segment,
    /// The node's.
    All,
}

impl Full {
    /// One clause for the record and the client.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Client => "this client has too many open addresses",
            Self::Segment => "this segment has too many open addresses",
            Self::All => "this node has too many open addresses",
        }
    }
}

/// The elements that an offer would add: for each client, to its segment, in all.
#[derive(Default)]
struct Needed {
    clients: SmallVec<[(IpAddr, usize); 1]>,
    segment: usize,
    all: usize,
}

impl Ledger {
    /// Evicts what is in grace until the new elements among `openings` fit under every cap.
    pub(super) fn make_room(&mut self, openings: &[Opening], segment: SegmentId, now: Tick) -> Result<(), Full> {
        let needed = self.needed(openings, segment);
        let too_many = |have: usize, added: usize, cap: usize| (have + added).saturating_sub(cap);
        let over_client = |client: IpAddr, added| too_many(self.places.of_client(client), added, self.caps.client);
        let over_segment = too_many(self.places.of_segment(segment), needed.segment, self.caps.segment);
        let over_all = too_many(self.entries.len(), needed.all, self.caps.all);
        if over_segment == 0 && over_all == 0 && needed.clients.iter().all(|(client, n)| over_client(*client, *n) == 0)
        {
            return Ok(());
        }
        // Who gives way is chosen for every cap first, and closed only when all of them are kept.
        let spared: BTreeSet<Element> = openings.iter().map(|opening| opening.element).collect();
        let mut evicted = BTreeSet::new();
        for (client, added) in &needed.clients {
            let untold = self.places.untold_of_client(*client, now);
            if !self.choose(untold, over_client(*client, *added), &spared, &mut evicted) {
                return Err(Full::Client);
            }
        }
        let gone = evicted.iter().filter(|element| self.segment_of(element) == Some(segment)).count();
        let untold = self.places.untold_of_segment(segment, now);
        if !self.choose(untold, over_segment.saturating_sub(gone), &spared, &mut evicted) {
            return Err(Full::Segment);
        }
        let untold = self.places.untold(now);
        if !self.choose(untold, over_all.saturating_sub(evicted.len()), &spared, &mut evicted) {
            return Err(Full::All);
        }
        for element in evicted {
            self.remove(&element);
            self.change(Change::Close { element });
        }
        Ok(())
    }

    fn needed(&self, openings: &[Opening], segment: SegmentId) -> Needed {
        let mut needed = Needed::default();
        for element in openings.iter().map(|opening| opening.element) {
            match self.segment_of(&element) {
                // A client whose segment changed takes its elements along as it asks again.
                Some(known) => needed.segment += usize::from(known != segment),
                None => {
                    needed.segment += 1;
                    needed.all += 1;
                    let Scope::Client(client) = element.from else { continue };
                    match needed.clients.iter_mut().find(|(known, _)| *known == client) {
                        Some((_, added)) => *added += 1,
                        None => needed.clients.push((client, 1)),
                    }
                }
            }
        }
        needed
    }

    fn segment_of(&self, element: &Element) -> Option<SegmentId> {
        self.entries.get(element).map(|entry| entry.place.segment)
    }

    /// Adds `excess` of those that nobody is told any more to `evicted`; false where there are not so many. What is
    /// pending is passed over, so at most a batch is looked at in vain.
    fn choose(
        &self,
        untold: impl Iterator<Item = Element>,
        excess: usize,
        spared: &BTreeSet<Element>,
        evicted: &mut BTreeSet<Element>,
    ) -> bool {
        let settled = |element: &Element| {
            self.entries.get(element).is_some_and(|entry| entry.in_force.is_some())
                && !self.batched.contains_key(element)
        };
        let wanted = evicted.len() + excess;
        for element in untold {
            if evicted.len() == wanted {
                break;
            }
            if !spared.contains(&element) && settled(&element) {
                evicted.insert(element);
            }
        }
        evicted.len() == wanted
    }
}
