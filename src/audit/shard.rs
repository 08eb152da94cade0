//! A shard: one thread's gapless sequence and its own descriptor of the log file.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::error::AuditError;
use super::event::{Event, RecordId};
use super::file::Handle;
use super::format::json::Encoder;
use super::group::Group;
use super::own::Own;
use super::ranges::{Range, Ranges};
use super::settings::OnFull;
use crate::time::Clock;

/// A batch of records above this is written before it is committed, so that the buffer stays bounded.
const FLUSH: usize = 1 << 20;
/// The ranges that one `gap` record names; 128 × 43 bytes fit its line.
const RANGES_PER_GAP: usize = 128;

/// How often a write that the system cuts short is taken up again.
const ATTEMPTS: usize = 4;

/// What all shards of a log share.
pub(super) struct Shared {
    pub(super) path: Box<Path>,
    pub(super) node: Box<str>,
    pub(super) clock: Clock,
    pub(super) boot: u64,
    /// The last write of some shard failed, and none has succeeded since.
    pub(super) full: AtomicBool,
}

/// A shard as the log's thread sees it. The mutex is the shard's own: the log takes it only to move the shard to
/// another file.
#[repr(align(128))]
pub(super) struct Seat {
    pub(super) handle: Mutex<Handle>,
    /// The last sequence that was reserved.
    pub(super) sequence: AtomicU64,
    pub(super) records: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) dropped: AtomicU64,
    pub(super) gaps: AtomicU64,
}

impl Seat {
    pub(super) const fn new(handle: Handle) -> Self {
        Self {
            handle: Mutex::new(handle),
            sequence: AtomicU64::new(0),
            records: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            gaps: AtomicU64::new(0),
        }
    }
}

/// One thread's part of the log. Dropped, it writes what is still pending.
pub struct Shard {
    shared: Arc<Shared>,
    seat: Arc<Seat>,
    encoder: Encoder,
    number: u16,
    on_full: OnFull,
    /// Its records are waited for: [`Disk`](super::Durability::Disk).
    waits: bool,
    next: u64,
    /// A line feed, written only where a torn line must be ended first, then whole lines.
    pending: Vec<u8>,
    /// The sequence of each pending line, in order.
    sequences: Vec<u64>,
    /// Ids whose records were not written and that no `gap` record has named yet, and why.
    lost: Ranges,
    why: String,
    /// The id of the `gap` record to come: reserved once, kept until it is written.
    gap: Option<RecordId>,
    /// Of a write before the commit.
    failed: Option<AuditError>,
}

impl std::fmt::Debug for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shard").field("number", &self.number).field("next", &self.next).finish_non_exhaustive()
    }
}

impl Shard {
    pub(super) fn new(shared: Arc<Shared>, seat: Arc<Seat>, number: u16, on_full: OnFull, waits: bool) -> Self {
        Self {
            encoder: Encoder::new(shared.boot, number, &shared.node),
            shared,
            seat,
            number,
            on_full,
            waits,
            next: 1,
            pending: vec![b'\n'],
            sequences: Vec::new(),
            lost: Ranges::default(),
            why: String::new(),
            gap: None,
            failed: None,
        }
    }

    /// The same, for records that nothing waits for: what cannot be written is dropped, and named by a `gap` record later,
    /// whatever the settings say.
    #[must_use]
    pub const fn tolerant(mut self) -> Self {
        self.on_full = OnFull::Drop;
        self
    }

    /// The id of the next record. Every reserved id must be appended once: one that is not is a gap.
    pub fn reserve(&mut self) -> RecordId {
        let sequence = self.next;
        self.next += 1;
        self.seat.sequence.store(sequence, Ordering::Relaxed);
        RecordId { boot: self.shared.boot, shard: self.number, sequence }
    }

    /// Whether a commit takes as long as the disk does: what is committed together waits once.
    #[must_use]
    pub const fn waits(&self) -> bool {
        self.waits
    }

    /// The sequence that [`Shard::reserve`] will give next.
    pub(super) const fn next_sequence(&self) -> u64 {
        self.next
    }

    /// Renders the record that `id` was reserved for, to be written by the next [`Shard::commit`].
    pub fn append(&mut self, id: RecordId, event: &Event<'_>) {
        self.encoder.encode(&mut self.pending, id, event);
        self.appended(id);
    }

    /// As [`Shard::append`], for the log's own records.
    pub(super) fn append_own(&mut self, record: &Own<'_>) {
        let id = self.reserve();
        let at = self.shared.clock.now().wall;
        self.encoder.encode_own(&mut self.pending, id, at, record);
        self.appended(id);
    }

    fn appended(&mut self, id: RecordId) {
        self.sequences.push(id.sequence);
        if self.pending.len() >= FLUSH
            && let Err(error) = self.flush()
        {
            self.failed.get_or_insert(error);
        }
    }

