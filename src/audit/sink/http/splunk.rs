//! Splunk's HTTP Event Collector: one envelope a record, one after another in a request.
//!
//! Of an event that it refuses the collector says the number and indexes nothing behind it; what stood before it some
//! implementations index and some do not. So the others are offered again: known ones are found by their `id`.

use std::time::Duration;

use hyper::body::Bytes;
use hyper::header::HeaderValue;
use serde::Deserialize;

use super::super::Record;
use super::client::{Client, Reply};
use super::reply::{SHUT_OUT, Said, by_status, told};
use super::settings::Settings;
use crate::document::parse_moment;

/// How long after the last request of a batch its acknowledgements are waited for; then its records are sent again.
/// Splunk indexes within some seconds.
const ACKNOWLEDGED: Duration = Duration::from_secs(60);
/// The first pause between two questions for acknowledgements, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// The codes of the collector that concern one event: invalid data format, event field required, event field blank,
/// error in handling indexed fields.
const OF_AN_EVENT: [u64; 4] = [6, 12, 13, 15];
/// Those of a token that is disabled, required, malformed or unknown.
const OF_THE_TOKEN: [u64; 4] = [1, 2, 3, 4];

/// The part of an envelope between time and event.
fn envelope(node: &str, settings: &Settings, out: &mut Vec<u8>) {
    let fields = [
        ("host", Some(node)),
        ("source", Some(settings.source.as_str())),
        ("sourcetype", Some(settings.sourcetype.as_str())),
        ("index", settings.index.as_deref()),
    ];
    for (name, value) in fields {
        let Some(value) = value else { continue };
        out.extend_from_slice(b"\"");
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b"\":");
        string(value, out);
        out.push(b',');
    }
}

/// Appends one record in its envelope.
pub(super) fn write(settings: &Settings, record: &Record, out: &mut Vec<u8>) {
    out.push(b'{');
    if let Some(at) = parse_moment(&record.ts) {
        let time = format!("\"time\":{}.{:06},", at.0 / 1_000_000, at.0 % 1_000_000);
        out.extend_from_slice(time.as_bytes());
    }
    envelope(&record.node, settings, out);
    out.extend_from_slice(b"\"event\":");
    out.extend_from_slice(&record.bytes);
    out.extend_from_slice(b"}\n");
}

/// Appends a JSON string.
pub(super) fn string(text: &str, out: &mut Vec<u8>) {
    // A string is always JSON, and a vector takes everything.
    let _infallible = serde_json::to_writer(out, text);
}

/// What the collector answers.
#[derive(Default, Deserialize)]
struct Answer {
    code: Option<u64>,
    #[serde(default)]
    text: String,
    #[serde(rename = "invalid-event-number")]
    invalid: Option<usize>,
    #[serde(rename = "ackId")]
    ack: Option<u64>,
}

/// What a reply says of `count` events.
pub(super) fn judge(settings: &Settings, reply: &Reply, count: usize) -> Said {
    let answer: Option<Answer> = serde_json::from_slice(&reply.body).ok();
    let Some(answer) = answer else {
        return match reply.status {
            200..=299 => Said::later(format!("answers {}, but not as Splunk does; look at `url`", reply.status)),
            _ => by_status(settings, reply, &reply.text()),
        };
    };
    match (reply.status, answer.code) {
        (200, Some(0)) => match (&answer.ack, settings.ack) {
            (None, true) => Said::later("acknowledges nothing; remove `ack`".to_owned()),
            (ack, _) => Said::Taken(*ack),
        },
        (400, Some(code)) if OF_AN_EVENT.contains(&code) => {
            let why = format!("{} (code {code})", told(&answer.text));
            match answer.invalid {
                Some(at) if at < count => Said::Without { at, why },
                _ => Said::Smaller { why, large: false },
            }
        }
        (_, Some(code)) if OF_THE_TOKEN.contains(&code) => {
            let why = format!("{} (code {code}); look at `token_file`", told(&answer.text));
            Said::Later { why, wait: Some(SHUT_OUT) }
        }
        (400, Some(code)) => {
            let remedy = match code {
                7 => "; write an `index` that the token may write to",
                10 | 11 => "; the token acknowledges: write ack = true",
                14 => "; the token does not acknowledge: remove `ack`",
                _ => "",
            };
            Said::Later { why: format!("{} (code {code}){remedy}", told(&answer.text)), wait: Some(SHUT_OUT) }
        }
        _ => by_status(settings, reply, &answer.text),
    }
}

