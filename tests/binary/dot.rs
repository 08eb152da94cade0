//! DNS over TLS: real clients, renewed certificates, and those who mean harm.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use hickory_proto::op::{Message, ResponseCode};
use nix::sys::signal::Signal;
use rcgen::KeyPair;
use tokio_rustls::rustls::HandshakeKind;

use crate::dns::{Client, Stream, a, addresses, code, framed};
use crate::harness::{Ended, POLICY, Site, end, free_port, until};
use crate::tls::{client, connect, connect_from, renew};
use crate::upstream::Upstream;

/// A site that serves DNS over TLS, and its address.
fn site() -> (Site, SocketAddr) {
    crate::tls::site("tls")
}

/// `kdig` over TLS, the certificate checked.
fn kdig(site: &Site, address: SocketAddr, arguments: &[&str]) -> Ended {
    let (host, port) = (format!("@{}", address.ip()), address.port().to_string());
    let authority = format!("+tls-ca={}", site.path("tls/cert.pem").display());
    let fixed = [&*host, "-p", &*port, "+tls", &*authority, "+tls-hostname=dns.example.org"];
    end(Command::new("kdig").args(fixed).args(arguments))
}

/// The bytes of each reply, by its query's transport and name.
fn bytes(site: &Site, transport: &str, name: &str) -> Vec<u64> {
    let records = site.queries().into_iter();
    let records = records.filter(|record| record["transport"] == transport && record["qname"] == name);
    records.map(|record| record["bytes"].as_u64().unwrap()).collect()
}

#[test]
fn replies_are_padded_where_queries_are_and_nobody_can_read_them() {
    let (site, address) = site();
    let mut node = site.start();
    for name in ["www.corp.example", "api.example.com"] {
        let padded = kdig(&site, address, &["+padding", name]);
        assert!(padded.stdout.contains(";; PADDING: "), "{padded:?}");
        assert!(padded.stdout.contains(";; Received 468 B"), "{padded:?}");
        let plain = kdig(&site, address, &["+nopadding", "+edns", name]);
        assert!(!plain.stdout.contains("PADDING"), "{plain:?}");
        let lengths = bytes(&site, "dot", name);
        assert!(lengths[0] == 468 && lengths[1] < 200, "{lengths:?}");
    }
    let (host, port) = (format!("@{}", site.dns.ip()), site.dns.port().to_string());
    let clear = end(Command::new("kdig").args([&*host, "-p", &*port, "+tcp", "+padding", "www.corp.example"]));
    assert!(!clear.stdout.contains("PADDING: "), "{clear:?}");
    assert!(bytes(&site, "tcp", "www.corp.example")[0] < 200);
    // Over both streams a client that asks learns how long it may be idle.
    let option = "+ednsopt=11";
    assert!(kdig(&site, address, &[option, "www.corp.example"]).stdout.contains("0064"));
    let clear = end(Command::new("kdig").args([&*host, "-p", &*port, "+tcp", option, "www.corp.example"]));
    assert!(clear.stdout.contains("0064"), "{clear:?}");
    assert_eq!(node.stop(), Some(0));
    site.verified();
}

fn closed(site: &Site, why: &str) -> f64 {
    site.metric(&format!("outgate_streams_closed_total{{why=\"{why}\"}}"))
}

