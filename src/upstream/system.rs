//! The system's resolvers, less ourselves: what is asked where no upstream is configured.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use resolv_conf::{Config, ScopedIp};

use crate::document::Mistake;
use crate::net::local_addresses;

/// resolv.conf(5) knows no other port.
const PORT: u16 = 53;

/// The `nameserver` lines of a `resolv.conf` in their order, without those that are `ourselves`: asking them would
/// be a loop. A listener on `0.0.0.0` or `[::]` is every address of this machine. Lines that cannot be read
/// are skipped, as the C library does.
///
/// # Errors
/// No server is left; the mistake says which were ours.
pub fn system_servers(resolv_conf: &str, ourselves: &[SocketAddr]) -> Result<Vec<SocketAddr>, Mistake> {
    let (config, _) = Config::parse_with_errors(resolv_conf.as_bytes());
    let listed: Vec<SocketAddr> = config.nameservers.iter().filter_map(address).collect();
    let local = local_addresses();
    let (ours, mut servers): (Vec<SocketAddr>, Vec<SocketAddr>) =
        listed.into_iter().partition(|server| ourselves.iter().any(|listener| reaches(*listener, *server, &local)));
    let mut seen = HashSet::new();
    servers.retain(|server| seen.insert(*server));
    if !servers.is_empty() {
        return Ok(servers);
    }
    let fact = match ours.first() {
        Some(first) => format!("the only system resolver, {}, is this server itself", first.ip()),
        None => "there is no upstream: none is configured, and the system names no resolver".to_owned(),
    };
    Err(Mistake::general(
        fact,
        "add [[upstream]] with servers = [\"udp://192.0.2.53:53\"], the address of your resolver",
    ))
}

/// A server's address; RFC 4007 §11 zone ids by number only. The unspecified address means this machine, as the C
/// library reads it.
fn address(ip: &ScopedIp) -> Option<SocketAddr> {
    match ip {
        ScopedIp::V4(ip) if ip.is_unspecified() => Some((Ipv4Addr::LOCALHOST, PORT).into()),
        ScopedIp::V6(ip, _) if ip.is_unspecified() => Some((Ipv6Addr::LOCALHOST, PORT).into()),
        ScopedIp::V4(ip) => Some((*ip, PORT).into()),
        ScopedIp::V6(ip, None) => Some((*ip, PORT).into()),
        ScopedIp::V6(ip, Some(zone)) => {
            let zone = zone.parse().ok().or_else(|| nix::net::if_::if_nametoindex(zone.as_str()).ok())?;
            Some(std::net::SocketAddrV6::new(*ip, PORT, 0, zone).into())
        }
    }
}

/// True where a packet to `server` would come to the socket bound to `listener`. `[::]` takes IPv4 as well
/// (unless V6ONLY, where leaving a server out costs less than a loop).
fn reaches(listener: SocketAddr, server: SocketAddr, local: &HashSet<IpAddr>) -> bool {
    if listener.port() != server.port() {
        return false;
    }
    let (at, to) = (listener.ip().to_canonical(), server.ip().to_canonical());
    let takes_family = at.is_ipv6() || to.is_ipv4();
    at == to || (at.is_unspecified() && takes_family && (to.is_loopback() || local.contains(&to)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(text: &str, ourselves: &[&str]) -> Result<Vec<String>, String> {
        let ourselves: Vec<SocketAddr> = ourselves.iter().map(|text| text.parse().unwrap()).collect();
        system_servers(text, &ourselves)
            .map(|servers| servers.iter().map(ToString::to_string).collect())
            .map_err(|mistake| mistake.to_string())
    }

    #[test]
    fn leaves_out_ourselves_however_we_listen() {
        let text = "# comment\nsearch example.org\nnameserver 127.0.0.1\nnameserver 192.0.2.53\nnameserver 192.0.2.53\n\
                    nameserver 2001:db8::53\noptions edns0\n";
        let outside = ["192.0.2.53:53", "[2001:db8::53]:53"].map(str::to_owned).to_vec();
        let all = [vec!["127.0.0.1:53".to_owned()], outside.clone()].concat();
        for (ourselves, expected) in [
            (&["127.0.0.1:53"][..], &outside),
            (&["0.0.0.0:53"], &outside),
            (&["[::]:53"], &outside),
            (&["127.0.0.1:5300"], &all),
            (&["127.0.0.2:53"], &all),
            (&[], &all),
        ] {
            assert_eq!(servers(text, ourselves).as_ref(), Ok(expected), "{ourselves:?}");
        }
    }

    #[test]
    fn says_that_none_is_left() {
        let error = servers("nameserver 127.0.0.53\n", &["127.0.0.53:53"]).unwrap_err();
        assert!(error.starts_with("the only system resolver, 127.0.0.53, is this server itself\n  add"), "{error}");
        let error = servers("", &[]).unwrap_err();
        assert!(error.starts_with("there is no upstream: none is configured"), "{error}");
    }

    #[test]
    fn a_wildcard_listener_is_every_address_of_this_machine() {
        let local = HashSet::from(["198.51.100.7".parse().unwrap()]);
        let ours = |listener: &str, server: &str| reaches(listener.parse().unwrap(), server.parse().unwrap(), &local);
        assert!(ours("0.0.0.0:53", "198.51.100.7:53"));
        assert!(ours("[::]:53", "198.51.100.7:53"));
        assert!(ours("[::ffff:198.51.100.7]:53", "198.51.100.7:53"));
        assert!(!ours("0.0.0.0:53", "198.51.100.8:53"));
        assert!(!ours("0.0.0.0:5353", "198.51.100.7:53"));
        assert!(!ours("0.0.0.0:53", "[::1]:53"));
    }

    #[test]
    fn unreadable_lines_do_not_hide_the_rest() {
        assert_eq!(servers("nameserver nonsense\nnameserver 192.0.2.1\n", &[]), Ok(vec!["192.0.2.1:53".to_owned()]));
    }
}
