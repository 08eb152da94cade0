//! `outgate correlate`: a flow log of another system joined with the query log.
//!
//! The flows are put in order of time, on disk where they are many; the query log is read beside them, and each flow is
//! judged as the live correlator would have judged it then. Memory does not grow with either.

mod input;
mod log;
mod order;
mod pair;
mod summary;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use self::input::Input;
use self::log::Logs;
use self::order::Order;
use self::pair::{Ends, Pairs};
use self::summary::Summary;
use crate::app::cli::{ConfigFile, Failure, print};
use crate::app::config::Config;
use crate::app::history::{self, Sources};
use crate::app::start;
use crate::audit::{Encoder, Event, FlowEvent, FlowOp, RecordId};
use crate::draft::safe;
use crate::flow::source::{Seen, Source};
use crate::flow::{Class, Detail, Flow, Index, Limits, Origin, QueryId};
use crate::time::Wall;

pub(crate) const AFTER_HELP: &str = "Flow logs may be packed with gzip or zstd, and in any order. Every flow becomes one record, with the same id \
    whenever it is read again.\nExit code: 0 done, 1 it could not be done, 2 a mistake in an argument.\n\n\
    Examples:\n  outgate correlate --log /var/log/outgate/query.jsonl --flows vpc-2026-11-21.log.gz -o flows.jsonl\n  \
    outgate correlate -c outgate.toml --flows conn.log --json\n  \
    conntrack -E -o timestamp,id | outgate correlate --log query.jsonl --flows - --format conntrack";

/// The node of the records where no configuration names one.
const NODE: &str = "correlate";
/// The shard of their ids, which no node has.
const SHARD: u16 = u16::MAX;
/// Lines of different threads of a node stand so far out of order at most.
const DISORDER: u64 = 2_000_000;
/// Connections whose class is remembered for their later windows; at the cap those that were silent for longest are not.
const EARLIER: usize = 1 << 18;
/// A connection that was silent for so long may be another one between the same ends: NAT gateways forget it after 350 s,
/// and a window has at most ten minutes.
const SILENT: u64 = 1_800_000_000;

#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    config: ConfigFile,
    /// The query log: its current file, read with its archives, or a directory of log files; once for each node that the
    /// clients ask. Without it the one of the configuration
    #[arg(long, value_name = "FILE")]
    log: Vec<PathBuf>,
    /// The flow log, also several; `-` is the standard input
    #[arg(long, value_name = "FILE", required = true)]
    flows: Vec<PathBuf>,
    /// vpc, zeek or conntrack; without it what the first line looks like
    #[arg(long, value_name = "FORMAT", value_parser = format)]
    format: Option<Origin>,
    /// The fields of a VPC's flow log that does not name them, in their order
    #[arg(long, value_name = "FIELDS")]
    fields: Option<String>,
    /// Address of a resolver that the clients may use, also several; those of the configuration are known
    #[arg(long, value_name = "IP")]
    resolver: Vec<IpAddr>,
    /// How far the clocks of both logs may be apart, beyond what is usual of the format
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration)]
    clock_error: Duration,
    /// How far back what had ended still explains a flow
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = duration)]
    lookback: Duration,
    /// Write the records here instead of the standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The summary as a JSON object
    #[arg(long)]
    json: bool,
}

fn format(text: &str) -> Result<Origin, &'static str> {
    let known = Origin::of_word(text).filter(|origin| *origin != Origin::Nflog);
    known.ok_or("write vpc, zeek or conntrack")
}

fn duration(text: &str) -> Result<Duration, String> {
    crate::document::parse_duration(text).ok_or_else(|| "write a duration, e.g. 90s or 1h".to_owned())
}

