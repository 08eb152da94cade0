//! Clients that show certificates, over TLS and HTTPS.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use hickory_proto::op::ResponseCode;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType, date_time_ymd};
use serde_json::Value;
use tokio_rustls::rustls::HandshakeKind;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::dns::{a, addresses, code};
use crate::harness::{Node, Site, end, until};
use crate::tls::{connect, connect_from, showing};

/// Names of corp.example are for who builds; of the address everybody else is.
const POLICY: &str = r#"
[[segment]]
name    = "loop"
clients = ["127.0.0.0/24"]
[[segment]]
name    = "build"
certificates = ["build.corp.example", "spiffe://corp.example/build"]
[[segment]]
name    = "deploy"
certificates = ["deploy.corp.example"]
[[rule]]
id       = "build"
action   = "allow"
segments = ["build"]
names    = ["www.corp.example"]
"#;

type Shown = (CertificateDer<'static>, PrivateKeyDer<'static>);

/// An authority of clients.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Its certificate is what the site trusts.
    fn trusted_by(&self, site: &Site) {
        site.file("tls/clients.pem", &AsRef::<rcgen::Certificate>::as_ref(&self.0).pem());
    }

    /// A certificate of these names that ends on the first day of a year.
    fn issue(&self, names: &[&str], ends: i32) -> Shown {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(ends, 1, 1);
        params.subject_alt_names = names
            .iter()
            .map(|name| match name.contains(':') {
                true => SanType::URI((*name).try_into().unwrap()),
                false => SanType::DnsName((*name).try_into().unwrap()),
            })
            .collect();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.der().clone(), PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    }
}

fn site(door: &str, authority: &Authority) -> (Site, SocketAddr) {
    let (site, address) = crate::tls::site(door);
    let tls = format!("{}\nclient_ca = \"tls/clients.pem\"", site.tables["tls"]);
    let site = site.with("tls", tls);
    site.file("policy/loop.toml", POLICY);
    authority.trusted_by(&site);
    (site, address)
}

/// `segment certificate rcode` of the last record.
fn last(site: &Site) -> String {
    let record = site.queries().pop().unwrap();
    let word = |key: &str| record[key].as_str().unwrap_or("-").to_owned();
    format!("{} {} {} {}", word("client"), word("segment"), word("certificate"), word("rcode"))
}

fn reload(site: &Site, node: &Node, times: usize) {
    assert_eq!(site.run(&["reload"]).code, Some(0));
    let said = "another certificate is served to new connections";
    until("it is served", || node.stderr().matches(said).count() == times);
}

#[test]
fn a_certificate_names_the_segment_over_tls() {
    let authority = Authority::new("one");
    let (site, address) = site("tls", &authority);
    let mut node = site.start();
    let query = a("www.corp.example");
    for (shown, from, expected) in [
        (None, [127, 0, 0, 1], "127.0.0.1 loop - NXDOMAIN"),
        (Some(&["build.corp.example"][..]), [127, 0, 0, 7], "127.0.0.7 build build.corp.example NOERROR"),
        (Some(&["spiffe://corp.example/build"]), [127, 0, 0, 1], "127.0.0.1 build spiffe://corp.example/build NOERROR"),
        (Some(&["x.example", "BUILD.corp.example"]), [127, 0, 0, 1], "127.0.0.1 build build.corp.example NOERROR"),
        (Some(&["guest.corp.example"]), [127, 0, 0, 1], "127.0.0.1 loop - NXDOMAIN"),
        (Some(&["build.corp.example", "deploy.corp.example"]), [127, 0, 0, 1], "127.0.0.1 - - REFUSED"),
        (Some(&["build.corp.example"]), [127, 0, 1, 1], "127.0.1.1 - - REFUSED"),
    ] {
        let config = showing(&site, &[b"dot"], shown.map(|names| authority.issue(names, 2040)));
        // Twice: the second session is resumed, and the answer known.
        for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
            let mut stream = connect_from(from, address, &config);
            stream.ask(&query);
            assert_eq!(stream.0.conn.handshake_kind(), Some(kind));
            assert_eq!(last(&site), expected, "{shown:?} {kind:?}");
        }
    }
    // What was opened is the client's.
    let grants: Vec<Value> = site.records().into_iter().filter(|record| record["type"] == "grant").collect();
    let opened: Vec<_> = grants.iter().map(|grant| [&grant["client"], &grant["segment"], &grant["scope"]]).collect();
    assert_eq!(opened, [["127.0.0.7", "build", "client"], ["127.0.0.1", "build", "client"]]);
    // Its address alone is who it was, though the name is known and open for it.
    let plain = crate::dns::Client::new(site.dns);
    assert_eq!(code(&plain.told("www.corp.example")), ResponseCode::NXDomain);
    assert_eq!(node.stop(), Some(0));
    site.verified();
}

