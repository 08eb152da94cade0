//! `outgate probe`: from a client's place, does it really hold?
//!
//! What is allowed must resolve and connect at once, what is denied be refused, and no way lead around the resolver. It
//! sends to the resolvers, to what they answer for the allowed names, and to the ways in its list; to nobody else.

mod around;
mod ask;
mod check;
mod gauges;
mod plan;
mod reach;
mod round;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use self::around::{GROUPS, Way};
use self::check::{Finding, State};
use self::gauges::Gauges;
use self::plan::{Allowed, Check, Denied, Plan, ROUNDS, Resolver, TIMEOUTS};
use self::round::Round;
use crate::app::cli::{Failure, print};
use crate::document::{parse_duration, write_duration};
use crate::serve::health;

pub(crate) const AFTER_HELP: &str = "Run it where a client runs: it needs no right, no configuration and no node. It sends to the resolvers, to what \
    they answer for the allowed names, and to the ways around that docs/probe.md lists; to nobody else.\n\
    Exit code: 0 it holds, 1 a check failed, with --strict also for warnings, 2 mistakes in files or arguments. With --every: \
    that of the last round.\n\n\
    Examples:\n  outgate probe --allowed registry.example:443 --denied tracker.example --blocked 203.0.113.5:443\n  \
    outgate probe --file /etc/outgate/probe.toml --every 30s --metrics 127.0.0.1:9154";

/// What to try, and how to say it.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Resolver that is asked, also several; without it those of /etc/resolv.conf
    #[arg(long, value_name = "ADDRESS[:PORT]")]
    resolver: Vec<Resolver>,
    /// Name that must resolve, and connect over TCP on every address that it is told; also several. Port 443 unless given
    #[arg(long, value_name = "NAME[:PORT]")]
    allowed: Vec<Allowed>,
    /// Name that must be refused, also several
    #[arg(long, value_name = "NAME")]
    denied: Vec<Denied>,
    /// What must not be reached, over TCP unless udp/ stands before it; also several
    #[arg(long, value_name = "[udp/]ADDRESS:PORT")]
    blocked: Vec<Way>,
    /// Leave out ways around that are tried by themselves: dns, dot, doh, cloud, or all of them
    #[arg(long, value_name = "GROUP", value_delimiter = ',', value_parser = group())]
    without: Vec<String>,
    /// Read what to try from this file too
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// How long each attempt may take; 2s unless given
    #[arg(long, value_name = "DURATION", value_parser = |text: &str| duration(text, TIMEOUTS))]
    timeout: Option<Duration>,
    /// Go on until SIGTERM or SIGINT: a round so often, of which what has changed is told
    #[arg(long, value_name = "DURATION", value_parser = |text: &str| duration(text, ROUNDS))]
    every: Option<Duration>,
    /// Serve /metrics and /health there, with --every
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics: Option<SocketAddr>,
    /// Fail where there is a warning: exit code 1
    #[arg(long)]
    strict: bool,
    /// Say nothing of what is well
    #[arg(short, long, conflicts_with = "json")]
    quiet: bool,
    /// Print a JSON object for each round instead of text
    #[arg(long)]
    json: bool,
}

fn group() -> clap::builder::PossibleValuesParser {
    GROUPS.iter().map(|group| group.word).chain(["all"]).collect::<Vec<_>>().into()
}

fn duration(text: &str, (least, most): (Duration, Duration)) -> Result<Duration, String> {
    let duration = parse_duration(text).filter(|duration| (least..=most).contains(duration));
    duration.ok_or_else(|| format!("write a duration from {} to {}", write_duration(least), write_duration(most)))
}

/// How it is told.
#[derive(Clone, Copy)]
struct Manner {
    strict: bool,
    quiet: bool,
    json: bool,
}

impl Manner {
    fn code(self, round: &Round) -> ExitCode {
        let warns = self.strict && round.count(State::Warn) > 0;
        ExitCode::from(u8::from(warns || round.count(State::Fail) > 0))
    }

    /// The first round whole.
    fn tell(self, plan: &Plan, round: &Round) -> Result<(), Failure> {
        if self.json {
            return print(&format!("{}\n", round.object(plan)));
        }
        let wanted = |_: usize, finding: &Finding| !self.quiet || finding.state != State::Ok;
        let mut out = round.lines(plan, wanted);
        if !plan.steps.iter().any(|step| matches!(step.check, Check::Allowed(..))) {
            out.push_str(
                "note: nothing allowed was tried; a machine without a network would refuse the rest as well\n",
            );
        }
        out.push_str(&round.summary());
        print(&out)
    }

    /// Of a later round what came out otherwise than in the one before.
    fn tell_changes(self, plan: &Plan, round: &Round, before: &Round) -> Result<(), Failure> {
        if self.json {
            return print(&format!("{}\n", round.object(plan)));
        }
        let changed = |index: usize, finding: &Finding| {
            before.findings.get(index).is_none_or(|before| before.state != finding.state)
        };
        let lines = round.lines(plan, changed);
        print(&lines.lines().map(|line| format!("{} {line}\n", round.at)).collect::<String>())
    }
}

/// Tries everything, once or until it is told to stop.
pub(crate) fn run(arguments: Arguments) -> Result<ExitCode, Failure> {
    let manner = Manner { strict: arguments.strict, quiet: arguments.quiet, json: arguments.json };
    let plan = Plan::new(arguments)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::Failed(format!("no runtime: {error}")))?;
    runtime.block_on(async {
        match plan.every {
            Some(every) => go_on(&plan, every, manner).await,
            None => {
                let round = Round::of(&plan).await;
                manner.tell(&plan, &round)?;
                Ok(manner.code(&round))
            }
        }
    })
}

async fn go_on(plan: &Plan, every: Duration, manner: Manner) -> Result<ExitCode, Failure> {
    let on = |kind| signal(kind).map_err(|error| Failure::Failed(format!("no signals: {error}")));
    let (mut terminate, mut interrupt) = (on(SignalKind::terminate())?, on(SignalKind::interrupt())?);
    let gauges = Arc::new(Gauges::new(plan));
    let (_running, stop) = watch::channel(false);
    if let Some(address) = plan.metrics {
        let listener = TcpListener::bind(address).await.map_err(|error| {
            Failure::Failed(format!("--metrics {address}: {error}; name another address, or stop what listens there"))
        })?;
        tokio::spawn(health::serve(listener, Arc::clone(&gauges), stop));
    }
    let mut rounds = interval(every);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let forever = async {
        loop {
            rounds.tick().await;
            let before = gauges.set(Round::of(plan).await);
            gauges
                .last(|round| match &before {
                    None => manner.tell(plan, round),
                    Some(before) => manner.tell_changes(plan, round, before),
                })
                .unwrap_or(Ok(()))?;
        }
    };
    tokio::select! {
        ended = forever => return ended,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(gauges.last(|round| manner.code(round)).unwrap_or(ExitCode::SUCCESS))
}
