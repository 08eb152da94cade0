//! `[[sink]]` of the configuration: what every sink has; its kind reads the rest.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::filter::{Detail, Filter};
use super::redact::Redaction;
use super::{KINDS, Plan};
use crate::audit::format::{FORMATS, Format};
use crate::document::{Found, Mistake, Table};

/// Each has a thread, and reads the log on its own.
const MOST: usize = 16;

/// Where a sink that has no cursor begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum From {
    /// With the first record of the node's start.
    Now,
    /// With the oldest archive.
    Oldest,
}

/// One `[[sink]]`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Unique; its cursor's name, its thread's, a metric label.
    pub name: String,
    /// Its word in `kind`.
    pub kind: &'static str,
    pub(super) format: &'static Format,
    pub(super) from: From,
    pub(super) filter: Filter,
    pub(super) detail: Detail,
    pub(super) client: Redaction,
    /// The most records that are delivered at once.
    pub(super) batch: usize,
    /// The most octets of them, where it is more than one.
    pub(super) batch_size: usize,
    /// How long a record may wait for others.
    pub(super) linger: Duration,
    pub(super) plan: Arc<dyn Plan>,
}

/// What a kind reads its keys from.
pub(super) struct Keys<'a> {
    pub(super) table: &'a Table,
    /// Where relative paths begin.
    pub(super) base: &'a Path,
    /// The log's own file.
    pub(super) log: &'a Path,
}

impl Keys<'_> {
    /// A path; relative ones begin at the directory of the configuration file.
    pub(super) fn path(&self, key: &'static str) -> Option<Found<PathBuf>> {
        let Found { value, span } = self.table.string(key)?;
        if value.is_empty() || value.ends_with('/') {
            let fact = format!("`{key}` is not the path of a file");
            self.table.document().note(&span, fact, format!("write {key} = \"…\", a file"));
            return None;
        }
        Some(Found { value: self.base.join(value), span })
    }
}

impl Settings {
    /// Reads the files that it names.
    ///
    /// # Errors
    /// One of them is of no use.
    pub fn check(&self) -> Result<(), Mistake> {
        if let Redaction::Hmac(Some(key)) = &self.client {
            key.secret()?;
        }
        self.plan.check()
    }

    /// Reads every `[[sink]]` of the root table; mistakes are noted in its document. Relative paths begin at `base`; `log` is
    /// the current file of the log.
    #[must_use]
    pub fn read_all(root: &Table, base: &Path, log: &Path) -> Vec<Self> {
        let mut all: Vec<Self> = Vec::new();
        for table in root.tables("sink") {
            let (document, span, whole) = (table.document().clone(), table.span_of("name"), table.span().clone());
            let Some(settings) = Self::read(table, base, log) else { continue };
            if all.iter().any(|known| known.name == settings.name) {
                let fact = format!("a second sink is named \"{}\"", settings.name);
                document.note(&span, fact, "give it another name: its cursor is kept under it");
            }
            if all.len() == MOST {
                document.note(&whole, format!("more than {MOST} sinks"), "let a collector pass records on instead");
            }
            all.push(settings);
        }
        all
    }

    /// Reads one `[[sink]]`.
    fn read(table: Table, base: &Path, log: &Path) -> Option<Self> {
        let document = table.document().clone();
        let name = table.required_string("name");
        if let Some(name) = name.as_ref().filter(|name| !is_name(&name.value)) {
            let remedy = "write 1 to 32 of a-z, 0-9, - and _, e.g. \"siem\": its cursor's file is called so";
            document.note(&name.span, format!("`name` cannot be \"{}\"", name.value), remedy);
        }
        let kind = table.required_string("kind").and_then(|word| {
            let kind = KINDS.iter().find(|kind| kind.name == word.value);
            if kind.is_none() {
                let words: Vec<_> = KINDS.iter().map(|kind| format!("\"{}\"", kind.name)).collect();
                let fact = format!("`kind` cannot be \"{}\"", word.value);
                document.note(&word.span, fact, format!("write one of {}", words.join(", ")));
            }
            kind
        });
        let format = read_format(&table, kind.map_or("json", |kind| kind.format));
        let from = match table.string("from") {
            Some(word) if word.value == "oldest" => From::Oldest,
            Some(word) if word.value != "now" => {
                let fact = format!("`from` cannot be \"{}\"", word.value);
                document.note(&word.span, fact, "write \"now\" or \"oldest\" (every archive that is still there)");
                From::Now
            }
            _ => From::Now,
        };
        let (filter, detail) = (Filter::read(&table), Detail::read(&table));
        let client = Redaction::read(&table, base);
        let batch = table.integer("batch", 1..=100_000).and_then(|batch| usize::try_from(batch).ok()).unwrap_or(1000);
        let batch_size = table.size("batch_size").unwrap_or(1 << 20);
        if !(1024..=64 << 20).contains(&batch_size) {
            let fact = "`batch_size` is out of range";
            document.note(&table.span_of("batch_size"), fact, "write a size from \"1KiB\" to \"64MiB\"");
        }
        let linger = table.duration("linger", Duration::ZERO..=Duration::from_secs(60));
        let plan: Option<Arc<dyn Plan>> = kind.zip(format).and_then(|(kind, format)| {
            if let Err(remedy) = (kind.carries)(format) {
                let fact = format!("a sink of kind \"{}\" cannot carry the format \"{}\"", kind.name, format.name);
                document.note(&table.span_of("format"), fact, remedy);
            }
            (kind.read)(&Keys { table: &table, base, log })
        });
        let own = plan.as_ref().filter(|_| !table.has("format")).and_then(|plan| plan.format());
        let format = own.map_or(format, |own| FORMATS.iter().find(|format| format.name == own));
        table.finish(&[]);
        Some(Self {
            name: name?.value,
            kind: kind?.name,
            format: format?,
            from,
            filter,
            detail,
            client,
            batch,
            batch_size: usize::try_from(batch_size).unwrap_or(1 << 20),
            linger: linger.unwrap_or(Duration::from_secs(1)),
            plan: plan?,
        })
    }
}

fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
    (1..=32).contains(&name.len()) && name.bytes().all(plain)
}

fn read_format(table: &Table, default: &str) -> Option<&'static Format> {
    let named = |word: &str| FORMATS.iter().find(|format| format.name == word);
    let Some(word) = table.string("format") else { return named(default) };
    let format = named(&word.value);
    if format.is_none() {
        let words: Vec<_> = FORMATS.iter().map(|format| format!("\"{}\"", format.name)).collect();
        let fact = format!("`format` cannot be \"{}\"", word.value);
        table.document().note(&word.span, fact, format!("write one of {}", words.join(", ")));
    }
    format
}
