//! What `verify` found, for people and for exit codes.

use std::fmt;

use crate::audit::RecordId;
use crate::audit::format::text::visible;

/// The findings and notes that a report holds in full; more are counted.
pub(super) const LISTED: usize = 1000;

/// A file's name and a line of it, from 1.
pub(super) type Place = (String, u64);

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Records are missing, and nothing says why.
    Gap {
        /// The first that is missing.
        first: RecordId,
        /// The last sequence that is missing.
        last: u64,
    },
    /// Records could not be written; a `gap` record says so.
    Declared {
        /// The first that is missing.
        first: RecordId,
        /// The last sequence that is missing.
        last: u64,
    },
    /// Queries that were not answered yet when the process stopped, or that are not answered yet now.
    InFlight {
        /// The first that is missing.
        first: RecordId,
        /// The last sequence that is missing.
        last: u64,
    },
    /// Records that were in files which are no longer kept.
    BeforeKept {
        /// The first that is missing.
        first: RecordId,
        /// The last sequence that is missing.
        last: u64,
    },
    /// An id is there more than once.
    Twice {
        /// The id.
        id: RecordId,
        /// Where it is again.
        place: Place,
    },
    /// A line is no record, or not all of one.
    Torn {
        /// Which.
        place: Place,
    },
    /// A line that a full disk cut short; a later `gap` record of its process names what was lost.
    Cut {
        /// Which.
        place: Place,
    },
    /// A line that its process was writing when it was killed, or is writing now: no answer has left for it.
    Unfinished {
        /// Which.
        place: Place,
    },
    /// The file was moved or cut by another program before this line: records may be elsewhere, or nowhere.
    Reopened {
        /// Which.
        place: Place,
        /// What happened to it.
        why: String,
    },
    /// A line is longer than any record.
    Long {
        /// Which.
        place: Place,
    },
    /// An archive is not what it was when it was closed.
    Changed {
        /// Its name.
        file: String,
        /// How many records it had.
        records: u64,
    },
    /// A packed archive cannot be unpacked to its end.
    Damaged {
        /// Its name.
        file: String,
        /// The last line that could be read.
        line: u64,
        /// What the decoder says.
        why: String,
    },
    /// An archive is gone, and no `removed` record says why.
    Missing {
        /// Its name.
        file: String,
    },
    /// An archive that no record of the log knows.
    Unknown {
        /// Its name.
        file: String,
    },
    /// A `rotate` record does not follow from the one before it.
    Unlinked {
        /// The archive that it is about.
        file: String,
    },
    /// An archive was closed and its hash not written yet.
    Unsealed {
        /// Its name.
        file: String,
    },
    /// There are more holes than can be followed; what comes after is not checked for gaps.
    TooMany,
}

impl Finding {
    /// Whether the log is not whole because of it; otherwise it is only worth knowing.
    #[must_use]
    pub const fn is_fault(&self) -> bool {
        !matches!(
            self,
            Self::Declared { .. }
                | Self::InFlight { .. }
                | Self::BeforeKept { .. }
                | Self::Cut { .. }
                | Self::Unfinished { .. }
                | Self::Reopened { .. }
                | Self::Unsealed { .. }
        )
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |(file, line): &Place| format!("{}:{line}", visible(file));
        let span = |first: &RecordId, last: &u64| {
            let count = last - first.sequence + 1;
            let to = if count == 1 { String::new() } else { format!(" to {last}") };
            let noun = if count == 1 { "record" } else { "records" };
            format!("{count} {noun}, {first}{to}")
        };
        match self {
            Self::Gap { first, last } => write!(f, "missing: {}", span(first, last)),
            Self::Declared { first, last } => write!(f, "could not be written, as declared: {}", span(first, last)),
            Self::InFlight { first, last } => write!(f, "in flight when the log ended: {}", span(first, last)),
            Self::BeforeKept { first, last } => write!(f, "older than the files kept: {}", span(first, last)),
            Self::Twice { id, place } => write!(f, "{}: {id} is there twice", at(place)),
            Self::Torn { place } => write!(f, "{}: not a whole record", at(place)),
            Self::Cut { place } => write!(f, "{}: cut short, as declared", at(place)),
            Self::Unfinished { place } => {
                write!(f, "{}: unfinished; its process was killed, or is writing it", at(place))
            }
            Self::Reopened { place, why } => write!(f, "{}: {}", at(place), visible(why)),
            Self::Long { place } => write!(f, "{}: longer than 8 KiB", at(place)),
            Self::Changed { file, records } => {
                write!(f, "archive/{}: changed since it was closed with {records} records", visible(file))
            }
            Self::Damaged { file, line, why } => {
                write!(f, "archive/{}: cannot be unpacked beyond line {line}: {why}", visible(file))
            }
            Self::Missing { file } => write!(f, "archive/{}: gone, and not removed by outgate", visible(file)),
            Self::Unknown { file } => write!(f, "archive/{}: not closed by this log", visible(file)),
            Self::Unlinked { file } => write!(f, "archive/{}: its seal does not follow the one before", visible(file)),
            Self::Unsealed { file } => write!(f, "archive/{}: closed, its hash not written yet", visible(file)),
            Self::TooMany => f.write_str("too many gaps to follow; what comes after is not checked for gaps"),
        }
    }
}

/// What was read and found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Files read.
    pub files: u64,
    /// Records read.
    pub records: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Processes that wrote them.
    pub boots: u64,
    /// Archives that the log itself deleted.
    pub removed: u64,
    /// Why the log is not whole: the first 1,000.
    pub faults: Vec<Finding>,
    /// What is worth knowing: the first 1,000.
    pub notes: Vec<Finding>,
    /// Faults and notes above that.
    pub unlisted: (u64, u64),
}

impl Report {
    /// Whether every record is there, or its absence accounted for: exit 0, otherwise 1.
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        self.faults.is_empty()
    }

    /// Adds a finding to the faults or the notes.
    pub(super) fn find(&mut self, finding: Finding) {
        let (list, unlisted) = if finding.is_fault() {
            (&mut self.faults, &mut self.unlisted.0)
        } else {
            (&mut self.notes, &mut self.unlisted.1)
        };
        if list.len() < LISTED {
            list.push(finding);
        } else {
            *unlisted += 1;
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (mark, findings, unlisted) in
            [("fault", &self.faults, self.unlisted.0), ("note ", &self.notes, self.unlisted.1)]
        {
            for finding in findings {
                writeln!(f, "{mark}  {finding}")?;
            }
            if unlisted > 0 {
                writeln!(f, "{mark}  and {unlisted} more")?;
            }
        }
        let verdict = if self.is_clean() { "whole" } else { "NOT WHOLE" };
        write!(
            f,
            "{verdict}: {} records of {} processes in {} files, {} bytes; {} archives removed by retention",
            self.records, self.boots, self.files, self.bytes, self.removed
        )
    }
}
