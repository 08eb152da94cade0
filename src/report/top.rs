//! `top`: what most of the bytes went to; without flows, what most of the queries asked for.

use std::collections::BTreeSet;

use super::bounded::{Amount, Bounded, Ranked};
use super::sheet::{Cell, Column, Sheet, Table, number, percent, text};
use super::{Asked, Fate, Period, Report, Step, Went, reach};
use crate::flow::{Class, Detail};
use crate::time::Wall;

/// What rows are of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum By {
    /// Names.
    Name,
    /// Rules.
    Rule,
    /// Segments.
    Segment,
    /// Values of the tag of this key.
    Tag(String),
}

impl By {
    fn head(&self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Rule => "rule",
            Self::Segment => "segment",
            Self::Tag(_) => "tag",
        }
    }
}

/// Flows and their bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Traffic {
    flows: u64,
    out: u64,
    back: u64,
    uncounted: u64,
}

impl Traffic {
    fn of(flow: &Went<'_>) -> Self {
        let (out, back) = flow.bytes.unwrap_or_default();
        Self { flows: 1, out, back, uncounted: u64::from(flow.bytes.is_none()) }
    }

    const fn bytes(&self) -> u64 {
        self.out.saturating_add(self.back)
    }
}

impl Amount for Traffic {
    fn weight(&self) -> u64 {
        // Where nothing is counted, flows are.
        self.bytes().saturating_add(self.flows)
    }

    fn join(&mut self, other: Self) {
        self.flows += other.flows;
        self.out = self.out.saturating_add(other.out);
        self.back = self.back.saturating_add(other.back);
        self.uncounted += other.uncounted;
    }
}

/// Queries.
#[derive(Clone, Copy, Debug, Default)]
struct Queries {
    all: u64,
    allowed: u64,
}

impl Amount for Queries {
    fn weight(&self) -> u64 {
        self.all
    }

    fn join(&mut self, other: Self) {
        self.all += other.all;
        self.allowed += other.allowed;
    }
}

/// See the module.
#[derive(Debug)]
pub struct Top {
    by: By,
    period: Period,
    queries: Bounded<Queries>,
    traffic: Bounded<Traffic>,
    /// In the order of [`Class::ALL`].
    classes: [Traffic; Class::ALL.len()],
    /// Of the ambiguous bytes those whose names are all of one rule.
    one_rule: Traffic,
    began: u64,
}

impl Top {
    /// Begins with nothing.
    #[must_use]
    pub fn new(by: By, period: Period) -> Self {
        Self {
            by,
            period,
            queries: Bounded::default(),
            traffic: Bounded::default(),
            classes: Default::default(),
            one_rule: Traffic::default(),
            began: 0,
        }
    }

    /// What a flow is counted for: one row for each set of names that it may have had.
    fn key(&self, flow: &Went<'_>) -> String {
        let one = |name: &str| match class(flow) {
            Class::Exact | Class::Stale | Class::Static if !name.is_empty() => name.to_owned(),
            class => format!("({})", class.as_str()),
        };
        let ambiguous = class(flow) == Class::Ambiguous && !flow.names.is_empty();
        let several = |part: fn(&(&str, &str)) -> String| {
            let parts: BTreeSet<String> = flow.names.iter().map(part).collect();
            parts.into_iter().collect::<Vec<_>>().join(" or ")
        };
        match &self.by {
            By::Name if class(flow) == Class::Static && !flow.rule.is_empty() => format!("(static: {})", flow.rule),
            By::Name if ambiguous => several(|(name, _)| (*name).to_owned()),
            By::Name => one(flow.qname),
            By::Rule if ambiguous => several(|(_, rule)| (*rule).to_owned()),
            By::Rule => one(flow.rule),
            By::Segment if flow.segment.is_empty() => "(no segment)".to_owned(),
            By::Segment => flow.segment.to_owned(),
            By::Tag(_) if flow.tag.is_empty() => "(no such tag)".to_owned(),
            By::Tag(_) => flow.tag.to_owned(),
        }
    }

