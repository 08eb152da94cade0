//! A record of the policy as it stands in its line.

use serde::Deserialize;

use super::query::Text;
use crate::audit::read::micros;
use crate::time::Wall;

/// What became of the policy; the fields are those of docs/log.md, and what is absent there is empty.
#[derive(Clone, Debug, Deserialize)]
pub struct PolicyChange<'a> {
    #[serde(borrow)]
    ts: Text<'a>,
    #[serde(borrow, default)]
    changes: Changes<'a>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Changes<'a> {
    #[serde(borrow, default)]
    rules_added: Vec<Text<'a>>,
}

impl<'a> PolicyChange<'a> {
    pub(super) fn read(line: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }

    /// When.
    #[must_use]
    pub fn at(&self) -> Wall {
        Wall(micros(&self.ts).unwrap_or(0))
    }

    /// Rules that are new in it, as far as the record names them.
    #[must_use]
    pub fn rules_added(&self) -> &[Text<'a>] {
        &self.changes.rules_added
    }
}
