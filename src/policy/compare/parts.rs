//! The parts of the name space that a changed pattern touches, each with one name of it.
//!
//! Names that the same patterns match are one part. It is that of a whole name; or of the labels on one name that the
//! same globs match, or `*` alone; or of what only `**` of the nearest name above matches. A label that no pattern has
//! stands for all labels.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::changed::{Changed, Postings};
use super::classes::{Classes, Set};
use super::globs::overlaps;
use crate::name::NameBuf;
use crate::policy::patterns::Mark;

/// Takes a name, a class of segments, and what the part is called; false ends it.
type Visit<'a> = dyn FnMut(&NameBuf, u32, &dyn Fn() -> String) -> bool + 'a;

/// Patterns that are not in an index: those that rules except, and the zones that are served here.
struct Aside {
    base: Box<[u8]>,
    mark: OwnMark,
    concerned: Set,
}

/// As [`Mark`].
enum OwnMark {
    Exact,
    One,
    Many,
    Glob(Box<[u8]>),
}

/// The globs on one name, each with the classes of segments that it concerns.
type Globs = BTreeMap<Box<[u8]>, BTreeMap<Box<[u8]>, BTreeSet<u32>>>;

/// Gives one name of each part, and each class of segments that a changed pattern is for, to `visit`. What had to be left
/// out, as sentences.
pub(super) fn each(classes: &Classes<'_>, changed: &Changed, visit: &mut Visit<'_>) -> Vec<String> {
    if changed.is_exact() {
        for (wire, set) in &changed.exact {
            let Some(name) = buffer(wire, &[]) else { continue };
            if !set.iter().all(|class| visit(&name, *class, &|| name.to_string())) {
                break;
            }
        }
        return Vec::new();
    }
    let aside = aside(classes);
    let excepted: HashSet<&[u8]> =
        aside.iter().filter(|aside| matches!(aside.mark, OwnMark::Exact)).map(|aside| &*aside.base).collect();
    let taken = |wire: &NameBuf| {
        excepted.contains(&**wire)
            || classes.policies.iter().any(|policy| policy.index.patterns().number(wire, Mark::Exact) > 0)
    };
    let mut parts = Parts { changed, taken: &taken, visit, globs: Globs::new(), going: true };
    let mut postings = Postings::new(classes);
    let [old, new] = classes.policies.map(|policy| policy.index.patterns());
    old.each(|base, mark, number| {
        let [concerned, _] = postings.of(number, new.number(base, mark));
        parts.pattern(base, mark, &concerned);
    });
    new.each(|base, mark, _| {
        if old.number(base, mark) == 0 {
            let [concerned, _] = postings.of_pattern(base, mark);
            parts.pattern(base, mark, &concerned);
        }
    });
    for Aside { base, mark, concerned } in &aside {
        let mark = match mark {
            OwnMark::Exact => Mark::Exact,
            OwnMark::One => Mark::One,
            OwnMark::Many => Mark::Many,
            OwnMark::Glob(glob) => Mark::Glob(glob),
        };
        parts.pattern(base, mark, concerned);
    }
    parts.overlaps()
}

fn aside(classes: &Classes<'_>) -> Vec<Aside> {
    let mut aside = Vec::new();
    for (side, policy) in classes.policies.iter().enumerate() {
        for (number, rule) in (0..).zip(policy.rules.filed()).filter(|(_, rule)| !rule.except.is_empty()) {
            let concerned = classes.concerned(side, crate::policy::RuleIndex(number));
            rule.except.each(|base, mark, _| {
                let mark = match mark {
                    Mark::Exact => OwnMark::Exact,
                    Mark::One => OwnMark::One,
                    Mark::Many => OwnMark::Many,
                    Mark::Glob(glob) => OwnMark::Glob(glob.into()),
                };
                aside.push(Aside { base: base.into(), mark, concerned: concerned.clone() });
            });
        }
    }
    // Below what is served here, special-use names are left to the rules.
    let everybody: Set = (0..u32::try_from(classes.len()).unwrap_or(u32::MAX)).collect();
    let [_, new] = classes.policies;
    for (apex, _) in new.reserved.sites.each() {
        for mark in [OwnMark::Exact, OwnMark::Many] {
            aside.push(Aside { base: apex.as_wire().into(), mark, concerned: everybody.clone() });
        }
    }
    aside
}

