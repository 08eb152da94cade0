//! DNS over TCP (RFC 7766) and over TLS (RFC 7858): connections under limits, queries answered in the order in which
//! answers are ready.
//!
//! RFC 7766 §5: "All general-purpose DNS implementations MUST support both UDP and TCP transport". A connection
//! is any byte stream, so the same code serves both; TLS only has a handshake before it.

mod connection;
mod frames;
mod streams;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

pub use streams::{Ending, Limits, Standing, Streams};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::stopped;
use super::tls::{Encrypted, Tls};
use crate::audit::Transport;

/// How long accepting rests after an error: most often the process is out of file descriptors.
const REST: Duration = Duration::from_millis(50);

/// What answers stream messages.
pub trait StreamGate: Send + Sync + 'static {
    /// Who a peer is, before it is given a seat.
    fn standing(&self, peer: IpAddr) -> Standing;

    /// The answer to one message (both without the length prefix, an answer of at most 65,535 bytes); `None`:
    /// silence. Whatever it returns, its record is written by then. It is always run to its end, also where the
    /// client has gone, and must end by itself within the deadline of a query.
    fn answer(
        &self,
        packet: Vec<u8>,
        peer: SocketAddr,
        transport: Transport,
    ) -> impl Future<Output = Option<Vec<u8>>> + Send;
}

/// Serves one listener until `stop`, over TLS where there is one; returns when the last connection has ended. Listeners
/// that share `streams` share its limits. Dropping the future cuts all connections.
pub async fn serve<G: StreamGate>(
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
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
                            let (tls, gate, stop) = (tls.clone(), Arc::clone(&gate), stop.clone());
                            connections.spawn(async move {
                                let ending = converse(stream, peer, tls, &gate, seat.limits(), stop).await;
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
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<Arc<Tls>>,
    gate: &Arc<G>,
    limits: &Limits,
    mut stop: watch::Receiver<bool>,
) -> Ending {
    let Some(tls) = tls else { return connection::run(stream, (peer, Transport::Tcp), gate, limits, stop).await };
    let encrypted = tokio::select! {
        encrypted = handshake(&tls, stream, limits) => encrypted,
        () = stopped(&mut stop) => Err(Ending::Stopped),
    };
    match encrypted {
        Ok(stream) => connection::run(stream, (peer, Transport::Dot), gate, limits, stop).await,
        Err(ending) => ending,
    }
}

/// It holds a seat like any connection, and has no longer than a message.
async fn handshake(tls: &Tls, stream: TcpStream, limits: &Limits) -> Result<Encrypted, Ending> {
    match timeout(limits.handshake, tls.accept_dot(stream)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => {
            tracing::debug!(%error, "a TLS handshake failed");
            Err(Ending::Handshake)
        }
        Err(_) => Err(Ending::Handshake),
    }
}

#[cfg(test)]
mod tests;
