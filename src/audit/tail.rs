//! Tail: the log as it grows, across rotations and packed archives, filtered.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::archive::{Archive, unpacked};
use super::decode::decoded;
use super::error::AuditError;
use super::file::{Identity, identity_of};
use super::format::json::MAX_LINE;
use super::read::Lines;
use crate::name::Name;
use crate::net::Prefix;

/// Which records are shown; what is `None` does not matter.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// `allow`, `deny` or `error`; only queries have a verdict.
    pub verdict: Option<String>,
    /// The segment's name.
    pub segment: Option<String>,
    /// A prefix that holds the client.
    pub client: Option<Prefix>,
    /// The name asked for, or one above it.
    pub name: Option<Name>,
}

impl Filter {
    /// Whether a line of the file is shown. A line that is no record is, where nothing is asked for.
    #[must_use]
    pub fn admits(&self, line: &str) -> bool {
        if self.verdict.is_none() && self.segment.is_none() && self.client.is_none() && self.name.is_none() {
            return true;
        }
        let Ok(record) = serde_json::from_str::<Value>(line) else { return false };
        let text = |key: &str| record.get(key).and_then(Value::as_str);
        let same = |wanted: &Option<String>, key| wanted.is_none() || wanted.as_deref() == text(key);
        let client = || text("client").and_then(|client| client.parse().ok());
        let qname = || text("qname").and_then(|name| Name::parse(name).ok());
        same(&self.verdict, "verdict")
            && same(&self.segment, "segment")
            && self
                .client
                .is_none_or(|prefix| client().is_some_and(|client: std::net::IpAddr| prefix.contains(&client)))
            && self.name.as_ref().is_none_or(|suffix| qname().is_some_and(|name| name.is_within(suffix)))
    }
}

/// Reads a log that is being written. It never waits: at the end, [`Tail::next_line`] says so, and the caller asks
/// again a moment later.
pub struct Tail {
    path: PathBuf,
    reader: BufReader<Box<dyn Read + Send>>,
    /// The file that the reader reads; `None`: it was closed and packed.
    file: Option<File>,
    identity: Identity,
    /// The beginning of the file: the same when it was packed.
    first: Vec<u8>,
    line: Vec<u8>,
    /// The rest of a line that is too long is being passed over.
    skipping: bool,
    /// The file was seen to be rotated away; its last lines may still come.
    leaving: bool,
}

