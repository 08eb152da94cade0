//! The same certificate over QUIC.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use quinn::Connection;
use quinn::crypto::rustls::{NoInitialCipherSuite, QuicServerConfig};
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::CertificateDer;

use super::{Named, Tls, shown};
use crate::document::Mistake;
use crate::gate::Shown;
use crate::serve::quic::Speech;

/// An identity for each protocol over QUIC. RFC 9001 §8.1: a client that names none is turned away.
pub(super) struct Protocols {
    doq: Arc<QuicServerConfig>,
    h3: Arc<QuicServerConfig>,
}

impl Protocols {
    pub(super) fn new(config: &ServerConfig) -> Result<Self, NoInitialCipherSuite> {
        let speaking = |protocol: &[u8]| {
            let mut config = config.clone();
            config.alpn_protocols = vec![protocol.to_vec()];
            // Tickets that promise no early data: what comes as such is not taken.
            config.max_early_data_size = 0;
            QuicServerConfig::try_from(config).map(Arc::new)
        };
        Ok(Self { doq: speaking(b"doq")?, h3: speaking(b"h3")? })
    }
}

impl Named {
    pub(super) fn no_quic(&self, error: &NoInitialCipherSuite) -> Mistake {
        self.mistake(format!("{} cannot be used over QUIC: {error}", self.shown()), "have it issued anew")
    }
}

/// What a handshake over QUIC is made with.
pub(in crate::serve) struct Handshake {
    pub(in crate::serve) crypto: Arc<QuicServerConfig>,
    trusted: Arc<AtomicBool>,
}

impl Tls {
    /// The handshake of a connection that begins now.
    pub(in crate::serve) fn over_quic(&self, speech: Speech) -> Handshake {
        let identity = self.0.load();
        let crypto = match speech {
            Speech::Doq => &identity.quic.doq,
            Speech::H3 => &identity.quic.h3,
        };
        Handshake { crypto: Arc::clone(crypto), trusted: Arc::clone(&identity.trusted) }
    }
}

impl Handshake {
    /// The certificate that the client showed.
    pub(in crate::serve) fn shown(&self, connection: &Connection) -> Option<Arc<Shown>> {
        let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
        shown(&chain, &self.trusted).map(Arc::new)
    }
}
