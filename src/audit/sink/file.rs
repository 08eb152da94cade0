//! The kind `file`: records in another file, in another format, for whoever reads files.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::settings::Keys;
use super::{Batch, Deliver, Delivered, Plan};
use crate::audit::file::{Identity, identity_of};

/// What is read at once to find the end of the last whole line.
const BLOCK: u64 = 1 << 16;

/// The keys of this kind.
#[derive(Clone, Debug)]
struct Settings {
    file: PathBuf,
    /// At this size it is closed.
    rotate_size: u64,
    /// How many closed files are kept.
    keep: u32,
}

/// Reads them.
pub(super) fn read(keys: &Keys<'_>) -> Option<Arc<dyn Plan>> {
    let table = keys.table;
    if !table.has("file") {
        table.document().note(table.span(), "`file` is missing", "add file = \"soc.jsonl\"");
    }
    let rotate_size = table.size("rotate_size").unwrap_or(256 << 20);
    if rotate_size < 1 << 16 {
        table.document().note(&table.span_of("rotate_size"), "`rotate_size` is too small", "write \"64KiB\" or more");
    }
    let keep = table.integer("keep", 1..=1000).and_then(|keep| u32::try_from(keep).ok()).unwrap_or(4);
    let file = keys.path("file")?;
    if file.value == keys.log {
        let fact = "`file` is the query log itself: what is delivered would be read again";
        table.document().note(&file.span, fact, "name another file");
    }
    Some(Arc::new(Settings { file: file.value, rotate_size, keep }))
}

impl Plan for Settings {
    fn build(&self) -> Result<Box<dyn Deliver>, String> {
        let current = open(&self.file).map_err(|error| format!("{}: {error}", self.file.display()))?;
        Ok(Box::new(Target { settings: self.clone(), current, bytes: Vec::new() }))
    }
}

/// The file that is written.
struct Current {
    file: File,
    identity: Identity,
    length: u64,
}

/// Opens it behind its last whole line, and keeps others from writing it.
fn open(path: &Path) -> io::Result<Current> {
    let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o640).open(path)?;
    file.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => io::Error::other("another process or sink writes it; name another file"),
        TryLockError::Error(error) => error,
    })?;
    let metadata = file.metadata()?;
    let length = whole(&mut file, metadata.len())?;
    if length < metadata.len() {
        file.set_len(length)?;
    }
    Ok(Current { file, identity: (metadata.dev(), metadata.ino()), length })
}

/// Where the last whole line of a file ends: a process that was killed may have left part of one.
fn whole(file: &mut File, length: u64) -> io::Result<u64> {
    let from = length.saturating_sub(BLOCK);
    let mut block = Vec::new();
    file.seek(SeekFrom::Start(from))?;
    file.take(BLOCK).read_to_end(&mut block)?;
    let end = block.iter().rposition(|byte| *byte == b'\n').map(|at| from + at as u64 + 1);
    // A block without an end of line is nobody's record.
    Ok(end.unwrap_or(if from == 0 { 0 } else { length }))
}

struct Target {
    settings: Settings,
    current: Current,
    bytes: Vec<u8>,
}

impl Deliver for Target {
    fn deliver(&mut self, batch: &Batch<'_>) -> Delivered {
        self.bytes.clear();
        for record in batch.records {
            self.bytes.extend_from_slice(&record.bytes);
            self.bytes.push(b'\n');
        }
        match self.write() {
            Ok(()) => Delivered::All,
            Err(error) => {
                let remedy = match error.kind() {
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                        "; free some, or lower rotate_size and keep"
                    }
                    io::ErrorKind::PermissionDenied => "; let the service's user write this directory",
                    _ => "",
                };
                Delivered::Failed { why: format!("{}: {error}{remedy}", self.settings.file.display()), wait: None }
            }
        }
    }
}

impl Target {
    /// Appends all of it or nothing.
    fn write(&mut self) -> io::Result<()> {
        let path = &self.settings.file;
        if identity_of(path).ok() != Some(self.current.identity) {
            // Somebody moved it: whoever reads it goes on with the next one.
            self.current = open(path)?;
        } else if self.current.length > 0 && self.current.length + self.bytes.len() as u64 > self.settings.rotate_size {
            self.rotate()?;
        }
        let Current { file, length, .. } = &mut self.current;
        // Shorter than it was: somebody cut it.
        *length = file.metadata()?.len().min(*length);
        // On the disk before the cursor is.
        match file.write_all(&self.bytes).and_then(|()| file.sync_data()) {
            Ok(()) => {
                *length += self.bytes.len() as u64;
                Ok(())
            }
            Err(error) => {
                // Whole lines only: what was written of this batch goes, and is written again.
                file.set_len(*length)?;
                Err(error)
            }
        }
    }

    /// `soc.jsonl` becomes `soc.jsonl.1`, that `soc.jsonl.2`, and the last one goes.
    fn rotate(&mut self) -> io::Result<()> {
        let path = &self.settings.file;
        for number in (1..self.settings.keep).rev() {
            match fs::rename(numbered(path, number), numbered(path, number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::rename(path, numbered(path, 1))?;
        self.current = open(path)?;
        Ok(())
    }
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::fixture::Directory;
    use crate::audit::sink::Record;

    fn record(text: &str) -> Record {
        Record {
            id: "1-1-1".into(),
            kind: "query".into(),
            ts: "2026-11-21T03:53:04.117302Z".into(),
            node: "n".into(),
            segment: None,
            verdict: None,
            bytes: text.into(),
        }
    }

    #[test]
    fn rotates_keeps_and_never_tears_a_line() {
        let directory = Directory::new();
        let path = directory.path().join("soc.jsonl");
        fs::write(&path, "whole\ntor").unwrap();
        let settings = Settings { file: path.clone(), rotate_size: 20, keep: 2 };
        let mut target = settings.build().unwrap();
        assert!(open(&path).is_err_and(|error| error.to_string().contains("another process or sink")));
        for text in ["one", "second", "third one", "fourth one", "fifth"] {
            assert_eq!(target.deliver(&Batch { records: &[record(text)] }), Delivered::All);
        }
        let read = |name: &str| fs::read_to_string(directory.path().join(name)).unwrap_or_default();
        assert_eq!(read("soc.jsonl"), "fourth one\nfifth\n");
        assert_eq!((read("soc.jsonl.1"), read("soc.jsonl.2")), ("third one\n".into(), "whole\none\nsecond\n".into()));
        fs::rename(&path, directory.path().join("moved")).unwrap();
        assert_eq!(target.deliver(&Batch { records: &[record("sixth")] }), Delivered::All);
        assert_eq!(read("soc.jsonl"), "sixth\n");
        assert_eq!(read("soc.jsonl.3"), "");
    }
}
