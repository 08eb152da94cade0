//! Which live connections are to end.

use std::collections::HashMap;
use std::net::IpAddr;

use foldhash::quality::RandomState;

use crate::net::{Prefix, Service};

/// Connections that are to end: those with all that is said here. Directions are those of the packet that began one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// From where; `None`: from everywhere.
    pub from: Option<Prefix>,
    /// To where, as the client sees it or as it was translated.
    pub to: Option<Prefix>,
    /// By what; `None` and [`Service::Any`]: by anything.
    pub service: Option<Service>,
}

/// What ends connections, and how many did. It may take long, and is called in a thread of its own.
pub type Cutter = Box<dyn FnOnce() -> Result<u64, super::FirewallError> + Send>;

/// A live connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Connection {
    pub(super) from: IpAddr,
    /// As the client sees it, and as it was translated.
    pub(super) to: [IpAddr; 2],
    /// `None`: a protocol that no grant names.
    pub(super) service: Option<Service>,
}

/// Many [`Cut`]s, of which a connection meets few.
#[derive(Debug, Default)]
pub(super) struct Cuts {
    /// Those to one address.
    to: HashMap<IpAddr, Vec<Cut>, RandomState>,
    others: Vec<Cut>,
}

impl Cuts {
    pub(super) fn new(all: impl IntoIterator<Item = Cut>) -> Self {
        let mut cuts = Self::default();
        for cut in all {
            match cut.to.filter(|to| to.prefix_len() == to.max_prefix_len()) {
                Some(to) => cuts.to.entry(to.addr()).or_default().push(cut),
                None => cuts.others.push(cut),
            }
        }
        cuts
    }

    /// Whether one of them takes this connection.
    pub(super) fn take(&self, connection: &Connection) -> bool {
        let near = connection.to.iter().filter_map(|to| self.to.get(to)).flatten();
        near.chain(&self.others).any(|cut| cut.takes(connection))
    }
}

impl Cut {
    fn takes(&self, connection: &Connection) -> bool {
        self.from.is_none_or(|from| from.contains(&connection.from))
            && self.to.is_none_or(|prefix| connection.to.iter().any(|to| prefix.contains(to)))
            && self.service.is_none_or(|service| service == Service::Any || Some(service) == connection.service)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_taken_where_all_that_is_said_holds() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let cut = |from: &str, to: &str, service: &str| Cut {
            from: from.parse().ok(),
            to: to.parse().ok(),
            service: match service {
                "tcp/443" => Some(Service::Tcp(443)),
                "udp/443" => Some(Service::Udp(443)),
                "any" => Some(Service::Any),
                _ => None,
            },
        };
        let connection = Connection {
            from: ip("192.0.2.1"),
            to: [ip("198.51.100.7"), ip("203.0.113.7")],
            service: Some(Service::Tcp(443)),
        };
        for (from, to, service, takes) in [
            ("", "", "", true),
            ("192.0.2.1/32", "", "", true),
            ("192.0.2.2/32", "", "", false),
            ("192.0.2.0/24", "198.51.100.7/32", "tcp/443", true),
            ("192.0.2.0/24", "203.0.113.7/32", "any", true),
            ("192.0.2.0/24", "203.0.113.0/24", "", true),
            ("192.0.2.0/24", "198.51.100.8/32", "", false),
            ("", "198.51.100.7/32", "udp/443", false),
            ("", "198.51.100.7/32", "tcp/443", true),
            ("2001:db8::/32", "", "", false),
        ] {
            assert_eq!(Cuts::new([cut(from, to, service)]).take(&connection), takes, "{from} {to} {service}");
        }
        let other = Connection { service: None, ..connection };
        assert!(!Cuts::new([cut("", "", "tcp/443")]).take(&other) && Cuts::new([cut("", "", "any")]).take(&other));
        let many = (0..=255).map(|last| cut("", &format!("198.51.100.{last}/32"), "udp/443"));
        assert!(!Cuts::new(many.clone()).take(&connection));
        assert!(Cuts::new(many.chain([cut("", "203.0.113.7/32", "")])).take(&connection));
    }
}
