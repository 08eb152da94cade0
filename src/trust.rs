//! Files of trust that an operator names: whose certificates are believed, which one we show, and secrets.
//!
//! Each is read with every mistake that can be made there: place, fact, remedy. A secret that every user of the machine
//! could read is none, and is refused.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::client::verify_server_name;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::document::{Found, Mistake, Place, Table, read_file, read_text};

/// A file, and where the configuration names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Where it lies.
    pub path: PathBuf,
    /// Where the configuration names it.
    pub place: Place,
}

impl Named {
    /// What `key` of a table names; a relative path begins at `base`.
    #[must_use]
    pub fn read(table: &Table, key: &'static str, base: &Path) -> Option<Self> {
        let Found { value, span } = table.string(key)?;
        Some(Self { path: base.join(value), place: table.document().place(&span) })
    }

    fn mistake(&self, fact: impl std::fmt::Display, remedy: &str) -> Mistake {
        Mistake::at(self.place.clone(), format!("{} {fact}", self.path.display()), remedy)
    }

    fn unreadable(&self, error: &io::Error) -> Mistake {
        let remedy = match error.kind() {
            io::ErrorKind::NotFound => "create it, or correct its name",
            _ => "let the user that runs outgate read it",
        };
        self.mistake(format_args!("cannot be read: {error}"), remedy)
    }

    /// Refuses a file that every user of this machine may read.
    fn closed(&self) -> Result<(), Mistake> {
        let metadata = self.path.metadata().map_err(|error| self.unreadable(&error))?;
        match metadata.permissions().mode() & 0o007 {
            0 => Ok(()),
            _ => Err(self.mistake(
                "holds a secret that every user of this machine may read",
                "chmod o= it, and replace the secret",
            )),
        }
    }

    /// The one line of a file that holds a secret; what stands around it is left out.
    ///
    /// # Errors
    /// It cannot be read, may be read by everybody, or is not one line of printable ASCII.
    pub fn secret(&self) -> Result<String, Mistake> {
        self.closed()?;
        let text = read_text(&self.path).map_err(|error| self.unreadable(&error))?;
        let secret = text.trim();
        if secret.is_empty() || !secret.bytes().all(|octet| (b' '..=b'~').contains(&octet)) {
            return Err(self.mistake("is not one line of printable ASCII", "write the secret in it, and nothing else"));
        }
        Ok(secret.to_owned())
    }
}

/// The certificates of a file of authorities, or of those that the system trusts.
///
/// # Errors
/// The file cannot be read, or nobody is trusted.
pub fn authorities(of: Option<&Named>) -> Result<Arc<RootCertStore>, Mistake> {
    let mut store = RootCertStore::empty();
    let Some(named) = of else {
        // One that cannot be read is missed by those whose certificates it issued, and they say so.
        store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if store.is_empty() {
            let remedy = "install them (the package ca-certificates), name a file of your own, ca = \"ca.pem\", or pin \
                          the keys of the servers";
            return Err(Mistake::general("the system has no certificates of authorities to trust", remedy));
        }
        return Ok(Arc::new(store));
    };
    let unreadable = |error: &dyn std::fmt::Display| {
        named.mistake(format_args!("cannot be read: {error}"), "name a readable file in PEM")
    };
    let pem = read_file(&named.path).map_err(|error| unreadable(&error))?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    store.add_parsable_certificates(certificates.map_err(|error| unreadable(&error))?);
    if store.is_empty() {
        return Err(named.mistake("holds no certificate of an authority", "write it in PEM: BEGIN CERTIFICATE"));
    }
    Ok(Arc::new(store))
}

/// How TLS is spoken to a server that is no resolver: the keys `ca`, `certificate` and `key`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientTls {
    /// Whose certificates are believed; `None`: those that the system trusts.
    ca: Option<Named>,
    /// The chain that we show, and its key.
    own: Option<(Named, Named)>,
}

