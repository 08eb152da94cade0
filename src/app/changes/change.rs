//! One change, and the rule that it is.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use nix::unistd::{Uid, User};
use serde::{Deserialize, Serialize};

use crate::draft::quoted;
use crate::net::{Prefix, parse_prefix};
use crate::policy::{MAX_HOLD, Placement, Source};
use crate::serve::{ChangeAction, ChangeOrder, PlaceOrder, Who};
use crate::time::Wall;

/// The longest life of a change that ends: what is needed for longer belongs into a policy file.
const LONGEST: Duration = Duration::from_secs(90 * 86_400);
/// Clocks of two nodes differ by less.
const SKEW: Duration = Duration::from_secs(86_400);
/// The most characters of a name, or of a reason, that another node says.
const MAX_WORDS: usize = 256;
/// The most names of one change.
const MAX_TARGETS: usize = 256;
/// The most labels of a client, and the most octets of their JSON: they are in every record of it, and a record has 8 KiB.
const MAX_LABELS: usize = 16;
const MAX_LABELS_JSON: usize = 512;

/// How the id of a rule begins.
const PREFIX: &str = "runtime-";

/// Who made a change: the process at the other end of the admin socket, here or at a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::app) struct Author {
    uid: u32,
    /// The user's name, where the system knows one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    /// The peer that it was said to; `None`: this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<String>,
}

impl Author {
    pub(in crate::app) fn of(who: &Who) -> Self {
        let user = User::from_uid(Uid::from_raw(who.uid)).ok().flatten();
        Self { uid: who.uid, user: user.map(|user| user.name), node: None }
    }

    /// As `peer` told of it, which may have it from another one.
    #[must_use]
    pub(super) fn told_by(mut self, peer: &str) -> Self {
        self.user = self.user.map(|user| short(&user));
        self.node = Some(self.node.map_or_else(|| peer.to_owned(), |node| short(&node)));
        self
    }
}

/// The beginning of what another node says.
pub(super) fn short(text: &str) -> String {
    text.chars().take(MAX_WORDS).collect()
}

impl std::fmt::Display for Author {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.user {
            Some(user) => write!(f, "{user} (uid {})", self.uid)?,
            None => write!(f, "uid {}", self.uid)?,
        }
        self.node.as_ref().map_or(Ok(()), |node| write!(f, " at {node}"))
    }
}

/// A rule that an operator made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::app) struct Change {
    /// The rule's id.
    pub(in crate::app) id: String,
    pub(in crate::app) author: Author,
    /// Microseconds since 1970.
    pub(in crate::app) made: u64,
    /// The same; `None`: it stands until it is retracted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::app) ends: Option<u64>,
    pub(in crate::app) order: ChangeOrder,
}

/// That a rule was taken back: a peer that was away meanwhile does not bring it back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::app) struct Retracted {
    /// The rule's id.
    pub(in crate::app) id: String,
    pub(in crate::app) author: Author,
    /// Microseconds since 1970.
    pub(in crate::app) at: u64,
    /// When the rule would have ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::app) ends: Option<u64>,
    pub(in crate::app) why: String,
}

impl Retracted {
    /// Of this rule.
    pub(super) fn new(change: &Change, author: Author, now: Wall, why: &str) -> Self {
        Self { id: change.id.clone(), author, at: now.0, ends: change.ends, why: short(why) }
    }

    /// What `peer` said; `None`: nothing that one says.
    pub(super) fn told_by(mut self, peer: &str, now: Wall) -> Option<Self> {
        let last = now.0.saturating_add(micros(LONGEST + SKEW));
        self.ends = self.ends.map(|ends| ends.min(last));
        self.at = self.at.min(now.0);
        (self.author, self.why) = (self.author.told_by(peer), short(&self.why));
        is_id(&self.id).then_some(self)
    }

    /// When nobody can have the rule any more: an allow ends, and so long ago nobody was away.
    pub(super) fn forgotten_at(&self) -> u64 {
        self.ends.unwrap_or_else(|| self.at.saturating_add(micros(LONGEST)))
    }
}

