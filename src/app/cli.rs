//! The command line.

use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::app::verb;
use crate::draft::LearnTerms;
use crate::serve::{GrantFilter, PromoteOrder};

/// The DNS server of a network that is closed by default: answers allowlisted names, opens their addresses in the
/// firewall first, records every query.
#[derive(Parser)]
#[command(
    name = "outgate",
    version,
    propagate_version = true,
    arg_required_else_help = true,
    after_help = "A first look, in a checkout: `outgate run`, then `dig @127.0.0.1 -p 5300 www.corp.example`.\n\
                  Exit code: 0 done, 1 it could not be done, 2 mistakes in files or arguments."
)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

/// Where the configuration is.
#[derive(Args, Clone, Debug)]
pub struct ConfigFile {
    /// Configuration file; without it ./outgate.toml, and without that the built-in defaults
    #[arg(short, long = "config", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Verb {
    /// Serve DNS until SIGTERM or SIGINT; SIGHUP loads policy and zones again
    #[command(after_help = "Example:\n  outgate run -c /etc/outgate/outgate.toml")]
    Run(ConfigFile),
    /// Open on this gateway what resolvers on other machines say, until SIGTERM or SIGINT; SIGHUP reads certificates again
    #[command(after_help = verb::enforce::AFTER_HELP)]
    Enforce(verb::enforce::Arguments),
    /// Say every mistake in configuration, policy and zones; changes nothing and opens no port
    #[command(after_help = verb::check::AFTER_HELP)]
    Check(verb::check::Arguments),
    /// Say how a question would be decided: which rules, why, what would be opened, what the client would see
    #[command(after_help = verb::explain::AFTER_HELP)]
    Explain(verb::explain::Arguments),
    /// Try a policy against decisions that were written down
    #[command(after_help = verb::test::AFTER_HELP)]
    Test(verb::test::Arguments),
    /// Write rules from another system's list: a response policy zone, a list of names, Cilium's policies
    #[command(
        subcommand,
        after_help = "The rules go to standard output, what could not be carried over to standard error. Nothing is \
                      widened.\nExit code: 0 done, 1 nothing could be carried over, 2 the file cannot be read.\n\n\
                      Example:\n  outgate import list --action deny --segments '*' ads.txt -o policy/ads.toml"
    )]
    Import(verb::import::Verb),
    /// Propose rules for what the clients of an observe segment use, from the query log, with evidence for every line
    #[command(
        after_help = "Archives beside the log are read too. Every line should be read by somebody who knows the \
                              clients.\nExit code: 0 done, 1 there is nothing to propose.\n\n\
                              Example:\n  outgate learn --log query.jsonl --segment trial -o policy/trial-learned.toml"
    )]
    Learn {
        #[command(flatten)]
        config: ConfigFile,
        /// The current log file, a directory of logs, or any file of records, also several; without it the one of the
        /// configuration
        #[arg(long, value_name = "FILE")]
        log: Vec<PathBuf>,
        /// Learn for this segment alone
        #[arg(long, value_name = "SEGMENT")]
        segment: Option<String>,
        /// Also what rules allow already, to write the policy anew
        #[arg(long)]
        all: bool,
        /// How the rules' ids begin; without it with their segment
        #[arg(long, value_name = "ID")]
        id: Option<String>,
        /// Write the rules to this file, at once, instead of the standard output
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Say of every flow of a flow log which look-up or rule it went out by: AWS VPC, Zeek, conntrack
    #[command(after_help = verb::correlate::AFTER_HELP)]
    Correlate(verb::correlate::Arguments),
    /// Say what a change of the policy would change: names, types, ports, clients; and for which recorded queries
    #[command(after_help = "Reads the files, not a running node. Rules of both sides are named with file and line.\n\
                              Exit code: 0 no difference, 1 differences, 2 it could not be compared.\n\n\
                              Example:\n  git worktree add /tmp/old main\n  \
                              outgate diff /tmp/old/policy policy --log /var/log/outgate/query.jsonl")]
    Diff(verb::diff::Arguments),
    /// Try from a client's place whether it holds: what is allowed connects, what is denied is refused, no way leads around
    #[command(after_help = verb::probe::AFTER_HELP)]
    Probe(verb::probe::Arguments),
    /// Show what a running node serves and how it is doing
    #[command(after_help = "Example:\n  outgate status --json")]
    Status {
        #[command(flatten)]
        config: ConfigFile,
        /// Print the node's JSON object instead of text
        #[arg(long)]
        json: bool,
    },
    /// List the addresses that a running node holds open, for whom and until when
    #[command(after_help = "Example:\n  outgate grants --client 192.0.2.31")]
    Grants {
        #[command(flatten)]
        config: ConfigFile,
        /// Only what this client's queries opened
        #[arg(long, value_name = "IP")]
        client: Option<IpAddr>,
        /// Only what leads to this address
        #[arg(long, value_name = "IP")]
        address: Option<IpAddr>,
        /// Only what was opened for this name
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// Only what was opened for this segment
        #[arg(long, value_name = "SEGMENT")]
        segment: Option<String>,
        /// List at most this many
        #[arg(long, default_value_t = GrantFilter::USUAL, value_parser = limit, value_name = "N")]
        limit: usize,
        /// Print a JSON array instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Let something through for a time, on a running node: names for a segment or a client, or addresses
    #[command(
        after_help = "Its end is certain: the rule goes, and what was opened under it. A restart keeps it; a reload of \
                              policy files does not undo it.\n\nExample:\n  outgate allow api.example.org --segment build --for 30m \
                              --reason \"release 4.2\" --ticket OPS-7\n  outgate allow --record 7f3a91c20b1d44e0-3-1829331 --for 30m --reason \"build 88\""
    )]
    Allow(verb::change::Allow),
    /// Refuse names or addresses at once, on a running node: what is open to them is closed
    #[command(
        after_help = "It stands above every allow and until it is retracted, also over a restart, unless --for says how long.\n\n\
                              Example:\n  outgate deny \"**.bad.example.com\" --reason \"incident 12\"\n  \
                              outgate deny 203.0.113.66 198.51.100.0/28 --for 1d --reason \"incident 12\""
    )]
    Deny(verb::change::Deny),
    /// Take back a rule that `allow` or `deny` made, before its end
    #[command(after_help = "Example:\n  outgate retract runtime-5f0c91ab --reason \"it was a false alarm\"")]
    Retract(verb::change::Retract),
    /// Close what is open now; what the policy allows is open again for who asks again
    #[command(
        after_help = "All that is given must hold. To keep it closed, deny it.\n\nExample:\n  outgate revoke --name \
                              www.example.org --cut --reason \"moved\"\n  outgate revoke --client 192.0.2.31 --reason \"lost laptop\""
    )]
    Revoke(verb::change::Revoke),
    /// Forget a client whose address is about to be another's: its grants, its connections, where it was placed
    #[command(after_help = "Example:\n  outgate forget 10.20.7.31")]
    Forget(verb::change::Forget),
    /// Place clients in segments, take them out, list them
    #[command(subcommand)]
    Client(verb::change::Client),
    /// Let a running node forget what it has cached of a name: answers, failures and replies; what is open stays open
    #[command(after_help = "Example:\n  outgate flush www.example.org\n  outgate flush example.org --below")]
    Flush {
        #[command(flatten)]
        config: ConfigFile,
        /// Name that was asked for
        name: String,
        /// And all names below it; of `.` these are all
        #[arg(long)]
        below: bool,
        /// Print a JSON object instead of text
        #[arg(long)]
        json: bool,
    },
    /// Let a running node load policy and zones again; mistakes are listed and change nothing
    #[command(after_help = "Example:\n  outgate check && outgate reload")]
    Reload {
        #[command(flatten)]
        config: ConfigFile,
        /// Print a JSON object instead of text
        #[arg(long)]
        json: bool,
    },
    /// Put the candidate policy in force on a running node, until the policy directory changes
    #[command(
        after_help = "Refuses while the candidate disagrees with the policy over queries and nobody has accepted \
                              that; see `outgate status`.\n\nExample:\n  outgate promote --accept --reason SEC-123"
    )]
    Promote {
        #[command(flatten)]
        config: ConfigFile,
        /// The disagreements so far are known and meant
        #[arg(long, conflicts_with = "revert")]
        accept: bool,
        /// Take a promotion back: the policy is again that of its directory
        #[arg(long)]
        revert: bool,
        /// Why; stands in the record
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        /// Print a JSON object instead of text
        #[arg(long)]
        json: bool,
    },
    /// Read the query log, and prove that it is whole
    #[command(subcommand)]
    Log(verb::log::Verb),
    /// Say what the log shows: what went where, what was refused, what is new, unused, shared, late, or past the resolver
    #[command(subcommand)]
    Report(verb::report::Verb),
}

