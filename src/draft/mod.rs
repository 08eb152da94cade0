//! Drafts: rules as text, for people to read and put into their policy. Made of what other systems have, or of what was
//! asked for.
//!
//! Pure: takes text and values, returns values; opens no file, reads no clock. The same input makes the same text.
//!
//! - What is written passes `check` as it is, where its segments exist.
//! - What cannot be said in the words of a policy is left out, with its place and why. Nothing is widened: where a list is
//!   vague, an allow takes the narrower meaning and a deny the wider one.

mod cilium;
mod learn;
mod list;
mod names;
mod rpz;
#[cfg(test)]
mod testing;
mod text;
mod yaml;

use std::fmt;

use crate::document::Mistake;
use crate::net::Services;
use crate::policy::Action;
use crate::record::RecordType;
pub use cilium::cilium;
pub use learn::{Fate, LearnTerms, Learned, Learner, Seen};
pub use list::{ListTerms, list};
pub use rpz::rpz;
pub use text::{quoted, safe};

/// What all rules of a draft have in common.
#[derive(Clone, Debug)]
pub struct Heading {
    /// `segments` of each rule.
    pub segments: Vec<String>,
    /// How each rule's id begins, or all of it where there is one rule.
    pub id: String,
}

/// Rules to be read by people; [`fmt::Display`] writes them as TOML.
#[derive(Debug, Default)]
pub struct Draft {
    /// What stands above all rules, a line each.
    pub head: Vec<String>,
    /// The rules.
    pub rules: Vec<Rule>,
    /// What stands below all rules, a line each.
    pub tail: Vec<String>,
    /// What could not be carried over, in the order of places.
    pub left: Vec<Mistake>,
    /// What was carried over and means a little less or something else.
    pub notes: Vec<String>,
}

/// One rule to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What stands above it, a line each.
    pub comment: Vec<String>,
    /// `id`.
    pub id: String,
    /// `action`.
    pub action: Action,
    /// `segments`.
    pub segments: Vec<String>,
    /// `names`, each with what stands behind it.
    pub names: Vec<Entry>,
    /// `except`.
    pub except: Vec<String>,
    /// `types`; empty: not written.
    pub types: Vec<RecordType>,
    /// `https = "filter"`.
    pub https: bool,
    /// `ports`; empty: not written.
    pub ports: Vec<Services>,
}

/// One name of a rule to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// As `names` has it.
    pub name: String,
    /// What stands behind it; may be empty.
    pub comment: String,
}

impl Rule {
    fn new(id: String, action: Action, heading: &Heading) -> Self {
        Self {
            comment: Vec::new(),
            id,
            action,
            segments: heading.segments.clone(),
            names: Vec::new(),
            except: Vec::new(),
            types: Vec::new(),
            https: false,
            ports: Vec::new(),
        }
    }
}

impl Draft {
    /// How many names its rules of this action have.
    #[must_use]
    pub fn count(&self, action: Action) -> usize {
        self.rules.iter().filter(|rule| rule.action == action).map(|rule| rule.names.len()).sum()
    }
}

impl fmt::Display for Draft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        text::write(self, f)
    }
}
