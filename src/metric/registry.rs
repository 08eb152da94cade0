//! The values of all metrics, and their text for Prometheus.
//!
//! Counters and gauges live in the recorder of metrics-exporter-prometheus. It takes single observations only and
//! never forgets a series, so histograms (counted in buckets already) and infos (whose labels change) are ours.

use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Write as _;
use std::sync::Arc;

use metrics::{Key, Label, Level, Metadata, Recorder as _};
use metrics_exporter_prometheus::formatting::{sanitize_description, sanitize_label_value};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use parking_lot::Mutex;

use super::{
    CACHE_FAILURES, CACHE_HITS, CACHE_MISSES, CACHE_STALE, Counter, Distribution, Gauge, Histogram, Info, Kind, Metric,
    POLICY_SHADOW, Path, QUERIES, QUERY_DURATION, REFUSALS, RESPONSES, Row, SILENCES, TABLE, Tallies, Words,
};

/// The recorder asks for the origin of a metric and makes no use of it.
const ORIGIN: Metadata<'static> = Metadata::new("outgate", Level::INFO, None);

/// The values of all metrics. One per process, owned by the app.
///
/// What [`Tally`](super::Tally) counts ([`QUERIES`], [`REFUSALS`], [`SILENCES`], [`RESPONSES`], [`QUERY_DURATION`]) is
/// set when the registry is rendered and is not to be set by anyone else.
pub struct Registry {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    tallies: Tallies,
    /// By metric, then by rendered labels.
    histograms: Mutex<BTreeMap<&'static str, BTreeMap<String, Arc<Distribution>>>>,
    /// By metric: rendered labels.
    infos: Mutex<BTreeMap<&'static str, String>>,
}

impl Registry {
    /// No values yet; `words` are the labels of what is counted per query.
    #[must_use]
    pub fn new(words: Words) -> Self {
        let recorder = PrometheusBuilder::new().build_recorder();
        for metric in TABLE {
            match metric.kind {
                Kind::Counter => recorder.describe_counter(metric.name.into(), None, metric.help.into()),
                Kind::Gauge => recorder.describe_gauge(metric.name.into(), None, metric.help.into()),
                Kind::Histogram | Kind::Info => {}
            }
        }
        Self {
            handle: recorder.handle(),
            recorder,
            tallies: Tallies::new(words),
            histograms: Mutex::default(),
            infos: Mutex::default(),
        }
    }

    /// The counters of the hot path.
    #[must_use]
    pub const fn tallies(&self) -> &Tallies {
        &self.tallies
    }

    /// Sets a gauge.
    pub fn set_gauge<const N: usize>(&self, gauge: Gauge<N>, labels: [&str; N], value: f64) {
        self.recorder.register_gauge(&gauge.0.key(labels), &ORIGIN).set(value);
    }

    /// Adds to a counter.
    pub fn add<const N: usize>(&self, counter: Counter<N>, labels: [&str; N], more: u64) {
        self.recorder.register_counter(&counter.0.key(labels), &ORIGIN).increment(more);
    }

    /// Raises a counter to a total that is counted elsewhere; a total below the last one is ignored.
    pub fn absolute<const N: usize>(&self, counter: Counter<N>, labels: [&str; N], total: u64) {
        self.recorder.register_counter(&counter.0.key(labels), &ORIGIN).absolute(total);
    }

    /// The distribution behind a histogram: to be kept by who records into it.
    #[must_use]
    pub fn histogram<const N: usize>(&self, histogram: Histogram<N>, labels: [&str; N]) -> Arc<Distribution> {
        let rendered = histogram.0.render(labels);
        Arc::clone(self.histograms.lock().entry(histogram.0.name).or_default().entry(rendered).or_default())
    }

    /// Sets an info; its labels before are gone.
    pub fn set_info<const N: usize>(&self, info: Info<N>, labels: [&str; N]) {
        self.infos.lock().insert(info.0.name, info.0.render(labels));
    }

