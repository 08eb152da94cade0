//! `outgate diff`: what a change of the policy would change, and for which recorded queries.

use serde_json::Value;

use crate::dns::{Client, query};
use crate::harness::Site;

const OLD: &str = r#"[[segment]]
name    = "shop"
clients = ["127.0.0.1"]

[[segment]]
name    = "trial"
clients = ["127.0.0.2"]
mode    = "observe"
until   = 2099-01-01T00:00:00Z

[[rule]]
id       = "corp"
action   = "allow"
segments = ["*"]
names    = ["*.corp.example"]

[[rule]]
id       = "partner"
action   = "allow"
segments = ["shop"]
names    = ["api.example.net", "old.example.net"]
ports    = ["tcp/443", "tcp/80"]
"#;

/// What the text and the JSON of this change are is what is documented.
const NEW: &str = r#"# A change for review.
[[segment]]
name    = "shop"
clients = ["127.0.0.1", "127.0.0.3"]
refusal = "refused"

[[segment]]
name    = "trial"
clients = ["127.0.0.2"]

[[rule]]
id       = "corp"
action   = "allow"
segments = ["*"]
names    = ["*.corp.example"]
except   = ["www.corp.example"]

[[rule]]
id       = "partner"
action   = "allow"
segments = ["shop"]
names    = ["api.example.net", "*.eu.example.net"]
ports    = ["tcp/443"]

[[rule]]
id       = "time"
action   = "allow"
segments = ["trial"]
networks = ["192.88.99.1"]
ports    = ["udp/123"]
"#;

fn site() -> Site {
    let site = Site::new();
    site.file("old/a.toml", OLD);
    site.file("new/a.toml", NEW);
    site
}

#[test]
fn it_says_what_a_change_changes() {
    let site = site();
    let ended = site.run(&["diff", "old", "new"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(1), ""));
    let expected = "\
~ segment shop  old/a.toml:1:1 → new/a.toml:2:1
    refusal: nxdomain → refused
~ segment trial  old/a.toml:5:1 → new/a.toml:7:1
    mode: observe until 2099-01-01T00:00:00.000000Z → enforce
~ clients 127.0.0.3/32: no segment → shop (new/a.toml:2:1)
+ allowed A AAAA for shop
    *.eu.example.net
      before: refused, no rule
      after:  allowed, partner (new/a.toml:18:1): tcp/443
- denied A AAAA for shop
    old.example.net
      before: allowed, partner (old/a.toml:17:1): tcp/80 tcp/443
      after:  refused, no rule
- narrowed A AAAA for shop
    api.example.net
      before: allowed, partner (old/a.toml:17:1): tcp/80 tcp/443
      after:  allowed, partner (new/a.toml:18:1): tcp/443
- denied A AAAA for shop, trial
    www.corp.example
      before: allowed, corp (old/a.toml:11:1): tcp/443
      after:  refused, no rule
+ opened 192.88.99.1/32 udp/123 for trial
      after:  time (new/a.toml:25:1)
";
    assert_eq!(ended.stdout, expected, "\n{}", ended.stdout);

    let ended = site.run(&["diff", "old", "new", "--json"]);
    let said: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((ended.code, &said["equal"]), (Some(1), &Value::Bool(false)));
    let denied = said["names"].as_array().unwrap().iter().find(|change| change["names"][0] == "www.corp.example");
    let denied = denied.unwrap();
    assert_eq!(denied["segments"], serde_json::json!(["shop", "trial"]));
    assert_eq!(denied["before"]["rules"][0], serde_json::json!({ "id": "corp", "place": "old/a.toml:11:1" }));
    assert_eq!(denied["after"], serde_json::json!({ "verdict": "deny", "rules": [], "opens": [] }));

    let ended = site.run(&["diff", "new", "new"]);
    assert_eq!((ended.code, ended.stdout.as_str(), ended.stderr.as_str()), (Some(0), "", ""));
}

#[test]
fn what_cannot_be_compared_is_no_difference() {
    let site = site();
    let ended = site.run(&["diff", "old", "nowhere"]);
    assert_eq!(ended.code, Some(2));
    assert_eq!(ended.stderr, "outgate: nowhere: no such directory; name the policy directories, old and new\n");
    site.file("new/a.toml", "[[segment]]\nname = 7\n");
    let ended = site.run(&["diff", "old", "new"]);
    assert!(ended.code == Some(2) && ended.stderr.contains("new/a.toml:2:8: `name` is"), "{ended:?}");
    let ended = site.run(&["diff", "old", "old", "--log", "gone.jsonl"]);
    assert!(ended.code == Some(2) && ended.stderr.contains("gone.jsonl: there is no such log"), "{ended:?}");
}

