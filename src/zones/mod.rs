//! Local authoritative data from `zones/*.zone` (RFC 1035 master files): an upstream that never waits.
//!
//! [`Zones::load`] reads a directory and reports every mistake of every file at once; [`Zones::answer`] is right about
//! wildcards and empty non-terminals (RFC 4592), CNAMEs and negative answers (RFC 2308), cannot fail, and costs the
//! same in a zone of five names and of five hundred thousand. A delegation's name servers and their addresses are told;
//! what else lies at and below it is not local. DNAME and signed zones are refused at load.

mod delegation;
mod entry;
mod include;
mod load;
mod master;
mod rdata;
mod records;
mod zone;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::document::Table;
use crate::name::{Name, ancestors};
use crate::record::{Answer, Question, Rcode, Record, RecordType};
pub use records::Records;
use zone::{Found, Zone};

/// The longest chain of CNAMEs, within one zone or across several. A longer one is refused at load.
pub const MAX_CHAIN: usize = 8;

/// `[zones]` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where the `*.zone` files are, as written.
    pub directory: PathBuf,
    /// The operator did not name it: it need not exist.
    pub optional: bool,
}

impl Settings {
    /// Reads `[zones]` of the root table; without it, `zones`, which need not exist.
    #[must_use]
    pub fn read(root: &Table) -> Self {
        let directory = root.table("zones").and_then(|zones| {
            let directory = zones.required_string("directory");
            zones.finish(&[]);
            directory
        });
        match directory {
            Some(found) => Self { directory: PathBuf::from(found.value), optional: false },
            None => Self { directory: PathBuf::from("zones"), optional: true },
        }
    }
}

/// A master file's text.
#[derive(Clone, Debug)]
pub struct Source {
    /// The file as the operator named it. Its last part without `.zone` is the origin, unless the text begins with
    /// `$ORIGIN`.
    pub file: Arc<str>,
    /// Its content.
    pub text: String,
}

/// Every local zone: immutable, shared, replaced whole on reload.
#[derive(Debug, Default)]
pub struct Zones {
    /// What begins at a name and reaches down to the next one.
    zones: HashMap<Name, Held, foldhash::fast::RandomState>,
}

/// Who holds the names from one down.
#[derive(Debug)]
enum Held {
    /// A local zone, of which this is the apex.
    Zone(Zone),
    /// Not local: the zone above delegates them.
    Delegated,
    /// Not local: an upstream serves them, whatever a zone above says.
    Elsewhere,
}

impl Held {
    const fn zone(&self) -> Option<&Zone> {
        match self {
            Self::Zone(zone) => Some(zone),
            Self::Delegated | Self::Elsewhere => None,
        }
    }
}

