//! What upstream said: (view, name, type) → answer.

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use crate::cache::cover::Held;
use crate::cache::flush::Flush;
use crate::cache::questions::Questions;
use crate::record::{Answer, Question};
use crate::time::Tick;

/// An answer as its origin gave it.
#[derive(Debug)]
pub struct Known<Id, R> {
    /// The answer.
    pub answer: Answer,
    /// It may be told until here.
    pub told_until: Tick,
    /// The query that fetched it.
    pub origin: Id,
    /// The reply that was prepared from it last, where somebody still holds it.
    pub last: Mutex<Weak<Held<R>>>,
}

impl<Id, R: PartialEq> Known<Id, R> {
    /// The reply that was prepared from this answer before, where it is the same as `reply`; else what `hold` makes of
    /// it. So the clients of a segment are told one reply, and it is in memory once.
    pub fn share(&self, reply: R, hold: impl FnOnce(R) -> Arc<Held<R>>) -> Arc<Held<R>> {
        let mut last = self.last.lock();
        if let Some(same) = last.upgrade().filter(|last| ***last == reply) {
            return same;
        }
        let reply = hold(reply);
        *last = Arc::downgrade(&reply);
        reply
    }
}

/// What is known of a question.
#[derive(Debug)]
pub enum Found<Id, R> {
    /// Its answer, with a whole second left to tell.
    Lives(Arc<Known<Id, R>>),
    /// An answer that has ended: to be told only where upstream gives no other (RFC 8767).
    Ended(Arc<Known<Id, R>>),
}

/// Answers, bounded in bytes.
#[derive(Debug)]
pub struct Answers<Id, R> {
    table: Questions<Arc<Known<Id, R>>>,
    /// How long past its end an answer is given out.
    stale: Duration,
}

impl<Id, R> Answers<Id, R> {
    /// An empty table of at most `bytes`; what ended no longer than `stale` ago is given out as such.
    #[must_use]
    pub fn new(bytes: usize, stale: Duration) -> Self {
        Self { table: Questions::new(bytes), stale }
    }

    /// What is known of `question` in an upstream's view.
    #[must_use]
    pub fn get(&self, view: u32, question: &Question, now: Tick) -> Option<Found<Id, R>> {
        self.table.get(view, question, |known| {
            if known.told_until.since(now).as_secs() > 0 {
                Some(Found::Lives(Arc::clone(known)))
            } else {
                (now.since(known.told_until) < self.stale).then(|| Found::Ended(Arc::clone(known)))
            }
        })
    }

    /// Drops what is known of `question`.
    pub fn remove(&self, view: u32, question: &Question) {
        self.table.remove(view, question);
    }

    /// Keeps an answer; where the table was flushed since it had been `flushes` times, it does not.
    pub fn put(&self, view: u32, question: &Question, known: Arc<Known<Id, R>>, flushes: u64) {
        let proof = known.answer.proof.iter().flat_map(|proof| proof.answers.iter().chain(&proof.authority));
        let records = known.answer.records.iter().chain(&known.answer.soa).chain(proof);
        // With each allocation's own: the record, its name and its data; the answer; what is left of a reply.
        let weight = records.map(|record| 80 + record.name.as_wire().len() + record.data.len()).sum::<usize>();
        let weight = weight + size_of::<Known<Id, R>>() + size_of::<Held<R>>() + 48;
        self.table.put(view, question, known, weight, flushes);
    }

    /// Drops what `flush` names; how many.
    pub fn flush(&self, flush: &Flush) -> usize {
        self.table.flush(flush)
    }

    /// How often it was flushed.
    #[must_use]
    pub fn flushes(&self) -> u64 {
        self.table.flushes()
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

    fn known(origin: usize, told_until: Tick) -> Arc<Known<usize, ()>> {
        let answer = Answer {
            rcode: Rcode::NXDOMAIN,
            authoritative: false,
            records: Vec::new(),
            soa: None,
            ede: None,
            proof: None,
            origin: Origin { name: Arc::from("default"), trust: AddressTrust::Zone },
        };
        Arc::new(Known { answer, told_until, origin, last: Mutex::default() })
    }

    #[test]
    fn the_same_reply_is_made_once_while_it_is_held() {
        let cover = crate::cache::Cover::new(1 << 20);
        let answer = known(1, Tick(0));
        let known = Known { answer: answer.answer.clone(), told_until: Tick(0), origin: 1, last: Mutex::default() };
        let share = |reply: &'static str| known.share(reply, |reply| cover.hold(reply, 100));
        let (one, two, other) = (share("a"), share("a"), share("b"));
        assert!(Arc::ptr_eq(&one, &two) && **other == "b");
        assert_eq!(cover.bytes(), one.weight() + other.weight());
        drop((one, two, other));
        assert_eq!(cover.bytes(), 0);
        assert_eq!(**share("b"), "b");
    }

    #[test]
    fn what_was_asked_before_a_flush_is_not_kept_after_it() {
        let answers = Answers::new(1 << 20, Duration::ZERO);
        let question = |name| Question { name: Name::parse(name).unwrap(), kind: RecordType::A };
        let before = answers.flushes();
        answers.put(1, &question("a.example"), known(1, Tick(9_000_000)), before);
        assert_eq!(answers.flush(&Flush { name: Name::parse("example").unwrap(), below: true }), 1);
        answers.put(1, &question("a.example"), known(1, Tick(9_000_000)), before);
        assert!(answers.is_empty());
        answers.put(1, &question("a.example"), known(1, Tick(9_000_000)), answers.flushes());
        assert_eq!(answers.len(), 1);
    }

    proptest! {
        /// An answer is given out for the view, name and type that it was given for, the latest one, while a whole
        /// second of it is left; as ended, for as long as was said. Split horizons never mix.
        #[test]
        fn gives_out_what_was_put_under_the_very_key(
            room in select(vec![1usize << 20, 64 * 600]),
            stale in 0u64..4,
            steps in prop::collection::vec(
                (any::<bool>(), select(vec![0u32, 1, 0x0001_0000]), select(vec![".", "a", "b", "a.b"]),
                 select(vec![0u16, 1, 28, 0x0161]), 0u64..6_000_000),
                1..200,
            ),
        ) {
            let stale = Duration::from_secs(stale);
            let answers = Answers::new(room, stale);
            let mut model: HashMap<(u32, Question), (Tick, usize)> = HashMap::new();
            for (put, (fill, view, name, kind, moment)) in steps.into_iter().enumerate() {
                let question = Question { name: Name::parse(name).unwrap(), kind: RecordType(kind) };
                if fill {
                    answers.put(view, &question, known(put, Tick(moment)), 0);
                    model.insert((view, question), (Tick(moment), put));
                    continue;
                }
                let found = answers.get(view, &question, Tick(moment)).map(|found| match found {
                    Found::Lives(known) => (true, known.told_until, known.origin),
                    Found::Ended(known) => (false, known.told_until, known.origin),
                });
                let known = model.get(&(view, question)).copied();
                let known = known.map(|(told, put)| (told.0 >= moment + 1_000_000, told, put));
                let known = known.filter(|(lives, told, _)| *lives || Tick(moment).since(*told) < stale);
                prop_assert!(found.is_none() || found == known, "{found:?}, not {known:?}");
                prop_assert!(found == known || room < 1 << 20, "{known:?} is lost");
            }
        }
    }
}
