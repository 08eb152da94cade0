//! A server on loopback that answers as a test tells it to.

use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;

use super::{ServerSettings, Transport};
use crate::name::Name;
use crate::record::{AddressTrust, Origin, Question, Rcode, Record, RecordType};
use crate::time::Ttl;

/// One message that came to the server.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) from: SocketAddr,
    pub(super) over_tcp: bool,
    pub(super) message: Vec<u8>,
}

/// A server over UDP and TCP at one port; stops when dropped.
pub(super) struct Fake {
    pub(super) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    _tasks: JoinSet<()>,
}

impl Fake {
    /// Answers every message with what `respond` makes of it and of its number from 0.
    pub(super) async fn start(respond: impl Fn(&Seen, usize) -> Vec<Vec<u8>> + Send + Sync + 'static) -> Self {
        let (udp, tcp, address) = bind().await;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let hear = {
            let seen = Arc::clone(&seen);
            Arc::new(move |one: Seen| {
                let number = {
                    let mut seen = seen.lock();
                    seen.push(one.clone());
                    seen.len() - 1
                };
                respond(&one, number)
            })
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(serve_udp(udp, Arc::clone(&hear)));
        tasks.spawn(serve_tcp(tcp, hear));
        Self { address, seen, _tasks: tasks }
    }

    /// Everything that came so far.
    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().clone()
    }

    /// As an upstream's server, asked over UDP.
    pub(super) fn settings(&self) -> ServerSettings {
        ServerSettings { address: self.address, transport: Transport::Udp }
    }
}

async fn bind() -> (UdpSocket, TcpListener, SocketAddr) {
    loop {
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = udp.local_addr().unwrap();
        if let Ok(tcp) = TcpListener::bind(address).await {
            return (udp, tcp, address);
        }
    }
}

type Hear<F> = Arc<F>;

async fn serve_udp<F: Fn(Seen) -> Vec<Vec<u8>>>(socket: UdpSocket, hear: Hear<F>) {
    let mut buffer = [0; 2048];
    while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
        for reply in hear(Seen { from, over_tcp: false, message: buffer[..length].to_vec() }) {
            socket.send_to(&reply, from).await.unwrap();
        }
    }
}

async fn serve_tcp<F: Fn(Seen) -> Vec<Vec<u8>> + Send + Sync + 'static>(listener: TcpListener, hear: Hear<F>) {
    let mut connections = JoinSet::new();
    while let Ok((mut stream, from)) = listener.accept().await {
        let hear = Arc::clone(&hear);
        connections.spawn(async move {
            while let Ok(length) = stream.read_u16().await {
                let mut message = vec![0; usize::from(length)];
                stream.read_exact(&mut message).await.unwrap();
                for reply in hear(Seen { from, over_tcp: true, message }) {
                    // A reply of nothing hangs up.
                    if reply.is_empty() {
                        return;
                    }
                    let length = u16::try_from(reply.len()).unwrap().to_be_bytes();
                    stream.write_all(&[&length, reply.as_slice()].concat()).await.unwrap();
                }
            }
        });
    }
}

/// A port on loopback where nobody listens.
pub(super) async fn closed_port() -> SocketAddr {
    bind().await.2
}

/// A response to `query` with these answers, its question as it was sent.
pub(super) fn response(query: &[u8], rcode: Rcode, answers: &[Record]) -> Vec<u8> {
    let name = query[12..].iter().position(|byte| *byte == 0).unwrap();
    let mut bytes = query[..12 + name + 5].to_vec();
    bytes[2] = 0x81;
    bytes[3] = 0x80 | u8::try_from(rcode.0).unwrap();
    bytes[6..8].copy_from_slice(&u16::try_from(answers.len()).unwrap().to_be_bytes());
    bytes[8..12].fill(0);
    for record in answers {
        bytes.extend_from_slice(record.name.as_wire());
        bytes.extend_from_slice(&record.kind.0.to_be_bytes());
        bytes.extend_from_slice(&[0, 1]);
        bytes.extend_from_slice(&record.ttl.seconds().to_be_bytes());
        bytes.extend_from_slice(&u16::try_from(record.data.len()).unwrap().to_be_bytes());
        bytes.extend_from_slice(&record.data);
    }
    bytes
}

/// [`response`] with one address of the name `www.example.org`.
pub(super) fn good(query: &[u8]) -> Vec<u8> {
    response(query, Rcode::NOERROR, &[address()])
}

/// The address in [`good`].
pub(super) fn address() -> Record {
    Record::of_address(question().name, Ttl::from_wire(60), "198.51.100.7".parse().unwrap())
}

/// What tests ask.
pub(super) fn question() -> Question {
    Question { name: Name::parse("www.example.org").unwrap(), kind: RecordType::A }
}

/// Who answers in tests.
pub(super) fn origin() -> Origin {
    Origin { name: Arc::from("default"), trust: AddressTrust::Upstream(Arc::from([])) }
}

/// `message` with one octet changed.
pub(super) fn changed(mut message: Vec<u8>, at: usize, by: u8) -> Vec<u8> {
    message[at] ^= by;
    message
}
