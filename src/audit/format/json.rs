//! JSON: a record as one line of at most [`MAX_LINE`] bytes, keys in the order of `docs/log.md`.
//!
//! Written by hand into the shard's buffer, because it is on every query's path: nothing is allocated. Whatever
//! could be long is capped, so that the fields behind the answers always fit; the answers take what room is left.

use std::fmt::{self, Write};
use std::net::IpAddr;

use smallvec::SmallVec;

use crate::audit::own::{Opened, Own};
use crate::audit::{Event, GrantEvent, PolicyEvent, QueryEvent, RecordId};
use crate::name;
use crate::net::{Scope, Services};
use crate::record::{self, Record};
use crate::time::Wall;

/// The longest line, its line feed included. Syslog receivers over TLS take 8192 octets (RFC 5425 §4.3.1: "It is
/// RECOMMENDED that transport receivers be able to process messages with lengths up to and including 8192 octets").
pub const MAX_LINE: usize = 8192;

/// What the fields behind the answers can take at most: grant 1,100, ede 560, why 530, upstream 150, origin 60,
/// latency 35.
const AFTER_ANSWERS: usize = 2500;
/// A domain name: 253 octets, each at most the five bytes of `\\DDD` in a JSON string.
const NAME: usize = 253 * 5;
/// Names that an operator chose: segments, rules, upstreams, firewalls.
const WORD: usize = 128;
/// The node: a host name has at most 255 octets.
const NODE: usize = 256;
/// Sentences, which may hold what an upstream said.
const SENTENCE: usize = 512;
/// Tags are left out as a whole above this: a cut object would not be JSON.
const TAGS: usize = 3072;
/// One record's service ranges; a rule has at most 128 ports.
const SERVICES: usize = 48;
/// A grant waits for few firewalls.
const BACKENDS: usize = 16;

/// Header flags in the order in which DNS tools print them (RFC 1035 §4.1.1, RFC 4035 §3).
const FLAGS: [(u16, &str); 6] =
    [(0x0400, "AA"), (0x0200, "TC"), (0x0100, "RD"), (0x0080, "RA"), (0x0020, "AD"), (0x0010, "CD")];

/// Appends `event` to `out` as one line with its line feed.
pub fn encode(out: &mut Vec<u8>, id: RecordId, node: &str, event: &Event<'_>) {
    match event {
        Event::Query(event) => query(&mut Line::begin(out, "query", id, event.at, node), event),
        Event::Grant(event) => grant(&mut Line::begin(out, "grant", id, event.at, node), event),
        Event::Policy(event) => policy(&mut Line::begin(out, "policy", id, event.at, node), event),
    }
    out.extend_from_slice(b"}\n");
}

/// Appends a record of the log about itself.
pub(in crate::audit) fn encode_own(out: &mut Vec<u8>, id: RecordId, at: Wall, node: &str, record: &Own<'_>) {
    own(&mut Line::begin(out, "log", id, at, node), record);
    out.extend_from_slice(b"}\n");
}

fn query(line: &mut Line<'_>, event: &QueryEvent<'_>) {
    line.address("client", event.client);
    line.number("port", event.port.into());
    line.word("transport", event.transport.as_str());
    line.text_of("asked_by", event.asked_by, WORD);
    if let Some((segment, tags)) = event.segment {
        line.text("segment", segment, WORD);
        if !tags.is_empty() && tags.len() <= TAGS {
            line.key("tags");
            line.raw(tags);
        }
    }
    if let Some(qid) = event.qid {
        line.number("qid", qid.into());
    }
    if let Some(qname) = event.qname {
        line.key("qname");
        line.name(qname);
    }
    if let Some(qtype) = event.qtype {
        line.shown("qtype", qtype);
    }
    line.word("verdict", event.outcome.as_str());
    if !event.enforced {
        line.key("enforced");
        line.raw("false");
    }
    line.word("reason", event.reason.as_str());
    line.text_of("rule", event.rule, WORD);
    line.shown("policy", format_args!("{:016x}", event.policy));
    if let Some(rcode) = event.rcode {
        line.shown("rcode", rcode);
        line.key("flags");
        line.list(FLAGS.iter().filter(|(bit, _)| event.flags & bit != 0), |line, (_, flag)| line.quoted(flag));
        line.number("bytes", u64::try_from(event.bytes).unwrap_or(u64::MAX));
    }
    if let Some(cache) = event.cache {
        line.word("cache", cache.as_str());
    }
    line.answers(event.answers, event.ttl);
    if let Some((services, until)) = event.grant {
        line.key("grant");
        line.raw("{");
        line.services(services);
        line.shown("until", until);
        line.raw("}");
    }
    if let Some(ede) = event.ede {
        line.key("ede");
        line.raw("{");
        line.number("code", ede.code.into());
        line.text_of("text", Some(&*ede.text).filter(|text| !text.is_empty()), SENTENCE);
        line.raw("}");
    }
    line.text_of("why", event.why, SENTENCE);
    line.text_of("upstream", event.upstream, WORD);
    if let Some(origin) = event.origin {
        line.shown("origin", origin);
    }
    line.number("latency_us", event.latency_us);
}