    /// Writes everything appended since the last commit, by one `write(2)`, and waits until it is on the disk where
    /// [`Disk`](super::Durability::Disk) asks for that. Call it before the batch is sent.
    ///
    /// # Errors
    /// With [`OnFull::Refuse`], a record could not be written: send nothing of this batch. Records that could not
    /// be written are gone; a `gap` record names their ids as soon as writing works again. With [`OnFull::Drop`]
    /// there are no errors.
    pub fn commit(&mut self) -> Result<(), AuditError> {
        let flushed = self.flush();
        let result = self.failed.take().map_or(flushed, Err);
        match self.on_full {
            OnFull::Refuse => result,
            OnFull::Drop => Ok(()),
        }
    }

    fn flush(&mut self) -> Result<(), AuditError> {
        if !self.lost.is_empty() {
            self.name_gap();
        }
        if self.sequences.is_empty() {
            return Ok(());
        }
        let mut group = None;
        let (whole, written) = self.write(&mut group);
        let waited = group.filter(|_| whole > 0).map_or(Ok(()), |group| group.wait());
        let kept = if waited.is_ok() { whole } else { 0 };
        let result = waited.and(written);
        self.seat.records.fetch_add(kept as u64, Ordering::Relaxed);
        if whole > 0
            && let Some(gap) = self.gap.take()
        {
            // The `gap` record is always the first line.
            if kept > 0 {
                self.lost.forget_first(RANGES_PER_GAP);
                self.seat.gaps.fetch_add(1, Ordering::Relaxed);
            } else {
                // It may be there or not: another one, with an id of its own, will say so.
                self.lost.insert(gap.sequence, 0);
            }
        }
        match &result {
            Ok(()) => {
                if self.shared.full.load(Ordering::Relaxed) {
                    self.shared.full.store(false, Ordering::Relaxed);
                }
            }
            Err(error) => {
                self.shared.full.store(true, Ordering::Relaxed);
                self.lose(kept, error);
            }
        }
        self.pending.truncate(1);
        self.sequences.clear();
        result.map_err(|error| AuditError::at(&self.shared.path, &error))
    }

    /// Writes the pending lines: how many were written whole, and why not all of them. Where the system takes only some
    /// bytes, the line that was torn is written again, behind a line feed. `group` is what is to be waited for then: not
    /// under the lock, and of the file that was written to, whatever the shard is moved to meanwhile.
    fn write(&self, group: &mut Option<Arc<Group>>) -> (usize, io::Result<()>) {
        let mut handle = self.seat.handle.lock();
        if self.waits {
            *group = handle.group();
        }
        // Every line before this line feed is written.
        let (mut from, mut whole) = (0, 0);
        for _ in 0..ATTEMPTS {
            let begin = from + usize::from(!handle.is_torn());
            let written = match handle.write(self.pending.get(begin..).unwrap_or_default()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return (whole, Err(error)),
                Ok(written) => written,
            };
            self.seat.bytes.fetch_add(written as u64, Ordering::Relaxed);
            let end = begin + written;
            let done = self.pending.get(from..end).unwrap_or_default();
            handle.set_torn(done.last() != Some(&b'\n'));
            if end == self.pending.len() {
                return (self.sequences.len(), Ok(()));
            }
            // Lines end at line feeds; the first byte of the buffer is none of theirs.
            whole += done.iter().skip(1).filter(|byte| **byte == b'\n').count();
            from += done.iter().rposition(|byte| *byte == b'\n').unwrap_or(0);
        }
        (whole, Err(io::ErrorKind::WriteZero.into()))
    }

    /// Puts the `gap` record for what was lost in front of the pending lines.
    fn name_gap(&mut self) {
        let id = self.gap.unwrap_or_else(|| self.reserve());
        self.gap = Some(id);
        let ranges: Vec<Range> = self.lost.iter().take(RANGES_PER_GAP).copied().collect();
        let mut lines = vec![b'\n'];
        let at = self.shared.clock.now().wall;
        self.encoder.encode_own(&mut lines, id, at, &Own::Gap { ranges: &ranges, why: &self.why });
        self.pending.splice(..1, lines);
        self.sequences.insert(0, id.sequence);
    }

