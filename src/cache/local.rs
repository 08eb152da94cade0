//! What one thread told last, in front of what all threads share: two small tables that no other thread reads or writes,
//! so that a hit takes no lock and counts no reference.
//!
//! Both stand under one edition of the rulebook, and are emptied as soon as they are asked under another. A reply is good here for some
//! seconds, and then has to be looked up in the shared table again: so what is used here counts as used there.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use crate::cache::cover::{Asked, Covered, Held, Reply, Until};
use crate::policy::Asker;
use crate::time::Tick;

/// Places that a reply may have.
const WAYS: usize = 4;
/// Sets of places: at first, and at most. 32,768 places of a cache line each are 2 MiB, what a core's second cache holds.
const FEWEST: usize = 1 << 8;
const MOST: usize = 1 << 13;
/// What weighs more is not kept: a thread keeps small answers from being evicted, never large ones.
const HEAVIEST: usize = 1_024;
/// What the replies of one of these tables weigh at most.
pub const LOCAL_BYTES: usize = MOST * WAYS * HEAVIEST;
/// How long a reply is good.
const GOOD_FOR: Duration = Duration::from_secs(5);
/// A reply must be good to tell for a second.
const LEAST: Duration = Duration::from_secs(1);
/// Where all places of a full table's set are taken, one of so many new replies takes one: names that are asked for once,
/// and never again, pass by.
const TAKES_A_PLACE: usize = 4;

/// Clients, each with who it is.
const CLIENTS: usize = 1_024;

/// See the module. Takes its memory with the first reply, and more as its sets get crowded.
#[derive(Debug)]
pub struct Local<V> {
    edition: u64,
    /// A part of the hash of each reply. Its lower bits choose the set, the whole says which of a set's places to look at;
    /// 64 octets hold four sets.
    tags: Vec<[u32; WAYS]>,
    kept: Vec<[Option<Kept<V>>; WAYS]>,
    /// How many replies found no free place since the table has its size.
    crowded: usize,
    clients: Vec<Option<(IpAddr, Option<Asker>)>>,
}

/// A reply that was told to a client.
#[derive(Debug)]
pub struct Kept<V> {
    good_until: Tick,
    /// Who it was told to.
    pub asker: Asker,
    /// For how long it stands.
    pub until: Until,
    /// The reply.
    pub reply: Arc<Held<V>>,
}

/// A question of a client, to be looked for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    client: IpAddr,
    named_by: Option<NonZeroU32>,
    asked: &'a Asked<'a>,
    tag: u32,
}

impl<'a> Wanted<'a> {
    /// A question of `client`, whose hash is `hash`.
    #[must_use]
    pub const fn new(client: IpAddr, hash: u64, asked: &'a Asked<'a>) -> Self {
        Self { client, named_by: None, asked, tag: ((asked.hash ^ hash) >> 32) as u32 }
    }

    /// The same of a client that is not the sender ([`Asker::named_by`]): it is another asker.
    #[must_use]
    pub const fn named_by(self, named_by: Option<NonZeroU32>) -> Self {
        Self { named_by, ..self }
    }

    /// Its set among so many, a power of two.
    const fn set(&self, sets: usize) -> usize {
        self.tag as usize & sets.wrapping_sub(1)
    }

    fn is<V: Reply>(&self, kept: &Kept<V>) -> bool {
        kept.asker.client == self.client
            && kept.asker.named_by() == self.named_by
            && kept.reply.answers(self.asked.name, self.asked.kind)
    }
}

impl<V> Default for Local<V> {
    fn default() -> Self {
        Self { edition: 0, tags: Vec::new(), kept: Vec::new(), crowded: 0, clients: Vec::new() }
    }
}

impl<V: Reply> Local<V> {
    /// To be called before anything is looked up: forgets everything that stood under another edition of the
    /// rulebook.
    pub fn enter(&mut self, edition: u64) {
        if self.edition != edition {
            *self = Self { edition, ..Self::default() };
        }
    }

    /// What is kept, while it is good.
    #[must_use]
    pub fn get(&self, wanted: &Wanted<'_>, now: Tick) -> Option<&Kept<V>> {
        let set = wanted.set(self.tags.len());
        let (tags, places) = (self.tags.get(set)?, self.kept.get(set)?);
        let tagged = tags.iter().zip(places).filter(|(tag, _)| **tag == wanted.tag);
        tagged.filter_map(|(_, place)| place.as_ref()).find(|kept| wanted.is(kept) && now <= kept.good_until)
    }

