//! Segments: sets of clients with common rules, and how `[[segment]]` is read.

use std::net::IpAddr;
use std::sync::Arc;

use super::load::{Placed, in_alphabet, read_prefixes};
use super::verdict::Shown;
use crate::document::{Place, Table};
use crate::name::Name;
use crate::net::{Prefix, SegmentId, Services};
use crate::time::Wall;

/// The most tags of a segment, and the most octets of their JSON: they stand in every record of it, and a record has
/// 8 KiB.
const MAX_TAGS: usize = 32;
const MAX_TAGS_JSON: usize = 1024;

/// The longest URI that may name a client: it stands in every record of it.
const MAX_URI: usize = 255;

/// A set of clients with common rules.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Unique name, 1 to 63 of `[A-Za-z0-9_.-]`.
    pub name: Arc<str>,
    /// Its number in the kernel.
    pub id: SegmentId,
    /// Where it stands.
    pub place: Place,
    /// Tags in key order; `tags_json` is the same as one JSON object, empty where there are none.
    pub tags: Vec<(String, String)>,
    /// See `tags`.
    pub tags_json: Box<str>,
    /// `mode = "observe"`: the moment at which it begins to enforce; `None` where it enforces from the start.
    pub observe_until: Option<Wall>,
    /// For whom an address is opened.
    pub scope: GrantScope,
    /// What a client sees of a denied name.
    pub refusal: Shown,
    /// Where its flows come from, sorted: its clients, unless others connect for them, and who connects for them.
    pub sources: Vec<Prefix>,
    /// What the static rules (`networks`) open for it, sorted, each with the end of its rule.
    pub networks: Vec<(Prefix, Services, Option<Wall>)>,
    /// AAAA is NODATA for it: its way out has no IPv6.
    pub filter_aaaa: bool,
    /// Its clients connect themselves, and nobody else has to.
    pub(super) clients_connect: bool,
    pub(super) has_four: bool,
    pub(super) has_six: bool,
}

/// For whom an address is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrantScope {
    /// For the client that asked.
    Client,
    /// For every source of the segment.
    Segment,
}

impl Segment {
    /// True while names that policy refuses resolve and flows that it would refuse pass, both recorded.
    #[must_use]
    pub fn observes(&self, now: Wall) -> bool {
        self.observe_until.is_some_and(|until| now < until)
    }

    /// What the static rules open for it at this time.
    pub(super) fn open_networks(&self, now: Wall) -> Vec<(Prefix, Services)> {
        let lives = |(_, _, end): &&(Prefix, Services, Option<Wall>)| end.is_none_or(|end| now < end);
        let mut open: Vec<_> = self.networks.iter().filter(lives).map(|(prefix, ports, _)| (*prefix, *ports)).collect();
        open.dedup();
        open
    }

    /// What of that, and of its observing, ends later, and when: of several rules for the same the last end counts.
    pub(super) fn ends(&self, now: Wall) -> Vec<(Option<(Prefix, Services)>, Wall)> {
        let same = |a: &(Prefix, Services, _), b: &(Prefix, Services, _)| (a.0, a.1) == (b.0, b.1);
        let networks = self.networks.chunk_by(same).filter_map(|rules| {
            let (prefix, services, _) = rules.first()?;
            let ends = rules.iter().map(|(.., end)| *end).collect::<Option<Vec<_>>>()?;
            Some((Some((*prefix, *services)), ends.into_iter().max()?))
        });
        self.observe_until.map(|end| (None, end)).into_iter().chain(networks).filter(|(_, end)| now < *end).collect()
    }

    /// Takes a client in that none of its prefixes has to hold.
    pub(super) fn receive(&mut self, client: Prefix) {
        if self.clients_connect {
            self.has_four |= client.addr().is_ipv4();
            self.has_six |= client.addr().is_ipv6();
            if let Err(at) = self.sources.binary_search(&client) {
                self.sources.insert(at, client);
            }
        }
    }

    /// Lets a client go that is placed elsewhere: its flows are that segment's.
    pub(super) fn release(&mut self, client: Prefix) {
        self.sources.retain(|source| *source != client);
    }

    /// True where a source of the segment has the family of `address`.
    pub(super) const fn reaches(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(_) => self.has_four,
            IpAddr::V6(_) => self.has_six,
        }
    }
}

