//! docs/configuration.md and docs/policy.md have every key that the program accepts, and no other; their defaults
//! and examples are valid, and what they call planned is refused by name.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use outgate::document::{Document, Table, WarningKind};
use outgate::{audit, cache, firewall, grant};

mod check;

use check::{POLICY, UPSTREAM, Workplace};

const CONFIGURATION: &str = include_str!("../docs/configuration.md");
const POLICY_PAGE: &str = include_str!("../docs/policy.md");

/// A row of a table of keys.
struct Row {
    key: String,
    default: String,
    example: String,
}

impl Row {
    /// The default as it is written; `None` where it is told in words.
    fn default(&self) -> Option<&str> {
        let value = self.default.strip_prefix('`')?.strip_suffix('`')?;
        (!value.contains('`')).then_some(value)
    }

    fn is_required(&self) -> bool {
        self.default == "required"
    }
}

/// Every row of the tables of keys in this part of a page.
fn rows(part: &str) -> Vec<Row> {
    let mut found = Vec::new();
    let mut inside = false;
    for line in part.lines() {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        inside = line.starts_with('|') && (inside || cells == ["key", "default", "example", "meaning"]);
        if let (true, [key, default, example, _]) = (inside, cells.as_slice())
            && let Some(key) = key.strip_prefix('`').and_then(|key| key.strip_suffix('`'))
        {
            let example = example.trim_matches('`').to_owned();
            found.push(Row { key: key.to_owned(), default: (*default).to_owned(), example });
        }
    }
    found
}

/// The sections of docs/configuration.md: the header as it is written in the file ("" for the root), and its rows.
fn sections() -> Vec<(String, Vec<Row>)> {
    let parts = CONFIGURATION.split("\n## ").skip(1);
    let sections = parts.map(|part| {
        let title = part.lines().next().unwrap().replace('`', "");
        (if title.starts_with('[') { title } else { String::new() }, rows(part))
    });
    sections.filter(|(_, rows)| !rows.is_empty()).collect()
}

/// A section with what it requires, and this line.
fn section(header: &str, rows: &[Row], key: &str, value: &str) -> String {
    let (header, kind) = header.split_once(" of kind ").map_or((header, None), |(header, kind)| (header, Some(kind)));
    let kind = kind.map_or_else(String::new, |kind| format!("name = \"kind\"\nkind = \"{kind}\"\n"));
    let kind = if header == "[[sink]]" && kind.is_empty() { "file = \"sink.jsonl\"\n".to_owned() } else { kind };
    let mut text = format!("{key} = {value}\n");
    for row in rows.iter().filter(|row| row.is_required() && row.key != key) {
        writeln!(text, "{} = {}", row.key, row.example).unwrap();
    }
    // What is at the root must stand before every header.
    let others = if header == "[[upstream]]" { "" } else { UPSTREAM };
    if header == "[[upstream]]" && ["insecure", "anchors"].contains(&key) {
        text += "dnssec = \"validate\"\n";
    }
    if header == "[[sink]]" {
        // What is of use only with another key.
        let with = [
            ("syslog", "certificate", "key = \"tls/key.pem\""),
            ("syslog", "key", "certificate = \"tls/cert.pem\""),
            ("http", "certificate", "key = \"tls/key.pem\""),
            ("http", "key", "certificate = \"tls/cert.pem\""),
            ("http", "user", "token_file = \"siem.token\""),
            ("", "client_key", "client = \"hmac\""),
        ];
        let of_kind = |of: &str| of.is_empty() || kind.contains(&format!("\"{of}\""));
        let with = with.iter().filter(|(of, needs, _)| *needs == key && of_kind(of));
        text.extend(with.map(|(.., line)| format!("{line}\n")));
    }
    // An encrypted door has a certificate.
    let tls = if header == "[listen]" { TLS } else { "" };
    // Flows are told of by a firewall.
    let firewall = if header == "[flow]" { FIREWALL } else { "" };
    // Peers have a door, and a door has peers.
    let peers = match header {
        "[peers]" => "[[peer]]\nname = \"ns2.corp.example\"\n",
        "[[peer]]" => PEERS,
        _ => "",
    };
    format!("{header}\n{kind}{text}{others}{tls}{firewall}{peers}")
}

/// A zone's key, as `anchors` has it.
const ANCHORS: &str = "example.org. 3600 IN DNSKEY 257 3 13 \
    WQ72DwwO1Vilg6hk0xUZPxTVECmjPzbN2i6YuwaXFA2HODc6fq4rqvhIeJLRrF2VtHPRgNaKtC2RRMsMGqWCMw==\n";

const FIREWALL: &str = "[[firewall]]\nname = \"gateway\"\nkind = \"nftables\"\nhook = \"sets\"\n";

const PEERS: &str = "[peers]\nlisten = \"192.0.2.1:8954\"\nca = \"tls/cert.pem\"\ncertificate = \"tls/cert.pem\"\n\
    key = \"tls/key.pem\"\n";

