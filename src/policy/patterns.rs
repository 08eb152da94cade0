//! Sets of patterns, each with a number, and which of them match a name.
//!
//! A look-up goes down the name once, however many patterns there are.

use std::collections::{BTreeSet, HashMap, HashSet};

use foldhash::fast::RandomState;
use smallvec::SmallVec;

use super::names::{Full, Names};
use super::pattern::{Pattern, Shape, glob_matches};
use crate::name::{labels, write_presentation};

/// Globs that one suffix may carry: each one is tried in turn. A guess, far above what files hold.
pub(super) const MAX_GLOBS: usize = 256;

/// The numbers of the patterns that hang on one name; 0: there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Marks {
    exact: u32,
    one: u32,
    many: u32,
    /// Which of [`Patterns::globs`], counted from 1.
    globs: u32,
    /// What is said of the names below this one.
    below: u32,
    /// What is said of this name and those below it, whatever patterns match.
    reserved: u32,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Patterns {
    /// The number of a name is the place of its marks.
    names: Names,
    /// Names with the same marks share them. The first are nobody's.
    marks: Vec<Marks>,
    /// For each name that carries globs: what they look like.
    globs: Vec<Vec<(Box<[u8]>, u32)>>,
}

/// What matches one name.
#[derive(Debug, Default)]
pub(super) struct Matches {
    /// Every pattern that matches, in no order.
    pub(super) all: SmallVec<[Match; 4]>,
    /// What is said of the names below this one; 0: nothing.
    pub(super) below: u32,
    /// What is said of this name or of the nearest one above; 0: nothing.
    pub(super) reserved: u32,
}

/// One pattern that matches.
#[derive(Clone, Copy, Debug)]
pub(super) struct Match {
    pub(super) number: u32,
    /// Smaller is more specific: exact, then more labels, then `*` and globs before `**`.
    pub(super) rank: u16,
    /// The pattern matches every name below this one as well.
    pub(super) whole: bool,
}

impl Patterns {
    /// What matches `wire`.
    pub(super) fn find(&self, wire: &[u8]) -> Matches {
        let mut matches = Matches::default();
        self.names.path(wire, |left, number| {
            let Some(marks) = self.marks.get(number as usize) else { return };
            if marks.reserved > 0 {
                matches.reserved = marks.reserved;
            }
            let rank = u16::try_from(2 * left).unwrap_or(u16::MAX);
            let mut add = |number, rank, whole| {
                if number > 0 {
                    matches.all.push(Match { number, rank, whole });
                }
            };
            if left == 0 {
                add(marks.exact, rank, false);
                matches.below = marks.below;
                return;
            }
            add(marks.many, rank, true);
            if left == 1 {
                add(marks.one, rank - 1, false);
                let label = labels(wire).next().unwrap_or_default();
                for (_, number) in self.globs_of(marks).iter().filter(|(glob, _)| glob_matches(glob, label)) {
                    add(*number, rank - 1, false);
                }
            }
        });
        matches
    }

