//! What every format does with every record, and with what others fill in.

mod shipped;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::mapping::{ALL, CHANGE, FLOW, GRANT, LOG, OTHER, POLICY, QUERY, Row, Source};
use super::{FORMATS, Format, Framing, ecs, ocsf};
use crate::audit::FIELDS;
use crate::audit::fixture::hostile;
use crate::audit::format::json::is_hidden;

const TYPES: [(u8, &str); 7] = [
    (QUERY, "query"),
    (GRANT, "grant"),
    (FLOW, "flow"),
    (POLICY, "policy"),
    (CHANGE, "change"),
    (LOG, "log"),
    (OTHER, "summary"),
];

/// What a line is in a format; `None`: it has no form.
fn converted(format: &str, line: &str) -> Option<String> {
    let format = FORMATS.iter().find(|known| known.name == format).unwrap();
    let mut out = b"before".to_vec();
    let has_form = (format.write)(line, &mut out);
    let text = String::from_utf8(out).unwrap().strip_prefix("before").unwrap().to_owned();
    assert_eq!(has_form, !text.is_empty());
    has_form.then_some(text)
}

fn object(format: &str, line: &Value) -> Value {
    serde_json::from_str(&converted(format, &line.to_string()).unwrap()).unwrap()
}

fn head(kind: &str) -> Map<String, Value> {
    let head = json!({"v": 1, "type": kind, "id": "7f3a91c20b1d44e0-3-1829331", "ts": "2026-11-21T03:53:04.117302Z", "node": "og-eu1-a"});
    head.as_object().unwrap().clone()
}

fn record(kind: &str, fields: Value) -> Value {
    let mut record = head(kind);
    record.extend(fields.as_object().unwrap().clone());
    Value::Object(record)
}

/// A record with every field that [`FIELDS`] has for it, as their kinds say.
fn complete(record: &str) -> Value {
    fn place<'v>(value: &'v mut Value, name: &str) -> &'v mut Value {
        match name.split_once("[].") {
            Some((list, rest)) => {
                let list = &mut value[list];
                if list.as_array().is_none_or(Vec::is_empty) {
                    *list = json!([{}]);
                }
                place(&mut list[0], rest)
            }
            None => match name.split_once('.') {
                Some((object, rest)) => place(&mut value[object], rest),
                None => &mut value[name],
            },
        }
    }
    let mut line = Value::Object(head(record.split(' ').next().unwrap()));
    for field in FIELDS.iter().filter(|field| field.record == record) {
        let op = record.split_once(' ').map(|(_, op)| op);
        let value = match (field.name, field.kind) {
            ("op", _) => json!(op.unwrap_or("open")),
            ("verdict", _) => json!("allow"),
            ("rcode", _) => json!("NOERROR"),
            ("answers[].type", _) => json!("A"),
            ("answers[].data", _) => json!("198.51.100.7"),
            ("flags", _) => json!(["RD", "RA"]),
            ("transport", _) => json!("udp"),
            ("service", _) => json!("tcp/443"),
            ("sequences" | "tags" | "labels", _) => json!({"1": "7"}),
            (_, "integer") => json!(7),
            (_, "address") => json!("192.0.2.1"),
            (_, "time") => json!("2026-11-21T03:53:05.000000Z"),
            (name, "list") if FIELDS.iter().any(|field| field.name.starts_with(&format!("{name}[]."))) => json!([]),
            (_, "list") => json!(["x"]),
            (_, "object") => json!({}),
            (_, "boolean") => json!(false),
            (_, "name") => json!("api.example.com"),
            _ => json!("x"),
        };
        let place = place(&mut line, field.name);
        if place.is_null() {
            *place = value;
        }
    }
    line
}

