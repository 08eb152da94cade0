//! From a directory to zones: which files are read, what they say together, and every mistake with its place.

use std::collections::HashMap;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use super::entry::Fault;
use super::include::{MAX_TEXT, Open, Texts};
use super::{End, Held, MAX_CHAIN, Source, Zones, master, zone};
use crate::document::{Lines, Mistake};
use crate::name::Name;
use crate::record::RecordType;

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
        match (Self::compile_with(&sources, &|path| read(path, &real)), mistakes.is_empty()) {
            (Ok(zones), true) => Ok(zones),
            (compiled, _) => {
                mistakes.extend(compiled.err().into_iter().flatten());
                Err(mistakes)
            }
        }
    }

    /// Zones from texts; opens no file, so `$INCLUDE` is a mistake.
    ///
    /// # Errors
    /// Every mistake of every text, in file order.
    pub fn compile(files: &[Source]) -> Result<Self, Vec<Mistake>> {
        Self::compile_with(files, &|path| {
            let fact = format!("{} is not read: these zones are in no directory", path.display());
            Err(Mistake::general(fact, "write its lines here"))
        })
    }

    pub(super) fn compile_with(files: &[Source], open: Open<'_>) -> Result<Self, Vec<Mistake>> {
        let mut zones = Self::empty();
        let mut first_file: HashMap<Name, &Arc<str>> = HashMap::new();
        let mut masters = Vec::with_capacity(files.len());
        let mut faults: Vec<(Texts<'_>, Vec<Fault>)> = Vec::with_capacity(files.len());
        for source in files {
            let (mut texts, mut found) = (Texts::new(source, open), Vec::new());
            let read = origin(&source.file, &mut found)
                .and_then(|origin| master::read(source, origin, None, &mut texts, &mut found));
            if let Some(read) = &read {
                if let Some(at) = read.signed {
                    let remedy = "keep the unsigned form of the zone here: no DNSKEY, DS, RRSIG, NSEC or NSEC3 records";
                    found.push(Fault::new(at, "the zone is signed; local zones are answered without DNSSEC", remedy));
                }
                let built = zone::build(read, &mut found);
                if let Some(other) = first_file.get(&read.apex) {
                    let fact = format!("the zone {} is in {other} already", read.apex);
                    found.push(Fault::new(0, fact, "put all its records into one file"));
                } else {
                    first_file.insert(read.apex.clone(), &source.file);
                    zones.zones.extend(built.map(|built| (read.apex.clone(), Held::Zone(built))));
                }
            }
            masters.push(read);
            faults.push((texts, found));
        }
        zones.cut();
        for (master, (_, found)) in masters.iter().zip(&mut faults) {
            if let Some(master) = master {
                zones.check_together(master, found);
            }
        }
        let mistakes: Vec<_> =
            files.iter().zip(faults).flat_map(|(source, (texts, found))| texts.placed(source, found)).collect();
        if mistakes.is_empty() { Ok(zones) } else { Err(mistakes) }
    }

    /// What only all zones together show: records that another zone hides, and CNAMEs that come to no end.
    fn check_together(&self, master: &master::Master, faults: &mut Vec<Fault>) {
        for master::Line { at, record } in &master.lines {
            // A delegation, and its glue: the child's own file says the same, or another server does.
            if self.is_delegated(&record.name, &master.apex) {
                continue;
            }
            let Some(zone) = self.zone_of(record.name.as_wire()) else { continue };
            let apex = zone.apex();
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
        let fact = format!("{shown} leads to {}, outside the zone directory", real.display());
        return Err(Mistake::general(fact, "copy the file here"));
    }
    let metadata = real.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(Mistake::general(format!("{shown} is not a file"), "remove or rename it"));
    }
    let mut bytes = Vec::new();
    std::fs::File::open(&real)
        .and_then(|file| file.take(MAX_TEXT as u64 + 1).read_to_end(&mut bytes))
        .map_err(unreadable)?;
    if bytes.len() > MAX_TEXT {
        let fact = format!("{shown} is larger than {} MiB", MAX_TEXT >> 20);
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
            let place = Lines::new(Arc::clone(&file), &*text).place(valid);
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::symlink;

    const SOA: &str = "$TTL 1h\n@ SOA ns hostmaster 1 1h 15m 7d 5m\n";

    fn mistakes(files: &[(&str, &str)]) -> String {
        let source = |(file, text): &(&str, &str)| Source { file: Arc::from(*file), text: (*text).to_owned() };
        let sources: Vec<_> = files.iter().map(source).collect();
        let lines: Vec<_> =
            Zones::compile(&sources).err().unwrap_or_default().iter().map(ToString::to_string).collect();
        lines.join("\n")
    }

    #[test]
    fn every_mistake_of_every_file_at_once_with_its_place() {
        let first = format!(
            "{SOA}www A 192.0.2.256\n  TXT \"é\" \"open\n; nothing\n$GENERATE 1-9 h$ A 192.0.2.$\n$FOO\nwww CH A 192.0.2.1\n\
             www BOGUS x\nwww OPT x\n@ SOA ns hostmaster 2 1h 15m 7d 5m\nsub NS ns.sub\ntree DNAME example.net.\n\
             @ DNSKEY 257 3 13 aa==\n@ DS 1 2 3 4\nhost.example.com. A 192.0.2.1\nboth CNAME www\nboth A 192.0.2.1\ntwice CNAME a\ntwice CNAME b\n\
             ttl 60 A 192.0.2.1\nttl 61 A 192.0.2.2\nwww 1y A 192.0.2.1\nwww\na..b A 192.0.2.1\n A 192.0.2.1\n"
        );
        let second = "www A 192.0.2.1\n$TTL 1h 2h\n";
        let expected = "\
zones/a.example.zone:3:7: \"192.0.2.256\" is not an IPv4 address
  write an IPv4 address here
zones/a.example.zone:4:11: a quote is not closed on its line
  close it with \"
zones/a.example.zone:6:1: $GENERATE is not supported
  write the records out; a wildcard (*.name) covers any label
zones/a.example.zone:7:1: $FOO is not a directive
  $ORIGIN, $TTL and $INCLUDE are the directives of a zone file
zones/a.example.zone:8:5: class CH is not served
  write IN, or nothing
zones/a.example.zone:9:5: \"BOGUS\" is not a record type
  write a type, e.g. A; one without a name as TYPE65280 \\# 2 c0a8
zones/a.example.zone:10:5: OPT is not a type of data
  remove the record
zones/a.example.zone:11:1: the zone a.example has a second SOA record
  keep one of them
zones/a.example.zone:12:1: sub.a.example is delegated to ns.sub.a.example, which is below it and has no address here
  add its address (glue): ns.sub.a.example. A 192.0.2.1
zones/a.example.zone:13:6: DNAME is not supported
  write the names below it out, or a wildcard CNAME
zones/a.example.zone:14:1: the zone is signed; local zones are answered without DNSSEC
  keep the unsigned form of the zone here: no DNSKEY, DS, RRSIG, NSEC or NSEC3 records
zones/a.example.zone:16:1: host.example.com is outside the zone a.example
  end relative names without a dot, or move the record to its zone's own file
zones/a.example.zone:17:1: both.a.example has a CNAME and other records
  remove the CNAME or the others (RFC 1034 §3.6.2)
zones/a.example.zone:20:1: twice.a.example has more than one CNAME
  keep one of them (RFC 2181 §10.1)
zones/a.example.zone:22:1: the TTL of this A differs from that of the first A at ttl.a.example
  give all records of one name and type the same TTL
zones/a.example.zone:23:5: \"1y\" is not a TTL
  write seconds up to 2147483647, or e.g. 90s, 15m, 1h30m, 7d
zones/a.example.zone:24:4: the record has no type
  write e.g. www A 192.0.2.1
zones/a.example.zone:25:1: \"a..b\" is not a domain name: it has an empty label
  write a name like www, www.example.org. or @
zones/b.example.zone:1:1: the record has no TTL and there is no $TTL above it
  add the line $TTL 1h at the top, or write the TTL before the type
zones/b.example.zone:1:1: the zone b.example has no SOA record
  begin the file with: @ SOA ns1 hostmaster ( 1 1h 15m 7d 1m ) and a $TTL above it
zones/b.example.zone:2:9: \"2h\" is more than $TTL holds
  remove it";
        assert_eq!(mistakes(&[("zones/a.example.zone", &first), ("zones/b.example.zone", second)]), expected);
    }

    #[test]
    fn a_mistake_brings_no_second_one_with_it() {
        let rows: [(&str, &str, String, usize); 6] = [
            (
                "a broken $ORIGIN makes all names unknown",
                "a.example.zone",
                format!("{SOA}$ORIGIN a..b\nwww CNAME www\n"),
                1,
            ),
            (
                "a broken SOA is there",
                "a.example.zone",
                "$TTL 1h\n@ SOA ns hostmaster 1 2 3\nwww A 192.0.2.1\n".into(),
                1,
            ),
            ("a broken $TTL is there", "a.example.zone", "$TTL x\n@ SOA n h 1 2 3 4 5\nwww A 192.0.2.1\n".into(), 1),
            (
                "a broken TTL is no default, but there",
                "a.example.zone",
                "@ 1x SOA n h 1 2 3 4 5\n A 192.0.2.1\n".into(),
                1,
            ),
            (
                "all absolute under the wrong file name",
                "a.zone",
                "$TTL 1\nb.example. SOA n. h. 1 2 3 4 5\nb.example. A 192.0.2.1\n".into(),
                1,
            ),
            ("a file that is no name", "a..b.zone", SOA.into(), 1),
        ];
        for (reason, file, text, count) in rows {
            let found = mistakes(&[(file, &text)]);
            assert_eq!(found.lines().filter(|line| !line.starts_with(' ')).count(), count, "{reason}: {found}");
        }
        assert_eq!(
            mistakes(&[("a.zone", &format!("$ORIGIN b.example\n{SOA}"))]),
            "a.zone:1:9: \"b.example\" without a final dot makes the zone b.example.a\n  write $ORIGIN b.example."
        );
        assert_eq!(
            mistakes(&[("a.zone", "$TTL 1\nb.example. SOA n. h. 1 2 3 4 5\n")]),
            "a.zone:2:1: the SOA record is at b.example, the zone's origin is a\n  \
             begin the file with $ORIGIN b.example. or name it b.example.zone"
        );
    }

    #[test]
    fn refuses_chains_without_an_end() {
        let ring = format!("{SOA}a CNAME b\nb CNAME a.other.example.\n*.w CNAME x.w\nself CNAME self\n");
        let other = format!("{SOA}a CNAME a.ring.example.\n");
        let expected = "\
ring.example.zone:3:1: this CNAME leads in a circle: a.ring.example → b.ring.example → a.other.example → a.ring.example
  point one of them at a name with addresses
ring.example.zone:4:1: this CNAME leads in a circle: b.ring.example → a.other.example → a.ring.example → b.ring.example
  point one of them at a name with addresses
ring.example.zone:5:1: this CNAME leads in a circle: *.w.ring.example → x.w.ring.example → x.w.ring.example
  point one of them at a name with addresses
ring.example.zone:6:1: this CNAME leads in a circle: self.ring.example → self.ring.example
  point one of them at a name with addresses
other.example.zone:3:1: this CNAME leads in a circle: a.other.example → a.ring.example → b.ring.example → a.other.example
  point one of them at a name with addresses";
        assert_eq!(mistakes(&[("ring.example.zone", &ring), ("other.example.zone", &other)]), expected);

        let chain = |length: usize| {
            let links: String = (0..length).map(|n| format!("c{n} CNAME c{}\n", n + 1)).collect();
            format!("{SOA}{links}c{length} A 192.0.2.1\n")
        };
        assert_eq!(mistakes(&[("e.example.zone", &chain(MAX_CHAIN))]), "");
        assert_eq!(
            mistakes(&[("e.example.zone", &chain(MAX_CHAIN + 1))]),
            "e.example.zone:3:1: this CNAME begins a chain of more than 8\n  point it nearer to the chain's end"
        );
    }

    #[test]
    fn two_files_may_not_claim_one_name() {
        let parent = format!("{SOA}www.dev A 192.0.2.1\nx A 192.0.2.1\n");
        let again = format!("$ORIGIN dev.example.org.\n{SOA}");
        assert_eq!(
            mistakes(&[("z/example.org.zone", &parent), ("z/dev.example.org.zone", SOA), ("z/x.zone", &again)]),
            "z/example.org.zone:3:1: www.dev.example.org is hidden by the zone dev.example.org\n  \
             move it to the file of dev.example.org, or remove it\n\
             z/x.zone:1:1: the zone dev.example.org is in z/dev.example.org.zone already\n  \
             put all its records into one file"
        );
    }

    #[test]
    fn a_set_must_fit_into_a_message() {
        let records: String = (0..240).map(|n| format!("big TXT \"{n:0>240}\"\n")).collect();
        assert_eq!(
            mistakes(&[("e.example.zone", &format!("{SOA}{records}"))]),
            "e.example.zone:3:1: the TXT records of big.e.example take 63840 octets; 60000 is the most\n  \
             spread them over several names"
        );
    }

    #[test]
    fn what_master_files_may_hold_is_read() {
        let text = "\u{feff}; comment\r\n$origin Example.NET. ; upper case\r\n@ IN 1h soa ns hostmaster ( 1 ; serial\r\n 2 3\r\n 4 5 )\r\n\
                    \tIN\tNS\tns\r\n$TTL 10m\r\nns 1d IN A 192.0.2.1\r\nNS IN 1d A 192.0.2.1\r\n sub 5 TXT x\r\n";
        let directory = Scratch::new("master");
        directory.write("any.zone", text.replace(" sub 5", "sub 5").as_bytes());
        let zones = Zones::load(&directory.0, false).unwrap();
        assert_eq!((zones.len(), zones.names(), zones.records()), (1, 3, 4), "{zones:?}");
        let kinds = |name: &str, kind: &str| {
            let question = crate::record::Question { name: name.parse().unwrap(), kind: kind.parse().unwrap() };
            zones.answer(&question).unwrap().records.iter().map(|record| record.ttl.seconds()).collect::<Vec<_>>()
        };
        assert_eq!(kinds("example.net", "SOA"), [3600]);
        assert_eq!(kinds("example.net", "NS"), [3600], "without $TTL the last one stated");
        assert_eq!(kinds("ns.example.net", "A"), [86400], "a record said twice is one");
    }

    /// A directory of its own, removed at the end.
    struct Scratch(std::path::PathBuf);

    impl Scratch {
        fn new(test: &str) -> Self {
            let path = std::env::temp_dir().join(format!("outgate-zones-{test}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&path);
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn write(&self, name: &str, content: &[u8]) {
            std::fs::write(self.0.join(name), content).unwrap();
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn reads_the_zone_files_of_a_directory_and_no_others() {
        let scratch = Scratch::new("directory");
        let good = format!("{SOA}www A 192.0.2.1\n");
        scratch.write("..data.zone", b"not read");
        scratch.write("README", b"not read");
        std::fs::create_dir(scratch.0.join("v1")).unwrap();
        scratch.write("v1/example.org.zone", good.as_bytes());
        symlink("v1/example.org.zone", scratch.0.join("example.org.zone")).unwrap();
        let zones = Zones::load(&scratch.0, false).unwrap();
        assert_eq!((zones.len(), zones.names()), (1, 2));

        scratch.write("v1/mail.inc", b"mx A 192.0.2.2\n");
        scratch.write("example.com.zone", format!("{SOA}$INCLUDE v1/mail.inc\n").as_bytes());
        assert_eq!(Zones::load(&scratch.0, false).unwrap().names(), 4);

        let outside = Scratch::new("outside");
        outside.write("x", good.as_bytes());
        symlink(outside.0.join("x"), scratch.0.join("v1/x.inc")).unwrap();
        let way = format!("../{}/x", outside.0.file_name().unwrap().display());
        for (name, file) in
            [("a.example", &*way), ("b.example", "v1/x.inc"), ("c.example", "/etc/hostname"), ("d.example", "v1")]
        {
            scratch.write(&format!("{name}.zone"), format!("$INCLUDE {file}\n").as_bytes());
        }
        symlink(outside.0.join("x"), scratch.0.join("example.net.zone")).unwrap();
        symlink("nowhere", scratch.0.join("gone.example.zone")).unwrap();
        std::fs::create_dir(scratch.0.join("folder.zone")).unwrap();
        scratch.write("latin.example.zone", b"$TTL 1h\n@ TXT \"caf\xe9\"\n");
        scratch.write("typo.example.zone", b"$TTL 1h\n@ SAO\n");
        let root = scratch.0.display().to_string();
        let mistakes = Zones::load(&scratch.0, false).unwrap_err();
        let shown: Vec<_> = mistakes.iter().map(|mistake| mistake.to_string().replace(&root, "zones")).collect();
        let target = outside.0.join("x").canonicalize().unwrap();
        let hostname = Path::new("/etc/hostname").canonicalize().unwrap();
        let out = |place: &str, path: &str, to: &Path| {
            format!("{place}{path} leads to {}, outside the zone directory\n  copy the file here", to.display())
        };
        assert_eq!(
            shown,
            [
                &*out("", "zones/example.net.zone", &target),
                "zones/folder.zone is not a file\n  remove or rename it",
                "cannot read zones/gone.example.zone: no such file or directory\n  remove the link, or create what it points to",
                "zones/latin.example.zone:2:11: this is not UTF-8\n  save the file as UTF-8; other octets are written \\DDD",
                &*out("zones/a.example.zone:1:10: ", &format!("zones/{way}"), &target),
                &*out("zones/b.example.zone:1:10: ", "zones/v1/x.inc", &target),
                &*out("zones/c.example.zone:1:10: ", "/etc/hostname", &hostname),
                "zones/d.example.zone:1:10: zones/v1 is not a file\n  remove or rename it",
                "zones/typo.example.zone:1:1: the zone typo.example has no SOA record\n  \
                 begin the file with: @ SOA ns1 hostmaster ( 1 1h 15m 7d 1m ) and a $TTL above it",
                "zones/typo.example.zone:2:3: \"SAO\" is not a record type\n  \
                 write a type, e.g. A; one without a name as TYPE65280 \\# 2 c0a8",
            ]
        );
    }

    #[test]
    fn a_directory_that_is_not_there_is_a_mistake_unless_optional() {
        let nowhere = Path::new("/nonexistent/zones");
        assert!(Zones::load(nowhere, true).unwrap().is_empty());
        assert_eq!(
            Zones::load(nowhere, false).unwrap_err(),
            [Mistake::general(
                "cannot read /nonexistent/zones: no such file or directory",
                "create it, or correct [zones] directory"
            )]
        );
        assert_eq!(reason(&io::ErrorKind::PermissionDenied.into()), "permission denied");
    }

    proptest! {
        #[test]
        fn no_text_panics(lines in prop::collection::vec(
            "(@|a|b\\.a|\\*\\.a|[ ]|\\$ORIGIN|\\$TTL)( [0-9]{1,3})?( IN)? (A|NS|CNAME|SOA|TXT|TYPE9)( (192\\.0\\.2\\.1|@|a|b\\.a|x\\.b|[(]|[)]|\"|[0-9]|;)){0,8}", 0..12,
        )) {
            let text = format!("{SOA}{}", lines.join("\n"));
            let source = Source { file: Arc::from("example.org.zone"), text };
            match Zones::compile(&[source]) {
                Ok(zones) => prop_assert_eq!(zones.len(), 1),
                Err(mistakes) => prop_assert!(!mistakes.is_empty() && mistakes.iter().all(|mistake| mistake.place.is_some())),
            }
        }
    }
}
