//! The kind `syslog`: RFC 5424 messages over UDP (RFC 5426), TCP with octet counting (RFC 6587) or TLS (RFC 5425).
//!
//! Syslog acknowledges nothing. Over a stream a message is taken for delivered 5 seconds after it was handed to the kernel,
//! where the connection has lasted: a peer that is gone is noticed within 4 (TCP_USER_TIMEOUT). What was sent in that time is
//! sent again over the next connection.

mod connection;
mod message;

use std::io::Write as _;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use self::connection::{Connection, Fault, resolve};
use self::message::Header;
use super::limit::{Limit, Limited};
use super::settings::Keys;
use super::{Batch, Deliver, Delivered, Plan};
use crate::document::write_duration;
use crate::time::Clock;
use crate::trust::ClientTls;

/// How long a message that was sent over a stream may still be lost.
const UNSURE: Duration = Duration::from_secs(5);
/// How long a server may take to let us in, and for a batch.
const PATIENCE: Duration = Duration::from_secs(4);
/// RFC 5425 §4.3.1: "receivers SHOULD be able to process messages with lengths up to and including 8192 octets".
const UDP_LIMIT: u64 = 8192;
const STREAM_LIMIT: u64 = 65_536;
/// RFC 5424 §6.1: "any transport receiver MUST be able to accept messages of up to and including 480 octets in length".
const LEAST_LIMIT: u64 = 480;
/// What a datagram over IPv4 holds.
const MOST_UDP: u64 = 65_507;

/// How messages travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transport {
    Udp,
    Tcp,
    Tls,
}

/// Each with its word and the port where none is named: RFC 5426 §3.3, the practice of most receivers, RFC 5425 §4.1.
const TRANSPORTS: &[(&str, Transport, u16)] =
    &[("udp", Transport::Udp, 514), ("tcp", Transport::Tcp, 514), ("tls", Transport::Tls, 6514)];

/// RFC 5424 §6.2.1, table 1, as configurations call them.
const FACILITIES: &[&str] = &[
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp", "ntp",
    "audit", "alert", "clock", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
];

/// Where messages go.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Server {
    transport: Transport,
    host: String,
    port: u16,
}

impl Server {
    /// `tls://siem.example:6514`, `udp://[2001:db8::1]`.
    fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let (_, transport, port) = *TRANSPORTS.iter().find(|(word, ..)| *word == scheme)?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = match rest.strip_prefix('[') {
            Some(rest) => {
                let (host, after) = rest.split_once(']')?;
                host.parse::<std::net::Ipv6Addr>().ok()?;
                (host, if after.is_empty() { port } else { after.strip_prefix(':')?.parse().ok()? })
            }
            None => match rest.split_once(':') {
                Some((host, number)) => (host, number.parse().ok()?),
                None => (rest, port),
            },
        };
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:".contains(&byte);
        let valid = !host.is_empty() && host.len() <= 253 && host.bytes().all(plain) && port > 0;
        valid.then(|| Self { transport, host: host.to_owned(), port })
    }
}

/// The keys of this kind.
#[derive(Debug)]
struct Settings {
    server: Server,
    facility: u8,
    app_name: String,
    tls: ClientTls,
    limit: usize,
}

