//! What upstream said: (view, name, type) → answer.

use std::hash::BuildHasher;
use std::sync::Arc;

use foldhash::quality::RandomState;

use crate::cache::shards::Shards;
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
pub struct Answers<Id> {
    table: Shards<(u32, Question), Arc<Known<Id>>>,
    hasher: RandomState,
}

impl<Id> Answers<Id> {
    /// An empty table of at most `bytes`.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self { table: Shards::new(bytes), hasher: RandomState::default() }
    }

    /// The answer to `question` in an upstream's view, if a whole second of it is left to tell.
    #[must_use]
    pub fn get(&self, view: u32, question: &Question, now: Tick) -> Option<Arc<Known<Id>>> {
        let is = |key: &(u32, Question)| key.0 == view && key.1 == *question;
        let lives = |known: &Arc<Known<Id>>| known.told_until.since(now).as_secs() > 0;
        self.table.get(self.hash(view, question), is, |_, known| lives(known).then(|| Arc::clone(known)))
    }

    /// Keeps an answer.
    pub fn put(&self, view: u32, question: &Question, known: Arc<Known<Id>>) {
        let records = known.answer.records.iter().chain(&known.answer.soa);
        let weight = records.map(|record| 64 + record.name.as_wire().len() + record.data.len()).sum::<usize>() + 160;
        self.table.put(self.hash(view, question), (view, question.clone()), known, weight);
    }

    fn hash(&self, view: u32, question: &Question) -> u64 {
        self.hasher.hash_one((view, question))
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
        self.table.bytes()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;
    use crate::name::Name;
    use crate::record::{AddressTrust, Origin, Rcode, RecordType};

    fn known(origin: usize, told_until: Tick) -> Arc<Known<usize>> {
        let answer = Answer {
            rcode: Rcode::NXDOMAIN,
            authoritative: false,
            records: Vec::new(),
            soa: None,
            ede: None,
            origin: Origin { name: Arc::from("default"), trust: AddressTrust::Zone },
        };
        Arc::new(Known { answer, told_until, origin })
    }

    proptest! {
        /// An answer is given out for the view, name and type that it was given for, the latest one, and while a whole
        /// second of it is left: split horizons never mix.
        #[test]
        fn gives_out_what_was_put_under_the_very_key(
            room in select(vec![1usize << 20, 64 * 600]),
            steps in prop::collection::vec(
                (any::<bool>(), select(vec![0u32, 1, 0x0001_0000]), select(vec![".", "a", "b", "a.b"]),
                 select(vec![0u16, 1, 28, 0x0161]), 0u64..6_000_000),
                1..200,
            ),
        ) {
            let answers = Answers::new(room);
            let mut model: HashMap<(u32, Question), (Tick, usize)> = HashMap::new();
            for (put, (fill, view, name, kind, moment)) in steps.into_iter().enumerate() {
                let question = Question { name: Name::parse(name).unwrap(), kind: RecordType(kind) };
                if fill {
                    answers.put(view, &question, known(put, Tick(moment)));
                    model.insert((view, question), (Tick(moment), put));
                    continue;
                }
                let found = answers.get(view, &question, Tick(moment)).map(|known| (known.told_until, known.origin));
                let known = model.get(&(view, question)).copied();
                let known = known.filter(|(told, _)| told.0 >= moment + 1_000_000);
                prop_assert!(found.is_none() || found == known, "{found:?}, not {known:?}");
                prop_assert!(found == known || room < 1 << 20, "{known:?} is lost");
            }
        }
    }
}
