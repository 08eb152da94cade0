//! A TOML document read with places: every mistake of a file is collected, none stops the reading.
//!
//! [`Document::parse`] gives a [`Table`]; each accessor takes a key, notes a [`Mistake`] where the value has the
//! wrong shape and returns `None`; [`Table::finish`] notes every key that nobody asked for, by name.

mod file;
mod list;
mod place;
mod quantity;
mod warning;

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::ops::Range;
use std::rc::Rc;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

pub use file::{read_file, read_text};
use list::{Items, Rest};
pub use place::{Lines, Mistake, Place};
use quantity::parse_size;
pub use quantity::{parse_duration, write_duration};
pub use warning::{Warning, WarningKind};

use crate::time::Wall;

/// Mistakes of one file that are kept; those after them are counted. Enough to correct at one sitting.
pub const MAX_MISTAKES: usize = 1000;

/// A span of a document, turned into a [`Place`] on demand.
pub type Span = Range<usize>;

struct Shared {
    lines: Lines<'static>,
    mistakes: RefCell<Vec<Mistake>>,
    /// The first mistake that was not kept, and how many were not.
    more: Cell<Option<(usize, usize)>>,
}

/// One file's text and the mistakes found in it so far.
#[derive(Clone)]
pub struct Document(Rc<Shared>);

impl Document {
    /// Parses `text`; syntax mistakes are noted, and what could be read is returned.
    #[must_use]
    pub fn parse(file: &str, text: impl Into<String>) -> (Self, Table) {
        let lines = Lines::new(Arc::from(file), text.into());
        let document = Self(Rc::new(Shared { lines, mistakes: RefCell::default(), more: Cell::default() }));
        let rest = Rest::of(document.0.lines.text());
        let (root, errors) = DeTable::parse_recoverable(&rest.text);
        for error in errors {
            let span = whole(&rest, error.span().unwrap_or(0..0));
            document.note(&span, error.message(), "correct the TOML syntax here");
        }
        let span = whole(&rest, root.span());
        let entries = owned_entries(&rest, root.into_inner());
        let table = Table { document: document.clone(), span, entries, asked: RefCell::default() };
        (document, table)
    }

    /// The place of a span.
    #[must_use]
    pub fn place(&self, span: &Span) -> Place {
        self.0.lines.place(span.start)
    }

    /// Notes a mistake.
    pub fn note(&self, span: &Span, fact: impl Into<String>, remedy: impl Into<String>) {
        let mut mistakes = self.0.mistakes.borrow_mut();
        if mistakes.len() < MAX_MISTAKES {
            mistakes.push(Mistake::at(self.place(span), fact, remedy));
        } else {
            let (first, count) = self.0.more.get().unwrap_or((span.start, 0));
            self.0.more.set(Some((first.min(span.start), count + 1)));
        }
    }

    /// All mistakes noted so far, in file order, the last of them perhaps how many more there are; the document forgets
    /// them.
    #[must_use]
    pub fn take_mistakes(&self) -> Vec<Mistake> {
        let mut mistakes = self.0.mistakes.take();
        mistakes.sort();
        mistakes.dedup();
        if let Some((first, count)) = self.0.more.take() {
            let fact = format!("{count} more mistakes are in this file, from here on");
            mistakes.push(Mistake::at(self.0.lines.place(first), fact, "correct those above first"));
        }
        mistakes
    }
}

/// A moment as TOML and RFC 3339 write it, with an offset or `Z`.
#[must_use]
pub fn parse_moment(text: &str) -> Option<Wall> {
    let moment: toml::value::Datetime = text.parse().ok()?;
    (moment.date.is_some() && moment.time.is_some() && moment.offset.is_some()).then(|| wall(&moment))
}

/// A date-time with offset as microseconds since 1970; what lies before is 1970.
fn wall(moment: &toml::value::Datetime) -> Wall {
    let (Some(date), Some(time)) = (moment.date, moment.time) else { return Wall(0) };
    let offset = match moment.offset {
        Some(toml::value::Offset::Custom { minutes }) => i64::from(minutes),
        _ => 0,
    };
    let [hour, minute, second] = [time.hour, time.minute, time.second.unwrap_or(0)].map(i64::from);
    let seconds = (hour * 60 + minute - offset) * 60 + second;
    let whole = Wall::from_civil(date.year.into(), date.month.into(), date.day.into(), seconds);
    Wall(whole.0 + u64::from(time.nanosecond.unwrap_or(0) / 1000))
}

