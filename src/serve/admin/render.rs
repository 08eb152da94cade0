//! Status and grants for people: aligned tables.

use std::fmt::Write as _;

use serde_json::Value;

use crate::serve::{ClientRow, GrantRow};

const BOLD: &str = "\x1b[1m";
const RED: &str = "\x1b[31m";
const PLAIN: &str = "\x1b[0m";

/// The status in the shape of docs/admin.md, on a page. What is absent is `-`.
#[must_use]
pub fn render_status(status: &Value, colour: bool) -> String {
    let paint = Paint(colour);
    let text = |pointer: &str| cell(status.pointer(pointer));
    let list = |pointer: &str| status.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let mut facts = vec![(
        "policy",
        format!(
            "{}, {} segments, {} rules, loaded {}",
            text("/policy/revision"),
            text("/policy/segments"),
            text("/policy/rules"),
            text("/policy/loaded_at")
        ),
    )];
    let there = |pointer: &str| status.pointer(pointer).is_some_and(|value| !value.is_null());
    if there("/policy/promoted") {
        let fact = format!(
            "PROMOTED from {} at {} by {}",
            text("/policy/promoted/directory"),
            text("/policy/promoted/at"),
            text("/policy/promoted/who")
        );
        facts.push(("", paint.red(&fact)));
    }
    if there("/policy/candidate") {
        facts.push(("", candidate(status, &paint)));
    }
    for observe in list("/policy/observe") {
        facts.push(("", format!("observing only: {} until {}", field(observe, "segment"), field(observe, "until"))));
    }
    let clients = status.pointer("/changes/clients").and_then(Value::as_u64).unwrap_or(0);
    if clients > 0 {
        facts.push(("clients", format!("{clients} placed by hand or by the watched file")));
    }
    let doors: Vec<_> =
        list("/doors").iter().map(|door| format!("{} {}", field(door, "transport"), field(door, "address"))).collect();
    facts.push(("doors", if doors.is_empty() { "-".to_owned() } else { doors.join(", ") }));
    facts.push((
        "queries",
        format!(
            "{} allowed, {} denied, {} errors",
            text("/queries/allow"),
            text("/queries/deny"),
            text("/queries/error")
        ),
    ));
    facts.push(("grants", format!("{} live, {} pending", text("/grants/live"), text("/grants/pending"))));
    facts.push(("cache", format!("{} entries, {} bytes", text("/cache/entries"), text("/cache/bytes"))));
    let usable = status.pointer("/audit/usable").and_then(Value::as_bool);
    facts.push((
        "log",
        format!(
            "{}, {} records, {} refused, {} gaps{}",
            text("/audit/file"),
            text("/audit/records"),
            text("/audit/refused"),
            text("/audit/gaps"),
            if usable == Some(false) { paint.red(", NOT WRITABLE") } else { String::new() }
        ),
    ));

    let mut out = paint.bold(&format!("outgate {} on {}", text("/version"), text("/node")));
    let uptime = status.pointer("/uptime_s").and_then(Value::as_u64).map_or_else(|| "-".to_owned(), span);
    // Writing to a String cannot fail, here and below.
    let _ = writeln!(out, ", up {uptime}, boot {}", text("/boot"));
    for (name, fact) in facts {
        let _ = writeln!(out, "  {name:<8} {fact}");
    }
    let changes = list("/changes/rules").iter().map(|change| {
        let all = |key| {
            let values = change.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            values.iter().map(|value| cell(Some(value))).collect::<Vec<_>>().join(" ")
        };
        let client = change.get("client").and_then(Value::as_str).map(str::to_owned);
        let segments = Some(all("segments")).filter(|segments| !segments.is_empty());
        vec![
            field(change, "id"),
            field(change, "action"),
            all("targets"),
            client.or(segments).unwrap_or_else(|| "all".to_owned()),
            change.get("until").and_then(Value::as_str).unwrap_or("retracted").to_owned(),
            field(change, "by"),
            field(change, "reason"),
        ]
    });
    let heads = ["CHANGE", "DOES", "WHAT", "FOR", "UNTIL", "BY", "WHY"];
    section(&mut out, &paint, &heads, changes.collect());
    let firewalls = list("/firewalls").iter().map(|firewall| {
        let ready = firewall.get("ready").and_then(Value::as_bool);
        vec![
            field(firewall, "name"),
            field(firewall, "kind"),
            ready.map_or("-", |ready| if ready { "yes" } else { "NO" }).to_owned(),
            field(firewall, "elements"),
            field(firewall, "capacity"),
            micros(firewall.get("last_ack_us")),
            field(firewall, "errors"),
        ]
    });
    let heads = ["FIREWALL", "KIND", "READY", "ELEMENTS", "CAPACITY", "LAST ACK", "ERRORS"];
    section(&mut out, &paint, &heads, firewalls.collect());
    let peers = list("/peers").iter().map(|peer| {
        let is = |key: &str| peer.get(key).and_then(Value::as_bool);
        let policy = field(peer, "revision");
        vec![
            field(peer, "name"),
            is("connected").map_or("-", |connected| if connected { "up" } else { "DOWN" }).to_owned(),
            if is("differs") == Some(true) { paint.red(&format!("{policy} DIFFERS")) } else { policy },
            field(peer, "version"),
            field(peer, "waiting"),
            if is("connected") == Some(true) { String::new() } else { field(peer, "why") },
        ]
    });
    section(&mut out, &paint, &["PEER", "STATE", "POLICY", "VERSION", "WAITING", "WHY"], peers.collect());
    let sinks = list("/sinks").iter().map(|sink| {
        let up = sink.get("up").and_then(Value::as_bool);
        let age = sink.get("lag_s").and_then(Value::as_u64).map_or_else(|| "-".to_owned(), span);
        vec![
            field(sink, "name"),
            field(sink, "kind"),
            up.map_or("-", |up| if up { "up" } else { "DOWN" }).to_owned(),
            format!("{} records, {age}", field(sink, "lag_records")),
            field(sink, "delivered"),
            field(sink, "refused"),
            field(sink, "gaps"),
            if up == Some(true) { String::new() } else { field(sink, "last_error") },
        ]
    });
    let heads = ["SINK", "KIND", "STATE", "BEHIND", "DELIVERED", "REFUSED", "GAPS", "LAST ERROR"];
    section(&mut out, &paint, &heads, sinks.collect());
    let servers = list("/upstreams").iter().flat_map(|upstream| {
        let servers = upstream.get("servers").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        servers.iter().map(|server| {
            let out = server.get("out").and_then(Value::as_bool);
            vec![
                field(upstream, "name"),
                format!("{}://{}", field(server, "transport"), field(server, "address")),
                out.map_or("-", |out| if out { "OUT" } else { "up" }).to_owned(),
                micros(server.get("srtt_us")),
                field(server, "answered"),
                field(server, "timeouts"),
                field(server, "failures"),
                field(server, "mismatches"),
                field(server, "connections"),
                field(server, "handshake_failures"),
            ]
        })
    });
    let heads = [
        "UPSTREAM",
        "SERVER",
        "STATE",
        "SRTT",
        "ANSWERED",
        "TIMEOUTS",
        "FAILURES",
        "MISMATCHES",
        "CONNECTIONS",
        "BAD TLS",
    ];
    section(&mut out, &paint, &heads, servers.collect());
    let disagreements = list("/policy/candidate/disagreements/top").iter().map(|row| {
        let fields = ["segment", "name", "type", "kind", "reason", "rule", "count", "last"];
        fields.into_iter().map(|key| field(row, key)).collect()
    });
    let heads = ["SEGMENT", "NAME", "TYPE", "CANDIDATE", "REASON", "RULE", "QUERIES", "LAST"];
    section(&mut out, &paint, &heads, disagreements.collect());
    let warnings = list("/warnings");
    if !warnings.is_empty() {
        out.push('\n');
    }
    for warning in warnings {
        let _ = writeln!(out, "{} {}", paint.red("warning:"), cell(Some(warning)));
    }
    out
}

