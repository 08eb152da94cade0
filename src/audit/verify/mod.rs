//! Verify: is the log whole, and is it what was written?
//!
//! Every archive and the current file are read once, with memory for the holes only. Deleting or changing a line of
//! an archive breaks its hash, deleting one of the current file leaves a hole. A changed line of the current file is
//! not found before it is rotated: ship the file to where its node cannot write.

mod report;
mod sequences;

use std::collections::{HashMap, HashSet};
use std::io::{self, Read};
use std::path::Path;
use std::sync::atomic::Ordering;

use sha2::{Digest, Sha256};

pub use report::{Finding, Report};

use super::archive::{Archive, Archived, open, unpacked};
use super::decode::{Counted, decoded};
use super::error::AuditError;
use super::read::{Head, LineRead, Lines, LogLine, behind_torn, is_begun};
use super::seal::{hex, link};
use report::{LISTED, Place};
use sequences::Sequences;

/// How far a file has been read.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The file.
    pub file: &'a Path,
    /// Bytes read, as they lie on the disk.
    pub read: u64,
    /// Its length there.
    pub length: u64,
}

/// How many bytes are read between two calls of the progress function.
const STEP: u64 = 64 << 20;

/// Checks the log whose current file is `file`, with the archives beside it.
///
/// # Errors
/// A file cannot be read.
pub fn verify(file: &Path, progress: &mut dyn FnMut(Progress<'_>)) -> Result<Report, AuditError> {
    let archive = Archive::beside(file)?;
    let mut check = Check::default();
    let archived = archive.list()?;
    for Archived { name, .. } in &archived {
        let sha256 = check.read(&archive.path(name), name, progress)?;
        check.found.insert(unpacked(name).to_owned(), sha256);
    }
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    check.read(file, &name, progress)?;
    Ok(check.conclude(&archived))
}

/// What is known while the files are read.
#[derive(Default)]
struct Check {
    report: Report,
    sequences: Sequences,
    /// The process of the last whole record, and when that was; `None`: it was its last.
    last: Option<(u64, u64)>,
    /// The start of the machine that the last `open` record named.
    machine: Option<String>,
    /// Lines that are not whole.
    torn: Vec<Torn>,
    /// Each archive's hash, as found.
    found: HashMap<String, String>,
    /// Each `rotate` record: file, hash, chain before, chain after.
    sealed: Vec<LogLine>,
    /// Files that `removed` records name.
    removed: HashSet<String>,
    /// The closed files that the last `open` record waits for, less those sealed since.
    unsealed: Vec<String>,
}

/// A line that is not whole.
struct Torn {
    place: Place,
    /// The record before it, as in [`Check`].
    last: Option<(u64, u64)>,
    /// What is there is the beginning of a record, and the machine has not been started anew since, as far as is known:
    /// then nothing that was written before it is lost.
    plain: bool,
}

impl Check {
    /// Reads one file, unpacked; its hash, but of one that could not be read to its end.
    fn read(&mut self, path: &Path, name: &str, progress: &mut dyn FnMut(Progress<'_>)) -> Result<String, AuditError> {
        let fail = |error: io::Error| AuditError::reading(path, &error);
        let file = open(path).map_err(fail)?;
        let length = file.metadata().map_err(fail)?.len();
        let counted = Counted::new(file);
        let passed = counted.passed();
        let source = decoded(counted).map_err(fail)?;
        let mut lines = Lines::new(Hashing { source, hash: Sha256::new() });
        let (mut read, mut shown, mut number) = (0, 0, 0);
        let mut show = || progress(Progress { file: path, read: passed.load(Ordering::Relaxed), length });
        let ended = loop {
            match lines.next() {
                Ok(Some(line)) => {
                    number += 1;
                    read += line.size;
                    self.line(&line, name, number);
                }
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
            if read - shown >= STEP {
                shown = read;
                show();
            }
        };
        show();
        self.report.files += 1;
        self.report.bytes += read;
        if let Some(error) = ended {
            // What the disk does not give is no finding about the log; what does not unpack is.
            if name == unpacked(name) {
                return Err(fail(error));
            }
            self.report.find(Finding::Damaged { file: name.to_owned(), line: number, why: error.to_string() });
            return Ok(String::new());
        }
        Ok(hex(&lines.into_inner().hash.finalize()))
    }

    fn line(&mut self, line: &LineRead<'_>, file: &str, number: u64) {
        let place = || (file.to_owned(), number);
        if line.long {
            self.report.find(Finding::Long { place: place() });
            return;
        }
        // A torn line is ended by the next writer; where two of them did so, an empty line is between.
        if line.bytes.is_empty() && line.ended {
            return;
        }
        let mut bytes = line.bytes;
        let record = Head::read(bytes).or_else(|| {
            bytes = behind_torn(line.bytes)?;
            Head::read(bytes)
        });
        if !line.ended || bytes.len() < line.bytes.len() || record.is_none() {
            let begun = line.bytes.get(..line.bytes.len() - bytes.len()).filter(|begun| !begun.is_empty());
            let torn = Torn { place: place(), last: self.last, plain: is_begun(begun.unwrap_or(bytes)) };
            if self.torn.len() < LISTED {
                self.torn.push(torn);
            } else {
                self.report.find(Finding::Torn { place: torn.place });
            }
        }
        let Some((head, id)) = record.filter(|_| line.ended) else { return };
        self.report.records += 1;
        self.last = Some((id.boot, head.at()));
        if !self.sequences.see(id, head.at()) {
            self.report.find(Finding::Twice { id, place: place() });
        }
        if head.is_log()
            && let Some(record) = LogLine::read(bytes)
        {
            if record.op == "reopen" {
                self.report.find(Finding::Reopened { place: place(), why: record.why.clone().unwrap_or_default() });
                self.sequences.reopen(id.boot, head.at());
            }
            self.log(record, id, head.at());
        }
    }

    fn log(&mut self, record: LogLine, id: super::RecordId, at: u64) {
        match record.op.as_str() {
            "open" | "reopen" => {
                self.unsealed = record.unsealed;
                let goes_on = record.machine.is_some() && record.machine == self.machine;
                self.torn.iter_mut().for_each(|torn| torn.plain &= goes_on);
                self.machine = record.machine;
            }
            "rotate" => {
                self.unsealed.retain(|file| Some(file) != record.file.as_ref());
                self.sealed.push(record);
            }
            "removed" => self.removed.extend(record.file),
            "gap" => {
                self.sequences.declare(id, &record.ranges);
                let ours = |torn: &mut Torn| torn.last.is_some_and(|(boot, _)| boot == id.boot);
                for torn in self.torn.extract_if(.., ours) {
                    self.report.find(Finding::Cut { place: torn.place });
                }
            }
            "heartbeat" => self.sequences.reach(id.boot, &record.sequences, at, false),
            "close" => {
                self.sequences.reach(id.boot, &record.sequences, at, true);
                self.last = None;
            }
            _ => {}
        }
    }

    fn conclude(mut self, archived: &[Archived]) -> Report {
        for Torn { place, last, plain } in std::mem::take(&mut self.torn) {
            // After a `close`, or before any record, it is the first of a process that wrote no other.
            let killed = plain && last.is_none_or(|(boot, at)| self.sequences.was_killed(boot, at));
            self.report.find(if killed { Finding::Unfinished { place } } else { Finding::Torn { place } });
        }
        let mut chain: Option<String> = None;
        let mut known: HashSet<&str> = self.unsealed.iter().map(String::as_str).collect();
        for (index, seal) in self.sealed.iter().enumerate() {
            let file = seal.file.clone().unwrap_or_default();
            match (self.found.get(&file), &seal.sha256) {
                (Some(found), Some(sealed)) if found != sealed && !found.is_empty() => {
                    self.report.find(Finding::Changed { file: file.clone(), records: seal.records.unwrap_or(0) });
                }
                (None, _) if !self.removed.contains(&file) => {
                    self.report.find(Finding::Missing { file: file.clone() });
                }
                _ => {}
            }
            if let (Some(sha256), Some(after)) = (&seal.sha256, &seal.chain) {
                // What came before the first seal that is still here is not known.
                let follows = index == 0 || seal.previous == chain;
                if !follows || *after != link(seal.previous.as_deref(), sha256) {
                    self.report.find(Finding::Unlinked { file });
                }
                chain = Some(after.clone());
            }
            known.extend(seal.file.as_deref());
        }
        for archived in archived.iter().filter(|archived| !known.contains(archived.closed_as())) {
            self.report.find(Finding::Unknown { file: archived.name.clone() });
        }
        for file in &self.unsealed {
            self.report.find(if self.found.contains_key(file) {
                Finding::Unsealed { file: file.clone() }
            } else {
                Finding::Missing { file: file.clone() }
            });
        }
        self.report.removed = self.removed.len() as u64;
        self.sequences.conclude(&mut self.report);
        self.report
    }
}

/// Hashes a file as it is read.
struct Hashing {
    source: Box<dyn Read + Send>,
    hash: Sha256,
}

impl Read for Hashing {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.source.read(buffer)?;
        self.hash.update(buffer.get(..read).unwrap_or_default());
        Ok(read)
    }
}
