//! From evidence to rules: one for what is alike below each registered name.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::doubt::{Doubt, Doubts};
use super::evidence::{Evidence, day};
use super::{Learned, Learner, MAX_NAMES, Table, shown};
use crate::draft::names::Names;
use crate::draft::text::Ids;
use crate::draft::{Draft, Entry, Heading, Rule};
use crate::net::Services;
use crate::policy::{Action, Objection, Vetter, registrable};
use crate::record::RecordType;

/// The most ports that one rule may open.
const MAX_PORTS: usize = 128;

/// Types that rules may name beside A and AAAA; HTTPS and SVCB are `https`. Others are rare, and ways to carry data.
pub(super) const TYPES: &[RecordType] = &[
    RecordType::TXT,
    RecordType::MX,
    RecordType::SRV,
    RecordType::CAA,
    RecordType::NAPTR,
    RecordType::PTR,
    RecordType::NS,
    RecordType::SOA,
    RecordType::CNAME,
    RecordType::TLSA,
    RecordType::SSHFP,
    RecordType::URI,
    RecordType::DS,
    RecordType::DNSKEY,
];

/// A line of a rule to be.
pub(super) struct Line {
    pub(super) pattern: String,
    pub(super) comment: String,
    pub(super) wild: bool,
    pub(super) queries: u64,
    pub(super) names: usize,
    pub(super) types: BTreeSet<RecordType>,
    pub(super) https: bool,
    pub(super) ports: Vec<Services>,
}

/// A name with what is known of it.
pub(super) type Member<'a> = (&'a [u8], &'a Evidence);

/// One segment while it is proposed for.
pub(super) struct Segment<'a> {
    pub(super) table: &'a Table,
    pub(super) vetter: &'a Vetter,
    /// The log has several days.
    pub(super) days: bool,
    pub(super) doubts: Doubts<'a>,
    /// By registered name.
    pub(super) lines: BTreeMap<String, Vec<Line>>,
    /// Suffixes without a wildcard because anyone may have a name there, with how many names are below.
    pub(super) tenants: BTreeMap<String, usize>,
    pub(super) taken: HashSet<&'a [u8]>,
}

pub(super) fn propose(learner: Learner, source: &str) -> Learned {
    let vetter = Vetter::default();
    let first = learner.first.unwrap_or_default();
    let days = day(learner.last) > day(first);
    let mut draft = Draft::default();
    let mut learned = Learned { draft: Draft::default(), queries: 0, covered: 0, lines: 0, names: 0 };
    // What one suffix may carry of wildcards counts over all rules.
    let mut patterns = Names::new(&vetter, Action::Allow);
    let mut ids = Ids::default();
    for (name, table) in &learner.segments {
        if !table.observed && !learner.terms.all {
            if learner.terms.segment.is_some() {
                draft.notes.push(format!(
                    "the segment {name} did not observe: {} queries were allowed and {} refused; what an observe segment \
                     let pass is learned, or with --all what rules allow",
                    table.fates.allowed, table.fates.refused
                ));
            }
            continue;
        }
        let mut segment = Segment {
            table,
            vetter: &vetter,
            days,
            doubts: Doubts::new(),
            lines: BTreeMap::new(),
            tenants: BTreeMap::new(),
            taken: HashSet::new(),
        };
        segment.wildcards(&mut patterns);
        segment.exact();
        learned.queries += table.learned;
        for line in segment.lines.values().flatten() {
            learned.covered += line.queries;
            learned.lines += 1;
            learned.names += line.names;
        }
        let tail = segment.tail(name);
        let heading = Heading {
            segments: vec![name.to_string()],
            id: learner.terms.id.clone().unwrap_or_else(|| name.to_string()),
        };
        draft.rules.extend(segment.rules(&heading, &mut ids));
        draft.tail.extend(tail);
    }
    if learner.past > 0 {
        draft.notes.push(format!(
            "{} queries were for names beyond the first {MAX_NAMES}: they are not looked at",
            learner.past
        ));
    }
    head(&learner, source, &learned, &mut draft);
    Learned { draft, ..learned }
}

