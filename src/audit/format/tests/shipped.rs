//! What contrib says of the formats.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Row, Source, ecs};
use crate::audit::FIELDS;

/// Every field of our table has its ECS type in the template of Elasticsearch, and the template has no other.
#[test]
fn elasticsearch_knows_every_field() {
    let template: Value =
        serde_json::from_str(include_str!("../../../../contrib/elasticsearch/logs-outgate.json")).unwrap();
    let mappings = &template["template"]["mappings"];
    let mut mapped = BTreeMap::new();
    types(&mappings["properties"], "", &mut mapped);
    assert_eq!(mapped.remove("outgate").as_deref(), Some("flattened"));
    mapped.retain(|path, _| !path.starts_with("data_stream."));
    let list = include_str!("../../../../tests/schemas/ecs-8.17.tsv");
    let listed: BTreeMap<String, String> = list
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .filter(|(path, _)| *path != "dns.answers")
        .map(|(path, kind)| (path.to_owned(), kind.to_owned()))
        .collect();
    assert_eq!(mapped, listed);
    let unused =
        |path: &&String| !ecs::ROWS.iter().any(|row: &Row| row.to == **path && !matches!(row.from, Source::Rest));
    assert_eq!(listed.keys().find(unused), None);
}

fn types(properties: &Value, path: &str, found: &mut BTreeMap<String, String>) {
    for (name, field) in properties.as_object().unwrap() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        match field.get("properties") {
            Some(inner) => types(inner, &path, found),
            None => drop(found.insert(path, field["type"].as_str().unwrap().to_owned())),
        }
    }
}

/// Every name that Splunk's aliases and expressions read is a field of ours.
#[test]
fn splunk_reads_fields_that_there_are() {
    let text = include_str!("../../../../contrib/splunk/props.conf");
    let words = "if case tonumber mvindex split in null isnull true coalesce mvcount AS OR";
    let known = |word: &str| FIELDS.iter().any(|field| field.name == word.replace("{}", "[]"));
    let mut read = 0;
    for (key, value) in text.lines().filter_map(|line| line.split_once(" = ")) {
        let ours: Vec<&str> = if key.starts_with("FIELDALIAS") {
            value.split_whitespace().step_by(3).collect()
        } else if key.starts_with("EVAL") {
            // What is not in double quotes.
            let parts = value.split('"').step_by(2);
            let names = parts.flat_map(|part| part.split(|c: char| !(c.is_ascii_alphanumeric() || "_{}.".contains(c))));
            names.filter(|word| word.starts_with(|c: char| c.is_ascii_alphabetic())).collect()
        } else {
            continue;
        };
        for name in ours.into_iter().filter(|name| !words.split(' ').any(|word| word == *name)) {
            assert!(known(name), "{name} of {key} is no field of docs/log.md");
            read += 1;
        }
    }
    assert!(read > 30, "{read}");
}
