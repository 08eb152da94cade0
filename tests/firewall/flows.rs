//! Flows through a real gateway: what passes, what is refused, what goes on.

use std::io::ErrorKind;
use std::net::TcpListener;
use std::sync::mpsc::{TryRecvError, channel};
use std::thread;
use std::time::Duration;

use outgate::firewall::nftables::{Hook, Nftables, Settings};
use outgate::firewall::{Common, Firewall, FirewallError};
use outgate::net::Service;
use outgate::policy::Layout;
use outgate::time::Clock;

use crate::kernel::*;
use crate::network::*;

#[test]
fn only_what_is_granted_passes_a_gateway() {
    use Fate::{Arrives, Refused};
    let Some(net) = Net::new() else { return };
    let networks = [("198.51.100.2/32", "tcp/22-23"), ("2001:db8:2::2/128", "icmp")];
    let layout = layout(vec![segment("office", &["192.0.2.0/25", "2001:db8:1::/120"], &networks)]);
    let mut wall = net.gateway.run(move || {
        unlimited();
        let mut wall = firewall(forward());
        wall.adopt(&layout, now()).unwrap();
        wall
    });
    for at in 0..2 {
        let (client, stranger, server, other) = (CLIENT[at], STRANGER[at], SERVER[at], OTHER[at]);
        let grants = [
            element(client, server, Service::Tcp(443)),
            element(client, server, Service::Udp(443)),
            element(client, server, Service::Icmp),
            element(client, server, Service::Tcp(853)),
            element("office", other, Service::Tcp(80)),
        ];
        wall = net.gateway.run(move || {
            assert_eq!(open(&mut wall, &grants, MINUTE), [0; 0]);
            wall
        });
        let four = ip(client).is_ipv4();
        for (from, to, service, fate, why) in [
            (client, server, "tcp/443", Arrives, "granted"),
            (client, server, "udp/443", Arrives, "granted"),
            (client, server, "icmp", Arrives, "granted"),
            (client, server, "tcp/80", Refused, "another port"),
            (client, server, "udp/80", Refused, "another port"),
            (client, other, "tcp/443", Refused, "another address"),
            (client, other, "udp/443", Refused, "another address"),
            (client, other, "tcp/80", Arrives, "granted to the segment"),
            (client, other, "udp/80", Refused, "another protocol"),
            (client, server, "tcp/853", Refused, "DNS elsewhere, though granted"),
            (client, server, "udp/53", Refused, "DNS elsewhere"),
            (client, other, "tcp/22", if four { Arrives } else { Refused }, "a static rule, of IPv4"),
            (client, other, "icmp", if four { Refused } else { Arrives }, "a static rule, of IPv6"),
            (stranger, server, "tcp/443", Refused, "in no segment"),
            (stranger, other, "tcp/80", Refused, "in no segment"),
            (stranger, server, "udp/443", Refused, "in no segment"),
        ] {
            assert_eq!(try_from(&net, from, to, service), fate, "{from} → {to} {service}: {why}");
        }
        // Every protocol, for one client and for the segment; DNS still not.
        let any = [element(client, server, Service::Any), element("office", other, Service::Any)];
        wall = net.gateway.run(move || {
            open(&mut wall, &any, MINUTE);
            wall
        });
        for (to, service, fate) in [
            (server, "tcp/80", Arrives),
            (server, "udp/80", Arrives),
            (other, "udp/22", Arrives),
            (other, "icmp", Arrives),
            (server, "udp/853", Refused),
            (other, "tcp/53", Refused),
        ] {
            assert_eq!(try_from(&net, client, to, service), fate, "any: {client} → {to} {service}");
        }
    }
    // From outside to inside: a connection that another table let in may be answered.
    let listener = net.client.run(|| TcpListener::bind("[::]:8080").unwrap());
    serve(listener);
    for at in 0..2 {
        net.server.run(move || tcp(SERVER[at], CLIENT[at], 8080).unwrap());
    }
    net.gateway.run(|| run("nft", &["list", "ruleset"]));
    drop(wall);
}

