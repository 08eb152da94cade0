//! A table with a cap: what weighs least goes into one sum, so that rows and sum are always the total.

use std::cmp::Reverse;
use std::collections::HashMap;

use foldhash::fast::RandomState;

/// Rows that are kept at least; twice as many are held between two clearings. With their keys some 20 MB.
const MOST: usize = 50_000;

/// What stands behind the parts of a key. No name, rule or segment has it.
const END: char = '\0';

/// What a row adds up.
pub(super) trait Amount: Default {
    /// What is kept first.
    fn weight(&self) -> u64;

    /// Both together.
    fn join(&mut self, other: Self);
}

/// See the module.
#[derive(Debug)]
pub(super) struct Bounded<V> {
    most: usize,
    rows: HashMap<Box<str>, V, RandomState>,
    other: V,
    /// Rows that went into the sum.
    merged: u64,
    key: String,
}

/// The rows of a table, the heaviest first.
pub(super) struct Ranked<V> {
    /// The parts of the key, and the amount.
    pub(super) rows: Vec<(Vec<String>, V)>,
    /// All that has no row.
    pub(super) other: V,
    /// Rows that are in it: since there was no room, or because of the limit. One that came again counts again.
    pub(super) others: u64,
    /// There was no room for more than so many: a row may lack what was added before it was taken out once.
    pub(super) room: Option<usize>,
}

impl<V: Amount> Default for Bounded<V> {
    fn default() -> Self {
        Self::new(MOST)
    }
}

impl<V: Amount> Bounded<V> {
    pub(super) fn new(most: usize) -> Self {
        Self { most, rows: HashMap::default(), other: V::default(), merged: 0, key: String::new() }
    }

    /// The amount of the row with a key of these parts.
    pub(super) fn at(&mut self, parts: &[&str]) -> &mut V {
        self.key.clear();
        for (at, part) in parts.iter().enumerate() {
            if at > 0 {
                self.key.push(END);
            }
            self.key.push_str(part);
        }
        if !self.rows.contains_key(self.key.as_str()) {
            if self.rows.len() >= self.most.saturating_mul(2) {
                self.clear();
            }
            self.rows.insert(self.key.as_str().into(), V::default());
        }
        self.rows.get_mut(self.key.as_str()).unwrap_or(&mut self.other)
    }

    /// Takes rows out that are not wanted after all.
    pub(super) fn retain(&mut self, mut wanted: impl FnMut(&str) -> bool) {
        self.rows.retain(|key, _| wanted(key));
    }

    /// The lighter half goes into the sum.
    fn clear(&mut self) {
        let mut rows: Vec<(Box<str>, V)> = self.rows.drain().collect();
        if self.most < rows.len() {
            rows.select_nth_unstable_by_key(self.most, |(_, amount)| Reverse(amount.weight()));
        }
        for (at, (key, amount)) in rows.into_iter().enumerate() {
            if at < self.most {
                self.rows.insert(key, amount);
            } else {
                self.merged += 1;
                self.other.join(amount);
            }
        }
    }

    pub(super) fn finish(self, limit: usize) -> Ranked<V> {
        let Self { most, rows, mut other, merged, .. } = self;
        let mut sorted: Vec<(Box<str>, V)> = rows.into_iter().collect();
        sorted.sort_by(|(one, a), (two, b)| b.weight().cmp(&a.weight()).then_with(|| one.cmp(two)));
        let cut = sorted.split_off(limit.min(sorted.len()));
        let others = merged + cut.len() as u64;
        cut.into_iter().for_each(|(_, amount)| other.join(amount));
        let rows = sorted.into_iter().map(|(key, amount)| (key.split(END).map(ToOwned::to_owned).collect(), amount));
        Ranked { rows: rows.collect(), other, others, room: (merged > 0).then_some(most) }
    }
}

/// The first few different ones of many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Few<T> {
    known: Vec<T>,
    more: bool,
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self { known: Vec::new(), more: false }
    }
}

impl<T: PartialEq> Few<T> {
    /// As many as are told apart.
    pub(super) const MOST: usize = 8;

    pub(super) fn put(&mut self, new: T) {
        if self.known.contains(&new) {
            return;
        }
        if self.known.len() == Self::MOST {
            self.more = true;
        } else {
            self.known.push(new);
        }
    }

    pub(super) fn join(&mut self, other: Self) {
        self.more |= other.more;
        other.known.into_iter().for_each(|new| self.put(new));
    }
}

impl Few<Box<str>> {
    pub(super) fn add(&mut self, new: &str) {
        if !self.known.iter().any(|known| **known == *new) {
            self.put(new.into());
        }
    }
}

impl<T: ToString> Few<T> {
    /// As text, and whether there are more.
    pub(super) fn told(&self) -> (Vec<String>, bool) {
        (self.known.iter().map(ToString::to_string).collect(), self.more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
    struct Sum(u64);

    impl Amount for Sum {
        fn weight(&self) -> u64 {
            self.0
        }

        fn join(&mut self, other: Self) {
            self.0 += other.0;
        }
    }

    proptest! {
        #[test]
        fn rows_and_sum_are_the_total(added in prop::collection::vec((0_u8..40, 0_u64..100), 0..400), limit in 0_usize..20) {
            let mut table = Bounded::<Sum>::new(5);
            for (key, amount) in &added {
                table.at(&[&key.to_string(), "x"]).0 += amount;
                prop_assert!(table.rows.len() <= 10);
            }
            let keys: std::collections::BTreeSet<u8> = added.iter().map(|(key, _)| *key).collect();
            let ranked = table.finish(limit);
            let total: u64 = ranked.rows.iter().map(|(_, sum)| sum.0).sum::<u64>() + ranked.other.0;
            prop_assert_eq!(total, added.iter().map(|(_, amount)| amount).sum::<u64>());
            prop_assert!(ranked.rows.len() <= limit);
            prop_assert!(ranked.rows.is_sorted_by(|(_, a), (_, b)| a.0 >= b.0));
            for (parts, sum) in &ranked.rows {
                let all: u64 = added.iter().filter(|(key, _)| key.to_string() == parts[0]).map(|(_, amount)| amount).sum();
                prop_assert!(sum.0 <= all && (ranked.room.is_some() || sum.0 == all));
            }
            if ranked.room.is_none() {
                prop_assert_eq!(ranked.rows.len() as u64 + ranked.others, keys.len() as u64);
            }
        }
    }

    #[test]
    fn a_few_are_told_apart() {
        let mut few = Few::<Box<str>>::default();
        (0..8).for_each(|number| few.add(&number.to_string()));
        few.add("0");
        assert_eq!((few.told().0.len(), few.told().1), (8, false));
        few.add("8");
        assert_eq!((few.told().0.len(), few.told().1), (8, true));
    }
}
