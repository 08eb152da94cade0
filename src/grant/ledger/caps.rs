//! How many elements may be live, and what gives way at a cap (I5).
//!
//! Only what is in grace gives way: acknowledged, and past every end that was told. A client at its cap gives way to
//! itself alone. Where too little is in grace the offer fails, and nothing has changed.

use std::collections::BTreeSet;
use std::net::IpAddr;

use smallvec::SmallVec;

use super::Ledger;
use super::table::Slot;
use crate::net::{Scope, SegmentId};
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
        if self.fits(&needed, segment) {
            return Ok(());
        }
        // What has ended gives way first, and whose grace has begun is known.
        self.expire(now, usize::MAX);
        let needed = self.needed(openings, segment);
        if self.fits(&needed, segment) {
            return Ok(());
        }
        // Who gives way is chosen for every cap first, and closed only when all of them are kept.
        let spared: BTreeSet<Slot> = openings.iter().filter_map(|opening| self.table.find(&opening.element)).collect();
        let mut evicted = BTreeSet::new();
        for (client, added) in &needed.clients {
            let grace = self.owners.grace_of_client(&self.table, *client);
            if !self.choose(grace, self.over_client(*client, *added), &spared, &mut evicted) {
                return Err(Full::Client);
            }
        }
        let of_segment = |slot: &&Slot| self.table.entry(**slot).is_some_and(|entry| entry.place.segment == segment);
        let gone = evicted.iter().filter(of_segment).count();
        let grace = self.owners.grace_of_segment(&self.table, segment);
        if !self.choose(grace, self.over_segment(segment, &needed).saturating_sub(gone), &spared, &mut evicted) {
            return Err(Full::Segment);
        }
        let grace = self.owners.grace(&self.table);
        if !self.choose(grace, self.over_all(&needed).saturating_sub(evicted.len()), &spared, &mut evicted) {
            return Err(Full::All);
        }
        for slot in evicted {
            self.close(slot);
        }
        Ok(())
    }

    fn fits(&self, needed: &Needed, segment: SegmentId) -> bool {
        self.over_all(needed) == 0
            && self.over_segment(segment, needed) == 0
            && needed.clients.iter().all(|(client, added)| self.over_client(*client, *added) == 0)
    }

    fn over_client(&self, client: IpAddr, added: usize) -> usize {
        (self.owners.of_client(client) + added).saturating_sub(self.caps.client)
    }

    fn over_segment(&self, segment: SegmentId, needed: &Needed) -> usize {
        (self.owners.of_segment(segment) + needed.segment).saturating_sub(self.caps.segment)
    }

    fn over_all(&self, needed: &Needed) -> usize {
        (self.len() + needed.all).saturating_sub(self.caps.all)
    }

    fn needed(&self, openings: &[Opening], segment: SegmentId) -> Needed {
        let mut needed = Needed::default();
        for element in openings.iter().map(|opening| opening.element) {
            match self.table.get(&element).map(|entry| entry.place.segment) {
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

    /// Adds `excess` of those in grace to `evicted`; false where there are not so many. What is pending is passed over,
    /// so at most a batch is looked at in vain.
    fn choose(
        &self,
        grace: impl Iterator<Item = Slot>,
        excess: usize,
        spared: &BTreeSet<Slot>,
        evicted: &mut BTreeSet<Slot>,
    ) -> bool {
        let settled = |slot: &Slot| {
            self.table
                .entry(*slot)
                .is_some_and(|entry| entry.in_force > Tick(0) && entry.batched.0 != self.batch_number)
        };
        let wanted = evicted.len() + excess;
        for slot in grace {
            if evicted.len() == wanted {
                break;
            }
            if !spared.contains(&slot) && settled(&slot) {
                evicted.insert(slot);
            }
        }
        evicted.len() == wanted
    }
}
