//! Servers on loopback that speak TLS, and those that nearly do.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{HandshakeKind, RootCertStore, ServerConfig};
use tokio_rustls::server::TlsStream;

use super::connection::Link;
use super::endpoint::{Pin, Proof, ServerSettings, Transport};
use super::failover::exchange;
use super::failure::UpstreamError;
use super::fake::{address, good, origin, question, response};
use super::query::Wanted;
use super::server::Server;
use super::{Ports, ServerHealth};
use crate::record::{Answer, Rcode};
use crate::time::Clock;

/// Longer than any of this takes: what ends early does not end by it.
const LONG: Duration = Duration::from_secs(30);
/// What upstreams have of a query's time.
const QUERY: Duration = Duration::from_millis(1_880);

/// An authority, and the certificate and key that it gave one server.
struct Identity {
    authority: rcgen::Certificate,
    config: ServerConfig,
    pin: Pin,
}

/// Until when a certificate lives.
#[derive(Clone, Copy)]
enum Life {
    Now,
    Ended,
    NotYet,
}

fn identity(names: &[&str], life: Life, by_authority: bool) -> Identity {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "the authority");
    let authority_key = KeyPair::generate().unwrap();
    let authority = params.self_signed(&authority_key).unwrap();
    let issuer = Issuer::new(params, authority_key);
    let mut params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
    let years = match life {
        Life::Now => (2020, 2090),
        Life::Ended => (2019, 2020),
        Life::NotYet => (2089, 2090),
    };
    (params.not_before, params.not_after) = (date_time_ymd(years.0, 1, 2), date_time_ymd(years.1, 1, 2));
    let key = KeyPair::generate().unwrap();
    let certificate = match by_authority {
        true => params.signed_by(&key, &issuer).unwrap(),
        false => params.self_signed(&key).unwrap(),
    };
    let pin = Sha256::digest(rcgen::PublicKeyData::subject_public_key_info(&key)).into();
    let private = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config =
        ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate.der().clone()], private);
    Identity { authority, config: config.unwrap(), pin }
}

