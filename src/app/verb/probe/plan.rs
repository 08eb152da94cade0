//! What is to be tried: the arguments, the file, and the ways around that are tried anyway.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use super::Arguments;
use super::around::{GROUPS, Way};
use crate::app::cli::Failure;
use crate::document::{Document, Mistake, Table, read_text};
use crate::name::Name;
use crate::upstream::system_servers;

/// Checks of one round. Above it a round would take longer than anybody waits (guessed).
const MOST: usize = 1000;
/// How long one attempt may take.
pub(super) const TIMEOUTS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
const TIMEOUT: Duration = Duration::from_secs(2);
/// How often rounds may be.
pub(super) const ROUNDS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(86_400));
/// Where a name is connected to unless it says so.
const PORT: u16 = 443;

/// A name that must resolve, and a port that must connect.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Allowed {
    pub(super) name: Name,
    pub(super) port: u16,
}

impl FromStr for Allowed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) => (name, port.parse().ok().filter(|port| *port > 0)),
            None => (text, Some(PORT)),
        };
        let port = port.ok_or("write NAME:PORT, e.g. registry.example:443")?;
        Ok(Self { name: named(name)?, port })
    }
}

/// A name that must be refused.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Denied(pub(super) Name);

impl FromStr for Denied {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        named(text).map(Self)
    }
}

/// An address would be a name too, but nobody's.
fn named(text: &str) -> Result<Name, String> {
    if text.parse::<IpAddr>().is_ok() || text.parse::<SocketAddr>().is_ok() {
        return Err("write a name, not an address; what must not be reached is named by --blocked".to_owned());
    }
    Name::parse(text).map_err(|why| format!("{why}; write a domain name, e.g. registry.example"))
}

/// A resolver: an address, with its port where that is not 53.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Resolver(pub(super) SocketAddr);

impl FromStr for Resolver {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let address = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53));
        let address = address.or_else(|_| text.parse::<SocketAddr>());
        address
            .ok()
            .filter(|address| address.port() > 0)
            .map(Self)
            .ok_or("write an address, e.g. 192.0.2.1 or 192.0.2.1:5300")
    }
}

/// One thing that is tried.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Check {
    /// Its name must resolve at this resolver, and connect.
    Allowed(Allowed, SocketAddr),
    /// Its name must be refused by this resolver.
    Denied(Name, SocketAddr),
    /// It must not be reached.
    Way(Way),
}

/// One thing that is tried, and what it is tried as.
#[derive(Clone, Debug)]
pub(super) struct Step {
    /// `allowed`, `denied`, `blocked`, or the word of a group of ways around.
    pub(super) word: &'static str,
    pub(super) check: Check,
    /// What to do about a way that is open.
    pub(super) remedy: &'static str,
}

impl Step {
    /// What is tried, as the arguments write it.
    pub(super) fn target(&self) -> String {
        match &self.check {
            Check::Allowed(Allowed { name, port }, _) => format!("{name}:{port}"),
            Check::Denied(name, _) => name.to_string(),
            Check::Way(way) => way.to_string(),
        }
    }

    /// Who is asked; empty for ways.
    pub(super) fn resolver(&self) -> String {
        match &self.check {
            Check::Allowed(_, resolver) | Check::Denied(_, resolver) => resolver.to_string(),
            Check::Way(_) => String::new(),
        }
    }
}

/// All of it.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) steps: Vec<Step>,
    pub(super) timeout: Duration,
    pub(super) every: Option<Duration>,
    pub(super) metrics: Option<SocketAddr>,
}

/// What a file says.
#[derive(Debug, Default)]
struct File {
    resolvers: Vec<Resolver>,
    allowed: Vec<Allowed>,
    denied: Vec<Denied>,
    blocked: Vec<Way>,
    /// Per group: other addresses than its own.
    around: [Option<Vec<IpAddr>>; GROUPS.len()],
    timeout: Option<Duration>,
    every: Option<Duration>,
    metrics: Option<SocketAddr>,
}

