//! The UDP door: workers. One thread is one shard: its own SO_REUSEPORT sockets, its own outbox with its shard of the
//! log, its own source ports to every upstream server. A worker receives a batch, answers what it can, writes the
//! batch's records in one write and sends the replies. What needs waiting becomes a job that is polled on the same
//! thread: the door's sockets, the upstream sockets and the timers are all watched by one runtime of that thread, and a
//! query meets no other but the granter's.

mod jobs;
mod socket;

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::task::{Context, Poll};
use std::time::Duration;

use jobs::Jobs;
pub use socket::{BindError, LISTEN};
use socket::{Datagrams, Route};
use socket2::Socket;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::unconstrained;
use tokio::time::{Instant, Sleep, sleep};

use super::stopped;
use crate::audit::{Shard, Transport};
use crate::gate::{Arrival, Fast, Finished, Gate, Job, Outbox};
use crate::metric::Tally;
use crate::upstream::Ports;

/// Datagrams per system call.
const BATCH: usize = 64;

/// Batches received in a row before the runtime looks for replies of upstreams and for timers.
const IN_A_ROW: usize = 4;

/// Batches received in a row while what waits for the disk takes more: queries that get no record would otherwise be
/// received for as long as they come, and the replies with them wait.
const TOGETHER: u32 = 16;

/// While jobs are under way the runtime is due to wake this soon, which is sooner than any of their timers: it wakes
/// itself, by a system call, for each new timer that is due before all that it knew when it went to sleep.
const BEAT: Duration = Duration::from_millis(100);

/// One worker, bound and ready to run.
#[derive(Debug)]
pub struct Worker {
    gate: Arc<Gate>,
    /// Each with the address it is bound to.
    sockets: Vec<(AsyncFd<Socket>, SocketAddr)>,
    outbox: Outbox<Route>,
    passed: Arc<AtomicU64>,
    // Dropped last: it watches the sockets.
    runtime: Runtime,
}

/// One of a worker's sockets, and the jobs of its queries that are done.
#[derive(Debug)]
struct Door {
    socket: AsyncFd<Socket>,
    datagrams: Datagrams,
    finished: Vec<(Finished, Route)>,
}

/// The sockets of every worker, bound before any of them runs: one per worker and address.
#[derive(Debug)]
pub struct Bound(Vec<Vec<socket::Bound>>);

/// Where queries come in.
#[derive(Debug)]
pub enum Place {
    /// An address to be bound.
    Own(SocketAddr),
    /// One that is bound, and all its sockets.
    Given(SocketAddr, Vec<Socket>),
}

/// Binds `workers` sockets to each address. Of sockets that are given each has a worker at least, and each worker one:
/// where they are fewer than the workers, several wait at the same one, and who wakes first takes what is there.
///
/// # Errors
/// The first address that cannot be bound, and the remedy.
pub fn bind(places: Vec<Place>, workers: usize) -> Result<Bound, BindError> {
    let mut bound: Vec<Vec<socket::Bound>> = (0..workers).map(|_| Vec::new()).collect();
    for place in places {
        match place {
            Place::Own(address) => {
                for sockets in &mut bound {
                    sockets.push(socket::Bound::new(address)?);
                }
            }
            Place::Given(address, given) => {
                let turns = given.len().max(workers);
                for (socket, worker) in given.iter().cycle().zip((0..workers).cycle()).take(turns) {
                    if let Some(sockets) = bound.get_mut(worker) {
                        sockets.push(socket::Bound::given(address, socket)?);
                    }
                }
            }
        }
    }
    Ok(Bound(bound))
}

impl Bound {
    /// The addresses bound, as the kernel gave them.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let mut addresses: Vec<_> = self.0.first().into_iter().flatten().map(|bound| bound.local).collect();
        addresses.dedup();
        addresses
    }

    /// Makes a worker of each set of sockets, each with its own shard and tally.
    ///
    /// # Errors
    /// No runtime (out of file descriptors).
    pub fn workers(self, gate: &Arc<Gate>, parts: Vec<(Shard, Tally)>) -> io::Result<Vec<Worker>> {
        let worker = |(sockets, (shard, tally)): (Vec<socket::Bound>, _)| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let entered = runtime.enter();
            let sockets = sockets.into_iter().map(watch).collect::<io::Result<_>>()?;
            drop(entered);
            let passed = gate.passed.register();
            Ok(Worker { gate: Arc::clone(gate), sockets, outbox: Outbox::new(shard, tally), passed, runtime })
        };
        self.0.into_iter().zip(parts).map(worker).collect()
    }
}

/// Has the runtime that was entered say when there is something to receive.
fn watch(socket::Bound { socket, local }: socket::Bound) -> io::Result<(AsyncFd<Socket>, SocketAddr)> {
    #[expect(
        deprecated,
        reason = "what replaces it is unsafe for types that change their descriptor; this one does not"
    )]
    let socket = AsyncFd::with_interest(socket, Interest::READABLE)?;
    Ok((socket, local))
}

