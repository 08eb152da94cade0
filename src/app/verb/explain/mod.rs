//! `outgate explain`: the decision of the hot path, said aloud. It prints from the same [`Verdict`] that a query
//! would get; it asks no upstream. With a log it says which look-up opened a flow, and what became of a record's question.

mod flow;
mod print;
mod record;

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use serde_json::{Value, json};

use crate::app::cli::{ConfigFile, Failure, print as out};
use crate::app::config::Config;
use crate::app::load::Loaded;
use crate::app::start;
use crate::document::{parse_moment, write_duration};
use crate::name::Name;
use crate::net::{Service, Services};
use crate::policy::{
    Action, Asker, GrantScope, Https, Permit, Policy, Reason, RuleIndex, Shown, Verdict, Voice, decide, inspect,
};
use crate::record::{ExtendedError, Question, RecordType};
use crate::time::{Clock, Wall};
use crate::upstream::Upstreams;

pub(crate) const AFTER_HELP: &str = "Reads the files, not a running node, and asks no upstream.\n\n\
    Examples:\n  outgate explain --client 192.0.2.31 www.example.org AAAA\n  \
    outgate explain --client 192.0.2.31 --at 2027-01-01T00:00:00Z www.example.org\n  \
    outgate explain --client 192.0.2.31 --address 203.0.113.7 --port tcp/443 --log /var/log/outgate/query.jsonl\n  \
    outgate explain --record 7f3a91c20b1d44e0-3-1829331 --log /var/log/outgate/query.jsonl";

/// What to explain: a question, a flow, or a record.
#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    config: ConfigFile,
    /// Address of the client that would ask
    #[arg(long, value_name = "IP", required_unless_present = "record")]
    client: Option<IpAddr>,
    /// A name in the certificate that it would show
    #[arg(long, value_name = "NAME")]
    certificate: Option<String>,
    /// Name that would be asked for
    #[arg(required_unless_present_any = ["address", "record"])]
    name: Option<String>,
    /// Record type: A, AAAA, TXT, TYPE731
    #[arg(default_value = "A", value_name = "TYPE")]
    kind: String,
    /// When, as 2027-01-01T00:00:00Z; without it now
    #[arg(long, value_name = "TIME", value_parser = moment)]
    at: Option<Wall>,
    /// Address that the client connected to: which look-up opened it, by the log
    #[arg(long, value_name = "IP", requires = "log", conflicts_with_all = ["name", "record"])]
    address: Option<IpAddr>,
    /// Service that it connected to: tcp/443, udp/53, icmp; without it any
    #[arg(long, value_name = "SERVICE", requires = "address", value_parser = service)]
    port: Option<Service>,
    /// Id of a query's record: what became of it, and what would now
    #[arg(long, value_name = "ID", requires = "log", conflicts_with_all = ["client", "certificate", "name"])]
    record: Option<String>,
    /// The query log: its current file, read with its archives, or a directory of log files
    #[arg(long, value_name = "FILE")]
    log: Vec<PathBuf>,
    /// Print a JSON object instead of text
    #[arg(long)]
    json: bool,
}

fn moment(text: &str) -> Result<Wall, &'static str> {
    parse_moment(text).ok_or("write a date and time with an offset, e.g. 2027-01-01T00:00:00Z")
}

fn service(text: &str) -> Result<Service, &'static str> {
    let services = text.parse::<Services>()?;
    let mut each = services.expand();
    each.next().filter(|_| services.count() == 1).ok_or("write one service, e.g. \"tcp/443\"")
}

/// What is read before anything can be explained.
struct Site {
    config: Config,
    loaded: Loaded,
    upstreams: Upstreams,
    now: Wall,
}

/// A question, and whose.
struct Asked {
    client: IpAddr,
    certificate: Option<String>,
    name: Name,
    kind: RecordType,
}

