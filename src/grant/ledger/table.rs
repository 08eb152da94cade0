//! The elements in slots: a slot stays an element's own while it is live, so that other structures, and sweeps that
//! are made in parts, can refer to it by its number.
//!
//! Neither part grows in one go, however many elements there are: the slots are in chunks, and what finds an element's
//! slot is one of many small tables.

use std::hash::BuildHasher;
use std::ops::Range;

use foldhash::quality::RandomState;
use hashbrown::HashTable;

use super::entry::Entry;
use crate::net::Element;

/// The number of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Slot(u32);

impl Slot {
    /// No slot; as many elements there never are.
    pub(super) const NONE: Self = Self(u32::MAX);

    pub(super) const fn number(self) -> usize {
        self.0 as usize
    }

    pub(super) fn some(self) -> Option<Self> {
        (self != Self::NONE).then_some(self)
    }
}

/// Slots of one chunk: some 200 KB.
const CHUNK: usize = 1024;

/// Tables that find slots. To let one of them grow takes less than a millisecond when a million elements are live.
const TABLES: usize = 64;

/// Every element with its entry.
#[derive(Debug)]
pub(super) struct Table {
    hasher: RandomState,
    tables: Vec<HashTable<Slot>>,
    chunks: Vec<Vec<Option<(Element, Entry)>>>,
    free: Vec<Slot>,
    len: usize,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            hasher: RandomState::default(),
            tables: (0..TABLES).map(|_| HashTable::new()).collect(),
            chunks: Vec::new(),
            free: Vec::new(),
            len: 0,
        }
    }
}

impl Table {
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// How many slots there are, taken or not: all elements are in these.
    pub(super) fn slots(&self) -> usize {
        self.len + self.free.len()
    }

    /// Which table, by bits of the hash that it does not look at itself.
    const fn table_of(hash: u64) -> usize {
        (hash >> 40) as usize % TABLES
    }

    /// Where an element is.
    pub(super) fn find(&self, element: &Element) -> Option<Slot> {
        let hash = self.hasher.hash_one(element);
        let is_it = |slot: &Slot| self.at(*slot).is_some_and(|(known, _)| known == element);
        self.tables.get(Self::table_of(hash))?.find(hash, is_it).copied()
    }

    fn at(&self, slot: Slot) -> Option<&(Element, Entry)> {
        at(&self.chunks, slot)
    }

    fn place(&mut self, slot: Slot) -> Option<&mut Option<(Element, Entry)>> {
        self.chunks.get_mut(slot.number() / CHUNK)?.get_mut(slot.number() % CHUNK)
    }

    pub(super) fn element(&self, slot: Slot) -> Option<&Element> {
        self.at(slot).map(|(element, _)| element)
    }

    pub(super) fn entry(&self, slot: Slot) -> Option<&Entry> {
        self.at(slot).map(|(_, entry)| entry)
    }

    pub(super) fn entry_mut(&mut self, slot: Slot) -> Option<&mut Entry> {
        self.place(slot)?.as_mut().map(|(_, entry)| entry)
    }

    /// The entry of an element.
    pub(super) fn get(&self, element: &Element) -> Option<&Entry> {
        self.entry(self.find(element)?)
    }

    /// Adds an element that is not there.
    pub(super) fn insert(&mut self, element: Element, entry: Entry) -> Slot {
        let slot = self.free_slot();
        if let Some(place) = self.place(slot) {
            *place = Some((element, entry));
        }
        self.len += 1;
        let Self { hasher, tables, chunks, .. } = self;
        let hash = |slot: &Slot| at(chunks, *slot).map_or(0, |(element, _)| hasher.hash_one(element));
        let hashed = hasher.hash_one(element);
        if let Some(table) = tables.get_mut(Self::table_of(hashed)) {
            table.insert_unique(hashed, slot, hash);
        }
        slot
    }

    /// One that was used before, else a new one.
    fn free_slot(&mut self) -> Slot {
        self.free.pop().unwrap_or_else(|| {
            if self.chunks.last().is_none_or(|chunk| chunk.len() == CHUNK) {
                self.chunks.push(Vec::with_capacity(CHUNK));
            }
            if let Some(chunk) = self.chunks.last_mut() {
                chunk.push(None);
            }
            Slot(u32::try_from(self.len).unwrap_or(u32::MAX))
        })
    }

    /// Takes an element out; the slot may be another's from here on.
    pub(super) fn remove(&mut self, slot: Slot) -> Option<(Element, Entry)> {
        let pair = self.place(slot)?.take()?;
        self.free.push(slot);
        self.len -= 1;
        let hash = self.hasher.hash_one(pair.0);
        if let Some(table) = self.tables.get_mut(Self::table_of(hash))
            && let Ok(found) = table.find_entry(hash, |known| *known == slot)
        {
            found.remove();
        }
        Some(pair)
    }

    /// The slots of `range` that are taken; cut where the last one is.
    pub(super) fn taken(&self, range: Range<usize>) -> impl Iterator<Item = Slot> {
        let range = range.start..range.end.min(self.slots());
        let slots = range.map(|number| Slot(u32::try_from(number).unwrap_or(u32::MAX)));
        slots.filter(|slot| self.at(*slot).is_some())
    }

    /// Everything, by slot.
    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Element, &Entry)> {
        self.chunks.iter().flatten().flatten().map(|(element, entry)| (element, entry))
    }
}

fn at(chunks: &[Vec<Option<(Element, Entry)>>], slot: Slot) -> Option<&(Element, Entry)> {
    chunks.get(slot.number() / CHUNK)?.get(slot.number() % CHUNK)?.as_ref()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::net::{Scope, SegmentId, Service};

    fn element(number: u16) -> Element {
        let [high, low] = number.to_be_bytes();
        Element { from: Scope::Segment(SegmentId(1)), to: [198, 51, high, low].into(), service: Service::Icmp }
    }

    proptest! {
        #[test]
        fn it_is_a_map_whose_slots_stay(steps in prop::collection::vec((0u16..3000, any::<bool>()), 0..6000)) {
            let mut table = Table::default();
            let mut model: BTreeMap<Element, Slot> = BTreeMap::new();
            for (number, adds) in steps {
                let element = element(number);
                match (adds, model.get(&element).copied()) {
                    (true, None) => drop(model.insert(element, table.insert(element, Entry::new(SegmentId(number.into()))))),
                    (false, Some(slot)) => {
                        let (removed, entry) = table.remove(slot).unwrap();
                        assert_eq!((removed, entry.place.segment), (element, SegmentId(number.into())));
                        model.remove(&element);
                    }
                    (_, known) => assert_eq!(table.find(&element), known),
                }
            }
            prop_assert_eq!(table.len(), model.len());
            prop_assert!(model.iter().all(|(element, slot)| table.find(element) == Some(*slot)));
            let listed: BTreeMap<Element, Slot> =
                table.taken(0..usize::MAX).map(|slot| (*table.element(slot).unwrap(), slot)).collect();
            prop_assert_eq!(&listed, &model);
            prop_assert!(table.iter().map(|(element, _)| element).copied().collect::<Vec<_>>().len() == model.len());
        }
    }
}
