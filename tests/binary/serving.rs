//! What a client may rely on, and what an operator sees of it.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;
use serde_json::Value;

use crate::dns::{Client, Stream, a, addresses, code, extended_error, query, with_edns};
use crate::harness::{Site, ZONE, until};
use crate::upstream::Upstream;

#[test]
fn replies_come_from_the_address_that_was_asked() {
    let mut site = Site::new();
    let port = site.dns.port();
    site = site.with("listen", format!("[listen]\ndns = [\"0.0.0.0:{port}\", \"[::]:{port}\"]\nworkers = 2"));
    let mut node = site.start();
    for address in ["127.0.0.1", "127.0.0.7", "127.255.255.254", "::1"] {
        let server = (address.parse::<std::net::IpAddr>().unwrap(), port).into();
        // A connected socket takes replies from nowhere else; many of them, so that every worker is met.
        for _ in 0..16 {
            assert_eq!(addresses(&Client::new(server).told("www.corp.example")), ["192.0.2.80"]);
        }
        Stream::new(server).ask(&a("www.corp.example"));
    }
    assert_eq!(node.stop(), Some(0));
    site.verified();
}

#[test]
fn a_client_of_ipv6_is_itself_in_the_log() {
    let mut site = Site::new();
    site.dns.set_ip("::1".parse().unwrap());
    let listen = format!("[listen]\ndns = [\"{}\"]", site.dns);
    let site = site.with("listen", listen);
    let _node = site.start();
    let reply = Client::new(site.dns).ask(&query("www.corp.example", RecordType::AAAA)).unwrap();
    assert_eq!(addresses(&reply), ["2001:db8::80"]);
    assert_eq!(site.queries()[0]["client"], "::1");
}

#[test]
fn an_answer_too_long_for_a_datagram_is_cut_and_whole_over_tcp() {
    let site = Site::new();
    let strings = |count: usize| vec![format!("\"{}\"", "x".repeat(200)); count].join(" ");
    let zone = format!("{ZONE}some TXT {}\nmany TXT {}\n", strings(4), strings(9));
    site.file("zones/corp.example.zone", &zone);
    let _node = site.start();
    let client = Client::new(site.dns);
    // Name, size that the client takes, whether it fits.
    for (name, size, fits) in [
        ("some.corp.example", None, false),
        ("some.corp.example", Some(512), false),
        ("some.corp.example", Some(1232), true),
        ("some.corp.example", Some(65_535), true),
        ("many.corp.example", Some(1232), false),
        // 1,232 is the most that leaves, whatever a client takes (RFC 9715 §3.1).
        ("many.corp.example", Some(4096), false),
    ] {
        let question = query(name, RecordType::TXT);
        let question = size.map_or_else(|| question.clone(), |size| with_edns(question.clone(), size));
        let packet = client.exchange(&question.to_vec().unwrap()).unwrap();
        assert!(packet.len() <= usize::from(size.unwrap_or(512)).clamp(512, 1232), "{name} {size:?}");
        let reply = Message::from_vec(&packet).unwrap();
        assert_eq!((reply.metadata.truncation, reply.answers.is_empty()), (!fits, !fits), "{name} {size:?}");
        assert_eq!(reply.edns.is_some(), size.is_some(), "an OPT to those who sent one");
        let record = site.queries().pop().unwrap();
        assert_eq!(record["flags"].as_array().unwrap().contains(&"TC".into()), !fits, "{record}");
        assert_eq!(record["answers"].is_array(), fits, "the log has what was sent");
        assert_eq!(record["bytes"], packet.len());
    }
    let reply = Stream::new(site.dns).ask(&query("many.corp.example", RecordType::TXT));
    assert_eq!((reply.answers.len(), reply.metadata.truncation), (1, false));
}

#[test]
fn letters_come_back_as_they_were_sent_and_go_nowhere() {
    let upstream = Upstream::start();
    let site = Site::new().with_servers(&[upstream.address]);
    let _node = site.start();
    let client = Client::new(site.dns);
    for name in ["wWw.CoRp.eXaMpLe", "X.eXaMPLe.Net", "dEnIeD.eXaMpLe.oRg", "X.example.net"] {
        let question = a(name).to_vec().unwrap();
        let reply = client.exchange(&question).unwrap();
        assert!(reply[12..].starts_with(&question[12..]), "{name}");
    }
    let names: HashSet<String> = site.queries().iter().map(|record| record["qname"].to_string()).collect();
    assert!(names.iter().all(|name| *name == name.to_lowercase()), "{names:?}");
    assert_eq!(upstream.asked(), 1, "one question, whatever its letters");
}

