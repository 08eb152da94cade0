//! What upstream said: (view, name, type) → answer.

use std::sync::Arc;

use crate::cache::shards::Shards;
use crate::name::MAX_WIRE;
use crate::record::{Answer, Question};
use crate::time::Tick;

/// An answer as its origin gave it.
#[derive(Debug)]
pub struct Known<Id> {
    /// The answer.
    pub answer: Answer,
    /// It may be told until here.
    pub told_until: Tick,
    /// The query that fetched it.
    pub origin: Id,
}

/// Answers, bounded in bytes; what has ended is not given out.
#[derive(Debug)]
pub struct Answers<Id>(Shards<Arc<Known<Id>>>);

impl<Id> Answers<Id> {
    /// An empty table of at most `bytes`.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self(Shards::new(bytes))
    }

    /// The answer to `question` in an upstream's view, if a whole second of it is left to tell.
    #[must_use]
    pub fn get(&self, view: u32, question: &Question, now: Tick) -> Option<Arc<Known<Id>>> {
        let known = self.0.get(&key(view, question))?;
        (known.told_until.since(now).as_secs() > 0).then_some(known)
    }

    /// Keeps an answer.
    pub fn put(&self, view: u32, question: &Question, known: Arc<Known<Id>>) {
        let records = known.answer.records.iter().chain(&known.answer.soa);
        let weight = records.map(|record| 64 + record.name.as_wire().len() + record.data.len()).sum::<usize>() + 160;
        self.0.put(&key(view, question), known, weight);
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many bytes, as charged.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.bytes()
    }
}

fn key(view: u32, question: &Question) -> Vec<u8> {
    let mut key = Vec::with_capacity(6 + MAX_WIRE);
    key.extend_from_slice(&view.to_be_bytes());
    key.extend_from_slice(&question.kind.0.to_be_bytes());
    key.extend_from_slice(question.name.as_wire());
    key
}