/// A span of the rest as one of the whole text.
fn whole(rest: &Rest, span: Span) -> Span {
    rest.whole(span.start)..rest.whole(span.end)
}

/// A value without ties to the text.
#[derive(Clone, Debug)]
enum Value {
    String(String),
    Integer(Option<i64>),
    Boolean(bool),
    Datetime(toml::value::Datetime),
    Array(Vec<Spanned<Self>>),
    /// An array of plain strings, or of nothing; its items are read where they stand.
    List,
    Table(Rc<[Entry]>),
    Float,
}

/// A key and its value.
type Entry = (Spanned<String>, Spanned<Value>);

impl Value {
    const fn kind(&self) -> &'static str {
        match self {
            Self::String(_) => "a string",
            Self::Integer(_) => "an integer",
            Self::Boolean(_) => "a boolean",
            Self::Datetime(_) => "a date-time",
            Self::Array(_) | Self::List => "an array",
            Self::Table(_) => "a table",
            Self::Float => "a float",
        }
    }
}

fn owned_entries(rest: &Rest, table: DeTable<'_>) -> Rc<[Entry]> {
    let entry = |(key, value): (Spanned<Cow<'_, str>>, _)| {
        (Spanned::new(whole(rest, key.span()), key.into_inner().into_owned()), owned(rest, value))
    };
    table.into_iter().map(entry).collect()
}

fn owned(rest: &Rest, value: Spanned<DeValue<'_>>) -> Spanned<Value> {
    let span = whole(rest, value.span());
    let value = match value.into_inner() {
        DeValue::String(text) => Value::String(text.into_owned()),
        DeValue::Integer(number) => Value::Integer(i64::from_str_radix(number.as_str(), number.radix()).ok()),
        DeValue::Float(_) => Value::Float,
        DeValue::Boolean(value) => Value::Boolean(value),
        DeValue::Datetime(value) => Value::Datetime(value),
        DeValue::Array(items) if items.is_empty() => Value::List,
        DeValue::Array(items) => Value::Array(items.into_iter().map(|item| owned(rest, item)).collect()),
        DeValue::Table(table) => Value::Table(owned_entries(rest, table)),
    };
    Spanned::new(span, value)
}

/// A value with its place.
#[derive(Clone, Debug)]
pub struct Found<T> {
    /// The value.
    pub value: T,
    /// Where it stands.
    pub span: Span,
}

impl Found<&str> {
    fn owned(self) -> Found<String> {
        Found { value: self.value.to_owned(), span: self.span }
    }
}

/// One table of a document.
pub struct Table {
    document: Document,
    span: Span,
    entries: Rc<[Entry]>,
    asked: RefCell<HashSet<&'static str>>,
}

impl Table {
    /// Where the table stands.
    #[must_use]
    pub const fn span(&self) -> &Span {
        &self.span
    }

    /// The document it is part of.
    #[must_use]
    pub const fn document(&self) -> &Document {
        &self.document
    }

    fn find(&self, key: &'static str) -> Option<&Spanned<Value>> {
        self.asked.borrow_mut().insert(key);
        self.entries.iter().find(|(found, _)| found.get_ref() == key).map(|(_, value)| value)
    }

    fn wrong(&self, key: &str, value: &Spanned<Value>, wanted: &str) {
        self.is(key, &value.span(), value.get_ref().kind(), wanted);
    }

    fn is(&self, key: &str, span: &Span, kind: &str, wanted: &str) {
        self.document.note(span, format!("`{key}` is {kind}"), format!("write {wanted}"));
    }

    /// True where the key is there, whatever its value; the key counts as asked for.
    #[must_use]
    pub fn has(&self, key: &'static str) -> bool {
        self.find(key).is_some()
    }

    /// Where a key's value stands, or the table itself.
    #[must_use]
    pub fn span_of(&self, key: &'static str) -> Span {
        self.find(key).map_or_else(|| self.span.clone(), Spanned::span)
    }

    /// A string.
    #[must_use]
    pub fn string(&self, key: &'static str) -> Option<Found<String>> {
        let value = self.find(key)?;
        match value.get_ref() {
            Value::String(text) => Some(Found { value: text.clone(), span: value.span() }),
            _ => {
                self.wrong(key, value, &format!("{key} = \"…\""));
                None
            }
        }
    }

