//! The watched file of clients: what an orchestrator knows of addresses, and writes anew whenever that changes.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::book::MAX_CLIENTS;
use super::change::{Placed, check_labels};
use crate::document::{Document, Mistake};
use crate::net::canonical;

/// The largest file read.
const LARGEST: u64 = 64 << 20;

/// Which version of the file was read last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    inode: u64,
    length: u64,
    changed: (i64, i64),
}

/// The file, looked at from time to time.
pub(in crate::app) struct Feed {
    path: PathBuf,
    read: Option<Version>,
    /// To be read again though it is the same.
    again: bool,
    /// What is wrong with this version, as it was told.
    told: Option<String>,
}

impl Feed {
    pub(in crate::app) const fn new(path: PathBuf) -> Self {
        Self { path, read: None, again: false, told: None }
    }

    pub(in crate::app) fn path(&self) -> &Path {
        &self.path
    }

    /// What the file says, where it is another one than the last time; `None`: it is the same. A file that is not there
    /// names nobody.
    ///
    /// # Errors
    /// Every mistake; what it said before stands. Where it could not be read it is tried again the next time.
    pub(in crate::app) fn look(&mut self) -> Option<Result<BTreeMap<IpAddr, Placed>, Vec<Mistake>>> {
        let version = match std::fs::metadata(&self.path) {
            Ok(metadata) => Some(Version::of(&metadata)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                self.again = true;
                return Some(Err(vec![self.unreadable(&error)]));
            }
        };
        if version != self.read {
            self.told = None;
        } else if !self.again {
            return None;
        }
        (self.read, self.again) = (version, false);
        if version.is_none() {
            return Some(Ok(BTreeMap::new()));
        }
        let mut text = String::new();
        let read = File::open(&self.path).and_then(|file| file.take(LARGEST).read_to_string(&mut text));
        Some(match read {
            Ok(_) => parse(&self.path.display().to_string(), text),
            Err(error) => {
                self.again = error.kind() != io::ErrorKind::InvalidData;
                Err(vec![self.unreadable(&error)])
            }
        })
    }

    /// What it said could not be put in force: the next look reads it again.
    pub(super) const fn again(&mut self) {
        self.again = true;
    }

    /// Whether that is news of this version; `None`: nothing is wrong.
    pub(super) fn is_news(&mut self, wrong: Option<String>) -> bool {
        let news = wrong.is_none() || self.told != wrong;
        self.told = wrong;
        news
    }

    fn unreadable(&self, error: &io::Error) -> Mistake {
        let fact = format!("{} cannot be read: {error}", self.path.display());
        Mistake::general(fact, "make it readable for this user, and UTF-8")
    }
}

impl Version {
    fn of(metadata: &Metadata) -> Self {
        let changed = (metadata.mtime(), metadata.mtime_nsec());
        Self { inode: metadata.ino(), length: metadata.len(), changed }
    }
}

/// Reads `[[client]]`s.
fn parse(file: &str, text: String) -> Result<BTreeMap<IpAddr, Placed>, Vec<Mistake>> {
    let (document, root) = Document::parse(file, text);
    let mut clients = BTreeMap::new();
    for table in root.tables("client") {
        let address = table.required_string("address");
        let address =
            address.and_then(|_| table.parsed::<IpAddr>("address", "write \"192.0.2.31\" or \"2001:db8::7\""));
        let segment = table.required_string("segment");
        let ends = table.moment("until");
        let mut labels = BTreeMap::new();
        if let Some(of) = table.table("labels") {
            for (key, values) in of.free_strings() {
                match <[_; 1]>::try_from(values) {
                    Ok([value]) => drop(labels.insert(key.value, value.value)),
                    Err(_) => {
                        let fact = format!("the label `{}` has not exactly one value", key.value);
                        document.note(&key.span, fact, format!("write {} = \"…\"", key.value));
                    }
                }
            }
        }
        if let Err(fact) = check_labels(&labels) {
            document.note(&table.span_of("labels"), fact, "leave some out");
        }
        if clients.len() >= MAX_CLIENTS {
            document.note(table.span(), format!("more than {MAX_CLIENTS} clients"), "name their prefixes in a segment");
            break;
        }
        if let (Some(address), Some(segment)) = (address, segment) {
            let placed = Placed { segment: segment.value, ends: ends.map(|ends| ends.0), labels, made: None };
            if clients.insert(canonical(address.value), placed).is_some() {
                document.note(&address.span, format!("{} is there twice", address.value), "remove one");
            }
        }
        table.finish(&[]);
    }
    root.finish(&[]);
    let mistakes = document.take_mistakes();
    if mistakes.is_empty() { Ok(clients) } else { Err(mistakes) }
}
