//! A TOML document read with places: every mistake of a file is collected, none stops the reading.
//!
//! [`Document::parse`] gives a [`Table`]; each accessor takes a key, notes a [`Mistake`] where the value has the
//! wrong shape and returns `None`; [`Table::finish`] notes every key that nobody asked for, by name.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::rc::Rc;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Where in a file: line and column from 1, columns counted in characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file as the operator named it.
    pub file: Arc<str>,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// One mistake in a file: place, fact, remedy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mistake {
    /// Where; `None` for what concerns no single line.
    pub place: Option<Place>,
    /// What is wrong.
    pub fact: String,
    /// What to do, as an imperative; may be empty.
    pub remedy: String,
}

impl Mistake {
    /// A mistake that concerns no single line.
    pub fn general(fact: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { place: None, fact: fact.into(), remedy: remedy.into() }
    }

    /// A mistake at a place.
    pub fn at(place: Place, fact: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { place: Some(place), fact: fact.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        f.write_str(&self.fact)?;
        if self.remedy.is_empty() { Ok(()) } else { write!(f, "\n  {}", self.remedy) }
    }
}

/// A span of a document, turned into a [`Place`] on demand.
pub type Span = Range<usize>;

/// Where the lines of a file's text begin: byte offsets become places.
pub struct Lines<'a> {
    file: Arc<str>,
    text: Cow<'a, str>,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    /// Finds every line of `text`.
    #[must_use]
    pub fn new(file: Arc<str>, text: impl Into<Cow<'a, str>>) -> Self {
        let text = text.into();
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { file, text, starts }
    }

    /// The place of the byte at `at`.
    #[must_use]
    pub fn place(&self, at: usize) -> Place {
        let index = self.starts.partition_point(|start| *start <= at).saturating_sub(1);
        let start = self.starts.get(index).copied().unwrap_or(0);
        let column = self.text.get(start..at).map_or(0, |before| before.chars().count());
        let number = |value: usize| u32::try_from(value + 1).unwrap_or(u32::MAX);
        Place { file: Arc::clone(&self.file), line: number(index), column: number(column) }
    }
}

struct Shared {
    lines: Lines<'static>,
    mistakes: RefCell<Vec<Mistake>>,
}

/// One file's text and the mistakes found in it so far.
#[derive(Clone)]
pub struct Document(Rc<Shared>);

impl Document {
    /// Parses `text`; syntax mistakes are noted, and what could be read is returned.
    #[must_use]
    pub fn parse(file: &str, text: &str) -> (Self, Table) {
        let lines = Lines::new(Arc::from(file), text.to_owned());
        let document = Self(Rc::new(Shared { lines, mistakes: RefCell::default() }));
        let (root, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            document.note(&error.span().unwrap_or(0..0), error.message(), "correct the TOML syntax here");
        }
        let span = root.span();
        let entries = owned_entries(root.into_inner());
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
        self.0.mistakes.borrow_mut().push(Mistake::at(self.place(span), fact, remedy));
    }

    /// All mistakes noted so far, in file order; the document forgets them.
    #[must_use]
    pub fn take_mistakes(&self) -> Vec<Mistake> {
        let mut mistakes = self.0.mistakes.take();
        mistakes.sort();
        mistakes.dedup();
        mistakes
    }
}

/// A value without ties to the text.
#[derive(Clone, Debug)]
enum Value {
    String(String),
    Integer(Option<i64>),
    Boolean(bool),
    Datetime(toml::value::Datetime),
    Array(Vec<Spanned<Self>>),
    Table(Vec<(Spanned<String>, Spanned<Self>)>),
    Float,
}

impl Value {
    const fn kind(&self) -> &'static str {
        match self {
            Self::String(_) => "a string",
            Self::Integer(_) => "an integer",
            Self::Boolean(_) => "a boolean",
            Self::Datetime(_) => "a date-time",
            Self::Array(_) => "an array",
            Self::Table(_) => "a table",
            Self::Float => "a float",
        }
    }
}

fn owned_entries(table: DeTable<'_>) -> Vec<(Spanned<String>, Spanned<Value>)> {
    table
        .into_iter()
        .map(|(key, value)| (Spanned::new(key.span(), key.into_inner().into_owned()), owned(value)))
        .collect()
}

