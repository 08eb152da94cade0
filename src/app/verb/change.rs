//! `outgate allow`, `deny`, `retract` and `client`: what is changed while a node runs.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::node::{ask, unreadable};
use crate::app::cli::{ConfigFile, Failure, print};
use crate::app::config::Config;
use crate::audit::{Outcome, Query, RecordId, read_queries};
use crate::document::parse_duration;
use crate::record::RecordType;
use crate::serve::admin::client::Method;
use crate::serve::admin::render_clients;
use crate::serve::{ChangeAction, ChangeOrder, ClientRow, ForgetOrder, PlaceOrder, RevokeOrder, encode};

/// For whom, how long and why.
#[derive(Args)]
pub(crate) struct Terms {
    /// Only for this segment; may be given several times
    #[arg(long = "segment", value_name = "SEGMENT")]
    segments: Vec<String>,
    /// Only for this client
    #[arg(long, value_name = "IP", conflicts_with = "segments")]
    client: Option<IpAddr>,
    /// What for; stands in every record of it
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Where that was agreed
    #[arg(long, value_name = "TICKET")]
    ticket: Option<String>,
    /// Print a JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// The options of `outgate allow`.
#[derive(Args)]
pub(crate) struct Allow {
    #[command(flatten)]
    config: ConfigFile,
    /// Names and patterns as in a rule, or addresses and prefixes
    #[arg(required_unless_present = "record", value_name = "NAME|ADDRESS")]
    targets: Vec<String>,
    /// What was refused in the query record with this id: its name and type, for its segment unless one is named
    #[arg(long, value_name = "ID", conflicts_with = "targets")]
    record: Option<String>,
    /// The log that the record is in; without it the one of the configuration
    #[arg(long, value_name = "FILE", requires = "record")]
    log: Option<PathBuf>,
    /// For how long: 90s, 30m, 8h, 7d
    #[arg(long = "for", value_name = "TIME", value_parser = lasting)]
    lasts: Duration,
    /// What is opened, tcp/443 without it: tcp/22, udp/5000-5010, icmp, any
    #[arg(long, value_delimiter = ',', value_name = "PORTS")]
    ports: Vec<String>,
    /// At the end cut connections too, which go on otherwise
    #[arg(long)]
    cut: bool,
    /// Record types that may be asked, A and AAAA without it
    #[arg(long, value_delimiter = ',', value_name = "TYPES")]
    types: Vec<String>,
    /// Private addresses and prefixes that its answers may hold
    #[arg(long, value_delimiter = ',', value_name = "PREFIXES")]
    private: Vec<String>,
    #[command(flatten)]
    terms: Terms,
}

/// The options of `outgate deny`.
#[derive(Args)]
pub(crate) struct Deny {
    #[command(flatten)]
    config: ConfigFile,
    /// Names and patterns as in a rule, or addresses and prefixes
    #[arg(required = true, value_name = "NAME|ADDRESS")]
    targets: Vec<String>,
    /// For how long: 90s, 30m, 8h, 7d; until it is retracted without it
    #[arg(long = "for", value_name = "TIME", value_parser = lasting)]
    lasts: Option<Duration>,
    #[command(flatten)]
    terms: Terms,
}

/// The options of `outgate retract`.
#[derive(Args)]
pub(crate) struct Retract {
    #[command(flatten)]
    config: ConfigFile,
    /// The id that `allow` or `deny` gave, and that `outgate status` lists
    #[arg(value_name = "ID")]
    id: String,
    /// Why
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// Print a JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// The options of `outgate revoke`.
#[derive(Args)]
pub(crate) struct Revoke {
    #[command(flatten)]
    config: ConfigFile,
    /// What is open for this client alone
    #[arg(long, value_name = "IP")]
    client: Option<IpAddr>,
    /// What leads to this address or prefix
    #[arg(long, value_name = "ADDRESS")]
    address: Option<String>,
    /// What was opened for this name, or through it
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// And for the names below it
    #[arg(long, requires = "name")]
    below: bool,
    /// What was opened for this segment
    #[arg(long, value_name = "SEGMENT")]
    segment: Option<String>,
    /// What was opened under this rule
    #[arg(long, value_name = "RULE")]
    rule: Option<String>,
    /// Cut the connections too
    #[arg(long)]
    cut: bool,
    /// What for; stands in every record of it
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Print a JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// The options of `outgate forget`.
#[derive(Args)]
pub(crate) struct Forget {
    #[command(flatten)]
    config: ConfigFile,
    /// Its address
    #[arg(value_name = "IP")]
    client: IpAddr,
    /// What for
    #[arg(long, value_name = "TEXT", default_value = "its address is another's")]
    reason: String,
    /// Print a JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// What to do with the clients that are placed in segments by hand.
#[derive(Subcommand)]
pub(crate) enum Client {
    /// Place a client in a segment, whatever the prefixes of segments say
    #[command(after_help = "Example:\n  outgate client set 10.20.7.31 --segment checkout --for 8h --label pod=api-7f9")]
    Set {
        #[command(flatten)]
        config: ConfigFile,
        /// Its address
        #[arg(value_name = "IP")]
        client: IpAddr,
        /// The segment
        #[arg(long)]
        segment: String,
        /// For how long: 90s, 30m, 8h, 7d; until it is taken out without it
        #[arg(long = "for", value_name = "TIME", value_parser = lasting)]
        lasts: Option<Duration>,
        /// A word of your own that its records carry; may be given several times
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
        labels: Vec<(String, String)>,
        /// Print a JSON object instead of text
        #[arg(long)]
        json: bool,
    },
    /// Take a client out again: its address counts as the prefixes of segments say
    #[command(after_help = "Example:\n  outgate client remove 10.20.7.31")]
    Remove {
        #[command(flatten)]
        config: ConfigFile,
        /// Its address
        #[arg(value_name = "IP")]
        client: IpAddr,
        /// Print a JSON object instead of text
        #[arg(long)]
        json: bool,
    },
    /// List the clients that are placed, by hand or by the watched file
    #[command(after_help = "Example:\n  outgate client list --json")]
    List {
        #[command(flatten)]
        config: ConfigFile,
        /// Print a JSON array instead of a table
        #[arg(long)]
        json: bool,
    },
}

fn lasting(text: &str) -> Result<Duration, String> {
    let lasting = parse_duration(text).filter(|lasting| lasting.as_secs() > 0);
    lasting.ok_or_else(|| "write a time from 1s on: 90s, 30m, 8h or 7d".to_owned())
}

fn label(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(key, _)| !key.is_empty());
    pair.map(|(key, value)| (key.to_owned(), value.to_owned())).ok_or_else(|| "write KEY=VALUE".to_owned())
}

/// Allows something for a time.
pub(crate) fn allow(options: Allow) -> Result<ExitCode, Failure> {
    let Allow { config, targets, record, log, lasts, ports, cut, mut types, private, terms } = options;
    let mut order = order(ChangeAction::Allow, targets, Some(lasts), &terms);
    if let Some(id) = record {
        let refused = find(&config, &id, log)?;
        order.targets = vec![refused.name];
        if terms.segments.is_empty() && terms.client.is_none() {
            order.segments = vec![refused.segment];
        }
        if types.is_empty() && !refused.kind.is_address() {
            types = vec![refused.kind.to_string()];
        }
    }
    make(&config, &ChangeOrder { ports, types, private, cut, ..order }, terms.json)
}

/// What a query record says that was refused.
struct RefusedQuery {
    name: String,
    kind: RecordType,
    segment: String,
}

/// Looks up the record of a refusal.
fn find(config: &ConfigFile, id: &str, log: Option<PathBuf>) -> Result<RefusedQuery, Failure> {
    let log = match log {
        Some(log) => log,
        None => Config::read(config).map_err(Failure::Mistakes)?.audit.file,
    };
    if id.parse::<RecordId>().is_err() {
        return Err(Failure::Argument(format!("{id:?} is not the id of a record")));
    }
    let mut found = None;
    let read = read_queries(std::slice::from_ref(&log), &mut |_| (), &mut |query| {
        if *query.id == *id {
            found = Some(refused(query));
        }
    });
    read.map_err(|error| Failure::Failed(error.to_string()))?;
    let unknown = || format!("no query record in {} has the id {id}; name another log with --log", log.display());
    found.ok_or_else(unknown).flatten().map_err(Failure::Argument)
}

fn refused(query: &Query<'_>) -> Result<RefusedQuery, String> {
    if query.verdict != Outcome::Deny {
        return Err("that query was not refused; nothing needs to be allowed for it".into());
    }
    let kind = query.qtype.as_ref().and_then(|kind| kind.parse().ok());
    match (&query.qname, kind, &query.segment) {
        (Some(name), Some(kind), Some(segment)) => {
            Ok(RefusedQuery { name: name.to_string(), kind, segment: segment.to_string() })
        }
        (_, _, None) => Err("that client is in no segment; add its address to one".into()),
        _ => Err("that record has no name that could be allowed".into()),
    }
}

/// Denies something.
pub(crate) fn deny(options: Deny) -> Result<ExitCode, Failure> {
    let Deny { config, targets, lasts, terms } = options;
    make(&config, &order(ChangeAction::Deny, targets, lasts, &terms), terms.json)
}

fn order(action: ChangeAction, targets: Vec<String>, lasts: Option<Duration>, terms: &Terms) -> ChangeOrder {
    ChangeOrder {
        action,
        targets,
        segments: terms.segments.clone(),
        client: terms.client,
        for_s: lasts.map(|lasts| lasts.as_secs()),
        ports: Vec::new(),
        types: Vec::new(),
        private: Vec::new(),
        reason: terms.reason.clone(),
        ticket: terms.ticket.clone(),
        cut: false,
    }
}

fn make(config: &ConfigFile, order: &ChangeOrder, as_json: bool) -> Result<ExitCode, Failure> {
    let done = ask(config, Method::POST, "/v1/changes", Some(&json!(order)))?;
    let what = match order.action {
        ChangeAction::Allow => "allowed",
        ChangeAction::Deny => "denied",
    };
    let until = done
        .get("until")
        .and_then(Value::as_str)
        .map_or_else(|| "until it is retracted".to_owned(), |until| format!("until {until}"));
    told(&done, &format!("{}: {what} {until}", text(&done, "id")), as_json)
}

/// Takes a change back.
pub(crate) fn retract(options: &Retract) -> Result<ExitCode, Failure> {
    let Retract { config, id, reason, json } = options;
    let path = format!("/v1/changes/{}?reason={}", encode(id), encode(reason));
    let done = ask(config, Method::DELETE, &path, None)?;
    told(&done, &format!("{id}: retracted"), *json)
}

/// Closes what is open now.
pub(crate) fn revoke(options: Revoke) -> Result<ExitCode, Failure> {
    let Revoke { config, client, address, name, below, segment, rule, cut, reason, json: as_json } = options;
    let order = RevokeOrder { client, address, name, below, segment, rule, cut, reason };
    let done = ask(&config, Method::POST, "/v1/revoke", Some(&json!(order)))?;
    told(&done, "revoked", as_json)
}

/// Closes and cuts everything of a client.
pub(crate) fn forget(options: Forget) -> Result<ExitCode, Failure> {
    let Forget { config, client, reason, json: as_json } = options;
    let done = ask(&config, Method::POST, "/v1/forget", Some(&json!(ForgetOrder { client, reason })))?;
    let by_file = done.get("placed_by_file").is_some();
    let but = if by_file { ", and the watched file still places it" } else { "" };
    told(&done, &format!("{client}: forgotten{but}"), as_json)
}

/// Places clients, takes them out, lists them.
pub(crate) fn client(verb: Client) -> Result<ExitCode, Failure> {
    match verb {
        Client::Set { config, client, segment, lasts, labels, json: as_json } => {
            let labels: BTreeMap<_, _> = labels.into_iter().collect();
            let order = PlaceOrder { client, segment, for_s: lasts.map(|lasts| lasts.as_secs()), labels };
            let done = ask(&config, Method::POST, "/v1/clients", Some(&json!(order)))?;
            told(&done, &format!("{client}: in segment {}", order.segment), as_json)
        }
        Client::Remove { config, client, json } => {
            let done = ask(&config, Method::DELETE, &format!("/v1/clients/{client}"), None)?;
            told(&done, &format!("{client}: as the prefixes of segments say"), json)
        }
        Client::List { config, json } => {
            let answer = ask(&config, Method::GET, "/v1/clients", None)?;
            let clients = answer.get("clients").cloned().unwrap_or_default();
            if json {
                print(&format!("{clients}\n"))?;
            } else {
                let rows: Vec<ClientRow> = serde_json::from_value(clients).map_err(unreadable)?;
                print(&render_clients(&rows, super::node::coloured()))?;
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Says what was done, what was closed for it, and what is wrong with it.
fn told(done: &Value, sentence: &str, as_json: bool) -> Result<ExitCode, Failure> {
    if as_json {
        print(&format!("{done}\n"))?;
    } else {
        let mut told = format!("{sentence}; {} grants closed", text(done, "revoked"));
        if let Some(cut) = done.get("cut") {
            told.push_str(&format!(", {cut} connections cut"));
        }
        if let Some(open) = done.get("still_open").and_then(Value::as_u64).filter(|open| *open > 0) {
            told.push_str(&format!(", {open} addresses and ports are open for other names or rules still"));
        }
        print(&format!("{told}\n{}", peers(done)))?;
    }
    let all = |key| {
        let values = done.get(key).and_then(Value::as_array).into_iter().flatten();
        values.filter_map(Value::as_str).collect::<Vec<_>>().join("; ")
    };
    let (unclosed, uncut) = (all("unclosed"), all("uncut"));
    let mut failed = Vec::new();
    if !unclosed.is_empty() {
        failed.push(format!("firewalls that did not take it yet, and are told again until they do: {unclosed}"));
    }
    if !uncut.is_empty() {
        failed.push(format!("connections could not be cut: {uncut}; what was open there goes on until it ends"));
    }
    if let Some(why) = done.get("unsaved").and_then(Value::as_str) {
        failed.push(format!(
            "it is in force and could not be written to the state directory: {why}; a restart forgets it, so mend that: it is then written by itself"
        ));
    }
    let told = done.get("peers").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let without = told.iter().filter(|peer| peer.get("in_force") != Some(&Value::Bool(true))).count();
    if without > 0 {
        failed.push(format!("of {} nodes {without} did not confirm it", told.len() + 1));
    }
    if failed.is_empty() { Ok(ExitCode::SUCCESS) } else { Err(Failure::Failed(failed.join("\n"))) }
}

/// A line for each node, where there are several.
fn peers(done: &Value) -> String {
    let Some(peers) = done.get("peers").and_then(Value::as_array) else { return String::new() };
    let mut lines = format!("{}: in force\n", text(done, "node"));
    for peer in peers {
        lines.push_str(&text(peer, "name"));
        if peer.get("in_force") == Some(&Value::Bool(true)) {
            lines.push_str(": in force");
            for (key, what) in [("revoked", "grants closed"), ("cut", "connections cut")] {
                if peer.get(key).and_then(Value::as_u64).is_some_and(|count| count > 0) {
                    lines.push_str(&format!(", {} {what}", text(peer, key)));
                }
            }
            for (key, what) in [
                ("unclosed", "firewalls that did not take it yet"),
                ("uncut", "connections could not be cut"),
                ("unsaved", "a restart forgets it, for it could not be written"),
            ] {
                if peer.get(key).is_some() {
                    lines.push_str(&format!("; {what}: {}", text(peer, key)));
                }
            }
            lines.push('\n');
        } else {
            lines.push_str(&format!(": {}\n", text(peer, "why")));
        }
    }
    lines
}

fn text(value: &Value, key: &str) -> String {
    value.get(key).map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned)).unwrap_or_default()
}