/// Reads them.
pub(super) fn read(keys: &Keys<'_>) -> Option<Arc<dyn Plan>> {
    let table = keys.table;
    let document = table.document();
    let server = table.required_string("server").and_then(|word| {
        let server = Server::parse(&word.value);
        if server.is_none() {
            let fact = format!("`server` cannot be \"{}\"", word.value);
            document.note(&word.span, fact, "write \"tls://siem.example:6514\", \"tcp://…\" or \"udp://…\"");
        }
        server
    });
    let facility = table.string("facility").map_or(Some(16), |word| {
        let known = FACILITIES.iter().position(|facility| *facility == word.value);
        if known.is_none() {
            let fact = format!("`facility` cannot be \"{}\"", word.value);
            document.note(&word.span, fact, "write \"local0\" to \"local7\", \"daemon\", \"authpriv\" or \"audit\"");
        }
        known
    });
    let app_name = table.string("app_name").map_or_else(
        || "outgate".to_owned(),
        |word| {
            // RFC 5424 §6: APP-NAME = NILVALUE / 1*48PRINTUSASCII
            if !(1..=48).contains(&word.value.len()) || !word.value.bytes().all(|byte| byte.is_ascii_graphic()) {
                let fact = format!("`app_name` cannot be \"{}\"", word.value);
                document.note(&word.span, fact, "write 1 to 48 printable ASCII characters without a blank");
            }
            word.value
        },
    );
    let tls = ClientTls::read(table, keys.base);
    let transport = server.as_ref().map(|server| server.transport);
    if !tls.is_empty() && transport.is_some_and(|transport| transport != Transport::Tls) {
        let key = if table.has("ca") { "ca" } else { "certificate" };
        let fact = format!("`{key}` is of no use without TLS");
        document.note(&table.span_of(key), fact, "write server = \"tls://…\", or leave it out");
    }
    let most = if transport == Some(Transport::Udp) { MOST_UDP } else { 1 << 20 };
    let default = if transport == Some(Transport::Udp) { UDP_LIMIT } else { STREAM_LIMIT };
    let limit = table.size("limit").unwrap_or(default);
    if !(LEAST_LIMIT..=most).contains(&limit) {
        let remedy = format!("write a size from {LEAST_LIMIT} to {most} octets, e.g. \"8KiB\"");
        document.note(&table.span_of("limit"), "`limit` is out of range", remedy);
    }
    Some(Arc::new(Settings {
        server: server?,
        facility: u8::try_from(facility?).unwrap_or(16),
        app_name,
        tls,
        limit: usize::try_from(limit).unwrap_or(8192),
    }))
}

impl Plan for Settings {
    fn check(&self) -> Result<(), crate::document::Mistake> {
        if self.server.transport == Transport::Tls {
            self.tls.config()?;
        }
        Ok(())
    }

    fn build(&self) -> Result<Box<dyn Deliver>, String> {
        let header = Header { facility: self.facility, app_name: self.app_name.clone(), limit: self.limit };
        let tls = match self.server.transport {
            Transport::Tls => Some(Arc::new(self.tls.config().map_err(|mistake| mistake.to_string())?)),
            _ => None,
        };
        Ok(match self.server.transport {
            Transport::Udp => Box::new(Datagrams {
                server: self.server.clone(),
                header,
                limit: Limit::new(Clock::system()),
                socket: None,
                message: Vec::new(),
            }),
            _ => Box::new(Stream {
                server: self.server.clone(),
                header,
                tls,
                limit: Limit::new(Clock::system()),
                patience: PATIENCE,
                largest: usize::MAX,
                connection: None,
                message: Vec::new(),
                frames: Vec::new(),
            }),
        })
    }
}

/// One datagram for each record: nobody says whether it arrives.
struct Datagrams {
    server: Server,
    header: Header,
    limit: Limit,
    socket: Option<UdpSocket>,
    message: Vec<u8>,
}

