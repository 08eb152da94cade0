//! Live connections that are ended: what is denied, and what is cut.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use outgate::firewall::nftables::{Hook, Nftables, Settings};
use outgate::firewall::{Cut, Firewall};
use outgate::grant::Change;
use outgate::net::Service;
use outgate::time::Clock;

use crate::kernel::*;
use crate::network::*;

#[test]
fn what_is_denied_is_cut_at_once_for_everybody() {
    use Fate::{Arrives, Refused};
    let Some(net) = Net::new() else { return };
    // Granted, by a static rule, not governed, observed: it makes no difference.
    let layout = layout(vec![
        segment("observed", &["192.0.2.200/32", "2001:db8:1::200/128"], &[]),
        segment("office", &["192.0.2.0/25", "2001:db8:1::/120"], &[("198.51.100.0/24", "udp/443")]),
    ]);
    let first = layout.clone();
    let mut wall = net.gateway.run(move || {
        unlimited();
        let ungated = vec!["198.51.100.1/32".parse().unwrap(), "2001:db8:2::1/128".parse().unwrap()];
        let mut wall = firewall(Settings { ungated, ..forward() });
        wall.adopt(&first, now()).unwrap();
        wall
    });
    for at in 0..2 {
        let (client, observed, server, other) = (CLIENT[at], STRANGER[at], SERVER[at], OTHER[at]);
        let (mut office, mut watched) =
            net.client.run(move || (tcp(client, server, 443).unwrap(), tcp(observed, server, 443).unwrap()));
        let mut elsewhere = net.client.run(move || tcp(observed, other, 443).unwrap());
        let mut denied = layout.clone();
        denied.denied = vec![ip(server).into()];
        let open = layout.clone();
        wall = net.gateway.run(move || {
            wall.arrange(&denied).unwrap();
            wall
        });
        // Who sends is told.
        assert_eq!(talk(&mut office), Err(ErrorKind::ConnectionReset));
        assert_eq!(talk(&mut watched), Err(ErrorKind::ConnectionReset));
        talk(&mut elsewhere).unwrap();
        for (from, to, service, fate) in [
            (client, server, "tcp/443", Refused),
            (client, server, "udp/443", Refused),
            (observed, server, "icmp", Refused),
            (observed, other, "icmp", Arrives),
        ] {
            assert_eq!(try_from(&net, from, to, service), fate, "{from} → {to} {service}");
        }
        wall = net.gateway.run(move || {
            wall.arrange(&open).unwrap();
            wall
        });
        assert_eq!(try_from(&net, client, server, "tcp/443"), Arrives, "and open again");
    }
    drop(wall);
}

/// Ends connections; how many.
fn cut(wall: &Nftables, cuts: Vec<Cut>) -> u64 {
    wall.cutter(&Arc::from(cuts))().unwrap()
}

fn of(from: &str, to: &str, service: Option<Service>) -> Cut {
    let prefix = |text: &str| (!text.is_empty()).then(|| ip(text).into());
    Cut { from: prefix(from), to: prefix(to), service }
}

/// A server that speaks without being asked: what comes to `port` is answered once, and again whenever it is told to.
fn speaker(address: &'static str, port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((address, port)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// A client's flow to a [`speaker`], begun and answered.
fn flow(net: &Net, client: &'static str, server: &'static str, port: u16) -> (UdpSocket, UdpSocket) {
    let speaker = net.server.run(move || speaker(server, port));
    let socket = net.client.run(move || {
        let socket = UdpSocket::bind(source(client, 0)).unwrap();
        socket.connect(SocketAddr::new(ip(server), port)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    });
    let mut byte = [0];
    socket.send(b"x").unwrap();
    let (_, peer) = speaker.recv_from(&mut byte).unwrap();
    speaker.connect(peer).unwrap();
    speaker.send(b"y").unwrap();
    socket.recv(&mut byte).unwrap();
    (socket, speaker)
}

/// A server that sends without end to whoever connects.
fn pour(net: &Net, address: &'static str, port: u16) {
    let listener = net.server.run(move || TcpListener::bind((address, port)).unwrap());
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || while stream.write_all(&[0; 1024]).is_ok() {});
        }
    });
}

