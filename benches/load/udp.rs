//! Questions over UDP, in batches: from one client with several ports, or from many clients of 127/8.

use std::io::{IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::libc::{in_addr, in_pktinfo};
use nix::sys::socket::{ControlMessage, MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendmmsg};
use outgate::time::{Clock, Tick};
use socket2::{Domain, Protocol, Socket, Type};

use crate::door::{Door, Failure};
use crate::mix::Questions;
use crate::window::{Tally, Window};

/// Datagrams per system call.
const BATCH: usize = 64;

/// The largest answer.
const LARGEST: usize = 1232;

/// The largest query.
const QUERY: usize = 320;

/// The kernel's queue.
const BUFFER: usize = 4 << 20;

/// One socket with its buffers.
#[derive(Debug)]
pub(crate) struct Port {
    socket: Socket,
    /// With many clients the socket is not connected, and each query says where it comes from.
    server: Option<SocketAddrV4>,
    window: Window,
    received: Vec<[u8; LARGEST]>,
    queries: Vec<([u8; QUERY], usize)>,
    receive: MultiHeaders<SockaddrIn>,
    send: MultiHeaders<SockaddrIn>,
}

impl Port {
    pub(crate) fn new(server: SocketAddrV4, many: bool, window: usize) -> Result<Self, Failure> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
        socket.set_recv_buffer_size(BUFFER)?;
        socket.set_send_buffer_size(BUFFER)?;
        if many {
            socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0).into())?;
        } else {
            socket.connect(&server.into())?;
        }
        let control = many.then(|| nix::cmsg_space!(in_pktinfo));
        Ok(Self {
            socket,
            server: many.then_some(server),
            window: Window::new(window),
            received: vec![[0; LARGEST]; BATCH],
            queries: Vec::with_capacity(BATCH),
            receive: MultiHeaders::preallocate(BATCH, None),
            send: MultiHeaders::preallocate(BATCH, control),
        })
    }
}

impl Door for Port {
    fn window(&mut self) -> &mut Window {
        &mut self.window
    }

    fn ask(&mut self, count: usize, questions: &mut Questions, now: Tick) -> Result<usize, Failure> {
        let fd = self.socket.as_raw_fd();
        self.queries.clear();
        for _ in 0..count.min(BATCH).min(self.window.room()) {
            let Some((number, query)) = questions.next() else { break };
            let Some(id) = self.window.take(now) else { break };
            let mut packet = ([0; QUERY], query.len());
            for (to, from) in packet.0.iter_mut().zip(id.to_be_bytes().iter().chain(query.iter().skip(2))) {
                *to = *from;
            }
            self.queries.push(packet);
            if let Some(server) = self.server {
                // One control message serves a whole sendmmsg, so each client's query is a call of its own.
                let source = in_addr { s_addr: u32::from_ne_bytes(client(number).octets()) };
                let info = in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: source, ipi_addr: in_addr { s_addr: 0 } };
                let control = [ControlMessage::Ipv4PacketInfo(&info)];
                let last = self.queries.get(self.queries.len() - 1..).unwrap_or_default();
                send(fd, &mut self.send, last, Some(server.into()), &control)?;
            }
        }
        if self.server.is_none() {
            send(fd, &mut self.send, &self.queries, None, &[])?;
        }
        Ok(self.queries.len())
    }

    fn receive(&mut self, tally: &mut Tally, clock: &Clock) -> Result<(), Failure> {
        loop {
            let mut slices: Vec<[IoSliceMut<'_>; 1]> =
                self.received.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
            let fd = self.socket.as_raw_fd();
            let lengths: Vec<usize> =
                match recvmmsg(fd, &mut self.receive, slices.iter_mut(), MsgFlags::MSG_DONTWAIT, None) {
                    Ok(messages) => messages.map(|message| message.bytes).collect(),
                    Err(Errno::EAGAIN | Errno::EINTR) => return Ok(()),
                    Err(error) => return Err(error.into()),
                };
            let now = clock.tick();
            for (buffer, length) in self.received.iter().zip(&lengths) {
                tally.message(buffer.get(..*length).unwrap_or_default(), &mut self.window, now);
            }
            if lengths.len() < BATCH {
                return Ok(());
            }
        }
    }
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The address of client `number`: 127.1.0.1 and those after it.
fn client(number: u64) -> Ipv4Addr {
    const FIRST: u32 = 0x7f01_0001;
    Ipv4Addr::from_bits(FIRST + u32::try_from(number % 0x00ff_0000).unwrap_or(0))
}

fn send(
    fd: i32,
    headers: &mut MultiHeaders<SockaddrIn>,
    queries: &[([u8; QUERY], usize)],
    to: Option<SockaddrIn>,
    control: &[ControlMessage<'_>],
) -> Result<(), Failure> {
    let slices: Vec<[IoSlice<'_>; 1]> =
        queries.iter().map(|(bytes, length)| [IoSlice::new(bytes.get(..*length).unwrap_or_default())]).collect();
    let to = [to; BATCH];
    let mut rest = slices.as_slice();
    while !rest.is_empty() {
        match sendmmsg(fd, headers, rest, to, control, MsgFlags::empty()) {
            Ok(sent) => rest = rest.get(sent.count().max(1)..).unwrap_or_default(),
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
