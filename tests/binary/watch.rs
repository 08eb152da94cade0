//! `[policy] watch`: what changes is loaded, once, when it rests.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};

use hickory_proto::op::ResponseCode;

use crate::dns::{Client, addresses, code};
use crate::harness::{POLICY, Site, until};
use crate::reload::{more_names, policy_records};

fn watching() -> Site {
    Site::new().with("policy", "[policy]\ndirectory = \"policy\"\nwatch = true")
}

fn reloads(site: &Site, count: usize) {
    until("the change is loaded", || policy_records(site, "reload").len() >= count);
    assert_eq!(policy_records(site, "reload").len(), count, "each change is loaded once");
}

#[test]
fn a_change_is_loaded_by_itself_and_a_mistake_is_said_once() {
    let site = watching();
    let mut node = site.spawn_command(site.command(&["run"]).env("RUST_LOG", "outgate=debug"));
    until("outgate is ready", || site.get("/health/ready").is_some_and(|(status, _)| status == 200));
    let client = Client::new(site.dns);
    assert_eq!(addresses(&client.told("www.corp.example")), ["192.0.2.80"]);
    site.file("policy/loop.toml", &POLICY.replace("*.corp.example", "api.corp.example"));
    reloads(&site, 1);
    assert_eq!(code(&client.told("www.corp.example")), ResponseCode::NXDomain);
    // What is half written changes nothing.
    let (half, _) = POLICY.split_at(POLICY.len() - 20);
    fs::write(site.path("policy/loop.toml"), half).unwrap();
    until("the mistake is said", || policy_records(&site, "refused").len() == 1);
    assert_eq!(code(&client.told("www.corp.example")), ResponseCode::NXDomain);
    // What is no policy file is none of its business; nor is a file beside the directory.
    for name in
        ["policy/loop.toml~", "policy/.loop.toml.swp", "policy/notes.txt", "notes.toml", "policy/tests/gold.toml"]
    {
        site.file(name, "nonsense");
    }
    until("it is seen to be nothing", || node.stderr().contains("is nothing to load"));
    fs::write(site.path("policy/loop.toml"), POLICY).unwrap();
    reloads(&site, 2);
    assert_eq!(addresses(&client.told("www.corp.example")), ["192.0.2.80"]);
    // A directory that is new is watched as well, and what is removed is noticed.
    site.file(
        "policy/team/more.toml",
        "[[rule]]\nid = \"m\"\naction = \"deny\"\nsegments = [\"*\"]\nnames = [\"www.corp.example\"]\n",
    );
    reloads(&site, 3);
    assert_eq!(code(&client.told("www.corp.example")), ResponseCode::NXDomain);
    fs::remove_file(site.path("policy/team/more.toml")).unwrap();
    reloads(&site, 4);
    assert_eq!(addresses(&client.told("www.corp.example")), ["192.0.2.80"]);
    assert_eq!(policy_records(&site, "refused").len(), 1);
    assert_eq!(node.stop(), Some(0));
    site.verified();
}

/// As the kubelet does it: a new directory is filled beside the old one, one link is renamed over, the old one removed.
#[test]
fn the_swap_of_a_volume_is_one_reload() {
    let site = watching();
    fs::remove_file(site.path("policy/loop.toml")).unwrap();
    let (segment, rules) = POLICY.split_once("[[rule]]").unwrap();
    let fill = |version: &str, names: &str| {
        let directory = format!("policy/..2026_11_21_{version}");
        for (name, text) in [("segment.toml", segment), ("rules.toml", &rules.replace("*.corp.example", names))] {
            let text = if name == "rules.toml" { format!("[[rule]]{text}") } else { text.to_owned() };
            fs::create_dir_all(site.path(&directory)).unwrap();
            fs::write(site.path(&format!("{directory}/{name}")), text).unwrap();
        }
        symlink(format!("..2026_11_21_{version}"), site.path("policy/..data_tmp")).unwrap();
        fs::rename(site.path("policy/..data_tmp"), site.path("policy/..data")).unwrap();
    };
    fill("1", "*.corp.example");
    for name in ["segment.toml", "rules.toml"] {
        symlink(format!("..data/{name}"), site.path(&format!("policy/{name}"))).unwrap();
    }
    let mut node = site.start();
    let client = Client::new(site.dns);
    assert_eq!(addresses(&client.told("www.corp.example")), ["192.0.2.80"]);
    for (number, (version, names)) in [("2", "api.corp.example"), ("3", "*.corp.example")].into_iter().enumerate() {
        fill(version, names);
        fs::remove_dir_all(site.path(&format!("policy/..2026_11_21_{}", number + 1))).unwrap();
        reloads(&site, number + 1);
        let expected = if number == 0 { ResponseCode::NXDomain } else { ResponseCode::NoError };
        assert_eq!(code(&client.told("www.corp.example")), expected);
    }
    assert!(policy_records(&site, "refused").is_empty());
    assert_eq!(node.stop(), Some(0));
    site.verified();
}

/// The directory is a link to a release, and another release takes its place.
#[test]
fn a_link_that_leads_elsewhere_is_a_change() {
    let site = watching();
    fs::rename(site.path("policy"), site.path("release-1")).unwrap();
    symlink("release-1", site.path("policy")).unwrap();
    site.file("release-2/loop.toml", &more_names("api.example.com"));
    let mut node = site.start();
    symlink("release-2", site.path("policy-next")).unwrap();
    fs::rename(site.path("policy-next"), site.path("policy")).unwrap();
    reloads(&site, 1);
    // A candidate appears and is decided; it is watched like the policy.
    assert_eq!(node.stop(), Some(0));
    let site = site.with("policy", "[policy]\ndirectory = \"policy\"\ncandidate = \"next\"\nwatch = true");
    let mut node = site.start();
    assert_eq!(site.metric("outgate_policy_candidate"), 0.0);
    site.file("next/loop.toml", POLICY);
    until("the candidate is decided", || site.metric("outgate_policy_candidate") > 0.0);
    assert_eq!(node.stop(), Some(0));
}

#[test]
fn what_everybody_may_write_is_refused() {
    let site = Site::new();
    let open = |name: &str, mode| fs::set_permissions(site.path(name), Permissions::from_mode(mode)).unwrap();
    open("policy/loop.toml", 0o666);
    let ended = site.run(&["check"]);
    assert_eq!(ended.code, Some(2));
    let said = "policy/loop.toml can be written by everybody\n  chmod o-w ";
    assert!(ended.stderr.contains(said), "{}", ended.stderr);
    open("policy/loop.toml", 0o664);
    assert_eq!(site.run(&["check"]).code, Some(0));
    open("policy", 0o1777);
    let ended = site.run(&["check"]);
    assert!(ended.stderr.contains("policy can be written by everybody"), "{}", ended.stderr);
    open("policy", 0o755);
    site.file("policy/team/rules.toml", "");
    open("policy/team", 0o757);
    assert_eq!(site.run(&["check"]).code, Some(2));
    open("policy/team", 0o755);
    let mut node = site.start();
    // And a reload says it in its record.
    open("policy/loop.toml", 0o666);
    assert_eq!(site.run(&["reload"]).code, Some(2));
    let why = policy_records(&site, "refused").remove(0)["why"].clone();
    assert!(why.as_str().unwrap().contains("can be written by everybody"), "{why}");
    assert_eq!(node.stop(), Some(0));
}
