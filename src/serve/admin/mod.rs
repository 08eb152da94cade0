//! The admin door: HTTP over a unix socket, the only way to change a running node.
//!
//! Who may connect is decided by the socket's file mode; who did is known from the kernel and stands in each log
//! line. No header of a request is trusted, and none allows another origin to read a reply. See docs/admin.md.

pub mod client;
mod render;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Collected, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, StatusCode};
pub use render::{render_clients, render_grants, render_status};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::timeout;

use super::Socket;
use super::http::{self, Accept, Limits, Reply};
use super::node::{FlushOrder, GrantFilter, Node, PromoteOrder, Who, reason};
use super::order::{ChangeOrder, ForgetOrder, PlaceOrder, RevokeOrder};

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
        let (stream, _) = self.as_ref().accept().await?;
        let credentials = stream.peer_cred()?;
        Ok((stream, Who { uid: credentials.uid(), gid: credentials.gid(), pid: credentials.pid() }))
    }
}

async fn answer<N: Node>(node: &Arc<N>, request: Request<Incoming>, who: Who) -> Reply {
    let read = request.method() == Method::GET || request.method() == Method::HEAD;
    match request.uri().path() {
        "/v1/status" | "/v1/grants" if !read => http::wrong_method("GET, HEAD"),
        "/v1/flush" | "/v1/promote" | "/v1/reload" | "/v1/changes" | "/v1/revoke" | "/v1/forget"
            if request.method() != Method::POST =>
        {
            http::wrong_method("POST")
        }
        "/v1/status" => http::json(StatusCode::OK, &node.status()),
        "/v1/grants" => match GrantFilter::parse(request.uri().query().unwrap_or_default()) {
            Ok(filter) => {
                let grants = node.grants(&filter).await;
                http::json(StatusCode::OK, &json!({ "grants": grants }))
            }
            Err(why) => http::refuse(StatusCode::BAD_REQUEST, &why),
        },
        "/v1/reload" => match empty(request.into_body()).await {
            Ok(()) => {
                let node = Arc::clone(node);
                finish(Ok(async move { node.reload(&who).await })).await
            }
            Err(refusal) => refusal,
        },
        "/v1/promote" => {
            let order = PromoteOrder::parse(request.uri().query().unwrap_or_default());
            match (order, empty(request.into_body()).await) {
                (Ok(order), Ok(())) => promote(node, who, order).await,
                (Err(why), Ok(())) => http::refuse(StatusCode::BAD_REQUEST, &why),
                (_, Err(refusal)) => refusal,
            }
        }
        "/v1/flush" => {
            let order = FlushOrder::parse(request.uri().query().unwrap_or_default());
            match (order, empty(request.into_body()).await) {
                (Ok(order), Ok(())) => http::json(StatusCode::OK, &json!(node.flush(&who, &order))),
                (Err(why), Ok(())) => http::refuse(StatusCode::BAD_REQUEST, &why),
                (_, Err(refusal)) => refusal,
            }
        }
        "/v1/revoke" => {
            let order = order::<RevokeOrder>(request.into_body()).await;
            let node = Arc::clone(node);
            finish(order.map(|order| async move { node.revoke(&who, order).await })).await
        }
        "/v1/forget" => {
            let order = order::<ForgetOrder>(request.into_body()).await;
            let node = Arc::clone(node);
            finish(order.map(|order| async move { node.forget(&who, order).await })).await
        }
        "/v1/changes" => {
            let order = order::<ChangeOrder>(request.into_body()).await;
            let node = Arc::clone(node);
            finish(order.map(|order| async move { node.change(&who, order).await })).await
        }
        "/v1/clients" if read => http::json(StatusCode::OK, &json!({ "clients": node.clients() })),
        "/v1/clients" if request.method() == Method::POST => {
            let order = order::<PlaceOrder>(request.into_body()).await;
            let node = Arc::clone(node);
            finish(order.map(|order| async move { node.place(&who, order).await })).await
        }
        "/v1/clients" => http::wrong_method("GET, HEAD, POST"),
        path => match (path.strip_prefix("/v1/changes/"), path.strip_prefix("/v1/clients/")) {
            (None, None) => http::not_found(
                "/v1/status, /v1/grants, /v1/flush, /v1/reload, /v1/promote, /v1/changes, /v1/revoke, /v1/forget, /v1/clients",
            ),
            _ if request.method() != Method::DELETE => http::wrong_method("DELETE"),
            (Some(id), _) => {
                let (id, query) = (id.to_owned(), request.uri().query().unwrap_or_default().to_owned());
                let order = match (empty(request.into_body()).await, reason(&query)) {
                    (Ok(()), Ok(why)) => Ok(why),
                    (Ok(()), Err(why)) => Err(http::refuse(StatusCode::BAD_REQUEST, &why)),
                    (Err(refusal), _) => Err(refusal),
                };
                let node = Arc::clone(node);
                finish(order.map(|why| async move { node.retract(&who, &id, &why).await })).await
            }
            (_, client) => {
                let client = client.unwrap_or_default();
                let named = client
                    .parse()
                    .map_err(|_| http::refuse(StatusCode::BAD_REQUEST, &format!("{client:?} is not an IP address")));
                let order = empty(request.into_body()).await.and(named);
                let node = Arc::clone(node);
                finish(order.map(|client| async move { node.take_out(&who, client).await })).await
            }
        },
    }
}

