//! Reading lines back: bounded, whatever the file holds.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read};

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::event::RecordId;
use super::format::json::MAX_LINE;
use crate::time::Wall;

/// How every record begins; also found behind a torn line that was not ended in time.
const BEGIN: &[u8] = b"{\"v\":1,\"type\":\"";
const BEGIN_LOG: &[u8] = b"{\"v\":1,\"type\":\"log\"";

/// The lines of a file, one at a time, each in at most [`MAX_LINE`] bytes of memory.
pub(super) struct Lines<R> {
    reader: BufReader<R>,
    line: Vec<u8>,
}

/// One line.
pub(super) struct LineRead<'a> {
    /// Without its line feed; of a line that is too long, the beginning.
    pub(super) bytes: &'a [u8],
    /// Its length in the file, line feed included.
    pub(super) size: u64,
    /// It ends in a line feed.
    pub(super) ended: bool,
    /// It is longer than a record may be.
    pub(super) long: bool,
}

impl<R: Read> Lines<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader: BufReader::with_capacity(1 << 17, reader), line: Vec::with_capacity(MAX_LINE) }
    }

    /// The next line; `None` at the end of the file.
    pub(super) fn next(&mut self) -> io::Result<Option<LineRead<'_>>> {
        self.line.clear();
        let mut size = (&mut self.reader).take(MAX_LINE as u64).read_until(b'\n', &mut self.line)?;
        let mut ended = self.line.last() == Some(&b'\n');
        let long = !ended && size == MAX_LINE;
        while !ended && size > 0 {
            let buffer = self.reader.fill_buf()?;
            let (used, found) = match buffer.iter().position(|byte| *byte == b'\n') {
                Some(at) => (at + 1, true),
                None => (buffer.len(), false),
            };
            self.reader.consume(used);
            if used == 0 {
                break;
            }
            size += used;
            ended = found;
        }
        let bytes = self.line.strip_suffix(b"\n").unwrap_or(&self.line);
        Ok((size > 0).then_some(LineRead { bytes, size: size as u64, ended, long }))
    }

    /// What is read from.
    pub(super) fn into_inner(self) -> R {
        self.reader.into_inner()
    }
}

/// What every record says about itself.
#[derive(Deserialize)]
pub(super) struct Head<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    ts: Cow<'a, str>,
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
}

impl<'a> Head<'a> {
    /// Reads a line as a record.
    pub(super) fn read(line: &'a [u8]) -> Option<(Self, RecordId)> {
        let head: Self = serde_json::from_slice(line).ok()?;
        let id = head.id.parse().ok()?;
        Some((head, id))
    }

    /// The record's time in microseconds since 1970; 0 where it cannot be read.
    pub(super) fn at(&self) -> u64 {
        micros(&self.ts).unwrap_or(0)
    }

    /// The record's time, as it is written.
    pub(super) fn ts(&self) -> &str {
        &self.ts
    }

    /// Whether it is a query's record.
    pub(super) fn is_query(&self) -> bool {
        self.kind == "query"
    }

    /// Whether it is a record of the log about itself.
    pub(super) fn is_log(&self) -> bool {
        self.kind == "log"
    }
}

/// The fields of `log` records that the log and `verify` read again.
#[derive(Deserialize)]
pub(super) struct LogLine {
    pub(super) op: String,
    pub(super) file: Option<String>,
    pub(super) machine: Option<String>,
    pub(super) why: Option<String>,
    pub(super) records: Option<u64>,
    pub(super) sha256: Option<String>,
    pub(super) previous: Option<String>,
    pub(super) chain: Option<String>,
    #[serde(default)]
    pub(super) unsealed: Vec<String>,
    #[serde(default)]
    pub(super) ranges: Vec<(u64, u64)>,
    #[serde(default)]
    pub(super) sequences: BTreeMap<u16, u64>,
}

