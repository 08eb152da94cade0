//! The comparison and the replay, for people and as JSON.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;

use serde_json::{Value, json};

use super::replay::{Count, Effect, Replay};
use super::{Replayed, rate};
use crate::document::Place;
use crate::name::Name;
use crate::policy::{Change, Comparison, Moved, NameChange, NetworkChange, NetworkWord, SegmentChange, Word};
use crate::record::RecordType;

/// Names that are listed of one difference, and questions of one kind; JSON has all.
const LISTED: usize = 20;
/// Segments that are named on one line.
const NAMED: usize = 6;

const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
const YELLOW: &str = "\x1b[33m";
const RESET: &str = "\x1b[0m";

/// Everything but the replay.
pub(super) fn text(comparison: &Comparison, colour: bool) -> String {
    let Comparison { segments, moved, names, networks, left_out } = comparison;
    let mut out = String::new();
    for SegmentChange { segment, before, after, keys } in segments {
        let head = match (before, after) {
            (None, Some(place)) => paint(&format!("+ segment {segment}  {place}"), GREEN, colour),
            (Some(place), None) => paint(&format!("- segment {segment}  {place}"), RED, colour),
            (Some(before), Some(after)) => paint(&format!("~ segment {segment}  {before} → {after}"), YELLOW, colour),
            (None, None) => continue,
        };
        line(&mut out, &head);
        for (key, before, after) in keys {
            let shown = |value: &str| if value.is_empty() { "none".to_owned() } else { value.to_owned() };
            line(&mut out, &format!("    {key}: {} → {}", shown(before), shown(after)));
        }
    }
    for Moved { what, subject, before, after } in moved {
        let owner = |owner: &Option<(Arc<str>, Place)>| {
            owner.as_ref().map_or_else(|| "no segment".to_owned(), |(name, place)| format!("{name} ({place})"))
        };
        let (before, after) = (owner(before), owner(after));
        line(&mut out, &paint(&format!("~ {what} {subject}: {before} → {after}"), YELLOW, colour));
    }
    for NameChange { change, segments, names, types, before, after } in names {
        let (mark, shade) = sign(*change);
        let types: Vec<String> = types.iter().map(ToString::to_string).collect();
        let types = if types.is_empty() { String::new() } else { format!(" {}", types.join(" ")) };
        let head = format!("{mark} {}{types} for {}{}", change.as_str(), shortened(segments), meaning(*change));
        line(&mut out, &paint(&head, shade, colour));
        for name in names.iter().take(LISTED) {
            line(&mut out, &format!("    {name}"));
        }
        more(&mut out, names.len().saturating_sub(LISTED), "names");
        line(&mut out, &format!("      before: {}", said(before)));
        line(&mut out, &format!("      after:  {}", said(after)));
    }
    for NetworkChange { change, segments, network, services, ends, rules } in networks {
        let (mark, shade) = match change {
            NetworkWord::Opened | NetworkWord::Freed => ("+", GREEN),
            NetworkWord::Closed | NetworkWord::Denied => ("-", RED),
        };
        let services: String = services.iter().map(|services| format!(" {services}")).collect();
        let whom = if segments.is_empty() { "everybody".to_owned() } else { shortened(segments) };
        let ends = ends.map(|ends| format!(" until {ends}")).unwrap_or_default();
        let head = format!("{mark} {} {network}{services} for {whom}{ends}", change.as_str());
        line(&mut out, &paint(&head, shade, colour));
        let side = if matches!(change, NetworkWord::Opened | NetworkWord::Denied) { "after: " } else { "before:" };
        line(&mut out, &format!("      {side} {}", ruled(rules)));
    }
    for sentence in left_out {
        line(&mut out, &paint(&format!("! {sentence}"), YELLOW, colour));
    }
    out
}

