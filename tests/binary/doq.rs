//! DNS over QUIC: a real client, what RFC 9250 says of it, and those who mean harm.

use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use nix::sys::signal::Signal;
use quinn::ConnectionError;

use crate::dns::{Client as Plain, a, addresses, code, framed, query, with_edns};
use crate::harness::{BOUND, Ended, Site, end, free_port, until};
use crate::quic::{Client, ask, code_of, run};
use crate::restart::{tcp, udp};
use crate::tls::client;
use crate::upstream::Upstream;

/// A site that serves DNS over QUIC, and its address.
fn site() -> (Site, SocketAddr) {
    crate::tls::site("quic")
}

fn doq(site: &Site) -> Client {
    Client::new(&client(site, &[b"doq"]))
}

fn kdig(site: &Site, address: SocketAddr, arguments: &[&str]) -> Ended {
    let (host, port) = (format!("@{}", address.ip()), address.port().to_string());
    let authority = format!("+tls-ca={}", site.path("tls/cert.pem").display());
    // Last: what comes after it about TLS would mean TLS over TCP.
    let fixed = [&*host, "-p", &*port, &*authority, "+tls-hostname=dns.example.org", "+quic"];
    end(Command::new("kdig").args(fixed).args(arguments))
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
        let ended = kdig(&site, address, &["+padding", name, "A"]);
        assert!(ended.stdout.contains("QUIC session (QUICv1)"), "{ended:?}");
        assert!(ended.stdout.contains(expected) && ended.stdout.contains("; PADDING: "), "{name}: {ended:?}");
        Plain::new(site.dns).told(name);
    }
    let facts = |transport: &str| -> Vec<Vec<serde_json::Value>> {
        let keys = ["qname", "verdict", "reason", "rule", "rcode", "segment", "client"];
        let records = site.queries().into_iter().filter(|record| record["transport"] == transport);
        records.map(|record| keys.map(|key| record[key].clone()).to_vec()).collect()
    };
    assert_eq!(facts("doq").len(), 4);
    assert_eq!(facts("doq"), facts("udp"));
    let padded = site.queries().into_iter().filter(|record| record["transport"] == "doq");
    assert!(padded.into_iter().all(|record| record["bytes"] == 468));
    assert_eq!(site.metric("outgate_responses_total{rcode=\"NXDOMAIN\",transport=\"doq\"}"), 2.0);
    let status = site.run(&["status"]).stdout;
    assert!(status.contains(&format!("doq {address}")), "{status}");
    assert!(node.stderr().contains(&format!("serving DNS over QUIC address={address}")), "{}", node.stderr());
    assert_eq!(node.stop(), Some(0));
    site.verified();
}

#[test]
fn who_comes_while_no_process_runs_is_answered_by_the_next() {
    let (site, address) = site();
    let sockets = [udp(site.dns), tcp(site.dns), udp(address)];
    let mut node = site.start_given(&sockets.each_ref());
    assert!(!node.stderr().contains("WARN"), "{}", node.stderr());
    run(async {
        let client = doq(&site);
        let before = client.connect(address).await.unwrap();
        assert_eq!(addresses(&ask(&before, a("www.corp.example")).await), ["192.0.2.80"]);
        assert_eq!(node.stop(), Some(0), "{}", node.stderr());
        assert_eq!(code_of(&before).await, 0);
        let early = client.begin(address);
        node = site.start_given(&sockets.each_ref());
        assert_eq!(addresses(&ask(&early.await.unwrap(), a("www.corp.example")).await), ["192.0.2.80"]);
    });
    assert_eq!(node.stop(), Some(0), "{}", node.stderr());
    assert_eq!(site.queries().len(), 2);
    site.verified();
}

