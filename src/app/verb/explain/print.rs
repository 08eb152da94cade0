//! An explained question for people.

use serde_json::Value;

/// The report as lines.
pub(super) fn question(report: &Value) -> String {
    let text = |key: &str| report.get(key).and_then(Value::as_str);
    let list = |value: &Value, key: &str| {
        let items = value.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" ")
    };
    let mut out = format!(
        "{} {} asked by {}",
        text("qname").unwrap_or("-"),
        text("qtype").unwrap_or("-"),
        text("client").unwrap_or("-")
    );
    if let Some(forwarder) = text("asked_by") {
        out.push_str(&format!(" through forwarder {forwarder}"));
    }
    if let Some(name) = text("certificate") {
        out.push_str(&format!(" with the certificate of {name}"));
    }
    match text("segment") {
        Some(segment) => {
            let filters = report.get("filter_aaaa").and_then(Value::as_bool) == Some(true);
            let filters = if filters { ", filters AAAA" } else { "" };
            out.push_str(&format!(", segment {segment} ({}{filters})\n", text("mode").unwrap_or("-")));
        }
        None => out.push_str(", in no segment\n"),
    }
    let rules = report.get("rules").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if rules.is_empty() && text("segment").is_some() {
        out.push_str("  no rule matches the name\n");
    }
    for rule in rules {
        let field = |key: &str| rule.get(key).and_then(Value::as_str).unwrap_or("-");
        out.push_str(&format!("  {} {}  {}", field("action"), field("id"), field("place")));
        if field("action") == "allow" {
            out.push_str(&format!("  types {}  ports {}", list(rule, "types"), list(rule, "ports")));
        }
        for key in ["within", "private", "clients"] {
            let prefixes = list(rule, key);
            if !prefixes.is_empty() {
                out.push_str(&format!("  {key} {prefixes}"));
            }
        }
        let words = [
            ("hold", "hold"),
            ("expires", "until"),
            ("https", "https"),
            ("owner", "owner"),
            ("ticket", "ticket"),
            ("why", "for"),
        ];
        for (key, word) in words {
            if let Some(value) = rule.get(key).and_then(Value::as_str) {
                out.push_str(&format!("  {word} {value}"));
            }
        }
        if let Some(silent) = rule.get("silent").and_then(Value::as_str) {
            out.push_str(&format!("  ({silent})"));
        }
        out.push('\n');
    }
    out.push_str(&format!("verdict   {} (reason {})", text("verdict").unwrap_or("-"), text("reason").unwrap_or("-")));
    if let Some(rule) = text("rule") {
        out.push_str(&format!(", the record names {rule}"));
    }
    if report.get("enforced").and_then(Value::as_bool) == Some(false) {
        out.push_str(", not enforced: the segment only observes");
    }
    out.push('\n');
    for (key, label) in [("why", "why"), ("answered_by", "answered"), ("scope", "scope"), ("open_for", "open for")] {
        if let Some(value) = text(key) {
            out.push_str(&format!("{label:<9} {value}\n"));
        }
    }
    let others = report.get("elsewhere").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    for rule in others {
        let field = |key: &str| rule.get(key).and_then(Value::as_str).unwrap_or("-");
        let segments = list(rule, "segments");
        out.push_str(&format!("others    have it: {segments} by {}  {}\n", field("id"), field("place")));
    }
    let near = list(report, "near");
    if !near.is_empty() {
        out.push_str(&format!("near      {near}\n"));
    }
    if let Some(opened) = report.get("opened").and_then(Value::as_array) {
        let opened = if opened.is_empty() { "nothing".to_owned() } else { list(report, "opened") };
        out.push_str(&format!("opened    {opened}\n"));
    }
    out.push_str(&format!("client    sees {}", text("shown").unwrap_or("-")));
    if let Some(ede) = report.get("ede") {
        let code = ede.get("code").and_then(Value::as_u64).unwrap_or(0);
        out.push_str(&format!(" and EDE {code}: {}", ede.get("text").and_then(Value::as_str).unwrap_or("")));
    }
    out.push('\n');
    out
}
