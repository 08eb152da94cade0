//! What is kept of a question in an upstream's view: (view, name, type) → a value.

use std::hash::BuildHasher;

use foldhash::quality::RandomState;

use crate::cache::flush::Flush;
use crate::cache::shards::Shards;
use crate::record::Question;

type Key = (u32, Question);

/// See the module. Bounded in bytes.
#[derive(Debug)]
pub(super) struct Questions<V> {
    table: Shards<Key, V>,
    hasher: RandomState,
}

impl<V> Questions<V> {
    pub(super) fn new(bytes: usize) -> Self {
        Self { table: Shards::new(bytes), hasher: RandomState::default() }
    }

    fn hash(&self, view: u32, question: &Question) -> u64 {
        self.hasher.hash_one((view, question))
    }

    /// What `take` makes of the value.
    pub(super) fn get<T>(&self, view: u32, question: &Question, take: impl FnOnce(&V) -> Option<T>) -> Option<T> {
        self.table.get(self.hash(view, question), is(view, question), take)
    }

    /// Keeps a value that weighs `weight` bytes besides itself; `flushes` as in [`Shards::put`].
    pub(super) fn put(&self, view: u32, question: &Question, value: V, weight: usize, flushes: u64) {
        let entry = ((view, question.clone()), value);
        self.table.put(self.hash(view, question), is(view, question), entry, weight, || 0, flushes);
    }

    pub(super) fn remove(&self, view: u32, question: &Question) {
        // Nearly always there is no failure at all.
        if self.table.len() > 0 {
            self.table.remove(self.hash(view, question), is(view, question));
        }
    }

    pub(super) fn flush(&self, flush: &Flush) -> usize {
        self.table.drop_all(|(_, question), _| flush.takes(question.name.as_wire()))
    }

    pub(super) fn flushes(&self) -> u64 {
        self.table.flushes()
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.table.bytes()
    }
}

fn is<V>(view: u32, question: &Question) -> impl Fn(&Key, &V) -> bool {
    move |key, _| key.0 == view && key.1 == *question
}