/// What the configuration says of the clients.
struct Site {
    node: String,
    sources: Sources,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let Arguments { config, log, flows, format, fields, resolver, clock_error, lookback, output, json } = arguments;
    let mut log = log.clone();
    let mut site = Site { node: NODE.to_owned(), sources: Sources::default() };
    let mut index = Index::new(Limits { lookback: *lookback, ..Limits::default() });
    let (mut resolvers, mut statics) = (resolver.clone(), Vec::new());
    if config.config.is_some() {
        let config = Config::read(config).map_err(Failure::Mistakes)?;
        let (loaded, _) = start::check(&config).map_err(Failure::Mistakes)?;
        let doors = config.listen.dns.iter().chain(&config.listen.tls).chain(&config.listen.https);
        resolvers.extend(doors.map(std::net::SocketAddr::ip).filter(|ip| !ip.is_unspecified()));
        statics = history::statics(&loaded.policy);
        statics.extend(config.firewalls.iter().flat_map(history::spared));
        if log.is_empty() {
            log.push(config.audit.file.clone());
        }
        site = Site { node: config.node, sources: Sources::new(&loaded.policy) };
    }
    statics.extend(resolvers.into_iter().map(history::resolver));
    index.set_statics(statics);
    if log.is_empty() {
        return Err(Failure::Argument("name the query log with --log, or the configuration with -c".to_owned()));
    }

    let mut order = Order::new();
    let mut summary = Summary::default();
    let mut input = Input::new(*format, fields.as_deref());
    for path in flows {
        input.read(path, &mut index, &mut order)?;
    }
    let error = input.error() + *clock_error;
    let origin = input.origin();
    let rows = order.len();
    let sorted = order.finish().map_err(|error| order::failed(&error))?;

    let mut out = Output::open(output.as_deref(), *json)?;
    let read = std::thread::scope(|scope| -> Result<_, Failure> {
        progress("looking for what is missing in the query log");
        let logs = Logs::open(scope, &log);
        progress("");
        let mut logs = logs?;
        logs.begin(&mut index);
        let mut join = Join {
            site: &site,
            index,
            error,
            origin,
            earlier: HashMap::new(),
            encoder: Encoder::new(0, SHARD, &site.node),
        };
        let mut pairs = Pairs::new(origin == Origin::Vpc, sorted);
        let mut done = 0_u64;
        while let Some(row) = pairs.next(&|address| site.sources.of(address).is_some()) {
            let row = row.map_err(|error| order::failed(&error))?;
            logs.advance(&mut join.index, row.seen.at.0.saturating_add(micros(error)).saturating_add(DISORDER));
            join.write(&row.seen, row.id, &mut out, &mut summary)?;
            done += 1;
            if done.is_multiple_of(1 << 16) {
                progress(&format!("{done} flows, {} % of the lines", pairs.taken() * 100 / rows.max(1)));
            }
        }
        summary.joined = pairs.joined();
        summary.held = join.index.holds();
        logs.finish()
    })?;
    progress("");
    out.close()?;
    let told = format!("{}\n{}", read.join("\n"), input.account());
    let told: String = told.lines().map(|line| format!("{}\n", safe(line))).collect();
    // Nobody reads it: the records are written all the same.
    let _ = io::stderr().write_all(told.as_bytes());
    match (json, output) {
        (true, _) => print(&format!("{}\n", summary.object()))?,
        (false, _) => _ = io::stderr().write_all(summary.to_string().as_bytes()),
    }
    Ok(ExitCode::SUCCESS)
}

/// What a connection was judged as when it began.
struct Earlier {
    /// The end of its last window.
    last: Wall,
    class: Class,
    detail: Option<Detail>,
    qname: Option<Box<str>>,
    rule: Option<Box<str>>,
    query: Option<QueryId>,
}

/// Judges flows and writes their records.
struct Join<'a> {
    site: &'a Site,
    index: Index,
    error: Duration,
    origin: Origin,
    earlier: HashMap<Ends, Earlier>,
    encoder: Encoder,
}

