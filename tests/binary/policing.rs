//! What is said of a policy without a running node: `outgate check`, `outgate test` and `outgate explain`.

use serde_json::Value;

use crate::harness::Site;

const SHIPPED: [(&str, &str); 3] = [
    ("policy/loop.toml", include_str!("../../policy/example.toml")),
    ("policy/tests/example.toml", include_str!("../../policy/tests/example.toml")),
    ("zones/corp.example.zone", include_str!("../../zones/corp.example.zone")),
];

const WORN: &str = r#"
[[segment]]
name    = "loop"
clients = ["127.0.0.0/8"]

[[rule]]
id       = "wide"
action   = "allow"
segments = ["loop"]
names    = ["**.example.net"]
expires  = 2001-01-01T00:00:00Z

[[rule]]
id       = "never"
action   = "deny"
segments = ["*"]
names    = ["*.example.org"]

[[rule]]
id       = "needless"
action   = "allow"
segments = ["loop"]
names    = ["www.example.org"]
"#;

#[test]
fn check_says_what_is_worth_a_look_to_people_and_programs() {
    let site = Site::new();
    site.file("policy/loop.toml", WORN);
    let checked = site.run(&["check"]);
    assert_eq!(checked.code, Some(0), "{checked:?}");
    let lines: Vec<&str> = checked.stdout.lines().collect();
    assert_eq!(
        lines[..2],
        [
            "warning: policy/loop.toml:19:1: the rule needless can allow nothing: all its names are denied by never \
             (policy/loop.toml:13:1)",
            "  remove it, or narrow what denies",
        ]
    );
    assert!(
        lines[2].starts_with("warning: policy/loop.toml:6:1: the rule wide ended ") && lines.len() == 5,
        "{lines:?}"
    );
    assert_eq!(site.run(&["check", "--strict"]).code, Some(1));

    let checked = site.run(&["check", "--json"]);
    let report: Value = serde_json::from_str(&checked.stdout).unwrap();
    let kinds: Vec<_> = report["warnings"].as_array().unwrap().iter().map(|warning| &warning["kind"]).collect();
    assert_eq!(kinds, ["denied", "expired"]);

    let checked = site.run(&["check", "--format", "github"]);
    let annotation = "::warning file=policy/loop.toml,line=19,col=1,title=outgate denied::the rule needless can allow \
                      nothing: all its names are denied by never (policy/loop.toml:13:1)%0Aremove it, or narrow what denies\n";
    assert!(checked.stdout.starts_with(annotation), "{}", checked.stdout);

    site.file("policy/loop.toml", &WORN.replace("\"never\"", "\"ne ver\""));
    let checked = site.run(&["check", "--format", "github"]);
    assert_eq!(checked.code, Some(2));
    let annotation =
        "::error file=policy/loop.toml,line=14,col=12,title=outgate mistake::a rule's id cannot be \"ne ver\"";
    assert!(checked.stdout.starts_with(annotation), "{}", checked.stdout);
    assert_eq!(site.run(&["check", "--strict"]).code, Some(2));
}