/// How a download ends, within a second.
fn ends(reader: &mut TcpStream) -> ErrorKind {
    let mut piece = [0; 1 << 16];
    let since = now();
    let end = loop {
        match reader.read(&mut piece) {
            Ok(0) => break ErrorKind::UnexpectedEof,
            Ok(_) => assert!(now().since(since) < Duration::from_secs(1), "it goes on"),
            Err(error) => break error.kind(),
        }
    };
    assert!(now().since(since) < Duration::from_secs(1));
    end
}

#[test]
fn what_was_cut_is_judged_anew() {
    let Some(net) = Net::new() else { return };
    let layout = layout(vec![
        segment("observed", &["192.0.2.200/32", "2001:db8:1::200/128"], &[]),
        segment("office", &["192.0.2.0/25", "2001:db8:1::/120"], &[]),
    ]);
    let mut wall = net.gateway.run(move || {
        unlimited();
        let mut wall = firewall(forward());
        wall.adopt(&layout, now()).unwrap();
        wall
    });
    for at in 0..2 {
        let (client, observed, server, other) = (CLIENT[at], STRANGER[at], SERVER[at], OTHER[at]);
        let all = [
            element(client, server, Service::Tcp(443)),
            element(client, server, Service::Tcp(80)),
            element(client, server, Service::Udp(4433)),
            element(client, server, Service::Udp(4434)),
            element(client, server, Service::Icmp),
            element(client, other, Service::Tcp(443)),
        ];
        wall = net.gateway.run(move || {
            assert_eq!(open(&mut wall, &all, MINUTE), [0; 0]);
            wall
        });
        let talking = |from, to, port| net.client.run(move || tcp(from, to, port).unwrap());
        let mut closed = talking(client, server, 443);
        let (mut another, mut elsewhere) = (talking(client, server, 80), talking(client, other, 443));
        let mut watched = talking(observed, server, 443);
        let (ended, speaks) = flow(&net, client, server, 4433);
        let (granted, still) = flow(&net, client, server, 4434);

        // Two grants are closed, and everything to the server is cut.
        wall = net.gateway.run(move || {
            let gone = [all[0], all[2]].map(|element| Change::Close { element });
            assert_eq!(wall.apply(&gone, now()).unwrap(), [0; 0]);
            assert_eq!(cut(&wall, vec![of("", other, Some(Service::Udp(443)))]), 0);
            assert_eq!(cut(&wall, vec![of(client, server, Some(Service::Tcp(443)))]), 1);
            assert_eq!(
                cut(&wall, vec![of("", server, None)]),
                4,
                "the other three of the client, and the observed one"
            );
            assert_eq!(cut(&wall, vec![of("", server, None)]), 0, "they are cut");
            run("nft", &["list", "ruleset"]);
            wall
        });
        // TCP: who sends is reset. What the other side sends is heard, and its acknowledgement resets, too.
        assert_eq!(talk(&mut closed), Err(ErrorKind::ConnectionReset));
        // UDP: neither side reaches the other, whoever begins.
        let mut byte = [0];
        for _ in 0..3 {
            speaks.send(b"y").unwrap();
        }
        // What is granted still goes on as soon as the client sends; before, the other side does not begin it.
        still.send(b"y").unwrap();
        granted.send(b"x").unwrap();
        still.recv(&mut byte).unwrap();
        still.send(b"z").unwrap();
        granted.recv(&mut byte).unwrap();
        assert_eq!(byte, *b"z", "what was sent before did not arrive");
        let refused = ended.send(b"x").and_then(|_| ended.recv(&mut byte)).unwrap_err();
        assert_ne!(refused.kind(), ErrorKind::WouldBlock, "it is told so, and nothing was heard");
        talk(&mut another).unwrap();
        talk(&mut watched).unwrap();
        talk(&mut elsewhere).unwrap();

        // A download: the client only reads. What its machine acknowledges is refused.
        pour(&net, server, 8443);
        let fetch = element(client, server, Service::Tcp(8443));
        wall = net.gateway.run(move || {
            assert_eq!(open(&mut wall, &[fetch], MINUTE), [0; 0]);
            wall
        });
        let mut reader = net.client.run(move || connect(client, server, 8443).unwrap());
        reader.read_exact(&mut [0; 1 << 16]).unwrap();
        wall = net.gateway.run(move || {
            assert_eq!(wall.apply(&[Change::Close { element: fetch }], now()).unwrap(), [0; 0]);
            assert_eq!(cut(&wall, vec![of(client, server, Some(Service::Tcp(8443)))]), 1);
            wall
        });
        assert_eq!(ends(&mut reader), ErrorKind::ConnectionReset);
        talk(&mut elsewhere).unwrap();
        // New connections: as granted.
        assert_eq!(try_from(&net, client, server, "tcp/443"), Fate::Refused);
        assert_eq!(try_from(&net, client, other, "tcp/443"), Fate::Arrives);
    }
    drop(wall);
}

