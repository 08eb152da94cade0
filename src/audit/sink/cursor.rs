//! The cursor: how far a sink has delivered, on the disk.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::lost::Lost;
use crate::audit::RecordId;

/// Which file of the log: what its first line says of it, wherever it lies and however it is packed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    /// `id` of its first record; of another first line, its SHA-256.
    pub(super) first: String,
    /// `ts` of its first record; empty where that has none.
    pub(super) began: String,
    /// What it was called in `archive/`, where it was there already.
    pub(super) archive: Option<String>,
}

/// A place between two lines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    pub(super) file: Arc<Mark>,
    /// In bytes of the file as it was written, unpacked.
    pub(super) offset: u64,
    /// The record that ends there: a file that was cut short and written on has another one there. Absent at the beginning,
    /// and behind what is no record.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "text")]
    pub(super) last: Option<RecordId>,
}

/// An id as the text that it is everywhere.
mod text {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::audit::RecordId;

    #[expect(clippy::ref_option, reason = "serde hands it so")]
    pub(super) fn serialize<S: Serializer>(id: &Option<RecordId>, serializer: S) -> Result<S::Ok, S::Error> {
        match id {
            Some(id) => serializer.collect_str(id),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<RecordId>, D::Error> {
        Ok(String::deserialize(deserializer)?.parse().ok())
    }
}

/// What is saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Saved {
    pub(super) v: u32,
    /// Everything before it was delivered.
    /// `None`: nothing was read before `lost` and what follows it.
    pub(super) position: Option<Position>,
    /// What it has not been told that it missed.
    #[serde(default)]
    pub(super) lost: Vec<Lost>,
}

/// The file of one sink's cursor.
pub(super) struct Cursor {
    path: PathBuf,
    next: PathBuf,
    last: Option<Saved>,
    /// What was saved cannot be understood.
    pub(super) damaged: bool,
}

impl Cursor {
    /// The cursor of the sink `name` below the state directory, and what was saved in it.
    ///
    /// # Errors
    /// One sentence: it cannot be read.
    pub(super) fn open(state: &Path, name: &str) -> Result<Self, String> {
        let directory = state.join("sinks");
        let fail = |error: &dyn std::fmt::Display| {
            format!("the cursors in {} cannot be used: {error}; let the service's user write it", directory.display())
        };
        DirBuilder::new().recursive(true).mode(0o750).create(&directory).map_err(|error| fail(&error))?;
        let path = directory.join(format!("{name}.json"));
        let read = match fs::read(&path) {
            Ok(bytes) => Some(serde_json::from_slice(&bytes).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(fail(&error)),
        };
        let next = directory.join(format!(".{name}.json.next"));
        Ok(Self { next, path, damaged: read == Some(None), last: read.flatten() })
    }

    /// What was saved last.
    pub(super) const fn last(&self) -> Option<&Saved> {
        self.last.as_ref()
    }

    /// Saves it, where it is another than the last: after a crash it is this one or the one before.
    ///
    /// # Errors
    /// It cannot be written; the one before stands.
    pub(super) fn save(&mut self, saved: Saved) -> io::Result<()> {
        if self.last.as_ref() == Some(&saved) {
            return Ok(());
        }
        let bytes = serde_json::to_vec(&saved).map_err(io::Error::other)?;
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o640).open(&self.next)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&self.next, &self.path)?;
        if let Some(directory) = self.path.parent() {
            File::open(directory)?.sync_all()?;
        }
        self.last = Some(saved);
        Ok(())
    }
}
