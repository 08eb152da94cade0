//! One zone as a map of names, and the search in it (RFC 1034 §4.3.2, RFC 4592).
//!
//! Every name that exists has a node: owners of records and the names between them and the apex (empty
//! non-terminals). A search is one probe for the name, one per ancestor until one exists, and one for the wildcard:
//! it depends on the labels of the question and never on the size of the zone.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use crate::name::{Name, NameBuf, ancestors};
use crate::record::{AddressTrust, Origin, Record, RecordType};

use super::delegation::Delegations;
use super::entry::Fault;
use super::master::{Line, Master};

/// The most octets of one RRset, uncompressed. What is left of a message's 65,535 holds the header, the question, a
/// chain of eight CNAMEs (520 octets each) and the EDNS options.
const MAX_SET: usize = 60_000;

/// The records of one type at a name.
#[derive(Debug)]
struct RrSet {
    kind: RecordType,
    records: Box<[Record]>,
}

/// What a name owns, sorted by type; nothing, at an empty non-terminal.
#[derive(Debug, Default)]
pub(super) struct Node(Vec<RrSet>);

impl Node {
    fn set(&self, kind: RecordType) -> Option<&[Record]> {
        let at = self.0.binary_search_by_key(&kind, |set| set.kind).ok()?;
        self.0.get(at).map(|set| &*set.records)
    }
}

/// One zone, checked.
#[derive(Debug)]
pub(super) struct Zone {
    /// As an answer names it.
    pub(super) origin: Origin,
    /// The SOA as a negative answer carries it, its TTL bounded by its MINIMUM.
    pub(super) negative: Record,
    nodes: HashMap<Name, Node, foldhash::fast::RandomState>,
    /// The names where delegations begin.
    pub(super) cuts: Vec<Name>,
    /// What is known at and below them: name servers and their addresses.
    delegated: HashMap<Name, Node, foldhash::fast::RandomState>,
}

/// What a zone has for a question.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found<'z> {
    /// Records of the type asked for; where `synthesized`, the owner is the question's name (RFC 4592 §2.1).
    Records { records: &'z [Record], synthesized: bool },
    /// A CNAME in place of the type asked for.
    Alias { record: &'z Record, synthesized: bool },
    /// The name exists, or a wildcard stands for it, but not with this type.
    NoData,
    /// There is no such name.
    NoName,
}

impl Zone {
    pub(super) const fn apex(&self) -> &Name {
        &self.negative.name
    }

    /// The records of `kind` at `name`, which is at or below a delegation.
    pub(super) fn delegated(&self, name: &Name, kind: RecordType) -> Option<&[Record]> {
        self.delegated.get(name)?.set(kind)
    }

    /// Whether `name` is at or below a delegation and something is known there.
    pub(super) fn delegates(&self, name: &Name) -> bool {
        self.delegated.contains_key(name)
    }

    /// Looks for `name`, which is at or below the apex.
    pub(super) fn find(&self, name: &[u8], kind: RecordType) -> Found<'_> {
        match closest(name, |name| self.nodes.get(name)) {
            Some((node, synthesized)) => match (node.set(kind), node.set(RecordType::CNAME)) {
                (Some(records), _) => Found::Records { records, synthesized },
                (None, Some([record, ..])) if kind != RecordType::ANY => Found::Alias { record, synthesized },
                _ => Found::NoData,
            },
            None => Found::NoName,
        }
    }

    /// How many names own records, and how many records there are.
    pub(super) fn count(&self) -> (usize, usize) {
        let sizes = self
            .nodes
            .values()
            .chain(self.delegated.values())
            .map(|node| node.0.iter().map(|set| set.records.len()).sum::<usize>());
        sizes.filter(|records| *records > 0).fold((0, 0), |(names, all), records| (names + 1, all + records))
    }
}

/// The node that answers for `name`: its own, or the wildcard's at its closest encloser (then `true`).
fn closest<'z>(name: &[u8], get: impl Fn(&[u8]) -> Option<&'z Node>) -> Option<(&'z Node, bool)> {
    if let Some(node) = get(name) {
        return Some((node, false));
    }
    // RFC 4592 §3.3.1: "The source of synthesis is defined in the context of a query process as that wildcard domain
    // name immediately descending from the closest encloser, provided that this wildcard domain name exists." So the
    // search ends at the first ancestor that exists, whether a wildcard is below it or not.
    let encloser = ancestors(name).skip(1).find(|ancestor| get(ancestor).is_some())?;
    let mut wildcard = NameBuf::new();
    wildcard.push_label(b"*").ok()?;
    crate::name::labels(encloser).try_for_each(|label| wildcard.push_label(label)).ok()?;
    get(&wildcard).map(|node| (node, true))
}