/// A segment as one file has it.
pub(super) struct SegmentDraft {
    pub(super) segment: Segment,
    pub(super) clients: Vec<Placed<Prefix>>,
    pub(super) sources: Vec<Placed<Prefix>>,
    pub(super) certificates: Vec<Placed<Arc<str>>>,
}

/// Reads one `[[segment]]`; mistakes go to its document. `None` where it has no usable name.
pub(super) fn read(table: Table) -> Option<SegmentDraft> {
    let document = table.document().clone();
    let name = table.required_string("name").filter(|name| {
        let right = in_alphabet(&name.value);
        if !right {
            let remedy = "write 1 to 63 letters, digits, `_`, `.` or `-`";
            document.note(&name.span, format!("a segment cannot be named \"{}\"", name.value), remedy);
        }
        right
    });
    let clients = read_prefixes(&table, "clients").unwrap_or_default();
    let certificates = read_certificates(&table);
    let (tags, tags_json) = read_tags(&table);
    let observe_until = read_mode(&table);
    let asked_scope = one_of(&table, "scope", &[("client", GrantScope::Client), ("segment", GrantScope::Segment)]);
    let refusal = one_of(&table, "refusal", &Shown::ALL);
    let filter_aaaa = table.boolean("filter_aaaa").unwrap_or(false);
    let filters_at = table.span_of("filter_aaaa");
    let (clients_connect, others) = read_connects_from(&table);
    if clients_connect && !others.is_empty() && asked_scope != Some(GrantScope::Segment) {
        document.note(
            &table.span_of("connects_from"),
            "clients and others connect, so an opening for the one client that asked is not enough",
            "add scope = \"segment\", or leave \"client\" out",
        );
    }
    let scope = if clients_connect { asked_scope.unwrap_or(GrantScope::Client) } else { GrantScope::Segment };
    let mut sources = if clients_connect { clients.clone() } else { Vec::new() };
    sources.extend(others);
    let place = document.place(table.span());
    table.finish(&["group", "label_budget"]);

    let name: Arc<str> = Arc::from(name?.value);
    let mut prefixes: Vec<Prefix> = sources.iter().map(|source| source.value).collect();
    prefixes.sort_unstable();
    prefixes.dedup();
    if filter_aaaa && !prefixes.is_empty() && prefixes.iter().all(|prefix| prefix.addr().is_ipv6()) {
        document.note(
            &filters_at,
            "`filter_aaaa` in a segment whose sources are all IPv6: it could reach nothing",
            "remove it, or name its IPv4 prefixes",
        );
    }
    let segment = Segment {
        id: SegmentId::of(&name),
        name,
        place,
        tags,
        tags_json,
        observe_until,
        scope,
        refusal: refusal.unwrap_or(Shown::NxDomain),
        filter_aaaa,
        has_four: prefixes.iter().any(|prefix| prefix.addr().is_ipv4()),
        has_six: prefixes.iter().any(|prefix| prefix.addr().is_ipv6()),
        sources: prefixes,
        networks: Vec::new(),
        clients_connect,
    };
    Some(SegmentDraft { segment, clients, sources, certificates })
}

/// Names of hosts, as certificates hold them, and URIs.
fn read_certificates(table: &Table) -> Vec<Placed<Arc<str>>> {
    let document = table.document();
    let found = table.strings("certificates").unwrap_or_default();
    let names = found.iter().filter_map(|entry| {
        let uri = Some(&entry.value).filter(|text| text.contains(':') && text.len() <= MAX_URI);
        let name = uri.cloned().or_else(|| Name::parse(&entry.value).ok().map(|name| name.to_string()));
        if name.is_none() {
            let fact = format!("no certificate has the name \"{}\"", entry.value);
            document.note(&entry.span, fact, "write \"build.corp.example\" or \"spiffe://corp.example/build\"");
        }
        Some(Placed { value: name?.into(), place: document.place(&entry.span) })
    });
    names.collect()
}

/// A string that is one of a few words.
pub(super) fn one_of<T: Copy>(table: &Table, key: &'static str, words: &[(&str, T)]) -> Option<T> {
    let found = table.string(key)?;
    let value = words.iter().find(|(word, _)| *word == found.value).map(|(_, value)| *value);
    if value.is_none() {
        let words: Vec<_> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        let fact = format!("`{key}` cannot be \"{}\"", found.value);
        table.document().note(&found.span, fact, format!("write {}", words.join(" or ")));
    }
    value
}