/// A channel: in it the collector numbers what it was sent, and says of each number whether it was indexed.
pub(super) struct Channel {
    header: HeaderValue,
    /// The token is known to acknowledge.
    open: bool,
    pending: Vec<(u64, Vec<usize>)>,
}

#[derive(Deserialize)]
struct Acks {
    acks: std::collections::HashMap<String, bool>,
}

impl Channel {
    /// With a random name (RFC 9562 §5.4).
    pub(super) fn new() -> Result<Self, String> {
        let mut name = [0; 16];
        getrandom::fill(&mut name).map_err(|error| format!("the system gives no random numbers: {error}"))?;
        let [.., six, _, eight, _, _, _, _, _, _, _] = &mut name;
        (*six, *eight) = (*six & 0x0f | 0x40, *eight & 0x3f | 0x80);
        let mut text = data_encoding::HEXLOWER.encode(&name);
        for at in [20, 16, 12, 8] {
            text.insert(at, '-');
        }
        let header = HeaderValue::from_str(&text).map_err(|error| error.to_string())?;
        Ok(Self { header, open: false, pending: Vec::new() })
    }

    pub(super) const fn header(&self) -> &HeaderValue {
        &self.header
    }

    /// Asks once whether the token acknowledges at all: otherwise what is indexed would be sent again and again.
    pub(super) fn open(&mut self, settings: &Settings, client: &mut Client) -> Result<(), Said> {
        if !self.open {
            self.ask(&[0], settings, client)?;
            self.open = true;
        }
        Ok(())
    }

    /// Records that have this number.
    pub(super) fn sent(&mut self, number: u64, records: Vec<usize>) {
        self.pending.push((number, records));
    }

    /// Waits until everything sent was indexed. The records of which that is not known in time, and why.
    pub(super) fn settle(&mut self, settings: &Settings, client: &mut Client) -> (Vec<usize>, Option<String>) {
        let mut why = None;
        let (mut pause, mut waited) = (PAUSES.0, Duration::ZERO);
        while !self.pending.is_empty() && waited < ACKNOWLEDGED && client.pause(pause) {
            waited += pause;
            pause = (pause * 2).min(PAUSES.1);
            let numbers: Vec<u64> = self.pending.iter().map(|(number, _)| *number).collect();
            match self.ask(&numbers, settings, client) {
                Ok(acks) => {
                    self.pending.retain(|(number, _)| !acks.acks.get(&number.to_string()).copied().unwrap_or(false));
                }
                Err(Said::Later { why: said, .. }) => why = Some(said),
                Err(_) => {}
            }
        }
        let lost: Vec<usize> = self.pending.drain(..).flat_map(|(_, records)| records).collect();
        // A collector that lost what it was sent has forgotten the channel as well.
        self.open &= lost.is_empty();
        let late = || format!("did not acknowledge within {} s", ACKNOWLEDGED.as_secs());
        let why = (!lost.is_empty()).then(|| why.unwrap_or_else(late));
        (lost, why)
    }

    fn ask(&self, numbers: &[u64], settings: &Settings, client: &mut Client) -> Result<Acks, Said> {
        let body = Bytes::from(serde_json::json!({ "acks": numbers }).to_string());
        let reply =
            client.post(&settings.acks, Some(&self.header), false, body).map_err(|lost| Said::later(lost.why))?;
        if reply.status == 200
            && let Ok(acks) = serde_json::from_slice(&reply.body)
        {
            return Ok(acks);
        }
        Err(match judge(settings, &reply, 0) {
            said @ Said::Later { .. } => said,
            _ => Said::later(format!("answers {} when it is asked for acknowledgements", reply.status)),
        })
    }
}
