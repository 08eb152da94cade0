//! Names that are not like others: those of the special-use table ([`special`]), those of the bypass list, and the two by
//! which hosts find a proxy or a tunnel. What of them is left to the rules is said here, once, for every decision.

use super::ReservedIndex;
use super::index::{Found, Reader};
use super::sites::Sites;
use super::special::{self, Kind};
use super::verdict::SegmentIndex;
use crate::name::Name;
use crate::record::{ExtendedError, Record, RecordType};

/// Which rules are heard of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bar {
    /// All of them.
    None,
    /// Denies, and allows that name it exactly. Of the bypass list these are the ones that say `guard = "override"`: no
    /// policy has others.
    Exact,
    /// Denies.
    All,
}

impl Bar {
    /// Whether an allow rule that names the name, exactly or not, is heard.
    pub(super) const fn lets_through(self, exact: bool) -> bool {
        match self {
            Self::None => true,
            Self::Exact => exact,
            Self::All => false,
        }
    }
}

/// What a name of the list is.
#[derive(Clone, Copy, Debug)]
pub(super) enum What {
    /// The root: it is asked for its servers by what wants to know whether a resolver is well.
    Root,
    /// `wpad`, `isatap`: whoever owns the name owns the traffic of those who look for it.
    Discovery,
    /// Of the special-use table.
    Special { kind: Kind, fixed: bool },
    /// Of the bypass list.
    Bypass,
}

/// A name with those below it, or a first label with whatever follows.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) what: What,
    pub(super) name: Name,
    /// What is said of it: the extended error of a refusal, the `why` of a record.
    pub(super) told: ExtendedError,
}

const ROOT: ReservedIndex = ReservedIndex(0);
const WPAD: ReservedIndex = ReservedIndex(1);
const ISATAP: ReservedIndex = ReservedIndex(2);

/// The bypass list: a name a line; `#` begins a comment.
const BYPASS: &str = include_str!("bypass.txt");

/// Every entry, and who serves names here.
#[derive(Debug)]
pub(super) struct Reserved {
    /// The index has those behind [`ISATAP`] by their places here.
    entries: Vec<Entry>,
    pub(super) sites: Sites,
}

impl Reserved {
    /// The built-in lists, put into `index`; nobody serves names here yet.
    pub(super) fn new(index: &mut Reader) -> Self {
        let entry = |what, name: Name, text: String| Entry {
            what,
            name,
            told: ExtendedError::new(ExtendedError::BLOCKED, text),
        };
        let discovery = |label: &str| {
            let text = format!("a name {label}.* is opened only by a rule that names it exactly");
            entry(What::Discovery, Name::parse(label).unwrap_or_else(|_| Name::root()), text)
        };
        let root = "the root is not asked anything upstream".to_owned();
        let mut entries = vec![entry(What::Root, Name::root(), root), discovery("wpad"), discovery("isatap")];
        for row in special::ROWS {
            let what = What::Special { kind: row.kind, fixed: row.fixed };
            let names = row.names().map(|name| {
                let text = format!("{name} is a special-use name ({}): answered here, never upstream", row.source);
                entry(what, name, text)
            });
            entries.extend(names);
        }
        entries.extend(bypass().map(|name| {
            let text = format!("{name} is on the bypass list: it leads round this resolver");
            entry(What::Bypass, name, text)
        }));
        for (number, entry) in (0..).zip(&entries).filter(|(number, _)| *number > ISATAP.0) {
            index.reserve(&entry.name, number);
        }
        Self { entries, sites: Sites::default() }
    }

    /// An entry.
    pub(super) fn entry(&self, index: ReservedIndex) -> &Entry {
        #[expect(clippy::indexing_slicing, reason = "a ReservedIndex is made by its own policy from its own table")]
        &self.entries[index.0 as usize]
    }

    /// The entry that was read from a pattern's own name, or from one above.
    pub(super) fn read(&self, number: u32) -> Option<(ReservedIndex, &Entry)> {
        let entry = self.entries.get(number as usize).filter(|_| number > ISATAP.0)?;
        Some((ReservedIndex(number), entry))
    }

    /// Which rules are heard of a name, and the entry that says so.
    pub(super) fn bar(
        &self,
        found: &Found<'_>,
        segment: SegmentIndex,
        name: &[u8],
        kind: RecordType,
    ) -> Option<(Bar, ReservedIndex)> {
        self.listed(found.reserved(), segment, name).or_else(|| match name.first() {
            // Every name is looked at here: the first octet tells nearly all of them from what is meant.
            Some(0) if matches!(kind, RecordType::NS | RecordType::SOA) && !self.sites.holds(name) => {
                Some((Bar::All, ROOT))
            }
            Some(4) if name.starts_with(b"\x04wpad") => Some((Bar::Exact, WPAD)),
            Some(6) if name.starts_with(b"\x06isatap") => Some((Bar::Exact, ISATAP)),
            _ => None,
        })
    }

    fn listed(&self, number: u32, segment: SegmentIndex, name: &[u8]) -> Option<(Bar, ReservedIndex)> {
        let (index, entry) = if number == 0 { None } else { self.read(number) }?;
        match entry.what {
            What::Special { fixed: false, .. } if self.sites.serve(segment, name, &entry.name) => None,
            What::Special { .. } | What::Root => Some((Bar::All, index)),
            What::Bypass | What::Discovery => Some((Bar::Exact, index)),
        }
    }

    /// What a question about a name that no rule opens is answered with: records, perhaps none; `None`: it is refused.
    pub(super) fn answer(&self, index: ReservedIndex, name: &[u8], kind: RecordType) -> Option<Vec<Record>> {
        let entry = self.entry(index);
        match entry.what {
            What::Root => Some(Vec::new()),
            What::Special { kind: special, .. } => special.answer(&entry.name, name, kind),
            What::Discovery | What::Bypass => None,
        }
    }
}

