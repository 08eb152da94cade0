//! What the pages show can be used: their TOML is valid, their links lead somewhere, and the files that are shipped
//! are valid, complete, and show the defaults.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use outgate::document::parse_duration;

mod check;

use check::{POLICY, UPSTREAM, Workplace};

const SHIPPED: &str = include_str!("../outgate.toml");

/// README.md and every page of docs/: path, text.
fn pages() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let others = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "contrib/README.md"].map(|page| root.join(page));
    let mut pages: Vec<(String, String)> = docs
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .chain(others)
        .map(|path| {
            let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
            (name, std::fs::read_to_string(path).unwrap())
        })
        .collect();
    pages.sort();
    pages
}

#[test]
fn the_toml_of_every_page_is_valid() {
    let place = Workplace::new("pages");
    let mut count = 0;
    for (page, text) in pages() {
        for block in text.split("```toml\n").skip(1) {
            let block = block.split("```").next().unwrap();
            // Decisions that are written down have a test of their own.
            if block.contains("[[case]]") {
                continue;
            }
            // What an enforcer reads is tried beside its code.
            if block.contains("[enforce]") {
                continue;
            }
            let policy = block.contains("[[segment]]") || block.contains("[[rule]]");
            // A rule alone is for a segment of the page.
            let policy = match (policy, block.contains("[[segment]]")) {
                (false, _) => POLICY.to_owned(),
                (true, true) => block.to_owned(),
                (true, false) => format!("{POLICY}{block}"),
            };
            let config = if policy.contains(block) { UPSTREAM.to_owned() } else { block.to_owned() };
            let upstream = if config.contains("upstream") { "" } else { UPSTREAM };
            place.write("policy/example.toml", &policy);
            let (valid, said) = place.check(&format!("{config}{upstream}"));
            assert!(valid, "{page}: {said}\n{block}");
            count += 1;
        }
    }
    assert!(count >= 6, "only {count} blocks were found");
}

#[test]
fn every_link_of_a_page_leads_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (page, text) in pages() {
        for link in text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { root.join(&page) } else { root.join(&page).parent().unwrap().join(file) };
            let found = std::fs::read_to_string(&target).or_else(|_| target.read_dir().map(|_| String::new()));
            let Ok(found) = found else { panic!("{page}: {link} leads nowhere") };
            let anchors = found.lines().filter(|line| line.starts_with('#')).map(anchor_of);
            assert!(anchor.is_empty() || anchors.into_iter().any(|known| known == anchor), "{page}: {link}");
        }
    }
}

/// A heading's anchor: lower case, blanks as `-`, no other punctuation.
fn anchor_of(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
    text.chars().filter(|character| character.is_alphanumeric() || "-_".contains(*character)).collect()
}

#[test]
fn the_shipped_files_are_valid() {
    let place = Workplace::new("shipped");
    place.write("policy/example.toml", include_str!("../policy/example.toml"));
    place.write("zones/corp.example.zone", include_str!("../zones/corp.example.zone"));
    let (valid, said) = place.check(&format!("{SHIPPED}{UPSTREAM}"));
    assert!(valid && said.contains("1 segments, 4 rules; 1 zones, 10 records"), "{said}");
    assert!(!said.contains("warning"), "{said}");
}

/// The shipped file with the keys that are commented out.
fn whole() -> toml::Table {
    let is_code = |line: &str| {
        let head = line.split(['=', ' ']).next().unwrap_or_default();
        let is_key = line.contains(" = ") && head.chars().all(|c| c.is_ascii_lowercase() || c == '_');
        is_key || line.starts_with('[')
    };
    let lines = SHIPPED.lines().map(|line| line.strip_prefix("# ").filter(|line| is_code(line)).unwrap_or(line));
    lines.collect::<Vec<_>>().join("\n").parse().unwrap()
}

/// Every key of a table, those of tables in it as `table.key`.
fn keys(table: &toml::Table) -> Vec<(String, toml::Value)> {
    let mut found = Vec::new();
    for (name, value) in table {
        let tables: Vec<&toml::Table> = match value {
            toml::Value::Table(table) => vec![table],
            toml::Value::Array(items) => items.iter().filter_map(toml::Value::as_table).collect(),
            _ => Vec::new(),
        };
        if tables.is_empty() {
            found.push((name.clone(), value.clone()));
        }
        for table in tables {
            found.extend(table.iter().map(|(key, value)| (format!("{name}.{key}"), value.clone())));
        }
    }
    found
}

/// The rows of docs/configuration.md: `table.key`, its default as it is written.
fn documented() -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut section = String::new();
    for line in include_str!("../docs/configuration.md").lines() {
        if let Some(title) = line.strip_prefix("## ") {
            let name = title.split(" of kind ").next().unwrap_or_default().trim_matches(['`', '[', ']']);
            section = if title.starts_with('`') { format!("{name}.") } else { String::new() };
        }
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        if let [key, default, _, _] = cells.as_slice()
            && key.starts_with('`')
        {
            found.push((format!("{section}{}", key.trim_matches('`')), (*default).to_owned()));
        }
    }
    found
}

#[test]
fn the_shipped_configuration_has_every_key_and_shows_the_defaults() {
    let documented = documented();
    let all = keys(&whole());
    for (key, _) in &documented {
        assert!(all.iter().any(|(known, _)| known == key), "outgate.toml does not have {key}");
    }
    let mut compared = 0;
    for (key, value) in keys(&SHIPPED.parse().unwrap()) {
        let (_, default) = documented.iter().find(|(known, _)| *known == key).unwrap_or_else(|| panic!("{key}"));
        let Some(default) = default.strip_prefix('`').and_then(|default| default.strip_suffix('`')) else { continue };
        let default: toml::Table = format!("value = {default}").parse().unwrap();
        let (shown, default) = (plain(&value), plain(&default["value"]));
        assert_eq!(shown, default, "{key}: outgate.toml and docs/configuration.md");
        compared += 1;
    }
    assert!(compared >= 10, "only {compared} defaults are shown");
}

/// A value as text; durations in one unit, paths without `./`.
fn plain(value: &toml::Value) -> String {
    match value.as_str() {
        Some(text) => parse_duration(text)
            .map_or_else(|| text.trim_start_matches("./").to_owned(), |duration| format!("{duration:?}")),
        None => format!("{value:?}"),
    }
}
