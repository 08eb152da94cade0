//! A map in shards, each a least-recently-used list bounded in bytes. Keys are byte strings, so that a look-up
//! borrows a key built on the stack.

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicUsize, Ordering};

use foldhash::quality::RandomState;
use lru::LruCache;
use parking_lot::Mutex;

/// Shards: a power of two well above the number of cores, so that two threads seldom meet.
const SHARDS: usize = 64;

/// The fixed cost that one entry is charged besides its key and value (list node, table slot): an estimate.
const OVERHEAD: usize = 96;

#[derive(Debug)]
struct Shard<V> {
    entries: LruCache<Box<[u8]>, (V, usize), RandomState>,
    bytes: usize,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Shards<V> {
    shards: Vec<Mutex<Shard<V>>>,
    hasher: RandomState,
    bytes_per_shard: usize,
    len: AtomicUsize,
    bytes: AtomicUsize,
}

impl<V: Clone> Shards<V> {
    pub(super) fn new(bytes: usize) -> Self {
        let shard = || Mutex::new(Shard { entries: LruCache::unbounded_with_hasher(RandomState::default()), bytes: 0 });
        Self {
            shards: (0..SHARDS).map(|_| shard()).collect(),
            hasher: RandomState::default(),
            bytes_per_shard: bytes / SHARDS,
            len: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
        }
    }

    fn shard(&self, key: &[u8]) -> Option<&Mutex<Shard<V>>> {
        let hash = self.hasher.hash_one(key);
        self.shards.get(usize::try_from(hash >> 32).unwrap_or(0) % SHARDS)
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<V> {
        self.shard(key)?.lock().entries.get(key).map(|(value, _)| value.clone())
    }

    /// Stores a value that weighs `weight` bytes; the least recently used entries make room. A value heavier than
    /// a shard is not stored.
    pub(super) fn put(&self, key: &[u8], value: V, weight: usize) {
        let charged = weight + key.len() + OVERHEAD;
        let Some(shard) = self.shard(key).filter(|_| charged <= self.bytes_per_shard) else { return };
        let mut shard = shard.lock();
        let (len, bytes) = (shard.entries.len(), shard.bytes);
        shard.bytes += charged;
        if let Some((_, (_, old))) = shard.entries.push(Box::from(key), (value, charged)) {
            shard.bytes -= old;
        }
        while shard.bytes > self.bytes_per_shard {
            let Some((_, (_, old))) = shard.entries.pop_lru() else { break };
            shard.bytes -= old;
        }
        // Wrapping differences: each shard's change is exact, the sum is read for metrics alone.
        self.len.fetch_add(shard.entries.len().wrapping_sub(len), Ordering::Relaxed);
        self.bytes.fetch_add(shard.bytes.wrapping_sub(bytes), Ordering::Relaxed);
    }

    pub(super) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// I5: whatever is put, the bytes stay under the bound and the counts are true.
        #[test]
        fn stays_within_its_bytes(puts in prop::collection::vec((any::<u8>(), 0usize..3000), 0..400)) {
            let shards = Shards::new(SHARDS * 4096);
            for (key, weight) in puts {
                shards.put(&[key], weight, weight);
                let held: usize = shards.shards.iter().map(|shard| shard.lock().bytes).sum();
                let len: usize = shards.shards.iter().map(|shard| shard.lock().entries.len()).sum();
                prop_assert!(held <= SHARDS * 4096);
                prop_assert_eq!(shards.bytes(), held);
                prop_assert_eq!(shards.len(), len);
            }
        }
    }
}
