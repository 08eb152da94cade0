//! Clients over QUIC.

use std::net::SocketAddr;
use std::sync::Arc;

use hickory_proto::op::Message;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, ReadToEndError, TransportConfig};
use tokio_rustls::rustls;

use crate::dns::framed;
use crate::harness::BOUND;

/// Runs a test whose connections go on while it waits for the node.
pub(crate) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(3 * BOUND, test).await.unwrap() });
}

/// A client of this machine.
pub(crate) struct Client {
    pub(crate) endpoint: Endpoint,
    config: ClientConfig,
}

impl Client {
    pub(crate) fn new(config: &Arc<rustls::ClientConfig>) -> Self {
        Self::from([127, 0, 0, 1], config)
    }

    pub(crate) fn from(from: [u8; 4], config: &Arc<rustls::ClientConfig>) -> Self {
        let crypto = QuicClientConfig::try_from(Arc::clone(config)).unwrap();
        Self { endpoint: Endpoint::client((from, 0).into()).unwrap(), config: ClientConfig::new(Arc::new(crypto)) }
    }

    /// One that is never silent for long.
    pub(crate) fn pinging(mut self) -> Self {
        let mut transport = TransportConfig::default();
        transport.keep_alive_interval(Some(std::time::Duration::from_millis(500)));
        self.config.transport_config(Arc::new(transport));
        self
    }

    pub(crate) fn begin(&self, address: SocketAddr) -> quinn::Connecting {
        self.endpoint.connect_with(self.config.clone(), address, "dns.example.org").unwrap()
    }

    pub(crate) async fn connect(&self, address: SocketAddr) -> Result<Connection, ConnectionError> {
        self.begin(address).await
    }
}

/// One query over DNS over QUIC, which has no id.
pub(crate) async fn ask(connection: &Connection, mut query: Message) -> Message {
    query.metadata.id = 0;
    let stream = framed(&query.to_vec().unwrap());
    let reply = told(connection, &stream).await.unwrap();
    assert_eq!(usize::from(u16::from_be_bytes([reply[0], reply[1]])), reply.len() - 2);
    let reply = Message::from_vec(&reply[2..]).unwrap();
    assert_eq!(reply.metadata.id, 0);
    reply
}

/// All that is sent back on a stream that brings this.
async fn told(connection: &Connection, stream: &[u8]) -> Result<Vec<u8>, ReadToEndError> {
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    send.write_all(stream).await.unwrap();
    send.finish().unwrap();
    receive.read_to_end(70_000).await
}

/// The code that the server ends a connection with.
pub(crate) async fn code_of(connection: &Connection) -> u64 {
    match connection.closed().await {
        ConnectionError::ApplicationClosed(close) => close.error_code.into_inner(),
        other => panic!("{other}"),
    }
}
