//! Which files a path stands for, and in which order.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::audit::archive::{Archive, archived, unpacked};
use crate::audit::error::AuditError;
use crate::audit::file::Identity;

/// One file to read.
pub(super) struct Found {
    pub(super) path: PathBuf,
    /// Its length when it was found.
    pub(super) length: u64,
    /// Found in a directory: it may be gone when it is its turn.
    pub(super) listed: bool,
    /// Open already: a current file may be called otherwise when it is its turn.
    pub(super) file: Option<File>,
}

/// The files of these paths, each once.
pub(super) fn of(paths: &[PathBuf]) -> Result<Vec<Found>, AuditError> {
    let mut list = List::default();
    for path in paths {
        let metadata = fs::metadata(path).map_err(|error| AuditError::reading(path, &error))?;
        if metadata.is_dir() {
            list.directory(path)?;
        } else {
            list.with_archives(path, false)?;
        }
    }
    Ok(list.found)
}

#[derive(Default)]
struct List {
    found: Vec<Found>,
    seen: HashSet<Identity>,
}

impl List {
    /// The archives beside a current file, and the file. It is opened before they are listed: where it is rotated
    /// meanwhile, it is still read, and read once.
    fn with_archives(&mut self, path: &Path, listed: bool) -> Result<(), AuditError> {
        let fail = |error: io::Error| AuditError::reading(path, &error);
        let file = File::open(path).map_err(fail)?;
        let metadata = file.metadata().map_err(fail)?;
        let new = self.seen.insert((metadata.dev(), metadata.ino()));
        // A name that no archive could be called after has none.
        if let Ok(archive) = Archive::beside(path) {
            for archived in archive.list()? {
                self.listed(archive.path(&archived.name))?;
            }
        }
        if new {
            let (path, length) = (path.to_path_buf(), metadata.len());
            self.found.push(Found { path, length, listed, file: Some(file) });
        }
        Ok(())
    }

    /// The log files of a directory: archives in their order, then what else is called `….jsonl`.
    fn directory(&mut self, path: &Path) -> Result<(), AuditError> {
        let entries = fs::read_dir(path).map_err(|error| AuditError::reading(path, &error))?;
        let (mut closed, mut others) = (Vec::new(), Vec::new());
        for entry in entries.flatten().filter(|entry| entry.path().is_file()) {
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some((stem, time, number)) = archived(&name) {
                closed.push((stem.to_owned(), time.to_owned(), number, entry.path()));
            } else if unpacked(&name).ends_with(".jsonl") {
                others.push(entry.path());
            }
        }
        if closed.is_empty() && others.is_empty() {
            return Err(AuditError::NoLog(path.to_path_buf()));
        }
        closed.sort();
        others.sort();
        closed.dedup_by(|later, earlier| (&later.0, &later.1, later.2) == (&earlier.0, &earlier.1, earlier.2));
        closed.into_iter().try_for_each(|(.., path)| self.listed(path))?;
        others.into_iter().try_for_each(|path| self.with_archives(&path, true))
    }

    fn listed(&mut self, path: PathBuf) -> Result<(), AuditError> {
        let metadata = match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            metadata => metadata.map_err(|error| AuditError::reading(&path, &error))?,
        };
        if self.seen.insert((metadata.dev(), metadata.ino())) {
            self.found.push(Found { path, length: metadata.len(), listed: true, file: None });
        }
        Ok(())
    }
}