    /// Keeps what was told to `asker`. From `renews` on it is to be looked up again, if that is still to come: it is to be
    /// seen that it is asked for shortly before its end.
    pub fn put(&mut self, wanted: &Wanted<'_>, asker: Asker, covered: Covered<V>, renews: Tick, now: Tick) {
        let Covered { until, reply, .. } = covered;
        if reply.weight() > HEAVIEST {
            return;
        }
        let way = match self.place(wanted, now) {
            Some(way) => way,
            None => {
                self.crowded += 1;
                if self.crowded >= self.tags.len() && self.tags.len() < MOST {
                    self.grow();
                }
                match self.place(wanted, now) {
                    Some(way) => way,
                    None if self.crowded.is_multiple_of(TAKES_A_PLACE) => self.crowded / TAKES_A_PLACE % WAYS,
                    None => return,
                }
            }
        };
        let set = wanted.set(self.tags.len());
        let places = self.tags.get_mut(set).zip(self.kept.get_mut(set));
        if let Some((tag, place)) = places.and_then(|(tags, kept)| tags.get_mut(way).zip(kept.get_mut(way))) {
            let good_until = (until.told - LEAST).min(now + GOOD_FOR);
            let good_until = if renews > now { good_until.min(renews) } else { good_until };
            (*tag, *place) = (wanted.tag, Some(Kept { good_until, asker, until, reply }));
        }
    }

    /// Where the reply is, or a place that is free or whose reply is not good any more.
    fn place(&self, wanted: &Wanted<'_>, now: Tick) -> Option<usize> {
        let places = self.kept.get(wanted.set(self.tags.len()))?;
        let same = places.iter().position(|place| place.as_ref().is_some_and(|kept| wanted.is(kept)));
        same.or_else(|| places.iter().position(|place| place.as_ref().is_none_or(|kept| kept.good_until < now)))
    }

    /// Twice as many sets. Each set's replies part by the next bit of their tags, and stay in their places.
    fn grow(&mut self) {
        let sets = self.tags.len();
        let more = if sets == 0 { FEWEST } else { 2 * sets };
        self.tags.resize(more, [0; WAYS]);
        self.kept.resize_with(more, || [const { None }; WAYS]);
        self.crowded = 0;
        let (tags, new_tags) = self.tags.split_at_mut(sets);
        let (kept, new_kept) = self.kept.split_at_mut(sets);
        let old = tags.as_flattened_mut().iter_mut().zip(kept.as_flattened_mut());
        let new = new_tags.as_flattened_mut().iter_mut().zip(new_kept.as_flattened_mut());
        for ((tag, place), (new_tag, new_place)) in old.zip(new) {
            if *tag as usize & sets != 0 {
                (*new_tag, *new_place) = (std::mem::take(tag), place.take());
            }
        }
    }

