//! A candidate policy: decided beside the one in force, and promoted.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::dns::{Client, a, addresses, code};
use crate::harness::{Node, POLICY, Site, until};
use crate::reload::{While, policy_records};

/// A site whose candidate is this policy.
fn site(candidate: &str) -> Site {
    let site = Site::new().with("policy", "[policy]\ndirectory = \"policy\"\ncandidate = \"policy-next\"");
    site.file("policy-next/loop.toml", candidate);
    site
}

/// The policy without what it allows of corp.example, and with something else.
fn narrower() -> String {
    POLICY.replace("\"*.corp.example\"", "\"ns1.corp.example\"")
}

fn policy_of(site: &Site) -> Value {
    serde_json::from_str::<Value>(&site.run(&["status", "--json"]).stdout).unwrap()["policy"].clone()
}

fn last_query(site: &Site) -> Value {
    site.queries().pop().unwrap()
}

fn stop(site: &Site, node: &mut Node) {
    assert_eq!(node.stop(), Some(0));
    site.verified();
}

#[test]
fn a_candidate_is_decided_and_not_obeyed() {
    let site = site(&narrower());
    let mut node = site.start();
    let client = Client::new(site.dns);
    for count in 1..=3 {
        assert_eq!(addresses(&client.told("www.corp.example")), ["192.0.2.80"]);
        let shadow = &last_query(&site)["shadow"];
        assert_eq!((&shadow["kind"], &shadow["reason"]), (&"denies".into(), &"default".into()), "{count}");
    }
    client.told("ns1.corp.example");
    assert_eq!(last_query(&site)["shadow"], Value::Null);
    assert_eq!(site.metric("outgate_policy_shadow_total{segment=\"loop\",kind=\"denies\"}"), 3.0);
    assert_eq!(site.metric("outgate_policy_candidate"), 1.0);
    let candidate = &policy_of(&site)["candidate"];
    assert_eq!((&candidate["state"], &candidate["directory"]), (&"decided".into(), &"policy-next".into()));
    let told = &candidate["disagreements"];
    assert_eq!([&told["denies"], &told["allows"], &told["differs"], &told["queries"]], [3, 0, 0, 4], "{told}");
    let row = &told["top"][0];
    assert_eq!((&row["name"], &row["count"], &row["rule"]), (&"www.corp.example".into(), &3.into(), &Value::Null));
    let page = site.run(&["status"]).stdout;
    assert!(page.contains("\nSEGMENT  NAME") && page.contains("of 4 queries since"), "{page}");
    // A reload of the same two policies begins no new count, one of another candidate does.
    assert_eq!(site.run(&["reload"]).code, Some(0));
    assert_eq!(policy_of(&site)["candidate"]["disagreements"]["denies"], 3);
    site.file("policy-next/loop.toml", &(narrower() + "# another text\n"));
    assert_eq!(site.run(&["reload"]).code, Some(0));
    assert_eq!(policy_of(&site)["candidate"]["disagreements"]["denies"], 0);
    stop(&site, &mut node);
}