    /// Every pattern with its number; those of one name come one after the other.
    pub(super) fn each(&self, mut visit: impl FnMut(&[u8], Mark<'_>, u32)) {
        self.names.each_name(|base, number| {
            let Some(marks) = self.marks.get(number as usize) else { return };
            let plain = [(Mark::Exact, marks.exact), (Mark::One, marks.one), (Mark::Many, marks.many)];
            let globs = self.globs_of(marks).iter().map(|(glob, number)| (Mark::Glob(glob), *number));
            for (mark, number) in plain.into_iter().chain(globs).filter(|(_, number)| *number > 0) {
                visit(base, mark, number);
            }
        });
    }

    /// The number of a pattern; 0: it is not here.
    pub(super) fn number(&self, base: &[u8], mark: Mark<'_>) -> u32 {
        let mut found = Marks::default();
        self.names.path(base, |left, number| {
            if left == 0 {
                found = self.marks.get(number as usize).copied().unwrap_or_default();
            }
        });
        match mark {
            Mark::Exact => found.exact,
            Mark::One => found.one,
            Mark::Many => found.many,
            Mark::Glob(glob) => {
                self.globs_of(&found).iter().find(|(known, _)| **known == *glob).map_or(0, |(_, number)| *number)
            }
        }
    }

    /// Every pattern as it is written.
    pub(super) fn written(&self) -> BTreeSet<String> {
        let mut written = BTreeSet::new();
        self.each(|base, mark, _| {
            written.insert(mark.written(base));
        });
        written
    }

    fn globs_of(&self, marks: &Marks) -> &[(Box<[u8]>, u32)] {
        let globs = (marks.globs as usize).checked_sub(1).and_then(|at| self.globs.get(at));
        globs.map_or(&[], Vec::as_slice)
    }

    /// True where a pattern matches `wire`.
    pub(super) fn contains(&self, wire: &[u8]) -> bool {
        !self.is_empty() && !self.find(wire).all.is_empty()
    }

    /// True where one pattern matches `wire` and everything below it.
    pub(super) fn covers(&self, wire: &[u8]) -> bool {
        !self.is_empty() && self.find(wire).all.iter().any(|found| found.whole)
    }

    /// True where there is no pattern at all.
    pub(super) const fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}

/// Shapes of one label, each with a number.
pub(super) type Globs = [(Box<[u8]>, u32)];

/// What hangs on one name; numbers as in [`Match`], 0: none.
pub(super) struct Spot<'a> {
    /// The name's place, and that of the name above; the root's is its own.
    pub(super) place: u32,
    pub(super) above: u32,
    /// Its first label.
    pub(super) label: &'a [u8],
    pub(super) exact: u32,
    pub(super) one: u32,
    pub(super) many: u32,
    pub(super) globs: &'a Globs,
    /// Something is reserved of it.
    pub(super) reserved: bool,
}

impl Patterns {
    /// Every name of these patterns and those above it, a name before those below it.
    pub(super) fn spots(&self) -> impl Iterator<Item = Spot<'_>> {
        self.names.each().map(|(place, above, label)| {
            let marks = self.marks.get(self.names.value(place) as usize).copied().unwrap_or_default();
            let globs = (marks.globs as usize).checked_sub(1).and_then(|at| self.globs.get(at));
            let Marks { exact, one, many, reserved, .. } = marks;
            let globs = globs.map_or(Default::default(), Vec::as_slice);
            Spot { place, above, label, exact, one, many, globs, reserved: reserved > 0 }
        })
    }
}

/// What of a pattern is not its base.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Mark<'a> {
    /// As [`Shape::Exact`].
    Exact,
    /// As [`Shape::One`].
    One,
    /// As [`Shape::Many`].
    Many,
    /// As [`Shape::Glob`].
    Glob(&'a [u8]),
}

impl Mark<'_> {
    /// The pattern on `base` for people.
    pub(super) fn written(self, base: &[u8]) -> String {
        let mut text = match self {
            Self::Exact => String::new(),
            Self::One => "*.".to_owned(),
            Self::Many => "**.".to_owned(),
            Self::Glob(glob) => format!("{}.", String::from_utf8_lossy(glob)),
        };
        // Writing to a String cannot fail.
        let _ = write_presentation(base, &mut text);
        text
    }
}

/// What became of a pattern that was put in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// It is new.
    New,
    /// The same list has it already.
    Again,
}

/// Why a pattern could not be put in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// Its suffix would carry more than [`MAX_GLOBS`] globs; said once for each suffix.
    Crowded,
    /// All names together are too many.
    Full,
}

impl From<Full> for Refused {
    fn from(Full: Full) -> Self {
        Self::Full
    }
}

/// Patterns while they are collected.
#[derive(Debug)]
pub(super) struct Collector {
    patterns: Patterns,
    /// Where which marks are.
    known: HashMap<Marks, u32, RandomState>,
    /// The places of the pattern that was put in last and of the names above it, the root's first.
    path: Vec<u32>,
    crowded: HashSet<u32>,
}

impl Default for Collector {
    fn default() -> Self {
        let patterns = Patterns { marks: vec![Marks::default()], ..Patterns::default() };
        Self { patterns, known: HashMap::from_iter([(Marks::default(), 0)]), path: Vec::new(), crowded: HashSet::new() }
    }
}