#[test]
fn a_denied_name_goes_nowhere() {
    let upstream = Upstream::start();
    let site = Site::new().with_servers(&[upstream.address]);
    let _node = site.start();
    let client = Client::new(site.dns);
    for name in ["example.org", "example.net", "a.example.com", "never.corp.example", "5.10.in-addr.arpa"] {
        for kind in [RecordType::A, RecordType::TXT, RecordType::ANY, RecordType::NS, RecordType::HTTPS] {
            let reply = client.ask(&with_edns(query(name, kind), 1232)).unwrap();
            assert!(reply.answers.is_empty() && extended_error(&reply).is_some(), "{name} {kind}: {reply:?}");
        }
    }
    assert_eq!(upstream.asked(), 0);
    assert!(site.queries().iter().all(|record| record["verdict"] == "deny" && record["upstream"].is_null()));
}

#[test]
fn what_is_told_is_open_and_recorded_before() {
    let upstream = Upstream::start();
    let site = Site::new().with_servers(&[upstream.address]);
    let _node = site.start();
    let reply = Client::new(site.dns).told("x.example.net");
    // The answer is here: its record is there, and its grant before it.
    let records = site.records();
    let place = |kind: &str| records.iter().position(|record| record["type"] == kind).unwrap();
    assert!(place("grant") < place("query"));
    assert_eq!(records[place("query")]["answers"][0]["data"], addresses(&reply)[0].as_str());
    let grants: Value = serde_json::from_str(&site.run(&["grants", "--json"]).stdout).unwrap();
    assert_eq!(grants[0]["address"], "198.51.100.7");
    assert!(grants[0]["remaining_s"].as_u64().unwrap() >= 60, "{grants}");
    assert_eq!(site.run(&["grants", "--name", "y.example.net", "--json"]).stdout, "[]\n");
}

#[test]
fn a_dead_upstream_is_servfail_within_two_seconds_and_no_reason_to_be_unready() {
    let silent = Upstream::silent();
    let site = Site::new().with_servers(&[silent.address]);
    let mut node = site.start();
    let start = Instant::now();
    let reply = Client::new(site.dns).ask(&with_edns(a("x.example.net"), 1232)).unwrap();
    assert!(start.elapsed() < Duration::from_millis(2500), "{:?}", start.elapsed());
    assert_eq!((code(&reply), extended_error(&reply)), (ResponseCode::ServFail, Some(22)));
    let record = site.queries().pop().unwrap();
    assert_eq!((&record["verdict"], &record["reason"]), (&"error".into(), &"upstream".into()));
    assert!(record["latency_us"].as_u64().unwrap() < 2_000_000, "{record}");
    assert_eq!(record["upstream"], "default");
    assert_eq!(site.get("/health/ready").unwrap().0, 200);
    // Local names are answered as before.
    assert_eq!(addresses(&Client::new(site.dns).told("www.corp.example")), ["192.0.2.80"]);
    let status: Value = serde_json::from_str(&site.run(&["status", "--json"]).stdout).unwrap();
    assert!(status["upstreams"][0]["servers"][0]["timeouts"].as_u64().unwrap() > 0, "{status}");
    assert!(site.run(&["status"]).stdout.contains("default"));
    assert_eq!(node.stop(), Some(0));
    site.verified();
}

#[test]
fn the_next_server_answers_where_one_is_silent_or_gone() {
    let (silent, alive) = (Upstream::silent(), Upstream::start());
    let gone = Upstream::start().address;
    let site = Site::new().with_servers(&[silent.address, gone, alive.address]);
    let _node = site.start();
    let client = Client::new(site.dns);
    for number in 0..10 {
        let reply = client.told(&format!("x{number}.example.net"));
        assert_eq!(addresses(&reply), ["198.51.100.7"], "{reply:?}");
    }
    assert!(alive.asked() >= 10);
}

#[test]
fn the_health_door_says_what_it_should_and_nothing_else() {
    let site = Site::new();
    let _node = site.start();
    let (status, body) = site.get("/health/live").unwrap();
    assert_eq!((status, body.trim()), (200, "{\"live\":true}"));
    let (status, body) = site.get("/health/ready").unwrap();
    assert_eq!((status, body.trim()), (200, "{\"ready\":true,\"waiting\":[]}"));
    for path in ["/", "/v1/status", "/v1/reload", "/metrics/", "/../etc/passwd", "//health/live"] {
        assert_eq!(site.get(path).unwrap().0, 404, "{path}");
    }
}

/// Every sample of a text in Prometheus' format 0.0.4, which is checked.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let (mut typed, mut found) = (HashSet::new(), BTreeMap::new());
    assert!(text.ends_with('\n'));
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(comment) = line.strip_prefix("# ") {
            let words: Vec<&str> = comment.splitn(3, ' ').collect();
            assert!(matches!(words[..], ["HELP" | "TYPE", _, _]), "{line}");
            if words[0] == "TYPE" {
                assert!(["counter", "gauge", "histogram"].contains(&words[2]), "{line}");
                assert!(typed.insert(words[1].to_owned()), "typed twice: {line}");
            }
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
        let name = series.split('{').next().unwrap();
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name);
        assert!(typed.contains(family) || typed.contains(name), "no TYPE before {line}");
        assert!(name.starts_with("outgate_") && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{line}");
        assert!(!series.contains("127.0.0") || series.contains("revision"), "a client in a label: {line}");
        assert!(found.insert(series.to_owned(), value.parse().unwrap()).is_none(), "twice: {line}");
    }
    found
}

