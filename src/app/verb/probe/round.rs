//! One round: every check once, and how it is told.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::check::{Finding, State, run};
use super::plan::{Plan, Step};
use crate::time::{Clock, Wall};

/// Checks at once: few enough not to look like a scan, or to run out of descriptors.
const PARALLEL: usize = 32;

/// What was found of every step of the plan, in its order.
pub(super) struct Round {
    /// When it began.
    pub(super) at: Wall,
    pub(super) took: Duration,
    pub(super) findings: Vec<Finding>,
}

impl Round {
    /// Tries everything.
    pub(super) async fn of(plan: &Plan) -> Self {
        let clock = Clock::system();
        let begun = clock.now();
        let seats = Arc::new(Semaphore::new(PARALLEL));
        let mut running = JoinSet::new();
        for (index, step) in plan.steps.iter().cloned().enumerate() {
            let (seats, patience) = (Arc::clone(&seats), plan.timeout);
            running.spawn(async move {
                // Never closed.
                let _seat = seats.acquire().await;
                (index, run(&step, patience).await)
            });
        }
        let mut findings = running.join_all().await;
        findings.sort_by_key(|(index, _)| *index);
        let findings = findings.into_iter().map(|(_, finding)| finding).collect();
        Self { at: begun.wall, took: clock.tick().since(begun.tick), findings }
    }

    /// How many came out so.
    pub(super) fn count(&self, state: State) -> usize {
        self.findings.iter().filter(|finding| finding.state == state).count()
    }

    /// The lines that are wanted.
    pub(super) fn lines(&self, plan: &Plan, wanted: impl Fn(usize, &Finding) -> bool) -> String {
        let mut out = String::new();
        for (index, (step, finding)) in plan.steps.iter().zip(&self.findings).enumerate() {
            if wanted(index, finding) {
                let _ = writeln!(out, "{}", line(step, finding));
            }
        }
        out
    }

    /// `14 checks: 12 ok, 1 warn, 1 FAIL, 2.0 s`
    pub(super) fn summary(&self) -> String {
        let [ok, warn, fail] = State::ALL.map(|state| self.count(state));
        let count = self.findings.len();
        let plural = if count == 1 { "" } else { "s" };
        let mut out = format!("{count} check{plural}: {ok} ok");
        for (number, word) in [(warn, "warn"), (fail, "FAIL")] {
            if number > 0 {
                let _ = write!(out, ", {number} {word}");
            }
        }
        let _ = writeln!(out, ", {:.1} s", self.took.as_secs_f64());
        out
    }

    /// All of it, for programs.
    pub(super) fn object(&self, plan: &Plan) -> Value {
        let [ok, warn, fail] = State::ALL.map(|state| self.count(state));
        let checks: Vec<Value> =
            plan.steps.iter().zip(&self.findings).map(|(step, finding)| object(step, finding)).collect();
        json!({
            "at": self.at.to_string(), "took_us": micros(self.took), "holds": fail == 0,
            "ok": ok, "warn": warn, "fail": fail, "checks": checks,
        })
    }
}

fn line(step: &Step, finding: &Finding) -> String {
    let state = match finding.state {
        State::Ok => "ok  ",
        State::Warn => "warn",
        State::Fail => "FAIL",
    };
    let mut out = format!("{state} {:<7} {}", step.word, step.target());
    let resolver = step.resolver();
    if !resolver.is_empty() {
        let _ = write!(out, " at {resolver}");
    }
    let _ = write!(out, "  {}", finding.seen);
    if !finding.remedy.is_empty() {
        let _ = write!(out, " — {}", finding.remedy);
    }
    out
}

fn object(step: &Step, finding: &Finding) -> Value {
    let resolver = step.resolver();
    json!({
        "check": step.word, "target": step.target(), "resolver": (!resolver.is_empty()).then_some(resolver),
        "state": finding.state.as_str(), "seen": finding.seen,
        "remedy": (!finding.remedy.is_empty()).then_some(&finding.remedy),
        "resolve_us": finding.resolved.map(micros), "connect_us": finding.connected.map(micros),
    })
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
