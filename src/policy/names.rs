//! Names, each with a number: a trie in two blocks of memory, however many names there are.
//!
//! A name is here with all its ancestors. A node is found by the hash of its name and known by its parent and its first
//! label, so that a search goes down from the root and ends where nothing lies below: a name of which only the top-level
//! domain is here costs two probes. A name takes its label and 9 octets, and 12 to 24 octets of the table.

use std::hash::Hasher;
use std::ops::Range;

use foldhash::SharedSeed;
use foldhash::quality::FoldHasher;

use crate::name::MAX_WIRE;

/// A slot that holds no node: no node but the root is at place 0, and the root is in no slot.
const FREE: u64 = 0;
/// Where the root is.
const ROOT: u32 = 0;
/// A node before its label: its number, its parent's place, its label's length.
const VALUE: Range<usize> = 0..4;
const HEAD: usize = 9;
/// The most labels of a name, the root not counted: each takes two octets (RFC 1035 §2.3.4).
const MAX_LABELS: usize = MAX_WIRE / 2;

/// The names take more than 4 GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// Open addressing with linear probing. The upper half of a slot is its node's hash, from which its place in the
    /// table follows, so that to grow needs no name; the lower half is the node's place.
    slots: Vec<u64>,
    /// The nodes, one after the other. Empty where there are no names, else it begins with the root.
    nodes: Vec<u8>,
    /// Nodes in `slots`.
    len: usize,
    /// Clients choose names: without it they cannot choose hashes.
    seed: u64,
}

impl Names {
    pub(super) const fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Puts a name and its ancestors in where they are new, with the number 0, and the places of all of them on `path`,
    /// the root's first.
    pub(super) fn insert(&mut self, wire: &[u8], path: &mut Vec<u32>) -> Result<(), Full> {
        path.clear();
        if self.nodes.is_empty() {
            self.seed = FoldHasher::with_seed(0, SharedSeed::global_random()).finish();
            self.nodes.resize(HEAD, 0);
        }
        path.push(ROOT);
        let mut parent = ROOT;
        let mut hash = self.seed;
        for label in from_the_root(wire) {
            hash = below(hash, label);
            parent = match self.probe(parent, hash, label) {
                Ok(place) => place,
                Err(_) => self.add(parent, hash, label)?,
            };
            path.push(parent);
        }
        Ok(())
    }

    fn add(&mut self, parent: u32, hash: u64, label: &[u8]) -> Result<u32, Full> {
        let place = u32::try_from(self.nodes.len()).map_err(|_| Full)?;
        if (self.len + 1) * 4 > self.slots.len() * 3 {
            self.resize((self.slots.len() * 2).max(8));
        }
        let Err(Some(slot)) = self.probe(parent, hash, label).map_err(|free| self.slots.get_mut(free)) else {
            return Err(Full);
        };
        *slot = hash >> 32 << 32 | u64::from(place);
        self.nodes.extend_from_slice(&0_u32.to_le_bytes());
        self.nodes.extend_from_slice(&parent.to_le_bytes());
        self.nodes.push(u8::try_from(label.len()).map_err(|_| Full)?);
        self.nodes.extend_from_slice(label);
        self.len += 1;
        Ok(place)
    }

    /// Moves every node to a table of another size.
    fn resize(&mut self, size: usize) {
        let slots = std::mem::replace(&mut self.slots, vec![FREE; size]);
        for slot in slots.into_iter().filter(|slot| *slot != FREE) {
            let mut at = self.first(slot);
            while self.slots.get(at).is_some_and(|held| *held != FREE) {
                at = (at + 1) % size;
            }
            if let Some(free) = self.slots.get_mut(at) {
                *free = slot;
            }
        }
    }

    /// Gives back the memory that only growing needed.
    pub(super) fn shrink(&mut self) {
        if self.slots.len() > self.len * 2 {
            self.resize(self.len * 3 / 2 + 1);
        }
        self.nodes.shrink_to_fit();
    }

    /// The slot where a search for this hash begins.
    fn first(&self, hash: u64) -> usize {
        // The upper half as a fraction of the table: no power of two is needed, and nothing but the hash's upper half.
        usize::try_from(((hash >> 32) * self.slots.len() as u64) >> 32).unwrap_or(0)
    }