fn owned(value: Spanned<DeValue<'_>>) -> Spanned<Value> {
    let span = value.span();
    let value = match value.into_inner() {
        DeValue::String(text) => Value::String(text.into_owned()),
        DeValue::Integer(number) => Value::Integer(i64::from_str_radix(number.as_str(), number.radix()).ok()),
        DeValue::Float(_) => Value::Float,
        DeValue::Boolean(value) => Value::Boolean(value),
        DeValue::Datetime(value) => Value::Datetime(value),
        DeValue::Array(items) => Value::Array(items.into_iter().map(owned).collect()),
        DeValue::Table(table) => Value::Table(owned_entries(table)),
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

/// One table of a document.
pub struct Table {
    document: Document,
    span: Span,
    entries: Vec<(Spanned<String>, Spanned<Value>)>,
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
        self.document.note(&value.span(), format!("`{key}` is {}", value.get_ref().kind()), format!("write {wanted}"));
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
    pub fn datetime(&self, key: &'static str) -> Option<Found<toml::value::Datetime>> {
        let value = self.find(key)?;
        match value.get_ref() {
            Value::Datetime(moment) if moment.date.is_some() && moment.time.is_some() && moment.offset.is_some() => {
                Some(Found { value: *moment, span: value.span() })
            }
            _ => {
                self.wrong(key, value, &format!("{key} = 2026-12-31T00:00:00Z"));
                None
            }
        }
    }

    /// An array of strings.
    #[must_use]
    pub fn strings(&self, key: &'static str) -> Option<Vec<Found<String>>> {
        let value = self.find(key)?;
        let Value::Array(items) = value.get_ref() else {
            self.wrong(key, value, &format!("{key} = [\"…\"]"));
            return None;
        };
        let mut strings = Vec::with_capacity(items.len());
        for item in items {
            match item.get_ref() {
                Value::String(text) => strings.push(Found { value: text.clone(), span: item.span() }),
                _ => self.wrong(key, item, "a string in quotes"),
            }
        }
        Some(strings)
    }

    /// An array of strings that each parse as `T`; those that do not are noted with `remedy` and left out.
    #[must_use]
    pub fn parsed_list<T: FromStr>(&self, key: &'static str, remedy: &str) -> Option<Vec<Found<T>>> {
        let strings = self.strings(key)?;
        let mut values = Vec::with_capacity(strings.len());
        for found in strings {
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
            Value::Array(_) => self.strings(key).map(Err),
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
        let Value::Array(items) = value.get_ref() else {
            self.wrong(key, value, &format!("[[{key}]]"));
            return Vec::new();
        };
        let mut tables = Vec::with_capacity(items.len());
        for item in items {
            match item.get_ref() {
                Value::Table(entries) => tables.push(self.sub(item.span(), entries)),
                _ => self.wrong(key, item, &format!("[[{key}]]")),
            }
        }
        tables
    }

    /// Every key of a table whose keys are free (`tags`), each with its string or strings.
    #[must_use]
    pub fn free_strings(&self) -> Vec<(Found<String>, Vec<Found<String>>)> {
        let mut found = Vec::with_capacity(self.entries.len());
        for (key, value) in &self.entries {
            let values = match value.get_ref() {
                Value::String(text) => vec![Found { value: text.clone(), span: value.span() }],
                Value::Array(items) => items
                    .iter()
                    .filter_map(|item| match item.get_ref() {
                        Value::String(text) => Some(Found { value: text.clone(), span: item.span() }),
                        _ => {
                            self.wrong(key.get_ref(), item, "a string in quotes");
                            None
                        }
                    })
                    .collect(),
                _ => {
                    self.wrong(key.get_ref(), value, "a string in quotes");
                    continue;
                }
            };
            found.push((Found { value: key.get_ref().clone(), span: key.span() }, values));
        }
        found
    }

    fn sub(&self, span: Span, entries: &[(Spanned<String>, Spanned<Value>)]) -> Self {
        Self { document: self.document.clone(), span, entries: entries.to_vec(), asked: RefCell::default() }
    }

    /// Notes every key that was never asked for. `planned` are keys that the interface names but this version
    /// does not build: they are refused by name, not as a typing mistake.
    pub fn finish(self, planned: &[&str]) {
        let asked = self.asked.borrow();
        for (key, _) in &self.entries {
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

/// `"500ms"`, `"5s"`, `"10m"`, `"2h"`, `"1d"` → a duration.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    let at = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at_checked(at)?;
    let number: u64 = number.parse().ok()?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs),
        "h" => number.checked_mul(3600).map(Duration::from_secs),
        "d" => number.checked_mul(86_400).map(Duration::from_secs),
        _ => None,
    }
}

/// A duration in the largest unit that divides it: the inverse of [`parse_duration`] down to milliseconds.
#[must_use]
pub fn write_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    for (unit, size) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)] {
        if millis > 0 && millis.is_multiple_of(size) {
            return format!("{}{unit}", millis / size);
        }
    }
    format!("{millis}ms")
}

fn parse_size(text: &str) -> Option<u64> {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(at)?;
    let factor = match unit {
        "" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
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
    fn a_syntax_mistake_does_not_hide_the_others() {
        let (document, table) = Document::parse("a.toml", "a = \nb = 1\nc = [\n");
        assert!(table.string("b").is_none());
        let mistakes = document.take_mistakes();
        assert!(mistakes.len() >= 2, "{mistakes:?}");
    }

    #[test]
    fn durations_round_trip() {
        for text in ["500ms", "5s", "90s", "10m", "2h", "1d"] {
            assert_eq!(write_duration(parse_duration(text).unwrap()), if text == "90s" { "90s" } else { text });
        }
        assert_eq!(parse_duration("5"), None);
    }
}
