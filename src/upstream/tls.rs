//! TLS to one server: what it must prove, and which way it failed to.
//!
//! RFC 8310 §5, the strict profile: a server that does not prove who it is is not asked, and nothing is asked in clear
//! text in its stead. A name is looked for in its certificate, which an authority must have issued that the system, or
//! the upstream's `ca`, trusts; a digest is compared with its own key, and needs no authority where no name is
//! asked for. Revocation is not looked up: that would ask others.

use std::io;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore,
    SignatureScheme,
};

use super::endpoint::{Pin, Proof};
use super::failure::{Failure, TlsFault};
use crate::time::Wall;

/// How many names of a certificate are told where none of them is the one wanted, and how many octets.
const TOLD: (usize, usize) = (3, 120);

/// How to make a connection to one server an encrypted one.
#[derive(Clone)]
pub(super) struct Tls {
    connector: TlsConnector,
    /// For the certificate, and as the server's name indication; an address is not indicated (RFC 6066 §3).
    name: ServerName<'static>,
}

impl Tls {
    /// For a server that shows `proof` and speaks `protocol`. Where the proof has no name, `address` stands for it: it
    /// is looked for nowhere, and nothing is indicated.
    ///
    /// # Errors
    /// rustls has no use for the authorities: there are none.
    pub(super) fn new(
        proof: &Proof,
        protocol: &[u8],
        address: std::net::IpAddr,
        authorities: &Arc<RootCertStore>,
    ) -> Result<Self, Error> {
        let provider = Arc::new(default_provider());
        let by_name = match proof.name {
            Some(_) => {
                let verifier =
                    WebPkiServerVerifier::builder_with_provider(Arc::clone(authorities), Arc::clone(&provider)).build();
                Some(verifier.map_err(|error| Error::General(error.to_string()))?)
            }
            None => None,
        };
        let verifier = Verifier { by_name, pins: Arc::clone(&proof.pins), provider: Arc::clone(&provider) };
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        config.alpn_protocols = vec![protocol.to_vec()];
        let name = proof.name.clone().unwrap_or_else(|| ServerName::IpAddress(address.into()));
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), name })
    }

    /// The handshake.
    ///
    /// # Errors
    /// [`Failure::Tls`], or [`Failure::Network`] where the connection ended.
    pub(super) async fn handshake(&self, stream: TcpStream) -> Result<TlsStream<TcpStream>, Failure> {
        self.connector.connect(self.name.clone(), stream).await.map_err(|error| failure(&error))
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Tls").field(&self.name).finish()
    }
}

/// A name, a key, or both; see the module.
#[derive(Debug)]
struct Verifier {
    by_name: Option<Arc<WebPkiServerVerifier>>,
    pins: Arc<[Pin]>,
    provider: Arc<CryptoProvider>,
}

/// None of the pinned keys.
#[derive(Debug, thiserror::Error)]
#[error("another key")]
struct OtherKey;

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(by_name) = &self.by_name {
            by_name.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        }
        // Only the server's own key counts: that it has it is what the handshake proves.
        if self.by_name.is_none() || !self.pins.is_empty() {
            let key = ParsedCertificate::try_from(end_entity)?.subject_public_key_info();
            let digest: Pin = Sha256::digest(&key).into();
            if !self.pins.contains(&digest) {
                return Err(CertificateError::Other(OtherError(Arc::new(OtherKey))).into());
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// What an error of a handshake, or of an encrypted stream, comes to.
pub(super) fn failure(error: &io::Error) -> Failure {
    let Some(error) = error.get_ref().and_then(|error| error.downcast_ref::<Error>()) else {
        return Failure::Network(error.kind());
    };
    Failure::Tls(match error {
        Error::InvalidCertificate(error) => of_certificate(error),
        Error::InvalidMessage(_) | Error::InappropriateMessage { .. } | Error::InappropriateHandshakeMessage { .. } => {
            TlsFault::NotTls
        }
        Error::NoApplicationProtocol | Error::AlertReceived(AlertDescription::NoApplicationProtocol) => {
            TlsFault::Protocol
        }
        Error::AlertReceived(alert) => TlsFault::Refused(format!("{alert:?}").into()),
        other => TlsFault::Other(other.to_string().into()),
    })
}

fn of_certificate(error: &CertificateError) -> TlsFault {
    let wall = |time: &UnixTime| Wall(time.as_secs().saturating_mul(1_000_000));
    match error {
        CertificateError::NotValidForNameContext { expected, presented } => {
            TlsFault::Name { expected: expected.to_str().into(), presented: names(presented).into() }
        }
        CertificateError::ExpiredContext { not_after, .. } => TlsFault::Ended(wall(not_after)),
        CertificateError::NotValidYetContext { not_before, .. } => TlsFault::NotYet(wall(not_before)),
        CertificateError::UnknownIssuer => TlsFault::Issuer,
        CertificateError::Other(OtherError(error)) if error.is::<OtherKey>() => TlsFault::Key,
        // An authority's certificate, signed by itself or shown as a server's.
        other => TlsFault::Certificate(other.to_string().into()),
    }
}

/// The names in a certificate, which whoever made it chose, within bounds. rustls tells each as `DnsName("a.example")`.
fn names(presented: &[String]) -> String {
    let bare = |name: &String| {
        let inside = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')')).unwrap_or(name);
        inside.trim_matches('"').escape_debug().to_string()
    };
    let mut told = presented.iter().take(TOLD.0).map(bare).collect::<Vec<_>>().join(", ");
    told.truncate(told.floor_char_boundary(TOLD.1));
    match presented.len() {
        0 => "no name".to_owned(),
        length if length > TOLD.0 => told + " and others",
        _ => told,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_within_bounds() {
        let rows: [(&[&str], &str); 4] = [
            (&[], "no name"),
            (&["DnsName(\"a.example\")", "IpAddress(192.0.2.1)"], "a.example, 192.0.2.1"),
            (&["a", "b", "c", "d"], "a, b, c and others"),
            (&["x\u{1b}[2J"], "x\\u{1b}[2J"),
        ];
        for (presented, expected) in rows {
            let presented: Vec<String> = presented.iter().map(|name| (*name).to_owned()).collect();
            assert_eq!(names(&presented), expected);
        }
        assert_eq!(names(&["a".repeat(5000)]).len(), TOLD.1);
    }
}
