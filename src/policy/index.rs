//! The index: which patterns match a name, and which rules of a segment stand behind them.
//!
//! A look-up costs one hash of the name and one of each ancestor, whatever the number of rules.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::quality::RandomState;

use super::pattern::{Pattern, Shape, glob_matches};
use super::verdict::{RuleIndex, SegmentIndex};
use crate::name::{Name, ancestors, labels};

/// A map that clients cannot fill one bucket of: seeded per process.
type Map<T> = HashMap<Name, T, RandomState>;

/// Globs that one suffix may carry: each one is tried in turn. A guess, far above what files hold.
pub(super) const MAX_GLOBS: usize = 256;

/// Values by pattern.
#[derive(Debug)]
pub(super) struct Patterns<T> {
    exact: Map<T>,
    below: Map<Below<T>>,
    /// The most labels of any key of `below`.
    deepest: usize,
}

/// The patterns that hang on one suffix.
#[derive(Debug)]
struct Below<T> {
    one: Option<T>,
    many: Option<T>,
    globs: Vec<(Box<[u8]>, T)>,
}

/// One pattern that matches.
pub(super) struct Match<'a, T> {
    pub(super) value: &'a T,
    /// Smaller is more specific: exact, then more labels, then `*` and globs before `**`.
    pub(super) rank: u16,
    /// The pattern matches every name below this one as well.
    pub(super) whole: bool,
}

impl<T> Default for Patterns<T> {
    fn default() -> Self {
        Self { exact: Map::default(), below: Map::default(), deepest: 0 }
    }
}

impl<T: Default> Patterns<T> {
    /// The value of a pattern, made where it is new.
    pub(super) fn entry(&mut self, pattern: &Pattern) -> &mut T {
        if pattern.shape == Shape::Exact {
            return self.exact.entry(pattern.base.clone()).or_default();
        }
        self.deepest = self.deepest.max(pattern.base.label_count());
        let below = self.below.entry(pattern.base.clone()).or_insert_with(|| Below {
            one: None,
            many: None,
            globs: Vec::new(),
        });
        match &pattern.shape {
            Shape::Glob(glob) => {
                let at = match below.globs.iter().position(|(known, _)| known == glob) {
                    Some(at) => at,
                    None => {
                        below.globs.push((glob.clone(), T::default()));
                        below.globs.len() - 1
                    }
                };
                #[expect(clippy::indexing_slicing, reason = "the position was found or pushed just above")]
                &mut below.globs[at].1
            }
            Shape::Many => below.many.get_or_insert_default(),
            Shape::One | Shape::Exact => below.one.get_or_insert_default(),
        }
    }
}

impl<T> Patterns<T> {
    /// Every pattern that matches `wire`, the most specific first. Globs of one suffix come after its `*`, with the same
    /// rank.
    pub(super) fn matches<'a>(&'a self, wire: &'a [u8]) -> impl Iterator<Item = Match<'a, T>> {
        let exact = self.exact.get(wire).map(|value| Match { value, rank: 0, whole: false });
        let depths = if self.below.is_empty() { 0 } else { labels(wire).count() };
        let first = depths.saturating_sub(self.deepest).max(1);
        let below = ancestors(wire).enumerate().take(depths).skip(first).flat_map(move |(depth, base)| {
            let found = self.below.get(base);
            let near = found.filter(|_| depth == 1);
            let label = labels(wire).next().unwrap_or_default();
            let globs = near.map(|below| below.globs.as_slice()).unwrap_or_default();
            let one = near.and_then(|below| below.one.as_ref());
            let many = found.and_then(|below| below.many.as_ref());
            let rank = u16::try_from(2 * depth).unwrap_or(u16::MAX);
            one.into_iter()
                .chain(globs.iter().filter(move |(glob, _)| glob_matches(glob, label)).map(|(_, value)| value))
                .map(move |value| Match { value, rank: rank - 1, whole: false })
                .chain(many.map(|value| Match { value, rank, whole: true }))
        });
        exact.into_iter().chain(below)
    }

    /// True where a pattern matches `wire`.
    pub(super) fn contains(&self, wire: &[u8]) -> bool {
        self.matches(wire).next().is_some()
    }

    /// True where one pattern matches `wire` and everything below it.
    pub(super) fn covers(&self, wire: &[u8]) -> bool {
        self.matches(wire).any(|found| found.whole)
    }

    /// True where there is no pattern at all.
    pub(super) fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.below.is_empty()
    }

    /// The same patterns with other values.
    fn map<U>(self, mut change: impl FnMut(T) -> U) -> Patterns<U> {
        let exact = self.exact.into_iter().map(|(name, value)| (name, change(value))).collect();
        let below = self
            .below
            .into_iter()
            .map(|(name, below)| {
                let globs = below.globs.into_iter().map(|(glob, value)| (glob, change(value))).collect();
                (name, Below { one: below.one.map(&mut change), many: below.many.map(&mut change), globs })
            })
            .collect();
        Patterns { exact, below, deepest: self.deepest }
    }
}

/// Whom a rule concerns.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Audience {
    /// Every segment.
    All,
    /// These, sorted.
    Listed(Arc<[SegmentIndex]>),
}

impl Audience {
    pub(super) fn contains(&self, segment: SegmentIndex) -> bool {
        match self {
            Self::All => true,
            Self::Listed(segments) => segments.binary_search(&segment).is_ok(),
        }
    }
}

