//! A site with a certificate, and clients that trust it.

use std::fs::{self, Permissions};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::dns::Stream;
use crate::harness::{Site, free_port, loopback};

pub(crate) type Encrypted = Stream<StreamOwned<ClientConnection, TcpStream>>;

/// A site with one more door, by its key in `[listen]`, and that door's address.
pub(crate) fn site(door: &str) -> (Site, SocketAddr) {
    let site = Site::new();
    let address = loopback(free_port());
    let listen = format!("[listen]\ndns = [\"{}\"]\nworkers = 1\n{door} = [\"{address}\"]", site.dns);
    let tls = "[tls]\ncertificate = \"tls/cert.pem\"\nkey = \"tls/key.pem\"";
    let site = site.with("listen", listen).with("tls", tls);
    renew(&site);
    (site, address)
}

/// Another key and a certificate of it.
pub(crate) fn renew(site: &Site) {
    let key = KeyPair::generate().unwrap();
    let names = ["dns.example.org".to_owned(), "127.0.0.1".to_owned()];
    let certificate = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
    site.file("tls/cert.pem", &certificate.pem());
    site.file("tls/key.pem", &key.serialize_pem());
    fs::set_permissions(site.path("tls/key.pem"), Permissions::from_mode(0o600)).unwrap();
}

/// A client that trusts the present certificate of the site, and nothing else.
pub(crate) fn client(site: &Site, protocols: &[&[u8]]) -> Arc<ClientConfig> {
    showing(site, protocols, None)
}

/// One that shows a certificate.
pub(crate) fn showing(
    site: &Site,
    protocols: &[&[u8]],
    shown: Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>,
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(site.path("tls/cert.pem")).unwrap()).unwrap();
    let config = ClientConfig::builder().with_root_certificates(roots);
    let mut config = match shown {
        Some((certificate, key)) => config.with_client_auth_cert(vec![certificate], key).unwrap(),
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Arc::new(config)
}

/// A connection; the handshake is made with the first octet.
pub(crate) fn connect(address: SocketAddr, config: &Arc<ClientConfig>) -> Encrypted {
    connect_from([127, 0, 0, 1], address, config)
}

/// The same from another address of this machine.
pub(crate) fn connect_from(from: [u8; 4], address: SocketAddr, config: &Arc<ClientConfig>) -> Encrypted {
    let Stream(socket) = Stream::from(from, address);
    let name = ServerName::try_from("dns.example.org").unwrap();
    let connection = ClientConnection::new(Arc::clone(config), name).unwrap();
    Stream(StreamOwned::new(connection, socket))
}
