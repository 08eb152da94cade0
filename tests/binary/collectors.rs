//! What the log says reaches collectors over HTTP, at least once, whatever becomes of them and of the node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::rr::Name;
use serde_json::Value;

use crate::collector::{Act, Collector, Speaks};
use crate::dns::{Client, a};
use crate::harness::{BOUND, Site, until};
use crate::upstream::Upstream;

/// Labels that somebody asks for to break what reads them.
const HOSTILE: &[&[u8]] = &[
    b"quote\"",
    b"back\\",
    b"nul\0",
    b"feed\n\r",
    b"{\"create\":{}}",
    b"high\xff\xfe",
    "\u{2028}\u{feff}".as_bytes(),
    b"semi;--",
    b"</script>",
    b"|=,\t",
];

/// A sink of the configuration for each of these.
fn sinks(collectors: &[(&str, &str, &Collector)]) -> String {
    let tables = collectors.iter().map(|(name, keys, collector)| {
        let address = collector.address;
        format!("[[sink]]\nname = \"{name}\"\nkind = \"http\"\nurl = \"http://{address}\"\nbatch = 50\nlinger = \"0s\"\n{keys}\n")
    });
    tables.collect::<Vec<_>>().join("\n")
}

/// Asks for names, most of them hostile.
fn ask(site: &Site, round: usize) {
    let client = Client::new(site.dns);
    for number in 0..60 {
        let below = format!("n{round}-{number}");
        let labels = [HOSTILE[number % HOSTILE.len()], below.as_bytes(), b"example", b"org"];
        let mut message = a("example.org");
        message.queries[0].set_name(Name::from_labels(labels).unwrap());
        let _answer = client.ask(&message);
    }
}

/// Every record of the log by its id.
fn logged(site: &Site) -> BTreeMap<String, Value> {
    site.records().into_iter().map(|record| (record["id"].as_str().unwrap().to_owned(), record)).collect()
}

/// The collector has every record of the log as it is, and nothing else.
fn assert_has_all(name: &str, collector: &Collector, logged: &BTreeMap<String, Value>) {
    let state = collector.state.lock();
    let missing: Vec<&String> = logged.keys().filter(|id| !state.taken.contains_key(*id)).collect();
    assert!(missing.is_empty(), "{name}: {} of {} are missing, {missing:?}", missing.len(), logged.len());
    for (id, came) in &state.taken {
        let record = logged.get(id).unwrap_or_else(|| panic!("{name}: {id} is not in the log"));
        assert!(came.iter().all(|taken| taken == record), "{name}: {came:?} is {record}");
    }
}

#[test]
fn every_record_reaches_every_collector_through_their_failures_and_a_kill() {
    let upstream = Upstream::start();
    let [splunk, bulk, lines] =
        [Speaks::Splunk, Speaks::Bulk, Speaks::Lines].map(|speaks| Collector::start(speaks, None));
    let busy = || Act::Say(503, "Retry-After: 0\r\n", String::new());
    splunk.script([busy(), Act::TakeAndClose, Act::Serve, busy(), Act::Close]);
    bulk.script([Act::Items(vec![(0, 429, "busy"), (3, 503, "gone")]), Act::TakeAndBreak, Act::Serve, busy()]);
    lines.script([Act::TakeAndClose, Act::Serve, Act::Flood("SSH-2.0-server\r\n", "x"), Act::TakeAndClose]);
    splunk.state.lock().index = Some("dns".to_owned());
    bulk.state.lock().index = Some("logs-outgate".to_owned());
    for collector in [&splunk, &bulk, &lines] {
        collector.state.lock().largest = Some(20_000);
    }
    let all = [
        ("hec", "api = \"splunk\"\nindex = \"dns\"", &splunk),
        ("bulk", "api = \"elasticsearch\"\nindex = \"logs-outgate\"\nformat = \"json\"", &bulk),
        ("lines", "api = \"ndjson\"\ngzip = true", &lines),
    ];
    let site = Site::new().with_servers(&[upstream.address]).with("sink", sinks(&all));
    let mut node = site.start();
    ask(&site, 0);
    // Somewhere in the middle of a delivery.
    until("some records came", || all.iter().all(|(_, _, collector)| !collector.ids().is_empty()));
    node.kill();
    let mut node = site.start();
    ask(&site, 1);
    until("every record of the second start came", || {
        let logged = logged(&site);
        all.iter().all(|(_, _, collector)| logged.keys().all(|id| collector.state.lock().taken.contains_key(id)))
    });
    assert_eq!(node.stop(), Some(0), "{}", node.stderr());
    let logged = logged(&site);
    assert!(logged.len() > 120, "{}", logged.len());
    let kinds: BTreeSet<&str> = logged.values().filter_map(|record| record["type"].as_str()).collect();
    assert!(kinds.contains("query") && kinds.contains("log"), "{kinds:?}");
    for (name, _, collector) in all {
        assert_has_all(name, collector, &logged);
    }
    let times = |collector: &Collector| collector.state.lock().taken.values().map(Vec::len).max();
    // What came without an answer came again where ids are not looked at, and only there.
    assert!(times(&lines) > Some(1));
    assert_eq!(times(&bulk), Some(1));
}

#[test]
fn a_collector_that_is_away_delays_records_and_nothing_else() {
    let away = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = away.local_addr().unwrap();
    drop(away);
    let table = format!(
        "[[sink]]\nname = \"away\"\nkind = \"http\"\napi = \"ndjson\"\nurl = \"http://{address}\"\nlinger = \"0s\""
    );
    let site = Site::new().with("sink", table);
    let mut node = site.start();
    Client::new(site.dns).told("www.corp.example");
    until("the journal says what is wrong", || node.stderr().contains("cannot be connected to"));
    assert_eq!(node.stop(), Some(0));
    let before = logged(&site).len();
    // It comes back, and everything since the first start is delivered.
    let collector = Collector::on(TcpListener::bind(address).unwrap(), Speaks::Lines, None, Arc::default());
    let mut node = site.start();
    until("what waited came", || collector.ids().len() >= before);
    assert_eq!(node.stop(), Some(0));
    assert_has_all("away", &collector, &logged(&site));
    // One that never answers does not keep the node.
    collector.script(std::iter::repeat_n(Act::Silence, 100));
    let mut node = site.start();
    until("it was asked", || collector.state.lock().script.len() < 100);
    let began = Instant::now();
    assert_eq!(node.stop(), Some(0));
    assert!(began.elapsed() < BOUND.min(Duration::from_secs(10)), "{:?}", began.elapsed());
}