/// What a server does with a connection.
#[derive(Clone, Copy)]
enum Manner {
    /// DNS over TLS, as it should be; hangs up after so many replies.
    Dot(usize),
    /// Not a word of TLS.
    Silent,
    /// Something else than TLS.
    Plain(&'static [u8]),
    /// TLS, and then something else than DNS.
    Other(&'static [u8]),
    /// DNS over HTTPS, its response changed by this.
    Doh(fn(&mut Response<Full<Bytes>>)),
}

/// One server, its UDP port watched.
struct Encrypted {
    address: SocketAddr,
    identity: Identity,
    seen: Arc<Mutex<Vec<Vec<u8>>>>,
    connections: Arc<AtomicUsize>,
    resumed: Arc<AtomicUsize>,
    udp: UdpSocket,
    _tasks: JoinSet<()>,
}

impl Encrypted {
    async fn start(manner: Manner) -> Self {
        Self::with(identity(&["dns.example.org"], Life::Now, true), manner).await
    }

    async fn with(mut identity: Identity, manner: Manner) -> Self {
        let (listener, udp) = loop {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            if let Ok(udp) = UdpSocket::bind(listener.local_addr().unwrap()).await {
                break (listener, udp);
            }
        };
        let protocol = if matches!(manner, Manner::Doh(_)) { "h2" } else { "dot" };
        identity.config.alpn_protocols = vec![protocol.into()];
        let acceptor = TlsAcceptor::from(Arc::new(identity.config.clone()));
        let address = listener.local_addr().unwrap();
        let (seen, connections, resumed) = (Arc::default(), Arc::default(), Arc::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, acceptor, manner, Arc::clone(&seen), [&connections, &resumed].map(Arc::clone)));
        Self { address, identity, seen, connections, resumed, udp, _tasks: tasks }
    }

    fn proof(&self, name: Option<&'static str>, pins: &[Pin]) -> Proof {
        Proof { name: name.map(|name| ServerName::try_from(name).unwrap()), pins: pins.into() }
    }

    /// As a server asked over TLS, that proves itself with its name.
    fn server(&self, clock: &Clock) -> Server {
        let proof = self.proof(Some("dns.example.org"), &[]);
        self.proving(0, Transport::Tls(proof), clock)
    }

    fn https(&self, path: &str) -> Server {
        let proof = self.proof(Some("dns.example.org"), &[]);
        self.proving(0, Transport::Https(proof, path.into()), &Clock::system())
    }

    fn proving(&self, number: usize, transport: Transport, clock: &Clock) -> Server {
        let mut authorities = RootCertStore::empty();
        authorities.add(self.identity.authority.der().clone()).unwrap();
        let settings = ServerSettings { address: self.address, transport: transport.clone() };
        Server::new(number, transport, Link::new(&settings, &Arc::new(authorities)).unwrap(), Wanted::default(), clock)
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Nothing came in clear text.
    fn assert_no_datagram(&self) {
        let error = self.udp.try_recv(&mut [0; 512]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    }
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    manner: Manner,
    seen: Arc<Mutex<Vec<Vec<u8>>>>,
    [connections, resumed]: [Arc<AtomicUsize>; 2],
) {
    let mut tasks = JoinSet::new();
    while let Ok((mut stream, _)) = listener.accept().await {
        connections.fetch_add(1, Ordering::SeqCst);
        let (acceptor, seen, resumed) = (acceptor.clone(), Arc::clone(&seen), Arc::clone(&resumed));
        tasks.spawn(async move {
            match manner {
                Manner::Silent => std::future::pending().await,
                Manner::Plain(text) => {
                    stream.write_all(text).await.unwrap();
                    let _ = stream.read_to_end(&mut Vec::new()).await;
                    return;
                }
                _ => {}
            }
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            if stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed) {
                resumed.fetch_add(1, Ordering::SeqCst);
            }
            match manner {
                Manner::Dot(replies) => dot(stream, replies, &seen).await,
                Manner::Other(text) => {
                    stream.write_all(text).await.unwrap();
                    let _ = stream.flush().await;
                    let _ = stream.read_to_end(&mut Vec::new()).await;
                }
                Manner::Doh(change) => doh(stream, change, seen).await,
                Manner::Silent | Manner::Plain(_) => {}
            }
        });
    }
}

async fn dot(mut stream: TlsStream<TcpStream>, replies: usize, seen: &Mutex<Vec<Vec<u8>>>) {
    for _ in 0..replies {
        let Ok(length) = stream.read_u16().await else { return };
        let mut message = vec![0; usize::from(length)];
        stream.read_exact(&mut message).await.unwrap();
        seen.lock().push(message.clone());
        let reply = good(&message);
        let length = u16::try_from(reply.len()).unwrap().to_be_bytes();
        stream.write_all(&[&length, reply.as_slice()].concat()).await.unwrap();
        stream.flush().await.unwrap();
    }
    let _ = stream.shutdown().await;
}

async fn doh(stream: TlsStream<TcpStream>, change: fn(&mut Response<Full<Bytes>>), seen: Arc<Mutex<Vec<Vec<u8>>>>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let seen = Arc::clone(&seen);
        async move {
            let (head, body) = request.into_parts();
            let message = body.collect().await.unwrap().to_bytes().to_vec();
            let media = head.headers["content-type"] == "application/dns-message";
            let names: Vec<&str> = head.headers.keys().map(hyper::http::HeaderName::as_str).collect();
            assert!(
                head.method == "POST" && media && names == ["content-type", "accept", "content-length"],
                "{head:?}"
            );
            assert_eq!(head.uri.host(), Some("dns.example.org"));
            seen.lock().push(message.clone());
            let mut response = Response::new(Full::new(Bytes::from(good(&message))));
            response.headers_mut().insert("content-type", "application/dns-message".parse().unwrap());
            if head.uri.path() != "/dns-query" {
                *response.status_mut() = StatusCode::NOT_FOUND;
            }
            change(&mut response);
            Ok::<_, Infallible>(response)
        }
    });
    let http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    let _ = http2.serve_connection(TokioIo::new(stream), service).await;
}

