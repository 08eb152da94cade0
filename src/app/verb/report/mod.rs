//! `outgate report`: what the log says to those who answer for the network.

mod print;

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use crate::app::cli::{ConfigFile, Failure, print as out};
use crate::app::config::Config;
use crate::app::start;
use crate::audit::{Flow, Outcome, QueriesRead, Query, Recorded, read_records};
use crate::document::{parse_duration, parse_moment};
use crate::policy::Policy;
use crate::report::{
    Asked, Blocked, By, Bypass, Exposure, Fate, Fresh, Late, Needs, Opened, Period, Report, Step, Top, Unused, Went,
};
use crate::time::{Clock, Wall};

/// What `new` looks at where nobody says.
const DAY: Duration = Duration::from_secs(86_400);

/// Which report.
#[derive(Subcommand)]
pub(crate) enum Verb {
    /// What most bytes went to; without flow records, what most queries asked for
    #[command(
        after_help = "Example:\n  outgate report top --by rule --since 7d\n  outgate report top --by tag:team --json"
    )]
    Top {
        #[command(flatten)]
        what: What,
        /// What a row is of: name, rule, segment, or the value of a tag
        #[arg(long, default_value = "name", value_name = "name|rule|segment|tag:KEY", value_parser = by)]
        by: By,
    },
    /// Which names and destinations were refused, why, and who asked
    #[command(after_help = "Example:\n  outgate report blocked --since 24h --by domain")]
    Blocked {
        #[command(flatten)]
        what: What,
        /// What a row is of: a name, or all names of one registered domain
        #[arg(long, value_enum, default_value_t = BlockedBy::Name)]
        by: BlockedBy,
    },
    /// Which names a segment asked for that it never asked for before
    #[command(after_help = "Without --since, of the last 24 hours. What is new is told by the log before that.\n\n\
                            Example:\n  outgate report new --since 24h --segment build")]
    New {
        #[command(flatten)]
        what: What,
    },
    /// Which rules, and names in rules, nobody used: what a review can remove
    #[command(after_help = "The rules are those of the configuration's policy.\n\n\
                            Example:\n  outgate report unused --since 90d -c /etc/outgate/outgate.toml")]
    Unused {
        #[command(flatten)]
        what: What,
    },
    /// What else could be reached at granted addresses: other names that are there
    #[command(after_help = "Example:\n  outgate report exposure --since 7d")]
    Exposure {
        #[command(flatten)]
        what: What,
    },
    /// Who connects after a grant has ended, and the `hold` that would cover it
    #[command(after_help = "Example:\n  outgate report late --segment build")]
    Late {
        #[command(flatten)]
        what: What,
    },
    /// Flows without a look-up: hard-coded addresses, other resolvers
    #[command(after_help = "Example:\n  outgate report bypass --since 24h")]
    Bypass {
        #[command(flatten)]
        what: What,
    },
}

/// Of what, and how it is said.
#[derive(Args)]
pub(crate) struct What {
    #[command(flatten)]
    config: ConfigFile,
    /// The current log file, a directory of logs, or any file of records, also several; without it the one of the
    /// configuration
    #[arg(long, value_name = "FILE")]
    log: Vec<PathBuf>,
    /// From then on: a time as 2026-11-01T00:00:00Z, or so long before the end as 24h or 7d; without it all of the log
    #[arg(long, value_name = "TIME|DURATION", value_parser = since)]
    since: Option<Since>,
    /// Until before then; without it now
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<Wall>,
    /// Only what clients of this segment did
    #[arg(long, value_name = "SEGMENT")]
    segment: Option<String>,
    /// List at most this many rows a table
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    limit: u32,
    /// Print a JSON object instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BlockedBy {
    Name,
    Domain,
}

#[derive(Clone, Copy, Debug)]
enum Since {
    At(Wall),
    Ago(Duration),
}

fn by(text: &str) -> Result<By, String> {
    match text {
        "name" => Ok(By::Name),
        "rule" => Ok(By::Rule),
        "segment" => Ok(By::Segment),
        _ => match text.strip_prefix("tag:").filter(|key| !key.is_empty()) {
            Some(key) => Ok(By::Tag(key.to_owned())),
            None => Err("write name, rule, segment, or a tag, e.g. tag:team".to_owned()),
        },
    }
}

fn moment(text: &str) -> Result<Wall, &'static str> {
    parse_moment(text).ok_or("write a date and time with an offset, e.g. 2027-01-01T00:00:00Z")
}

