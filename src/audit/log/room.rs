//! Room: archives are packed when they are old, and the oldest removed when there are too many.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use nix::sys::statvfs::statvfs;

use super::{HEARTBEAT, Log};
use crate::audit::archive::{Archived, packed};
use crate::audit::error::AuditError;
use crate::audit::own::Own;
use crate::time::Tick;

/// How long may be counted what the archives held that are removed at once: the log's thread has other things to do. Of
/// 256 MiB it takes a second.
const COUNTING: Duration = Duration::from_secs(3);
/// How long packing is left alone after it failed.
const PACK_RETRY: Duration = Duration::from_secs(600);

/// A deleted archive.
pub(super) struct Removed {
    archived: Archived,
    bytes: u64,
    /// The setting that asked for it.
    why: &'static str,
    /// Sinks that had not read all of it.
    unread: Vec<Box<str>>,
}

impl Log {
    /// Deletes the oldest archives until the rest is small enough and enough of the file system is free. What every sink has
    /// read goes first, for sinks read in that order too; where that is not enough, what goes is told with their names. An
    /// archive that is not sealed yet stays. The current file counts with what is allocated for it, and so does the `next`.
    pub(super) fn make_room(&mut self, next: u64) -> Result<(), AuditError> {
        let size = |archived: &Archived| self.archive.path(&archived.name).metadata().map_or(0, |found| found.len());
        let sized = |archived| (size(&archived), archived);
        let archives: Vec<_> = self.archive.list()?.into_iter().map(sized).collect();
        let current = self.length.max(self.settings.rotate_size).saturating_add(next);
        let mut total = archives.iter().map(|(size, _)| *size).fold(current, u64::saturating_add);
        let until = self.shared.clock.tick() + COUNTING;
        for (size, oldest) in archives {
            if self.unsealed.iter().any(|name| name == oldest.closed_as()) {
                break;
            }
            let why = if total > self.settings.max_size {
                "max_size"
            } else if self.settings.min_free > 0
                && free(&self.settings.file).is_some_and(|free| free < self.settings.min_free)
            {
                "min_free"
            } else {
                break;
            };
            self.remove(oldest, why, until)?;
            total = total.saturating_sub(size);
        }
        Ok(())
    }

    /// Deletes an archive that was listed; it may have been packed since. Sinks that have not come to it are told what it
    /// held, where that can be counted until then.
    pub(super) fn remove(&mut self, oldest: Archived, why: &'static str, until: Tick) -> Result<(), AuditError> {
        let plain = self.archive.path(&oldest.name);
        let readers = self.meter.readers().clone();
        let lost = readers.lose(&oldest, &plain, (&self.shared.clock, until));
        for path in [plain.clone(), packed(&plain)] {
            let bytes = path.metadata().map_or(0, |found| found.len());
            match fs::remove_file(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(AuditError::at(&path, &error)),
                Ok(()) => {
                    let unread = readers.removed(&oldest, lost);
                    self.meter.removed();
                    self.removed.push_back(Removed { archived: oldest, bytes, why, unread });
                    return Ok(());
                }
            }
        }
        // Somebody else was quicker.
        Ok(())
    }

    /// Has the oldest archive packed that is sealed and old enough, one at a time.
    pub(super) fn pack(&mut self, now: Tick) -> Result<(), AuditError> {
        let result = self.packer.done().unwrap_or(Ok(()));
        if result.is_err() {
            self.pack_at = now + PACK_RETRY;
        } else if !self.packer.is_busy()
            && now >= self.pack_at
            && let Some(after) = self.settings.compress_after
        {
            let wall = self.shared.clock.now().wall;
            let is_ripe = |archived: &Archived| {
                let closed = Duration::from_micros(wall.0.saturating_sub(archived.closed_at().0));
                !archived.is_packed() && closed >= after && !self.unsealed.contains(&archived.name)
            };
            self.pack_at = now + HEARTBEAT;
            let archives: Vec<_> = self.archive.list()?.into_iter().filter(is_ripe).collect();
            let next = archives.iter().find(|archived| Some(*archived) > self.packed.as_ref()).or(archives.first());
            if let Some(next) = next {
                self.packer.begin(self.archive.path(&next.name));
                self.packed = Some(next.clone());
                // The one after it, as soon as it is done.
                self.pack_at = now;
            }
        }
        result
    }

    /// Writes a `removed` record for each deleted archive; those that cannot be written are kept for later.
    pub(super) fn tell_removed(&mut self) -> Result<(), AuditError> {
        while let Some(Removed { archived, bytes, why, unread }) = self.removed.front() {
            self.shard.append_own(&Own::Removed { file: archived.closed_as(), bytes: *bytes, why, unread });
            self.shard.commit()?;
            if let Some(Removed { archived, why, unread: sinks, .. }) = self.removed.pop_front()
                && !sinks.is_empty()
            {
                self.unread = Some(AuditError::Unread { path: self.archive.path(archived.closed_as()), why, sinks });
            }
        }
        Ok(())
    }
}

/// The bytes that an ordinary user can still write to the file system of `path`.
fn free(path: &Path) -> Option<u64> {
    statvfs(path).ok().map(|found| found.blocks_available() * found.fragment_size())
}
