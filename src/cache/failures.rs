//! What failed upstream lately: (view, name, type) → why, and until when it is not asked again (RFC 9520).

use std::sync::Arc;
use std::time::Duration;

use crate::cache::flush::Flush;
use crate::cache::questions::Questions;
use crate::record::Question;
use crate::time::Tick;

/// How long a question rests after its first failure. RFC 9520 §3.2: "Resolvers MUST cache resolution failures for at
/// least 1 second." Longer, and a single lost packet would be felt.
const REST_AT_FIRST: Duration = Duration::from_secs(1);
/// And at most, doubled at each failure that follows: so long a name may stay dark after its upstream is back, and a name
/// that is asked for all the time costs a dead upstream six questions a minute (the RFC allows five minutes).
const REST_AT_MOST: Duration = Duration::from_secs(10);
/// What fails this soon after its rest has failed again; later it is a new failure.
const AGAIN: Duration = Duration::from_secs(30);

/// Why a question failed lately, and whether it may be asked again.
#[derive(Debug, PartialEq, Eq)]
pub enum Lately<F> {
    /// It rests, and is not asked.
    Rests(Arc<F>),
    /// It may be asked, and no answer is to be expected.
    Doubtful(Arc<F>),
}

/// Failures, bounded in bytes.
#[derive(Debug)]
pub struct Failures<F> {
    table: Questions<Failed<F>>,
}

#[derive(Debug)]
struct Failed<F> {
    why: Arc<F>,
    /// It is not asked again before.
    rests_until: Tick,
    rest: Duration,
}

impl<F> Failures<F> {
    /// An empty table of at most `bytes`.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self { table: Questions::new(bytes) }
    }

    /// Why `question` failed lately in an upstream's view.
    #[must_use]
    pub fn get(&self, view: u32, question: &Question, now: Tick) -> Option<Lately<F>> {
        self.table.get(view, question, |failed| {
            if now < failed.rests_until {
                Some(Lately::Rests(Arc::clone(&failed.why)))
            } else {
                (now < failed.rests_until + AGAIN).then(|| Lately::Doubtful(Arc::clone(&failed.why)))
            }
        })
    }

    /// Remembers that `question` failed; `weight` is about what `why` takes. Of those who waited for one exchange, the
    /// first says so for all. Where the table was flushed since it had been `flushes` times, it does not count.
    pub fn put(&self, view: u32, question: &Question, why: F, weight: usize, flushes: u64, now: Tick) {
        let before = self.table.get(view, question, |failed| Some((failed.rests_until, failed.rest)));
        let rest = match before {
            Some((rests_until, _)) if now < rests_until => return,
            Some((rests_until, rest)) if now < rests_until + AGAIN => (rest * 2).min(REST_AT_MOST),
            _ => REST_AT_FIRST,
        };
        let failed = Failed { why: Arc::new(why), rests_until: now + rest, rest };
        let weight = weight + question.name.as_wire().len() + 48;
        self.table.put(view, question, failed, weight, flushes);
    }

    /// It was answered: what was before does not count.
    pub fn remove(&self, view: u32, question: &Question) {
        self.table.remove(view, question);
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::Name;
    use crate::record::RecordType;

    fn question(name: &str) -> Question {
        Question { name: Name::parse(name).unwrap(), kind: RecordType::A }
    }

    #[test]
    fn rests_a_second_then_twice_as_long_up_to_ten() {
        let (failures, question) = (Failures::new(1 << 20), question("a.example"));
        let mut now = Tick(1_000_000);
        for rest in [1, 2, 4, 8, 10, 10] {
            failures.put(1, &question, rest, 0, 0, now);
            // Others that waited for the same exchange.
            failures.put(1, &question, 99, 0, 0, now);
            let ends = now + Duration::from_secs(rest);
            let last = ends - Duration::from_micros(1);
            assert_eq!(failures.get(1, &question, last), Some(Lately::Rests(Arc::new(rest))));
            assert_eq!(failures.get(1, &question, ends), Some(Lately::Doubtful(Arc::new(rest))));
            assert_eq!(failures.get(1, &question, ends + AGAIN), None);
            now = ends + Duration::from_secs(1);
        }
        now = now + AGAIN + REST_AT_MOST;
        failures.put(1, &question, 1, 0, 0, now);
        let after = failures.get(1, &question, now + Duration::from_secs(1));
        assert!(matches!(after, Some(Lately::Doubtful(_))), "after a while it is a new failure");
    }

    #[test]
    fn is_of_one_view_name_and_type_and_forgotten_with_the_first_answer() {
        let failures = Failures::new(1 << 20);
        failures.put(1, &question("a.example"), (), 0, 0, Tick(0));
        assert_eq!(failures.get(2, &question("a.example"), Tick(0)), None);
        assert_eq!(failures.get(1, &question("b.example"), Tick(0)), None);
        let other = Question { kind: RecordType::AAAA, ..question("a.example") };
        assert_eq!(failures.get(1, &other, Tick(0)), None);
        failures.remove(1, &question("a.example"));
        assert!(failures.get(1, &question("a.example"), Tick(0)).is_none() && failures.is_empty());
        failures.put(1, &question("a.example"), (), 0, 0, Tick(500_000));
        let after = failures.get(1, &question("a.example"), Tick(1_500_000));
        assert!(matches!(after, Some(Lately::Doubtful(_))), "the next failure is the first again");
    }

    /// I5: however many names fail, the table stays within its bytes.
    #[test]
    fn stays_within_its_bytes() {
        let failures = Failures::new(64 * 1024);
        for number in 0..10_000 {
            failures.put(1, &question(&format!("n{number}.example")), (), 100, 0, Tick(0));
        }
        assert!(!failures.is_empty() && failures.table.bytes() <= 64 * 1024);
    }
}
