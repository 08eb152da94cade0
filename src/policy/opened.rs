//! What an allow rule opens of the names that are not left to the rules alone: `guard = "override"`, and the mistakes.

use super::load::Placed;
use super::pattern::{Pattern, Shape};
use super::reserved::{Entry, Reserved, What};
use super::verdict::ReservedIndex;
use crate::document::{Found, Table};
use crate::name::Name;

/// A name that an allow rule has, and the special-use name that it is or is below.
pub(super) type Special = (Name, ReservedIndex);

/// One rule's names, as they are read.
pub(super) struct Opened<'a> {
    table: &'a Table,
    reserved: &'a Reserved,
    overrides: bool,
    /// One of them is exact.
    exact: bool,
    special: Vec<Placed<Special>>,
}

impl<'a> Opened<'a> {
    /// Reads `guard`, which only a rule that allows may have.
    pub(super) fn new(table: &'a Table, reserved: &'a Reserved) -> Self {
        let guard = table.string("guard");
        if let Some(other) = guard.as_ref().filter(|guard| guard.value != "override") {
            let fact = format!("`guard` cannot be \"{}\"", other.value);
            table.document().note(&other.span, fact, "write \"override\", or remove it");
        }
        Self { table, reserved, overrides: guard.is_some(), exact: false, special: Vec::new() }
    }

    /// Checks one name; `number` is what the index says of it. True where it is a special-use name, which is nobody's
    /// outside this network.
    pub(super) fn check(&mut self, entry: &Found<&str>, pattern: &Pattern, number: u32) -> bool {
        let exact = pattern.shape == Shape::Exact;
        self.exact |= exact;
        let Some((index, Entry { what, name, .. })) = self.reserved.read(number) else { return false };
        let document = self.table.document();
        let text = entry.value;
        match what {
            What::Special { fixed: true, .. } => {
                let fact = format!("\"{text}\" can never be opened: {name} is a special-use name, answered here");
                document.note(&entry.span, fact, "remove it");
            }
            What::Special { .. } => {
                let value = (pattern.base.to_name(), index);
                self.special.push(Placed { value, place: document.place(&entry.span) });
            }
            What::Bypass if !exact => {
                let fact = format!("\"{text}\" matches nothing: wildcards do not open {name}, of the bypass list");
                document.note(&entry.span, fact, "name each name that is meant, with guard = \"override\"");
            }
            What::Bypass if !self.overrides => {
                let fact = format!("\"{text}\" leads round this resolver: {name} is on the bypass list");
                document.note(&entry.span, fact, "remove it, or add guard = \"override\" to the rule");
            }
            What::Bypass | What::Root | What::Discovery => {}
        }
        matches!(what, What::Special { .. })
    }

    /// Its special-use names.
    pub(super) fn finish(self, allows: bool) -> Vec<Placed<Special>> {
        if allows && self.overrides && !self.exact && self.table.has("names") {
            let fact = "`guard` in a rule without an exact name: wildcards do not open the bypass list";
            self.table.document().note(&self.table.span_of("guard"), fact, "name what is meant, or remove it");
        }
        self.special
    }
}