/// A client that was placed in a segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::app) struct Placed {
    pub(in crate::app) segment: String,
    /// Microseconds since 1970; `None`: it stays until it is taken out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::app) ends: Option<u64>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(in crate::app) labels: BTreeMap<String, String>,
    /// Microseconds since 1970; `None`: the watched file says so, or a version before wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::app) made: Option<u64>,
}

impl Change {
    /// An id: 32 random bits, so that those of several nodes differ too.
    ///
    /// # Errors
    /// One sentence: the system gives no random numbers.
    pub(super) fn fresh_id() -> Result<String, String> {
        let random = getrandom::u32().map_err(|error| format!("the system gives no random numbers: {error}"))?;
        Ok(format!("{PREFIX}{random:08x}"))
    }

    /// What `peer` said, once it is what could have been ordered here.
    ///
    /// # Errors
    /// One sentence: why it is not.
    pub(super) fn told_by(self, peer: &str, now: Wall) -> Result<Self, String> {
        let Self { id, author, made, ends, mut order } = self;
        if !is_id(&id) {
            return Err("its id is none of a rule".into());
        }
        // Where it was made, the segment of a client was found.
        let segment = match order.action {
            ChangeAction::Allow if order.client.is_some() => order.segments.pop(),
            _ => Some(String::new()),
        };
        let checked = Self::new(id, author.told_by(peer), order, segment.as_deref(), now)?;
        let last = now.0.saturating_add(micros(LONGEST + SKEW));
        if ends.is_some() != checked.ends.is_some() || ends.is_some_and(|ends| ends > last) {
            return Err("its end is not that of its time".into());
        }
        Ok(Self { made: made.min(now.0), ends, ..checked })
    }

    /// A change as it was ordered; `segment` is that of the order's client.
    ///
    /// # Errors
    /// One sentence: the order cannot be followed.
    pub(in crate::app) fn new(
        id: String,
        author: Author,
        mut order: ChangeOrder,
        segment: Option<&str>,
        now: Wall,
    ) -> Result<Self, String> {
        if order.targets.is_empty() {
            return Err("nothing is named; name what is meant".into());
        }
        if order.targets.len() > MAX_TARGETS {
            return Err(format!(
                "{} names are too many; a change has {MAX_TARGETS} at most, a policy file any number",
                order.targets.len()
            ));
        }
        let networks = order.targets.iter().filter(|target| is_network(target)).count();
        if networks > 0 && networks < order.targets.len() {
            return Err("names and addresses are two changes; make one of each".into());
        }
        if order.reason.trim().is_empty() {
            return Err("a reason is missing; say what it is for".into());
        }
        if let Some(client) = order.client {
            if networks > 0 || !order.segments.is_empty() {
                return Err("`client` stands alone with names: neither segments nor addresses go with it".into());
            }
            let Some(segment) = segment else {
                return Err(format!("{client} is in no segment; name a client that is in one"));
            };
            // A deny goes with the client, wherever that is placed.
            if order.action == ChangeAction::Allow {
                order.segments = vec![segment.to_owned()];
            }
        }
        let allows = order.action == ChangeAction::Allow;
        if allows && order.segments.is_empty() {
            return Err("for whom is missing; name a segment or a client".into());
        }
        if allows && order.segments.iter().any(|segment| segment == "*") {
            return Err("an allow is not for all; name its segments".into());
        }
        if !allows && order.cut {
            return Err("a deny cuts connections at once; `cut` is of an allow".into());
        }
        if allows && order.for_s.is_none() {
            return Err("for how long is missing; what is to stay belongs into a policy file".into());
        }
        if !allows && networks > 0 && !order.segments.is_empty() {
            return Err("addresses are denied to all; leave the segments out".into());
        }
        let ends = ends(order.for_s, now)?;
        Ok(Self { id, author, made: now.0, ends, order })
    }

