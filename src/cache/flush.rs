//! What is dropped on demand.

use crate::name::{Name, is_within};

/// Which names are dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flush {
    /// This one.
    pub name: Name,
    /// And all below it.
    pub below: bool,
}

/// How many entries were dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flushed {
    /// Answers, also those that had ended.
    pub answers: usize,
    /// Failures.
    pub failures: usize,
    /// Prepared replies, one a client or segment.
    pub replies: usize,
}

impl Flush {
    /// Whether `name` (wire format, lower case) is one of them.
    pub(super) fn takes(&self, name: &[u8]) -> bool {
        let own = self.name.as_wire();
        if self.below { is_within(name, own) } else { name == own }
    }
}
