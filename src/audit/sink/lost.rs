//! What a sink missed: records of the log that retention, or another program, took away before they were read.

use std::io::{self, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::cursor::Mark;
use crate::audit::RecordId;
use crate::audit::archive::open;
use crate::audit::decode::decoded;
use crate::audit::read::{Head, Lines};
use crate::time::{Clock, Tick, Wall};

/// Why an archive is gone.
pub(super) const REMOVED: &str = "it was removed to make room before this sink had read it";
/// Shards that one record lists.
const LISTED: usize = 48;

/// What is known of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::audit) struct Lost {
    /// The file, as it was called last.
    pub(super) file: Option<String>,
    /// One clause.
    pub(super) why: String,
    /// How many records; `None`: the file was gone before they were counted.
    pub(super) records: Option<u64>,
    /// Of each shard the first, the last, and how many.
    pub(super) ids: Vec<(String, String, u64)>,
    /// When the first and the last of them happened.
    pub(super) between: Option<(String, String)>,
    /// Behind which record of which file it begins, where nothing was counted: a name that stays the same.
    pub(super) behind: String,
}

impl Lost {
    /// Of a file that was gone, or cut, from an offset on.
    pub(super) fn uncounted(mark: &Mark, offset: u64, why: &str) -> Self {
        Self {
            file: mark.archive.clone(),
            why: why.to_owned(),
            behind: format!("{}-{offset}", mark.first),
            ..Self::default()
        }
    }

    /// Both, told as one.
    pub(super) fn and(mut self, later: Self) -> Self {
        self.file = match (self.file, later.file) {
            (Some(first), Some(last)) => Some(format!("{} to {last}", first.split(" to ").next().unwrap_or_default())),
            (first, last) => first.or(last),
        };
        self.records = self.records.zip(later.records).map(|(records, more)| records + more);
        for (first, last, count) in later.ids {
            let of = |id: &str| id.rsplit_once('-').map(|(shard, _)| shard.to_owned());
            match self.ids.iter_mut().find(|(known, ..)| of(known) == of(&first)) {
                Some((_, known, total)) => (*known, *total) = (last, *total + count),
                None => self.ids.push((first, last, count)),
            }
        }
        self.between = match (self.between, later.between) {
            (Some((first, _)), Some((_, last))) => Some((first, last)),
            (first, last) => first.or(last),
        };
        self
    }

    /// Of what is left to read: every record in it is counted.
    pub(super) fn counted(file: Option<String>, why: &str, rest: impl Read) -> io::Result<Self> {
        let mut lost = Self { file, why: why.to_owned(), records: Some(0), ..Self::default() };
        let mut shards: Vec<(RecordId, RecordId, u64)> = Vec::new();
        let mut lines = Lines::new(rest);
        while let Some(line) = lines.next()? {
            let Some((head, id)) = Head::read(line.bytes) else { continue };
            lost.records = lost.records.map(|records| records + 1);
            match shards.iter_mut().find(|(first, ..)| (first.boot, first.shard) == (id.boot, id.shard)) {
                Some((first, last, count)) => {
                    *count += 1;
                    if id.sequence > last.sequence {
                        *last = id;
                    } else if id.sequence < first.sequence {
                        *first = id;
                    }
                }
                None => shards.push((id, id, 1)),
            }
            let ts = head.ts();
            match &mut lost.between {
                Some((first, last)) => {
                    if ts > last.as_str() {
                        ts.clone_into(last);
                    } else if ts < first.as_str() {
                        ts.clone_into(first);
                    }
                }
                between => *between = Some((ts.to_owned(), ts.to_owned())),
            }
        }
        lost.ids =
            shards.into_iter().map(|(first, last, count)| (first.to_string(), last.to_string(), count)).collect();
        Ok(lost)
    }

    /// Of an archive that is about to be removed: counted, where that does not take longer than until then.
    pub(super) fn of_archive(path: &Path, name: &str, (clock, until): (&Clock, Tick)) -> Self {
        let opened = open(path).and_then(decoded);
        let counted =
            opened.and_then(|rest| Self::counted(Some(name.to_owned()), REMOVED, Until { rest, clock, until }));
        counted.unwrap_or_else(|_| Self::of_gone(name))
    }

    /// Of an archive that was removed.
    pub(super) fn of_gone(name: &str) -> Self {
        Self::of_file(name, REMOVED)
    }

    /// Of a whole archive.
    pub(super) fn of_file(name: &str, why: &str) -> Self {
        Self { file: Some(name.to_owned()), why: why.to_owned(), behind: name.to_owned(), ..Self::default() }
    }

    /// Which they are, for people.
    pub(super) fn listed(&self) -> String {
        if self.ids.is_empty() {
            return format!("unknown, behind {}", self.behind);
        }
        let listed = |(first, last, count): &(String, String, u64)| format!("{first} to {last} ({count})");
        self.ids.iter().take(LISTED).map(listed).collect::<Vec<_>>().join(", ")
    }

    /// The `gap` record for the sink, as a line of the log without its line feed.
    pub(super) fn line(&self, sink: &str, node: &str, now: Wall) -> String {
        let first = self.ids.first().map_or(self.behind.as_str(), |(first, ..)| first);
        let listed = |(first, last, count): &(String, String, u64)| super::summary::IdsLine {
            first: first.clone(),
            last: last.clone(),
            count: *count,
        };
        let line = Line {
            v: 1,
            kind: "log",
            // The first missing record's own: the same gap has the same id.
            id: format!("{first}-gap"),
            ts: now.to_string(),
            node,
            op: "gap",
            lost: self.records,
            sink,
            file: self.file.as_deref(),
            ids: self.ids.iter().take(LISTED).map(listed).collect(),
            ids_omitted: Some(self.ids.len().saturating_sub(LISTED)).filter(|omitted| *omitted > 0),
            first: self.between.as_ref().map(|(first, _)| first.as_str()),
            last: self.between.as_ref().map(|(_, last)| last.as_str()),
            why: &self.why,
        };
        serde_json::to_string(&line).unwrap_or_default()
    }
}

/// Reads until some time; then it is an error.
struct Until<'a, R> {
    rest: R,
    clock: &'a Clock,
    until: Tick,
}

impl<R: Read> Read for Until<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.clock.tick() < self.until {
            true => self.rest.read(buffer),
            false => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

/// The record, its fields in the order of docs/log.md.
#[derive(Serialize)]
struct Line<'a> {
    v: u32,
    #[serde(rename = "type")]
    kind: &'static str,
    id: String,
    ts: String,
    node: &'a str,
    op: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    lost: Option<u64>,
    sink: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ids: Vec<super::summary::IdsLine>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ids_omitted: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    first: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last: Option<&'a str>,
    why: &'a str,
}
