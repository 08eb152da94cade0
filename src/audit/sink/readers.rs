//! Who still reads which archive, and where the shards write: known to the log, the sinks, and what makes room.

use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use super::lost::Lost;
use crate::audit::archive::{Archive, Archived};
use crate::audit::file::Identity;
use crate::time::{Clock, Tick};

/// The readers of one log; cheap to clone.
#[derive(Clone, Default)]
pub(in crate::audit) struct Readers(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// The file that every shard writes to; `None` before there is one.
    writing: Mutex<Option<Identity>>,
    readers: Mutex<Vec<Arc<Reader>>>,
    /// Where the current file ended when the node opened it.
    start: Mutex<Option<(Identity, u64)>>,
}

/// One of them.
pub(super) struct Reader {
    name: Box<str>,
    reading: Mutex<Reading>,
    missed: Mutex<Vec<Lost>>,
}

#[derive(Default)]
struct Reading {
    /// What it reads.
    identity: Option<Identity>,
    /// What that is called in the archive; `None`: it is the current file.
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
                reading.archived.clone_from(&archived);
            }
        }
    }

    /// What is lost to those who have not come to an archive that is about to be removed; `None`: all have. Nobody waits
    /// while it is counted, until this time at most.
    pub(in crate::audit) fn lose(&self, archived: &Archived, path: &Path, until: (&Clock, Tick)) -> Option<Lost> {
        let is_before =
            |reader: &Arc<Reader>| reader.reading.lock().archived.as_ref().is_some_and(|here| here < archived);
        let any = self.0.readers.lock().iter().any(is_before);
        any.then(|| Lost::of_archive(path, archived.closed_as(), until))
    }

    /// Says that an archive was removed. Whoever has not come to it misses all of it, and is told what that is; who is
    /// reading it has it open. The names of those who have not read it to its end.
    pub(in crate::audit) fn removed(&self, archived: &Archived, lost: Option<Lost>) -> Vec<Box<str>> {
        let lost = lost.unwrap_or_else(|| Lost::of_gone(archived.closed_as()));
        let mut names = Vec::new();
        for reader in self.0.readers.lock().iter() {
            let reading = reader.reading.lock();
            let Some(here) = reading.archived.as_ref().filter(|here| *here <= archived) else { continue };
            if here < archived {
                reader.missed.lock().push(lost.clone());
            }
            names.push(reader.name.clone());
        }
        names
    }

    /// The sink of this name, in place of the one that was so called before.
    pub(super) fn join(&self, name: &str) -> Arc<Reader> {
        let reader = Arc::new(Reader { name: name.into(), reading: Mutex::default(), missed: Mutex::default() });
        let mut readers = self.0.readers.lock();
        readers.retain(|known| &*known.name != name);
        readers.push(Arc::clone(&reader));
        reader
    }
}

impl Reader {
    pub(super) const fn name(&self) -> &str {
        &self.name
    }

    /// Says what it reads now. That was opened before it was removed, where it was.
    pub(super) fn reads(&self, identity: Identity, archived: Option<Archived>) {
        let mut reading = self.reading.lock();
        if let Some(archived) = &archived {
            self.missed.lock().retain(|lost| lost.file.as_deref() != Some(archived.closed_as()));
        }
        *reading = Reading { identity: Some(identity), archived };
    }

    /// Says that it goes on elsewhere.
    pub(super) fn leaves(&self) {
        *self.reading.lock() = Reading::default();
    }

    /// The archive that it reads; `None`: it is at the current file.
    pub(super) fn archive(&self) -> Option<Archived> {
        self.reading.lock().archived.clone()
    }

    /// What was removed before it was read, once.
    pub(super) fn missed(&self) -> Vec<Lost> {
        std::mem::take(&mut *self.missed.lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::fixture::{Directory, write};
    use crate::audit::{Log, Settings};
    use std::time::Duration;

    #[test]
    fn what_is_lost_is_counted_in_time_or_not_at_all_and_what_is_open_is_not_lost() {
        let directory = Directory::new();
        let archive = Archive::beside(&directory.log()).unwrap();
        archive.create().unwrap();
        let names = ["query-20261121T035304Z-0.jsonl", "query-20261121T035305Z-0.jsonl"];
        for name in names {
            std::fs::write(archive.path(name), "{\"type\":\"log\",\"id\":\"1-0-1\",\"ts\":\"\"}\n").unwrap();
        }
        let [first, second] = names.map(|name| archive.named(name).unwrap());
        let readers = Readers::default();
        let reader = readers.join("siem");
        let clock = Clock::manual();
        let lose = |until: Duration| readers.lose(&second, &archive.path(names[1]), (&clock, clock.tick() + until));
        assert_eq!(lose(Duration::from_secs(1)), None, "it is at the current file");
        reader.reads((0, 0), Some(first));
        for (until, records) in [(Duration::from_secs(1), Some(1)), (Duration::ZERO, None)] {
            let lost = lose(until).unwrap();
            assert_eq!((lost.records, lost.file.as_deref()), (records, Some(names[1])));
            assert_eq!(readers.removed(&second, Some(lost)), ["siem".into()]);
            assert_eq!(reader.missed().len(), 1);
        }
        // Opened before it was removed, and said so after.
        readers.removed(&second, lose(Duration::from_secs(1)));
        reader.reads((0, 1), Some(second.clone()));
        assert_eq!(reader.missed(), []);
    }

    #[test]
    fn what_a_sink_had_not_read_is_not_removed_in_silence() {
        let directory = Directory::new();
        let clock = Clock::manual();
        let settings = Settings { max_size: 64 << 10, ..directory.settings() };
        let (mut log, mut shards) = Log::open(settings, "node", clock.clone(), 1, 1).unwrap();
        let archive = Archive::beside(&directory.log()).unwrap();
        let (siem, dashboard) = (log.meter().readers().join("siem"), log.meter().readers().join("dashboard"));
        let mut go_on = |removed: u64| {
            while log.counts().removed < removed {
                write(&mut shards[0], &clock, 10);
                clock.advance(Duration::from_secs(1));
                log.tick()?;
                // One reads on, the other stays where it was.
                dashboard.reads((0, 0), None);
                if let Some(oldest) = archive.list()?.into_iter().next().filter(|_| removed == 1) {
                    siem.reads((0, 0), Some(oldest));
                }
            }
            Ok::<(), crate::audit::AuditError>(())
        };
        let error = go_on(1).and_then(|()| go_on(2)).unwrap_err().to_string();
        let told = "was removed for max_size before siem had read it: a `gap` record there, or the journal, \
                    says what it held; raise [audit] max_size, or see why it is behind";
        assert!(error.ends_with(told), "{error}");
        siem.reads((0, 0), None);
        go_on(40).unwrap();
        let mut text = directory.text();
        for archived in archive.list().unwrap() {
            text += &std::fs::read_to_string(archive.path(&archived.name)).unwrap();
        }
        let removed: Vec<&str> = text.lines().filter(|line| line.contains("\"op\":\"removed\"")).collect();
        assert!(removed.len() > 1);
        // How many go at once depends on how many were read once more in the background.
        assert!(removed.iter().any(|line| !line.contains("unread")), "{removed:?}");
    }
}
