//! A candidate that was promoted: its files are kept in the state directory and are the policy, until the policy directory
//! is another than the one that they took the place of.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::document::Mistake;
use crate::policy::Source;

/// In the state directory.
const FILE: &str = "promoted.json";
const STAGED: &str = "promoted.next";

/// See the module.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Promotion {
    /// The revision of these files.
    pub(super) revision: String,
    /// The revision of the policy directory that they took the place of.
    pub(super) over: String,
    /// When.
    pub(super) at: String,
    /// Who asked for it.
    pub(super) who: String,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<String>,
    /// How many disagreements were accepted.
    pub(super) accepted: u64,
    /// Where the names of the files begin.
    pub(super) directory: String,
    files: Vec<Kept>,
}

/// A file as it was.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Kept {
    file: String,
    text: String,
}

/// Who promotes what over what.
pub(super) struct Order {
    pub(super) over: u64,
    pub(super) revision: u64,
    pub(super) at: String,
    pub(super) who: String,
    pub(super) reason: Option<String>,
    pub(super) accepted: u64,
}

impl Promotion {
    /// Of these files of a directory.
    pub(super) fn new(order: Order, directory: &Path, files: Vec<Source>) -> Self {
        let Order { over, revision, at, who, reason, accepted } = order;
        Self {
            revision: format!("{revision:016x}"),
            over: format!("{over:016x}"),
            at,
            who,
            reason,
            accepted,
            directory: directory.display().to_string(),
            files: files.into_iter().map(|Source { file, text }| Kept { file, text }).collect(),
        }
    }

    /// What the state directory holds.
    pub(super) fn read(state: &Path) -> Result<Option<Self>, Vec<Mistake>> {
        let path = state.join(FILE);
        let read = match fs::read(&path) {
            // A state directory that cannot be one is told of where it is made.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            read => read.and_then(|bytes| serde_json::from_slice(&bytes).map_err(io::Error::from)),
        };
        read.map(Some).map_err(|error| {
            let fact = format!("{}, the policy that was promoted, cannot be read: {error}", path.display());
            vec![Mistake::general(fact, "remove it to go back to [policy].directory")]
        })
    }

    /// Its files, which are let go.
    pub(super) fn take_files(&mut self) -> Vec<Source> {
        std::mem::take(&mut self.files).into_iter().map(|Kept { file, text }| Source { file, text }).collect()
    }

    /// Writes it to the disk beside its place.
    pub(super) fn stage(&self, state: &Path) -> io::Result<Staged> {
        let path = state.join(STAGED);
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o640).open(&path)?;
        // Removed where one of these fails.
        let staged = Staged { path, place: state.join(FILE) };
        let mut buffered = io::BufWriter::new(&mut file);
        serde_json::to_writer(&mut buffered, self)?;
        buffered.flush()?;
        drop(buffered);
        file.sync_all()?;
        Ok(staged)
    }

    /// Forgets it; where that fails, the next load finds that it stands no more.
    pub(super) fn forget(state: &Path) {
        match fs::remove_file(state.join(FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, file = FILE, "a promotion that has ended cannot be removed from the state directory");
            }
            _ => {}
        }
    }
}

/// A promotion that counts from [`Staged::commit`] on.
pub(super) struct Staged {
    path: PathBuf,
    place: PathBuf,
}

impl Staged {
    /// Puts it in its place, at once.
    pub(super) fn commit(self) -> io::Result<()> {
        fs::rename(&self.path, &self.place)?;
        self.place.parent().map_or(Ok(()), |state| File::open(state)?.sync_all())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // Gone where it was put in its place.
        let _ = fs::remove_file(&self.path);
    }
}
