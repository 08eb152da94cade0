//! [`compare`]: what two policies decide differently, said once for all names that share the difference.
//!
//! - The names are parted by the patterns of both policies: those that rules name and those that they except. Names that
//!   the same patterns match are decided alike, so one name of each part is decided under both policies, by the function
//!   that decides queries. Only parts that a changed pattern touches are looked at.
//! - A pattern stands for those of its names that no nearer pattern of a rule for the segment names or excepts.
//! - Policies of files are compared: what was laid over them while a node ran is not looked at.
//! - A segment stands for those of its clients that no rule names (`clients`).
//! - Rules that have ended say nothing; those that will are not those that will not.
//! - The rules decide, not what becomes of their word: `mode`, `filter_aaaa` and `refusal` of a segment are told once, as
//!   changes of the segment. An id, an owner, a reason or a ticket decides nothing.
//! - `compare(a, a)` is empty. What could not be looked at is told: [`Comparison::left_out`].

mod changed;
mod classes;
mod globs;
mod opens;
mod parts;
mod question;
mod segments;
mod summary;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use self::changed::Changed;
use self::classes::Classes;
use self::opens::{Part, beyond, of_all, plain, written};
use super::decide::{Case, Rules, Ruling};
use super::{Action, Policy, Reason, Rule, RuleIndex};
use crate::document::Place;
use crate::name::NameBuf;
use crate::net::{Prefix, Services};
use crate::record::RecordType;
use crate::time::Wall;
pub use question::compare_question;
pub use summary::{Listed, Summary};

/// Names that are decided before the rest is given up: some ten seconds. Only a change for very many names in very many
/// segments that have rules of their own needs more.
const LOOKS: u64 = 10_000_000;

/// What two policies decide differently; empty where that is nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Segments that came, went or changed, by name.
    pub segments: Vec<SegmentChange>,
    /// Clients, certificates and sources of flows that are another segment's now.
    pub moved: Vec<Moved>,
    /// What became of names.
    pub names: Vec<NameChange>,
    /// What became of static openings.
    pub networks: Vec<NetworkChange>,
    /// What was not compared, as sentences.
    pub left_out: Vec<String>,
}

/// One segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentChange {
    /// Its name.
    pub segment: Arc<str>,
    /// Where it stood; `None`: it is new.
    pub before: Option<Place>,
    /// Where it stands; `None`: it is gone.
    pub after: Option<Place>,
    /// Key, old value, new value.
    pub keys: Vec<(&'static str, String, String)>,
}

/// Clients, a certificate or the source of flows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moved {
    /// `clients`, `certificates` or `sources`.
    pub what: &'static str,
    /// A prefix, or a certificate's name.
    pub subject: String,
    /// Whose it was, and where that segment stood.
    pub before: Option<(Arc<str>, Place)>,
    /// Whose it is, and where that segment stands.
    pub after: Option<(Arc<str>, Place)>,
}

/// What became of names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Change {
    /// Refused before, and not any more.
    Allowed,
    /// Refused now.
    Denied,
    /// More is opened.
    Widened,
    /// Less is opened.
    Narrowed,
    /// Some of what was opened is not, and something else is.
    Altered,
    /// Refused before as well, and denied by a rule now: answers that lead to it are withheld.
    Barred,
    /// Refused still, and denied by no rule any more: answers may lead to it.
    Unbarred,
}

impl Change {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Widened => "widened",
            Self::Narrowed => "narrowed",
            Self::Altered => "altered",
            Self::Barred => "barred",
            Self::Unbarred => "unbarred",
        }
    }
}

/// One difference, for all the names, types and segments that it is the same of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameChange {
    /// What became of them.
    pub change: Change,
    /// For whom, by name.
    pub segments: Vec<Arc<str>>,
    /// Names and patterns.
    pub names: Vec<String>,
    /// The types asked for; none: every one.
    pub types: Vec<RecordType>,
    /// Who said so before.
    pub before: Word,
    /// Who says so now.
    pub after: Word,
}

/// What a policy says, and by which rules.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Word {
    /// `allow`, `deny`, or `answer` for what the node answers itself.
    pub verdict: &'static str,
    /// The rules with their places, the nearest first. Of a refusal the one that its record names; none: no rule did.
    pub rules: Vec<(Arc<str>, Place)>,
    /// What is opened, and under which terms; of a refusal until when it is denied, where that has an end.
    pub opens: Vec<String>,
}

/// What is opened without any query, or closed whatever else opens it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NetworkChange {
    /// What became of it.
    pub change: NetworkWord,
    /// For whom, by name; none: for everybody.
    pub segments: Vec<Arc<str>>,
    /// Where to.
    pub network: Prefix,
    /// What of it; none: all.
    pub services: Vec<Services>,
    /// Until when.
    pub ends: Option<Wall>,
    /// The rules that name it, with their places: now, or before.
    pub rules: Vec<(Arc<str>, Place)>,
}

