//! What operators and monitoring may ask of the running node; the app answers.

mod promote;

use std::fmt;
use std::net::IpAddr;

pub use promote::PromoteOrder;
use serde::{Deserialize, Serialize};

use super::health::Health;
use super::order::{ChangeOrder, ClientRow, ForgetOrder, PlaceOrder, RevokeOrder};
use crate::name::Name;

/// The running node.
pub trait Node: Health {
    /// The state of everything, in the shape of docs/admin.md.
    fn status(&self) -> serde_json::Value;

    /// Live grants, at most `filter.limit`.
    fn grants(&self, filter: &GrantFilter) -> impl Future<Output = Vec<GrantRow>> + Send;

    /// Loads the policy anew; what is in force after it, or every mistake, and then the one before stays in
    /// force. Two calls at once are done one after the other. Run to its end, also where the caller has gone.
    fn reload(&self, who: &Who) -> impl Future<Output = Result<serde_json::Value, Vec<String>>> + Send;

    /// Puts the candidate in force, or takes that back; what is in force after it, or why nothing has changed. Run to its end,
    /// also where the caller has gone.
    fn promote(
        &self,
        who: &Who,
        order: &PromoteOrder,
    ) -> impl Future<Output = Result<serde_json::Value, String>> + Send;

    /// Makes a rule; what became of it, or why it cannot be.
    fn change(
        &self,
        who: &Who,
        order: ChangeOrder,
    ) -> impl Future<Output = Result<serde_json::Value, Vec<String>>> + Send;

    /// Takes a rule back that was made so.
    fn retract(
        &self,
        who: &Who,
        id: &str,
        why: &str,
    ) -> impl Future<Output = Result<serde_json::Value, Vec<String>>> + Send;

    /// Closes what is open now.
    fn revoke(
        &self,
        who: &Who,
        order: RevokeOrder,
    ) -> impl Future<Output = Result<serde_json::Value, Vec<String>>> + Send;

    /// Closes and cuts everything of a client.
    fn forget(
        &self,
        who: &Who,
        order: ForgetOrder,
    ) -> impl Future<Output = Result<serde_json::Value, Vec<String>>> + Send;

    /// Places a client in a segment.
    fn place(
        &self,
        who: &Who,
        order: PlaceOrder,
    ) -> impl Future<Output = Result<serde_json::Value, Vec<String>>> + Send;

    /// Takes a client out of the segment that it was placed in.
    fn take_out(
        &self,
        who: &Who,
        client: IpAddr,
    ) -> impl Future<Output = Result<serde_json::Value, Vec<String>>> + Send;

    /// Every client that is placed.
    fn clients(&self) -> Vec<ClientRow>;

    /// Drops what is cached of some names.
    fn flush(&self, who: &Who, order: &FlushOrder) -> Flushed;
}

/// What keeps the node from answering queries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Readiness {
    /// One clause each: `"the firewall gateway does not answer"`. Empty: ready.
    pub waiting: Vec<String>,
}

/// Who asks for a change: the credentials of the process at the other end of the socket, from the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Who {
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its process, in our pid namespace.
    pub pid: Option<i32>,
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "uid {}, gid {}", self.uid, self.gid)?;
        self.pid.map_or(Ok(()), |pid| write!(f, ", pid {pid}"))
    }
}

/// Which grants. What is `None` does not matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantFilter {
    /// Those that this client may use.
    pub client: Option<IpAddr>,
    /// Those of this name.
    pub name: Option<Name>,
    /// Those to this address.
    pub address: Option<IpAddr>,
    /// Those of this segment.
    pub segment: Option<String>,
    /// No more than this.
    pub limit: usize,
}

impl Default for GrantFilter {
    fn default() -> Self {
        Self { client: None, name: None, address: None, segment: None, limit: Self::USUAL }
    }
}

impl GrantFilter {
    /// The limit where none is given.
    pub const USUAL: usize = 1_000;
    /// The highest limit: about 30 MB of JSON.
    pub const MOST: usize = 100_000;

    /// Reads the query string of a request: `client=192.0.2.1&limit=10`.
    ///
    /// # Errors
    /// One sentence that says which part is wrong.
    pub fn parse(query: &str) -> Result<Self, String> {
        let mut filter = Self::default();
        let mut seen = Vec::new();
        for part in query.split('&').filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            let value = decode(value).ok_or_else(|| format!("the value of {key:?} is not percent-encoded UTF-8"))?;
            if seen.contains(&key) {
                return Err(format!("{key:?} is there twice"));
            }
            seen.push(key);
            let address = || value.parse().map_err(|_| format!("{key}: {value:?} is not an IP address"));
            match key {
                "client" => filter.client = Some(address()?),
                "address" => filter.address = Some(address()?),
                "name" => filter.name = Some(Name::parse(&value).map_err(|why| format!("name: {value:?}: {why}"))?),
                "segment" => filter.segment = Some(value),
                "limit" => match value.parse() {
                    Ok(limit @ 1..=Self::MOST) => filter.limit = limit,
                    _ => return Err(format!("limit: {value:?} is not a number from 1 to {}", Self::MOST)),
                },
                _ => return Err(format!("{key:?} is unknown; write client, name, address, segment or limit")),
            }
        }
        Ok(filter)
    }

    /// The query string that [`GrantFilter::parse`] reads back.
    #[must_use]
    pub fn query(&self) -> String {
        let parts = [
            ("client", self.client.map(|client| client.to_string())),
            ("name", self.name.as_ref().map(Name::to_string)),
            ("address", self.address.map(|address| address.to_string())),
            ("segment", self.segment.clone()),
            ("limit", Some(self.limit.to_string())),
        ];
        let given = parts.into_iter().filter_map(|(key, value)| value.map(|value| format!("{key}={}", encode(&value))));
        given.collect::<Vec<_>>().join("&")
    }
}

