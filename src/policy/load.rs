//! Text to policy: every file is read, every mistake of every file is told at once, and only a policy without any
//! is built.
//!
//! Segments are numbered by name and rules by id, so that the order of files never matters.

use std::collections::HashMap;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::Policy;
use super::asker::Forwarder;
use super::demand::{self, Caps};
use super::explain::Sentences;
use super::group::Groups;
use super::guard::Guard;
use super::index::{self, Audience};
use super::link::{Choices, Linker};
use super::overlap;
use super::reserved::Reserved;
use super::rule::{self, Rule, RuleDraft};
use super::runtime::Rules;
use super::segment::{self, Segment};
use super::sites::{Site, Sites};
use crate::document::{Document, Found, Mistake, Place, Table};
use crate::net::{Prefix, parse_prefix};

/// One policy file: its name as the operator knows it, and its text.
#[derive(Clone, Debug)]
pub struct Source {
    /// In mistakes and in [`Rule::place`].
    pub file: String,
    /// TOML.
    pub text: String,
}

/// What a policy must know of the rest of the configuration.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Who asks for others.
    pub forwarders: Vec<Forwarder>,
    /// Clients may show certificates.
    pub client_ca: bool,
    /// Addresses of this node and of the upstream servers: never granted.
    pub own_addresses: Vec<Prefix>,
    /// What the operator never wants granted.
    pub never_grant: Vec<Prefix>,
    /// Local zones, and the zones of upstreams: special-use names may be theirs.
    pub sites: Vec<Site>,
    /// How much may be open; `None`: nothing is said of what will not fit.
    pub caps: Option<Caps>,
    /// Where the names of files begin, which is no part of the revision: the same files have the same one wherever they lie.
    pub directory: String,
}

/// A value with its place, which outlives the document.
#[derive(Clone)]
pub(super) struct Placed<T> {
    pub(super) value: T,
    pub(super) place: Place,
}

/// Reads and checks all files together, one after the other: a file's text is let go before the next one is taken.
///
/// # Errors
/// Every mistake of every file, by place; nothing is built where there is one.
pub fn compile(files: impl IntoIterator<Item = Source>, settings: &Settings) -> Result<Policy, Vec<Mistake>> {
    let mut linker = Linker::new(Arc::new(Guard::new(settings)), settings.client_ca, false);
    let mut segments = Vec::new();
    let mut drafts: Vec<RuleDraft> = Vec::new();
    let mut index = index::Reader::default();
    let mut reserved = Reserved::new(&mut index);
    let mut revision = Revision::default();
    let mut groups = Groups::default();
    let mut read = 0;
    let mut rules_of = |document: Document, root: Table, groups: &Groups, linker: &mut Linker| {
        for table in root.tables("rule") {
            drafts.extend(rule::read(table, read, &mut index, &reserved, groups));
            read += 1;
        }
        root.finish(&[]);
        linker.mistakes.extend(document.take_mistakes());
    };
    // Files that name groups are read when all groups are known.
    let mut waiting = Vec::new();
    for source in files {
        revision.add(&source, &settings.directory);
        let waits = Groups::may_be_named_in(&source.text);
        let (document, root) = Document::parse(&source.file, source.text);
        segments.extend(root.tables("segment").into_iter().filter_map(segment::read));
        root.tables("group").into_iter().for_each(|table| groups.read(table));
        if waits {
            waiting.push((document, root));
        } else {
            rules_of(document, root, &groups, &mut linker);
        }
    }
    for (document, root) in waiting {
        rules_of(document, root, &groups, &mut linker);
    }
    linker.warnings.extend(groups.unused());
    let (mut segments, directory) = linker.link_segments(segments);
    reserved.sites = Sites::new(&settings.sites, &segments);
    linker.warn_of_special_names(&drafts, &reserved);
    linker.warn_of_wildcards(&drafts, &reserved.sites);
    let (rules, numbers) = linker.link_rules(drafts, &segments, &mut Choices::new(&segments));
    let directory = linker.link_forwarders(&settings.forwarders, &segments, directory);
    linker.check_warm(&segments, &rules);
    linker.warn_of_idle_segments(&segments, &rules);
    if let Some(caps) = &settings.caps {
        linker.warn_of_warm_demand(caps, &segments, &rules);
    }

    if !linker.mistakes.is_empty() {
        linker.mistakes.sort();
        linker.mistakes.dedup();
        return Err(linker.mistakes);
    }
    spread_networks(&mut segments, &rules);
    let (segments, rules): (Arc<[Segment]>, _) = (segments.into(), Rules::new(rules));
    let index = index.finish(&rules, &numbers);
    linker.warnings.extend(overlap::warnings(&index, &rules));
    linker.warnings.extend(settings.caps.iter().flat_map(|caps| demand::warnings(caps, &index, &rules)));
    linker.warnings.sort();
    Ok(Policy {
        revision: revision.finish(),
        index: Arc::new(index),
        directory: Arc::new(directory),
        guard: linker.guard,
        denials: rules.denials().collect(),
        denied: Arc::new(rules.denied()),
        reserved: Arc::new(reserved),
        sentences: Arc::new(Sentences::new(&segments)),
        warnings: linker.warnings.into(),
        filed: Arc::clone(&segments),
        segments,
        rules,
        placed: HashMap::default(),
        later: None,
    })
}

