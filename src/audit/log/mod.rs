//! The log: one file for all shards, its rotation, and what it says about itself.

mod room;

use std::cell::Cell;
use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use crate::audit::archive::{Archive, Archived};
use crate::audit::decode::decoded;
use crate::audit::error::AuditError;
use crate::audit::file::{Current, Handle, identity_of, keep_names};
use crate::audit::meter::{Counts, Meter};
use crate::audit::own::{Opened, Own, Seal};
use crate::audit::pack::Packer;
use crate::audit::read::Past;
use crate::audit::seal::{Sealed, Sealer, link};
use crate::audit::settings::{Durability, OnFull, Settings};
use crate::audit::shard::{Seat, Shard, Shared};
use crate::time::{Clock, Tick, machine_start};
use room::Removed;

/// How often the highest sequences are written; a node that is silent for two of them is dead.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// How long a rotation that failed is left alone.
const RETRY: Duration = Duration::from_secs(30);
/// Closed files that may wait for their seal before no more are closed; bounds the `open` record that names them.
const UNSEALED: usize = 16;
/// How long the end waits for seals: a file of 256 MiB takes about as long.
const SEALS: Duration = Duration::from_secs(1);
/// The shards that one record names: 200 × 29 bytes fit its line.
const SEQUENCES: usize = 200;

/// The log's own thread's part: call [`Log::tick`] about every second and [`Log::close`] at the end, after the
/// shards were dropped.
pub struct Log {
    settings: Settings,
    shared: Arc<Shared>,
    /// Shard 0.
    shard: Shard,
    meter: Meter,
    current: Current,
    /// The length of the current file when it was last looked at.
    length: u64,
    /// The current file's length less what all shards have written, as it was when they came to it.
    before: u64,
    archive: Archive,
    sealer: Sealer,
    chain: Option<String>,
    /// Closed files whose `rotate` record is still to come, in order.
    unsealed: Vec<String>,
    /// The `open` record that the current file lacks.
    untold: Option<(bool, &'static str)>,
    /// Closed files that were read.
    sealed: VecDeque<Sealed>,
    /// Deleted archives whose `removed` record is still to come.
    removed: VecDeque<Removed>,
    /// Of one of them, what its sinks lost.
    unread: Option<AuditError>,
    heartbeat_at: Tick,
    rotate_at: Tick,
    packer: Packer,
    /// When archives are looked at next, for one to pack.
    pack_at: Tick,
    /// The last that was packed, or could not be: the next one is tried before it is again.
    packed: Option<Archived>,
    /// When a file that the disk did not keep may be given up for another one.
    replace_at: Tick,
    /// Has the names in a directory on the disk.
    keep_names: fn(&Path) -> Result<(), AuditError>,
}

impl Log {
    /// Opens the log, going on where an existing file ends, and makes the shards 1 to `shards`. `boot` is this
    /// process's random number, `node` its name in every record.
    ///
    /// # Errors
    /// The file cannot be written, or another process writes it.
    pub fn open(
        settings: Settings,
        node: &str,
        clock: Clock,
        boot: u64,
        shards: u16,
    ) -> Result<(Self, Vec<Shard>), AuditError> {
        let path = settings.file.clone();
        let archive = Archive::beside(&path)?;
        let current = Current::open(&path, settings.durability)?;
        archive.create()?;
        if settings.durability == Durability::Disk {
            keep_names(parent(&path))?;
        }
        let mut past = read_past(&path, &current, &archive)?;
        let unsealed = mem::take(&mut past.unsealed);
        let shared = Arc::new(Shared {
            path: path.clone().into_boxed_path(),
            node: node.into(),
            clock,
            boot,
            full: AtomicBool::new(false),
        });
        let seats =
            (0..=shards).map(|_| Ok(Arc::new(Seat::new(current.handle(&path)?)))).collect::<Result<Arc<[_]>, _>>()?;
        let shard = |number: u16, seat: &Arc<Seat>, on_full| {
            // No answer waits for what the log says of itself.
            let waits = settings.durability == Durability::Disk && number > 0;
            Shard::new(Arc::clone(&shared), Arc::clone(seat), number, on_full, waits)
        };
        let mut numbered = (0..=shards).zip(seats.iter());
        let own = numbered
            .next()
            .map_or_else(|| Err(AuditError::Name(path.clone())), |(_, seat)| Ok(shard(0, seat, OnFull::Refuse)))?;
        let others = numbered.map(|(number, seat)| shard(number, seat, settings.on_full)).collect();
        let now = shared.clock.tick();
        let mut log = Self {
            meter: Meter::new(Arc::clone(&shared), seats),
            shard: own,
            length: current.len().unwrap_or(0),
            before: current.len().unwrap_or(0),
            sealer: Sealer::start().map_err(|error| AuditError::at(&path, &error))?,
            chain: past.chain.take(),
            unsealed,
            untold: None,
            sealed: VecDeque::new(),
            removed: VecDeque::new(),
            unread: None,
            heartbeat_at: now + HEARTBEAT,
            rotate_at: now,
            packer: Packer::start().map_err(|error| AuditError::at(&path, &error))?,
            pack_at: now,
            packed: None,
            replace_at: now,
            keep_names,
            settings,
            shared,
            current,
            archive,
        };
        log.meter.readers().started(log.current.identity, log.length);
        log.meter.readers().moved(log.current.identity);
        log.make_room(0)?;
        log.allocate(&log.current)?;
        log.begin(true, "start", &past)?;
        for name in &log.unsealed {
            log.sealer.queue(name, log.archive.path(name), false);
        }
        log.tell_removed()?;
        Ok((log, others))
    }

