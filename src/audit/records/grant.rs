//! A grant's record as it stands in its line.

use std::net::IpAddr;

use serde::Deserialize;

use super::query::Text;
use crate::audit::read::micros;
use crate::net::{Service, Services};
use crate::time::Wall;

/// One change of one grant; the fields are those of docs/log.md, and what is absent there is `None`.
#[derive(Clone, Debug, Deserialize)]
pub struct Grant<'a> {
    /// boot - shard - sequence.
    #[serde(borrow)]
    pub id: Text<'a>,
    /// When, RFC 3339 in UTC.
    #[serde(borrow)]
    pub ts: Text<'a>,
    /// A word of [`crate::audit::GrantOp`], or one of a later version.
    #[serde(borrow)]
    pub op: Text<'a>,
    /// The client that asked.
    pub client: Option<IpAddr>,
    /// `client` or `segment`.
    #[serde(borrow)]
    pub scope: Text<'a>,
    /// The segment.
    #[serde(borrow)]
    pub segment: Text<'a>,
    /// The rule's id.
    #[serde(borrow)]
    pub rule: Text<'a>,
    /// The name asked for.
    #[serde(borrow)]
    pub qname: Text<'a>,
    /// What was opened.
    pub address: IpAddr,
    #[serde(borrow)]
    ports: Vec<Text<'a>>,
    #[serde(borrow)]
    until: Text<'a>,
    /// Id of the query that caused it.
    #[serde(borrow)]
    pub query: Option<Text<'a>>,
    /// Why, where that is not plain.
    #[serde(borrow)]
    pub why: Option<Text<'a>>,
}

impl<'a> Grant<'a> {
    pub(super) fn read(line: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }

    /// When.
    #[must_use]
    pub fn at(&self) -> Wall {
        Wall(micros(&self.ts).unwrap_or(0))
    }

    /// When it ends by itself.
    #[must_use]
    pub fn until(&self) -> Wall {
        Wall(micros(&self.until).unwrap_or(0))
    }

    /// The services that changed, as far as they are in the record.
    #[must_use]
    pub fn services(&self) -> Vec<Services> {
        self.ports.iter().filter_map(|ports| ports.parse().ok()).collect()
    }

    /// Whether this service is among those that changed.
    #[must_use]
    pub fn changes(&self, service: Service) -> bool {
        let mut ports = self.ports.iter().filter_map(|ports| ports.parse::<Services>().ok());
        ports.any(|ports| ports.contains(service))
    }
}
