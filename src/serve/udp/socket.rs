//! A UDP socket that receives and sends in batches, and answers from the address that was asked.

use std::io::{IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};

use nix::errno::Errno;
use nix::libc::{in_pktinfo, in6_pktinfo};
use nix::sys::socket::sockopt::{Ipv4PacketInfo, Ipv6RecvPacketInfo};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, RecvMsg, SockaddrIn, SockaddrIn6, SockaddrLike,
    recvmmsg, sendmmsg, setsockopt,
};
use smallvec::SmallVec;
use socket2::{Domain, Protocol, Socket, Type};

use super::BATCH;
use crate::net::ignore_path_mtu;

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
    asked: Asked,
}

/// The address of ours that a datagram was sent to, and what its reply must leave from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Asked {
    address: IpAddr,
    /// Where `address` is link-local, which means something on one interface only; else 0.
    interface: u32,
}

/// A bound socket.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) socket: Socket,
    pub(super) local: SocketAddr,
}

impl Bound {
    /// Binds with SO_REUSEPORT, so that every worker has a socket of its own on the same address.
    pub(super) fn new(address: SocketAddr) -> Result<Self, BindError> {
        let bind = || -> std::io::Result<Socket> {
            let socket = Socket::new(Domain::for_address(address), Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
            if address.is_ipv6() {
                socket.set_only_v6(true)?;
            }
            prepare(&socket, address)?;
            socket.set_reuse_port(true)?;
            socket.bind(&address.into())?;
            Ok(socket)
        };
        let socket = bind().map_err(|error| BindError::of(address, LISTEN, error))?;
        let local = socket.local_addr().ok().and_then(|local| local.as_socket()).unwrap_or(address);
        Ok(Self { socket, local })
    }

    /// A descriptor of our own for a socket that is bound to `local`; others may have theirs.
    pub(super) fn given(local: SocketAddr, socket: &Socket) -> Result<Self, BindError> {
        let prepared = prepare(socket, local).and_then(|()| socket.set_nonblocking(true));
        let socket = prepared.and_then(|()| socket.try_clone());
        Ok(Self { socket: socket.map_err(|error| BindError::of(local, LISTEN, error))?, local })
    }
}

/// Sets what a socket at this address needs.
fn prepare(socket: &Socket, address: SocketAddr) -> std::io::Result<()> {
    if is_any(address) {
        if address.is_ipv6() {
            setsockopt(socket, Ipv6RecvPacketInfo, &true)?;
        } else {
            setsockopt(socket, Ipv4PacketInfo, &true)?;
        }
    }
    ignore_path_mtu(socket, address.is_ipv6())?;
    // The kernel caps them at rmem_max and wmem_max; less room is no error. A service manager may give more than that.
    if socket.recv_buffer_size().is_ok_and(|size| size < BUFFER) {
        let _ = socket.set_recv_buffer_size(BUFFER);
    }
    if socket.send_buffer_size().is_ok_and(|size| size < BUFFER) {
        let _ = socket.set_send_buffer_size(BUFFER);
    }
    Ok(())
}

/// Whether a socket on this address is sent datagrams for any of ours, and must say which with every one of them.
/// Where it has one address, it needs no control message in or out.
const fn is_any(address: SocketAddr) -> bool {
    address.ip().is_unspecified()
}

/// The batches of one socket: their buffers. Stays on the thread that made it: the headers hold pointers.
#[derive(Debug)]
pub(super) struct Datagrams {
    local: SocketAddr,
    buffers: Box<[[u8; LARGEST]; BATCH]>,
    /// The length and the route of each packet of the batch in `buffers`.
    received: Vec<(usize, Route)>,
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
    fn new(local: SocketAddr) -> Self {
        fn headers<S: Family>(control: Option<Vec<u8>>) -> MultiHeaders<S> {
            MultiHeaders::preallocate(BATCH, control)
        }
        let four = || headers(is_any(local).then(|| nix::cmsg_space!(in_pktinfo)));
        let six = || headers(is_any(local).then(|| nix::cmsg_space!(in6_pktinfo)));
        if local.is_ipv4() {
            Self::Four { receive: four(), send: four() }
        } else {
            Self::Six { receive: six(), send: six() }
        }
    }
}

impl Datagrams {
    /// For a socket that is bound to `local`.
    pub(super) fn new(local: SocketAddr) -> Self {
        Self {
            headers: Headers::new(local),
            local,
            buffers: Box::new([[0; LARGEST]; BATCH]),
            received: Vec::with_capacity(BATCH),
        }
    }

    /// Receives what is there, up to a batch; how much it was.
    pub(super) fn receive(&mut self, socket: &Socket) -> usize {
        let Self { local, buffers, received, headers } = self;
        received.clear();
        // An error is nothing received; most often there was nothing.
        let _ = match headers {
            Headers::Four { receive: headers, .. } => receive(socket.as_raw_fd(), headers, buffers, *local, received),
            Headers::Six { receive: headers, .. } => receive(socket.as_raw_fd(), headers, buffers, *local, received),
        };
        received.len()
    }

