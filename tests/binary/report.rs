//! `outgate report`: a recorded log becomes tables, to the letter.

use serde_json::{Value, json};

use crate::harness::{Ended, Site};

const POLICY: &str = r#"
[[segment]]
name    = "office"
clients = ["192.0.2.0/24"]
[segment.tags]
team    = "web"

[[rule]]
id       = "shop"
action   = "allow"
segments = ["office"]
names    = ["shop.example.com", "img.example.com", "old.example.com"]
owner    = "web"
ticket   = "NET-7"

[[rule]]
id       = "legacy"
action   = "allow"
segments = ["office"]
names    = ["*.example.net"]
owner    = "ops"
ticket   = "NET-9"
"#;

struct Log(String, u64);

impl Log {
    fn line(&mut self, kind: &str, ts: &str, fields: &Value) {
        self.1 += 1;
        let id = format!("1-1-{}", self.1);
        let ts = format!("2026-11-{ts}:00.000000Z");
        let fields = fields.to_string();
        let head = format!("{{\"v\":1,\"type\":\"{kind}\",\"id\":\"{id}\",\"ts\":\"{ts}\",\"node\":\"test\",");
        self.0.push_str(&format!("{head}{}\n", &fields[1..]));
    }

    fn asked(&mut self, ts: &str, client: u8, qname: &str, said: &Value) {
        let mut fields = json!({
            "client": format!("192.0.2.{client}"), "segment": "office", "tags": { "team": "web" }, "qname": qname,
            "qtype": "A",
        });
        fields.as_object_mut().unwrap().extend(said.as_object().unwrap().clone());
        self.line("query", ts, &fields);
    }

    fn allowed(&mut self, ts: &str, client: u8, qname: &str, rule: &str, address: &str) {
        let told = json!({
            "verdict": "allow", "reason": "rule", "rule": rule, "rcode": "NOERROR",
            "answers": [{ "name": qname, "type": "A", "ttl": 60, "data": address }],
            "grant": { "ports": ["tcp/443"], "until": "2026-11-20T10:05:00.000000Z" },
        });
        self.asked(ts, client, qname, &told);
        let id = format!("1-1-{}", self.1);
        self.line(
            "grant",
            ts,
            &json!({
                "op": "open", "client": format!("192.0.2.{client}"), "scope": "client", "segment": "office",
                "rule": rule, "qname": qname, "address": address, "ports": ["tcp/443"],
                "until": "2026-11-20T10:05:00.000000Z", "query": id,
            }),
        );
    }

    fn flow(&mut self, ts: &str, op: &str, address: &str, class: &str, said: &Value) {
        let mut fields = json!({
            "op": op, "client": "192.0.2.1", "segment": "office", "tags": { "team": "web" }, "address": address,
            "service": "tcp/443", "action": if op == "refuse" { "deny" } else { "allow" }, "class": class,
            "source": "conntrack",
        });
        fields.as_object_mut().unwrap().extend(said.as_object().unwrap().clone());
        self.line("flow", ts, &fields);
    }
}