/// A number that the node takes as the limit of a list.
fn limit(text: &str) -> Result<usize, String> {
    let most = GrantFilter::MOST;
    let limit = text.parse().ok().filter(|limit| (1..=most).contains(limit));
    limit.ok_or_else(|| format!("write a number from 1 to {most}"))
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let done = match Arguments::parse().verb {
        Verb::Enforce(arguments) => verb::enforce::enforce(&arguments),
        Verb::Run(config) => verb::run::run(&config),
        Verb::Check(arguments) => verb::check::run(&arguments),
        Verb::Explain(arguments) => verb::explain::run(&arguments),
        Verb::Import(verb) => verb::import::run(verb),
        Verb::Learn { config, log, segment, all, id, output } => {
            let terms = LearnTerms { segment, all, id };
            verb::learn::run(&config, verb::learn::Wanted { log, terms, output })
        }
        Verb::Test(arguments) => verb::test::run(&arguments),
        Verb::Correlate(arguments) => verb::correlate::run(&arguments),
        Verb::Diff(arguments) => verb::diff::run(&arguments),
        Verb::Probe(arguments) => verb::probe::run(arguments),
        Verb::Status { config, json } => verb::node::status(&config, json),
        Verb::Grants { config, client, address, name, segment, limit, json } => {
            let filter = verb::node::Filter { client, address, name, segment, limit };
            verb::node::grants(&config, &filter, json)
        }
        Verb::Allow(options) => verb::change::allow(options),
        Verb::Deny(options) => verb::change::deny(options),
        Verb::Retract(options) => verb::change::retract(&options),
        Verb::Revoke(options) => verb::change::revoke(options),
        Verb::Forget(options) => verb::change::forget(options),
        Verb::Client(verb) => verb::change::client(verb),
        Verb::Flush { config, name, below, json } => verb::node::flush(&config, &name, below, json),
        Verb::Promote { config, accept, revert, reason, json } => {
            verb::node::promote(&config, &PromoteOrder { accept, revert, reason }, json)
        }
        Verb::Reload { config, json } => verb::node::reload(&config, json),
        Verb::Log(verb) => verb::log::run(verb),
        Verb::Report(verb) => verb::report::run(verb),
    };
    match done {
        Ok(code) => code,
        Err(failure) => {
            // A closed pipe is the reader's choice, not a failure.
            let _ = writeln!(std::io::stderr(), "outgate: {failure}");
            ExitCode::from(failure.code())
        }
    }
}

/// Why a verb failed. Exit codes: 2 for mistakes in files or arguments, 1 for everything else.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Mistakes in configuration, policy or zones.
    #[error("{}", list(.0))]
    Mistakes(Vec<crate::document::Mistake>),
    /// As [`Failure::Mistakes`], found by the running node.
    #[error("{}", list(.0))]
    Refused(Vec<String>),
    /// An argument cannot be used.
    #[error("{0}")]
    Argument(String),
    /// It could not be done; one sentence with the remedy.
    #[error("{0}")]
    Failed(String),
}

impl Failure {
    const fn code(&self) -> u8 {
        match self {
            Self::Mistakes(_) | Self::Refused(_) | Self::Argument(_) => 2,
            Self::Failed(_) => 1,
        }
    }
}

fn list<M: ToString>(mistakes: &[M]) -> String {
    let count = mistakes.len();
    let mut text = format!("{count} mistake{}; nothing was started or changed", if count == 1 { "" } else { "s" });
    for mistake in mistakes {
        text.push('\n');
        text.push_str(&mistake.to_string());
    }
    text
}

/// Prints to standard output; a reader that has gone ends the program quietly.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::Failed(format!("standard output: {error}")))
        }
        _ => Ok(()),
    }
}
