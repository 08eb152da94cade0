//! A query's record as it stands in its line: nothing is copied that needs no unescaping, and what is large is read only
//! where it is asked for.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::ops::Deref;

use serde::Deserialize;
use serde::de::{Deserializer, Error, Visitor};
use serde_json::value::RawValue;

use crate::audit::Outcome;
use crate::audit::read::micros;
use crate::net::Services;
use crate::time::Wall;

/// One query's record; the fields are those of docs/log.md, and what is absent there is `None`.
#[derive(Clone, Debug, Deserialize)]
pub struct Query<'a> {
    #[serde(rename = "type", borrow)]
    kind: Text<'a>,
    /// boot - shard - sequence.
    #[serde(borrow)]
    pub id: Text<'a>,
    /// When it was received, RFC 3339 in UTC: as text, earlier is less.
    #[serde(borrow)]
    pub ts: Text<'a>,
    /// Who asked.
    pub client: IpAddr,
    /// The forwarder that asked for the client.
    #[serde(borrow)]
    pub asked_by: Option<Text<'a>>,
    /// The name in the client's certificate that named its segment.
    #[serde(borrow)]
    pub certificate: Option<Text<'a>>,
    /// The client's segment.
    #[serde(borrow)]
    pub segment: Option<Text<'a>>,
    #[serde(borrow)]
    tags: Option<&'a RawValue>,
    /// The name asked for, in presentation format.
    #[serde(borrow)]
    pub qname: Option<Text<'a>>,
    /// The type asked for.
    #[serde(borrow)]
    pub qtype: Option<Text<'a>>,
    /// What became of it.
    #[serde(deserialize_with = "outcome")]
    pub verdict: Outcome,
    /// False where an observe segment let it pass.
    #[serde(default = "enforced")]
    pub enforced: bool,
    /// Why: a word of [`crate::policy::Reason`], or one of a later version.
    #[serde(borrow)]
    pub reason: Text<'a>,
    /// The rule's id.
    #[serde(borrow)]
    pub rule: Option<Text<'a>>,
    /// The policy that decided, in hex.
    #[serde(borrow)]
    pub policy: Option<Text<'a>>,
    /// The code that was sent; `None`: silence.
    #[serde(borrow)]
    pub rcode: Option<Text<'a>>,
    #[serde(borrow)]
    answers: Option<&'a RawValue>,
    /// Records of the answer that the line has no room for.
    #[serde(default)]
    pub answers_omitted: u64,
    #[serde(borrow)]
    grant: Option<&'a RawValue>,
    /// Receipt to record, in microseconds.
    #[serde(default)]
    pub latency_us: u64,
}

/// One record of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Told<'a> {
    /// Its owner.
    #[serde(borrow)]
    pub name: Text<'a>,
    /// Its type.
    #[serde(rename = "type", borrow)]
    pub kind: Text<'a>,
    /// Seconds, as told.
    pub ttl: u32,
    /// Its data as text.
    #[serde(borrow)]
    pub data: Text<'a>,
}

impl Told<'_> {
    /// The address of an A or AAAA record.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        matches!(&*self.kind, "A" | "AAAA").then(|| self.data.parse().ok()).flatten()
    }
}

impl<'a> Query<'a> {
    /// Reads a line; `None` where it is no query's record.
    pub(super) fn read(line: &'a [u8]) -> Option<Self> {
        serde_json::from_slice::<Self>(line).ok().filter(|query| &*query.kind == "query")
    }

    /// When it was received.
    #[must_use]
    pub fn at(&self) -> Wall {
        Wall(micros(&self.ts).unwrap_or(0))
    }

    /// The segment's tags as one JSON object.
    #[must_use]
    pub fn tags(&self) -> Option<&'a str> {
        self.tags.map(RawValue::get)
    }

    /// Whether its answers may hold this text: told without reading them.
    #[must_use]
    pub fn may_tell(&self, text: &str) -> bool {
        self.answers.is_some_and(|raw| raw.get().contains(text))
    }

    /// The answer section as sent, as far as it is in the record; read anew with every call.
    #[must_use]
    pub fn answers(&self) -> Vec<Told<'a>> {
        self.answers.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default()
    }

    /// Whether it was told addresses that are not in the record, for all that the record says.
    #[must_use]
    pub fn may_omit_addresses(&self) -> bool {
        self.answers_omitted > 0 && self.qtype.as_deref().is_none_or(|kind| matches!(kind, "A" | "AAAA" | "ANY"))
    }

    /// What was open for the answer when it was sent, and until when at least; read anew with every call.
    #[must_use]
    pub fn grant(&self) -> Option<(Vec<Services>, Wall)> {
        #[derive(Deserialize)]
        struct Grant<'a> {
            #[serde(borrow)]
            ports: Vec<Text<'a>>,
            #[serde(borrow)]
            until: Text<'a>,
        }
        let grant: Grant<'a> = serde_json::from_str(self.grant?.get()).ok()?;
        let ports = grant.ports.iter().filter_map(|ports| ports.parse().ok()).collect();
        Some((ports, Wall(micros(&grant.until)?)))
    }
}

const fn enforced() -> bool {
    true
}

fn outcome<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Outcome, D::Error> {
    let word = Text::deserialize(deserializer)?;
    Outcome::ALL.into_iter().find(|outcome| outcome.as_str() == &*word).ok_or_else(|| D::Error::custom("no verdict"))
}

/// A string of a line: a part of it, or a copy where it holds escapes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Text<'a>(Cow<'a, str>);

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Read)
    }
}