#[test]
fn kdig_is_told_the_same_as_over_the_other_transports() {
    let upstream = Upstream::start();
    let (site, address) = site();
    let site = site.with_servers(&[upstream.address]);
    let mut node = site.start();
    for (name, expected) in [
        ("www.corp.example", "192.0.2.80"),
        ("x.example.net", "198.51.100.7"),
        ("never.corp.example", "status: NXDOMAIN"),
        ("api.example.com", "status: NXDOMAIN"),
    ] {
        let ended = kdig(&site, address, &[name, "A"]);
        assert!(ended.stdout.contains("TLS session (TLS1.3)"), "{ended:?}");
        assert!(ended.stdout.contains(expected), "{name}: {ended:?}");
        Client::new(site.dns).told(name);
    }
    // What is recorded of both differs in what must differ alone.
    let mut of = [("dot", Vec::new()), ("udp", Vec::new())];
    for (transport, records) in &mut of {
        *records = site.queries();
        records.retain(|record| record["transport"] == *transport);
        let keys = ["qname", "verdict", "reason", "rule", "rcode", "segment", "client"];
        let kept = records.iter().map(|record| keys.map(|key| record[key].clone()));
        assert_eq!(kept.len(), 4, "{transport}");
        *records = kept.map(|values| values.to_vec().into()).collect();
    }
    assert_eq!(of[0].1, of[1].1);
    assert_eq!(site.metric("outgate_responses_total{rcode=\"NXDOMAIN\",transport=\"dot\"}"), 2.0);
    let status = site.run(&["status"]).stdout;
    assert!(status.contains(&format!("dot {address}")), "{status}");
    assert!(node.stderr().contains(&format!("serving DNS over TLS address={address}")), "{}", node.stderr());
    assert_eq!(node.stop(), Some(0));
    site.verified();
}

#[test]
fn openssl_gets_both_versions_of_tls_and_files_that_it_made() {
    for kind in [&["-newkey", "rsa:2048"][..], &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]] {
        let (site, address) = site();
        let request = ["req", "-x509", "-nodes", "-days", "30", "-subj", "/CN=x", "-addext"];
        let names = ["subjectAltName=DNS:dns.example.org", "-keyout", "tls/key.pem", "-out", "tls/cert.pem"];
        let made = end(Command::new("openssl").args(request).args(names).args(kind).current_dir(&site.directory));
        assert_eq!(made.code, Some(0), "{made:?}");
        let _node = site.start();
        for (version, said) in [("-tls1_2", "New, TLSv1.2"), ("-tls1_3", "New, TLSv1.3")] {
            let to = address.to_string();
            let arguments = ["s_client", "-connect", &to, version, "-alpn", "dot", "-CAfile", "tls/cert.pem"];
            let command = &mut Command::new("openssl");
            let shown = end(command.args(arguments).current_dir(&site.directory).stdin(std::process::Stdio::null()));
            for fact in [said, "ALPN protocol: dot", "Verify return code: 0 (ok)"] {
                assert!(shown.stdout.contains(fact), "{fact}: {shown:?}");
            }
        }
        assert!(kdig(&site, address, &["www.corp.example"]).stdout.contains("192.0.2.80"));
    }
}

#[test]
fn a_hundred_queries_at_once_over_one_connection() {
    let (site, address) = site();
    let mut node = site.start();
    let mut stream = connect(address, &client(&site, &[b"dot"]));
    let queries: Vec<Message> = (0..100).map(|_| a("www.corp.example")).collect();
    let all: Vec<u8> = queries.iter().flat_map(|message| framed(&message.to_vec().unwrap())).collect();
    stream.0.write_all(&all).unwrap();
    let mut told: Vec<u16> = Vec::new();
    for _ in 0..100 {
        let reply = Message::from_vec(&stream.receive().unwrap()).unwrap();
        assert_eq!(addresses(&reply), ["192.0.2.80"]);
        told.push(reply.metadata.id);
    }
    told.sort_unstable();
    assert!(told.iter().copied().eq(queries.iter().map(|query| query.metadata.id)));
    // The farewell of a client that takes leave properly, and of one that just goes.
    stream.0.conn.send_close_notify();
    stream.0.flush().unwrap();
    assert_eq!(stream.receive(), None);
    let mut other = connect(address, &client(&site, &[]));
    other.ask(&queries[0]);
    drop(other);
    until("both have left", || closed(&site, "peer") == 2.0);
    assert_eq!(node.stop(), Some(0));
    site.verified();
}

