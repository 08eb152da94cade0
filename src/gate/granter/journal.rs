//! The journal: why each element is open, on disk, written before the firewall is told.
//!
//! After a restart the kernel says what is open and the journal says why; what has no reason that the present
//! policy upholds is closed. JSON Lines in `STATE/journal`: a header with the machine's boot id (a reboot empties
//! the kernel's sets, so a journal of another boot is void), then one line per opening or closing. Not synced to
//! disk, except closings: a reboot voids openings anyway. Rewritten from the ledger when it has grown past twice
//! what is live.

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
    lines: usize,
    buffer: Vec<u8>,
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

/// Never rewritten below this many lines.
const COMPACT_FROM: usize = 10_000;

impl Journal {
    /// Reads the journal of `state` for this boot of the machine and opens it for appending. Lines that cannot be
    /// read (torn by a crash) give no reasons.
    pub(super) fn open(state: &Path) -> io::Result<(Self, Reasons)> {
        let path = state.join("journal");
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
        let reasons = read(&path, &boot)?;
        let file = create(&path)?;
        Ok((Self { path, boot, file, lines: 0, buffer: Vec::new() }, reasons))
    }

    /// Adds an opening to the buffer: the reason `basis`, told until `told_until`, for elements with their ends.
    pub(super) fn opened(&mut self, basis: &Basis, told_until: Tick, elements: &[(Element, Tick)]) {
        let elements = elements.iter().map(|(element, until)| (element.to_string(), until.0)).collect();
        self.push(&Line::Open { basis: Box::new(basis.into()), told_until: told_until.0, elements });
    }

    /// Adds a closing to the buffer.
    pub(super) fn closed<'a>(&mut self, elements: impl Iterator<Item = &'a Element>) {
        self.push(&Line::Close { elements: elements.map(ToString::to_string).collect() });
    }

    fn push(&mut self, line: &Line) {
        if serde_json::to_writer(&mut self.buffer, line).is_ok() {
            self.buffer.push(b'\n');
            self.lines += 1;
        }
    }

    /// Hands the buffer to the kernel, and with `sync` to the disk.
    pub(super) fn write(&mut self, sync: bool) -> io::Result<()> {
        let written = self.file.write_all(&self.buffer);
        self.buffer.clear();
        written?;
        if sync { self.file.sync_data() } else { Ok(()) }
    }

    /// Rewrites the journal from the ledger, where it has grown past twice what is live.
    pub(super) fn compact(&mut self, ledger: &Ledger) -> io::Result<()> {
        if self.lines < COMPACT_FROM || self.lines < 2 * ledger.len() { Ok(()) } else { self.rewrite(ledger) }
    }

    /// Writes a new journal of what is live beside the old one and puts it in its place.
    pub(super) fn rewrite(&mut self, ledger: &Ledger) -> io::Result<()> {
        let next = self.path.with_extension("new");
        match std::fs::remove_file(&next) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = create(&next)?;
        self.buffer.clear();
        self.lines = 0;
        self.push(&Line::Boot { version: VERSION, id: self.boot.clone() });
        for held in ledger.iter() {
            for reason in held.reasons {
                self.opened(&reason.basis, reason.told_until, &[(*held.element, reason.open_until)]);
            }
            if self.buffer.len() > 1 << 20 {
                file.write_all(&self.buffer)?;
                self.buffer.clear();
            }
        }
        file.write_all(&self.buffer)?;
        self.buffer.clear();
        file.sync_data()?;
        std::fs::rename(&next, &self.path)?;
        self.file = file;
        Ok(())
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
