//! Formats: how a record is written. JSON is what the file holds; the others read its lines.
//!
//! A new format is one file here and one row of [`FORMATS`].

pub(super) mod json;
pub(super) mod text;

/// Turns one line of the file into one line of a format; the flag asks for terminal colours.
pub type Render = fn(&str, bool) -> String;

/// Every format that `outgate log convert` and `tail` know.
pub const FORMATS: &[(&str, Render)] = &[("json", |line, _| line.to_owned()), ("text", text::render_line)];
