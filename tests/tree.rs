//! The tree itself is tested: who may import whom, how long a file may get, what may lie where.
//!
//! The rooms and their levels are those of src/lib.rs and docs/architecture.md, "Rooms". Imports point down.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

/// How far up a room is. A room sees every lower level; within a level see [`SEES`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Level {
    Word,
    Core,
    Edge,
    Gate,
    Serve,
    App,
    Main,
}

const ROOMS: &[(&str, Level)] = &[
    ("name", Level::Word),
    ("net", Level::Word),
    ("time", Level::Word),
    ("record", Level::Word),
    ("metric", Level::Word),
    ("document", Level::Word),
    ("trust", Level::Word),
    ("wire", Level::Core),
    ("policy", Level::Core),
    ("grant", Level::Core),
    ("cache", Level::Core),
    ("draft", Level::Core),
    ("flow", Level::Core),
    ("report", Level::Core),
    ("upstream", Level::Edge),
    ("zones", Level::Edge),
    ("firewall", Level::Edge),
    ("audit", Level::Edge),
    ("gate", Level::Gate),
    ("enforce", Level::Gate),
    ("serve", Level::Serve),
    ("app", Level::App),
    ("main", Level::Main),
];

/// The arrows within a level. Words see each other.
const SEES: &[(&str, &str)] = &[
    ("grant", "policy"),
    ("cache", "grant"),
    ("cache", "policy"),
    ("draft", "policy"),
    ("report", "policy"),
    ("report", "flow"),
];

/// More than anybody reads in one sitting; the aim is 200 lines.
const LONGEST: usize = 600;

/// Names that say nothing of what is inside.
const EMPTY_NAMES: &[&str] = &["util", "utils", "common", "helper", "helpers", "misc", "manager"];

/// What lies at the root. Anything else belongs to somebody's editor, machine or tools, not to the product.
const ROOT: &[&str] = &[
    ".ci",
    ".gitignore",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "SECURITY.md",
    "bench",
    "benches",
    "clippy.toml",
    "contrib",
    "deny.toml",
    "docs",
    "examples",
    "fuzz",
    "outgate.toml",
    "policy",
    "rustfmt.toml",
    "src",
    "tests",
    "zones",
];

/// (file, fault as the test words it, reason). One that is not needed any more is a fault too.
const EXCEPTIONS: &[(&str, &str, &str)] = &[];

#[test]
fn the_tree_is_as_the_rooms_say() {
    let mut faults = Vec::new();
    for (path, text) in files(&["src", "tests", "examples", "benches"], "rs").unwrap() {
        faults.extend(faults_of(&path, &text).into_iter().map(|fault| (path.clone(), fault)));
    }
    for path in tracked() {
        let entry = path.split('/').next().unwrap_or_default();
        if !ROOT.contains(&entry) {
            faults.push((path.clone(), format!("{entry} does not belong at the root")));
        }
    }
    let excused = |path: &str, fault: &str| EXCEPTIONS.iter().any(|(file, text, _)| *file == path && *text == fault);
    let idle =
        EXCEPTIONS.iter().filter(|(file, text, _)| !faults.iter().any(|(path, fault)| path == file && fault == text));
    let idle: Vec<String> =
        idle.map(|(file, text, _)| format!("{file}: no longer needs the exception \"{text}\"")).collect();
    let open =
        faults.iter().filter(|(path, fault)| !excused(path, fault)).map(|(path, fault)| format!("{path}: {fault}"));
    let open: Vec<String> = open.chain(idle).collect();
    assert!(open.is_empty(), "{}", open.join("\n"));
}

#[test]
fn every_room_of_the_map_has_a_level() {
    let map = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    for line in code(&map).lines() {
        if let Some(room) = line.trim().strip_prefix("pub mod ").and_then(|rest| rest.strip_suffix(';')) {
            assert!(level(room).is_some(), "src/lib.rs: the room {room} has no level in tests/tree.rs");
        }
    }
}

