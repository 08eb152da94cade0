//! What a server speaks: one row each.

use super::super::Record;
use super::client::Reply;
use super::reply::{Said, by_status};
use super::settings::Settings;
use super::{elasticsearch, splunk};

/// One kind of server.
pub(super) struct Api {
    /// The word in `api`.
    pub(super) name: &'static str,
    /// The format where none is named; `None`: that of the log.
    pub(super) format: Option<&'static str>,
    /// Behind the path of `url`; `{index}/` is the index, where one is named.
    pub(super) path: &'static str,
    /// The query of a request.
    pub(super) query: &'static str,
    /// `Content-Type`.
    pub(super) media: &'static str,
    /// What a token is called in `Authorization`.
    pub(super) scheme: &'static str,
    /// Whether it is known to take compressed bodies.
    pub(super) gzip: bool,
    /// The keys that it has beside those of all.
    pub(super) keys: &'static [&'static str],
    /// Appends one record.
    pub(super) write: fn(&Settings, &Record, &mut Vec<u8>),
    /// What a reply says of so many records.
    pub(super) judge: fn(&Settings, &Reply, usize) -> Said,
}

/// Every kind.
pub(super) const APIS: &[Api] = &[
    Api {
        name: "splunk",
        format: None,
        path: "services/collector/event",
        query: "",
        media: "application/json",
        scheme: "Splunk",
        gzip: true,
        keys: &["index", "source", "sourcetype", "ack"],
        write: splunk::write,
        judge: splunk::judge,
    },
    Api {
        name: "elasticsearch",
        format: Some("ecs"),
        path: "{index}/_bulk",
        query: elasticsearch::FILTER,
        media: "application/x-ndjson",
        scheme: "ApiKey",
        gzip: true,
        keys: &["index"],
        write: |_, record, out| elasticsearch::write(record, out),
        judge: elasticsearch::judge,
    },
    Api {
        name: "ndjson",
        format: None,
        path: "",
        query: "",
        media: "application/x-ndjson",
        scheme: "Bearer",
        gzip: false,
        keys: &[],
        write: |_, record, out| {
            out.extend_from_slice(&record.bytes);
            out.push(b'\n');
        },
        judge: lines,
    },
];

/// A reply to plain lines: the status is all that counts.
fn lines(settings: &Settings, reply: &Reply, _: usize) -> Said {
    match reply.status {
        200..=299 => Said::Taken(None),
        400 | 422 => {
            let words = reply.text();
            Said::Smaller { why: format!("answers {}: {}", reply.status, super::reply::told(&words)), large: false }
        }
        _ => by_status(settings, reply, &reply.text()),
    }
}