    /// A string that must be there.
    #[must_use]
    pub fn required_string(&self, key: &'static str) -> Option<Found<String>> {
        if self.find(key).is_none() {
            self.document.note(&self.span, format!("`{key}` is missing"), format!("add {key} = \"…\""));
        }
        self.string(key)
    }

    /// A string that parses as `T`; `remedy` is what to write instead where it does not.
    #[must_use]
    pub fn parsed<T: FromStr>(&self, key: &'static str, remedy: &str) -> Option<Found<T>> {
        let found = self.string(key)?;
        match found.value.parse() {
            Ok(value) => Some(Found { value, span: found.span }),
            Err(_) => {
                self.document.note(&found.span, format!("`{key}` cannot be \"{}\"", found.value), remedy);
                None
            }
        }
    }

    /// A boolean.
    #[must_use]
    pub fn boolean(&self, key: &'static str) -> Option<bool> {
        let value = self.find(key)?;
        match value.get_ref() {
            Value::Boolean(value) => Some(*value),
            _ => {
                self.wrong(key, value, &format!("{key} = true or {key} = false"));
                None
            }
        }
    }

    /// An integer within `range`.
    #[must_use]
    pub fn integer(&self, key: &'static str, range: std::ops::RangeInclusive<i64>) -> Option<i64> {
        let value = self.find(key)?;
        match value.get_ref() {
            Value::Integer(Some(number)) if range.contains(number) => Some(*number),
            Value::Integer(_) => {
                let remedy = format!("write a number from {} to {}", range.start(), range.end());
                self.document.note(&value.span(), format!("`{key}` is out of range"), remedy);
                None
            }
            _ => {
                self.wrong(key, value, &format!("{key} = {}", range.start()));
                None
            }
        }
    }

    /// A duration written as a string: `"500ms"`, `"5s"`, `"10m"`, `"2h"`, `"1d"`.
    #[must_use]
    pub fn duration(&self, key: &'static str, range: std::ops::RangeInclusive<Duration>) -> Option<Duration> {
        let found = self.string(key)?;
        match parse_duration(&found.value) {
            Some(duration) if range.contains(&duration) => Some(duration),
            Some(_) => {
                let remedy = format!(
                    "write a duration from {} to {}",
                    write_duration(*range.start()),
                    write_duration(*range.end())
                );
                self.document.note(&found.span, format!("`{key}` = \"{}\" is out of range", found.value), remedy);
                None
            }
            None => {
                let fact = format!("`{key}` = \"{}\" is not a duration", found.value);
                self.document.note(&found.span, fact, "write \"500ms\", \"5s\", \"10m\", \"2h\" or \"1d\"");
                None
            }
        }
    }

    /// A size written as a string: `"64KiB"`, `"256MiB"`, `"20GiB"`, or bytes.
    #[must_use]
    pub fn size(&self, key: &'static str) -> Option<u64> {
        let found = self.string(key)?;
        let size = parse_size(&found.value);
        if size.is_none() {
            let fact = format!("`{key}` = \"{}\" is not a size", found.value);
            self.document.note(&found.span, fact, "write \"64KiB\", \"256MiB\" or \"20GiB\"");
        }
        size
    }

    /// A date-time with offset, as microseconds since 1970 are for [`crate::time::Wall`]; a date without time or
    /// offset is a mistake.
    #[must_use]
    pub fn moment(&self, key: &'static str) -> Option<Wall> {
        let value = self.find(key)?;
        match value.get_ref() {
            Value::Datetime(moment) if moment.date.is_some() && moment.time.is_some() && moment.offset.is_some() => {
                Some(wall(moment))
            }
            _ => {
                self.wrong(key, value, &format!("{key} = 2026-12-31T00:00:00Z"));
                None
            }
        }
    }

    /// Each string of an array, as it is come to: none of them is kept.
    #[must_use]
    pub fn each(&self, key: &'static str) -> Option<impl Iterator<Item = Found<&str>>> {
        let value = self.find(key)?;
        let strings = self.strings_of(key, value);
        if strings.is_none() {
            self.wrong(key, value, &format!("{key} = [\"…\"]"));
        }
        strings
    }

