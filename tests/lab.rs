//! The lab's stories (`tests/lab/`), each a test: a real kernel, a real name server, real clients.
//!
//! Not the soak: `tests/all` has it beside what only computes.
//!
//! They need root and a few tools. Where those are missing a story is skipped, and fails if `CI=true`.

use std::process::Command;
use std::sync::{Mutex, PoisonError};

/// Two stories at once would share two processors between too many clients.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The exit code of a story on a machine that cannot hold the lab.
const CANNOT: i32 = 2;

fn tell(story: &str) {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let run = Command::new("python3")
        .args(["-B", &format!("{}/tests/lab/{story}.py", env!("CARGO_MANIFEST_DIR"))])
        .env("OUTGATE", env!("CARGO_BIN_EXE_outgate"))
        .output();
    let must = std::env::var_os("CI").is_some_and(|value| value == "true");
    let (code, text) = match run {
        Ok(run) => (
            run.status.code(),
            format!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr)),
        ),
        Err(error) => (Some(CANNOT), format!("python3: {error}")),
    };
    if code == Some(CANNOT) && !must {
        eprintln!("skipped: {}", text.trim());
        return;
    }
    println!("{text}");
    assert_eq!(code, Some(0), "{story} ended with another exit code; what it said is above");
}

#[test]
fn every_step_of_the_story_holds() {
    tell("story");
}

#[test]
fn every_answer_connects_on_its_first_syn() {
    tell("first_syn");
}

#[test]
fn a_crash_at_any_moment_loses_nothing() {
    tell("crash");
}

#[test]
fn nothing_forged_leaves_the_gateway() {
    tell("forged");
}

#[test]
fn what_is_revoked_is_closed_within_a_second() {
    tell("revoke");
}

#[test]
fn what_is_denied_ends_within_a_second() {
    tell("brake");
}

#[test]
fn a_hostile_name_server_opens_nothing_else() {
    tell("hostile");
}

#[test]
fn what_is_changed_while_it_runs_holds() {
    tell("changes");
}

#[test]
fn every_flow_is_in_the_log_as_what_it_was() {
    tell("flows");
}

#[test]
fn the_probe_says_what_is_so() {
    tell("probe");
}

#[test]
fn a_resolver_without_privileges_opens_what_it_tells() {
    tell("apart");
}

#[test]
fn an_answer_waits_for_every_gateway() {
    tell("gateways");
}