/// How a search through the zones ended, after the CNAMEs that were followed.
enum End<'z> {
    /// The last records are of the type asked for.
    Records,
    /// The last CNAME leads out of all zones.
    Open,
    /// The last name exists without this type.
    NoData(&'z Zone),
    /// The last name does not exist.
    NoName(&'z Zone),
    /// More than [`MAX_CHAIN`] CNAMEs.
    TooLong(&'z Zone),
}

impl Zones {
    /// No zones.
    #[must_use]
    pub fn empty() -> Self {
        Self::default()
    }

    /// The answer to a question in class IN; `None` where the name is in no local zone, or delegated to another server.
    ///
    /// CNAMEs are followed while their targets are local. A chain that leaves the zones ends with its last CNAME, rcode
    /// NOERROR and no SOA: the rest of it is the caller's to resolve. The SOA of a negative answer is that of the zone
    /// where the chain ends, its TTL already min(SOA TTL, MINIMUM). Type ANY is no data.
    #[must_use]
    pub fn answer(&self, question: &Question) -> Option<Answer> {
        let Some(zone) = self.zone_of(question.name.as_wire()) else { return self.delegated(question) };
        let origin = zone.origin.clone();
        let (records, end) = self.follow(&question.name, question.kind);
        let (rcode, soa) = match end {
            End::Records | End::Open => (Rcode::NOERROR, None),
            // Load refuses what would end TooLong; if it came to be, the end stays closed: nothing left to resolve.
            End::NoData(zone) | End::TooLong(zone) => (Rcode::NOERROR, Some(zone.negative.clone())),
            // RFC 6604 §3: "When there is an xNAME chain, the RCODE field is set as follows: […] the RCODE in the
            // ultimate DNS response MUST BE set based on the final query cycle leading to that response."
            End::NoName(zone) => (Rcode::NXDOMAIN, Some(zone.negative.clone())),
        };
        Some(Answer { rcode, authoritative: true, records, soa, ede: None, proof: None, origin })
    }

    /// The apex of the local zone that holds `name` (wire form); `None` where it is not local.
    #[must_use]
    pub fn apex(&self, name: &[u8]) -> Option<&Name> {
        self.zone_of(name).map(Zone::apex)
    }

    /// The apexes of all zones, in no order.
    pub fn apexes(&self) -> impl Iterator<Item = &Name> {
        self.served().map(|zone| &zone.negative.name)
    }

    /// Makes `cut` and all names below it not local where a zone lies above it: what an `[[upstream]]` serves within a
    /// local zone. A zone whose apex is `cut`, or lies below it, stays.
    pub fn carve(&mut self, cut: &Name) {
        if self.zone_above(cut.as_wire()).is_none() || matches!(self.zones.get(cut), Some(Held::Zone(_))) {
            return;
        }
        self.zones.insert(cut.clone(), Held::Elsewhere);
        // What a zone above `cut` delegates below it is served by that upstream too.
        let below = |name: &Name| name.is_within(cut) && matches!(self.zones.get(name), Some(Held::Delegated));
        let above = |name: &Name| self.zone_above(name.as_wire()).is_some_and(|zone| !zone.apex().is_within(cut));
        let holes: Vec<Name> = self.zones.keys().filter(|name| below(name) && above(name)).cloned().collect();
        self.zones.extend(holes.into_iter().map(|name| (name, Held::Elsewhere)));
    }

    /// How many zones there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.served().count()
    }

    /// True where there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many names own records. Counts them all: for status, not for each query.
    #[must_use]
    pub fn names(&self) -> usize {
        self.served().map(|zone| zone.count().0).sum()
    }

    /// How many records there are. Counts them all: for status, not for each query.
    #[must_use]
    pub fn records(&self) -> usize {
        self.served().map(|zone| zone.count().1).sum()
    }

    fn served(&self) -> impl Iterator<Item = &Zone> {
        self.zones.values().filter_map(Held::zone)
    }

    /// The zone that holds `name`.
    fn zone_of(&self, name: &[u8]) -> Option<&Zone> {
        ancestors(name).find_map(|ancestor| self.zones.get(ancestor))?.zone()
    }

    /// The zone with the longest apex at or above `name`, whether it holds it or not.
    fn zone_above(&self, name: &[u8]) -> Option<&Zone> {
        ancestors(name).filter_map(|ancestor| self.zones.get(ancestor)).find_map(Held::zone)
    }

    /// From `name` along the CNAMEs to the records of `kind`, or to where there are none.
    fn follow(&self, name: &Name, kind: RecordType) -> (Vec<Record>, End<'_>) {
        let owned = |record: &Record, at: &Name, synthesized: bool| {
            let name = if synthesized { at } else { &record.name };
            Record { name: name.clone(), ..record.clone() }
        };
        let mut records = Vec::new();
        let mut at = name.clone();
        loop {
            let Some(zone) = self.zone_of(at.as_wire()) else { return (records, End::Open) };
            match zone.find(at.as_wire(), kind) {
                Found::Records { records: set, synthesized } => {
                    records.extend(set.iter().map(|record| owned(record, &at, synthesized)));
                    return (records, End::Records);
                }
                Found::Alias { .. } if records.len() == MAX_CHAIN => return (records, End::TooLong(zone)),
                Found::Alias { record, synthesized } => {
                    records.push(owned(record, &at, synthesized));
                    match record.target() {
                        Some(target) => at = target,
                        None => return (records, End::NoData(zone)),
                    }
                }
                Found::NoData => return (records, End::NoData(zone)),
                Found::NoName => return (records, End::NoName(zone)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::AddressTrust;
    use crate::record::write_data;

    const SOA: &str = "$TTL 1h\n@ 2h SOA ns hostmaster 1 1h 15m 7d 5m\n";

    fn zones(files: &[(&str, &str)]) -> Zones {
        let source = |(file, text): &(&str, &str)| Source { file: Arc::from(*file), text: format!("{SOA}{text}") };
        Zones::compile(&files.iter().map(source).collect::<Vec<_>>()).unwrap()
    }

    fn ask(zones: &Zones, question: &str) -> Option<Answer> {
        let (name, kind) = question.split_once(' ').unwrap();
        zones.answer(&Question { name: name.parse().unwrap(), kind: kind.parse().unwrap() })
    }

    /// One line for an answer: rcode, records, and the zone of a negative answer with the SOA's TTL.
    fn shown(answer: Option<Answer>) -> String {
        let Some(answer) = answer else { return "not local".to_owned() };
        let mut text = answer.rcode.to_string();
        for record in &answer.records {
            text += &format!(" | {} {} {} ", record.name, record.ttl.seconds(), record.kind);
            write_data(record, &mut text).unwrap();
        }
        if let Some(soa) = &answer.soa {
            assert_eq!(soa.kind, RecordType::SOA);
            text += &format!(" | soa {} {}", soa.name, soa.ttl.seconds());
        }
        text
    }

    fn check(zones: &Zones, rows: &[(&str, &str, &str)]) {
        for (reason, question, expected) in rows {
            assert_eq!(shown(ask(zones, question)), *expected, "{question}: {reason}");
        }
    }

    /// RFC 4592 §2.2.1, without its delegation `subdel.example`, which a local zone does not hold, and with addresses
    /// where the RFC leaves them out.
    const RFC_4592: &str = r#"
                 NS    ns.example.com.
                 NS    ns.example.net.
*                TXT   "this is a wildcard"
*                MX    10 host1
sub.*            TXT   "this is not a wildcard"
host1            A     192.0.2.1
_ssh._tcp.host1  SRV   0 0 22 host1
_ssh._tcp.host2  SRV   0 0 22 host1
"#;

    #[test]
    fn answers_the_example_of_rfc_4592() {
        let zones = zones(&[("example.zone", RFC_4592)]);
        let mx = "MX 10 host1.example";
        let txt = r"TXT \# 19 127468697320697320612077696c6463617264";
        let rows = [
            ("the wildcard is synthesized", "host3.example MX", format!("NOERROR | host3.example 3600 {mx}")),
            ("no data at the wildcard is no data", "host3.example A", "NOERROR | soa example 300".to_owned()),
            ("it matches several labels", "foo.bar.example TXT", format!("NOERROR | foo.bar.example 3600 {txt}")),
            ("host1 exists", "host1.example MX", "NOERROR | soa example 300".to_owned()),
            ("sub.* exists", "sub.*.example MX", "NOERROR | soa example 300".to_owned()),
            (
                "_tcp.host1 exists, empty, and encloses",
                "_telnet._tcp.host1.example SRV",
                "NXDOMAIN | soa example 300".to_owned(),
            ),
            ("*.example exists and encloses; no *.*", "ghost.*.example MX", "NXDOMAIN | soa example 300".to_owned()),
            ("host1 encloses: no wildcard below it", "a.host1.example TXT", "NXDOMAIN | soa example 300".to_owned()),
            ("host2 is an empty non-terminal", "host2.example MX", "NOERROR | soa example 300".to_owned()),
            ("the wildcard itself may be asked", "*.example TXT", format!("NOERROR | *.example 3600 {txt}")),
            ("the apex exists", "example MX", "NOERROR | soa example 300".to_owned()),
            ("another zone", "example.com A", "not local".to_owned()),
            ("a suffix in letters only", "hostexample A", "not local".to_owned()),
        ];
        for (reason, question, expected) in &rows {
            assert_eq!(shown(ask(&zones, question)), *expected, "{question}: {reason}");
        }
    }

    #[test]
    fn follows_cnames_as_far_as_they_are_local() {
        let zones = zones(&[
            (
                "example.org.zone",
                "www A 192.0.2.1\nwww A 192.0.2.2\na CNAME www\nb 60 CNAME a\ngone CNAME nothing\n\
                 nodata CNAME www\nout CNAME cdn.example.com.\nover CNAME there.example.net.\n\
                 lost CNAME missing.example.net.\n*.w CNAME www\nempty CNAME ent\nx.ent A 192.0.2.3\n\
                 *.self CNAME end.self\nend.self A 192.0.2.4",
            ),
            ("example.net.zone", "there A 198.51.100.1"),
        ]);
        check(
            &zones,
            &[
                (
                    "the chain, then the set",
                    "b.example.org A",
                    "NOERROR | b.example.org 60 CNAME a.example.org | a.example.org 3600 CNAME www.example.org \
                     | www.example.org 3600 A 192.0.2.1 | www.example.org 3600 A 192.0.2.2",
                ),
                ("the CNAME itself", "b.example.org CNAME", "NOERROR | b.example.org 60 CNAME a.example.org"),
                (
                    "the end has no such type",
                    "nodata.example.org TXT",
                    "NOERROR | nodata.example.org 3600 CNAME www.example.org | soa example.org 300",
                ),
                (
                    "RFC 6604: the rcode is that of the end",
                    "gone.example.org A",
                    "NXDOMAIN | gone.example.org 3600 CNAME nothing.example.org | soa example.org 300",
                ),
                (
                    "an empty non-terminal at the end",
                    "empty.example.org A",
                    "NOERROR | empty.example.org 3600 CNAME ent.example.org | soa example.org 300",
                ),
                ("out of all zones: open", "out.example.org A", "NOERROR | out.example.org 3600 CNAME cdn.example.com"),
                (
                    "into another zone",
                    "over.example.org A",
                    "NOERROR | over.example.org 3600 CNAME there.example.net | there.example.net 3600 A 198.51.100.1",
                ),
                (
                    "the SOA is that of the chain's end",
                    "lost.example.org A",
                    "NXDOMAIN | lost.example.org 3600 CNAME missing.example.net | soa example.net 300",
                ),
                (
                    "a CNAME at a wildcard",
                    "q.w.example.org AAAA",
                    "NOERROR | q.w.example.org 3600 CNAME www.example.org | soa example.org 300",
                ),
                (
                    "a wildcard's target that exists beside it",
                    "q.self.example.org A",
                    "NOERROR | q.self.example.org 3600 CNAME end.self.example.org | end.self.example.org 3600 A 192.0.2.4",
                ),
                ("ANY is not followed", "b.example.org ANY", "NOERROR | soa example.org 300"),
            ],
        );
        assert_eq!(ask(&zones, "b.example.org A").unwrap().origin.name.as_ref(), "example.org");
        assert_eq!(ask(&zones, "b.example.org A").unwrap().origin.trust, AddressTrust::Zone);
        assert!(ask(&zones, "b.example.org A").unwrap().authoritative);
    }

    #[test]
    fn a_negative_answer_lives_as_long_as_the_smaller_of_soa_ttl_and_minimum() {
        for (soa, ttl) in
            [("10 SOA ns h 1 2 3 4 300", 10), ("900 SOA ns h 1 2 3 4 300", 300), ("0 SOA n h 1 2 3 4 5", 0)]
        {
            let source = Source { file: Arc::from("example.org.zone"), text: format!("@ {soa}\n") };
            let zones = Zones::compile(&[source]).unwrap();
            let answer = ask(&zones, "nothing.example.org A").unwrap();
            assert_eq!(answer.soa.as_ref().unwrap().ttl.seconds(), ttl, "{soa}");
            assert_eq!(answer.ttl().seconds(), ttl, "{soa}");
        }
    }

    #[test]
    fn the_longest_zone_answers_and_a_hole_does_not() {
        let mut zones = zones(&[
            ("zones/example.org.zone", "www A 192.0.2.1\nto.sub.up CNAME www.up\ninto CNAME www.up"),
            ("zones/dev.example.org.zone", "www A 192.0.2.2"),
        ]);
        check(
            &zones,
            &[
                ("the child", "www.dev.example.org A", "NOERROR | www.dev.example.org 3600 A 192.0.2.2"),
                ("its apex", "dev.example.org A", "NOERROR | soa dev.example.org 300"),
                ("its missing names", "x.dev.example.org A", "NXDOMAIN | soa dev.example.org 300"),
                ("the parent", "x.example.org A", "NXDOMAIN | soa example.org 300"),
            ],
        );
        assert_eq!((zones.len(), zones.names(), zones.records()), (2, 6, 6));
        assert_eq!(zones.apex(b"\x01x\x03dev\x07example\x03org\x00").unwrap().to_string(), "dev.example.org");
        for cut in ["up.example.org", "dev.example.org", "example.com"] {
            zones.carve(&cut.parse().unwrap());
        }
        check(
            &zones,
            &[
                ("in the hole", "www.up.example.org A", "not local"),
                ("at the hole", "up.example.org A", "not local"),
                ("a zone is no hole", "www.dev.example.org A", "NOERROR | www.dev.example.org 3600 A 192.0.2.2"),
                (
                    "a CNAME into it is open",
                    "into.example.org A",
                    "NOERROR | into.example.org 3600 CNAME www.up.example.org",
                ),
            ],
        );
        assert_eq!(zones.len(), 2);
        assert!(Zones::empty().is_empty() && ask(&Zones::empty(), "example.org A").is_none());
    }

    #[test]
    fn the_shipped_example_loads() {
        let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("zones");
        let zones = Zones::load(&directory, false).unwrap();
        check(
            &zones,
            &[
                (
                    "an alias",
                    "api.corp.example AAAA",
                    "NOERROR | api.corp.example 300 CNAME www.corp.example | www.corp.example 300 AAAA 2001:db8::80",
                ),
                ("a private address", "db.corp.example A", "NOERROR | db.corp.example 30 A 10.20.0.5"),
                ("the wildcard", "pr-7.preview.corp.example A", "NOERROR | pr-7.preview.corp.example 300 A 192.0.2.81"),
                ("the empty non-terminal", "eu.corp.example A", "NOERROR | soa corp.example 60"),
            ],
        );
    }

    #[test]
    fn settings_name_the_directory() {
        let read = |text| {
            let (document, table) = crate::document::Document::parse("outgate.toml", text);
            let settings = Settings::read(&table);
            table.finish(&[]);
            (settings, document.take_mistakes().iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let named = Settings { directory: PathBuf::from("/etc/zones"), optional: false };
        let default = Settings { directory: PathBuf::from("zones"), optional: true };
        assert_eq!(read("[zones]\ndirectory = \"/etc/zones\"\n"), (named, vec![]));
        assert_eq!(read(""), (default.clone(), vec![]));
        let (settings, mistakes) = read("[zones]\ndirectry = \"z\"\n");
        assert_eq!(settings, default);
        assert_eq!(mistakes.len(), 2, "{mistakes:?}");
    }
}
