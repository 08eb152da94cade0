//! ECS: the Elastic Common Schema, version 8.17.

use std::net::IpAddr;

use super::fields::Fields;
use super::mapping::{
    self, ALL, CHANGE, FLOW, GRANT, LOG, POLICY, QUERY, Row, Types, Value, field, made, rest, text, within,
};
use crate::time::Wall;

/// Records that are about traffic.
const TRAFFIC: Types = QUERY | FLOW;
/// Records that name an address that was asked for, opened or gone to.
const PAIRS: Types = FLOW | GRANT;

/// Every field that goes out.
pub(super) const ROWS: &[Row] = &[
    field(ALL, "@timestamp", "ts"),
    text(ALL, "ecs.version", "8.17.0"),
    field(ALL, "message", "why"),
    made(
        ALL,
        "event.action",
        "`type`, `-` and the `verdict` or `op`; `query-observe`: an observe segment let it pass",
        &[],
        action,
    ),
    made(
        ALL,
        "event.category",
        "`network`; `configuration` of grants, policies and changes; `host` of `log`",
        &[],
        category,
    ),
    made(ALL, "event.dataset", "`outgate.` and `type`", &["type"], dataset),
    made(
        TRAFFIC,
        "event.duration",
        "`latency_us`, `duration_us`, in nanoseconds",
        &["latency_us", "duration_us"],
        duration,
    ),
    made(QUERY, "event.end", "`ts` and `latency_us`", &[], end),
    field(FLOW, "event.end", "end"),
    field(ALL, "event.id", "id"),
    made(ALL, "event.kind", "`event`; `alert`: a flow to an address of a denied name", &[], kind),
    text(ALL, "event.module", "outgate"),
    made(ALL, "event.outcome", "`success` or `failure`", &[], outcome),
    field(QUERY, "event.reason", "reason"),
    made(FLOW, "event.reason", "`class`, and `detail` behind a `/`", &[], classified),
    made(ALL, "event.sequence", "the last part of `id`", &[], sequence),
    field(TRAFFIC, "event.start", "ts"),
    made(ALL, "event.type", "what happened, in the words of ECS", &[], types),
    field(QUERY | PAIRS, "source.address", "client"),
    field(FLOW, "source.bytes", "bytes_out"),
    made(QUERY | PAIRS, "source.ip", "`client`, where it is an address: redacted, it is none", &[], source_ip),
    field(FLOW, "source.packets", "packets_out"),
    field(TRAFFIC, "source.port", "port"),
    field(PAIRS, "destination.address", "address"),
    field(FLOW, "destination.bytes", "bytes_in"),
    made(FLOW, "destination.domain", "`qname`, where `class` is `exact`", &["qname"], destination_domain),
    made(PAIRS, "destination.ip", "`address`", &[], destination_ip),
    field(FLOW, "destination.packets", "packets_in"),
    made(FLOW, "destination.port", "of `service`", &[], destination_port),
    made(FLOW, "destination.registered_domain", "of `qname`, where `class` is `exact`", &[], destination_registered),
    made(FLOW, "network.bytes", "`bytes_out` and `bytes_in`", &[], bytes),
    made(TRAFFIC, "network.direction", "`egress` of queries, `outbound` of flows", &[], direction),
    made(FLOW, "network.iana_number", "of `service`", &[], iana_number),
    made(FLOW, "network.packets", "`packets_out` and `packets_in`", &[], packets),
    text(QUERY, "network.protocol", "dns"),
    made(
        TRAFFIC,
        "network.transport",
        "of `transport`, `service`: `tcp`, `udp`, `icmp` or `ipv6-icmp`",
        &[],
        transport,
    ),
    made(TRAFFIC, "network.type", "`ipv4` or `ipv6`: of `client`, `address`", &[], family),
    field(QUERY, "dns.answers", "answers"),
    within(QUERY, "dns.answers.data", "`answers[].data`"),
    within(QUERY, "dns.answers.name", "`answers[].name`: the record's owner"),
    within(QUERY, "dns.answers.ttl", "`answers[].ttl`"),
    within(QUERY, "dns.answers.type", "`answers[].type`"),
    field(QUERY, "dns.header_flags", "flags"),
    made(QUERY, "dns.id", "`qid` as text", &["qid"], dns_id),
    made(QUERY, "dns.op_code", "`QUERY`, where there is a `qtype`", &[], op_code),
    made(QUERY, "dns.question.class", "`IN`, where there is a `qtype`", &[], question_class),
    field(QUERY, "dns.question.name", "qname"),
    made(QUERY, "dns.question.registered_domain", "of `qname`, by the public suffix list", &[], registered_domain),
    made(QUERY, "dns.question.subdomain", "what of `qname` is before that", &[], subdomain),
    made(QUERY, "dns.question.top_level_domain", "the public suffix of `qname`", &[], top_level_domain),
    field(QUERY, "dns.question.type", "qtype"),
    made(QUERY, "dns.resolved_ip", "`answers[].data` of A and AAAA", &[], resolved_ip),
    field(QUERY, "dns.response_code", "rcode"),
    made(QUERY, "dns.type", "`answer`, or `query` where nothing was sent", &[], dns_type),
    field(TRAFFIC | GRANT, "rule.id", "rule"),
    field(CHANGE, "rule.id", "change"),
    field(QUERY | PAIRS, "rule.ruleset", "segment"),
    field(QUERY | POLICY, "rule.version", "policy"),
    made(TRAFFIC, "labels", "`tags`; a dot in a key becomes `_`", &["tags"], labels),
    field(CHANGE, "user.name", "by"),
    field(LOG, "file.hash.sha256", "sha256"),
    field(LOG, "file.name", "file"),
    field(LOG, "file.size", "bytes"),
    field(ALL, "observer.name", "node"),
    text(ALL, "observer.product", "outgate"),
    text(ALL, "observer.type", "dns"),
    text(ALL, "observer.vendor", "Outgate"),
    field(LOG, "observer.version", "version"),
    made(
        QUERY | PAIRS | CHANGE,
        "related.hosts",
        "`qname`, names of answers and CNAME targets, `names[].qname`",
        &[],
        hosts,
    ),
    made(QUERY | PAIRS | CHANGE, "related.ip", "`client`, `address`, addresses of answers", &[], addresses),
    made(CHANGE, "related.user", "`by`", &[], users),
    rest("outgate"),
];