async fn ask_from(ports: &Ports, servers: &[Server], patience: Duration) -> Result<Answer, UpstreamError> {
    exchange(servers, &question(), &origin(), ports, Instant::now() + patience).await.map(|reply| reply.answer)
}

async fn ask(server: Server, patience: Duration) -> (Result<Answer, UpstreamError>, ServerHealth) {
    let servers = [server];
    let result = ask_from(&Ports::new(servers.iter()), &servers, patience).await;
    (result, servers[0].report(&Arc::from("default")))
}

#[tokio::test]
async fn one_connection_carries_padded_queries_and_is_resumed() {
    let fake = Encrypted::start(Manner::Dot(3)).await;
    let servers = [fake.server(&Clock::system())];
    let ports = Ports::new(servers.iter());
    for _ in 0..5 {
        assert_eq!(ask_from(&ports, &servers, LONG).await.unwrap().records, [address()]);
    }
    let seen = fake.seen.lock().clone();
    assert_eq!(seen.iter().map(Vec::len).collect::<Vec<_>>(), [128; 5]);
    assert_eq!((fake.connections(), fake.resumed.load(Ordering::SeqCst)), (2, 1));
    let report = servers[0].report(&Arc::from("default"));
    assert_eq!((report.transport, report.answered, report.connections, report.handshakes), ("tls", 5, 2, 2));
    assert!(report.round_trip.is_some());
    fake.assert_no_datagram();
}

#[tokio::test]
async fn a_server_proves_itself_by_name_or_key_or_both() {
    let other: Pin = [7; 32];
    let tls = Transport::Tls;
    type Make = fn(&[&str]) -> Identity;
    /// Names of the certificate; how it is made; what is asked for: a name, keys (`None`: its own); what is said.
    type Row<'a> = (&'a [&'a str], Make, Option<&'static str>, &'a [Option<Pin>], Option<&'a str>);
    let rows: [Row<'_>; 15] = [
        (&["dns.example.org"], |n| identity(n, Life::Now, true), Some("dns.example.org"), &[], None),
        (&["*.example.org"], |n| identity(n, Life::Now, true), Some("dns.example.org"), &[], None),
        (&["127.0.0.1"], |n| identity(n, Life::Now, true), Some("127.0.0.1"), &[], None),
        (&["dns.example.org"], |n| identity(n, Life::Now, true), Some("dns.example.org"), &[None], None),
        (&["a.example"], |n| identity(n, Life::Now, false), None, &[None], None),
        (&["a.example"], |n| identity(n, Life::Ended, false), None, &[Some(other), None], None),
        (
            &["other.example"],
            |n| identity(n, Life::Now, true),
            Some("dns.example.org"),
            &[],
            Some("has a certificate for other.example, not for dns.example.org"),
        ),
        (
            &["other.example"],
            |n| identity(n, Life::Now, true),
            Some("dns.example.org"),
            &[None],
            Some("has a certificate for other.example, not for dns.example.org"),
        ),
        (
            &["example.org"],
            |n| identity(n, Life::Now, true),
            Some("127.0.0.1"),
            &[],
            Some("has a certificate for example.org, not for 127.0.0.1"),
        ),
        (
            &["dns.example.org"],
            |n| identity(n, Life::Ended, true),
            Some("dns.example.org"),
            &[],
            Some("has a certificate that ended on 2020-01-02"),
        ),
        (
            &["dns.example.org"],
            |n| identity(n, Life::NotYet, true),
            Some("dns.example.org"),
            &[],
            Some("has a certificate that begins on 2089-01-02"),
        ),
        (
            &["dns.example.org"],
            |n| identity(n, Life::Now, false),
            Some("dns.example.org"),
            &[],
            Some("has a certificate that no trusted authority issued"),
        ),
        (
            &["dns.example.org"],
            |n| identity(n, Life::Now, true),
            Some("dns.example.org"),
            &[Some(other)],
            Some("has another key than the pinned one"),
        ),
        (
            &["dns.example.org"],
            |n| identity(n, Life::Now, true),
            None,
            &[Some(other)],
            Some("has another key than the pinned one"),
        ),
        (
            &["dns.example.org"],
            |n| identity(n, Life::Now, true),
            None,
            &[],
            Some("has another key than the pinned one"),
        ),
    ];
    for (names, make, name, pins, expected) in rows {
        let fake = Encrypted::with(make(names), Manner::Dot(9)).await;
        let pins: Vec<Pin> = pins.iter().map(|pin| pin.unwrap_or(fake.identity.pin)).collect();
        let (result, report) = ask(fake.proving(0, tls(fake.proof(name, &pins)), &Clock::system()), LONG).await;
        match expected {
            None => assert_eq!(result.unwrap().records, [address()]),
            Some(expected) => {
                let error = result.unwrap_err();
                assert_eq!(error.to_string(), format!("{} {expected}", fake.address));
                assert_eq!(error.ede().code, 23);
                assert!(matches!(error, UpstreamError::Unproven(_)));
                assert_eq!((report.failures, report.handshakes, report.handshake_failures), (1, 0, 1));
                assert!(fake.seen.lock().is_empty(), "nothing was asked");
            }
        }
        fake.assert_no_datagram();
    }
}

