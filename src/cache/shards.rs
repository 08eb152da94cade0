//! A map in shards, each bounded in bytes. Room is made by a hand that goes round: what was used since it last came by
//! stays for another round, what was not goes (the clock algorithm; F. J. Corbató, "A paging experiment with the Multics
//! system", 1968). So a look-up sets one flag of the entry that it found, and relinks nothing.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use parking_lot::Mutex;

/// 2^6 shards, well above the number of cores, so that two threads seldom meet.
const SHARD_BITS: u32 = 6;
const SHARDS: usize = 1 << SHARD_BITS;

/// What one entry is charged besides what it holds: its place in the table and what the allocator adds, an estimate.
const OVERHEAD: usize = 24;

#[derive(Debug)]
struct Slot<K, V> {
    key: K,
    value: V,
    hash: u32,
    charged: u32,
    used: bool,
}

#[derive(Debug)]
struct Shard<K, V> {
    entries: HashTable<Box<Slot<K, V>>>,
    bytes: usize,
    hand: usize,
}

/// See the module. An entry is looked for by a hash, of which every bit counts, and by what knows it.
#[derive(Debug)]
pub(super) struct Shards<K, V> {
    shards: Box<[Mutex<Shard<K, V>>]>,
    limit: usize,
    len: AtomicUsize,
    bytes: AtomicUsize,
    flushes: AtomicU64,
}

/// The upper bits choose the shard, the lower half is kept with the entry; a table looks at both ends of its 64 bits.
fn in_table(hash: u32) -> u64 {
    u64::from(hash) << 32 | u64::from(hash)
}

#[expect(clippy::cast_possible_truncation, reason = "the lower half is meant")]
const fn lower(hash: u64) -> u32 {
    hash as u32
}

impl<K, V> Shards<K, V> {
    pub(super) fn new(bytes: usize) -> Self {
        let shard = |_| Mutex::new(Shard { entries: HashTable::new(), bytes: 0, hand: 0 });
        Self {
            shards: (0..SHARDS).map(shard).collect(),
            limit: bytes,
            len: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            flushes: AtomicU64::new(0),
        }
    }

    fn shard(&self, hash: u64) -> Option<&Mutex<Shard<K, V>>> {
        self.shards.get(usize::try_from(hash >> (u64::BITS - SHARD_BITS)).unwrap_or(0))
    }

    /// What `take` makes of the value of the entry that `is` knows. Both are called with the shard locked.
    pub(super) fn get<T>(
        &self,
        hash: u64,
        is: impl Fn(&K, &V) -> bool,
        take: impl FnOnce(&V) -> Option<T>,
    ) -> Option<T> {
        let mut shard = self.shard(hash)?.lock();
        let hash = lower(hash);
        let slot = shard.entries.find_mut(in_table(hash), |slot| slot.hash == hash && is(&slot.key, &slot.value))?;
        if !slot.used {
            slot.used = true;
        }
        take(&slot.value)
    }

    /// Stores an entry that weighs `weight` bytes besides itself, in place of the one that `is` knows; what is not used
    /// makes room. An entry heavier than a shard is not stored, nor one of before a flush: `flushes` is what
    /// [`Shards::flushes`] said when it was begun to be made. `beside` is what counts towards the bound besides the
    /// entries, and may fall as they go.
    pub(super) fn put(
        &self,
        hash: u64,
        is: impl Fn(&K, &V) -> bool,
        (key, value): (K, V),
        weight: usize,
        beside: impl Fn() -> usize,
        flushes: u64,
    ) {
        let weighed = weight + size_of::<Slot<K, V>>() + OVERHEAD;
        let most = self.limit / SHARDS;
        let Some(shard) = self.shard(hash).filter(|_| weighed <= most) else { return };
        let Ok(charged) = u32::try_from(weighed) else { return };
        let hash = lower(hash);
        let mut shard = shard.lock();
        // Of a flush that is not seen here, the lock of this shard comes later.
        if self.flushes() != flushes {
            return;
        }
        let len = shard.entries.len();
        let mut before = shard.bytes;
        shard.bytes += weighed;
        let same = shard.entries.entry(
            in_table(hash),
            |slot| slot.hash == hash && is(&slot.key, &slot.value),
            |slot| in_table(slot.hash),
        );
        match same {
            Entry::Occupied(mut entry) => {
                let slot = entry.get_mut();
                let old = std::mem::replace(&mut slot.charged, charged);
                slot.value = value;
                shard.bytes -= old as usize;
            }
            Entry::Vacant(entry) => {
                entry.insert(Box::new(Slot { key, value, hash, charged, used: false }));
            }
        }
        loop {
            // Wrapping differences: each shard's change is exact.
            let change = shard.bytes.wrapping_sub(std::mem::replace(&mut before, shard.bytes));
            let all = self.bytes.fetch_add(change, Ordering::Relaxed).wrapping_add(change);
            let room = shard.bytes <= most && all.saturating_add(beside()) <= self.limit;
            if room || !shard.evict() {
                break;
            }
        }
        self.len.fetch_add(shard.entries.len().wrapping_sub(len), Ordering::Relaxed);
    }