/// Whether clients connect themselves, and who else does.
fn read_connects_from(table: &Table) -> (bool, Vec<Placed<Prefix>>) {
    let Some(found) = table.strings("connects_from") else { return (true, Vec::new()) };
    if found.is_empty() {
        let remedy = "leave it out, or name who connects";
        table.document().note(
            &table.span_of("connects_from"),
            "`connects_from` is empty: nobody could connect",
            remedy,
        );
    }
    let clients = found.iter().any(|entry| entry.value == "client");
    let others = found.iter().filter(|entry| entry.value != "client");
    (clients, others.filter_map(|entry| super::load::read_prefix(table.document(), entry)).collect())
}

fn read_mode(table: &Table) -> Option<Wall> {
    let document = table.document();
    let observe = match table.string("mode") {
        None => false,
        Some(mode) => match mode.value.as_str() {
            "enforce" => false,
            "observe" => true,
            "learn" => {
                document.note(
                    &mode.span,
                    "`mode` = \"learn\" is not supported by this version",
                    "write \"enforce\" or \"observe\"",
                );
                return None;
            }
            other => {
                document.note(&mode.span, format!("`mode` cannot be \"{other}\""), "write \"enforce\" or \"observe\"");
                return None;
            }
        },
    };
    match (observe, table.has("until")) {
        (false, false) => None,
        (false, true) => {
            let remedy = "remove it, or write mode = \"observe\"";
            document.note(
                &table.span_of("until"),
                "`until` is the end of observing, and this segment enforces",
                remedy,
            );
            None
        }
        (true, false) => {
            let remedy = "add until = 2026-12-31T00:00:00Z, the moment at which it begins to enforce";
            document.note(&table.span_of("mode"), "`mode` = \"observe\" has no end", remedy);
            None
        }
        (true, true) => table.moment("until"),
    }
}

fn read_tags(table: &Table) -> (Vec<(String, String)>, Box<str>) {
    let Some(tags_table) = table.table("tags") else { return (Vec::new(), "".into()) };
    let document = table.document();
    let mut tags = Vec::new();
    for (key, values) in tags_table.free_strings() {
        match <[_; 1]>::try_from(values) {
            Ok([value]) => tags.push((key.value, value.value)),
            Err(_) => {
                let fact = format!("the tag `{}` has not exactly one value", key.value);
                document.note(&key.span, fact, format!("write {} = \"…\"", key.value));
            }
        }
    }
    tags.sort();
    if tags.is_empty() {
        return (tags, "".into());
    }
    let object: serde_json::Map<String, serde_json::Value> =
        tags.iter().map(|(key, value)| (key.clone(), value.as_str().into())).collect();
    let json = serde_json::Value::Object(object).to_string();
    if tags.len() > MAX_TAGS || json.len() > MAX_TAGS_JSON {
        let fact = format!("{} tags of {} octets are too many: they are in every record", tags.len(), json.len());
        document.note(
            &table.span_of("tags"),
            fact,
            format!("keep to {MAX_TAGS} tags and {MAX_TAGS_JSON} octets of JSON"),
        );
    }
    (tags, json.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_without_ipv6_must_be_something() {
        let mistakes = |clients: &str| {
            let text = format!("[[segment]]\nname = \"s\"\nfilter_aaaa = true\n{clients}\n");
            let (document, root) = crate::document::Document::parse("a.toml", text);
            root.tables("segment").into_iter().for_each(|table| drop(read(table)));
            document.take_mistakes().iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let rows = [r#"clients = ["192.0.2.0/24", "2001:db8::/32"]"#, r#"clients = ["192.0.2.0/24"]"#, ""];
        for row in rows {
            assert_eq!(mistakes(row), [""; 0], "{row}");
        }
        let expected = "a.toml:3:15: `filter_aaaa` in a segment whose sources are all IPv6: it could reach nothing\n  \
                        remove it, or name its IPv4 prefixes";
        assert_eq!(mistakes(r#"clients = ["2001:db8::/32"]"#), [expected]);
    }
}
