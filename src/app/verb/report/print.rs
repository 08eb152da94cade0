//! A sheet as text and as JSON. What it shows comes from clients, and from files that anybody may have written.

use serde_json::{Map, Value, json};

use crate::audit::QueriesRead;
use crate::document::write_duration;
use crate::draft::safe;
use crate::report::{Cell, Form, Sheet, Table, percent};

/// Of a list so many are shown.
const LISTED: usize = 3;

/// For people.
pub(super) fn text(sheet: &Sheet, read: &QueriesRead) -> String {
    let mut out = String::new();
    for note in &sheet.notes {
        out.push_str(&format!("note: {}\n", safe(note)));
    }
    for table in &sheet.tables {
        out.push_str(&format!("\n{}\n", safe(&table.title)));
        lines(table, &mut out);
    }
    let read: String = read.to_string().lines().map(|line| format!("{}\n", safe(line))).collect();
    format!("{out}\nread {read}")
}

fn lines(table: &Table, out: &mut String) {
    if table.rows.is_empty() && table.other.is_none() {
        out.push_str(&format!("  {}\n", table.empty));
        return;
    }
    let heads = table.columns.iter().map(|column| column.head.to_owned()).collect();
    let shown = |row: &Vec<Cell>| row.iter().map(cell).collect::<Vec<String>>();
    let rows = table.rows.iter().chain(&table.other).chain(&table.total).map(shown);
    let all: Vec<Vec<String>> = [heads].into_iter().chain(rows).collect();
    let width =
        |at: usize| all.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..table.columns.len()).map(width).collect();
    for row in &all {
        let mut line = String::new();
        for ((cell, column), width) in row.iter().zip(&table.columns).zip(&widths) {
            let width = *width;
            line.push_str("  ");
            match column.form {
                Form::Text => line.push_str(&format!("{cell:<width$}")),
                Form::Number => line.push_str(&format!("{cell:>width$}")),
            }
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    if table.unlisted > 0 {
        let where_to = if table.other.is_some() { ", which are in other" } else { "" };
        out.push_str(&format!("  and {} rows more{where_to}; --limit lists more\n", table.unlisted));
    }
}

fn cell(cell: &Cell) -> String {
    match cell {
        Cell::Empty => "-".to_owned(),
        Cell::Text(text) => safe(text).into_owned(),
        Cell::Count(count) => count.to_string(),
        Cell::Bytes(bytes) => size(*bytes),
        Cell::Share(part, whole) => percent(*part, *whole),
        // To the second: JSON has the rest.
        Cell::Moment(at) => at.to_string().chars().take(19).chain(['Z']).collect(),
        Cell::Span(span) => write_duration(*span),
        Cell::List(all, _) if all.is_empty() => "-".to_owned(),
        Cell::List(all, more) => {
            let shown: Vec<_> = all.iter().take(LISTED).map(|one| safe(one)).collect();
            let left = all.len().saturating_sub(LISTED);
            match (left, more) {
                (0, false) => shown.join(", "),
                (_, false) => format!("{}, {left} more", shown.join(", ")),
                (_, true) => format!("{}, {left} or more", shown.join(", ")),
            }
        }
    }
}

/// Bytes with three digits and the unit, as `1.25 MB` for 1,250,000.
fn size(bytes: u64) -> String {
    let units = ["kB", "MB", "GB", "TB", "PB", "EB"];
    let Some(power) = bytes.max(1).ilog10().checked_div(3).filter(|power| *power > 0) else {
        return format!("{bytes} B");
    };
    let scale = 1000_u64.pow(power);
    let unit = units.get(power as usize - 1).copied().unwrap_or_default();
    let (whole, rest) = (bytes / scale, u128::from(bytes % scale) * 100 / u128::from(scale));
    match whole {
        0..10 => format!("{whole}.{rest:02} {unit}"),
        10..100 => format!("{whole}.{} {unit}", rest / 10),
        _ => format!("{whole} {unit}"),
    }
}

/// For programs.
pub(super) fn json(sheet: &Sheet, read: &QueriesRead) -> Value {
    let mut object = Map::new();
    object.insert("report".into(), sheet.report.into());
    object.insert("notes".into(), sheet.notes.clone().into());
    for table in &sheet.tables {
        let row = |row: &Vec<Cell>| {
            let cells = table.columns.iter().zip(row).filter(|(_, cell)| **cell != Cell::Empty);
            Value::Object(cells.map(|(column, cell)| (column.key.to_owned(), value(cell))).collect())
        };
        let mut part = json!({
            "title": table.title, "rows": table.rows.iter().map(row).collect::<Vec<_>>(), "unlisted": table.unlisted,
        });
        if let Some(fields) = part.as_object_mut() {
            fields.extend(table.other.as_ref().map(|other| ("other".to_owned(), row(other))));
            fields.extend(table.total.as_ref().map(|total| ("total".to_owned(), row(total))));
        }
        object.insert(table.key.into(), part);
    }
    object.insert(
        "read".into(),
        json!({
            "files": read.files, "queries": read.queries, "others": read.others, "damaged": read.damaged,
            "faults": read.faults,
        }),
    );
    Value::Object(object)
}

fn value(cell: &Cell) -> Value {
    match cell {
        Cell::Empty => Value::Null,
        Cell::Text(text) => text.as_str().into(),
        Cell::Count(count) | Cell::Bytes(count) => (*count).into(),
        #[expect(clippy::cast_precision_loss, reason = "a share, to some digits")]
        Cell::Share(part, whole) => (*part as f64 / (*whole).max(1) as f64).into(),
        Cell::Moment(at) => at.to_string().into(),
        Cell::Span(span) => span.as_secs_f64().into(),
        Cell::List(all, more) => json!({ "first": all, "more": more }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits() {
        for (bytes, expected) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.00 kB"),
            (12_345, "12.3 kB"),
            (999_999, "999 kB"),
            (1_250_000, "1.25 MB"),
            (u64::MAX, "18.4 EB"),
        ] {
            assert_eq!(size(bytes), expected);
        }
    }

    #[test]
    fn what_a_log_holds_moves_no_cursor() {
        assert_eq!(cell(&Cell::Text("a\x1b[2Jb".into())), "a\\u001b[2Jb");
        assert_eq!(cell(&Cell::List(vec!["a\nb".into()], false)), "a\\u000ab");
    }
}