    /// An array of strings.
    #[must_use]
    pub fn strings(&self, key: &'static str) -> Option<Vec<Found<String>>> {
        Some(self.each(key)?.map(Found::owned).collect())
    }

    /// The strings of an array, what is none of them noted; `None` where it is no array.
    fn strings_of<'a>(
        &'a self,
        key: &'a str,
        value: &'a Spanned<Value>,
    ) -> Option<impl Iterator<Item = Found<&'a str>>> {
        let (items, listed) = match value.get_ref() {
            Value::Array(items) => (items.as_slice(), None),
            Value::List => (Default::default(), Some(Items::new(self.document.0.lines.text(), value.span().start))),
            _ => return None,
        };
        let strings = items.iter().filter_map(move |item| match item.get_ref() {
            Value::String(text) => Some(Found { value: text.as_str(), span: item.span() }),
            _ => {
                self.wrong(key, item, "a string in quotes");
                None
            }
        });
        Some(strings.chain(listed.into_iter().flatten().map(|(value, span)| Found { value, span })))
    }

    /// An array of strings that each parse as `T`; those that do not are noted with `remedy` and left out.
    #[must_use]
    pub fn parsed_list<T: FromStr>(&self, key: &'static str, remedy: &str) -> Option<Vec<Found<T>>> {
        let mut values = Vec::new();
        for found in self.each(key)? {
            match found.value.parse() {
                Ok(value) => values.push(Found { value, span: found.span }),
                Err(_) => {
                    self.document.note(&found.span, format!("`{key}` cannot hold \"{}\"", found.value), remedy);
                }
            }
        }
        Some(values)
    }

    /// A string or an array of strings, told apart by the caller: `cname = "trust"` or `cname = ["…"]`.
    #[must_use]
    pub fn string_or_strings(&self, key: &'static str) -> Option<Result<Found<String>, Vec<Found<String>>>> {
        match self.find(key)?.get_ref() {
            Value::Array(_) | Value::List => self.strings(key).map(Err),
            _ => self.string(key).map(Ok),
        }
    }

    /// A sub-table.
    #[must_use]
    pub fn table(&self, key: &'static str) -> Option<Self> {
        let value = self.find(key)?;
        match value.get_ref() {
            Value::Table(entries) => Some(self.sub(value.span(), entries)),
            _ => {
                self.wrong(key, value, &format!("[{key}]"));
                None
            }
        }
    }

    /// An array of tables (`[[key]]`); none where the key is absent.
    #[must_use]
    pub fn tables(&self, key: &'static str) -> Vec<Self> {
        let Some(value) = self.find(key) else { return Vec::new() };
        let wanted = format!("[[{key}]]");
        let mut tables = Vec::new();
        match value.get_ref() {
            Value::Array(items) => {
                for item in items {
                    match item.get_ref() {
                        Value::Table(entries) => tables.push(self.sub(item.span(), entries)),
                        _ => self.wrong(key, item, &wanted),
                    }
                }
            }
            Value::List => {
                for (_, span) in Items::new(self.document.0.lines.text(), value.span().start) {
                    self.is(key, &span, "a string", &wanted);
                }
            }
            _ => self.wrong(key, value, &wanted),
        }
        tables
    }

    /// Every key of a table whose keys are free (`tags`), each with its string or strings.
    #[must_use]
    pub fn free_strings(&self) -> Vec<(Found<String>, Vec<Found<String>>)> {
        let mut found = Vec::with_capacity(self.entries.len());
        for (key, value) in self.entries.iter() {
            let values = match value.get_ref() {
                Value::String(text) => vec![Found { value: text.clone(), span: value.span() }],
                _ => match self.strings_of(key.get_ref(), value) {
                    Some(strings) => strings.map(Found::owned).collect(),
                    None => {
                        self.wrong(key.get_ref(), value, "a string in quotes");
                        continue;
                    }
                },
            };
            found.push((Found { value: key.get_ref().clone(), span: key.span() }, values));
        }
        found
    }

    fn sub(&self, span: Span, entries: &Rc<[Entry]>) -> Self {
        Self { document: self.document.clone(), span, entries: Rc::clone(entries), asked: RefCell::default() }
    }

    /// Notes every key that was never asked for. `planned` are keys that the interface names but this version
    /// does not build: they are refused by name, not as a typing mistake.
    pub fn finish(self, planned: &[&str]) {
        let asked = self.asked.borrow();
        for (key, _) in self.entries.iter() {
            let name = key.get_ref().as_str();
            if asked.contains(name) {
                continue;
            }
            if planned.contains(&name) {
                self.document.note(&key.span(), format!("`{name}` is not supported by this version"), "remove it");
            } else {
                let near =
                    asked.iter().filter(|known| distance(known, name) <= 2).min_by_key(|known| distance(known, name));
                let remedy = near.map_or_else(
                    || {
                        let mut known: Vec<_> = asked.iter().copied().collect();
                        known.sort_unstable();
                        format!("remove it; the keys here are {}", known.join(", "))
                    },
                    |near| format!("did you mean `{near}`?"),
                );
                self.document.note(&key.span(), format!("`{name}` is not a key here"), remedy);
            }
        }
    }
}