/// Explains what the arguments name.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let config = Config::read(&arguments.config).map_err(Failure::Mistakes)?;
    let (loaded, upstreams) = start::check(&config).map_err(Failure::Mistakes)?;
    let now = arguments.at.unwrap_or_else(|| Clock::system().now().wall);
    let site = Site { config, loaded, upstreams, now };
    let Arguments { client, certificate, name, kind, address, port, record, log, json, .. } = arguments;
    let (report, text) = if let Some(id) = record {
        record::explain(&site, id, log)?
    } else if let (Some(client), Some(address)) = (client, address) {
        let flow = flow::Flow { client: *client, certificate: certificate.clone(), address: *address, service: *port };
        flow::explain(&site, &flow, log)?
    } else if let (Some(client), Some(name)) = (client, name) {
        let asked = asked(*client, certificate.clone(), name, kind).map_err(Failure::Argument)?;
        let report = question(&site, &asked);
        let text = print::question(&report);
        (report, text)
    } else {
        return Err(Failure::Argument("name a client and what it asks for".to_owned()));
    };
    out(&if *json { format!("{report}\n") } else { text })?;
    Ok(ExitCode::SUCCESS)
}

fn asked(client: IpAddr, certificate: Option<String>, name: &str, kind: &str) -> Result<Asked, String> {
    let name = Name::parse(name).map_err(|why| format!("\"{name}\" is not a domain name: {why}"))?;
    let unknown = |()| format!("\"{kind}\" is not a record type; write A, AAAA, TXT or TYPE731");
    Ok(Asked { client, certificate, name, kind: kind.parse().map_err(unknown)? })
}

/// What would become of a question.
fn question(site: &Site, asked: &Asked) -> Value {
    let Asked { client, certificate, name, kind } = asked;
    let policy = &site.loaded.policy;
    let now = site.now;
    let names = certificate.clone().map(String::into_boxed_str);
    let Some(asker) = policy.certified(*client, names.as_slice()) else {
        return no_segment(policy, asked);
    };
    let segment = policy.segment(asker);
    let verdict = decide(policy, asker, name.as_wire(), *kind, now);
    let counted = match &verdict {
        Verdict::Permit(permit) => permit.rules(),
        _ => &[],
    };
    let matching = policy.matching(asker, name.as_wire());
    let rules: Vec<Value> =
        matching.iter().map(|rule| rule_report(policy, *rule, policy.voice(*rule, asker, now), counted, now)).collect();
    let mut report = Report(json!({
        "client": client.to_string(), "qname": name.to_string(), "qtype": kind.to_string(),
        "at": now.to_string(), "segment": &*segment.name, "asked_by": policy.forwarder(asker).map(|name| &**name),
        "certificate": policy.certificate(asker).map(|name| &**name),
        "mode": if segment.observes(now) { "observe" } else { "enforce" },
        "filter_aaaa": segment.filter_aaaa,
        "rules": rules,
    }));
    match verdict {
        Verdict::Refuse(refusal) => {
            let ede = policy.describe(&refusal);
            report.set("verdict", "deny".into());
            report.set("reason", refusal.reason.as_str().into());
            report.set("rule", refusal.rule.map(|rule| policy.rule_id(rule).to_string()).into());
            report.set("shown", shown(refusal.shown).into());
            report.set("ede", json!({ "code": ede.code, "text": &*ede.text }));
            if refusal.reason == Reason::Special {
                report.set("why", (*ede.text).into());
            } else if *kind == RecordType::PTR && refusal.rule.is_none() {
                report.set(
                    "why",
                    "a running node tells the names under which the address is open for this client".into(),
                );
            }
            if refusal.reason == Reason::Default {
                explain_default(&mut report, policy, asker, asked, now);
            }
        }
        Verdict::Answer(own) => {
            report.set("verdict", "allow".into());
            report.set("reason", own.reason().as_str().into());
            report.set("why", own.why().into());
            report.set("answered_by", "this node".into());
            report.set("opened", json!([]));
            let told: Vec<String> = own.records().iter().map(told).collect();
            let shown = match told.as_slice() {
                [] => shown(Shown::NoData).to_owned(),
                told => format!("NOERROR {}", told.join("; ")),
            };
            report.set("shown", shown.into());
        }
        Verdict::Permit(permit) => {
            let by_default = permit.observed().is_some_and(|(_, reason)| reason == Reason::Default);
            explain_permit(&mut report, site, permit);
            if by_default {
                explain_default(&mut report, policy, asker, asked, now);
            }
        }
    }
    report.0
}

