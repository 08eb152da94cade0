//! An upstream server on loopback, UDP and TCP at one port, that answers by a script and keeps what it was asked.

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket as StdUdpSocket};
use std::sync::Arc;

use hickory_proto::op::{Edns, Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::{Record, RecordType};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::BOUND;

/// What it does with one question.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    Answer(Answer),
    Silence,
    /// These octets, with the id and the question of the query in the place of theirs; over UDP twice, so that what does
    /// not match is answered over TCP at once.
    #[allow(dead_code, reason = "not every test target has use for it")]
    Octets(Vec<u8>),
}

/// One response.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) rcode: ResponseCode,
    pub(crate) records: Vec<Record>,
    pub(crate) authority: Vec<Record>,
    pub(crate) ede: Option<(u16, String)>,
    /// Over UDP: TC and no records.
    pub(crate) truncated: bool,
}

/// One message that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) from: SocketAddr,
    pub(crate) over_tcp: bool,
    pub(crate) message: Vec<u8>,
}

#[derive(Default)]
struct State {
    acts: HashMap<(String, RecordType), Act>,
    seen: Vec<Seen>,
    unscripted: Vec<String>,
}

/// The server.
pub(crate) struct Server {
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    state: Arc<Mutex<State>>,
    /// Asks it whether it has read everything that was sent before.
    probe: StdUdpSocket,
}

/// Shorter than any DNS message: returned as it came, and not counted.
const PROBE: &[u8] = b"probe";

impl Server {
    pub(crate) async fn start(name: String) -> Self {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            // The same port may be taken for TCP.
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let address = udp.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        tokio::spawn(serve_udp(udp, Arc::clone(&state)));
        tokio::spawn(serve_tcp(tcp, Arc::clone(&state)));
        let probe = StdUdpSocket::bind("127.0.0.1:0").unwrap();
        probe.connect(address).unwrap();
        probe.set_read_timeout(Some(BOUND)).unwrap();
        Self { name, address, state, probe }
    }

    /// What to do when asked for `name` (lower case, with its last dot) and `kind`, from now on.
    pub(crate) fn script(&self, name: &str, kind: RecordType, act: Act) {
        self.state.lock().acts.insert((name.to_owned(), kind), act);
    }

    /// Everything that was sent to it so far over UDP and has come over TCP; a datagram that was sent again is there
    /// once.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        // A socket's datagrams come in order: when this one is back, all before it were read.
        self.probe.send(PROBE).unwrap();
        let mut buffer = [0; 16];
        let length = self.probe.recv(&mut buffer).expect("the upstream server lives");
        assert_eq!(&buffer[..length], PROBE);
        self.state.lock().seen.clone()
    }

    /// Questions that no script has an answer to.
    pub(crate) fn unscripted(&self) -> Vec<String> {
        self.state.lock().unscripted.clone()
    }
}

async fn serve_udp(socket: UdpSocket, state: Arc<Mutex<State>>) {
    let mut buffer = [0; 2048];
    while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
        let message = &buffer[..length];
        let reply = if message == PROBE { vec![PROBE.to_vec()] } else { answer(&state, from, false, message) };
        for reply in reply {
            _ = socket.send_to(&reply, from).await;
        }
    }
}

async fn serve_tcp(listener: TcpListener, state: Arc<Mutex<State>>) {
    while let Ok((stream, from)) = listener.accept().await {
        tokio::spawn(serve_stream(stream, from, Arc::clone(&state)));
    }
}

async fn serve_stream(mut stream: TcpStream, from: SocketAddr, state: Arc<Mutex<State>>) {
    while let Ok(length) = stream.read_u16().await {
        let mut message = vec![0; usize::from(length)];
        if stream.read_exact(&mut message).await.is_err() {
            return;
        }
        if let Some(reply) = answer(&state, from, true, &message).into_iter().next() {
            let length = u16::try_from(reply.len()).unwrap().to_be_bytes();
            if stream.write_all(&[&length, reply.as_slice()].concat()).await.is_err() {
                return;
            }
        }
    }
}

/// What is sent, one message after the other.
fn answer(state: &Mutex<State>, from: SocketAddr, over_tcp: bool, message: &[u8]) -> Vec<Vec<u8>> {
    let mut state = state.lock();
    let seen = Seen { from, over_tcp, message: message.to_vec() };
    if !state.seen.contains(&seen) {
        state.seen.push(seen);
    }
    let query = Message::from_vec(message).expect("what goes upstream can be read");
    let question = query.queries.first().expect("a question").clone();
    let key = (question.name().to_lowercase().to_ascii(), question.query_type());
    let act = state.acts.get(&key).cloned();
    let answer = match act {
        Some(Act::Answer(answer)) => answer,
        Some(Act::Silence) => return Vec::new(),
        Some(Act::Octets(octets)) => return vec![as_reply_to(message, octets); 2],
        None => {
            state.unscripted.push(format!("{} {}", key.0, key.1));
            let rcode = ResponseCode::Refused;
            Answer { rcode, records: Vec::new(), authority: Vec::new(), ede: None, truncated: false }
        }
    };
    let mut reply = Message::response(query.metadata.id, OpCode::Query);
    reply.metadata.recursion_desired = true;
    reply.metadata.recursion_available = true;
    reply.metadata.response_code = answer.rcode;
    reply.add_query(question);
    if answer.truncated && !over_tcp {
        reply.metadata.truncation = true;
    } else {
        reply.add_answers(answer.records);
        reply.add_authorities(answer.authority);
    }
    if let Some((code, text)) = answer.ede {
        let mut edns = Edns::new();
        let data = [code.to_be_bytes().as_slice(), text.as_bytes()].concat();
        edns.options_mut().insert(EdnsOption::Unknown(15, data));
        reply.set_edns(edns);
    }
    vec![reply.to_vec().unwrap()]
}

/// `octets` with the id and the question of `query`, as far as they reach.
fn as_reply_to(query: &[u8], mut octets: Vec<u8>) -> Vec<u8> {
    let name = query[12..].iter().position(|octet| *octet == 0).unwrap();
    for range in [0..2, 12..12 + name + 5] {
        for at in range {
            if let Some(octet) = octets.get_mut(at) {
                *octet = query[at];
            }
        }
    }
    octets
}
