//! The ceiling of `bench/run`: a UDP server that does nothing but receive and send. Each datagram goes back with its QR
//! bit set, so that it passes for an answer. What it costs per packet is what the kernel's own receive and send cost;
//! a server that costs 1.3 times as much spends 0.3 on everything else.
//!
//! `echo ADDRESS:PORT`: one thread, batches of 64, until it is killed.

use std::io::{IoSlice, IoSliceMut};
use std::net::SocketAddrV4;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendmmsg};
use socket2::{Domain, Protocol, Socket, Type};

/// Datagrams per system call, as in src/serve/udp.
const BATCH: usize = 64;

/// The largest datagram read whole, as in src/serve/udp.
const LARGEST: usize = 2048;

/// The kernel's queue, as in src/serve/udp.
const BUFFER: usize = 4 << 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).ok_or("usage: echo ADDRESS:PORT")?;
    let address: SocketAddrV4 = address.parse().map_err(|_| format!("{address} is not an IPv4 address and port"))?;
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_recv_buffer_size(BUFFER)?;
    socket.set_send_buffer_size(BUFFER)?;
    socket.bind(&address.into())?;
    serve(&socket)?;
    Ok(())
}

fn serve(socket: &Socket) -> nix::Result<()> {
    let fd = socket.as_raw_fd();
    let mut buffers = vec![[0_u8; LARGEST]; BATCH];
    let mut receive: MultiHeaders<SockaddrIn> = MultiHeaders::preallocate(BATCH, None);
    let mut send: MultiHeaders<SockaddrIn> = MultiHeaders::preallocate(BATCH, None);
    let mut peers: Vec<Option<SockaddrIn>> = Vec::with_capacity(BATCH);
    let mut lengths: Vec<usize> = Vec::with_capacity(BATCH);
    loop {
        peers.clear();
        lengths.clear();
        let mut slices: Vec<[IoSliceMut<'_>; 1]> = buffers.iter_mut().map(|b| [IoSliceMut::new(b)]).collect();
        // Sleeps for the first packet, then takes what is there: one system call where poll and receive are two.
        match recvmmsg(fd, &mut receive, slices.iter_mut(), MsgFlags::MSG_WAITFORONE, None) {
            Ok(messages) => {
                for message in messages {
                    peers.push(message.address);
                    lengths.push(message.bytes);
                }
            }
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error),
        }
        for buffer in buffers.iter_mut().take(lengths.len()) {
            if let Some(flags) = buffer.get_mut(2) {
                *flags |= 0x80;
            }
        }
        let packets = buffers.iter().zip(&lengths).filter_map(|(buffer, length)| buffer.get(..*length));
        let slices: Vec<[IoSlice<'_>; 1]> = packets.map(|packet| [IoSlice::new(packet)]).collect();
        let none: &[ControlMessage<'_>] = &[];
        let mut first = 0;
        while let (Some(slices), Some(peers)) = (slices.get(first..), peers.get(first..)) {
            if slices.is_empty() {
                break;
            }
            // What cannot be sent is lost, as any datagram may be.
            first += sendmmsg(fd, &mut send, slices, peers, none, MsgFlags::empty()).map_or(1, Iterator::count).max(1);
        }
    }
}