#[tokio::test]
async fn what_is_not_dns_in_tls_is_told_apart_and_never_asked_in_clear() {
    let rows = [
        (Manner::Silent, "did not finish the TLS handshake in time"),
        (Manner::Plain(b"220 mail.example.org ESMTP\r\n"), "does not speak TLS"),
        (Manner::Plain(b"\x15\x03\x03\0\x02\x02\x28"), "refused the TLS handshake (HandshakeFailure)"),
        // Read as a length, more than will ever come.
        (Manner::Other(b"220 mail.example.org ESMTP\r\n"), "did not answer"),
        (Manner::Dot(0), "could not be reached (connection aborted)"),
        (Manner::Doh(|_| ()), "does not speak DNS over this TLS"),
    ];
    for (manner, expected) in rows {
        let fake = Encrypted::start(manner).await;
        let (result, report) = ask(fake.server(&Clock::system()), QUERY).await;
        assert_eq!(result.unwrap_err().to_string(), format!("{} {expected}", fake.address));
        assert_eq!((report.answered, report.failures + report.timeouts), (0, 1));
        fake.assert_no_datagram();
    }
}

#[tokio::test]
async fn a_server_that_failed_thrice_is_left_out_and_the_next_one_asked() {
    let bad = Encrypted::with(identity(&["other.example"], Life::Now, true), Manner::Dot(9)).await;
    let good = Encrypted::start(Manner::Dot(99)).await;
    let clock = Clock::manual();
    let named = good.proof(Some("dns.example.org"), &[]);
    let servers = [bad.server(&clock), good.proving(1, Transport::Tls(named), &clock)];
    let ports = Ports::new(servers.iter());
    for _ in 0..3 {
        clock.advance(Duration::from_secs(1));
        ask_from(&ports, &servers, LONG).await.unwrap();
    }
    assert!(servers[0].report(&Arc::from("default")).out);
    ask_from(&ports, &servers, LONG).await.unwrap();
    assert_eq!((bad.connections(), good.seen.lock().len()), (3, 4));
}

