//! JSON: a record as one line of at most [`MAX_LINE`] bytes, keys in the order of `docs/log.md`.
//!
//! Written by hand into the shard's buffer, because it is on every query's path: nothing is allocated. Whatever
//! could be long is capped, so that the fields behind the answers always fit; the answers take what room is left.

mod figures;
mod flow;
mod line;
mod own;
mod rendered;

use self::figures::Calendar;
pub(in crate::audit::format) use self::line::Line;
pub(in crate::audit) use self::line::is_hidden;
use self::line::{key, open};
pub use self::rendered::Rendered;
use crate::audit::{
    ChangeEvent, Event, GrantEvent, PolicyEvent, QueryEvent, RecordId, Ruled, Shadow, Stated, Statement,
};
use crate::net::Scope;
use crate::record::Record;
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
/// A segment's name, or a rule's id: 63 plain characters.
const ID: usize = 64;
/// The node: a host name has at most 255 octets.
const NODE: usize = 256;
/// Sentences, which may hold what an upstream said.
const SENTENCE: usize = 512;
/// Tags are left out as a whole above this: a cut object would not be JSON.
const TAGS: usize = 3072;
/// The same of labels.
const LABELS: usize = 1024;
/// A pattern that somebody typed.
const TARGET: usize = 256;
/// All of them, and all segments beside them: the rest of such a record takes less than 3 KiB.
const LISTED: usize = 2500;
/// What a candidate says more.
const CLAUSE: usize = 128;
/// What stands behind it: the latency and the end of the line.
const AFTER_SHADOW: usize = 40;
/// One record's service ranges; a rule has at most 128 ports.
const SERVICES: usize = 48;
/// Segments and rules of each kind that a reload's record names.
const CHANGED: usize = 10;
/// A grant waits for few firewalls.
const BACKENDS: usize = 16;

/// The header flag of a reply whose records did not fit (RFC 1035 §4.1.1).
const TC: u16 = 0x0200;

/// Header flags in the order in which DNS tools print them (RFC 1035 §4.1.1, RFC 4035 §3).
const FLAGS: [(u16, &str); 6] = [
    (0x0400, "\"AA\""),
    (TC, "\"TC\""),
    (0x0100, "\"RD\""),
    (0x0080, "\"RA\""),
    (0x0020, "\"AD\""),
    (0x0010, "\"CD\""),
];

/// Writes the records of one shard, and keeps what is the same in each.
pub struct Encoder {
    boot: u64,
    shard: u16,
    /// An id of this shard up to its sequence.
    id: Box<str>,
    /// What stands between a record's time and its first own field.
    node: Box<[u8]>,
    calendar: Calendar,
    /// Those that the last reply had, and the field.
    flags: (u16, Vec<u8>),
}

impl Encoder {
    /// For the records of one shard of the process `boot` on the node called `node`.
    #[must_use]
    pub fn new(boot: u64, shard: u16, node: &str) -> Self {
        let mut between = Vec::new();
        Line(&mut between).text("\",\"node\":\"", node, NODE);
        let mut id = RecordId { boot, shard, sequence: 0 }.to_string();
        id.pop();
        Self {
            boot,
            shard,
            id: id.into(),
            node: between.into(),
            calendar: Calendar::new(),
            flags: (0, b",\"flags\":[]".to_vec()),
        }
    }

    /// Appends `event` to `out` as one line with its line feed.
    pub fn encode(&mut self, out: &mut Vec<u8>, id: RecordId, event: &Event<'_>) {
        match event {
            Event::Query(event) => self.query(out, id, event),
            Event::Grant(event) => self.grant(out, id, event),
            Event::Policy(event) => self.policy(out, id, event),
            Event::Change(event) => self.change(out, id, event),
            Event::Flow(event) => self.flow(out, id, event),
        }
        out.extend_from_slice(b"}\n");
    }

    /// What every record has; `begin` is up to the id.
    fn begin(&mut self, out: &mut Vec<u8>, begin: &str, id: RecordId, at: Wall) {
        out.reserve(MAX_LINE);
        self.id(out, begin, id);
        out.extend_from_slice(b",\"ts\":\"");
        self.calendar.write(out, at);
        out.extend_from_slice(&self.node);
    }