#[test]
fn a_live_flow_survives_its_grant_and_a_restart() {
    let Some(net) = Net::new() else { return };
    let layout = layout(vec![segment("office", &["192.0.2.0/24", "2001:db8:1::/64"], &[])]);
    for at in 0..2 {
        let (client, server) = (CLIENT[at], SERVER[at]);
        let first = layout.clone();
        let mut wall = net.gateway.run(move || {
            let mut wall = firewall(forward());
            wall.adopt(&first, now()).unwrap();
            open(&mut wall, &[element(client, server, Service::Tcp(443))], MINUTE);
            wall
        });
        let mut stream = net.client.run(move || tcp(client, server, 443).unwrap());
        // The grant ends by itself.
        let second = layout.clone();
        wall = net.gateway.run(move || {
            open(&mut wall, &[element(client, server, Service::Tcp(443))], Duration::from_millis(10));
            while !live(&mut wall, &second).is_empty() {}
            wall
        });
        assert_eq!(try_from(&net, client, server, "tcp/443"), Fate::Refused, "a new flow");
        talk(&mut stream).unwrap();
        // The resolver dies: what was refused stays refused, what was live lives.
        drop(wall);
        assert_eq!(try_from(&net, client, server, "tcp/443"), Fate::Refused, "without an owner");
        talk(&mut stream).unwrap();
        let third = layout.clone();
        let wall = net.gateway.run(move || {
            let mut wall = firewall(forward());
            wall.adopt(&third, now()).unwrap();
            wall
        });
        talk(&mut stream).unwrap();
        drop(wall);
    }
}

#[test]
fn a_change_of_layout_opens_and_closes_nothing_for_a_moment() {
    let Some(net) = Net::new() else { return };
    // A static rule lets the client reach the server over IPv6.
    let office = || segment("office", &["192.0.2.0/24", "2001:db8:1::/64"], &[("2001:db8:2::1/128", "tcp/443")]);
    let other = || {
        let networks = [("198.51.100.0/24", "any"), ("2001:db8:2::/64", "tcp/80")];
        segment("other", &["192.0.2.128/25", "203.0.113.0/24", "2001:db8:1::8000/113"], &networks)
    };
    let denying = |segments, denied: &str| Layout { denied: vec![denied.parse().unwrap()], ..layout(segments) };
    let grants = [
        element(CLIENT[0], SERVER[0], Service::Tcp(443)),
        element("office", SERVER[0], Service::Tcp(80)),
        element(CLIENT[0], OTHER[0], Service::Tcp(443)),
    ];
    let mut wall = net.gateway.run(move || {
        let mut wall = firewall(forward());
        wall.adopt(&denying(vec![office()], "198.51.100.2/32"), now()).unwrap();
        open(&mut wall, &grants, MINUTE);
        wall
    });
    let (done, end) = channel::<()>();
    thread::scope(|scope| {
        let gateway = &net.gateway;
        scope.spawn(move || {
            gateway.run(move || {
                for round in 0..20 {
                    wall.arrange(&denying(vec![office(), other()], "198.51.100.2/32")).unwrap();
                    open(&mut wall, &grants, MINUTE + Duration::from_secs(round));
                    wall.arrange(&denying(vec![office(), other()], "198.51.100.2/31")).unwrap();
                    wall.adopt(&denying(vec![office()], "198.51.100.2/32"), now()).unwrap();
                    // As after a crash: the next process takes over.
                    drop(wall);
                    wall = firewall(forward());
                    wall.adopt(&denying(vec![office()], "198.51.100.2/31"), now()).unwrap();
                }
                drop(done);
                wall
            })
        });
        let tries = net.client.run(move || {
            let refused = Err(ErrorKind::ConnectionRefused);
            let mut tries = 0;
            while end.try_recv() == Err(TryRecvError::Empty) {
                let ends = |from: usize, to: &str, port| tcp(CLIENT[from], to, port).map(|_| ());
                assert_eq!(ends(0, SERVER[0], 443), Ok(()), "granted to the client");
                assert_eq!(ends(0, SERVER[0], 80), Ok(()), "granted to the segment");
                assert_eq!(ends(1, SERVER[1], 443), Ok(()), "a static rule");
                assert_eq!(ends(0, SERVER[0], 22), refused, "not granted");
                assert_eq!(ends(0, OTHER[0], 443), refused, "granted, and denied to everybody");
                tries += 1;
            }
            tries
        });
        assert!(tries > 0);
    });
}