const TLS: &str = "[tls]\ncertificate = \"tls/cert.pem\"\nkey = \"tls/key.pem\"\n";

#[test]
fn every_example_and_default_is_valid() {
    let place = Workplace::new("examples");
    place.write("rules/example.toml", POLICY);
    place.write("zones/.keep", "");
    place.write("data/.keep", "");
    place.write("policy-next/.keep", "");
    place.write("anchors.key", ANCHORS);
    place.write("client.key", "a secret of many nodes\n");
    let mut count = 0;
    for (header, rows) in sections() {
        for row in &rows {
            for value in [Some(row.example.as_str()), row.default()].into_iter().flatten() {
                let text = section(&header, &rows, &row.key, value);
                let (valid, said) = place.check(&text);
                count += 1;
                if header == "[listen]"
                    && ["quic", "h3"].contains(&&*row.key)
                    && value != "[]"
                    && !cfg!(feature = "quic")
                {
                    let expected = format!("`{}` needs an outgate that was built with the feature `quic`", row.key);
                    assert!(!valid && said.contains(&expected), "{said}");
                    continue;
                }
                assert!(valid, "{header} {} = {value}: {said}\n{text}", row.key);
            }
        }
    }
    assert!(count > 60, "only {count} values were found in the tables");
}

/// What the program says of a key that no table has.
fn known_keys(said: &str) -> BTreeSet<String> {
    let list = said.split("the keys here are ").nth(1);
    assert!(list.is_some(), "{said}");
    list.unwrap().lines().next().unwrap().split(", ").map(str::to_owned).collect()
}

#[test]
fn every_key_is_documented_and_no_other() {
    let place = Workplace::new("keys");
    let sections = sections();
    let headers: BTreeSet<String> =
        sections.iter().map(|(header, _)| header.trim_matches(['[', ']']).to_owned()).collect();
    let of = |wanted: &str| {
        let rows = sections.iter().filter(move |(header, _)| header == wanted).flat_map(|(_, rows)| rows);
        rows.map(|row| row.key.clone()).collect::<Vec<_>>()
    };
    for (header, rows) in &sections {
        let (_, said) = place.check(&section(header, rows, "zzzzzz", "1"));
        let mut written: BTreeSet<String> = rows.iter().map(|row| row.key.clone()).collect();
        if header.is_empty() {
            written.extend(headers.iter().filter(|header| !header.is_empty() && !header.contains(' ')).cloned());
        }
        // What every sink has, and what its kind has more.
        match header.as_str() {
            "[[sink]]" => written.extend(of("[[sink]] of kind file")),
            kind if kind.starts_with("[[sink]]") => written.extend(of("[[sink]]")),
            "[[firewall]] of kind remote" => {
                written.extend(["name", "kind", "required", "deadline"].map(str::to_owned));
            }
            _ => {}
        }
        assert_eq!(known_keys(&said), written, "{header}");
    }
}

/// The keys that a page says are planned, by table.
fn planned(page: &str) -> BTreeMap<String, Vec<String>> {
    let part = page.split("\n## Not in this version").nth(1).unwrap();
    let lines = part.lines().filter(|line| line.starts_with("| ")).skip(1);
    lines
        .map(|line| {
            let (table, keys) = line.trim_matches('|').split_once(" | ").unwrap();
            let table = table.trim().trim_matches('`').replace("the root", "");
            (table, keys.split(',').map(|key| key.trim().trim_matches('`').to_owned()).collect())
        })
        .collect()
}

/// The keys that these files call planned: what `finish` and the constants PLANNED list.
fn planned_in_source(files: &[&str]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for file in files {
        let text = std::fs::read_to_string(format!("{}/src/{file}", env!("CARGO_MANIFEST_DIR"))).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        for begin in [".finish(&[", "const PLANNED: &[&str] = &["] {
            for part in code.split(begin).skip(1) {
                let list = part.split(']').next().unwrap();
                found.extend(list.split('"').skip(1).step_by(2).map(str::to_owned));
            }
        }
    }
    found
}

#[test]
fn every_planned_key_is_refused_by_name() {
    let place = Workplace::new("planned");
    let sections = sections();
    let listed = planned(CONFIGURATION);
    for (header, keys) in &listed {
        let (_, rows) = sections.iter().find(|(known, _)| known == header).unwrap();
        for key in keys {
            let (valid, said) = place.check(&section(header, rows, key, "1"));
            assert!(!valid && said.contains(&format!("`{key}` is not supported by this version")), "{header}: {said}");
        }
    }
    let source = planned_in_source(&["app/config.rs", "audit/settings.rs", "firewall/mod.rs"]);
    assert_eq!(source, listed.into_values().flatten().collect());
    for scheme in ["quic", "h3", "sdns"] {
        assert!(CONFIGURATION.contains(&format!("`{scheme}://`")), "{scheme}");
        let (_, said) = place.check(&format!("[[upstream]]\nservers = [\"{scheme}://203.0.113.53\"]\n"));
        assert!(said.contains("is not supported by this version"), "{said}");
    }
}

