//! Following the log: from a position through the archives, packed ones too, into the file that grows. Never waits.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::cursor::{Mark, Position};
use super::lost::Lost;
use super::readers::{Reader, Readers};
use super::settings::From;
use crate::audit::archive::{Archive, Archived};
use crate::audit::decode::{decoded, is_packed};
use crate::audit::error::AuditError;
use crate::audit::file::{Identity, identity_of};
use crate::audit::format::json::MAX_LINE;
use crate::audit::read::Head;
use crate::audit::seal::digest;
use crate::time::Wall;

/// What is read at once.
const PIECE: usize = 1 << 17;

/// What of a file's beginning is compared to notice that it was cut and grew again.
const HEAD: usize = 64;

/// What comes next in the log.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next<'a> {
    /// A whole line, without its line feed.
    Line(&'a [u8]),
    /// This many bytes that are no line: longer than any, or without an end where nothing can follow.
    Damaged(u64),
    /// Between the line before and the next one records are missing.
    Lost(Lost),
    /// Nothing yet.
    End,
}

/// Reads one log.
pub(super) struct Follower {
    path: PathBuf,
    archive: Archive,
    readers: Readers,
    reader: Arc<Reader>,
    source: Option<Source>,
    /// Where the line that was given last began, and where it ended.
    start: Option<Position>,
    position: Option<Position>,
    buffer: Vec<u8>,
    /// What of the buffer was given.
    given: usize,
    /// The rest of a line that is too long is being passed over.
    skipped: u64,
    lost: Option<Lost>,
}

/// A file that is open.
struct Source {
    file: File,
    reader: Box<dyn Read>,
    identity: Identity,
    packed: bool,
    mark: Arc<Mark>,
    head: Vec<u8>,
    /// How much of it, unpacked, was read into the buffer.
    read: u64,
    /// It was read to its end after every shard had left it.
    left: bool,
}

impl Follower {
    /// Follows the log whose current file is at `path`, for the sink of this name; begins where it stopped, or where `from` says.
    ///
    /// # Errors
    /// The log cannot be read.
    pub(super) fn open(
        path: &Path,
        (readers, name): (&Readers, &str),
        last: Option<&Position>,
        from: From,
    ) -> Result<Self, AuditError> {
        let mut follower = Self::idle(path, (readers, name))?;
        match last {
            Some(last) => follower.seek(last)?,
            None => follower.begin(from)?,
        }
        Ok(follower)
    }

    fn idle(path: &Path, (readers, name): (&Readers, &str)) -> Result<Self, AuditError> {
        Ok(Self {
            path: path.to_path_buf(),
            archive: Archive::beside(path)?,
            reader: readers.join(name),
            readers: readers.clone(),
            source: None,
            start: None,
            position: None,
            buffer: Vec::new(),
            given: 0,
            skipped: 0,
            lost: None,
        })
    }

    /// Follows the log whose current file is at `path`, from the first file on that was not closed before `time`.
    ///
    /// # Errors
    /// The log cannot be read.
    pub(super) fn since(path: &Path, (readers, name): (&Readers, &str), time: Wall) -> Result<Self, AuditError> {
        let mut follower = Self::idle(path, (readers, name))?;
        let archives = follower.archive.list()?;
        let source = match archives.iter().find(|archived| !archived.closed_before(time)) {
            Some(archived) => follower.open_archive(archived)?,
            None => follower.open_current()?,
        };
        follower.enter(source, 0)?;
        Ok(follower)
    }

    /// Where the line that was given last begins; `None` where none was.
    pub(super) const fn start(&self) -> Option<&Position> {
        self.start.as_ref()
    }

    /// Behind the line that was given last; `None` before the first line of the first file.
    pub(super) const fn position(&self) -> Option<&Position> {
        self.position.as_ref()
    }

    /// Goes on at another position. What lies between there and the file that is still there is [`Next::Lost`].
    ///
    /// # Errors
    /// The log cannot be read.
    pub(super) fn seek(&mut self, to: &Position) -> Result<(), AuditError> {
        let here = self.source.take_if(|source| !source.mark.first.is_empty() && source.mark.first == to.file.first);
        self.leave();
        // A file that is open is gone on with, removed or not.
        let here = match here {
            Some(mut source) => {
                source.rewind().map_err(|error| AuditError::reading(&self.path, &error))?;
                Some(source)
            }
            None => self.find(&to.file)?,
        };
        self.reader.leaves();
        let source = match here {
            Some(source) => Some(source),
            None => {
                self.lost = Some(Lost::uncounted(&to.file, to.offset, "the file is not there any more"));
                self.first_after(&to.file)?
            }
        };
        let found = source.as_ref().is_some_and(|source| source.mark.first == to.file.first);
        self.enter(source, if found { to.offset } else { 0 })?;
        self.position = Some(to.clone());
        Ok(())
    }

