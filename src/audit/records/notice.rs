//! A record of the log about itself, as far as readers of other records need it.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::query::Text;
use crate::audit::read::micros;
use crate::time::Wall;

/// What the log says about itself; the fields are those of docs/log.md, and what is absent there is `None`.
#[derive(Clone, Debug, Deserialize)]
pub struct Notice<'a> {
    /// boot - shard - sequence.
    #[serde(borrow)]
    pub id: Text<'a>,
    /// When, RFC 3339 in UTC.
    #[serde(borrow)]
    pub ts: Text<'a>,
    /// `open`, `reopen`, `rotate`, `removed`, `heartbeat`, `gap` or `close`, or one of a later version.
    #[serde(borrow)]
    pub op: Text<'a>,
    /// Why.
    #[serde(borrow)]
    pub why: Option<Text<'a>>,
    /// Of `gap`: how many records are missing.
    pub lost: Option<u64>,
    /// Of `open`: the process that wrote before.
    #[serde(borrow)]
    pub previous_boot: Option<Text<'a>>,
    /// Of `open`: the chain of the files before it.
    #[serde(borrow)]
    pub chain: Option<Text<'a>>,
    /// Of `open`: the start of the machine.
    #[serde(borrow)]
    pub machine: Option<Text<'a>>,
    /// Of `open`: the length of an unfinished last line.
    #[serde(default)]
    pub torn: u64,
    /// Of `gap`: which sequences are missing.
    #[serde(default)]
    pub ranges: Vec<(u64, u64)>,
    /// Of `heartbeat` and `close`: the number that each shard had come to.
    #[serde(default)]
    pub sequences: BTreeMap<u16, u64>,
    #[serde(borrow)]
    first: Option<Text<'a>>,
}

impl<'a> Notice<'a> {
    pub(super) fn read(line: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }

    /// When.
    #[must_use]
    pub fn at(&self) -> Wall {
        Wall(micros(&self.ts).unwrap_or(0))
    }

    /// Of `open`: the process that wrote before.
    #[must_use]
    pub fn previous(&self) -> Option<u64> {
        self.previous_boot.as_deref().and_then(|boot| u64::from_str_radix(boot, 16).ok())
    }

    /// Of a sink's `gap`: the time of the first record that is missing.
    #[must_use]
    pub fn first(&self) -> Option<Wall> {
        self.first.as_deref().and_then(micros).map(Wall)
    }

    /// Whether nothing was written before it: the first line that a node ever wrote.
    #[must_use]
    pub fn is_first(&self) -> bool {
        &*self.op == "open"
            && self.why.as_deref() == Some("start")
            && self.previous_boot.is_none()
            && self.chain.is_none()
    }
}
