//! Certificate and key from their files, with every mistake that an operator can make there.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::crypto::ring::{Ticketer, default_provider};
use tokio_rustls::rustls::pki_types::pem::{self, PemObject as _};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::server::{NoClientAuth, NoServerSessionStorage, WebPkiClientVerifier};
use tokio_rustls::rustls::sign::{CertifiedKey, SigningKey, SingleCertAndKey};
use tokio_rustls::rustls::{Error, InconsistentKeys, RootCertStore, ServerConfig};

use super::certificate::Certificate;
use super::{Named, Settings};
use crate::document::Mistake;
use crate::time::Wall;

/// The largest file read: far above any chain.
const LARGEST_FILE: u64 = 1 << 20;

/// How long before its end a certificate is warned of.
const SOON: u64 = 7 * 24 * 60 * 60 * 1_000_000;

/// What was made of the files.
pub(super) struct Read {
    pub(super) digest: [u8; 32],
    /// Of the clients' authorities alone; zeros: none are trusted.
    pub(super) ca_digest: [u8; 32],
    /// The server's own.
    pub(super) own: Certificate,
    /// Without application protocols.
    pub(super) config: ServerConfig,
}

/// Reads the files and tries whether they belong together.
pub(super) fn read(settings: &Settings, now: Wall, warnings: &mut Vec<Mistake>) -> Result<Read, Vec<Mistake>> {
    let Settings { certificate, key, client_ca } = settings;
    let provider = Arc::new(default_provider());
    let mut mistakes = Vec::new();
    let chain = certificate.contents().and_then(|pem| certificate.chain(&pem, now).map(|chain| (pem, chain)));
    let signing = key.contents().and_then(|pem| key.key(&pem, &provider).map(|signing| (pem, signing)));
    let clients = client_ca.as_ref().map(|ca| ca.contents().and_then(|pem| ca.verifier(&pem, &provider))).transpose();
    let (chain, signing, clients) = match (chain, signing, clients) {
        (Ok(chain), Ok(signing), Ok(clients)) => (chain, signing, clients),
        (chain, signing, clients) => {
            mistakes.extend(chain.err());
            mistakes.extend(signing.err());
            mistakes.extend(clients.err());
            return Err(mistakes);
        }
    };
    let (certificate_pem, Chain { certificates, own, warning }) = chain;
    let (key_pem, signing) = signing;
    let certified = CertifiedKey::new(certificates, signing);
    match certified.keys_match() {
        // A key that cannot tell its public half is taken at its word.
        Ok(()) | Err(Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
        Err(Error::InconsistentKeys(_)) => {
            let fact = format!("{} is not the key of the first certificate in {}", key.shown(), certificate.shown());
            let remedy =
                "name the key it was made for; the server's own certificate stands first, its issuers after it";
            return Err(vec![key.mistake(fact, remedy)]);
        }
        Err(error) => {
            let fact = format!("{} cannot be used: {error}", certificate.shown());
            return Err(vec![certificate.mistake(fact, "have it issued anew: X.509 version 3 with a common key type")]);
        }
    }
    let (verifier, ca_digest) = clients.unwrap_or_else(|| (Arc::new(NoClientAuth), [0; 32]));
    let config = config(provider, certified, verifier).map_err(|error| {
        vec![certificate.mistake(format!("{} cannot be used: {error}", certificate.shown()), "have it issued anew")]
    })?;
    warnings.extend(warning);
    warnings.extend(key.open_to_all());
    let digest = Sha256::new_with_prefix(&certificate_pem).chain_update(&key_pem).chain_update(ca_digest);
    Ok(Read { digest: digest.finalize().into(), ca_digest, own, config })
}

fn config(
    provider: Arc<CryptoProvider>,
    certified: CertifiedKey,
    clients: Arc<dyn ClientCertVerifier>,
) -> Result<ServerConfig, Error> {
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    // Sessions are resumed from tickets that clients keep: nothing here grows with the number of clients.
    config.ticketer = Ticketer::new()?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}

/// A chain of certificates, the server's own first.
struct Chain {
    certificates: Vec<CertificateDer<'static>>,
    own: Certificate,
    /// What should be known of its life.
    warning: Option<Mistake>,
}

impl Named {
    pub(super) fn shown(&self) -> String {
        self.path.display().to_string()
    }

    pub(super) fn mistake(&self, fact: impl Into<String>, remedy: impl Into<String>) -> Mistake {
        Mistake::at(self.place.clone(), fact, remedy)
    }

    fn contents(&self) -> Result<Vec<u8>, Mistake> {
        let mut contents = Vec::new();
        let read = File::open(&self.path).and_then(|file| file.take(LARGEST_FILE + 1).read_to_end(&mut contents));
        match read {
            Ok(length) if length as u64 > LARGEST_FILE => {
                let fact = format!("{} is larger than {} MiB", self.shown(), LARGEST_FILE >> 20);
                Err(self.mistake(fact, "name a PEM file"))
            }
            Ok(_) => Ok(contents),
            Err(error) => {
                let remedy = match error.kind() {
                    io::ErrorKind::NotFound => "create it, or correct its name",
                    _ => "let the user that runs outgate read it",
                };
                Err(self.mistake(format!("{} cannot be read: {error}", self.shown()), remedy))
            }
        }
    }

    fn chain(&self, pem: &[u8], now: Wall) -> Result<Chain, Mistake> {
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
        let certificates = certificates.map_err(|error| {
            self.mistake(format!("{} is not PEM: {error}", self.shown()), "write the chain in PEM: BEGIN CERTIFICATE")
        })?;
        let Some(first) = certificates.first() else {
            let fact = format!("{} holds no certificate", self.shown());
            return Err(self.mistake(fact, "write the chain in PEM: BEGIN CERTIFICATE"));
        };
        let Some(own) = Certificate::read(first) else {
            let fact = format!("the first certificate in {} cannot be read", self.shown());
            return Err(self.mistake(fact, "have it issued anew: X.509 in DER, written as PEM"));
        };
        let Certificate { not_before, not_after, .. } = own;
        let ending = |verb| format!("the certificate in {} {verb} {}", self.shown(), day(not_after));
        let warning = if now > not_after {
            Some(self.mistake(ending("ended on"), "renew it and reload: clients that look at it refuse it"))
        } else if not_after.0 - now.0 < SOON {
            Some(self.mistake(ending("ends on"), "renew it and reload"))
        } else if now < not_before {
            let fact = format!("the certificate in {} begins on {}", self.shown(), day(not_before));
            Some(self.mistake(fact, "look at this machine's clock: until then clients refuse it"))
        } else {
            None
        };
        Ok(Chain { certificates, own, warning })
    }

    /// Who judges certificates of clients, who may show one, and the digest of the file.
    fn verifier(
        &self,
        pem: &[u8],
        provider: &Arc<CryptoProvider>,
    ) -> Result<(Arc<dyn ClientCertVerifier>, [u8; 32]), Mistake> {
        let remedy = "write the authority's certificate in PEM: BEGIN CERTIFICATE";
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate =
                certificate.map_err(|error| self.mistake(format!("{} is not PEM: {error}", self.shown()), remedy))?;
            roots.add(certificate).map_err(|error| {
                self.mistake(format!("a certificate in {} cannot be used: {error}", self.shown()), remedy)
            })?;
        }
        if roots.is_empty() {
            return Err(self.mistake(format!("{} holds no certificate", self.shown()), remedy));
        }
        let builder = WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(provider));
        let verifier = builder.allow_unauthenticated().build();
        let verifier =
            verifier.map_err(|error| self.mistake(format!("{} cannot be used: {error}", self.shown()), remedy))?;
        Ok((verifier, Sha256::digest(pem).into()))
    }

    fn key(&self, pem: &[u8], provider: &CryptoProvider) -> Result<Arc<dyn SigningKey>, Mistake> {
        let key = PrivateKeyDer::from_pem_slice(pem).map_err(|error| {
            let encrypted = pem.windows(9).any(|window| window == b"ENCRYPTED");
            match error {
                pem::Error::NoItemsFound if encrypted => self.mistake(
                    format!("the key in {} is encrypted, and nobody is there to type its passphrase", self.shown()),
                    "decrypt it (openssl pkey -in … -out …), and let only outgate read it",
                ),
                pem::Error::NoItemsFound => {
                    self.mistake(format!("{} holds no private key", self.shown()), "write it in PEM: BEGIN PRIVATE KEY")
                }
                error => {
                    self.mistake(format!("{} is not PEM: {error}", self.shown()), "write it in PEM: BEGIN PRIVATE KEY")
                }
            }
        })?;
        provider.key_provider.load_private_key(key).map_err(|_| {
            let fact = format!("the key in {} is of a kind that is not supported", self.shown());
            self.mistake(fact, "use ECDSA on P-256 or P-384, Ed25519, or RSA of 2048 to 4096 bits")
        })
    }

    /// A key that every user of this machine may read.
    fn open_to_all(&self) -> Option<Mistake> {
        let mode = self.path.metadata().ok()?.permissions().mode();
        let fact = format!("every user of this machine may read the key in {}", self.shown());
        (mode & 0o007 != 0).then(|| self.mistake(fact, format!("chmod o= {}", self.shown())))
    }
}

/// A moment's day: `2026-11-21`.
fn day(moment: Wall) -> String {
    let mut text = moment.to_string();
    text.truncate("2026-11-21".len());
    text
}

#[cfg(test)]
mod tests;