#[test]
fn a_connection_takes_a_hundred_queries_at_once_and_ends_when_the_node_stops() {
    let (site, address) = site();
    let mut node = site.start();
    run(async {
        let connection = doq(&site).connect(address).await.unwrap();
        for _ in 0..3 {
            for reply in join_all((0..100).map(|_| ask(&connection, a("www.corp.example")))).await {
                assert_eq!(addresses(&reply), ["192.0.2.80"]);
            }
        }
        // A zone transfer is refused like anywhere, and what a datagram could not hold is whole.
        let reply = ask(&connection, query("corp.example", RecordType::AXFR)).await;
        assert_eq!(code(&reply), ResponseCode::Refused);
        assert_eq!(site.queries().len(), 301);
        assert_eq!(site.metric("outgate_streams"), 1.0);
        node.signal(Signal::SIGTERM);
        assert_eq!(code_of(&connection).await, 0);
        assert_eq!(node.wait(), Some(0));
    });
    site.verified();
}

#[test]
fn what_is_no_doq_ends_the_connection_with_its_code() {
    let (site, address) = site();
    let mut node = site.start();
    let wire = |message: Message| framed(&message.to_vec().unwrap());
    let zero = |mut message: Message| {
        message.metadata.id = 0;
        message
    };
    let good = wire(zero(a("www.corp.example")));
    let mut keepalive = with_edns(zero(a("www.corp.example")), 1232);
    let option = EdnsOption::Unknown(11, Vec::new());
    keepalive.edns.as_mut().unwrap().options_mut().insert(option);
    assert!(keepalive.edns.as_ref().unwrap().option(EdnsCode::Keepalive).is_some());
    let mut response = good.clone();
    response[4] |= 0x80;
    let rows = [
        ("an id", wire(a("www.corp.example")), 2, "broken", Some("a message id over QUIC")),
        ("keepalive", wire(keepalive), 2, "broken", Some("edns-tcp-keepalive over QUIC")),
        ("a response", response, 2, "broken", Some("a response where a query was expected")),
        ("two messages", [&*good, &*good].concat(), 2, "broken", None),
        ("half of one", good[..20].to_vec(), 2, "partial", None),
        ("nothing", Vec::new(), 2, "empty", None),
        ("a length of nothing", vec![0, 0], 2, "empty", None),
        ("too much", [&[0xff, 0xff][..], &[1; 6_000]].concat(), 4, "oversize", None),
    ];
    run(async {
        let client = doq(&site);
        for (what, stream, code, why, recorded) in rows {
            let (connection, before) = (client.connect(address).await.unwrap(), closed(&site, why));
            let records = site.queries().len();
            // The stream may be gone before all of it is sent.
            let (mut send, mut receive) = connection.open_bi().await.unwrap();
            let _ = send.write_all(&stream).await;
            let _ = send.finish();
            assert!(receive.read_to_end(10).await.is_err(), "{what}");
            assert_eq!(code_of(&connection).await, code, "{what}");
            until("it is counted", || closed(&site, why) == before + 1.0);
            let written = site.queries().split_off(records);
            let written: Vec<_> = written.iter().map(|record| [&record["reason"], &record["why"]]).collect();
            let expected: Vec<_> = recorded.iter().map(|why| ["malformed", why]).collect();
            assert_eq!(written, expected, "{what}");
        }
        // No stream in one direction, and no hundred-and-first in both.
        let connection = client.connect(address).await.unwrap();
        assert!(connection.open_uni().now_or_never().is_none());
        let mut streams = Vec::new();
        for _ in 0..100 {
            let (mut send, receive) = connection.open_bi().now_or_never().unwrap().unwrap();
            send.write_all(&good[..1]).await.unwrap();
            streams.push((send, receive));
        }
        assert!(connection.open_bi().now_or_never().is_none());
        // None of them goes on.
        assert_eq!(code_of(&connection).await, 2);
        // Others are not harmed.
        let connection = client.connect(address).await.unwrap();
        assert_eq!(addresses(&ask(&connection, a("www.corp.example")).await), ["192.0.2.80"]);
        connection.close(0_u32.into(), b"");
        until("it has left", || closed(&site, "peer") == 1.0);
    });
    assert_eq!(node.stop(), Some(0));
    site.verified();
}

