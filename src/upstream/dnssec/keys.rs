//! What upstream servers said of keys and delegations, kept for its time.

use std::collections::HashMap;
use std::time::Duration;

use foldhash::quality::RandomState;
use parking_lot::Mutex;

use crate::record::Question;
use crate::time::{Tick, Ttl};

/// Messages kept: the delegations of a thousand zones. A message with keys has about a kilobyte.
const CAP: usize = 4_096;
/// However long it may be kept: a key that is withdrawn is gone after this.
const LONGEST: Duration = Duration::from_secs(3_600);

/// See the module. One upstream's: what others say is not mixed in.
#[derive(Debug, Default)]
pub(super) struct Keys(Mutex<HashMap<Question, Kept, RandomState>>);

#[derive(Debug)]
struct Kept {
    message: Vec<u8>,
    until: Tick,
}

impl Keys {
    pub(super) fn get(&self, question: &Question, now: Tick) -> Option<Vec<u8>> {
        self.0.lock().get(question).filter(|kept| kept.until > now).map(|kept| kept.message.clone())
    }

    /// Keeps a message for `ttl`. At the cap what has ended makes room, and where nothing has, all of it: the keys of the zones
    /// in use are asked for again at once.
    pub(super) fn put(&self, question: Question, message: Vec<u8>, now: Tick, ttl: Ttl) {
        let until = now + ttl.duration().min(LONGEST);
        let mut kept = self.0.lock();
        if kept.len() >= CAP {
            kept.retain(|_, kept| kept.until > now);
        }
        if kept.len() >= CAP {
            kept.clear();
        }
        kept.insert(question, Kept { message, until });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::Name;
    use crate::record::RecordType;

    #[test]
    fn a_message_is_kept_for_its_time_and_the_table_has_a_cap() {
        let keys = Keys::default();
        let question = |number: usize| Question {
            name: Name::parse(&format!("z{number}.example")).unwrap(),
            kind: RecordType::DNSKEY,
        };
        let hour = Ttl::from_wire(3_600);
        keys.put(question(0), vec![0], Tick(0), Ttl::from_wire(60));
        keys.put(question(1), vec![1], Tick(0), Ttl::from_wire(86_400));
        assert_eq!(keys.get(&question(0), Tick(59_999_999)), Some(vec![0]));
        assert_eq!(keys.get(&question(0), Tick(60_000_000)), None);
        assert_eq!(keys.get(&question(1), Tick(3_599_000_000)), Some(vec![1]));
        assert_eq!(keys.get(&question(1), Tick(3_600_000_000)), None, "no longer than an hour");
        for number in 2..CAP {
            keys.put(question(number), vec![2], Tick(0), hour);
        }
        keys.put(question(CAP), vec![3], Tick(60_000_000), hour);
        assert_eq!(keys.get(&question(CAP - 1), Tick(60_000_000)), Some(vec![2]), "what had ended made room");
        keys.put(question(CAP + 1), vec![4], Tick(60_000_000), hour);
        assert_eq!(keys.0.lock().len(), 1);
    }
}