    /// Looks after the file: notices what others did to it, rotates it, writes seals and heartbeats, makes room.
    /// Every part is tried, whatever became of the others.
    ///
    /// # Errors
    /// The first that came up. The log goes on with what it has, and tries again.
    pub fn tick(&mut self) -> Result<(), AuditError> {
        let now = self.shared.clock.tick();
        let mut result = self.look_after_file(now);
        if let Some((ours, why)) = self.untold {
            result = result.and(self.begin(ours, why, &Past::default()));
        }
        result = result.and(self.tell_sealed());
        if now >= self.heartbeat_at || self.shared.full.load(Ordering::Relaxed) {
            self.heartbeat_at = now + HEARTBEAT;
            result = result.and(self.make_room(0));
            result = result.and(self.tell_sequences("heartbeat"));
        }
        result = result.and(self.tell_removed()).and(self.pack(now));
        result.and(self.unread.take().map_or(Ok(()), Err))
    }

    /// Waits for the seals of closed files, but not long: those that are still to come are made by the next start. Then
    /// writes the last record. The shards must have been dropped: what they write later is not under the final
    /// sequences.
    ///
    /// # Errors
    /// The last records could not be written, or what seals has ended.
    pub fn close(mut self) -> Result<(), AuditError> {
        self.tell_sealed()?;
        let until = self.shared.clock.tick() + SEALS;
        let mut sealed = Ok(());
        while let Some(name) = self.unsealed.first() {
            match self.sealer.wait(until.since(self.shared.clock.tick())) {
                Ok(next) => self.sealed.push_back(next),
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => {
                    sealed = Err(AuditError::Unsealed(self.archive.path(name)));
                    break;
                }
            }
            self.tell_sealed()?;
        }
        self.tell_removed()?;
        self.tell_sequences("close")?;
        self.current.keep().map_err(|error| AuditError::at(&self.settings.file, &error))?;
        // A shard that is still there would have what it writes meanwhile cut off.
        if self.meter.seats().iter().skip(1).all(|seat| Arc::strong_count(seat) == 1) {
            self.current.release().map_err(|error| AuditError::at(&self.settings.file, &error))?;
        }
        sealed
    }

    /// Whether records can be written, as far as is known: for readiness.
    #[must_use]
    pub fn usable(&self) -> bool {
        self.meter.usable()
    }

    /// What has been written and lost so far, over all shards.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.meter.counts()
    }

    /// [`Log::usable`] and [`Log::counts`] for other threads.
    #[must_use]
    pub fn meter(&self) -> Meter {
        self.meter.clone()
    }

