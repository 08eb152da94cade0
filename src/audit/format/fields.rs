//! Fields of a line, as they stand in it: told apart once, each read when it is asked for.

use std::cell::{Cell, OnceCell};
use std::fmt;
use std::net::IpAddr;

use psl::Psl as _;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use smallvec::SmallVec;

use super::mapping::{CHANGE, FLOW, GRANT, LOG, OTHER, POLICY, QUERY, Types};
use crate::audit::read::micros;
use crate::audit::records::{Text, Told};

/// The fields of one record.
pub(super) struct Fields<'a> {
    of: Types,
    fields: SmallVec<[Field<'a>; 32]>,
    answers: OnceCell<Vec<Told<'a>>>,
    domain: OnceCell<Domain>,
}

struct Field<'a> {
    name: &'a str,
    value: &'a str,
    /// It went out whole.
    taken: Cell<bool>,
}

impl<'a> Fields<'a> {
    /// Tells the fields of a line apart; `None` where it is no record.
    pub(super) fn read(line: &'a str) -> Option<Self> {
        let Raw(fields) = serde_json::from_str(line).ok()?;
        let mut read = Self { of: OTHER, fields, answers: OnceCell::new(), domain: OnceCell::new() };
        read.micros("ts")?;
        read.text("id")?;
        read.of = match &*read.text("type")? {
            "query" => QUERY,
            "grant" => GRANT,
            "flow" => FLOW,
            "policy" => POLICY,
            "change" => CHANGE,
            "log" => LOG,
            _ => OTHER,
        };
        Some(read)
    }

    /// The record's type.
    pub(super) const fn of(&self) -> Types {
        self.of
    }

    fn find(&self, name: &str) -> Option<&Field<'a>> {
        self.fields.iter().find(|field| field.name == name)
    }

    /// The value as JSON, marked as gone out whole.
    pub(super) fn take(&self, name: &str) -> Option<&'a str> {
        let field = self.find(name)?;
        field.taken.set(true);
        Some(field.value)
    }

    /// What has not gone out whole.
    pub(super) fn left(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.fields.iter().filter(|field| !field.taken.get()).map(|field| (field.name, field.value))
    }

    /// The value as JSON.
    pub(super) fn json(&self, name: &str) -> Option<&'a str> {
        self.find(name).map(|field| field.value)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// A string; `None` where it is absent, or something else.
    pub(super) fn text(&self, name: &str) -> Option<Text<'a>> {
        serde_json::from_str(self.json(name)?).ok()
    }

    /// A word of ours, as it stands in the line; empty where it is absent.
    pub(super) fn word(&self, name: &str) -> &'a str {
        self.json(name).map_or("", |json| json.trim_matches('"'))
    }

    pub(super) fn number(&self, name: &str) -> Option<u64> {
        self.json(name)?.parse().ok()
    }

    pub(super) fn is_false(&self, name: &str) -> bool {
        self.json(name) == Some("false")
    }

    /// A time in microseconds since 1970.
    pub(super) fn micros(&self, name: &str) -> Option<u64> {
        micros(&self.text(name)?)
    }

    /// An address: one that is redacted is none.
    pub(super) fn address(&self, name: &str) -> Option<IpAddr> {
        self.text(name)?.parse().ok()
    }

    /// A list of strings.
    pub(super) fn texts(&self, name: &str) -> Vec<Text<'a>> {
        self.json(name).and_then(|json| serde_json::from_str(json).ok()).unwrap_or_default()
    }

    /// The members of an object whose values are strings.
    pub(super) fn members(&self, name: &str) -> Vec<(Text<'a>, Text<'a>)> {
        let members = |json| serde_json::from_str::<Members<'a>>(json).ok();
        self.json(name).and_then(members).map(|members| members.0).unwrap_or_default()
    }

    /// The answer section.
    pub(super) fn answers(&self) -> &[Told<'a>] {
        self.answers
            .get_or_init(|| self.json("answers").and_then(|json| serde_json::from_str(json).ok()).unwrap_or_default())
    }

    /// The names of a flow that has several.
    pub(super) fn names(&self) -> Vec<Text<'a>> {
        #[derive(serde::Deserialize)]
        struct Named<'a> {
            #[serde(borrow)]
            qname: Text<'a>,
        }
        let names: Option<Vec<Named<'a>>> = self.json("names").and_then(|json| serde_json::from_str(json).ok());
        names.unwrap_or_default().into_iter().map(|named| named.qname).collect()
    }

    /// Names that the record is about, each once: the one asked for, those of the answers, those of a flow.
    pub(super) fn hosts(&self) -> Vec<Text<'a>> {
        let mut hosts = Vec::new();
        let answers = self.answers().iter().flat_map(|told| {
            let target = (&*told.kind == "CNAME").then_some(&told.data);
            [Some(&told.name), target].into_iter().flatten().cloned()
        });
        for host in self.text("qname").into_iter().chain(answers).chain(self.names()) {
            if !hosts.contains(&host) {
                hosts.push(host);
            }
        }
        hosts
    }

    /// Addresses that the record is about, each once.
    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        let mut addresses = Vec::new();
        let named = [self.address("client"), self.address("address")].into_iter().flatten();
        for address in named.chain(self.answers().iter().filter_map(Told::address)) {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        addresses
    }

    /// The record's number in its shard.
    pub(super) fn sequence(&self) -> Option<u64> {
        self.word("id").rsplit_once('-')?.1.parse().ok()
    }

    /// Two numbers, of which one may be absent.
    pub(super) fn sum(&self, first: &str, second: &str) -> Option<u64> {
        let (first, second) = (self.number(first), self.number(second));
        first.or(second).map(|_| first.unwrap_or(0).saturating_add(second.unwrap_or(0)))
    }

    /// How far a flow's origin is known: its `class`, and `detail` behind a `/`.
    pub(super) fn classified(&self) -> Option<String> {
        let (class, detail) = (self.word("class"), self.word("detail"));
        let detailed = || if detail.is_empty() { class.to_owned() } else { format!("{class}/{detail}") };
        self.has("class").then(detailed)
    }

    /// What carried a query or flow.
    pub(super) fn transport(&self) -> Service {
        let (name, number) = match self.word("transport") {
            "udp" | "doq" | "doh3" => ("udp", 17),
            "tcp" | "dot" | "doh" => ("tcp", 6),
            _ => return self.service(),
        };
        Service { name: Some(name), number: Some(number), port: None }
    }

    /// The protocol and port of a flow's `service`.
    pub(super) fn service(&self) -> Service {
        let (protocol, after) = self.word("service").split_once('/').unwrap_or((self.word("service"), ""));
        let six = matches!(self.address("address"), Some(IpAddr::V6(_)));
        // Internet protocol numbers, IANA.
        let number = match protocol {
            "tcp" => Some(6),
            "udp" => Some(17),
            "icmp" if six => Some(58),
            "icmp" => Some(1),
            _ => after.parse().ok(),
        };
        let name = match number {
            Some(58) => Some("ipv6-icmp"),
            Some(1) => Some("icmp"),
            Some(6) => Some("tcp"),
            Some(17) => Some("udp"),
            _ => None,
        };
        Service { name, number, port: matches!(protocol, "tcp" | "udp").then(|| after.parse().ok()).flatten() }
    }

    /// Where the parts of `qname` begin, by the public suffix list.
    pub(super) fn domain(&self) -> Domain {
        *self.domain.get_or_init(|| self.text("qname").map(|name| Domain::of(&name)).unwrap_or_default())
    }
}

