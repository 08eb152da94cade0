//! DNS over HTTPS to one server (RFC 8484): every query a POST of its own on one HTTP/2 connection.
//!
//! Nothing that HTTP could add is taken: no cookie, no redirect, no cache, no other media type, and of a body no more
//! than a DNS message can be.

use std::io;
use std::pin::pin;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::header::{ACCEPT, CONTENT_TYPE};
use hyper::{Request, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::connection::{Job, PENDING, Reply, STALLED};
use super::failure::{Failure, HttpFault};
use super::tcp::Encrypted;
use crate::wire::TCP_LIMIT;

/// RFC 8484 §6.
const MEDIA_TYPE: &str = "application/dns-message";
/// What a server may send of one body, the longest message, and of all bodies, before they are read.
const WINDOWS: [u32; 2] = [TCP_LIMIT as u32 + 1, 1 << 20];
/// The largest head of a response, in octets.
const HEAD: u32 = 16 * 1024;

/// What is asked for, on which host.
#[derive(Debug)]
pub(super) struct Target(Uri);

impl Target {
    /// `https://name:port/path`; an IPv6 address as a name gets its brackets.
    pub(super) fn new(name: &str, port: u16, path: &str) -> Self {
        let host = if name.contains(':') { format!("[{name}]") } else { name.to_owned() };
        let authority = if port == 443 { host } else { format!("{host}:{port}") };
        // A name of a server, a port and a path that were read as such make a URI.
        Self(format!("https://{authority}{path}").parse().unwrap_or_default())
    }

    fn request(&self, mut message: Vec<u8>) -> Request<Full<Bytes>> {
        // RFC 8484 §4.1: "DoH clients using media formats that include the ID field from the DNS message header [...]
        // SHOULD use a DNS ID of 0 in every DNS request". Which response is whose, the stream says.
        if let Some(id) = message.first_chunk_mut() {
            *id = [0, 0];
        }
        let mut request = Request::new(Full::new(Bytes::from(message)));
        *request.method_mut() = hyper::Method::POST;
        *request.uri_mut() = self.0.clone();
        for header in [CONTENT_TYPE, ACCEPT] {
            request.headers_mut().insert(header, hyper::header::HeaderValue::from_static(MEDIA_TYPE));
        }
        request
    }
}

/// Makes requests of jobs until the connection ends, nothing was awaited for `idle` or nobody can hand it another.
pub(super) async fn serve(
    stream: Encrypted,
    target: &Target,
    jobs: &mut mpsc::Receiver<Job>,
    idle: Duration,
) -> Result<(), Failure> {
    if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        return Err(Failure::Http(HttpFault::Version));
    }
    let [of_stream, of_connection] = WINDOWS;
    let mut http2 = Builder::new(TokioExecutor::new());
    http2.timer(TokioTimer::new()).max_header_list_size(HEAD).max_concurrent_streams(0);
    http2.initial_stream_window_size(of_stream).initial_connection_window_size(of_connection);
    let opened = timeout(STALLED, http2.handshake(TokioIo::new(stream))).await;
    let (sender, connection) =
        opened.map_err(|_| Failure::Network(io::ErrorKind::TimedOut))?.map_err(|error| failure(&error))?;
    let mut connection = pin!(connection);
    // Dropped, and so stopped, with this connection.
    let mut exchanges = JoinSet::new();
    let mut awaited = false;
    let mut over_at = Instant::now() + idle;
    let mut more = true;
    while more || !exchanges.is_empty() {
        tokio::select! {
            ended = connection.as_mut() => {
                // Those that wait are told what it came to, by hyper.
                exchanges.join_all().await;
                return Err(ended.map_or_else(|error| failure(&error), |()| io::ErrorKind::ConnectionAborted.into()));
            }
            job = jobs.recv(), if more => match job {
                None => more = false,
                Some(job) if job.reply.is_closed() => {}
                Some(job) if exchanges.len() >= PENDING => {
                    let _gone = job.reply.send(Err(Failure::Network(io::ErrorKind::QuotaExceeded)));
                }
                Some(Job { message, reply }) => {
                    if !awaited {
                        (awaited, over_at) = (true, Instant::now() + STALLED);
                    }
                    exchanges.spawn(exchange(sender.clone(), target.request(message), reply));
                }
            },
            Some(answered) = exchanges.join_next() => {
                if answered.unwrap_or(false) {
                    awaited = !exchanges.is_empty();
                    over_at = Instant::now() + if awaited { STALLED } else { idle };
                }
            }
            () = sleep_until(over_at) => {
                return if awaited { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) };
            }
        }
    }
    Ok(())
}

/// One request and its response; whether the server said anything. It goes on where nobody waits any more: that a
/// response comes, however late, tells a slow server from a dead connection.
async fn exchange(mut sender: SendRequest<Full<Bytes>>, request: Request<Full<Bytes>>, reply: Reply) -> bool {
    let outcome = timeout(STALLED, fetch(&mut sender, request)).await;
    let outcome = outcome.unwrap_or(Err(Failure::Network(io::ErrorKind::TimedOut)));
    let answered = matches!(outcome, Ok(_) | Err(Failure::Http(_)));
    let _gone = reply.send(outcome);
    answered
}

async fn fetch(sender: &mut SendRequest<Full<Bytes>>, request: Request<Full<Bytes>>) -> Result<Vec<u8>, Failure> {
    let response = sender.send_request(request).await.map_err(|error| failure(&error))?;
    // RFC 8484 §4.2.1: "A successful HTTP response with a 2xx status code [...] is used for any valid DNS response".
    if !response.status().is_success() {
        return Err(Failure::Http(HttpFault::Status(response.status().as_u16())));
    }
    let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if !kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case(MEDIA_TYPE)) {
        return Err(Failure::Http(HttpFault::MediaType));
    }
    let body = Limited::new(response.into_body(), TCP_LIMIT).collect().await;
    match body {
        Ok(body) => Ok(body.to_bytes().into()),
        Err(error) => Err(match error.downcast_ref::<hyper::Error>() {
            Some(error) => failure(error),
            None => Failure::Http(HttpFault::Long),
        }),
    }
}

/// An error of the connection is one of the network, on which a query may be tried again; anything else is the server's.
fn failure(error: &hyper::Error) -> Failure {
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        if let Some(io) = inner.downcast_ref::<io::Error>() {
            return super::tls::failure(io);
        }
        cause = inner.source();
    }
    if error.is_canceled() || error.is_closed() || error.is_incomplete_message() {
        return io::ErrorKind::ConnectionAborted.into();
    }
    Failure::Http(HttpFault::Broken)
}
