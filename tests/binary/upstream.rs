//! An upstream server on loopback that counts what it is asked.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use hickory_proto::op::Message;
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record, RecordType};

use crate::dns::framed;
use crate::harness::{free_port, loopback};

/// How often a thread looks whether it may end.
const LOOK: Duration = Duration::from_millis(20);

/// Answers every A question with 198.51.100.7, over UDP and TCP.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    asked: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// What an upstream says to a question, which came over UDP or (`true`) over TCP; `None`: nothing.
type Says = dyn Fn(&Message, bool) -> Option<Vec<u8>> + Send + Sync;

impl Upstream {
    pub(crate) fn start() -> Self {
        Self::saying(|question| Some(with_addresses(question, 1)))
    }

    /// Answers nothing.
    pub(crate) fn silent() -> Self {
        Self::saying(|_| None)
    }

    pub(crate) fn saying(says: impl Fn(&Message) -> Option<Message> + Send + Sync + 'static) -> Self {
        Self::octets(loopback(free_port()), move |question, _| Some(says(question)?.to_vec().unwrap()))
    }

    /// Says these octets, at this address.
    pub(crate) fn octets(
        address: SocketAddr,
        says: impl Fn(&Message, bool) -> Option<Vec<u8>> + Send + Sync + 'static,
    ) -> Self {
        let (udp, tcp) = (UdpSocket::bind(address).unwrap(), TcpListener::bind(address).unwrap());
        let (asked, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let says: Arc<Says> = Arc::new(says);
        let threads = vec![
            {
                let (asked, stop, says) = (Arc::clone(&asked), Arc::clone(&stop), Arc::clone(&says));
                std::thread::spawn(move || serve_udp(&udp, &asked, &stop, &says))
            },
            {
                let (asked, stop) = (Arc::clone(&asked), Arc::clone(&stop));
                std::thread::spawn(move || serve_tcp(&tcp, &asked, &stop, &says))
            },
        ];
        Self { address, asked, stop, threads }
    }

    /// How many questions came.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The reply with this many addresses: 198.51.100.7 and on.
pub(crate) fn with_addresses(question: &Message, count: u8) -> Message {
    let asked = question.queries[0].clone();
    let mut reply = Message::response(question.metadata.id, question.metadata.op_code);
    reply.metadata.recursion_desired = true;
    reply.metadata.recursion_available = true;
    if asked.query_type() == RecordType::A {
        for number in 0..count {
            let address = RData::A(A::new(198, 51, 100, 7 + number));
            reply.add_answer(Record::from_rdata(asked.name().clone(), 60, address));
        }
    }
    reply.add_query(asked);
    reply
}

fn serve_udp(socket: &UdpSocket, asked: &AtomicUsize, stop: &AtomicBool, says: &Arc<Says>) {
    socket.set_read_timeout(Some(LOOK)).unwrap();
    let mut buffer = [0; 4096];
    while !stop.load(Ordering::SeqCst) {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        asked.fetch_add(1, Ordering::SeqCst);
        let question = Message::from_vec(&buffer[..length]).unwrap();
        let (socket, says) = (socket.try_clone().unwrap(), Arc::clone(says));
        // A thread each: one that is slow holds nobody else up.
        std::thread::spawn(move || {
            if let Some(reply) = says(&question, false) {
                let _ = socket.send_to(&reply, from);
            }
        });
    }
}

fn serve_tcp(listener: &TcpListener, asked: &AtomicUsize, stop: &AtomicBool, says: &Arc<Says>) {
    listener.set_nonblocking(true).unwrap();
    std::thread::scope(|scope| {
        while !stop.load(Ordering::SeqCst) {
            match listener.accept() {
                Ok((stream, _)) => {
                    scope.spawn(|| serve_connection(stream, asked, says));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(LOOK),
                Err(error) => panic!("{error}"),
            }
        }
    });
}

fn serve_connection(mut stream: TcpStream, asked: &AtomicUsize, says: &Arc<Says>) {
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut length = [0; 2];
    while stream.read_exact(&mut length).is_ok() {
        let mut question = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut question).unwrap();
        asked.fetch_add(1, Ordering::SeqCst);
        if let Some(reply) = says(&Message::from_vec(&question).unwrap(), true) {
            let _ = stream.write_all(&framed(&reply));
        }
    }
}
