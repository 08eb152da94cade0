//! A flow: which look-up opened it, which rule would have, or that none ever did.
//!
//! The log is read once. Of the address only the last of what opened it and of what closed it is kept, and of the names
//! that led there a few.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::Site;
use crate::app::cli::Failure;
use crate::audit::{Grant, Outcome, Query, Recorded, read_records};
use crate::name::Name;
use crate::net::Service;
use crate::policy::{Action, Asker, decide};
use crate::record::RecordType;
use crate::time::Wall;

/// Names that led to the address; more are not kept.
const NAMES: usize = 64;

/// From whom, to where, by what; `None`: by anything.
pub(super) struct Flow {
    pub(super) client: IpAddr,
    pub(super) certificate: Option<String>,
    pub(super) address: IpAddr,
    pub(super) service: Option<Service>,
}

/// What opened the address for the client, or closed it.
#[derive(Clone)]
struct Step {
    at: Wall,
    op: String,
    qname: String,
    rule: String,
    query: Option<String>,
    until: Wall,
    why: Option<String>,
}

/// What the log says of one flow.
struct Trace<'a> {
    flow: &'a Flow,
    address: String,
    segment: Option<String>,
    at: Wall,
    /// The last change before the flow, for the client alone and for its segment.
    grants: [Option<Step>; 2],
    /// The last look-up of the client before the flow that was told the address while it was open.
    told: Option<Step>,
    /// The first opening after the flow.
    later: Option<Step>,
    /// How often who was told that a name leads there.
    names: BTreeMap<String, u64>,
}

impl Trace<'_> {
    fn take(&mut self, record: Recorded<'_>) {
        match record {
            Recorded::Grant(grant) if grant.address == self.flow.address => self.grant(grant),
            Recorded::Query(query) if query.may_tell(&self.address) => self.query(query),
            _ => {}
        }
    }

    fn grant(&mut self, grant: &Grant<'_>) {
        let for_segment = &*grant.scope == "segment";
        let own = if for_segment {
            self.segment.as_deref() == Some(&*grant.segment)
        } else {
            grant.client == Some(self.flow.client)
        };
        if !own || self.flow.service.is_some_and(|service| !grant.changes(service)) || &*grant.op == "fail" {
            return;
        }
        let step = Step {
            at: grant.at(),
            op: grant.op.to_string(),
            qname: grant.qname.to_string(),
            rule: grant.rule.to_string(),
            query: grant.query.as_deref().map(ToOwned::to_owned),
            until: if &*grant.op == "revoke" { grant.at() } else { grant.until() },
            why: grant.why.as_deref().map(ToOwned::to_owned),
        };
        if step.at <= self.at {
            let [client, segment] = &mut self.grants;
            newer(if for_segment { segment } else { client }, step);
        } else if step.op == "open" && self.later.as_ref().is_none_or(|later| step.at < later.at) {
            self.later = Some(step);
        }
    }

    fn query(&mut self, query: &Query<'_>) {
        if !query.answers().iter().any(|told| told.address() == Some(self.flow.address)) {
            return;
        }
        let Some(qname) = query.qname.as_deref() else { return };
        if self.names.contains_key(qname) || self.names.len() < NAMES {
            *self.names.entry(qname.to_owned()).or_default() += 1;
        }
        let Some((ports, until)) = query.grant() else { return };
        let open = self.flow.service.is_none_or(|service| ports.iter().any(|ports| ports.contains(service)));
        if query.client == self.flow.client && query.verdict == Outcome::Allow && open && query.at() <= self.at {
            let step = Step {
                at: query.at(),
                op: "told".to_owned(),
                qname: qname.to_owned(),
                rule: query.rule.as_deref().unwrap_or_default().to_owned(),
                query: Some(query.id.to_string()),
                until,
                why: None,
            };
            newer(&mut self.told, step);
        }
    }

    /// What the flow could go by: the latest of what was open then.
    fn open(&self) -> Option<&Step> {
        let grants = self.grants.iter().flatten();
        // What was told under a grant that was closed since is closed.
        let closed = grants.clone().filter(|step| step.op == "revoke").map(|step| step.at).max();
        let told = self.told.iter().filter(|step| closed.is_none_or(|closed| closed < step.at));
        let open = told.chain(grants).filter(|step| step.until > self.at);
        open.max_by_key(|step| (step.op == "told", step.at))
    }

    /// What closed it, or was open before.
    fn before(&self) -> Option<&Step> {
        self.grants.iter().flatten().chain(&self.told).max_by_key(|step| step.at)
    }
}

fn newer(known: &mut Option<Step>, step: Step) {
    if known.as_ref().is_none_or(|known| known.at <= step.at) {
        *known = Some(step);
    }
}