fn grant(line: &mut Line<'_>, event: &GrantEvent<'_>) {
    line.word("op", event.op.as_str());
    line.address("client", event.client);
    line.word(
        "scope",
        match event.element.from {
            Scope::Client(_) => "client",
            Scope::Segment(_) => "segment",
        },
    );
    line.text("segment", event.segment, WORD);
    line.text("rule", event.rule, WORD);
    line.key("qname");
    line.name(event.qname.as_wire());
    line.address("address", event.element.to);
    line.services(event.services);
    line.shown("until", event.until);
    if let Some(query) = event.query {
        line.shown("query", query);
    }
    line.text_of("why", event.why, SENTENCE);
    if !event.backends.is_empty() {
        line.key("backends");
        line.list(event.backends.iter().take(BACKENDS), |line, backend| {
            line.raw("{");
            line.text("name", backend.name, WORD);
            line.number("acked_us", backend.acked_us);
            line.raw("}");
        });
    }
}

fn policy(line: &mut Line<'_>, event: &PolicyEvent<'_>) {
    line.text("op", event.op, WORD);
    line.shown("policy", format_args!("{:016x}", event.revision));
    if let Some(previous) = event.previous {
        line.shown("previous", format_args!("{previous:016x}"));
    }
    line.number("segments", u64::try_from(event.segments).unwrap_or(u64::MAX));
    line.number("rules", u64::try_from(event.rules).unwrap_or(u64::MAX));
    line.number("revoked", event.revoked);
    line.text_of("why", event.why, SENTENCE);
}

fn own(line: &mut Line<'_>, record: &Own<'_>) {
    match record {
        Own::Open(Opened { ours, why, boot, previous_boot, torn, chain, unsealed }) => {
            line.word("op", if *ours { "open" } else { "reopen" });
            line.text("why", why, SENTENCE);
            line.word("version", env!("CARGO_PKG_VERSION"));
            line.shown("boot", format_args!("{boot:016x}"));
            if let Some(boot) = previous_boot {
                line.shown("previous_boot", format_args!("{boot:016x}"));
            }
            if *torn > 0 {
                line.number("torn", *torn);
            }
            line.text_of("chain", *chain, WORD);
            if !unsealed.is_empty() {
                line.key("unsealed");
                line.list(unsealed.iter(), |line, file| line.string(file, NODE));
            }
        }
        Own::Rotate { file, sealed } => {
            line.word("op", "rotate");
            line.text("file", file, NODE);
            match sealed {
                Ok(seal) => {
                    line.number("records", seal.records);
                    line.number("bytes", seal.bytes);
                    line.word("sha256", seal.sha256);
                    line.text_of("previous", seal.previous, WORD);
                    line.word("chain", seal.chain);
                }
                Err(why) => line.text("why", why, SENTENCE),
            }
        }
        Own::Removed { file, bytes, why } => {
            line.word("op", "removed");
            line.text("file", file, NODE);
            line.number("bytes", *bytes);
            line.word("why", why);
        }
        Own::Sequences { op, sequences } => {
            line.word("op", op);
            line.key("sequences");
            line.raw("{");
            for (shard, sequence) in *sequences {
                line.comma();
                let _ = write!(line, "\"{shard}\":{sequence}");
            }
            line.raw("}");
        }
        Own::Gap { ranges, why } => {
            line.word("op", "gap");
            line.number("lost", ranges.iter().map(|range| range.last - range.first + 1).sum());
            line.key("ranges");
            line.list(ranges.iter(), |line, range| {
                let _ = write!(line, "[{},{}]", range.first, range.last);
            });
            line.text("why", why, SENTENCE);
        }
    }
}

/// A line being written. As a [`Write`] it takes only what needs no escape.
struct Line<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
}

impl Write for Line<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.out.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

impl<'a> Line<'a> {
    fn begin(out: &'a mut Vec<u8>, kind: &str, id: RecordId, at: Wall, node: &str) -> Self {
        let start = out.len();
        let mut line = Line { out, start };
        line.raw("{\"v\":1");
        line.word("type", kind);
        line.shown("id", id);
        line.shown("ts", at);
        line.text("node", node, NODE);
        line
    }

    fn raw(&mut self, text: &str) {
        self.out.extend_from_slice(text.as_bytes());
    }

    fn comma(&mut self) {
        if !matches!(self.out.last(), Some(b'{' | b'[')) {
            self.out.push(b',');
        }
    }

