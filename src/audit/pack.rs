//! Packing: closed files, some time after they were sealed, by zstd (RFC 8878), in the background.
//!
//! Whenever its process is killed, the file is there: it is packed beside, under a hidden name, read back, put on the disk
//! and named; only then the one that was closed is removed.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use sha2::{Digest, Sha256};
use zstd::Encoder;

use super::decode::decoded;
use super::error::AuditError;
use super::file::{MODE, keep_names};

/// Records of many clients and names shrink to a fourteenth, of few to a thirtieth, at 350 MB/s. Level 1 takes two thirds of
/// the time, and a fifth more room where names repeat; level 9 a sixth of the speed for a fifth less room.
const LEVEL: i32 = 3;

/// What is packed at once: a third of a millisecond's work.
const PIECE: usize = 1 << 17;

/// Between two pieces the thread rests, as the one that seals does.
const REST: Duration = Duration::from_millis(1);

/// The thread that packs, one file at a time.
pub(super) struct Packer {
    jobs: Option<Sender<PathBuf>>,
    done: Receiver<Result<(), AuditError>>,
    busy: bool,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Packer {
    pub(super) fn start() -> io::Result<Self> {
        let (jobs, todo) = channel::<PathBuf>();
        let (results, done) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new().name("audit-pack".to_owned()).spawn(move || {
            for path in todo {
                let result = pack(&path, &stopped).map_err(|error| AuditError::at(&path, &error));
                if results.send(result).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { jobs: Some(jobs), done, busy: false, stop, thread: Some(thread) })
    }

    /// Whether one is being packed.
    pub(super) const fn is_busy(&self) -> bool {
        self.busy
    }

    /// Begins to pack a file that nobody writes to any more.
    pub(super) fn begin(&mut self, path: PathBuf) {
        self.busy = self.jobs.as_ref().is_some_and(|jobs| jobs.send(path).is_ok());
    }

    /// What became of the one that was being packed, where that is known by now.
    pub(super) fn done(&mut self) -> Option<Result<(), AuditError>> {
        let done = self.done.try_recv().ok();
        self.busy &= done.is_none();
        done
    }
}

impl Drop for Packer {
    /// What is being packed is given up.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // It only ends; it has nothing more to tell.
            let _ = thread.join();
        }
    }
}

/// Packs the file at `path`, and removes it.
fn pack(path: &Path, stop: &AtomicBool) -> io::Result<()> {
    let packed = beside(path, "", ".zst");
    let part = beside(path, ".", ".zst.next");
    // Of a process that was killed.
    remove(&part)?;
    let result = write(path, &part, stop);
    let placed = match result {
        Ok(true) => fs::rename(&part, &packed).map(|()| true),
        result => result,
    };
    if !matches!(placed, Ok(true)) {
        let _ = fs::remove_file(&part);
        return placed.map(|_| ());
    }
    let directory = path.parent().unwrap_or(Path::new(""));
    let keep = || keep_names(directory).map_err(io::Error::other);
    keep()?;
    if !remove(path)? {
        // Retention was quicker.
        remove(&packed)?;
    }
    keep()
}

/// Whether it was there.
fn remove(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        result => result.map(|()| true),
    }
}

/// Writes what is in `path` to `part`, packed, and reads it back; false where it was stopped.
fn write(path: &Path, part: &Path, stop: &AtomicBool) -> io::Result<bool> {
    let source = File::open(path)?;
    let metadata = source.metadata()?;
    let target = OpenOptions::new().write(true).create_new(true).mode(MODE).open(part)?;
    let mut encoder = Encoder::new(target, LEVEL)?;
    encoder.include_checksum(true)?;
    encoder.set_pledged_src_size(Some(metadata.len()))?;
    let Some(before) = hash(source, stop, |piece| encoder.write_all(piece))? else { return Ok(false) };
    let target = encoder.finish()?;
    target.set_modified(metadata.modified()?)?;
    target.sync_all()?;
    let Some(after) = hash(decoded(File::open(part)?)?, stop, |_| Ok(()))? else { return Ok(false) };
    if before == after { Ok(true) } else { Err(io::Error::other("packed and unpacked it was not the same")) }
}

/// Reads all of `source`, with rests; its SHA-256, or `None` where it was stopped.
fn hash(
    mut source: impl Read,
    stop: &AtomicBool,
    mut each: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<Option<Vec<u8>>> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; PIECE];
    loop {
        if stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let piece = match source.read(&mut buffer) {
            Ok(0) => return Ok(Some(hash.finalize().to_vec())),
            Ok(read) => buffer.get(..read).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hash.update(piece);
        each(piece)?;
        thread::sleep(REST);
    }
}

/// A file in the directory of another, called after it.
fn beside(path: &Path, before: &str, after: &str) -> PathBuf {
    let mut name = OsString::from(before);
    name.push(path.file_name().unwrap_or_default());
    name.push(after);
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::fixture::Directory;

    static NEVER: AtomicBool = AtomicBool::new(false);

    #[test]
    fn what_is_packed_is_what_was_there_and_what_a_kill_left_is_no_obstacle() {
        let directory = Directory::new();
        let path = directory.path().join("a.jsonl");
        let text: String = (0..40_000).map(|number| format!("{{\"id\":{number}}}\n")).collect();
        let (packed, part) = (directory.path().join("a.jsonl.zst"), directory.path().join(".a.jsonl.zst.next"));
        let read = || {
            let mut text = String::new();
            decoded(File::open(&packed).unwrap()).unwrap().read_to_string(&mut text).unwrap();
            text
        };
        // Killed: nowhere, while it wrote the part, and before it removed what it had packed.
        for left in [None, Some(&part), Some(&packed)] {
            fs::write(&path, &text).unwrap();
            left.iter().for_each(|left| fs::write(left, "half").unwrap());
            pack(&path, &NEVER).unwrap();
            assert!(read() == text && !path.exists() && !part.exists(), "{left:?}");
            assert!(packed.metadata().unwrap().len() * 4 < text.len() as u64);
        }
    }

    #[test]
    fn what_cannot_be_packed_stays() {
        let directory = Directory::new();
        let path = directory.path().join("a.jsonl");
        let files = || fs::read_dir(directory.path()).unwrap().count();
        fs::write(&path, "a\n").unwrap();
        pack(&path, &AtomicBool::new(true)).unwrap();
        assert!(path.exists() && files() == 1, "it was stopped");
        fs::create_dir(directory.path().join("a.jsonl.zst")).unwrap();
        pack(&path, &NEVER).unwrap_err();
        assert!(path.exists() && files() == 2, "there is something else of that name");
        // Removed by retention before it is packed, or while it is.
        fs::remove_file(&path).unwrap();
        pack(&path, &NEVER).unwrap_err();
        assert_eq!(files(), 1);
    }
}