    /// Drops the entry that `is` knows.
    pub(super) fn remove(&self, hash: u64, is: impl Fn(&K, &V) -> bool) {
        let Some(shard) = self.shard(hash) else { return };
        let hash = lower(hash);
        let mut shard = shard.lock();
        let found = shard.entries.find_entry(in_table(hash), |slot| slot.hash == hash && is(&slot.key, &slot.value));
        if let Ok(entry) = found {
            let charged = entry.remove().0.charged as usize;
            shard.bytes -= charged;
            self.bytes.fetch_sub(charged, Ordering::Relaxed);
            self.len.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// A flush: drops every entry that `goes` says it of, shard by shard; how many.
    pub(super) fn drop_all(&self, goes: impl Fn(&K, &V) -> bool) -> usize {
        self.flushes.fetch_add(1, Ordering::AcqRel);
        let mut dropped = 0;
        for shard in &self.shards {
            let mut shard = shard.lock();
            let (len, before) = (shard.entries.len(), shard.bytes);
            let Shard { entries, bytes, .. } = &mut *shard;
            entries.retain(|slot| {
                let goes = goes(&slot.key, &slot.value);
                if goes {
                    *bytes -= slot.charged as usize;
                }
                !goes
            });
            let gone = len - shard.entries.len();
            self.bytes.fetch_sub(before - shard.bytes, Ordering::Relaxed);
            self.len.fetch_sub(gone, Ordering::Relaxed);
            dropped += gone;
        }
        dropped
    }

    /// How often it was flushed. Who sees a flush here sees also what was done before it.
    pub(super) fn flushes(&self) -> u64 {
        self.flushes.load(Ordering::Acquire)
    }

    pub(super) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl<K, V> Shard<K, V> {
    /// Drops the next entry that was not used; false where there is none at all.
    fn evict(&mut self) -> bool {
        let places = self.entries.num_buckets();
        // Twice round: the first time may only clear flags.
        for _ in 0..places.saturating_mul(2) {
            self.hand = if self.hand + 1 < places { self.hand + 1 } else { 0 };
            let Ok(mut entry) = self.entries.get_bucket_entry(self.hand) else { continue };
            if !std::mem::take(&mut entry.get_mut().used) {
                self.bytes -= entry.remove().0.charged as usize;
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As good a hash as any: splitmix64.
    fn hash(key: u64) -> u64 {
        let mut hash = key.wrapping_add(0x9e37_79b9_7f4a_7c15);
        hash = (hash ^ hash >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash = (hash ^ hash >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        hash ^ hash >> 31
    }

    fn get(shards: &Shards<u64, u64>, key: u64) -> Option<u64> {
        shards.get(hash(key), |known, _| *known == key, |value| Some(*value))
    }

    fn put(shards: &Shards<u64, u64>, key: u64) {
        shards.put(hash(key), |known, _| *known == key, (key, key), 0, || 0, shards.flushes());
    }

    proptest! {
        /// I5: whatever is put and removed, the bytes stay under the bound and the counts are true.
        #[test]
        fn stays_within_its_bytes(
            puts in prop::collection::vec((any::<u8>(), 0usize..3000, prop::option::of(any::<u8>())), 0..400),
            all in any::<u8>(),
        ) {
            let shards = Shards::new(SHARDS * 4096);
            for (key, weight, removed) in puts {
                if let Some(removed) = removed {
                    shards.remove(hash(removed.into()), |known: &u8, _| *known == removed);
                    prop_assert_eq!(shards.get(hash(removed.into()), |known, _| *known == removed, |_| Some(())), None);
                }
                shards.put(hash(key.into()), |known, _| *known == key, (key, weight), weight, || 0, 0);
                let held: usize = shards.shards.iter().map(|shard| shard.lock().bytes).sum();
                let len: usize = shards.shards.iter().map(|shard| shard.lock().entries.len()).sum();
                let charged: usize =
                    shards.shards.iter().map(|shard| shard.lock().entries.iter().map(|slot| slot.charged as usize).sum::<usize>()).sum();
                prop_assert!(held <= SHARDS * 4096);
                prop_assert_eq!(charged, held);
                prop_assert_eq!(shards.bytes(), held);
                prop_assert_eq!(shards.len(), len);
            }
            let len = shards.len();
            let dropped = shards.drop_all(|key, _| *key & all == 0);
            prop_assert_eq!(shards.len(), len - dropped);
            let charged = |shard: &Mutex<Shard<u8, usize>>| shard.lock().entries.iter().map(|slot| slot.charged as usize).sum::<usize>();
            prop_assert_eq!(shards.bytes(), shards.shards.iter().map(charged).sum::<usize>());
            prop_assert!(shards.shards.iter().all(|shard| shard.lock().entries.iter().all(|slot| slot.key & all != 0)));
        }
    }

    #[test]
    fn what_is_used_outlives_what_is_not() {
        let shards = Shards::new(SHARDS * 8192);
        for key in 0..500 {
            put(&shards, key);
        }
        for flood in 1_000..20_000 {
            put(&shards, flood);
            let used = flood % 500;
            assert_eq!(get(&shards, used), Some(used), "a flood of names that nobody asks for again evicts no other");
        }
    }
}
