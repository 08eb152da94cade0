//! What one thread saw last, in front of what all threads share: two small tables that no other thread reads or writes,
//! so that a hit takes no lock and counts no reference.
//!
//! Both stand under one epoch, and are emptied as soon as they are asked under another. An entry of [`Local`] is good for
//! a second at most, and then has to be looked up in the shared table again: so what is used here counts as used there.

use std::net::IpAddr;
use std::time::Duration;

use crate::cache::cover::Asked;
use crate::name::Name;
use crate::record::RecordType;
use crate::time::Tick;

/// Entries: (client, name, type).
const SETS: usize = 2_048;
/// Places that an entry may have.
const WAYS: usize = 4;
/// What weighs more is not kept, so that the table is bounded in bytes: 8 MiB, of small answers 2.
const HEAVIEST: usize = 1_024;
/// How long an entry is good.
const GOOD_FOR: Duration = Duration::from_secs(1);
/// Where all places of a set are taken, one of so many new entries takes one: names that are asked for once, and never
/// again, pass by.
const TAKES_A_PLACE: usize = 4;

/// Clients, each with a value: who it is.
const CLIENTS: usize = 1_024;

/// See the module. Takes its memory with the first entry.
#[derive(Debug)]
pub struct Local<V, C> {
    epoch: u64,
    /// A part of the hash of each entry: it says which of a set's places to look at. 64 octets hold four sets.
    tags: Vec<[u32; WAYS]>,
    kept: Vec<Option<Kept<V>>>,
    /// How many entries found no free place.
    crowded: usize,
    clients: Vec<Option<(IpAddr, C)>>,
}

#[derive(Debug)]
struct Kept<V> {
    until: Tick,
    name: Name,
    client: IpAddr,
    kind: RecordType,
    value: V,
}

/// A question of a client, to be looked for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    client: IpAddr,
    asked: &'a Asked<'a>,
    set: usize,
    tag: u32,
}

impl<'a> Wanted<'a> {
    /// A question of `client`, whose hash is `hash`.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "parts of a hash are meant")]
    pub const fn new(client: IpAddr, hash: u64, asked: &'a Asked<'a>) -> Self {
        let hash = asked.hash ^ hash;
        Self { client, asked, set: hash as usize % SETS, tag: (hash >> 32) as u32 }
    }

    fn is<V>(&self, kept: &Kept<V>) -> bool {
        kept.client == self.client && kept.kind == self.asked.kind && kept.name.as_wire() == self.asked.name
    }
}

impl<V, C> Default for Local<V, C> {
    fn default() -> Self {
        Self { epoch: 0, tags: Vec::new(), kept: Vec::new(), crowded: 0, clients: Vec::new() }
    }
}

impl<V, C: Copy> Local<V, C> {
    /// To be called before anything is looked up: forgets everything that stood under another epoch.
    pub fn enter(&mut self, epoch: u64) {
        if self.epoch != epoch {
            *self = Self { epoch, ..Self::default() };
        }
    }

    /// What is kept, while it is good.
    #[must_use]
    pub fn get(&self, wanted: &Wanted<'_>, now: Tick) -> Option<&V> {
        let tags = self.tags.get(wanted.set)?;
        let places = (0..WAYS).filter(|way| tags.get(*way) == Some(&wanted.tag));
        let kept = places.filter_map(|way| self.kept.get(wanted.set * WAYS + way)?.as_ref());
        let found = kept.filter(|kept| wanted.is(kept) && now <= kept.until).map(|kept| &kept.value);
        found.into_iter().next()
    }

    /// Keeps a value that weighs `weight` bytes and may be told until `told_until`.
    pub fn put(&mut self, wanted: &Wanted<'_>, name: Name, value: V, weight: usize, told_until: Tick, now: Tick) {
        if weight > HEAVIEST {
            return;
        }
        if self.tags.is_empty() {
            self.tags.resize(SETS, [0; WAYS]);
            self.kept.resize_with(SETS * WAYS, || None);
        }
        let start = wanted.set * WAYS;
        let Some(places) = self.kept.get_mut(start..start + WAYS) else { return };
        let place = places.iter().position(|place| place.as_ref().is_some_and(|kept| wanted.is(kept)));
        let place =
            place.or_else(|| places.iter().position(|place| place.as_ref().is_none_or(|kept| kept.until < now)));
        let way = match place {
            Some(way) => way,
            None => {
                self.crowded = self.crowded.wrapping_add(1);
                if self.crowded % TAKES_A_PLACE != 0 {
                    return;
                }
                self.crowded / TAKES_A_PLACE % WAYS
            }
        };
        // A whole second must be left to tell.
        let until = (told_until - GOOD_FOR).min(now + GOOD_FOR);
        let kept = Kept { until, name, client: wanted.client, kind: wanted.asked.kind, value };
        if let (Some(place), Some(tag)) =
            (places.get_mut(way), self.tags.get_mut(wanted.set).and_then(|tags| tags.get_mut(way)))
        {
            (*place, *tag) = (Some(kept), wanted.tag);
        }
    }