#[tokio::test]
async fn https_posts_many_queries_on_one_connection() {
    let fake = Encrypted::start(Manner::Doh(|_| ())).await;
    let servers = [fake.https("/dns-query")];
    let ports = Ports::new(servers.iter());
    let ask = || async { ask_from(&ports, &servers, LONG).await.unwrap().records };
    assert_eq!(ask().await, [address()]);
    let together = tokio::join!(ask(), ask(), ask(), ask());
    assert_eq!(together.3, [address()]);
    let seen = fake.seen.lock().clone();
    assert_eq!((seen.len(), fake.connections()), (5, 1));
    assert!(seen.iter().all(|message| message[..2] == [0, 0] && message.len() == 128), "id 0, padded");
    fake.assert_no_datagram();
}

#[tokio::test]
async fn of_https_only_a_whole_dns_message_counts() {
    type Change = fn(&mut Response<Full<Bytes>>);
    let rows: [(&str, Change, &str); 9] = [
        ("/other", |_| (), "answered with HTTP status 404"),
        (
            "/dns-query",
            |response| *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE,
            "answered with HTTP status 503",
        ),
        (
            "/dns-query",
            |response| {
                *response.status_mut() = StatusCode::FOUND;
                response.headers_mut().insert("location", "/other".parse().unwrap());
            },
            "answered with HTTP status 302",
        ),
        (
            "/dns-query",
            |response| _ = response.headers_mut().insert("content-type", "text/html".parse().unwrap()),
            "answered with another media type than application/dns-message",
        ),
        (
            "/dns-query",
            |response| _ = response.headers_mut().remove("content-type"),
            "answered with another media type than application/dns-message",
        ),
        (
            "/dns-query",
            |response| *response.body_mut() = Full::new(vec![0; 65_536].into()),
            "answered with more than a DNS message can be",
        ),
        (
            "/dns-query",
            |response| *response.body_mut() = Full::new(Bytes::new()),
            "sent a wrong reply (not the question that was asked)",
        ),
        (
            "/dns-query",
            |response| *response.body_mut() = Full::new(vec![0; 65_535].into()),
            "sent a wrong reply (not the question that was asked)",
        ),
        ("/dns-query", |response| _ = response.headers_mut().insert("set-cookie", "a=b".parse().unwrap()), ""),
    ];
    for (path, change, expected) in rows {
        let fake = Encrypted::start(Manner::Doh(change)).await;
        let servers = [fake.https(path)];
        let ports = Ports::new(servers.iter());
        for _ in 0..2 {
            let result = ask_from(&ports, &servers, LONG).await;
            match expected {
                "" => assert_eq!(result.unwrap().records, [address()]),
                _ => assert_eq!(result.unwrap_err().to_string(), format!("{} {expected}", fake.address)),
            }
        }
        assert_eq!(
            (fake.seen.lock().len(), fake.connections()),
            (2, 1),
            "{expected}: neither tried again nor hung up on"
        );
    }
}

#[tokio::test]
async fn https_wants_http2_and_a_server_with_a_name() {
    let fake = Encrypted::start(Manner::Dot(9)).await;
    let (result, _) = ask(fake.https("/dns-query"), QUERY).await;
    assert_eq!(result.unwrap_err().to_string(), format!("{} does not speak DNS over this TLS", fake.address));
    let fake = Encrypted::with(identity(&["other.example"], Life::Now, true), Manner::Doh(|_| ())).await;
    let (result, report) = ask(fake.https("/dns-query"), QUERY).await;
    assert!(matches!(result, Err(UpstreamError::Unproven(_))), "{result:?}");
    assert_eq!((fake.seen.lock().len(), report.handshake_failures), (0, 1));
}

#[tokio::test]
async fn a_code_over_https_is_the_servers_word() {
    let fake = Encrypted::start(Manner::Doh(|reply| {
        let name = question().name;
        let query = [&[0; 12][..], name.as_wire(), &[0, 1, 0, 1]].concat();
        let mut message = response(&query, Rcode::SERVFAIL, &[]);
        message[5] = 1;
        *reply.body_mut() = Full::new(message.into());
    }))
    .await;
    let (result, _) = ask(fake.https("/dns-query"), QUERY).await;
    assert_eq!(result.unwrap_err().to_string(), format!("{} said SERVFAIL", fake.address));
}