impl Tail {
    /// Opens the current file, `back` lines before its end.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn open(path: &Path, back: usize) -> Result<Self, AuditError> {
        let fail = |error: io::Error| AuditError::reading(path, &error);
        let (mut file, identity) = open(path).map_err(fail)?;
        start_of_last(&mut file, back).and_then(|from| file.seek(SeekFrom::Start(from))).map_err(fail)?;
        let mut tail = Self {
            path: path.to_path_buf(),
            reader: BufReader::new(Box::new(io::empty())),
            file: Some(file),
            identity,
            first: first_line(path).map_err(fail)?,
            line: Vec::new(),
            skipping: false,
            leaving: false,
        };
        tail.read_file().map_err(fail)?;
        Ok(tail)
    }

    /// Begins to read the file where it stands.
    fn read_file(&mut self) -> io::Result<()> {
        if let Some(file) = &self.file {
            self.reader = BufReader::new(Box::new(file.try_clone()?));
        }
        self.line.clear();
        Ok(())
    }

    /// The next line without its line feed; `None` where there is no whole line yet. A line of more than 8 KiB is
    /// cut. Goes on with the next file where this one was rotated away, and from the start where it was cut short.
    ///
    /// # Errors
    /// The file, or the one after it, cannot be read.
    pub fn next_line(&mut self) -> Result<Option<String>, AuditError> {
        loop {
            let room = (MAX_LINE - self.line.len()) as u64;
            let read = (&mut self.reader).take(room).read_until(b'\n', &mut self.line);
            let read = read.map_err(|error| AuditError::at(&self.path, &error))?;
            let ended = self.line.last() == Some(&b'\n');
            if ended || self.line.len() >= MAX_LINE {
                let text = String::from_utf8_lossy(self.line.trim_ascii_end()).into_owned();
                self.line.clear();
                let skipped = std::mem::replace(&mut self.skipping, !ended);
                if !skipped && !text.is_empty() {
                    return Ok(Some(text));
                }
            } else if read == 0 && !self.go_on()? {
                return Ok(None);
            }
        }
    }

    /// At the end of a file: whether there is more to read in it or in another one.
    fn go_on(&mut self) -> Result<bool, AuditError> {
        let path = self.path.clone();
        let fail = |error: io::Error| AuditError::at(&path, &error);
        if let Some(file) = &mut self.file {
            let length = file.metadata().map_err(fail)?.len();
            if length < file.stream_position().map_err(fail)? {
                file.seek(SeekFrom::Start(0)).and_then(|_| self.read_file()).map_err(fail)?;
                return Ok(length > 0);
            }
            let moved = identity_of(&self.path).is_ok_and(|identity| identity != self.identity);
            if !moved || !std::mem::replace(&mut self.leaving, true) {
                // Shards leave the old file shortly after it was renamed: it is read to its end once more.
                return Ok(false);
            }
        }
        let next = self.following()?;
        let fail = |error: io::Error| AuditError::reading(&next, &error);
        let (file, identity) = open(&next).map_err(fail)?;
        self.first = first_line(&next).map_err(fail)?;
        self.identity = identity;
        self.leaving = false;
        if unpacked(&next.to_string_lossy()).len() < next.as_os_str().len() {
            self.file = None;
            self.reader = BufReader::new(decoded(file).map_err(fail)?);
            self.line.clear();
        } else {
            self.file = Some(file);
            self.read_file().map_err(fail)?;
        }
        Ok(true)
    }

    /// The file that was begun after the one being read; which that is, is known by its first line where it was packed
    /// since.
    fn following(&self) -> Result<PathBuf, AuditError> {
        let archive = Archive::beside(&self.path)?;
        let all: Vec<_> = archive.list()?.iter().map(|archived| archive.path(&archived.name)).collect();
        let same = |path: &PathBuf| identity_of(path).is_ok_and(|identity| identity == self.identity);
        let begins = |path: &PathBuf| first_line(path).is_ok_and(|first| first == self.first && !first.is_empty());
        let here = all.iter().position(same).or_else(|| all.iter().position(begins));
        let next = here.and_then(|here| all.into_iter().nth(here + 1));
        Ok(next.unwrap_or_else(|| self.path.clone()))
    }
}

fn open(path: &Path) -> io::Result<(File, Identity)> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    Ok((file, (metadata.dev(), metadata.ino())))
}

/// The first line of a file, packed or not.
fn first_line(path: &Path) -> io::Result<Vec<u8>> {
    let mut lines = Lines::new(decoded(File::open(path)?)?);
    Ok(lines.next()?.map(|line| line.bytes.to_vec()).unwrap_or_default())
}

/// Where the last `count` lines of a file begin, read backwards in blocks.
fn start_of_last(file: &mut File, count: usize) -> io::Result<u64> {
    let mut at = file.seek(SeekFrom::End(0))?;
    let mut block = vec![0; 1 << 16];
    // The line feed of the last line ends it and begins nothing.
    let mut feeds = count.saturating_add(1);
    while at > 0 && count > 0 {
        let length = at.min(block.len() as u64);
        at -= length;
        file.seek(SeekFrom::Start(at))?;
        let part = block.get_mut(..usize::try_from(length).unwrap_or(0)).unwrap_or_default();
        file.read_exact(part)?;
        for (index, _) in part.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            feeds -= 1;
            if feeds == 0 {
                return Ok(at + index as u64 + 1);
            }
        }
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_add_up() {
        let line = r#"{"v":1,"type":"query","client":"192.0.2.7","segment":"office","qname":"a.example.org","verdict":"deny"}"#;
        let all = Filter {
            verdict: Some("deny".into()),
            segment: Some("office".into()),
            client: "192.0.2.0/24".parse().ok(),
            name: Name::parse("example.org").ok(),
        };
        let rows = [
            (Filter::default(), true),
            (all.clone(), true),
            (Filter { verdict: Some("allow".into()), ..all.clone() }, false),
            (Filter { segment: Some("off".into()), ..all.clone() }, false),
            (Filter { client: "198.51.100.0/24".parse().ok(), ..all.clone() }, false),
            (Filter { name: Name::parse("ample.org").ok(), ..all.clone() }, false),
        ];
        for (filter, shown) in rows {
            assert_eq!(filter.admits(line), shown, "{filter:?}");
        }
        assert!(Filter::default().admits("torn") && !all.admits("torn"));
    }
}