    /// Who a client is: what is known here, or what `look` finds. `hash` is the client's.
    #[expect(clippy::cast_possible_truncation, reason = "a part of the hash is meant")]
    pub fn client(&mut self, client: IpAddr, hash: u64, look: impl FnOnce() -> C) -> C {
        if self.clients.is_empty() {
            self.clients.resize(CLIENTS, None);
        }
        let place = self.clients.get_mut(hash as usize % CLIENTS);
        match place {
            Some(Some((known, value))) if *known == client => *value,
            Some(place) => place.insert((client, look())).1,
            None => look(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;
    use crate::cache::Cover;

    #[derive(Clone, Debug)]
    enum Step {
        Put { until: u64, weight: usize },
        Get,
        Enter(u64),
        Pass(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0u64..5_000_000, select(vec![0, HEAVIEST, HEAVIEST + 1]))
                .prop_map(|(until, weight)| Step::Put { until, weight }),
            8 => Just(Step::Get),
            1 => (1u64..4).prop_map(Step::Enter),
            2 => (0u64..1_500_000).prop_map(Step::Pass),
        ]
    }

    proptest! {
        /// I4, I6: what is given out was put under this very key, last, under this epoch, a second ago at most, and has
        /// a second left. Nothing else ever is.
        #[test]
        fn gives_out_what_was_put_under_the_very_key(
            steps in prop::collection::vec(
                (step(), select(vec!["192.0.2.1", "192.0.2.2", "::192.0.2.1", "2001:db8::1"]),
                 select(vec![".", "a", "b", "a.b", "b.a"]), select(vec![1u16, 28, 0x0161])),
                1..300,
            ),
        ) {
            let cover: Cover<()> = Cover::new(0);
            let mut local: Local<usize, ()> = Local::default();
            let mut model: HashMap<_, (usize, u64, u64)> = HashMap::new();
            let (mut epoch, mut now) = (0, 10_000_000);
            for (number, (step, client, name, kind)) in steps.into_iter().enumerate() {
                let (client, name, kind) = (client.parse().unwrap(), Name::parse(name).unwrap(), RecordType(kind));
                let asked = cover.asked(name.as_wire(), kind);
                let wanted = Wanted::new(client, cover.client(client), &asked);
                let key = (client, name.clone(), kind);
                match step {
                    Step::Enter(next) => {
                        local.enter(next);
                        if std::mem::replace(&mut epoch, next) != next {
                            model.clear();
                        }
                    }
                    Step::Pass(micros) => now += micros,
                    Step::Put { until, weight } => {
                        let until = now + until;
                        local.put(&wanted, name.clone(), number, weight, Tick(until), Tick(now));
                        if weight <= HEAVIEST {
                            model.insert(key, (number, now, until));
                        }
                    }
                    Step::Get => {
                        let known = model.get(&key).filter(|(_, put, until)| now <= put + 1_000_000 && now + 1_000_000 <= *until);
                        // So few keys always find a place.
                        prop_assert_eq!(local.get(&wanted, Tick(now)), known.map(|(number, ..)| number));
                    }
                }
            }
        }
    }

    /// I5: however many clients and names there are, the tables stay as they are.
    #[test]
    fn stays_within_its_places() {
        let cover: Cover<()> = Cover::new(0);
        let mut local: Local<u32, u32> = Local::default();
        let name = Name::parse("api.example.com").unwrap();
        let asked = cover.asked(name.as_wire(), RecordType::A);
        let mut told = 0;
        for number in 0..100_000_u32 {
            let client = IpAddr::V4(number.into());
            let hash = cover.client(client);
            let wanted = Wanted::new(client, hash, &asked);
            assert_eq!(local.client(client, hash, || number), number);
            local.put(&wanted, name.clone(), number, 0, Tick(90_000_000), Tick(0));
            told += u32::from(local.get(&wanted, Tick(0)).is_some_and(|value| *value == number));
        }
        assert_eq!((local.kept.len(), local.tags.len(), local.clients.len()), (SETS * WAYS, SETS, CLIENTS));
        // Full, it still takes one in four.
        assert!((25_000..35_000).contains(&told), "{told}");
    }

    #[test]
    fn a_client_is_looked_up_once_an_epoch() {
        let cover: Cover<()> = Cover::new(0);
        let mut local: Local<(), u32> = Local::default();
        let client = IpAddr::from([192, 0, 2, 1]);
        let mut ask = |epoch, answer| {
            local.enter(epoch);
            local.client(client, cover.client(client), || answer)
        };
        assert_eq!([ask(1, 10), ask(1, 11), ask(2, 12), ask(2, 13)], [10, 10, 12, 12]);
    }
}