/// What became of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NetworkWord {
    /// A static rule opens it now.
    Opened,
    /// A static rule opened it.
    Closed,
    /// A rule denies it now.
    Denied,
    /// A rule denied it.
    Freed,
}

impl NetworkWord {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::Closed => "closed",
            Self::Denied => "denied",
            Self::Freed => "freed",
        }
    }
}

impl Comparison {
    /// True where nothing differs and everything was compared.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self { segments, moved, names, networks, left_out } = self;
        segments.is_empty() && moved.is_empty() && names.is_empty() && networks.is_empty() && left_out.is_empty()
    }
}

/// What `new` decides differently from `old` at this time, both compiled with the same settings.
#[must_use]
pub fn compare(old: &Policy, new: &Policy, now: Wall) -> Comparison {
    let classes = Classes::new([old, new], now);
    let changed = Changed::new(&classes);
    let mut looks = Looks { classes: &classes, differences: HashMap::new(), left: LOOKS };
    let mut left_out = parts::each(&classes, &changed, &mut |wire, class, name| looks.look(wire, class, name));
    if looks.left == 0 {
        left_out.push(format!("more than {LOOKS} names of segments differ perhaps; the others were not looked at"));
    }
    Comparison {
        segments: segments::changed(&classes),
        moved: segments::moved(&classes),
        names: looks.grouped(),
        networks: segments::networks(&classes),
        left_out,
    }
}

/// What one policy says of a question; the rules decide, as in [`Ruling`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Said {
    Allowed(Vec<RuleIndex>),
    Refused(Option<RuleIndex>),
    /// By the nearest rule, and until when by any.
    Denied(RuleIndex, Option<Wall>),
    Answered,
}

/// Everything about a difference but for whom and for what it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Difference {
    change: Change,
    types: Vec<RecordType>,
    said: [Said; 2],
    opened: [Vec<Part>; 2],
}

/// The looking.
struct Looks<'a> {
    classes: &'a Classes<'a>,
    /// Each difference with its names, and each name with the classes of segments.
    differences: HashMap<Difference, BTreeMap<String, BTreeSet<u32>>>,
    left: u64,
}

