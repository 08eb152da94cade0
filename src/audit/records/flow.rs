//! A flow's record as it stands in its line.

use std::net::IpAddr;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::query::Text;
use crate::audit::read::micros;
use crate::flow::{Carrier, Class, Detail};
use crate::time::Wall;

/// One flow; the fields are those of docs/log.md, and what is absent there is `None`.
#[derive(Clone, Debug, Deserialize)]
pub struct Flow<'a> {
    /// boot - shard - sequence.
    #[serde(borrow)]
    pub id: Text<'a>,
    /// When it began, RFC 3339 in UTC.
    #[serde(borrow)]
    pub ts: Text<'a>,
    /// `open`, `close`, `refuse` or `seen`.
    #[serde(borrow)]
    pub op: Text<'a>,
    /// From where.
    pub client: IpAddr,
    /// The port it came from.
    pub port: Option<u16>,
    /// The client's segment.
    #[serde(borrow)]
    pub segment: Option<Text<'a>>,
    #[serde(borrow)]
    tags: Option<&'a RawValue>,
    /// To where.
    pub address: IpAddr,
    #[serde(borrow)]
    service: Text<'a>,
    #[serde(borrow)]
    action: Text<'a>,
    #[serde(borrow)]
    class: Text<'a>,
    #[serde(borrow)]
    detail: Option<Text<'a>>,
    /// Why, in a sentence.
    #[serde(borrow)]
    pub why: Option<Text<'a>>,
    /// The name, where it is one.
    #[serde(borrow)]
    pub qname: Option<Text<'a>>,
    /// The rule, where it is one.
    #[serde(borrow)]
    pub rule: Option<Text<'a>>,
    /// Id of the query that was told the name's address.
    #[serde(borrow)]
    pub query: Option<Text<'a>>,
    #[serde(borrow)]
    names: Option<&'a RawValue>,
    /// Names that the record has no room for.
    #[serde(default)]
    pub names_omitted: u64,
    /// How long after the end of what was told it began, in microseconds.
    pub late_us: Option<u64>,
    /// How long it lived on after the grant had ended, in microseconds.
    pub outlived_us: Option<u64>,
    /// Bytes from the client.
    pub bytes_out: Option<u64>,
    /// Bytes to it.
    pub bytes_in: Option<u64>,
    /// Packets from the client.
    pub packets_out: Option<u64>,
    /// Packets to it.
    pub packets_in: Option<u64>,
    #[serde(borrow)]
    end: Option<Text<'a>>,
    /// From its beginning to its end, in microseconds.
    pub duration_us: Option<u64>,
    /// False where its beginning was not seen.
    #[serde(default = "started")]
    pub started: bool,
    /// A word of [`crate::flow::Origin`], or one of a later version.
    #[serde(borrow)]
    pub source: Text<'a>,
}

/// One of several names that a flow may have gone by.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Named<'a> {
    /// The name.
    #[serde(borrow)]
    pub qname: Text<'a>,
    /// The rule's id.
    #[serde(borrow)]
    pub rule: Text<'a>,
    /// Id of the query.
    #[serde(borrow)]
    pub query: Option<Text<'a>>,
}

const fn started() -> bool {
    true
}

impl<'a> Flow<'a> {
    pub(super) fn read(line: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }

    /// When it began.
    #[must_use]
    pub fn at(&self) -> Wall {
        Wall(micros(&self.ts).unwrap_or(0))
    }

    /// When it ended.
    #[must_use]
    pub fn end(&self) -> Option<Wall> {
        self.end.as_deref().and_then(micros).map(Wall)
    }

    /// The segment's tags as one JSON object.
    #[must_use]
    pub fn tags(&self) -> Option<&'a str> {
        self.tags.map(RawValue::get)
    }

    /// What carried it; `None`: a word of a later version.
    #[must_use]
    pub fn service(&self) -> Option<Carrier> {
        self.service.parse().ok()
    }

    /// Whether the firewall refused it.
    #[must_use]
    pub fn denied(&self) -> bool {
        &*self.action == "deny"
    }

    /// What it went out by; `None`: a word of a later version.
    #[must_use]
    pub fn class(&self) -> Option<Class> {
        Class::of_word(&self.class)
    }

    /// The class told more exactly.
    #[must_use]
    pub fn detail(&self) -> Option<Detail> {
        self.detail.as_deref().and_then(Detail::of_word)
    }

    /// The names, where there are several, the newest first; read anew with every call.
    #[must_use]
    pub fn names(&self) -> Vec<Named<'a>> {
        self.names.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default()
    }
}
