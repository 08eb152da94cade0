//! Judgement: class, activity, severity and what a security control did, in the numbers of OCSF.

use crate::audit::format::fields::Fields;
use crate::audit::format::mapping::{CHANGE, FLOW, GRANT, LOG, POLICY, QUERY, Types, Value};

/// A number and its caption.
type Captioned = (u64, &'static str);

/// Of which class records are; any other type: the base event.
const CLASSES: [(Types, u64, &str); 4] = [
    (QUERY, 4003, "DNS Activity"),
    (FLOW, 4001, "Network Activity"),
    (GRANT | POLICY | CHANGE, 3004, "Entity Management"),
    (LOG, 1008, "Event Log Activity"),
];

/// What an operation is in its class; any other one: 99.
const ACTIVITIES: [(Types, &[&str], u64, &str); 14] = [
    (FLOW, &["open"], 1, "Open"),
    (FLOW, &["close"], 2, "Close"),
    (FLOW, &["refuse"], 5, "Refuse"),
    (FLOW, &["seen"], 6, "Traffic"),
    (GRANT, &["open", "fail"], 1, "Create"),
    (GRANT, &["extend", "shorten"], 3, "Update"),
    (GRANT, &["revoke"], 4, "Delete"),
    (POLICY, &["load", "reload", "refused", "promote", "revert"], 3, "Update"),
    (CHANGE, &["allow", "deny", "place"], 1, "Create"),
    (CHANGE, &["feed"], 3, "Update"),
    (CHANGE, &["retract", "end", "take_out", "revoke", "forget"], 4, "Delete"),
    (LOG, &["rotate"], 5, "Rotate"),
    (LOG, &["removed"], 2, "Delete"),
    (LOG, &["close"], 7, "Stop"),
];

const ALLOWED: Captioned = (1, "Allowed");
const DENIED: Captioned = (2, "Denied");
const OBSERVED: Captioned = (3, "Observed");
const FAIL_CLOSED: Captioned = (99, "Fail closed");

const BLOCKED: Captioned = (2, "Blocked");
const DROPPED: Captioned = (6, "Dropped");
const DETECTED: Captioned = (15, "Detected");
const ALERT: Captioned = (19, "Alert");
const UNAUTHORIZED: Captioned = (26, "Unauthorized");
const ERROR: Captioned = (27, "Error");

const INFORMATIONAL: Captioned = (1, "Informational");
const LOW: Captioned = (2, "Low");
const MEDIUM: Captioned = (3, "Medium");
const HIGH: Captioned = (4, "High");

/// What the tag `risk` may say.
const RISKS: [(&str, u64, &str); 4] =
    [("low", 1, "Low"), ("medium", 2, "Medium"), ("high", 3, "High"), ("critical", 4, "Critical")];

fn class(fields: &Fields<'_>) -> Captioned {
    let class = CLASSES.iter().find(|(of, ..)| of & fields.of() != 0);
    class.map_or((0, "Base Event"), |(_, uid, name)| (*uid, *name))
}

fn done<'a>(fields: &Fields<'a>) -> (u64, &'a str) {
    let op = fields.word("op");
    if fields.of() == QUERY {
        return if fields.has("rcode") { (6, "Traffic") } else { (1, "Query") };
    }
    if fields.of() == LOG && op == "open" && fields.word("why") == "start" {
        return (6, "Start");
    }
    let known = ACTIVITIES.iter().find(|(of, ops, ..)| of & fields.of() != 0 && ops.contains(&op));
    let other = if op.is_empty() { fields.word("type") } else { op };
    known.map_or((99, other), |(.., id, caption)| (*id, *caption))
}

/// Whether a tag says that the risk is high.
fn is_risky(fields: &Fields<'_>) -> bool {
    risk_of(fields).is_some_and(|(risk, _)| risk >= 3)
}

fn risk_of(fields: &Fields<'_>) -> Option<Captioned> {
    // Nearly always there is none: told without reading them.
    fields.json("tags").filter(|tags| tags.contains("\"risk\""))?;
    let tags = fields.members("tags");
    let (_, risk) = tags.iter().find(|(key, _)| &**key == "risk")?;
    RISKS.iter().find(|(word, ..)| *word == &**risk).map(|(_, id, caption)| (*id, *caption))
}