/// Records of every type and operation, and of every verdict.
fn records() -> Vec<Value> {
    let mut kinds: Vec<&str> = FIELDS.iter().map(|field| field.record).filter(|record| *record != "*").collect();
    kinds.dedup();
    let mut records: Vec<Value> = kinds.into_iter().map(complete).collect();
    records.extend(judged().into_iter().map(|(record, ..)| record));
    for (kind, ops) in [
        ("grant", &["open", "extend", "shorten", "revoke", "fail", "adopt"][..]),
        ("policy", &["load", "reload", "refused", "promote", "revert"]),
        ("change", &["allow", "deny", "retract", "end", "load", "place", "take_out", "feed", "revoke", "forget"]),
        ("log", &["open", "reopen", "rotate", "removed", "heartbeat", "gap", "close", "later"]),
        ("flow", &["open", "close", "refuse", "seen"]),
    ] {
        if !matches!(kind, "grant" | "flow") {
            records.extend(ops.iter().map(|op| record(kind, json!({"op": op}))));
        }
        records.extend(ops.iter().map(|op| record(kind, json!({"op": op, "client": "hmac:9f86d081", "address": "198.51.100.7", "file": "a.jsonl", "by": "root (0)", "why": "x"}))));
    }
    records.push(record("summary", json!({"count": 3})));
    records.push(record("query", json!({"client": "10.20.7.0/24", "verdict": "deny", "reason": "malformed"})));
    records
}

/// Records and what they are said to be: action, disposition, severity, status, alert; outcome.
fn judged() -> Vec<(Value, [u64; 4], bool, &'static str)> {
    let query = |fields: Value| {
        let all = json!({"client": "10.20.7.31", "port": 40112, "transport": "dot", "segment": "checkout", "qid": 4711,
            "qname": "api.stripe.com", "qtype": "A", "tags": {"service": "checkout", "risk": "high"}, "latency_us": 42});
        let mut record = record("query", all);
        record.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        record
    };
    let flow = |fields: Value| {
        let all = json!({"client": "10.20.7.31", "port": 40112, "segment": "checkout", "address": "2001:db8::7",
            "service": "tcp/443", "bytes_out": 10, "bytes_in": 20, "source": "conntrack"});
        let mut record = record("flow", all);
        record.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        record
    };
    let calm = json!({"service": "checkout"});
    vec![
        (query(json!({"verdict": "allow", "reason": "rule", "rcode": "NOERROR"})), [1, 1, 1, 1], false, "success"),
        (query(json!({"verdict": "allow", "reason": "rule", "rcode": "NXDOMAIN"})), [1, 1, 1, 1], false, "failure"),
        (query(json!({"verdict": "deny", "reason": "default", "rcode": "NXDOMAIN"})), [2, 2, 3, 2], true, "failure"),
        (
            query(json!({"verdict": "deny", "reason": "default", "rcode": "NXDOMAIN", "tags": calm})),
            [2, 2, 2, 2],
            false,
            "failure",
        ),
        (
            query(json!({"verdict": "deny", "reason": "no_segment", "rcode": "REFUSED", "tags": calm})),
            [2, 26, 2, 2],
            false,
            "failure",
        ),
        (query(json!({"verdict": "deny", "reason": "rate", "tags": calm})), [2, 6, 2, 2], false, "failure"),
        (
            query(json!({"verdict": "deny", "enforced": false, "reason": "default", "rcode": "NOERROR"})),
            [3, 15, 2, 1],
            false,
            "success",
        ),
        (
            query(json!({"verdict": "error", "reason": "upstream", "rcode": "SERVFAIL"})),
            [99, 27, 2, 2],
            false,
            "failure",
        ),
        (
            flow(
                json!({"op": "close", "action": "allow", "class": "exact", "qname": "api.stripe.com", "end": "2026-11-21T03:53:05.000000Z", "duration_us": 882698}),
            ),
            [1, 1, 1, 1],
            false,
            "success",
        ),
        (
            flow(
                json!({"op": "close", "action": "allow", "class": "ambiguous", "detail": "mixed", "names": [{"qname": "a.example"}, {"qname": "b.example"}]}),
            ),
            [1, 1, 2, 1],
            false,
            "success",
        ),
        (
            flow(
                json!({"op": "refuse", "action": "deny", "class": "none", "detail": "denied_name", "qname": "x.example"}),
            ),
            [2, 2, 4, 2],
            true,
            "failure",
        ),
        (
            flow(json!({"op": "seen", "action": "allow", "class": "none", "detail": "denied_name", "service": "icmp"})),
            [1, 19, 4, 1],
            true,
            "success",
        ),
        (
            flow(
                json!({"op": "open", "action": "allow", "class": "none", "detail": "unknown_address", "service": "protocol/47"}),
            ),
            [1, 1, 3, 1],
            false,
            "success",
        ),
        (
            flow(json!({"op": "refuse", "action": "deny", "class": "stale", "detail": "grace", "qname": "x.example"})),
            [2, 2, 2, 2],
            false,
            "failure",
        ),
        (
            flow(json!({"op": "close", "action": "allow", "class": "static", "rule": "ntp"})),
            [1, 1, 1, 1],
            false,
            "success",
        ),
        (
            flow(json!({"op": "close", "action": "allow", "class": "unknown", "detail": "start", "started": false})),
            [1, 1, 1, 1],
            false,
            "success",
        ),
    ]
}

