//! From a directory to zones: which files are read, what they say together, and every mistake with its place.

use std::collections::HashMap;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use super::entry::Fault;
use super::{End, MAX_CHAIN, Source, Zones, master, zone};
use crate::document::{Mistake, Place};
use crate::name::Name;
use crate::record::RecordType;

/// The largest zone file, in octets; guessed: room for a million records.
const MAX_FILE: u64 = 64 << 20;

impl Zones {
    /// Reads every `*.zone` file of a directory, in the order of their names; files whose name begins with a dot are
    /// left alone. A directory that does not exist is no zones where `optional`.
    ///
    /// # Errors
    /// Every mistake of every file.
    pub fn load(directory: &Path, optional: bool) -> Result<Self, Vec<Mistake>> {
        let unreadable = |path: &Path, error: &io::Error| {
            let remedy = match error.kind() {
                io::ErrorKind::NotFound => "create it, or correct [zones] directory",
                _ => "let the user that runs outgate read it",
            };
            Mistake::general(format!("cannot read {}: {}", path.display(), reason(error)), remedy)
        };
        let listed = directory.canonicalize().and_then(|real| Ok((real, directory.read_dir()?)));
        let (real, listing) = match listed {
            Ok(listed) => listed,
            Err(error) if optional && error.kind() == io::ErrorKind::NotFound => return Ok(Self::empty()),
            Err(error) => return Err(vec![unreadable(directory, &error)]),
        };
        let mut mistakes = Vec::new();
        let mut names = Vec::new();
        for entry in listing {
            match entry {
                Ok(entry) => names.push(entry.file_name()),
                Err(error) => mistakes.push(unreadable(directory, &error)),
            }
        }
        names.retain(|name| name.as_encoded_bytes().ends_with(b".zone") && !name.as_encoded_bytes().starts_with(b"."));
        names.sort();
        let mut sources = Vec::new();
        for name in names {
            let path = directory.join(name);
            match read(&path, &real) {
                Ok(source) => sources.push(source),
                Err(mistake) => mistakes.push(mistake),
            }
        }
        match (Self::compile(&sources), mistakes.is_empty()) {
            (Ok(zones), true) => Ok(zones),
            (compiled, _) => {
                mistakes.extend(compiled.err().into_iter().flatten());
                Err(mistakes)
            }
        }
    }

    /// Zones from texts; opens no file.
    ///
    /// # Errors
    /// Every mistake of every text, in file order.
    pub fn compile(files: &[Source]) -> Result<Self, Vec<Mistake>> {
        let mut zones = Self::empty();
        let mut first_file: HashMap<Name, &Arc<str>> = HashMap::new();
        let mut masters = Vec::with_capacity(files.len());
        let mut faults: Vec<Vec<Fault>> = Vec::with_capacity(files.len());
        for source in files {
            let mut found = Vec::new();
            let read =
                origin(&source.file, &mut found).and_then(|origin| master::read(&source.text, origin, &mut found));
            if let Some(read) = &read {
                let built = zone::build(read, &mut found);
                if let Some(other) = first_file.get(&read.apex) {
                    let fact = format!("the zone {} is in {other} already", read.apex);
                    found.push(Fault::new(0, fact, "put all its records into one file"));
                } else {
                    first_file.insert(read.apex.clone(), &source.file);
                    zones.zones.extend(built.map(|built| (read.apex.clone(), Some(built))));
                }
            }
            masters.push(read);
            faults.push(found);
        }
        for (master, found) in masters.iter().zip(&mut faults) {
            if let Some(master) = master {
                zones.check_together(master, found);
            }
        }
        let mistakes: Vec<_> = files.iter().zip(faults).flat_map(|(source, found)| placed(source, found)).collect();
        if mistakes.is_empty() { Ok(zones) } else { Err(mistakes) }
    }

    /// What only all zones together show: records that another zone hides, and CNAMEs that come to no end.
    fn check_together(&self, master: &master::Master, faults: &mut Vec<Fault>) {
        for master::Line { at, record } in &master.lines {
            let Some(zone) = self.zone_of(record.name.as_wire()) else { continue };
            let apex = &zone.negative.name;
            if *apex != master.apex && apex.is_within(&master.apex) {
                let fact = format!("{} is hidden by the zone {apex}", record.name);
                faults.push(Fault::new(*at, fact, format!("move it to the file of {apex}, or remove it")));
            } else if record.kind == RecordType::CNAME {
                self.check_chain(*at, &record.name, faults);
            }
        }
    }

