//! One attempt at one address, and what was seen of it.
//!
//! ICMP errors are read from the socket's error queue (ip(7), `IP_RECVERR`): it tells an administrator's refusal from a port
//! where nobody listens, and a gateway from the address itself.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt};
use socket2::{Domain, Socket, Type};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::around::{Protocol, Way};
use crate::document::write_duration;
use crate::name::Name;
use crate::record::{Question, RecordType};
use crate::time::Clock;
use crate::wire::encode_query;

/// What was seen of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// The connection was made, after so long.
    Connected(Duration),
    /// A datagram came back, after so long; true: after it was sent again.
    Answered(Duration, Vec<u8>, bool),
    /// A TCP reset.
    Reset,
    /// An ICMP error: what it says, and who sent it where the kernel tells.
    Icmp(&'static str, Option<IpAddr>),
    /// This machine did not let it out.
    KeptHere,
    /// This machine knows no way there.
    NoRoute,
    /// Nothing, for so long.
    Silent(Duration),
    /// It could not be tried.
    Untried(String),
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connected(after) => write!(f, "connected in {}", millis(*after)),
            Self::Answered(after, ..) => write!(f, "answered in {}", millis(*after)),
            Self::Reset => f.write_str("refused by a reset"),
            Self::Icmp(what, Some(from)) => write!(f, "refused: ICMP {what} from {from}"),
            Self::Icmp(what, None) => write!(f, "refused: ICMP {what}"),
            Self::KeptHere => f.write_str("refused by this machine itself"),
            Self::NoRoute => f.write_str("no route from here"),
            Self::Silent(patience) => write!(f, "no answer in {}", write_duration(*patience)),
            Self::Untried(why) => write!(f, "could not be tried: {why}"),
        }
    }
}

/// Milliseconds, for people.
pub(super) fn millis(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1000.0)
}

/// Makes one TCP connection, and closes it.
pub(super) async fn connect(to: SocketAddr, patience: Duration) -> Seen {
    let clock = Clock::system();
    let begun = clock.tick();
    let attempt = async {
        let socket = open(to, Type::STREAM)?;
        match socket.connect(&to.into()) {
            Err(error) if error.raw_os_error() == Some(Errno::EINPROGRESS as i32) => {}
            begun => begun?,
        }
        // Watched only from here on: a socket that was told nothing yet counts as writable.
        let socket = TcpStream::from_std(socket.into())?;
        socket.writable().await?;
        Ok(match socket.take_error()? {
            None => Seen::Connected(clock.tick().since(begun)),
            Some(error) => refusal(socket.as_fd(), &error, Protocol::Tcp),
        })
    };
    ended(timeout(patience, attempt).await, patience)
}

/// Sends one datagram, and the same again after half the time, until one comes back that `is_answer`.
pub(super) async fn exchange(
    to: SocketAddr,
    message: &[u8],
    patience: Duration,
    is_answer: impl Fn(&[u8]) -> bool,
) -> Seen {
    let clock = Clock::system();
    let begun = clock.tick();
    let attempt = async {
        let socket = open(to, Type::DGRAM)?;
        socket.connect(&to.into())?;
        let socket = UdpSocket::from_std(socket.into())?;
        let mut answer = vec![0; usize::from(u16::MAX)];
        for again in [false, true] {
            if let Err(error) = socket.send(message).await {
                return Ok(refusal(socket.as_fd(), &error, Protocol::Udp));
            }
            let heard = async {
                loop {
                    let length = socket.recv(&mut answer).await?;
                    if is_answer(answer.get(..length).unwrap_or_default()) {
                        return Ok::<_, io::Error>(length);
                    }
                }
            };
            match timeout(patience / 2, heard).await {
                Ok(Ok(length)) => {
                    answer.truncate(length);
                    return Ok(Seen::Answered(clock.tick().since(begun), answer, again));
                }
                Ok(Err(error)) => return Ok(refusal(socket.as_fd(), &error, Protocol::Udp)),
                Err(_) => {}
            }
        }
        Ok(Seen::Silent(patience))
    };
    ended(timeout(patience * 2, attempt).await, patience)
}

/// Tries a way around. What is sent asks for nothing that anybody could be told by: the root's name servers, the time, the
/// versions of QUIC.
pub(super) async fn try_way(way: Way, patience: Duration) -> Seen {
    match way.protocol {
        Protocol::Tcp => connect(way.to, patience).await,
        Protocol::Udp => match greeting(way.to.port()) {
            Ok(message) => exchange(way.to, &message, patience, |_| true).await,
            Err(error) => Seen::Untried(error.to_string()),
        },
    }
}

/// A datagram that whoever serves this port answers at once.
pub(super) fn greeting(port: u16) -> Result<Vec<u8>, getrandom::Error> {
    match port {
        53 => {
            let mut message = Vec::new();
            let question = Question { name: Name::root(), kind: RecordType::NS };
            encode_query(&mut message, u16::from_be_bytes(random()?), &question, false, || false);
            Ok(message)
        }
        // RFC 5905 §7.3: version 4, mode 3 (client); what follows may be zero.
        123 => Ok([[0x23].as_slice(), &[0; 47]].concat()),
        _ => versions(),
    }
}