/// The paths and values of what is no object; lists are passed through.
fn leaves<'v>(value: &'v Value, path: &str, found: &mut Vec<(String, &'v Value)>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                leaves(member, &path, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| leaves(item, path, found)),
        leaf => found.push((path.to_owned(), leaf)),
    }
}

/// Panics where something goes out that no row names.
fn assert_listed(rows: &[Row], rest: &str, line: &Value, out: &Value) {
    let of = Fields::read(&line.to_string()).unwrap().of();
    let mut found = Vec::new();
    leaves(out, "", &mut found);
    for (path, _) in found {
        let listed = rows.iter().any(|row| row.of & of != 0 && (row.to == path || path.starts_with("labels.")));
        assert!(listed || path.starts_with(&format!("{rest}.")), "{path} is in no row: {out}");
    }
}

#[test]
fn ecs_has_the_fields_and_types_of_8_17() {
    let list = include_str!("../../../../tests/schemas/ecs-8.17.tsv");
    let types: BTreeMap<&str, &str> = list.lines().filter_map(|line| line.split_once('\t')).collect();
    for row in ecs::ROWS.iter().filter(|row| !matches!(row.from, Source::Rest)) {
        assert!(types.contains_key(row.to), "{} is no field of ECS", row.to);
    }
    for record in records() {
        let out = object("ecs", &record);
        assert_listed(ecs::ROWS, "outgate", &record, &out);
        let mut found = Vec::new();
        leaves(&out, "", &mut found);
        for (path, value) in found.into_iter().filter(|(path, _)| !path.starts_with("outgate.")) {
            let kind = types.get(if path.starts_with("labels.") { "labels" } else { path.as_str() }).unwrap();
            let text = value.as_str();
            let fits = match *kind {
                "keyword" | "match_only_text" | "object" => text.is_some(),
                "ip" => text.is_some_and(|text| text.parse::<std::net::IpAddr>().is_ok()),
                "date" => text.is_some_and(|text| crate::audit::read::micros(text).is_some()),
                "long" => value.is_u64(),
                other => panic!("{path} has the type {other}"),
            };
            assert!(fits, "{path} is no {kind}: {value}");
        }
    }
}

#[test]
fn ocsf_is_valid_by_the_schema_of_1_8_0() {
    let schema: Value = serde_json::from_str(include_str!("../../../../tests/schemas/ocsf-1.8.0.json")).unwrap();
    let classes: BTreeMap<&str, jsonschema::Validator> = schema["classes"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(uid, class)| {
            let mut class = class.clone();
            class["$defs"] = schema["$defs"].clone();
            (uid.as_str(), jsonschema::options().should_validate_formats(true).build(&class).unwrap())
        })
        .collect();
    let mut seen = Vec::new();
    for record in records() {
        let out = object("ocsf", &record);
        assert_listed(ocsf::ROWS, "unmapped", &record, &out);
        let uid = out["class_uid"].to_string();
        let faults: Vec<String> =
            classes[uid.as_str()].iter_errors(&out).map(|fault| format!("{} {fault}", fault.instance_path())).collect();
        assert!(faults.is_empty(), "{}\n{record}\n{out}", faults.join("\n"));
        assert_eq!(
            out["type_uid"].as_u64().unwrap(),
            out["class_uid"].as_u64().unwrap() * 100 + out["activity_id"].as_u64().unwrap()
        );
        seen.push(uid);
    }
    assert!(classes.keys().all(|uid| seen.iter().any(|seen| seen == uid)));
    // The schema itself finds what is wrong.
    let mut wrong = object("ocsf", &records()[0]);
    wrong["rcode_id"] = json!(12);
    wrong["query"].as_object_mut().unwrap().remove("hostname");
    wrong["surplus"] = json!(1);
    wrong["src_endpoint"]["ip"] = json!("10.0.0.0/8");
    assert_eq!(classes["4003"].iter_errors(&wrong).count(), 4);
}