    /// The place of a node, or else the free slot where its search ended.
    fn probe(&self, parent: u32, hash: u64, label: &[u8]) -> Result<u32, usize> {
        let mut at = self.first(hash);
        loop {
            match self.slots.get(at) {
                // At most three of four slots are taken.
                Some(&FREE) => return Err(at),
                Some(slot) => {
                    let place = *slot as u32;
                    if slot >> 32 == hash >> 32 && self.is(place, parent, label) {
                        return Ok(place);
                    }
                    at += 1;
                }
                None if at == 0 => return Err(0),
                None => at = 0,
            }
        }
    }

    fn is(&self, place: u32, parent: u32, label: &[u8]) -> bool {
        let known = self.nodes.get(place as usize + VALUE.end..).unwrap_or_default();
        let Some((of, rest)) = known.split_first_chunk() else { return false };
        u32::from_le_bytes(*of) == parent
            && rest.split_first().is_some_and(|(length, rest)| {
                usize::from(*length) == label.len() && rest.get(..label.len()) == Some(label)
            })
    }

    /// The number of a node.
    pub(super) fn value(&self, place: u32) -> u32 {
        let node = self.nodes.get(place as usize..).unwrap_or_default();
        node.first_chunk().map_or(0, |value| u32::from_le_bytes(*value))
    }

    pub(super) fn set(&mut self, place: u32, value: u32) {
        if let Some(node) = self.nodes.get_mut(place as usize..).and_then(|node| node.first_chunk_mut()) {
            *node = value.to_le_bytes();
        }
    }

    /// Replaces every number.
    pub(super) fn change(&mut self, mut change: impl FnMut(u32) -> u32) {
        let mut at = 0;
        while let (Some(length), Ok(place)) = (self.nodes.get(at + HEAD - 1).copied(), u32::try_from(at)) {
            self.set(place, change(self.value(place)));
            at += HEAD + usize::from(length);
        }
    }

    /// Every node, a parent before what is below it: its place, its parent's, its label.
    pub(super) fn each(&self) -> impl Iterator<Item = (u32, u32, &[u8])> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let place = u32::try_from(at).ok()?;
            let (parent, rest) = self.nodes.get(at + VALUE.end..)?.split_first_chunk()?;
            let (length, rest) = rest.split_first()?;
            at += HEAD + usize::from(*length);
            Some((place, u32::from_le_bytes(*parent), rest.get(..usize::from(*length))?))
        })
    }

    /// Every name that is here, ancestors of others among them, with its number.
    pub(super) fn each_name(&self, mut visit: impl FnMut(&[u8], u32)) {
        let mut wire = Vec::with_capacity(MAX_WIRE);
        let mut at = 0;
        while let (Some(length), Ok(place)) = (self.nodes.get(at + HEAD - 1), u32::try_from(at)) {
            wire.clear();
            let mut node = at;
            // A parent is before its children; the root has no label.
            while let (true, Some((parent, label))) = (node > 0, self.node(node)) {
                wire.push(u8::try_from(label.len()).unwrap_or(0));
                wire.extend_from_slice(label);
                node = parent;
            }
            wire.push(0);
            visit(&wire, self.value(place));
            at += HEAD + usize::from(*length);
        }
    }

    /// The parent's place and the label of the node at a place.
    fn node(&self, place: usize) -> Option<(usize, &[u8])> {
        let (parent, rest) = self.nodes.get(place + VALUE.end..)?.split_first_chunk()?;
        let (length, rest) = rest.split_first()?;
        Some((u32::from_le_bytes(*parent) as usize, rest.get(..usize::from(*length))?))
    }

    /// The numbers on the way from the root to a name, as far as it is here; each with how many labels the name has more.
    pub(super) fn path(&self, wire: &[u8], mut visit: impl FnMut(usize, u32)) {
        if self.is_empty() {
            return;
        }
        let labels = from_the_root(wire);
        let mut left = labels.len();
        let mut parent = ROOT;
        let mut hash = self.seed;
        visit(left, self.value(ROOT));
        for label in labels {
            hash = below(hash, label);
            let Ok(place) = self.probe(parent, hash, label) else { return };
            left -= 1;
            visit(left, self.value(place));
            parent = place;
        }
    }
}