    /// Remembers the pending lines but for the first `kept` as lost.
    fn lose(&mut self, kept: usize, error: &io::Error) {
        let gap = self.gap.map(|gap| gap.sequence);
        let counter = match self.on_full {
            OnFull::Refuse => &self.seat.refused,
            OnFull::Drop => &self.seat.dropped,
        };
        for sequence in self.sequences.drain(..).skip(kept).filter(|sequence| Some(*sequence) != gap) {
            if self.lost.insert(sequence, 0) {
                counter.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.why = error.to_string();
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        // Nobody is left to be told.
        let _ = self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::fixture::{Directory, query, write};
    use crate::audit::{Finding, MAX_LINE, verify};
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use std::io::Read;
    use std::os::fd::OwnedFd;

    #[test]
    fn a_line_that_was_torn_is_ended_and_nothing_else_is_lost() {
        let directory = Directory::new();
        let clock = Clock::manual();
        let (log, mut shards) = directory.open(&clock, 1, 2);
        write(&mut shards[0], &clock, 3);
        // What a disk that fills up in the middle of a write leaves behind.
        let mut handle = shards[0].seat.handle.lock();
        handle.write_all(b"{\"v\":1,\"type\":\"query\",\"id\":\"00").unwrap();
        handle.set_torn(true);
        drop(handle);
        write(&mut shards[1], &clock, 2);
        write(&mut shards[0], &clock, 2);
        drop(shards);
        log.close().unwrap();
        let report = verify(&directory.log(), &mut |_| ()).unwrap();
        assert_eq!(report.faults, [Finding::Torn { place: ("query.jsonl".into(), 5) }]);
        assert_eq!(report.records, 3 + 2 + 2 + 2);
    }

    /// A pipe that nobody empties takes a part of a write, as a disk that fills up does.
    #[test]
    fn a_write_cut_short_keeps_its_whole_lines_and_declares_the_rest() {
        let directory = Directory::new();
        let clock = Clock::manual();
        let (log, mut shards) = directory.open(&clock, 1, 1);
        let shard = &mut shards[0];
        let (mut reader, writer) = io::pipe().unwrap();
        fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let file = std::mem::replace(&mut *shard.seat.handle.lock(), Handle::of(OwnedFd::from(writer).into()));
        for _ in 0..400 {
            let id = shard.reserve();
            shard.append(id, &query(clock.now().wall));
        }
        shard.commit().unwrap_err();
        shard.commit().unwrap_err();
        assert!(!log.usable());
        let written = log.counts();
        let mut bytes = vec![0; usize::try_from(shard.seat.bytes.load(Ordering::Relaxed)).unwrap()];
        reader.read_exact(&mut bytes).unwrap();
        write(shard, &clock, 1);
        assert!(log.usable());
        // The pipe's end is the file's beginning: put together, they are what a disk would hold.
        let pipe = std::mem::replace(&mut *shard.seat.handle.lock(), file);
        drop(pipe);
        reader.read_to_end(&mut bytes).unwrap();
        shard.seat.handle.lock().write_all(&bytes).unwrap();
        drop(shards);
        log.close().unwrap();

        let report = verify(&directory.log(), &mut |_| ()).unwrap();
        assert_eq!(written.records - 1 + written.refused, 400);
        assert!(written.refused > 0 && written.records > 100, "{written:?}");
        let first = RecordId { boot: 1, shard: 1, sequence: written.records };
        assert!(report.is_clean(), "{report}");
        assert!(matches!(report.notes[0], Finding::Cut { .. }), "{report}");
        assert_eq!(report.notes[1..], [Finding::Declared { first, last: 400 }]);
        assert!(directory.text().lines().all(|line| line.matches("{\"v\":1").count() == 1));
        // Opened, whole lines, the gap, one more, closed.
        assert_eq!(report.records, 1 + (written.records - 1) + 1 + 1 + 1);
    }

    #[test]
    fn ids_are_gapless_and_records_may_come_in_any_order() {
        let directory = Directory::new();
        let clock = Clock::manual();
        let (log, mut shards) = directory.open(&clock, 1, 1);
        let shard = &mut shards[0];
        let slow = shard.reserve();
        write(shard, &clock, 5);
        assert_eq!((slow.sequence, shard.reserve().sequence), (1, 7));
        shard.append(slow, &query(clock.now().wall));
        shard.append(RecordId { sequence: 7, ..slow }, &query(clock.now().wall));
        shard.commit().unwrap();
        assert_eq!(log.counts().records, 8);
        drop(shards);
        log.close().unwrap();
        let report = verify(&directory.log(), &mut |_| ()).unwrap();
        assert!(report.is_clean() && report.notes.is_empty(), "{report}");
    }

    #[test]
    fn a_large_batch_does_not_grow_the_buffer_without_bound() {
        let directory = Directory::new();
        let clock = Clock::manual();
        let (_log, mut shards) = directory.open(&clock, 1, 1);
        for _ in 0..5000 {
            let id = shards[0].reserve();
            shards[0].append(id, &query(clock.now().wall));
            assert!(shards[0].pending.len() < FLUSH + MAX_LINE);
        }
        shards[0].commit().unwrap();
        assert_eq!(directory.text().lines().count(), 5001);
    }
}
