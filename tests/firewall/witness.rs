//! What the kernel tells of flows and refusals.

use std::collections::HashSet;
use std::net::{IpAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use outgate::firewall::nftables::{Hook, Nftables, Settings};
use outgate::firewall::{Endpoints, Firewall, FirewallError, Plan, Refused, Seen, Sight, Sought, Witness};
use outgate::net::Service;
use outgate::policy::Layout;

use crate::kernel::*;
use crate::network::*;

const ALL: Sought = Sought { flows: true, refused: true, buffer: 4 << 20 };

/// Looks until something that was seen is what is waited for; all that was seen until then.
fn until(witness: &mut Box<dyn Witness>, mut wanted: impl FnMut(&Sight) -> bool) -> Vec<Sight> {
    let (never, _held) = UnixStream::pair().unwrap();
    let (mut seen, mut live, start) = (Vec::new(), Vec::new(), now());
    while !seen.iter().any(&mut wanted) {
        assert!(now().since(start) < Duration::from_secs(10), "not seen in {seen:?}; {live:?} live");
        witness.wait(never.as_fd(), Duration::from_secs(1)).unwrap();
        let looked = witness.look(&mut |sight| seen.push(sight)).unwrap();
        assert!(!looked.lost, "{looked:?}");
        // What is over is forgotten when somebody looks at it, else at leisure.
        live.clear();
        witness.list(&mut |seen| live.extend(seen)).unwrap();
    }
    seen
}

/// A gateway with a witness: the client may reach the first server by TCP 443 and UDP 443; the second is denied.
fn gateway(net: &Net, sought: Sought) -> (Nftables, Box<dyn Witness>) {
    net.gateway.run(move || {
        unlimited();
        set("netfilter/nf_conntrack_tcp_timeout_close", "1");
        let mut wall = firewall(forward());
        let office = segment("office", &["192.0.2.0/25", "2001:db8:1::/120"], &[]);
        let denied = OTHER.iter().map(|other| ip(other).into()).collect();
        let layout = Layout { denied, ..layout(vec![office]) };
        wall.adopt(&layout, now()).unwrap();
        let ways = CLIENT.into_iter().zip(SERVER);
        let services = [Service::Tcp(443), Service::Udp(443)];
        let grants: Vec<_> =
            ways.flat_map(|(client, server)| services.map(|service| element(client, server, service))).collect();
        assert_eq!(open(&mut wall, &grants, MINUTE), Vec::<usize>::new());
        let witness = forward().witness(&sought).unwrap().unwrap();
        assert_eq!(witness.remarks(), [""; 0]);
        (wall, witness)
    })
}

fn is(sight: &Sight, from: IpAddr, to: &str, protocol: u8) -> Option<Seen> {
    match sight {
        Sight::Began(seen) | Sight::Ended(seen) => Some(*seen).filter(|seen| {
            (seen.ends.from, seen.ends.to, seen.ends.protocol, seen.ends.ports[1]) == (from, ip(to), protocol, 443)
        }),
        Sight::Refused(_) => None,
    }
}

#[test]
fn a_flow_is_seen_to_begin_and_to_end_with_what_it_carried() {
    let Some(net) = Net::new() else { return };
    let (wall, mut witness) = gateway(&net, ALL);
    for at in 0..2 {
        let (client, server) = (CLIENT[at], SERVER[at]);
        let before = outgate::time::Clock::system().now().wall;
        let mut stream = net.client.run(move || tcp(client, server, 443).unwrap());
        let port = stream.local_addr().unwrap().port();
        let begins =
            move |sight: &Sight| matches!(sight, Sight::Began(_)) && is(sight, ip(client), server, 6).is_some();
        witness = net.gateway.run(move || {
            let seen = until(&mut witness, begins);
            let began = seen.iter().find(|sight| begins(sight)).and_then(|sight| is(sight, ip(client), server, 6));
            let began = began.unwrap();
            assert!(began.admitted && began.ends.ports[0] == port && began.translated.is_none(), "{began:?}");
            let mut list = Vec::new();
            witness.list(&mut |seen| list.extend(seen)).unwrap();
            let listed = list.iter().find(|seen| seen.ends == began.ends).unwrap();
            assert!(listed.id == began.id && listed.began.is_some_and(|begin| begin >= before), "{listed:?}");
            witness
        });
        net.client.run(move || {
            (0..100).for_each(|_| talk(&mut stream).unwrap());
            // A reset: a connection that is closed in order is known for another two minutes.
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        });
        let ends = move |sight: &Sight| matches!(sight, Sight::Ended(_)) && is(sight, ip(client), server, 6).is_some();
        witness = net.gateway.run(move || {
            let seen = until(&mut witness, ends);
            let ended = seen.iter().find(|sight| ends(sight)).and_then(|sight| is(sight, ip(client), server, 6));
            let ended = ended.unwrap();
            let [there, back] = ended.counts.unwrap();
            assert!(there.packets > 100 && back.packets > 100 && there.bytes > 5000, "{ended:?}");
            let (begin, end) = (ended.began.unwrap(), ended.ended.unwrap());
            assert!(begin >= before && end > begin, "{ended:?}");
            witness
        });
    }
    drop((wall, witness));
}

#[test]
fn what_is_refused_is_told_with_its_ports() {
    let Some(net) = Net::new() else { return };
    let (wall, mut witness) = gateway(&net, ALL);
    for at in 0..2 {
        let (client, server, other) = (CLIENT[at], SERVER[at], OTHER[at]);
        assert_eq!(try_from(&net, client, server, "tcp/80"), Fate::Refused);
        assert_eq!(try_from(&net, client, other, "udp/443"), Fate::Refused);
        assert_eq!(try_from(&net, client, server, "icmp"), Fate::Refused);
        witness = net.gateway.run(move || {
            let icmp = if at == 0 { 1 } else { 58 };
            let of = |sight: &Sight| match sight {
                Sight::Refused(Refused { ends: Endpoints { from, to, protocol, ports }, at, denied }) => {
                    // Older kernels do not always say when.
                    assert!(*from == ip(client) && (at.is_some() || !since([6, 12])), "{sight:?}");
                    Some((*to, *protocol, ports[1], *denied))
                }
                _ => None,
            };
            let seen = until(&mut witness, |sight| of(sight).is_some_and(|(_, protocol, ..)| protocol == icmp));
            let told: HashSet<_> = seen.iter().filter_map(of).collect();
            let wanted = [(ip(server), 6, 80, false), (ip(other), 17, 443, true), (ip(server), icmp, 0, false)];
            assert_eq!(told, HashSet::from(wanted));
            witness
        });
    }
    drop((wall, witness));
}

#[test]
fn a_group_has_one_reader() {
    alone(|| {
        let mut wall = firewall(forward());
        wall.adopt(&layout(Vec::new()), now()).unwrap();
        let sought = Sought { flows: false, ..ALL };
        let first = forward().witness(&sought).unwrap();
        assert_eq!(forward().witness(&sought).err(), Some(FirewallError::Group(5)));
        let elsewhere = Settings { nflog: 6, ..forward() };
        drop((elsewhere.witness(&sought).unwrap(), first));
        drop(forward().witness(&sought).unwrap());
    });
}

#[test]
fn more_than_the_buffer_holds_is_told_to_be_lost() {
    let Some(net) = Net::new() else { return };
    let (wall, mut witness) = gateway(&net, Sought { refused: false, buffer: 32 << 10, ..ALL });
    let sockets = net.client.run(|| {
        let socket = || {
            let socket = UdpSocket::bind(source(CLIENT[0], 0)).unwrap();
            socket.connect((SERVER[0], 443)).unwrap();
            socket.send(b"x").unwrap();
            socket
        };
        (0..400).map(|_| socket()).collect::<Vec<_>>()
    });
    net.gateway.run(move || {
        let mut began = 0;
        let looked = witness.look(&mut |sight| began += usize::from(matches!(sight, Sight::Began(_)))).unwrap();
        assert!(looked.lost && (1..400).contains(&began), "{looked:?} {began}");
        // All of them are in the list, and from then on it is told again.
        let mut list = 0;
        witness.list(&mut |seen| list += usize::from(seen.is_some())).unwrap();
        assert_eq!(list, 400);
        assert!(!witness.look(&mut |_| ()).unwrap().lost);
        drop(wall);
    });
    drop(sockets);
}

#[test]
fn of_this_machine_its_own_flows_are_told() {
    let Some(net) = Net::new() else { return };
    net.gateway.run(|| {
        unlimited();
        let settings = Settings { own_uid: Some(65_533), ..Settings::new(Hook::Output) };
        let mut wall = firewall(settings.clone());
        wall.adopt(&layout(vec![segment("host", &["127.0.0.1/32"], &[])]), now()).unwrap();
        open(&mut wall, &[element("127.0.0.1", SERVER[0], Service::Tcp(443))], MINUTE);
        let mut witness = settings.witness(&ALL).unwrap().unwrap();
        let stream: TcpStream = connect("198.51.100.254", SERVER[0], 443).unwrap();
        let begins = |sight: &Sight| is(sight, ip("198.51.100.254"), SERVER[0], 6).is_some();
        until(&mut witness, begins);
        assert!(connect("198.51.100.254", SERVER[0], 80).is_err());
        until(&mut witness, |sight| matches!(sight, Sight::Refused(refused) if refused.ends.ports[1] == 80));
        drop((stream, wall));
    });
}
