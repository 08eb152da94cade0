//! A master file as records with their places, whatever zone they make: for tools that read one for what it says.

use std::path::Path;

use super::include::Texts;
use super::{Source, master};
use crate::document::{Lines, Mistake, Place};
use crate::name::Name;
use crate::record::{Record, RecordType};
use crate::time::Ttl;

/// What a master file says.
pub struct Records<'a> {
    /// The owner of its SOA; without one, the first `$ORIGIN`, else the origin that was given.
    pub apex: Name,
    /// Every record that could be read, in file order, and the offset of its line. Those of a signed zone that prove
    /// others are left out.
    pub records: Vec<(usize, Record)>,
    /// What could not be read.
    pub faults: Vec<Mistake>,
    lines: Lines<'a>,
}

impl<'a> Records<'a> {
    /// Reads a text whose names are relative to `origin` until it says otherwise. Opens no file: `$INCLUDE` is a mistake.
    /// TTLs may be absent.
    ///
    /// # Errors
    /// An `$ORIGIN` or `$INCLUDE` cannot be followed, so that nothing behind it can be understood.
    pub fn read(source: &'a Source, origin: Name) -> Result<Self, Vec<Mistake>> {
        let open = |path: &Path| {
            let fact = format!("{} is not read", path.display());
            Err(Mistake::general(fact, "write its lines here"))
        };
        let (mut texts, mut faults) = (Texts::new(source, &open), Vec::new());
        let read = master::read(source, origin, Some(Ttl::ZERO), &mut texts, &mut faults);
        let faults = texts.placed(source, faults);
        let Some(read) = read else { return Err(faults) };
        let soa = read.lines.iter().find(|line| line.record.kind == RecordType::SOA);
        let apex = soa.map_or(read.apex, |line| line.record.name.clone());
        let records = read.lines.into_iter().map(|line| (line.at, line.record)).collect();
        let lines = Lines::new(source.file.clone(), source.text.as_str());
        Ok(Self { apex, records, faults, lines })
    }

    /// Where a record stands.
    #[must_use]
    pub fn place(&self, at: usize) -> Place {
        self.lines.place(at)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn source(text: &str) -> Source {
        Source { file: Arc::from("x.zone"), text: text.to_owned() }
    }

    #[test]
    fn reads_what_is_no_zone_of_this_node() {
        let text = "@ SOA . . 1 1h 1h 1h 1h\na CNAME .\nb 5 A 192.0.2.256\n*.c CNAME rpz-drop.\nd RRSIG x\n$GENERATE 1-2 a A 1\n";
        let source = source(text);
        let read = Records::read(&source, Name::parse("rpz").unwrap()).unwrap();
        assert_eq!(read.apex.to_string(), "rpz");
        let names: Vec<_> =
            read.records.iter().map(|(at, record)| format!("{} {}", read.place(*at).line, record.name)).collect();
        assert_eq!(names, ["1 rpz", "2 a.rpz", "4 *.c.rpz"]);
        let faults: Vec<_> = read.faults.iter().map(|fault| fault.place.as_ref().unwrap().line).collect();
        assert_eq!(faults, [3, 6]);
    }

    #[test]
    fn the_owner_of_the_soa_is_the_apex() {
        let text = "$TTL 1\nrpz.example.org. SOA . . 1 1h 1h 1h 1h\na.example.com.rpz.example.org. CNAME .\n";
        let source = source(text);
        assert_eq!(Records::read(&source, Name::root()).unwrap().apex.to_string(), "rpz.example.org");
    }

    #[test]
    fn an_origin_that_cannot_be_followed_ends_it() {
        for text in ["$ORIGIN a..b.\nx CNAME .\n", "$INCLUDE other.zone\nx CNAME .\n"] {
            assert_eq!(Records::read(&source(text), Name::root()).err().unwrap().len(), 1, "{text}");
        }
    }
}
