//! `outgate learn`: from the records of an observe segment to rules for what its clients use.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use crate::app::cli::{ConfigFile, Failure};
use crate::app::config::Config;
use crate::app::verb::import::{check_id, hand_out};
use crate::audit::{Outcome, Query, read_queries};
use crate::draft::{Fate, LearnTerms, Learner, Seen, safe};
use crate::name::NameBuf;
use crate::policy::Reason;

/// What to learn from, and where to.
pub(crate) struct Wanted {
    pub(crate) log: Vec<PathBuf>,
    pub(crate) terms: LearnTerms,
    pub(crate) output: Option<PathBuf>,
}

pub(crate) fn run(config: &ConfigFile, wanted: Wanted) -> Result<ExitCode, Failure> {
    let Wanted { mut log, terms, output } = wanted;
    check_id(terms.id.as_deref())?;
    if log.is_empty() {
        log.push(Config::read(config).map_err(Failure::Mistakes)?.audit.file);
    }
    let watched = io::stderr().is_terminal();
    let mut learner = Learner::new(terms.clone());
    let read = read_queries(
        &log,
        &mut |progress| {
            if watched {
                let percent = progress.read * 100 / progress.length.max(1);
                let _ = write!(io::stderr(), "\r\x1b[K{} queries, {percent} %", progress.queries);
            }
        },
        &mut |query| see(&mut learner, query),
    );
    if watched {
        let _ = write!(io::stderr(), "\r\x1b[K");
    }
    let read = read.map_err(|error| Failure::Failed(error.to_string()))?;
    let source: Vec<String> = log.iter().map(|path| path.display().to_string()).collect();
    let source = source.join(", ");
    let learned = learner.finish(&source);
    let mut told = format!("{read}\n");
    for note in &learned.draft.notes {
        told.push_str(&format!("note: {note}\n"));
    }
    if learned.lines > 0 {
        told.push_str(&format!(
            "{} rules with {} names, for {} names that were asked for; {} of {} queries are covered\n",
            learned.draft.rules.len(),
            learned.lines,
            learned.names,
            learned.covered,
            learned.queries
        ));
    }
    let told: String = told.lines().map(|line| format!("{}\n", safe(line))).collect();
    // Nobody reads it: the rules are written all the same.
    let _ = io::stderr().write_all(told.as_bytes());
    if learned.lines == 0 {
        return Err(Failure::Failed(nothing(&terms, read.queries, learned.queries, &source)));
    }
    hand_out(&learned.draft, output.as_deref())?;
    Ok(ExitCode::SUCCESS)
}

/// Why there is no rule.
fn nothing(terms: &LearnTerms, all: u64, learned: u64, source: &str) -> String {
    let whose = terms.segment.as_ref().map_or_else(String::new, |segment| format!(" of the segment {segment}"));
    match (all, learned) {
        (0, _) => format!("there is no query in {source}; name the file of the log, or its directory, with --log"),
        (_, 0) => format!(
            "no query{whose} in {source} passed because a segment observes; give one mode = \"observe\" and `until`, and \
             learn when it has run for a week; or learn what rules allow with --all"
        ),
        (_, learned) => format!(
            "{learned} queries{whose} in {source} are too few to propose rules for: a name must be asked for on several \
             days or by several clients"
        ),
    }
}

fn see(learner: &mut Learner, query: &Query<'_>) {
    let (Some(segment), Some(name), Some(kind)) = (&query.segment, &query.qname, &query.qtype) else { return };
    let (Ok(name), Ok(kind)) = (NameBuf::parse(name), kind.parse()) else { return };
    let fate = fate(query);
    let ports = match fate {
        Fate::Allowed => query.grant().map(|(ports, _)| ports).unwrap_or_default(),
        _ => Vec::new(),
    };
    let exists = match query.rcode.as_deref() {
        Some("NOERROR") => Some(true),
        Some("NXDOMAIN") => Some(false),
        _ => None,
    };
    let client = query.client;
    learner.see(&Seen { at: query.at(), client, segment, name: &name, kind, fate, exists, ports: &ports });
}

fn fate(query: &Query<'_>) -> Fate {
    let is = |reason: Reason| &*query.reason == reason.as_str();
    match query.verdict {
        Outcome::Allow if is(Reason::Rule) => Fate::Allowed,
        Outcome::Deny if is(Reason::Rule) => Fate::Denied,
        Outcome::Deny if (is(Reason::Default) || is(Reason::Type)) && !query.enforced => Fate::Passed,
        Outcome::Deny if is(Reason::Default) || is(Reason::Type) => Fate::Refused,
        Outcome::Deny => Fate::Barred,
        Outcome::Allow | Outcome::Error => Fate::Other,
    }
}
