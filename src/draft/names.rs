//! Names on their way into rules: each once, and none that `check` would not have.

use std::collections::{HashMap, HashSet};

use crate::policy::{Action, Objection, Vetter};

/// The names of rules of one action.
pub(super) struct Names<'v> {
    vetter: &'v Vetter,
    action: Action,
    seen: HashSet<String>,
    /// By the suffix that carries them.
    globs: HashMap<Box<[u8]>, usize>,
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
        Self { vetter, action, seen: HashSet::new(), globs: HashMap::new() }
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
        self.seen.insert(name.clone());
        Taken::New(name)
    }
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