    fn begin(&mut self, from: From) -> Result<(), AuditError> {
        if from == From::Oldest {
            let current = self.open_current()?;
            let oldest = self.archive.list()?.into_iter().next();
            let source = match oldest {
                Some(oldest) => self.open_archive(&oldest)?,
                None => current,
            };
            return self.enter(source, 0);
        }
        let current = self.open_current()?;
        let Some((identity, length)) = self.readers.start() else { return self.enter(current, 0) };
        if current.as_ref().is_some_and(|source| source.identity == identity) {
            return self.enter(current, length);
        }
        // It was archived before this thread came to look.
        for archived in self.archive.list()? {
            if let Some(source) = self.open_archive(&archived)?.filter(|source| source.identity == identity) {
                return self.enter(Some(source), length);
            }
        }
        self.enter(current, 0)
    }

    /// What comes next. Of an error the next call tries again.
    ///
    /// # Errors
    /// The log cannot be read.
    pub(super) fn next(&mut self) -> Result<Next<'_>, AuditError> {
        loop {
            if let Some(lost) = self.lost.take() {
                return Ok(Next::Lost(lost));
            }
            if let Some(line) = self.line() {
                return Ok(match line {
                    Ok(range) => Next::Line(self.buffer.get(range).unwrap_or_default()),
                    Err(damaged) => Next::Damaged(damaged),
                });
            }
            if self.fill()? > 0 {
                continue;
            }
            match self.at_end()? {
                AtEnd::Wait => return Ok(Next::End),
                AtEnd::Again => {}
                AtEnd::Torn(bytes) => return Ok(Next::Damaged(bytes)),
            }
        }
    }

    /// The next whole line in the buffer, or what is no line.
    fn line(&mut self) -> Option<Result<Range<usize>, u64>> {
        let rest = self.buffer.get(self.given..)?;
        let feed = rest.iter().position(|byte| *byte == b'\n');
        let source = self.source.as_mut()?;
        let Some(length) = feed else {
            if rest.len() >= MAX_LINE {
                self.skipped += rest.len() as u64;
                self.buffer.clear();
                self.given = 0;
            }
            return None;
        };
        let range = self.given..self.given + length;
        self.given += length + 1;
        let unread = (self.buffer.len() - self.given) as u64;
        let end = source.read - unread;
        let size = std::mem::take(&mut self.skipped) + length as u64 + 1;
        if source.head.is_empty() && end == size {
            // The first line of a file that was empty when it was opened.
            let line = self.buffer.get(range.clone()).unwrap_or_default();
            source.head = line.get(..HEAD.min(line.len())).unwrap_or_default().to_vec();
            source.mark = Arc::new(mark(line, source.mark.archive.clone()));
            self.reader.reads(source.identity, self.reader.archive());
        }
        self.start = Some(Position { file: Arc::clone(&source.mark), offset: end - size });
        self.position = Some(Position { file: Arc::clone(&source.mark), offset: end });
        if size > MAX_LINE as u64 { Some(Err(size)) } else { Some(Ok(range)) }
    }

    /// Reads more into the buffer; how much.
    fn fill(&mut self) -> Result<usize, AuditError> {
        let Some(source) = &mut self.source else { return Ok(0) };
        self.buffer.drain(..self.given);
        self.given = 0;
        let before = self.buffer.len();
        self.buffer.resize(before + PIECE, 0);
        let read = loop {
            match source.reader.read(self.buffer.get_mut(before..).unwrap_or_default()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        self.buffer.truncate(before + read.as_ref().copied().unwrap_or(0));
        let read = read.map_err(|error| AuditError::reading(&self.path, &error))?;
        source.read += read as u64;
        Ok(read)
    }

    /// At the end of a file: goes on with the next one where nothing can follow here.
    fn at_end(&mut self) -> Result<AtEnd, AuditError> {
        let Some(source) = &mut self.source else {
            let source = self.open_current()?;
            let opened = source.is_some();
            self.enter(source, 0)?;
            return Ok(if opened { AtEnd::Again } else { AtEnd::Wait });
        };
        if !source.packed {
            if source.was_cut().map_err(|error| AuditError::reading(&self.path, &error))? {
                let why = "another program cut the file short";
                self.lost = self.position.as_ref().map(|at| Lost::uncounted(&at.file, at.offset, why));
                self.leave();
                return Ok(AtEnd::Again);
            }
            let here = identity_of(&self.path);
            let moved = source.packed || here.is_ok_and(|here| here != source.identity);
            if !moved || !self.readers.left(source.identity) {
                return Ok(AtEnd::Wait);
            }
            if !std::mem::replace(&mut source.left, true) {
                // What was written before the last shard left it.
                return Ok(AtEnd::Again);
            }
        }
        let torn = std::mem::take(&mut self.skipped) + (self.buffer.len() - self.given) as u64;
        let mark = Arc::clone(&source.mark);
        let identity = source.identity;
        let next = self.following(&mark, identity)?;
        let Some(next) = next else { return Ok(AtEnd::Wait) };
        self.leave();
        self.enter(Some(next), 0)?;
        Ok(if torn > 0 { AtEnd::Torn(torn) } else { AtEnd::Again })
    }

    /// Lets go of a file that was removed, so that its room is free; what of it is not read yet. One that was packed
    /// instead is gone on with.
    ///
    /// # Errors
    /// The log cannot be read.
    pub(super) fn let_go(&mut self) -> Result<Option<Lost>, AuditError> {
        let fail = |path: &Path, error: &io::Error| AuditError::reading(path, error);
        let Some(source) = &mut self.source else { return Ok(None) };
        let removed = source.file.metadata().map_err(|error| fail(&self.path, &error))?.nlink() == 0;
        if !removed || !(source.packed || self.readers.left(source.identity)) {
            return Ok(None);
        }
        let mark = Arc::clone(&source.mark);
        if self.find(&mark)?.is_some() {
            self.leave();
            if let Some(position) = self.position.clone() {
                self.seek(&position)?;
            }
            return Ok(None);
        }
        // Found before anything is let go of: where that fails it is tried again from here.
        let next = self.first_after(&mark)?;
        let why = "it was removed to make room before this sink had read it";
        let Some(source) = &mut self.source else { return Ok(None) };
        let rest = self.buffer.get(self.given..).unwrap_or_default().chain(&mut source.reader);
        let read = self.position.as_ref().map_or(0, |position| position.offset);
        let lost = Lost::counted(mark.archive.clone(), why, rest).unwrap_or_else(|_| Lost::uncounted(&mark, read, why));
        self.leave();
        self.enter(next, 0)?;
        self.position = self.source.as_ref().map(|source| Position { file: Arc::clone(&source.mark), offset: 0 });
        Ok(Some(lost))
    }

    /// What was removed before it was come to.
    pub(super) fn missed(&self) -> Vec<Lost> {
        self.reader.missed()
    }

    /// How many bytes are left to read, as they lie on the disk.
    pub(super) fn behind(&self) -> u64 {
        let size = |path: &Path| path.metadata().map_or(0, |metadata| metadata.len());
        let Some(source) = &self.source else { return 0 };
        let here = if source.packed { 0 } else { source.file.metadata().map_or(0, |metadata| metadata.len()) };
        let unread = (self.buffer.len() - self.given) as u64;
        let here = here.saturating_sub(source.read) + unread;
        if identity_of(&self.path).is_ok_and(|identity| identity == source.identity) {
            return here;
        }
        let reached = self.reader.archive();
        let later = self.archive.list().unwrap_or_default().into_iter();
        let later = later.filter(|archived| reached.as_ref().is_some_and(|reached| archived > reached));
        let later: u64 = later.map(|archived| size(&self.archive.path(&archived.name))).sum();
        here + later + size(&self.path)
    }

    fn leave(&mut self) {
        self.source = None;
        self.buffer.clear();
        self.given = 0;
        self.skipped = 0;
    }

    /// Goes on in a file that was just opened, at `offset` of it.
    fn enter(&mut self, source: Option<Source>, offset: u64) -> Result<(), AuditError> {
        let Some(mut source) = source else { return Ok(()) };
        source.skip_to(offset).map_err(|error| AuditError::reading(&self.path, &error))?;
        let archived = source.mark.archive.as_deref().and_then(|name| self.archive.named(name));
        self.reader.reads(source.identity, archived);
        self.source = Some(source);
        Ok(())
    }

    /// The file that was begun after this one.
    fn following(&self, mark: &Mark, identity: Identity) -> Result<Option<Source>, AuditError> {
        // Opened before the archives are listed: what became one in between is found among them.
        let current = self.open_current()?;
        let archives = self.archive.list()?;
        let named = mark.archive.as_deref().and_then(|name| self.archive.named(name));
        let own = named.or_else(|| self.reader.archive()).or_else(|| {
            let is = |archived: &&Archived| {
                identity_of(&self.archive.path(&archived.name)).is_ok_and(|there| there == identity)
            };
            archives.iter().find(is).cloned()
        });
        let Some(own) = own else { return self.first_after(mark) };
        // By name: times are those of a clock that may be set back.
        match archives.iter().find(|archived| **archived > own) {
            Some(next) => self.open_archive(next),
            None => Ok(current),
        }
    }

    /// The first file that was begun after one that is not there.
    fn first_after(&self, mark: &Mark) -> Result<Option<Source>, AuditError> {
        let current = self.open_current()?;
        for archived in self.archive.list()? {
            if let Some(source) = self.open_archive(&archived)?
                && source.mark.began > mark.began
            {
                return Ok(Some(source));
            }
        }
        Ok(current)
    }

    /// The file with this first line.
    fn find(&self, mark: &Mark) -> Result<Option<Source>, AuditError> {
        let is = |source: &Source| source.mark.first == mark.first;
        if let Some(source) = self.open_current()?.filter(is) {
            return Ok(Some(source));
        }
        let mut archives = self.archive.list()?;
        // Where it was last, else the newest first.
        archives.reverse();
        archives.sort_by_key(|archived| {
            self.archive.named(mark.archive.as_deref().unwrap_or_default()).as_ref() != Some(archived)
        });
        for archived in archives {
            if let Some(source) = self.open_archive(&archived)?.filter(is) {
                return Ok(Some(source));
            }
        }
        Ok(None)
    }

    /// An archive; `None` where it is gone meanwhile.
    fn open_archive(&self, archived: &Archived) -> Result<Option<Source>, AuditError> {
        Source::open(&self.archive.path(&archived.name), Some(archived.name.clone()))
    }

    fn open_current(&self) -> Result<Option<Source>, AuditError> {
        Source::open(&self.path, None)
    }
}

enum AtEnd {
    Wait,
    Again,
    Torn(u64),
}

impl Source {
    /// Opens a file and reads its first line; `None` where it is not there.
    fn open(path: &Path, archive: Option<String>) -> Result<Option<Self>, AuditError> {
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

    fn rewind(&mut self) -> io::Result<()> {
        let mut file = self.file.try_clone()?;
        file.seek(SeekFrom::Start(0))?;
        self.reader = if self.packed { decoded(file)? } else { Box::new(file) };
        self.read = 0;
        Ok(())
    }

    /// Goes to an offset of what it holds, or to its end.
    fn skip_to(&mut self, offset: u64) -> io::Result<()> {
        if self.packed {
            self.read = io::copy(&mut (&mut self.reader).take(offset), &mut io::sink())?;
        } else {
            self.read = offset.min(self.file.metadata()?.len());
            // The reader's descriptor has the same offset.
            self.file.seek(SeekFrom::Start(self.read))?;
        }
        Ok(())
    }

    /// Whether somebody cut it and, perhaps, others went on writing.
    fn was_cut(&self) -> io::Result<bool> {
        let mut head = [0; HEAD];
        let known = head.get_mut(..self.head.len()).unwrap_or_default();
        let read = self.file.read_at(known, 0)?;
        Ok(known.get(..read) != Some(&self.head) || self.file.metadata()?.len() < self.read)
    }
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

fn mark(line: &[u8], archive: Option<String>) -> Mark {
    match Head::read(line) {
        Some((head, id)) => Mark { first: id.to_string(), began: head.ts().to_owned(), archive },
        None => Mark { first: digest(line), began: String::new(), archive },
    }
}
