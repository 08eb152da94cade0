//! TLS for the encrypted doors: one certificate, read again on every reload.
//!
//! rustls over *ring*: no C library parses what a stranger sent, and a C compiler is all that the build needs
//! (aws-lc wants CMake on some targets and doubles the build). TLS 1.2 and 1.3. No early data: it can be replayed, and
//! a query may open a firewall.

mod certificate;
mod files;
#[cfg(feature = "quic")]
mod quic;

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::server::TlsStream;

use self::certificate::Certificate;
use crate::document::{Found, Mistake, Place, Table};
use crate::gate::Shown;
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
    /// Whose certificates clients may show.
    client_ca: Option<Named>,
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
        let named =
            |found: Found<String>| Named { path: base.join(found.value), place: table.document().place(&found.span) };
        let (certificate, key) = (table.required_string("certificate"), table.required_string("key"));
        let client_ca = table.string("client_ca").map(named);
        let read = certificate.zip(key).map(|(certificate, key)| (named(certificate), named(key)));
        table.finish(&[]);
        let (certificate, key) = read?;
        Some(Self { certificate, key, client_ca })
    }

    /// Whether clients may show certificates.
    #[must_use]
    pub const fn has_client_ca(&self) -> bool {
        self.client_ca.is_some()
    }
}

/// Certificate and key, ready to be served.
pub struct Identity {
    /// SHA-256 over all files: whether a reload found others.
    digest: [u8; 32],
    /// The same over that of the clients' authorities alone.
    ca_digest: [u8; 32],
    /// They are the ones that are trusted now.
    trusted: Arc<AtomicBool>,
    own: Certificate,
    dot: Arc<ServerConfig>,
    http: Arc<ServerConfig>,
    #[cfg(feature = "quic")]
    quic: quic::Protocols,
}

impl Identity {
    /// Reads the files; what is no mistake but should be known goes into `warnings`.
    ///
    /// # Errors
    /// Every mistake of all.
    pub fn load(settings: &Settings, now: Wall, warnings: &mut Vec<Mistake>) -> Result<Self, Vec<Mistake>> {
        let files::Read { digest, ca_digest, own, config } = files::read(settings, now, warnings)?;
        let speaking = |protocol: Alpn| {
            let mut config = config.clone();
            config.alpn_protocols = protocol.names();
            Arc::new(config)
        };
        let trusted = Arc::new(AtomicBool::new(true));
        Ok(Self {
            digest,
            ca_digest,
            trusted,
            own,
            dot: speaking(Alpn::Dot),
            http: speaking(Alpn::Http),
            #[cfg(feature = "quic")]
            quic: quic::Protocols::new(&config).map_err(|error| vec![settings.certificate.no_quic(&error)])?,
        })
    }

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

    /// Serves `identity` to whoever connects from here on; connections go on under the one they began with, but what was
    /// shown to authorities that are not trusted any more says nothing from here on. True where it is another one than
    /// before: then sessions of before are not resumed.
    pub fn renew(&self, mut identity: Identity) -> bool {
        let before = self.0.load_full();
        if identity.digest == before.digest {
            return false;
        }
        let retired = identity.ca_digest != before.ca_digest;
        if !retired {
            identity.trusted = Arc::clone(&before.trusted);
        }
        self.0.store(Arc::new(identity));
        before.trusted.fetch_and(!retired, Ordering::AcqRel);
        true
    }

    /// The end of the certificate's life.
    #[must_use]
    pub fn not_after(&self) -> Wall {
        self.0.load().own.not_after
    }

    /// The handshake of a connection that is to speak this, and the certificate that the client showed.
    pub(super) async fn accept(
        &self,
        protocol: Alpn,
        stream: TcpStream,
    ) -> io::Result<(Encrypted, Option<Arc<Shown>>)> {
        let identity = self.0.load_full();
        let config = match protocol {
            Alpn::Dot => &identity.dot,
            Alpn::Http => &identity.http,
        };
        let stream = TlsAcceptor::from(Arc::clone(config)).accept(stream).await?;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let shown = shown(chain, &identity.trusted).map(Arc::new);
        Ok((stream, shown))
    }
}

/// What a chain says of its first certificate: valid for as long as all of it is.
fn shown(chain: &[CertificateDer<'_>], trusted: &Arc<AtomicBool>) -> Option<Shown> {
    let chain: Option<Vec<Certificate>> = chain.iter().map(|certificate| Certificate::read(certificate)).collect();
    let chain = chain?;
    let own = chain.first()?;
    let not_after = chain.iter().map(|certificate| certificate.not_after).min()?;
    let hosts = own.names.iter().map(|name| name.to_string().into());
    let names = hosts.chain(own.uris.iter().cloned()).collect();
    Some(Shown { names, not_after, trusted: Arc::clone(trusted) })
}

/// A connection of an encrypted door.
pub(super) type Encrypted = TlsStream<TcpStream>;
