//! One message: RFC 5424 §6.

use crate::audit::sink::Record;

/// RFC 5424 §6.3.2 wants an enterprise number behind what is not registered. RFC 5612 §2: 32473 is for those that have none.
const SD_ID: &[u8] = b"outgate@32473";

/// What stands before every message.
pub(super) struct Header {
    pub(super) facility: u8,
    pub(super) app_name: String,
    /// The most octets that a message may have.
    pub(super) limit: usize,
}

/// RFC 5424 §6.2.1, table 2. Alerts want somebody at once, failures soon; denies are worth a warning.
fn severity(record: &Record) -> u8 {
    match (&*record.kind, record.verdict.as_deref()) {
        ("alert", _) => 1,
        (_, Some("error")) => 3,
        (_, Some("deny")) => 4,
        ("policy" | "change", _) => 5,
        _ => 6,
    }
}

impl Header {
    /// Appends the record's message. One that is too long is cut between characters, and says so in `truncated`.
    pub(super) fn write(&self, record: &Record, out: &mut Vec<u8>) {
        let before = out.len();
        self.begin(record, None, out);
        let whole = out.len() - before + bom(&record.bytes).len() + record.bytes.len();
        let mut bytes = record.bytes.as_slice();
        if whole > self.limit {
            out.truncate(before);
            self.begin(record, Some(whole), out);
            let room = self.limit.saturating_sub(out.len() - before + bom(bytes).len());
            let end = (0..=room.min(bytes.len())).rev().find(|end| is_boundary(bytes, *end)).unwrap_or(0);
            let mark = bom(bytes);
            bytes = bytes.get(..end).unwrap_or_default();
            out.extend_from_slice(mark);
        } else {
            out.extend_from_slice(bom(bytes));
        }
        out.extend_from_slice(bytes);
    }

    /// HEADER and STRUCTURED-DATA with the blank behind it.
    fn begin(&self, record: &Record, truncated: Option<usize>, out: &mut Vec<u8>) {
        let priority = u16::from(self.facility) * 8 + u16::from(severity(record));
        out.extend_from_slice(format!("<{priority}>1 ").as_bytes());
        // TIMESTAMP is RFC 3339 with at most six digits of a second: what a record has.
        word(&record.ts, 32, out);
        word(&record.node, 255, out);
        word(&self.app_name, 48, out);
        word(&std::process::id().to_string(), 128, out);
        word(&record.kind, 32, out);
        out.push(b'[');
        out.extend_from_slice(SD_ID);
        parameter("id", &record.id, out);
        if let Some(segment) = &record.segment {
            parameter("segment", segment, out);
        }
        if let Some(verdict) = &record.verdict {
            parameter("verdict", verdict, out);
        }
        if let Some(octets) = truncated {
            parameter("truncated", &octets.to_string(), out);
        }
        out.extend_from_slice(b"] ");
    }
}

/// PRINTUSASCII = %d33-126, at most so many; `-` where nothing is left. With the blank behind it.
fn word(text: &str, most: usize, out: &mut Vec<u8>) {
    let before = out.len();
    out.extend(text.bytes().filter(u8::is_ascii_graphic).take(most));
    if out.len() == before {
        out.push(b'-');
    }
    out.push(b' ');
}

/// RFC 5424 §6.3.3: "Inside PARAM-VALUE, the characters '"' (ABNF %d34), '\' (ABNF %d92), and ']' (ABNF %d93) MUST be
/// escaped."
fn parameter(name: &str, value: &str, out: &mut Vec<u8>) {
    out.push(b' ');
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"=\"");
    for byte in value.bytes() {
        if matches!(byte, b'"' | b'\\' | b']') {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out.push(b'"');
}

/// RFC 5424 §6.4: "If a syslog application encodes MSG in UTF-8, the string MUST start with the Unicode byte order mask
/// (BOM)". RFC 8259 §8.1, of JSON: "Implementations MUST NOT add a byte order mark". So what begins an object has none, and
/// what is ASCII needs none.
fn bom(bytes: &[u8]) -> &'static [u8] {
    if bytes.starts_with(b"{") || bytes.is_ascii() { b"" } else { b"\xef\xbb\xbf" }
}

/// Whether a character begins at `end`, or nothing does.
fn is_boundary(bytes: &[u8], end: usize) -> bool {
    bytes.get(end).is_none_or(|byte| byte & 0xc0 != 0x80)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(segment: &str, bytes: &str) -> Record {
        Record {
            id: "7f3a91c20b1d44e0-3-1829331".into(),
            kind: "query".into(),
            ts: "2026-11-21T03:53:04.117302Z".into(),
            node: "og eu1".into(),
            segment: Some(segment.into()),
            verdict: Some("deny".into()),
            bytes: bytes.into(),
        }
    }

    fn message(limit: usize, record: &Record) -> String {
        let mut out = Vec::new();
        Header { facility: 16, app_name: "outgate".into(), limit }.write(record, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_message_is_as_the_rfc_says() {
        let pid = std::process::id();
        assert_eq!(
            message(8192, &record(r#"a"b\c]d"#, "{}")),
            format!(
                "<132>1 2026-11-21T03:53:04.117302Z ogeu1 outgate {pid} query \
                 [outgate@32473 id=\"7f3a91c20b1d44e0-3-1829331\" segment=\"a\\\"b\\\\c\\]d\" verdict=\"deny\"] {{}}"
            )
        );
    }

    #[test]
    fn text_has_a_byte_order_mark_and_json_has_none() {
        for (bytes, marked) in [("deny \u{e9}", true), ("deny e", false), ("{\"why\":\"\u{e9}\"}", false)] {
            assert_eq!(message(8192, &record("s", bytes)).contains('\u{feff}'), marked, "{bytes}");
        }
    }

    #[test]
    fn a_message_that_is_cut_says_so_and_ends_with_a_character() {
        let long = format!("{{\"why\":\"{}\"}}", "\u{e9}".repeat(2000));
        for limit in 480..490 {
            let cut = message(limit, &record("s", &long));
            assert!(cut.len() <= limit && cut.len() + 2 > limit, "{}", cut.len());
            let whole = message(1 << 20, &record("s", &long)).len();
            assert!(cut.contains(&format!(" truncated=\"{whole}\"] ")), "{cut}");
        }
    }

    #[test]
    fn severities_follow_the_verdict() {
        for (kind, verdict, expected) in [
            ("query", Some("allow"), 6),
            ("query", Some("deny"), 4),
            ("query", Some("error"), 3),
            ("flow", Some("deny"), 4),
            ("alert", None, 1),
            ("policy", None, 5),
            ("log", None, 6),
        ] {
            let record = Record { kind: kind.into(), verdict: verdict.map(Into::into), ..record("s", "{}") };
            assert_eq!(severity(&record), expected, "{kind} {verdict:?}");
        }
    }
}
