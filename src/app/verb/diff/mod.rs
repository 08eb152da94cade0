//! `outgate diff`: what a change of the policy would change, before it is made.

mod render;
mod replay;

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use self::replay::Replay;
use crate::app::cli::{ConfigFile, Failure, print};
use crate::app::config::Config;
use crate::app::load;
use crate::audit::{QueriesProgress, QueriesRead, read_queries};
use crate::policy::compare;
use crate::time::Clock;
use crate::upstream::Upstreams;

/// What is compared.
#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    config: ConfigFile,
    /// Policy directory as it was
    old: PathBuf,
    /// Policy directory as it would be
    new: PathBuf,
    /// Put the recorded queries of this log to both: its current file, an archive, or a directory; may be repeated
    #[arg(long, value_name = "PATH")]
    log: Vec<PathBuf>,
    /// Print a JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// What was replayed.
struct Replayed {
    replay: Replay,
    read: QueriesRead,
    took: Duration,
}

/// Says what differs; like diff(1), 0: nothing, 1: something, 2: it could not be compared.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let Arguments { config, old, new, log, json } = arguments;
    if let Some(directory) = [old, new].into_iter().find(|directory| !directory.is_dir()) {
        let fact = format!("{}: no such directory; name the policy directories, old and new", directory.display());
        return Err(Failure::Argument(fact));
    }
    let config = Config::read(config).map_err(Failure::Mistakes)?;
    let clock = Clock::system();
    let (settings, _) = load::upstreams(&config);
    let upstreams = Upstreams::new(settings, &clock).map_err(Failure::Mistakes)?;
    let policies = load::policies(&config, &upstreams, [old, new]).map_err(Failure::Mistakes)?;
    let [before, after] = &policies;
    let now = clock.now();
    let comparison = compare(before, after, now.wall);
    let started = clock.now().tick;
    let replayed = if log.is_empty() {
        None
    } else {
        let mut replay = Replay::new(policies.clone(), now.wall);
        let read = replay_log(&mut replay, log, &clock)?;
        Some(Replayed { replay, read, took: clock.now().tick.since(started) })
    };
    let equal = comparison.is_empty() && replayed.as_ref().is_none_or(|replayed| replayed.replay.is_empty());
    if *json {
        let mut report = render::json(&comparison);
        let replay = replayed.as_ref().map(render::replay_json);
        if let Some(fields) = report.as_object_mut() {
            fields.insert("equal".into(), equal.into());
            fields.extend(replay.map(|replay| ("replay".to_owned(), replay)));
        }
        print(&format!("{report}\n"))?;
    } else {
        let colour = std::io::stdout().is_terminal();
        let mut text = render::text(&comparison, colour);
        if let Some(replayed) = &replayed {
            text.push_str(&render::replay_text(replayed, colour));
        }
        print(&text)?;
    }
    Ok(if equal { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn replay_log(replay: &mut Replay, log: &[PathBuf], clock: &Clock) -> Result<QueriesRead, Failure> {
    let watched = std::io::stderr().is_terminal();
    let started = clock.now().tick;
    let mut progress = |QueriesProgress { file, read, length, queries }: QueriesProgress<'_>| {
        if watched {
            let percent = read * 100 / length.max(1);
            let name = file.file_name().map(Path::new).unwrap_or(file).display();
            let rate = rate(queries, clock.now().tick.since(started));
            let _ = write!(std::io::stderr(), "\r\x1b[K{name} {percent} %, {queries} queries, {rate} a second");
        }
    };
    let read = read_queries(log, &mut progress, &mut |query| replay.query(query));
    if watched {
        let _ = write!(std::io::stderr(), "\r\x1b[K");
    }
    // 1 is for differences.
    read.map_err(|error| Failure::Argument(error.to_string()))
}

/// So many a second.
fn rate(count: u64, took: Duration) -> u64 {
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
    u64::try_from(u128::from(count) * 1_000_000 / u128::from(micros)).unwrap_or(u64::MAX)
}
