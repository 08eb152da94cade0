//! A connection to one server: opened when it is needed, kept while it is, replaced where it ends under a query.
//!
//! What travels on it is [`super::tcp`]'s and [`super::https`]'s.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::rustls::{Error, RootCertStore};

use super::endpoint::{ServerSettings, Transport};
use super::failure::{Failure, Nonsense, TlsFault};
use super::query::{Match, Query, is_truncated};
use super::tls::Tls;
use super::{https, tcp};

/// Writing, or a reply to anything awaited take at most this long: any caller's deadline is over by then, and a
/// connection that the network forgot must not swallow the queries after it.
pub(super) const STALLED: Duration = Duration::from_secs(2);
/// Connecting with its handshake takes at most this long: less than a query's deadline of 1.9 s, so that it is told
/// which of the two a server failed at, and long enough for one packet to be lost.
const OPENING: Duration = Duration::from_millis(1_500);
/// A connection on which nothing is awaited is closed after this. RFC 7766 §6.2.3 asks clients to keep none needlessly.
const IDLE: Duration = Duration::from_secs(10);
/// The same where it cost a handshake.
const IDLE_ENCRYPTED: Duration = Duration::from_secs(30);
/// Queries waiting to be written.
const QUEUED: usize = 256;
/// The most queries awaiting a reply on one connection.
pub(super) const PENDING: usize = 8_192;

pub(super) type Reply = oneshot::Sender<Result<Vec<u8>, Failure>>;

/// One query for the connection's task.
pub(super) struct Job {
    /// The message; its id is set by the task.
    pub(super) message: Vec<u8>,
    pub(super) reply: Reply,
}

/// How one server is connected to, and how often it was: the same for every runtime.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) address: SocketAddr,
    carrier: Carrier,
    pub(super) connections: AtomicU64,
    pub(super) handshakes: AtomicU64,
    pub(super) handshake_failures: AtomicU64,
}

#[derive(Debug)]
enum Carrier {
    Tcp,
    Tls(Tls),
    Https(Tls, https::Target),
}

impl Link {
    /// # Errors
    /// None of the `authorities` can be trusted.
    pub(super) fn new(settings: &ServerSettings, authorities: &Arc<RootCertStore>) -> Result<Self, Error> {
        let address = settings.address;
        let carrier = match &settings.transport {
            // For what does not fit a datagram.
            Transport::Udp | Transport::Tcp => Carrier::Tcp,
            Transport::Tls(proof) => Carrier::Tls(Tls::new(proof, b"dot", address.ip(), authorities)?),
            Transport::Https(proof, path) => {
                let tls = Tls::new(proof, b"h2", address.ip(), authorities)?;
                let name = proof.name.as_ref().map_or_else(|| address.ip().to_string(), |name| name.to_str().into());
                Carrier::Https(tls, https::Target::new(&name, address.port(), path))
            }
        };
        let [connections, handshakes, handshake_failures] = [const { AtomicU64::new(0) }; 3];
        Ok(Self { address, carrier, connections, handshakes, handshake_failures })
    }

    /// Whether nobody on the way can read or alter what travels.
    pub(super) const fn is_encrypted(&self) -> bool {
        !matches!(self.carrier, Carrier::Tcp)
    }

    /// Connects, and serves jobs until the connection ends, is idle or nobody can hand it another.
    async fn serve(&self, jobs: &mut mpsc::Receiver<Job>) -> Result<(), Failure> {
        let by = Instant::now() + OPENING;
        let stream = timeout_at(by, TcpStream::connect(self.address)).await.map_err(|_| io::ErrorKind::TimedOut);
        let stream = stream.map_err(Failure::Network)??;
        stream.set_nodelay(true)?;
        self.connections.fetch_add(1, Ordering::Relaxed);
        match &self.carrier {
            Carrier::Tcp => tcp::serve(stream, jobs, IDLE).await,
            Carrier::Tls(tls) => tcp::serve(self.encrypt(tls, stream, by).await?, jobs, IDLE_ENCRYPTED).await,
            Carrier::Https(tls, target) => {
                https::serve(self.encrypt(tls, stream, by).await?, target, jobs, IDLE_ENCRYPTED).await
            }
        }
    }

