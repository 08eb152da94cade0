//! Every mistake that can be made with two files, and what is no mistake.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, date_time_ymd};

use super::*;
use crate::document::Document;

/// A directory with `cert.pem` and `key.pem`, removed in the end.
struct Files {
    directory: PathBuf,
    key: KeyPair,
    /// Another key of the section.
    more: &'static str,
}

impl Files {
    /// A certificate for dns.example.org that ends in 2040, and its key.
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("outgate-tls-{}-{number}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let files = Self { directory, key: KeyPair::generate().unwrap(), more: "" };
        files.write("cert.pem", &certificate(&files.key, 2040));
        files.write("key.pem", &files.key.serialize_pem());
        fs::set_permissions(files.directory.join("key.pem"), fs::Permissions::from_mode(0o640)).unwrap();
        files
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.directory.join(name), text).unwrap();
    }

    fn settings(&self) -> Settings {
        let (document, root) = Document::parse(
            "outgate.toml",
            format!("[tls]\ncertificate = \"cert.pem\"\nkey = \"key.pem\"\n{}", self.more),
        );
        let settings = Settings::read(&root, &self.directory).unwrap();
        assert_eq!(document.take_mistakes(), []);
        settings
    }

    /// What is read on 2026-11-21, and what is said, without the directory.
    fn read(&self) -> (Result<Read, String>, String) {
        let mut warnings = Vec::new();
        let read = read(&self.settings(), Wall(1_795_233_184_000_000), &mut warnings);
        let said = |mistakes: &[Mistake]| {
            let said: Vec<_> = mistakes.iter().map(ToString::to_string).collect();
            said.join("\n").replace(&format!("{}/", self.directory.display()), "")
        };
        (read.map_err(|mistakes| said(&mistakes)), said(&warnings))
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn certificate(key: &KeyPair, ends: i32) -> String {
    let mut params = CertificateParams::new(["dns.example.org".to_owned()]).unwrap();
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(ends, 1, 1);
    params.self_signed(key).unwrap().pem()
}

#[test]
fn reads_the_common_kinds_of_keys() {
    for algorithm in [None, Some(&PKCS_ECDSA_P384_SHA384), Some(&PKCS_ED25519)] {
        let mut files = Files::new();
        if let Some(algorithm) = algorithm {
            files.key = KeyPair::generate_for(algorithm).unwrap();
            files.write("cert.pem", &certificate(&files.key, 2040));
            files.write("key.pem", &files.key.serialize_pem());
        }
        let (read, warnings) = files.read();
        assert_eq!(read.unwrap().own.not_after.to_string(), "2040-01-01T00:00:00.000000Z");
        assert_eq!(warnings, "");
    }
}

#[test]
fn one_file_may_hold_both() {
    let files = Files::new();
    let both = [files.key.serialize_pem(), certificate(&files.key, 2040)].concat();
    files.write("cert.pem", &both);
    files.write("key.pem", &both);
    assert!(files.read().0.is_ok());
}

#[test]
fn other_files_have_another_digest() {
    let files = Files::new();
    let before = files.read().0.unwrap().digest;
    assert_eq!(files.read().0.unwrap().digest, before);
    files.write("cert.pem", &certificate(&files.key, 2041));
    assert_ne!(files.read().0.unwrap().digest, before);
}

#[test]
fn says_what_is_wrong_with_a_file() {
    let other = KeyPair::generate().unwrap();
    let rows: [(&str, &str, &str, &str); 9] = [
        ("no PEM in it", "cert.pem", "nonsense", "2:15: cert.pem holds no certificate\n  write the chain"),
        ("the key instead", "cert.pem", &other.serialize_pem(), "2:15: cert.pem holds no certificate\n  write"),
        (
            "cut in the middle",
            "cert.pem",
            "-----BEGIN CERTIFICATE-----\nMIIB",
            "2:15: cert.pem is not PEM: missing section end",
        ),
        (
            "other octets",
            "cert.pem",
            "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
            "2:15: the first certificate in cert.pem cannot be read\n  have it issued",
        ),
        (
            "of another key",
            "cert.pem",
            &certificate(&other, 2040),
            "3:7: key.pem is not the key of the first certificate",
        ),
        ("no PEM in it", "key.pem", "nonsense", "3:7: key.pem holds no private key\n  write it in PEM"),
        ("the certificate instead", "key.pem", &certificate(&other, 2040), "3:7: key.pem holds no private key\n"),
        (
            "with a passphrase",
            "key.pem",
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n",
            "3:7: the key in key.pem is encrypted, and nobody is there to type its passphrase\n  decrypt it",
        ),
        (
            "of no known kind",
            "key.pem",
            "-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----\n",
            "3:7: the key in key.pem is of a kind that is not supported\n  use ECDSA",
        ),
    ];
    for (reason, name, text, expected) in rows {
        let files = Files::new();
        files.write(name, text);
        let said = files.read().0.err().unwrap();
        assert!(said.starts_with(&format!("outgate.toml:{expected}")), "{reason}: {said}");
    }
}

#[test]
fn says_what_is_wrong_with_both_at_once() {
    let files = Files::new();
    fs::remove_file(files.directory.join("cert.pem")).unwrap();
    fs::write(files.directory.join("key.pem"), vec![b' '; (1 << 20) + 1]).unwrap();
    let expected = "outgate.toml:2:15: cert.pem cannot be read: No such file or directory (os error 2)\n  \
                    create it, or correct its name\n\
                    outgate.toml:3:7: key.pem is larger than 1 MiB\n  name a PEM file";
    assert_eq!(files.read().0.err().unwrap(), expected);
}

#[test]
fn warns_of_what_works_today() {
    let files = Files::new();
    let rows = [(2026, "ended on 2026-01-01\n  renew it and reload: clients"), (2040, "")];
    for (ends, expected) in rows {
        files.write("cert.pem", &certificate(&files.key, ends));
        let (read, warnings) = files.read();
        assert!(read.is_ok() && warnings.contains(expected), "{ends}: {warnings}");
        assert_eq!(warnings.is_empty(), expected.is_empty(), "{warnings}");
    }
    let with_dates = |from, until| {
        let mut params = CertificateParams::new(["dns.example.org".to_owned()]).unwrap();
        (params.not_before, params.not_after) = (from, until);
        files.write("cert.pem", &params.self_signed(&files.key).unwrap().pem());
        files.read().1
    };
    let soon = with_dates(date_time_ymd(2026, 1, 1), date_time_ymd(2026, 11, 25));
    assert_eq!(soon, "outgate.toml:2:15: the certificate in cert.pem ends on 2026-11-25\n  renew it and reload");
    let later = with_dates(date_time_ymd(2027, 1, 1), date_time_ymd(2028, 1, 1));
    assert!(later.contains("begins on 2027-01-01\n  look at this machine's clock"), "{later}");

    files.write("cert.pem", &certificate(&files.key, 2040));
    fs::set_permissions(files.directory.join("key.pem"), fs::Permissions::from_mode(0o644)).unwrap();
    let (read, warnings) = files.read();
    assert!(read.is_ok());
    assert_eq!(
        warnings,
        "outgate.toml:3:7: every user of this machine may read the key in key.pem\n  chmod o= key.pem"
    );
}

#[test]
fn the_authorities_of_clients_are_read_and_their_mistakes_told() {
    let mut files = Files::new();
    let none = files.read().0.unwrap();
    assert_eq!(none.ca_digest, [0; 32]);
    files.more = "client_ca = \"clients.pem\"\n";
    let remedy = "  write the authority's certificate in PEM: BEGIN CERTIFICATE";
    assert!(files.read().0.is_err_and(|said| said.contains("outgate.toml:4:13: clients.pem cannot be read: No such")));
    files.write("clients.pem", "nothing of the kind");
    let expected = format!("outgate.toml:4:13: clients.pem holds no certificate\n{remedy}");
    assert_eq!(files.read().0.err(), Some(expected));
    files.write("clients.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let told = files.read().0.err().unwrap();
    assert!(told.contains("outgate.toml:4:13: a certificate in clients.pem cannot be used: "), "{told}");
    files.write("clients.pem", &certificate(&files.key, 2040));
    let read = files.read().0.unwrap();
    assert!(read.ca_digest != [0; 32] && read.digest != none.digest);
}