/// The replay, behind the comparison.
pub(super) fn replay_text(replayed: &Replayed, colour: bool) -> String {
    let Replayed { replay, read, took } = replayed;
    let mut out = String::new();
    let by_change = by_change(replay);
    for (change, rows) in &by_change {
        let (mark, shade) = sign(*change);
        let queries: u64 = rows.iter().map(|row| row.count.queries).sum();
        let clients: HashSet<&IpAddr> = rows.iter().map(|row| &row.client).collect();
        let clients = clients.len();
        let head = format!("{mark} {queries} recorded queries of {clients} clients {}", replayed_as(*change));
        line(&mut out, &paint(&head, shade, colour));
        for Row { client, name, kind, effect, count } in rows.iter().take(LISTED) {
            let Count { queries, last } = count;
            line(&mut out, &format!("    {queries:>8} {client} {name} {kind}, last {last}"));
            line(&mut out, &format!("             {} → {}", said(&effect.before), said(&effect.after)));
        }
        more(&mut out, rows.len().saturating_sub(LISTED), "questions");
    }
    if replay.unlisted > 0 {
        line(&mut out, &format!("! {} queries more differ; there was no room to list them", replay.unlisted));
    }
    if replay.unreadable > 0 {
        line(&mut out, &format!("{} queries had no name or type that can be read", replay.unreadable));
    }
    let span = replay.span.map(|(first, last)| format!(" from {first} to {last}")).unwrap_or_default();
    let differing: u64 = replay.rows.values().map(|count| count.queries).sum::<u64>() + replay.unlisted;
    let (seconds, rate) = (took.as_secs_f64(), rate(read.queries, *took));
    line(&mut out, &format!("replayed {read}"));
    line(&mut out, &format!("{differing} differ;{span}; {seconds:.1} s, {rate} queries a second"));
    out
}

/// Everything but the replay.
pub(super) fn json(comparison: &Comparison) -> Value {
    let Comparison { segments, moved, names, networks, left_out } = comparison;
    let place = |place: &Option<Place>| place.as_ref().map(ToString::to_string);
    let owner = |owner: &Option<(Arc<str>, Place)>| {
        owner.as_ref().map(|(name, place)| json!({ "segment": &**name, "place": place.to_string() }))
    };
    let listed = |segments: &[Arc<str>]| segments.iter().map(ToString::to_string).collect::<Vec<_>>();
    let segments: Vec<Value> = segments
        .iter()
        .map(|change| {
            let keys =
                change.keys.iter().map(|(key, before, after)| json!({ "key": key, "before": before, "after": after }));
            json!({
                "segment": &*change.segment, "before": place(&change.before), "after": place(&change.after),
                "keys": keys.collect::<Vec<_>>(),
            })
        })
        .collect();
    let moved = moved.iter().map(|moved| {
        json!({
            "what": moved.what, "subject": moved.subject,
            "before": owner(&moved.before), "after": owner(&moved.after),
        })
    });
    let names: Vec<Value> = names
        .iter()
        .map(|change| {
            let types: Vec<String> = change.types.iter().map(ToString::to_string).collect();
            json!({
                "change": change.change.as_str(), "segments": listed(&change.segments), "names": change.names,
                "types": types, "before": word_json(&change.before), "after": word_json(&change.after),
            })
        })
        .collect();
    let networks: Vec<Value> = networks
        .iter()
        .map(|change| {
            let services: Vec<String> = change.services.iter().map(ToString::to_string).collect();
            json!({
                "change": change.change.as_str(), "segments": listed(&change.segments),
                "network": change.network.to_string(), "services": services,
                "until": change.ends.map(|ends| ends.to_string()), "rules": rules_json(&change.rules),
            })
        })
        .collect();
    json!({
        "segments": segments, "moved": moved.collect::<Vec<_>>(), "names": names, "networks": networks,
        "left_out": left_out,
    })
}