    /// The packets of the batch that was received last, with their routes.
    pub(super) fn received(&self) -> impl Iterator<Item = (&[u8], Route)> {
        let packets = self.buffers.iter().zip(&self.received);
        packets.filter_map(|(buffer, (length, route))| Some((buffer.get(..*length)?, *route)))
    }

    /// Sends replies, each from the address that its query was sent to. What the kernel does not take (a full
    /// queue, an unreachable peer) is lost as any datagram may be.
    pub(super) fn send<'a>(&mut self, socket: &Socket, replies: impl Iterator<Item = (&'a [u8], Route)> + Clone) {
        // One control message serves a whole sendmmsg: one for each address asked, nearly always one.
        let mut sent: SmallVec<[Asked; 4]> = SmallVec::new();
        while let Some(asked) = replies.clone().map(|(_, route)| route.asked).find(|asked| !sent.contains(asked)) {
            let group = replies.clone().filter(|(_, route)| route.asked == asked);
            let any = is_any(self.local);
            match (&mut self.headers, asked.address) {
                (Headers::Four { send: headers, .. }, IpAddr::V4(address)) => {
                    let info = SockaddrIn::info(address, asked.interface);
                    let control = [ControlMessage::Ipv4PacketInfo(&info)];
                    send(socket, headers, group, if any { &control } else { &[] });
                }
                (Headers::Six { send: headers, .. }, IpAddr::V6(address)) => {
                    let info = SockaddrIn6::info(address, asked.interface);
                    let control = [ControlMessage::Ipv6PacketInfo(&info)];
                    send(socket, headers, group, if any { &control } else { &[] });
                }
                // A route is made by the socket it came from.
                _ => {}
            }
            sent.push(asked);
        }
    }
}

/// What the two families do differently.
trait Family: SockaddrLike + Copy {
    type Local;
    type Info;
    fn socket_address(&self) -> SocketAddr;
    fn of(address: SocketAddr) -> Option<Self>;
    fn asked(message: &ControlMessageOwned) -> Option<Asked>;
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

    fn asked(message: &ControlMessageOwned) -> Option<Asked> {
        let ControlMessageOwned::Ipv4PacketInfo(info) = message else { return None };
        // ipi_addr is the header's destination, network order in memory.
        Some(Asked { address: Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes()).into(), interface: 0 })
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

    fn asked(message: &ControlMessageOwned) -> Option<Asked> {
        let ControlMessageOwned::Ipv6PacketInfo(info) = message else { return None };
        let address = Ipv6Addr::from(info.ipi6_addr.s6_addr);
        let interface = if address.is_unicast_link_local() { info.ipi6_ifindex } else { 0 };
        Some(Asked { address: address.into(), interface })
    }

    fn info(local: Ipv6Addr, interface: u32) -> in6_pktinfo {
        in6_pktinfo { ipi6_addr: nix::libc::in6_addr { s6_addr: local.octets() }, ipi6_ifindex: interface }
    }
}

fn receive<S: Family>(
    fd: RawFd,
    headers: &mut MultiHeaders<S>,
    buffers: &mut [[u8; LARGEST]; BATCH],
    local: SocketAddr,
    received: &mut Vec<(usize, Route)>,
) -> nix::Result<()> {
    let mut slices = buffers.each_mut().map(|buffer| [IoSliceMut::new(buffer)]);
    let messages = recvmmsg(fd, headers, slices.iter_mut(), MsgFlags::MSG_DONTWAIT, None)?;
    let asked = |message: &RecvMsg<'_, '_, S>| {
        let mut control = message.cmsgs().ok().filter(|_| is_any(local));
        let told = control.as_mut().and_then(|messages| messages.find_map(|message| S::asked(&message)));
        told.unwrap_or(Asked { address: local.ip(), interface: 0 })
    };
    let route = |message: RecvMsg<'_, '_, S>| {
        let peer = message.address.map(|address| address.socket_address())?;
        Some((message.bytes, Route { peer, asked: asked(&message) }))
    };
    // A packet keeps its place in the buffers, so one without an address (there is none) ends the batch.
    received.extend(messages.map_while(route));
    Ok(())
}

fn send<'a, S: Family>(
    socket: &Socket,
    headers: &mut MultiHeaders<S>,
    mut group: impl Iterator<Item = (&'a [u8], Route)>,
    control: &[ControlMessage<'_>],
) {
    loop {
        let mut slices = [[IoSlice::new(&[])]; BATCH];
        let mut peers = [None; BATCH];
        let mut count = 0;
        for ((slice, peer), (bytes, route)) in slices.iter_mut().zip(&mut peers).zip(group.by_ref()) {
            (*slice, *peer) = ([IoSlice::new(bytes)], S::of(route.peer));
            count += 1;
        }
        if count == 0 {
            return;
        }
        let mut from = 0;
        while let (Some(slices @ [_, ..]), Some(peers)) = (slices.get(from..count), peers.get(from..count)) {
            match sendmmsg(socket.as_raw_fd(), headers, slices, peers, control, MsgFlags::MSG_DONTWAIT) {
                Ok(results) => from += results.count().max(1),
                Err(Errno::EINTR) => {}
                // The first of them cannot be sent: leave it, go on with the next.
                Err(_) => from += 1,
            }
        }
    }
}