/// 1 to 63 of `[A-Za-z0-9_.-]`: what segments and rules may be called.
pub(super) fn in_alphabet(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

/// A list of prefixes; `None` where the key is absent.
pub(super) fn read_prefixes(table: &Table, key: &'static str) -> Option<Vec<Placed<Prefix>>> {
    let found = table.strings(key)?;
    Some(found.iter().filter_map(|entry| read_prefix(table.document(), entry)).collect())
}

/// A prefix, or an address as the prefix of it alone.
pub(super) fn read_prefix(document: &Document, found: &Found<String>) -> Option<Placed<Prefix>> {
    let text = &found.value;
    let Some(prefix) = parse_prefix(text) else {
        let fact = format!("\"{text}\" is not a prefix");
        document.note(&found.span, fact, "write \"192.0.2.0/24\", \"2001:db8::/32\" or an address");
        return None;
    };
    if prefix.trunc() != prefix {
        let fact = format!("\"{text}\" has bits set after its length");
        document.note(&found.span, fact, format!("write \"{}\" or \"{}\"", prefix.trunc(), prefix.addr()));
        return None;
    }
    if let (Prefix::V6(six), Some(four)) = (prefix, mapped(&prefix)) {
        let fact = format!("\"{six}\" is IPv4 mapped into IPv6, a form that no address here has");
        document.note(&found.span, fact, format!("write \"{four}\""));
        return None;
    }
    Some(Placed { value: prefix, place: document.place(&found.span) })
}

/// The IPv4 prefix that a prefix of `::ffff:0:0/96` stands for.
fn mapped(prefix: &Prefix) -> Option<Prefix> {
    let Prefix::V6(six) = prefix else { return None };
    let four = six.addr().to_ipv4_mapped()?;
    Prefix::new(four.into(), six.prefix_len().checked_sub(96)?).ok()
}

/// 64 bits of the SHA-256 of the SHA-256 of every file's name and text, in an order of its own.
#[derive(Default)]
struct Revision(Vec<[[u8; 32]; 2]>);

impl Revision {
    fn add(&mut self, source: &Source, directory: &str) {
        let file = source.file.strip_prefix(directory).unwrap_or(&source.file).trim_start_matches('/');
        self.0.push([file, &source.text].map(|text| Sha256::digest(text).into()));
    }

    fn finish(mut self) -> u64 {
        self.0.sort_unstable();
        let hash = Sha256::digest(self.0.as_flattened().as_flattened());
        hash.first_chunk::<8>().map_or(0, |bytes| u64::from_be_bytes(*bytes))
    }
}

/// The revision that the policy of these files has, or would have: they are not read.
#[must_use]
pub fn revision_of(files: impl IntoIterator<Item = Source>, directory: &str) -> u64 {
    let mut revision = Revision::default();
    files.into_iter().for_each(|source| revision.add(&source, directory));
    revision.finish()
}

/// A place in a table as an index of its own type.
pub(super) fn number<T>(index: usize, make: impl Fn(u32) -> T) -> T {
    make(u32::try_from(index).unwrap_or(u32::MAX))
}

/// Gives each segment the networks that static rules open for it.
pub(super) fn spread_networks(segments: &mut [Segment], rules: &[Rule]) {
    for rule in rules.iter().filter(|rule| !rule.networks.is_empty()) {
        let opened = |prefix| rule.ports.iter().map(move |ports| (prefix, *ports, rule.expires));
        let opened: Vec<_> = rule.networks.iter().copied().flat_map(opened).collect();
        match &rule.audience {
            Audience::All => segments.iter_mut().for_each(|segment| segment.networks.extend(&opened)),
            Audience::Listed(listed) => {
                for index in listed.iter() {
                    if let Some(segment) = segments.get_mut(index.0 as usize) {
                        segment.networks.extend(&opened);
                    }
                }
            }
        }
    }
    for segment in segments {
        segment.networks.sort_unstable();
        segment.networks.dedup();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Server;
    use crate::policy::asker::Identity;

    fn source(file: &str, text: &str) -> Source {
        Source { file: file.to_owned(), text: text.to_owned() }
    }

    fn told(files: &[(&str, &str)], settings: &Settings) -> String {
        let files = files.iter().map(|(file, text)| source(file, text));
        let mistakes = compile(files, settings).unwrap_err();
        mistakes.iter().map(|mistake| format!("{mistake}\n")).collect()
    }

    #[test]
    fn the_shipped_example_is_a_policy() {
        let text = include_str!("../../policy/example.toml");
        let policy = compile([source("policy/example.toml", text)], &Settings::default()).unwrap();
        assert_eq!(policy.rules_len(), 4);
        assert!(policy.warnings().is_empty(), "{:?}", policy.warnings());
        assert!(policy.asker("127.0.0.1".parse().unwrap()).is_some());
        assert!(policy.asker("::1".parse().unwrap()).is_some());
        assert_eq!(policy.segments()[0].tags_json.as_ref(), r#"{"environment":"development","service":"example"}"#);
    }

    #[test]
    fn every_mistake_of_every_file_is_told_at_once() {
        let one = r#"
[[segment]]
name    = "a b"
[[segment]]
name    = "office"
clients = ["192.0.2.0/24", "192.0.2.7/24", "nowhere", "::ffff:192.0.2.0/120"]
mode    = "observe"
scope   = "all"
refusal = "nxdomian"
expires = 1
connects_from = ["client", "198.51.100.1"]
[[segment]]
name    = "till"
clients = ["192.0.2.0/24"]
mode    = "learn"
[[rule]]
id       = "wide"
action   = "allow"
segments = ["office", "attic"]
names    = ["*", "*.com", "*.github.io", "a.*.example.com", "api.example.com", "API.example.com."]
types    = ["A", "ANY", "HTTPS", "BOGUS"]
ports    = ["tcp/1-200", "sctp/1"]
private  = ["127.0.0.0/8", "10.0.0.0/8"]
cname    = "maybe"
hold     = "2d"
expires  = 2026-12-31T00:00:00Z
https    = "strip"
[[segment]]
name    = "lan"
filter_aaaa = "yes"
"#;
        let two = r#"
[[segment]]
name    = "office"
clients = ["203.0.113.0/24"]
[[rule]]
id       = "wide"
action   = "deny"
segments = ["*"]
names    = ["**.zip"]
ports    = ["tcp/80"]
[[rule]]
id       = "static"
action   = "allow"
where    = { floor = "9" }
networks = ["203.0.113.0/24"]
types    = ["A"]
[[rule]]
id       = "mixed"
action   = "permit"
names    = ["example.org"]
networks = ["203.0.113.0/24"]
[[rule]]
action   = "deny"
segments = ["*"]
names    = []
https    = "filter"
[[rule]]
id       = "ways-round"
action   = "allow"
segments = ["*"]
names    = ["x.onion", "dns.google", "*.cloudflare-dns.com", "**.internal"]
guard    = "off"
[[rule]]
id       = "no-way-round"
action   = "deny"
segments = ["*"]
names    = ["x.onion", "dns.google"]
guard    = "override"
[[rule]]
id       = "all-ways-round"
action   = "allow"
segments = ["*"]
names    = ["**.example.com"]
guard    = "override"
"#;
        let place = Place { file: "outgate.toml".into(), line: 7, column: 1 };
        let forwarder = |name: &str, segment: &str| Forwarder {
            name: name.to_owned(),
            addresses: vec!["192.0.2.53/32".parse().unwrap()],
            identity: Identity::None,
            segment: Some(segment.to_owned()),
            place: place.clone(),
        };
        // Who names its clients may itself be a client.
        let probes = Forwarder {
            identity: Identity::Subnet,
            addresses: vec!["192.0.2.54/32".parse().unwrap()],
            ..forwarder("dnsdist", "till")
        };
        let unknown = Forwarder { identity: Identity::Proxy, ..forwarder("edge", "attic") };
        let settings = Settings {
            forwarders: vec![forwarder("coredns", "cluster"), forwarder("relay", "till"), probes, unknown],
            never_grant: vec!["10.0.0.0/8".parse().unwrap()],
            ..Settings::default()
        };
        let expected = include_str!("mistakes.txt");
        let told = told(&[("one.toml", one), ("two.toml", two)], &settings);
        assert_eq!(told, expected, "\n{told}");
    }

    #[test]
    fn a_suffix_carries_so_many_globs_and_no_more() {
        let globs = |count| (0..count).map(|n| format!("\"a{n}*.example.org\"")).collect::<Vec<_>>().join(", ");
        let rule = |count| {
            format!(
                "[[segment]]\nname = \"s\"\n[[rule]]\nid = \"r\"\naction = \"allow\"\nsegments = [\"*\"]\nnames = [{}]\n",
                globs(count)
            )
        };
        compile([source("a.toml", &rule(256))], &Settings::default()).unwrap();
        let told = told(&[("a.toml", &rule(300))], &Settings::default());
        let expected = "a.toml:3:1: more than 256 patterns with `*` inside a label are on example.org\n  write fewer and \
                        wider ones, or whole names\n";
        assert_eq!(told, expected);
    }

    #[test]
    fn says_what_of_a_rule_with_an_end_or_for_single_clients_or_networks_cannot_be() {
        let text = r#"
[[segment]]
name    = "office"
clients = ["192.0.2.0/24"]
[[segment]]
name    = "hall"
clients = ["198.51.100.0/24"]
scope   = "segment"
[[rule]]
id       = "some"
action   = "allow"
segments = ["*"]
names    = ["a.example.com"]
clients  = ["198.51.100.1"]
expires  = "2027-01-01"
[[rule]]
id       = "bad"
action   = "deny"
segments = ["office"]
networks = ["203.0.113.66"]
[[rule]]
id       = "worse"
action   = "deny"
segments = ["*"]
names    = ["b.example.com"]
networks = []
clients  = []
[[rule]]
id       = "warm"
action   = "allow"
segments = ["office"]
names    = ["c.example.com"]
clients  = ["192.0.2.1"]
warm     = true
"#;
        let told = told(&[("a.toml", text)], &Settings::default());
        let expected = r#"a.toml:12:12: the rule some is for single clients, and the segment hall (a.toml:5:1) opens for everyone in it
  leave that segment out, or remove `clients`
a.toml:15:12: `expires` is a string
  write expires = 2026-12-31T00:00:00Z
a.toml:19:12: the rule bad denies networks to some segments only
  write segments = ["*"]; what no rule allows is closed to the others already
a.toml:25:12: `names` beside `networks`
  make it a rule of its own
a.toml:26:12: `networks` is empty
  name at least one, or remove it
a.toml:27:12: `clients` in a rule for `networks`: it is for all
  remove it
a.toml:27:12: `clients` is empty
  name at least one, or remove it
a.toml:33:12: `clients` beside `warm`, which opens for whole segments
  remove one
"#;
        assert_eq!(told, expected, "\n{told}");
    }

    #[test]
    fn two_segments_may_not_share_a_number_in_the_kernel() {
        // A known collision of 32-bit FNV-1a.
        let text = "[[segment]]\nname = \"costarring\"\n[[segment]]\nname = \"liquid\"\n";
        let told = told(&[("a.toml", text)], &Settings::default());
        let expected = "a.toml:3:1: the names liquid and costarring (a.toml:1:1) share the number 0x5e4daa9d in the \
                        kernel\n  rename one\n";
        assert_eq!(told, expected);
    }

    #[test]
    fn the_order_of_files_changes_nothing_but_a_word_changes_the_revision() {
        let one = source("1.toml", "[[segment]]\nname = \"a\"\n");
        let two = source("2.toml", "[[segment]]\nname = \"b\"\n");
        let of = |files: &[Source]| compile(files.iter().cloned(), &Settings::default()).unwrap().revision();
        assert_eq!(of(&[one.clone(), two.clone()]), of(&[two.clone(), one.clone()]));
        assert_ne!(of(std::slice::from_ref(&one)), of(&[two]));
        assert_ne!(of(std::slice::from_ref(&one)), of(&[source("1.toml", &format!("{} ", one.text))]));
    }

    #[test]
    fn warns_of_what_is_no_mistake() {
        let text = r#"
[[segment]]
name = "idle"
[[segment]]
name = "busy"
[[rule]]
id = "r"
action = "allow"
segments = ["busy"]
names = ["example.org", "printer.local", "**.corp.internal", "**.internal"]
private = ["10.0.0.0/8"]
"#;
        let apex = "dev.corp.internal".parse().unwrap();
        let settings = Settings {
            own_addresses: vec!["10.0.0.1/32".parse().unwrap()],
            sites: vec![Site { apex, server: Server::Zone }],
            ..Settings::default()
        };
        let policy = compile([source("a.toml", text)], &settings).unwrap();
        let warnings: Vec<_> = policy.warnings().iter().map(|warning| warning.said.fact.clone()).collect();
        let own = "`private` 10.0.0.0/8 holds 10.0.0.1/32, an address of this node or its resolvers (10.0.0.1/32, \
                   outgate.toml): that stays closed";
        let idle = "no rule names the segment idle: everything is refused to it";
        let local = "printer.local is allowed and stays refused: local is a special-use name, never asked upstream";
        assert_eq!(warnings, [idle, local, own]);
    }
}
