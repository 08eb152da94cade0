//! A small DNS client.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::{Name, RData, RecordType};

use crate::harness::BOUND;

/// A query with RD and without EDNS; ids are not used twice within 65,536.
pub(crate) fn query(name: &str, kind: RecordType) -> Message {
    static ID: AtomicU16 = AtomicU16::new(1);
    let mut message = Message::query();
    message.metadata.id = ID.fetch_add(1, Ordering::Relaxed);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

/// A query for an A record.
pub(crate) fn a(name: &str) -> Message {
    query(name, RecordType::A)
}

/// With an OPT record of this size.
pub(crate) fn with_edns(mut message: Message, size: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(size);
    message.set_edns(edns);
    message
}

/// A UDP socket that asks one server.
pub(crate) struct Client {
    pub(crate) socket: UdpSocket,
}

impl Client {
    pub(crate) fn new(server: SocketAddr) -> Self {
        let local: IpAddr = if server.is_ipv4() { [127, 0, 0, 1].into() } else { "::1".parse().unwrap() };
        Self::from(local, server)
    }

    /// A client of this address. Replies from another address than the one asked never reach it.
    pub(crate) fn from(local: IpAddr, server: SocketAddr) -> Self {
        let socket = UdpSocket::bind((local, 0)).unwrap();
        socket.connect(server).unwrap();
        socket.set_read_timeout(Some(BOUND)).unwrap();
        Self { socket }
    }

    /// Waits for replies no longer than this.
    pub(crate) fn patience(self, patience: Duration) -> Self {
        self.socket.set_read_timeout(Some(patience)).unwrap();
        self
    }

    /// The next datagram.
    pub(crate) fn receive(&self) -> Option<Vec<u8>> {
        let mut buffer = [0; 65_536];
        self.socket.recv(&mut buffer).ok().map(|length| buffer[..length].to_vec())
    }

    /// The reply with the packet's id.
    pub(crate) fn exchange(&self, packet: &[u8]) -> Option<Vec<u8>> {
        self.socket.send(packet).ok()?;
        loop {
            let reply = self.receive()?;
            if reply.get(..2) == packet.get(..2) {
                return Some(reply);
            }
        }
    }

    /// The reply to a question, or `None`: nobody answered.
    pub(crate) fn ask(&self, message: &Message) -> Option<Message> {
        let reply = self.exchange(&message.to_vec().unwrap())?;
        Some(Message::from_vec(&reply).unwrap())
    }

    /// Asks for A records and must be told something.
    pub(crate) fn told(&self, name: &str) -> Message {
        self.ask(&a(name)).unwrap_or_else(|| panic!("no answer for {name}"))
    }
}

/// A connection.
pub(crate) struct Stream<S = TcpStream>(pub(crate) S);

impl Stream {
    pub(crate) fn new(server: SocketAddr) -> Self {
        Self::connect(server).unwrap()
    }

    /// As a client of this address: each has connections of its own.
    pub(crate) fn from(local: [u8; 4], server: SocketAddr) -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((local, 0)).into()).unwrap();
        socket.connect(&server.into()).unwrap();
        socket.set_read_timeout(Some(BOUND)).unwrap();
        Self(socket.into())
    }

    /// An error: nobody listens there, or not any more.
    pub(crate) fn connect(server: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect(server)?;
        stream.set_read_timeout(Some(BOUND))?;
        Ok(Self(stream))
    }
}

impl<S: Read + Write> Stream<S> {
    pub(crate) fn send(&mut self, message: &[u8]) {
        self.0.write_all(&framed(message)).unwrap();
    }

    /// The next message; `None`: the connection has ended.
    pub(crate) fn receive(&mut self) -> Option<Vec<u8>> {
        let mut length = [0; 2];
        self.0.read_exact(&mut length).ok()?;
        let mut message = vec![0; u16::from_be_bytes(length).into()];
        self.0.read_exact(&mut message).unwrap();
        Some(message)
    }

    pub(crate) fn ask(&mut self, message: &Message) -> Message {
        self.send(&message.to_vec().unwrap());
        Message::from_vec(&self.receive().unwrap()).unwrap()
    }
}

/// A message behind its length.
pub(crate) fn framed(message: &[u8]) -> Vec<u8> {
    [&u16::try_from(message.len()).unwrap().to_be_bytes(), message].concat()
}

/// The response code.
pub(crate) fn code(reply: &Message) -> ResponseCode {
    reply.metadata.response_code
}

/// The addresses of the answer section.
pub(crate) fn addresses(reply: &Message) -> Vec<String> {
    let addresses = reply.answers.iter().filter_map(|record| match &record.data {
        RData::A(address) => Some(address.to_string()),
        RData::AAAA(address) => Some(address.to_string()),
        _ => None,
    });
    addresses.collect()
}

/// The code of the extended error (RFC 8914).
pub(crate) fn extended_error(reply: &Message) -> Option<u16> {
    match reply.edns.as_ref()?.option(EdnsCode::from(15))? {
        EdnsOption::Unknown(_, data) => Some(u16::from_be_bytes([*data.first()?, *data.get(1)?])),
        _ => None,
    }
}