/// One that is connected to the server.
fn datagrams(server: &Server) -> Result<UdpSocket, String> {
    let to = resolve(server)?;
    let any: std::net::IpAddr =
        if to.is_ipv4() { std::net::Ipv4Addr::UNSPECIFIED.into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
    let bound = UdpSocket::bind((any, 0)).and_then(|socket| socket.connect(to).map(|()| socket));
    bound.map_err(|error| error.to_string())
}

impl Deliver for Datagrams {
    fn heed(&mut self, stop: &Arc<AtomicBool>) {
        self.limit.heed(stop);
    }

    fn deliver(&mut self, batch: &Batch<'_>) -> Delivered {
        let Self { server, header, limit, socket, message } = self;
        limit.begin(PATIENCE);
        for (index, record) in batch.records.iter().enumerate() {
            message.clear();
            header.write(record, message);
            let bound = match &mut *socket {
                Some(socket) => Ok(&*socket),
                none => datagrams(server).map(|bound| &*none.insert(bound)),
            };
            let sent =
                bound.and_then(|bound| Limited::new(bound, limit).write(message).map_err(|error| error.to_string()));
            if let Err(why) = sent {
                // A refusal tells of a datagram before: which of them arrived is not known.
                *socket = None;
                let why = format!("{}:{}: {why}", server.host, server.port);
                if index == 0 {
                    return Delivered::Failed { why, wait: None };
                }
                let again = (index..batch.records.len()).collect();
                return Delivered::Some { again, refused: Vec::new(), wait: None };
            }
        }
        Delivered::All
    }
}

/// Octet-counted messages over TCP or TLS.
struct Stream {
    server: Server,
    header: Header,
    tls: Option<Arc<tokio_rustls::rustls::ClientConfig>>,
    limit: Limit,
    patience: Duration,
    /// The most octets that are sent at once, where it is more than one message: half of what the server did not take in
    /// time, and slowly more.
    largest: usize,
    connection: Option<Connection>,
    message: Vec<u8>,
    frames: Vec<u8>,
}

impl Stream {
    /// Sends the frames.
    fn send(&mut self) -> Result<(), Fault> {
        self.limit.begin(self.patience);
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => {
                let opened = Connection::open(&self.server, self.tls.as_ref(), &mut self.limit);
                self.limit.begin(self.patience);
                none.insert(opened.map_err(Fault::Broken)?)
            }
        };
        connection.send(&self.frames, &mut self.limit)
    }
}

impl Deliver for Stream {
    fn heed(&mut self, stop: &Arc<AtomicBool>) {
        self.limit.heed(stop);
    }

    fn deliver(&mut self, batch: &Batch<'_>) -> Delivered {
        self.frames.clear();
        let mut count = 0;
        for record in batch.records {
            self.message.clear();
            self.header.write(record, &mut self.message);
            let before = self.frames.len();
            // RFC 6587 §3.4.1: SYSLOG-FRAME = MSG-LEN SP SYSLOG-MSG
            self.frames.extend_from_slice(self.message.len().to_string().as_bytes());
            self.frames.push(b' ');
            self.frames.extend_from_slice(&self.message);
            if self.frames.len() > self.largest && count > 0 {
                self.frames.truncate(before);
                break;
            }
            count += 1;
        }
        match self.send() {
            Ok(()) => {
                self.largest = self.largest.saturating_add(self.largest / 16 + 1);
                match (count..batch.records.len()).collect::<Vec<_>>() {
                    again if again.is_empty() => Delivered::All,
                    again => Delivered::Some { again, refused: Vec::new(), wait: Some(Duration::ZERO) },
                }
            }
            Err(fault) => {
                self.connection = None;
                let why = match fault {
                    Fault::Broken(why) => why,
                    Fault::Slow => {
                        let octets = self.frames.len();
                        self.largest = octets / 2;
                        format!("it does not take {octets} octets within {}", write_duration(self.patience))
                    }
                };
                Delivered::Failed { why: format!("{}:{}: {why}", self.server.host, self.server.port), wait: None }
            }
        }
    }

    fn unsure(&self) -> Duration {
        UNSURE
    }

