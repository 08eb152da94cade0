//! The archive: closed files in `archive/` beside the current one, named in the order in which they were closed, as they
//! are or packed.

use std::cmp::Ordering;
use std::fs::{self, DirBuilder, File};
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

/// One archive; they sort by age, and packed it is the same.
#[derive(Clone, Debug)]
pub(super) struct Archived {
    /// When it was closed: 16 characters.
    time: String,
    /// Counts the files that were closed in the same second.
    number: u64,
    /// Its name in the directory.
    pub(super) name: String,
}

impl Archived {
    /// What it was called when it was closed: records name it so for ever.
    pub(super) fn closed_as(&self) -> &str {
        unpacked(&self.name)
    }

    /// Whether it was packed since.
    pub(super) fn is_packed(&self) -> bool {
        self.closed_as().len() < self.name.len()
    }

    /// When it was closed, by its name.
    pub(super) fn closed_at(&self) -> Wall {
        let number = |from: usize, to: usize| self.time.get(from..to).and_then(|digits| digits.parse::<i64>().ok());
        let part = |from, to| number(from, to).unwrap_or(0);
        let seconds = part(9, 11) * 3600 + part(11, 13) * 60 + part(13, 15);
        Wall::from_civil(part(0, 4), part(4, 6), part(6, 8), seconds)
    }
}

/// Opens an archive that was listed under this path; it may have been packed since.
pub(super) fn open(path: &Path) -> io::Result<File> {
    File::open(path).or_else(|error| {
        if error.kind() != io::ErrorKind::NotFound {
            return Err(error);
        }
        File::open(packed(path)).map_err(|_| error)
    })
}

/// Where an archive lies once it is packed.
pub(super) fn packed(path: &Path) -> PathBuf {
    let mut packed = path.as_os_str().to_owned();
    packed.push(".zst");
    PathBuf::from(packed)
}

impl Ord for Archived {
    fn cmp(&self, other: &Self) -> Ordering {
        (&self.time, self.number).cmp(&(&other.time, other.number))
    }
}

impl PartialOrd for Archived {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Archived {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Archived {}

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

    /// Every archive, the oldest first, each once; none where there is no directory. One that is there twice is being
    /// packed, or was when its process was killed: the file that was closed counts.
    pub(super) fn list(&self) -> Result<Vec<Archived>, AuditError> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(AuditError::at(&self.directory, &error)),
        };
        let mut found: Vec<_> = entries.flatten().filter_map(|entry| self.named(entry.file_name().to_str()?)).collect();
        found.sort_by(|a, b| a.cmp(b).then_with(|| a.name.len().cmp(&b.name.len())));
        found.dedup();
        Ok(found)
    }

    /// What a file called so is in the order, packed or not; `None`: no archive of this log.
    pub(super) fn named(&self, name: &str) -> Option<Archived> {
        let (time, number) = self.read(unpacked(name))?;
        Some(Archived { time: time.to_owned(), number, name: name.to_owned() })
    }

    /// Time and number of a file that was closed under this name.
    fn read<'a>(&self, name: &'a str) -> Option<(&'a str, u64)> {
        let rest = name.strip_prefix(&self.stem)?.strip_prefix('-')?;
        let rest = rest.strip_suffix(&self.extension)?;
        moment(if self.extension.is_empty() { rest } else { rest.strip_suffix('.')? })
    }

    /// The name of a file closed at `now`: later in the order than every other one, even where the clock was set
    /// back.
    pub(super) fn next(&self, now: Wall) -> Result<String, AuditError> {
        let mut time = stamp(now);
        let mut number = 0;
        if let Some(newest) = self.list()?.pop().filter(|newest| newest.time >= time) {
            (time, number) = (newest.time, newest.number.saturating_add(1));
        }
        let dot = if self.extension.is_empty() { "" } else { "." };
        Ok(format!("{}-{time}-{number}{dot}{}", self.stem, self.extension))
    }
}

impl Archived {
    /// Whether it was closed before this time: all that is in it is older.
    pub(super) fn closed_before(&self, time: Wall) -> bool {
        self.time < stamp(time)
    }
}

/// `<YYYYMMDDThhmmssZ>`.
fn stamp(time: Wall) -> String {
    let text = time.to_string();
    let seconds = text.get(..19).unwrap_or(&text);
    seconds.chars().filter(char::is_ascii_alphanumeric).chain(['Z']).collect()
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
        let listed = || archive.list().unwrap().into_iter().map(|archived| archived.name).collect::<Vec<_>>();
        assert_eq!(listed(), names);
        // Packed it stands in the same place, and where it is there twice, it is there once.
        fs::rename(archive.path(&names[3]), archive.path(&format!("{}.zst", names[3]))).unwrap();
        fs::write(archive.path(&format!("{}.zst", names[1])), "").unwrap();
        names[3] += ".zst";
        assert_eq!(listed(), names);
        let last = archive.list().unwrap().pop().unwrap();
        assert_eq!((last.closed_as(), last.is_packed()), ("query-20261121T035310Z-0.jsonl", true));
        assert_eq!(last.closed_at(), Wall(1_795_233_190_000_000));
        open(&archive.path(&names[3].replace(".zst", ""))).unwrap();
        assert_eq!(archive.next(Wall(1_795_233_190_000_000)).unwrap(), "query-20261121T035310Z-1.jsonl");
    }
}