struct Parts<'a, 'b> {
    changed: &'a Changed,
    /// Whether a pattern is this very name.
    taken: &'a dyn Fn(&NameBuf) -> bool,
    visit: &'a mut Visit<'b>,
    globs: Globs,
    going: bool,
}

impl Parts<'_, '_> {
    fn pattern(&mut self, base: &[u8], mark: Mark<'_>, concerned: &Set) {
        if !self.going || concerned.is_empty() {
            return;
        }
        let name = match mark {
            Mark::Exact => buffer(base, &[]),
            Mark::One => self.fresh(base),
            // Two labels more: names with one may be parts of their own.
            Mark::Many => self.fresh(base).and_then(|below| self.fresh(&below)),
            Mark::Glob(glob) => {
                if self.changed.near(base) {
                    let globs = self.globs.entry(base.into()).or_default();
                    globs.entry(glob.into()).or_default().extend(concerned.iter().copied());
                }
                return;
            }
        };
        if let Some(name) = name {
            self.give(&name, concerned.iter().copied(), &|| mark.written(base));
        }
    }

    fn give(&mut self, name: &NameBuf, concerned: impl Iterator<Item = u32>, written: &dyn Fn() -> String) {
        let changed = self.changed.matching(name);
        if changed.is_empty() {
            return;
        }
        for class in concerned.filter(|class| changed.binary_search(class).is_ok()) {
            self.going = self.going && (self.visit)(name, class, written);
        }
    }

    /// A name with one label more that no pattern has.
    fn fresh(&self, base: &[u8]) -> Option<NameBuf> {
        (0x80..=0xff_u8).rev().filter_map(|octet| buffer(base, &[octet])).find(|name| !(self.taken)(name))
    }

    /// The parts that globs make; for each class only the globs that concern it.
    fn overlaps(mut self) -> Vec<String> {
        let mut left_out = Vec::new();
        for (base, globs) in std::mem::take(&mut self.globs) {
            let shapes: Vec<&[u8]> = globs.keys().map(|glob| &**glob).collect();
            let concerned: Vec<&BTreeSet<u32>> = globs.values().collect();
            let taken = |label: &[u8]| buffer(&base, label).is_none_or(|name| (self.taken)(&name));
            let found = overlaps(&shapes, taken);
            if found.open {
                let base = Mark::Exact.written(&base);
                left_out
                    .push(format!("the patterns with `*` inside a label on {base} overlap too much to be compared"));
            }
            for (set, label) in found.labels {
                let Some(name) = buffer(&base, &label) else { continue };
                // Of the globs that the label matches, those for one class.
                let mut by_globs: BTreeMap<Vec<usize>, Vec<u32>> = BTreeMap::new();
                let all: BTreeSet<u32> =
                    set.iter().filter_map(|at| concerned.get(*at)).flat_map(|set| set.iter().copied()).collect();
                for class in all {
                    let own =
                        set.iter().copied().filter(|at| concerned.get(*at).is_some_and(|set| set.contains(&class)));
                    by_globs.entry(own.collect()).or_default().push(class);
                }
                for (own, classes) in by_globs {
                    let written = || {
                        let globs = own.iter().filter_map(|at| shapes.get(*at));
                        let globs: Vec<String> = globs.map(|glob| Mark::Glob(glob).written(&base)).collect();
                        globs.join(" and ")
                    };
                    self.give(&name, classes.into_iter(), &written);
                }
            }
        }
        left_out
    }
}

/// `base` with one label in front, or as it is; `None` where that is too long.
fn buffer(base: &[u8], label: &[u8]) -> Option<NameBuf> {
    let mut name = NameBuf::new();
    let own = Some(label).filter(|label| !label.is_empty());
    own.into_iter().chain(crate::name::labels(base)).try_for_each(|label| name.push_label(label)).ok()?;
    Some(name)
}
