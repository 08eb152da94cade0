//! Elasticsearch and OpenSearch, `_bulk`: each record created under its `id`, so that one that is there already stays as
//! it is.

use serde::Deserialize;

use super::super::Record;
use super::client::Reply;
use super::reply::{Said, by_status, told};
use super::settings::Settings;
use super::splunk::string;

/// What a reply is to hold: of each record its status, in the order of the request, and what is wrong with it.
pub(super) const FILTER: &str = "filter_path=errors,items.*.status,items.*.error.type,items.*.error.reason";

/// Appends one record with what is to be done with it. Data streams take `create` alone.
pub(super) fn write(record: &Record, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"create\":{\"_id\":");
    string(&record.id, out);
    out.extend_from_slice(b"}}\n");
    out.extend_from_slice(&record.bytes);
    out.push(b'\n');
}

#[derive(Deserialize)]
struct Bulk {
    errors: bool,
    #[serde(default)]
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    #[serde(alias = "index")]
    create: Outcome,
}

#[derive(Deserialize)]
struct Outcome {
    status: u16,
    #[serde(default)]
    error: Fault,
}

#[derive(Default, Deserialize)]
struct Fault {
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default)]
    reason: Option<String>,
}

impl Fault {
    fn told(&self) -> String {
        match &self.reason {
            Some(reason) => told(&format!("{}: {reason}", self.kind)),
            None => told(&self.kind),
        }
    }

    /// Of the index, whatever the record: it cannot be written to as it is.
    fn is_of_the_index(&self) -> bool {
        self.kind.starts_with("index_") || self.kind.starts_with("invalid_index") || self.kind.starts_with("cluster_")
    }
}

#[derive(Deserialize)]
struct Whole {
    error: Fault,
}

/// What a reply says of `count` records.
pub(super) fn judge(settings: &Settings, reply: &Reply, count: usize) -> Said {
    if reply.status != 200 {
        let whole: Option<Whole> = serde_json::from_slice(&reply.body).ok();
        return by_status(settings, reply, &whole.map_or_else(|| reply.text(), |whole| whole.error.told()));
    }
    let bulk: Bulk = match serde_json::from_slice(&reply.body) {
        Ok(bulk) => bulk,
        Err(_) if reply.cut => return Said::Smaller { why: "answers more than is read of it".to_owned(), large: true },
        Err(_) => return Said::later("answers 200, but not as _bulk does; look at `url`".to_owned()),
    };
    if !bulk.errors {
        return Said::Taken(None);
    }
    if bulk.items.len() != count {
        return Said::later(format!("speaks of {} records where {count} were sent", bulk.items.len()));
    }
    let (mut again, mut suspects, mut first) = (Vec::new(), Vec::new(), None);
    for (at, Item { create: Outcome { status, error } }) in bulk.items.into_iter().enumerate() {
        match status {
            // It was created before: its reply did not reach us.
            200..=299 | 409 => {}
            // Of the record, or of an index that takes none: a pipeline that is not there, a limit of fields that is
            // reached. Its words do not tell the two apart, other records do.
            400 if !error.is_of_the_index() => {
                first.get_or_insert_with(|| {
                    format!("{}; look at the index: its mapping, limits, pipeline", error.told())
                });
                suspects.push((at, error.told()));
            }
            // Too busy, a shard that is not there, no right to it, no such index: not the record's fault.
            _ => {
                first.get_or_insert_with(|| format!("takes a record not now ({status}): {}", error.told()));
                again.push(at);
            }
        }
    }
    Said::Each { again, suspects, why: first }
}
