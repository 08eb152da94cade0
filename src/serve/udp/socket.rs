//! A UDP socket that receives and sends in batches, and answers from the address that was asked.

use std::io::{IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::libc::{in_pktinfo, in6_pktinfo};
use nix::sys::socket::sockopt::{Ipv4PacketInfo, Ipv6RecvPacketInfo};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrIn, SockaddrIn6, SockaddrLike, recvmmsg,
    sendmmsg, setsockopt,
};
use socket2::{Domain, Protocol, Socket, Type};

use super::BATCH;

/// The largest datagram read whole: far above any query (RFC 6891 clients send under 1232 octets).
const LARGEST: usize = 2048;

/// The kernel's queue per socket: bursts of a few thousand queries wait here while a batch is answered.
const BUFFER: usize = 4 << 20;

/// Where the addresses of the DNS doors are configured.
pub const LISTEN: &str = "[listen].dns";

/// Why a door could not be opened: its address, and the key that it comes from.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody else has the port.
    #[error("{0} is taken by another process; stop it or change {1}")]
    Taken(SocketAddr, &'static str),
    /// A port below 1024 without the right to it.
    #[error(
        "binding {0} needs CAP_NET_BIND_SERVICE; run as root, grant it to the service, or listen on a port above 1023"
    )]
    Forbidden(SocketAddr),
    /// The address is not this host's.
    #[error("{0} is not an address of this host; correct {1}")]
    NotOurs(SocketAddr, &'static str),
    /// Anything else.
    #[error("{0} cannot be bound: {1}")]
    Other(SocketAddr, std::io::Error),
}

impl BindError {
    /// What an error of `bind(2)` or `listen(2)` means to the operator who wrote `address` at `key`.
    #[must_use]
    pub fn of(address: SocketAddr, key: &'static str, error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::AddrInUse => Self::Taken(address, key),
            std::io::ErrorKind::PermissionDenied => Self::Forbidden(address),
            std::io::ErrorKind::AddrNotAvailable => Self::NotOurs(address, key),
            _ => Self::Other(address, error),
        }
    }
}

/// Where a datagram came from, and to which of our addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) peer: SocketAddr,
    local: IpAddr,
    /// The interface of a link-local peer.
    interface: u32,
}

/// A bound socket, not yet given to its thread.
#[derive(Debug)]
pub(super) struct Bound {
    socket: Socket,
    local: SocketAddr,
}

impl Bound {
    /// Binds with SO_REUSEPORT, so that every worker has a socket of its own on the same address.
    pub(super) fn new(address: SocketAddr) -> Result<Self, BindError> {
        let bind = || -> std::io::Result<Socket> {
            let socket = Socket::new(Domain::for_address(address), Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
            if address.is_ipv6() {
                socket.set_only_v6(true)?;
                setsockopt(&socket, Ipv6RecvPacketInfo, &true)?;
            } else {
                setsockopt(&socket, Ipv4PacketInfo, &true)?;
            }
            socket.set_reuse_port(true)?;
            // The kernel caps them at rmem_max and wmem_max; less room is no error.
            let _ = socket.set_recv_buffer_size(BUFFER);
            let _ = socket.set_send_buffer_size(BUFFER);
            socket.bind(&address.into())?;
            Ok(socket)
        };
        let socket = bind().map_err(|error| BindError::of(address, LISTEN, error))?;
        let local = socket.local_addr().ok().and_then(|local| local.as_socket()).unwrap_or(address);
        Ok(Self { socket, local })
    }

    pub(super) const fn local(&self) -> SocketAddr {
        self.local
    }
}

/// A socket with the buffers of its batches. Stays on the thread that made it: the headers hold pointers.
#[derive(Debug)]
pub(super) struct Datagrams {
    socket: Socket,
    local: SocketAddr,
    buffers: Vec<[u8; LARGEST]>,
    headers: Headers,
}

/// The message headers of the socket's family. Receiving and sending have their own: `sendmmsg` leaves pointers
/// to the peers' addresses behind in its headers, and `recvmmsg` would write through them.
#[derive(Debug)]
enum Headers {
    Four { receive: MultiHeaders<SockaddrIn>, send: MultiHeaders<SockaddrIn> },
    Six { receive: MultiHeaders<SockaddrIn6>, send: MultiHeaders<SockaddrIn6> },
}

impl Headers {
    fn new(address: SocketAddr) -> Self {
        fn headers<S: Family>(space: Vec<u8>) -> MultiHeaders<S> {
            MultiHeaders::preallocate(BATCH, Some(space))
        }
        let four = || headers(nix::cmsg_space!(in_pktinfo));
        let six = || headers(nix::cmsg_space!(in6_pktinfo));
        if address.is_ipv4() {
            Self::Four { receive: four(), send: four() }
        } else {
            Self::Six { receive: six(), send: six() }
        }
    }
}

/// One batch as received: borrowed packets with their routes.
pub(super) struct Received<'a> {
    buffers: &'a [[u8; LARGEST]],
    routes: Vec<(usize, Route)>,
}