impl Worker {
    /// Serves until `stop`, and then until nothing of this worker is on the slow path. What has come to its sockets and was
    /// not received stays there: where they are given, for the next process.
    pub fn run(self, mut stop: watch::Receiver<bool>) {
        let Self { gate, sockets, outbox, passed, runtime } = self;
        let door = |(socket, local)| Door { socket, datagrams: Datagrams::new(local), finished: Vec::new() };
        let doors = sockets.into_iter().map(door).collect();
        let ports = gate.upstreams.ports();
        let begin = |job, route, door| slow(&gate, &ports, job, route, door);
        let mut serving = Serving { gate: &gate, doors, outbox, passed: &passed, jobs: Jobs::new(), begin };
        // A worker's jobs share its thread's one task: tokio's budget for a task would hold back the last of a batch.
        runtime.block_on(unconstrained(async {
            let mut beat = pin!(sleep(BEAT));
            tokio::select! {
                biased;
                () = stopped(&mut stop) => {}
                () = poll_fn(|context| {
                    serving.beat(beat.as_mut(), context);
                    serving.serve(context)
                }) => {}
            }
            tokio::select! {
                biased;
                () = poll_fn(|context| serving.drain(context)) => return,
                () = gate.hurry.raised() => {}
            }
            serving.jobs.wake_all();
            poll_fn(|context| serving.drain(context)).await;
        }));
    }
}

/// A job, with the way of its reply.
async fn slow(gate: &Gate, ports: &Ports, job: Job, route: Route, door: usize) -> (Finished, Route, usize) {
    (gate.slow(job, ports).await, route, door)
}

/// A worker on its thread.
struct Serving<'a, F, B> {
    gate: &'a Gate,
    doors: Vec<Door>,
    outbox: Outbox<Route>,
    passed: &'a AtomicU64,
    jobs: Jobs<F>,
    /// Makes the future of a job that came by the door of this index.
    begin: B,
}

impl<F, B> Serving<'_, F, B>
where
    F: Future<Output = (Finished, Route, usize)>,
    B: Fn(Job, Route, usize) -> F,
{
    /// See [`BEAT`].
    fn beat(&self, mut beat: Pin<&mut Sleep>, context: &mut Context<'_>) {
        while !self.jobs.is_empty() && beat.as_mut().poll(context).is_ready() {
            beat.as_mut().reset(Instant::now() + BEAT);
        }
    }

    /// Answers what is there. Never ends.
    fn serve(&mut self, context: &mut Context<'_>) -> Poll<()> {
        for _ in 0..IN_A_ROW {
            self.poll_jobs();
            let mut any = false;
            for door in 0..self.doors.len() {
                any |= self.turn(door, Some(context));
            }
            if !any {
                self.jobs.sleep(context);
                return Poll::Pending;
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// Answers what has been begun, and receives nothing more.
    fn drain(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.poll_jobs();
        for door in 0..self.doors.len() {
            while self.turn(door, None) {}
        }
        if self.jobs.is_empty() {
            return Poll::Ready(());
        }
        self.jobs.sleep(context);
        Poll::Pending
    }

    /// Goes on with the jobs that were woken; those that are done wait at their doors.
    fn poll_jobs(&mut self) {
        let doors = &mut self.doors;
        self.jobs.poll(|(finished, route, door)| {
            if let Some(door) = doors.get_mut(door) {
                door.finished.push((finished, route));
            }
        });
    }

    /// One door's batch: what the slow path finished, and what is received where `receive` is given (it is woken when
    /// there is more). False where there was nothing.
    fn turn(&mut self, index: usize, mut receive: Option<&mut Context<'_>>) -> bool {
        let Self { gate, doors, outbox, passed, jobs, begin } = self;
        let Some(Door { socket, datagrams, finished }) = doors.get_mut(index) else { return false };
        let mut receive = |datagrams: &mut Datagrams| {
            receive.as_deref_mut().map_or(0, |context| receive_batch(socket, datagrams, context))
        };
        let mut received = receive(datagrams);
        if received == 0 && finished.is_empty() {
            return false;
        }
        // Until the replies have left: a swap waits for them before it revokes what they tell.
        let rulebook = gate.use_rulebook(passed);
        // The oldest first: an answer lives no longer than it was granted.
        for (finished, route) in finished.drain(..finished.len().min(BATCH)) {
            if let Some(job) = gate.finish(finished, outbox, || route) {
                jobs.start(begin(job, route, index));
            }
        }
        let mut rounds = TOGETHER;
        while received > 0 {
            let at = gate.clock.now();
            for (packet, route) in datagrams.received() {
                let arrival = Arrival::new(route.peer, Transport::Udp, at);
                if let Fast::Slow(job) = gate.fast(&rulebook, packet, arrival, outbox, || route) {
                    jobs.start(begin(job, route, index));
                }
            }
            rounds -= 1;
            received = if rounds > 0 && outbox.takes_more() { receive(datagrams) } else { 0 };
        }
        // Without a record there is no answer; the outbox has said so.
        if !outbox.is_empty()
            && let Ok(released) = outbox.release()
        {
            datagrams.send(socket.get_ref(), released.iter().map(|(bytes, route)| (bytes, *route)));
        }
        true
    }
}

/// Receives a batch; how much it was. Where that was not all that fits, there is no more, and what comes next wakes.
fn receive_batch(socket: &AsyncFd<Socket>, datagrams: &mut Datagrams, context: &mut Context<'_>) -> usize {
    loop {
        // An error: the runtime has ended.
        let Poll::Ready(Ok(mut ready)) = socket.poll_read_ready(context) else { return 0 };
        let received = datagrams.receive(socket.get_ref());
        if received < BATCH {
            ready.clear_ready();
        }
        if received > 0 {
            return received;
        }
    }
}
