//! DNS over QUIC (RFC 9250) and over HTTP/3 (RFC 9114, RFC 8484): each query a stream of its own, for the same gate.
//!
//! Seats, idle time and the length of messages are those of the other streams. A seat is given to nobody whose address is
//! not proved (RFC 9000 §8.1.2: Retry), so that nobody takes another's. A connection stays at the address that it
//! began at, since that is who asks (§9: no migration). No early data: it can be replayed, and a query may open a firewall.

mod carrier;
mod doq;
mod h3;

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use quinn::{
    Connection, ConnectionError, Endpoint, EndpointConfig, IdleTimeout, Incoming, ServerConfig, TokioRuntime,
    TransportConfig, VarInt,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::https::{Client, STREAMS};
use super::stopped;
use super::tcp::{Caller, Ending, Limits, Seat, StreamGate, Streams};
use super::tls::Tls;
use super::udp::BindError;
use crate::audit::Transport;
use crate::gate::Said;

/// What a client may send of one stream, and of all streams of a connection, before it is read.
const WINDOWS: [u32; 2] = [8 * 1024, 64 * 1024];
/// What is kept of replies until the client has them: two of the largest. Further ones wait for room.
const SEND: u64 = 128 * 1024;
/// Streams that the client opens beside its requests. RFC 9114 §6.2 asks for three at least.
const SIDE_STREAMS: u32 = 8;
/// Streams of a connection that bring no message, until it ends: whoever opens streams to take them back costs more than
/// one who asks.
const BARREN: usize = 100;
/// Connections that wait to be let in or not, and what of each is kept meanwhile, in octets.
const WAITING: [u16; 2] = [256, 4 * 1024];
/// QUIC, version 1 (RFC 9000): drafts are over.
const VERSION: u32 = 1;

/// What is spoken at a door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speech {
    /// DNS over QUIC.
    Doq,
    /// DNS over HTTP/3.
    H3,
}

/// A bound socket, and what is to be spoken there.
pub struct Door {
    endpoint: Endpoint,
    speech: Speech,
}

impl Door {
    /// At `address`, which is written at `key`: on the socket that is `given`, or on one that is bound here. Called within
    /// the runtime.
    ///
    /// # Errors
    /// Why it cannot be bound.
    pub fn new(
        address: SocketAddr,
        given: Option<Socket>,
        key: &'static str,
        speech: Speech,
    ) -> Result<Self, BindError> {
        let bind = || {
            let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
            if address.is_ipv6() {
                socket.set_only_v6(true)?;
            }
            socket.bind(&address.into())?;
            Ok(socket)
        };
        let open = |socket: Socket| {
            let mut config = EndpointConfig::default();
            config.supported_versions(vec![VERSION]);
            Endpoint::new(config, None, socket.into(), Arc::new(TokioRuntime))
        };
        let endpoint =
            given.map_or_else(bind, Ok).and_then(open).map_err(|error| BindError::of(address, key, error))?;
        Ok(Self { endpoint, speech })
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.endpoint.local_addr().ok()
    }

    /// Serves until `stop`; returns when the last connection has ended. Doors that share `streams` share its limits.
    pub async fn serve<G: StreamGate>(
        self,
        tls: Arc<Tls>,
        gate: Arc<G>,
        streams: Arc<Streams>,
        mut stop: watch::Receiver<bool>,
    ) {
        let Self { endpoint, speech } = self;
        let config = server_config(speech, &tls, streams.limits());
        endpoint.set_server_config(Some(config.clone()));
        let mut connections = JoinSet::new();
        loop {
            let incoming = tokio::select! {
                () = stopped(&mut stop) => break,
                Some(_) = connections.join_next() => continue,
                incoming = endpoint.accept() => incoming,
            };
            let Some(incoming) = incoming else {
                tracing::error!(
                    ?speech,
                    "the socket of a QUIC door has failed and nothing is taken there any more; restart"
                );
                break;
            };
            // A forged sender costs one packet, shorter than its own, and no memory.
            if !incoming.remote_address_validated() {
                let _ = incoming.retry();
                continue;
            }
            let peer = incoming.remote_address();
            match admit(peer, &*gate, &streams) {
                Ok(seat) => {
                    let mut config = config.clone();
                    let handshake = tls.over_quic(speech);
                    config.crypto = handshake.crypto.clone();
                    let (gate, mut stop) = (Arc::clone(&gate), stop.clone());
                    connections.spawn(async move {
                        let connected = tokio::select! {
                            connected = connect(incoming, config, seat.limits()) => connected,
                            () = stopped(&mut stop) => Err(Ending::Stopped),
                        };
                        let ending = match connected {
                            Ok(connection) => {
                                let said = handshake.shown(&connection).map_or(Said::Nothing, Said::Certificate);
                                converse(connection, speech, said, gate, seat.limits(), stop).await
                            }
                            Err(ending) => ending,
                        };
                        seat.leave(ending);
                    });
                }
                Err(ending) => {
                    incoming.refuse();
                    streams.count(ending);
                }
            }
        }
        endpoint.set_server_config(None);
        while connections.join_next().await.is_some() {}
        // The farewells are sent by the endpoint's own task.
        let _ = timeout(streams.limits().send, endpoint.wait_idle()).await;
    }
}

/// A seat, where `peer` may have one. No PROXY header can stand before a handshake over QUIC: whoever must send one is
/// nobody here.
fn admit<G: StreamGate>(peer: SocketAddr, gate: &G, streams: &Arc<Streams>) -> Result<Seat, Ending> {
    if gate.takes_proxy(peer.ip()) {
        return Err(Ending::Unproxied);
    }
    streams.admit(peer.ip(), gate.standing(peer.ip()))
}

