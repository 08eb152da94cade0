//! What is said of a policy before it is in force: `outgate check` and `outgate test`.

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
