//! The health door: read-only HTTP for monitoring.
//!
//! `GET /metrics`, `GET /health/live` (the process runs) and `GET /health/ready` (queries can be answered; if not,
//! 503 and why). Nothing can be changed here, and no client or name can be seen.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::{Method, StatusCode};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::http::{self, Accept, Limits, Reply};
use super::node::Readiness;

const LIMITS: Limits = Limits { connections: 64, finish: Duration::from_secs(5) };

/// What this door shows.
pub trait Health: Send + Sync + 'static {
    /// Whether it does its work.
    fn readiness(&self) -> Readiness;

    /// All metrics in Prometheus text format.
    fn metrics(&self) -> String;
}

/// Serves one listener until `stop`.
pub async fn serve<H: Health>(listener: TcpListener, health: Arc<H>, stop: watch::Receiver<bool>) {
    let handle = move |request: hyper::Request<_>, _| {
        let reply = answer(&*health, request.method(), request.uri().path());
        async move { reply }
    };
    http::serve(listener, LIMITS, handle, stop).await;
}

impl Accept for TcpListener {
    type Stream = TcpStream;
    type Peer = SocketAddr;

    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        Self::accept(self).await
    }
}

fn answer(health: &impl Health, method: &Method, path: &str) -> Reply {
    let known = ["/metrics", "/health/live", "/health/ready"];
    if !known.contains(&path) {
        return http::not_found(&known.join(", "));
    }
    if method != Method::GET && method != Method::HEAD {
        return http::wrong_method("GET, HEAD");
    }
    match path {
        "/metrics" => http::reply(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", health.metrics()),
        "/health/live" => http::json(StatusCode::OK, &json!({ "live": true })),
        _ => {
            let waiting = health.readiness().waiting;
            let ready = waiting.is_empty();
            let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            http::json(status, &json!({ "ready": ready, "waiting": waiting }))
        }
    }
}