/// What every connection of a door is bounded by. The key of what is said in Retry is random, and this process's alone.
fn server_config(speech: Speech, tls: &Tls, limits: &Limits) -> ServerConfig {
    let [of_stream, of_connection] = WINDOWS;
    let mut transport = TransportConfig::default();
    transport.max_concurrent_bidi_streams(STREAMS.into());
    transport.max_concurrent_uni_streams(match speech {
        // RFC 9250 §4.3.3: "a client or server opens a unidirectional QUIC stream" is a protocol error.
        Speech::Doq => VarInt::from_u32(0),
        Speech::H3 => SIDE_STREAMS.into(),
    });
    transport.stream_receive_window(of_stream.into()).receive_window(of_connection.into()).send_window(SEND);
    transport.datagram_receive_buffer_size(None);
    transport.max_idle_timeout(IdleTimeout::try_from(limits.idle).ok());
    let mut config = ServerConfig::with_crypto(tls.over_quic(speech).crypto);
    config.transport_config(Arc::new(transport)).migration(false);
    let [connections, octets] = WAITING;
    config.max_incoming(connections.into()).incoming_buffer_size(octets.into());
    config.incoming_buffer_size_total(u64::from(connections) * u64::from(octets));
    config
}

/// The handshake; it holds a seat like any connection.
async fn connect(incoming: Incoming, config: ServerConfig, limits: &Limits) -> Result<Connection, Ending> {
    let made = async { incoming.accept_with(Arc::new(config))?.await };
    match timeout(limits.handshake, made).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) => {
            tracing::debug!(%error, "a QUIC handshake failed");
            Err(Ending::Handshake)
        }
        Err(_) => Err(Ending::Handshake),
    }
}

/// One connection from its handshake to its end; then every query that it brought is recorded.
async fn converse<G: StreamGate>(
    connection: Connection,
    speech: Speech,
    said: Said,
    gate: Arc<G>,
    limits: &Limits,
    stop: watch::Receiver<bool>,
) -> Ending {
    let transport = match speech {
        Speech::Doq => Transport::Doq,
        Speech::H3 => Transport::Doh3,
    };
    let caller = Caller { peer: connection.remote_address(), transport, said };
    let (working, mut all_done) = mpsc::channel(1);
    let client = Client::new(gate, caller, *limits, working);
    let ending = match speech {
        Speech::Doq => drive(doq::Doq::new(&connection, client, limits), &connection, limits, stop).await,
        Speech::H3 => match h3::H3::new(&connection, client, limits).await {
            Ok(speaker) => drive(speaker, &connection, limits, stop).await,
            Err(ending) => ending,
        },
    };
    let _: Option<()> = all_done.recv().await;
    ending
}

/// One query, from the first octet of its stream until its client has the reply.
type Exchange = Pin<Box<dyn Future<Output = Exchanged> + Send>>;

/// What became of a stream.
enum Exchanged {
    /// It is answered, or its client does not want it any more.
    Answered,
    /// It brought no message.
    Nothing,
    /// Its connection cannot go on.
    End(End),
}

/// How a connection ends: as it is counted, and as it is told.
struct End {
    ending: Ending,
    code: u32,
}

/// What is spoken over one connection.
trait Speaker: Send {
    /// Nothing is wrong.
    const DONE: u32;
    /// The client costs too much.
    const EXCESS: u32;

    /// The next stream that the client opens. Nothing is lost where it is not waited for.
    fn next(&mut self) -> impl Future<Output = Result<Exchange, End>> + Send;
}

/// Drives a connection until it ends, is idle or the node stops.
async fn drive<S: Speaker>(
    mut speaker: S,
    connection: &Connection,
    limits: &Limits,
    mut stop: watch::Receiver<bool>,
) -> Ending {
    let mut exchanges = JoinSet::new();
    let mut barren = 0;
    // The last reply, or the handshake: pings keep no connection.
    let mut since = Instant::now();
    let end = loop {
        tokio::select! {
            biased;
            Some(ended) = exchanges.join_next() => match ended {
                Ok(Exchanged::Answered) => since = Instant::now(),
                Ok(Exchanged::Nothing) if barren == BARREN => break End { ending: Ending::Broken, code: S::EXCESS },
                Ok(Exchanged::Nothing) => barren += 1,
                Ok(Exchanged::End(end)) => break end,
                Err(error) => {
                    tracing::error!(%error, peer = %connection.remote_address(), "a query over QUIC ended without an answer");
                }
            },
            () = stopped(&mut stop) => break End { ending: Ending::Stopped, code: S::DONE },
            () = sleep_until(since + limits.idle), if exchanges.is_empty() => {
                break End { ending: Ending::Idle, code: S::DONE };
            }
            next = speaker.next(), if exchanges.len() < STREAMS as usize => match next {
                Ok(exchange) => _ = exchanges.spawn(exchange),
                Err(end) => break end,
            },
        }
    };
    if end.ending == Ending::Stopped {
        // A query's deadline is shorter.
        let _ = timeout(limits.send, async { while exchanges.join_next().await.is_some() {} }).await;
    }
    connection.close(end.code.into(), &[]);
    // Queries go on though their connection has ended.
    while exchanges.join_next().await.is_some() {}
    end.ending
}

/// Why a connection is gone.
fn ending_of(error: &ConnectionError) -> Ending {
    match error {
        ConnectionError::ApplicationClosed(_) | ConnectionError::ConnectionClosed(_) => Ending::Peer,
        ConnectionError::TimedOut => Ending::Idle,
        ConnectionError::VersionMismatch
        | ConnectionError::TransportError(_)
        | ConnectionError::Reset
        | ConnectionError::LocallyClosed
        | ConnectionError::CidsExhausted => Ending::Broken,
    }
}