impl Join<'_> {
    fn write(&mut self, seen: &Seen, id: (u64, u32), out: &mut Output, summary: &mut Summary) -> Result<(), Failure> {
        let segment = self.site.sources.of(seen.client);
        // A time that nobody wrote down is of no look-up; what is always open explains it all the same.
        let (at, end) = if seen.timed { (seen.at, seen.end) } else { (Wall(u64::MAX), None) };
        let flow = Flow {
            at,
            end,
            client: seen.client,
            segment: segment.map(|segment| &*segment.name),
            address: seen.address,
            carrier: seen.carrier,
            started: seen.started,
            denied: seen.denied,
            error: self.error,
        };
        let judgement = self.index.judge(&flow);
        let why = if seen.timed || judgement.class != Class::Unknown {
            judgement.why()
        } else {
            Some("its event has no time; watch with conntrack -E -o timestamp,id".to_owned())
        };
        let mut event = FlowEvent::judged(FlowOp::Seen, self.origin, &flow, &judgement, why.as_deref());
        event.at = seen.at;
        let ends = Ends::of(seen);
        let last = seen.end.unwrap_or(seen.at);
        if judgement.detail == Some(Detail::Start)
            && let Some(earlier) = self.earlier.get_mut(&ends)
            && seen.at.0 <= earlier.last.0.saturating_add(SILENT)
        {
            earlier.last = earlier.last.max(last);
            (event.class, event.detail) = (earlier.class, earlier.detail);
            (event.qname, event.rule) = (earlier.qname.as_deref(), earlier.rule.as_deref());
            event.query = earlier.query.map(RecordId::from);
            event.why = Some("as it was judged when it began");
        }
        event.port = seen.port;
        event.segment = segment.map(|segment| (&*segment.name, &*segment.tags)).or(event.segment);
        (event.bytes_out, event.bytes_in) = (seen.bytes_out, seen.bytes_in);
        (event.packets_out, event.packets_in) = (seen.packets_out, seen.packets_in);
        summary.add(&event);
        let id = RecordId { boot: id.0, shard: SHARD, sequence: id.1.into() };
        out.write(|line| self.encoder.encode(line, id, &Event::Flow(event)))?;
        if seen.started && self.origin == Origin::Vpc {
            let judged = Earlier {
                last,
                class: judgement.class,
                detail: judgement.detail,
                qname: judgement.qname().map(Into::into),
                rule: judgement.rule().map(Into::into),
                query: judgement.name.and_then(|name| name.query),
            };
            if self.earlier.len() >= EARLIER {
                forget(&mut self.earlier, seen.at);
            }
            self.earlier.insert(ends, judged);
        }
        Ok(())
    }
}

/// Makes room for half of the connections that are remembered.
fn forget(earlier: &mut HashMap<Ends, Earlier>, now: Wall) {
    earlier.retain(|_, earlier| now.0 <= earlier.last.0.saturating_add(SILENT));
    if earlier.len() > EARLIER / 2 {
        let mut ends: Vec<u64> = earlier.values().map(|earlier| earlier.last.0).collect();
        let (_, median, _) = ends.select_nth_unstable(earlier.len() / 2);
        let median = *median;
        earlier.retain(|_, earlier| earlier.last.0 > median);
    }
}

/// Where the records go.
struct Output {
    to: Option<BufWriter<Box<dyn Write>>>,
    name: String,
    line: Vec<u8>,
}

impl Output {
    /// Without a file, and with a summary on the standard output, they go nowhere.
    fn open(path: Option<&std::path::Path>, summary: bool) -> Result<Self, Failure> {
        let (to, name): (Option<Box<dyn Write>>, _) = match path {
            Some(path) => {
                let name = path.display().to_string();
                let file = File::create(path).map_err(|error| Failure::Failed(format!("{name}: {error}")))?;
                (Some(Box::new(file)), name)
            }
            None if summary => (None, String::new()),
            None => (Some(Box::new(io::stdout())), "standard output".to_owned()),
        };
        Ok(Self { to: to.map(|to| BufWriter::with_capacity(1 << 17, to)), name, line: Vec::new() })
    }

    fn write(&mut self, encode: impl FnOnce(&mut Vec<u8>)) -> Result<(), Failure> {
        let Some(to) = &mut self.to else { return Ok(()) };
        self.line.clear();
        encode(&mut self.line);
        to.write_all(&self.line).map_err(|error| Failure::Failed(format!("{}: {error}", self.name)))
    }

    fn close(mut self) -> Result<(), Failure> {
        let flushed = self.to.as_mut().map_or(Ok(()), BufWriter::flush);
        flushed.map_err(|error| Failure::Failed(format!("{}: {error}", self.name)))
    }
}

/// Shows how far it is, where somebody watches.
fn progress(text: &str) {
    if io::stderr().is_terminal() {
        let _ = write!(io::stderr(), "\r\x1b[K{text}");
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// When a list of connections was made, as far as that is known: its file's last change.
fn taken(modified: Option<std::time::SystemTime>) -> Wall {
    let since = modified.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok()).unwrap_or_default();
    Wall(micros(since))
}

/// The source of a file of this format.
fn source(origin: Origin, fields: Option<&str>, taken: Wall) -> Result<Source, Failure> {
    Source::new(origin, fields, taken).map_err(Failure::Argument)
}