impl Received<'_> {
    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], Route)> {
        let packets = self.buffers.iter().zip(&self.routes);
        packets.filter_map(|(buffer, (length, route))| Some((buffer.get(..*length)?, *route)))
    }
}

impl Datagrams {
    pub(super) fn new(bound: Bound) -> Self {
        Self {
            socket: bound.socket,
            local: bound.local,
            buffers: vec![[0; LARGEST]; BATCH],
            headers: Headers::new(bound.local),
        }
    }

    /// Receives what is there, up to a batch; nothing where there is nothing.
    pub(super) fn receive(&mut self) -> Received<'_> {
        let fd = self.socket.as_raw_fd();
        let routes = match &mut self.headers {
            Headers::Four { receive: headers, .. } => receive(fd, headers, &mut self.buffers, self.local),
            Headers::Six { receive: headers, .. } => receive(fd, headers, &mut self.buffers, self.local),
        };
        Received { buffers: &self.buffers, routes: routes.unwrap_or_default() }
    }

    /// Sends replies, each from the address that its query was sent to. What the kernel does not take (a full
    /// queue, an unreachable peer) is lost as any datagram may be.
    pub(super) fn send<'a>(&mut self, replies: impl Iterator<Item = (&'a [u8], Route)>) {
        let mut replies: Vec<(&[u8], Route)> = replies.collect();
        // One control message serves a whole sendmmsg: group by the address asked, nearly always one group.
        replies.sort_by_key(|(_, route)| (route.local, route.interface));
        let fd = self.socket.as_raw_fd();
        for group in replies.chunk_by(|(_, a), (_, b)| (a.local, a.interface) == (b.local, b.interface)) {
            let Some((_, route)) = group.first() else { continue };
            match (&mut self.headers, route.local) {
                (Headers::Four { send: headers, .. }, IpAddr::V4(local)) => {
                    let info = SockaddrIn::info(local, route.interface);
                    send(fd, headers, group, &[ControlMessage::Ipv4PacketInfo(&info)]);
                }
                (Headers::Six { send: headers, .. }, IpAddr::V6(local)) => {
                    let info = SockaddrIn6::info(local, route.interface);
                    send(fd, headers, group, &[ControlMessage::Ipv6PacketInfo(&info)]);
                }
                // A route is made by the socket it came from.
                _ => {}
            }
        }
    }
}

impl AsFd for Datagrams {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What the two families do differently.
trait Family: SockaddrLike + Copy {
    type Local;
    type Info;
    fn socket_address(&self) -> SocketAddr;
    fn of(address: SocketAddr) -> Option<Self>;
    fn asked(message: &ControlMessageOwned) -> Option<(IpAddr, u32)>;
    fn info(local: Self::Local, interface: u32) -> Self::Info;
}

impl Family for SockaddrIn {
    type Local = Ipv4Addr;
    type Info = in_pktinfo;