/// A day of history and one to report of; with or without flows.
fn log(flows: bool) -> String {
    let mut log = Log(String::new(), 0);
    log.allowed("19T09:00", 1, "old.example.com", "shop", "198.51.100.9");
    log.allowed("19T09:01", 1, "shop.example.com", "shop", "198.51.100.7");
    log.line("policy", "19T12:00", &json!({ "op": "reload", "policy": "1", "changes": { "rules_added": ["legacy"] } }));
    log.allowed("20T10:00", 1, "shop.example.com", "shop", "198.51.100.7");
    log.allowed("20T10:00", 2, "img.example.com", "shop", "198.51.100.7");
    log.asked(
        "20T10:01",
        2,
        "a.evil.example.org",
        &json!({ "verdict": "deny", "reason": "default", "rcode": "NXDOMAIN" }),
    );
    log.asked(
        "20T10:02",
        1,
        "b.evil.example.org",
        &json!({ "verdict": "deny", "reason": "default", "rcode": "NXDOMAIN" }),
    );
    log.asked(
        "20T10:03",
        1,
        "b.evil.example.org",
        &json!({ "verdict": "deny", "reason": "default", "rcode": "NXDOMAIN" }),
    );
    let passed = json!({
        "segment": "lab", "verdict": "deny", "enforced": false, "reason": "default", "rcode": "NOERROR",
        "answers": [{ "name": "blog.example.org", "type": "A", "ttl": 60, "data": "198.51.100.7" }],
    });
    log.asked("20T10:03", 9, "blog.example.org", &passed);
    if flows {
        let exact = json!({ "qname": "shop.example.com", "rule": "shop", "query": "1-1-6", "bytes_out": 1000, "bytes_in": 95000 });
        log.flow("20T10:00", "open", "198.51.100.7", "exact", &exact);
        log.flow("20T10:00", "close", "198.51.100.7", "exact", &exact);
        let names =
            json!([{ "qname": "img.example.com", "rule": "shop" }, { "qname": "shop.example.com", "rule": "shop" }]);
        log.flow(
            "20T10:01",
            "close",
            "198.51.100.7",
            "ambiguous",
            &json!({ "detail": "same_rule", "rule": "shop", "names": names, "bytes_out": 500, "bytes_in": 2500 }),
        );
        log.flow(
            "20T10:04",
            "close",
            "203.0.113.9",
            "none",
            &json!({ "detail": "unknown_address", "bytes_out": 900, "bytes_in": 100 }),
        );
        log.flow("20T10:04", "refuse", "203.0.113.9", "none", &json!({ "detail": "unknown_address" }));
        let late = json!({ "detail": "cached", "qname": "shop.example.com", "rule": "shop", "query": "1-1-6", "late_us": 41_000_000 });
        log.flow("20T10:06", "refuse", "198.51.100.7", "stale", &late);
    }
    log.0
}

fn site(flows: bool) -> Site {
    let site = Site::new();
    site.file("policy/loop.toml", POLICY);
    site.file("log/query.jsonl", &log(flows));
    site
}

const SINCE: &[&str] = &["--since", "2026-11-20T00:00:00Z", "--log", "log/query.jsonl"];

fn report(site: &Site, arguments: &[&str]) -> Ended {
    let ended = site.run(&[&["report"], arguments, SINCE].concat());
    assert_eq!(ended.code, Some(0), "{arguments:?}: {}", ended.stderr);
    ended
}

#[test]
fn a_recorded_log_becomes_these_tables() {
    let site = site(true);
    let mut text = String::new();
    for arguments in [
        ["top"].as_slice(),
        &["top", "--by", "tag:team"],
        &["blocked", "--by", "domain"],
        &["new"],
        &["unused"],
        &["exposure"],
        &["late"],
        &["bypass"],
    ] {
        text.push_str(&format!("$ outgate report {}\n{}\n", arguments.join(" "), report(&site, arguments).stdout));
    }
    let golden = include_str!("report.txt");
    // Written anew on request, to be read before it is believed.
    if std::env::var_os("OUTGATE_GOLDEN").is_some() {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/binary/report.txt"), &text).unwrap();
    } else {
        assert_eq!(text, golden);
    }
}

#[test]
fn rows_and_other_are_the_total() {
    let site = site(true);
    for (arguments, key, sums) in [
        (["top", "--by", "name"].as_slice(), "rows", ["bytes_out", "bytes_in", "flows"].as_slice()),
        (&["top", "--by", "rule"], "rows", &["bytes_out", "bytes_in", "flows"]),
        (&["top", "--by", "segment"], "rows", &["bytes_out", "bytes_in", "flows"]),
        (&["blocked"], "names", &["count"]),
        (&["blocked"], "destinations", &["count"]),
    ] {
        for limit in ["1", "2", "20"] {
            let ended = report(&site, &[arguments, &["--json", "--limit", limit]].concat());
            let said: Value = serde_json::from_str(&ended.stdout).unwrap();
            let table = &said[key];
            for sum in sums {
                let rows = table["rows"].as_array().unwrap().iter().chain(table.get("other"));
                let rows: u64 = rows.map(|row| row[sum].as_u64().unwrap()).sum();
                assert_eq!(table["total"][sum].as_u64(), Some(rows), "{arguments:?} {limit} {sum}: {}", ended.stdout);
            }
        }
    }
}

