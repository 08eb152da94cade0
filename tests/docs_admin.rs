//! The examples of docs/admin.md are what the program reads and shows.

#![expect(clippy::unwrap_used, reason = "tests")]

use outgate::serve::GrantRow;
use outgate::serve::admin::{render_grants, render_status};
use serde_json::Value;

/// The JSON blocks of the page, in order.
fn examples() -> Vec<Value> {
    let page = include_str!("../docs/admin.md");
    let blocks = page.split("```json\n").skip(1);
    blocks.map(|block| serde_json::from_str(block.split("```").next().unwrap()).unwrap()).collect()
}

#[test]
fn every_fact_of_the_status_page_is_in_the_example() {
    let page = render_status(&examples()[0], false);
    let missing = page.split_whitespace().filter(|word| word.trim_end_matches(',') == "-").count();
    assert_eq!(missing, 0, "something is missing:\n{page}");
    for table in ["FIREWALL", "UPSTREAM", "warning:", "observing only"] {
        assert!(page.contains(table), "no {table}:\n{page}");
    }
}

#[test]
fn the_grants_example_is_read_whole() {
    let example = &examples()[1]["grants"];
    let rows: Vec<GrantRow> = serde_json::from_value(example.clone()).unwrap();
    assert_eq!(&serde_json::to_value(&rows).unwrap(), example, "a field is unknown");
    assert!(render_grants(&rows, false).contains("api.stripe.com"));
}