/// The names of the bypass list.
fn bypass() -> impl Iterator<Item = Name> {
    let names = BYPASS.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    names.filter(|name| !name.is_empty()).filter_map(|name| Name::parse(name).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::testing::{NOW, name, policy_with, verdict};
    use crate::policy::{Server, Settings, Site};

    #[test]
    fn every_line_of_the_bypass_list_is_a_name_with_its_source() {
        let lines: Vec<_> = BYPASS.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
        let names: Vec<Name> = bypass().collect();
        assert_eq!(names.len(), lines.len());
        for (line, name) in lines.iter().zip(&names) {
            assert!(line.contains(" # ["), "{line}");
            let above = names.iter().find(|other| *other != name && name.is_within(other));
            assert_eq!(above, None, "{name} is covered already");
            assert_eq!(names.iter().filter(|other| *other == name).count(), 1, "{name}");
            assert!(!special::ROWS.iter().flat_map(special::Row::names).any(|special| name.is_within(&special)));
        }
        for name in ["dns.google", "mask.icloud.com", "use-application-dns.net", "cloudflare-dns.com"] {
            assert!(names.contains(&Name::parse(name).unwrap()), "{name}");
        }
    }

    const TEXT: &str = r#"
[[segment]]
name    = "shop"
clients = ["192.0.2.0/24"]
refusal = "refused"
[[segment]]
name    = "lab"
clients = ["198.51.100.0/24"]
mode    = "observe"
until   = 2030-01-01T00:00:00Z
[[rule]]
id       = "wide"
action   = "allow"
segments = ["*"]
names    = ["**.corp.internal", "**.local", "**.icloud.com", "**.example.com", "**.20.10.in-addr.arpa"]
types    = ["A", "PTR"]
[[rule]]
id       = "exact"
action   = "allow"
segments = ["*"]
names    = ["wpad.eu.example.com", "mask-h2.icloud.com", "deep.dns.google"]
guard    = "override"
[[rule]]
id       = "no"
action   = "deny"
segments = ["*"]
names    = ["no.local", "dns.quad9.net", "localhost"]
"#;

    #[test]
    fn says_which_rules_are_heard() {
        let zone = |apex: &str| Site { apex: name(apex), server: Server::Zone };
        let settings = Settings { sites: vec![zone("corp.internal"), zone("wpad.local")], ..Settings::default() };
        let policy = policy_with(TEXT, &settings);
        let rows = [
            // Special-use names: no allow is heard, a deny is, and no segment observes them away.
            ("x.onion", RecordType::A, "special NxDomain", "special NxDomain"),
            ("printer.local", RecordType::A, "special NxDomain", "special NxDomain"),
            ("no.local", RecordType::A, "rule NoData no", "rule NoData no"),
            ("localhost", RecordType::A, "rule Refused no", "rule NxDomain no"),
            ("x.localhost", RecordType::A, "special answered 1", "special answered 1"),
            ("x.localhost", RecordType::ANY, "special answered 0", "special answered 0"),
            ("_dns.resolver.arpa", RecordType::SVCB, "special answered 0", "special answered 0"),
            ("1.0.20.10.in-addr.arpa", RecordType::PTR, "special NxDomain", "special NxDomain"),
            ("20.10.in-addr.arpa", RecordType::A, "special NxDomain", "special NxDomain"),
            ("10.in-addr.arpa", RecordType::A, "special answered 0", "special answered 0"),
            // Served here: as any other name. Above what is served: it exists.
            ("www.corp.internal", RecordType::A, "permit wide", "permit wide"),
            ("www.corp.internal", RecordType::TXT, "type NoData wide", "observe type wide"),
            ("www.other.internal", RecordType::A, "special NxDomain", "special NxDomain"),
            ("internal", RecordType::A, "special NoData", "special NoData"),
            ("local", RecordType::A, "special NoData", "special NoData"),
            // By which proxies are found: what is exact is heard, also below what is served here.
            ("wpad.example.com", RecordType::A, "special NxDomain", "observe special"),
            ("wpad.corp.internal", RecordType::A, "special NxDomain", "observe special"),
            ("wpad.local", RecordType::A, "special NxDomain", "observe special"),
            ("isatap", RecordType::A, "special NxDomain", "observe special"),
            ("wpad.eu.example.com", RecordType::A, "permit exact", "permit exact"),
            ("wpad.eu.example.com", RecordType::PTR, "type NoData exact", "observe type exact"),
            ("wpadx.example.com", RecordType::A, "permit wide", "permit wide"),
            // The bypass list: what is exact and overrides is heard.
            ("mask.icloud.com", RecordType::A, "special NxDomain", "observe special"),
            ("mask-h2.icloud.com", RecordType::A, "permit exact", "permit exact"),
            ("mask-h2.icloud.com", RecordType::PTR, "type NoData exact", "observe type exact"),
            ("x.mask-h2.icloud.com", RecordType::A, "special NxDomain", "observe special"),
            ("dns.google", RecordType::A, "special NoData", "observe special"),
            ("deep.dns.google", RecordType::A, "permit exact", "permit exact"),
            ("dns.quad9.net", RecordType::A, "rule Refused no", "observe rule no"),
            // The root's servers.
            (".", RecordType::NS, "special answered 0", "special answered 0"),
            (".", RecordType::A, "default NoData", "observe default"),
        ];
        for (asked, kind, enforced, observed) in rows {
            assert_eq!(verdict(&policy, "192.0.2.1", asked, kind, NOW), enforced, "{asked} {kind}");
            assert_eq!(verdict(&policy, "198.51.100.1", asked, kind, NOW), observed, "{asked} {kind} observed");
        }
    }
}
