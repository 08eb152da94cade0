//! What a worker waits for: futures polled on its own thread, in places that are used again, so that a job of the slow
//! path allocates nothing and waking it costs a push.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use parking_lot::Mutex;

/// Futures of one kind. As many places as there ever were jobs at once are kept; the slots of the slow path bound them.
pub(super) struct Jobs<F> {
    places: Vec<Place<F>>,
    free: Vec<usize>,
    woken: Arc<Mutex<Woken>>,
    /// Taken from `woken`, to be polled; kept for its memory.
    turn: Vec<usize>,
}

struct Place<F> {
    future: Pin<Box<Option<F>>>,
    bell: Arc<Bell>,
    waker: Waker,
}

/// The places to be polled, and who sleeps until there is one.
#[derive(Default)]
struct Woken {
    places: Vec<usize>,
    sleeper: Option<Waker>,
}

/// A place's waker.
struct Bell {
    place: usize,
    /// It is among the woken already.
    rung: AtomicBool,
    woken: Arc<Mutex<Woken>>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.rung.swap(true, Ordering::AcqRel) {
            return;
        }
        let sleeper = {
            let mut woken = self.woken.lock();
            woken.places.push(self.place);
            woken.sleeper.take()
        };
        if let Some(sleeper) = sleeper {
            sleeper.wake();
        }
    }
}

impl<F: Future> Jobs<F> {
    pub(super) fn new() -> Self {
        Self { places: Vec::new(), free: Vec::new(), woken: Arc::default(), turn: Vec::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.places.len() == self.free.len()
    }

    /// Takes a job on; the next [`Jobs::poll`] begins it.
    pub(super) fn start(&mut self, future: F) {
        let index = self.free.pop().unwrap_or_else(|| {
            let bell = Arc::new(Bell {
                place: self.places.len(),
                rung: AtomicBool::new(false),
                woken: Arc::clone(&self.woken),
            });
            self.places.push(Place { future: Box::pin(None), waker: Waker::from(Arc::clone(&bell)), bell });
            self.places.len() - 1
        });
        if let Some(place) = self.places.get_mut(index) {
            place.future.set(Some(future));
            Wake::wake_by_ref(&place.bell);
        }
    }

    /// Polls each job that was woken, once; `done` is given what those that end return.
    pub(super) fn poll(&mut self, mut done: impl FnMut(F::Output)) {
        std::mem::swap(&mut self.turn, &mut self.woken.lock().places);
        for index in self.turn.drain(..) {
            let Some(place) = self.places.get_mut(index) else { continue };
            // Whoever rings from here on has the job polled once more; what whoever rang before has written is seen.
            place.bell.rung.swap(false, Ordering::AcqRel);
            // Nobody there: somebody still held the waker of the job before.
            let Some(future) = place.future.as_mut().as_pin_mut() else { continue };
            if let Poll::Ready(output) = future.poll(&mut Context::from_waker(&place.waker)) {
                place.future.set(None);
                self.free.push(index);
                done(output);
            }
        }
    }

    /// Wakes every job.
    pub(super) fn wake_all(&self) {
        self.places.iter().for_each(|place| Wake::wake_by_ref(&place.bell));
    }

    /// Sees to it that `context` is woken when a job is: at once where one is woken already.
    pub(super) fn sleep(&self, context: &Context<'_>) {
        let mut woken = self.woken.lock();
        if woken.places.is_empty() {
            woken.sleeper = Some(context.waker().clone());
        } else {
            context.waker().wake_by_ref();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use tokio::sync::oneshot;

    /// Counts how often it is woken.
    #[derive(Default)]
    struct Count(Mutex<usize>);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            *self.0.lock() += 1;
        }
    }

    fn sleep<F: Future>(jobs: &Jobs<F>, count: &Arc<Count>) -> usize {
        jobs.sleep(&Context::from_waker(&Waker::from(Arc::clone(count))));
        *count.0.lock()
    }

    fn poll<T>(jobs: &mut Jobs<impl Future<Output = T>>) -> Vec<T> {
        let mut ended = Vec::new();
        jobs.poll(|output| ended.push(output));
        ended
    }

    #[test]
    fn a_sleeper_is_woken_once_however_many_jobs_are() {
        let (mut jobs, count) = (Jobs::new(), Arc::new(Count::default()));
        let mut senders = Vec::new();
        for _ in 0..10 {
            let (sender, receiver) = oneshot::channel::<usize>();
            senders.push(sender);
            jobs.start(async move { receiver.await.unwrap() });
        }
        assert_eq!(sleep(&jobs, &count), 1, "jobs that were not begun wait for no waker");
        assert!(poll(&mut jobs).is_empty());
        assert_eq!(sleep(&jobs, &count), 1);
        for (number, sender) in senders.drain(..9).enumerate() {
            sender.send(number).unwrap();
        }
        assert_eq!(*count.0.lock(), 2);
        assert_eq!(poll(&mut jobs).into_iter().collect::<HashSet<_>>(), (0..9).collect());
        assert!(!jobs.is_empty());
        assert_eq!(sleep(&jobs, &count), 2);
        senders.pop().unwrap().send(9).unwrap();
        assert_eq!((*count.0.lock(), poll(&mut jobs)), (3, vec![9]));
        assert!(jobs.is_empty());
    }

    #[test]
    fn a_place_is_used_again_and_a_waker_of_before_does_no_harm() {
        let mut jobs = Jobs::new();
        let wakers = Arc::new(Mutex::new(Vec::new()));
        let mut ended = Vec::new();
        let wake_all = || wakers.lock().iter().for_each(Waker::wake_by_ref);
        for number in 0..3 {
            let (wakers, mut polls) = (Arc::clone(&wakers), 0);
            jobs.start(std::future::poll_fn(move |context: &mut Context<'_>| {
                wakers.lock().push(context.waker().clone());
                polls += 1;
                if polls < 2 { Poll::Pending } else { Poll::Ready(number) }
            }));
            assert!(poll(&mut jobs).is_empty());
            wake_all();
            ended.extend(poll(&mut jobs));
            wake_all();
            assert!(poll(&mut jobs).is_empty());
        }
        assert_eq!((ended, jobs.places.len(), jobs.is_empty()), (vec![0, 1, 2], 1, true));
    }

    #[test]
    fn a_job_that_wakes_itself_is_polled_once_a_turn() {
        let mut jobs = Jobs::new();
        let mut polls = 0;
        jobs.start(std::future::poll_fn(move |context: &mut Context<'_>| {
            polls += 1;
            context.waker().wake_by_ref();
            if polls < 3 { Poll::Pending } else { Poll::Ready(polls) }
        }));
        assert_eq!([poll(&mut jobs), poll(&mut jobs), poll(&mut jobs)], [Vec::new(), Vec::new(), vec![3]]);
    }
}
