//! Room on the slow path: so many queries in all, per client, per forwarder. Past it a query fails closed at
//! once, so that one client's flood is that client's own (I5).

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::quality::RandomState;
use parking_lot::Mutex;

/// Queries on the slow path in all; each holds a packet and a task, some kilobytes.
const ALL: usize = 8_192;
/// Per client: a busy host's burst at start (guessed; Unbound's wait-limit is of that size).
const CLIENT: usize = 256;
/// Per forwarder: it asks for many.
const FORWARDER: usize = 4_096;

/// Room on the slow path.
#[derive(Clone, Debug, Default)]
pub struct Slots(Arc<Mutex<Taken>>);

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    clients: HashMap<IpAddr, usize, RandomState>,
}

/// One query's place; dropping it makes room.
#[derive(Debug)]
pub struct Slot {
    slots: Slots,
    client: IpAddr,
}

impl Slots {
    /// A place for a query of `client`, if there is room.
    #[must_use]
    pub fn take(&self, client: IpAddr, is_forwarder: bool) -> Option<Slot> {
        let mut taken = self.0.lock();
        if taken.all >= ALL {
            return None;
        }
        let count = taken.clients.entry(client).or_default();
        if *count >= if is_forwarder { FORWARDER } else { CLIENT } {
            return None;
        }
        *count += 1;
        taken.all += 1;
        Some(Slot { slots: self.clone(), client })
    }

    /// How many are taken.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.0.lock().all
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.slots.0.lock();
        taken.all -= 1;
        if let Some(count) = taken.clients.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                taken.clients.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_cannot_fill_the_slow_path() {
        let slots = Slots::default();
        let (a, b) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let held: Vec<Slot> = std::iter::from_fn(|| slots.take(a, false)).collect();
        assert_eq!(held.len(), CLIENT);
        let other = slots.take(b, false).unwrap();
        drop(held);
        assert_eq!(slots.taken(), 1);
        drop(other);
        assert!(slots.take(a, false).is_some());
        assert!(slots.0.lock().clients.is_empty(), "a client without queries leaves no trace");
    }
}
