//! OCSF: the Open Cybersecurity Schema Framework, version 1.8.0, with its profile security_control.

mod judge;

use std::net::IpAddr;

use super::fields::Fields;
use super::mapping::{
    self, ALL, CHANGE, FLOW, GRANT, LOG, POLICY, QUERY, Row, Types, Value, field, made, number, part, rest, text,
    within,
};
use judge::{action, action_id, alert, disposition, disposition_id, risk, risk_id, severity, severity_id};
use judge::{activity, activity_id, category, class_name, class_uid, is_failed, type_uid};

/// Records that are about traffic: classes of the category Network Activity.
const TRAFFIC: Types = QUERY | FLOW;
/// Records of the class Entity Management.
const ENTITIES: Types = GRANT | POLICY | CHANGE;
/// Records with attributes of the profile security_control.
const CONTROLLED: Types = QUERY | FLOW | GRANT;

/// Every attribute that goes out.
pub(super) const ROWS: &[Row] = &[
    made(ALL, "activity_id", "of `type` and `op`: see below", &[], activity_id),
    made(ALL, "activity_name", "the caption of `activity_id`; of 99 the `op`", &[], activity),
    made(ALL, "category_uid", "of `type`", &[], category),
    made(ALL, "class_name", "of `type`", &[], class_name),
    made(ALL, "class_uid", "of `type`", &["type"], class_uid),
    made(ALL, "type_uid", "`class_uid` times 100, and `activity_id`", &[], type_uid),
    made(ALL, "severity", "the caption of `severity_id`", &[], severity),
    made(ALL, "severity_id", "see below", &[], severity_id),
    made(ALL, "status", "the caption of `status_id`", &[], status),
    made(ALL, "status_id", "1, or 2 of what failed or was denied", &[], status_id),
    field(QUERY, "status_code", "rcode"),
    field(QUERY, "status_detail", "reason"),
    made(FLOW, "status_detail", "`class`, and `detail` behind a `/`", &[], classified),
    field(ALL, "message", "why"),
    field(CHANGE, "comment", "why"),
    made(ALL, "time", "`ts` in milliseconds", &[], time),
    made(FLOW, "start_time", "`ts` in milliseconds", &[], time),
    made(FLOW, "end_time", "`end` in milliseconds", &[], end_time),
    made(FLOW, "duration", "`duration_us` in milliseconds", &[], duration),
    made(QUERY, "query_time", "`ts` in milliseconds", &[], time),
    made(QUERY, "response_time", "`ts` and `latency_us` in milliseconds, where something was sent", &[], response_time),
    made(TRAFFIC, "action", "the caption of `action_id`; of 99 `Fail closed`", &[], action),
    made(TRAFFIC, "action_id", "see below", &[], action_id),
    made(TRAFFIC, "disposition", "the caption of `disposition_id`", &[], disposition),
    made(TRAFFIC, "disposition_id", "see below", &[], disposition_id),
    made(TRAFFIC, "is_alert", "see below", &[], alert),
    made(TRAFFIC, "risk_level", "the caption of `risk_level_id`", &[], risk),
    made(TRAFFIC, "risk_level_id", "the tag `risk`: `low` 1, `medium` 2, `high` 3, `critical` 4", &[], risk_id),
    field(QUERY, "metadata.correlation_uid", "id"),
    field(GRANT | FLOW, "metadata.correlation_uid", "query"),
    made(ALL, "metadata.log_name", "`outgate.` and `type`", &[], log_name),
    made(ALL, "metadata.log_version", "`v` as text", &["v"], log_version),
    field(ALL, "metadata.original_time", "ts"),
    text(ALL, "metadata.product.name", "outgate"),
    text(ALL, "metadata.product.vendor_name", "Outgate"),
    field(LOG, "metadata.product.version", "version"),
    made(CONTROLLED, "metadata.profiles", "`security_control`", &[], profiles),
    field(ALL, "metadata.reporter.name", "node"),
    made(ALL, "metadata.sequence", "the last part of `id`", &[], sequence),
    made(TRAFFIC, "metadata.tags", "`tags`", &["tags"], tags),
    within(TRAFFIC, "metadata.tags.name", "a key of `tags`"),
    within(TRAFFIC, "metadata.tags.value", "its value"),
    field(ALL, "metadata.uid", "id"),
    text(ALL, "metadata.version", "1.8.0"),
    made(TRAFFIC, "src_endpoint.ip", "`client`, where it is an address", &[], source_ip),
    field(TRAFFIC, "src_endpoint.port", "port"),
    made(TRAFFIC, "src_endpoint.uid", "`client`: also where it is redacted", &["client"], source_uid),
    field(TRAFFIC, "src_endpoint.zone", "segment"),
    made(FLOW, "dst_endpoint.hostname", "`qname`, where `class` is `exact`", &["qname"], destination_name),
    field(FLOW, "dst_endpoint.ip", "address"),
    field(QUERY, "dst_endpoint.name", "node"),
    made(FLOW, "dst_endpoint.port", "of `service`", &[], destination_port),
    number(TRAFFIC, "connection_info.direction_id", 2),
    made(TRAFFIC, "connection_info.protocol_name", "of `transport`, `service`", &[], protocol_name),
    made(TRAFFIC, "connection_info.protocol_num", "of `transport`, `service`", &[], protocol_num),
    made(TRAFFIC, "connection_info.protocol_ver_id", "4 or 6: of `client`, `address`", &[], protocol_version),
    made(FLOW, "is_src_dst_assignment_known", "false where `started` is", &["started"], is_start_known),
    made(FLOW, "traffic.bytes", "`bytes_out` and `bytes_in`", &[], bytes),
    field(FLOW, "traffic.bytes_in", "bytes_in"),
    field(FLOW, "traffic.bytes_out", "bytes_out"),
    made(FLOW, "traffic.packets", "`packets_out` and `packets_in`", &[], packets),
    field(FLOW, "traffic.packets_in", "packets_in"),
    field(FLOW, "traffic.packets_out", "packets_out"),
    made(QUERY, "query.class", "`IN`, where there are `qname` and `qtype`", &[], query_class),
    field(QUERY, "query.hostname", "qname"),
    made(QUERY, "query.opcode_id", "0, where there are `qname` and `qtype`", &[], query_opcode),
    made(QUERY, "query.packet_uid", "`qid`, where there is a `qname`", &["qid"], query_id),
    made(QUERY, "query.type", "`qtype`, where there is a `qname`", &["qtype"], query_type),
    made(QUERY, "answers", "`answers`", &["answers"], answers),
    within(QUERY, "answers.class", "`IN`"),
    within(QUERY, "answers.flag_ids", "`flags`: AA 1, TC 2, RD 3, RA 4, AD 5, CD 6"),
    within(QUERY, "answers.rdata", "`answers[].data`"),
    within(QUERY, "answers.ttl", "`answers[].ttl`"),
    within(QUERY, "answers.type", "`answers[].type`"),
    made(QUERY, "rcode", "the caption of `rcode_id`; of 99 the `rcode`", &[], rcode),
    made(QUERY, "rcode_id", "`rcode`", &[], rcode_id),
    field(CONTROLLED, "firewall_rule.uid", "rule"),
    made(QUERY, "policy.is_applied", "`enforced`, where there is a `policy`", &["enforced"], is_applied),
    field(QUERY, "policy.uid", "policy"),
    made(
        ENTITIES,
        "entity.name",
        "`address`, the first of `targets`, `client`; of policies `policy`",
        &[],
        entity_name,
    ),
    made(
        ENTITIES,
        "entity.type",
        "`grant`, `policy`, or what `op` changes: `rule`, `client`, `feed`",
        &[],
        entity_type,
    ),
    made(ENTITIES, "entity.type_id", "5 of policies, otherwise 99", &[], entity_type_id),
    field(POLICY, "entity.uid", "policy"),
    field(CHANGE, "entity.uid", "change"),
    field(CHANGE, "actor.user.name", "by"),
    made(LOG, "file.hashes", "`sha256`", &["sha256"], hashes),
    within(LOG, "file.hashes.algorithm_id", "3"),
    within(LOG, "file.hashes.value", "`sha256`"),
    field(LOG, "file.name", "file"),
    made(LOG, "file.size", "`bytes`, where there is a `file`", &["bytes"], file_size),
    made(LOG, "file.type_id", "1, where there is a `file`", &[], file_type),
    text(LOG, "log_name", "outgate"),
    number(LOG, "log_type_id", 2),
    made(QUERY | FLOW | GRANT, "observables", "every name and address of the record", &[], observables),
    within(QUERY | FLOW | GRANT, "observables.name", "where it stands"),
    within(QUERY | FLOW | GRANT, "observables.type_id", "1: a name; 2: an address"),
    within(QUERY | FLOW | GRANT, "observables.value", "the name or address"),
    made(
        QUERY,
        "unmapped.answers",
        "`answers`, where one's owner is not `qname`: 1.8.0 has no place for owners",
        &[],
        owners,
    ),
    rest("unmapped"),
];