    fn id(&self, out: &mut Vec<u8>, open: &str, id: RecordId) {
        out.extend_from_slice(open.as_bytes());
        if (id.boot, id.shard) == (self.boot, self.shard) {
            out.extend_from_slice(self.id.as_bytes());
            figures::number(out, id.sequence);
        } else {
            figures::id(out, id);
        }
        out.push(b'"');
    }

    fn time(&mut self, out: &mut Vec<u8>, open: &str, at: Wall) {
        out.extend_from_slice(open.as_bytes());
        self.calendar.write(out, at);
        out.push(b'"');
    }

    fn query(&mut self, out: &mut Vec<u8>, id: RecordId, event: &QueryEvent<'_>) {
        // The answers end so far from here.
        let end = out.len() + MAX_LINE - AFTER_ANSWERS;
        self.begin(out, "{\"v\":1,\"type\":\"query\",\"id\":\"", id, event.at);
        let line = &mut Line(out);
        line.address(open!("client"), event.client);
        line.number(key!("port"), event.port.into());
        line.word(open!("transport"), event.transport.as_str());
        line.text_of(open!("asked_by"), event.asked_by, WORD);
        line.text_of(open!("certificate"), event.certificate, WORD);
        if let Some(cookie) = event.cookie {
            line.word(open!("cookie"), cookie);
        }
        if let Some((segment, tags)) = event.segment {
            line.text(open!("segment"), segment, WORD);
            if !tags.is_empty() && tags.len() <= TAGS {
                line.raw(key!("tags"));
                line.raw(tags);
            }
        }
        if !event.labels.is_empty() && event.labels.len() <= LABELS {
            line.raw(key!("labels"));
            line.raw(event.labels);
        }
        if let Some(qid) = event.qid {
            line.number(key!("qid"), qid.into());
        }
        let replied = match &event.stated {
            Stated::Plain(statement) => {
                statement.verdict(line);
                statement.rcode.is_some()
            }
            Stated::Rendered(rendered) => {
                rendered.verdict(line);
                rendered.replied()
            }
        };
        if replied {
            self.flags(line.0, event.flags);
            line.number(key!("bytes"), u64::try_from(event.bytes).unwrap_or(u64::MAX));
        }
        if let Some(cache) = event.cache {
            line.word(open!("cache"), cache.as_str());
        }
        if event.flags & TC == 0 {
            match &event.stated {
                Stated::Plain(statement) => answers(line, statement.answers, event.ttl, end),
                Stated::Rendered(rendered) => rendered.answers(line, event.ttl, end),
            }
        }
        if let Some(until) = event.until {
            line.raw(key!("grant"));
            match &event.stated {
                Stated::Plain(statement) => line.services("{\"ports\":", statement.services),
                Stated::Rendered(rendered) => rendered.services(line),
            }
            self.time(line.0, open!("until"), until);
            line.raw("}");
        }
        match &event.stated {
            Stated::Plain(statement) => {
                statement.causes(line);
                if let Some(origin) = statement.origin.filter(|origin| *origin != id) {
                    self.id(line.0, open!("origin"), origin);
                }
            }
            Stated::Rendered(rendered) => rendered.causes(line, id),
        }
        if let Some(shadow) = event.shadow {
            shadow.write(line, end + AFTER_ANSWERS - AFTER_SHADOW);
        }
        line.number(key!("latency_us"), event.latency_us);
    }

    /// The flags of a reply: nearly always those of the one before.
    fn flags(&mut self, out: &mut Vec<u8>, flags: u16) {
        let (last, field) = &mut self.flags;
        if *last != flags {
            *last = flags;
            field.clear();
            let set = FLAGS.iter().filter(|(bit, _)| flags & bit != 0);
            Line(field).list(key!("flags"), set, |line, (_, flag)| line.raw(flag));
        }
        out.extend_from_slice(field);
    }

