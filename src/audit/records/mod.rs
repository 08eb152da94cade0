//! Reading records back, for the tools that learn from a log: [`read_queries`] hands every query's to a function, as a
//! [`Query`] that borrows from its line; [`read_records`] those of grants, of flows and of the log itself as well, in the
//! order of the files.
//!
//! - A path is a log's current file, and its archives are read before it; or a directory, and every log file in it is
//!   read; or any other file of records. Each file is read once, the oldest of a log first.
//! - zstd (RFC 8878) and gzip (RFC 1952) are told by their first bytes. An archive may be called `….zst` or `….gz`.
//! - Memory does not grow with the log: one line of at most 8 KiB, and a decoder's window of at most 128 MiB.
//! - What is no record is passed over, counted, and told: [`QueriesRead`].
//!
//! ```no_run
//! # use outgate::audit::{read_queries, AuditError};
//! # fn main() -> Result<(), AuditError> {
//! let mut refused = 0;
//! let read = read_queries(&["/var/log/outgate/query.jsonl".into()], &mut |_| (), &mut |query| {
//!     refused += u64::from(query.verdict == outgate::audit::Outcome::Deny);
//! })?;
//! println!("{refused} of {} queries refused; {read}", read.queries);
//! # Ok(())
//! # }
//! ```

mod files;
mod flow;
mod grant;
mod notice;
mod policy;
mod query;

use std::fmt;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use super::archive;
use super::decode::{Counted, decoded};
use super::error::AuditError;
use super::format::text::visible;
use super::read::{Head, LineRead, Lines, behind_torn};
pub use flow::{Flow, Named};
pub use grant::Grant;
pub use notice::Notice;
pub use policy::PolicyChange;
pub use query::{Query, Text, Told};

/// How every query record begins that this program wrote; others are read as well, only slower.
const BEGIN: &[u8] = b"{\"v\":1,\"type\":\"";
const QUERY: &[u8] = b"query\"";
const GRANT: &[u8] = b"grant\"";
const FLOW: &[u8] = b"flow\"";
const LOG: &[u8] = b"log\"";
const POLICY: &[u8] = b"policy\"";

/// Lines between two calls of the progress function: some 100 ms.
const STEP: u64 = 1 << 16;

/// Files whose damage is told by name; more are counted.
const NAMED: usize = 8;

/// How far a log has been read.
#[derive(Clone, Copy, Debug)]
pub struct QueriesProgress<'a> {
    /// The file being read.
    pub file: &'a Path,
    /// Bytes read of all files, as they lie on the disk.
    pub read: u64,
    /// The length of all files.
    pub length: u64,
    /// Query records so far.
    pub queries: u64,
}

/// What was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueriesRead {
    /// Files.
    pub files: u64,
    /// Bytes of them, as they lie on the disk.
    pub bytes: u64,
    /// Query records; each was handed out.
    pub queries: u64,
    /// Records of another type.
    pub others: u64,
    /// Lines that are no record.
    pub damaged: u64,
    /// The first files that have such lines, with the number of the first, and those that could not be read to their
    /// end, with the reason.
    pub faults: Vec<String>,
    /// Faulty files beyond those.
    pub unlisted: u64,
    /// Files that could not be read to their end.
    pub unread: u64,
}

/// A record that is handed out.
#[derive(Clone, Copy, Debug)]
pub enum Recorded<'a> {
    /// Of a query.
    Query(&'a Query<'a>),
    /// Of a change of a grant.
    Grant(&'a Grant<'a>),
    /// Of a flow.
    Flow(&'a Flow<'a>),
    /// Of the log itself.
    Notice(&'a Notice<'a>),
    /// Of the policy.
    Policy(&'a PolicyChange<'a>),
    /// A line that is no record, or a file, or the rest of one, that could not be read.
    Missing,
}