#[test]
fn finds_a_wrong_arrow() {
    let wrong = "an arrow to";
    for (path, text, expected) in [
        ("src/wire/mod.rs", "use crate::name::Name;", ""),
        ("src/wire/mod.rs", "use crate::policy::Verdict;", "policy"),
        ("src/wire/mod.rs", "use crate::{name::Name, policy::{self, Verdict}};", "policy"),
        ("src/wire/mod.rs", "fn f(x: &crate::grant::Ledger) {}", "grant"),
        ("src/wire/mod.rs", "/// [`decide`]: crate::policy::decide\n// crate::policy\n", ""),
        ("src/wire/mod.rs", "const A: &str = \"crate::policy\"; const B: char = '\"'; use crate::gate;", "gate"),
        ("src/policy/index.rs", "pub(in crate::policy) struct Index; use super::verdict::Verdict;", ""),
        ("src/policy/index.rs", "use super::super::grant::Ledger;", "grant"),
        ("src/policy/mod.rs", "use super::firewall::Firewall;", "firewall"),
        ("src/policy/mod.rs", "mod tests {\n    use super::*;\n    use super::index::Index;\n}", ""),
        ("src/name.rs", "use crate::time::Ttl; use crate::policy;", "policy"),
        ("src/grant/ledger.rs", "use crate::policy::Cleared;", ""),
        ("src/policy/mod.rs", "use crate::grant::Change;", "grant"),
        ("src/audit/mod.rs", "use crate::firewall::Firewall;", "firewall"),
        ("src/audit/mod.rs", "use crate::cache::Answers; use crate::record::Rcode;", ""),
        ("src/gate/slow.rs", "use crate::upstream::Upstream; use crate::serve::Worker;", "serve"),
        ("src/app/run.rs", "use crate::{gate, serve::udp, words};", "words"),
        ("src/main.rs", "fn main() { outgate::app::main(); outgate::gate::run(); }", "gate"),
    ] {
        let faults = faults_of(path, text).join("; ");
        let expected = if expected.is_empty() { String::new() } else { format!("{wrong} {expected}") };
        assert_eq!(faults, expected, "{path}: {text}");
    }
}

#[test]
fn finds_a_long_file_and_an_empty_name() {
    assert!(faults_of("src/net.rs", &"\n".repeat(LONGEST)).is_empty());
    assert_eq!(faults_of("src/net.rs", &"\n".repeat(LONGEST + 1)), ["601 lines; at most 600"]);
    assert_eq!(faults_of("src/gate/utils.rs", ""), ["the name utils says nothing of what is inside"]);
    assert_eq!(faults_of("tests/common/mod.rs", ""), ["the name common says nothing of what is inside"]);
}

fn level(room: &str) -> Option<Level> {
    ROOMS.iter().find(|(name, _)| *name == room).map(|(_, level)| *level)
}

/// Whether `from` may import `to`.
fn may_see(from: &str, to: &str) -> bool {
    let (Some(upper), Some(lower)) = (level(from), level(to)) else { return false };
    match (upper, lower) {
        _ if from == to => true,
        (Level::Main, _) => lower == Level::App,
        (Level::Word, Level::Word) => true,
        _ => lower < upper || SEES.contains(&(from, to)),
    }
}

/// What is wrong with one Rust file.
fn faults_of(path: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let parts: Vec<&str> = path.trim_end_matches(".rs").split('/').collect();
    for part in &parts {
        if EMPTY_NAMES.contains(part) {
            faults.push(format!("the name {part} says nothing of what is inside"));
        }
    }
    let lines = text.lines().count();
    if lines > LONGEST {
        faults.push(format!("{lines} lines; at most {LONGEST}"));
    }
    if let ["src", room, ..] = parts.as_slice() {
        let depth = parts.len() - 1 - usize::from(parts.last() == Some(&"mod"));
        for target in targets(&code(text), depth) {
            if *room != "lib" && !may_see(room, &target) {
                faults.push(format!("an arrow to {target}"));
            }
        }
    }
    faults
}

