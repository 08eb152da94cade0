//! The archive: closed files in `archive/` beside the current one, named in the order in which they were closed.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::error::AuditError;
use crate::time::Wall;

/// Where closed files go, and how they are called: `<stem>-<YYYYMMDDThhmmssZ>-<n>.<extension>`.
#[derive(Clone, Debug)]
pub(super) struct Archive {
    directory: PathBuf,
    stem: String,
    extension: String,
}

/// One archive; they sort by age.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Archived {
    /// When it was closed: 16 characters.
    time: String,
    /// Counts the files that were closed in the same second.
    number: u64,
    /// Its name in the directory.
    pub(super) name: String,
}

impl Archived {
    /// Whether it was closed after the other one; packed or not makes no difference.
    pub(super) fn is_after(&self, other: &Self) -> bool {
        (&self.time, self.number) > (&other.time, other.number)
    }
}

impl Archive {
    /// The archive of the current file at `path`.
    pub(super) fn beside(path: &Path) -> Result<Self, AuditError> {
        let plain = |text: &&str| text.len() <= 128 && !text.chars().any(char::is_control);
        let stem = path.file_stem().and_then(|stem| stem.to_str()).filter(plain);
        let extension = path.extension().map_or(Some(""), |extension| extension.to_str().filter(plain));
        let (Some(stem), Some(extension)) = (stem, extension) else {
            return Err(AuditError::Name(path.to_path_buf()));
        };
        let parent = path.parent().unwrap_or(Path::new(""));
        Ok(Self { directory: parent.join("archive"), stem: stem.to_owned(), extension: extension.to_owned() })
    }

    /// Makes the directory, where it is not there.
    pub(super) fn create(&self) -> Result<(), AuditError> {
        match DirBuilder::new().mode(0o750).create(&self.directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(AuditError::at(&self.directory, &error)),
            _ => Ok(()),
        }
    }

    /// Where the archive called `name` is.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Every archive, the oldest first; none where there is no directory.
    pub(super) fn list(&self) -> Result<Vec<Archived>, AuditError> {
        self.list_as(|name| name)
    }

    /// As [`Archive::list`], with those that were packed since, each once.
    pub(super) fn list_packed(&self) -> Result<Vec<Archived>, AuditError> {
        let mut found = self.list_as(unpacked)?;
        found.dedup_by(|later, earlier| (&later.time, later.number) == (&earlier.time, earlier.number));
        Ok(found)
    }

    /// What a file called so is in the order, packed or not; `None`: no archive of this log.
    pub(super) fn named(&self, name: &str) -> Option<Archived> {
        let (time, number) = self.read(unpacked(name))?;
        Some(Archived { time: time.to_owned(), number, name: name.to_owned() })
    }

    fn list_as(&self, named: impl Fn(&str) -> &str) -> Result<Vec<Archived>, AuditError> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(AuditError::at(&self.directory, &error)),
        };
        let read = |name: &str| {
            let (time, number) = self.read(named(name))?;
            Some(Archived { time: time.to_owned(), number, name: name.to_owned() })
        };
        let mut found: Vec<_> = entries.flatten().filter_map(|entry| read(entry.file_name().to_str()?)).collect();
        found.sort();
        Ok(found)
    }

    fn read<'a>(&self, name: &'a str) -> Option<(&'a str, u64)> {
        let rest = name.strip_prefix(&self.stem)?.strip_prefix('-')?;
        let rest = rest.strip_suffix(&self.extension)?;
        moment(if self.extension.is_empty() { rest } else { rest.strip_suffix('.')? })
    }

    /// The name of a file closed at `now`: later in the order than every other one, even where the clock was set
    /// back.
    pub(super) fn next(&self, now: Wall) -> Result<String, AuditError> {
        let stamp = now.to_string();
        let seconds = stamp.get(..19).unwrap_or(&stamp);
        let mut time: String = seconds.chars().filter(char::is_ascii_alphanumeric).collect();
        time.push('Z');
        let mut number = 0;
        if let Some(newest) = self.list()?.pop().filter(|newest| newest.time >= time) {
            (time, number) = (newest.time, newest.number.saturating_add(1));
        }
        let dot = if self.extension.is_empty() { "" } else { "." };
        Ok(format!("{}-{time}-{number}{dot}{}", self.stem, self.extension))
    }
}

/// `<YYYYMMDDThhmmssZ>-<n>`.
fn moment(text: &str) -> Option<(&str, u64)> {
    let (time, number) = text.split_once('-')?;
    let shaped = time.len() == 16 && time.ends_with('Z') && time.bytes().all(|byte| byte.is_ascii_alphanumeric());
    Some((time, number.parse().ok().filter(|_| shaped)?))
}

/// A file's name without what zstd and gzip put behind it.
pub(super) fn unpacked(name: &str) -> &str {
    name.strip_suffix(".zst").or_else(|| name.strip_suffix(".gz")).unwrap_or(name)
}

/// The parts of a name that an archive may have, whatever the log is called: stem, time, number.
pub(super) fn archived(name: &str) -> Option<(&str, &str, u64)> {
    let whole = unpacked(name);
    let whole = whole.rsplit_once('.').map_or(whole, |(whole, _)| whole);
    let (rest, number) = whole.rsplit_once('-')?;
    let (stem, time) = rest.rsplit_once('-')?;
    moment(whole.get(stem.len() + 1..)?).map(|_| (stem, time, number.parse().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::fixture::Directory;

    #[test]
    fn names_follow_each_other_whatever_the_clock_does() {
        let directory = Directory::new();
        let archive = Archive::beside(&directory.path().join("query.jsonl")).unwrap();
        archive.create().unwrap();
        let mut names = Vec::new();
        for seconds in [1_795_233_184, 1_795_233_184, 1_795_233_100, 1_795_233_190] {
            let name = archive.next(Wall(seconds * 1_000_000)).unwrap();
            fs::write(archive.path(&name), "").unwrap();
            names.push(name);
        }
        fs::write(archive.path("query-notes-1.jsonl"), "").unwrap();
        assert_eq!(
            names,
            [
                "query-20261121T035304Z-0.jsonl",
                "query-20261121T035304Z-1.jsonl",
                "query-20261121T035304Z-2.jsonl",
                "query-20261121T035310Z-0.jsonl",
            ]
        );
        let listed: Vec<_> = archive.list().unwrap().into_iter().map(|archived| archived.name).collect();
        assert_eq!(listed, names);
    }
}