impl Plan {
    /// Of the arguments, and the file that they name. Lists of both are joined; of single values the arguments count.
    pub(super) fn new(arguments: Arguments) -> Result<Self, Failure> {
        let mut file = arguments.file.as_deref().map_or_else(|| Ok(File::default()), read)?;
        file.resolvers.extend(arguments.resolver);
        file.allowed.extend(arguments.allowed);
        file.denied.extend(arguments.denied);
        file.blocked.extend(arguments.blocked);
        let asks = !file.allowed.is_empty() || !file.denied.is_empty();
        if file.resolvers.is_empty() && asks {
            file.resolvers = system_resolvers()?;
        }
        let mut steps = Vec::new();
        let mut add = |word, remedy, check| steps.push(Step { word, check, remedy });
        for Resolver(resolver) in &file.resolvers {
            for allowed in &file.allowed {
                add("allowed", "", Check::Allowed(allowed.clone(), *resolver));
            }
            for Denied(name) in &file.denied {
                add("denied", "", Check::Denied(name.clone(), *resolver));
            }
        }
        for way in &file.blocked {
            add("blocked", "no rule may open it, and the gateway must refuse what no rule opened", Check::Way(*way));
        }
        for (group, addresses) in GROUPS.iter().zip(&file.around) {
            if !arguments.without.iter().any(|word| word == group.word || word == "all") {
                for way in group.ways(addresses.as_deref()) {
                    add(group.word, group.remedy, Check::Way(way));
                }
            }
        }
        // The same said twice is tried once.
        let mut seen = HashSet::new();
        steps.retain(|step| seen.insert((step.word, step.check.clone())));
        let plan = Self {
            steps,
            timeout: arguments.timeout.or(file.timeout).unwrap_or(TIMEOUT),
            every: arguments.every.or(file.every),
            metrics: arguments.metrics.or(file.metrics),
        };
        let wrong = match (plan.steps.len(), plan.every, plan.metrics) {
            (0, ..) => "there is nothing to try; name --allowed, --denied or --blocked".to_owned(),
            (count, ..) if count > MOST => format!("{count} checks are more than {MOST}; leave out names or resolvers"),
            (_, None, Some(_)) => "--metrics shows what goes on; say with --every how often it is tried".to_owned(),
            _ => return Ok(plan),
        };
        Err(Failure::Argument(wrong))
    }
}

fn system_resolvers() -> Result<Vec<Resolver>, Failure> {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let servers = system_servers(&text, &[]).map_err(|_| {
        Failure::Argument("/etc/resolv.conf names no resolver; name the one of the clients with --resolver".to_owned())
    })?;
    Ok(servers.into_iter().map(Resolver).collect())
}

fn read(path: &Path) -> Result<File, Failure> {
    let shown = path.display().to_string();
    let text = read_text(path).map_err(|error| {
        let fact = format!("{shown} cannot be read: {error}");
        Failure::Mistakes(vec![Mistake::general(fact, "name the file with --file, or make it readable for this user")])
    })?;
    parse(&shown, text).map_err(Failure::Mistakes)
}

fn parse(shown: &str, text: String) -> Result<File, Vec<Mistake>> {
    let (document, table) = Document::parse(shown, text);
    let mut file = File {
        timeout: table.duration("timeout", TIMEOUTS.0..=TIMEOUTS.1),
        every: table.duration("every", ROUNDS.0..=ROUNDS.1),
        metrics: table
            .parsed("metrics", "write an address with its port, e.g. \"127.0.0.1:9154\"")
            .map(|found| found.value),
        ..File::default()
    };
    file.resolvers = list(&table, "resolvers");
    file.allowed = list(&table, "allowed");
    file.denied = list(&table, "denied");
    file.blocked = list(&table, "blocked");
    if let Some(around) = table.table("around") {
        for (group, slot) in GROUPS.iter().zip(&mut file.around) {
            let addresses = around.parsed_list(group.word, "write an address, e.g. \"203.0.113.53\"");
            *slot = addresses.map(|found| found.into_iter().map(|found| found.value).collect());
        }
        around.finish(&[]);
    }
    table.finish(&[]);
    let mistakes = document.take_mistakes();
    if mistakes.is_empty() { Ok(file) } else { Err(mistakes) }
}

/// The items of a list, what is none of them noted with what to write instead.
fn list<T: FromStr<Err: ToString>>(table: &Table, key: &'static str) -> Vec<T> {
    let mut values = Vec::new();
    for found in table.each(key).into_iter().flatten() {
        match found.value.parse::<T>() {
            Ok(value) => values.push(value),
            Err(why) => {
                table.document().note(&found.span, format!("`{key}` cannot hold \"{}\"", found.value), why.to_string());
            }
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_the_manual_is_read_whole() {
        let page = include_str!("../../../../docs/probe.md");
        let block = page.split("# /etc/outgate/probe.toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        let file = parse("probe.toml", block.to_owned()).unwrap();
        assert_eq!((file.resolvers.len(), file.allowed.len(), file.denied.len(), file.blocked.len()), (2, 2, 1, 2));
        let others: Vec<_> = file.around.iter().map(|addresses| addresses.as_ref().map(Vec::len)).collect();
        assert_eq!(others, [None, None, None, Some(1)]);
        assert!(file.timeout.is_some() && file.every.is_some() && file.metrics.is_some());
    }
}