#[test]
fn a_candidate_with_mistakes_stops_nothing() {
    let site = site("[[rule]]\nid = \"x\"\n");
    let checked = site.run(&["check"]);
    assert_eq!(checked.code, Some(2));
    assert!(checked.stderr.contains("policy-next/loop.toml:1:"), "{}", checked.stderr);
    let mut node = site.start();
    let client = Client::new(site.dns);
    assert_eq!(addresses(&client.told("www.corp.example")), ["192.0.2.80"]);
    assert_eq!(site.metric("outgate_policy_candidate"), 0.0);
    assert_eq!(policy_of(&site)["candidate"]["state"], "mistaken");
    assert!(node.stderr().contains("the candidate is not decided"), "{}", node.stderr());
    let ended = site.run(&["promote", "--accept"]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("the candidate has mistakes") && ended.stderr.contains("policy-next/loop.toml:1:"));
    let ended = site.run(&["reload"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stdout.contains("the candidate is not decided: policy-next/loop.toml:1:"), "{}", ended.stdout);
    // The segment that another one of outgate.toml names is missed in it, too.
    site.file("policy-next/loop.toml", POLICY);
    assert_eq!(site.run(&["reload"]).code, Some(0));
    assert_eq!(policy_of(&site)["candidate"]["state"], "same");
    let ended = site.run(&["promote"]);
    assert!(ended.stderr.contains("the candidate is the policy in force already"), "{}", ended.stderr);
    stop(&site, &mut node);
}

#[test]
fn a_promotion_wants_its_disagreements_accepted_and_lasts_until_the_policy_changes() {
    let site = site(&narrower());
    let mut node = site.start();
    let client = Client::new(site.dns);
    assert_eq!(addresses(&client.told("www.corp.example")), ["192.0.2.80"]);
    let before = policy_of(&site)["revision"].clone();
    let refused = site.run(&["promote"]);
    assert_eq!((refused.code, refused.stdout.as_str()), (Some(1), ""));
    assert!(refused.stderr.contains("it would deny 1 that pass"), "{}", refused.stderr);
    assert_eq!(code(&client.told("www.corp.example")), ResponseCode::NoError, "nothing has changed");

    let promoted = site.run(&["promote", "--accept", "--reason", "SEC-123"]);
    assert_eq!(promoted.code, Some(0), "{}", promoted.stderr);
    assert_eq!(code(&client.told("www.corp.example")), ResponseCode::NXDomain);
    let policy = policy_of(&site);
    let revision = policy["revision"].clone();
    assert_eq!((&policy["candidate"]["state"], &policy["promoted"]["accepted"]), (&"same".into(), &2.into()));
    let record = policy_records(&site, "promote").remove(0);
    assert_eq!((&record["policy"], &record["previous"]), (&revision, &before));
    let why = record["why"].as_str().unwrap();
    assert!(why.starts_with("uid ") && why.ends_with(": SEC-123; 2 disagreements accepted"), "{why}");
    assert!(site.run(&["status"]).stdout.contains("PROMOTED from policy-next at "), "the status says it loudly");

    // A reload stays with it, and so does a restart; the candidate's directory is a candidate again.
    site.file("policy-next/loop.toml", POLICY);
    assert_eq!(site.run(&["reload"]).code, Some(0));
    assert_eq!(policy_of(&site)["revision"], revision);
    stop(&site, &mut node);
    let mut node = site.start();
    let client = Client::new(site.dns);
    assert_eq!(code(&client.told("www.corp.example")), ResponseCode::NXDomain);
    assert_eq!(last_query(&site)["shadow"]["kind"], "allows");
    assert_eq!(policy_of(&site)["revision"], revision);

    // What was promoted is committed: the same policy by its files, and nothing is left of the promotion.
    site.file("policy/loop.toml", &narrower());
    assert_eq!(site.run(&["reload"]).code, Some(0));
    let policy = policy_of(&site);
    assert_eq!((&policy["revision"], &policy["promoted"]), (&revision, &Value::Null));
    site.file("policy/loop.toml", POLICY);
    assert_eq!(site.run(&["reload"]).code, Some(0));
    assert_eq!(addresses(&client.told("www.corp.example")), ["192.0.2.80"]);
    assert_eq!(policy_of(&site)["revision"], before);
    stop(&site, &mut node);
}

#[test]
fn a_promotion_is_of_what_was_decided_and_can_be_taken_back() {
    let site = site(&narrower());
    let mut node = site.start();
    let client = Client::new(site.dns);
    let taken_back = site.run(&["promote", "--revert"]);
    assert!(taken_back.stderr.contains("no promotion is in force"), "{}", taken_back.stderr);
    // Not loaded yet, by nobody seen.
    site.file("policy-next/more.toml", "");
    let refused = site.run(&["promote"]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("is what was decided beside the policy"), "{}", refused.stderr);
    std::fs::remove_file(site.path("policy-next/more.toml")).unwrap();
    site.file("policy/more.toml", "");
    let refused = site.run(&["promote"]);
    assert!(refused.stderr.contains("the policy directory has changed since it was loaded"), "{}", refused.stderr);
    std::fs::remove_file(site.path("policy/more.toml")).unwrap();
    assert_eq!(site.run(&["promote"]).code, Some(0));
    assert_eq!(code(&client.told("www.corp.example")), ResponseCode::NXDomain);
    assert_eq!(site.run(&["promote", "--revert"]).code, Some(0));
    assert_eq!(addresses(&client.told("www.corp.example")), ["192.0.2.80"]);
    assert_eq!((policy_records(&site, "promote").len(), policy_records(&site, "revert").len()), (1, 1));
    assert!(!site.path("state/promoted.json").exists() && !site.path("state/promoted.next").exists());
    stop(&site, &mut node);
}

/// Asks from several sockets, one question after the other, while `work` is done; how many were answered. Each is answered,
/// and as `expected` has it.
fn ask_while(
    site: &Site,
    expected: impl Fn(&hickory_proto::op::Message) -> bool + Sync,
    work: impl FnOnce(&AtomicUsize),
) -> usize {
    let (asked, server, expected) = (AtomicUsize::new(0), site.dns, &expected);
    std::thread::scope(|scope| {
        let going = While::new();
        for _ in 0..4 {
            let (going, asked) = (Arc::clone(&going.0), &asked);
            scope.spawn(move || {
                // The quickest stubs ask again after two seconds.
                let client = Client::new(server).patience(Duration::from_secs(2));
                while going.load(Ordering::Relaxed) {
                    let reply = client.ask(&a("www.corp.example"));
                    let reply = reply.unwrap_or_else(|| panic!("a query was lost, or answered late"));
                    assert!(expected(&reply), "{reply:?}");
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        until("queries are answered", || asked.load(Ordering::Relaxed) > 100);
        work(&asked);
        let after = asked.load(Ordering::Relaxed);
        until("queries are answered still", || asked.load(Ordering::Relaxed) > after + 100);
    });
    asked.into_inner()
}

#[test]
fn a_promotion_under_load_loses_nothing() {
    let site = site(&POLICY.replace("id       = \"corp\"", "id       = \"corp-2\""));
    let mut node = site.start();
    let told = |reply: &hickory_proto::op::Message| addresses(reply) == ["192.0.2.80"];
    let asked = ask_while(&site, told, |_| {
        for _ in 0..3 {
            assert_eq!(site.run(&["promote", "--accept"]).code, Some(0));
            assert_eq!(site.run(&["promote", "--revert"]).code, Some(0));
        }
        assert_eq!(site.run(&["promote", "--accept"]).code, Some(0));
    });
    stop(&site, &mut node);
    let queries = site.queries();
    assert_eq!(queries.len(), asked, "one record for each query");
    assert!(queries.iter().all(|query| query["verdict"] == "allow"));
    let rules = |id: &str| queries.iter().filter(|query| query["rule"] == id).count();
    assert_eq!(rules("corp") + rules("corp-2"), asked);
    assert!(rules("corp") > 0 && rules("corp-2") > 0);
}

/// No worker waits for the compile: as long as it takes, queries are answered by the policy before.
#[test]
fn a_reload_of_a_large_policy_delays_no_query() {
    let site = Site::new();
    let mut node = site.start();
    let before = policy_of(&site)["revision"].clone();
    let names: String = (0..200_000).map(|number| format!("\"n{number}.d{}.example.org\",\n", number % 1000)).collect();
    let rule = format!("[[rule]]\nid = \"many\"\naction = \"allow\"\nsegments = [\"loop\"]\nnames = [\n{names}]\n");
    let told = |reply: &hickory_proto::op::Message| addresses(reply) == ["192.0.2.80"];
    let mut meanwhile = 0;
    ask_while(&site, told, |asked| {
        site.file("policy/many.toml", &rule);
        let start = asked.load(Ordering::Relaxed);
        node.signal(Signal::SIGHUP);
        until("the reload is recorded", || policy_records(&site, "reload").len() == 1);
        meanwhile = asked.load(Ordering::Relaxed) - start;
    });
    let after = policy_of(&site)["revision"].clone();
    assert_ne!(before, after);
    stop(&site, &mut node);
    let queries = site.queries();
    let last_before = queries.iter().filter(|query| query["policy"] == before).count();
    assert!(
        meanwhile > 20 && last_before > 120,
        "only {meanwhile} queries were answered while the policy was compiled"
    );
}