/// The hash of a name, from that of its parent.
fn below(parent: u64, label: &[u8]) -> u64 {
    let mut hasher = FoldHasher::with_seed(parent, SharedSeed::global_random());
    hasher.write(label);
    hasher.finish()
}

/// The labels of a name, the one below the root first. What is longer than a name ends where a name would.
fn from_the_root(wire: &[u8]) -> impl ExactSizeIterator<Item = &[u8]> {
    let mut starts = [0_u8; MAX_LABELS];
    let mut count = 0;
    let mut at = 0;
    for start in &mut starts {
        let (Some(1..), Ok(place)) = (wire.get(at), u8::try_from(at)) else { break };
        *start = place;
        at += 1 + usize::from(wire.get(at).copied().unwrap_or_default());
        count += 1;
    }
    (0..count).rev().map(move |label| {
        let start = usize::from(starts.get(label).copied().unwrap_or_default());
        let length = usize::from(wire.get(start).copied().unwrap_or_default());
        wire.get(start + 1..start + 1 + length).unwrap_or_default()
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::name::{Name, ancestors};

    fn a_name() -> impl Strategy<Value = Name> {
        prop::collection::vec(prop::sample::select(vec!["a", "b", "c", "ab", "\\000", "xyz"]), 0..5)
            .prop_map(|labels| Name::parse(&format!("{}.", labels.join("."))).unwrap_or(Name::root()))
    }

    proptest! {
        #[test]
        fn a_search_finds_every_ancestor_that_is_here(
            names in prop::collection::vec(a_name(), 0..200),
            asked in prop::collection::vec(a_name(), 0..50),
            shrink in any::<bool>(),
        ) {
            let mut model: HashMap<Vec<u8>, u32> = HashMap::new();
            let mut set = Names::default();
            let mut path = Vec::new();
            for (number, name) in names.iter().enumerate() {
                for ancestor in ancestors(name.as_wire()) {
                    model.entry(ancestor.to_vec()).or_default();
                }
                set.insert(name.as_wire(), &mut path).unwrap();
                prop_assert_eq!(path.len(), name.label_count() + 1);
                model.insert(name.as_wire().to_vec(), number as u32 + 1);
                set.set(path[path.len() - 1], number as u32 + 1);
            }
            if shrink {
                set.shrink();
            }
            set.change(|value| value * 2);
            let mut each = HashMap::new();
            set.each_name(|wire, value| assert_eq!(each.insert(wire.to_vec(), value / 2), None));
            if !names.is_empty() {
                prop_assert_eq!(&each, &model);
            }
            for name in asked.iter().chain(&names) {
                let mut found = Vec::new();
                set.path(name.as_wire(), |left, value| found.push((left, value)));
                let mut expected: Vec<_> = ancestors(name.as_wire())
                    .enumerate()
                    .filter_map(|(left, ancestor)| Some((left, *model.get(ancestor)? * 2)))
                    .collect();
                expected.reverse();
                prop_assert_eq!(found, expected, "{}", name);
            }
        }

        #[test]
        fn bytes_that_are_no_name_find_nothing_and_break_nothing(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let mut set = Names::default();
            let mut path = Vec::new();
            set.insert(Name::parse("a.example").unwrap().as_wire(), &mut path).unwrap();
            set.path(&bytes, |_, _| {});
            set.insert(&bytes, &mut path).ok();
        }
    }

    #[test]
    fn many_names_are_all_found() {
        let name = |number: u32| Name::parse(&format!("{}.{}.example", number % 7, number / 7)).unwrap();
        let mut set = Names::default();
        let mut path = Vec::new();
        for number in 0..20_000 {
            set.insert(name(number).as_wire(), &mut path).unwrap();
            set.set(*path.last().unwrap(), number + 1);
        }
        set.shrink();
        for number in 0..20_000 {
            let mut last = None;
            set.path(name(number).as_wire(), |left, value| last = Some((left, value)));
            assert_eq!(last, Some((0, number + 1)));
        }
        assert!(set.slots.len() <= set.len * 2);
    }
}