/// A first packet of QUIC whose version nobody has. RFC 9000 §6.1: "If the version selected by the client is not acceptable
/// to the server, the server responds with a Version Negotiation packet", and §14.1: in datagrams of at least 1200 bytes.
fn versions() -> Result<Vec<u8>, getrandom::Error> {
    let (destination, source): ([u8; 8], [u8; 8]) = (random()?, random()?);
    // §15: versions "that follow the pattern 0x?a?a?a?a are reserved for use in forcing version negotiation".
    let mut packet = [&[0xc0, 0x1a, 0x2a, 0x3a, 0x4a, 8], destination.as_slice(), &[8], &source].concat();
    packet.resize(1200, 0);
    Ok(packet)
}

/// So many octets that nobody can guess.
pub(super) fn random<const N: usize>() -> Result<[u8; N], getrandom::Error> {
    let mut octets = [0; N];
    getrandom::fill(&mut octets)?;
    Ok(octets)
}

fn open(to: SocketAddr, kind: Type) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(to), kind, None)?;
    socket.set_nonblocking(true)?;
    // A kernel without it leaves only the error's number.
    let _ = match to {
        SocketAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4RecvErr, &true),
        SocketAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvErr, &true),
    };
    Ok(socket)
}

/// What an attempt came to that ended by itself, by an error of this machine's, or not in time.
fn ended(attempt: Result<io::Result<Seen>, tokio::time::error::Elapsed>, patience: Duration) -> Seen {
    match attempt {
        Ok(Ok(seen)) => seen,
        Ok(Err(error)) => local(&error),
        Err(_) => Seen::Silent(patience),
    }
}

/// An error of this machine's, before anything left it.
fn local(error: &io::Error) -> Seen {
    match error.raw_os_error().map(Errno::from_raw) {
        // Without any address of that family, or without that family.
        Some(Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EADDRNOTAVAIL | Errno::EAFNOSUPPORT) => Seen::NoRoute,
        Some(Errno::EPERM | Errno::EACCES) => Seen::KeptHere,
        _ => Seen::Untried(error.to_string()),
    }
}

/// An error that came over the network, or not.
fn refusal(socket: BorrowedFd<'_>, error: &io::Error, protocol: Protocol) -> Seen {
    if let Some((what, from)) = queued(socket) {
        return Seen::Icmp(what, from);
    }
    match (error.raw_os_error().map(Errno::from_raw), protocol) {
        (Some(Errno::ECONNREFUSED | Errno::ECONNRESET), Protocol::Tcp) => Seen::Reset,
        (Some(Errno::ECONNREFUSED), Protocol::Udp) => Seen::Icmp("port unreachable", None),
        _ => local(error),
    }
}

/// The ICMP error that waits in a socket's queue: what it says, and who sent it.
fn queued(socket: BorrowedFd<'_>) -> Option<(&'static str, Option<IpAddr>)> {
    const ORIGIN_ICMP: u8 = nix::libc::SO_EE_ORIGIN_ICMP;
    const ORIGIN_ICMP6: u8 = nix::libc::SO_EE_ORIGIN_ICMP6;
    let mut control = nix::cmsg_space!(nix::libc::sock_extended_err, nix::libc::sockaddr_in6);
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut [], Some(&mut control), flags).ok()?;
    message.cmsgs().ok()?.find_map(|control| match control {
        ControlMessageOwned::Ipv4RecvErr(error, from) if error.ee_origin == ORIGIN_ICMP => {
            let from = from.map(|from| IpAddr::V4(Ipv4Addr::from(from.sin_addr.s_addr.to_ne_bytes())));
            Some((four(error.ee_type, error.ee_code), from))
        }
        ControlMessageOwned::Ipv6RecvErr(error, from) if error.ee_origin == ORIGIN_ICMP6 => {
            let from = from.map(|from| IpAddr::V6(Ipv6Addr::from(from.sin6_addr.s6_addr)));
            Some((six(error.ee_type, error.ee_code), from))
        }
        _ => None,
    })
}

/// The words of RFC 792 and RFC 1812 §5.2.7.1.
const fn four(kind: u8, code: u8) -> &'static str {
    match (kind, code) {
        (3, 0) => "network unreachable",
        (3, 1) => "host unreachable",
        (3, 2) => "protocol unreachable",
        (3, 3) => "port unreachable",
        (3, 9 | 10 | 13) => "administratively prohibited",
        (11, _) => "time exceeded",
        _ => "error",
    }
}

/// The words of RFC 4443 §3.1.
const fn six(kind: u8, code: u8) -> &'static str {
    match (kind, code) {
        (1, 0) => "no route",
        (1, 1) => "administratively prohibited",
        (1, 3) => "address unreachable",
        (1, 4) => "port unreachable",
        (1, 5 | 6) => "refused by policy",
        (3, _) => "time exceeded",
        _ => "error",
    }
}