impl ClientTls {
    /// Reads the keys; mistakes are noted in the document.
    #[must_use]
    pub fn read(table: &Table, base: &Path) -> Self {
        let [ca, certificate, key] = ["ca", "certificate", "key"].map(|key| Named::read(table, key, base));
        if certificate.is_some() != key.is_some() {
            let (there, missing) = if certificate.is_some() { ("certificate", "key") } else { ("key", "certificate") };
            let fact = format!("`{there}` is of no use without `{missing}`");
            table.document().note(&table.span_of(there), fact, format!("add {missing} = \"….pem\""));
        }
        Self { ca, own: certificate.zip(key) }
    }

    /// All of the keys are there: both sides show a certificate.
    #[must_use]
    pub const fn is_mutual(&self) -> bool {
        self.ca.is_some() && self.own.is_some()
    }

    /// Notes what is missing for both sides to show a certificate, as a mistake at `key`.
    pub fn require_mutual(&self, table: &Table, key: &'static str, fact: &str) {
        if !self.is_mutual() {
            let remedy = "add ca, certificate and key: both sides know each other by their certificates";
            table.document().note(&table.span_of(key), fact, remedy);
        }
    }

    /// None of the keys is there.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.ca.is_none() && self.own.is_none()
    }

    /// Reads the files. TLS 1.2 and 1.3 over *ring*; no application protocol is named.
    ///
    /// # Errors
    /// A file cannot be read or used, or nobody is trusted.
    pub fn config(&self) -> Result<ClientConfig, Mistake> {
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_root_certificates(authorities(self.ca.as_ref())?);
        let Some(own) = &self.own else { return Ok(builder.with_no_client_auth()) };
        let (chain, private) = read_own(own)?;
        builder.with_client_auth_cert(chain, private).map_err(|error| mismatch(own, &error))
    }

    /// Reads the files for the other side: a server that takes nobody whom `ca` did not issue a certificate for. TLS 1.3
    /// alone.
    ///
    /// # Errors
    /// A file cannot be read or used, or is not named.
    pub fn server_config(&self) -> Result<ServerConfig, Mistake> {
        let Some(own) = self.own.as_ref().filter(|_| self.ca.is_some()) else {
            return Err(Mistake::general(
                "TLS with certificates of both sides cannot be spoken",
                "name ca, certificate and key",
            ));
        };
        let provider = Arc::new(default_provider());
        let clients =
            WebPkiClientVerifier::builder_with_provider(authorities(self.ca.as_ref())?, Arc::clone(&provider));
        let (chain, private) = read_own(own)?;
        ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(unusable)?
            .with_client_cert_verifier(clients.build().map_err(unusable)?)
            .with_single_cert(chain, private)
            .map_err(|error| mismatch(own, &error))
    }
}

/// Which of the names a certificate shows, whose chain was checked.
pub fn shown_by<'a>(
    certificate: &CertificateDer<'_>,
    mut names: impl Iterator<Item = &'a ServerName<'static>>,
) -> Option<usize> {
    let certificate = ParsedCertificate::try_from(certificate).ok()?;
    names.position(|name| verify_server_name(&certificate, name).is_ok())
}

fn unusable(error: impl std::fmt::Display) -> Mistake {
    Mistake::general(format!("TLS cannot be spoken: {error}"), "report it")
}

fn mismatch((_, key): &(Named, Named), error: &impl std::fmt::Display) -> Mistake {
    key.mistake(format_args!("cannot be used: {error}"), "name the key that `certificate` was made for")
}

