//! Values by number: each kept once.

use std::borrow::Borrow;
use std::hash::{BuildHasher, Hash};

use foldhash::fast::RandomState;
use hashbrown::HashTable;

/// Numbers values in the order in which they come.
pub(super) struct Table<T> {
    values: Vec<T>,
    numbers: HashTable<u32>,
    hasher: RandomState,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { values: Vec::new(), numbers: HashTable::new(), hasher: RandomState::default() }
    }
}

impl<T: Hash + Eq> Table<T> {
    /// The number of a value, given one if it has none.
    pub(super) fn number<Q>(&mut self, value: &Q) -> u32
    where
        T: Borrow<Q>,
        Q: Hash + Eq + ToOwned + ?Sized,
        Q::Owned: Into<T>,
    {
        if let Some(number) = self.find(value) {
            return number;
        }
        // The caps of the index end long before the numbers do.
        let number = u32::try_from(self.values.len()).unwrap_or(u32::MAX);
        self.values.push(value.to_owned().into());
        let Self { values, numbers, hasher } = self;
        numbers.insert_unique(hasher.hash_one(value), number, |number| {
            values.get(*number as usize).map_or(0, |value| hasher.hash_one(Borrow::<Q>::borrow(value)))
        });
        number
    }

    pub(super) fn find<Q>(&self, value: &Q) -> Option<u32>
    where
        T: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let is_it =
            |number: &u32| self.values.get(*number as usize).is_some_and(|known| Borrow::<Q>::borrow(known) == value);
        self.numbers.find(self.hasher.hash_one(value), is_it).copied()
    }

    pub(super) fn get(&self, number: u32) -> Option<&T> {
        self.values.get(number as usize)
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &T> {
        self.values.iter()
    }

    pub(super) const fn len(&self) -> usize {
        self.values.len()
    }

    /// Keeps the values whose number is marked, in their order, as `change` makes them; where each went.
    pub(super) fn keep<Q>(&mut self, marked: &[bool], mut change: impl FnMut(T) -> T) -> Vec<u32>
    where
        T: Borrow<Q>,
        Q: Hash + Eq + ToOwned + ?Sized,
        Q::Owned: Into<T>,
    {
        let mut places = vec![u32::MAX; self.values.len()];
        let old = std::mem::take(&mut self.values);
        self.numbers = HashTable::new();
        for ((value, place), _) in old.into_iter().zip(&mut places).zip(marked).filter(|(_, marked)| **marked) {
            *place = self.number(Borrow::<Q>::borrow(&change(value)));
        }
        places
    }
}
