//! Patterns that rules of the one policy name and rules that do the same of the other do not, and for whom.

use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use super::classes::{Classes, Set};
use crate::name::{ancestors, labels};
use crate::policy::pattern::glob_matches;
use crate::policy::patterns::Mark;

/// See the module.
#[derive(Default)]
pub(super) struct Changed {
    /// Whole names.
    pub(super) exact: HashMap<Box<[u8]>, Set>,
    /// Wildcards, by what follows their first label.
    wide: HashMap<Box<[u8]>, Wide>,
}

/// The wildcards on one name.
#[derive(Default)]
struct Wide {
    one: Set,
    many: Set,
    globs: Vec<(Box<[u8]>, Set)>,
}

/// What two postings, one of each policy, say differently: for whom that is, and whom they concern at all.
pub(super) struct Postings<'a> {
    classes: &'a Classes<'a>,
    known: HashMap<(u32, u32), [Set; 2]>,
}

impl<'a> Postings<'a> {
    pub(super) fn new(classes: &'a Classes<'a>) -> Self {
        Self { classes, known: HashMap::new() }
    }

    /// Whom the rules concern that name one pattern, and whom they concern otherwise than before.
    pub(super) fn of(&mut self, old: u32, new: u32) -> [Set; 2] {
        let classes = self.classes;
        self.known.entry((old, new)).or_insert_with(|| concerned(classes, old, new)).clone()
    }

    /// The same of a pattern.
    pub(super) fn of_pattern(&mut self, base: &[u8], mark: Mark<'_>) -> [Set; 2] {
        let [old, new] = self.classes.policies.map(|policy| policy.index.patterns().number(base, mark));
        self.of(old, new)
    }
}

fn concerned(classes: &Classes<'_>, old: u32, new: u32) -> [Set; 2] {
    let said = |side: usize, posting: u32| {
        let posted = classes.policies.get(side).map(|policy| policy.index.posted(posting)).unwrap_or_default();
        let said = posted.into_iter().map(|rule| (classes.token(side, rule), classes.concerned(side, rule)));
        said.collect::<BTreeSet<(u32, Set)>>()
    };
    let sides = [said(0, old), said(1, new)];
    let all: BTreeSet<u32> = sides.iter().flatten().flat_map(|(_, set)| set.iter().copied()).collect();
    let mut differing = BTreeSet::new();
    if let [old, new] = &sides
        && old != new
    {
        let each = |side: &BTreeSet<(u32, Set)>| -> BTreeSet<(u32, u32)> {
            side.iter().flat_map(|(token, set)| set.iter().map(|class| (*class, *token))).collect()
        };
        differing = each(old).symmetric_difference(&each(new)).map(|(class, _)| *class).collect();
    }
    [all.into_iter().collect(), differing.into_iter().collect()]
}

impl Changed {
    pub(super) fn new(classes: &Classes<'_>) -> Self {
        let mut changed = Self::default();
        let mut postings = Postings::new(classes);
        let [old, new] = classes.policies.map(|policy| policy.index.patterns());
        old.each(|base, mark, number| {
            let [_, differing] = postings.of(number, new.number(base, mark));
            changed.add(base, mark, differing);
        });
        new.each(|base, mark, number| {
            if old.number(base, mark) == 0 {
                let [_, differing] = postings.of(0, number);
                changed.add(base, mark, differing);
            }
        });
        changed
    }

    fn add(&mut self, base: &[u8], mark: Mark<'_>, differing: Set) {
        if differing.is_empty() {
            return;
        }
        if mark == Mark::Exact {
            self.exact.insert(base.into(), differing);
            return;
        }
        let wide = self.wide.entry(base.into()).or_default();
        match mark {
            Mark::One => wide.one = differing,
            Mark::Many => wide.many = differing,
            Mark::Glob(glob) => wide.globs.push((glob.into(), differing)),
            Mark::Exact => {}
        }
    }

    /// True where only whole names changed.
    pub(super) fn is_exact(&self) -> bool {
        self.wide.is_empty()
    }

    /// For whom a changed pattern matches a name.
    pub(super) fn matching(&self, wire: &[u8]) -> Set {
        let mut found: Vec<&Set> = self.exact.get(wire).into_iter().collect();
        for (depth, ancestor) in ancestors(wire).enumerate().skip(1) {
            let Some(wide) = self.wide.get(ancestor) else { continue };
            found.push(&wide.many);
            if depth == 1 {
                found.push(&wide.one);
                let label = labels(wire).next().unwrap_or_default();
                found.extend(wide.globs.iter().filter(|(glob, _)| glob_matches(glob, label)).map(|(_, set)| set));
            }
        }
        found.retain(|set| !set.is_empty());
        match found.as_slice() {
            [] => Set::default(),
            [one] => Rc::clone(one),
            many => many.iter().flat_map(|set| set.iter().copied()).collect::<BTreeSet<u32>>().into_iter().collect(),
        }
    }

    /// For whom a changed pattern may match names one label below this one.
    pub(super) fn near(&self, base: &[u8]) -> bool {
        let own = self.wide.get(base).is_some_and(|wide| !wide.one.is_empty() || !wide.globs.is_empty());
        own || ancestors(base).any(|above| self.wide.get(above).is_some_and(|wide| !wide.many.is_empty()))
    }
}