    async fn encrypt(&self, tls: &Tls, stream: TcpStream, by: Instant) -> Result<tcp::Encrypted, Failure> {
        let made = timeout_at(by, tls.handshake(stream)).await.unwrap_or(Err(Failure::Tls(TlsFault::Slow)));
        let counter = if made.is_ok() { &self.handshakes } else { &self.handshake_failures };
        counter.fetch_add(1, Ordering::Relaxed);
        made
    }
}

/// The connection of one runtime to one server.
#[derive(Debug)]
pub(super) struct Connection {
    link: Arc<Link>,
    task: Mutex<Option<mpsc::Sender<Job>>>,
}

impl Connection {
    pub(super) const fn new(link: Arc<Link>) -> Self {
        Self { link, task: Mutex::new(None) }
    }

    /// The reply to `query`. RFC 7766 §6.2.4: "If a client receives a FIN [...] it should retry": a connection that
    /// was there before and ends under the query is replaced once.
    ///
    /// # Errors
    /// [`Failure::Timeout`] at the deadline, [`Failure::Network`], [`Failure::Tls`], [`Failure::Http`], or
    /// [`Failure::Nonsense`] for a reply to something else.
    pub(super) async fn ask(&self, query: Query, deadline: Instant) -> Result<Vec<u8>, Failure> {
        let query = if self.link.is_encrypted() { query.padded() } else { query };
        let exchange = async {
            let (task, fresh) = self.task();
            match hand_over(&task, query.clone().into_bytes()).await {
                Err(Failure::Network(_)) if !fresh => hand_over(&self.replace(&task), query.clone().into_bytes()).await,
                other => other,
            }
        };
        let reply = timeout_at(deadline, exchange).await.map_err(|_| Failure::Timeout)??;
        // Letter case is a defence against guessing, and not every server keeps it; here the id's place on our own
        // connection is enough.
        if query.matches_but_id(&reply) == Match::Mismatch {
            return Err(Failure::Nonsense(Nonsense::Question));
        }
        if is_truncated(&reply) {
            return Err(Failure::Nonsense(Nonsense::Truncated));
        }
        Ok(reply)
    }

    /// Whether the one that was last opened has ended.
    #[cfg(test)]
    pub(super) fn is_closed(&self) -> bool {
        self.task.lock().as_ref().is_none_or(mpsc::Sender::is_closed)
    }

    /// The connection's task, and whether it was started just now.
    fn task(&self) -> (mpsc::Sender<Job>, bool) {
        let mut task = self.task.lock();
        match &*task {
            Some(running) if !running.is_closed() => (running.clone(), false),
            _ => (task.insert(start(&self.link)).clone(), true),
        }
    }

    /// A connection other than `failed`.
    fn replace(&self, failed: &mpsc::Sender<Job>) -> mpsc::Sender<Job> {
        let mut task = self.task.lock();
        match &*task {
            Some(running) if !running.is_closed() && !running.same_channel(failed) => running.clone(),
            _ => task.insert(start(&self.link)).clone(),
        }
    }
}

async fn hand_over(task: &mpsc::Sender<Job>, message: Vec<u8>) -> Result<Vec<u8>, Failure> {
    let (reply, replied) = oneshot::channel();
    let gone = |_| Failure::Network(io::ErrorKind::ConnectionAborted);
    task.send(Job { message, reply }).await.map_err(|_| gone(()))?;
    replied.await.map_err(|_| gone(()))?
}

/// Starts a task that connects, and ends when the connection does, when it is idle or when nobody holds its sender.
fn start(link: &Arc<Link>) -> mpsc::Sender<Job> {
    let (sender, mut jobs) = mpsc::channel(QUEUED);
    let link = Arc::clone(link);
    tokio::spawn(async move {
        let Err(failure) = link.serve(&mut jobs).await else { return };
        jobs.close();
        while let Ok(job) = jobs.try_recv() {
            let _gone = job.reply.send(Err(failure.clone()));
        }
    });
    sender
}