#[test]
fn sessions_are_resumed_and_other_protocols_turned_away() {
    let (site, address) = site();
    let _node = site.start();
    let config = client(&site, &[b"dot"]);
    for expected in [HandshakeKind::Full, HandshakeKind::Resumed] {
        let mut stream = connect(address, &config);
        stream.ask(&a("www.corp.example"));
        assert_eq!(stream.0.conn.handshake_kind(), Some(expected));
    }
    for (protocols, served) in [(&[][..], true), (&[b"h2".as_slice(), b"dot"], true), (&[b"h2".as_slice()], false)] {
        let mut stream = connect(address, &client(&site, protocols));
        let sent = stream.0.write_all(&framed(&a("www.corp.example").to_vec().unwrap()));
        assert_eq!(sent.is_ok() && stream.receive().is_some(), served, "{protocols:?}");
    }
    until("it is counted", || closed(&site, "handshake") == 1.0);
}

#[test]
fn a_renewed_certificate_is_for_new_connections_and_a_bad_one_for_nobody() {
    let (site, address) = site();
    let mut node = site.start();
    let query = a("www.corp.example");
    let before = client(&site, &[b"dot"]);
    let mut first = connect(address, &before);
    first.ask(&query);

    renew(&site);
    node.signal(Signal::SIGHUP);
    until("it is reloaded", || node.stderr().contains("another certificate is served to new connections"));
    let after = client(&site, &[b"dot"]);
    let mut second = connect(address, &after);
    second.ask(&query);
    assert!(connect(address, &before).0.write(&[0]).is_err(), "the old one is shown no more");
    first.ask(&query);

    // The key of another certificate: nothing is changed, the policy neither.
    let good = fs::read_to_string(site.path("tls/key.pem")).unwrap();
    site.file("tls/key.pem", &KeyPair::generate().unwrap().serialize_pem());
    let ended = site.run(&["reload"]);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.stderr.contains("outgate.toml:"), "{ended:?}");
    assert!(ended.stderr.contains("tls/key.pem is not the key of the first certificate in "), "{ended:?}");
    assert_eq!(ended.stderr, site.run(&["check"]).stderr, "the same as check says");
    assert_eq!(site.metric("outgate_policy_reload_failures_total"), 1.0);
    connect(address, &after).ask(&query);
    for stream in [&mut first, &mut second] {
        stream.ask(&query);
    }

    // The same files again: sessions of before are still resumed.
    site.file("tls/key.pem", &good);
    fs::set_permissions(site.path("tls/key.pem"), Permissions::from_mode(0o604)).unwrap();
    assert_eq!(site.run(&["reload"]).code, Some(0));
    let mut resumed = connect(address, &after);
    resumed.ask(&query);
    assert_eq!(resumed.0.conn.handshake_kind(), Some(HandshakeKind::Resumed));
    let checked = site.run(&["check"]).stdout;
    assert!(checked.starts_with("warning: outgate.toml:"), "{checked}");
    assert!(checked.contains("every user of this machine may read the key in "), "{checked}");
    let end = site.metric("outgate_tls_certificate_end_timestamp_seconds");
    assert!(end > 4e9, "{end}");
    assert_eq!(node.stop(), Some(0));
    site.verified();
}

#[test]
fn a_certificate_with_mistakes_stops_the_start() {
    let (site, address) = site();
    fs::remove_file(site.path("tls/cert.pem")).unwrap();
    let ended = site.run(&["run"]);
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("tls/cert.pem cannot be read: No such file or directory"), "{ended:?}");
    let site = site.with("tls", "");
    let ended = site.run(&["run"]);
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("`tls` has no certificate to show\n  add [tls] with `certificate`"), "{ended:?}");
    assert!(Stream::connect(address).is_err());
}

