//! contrib/grafana and contrib/prometheus against a Prometheus that scrapes a loaded node: every panel shows something, every
//! rule is evaluated, and no expression names a metric that is not in the table.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use outgate::metric::TABLE;
use serde_json::Value;

use crate::dns::{Client, Stream, a};
use crate::harness::{Site, free_port, loopback};
use crate::programs::{Running, are_here, command};
use crate::upstream::{Upstream, with_addresses};

/// A scrape each half second, twice for a rate, and the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

fn contrib(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib").join(path)
}

/// Title and expression of every panel of every dashboard.
fn panels() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(contrib("grafana")).unwrap() {
        let path = entry.unwrap().path();
        let board: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        let mut ids = BTreeSet::new();
        for panel in board["panels"].as_array().unwrap() {
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "{}: a panel's id twice", path.display());
            let title = format!("{}: {}", path.file_stem().unwrap().display(), panel["title"].as_str().unwrap());
            let targets = panel["targets"].as_array().into_iter().flatten();
            found.extend(targets.map(|target| (title.clone(), target["expr"].as_str().unwrap().to_owned())));
        }
    }
    assert!(found.len() > 60, "{}", found.len());
    found
}

/// What Grafana puts in for its variables.
fn filled_in(expression: &str) -> String {
    let variables = [("$__rate_interval", "20s"), ("$__range", "20s"), ("$instance", ".*"), ("$segment", ".*")];
    variables.iter().fold(expression.to_owned(), |text, (name, value)| text.replace(name, value))
}

/// The words of an expression that look like metrics of ours.
fn metrics(expression: &str) -> impl Iterator<Item = &str> {
    let words = expression.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
    words.filter(|word| word.starts_with("outgate_"))
}

/// An expression without what it says where there is nothing, if the node has all that it is made of.
fn in_earnest<'a>(expression: &'a str, exposed: &str) -> &'a str {
    let there = |metric: &str| exposed.contains(&format!("\n{metric}{{")) || exposed.contains(&format!("\n{metric} "));
    let bare = expression.rsplit_once(" or vector(").map(|(bare, _)| bare);
    bare.filter(|bare| metrics(bare).all(there)).unwrap_or(expression)
}

/// Those of an expression that are not in the table.
fn strangers(expression: &str) -> Vec<String> {
    let ours = metrics(expression);
    let known = |word: &str| {
        let bare = ["_bucket", "_sum", "_count"].iter().find_map(|end| word.strip_suffix(end));
        TABLE.iter().any(|metric| metric.name == word || Some(metric.name) == bare)
    };
    ours.filter(|word| !known(word)).map(ToOwned::to_owned).collect()
}

#[test]
fn panels_and_alerts_name_metrics_of_the_table() {
    for (title, expression) in panels() {
        assert_eq!(strangers(&expression), [""; 0], "{title}: {expression}");
    }
    for file in ["prometheus/alerts.yml", "prometheus/alerts_test.yml"] {
        assert_eq!(strangers(&fs::read_to_string(contrib(file)).unwrap()), [""; 0], "{file}");
    }
    assert_eq!(strangers("rate(outgate_queries_totals[5m])"), ["outgate_queries_totals"]);
}

#[test]
fn promtool_likes_the_rules_and_they_fire_as_they_should() {
    if !are_here(&["promtool"]) {
        return;
    }
    for arguments in [["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]] {
        let ended = command("promtool")
            .args(arguments)
            .current_dir(contrib("prometheus"))
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .output()
            .unwrap();
        let said = [ended.stdout, ended.stderr].concat();
        assert!(ended.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&said));
    }
}

/// A Prometheus of its own, with the rules of contrib.
struct Prometheus {
    address: SocketAddr,
    _running: Running,
}

impl Prometheus {
    fn start(site: &Site) -> Self {
        let address = loopback(free_port());
        let rules = contrib("prometheus/alerts.yml");
        site.file(
            "prometheus.yml",
            &format!(
                "global: {{ scrape_interval: 500ms, evaluation_interval: 1s }}\nrule_files: ['{}']\nscrape_configs:\n  \
                 - {{ job_name: outgate, static_configs: [{{ targets: ['{}'] }}] }}\n",
                rules.display(),
                site.health
            ),
        );
        let log = fs::File::create(site.path("prometheus.log")).unwrap();
        let running = Running::start(
            command("prometheus")
                .args(["--config.file=prometheus.yml", "--storage.tsdb.path=series", "--log.level=warn"])
                .arg(format!("--web.listen-address={address}"))
                .current_dir(&site.directory)
                .stderr(log),
        );
        Self { address, _running: running }
    }

    fn get(&self, path: &str) -> Option<Value> {
        let mut stream = TcpStream::connect(self.address).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        // HTTP/1.0: a body in one piece.
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        serde_json::from_str(text.split_once("\r\n\r\n")?.1).ok()
    }