#[test]
fn test_tries_the_shipped_cases_and_those_of_the_page() {
    let site = Site::new();
    for (file, text) in SHIPPED {
        site.file(file, text);
    }
    let ended = site.run(&["test"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stdout.starts_with("9 cases, 0 failed, "), "{ended:?}");
    assert_eq!(site.run(&["check", "--strict"]).code, Some(0), "the cases are no part of the policy");

    let page = include_str!("../../docs/testing-policy.md");
    let blocks: Vec<&str> = page.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(!blocks.is_empty());
    site.file("page/cases.toml", &blocks.concat());
    let ended = site.run(&["test", "page"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");

    // What the page shows of a failure is what is printed.
    let shown = page.split("$ outgate test\n").nth(1).unwrap().split("```").next().unwrap();
    let text = SHIPPED[0].1.replace("\"telemetry.corp.example\", ", "");
    site.file("policy/example.toml", &text);
    std::fs::remove_file(site.path("policy/loop.toml")).unwrap();
    let ended = site.run(&["test"]);
    assert_eq!((ended.code, &*ended.stdout), (Some(1), shown));
}

#[test]
fn test_tells_programs_what_differs_and_mistakes_apart_from_failures() {
    let site = Site::new();
    let case = "[[case]]\nsegment = \"loop\"\nname = \"www.corp.example\"\nverdict = \"deny\"\n";
    site.file("policy/tests/a.toml", case);
    let ended = site.run(&["test", "--json"]);
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((ended.code, &report["cases"], &report["failed"]), (Some(1), &1.into(), &1.into()), "{report}");
    let failure = &report["failures"][0];
    assert_eq!(
        (failure["file"].as_str(), failure["line"].as_u64()),
        (Some("policy/tests/a.toml"), Some(1)),
        "{failure}"
    );
    assert_eq!(failure["differs"][0]["said"], "allow", "{failure}");

    site.file("policy/tests/a.toml", &case.replace("loop", "lop"));
    let ended = site.run(&["test"]);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.stderr.contains("policy/tests/a.toml:2:11: no segment is named \"lop\""), "{ended:?}");
    let ended = site.run(&["test", "nowhere.toml"]);
    assert!(ended.code == Some(2) && ended.stderr.contains("nowhere.toml cannot be read"), "{ended:?}");
}

const RULES: &str = r#"
[[segment]]
name    = "office"
clients = ["192.0.2.0/25"]

[[segment]]
name    = "build"
clients = ["192.0.2.128/25", "2001:db8::/64"]

[[rule]]
id       = "pages"
action   = "allow"
segments = ["office"]
names    = ["**.example.net"]
within   = ["192.88.98.0/24"]
hold     = "10m"
expires  = 2027-01-01T00:00:00Z

[[rule]]
id       = "mine"
action   = "allow"
segments = ["office"]
names    = ["own.example.org"]
clients  = ["192.0.2.7"]

[[rule]]
id       = "time"
action   = "allow"
segments = ["build"]
networks = ["192.88.97.1"]
ports    = ["udp/123"]
"#;

fn said(site: &Site, arguments: &[&str]) -> (Value, String) {
    let arguments = [&["explain"], arguments].concat();
    let ended = site.run(&arguments);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let json = site.run(&[arguments.as_slice(), &["--json"]].concat());
    (serde_json::from_str(&json.stdout).unwrap_or_else(|error| panic!("{error}: {json:?}")), ended.stdout)
}

#[test]
fn explain_says_why_nothing_is_allowed_and_to_whom_it_is() {
    let site = Site::new();
    site.file("policy/loop.toml", RULES);
    let at = ["--at", "2026-12-30T00:00:00Z"];
    let (report, text) = said(&site, &[&at[..], &["--client", "192.0.2.7", "www.example.net"]].concat());
    assert_eq!(
        (&report["verdict"], &report["rules"][0]["hold"], &report["rules"][0]["silent"]),
        (&"allow".into(), &"10m".into(), &Value::Null)
    );
    assert!(
        text.contains(
            "open for  the answer's TTL (5s to 5m) and 1m grace, 10m at least by the hold of pages, and not beyond \
             2027-01-01T00:00:00.000000Z, in 2 days\n"
        ),
        "{text}"
    );

    let (report, text) = said(&site, &["--at", "2027-01-04T00:00:00Z", "--client", "192.0.2.7", "www.example.net"]);
    assert_eq!((&report["verdict"], &report["reason"]), (&"deny".into(), &"default".into()));
    assert!(text.contains("(ended 3 days ago)\n"), "{text}");
    assert!(text.contains("why       rule pages, which allowed it, ended 3 days ago\n"), "{text}");

    let (_, text) = said(&site, &["--client", "192.0.2.8", "own.example.org"]);
    assert!(text.contains("  clients 192.0.2.7/32  (is for other clients)\n"), "{text}");
    assert!(text.contains("why       rule mine allows it to other clients of the segment\n"), "{text}");

    let (report, text) = said(&site, &["--client", "192.0.2.130", "own.example.org"]);
    assert_eq!(report["elsewhere"][0]["segments"][0], "office", "{report}");
    assert!(text.contains("others    have it: office by mine  policy/loop.toml:19:1\n"), "{text}");

    let (report, text) = said(&site, &["--client", "192.0.3.1", "own.example.org"]);
    assert_eq!(report["near"][0], "192.0.2.0/25 (office)", "{report}");
    assert!(text.contains("near      192.0.2.0/25 (office) 192.0.2.128/25 (build)\n"), "{text}");
}

const LOG: &str = r#"{"v":1,"type":"grant","id":"1-2-1","ts":"2026-11-21T03:53:04.000000Z","node":"n","op":"open","client":"192.0.2.7","scope":"client","segment":"office","rule":"pages","qname":"www.example.net","address":"192.88.98.1","ports":["tcp/443"],"until":"2026-11-21T03:58:04.000000Z","query":"1-3-1"}
{"v":1,"type":"query","id":"1-3-1","ts":"2026-11-21T03:53:03.000000Z","node":"n","client":"192.0.2.7","port":5,"transport":"udp","segment":"office","qid":7,"qname":"www.example.net","qtype":"A","verdict":"allow","reason":"rule","rule":"pages","policy":"9c1f5be27a40d3e1","rcode":"NOERROR","answers":[{"name":"www.example.net","type":"A","ttl":60,"data":"192.88.98.1"}],"grant":{"ports":["tcp/443"],"until":"2026-11-21T03:58:04.000000Z"},"latency_us":42}
{"v":1,"type":"query","id":"1-3-2","ts":"2026-11-21T03:54:03.000000Z","node":"n","client":"192.0.2.130","port":5,"transport":"udp","segment":"build","qid":7,"qname":"own.example.org","qtype":"A","verdict":"deny","reason":"default","policy":"9c1f5be27a40d3e1","rcode":"NXDOMAIN","latency_us":42}
{"v":1,"type":"grant","id":"1-2-2","ts":"2026-11-21T03:55:00.000000Z","node":"n","op":"revoke","client":"192.0.2.7","scope":"client","segment":"office","rule":"pages","qname":"www.example.net","address":"192.88.98.1","ports":["tcp/443"],"until":"2026-11-21T03:55:00.000000Z","why":"policy"}
{"v":1,"type":"grant","id":"1-2-3","ts":"2026-11-21T04:10:00.000000Z","node":"n","op":"open","client":"192.0.2.7","scope":"client","segment":"office","rule":"pages","qname":"www.example.net","address":"192.88.98.1","ports":["tcp/443"],"until":"2026-11-21T04:15:00.000000Z","query":"1-3-9"}
"#;

#[test]
fn explain_finds_the_look_up_of_a_flow() {
    let site = Site::new();
    site.file("policy/loop.toml", RULES);
    site.file("query.jsonl", LOG);
    let flow = |client: &str, address: &str, port: &str, at: &str| {
        let at = format!("2026-11-21T{at}Z");
        let port = if port.is_empty() { Vec::new() } else { vec!["--port", port] };
        let rest = ["--client", client, "--address", address, "--at", &at, "--log", "query.jsonl"];
        said(&site, &[&port, &rest[..]].concat())
    };
    let leads = "leads     www.example.net was told to lead there; a look-up would open it: allowed by pages  \
                 policy/loop.toml:10:1";
    let read = "read      2 queries and 3 other records in 1 files of ";

    let (report, text) = flow("192.0.2.7", "192.88.98.1", "tcp/443", "03:54:00");
    assert_eq!((&report["open"], &report["opened_by"]["query"]), (&true.into(), &"1-3-1".into()), "{report}");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines[..3],
        [
            "192.0.2.7 to 192.88.98.1 tcp/443 at 2026-11-21T03:54:00.000000Z, segment office",
            "open      by the look-up of www.example.net at 2026-11-21T03:53:03.000000Z (1-3-1), rule pages, until \
             2026-11-21T03:58:04.000000Z",
            leads,
        ]
    );
    assert!(lines[3].starts_with(read) && lines.len() == 4, "{text}");

    // Another port, closed by a reload, before it was asked for, another client.
    let (report, text) = flow("192.0.2.7", "192.88.98.1", "tcp/80", "03:54:00");
    assert_eq!(report["open"], false);
    assert!(text.contains("closed    no look-up in this log opened it\n"), "{text}");
    assert!(text.contains("a look-up would open tcp/443 of it: allowed by pages"), "{text}");
    let (report, text) = flow("192.0.2.7", "192.88.98.1", "", "03:56:00");
    assert_eq!((&report["open"], &report["before"]["op"]), (&false.into(), &"revoke".into()), "{text}");
    assert!(text.contains("closed    since 2026-11-21T03:55:00.000000Z, 60 seconds ago: policy\n"), "{text}");
    assert!(text.contains("later     opened by the look-up of www.example.net at 2026-11-21T04:10:00"), "{text}");
    let (_, text) = flow("192.0.2.7", "192.88.98.1", "", "03:53:00");
    assert!(text.contains("closed    no look-up in this log opened it\nlater     opened by"), "{text}");
    let (_, text) = flow("192.0.2.7", "192.88.98.1", "", "04:20:00");
    assert!(
        text.contains("ended     2026-11-21T04:15:00.000000Z, 5 minutes ago\nbefore    open by the look"),
        "{text}"
    );
    let (report, text) = flow("192.0.2.130", "192.88.98.1", "", "03:54:00");
    assert_eq!(report["otherwise"]["names"][0]["would_open"], false);
    assert!(text.contains("leads     www.example.net was told to lead there; denied (reason default)\n"), "{text}");

    // Rules for networks need no look-up.
    let (_, text) = flow("192.0.2.130", "192.88.97.1", "udp/123", "03:54:00");
    assert!(text.contains("network   rule time opens it without any look-up  policy/loop.toml:26:1\n"), "{text}");
    let (report, _) = flow("192.0.2.130", "192.88.97.1", "udp/124", "03:54:00");
    assert_eq!(report["otherwise"]["network"], Value::Null);

    let (report, text) = said(&site, &["--record", "1-3-2", "--log", "query.jsonl"]);
    assert_eq!((&report["record"]["verdict"], &report["verdict"]), (&"deny".into(), &"deny".into()), "{report}");
    assert!(
        text.starts_with("recorded  deny (reason default) at 2026-11-21T03:54:03.000000Z, NXDOMAIN was sent, "),
        "{text}"
    );
    assert!(text.contains("others    have it: office by mine"), "{text}");
    let ended = site.run(&["explain", "--record", "1-3-7", "--log", "query.jsonl"]);
    assert!(ended.code == Some(1) && ended.stderr.contains("no query's record has the id 1-3-7"), "{ended:?}");
}
