//! TLS for the encrypted doors: one certificate, read again on every reload.
//!
//! rustls over *ring*: no C library parses what a stranger sent, and a C compiler is all that the build needs
//! (aws-lc wants CMake on some targets and doubles the build). TLS 1.2 and 1.3. No early data: it can be replayed, and
//! a query may open a firewall.

mod certificate;
mod files;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::net::TcpStream;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{Accept, TlsAcceptor};

use self::certificate::Certificate;
use crate::document::{Mistake, Place, Table};
use crate::name::Name;
use crate::time::Wall;

/// What is spoken over TLS. A client that does not say what it wants (ALPN) gets it all the same; one that wants
/// something else alone is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Alpn {
    /// DNS over TLS.
    Dot,
    /// DNS over HTTPS.
    Http,
}

impl Alpn {
    /// Its names, the preferred one first.
    fn names(self) -> Vec<Vec<u8>> {
        match self {
            Self::Dot => vec![b"dot".to_vec()],
            Self::Http => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        }
    }
}

/// `[tls]`: where certificate and key are.
#[derive(Clone, Debug)]
pub struct Settings {
    certificate: Named,
    key: Named,
}

/// A file and where its name is written.
#[derive(Clone, Debug)]
struct Named {
    path: PathBuf,
    place: Place,
}

impl Settings {
    /// Reads `[tls]`, if it is there; relative paths begin at `base`. Mistakes are noted in its document.
    #[must_use]
    pub fn read(root: &Table, base: &Path) -> Option<Self> {
        let table = root.table("tls")?;
        let named = |key| {
            let found = table.required_string(key)?;
            Some(Named { path: base.join(found.value), place: table.document().place(&found.span) })
        };
        let (certificate, key) = (named("certificate"), named("key"));
        table.finish(&[]);
        Some(Self { certificate: certificate?, key: key? })
    }
}

/// Certificate and key, ready to be served.
pub struct Identity {
    /// SHA-256 over both files: whether a reload found others.
    digest: [u8; 32],
    own: Certificate,
    dot: Arc<ServerConfig>,
    http: Arc<ServerConfig>,
}

impl Identity {
    /// Reads both files; what is no mistake but should be known goes into `warnings`.
    ///
    /// # Errors
    /// Every mistake of both.
    pub fn load(settings: &Settings, now: Wall, warnings: &mut Vec<Mistake>) -> Result<Self, Vec<Mistake>> {
        let files::Read { digest, own, config } = files::read(settings, now, warnings)?;
        let speaking = |protocol: Alpn| {
            let mut config = config.clone();
            config.alpn_protocols = protocol.names();
            Arc::new(config)
        };
        Ok(Self { digest, own, dot: speaking(Alpn::Dot), http: speaking(Alpn::Http) })
    }
}

impl Identity {
    /// The first name of a host in the certificate, and all its addresses.
    #[must_use]
    pub fn names(&self) -> Option<(&Name, &[IpAddr])> {
        Some((self.own.names.first()?, &self.own.addresses))
    }
}

/// The certificate in force, shared by the encrypted doors.
pub struct Tls(ArcSwap<Identity>);

impl Tls {
    /// Serves `identity` from here on.
    #[must_use]
    pub fn new(identity: Identity) -> Arc<Self> {
        Arc::new(Self(ArcSwap::from_pointee(identity)))
    }

    /// Serves `identity` to whoever connects from here on; connections go on under the one they began with. True
    /// where it is another one than before: then sessions of before are not resumed.
    pub fn renew(&self, identity: Identity) -> bool {
        let renewed = identity.digest != self.0.load().digest;
        if renewed {
            self.0.store(Arc::new(identity));
        }
        renewed
    }

    /// The end of the certificate's life.
    #[must_use]
    pub fn not_after(&self) -> Wall {
        self.0.load().own.not_after
    }

    /// The handshake of a connection that is to speak this.
    pub(super) fn accept(&self, protocol: Alpn, stream: TcpStream) -> Accept<TcpStream> {
        let identity = self.0.load();
        let config = match protocol {
            Alpn::Dot => &identity.dot,
            Alpn::Http => &identity.http,
        };
        TlsAcceptor::from(Arc::clone(config)).accept(stream)
    }
}

/// A connection of an encrypted door.
pub(super) type Encrypted = TlsStream<TcpStream>;