    fn key(&mut self, key: &str) {
        self.comma();
        self.quoted(key);
        self.out.push(b':');
    }

    /// A string that needs no escape.
    fn quoted(&mut self, text: &str) {
        self.out.push(b'"');
        self.raw(text);
        self.out.push(b'"');
    }

    /// A value of ours that needs no escape.
    fn word(&mut self, key: &str, word: &str) {
        self.key(key);
        self.quoted(word);
    }

    /// A value whose `Display` needs no escape.
    fn shown(&mut self, key: &str, value: impl fmt::Display) {
        self.key(key);
        self.out.push(b'"');
        let _ = write!(self, "{value}");
        self.out.push(b'"');
    }

    fn address(&mut self, key: &str, address: IpAddr) {
        self.shown(key, address);
    }

    fn number(&mut self, key: &str, number: u64) {
        self.key(key);
        let _ = write!(self, "{number}");
    }

    fn text_of(&mut self, key: &str, text: Option<&str>, cap: usize) {
        if let Some(text) = text {
            self.text(key, text, cap);
        }
    }

    fn text(&mut self, key: &str, text: &str, cap: usize) {
        self.key(key);
        self.string(text, cap);
    }

    /// A foreign string, escaped; what would take more than `cap` bytes is cut, which `…` shows.
    fn string(&mut self, text: &str, cap: usize) {
        self.out.push(b'"');
        let end = self.out.len() + cap;
        if (Escape { out: self.out, end }).write_str(text).is_err() {
            self.raw("…");
        }
        self.out.push(b'"');
    }

    /// A name in presentation format.
    fn name(&mut self, wire: &[u8]) {
        self.out.push(b'"');
        let end = self.out.len() + NAME;
        let _ = name::write_presentation(wire, &mut Escape { out: self.out, end });
        self.out.push(b'"');
    }

    fn list<T>(&mut self, items: impl Iterator<Item = T>, mut write: impl FnMut(&mut Self, T)) {
        self.raw("[");
        for item in items {
            self.comma();
            write(self, item);
        }
        self.raw("]");
    }

    fn services(&mut self, services: &[Services]) {
        self.key("ports");
        self.list(services.iter().take(SERVICES), |line, services| {
            let _ = write!(line, "\"{services}\"");
        });
        if let Some(omitted) = services.len().checked_sub(SERVICES).filter(|omitted| *omitted > 0) {
            self.number("ports_omitted", omitted as u64);
        }
    }

    /// As many whole answers as leave room for what comes behind them.
    fn answers(&mut self, answers: &[Record], ttl: u32) {
        if answers.is_empty() {
            return;
        }
        let end = self.start + MAX_LINE - AFTER_ANSWERS;
        self.key("answers");
        self.raw("[");
        let mut told = 0;
        for answer in answers {
            let before = self.out.len();
            self.comma();
            if self.answer(answer, ttl, end).is_err() {
                self.out.truncate(before);
                break;
            }
            told += 1;
        }
        self.raw("]");
        if told < answers.len() {
            self.number("answers_omitted", (answers.len() - told) as u64);
        }
    }

    fn answer(&mut self, answer: &Record, ttl: u32, end: usize) -> fmt::Result {
        self.raw("{\"name\":\"");
        name::write_presentation(answer.name.as_wire(), &mut Escape { out: self.out, end })?;
        write!(self, "\",\"type\":\"{}\",\"ttl\":{ttl},\"data\":\"", answer.kind)?;
        record::write_data(answer, &mut Escape { out: self.out, end })?;
        self.raw("\"}");
        if self.out.len() > end { Err(fmt::Error) } else { Ok(()) }
    }
}

/// Writes the inside of a JSON string, up to `end`, then fails.
struct Escape<'a> {
    out: &'a mut Vec<u8>,
    end: usize,
}

impl Escape<'_> {
    fn push(&mut self, bytes: &[u8]) -> fmt::Result {
        if self.out.len() + bytes.len() > self.end {
            return Err(fmt::Error);
        }
        self.out.extend_from_slice(bytes);
        Ok(())
    }
}