/// Clients that are placed, a line each.
#[must_use]
pub fn render_clients(rows: &[ClientRow], colour: bool) -> String {
    let paint = Paint(colour);
    if rows.is_empty() {
        return "no client is placed: the prefixes of segments say who is where\n".to_owned();
    }
    let lines = rows.iter().map(|row| {
        let labels: Vec<_> = row.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        vec![
            row.client.to_string(),
            row.segment.clone(),
            row.until.clone().unwrap_or_else(|| "taken out".to_owned()),
            if row.from_file { "file" } else { "hand" }.to_owned(),
            labels.join(" "),
        ]
    });
    table(&["CLIENT", "SEGMENT", "UNTIL", "BY", "LABELS"], lines.collect(), &paint)
}

/// What is known of the candidate, in one line.
fn candidate(status: &Value, paint: &Paint) -> String {
    let text = |key: &str| cell(status.pointer(&format!("/policy/candidate/{key}")));
    let directory = text("directory");
    match &*text("state") {
        "decided" => format!(
            "candidate {directory} {}: of {} queries since {} it denies {} that pass, allows {} that are denied, {} differ",
            text("revision"),
            text("disagreements/queries"),
            text("disagreements/since"),
            text("disagreements/denies"),
            text("disagreements/allows"),
            text("disagreements/differs")
        ),
        "same" => format!("candidate {directory}: the same as the policy"),
        _ => paint.red(&format!("candidate {directory}: NOT DECIDED, it has mistakes")),
    }
}

