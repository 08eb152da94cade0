//! The UDP door: workers. One thread is one shard: its own SO_REUSEPORT sockets, its own outbox with its shard of the
//! log. A worker receives a batch, answers what it can, writes the batch's records in one write and sends the
//! replies; what needs waiting goes to the runtime and comes back over a queue.

mod socket;

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::Mutex;

pub use socket::{BindError, LISTEN};
use socket::{Datagrams, Route};

use crate::audit::{Shard, Transport};
use crate::gate::{Arrival, Fast, Finished, Gate, Job, Outbox, Rulebook};
use crate::metric::Tally;

/// Datagrams per system call.
const BATCH: usize = 64;

/// A worker looks for the stop flag at least this often (ms).
const IDLE_MS: u16 = 500;

/// A reply's way: which of the worker's sockets, and where to.
#[derive(Clone, Copy, Debug)]
struct Way {
    socket: usize,
    route: Route,
}

/// What the slow path gives back to a worker. Bounded by the slots of the slow path.
#[derive(Debug)]
struct Returns {
    queue: Mutex<Vec<(Finished, Way)>>,
    wake: EventFd,
    parked: AtomicBool,
}

impl Returns {
    fn give(&self, finished: Finished, way: Way) {
        self.queue.lock().push((finished, way));
        // Seen before or after the worker parks: it looks at the queue again between the two.
        if self.parked.swap(false, Ordering::SeqCst) {
            let _ = self.wake.write(1);
        }
    }
}

/// One worker, bound and ready to run.
#[derive(Debug)]
pub struct Worker {
    gate: Arc<Gate>,
    sockets: Vec<socket::Bound>,
    outbox: Outbox<Way>,
    returns: Arc<Returns>,
    passed: Arc<AtomicU64>,
    runtime: tokio::runtime::Handle,
    stop: Arc<AtomicBool>,
}

/// The sockets of every worker, bound before any of them runs: one per worker and address.
#[derive(Debug)]
pub struct Bound(Vec<Vec<socket::Bound>>);

/// Binds `workers` sockets to each address.
///
/// # Errors
/// The first address that cannot be bound, and the remedy.
pub fn bind(addresses: &[SocketAddr], workers: usize) -> Result<Bound, BindError> {
    let worker = |_| addresses.iter().map(|address| socket::Bound::new(*address)).collect::<Result<Vec<_>, _>>();
    (0..workers).map(worker).collect::<Result<Vec<_>, _>>().map(Bound)
}

impl Bound {
    /// The addresses bound, as the kernel gave them.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.0.first().into_iter().flatten().map(socket::Bound::local).collect()
    }

    /// Makes a worker of each set of sockets, each with its own shard and tally.
    ///
    /// # Errors
    /// No eventfd (out of file descriptors).
    pub fn workers(
        self,
        gate: &Arc<Gate>,
        runtime: &tokio::runtime::Handle,
        stop: &Arc<AtomicBool>,
        parts: Vec<(Shard, Tally)>,
    ) -> nix::Result<Vec<Worker>> {
        let worker = |(sockets, (shard, tally))| {
            let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
            Ok(Worker {
                gate: Arc::clone(gate),
                sockets,
                outbox: Outbox::new(shard, tally),
                returns: Arc::new(Returns { queue: Mutex::default(), wake, parked: AtomicBool::new(false) }),
                passed: gate.passed.register(),
                runtime: runtime.clone(),
                stop: Arc::clone(stop),
            })
        };
        self.0.into_iter().zip(parts).map(worker).collect()
    }
}

impl Worker {
    /// Serves until the stop flag is set and nothing of this worker is on the slow path.
    pub fn run(self) {
        let sockets = self.sockets.into_iter().map(Datagrams::new).collect();
        let Self { gate, outbox, returns, passed, runtime, stop, .. } = self;
        Serving { gate, sockets, outbox, returns, passed, runtime }.run(&stop);
    }
}

/// A worker on its thread.
struct Serving {
    gate: Arc<Gate>,
    sockets: Vec<Datagrams>,
    outbox: Outbox<Way>,
    returns: Arc<Returns>,
    passed: Arc<AtomicU64>,
    runtime: tokio::runtime::Handle,
}