/// There what comes in is not judged, and what answers it is a reply.
#[test]
fn what_a_host_began_is_cut() {
    let Some(net) = Net::new() else { return };
    let mut wall = net.client.run(|| {
        unlimited();
        let mut wall = firewall(Settings { own_uid: Some(65533), ..Settings::new(Hook::Output) });
        wall.adopt(&layout(vec![segment("host", &["127.0.0.0/8", "::1/128"], &[])]), now()).unwrap();
        wall
    });
    for at in 0..2 {
        let (client, server, other) = (CLIENT[at], SERVER[at], OTHER[at]);
        let loopback = ["127.0.0.1", "::1"][at];
        pour(&net, server, 8443);
        let closing = [element(loopback, server, Service::Tcp(8443)), element(loopback, server, Service::Udp(4433))];
        let stays = element(loopback, other, Service::Tcp(443));
        wall = net.client.run(move || {
            assert_eq!(open(&mut wall, &[closing[0], closing[1], stays], MINUTE), [0; 0]);
            wall
        });
        let mut reader = net.client.run(move || connect(client, server, 8443).unwrap());
        reader.read_exact(&mut [0; 1 << 16]).unwrap();
        let mut elsewhere = net.client.run(move || tcp(client, other, 443).unwrap());
        let (ended, speaks) = flow(&net, client, server, 4433);
        wall = net.client.run(move || {
            assert_eq!(wall.apply(&closing.map(|element| Change::Close { element }), now()).unwrap(), [0; 0]);
            assert_eq!(cut(&wall, vec![of("203.0.113.9", server, None)]), 0, "another host's are not here");
            assert_eq!(cut(&wall, vec![of(loopback, server, None)]), 2);
            wall
        });
        assert_eq!(ends(&mut reader), ErrorKind::ConnectionReset);
        speaks.send(b"y").unwrap();
        ended.recv(&mut [0]).unwrap();
        let refused = ended.send(b"x").and_then(|_| ended.recv(&mut [0])).unwrap_err();
        assert_ne!(refused.kind(), ErrorKind::WouldBlock, "what came in made nothing of it");
        talk(&mut elsewhere).unwrap();
        // Denied, and so for everybody.
        let mut denied = layout(vec![segment("host", &["127.0.0.0/8", "::1/128"], &[])]);
        denied.denied = vec![ip(other).into()];
        wall = net.client.run(move || {
            wall.arrange(&denied).unwrap();
            wall
        });
        assert_eq!(talk(&mut elsewhere), Err(ErrorKind::ConnectionReset));
    }
}