    fn by_traffic(self, limit: usize, notes: &mut Vec<String>) -> Vec<Table> {
        let Self { by, traffic, classes, one_rule, .. } = self;
        let mut total = Traffic::default();
        classes.iter().for_each(|class| total.join(*class));
        let counted = total.bytes() > 0;
        let whole = if counted { total.bytes() } else { total.flows };
        let share = |traffic: &Traffic| if counted { traffic.bytes() } else { traffic.flows };
        let cells = |traffic: &Traffic| {
            [
                Cell::Bytes(traffic.out),
                Cell::Bytes(traffic.back),
                Cell::Count(traffic.flows),
                Cell::Share(share(traffic), whole),
            ]
        };
        let of = |class: Class| {
            classes.iter().zip(Class::ALL).find(|(_, of)| **of == class).map_or(0, |(all, _)| share(all))
        };
        let what = if counted { "bytes" } else { "flows" };
        notes.push(format!(
            "{} of the {what} carry exactly one name; {} one name, one rule, or names of one rule",
            percent(of(Class::Exact), whole),
            percent(of(Class::Exact) + of(Class::Static) + share(&one_rule), whole),
        ));
        if total.uncounted > 0 {
            notes.push(format!(
                "{} of {} flows have no count of bytes; switch counting on with net.netfilter.nf_conntrack_acct = 1",
                total.uncounted, total.flows
            ));
        }
        let columns = |key, head| {
            vec![
                number("bytes_out", "out"),
                number("bytes_in", "in"),
                number("flows", "flows"),
                number("share", "share"),
                text(key, head),
            ]
        };
        let row = |traffic: &Traffic, last: Cell| cells(traffic).into_iter().chain([last]).collect::<Vec<_>>();
        let ranked = traffic.finish(limit);
        note_of_room(&ranked, notes);
        let others = format!("other ({} rows)", ranked.others);
        let rows = Table {
            key: "rows",
            title: format!("Bytes by {}", titled(&by)),
            columns: columns(by.head(), by.head()),
            other: (ranked.others > 0).then(|| row(&ranked.other, Cell::Text(others))),
            total: Some(row(&total, Cell::Text("total".into()))),
            unlisted: ranked.others,
            rows: ranked.rows.into_iter().map(|(key, traffic)| row(&traffic, (&*key.concat()).into())).collect(),
            empty: "no flow ended in that time",
        };
        let by_class = classes.iter().zip(Class::ALL).filter(|(traffic, _)| traffic.flows > 0);
        let classes = Table {
            key: "classes",
            title: "Bytes by what is known of their name".into(),
            columns: columns("class", "class"),
            rows: by_class.map(|(traffic, class)| row(traffic, class.as_str().into())).collect(),
            other: None,
            total: None,
            unlisted: 0,
            empty: "no flow ended in that time",
        };
        vec![rows, classes]
    }

    fn by_queries(self, limit: usize, notes: &mut Vec<String>) -> Table {
        let ranked = self.queries.finish(limit);
        note_of_room(&ranked, notes);
        let mut total = ranked.other;
        ranked.rows.iter().for_each(|(_, queries)| total.join(*queries));
        let row = |queries: &Queries, last: Cell| {
            vec![Cell::Count(queries.all), Cell::Count(queries.allowed), Cell::Share(queries.all, total.all), last]
        };
        let columns: Vec<Column> = vec![
            number("queries", "queries"),
            number("allowed", "allowed"),
            number("share", "share"),
            text(self.by.head(), self.by.head()),
        ];
        Table {
            key: "rows",
            title: format!("Queries by {}: the log has no flow records, so bytes are not known", titled(&self.by)),
            columns,
            other: (ranked.others > 0)
                .then(|| row(&ranked.other, Cell::Text(format!("other ({} rows)", ranked.others)))),
            total: Some(row(&total, Cell::Text("total".into()))),
            unlisted: ranked.others,
            rows: ranked.rows.iter().map(|(key, queries)| row(queries, (&*key.concat()).into())).collect(),
            empty: "no query in that time",
        }
    }
}

impl Report for Top {
    fn asked(&mut self, query: &Asked<'_>) {
        if !self.period.has_begun(query.at) {
            return;
        }
        let or = |text: &'static str, value| if str::is_empty(value) { text } else { value };
        let key = match &self.by {
            By::Name => or("(not readable)", query.qname),
            By::Rule => or("(no rule)", query.rule),
            By::Segment => or("(no segment)", query.segment),
            By::Tag(_) => or("(no such tag)", query.tag),
        };
        let row = self.queries.at(&[key]);
        row.all += 1;
        row.allowed += u64::from(matches!(query.fate, Fate::Allowed | Fate::Passed));
    }

    fn went(&mut self, flow: &Went<'_>) {
        if !self.period.has_begun(flow.at) || !flow.passed {
            return;
        }
        if flow.step != Step::Ended {
            self.began += 1;
            return;
        }
        let traffic = Traffic::of(flow);
        let key = self.key(flow);
        self.traffic.at(&[&key]).join(traffic);
        for (sum, of) in self.classes.iter_mut().zip(Class::ALL) {
            if *of == class(flow) {
                sum.join(traffic);
            }
        }
        if class(flow) == Class::Ambiguous && flow.detail == Some(Detail::SameRule) {
            self.one_rule.join(traffic);
        }
    }

    fn finish(self: Box<Self>, span: Option<(Wall, Wall)>, limit: usize) -> Sheet {
        let mut notes = reach(self.period, span);
        let flows = self.classes.iter().any(|class| class.flows > 0);
        let tables = if flows || self.began > 0 {
            self.by_traffic(limit, &mut notes)
        } else {
            vec![self.by_queries(limit, &mut notes)]
        };
        Sheet { report: "top", notes, tables }
    }
}

/// The class; one of a later version is not known here.
fn class(flow: &Went<'_>) -> Class {
    flow.class.unwrap_or(Class::Unknown)
}

fn titled(by: &By) -> String {
    match by {
        By::Tag(key) => format!("tag {key}"),
        by => by.head().to_owned(),
    }
}

/// Says where a table had a cap.
pub(super) fn note_of_room<V>(ranked: &Ranked<V>, notes: &mut Vec<String>) {
    if let Some(room) = ranked.room {
        notes.push(format!(
            "there was room for {room} rows: the lightest went into other, and a row may lack what came before"
        ));
    }
}
