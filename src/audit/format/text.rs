//! Text: one line for people, from one line of JSON. Everything foreign is stripped of what could move a cursor.

use serde_json::{Map, Value};

use super::json::is_hidden;

const DIM: &str = "\x1b[2m";
const RESET: &str = "\x1b[0m";

/// Keys that every record has, and that the columns already show.
const ENVELOPE: [&str; 7] = ["v", "type", "id", "ts", "node", "op", "boot"];

/// One line of the file as one aligned line, without a line feed; a line that is no record is shown as it is,
/// behind a `?`.
#[must_use]
pub fn render_line(json_line: &str, colour: bool) -> String {
    let Ok(Value::Object(record)) = serde_json::from_str(json_line) else {
        return format!("? {}", visible(json_line.trim_end()));
    };
    let line = match text(&record, "type").as_str() {
        "query" => query(&record, colour),
        "grant" => grant(&record, colour),
        "flow" => flow(&record, colour),
        _ => other(&record, colour),
    };
    line.trim_end().to_owned()
}

fn query(record: &Map<String, Value>, colour: bool) -> String {
    let verdict = text(record, "verdict");
    let observed = record.get("enforced") == Some(&Value::Bool(false));
    let shade = match (verdict.as_str(), observed) {
        ("allow", false) => "\x1b[32m",
        ("deny", false) => "\x1b[31m",
        _ => "\x1b[33m",
    };
    let answers = record.get("answers").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let data: Vec<_> = answers.iter().filter_map(|answer| answer.get("data")).map(plain).collect();
    let told = match (data.is_empty(), record.contains_key("rcode")) {
        (false, _) => data.join(", "),
        (true, true) => text(record, "rcode"),
        (true, false) => "(silence)".to_owned(),
    };
    let mut notes = vec![match record.get("rule") {
        Some(rule) => format!("{} {}", text(record, "reason"), plain(rule)),
        None => text(record, "reason"),
    }];
    notes.extend(observed.then(|| "observed".to_owned()));
    notes.extend(record.get("answers_omitted").map(|count| format!("{} answers more", plain(count))));
    notes.extend(record.get("why").map(plain));
    notes.extend(record.get("latency_us").map(|micros| format!("{} µs", plain(micros))));
    format!(
        "{} {} {:<15} {:<12} {:<5} {} → {} {}",
        time(record, "ts"),
        paint(&format!("{verdict:<6}"), shade, colour),
        text(record, "client"),
        text(record, "segment"),
        text(record, "qtype"),
        text(record, "qname"),
        told,
        paint(&format!("({})", notes.join(", ")), DIM, colour),
    )
}

fn grant(record: &Map<String, Value>, colour: bool) -> String {
    let ports = record.get("ports").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let ports: Vec<_> = ports.iter().map(plain).collect();
    let mut notes = vec![text(record, "scope"), text(record, "rule"), text(record, "qname")];
    notes.extend(record.get("why").map(plain));
    let op = text(record, "op");
    format!(
        "{} {} {:<15} {:<12} {:<5} {} {} until {} {}",
        time(record, "ts"),
        paint("grant ", "\x1b[36m", colour),
        text(record, "client"),
        text(record, "segment"),
        op,
        text(record, "address"),
        ports.join(" "),
        time(record, "until"),
        paint(&format!("({})", notes.join(", ")), DIM, colour),
    )
}

fn flow(record: &Map<String, Value>, colour: bool) -> String {
    let class = text(record, "class");
    let shade = match class.as_str() {
        "exact" | "static" => "\x1b[32m",
        "none" => "\x1b[31m",
        _ => "\x1b[33m",
    };
    let mut notes: Vec<String> =
        ["rule", "detail", "why"].iter().filter_map(|key| record.get(*key)).map(plain).collect();
    for (key, what) in [("bytes_out", "bytes out"), ("bytes_in", "bytes in")] {
        notes.extend(record.get(key).map(|count| format!("{} {what}", plain(count))));
    }
    let names = record.get("names").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let mut names: Vec<_> = names.iter().filter_map(|named| named.get("qname")).map(plain).collect();
    names.extend(record.get("qname").map(plain));
    format!(
        "{} {} {:<15} {:<12} {:<5} {} {} {} {} {}",
        time(record, "ts"),
        paint("flow  ", shade, colour),
        text(record, "client"),
        text(record, "segment"),
        if text(record, "action") == "deny" { "deny".to_owned() } else { text(record, "op") },
        text(record, "address"),
        text(record, "service"),
        paint(&class, shade, colour),
        names.join(", "),
        paint(&format!("({})", notes.join(", ")), DIM, colour),
    )
}

