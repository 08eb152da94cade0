//! DNS over HTTPS (RFC 8484): HTTP/2 and HTTP/1.1 over the same TLS, each request one message for the same gate.
//!
//! Seats, idle time and the length of messages are those of the other streams. What HTTP adds is bounded here: streams
//! of a connection, windows, heads, and how long a body may take.

mod exchange;

use std::error::Error as _;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Body, Bytes, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};

pub(super) use self::exchange::Refusal;
use super::stopped;
use super::tcp::{Caller, Ending, Frames, Limits, Round, StreamGate};
use super::tls::Encrypted;

/// Requests of one connection at a time. RFC 9113 §6.5.2: "It is recommended that this value be no smaller than 100".
pub(super) const STREAMS: u32 = 100;
/// The largest head of a request, in octets: the longest message in base64url fits.
pub(super) const HEAD: u32 = 8 * 1024;
/// What a client may send of one body, and of all bodies of a connection, before they are read.
const WINDOWS: [u32; 2] = [8 * 1024, 64 * 1024];
/// What waits to be sent of one response: the largest message.
const SEND: usize = 64 * 1024;

/// Serves one connection to its end; then every query that it brought is recorded.
pub(super) async fn run<G: StreamGate>(
    stream: Encrypted,
    caller: &Caller,
    gate: &Arc<G>,
    limits: &Limits,
    stop: watch::Receiver<bool>,
) -> Ending {
    let (working, mut all_done) = mpsc::channel(1);
    let use_ = Arc::new(Mutex::new(Use { requests: 0, since: Instant::now() }));
    let service = {
        let (gate, caller, limits, use_) = (Arc::clone(gate), caller.clone(), *limits, Arc::clone(&use_));
        service_fn(move |request| {
            let (gate, caller) = (Arc::clone(&gate), caller.clone());
            let client = Client::new(gate, caller, limits, working.clone());
            let busy = Busy::new(&use_);
            async move {
                let response = client.serve(request).await;
                drop(busy);
                Ok::<_, std::convert::Infallible>(response)
            }
        })
    };
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let stream = TokioIo::new(stream);
    let ending = if is_http2 {
        let [of_stream, of_connection] = WINDOWS;
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2.timer(TokioTimer::new()).max_concurrent_streams(STREAMS).max_header_list_size(HEAD);
        http2.initial_stream_window_size(of_stream).initial_connection_window_size(of_connection);
        http2.max_send_buf_size(SEND);
        drive(http2.serve_connection(stream, service), &use_, limits, stop).await
    } else {
        let mut http1 = http1::Builder::new();
        http1.timer(TokioTimer::new()).header_read_timeout(limits.idle).max_buf_size(2 * HEAD as usize);
        drive(http1.serve_connection(stream, service), &use_, limits, stop).await
    };
    // Queries go on though their connection has ended; what they hold must be gone before the door is.
    let _: Option<()> = all_done.recv().await;
    ending
}

/// A connection of either version.
trait Connection: Future<Output = hyper::Result<()>> {
    /// Takes no more requests, and ends with the last one.
    fn wind_up(self: Pin<&mut Self>);
}

