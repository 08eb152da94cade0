//! Addresses, prefixes and services: what a flow goes from, to and by.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::str::FromStr;

use foldhash::fast::RandomState;
use ipnet::IpNet;
use rustix::net::sockopt::{Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover};

/// An address prefix of either family.
pub type Prefix = IpNet;

/// A table of prefixes of both families with longest-prefix look-up: one probe for each length that occurs, the longest
/// first. Few lengths occur, and a probe costs less than a step down a tree.
#[derive(Clone, Debug)]
pub struct PrefixMap<T> {
    four: Lengths<u32, T>,
    six: Lengths<u128, T>,
}

/// One family's prefixes by length and leading bits.
#[derive(Clone, Debug)]
struct Lengths<B, T> {
    /// Those that occur, the longest first.
    lengths: Vec<u8>,
    entries: HashMap<(u8, B), T, RandomState>,
}

impl<B, T> Default for Lengths<B, T> {
    fn default() -> Self {
        Self { lengths: Vec::new(), entries: HashMap::default() }
    }
}

impl<B: Hash + Eq, T> Lengths<B, T> {
    fn insert(&mut self, length: u8, bits: B, value: T) -> Option<T> {
        if let Err(place) = self.lengths.binary_search_by(|known| length.cmp(known)) {
            self.lengths.insert(place, length);
        }
        self.entries.insert((length, bits), value)
    }

    /// `leading` gives as many leading bits of the address as it is told.
    fn longest(&self, leading: impl Fn(u8) -> B) -> Option<&T> {
        self.lengths.iter().find_map(|length| self.entries.get(&(*length, leading(*length))))
    }
}

impl<T> Default for PrefixMap<T> {
    fn default() -> Self {
        Self { four: Lengths::default(), six: Lengths::default() }
    }
}

impl<T> PrefixMap<T> {
    /// Adds a prefix (host bits are dropped); the value that was there before, if any.
    pub fn insert(&mut self, prefix: Prefix, value: T) -> Option<T> {
        match prefix.trunc() {
            IpNet::V4(prefix) => self.four.insert(prefix.prefix_len(), prefix.network().to_bits(), value),
            IpNet::V6(prefix) => self.six.insert(prefix.prefix_len(), prefix.network().to_bits(), value),
        }
    }

    /// Every prefix with its value, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (Prefix, &T)> {
        let four = self
            .four
            .entries
            .iter()
            .map(|((length, bits), value)| (IpAddr::V4(Ipv4Addr::from_bits(*bits)), *length, value));
        let six = self
            .six
            .entries
            .iter()
            .map(|((length, bits), value)| (IpAddr::V6(Ipv6Addr::from_bits(*bits)), *length, value));
        four.chain(six).filter_map(|(address, length, value)| Some((Prefix::new(address, length).ok()?, value)))
    }

    /// The value of the longest prefix that holds `address`.
    #[must_use]
    pub fn longest(&self, address: IpAddr) -> Option<&T> {
        match address {
            IpAddr::V4(address) => {
                let bits = address.to_bits();
                self.four.longest(|length| bits & !u32::MAX.checked_shr(length.into()).unwrap_or(0))
            }
            IpAddr::V6(address) => {
                let bits = address.to_bits();
                self.six.longest(|length| bits & !u128::MAX.checked_shr(length.into()).unwrap_or(0))
            }
        }
    }
}

impl<T> PrefixMap<T> {
    /// Every prefix, in no order.
    pub fn prefixes(&self) -> impl Iterator<Item = Prefix> {
        let four = self.four.entries.keys().map(|(length, bits)| (IpAddr::from(Ipv4Addr::from_bits(*bits)), *length));
        let six = self.six.entries.keys().map(|(length, bits)| (IpAddr::from(Ipv6Addr::from_bits(*bits)), *length));
        four.chain(six).filter_map(|(address, length)| Prefix::new(address, length).ok())
    }

    /// The value of the longest prefix that holds all of `prefix`.
    #[must_use]
    pub fn covering(&self, prefix: Prefix) -> Option<&T> {
        std::iter::successors(Some(prefix.trunc()), IpNet::supernet).find_map(|prefix| match prefix {
            IpNet::V4(prefix) => self.four.entries.get(&(prefix.prefix_len(), prefix.network().to_bits())),
            IpNet::V6(prefix) => self.six.entries.get(&(prefix.prefix_len(), prefix.network().to_bits())),
        })
    }
}

/// A prefix, or an address as the prefix of it alone; `None` where the text is neither.
#[must_use]
pub fn parse_prefix(text: &str) -> Option<Prefix> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(Prefix::from))
}

/// The canonical address of a peer: an IPv4 address mapped into IPv6 (`::ffff:0:0/96`, as dual-stack sockets
/// show it) is the IPv4 address.
#[must_use]
pub const fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// Has a UDP socket of this family send whatever a forged ICMP error says of the path. RFC 9715 §3.1 has such errors
/// ignored: believed, one would have our datagrams sent in fragments, the later of which carry no port and no id.
///
/// # Errors
/// The kernel does not know the option, which is older than Linux 4.
pub fn ignore_path_mtu(socket: impl AsFd, is_ipv6: bool) -> std::io::Result<()> {
    let set = match is_ipv6 {
        true => set_ipv6_mtu_discover(socket, Ipv6PathMtuDiscovery::OMIT),
        false => set_ip_mtu_discover(socket, Ipv4PathMtuDiscovery::OMIT),
    };
    set.map_err(Into::into)
}

