//! The flow logs, line by line.

use std::fs::File;
use std::hash::Hasher;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::time::Duration;

use siphasher::sip128::{Hasher128, SipHasher13};

use super::order::{self, Order, Row};
use super::{progress, source, taken};
use crate::app::cli::Failure;
use crate::audit::decoded;
use crate::flow::source::{Line, Seen, Source};
use crate::flow::{Detail, Index, Origin};
use crate::time::{Clock, Wall};

/// The longest line that is read; JSON of Zeek with every script takes a tenth.
const LINE: u64 = 64 << 10;
/// What is read of a file before its format is told.
const BEGIN: usize = 4096;
/// Files whose damage is told by name; more are counted.
const NAMED: usize = 8;

/// What was read so far.
pub(super) struct Input<'a> {
    format: Option<Origin>,
    fields: Option<&'a str>,
    error: Duration,
    origin: Option<Origin>,
    files: u64,
    flows: u64,
    damaged: u64,
    lost: u64,
    untimed: u64,
    faults: Vec<String>,
    unlisted: u64,
}

impl<'a> Input<'a> {
    pub(super) const fn new(format: Option<Origin>, fields: Option<&'a str>) -> Self {
        // Fields are those of a VPC's flow log.
        let format = if format.is_none() && fields.is_some() { Some(Origin::Vpc) } else { format };
        Self {
            format,
            fields,
            error: Duration::ZERO,
            origin: None,
            files: 0,
            flows: 0,
            damaged: 0,
            lost: 0,
            untimed: 0,
            faults: Vec::new(),
            unlisted: 0,
        }
    }

    /// Reads one file to its end. Times that it lacks are gaps of the index.
    pub(super) fn read(&mut self, path: &Path, index: &mut Index, order: &mut Order) -> Result<(), Failure> {
        let name = path.display().to_string();
        let fail = |error: io::Error| Failure::Failed(format!("{name}: {error}"));
        let (file, length, made): (Box<dyn Read + Send>, u64, Wall) = if name == "-" {
            (Box::new(io::stdin()), 0, Clock::system().now().wall)
        } else {
            let file = File::open(path).map_err(fail)?;
            let about = file.metadata().map_err(fail)?;
            (Box::new(file), about.len(), taken(about.modified().ok()))
        };
        let mut lines = BufReader::with_capacity(1 << 17, decoded(file).map_err(fail)?);
        let begin = lines.fill_buf().map_err(fail)?;
        let begin = String::from_utf8_lossy(begin.get(..BEGIN.min(begin.len())).unwrap_or_default()).into_owned();
        self.files += 1;
        if begin.is_empty() {
            return Ok(());
        }
        let origin = self.format.or_else(|| Source::guess(&begin)).ok_or_else(|| {
            Failure::Failed(format!(
                "{name}: its first line is of no flow log that is known; say what it is with --format, and with --fields which \
                 columns a VPC's flow log has"
            ))
        })?;
        if self.origin.is_some_and(|before| before != origin) {
            let both = "flow logs of two formats cannot be read together; read them one after the other";
            return Err(Failure::Argument(both.to_owned()));
        }
        self.origin = Some(origin);
        let mut source = source(origin, self.fields, made)?;
        self.error = source.error();
        let (mut bytes, mut number, mut first, before) = (Vec::new(), 0_u64, 0, self.damaged);
        let mut read = 0_u64;
        loop {
            bytes.clear();
            let got = (&mut lines).take(LINE).read_until(b'\n', &mut bytes);
            let got = match got {
                Ok(0) => break,
                Ok(got) => got as u64,
                Err(error) => {
                    self.fault(format!("{name}: not read beyond line {number}: {error}"));
                    break;
                }
            };
            number += 1;
            read += got;
            let whole = bytes.last() == Some(&b'\n') || got < LINE;
            if !whole {
                lines.skip_until(b'\n').map_err(fail)?;
            }
            let line = std::str::from_utf8(&bytes).ok().filter(|_| whole);
            match line.map_or(Line::Damaged, |line| source.read(line)) {
                Line::Flow(seen) => self.take(seen, id(line.unwrap_or_default()), order)?,
                Line::Lost(from, to) => {
                    self.lost += 1;
                    index.gap(from, to, Detail::EventsLost);
                }
                Line::Nothing => {}
                Line::Damaged => {
                    self.damaged += 1;
                    if first == 0 {
                        first = number;
                    }
                }
            }
            if number.is_multiple_of(1 << 16) {
                let of = if length > 0 { format!(" of {} MB", length >> 20) } else { String::new() };
                progress(&format!("{} flows, {} MB{of}", self.flows, read >> 20));
            }
        }
        for seen in source.rest() {
            self.take(seen, id(&format!("{seen:?}")), order)?;
        }
        if first > 0 {
            let lines = self.damaged - before;
            self.fault(format!("{name}: {lines} lines are none of {}; the first is line {first}", origin.as_str()));
        }
        Ok(())
    }

    fn take(&mut self, seen: Seen, id: (u64, u32), order: &mut Order) -> Result<(), Failure> {
        self.flows += 1;
        self.untimed += u64::from(!seen.timed);
        order.push(Row { seen, id }).map_err(|error| order::failed(&error))
    }

    fn fault(&mut self, what: String) {
        if self.faults.len() < NAMED { self.faults.push(what) } else { self.unlisted += 1 }
    }

    /// How far the clocks may be apart.
    pub(super) const fn error(&self) -> Duration {
        self.error
    }

    pub(super) fn origin(&self) -> Origin {
        self.origin.unwrap_or(Origin::Vpc)
    }

    /// What was read, and what is wrong with it.
    pub(super) fn account(&self) -> String {
        let mut text = format!("{} lines of flows in {} files", self.flows, self.files);
        if self.lost > 0 {
            text.push_str(&format!("; {} windows of which flows are missing", self.lost));
        }
        if self.damaged > 0 {
            text.push_str(&format!("; {} lines are damaged", self.damaged));
        }
        if self.untimed > 0 {
            text.push_str(&format!(
                "\n  {} events of conntrack have no time, and their flows are unknown: watch with -E -o timestamp,id",
                self.untimed
            ));
        }
        for fault in &self.faults {
            text.push_str(&format!("\n  {fault}"));
        }
        if self.unlisted > 0 {
            text.push_str(&format!("\n  and {} more files", self.unlisted));
        }
        text
    }
}

/// 96 bits of a line: the same line has the same id wherever it stands.
fn id(line: &str) -> (u64, u32) {
    let mut hasher = SipHasher13::new();
    hasher.write(line.trim_end().as_bytes());
    let hash = hasher.finish128();
    (hash.h1, hash.h2 as u32)
}
