//! Where peers connect: what they tell is done here, and answered.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::split;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::message::{Answer, VERSION, Words, read, write};
use super::{Peer, Peers, SILENT};
use crate::app::changes::News;
use crate::app::node::RunningNode;
use crate::firewall::remote::part_with;
use crate::trust::shown_by;

/// How long a connection may take until it is known who it is.
const HELLO: Duration = Duration::from_secs(5);
/// Connections of which it is not known yet.
const STRANGERS: usize = 32;

/// Serves a listener until `stop`; what was begun is finished.
pub(in crate::app) async fn serve(listener: TcpListener, node: Arc<RunningNode>, mut stop: watch::Receiver<bool>) {
    let strangers = Arc::new(Semaphore::new(STRANGERS));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(seat) = Arc::clone(&strangers).try_acquire_owned() else { continue };
        let (node, mut stop) = (Arc::clone(&node), stop.clone());
        connections.spawn(async move {
            let peers = Arc::clone(node.peers());
            let welcomed = tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                welcomed = timeout(HELLO, peers.welcome(stream, from)) => welcomed,
            };
            drop(seat);
            if let Ok(Some((peer, stream))) = welcomed {
                attend(&node, &peer, stream, from, stop).await;
            }
        });
    }
    while connections.join_next().await.is_some() {}
}

impl Peers {
    /// Finds out who it is.
    async fn welcome(&self, stream: TcpStream, from: SocketAddr) -> Option<(Arc<Peer>, TlsStream<TcpStream>)> {
        let refusals = &self.refusals;
        // A frame is written whole: to wait for more would be to wait for nothing.
        let _ = stream.set_nodelay(true);
        let mut stream = match TlsAcceptor::from(self.tls()?.takes).accept(stream).await {
            Ok(stream) => stream,
            Err(error) => {
                refuse(&refusals.tls, from, &error);
                return None;
            }
        };
        let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let names = self.all.iter().map(|peer| &peer.settings.shown);
        let who = certificate.and_then(|certificate| shown_by(certificate, names));
        let Some(peer) = who.and_then(|who| self.all.get(who)) else {
            let why = "your certificate has the name of no peer that is configured here";
            refuse(&refusals.stranger, from, &why);
            farewell(stream, why).await;
            return None;
        };
        match read(&mut stream).await {
            Ok(Words::Hello { version: VERSION }) => {}
            Ok(Words::Hello { version }) => {
                let why = format!("you speak version {version}, this node speaks {VERSION}; upgrade the older one");
                refuse(&refusals.version, from, &why);
                farewell(stream, &why).await;
                return None;
            }
            Ok(_) => {
                refuse(&refusals.message, from, &"its first words are no hello");
                return None;
            }
            Err(error) => {
                refuse(&refusals.message, from, &error);
                return None;
            }
        }
        write(&mut stream, &Answer::Welcome { version: VERSION }).await.ok()?;
        Some((Arc::clone(peer), stream))
    }
}

/// Says why it is refused.
async fn farewell(mut stream: TlsStream<TcpStream>, why: &str) {
    drop(write(&mut stream, &Answer::Refused(why.to_owned())).await);
    part_with(stream).await;
}

fn refuse(count: &AtomicU64, from: SocketAddr, why: &dyn std::fmt::Display) {
    count.fetch_add(1, Ordering::Relaxed);
    tracing::warn!(%from, %why, "what connected as a peer was refused");
}

/// Hears one peer until its connection ends.
async fn attend(
    node: &Arc<RunningNode>,
    peer: &Peer,
    stream: TlsStream<TcpStream>,
    from: SocketAddr,
    mut stop: watch::Receiver<bool>,
) {
    let name = &peer.settings.name;
    tracing::info!(peer = name, %from, "a peer is connected");
    let newer = Arc::new(Notify::new());
    std::mem::replace(&mut *peer.newer.lock(), Arc::clone(&newer)).notify_one();
    let (mut reads, mut writes) = split(stream);
    let (hears, mut heard) = mpsc::channel::<Words>(1);
    let reader = async {
        loop {
            let silent = |_| io::Error::new(io::ErrorKind::TimedOut, "it was silent for 3 s");
            let words = timeout(SILENT, read(&mut reads)).await.map_err(silent).flatten();
            match words {
                Ok(words) => drop(hears.send(words).await),
                Err(error) => break error,
            }
        }
    };
    let mut doing: Option<(u64, JoinHandle<Result<Value, String>>)> = None;
    let writer = async {
        loop {
            let answer = tokio::select! {
                _ = stop.wait_for(|stop| *stop), if doing.is_none() => {
                    break io::Error::new(io::ErrorKind::ConnectionAborted, "this node stops");
                }
                became = done(doing.as_mut()) => {
                    let number = doing.take().map_or(0, |(number, _)| number);
                    Answer::Done { number, became }
                }
                words = heard.recv() => match words {
                    Some(Words::Beat(_)) => Answer::Beat(node.standing()),
                    Some(Words::Tell { number, news }) if doing.is_none() => {
                        // A task of its own: where the connection ends it is not left half done.
                        doing = Some((number, tokio::spawn(do_once(Arc::clone(node), name.clone(), news))));
                        continue;
                    }
                    _ => break io::Error::new(io::ErrorKind::InvalidData, "it spoke out of turn"),
                },
            };
            match timeout(SILENT, write(&mut writes, &answer)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => break error,
                Err(_) => break io::Error::new(io::ErrorKind::TimedOut, "it takes nothing"),
            }
        }
    };
    let ended = tokio::select! {
        ended = reader => ended,
        ended = writer => ended,
        () = newer.notified() => io::Error::new(io::ErrorKind::ConnectionAborted, "it has a newer connection"),
    };
    if let Some((_, doing)) = doing {
        // It holds the node.
        drop(doing.await);
    }
    if ended.kind() == io::ErrorKind::InvalidData {
        refuse(&node.peers().refusals.message, from, &ended);
    } else {
        tracing::info!(peer = name, %from, why = %ended, "the connection of a peer ended");
    }
}

/// What became of what is being done; never where nothing is.
async fn done(doing: Option<&mut (u64, JoinHandle<Result<Value, String>>)>) -> Result<Value, String> {
    match doing {
        Some((_, doing)) => doing.await.unwrap_or_else(|error| Err(format!("it broke off: {error}"))),
        None => std::future::pending().await,
    }
}

/// Does what a peer tells, unless it was done already.
async fn do_once(node: Arc<RunningNode>, peer: String, news: News) -> Result<Value, String> {
    let once = news.once().map(str::to_owned);
    if once.as_ref().is_some_and(|id| !node.peers().begin(id)) {
        return Ok(json!({}));
    }
    let became = node.take(&peer, news).await;
    if let (Err(_), Some(id)) = (&became, once) {
        node.peers().undone(&id);
    }
    became
}
