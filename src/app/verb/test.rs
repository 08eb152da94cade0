//! `outgate test`: the decisions of a policy against those that were written down.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use crate::app::cli::{ConfigFile, Failure, print};
use crate::app::config::Config;
use crate::app::start;
use crate::document::Mistake;
use crate::policy::{Case, Tried, read_cases};
use crate::time::Clock;

pub(crate) const AFTER_HELP: &str = "Exit code: 0 all as expected, 1 some not, 2 mistakes in files.\n\n\
    Examples:\n  outgate test\n  outgate test policy/tests/checkout.toml";

/// Failures that are printed; the others are counted.
const SHOWN: usize = 1000;

/// What to try.
#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    config: ConfigFile,
    /// Files of cases, or directories of them; without any, tests/ of the policy directory
    files: Vec<PathBuf>,
    /// Print a JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// Decides every case; prints each that differs.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let clock = Clock::system();
    let started = clock.now();
    // No door is opened, so that nobody needs the key here.
    let config = Config::read(&arguments.config).map_err(Failure::Mistakes)?;
    let directory = config.policy_directory.join("tests");
    let (loaded, _) = start::check(&Config { tls: None, ..config }).map_err(Failure::Mistakes)?;
    let files = if arguments.files.is_empty() { vec![directory] } else { arguments.files.clone() };
    let cases = read(&files)?;
    let mut mistakes = Vec::new();
    let mut failures: Vec<(&Case, Tried)> = Vec::new();
    let (mut tried, mut failed) = (0, 0);
    for case in &cases {
        let each = |differing| {
            failed += 1;
            if failures.len() < SHOWN {
                failures.push((case, differing));
            }
        };
        match loaded.policy.try_case(case, started.wall, each) {
            Ok(count) => tried += count,
            Err(mistake) => mistakes.push(mistake),
        }
    }
    if !mistakes.is_empty() {
        return Err(Failure::Mistakes(mistakes));
    }
    let took = clock.now().tick.since(started.tick);
    if arguments.json {
        let failures: Vec<Value> = failures.iter().map(|(case, differing)| object(case, differing)).collect();
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let report = json!({ "cases": tried, "failed": failed, "took_us": us, "failures": failures });
        print(&format!("{report}\n"))?;
    } else {
        let mut out: String = failures.iter().map(|(case, differing)| text(case, differing)).collect();
        if failed > failures.len() {
            let _ = writeln!(out, "and {} more", failed - failures.len());
        }
        let _ = writeln!(out, "{tried} cases, {failed} failed, {:.1} s", took.as_secs_f64());
        print(&out)?;
    }
    Ok(ExitCode::from(u8::from(failed > 0)))
}

/// The cases of these files, and of the files in these directories.
fn read(paths: &[PathBuf]) -> Result<Vec<Case>, Failure> {
    let unreadable = |path: &Path, error: &std::io::Error| {
        let fact = format!("{} cannot be read: {error}", path.display());
        Failure::Mistakes(vec![Mistake::general(fact, "name a file of cases, or a directory of them")])
    };
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let entries = std::fs::read_dir(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let entries = entries.map_err(|error| unreadable(path, &error))?;
        let mut found: Vec<_> = entries.into_iter().map(|entry| entry.path()).collect();
        found.retain(|file| file.extension().is_some_and(|extension| extension == "toml"));
        found.sort();
        files.extend(found);
    }
    let (mut cases, mut mistakes) = (Vec::new(), Vec::new());
    for file in files {
        let text = std::fs::read_to_string(&file).map_err(|error| unreadable(&file, &error))?;
        match read_cases(&file.display().to_string(), text) {
            Ok(more) => cases.extend(more),
            Err(more) => mistakes.extend(more),
        }
    }
    if !mistakes.is_empty() {
        return Err(Failure::Mistakes(mistakes));
    }
    if cases.is_empty() {
        let paths: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
        return Err(Failure::Argument(format!("no [[case]] in {}", paths.join(", "))));
    }
    Ok(cases)
}

fn text(case: &Case, tried: &Tried) -> String {
    let Tried { name, kind, asked_by, differs } = tried;
    let mut out = format!("{}: {name} {kind} asked by {asked_by}\n", case.place);
    if let Some(comment) = &case.comment {
        let _ = writeln!(out, "  # {comment}");
    }
    for (key, expected, said) in differs {
        for (sign, value) in [('-', expected), ('+', said)] {
            if !value.is_empty() {
                let _ = writeln!(out, "  {sign} {key:<7} {value}");
            }
        }
    }
    out
}

fn object(case: &Case, tried: &Tried) -> Value {
    let Tried { name, kind, asked_by, differs } = tried;
    let differs: Vec<Value> =
        differs.iter().map(|(key, expected, said)| json!({ "key": key, "expected": expected, "said": said })).collect();
    json!({
        "file": &*case.place.file, "line": case.place.line, "column": case.place.column, "comment": case.comment,
        "qname": name.to_string(), "qtype": kind.to_string(), "asked_by": asked_by, "differs": differs,
    })
}
