//! The index: which rules of a segment name a name, and below which names a segment may ask something.
//!
//! It is built while the files are read: a name that was read is in it, and nowhere else.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::pattern::Pattern;
use super::patterns::{Collector, Matches, Patterns, Read, Refused, Spot};
use super::rule::Action;
use super::runtime::Rules;
use super::verdict::{RuleIndex, SegmentIndex};
use crate::name::Name;

/// Rules that one pattern may have before they are listed by segment. A guess: up to there it is quicker to ask each
/// of them, and a name that many rules for many segments share takes no memory for each of these.
const FEW: usize = 8;

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

    /// Whether it is everybody whom `other` is.
    pub(super) fn includes(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::All, _) => true,
            (Self::Listed(_), Self::All) => false,
            // Rules that say the same of their segments share the list.
            (Self::Listed(all), Self::Listed(some)) => {
                Arc::ptr_eq(all, some) || some.iter().all(|segment| all.binary_search(segment).is_ok())
            }
        }
    }

    /// One of them.
    pub(super) fn first(&self) -> SegmentIndex {
        match self {
            Self::All => SegmentIndex(0),
            Self::Listed(segments) => segments.first().copied().unwrap_or(SegmentIndex(0)),
        }
    }
}

/// Rules by the patterns they name, allow and deny alike.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// The number of a pattern is the place of its posting; of the names below one, that of the audience.
    patterns: Patterns,
    /// Patterns that the same rules name share one posting.
    postings: Vec<Posting>,
    /// Who may ask something below a name, although not for the name.
    askers: Vec<Audience>,
}

/// The rules that name one pattern.
#[derive(Debug, Default)]
struct Posting {
    /// Those to be asked whom they concern.
    rules: Box<[RuleIndex]>,
    /// The others, once for each segment they concern; sorted.
    by_segment: Box<[(SegmentIndex, RuleIndex)]>,
}

/// A rule that names a name.
pub(super) struct Hit {
    pub(super) rule: RuleIndex,
    /// As in [`super::patterns::Match`].
    pub(super) rank: u16,
    /// As in [`super::patterns::Match`].
    pub(super) whole: bool,
}

/// What the indexes know of one name: that of the files, and that of what was changed since.
pub(super) struct Found<'a> {
    first: (&'a Index, Matches),
    later: Option<(&'a Index, Matches)>,
}

impl Index {
    /// The patterns; the number of one is that of its posting.
    pub(super) const fn patterns(&self) -> &Patterns {
        &self.patterns
    }

    /// Every rule that names the patterns of a posting, each once.
    pub(super) fn posted(&self, posting: u32) -> Vec<RuleIndex> {
        let posting = self.postings.get(posting as usize);
        let all = posting
            .into_iter()
            .flat_map(|posting| posting.rules.iter().copied().chain(posting.by_segment.iter().map(|(_, rule)| *rule)));
        let mut all: Vec<_> = all.collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    pub(super) fn find<'a>(&'a self, later: Option<&'a Self>, wire: &[u8]) -> Found<'a> {
        let look = |index: &'a Self| (index, index.patterns.find(wire));
        Found { first: look(self), later: later.map(look) }
    }
}

impl Index {
    /// Every name that carries patterns, and those above; the numbers of a spot are those of [`Index::rules`].
    pub(super) fn spots(&self) -> impl Iterator<Item = Spot<'_>> {
        self.patterns.spots()
    }

    /// The rules that name a pattern of this number, in no order, perhaps twice; of one segment alone, or all.
    pub(super) fn rules<'a>(
        &'a self,
        number: u32,
        rules: &'a Rules,
        segment: Option<SegmentIndex>,
    ) -> impl Iterator<Item = RuleIndex> {
        let posting = self.postings.get(number as usize);
        let of = segment.and_then(|segment| Some(posting?.rules(rules, segment)));
        let all = posting.filter(|_| segment.is_none());
        let all = all
            .into_iter()
            .flat_map(|posting| posting.rules.iter().copied().chain(posting.by_segment.iter().map(|(_, rule)| *rule)));
        of.into_iter().flatten().chain(all)
    }

    /// How many numbers there are, 0 among them.
    pub(super) const fn numbers(&self) -> usize {
        self.postings.len()
    }
}