/// Levenshtein distance, for "did you mean".
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = i;
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
        let mut left = i + 1;
        for (slot, y) in row.iter_mut().skip(1).zip(b.chars()) {
            let here = (diagonal + usize::from(x != y)).min(left + 1).min(*slot + 1);
            diagonal = std::mem::replace(slot, here);
            left = here;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mistake_is_reported_at_once_with_its_place() {
        let text = "name = 5\ngraze = \"60s\"\nttl = \"7x\"\nsize = \"1MB\"\n[[list]]\nq = 1\n";
        let (document, table) = Document::parse("a.toml", text);
        assert!(table.string("name").is_none());
        assert!(table.duration("grace", Duration::ZERO..=Duration::MAX).is_none());
        assert!(table.duration("ttl", Duration::ZERO..=Duration::MAX).is_none());
        assert!(table.size("size").is_none());
        for sub in table.tables("list") {
            sub.finish(&["q"]);
        }
        table.finish(&[]);
        let lines: Vec<_> = document.take_mistakes().iter().map(ToString::to_string).collect();
        assert_eq!(
            lines,
            [
                "a.toml:1:8: `name` is an integer\n  write name = \"…\"",
                "a.toml:2:1: `graze` is not a key here\n  did you mean `grace`?",
                "a.toml:3:7: `ttl` = \"7x\" is not a duration\n  write \"500ms\", \"5s\", \"10m\", \"2h\" or \"1d\"",
                "a.toml:4:8: `size` = \"1MB\" is not a size\n  write \"64KiB\", \"256MiB\" or \"20GiB\"",
                "a.toml:6:1: `q` is not supported by this version\n  remove it",
            ]
        );
    }

    #[test]
    fn mistakes_past_the_bound_are_counted() {
        let text = format!("a = [{}]\n", "\"x\",\n".repeat(MAX_MISTAKES + 5));
        let (document, table) = Document::parse("a.toml", text);
        assert!(table.parsed_list::<u8>("a", "write a number").is_some_and(|values| values.is_empty()));
        let mistakes = document.take_mistakes();
        assert_eq!(mistakes.len(), MAX_MISTAKES + 1);
        let last = mistakes.last().unwrap().to_string();
        assert_eq!(last, "a.toml:1001:1: 5 more mistakes are in this file, from here on\n  correct those above first");
        assert!(document.take_mistakes().is_empty());
    }

    #[test]
    fn a_syntax_mistake_does_not_hide_the_others() {
        let (document, table) = Document::parse("a.toml", "a = \nb = 1\nc = [\n");
        assert!(table.string("b").is_none());
        let mistakes = document.take_mistakes();
        assert!(mistakes.len() >= 2, "{mistakes:?}");
    }

    #[test]
    fn a_date_time_becomes_the_same_moment() {
        let rows = [
            ("1970-01-01T00:00:00Z", "1970-01-01T00:00:00.000000Z"),
            ("2024-02-29T23:59:59.5Z", "2024-02-29T23:59:59.500000Z"),
            ("2026-12-31T00:00:00+02:00", "2026-12-30T22:00:00.000000Z"),
            ("2026-12-31T20:30:00-05:30", "2027-01-01T02:00:00.000000Z"),
            ("1969-12-31T00:00:00Z", "1970-01-01T00:00:00.000000Z"),
        ];
        for (text, expected) in rows {
            assert_eq!(wall(&text.parse().unwrap()).to_string(), expected, "{text}");
        }
    }
}
