//! For whom an answer is open: (who, name, type) → prepared reply, told until, under which epoch.

use std::hash::{BuildHasher, Hasher};
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use foldhash::quality::RandomState;

use crate::cache::flush::Flush;
use crate::cache::shards::Shards;
use crate::net::SegmentId;
use crate::record::RecordType;
use crate::time::Tick;

/// For whom a reply was prepared: a client of a segment, or the whole segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Who {
    /// The segment.
    pub segment: SegmentId,
    /// The client, where grants are per client.
    pub client: Option<IpAddr>,
}

/// What is asked, and its hash: made once a query by [`Cover::asked`].
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    pub(super) name: &'a [u8],
    pub(super) kind: RecordType,
    pub(super) hash: u64,
}

/// A reply that counts towards the bytes of the table that it was made for, once, for as long as anybody holds it: one
/// reply may be covered for many.
#[derive(Debug)]
pub struct Held<V> {
    reply: V,
    weight: usize,
    all: Arc<AtomicUsize>,
}

impl<V> Held<V> {
    /// About how many bytes it takes, this included.
    #[must_use]
    pub const fn weight(&self) -> usize {
        self.weight
    }
}

impl<V> Deref for Held<V> {
    type Target = V;

    fn deref(&self) -> &V {
        &self.reply
    }
}

impl<V> Drop for Held<V> {
    fn drop(&mut self) {
        self.all.fetch_sub(self.weight, Ordering::Relaxed);
    }
}

/// A reply that knows what it answers: the tables do not keep the question beside it.
pub trait Reply {
    /// Whether this is what it answers; `name` is canonical.
    fn answers(&self, name: &[u8], kind: RecordType) -> bool;

    /// The name that it answers, canonical.
    fn name(&self) -> &[u8];
}

/// A prepared reply and what it stands on.
#[derive(Debug)]
pub struct Covered<V> {
    /// The rulebook's epoch under which it was granted; another epoch makes it a miss.
    pub epoch: u64,
    /// For how long.
    pub until: Until,
    /// The reply.
    pub reply: Arc<Held<V>>,
}

/// For how long a reply stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Until {
    /// It may be told until here; everything it names is open until here at least.
    pub told: Tick,
    /// The first of its openings ends here. The clock's beginning: it needed none.
    opened: Tick,
}

impl Until {
    /// It may be told until `told`, and its first opening ends at `open`, where it needed one.
    #[must_use]
    pub fn new(told: Tick, open: Option<Tick>) -> Self {
        Self { told, opened: open.unwrap_or_default() }
    }

    /// The first of its openings ends here; `None` where it needed none.
    #[must_use]
    pub fn open(self) -> Option<Tick> {
        Some(self.opened).filter(|opened| *opened != Tick::default())
    }
}

impl<V> Clone for Covered<V> {
    fn clone(&self) -> Self {
        Self { reply: Arc::clone(&self.reply), ..*self }
    }
}

/// Prepared replies, bounded in bytes.
#[derive(Debug)]
pub struct Cover<V> {
    table: Shards<Who, Covered<V>>,
    hasher: RandomState,
    /// The bytes of all replies.
    held: Arc<AtomicUsize>,
}

impl<V> Cover<V> {
    /// An empty table of at most `bytes`.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self { table: Shards::new(bytes), hasher: RandomState::default(), held: Arc::default() }
    }

    /// A reply of about `weight` bytes, to be covered here.
    #[must_use]
    pub fn hold(&self, reply: V, weight: usize) -> Arc<Held<V>> {
        let weight = weight + size_of::<Held<V>>() - size_of::<V>();
        self.held.fetch_add(weight, Ordering::Relaxed);
        Arc::new(Held { reply, weight, all: Arc::clone(&self.held) })
    }

    /// What is asked, ready to be looked up.
    #[must_use]
    pub fn asked<'a>(&self, name: &'a [u8], kind: RecordType) -> Asked<'a> {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(name);
        hasher.write_u16(kind.0);
        Asked { name, kind, hash: hasher.finish() }
    }

    /// A client's hash.
    #[must_use]
    pub fn client(&self, client: IpAddr) -> u64 {
        self.hasher.hash_one(bits(client))
    }

    fn hash(&self, who: Who) -> u64 {
        match who.client {
            Some(client) => self.client(client),
            None => self.hasher.hash_one(who.segment.0),
        }
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many bytes, as charged.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.table.bytes() + self.held.load(Ordering::Relaxed)
    }
}

