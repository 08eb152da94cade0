//! Who has how many elements, and which of them may be evicted: those in grace, which nobody is told any more, longest
//! ago first, of each client, of each segment and of the node.
//!
//! The elements in grace are linked through their entries, so that to file one takes the same few steps however many
//! there are, and allocates nothing.

use std::collections::HashMap;
use std::net::IpAddr;

use foldhash::quality::RandomState;

use super::table::{Slot, Table};
use crate::net::{Element, Scope, SegmentId};

/// An entry's neighbours in each list: its client's, its segment's, the node's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Links {
    of: [Link; 3],
    /// It is in the lists.
    pub(super) in_grace: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Link {
    before: Slot,
    after: Slot,
}

impl Default for Link {
    fn default() -> Self {
        Self { before: Slot::NONE, after: Slot::NONE }
    }
}

/// Whose lists these are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    Client = 0,
    Segment = 1,
    Node = 2,
}

/// The ends of one list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct List {
    lane: Lane,
    first: Slot,
    last: Slot,
}

impl List {
    const fn new(lane: Lane) -> Self {
        Self { lane, first: Slot::NONE, last: Slot::NONE }
    }

    fn link<'a>(&self, table: &'a mut Table, slot: Slot) -> Option<&'a mut Link> {
        table.entry_mut(slot)?.links.of.get_mut(self.lane as usize)
    }

    fn push(&mut self, table: &mut Table, slot: Slot) {
        let before = std::mem::replace(&mut self.last, slot);
        match self.link(table, before) {
            Some(link) => link.after = slot,
            None => self.first = slot,
        }
        if let Some(link) = self.link(table, slot) {
            *link = Link { before, after: Slot::NONE };
        }
    }

    fn cut(&mut self, table: &mut Table, slot: Slot) {
        let Some(Link { before, after }) = self.link(table, slot).map(std::mem::take) else { return };
        match self.link(table, before) {
            Some(link) => link.after = after,
            None => self.first = after,
        }
        match self.link(table, after) {
            Some(link) => link.before = before,
            None => self.last = before,
        }
    }

    fn walk<'a>(&self, table: &'a Table) -> impl Iterator<Item = Slot> + use<'a> {
        let lane = self.lane as usize;
        let after = move |slot: &Slot| table.entry(*slot)?.links.of.get(lane)?.after.some();
        std::iter::successors(self.first.some(), after)
    }
}

/// A client, or a segment.
#[derive(Debug)]
struct Owner {
    elements: usize,
    grace: List,
}

/// Everybody who has elements.
#[derive(Debug)]
pub(super) struct Owners {
    clients: HashMap<IpAddr, Owner, RandomState>,
    segments: HashMap<SegmentId, Owner, RandomState>,
    grace: List,
}

impl Default for Owners {
    fn default() -> Self {
        Self { clients: HashMap::default(), segments: HashMap::default(), grace: List::new(Lane::Node) }
    }
}

impl Owners {
    /// Counts an element.
    pub(super) fn add(&mut self, element: &Element, segment: SegmentId) {
        if let Scope::Client(client) = element.from {
            increment(&mut self.clients, client, Lane::Client);
        }
        increment(&mut self.segments, segment, Lane::Segment);
    }

    /// Counts an element no more; it is not in grace.
    pub(super) fn remove(&mut self, element: &Element, segment: SegmentId) {
        if let Scope::Client(client) = element.from {
            decrement(&mut self.clients, &client);
        }
        decrement(&mut self.segments, &segment);
    }

    /// Puts an element behind all others in grace.
    pub(super) fn enter_grace(&mut self, table: &mut Table, slot: Slot) {
        if self.set_grace(table, slot, true) {
            self.each_list(table, slot, List::push);
        }
    }

    /// Takes an element out of grace, where it is in.
    pub(super) fn leave_grace(&mut self, table: &mut Table, slot: Slot) {
        if self.set_grace(table, slot, false) {
            self.each_list(table, slot, List::cut);
        }
    }

    /// Whether that is a change.
    fn set_grace(&self, table: &mut Table, slot: Slot, grace: bool) -> bool {
        table.entry_mut(slot).is_some_and(|entry| std::mem::replace(&mut entry.links.in_grace, grace) != grace)
    }

    fn each_list(&mut self, table: &mut Table, slot: Slot, act: impl Fn(&mut List, &mut Table, Slot)) {
        let Some((from, segment)) =
            table.element(slot).zip(table.entry(slot)).map(|(e, entry)| (e.from, entry.place.segment))
        else {
            return;
        };
        if let Scope::Client(client) = from
            && let Some(owner) = self.clients.get_mut(&client)
        {
            act(&mut owner.grace, table, slot);
        }
        if let Some(owner) = self.segments.get_mut(&segment) {
            act(&mut owner.grace, table, slot);
        }
        act(&mut self.grace, table, slot);
    }

    /// How many clients and segments have elements.
    #[cfg(test)]
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.clients.len(), self.segments.len())
    }

    /// How many elements a client has.
    pub(super) fn of_client(&self, client: IpAddr) -> usize {
        self.clients.get(&client).map_or(0, |owner| owner.elements)
    }

    /// How many elements a segment has.
    pub(super) fn of_segment(&self, segment: SegmentId) -> usize {
        self.segments.get(&segment).map_or(0, |owner| owner.elements)
    }

    /// A client's in grace.
    pub(super) fn grace_of_client<'a>(&self, table: &'a Table, client: IpAddr) -> impl Iterator<Item = Slot> + use<'a> {
        self.clients.get(&client).map(|owner| owner.grace.walk(table)).into_iter().flatten()
    }

    /// A segment's in grace.
    pub(super) fn grace_of_segment<'a>(
        &self,
        table: &'a Table,
        segment: SegmentId,
    ) -> impl Iterator<Item = Slot> + use<'a> {
        self.segments.get(&segment).map(|owner| owner.grace.walk(table)).into_iter().flatten()
    }

    /// All in grace.
    pub(super) fn grace<'a>(&self, table: &'a Table) -> impl Iterator<Item = Slot> + use<'a> {
        self.grace.walk(table)
    }
}

fn increment<K: std::hash::Hash + Eq>(owners: &mut HashMap<K, Owner, RandomState>, key: K, lane: Lane) {
    owners.entry(key).or_insert_with(|| Owner { elements: 0, grace: List::new(lane) }).elements += 1;
}

fn decrement<K: std::hash::Hash + Eq>(owners: &mut HashMap<K, Owner, RandomState>, key: &K) {
    if let Some(owner) = owners.get_mut(key) {
        owner.elements -= 1;
        if owner.elements == 0 {
            owners.remove(key);
        }
    }
}