    fn check_chain(&self, at: usize, name: &Name, faults: &mut Vec<Fault>) {
        let (records, End::TooLong(_)) = self.follow(name, RecordType::A) else { return };
        let mut path: Vec<&Name> = Vec::new();
        for owner in records.iter().map(|record| &record.name) {
            let again = path.contains(&owner);
            path.push(owner);
            if again {
                let path: Vec<_> = path.iter().map(ToString::to_string).collect();
                let fact = format!("this CNAME leads in a circle: {}", path.join(" → "));
                return faults.push(Fault::new(at, fact, "point one of them at a name with addresses"));
            }
        }
        let fact = format!("this CNAME begins a chain of more than {MAX_CHAIN}");
        faults.push(Fault::new(at, fact, "point it nearer to the chain's end"));
    }
}

/// The file's own origin: its name without directory and `.zone`.
fn origin(file: &str, faults: &mut Vec<Fault>) -> Option<Name> {
    let name = Path::new(file).file_name().and_then(|name| name.to_str()).unwrap_or(file);
    let name = name.strip_suffix(".zone").unwrap_or(name);
    let parsed = Name::parse(name);
    if let Err(error) = &parsed {
        let fact = format!("the file's name \"{name}\" is not a domain name: {error}");
        faults.push(Fault::new(0, fact, "name the file as its zone, e.g. corp.example.zone"));
    }
    parsed.ok()
}

/// One file's text. Links may point within the directory (a Kubernetes volume's do), not out of it.
fn read(path: &Path, directory: &Path) -> Result<Source, Mistake> {
    let shown = path.display();
    let unreadable = |error: io::Error| {
        let remedy = match error.kind() {
            io::ErrorKind::NotFound => "remove the link, or create what it points to",
            _ => "let the user that runs outgate read it",
        };
        Mistake::general(format!("cannot read {shown}: {}", reason(&error)), remedy)
    };
    let real = path.canonicalize().map_err(unreadable)?;
    if !real.starts_with(directory) {
        let fact = format!("{shown} is a link to {}, outside the zone directory", real.display());
        return Err(Mistake::general(fact, "copy the file here"));
    }
    let metadata = real.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(Mistake::general(format!("{shown} is not a file"), "remove or rename it"));
    }
    let mut bytes = Vec::new();
    std::fs::File::open(&real).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes)).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE {
        let fact = format!("{shown} is larger than {} MiB", MAX_FILE >> 20);
        return Err(Mistake::general(fact, "split it into several zones"));
    }
    let file: Arc<str> = Arc::from(shown.to_string());
    match String::from_utf8(bytes) {
        // Editors of other systems put a byte order mark first; it says nothing in UTF-8.
        Ok(text) => Ok(Source { file, text: text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text) }),
        Err(error) => {
            let valid = error.utf8_error().valid_up_to();
            let before = error.as_bytes().get(..valid).unwrap_or_default();
            let text = String::from_utf8_lossy(before);
            let place = Lines::new(&file, &text).place(valid);
            Err(Mistake::at(place, "this is not UTF-8", r"save the file as UTF-8; other octets are written \DDD"))
        }
    }
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "no such file or directory".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}

/// The faults of one file as mistakes, in the order of their places.
fn placed(source: &Source, mut faults: Vec<Fault>) -> Vec<Mistake> {
    faults.sort_by_key(|fault| fault.at);
    let lines = Lines::new(&source.file, &source.text);
    faults.into_iter().map(|fault| Mistake::at(lines.place(fault.at), fault.fact, fault.remedy)).collect()
}

/// Where the lines of a text begin.
struct Lines<'a> {
    file: &'a Arc<str>,
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn new(file: &'a Arc<str>, text: &'a str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { file, text, starts }
    }

    fn place(&self, at: usize) -> Place {
        let index = self.starts.partition_point(|start| *start <= at).saturating_sub(1);
        let start = self.starts.get(index).copied().unwrap_or(0);
        let column = self.text.get(start..at).map_or(0, |before| before.chars().count());
        let number = |value: usize| u32::try_from(value + 1).unwrap_or(u32::MAX);
        Place { file: Arc::clone(self.file), line: number(index), column: number(column) }
    }
}
