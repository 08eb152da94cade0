//! What an answer from a local zone costs, by kind of answer and size of zone, and what loading one costs.
//!
//! The rows of one kind must not grow with the zone: a search is a few map probes, never a scan.

use std::sync::Arc;

use divan::{Bencher, black_box};
use outgate::record::Question;
use outgate::zones::{Source, Zones};

const NAMES: &[usize] = &[100, 10_000, 100_000];

fn main() {
    divan::main();
}

fn source(names: usize) -> Source {
    use std::fmt::Write as _;
    let mut text = String::from("$TTL 1h\n@ SOA ns hostmaster 1 1h 15m 7d 5m\n*.wild A 192.0.2.1\nalias CNAME h7\n");
    for n in 0..names {
        let _ = writeln!(text, "h{n} A 192.0.2.{}", n % 256);
    }
    Source { file: Arc::from("example.org.zone"), text }
}

#[expect(clippy::unwrap_used, reason = "a benchmark's own data")]
fn answer(bencher: Bencher<'_, '_>, names: usize, name: &str) {
    let zones = Zones::compile(&[source(names)]).unwrap();
    let question = Question { name: name.parse().unwrap(), kind: outgate::record::RecordType::A };
    bencher.bench(|| zones.answer(black_box(&question)));
}

#[divan::bench(args = NAMES)]
fn address(bencher: Bencher<'_, '_>, names: usize) {
    answer(bencher, names, "h7.example.org");
}

#[divan::bench(args = NAMES)]
fn alias(bencher: Bencher<'_, '_>, names: usize) {
    answer(bencher, names, "alias.example.org");
}

#[divan::bench(args = NAMES)]
fn wildcard(bencher: Bencher<'_, '_>, names: usize) {
    answer(bencher, names, "any.wild.example.org");
}

#[divan::bench(args = NAMES)]
fn no_such_name(bencher: Bencher<'_, '_>, names: usize) {
    answer(bencher, names, "missing.example.org");
}

#[divan::bench(args = NAMES)]
fn no_such_name_of_a_hundred_labels(bencher: Bencher<'_, '_>, names: usize) {
    answer(bencher, names, &format!("{}example.org", "a.".repeat(100)));
}

#[divan::bench(args = NAMES, sample_count = 10)]
fn load(bencher: Bencher<'_, '_>, names: usize) {
    let sources = [source(names)];
    bencher.bench(|| Zones::compile(black_box(&sources)));
}
