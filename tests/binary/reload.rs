//! Reloads: what is new is in force at once, what has mistakes changes nothing.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hickory_proto::op::ResponseCode;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::dns::{Client, a, addresses, code};
use crate::harness::{POLICY, Site, ZONE, until};
use crate::upstream::Upstream;

/// True until it is dropped: a test that fails must not leave a thread going on for ever.
pub(crate) struct While(pub(crate) Arc<AtomicBool>);

impl While {
    pub(crate) fn new() -> Self {
        Self(Arc::new(AtomicBool::new(true)))
    }
}

impl Drop for While {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

pub(crate) fn policy_records(site: &Site, op: &str) -> Vec<Value> {
    site.records().into_iter().filter(|record| record["type"] == "policy" && record["op"] == op).collect()
}

pub(crate) fn more_names(name: &str) -> String {
    POLICY.replace("\"**.example.net\"", &format!("\"**.example.net\", \"{name}\""))
}

#[test]
fn a_signal_loads_policy_and_zones() {
    let upstream = Upstream::start();
    let site = Site::new().with_servers(&[upstream.address]);
    let mut node = site.start();
    let client = Client::new(site.dns);
    assert_eq!(code(&client.told("api.example.com")), ResponseCode::NXDomain);
    assert_eq!(addresses(&client.told("www.corp.example")), ["192.0.2.80"]);
    site.file("policy/loop.toml", &more_names("api.example.com"));
    site.file("zones/corp.example.zone", &ZONE.replace("192.0.2.80", "192.0.2.82"));
    node.signal(Signal::SIGHUP);
    until("the reload is recorded", || policy_records(&site, "reload").len() == 1);
    assert_eq!(addresses(&client.told("api.example.com")), ["198.51.100.7"]);
    assert_eq!(addresses(&client.told("www.corp.example")), ["192.0.2.82"], "nothing from before is told");
    let record = policy_records(&site, "reload").remove(0);
    assert_ne!(record["policy"], record["previous"]);
    let changes = json!({ "rules_changed": ["outside"], "omitted": 0, "names_added": 1, "names_removed": 0 });
    assert_eq!(record["changes"], changes);
    assert_eq!(site.queries().pop().unwrap()["policy"], record["policy"]);
    assert_eq!(node.stop(), Some(0));
    site.verified();
}

#[test]
fn what_a_zone_includes_is_read_again_and_its_mistakes_have_their_place() {
    let site = Site::new();
    site.file("zones/corp.example.zone", &format!("{ZONE}$INCLUDE hosts/eu.inc eu\n"));
    site.file("zones/hosts/eu.inc", "www A 192.0.2.90\n");
    site.file("policy/loop.toml", &more_names("www.eu.corp.example"));
    let mut node = site.start();
    let client = Client::new(site.dns);
    assert_eq!(addresses(&client.told("www.eu.corp.example")), ["192.0.2.90"]);
    site.file("zones/hosts/eu.inc", "www A 192.0.2.91\n");
    assert_eq!(site.run(&["reload"]).code, Some(0));
    assert_eq!(addresses(&client.told("www.eu.corp.example")), ["192.0.2.91"]);
    site.file("zones/hosts/eu.inc", "; moved\nwww A 192.0.2\n");
    let ended = site.run(&["reload"]);
    assert_ne!(ended.code, Some(0));
    assert!(ended.stderr.contains("zones/hosts/eu.inc:2:7: \"192.0.2\" is not an IPv4 address"), "{ended:?}");
    assert_eq!(addresses(&client.told("www.eu.corp.example")), ["192.0.2.91"], "what there was stays");
    assert_eq!(node.stop(), Some(0));
    site.verified();
}

#[test]
fn a_reload_with_mistakes_changes_nothing_and_tells_all_of_them() {
    let site = Site::new();
    let mut node = site.start();
    let client = Client::new(site.dns);
    let failures = || site.metric("outgate_policy_reload_failures_total");
    site.file("policy/loop.toml", &POLICY.replace("allow", "alow"));
    site.file("zones/corp.example.zone", "nonsense\n");
    node.signal(Signal::SIGHUP);
    until("the refusal is recorded", || policy_records(&site, "refused").len() == 1);
    let ended = site.run(&["reload"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""));
    let checked = site.run(&["check"]);
    assert_eq!(ended.stderr, checked.stderr, "the same as check says");
    assert!(ended.stderr.starts_with("outgate: 4 mistakes; nothing was started or changed\n"), "{}", ended.stderr);
    assert!(ended.stderr.contains("policy/loop.toml:8:12: `action` cannot be \"alow\"\n"), "{}", ended.stderr);
    assert!(ended.stderr.contains("\nzones/corp.example.zone:1:"), "{}", ended.stderr);
    let refused = policy_records(&site, "refused");
    let loaded = policy_records(&site, "load").remove(0);
    assert_eq!((refused.len(), failures()), (2, 2.0));
    assert_eq!(refused[0]["policy"], loaded["policy"]);
    assert!(refused[0]["why"].as_str().unwrap().starts_with("policy/loop.toml:8:12: "), "{}", refused[0]);
    assert_eq!(addresses(&client.told("www.corp.example")), ["192.0.2.80"]);
    assert_eq!(site.get("/health/ready").unwrap().0, 200);
    assert!(node.stderr().contains("reload refused"), "{}", node.stderr());
    // And a good one is taken again.
    site.file("policy/loop.toml", POLICY);
    site.file("zones/corp.example.zone", ZONE);
    let ended = site.run(&["reload"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    assert!(ended.stdout.contains(" in force (before: "), "{}", ended.stdout);
    assert_eq!(node.stop(), Some(0));
    site.verified();
}

#[test]
fn what_a_policy_no_longer_allows_is_closed_by_the_reload() {
    let upstream = Upstream::start();
    let site = Site::new().with_servers(&[upstream.address]);
    site.file("policy/loop.toml", &more_names("api.example.com"));
    let mut node = site.start();
    let client = Client::new(site.dns);
    // As upstreams answer from a range that is private here, the rule of the tests admits it.
    for name in ["api.example.com", "x.example.net"] {
        assert_eq!(addresses(&client.told(name)), ["198.51.100.7"]);
    }
    let grants = || -> Value { serde_json::from_str(&site.run(&["grants", "--json"]).stdout).unwrap() };
    assert_eq!(grants().as_array().unwrap().len(), 2);
    site.file("policy/loop.toml", POLICY);
    let done: Value = serde_json::from_str(&site.run(&["reload", "--json"]).stdout).unwrap();
    assert_eq!(done["revoked"], 1, "{done}");
    let left = grants();
    assert_eq!((left.as_array().unwrap().len(), &left[0]["name"]), (1, &"x.example.net".into()));
    assert_eq!(code(&client.told("api.example.com")), ResponseCode::NXDomain);
    // One address, two reasons: it stays open for the other name. Without that one, it is closed.
    site.file("policy/loop.toml", &POLICY.replace("**.example.net", "**.example.com"));
    site.run(&["reload"]);
    assert_eq!(grants(), Value::Array(Vec::new()));
    let revoked: Vec<Value> = site.records().into_iter().filter(|record| record["op"] == "revoke").collect();
    assert!(revoked.iter().any(|record| record["address"] == "198.51.100.7"), "{revoked:?}");
    assert_eq!(node.stop(), Some(0));
    site.verified();
}

#[test]
fn a_hundred_signals_in_a_row_disturb_nobody() {
    let site = Site::new();
    let mut node = site.start();
    std::thread::scope(|scope| {
        let storm = While::new();
        let storming = Arc::clone(&storm.0);
        let server = site.dns;
        scope.spawn(move || {
            let client = Client::new(server);
            let mut asked = 0;
            while storming.load(Ordering::Relaxed) || asked < 100 {
                let reply = client.ask(&a("www.corp.example")).unwrap();
                // A query that one reload after the other overtakes fails closed; what is told is never wrong.
                if code(&reply) != ResponseCode::ServFail {
                    assert_eq!(addresses(&reply), ["192.0.2.80"]);
                }
                asked += 1;
            }
        });
        for number in 0..100 {
            site.file("policy/loop.toml", &more_names(&format!("n{number}.example.com")));
            node.signal(Signal::SIGHUP);
        }
        // The last one counts, however many were merged into one.
        let revision = || -> Value {
            serde_json::from_str::<Value>(&site.run(&["status", "--json"]).stdout).unwrap()["policy"]["revision"]
                .clone()
        };
        let checked: Value = serde_json::from_str(&site.run(&["check", "--json"]).stdout).unwrap();
        until("the last policy is in force", || revision() == checked["revision"]);
    });
    assert_eq!(site.metric("outgate_policy_reload_failures_total"), 0.0);
    assert_eq!(node.stop(), Some(0));
    site.verified();
}

/// A Kubernetes volume: files and directories are links into `..data`, and an update is one rename.
#[test]
fn the_files_of_a_volume_are_found_behind_its_links() {
    let site = Site::new();
    fs::remove_file(site.path("policy/loop.toml")).unwrap();
    let (segment, rules) = POLICY.split_once("[[rule]]").unwrap();
    let volume = |version: &str, rules: &str| {
        site.file(&format!("policy/..{version}/segment.toml"), segment);
        site.file(&format!("policy/..{version}/rules/corp.toml"), rules);
        symlink(format!("..{version}"), site.path("policy/..next")).unwrap();
        fs::rename(site.path("policy/..next"), site.path("policy/..data")).unwrap();
    };
    volume("1", &format!("[[rule]]{rules}"));
    symlink("..data/segment.toml", site.path("policy/segment.toml")).unwrap();
    symlink("..data/rules", site.path("policy/rules")).unwrap();
    // Links that lead in a circle are no reason to go round.
    symlink(".", site.path("policy/circle")).unwrap();
    let mut node = site.start();
    let client = Client::new(site.dns);
    assert_eq!(addresses(&client.told("www.corp.example")), ["192.0.2.80"]);
    volume("2", &format!("[[rule]]{}", rules.replace("*.corp.example", "api.corp.example")));
    assert_eq!(site.run(&["reload"]).code, Some(0));
    assert_eq!(code(&client.told("www.corp.example")), ResponseCode::NXDomain);
    symlink("/etc", site.path("policy/outside")).unwrap();
    assert_eq!(site.run(&["reload"]).code, Some(2), "links may not leave it");
    assert_eq!(node.stop(), Some(0));
}

#[test]
fn what_an_editor_leaves_for_a_moment_is_no_mistake() {
    let site = Site::new();
    let mut node = site.start();
    std::thread::scope(|scope| {
        let edits = While::new();
        let (editing, site) = (Arc::clone(&edits.0), &site);
        scope.spawn(move || {
            while editing.load(Ordering::Relaxed) {
                site.file("policy/loop.toml", POLICY);
            }
        });
        let refused: Vec<_> = (0..50).map(|_| site.run(&["reload"])).filter(|ended| ended.code != Some(0)).collect();
        assert!(refused.is_empty(), "{refused:?}");
    });
    assert_eq!(node.stop(), Some(0));
    site.verified();
}
