//! The sockets of the doors: those that the service manager gives, and where it gives none, our own.

use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

use crate::app::cli::Failure;
use crate::app::config::{Config, Listen};
use crate::app::node::Doors;
use crate::document::Mistake;
use crate::serve::Given;
use crate::serve::quic;
use crate::serve::udp::{BindError, Bound, LISTEN, Place, bind};

const TLS: &str = "[listen].tls";
const HTTPS: &str = "[listen].https";
const QUIC: &str = "[listen].quic";
const H3: &str = "[listen].h3";
const HEALTH: &str = "[health].listen";
const PEERS: &str = "[peers].listen";

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1_024;

/// All of them, open.
pub(super) struct Sockets {
    pub(super) udp: Bound,
    pub(super) streams: Vec<tokio::net::TcpListener>,
    pub(super) tls: Vec<tokio::net::TcpListener>,
    pub(super) https: Vec<tokio::net::TcpListener>,
    pub(super) quic: Vec<quic::Door>,
    pub(super) h3: Vec<quic::Door>,
    pub(super) health: Option<tokio::net::TcpListener>,
    /// Always our own: peers connect again.
    pub(super) peers: Option<tokio::net::TcpListener>,
}

/// Whether every socket that is given has its door.
pub(super) fn judge(given: &Given, config: &Config) -> Result<(), Vec<Mistake>> {
    let Listen { dns, tls, https, quic, h3, .. } = &config.listen;
    let health = config.health.as_slice();
    let [udp, tcp] = given.addresses();
    // Where each of the last lists takes but one socket.
    let udp = misplaced(&udp, "UDP", &[dns], &[(quic, QUIC), (h3, H3)]);
    let tcp = misplaced(&tcp, "TCP", &[dns, tls, https], &[(health, HEALTH)]);
    let mistakes: Vec<_> = udp.into_iter().chain(tcp).collect();
    if mistakes.is_empty() { Ok(()) } else { Err(mistakes) }
}

fn misplaced(
    given: &[SocketAddr],
    protocol: &str,
    any: &[&Vec<SocketAddr>],
    single: &[(&[SocketAddr], &str)],
) -> Vec<Mistake> {
    let mut mistakes = Vec::new();
    for (at, address) in given.iter().enumerate() {
        let again = given.iter().take(at).any(|before| before == address);
        let single = single.iter().find(|(door, _)| door.contains(address));
        if let Some((_, key)) = single {
            if again {
                let fact =
                    format!("the service manager gives {address} ({protocol}) more than once, and {key} takes one");
                mistakes.push(Mistake::general(fact, "leave one of them in outgate.socket"));
            }
        } else if !again && !any.iter().any(|door| door.contains(address)) {
            let fact = format!(
                "the service manager gives a socket for {address} ({protocol}), and no door is configured there"
            );
            let remedy = "add the address to [listen], or take it out of outgate.socket: nobody would answer there";
            mistakes.push(Mistake::general(fact, remedy));
        }
    }
    mistakes
}

impl Sockets {
    /// Takes those that are given, which were judged, and binds the others. The streams first: unlike the UDP sockets
    /// they do not share their port, so that a second process on the same port is found out here. Called inside the
    /// runtime.
    pub(super) fn open(config: &Config, mut given: Given) -> Result<Self, Failure> {
        let failed = |error: BindError| Failure::Failed(error.to_string());
        let warns = !given.is_empty();
        let own = |address: SocketAddr, directive: &str, key: &str| {
            if warns {
                tracing::warn!(
                    "{key}: the service manager gives no socket for {address}, which is bound here: nobody answers there during a restart; add {directive}={address} to outgate.socket"
                );
            }
        };
        let Listen { dns, tls, https, quic, h3, workers } = &config.listen;
        // Those of each address: one that is bound here, or all that are given.
        let mut listen = |addresses: &[SocketAddr], key| {
            let at = |address: &SocketAddr| {
                let found = given.tcp(*address);
                let listeners = if found.is_empty() {
                    if key != HEALTH {
                        own(*address, "ListenStream", key);
                    }
                    listen_tcp(*address).map(|listener| vec![listener])
                } else {
                    found.into_iter().map(listener).collect()
                };
                listeners.map_err(|error| failed(BindError::of(*address, key, error)))
            };
            addresses.iter().map(at).collect::<Result<Vec<_>, _>>()
        };
        let streams = listen(dns, LISTEN)?;
        let tls = listen(tls, TLS)?.into_iter().flatten().collect();
        let https = listen(https, HTTPS)?.into_iter().flatten().collect();
        let health = listen(config.health.as_slice(), HEALTH)?.into_iter().flatten().next();
        let mut over_quic = |addresses: &[SocketAddr], key, speech| {
            let door = |address: &SocketAddr| {
                let found = given.udp(*address).pop();
                if found.is_none() {
                    own(*address, "ListenDatagram", key);
                }
                quic::Door::new(*address, found, key, speech)
            };
            addresses.iter().map(door).collect::<Result<Vec<_>, _>>()
        };
        let quic = over_quic(quic, QUIC, quic::Speech::Doq).map_err(failed)?;
        let h3 = over_quic(h3, H3, quic::Speech::H3).map_err(failed)?;
        let mut places = Vec::new();
        for (address, bound) in dns.iter().zip(&streams) {
            let found = given.udp(*address);
            if found.is_empty() {
                own(*address, "ListenDatagram", LISTEN);
                places.push(Place::Own(same_port(*address, bound.first())));
            } else {
                places.push(Place::Given(*address, found));
            }
        }
        let udp = bind(places, *workers).map_err(failed)?;
        let streams = streams.into_iter().flatten().collect();
        let peers = config
            .peers
            .as_ref()
            .map(|peers| listen_tcp(peers.listen).map_err(|error| failed(BindError::of(peers.listen, PEERS, error))));
        Ok(Self { udp, streams, tls, https, quic, h3, health, peers: peers.transpose()? })
    }

    /// Where they are. Port 0 asks the kernel for a port: what it gave is what is shown.
    pub(super) fn doors(&self) -> Doors {
        let bound = |listeners: &[tokio::net::TcpListener]| {
            let mut bound: Vec<_> = listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect();
            bound.dedup();
            bound
        };
        let over_quic = |doors: &[quic::Door]| doors.iter().filter_map(quic::Door::address).collect();
        Doors {
            dns: self.udp.addresses(),
            tls: bound(&self.tls),
            https: bound(&self.https),
            quic: over_quic(&self.quic),
            h3: over_quic(&self.h3),
        }
    }
}

/// Port 0 asks the kernel for a port: UDP takes the one that TCP got.
fn same_port(wanted: SocketAddr, bound: Option<&tokio::net::TcpListener>) -> SocketAddr {
    match bound.map(tokio::net::TcpListener::local_addr) {
        Some(Ok(local)) if wanted.port() == 0 => SocketAddr::new(wanted.ip(), local.port()),
        _ => wanted,
    }
}

fn listen_tcp(address: SocketAddr) -> std::io::Result<tokio::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // A restart must not wait for the old process's connections to be forgotten.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    listener(socket)
}

fn listener(socket: Socket) -> std::io::Result<tokio::net::TcpListener> {
    socket.set_nonblocking(true)?;
    tokio::net::TcpListener::from_std(TcpListener::from(socket))
}