/// Grants, one a line, in the order given.
#[must_use]
pub fn render_grants(grants: &[GrantRow], colour: bool) -> String {
    if grants.is_empty() {
        return "no live grants\n".to_owned();
    }
    let rows = grants.iter().map(|grant| {
        vec![
            grant.client.map_or_else(|| "(segment)".to_owned(), |client| client.to_string()),
            clean(&grant.segment),
            clean(&grant.name),
            grant.address.to_string(),
            clean(&grant.services.join(",")),
            span(grant.remaining_s),
            clean(&grant.rule),
        ]
    });
    table(&["CLIENT", "SEGMENT", "NAME", "ADDRESS", "SERVICES", "ENDS IN", "RULE"], rows.collect(), &Paint(colour))
}

/// Colours, if they are wanted.
struct Paint(bool);

impl Paint {
    fn bold(&self, text: &str) -> String {
        if self.0 { format!("{BOLD}{text}{PLAIN}") } else { text.to_owned() }
    }

    fn red(&self, text: &str) -> String {
        if self.0 { format!("{RED}{text}{PLAIN}") } else { text.to_owned() }
    }
}

/// A table after an empty line, if it has rows.
fn section(out: &mut String, paint: &Paint, heads: &[&str], rows: Vec<Vec<String>>) {
    if !rows.is_empty() {
        out.push('\n');
        out.push_str(&table(heads, rows, paint));
    }
}

/// Columns as wide as their widest cell, two spaces between them, none at the end of a line.
fn table(heads: &[&str], rows: Vec<Vec<String>>, paint: &Paint) -> String {
    let heads: Vec<String> = heads.iter().map(|head| (*head).to_owned()).collect();
    let width = |column: usize| {
        let cells = std::iter::once(&heads).chain(&rows).filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let line = |row: &[String]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let mut out = format!("{}\n", paint.bold(&line(&heads)));
    for row in &rows {
        out.push_str(&line(row));
        out.push('\n');
    }
    out
}

fn field(value: &Value, key: &str) -> String {
    cell(value.get(key))
}

fn cell(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => clean(text),
        Some(other) => clean(&other.to_string()),
    }
}

/// Foreign text must not drive the terminal: control characters and those that change the direction of writing are
/// shown by number.
fn clean(text: &str) -> String {
    let foul = |c: char| {
        c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if foul(c) {
            let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
        } else {
            out.push(c);
        }
    }
    out
}

/// `3d 4h`, `12m 5s`, `59s`: the two largest units.
fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h {}m", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