    /// What an expression gives now; `None`: nothing to show.
    fn shows(&self, expression: &str) -> Result<bool, String> {
        let encoded: String = expression.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let Some(said) = self.get(&format!("/api/v1/query?query={encoded}")) else { return Ok(false) };
        if said["status"] != "success" {
            return Err(said["error"].to_string());
        }
        let series = said["data"]["result"].as_array().cloned().unwrap_or_default();
        Ok(series.iter().any(|one| one["value"][1].as_str().is_some_and(|value| value != "NaN")))
    }
}

/// A node with all that metrics tell of on loopback: allowed, denied, failed, from zone, cache and upstream, over UDP and TCP,
/// and a sink. Flows need a kernel's firewall.
fn loaded() -> (Site, Upstream) {
    let upstream = Upstream::saying(|question| {
        let name = question.queries[0].name().to_string();
        let mut reply = with_addresses(question, 1);
        if name.starts_with("fail") {
            reply.answers.clear();
            reply.metadata.response_code = ResponseCode::ServFail;
        }
        Some(reply)
    });
    let sink = "[[sink]]\nname = \"copy\"\nkind = \"file\"\nfile = \"copy.jsonl\"\nlinger = \"100ms\"";
    (Site::new().with_servers(&[upstream.address]).with("sink", sink), upstream)
}

fn load(site: &Site, stop: &AtomicBool) {
    let clients: Vec<Client> = (1..5)
        .map(|last| Client::from(IpAddr::from([127, 0, 1, last]), site.dns).patience(Duration::from_secs(3)))
        .collect();
    let mut number = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        for client in &clients {
            number += 1;
            for name in ["www.corp.example", "same.example.net", "not.allowed.example.org"] {
                client.ask(&a(name));
            }
            client.ask(&a(&format!("n{number}.example.net")));
            client.ask(&a(&format!("fail{}.example.net", number % 50)));
        }
        Stream::new(site.dns).ask(&a("www.corp.example"));
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn no_panel_is_empty_and_every_rule_is_evaluated() {
    if !are_here(&["prometheus"]) {
        return;
    }
    let (site, _upstream) = loaded();
    let mut node = site.start();
    let prometheus = Prometheus::start(&site);
    let stop = AtomicBool::new(false);
    let (empty, faults) = std::thread::scope(|scope| {
        scope.spawn(|| load(&site, &stop));
        let watched = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| watch(&site, &prometheus)));
        stop.store(true, Ordering::Relaxed);
        watched.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    node.stop();
    let log = fs::read_to_string(site.path("prometheus.log")).unwrap_or_default();
    assert_eq!(faults, [""; 0], "{log}");
    assert_eq!(empty, [""; 0], "show nothing; what is empty when all is well says `or vector(0)`\n{log}");
}

/// Waits until every panel shows something and every rule was evaluated; what does not, and what is wrong.
fn watch(site: &Site, prometheus: &Prometheus) -> (Vec<String>, Vec<String>) {
    let began = Instant::now();
    let mut waiting = panels();
    let mut faults = Vec::new();
    let mut rules = Vec::new();
    while began.elapsed() < PATIENCE && faults.is_empty() {
        let exposed = site.get("/metrics").map(|(_, text)| text).unwrap_or_default();
        waiting.retain(|(title, expression)| match prometheus.shows(&filled_in(in_earnest(expression, &exposed))) {
            Ok(shown) => !shown,
            Err(fault) => {
                faults.push(format!("{title}: {fault}: {expression}"));
                true
            }
        });
        rules = match prometheus.get("/api/v1/rules") {
            Some(said) => unevaluated(&said, &mut faults),
            None => vec!["Prometheus does not answer".to_owned()],
        };
        if waiting.is_empty() && rules.is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(250));
    }
    let waiting = waiting.into_iter().map(|(title, expression)| format!("{title}: {expression}"));
    (waiting.chain(rules).collect(), faults)
}

/// Rules that were not evaluated yet; those that could not be are faults.
fn unevaluated(said: &Value, faults: &mut Vec<String>) -> Vec<String> {
    let groups = said["data"]["groups"].as_array().cloned().unwrap_or_default();
    let rules: Vec<&Value> = groups.iter().flat_map(|group| group["rules"].as_array()).flatten().collect();
    let broken = rules.iter().filter(|rule| rule["health"] == "err");
    faults.extend(broken.map(|rule| format!("{}: {}", rule["name"], rule["lastError"])));
    if rules.is_empty() {
        return vec!["there are no rules".to_owned()];
    }
    let waiting = rules.iter().filter(|rule| rule["health"] != "ok");
    waiting.map(|rule| rule["name"].to_string()).collect()
}