/// The addresses of this machine's interfaces, in canonical form; empty where they cannot be read.
#[must_use]
pub fn local_addresses() -> HashSet<IpAddr> {
    let interfaces = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let addresses = interfaces.filter_map(|interface| {
        let address = interface.address?;
        let four = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        four.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    });
    addresses.map(canonical).collect()
}

/// What one host is counted by where it must not take another's share: an IPv4 address, or the /64 of an IPv6 address,
/// which one host may fill (RFC 8064: interface identifiers are the host's own choice).
#[must_use]
pub const fn host(address: IpAddr) -> IpAddr {
    match canonical(address) {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        four @ IpAddr::V4(_) => four,
    }
}

/// What one grant opens: one port of one protocol, ICMP, or every protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Service {
    /// One TCP port.
    Tcp(u16),
    /// One UDP port.
    Udp(u16),
    /// ICMP, or ICMPv6 where the address is of that family.
    Icmp,
    /// Every protocol and port.
    Any,
}

/// A range of services as a rule writes it: `tcp/443`, `udp/5000-5010`, `icmp`, `any`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Services {
    /// TCP ports, first and last included.
    Tcp(u16, u16),
    /// UDP ports, first and last included.
    Udp(u16, u16),
    /// ICMP of the address's family.
    Icmp,
    /// Every protocol and port.
    Any,
}

impl Services {
    /// How many [`Service`]s this stands for.
    #[must_use]
    pub fn count(self) -> usize {
        match self {
            Self::Tcp(first, last) | Self::Udp(first, last) => usize::from(last.saturating_sub(first)) + 1,
            Self::Icmp | Self::Any => 1,
        }
    }

    /// Each single service in the range.
    pub fn expand(self) -> impl Iterator<Item = Service> {
        let (first, last) = match self {
            Self::Tcp(first, last) | Self::Udp(first, last) => (first, last),
            Self::Icmp | Self::Any => (0, 0),
        };
        (first..=last).map(move |port| match self {
            Self::Tcp(..) => Service::Tcp(port),
            Self::Udp(..) => Service::Udp(port),
            Self::Icmp => Service::Icmp,
            Self::Any => Service::Any,
        })
    }

    /// True where `service` is one of this range.
    #[must_use]
    pub fn contains(self, service: Service) -> bool {
        match (self, service) {
            (Self::Tcp(first, last), Service::Tcp(port)) | (Self::Udp(first, last), Service::Udp(port)) => {
                (first..=last).contains(&port)
            }
            (Self::Icmp, Service::Icmp) | (Self::Any, _) => true,
            _ => false,
        }
    }
}

impl Services {
    /// Single services as the fewest ranges, in order.
    #[must_use]
    pub fn merge(services: &[Service]) -> Vec<Self> {
        let mut sorted = services.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        let mut merged: Vec<Self> = Vec::new();
        for service in sorted {
            match (merged.last_mut(), service) {
                (Some(Self::Tcp(_, last)), Service::Tcp(port)) | (Some(Self::Udp(_, last)), Service::Udp(port))
                    if last.checked_add(1) == Some(port) =>
                {
                    *last = port;
                }
                (_, service) => merged.push(service.into()),
            }
        }
        merged
    }
}

impl From<Service> for Services {
    fn from(service: Service) -> Self {
        match service {
            Service::Tcp(port) => Self::Tcp(port, port),
            Service::Udp(port) => Self::Udp(port, port),
            Service::Icmp => Self::Icmp,
            Service::Any => Self::Any,
        }
    }
}

impl FromStr for Services {
    /// What is wrong, as the end of a sentence.
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const SHAPE: &str = "write \"tcp/443\", \"udp/5000-5010\", \"icmp\" or \"any\"";
        let ports = |text: &str| -> Result<(u16, u16), Self::Err> {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            match (first.parse::<u16>(), last.parse::<u16>()) {
                (Ok(first), Ok(last)) if first > 0 && first <= last => Ok((first, last)),
                _ => Err(SHAPE),
            }
        };
        match text.split_once('/') {
            Some(("tcp", range)) => ports(range).map(|(first, last)| Self::Tcp(first, last)),
            Some(("udp", range)) => ports(range).map(|(first, last)| Self::Udp(first, last)),
            None if text == "icmp" => Ok(Self::Icmp),
            None if text == "any" => Ok(Self::Any),
            _ => Err(SHAPE),
        }
    }
}

impl fmt::Display for Services {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (protocol, first, last) = match self {
            Self::Tcp(first, last) => ("tcp", first, last),
            Self::Udp(first, last) => ("udp", first, last),
            Self::Icmp => return f.write_str("icmp"),
            Self::Any => return f.write_str("any"),
        };
        if first == last { write!(f, "{protocol}/{first}") } else { write!(f, "{protocol}/{first}-{last}") }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(port) => write!(f, "tcp/{port}"),
            Self::Udp(port) => write!(f, "udp/{port}"),
            Self::Icmp => f.write_str("icmp"),
            Self::Any => f.write_str("any"),
        }
    }
}

