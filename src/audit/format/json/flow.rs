//! A flow's record.

use super::line::{Line, key, open};
use super::{Encoder, MAX_LINE, NAME, SENTENCE, TAGS, WORD};
use crate::audit::{FlowEvent, RecordId};

/// What the fields behind the names can take at most: six numbers of 40 bytes, a time, and words.
const AFTER_NAMES: usize = 500;

impl Encoder {
    pub(super) fn flow(&mut self, out: &mut Vec<u8>, id: RecordId, event: &FlowEvent<'_>) {
        // The names end so far from here.
        let end = out.len() + MAX_LINE - AFTER_NAMES;
        self.begin(out, "{\"v\":1,\"type\":\"flow\",\"id\":\"", id, event.at);
        let line = &mut Line(out);
        line.word(open!("op"), event.op.as_str());
        line.address(open!("client"), event.client);
        if let Some(port) = event.port {
            line.number(key!("port"), port.into());
        }
        if let Some((segment, tags)) = event.segment {
            line.text(open!("segment"), segment, WORD);
            if !tags.is_empty() && tags.len() <= TAGS {
                line.raw(key!("tags"));
                line.raw(tags);
            }
        }
        line.address(open!("address"), event.address);
        line.word(open!("service"), &event.service.to_string());
        line.word(open!("action"), if event.denied { "deny" } else { "allow" });
        line.word(open!("class"), event.class.as_str());
        if let Some(detail) = event.detail {
            line.word(open!("detail"), detail.as_str());
        }
        line.text_of(open!("why"), event.why, SENTENCE);
        line.text_of(open!("qname"), event.qname, NAME);
        line.text_of(open!("rule"), event.rule, WORD);
        if let Some(query) = event.query {
            self.id(line.0, open!("query"), query);
        }
        self.names(line.0, event, end);
        let line = &mut Line(out);
        for (key, number) in [
            (key!("late_us"), event.late_us),
            (key!("outlived_us"), event.outlived_us),
            (key!("bytes_out"), event.bytes_out),
            (key!("bytes_in"), event.bytes_in),
            (key!("packets_out"), event.packets_out),
            (key!("packets_in"), event.packets_in),
        ] {
            if let Some(number) = number {
                line.number(key, number);
            }
        }
        if let Some(end) = event.end {
            self.time(line.0, open!("end"), end);
            line.number(key!("duration_us"), end.0.saturating_sub(event.at.0));
        }
        if !event.started {
            line.raw(concat!(key!("started"), "false"));
        }
        line.word(open!("source"), event.source.as_str());
    }

    /// As many whole names as end before `end`.
    fn names(&mut self, out: &mut Vec<u8>, event: &FlowEvent<'_>, end: usize) {
        let start = out.len();
        out.extend_from_slice(concat!(key!("names"), "[").as_bytes());
        let mut told = 0;
        for named in event.names {
            let before = out.len();
            let line = &mut Line(out);
            if told > 0 {
                line.raw(",");
            }
            line.text("{\"qname\":\"", named.qname, NAME);
            line.text(open!("rule"), named.rule, WORD);
            if let Some(query) = named.query {
                self.id(line.0, open!("query"), query.into());
            }
            self.time(line.0, open!("told"), named.told);
            self.time(line.0, open!("until"), named.until);
            line.raw("}");
            if out.len() > end {
                out.truncate(before);
                break;
            }
            told += 1;
        }
        if told == 0 {
            out.truncate(start);
        } else {
            out.push(b']');
        }
        let omitted = event.names_omitted + (event.names.len() - told) as u64;
        if omitted > 0 {
            Line(out).number(key!("names_omitted"), omitted);
        }
    }
}