impl Write for Escape<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let plain = |byte: u8| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\';
        if text.bytes().all(plain) && self.out.len() + text.len() <= self.end {
            return self.push(text.as_bytes());
        }
        text.chars().try_for_each(|c| self.write_char(c))
    }

    fn write_char(&mut self, c: char) -> fmt::Result {
        match c {
            '"' => self.push(b"\\\""),
            '\\' => self.push(b"\\\\"),
            ' '..='~' => self.push(&[u8::try_from(c).unwrap_or(b'?')]),
            c if is_hidden(c) => {
                // Both halves of a surrogate pair or none: one alone is not JSON (RFC 8259 §8.2).
                let mut escaped: SmallVec<[u8; 12]> = SmallVec::new();
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let digit = |shift: u16| *HEX.get(usize::from(*unit >> shift & 0xf)).unwrap_or(&b'0');
                    escaped.extend_from_slice(&[b'\\', b'u', digit(12), digit(8), digit(4), digit(0)]);
                }
                self.push(&escaped)
            }
            c => self.push(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

const HEX: &[u8; 16] = b"0123456789abcdef";

/// Characters that change how the rest of a line is shown, or are not shown: C0, DEL, C1, line and paragraph
/// separators, zero-width characters, and those that turn the writing direction (Unicode UAX #9 §2).
/// In the file they are escaped, so that the file itself is safe to look at.
pub(in crate::audit) const fn is_hidden(c: char) -> bool {
    matches!(c,
        '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
        | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::fixture;
    use crate::name::NameBuf;
    use serde_json::Value;

    const ID: RecordId = RecordId { boot: 0x7f3a_91c2_0b1d_44e0, shard: 3, sequence: 1_829_331 };

    fn line(event: &Event<'_>) -> String {
        let mut out = Vec::new();
        encode(&mut out, ID, "og-eu1-a", event);
        String::from_utf8(out).unwrap()
    }

    fn with<'a>(change: impl FnOnce(&mut QueryEvent<'a>)) -> String {
        let event: Event<'a> = fixture::query(Wall(1_795_233_184_117_302));
        let Event::Query(mut event) = event else { unreachable!() };
        change(&mut event);
        line(&Event::Query(event))
    }

    #[test]
    fn a_cut_never_parts_a_surrogate_pair() {
        for room in 0..40 {
            let mut out = Vec::new();
            let _ = Escape { out: &mut out, end: room }.write_str("a\u{e0001}\u{e0001}\u{e0001}");
            let text = format!("\"{}\"", String::from_utf8(out).unwrap());
            assert!(serde_json::from_str::<String>(&text).is_ok(), "{text}");
        }
    }

    #[test]
    fn writes_what_the_interface_shows() {
        assert_eq!(
            with(|_| ()),
            concat!(
                r#"{"v":1,"type":"query","id":"7f3a91c20b1d44e0-3-1829331","ts":"2026-11-21T03:53:04.117302Z","#,
                r#""node":"og-eu1-a","client":"192.0.2.1","port":40112,"transport":"udp","segment":"checkout","#,
                r#""tags":{"service":"checkout"},"qid":4711,"qname":"example.org","qtype":"A","verdict":"deny","#,
                r#""reason":"default","policy":"9c1f5be27a40d3e1","rcode":"NXDOMAIN","flags":["RD","RA"],"bytes":90,"#,
                r#""cache":"miss","latency_us":42}"#,
                "\n"
            )
        );
    }

    #[test]
    fn silence_has_no_reply() {
        let line = with(|event| event.rcode = None);
        for key in ["rcode", "flags", "bytes"] {
            assert!(!line.contains(&format!("\"{key}\"")), "{line}");
        }
    }

    #[test]
    fn hostile_names_stay_inside_their_string() {
        let rows: [(&[u8], &str); 9] = [
            (b"a\"b", "a\"b"),
            (b"a\\b", r"a\\b"),
            (b"a.b", r"a\.b"),
            (b"\0\x1b[2J\n", r"\000\027[2j\010"),
            (b"\xe2\x80\xa8", r"\226\128\168"),
            (b"\xff\xfe", r"\255\254"),
            (b"|=,;'", "|=,;'"),
            (b"\x7f ", r"\127\032"),
            (b"</script>", "</script>"),
        ];
        for (label, expected) in rows {
            let mut name = NameBuf::new();
            name.push_label(label).unwrap();
            let line = with(|event| event.qname = Some(&name));
            let record: Value = serde_json::from_str(&line).unwrap();
            assert_eq!(record["qname"], expected, "{line}");
            assert!(line.trim_end().chars().all(|c| (' '..='~').contains(&c)), "{line}");
            assert_eq!(line.matches('\n').count(), 1);
        }
    }

    #[test]
    fn hostile_text_survives_and_is_shown_escaped() {
        let text = "\"\\\n\r\t\0\u{7f}\u{9b}\u{2028}\u{202e}\u{feff}\u{e0001}é漢🦀";
        let line = with(|event| event.why = Some(text));
        let record: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(record["why"], text);
        assert!(!line.trim_end().chars().any(is_hidden), "{line}");
        assert!(line.contains(r"\u2028\u202e\ufeff\udb40\udc01é漢🦀"), "{line}");
    }

    #[test]
    fn long_text_is_cut_between_characters() {
        let long = "\u{1}漢".repeat(200);
        let line = with(|event| event.why = Some(&long));
        let record: Value = serde_json::from_str(&line).unwrap();
        let why = record["why"].as_str().unwrap();
        assert!(why.ends_with('…') && why.len() < SENTENCE + 4, "{why}");
    }
}