    fn socket_address(&self) -> SocketAddr {
        SocketAddr::new(self.ip().into(), self.port())
    }

    fn of(address: SocketAddr) -> Option<Self> {
        if let SocketAddr::V4(address) = address { Some(address.into()) } else { None }
    }

    fn asked(message: &ControlMessageOwned) -> Option<(IpAddr, u32)> {
        let ControlMessageOwned::Ipv4PacketInfo(info) = message else { return None };
        // ipi_addr is the header's destination, network order in memory.
        Some((Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes()).into(), 0))
    }

    fn info(local: Ipv4Addr, _interface: u32) -> in_pktinfo {
        let source = nix::libc::in_addr { s_addr: u32::from_ne_bytes(local.octets()) };
        in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: source, ipi_addr: nix::libc::in_addr { s_addr: 0 } }
    }
}

impl Family for SockaddrIn6 {
    type Local = Ipv6Addr;
    type Info = in6_pktinfo;

    fn socket_address(&self) -> SocketAddr {
        SocketAddr::V6(std::net::SocketAddrV6::new(self.ip(), self.port(), self.flowinfo(), self.scope_id()))
    }

    fn of(address: SocketAddr) -> Option<Self> {
        if let SocketAddr::V6(address) = address { Some(address.into()) } else { None }
    }

    fn asked(message: &ControlMessageOwned) -> Option<(IpAddr, u32)> {
        let ControlMessageOwned::Ipv6PacketInfo(info) = message else { return None };
        let address = Ipv6Addr::from(info.ipi6_addr.s6_addr);
        // Link-local addresses mean something on one interface only.
        Some((address.into(), if address.is_unicast_link_local() { info.ipi6_ifindex } else { 0 }))
    }

    fn info(local: Ipv6Addr, interface: u32) -> in6_pktinfo {
        in6_pktinfo { ipi6_addr: nix::libc::in6_addr { s6_addr: local.octets() }, ipi6_ifindex: interface }
    }
}

fn receive<S: Family>(
    fd: i32,
    headers: &mut MultiHeaders<S>,
    buffers: &mut [[u8; LARGEST]],
    local: SocketAddr,
) -> nix::Result<Vec<(usize, Route)>> {
    let mut slices: Vec<[IoSliceMut<'_>; 1]> = buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
    let messages = recvmmsg(fd, headers, slices.iter_mut(), MsgFlags::MSG_DONTWAIT, None)?;
    let route = |message: nix::sys::socket::RecvMsg<'_, '_, S>| {
        let peer = message.address.map(|address| address.socket_address())?;
        let asked = message.cmsgs().ok().and_then(|mut messages| messages.find_map(|message| S::asked(&message)));
        let (asked, interface) = asked.unwrap_or((local.ip(), 0));
        Some((message.bytes, Route { peer, local: asked, interface }))
    };
    // A packet keeps its place in the buffers, so one without an address (there is none) ends the batch.
    Ok(messages.map_while(route).collect())
}

fn send<S: Family>(fd: i32, headers: &mut MultiHeaders<S>, group: &[(&[u8], Route)], control: &[ControlMessage<'_>]) {
    let mut rest = group;
    while !rest.is_empty() {
        let slices: Vec<[IoSlice<'_>; 1]> = rest.iter().take(BATCH).map(|(bytes, _)| [IoSlice::new(bytes)]).collect();
        let peers: Vec<Option<S>> = rest.iter().take(BATCH).map(|(_, route)| S::of(route.peer)).collect();
        let sent = match sendmmsg(fd, headers, &slices, &peers, control, MsgFlags::MSG_DONTWAIT) {
            Ok(results) => results.count(),
            Err(Errno::EINTR) => continue,
            // The first of them cannot be sent: leave it, go on with the next.
            Err(_) => 1,
        };
        rest = rest.get(sent.max(1)..).unwrap_or_default();
    }
}