#[test]
fn where_the_rules_are_the_operators_connections_are_deleted() {
    let Some(net) = Net::new() else { return };
    net.gateway.run(|| {
        // Connection tracking begins with the first rule that asks for it.
        let mut wall = firewall(Settings { size: 1 << 10, ..Settings::new(Hook::Sets) });
        wall.adopt(&layout(vec![segment("office", &["192.0.2.0/24"], &[])]), now()).unwrap();
        run("nft", &["add", "chain", "inet", "outgate", "mine", "{ type filter hook forward priority 0; }"]);
        run("nft", &["add", "rule", "inet", "outgate", "mine", "ct state new accept"]);
    });
    let (mut one, mut two) =
        net.client.run(|| (tcp(CLIENT[0], SERVER[0], 443).unwrap(), tcp(CLIENT[0], OTHER[0], 443).unwrap()));
    net.gateway.run(|| {
        let mut wall = firewall(Settings { size: 1 << 10, ..Settings::new(Hook::Sets) });
        wall.adopt(&layout(vec![segment("office", &["192.0.2.0/24"], &[])]), now()).unwrap();
        assert_eq!(cut(&wall, vec![of("", SERVER[0], Some(Service::Tcp(443)))]), 1);
        assert_eq!(cut(&wall, vec![of("", SERVER[0], None)]), 0);
        assert_eq!(cut(&wall, vec![of("", OTHER[0], None)]), 1);
    });
    // The operator's rules take them up again.
    talk(&mut one).unwrap();
    talk(&mut two).unwrap();
}

/// What it costs where there are many, and what grants wait for meanwhile.
#[test]
fn one_of_a_hundred_thousand_connections_is_cut() {
    let Some(net) = Net::new() else { return };
    let mut wall = net.gateway.run(|| {
        let mut wall = firewall(forward());
        wall.adopt(&layout(vec![segment("office", &["192.0.2.0/24"], &[])]), now()).unwrap();
        // Else the first end before a slow machine has begun the last.
        set("netfilter/nf_conntrack_udp_timeout", "600");
        open(&mut wall, &[SERVER[0], OTHER[0]].map(|to| element(CLIENT[0], to, Service::Any)), MINUTE);
        wall
    });
    net.client.run(|| {
        for server in [SERVER[0], OTHER[0]] {
            let socket = UdpSocket::bind(source(CLIENT[0], 0)).unwrap();
            for port in 10_000..60_000 {
                // Where nobody listens that is told, and another connection's is not this one's.
                while socket.send_to(b"x", (server, port)).is_err() {}
            }
        }
    });
    let clock = Clock::system();
    net.gateway.run(move || {
        let one = Arc::from([of("", SERVER[0], Some(Service::Udp(31_415)))]);
        let start = clock.tick();
        assert_eq!(wall.cutter(&one)(), Ok(1));
        eprintln!("cut one of 100,000: {:?}", clock.tick().since(start));
        let half = wall.cutter(&Arc::from([of(CLIENT[0], SERVER[0], None)]));
        let start = clock.tick();
        // A thread begins in the namespace of who made it.
        let cutting = thread::spawn(half);
        let mut slowest = Duration::ZERO;
        let mut rounds = 0;
        while !cutting.is_finished() {
            let since = clock.tick();
            open(&mut wall, &[web(rounds)], MINUTE);
            slowest = slowest.max(clock.tick().since(since));
            rounds += 1;
        }
        eprintln!(
            "cut 50,000 of 100,000: {:?}; {rounds} grants meanwhile, the slowest {slowest:?}",
            clock.tick().since(start)
        );
        let ended = cutting.join().unwrap().unwrap();
        assert!(ended > 45_000, "{ended}");
        assert_eq!(cut(&wall, vec![of("", SERVER[0], None)]), 0);
    });
}