#[test]
fn queries_that_are_taken_back_harm_nobody_until_there_are_too_many() {
    let (site, address) = site();
    let mut node = site.start();
    let half = &framed(&a("www.corp.example").to_vec().unwrap())[..20];
    run(async {
        let connection = doq(&site).connect(address).await.unwrap();
        let mut taken_back = 0;
        while connection.close_reason().is_none() {
            let Ok((mut send, _receive)) = connection.open_bi().await else { break };
            let Ok(()) = send.write_all(half).await else { break };
            let _ = send.reset(3_u32.into());
            taken_back += 1;
            if taken_back == 50 {
                assert_eq!(addresses(&ask(&connection, a("www.corp.example")).await), ["192.0.2.80"]);
            }
        }
        assert!(taken_back > 100, "{taken_back}");
        assert_eq!(code_of(&connection).await, 4);
    });
    assert_eq!(site.queries().len(), 1);
    assert_eq!(node.stop(), Some(0));
    site.verified();
}

#[test]
fn sessions_are_resumed_without_early_data_and_other_protocols_turned_away() {
    let (site, address) = site();
    let _node = site.start();
    let mut early = Arc::unwrap_or_clone(client(&site, &[b"doq"]));
    early.enable_early_data = true;
    run(async {
        let client_of = Client::new(&Arc::new(early));
        let connection = client_of.connect(address).await.unwrap();
        ask(&connection, a("www.corp.example")).await;
        connection.close(0_u32.into(), b"");
        // The ticket of the first allows none.
        let again = client_of.begin(address).into_0rtt();
        let Err(again) = again else { panic!("early data may be sent") };
        ask(&again.await.unwrap(), a("www.corp.example")).await;
        for protocols in [&[b"h3".as_slice()][..], &[b"dot"], &[]] {
            let refused = Client::new(&client(&site, protocols)).connect(address).await.unwrap_err();
            assert!(
                refused.to_string().contains("no_application_protocol") || refused.to_string().contains("120"),
                "{refused}"
            );
        }
    });
    until("each is counted", || closed(&site, "handshake") == 3.0);
}

#[test]
fn a_forged_sender_takes_no_seat_and_is_sent_less_than_it_sent() {
    let (site, address) = site();
    let mut node = site.start();
    run(async {
        // The first packet of a real client, for somebody else to send.
        let catcher = UdpSocket::bind("127.0.0.1:0").unwrap();
        catcher.set_read_timeout(Some(BOUND)).unwrap();
        let _connecting = doq(&site).begin(catcher.local_addr().unwrap());
        let mut first = [0; 2_000];
        let length = catcher.recv(&mut first).unwrap();
        assert!(length >= 1_200);
        let forger = UdpSocket::bind("127.0.0.1:0").unwrap();
        forger.set_read_timeout(Some(BOUND)).unwrap();
        forger.connect(address).unwrap();
        for _ in 0..200 {
            forger.send(&first[..length]).unwrap();
            let mut retry = [0; 2_000];
            let told = forger.recv(&mut retry).unwrap();
            // RFC 9000 §17.2.5: a long header of type 3.
            assert!(retry[0] & 0xf0 == 0xf0 && told < 200, "{told} {:02x?}", &retry[..8]);
        }
        // Junk: nothing, short, a header without sense, an Initial that is none, an unknown version.
        first[20..length].fill(0xa5);
        for junk in [&[][..], &[0xc0], &[0x40; 30], &[0xff; 1_400], &first[..length], &[0xc3; 1_200]] {
            forger.send(junk).unwrap();
        }
        assert_eq!(site.metric("outgate_streams"), 0.0);
        assert_eq!((closed(&site, "handshake"), site.queries().len()), (0.0, 0));
        let connection = doq(&site).connect(address).await.unwrap();
        assert_eq!(addresses(&ask(&connection, a("www.corp.example")).await), ["192.0.2.80"]);
    });
    assert_eq!(node.stop(), Some(0));
    site.verified();
}

