//! Sockets that the service manager holds and gives to each process that it starts (systemd's socket activation): what is
//! sent there while one has stopped and the next has not started waits in them, and is answered by the next.
//!
//! They are known by where they are bound, whatever their order and names.

use std::net::SocketAddr;

use listenfd::ListenFd;
use socket2::Socket;

use crate::document::Mistake;

/// The first descriptor that is given.
const FIRST: usize = 3;

/// What was given and has no door yet.
#[derive(Debug, Default)]
pub struct Given {
    udp: Vec<(SocketAddr, Socket)>,
    tcp: Vec<(SocketAddr, Socket)>,
}

impl Given {
    /// What the environment says was given; nothing where it does not say so to this process. To be called once, before
    /// anything else is opened: it takes descriptors by their numbers.
    ///
    /// # Errors
    /// Those that no door can have.
    pub fn take() -> Result<Self, Vec<Mistake>> {
        let mut listed = ListenFd::from_env();
        let (mut given, mut mistakes) = (Self::default(), Vec::new());
        for index in 0..listed.len() {
            let socket = match (listed.take_udp_socket(index), listed.take_tcp_listener(index)) {
                (Ok(Some(socket)), _) => Ok((Socket::from(socket), true)),
                (_, Ok(Some(socket))) => Ok((Socket::from(socket), false)),
                _ => Err(useless(FIRST + index)),
            };
            match socket.and_then(|(socket, udp)| Ok((placed(&socket, udp, FIRST + index)?, socket, udp))) {
                Ok((address, socket, true)) => given.udp.push((address, socket)),
                Ok((address, socket, false)) => given.tcp.push((address, socket)),
                Err(mistake) => mistakes.push(mistake),
            }
        }
        if mistakes.is_empty() { Ok(given) } else { Err(mistakes) }
    }

    /// Whether nothing is left, or nothing was given.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.udp.is_empty() && self.tcp.is_empty()
    }

    /// The addresses of the UDP sockets, and of those that listen for TCP; one that has several sockets several times.
    #[must_use]
    pub fn addresses(&self) -> [Vec<SocketAddr>; 2] {
        [&self.udp, &self.tcp].map(|sockets| sockets.iter().map(|(address, _)| *address).collect())
    }

    /// Takes every UDP socket at this address.
    pub fn udp(&mut self, address: SocketAddr) -> Vec<Socket> {
        self.udp.extract_if(.., |(local, _)| *local == address).map(|(_, socket)| socket).collect()
    }

    /// Takes every socket that listens for TCP at this address.
    pub fn tcp(&mut self, address: SocketAddr) -> Vec<Socket> {
        self.tcp.extract_if(.., |(local, _)| *local == address).map(|(_, socket)| socket).collect()
    }
}

/// Where a socket is bound, if it is one that a door can have.
fn placed(socket: &Socket, udp: bool, descriptor: usize) -> Result<SocketAddr, Mistake> {
    let local = socket.local_addr().ok().and_then(|local| local.as_socket());
    let local = local.filter(|local| local.port() != 0 && (udp || socket.is_listener().unwrap_or(false)));
    let local = local.ok_or_else(|| useless(descriptor))?;
    if local.is_ipv6() && local.ip().is_unspecified() && !socket.only_v6().unwrap_or(false) {
        return Err(Mistake::general(
            format!("the socket for {local} that the service manager gives takes IPv4 as well"),
            "write BindIPv6Only=ipv6-only in outgate.socket, and a line with 0.0.0.0 for IPv4",
        ));
    }
    Ok(local)
}

fn useless(descriptor: usize) -> Mistake {
    Mistake::general(
        format!(
            "descriptor {descriptor}, which the service manager gives, is no UDP socket and none that listens for TCP"
        ),
        "give addresses with their ports in ListenDatagram= and ListenStream= of outgate.socket, and leave Accept= out",
    )
}
