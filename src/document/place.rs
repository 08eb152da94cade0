//! Where something stands in a file, and what is wrong there.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

/// Where in a file: line and column from 1, columns counted in characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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

/// The bytes between two marks of [`Lines`]. A guess: finding a place costs as much as counting these.
const BLOCK: usize = 4096;

/// A file's text, in which byte offsets become places: in the time of one block, however long the text or its lines.
pub struct Lines<'a> {
    file: Arc<str>,
    text: Cow<'a, str>,
    /// Of the first byte of each block: the lines before it, and the characters before it in its line.
    marks: Vec<(usize, usize)>,
}

impl<'a> Lines<'a> {
    /// Counts every line of `text`.
    #[must_use]
    pub fn new(file: Arc<str>, text: impl Into<Cow<'a, str>>) -> Self {
        let text = text.into();
        let mut marks = Vec::with_capacity(text.len() / BLOCK + 1);
        let mut reached = (0, 0);
        for block in text.as_bytes().chunks(BLOCK) {
            marks.push(reached);
            reached = after(reached, block);
        }
        Self { file, text, marks }
    }

    /// The text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The place of the byte at `at`.
    #[must_use]
    pub fn place(&self, at: usize) -> Place {
        let at = at.min(self.text.len());
        let index = (at / BLOCK).min(self.marks.len().saturating_sub(1));
        let mark = self.marks.get(index).copied().unwrap_or_default();
        let (line, column) = after(mark, self.text.as_bytes().get(index * BLOCK..at).unwrap_or_default());
        let number = |value: usize| u32::try_from(value + 1).unwrap_or(u32::MAX);
        Place { file: Arc::clone(&self.file), line: number(line), column: number(column) }
    }
}

/// Lines and characters after `bytes`, where `reached` is what was before them.
fn after((lines, characters): (usize, usize), bytes: &[u8]) -> (usize, usize) {
    let more = bytes.iter().filter(|byte| **byte == b'\n').count();
    let last = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let tail = bytes.get(last..).unwrap_or_default();
    // Every octet of a character but its first is 10xxxxxx (RFC 3629 §3).
    let count = tail.iter().filter(|byte| **byte & 0xc0 != 0x80).count();
    (lines + more, if more > 0 { count } else { characters + count })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_place_is_lines_and_characters_before_it(
            parts in prop::collection::vec(
                prop_oneof![Just("\n".to_owned()), Just("ü".repeat(700)), Just("x".repeat(1500)), Just("€\n".repeat(300))],
                0..12,
            ),
            pick in any::<prop::sample::Index>(),
        ) {
            let text = parts.concat();
            let starts: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
            let at = *pick.get(&starts);
            let before = &text[..at];
            let line = before.matches('\n').count() + 1;
            let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
            let place = Lines::new("a".into(), text.as_str()).place(at);
            prop_assert_eq!((place.line as usize, place.column as usize), (line, column));
        }
    }
}