fn since(text: &str) -> Result<Since, &'static str> {
    let ago = || parse_duration(text).map(Since::Ago);
    let refused = "write how long, e.g. 24h or 7d, or a date and time with an offset, e.g. 2027-01-01T00:00:00Z";
    parse_moment(text).map(Since::At).or_else(ago).ok_or(refused)
}

impl What {
    fn period(&self, usual: Option<Duration>) -> Result<Period, Failure> {
        let end = || self.until.unwrap_or_else(|| Clock::system().now().wall);
        let ago =
            |length: Duration| Wall(end().0.saturating_sub(u64::try_from(length.as_micros()).unwrap_or(u64::MAX)));
        let since = match self.since {
            Some(Since::At(at)) => Some(at),
            Some(Since::Ago(length)) => Some(ago(length)),
            None => usual.map(ago),
        };
        if let (Some(since), Some(until)) = (since, self.until)
            && since >= until
        {
            return Err(Failure::Argument(format!("--since {since} is not before --until {until}")));
        }
        Ok(Period { since, until: self.until })
    }
}

/// Reads the log once and prints the report.
pub(crate) fn run(verb: Verb) -> Result<ExitCode, Failure> {
    let mut tag = None;
    let (what, report): (What, Box<dyn Report>) = match verb {
        Verb::Top { what, by } => {
            tag = if let By::Tag(key) = &by { Some(key.clone()) } else { None };
            let period = what.period(None)?;
            (what, Box::new(Top::new(by, period)))
        }
        Verb::Blocked { what, by } => {
            let period = what.period(None)?;
            (what, Box::new(Blocked::new(by == BlockedBy::Domain, period)))
        }
        Verb::New { what } => {
            let period = what.period(Some(DAY))?;
            (what, Box::new(Fresh::new(period)))
        }
        Verb::Unused { what } => {
            let period = what.period(None)?;
            let policy = policy(&what.config)?;
            (what, Box::new(Unused::new(policy, period)))
        }
        Verb::Exposure { what } => {
            let period = what.period(None)?;
            (what, Box::new(Exposure::new(period)))
        }
        Verb::Late { what } => {
            let period = what.period(None)?;
            (what, Box::new(Late::new(period)))
        }
        Verb::Bypass { what } => {
            let period = what.period(None)?;
            (what, Box::new(Bypass::new(period)))
        }
    };
    let mut log = what.log.clone();
    if log.is_empty() {
        log.push(Config::read(&what.config).map_err(Failure::Mistakes)?.audit.file);
    }
    let needs = report.needs();
    let mut feed = Feed { report, needs, tag, segment: what.segment.as_deref(), until: what.until, span: None };
    let read = read(&log, &mut feed)?;
    let Feed { report, span, .. } = feed;
    let sheet = report.finish(span, usize::try_from(what.limit).unwrap_or(usize::MAX));
    out(&if what.json { format!("{}\n", print::json(&sheet, &read)) } else { print::text(&sheet, &read) })?;
    Ok(ExitCode::SUCCESS)
}

/// The policy of the configuration.
fn policy(config: &ConfigFile) -> Result<Arc<Policy>, Failure> {
    let config = Config::read(config).map_err(Failure::Mistakes)?;
    let (loaded, _) = start::check(&config).map_err(Failure::Mistakes)?;
    Ok(loaded.policy)
}

fn read(log: &[PathBuf], feed: &mut Feed<'_>) -> Result<QueriesRead, Failure> {
    let watched = std::io::stderr().is_terminal();
    let mut progress = |progress: crate::audit::QueriesProgress<'_>| {
        if watched {
            let percent = progress.read * 100 / progress.length.max(1);
            let _ = write!(std::io::stderr(), "\r\x1b[K{} queries, {percent} %", progress.queries);
        }
    };
    let read = read_records(log, &mut progress, &mut |record| feed.take(record));
    if watched {
        let _ = write!(std::io::stderr(), "\r\x1b[K");
    }
    read.map_err(|error| Failure::Failed(error.to_string()))
}

/// Hands the records of a log to a report.
struct Feed<'a> {
    report: Box<dyn Report>,
    needs: Needs,
    /// The key of the tag that is asked for.
    tag: Option<String>,
    segment: Option<&'a str>,
    until: Option<Wall>,
    span: Option<(Wall, Wall)>,
}

