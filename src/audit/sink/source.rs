//! One file of the log, packed or not, open to be read.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use super::cursor::Mark;
use crate::audit::RecordId;
use crate::audit::decode::{decoded, is_packed};
use crate::audit::error::AuditError;
use crate::audit::file::Identity;
use crate::audit::format::json::MAX_LINE;
use crate::audit::read::Head;
use crate::audit::seal::digest;

/// What of a file's beginning is compared to notice that it was cut and grew again.
pub(super) const HEAD: usize = 64;

/// A file that is open.
pub(super) struct Source {
    pub(super) file: File,
    pub(super) reader: Box<dyn Read>,
    pub(super) identity: Identity,
    pub(super) packed: bool,
    pub(super) mark: Arc<Mark>,
    pub(super) head: Vec<u8>,
    /// How much of it, unpacked, was read into the buffer.
    pub(super) read: u64,
    /// It was read to its end after every shard had left it.
    pub(super) left: bool,
}

impl Source {
    /// Opens a file and reads its first line; `None` where it is not there.
    pub(super) fn open(path: &Path, archive: Option<String>) -> Result<Option<Self>, AuditError> {
        let opened = || -> io::Result<Self> {
            let file = File::open(path)?;
            let metadata = file.metadata()?;
            let mut magic = [0; 4];
            let read = file.read_at(&mut magic, 0)?;
            let packed = is_packed(magic.get(..read).unwrap_or_default());
            let mut source = Self {
                reader: Box::new(io::empty()),
                identity: (metadata.dev(), metadata.ino()),
                packed,
                mark: Arc::new(Mark { archive: archive.clone(), ..Mark::default() }),
                head: Vec::new(),
                read: 0,
                left: false,
                file,
            };
            source.rewind()?;
            let line = first_line(&mut source.reader)?;
            if let Some(line) = line {
                source.head = line.get(..HEAD.min(line.len())).unwrap_or_default().to_vec();
                source.mark = Arc::new(mark(&line, archive.clone()));
            }
            source.rewind()?;
            Ok(source)
        };
        match opened() {
            Ok(source) => Ok(Some(source)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(AuditError::reading(path, &error)),
        }
    }

    pub(super) fn rewind(&mut self) -> io::Result<()> {
        let mut file = self.file.try_clone()?;
        file.seek(SeekFrom::Start(0))?;
        self.reader = if self.packed { decoded(file)? } else { Box::new(file) };
        self.read = 0;
        Ok(())
    }

    /// Goes from its beginning to an offset of what it holds, or to its end. The line that ends there, or `None`: none does.
    pub(super) fn skip_to(&mut self, offset: u64) -> io::Result<Option<Vec<u8>>> {
        let tail = offset.min(MAX_LINE as u64);
        let mut before = Vec::new();
        let skipped = if self.packed {
            io::copy(&mut (&mut self.reader).take(offset - tail), &mut io::sink())?
        } else {
            // The reader's descriptor has the same offset.
            self.file.seek(SeekFrom::Start((offset - tail).min(self.file.metadata()?.len())))?
        };
        self.read = skipped + (&mut self.reader).take(tail).read_to_end(&mut before)? as u64;
        if self.read < offset || before.pop().is_some_and(|last| last != b'\n') {
            return Ok(None);
        }
        let begin = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |feed| feed + 1);
        Ok(Some(before.split_off(begin)))
    }

    /// Whether somebody cut it and, perhaps, others went on writing.
    pub(super) fn was_cut(&self) -> io::Result<bool> {
        let mut head = [0; HEAD];
        let known = head.get_mut(..self.head.len()).unwrap_or_default();
        let read = self.file.read_at(known, 0)?;
        Ok(known.get(..read) != Some(&self.head) || self.file.metadata()?.len() < self.read)
    }
}

/// The id of the record in a line, found without reading all of it.
pub(super) fn id_of(line: &[u8]) -> Option<RecordId> {
    const KEY: &[u8] = b"\"id\":\"";
    let head = line.get(..HEAD.min(line.len()))?;
    let (_, rest) = line.split_at_checked(head.windows(KEY.len()).position(|part| part == KEY)? + KEY.len())?;
    let id = rest.split(|byte| *byte == b'"').next()?;
    std::str::from_utf8(id).ok()?.parse().ok()
}

/// The first line, where it has an end; of one that is too long, its beginning.
fn first_line(reader: &mut dyn Read) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::with_capacity(MAX_LINE);
    let mut piece = [0; 512];
    while line.len() < MAX_LINE {
        let read = reader.read(&mut piece)?;
        let piece = piece.get(..read).unwrap_or_default();
        if let Some(feed) = piece.iter().position(|byte| *byte == b'\n') {
            line.extend_from_slice(piece.get(..feed).unwrap_or_default());
            return Ok(Some(line));
        }
        if read == 0 {
            return Ok(None);
        }
        line.extend_from_slice(piece);
    }
    line.truncate(MAX_LINE);
    Ok(Some(line))
}

pub(super) fn mark(line: &[u8], archive: Option<String>) -> Mark {
    match Head::read(line) {
        Some((head, id)) => Mark { first: id.to_string(), began: head.ts().to_owned(), archive },
        None => Mark { first: digest(line), began: String::new(), archive },
    }
}
