//! The ways around a resolver that every closed network must refuse: tried unless they are switched off or replaced.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// A transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Protocol {
    Tcp,
    Udp,
}

/// One service of one address that must not be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Way {
    pub(super) protocol: Protocol,
    pub(super) to: SocketAddr,
}

impl fmt::Display for Way {
    /// As it is written: `tcp/203.0.113.5:443`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        write!(f, "{protocol}/{}", self.to)
    }
}

impl FromStr for Way {
    /// What to write instead.
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const SHAPE: &str =
            "write ADDRESS:PORT, with udp/ before it for UDP, e.g. 203.0.113.5:443 or udp/[2001:db8::5]:53";
        let (protocol, to) = match text.split_once('/') {
            Some(("udp", to)) => (Protocol::Udp, to),
            Some(("tcp", to)) => (Protocol::Tcp, to),
            Some(_) => return Err(SHAPE),
            None => (Protocol::Tcp, text),
        };
        let to: SocketAddr = to.parse().map_err(|_| SHAPE)?;
        if to.port() == 0 { Err(SHAPE) } else { Ok(Self { protocol, to }) }
    }
}

/// Ways of one kind.
#[derive(Debug)]
pub(super) struct Group {
    /// Its word: of `--without`, of the file, of the output.
    pub(super) word: &'static str,
    /// The port, of both transports.
    port: u16,
    /// Those that are tried unless the file names others.
    addresses: &'static [&'static str],
    /// What to do about one that is open.
    pub(super) remedy: &'static str,
}

/// Where resolvers are known to answer over UDP, TCP, TLS, HTTPS and QUIC (their operators' own pages).
const PUBLIC: &[&str] =
    &["1.1.1.1", "8.8.8.8", "9.9.9.9", "2606:4700:4700::1111", "2001:4860:4860::8888", "2620:fe::fe"];

/// All of them.
pub(super) const GROUPS: [Group; 4] = [
    Group {
        word: "dns",
        port: 53,
        // The last two are a.root-servers.net: no list of public resolvers has them, a network that is closed refuses them.
        addresses: &[
            "1.1.1.1",
            "8.8.8.8",
            "9.9.9.9",
            "2606:4700:4700::1111",
            "2001:4860:4860::8888",
            "2620:fe::fe",
            "198.41.0.4",
            "2001:503:ba3e::2:30",
        ],
        remedy: "let nobody but the resolver reach port 53",
    },
    Group {
        word: "dot",
        port: 853,
        addresses: PUBLIC,
        remedy: "let nobody reach port 853: DNS over TLS and QUIC go round the resolver",
    },
    Group {
        word: "doh",
        port: 443,
        addresses: PUBLIC,
        remedy: "open no address of a public resolver: DNS over HTTPS goes round the resolver",
    },
    Group {
        word: "cloud",
        port: 53,
        // Amazon, the same over IPv6, Azure, Google.
        addresses: &["169.254.169.253", "fd00:ec2::253", "168.63.129.16", "169.254.169.254"],
        remedy: "the cloud's own resolver answers past the gateway: switch it off for this network, or refuse it on the host",
    },
];

impl Group {
    /// Its ways, to its own addresses or to those of the file.
    pub(super) fn ways(&self, others: Option<&[IpAddr]>) -> Vec<Way> {
        let own = self.addresses.iter().filter_map(|address| address.parse().ok());
        let addresses: Vec<IpAddr> = others.map_or_else(|| own.collect(), <[IpAddr]>::to_vec);
        let ways = addresses.into_iter().flat_map(|address| {
            let to = SocketAddr::new(address, self.port);
            [Way { protocol: Protocol::Udp, to }, Way { protocol: Protocol::Tcp, to }]
        });
        ways.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_can_be_read_and_stands_in_the_manual() {
        let page = include_str!("../../../../docs/probe.md");
        let written: Vec<&str> = page.lines().filter(|line| line.contains("UDP and TCP port")).collect();
        let expected = GROUPS.iter().map(|group| {
            assert_eq!(group.ways(None).len(), 2 * group.addresses.len(), "{}", group.word);
            let addresses: Vec<_> = group.addresses.iter().map(|address| format!("`{address}`")).collect();
            format!("| `{}` | UDP and TCP port {} | {} |", group.word, group.port, addresses.join(", "))
        });
        let expected: Vec<String> = expected.collect();
        assert_eq!(written, expected, "the rows must be:\n{}", expected.join("\n"));
    }

    #[test]
    fn ways_are_read_as_they_are_written() {
        for (text, shown) in [
            ("203.0.113.5:443", "tcp/203.0.113.5:443"),
            ("tcp/203.0.113.5:443", "tcp/203.0.113.5:443"),
            ("udp/[2001:db8::5]:53", "udp/[2001:db8::5]:53"),
        ] {
            assert_eq!(text.parse::<Way>().unwrap().to_string(), shown);
        }
        for text in
            ["203.0.113.5", "www.example.org:443", "sctp/203.0.113.5:443", "203.0.113.5:0", "2001:db8::5:53", ""]
        {
            assert!(text.parse::<Way>().is_err(), "{text}");
        }
    }
}