/// Any other type: its operation, then every field that is not in the columns.
fn other(record: &Map<String, Value>, colour: bool) -> String {
    let fields: Vec<_> = record
        .iter()
        .filter(|(key, _)| !ENVELOPE.contains(&key.as_str()))
        .map(|(key, value)| format!("{}={}", visible(key), plain(value)))
        .collect();
    format!(
        "{} {} {:<15} {}",
        time(record, "ts"),
        paint(&format!("{:<6}", text(record, "type")), "\x1b[35m", colour),
        text(record, "op"),
        paint(&fields.join(" "), DIM, colour),
    )
}

/// The time of day of a time stamp, to the millisecond.
fn time(record: &Map<String, Value>, key: &str) -> String {
    let stamp = text(record, key);
    stamp.get(11..23).map_or(stamp.clone(), str::to_owned)
}

fn text(record: &Map<String, Value>, key: &str) -> String {
    record.get(key).map(plain).unwrap_or_default()
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => visible(text),
        other => visible(&other.to_string()),
    }
}

/// `text` with `�` in place of every character that is not shown or changes how others are.
pub(in crate::audit) fn visible(text: &str) -> String {
    text.chars().map(|c| if is_hidden(c) { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

fn paint(text: &str, shade: &str, colour: bool) -> String {
    if colour { format!("{shade}{text}{RESET}") } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_a_record_as_one_line() {
        let rows = [
            (
                r#"{"v":1,"type":"query","id":"1-1-1","ts":"2026-11-21T03:53:04.117302Z","node":"n","client":"192.0.2.1","segment":"checkout","qname":"api.example.com","qtype":"A","verdict":"allow","reason":"rule","rule":"api","rcode":"NOERROR","answers":[{"name":"api.example.com","type":"A","ttl":60,"data":"198.51.100.7"}],"latency_us":42}"#,
                "03:53:04.117 allow  192.0.2.1       checkout     A     api.example.com → 198.51.100.7 (rule api, 42 µs)",
            ),
            (
                r#"{"v":1,"type":"query","id":"1-1-2","ts":"2026-11-21T03:53:04.117302Z","client":"192.0.2.1","qname":"x","verdict":"deny","enforced":false,"reason":"default"}"#,
                "03:53:04.117 deny   192.0.2.1                          x → (silence) (default, observed)",
            ),
            (
                r#"{"v":1,"type":"grant","ts":"2026-11-21T03:53:04.117302Z","op":"open","client":"192.0.2.1","scope":"client","segment":"a","rule":"r","qname":"q.example","address":"198.51.100.7","ports":["tcp/443"],"until":"2026-11-21T03:58:04.117302Z"}"#,
                "03:53:04.117 grant  192.0.2.1       a            open  198.51.100.7 tcp/443 until 03:58:04.117 (client, r, q.example)",
            ),
            (
                r#"{"v":1,"type":"flow","ts":"2026-11-21T03:53:04.117302Z","op":"close","client":"192.0.2.1","segment":"a","address":"198.51.100.7","service":"tcp/443","action":"allow","class":"exact","qname":"q.example","rule":"r","bytes_out":7,"source":"conntrack"}"#,
                "03:53:04.117 flow   192.0.2.1       a            close 198.51.100.7 tcp/443 exact q.example (r, 7 bytes out)",
            ),
            (
                r#"{"v":1,"type":"log","ts":"2026-11-21T03:53:04.117302Z","op":"gap","lost":2,"ranges":[[1,2]],"why":"full"}"#,
                "03:53:04.117 log    gap             lost=2 ranges=[[1,2]] why=full",
            ),
            ("no json\u{1b}[31m\n", "? no json�[31m"),
        ];
        for (line, shown) in rows {
            assert_eq!(render_line(line, false), shown);
        }
    }

    #[test]
    fn nothing_foreign_reaches_the_terminal() {
        let hostile = r#"{"type":"query","ts":"\u001b[2J","client":"\u202e","segment":"\u009b31m","qname":"a\nb\u2028","why":"\u0007"}"#;
        for colour in [false, true] {
            let shown = render_line(hostile, colour);
            let ours = shown.replace("\x1b[33m", "").replace(DIM, "").replace(RESET, "");
            assert!(!ours.chars().any(is_hidden), "{ours:?}");
        }
    }
}