/// The rooms that code names: after `crate::`, after `outgate::`, and after as many `super::` as lead out of the
/// room of a file that lies `depth` modules below the root. Modules written in the file lie one deeper; they
/// are its tests, at its foot.
fn targets(code: &str, depth: usize) -> Vec<String> {
    let inner = code.find("mod tests {").unwrap_or(code.len());
    let mut found = Vec::new();
    for (start, _) in code.match_indices("super::").filter(|(at, _)| !code[..*at].ends_with("super::")) {
        let rest = code[start..].trim_start_matches("super::");
        let climbed = (code.len() - start - rest.len()) / "super::".len();
        if climbed >= depth + usize::from(start > inner) {
            found.extend(heads(rest));
        }
    }
    for word in ["crate::", "outgate::"] {
        for (start, _) in code.match_indices(word) {
            found.extend(heads(&code[start + word.len()..]));
        }
    }
    found
}

/// The first segments of a path: one, or those of a group in braces.
fn heads(path: &str) -> Vec<String> {
    let head = |text: &str| -> String {
        let text = text.trim_start();
        text.chars().take_while(|character| character.is_alphanumeric() || "_*".contains(*character)).collect()
    };
    let Some(group) = path.strip_prefix('{') else { return vec![head(path)] };
    let (mut depth, mut from, mut found) = (0_usize, 0, Vec::new());
    for (at, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            ',' | '}' if depth == 0 => {
                found.push(head(&group[from..at]));
                from = at + 1;
                if character == '}' {
                    break;
                }
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
    found.retain(|name| !name.is_empty());
    found
}

/// Rust source without its comments and without what its literals hold.
fn code(source: &str) -> String {
    let mut out = String::new();
    let mut rest = source;
    while let Some(character) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(hashes) = raw_string(rest).filter(|_| !out.ends_with(char::is_alphanumeric)) {
            let end = format!("\"{}", "#".repeat(hashes));
            let open = hashes + 2;
            rest[open..].find(&end).map_or(rest.len(), |at| open + at + end.len())
        } else if character == '"' {
            quoted(rest)
        } else if character == '\'' && (rest[1..].starts_with('\\') || rest.chars().nth(2) == Some('\'')) {
            // A character literal; any other quote is a lifetime.
            let escaped = usize::from(rest[1..].starts_with('\\')) * 2;
            rest[1 + escaped..].find('\'').map_or(rest.len(), |at| 1 + escaped + at + 1)
        } else {
            out.push(character);
            rest = &rest[character.len_utf8()..];
            continue;
        };
        out.push(' ');
        rest = &rest[skipped..];
    }
    out
}

/// The number of hashes of the raw string that begins here.
fn raw_string(text: &str) -> Option<usize> {
    let after = text.strip_prefix('r')?;
    let open = after.trim_start_matches('#');
    open.starts_with('"').then(|| after.len() - open.len())
}

/// The length of the string literal that begins here.
fn quoted(text: &str) -> usize {
    let mut escaped = true;
    for (at, character) in text.char_indices() {
        match character {
            '"' if !escaped => return at + 1,
            '\\' if !escaped => escaped = true,
            _ => escaped = false,
        }
    }
    text.len()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below these folders with this ending: path below the root, text.
fn files(folders: &[&str], ending: &str) -> io::Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    let mut open: Vec<_> = folders.iter().map(|folder| root().join(folder)).collect();
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry?.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|found| found == ending) {
                let below = path.strip_prefix(root()).unwrap_or(&path).to_string_lossy().into_owned();
                found.push((below, fs::read_to_string(&path)?));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// What is under version control; nothing where this is no checkout.
fn tracked() -> Vec<String> {
    let listed = Command::new("git").args(["ls-files"]).current_dir(root()).output();
    let text = listed.map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&text).lines().map(str::to_owned).collect()
}