/// Reads the log and says what opened the flow.
pub(super) fn explain(site: &Site, flow: &Flow, log: &[PathBuf]) -> Result<(Value, String), Failure> {
    let policy = &site.loaded.policy;
    let names = flow.certificate.clone().map(String::into_boxed_str);
    let asker = policy.certified(flow.client, names.as_slice());
    let segment = asker.map(|asker| policy.segment(asker));
    let mut trace = Trace {
        flow,
        address: flow.address.to_string(),
        segment: segment.map(|segment| segment.name.to_string()),
        at: site.now,
        grants: [None, None],
        told: None,
        later: None,
        names: BTreeMap::new(),
    };
    let read = read_records(log, &mut |_| (), &mut |record| trace.take(record));
    let read = read.map_err(|error| Failure::Failed(error.to_string()))?;

    let mut report = json!({
        "client": flow.client.to_string(), "address": trace.address, "at": site.now.to_string(),
        "port": flow.service.map(|service| service.to_string()), "segment": trace.segment,
        "open": trace.open().is_some(), "opened_by": trace.open().map(object),
    });
    let mut text = format!("{} to {}", flow.client, flow.address);
    if let Some(service) = flow.service {
        let _ = write!(text, " {service}");
    }
    let _ = write!(text, " at {}", site.now);
    match segment {
        Some(segment) => _ = writeln!(text, ", segment {}", segment.name),
        None => text.push_str(", a client of no segment\n"),
    }
    let mut set = |key: &str, value: Value| {
        if let Value::Object(fields) = &mut report {
            fields.insert(key.to_owned(), value);
        }
    };
    if let Some(step) = trace.open() {
        let _ = writeln!(text, "open      by {}, until {}", written(step), step.until);
    } else {
        match trace.before() {
            Some(step) if step.op == "revoke" => {
                let why = step.why.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
                let _ = writeln!(text, "closed    since {}, {}{why}", step.until, step.until.seen_from(site.now));
            }
            Some(step) => {
                let _ = writeln!(text, "ended     {}, {}", step.until, step.until.seen_from(site.now));
                let _ = writeln!(text, "before    open by {}", written(step));
            }
            None => text.push_str("closed    no look-up in this log opened it\n"),
        }
        set("before", trace.before().map(object).into());
        if let Some(later) = &trace.later {
            let _ = writeln!(text, "later     opened by {}", written(later));
        }
        set("later", trace.later.as_ref().map(object).into());
    }
    if let Some(asker) = asker {
        let (others, lines) = others(site, asker, &trace);
        text.push_str(&lines);
        set("otherwise", others);
    }
    let _ = writeln!(text, "read      {read}");
    set(
        "read",
        json!({ "files": read.files, "queries": read.queries, "damaged": read.damaged, "faults": read.faults }),
    );
    Ok((report, text))
}

/// What else opens the address, or would: rules for networks, a segment that observes, the names that led there.
fn others(site: &Site, asker: Asker, trace: &Trace<'_>) -> (Value, String) {
    let (policy, now) = (&site.loaded.policy, site.now);
    let segment = policy.segment(asker);
    let mut text = String::new();
    let of_networks = policy.static_rule(asker, trace.flow.address, now).map(|index| policy.rule(index));
    let of_networks = of_networks.filter(|rule| {
        let service = trace.flow.service;
        rule.action == Action::Deny
            || service.is_none_or(|service| rule.ports.iter().any(|ports| ports.contains(service)))
    });
    if let Some(rule) = of_networks {
        let does = if rule.action == Action::Deny { "closes it to all" } else { "opens it without any look-up" };
        let _ = writeln!(text, "network   rule {} {does}  {}", rule.id, rule.place);
    }
    if let Some(until) = segment.observe_until.filter(|until| now < *until) {
        let _ = writeln!(text, "observes  the segment lets its flows pass until {until}");
    }
    let kind = if trace.flow.address.is_ipv4() { RecordType::A } else { RecordType::AAAA };
    let mut names = Vec::new();
    for (qname, count) in &trace.names {
        let Ok(name) = Name::parse(qname) else { continue };
        let verdict = decide(policy, asker, name.as_wire(), kind, now);
        let said = verdict.said();
        let rule = said.rule.map(|rule| policy.rule(rule));
        let ports: Vec<String> = verdict.ports().iter().map(ToString::to_string).collect();
        let opens = |service| verdict.ports().iter().any(|ports| ports.contains(service));
        let would = said.allows && trace.flow.service.is_none_or(opens);
        names.push(json!({
            "qname": qname, "told": count, "verdict": if said.allows { "allow" } else { "deny" },
            "reason": said.reason.as_str(), "rule": rule.map(|rule| &*rule.id), "ports": ports, "would_open": would,
        }));
        let by = rule.map(|rule| format!(" by {}  {}", rule.id, rule.place)).unwrap_or_default();
        let does = match (said.allows, would) {
            (true, true) => format!("a look-up would open it: allowed{by}"),
            (true, false) => format!("a look-up would open {} of it: allowed{by}", ports.join(" ")),
            (false, _) => format!("denied (reason {}){by}", said.reason.as_str()),
        };
        let _ = writeln!(text, "leads     {qname} was told to lead there; {does}");
    }
    let others = json!({
        "network": of_networks.map(|rule| json!({
            "id": &*rule.id, "place": rule.place.to_string(),
            "action": if rule.action == Action::Deny { "deny" } else { "allow" },
        })),
        "observes": segment.observes(now), "names": names,
    });
    (others, text)
}

fn written(step: &Step) -> String {
    let by = step.query.as_deref().map(|id| format!(" ({id})")).unwrap_or_default();
    let what = if step.op == "adopt" { "the grant found at start of" } else { "the look-up of" };
    format!("{what} {} at {}{by}, rule {}", step.qname, step.at, step.rule)
}

fn object(step: &Step) -> Value {
    json!({
        "at": step.at.to_string(), "op": step.op, "qname": step.qname, "rule": step.rule, "query": step.query,
        "until": step.until.to_string(), "why": step.why,
    })
}