    fn check(&mut self) -> Result<(), String> {
        let Some(connection) = &mut self.connection else { return Ok(()) };
        connection.check().map_err(|why| {
            self.connection = None;
            format!("{}:{}: {why}", self.server.host, self.server.port)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::TcpListener;
    use std::sync::atomic::Ordering;
    use std::sync::mpsc::{self, RecvTimeoutError};
    use std::thread;

    use super::*;
    use crate::audit::sink::Record;

    #[test]
    fn reads_where_messages_go() {
        let server = |transport, host: &str, port| Some(Server { transport, host: host.into(), port });
        for (text, expected) in [
            ("tls://siem.example", server(Transport::Tls, "siem.example", 6514)),
            ("tls://siem.example:1", server(Transport::Tls, "siem.example", 1)),
            ("tcp://192.0.2.1:601", server(Transport::Tcp, "192.0.2.1", 601)),
            ("udp://[2001:db8::1]", server(Transport::Udp, "2001:db8::1", 514)),
            ("udp://[2001:db8::1]:5514/", server(Transport::Udp, "2001:db8::1", 5514)),
            ("relp://siem.example", None),
            ("siem.example:514", None),
            ("tcp://", None),
            ("tcp://:514", None),
            ("tcp://host:0", None),
            ("tcp://host:port", None),
            ("tcp://a b", None),
            ("tcp://[x]:1", None),
        ] {
            assert_eq!(Server::parse(text), expected, "{text}");
        }
    }

    fn record(number: usize) -> Record {
        Record {
            id: format!("1-1-{number}").into(),
            kind: "query".into(),
            ts: "2026-11-21T03:53:04.117302Z".into(),
            node: "n".into(),
            segment: None,
            verdict: None,
            bytes: vec![b'x'; 60_000],
        }
    }

    fn stream(listener: &TcpListener, patience: Duration) -> Stream {
        let port = listener.local_addr().unwrap().port();
        Stream {
            server: Server { transport: Transport::Tcp, host: "127.0.0.1".into(), port },
            header: Header { facility: 16, app_name: "outgate".into(), limit: 65_536 },
            tls: None,
            limit: Limit::new(Clock::system()),
            patience,
            largest: usize::MAX,
            connection: None,
            message: Vec::new(),
            frames: Vec::new(),
        }
    }

    /// Longer than anything here takes on a busy machine.
    const LONG: Duration = Duration::from_secs(20);

    /// One that takes a little now and then, so that each write succeeds in time; it raises the flag at its first connection.
    fn drip(listener: TcpListener, flag: &Arc<AtomicBool>) -> impl FnOnce() + use<> {
        let (end, ended) = mpsc::channel::<()>();
        let flag = Arc::clone(flag);
        listener.set_nonblocking(true).unwrap();
        let server = thread::spawn(move || {
            let mut streams = Vec::new();
            while ended.recv_timeout(Duration::from_millis(20)) == Err(RecvTimeoutError::Timeout) {
                if let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(true).unwrap();
                    streams.push(stream);
                    flag.store(true, Ordering::Relaxed);
                }
                for stream in &mut streams {
                    let _ = stream.read(&mut [0; 20_000]);
                }
            }
        });
        move || {
            drop(end);
            server.join().unwrap();
        }
    }

    #[test]
    fn a_server_that_is_slow_is_sent_less_at_once() {
        let clock = Clock::system();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sink = stream(&listener, Duration::from_millis(300));
        let end = drip(listener, &Arc::default());
        let records: Vec<Record> = (0..400).map(record).collect();
        let begin = clock.tick();
        let mut sizes = Vec::new();
        let taken = loop {
            match sink.deliver(&Batch { records: &records }) {
                Delivered::All => break records.len(),
                Delivered::Some { again, wait, .. } => {
                    assert_eq!(wait, Some(Duration::ZERO), "it is not at fault");
                    break again[0];
                }
                Delivered::Failed { why, .. } => assert!(why.ends_with(" octets within 300ms"), "{why}"),
            }
            assert!(clock.tick().since(begin) < LONG);
            sizes.push(sink.largest);
        };
        end();
        assert!((1..400).contains(&taken) && sizes.is_sorted_by(|one, next| one > next), "{taken} {sizes:?}");
    }

    #[test]
    fn a_node_that_stops_waits_for_no_server() {
        let clock = Clock::system();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sink = stream(&listener, LONG);
        let stop = Arc::<AtomicBool>::default();
        sink.heed(&stop);
        let end = drip(listener, &stop);
        let begin = clock.tick();
        let records: Vec<Record> = (0..800).map(record).collect();
        assert!(matches!(sink.deliver(&Batch { records: &records }), Delivered::Failed { .. }));
        assert!(clock.tick().since(begin) < LONG);
        end();
    }
}