/// `31 µs`, `4.2 ms`, `1.9 s`
fn micros(value: Option<&Value>) -> String {
    match value.and_then(Value::as_u64) {
        None => "-".to_owned(),
        Some(micros @ 0..1_000) => format!("{micros} µs"),
        Some(micros @ 1_000..1_000_000) => format!("{}.{} ms", micros / 1_000, micros / 100 % 10),
        Some(micros) => format!("{}.{} s", micros / 1_000_000, micros / 100_000 % 10),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status() -> Value {
        json!({
            "version": "0.1.0", "node": "og-eu1-a", "boot": "7f3a91c20b1d44e0", "uptime_s": 273_605,
            "policy": { "revision": "9c1f5be27a40d3e1", "segments": 2, "rules": 41, "loaded_at": "2026-11-21T03:53:04Z",
                "observe": [{ "segment": "office", "until": "2026-12-01T00:00:00Z" }] },
            "doors": [{ "address": "0.0.0.0:53", "transport": "udp" }, { "address": "0.0.0.0:53", "transport": "tcp" }],
            "firewalls": [{ "name": "gateway", "kind": "nftables", "ready": true, "elements": 1203,
                "capacity": 2_097_152, "last_ack_us": 31, "errors": 0 }],
            "upstreams": [{ "name": "default", "servers": [
                { "address": "192.0.2.53:853", "transport": "tls", "srtt_us": 4_210, "answered": 99, "timeouts": 1,
                    "failures": 0, "mismatches": 0, "connections": 2, "handshake_failures": 0, "out": false },
                { "address": "198.51.100.53:53", "transport": "udp", "answered": 0, "timeouts": 0, "failures": 3,
                    "mismatches": 4, "connections": 0, "handshake_failures": 0, "out": true }] }],
            "grants": { "live": 1203, "pending": 0 },
            "audit": { "file": "/var/log/outgate/query.jsonl", "usable": false, "records": 9, "refused": 3, "gaps": 0 },
            "cache": { "entries": 7, "bytes": 900 },
            "queries": { "allow": 5, "deny": 3, "error": 1 },
            "warnings": ["the log cannot be written"],
        })
    }

    #[test]
    fn a_status_is_a_page() {
        let page = "\
outgate 0.1.0 on og-eu1-a, up 3d 4h, boot 7f3a91c20b1d44e0
  policy   9c1f5be27a40d3e1, 2 segments, 41 rules, loaded 2026-11-21T03:53:04Z
           observing only: office until 2026-12-01T00:00:00Z
  doors    udp 0.0.0.0:53, tcp 0.0.0.0:53
  queries  5 allowed, 3 denied, 1 errors
  grants   1203 live, 0 pending
  cache    7 entries, 900 bytes
  log      /var/log/outgate/query.jsonl, 9 records, 3 refused, 0 gaps, NOT WRITABLE

FIREWALL  KIND      READY  ELEMENTS  CAPACITY  LAST ACK  ERRORS
gateway   nftables  yes    1203      2097152   31 µs     0

UPSTREAM  SERVER                  STATE  SRTT    ANSWERED  TIMEOUTS  FAILURES  MISMATCHES  CONNECTIONS  BAD TLS
default   tls://192.0.2.53:853    up     4.2 ms  99        1         0         0           2            0
default   udp://198.51.100.53:53  OUT    -       0         0         3         4           0            0

warning: the log cannot be written
";
        assert_eq!(render_status(&status(), false), page);
    }

    #[test]
    fn a_candidate_and_a_promotion_are_on_the_page() {
        let mut status = status();
        status["policy"]["promoted"] = json!({ "directory": "next", "at": "2026-11-21T03:53:04Z", "who": "uid 0" });
        status["policy"]["candidate"] = json!({ "directory": "next", "state": "decided", "revision": "0d1f5be27a40d3e2",
            "disagreements": { "since": "2026-11-21T03:53:04Z", "queries": 90, "denies": 3, "allows": 0, "differs": 1,
                "top": [{ "segment": "shop", "name": "api.example.com", "type": "A", "kind": "denies",
                    "reason": "default", "rule": null, "count": 3, "last": "2026-11-21T03:54:04Z" }] } });
        let page = render_status(&status, false);
        let lines = "           PROMOTED from next at 2026-11-21T03:53:04Z by uid 0
           candidate next 0d1f5be27a40d3e2: of 90 queries since 2026-11-21T03:53:04Z it denies 3 that pass, \
                     allows 0 that are denied, 1 differ\n";
        assert!(page.contains(lines), "{page}");
        let table = "
SEGMENT  NAME             TYPE  CANDIDATE  REASON   RULE  QUERIES  LAST
shop     api.example.com  A     denies     default  -     3        2026-11-21T03:54:04Z
";
        assert!(page.contains(table), "{page}");
        status["policy"]["candidate"]["state"] = "mistaken".into();
        assert!(render_status(&status, false).contains("candidate next: NOT DECIDED"));
    }

    #[test]
    fn colours_come_on_demand_and_change_nothing_else() {
        let coloured = render_status(&status(), true);
        assert!(coloured.contains(BOLD) && coloured.contains(RED));
        let bare = [BOLD, RED, PLAIN].iter().fold(coloured, |text, code| text.replace(code, ""));
        assert_eq!(bare, render_status(&status(), false));
    }

    #[test]
    fn an_empty_status_is_a_page_too() {
        assert!(render_status(&json!({}), false).starts_with("outgate - on -, up -, boot -\n"));
        assert!(render_status(&json!([1, "x"]), false).contains("doors    -\n"));
    }

    #[test]
    fn grants_are_a_table() {
        let row = GrantRow {
            client: Some([192, 0, 2, 31].into()),
            segment: "checkout".to_owned(),
            rule: "stripe".to_owned(),
            name: "api.example.com".to_owned(),
            address: [198, 51, 100, 7].into(),
            services: vec!["tcp/443".to_owned(), "tcp/80".to_owned()],
            until: "2026-11-21T03:58:04.117302Z".to_owned(),
            remaining_s: 272,
        };
        let hostile = GrantRow { client: None, name: "a\x1b[2J\u{202e}b".to_owned(), remaining_s: 9, ..row.clone() };
        assert_eq!(
            render_grants(&[row, hostile], false),
            "\
CLIENT      SEGMENT   NAME                 ADDRESS       SERVICES        ENDS IN  RULE
192.0.2.31  checkout  api.example.com      198.51.100.7  tcp/443,tcp/80  4m 32s   stripe
(segment)   checkout  a\\u{1b}[2J\\u{202e}b  198.51.100.7  tcp/443,tcp/80  9s       stripe
"
        );
        assert_eq!(render_grants(&[], true), "no live grants\n");
    }
}
