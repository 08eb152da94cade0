//! The journal: why each element is open, on disk, written before the firewall is told.
//!
//! After a restart the kernel says what is open and the journal says why; what has no reason that the present
//! policy upholds is closed. `STATE/journal` is text, a line per opening or closing (see `text`), begun by the machine's
//! boot id: a reboot empties the kernel's sets, so a journal of another boot is void. For the same reason nothing is
//! synced to the disk but revocations. When it has grown to twice what the last rewriting left, it is rewritten from the
//! ledger beside the old one, slot by slot, while both are appended to.

mod text;

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use self::text::{Contexts, Reader};
use crate::grant::Ledger;
use crate::net::Element;
use crate::policy::Basis;
use crate::time::{Tick, machine_start};

/// The journal of one state directory, open for appending.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    boot: String,
    file: File,
    /// Those that the lines to come may refer to, in either file.
    contexts: Contexts,
    /// How many elements the file's lines name, and how many of them the last rewriting left.
    named: usize,
    rewritten: usize,
    buffer: Vec<u8>,
    /// The last write may have left half a line.
    torn: bool,
    rewriting: Option<Rewriting>,
}

/// The next journal.
#[derive(Debug)]
struct Rewriting {
    path: PathBuf,
    file: File,
    buffer: Vec<u8>,
    /// How many elements were written from the ledger, and how many the old one named when this one was begun.
    live: usize,
    before: usize,
}

/// Never rewritten below this many named elements.
const COMPACT_FROM: usize = 10_000;

/// What is written at once while it is rewritten.
const PIECE: usize = 1 << 16;

impl Journal {
    /// Reads the journal of `state` for this boot of the machine into an empty ledger and opens it for appending. Lines
    /// that cannot be read (torn by a crash) give no reasons.
    pub(super) fn open(state: &Path, ledger: &mut Ledger) -> io::Result<Self> {
        Self::of_boot(state.join("journal"), &machine_start(), ledger)
    }

    fn of_boot(path: PathBuf, boot: &str, ledger: &mut Ledger) -> io::Result<Self> {
        read(&path, boot, ledger)?;
        let file = create(&path)?;
        Ok(Self {
            path,
            boot: boot.to_owned(),
            file,
            contexts: Contexts::default(),
            named: 0,
            rewritten: 0,
            buffer: Vec::new(),
            torn: true,
            rewriting: None,
        })
    }

    /// Adds an opening to the buffer: the reason `basis`, told until `told_until`, for elements with their ends.
    pub(super) fn opened(
        &mut self,
        basis: &Basis,
        told_until: Tick,
        elements: impl ExactSizeIterator<Item = (Element, Tick)>,
    ) {
        self.named += elements.len();
        end_torn(&mut self.torn, &mut self.buffer);
        let number = self.contexts.number(basis, |number, context| text::define(&mut self.buffer, number, context));
        text::opened(&mut self.buffer, number, basis, told_until, elements);
    }

    /// Adds a closing to the buffer.
    pub(super) fn closed<'a>(&mut self, elements: impl Iterator<Item = &'a Element>) {
        let mut elements = elements.peekable();
        if elements.peek().is_some() {
            end_torn(&mut self.torn, &mut self.buffer);
            self.named += text::closed(&mut self.buffer, elements);
        }
    }

    /// Hands the buffer to the kernel.
    pub(super) fn write(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let written = self.file.write_all(&self.buffer);
        if written.is_err() {
            self.torn = true;
            // A definition may be among what is lost.
            self.contexts = Contexts::default();
        } else if let Some(rewriting) = &mut self.rewriting {
            rewriting.buffer.extend_from_slice(&self.buffer);
        }
        self.buffer.clear();
        written
    }

    /// The file, to be synced to the disk elsewhere: that may take long.
    pub(super) fn file(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Whether it has grown to twice what the last rewriting left, and is not being rewritten.
    pub(super) fn is_large(&self) -> bool {
        self.rewriting.is_none() && self.named >= COMPACT_FROM.max(2 * self.rewritten)
    }

    /// Writes a new journal of what is live beside the old one and puts it in its place.
    pub(super) fn rewrite(&mut self, ledger: &Ledger) -> io::Result<()> {
        self.begin_rewriting()?;
        self.rewrite_slots(ledger, 0..ledger.slots())?;
        self.finish_rewriting()
    }

    /// Begins a new journal; [`Journal::rewrite_slots`] has to be given every slot before it is finished.
    pub(super) fn begin_rewriting(&mut self) -> io::Result<()> {
        let path = self.path.with_extension("new");
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // Where it fails it is tried again when the journal has doubled once more.
        self.rewritten = self.named;
        let file = create(&path)?;
        let mut buffer = Vec::with_capacity(2 * PIECE);
        text::begin(&mut buffer, &self.boot);
        // Those that the old one defines are not in the new one.
        self.contexts = Contexts::default();
        self.rewriting = Some(Rewriting { path, file, buffer, live: 0, before: self.named });
        Ok(())
    }

    /// Writes what is live in some slots to the new journal. Where that fails it is given up.
    pub(super) fn rewrite_slots(&mut self, ledger: &Ledger, slots: Range<usize>) -> io::Result<()> {
        let Some(mut rewriting) = self.rewriting.take() else { return Ok(()) };
        for held in ledger.held(slots) {
            for reason in held.reasons() {
                let Self { contexts, buffer, torn, .. } = self;
                let number = contexts.number(&reason.basis, |number, context| {
                    // The lines to come go to both.
                    end_torn(torn, buffer);
                    text::define(buffer, number, context);
                    text::define(&mut rewriting.buffer, number, context);
                });
                let element = std::iter::once((*held.element, reason.open_until));
                text::opened(&mut rewriting.buffer, number, &reason.basis, reason.told_until, element);
                rewriting.live += 1;
            }
            if rewriting.buffer.len() >= PIECE {
                rewriting.flush()?;
            }
        }
        self.rewriting = Some(rewriting);
        Ok(())
    }

    /// Puts the new journal in the old one's place. Where that fails it is given up.
    pub(super) fn finish_rewriting(&mut self) -> io::Result<()> {
        let written = self.write();
        let Some(mut rewriting) = self.rewriting.take() else { return written };
        written?;
        rewriting.flush()?;
        std::fs::rename(&rewriting.path, &self.path)?;
        let Rewriting { file, live, before, .. } = rewriting;
        (self.file, self.torn) = (file, false);
        (self.named, self.rewritten) = (live + self.named - before, live);
        Ok(())
    }
}

impl Rewriting {
    fn flush(&mut self) -> io::Result<()> {
        let written = self.file.write_all(&self.buffer);
        self.buffer.clear();
        written
    }
}

/// Half a line before it would take the next one along.
fn end_torn(torn: &mut bool, buffer: &mut Vec<u8>) {
    if std::mem::take(torn) {
        buffer.push(b'\n');
    }
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

fn read(path: &Path, boot: &str, ledger: &mut Ledger) -> io::Result<()> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut file = BufReader::with_capacity(PIECE, file);
    let mut reader = Reader::new(boot);
    let mut line = Vec::new();
    while file.read_until(b'\n', &mut line)? > 0 {
        reader.read(line.strip_suffix(b"\n").unwrap_or(&line), ledger);
        line.clear();
    }
    Ok(())
}

#[cfg(test)]
mod tests;
