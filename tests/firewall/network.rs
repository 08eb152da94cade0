//! A client, a gateway and a server, each in a namespace of its own.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use crate::kernel::*;

/// A client, a gateway that forwards and is governed, a server; each a namespace.
pub(crate) struct Net {
    pub(crate) client: Host,
    pub(crate) gateway: Host,
    pub(crate) server: Host,
}

pub(crate) const CLIENT: [&str; 2] = ["192.0.2.1", "2001:db8:1::1"];
pub(crate) const STRANGER: [&str; 2] = ["192.0.2.200", "2001:db8:1::200"];
pub(crate) const SERVER: [&str; 2] = ["198.51.100.1", "2001:db8:2::1"];
pub(crate) const OTHER: [&str; 2] = ["198.51.100.2", "2001:db8:2::2"];

pub(crate) fn set(setting: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/{setting}"), value).unwrap();
}

pub(crate) fn address(interface: &str, addresses: &[&str]) {
    for address in addresses {
        let address = format!("{address}/{}", if address.contains(':') { 64 } else { 24 });
        let mut arguments = vec!["addr", "add", &address, "dev", interface];
        if address.contains(':') {
            arguments.push("nodad");
        }
        run("ip", &arguments);
    }
    run("ip", &["link", "set", interface, "up"]);
}

pub(crate) fn routes(gateway: [&'static str; 2]) {
    for gateway in gateway {
        let family = if gateway.contains(':') { "-6" } else { "-4" };
        run("ip", &[family, "route", "add", "default", "via", gateway]);
    }
}

impl Net {
    pub(crate) fn new() -> Option<Self> {
        let (client, gateway, server) = (host()?, host()?, host()?);
        for host in [&client, &gateway, &server] {
            // Neighbours cannot be asked for while a link's own address is still being tried for uniqueness.
            host.run(|| set("ipv6/conf/default/dad_transmits", "0"));
        }
        let (left, right) = (client.task.to_string(), server.task.to_string());
        gateway.run(move || {
            for (interface, task) in [("lan", left), ("wan", right)] {
                run("ip", &["link", "add", interface, "type", "veth", "peer", "name", "eth0", "netns", &task]);
            }
            set("ipv4/ip_forward", "1");
            set("ipv6/conf/all/forwarding", "1");
            address("lan", &["192.0.2.254", "2001:db8:1::fe"]);
            address("wan", &["198.51.100.254", "2001:db8:2::fe"]);
        });
        client.run(|| {
            address("eth0", &CLIENT);
            address("eth0", &STRANGER);
            routes(["192.0.2.254", "2001:db8:1::fe"]);
        });
        server.run(|| {
            address("eth0", &SERVER);
            address("eth0", &OTHER);
            routes(["198.51.100.254", "2001:db8:2::fe"]);
            for port in [443, 80, 22, 53, 853] {
                serve(TcpListener::bind(("::", port)).unwrap());
                for address in SERVER.into_iter().chain(OTHER) {
                    echo(UdpSocket::bind((address, port)).unwrap());
                }
            }
        });
        Some(Self { client, gateway, server })
    }
}

/// Answers every byte of every connection with itself; ends with the process.
pub(crate) fn serve(listener: TcpListener) {
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || drop(std::io::copy(&mut &stream, &mut &stream)));
        }
    });
}

pub(crate) fn echo(socket: UdpSocket) {
    thread::spawn(move || {
        let mut byte = [0];
        while let Ok((_, from)) = socket.recv_from(&mut byte) {
            drop(socket.send_to(&byte, from));
        }
    });
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Arrives,
    /// Refused at once.
    Refused,
}

/// A silent drop is no refusal; nobody here is slower than this.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3);

pub(crate) fn source(from: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip(from), port)
}

/// Connects from one address to another, and says a byte and hears it.
pub(crate) fn tcp(from: &str, to: &str, port: u16) -> Result<TcpStream, ErrorKind> {
    let mut stream = connect(from, to, port)?;
    talk(&mut stream).map(|()| stream)
}

/// Connects from one address to another.
pub(crate) fn connect(from: &str, to: &str, port: u16) -> Result<TcpStream, ErrorKind> {
    let to = SocketAddr::new(ip(to), port);
    let socket = socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, None).unwrap();
    socket.bind(&source(from, 0).into()).unwrap();
    socket.connect_timeout(&to.into(), PATIENCE).map_err(|error| error.kind())?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    Ok(stream)
}

pub(crate) fn talk(stream: &mut TcpStream) -> Result<(), ErrorKind> {
    let mut byte = [0];
    stream.write_all(b"x").and_then(|()| stream.read_exact(&mut byte)).map_err(|error| error.kind())
}

pub(crate) fn udp(from: &str, to: &str, port: u16) -> Fate {
    let socket = UdpSocket::bind(source(from, 0)).unwrap();
    socket.connect(SocketAddr::new(ip(to), port)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    // What the sender's own machine refuses, `send` says already.
    let said = socket.send(b"x").and_then(|_| socket.recv(&mut [0; 8]));
    fate(said.map(|_| ()), &format!("udp {from} {to} {port}"))
}

pub(crate) fn fate(said: std::io::Result<()>, what: &str) -> Fate {
    match said {
        Ok(()) => Fate::Arrives,
        Err(error) => {
            assert_ne!(error.kind(), ErrorKind::WouldBlock, "{what}: dropped in silence");
            Fate::Refused
        }
    }
}

/// An echo request by a raw socket.
pub(crate) fn ping(from: &str, to: &str) -> Fate {
    use socket2::{Domain, Protocol, Socket, Type};
    let four = ip(to).is_ipv4();
    let (domain, protocol) = if four { (Domain::IPV4, Protocol::ICMPV4) } else { (Domain::IPV6, Protocol::ICMPV6) };
    let socket = Socket::new(domain, Type::RAW, Some(protocol)).unwrap();
    socket.bind(&source(from, 0).into()).unwrap();
    socket.connect(&SocketAddr::new(ip(to), 0).into()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    // Type, code, checksum (of IPv4; the kernel writes the other), identifier 0, sequence 1.
    let request = if four { [8, 0, 0xf7, 0xfe, 0, 0, 0, 1] } else { [128, 0, 0, 0, 0, 0, 0, 1] };
    let mut reply = [0; 128];
    let said = socket.send(&request).and_then(|_| (&socket).read(&mut reply));
    if said.is_ok() {
        assert_eq!(if four { reply[20] } else { reply[0] }, if four { 0 } else { 129 }, "not an echo reply");
    }
    fate(said.map(|_| ()), &format!("ping {from} {to}"))
}

/// Tries `service` from the client.
pub(crate) fn try_from(net: &Net, from: &'static str, to: &'static str, service: &'static str) -> Fate {
    net.client.run(move || match service.split_once('/') {
        Some(("tcp", port)) => match tcp(from, to, port.parse().unwrap()) {
            Ok(_) => Fate::Arrives,
            Err(kind) => {
                assert_eq!(kind, ErrorKind::ConnectionRefused, "{from} {to} {service}");
                Fate::Refused
            }
        },
        Some((_, port)) => udp(from, to, port.parse().unwrap()),
        None => ping(from, to),
    })
}

/// Errors of ICMPv6 are limited to one a second and destination; the tests ask faster.
pub(crate) fn unlimited() {
    set("ipv4/icmp_ratelimit", "0");
    set("ipv6/icmp/ratelimit", "0");
}
