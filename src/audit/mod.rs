//! Audit: one record per query, written before its answer is sent.
//!
//! [`Log`] is the file with its rotation; each thread that answers owns one [`Shard`] of it, a gapless sequence.
//! An id is [reserved](Shard::reserve) when a query is accepted, the record [appended](Shard::append) when it is
//! answered, and a batch of records [committed](Shard::commit) by one write before the batch is sent.

mod event;

pub use event::{
    BackendAck, CacheUse, Event, GrantEvent, GrantOp, Outcome, PolicyEvent, QueryEvent, RecordId, Transport,
};