#[test]
fn recorded_queries_are_put_to_both() {
    let site = site();
    site.file("policy/loop.toml", OLD);
    let node = site.start();
    for (client, name, times) in [
        ("127.0.0.1", "www.corp.example", 3),
        ("127.0.0.1", "gone.corp.example", 1),
        ("127.0.0.1", "a.eu.example.net", 2),
        ("127.0.0.2", "www.corp.example", 1),
        ("127.0.0.2", "ns1.corp.example", 1),
        ("127.0.0.2", "www.example.org", 1),
        ("127.0.0.3", "ns1.corp.example", 1),
    ] {
        let client = Client::from(client.parse().unwrap(), site.dns);
        for _ in 0..times {
            client.ask(&query(name, hickory_proto::rr::RecordType::A)).unwrap();
        }
    }
    drop(node);
    let log = std::fs::read(site.path("query.jsonl")).unwrap();
    let torn = [&log[..], b"{\"v\":1,\"type\":\"query\",\"id\":\n"].concat();
    std::fs::write(site.path("query.jsonl"), torn).unwrap();

    let ended = site.run(&["diff", "old", "new", "--log", "query.jsonl", "--json"]);
    let said: Value = serde_json::from_str(&ended.stdout).unwrap();
    let replay = &said["replay"];
    let questions: Vec<String> = replay["questions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| {
            let text = |key: &str| row[key].as_str().unwrap().to_owned();
            let verdict = |side: &str| row[side]["verdict"].as_str().unwrap().to_owned();
            let (client, name) = (text("client"), text("qname"));
            format!(
                "{} {client} {name} {} {} → {}",
                text("change"),
                row["queries"],
                verdict("before"),
                verdict("after")
            )
        })
        .collect();
    assert_eq!(
        questions,
        [
            "allowed 127.0.0.1 a.eu.example.net 2 deny → allow",
            "allowed 127.0.0.3 ns1.corp.example 1 deny → allow",
            "denied 127.0.0.1 www.corp.example 3 allow → deny",
            "denied 127.0.0.2 www.corp.example 1 allow → deny",
            "denied 127.0.0.2 www.example.org 1 observe → deny",
        ]
    );
    assert_eq!((&replay["read"]["queries"], &replay["read"]["damaged"]), (&10.into(), &1.into()));
    let last = replay["questions"][0]["last"].as_str().unwrap();
    assert!(site.queries().iter().any(|record| record["ts"] == last), "{last}");

    let ended = site.run(&["diff", "old", "new", "--log", "query.jsonl"]);
    let replayed = &ended.stdout[ended.stdout.find("+ 3 recorded").unwrap_or_else(|| panic!("{}", ended.stdout))..];
    let expected = [
        "+ 3 recorded queries of 2 clients would be allowed, and were not",
        "           2 127.0.0.1 a.eu.example.net A, last ",
        "             refused, no rule → allowed, partner (new/a.toml:18:1): tcp/443",
        "           1 127.0.0.3 ns1.corp.example A, last ",
        "             refused, no rule → allowed, corp (new/a.toml:11:1): tcp/443",
        "- 5 recorded queries of 2 clients would be refused, and were not",
        "           3 127.0.0.1 www.corp.example A, last ",
        "             allowed, corp (old/a.toml:11:1): tcp/443 → refused, no rule",
        "           1 127.0.0.2 www.corp.example A, last ",
        "             allowed, corp (old/a.toml:11:1): tcp/443 → refused, no rule",
        "           1 127.0.0.2 www.example.org A, last ",
        "             refused, not enforced, no rule → refused, no rule",
        "replayed 10 queries and ",
        "  query.jsonl: 1 lines are no record; the first is line ",
        "8 differ; from ",
    ];
    let lines: Vec<&str> = replayed.lines().collect();
    assert_eq!(lines.len(), expected.len(), "{replayed}");
    for (line, expected) in lines.iter().zip(expected) {
        assert!(line.starts_with(expected), "{line}\n{expected}");
    }
    // A log alone makes a difference where the clock does; here it makes none.
    let ended = site.run(&["diff", "new", "new", "--log", "query.jsonl"]);
    assert!(ended.code == Some(0) && ended.stdout.starts_with("replayed 10 queries"), "{ended:?}");
}