impl Feed<'_> {
    fn take(&mut self, record: Recorded<'_>) {
        match record {
            Recorded::Query(query) => {
                if self.wants(query.at(), query.segment.as_deref().unwrap_or_default()) {
                    self.query(query);
                }
            }
            Recorded::Grant(grant) => {
                if self.wants(grant.at(), &grant.segment) && &*grant.op != "fail" {
                    let (segment, rule, qname) = (&*grant.segment, &*grant.rule, &*grant.qname);
                    self.report.opened(&Opened { at: grant.at(), segment, rule, qname, address: grant.address });
                }
            }
            Recorded::Flow(flow) => {
                if self.wants(flow.at(), flow.segment.as_deref().unwrap_or_default()) {
                    self.flow(flow);
                }
            }
            Recorded::Policy(policy) => {
                let added = policy.rules_added();
                if self.reaches(policy.at()) && !added.is_empty() {
                    let added: Vec<&str> = added.iter().map(|id| &**id).collect();
                    self.report.added(policy.at(), &added);
                }
            }
            Recorded::Notice(notice) => _ = self.reaches(notice.at()),
            Recorded::Missing => {}
        }
    }

    /// Whether it lies before the end; all that does is the log's reach.
    fn reaches(&mut self, at: Wall) -> bool {
        if self.until.is_some_and(|until| until <= at) {
            return false;
        }
        let (first, last) = self.span.unwrap_or((at, at));
        self.span = Some((first.min(at), last.max(at)));
        true
    }

    fn wants(&mut self, at: Wall, segment: &str) -> bool {
        self.reaches(at) && self.segment.is_none_or(|only| only == segment)
    }

    fn query(&mut self, query: &Query<'_>) {
        let addresses: Vec<IpAddr> = match self.needs.answers {
            true => query.answers().iter().filter_map(crate::audit::Told::address).collect(),
            false => Vec::new(),
        };
        let fate = match (query.verdict, query.enforced) {
            (Outcome::Allow, _) => Fate::Allowed,
            (Outcome::Deny, false) => Fate::Passed,
            (Outcome::Deny, true) => Fate::Denied,
            (Outcome::Error, _) => Fate::Failed,
        };
        self.report.asked(&Asked {
            id: &query.id,
            at: query.at(),
            client: query.client,
            certificate: query.certificate.as_deref(),
            segment: query.segment.as_deref().unwrap_or_default(),
            tag: &self.tagged(query.tags()),
            qname: query.qname.as_deref().unwrap_or_default(),
            qtype: query.qtype.as_deref().unwrap_or_default(),
            fate,
            reason: &query.reason,
            rule: query.rule.as_deref().unwrap_or_default(),
            addresses: &addresses,
            open_until: query.grant().filter(|_| self.needs.grants).map(|(_, until)| until),
        });
    }

    fn flow(&mut self, flow: &Flow<'_>) {
        let step = match &*flow.op {
            "open" => Step::Began,
            "refuse" => Step::Refused,
            _ => Step::Ended,
        };
        let names = flow.names();
        let names: Vec<(&str, &str)> = names.iter().map(|named| (&*named.qname, &*named.rule)).collect();
        let service = flow.service().map(|service| service.to_string()).unwrap_or_default();
        let bytes = match (flow.bytes_out, flow.bytes_in) {
            (None, None) => None,
            (out, back) => Some((out.unwrap_or(0), back.unwrap_or(0))),
        };
        self.report.went(&Went {
            at: flow.at(),
            step,
            client: flow.client,
            segment: flow.segment.as_deref().unwrap_or_default(),
            tag: &self.tagged(flow.tags()),
            address: flow.address,
            service: &service,
            passed: !flow.denied(),
            class: flow.class(),
            detail: flow.detail(),
            qname: flow.qname.as_deref().unwrap_or_default(),
            rule: flow.rule.as_deref().unwrap_or_default(),
            query: flow.query.as_deref().unwrap_or_default(),
            names: &names,
            late: flow.late_us.map(Duration::from_micros),
            bytes,
        });
    }

    /// The value of the tag that is asked for.
    fn tagged(&self, tags: Option<&str>) -> String {
        let (Some(key), Some(tags)) = (&self.tag, tags) else { return String::new() };
        let tags: BTreeMap<String, String> = serde_json::from_str(tags).unwrap_or_default();
        tags.get(key).cloned().unwrap_or_default()
    }
}
