//! The sinks, as an operator sees them.

use serde_json::{Value, json};

use super::number;
use crate::audit::Sinks;
use crate::metric::{self, Registry};
use crate::time::Wall;

/// `sinks` of the status.
pub(super) fn status(sinks: &Sinks, now: Wall) -> Vec<Value> {
    let one = sinks.each().map(|(settings, gauges)| {
        let lag = gauges.lag(now);
        json!({
            "name": settings.name, "kind": settings.kind, "up": gauges.up(),
            "lag_records": lag.records, "lag_bytes": lag.bytes, "lag_s": lag.age.as_secs(),
            "delivered": gauges.delivered(), "refused": gauges.refused(), "failures": gauges.failures(),
            "gaps": gauges.gaps(), "damaged": gauges.damaged(), "last_error": gauges.last_error(),
        })
    });
    one.collect()
}

/// Their metrics.
pub(super) fn measure(sinks: &Sinks, registry: &Registry, now: Wall) {
    for (settings, gauges) in sinks.each() {
        let (label, lag) = ([settings.name.as_str()], gauges.lag(now));
        registry.set_gauge(metric::AUDIT_SINK_UP, label, f64::from(u8::from(gauges.up())));
        registry.set_gauge(metric::AUDIT_SINK_LAG_RECORDS, label, number(lag.records));
        registry.set_gauge(metric::AUDIT_SINK_LAG_BYTES, label, number(lag.bytes));
        registry.set_gauge(metric::AUDIT_SINK_LAG_SECONDS, label, lag.age.as_secs_f64());
        registry.absolute(metric::AUDIT_SINK_DELIVERED, label, gauges.delivered());
        registry.absolute(metric::AUDIT_SINK_FAILURES, label, gauges.failures());
        registry.absolute(metric::AUDIT_SINK_REFUSED, label, gauges.refused());
        registry.absolute(metric::AUDIT_SINK_GAPS, label, gauges.gaps());
    }
}