/// A section with all its documented defaults, read by the room that it belongs to.
fn with_defaults<T>(header: &str, more: &str, read: impl FnOnce(Table) -> T) -> T {
    let sections = sections();
    let (_, rows) = sections.iter().find(|(known, _)| known == header).unwrap();
    let mut text = format!("{header}\n{more}\n");
    for row in rows {
        if let Some(value) = row.default() {
            writeln!(text, "{} = {value}", row.key).unwrap();
        }
    }
    let (document, root) = Document::parse("defaults.toml", &text);
    let value = read(root);
    assert_eq!(document.take_mistakes(), [], "{text}");
    value
}

#[test]
fn documented_defaults_are_the_programs_own() {
    assert_eq!(with_defaults("[grant]", "", |root| grant::Terms::read(&root)), grant::Terms::default());
    assert_eq!(with_defaults("[cache]", "", |root| cache::Settings::read(&root)), cache::Settings::default());
    let audit = with_defaults("[audit]", "", |root| audit::Settings::parse(root.table("audit").unwrap()));
    assert_eq!(audit, audit::Settings::default());
    let required = "name = \"gateway\"\nkind = \"nftables\"\nhook = \"sets\"";
    let firewalls =
        with_defaults("[[firewall]]", required, |root| firewall::Settings::read_all(&root, std::path::Path::new("")));
    let [found] = firewalls.as_slice() else { unreachable!("one firewall") };
    assert_eq!(found.common, firewall::Common::new("gateway"));
    let own = firewall::nftables::Settings::new(firewall::nftables::Hook::Sets);
    assert_eq!(format!("{:?}", found.plan), format!("{own:?}"));
}

/// The rows of docs/policy.md between the marks of `[[segment]]` or `[[rule]]`.
fn policy_rows(kind: &str) -> Vec<Row> {
    let part = POLICY_PAGE.split(&format!("<!-- keys: {kind} -->")).nth(1).unwrap();
    rows(part.split("<!-- end -->").next().unwrap())
}

/// A policy of one segment and one rule in which this key of `kind` has this value.
fn policy(kind: &str, key: &str, value: &str) -> String {
    let mut segment = BTreeMap::from([
        ("name", r#""office""#),
        ("clients", r#"["192.0.2.0/24"]"#),
        ("tags", r#"{ environment = "production" }"#),
    ]);
    let mut rule = BTreeMap::from([
        ("id", r#""pages""#),
        ("action", r#""allow""#),
        ("segments", r#"["*"]"#),
        ("names", r#"["www.example.org"]"#),
    ]);
    match key {
        "until" => _ = segment.insert("mode", r#""observe""#),
        "networks" => {
            rule.remove("names");
            rule.insert("ports", r#"["tcp/22"]"#);
        }
        _ => {}
    }
    let table = if kind == "segment" { &mut segment } else { &mut rule };
    table.insert(key, value);
    let lines =
        |table: BTreeMap<&str, &str>| table.iter().map(|(key, value)| format!("{key} = {value}\n")).collect::<String>();
    format!("[[segment]]\n{}[[rule]]\n{}", lines(segment), lines(rule))
}

#[test]
fn every_warning_has_its_row() {
    let part = POLICY_PAGE.split("<!-- warnings -->").nth(1).unwrap().split("<!-- end -->").next().unwrap();
    let words = part.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let known: Vec<_> = WarningKind::ALL.iter().map(|kind| kind.as_str()).collect();
    assert_eq!(words.collect::<Vec<_>>(), known);
}

#[test]
fn every_policy_key_is_documented_and_its_values_are_valid() {
    let place = Workplace::new("policy");
    for kind in ["segment", "rule"] {
        let rows = policy_rows(kind);
        for row in &rows {
            for value in [Some(row.example.as_str()), row.default()].into_iter().flatten() {
                place.write("policy/example.toml", &policy(kind, &row.key, value));
                let (valid, said) = place.check(UPSTREAM);
                assert!(valid, "{kind} {} = {value}: {said}", row.key);
            }
        }
        place.write("policy/example.toml", &policy(kind, "zzzzzz", "1"));
        let (_, said) = place.check(UPSTREAM);
        assert_eq!(known_keys(&said), rows.into_iter().map(|row| row.key).collect(), "{kind}");
    }
    let listed = planned(POLICY_PAGE);
    for (header, keys) in &listed {
        for key in keys {
            let text = match header.as_str() {
                "" => format!("{key} = 1\n{}", policy("rule", "id", "\"pages\"")),
                header => policy(header.trim_matches(['[', ']']), key, "1"),
            };
            place.write("policy/example.toml", &text);
            let (_, said) = place.check(UPSTREAM);
            assert!(said.contains(&format!("`{key}` is not supported by this version")), "{header} {key}: {said}");
        }
    }
    let source = planned_in_source(&["policy/rule.rs", "policy/segment.rs", "policy/load.rs"]);
    assert_eq!(source, listed.into_values().flatten().collect());
}
