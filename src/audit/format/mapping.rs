//! Mappings: what a record is in somebody else's schema, as a table of rows. What no row names does not go out; docs/siem.md
//! has the same rows.

use std::ops::Deref;

use super::fields::Fields;
use super::json::Line;

/// Which records a row is for: a bit for each type.
pub(super) type Types = u8;
pub(super) const QUERY: Types = 1;
pub(super) const GRANT: Types = 1 << 1;
pub(super) const FLOW: Types = 1 << 2;
pub(super) const POLICY: Types = 1 << 3;
pub(super) const CHANGE: Types = 1 << 4;
pub(super) const LOG: Types = 1 << 5;
/// A type of a later version.
pub(super) const OTHER: Types = 1 << 6;
pub(super) const ALL: Types = QUERY | GRANT | FLOW | POLICY | CHANGE | LOG | OTHER;

/// Longer than a line can be when every character of it is escaped: nothing is cut here.
const UNCUT: usize = 1 << 17;

/// One field of the other schema. Rows of one object follow each other.
pub(super) struct Row {
    /// Of which records.
    pub(super) of: Types,
    /// Where it stands, objects before dots.
    pub(super) to: &'static str,
    /// What it is.
    pub(super) from: Source,
}

/// What a row's value is.
pub(super) enum Source {
    /// The field of this name, as it is.
    Field(&'static str),
    /// The same text in every record.
    Text(&'static str),
    /// The same number in every record.
    Number(u64),
    /// Made of the record.
    Made {
        /// How, in words.
        #[cfg_attr(not(test), expect(dead_code, reason = "docs/siem.md is held to it"))]
        how: &'static str,
        /// The fields that then stand in it whole.
        whole: &'static [&'static str],
        /// Writes it, or nothing.
        write: fn(&Fields<'_>, Value<'_, '_>),
    },
    /// A part of a value that a row above writes; in words.
    Within(#[cfg_attr(not(test), expect(dead_code, reason = "docs/siem.md is held to it"))] &'static str),
    /// Every field that no row above holds whole, by its own name.
    Rest,
}

pub(super) const fn field(of: Types, to: &'static str, name: &'static str) -> Row {
    Row { of, to, from: Source::Field(name) }
}

pub(super) const fn text(of: Types, to: &'static str, text: &'static str) -> Row {
    Row { of, to, from: Source::Text(text) }
}

pub(super) const fn number(of: Types, to: &'static str, number: u64) -> Row {
    Row { of, to, from: Source::Number(number) }
}

pub(super) const fn made(
    of: Types,
    to: &'static str,
    how: &'static str,
    whole: &'static [&'static str],
    write: fn(&Fields<'_>, Value<'_, '_>),
) -> Row {
    Row { of, to, from: Source::Made { how, whole, write } }
}

pub(super) const fn within(of: Types, to: &'static str, how: &'static str) -> Row {
    Row { of, to, from: Source::Within(how) }
}

pub(super) const fn rest(to: &'static str) -> Row {
    Row { of: ALL, to, from: Source::Rest }
}

/// Appends what the rows make of a line; `false`, and nothing is appended: it is no record.
pub(super) fn write(rows: &[Row], line: &str, out: &mut Vec<u8>) -> bool {
    let Some(fields) = Fields::read(line) else { return false };
    let mut document = Document { line: Line(out), object: "", empty: true };
    document.line.raw("{");
    for row in rows.iter().filter(|row| row.of & fields.of() != 0) {
        let value = Value { document: &mut document, to: row.to };
        match row.from {
            Source::Field(name) => {
                if let Some(json) = fields.take(name) {
                    value.json(json);
                }
            }
            Source::Text(text) => value.text(text),
            Source::Number(number) => value.number(number),
            Source::Made { whole, write, .. } => {
                let before = value.document.line.0.len();
                write(&fields, value);
                if document.line.0.len() > before {
                    for name in whole {
                        fields.take(name);
                    }
                }
            }
            Source::Within(_) => {}
            Source::Rest => fields.left().for_each(|(name, json)| document.key(row.to, name).raw(json)),
        }
    }
    document.end();
    true
}

/// A JSON object being written, with the objects in it.
struct Document<'o> {
    line: Line<'o>,
    /// The object that is open, by the names before its fields; empty: the outermost.
    object: &'static str,
    /// Nothing stands in that object yet.
    empty: bool,
}

impl<'o> Document<'o> {
    /// Closes and opens what is between the last field and this one, and writes its key.
    fn key(&mut self, object: &'static str, name: &str) -> &mut Line<'o> {
        if self.object != object {
            let mut wanted = object.split('.').filter(|name| !name.is_empty());
            let mut open = self.object.split('.').filter(|name| !name.is_empty()).peekable();
            let mut next = wanted.next();
            while next.is_some() && open.peek() == next.as_ref() {
                open.next();
                next = wanted.next();
            }
            for _ in open {
                self.line.raw("}");
                self.empty = false;
            }
            while let Some(name) = next {
                self.comma();
                self.line.raw("\"");
                self.line.raw(name);
                self.line.raw("\":{");
                self.empty = true;
                next = wanted.next();
            }
            self.object = object;
        }
        self.comma();
        self.line.text("\"", name, UNCUT);
        self.line.raw(":");
        self.empty = false;
        &mut self.line
    }

    fn comma(&mut self) {
        if !self.empty {
            self.line.raw(",");
        }
    }

    fn end(mut self) {
        for _ in self.object.split('.').filter(|name| !name.is_empty()) {
            self.line.raw("}");
        }
        self.line.raw("}");
    }
}

/// The value of one row: written once or not at all.
pub(super) struct Value<'d, 'o> {
    document: &'d mut Document<'o>,
    to: &'static str,
}

impl<'d, 'o> Value<'d, 'o> {
    fn begin(self) -> &'d mut Line<'o> {
        let (object, name) = self.to.rsplit_once('.').unwrap_or(("", self.to));
        self.document.key(object, name)
    }

    /// JSON of the line.
    pub(super) fn json(self, json: &str) {
        self.begin().raw(json);
    }

    /// Nothing where there is none; as for numbers.
    pub(super) fn text<'t>(self, text: impl Into<Option<&'t str>>) {
        if let Some(text) = text.into() {
            self.begin().text("\"", text, UNCUT);
        }
    }

    pub(super) fn number(self, number: impl Into<Option<u64>>) {
        if let Some(number) = number.into() {
            self.begin().number("", number);
        }
    }

    pub(super) fn boolean(self, value: bool) {
        self.begin().raw(if value { "true" } else { "false" });
    }

    /// A list of texts; nothing where there are none.
    pub(super) fn texts<T: Deref<Target = str>>(self, texts: &[T]) {
        self.list(texts, |line, text| line.text("\"", text, UNCUT));
    }

    /// An object of texts; nothing where it is empty.
    pub(super) fn members<'t>(self, members: impl Iterator<Item = (String, &'t str)>) {
        let mut members = members.peekable();
        if members.peek().is_none() {
            return;
        }
        let line = self.begin();
        let mut before = "{\"";
        for (name, member) in members {
            line.text(before, &name, UNCUT);
            line.text(":\"", member, UNCUT);
            before = ",\"";
        }
        line.raw("}");
    }

    /// A list; nothing where it is empty.
    pub(super) fn list<T>(self, items: &[T], mut write: impl FnMut(&mut Line<'_>, &T)) {
        if !items.is_empty() {
            self.begin().list("", items, |line, item| write(line, item));
        }
    }
}

/// A text within a list's item; `open` ends in the first quote.
pub(super) fn part(line: &mut Line<'_>, open: &str, text: &str) {
    line.text(open, text, UNCUT);
}
