//! The enforcer's journal: for whom each element is open, so that after a restart the end of one resolver's closes no
//! other's.
//!
//! ```text
//! outgate-holds 1 BOOT_ID
//! ns1.corp.example 192.0.2.1>198.51.100.7:tcp/443 5360000 192.0.2.1>198.51.100.8:tcp/443 - ;
//! ```
//!
//! A line has a resolver, then elements, each with its end (a [`Tick`]) or `-` where it was closed. A line that does not
//! end as it should was torn. The kernel's sets are empty after the machine was started anew: a journal of another
//! start is void, and nothing is synced to the disk.

use std::fs::{File, OpenOptions, rename};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::holds::{Holder, Holds, NOBODY};
use crate::grant::Change;
use crate::net::Element;
use crate::time::{Tick, machine_start};

const BEGIN: &str = "outgate-holds 1 ";
const END: &str = " ;";

/// Rewritten from so many named elements on, where it names twice as many as are held.
const REWRITE_FROM: usize = 20_000;

/// The journal of one state directory.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    boot: String,
    names: Vec<String>,
    file: File,
    /// Elements in its lines.
    named: usize,
    line: String,
    /// The last write may have left half a line.
    torn: bool,
}

impl Journal {
    /// Reads the journal of `state` into empty holds and opens it for appending. `false`: there was none of this start of
    /// the machine, and it is not known who holds what is open.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub(super) fn open(state: &Path, names: &[String], holds: &mut Holds) -> io::Result<(Self, bool)> {
        let (path, boot) = (state.join("holds"), machine_start());
        let found = match File::open(&path) {
            Ok(file) => read(BufReader::new(file), &boot, names, holds)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        let file = rewritten(&path, &boot, names, holds)?;
        let names = names.to_vec();
        Ok((Self { path, boot, names, file, named: holds.len(), line: String::new(), torn: false }, found))
    }

    /// The kernel's name for this start of the machine.
    pub(super) fn boot(&self) -> &str {
        &self.boot
    }

    /// Writes what a holder's changes are; before the kernel is told.
    ///
    /// # Errors
    /// The file cannot be written: the changes must not be made.
    pub(super) fn write<'a>(
        &mut self,
        holder: Holder,
        ends: impl Iterator<Item = (&'a Element, Option<Tick>)>,
    ) -> io::Result<()> {
        self.line.clear();
        if std::mem::take(&mut self.torn) {
            self.line.push('\n');
        }
        let begin = self.line.len();
        let Some(name) = self.names.get(usize::from(holder)) else { return Ok(()) };
        self.line.push_str(name);
        let named = self.named;
        for (element, end) in ends {
            write_one(&mut self.line, element, end);
            self.named += 1;
        }
        if self.named == named {
            self.line.truncate(begin);
            return Ok(());
        }
        self.line.push_str(END);
        self.line.push('\n');
        let written = self.file.write_all(self.line.as_bytes());
        self.torn = written.is_err();
        written
    }

    /// Whether it can be written now.
    ///
    /// # Errors
    /// It cannot.
    pub(super) fn trial(&mut self) -> io::Result<()> {
        // A line that says nothing.
        let written = self.file.write_all(b"\n");
        self.torn |= written.is_err();
        written
    }

    /// Rewrites it where it has grown to twice what is held.
    ///
    /// # Errors
    /// The next one cannot be written; this one goes on.
    pub(super) fn tidy(&mut self, holds: &Holds) -> io::Result<()> {
        if self.named < REWRITE_FROM || self.named < 2 * holds.len() {
            return Ok(());
        }
        self.file = rewritten(&self.path, &self.boot, &self.names, holds)?;
        (self.named, self.torn) = (holds.len(), false);
        Ok(())
    }
}

fn write_one(line: &mut String, element: &Element, end: Option<Tick>) {
    use std::fmt::Write as _;
    // A String takes everything.
    let _ = match end {
        Some(end) => write!(line, " {element} {}", end.0),
        None => write!(line, " {element} -"),
    };
}