fn no_segment(policy: &Policy, asked: &Asked) -> Value {
    let forwarder = policy.forwarder_at(asked.client);
    let ede = policy.describe_no_segment(forwarder.is_some());
    let near: Vec<String> =
        policy.near(asked.client).iter().map(|(prefix, segment)| format!("{prefix} ({})", segment.name)).collect();
    let why = match forwarder {
        Some(_) => {
            "it names its clients, who are explained by their own addresses; what it asks for nobody is refused, for \
             it has no `segment`"
        }
        None => "no segment's `clients` holds this address; add it to one, or a [[forwarder]]",
    };
    json!({
        "client": asked.client.to_string(), "qname": asked.name.to_string(), "qtype": asked.kind.to_string(),
        "segment": null, "asked_by": forwarder.map(|name| &**name),
        "verdict": "deny", "reason": "no_segment", "shown": "REFUSED", "ede": { "code": ede.code, "text": &*ede.text },
        "why": why, "near": near,
    })
}

/// Why no rule allows a name: one that would has ended or is for other clients, or other segments have one.
fn explain_default(report: &mut Report, policy: &Policy, asker: Asker, asked: &Asked, now: Wall) {
    let wire = asked.name.as_wire();
    let allows = |index: &RuleIndex| policy.rule(*index).action == Action::Allow;
    let silent = policy.matching(asker, wire).into_iter().filter(allows).map(|index| {
        let rule = policy.rule(index);
        match policy.voice(index, asker, now) {
            Voice::Ended(end) => format!("rule {}, which allowed it, ended {}", rule.id, end.seen_from(now)),
            Voice::Heard | Voice::OtherClients => format!("rule {} allows it to other clients of the segment", rule.id),
        }
    });
    let why: Vec<String> = silent.collect();
    if !why.is_empty() {
        report.set("why", why.join("; ").into());
    }
    let elsewhere = policy.elsewhere(asker, wire, now).into_iter().map(|index| {
        let rule = policy.rule(index);
        let segments: Vec<&str> = policy.segments_of(index).map(|segment| &*segment.name).collect();
        json!({ "id": &*rule.id, "place": rule.place.to_string(), "segments": segments })
    });
    report.set("elsewhere", elsewhere.collect::<Vec<_>>().into());
}

/// A JSON object that is filled as the decision goes on.
struct Report(Value);

impl Report {
    fn set(&mut self, key: &str, value: Value) {
        if let Value::Object(fields) = &mut self.0 {
            fields.insert(key.to_owned(), value);
        }
    }
}

fn explain_permit(report: &mut Report, site: &Site, permit: Permit) {
    let policy = Arc::clone(permit.policy());
    let segment = permit.segment();
    let scope = match segment.scope {
        GrantScope::Client => "client",
        GrantScope::Segment => "segment",
    };
    let observed = permit.observed();
    report.set("verdict", if observed.is_some() { "deny" } else { "allow" }.into());
    report.set("reason", observed.map_or("rule", |(_, reason)| reason.as_str()).into());
    report.set("enforced", observed.is_none().into());
    let rule = observed.map_or(permit.rule(), |(rule, _)| rule);
    report.set("rule", rule.map(|rule| policy.rule_id(rule).to_string()).into());
    report.set("scope", scope.into());
    report.set("open_for", open_for(site, &permit).into());
    let question: Question = permit.question().clone();
    match site.loaded.zones.answer(&question) {
        Some(answer) => {
            report.set("answered_by", format!("local zone {}", answer.origin.name).into());
            let cleared = inspect(permit, answer);
            let mut opened: Vec<String> = Vec::new();
            for group in cleared.openings().chunk_by(|a, b| a.element.to == b.element.to) {
                let services: Vec<_> = group.iter().map(|opening| opening.element.service).collect();
                let services: Vec<String> = Services::merge(&services).iter().map(ToString::to_string).collect();
                opened.extend(group.first().map(|opening| format!("{} {}", opening.element.to, services.join(" "))));
            }
            report.set("opened", opened.into());
            let told: Vec<String> = cleared.answer().records.iter().map(told).collect();
            report.set("shown", format!("{} {}", cleared.answer().rcode, told.join("; ")).trim().into());
            if let Some(why) = cleared.left_out() {
                report.set("why", why.into());
            }
            if let Some(withheld) = cleared.withheld() {
                let rule = withheld.rule.or(cleared.permit().rule());
                report.set("reason", withheld.reason.as_str().into());
                report.set("verdict", "deny".into());
                report.set("enforced", withheld.enforced.into());
                report.set("rule", rule.map(|rule| policy.rule_id(rule).to_string()).into());
                report.set("why", withheld.why.to_string().into());
                if withheld.enforced {
                    let text = withheld.why.to_string();
                    report.set("ede", json!({ "code": ExtendedError::FILTERED, "text": text }));
                }
            }
        }
        None => {
            let upstream = site.upstreams.route(&segment.name, question.name.as_wire());
            report.set(
                "answered_by",
                upstream
                    .map_or_else(|| "no upstream: SERVFAIL".into(), |upstream| format!("upstream {}", upstream.name()))
                    .into(),
            );
            let opened = match observed {
                None if question.kind.is_service() => "the addresses that the answer hints at, by the ports above",
                None if !question.kind.is_address() => "nothing: the answer holds no addresses",
                None => "the addresses of the answer, by the ports above, after inspection",
                Some(_) => "nothing: what only passes because the segment observes is not opened",
            };
            report.set("opened", json!([opened]));
            report.set("shown", "the inspected answer".into());
        }
    }
}

