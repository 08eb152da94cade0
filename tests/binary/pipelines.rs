//! contrib/vector, contrib/fluent-bit, contrib/opentelemetry-collector: what can be checked without these programs.

use std::fs;
use std::path::Path;

use outgate::audit::MAX_LINE;
use saphyr_parser::{Event, Parser};

/// The file that is read, and nothing that outgate renames it to.
const LOG: &str = "/var/log/outgate/query.jsonl";

fn text(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib").join(path)).unwrap()
}

/// Every scalar of a YAML file, in order: keys and values alike.
fn scalars(path: &str) -> Vec<String> {
    let text = text(path);
    let events = Parser::new_from_str(&text).map(|event| event.unwrap_or_else(|error| panic!("{path}: {error}")).0);
    events
        .filter_map(|event| if let Event::Scalar(text, ..) = event { Some(text.into_owned()) } else { None })
        .collect()
}

/// What stands behind a key.
fn value(scalars: &[String], key: &str) -> String {
    let at = scalars.iter().position(|scalar| scalar == key).unwrap_or_else(|| panic!("no {key}"));
    scalars[at + 1].clone()
}

/// `64k`, `16KiB`, `1kb` in bytes.
fn bytes(text: &str) -> usize {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text[..at].parse::<usize>().unwrap() * if at < text.len() { 1 << 10 } else { 1 }
}

#[test]
fn vector_knows_a_file_by_its_first_line() {
    let read: toml::Table = text("vector/vector.toml").parse().unwrap();
    let source = &read["sources"]["outgate"];
    assert_eq!(source["include"].as_array().unwrap()[0].as_str(), Some(LOG));
    assert_eq!(source["fingerprint"]["strategy"].as_str(), Some("checksum"));
    assert_eq!(source["fingerprint"]["lines"].as_integer(), Some(1));
    assert!(usize::try_from(source["max_line_bytes"].as_integer().unwrap()).unwrap() > MAX_LINE);
    let sink = &read["sinks"]["elasticsearch"];
    assert_eq!((sink["id_key"].as_str(), sink["bulk"]["action"].as_str()), (Some("id"), Some("create")));
    assert_eq!(sink["buffer"]["when_full"].as_str(), Some("block"));
    let inputs =
        |part: &str, name: &str| read[part][name]["inputs"].as_array().unwrap()[0].as_str().unwrap().to_owned();
    assert_eq!(
        (inputs("transforms", "records"), inputs("sinks", "elasticsearch")),
        ("outgate".into(), "records".into())
    );
}

#[test]
fn fluent_bit_goes_on_where_it_was_and_past_long_lines() {
    let read = scalars("fluent-bit/fluent-bit.yaml");
    for (key, expected) in [("path", LOG), ("skip_long_lines", "true"), ("read_from_head", "true"), ("id_key", "id")] {
        assert_eq!(value(&read, key), expected, "{key}");
    }
    assert!(value(&read, "db").starts_with('/'));
    assert!(bytes(&value(&read, "buffer_max_size")) > MAX_LINE);
    assert!(bytes(&value(&read, "buffer_chunk_size")) > MAX_LINE);
    let parsers = text(&format!("fluent-bit/{}", value(&read, "parsers_file")));
    assert!(parsers.contains(&format!("    Name        {}\n", value(&read, "parser"))), "{parsers}");
}

#[test]
fn the_collector_keeps_its_place() {
    let read = scalars("opentelemetry-collector/collector.yaml");
    assert_eq!((value(&read, "include"), value(&read, "storage")), (LOG.into(), "file_storage".into()));
    assert!(bytes(&value(&read, "max_log_size")) > MAX_LINE);
    assert_eq!(value(&read, "start_at"), "beginning");
}