/// Appends a line in this format.
pub(super) fn write(line: &str, out: &mut Vec<u8>) -> bool {
    mapping::write(ROWS, line, out)
}

fn action(fields: &Fields<'_>, value: Value<'_, '_>) {
    let what = if fields.is_false("enforced") && fields.word("verdict") == "deny" {
        "observe"
    } else if fields.of() == QUERY {
        fields.word("verdict")
    } else {
        fields.word("op")
    };
    let kind = fields.word("type");
    value.text(if what.is_empty() { kind.to_owned() } else { format!("{kind}-{what}") }.as_str());
}

fn category(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.texts(match fields.of() {
        GRANT | POLICY | CHANGE => &["configuration"],
        LOG => &["host"],
        _ => &["network"],
    });
}

fn dataset(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.text(format!("outgate.{}", fields.word("type")).as_str());
}

fn duration(fields: &Fields<'_>, value: Value<'_, '_>) {
    let micros = fields.number("latency_us").or_else(|| fields.number("duration_us"));
    value.number(micros.map(|micros| micros.saturating_mul(1000)));
}

fn end(fields: &Fields<'_>, value: Value<'_, '_>) {
    if let (Some(at), Some(micros)) = (fields.micros("ts"), fields.number("latency_us")) {
        value.text(Wall(at.saturating_add(micros)).to_string().as_str());
    }
}

fn kind(fields: &Fields<'_>, value: Value<'_, '_>) {
    let denied = fields.word("class") == "none" && fields.word("detail") == "denied_name";
    value.text(if denied { "alert" } else { "event" });
}

/// Of queries: the client was told what it asked for, as the policy says or although it says otherwise.
fn outcome(fields: &Fields<'_>, value: Value<'_, '_>) {
    let failed = match fields.of() {
        QUERY => {
            fields.word("rcode") != "NOERROR" || (fields.word("verdict") != "allow" && !fields.is_false("enforced"))
        }
        FLOW => fields.word("action") == "deny",
        LOG => fields.word("op") == "gap" || (fields.word("op") == "rotate" && fields.has("why")),
        _ => matches!(fields.word("op"), "fail" | "refused"),
    };
    value.text(if failed { "failure" } else { "success" });
}

fn classified(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.text(fields.classified().as_deref());
}

fn sequence(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.number(fields.sequence());
}