    /// Every value in Prometheus text format 0.0.4.
    #[must_use]
    pub fn render(&self) -> String {
        let merged = self.tallies.merge();
        self.tallies.queries(&merged, |labels, total| self.absolute(QUERIES, labels, total));
        self.tallies.dissents(&merged, |labels, total| self.absolute(POLICY_SHADOW, labels, total));
        self.tallies.refusals(&merged, |labels, total| self.absolute(REFUSALS, labels, total));
        self.tallies.silences(&merged, |labels, total| self.absolute(SILENCES, labels, total));
        self.tallies.responses(&merged, |labels, total| self.absolute(RESPONSES, labels, total));
        self.absolute(CACHE_HITS, [], merged.hits);
        self.absolute(CACHE_MISSES, [], merged.misses);
        self.absolute(CACHE_STALE, [], merged.stale);
        self.absolute(CACHE_FAILURES, [], merged.failures);

        let mut out = self.handle.render();
        for metric in TABLE {
            match metric.kind {
                Kind::Histogram => {
                    let histograms = self.histograms.lock();
                    let shared = histograms.get(metric.name).into_iter().flatten();
                    let shared = shared.map(|(labels, counts)| (labels.clone(), counts.snapshot()));
                    let series: Vec<_> = if metric.name == QUERY_DURATION.0.name {
                        let paths = Path::ALL.map(|path| QUERY_DURATION.0.render([path.as_str()]));
                        paths.into_iter().zip(merged.durations).collect()
                    } else {
                        shared.collect()
                    };
                    if !series.is_empty() {
                        head(metric, "histogram", &mut out);
                    }
                    for (labels, counts) in series {
                        counts.write(metric.name, &labels, &mut out);
                    }
                }
                Kind::Info => {
                    if let Some(labels) = self.infos.lock().get(metric.name) {
                        head(metric, "gauge", &mut out);
                        // Writing to a String cannot fail.
                        let _ = writeln!(out, "{}{{{labels}}} 1", metric.name);
                    }
                }
                Kind::Counter | Kind::Gauge => {}
            }
        }
        out
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("tallies", &self.tallies).finish_non_exhaustive()
    }
}

impl<const N: usize> Row<N> {
    fn key(&self, values: [&str; N]) -> Key {
        let labels = self.labels.iter().zip(values).map(|(label, value)| Label::new(*label, value.to_owned()));
        Key::from_parts(self.name, labels.collect::<Vec<_>>())
    }

    /// `name="value",…`
    fn render(&self, values: [&str; N]) -> String {
        let labels = self.labels.iter().zip(values);
        labels
            .map(|(label, value)| format!("{label}=\"{}\"", sanitize_label_value(value)))
            .collect::<Vec<_>>()
            .join(",")
    }
}

