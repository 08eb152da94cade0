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

/// The format of the file.
pub(super) const VERSION: u32 = 1;

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
            Ok(bytes) => Some(serde_json::from_slice(&bytes).ok().filter(|saved: &Saved| saved.v == VERSION)),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::fixture::Directory;

    /// What another release of the same version writes and reads: a change of it needs another version.
    #[test]
    fn the_text_of_this_version_stays_as_it_is() {
        const KEPT: &str = concat!(
            r#"{"v":1,"position":{"file":{"first":"0f-0-1","began":"2026-01-01T00:00:00.000000Z","archive":"a.jsonl"},"#,
            r#""offset":42},"lost":[{"file":"b.jsonl","why":"gone","records":3,"ids":[["0f-1-1","0f-1-3",3]],"#,
            r#""between":["2026-01-01T00:00:00.000000Z","2026-01-01T00:00:01.000000Z"],"behind":""}]}"#
        );
        let directory = Directory::new();
        let file = directory.path().join("sinks/copy.json");
        let open = |text: &str| {
            fs::create_dir_all(directory.path().join("sinks")).unwrap();
            fs::write(&file, text).unwrap();
            let cursor = Cursor::open(directory.path(), "copy").unwrap();
            (cursor.last().cloned(), cursor.damaged)
        };
        let (saved, damaged) = open(KEPT);
        assert_eq!((serde_json::to_string(&saved.unwrap()).unwrap().as_str(), damaged), (KEPT, false));
        // What a later release says beside it is passed over.
        let later = open(&KEPT.replace("\"offset\":42", "\"offset\":42,\"later\":1"));
        assert_eq!((later.0.unwrap().position.unwrap().offset, later.1), (42, false));
        // Of another version: everything is delivered again.
        assert_eq!(open(&KEPT.replace("\"v\":1", "\"v\":2")), (None, true));
    }
}
