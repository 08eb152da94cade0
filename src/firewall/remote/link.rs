//! Link: one connection to an enforcer, made anew when it ends, with a thread of its own.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc as replies;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::io::split;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Notify, mpsc};
use tokio::time::{interval, sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use super::fleet::{BEAT, FENCE, Fleet};
use super::message::{Beat, Became, Hello, Order, Report, Stream, VERSION, What, read, write};
use crate::time::{Clock, Tick};

/// How long a connection may take to be made, its first words included.
const CONNECT: Duration = Duration::from_secs(2);
/// How long it is left alone between two trials: a gateway that restarts is there again at once.
const REST: Duration = Duration::from_millis(250);
/// After so long without a word the connection ends. Less than the difference of FENCED and FENCE: an enforcer whose words do
/// not come here fences in time, though ours come there until then.
const SILENT: Duration = Duration::from_millis(1500);
/// Orders that may wait to be written.
const QUEUE: usize = 4096;

/// Where an enforcer is.
pub(super) enum Way {
    /// On another machine.
    Tls { host: String, port: u16, tls: Arc<ClientConfig> },
    /// On this one, behind a socket that says by its mode who may drive it.
    Socket(PathBuf),
}

/// To whom, and how.
pub(super) struct Terms {
    pub(super) name: String,
    pub(super) way: Way,
    pub(super) fleet: Arc<Fleet>,
    pub(super) place: usize,
    pub(super) clock: Clock,
}

/// An order and where its reports go.
struct Asked {
    what: What,
    reply: replies::Sender<Became>,
}

/// The handle; the thread ends with the last of them.
#[derive(Clone)]
pub(super) struct Link {
    orders: mpsc::Sender<Asked>,
    state: Arc<State>,
}

/// What both sides of the handle know.
#[derive(Debug, Default)]
struct State {
    /// The number of the connection that stands; 0: none.
    connection: AtomicU64,
    /// The enforcer has all that we want open.
    caught_up: AtomicBool,
    /// Elements and capacity.
    load: [AtomicU64; 2],
    /// The connection is to be made anew.
    reset: Notify,
    /// Why there is none, once the first was tried.
    why: Mutex<Option<String>>,
    tried: Condvar,
}

impl Link {
    /// Begins to connect.
    pub(super) fn start(terms: Terms) -> std::io::Result<Self> {
        let (orders, asked) = mpsc::channel(QUEUE);
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let run = move || runtime.block_on(run(&terms, &shared, asked));
        std::thread::Builder::new().name("gateway".into()).spawn(run)?;
        Ok(Self { orders, state })
    }

    /// The connection that stands.
    pub(super) fn connection(&self) -> Option<u64> {
        Some(self.state.connection.load(Ordering::Acquire)).filter(|number| *number > 0)
    }

    /// Why there is none.
    pub(super) fn why(&self) -> String {
        self.state.why.lock().clone().unwrap_or_else(|| "it is being connected to".into())
    }

    /// Waits until it was tried for the first time.
    pub(super) fn await_first(&self, patience: Duration) {
        let mut why = self.state.why.lock();
        if self.connection().is_none() && why.is_none() {
            self.state.tried.wait_for(&mut why, patience);
        }
    }

    /// Says from now on that the enforcer has, or lacks, what we want open.
    pub(super) fn caught_up(&self, caught_up: bool) {
        self.state.caught_up.store(caught_up, Ordering::Release);
    }

    /// Ends the connection: what was asked over it is not known to be done, and nothing should wait for it again.
    pub(super) fn reset(&self) {
        self.state.connection.store(0, Ordering::Release);
        *self.state.why.lock() = Some("it did not answer in time".into());
        self.state.reset.notify_waiters();
    }

    /// Elements and capacity, as last told.
    pub(super) fn load(&self) -> [u64; 2] {
        [0, 1].map(|at| self.state.load.get(at).map_or(0, |count: &AtomicU64| count.load(Ordering::Relaxed)))
    }

    /// Gives an order; its reports come by the receiver, which ends with the connection.
    pub(super) fn order(&self, what: What) -> replies::Receiver<Became> {
        let (reply, reports) = replies::channel();
        // One that cannot be queued is as one whose connection ended.
        drop(self.orders.try_send(Asked { what, reply }));
        reports
    }
}

/// Connects again and again, until the handle is gone.
async fn run(terms: &Terms, state: &State, mut asked: mpsc::Receiver<Asked>) {
    let mut number = 0;
    let mut told = String::new();
    while !asked.is_closed() {
        number += 1;
        let ended = match timeout(CONNECT, connect(terms)).await {
            Ok(Ok(stream)) => {
                tracing::info!(firewall = %terms.name, "connected to the enforcer");
                // What was asked of another connection is nothing that this one should do.
                while asked.try_recv().is_ok() {}
                state.caught_up.store(false, Ordering::Release);
                state.connection.store(number, Ordering::Release);
                state.tried.notify_all();
                let ended = serve(stream, terms, state, &mut asked).await;
                state.connection.store(0, Ordering::Release);
                told.clear();
                ended
            }
            Ok(Err(why)) => why,
            Err(_) => "it does not answer".into(),
        };
        if ended != told && !asked.is_closed() {
            tracing::warn!(firewall = %terms.name, why = %ended, "the enforcer cannot be reached");
        }
        told.clone_from(&ended);
        *state.why.lock() = Some(ended);
        state.tried.notify_all();
        sleep(REST).await;
    }
}

async fn connect(terms: &Terms) -> Result<Box<dyn Stream>, String> {
    let mut stream: Box<dyn Stream> = match &terms.way {
        Way::Tls { host, port, tls } => {
            let name = ServerName::try_from(host.clone())
                .map_err(|_| format!("{host} is no name that a certificate could have"))?;
            Box::new(dial((host, *port), name, Arc::clone(tls)).await?)
        }
        Way::Socket(path) => {
            let connected = UnixStream::connect(path).await;
            Box::new(connected.map_err(|error| format!("{}: {error}", path.display()))?)
        }
    };
    let hello = Order { number: 0, what: Some(What::Hello(Hello { version: VERSION })) };
    write(&mut stream, &hello).await.map_err(|error| error.to_string())?;
    let report: Report = read(&mut stream).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => "it closed the connection".to_owned(),
        _ => error.to_string(),
    })?;
    match report.became {
        Some(Became::Standing(standing)) => {
            terms.fleet.heard(terms.place, standing, terms.clock.tick());
            Ok(stream)
        }
        Some(Became::Refused(why)) => Err(format!("it refused: {why}")),
        _ => Err("it does not speak as an enforcer".into()),
    }
}

