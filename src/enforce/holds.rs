//! Holds: what each resolver wants open on this gateway, and until when.
//!
//! In force is the longest of what anybody wants: the end of one resolver's never closes another's.

use std::collections::HashMap;

use foldhash::quality::RandomState;
use smallvec::SmallVec;

use crate::grant::Change;
use crate::net::Element;
use crate::time::Tick;

/// A resolver's place in the configuration.
pub(super) type Holder = u8;

/// Who holds what was in force when nobody knew for whom: what the journal of another process would say.
pub(super) const NOBODY: Holder = Holder::MAX;

/// One element's, by holder; few.
type Ends = SmallVec<[(Holder, Tick); 2]>;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Holds {
    ends: HashMap<Element, Ends, RandomState>,
}

/// How an element was held before it changed, to put it back.
#[derive(Debug)]
pub(super) struct Before {
    element: Element,
    ends: Ends,
}

impl Before {
    /// Which element.
    pub(super) const fn element(&self) -> &Element {
        &self.element
    }

    /// For how long `holder` held it.
    pub(super) fn of(&self, holder: Holder) -> Option<Tick> {
        self.ends.iter().find(|(held_by, _)| *held_by == holder).map(|(_, end)| *end)
    }
}

impl Holds {
    /// How many elements anybody holds, those that are over and were not swept among them.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether anybody holds it.
    pub(super) fn has(&self, element: &Element) -> bool {
        self.ends.contains_key(element)
    }

    /// Makes a holder's change: what changes in force by it, and how it was before.
    pub(super) fn change(&mut self, holder: Holder, change: &Change, now: Tick) -> (Option<Change>, Before) {
        let element = *change.element();
        let held = self.ends.entry(element).or_default();
        let before = Before { element, ends: held.clone() };
        let in_force = last(held, now);
        match *change {
            Change::Open { until, .. } if until > now => match held.iter_mut().find(|(by, _)| *by == holder) {
                Some((_, end)) => *end = until,
                None => held.push((holder, until)),
            },
            // What nobody is known to hold goes with the first who does not want it.
            Change::Open { .. } | Change::Close { .. } => held.retain(|(by, _)| *by != holder && *by != NOBODY),
        }
        let end = last(held, now);
        if end.is_none() {
            self.ends.remove(&element);
        }
        let changes = match (in_force, end) {
            // Closed also where nothing is known to be open: the kernel may know better.
            (_, None) => Some(Change::Close { element }),
            (before, Some(until)) if before != Some(until) => Some(Change::Open { element, until }),
            _ => None,
        };
        (changes, before)
    }

    /// Takes a change back.
    pub(super) fn put_back(&mut self, before: Before) {
        if before.ends.is_empty() {
            self.ends.remove(&before.element);
        } else {
            self.ends.insert(before.element, before.ends);
        }
    }

    /// What a holder holds.
    pub(super) fn of(&self, holder: Holder, now: Tick) -> impl Iterator<Item = (Element, Tick)> {
        let one = move |(element, ends): (&Element, &Ends)| {
            let end = ends.iter().find(|(by, end)| *by == holder && *end > now)?.1;
            Some((*element, end))
        };
        self.ends.iter().filter_map(one)
    }

    /// All that is to be in force.
    pub(super) fn in_force(&self, now: Tick) -> impl Iterator<Item = (Element, Tick)> {
        self.ends.iter().filter_map(move |(element, ends)| Some((*element, last(ends, now)?)))
    }

    /// Every hold, for the journal.
    pub(super) fn all(&self) -> impl Iterator<Item = (Holder, Element, Tick)> {
        self.ends.iter().flat_map(|(element, ends)| ends.iter().map(|(holder, end)| (*holder, *element, *end)))
    }

    /// Forgets what is over.
    pub(super) fn sweep(&mut self, now: Tick) {
        self.ends.retain(|_, ends| {
            ends.retain(|(_, end)| *end > now);
            !ends.is_empty()
        });
    }
}

fn last(ends: &Ends, now: Tick) -> Option<Tick> {
    ends.iter().map(|(_, end)| *end).filter(|end| *end > now).max()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn element(number: u8) -> Element {
        format!("192.0.2.1>198.51.100.{number}:tcp/443").parse().unwrap()
    }

    /// Step, holder, element, until (0: close).
    fn steps() -> impl Strategy<Value = Vec<(u64, Holder, u8, u64)>> {
        prop::collection::vec((0_u64..3, 0_u8..3, 0_u8..3, 0_u64..12), 0..60)
    }

    proptest! {
        /// The kernel, told each change as it comes, has the longest of what the holders want, at every moment.
        #[test]
        fn in_force_is_the_longest_of_what_anybody_wants(steps in steps()) {
            let mut holds = Holds::default();
            let mut kernel: BTreeMap<Element, Tick> = BTreeMap::new();
            let mut wanted: BTreeMap<(Element, Holder), Tick> = BTreeMap::new();
            let mut now = Tick(0);
            for (step, holder, number, left) in steps {
                now = now + Duration::from_micros(step);
                let element = element(number);
                let change = match left {
                    0 => Change::Close { element },
                    left => Change::Open { element, until: now + Duration::from_micros(left) },
                };
                match change {
                    Change::Open { until, .. } => wanted.insert((element, holder), until),
                    Change::Close { .. } => wanted.remove(&(element, holder)),
                };
                match holds.change(holder, &change, now).0 {
                    Some(Change::Open { element, until }) => drop(kernel.insert(element, until)),
                    Some(Change::Close { element }) => drop(kernel.remove(&element)),
                    None => {}
                }
                for number in 0..3 {
                    let element = self::element(number);
                    let ends = wanted.range((element, 0)..=(element, Holder::MAX)).map(|(_, end)| *end);
                    let right = ends.filter(|end| *end > now).max();
                    prop_assert_eq!(kernel.get(&element).copied().filter(|end| *end > now), right);
                }
                let in_force: BTreeMap<_, _> = holds.in_force(now).collect();
                kernel.retain(|_, end| *end > now);
                prop_assert_eq!(&in_force, &kernel);
            }
        }
    }

    #[test]
    fn a_change_that_failed_is_put_back() {
        let mut holds = Holds::default();
        let open = |seconds| Change::Open { element: element(1), until: Tick(0) + Duration::from_secs(seconds) };
        holds.change(0, &open(5), Tick(0));
        let (_, before) = holds.change(0, &open(9), Tick(0));
        assert_eq!((before.of(0), before.of(1)), (Some(Tick(5_000_000)), None));
        holds.put_back(before);
        assert_eq!(holds.of(0, Tick(0)).collect::<Vec<_>>(), [(element(1), Tick(5_000_000))]);
        let (_, before) = holds.change(1, &Change::Open { element: element(2), until: Tick(9) }, Tick(0));
        holds.put_back(before);
        assert_eq!(holds.len(), 1);
    }

    #[test]
    fn what_nobody_is_known_to_hold_goes_with_the_first_who_closes_it() {
        let mut holds = Holds::default();
        holds.change(NOBODY, &Change::Open { element: element(1), until: Tick(9) }, Tick(0));
        let (changed, _) = holds.change(0, &Change::Open { element: element(1), until: Tick(5) }, Tick(0));
        assert_eq!(changed, None, "it is open for longer");
        let (changed, _) = holds.change(0, &Change::Close { element: element(1) }, Tick(0));
        assert_eq!(changed, Some(Change::Close { element: element(1) }));
        assert_eq!(holds.len(), 0);
    }
}
