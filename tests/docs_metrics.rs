//! docs/metrics.md has one row for each metric, in the order of the table, and says the same.

use outgate::metric::TABLE;

#[test]
fn every_metric_has_its_row() {
    let page = include_str!("../docs/metrics.md");
    let written: Vec<_> = page.lines().filter(|line| line.starts_with("| `outgate_")).collect();
    let expected: Vec<_> = TABLE
        .iter()
        .map(|metric| {
            let labels: Vec<_> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
            let (kind, unit) = (metric.kind.as_str(), metric.unit.as_str());
            format!("| `{}` | {kind} | {unit} | {} | {} |", metric.name, labels.join(", "), metric.help)
        })
        .collect();
    assert_eq!(written, expected, "the rows must be:\n{}\n", expected.join("\n"));
}
