//! Rules as TOML: the one place that writes a policy's text.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt::{self, Write};

use super::{Draft, Rule};
use crate::policy::Action;

/// The longest id of a rule.
const MAX_ID: usize = 63;

pub(super) fn write(draft: &Draft, out: &mut impl Write) -> fmt::Result {
    comments(&draft.head, out)?;
    for rule in &draft.rules {
        out.write_char('\n')?;
        write_rule(rule, out)?;
    }
    if !draft.tail.is_empty() {
        out.write_char('\n')?;
        comments(&draft.tail, out)?;
    }
    Ok(())
}

fn write_rule(rule: &Rule, out: &mut impl Write) -> fmt::Result {
    comments(&rule.comment, out)?;
    let action = match rule.action {
        Action::Allow => "allow",
        Action::Deny => "deny",
    };
    writeln!(out, "[[rule]]\nid       = {}\naction   = \"{action}\"", quoted(&rule.id))?;
    writeln!(out, "segments = {}", inline(&rule.segments))?;
    let width = rule.names.iter().map(|entry| quoted(&entry.name).chars().count()).max().unwrap_or(0).min(48) + 1;
    writeln!(out, "names    = [")?;
    for entry in &rule.names {
        let name = format!("{},", quoted(&entry.name));
        match entry.comment.as_str() {
            "" => writeln!(out, "    {name}")?,
            comment => writeln!(out, "    {name:<width$}  # {}", safe(comment))?,
        }
    }
    writeln!(out, "]")?;
    if !rule.except.is_empty() {
        writeln!(out, "except   = [")?;
        rule.except.iter().try_for_each(|name| writeln!(out, "    {},", quoted(name)))?;
        writeln!(out, "]")?;
    }
    let list = |items: Vec<String>| inline(&items);
    if !rule.types.is_empty() {
        writeln!(out, "types    = {}", list(rule.types.iter().map(ToString::to_string).collect()))?;
    }
    if rule.https {
        writeln!(out, "https    = \"filter\"")?;
    }
    if !rule.ports.is_empty() {
        writeln!(out, "ports    = {}", list(rule.ports.iter().map(ToString::to_string).collect()))?;
    }
    Ok(())
}

fn comments(lines: &[String], out: &mut impl Write) -> fmt::Result {
    lines.iter().try_for_each(|line| match line.as_str() {
        "" => writeln!(out, "#"),
        line => writeln!(out, "# {}", safe(line)),
    })
}

fn inline(items: &[String]) -> String {
    let items: Vec<_> = items.iter().map(|item| quoted(item)).collect();
    format!("[{}]", items.join(", "))
}

/// A basic string of TOML, quotes included.
#[must_use]
pub fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => {
                out.push('\\');
                out.push(character);
            }
            hidden if is_hidden(hidden) => {
                let _ = write!(out, "\\u{:04x}", u32::from(hidden));
            }
            plain => out.push(plain),
        }
    }
    out.push('"');
    out
}

/// Text for a comment or a terminal, on one line: what controls either is shown by its number.
#[must_use]
pub fn safe(text: &str) -> Cow<'_, str> {
    if !text.contains(is_hidden) {
        return Cow::Borrowed(text);
    }
    let shown = |character: char| match is_hidden(character) {
        true => format!("\\u{:04x}", u32::from(character)),
        false => character.to_string(),
    };
    text.chars().map(shown).collect()
}

/// Control characters, and those that turn the writing direction or break lines (Unicode 9.0 bidirectional controls,
/// U+2028, U+2029). All are below U+10000.
fn is_hidden(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Ids of the rules of one draft.
#[derive(Default)]
pub(super) struct Ids(BTreeSet<String>);

impl Ids {
    /// An id that none before has: `wanted` in the letters of ids, a number behind it where it is taken.
    pub(super) fn take(&mut self, wanted: &str) -> String {
        let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-') { c } else { '-' };
        let wanted: String = wanted.chars().map(plain).collect();
        let mut id: String = wanted.chars().take(MAX_ID).collect();
        let mut number = 1_u32;
        while id.is_empty() || self.0.contains(&id) {
            number += 1;
            let suffix = format!("-{number}");
            let kept: String = wanted.chars().take(MAX_ID - suffix.len()).collect();
            id = format!("{kept}{suffix}");
        }
        self.0.insert(id.clone());
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draft::{Entry, Heading};
    use proptest::prelude::*;

    #[test]
    fn ids_are_in_their_letters_and_differ() {
        let mut ids = Ids::default();
        let long = "x".repeat(80);
        for (wanted, expected) in [
            ("a b/c", "a-b-c".to_owned()),
            ("a b:c", "a-b-c-2".to_owned()),
            ("", "-2".to_owned()),
            (&long, "x".repeat(63)),
            (&long, format!("{}-2", "x".repeat(61))),
        ] {
            assert_eq!(ids.take(wanted), expected);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_written_so_that_it_reads_the_same(name in ".{0,20}", comment in "\\PC{0,20}|.{0,20}", hidden in any::<char>()) {
            let heading = Heading { segments: vec![format!("s{name}")], id: String::new() };
            let mut rule = Rule::new(format!("{hidden}"), Action::Allow, &heading);
            rule.comment.push(format!("{comment}{hidden}"));
            rule.names.push(Entry { name: format!("{name}{hidden}"), comment: format!("{hidden}{comment}") });
            rule.except.push(name.clone());
            let draft = Draft { rules: vec![rule], tail: vec![comment], ..Draft::default() };
            let text = draft.to_string();
            let read: toml::Table = text.parse().unwrap_or_else(|error| panic!("{error}\n{text}"));
            let rule = &read["rule"][0];
            prop_assert_eq!(rule["names"][0].as_str().unwrap(), format!("{name}{hidden}"));
            prop_assert_eq!(rule["segments"][0].as_str().unwrap(), format!("s{name}"));
            prop_assert_eq!(rule["except"][0].as_str().unwrap(), name);
            prop_assert_eq!(rule["id"].as_str().unwrap(), hidden.to_string());
            prop_assert!(!text.chars().any(|c| c != '\n' && is_hidden(c)), "{:?}", text);
        }
    }
}
