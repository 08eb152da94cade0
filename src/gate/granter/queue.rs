//! The granter's queue: many put orders in, one takes all that wait at once, and is woken only where it sleeps.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};

/// The end that orders are put in; there may be several.
pub(super) struct Sender<T>(Arc<Queue<T>>);

/// The end that they are taken from.
pub(super) struct Inbox<T> {
    queue: Arc<Queue<T>>,
    /// The empty vector that the next taking leaves behind.
    spare: Vec<T>,
}

struct Queue<T> {
    room: usize,
    state: Mutex<State<T>>,
    bell: Condvar,
}

struct State<T> {
    orders: Vec<T>,
    senders: usize,
    /// Nobody takes any more.
    closed: bool,
    /// The taker sleeps and has not been woken yet.
    asleep: bool,
}

/// Why an order was not put in.
#[derive(Debug)]
pub(super) enum Refused<T> {
    /// As many wait as there is room for.
    Full(T),
    /// Nobody will take it.
    Closed,
}

/// A queue for so many orders.
pub(super) fn queue<T>(room: usize) -> (Sender<T>, Inbox<T>) {
    let state = State { orders: Vec::new(), senders: 1, closed: false, asleep: false };
    let queue = Arc::new(Queue { room, state: Mutex::new(state), bell: Condvar::new() });
    (Sender(Arc::clone(&queue)), Inbox { queue, spare: Vec::new() })
}

impl<T> Sender<T> {
    pub(super) fn put(&self, order: T) -> Result<(), Refused<T>> {
        let mut state = self.0.state.lock();
        if state.closed {
            return Err(Refused::Closed);
        }
        if state.orders.len() >= self.0.room {
            return Err(Refused::Full(order));
        }
        state.orders.push(order);
        self.wake(&mut state);
        Ok(())
    }

    fn wake(&self, state: &mut State<T>) {
        if std::mem::take(&mut state.asleep) {
            self.0.bell.notify_one();
        }
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").finish_non_exhaustive()
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.state.lock().senders += 1;
        Self(Arc::clone(&self.0))
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.senders -= 1;
        if state.senders == 0 {
            self.wake(&mut state);
        }
    }
}

impl<T> Inbox<T> {
    /// Takes everything that waits, behind what `orders` has; where there is nothing it waits for `patience`, if any.
    /// False where there is nothing, and nobody is left to put anything in.
    pub(super) fn take(&mut self, orders: &mut VecDeque<T>, patience: Option<Duration>) -> bool {
        let mut state = self.queue.state.lock();
        if let Some(patience) = patience
            && state.orders.is_empty()
            && state.senders > 0
        {
            state.asleep = true;
            self.queue.bell.wait_for(&mut state, patience);
            state.asleep = false;
            // Who woke it is about to put more in. Where that needs this very core it goes first, and all is one batch.
            MutexGuard::unlocked(&mut state, thread::yield_now);
        }
        std::mem::swap(&mut state.orders, &mut self.spare);
        let over = self.spare.is_empty() && state.senders == 0;
        drop(state);
        orders.extend(self.spare.drain(..));
        !over
    }
}

impl<T> Drop for Inbox<T> {
    fn drop(&mut self) {
        let mut state = self.queue.state.lock();
        state.closed = true;
        // Dropped behind the lock: who waits for an answer is told.
        let orders = std::mem::take(&mut state.orders);
        drop(state);
        drop(orders);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Option<Duration> = Some(Duration::from_secs(600));

    #[test]
    fn orders_come_in_order_and_all_at_once() {
        let (sender, mut inbox) = queue(3);
        let mut orders = VecDeque::from([0]);
        for number in 1..=3 {
            sender.put(number).unwrap();
        }
        assert!(matches!(sender.put(4), Err(Refused::Full(4))));
        assert!(inbox.take(&mut orders, LONG));
        assert_eq!(orders, [0, 1, 2, 3]);
        sender.put(5).unwrap();
        drop(sender);
        assert!(inbox.take(&mut orders, LONG), "what was put in is taken");
        assert_eq!(orders, [0, 1, 2, 3, 5]);
        assert!(!inbox.take(&mut orders, LONG), "nobody is left");
    }

    #[test]
    fn who_sleeps_is_woken() {
        let (sender, mut inbox) = queue(3);
        let taker = thread::spawn(move || {
            let mut orders = VecDeque::new();
            while inbox.take(&mut orders, LONG) {}
            orders
        });
        for number in 0..3 {
            while !sender.0.state.lock().asleep {
                thread::yield_now();
            }
            sender.clone().put(number).unwrap();
        }
        drop(sender);
        assert_eq!(taker.join().unwrap(), [0, 1, 2]);
    }

    #[test]
    fn without_a_taker_nothing_is_put_in_and_what_waits_is_dropped() {
        let (sender, inbox) = queue(3);
        let order = Arc::new(());
        sender.put(Arc::clone(&order)).unwrap();
        drop(inbox);
        assert_eq!(Arc::strong_count(&order), 1);
        assert!(matches!(sender.put(order), Err(Refused::Closed)));
    }
}
