//! Many questions at once over one socket, and replies read by a reader that shares no code with the program.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};

use crate::dns::framed;
use crate::harness::BOUND;

/// Fewer than a client may have waiting; as many replies fit into the socket's buffer, so that none is lost.
const WINDOW: usize = 64;
/// Queries of one connection: each has an id of its own.
const CONNECTION: usize = 16_384;

/// A name in wire form and a type.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Question {
    pub(super) name: Vec<u8>,
    pub(super) kind: u16,
}

/// One record, its names expanded and in lower case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Record {
    pub(super) owner: Vec<u8>,
    pub(super) kind: u16,
    pub(super) ttl: u32,
    pub(super) data: Vec<u8>,
}

#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub(super) rcode: u8,
    pub(super) flags: u16,
    pub(super) length: usize,
    pub(super) answers: Vec<Record>,
    /// The first SOA of the authority section.
    pub(super) soa: Option<Record>,
}

impl Reply {
    pub(super) fn truncated(&self) -> bool {
        self.flags & 0x0200 != 0
    }
}

/// A query with RD and an OPT record of 4,096 octets.
fn query(id: u16, question: &Question) -> Vec<u8> {
    let mut packet = [&id.to_be_bytes()[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 1], &question.name].concat();
    packet.extend_from_slice(&question.kind.to_be_bytes());
    packet.extend_from_slice(&[0, 1, 0, 0, 41, 0x10, 0, 0, 0, 0, 0, 0, 0]);
    packet
}

/// Asks all over UDP; the replies in the order of the questions.
pub(super) fn over_udp(server: SocketAddr, questions: &[Question]) -> Vec<Reply> {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(server).unwrap();
    socket.set_read_timeout(Some(BOUND)).unwrap();
    let mut replies: Vec<Option<Reply>> = vec![None; questions.len()];
    let mut waiting: HashMap<u16, usize> = HashMap::new();
    let (mut next, mut buffer) = (0, [0; 65_536]);
    while next < questions.len() || !waiting.is_empty() {
        while next < questions.len() && waiting.len() < WINDOW {
            let id = u16::try_from(next % 65_536).unwrap();
            assert!(waiting.insert(id, next).is_none(), "one of the last 65,536 is still unanswered");
            socket.send(&query(id, &questions[next])).unwrap();
            next += 1;
        }
        let length = socket.recv(&mut buffer).unwrap_or_else(|error| panic!("{error}: no answer to {waiting:?}"));
        let at = waiting.remove(&u16::from_be_bytes([buffer[0], buffer[1]])).unwrap();
        replies[at] = Some(read(&buffer[..length], &questions[at]));
    }
    replies.into_iter().map(Option::unwrap).collect()
}

/// Asks all over TCP; the replies in the order of the questions.
pub(super) fn over_tcp(server: SocketAddr, questions: &[Question]) -> Vec<Reply> {
    questions.chunks(CONNECTION).flat_map(|chunk| over_connection(server, chunk)).collect()
}

fn over_connection(server: SocketAddr, questions: &[Question]) -> Vec<Reply> {
    let stream = TcpStream::connect(server).unwrap();
    stream.set_read_timeout(Some(BOUND)).unwrap();
    let mut replies: Vec<Option<Reply>> = vec![None; questions.len()];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let packet = |(id, question)| framed(&query(u16::try_from(id).unwrap(), question));
            for some in questions.iter().enumerate().map(packet).collect::<Vec<_>>().chunks(64) {
                (&stream).write_all(&some.concat()).unwrap();
            }
        });
        let mut reader = std::io::BufReader::with_capacity(1 << 16, &stream);
        for _ in 0..questions.len() {
            let mut length = [0; 2];
            reader.read_exact(&mut length).unwrap();
            let mut packet = vec![0; u16::from_be_bytes(length).into()];
            reader.read_exact(&mut packet).unwrap();
            let at = usize::from(u16::from_be_bytes([packet[0], packet[1]]));
            assert!(replies[at].replace(read(&packet, &questions[at])).is_none(), "{:?} twice", questions[at]);
        }
    });
    replies.into_iter().map(Option::unwrap).collect()
}

/// Reads a reply, which must repeat the question octet by octet.
fn read(packet: &[u8], question: &Question) -> Reply {
    let number = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    let asked = [&question.name, &question.kind.to_be_bytes()[..], &[0, 1]].concat();
    assert_eq!(packet[12..12 + asked.len()], asked, "another question in the reply");
    assert_eq!((number(2) & 0xf900, number(4)), (0x8100, 1), "QR, opcode, RD, one question: {question:?}");
    let mut at = 12 + asked.len();
    let answers = (0..number(6)).map(|_| record(packet, &mut at)).collect();
    let authority: Vec<Record> = (0..number(8)).map(|_| record(packet, &mut at)).collect();
    (0..number(10)).for_each(|_| drop(record(packet, &mut at)));
    assert_eq!(at, packet.len(), "octets behind the reply to {question:?}");
    let soa = authority.into_iter().find(|record| record.kind == 6);
    Reply { rcode: packet[3] & 15, flags: number(2), length: packet.len(), answers, soa }
}

fn record(packet: &[u8], at: &mut usize) -> Record {
    let owner = name(packet, at);
    let number = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    let (kind, ttl, length) =
        (number(*at), u32::from(number(*at + 4)) << 16 | u32::from(number(*at + 6)), number(*at + 8));
    let mut from = *at + 10;
    *at = from + usize::from(length);
    let mut data = Vec::new();
    // How many octets stand before the names, and how many names there are.
    let (before, names) = match kind {
        2 | 5 | 12 | 39 => (0, 1),
        6 => (0, 2),
        15 => (2, 1),
        33 => (6, 1),
        _ => (0, 0),
    };
    data.extend_from_slice(&packet[from..from + before]);
    from += before;
    (0..names).for_each(|_| data.extend(name(packet, &mut from)));
    data.extend_from_slice(&packet[from..*at]);
    Record { owner, kind, ttl, data }
}

/// The name at `at`, which is moved behind it; in lower case, without pointers.
fn name(packet: &[u8], at: &mut usize) -> Vec<u8> {
    let (mut name, mut from, mut jumped) = (Vec::new(), *at, false);
    loop {
        let length = packet[from];
        let label = from + 1..from + 1 + usize::from(length);
        match length {
            0xc0.. => {
                if !jumped {
                    *at = from + 2;
                }
                let to = usize::from(u16::from_be_bytes([length & 0x3f, packet[from + 1]]));
                assert!(to < from, "a pointer leads forward");
                (from, jumped) = (to, true);
            }
            _ => {
                name.push(length);
                name.extend(packet[label.clone()].to_ascii_lowercase());
                from = label.end;
                if !jumped {
                    *at = from;
                }
                if length == 0 {
                    return name;
                }
            }
        }
    }
}
