//! What is said of a policy before it is in force: `outgate check`.

use serde_json::Value;

use crate::harness::Site;

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