    /// Who a sender is: what is known here, or what `look` finds. `hash` is the client's.
    #[expect(clippy::cast_possible_truncation, reason = "a part of the hash is meant")]
    pub fn client(&mut self, client: IpAddr, hash: u64, look: impl FnOnce() -> Option<Asker>) -> Option<Asker> {
        if self.clients.is_empty() {
            self.clients.resize(CLIENTS, None);
        }
        match self.clients.get_mut(hash as usize % CLIENTS) {
            Some(Some((known, asker))) if *known == client => *asker,
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
    use crate::name::Name;
    use crate::policy::{self, Policy, Source};
    use crate::record::RecordType;

    /// A number, told for a name and type.
    struct Numbered(usize, Name, RecordType);

    impl Reply for Numbered {
        fn answers(&self, name: &[u8], kind: RecordType) -> bool {
            self.1.as_wire() == name && self.2 == kind
        }

        fn name(&self) -> &[u8] {
            self.1.as_wire()
        }
    }

    fn everybody() -> Policy {
        let text = "[[segment]]\nname = \"all\"\nclients = [\"0.0.0.0/0\", \"::/0\"]\n";
        let source = Source { file: "test.toml".to_owned(), text: text.to_owned() };
        policy::compile([source], &policy::Settings::default()).unwrap()
    }

    fn covered(reply: Arc<Held<Numbered>>, told: u64) -> Covered<Numbered> {
        Covered { epoch: 0, until: Until::new(Tick(told), None), reply }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Put { until: u64, renews: u64, weight: usize },
        Get,
        Enter(u64),
        Pass(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0u64..10_000_000, 0u64..10_000_000, select(vec![0, HEAVIEST / 2, HEAVIEST + 1]))
                .prop_map(|(until, renews, weight)| Step::Put { until, renews, weight }),
            8 => Just(Step::Get),
            1 => (1u64..4).prop_map(Step::Enter),
            2 => (0u64..3_000_000).prop_map(Step::Pass),
        ]
    }

    proptest! {
        /// I4, I6: what is given out was put under this very key, last, under this epoch, some seconds ago at most, and
        /// has a second left. Nothing else ever is, and with room nothing is missing, however often the table grew.
        #[test]
        fn gives_out_what_was_put_under_the_very_key(
            crowd in select(vec![0_u32, 3_000]),
            steps in prop::collection::vec(
                (step(), select(vec!["192.0.2.1", "192.0.2.2", "::192.0.2.1", "2001:db8::1"]),
                 select(vec![".", "a", "b", "a.b", "b.a"]), select(vec![1u16, 28, 0x0161])),
                1..300,
            ),
        ) {
            let (policy, cover) = (everybody(), Cover::new(1 << 20));
            let mut local = Local::default();
            let mut model: HashMap<_, (usize, u64, u64, u64)> = HashMap::new();
            let (mut epoch, mut now) = (0, 20_000_000);
            for (number, (step, client, name, kind)) in steps.into_iter().enumerate() {
                let (client, name, kind) = (client.parse().unwrap(), Name::parse(name).unwrap(), RecordType(kind));
                let asked = cover.asked(name.as_wire(), kind);
                let wanted = Wanted::new(client, cover.client(client), &asked);
                let asker = policy.asker(client).unwrap();
                let key = (client, name.clone(), kind);
                match step {
                    Step::Enter(next) => {
                        local.enter(next);
                        if std::mem::replace(&mut epoch, next) != next {
                            model.clear();
                        }
                    }
                    Step::Pass(micros) => now += micros,
                    Step::Put { until, renews, weight } => {
                        let (until, renews) = (now + until, now + renews);
                        let reply = cover.hold(Numbered(number, name.clone(), kind), weight);
                        let kept = reply.weight() <= HEAVIEST;
                        local.put(&wanted, asker, covered(reply, until), Tick(renews), Tick(now));
                        if kept {
                            model.insert(key, (number, now, until, renews));
                        }
                        for other in 0..crowd {
                            // They are good no longer than now, and make room, but not before the table has grown.
                            let client = IpAddr::V4((other + 1).into());
                            let wanted = Wanted::new(client, cover.client(client), &asked);
                            let reply = cover.hold(Numbered(0, name.clone(), kind), 0);
                            local.put(&wanted, policy.asker(client).unwrap(), covered(reply, now + 1_000_000), Tick(0), Tick(now));
                        }
                    }
                    Step::Get => {
                        let known = model.get(&key);
                        let known = known.filter(|(_, put, until, renews)| {
                            now <= put + 5_000_000 && now + 1_000_000 <= *until && (renews == put || now <= *renews)
                        });
                        let found = local.get(&wanted, Tick(now)).map(|kept| kept.reply.0);
                        prop_assert!(found.is_none() || found == known.map(|(number, ..)| *number));
                        // So few keys always find a place.
                        prop_assert!(crowd > 0 || found.is_some() == known.is_some());
                    }
                }
            }
        }
    }

    #[test]
    fn a_place_is_a_cache_line() {
        assert_eq!(size_of::<Option<Kept<()>>>(), 64);
    }

    /// I5: however many clients and names there are, the tables end at their bounds; on the way there nothing is lost.
    #[test]
    fn grows_as_it_gets_crowded_and_stays_within_its_places() {
        let (policy, cover) = (everybody(), Cover::new(1 << 20));
        let mut local = Local::default();
        let name = Name::parse("api.example.com").unwrap();
        let asked = cover.asked(name.as_wire(), RecordType::A);
        let reply = cover.hold(Numbered(0, name.clone(), RecordType::A), 0);
        let kept = |local: &Local<_>, upto: u32| {
            let here = |client: &u32| {
                let client = IpAddr::V4((*client + 1).into());
                local.get(&Wanted::new(client, cover.client(client), &asked), Tick(0)).is_some()
            };
            (0..upto).filter(here).count()
        };
        let tell = |local: &mut Local<_>, number: u32| {
            let client = IpAddr::V4((number + 1).into());
            let hash = cover.client(client);
            let wanted = Wanted::new(client, hash, &asked);
            let asker = local.client(client, hash, || policy.asker(client)).unwrap();
            assert_eq!(asker.client, client);
            if local.get(&wanted, Tick(0)).is_none() {
                local.put(&wanted, asker, covered(Arc::clone(&reply), 90_000_000), Tick(0), Tick(0));
            }
            local.get(&wanted, Tick(0)).is_some()
        };
        for number in (0..10_000).cycle().take(100_000) {
            tell(&mut local, number);
        }
        let few = kept(&local, 10_000);
        assert!(few > 9_800, "{few}");
        let told = (100_000..200_000).filter(|number| tell(&mut local, *number)).count();
        assert_eq!((local.kept.len(), local.tags.len(), local.clients.len()), (MOST, MOST, CLIENTS));
        assert!(kept(&local, 200_000) > MOST * WAYS * 99 / 100);
        // Full, it still takes one in four.
        assert!((25_000..60_000).contains(&told), "{told}");
    }

    #[test]
    fn a_client_is_looked_up_once_an_epoch() {
        let (policy, cover) = (everybody(), Cover::<()>::new(0));
        let mut local = Local::<Numbered>::default();
        let client = IpAddr::from([192, 0, 2, 1]);
        let (mut looks, asker) = (0, policy.asker(client));
        let mut ask = |epoch| {
            local.enter(epoch);
            let look = || {
                looks += 1;
                asker
            };
            assert_eq!(local.client(client, cover.client(client), look), asker);
        };
        [1, 1, 2, 2].into_iter().for_each(&mut ask);
        assert_eq!(looks, 2);
    }
}
