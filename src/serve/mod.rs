//! Doors: where queries, operators and monitoring come in.
//!
//! Each door takes a listener that the app has bound, or was [`Given`], and runs until the `stop` channel says true (or its sender is
//! gone): then it takes nothing new, finishes what it has begun and returns.

pub mod admin;
mod given;
pub mod health;
mod http;
mod https;
mod node;
mod order;
#[cfg_attr(not(feature = "quic"), path = "quic/none.rs")]
pub mod quic;
mod socket;
mod stream;
pub mod tcp;
pub mod tls;
pub mod udp;

pub use given::Given;
pub use node::{FlushOrder, Flushed, GrantFilter, GrantRow, Node, PromoteOrder, Readiness, Who, encode};
pub use order::{ChangeAction, ChangeOrder, ClientRow, ForgetOrder, PlaceOrder, RevokeOrder};
pub use socket::{Socket, SocketError};
pub use stream::StreamDoor;
use tokio::sync::watch;

/// Waits until the node stops.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error: the sender is gone, and with it whoever could have told us.
    let _ = stop.wait_for(|stop| *stop).await;
}

#[cfg(test)]
mod tests;
