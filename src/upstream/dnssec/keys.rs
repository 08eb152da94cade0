//! What upstream servers said of keys and delegations, kept for its time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use foldhash::quality::RandomState;
use parking_lot::Mutex;

use crate::record::Question;
use crate::time::{Tick, Ttl};

/// Octets of all messages: some ten thousand delegations.
const BYTES: usize = 8 << 20;
/// What one is charged besides its octets: its place in the table and its question.
const OVERHEAD: usize = 160;
/// However long it may be kept: a key that is withdrawn is gone after this.
const LONGEST: Duration = Duration::from_secs(3_600);

/// See the module. One upstream's: what others say is not mixed in.
#[derive(Debug, Default)]
pub(in crate::upstream) struct Keys(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    kept: HashMap<Question, Kept, RandomState>,
    bytes: usize,
    /// How often it was cleared.
    clears: u64,
}

#[derive(Debug)]
struct Kept {
    message: Arc<[u8]>,
    until: Tick,
}

impl Kept {
    fn weight(&self) -> usize {
        OVERHEAD + self.message.len()
    }
}

impl Table {
    fn remove(&mut self, question: &Question) {
        if let Some(gone) = self.kept.remove(question) {
            self.bytes -= gone.weight();
        }
    }
}

impl Keys {
    pub(super) fn get(&self, question: &Question, now: Tick) -> Option<Arc<[u8]>> {
        self.0.lock().kept.get(question).filter(|kept| kept.until > now).map(|kept| Arc::clone(&kept.message))
    }

    /// Keeps a message for `ttl`, unless everything was forgotten since it had been `clears` times. Whatever comes first in the table makes room: it is asked for again where it is needed.
    pub(super) fn put(&self, question: Question, message: Arc<[u8]>, now: Tick, ttl: Ttl, clears: u64) {
        let kept = Kept { message, until: now + ttl.duration().min(LONGEST) };
        let mut table = self.0.lock();
        if table.clears != clears {
            return;
        }
        table.remove(&question);
        table.bytes += kept.weight();
        table.kept.insert(question.clone(), kept);
        while table.bytes > BYTES {
            let Some(victim) = table.kept.keys().find(|victim| **victim != question).cloned() else { return };
            table.remove(&victim);
        }
    }

    /// Forgets what turned out to prove nothing.
    pub(super) fn forget<'a>(&self, questions: impl IntoIterator<Item = &'a Question>) {
        let mut table = self.0.lock();
        questions.into_iter().for_each(|question| table.remove(question));
    }

    /// Forgets everything.
    pub(in crate::upstream) fn clear(&self) {
        let mut table = self.0.lock();
        *table = Table { clears: table.clears + 1, ..Table::default() };
    }

    /// How often everything was forgotten.
    pub(super) fn clears(&self) -> u64 {
        self.0.lock().clears
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::Name;
    use crate::record::RecordType;

    fn question(number: usize) -> Question {
        Question { name: Name::parse(&format!("z{number}.example")).unwrap(), kind: RecordType::DNSKEY }
    }

    #[test]
    fn a_message_is_kept_for_its_time() {
        let keys = Keys::default();
        keys.put(question(0), Arc::from([0]), Tick(0), Ttl::from_wire(60), 0);
        keys.put(question(1), Arc::from([1]), Tick(0), Ttl::from_wire(86_400), 0);
        assert_eq!(keys.get(&question(0), Tick(59_999_999)).as_deref(), Some(&[0][..]));
        assert_eq!(keys.get(&question(0), Tick(60_000_000)), None);
        assert_eq!(keys.get(&question(1), Tick(3_599_000_000)).as_deref(), Some(&[1][..]));
        assert_eq!(keys.get(&question(1), Tick(3_600_000_000)), None, "no longer than an hour");
        keys.forget([&question(1), &question(2)]);
        assert_eq!(keys.get(&question(1), Tick(0)), None);
        keys.clear();
        keys.put(question(0), Arc::from([0]), Tick(0), Ttl::from_wire(60), 0);
        let table = keys.0.lock();
        assert_eq!((table.kept.len(), table.bytes), (0, 0));
    }

    /// I5
    #[test]
    fn the_table_has_a_bound() {
        let keys = Keys::default();
        let long: Arc<[u8]> = Arc::from(vec![0; 64 * 1024]);
        for number in 0..1_000 {
            keys.put(question(number), Arc::clone(&long), Tick(0), Ttl::from_wire(60), 0);
            assert!(keys.0.lock().bytes <= BYTES);
            assert!(keys.get(&question(number), Tick(0)).is_some());
            keys.put(question(number), Arc::clone(&long), Tick(0), Ttl::from_wire(60), 0);
        }
        let table = keys.0.lock();
        assert_eq!(table.bytes, table.kept.values().map(Kept::weight).sum::<usize>());
    }
}