#[test]
fn a_log_without_flows_says_what_it_does_not_know() {
    let site = site(false);
    for (arguments, says) in [
        (["top"].as_slice(), "Queries by name: the log has no flow records, so bytes are not known\n"),
        (&["blocked"], "note: the log has no flow records: destinations that the firewall refused are not known\n"),
        (&["exposure"], "note: the log has no flow records: bytes are not known, and the order is by other names\n"),
        (&["late"], "note: the log has no flow records; switch them on with [flow] of outgate.toml"),
        (&["bypass"], "note: the log has no flow records; switch them on with [flow] of outgate.toml"),
    ] {
        let ended = report(&site, arguments);
        assert!(ended.stdout.contains(says), "{arguments:?}: {}", ended.stdout);
    }
    let ended = site.run(&["report", "unused", "--since", "2026-01-01T00:00:00Z", "--log", "log/query.jsonl"]);
    let says = "note: the log begins at 2026-11-19T09:00:00.000000Z: of the time from 2026-01-01T00:00:00.000000Z until then \
                nothing is known\n";
    assert!(ended.stdout.contains(says), "{}", ended.stdout);
}

#[test]
fn a_segment_and_an_end_leave_the_rest_out() {
    let site = site(true);
    let ended = report(&site, &["blocked", "--segment", "attic"]);
    assert!(ended.stdout.contains("Denied names\n  nothing was refused in that time\n"), "{}", ended.stdout);
    let ended = report(&site, &["blocked", "--json", "--until", "2026-11-20T10:02:30Z"]);
    let said: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(said["names"]["total"]["count"], 2, "{}", ended.stdout);
}

#[test]
fn hostile_text_moves_no_cursor() {
    let site = Site::new();
    let mut log = Log(String::new(), 0);
    let denied =
        json!({ "verdict": "deny", "reason": "default\u{1b}[2J", "rule": "a\u{0}b\u{202e}", "segment": "x\r\ny" });
    log.asked("20T10:01", 1, "evil\u{1b}]0;x\u{7}.example", &denied);
    site.file("log/query.jsonl", &log.0);
    for arguments in [["top"].as_slice(), &["blocked"], &["top", "--by", "segment"], &["top", "--by", "rule"]] {
        let ended = report(&site, arguments);
        assert!(
            !ended.stdout.contains(|c: char| c != '\n' && (c.is_control() || c == '\u{202e}')),
            "{:?}",
            ended.stdout
        );
        assert!(ended.stdout.contains("\\u"), "{:?}", ended.stdout);
    }
}

#[test]
fn says_what_is_wrong() {
    let site = Site::new();
    site.file("log/query.jsonl", "");
    for (arguments, code, says) in [
        (["top", "--by", "colour"].as_slice(), 2, "write name, rule, segment, or a tag, e.g. tag:team"),
        (&["top", "--since", "yesterday"], 2, "write how long, e.g. 24h or 7d, or a date and time with an offset"),
        (
            &["top", "--since", "2026-11-02T00:00:00Z", "--until", "2026-11-01T00:00:00Z"],
            2,
            "outgate: --since 2026-11-02T00:00:00.000000Z is not before --until 2026-11-01T00:00:00.000000Z\n",
        ),
        (&["top", "--log", "nowhere.jsonl"], 1, "outgate: nowhere.jsonl: there is no such log; name its current file"),
        (&["top", "--log", "log/query.jsonl"], 0, "note: the log has no record of that time\n"),
    ] {
        let ended = site.run(&[&["report"], arguments].concat());
        assert_eq!(ended.code, Some(code), "{arguments:?}: {}{}", ended.stdout, ended.stderr);
        assert!((ended.stdout + &ended.stderr).contains(says), "{arguments:?}");
    }
}