impl Found<'_> {
    /// The rules of `segment` whose `names` hold the name, in no order. `except` is not looked at.
    pub(super) fn hits<'a>(&'a self, rules: &'a Rules, segment: SegmentIndex) -> impl Iterator<Item = Hit> {
        self.each().flat_map(move |(index, matches)| {
            matches.all.iter().flat_map(move |found| {
                let posting = index.postings.get(found.number as usize);
                let named = posting.into_iter().flat_map(move |posting| posting.rules(rules, segment));
                named.map(move |rule| Hit { rule, rank: found.rank, whole: found.whole })
            })
        })
    }

    /// The rules of all segments whose `names` hold the name, in no order, perhaps twice.
    pub(super) fn rules<'a>(&'a self, rules: &'a Rules) -> impl Iterator<Item = RuleIndex> {
        let each = self.each().flat_map(|(index, matches)| matches.all.iter().map(move |found| (index, found.number)));
        each.flat_map(move |(index, number)| index.rules(number, rules, None))
    }

    /// What is reserved of the name, or of the nearest one above; 0: nothing.
    pub(super) const fn reserved(&self) -> u32 {
        self.first.1.reserved
    }

    /// True where no rule of any segment names the name.
    pub(super) fn is_stranger(&self) -> bool {
        self.each().all(|(_, matches)| matches.all.is_empty())
    }

    /// True where the segment may ask something below the name.
    pub(super) fn leads_on(&self, segment: SegmentIndex) -> bool {
        self.each().any(|(index, matches)| {
            let askers = index.askers.get(matches.below as usize);
            matches.below > 0 && askers.is_some_and(|askers| askers.contains(segment))
        })
    }

    fn each(&self) -> impl Iterator<Item = &(&Index, Matches)> {
        std::iter::once(&self.first).chain(&self.later)
    }
}

impl Posting {
    fn of(numbers: &[RuleIndex], rules: &Rules) -> Self {
        let audience = |number: &RuleIndex| rules.get(*number).map(|rule| &rule.audience);
        let mut asked = Vec::new();
        let mut by_segment = Vec::new();
        for number in numbers {
            match audience(number) {
                Some(Audience::Listed(segments)) if numbers.len() > FEW => {
                    by_segment.extend(segments.iter().map(|segment| (*segment, *number)));
                }
                _ => asked.push(*number),
            }
        }
        by_segment.sort_unstable();
        Self { rules: asked.into(), by_segment: by_segment.into() }
    }

    fn rules(&self, rules: &Rules, segment: SegmentIndex) -> impl Iterator<Item = RuleIndex> {
        let concerns = move |number: &RuleIndex| rules.get(*number).is_some_and(|rule| rule.audience.contains(segment));
        let first = self.by_segment.partition_point(|(of, _)| *of < segment);
        let own = self.by_segment.iter().skip(first).take_while(move |(of, _)| *of == segment);
        self.rules.iter().copied().filter(concerns).chain(own.map(|(_, rule)| *rule))
    }
}

/// An index while the files are read. Rules are numbered as they come; what they are is known at the end.
#[derive(Debug, Default)]
pub(super) struct Reader {
    patterns: Collector,
    lists: Lists,
}

impl Reader {
    /// Puts in a name that is not left to the rules alone, and what it is called.
    pub(super) fn reserve(&mut self, name: &Name, number: u32) {
        self.patterns.reserve(name.as_wire(), number);
    }

    /// What is reserved of the name that the pattern read last stands on, or of the nearest one above; 0: nothing.
    pub(super) fn reserved(&self) -> u32 {
        self.patterns.reserved()
    }

    /// Puts in a name of a rule; one rule's names come one after the other.
    pub(super) fn read(&mut self, rule: u32, action: Action, pattern: &Pattern) -> Result<Read, Refused> {
        let mut read = Read::New;
        self.patterns.put(pattern, |list| {
            let longer = self.lists.longer(list, rule);
            if longer == list {
                read = Read::Again;
            }
            longer
        })?;
        if action == Action::Allow {
            self.patterns.say_below(pattern, |list| self.lists.longer(list, rule));
        }
        Ok(read)
    }