#[test]
fn verdicts_are_judged() {
    for (record, judgement, alert, outcome) in judged() {
        let out = object("ocsf", &record);
        let told = ["action_id", "disposition_id", "severity_id", "status_id"].map(|key| out[key].as_u64().unwrap());
        assert_eq!((told, out["is_alert"].as_bool().unwrap()), (judgement, alert), "{record}");
        assert_eq!(object("ecs", &record)["event"]["outcome"], outcome, "{record}");
    }
}

#[test]
fn an_object_is_opened_once() {
    for rows in [ecs::ROWS, ocsf::ROWS] {
        for (of, kind) in TYPES {
            let mut closed: Vec<&str> = Vec::new();
            let mut keys: Vec<&str> = Vec::new();
            let mut last = "";
            for row in rows.iter().filter(|row| row.of & of != 0 && !matches!(row.from, Source::Within(_))) {
                let object = match row.from {
                    Source::Rest => row.to,
                    _ => row.to.rsplit_once('.').map_or("", |(object, _)| object),
                };
                assert!(
                    !closed.contains(&object) && !keys.contains(&row.to),
                    "{kind}: {} is not with its like",
                    row.to
                );
                let mut open = last;
                while !object.starts_with(open)
                    || !(object.len() == open.len() || open.is_empty() || object[open.len()..].starts_with('.'))
                {
                    closed.push(open);
                    open = open.rsplit_once('.').map_or("", |(outer, _)| outer);
                }
                (last, _) = (object, keys.push(row.to));
            }
        }
    }
}

#[test]
fn nothing_is_lost() {
    // What no row holds whole is in the rest; what one does is not.
    for record in records() {
        let (line, ecs, ocsf) = (record.to_string(), object("ecs", &record), object("ocsf", &record));
        let fields = Fields::read(&line).unwrap();
        for (name, value) in record.as_object().unwrap() {
            for (out, rest, rows) in [(&ecs, "outgate", ecs::ROWS), (&ocsf, "unmapped", ocsf::ROWS)] {
                let whole = rows.iter().filter(|row| row.of & fields.of() != 0).any(|row| match row.from {
                    Source::Field(field) => field == name,
                    Source::Made { whole, .. } => whole.contains(&name.as_str()),
                    _ => false,
                });
                assert!(whole || out[rest][name] == *value, "{name} is lost: {out}");
            }
        }
    }
}

#[test]
fn hostile_names_are_one_record_each_in_every_format() {
    for (name, line) in hostile() {
        let asked = name.to_string();
        let native: Value = serde_json::from_str(&line).unwrap();
        for Format { name: format, .. } in FORMATS.iter().filter(|format| format.framing == Framing::Lines) {
            let out = converted(format, &line).unwrap();
            assert!(!out.contains(['\n', '\r']), "{format}: {out:?}");
            let found =
                |pointer| serde_json::from_str::<Value>(&out).unwrap().pointer(pointer)?.as_str().map(str::to_owned);
            let (names, why) = match *format {
                "json" => ([found("/qname"), found("/answers/0/name"), found("/answers/0/data")], found("/why")),
                "ecs" => (
                    [found("/dns/question/name"), found("/dns/answers/0/data"), found("/related/hosts/0")],
                    found("/message"),
                ),
                "ocsf" => (
                    [found("/query/hostname"), found("/answers/0/rdata"), found("/observables/0/value")],
                    found("/message"),
                ),
                "text" => {
                    assert!(!out.chars().any(is_hidden), "{out:?}");
                    assert!(out.contains(&format!(" {asked} → ")), "{out}");
                    continue;
                }
                other => panic!("say where {other} has its name"),
            };
            assert_eq!(names, [(); 3].map(|()| Some(asked.clone())), "{format} {out}");
            assert_eq!(why.as_deref(), native["why"].as_str(), "{format}");
        }
    }
}

