//! What goes on, for Prometheus. The labels are of the command line and the file: what is tried, and at which resolver.

use std::fmt::Write as _;
use std::time::Duration;

use metrics_exporter_prometheus::formatting::sanitize_label_value;
use parking_lot::Mutex;

use super::check::{Finding, State};
use super::plan::Plan;
use super::round::Round;
use crate::serve::Readiness;
use crate::serve::health::Health;

/// Name, kind, labels, one sentence.
type Row = (&'static str, &'static str, &'static [&'static str], &'static str);

const STEP: &[&str] = &["check", "target", "resolver"];

const HOLDS: Row = ("outgate_probe_holds", "gauge", &[], "1 where the last round found nothing that failed, else 0.");
const OK: Row =
    ("outgate_probe_check_ok", "gauge", STEP, "1 where a check came out as it should, also with a warning, else 0.");
const WARN: Row = ("outgate_probe_check_warning", "gauge", STEP, "1 where a check came out with a warning, else 0.");
const FAILURES: Row = ("outgate_probe_failures_total", "counter", STEP, "How often a check failed.");
const RESOLVE: Row = (
    "outgate_probe_resolve_seconds",
    "gauge",
    STEP,
    "How long the slowest answer with addresses took, of an allowed name.",
);
const CONNECT: Row = (
    "outgate_probe_connect_seconds",
    "gauge",
    STEP,
    "How long the slowest connection to an allowed name took; a second or more: its first SYN was lost.",
);
const ROUNDS: Row = ("outgate_probe_rounds_total", "counter", &[], "Rounds that were tried to their end.");
const ROUND: Row = ("outgate_probe_round_seconds", "gauge", &[], "How long the last round took.");
const AT: Row =
    ("outgate_probe_round_timestamp_seconds", "gauge", &[], "When the last round began, in seconds since 1970.");

/// The values of all of them.
pub(super) struct Gauges {
    /// The labels of each step, and how often it failed.
    steps: Vec<String>,
    state: Mutex<Option<Last>>,
}

struct Last {
    rounds: u64,
    failures: Vec<u64>,
    round: Round,
}

impl Gauges {
    pub(super) fn new(plan: &Plan) -> Self {
        let labels = plan.steps.iter().map(|step| {
            let values = [step.word, &step.target(), &step.resolver()].map(sanitize_label_value);
            let labels = STEP.iter().zip(values).map(|(label, value)| format!("{label}=\"{value}\""));
            labels.collect::<Vec<_>>().join(",")
        });
        Self { steps: labels.collect(), state: Mutex::default() }
    }

    /// Takes over what a round has found; the round before it.
    pub(super) fn set(&self, round: Round) -> Option<Round> {
        let mut state = self.state.lock();
        let (rounds, failures, before) = match state.take() {
            Some(Last { rounds, failures, round }) => (rounds, failures, Some(round)),
            None => (0, vec![0; self.steps.len()], None),
        };
        let failed = round.findings.iter().map(|finding| u64::from(finding.state == State::Fail));
        let failures = failures.into_iter().zip(failed).map(|(before, more)| before + more).collect();
        *state = Some(Last { rounds: rounds + 1, failures, round });
        before
    }

    /// Looks at the last round.
    pub(super) fn last<T>(&self, look: impl FnOnce(&Round) -> T) -> Option<T> {
        self.state.lock().as_ref().map(|last| look(&last.round))
    }
}

impl Health for Gauges {
    fn readiness(&self) -> Readiness {
        let waiting = match *self.state.lock() {
            Some(_) => Vec::new(),
            None => vec!["the first round has not ended".to_owned()],
        };
        Readiness { waiting }
    }

    /// Prometheus text format 0.0.4; nothing before the first round.
    fn metrics(&self) -> String {
        let mut out = String::new();
        let state = self.state.lock();
        let Some(Last { rounds, failures, round }) = state.as_ref() else { return out };
        let mut one = |row: Row, value: String| {
            head(row, &mut out);
            // Writing to a String cannot fail.
            let _ = writeln!(out, "{} {value}", row.0);
        };
        one(HOLDS, u8::from(round.count(State::Fail) == 0).to_string());
        one(ROUNDS, rounds.to_string());
        one(ROUND, seconds(round.took));
        one(AT, seconds(Duration::from_micros(round.at.0)));
        let mut each = |row: Row, value: &dyn Fn(usize, &Finding) -> Option<String>| {
            head(row, &mut out);
            for (index, (labels, finding)) in self.steps.iter().zip(&round.findings).enumerate() {
                if let Some(value) = value(index, finding) {
                    let _ = writeln!(out, "{}{{{labels}}} {value}", row.0);
                }
            }
        };
        let flag = |holds: bool| Some(u8::from(holds).to_string());
        each(OK, &|_, finding| flag(finding.state != State::Fail));
        each(WARN, &|_, finding| flag(finding.state == State::Warn));
        each(FAILURES, &|index, _| failures.get(index).map(u64::to_string));
        each(RESOLVE, &|_, finding| finding.resolved.map(seconds));
        each(CONNECT, &|_, finding| finding.connected.map(seconds));
        out
    }
}

fn head((name, kind, _, help): Row, out: &mut String) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn seconds(duration: Duration) -> String {
    format!("{}.{:06}", duration.as_secs(), duration.subsec_micros())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_stands_in_the_manual() {
        let page = include_str!("../../../../docs/probe.md");
        let written: Vec<&str> = page.lines().filter(|line| line.starts_with("| `outgate_probe_")).collect();
        let rows =
            [HOLDS, OK, WARN, FAILURES, RESOLVE, CONNECT, ROUNDS, ROUND, AT].map(|(name, kind, labels, help)| {
                let labels: Vec<_> = labels.iter().map(|label| format!("`{label}`")).collect();
                format!("| `{name}` | {kind} | {} | {help} |", labels.join(", "))
            });
        assert_eq!(written, rows, "the rows must be:\n{}", rows.join("\n"));
    }
}
