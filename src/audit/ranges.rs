//! Sets of sequence numbers as merged intervals.

/// The numbers from `first` to `last`, both included; `at` is the time that belongs to `first`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) at: u64,
}

/// Disjoint ranges in ascending order, never adjacent: numbers that arrive nearly in order take one range.
#[derive(Clone, Debug, Default)]
pub(super) struct Ranges(Vec<Range>);

impl Ranges {
    /// Adds one number with its time; false where it was there already.
    pub(super) fn insert(&mut self, number: u64, at: u64) -> bool {
        let after = self.0.partition_point(|range| range.first <= number);
        let joins_next = self.0.get(after).is_some_and(|next| next.first == number.saturating_add(1));
        if let Some(before) = after.checked_sub(1).and_then(|index| self.0.get_mut(index)) {
            if before.last >= number {
                return false;
            }
            if before.last + 1 == number {
                before.last = number;
                if joins_next {
                    let next = self.0.remove(after);
                    if let Some(before) = self.0.get_mut(after - 1) {
                        before.last = next.last;
                    }
                }
                return true;
            }
        }
        match self.0.get_mut(after).filter(|_| joins_next) {
            Some(next) => (next.first, next.at) = (number, at),
            None => self.0.insert(after, Range { first: number, last: number, at }),
        }
        true
    }

    /// Adds all numbers from `first` to `last`.
    pub(super) fn cover(&mut self, mut first: u64, mut last: u64) {
        let from = self.0.partition_point(|range| range.last.saturating_add(1) < first);
        let to = self.0.partition_point(|range| range.first <= last.saturating_add(1)).max(from);
        for range in self.0.drain(from..to) {
            first = first.min(range.first);
            last = last.max(range.last);
        }
        if first <= last {
            self.0.insert(from, Range { first, last, at: 0 });
        }
    }

    /// How many ranges.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The ranges in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Range> {
        self.0.iter()
    }

    /// Takes the lowest ranges away, at most `count`.
    pub(super) fn forget_first(&mut self, count: usize) {
        self.0.drain(..count.min(self.0.len()));
    }

    /// The highest number.
    pub(super) fn last(&self) -> Option<u64> {
        self.0.last().map(|range| range.last)
    }

    pub(super) fn contains(&self, number: u64) -> bool {
        let after = self.0.partition_point(|range| range.first <= number);
        after.checked_sub(1).and_then(|index| self.0.get(index)).is_some_and(|range| range.last >= number)
    }

    /// What is missing between 1 and `end`, each hole with the time of the number above it (`end_at` above the
    /// last one).
    pub(super) fn holes(&self, end: u64, end_at: u64) -> Vec<Range> {
        let mut next = 1;
        let mut holes = Vec::new();
        for range in self.0.iter().filter(|range| range.first <= end) {
            if range.first > next {
                holes.push(Range { first: next, last: range.first - 1, at: range.at });
            }
            next = range.last.saturating_add(1);
        }
        if next <= end {
            holes.push(Range { first: next, last: end, at: end_at });
        }
        holes
    }

    /// The parts of `whole` that are not in this set.
    pub(super) fn missing_of(&self, whole: Range) -> Vec<Range> {
        let mut next = whole.first;
        let mut parts = Vec::new();
        let from = self.0.partition_point(|range| range.last < whole.first);
        for range in self.0.iter().skip(from).take_while(|range| range.first <= whole.last) {
            if range.first > next {
                parts.push(Range { first: next, last: range.first - 1, at: whole.at });
            }
            next = range.last.saturating_add(1);
        }
        if next <= whole.last {
            parts.push(Range { first: next, last: whole.last, at: whole.at });
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn equals_a_set_of_numbers(
            numbers in prop::collection::vec(1..60_u64, 0..60),
            (first, length) in (1..60_u64, 0..20_u64),
            whole in 1..60_u64,
        ) {
            let mut ranges = Ranges::default();
            let mut set = BTreeSet::new();
            for &number in &numbers {
                prop_assert_eq!(ranges.insert(number, number), set.insert(number));
            }
            for range in ranges.iter() {
                prop_assert!(set.contains(&range.first) && range.at == range.first);
            }
            for number in first..=first + length {
                set.insert(number);
            }
            ranges.cover(first, first + length);
            let all: Vec<_> = ranges.iter().flat_map(|range| range.first..=range.last).collect();
            prop_assert_eq!(&all, &set.iter().copied().collect::<Vec<_>>());
            prop_assert!(ranges.iter().zip(ranges.iter().skip(1)).all(|(a, b)| a.last + 1 < b.first));
            let holes: Vec<_> = ranges.holes(90, 0).iter().flat_map(|hole| hole.first..=hole.last).collect();
            prop_assert_eq!(holes, (1..=90).filter(|number| !set.contains(number)).collect::<Vec<_>>());
            let part = Range { first: whole, last: whole + 9, at: 0 };
            let missing: Vec<_> = ranges.missing_of(part).iter().flat_map(|hole| hole.first..=hole.last).collect();
            prop_assert_eq!(missing, (whole..=whole + 9).filter(|number| !set.contains(number)).collect::<Vec<_>>());
            prop_assert!((1..90).all(|number| ranges.contains(number) == set.contains(&number)));
        }
    }
}