impl<V: Reply> Cover<V> {
    /// The reply prepared for `who`, if it stands under `epoch` and a whole second of it is left to tell.
    #[must_use]
    pub fn get(&self, who: Who, asked: &Asked<'_>, epoch: u64, now: Tick) -> Option<Covered<V>> {
        let is = |whose: &Who, covered: &Covered<V>| *whose == who && covered.reply.answers(asked.name, asked.kind);
        self.table.get(asked.hash ^ self.hash(who), is, |covered| {
            let stands = covered.epoch == epoch && covered.until.told.since(now).as_secs() > 0;
            stands.then(|| covered.clone())
        })
    }

    /// Keeps a reply to `asked` that was made by [`Cover::hold`]; where the table was flushed since it had been `flushes`
    /// times, it does not.
    pub fn put(&self, who: Who, asked: &Asked<'_>, covered: Covered<V>, flushes: u64) {
        let is = |whose: &Who, known: &Covered<V>| *whose == who && known.reply.answers(asked.name, asked.kind);
        let beside = || self.held.load(Ordering::Relaxed);
        self.table.put(asked.hash ^ self.hash(who), is, (who, covered), 0, beside, flushes);
    }

    /// Drops what `flush` names, whoever it is for; how many.
    pub fn flush(&self, flush: &Flush) -> usize {
        self.table.drop_all(|_, covered| flush.takes(covered.reply.name()))
    }

    /// How often it was flushed.
    #[must_use]
    pub fn flushes(&self) -> u64 {
        self.table.flushes()
    }
}