/// What a flow went to.
pub(super) struct Service {
    /// The keyword of the protocol.
    pub(super) name: Option<&'static str>,
    /// Its number.
    pub(super) number: Option<u64>,
    pub(super) port: Option<u64>,
}

/// Where the parts of a name begin, in bytes of its text.
#[derive(Clone, Copy, Default)]
pub(super) struct Domain {
    /// The name that somebody registered; `None`: there is none above the public suffix.
    pub(super) registered: Option<usize>,
    /// The public suffix.
    pub(super) suffix: Option<usize>,
}

impl Domain {
    fn of(name: &str) -> Self {
        // Where labels begin, last first; an escaped dot parts nothing.
        let (mut starts, mut escaped): (SmallVec<[usize; 16]>, bool) = (SmallVec::from_slice(&[0]), false);
        for (at, byte) in name.bytes().enumerate() {
            match byte {
                b'.' if !escaped => starts.push(at + 1),
                b'\\' if !escaped => {
                    escaped = true;
                    continue;
                }
                _ => {}
            }
            escaped = false;
        }
        let mut end = name.len() + 1;
        let mut labels: SmallVec<[&[u8]; 16]> = SmallVec::new();
        for start in starts.iter().rev() {
            labels.push(name.as_bytes().get(*start..end - 1).unwrap_or_default());
            end = *start;
        }
        if labels.iter().any(|label| label.is_empty()) {
            return Self::default();
        }
        let Some(suffix) = name.len().checked_sub(psl::List.find(labels.iter().copied()).len) else {
            return Self::default();
        };
        let registered = starts.iter().rev().find(|start| **start < suffix).copied();
        Self { registered, suffix: Some(suffix) }
    }
}

/// Names and values of an object.
struct Raw<'a>(SmallVec<[Field<'a>; 32]>);

impl<'de> Deserialize<'de> for Raw<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Raw<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a record")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw<'de>, A::Error> {
                let mut fields = SmallVec::new();
                while let Some(name) = map.next_key()? {
                    let value = map.next_value::<&'de RawValue>()?.get();
                    fields.push(Field { name, value, taken: Cell::new(false) });
                }
                Ok(Raw(fields))
            }
        }
        deserializer.deserialize_map(Read)
    }
}

/// Members of an object that are strings.
struct Members<'a>(Vec<(Text<'a>, Text<'a>)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Read)
    }
}