    /// The addresses that it is of.
    pub(in crate::app) fn networks(&self) -> Vec<Prefix> {
        self.order.targets.iter().filter_map(|target| parse_prefix(target)).collect()
    }

    /// It as a rule of a policy file. Whatever is in it stays within its strings.
    pub(in crate::app) fn rule(&self) -> Source {
        let Self { id, author, ends, order, .. } = self;
        let mut text = format!("[[rule]]\nid = {}\naction = \"{}\"\n", quoted(id), order.action.as_str());
        let all = [String::from("*")];
        let segments = if order.segments.is_empty() { &all[..] } else { &order.segments };
        let clients: Vec<_> = order.client.iter().map(ToString::to_string).collect();
        let targets = if order.targets.iter().any(|target| is_network(target)) { "networks" } else { "names" };
        for (key, values) in [
            ("segments", segments),
            (targets, &order.targets),
            ("clients", &clients),
            ("ports", &order.ports),
            ("types", &order.types),
            ("private", &order.private),
        ] {
            if !values.is_empty() {
                let values: Vec<_> = values.iter().map(|value| quoted(value)).collect();
                // Writing to a String cannot fail, here and below.
                let _ = writeln!(text, "{key} = [{}]", values.join(", "));
            }
        }
        let author = author.to_string();
        for (key, value) in
            [("owner", Some(&author)), ("reason", Some(&order.reason)), ("ticket", order.ticket.as_ref())]
        {
            if let Some(value) = value {
                let _ = writeln!(text, "{key} = {}", quoted(value));
            }
        }
        if let Some(ends) = ends {
            let _ = writeln!(text, "expires = {}", Wall(*ends));
        }
        if let Some(seconds) = order.for_s.filter(|_| order.cut && targets == "names") {
            // What is to be cut at its end is known as long as it is open.
            let _ = writeln!(text, "hold = \"{}s\"", seconds.min(MAX_HOLD.as_secs()));
        }
        Source { file: id.clone(), text }
    }
}

impl Placed {
    /// A placement as it was ordered.
    ///
    /// # Errors
    /// One sentence: the order cannot be followed.
    pub(in crate::app) fn new(order: PlaceOrder, now: Wall) -> Result<Self, String> {
        check_labels(&order.labels)?;
        Ok(Self { segment: order.segment, ends: ends(order.for_s, now)?, labels: order.labels, made: Some(now.0) })
    }

    pub(in crate::app) fn placement(&self, client: IpAddr) -> Placement {
        let labels = if self.labels.is_empty() { String::new() } else { labels_json(&self.labels) };
        Placement { client, segment: self.segment.as_str().into(), labels: labels.into() }
    }
}

fn labels_json(labels: &BTreeMap<String, String>) -> String {
    serde_json::to_string(labels).unwrap_or_default()
}

/// Labels are in every record of a client.
pub(super) fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), String> {
    let octets = labels_json(labels).len();
    if labels.len() > MAX_LABELS || octets > MAX_LABELS_JSON {
        return Err(format!(
            "{} labels of {octets} octets are too many; keep to {MAX_LABELS} labels and {MAX_LABELS_JSON} octets of JSON",
            labels.len()
        ));
    }
    Ok(())
}

fn ends(for_s: Option<u64>, now: Wall) -> Result<Option<u64>, String> {
    match for_s {
        Some(seconds) if seconds == 0 || seconds > LONGEST.as_secs() => {
            Err(format!("{seconds} s is out of range; write from 1s to {} days", LONGEST.as_secs() / 86_400))
        }
        seconds => Ok(seconds.map(|seconds| now.0.saturating_add(seconds * 1_000_000))),
    }
}

/// As ids of rules are made.
fn is_id(id: &str) -> bool {
    id.strip_prefix(PREFIX)
        .is_some_and(|random| random.len() == 8 && random.bytes().all(|octet| octet.is_ascii_hexdigit()))
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Whether a target is an address or a prefix, not a name.
fn is_network(target: &str) -> bool {
    parse_prefix(target).is_some()
}