/// A chain and its key.
fn read_own(
    (certificate, key): &(Named, Named),
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Mistake> {
    let pem = read_file(&certificate.path).map_err(|error| certificate.unreadable(&error))?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let chain = chain.unwrap_or_default();
    if chain.is_empty() {
        return Err(certificate.mistake("holds no certificate", "write the chain in PEM: BEGIN CERTIFICATE"));
    }
    key.closed()?;
    let pem = read_file(&key.path).map_err(|error| key.unreadable(&error))?;
    let private = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| {
        key.mistake("holds no private key", "write it in PEM and without a passphrase: BEGIN PRIVATE KEY")
    })?;
    Ok((chain, private))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Document;

    /// A file of its own, with a mode.
    fn file(name: &str, mode: u32, text: &str) -> Named {
        let path = std::env::temp_dir().join(format!("outgate-trust-{}-{name}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let (document, table) = Document::parse("outgate.toml", "ca = 1\n");
        Named { path, place: document.place(&table.span_of("ca")) }
    }

    #[test]
    fn a_secret_is_one_line_that_not_everybody_may_read() {
        for (mode, text, expected) in [
            (0o600, "  token\n", Ok("token")),
            (0o640, "a b", Ok("a b")),
            (0o644, "token", Err("may read")),
            (0o602, "token", Err("may read")),
            (0o600, "\n", Err("not one line")),
            (0o600, "one\ntwo\n", Err("not one line")),
            (0o600, "t\u{f6}ken", Err("not one line")),
        ] {
            let named = file("secret", mode, text);
            match (named.secret(), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected),
                (Err(mistake), Err(part)) => {
                    let told = mistake.to_string();
                    assert!(told.starts_with("outgate.toml:1:6: ") && told.contains(part), "{told}");
                    assert!(!told.contains("token"), "the secret is told: {told}");
                }
                (found, expected) => panic!("{mode:o} {text:?}: {found:?}, not {expected:?}"),
            }
            std::fs::remove_file(named.path).unwrap();
        }
    }

    #[test]
    fn a_certificate_needs_its_key() {
        let read = |text: &str| {
            let (document, table) = Document::parse("outgate.toml", text);
            let tls = ClientTls::read(&table, Path::new("/etc/outgate"));
            (tls, document.take_mistakes().iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let (tls, mistakes) = read("ca = \"ca.pem\"\ncertificate = \"/own.pem\"\nkey = \"own.key\"\n");
        assert_eq!(mistakes, [""; 0]);
        assert_eq!(tls.ca.unwrap().path, Path::new("/etc/outgate/ca.pem"));
        assert_eq!(tls.own.unwrap().0.path, Path::new("/own.pem"));
        let (_, mistakes) = read("certificate = \"own.pem\"\n");
        assert_eq!(mistakes, ["outgate.toml:1:15: `certificate` is of no use without `key`\n  add key = \"….pem\""]);
        assert!(read("").0.is_empty());
    }

    #[test]
    fn each_file_is_told_by_its_own_mistake() {
        let own = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
        let other = rcgen::KeyPair::generate().unwrap();
        let certificate = file("own.pem", 0o644, &own.cert.pem());
        let key = file("own.key", 0o600, &own.signing_key.serialize_pem());
        let tls =
            |certificate: &Named, key: &Named| ClientTls { ca: None, own: Some((certificate.clone(), key.clone())) };
        assert!(tls(&certificate, &key).config().is_ok());
        let open = file("open.key", 0o644, &own.signing_key.serialize_pem());
        let wrong = file("wrong.key", 0o600, &other.serialize_pem());
        for (tls, part) in [
            (tls(&key, &key), "holds no certificate"),
            (tls(&certificate, &certificate), "may read"),
            (tls(&certificate, &open), "may read"),
            (tls(&certificate, &wrong), "name the key that `certificate` was made for"),
            (ClientTls { ca: Some(key.clone()), own: None }, "holds no certificate of an authority"),
        ] {
            let told = tls.config().unwrap_err().to_string();
            assert!(told.contains(part), "{told}");
        }
        for named in [certificate, key, open, wrong] {
            std::fs::remove_file(named.path).unwrap();
        }
    }

    #[test]
    fn the_system_trusts_somebody() {
        assert!(!authorities(None).unwrap().is_empty());
    }
}
