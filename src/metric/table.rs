//! The table. docs/metrics.md has a row for each row here, and a test that says so.

use super::{Counter, Gauge, Histogram, Info, Kind, Metric, Row, Unit};

macro_rules! metrics {
    ($($constant:ident = $kind:ident $name:literal [$($label:literal),*] $unit:ident $help:literal;)*) => {
        $(
            #[doc = concat!("`outgate_", $name, "`: ", $help)]
            pub const $constant: $kind<{ <[&str]>::len(&[$($label),*]) }> =
                $kind(Row { name: concat!("outgate_", $name), labels: [$($label),*] });
        )*

        /// Every metric.
        pub const TABLE: &[Metric] = &[$(Metric {
            name: concat!("outgate_", $name),
            short: $name,
            kind: Kind::$kind,
            unit: Unit::$unit,
            labels: &[$($label),*],
            help: $help,
        }),*];
    };
}

metrics! {
    QUERIES = Counter "queries_total" ["segment", "verdict"] Count
        "Queries by the segment of the client and the verdict.";
    REFUSALS = Counter "refusals_total" ["reason"] Count
        "Queries that were denied or failed, by reason.";
    SILENCES = Counter "silences_total" ["why"] Count
        "Queries that got no response, by reason.";
    RESPONSES = Counter "responses_total" ["rcode", "transport"] Count
        "Responses by response code and transport.";
    QUERY_DURATION = Histogram "query_duration_seconds" ["path"] Seconds
        "Time from the receipt of a query to its record, by path.";
    SLOW_QUEUE_DEPTH = Gauge "slow_queue_depth" [] Count
        "Queries that wait for a place on the slow path.";

    ANSWERS_HELD = Histogram "answers_held_seconds" [] Seconds
        "Time that answers waited for the firewalls to open their addresses.";
    ANSWERS_FAILED_CLOSED = Counter "answers_failed_closed_total" ["backend"] Count
        "Answers that became SERVFAIL because a required firewall did not acknowledge.";

    UPSTREAM_ANSWERS = Counter "upstream_answers_total" ["upstream"] Count
        "Answers taken from an upstream.";
    UPSTREAM_TIMEOUTS = Counter "upstream_timeouts_total" ["upstream"] Count
        "Upstream queries without an answer in time.";
    UPSTREAM_FAILURES = Counter "upstream_failures_total" ["upstream"] Count
        "Upstream queries that failed otherwise: no connection, SERVFAIL, REFUSED.";
    UPSTREAM_MISMATCHES = Counter "upstream_mismatches_total" ["upstream"] Count
        "Upstream packets that did not match their query and were dropped; many of them are a forgery attempt.";
    UPSTREAM_CONNECTIONS = Counter "upstream_connections_total" ["upstream"] Count
        "Connections opened to the servers of an upstream.";
    UPSTREAM_HANDSHAKES = Counter "upstream_handshakes_total" ["upstream"] Count
        "TLS handshakes in which a server of an upstream proved who it is.";
    UPSTREAM_HANDSHAKE_FAILURES = Counter "upstream_handshake_failures_total" ["upstream"] Count
        "TLS handshakes with a server of an upstream that failed; it was not asked.";
    UPSTREAM_SERVERS = Gauge "upstream_servers" ["upstream", "state"] Count
        "Servers of an upstream that are up, and out after three failures in a row.";
    UPSTREAM_SRTT = Gauge "upstream_srtt_seconds" ["upstream"] Seconds
        "Smoothed round-trip time of the fastest server of an upstream.";

    FIREWALL_ACK = Histogram "firewall_ack_seconds" ["backend"] Seconds
        "Time from sending a batch of changes to a firewall to its acknowledgement.";
    FIREWALL_PENDING = Gauge "firewall_pending" [] Count
        "Answers that wait for the firewalls to acknowledge.";
    FIREWALL_ERRORS = Counter "firewall_errors_total" ["backend"] Count
        "Changes that a firewall did not take.";
    FIREWALL_DRIFT_REPAIRS = Counter "firewall_drift_repairs_total" ["backend"] Count
        "Times that somebody else's change to a firewall was repaired.";
    FIREWALL_ELEMENTS = Gauge "firewall_elements" ["backend"] Count
        "Live elements in a firewall.";
    FIREWALL_CAPACITY = Gauge "firewall_capacity_ratio" ["backend"] Ratio
        "Share of a firewall's room that is taken.";
    FIREWALL_READY = Gauge "firewall_ready" ["backend"] Count
        "1 while it is known what is in force in a firewall, 0 while it cannot be used.";
    FIREWALL_FENCED = Gauge "firewall_fenced" ["backend"] Count
        "1 while no answer waits for a gateway that is silent, since it must have stopped to let new flows through.";
    ENFORCE_READY = Gauge "enforce_ready" [] Count
        "1 while new flows may be led through this gateway.";
    ENFORCE_DRIVEN = Gauge "enforce_driven" ["resolver"] Count
        "1 while a resolver is heard that has all that it tells open on this gateway.";
    ENFORCE_HELD = Gauge "enforce_held" ["resolver"] Count
        "Elements that a resolver holds open on this gateway.";
    ENFORCE_LAYOUTS = Gauge "enforce_layouts" [] Count
        "Different layouts that the resolvers gave: more than 1 while their policies differ.";
    ENFORCE_REFUSED = Counter "enforce_refused_total" ["why"] Count
        "Connections, messages and changes that an enforcer refused, by why.";
    PEER_UP = Gauge "peer_up" ["peer"] Count
        "1 while a peer can be told what is changed at this node.";
    PEER_POLICY_DIFFERS = Gauge "peer_policy_differs" ["peer"] Count
        "1 while the policy that a peer said last is not that of this node.";
    PEER_REFUSED = Counter "peer_refused_total" ["why"] Count
        "What connected as a peer and was refused, by why.";
    GRANTS = Gauge "grants" [] Count
        "Live grants.";

    AUDIT_RECORDS = Counter "audit_records_total" [] Count
        "Records written to the log.";
    AUDIT_BYTES = Counter "audit_bytes_total" [] Bytes
        "Bytes written to the log.";
    AUDIT_REFUSED = Counter "audit_refused_total" [] Count
        "Queries that got no answer because their record could not be written.";
    AUDIT_GAPS = Counter "audit_gaps_total" [] Count
        "Ranges of record ids that are missing from the log.";
    AUDIT_SINK_UP = Gauge "audit_sink_up" ["sink"] Count
        "1 while a sink takes records, 0 since a delivery failed.";
    AUDIT_SINK_LAG_RECORDS = Gauge "audit_sink_lag_records" ["sink"] Count
        "Records of the log that a sink has not delivered; what it has not read is estimated from its bytes.";
    AUDIT_SINK_LAG_BYTES = Gauge "audit_sink_lag_bytes" ["sink"] Bytes
        "Bytes of the log that a sink has not read, as they lie on the disk.";
    AUDIT_SINK_LAG_SECONDS = Gauge "audit_sink_lag_seconds" ["sink"] Seconds
        "Age of the oldest record that a sink has read and not delivered.";
    AUDIT_SINK_DELIVERED = Counter "audit_sink_delivered_total" ["sink"] Count
        "Records that the other side of a sink took.";
    AUDIT_SINK_FAILURES = Counter "audit_sink_failures_total" ["sink"] Count
        "Deliveries of a sink that failed and are tried again.";
    AUDIT_SINK_REFUSED = Counter "audit_sink_refused_total" ["sink"] Count
        "Records that the other side of a sink will never take; they are passed over.";
    AUDIT_SINK_GAPS = Counter "audit_sink_gaps_total" ["sink"] Count
        "Times that records were removed before a sink had read them; a gap record or, where its format has none, the journal says which.";

    FLOWS = Counter "flows_total" ["segment", "class"] Count
        "Flows that passed the firewall and ended, by the segment of the client and by what they went out by.";
    FLOW_BYTES = Counter "flow_bytes_total" ["segment", "class", "direction"] Bytes
        "Bytes of these flows, by direction as the client sees it.";
    FLOWS_REFUSED = Counter "flows_refused_total" ["segment", "why"] Count
        "Packets that the firewall refused and logged, by the segment of the client and why nothing opened their way.";
    FLOW_EVENTS_LOST = Counter "flow_events_lost_total" [] Count
        "Refusals, and times that flows began or ended, of which the kernel could not tell for want of room.";
    FLOWS_LIVE = Gauge "flows_live" [] Count
        "Live flows that are known.";

    POLICY_REVISION = Info "policy_revision_info" ["revision"] Count
        "The policy in force.";
    POLICY_RULES = Gauge "policy_rules" [] Count
        "Rules of the policy in force.";
    POLICY_SEGMENTS = Gauge "policy_segments" [] Count
        "Segments of the policy in force.";
    POLICY_EXPIRING = Gauge "policy_expiring" [] Count
        "Rules of files that end within 14 days.";
    POLICY_RELOAD_FAILURES = Counter "policy_reload_failures_total" [] Count
        "Reloads that were refused; the policy before stayed in force.";
    POLICY_CANDIDATE = Gauge "policy_candidate" [] Count
        "1 while a candidate is decided beside the policy or is the same, 0 while it cannot be; absent without one.";
    POLICY_SHADOW = Counter "policy_shadow_total" ["segment", "kind"] Count
        "Queries over which the candidate policy disagrees, by the segment of the client and in what.";

    CACHE_ENTRIES = Gauge "cache_entries" [] Count
        "Answers in the cache.";
    CACHE_BYTES = Gauge "cache_bytes" [] Bytes
        "Memory that cached answers take.";
    CACHE_HITS = Counter "cache_hits_total" [] Count
        "Allowed queries whose answer was in the cache.";
    CACHE_MISSES = Counter "cache_misses_total" [] Count
        "Allowed queries whose answer was not in the cache.";
    CACHE_STALE = Counter "cache_stale_total" [] Count
        "Queries answered with an answer that had ended, since upstream gave no other.";
    CACHE_FAILURES = Counter "cache_failures_total" [] Count
        "Queries that failed at once since the same question had failed upstream a moment before.";
    CACHE_REFRESHES = Gauge "cache_refreshes" [] Count
        "Questions that are asked again while no client waits for the answer.";
    WARM_NAMES = Gauge "warm_names" [] Count
        "Names that rules keep warm, each once for a segment and type.";
    WARM_FAILING = Gauge "warm_failing" [] Count
        "Warm names that could not be resolved and opened the last time.";
    ZONES_RECORDS = Gauge "zones_records" [] Count
        "Records in local zones.";

    STREAMS = Gauge "streams" [] Count
        "Open connections of the stream doors.";
    STREAMS_CLOSED = Counter "streams_closed_total" ["why"] Count
        "Connections of the stream doors that ended, by reason.";
    TLS_CERTIFICATE_END = Gauge "tls_certificate_end_timestamp_seconds" [] Seconds
        "When the certificate of the encrypted doors ends, in seconds since 1970.";

    BUILD = Info "build_info" ["version"] Count
        "The version that runs.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_tell_kind_and_unit() {
        let mut seen = std::collections::HashSet::new();
        for metric in TABLE {
            assert!(seen.insert(metric.name), "{} twice", metric.name);
            assert_eq!(metric.name, format!("outgate_{}", metric.short));
            assert_eq!(metric.kind == Kind::Counter, metric.name.ends_with("_total"), "{}", metric.name);
            assert_eq!(metric.kind == Kind::Info, metric.name.ends_with("_info"), "{}", metric.name);
            assert!(metric.kind != Kind::Histogram || metric.unit == Unit::Seconds, "{}", metric.name);
            if metric.unit != Unit::Count {
                assert!(metric.name.contains(metric.unit.as_str()), "{}", metric.name);
            }
            assert!(metric.help.ends_with('.'), "{}", metric.name);
        }
    }
}