/// The replay.
pub(super) fn replay_json(replayed: &Replayed) -> Value {
    let Replayed { replay, read, took } = replayed;
    let rows = by_change(replay).into_values().flatten();
    let rows: Vec<Value> = rows
        .map(|Row { client, name, kind, effect, count }| {
            json!({
                "change": effect.change.as_str(), "client": client.to_string(), "qname": name.to_string(),
                "qtype": kind.to_string(), "queries": count.queries, "last": count.last.to_string(),
                "before": word_json(&effect.before), "after": word_json(&effect.after),
            })
        })
        .collect();
    json!({
        "questions": rows, "queries_not_listed": replay.unlisted, "queries_not_readable": replay.unreadable,
        "first": replay.span.map(|(first, _)| first.to_string()),
        "last": replay.span.map(|(_, last)| last.to_string()),
        "read": {
            "files": read.files, "bytes": read.bytes, "queries": read.queries, "other_records": read.others,
            "damaged": read.damaged, "faults": read.faults, "faults_not_listed": read.unlisted,
        },
        "took_ms": u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
    })
}

/// One question of one client.
struct Row<'a> {
    client: IpAddr,
    name: &'a Name,
    kind: RecordType,
    effect: &'a Effect,
    count: Count,
}

/// What becomes otherwise, the most frequent question first.
fn by_change(replay: &Replay) -> BTreeMap<Change, Vec<Row<'_>>> {
    let mut all: BTreeMap<Change, Vec<Row<'_>>> = BTreeMap::new();
    for ((client, name, kind, effect), count) in &replay.rows {
        let Some(effect) = replay.effect(*effect) else { continue };
        all.entry(effect.change).or_default().push(Row { client: *client, name, kind: *kind, effect, count: *count });
    }
    for rows in all.values_mut() {
        rows.sort_by_key(|row| (Reverse(row.count.queries), row.name.to_string(), row.kind, row.client));
    }
    all
}

/// What a replayed query would be.
const fn replayed_as(change: Change) -> &'static str {
    match change {
        Change::Allowed => "would be allowed, and were not",
        Change::Denied => "would be refused, and were not",
        Change::Widened => "would open more",
        Change::Narrowed => "would open less",
        Change::Altered | Change::Barred | Change::Unbarred => "would open something else",
    }
}

const fn meaning(change: Change) -> &'static str {
    match change {
        Change::Barred => ": answers that lead there are withheld",
        Change::Unbarred => ": answers may lead there",
        _ => "",
    }
}

const fn sign(change: Change) -> (&'static str, &'static str) {
    match change {
        Change::Allowed | Change::Widened | Change::Unbarred => ("+", GREEN),
        Change::Denied | Change::Narrowed | Change::Barred => ("-", RED),
        Change::Altered => ("~", YELLOW),
    }
}

fn said(word: &Word) -> String {
    let verdict = match word.verdict {
        "allow" => "allowed",
        "deny" => "refused",
        "observe" => "refused, not enforced",
        _ => "answered by the node",
    };
    let rules = if word.verdict == "answer" { String::new() } else { format!(", {}", ruled(&word.rules)) };
    let opens = if word.opens.is_empty() { String::new() } else { format!(": {}", word.opens.join(", ")) };
    format!("{verdict}{rules}{opens}")
}

fn ruled(rules: &[(Arc<str>, Place)]) -> String {
    match rules {
        [] => "no rule".to_owned(),
        rules => rules.iter().map(|(id, place)| format!("{id} ({place})")).collect::<Vec<_>>().join(", "),
    }
}

fn word_json(word: &Word) -> Value {
    json!({ "verdict": word.verdict, "rules": rules_json(&word.rules), "opens": word.opens })
}

fn rules_json(rules: &[(Arc<str>, Place)]) -> Vec<Value> {
    rules.iter().map(|(id, place)| json!({ "id": &**id, "place": place.to_string() })).collect()
}

fn shortened(segments: &[Arc<str>]) -> String {
    let named = segments.iter().take(NAMED).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    match segments.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named} and {more} segments more"),
    }
}

fn more(out: &mut String, count: usize, what: &str) {
    if count > 0 {
        line(out, &format!("    and {count} {what} more"));
    }
}

fn line(out: &mut String, text: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{text}");
}

fn paint(text: &str, shade: &str, colour: bool) -> String {
    if colour { format!("{shade}{text}{RESET}") } else { text.to_owned() }
}