#[test]
fn settings_and_segments_decide_what_is_governed() {
    use Fate::{Arrives, Refused};
    let Some(net) = Net::new() else { return };
    // The client is in the inner segment; what the outer one may is not its business.
    let layout = layout(vec![
        segment("inner", &["192.0.2.0/28", "2001:db8:1::/112"], &[]),
        segment("observed", &["192.0.2.200/32", "2001:db8:1::200/128"], &[]),
        segment(
            "outer",
            &["192.0.2.0/24", "2001:db8:1::/64"],
            &[("198.51.100.0/24", "any"), ("2001:db8:2::/64", "any")],
        ),
    ]);
    let wall = net.gateway.run(move || {
        unlimited();
        let mut wall = firewall(Settings {
            ungated: vec!["198.51.100.2/32".parse().unwrap(), "2001:db8:2::2/128".parse().unwrap()],
            resolvers: vec![ip(SERVER[0]), ip(SERVER[1])],
            ..forward()
        });
        wall.adopt(&layout, now()).unwrap();
        let shared: Vec<_> = SERVER.map(|server| element("outer", server, Service::Tcp(443))).into();
        assert_eq!(open(&mut wall, &shared, MINUTE), [0; 0]);
        wall
    });
    for at in 0..2 {
        let (client, observed) = (CLIENT[at], STRANGER[at]);
        for (from, to, service, fate, why) in [
            (client, SERVER[at], "tcp/443", Refused, "granted to the outer segment"),
            (client, SERVER[at], "tcp/80", Refused, "a static rule of the outer segment"),
            (client, OTHER[at], "tcp/80", Arrives, "not governed"),
            (client, SERVER[at], "udp/53", Arrives, "a resolver"),
            (client, SERVER[at], "tcp/53", Arrives, "a resolver"),
            (client, SERVER[at], "tcp/853", Refused, "not the resolver's port"),
            (observed, SERVER[at], "tcp/80", Arrives, "observed"),
            (observed, SERVER[at], "udp/853", Arrives, "observed"),
        ] {
            assert_eq!(try_from(&net, from, to, service), fate, "{from} → {to} {service}: {why}");
        }
    }
    drop(wall);
}

#[test]
fn a_host_governs_its_own_flows() {
    use Fate::{Arrives, Refused};
    let Some(net) = Net::new() else { return };
    let mut wall = net.client.run(|| {
        unlimited();
        let mut wall = firewall(Settings { own_uid: Some(65533), ..Settings::new(Hook::Output) });
        wall.adopt(&layout(vec![segment("host", &["127.0.0.0/8", "::1/128"], &[])]), now()).unwrap();
        wall
    });
    for at in 0..2 {
        let (client, server) = (CLIENT[at], SERVER[at]);
        assert_eq!(try_from(&net, client, server, "udp/443"), Refused, "before");
        wall = net.client.run(move || {
            // Asked from the loopback, from an address of the machine, by the segment, and from elsewhere.
            let (loopback, elsewhere) = (["127.0.0.1", "::1"][at], ["203.0.113.9", "2001:db8:9::9"][at]);
            let grants = [
                element(loopback, server, Service::Tcp(443)),
                element(client, server, Service::Udp(443)),
                element("host", server, Service::Icmp),
                element(elsewhere, server, Service::Tcp(80)),
            ];
            assert_eq!(open(&mut wall, &grants, MINUTE), [0; 0]);
            run("nft", &["list", "ruleset"]);
            wall
        });
        for (service, fate) in [
            ("tcp/443", Arrives),
            ("udp/443", Arrives),
            ("icmp", Arrives),
            ("tcp/80", Refused),
            ("udp/80", Refused),
            ("tcp/53", Refused),
            ("udp/853", Refused),
        ] {
            assert_eq!(try_from(&net, client, server, service), fate, "{server} {service}");
        }
        // Within the machine, and answers to whoever asks it.
        net.client.run(|| TcpListener::bind("[::]:8081").map(serve).unwrap_or(()));
        net.client.run(move || tcp(client, client, 8081).unwrap());
        net.server.run(move || tcp(server, client, 8081).unwrap());
    }
    // The resolver's own user speaks to whom it must, DNS elsewhere too.
    net.client.run(|| {
        let mut wall = wall;
        let first = Settings { own_uid: Some(nix::unistd::geteuid().as_raw()), ..Settings::new(Hook::Output) };
        let root = Nftables::new(Common::new("host"), first, Clock::system()).map(|_| ());
        assert_eq!(root, Err(FirewallError::OwnUser), "root is nobody's own user");
        wall.arrange(&Layout::default()).unwrap();
    });
    assert_eq!(try_from(&net, CLIENT[0], SERVER[0], "tcp/80"), Refused, "without a segment");
}