#[test]
fn a_client_has_its_seats_and_a_forwarder_that_must_name_its_clients_none() {
    let (site, address) = site();
    let forwarder = "[[forwarder]]\nname = \"proxy\"\naddresses = [\"127.0.0.7\"]\nidentity = \"proxy\"";
    let site = site.with("forwarder", forwarder);
    let _node = site.start();
    let config = client(&site, &[b"doq"]);
    run(async {
        let (mine, other, proxy) =
            (Client::new(&config), Client::from([127, 0, 0, 9], &config), Client::from([127, 0, 0, 7], &config));
        let seated: Vec<_> = join_all((0..16).map(|_| mine.connect(address))).await;
        assert!(seated.iter().all(Result::is_ok));
        for (refused, why) in [(&mine, "client"), (&proxy, "unproxied")] {
            let error = refused.connect(address).await.unwrap_err();
            let ConnectionError::ConnectionClosed(close) = &error else { panic!("{error}") };
            assert_eq!(close.error_code, quinn::TransportErrorCode::CONNECTION_REFUSED);
            assert_eq!(closed(&site, why), 1.0);
        }
        let connection = other.connect(address).await.unwrap();
        assert_eq!(code(&ask(&connection, a("www.corp.example")).await), ResponseCode::NoError);
        assert_eq!(site.metric("outgate_streams"), 17.0);
    });
}

#[test]
fn who_asks_nothing_is_idle_whatever_it_pings() {
    let (site, address) = site();
    let _node = site.start();
    run(async {
        let connection = doq(&site).pinging().connect(address).await.unwrap();
        ask(&connection, a("www.corp.example")).await;
        assert_eq!(code_of(&connection).await, 0);
        until("it is counted", || closed(&site, "idle") == 1.0);
        assert_eq!(site.queries().len(), 1);
    });
}

#[test]
fn a_renewed_certificate_is_for_new_connections() {
    let (site, address) = site();
    let mut node = site.start();
    run(async {
        let before = doq(&site);
        let first = before.connect(address).await.unwrap();
        ask(&first, a("www.corp.example")).await;
        crate::tls::renew(&site);
        node.signal(Signal::SIGHUP);
        until("it is reloaded", || node.stderr().contains("another certificate is served to new connections"));
        ask(&doq(&site).connect(address).await.unwrap(), a("www.corp.example")).await;
        // Who trusts the old one alone has a ticket for it, which is worth nothing now.
        assert!(before.connect(address).await.is_err(), "the old one is shown no more");
        ask(&first, a("www.corp.example")).await;
        node.stop();
    });
    site.verified();
}

#[test]
fn clients_that_know_the_address_alone_are_told_of_both_doors() {
    let (site, address) = site();
    let h3 = free_port();
    let site = {
        let listen = format!("{}\nh3 = [\"127.0.0.1:{h3}\"]", site.tables["listen"]);
        site.with("listen", listen)
    };
    let mut node = site.start();
    let (host, port) = (format!("@{}", site.dns.ip()), site.dns.port().to_string());
    let said = end(Command::new("kdig").args([&*host, "-p", &*port, "+short", "_dns.resolver.arpa", "SVCB"])).stdout;
    let told = format!(
        "1 dns.example.org. alpn=doq port={} ipv4hint=127.0.0.1\n\
         2 dns.example.org. alpn=h3 port={h3} ipv4hint=127.0.0.1 key7=/dns-query{{?dns}}",
        address.port(),
    );
    assert_eq!(said.replace('"', "").replace("dohpath=", "key7=").trim_end(), told);
    let status = site.run(&["status"]).stdout;
    assert!(status.contains(&format!("doh3 127.0.0.1:{h3}")), "{status}");
    assert_eq!(node.stop(), Some(0));
}