/// A rule as the index takes it in.
pub(super) struct Entry<'a> {
    pub(super) rule: RuleIndex,
    pub(super) audience: &'a Audience,
    pub(super) names: &'a [Pattern],
}

/// Rules by the patterns they name.
#[derive(Debug, Default)]
pub(super) struct Index {
    patterns: Patterns<u32>,
    /// Names that the same rules name share one posting.
    postings: Vec<Posting>,
}

/// The rules that name one pattern.
#[derive(Debug)]
struct Posting {
    /// Those for every segment.
    everyone: Box<[RuleIndex]>,
    /// The others, once for each segment they concern; sorted.
    some: Box<[(SegmentIndex, RuleIndex)]>,
}

/// A rule that names a name.
pub(super) struct Hit {
    pub(super) rule: RuleIndex,
    /// As in [`Match`].
    pub(super) rank: u16,
    /// As in [`Match`].
    pub(super) whole: bool,
}

impl Index {
    pub(super) fn build(entries: &[Entry<'_>]) -> Self {
        let mut rules_of: Patterns<Vec<RuleIndex>> = Patterns::default();
        let audiences: HashMap<RuleIndex, &Audience> =
            entries.iter().map(|entry| (entry.rule, entry.audience)).collect();
        for entry in entries {
            for name in entry.names {
                rules_of.entry(name).push(entry.rule);
            }
        }
        let mut postings = Vec::new();
        let mut known: HashMap<Vec<RuleIndex>, u32> = HashMap::new();
        let patterns = rules_of.map(|rules| {
            *known.entry(rules).or_insert_with_key(|rules| {
                postings.push(Posting::of(rules, &audiences));
                u32::try_from(postings.len() - 1).unwrap_or(u32::MAX)
            })
        });
        Self { patterns, postings }
    }

    /// The rules of `segment` whose `names` hold `wire`, by rank; rules of one rank in any order. `except` is not looked at.
    pub(super) fn hits<'a>(&'a self, segment: SegmentIndex, wire: &'a [u8]) -> impl Iterator<Item = Hit> {
        self.patterns.matches(wire).flat_map(move |found| {
            let posting = self.postings.get(*found.value as usize);
            posting.into_iter().flat_map(move |posting| posting.rules(segment)).map(move |rule| Hit {
                rule,
                rank: found.rank,
                whole: found.whole,
            })
        })
    }
}

impl Posting {
    fn of(rules: &[RuleIndex], audiences: &HashMap<RuleIndex, &Audience>) -> Self {
        let mut everyone = Vec::new();
        let mut some = Vec::new();
        for rule in rules {
            match audiences.get(rule) {
                Some(Audience::All) => everyone.push(*rule),
                Some(Audience::Listed(segments)) => some.extend(segments.iter().map(|segment| (*segment, *rule))),
                None => {}
            }
        }
        some.sort_unstable();
        Self { everyone: everyone.into(), some: some.into() }
    }

    fn rules(&self, segment: SegmentIndex) -> impl Iterator<Item = RuleIndex> {
        let first = self.some.partition_point(|(of, _)| *of < segment);
        let own = self.some.iter().skip(first).take_while(move |(of, _)| *of == segment);
        self.everyone.iter().copied().chain(own.map(|(_, rule)| *rule))
    }
}

/// The names below which a segment may ask something, although it may not ask for them.
#[derive(Debug, Default)]
pub(super) struct Parents(Map<Audience>);

impl Parents {
    /// From the allow rules.
    pub(super) fn build(entries: &[Entry<'_>]) -> Self {
        let mut audiences: Vec<&Audience> = Vec::new();
        let mut number: HashMap<&Audience, u32> = HashMap::new();
        let mut numbered: Vec<(u32, &[Pattern])> = entries
            .iter()
            .map(|entry| {
                let next = u32::try_from(audiences.len()).unwrap_or(u32::MAX);
                let number = *number.entry(entry.audience).or_insert_with(|| {
                    audiences.push(entry.audience);
                    next
                });
                (number, entry.names)
            })
            .collect();
        // One audience after the other: then the last of a name's list says whether this audience is in it.
        numbered.sort_by_key(|(number, _)| *number);
        let mut map: Map<Vec<u32>> = Map::default();
        for (number, pattern) in
            numbered.iter().flat_map(|(number, names)| names.iter().map(move |name| (*number, name)))
        {
            let own = usize::from(pattern.shape == Shape::Exact);
            for parent in ancestors(pattern.base.as_wire()).skip(own) {
                match map.get_mut(parent) {
                    Some(list) if list.last() == Some(&number) => break,
                    Some(list) => list.push(number),
                    None => {
                        let Ok(name) = Name::from_wire(parent) else { break };
                        map.insert(name, vec![number]);
                    }
                }
            }
        }
        let mut unions: HashMap<Vec<u32>, Audience> = HashMap::new();
        let union = |list: &Vec<u32>| {
            let members = list.iter().filter_map(|number| audiences.get(*number as usize));
            let mut all = Vec::new();
            for audience in members {
                match audience {
                    Audience::All => return Audience::All,
                    Audience::Listed(segments) => all.extend_from_slice(segments),
                }
            }
            all.sort_unstable();
            all.dedup();
            Audience::Listed(all.into())
        };
        Self(map.into_iter().map(|(name, list)| (name, unions.entry(list).or_insert_with_key(union).clone())).collect())
    }

    pub(super) fn holds(&self, segment: SegmentIndex, wire: &[u8]) -> bool {
        self.0.get(wire).is_some_and(|audience| audience.contains(segment))
    }
}
