//! Upstreams over TLS and HTTPS: one outgate asks another, or Unbound, and none that does not prove who it is.

use std::net::SocketAddr;

use hickory_proto::op::ResponseCode;

use crate::dns::{Client, a, addresses, code, extended_error, with_edns};
use crate::harness::{Node, Site, free_port, loopback, until};
use crate::programs::{Running, are_here, command};
use crate::upstream::Upstream;

/// A site whose queries go to `servers`, each after its own name, with the certificate of `of` as the authority.
fn asking(servers: &[String], of: &Site) -> Site {
    let authority = of.path("tls/cert.pem").display().to_string();
    let servers = servers.join("\", \"");
    let upstream = format!(
        "[[upstream]]\nname = \"default\"\nservers = [\"{servers}\"]\nca = \"{authority}\"\nprivate = [\"198.51.100.0/24\"]"
    );
    Site::new().with("upstream", upstream)
}

/// A node with this door, which knows an answer to everything.
fn answering(door: &str) -> (Site, SocketAddr, Node, Upstream) {
    let upstream = Upstream::start();
    let (site, address) = crate::tls::site(door);
    let site = site.with_servers(&[upstream.address]);
    let node = site.start();
    (site, address, node, upstream)
}

#[test]
fn one_node_asks_another_over_tls_and_over_https() {
    for (door, servers, transport) in [
        ("tls", "tls://ADDRESS#dns.example.org", "dot"),
        ("tls", "tls://ADDRESS#127.0.0.1", "dot"),
        ("https", "https://ADDRESS/dns-query#dns.example.org", "doh"),
    ] {
        let (far, address, mut far_node, upstream) = answering(door);
        let near = asking(&[servers.replace("ADDRESS", &address.to_string())], &far);
        let mut node = near.start();
        for name in ["a.example.net", "b.example.net", "c.example.net"] {
            assert_eq!(addresses(&Client::new(near.dns).told(name)), ["198.51.100.7"], "{servers}");
        }
        // The far node has a record of each, by this transport alone.
        let asked: Vec<_> = far.queries().into_iter().map(|record| record["transport"].clone()).collect();
        assert_eq!(asked, [transport; 3]);
        assert_eq!(upstream.asked(), 3);
        // Each worker has one connection of its own.
        let connections = near.metric("outgate_upstream_connections_total{upstream=\"default\"}");
        assert!((1.0..=2.0).contains(&connections), "{connections}");
        assert_eq!(near.metric("outgate_upstream_handshakes_total{upstream=\"default\"}"), connections);
        assert_eq!(near.metric("outgate_upstream_servers{upstream=\"default\",state=\"up\"}"), 1.0);
        assert!(near.run(&["status"]).stdout.contains(&format!("{door}://{address}")));
        assert!(node.stderr().contains(&format!("{door}://{address}")), "{}", node.stderr());
        // The connection ends, and is made again.
        assert_eq!(far_node.stop(), Some(0));
        let _again = far.start();
        until("the far node is asked again", || {
            code(&Client::new(near.dns).told("d.example.net")) == ResponseCode::NoError
        });
        assert_eq!(node.stop(), Some(0));
        near.verified();
    }
}

#[test]
fn a_server_of_another_name_is_not_asked_and_the_record_says_so() {
    for (door, server) in [("tls", "tls://ADDRESS#other.example"), ("https", "https://ADDRESS/dns-query#other.example")]
    {
        let (far, address, _far_node, upstream) = answering(door);
        let near = asking(&[server.replace("ADDRESS", &address.to_string())], &far);
        let mut node = near.start();
        let reply = Client::new(near.dns).ask(&with_edns(a("a.example.net"), 1232)).unwrap();
        assert_eq!((code(&reply), extended_error(&reply)), (ResponseCode::ServFail, Some(23)));
        let why = near.queries()[0]["why"].as_str().unwrap().to_owned();
        assert!(why.contains("has a certificate for dns.example.org, 127.0.0.1, not for other.example"), "{why}");
        assert_eq!(near.metric("outgate_upstream_handshake_failures_total{upstream=\"default\"}"), 1.0);
        assert_eq!((far.queries().len(), upstream.asked()), (0, 0));
        assert_eq!(node.stop(), Some(0));
    }
}

#[test]
fn check_names_what_is_wrong_with_authorities() {
    for (file, expected) in [
        ("missing.pem", "cannot be read: No such file or directory (os error 2)"),
        ("/dev/zero", "cannot be read: it is larger than 16 MiB"),
        ("empty.pem", "holds no certificate of an authority"),
        ("tls/key.pem", "holds no certificate of an authority"),
    ] {
        let upstream = "[[upstream]]\nservers = [\"tls://192.0.2.53#a.example\"]\nca = \"FILE\"".replace("FILE", file);
        let site = Site::new().with("upstream", upstream);
        site.file("empty.pem", "nothing\n");
        site.file("tls/key.pem", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
        let ended = site.run(&["check"]);
        let said = format!("{}{}", ended.stdout, ended.stderr);
        assert!(ended.code == Some(2) && said.contains("outgate.toml:"), "{said}");
        assert!(said.contains(&format!("{file} {expected}")), "{said}");
    }
    let mixed = "[[upstream]]\nservers = [\"tls://192.0.2.53#a.example\", \"udp://192.0.2.54\"]";
    let ended = Site::new().with("upstream", mixed).run(&["check"]);
    let said = format!("{}{}", ended.stdout, ended.stderr);
    assert!(ended.code == Some(0) && said.contains("asked in clear text where the encrypted ones fail"), "{said}");
}

#[test]
fn unbound_is_asked_over_tls() {
    if !are_here(&["unbound"]) {
        return;
    }
    let address = loopback(free_port());
    let far = Site::new();
    crate::tls::renew(&far);
    let root = far.directory.display();
    far.file(
        "unbound.conf",
        &format!(
            "server:\n  interface: {}@{}\n  tls-port: {}\n  tls-service-key: {root}/tls/key.pem\n  \
             tls-service-pem: {root}/tls/cert.pem\n  do-daemonize: no\n  username: \"\"\n  chroot: \"\"\n  \
             pidfile: \"\"\n  use-syslog: no\n  logfile: \"{root}/log\"\n  directory: \"{root}\"\n  \
             local-data: \"a.example.net. 60 A 198.51.100.7\"\n",
            address.ip(),
            address.port(),
            address.port(),
        ),
    );
    let _unbound = Running::start(command("unbound").args(["-c", "unbound.conf", "-d"]).current_dir(&far.directory));
    until("unbound listens", || std::net::TcpStream::connect(address).is_ok());
    let near = asking(&[format!("tls://{address}#dns.example.org")], &far);
    let mut node = near.start();
    assert_eq!(addresses(&Client::new(near.dns).told("a.example.net")), ["198.51.100.7"]);
    assert_eq!(node.stop(), Some(0));
    near.verified();
}
