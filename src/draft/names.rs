//! Names on their way into rules: each once, and none that `check` would not have.

use std::collections::{HashMap, HashSet};

use crate::name::Name;
use crate::policy::{Action, Objection, Vetter, registrable};

/// Owners of suffixes that others have names below.
const HOSTING: &str = include_str!("hosting.txt");

/// The names of rules of one action.
pub(super) struct Names<'v> {
    vetter: &'v Vetter,
    action: Action,
    seen: HashSet<String>,
    /// By the suffix that carries them.
    globs: HashMap<Box<[u8]>, usize>,
    /// Those of any depth that may match names of others.
    reaching: Vec<String>,
}

/// What became of a name.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// It is new; as a rule has it.
    New(String),
    /// It is there already.
    Again,
    /// A rule should not have it; the end of a sentence, and what to do.
    Refused(String, &'static str),
}

impl<'v> Names<'v> {
    pub(super) fn new(vetter: &'v Vetter, action: Action) -> Self {
        Self { vetter, action, seen: HashSet::new(), globs: HashMap::new(), reaching: Vec::new() }
    }

    pub(super) fn take(&mut self, text: &str) -> Taken {
        let pattern = match self.vetter.vet(text, self.action) {
            Ok(pattern) => pattern,
            Err(objection) => return Taken::refused(&objection),
        };
        let name = pattern.to_string();
        if self.seen.contains(&name) {
            return Taken::Again;
        }
        if pattern.is_glob() {
            let globs = self.globs.entry(pattern.base().into()).or_default();
            if *globs == Vetter::MAX_GLOBS {
                let fact = format!("is one of more than {} with `*` inside a label on one suffix", Vetter::MAX_GLOBS);
                return Taken::Refused(fact, "write wider ones");
            }
            *globs += 1;
        }
        if name.starts_with("**.")
            && self.action == Action::Allow
            && registrable(pattern.base()).is_some_and(is_hosting)
        {
            self.reaching.push(name.clone());
        }
        self.seen.insert(name.clone());
        Taken::New(name)
    }
}

impl Names<'_> {
    /// What should be known of names of any depth that were taken: `check` has no objection to them.
    pub(super) fn reaching(&self) -> Option<String> {
        let (first, more) = self.reaching.split_first()?;
        let more = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
        Some(format!("\"{first}\"{more}: public suffixes lie deeper, so names that others have may match"))
    }
}

/// Whether others have names somewhere below an owner's, although not directly.
pub(super) fn is_hosting(owner: &[u8]) -> bool {
    let Ok(owner) = Name::from_wire(owner).map(|name| name.to_string()) else { return false };
    HOSTING.lines().any(|line| line == owner)
}

impl Taken {
    fn refused(objection: &Objection) -> Self {
        Self::Refused(objection.to_string(), objection.remedy())
    }
}

/// Letters, digits, `-`, `_`, dots and `*`, or letters outside ASCII: what lists of host names hold. A policy would take
/// anything for a name that DNS can carry.
pub(super) fn is_host_text(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '*') || c.is_alphabetic())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_of_suffixes_are_registered_names() {
        let owners: Vec<&str> = HOSTING.lines().filter(|line| !line.starts_with('#')).collect();
        assert!(owners.is_sorted() && owners.len() > 100);
        for owner in owners {
            let name = Name::parse(owner).unwrap();
            assert_eq!(registrable(name.as_wire()), Some(name.as_wire()), "{owner}");
        }
    }

    #[test]
    fn a_wildcard_over_suffixes_is_told() {
        let vetter = Vetter::default();
        let mut names = Names::new(&vetter, Action::Allow);
        for name in ["**.example.org", "*.amazonaws.com", "s3.amazonaws.com"] {
            assert!(matches!(names.take(name), Taken::New(_)));
        }
        assert_eq!(names.reaching(), None);
        names.take("**.amazonaws.com");
        names.take("**.core.windows.net");
        let expected =
            "\"**.amazonaws.com\" and 1 more: public suffixes lie deeper, so names that others have may match";
        assert_eq!(names.reaching().as_deref(), Some(expected));
    }
}
