//! The enforcer's door: mutual TLS, or a socket of this machine; one connection of each resolver.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, split};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};

use super::desk::{Figures, Task};
use super::hearing::Hearing;
use super::holds::Holder;
use crate::firewall::remote::message::{
    Became, CHUNK, Done, Gathering, Hello, LayoutMessage, Order, Report, Standing, Stream, VERSION, What, read, write,
};
use crate::firewall::remote::{FENCE, part_with};
use crate::time::Clock;
use crate::trust::shown_by;

/// How long a connection may take until it is known who it is.
const HELLO: Duration = Duration::from_secs(5);
/// Connections of which it is not known yet: of all addresses, and of one.
const STRANGERS: [usize; 2] = [256, 4];
/// Orders of one connection that may be under way: those of a resolver that opens 2,000,000 elements at once.
const UNDER_WAY: usize = 128;
/// Reports of one connection that may wait: those that list 32,000,000 elements.
const REPORTS: usize = 2048;

/// Where resolvers come in; `L` holds the socket and its file.
pub enum Entrance<L> {
    /// Each shows a certificate with its name; we show the newest of ours.
    Tls(TcpListener, watch::Receiver<Arc<ServerConfig>>),
    /// The only one, of this machine: the mode of the socket says who.
    Socket(L),
}

/// One that came in.
enum Arrival {
    Tls(TcpStream, Arc<ServerConfig>),
    Socket(UnixStream),
}

impl<L: AsRef<UnixListener>> Entrance<L> {
    async fn accept(&self) -> io::Result<(Arrival, Peer)> {
        match self {
            Self::Tls(listener, tls) => {
                let (stream, peer) = listener.accept().await?;
                Ok((Arrival::Tls(stream, Arc::clone(&tls.borrow())), Peer::Address(peer)))
            }
            Self::Socket(listener) => {
                let (stream, _) = listener.as_ref().accept().await?;
                let user = stream.peer_cred()?.uid();
                Ok((Arrival::Socket(stream), Peer::User(user)))
            }
        }
    }
}

/// From where a connection comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Peer {
    Address(SocketAddr),
    User(u32),
}