fn head(metric: &Metric, kind: &str, out: &mut String) {
    let help = sanitize_description(metric.help);
    let _ = writeln!(out, "# HELP {0} {help}\n# TYPE {0} {kind}", metric.name);
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashSet};
    use std::time::Duration;

    use super::*;
    use crate::metric::{
        ANSWERS_HELD, BUILD, FIREWALL_ACK, FIREWALL_ELEMENTS, GRANTS, POLICY_REVISION, Sample, UPSTREAM_ANSWERS,
    };
    use crate::record::Rcode;

    fn registry() -> Registry {
        Registry::new(Words {
            verdicts: &["allow", "deny", "error"],
            reasons: &["rule", "default"],
            transports: &["udp", "tcp"],
            dissents: &["denies", "allows"],
        })
    }

    /// Reads text format 0.0.4 strictly: series → value. Every family once, with HELP and TYPE before its samples;
    /// every name and label set of the table; no series twice; buckets rise and end in the count.
    fn parse(text: &str) -> BTreeMap<String, f64> {
        let mut series = BTreeMap::new();
        let mut families = HashSet::new();
        let mut family: Option<(&Metric, String)> = None;
        let mut helped = "";
        let mut last_bucket = 0.0;
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(help) = line.strip_prefix("# HELP ") {
                helped = help.split(' ').next().unwrap();
                continue;
            }
            if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').unwrap();
                assert_eq!(name, helped, "TYPE follows HELP");
                assert!(families.insert(name.to_owned()), "{name} twice");
                let metric = TABLE.iter().find(|metric| metric.name == name).unwrap();
                let expected = if metric.kind == Kind::Info { "gauge" } else { metric.kind.as_str() };
                assert_eq!(kind, expected, "{name}");
                family = Some((metric, name.to_owned()));
                continue;
            }
            let (metric, name) = family.as_ref().unwrap();
            let (key, value) = line.rsplit_once(' ').unwrap();
            let value: f64 = value.parse().unwrap();
            let (sample, labels) = key.split_once('{').unwrap_or((key, "}"));
            let mut names = labels_of(labels.strip_suffix('}').unwrap());
            let suffix = sample.strip_prefix(name.as_str()).unwrap();
            if metric.kind == Kind::Histogram {
                match suffix {
                    "_bucket" => {
                        assert_eq!(names.pop().as_deref(), Some("le"));
                        last_bucket =
                            if key.contains("le=\"0.000025\"") { value } else { f64::max(last_bucket, value) };
                        assert!(value >= last_bucket, "{line} falls");
                    }
                    "_count" => assert!((value - last_bucket).abs() < f64::EPSILON, "{line} is not {last_bucket}"),
                    other => assert_eq!(other, "_sum"),
                }
            } else {
                assert_eq!(suffix, "");
            }
            assert_eq!(names, metric.labels, "{line}");
            assert!(series.insert(key.to_owned(), value).is_none(), "{key} twice");
        }
        series
    }

    /// The names of `a="x",b="y"`, with `\\`, `\"` and `\n` in values.
    fn labels_of(mut text: &str) -> Vec<String> {
        let mut names = Vec::new();
        while !text.is_empty() {
            let (name, rest) = text.split_once("=\"").unwrap();
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
            names.push(name.to_owned());
            let mut end = 0;
            while !rest[end..].starts_with('"') {
                end += if rest[end..].starts_with('\\') { 2 } else { rest[end..].chars().next().unwrap().len_utf8() };
            }
            text = rest[end + 1..].strip_prefix(',').unwrap_or(&rest[end + 1..]);
        }
        names
    }

    #[test]
    fn an_empty_registry_is_valid_text() {
        let series = parse(&registry().render());
        assert_eq!(series["outgate_refusals_total{reason=\"default\"}"], 0.0);
    }

    #[test]
    fn what_was_set_is_what_is_read() {
        let registry = registry();
        let mut tally = registry.tallies().register();
        let sample = Sample {
            segment: registry.tallies().segment("checkout"),
            verdict: 1,
            reason: 1,
            refused: true,
            response: Some(Rcode::NXDOMAIN),
            transport: 1,
            path: Path::Slow,
            cache: None,
            dissent: Some(1),
            micros: 3_000,
        };
        tally.count(&sample);
        let _ = registry.render();
        tally.count(&sample);
        registry.set_gauge(GRANTS, [], 7.0);
        registry.set_gauge(FIREWALL_ELEMENTS, ["gateway"], 2.0);
        registry.add(UPSTREAM_ANSWERS, ["default"], 3);
        registry.add(UPSTREAM_ANSWERS, ["default"], 2);
        registry.absolute(UPSTREAM_ANSWERS, ["corp"], 9);
        registry.absolute(UPSTREAM_ANSWERS, ["corp"], 8);
        registry.histogram(FIREWALL_ACK, ["gateway"]).record(Duration::from_micros(31));
        registry.histogram(FIREWALL_ACK, ["gateway"]).record(Duration::from_micros(80));
        registry.histogram(FIREWALL_ACK, ["cloud"]).record(Duration::from_secs(9));
        registry.histogram(ANSWERS_HELD, []).record(Duration::from_micros(500));
        registry.set_info(BUILD, ["0.1.0"]);
        registry.set_info(POLICY_REVISION, ["9c1f5be27a40d3e1"]);
        registry.set_info(POLICY_REVISION, ["0d1f5be27a40d3e2"]);

        let series = parse(&registry.render());
        for (key, value) in [
            ("queries_total{segment=\"checkout\",verdict=\"deny\"}", 2.0),
            ("queries_total{segment=\"checkout\",verdict=\"allow\"}", 0.0),
            ("policy_shadow_total{segment=\"checkout\",kind=\"allows\"}", 2.0),
            ("refusals_total{reason=\"default\"}", 2.0),
            ("responses_total{rcode=\"NXDOMAIN\",transport=\"tcp\"}", 2.0),
            ("query_duration_seconds_bucket{path=\"slow\",le=\"0.0025\"}", 0.0),
            ("query_duration_seconds_bucket{path=\"slow\",le=\"0.005\"}", 2.0),
            ("query_duration_seconds_sum{path=\"slow\"}", 0.006),
            ("query_duration_seconds_count{path=\"fast\"}", 0.0),
            ("grants", 7.0),
            ("firewall_elements{backend=\"gateway\"}", 2.0),
            ("upstream_answers_total{upstream=\"default\"}", 5.0),
            ("upstream_answers_total{upstream=\"corp\"}", 9.0),
            ("firewall_ack_seconds_count{backend=\"gateway\"}", 2.0),
            ("firewall_ack_seconds_bucket{backend=\"cloud\",le=\"2\"}", 0.0),
            ("firewall_ack_seconds_bucket{backend=\"cloud\",le=\"+Inf\"}", 1.0),
            ("answers_held_seconds_count", 1.0),
            ("build_info{version=\"0.1.0\"}", 1.0),
            ("policy_revision_info{revision=\"0d1f5be27a40d3e2\"}", 1.0),
        ] {
            assert_eq!(series.get(&format!("outgate_{key}")), Some(&value), "{key}");
        }
        assert!(!series.contains_key("outgate_policy_revision_info{revision=\"9c1f5be27a40d3e1\"}"));
    }

    #[test]
    fn label_values_are_escaped() {
        let registry = registry();
        registry.set_gauge(FIREWALL_ELEMENTS, ["a\"b\nc"], 1.0);
        let _ = registry.histogram(FIREWALL_ACK, ["a\"b\nc,d=\"e"]);
        parse(&registry.render());
    }
}