/// Appends a line in this format.
pub(super) fn write(line: &str, out: &mut Vec<u8>) -> bool {
    mapping::write(ROWS, line, out)
}

/// Codes with their captions: those of OCSF, which are not everywhere those of the registry (RFC 6895 §2.3).
const RCODES: [(&str, u64, &str); 13] = [
    ("NOERROR", 0, "NoError"),
    ("FORMERR", 1, "FormError"),
    ("SERVFAIL", 2, "ServError"),
    ("NXDOMAIN", 3, "NXDomain"),
    ("NOTIMP", 4, "NotImp"),
    ("REFUSED", 5, "Refused"),
    ("YXDOMAIN", 6, "YXDomain"),
    ("YXRRSET", 7, "YXRRSet"),
    ("NXRRSET", 8, "NXRRSet"),
    ("NOTAUTH", 9, "NotAuth"),
    ("NOTZONE", 10, "NotZone"),
    ("BADVERS", 16, "BADSIG_VERS"),
    ("BADCOOKIE", 23, "BADCOOKIE"),
];

const FLAGS: [(&str, u64); 6] = [("AA", 1), ("TC", 2), ("RD", 3), ("RA", 4), ("AD", 5), ("CD", 6)];

fn status(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.text(if is_failed(fields) { "Failure" } else { "Success" });
}