/// A segment's number, the same on every node and across restarts: a hash of its name. Two names of one
/// policy that share a number are refused when the policy is built.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentId(pub u32);

impl SegmentId {
    /// FNV-1a, 32 bits, of the segment's name; 0 is kept for "no segment".
    #[must_use]
    pub fn of(name: &str) -> Self {
        let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        Self(hash.max(1))
    }
}

impl fmt::Debug for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}", self.0)
    }
}

/// Where a granted flow comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// One client address, of the same family as the destination.
    Client(IpAddr),
    /// Every source of a segment.
    Segment(SegmentId),
}

/// What the firewall holds one expiry for: from whom, to where, by what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Element {
    /// Who may connect.
    pub from: Scope,
    /// To which address.
    pub to: IpAddr,
    /// By which service.
    pub service: Service,
}

impl fmt::Display for Element {
    /// `192.0.2.1>198.51.100.7:tcp/443`; a segment is `#` and its number in hex.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.from {
            Scope::Client(client) => write!(f, "{client}")?,
            Scope::Segment(segment) => write!(f, "#{:08x}", segment.0)?,
        }
        write!(f, ">{}:{}", self.to, self.service)
    }
}

impl FromStr for Element {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (from, rest) = text.split_once('>').ok_or(())?;
        let (to, service) = rest.rsplit_once(':').ok_or(())?;
        let from = match from.strip_prefix('#') {
            Some(number) => Scope::Segment(SegmentId(u32::from_str_radix(number, 16).map_err(drop)?)),
            None => Scope::Client(from.parse().map_err(drop)?),
        };
        let services: Services = service.parse().map_err(drop)?;
        let service = services.expand().next().filter(|_| services.count() == 1).ok_or(())?;
        Ok(Self { from, to: to.parse().map_err(drop)?, service })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn longest_prefix_wins() {
        let mut map = PrefixMap::default();
        map.insert("192.0.2.0/24".parse().unwrap(), 24);
        map.insert("192.0.2.128/25".parse().unwrap(), 25);
        map.insert("2001:db8::/32".parse().unwrap(), 32);
        for (address, value) in
            [("192.0.2.1", Some(24)), ("192.0.2.129", Some(25)), ("198.51.100.1", None), ("2001:db8::1", Some(32))]
        {
            assert_eq!(map.longest(address.parse().unwrap()).copied(), value, "{address}");
        }
    }

    proptest! {
        #[test]
        fn the_longest_of_many_prefixes_is_found(
            prefixes in prop::collection::vec((any::<bool>(), 0u32..4, 0u32..4, 0u8..=128), 0..12),
            (six, high, low) in (any::<bool>(), 0u32..4, 0u32..4),
        ) {
            // Few bits at either end differ, so that prefixes nest.
            let address = |six: bool, high: u32, low: u32| match six {
                false => IpAddr::V4((high << 30 | low).into()),
                true => IpAddr::V6((u128::from(high) << 126 | u128::from(low)).into()),
            };
            let mut map = PrefixMap::default();
            let mut all = Vec::new();
            for (six, high, low, length) in prefixes {
                let length = if six { length } else { length.min(32) };
                let prefix = IpNet::new(address(six, high, low), length).unwrap().trunc();
                prop_assert_eq!(map.insert(prefix, prefix), all.contains(&prefix).then_some(prefix));
                all.push(prefix);
            }
            let asked = address(six, high, low);
            let longest = all.iter().filter(|prefix| prefix.contains(&asked)).max_by_key(|prefix| prefix.prefix_len());
            prop_assert_eq!(map.longest(asked), longest);
        }
    }

    #[test]
    fn services_round_trip() {
        for text in ["tcp/443", "udp/5000-5010", "icmp", "any"] {
            assert_eq!(text.parse::<Services>().unwrap().to_string(), text);
        }
        for text in ["tcp/0", "tcp/9-8", "sctp/1", "443", "tcp/", "tcp/65536"] {
            text.parse::<Services>().unwrap_err();
        }
        assert_eq!(Services::Tcp(8000, 8100).expand().count(), 101);
    }
    #[test]
    fn elements_round_trip() {
        for text in ["192.0.2.1>198.51.100.7:tcp/443", "#0000002a>2001:db8::7:icmp", "2001:db8::1>2001:db8::7:any"] {
            assert_eq!(text.parse::<Element>().unwrap().to_string(), text);
        }
        "192.0.2.1>198.51.100.7:tcp/1-2".parse::<Element>().unwrap_err();
    }

    #[test]
    fn services_merge_into_ranges() {
        let services = [Service::Tcp(443), Service::Udp(443), Service::Tcp(81), Service::Tcp(80), Service::Icmp];
        let merged: Vec<String> = Services::merge(&services).iter().map(ToString::to_string).collect();
        assert_eq!(merged, ["tcp/80-81", "tcp/443", "udp/443", "icmp"]);
    }
}
