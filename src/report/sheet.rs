//! What a report says: tables, and sentences above them. It is text or JSON where it is printed.

use std::time::Duration;

use super::bounded::Few;
use crate::time::Wall;

/// A report that is finished.
#[derive(Debug)]
pub struct Sheet {
    /// Its name.
    pub report: &'static str,
    /// What was found out about the log and what is not known; a sentence each.
    pub notes: Vec<String>,
    /// The tables.
    pub tables: Vec<Table>,
}

/// One table.
#[derive(Debug)]
pub struct Table {
    /// Its key in JSON.
    pub key: &'static str,
    /// What it shows.
    pub title: String,
    /// The columns.
    pub columns: Vec<Column>,
    /// The rows, each with a cell for each column.
    pub rows: Vec<Vec<Cell>>,
    /// What has no row.
    pub other: Option<Vec<Cell>>,
    /// Rows and other together.
    pub total: Option<Vec<Cell>>,
    /// Rows that are not shown.
    pub unlisted: u64,
    /// What an empty one means.
    pub empty: &'static str,
}

/// One column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its key in JSON.
    pub key: &'static str,
    /// Its head in text.
    pub head: &'static str,
    /// How it is set.
    pub form: Form,
}

/// How a column is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// From the left.
    Text,
    /// To the right.
    Number,
}

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// There is none.
    Empty,
    /// Text; of the log, so it may hold anything.
    Text(String),
    /// A number.
    Count(u64),
    /// Bytes.
    Bytes(u64),
    /// A part of something.
    Share(u64, u64),
    /// A moment.
    Moment(Wall),
    /// How long.
    Span(Duration),
    /// Several, and whether there are more.
    List(Vec<String>, bool),
}

/// A column of text.
pub(super) const fn text(key: &'static str, head: &'static str) -> Column {
    Column { key, head, form: Form::Text }
}

/// A column of numbers.
pub(super) const fn number(key: &'static str, head: &'static str) -> Column {
    Column { key, head, form: Form::Number }
}

/// A part of something, as people write it: `97.3 %`.
#[must_use]
pub fn percent(part: u64, whole: u64) -> String {
    let tenths = u128::from(part) * 1000 / u128::from(whole.max(1));
    format!("{}.{} %", tenths / 10, tenths % 10)
}

impl Cell {
    pub(super) fn few<T: ToString + PartialEq>(few: &Few<T>) -> Self {
        let (told, more) = few.told();
        Self::List(told, more)
    }

    pub(super) fn moment(at: Option<Wall>) -> Self {
        at.map_or(Self::Empty, Self::Moment)
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        if text.is_empty() { Self::Empty } else { Self::Text(text.to_owned()) }
    }
}

/// When something was seen first and last, and by whom.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    pub(super) count: u64,
    pub(super) first: Option<Wall>,
    pub(super) last: Option<Wall>,
    pub(super) clients: Few<std::net::IpAddr>,
    pub(super) segments: Few<Box<str>>,
}

impl Seen {
    pub(super) fn add(&mut self, at: Wall, client: std::net::IpAddr, segment: &str) {
        self.count += 1;
        self.first = Some(self.first.map_or(at, |first| first.min(at)));
        self.last = self.last.max(Some(at));
        self.clients.put(client);
        if !segment.is_empty() {
            self.segments.add(segment);
        }
    }

    pub(super) fn join(&mut self, other: Self) {
        self.count += other.count;
        self.first = [self.first, other.first].into_iter().flatten().min();
        self.last = self.last.max(other.last);
        self.clients.join(other.clients);
        self.segments.join(other.segments);
    }
}
