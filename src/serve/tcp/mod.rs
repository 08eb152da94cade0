//! DNS over TCP (RFC 7766): connections under limits, queries answered in the order in which answers are ready.
//!
//! RFC 7766 §5: "All general-purpose DNS implementations MUST support both UDP and TCP transport". A connection
//! is any byte stream, so the same code serves TLS.

mod connection;
mod frames;
mod streams;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

pub use streams::{Ending, Limits, Standing, Streams};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::stopped;

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
        local: SocketAddr,
    ) -> impl Future<Output = Option<Vec<u8>>> + Send;
}

/// Serves one listener until `stop`; returns when the last connection has ended. Listeners that share `streams`
/// share its limits. Dropping the future cuts all connections.
pub async fn serve<G: StreamGate>(
    listener: TcpListener,
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
                    match (streams.admit(peer.ip(), gate.standing(peer.ip())), stream.local_addr()) {
                        (Ok(seat), Ok(local)) => {
                            // Answers are written whole; nothing is gained by waiting for more. A socket that
                            // refuses the option works all the same.
                            let _ = stream.set_nodelay(true);
                            let (gate, stop) = (Arc::clone(&gate), stop.clone());
                            connections.spawn(async move {
                                let ending = connection::run(stream, (peer, local), &gate, seat.limits(), stop).await;
                                seat.leave(ending);
                            });
                        }
                        (Ok(seat), Err(_)) => seat.leave(Ending::Broken),
                        (Err(ending), _) => streams.count(ending),
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

#[cfg(test)]
mod tests;
