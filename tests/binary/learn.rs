//! `outgate learn`: what a segment that observes asks for becomes rules that pass `check` and allow it.

use serde_json::json;

use crate::dns::{Client, a};
use crate::harness::Site;
use crate::upstream::Upstream;

const POLICY: &str = r#"
[[segment]]
name    = "trial"
clients = ["127.0.0.0/8"]
mode    = "observe"
until   = 2099-01-01T00:00:00Z

[[rule]]
id       = "no-ads"
action   = "deny"
segments = ["trial"]
names    = ["ads.example.net"]
"#;

#[test]
fn what_a_node_observed_is_what_the_rules_allow() {
    let upstream = Upstream::start();
    let site = Site::new().with_servers(&[upstream.address]);
    site.file("policy/loop.toml", POLICY);
    let mut node = site.start();
    for client in ["127.0.0.2", "127.0.0.3"] {
        let asker = Client::from(client.parse().unwrap(), site.dns);
        for name in ["shop.example.net", "WWW.Example.com", "ads.example.net", "x.onion", "dns.google"] {
            asker.ask(&a(name)).unwrap();
            asker.ask(&a(name)).unwrap();
        }
    }
    Client::from([127, 0, 0, 2].into(), site.dns).ask(&a("once.example.org")).unwrap();
    assert_eq!(node.stop(), Some(0));
    let ended = site.run(&["learn", "--segment", "trial", "-o", "policy/learned.toml"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), ""), "{}", ended.stderr);
    assert!(
        ended.stderr.ends_with("2 rules with 2 names, for 2 names that were asked for; 8 of 9 queries are covered\n"),
        "{}",
        ended.stderr
    );
    let check = site.run(&["check"]);
    assert_eq!(check.code, Some(0), "{}{}", check.stdout, check.stderr);
    assert!(!check.stdout.contains("learned.toml"), "{}", check.stdout);
    let text = std::fs::read_to_string(site.path("policy/learned.toml")).unwrap();
    assert!(text.contains("#   once.example.org  1 query, 1 client, "), "{text}");
    for (name, expected) in [
        ("shop.example.net", ("allow", "trial-example.net")),
        ("www.example.com", ("allow", "trial-example.com")),
        ("ads.example.net", ("deny", "no-ads")),
        ("once.example.org", ("deny", "")),
    ] {
        let ended = site.run(&["explain", "--json", "--client", "127.0.0.2", name]);
        let said: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
        let found = (said["verdict"].as_str().unwrap(), said["rule"].as_str().unwrap_or_default());
        assert_eq!(found, expected, "{name}");
    }
}

/// A record of a query that a segment let pass.
fn record(day: u32, client: u32, name: &str) -> String {
    let record = json!({
        "v": 1, "type": "query", "id": format!("1-1-{}", day * 100 + client), "node": "test",
        "ts": format!("2026-11-{day:02}T10:00:00.000000Z"), "client": format!("192.0.2.{client}"), "segment": "loop",
        "qname": name, "qtype": "A", "verdict": "deny", "enforced": false, "reason": "default", "rcode": "NOERROR",
    });
    format!("{record}\n")
}

#[test]
fn archives_are_read_and_damage_is_told() {
    let site = Site::new();
    let name = |day, client| record(day, client, "www.example.com");
    site.file("log/archive/query-20261115T000000Z-0.jsonl", &(name(14, 1) + &name(14, 2) + "torn"));
    site.file("log/query.jsonl", &name(15, 1));
    let ended = site.run(&["learn", "--log", "log/query.jsonl"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stdout.contains("\"www.example.com\",  # 3 queries, 2 clients, 2 days, 2026-11-14 … 2026-11-15\n"));
    assert!(ended.stderr.contains("1 lines are no record"), "{}", ended.stderr);
    let again = site.run(&["learn", "--log", "log/query.jsonl"]);
    assert_eq!(again.stdout, ended.stdout);
}

#[test]
fn says_what_is_wrong() {
    let site = Site::new();
    site.file("empty.jsonl", "");
    site.file("few.jsonl", &record(14, 1, "www.example.com"));
    site.file("refused.jsonl", &record(14, 1, "www.example.com").replace("\"enforced\":false,", ""));
    let rows = [
        (
            ["--log", "nowhere.jsonl"].as_slice(),
            "outgate: nowhere.jsonl: there is no such log; name its current file, or the configuration with -c\n",
        ),
        (
            &["--log", "empty.jsonl"],
            "outgate: there is no query in empty.jsonl; name the file of the log, or its directory, with --log\n",
        ),
        (
            &["--log", "few.jsonl"],
            "outgate: 1 queries in few.jsonl are too few to propose rules for: a name must be asked for on several days or \
             by several clients\n",
        ),
        (
            &["--log", "few.jsonl", "--segment", "attic"],
            "outgate: no query of the segment attic in few.jsonl passed because a segment observes; give one mode = \
             \"observe\" and `until`, and learn when it has run for a week; or learn what rules allow with --all\n",
        ),
        (
            &["--log", "refused.jsonl", "--segment", "loop"],
            "note: the segment loop did not observe: 0 queries were allowed and 1 refused; what an observe segment let pass \
             is learned, or with --all what rules allow\n",
        ),
        (&["-c", "nowhere.toml"], "nowhere.toml cannot be read: "),
    ];
    for (arguments, text) in rows {
        let arguments: Vec<&str> = ["learn"].iter().chain(arguments).copied().collect();
        let ended = site.run(&arguments);
        let code = if arguments.contains(&"-c") { 2 } else { 1 };
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(code), ""), "{arguments:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(text), "{arguments:?}: {}", ended.stderr);
    }
}