    /// Reopens the file where somebody else moved or cut it; closes it where it is full.
    fn look_after_file(&mut self, now: Tick) -> Result<(), AuditError> {
        let path = self.settings.file.clone();
        let why = match identity_of(&path) {
            Ok(identity) if identity == self.current.identity => None,
            Ok(_) => Some("replaced by another program"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Some("moved away by another program"),
            Err(error) => return Err(AuditError::at(&path, &error)),
        };
        if let Some(why) = why {
            return self.reopen(&path, why);
        }
        if self.current.is_failed() && now >= self.replace_at {
            self.replace_at = now + RETRY;
            return self.rotate(&path, "the disk did not keep the file before");
        }
        let least = self.before.wrapping_add(self.written());
        let length = self.current.len().map_err(|error| AuditError::at(&path, &error))?;
        if length < least {
            // Between a write and its count the length would be of more than is counted, and be missed for ever.
            let seats = Arc::clone(self.meter.seats());
            let held: Vec<_> = seats.iter().map(|seat| seat.handle.lock()).collect();
            let length = self.current.len().map_err(|error| AuditError::at(&path, &error))?;
            // Shards go on writing: what they add from here on is looked for from here on.
            self.before = length.wrapping_sub(self.written());
            drop(held);
            self.length = length;
            if length > 0 {
                self.current.set_torn();
            }
            self.allocate(&self.current)?;
            return self.begin(false, "cut short by another program", &Past::default());
        }
        // Closed one second early rather than written beyond the blocks that are allocated.
        let expected = length.saturating_add(length.saturating_sub(self.length));
        self.length = length;
        if expected < self.settings.rotate_size || now < self.rotate_at || self.unsealed.len() >= UNSEALED {
            return Ok(());
        }
        self.make_room(self.settings.rotate_size)?;
        let result = self.rotate(&path, "rotate");
        if result.is_err() {
            self.rotate_at = now + RETRY;
        }
        result
    }

    /// Moves to whatever is at the path now, or to a new file.
    fn reopen(&mut self, path: &Path, why: &'static str) -> Result<(), AuditError> {
        let next = Current::open(path, self.settings.durability)?;
        let past = read_past(path, &next, &self.archive)?;
        self.allocate(&next)?;
        let handles = self.handles(&next, path)?;
        if self.settings.durability == Durability::Disk {
            (self.keep_names)(parent(path))?;
        }
        let past = Past { torn: past.torn, ..Past::default() };
        self.move_to(next, handles, || Ok(()), (false, why, &past))
    }

    /// Puts the current file into the archive and a new one in its place.
    fn rotate(&mut self, path: &Path, why: &'static str) -> Result<(), AuditError> {
        let name = self.archive.next(self.shared.clock.now().wall)?;
        let archived = self.archive.path(&name);
        let next_path = next_path(path);
        match fs::remove_file(&next_path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(AuditError::at(&next_path, &error)),
            _ => {}
        }
        let next = Current::create(&next_path, self.settings.durability)?;
        let lasting = self.settings.durability == Durability::Disk;
        let keep_names = self.keep_names;
        let failed = self.current.is_failed();
        let left = self.current.identity;
        let placed = Cell::new(false);
        let place = || {
            fs::rename(path, &archived).map_err(|error| AuditError::at(&archived, &error))?;
            fs::rename(&next_path, path).map_err(|error| {
                // The old file goes on under its own name.
                let _ = fs::rename(&archived, path);
                AuditError::at(path, &error)
            })?;
            // An answer whose record is in a file without a name would not survive the machine's end: until there is one
            // whose name is kept, the old file goes on.
            let kept =
                if lasting { keep_names(parent(&archived)).and_then(|()| keep_names(parent(path))) } else { Ok(()) };
            if kept.is_err() {
                let _ = fs::rename(path, &next_path).and_then(|()| fs::rename(&archived, path));
            }
            placed.set(kept.is_ok());
            kept
        };
        self.unsealed.push(name.clone());
        let handles = self.allocate(&next).and_then(|()| self.handles(&next, &next_path));
        let result = handles.and_then(|handles| self.move_to(next, handles, place, (true, why, &Past::default())));
        if !placed.get() {
            self.unsealed.pop();
            let _ = fs::remove_file(&next_path);
            return result;
        }
        self.meter.rotated();
        self.meter.readers().archived(left, &name, &self.archive);
        // No shard writes to it any more.
        self.sealer.queue(&name, archived.clone(), failed);
        result
    }

    /// A descriptor of `next`, which is at `path`, for every shard.
    fn handles(&self, next: &Current, path: &Path) -> Result<Vec<Handle>, AuditError> {
        self.meter.seats().iter().map(|_| next.handle(path)).collect()
    }

    /// Moves every shard to `next`. None of them writes meanwhile: whoever follows the file by its name has seen all of it
    /// when `place` renames it. Our own record is the first line.
    fn move_to(
        &mut self,
        next: Current,
        handles: Vec<Handle>,
        place: impl FnOnce() -> Result<(), AuditError>,
        (ours, why, past): (bool, &'static str, &Past),
    ) -> Result<(), AuditError> {
        let seats = Arc::clone(self.meter.seats());
        let mut held: VecDeque<_> = seats.iter().map(|seat| seat.handle.lock()).collect();
        place()?;
        for (seat, handle) in held.iter_mut().zip(handles) {
            **seat = handle;
        }
        self.current = next;
        self.before = self.current.len().unwrap_or(0).wrapping_sub(self.written());
        self.meter.readers().moved(self.current.identity);
        drop(held.pop_front());
        self.begin(ours, why, past)
    }

    /// What all shards have written, to whatever file.
    fn written(&self) -> u64 {
        self.meter.seats().iter().map(|seat| seat.bytes.load(Ordering::Relaxed)).sum()
    }

    /// Writes the `open` or `reopen` record; where that fails, the next tick tries again.
    fn begin(&mut self, ours: bool, why: &'static str, past: &Past) -> Result<(), AuditError> {
        if past.torn > 0 {
            self.current.set_torn();
        }
        self.shard.append_own(&Own::Open(Opened {
            ours,
            why,
            boot: self.shared.boot,
            previous_boot: past.boot,
            machine: &machine_start(),
            torn: past.torn,
            chain: self.chain.as_deref(),
            unsealed: &self.unsealed,
        }));
        let result = self.shard.commit();
        self.untold = result.is_err().then_some((ours, why));
        self.length = self.current.len().unwrap_or(0);
        result
    }

    /// Allocates the file's blocks. Where records may be dropped, a disk too full for that is no obstacle.
    fn allocate(&self, file: &Current) -> Result<(), AuditError> {
        match (file.allocate(self.settings.rotate_size), self.settings.on_full) {
            (Err(error), OnFull::Refuse) => Err(AuditError::at(&self.settings.file, &error)),
            _ => Ok(()),
        }
    }

    /// Writes a `rotate` record for each closed file that was read; those that cannot be written are kept for later.
    fn tell_sealed(&mut self) -> Result<(), AuditError> {
        self.sealed.extend(self.sealer.done());
        while let Some((name, contents)) = self.sealed.front() {
            let previous = self.chain.as_deref();
            let chain = contents.as_ref().ok().map(|contents| link(previous, &contents.sha256));
            let sealed = contents.as_ref().map_err(String::as_str).map(|contents| Seal {
                records: contents.records,
                bytes: contents.bytes,
                sha256: &contents.sha256,
                previous,
                chain: chain.as_deref().unwrap_or_default(),
            });
            self.shard.append_own(&Own::Rotate { file: name, sealed });
            self.shard.commit()?;
            self.unsealed.retain(|unsealed| unsealed != name);
            self.chain = chain.or(self.chain.take());
            self.sealed.pop_front();
        }
        Ok(())
    }

    fn tell_sequences(&mut self, op: &'static str) -> Result<(), AuditError> {
        let seats = Arc::clone(self.meter.seats());
        let numbers: Vec<u16> = (0..=u16::MAX).take(seats.len()).collect();
        for (numbers, seats) in numbers.chunks(SEQUENCES).zip(seats.chunks(SEQUENCES)) {
            let reserved = |(number, seat): (&u16, &Arc<Seat>)| match number {
                // The record itself is the last of its shard.
                0 => (0, self.shard.next_sequence()),
                number => (*number, seat.sequence.load(Ordering::Relaxed)),
            };
            let sequences: Vec<_> = numbers.iter().zip(seats).map(reserved).collect();
            self.shard.append_own(&Own::Sequences { op, sequences: &sequences });
        }
        self.shard.commit()
    }
}

/// What the files before this one say: the file itself, or where it is new, the newest archive.
fn read_past(path: &Path, current: &Current, archive: &Archive) -> Result<Past, AuditError> {
    let read = |path: &Path| {
        let past = File::open(path).and_then(decoded).and_then(Past::read);
        past.map_err(|error| AuditError::at(path, &error))
    };
    if current.len().map_err(|error| AuditError::at(path, &error))? > 0 {
        return read(path);
    }
    let Some(newest) = archive.list()?.pop() else { return Ok(Past::default()) };
    let mut past = read(&archive.path(&newest.name))?;
    past.torn = 0;
    past.unsealed.push(newest.closed_as().to_owned());
    Ok(past)
}

/// The directory of a file.
fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

/// Where the next file is made ready, out of the way of whoever follows the current one.
fn next_path(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".next");
    path.with_file_name(name)
}

#[cfg(test)]
mod tests;