fn status_id(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.number(if is_failed(fields) { 2 } else { 1 });
}

fn classified(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.text(fields.classified().as_deref());
}

fn time(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.number(fields.micros("ts").map(|micros| micros / 1000));
}

fn end_time(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.number(fields.micros("end").map(|micros| micros / 1000));
}

fn duration(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.number(fields.number("duration_us").map(|micros| micros / 1000));
}

fn response_time(fields: &Fields<'_>, value: Value<'_, '_>) {
    if let (Some(at), Some(micros), true) = (fields.micros("ts"), fields.number("latency_us"), fields.has("rcode")) {
        value.number(at.saturating_add(micros) / 1000);
    }
}

fn log_name(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.text(format!("outgate.{}", fields.word("type")).as_str());
}

fn log_version(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.text(fields.number("v").map(|version| version.to_string()).as_deref());
}

fn profiles(_: &Fields<'_>, value: Value<'_, '_>) {
    value.texts(&["security_control"]);
}

fn sequence(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.number(fields.sequence());
}

fn tags(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.list(&fields.members("tags"), |line, (key, tag)| {
        part(line, "{\"name\":\"", key);
        part(line, ",\"value\":\"", tag);
        line.raw("}");
    });
}

fn source_ip(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.text(fields.address("client").map(|address| address.to_string()).as_deref());
}

fn source_uid(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.text(fields.text("client").as_deref());
}

fn destination_name(fields: &Fields<'_>, value: Value<'_, '_>) {
    if fields.word("class") == "exact" {
        value.text(fields.text("qname").as_deref());
    }
}

fn destination_port(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.number(fields.service().port);
}

fn protocol_name(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.text(fields.transport().name);
}

fn protocol_num(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.number(fields.transport().number);
}

fn protocol_version(fields: &Fields<'_>, value: Value<'_, '_>) {
    let address = fields.address("address").or_else(|| fields.address("client"));
    value.number(address.map(|address| if address.is_ipv4() { 4 } else { 6 }));
}

fn is_start_known(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.boolean(!fields.is_false("started"));
}

fn bytes(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.number(fields.sum("bytes_out", "bytes_in"));
}

fn packets(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.number(fields.sum("packets_out", "packets_in"));
}

fn query_class(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.text((fields.has("qname") && fields.has("qtype")).then_some("IN"));
}

fn query_opcode(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.number((fields.has("qname") && fields.has("qtype")).then_some(0));
}

fn query_id(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.number(fields.number("qid").filter(|_| fields.has("qname")));
}

fn query_type(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.text(fields.text("qtype").filter(|_| fields.has("qname")).as_deref());
}

