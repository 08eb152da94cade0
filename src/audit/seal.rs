//! Seals: each closed file is read once more in the background, counted, hashed and joined to the chain.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use sha2::{Digest, Sha256};

/// What is read at once: a tenth of a millisecond's work.
const PIECE: usize = 1 << 17;

/// Between two pieces the thread rests. Where it shares a core with a worker it takes a quarter of it then, and never a
/// whole slice of the scheduler's, for which queries would wait.
const REST: Duration = Duration::from_micros(400);

/// What a closed file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Contents {
    /// Lines.
    pub(super) records: u64,
    pub(super) bytes: u64,
    /// In hex.
    pub(super) sha256: String,
}

/// A file's name and what was found in it, or why nothing was.
pub(super) type Sealed = (String, Result<Contents, String>);

/// The thread that reads closed files, in the order in which they were closed.
pub(super) struct Sealer {
    jobs: Sender<(String, PathBuf, bool)>,
    done: Receiver<Sealed>,
}

impl Sealer {
    pub(super) fn start() -> io::Result<Self> {
        let (jobs, todo) = channel::<(String, PathBuf, bool)>();
        let (results, done) = channel();
        thread::Builder::new().name("audit-seal".to_owned()).spawn(move || {
            for (name, path, failed) in todo {
                let contents = contents(&path, failed).map_err(|error| error.to_string());
                if results.send((name, contents)).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { jobs, done })
    }

    /// One whose thread has ended.
    #[cfg(test)]
    pub(super) fn ended() -> Self {
        Self { jobs: channel().0, done: channel().1 }
    }

    /// Queues a file, and whether the disk failed to keep what was written to it. The log keeps the queue short by not
    /// closing files faster than they are read.
    pub(super) fn queue(&self, name: &str, path: PathBuf, failed: bool) {
        // The thread lives as long as this sender.
        let _ = self.jobs.send((name.to_owned(), path, failed));
    }

    /// Every file that is done by now, without waiting.
    pub(super) fn done(&self) -> impl Iterator<Item = Sealed> {
        self.done.try_iter()
    }

    /// The next file, as soon as it is done.
    ///
    /// # Errors
    /// That takes longer, or the thread has ended.
    pub(super) fn wait(&self, longest: Duration) -> Result<Sealed, RecvTimeoutError> {
        self.done.recv_timeout(longest)
    }
}

/// Reads a closed file and gives back what was allocated beyond its end; it and its name are on the disk before its
/// seal is written.
fn contents(path: &Path, failed: bool) -> io::Result<Contents> {
    let mut file = File::options().read(true).write(true).open(path)?;
    if failed {
        // What counts is what the disk has, not what memory still holds.
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    }
    let mut hash = Sha256::new();
    let (mut records, mut bytes) = (0, 0);
    let mut buffer = vec![0; PIECE];
    loop {
        let read = match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => buffer.get(..read).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hash.update(read);
        bytes += read.len() as u64;
        records += read.iter().filter(|byte| **byte == b'\n').count() as u64;
        thread::sleep(REST);
    }
    file.set_len(bytes)?;
    file.sync_all()?;
    if let Some(directory) = path.parent() {
        File::open(directory)?.sync_all()?;
    }
    Ok(Contents { records, bytes, sha256: hex(&hash.finalize()) })
}

/// The chain after a file: SHA-256 of the chain before it (nothing for the first file) and the file's own SHA-256,
/// both as hex text: `printf %s%s "$previous" "$sha256" | sha256sum`.
pub(super) fn link(previous: Option<&str>, sha256: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(previous.unwrap_or_default());
    hash.update(sha256);
    hex(&hash.finalize())
}

/// SHA-256 of these bytes, in hex.
pub(super) fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Lower-case hex.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::fixture::Directory;

    /// Computed by `printf 'a\nb\n' | sha256sum` and `printf %s%s … | sha256sum`.
    #[test]
    fn agrees_with_sha256sum() {
        let directory = Directory::new();
        let path = directory.path().join("a");
        std::fs::write(&path, "a\nb\n").unwrap();
        let sha256 = "911169ddaaf146aff539f58c26c489af3b892dff0fe283c1c264c65ae5aa59a2";
        let found = contents(&path, false).unwrap();
        assert_eq!((found.records, found.bytes), (2, 4));
        assert_eq!(found.sha256, sha256);
        assert_eq!(link(None, sha256), "37803cafd0d1e07442cb4fea2829f6992f3466602c1098552c6faa3cf19f1c96");
        assert_eq!(link(Some("a"), "b"), link(None, "ab"));
    }
}
