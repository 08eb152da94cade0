//! Reports: what a log says to those who answer for a network, in tables. Each report takes records one by one and is a
//! [`Sheet`] in the end.
//!
//! Pure: takes values, returns values; opens no file, reads no clock, knows no format of a log.
//!
//! - Memory does not grow with the log: every table has a cap, and what no longer fits is added up in a row of its own, so
//!   that the rows and that one are together the total.
//! - What the records do not say is told, not guessed: [`Sheet::notes`].

mod blocked;
mod bounded;
mod bypass;
mod exposure;
mod fresh;
mod late;
mod sheet;
#[cfg(test)]
mod tests;
mod top;
mod unused;

use std::net::IpAddr;
use std::time::Duration;

use crate::flow::{Class, Detail};
use crate::time::Wall;
pub use blocked::Blocked;
pub use bypass::Bypass;
pub use exposure::Exposure;
pub use fresh::Fresh;
pub use late::Late;
pub use sheet::{Cell, Column, Form, Sheet, Table, percent};
pub use top::{By, Top};
pub use unused::Unused;

/// The time that a report is of; what came before is its history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Period {
    /// From here on; `None`: all that there is.
    pub since: Option<Wall>,
    /// Until before here; `None`: all that there is.
    pub until: Option<Wall>,
}

impl Period {
    /// Whether it begins at this time or before.
    #[must_use]
    pub fn has_begun(&self, at: Wall) -> bool {
        self.since.is_none_or(|since| since <= at)
    }

    /// Whether it is over at this time.
    #[must_use]
    pub fn is_over(&self, at: Wall) -> bool {
        self.until.is_some_and(|until| until <= at)
    }
}

/// What became of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It was allowed.
    Allowed,
    /// It was denied, and passed since the segment observes.
    Passed,
    /// It was denied.
    Denied,
    /// It could not be answered.
    Failed,
}

/// One query of the log.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Its record's id.
    pub id: &'a str,
    /// When.
    pub at: Wall,
    /// Who asked.
    pub client: IpAddr,
    /// The name in the client's certificate that named its segment.
    pub certificate: Option<&'a str>,
    /// Its segment; empty: none.
    pub segment: &'a str,
    /// The value of the tag that is asked for; empty: none.
    pub tag: &'a str,
    /// The name asked for, as text.
    pub qname: &'a str,
    /// The type asked for.
    pub qtype: &'a str,
    /// What became of it.
    pub fate: Fate,
    /// Why.
    pub reason: &'a str,
    /// The rule; empty: none.
    pub rule: &'a str,
    /// The addresses it was told, where [`Needs::answers`] says so.
    pub addresses: &'a [IpAddr],
    /// Until when these are open at least, where [`Needs::grants`] says so.
    pub open_until: Option<Wall>,
}

/// One change of one grant.
#[derive(Clone, Copy, Debug)]
pub struct Opened<'a> {
    /// When.
    pub at: Wall,
    /// Its segment.
    pub segment: &'a str,
    /// The rule.
    pub rule: &'a str,
    /// The name asked for.
    pub qname: &'a str,
    /// What was opened.
    pub address: IpAddr,
}

/// A step of a flow that has a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It began.
    Began,
    /// It ended, or a foreign flow log has it: it is counted here.
    Ended,
    /// The firewall let it not through.
    Refused,
}

/// One flow, or the beginning of one.
#[derive(Clone, Copy, Debug)]
pub struct Went<'a> {
    /// When it began.
    pub at: Wall,
    /// What is told of it.
    pub step: Step,
    /// From whom.
    pub client: IpAddr,
    /// Its segment; empty: none.
    pub segment: &'a str,
    /// The value of the tag that is asked for; empty: none.
    pub tag: &'a str,
    /// Where to.
    pub address: IpAddr,
    /// By what: `tcp/443`.
    pub service: &'a str,
    /// Whether it was let through.
    pub passed: bool,
    /// How much is known of its name; `None`: a word of a later version.
    pub class: Option<Class>,
    /// More of that.
    pub detail: Option<Detail>,
    /// The one name; empty: there is not one.
    pub qname: &'a str,
    /// The rule of it; empty: none.
    pub rule: &'a str,
    /// Id of the query that last told it.
    pub query: &'a str,
    /// Where there are several: name and rule of each.
    pub names: &'a [(&'a str, &'a str)],
    /// How long after its grant's end it began.
    pub late: Option<Duration>,
    /// Bytes to the address, and back; `None`: not counted.
    pub bytes: Option<(u64, u64)>,
}

/// What a report needs that is not read otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// [`Asked::addresses`].
    pub answers: bool,
    /// [`Asked::open_until`].
    pub grants: bool,
}

/// A report that is being made. Records come in any order of time; none after the end of the period.
pub trait Report {
    /// What it needs.
    fn needs(&self) -> Needs {
        Needs::default()
    }

    /// Takes one query.
    fn asked(&mut self, _: &Asked<'_>) {}

    /// Takes one grant.
    fn opened(&mut self, _: &Opened<'_>) {}

    /// Takes one flow.
    fn went(&mut self, _: &Went<'_>) {}

    /// Takes the news that these rules are in the policy from here on.
    fn added(&mut self, _: Wall, _: &[&str]) {}

    /// The report, `limit` rows a table; the time of the first and the last record that were read, of any kind.
    fn finish(self: Box<Self>, span: Option<(Wall, Wall)>, limit: usize) -> Sheet;
}

/// What a report of flows says where there are none.
const NO_FLOWS: &str =
    "the log has no flow records; switch them on with [flow] of outgate.toml, or make them with `outgate correlate`";

/// What a sheet says of the time it is of: when the log begins and ends within the period, and what of it is missing.
fn reach(period: Period, span: Option<(Wall, Wall)>) -> Vec<String> {
    let Some((first, last)) = span else { return vec!["the log has no record of that time".to_owned()] };
    let begin = period.since.map_or(first, |since| since.max(first));
    let mut notes = vec![format!("from {begin} to {last}")];
    if let Some(since) = period.since.filter(|since| *since < first) {
        notes.push(format!("the log begins at {first}: of the time from {since} until then nothing is known"));
    }
    notes
}
