//! Audit: one record per query, written before its answer is sent.
//!
//! [`Log`] is the file with its rotation; each thread that answers owns one [`Shard`] of it, a gapless sequence.
//! An id is [reserved](Shard::reserve) when a query is accepted, the record [appended](Shard::append) when it is
//! answered, and a batch of records [committed](Shard::commit) by one write before the batch is sent, and where
//! [`Durability`] says so, by one wait for the disk.
//!
//! [`read_queries`] reads the records back, for the verbs that learn from them.
//!
//! What was not written is never silent: its ids are missing, a `gap` record names them, and [`verify()`] finds both.
//! Every field is in [`FIELDS`] and docs/log.md.

mod archive;
mod decode;
mod error;
mod event;
mod fields;
mod file;
#[cfg(test)]
mod fixture;
mod format;
mod group;
mod log;
mod meter;
mod own;
mod pack;
mod ranges;
mod read;
mod records;
mod seal;
mod settings;
mod shard;
mod sink;
mod tail;
mod verify;

pub use decode::decoded;
pub use error::AuditError;
pub use event::{
    BackendAck, CacheUse, ChangeEvent, Event, FlowEvent, FlowOp, GrantEvent, GrantOp, Outcome, PolicyEvent, QueryEvent,
    RecordId, Ruled, Shadow, Stated, Statement, Transport,
};
pub use fields::{FIELDS, Field};
pub use format::json::{Encoder, MAX_LINE, Rendered};
pub use format::text::render_line;
pub use format::{FORMATS, Format, Framing};
pub use log::Log;
pub use meter::{Counts, Meter};
pub use records::{
    Flow, Grant, Named, Notice, PolicyChange, QueriesProgress, QueriesRead, Query, Recorded, Text, Told, read_lines,
    read_queries, read_records,
};
pub use settings::{Durability, OnFull, Settings};
pub use shard::Shard;
pub use sink::{Gauges as SinkGauges, History, HistoryEvent, Lag as SinkLag, Settings as SinkSettings, Sinks};
pub use tail::{Filter, Tail};
pub use verify::{Finding, Progress, Report, verify};
