//! Built without the feature `quic`: there are no doors, and the configuration refuses their keys.

use std::net::SocketAddr;
use std::sync::Arc;

use socket2::Socket;
use tokio::sync::watch;

use super::tcp::{StreamGate, Streams};
use super::tls::Tls;
use super::udp::BindError;

/// What is spoken at a door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speech {
    /// DNS over QUIC.
    Doq,
    /// DNS over HTTP/3.
    H3,
}

/// One that is there in no build like this.
pub enum Door {}

impl Door {
    /// There is none.
    ///
    /// # Errors
    /// Always.
    pub fn new(address: SocketAddr, _: Option<Socket>, _: &'static str, _: Speech) -> Result<Self, BindError> {
        Err(BindError::Other(address, std::io::ErrorKind::Unsupported.into()))
    }

    /// Where it is.
    #[must_use]
    pub const fn address(&self) -> Option<SocketAddr> {
        match *self {}
    }

    /// Serves nobody.
    pub async fn serve<G: StreamGate>(self, _: Arc<Tls>, _: Arc<G>, _: Arc<Streams>, _: watch::Receiver<bool>) {
        match self {}
    }
}
