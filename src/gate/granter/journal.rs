//! The journal: why each element is open, on disk, written before the firewall is told.
//!
//! After a restart the kernel says what is open and the journal says why; what has no reason that the present
//! policy upholds is closed. JSON Lines in `STATE/journal`: a header with the machine's boot id (a reboot empties
//! the kernel's sets, so a journal of another boot is void), then one line per opening or closing. Not synced to
//! disk, except closings: a reboot voids openings anyway. Rewritten from the ledger when it has grown to twice what
//! the last rewriting left.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::grant::{Ledger, Reason};
use crate::name::Name;
use crate::net::{Element, Prefix};
use crate::policy::Basis;
use crate::record::{AddressTrust, Origin, Question};
use crate::time::Tick;

/// The journal of one state directory, open for appending.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    boot: String,
    file: File,
    /// How many elements the file's lines name, and how many of them the last rewriting left.
    named: usize,
    rewritten: usize,
    buffer: Vec<u8>,
    /// The last write may have left half a line.
    torn: bool,
}

/// The reasons that a journal gives, by element.
pub(super) type Reasons = HashMap<Element, Vec<Reason>>;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Boot { version: u32, id: String },
    Open { basis: Box<BasisLine>, told_until: u64, elements: Vec<(String, u64)> },
    Close { elements: Vec<String> },
}

#[derive(Serialize, Deserialize)]
struct BasisLine {
    client: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    forwarder: Option<String>,
    name: String,
    kind: u16,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    chain: Vec<String>,
    origin: String,
    /// `None`: a local zone; else the upstream's private prefixes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    private: Option<Vec<String>>,
    segment: String,
    rule: String,
}

/// The version of the lines; a journal of another version is void.
const VERSION: u32 = 1;

/// Never rewritten below this many named elements.
const COMPACT_FROM: usize = 10_000;

impl Journal {
    /// Reads the journal of `state` for this boot of the machine and opens it for appending. Lines that cannot be
    /// read (torn by a crash) give no reasons.
    pub(super) fn open(state: &Path) -> io::Result<(Self, Reasons)> {
        let path = state.join("journal");
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
        Self::of_boot(path, boot)
    }

    fn of_boot(path: PathBuf, boot: String) -> io::Result<(Self, Reasons)> {
        let reasons = read(&path, &boot)?;
        let file = create(&path)?;
        Ok((Self { path, boot, file, named: 0, rewritten: 0, buffer: Vec::new(), torn: true }, reasons))
    }

    /// Adds an opening to the buffer: the reason `basis`, told until `told_until`, for elements with their ends.
    pub(super) fn opened(&mut self, basis: &Basis, told_until: Tick, elements: &[(Element, Tick)]) {
        self.named += elements.len();
        self.push(&Line::opened(basis, told_until, elements));
    }

    /// Adds a closing to the buffer.
    pub(super) fn closed<'a>(&mut self, elements: impl Iterator<Item = &'a Element>) {
        let elements: Vec<String> = elements.map(ToString::to_string).collect();
        self.named += elements.len();
        self.push(&Line::Close { elements });
    }

    fn push(&mut self, line: &Line) {
        // Half a line before it would take this one along.
        if std::mem::take(&mut self.torn) {
            self.buffer.push(b'\n');
        }
        line.write(&mut self.buffer);
    }

    /// Hands the buffer to the kernel, and with `sync` to the disk.
    pub(super) fn write(&mut self, sync: bool) -> io::Result<()> {
        let written = self.file.write_all(&self.buffer);
        self.buffer.clear();
        self.torn |= written.is_err();
        written?;
        if sync { self.file.sync_data() } else { Ok(()) }
    }

    /// Rewrites the journal from the ledger, where it has grown to twice what the last rewriting left.
    pub(super) fn compact(&mut self, ledger: &Ledger) -> io::Result<()> {
        if self.named < COMPACT_FROM.max(2 * self.rewritten) { Ok(()) } else { self.rewrite(ledger) }
    }

    /// Writes a new journal of what is live beside the old one and puts it in its place.
    pub(super) fn rewrite(&mut self, ledger: &Ledger) -> io::Result<()> {
        let next = self.path.with_extension("new");
        match std::fs::remove_file(&next) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // Where it fails it is tried again when the journal has doubled once more.
        self.rewritten = self.named;
        let mut file = create(&next)?;
        let (mut text, mut named) = (Vec::new(), 0);
        Line::Boot { version: VERSION, id: self.boot.clone() }.write(&mut text);
        for held in ledger.iter() {
            for reason in held.reasons {
                Line::opened(&reason.basis, reason.told_until, &[(*held.element, reason.open_until)]).write(&mut text);
                named += 1;
            }
            if text.len() > 1 << 20 {
                file.write_all(&text)?;
                text.clear();
            }
        }
        file.write_all(&text)?;
        file.sync_data()?;
        std::fs::rename(&next, &self.path)?;
        (self.file, self.torn) = (file, false);
        (self.named, self.rewritten) = (named, named);
        Ok(())
    }
}