fn answers(fields: &Fields<'_>, value: Value<'_, '_>) {
    let set = fields.texts("flags");
    let flags: Vec<u64> =
        FLAGS.iter().filter(|(flag, _)| set.iter().any(|set| &**set == *flag)).map(|flag| flag.1).collect();
    value.list(fields.answers(), |line, told| {
        line.raw("{\"class\":\"IN\"");
        if !flags.is_empty() {
            line.list(",\"flag_ids\":", flags.iter(), |line, flag| line.number("", *flag));
        }
        part(line, ",\"rdata\":\"", &told.data);
        line.number(",\"ttl\":", told.ttl.into());
        part(line, ",\"type\":\"", &told.kind);
        line.raw("}");
    });
}

fn owners(fields: &Fields<'_>, value: Value<'_, '_>) {
    let name = fields.text("qname");
    if fields.answers().iter().any(|told| Some(&told.name) != name.as_ref())
        && let Some(answers) = fields.json("answers")
    {
        value.json(answers);
    }
}

fn rcode(fields: &Fields<'_>, value: Value<'_, '_>) {
    let code = fields.text("rcode");
    let caption = |code: &str| RCODES.iter().find(|(known, ..)| *known == code).map(|(.., caption)| *caption);
    value.text(code.as_deref().map(|code| caption(code).unwrap_or(code)));
}

fn rcode_id(fields: &Fields<'_>, value: Value<'_, '_>) {
    let id = |code: &str| RCODES.iter().find(|(known, ..)| *known == code).map_or(99, |(_, id, _)| *id);
    value.number(fields.text("rcode").map(|code| id(&code)));
}

fn is_applied(fields: &Fields<'_>, value: Value<'_, '_>) {
    if fields.has("policy") {
        value.boolean(!fields.is_false("enforced"));
    }
}

fn entity_name(fields: &Fields<'_>, value: Value<'_, '_>) {
    let target = || fields.texts("targets").into_iter().next();
    match fields.of() {
        GRANT => value.text(fields.text("address").as_deref()),
        CHANGE => value.text(target().or_else(|| fields.text("client")).as_deref().unwrap_or(fields.word("op"))),
        _ => value.text("policy"),
    }
}

fn entity_type(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.text(match (fields.of(), fields.word("op")) {
        (POLICY, _) => "policy",
        (GRANT, _) | (_, "revoke" | "forget") => "grant",
        (_, "place" | "take_out") => "client",
        (_, "feed") => "feed",
        _ => "rule",
    });
}

fn entity_type_id(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.number(if fields.of() == POLICY { 5 } else { 99 });
}

fn hashes(fields: &Fields<'_>, value: Value<'_, '_>) {
    let hashes: Vec<_> = fields.text("sha256").filter(|_| fields.has("file")).into_iter().collect();
    value.list(&hashes, |line, hash| {
        part(line, "{\"algorithm_id\":3,\"value\":\"", hash);
        line.raw("}");
    });
}

fn file_size(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.number(fields.number("bytes").filter(|_| fields.has("file")));
}

fn file_type(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.number(fields.has("file").then_some(1));
}

fn observables(fields: &Fields<'_>, value: Value<'_, '_>) {
    let mut seen: Vec<(&str, u64, String)> = Vec::new();
    let (client, address) = match fields.of() {
        GRANT => ("unmapped.client", "entity.name"),
        _ => ("src_endpoint.ip", "dst_endpoint.ip"),
    };
    for host in fields.hosts() {
        let asked = fields.text("qname").as_ref() == Some(&host);
        let place = match (fields.of(), asked) {
            (FLOW, true) if fields.word("class") == "exact" => "dst_endpoint.hostname",
            (FLOW, false) => "unmapped.names.qname",
            (QUERY, true) => "query.hostname",
            (QUERY, false) => "unmapped.answers.name",
            _ => "unmapped.qname",
        };
        seen.push((place, 1, host.to_string()));
    }
    let named = [(client, fields.address("client")), (address, fields.address("address"))];
    let named = named.into_iter().filter_map(|(place, address)| Some((place, address?)));
    let told = fields.answers().iter().filter_map(|told| Some(("answers.rdata", told.address()?)));
    seen.extend(named.chain(told).map(|(place, address): (&str, IpAddr)| (place, 2, address.to_string())));
    value.list(&seen, |line, (place, kind, seen)| {
        part(line, "{\"name\":\"", place);
        line.number(",\"type_id\":", *kind);
        part(line, ",\"value\":\"", seen);
        line.raw("}");
    });
}