/// Connects and makes the handshake; `name` is the one that the certificate there has to have.
///
/// # Errors
/// Why not, as a clause.
pub async fn dial(
    to: (&str, u16),
    name: ServerName<'static>,
    tls: Arc<ClientConfig>,
) -> Result<TlsStream<TcpStream>, String> {
    let tcp = TcpStream::connect(to).await.map_err(|error| error.to_string())?;
    tcp.set_nodelay(true).map_err(|error| error.to_string())?;
    TlsConnector::from(tls).connect(name, tcp).await.map_err(|error| format!("TLS: {error}"))
}

/// Serves one connection to its end; why it ended.
async fn serve(stream: Box<dyn Stream>, terms: &Terms, state: &State, asked: &mut mpsc::Receiver<Asked>) -> String {
    let (mut from, mut to) = split(stream);
    let waiting: Mutex<HashMap<u64, replies::Sender<Became>>> = Mutex::default();
    let heard: Mutex<Tick> = Mutex::new(terms.clock.tick());
    let reader = async {
        loop {
            let report: Report = match read(&mut from).await {
                Ok(report) => report,
                Err(error) => break error.to_string(),
            };
            let Some(became) = report.became else { continue };
            *heard.lock() = terms.clock.tick();
            if let Became::Standing(standing) = became {
                let [elements, capacity] = &state.load;
                elements.store(standing.elements.into(), Ordering::Relaxed);
                capacity.store(standing.capacity.into(), Ordering::Relaxed);
                terms.fleet.heard(terms.place, standing, terms.clock.tick());
                continue;
            }
            let more = matches!(&became, Became::Holds(holds) if holds.more);
            let mut waiting = waiting.lock();
            let reply = if more { waiting.get(&report.number).cloned() } else { waiting.remove(&report.number) };
            if let Some(reply) = reply {
                // Nobody may wait any more.
                drop(reply.send(became));
            }
        }
    };
    let writer = async {
        let mut beats = interval(BEAT);
        let mut number = 0;
        loop {
            number += 1;
            let what = tokio::select! {
                _ = beats.tick() => {
                    let now = terms.clock.tick();
                    let ago = now.since(*heard.lock());
                    if ago >= SILENT {
                        break "it says nothing".to_owned();
                    }
                    let alive = terms.fleet.alive(terms.place, now);
                    let went_without = terms.fleet.went_without(terms.place);
                    let caught_up = state.caught_up.load(Ordering::Acquire);
                    let heard_ago = u64::try_from(ago.as_micros()).unwrap_or(u64::MAX);
                    What::Beat(Beat { caught_up, went_without, heard_ago, alive })
                }
                order = asked.recv() => {
                    let Some(Asked { what, reply }) = order else { break "it is not needed any more".to_owned() };
                    waiting.lock().insert(number, reply);
                    what
                }
            };
            match timeout(FENCE, write(&mut to, &Order { number, what: Some(what) })).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => break error.to_string(),
                Err(_) => break "it takes nothing".to_owned(),
            }
        }
    };
    tokio::select! {
        why = reader => why,
        why = writer => why,
        () = state.reset.notified() => "it did not answer in time".to_owned(),
    }
}