impl Serving {
    fn run(mut self, stop: &AtomicBool) {
        let mut in_flight: usize = 0;
        loop {
            let stopping = stop.load(Ordering::Relaxed);
            if stopping && in_flight == 0 {
                return;
            }
            let ready = self.wait(stopping);
            let (gate, passed) = (Arc::clone(&self.gate), Arc::clone(&self.passed));
            // Until the replies have left: a swap waits for them before it revokes what they tell.
            let rulebook = gate.use_rulebook(&passed);
            in_flight -= self.take_returns();
            for socket in ready {
                in_flight += self.receive(socket, &rulebook);
            }
        }
    }

    /// Parks until a socket is readable or a reply came back; the sockets that are readable. A worker that stops
    /// listens to its returns alone.
    fn wait(&self, stopping: bool) -> Vec<usize> {
        self.returns.parked.store(true, Ordering::SeqCst);
        let timeout = if self.returns.queue.lock().is_empty() { PollTimeout::from(IDLE_MS) } else { PollTimeout::ZERO };
        let wake = PollFd::new(self.returns.wake.as_fd(), PollFlags::POLLIN);
        let sockets = self.sockets.iter().filter(|_| !stopping);
        let sockets = sockets.map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN));
        let mut polled: Vec<PollFd<'_>> = std::iter::once(wake).chain(sockets).collect();
        let result = poll(&mut polled, timeout);
        self.returns.parked.store(false, Ordering::SeqCst);
        if result.is_err() {
            return Vec::new();
        }
        let mut ready = polled.iter().map(|fd| fd.any().unwrap_or(false));
        if ready.next() == Some(true) {
            let _ = self.returns.wake.read();
        }
        ready.enumerate().filter_map(|(index, any)| any.then_some(index)).collect()
    }

    /// One batch of one socket; how many of it went to the slow path.
    fn receive(&mut self, socket: usize, rulebook: &Rulebook) -> usize {
        let Some(datagrams) = self.sockets.get_mut(socket) else { return 0 };
        if datagrams.receive() == 0 {
            return 0;
        }
        let at = self.gate.clock.now();
        let mut jobs = 0;
        for (packet, route) in datagrams.received() {
            let arrival = Arrival { peer: route.peer, transport: Transport::Udp, at };
            let way = Way { socket, route };
            match self.gate.fast(rulebook, packet, arrival, &mut self.outbox, || way) {
                Fast::Done => {}
                Fast::Slow(job) => {
                    jobs += 1;
                    hand_over(&self.runtime, &self.gate, &self.returns, job, way);
                }
            }
        }
        self.send();
        jobs
    }

    /// Seals and sends what the slow path gave back; how many are done.
    fn take_returns(&mut self) -> usize {
        let mut returned = std::mem::take(&mut *self.returns.queue.lock()).into_iter();
        let mut done = 0;
        while returned.len() > 0 {
            for (finished, way) in returned.by_ref().take(BATCH) {
                match self.gate.finish(finished, &mut self.outbox, || way) {
                    None => done += 1,
                    Some(job) => hand_over(&self.runtime, &self.gate, &self.returns, job, way),
                }
            }
            self.send();
        }
        done
    }

    /// Records the batch, then sends it.
    fn send(&mut self) {
        if self.outbox.is_empty() {
            return;
        }
        // Without a record there is no answer; the outbox has said so.
        let Ok(released) = self.outbox.release() else { return };
        for (index, socket) in self.sockets.iter_mut().enumerate() {
            let replies = released.iter().filter(|(_, way)| way.socket == index);
            socket.send(replies.map(|(bytes, way)| (bytes, way.route)));
        }
    }
}

/// Hands a job to the runtime; it comes back by the queue.
fn hand_over(runtime: &tokio::runtime::Handle, gate: &Arc<Gate>, returns: &Arc<Returns>, job: Job, way: Way) {
    let (gate, returns) = (Arc::clone(gate), Arc::clone(returns));
    runtime.spawn(async move {
        returns.give(gate.slow(job).await, way);
    });
}
