//! Connections over memory pipes where only time matters (paused), over loopback where the kernel does.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf, duplex};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::{Caller, Ending, Frames, Limits, Round, Speech, Standing, StreamGate, Streams, connection, serve};
use crate::audit::Transport;
use crate::gate::Said;

const PEER: ([u8; 4], u16) = ([192, 0, 2, 1], 40_000);
/// Nothing on loopback takes this long; it only bounds a test that fails.
const BOUND: Duration = Duration::from_secs(20);

/// Echoes; `h…` is held until a permit comes, `s…` meets silence, `b…` is answered with 65,535 bytes.
struct Echo {
    forwarders: Vec<IpAddr>,
    proxies: Vec<IpAddr>,
    held: Semaphore,
    begun: AtomicUsize,
    done: AtomicUsize,
}

impl Echo {
    fn new(forwarders: &[&str]) -> Arc<Self> {
        let forwarders = forwarders.iter().map(|address| address.parse().unwrap()).collect();
        let proxies = vec![[127, 0, 0, 53].into()];
        Arc::new(Self {
            forwarders,
            proxies,
            held: Semaphore::new(0),
            begun: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
        })
    }

    /// The octets of the reply.
    fn tell(&self, packet: &[u8], round: &mut Round<Vec<u8>>) -> usize {
        self.done.fetch_add(1, SeqCst);
        let long = [b'b'; 65_535];
        match packet[0] {
            b's' => return 0,
            b'b' => round.reply(&long),
            _ => round.reply(packet),
        }
        if packet[0] == b'b' { long.len() } else { packet.len() }
    }
}

impl StreamGate for Echo {
    type Job = Vec<u8>;
    type Finished = Vec<u8>;

    fn standing(&self, peer: IpAddr) -> Standing {
        if self.forwarders.contains(&peer) { Standing::Forwarder } else { Standing::Client }
    }

    fn takes_proxy(&self, peer: IpAddr) -> bool {
        self.proxies.contains(&peer)
    }

    fn answer(&self, frames: &mut Frames, caller: &Caller, round: &mut Round<Vec<u8>>) {
        let mut ready = 0;
        while !round.is_full(ready)
            && let Some(packet) = frames.take()
        {
            self.begun.fetch_add(1, SeqCst);
            if packet == b"who" {
                round.reply(format!("{:?}", caller.said).as_bytes());
            } else if packet[0] == b'h' {
                round.wait(packet.to_vec());
            } else {
                ready += self.tell(packet, round);
            }
        }
    }

    async fn wait(&self, job: Vec<u8>) -> Vec<u8> {
        self.held.acquire().await.unwrap().forget();
        job
    }

    fn finish(&self, finished: Vec<Vec<u8>>, round: &mut Round<Vec<u8>>) {
        for packet in finished {
            self.tell(&packet, round);
        }
    }
}

fn framed(message: &[u8]) -> Vec<u8> {
    [&u16::try_from(message.len()).unwrap().to_be_bytes()[..], message].concat()
}

async fn receive<S: AsyncRead + Unpin>(stream: &mut S) -> Vec<u8> {
    let length = timeout(BOUND, stream.read_u16()).await.expect("an answer in time").expect("an answer");
    let mut message = vec![0; usize::from(length)];
    timeout(BOUND, stream.read_exact(&mut message)).await.unwrap().unwrap();
    message
}

/// Everything up to the end of the stream, however it ends.
async fn rest<S: AsyncRead + Unpin>(stream: &mut S) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = timeout(BOUND, stream.read_to_end(&mut bytes)).await.expect("the connection is closed in time");
    bytes
}