/// Hands every query record of these paths to `each`.
///
/// # Errors
/// A path cannot be read, or there is no log in it.
pub fn read_queries(
    paths: &[PathBuf],
    progress: &mut dyn FnMut(QueriesProgress<'_>),
    each: &mut dyn FnMut(&Query<'_>),
) -> Result<QueriesRead, AuditError> {
    let mut queries = |record: Recorded<'_>| {
        if let Recorded::Query(query) = record {
            each(query);
        }
    };
    read_files(paths, progress, &mut Each { others: false, give: &mut queries, line: None, ended: false })
}

/// Hands every record of a query, a grant, a flow or the log itself of these paths to `each`, and where some are missing;
/// all but queries are counted among the others.
///
/// # Errors
/// A path cannot be read, or there is no log in it.
pub fn read_records(
    paths: &[PathBuf],
    progress: &mut dyn FnMut(QueriesProgress<'_>),
    each: &mut dyn FnMut(Recorded<'_>),
) -> Result<QueriesRead, AuditError> {
    read_files(paths, progress, &mut Each { others: true, give: each, line: None, ended: false })
}

/// Hands every record of these paths to `each`, as its line without the line feed, until it breaks off.
///
/// # Errors
/// A path cannot be read, or there is no log in it.
pub fn read_lines(
    paths: &[PathBuf],
    progress: &mut dyn FnMut(QueriesProgress<'_>),
    each: &mut dyn FnMut(&str) -> ControlFlow<()>,
) -> Result<QueriesRead, AuditError> {
    read_files(paths, progress, &mut Each { others: false, give: &mut |_| (), line: Some(each), ended: false })
}

/// Takes a line, and says whether it wants another.
type TakeLine<'a> = dyn FnMut(&str) -> ControlFlow<()> + 'a;

/// What is read, and who takes it.
struct Each<'a> {
    others: bool,
    give: &'a mut dyn FnMut(Recorded<'_>),
    /// Takes lines instead.
    line: Option<&'a mut TakeLine<'a>>,
    /// It has broken off.
    ended: bool,
}

impl Each<'_> {
    /// Says that something could not be read.
    fn missing(&mut self) {
        if self.others {
            (self.give)(Recorded::Missing);
        }
    }

    /// Hands out a record of another type than a query's; one without its fields is missing.
    fn other(&mut self, kind: &[u8], line: &[u8]) {
        if kind.starts_with(GRANT) {
            (self.give)(Grant::read(line).as_ref().map_or(Recorded::Missing, Recorded::Grant));
        } else if kind.starts_with(FLOW) {
            (self.give)(Flow::read(line).as_ref().map_or(Recorded::Missing, Recorded::Flow));
        } else if kind.starts_with(LOG) {
            (self.give)(Notice::read(line).as_ref().map_or(Recorded::Missing, Recorded::Notice));
        } else if kind.starts_with(POLICY) {
            (self.give)(PolicyChange::read(line).as_ref().map_or(Recorded::Missing, Recorded::Policy));
        }
    }
}

/// Hands out the record of a line, where it has one.
pub(super) fn read_line(line: &[u8], give: &mut dyn FnMut(Recorded<'_>)) -> bool {
    QueriesRead::default().record(line, &mut Each { others: true, give, line: None, ended: false })
}

fn read_files(
    paths: &[PathBuf],
    progress: &mut dyn FnMut(QueriesProgress<'_>),
    each: &mut Each<'_>,
) -> Result<QueriesRead, AuditError> {
    let files = files::of(paths)?;
    let length = files.iter().map(|file| file.length).sum();
    let mut read = QueriesRead::default();
    for found in files {
        if each.ended {
            break;
        }
        let before = read.bytes;
        let file = match found.file.map_or_else(|| archive::open(&found.path), Ok) {
            Ok(file) => file,
            // Retention removed it meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound && found.listed => {
                read.unread += 1;
                read.fault(&found.path, "removed before it was read");
                each.missing();
                continue;
            }
            Err(error) => return Err(AuditError::reading(&found.path, &error)),
        };
        let counted = Counted::new(file);
        let passed = counted.passed();
        let mut show = |read: &mut QueriesRead| {
            read.bytes = before + passed.load(Ordering::Relaxed);
            progress(QueriesProgress { file: &found.path, read: read.bytes, length, queries: read.queries });
        };
        match decoded(counted) {
            Ok(source) => read.file(&found.path, &mut Lines::new(source), &mut show, each),
            Err(error) => {
                read.unread += 1;
                read.fault(&found.path, &error.to_string());
                each.missing();
            }
        }
        show(&mut read);
        read.files += 1;
    }
    Ok(read)
}

impl QueriesRead {
    fn file(
        &mut self,
        path: &Path,
        lines: &mut Lines<Box<dyn io::Read + Send>>,
        show: &mut dyn FnMut(&mut Self),
        each: &mut Each<'_>,
    ) {
        let (mut number, mut first, before) = (0_u64, 0, self.damaged);
        loop {
            match lines.next() {
                Ok(None) => break,
                Ok(Some(_)) if each.ended => break,
                Ok(Some(line)) => {
                    number += 1;
                    self.line(&line, each);
                }
                Err(error) => {
                    self.unread += 1;
                    self.fault(path, &format!("not read beyond line {number}: {error}"));
                    each.missing();
                    break;
                }
            }
            if first == 0 && self.damaged > before {
                first = number;
            }
            if number.is_multiple_of(STEP) {
                show(self);
            }
        }
        if first > 0 {
            self.fault(path, &format!("{} lines are no record; the first is line {first}", self.damaged - before));
        }
    }

    fn line(&mut self, line: &LineRead<'_>, each: &mut Each<'_>) {
        // A torn line is ended by the next writer; where two of them did so, an empty line is between.
        if line.bytes.is_empty() && line.ended {
            return;
        }
        if line.long || !self.record(line.bytes, each) {
            self.damaged += 1;
            each.missing();
            if let Some(record) = behind_torn(line.bytes).filter(|_| !line.long) {
                self.record(record, each);
            }
        }
    }

    /// Whether this is a record.
    fn record(&mut self, line: &[u8], each: &mut Each<'_>) -> bool {
        if let Some(give) = &mut each.line {
            let (Some((head, _)), Ok(text)) = (Head::read(line), str::from_utf8(line)) else { return false };
            *if head.is_query() { &mut self.queries } else { &mut self.others } += 1;
            each.ended |= give(text).is_break();
            return true;
        }
        let kind = line.strip_prefix(BEGIN);
        let other = kind.is_some_and(|kind| !kind.starts_with(QUERY));
        if other && line.ends_with(b"}") {
            self.others += 1;
            if let Some(kind) = kind.filter(|_| each.others) {
                each.other(kind, line);
            }
        } else if let Some(query) = Query::read(line) {
            self.queries += 1;
            (each.give)(Recorded::Query(&query));
        } else if Head::read(line).is_some_and(|(head, _)| !head.is_query()) {
            self.others += 1;
        } else {
            return false;
        }
        true
    }

    fn fault(&mut self, path: &Path, what: &str) {
        if self.faults.len() < NAMED {
            self.faults.push(format!("{}: {what}", visible(&path.display().to_string())));
        } else {
            self.unlisted += 1;
        }
    }
}

impl fmt::Display for QueriesRead {
    /// One line, and one more for each fault.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { files, bytes, queries, others, damaged, .. } = self;
        write!(f, "{queries} queries and {others} other records in {files} files of {bytes} bytes")?;
        if *damaged > 0 {
            write!(f, "; {damaged} lines are no record")?;
        }
        for fault in &self.faults {
            write!(f, "\n  {fault}")?;
        }
        if self.unlisted > 0 {
            write!(f, "\n  and {} more files", self.unlisted)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