/// Checks a file's records and builds its zone. Every fault is noted; with one of them, what is returned may lack
/// records and is good for finding more mistakes only. `None` without an SOA.
pub(super) fn build(master: &Master, faults: &mut Vec<Fault>) -> Option<Zone> {
    let apex = &master.apex;
    let is_soa = |line: &&Line| line.record.kind == RecordType::SOA;
    let astray = master.lines.iter().find(is_soa).filter(|line| line.record.name != *apex);
    if let Some(Line { at, record }) = astray {
        let fact = format!("the SOA record is at {}, the zone's origin is {apex}", record.name);
        let remedy = format!("begin the file with $ORIGIN {0}. or name it {0}.zone", record.name);
        faults.push(Fault::new(*at, fact, remedy));
        return None;
    }
    let mut soa: Option<&Record> = None;
    let mut owners: HashMap<&Name, Vec<&Line>, foldhash::fast::RandomState> = HashMap::default();
    for line in &master.lines {
        match refusal(&line.record, apex, soa.is_some()) {
            Some((fact, remedy)) => faults.push(Fault::new(line.at, fact, remedy)),
            None => {
                if line.record.kind == RecordType::SOA {
                    soa = Some(&line.record);
                }
                owners.entry(&line.record.name).or_default().push(line);
            }
        }
    }
    let delegations = Delegations::new(apex, &owners);
    delegations.check(&owners, faults);
    let mut nodes: HashMap<Name, Node, _> = HashMap::with_capacity_and_hasher(owners.len(), <_>::default());
    let mut delegated: HashMap<Name, Node, _> = HashMap::default();
    for (name, lines) in owners {
        let cut = delegations.above(name);
        if cut.is_some() {
            delegated.insert(name.clone(), node(&lines, faults));
        }
        if cut.is_some_and(|cut| cut != name) {
            continue;
        }
        // RFC 4592 §2.2.2: "Empty non-terminals are domain names that own no resource records but have subdomains
        // that do."
        let mut parent = name.parent().filter(|_| name != apex);
        while let Some(between) = parent {
            parent = between.parent().filter(|_| between != *apex);
            match nodes.entry(between) {
                Entry::Occupied(_) => break,
                Entry::Vacant(vacant) => _ = vacant.insert(Node::default()),
            }
        }
        if cut.is_none() {
            nodes.insert(name.clone(), node(&lines, faults));
        }
    }
    let Some(soa) = soa else {
        if !master.tried_soa {
            let remedy = "begin the file with: @ SOA ns1 hostmaster ( 1 1h 15m 7d 1m ) and a $TTL above it";
            faults.push(Fault::new(0, format!("the zone {apex} has no SOA record"), remedy));
        }
        return None;
    };
    // RFC 2308 §3: "The TTL of this record is set from the minimum of the MINIMUM field of the SOA record and the TTL
    // of the SOA itself".
    let negative = Record { ttl: soa.ttl.min(soa.soa_minimum().unwrap_or(soa.ttl)), ..soa.clone() };
    let origin = Origin { name: Arc::from(apex.to_string()), trust: AddressTrust::Zone };
    Some(Zone { origin, negative, nodes, cuts: delegations.into_cuts(), delegated })
}

/// Why a record cannot be served from the zone `apex`.
fn refusal(record: &Record, apex: &Name, has_soa: bool) -> Option<(String, &'static str)> {
    let Record { name, kind, .. } = record;
    let said = |fact, remedy| Some((fact, remedy));
    if *kind == RecordType::SOA && has_soa {
        return said(format!("the zone {apex} has a second SOA record"), "keep one of them");
    }
    if !name.is_within(apex) {
        let remedy = "end relative names without a dot, or move the record to its zone's own file";
        return said(format!("{name} is outside the zone {apex}"), remedy);
    }
    None
}

/// Groups one name's records into sets and checks them together.
fn node(lines: &[&Line], faults: &mut Vec<Fault>) -> Node {
    let mut sets: BTreeMap<RecordType, Vec<&Line>> = BTreeMap::new();
    for line in lines {
        sets.entry(line.record.kind).or_default().push(line);
    }
    let alone = sets.len() == 1;
    let sets = sets.into_iter().map(|(kind, mut set)| {
        // RFC 2181 §5: "It is meaningless for two records to ever have label, class, type and data all equal […]
        // servers should suppress such duplicates".
        let mut seen = HashSet::new();
        let first_ttl = set.first().map(|line| line.record.ttl);
        for line in &set {
            // RFC 2181 §5.2: "the TTLs of all RRs in an RRSet must be the same."
            if Some(line.record.ttl) != first_ttl {
                let fact =
                    format!("the TTL of this {kind} differs from that of the first {kind} at {}", line.record.name);
                faults.push(Fault::new(line.at, fact, "give all records of one name and type the same TTL"));
            }
        }
        set.retain(|line| seen.insert(&line.record.data));
        if let (RecordType::CNAME, [first, rest @ ..]) = (kind, set.as_slice()) {
            if !alone {
                let fact = format!("{} has a CNAME and other records", first.record.name);
                faults.push(Fault::new(first.at, fact, "remove the CNAME or the others (RFC 1034 §3.6.2)"));
            }
            for line in rest {
                let fact = format!("{} has more than one CNAME", line.record.name);
                faults.push(Fault::new(line.at, fact, "keep one of them (RFC 2181 §10.1)"));
            }
        }
        let size: usize = set.iter().map(|line| wire_size(&line.record)).sum();
        if let (true, [first, ..]) = (size > MAX_SET, set.as_slice()) {
            let fact = format!("the {kind} records of {} take {size} octets; {MAX_SET} is the most", first.record.name);
            faults.push(Fault::new(first.at, fact, "spread them over several names"));
        }
        RrSet { kind, records: set.into_iter().map(|line| line.record.clone()).collect() }
    });
    Node(sets.collect())
}