    fn grant(&mut self, out: &mut Vec<u8>, id: RecordId, event: &GrantEvent<'_>) {
        self.begin(out, "{\"v\":1,\"type\":\"grant\",\"id\":\"", id, event.at);
        let line = &mut Line(out);
        line.word(open!("op"), event.op.as_str());
        if let Some(client) = event.client {
            line.address(open!("client"), client);
        }
        line.word(
            open!("scope"),
            match event.element.from {
                Scope::Client(_) => "client",
                Scope::Segment(_) => "segment",
            },
        );
        line.text(open!("segment"), event.segment, WORD);
        line.text(open!("rule"), event.rule, WORD);
        line.name(open!("qname"), event.qname.as_wire());
        line.address(open!("address"), event.element.to);
        line.services(key!("ports"), event.services);
        self.time(line.0, open!("until"), event.until);
        if let Some(query) = event.query {
            self.id(line.0, open!("query"), query);
        }
        line.text_of(open!("why"), event.why, SENTENCE);
        if !event.backends.is_empty() {
            line.list(key!("backends"), event.backends.iter().take(BACKENDS), |line, backend| {
                line.text("{\"name\":\"", backend.name, WORD);
                line.number(key!("acked_us"), backend.acked_us);
                line.raw("}");
            });
        }
    }

    fn policy(&mut self, out: &mut Vec<u8>, id: RecordId, event: &PolicyEvent<'_>) {
        self.begin(out, "{\"v\":1,\"type\":\"policy\",\"id\":\"", id, event.at);
        let line = &mut Line(out);
        line.text(open!("op"), event.op, WORD);
        line.hex(open!("policy"), event.revision);
        if let Some(previous) = event.previous {
            line.hex(open!("previous"), previous);
        }
        line.number(key!("segments"), u64::try_from(event.segments).unwrap_or(u64::MAX));
        line.number(key!("rules"), u64::try_from(event.rules).unwrap_or(u64::MAX));
        line.number(key!("revoked"), event.revoked);
        if let Some(changes) = event.changes {
            line.changes(changes);
        }
        line.text_of(open!("why"), event.why, SENTENCE);
    }

    fn change(&mut self, out: &mut Vec<u8>, id: RecordId, event: &ChangeEvent<'_>) {
        self.begin(out, "{\"v\":1,\"type\":\"change\",\"id\":\"", id, event.at);
        let line = &mut Line(out);
        line.text(open!("op"), event.op, WORD);
        line.text_of(open!("change"), event.change, WORD);
        line.text_of(open!("by"), event.by, WORD);
        for (key, omitted, values) in [
            (key!("targets"), key!("targets_omitted"), event.targets),
            (key!("segments"), key!("segments_omitted"), event.segments),
        ] {
            let room = values.iter().scan(0, |octets, value| {
                *octets += (6 * value.len()).min(TARGET) + 8;
                (*octets <= LISTED).then_some(())
            });
            let room = room.count();
            if room > 0 {
                line.list(key, values.iter().take(room), |line, value| line.text("\"", value, TARGET));
            }
            if room < values.len() {
                line.number(omitted, u64::try_from(values.len() - room).unwrap_or(u64::MAX));
            }
        }
        if let Some(client) = event.client {
            line.address(open!("client"), client);
        }
        if let Some(until) = event.until {
            self.time(line.0, open!("until"), until);
        }
        line.text_of(open!("why"), event.why, SENTENCE);
        line.text_of(open!("ticket"), event.ticket, WORD);
        if let Some(clients) = event.clients {
            line.number(key!("clients"), u64::try_from(clients).unwrap_or(u64::MAX));
        }
        line.number(key!("revoked"), event.revoked);
        if let Some(cut) = event.cut {
            line.number(key!("cut"), cut);
        }
        if event.unsaved {
            line.raw(concat!(key!("unsaved"), "true"));
        }
    }
}

impl Shadow<'_> {
    /// The whole object, or nothing where it would end behind `end`: in lines of nearly the largest size.
    #[cold]
    fn write(&self, line: &mut Line<'_>, end: usize) {
        let before = line.0.len();
        line.word(concat!(key!("shadow"), "{\"kind\":\""), self.dissent.as_str());
        line.word(open!("verdict"), self.outcome.as_str());
        if !self.enforced {
            line.raw(concat!(key!("enforced"), "false"));
        }
        line.word(open!("reason"), self.reason.as_str());
        line.text_of(open!("rule"), self.rule, WORD);
        line.text_of(open!("segment"), self.segment, WORD);
        line.hex(open!("policy"), self.policy);
        line.text_of(open!("why"), self.why, CLAUSE);
        line.raw("}");
        if line.0.len() > end {
            line.0.truncate(before);
        }
    }
}

