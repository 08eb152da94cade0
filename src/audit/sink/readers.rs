//! Who still reads which archive, and where the shards write: known to the log, the sinks, and what makes room.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::audit::archive::{Archive, Archived};
use crate::audit::file::Identity;

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

/// One of them: the files that it has begun to read and whose records are not all delivered, in their order.
#[derive(Default)]
pub(super) struct Reader(Mutex<VecDeque<Reading>>);

struct Reading {
    /// What its position's mark says.
    first: String,
    identity: Identity,
    /// What it is called in the archive; `None`: it is the current file.
    archived: Option<Archived>,
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
            for reading in reader.0.lock().iter_mut().filter(|reading| reading.identity == identity) {
                reading.archived.clone_from(&archived);
            }
        }
    }

    /// The oldest archive of which some sink has not delivered everything: those before it are delivered everywhere.
    #[must_use]
    #[allow(dead_code, reason = "for what makes room")]
    pub(in crate::audit) fn oldest_wanted(&self) -> Option<Archived> {
        let readers = self.0.readers.lock();
        readers.iter().filter_map(|reader| reader.0.lock().front()?.archived.clone()).min()
    }

    /// One more.
    pub(super) fn join(&self) -> Arc<Reader> {
        let reader = Arc::<Reader>::default();
        self.0.readers.lock().push(Arc::clone(&reader));
        reader
    }
}

impl Reader {
    /// Says that it goes on with this file; that it was read before under no name is forgotten.
    pub(super) fn reads(&self, first: &str, identity: Identity, archived: Option<Archived>) {
        let mut files = self.0.lock();
        files.pop_back_if(|last| last.identity == identity);
        files.push_back(Reading { first: first.to_owned(), identity, archived });
    }

    /// Says that everything before a file with this first line is delivered.
    pub(super) fn delivered(&self, first: &str) {
        let mut files = self.0.lock();
        if let Some(at) = files.iter().position(|reading| reading.first == first) {
            files.drain(..at);
        }
    }

    /// Says that it goes on elsewhere.
    pub(super) fn leaves(&self) {
        self.0.lock().clear();
    }

    /// What the file has become that it reads last.
    pub(super) fn archive(&self) -> Option<Archived> {
        self.0.lock().back()?.archived.clone()
    }
}