fn head(learner: &Learner, source: &str, learned: &Learned, draft: &mut Draft) {
    let first = learner.first.unwrap_or_default();
    let [from, to] = [first, learner.last].map(|at| at.to_string().chars().take(10).collect::<String>());
    draft.head = vec![
        format!(
            "Learned from {source}: {} queries of {} clients, {from} … {to}.",
            learned.queries,
            learner.clients.count()
        ),
        format!(
            "{} lines allow {} of the names that were asked for, and {} of those queries.",
            learned.lines,
            learned.names,
            percent(learned.covered, learned.queries)
        ),
        String::new(),
        "Read every line before it is used: these clients asked for it, whatever made them ask.".to_owned(),
        "Ports are those that rules opened before; where no rule did, they are tcp/443, the default: no record says by"
            .to_owned(),
        "which port a client connected.".to_owned(),
    ];
    if day(learner.last) == day(first) && learned.queries > 0 {
        draft.head.push(
            "The log is of a single day: no wildcard is proposed, and names that are needed may be missing.".to_owned(),
        );
    }
}

/// A share in per cent with one digit, never rounded up to all.
fn percent(part: u64, whole: u64) -> String {
    let tenths = part.saturating_mul(1000).checked_div(whole).unwrap_or(0);
    format!("{}.{} %", tenths / 10, tenths % 10)
}

impl<'a> Segment<'a> {
    /// Proposes names as they are, and says why not.
    fn exact(&mut self) {
        let mut names: Vec<Member<'a>> = self.table.names.iter().map(|(name, evidence)| (&**name, evidence)).collect();
        names.sort_unstable_by_key(|(name, _)| *name);
        let crowds = self.crowds(&names);
        for (name, evidence) in names {
            if self.taken.contains(name) {
                continue;
            }
            let text = shown(name);
            let doubt = self.doubt(name, &text, evidence, &crowds).map_or_else(
                || match self.vetter.vet(&text, Action::Allow) {
                    Ok(pattern) => Ok(pattern.to_string()),
                    // It was left to rules, so it is served here.
                    Err(Objection::Special(_)) => Ok(text.clone()),
                    Err(_) => Err(Doubt::Reserved),
                },
                Err,
            );
            match doubt {
                Err(doubt) => self.doubts.entry(doubt).or_default().push((name, evidence)),
                Ok(pattern) => {
                    let line = Line {
                        pattern,
                        comment: evidence.to_string(),
                        wild: false,
                        queries: evidence.queries,
                        names: 1,
                        types: rule_types(evidence),
                        https: evidence.types.iter().any(|kind| kind.is_service()),
                        ports: joined([evidence]),
                    };
                    self.put(name, line);
                }
            }
        }
    }

    pub(super) fn put(&mut self, name: &[u8], line: Line) {
        self.lines.entry(shown(registrable(name).unwrap_or(name))).or_default().push(line);
    }

    /// One rule for what is alike below each registered name.
    fn rules(self, heading: &Heading, ids: &mut Ids) -> Vec<Rule> {
        let mut rules = Vec::new();
        for (owner, lines) in self.lines {
            let mut alike: BTreeMap<(BTreeSet<RecordType>, Vec<Services>), Vec<Line>> = BTreeMap::new();
            for line in lines {
                alike.entry((line.types.clone(), line.ports.clone())).or_default().push(line);
            }
            for ((types, ports), mut lines) in alike {
                lines.sort_by(|a, b| b.wild.cmp(&a.wild).then_with(|| a.pattern.cmp(&b.pattern)));
                let https = lines.iter().any(|line| line.https);
                let queries: u64 = lines.iter().map(|line| line.queries).sum();
                let mut rule = Rule::new(ids.take(&format!("{}-{owner}", heading.id)), Action::Allow, heading);
                rule.comment = vec![format!("{owner}: {queries} queries.")];
                rule.names =
                    lines.into_iter().map(|line| Entry { name: line.pattern, comment: line.comment }).collect();
                (rule.types, rule.https, rule.ports) = (types.into_iter().collect(), https, ports);
                rules.push(rule);
            }
        }
        rules
    }
}

/// `types` of the rule for a name: none where A and AAAA will do.
fn rule_types(evidence: &Evidence) -> BTreeSet<RecordType> {
    let own: BTreeSet<RecordType> = evidence.types.iter().copied().filter(|kind| TYPES.contains(kind)).collect();
    if own.is_empty() {
        return own;
    }
    let addresses = evidence.types.iter().any(|kind| kind.is_address() || kind.is_service());
    own.into_iter().chain(addresses.then_some([RecordType::A, RecordType::AAAA]).into_iter().flatten()).collect()
}

/// What rules opened for names, in order; nothing where that is more than one rule may open.
pub(super) fn joined<'e>(all: impl IntoIterator<Item = &'e Evidence>) -> Vec<Services> {
    let ports: BTreeSet<Services> = all.into_iter().flat_map(|evidence| evidence.ports.iter().copied()).collect();
    let count: usize = ports.iter().map(|ports| ports.count()).sum();
    if count > MAX_PORTS { Vec::new() } else { ports.into_iter().collect() }
}