#[test]
fn a_name_has_its_parts_by_the_public_suffix_list() {
    for (name, registered, subdomain, suffix) in [
        ("www.api.example.co.uk", Some("example.co.uk"), Some("www.api"), Some("co.uk")),
        ("example.com", Some("example.com"), None, Some("com")),
        ("com", None, None, Some("com")),
        ("db.corp", Some("db.corp"), None, Some("corp")),
        (r"a\.b.c\\.example.org", Some("example.org"), Some(r"a\.b.c\\"), Some("org")),
        (r"\.", None, None, Some(r"\.")),
        (".", None, None, None),
    ] {
        let out = object("ecs", &record("query", json!({"verdict": "allow", "reason": "rule", "qname": name})));
        let question = &out["dns"]["question"];
        let told = ["registered_domain", "subdomain", "top_level_domain"].map(|key| question[key].as_str());
        assert_eq!(told, [registered, subdomain, suffix], "{name}");
    }
}

#[test]
fn what_is_no_record_has_no_form() {
    for line in [
        "",
        "noise",
        "[]",
        "{}",
        "null",
        r#"{"type":"query"}"#,
        r#"{"type":"query","id":"1-1-1","ts":"later"}"#,
        r#"{"type":1,"id":"1","ts":"2026-11-21T03:53:04.117302Z"}"#,
    ] {
        for format in ["ecs", "ocsf"] {
            assert_eq!(converted(format, line), None, "{line}");
        }
    }
}

/// One table per mapping, as docs/siem.md holds it.
fn table(rows: &[Row]) -> String {
    let mut table = "| field | records | from |\n|---|---|---|\n".to_owned();
    for row in rows {
        let of: Vec<&str> =
            TYPES.iter().filter(|(bit, _)| row.of & bit != 0 && *bit != OTHER).map(|(_, kind)| *kind).collect();
        let of = if row.of & ALL == ALL { "all".to_owned() } else { of.join(", ") };
        let (to, from) = match row.from {
            Source::Field(name) => (row.to.to_owned(), format!("`{name}`")),
            Source::Text(text) => (row.to.to_owned(), format!("\"{text}\"")),
            Source::Number(number) => (row.to.to_owned(), number.to_string()),
            Source::Made { how, .. } | Source::Within(how) => (row.to.to_owned(), how.to_owned()),
            Source::Rest => {
                (format!("{}.*", row.to), "every field that no row above holds whole, by its own name".to_owned())
            }
        };
        writeln!(table, "| `{to}` | {of} | {from} |").unwrap();
    }
    table
}

/// `OUTGATE_WRITE_DOCS=1 cargo test --lib audit::format` writes the tables anew.
#[test]
fn the_document_has_every_row() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/siem.md");
    let document = std::fs::read_to_string(path).unwrap();
    let mut expected = document.clone();
    for (name, rows) in [("ecs", ecs::ROWS), ("ocsf", ocsf::ROWS)] {
        let (begin, end) = (format!("<!-- rows: {name} -->\n"), "<!-- end -->");
        let from = expected.find(&begin).unwrap() + begin.len();
        let to = from + expected[from..].find(end).unwrap();
        expected.replace_range(from..to, &table(rows));
    }
    if std::env::var_os("OUTGATE_WRITE_DOCS").is_some() {
        std::fs::write(path, expected).unwrap();
    } else {
        assert!(document == expected, "run OUTGATE_WRITE_DOCS=1 cargo test --lib audit::format");
    }
}

proptest! {
    #[test]
    fn foreign_lines_do_no_harm(
        number in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        noise in ".{0,40}",
    ) {
        let records = records();
        let mut line = records[number.index(records.len())].to_string().into_bytes();
        let at = at.index(line.len());
        line[at] = byte;
        for line in [String::from_utf8_lossy(&line).replace('\n', " "), noise] {
            for format in ["ecs", "ocsf"] {
                if let Some(out) = converted(format, &line) {
                    prop_assert!(!out.contains('\n'));
                    prop_assert!(serde_json::from_str::<Value>(&out).is_ok(), "{}", out);
                }
            }
        }
    }
}