#[test]
fn what_is_no_handshake_ends_and_harms_nobody() {
    let (site, address) = site();
    let mut node = site.start();
    let query = framed(&a("www.corp.example").to_vec().unwrap());
    // The beginning of a handshake that never goes on, and one that says nothing.
    let half = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    let mut slow: Vec<Stream> = (0..4).map(|_| Stream::new(address)).collect();
    slow[1].0.write_all(half).unwrap();
    slow[2].0.write_all(&half[..1]).unwrap();
    // A record as large as TLS has them, and only its beginning comes.
    slow[3].0.write_all(&[b"\x16\x03\x01\x40\x00".as_slice(), &[0; 1_000]].concat()).unwrap();
    // Clear text, HTTP and junk.
    for junk in [&*query, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", &[0xff; 600], &[0x16; 600]] {
        let mut stream = Stream::new(address);
        stream.0.write_all(junk).unwrap();
        let mut said = Vec::new();
        let _ = stream.0.read_to_end(&mut said);
        // An alert, or nothing; never a DNS message.
        assert!(said.len() <= 7, "{said:?}");
    }
    assert!(site.queries().is_empty());
    // A client in the middle of them is served.
    let config = client(&site, &[b"dot"]);
    connect(address, &config).ask(&a("www.corp.example"));
    for stream in &mut slow {
        assert_eq!(stream.receive(), None);
    }
    until("each is counted", || closed(&site, "handshake") == 8.0);
    // Frames without sense, encrypted.
    for (junk, why) in [([0_u8, 0], "empty"), ([0xff, 0xff], "oversize")] {
        let mut stream = connect(address, &config);
        stream.0.write_all(&junk).unwrap();
        assert_eq!(stream.receive(), None);
        until("it is counted", || closed(&site, why) == 1.0);
    }
    assert_eq!(node.stop(), Some(0));
    site.verified();
}

#[test]
fn a_client_that_connects_without_end_keeps_to_its_seats() {
    let (site, address) = site();
    let node = site.start();
    let before = node.descriptors();
    // Held open as long as the door lets them.
    let flood: Vec<TcpStream> = (0..2_000).filter_map(|_| TcpStream::connect(address).ok()).collect();
    until("most are turned away", || closed(&site, "client") >= 1_900.0);
    assert!(site.metric("outgate_streams") <= 16.0);
    assert!(node.descriptors() <= before + 64, "{} of {before}", node.descriptors());
    let mut other = connect_from([127, 0, 0, 9], address, &client(&site, &[b"dot"]));
    assert_eq!(code(&other.ask(&a("www.corp.example"))), ResponseCode::NoError);
    drop(flood);
}

#[test]
fn clients_that_know_the_address_alone_are_told_of_the_encrypted_doors() {
    let upstream = Upstream::start();
    let (site, address) = site();
    let https = free_port();
    let listen = format!("{}\nhttps = [\"127.0.0.1:{https}\"]", site.tables["listen"]);
    let site = site.with("listen", listen).with_servers(&[upstream.address]);
    let mut node = site.start();
    let (host, port) = (format!("@{}", site.dns.ip()), site.dns.port().to_string());
    let ask = |kind: &str| {
        end(Command::new("kdig").args([&*host, "-p", &*port, "+short", "_dns.resolver.arpa", kind])).stdout
    };
    let tls = address.port();
    let told = format!(
        "1 dns.example.org. alpn=dot port={tls} ipv4hint=127.0.0.1\n\
         2 dns.example.org. alpn=h2,http/1.1 port={https} ipv4hint=127.0.0.1 key7="
    );
    let said = ask("SVCB").replace('"', "").replace("dohpath=", "key7=");
    assert!(said.starts_with(&told), "{said}");
    assert!(said.contains("/dns-query{?dns}"), "{said}");
    assert_eq!(ask("A"), "");
    let records: Vec<_> = site.queries().into_iter().map(|record| record["reason"].clone()).collect();
    assert_eq!(records, ["special", "special"]);
    assert_eq!(upstream.asked(), 0);
    // Nothing is opened for what is ours.
    assert_eq!(site.metric("outgate_grants"), 0.0);
    // A rule may deny it.
    let deny =
        "\n[[rule]]\nid = \"no-upgrade\"\naction = \"deny\"\nsegments = [\"loop\"]\nnames = [\"_dns.resolver.arpa\"]\n";
    site.file("policy/loop.toml", &format!("{POLICY}{deny}"));
    assert_eq!(site.run(&["reload"]).code, Some(0));
    assert_eq!(ask("SVCB"), "");
    assert_eq!(site.queries().pop().unwrap()["rule"], "no-upgrade");
    assert_eq!(node.stop(), Some(0));
    site.verified();
}