/// What was done about it, and how it was left.
struct Control {
    action: Captioned,
    disposition: Captioned,
    severity: Captioned,
    alert: bool,
}

fn control(fields: &Fields<'_>) -> Control {
    let control = |action, disposition, severity, alert| Control { action, disposition, severity, alert };
    let risky = is_risky(fields);
    if fields.of() == FLOW {
        let refused = fields.word("action") == "deny";
        let action = if refused { DENIED } else { ALLOWED };
        let disposition = if refused { BLOCKED } else { ALLOWED };
        return match (fields.word("class"), fields.word("detail")) {
            ("none", "denied_name") => control(action, if refused { BLOCKED } else { ALERT }, HIGH, true),
            ("none", _) => control(action, disposition, if risky { HIGH } else { MEDIUM }, risky),
            _ if refused => control(action, disposition, LOW, false),
            ("stale" | "ambiguous", _) => control(action, disposition, LOW, false),
            _ => control(action, disposition, INFORMATIONAL, false),
        };
    }
    match fields.word("verdict") {
        "allow" => control(ALLOWED, ALLOWED, INFORMATIONAL, false),
        "deny" if fields.is_false("enforced") => {
            control(OBSERVED, DETECTED, if risky { LOW } else { INFORMATIONAL }, false)
        }
        "deny" => {
            let disposition = match fields.word("reason") {
                _ if !fields.has("rcode") => DROPPED,
                "no_segment" => UNAUTHORIZED,
                _ => BLOCKED,
            };
            control(DENIED, disposition, if risky { MEDIUM } else { LOW }, risky)
        }
        _ => control(FAIL_CLOSED, ERROR, LOW, false),
    }
}

fn severity_of(fields: &Fields<'_>) -> Captioned {
    match (fields.of(), fields.word("op")) {
        (QUERY | FLOW, _) => control(fields).severity,
        (LOG, "gap") => HIGH,
        (LOG, "reopen") | (GRANT, "fail") | (POLICY, "refused") => MEDIUM,
        (LOG, "rotate") if fields.has("why") => MEDIUM,
        (CHANGE, _) if fields.has("unsaved") => MEDIUM,
        _ => INFORMATIONAL,
    }
}

/// Whether it failed or was denied.
pub(super) fn is_failed(fields: &Fields<'_>) -> bool {
    match (fields.of(), fields.word("op")) {
        (QUERY, _) => fields.word("verdict") != "allow" && !fields.is_false("enforced"),
        (FLOW, _) => fields.word("action") == "deny",
        (LOG, "gap") | (GRANT, "fail") | (POLICY, "refused") => true,
        (LOG, "rotate") => fields.has("why"),
        _ => false,
    }
}

pub(super) fn class_uid(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.number(class(fields).0);
}

pub(super) fn class_name(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.text(class(fields).1);
}

pub(super) fn category(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.number(class(fields).0 / 1000);
}

pub(super) fn activity_id(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.number(done(fields).0);
}

pub(super) fn activity(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.text(done(fields).1);
}

pub(super) fn type_uid(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.number(class(fields).0 * 100 + done(fields).0);
}

pub(super) fn severity_id(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.number(severity_of(fields).0);
}

pub(super) fn severity(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.text(severity_of(fields).1);
}

pub(super) fn action_id(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.number(control(fields).action.0);
}

pub(super) fn action(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.text(control(fields).action.1);
}

pub(super) fn disposition_id(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.number(control(fields).disposition.0);
}

pub(super) fn disposition(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.text(control(fields).disposition.1);
}

pub(super) fn alert(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.boolean(control(fields).alert);
}

pub(super) fn risk_id(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.number(risk_of(fields).map(|risk| risk.0));
}

pub(super) fn risk(fields: &Fields<'_>, value: Value<'_, '_>) {
    value.text(risk_of(fields).map(|risk| risk.1));
}