impl LogLine {
    pub(super) fn read(line: &[u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }
}

/// The record that was written straight behind a torn line: what follows the last beginning of a record.
pub(super) fn behind_torn(line: &[u8]) -> Option<&[u8]> {
    let at = line.windows(BEGIN.len()).rposition(|window| window == BEGIN).filter(|at| *at > 0)?;
    line.get(at..)
}

/// Whether this is the beginning of a record, or all of it, and nothing else.
pub(super) fn is_begun(line: &[u8]) -> bool {
    let json = serde_json::from_slice::<IgnoredAny>(line);
    (line.starts_with(BEGIN) || BEGIN.starts_with(line)) && json.err().is_none_or(|error| error.is_eof())
}

/// What a file says about the log before it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Past {
    /// The process that wrote last.
    pub(super) boot: Option<u64>,
    /// The chain so far.
    pub(super) chain: Option<String>,
    /// Archives that are not in the chain yet.
    pub(super) unsealed: Vec<String>,
    /// The length of the last line, where it has no end.
    pub(super) torn: u64,
}

impl Past {
    /// Reads a file from its beginning; only `log` records are looked into.
    pub(super) fn read(file: impl Read) -> io::Result<Self> {
        let mut past = Self::default();
        let mut lines = Lines::new(file);
        let mut last = Vec::with_capacity(MAX_LINE);
        while let Some(line) = lines.next()? {
            if !line.ended {
                past.torn = line.size;
                break;
            }
            if line.bytes.starts_with(BEGIN_LOG)
                && let Some(record) = LogLine::read(line.bytes)
            {
                past.learn(record);
            }
            last.clear();
            last.extend_from_slice(line.bytes);
        }
        past.boot = Head::read(&last).map(|(_, id)| id.boot);
        Ok(past)
    }

    fn learn(&mut self, record: LogLine) {
        match record.op.as_str() {
            "open" | "reopen" => (self.chain, self.unsealed) = (record.chain, record.unsealed),
            "rotate" => {
                self.unsealed.retain(|file| Some(file) != record.file.as_ref());
                self.chain = record.chain.or(self.chain.take());
            }
            _ => {}
        }
    }
}

/// RFC 3339 as [`Wall`] writes it → microseconds since 1970.
pub(super) fn micros(stamp: &str) -> Option<u64> {
    let number = |from: usize, to: usize| stamp.get(from..to)?.parse::<u32>().ok();
    let seconds = number(11, 13)? * 3600 + number(14, 16)? * 60 + number(17, 19)?;
    let day = Wall::from_civil(number(0, 4)?.into(), number(5, 7)?.into(), number(8, 10)?.into(), seconds.into());
    day.0.checked_add(number(20, 26)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_are_bounded() {
        let long = "x".repeat(3 * MAX_LINE);
        let text = format!("a\n\n{long}\n{}\nend", "y".repeat(MAX_LINE - 1));
        let mut lines = Lines::new(text.as_bytes());
        let mut seen = Vec::new();
        while let Some(line) = lines.next().unwrap() {
            seen.push((line.bytes.len(), line.size, line.ended, line.long));
        }
        let (max, longest) = (MAX_LINE, 3 * MAX_LINE as u64 + 1);
        assert_eq!(
            seen,
            [
                (1, 2, true, false),
                (0, 1, true, false),
                (max, longest, true, true),
                (max - 1, max as u64, true, false),
                (3, 3, false, false),
            ]
        );
    }

    #[test]
    fn finds_the_record_behind_a_torn_line() {
        let record = br#"{"v":1,"type":"query","id":"1-1-2"}"#;
        let glued = [br#"{"v":1,"type":"query","id":"1-1-"#.as_slice(), record].concat();
        assert_eq!(behind_torn(&glued), Some(record.as_slice()));
        assert_eq!(behind_torn(record), None);
        assert_eq!(behind_torn(b"torn"), None);
    }

    #[test]
    fn knows_the_beginning_of_a_record() {
        let record = br#"{"v":1,"type":"query","id":"1-1-2","why":"\u00e9"}"#;
        assert!((1..=record.len()).all(|end| is_begun(&record[..end])));
        let damaged: [&[u8]; 4] = [&record[1..], &[0; 20], b"{\"v\":1,\"type\":\"query\",\"id\":1-1", b"{\"v\":2"];
        assert!(damaged.iter().all(|line| !is_begun(line)));
    }

    proptest! {
        #[test]
        fn reads_the_time_that_is_written(at in 0..4_102_444_800_000_000_u64) {
            prop_assert_eq!(micros(&Wall(at).to_string()), Some(at));
        }

        #[test]
        fn foreign_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..400), text in ".{0,40}") {
            let _ = Head::read(&bytes);
            let _ = micros(&text);
            Past::read(bytes.as_slice()).unwrap();
        }
    }
}