/// Whether it is of this start of the machine.
fn read(mut lines: impl BufRead, boot: &str, names: &[String], holds: &mut Holds) -> io::Result<bool> {
    let mut line = Vec::new();
    lines.read_until(b'\n', &mut line)?;
    if boot.is_empty()
        || std::str::from_utf8(&line).ok().and_then(|line| line.strip_prefix(BEGIN)) != Some(&format!("{boot}\n"))
    {
        return Ok(false);
    }
    loop {
        line.clear();
        if lines.read_until(b'\n', &mut line)? == 0 {
            return Ok(true);
        }
        let text = std::str::from_utf8(&line).ok().and_then(|text| text.strip_suffix('\n')?.strip_suffix(END));
        // Half a line says what no kernel was told.
        let Some(text) = text else { continue };
        let mut words = text.split(' ');
        let place = words.next().and_then(|name| names.iter().position(|known| known == name));
        // One that is not configured any more holds nothing.
        let Some(holder) = place.and_then(|place| Holder::try_from(place).ok()) else { continue };
        while let (Some(element), Some(end)) = (words.next(), words.next()) {
            let Ok(element) = element.parse::<Element>() else { break };
            let change = match end.parse() {
                Ok(end) => Change::Open { element, until: Tick(end) },
                Err(_) => Change::Close { element },
            };
            holds.change(holder, &change, Tick(0));
        }
    }
}

fn rewritten(path: &Path, boot: &str, names: &[String], holds: &Holds) -> io::Result<File> {
    let next = path.with_extension("next");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut out = BufWriter::new(options.open(&next)?);
    writeln!(out, "{BEGIN}{boot}")?;
    let mut line = String::new();
    for (holder, element, end) in holds.all().filter(|(holder, ..)| *holder != NOBODY) {
        let Some(name) = names.get(usize::from(holder)) else { continue };
        line.clear();
        line.push_str(name);
        write_one(&mut line, &element, Some(end));
        writeln!(out, "{line}{END}")?;
    }
    out.into_inner().map_err(io::IntoInnerError::into_error)?;
    rename(&next, path)?;
    OpenOptions::new().append(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> [String; 2] {
        ["ns1.example".into(), "ns2.example".into()]
    }

    fn element(number: u8) -> Element {
        format!("192.0.2.1>198.51.100.{number}:tcp/443").parse().unwrap()
    }

    fn read_all(text: &str) -> (bool, Vec<(Holder, Element, Tick)>) {
        let mut holds = Holds::default();
        let found = read(text.as_bytes(), "boot", &names(), &mut holds).unwrap();
        let mut all: Vec<_> = holds.all().collect();
        all.sort_unstable();
        (found, all)
    }

    #[test]
    fn says_who_holds_what() {
        let directory = std::env::temp_dir().join(format!("outgate-holds-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let (mut journal, found) = Journal::open(&directory, &names(), &mut Holds::default()).unwrap();
        assert!(!found);
        let far = Some(Tick(u64::MAX));
        journal.write(0, [(&element(1), far), (&element(2), far)].into_iter()).unwrap();
        journal.write(1, [(&element(1), far)].into_iter()).unwrap();
        journal.write(0, [(&element(1), None)].into_iter()).unwrap();
        journal.write(0, std::iter::empty()).unwrap();
        for _ in 0..2 {
            let mut holds = Holds::default();
            let (_, found) = Journal::open(&directory, &names(), &mut holds).unwrap();
            let mut all: Vec<_> = holds.all().collect();
            all.sort_unstable();
            assert!(found);
            assert_eq!(all, [(0, element(2), Tick(u64::MAX)), (1, element(1), Tick(u64::MAX))]);
        }
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn what_is_torn_foreign_or_of_another_start_is_left_out() {
        let one = element(1);
        let whole = format!("{BEGIN}boot\nns1.example {one} 5 ;\n");
        let held = (true, vec![(0, one, Tick(5))]);
        assert_eq!(read_all(&whole), held);
        assert_eq!(read_all(&format!("{whole}ns2.example {one} 9")), held);
        assert_eq!(read_all(&format!("{whole}ns2.example {one}\nns9.example {one} 9 ;\nx\n\u{fffd} ;\n")), held);
        assert_eq!(read_all(&whole.replace("boot", "other")), (false, vec![]));
        assert_eq!(read_all(""), (false, vec![]));
    }
}
