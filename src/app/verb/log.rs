//! `outgate log verify`, `outgate log tail` and `outgate log convert`.

mod convert;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;

use crate::app::cli::{ConfigFile, Failure, print};
use crate::app::config::Config;
use crate::audit::{Filter, Progress, Tail, render_line, verify};
use crate::name::Name;
use crate::net::parse_prefix;

/// How often a followed log is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// What to do with the query log.
#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Prove that no record is missing, torn or altered, in the archives and the current file
    #[command(
        after_help = "Exit code: 0 whole, 1 not whole.\n\nExample:\n  outgate log verify /var/log/outgate/query.jsonl"
    )]
    Verify {
        #[command(flatten)]
        config: ConfigFile,
        /// The current log file; without it the one of the configuration
        file: Option<PathBuf>,
    },
    /// Show records for people, one line each
    #[command(after_help = "Example:\n  outgate log tail --follow --verdict deny --name example.com")]
    Tail {
        #[command(flatten)]
        config: ConfigFile,
        /// The current log file; without it the one of the configuration
        file: Option<PathBuf>,
        /// Wait for more records and show them, across rotations
        #[arg(short, long)]
        follow: bool,
        /// Begin with this many of the last records
        #[arg(short = 'n', long, default_value_t = 20, value_name = "N")]
        lines: usize,
        /// Only queries with this verdict
        #[arg(long, value_parser = ["allow", "deny", "error"])]
        verdict: Option<String>,
        /// Only records of this segment
        #[arg(long)]
        segment: Option<String>,
        /// Only records of clients in this prefix
        #[arg(long, value_name = "IP|PREFIX")]
        client: Option<String>,
        /// Only records of this name and of names below it
        #[arg(long)]
        name: Option<String>,
    },
    /// Write records in another format: for a SIEM, or for people
    #[command(after_help = convert::AFTER_HELP)]
    Convert(convert::Arguments),
}

pub(crate) fn run(verb: Verb) -> Result<ExitCode, Failure> {
    match verb {
        Verb::Verify { config, file } => run_verify(&file_of(&config, file)?),
        Verb::Tail { config, file, follow, lines, verdict, segment, client, name } => {
            let client = client.map(|text| {
                let refused = || Failure::Argument(format!("--client {text} is neither an address nor a prefix"));
                parse_prefix(&text).ok_or_else(refused)
            });
            let name = name.map(|text| {
                Name::parse(&text).map_err(|why| Failure::Argument(format!("--name is not a domain name: {why}")))
            });
            let filter = Filter { verdict, segment, client: client.transpose()?, name: name.transpose()? };
            run_tail(&file_of(&config, file)?, &filter, follow, lines)
        }
        Verb::Convert(arguments) => convert::run(arguments),
    }
}

fn file_of(config: &ConfigFile, file: Option<PathBuf>) -> Result<PathBuf, Failure> {
    match file {
        Some(file) => Ok(file),
        None => Config::read(config).map(|config| config.audit.file).map_err(Failure::Mistakes),
    }
}

fn run_verify(file: &std::path::Path) -> Result<ExitCode, Failure> {
    let watched = std::io::stderr().is_terminal();
    let mut progress = |progress: Progress<'_>| {
        if watched {
            let percent = progress.read * 100 / progress.length.max(1);
            let _ = write!(std::io::stderr(), "\r\x1b[K{} {percent} %", progress.file.display());
        }
    };
    let report = verify(file, &mut progress).map_err(|error| Failure::Failed(error.to_string()))?;
    if watched {
        let _ = write!(std::io::stderr(), "\r\x1b[K");
    }
    print(&format!("{report}\n"))?;
    Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn run_tail(file: &std::path::Path, filter: &Filter, follow: bool, lines: usize) -> Result<ExitCode, Failure> {
    let colour = std::io::stdout().is_terminal();
    let failed = |error: crate::audit::AuditError| Failure::Failed(error.to_string());
    let mut tail = Tail::open(file, lines).map_err(failed)?;
    loop {
        while let Some(line) = tail.next_line().map_err(failed)? {
            if filter.admits(&line) {
                let mut line = render_line(&line, colour);
                line.push('\n');
                if std::io::stdout().write_all(line.as_bytes()).is_err() {
                    return Ok(ExitCode::SUCCESS);
                }
            }
        }
        if !follow {
            return Ok(ExitCode::SUCCESS);
        }
        std::thread::sleep(LOOK);
    }
}
