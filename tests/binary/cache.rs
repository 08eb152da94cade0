//! What is cached: told where the upstream is silent, dropped on demand.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use crate::dns::{Client, addresses};
use crate::harness::{POLICY, Site, until};
use crate::upstream::{Upstream, with_addresses};

#[test]
fn what_is_flushed_is_asked_again_and_stays_open() {
    let upstream = Upstream::start();
    let site = Site::new().with_servers(&[upstream.address]);
    let mut node = site.start();
    let client = Client::new(site.dns);
    for name in ["a.example.net", "b.example.net", "a.example.net"] {
        assert_eq!(addresses(&client.told(name)), ["198.51.100.7"]);
    }
    assert_eq!(upstream.asked(), 2);
    let ended = site.run(&["flush", "A.example.net."]);
    assert_eq!(
        (ended.code, ended.stdout.as_str()),
        (Some(0), "a.example.net: 1 answers, 0 failures, 1 replies dropped; what is open stays open\n"),
        "{}",
        ended.stderr
    );
    assert_eq!(site.metric("outgate_grants"), 1.0);
    assert_eq!(addresses(&client.told("a.example.net")), ["198.51.100.7"]);
    assert_eq!(upstream.asked(), 3);
    let done: Value = serde_json::from_str(&site.run(&["flush", "example.net", "--below", "--json"]).stdout).unwrap();
    assert_eq!(done, serde_json::json!({ "answers": 2, "failures": 0, "replies": 2 }));
    for name in ["a.example.net", "b.example.net"] {
        assert_eq!(addresses(&client.told(name)), ["198.51.100.7"]);
    }
    assert_eq!(upstream.asked(), 5);
    assert!(node.stderr().contains("cache flushed"), "{}", node.stderr());
    let ended = site.run(&["flush", "a..b"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""), "{}", ended.stderr);
    assert_eq!(node.stop(), Some(0));
    site.verified();
}

#[test]
fn a_silent_upstream_is_bridged_and_one_that_is_back_is_heard_at_once() {
    let silent = Arc::new(AtomicBool::new(false));
    let upstream = {
        let silent = Arc::clone(&silent);
        Upstream::saying(move |question| (!silent.load(Ordering::SeqCst)).then(|| with_addresses(question, 1)))
    };
    let site =
        Site::new().with_servers(&[upstream.address]).with("grant", "[grant]\nttl_min = \"1s\"\nttl_max = \"1s\"");
    let mut node = site.start();
    let client = Client::new(site.dns);
    // The answer, and what the cache did for it.
    let ask = || {
        assert_eq!(addresses(&client.told("a.example.net")), ["198.51.100.7"]);
        site.queries().pop().unwrap()["cache"].as_str().unwrap().to_owned()
    };
    assert_eq!(ask(), "miss");
    silent.store(true, Ordering::SeqCst);
    until("what has ended is told", || ask() == "stale");
    // Now that it is known to be silent, nobody waits.
    until("nobody waits", || ask() == "stale" && site.queries().pop().unwrap()["latency_us"].as_u64() < Some(500_000));
    assert!(site.metric("outgate_cache_stale_total") >= 1.0);
    silent.store(false, Ordering::SeqCst);
    until("the upstream is heard again", || ask() != "stale");
    assert_eq!(node.stop(), Some(0));
    site.verified();
}

#[test]
fn what_a_rule_keeps_warm_is_open_without_a_query() {
    let upstream = Upstream::start();
    let site = Site::new().with_servers(&[upstream.address]);
    let warm = "\n[[rule]]\nid = \"warm\"\naction = \"allow\"\nsegments = [\"loop\"]\nnames = [\"w.example.com\"]\n\
                types = [\"A\"]\nprivate = [\"198.51.100.0/24\"]\nwarm = true\n";
    site.file("policy/warm.toml", warm);
    let mut node = site.start();
    until("the name is warm", || site.metric("outgate_grants") == 1.0);
    let grants = || -> Value { serde_json::from_str(&site.run(&["grants", "--json"]).stdout).unwrap() };
    let open = grants();
    assert_eq!(
        (&open[0]["client"], &open[0]["name"], &open[0]["rule"]),
        (&Value::Null, &"w.example.com".into(), &"warm".into())
    );
    assert_eq!((site.metric("outgate_warm_names"), site.metric("outgate_warm_failing")), (1.0, 0.0));
    assert_eq!((site.queries().len(), upstream.asked()), (0, 1));
    let grant = site.records().into_iter().find(|record| record["type"] == "grant").unwrap();
    assert_eq!((&grant["scope"], &grant["rule"], &grant["client"]), (&"segment".into(), &"warm".into(), &Value::Null));
    // Without the rule it is closed.
    site.file("policy/warm.toml", &warm.replace("warm = true", ""));
    assert_eq!(site.run(&["reload"]).code, Some(0));
    assert_eq!(grants(), Value::Array(Vec::new()));
    until("nothing is kept warm", || site.metric("outgate_warm_names") == 0.0);
    site.file(
        "policy/loop.toml",
        &POLICY.replace("names    = [\"**.example.net\"]", "warm = true\nnames = [\"**.example.net\"]"),
    );
    let ended = site.run(&["check"]);
    assert_eq!(ended.code, Some(2));
    assert!(
        ended.stderr.contains("\"**.example.net\" is no whole name, and the rule keeps its names warm"),
        "{}",
        ended.stderr
    );
    assert_eq!(node.stop(), Some(0));
    site.verified();
}
