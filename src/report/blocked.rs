//! `blocked`: what was refused, names and destinations, and who asked.

use super::bounded::{Amount, Bounded};
use super::sheet::{Cell, Seen, Sheet, Table, number, text};
use super::top::note_of_room;
use super::{Asked, Fate, Period, Report, Step, Went, reach};
use crate::flow::{Class, Detail};
use crate::name::NameBuf;
use crate::policy::registrable;
use crate::time::Wall;

impl Amount for Seen {
    fn weight(&self) -> u64 {
        self.count
    }

    fn join(&mut self, other: Self) {
        Self::join(self, other);
    }
}

/// See the module.
#[derive(Debug)]
pub struct Blocked {
    /// Names below one registered name are one row.
    by_domain: bool,
    period: Period,
    names: Bounded<Seen>,
    destinations: Bounded<Seen>,
    flows: bool,
    observed: u64,
}

impl Blocked {
    /// Begins with nothing.
    #[must_use]
    pub fn new(by_domain: bool, period: Period) -> Self {
        let (names, destinations) = (Bounded::default(), Bounded::default());
        Self { by_domain, period, names, destinations, flows: false, observed: 0 }
    }
}

impl Report for Blocked {
    fn asked(&mut self, query: &Asked<'_>) {
        if !self.period.has_begun(query.at) || !matches!(query.fate, Fate::Denied | Fate::Passed) {
            return;
        }
        if query.fate == Fate::Passed {
            self.observed += 1;
            return;
        }
        let name = if self.by_domain { domain(query.qname) } else { query.qname.to_owned() };
        self.names.at(&[&name, query.reason, query.rule]).add(query.at, query.client, query.segment);
    }

    fn went(&mut self, flow: &Went<'_>) {
        self.flows = true;
        if !self.period.has_begun(flow.at) || flow.passed || flow.step == Step::Began {
            return;
        }
        let class = flow.class.map_or("unknown", Class::as_str);
        let why = flow.detail.map_or(class, Detail::as_str);
        let address = flow.address.to_string();
        self.destinations.at(&[&address, flow.service, flow.qname, why]).add(flow.at, flow.client, flow.segment);
    }

    fn finish(self: Box<Self>, span: Option<(Wall, Wall)>, limit: usize) -> Sheet {
        let mut notes = reach(self.period, span);
        if self.observed > 0 {
            notes.push(format!(
                "{} queries more passed, since their segment observes; `outgate learn` makes rules of them",
                self.observed
            ));
        }
        if !self.flows {
            notes.push("the log has no flow records: destinations that the firewall refused are not known".to_owned());
        }
        let head = if self.by_domain { "domain" } else { "name" };
        let names = table("names", format!("Denied {head}s"), &[head, "reason", "rule"], self.names, limit, &mut notes);
        let heads = ["address", "service", "name", "why"];
        let title = "Refused destinations".to_owned();
        let destinations = table("destinations", title, &heads, self.destinations, limit, &mut notes);
        Sheet { report: "blocked", notes, tables: vec![names, destinations] }
    }
}

fn table(
    key: &'static str,
    title: String,
    heads: &[&'static str],
    seen: Bounded<Seen>,
    limit: usize,
    notes: &mut Vec<String>,
) -> Table {
    let ranked = seen.finish(limit);
    note_of_room(&ranked, notes);
    let mut total = ranked.other.count;
    let row = |seen: &Seen, parts: Vec<Cell>| {
        let counted = [Cell::Count(seen.count), Cell::moment(seen.first), Cell::moment(seen.last)];
        let asked = [Cell::few(&seen.clients), Cell::few(&seen.segments)];
        counted.into_iter().chain(parts).chain(asked).collect::<Vec<_>>()
    };
    let mut columns = vec![number("count", "count"), text("first", "first"), text("last", "last")];
    columns.extend(heads.iter().map(|head| text(head, head)));
    columns.extend([text("clients", "clients"), text("segments", "segments")]);
    let rows = ranked.rows.into_iter().map(|(parts, seen)| {
        total += seen.count;
        let mut parts: Vec<Cell> = parts.iter().map(|part| part.as_str().into()).collect();
        parts.resize(heads.len(), Cell::Empty);
        row(&seen, parts)
    });
    let rows: Vec<_> = rows.collect();
    let named = |name: String| {
        let mut parts = vec![Cell::Text(name)];
        parts.resize(heads.len(), Cell::Empty);
        parts
    };
    let width = columns.len();
    let mut sum = vec![Cell::Count(total), Cell::Empty, Cell::Empty];
    sum.extend(named("total".into()));
    sum.resize(width, Cell::Empty);
    let other = row(&ranked.other, named(format!("other ({} rows)", ranked.others)));
    Table {
        key,
        title,
        columns,
        other: (ranked.others > 0).then_some(other),
        total: Some(sum),
        unlisted: ranked.others,
        rows,
        empty: "nothing was refused in that time",
    }
}

/// The registered name that a name is below; the name itself where there is none.
pub(super) fn domain(name: &str) -> String {
    let Ok(wire) = NameBuf::parse(name) else { return name.to_owned() };
    let Some(registered) = registrable(&wire) else { return name.to_owned() };
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = crate::name::write_presentation(registered, &mut text);
    text
}
