//! The admin door: HTTP over a unix socket, the only way to change a running node.
//!
//! Who may connect is decided by the socket's file mode; who did is known from the kernel and stands in each log
//! line. No header of a request is trusted, and none allows another origin to read a reply. See docs/admin.md.

pub mod client;
mod render;
mod socket;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Collected, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
pub use render::{render_grants, render_status};
use serde_json::json;
pub use socket::{Socket, SocketError};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::timeout;

use super::http::{self, Accept, Limits, Reply};
use super::node::{FlushOrder, GrantFilter, Node, Who};

const LIMITS: Limits = Limits { connections: 64, finish: Duration::from_secs(60) };
/// The largest request body, in bytes.
const BODY: usize = 1024 * 1024;
/// How long a request body may take.
const BODY_TIME: Duration = Duration::from_secs(5);

/// Serves the socket until `stop`; removes its file at the end.
pub async fn serve<N: Node>(socket: Socket, node: Arc<N>, stop: watch::Receiver<bool>) {
    let handle = move |request: Request<Incoming>, who: Who| {
        let node = Arc::clone(&node);
        async move {
            let (method, path) = (request.method().clone(), request.uri().path().to_owned());
            let reply = answer(&node, request, who).await;
            let status = reply.status().as_u16();
            if method == Method::GET || method == Method::HEAD {
                tracing::debug!(%who, %method, ?path, status, "admin");
            } else {
                tracing::info!(%who, %method, ?path, status, "admin");
            }
            reply
        }
    };
    http::serve(socket, LIMITS, handle, stop).await;
}

impl Accept for Socket {
    type Stream = UnixStream;
    type Peer = Who;

    async fn accept(&self) -> io::Result<(UnixStream, Who)> {
        let (stream, _) = self.listener().accept().await?;
        let credentials = stream.peer_cred()?;
        Ok((stream, Who { uid: credentials.uid(), gid: credentials.gid(), pid: credentials.pid() }))
    }
}

async fn answer<N: Node>(node: &Arc<N>, request: Request<Incoming>, who: Who) -> Reply {
    let read = request.method() == Method::GET || request.method() == Method::HEAD;
    match request.uri().path() {
        "/v1/status" | "/v1/grants" if !read => http::wrong_method("GET, HEAD"),
        "/v1/flush" | "/v1/reload" if request.method() != Method::POST => http::wrong_method("POST"),
        "/v1/status" => http::json(StatusCode::OK, &node.status()),
        "/v1/grants" => match GrantFilter::parse(request.uri().query().unwrap_or_default()) {
            Ok(filter) => {
                let grants = node.grants(&filter).await;
                http::json(StatusCode::OK, &json!({ "grants": grants }))
            }
            Err(why) => http::refuse(StatusCode::BAD_REQUEST, &why),
        },
        "/v1/reload" => match empty(request.into_body()).await {
            Ok(()) => reload(node, who).await,
            Err(refusal) => refusal,
        },
        "/v1/flush" => {
            let order = FlushOrder::parse(request.uri().query().unwrap_or_default());
            match (order, empty(request.into_body()).await) {
                (Ok(order), Ok(())) => http::json(StatusCode::OK, &json!(node.flush(&who, &order))),
                (Err(why), Ok(())) => http::refuse(StatusCode::BAD_REQUEST, &why),
                (_, Err(refusal)) => refusal,
            }
        }
        _ => http::not_found("/v1/status, /v1/grants, /v1/flush, /v1/reload"),
    }
}

/// A task of its own: a caller that hangs up does not leave a reload half done.
async fn reload<N: Node>(node: &Arc<N>, who: Who) -> Reply {
    let node = Arc::clone(node);
    match tokio::spawn(async move { node.reload(&who).await }).await {
        Ok(Ok(done)) => http::json(StatusCode::OK, &done),
        Ok(Err(mistakes)) => http::json(StatusCode::UNPROCESSABLE_ENTITY, &json!({ "errors": mistakes })),
        Err(error) => http::refuse(StatusCode::INTERNAL_SERVER_ERROR, &format!("the reload broke off: {error}")),
    }
}

/// Reads a body, within limits, that must say nothing: what would be ignored is refused.
async fn empty(body: Incoming) -> Result<(), Reply> {
    match timeout(BODY_TIME, Limited::new(body, BODY).collect()).await.map(|body| body.map(Collected::to_bytes)) {
        Ok(Ok(body)) if body.is_empty() => Ok(()),
        Ok(Ok(_)) => Err(http::refuse(StatusCode::BAD_REQUEST, "this request takes no body")),
        Ok(Err(_)) => Err(http::refuse(StatusCode::PAYLOAD_TOO_LARGE, "a body may have 1 MiB at most")),
        Err(_) => Err(http::refuse(StatusCode::REQUEST_TIMEOUT, "the body took longer than 5 s")),
    }
}
