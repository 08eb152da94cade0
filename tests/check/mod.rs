//! `outgate check` on files of a directory of its own, and what the tables of a page say.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

/// A directory with files; gone when dropped.
pub(crate) struct Workplace(PathBuf);

impl Workplace {
    /// An empty one with an example policy and the certificate that the pages name.
    pub(crate) fn new(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("outgate-{name}-{}", std::process::id()));
        let place = Self(directory);
        place.write("policy/example.toml", POLICY);
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(["dns.example.org".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        place.write("tls/cert.pem", &certificate);
        place.write("tls/clients.pem", &certificate);
        place.write("tls/ca.pem", &certificate);
        place.write("tls/ns1.pem", &certificate);
        place.write("tls/ns1.key", &key.serialize_pem());
        place.write("tls/key.pem", &key.serialize_pem());
        place.write("siem.token", "token");
        place
    }

    /// Writes one file.
    pub(crate) fn write(&self, path: &str, text: &str) {
        let path = self.0.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        // Keys are for nobody else.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// Checks this configuration: true where it is valid, and what was said.
    pub(crate) fn check(&self, config: &str) -> (bool, String) {
        self.write("outgate.toml", config);
        let command = &mut Command::new(env!("CARGO_BIN_EXE_outgate"));
        let run = command.args(["check", "-c", "outgate.toml"]).current_dir(&self.0).output().unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
        (run.status.success(), text)
    }
}

impl Drop for Workplace {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The segments that the examples of the pages name.
pub(crate) const POLICY: &str = r#"
[[segment]]
name    = "office"
clients = ["192.0.2.0/24"]
tags    = { environment = "production" }
[[segment]]
name    = "cluster"
clients = ["198.51.100.0/24"]
scope   = "segment"
[[rule]]
id       = "all"
action   = "allow"
segments = ["*"]
names    = ["www.example.net"]
"#;

/// What an `[[upstream]]` says; with it a test does not depend on this machine's resolv.conf.
pub(crate) const UPSTREAM: &str = "[[upstream]]\nname = \"test\"\nservers = [\"udp://203.0.113.53\"]\n";