impl Collector {
    /// Puts in a pattern, or finds it; `number` makes the new one of the one it has, 0 where it is new.
    pub(super) fn put(&mut self, pattern: &Pattern, number: impl FnOnce(u32) -> u32) -> Result<(), Refused> {
        self.patterns.names.insert(&pattern.base, &mut self.path)?;
        let place = self.path.last().copied().unwrap_or_default();
        let mut marks = self.marks(place);
        match &pattern.shape {
            Shape::Exact => marks.exact = number(marks.exact),
            Shape::One => marks.one = number(marks.one),
            Shape::Many => marks.many = number(marks.many),
            Shape::Glob(glob) => {
                let globs = &mut self.patterns.globs;
                if marks.globs == 0 {
                    globs.push(Vec::new());
                    marks.globs = u32::try_from(globs.len()).map_err(|_| Refused::Full)?;
                }
                let list = globs.get_mut(marks.globs as usize - 1).ok_or(Refused::Full)?;
                if let Some((_, known)) = list.iter_mut().find(|(known, _)| known == glob) {
                    *known = number(*known);
                } else if list.len() < MAX_GLOBS {
                    list.push((glob.clone(), number(0)));
                } else if self.crowded.insert(place) {
                    return Err(Refused::Crowded);
                }
            }
        }
        self.mark(place, marks);
        Ok(())
    }

    /// Puts in a pattern of a set without numbers.
    pub(super) fn put_once(&mut self, pattern: &Pattern) -> Result<Read, Refused> {
        let mut read = Read::New;
        self.put(pattern, |number| {
            if number > 0 {
                read = Read::Again;
            }
            1
        })?;
        Ok(read)
    }

    /// Says something of the names above the names of the pattern that was put in last: of each, from the nearest to the
    /// root, until `number` returns what it was given.
    pub(super) fn say_below(&mut self, pattern: &Pattern, mut number: impl FnMut(u32) -> u32) {
        let own = usize::from(pattern.shape == Shape::Exact);
        for at in (0..self.path.len().saturating_sub(own)).rev() {
            let Some(place) = self.path.get(at).copied() else { return };
            let marks = self.marks(place);
            let below = number(marks.below);
            if below == marks.below {
                return;
            }
            self.mark(place, Marks { below, ..marks });
        }
    }

    /// Says something of a name and of those below it.
    pub(super) fn reserve(&mut self, name: &[u8], number: u32) {
        if self.patterns.names.insert(name, &mut self.path).is_ok() {
            let place = self.path.last().copied().unwrap_or_default();
            self.mark(place, Marks { reserved: number, ..self.marks(place) });
        }
    }

    /// What is said of the pattern's own name that was put in last, or of the nearest one above; 0: nothing.
    pub(super) fn reserved(&self) -> u32 {
        let said = self.path.iter().rev().map(|place| self.marks(*place).reserved);
        said.into_iter().find(|number| *number > 0).unwrap_or(0)
    }

    fn marks(&self, place: u32) -> Marks {
        self.patterns.marks.get(self.patterns.names.value(place) as usize).copied().unwrap_or_default()
    }

    fn mark(&mut self, place: u32, marks: Marks) {
        let Patterns { names, marks: all, .. } = &mut self.patterns;
        let number = *self.known.entry(marks).or_insert_with(|| {
            all.push(marks);
            u32::try_from(all.len() - 1).unwrap_or(0)
        });
        names.set(place, number);
    }

    /// The patterns of a set without numbers.
    pub(super) fn finish_set(self) -> Patterns {
        self.finish(|number| number, |_| 0)
    }

    /// The patterns, each number replaced by `number` and each one that is said of names below by `below`.
    pub(super) fn finish(self, mut number: impl FnMut(u32) -> u32, mut below: impl FnMut(u32) -> u32) -> Patterns {
        let Patterns { mut names, marks, mut globs } = self.patterns;
        drop(self.known);
        let mut replace = |old: u32| if old == 0 { 0 } else { number(old) };
        // Marks that names had on their way are nobody's now.
        let mut moved = vec![0; marks.len()];
        let mut kept = vec![Marks::default()];
        names.change(|old| {
            let (Some(to), Some(marks)) = (moved.get_mut(old as usize), marks.get(old as usize)) else { return 0 };
            if *to == 0 && old > 0 {
                kept.push(Marks {
                    exact: replace(marks.exact),
                    one: replace(marks.one),
                    many: replace(marks.many),
                    globs: marks.globs,
                    below: if marks.below == 0 { 0 } else { below(marks.below) },
                    reserved: marks.reserved,
                });
                *to = u32::try_from(kept.len() - 1).unwrap_or(0);
            }
            *to
        });
        for (_, number) in globs.iter_mut().flatten() {
            *number = replace(*number);
        }
        names.shrink();
        kept.shrink_to_fit();
        Patterns { names, marks: kept, globs }
    }
}
