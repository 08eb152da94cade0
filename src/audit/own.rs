//! What the log says about itself: the `log` records.

use super::ranges::Range;

/// One `log` record.
pub(super) enum Own<'a> {
    /// A file begins, or goes on after a restart or after somebody else moved it.
    Open(Opened<'a>),
    /// A closed file was read again and joined to the chain, or could not be.
    Rotate {
        /// Its name in `archive/`.
        file: &'a str,
        /// What was found in it, and why nothing was.
        sealed: Result<Seal<'a>, &'a str>,
    },
    /// An archive was deleted to make room.
    Removed {
        /// Its name in `archive/`.
        file: &'a str,
        bytes: u64,
        /// The setting that asked for it.
        why: &'static str,
        /// Sinks that had not read all of it.
        unread: &'a [Box<str>],
    },
    /// The highest sequence that each shard reserved: shard number, sequence. As `heartbeat` while the log goes on,
    /// as `close` where nothing follows.
    Sequences { op: &'static str, sequences: &'a [(u16, u64)] },
    /// Ids of this shard whose records were not written.
    Gap { ranges: &'a [Range], why: &'a str },
}

/// How a file was opened.
pub(super) struct Opened<'a> {
    /// False where the process was already writing, to a file that somebody else moved or cut.
    pub(super) ours: bool,
    /// `start`, `rotate`, or what happened to the file.
    pub(super) why: &'a str,
    pub(super) boot: u64,
    pub(super) previous_boot: Option<u64>,
    /// [`machine_start`](crate::time::machine_start).
    pub(super) machine: &'a str,
    /// The length of the torn last line that was ended.
    pub(super) torn: u64,
    /// The chain so far.
    pub(super) chain: Option<&'a str>,
    /// Archives whose `rotate` record is still to come.
    pub(super) unsealed: &'a [String],
}

/// A closed file's contents, and its link in the chain.
pub(super) struct Seal<'a> {
    pub(super) records: u64,
    pub(super) bytes: u64,
    pub(super) sha256: &'a str,
    pub(super) previous: Option<&'a str>,
    pub(super) chain: &'a str,
}