impl Looks<'_> {
    /// Decides one name under both policies for the segments of one class; false where no more are to be looked at.
    fn look(&mut self, wire: &NameBuf, class: u32, name: &dyn Fn() -> String) -> bool {
        let Some(left) = self.left.checked_sub(1) else { return false };
        self.left = left;
        let mut differences: BTreeMap<_, Vec<RecordType>> = BTreeMap::new();
        for kind in self.types(wire, class) {
            let said = [0, 1].map(|side| self.said(side, wire, class, kind));
            if let Some((change, opened)) = self.differ(&said, kind) {
                differences.entry((change, said, opened)).or_default().push(kind);
            }
        }
        // A deny is for every type; and what becomes of the name itself says as much of answers that lead to it.
        let is_denial = |change: Change, said: &[Said; 2]| {
            matches!(change, Change::Barred | Change::Unbarred) || matches!(said, [Said::Denied(..), Said::Denied(..)])
        };
        if !differences.keys().all(|(change, said, _)| is_denial(*change, said)) {
            differences.retain(|(change, said, _), _| !is_denial(*change, said));
        }
        for ((change, said, opened), mut types) in differences {
            if is_denial(change, &said) {
                types.clear();
            }
            let difference = Difference { change, types, said, opened };
            self.differences.entry(difference).or_default().entry(name()).or_default().insert(class);
        }
        left > 0
    }

    /// The types by which a name can differ: those that rules allow. Of others there is nothing but refusals, and what is
    /// answered here without rules.
    fn types(&self, wire: &[u8], class: u32) -> BTreeSet<RecordType> {
        let mut types = BTreeSet::from([RecordType::A]);
        let segments = self.classes.of(class);
        for (policy, segment) in self.classes.policies.iter().zip(segments) {
            let Some(segment) = segment else { continue };
            let found = policy.find(wire);
            types
                .extend(found.hits(&policy.rules, segment).flat_map(|hit| policy.rule(hit.rule).types.iter().copied()));
        }
        let filters = |(policy, segment): (&&Policy, _)| {
            let segment: Option<_> = segment;
            segment.is_some_and(|segment| policy.filters_aaaa(segment))
        };
        if self.classes.policies.iter().zip(segments).any(filters) {
            types.remove(&RecordType::AAAA);
        }
        types
    }

    fn said(&self, side: usize, wire: &[u8], class: u32, kind: RecordType) -> Said {
        let (Some(policy), Some(Some(segment))) =
            (self.classes.policies.get(side), self.classes.of(class).get(side).copied())
        else {
            return Said::Refused(None);
        };
        let case = Case { segment, client: self.classes.client(class), now: self.classes.now };
        match policy.rule_on(case, wire, kind) {
            Ruling::Allowed(rules) => Said::Allowed(Rules::into_vec(rules)),
            Ruling::Refused { rule: Some(rule), reason: Reason::Rule, .. } => {
                let found = policy.find(wire);
                let hits = found.hits(&policy.rules, segment).map(|hit| policy.rule(hit.rule));
                let denies =
                    |rule: &&Rule| rule.action == Action::Deny && rule.is_heard(&case) && !rule.except.contains(wire);
                let ends = hits.filter(denies).map(|rule| rule.expires.unwrap_or(Wall(u64::MAX))).max();
                Said::Denied(rule, ends.filter(|end| end.0 < u64::MAX))
            }
            Ruling::Refused { rule, .. } => Said::Refused(rule),
            Ruling::Answered(_) => Said::Answered,
        }
    }

    /// Whether two words differ, and what each of them opens.
    fn differ(&self, said: &[Said; 2], kind: RecordType) -> Option<(Change, [Vec<Part>; 2])> {
        let opened = |side: usize, rules: &[RuleIndex]| {
            let policy = self.classes.policies.get(side);
            let rules = policy.into_iter().flat_map(|policy| rules.iter().map(|rule| policy.rule(*rule)));
            of_all(&rules.collect::<Vec<_>>(), kind)
        };
        let (change, opened) = match said {
            [Said::Allowed(before), Said::Allowed(after)] => {
                if self.classes.alike(before, after) {
                    return None;
                }
                let (before, after) = (opened(0, before), opened(1, after));
                let change = match (beyond(&before, &after).is_empty(), beyond(&after, &before).is_empty()) {
                    (true, true) => return None,
                    (true, false) => Change::Widened,
                    (false, true) => Change::Narrowed,
                    (false, false) => Change::Altered,
                };
                (change, [before, after])
            }
            [Said::Allowed(before), _] => (Change::Denied, [opened(0, before), Vec::new()]),
            [_, Said::Allowed(after)] => (Change::Allowed, [Vec::new(), opened(1, after)]),
            [Said::Answered, Said::Answered] => return None,
            [Said::Answered, _] => (Change::Denied, Default::default()),
            [_, Said::Answered] => (Change::Allowed, Default::default()),
            [Said::Refused(_), Said::Denied(..)] => (Change::Barred, Default::default()),
            [Said::Denied(..), Said::Refused(_)] => (Change::Unbarred, Default::default()),
            [Said::Denied(_, before), Said::Denied(_, after)] if before != after => {
                (Change::Altered, Default::default())
            }
            [Said::Refused(_), Said::Refused(_)] | [Said::Denied(..), Said::Denied(..)] => return None,
        };
        Some((change, opened.map(plain)))
    }

    /// The differences, each with all the names that have it for the same segments.
    fn grouped(self) -> Vec<NameChange> {
        let mut changes = Vec::new();
        for (difference, names) in self.differences {
            let mut by_classes: BTreeMap<BTreeSet<u32>, Vec<String>> = BTreeMap::new();
            for (name, classes) in names {
                by_classes.entry(classes).or_default().push(name);
            }
            for (classes, names) in by_classes {
                let Difference { change, types, said, opened } = difference.clone();
                let segments = self.classes.names(classes.into_iter(), false);
                let mut words = [0, 1].into_iter().zip(said).zip(opened).map(|((side, said), opened)| {
                    let mut opens = written(&opened);
                    let (verdict, rules) = match said {
                        Said::Allowed(rules) => ("allow", rules),
                        Said::Refused(rule) => ("deny", rule.into_iter().collect()),
                        Said::Denied(rule, ends) => {
                            opens.extend(ends.map(|ends| format!("until {ends}")));
                            ("deny", vec![rule])
                        }
                        Said::Answered => ("answer", Vec::new()),
                    };
                    let policy: Option<&&Policy> = self.classes.policies.get(side);
                    let rules = policy.into_iter().flat_map(|policy| rules.iter().map(|rule| policy.rule(*rule)));
                    let rules = rules.map(|rule| (Arc::clone(&rule.id), rule.place.clone())).collect();
                    Word { verdict, rules, opens }
                });
                if let (Some(before), Some(after)) = (words.next(), words.next()) {
                    changes.push(NameChange { change, segments, names, types, before, after });
                }
            }
        }
        let key =
            |change: &NameChange| (change.segments.clone(), change.change, change.names.clone(), change.types.clone());
        changes.sort_by_cached_key(key);
        changes
    }
}