/// Does what was ordered, in a task of its own: a caller that hangs up does not leave it half done.
async fn finish<F>(order: Result<F, Reply>) -> Reply
where
    F: Future<Output = Result<Value, Vec<String>>> + Send + 'static,
{
    let doing = match order {
        Ok(doing) => tokio::spawn(doing),
        Err(refusal) => return refusal,
    };
    match doing.await {
        Ok(Ok(done)) => http::json(StatusCode::OK, &done),
        Ok(Err(mistakes)) => http::json(StatusCode::UNPROCESSABLE_ENTITY, &json!({ "errors": mistakes })),
        Err(error) => http::refuse(StatusCode::INTERNAL_SERVER_ERROR, &format!("it broke off: {error}")),
    }
}

/// As for a reload.
async fn promote<N: Node>(node: &Arc<N>, who: Who, order: PromoteOrder) -> Reply {
    let node = Arc::clone(node);
    match tokio::spawn(async move { node.promote(&who, &order).await }).await {
        Ok(Ok(done)) => http::json(StatusCode::OK, &done),
        Ok(Err(why)) => http::refuse(StatusCode::CONFLICT, &why),
        Err(error) => http::refuse(StatusCode::INTERNAL_SERVER_ERROR, &format!("the promotion broke off: {error}")),
    }
}

/// Reads a body that must say nothing: what would be ignored is refused.
async fn empty(body: Incoming) -> Result<(), Reply> {
    match read(body).await?.is_empty() {
        true => Ok(()),
        false => Err(http::refuse(StatusCode::BAD_REQUEST, "this request takes no body")),
    }
}

/// Reads a body that is an order in JSON.
async fn order<T: DeserializeOwned>(body: Incoming) -> Result<T, Reply> {
    let body = read(body).await?;
    serde_json::from_slice(&body).map_err(|error| {
        http::refuse(StatusCode::BAD_REQUEST, &format!("the body is not what this request takes: {error}"))
    })
}

/// Reads a body, within limits.
async fn read(body: Incoming) -> Result<Bytes, Reply> {
    match timeout(BODY_TIME, Limited::new(body, BODY).collect()).await.map(|body| body.map(Collected::to_bytes)) {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(_)) => Err(http::refuse(StatusCode::PAYLOAD_TOO_LARGE, "a body may have 1 MiB at most")),
        Err(_) => Err(http::refuse(StatusCode::REQUEST_TIMEOUT, "the body took longer than 5 s")),
    }
}
