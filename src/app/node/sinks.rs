//! The sinks, as an operator sees them.

use serde_json::{Value, json};

use crate::audit::Sinks;

/// `sinks` of the status.
pub(super) fn status(sinks: &Sinks) -> Vec<Value> {
    let one = sinks.each().map(|(settings, gauges)| {
        json!({
            "name": settings.name, "kind": settings.kind, "up": gauges.up(),
            "delivered": gauges.delivered(), "refused": gauges.refused(), "failures": gauges.failures(),
            "last_error": gauges.last_error(),
        })
    });
    one.collect()
}
