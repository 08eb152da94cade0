//! DNS over TCP (RFC 7766) and over TLS (RFC 7858): connections under limits, queries answered in the order in which
//! answers are ready. Those of DNS over HTTPS are accepted here too, under the same limits, and handed to
//! `serve::https`.
//!
//! RFC 7766 §5: "All general-purpose DNS implementations MUST support both UDP and TCP transport". A connection
//! is any byte stream, so the same code serves both; TLS only has a handshake before it.

mod connection;
mod frames;
mod header;
mod round;
mod streams;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

pub use frames::Frames;
pub use round::Round;
#[cfg(feature = "quic")]
pub(super) use streams::Seat;
pub use streams::{Ending, Limits, Standing, Streams};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::https;
use super::stopped;
use super::tls::{Alpn, Encrypted, Tls};
use crate::audit::Transport;
use crate::gate::{Said, Shown};

/// How long accepting rests after an error: most often the process is out of file descriptors.
const REST: Duration = Duration::from_millis(50);

/// What is spoken at a listener.
#[derive(Clone)]
pub enum Speech {
    /// DNS over TCP.
    Tcp,
    /// DNS over TLS.
    Dot(Arc<Tls>),
    /// DNS over HTTPS.
    Doh(Arc<Tls>),
}

/// Who is at the other end of a stream.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Who connected.
    pub peer: SocketAddr,
    /// What is spoken.
    pub transport: Transport,
    /// What came before the first message.
    pub said: Said,
}

/// What answers stream messages: all that need no waiting at once, the others when they are ready.
pub trait StreamGate: Send + Sync + 'static {
    /// A query that waits for others.
    type Job: Send + 'static;
    /// One that waits no more.
    type Finished: Send + 'static;

    /// Who a peer is, before it is given a seat.
    fn standing(&self, peer: IpAddr) -> Standing;

    /// Whether a PROXY header stands before all that this peer sends.
    fn takes_proxy(&self, peer: IpAddr) -> bool;

    /// Answers what is complete in `frames` while the round has room. The records of its replies are written.
    fn answer(&self, frames: &mut Frames, caller: &Caller, round: &mut Round<Self::Job>);

    /// Works on one that waits. It is always run to its end, also where the client has gone, and must end by itself
    /// within the deadline of a query.
    fn wait(&self, job: Self::Job) -> impl Future<Output = Self::Finished> + Send;

    /// Answers what waits no more. The records of its replies are written.
    fn finish(&self, finished: Vec<Self::Finished>, round: &mut Round<Self::Job>);
}

/// Serves one listener until `stop`; returns when the last connection has ended. Listeners that share `streams`
/// share its limits. Dropping the future cuts all connections.
pub async fn serve<G: StreamGate>(
    listener: TcpListener,
    speech: Speech,
    gate: Arc<G>,
    streams: Arc<Streams>,
    mut stop: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    let mut failing = false;
    loop {
        tokio::select! {
            () = stopped(&mut stop) => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    failing = false;
                    match streams.admit(peer.ip(), gate.standing(peer.ip())) {
                        Ok(seat) => {
                            // Answers are written whole; nothing is gained by waiting for more. A socket that
                            // refuses the option works all the same.
                            let _ = stream.set_nodelay(true);
                            let (speech, gate, stop) = (speech.clone(), Arc::clone(&gate), stop.clone());
                            connections.spawn(async move {
                                let ending = converse(stream, peer, speech, &gate, seat.limits(), stop).await;
                                seat.leave(ending);
                            });
                        }
                        Err(ending) => streams.count(ending),
                    }
                }
                Err(error) => {
                    if !failing {
                        tracing::warn!(%error, "a TCP connection could not be accepted; is the limit of open files too low?");
                        failing = true;
                    }
                    tokio::time::sleep(REST).await;
                }
            },
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// One connection from its first byte to its last.
async fn converse<G: StreamGate>(
    mut stream: TcpStream,
    peer: SocketAddr,
    speech: Speech,
    gate: &Arc<G>,
    limits: &Limits,
    mut stop: watch::Receiver<bool>,
) -> Ending {
    let transport = match &speech {
        Speech::Tcp => Transport::Tcp,
        Speech::Dot(_) => Transport::Dot,
        Speech::Doh(_) => Transport::Doh,
    };
    let mut caller = Caller { peer, transport, said: Said::Nothing };
    if gate.takes_proxy(peer.ip()) {
        let said = tokio::select! {
            said = header::read(&mut stream, limits) => said,
            () = stopped(&mut stop) => return Ending::Stopped,
        };
        match said {
            Ok(said) => caller.said = said,
            Err(read) => {
                header::refuse(&**gate, caller, &read);
                return Ending::Unproxied;
            }
        }
    }
    let (tls, protocol) = match &speech {
        Speech::Tcp => return connection::run(stream, &caller, gate, limits, stop).await,
        Speech::Dot(tls) => (tls, Alpn::Dot),
        Speech::Doh(tls) => (tls, Alpn::Http),
    };
    let encrypted = tokio::select! {
        encrypted = handshake(tls, protocol, stream, limits) => encrypted,
        () = stopped(&mut stop) => Err(Ending::Stopped),
    };
    let (stream, shown) = match encrypted {
        Ok(encrypted) => encrypted,
        Err(ending) => return ending,
    };
    // Behind a proxy the certificate is the proxy's.
    if let (Some(shown), Said::Nothing) = (shown, &caller.said) {
        caller.said = Said::Certificate(shown);
    }
    match protocol {
        Alpn::Dot => connection::run(stream, &caller, gate, limits, stop).await,
        Alpn::Http => https::run(stream, &caller, gate, limits, stop).await,
    }
}

/// It holds a seat like any connection, and has a limit of its own.
async fn handshake(
    tls: &Tls,
    protocol: Alpn,
    stream: TcpStream,
    limits: &Limits,
) -> Result<(Encrypted, Option<Arc<Shown>>), Ending> {
    match timeout(limits.handshake, tls.accept(protocol, stream)).await {
        Ok(Ok(encrypted)) => Ok(encrypted),
        Ok(Err(error)) => {
            tracing::debug!(%error, "a TLS handshake failed");
            Err(Ending::Handshake)
        }
        Err(_) => Err(Ending::Handshake),
    }
}

#[cfg(test)]
mod tests;
