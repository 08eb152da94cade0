//! Following the log: from a position through the archives, packed ones too, into the file that grows. Never waits.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::cursor::{Mark, Position};
use super::lost::{Lost, REMOVED};
use super::readers::{Reader, Readers};
use super::settings::From;
use super::source::{HEAD, Source, id_of, mark};
use crate::audit::RecordId;
use crate::audit::archive::{Archive, Archived};
use crate::audit::error::AuditError;
use crate::audit::file::{Identity, identity_of};
use crate::audit::format::json::MAX_LINE;
use crate::audit::read::micros;
use crate::time::Wall;

/// What is read at once.
const PIECE: usize = 1 << 17;

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
    /// The record that ends there.
    last: Option<RecordId>,
    buffer: Vec<u8>,
    /// What of the buffer was given.
    given: usize,
    /// The rest of a line that is too long is being passed over.
    skipped: u64,
    /// What is missing before the next line.
    lost: VecDeque<Lost>,
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
            last: None,
            buffer: Vec::new(),
            given: 0,
            skipped: 0,
            lost: VecDeque::new(),
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
        follower.enter_at(source, 0)?;
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

    /// Goes on at another position. What lies between there and the file that is still there is [`Next::Lost`]. Where the
    /// file was cut short meanwhile and written on, as by a power cut, goes on behind what is surely the same.
    ///
    /// # Errors
    /// The log cannot be read.
    pub(super) fn seek(&mut self, to: &Position) -> Result<(), AuditError> {
        let here = self.source.take_if(|source| !source.mark.first.is_empty() && source.mark.first == to.file.first);
        self.leave();
        let fail = |error: io::Error| AuditError::reading(&self.path, &error);
        // A file that is open is gone on with, removed or not.
        let here = match here {
            Some(mut source) => {
                source.rewind().map_err(fail)?;
                Some(source)
            }
            None => self.find(&to.file)?,
        };
        self.reader.leaves();
        let Some(mut source) = here else {
            let (next, passed) = self.first_after(&to.file)?;
            self.lost.push_back(Lost::uncounted(&to.file, to.offset, "the file is not there any more"));
            self.lost.extend(passed);
            if let Some(next) = next {
                self.enter(next, None);
            }
            self.position = Some(to.clone());
            return Ok(());
        };
        let mut to = to.clone();
        let before = source.skip_to(to.offset).map_err(fail)?;
        if before.is_none_or(|line| to.last.is_some() && to.last != id_of(&line)) {
            let from = self.surely_delivered(&source, &to);
            tracing::warn!(
                sink = self.reader.name(),
                file = to.file.archive,
                cursor = to.offset,
                from,
                "the log was cut short before this sink's cursor, as by a power cut: what was written since is delivered from there on, some of it perhaps again"
            );
            source.rewind().map_err(fail)?;
            let before = source.skip_to(from).map_err(fail)?;
            to = Position { offset: from, last: before.as_deref().and_then(id_of), ..to };
        }
        self.enter(source, to.last);
        self.position = Some(to);
        Ok(())
    }

    /// Up to where a file that was cut short before `to` is as it was.
    fn surely_delivered(&self, source: &Source, to: &Position) -> u64 {
        match self.readers.start() {
            // What the node found when it started; nobody had written since the cut.
            Some((identity, length))
                if self.position.is_none() && identity == source.identity && length < to.offset =>
            {
                length
            }
            _ => 0,
        }
    }

    fn begin(&mut self, from: From) -> Result<(), AuditError> {
        if from == From::Oldest {
            let current = self.open_current()?;
            let oldest = self.archive.list()?.into_iter().next();
            let source = match oldest {
                Some(oldest) => self.open_archive(&oldest)?,
                None => current,
            };
            return self.enter_at(source, 0);
        }
        let current = self.open_current()?;
        let Some((identity, length)) = self.readers.start() else { return self.enter_at(current, 0) };
        if current.as_ref().is_some_and(|source| source.identity == identity) {
            return self.enter_at(current, length);
        }
        // It was archived before this thread came to look.
        for archived in self.archive.list()? {
            if let Some(source) = self.open_archive(&archived)?.filter(|source| source.identity == identity) {
                return self.enter_at(Some(source), length);
            }
        }
        self.enter_at(current, 0)
    }

    /// What comes next. Of an error the next call tries again.
    ///
    /// # Errors
    /// The log cannot be read.
    pub(super) fn next(&mut self) -> Result<Next<'_>, AuditError> {
        loop {
            if let Some(lost) = self.lost.pop_front() {
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
        let long = size > MAX_LINE as u64;
        let line = self.buffer.get(range.clone()).filter(|_| !long).unwrap_or_default();
        let before = std::mem::replace(&mut self.last, id_of(line));
        self.start = Some(Position { file: Arc::clone(&source.mark), offset: end - size, last: before });
        self.position = Some(Position { file: Arc::clone(&source.mark), offset: end, last: self.last });
        if long { Some(Err(size)) } else { Some(Ok(range)) }
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
            self.enter_at(source, 0)?;
            return Ok(if opened { AtEnd::Again } else { AtEnd::Wait });
        };
        if !source.packed {
            if source.was_cut().map_err(|error| AuditError::reading(&self.path, &error))? {
                let why = "another program cut the file short";
                self.lost.extend(self.position.as_ref().map(|at| Lost::uncounted(&at.file, at.offset, why)));
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
        let torn = self.skipped + (self.buffer.len() - self.given) as u64;
        let mark = Arc::clone(&source.mark);
        let identity = source.identity;
        let (Some(next), passed) = self.following(&mark, identity)? else { return Ok(AtEnd::Wait) };
        self.lost.extend(passed);
        self.enter(next, None);
        Ok(if torn > 0 { AtEnd::Torn(torn) } else { AtEnd::Again })
    }

    /// Lets go of a file that was removed, so that its room is free; what of it is not read yet, and what was passed. One that
    /// was packed instead is gone on with.
    ///
    /// # Errors
    /// The log cannot be read.
    pub(super) fn let_go(&mut self) -> Result<Vec<Lost>, AuditError> {
        let fail = |path: &Path, error: &io::Error| AuditError::reading(path, error);
        let Some(source) = &mut self.source else { return Ok(Vec::new()) };
        let removed = source.file.metadata().map_err(|error| fail(&self.path, &error))?.nlink() == 0;
        if !removed || !(source.packed || self.readers.left(source.identity)) {
            return Ok(Vec::new());
        }
        let mark = Arc::clone(&source.mark);
        let at = self.position.as_ref().filter(|position| position.file.first == mark.first);
        let (read, last) = at.map_or((0, None), |position| (position.offset, position.last));
        // Found before anything is let go of: where that fails it is tried again from here.
        if let Some(mut packed) = self.find(&mark)? {
            packed.skip_to(read).map_err(|error| fail(&self.path, &error))?;
            self.enter(packed, last);
            return Ok(Vec::new());
        }
        let (next, passed) = self.first_after(&mark)?;
        let Some(source) = &mut self.source else { return Ok(Vec::new()) };
        let rest = self.buffer.get(self.given..).unwrap_or_default().chain(&mut source.reader);
        let counted = Lost::counted(mark.archive.clone(), REMOVED, rest);
        let mut lost = vec![counted.unwrap_or_else(|_| Lost::uncounted(&mark, read, REMOVED))];
        lost.extend(passed);
        self.leave();
        if let Some(next) = next {
            self.position = Some(Position { file: Arc::clone(&next.mark), offset: 0, last: None });
            self.enter(next, None);
        } else {
            self.position = None;
        }
        Ok(lost)
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
        self.last = None;
    }

    /// Goes on in a file that was just opened, at `offset` of it.
    fn enter_at(&mut self, source: Option<Source>, offset: u64) -> Result<(), AuditError> {
        let Some(mut source) = source else { return Ok(()) };
        let before = source.skip_to(offset).map_err(|error| AuditError::reading(&self.path, &error))?;
        self.enter(source, before.as_deref().and_then(id_of));
        Ok(())
    }

    /// Goes on in a file where it was skipped to, behind this record.
    fn enter(&mut self, source: Source, last: Option<RecordId>) {
        self.leave();
        let archived = source.mark.archive.as_deref().and_then(|name| self.archive.named(name));
        self.reader.reads(source.identity, archived);
        self.source = Some(source);
        self.last = last;
    }

    /// The file that was begun after this one, and what was passed.
    fn following(&self, mark: &Mark, identity: Identity) -> Result<(Option<Source>, Vec<Lost>), AuditError> {
        // Opened before the archives are listed: what became one in between is found among them.
        let current = self.open_current()?;
        let archives = self.archive.list()?;
        let own = self.own(mark).or_else(|| self.reader.archive()).or_else(|| {
            let is = |archived: &&Archived| {
                identity_of(&self.archive.path(&archived.name)).is_ok_and(|there| there == identity)
            };
            archives.iter().find(is).cloned()
        });
        let Some(own) = own else { return self.first_after(mark) };
        // By name: times are those of a clock that may be set back.
        let next = match archives.iter().find(|archived| **archived > own) {
            Some(next) => self.open_archive(next)?,
            None => current,
        };
        Ok((next, Vec::new()))
    }

    /// The first file that was begun after one that is not there. Whether an archive that cannot be read was, nobody knows:
    /// it is passed, and lost unless it is surely older.
    fn first_after(&self, mark: &Mark) -> Result<(Option<Source>, Vec<Lost>), AuditError> {
        let current = self.open_current()?;
        let (own, began) = (self.own(mark), micros(&mark.began).map(Wall));
        let mut passed = Vec::new();
        for archived in self.archive.list()? {
            match self.open_archive(&archived) {
                Ok(Some(source)) if source.mark.began > mark.began => return Ok((Some(source), passed)),
                Ok(_) => {}
                Err(error) => {
                    let by_name = own.as_ref().is_some_and(|own| archived <= *own);
                    if !by_name && !began.is_some_and(|began| archived.closed_before(began)) {
                        passed.push(Lost::of_file(archived.closed_as(), &format!("it cannot be read: {error}")));
                    }
                }
            }
        }
        Ok((current, passed))
    }

    /// What a file is in the archive, where that is known.
    fn own(&self, mark: &Mark) -> Option<Archived> {
        mark.archive.as_deref().and_then(|name| self.archive.named(name))
    }

    /// The file with this first line. Of archives that cannot be read only the one of its name is waited for.
    fn find(&self, mark: &Mark) -> Result<Option<Source>, AuditError> {
        let is = |source: &Source| source.mark.first == mark.first;
        if let Some(source) = self.open_current()?.filter(is) {
            return Ok(Some(source));
        }
        let mut archives = self.archive.list()?;
        let own = self.own(mark);
        // Where it was last, else the newest first.
        archives.reverse();
        archives.sort_by_key(|archived| own.as_ref() != Some(archived));
        for archived in archives {
            match self.open_archive(&archived) {
                Ok(source) => {
                    if let Some(source) = source.filter(is) {
                        return Ok(Some(source));
                    }
                }
                Err(error) if own.as_ref() == Some(&archived) => return Err(error),
                Err(_) => {}
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