impl Statement<'_> {
    /// The fields from the question to the response code.
    fn verdict(&self, line: &mut Line<'_>) {
        if let Some(qname) = self.qname {
            line.name(open!("qname"), qname);
        }
        if let Some(qtype) = self.qtype {
            line.mnemonic(open!("qtype"), qtype.mnemonic(), "TYPE", qtype.0);
        }
        line.word(open!("verdict"), self.outcome.as_str());
        if !self.enforced {
            line.raw(concat!(key!("enforced"), "false"));
        }
        line.word(open!("reason"), self.reason.as_str());
        if let Some(Ruled { id, owner, ticket }) = self.rule {
            line.text(open!("rule"), id, WORD);
            line.text_of(open!("owner"), owner, WORD);
            line.text_of(open!("ticket"), ticket, WORD);
        }
        line.hex(open!("policy"), self.policy);
        if let Some(rcode) = self.rcode {
            line.mnemonic(open!("rcode"), rcode.mnemonic(), "RCODE", rcode.0);
        }
    }

    /// The fields from the extended error to the upstream.
    fn causes(&self, line: &mut Line<'_>) {
        if let Some(ede) = self.ede {
            line.raw(key!("ede"));
            line.number("{\"code\":", ede.code.into());
            line.text_of(open!("text"), Some(&*ede.text).filter(|text| !text.is_empty()), SENTENCE);
            line.raw("}");
        }
        line.text_of(open!("why"), self.why, SENTENCE);
        line.text_of(open!("upstream"), self.upstream, WORD);
    }
}

/// As many whole answers as leave room for what comes behind them.
fn answers(line: &mut Line<'_>, answers: &[Record], ttl: u32, end: usize) {
    if answers.is_empty() {
        return;
    }
    line.raw(concat!(key!("answers"), "["));
    let mut told = 0;
    for answer in answers {
        let before = line.0.len();
        if told > 0 {
            line.raw(",");
        }
        let written = line.answer(answer, end).and_then(|()| {
            figures::number(line.0, ttl.into());
            line.answer_data(answer, end)
        });
        if written.is_err() {
            line.0.truncate(before);
            break;
        }
        told += 1;
    }
    end_answers(line, answers.len() - told);
}

fn end_answers(line: &mut Line<'_>, omitted: usize) {
    line.raw("]");
    if omitted > 0 {
        line.number(key!("answers_omitted"), omitted as u64);
    }
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
        Encoder::new(ID.boot, ID.shard, "og-eu1-a").encode(&mut out, ID, event);
        String::from_utf8(out).unwrap()
    }

    fn with<'a>(change: impl FnOnce(&mut Statement<'a>)) -> String {
        let event: Event<'a> = fixture::query(Wall(1_795_233_184_117_302));
        let Event::Query(mut event) = event else { unreachable!() };
        let mut statement = fixture::statement();
        change(&mut statement);
        event.stated = Stated::Plain(statement);
        line(&Event::Query(event))
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
        let line = with(|statement| statement.rcode = None);
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
            let line = with(|statement| statement.qname = Some(&name));
            let record: Value = serde_json::from_str(&line).unwrap();
            assert_eq!(record["qname"], expected, "{line}");
            assert!(line.trim_end().chars().all(|c| (' '..='~').contains(&c)), "{line}");
            assert_eq!(line.matches('\n').count(), 1);
        }
    }

    #[test]
    fn hostile_text_survives_and_is_shown_escaped() {
        let text = "\"\\\n\r\t\0\u{7f}\u{9b}\u{2028}\u{202e}\u{feff}\u{e0001}é漢🦀";
        let line = with(|statement| statement.why = Some(text));
        let record: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(record["why"], text);
        assert!(!line.trim_end().chars().any(is_hidden), "{line}");
        assert!(line.contains(r"\u2028\u202e\ufeff\udb40\udc01é漢🦀"), "{line}");
    }

    #[test]
    fn long_text_is_cut_between_characters() {
        let long = "\u{1}漢".repeat(200);
        let line = with(|statement| statement.why = Some(&long));
        let record: Value = serde_json::from_str(&line).unwrap();
        let why = record["why"].as_str().unwrap();
        assert!(why.ends_with('…') && why.len() < SENTENCE + 4, "{why}");
    }
}