/// Which names are to be dropped from the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlushOrder {
    /// This one.
    pub name: Name,
    /// And all below it.
    pub below: bool,
}

impl FlushOrder {
    /// Reads the query string of a request: `name=www.example.org&below=true`.
    ///
    /// # Errors
    /// One sentence that says which part is wrong.
    pub fn parse(query: &str) -> Result<Self, String> {
        let (mut name, mut below) = (None, None);
        for part in query.split('&').filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            let value = decode(value).ok_or_else(|| format!("the value of {key:?} is not percent-encoded UTF-8"))?;
            let twice = match key {
                "name" => {
                    let parsed = Name::parse(&value).map_err(|why| format!("name: {value:?}: {why}"))?;
                    name.replace(parsed).is_some()
                }
                "below" => {
                    let parsed = value.parse().map_err(|_| format!("below: {value:?} is not true or false"))?;
                    below.replace(parsed).is_some()
                }
                _ => return Err(format!("{key:?} is unknown; write name or below")),
            };
            if twice {
                return Err(format!("{key:?} is there twice"));
            }
        }
        let name = name.ok_or("name is missing; write name=www.example.org")?;
        Ok(Self { name, below: below.unwrap_or(false) })
    }

    /// The query string that [`FlushOrder::parse`] reads back.
    #[must_use]
    pub fn query(&self) -> String {
        format!("name={}&below={}", encode(&self.name.to_string()), self.below)
    }
}

/// What was dropped from the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flushed {
    /// Answers, also those that had ended.
    pub answers: usize,
    /// Remembered failures.
    pub failures: usize,
    /// Replies that were ready to be told, one a client or segment.
    pub replies: usize,
}

/// One grant: what one rule opened for one name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantRow {
    /// The client it is for; absent: everyone in the segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<IpAddr>,
    /// The segment.
    pub segment: String,
    /// The rule's id.
    pub rule: String,
    /// The name that was asked, as in the log.
    pub name: String,
    /// Where to.
    pub address: IpAddr,
    /// By what: `tcp/443`.
    pub services: Vec<String>,
    /// When it ends, RFC 3339.
    pub until: String,
    /// How long that is from now, in seconds.
    pub remaining_s: u64,
}

/// Reads the query string `reason=…`; empty where there is none.
pub(super) fn reason(query: &str) -> Result<String, String> {
    match query.split_once('=') {
        None if query.is_empty() => Ok(String::new()),
        Some(("reason", value)) => decode(value).ok_or_else(|| "the reason is not percent-encoded UTF-8".to_owned()),
        _ => Err("write reason=… and nothing else".to_owned()),
    }
}

/// Percent-decoding (RFC 3986 §2.1); `None` where it is broken or does not give UTF-8.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        if *first == b'%' {
            let (digits, after) = after.split_first_chunk::<2>()?;
            let [high, low] = digits.map(|digit| char::from(digit).to_digit(16));
            bytes.push(u8::try_from(high? * 16 + low?).ok()?);
            rest = after;
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok()
}

/// Percent-encoding of everything but RFC 3986's unreserved characters.
pub fn encode(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_filter_says_what_is_wrong_with_it() {
        for (query, says) in [
            ("client=10.0.0", "client: \"10.0.0\" is not an IP address"),
            ("address=%zz", "the value of \"address\" is not percent-encoded UTF-8"),
            ("segment=%ff", "the value of \"segment\" is not percent-encoded UTF-8"),
            ("segment=a&segment=b", "\"segment\" is there twice"),
            ("limit=0", "limit: \"0\" is not a number from 1 to 100000"),
            ("limit=100001", "limit: \"100001\" is not a number from 1 to 100000"),
            ("name=a..b", "name: \"a..b\": it has an empty label"),
            ("who=me", "\"who\" is unknown; write client, name, address, segment or limit"),
        ] {
            assert_eq!(GrantFilter::parse(query), Err(says.to_owned()), "{query}");
        }
        assert_eq!(GrantFilter::parse(""), Ok(GrantFilter::default()));
    }

    #[test]
    fn a_flush_says_what_is_wrong_with_it() {
        for (query, says) in [
            ("", "name is missing; write name=www.example.org"),
            ("below=true", "name is missing; write name=www.example.org"),
            ("name=a..b", "name: \"a..b\": it has an empty label"),
            ("name=a&name=b", "\"name\" is there twice"),
            ("name=a&below=1", "below: \"1\" is not true or false"),
            ("name=a&all=true", "\"all\" is unknown; write name or below"),
        ] {
            assert_eq!(FlushOrder::parse(query), Err(says.to_owned()), "{query}");
        }
    }

    proptest! {
        #[test]
        fn a_filter_survives_its_query(
            client: Option<IpAddr>, address: Option<IpAddr>, segment: Option<String>,
            labels in prop::option::of(prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 1..5)),
            limit in 1..=GrantFilter::MOST,
        ) {
            let name = labels.map(|labels| labels.iter().fold(Name::root(), |name, label| name.child(label).unwrap()));
            let filter = GrantFilter { client, name, address, segment, limit };
            prop_assert_eq!(GrantFilter::parse(&filter.query()), Ok(filter));
        }

        #[test]
        fn a_flush_survives_its_query(
            labels in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 0..5), below: bool,
        ) {
            let name = labels.iter().fold(Name::root(), |name, label| name.child(label).unwrap());
            let order = FlushOrder { name, below };
            prop_assert_eq!(FlushOrder::parse(&order.query()), Ok(order));
        }

        #[test]
        fn no_query_panics(query in ".{0,100}") {
            let _ = FlushOrder::parse(&query);
            let _ = GrantFilter::parse(&query);
        }
    }
}