/// The octets of a record in a message, uncompressed; a wildcard's owner is as long as a question's name may be.
fn wire_size(record: &Record) -> usize {
    let wildcard = record.name.labels().next() == Some(b"*");
    let owner = if wildcard { crate::name::MAX_WIRE } else { record.name.as_wire().len() };
    owner + 10 + record.data.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zones::include::Texts;
    use crate::zones::{Source, master};
    use proptest::prelude::*;
    use std::cell::Cell;

    fn zone(lines: &str) -> Zone {
        let text = format!("$TTL 1h\n@ SOA ns hostmaster 1 1h 15m 7d 5m\n{lines}");
        let mut faults = Vec::new();
        let source = Source { file: Arc::from("example.org.zone"), text };
        let mut texts = Texts::new(&source, &|path| panic!("{path:?} is not to be opened"));
        let master = master::read(&source, "example.org".parse().unwrap(), None, &mut texts, &mut faults).unwrap();
        let zone = build(&master, &mut faults);
        assert!(faults.is_empty(), "{faults:?}");
        zone.unwrap()
    }

    #[test]
    fn a_search_does_not_grow_with_the_zone() {
        let deep = format!("{}h5.example.org", "a.".repeat(100));
        for names in [10, 100_000] {
            let zone = zone(&(0..names).map(|n| format!("h{n} A 192.0.2.1\n")).collect::<String>());
            assert_eq!(zone.count(), (names + 1, names + 1));
            for (question, probes) in [
                ("h5.example.org", 1),
                ("missing.example.org", 3),
                ("a.missing.example.org", 4),
                ("a.b.h5.example.org", 4),
                (&deep, 102),
            ] {
                let count = Cell::new(0);
                let name: Name = question.parse().unwrap();
                closest(name.as_wire(), |name| {
                    count.set(count.get() + 1);
                    zone.nodes.get(name)
                });
                assert_eq!(count.get(), probes, "{question} among {names}");
            }
        }
    }

    /// What RFC 4592 defines, said with scans over the owners.
    fn expected<'o>(owners: &'o [Name], question: &Name) -> Result<&'o Name, &'static str> {
        let exists = |name: &Name| owners.iter().any(|owner| owner.is_within(name));
        let owner = |name: &Name| owners.iter().find(|owner| *owner == name).ok_or("no data");
        if exists(question) {
            return owner(question);
        }
        let mut encloser = question.parent().unwrap();
        while !exists(&encloser) {
            encloser = encloser.parent().unwrap();
        }
        let wildcard = encloser.child(b"*").unwrap();
        if exists(&wildcard) { owner(&wildcard) } else { Err("no name") }
    }

    proptest! {
        #[test]
        fn finds_what_the_definitions_say(
            owners in prop::collection::vec("((a|b|\\*)\\.){1,4}", 0..8),
            questions in prop::collection::vec("((a|b|c|\\*)\\.){0,6}", 1..30),
        ) {
            let name = |prefix: &String| format!("{prefix}example.org").parse::<Name>().unwrap();
            let zone = zone(&owners.iter().map(|owner| format!("{owner}example.org. A 192.0.2.1\n")).collect::<String>());
            let mut owners: Vec<_> = owners.iter().map(name).collect();
            owners.push("example.org".parse().unwrap());
            for question in questions.iter().map(name) {
                let kind = if question.label_count() == 2 { RecordType::SOA } else { RecordType::A };
                let found = match zone.find(question.as_wire(), kind) {
                    Found::Records { records: [record], synthesized } => {
                        prop_assert_eq!(synthesized, record.name != question);
                        Ok(&record.name)
                    }
                    Found::NoData => Err("no data"),
                    Found::NoName => Err("no name"),
                    other => return Err(TestCaseError::fail(format!("{other:?}"))),
                };
                prop_assert_eq!(found, expected(&owners, &question), "{}", question);
            }
        }
    }
}
