//! HTTP/1.1 for few, short requests: what the health and admin doors share.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::stopped;

/// How long a request's head may take, the wait for it included.
const HEAD: Duration = Duration::from_secs(5);
/// How long a connection takes new requests.
const AGE: Duration = Duration::from_secs(30);
/// The largest request head, in bytes.
const HEAD_SIZE: usize = 16 * 1024;
/// How long accepting rests after an error: most often the process is out of file descriptors.
const REST: Duration = Duration::from_millis(50);

/// A response with its whole body.
pub(super) type Reply = Response<Full<Bytes>>;

/// A listener of any kind.
pub(super) trait Accept: Send + 'static {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// What is known of who connects.
    type Peer: Copy + Send + Sync + 'static;

    /// The next connection.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, Self::Peer)>> + Send;
}

/// What one door's connections may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Connections at once; those above it are closed at once.
    pub(super) connections: usize,
    /// How long a request in progress may go on when its connection ends or the node stops.
    pub(super) finish: Duration,
}

/// Serves one listener until `stop`.
pub(super) async fn serve<A, H, F>(listener: A, limits: Limits, handle: H, mut stop: watch::Receiver<bool>)
where
    A: Accept,
    H: Fn(Request<Incoming>, A::Peer) -> F + Clone + Send + 'static,
    F: Future<Output = Reply> + Send + 'static,
{
    let seats = Arc::new(Semaphore::new(limits.connections));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stopped(&mut stop) => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    if let Ok(seat) = Arc::clone(&seats).try_acquire_owned() {
                        let (handle, stop) = (handle.clone(), stop.clone());
                        connections.spawn(async move {
                            connection(stream, peer, handle, limits.finish, stop).await;
                            drop(seat);
                        });
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "an HTTP connection could not be accepted");
                    sleep(REST).await;
                }
            },
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn connection<S, P, H, F>(stream: S, peer: P, handle: H, finish: Duration, mut stop: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    P: Copy + Send + 'static,
    H: Fn(Request<Incoming>, P) -> F + Send + 'static,
    F: Future<Output = Reply> + Send + 'static,
{
    let service = service_fn(move |request| {
        let reply = handle(request, peer);
        async move { Ok::<_, Infallible>(reply.await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(HEAD_SIZE)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        // However it ended, there is nobody left to tell.
        _ = connection.as_mut() => return,
        () = stopped(&mut stop) => {}
        () = sleep(AGE) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = timeout(finish, connection).await;
}

/// A reply of any type. Nothing here may be kept by a cache, and nothing allows another origin to read it.
pub(super) fn reply(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    reply.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply
}

/// A JSON reply.
pub(super) fn json(status: StatusCode, body: &Value) -> Reply {
    reply(status, "application/json", format!("{body}\n"))
}

/// `{"error": …}`
pub(super) fn refuse(status: StatusCode, why: &str) -> Reply {
    json(status, &json!({ "error": why }))
}

/// Nothing has this path.
pub(super) fn not_found(paths: &str) -> Reply {
    refuse(StatusCode::NOT_FOUND, &format!("there is nothing here; try {paths}"))
}

/// The path is right, the method is not. RFC 9110 §15.5.6: "The origin server MUST generate an Allow header field in
/// a 405 response".
pub(super) fn wrong_method(allowed: &'static str) -> Reply {
    let mut reply = refuse(StatusCode::METHOD_NOT_ALLOWED, &format!("use {allowed}"));
    reply.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    reply
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio::time::Instant;

    use super::*;

    /// One connection over a memory pipe; each request is answered after `takes`.
    fn pipe(takes: Duration) -> (DuplexStream, watch::Sender<bool>) {
        let (client, server) = duplex(1024);
        let (stop, stopping) = watch::channel(false);
        let handle = move |_: Request<Incoming>, ()| async move {
            sleep(takes).await;
            json(StatusCode::OK, &json!({}))
        };
        tokio::spawn(connection(server, (), handle, Duration::from_secs(60), stopping));
        (client, stop)
    }

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";

    async fn rest(mut client: DuplexStream) -> String {
        let mut text = String::new();
        client.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_has_five_seconds() {
        for begun in ["", "GET / HTTP/1.1\r\nHost"] {
            let start = Instant::now();
            let (mut client, _stop) = pipe(Duration::ZERO);
            client.write_all(begun.as_bytes()).await.unwrap();
            assert!(!rest(client).await.contains("200 OK"));
            assert_eq!(start.elapsed().as_secs(), 5, "{begun:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_takes_requests_for_thirty_seconds() {
        let start = Instant::now();
        let (client, _stop) = pipe(Duration::ZERO);
        let (reader, mut writer) = tokio::io::split(client);
        let asker = tokio::spawn(async move {
            while writer.write_all(REQUEST).await.is_ok() {
                sleep(Duration::from_secs(4)).await;
            }
        });
        let mut replies = Vec::new();
        let mut reader = tokio::io::BufReader::new(reader);
        reader.read_to_end(&mut replies).await.unwrap();
        assert_eq!(start.elapsed().as_secs(), 30);
        assert_eq!(String::from_utf8(replies).unwrap().matches("200 OK").count(), 8);
        asker.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_in_progress_outlives_its_connections_age_and_stopping() {
        for (takes, stops) in [(45, false), (20, true)] {
            let start = Instant::now();
            let (mut client, stop) = pipe(Duration::from_secs(takes));
            client.write_all(REQUEST).await.unwrap();
            sleep(Duration::from_secs(1)).await;
            stop.send_replace(stops);
            assert!(rest(client).await.contains("200 OK"));
            assert_eq!(start.elapsed().as_secs(), takes);
        }
    }
}