impl Peer {
    /// All connections of one address, or of one user, are those of one.
    fn origin(self) -> Origin {
        match self {
            Self::Address(address) => Origin::Address(address.ip()),
            Self::User(user) => Origin::User(user),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::User(user) => write!(f, "user {user}"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Origin {
    Address(IpAddr),
    User(u32),
}

/// What was refused at the door, by why.
#[derive(Debug, Default)]
pub struct Refusals {
    /// No TLS, or no certificate that is believed.
    pub tls: AtomicU64,
    /// A certificate of nobody who is configured.
    pub stranger: AtomicU64,
    /// Another version of the protocol.
    pub version: AtomicU64,
    /// What is no frame, no message, or out of turn.
    pub message: AtomicU64,
}

/// See the module.
pub struct Door {
    /// Names and their form in certificates; the place is the [`Holder`].
    pub(super) resolvers: Vec<(String, ServerName<'static>)>,
    pub(super) hearing: Mutex<Hearing>,
    pub(super) tasks: SyncSender<Task>,
    pub(super) figures: Arc<Figures>,
    pub(super) refusals: Refusals,
    /// How many connections of an origin are not known yet.
    pub(super) strangers: Mutex<HashMap<Origin, usize>>,
    /// The connection of each resolver that counts.
    pub(super) connections: Mutex<Vec<Option<Arc<AtomicBool>>>>,
    pub(super) clock: Clock,
}

impl Door {
    /// Serves an entrance until `stop`.
    pub async fn serve<L: AsRef<UnixListener>>(
        self: Arc<Self>,
        entrance: Entrance<L>,
        mut stop: watch::Receiver<bool>,
    ) {
        loop {
            let accepted = tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                accepted = entrance.accept() => accepted,
            };
            let (arrival, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            if !self.seat(peer.origin()) {
                continue;
            }
            let (door, stop) = (Arc::clone(&self), stop.clone());
            tokio::spawn(async move {
                let welcomed = timeout(HELLO, door.welcome(arrival, peer)).await;
                door.unseat(peer.origin());
                if let Ok(Some((who, stream))) = welcomed {
                    door.attend(who, stream, peer, stop).await;
                }
            });
        }
    }

    /// Whether one more connection of an origin may show who it is.
    fn seat(&self, of: Origin) -> bool {
        let mut strangers = self.strangers.lock();
        let [all, one] = STRANGERS;
        let of_it = strangers.get(&of).copied().unwrap_or(0);
        let may = of_it < one && strangers.values().sum::<usize>() < all;
        if may {
            strangers.insert(of, of_it + 1);
        }
        may
    }

    fn unseat(&self, of: Origin) {
        let mut strangers = self.strangers.lock();
        match strangers.get_mut(&of) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(strangers.remove(&of)),
        }
    }

    /// Finds out who it is.
    async fn welcome(&self, arrival: Arrival, peer: Peer) -> Option<(usize, Box<dyn Stream>)> {
        let (who, mut stream): (_, Box<dyn Stream>) = match arrival {
            Arrival::Tls(stream, tls) => {
                // A frame is written whole: to wait for more would be to wait for nothing.
                let _ = stream.set_nodelay(true);
                match TlsAcceptor::from(tls).accept(stream).await {
                    Ok(stream) => {
                        let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
                        (certificate.and_then(|certificate| self.name_of(certificate)), Box::new(stream))
                    }
                    Err(error) => {
                        self.refuse(&self.refusals.tls, peer, &error);
                        return None;
                    }
                }
            }
            Arrival::Socket(stream) => (Some(0), Box::new(stream)),
        };
        let Some(who) = who else {
            let why = "your certificate has the name of no resolver that is configured here";
            self.refuse(&self.refusals.stranger, peer, &why);
            farewell(stream, why).await;
            return None;
        };
        match read::<Order>(&mut stream).await {
            Ok(Order { what: Some(What::Hello(Hello { version: VERSION })), .. }) => {}
            Ok(Order { what: Some(What::Hello(Hello { version })), .. }) => {
                let why = format!("you speak version {version}, this enforcer speaks {VERSION}; upgrade the older one");
                self.refuse(&self.refusals.version, peer, &why);
                farewell(stream, &why).await;
                return None;
            }
            Ok(_) => {
                self.refuse(&self.refusals.message, peer, &"its first message is no hello");
                return None;
            }
            Err(error) => {
                self.refuse(&self.refusals.message, peer, &error);
                return None;
            }
        }
        // Who cannot open anything is no gateway: the resolver goes on without it once it must have fenced.
        if !self.figures.usable.load(Ordering::Acquire) {
            farewell(stream, "the firewall or the state of this gateway cannot be used; its log says why").await;
            return None;
        }
        let standing = Report { number: 0, became: Some(Became::Standing(self.standing(who))) };
        write(&mut stream, &standing).await.ok()?;
        Some((who, stream))
    }

    fn refuse(&self, count: &AtomicU64, peer: Peer, why: &dyn fmt::Display) {
        count.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(%peer, %why, "a connection was refused");
    }

    fn name_of(&self, certificate: &CertificateDer<'_>) -> Option<usize> {
        shown_by(certificate, self.resolvers.iter().map(|(_, name)| name))
    }

    /// Obeys one resolver until its connection ends.
    async fn attend(&self, who: usize, stream: Box<dyn Stream>, peer: Peer, mut stop: watch::Receiver<bool>) {
        let (name, connection) = (self.name(who), Arc::new(AtomicBool::new(true)));
        let before = self.connections.lock().get_mut(who).and_then(|of_it| of_it.replace(Arc::clone(&connection)));
        if let Some(before) = before {
            before.store(false, Ordering::Release);
        }
        tracing::info!(resolver = name, %peer, "a resolver is connected");
        let (from, to) = split(stream);
        let (reply, reports) = mpsc::unbounded_channel();
        let ended = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => Ok(()),
            ended = self.read(who, from, &connection, &reply) => ended,
            ended = send(to, reports) => ended,
        };
        let was_current = connection.swap(false, Ordering::AcqRel);
        if was_current {
            self.hearing.lock().left(who, self.clock.tick());
        }
        match ended {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                self.refuse(&self.refusals.message, peer, &error);
            }
            Err(error) => tracing::info!(resolver = name, %peer, why = %error, "the connection of a resolver ended"),
            Ok(()) => {}
        }
    }

    /// Takes orders. A resolver that was silent for long enough to count as gone has to begin anew: so has one that waited
    /// while this process did not run.
    async fn read(
        &self,
        who: usize,
        mut from: impl AsyncRead + Unpin,
        connection: &Arc<AtomicBool>,
        reply: &mpsc::UnboundedSender<Report>,
    ) -> io::Result<()> {
        let out_of_turn = |why: &str| Err(io::Error::new(io::ErrorKind::InvalidData, why));
        let holder = Holder::try_from(who).unwrap_or(Holder::MAX);
        let places = Arc::new(Semaphore::new(UNDER_WAY));
        let (mut last, mut adopted, mut heard) = (0, false, self.clock.tick());
        let mut gathering = Gathering::default();
        loop {
            let silent = || io::Error::new(io::ErrorKind::TimedOut, "it was silent for 2 s");
            let order: Order = timeout(FENCE, read(&mut from)).await.map_err(|_| silent())??;
            let now = self.clock.tick();
            if now.since(heard) >= FENCE {
                return Err(silent());
            }
            heard = now;
            if !connection.load(Ordering::Acquire) {
                return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the resolver has a newer connection"));
            }
            let Order { number, what: Some(what) } = order else {
                return out_of_turn("an order that this version does not know");
            };
            if number <= last {
                return out_of_turn("an order came twice, or in another order");
            }
            last = number;
            let what = match whole(&mut gathering, what) {
                Ok(what) => what,
                Err(became) => {
                    drop(reply.send(Report { number, became: Some(became) }));
                    continue;
                }
            };
            match what {
                What::Hello(_) => return out_of_turn("a second hello"),
                What::Beat(mut beat) => {
                    if !self.figures.usable.load(Ordering::Acquire) {
                        continue;
                    }
                    beat.caught_up &= adopted;
                    self.hearing.lock().heard(who, beat, now);
                    let became = Some(Became::Standing(self.standing(who)));
                    drop(reply.send(Report { number, became }));
                    continue;
                }
                What::Apply(_) if !adopted => return out_of_turn("changes before a layout"),
                What::Apply(changes) if changes.changes.len() > CHUNK => return out_of_turn("too many changes"),
                What::Cut(cutting) if cutting.cuts.len() > CHUNK => return out_of_turn("too many cuts"),
                what => {
                    adopted |= matches!(what, What::Adopt(_));
                    let place = Arc::clone(&places).try_acquire_owned().ok();
                    if place.is_none() {
                        return Err(io::Error::new(io::ErrorKind::QuotaExceeded, "too many orders wait"));
                    }
                    let (connection, reply) = (Arc::clone(connection), reply.clone());
                    let task = Task { who: holder, number, what, place, connection, reply };
                    if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = self.tasks.try_send(task) {
                        return Err(io::Error::new(io::ErrorKind::QuotaExceeded, "too many orders wait"));
                    }
                }
            }
        }
    }

    fn name(&self, who: usize) -> &str {
        self.resolvers.get(who).map_or("", |(name, _)| name)
    }

    /// Why new flows should not be led through this gateway; `None`: they may.
    #[must_use]
    pub fn waiting(&self) -> Option<String> {
        if !self.figures.usable.load(Ordering::Relaxed) {
            return Some("the firewall or the state directory cannot be used".into());
        }
        self.hearing.lock().is_ready(self.clock.tick()).err()
    }

    /// Every resolver with whether it drives this gateway and how many elements it holds.
    #[must_use]
    pub fn resolvers(&self) -> Vec<(String, bool, u64)> {
        let hearing = self.hearing.lock();
        let driving = hearing.driving(self.clock.tick());
        let held = self.figures.held.iter().map(|held| held.load(Ordering::Relaxed));
        driving.zip(held).map(|((name, drives), held)| (name.to_owned(), drives, held)).collect()
    }

    /// What was refused.
    #[must_use]
    pub const fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// What the firewall's thread says.
    #[must_use]
    pub fn figures(&self) -> &Figures {
        &self.figures
    }

    fn standing(&self, who: usize) -> Standing {
        let waiting = self.waiting().unwrap_or_default();
        let hearing = self.hearing.lock();
        let [elements, capacity] = self.figures.load.each_ref();
        let number = |count: &AtomicU64| u32::try_from(count.load(Ordering::Relaxed)).unwrap_or(u32::MAX);
        Standing {
            waiting,
            known: hearing.names(),
            heard: hearing.all_heard(self.clock.tick()),
            you: self.name(who).to_owned(),
            elements: number(elements),
            capacity: number(capacity),
        }
    }
}

/// Says why it is refused.
async fn farewell(mut stream: Box<dyn Stream>, why: &str) {
    drop(write(&mut stream, &Report { number: 0, became: Some(Became::Refused(why.into())) }).await);
    part_with(stream).await;
}

/// An order as it is obeyed; of a part of a layout, what is reported of it.
fn whole(gathering: &mut Gathering, what: What) -> Result<What, Became> {
    let (part, order): (_, fn(LayoutMessage) -> What) = match what {
        What::Adopt(part) => (part, What::Adopt),
        What::Arrange(part) => (part, What::Arrange),
        what => return Ok(what),
    };
    match gathering.add(part) {
        Ok(Some(layout)) => Ok(order(layout)),
        Ok(None) => Err(Became::Done(Done::default())),
        Err(why) => Err(Became::Refused(why)),
    }
}

async fn send(mut to: impl AsyncWrite + Unpin, mut reports: mpsc::UnboundedReceiver<Report>) -> io::Result<()> {
    while let Some(report) = reports.recv().await {
        let slow = |_| io::Error::new(io::ErrorKind::TimedOut, "it takes nothing");
        timeout(FENCE, write(&mut to, &report)).await.map_err(slow)??;
        if reports.len() > REPORTS {
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, "it does not read what it asks for"));
        }
    }
    Ok(())
}