    /// The index of `rules`; `number` says what became of each number that a rule had while it was read.
    pub(super) fn finish(self, rules: &Rules, number: &HashMap<u32, RuleIndex>) -> Index {
        let Self { patterns, lists } = self;
        let listed = |list: u32| {
            let mut listed: Vec<RuleIndex> = lists.rules(list).filter_map(|rule| number.get(&rule).copied()).collect();
            listed.sort_unstable();
            listed.dedup();
            listed
        };
        let mut union = Union::default();
        let mut postings = Made::new(Posting::default());
        let mut askers = Made::new(Audience::Listed(Arc::default()));
        let patterns = patterns.finish(
            |list| postings.number(list, || listed(list), |numbers| Posting::of(numbers, rules)),
            |list| askers.number(list, || union.of(&listed(list), rules), Audience::clone),
        );
        Index { patterns, postings: postings.values, askers: askers.values }
    }
}

/// Lists of rules that grow at their ends and share their beginnings; 0 is the empty one.
#[derive(Debug, Default)]
struct Lists {
    /// Of each list from 1: the list without its last rule, and that rule.
    ends: Vec<(u32, u32)>,
    known: HashMap<(u32, u32), u32, RandomState>,
}

impl Lists {
    /// The list with one more rule; the same where that is its last.
    fn longer(&mut self, list: u32, rule: u32) -> u32 {
        if self.end(list).is_some_and(|(_, last)| last == rule) {
            return list;
        }
        let Self { ends, known } = self;
        *known.entry((list, rule)).or_insert_with(|| {
            ends.push((list, rule));
            u32::try_from(ends.len()).unwrap_or(0)
        })
    }

    fn end(&self, list: u32) -> Option<(u32, u32)> {
        self.ends.get((list as usize).checked_sub(1)?).copied()
    }

    fn rules(&self, list: u32) -> impl Iterator<Item = u32> {
        let ends = std::iter::successors(self.end(list), |(rest, _)| self.end(*rest));
        ends.map(|(_, rule)| rule)
    }
}

/// What lists of rules become: for equal ones the same.
struct Made<K, V> {
    of_list: HashMap<u32, u32, RandomState>,
    of_key: HashMap<K, u32, RandomState>,
    values: Vec<V>,
}

impl<K: Eq + Hash, V> Made<K, V> {
    fn new(nothing: V) -> Self {
        Self { of_list: HashMap::default(), of_key: HashMap::default(), values: vec![nothing] }
    }

    fn number(&mut self, list: u32, key: impl FnOnce() -> K, make: impl FnOnce(&K) -> V) -> u32 {
        let Self { of_list, of_key, values } = self;
        *of_list.entry(list).or_insert_with(|| {
            *of_key.entry(key()).or_insert_with_key(|key| {
                values.push(make(key));
                u32::try_from(values.len() - 1).unwrap_or(0)
            })
        })
    }
}

/// Everybody whom one of some rules concerns. Its tables are kept from one use to the next.
#[derive(Default)]
struct Union {
    named: Vec<bool>,
    all: Vec<SegmentIndex>,
}

impl Union {
    fn of(&mut self, numbers: &[RuleIndex], rules: &Rules) -> Audience {
        let mut seen = HashSet::new();
        for rule in numbers.iter().filter_map(|number| rules.get(*number)) {
            let Audience::Listed(segments) = &rule.audience else {
                self.clear();
                return Audience::All;
            };
            // Rules that say the same of their segments share the list.
            if !seen.insert(segments.as_ptr()) {
                continue;
            }
            for segment in segments.iter() {
                let at = segment.0 as usize;
                if self.named.len() <= at {
                    self.named.resize(at + 1, false);
                }
                if let Some(named @ false) = self.named.get_mut(at) {
                    *named = true;
                    self.all.push(*segment);
                }
            }
        }
        self.all.sort_unstable();
        let audience = Audience::Listed(self.all.as_slice().into());
        self.clear();
        audience
    }

    fn clear(&mut self) {
        for segment in self.all.drain(..) {
            if let Some(named) = self.named.get_mut(segment.0 as usize) {
                *named = false;
            }
        }
    }
}