fn types(fields: &Fields<'_>, value: Value<'_, '_>) {
    let denied = fields.word("action") == "deny";
    value.texts(match (fields.of(), fields.word("op")) {
        (QUERY, _) => match fields.word("verdict") {
            "allow" => &["connection", "protocol", "allowed"],
            "deny" if fields.is_false("enforced") => &["connection", "protocol", "info"],
            "deny" => &["connection", "protocol", "denied"],
            _ => &["connection", "protocol", "error"],
        },
        (FLOW, "open") => &["connection", "start", "allowed"],
        (FLOW, "close") => &["connection", "end", "allowed"],
        (FLOW, _) if denied => &["connection", "denied"],
        (FLOW, _) => &["connection", "allowed"],
        (GRANT, "open" | "fail") | (CHANGE, "allow" | "deny" | "place") => &["creation"],
        (GRANT, "revoke") | (CHANGE, "retract" | "end" | "take_out" | "revoke" | "forget") | (LOG, "removed") => {
            &["deletion"]
        }
        (GRANT, "extend" | "shorten") | (POLICY, _) | (CHANGE, "feed") | (LOG, "rotate" | "reopen") => &["change"],
        (LOG, "open") => &["start"],
        (LOG, "close") => &["end"],
        (LOG, "gap") => &["error"],
        _ => &["info"],
    });
}

fn ip(address: Option<IpAddr>, value: Value<'_, '_>) {
    if let Some(address) = address {
        value.text(address.to_string().as_str());
    }
}

fn source_ip(fields: &Fields<'_>, value: Value<'_, '_>) {
    ip(fields.address("client"), value);
}

fn destination_ip(fields: &Fields<'_>, value: Value<'_, '_>) {
    ip(fields.address("address"), value);
}

fn destination_domain(fields: &Fields<'_>, value: Value<'_, '_>) {
    if fields.word("class") == "exact"
        && let Some(name) = fields.json("qname")
    {
        value.json(name);
    }
}

fn destination_registered(fields: &Fields<'_>, value: Value<'_, '_>) {
    if fields.word("class") == "exact" {
        registered_domain(fields, value);
    }
}

fn destination_port(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.number(fields.service().port);
}

fn iana_number(fields: &Fields<'_>, value: Value<'_, '_>) {
    if let Some(number) = fields.service().number {
        value.text(number.to_string().as_str());
    }
}

fn bytes(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.number(fields.sum("bytes_out", "bytes_in"));
}

fn packets(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.number(fields.sum("packets_out", "packets_in"));
}

fn direction(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.text(if fields.of() == QUERY { "egress" } else { "outbound" });
}

fn transport(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.text(fields.transport().name);
}

fn family(fields: &Fields<'_>, value: Value<'_, '_>) {
    let address = fields.address("address").or_else(|| fields.address("client"));
    value.text(address.map(|address| if address.is_ipv4() { "ipv4" } else { "ipv6" }));
}

fn dns_id(fields: &Fields<'_>, value: Value<'_, '_>) {
    if let Some(id) = fields.number("qid") {
        value.text(id.to_string().as_str());
    }
}

fn op_code(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.text(fields.has("qtype").then_some("QUERY"));
}

fn question_class(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.text(fields.has("qtype").then_some("IN"));
}

fn registered_domain(fields: &Fields<'_>, value: Value<'_, '_>) {
    let name = fields.text("qname");
    value.text(name.as_deref().and_then(|name| name.get(fields.domain().registered?..)));
}

fn subdomain(fields: &Fields<'_>, value: Value<'_, '_>) {
    let name = fields.text("qname");
    value.text(name.as_deref().and_then(|name| name.get(..fields.domain().registered?.checked_sub(1)?)));
}

fn top_level_domain(fields: &Fields<'_>, value: Value<'_, '_>) {
    let name = fields.text("qname");
    value
        .text(name.as_deref().and_then(|name| name.get(fields.domain().suffix?..)).filter(|suffix| !suffix.is_empty()));
}

fn resolved_ip(fields: &Fields<'_>, value: Value<'_, '_>) {
    let addresses: Vec<_> =
        fields.answers().iter().filter(|told| told.address().is_some()).map(|told| &*told.data).collect();
    value.texts(&addresses);
}

fn dns_type(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.text(if fields.has("rcode") { "answer" } else { "query" });
}

/// ECS: `labels` is an object of keywords. In Elasticsearch a dot in a key would make an object of it.
fn labels(fields: &Fields<'_>, value: Value<'_, '_>) {
    let tags = fields.members("tags");
    value.members(tags.iter().map(|(key, tag)| (key.replace('.', "_"), &**tag)));
}

fn hosts(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.texts(&fields.hosts());
}

fn addresses(fields: &Fields<'_>, value: Value<'_, '_>) {
    let texts: Vec<_> = fields.addresses().iter().map(ToString::to_string).collect();
    value.texts(&texts);
}

fn users(fields: &Fields<'_>, value: Value<'_, '_>) {
    let user: Vec<_> = fields.text("by").into_iter().collect();
    value.texts(&user);
}
