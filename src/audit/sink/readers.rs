//! Who still reads which archive, and where the shards write: known to the log, the sinks, and what makes room.

use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use super::lost::Lost;
use crate::audit::archive::{Archive, Archived};
use crate::audit::file::{Identity, identity_of};

/// The readers of one log; cheap to clone.
#[derive(Clone, Default)]
pub(in crate::audit) struct Readers(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// The file that every shard writes to; `None` while they are being moved.
    writing: Mutex<Option<Identity>>,
    readers: Mutex<Vec<Arc<Reader>>>,
    /// Where the current file ended when the node opened it.
    start: Mutex<Option<(Identity, u64)>>,
}

/// One of them.
#[derive(Default)]
pub(super) struct Reader {
    reading: Mutex<Reading>,
    missed: Mutex<Vec<Lost>>,
}

#[derive(Default)]
struct Reading {
    /// What it reads.
    identity: Option<Identity>,
    /// The oldest archive that it has not read to its end; `None`: it is at the current file.
    oldest: Option<Archived>,
}

impl Readers {
    /// Says where the node found the end of its log, before it wrote anything.
    pub(in crate::audit) fn started(&self, identity: Identity, length: u64) {
        *self.0.start.lock() = Some((identity, length));
    }

    /// Where the node found it.
    pub(super) fn start(&self) -> Option<(Identity, u64)> {
        *self.0.start.lock()
    }

    /// Says that the shards are being moved to another file.
    pub(in crate::audit) fn moving(&self) {
        *self.0.writing.lock() = None;
    }

    /// Says that all of them are at `identity`.
    pub(in crate::audit) fn moved(&self, identity: Identity) {
        *self.0.writing.lock() = Some(identity);
    }

    /// Whether no shard writes to this file any more.
    pub(super) fn left(&self, identity: Identity) -> bool {
        self.0.writing.lock().is_some_and(|writing| writing != identity)
    }

    /// Says that the file has become this archive.
    pub(in crate::audit) fn archived(&self, identity: Identity, name: &str, archive: &Archive) {
        let archived = archive.named(name);
        for reader in self.0.readers.lock().iter() {
            let mut reading = reader.reading.lock();
            if reading.identity == Some(identity) {
                reading.oldest.clone_from(&archived);
            }
        }
    }

    /// The oldest archive that some sink has not read to its end: those before it are delivered everywhere.
    #[must_use]
    #[allow(dead_code, reason = "for what makes room")]
    pub(in crate::audit) fn oldest_wanted(&self) -> Option<Archived> {
        let readers = self.0.readers.lock();
        readers.iter().filter_map(|reader| reader.reading.lock().oldest.clone()).min()
    }

    /// Says that an archive is about to be removed. Whoever has not come to it misses all of it, and is told what that is;
    /// who is reading it has it open.
    pub(in crate::audit) fn removing(&self, archived: &Archived, path: &Path) {
        let here = identity_of(path).ok();
        let mut all = None;
        for reader in self.0.readers.lock().iter() {
            let reading = reader.reading.lock();
            let wants = reading.oldest.as_ref().is_some_and(|oldest| oldest <= archived);
            if !wants || here.is_some() && reading.identity == here {
                continue;
            }
            let lost = all.get_or_insert_with(|| Lost::of_archive(path, &archived.name));
            reader.missed.lock().push(lost.clone());
        }
    }

    /// One more.
    pub(super) fn join(&self) -> Arc<Reader> {
        let reader = Arc::<Reader>::default();
        self.0.readers.lock().push(Arc::clone(&reader));
        reader
    }
}

impl Reader {
    /// Says what it reads now.
    pub(super) fn reads(&self, identity: Identity, oldest: Option<Archived>) {
        *self.reading.lock() = Reading { identity: Some(identity), oldest };
    }

    /// The archive that it reads; `None`: it is at the current file.
    pub(super) fn oldest(&self) -> Option<Archived> {
        self.reading.lock().oldest.clone()
    }

    /// What was removed before it was read, once.
    pub(super) fn missed(&self) -> Vec<Lost> {
        std::mem::take(&mut *self.missed.lock())
    }
}