/// An address of either family; what is no canonical address may share its bits with one.
fn bits(client: IpAddr) -> u128 {
    match client {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;
    use crate::name::Name;

    struct Numbered(usize, Name, RecordType);

    impl Reply for Numbered {
        fn answers(&self, name: &[u8], kind: RecordType) -> bool {
            self.1.as_wire() == name && self.2 == kind
        }

        fn name(&self) -> &[u8] {
            self.1.as_wire()
        }
    }

    #[test]
    fn a_cover_is_for_one_client_one_epoch_and_a_while() {
        let cover = Cover::new(1 << 20);
        let name = Name::parse("api.example.com").unwrap();
        let who = |client: &str| Who { segment: SegmentId(7), client: Some(client.parse().unwrap()) };
        let told_until = Tick(100_000_000);
        let reply = cover.hold(Numbered(1, name.clone(), RecordType::A), 8);
        let covered = Covered { epoch: 3, until: Until::new(told_until, None), reply };
        cover.put(who("192.0.2.1"), &cover.asked(name.as_wire(), RecordType::A), covered, 0);
        let get = |client, kind, epoch, now| {
            cover.get(who(client), &cover.asked(name.as_wire(), kind), epoch, Tick(now)).is_some()
        };
        assert!(get("192.0.2.1", RecordType::A, 3, 99_000_000));
        assert!(!get("192.0.2.2", RecordType::A, 3, 0), "another client");
        assert!(!get("192.0.2.1", RecordType::AAAA, 3, 0), "another type");
        assert!(!get("192.0.2.1", RecordType::A, 4, 0), "another epoch");
        assert!(!get("192.0.2.1", RecordType::A, 3, 99_000_001), "less than a second is left");
        assert_eq!(cover.len(), 1);
    }

    fn a_who() -> impl Strategy<Value = Who> {
        // An IPv4 address, the IPv6 addresses that look like it on their 16 octets, and nobody.
        let clients = ["192.0.2.1", "::ffff:192.0.2.1", "::192.0.2.1", "2001:db8::1", "::"];
        let client = prop::option::of(select(clients.to_vec()));
        (select(vec![0, 1, 0x0400_0000]), client).prop_map(|(segment, client)| Who {
            segment: SegmentId(segment),
            client: client.map(|client| client.parse().unwrap()),
        })
    }

    proptest! {
        /// I5: one reply may be covered for many, and counts once; with all of it the bytes stay under the bound.
        #[test]
        fn stays_within_its_bytes_with_the_replies_it_shares(
            puts in prop::collection::vec((0u8..200, 0u8..6, any::<bool>(), 0usize..3000), 1..300),
        ) {
            let cover = Cover::new(64 * 4096);
            let mut last: Option<Arc<Held<Numbered>>> = None;
            for (name, client, shared, weight) in puts {
                let name = Name::parse(&format!("n{name}")).unwrap();
                let client = Some(IpAddr::from([192, 0, 2, client]));
                let numbered = Numbered(0, name.clone(), RecordType::A);
                let reply = last.take().filter(|_| shared).unwrap_or_else(|| cover.hold(numbered, weight));
                let covered = Covered { epoch: 1, until: Until::new(Tick(0), None), reply: Arc::clone(&reply) };
                let asked = cover.asked(reply.1.as_wire(), RecordType::A);
                cover.put(Who { segment: SegmentId(1), client }, &asked, covered, 0);
                // One is held by who made it, and may come on top.
                prop_assert!(cover.bytes() <= 64 * 4096 + reply.weight());
                last = Some(reply);
            }
            drop(last);
            prop_assert!(cover.bytes() <= 64 * 4096);
            prop_assert_eq!(cover.is_empty(), cover.held.load(Ordering::Relaxed) == 0);
        }

        /// I4: what is given out was put under this very key, last, under this epoch, and has a second left. Nothing
        /// else is ever given out, however full the table; with room, nothing less.
        #[test]
        fn gives_out_what_was_put_under_the_very_key(
            room in select(vec![1usize << 20, 64 * 600]),
            steps in prop::collection::vec(
                (any::<bool>(), a_who(), select(vec![".", "a", "b", "a.b", "b.a"]), select(vec![0u16, 1, 28, 0x0161]),
                 0u64..2, 0u64..6_000_000, 0usize..400),
                1..200,
            ),
        ) {
            let cover = Cover::new(room);
            let mut model: HashMap<_, (u64, Tick, usize)> = HashMap::new();
            for (put, (fill, who, name, kind, epoch, moment, weight)) in steps.into_iter().enumerate() {
                let (name, kind) = (Name::parse(name).unwrap(), RecordType(kind));
                let key = (who.segment, who.client, name.clone(), kind);
                if fill {
                    let told_until = Tick(moment);
                    let reply = cover.hold(Numbered(put, name.clone(), kind), weight);
                    let covered = Covered { epoch, until: Until::new(told_until, None), reply };
                    cover.put(who, &cover.asked(name.as_wire(), kind), covered, 0);
                    model.insert(key, (epoch, told_until, put));
                    continue;
                }
                let found = cover.get(who, &cover.asked(name.as_wire(), kind), epoch, Tick(moment));
                let found = found.map(|covered| (covered.epoch, covered.until.told, covered.reply.0));
                let known = model.get(&key).copied();
                let known = known.filter(|(of, told, _)| *of == epoch && told.0 >= moment + 1_000_000);
                prop_assert!(found.is_none() || found == known, "{found:?}, not {known:?}");
                prop_assert!(found == known || room < 1 << 20, "{known:?} is lost");
            }
        }
    }
}