/// Polls until the fact, bounded.
async fn until(what: &str, fact: impl Fn() -> bool) {
    let deadline = Instant::now() + BOUND;
    while !fact() {
        assert!(Instant::now() < deadline, "{what}: not within {BOUND:?}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn caller() -> Caller {
    Caller { peer: PEER.into(), transport: Transport::Tcp, said: Said::Nothing }
}

/// One connection over a memory pipe.
struct Pipe {
    client: DuplexStream,
    gate: Arc<Echo>,
    stop: watch::Sender<bool>,
    ended: JoinHandle<Ending>,
}

fn pipe(capacity: usize) -> Pipe {
    let (client, server) = duplex(capacity);
    let (stop, stopping) = watch::channel(false);
    let gate = Echo::new(&[]);
    let of_server = Arc::clone(&gate);
    let ended =
        tokio::spawn(async move { connection::run(server, &caller(), &of_server, &Limits::default(), stopping).await });
    Pipe { client, gate, stop, ended }
}

#[tokio::test(start_paused = true)]
async fn without_a_query_it_ends_after_the_idle_time() {
    let start = Instant::now();
    let mut pipe = pipe(1024);
    assert_eq!(rest(&mut pipe.client).await, b"");
    assert_eq!(pipe.ended.await.unwrap(), Ending::Idle);
    assert_eq!(start.elapsed().as_secs(), 10);
}

#[tokio::test(start_paused = true)]
async fn an_answer_begins_the_idle_time_anew() {
    let start = Instant::now();
    let mut pipe = pipe(1024);
    for _ in 0..3 {
        tokio::time::advance(Duration::from_secs(9)).await;
        pipe.client.write_all(&framed(b"x")).await.unwrap();
        assert_eq!(receive(&mut pipe.client).await, b"x");
    }
    assert_eq!(rest(&mut pipe.client).await, b"");
    assert_eq!(pipe.ended.await.unwrap(), Ending::Idle);
    assert_eq!(start.elapsed().as_secs(), 37);
}

#[tokio::test(start_paused = true)]
async fn waiting_for_an_answer_is_not_idle() {
    let mut pipe = pipe(1024);
    pipe.client.write_all(&framed(b"held")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    pipe.gate.held.add_permits(1);
    assert_eq!(receive(&mut pipe.client).await, b"held");
    pipe.client.write_all(&framed(b"more")).await.unwrap();
    assert_eq!(receive(&mut pipe.client).await, b"more");
}

#[tokio::test(start_paused = true)]
async fn a_message_that_trickles_in_ends_it() {
    for first in [&[0_u8][..], &[0, 9], &[0, 9, b'x']] {
        let start = Instant::now();
        let pipe = pipe(1024);
        let (mut reader, mut writer) = tokio::io::split(pipe.client);
        writer.write_all(first).await.unwrap();
        let trickle = tokio::spawn(async move {
            // One byte a second is progress, and not enough.
            for byte in [b'x'; 5] {
                tokio::time::sleep(Duration::from_millis(999)).await;
                if writer.write_all(&[byte]).await.is_err() {
                    break;
                }
            }
        });
        if first == [0] {
            trickle.abort();
        }
        assert_eq!(rest(&mut reader).await, b"");
        assert_eq!(pipe.ended.await.unwrap(), Ending::Partial);
        assert_eq!(start.elapsed().as_secs(), 3);
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_reads_is_cut_and_its_queries_still_decided() {
    let start = Instant::now();
    let mut pipe = pipe(512);
    pipe.client.write_all(&[framed(b"held"), framed(b"b"), framed(b"held")].concat()).await.unwrap();
    until("all begun", || pipe.gate.begun.load(SeqCst) == 3).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!pipe.ended.is_finished(), "the seat is kept while queries run");
    pipe.gate.held.add_permits(2);
    assert_eq!(pipe.ended.await.unwrap(), Ending::Stalled);
    assert_eq!(pipe.gate.done.load(SeqCst), 3);
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn answers_leave_as_they_are_ready() {
    let mut pipe = pipe(1024);
    pipe.client.write_all(&[framed(b"held"), framed(b"s"), framed(b"x"), framed(b"y")].concat()).await.unwrap();
    let mut quick = [receive(&mut pipe.client).await, receive(&mut pipe.client).await];
    quick.sort();
    assert_eq!(quick, [b"x", b"y"], "silence answers nothing and holds up nothing");
    pipe.gate.held.add_permits(1);
    assert_eq!(receive(&mut pipe.client).await, b"held");
}

/// A stream that counts the writes to it.
struct Counting {
    stream: DuplexStream,
    writes: Arc<AtomicUsize>,
}

impl AsyncRead for Counting {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Counting {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.writes.fetch_add(1, SeqCst);
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[tokio::test(start_paused = true)]
async fn what_came_together_is_answered_in_one_write() {
    let (mut client, server) = duplex(64 * 1024);
    let writes = Arc::new(AtomicUsize::new(0));
    let stream = Counting { stream: server, writes: Arc::clone(&writes) };
    let (_stop, stopping) = watch::channel(false);
    let gate = Echo::new(&[]);
    tokio::spawn(async move { connection::run(stream, &caller(), &gate, &Limits::default(), stopping).await });
    let queries: Vec<u8> = (0..50_u8).flat_map(|n| framed(&[b'x', n])).collect();
    client.write_all(&queries).await.unwrap();
    for n in 0..50 {
        assert_eq!(receive(&mut client).await, [b'x', n]);
    }
    assert_eq!(writes.load(SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn no_more_than_sixteen_are_in_flight() {
    let mut pipe = pipe(64 * 1024);
    let queries = (0..40_u8).flat_map(|n| framed(&[b'h', n])).collect::<Vec<_>>();
    pipe.client.write_all(&queries).await.unwrap();
    // Paused time moves only when every task waits: by then all that would begin has begun.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(pipe.gate.begun.load(SeqCst), 16);
    pipe.gate.held.add_permits(40);
    let mut answered = Vec::new();
    for _ in 0..40 {
        answered.push(receive(&mut pipe.client).await[1]);
    }
    answered.sort_unstable();
    assert_eq!(answered, (0..40).collect::<Vec<u8>>());
}

#[tokio::test(start_paused = true)]
async fn a_half_closed_connection_gets_its_answers() {
    let mut pipe = pipe(1024);
    pipe.client.write_all(&[framed(b"held"), framed(b"x"), vec![0]].concat()).await.unwrap();
    pipe.client.shutdown().await.unwrap();
    assert_eq!(receive(&mut pipe.client).await, b"x");
    pipe.gate.held.add_permits(1);
    assert_eq!(rest(&mut pipe.client).await, framed(b"held"));
    assert_eq!(pipe.ended.await.unwrap(), Ending::Peer);
}

#[tokio::test(start_paused = true)]
async fn a_bad_length_ends_it_after_the_answers() {
    for (bad, ending) in [(&[0_u8, 0][..], Ending::Empty), (&[0x10, 0x01, b'x'], Ending::Oversize)] {
        let mut pipe = pipe(1024);
        pipe.client.write_all(&[&framed(b"held"), bad, &framed(b"never")].concat()).await.unwrap();
        until("begun", || pipe.gate.begun.load(SeqCst) == 1).await;
        pipe.gate.held.add_permits(1);
        assert_eq!(rest(&mut pipe.client).await, framed(b"held"));
        assert_eq!(pipe.ended.await.unwrap(), ending);
        assert_eq!(pipe.gate.begun.load(SeqCst), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn the_longest_message_is_taken() {
    let mut pipe = pipe(16 * 1024);
    let longest = vec![b'x'; 4_096];
    pipe.client.write_all(&framed(&longest)).await.unwrap();
    assert_eq!(receive(&mut pipe.client).await, longest);
}

#[tokio::test(start_paused = true)]
async fn stopping_finishes_what_is_in_flight() {
    let mut pipe = pipe(1024);
    pipe.client.write_all(&framed(b"held")).await.unwrap();
    until("begun", || pipe.gate.begun.load(SeqCst) == 1).await;
    pipe.stop.send(true).unwrap();
    tokio::time::sleep(Duration::from_millis(1)).await;
    pipe.client.write_all(&framed(b"late")).await.unwrap();
    pipe.gate.held.add_permits(1);
    assert_eq!(rest(&mut pipe.client).await, framed(b"held"));
    assert_eq!(pipe.ended.await.unwrap(), Ending::Stopped);
    assert_eq!(pipe.gate.begun.load(SeqCst), 1);
}

/// A door on loopback.
struct Door {
    address: SocketAddr,
    gate: Arc<Echo>,
    streams: Arc<Streams>,
    stop: watch::Sender<bool>,
    served: JoinHandle<()>,
}

async fn door(limits: Limits, forwarders: &[&str]) -> Door {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopping) = watch::channel(false);
    let gate = Echo::new(forwarders);
    let streams = Streams::new(limits);
    let served = tokio::spawn(serve(listener, Speech::Tcp, Arc::clone(&gate), Arc::clone(&streams), stopping));
    Door { address, gate, streams, stop, served }
}

impl Door {
    /// Connects from an address of loopback's /8: each is another client.
    async fn connect(&self, from: [u8; 4]) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((from, 0).into()).unwrap();
        timeout(BOUND, socket.connect(self.address)).await.unwrap().unwrap()
    }

    fn ended(&self, ending: Ending) -> u64 {
        self.streams.endings().find(|(each, _)| *each == ending).unwrap().1
    }
}

#[tokio::test]
async fn two_byte_writes_are_put_together() {
    let door = door(Limits::default(), &[]).await;
    let mut client = door.connect([127, 0, 0, 1]).await;
    client.set_nodelay(true).unwrap();
    let bytes = [framed(b"first message"), framed(b"next")].concat();
    for piece in bytes.chunks(2) {
        client.write_all(piece).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut answers = [receive(&mut client).await, receive(&mut client).await];
    answers.sort();
    assert_eq!(answers, [&b"first message"[..], b"next"]);
}

#[tokio::test]
async fn a_client_has_its_share_and_a_forwarder_a_larger_one() {
    let door = door(Limits { per_client: 2, per_forwarder: 3, ..Limits::default() }, &["127.0.0.9"]).await;
    for (from, most) in [([127, 0, 0, 1], 2), ([127, 0, 0, 9], 3), ([127, 0, 0, 2], 2)] {
        let before = door.ended(Ending::Client);
        let mut seated = Vec::new();
        for _ in 0..most {
            let mut client = door.connect(from).await;
            client.write_all(&framed(b"x")).await.unwrap();
            assert_eq!(receive(&mut client).await, b"x");
            seated.push(client);
        }
        let mut refused = door.connect(from).await;
        assert_eq!(rest(&mut refused).await, b"", "closed at once");
        assert_eq!(door.ended(Ending::Client), before + 1);

        drop(seated);
        until("its seats are free", || door.streams.open() == 0).await;
    }
}

/// A PROXY header of 192.0.2.7, port 40000.
const HEADER: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\xc0\0\x02\x35\x9c\x40\0\x35";

#[tokio::test]
async fn a_proxy_says_once_for_whom_it_connects() {
    let door = door(Limits::default(), &[]).await;
    let mut client = door.connect([127, 0, 0, 53]).await;
    client.set_nodelay(true).unwrap();
    let bytes = [HEADER, &framed(b"who"), &framed(b"who")].concat();
    for piece in bytes.chunks(5) {
        client.write_all(piece).await.unwrap();
        tokio::task::yield_now().await;
    }
    for _ in 0..2 {
        assert_eq!(receive(&mut client).await, b"Proxied(192.0.2.7:40000)");
    }
    let local = [HEADER.split_at(12).0, b"\x20\0\0\0", &framed(b"who")].concat();
    let mut client = door.connect([127, 0, 0, 53]).await;
    client.write_all(&local).await.unwrap();
    assert_eq!(receive(&mut client).await, b"Nothing");
    // From anybody else the header is the beginning of messages: here one of 3,338 octets.
    let mut client = door.connect([127, 0, 0, 1]).await;
    client.write_all(&bytes).await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(rest(&mut client).await, b"");
}

#[tokio::test]
async fn a_proxy_that_does_not_say_it_is_recorded_and_cut_off() {
    let door = door(Limits { receive: Duration::from_millis(200), ..Limits::default() }, &[]).await;
    let cut = HEADER.split_at(20).0;
    for (recorded, sent) in [(1, framed(b"a message of no header")), (2, cut.to_vec()), (2, Vec::new())] {
        let before = door.ended(Ending::Unproxied);
        let mut client = door.connect([127, 0, 0, 53]).await;
        client.write_all(&sent).await.unwrap();
        assert_eq!(rest(&mut client).await, b"", "no answer");
        until("it is counted", || door.ended(Ending::Unproxied) == before + 1).await;
        assert_eq!(door.gate.begun.load(SeqCst), recorded);
    }
}

#[tokio::test]
async fn a_seat_that_is_given_back_can_be_taken() {
    let door = door(Limits { per_client: 1, ..Limits::default() }, &[]).await;
    for round in 1..=5 {
        let mut client = door.connect([127, 0, 0, 1]).await;
        client.write_all(&framed(b"x")).await.unwrap();
        assert_eq!(receive(&mut client).await, b"x");
        drop(client);
        until("the seat is free", || door.ended(Ending::Peer) == round && door.streams.open() == 0).await;
    }
}

#[tokio::test]
async fn a_thousand_idle_connections_take_no_more_than_the_total() {
    let door = door(Limits { total: 200, ..Limits::default() }, &[]).await;
    let mut idle = Vec::new();
    for n in 0..1_000_u16 {
        let [high, low] = (n / 4).to_be_bytes();
        idle.push(door.connect([127, 1, high, low]).await);
    }
    until("800 were closed at once", || door.ended(Ending::Full) == 800).await;
    assert_eq!(door.streams.open(), 200);
    // Those that sit are served.
    let mut client = idle.swap_remove(0);
    client.write_all(&framed(b"x")).await.unwrap();
    assert_eq!(receive(&mut client).await, b"x");
    drop((client, idle));
    until("all seats are free", || door.streams.open() == 0).await;
}

#[tokio::test]
async fn a_client_that_never_reads_loses_its_seat() {
    let limits = Limits { send: Duration::from_millis(50), ..Limits::default() };
    let door = door(limits, &[]).await;
    let mut client = door.connect([127, 0, 0, 1]).await;
    // Answers of 64 KiB, until the kernel's buffers for them are full and reading queries ends too.
    let flood = tokio::spawn(async move {
        let queries = framed(b"b").repeat(1_000);
        while client.write_all(&queries).await.is_ok() {}
    });
    until("it is cut", || door.ended(Ending::Stalled) == 1).await;
    until("its seat is free", || door.streams.open() == 0).await;
    timeout(BOUND, flood).await.unwrap().unwrap();
}

#[tokio::test]
async fn the_door_closes_when_the_last_query_is_answered() {
    let door = door(Limits::default(), &[]).await;
    let mut busy = door.connect([127, 0, 0, 1]).await;
    let mut idle = door.connect([127, 0, 0, 2]).await;
    busy.write_all(&framed(b"held")).await.unwrap();
    until("begun", || door.gate.begun.load(SeqCst) == 1 && door.streams.open() == 2).await;
    door.stop.send(true).unwrap();
    assert_eq!(rest(&mut idle).await, b"");
    assert!(!door.served.is_finished());
    door.gate.held.add_permits(1);
    assert_eq!(rest(&mut busy).await, framed(b"held"));
    timeout(BOUND, door.served).await.unwrap().unwrap();
    assert!(TcpStream::connect(door.address).await.is_err());
}