impl<S> Connection for http1::Connection<TokioIo<Encrypted>, S>
where
    S: hyper::service::HttpService<Incoming, ResBody = Full<Bytes>>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn wind_up(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<S> Connection for http2::Connection<TokioIo<Encrypted>, S, TokioExecutor>
where
    S: hyper::service::HttpService<Incoming, ResBody = Full<Bytes>>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    S::Future: Send + 'static,
{
    fn wind_up(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

/// Drives a connection until it ends, is idle or the node stops.
async fn drive(
    connection: impl Connection,
    use_: &Mutex<Use>,
    limits: &Limits,
    mut stop: watch::Receiver<bool>,
) -> Ending {
    let mut connection = pin!(connection);
    let ending = tokio::select! {
        ended = connection.as_mut() => return ended.map_or_else(|error| ending_of(&error), |()| Ending::Peer),
        () = stopped(&mut stop) => Ending::Stopped,
        () = idle(use_, limits.idle) => Ending::Idle,
    };
    connection.as_mut().wind_up();
    // A query's deadline is shorter.
    let _ = timeout(limits.send, connection).await;
    ending
}

/// Why hyper gave up.
fn ending_of(error: &hyper::Error) -> Ending {
    let io = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    if error.is_timeout() {
        Ending::Idle
    } else if io.is_some_and(|error| error.kind() == io::ErrorKind::UnexpectedEof) {
        // Closed without a farewell, as many clients do.
        Ending::Peer
    } else {
        Ending::Broken
    }
}

/// How a connection is used.
struct Use {
    /// Requests in progress.
    requests: usize,
    /// When one last began or ended.
    since: Instant,
}

/// A request in progress, counted until it is dropped.
struct Busy(Arc<Mutex<Use>>);

impl Busy {
    fn new(use_: &Arc<Mutex<Use>>) -> Self {
        use_.lock().requests += 1;
        Self(Arc::clone(use_))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut use_ = self.0.lock();
        use_.requests -= 1;
        use_.since = Instant::now();
    }
}

/// Waits until nothing was asked for so long.
async fn idle(use_: &Mutex<Use>, patience: Duration) {
    loop {
        let now = Instant::now();
        let due = {
            let use_ = use_.lock();
            if use_.requests == 0 { use_.since + patience } else { now + patience }
        };
        if due <= now {
            return;
        }
        sleep_until(due).await;
    }
}

/// Who sent a request, over whichever version, and what it takes to answer.
pub(super) struct Client<G> {
    gate: Arc<G>,
    caller: Caller,
    limits: Limits,
    /// Held as long as a query is worked on.
    _working: mpsc::Sender<()>,
}

impl<G> Clone for Client<G> {
    fn clone(&self) -> Self {
        let Self { gate, caller, limits, _working } = self;
        Self { gate: Arc::clone(gate), caller: caller.clone(), limits: *limits, _working: _working.clone() }
    }
}

impl<G: StreamGate> Client<G> {
    /// One request's; what `working` sends to has no sender any more once all queries are recorded.
    pub(super) const fn new(gate: Arc<G>, caller: Caller, limits: Limits, working: mpsc::Sender<()>) -> Self {
        Self { gate, caller, limits, _working: working }
    }

    /// Answers its request, whatever is asked.
    pub(super) async fn serve<B>(self, request: Request<B>) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>,
    {
        let message = exchange::message(request, self.limits.message, self.limits.receive).await;
        let reply = match message {
            Ok(message) => self.ask(&message).await,
            Err(refusal) => Err(refusal),
        };
        reply.map_or_else(Refusal::response, exchange::answer)
    }

    /// The reply to one message; its query is recorded whatever becomes of this future.
    pub(super) async fn ask(self, message: &[u8]) -> Result<Vec<u8>, Refusal> {
        let mut round = Round::new(1);
        self.gate.answer(&mut Frames::of(message), &self.caller, &mut round);
        if let Some(job) = round.take_job() {
            // A client that takes its request back takes nothing from its query's record.
            let waiting = tokio::spawn(self.wait(job, round));
            round = waiting.await.map_err(|_| Refusal::Unrecorded)?;
        }
        match round.take_reply() {
            Some(reply) => Ok(reply),
            None if round.is_unrecorded() => Err(Refusal::Unrecorded),
            None => Err(Refusal::NoMessage),
        }
    }

    async fn wait(self, job: G::Job, mut round: Round<G::Job>) -> Round<G::Job> {
        let mut next = Some(job);
        while let Some(job) = next {
            let finished = self.gate.wait(job).await;
            self.gate.finish(vec![finished], &mut round);
            next = round.take_job();
        }
        round
    }
}