#[test]
fn strangers_certificates_and_those_that_have_ended_end_the_handshake() {
    let (one, other) = (Authority::new("one"), Authority::new("other"));
    let (site, address) = site("tls", &one);
    let _node = site.start();
    for shown in [other.issue(&["build.corp.example"], 2040), one.issue(&["build.corp.example"], 2021)] {
        let mut stream = connect(address, &showing(&site, &[b"dot"], Some(shown)));
        // TLS 1.3: the client learns of it when it reads.
        let sent = stream.0.write_all(&crate::dns::framed(&a("www.corp.example").to_vec().unwrap()));
        assert!(sent.is_err() || stream.receive().is_none());
    }
    until("both are counted", || site.metric("outgate_streams_closed_total{why=\"handshake\"}") == 2.0);
    assert_eq!(site.queries().len(), 0);
}

#[test]
fn a_reload_trusts_another_authority_and_no_more_the_one_before() {
    let (one, other) = (Authority::new("one"), Authority::new("other"));
    let (site, address) = site("tls", &one);
    let mut node = site.start();
    let query = a("www.corp.example");
    let mut first = connect(address, &showing(&site, &[b"dot"], Some(one.issue(&["build.corp.example"], 2040))));
    assert_eq!(addresses(&first.ask(&query)), ["192.0.2.80"]);
    // Another certificate of ours changes nothing for it.
    crate::tls::renew(&site);
    reload(&site, &node, 1);
    assert_eq!(addresses(&first.ask(&query)), ["192.0.2.80"]);
    other.trusted_by(&site);
    reload(&site, &node, 2);
    assert_eq!(code(&first.ask(&query)), ResponseCode::NXDomain);
    assert_eq!(last(&site), "127.0.0.1 loop - NXDOMAIN");
    let mut second = connect(address, &showing(&site, &[b"dot"], Some(other.issue(&["build.corp.example"], 2040))));
    assert_eq!(addresses(&second.ask(&query)), ["192.0.2.80"]);
    // Where the name leaves the policy, its grants go (I6); while it is there they stay.
    assert_eq!(site.metric("outgate_grants"), 1.0);
    site.file("policy/loop.toml", &format!("{POLICY}# the same\n"));
    assert_eq!(site.run(&["reload"]).code, Some(0));
    assert_eq!(site.metric("outgate_grants"), 1.0);
    site.file("policy/loop.toml", &POLICY.replace("\"build.corp.example\", ", ""));
    assert_eq!(site.run(&["reload"]).code, Some(0));
    assert_eq!(site.metric("outgate_grants"), 0.0);
    assert_eq!(code(&second.ask(&query)), ResponseCode::NXDomain);
    assert_eq!(node.stop(), Some(0));
    site.verified();
}

