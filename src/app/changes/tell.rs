//! What is said of a change: in its record, and to who asked for it.

use std::sync::Arc;

use serde_json::Value;

use super::change::Change;
use crate::audit::{ChangeEvent, Event, Shard};
use crate::gate::Closed;
use crate::time::Wall;

/// What was cut in each firewall.
pub(super) type Ends = Vec<(Arc<str>, Result<u64, String>)>;

impl Change {
    /// What a record of it says, whatever happened to it.
    pub(super) fn event(&self, now: Wall) -> ChangeEvent<'_> {
        ChangeEvent {
            at: now,
            change: Some(&self.id),
            targets: &self.order.targets,
            client: self.order.client,
            segments: &self.order.segments,
            until: self.ends.map(Wall),
            why: Some(&self.order.reason),
            ticket: self.order.ticket.as_deref(),
            ..ChangeEvent::default()
        }
    }
}

pub(super) fn record(shard: &mut Shard, event: ChangeEvent<'_>) {
    let id = shard.reserve();
    shard.append(id, &Event::Change(event));
    if let Err(error) = shard.commit() {
        tracing::error!(%error, "a record of a change could not be written");
    }
}

pub(super) fn tell(told: &mut Value, key: &str, value: impl Into<Value>) {
    if let Some(told) = told.as_object_mut() {
        told.insert(key.into(), value.into());
    }
}

/// What was closed, what of it is open for other reasons, and which firewalls did not take it yet.
pub(super) fn told_closed(told: &mut Value, closed: &Closed) {
    tell(told, "revoked", closed.reasons);
    tell(told, "still_open", closed.still_open);
    if !closed.unclosed.is_empty() {
        tell(told, "unclosed", closed.unclosed.iter().map(ToString::to_string).collect::<Vec<_>>());
    }
}

/// How many connections ended in all, and which firewalls could not end them.
pub(super) fn told_cut(told: &mut Value, ends: &Ends) -> Option<u64> {
    let failed = ends.iter().filter_map(|(firewall, end)| Some(format!("{firewall}: {}", end.as_ref().err()?)));
    let failed: Vec<String> = failed.collect();
    let cut = ends.iter().filter_map(|(_, end)| end.as_ref().ok()).sum();
    tell(told, "cut", cut);
    if !failed.is_empty() {
        tell(told, "uncut", failed);
    }
    Some(cut)
}

/// Two rounds of cutting as one.
pub(super) fn added(mut first: Ends, second: Ends) -> Ends {
    for (firewall, end) in second {
        match first.iter_mut().find(|(name, _)| *name == firewall) {
            Some((_, known @ Ok(_))) if end.is_err() => *known = end,
            Some((_, Ok(known))) => *known += end.unwrap_or(0),
            Some((_, Err(_))) => {}
            None => first.push((firewall, end)),
        }
    }
    first
}

pub(super) fn told_unsaved(told: &mut Value, unsaved: Option<&str>) {
    if let Some(why) = unsaved {
        tell(told, "unsaved", why);
    }
}
