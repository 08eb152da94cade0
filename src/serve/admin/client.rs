//! The other end of the admin socket: one request from the command line.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::HOST;
pub use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use nix::unistd::geteuid;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// How long a call may take; a reload of a large policy is the longest.
const PATIENCE: Duration = Duration::from_secs(60);
/// The largest reply, in bytes: twice what the most grants take.
const REPLY: usize = 64 * 1024 * 1024;

/// Why a call got no answer. Each message is one sentence with its remedy.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No socket, or nobody listens.
    #[error("no outgate answers on {0}; is it running, and with this configuration?")]
    Absent(PathBuf),
    /// No permission.
    #[error("user {us} may not talk to outgate on {path}; run this as root, or as a member of the socket's group")]
    Denied {
        /// The socket.
        path: PathBuf,
        /// The user that we are.
        us: u32,
    },
    /// It took too long.
    #[error("outgate did not answer on {0} within 60 s; its log may say why")]
    Slow(PathBuf),
    /// What came is not an answer of ours.
    #[error("what answers on {path} is not this version's outgate ({why}); is the socket another program's?")]
    Foreign {
        /// The socket.
        path: PathBuf,
        /// What was wrong.
        why: String,
    },
}

/// Makes one request, `path` with its query and perhaps a JSON body; the status code and the JSON body.
///
/// # Errors
/// See [`ClientError`]. A refusal by the node is not an error: it has a status code from 400 and `error` or `errors`.
pub async fn call(
    socket: &Path,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Result<(u16, Value), ClientError> {
    match timeout(PATIENCE, exchange(socket, method, path, body)).await {
        Ok(result) => result,
        Err(_) => Err(ClientError::Slow(socket.to_owned())),
    }
}

async fn exchange(
    socket: &Path,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Result<(u16, Value), ClientError> {
    let foreign = |why: &dyn std::fmt::Display| ClientError::Foreign { path: socket.to_owned(), why: why.to_string() };
    let stream = UnixStream::connect(socket).await.map_err(|error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => ClientError::Absent(socket.to_owned()),
        ErrorKind::PermissionDenied => ClientError::Denied { path: socket.to_owned(), us: geteuid().as_raw() },
        _ => foreign(&error),
    })?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, "outgate")
        .body(Full::new(Bytes::from(body.map_or_else(String::new, Value::to_string))))
        .map_err(|error| foreign(&error))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| foreign(&error))?;
    let answered = async {
        let reply = sender.send_request(request).await.map_err(|error| foreign(&error))?;
        let status = reply.status().as_u16();
        let body = Limited::new(reply.into_body(), REPLY).collect().await.map_err(|error| foreign(&error))?;
        let body = serde_json::from_slice(&body.to_bytes()).map_err(|error| foreign(&error))?;
        Ok((status, body))
    };
    // The connection does the reading and writing; where it ends first, the request has its error.
    let driven = async {
        let _ = connection.await;
        std::future::pending().await
    };
    tokio::select! {
        result = answered => result,
        never = driven => never,
    }
}