fn told(record: &crate::record::Record) -> String {
    let mut text = format!("{} {} ", record.name, record.kind);
    // Writing to a String cannot fail.
    let _ = crate::record::write_data(record, &mut text);
    text
}

/// How long addresses stay open: the arithmetic of [`crate::grant::Terms::lease`] in words.
fn open_for(site: &Site, permit: &Permit) -> String {
    let policy = permit.policy();
    let terms = site.config.terms;
    let hold = permit.rules().iter().filter_map(|rule| Some((policy.rule(*rule).hold?, policy.rule_id(*rule)))).max();
    let (least, by) = match hold.filter(|(hold, _)| *hold > terms.hold) {
        Some((hold, id)) => (hold, format!(" by the hold of {id}")),
        None => (terms.hold, String::new()),
    };
    let mut text = format!(
        "the answer's TTL ({} to {}) and {} grace, {} at least{by}",
        write_duration(terms.ttl_min),
        write_duration(terms.ttl_max),
        write_duration(terms.grace),
        write_duration(least)
    );
    // Of what several rules open the last end counts.
    let ends: Option<Vec<Wall>> = permit.rules().iter().map(|rule| policy.rule(*rule).expires).collect();
    if let Some(end) = ends.and_then(|ends| ends.into_iter().max()) {
        text.push_str(&format!(", and not beyond {end}, {}", end.seen_from(site.now)));
    }
    text
}

fn rule_report(policy: &Policy, index: RuleIndex, voice: Voice, counted: &[RuleIndex], now: Wall) -> Value {
    let rule = policy.rule(index);
    let written = |prefixes: &[crate::net::Prefix]| prefixes.iter().map(ToString::to_string).collect::<Vec<_>>();
    let ports: Vec<String> = rule.ports.iter().map(ToString::to_string).collect();
    let types: Vec<String> = rule.types.iter().map(ToString::to_string).collect();
    let silent = match voice {
        Voice::Heard if rule.action == Action::Deny || counted.contains(&index) => None,
        Voice::Heard => Some("does not count here".to_owned()),
        Voice::Ended(end) => Some(format!("ended {}", end.seen_from(now))),
        Voice::OtherClients => Some("is for other clients".to_owned()),
    };
    json!({
        "id": &*rule.id, "place": rule.place.to_string(),
        "action": match rule.action { Action::Allow => "allow", Action::Deny => "deny" },
        "ports": ports, "types": types,
        "https": (rule.https != Https::NoData).then(|| rule.https.as_str()),
        "within": written(&rule.within), "private": written(&rule.private), "clients": written(&rule.clients),
        "hold": rule.hold.map(write_duration), "expires": rule.expires.map(|end| end.to_string()),
        "silent": silent,
        "owner": rule.owner, "why": rule.reason, "ticket": rule.ticket,
    })
}

const fn shown(shown: Shown) -> &'static str {
    match shown {
        Shown::NxDomain => "NXDOMAIN",
        Shown::NoData => "NOERROR without records",
        Shown::Refused => "REFUSED",
    }
}