#[test]
fn a_certificate_names_the_segment_over_https() {
    let authority = Authority::new("one");
    let (site, address) = site("https", &authority);
    let mut node = site.start();
    let (certificate, key) = authority.issue(&["build.corp.example"], 2040);
    std::fs::write(site.path("client.der"), &certificate).unwrap();
    std::fs::write(site.path("client.key"), key.secret_der()).unwrap();
    let url = format!("https://dns.example.org:{}/dns-query", address.port());
    let to = format!("dns.example.org:{}:{}", address.port(), Ipv4Addr::LOCALHOST);
    site.file("query", "");
    std::fs::write(site.path("query"), a("www.corp.example").to_vec().unwrap()).unwrap();
    for (shown, expected) in [
        (&[][..], "127.0.0.1 loop - NXDOMAIN"),
        (
            &["--cert-type", "DER", "--cert", "client.der", "--key-type", "DER", "--key", "client.key"],
            "127.0.0.1 build build.corp.example NOERROR",
        ),
    ] {
        let fixed = ["--silent", "--show-error", "--cacert", "tls/cert.pem", "--resolve", &to, "--output", "reply"];
        let body = ["--header", "content-type: application/dns-message", "--data-binary", "@query", &url];
        let ended = end(Command::new("curl").args(fixed).args(shown).args(body).current_dir(&site.directory));
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert_eq!(last(&site), expected);
    }
    assert_eq!(node.stop(), Some(0));
    site.verified();
}

#[cfg(feature = "quic")]
#[test]
fn a_certificate_names_the_segment_over_quic() {
    use crate::quic::{Client, ask, run};

    let authority = Authority::new("one");
    let (site, address) = site("quic", &authority);
    let mut node = site.start();
    run(async {
        for (shown, expected) in [
            (None, "127.0.0.1 loop - NXDOMAIN"),
            (Some(&["build.corp.example"][..]), "127.0.0.1 build build.corp.example NOERROR"),
        ] {
            let config = showing(&site, &[b"doq"], shown.map(|names| authority.issue(names, 2040)));
            let client = Client::new(&config);
            // Twice: the second session is resumed.
            for _ in 0..2 {
                let connection = client.connect(address).await.unwrap();
                ask(&connection, a("www.corp.example")).await;
                assert_eq!(last(&site), expected);
            }
        }
        let stranger = Authority::new("other").issue(&["build.corp.example"], 2040);
        let connected = Client::new(&showing(&site, &[b"doq"], Some(stranger))).connect(address).await;
        if let Ok(connection) = connected {
            // TLS 1.3: the client learns of it later.
            connection.closed().await;
        }
        until("it is counted", || site.metric("outgate_streams_closed_total{why=\"handshake\"}") == 1.0);
    });
    assert_eq!(node.stop(), Some(0));
    site.verified();
}

#[test]
fn certificates_are_checked_and_explained() {
    let (site, _) = site("tls", &Authority::new("one"));
    let explained = |arguments: &[&str]| {
        let fixed = ["explain", "--client", "127.0.0.1"];
        site.run(&[&fixed, arguments, &["www.corp.example"]].concat()).stdout
    };
    let told = explained(&["--certificate", "build.corp.example"]);
    assert!(told.contains("asked by 127.0.0.1 with the certificate of build.corp.example, segment build"), "{told}");
    assert!(explained(&["--certificate", "x"]).contains("asked by 127.0.0.1, segment loop"));
    let site = site.with("tls", "[tls]\ncertificate = \"tls/cert.pem\"\nkey = \"tls/key.pem\"");
    let checked = site.run(&["check"]);
    let warning = "a certificate names this segment, and `client_ca` of [tls] trusts nobody's";
    assert!((checked.stdout + &checked.stderr).contains(warning));
    site.file("policy/more.toml", "[[segment]]\nname = \"more\"\ncertificates = [\"a..b\", \"deploy.corp.example\"]\n");
    let said = site.run(&["check"]).stderr;
    assert!(said.contains("policy/more.toml:3:17: no certificate has the name \"a..b\""), "{said}");
    assert!(
        said.contains("policy/more.toml:3:25: certificates of deploy.corp.example name a segment already"),
        "{said}"
    );
}