impl Line {
    fn opened(basis: &Basis, told_until: Tick, elements: &[(Element, Tick)]) -> Self {
        let elements = elements.iter().map(|(element, until)| (element.to_string(), until.0)).collect();
        Self::Open { basis: Box::new(basis.into()), told_until: told_until.0, elements }
    }

    fn write(&self, text: &mut Vec<u8>) {
        // Strings and numbers into memory: there is nothing that can fail.
        if serde_json::to_writer(&mut *text, self).is_ok() {
            text.push(b'\n');
        }
    }
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

fn read(path: &Path, boot: &str) -> io::Result<Reasons> {
    let mut reasons = Reasons::new();
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(reasons),
        Err(error) => return Err(error),
    };
    let mut of_this_boot = false;
    for line in BufReader::new(file).split(b'\n') {
        match serde_json::from_slice(&line?) {
            Ok(Line::Boot { version, id }) => of_this_boot = version == VERSION && id == boot,
            Ok(Line::Open { basis, told_until, elements }) if of_this_boot => {
                let Some(basis) = basis.read() else { continue };
                for (element, open_until) in elements {
                    let Ok(element) = element.parse::<Element>() else { continue };
                    let basis = Arc::clone(&basis);
                    let reason = Reason { basis, told_until: Tick(told_until), open_until: Tick(open_until) };
                    let known = reasons.entry(element).or_default();
                    known.retain(|known: &Reason| {
                        known.basis.question.name != reason.basis.question.name || known.basis.rule != reason.basis.rule
                    });
                    known.push(reason);
                }
            }
            Ok(Line::Close { elements }) => {
                for element in elements.iter().filter_map(|element| element.parse().ok()) {
                    reasons.remove(&element);
                }
            }
            Ok(Line::Open { .. }) | Err(_) => {}
        }
    }
    Ok(reasons)
}

impl From<&Basis> for BasisLine {
    fn from(basis: &Basis) -> Self {
        Self {
            client: basis.client.to_string(),
            forwarder: basis.forwarder.as_deref().map(str::to_owned),
            name: basis.question.name.to_string(),
            kind: basis.question.kind.0,
            chain: basis.chain.iter().map(ToString::to_string).collect(),
            origin: basis.origin.name.to_string(),
            private: match &basis.origin.trust {
                AddressTrust::Zone => None,
                AddressTrust::Upstream(private) => Some(private.iter().map(ToString::to_string).collect()),
            },
            segment: basis.segment.to_string(),
            rule: basis.rule.to_string(),
        }
    }
}

impl BasisLine {
    fn read(self) -> Option<Arc<Basis>> {
        let trust = match self.private {
            None => AddressTrust::Zone,
            Some(private) => {
                let private = private.iter().map(|prefix| prefix.parse::<Prefix>()).collect::<Result<Vec<_>, _>>();
                AddressTrust::Upstream(private.ok()?.into())
            }
        };
        Some(Arc::new(Basis {
            client: self.client.parse().ok()?,
            forwarder: self.forwarder.map(Arc::from),
            question: Question { name: Name::parse(&self.name).ok()?, kind: crate::record::RecordType(self.kind) },
            chain: self.chain.iter().map(|name| Name::parse(name)).collect::<Result<Vec<_>, _>>().ok()?.into(),
            origin: Origin { name: Arc::from(self.origin), trust },
            segment: Arc::from(self.segment),
            rule: Arc::from(self.rule),
        }))
    }
}

#[cfg(test)]
mod tests;
