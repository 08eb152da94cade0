//! `outgate explain`: the decision of the hot path, said aloud. It prints from the same [`Verdict`] that a query
//! would get; it asks no upstream.

use std::net::IpAddr;
use std::process::ExitCode;

use serde_json::{Value, json};

use crate::app::cli::{ConfigFile, Failure, print};
use crate::app::config::Config;
use crate::app::start;
use crate::document::write_duration;
use crate::name::Name;
use crate::net::Services;
use crate::policy::{Action, GrantScope, Https, Permit, Policy, Reason, RuleIndex, Shown, Verdict, decide, inspect};
use crate::record::{ExtendedError, Question, RecordType};
use crate::time::Clock;

/// Explains one question of one client.
pub(crate) fn run(
    file: &ConfigFile,
    (client, certificate): (IpAddr, Option<String>),
    name: &str,
    kind: &str,
    as_json: bool,
) -> Result<ExitCode, Failure> {
    let name = Name::parse(name).map_err(|why| Failure::Argument(format!("\"{name}\" is not a domain name: {why}")))?;
    let kind: RecordType = kind
        .parse()
        .map_err(|()| Failure::Argument(format!("\"{kind}\" is not a record type; write A, AAAA, TXT or TYPE731")))?;
    let config = Config::read(file).map_err(Failure::Mistakes)?;
    let (loaded, upstreams) = start::check(&config).map_err(Failure::Mistakes)?;
    let policy = &loaded.policy;
    let now = Clock::system().now();
    let names = certificate.map(String::into_boxed_str);
    let Some(asker) = policy.certified(client, names.as_slice()) else {
        let forwarder = policy.forwarder_at(client);
        let ede = policy.describe_no_segment(forwarder.is_some());
        let why = match forwarder {
            Some(_) => {
                "it names its clients, who are explained by their own addresses; what it asks for nobody is refused, for \
                 it has no `segment`"
            }
            None => "no segment's `clients` holds this address; add it to one, or a [[forwarder]]",
        };
        let report = json!({
            "client": client.to_string(), "qname": name.to_string(), "qtype": kind.to_string(), "segment": null,
            "asked_by": forwarder.map(|name| &**name),
            "verdict": "deny", "reason": "no_segment", "shown": "REFUSED", "ede": { "code": ede.code, "text": &*ede.text },
            "why": why,
        });
        return show(&report, as_json);
    };
    let segment = policy.segment(asker);
    let rules: Vec<Value> =
        policy.matching(asker, name.as_wire()).into_iter().map(|rule| rule_report(policy, rule)).collect();
    let mut report = Report(json!({
        "client": client.to_string(), "qname": name.to_string(), "qtype": kind.to_string(),
        "segment": &*segment.name, "asked_by": policy.forwarder(asker).map(|name| &**name),
        "certificate": policy.certificate(asker).map(|name| &**name),
        "mode": if segment.observes(now.wall) { "observe" } else { "enforce" },
        "filter_aaaa": segment.filter_aaaa,
        "rules": rules,
    }));
    match decide(policy, asker, name.as_wire(), kind, now.wall) {
        Verdict::Refuse(refusal) => {
            let ede = policy.describe(&refusal);
            report.set("verdict", "deny".into());
            report.set("reason", refusal.reason.as_str().into());
            report.set("rule", refusal.rule.map(|rule| policy.rule_id(rule).to_string()).into());
            report.set("shown", shown(refusal.shown).into());
            report.set("ede", json!({ "code": ede.code, "text": &*ede.text }));
            if refusal.reason == Reason::Special {
                report.set("why", (*ede.text).into());
            } else if kind == RecordType::PTR && refusal.rule.is_none() {
                report.set(
                    "why",
                    "a running node tells the names under which the address is open for this client".into(),
                );
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
            explain_permit(&mut report, &config, permit, &loaded.zones, &upstreams);
        }
    }
    show(&report.0, as_json)
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

fn explain_permit(
    report: &mut Report,
    config: &Config,
    permit: Permit,
    zones: &crate::zones::Zones,
    upstreams: &crate::upstream::Upstreams,
) {
    let policy = std::sync::Arc::clone(permit.policy());
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
    let terms = config.terms;
    report.set(
        "open_for",
        format!(
            "the answer's TTL ({} to {}) and {} grace, {} at least",
            write_duration(terms.ttl_min),
            write_duration(terms.ttl_max),
            write_duration(terms.grace),
            write_duration(terms.hold)
        )
        .into(),
    );
    let question: Question = permit.question().clone();
    match zones.answer(&question) {
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
            let upstream = upstreams.route(&segment.name, question.name.as_wire());
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

fn rule_report(policy: &Policy, index: RuleIndex) -> Value {
    let rule = policy.rule(index);
    let ports: Vec<String> = rule.ports.iter().map(ToString::to_string).collect();
    let types: Vec<String> = rule.types.iter().map(ToString::to_string).collect();
    json!({
        "id": &*rule.id, "place": rule.place.to_string(),
        "action": match rule.action { Action::Allow => "allow", Action::Deny => "deny" },
        "ports": ports, "types": types,
        "https": (rule.https != Https::NoData).then(|| rule.https.as_str()),
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

fn show(report: &Value, as_json: bool) -> Result<ExitCode, Failure> {
    if as_json {
        print(&format!("{report}\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let text = |key: &str| report.get(key).and_then(Value::as_str);
    let list = |value: &Value, key: &str| {
        let items = value.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" ")
    };
    let mut out = format!(
        "{} {} asked by {}",
        text("qname").unwrap_or("-"),
        text("qtype").unwrap_or("-"),
        text("client").unwrap_or("-")
    );
    if let Some(forwarder) = text("asked_by") {
        out.push_str(&format!(" through forwarder {forwarder}"));
    }
    if let Some(name) = text("certificate") {
        out.push_str(&format!(" with the certificate of {name}"));
    }
    match text("segment") {
        Some(segment) => {
            let filters = report.get("filter_aaaa").and_then(Value::as_bool) == Some(true);
            let filters = if filters { ", filters AAAA" } else { "" };
            out.push_str(&format!(", segment {segment} ({}{filters})\n", text("mode").unwrap_or("-")));
        }
        None => out.push_str(", in no segment\n"),
    }
    let rules = report.get("rules").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if rules.is_empty() && text("segment").is_some() {
        out.push_str("  no rule matches the name\n");
    }
    for rule in rules {
        let field = |key: &str| rule.get(key).and_then(Value::as_str).unwrap_or("-");
        out.push_str(&format!("  {} {}  {}", field("action"), field("id"), field("place")));
        if field("action") == "allow" {
            out.push_str(&format!("  types {}  ports {}", list(rule, "types"), list(rule, "ports")));
        }
        for (key, word) in [("https", "https"), ("owner", "owner"), ("ticket", "ticket"), ("why", "for")] {
            if let Some(value) = rule.get(key).and_then(Value::as_str) {
                out.push_str(&format!("  {word} {value}"));
            }
        }
        out.push('\n');
    }
    out.push_str(&format!("verdict   {} (reason {})", text("verdict").unwrap_or("-"), text("reason").unwrap_or("-")));
    if let Some(rule) = text("rule") {
        out.push_str(&format!(", the record names {rule}"));
    }
    if report.get("enforced").and_then(Value::as_bool) == Some(false) {
        out.push_str(", not enforced: the segment only observes");
    }
    out.push('\n');
    for (key, label) in [("why", "why"), ("answered_by", "answered"), ("scope", "scope"), ("open_for", "open for")] {
        if let Some(value) = text(key) {
            out.push_str(&format!("{label:<9} {value}\n"));
        }
    }
    if let Some(opened) = report.get("opened").and_then(Value::as_array) {
        let opened = if opened.is_empty() { "nothing".to_owned() } else { list(report, "opened") };
        out.push_str(&format!("opened    {opened}\n"));
    }
    out.push_str(&format!("client    sees {}", text("shown").unwrap_or("-")));
    if let Some(ede) = report.get("ede") {
        let code = ede.get("code").and_then(Value::as_u64).unwrap_or(0);
        out.push_str(&format!(" and EDE {code}: {}", ede.get("text").and_then(Value::as_str).unwrap_or("")));
    }
    out.push('\n');
    print(&out)?;
    Ok(ExitCode::SUCCESS)
}