#[test]
fn the_counters_are_the_log() {
    let (upstream, silent) = (Upstream::start(), Upstream::silent());
    let site = Site::new().with(
        "upstream",
        format!(
            "[[upstream]]\nname = \"default\"\nservers = [\"udp://{}\"]\n\n\
             [[upstream]]\nname = \"dead\"\nzones = [\"dead.example.net\"]\nservers = [\"udp://{}\"]",
            upstream.address, silent.address
        ),
    );
    let _node = site.start();
    let client = Client::new(site.dns);
    for name in ["www.corp.example", "x.example.net", "y.example.net", "example.org", "x.dead.example.net"] {
        client.told(name);
        client.told(name);
        Stream::new(site.dns).ask(&a(name));
    }
    client.socket.send(b"junk").unwrap();
    client.exchange(&[0; 12]).unwrap();
    let queries = site.queries();
    assert_eq!(queries.len(), 17);
    let (_, text) = site.get("/metrics").unwrap();
    let samples = samples(&text);
    let sum = |name: &str| -> f64 {
        samples.iter().filter(|(series, _)| series.split('{').next() == Some(name)).map(|(_, value)| value).sum()
    };
    let count = |key: &str, value: &str| queries.iter().filter(|record| record[key] == value).count() as f64;
    assert_eq!(sum("outgate_queries_total"), 17.0);
    for verdict in ["allow", "deny", "error"] {
        let of: f64 = samples
            .iter()
            .filter(|(series, _)| {
                series.starts_with("outgate_queries_total{") && series.contains(&format!("verdict=\"{verdict}\""))
            })
            .map(|(_, value)| value)
            .sum();
        assert_eq!(of, count("verdict", verdict), "{verdict}");
    }
    assert_eq!(sum("outgate_refusals_total"), count("verdict", "deny") + count("verdict", "error"));
    for (series, value) in samples.iter().filter(|(series, _)| series.starts_with("outgate_refusals_total")) {
        let reason = series.split('"').nth(1).unwrap();
        let refused = |record: &&Value| record["reason"] == reason && record["verdict"] != "allow";
        assert_eq!(*value, queries.iter().filter(refused).count() as f64, "{series}");
    }
    let answered = queries.iter().filter(|record| record["rcode"].is_string()).count() as f64;
    assert_eq!(sum("outgate_responses_total"), answered);
    assert_eq!(sum("outgate_silences_total"), 17.0 - answered);
    assert_eq!(sum("outgate_query_duration_seconds_count"), 17.0);
    assert_eq!(sum("outgate_audit_records_total"), site.records().len() as f64);
    assert_eq!(sum("outgate_cache_hits_total"), count("cache", "hit") + count("cache", "open"));
    assert_eq!(sum("outgate_cache_misses_total"), count("cache", "miss"));
    let waited =
        |record: &&Value| record["reason"] == "upstream" || record["cache"] == "miss" || record["cache"] == "zone";
    let slow = samples["outgate_query_duration_seconds_count{path=\"slow\"}"];
    assert_eq!(slow, queries.iter().filter(waited).count() as f64, "whoever waited for an upstream was slow");
    let status: Value = serde_json::from_str(&site.run(&["status", "--json"]).stdout).unwrap();
    for verdict in ["allow", "deny", "error"] {
        assert_eq!(status["queries"][verdict].as_f64(), Some(count("verdict", verdict)), "{verdict}");
    }
}

#[test]
fn many_clients_at_once_lose_nothing() {
    let upstream = Upstream::start();
    let site = Site::new().with_servers(&[upstream.address]);
    let mut node = site.start();
    let ask = |number: u8| {
        let client = Client::from([127, 0, 1, number].into(), site.dns);
        let names = ["www.corp.example", "example.org", "x.example.net", "y.example.net"];
        (0..250).filter(|count| client.ask(&a(names[count % 4])).is_some()).count()
    };
    let answered: usize = std::thread::scope(|scope| {
        let clients: Vec<_> = (1..=8).map(|number| scope.spawn(move || ask(number))).collect();
        clients.into_iter().map(|client| client.join().unwrap()).sum()
    });
    assert_eq!(answered, 2000);
    assert_eq!(site.queries().len(), 2000);
    assert_eq!(site.metric_sum("outgate_queries_total"), 2000.0);
    until("nothing waits", || site.metric("outgate_slow_queue_depth") == 0.0);
    assert_eq!(node.stop(), Some(0));
    site.verified();
}
