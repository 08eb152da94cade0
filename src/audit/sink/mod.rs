//! Sinks: what the log says, delivered elsewhere. The file is the queue: each sink reads it in a thread of its own, from a
//! saved cursor, and nothing of it is on the path of an answer.
//!
//! - **At least once.** The cursor moves when a record was delivered; after a crash some are delivered again, with the same
//!   `id`. A sink that is down loses nothing until retention removes an archive that it has not read; a `gap` record then
//!   tells it what is missing.
//! - **One engine.** [`engine`] reads, filters, formats, batches, retries and counts; a kind only [delivers](Deliver).
//!
//! A new kind is one file here and one row of [`KINDS`].

mod cursor;
mod dnstap;
mod engine;
mod file;
mod filter;
mod follow;
mod gauges;
mod history;
mod http;
mod intake;
mod limit;
mod line;
mod lost;
mod readers;
mod redact;
mod run;
mod settings;
mod source;
mod summary;
mod syslog;

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

pub use self::engine::Sinks;
pub use self::gauges::{Gauges, Lag};
pub use self::history::{Event as HistoryEvent, History};
pub(super) use self::readers::Readers;
use self::settings::Keys;
pub use self::settings::Settings;
use super::format::{Format, Framing};
use crate::document::Mistake;

/// What delivers batches to one place. Called from the sink's own thread; may block up to its own timeouts. A node that stops
/// waits some seconds for it, and then no more.
pub(super) trait Deliver: Send {
    /// Delivers these records, in order. What was taken for good and what is to be offered again is in the answer; a record
    /// may be offered twice.
    fn deliver(&mut self, batch: &Batch<'_>) -> Delivered;

    /// Gives it the flag that is raised when the node stops: what it waits for then is to end within a second or two.
    fn heed(&mut self, _stop: &Arc<AtomicBool>) {}

    /// For how long after its delivery a record may still be lost, where the other side acknowledges nothing. After a
    /// [`Delivered::Failed`] or a failed [`Deliver::check`] everything of that time is offered again. Asked after each
    /// delivery, and after a check or an end without an error: zero where all that was delivered is known to have arrived.
    fn unsure(&self) -> Duration {
        Duration::ZERO
    }

    /// Called about every 100 ms while there is nothing to deliver.
    ///
    /// # Errors
    /// One clause: what was delivered last may be lost.
    fn check(&mut self) -> Result<(), String> {
        Ok(())
    }

    /// Called once, when nothing more is delivered.
    ///
    /// # Errors
    /// As of a check.
    fn end(&mut self) -> Result<(), String> {
        Ok(())
    }
}

/// Records in the order of the log; never empty.
pub(super) struct Batch<'a> {
    pub(super) records: &'a [Record],
}

/// One record, as it is delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// The same whenever it is offered.
    pub(super) id: Box<str>,
    /// `type` of the record.
    pub(super) kind: Box<str>,
    /// RFC 3339 in UTC, with microseconds.
    pub(super) ts: Box<str>,
    pub(super) node: Box<str>,
    pub(super) segment: Option<Box<str>>,
    pub(super) verdict: Option<Box<str>>,
    /// In the sink's format, without an end of its own.
    pub(super) bytes: Vec<u8>,
}

/// What became of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Delivered {
    /// Every record was taken.
    All,
    /// Every record was taken but for these.
    Some {
        /// Indexes, ascending, of those to be offered again.
        again: Vec<usize>,
        /// Indexes of those that will never be taken, and one clause why. They are counted, told in the journal, and
        /// passed.
        refused: Vec<(usize, String)>,
        /// How long the other side asked to be left alone; nothing: it takes the others now. `None`: as long as the engine
        /// thinks right.
        wait: Option<Duration>,
    },
    /// No record was taken, or none can be said to be.
    Failed {
        /// One clause, with the remedy where there is one.
        why: String,
        /// As above.
        wait: Option<Duration>,
    },
}

/// What a kind made of its keys.
pub(super) trait Plan: Debug + Send + Sync {
    /// Reads the files that it names, for `outgate check`.
    ///
    /// # Errors
    /// One of them is of no use.
    fn check(&self) -> Result<(), Mistake> {
        Ok(())
    }

    /// The format where none is named and it is another than that of the kind.
    fn format(&self) -> Option<&'static str> {
        None
    }

    /// What delivers. Nothing is connected yet; called in the sink's thread.
    ///
    /// # Errors
    /// One sentence; it is tried again later.
    fn build(&self) -> Result<Box<dyn Deliver>, String>;
}

/// One kind of sink.
struct Kind {
    /// The word in `kind`.
    name: &'static str,
    /// The format where none is named.
    format: &'static str,
    /// Whether it can carry a format; of one that it cannot, the remedy.
    carries: fn(&Format) -> Result<(), &'static str>,
    /// Reads its keys; mistakes are noted in the document.
    read: fn(&Keys<'_>) -> Option<Arc<dyn Plan>>,
}

/// Every kind.
const KINDS: &[Kind] = &[
    Kind { name: "dnstap", format: "dnstap", carries: dnstap::carries, read: dnstap::read },
    Kind { name: "file", format: "json", carries: lines, read: file::read },
    Kind { name: "http", format: "json", carries: http::carries, read: http::read },
    Kind { name: "syslog", format: "json", carries: lines, read: syslog::read },
];

/// What a kind carries that puts a line feed behind each record.
fn lines(format: &Format) -> Result<(), &'static str> {
    match format.framing {
        Framing::Lines => Ok(()),
        Framing::Frames => Err("write kind = \"dnstap\", or take a format of lines"),
    }
}

#[cfg(test)]
mod tests;
