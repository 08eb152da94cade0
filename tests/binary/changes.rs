//! What is changed while a node runs: in force at once, listed, recorded, kept over a restart, ended by itself.

use std::fs;

use hickory_proto::op::ResponseCode;
use nix::unistd::geteuid;
use serde_json::Value;

use crate::dns::{Client, addresses, code};
use crate::harness::{Site, ZONE, until};

fn changes(site: &Site, op: &str) -> Vec<Value> {
    site.records().into_iter().filter(|record| record["type"] == "change" && record["op"] == op).collect()
}

fn status(site: &Site) -> Value {
    serde_json::from_str(&site.run(&["status", "--json"]).stdout).unwrap()
}

#[test]
fn an_allow_opens_and_ends_by_itself() {
    let site = Site::new();
    site.file("zones/corp.example.zone", &format!("{ZONE}api.eu A 192.0.2.90\n"));
    let mut node = site.start();
    let client = Client::new(site.dns);
    assert_eq!(code(&client.told("api.eu.corp.example")), ResponseCode::NXDomain);

    let allow = [
        "allow",
        "api.eu.corp.example",
        "--segment",
        "loop",
        "--for",
        "3s",
        "--reason",
        "release 4.2",
        "--ticket",
        "OPS-7",
    ];
    let ended = site.run(&allow);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    let (id, rest) = ended.stdout.split_once(": allowed until ").unwrap();
    assert!(id.starts_with("runtime-") && rest.ends_with("Z; 0 grants closed\n"), "{}", ended.stdout);
    assert_eq!(addresses(&client.told("api.eu.corp.example")), ["192.0.2.90"]);
    let told = site.queries().pop().unwrap();
    assert_eq!((told["rule"].as_str(), told["verdict"].as_str()), (Some(id), Some("allow")));

    let made = changes(&site, "allow").remove(0);
    let user = nix::unistd::User::from_uid(geteuid()).unwrap().unwrap().name;
    assert_eq!(made["change"], id);
    assert_eq!(made["by"], format!("{user} (uid {})", geteuid()));
    assert_eq!((&made["targets"][0], &made["segments"][0]), (&"api.eu.corp.example".into(), &"loop".into()));
    assert_eq!((&made["why"], &made["ticket"]), (&"release 4.2".into(), &"OPS-7".into()));
    assert_eq!(status(&site)["changes"]["rules"][0]["id"], id);
    let shown = site.run(&["status"]).stdout;
    assert!(shown.contains("CHANGE ") && shown.contains(" api.eu.corp.example  loop  "), "{shown}");

    until("it has ended", || changes(&site, "end").len() == 1);
    assert_eq!(code(&client.told("api.eu.corp.example")), ResponseCode::NXDomain);
    let refused = site.queries().pop().unwrap()["id"].as_str().unwrap().to_owned();
    assert_eq!(site.run(&["grants", "--json"]).stdout, "[]\n");
    assert_eq!(status(&site)["changes"]["rules"], Value::Array(Vec::new()));

    // Straight from the record of a refusal, and of nothing else.
    let from = |id: &str| site.run(&["allow", "--record", id, "--for", "1h", "--reason", "build 88"]);
    assert_eq!(from(&refused).code, Some(0));
    assert_eq!(addresses(&client.told("api.eu.corp.example")), ["192.0.2.90"]);
    let allowed = site.queries().pop().unwrap()["id"].as_str().unwrap().to_owned();
    for (id, says) in [
        (allowed.as_str(), "that query was not refused"),
        ("1-1-1", "has the id 1-1-1; name another log with --log"),
        ("x", "\"x\" is not the id of a record"),
    ] {
        let ended = from(id);
        assert_eq!(ended.code, Some(2), "{ended:?}");
        assert!(ended.stderr.contains(says), "{}", ended.stderr);
    }
    assert_eq!(node.stop(), Some(0));
    site.verified();
}

#[test]
fn a_deny_stands_above_files_reloads_and_restarts_until_it_is_retracted() {
    let site = Site::new();
    let mut node = site.start();
    let client = Client::new(site.dns);
    assert_eq!(addresses(&client.told("www.corp.example")), ["192.0.2.80"]);
    assert_eq!(site.run(&["grants"]).stdout.lines().count(), 2);
    let ended = site.run(&["deny", "**.corp.example", "--reason", "incident 12"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let (id, rest) = ended.stdout.split_once(": denied until it is retracted; ").unwrap();
    assert_eq!(rest, "1 grants closed, 0 connections cut\n");
    assert_eq!(code(&client.told("www.corp.example")), ResponseCode::NXDomain);
    assert_eq!(site.run(&["grants", "--json"]).stdout, "[]\n");
    assert_eq!(site.run(&["reload"]).code, Some(0));
    assert_eq!(code(&client.told("www.corp.example")), ResponseCode::NXDomain);
    node.kill();
    let mut node = site.start();
    assert_eq!(code(&client.told("www.corp.example")), ResponseCode::NXDomain);
    assert_eq!(site.queries().pop().unwrap()["rule"], id);
    assert_eq!(changes(&site, "load")[0]["change"], id);
    let ended = site.run(&["retract", id, "--reason", "a false alarm"]);
    assert_eq!((ended.code, ended.stdout), (Some(0), format!("{id}: retracted; 0 grants closed\n")));
    assert_eq!(addresses(&client.told("www.corp.example")), ["192.0.2.80"]);
    assert_eq!(changes(&site, "retract")[0]["why"], "a false alarm");
    let ended = site.run(&["retract", id]);
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("no change has the id"), "{}", ended.stderr);
    assert_eq!(node.stop(), Some(0));
    site.verified();
}

#[test]
fn an_address_is_denied_to_all() {
    let site = Site::new();
    let mut node = site.start();
    let client = Client::new(site.dns);
    assert_eq!(addresses(&client.told("www.corp.example")), ["192.0.2.80"]);
    let ended = site.run(&["deny", "192.0.2.80", "203.0.113.0/24", "--for", "1h", "--reason", "incident 12"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stdout.ends_with("; 1 grants closed, 0 connections cut\n"), "{}", ended.stdout);
    let told = client.told("www.corp.example");
    assert_eq!((code(&told), addresses(&told).len()), (ResponseCode::NoError, 0));
    assert_eq!(site.queries().pop().unwrap()["reason"], "address");
    assert_eq!(node.stop(), Some(0));
    site.verified();
}

#[test]
fn an_order_that_cannot_be_followed_changes_nothing_and_says_why() {
    let site = Site::new();
    let mut node = site.start();
    for (order, says) in [
        (
            &["allow", "a.example.com", "--for", "1h", "--reason", "x"][..],
            "for whom is missing; name a segment or a client",
        ),
        (
            &["allow", "a.example.com", "--segment", "attic", "--for", "1h", "--reason", "x"],
            "no segment is named \"attic\"",
        ),
        (
            &["allow", "*.com", "--segment", "loop", "--for", "1h", "--reason", "x"],
            "would allow a whole top-level domain",
        ),
        (
            &["allow", "a.example.com", "--client", "10.9.9.9", "--for", "1h", "--reason", "x"],
            "10.9.9.9 is in no segment",
        ),
        (&["allow", "a..b", "--segment", "loop", "--for", "1h", "--reason", "x"], "it has an empty label"),
        (&["allow", "dns.google", "--segment", "loop", "--for", "1h", "--reason", "x"], "leads round this resolver"),
        (
            &["allow", "a.example.com", "--segment", "loop", "--for", "365d", "--reason", "x"],
            "write from 1s to 90 days",
        ),
        (&["allow", "a.example.com", "--segment", "loop", "--for", "1h", "--reason", " "], "a reason is missing"),
        (&["allow", "a.example.com", "--segment", "*", "--for", "1h", "--reason", "x"], "an allow is not for all"),
        (&["deny", "a.example.com", "192.0.2.1", "--reason", "x"], "names and addresses are two changes"),
        (&["deny", "192.0.2.1", "--segment", "loop", "--reason", "x"], "addresses are denied to all"),
        (&["deny", "@all", "--reason", "x"], "no group is named"),
        (&["client", "set", "10.9.9.9", "--segment", "attic"], "no policy file has a segment \"attic\""),
        (&["client", "set", "0.0.0.0", "--segment", "loop"], "0.0.0.0 is nobody's address"),
        (&["client", "remove", "10.9.9.9"], "was not placed by hand"),
        (&["allow", "a.example.com", "--segment", "loop", "--reason", "x"], "--for <TIME>"),
        (&["deny", "a.example.com"], "--reason <TEXT>"),
    ] {
        let ended = site.run(order);
        assert_eq!(ended.code, Some(2), "{order:?}: {ended:?}");
        assert!(ended.stderr.contains(says), "{order:?}: {}", ended.stderr);
    }
    assert_eq!(status(&site)["changes"], serde_json::json!({ "rules": [], "clients": 0 }));
    assert!(!site.path("state/changes.json").exists());
    assert_eq!(node.stop(), Some(0));
}

#[test]
fn a_client_is_where_it_was_placed_by_hand_or_by_the_file() {
    let site = Site::new().with("clients", "[clients]\nfile = \"clients.toml\"");
    site.file("policy/pods.toml", "[[segment]]\nname = \"pods\"\n[[rule]]\nid = \"pods\"\naction = \"allow\"\nsegments = [\"pods\"]\nnames = [\"www.corp.example\"]\n");
    let one = "[[client]]\naddress = \"127.0.0.1\"\nsegment = \"pods\"\nlabels  = { pod = \"api-1\" }\n";
    let mut node = site.start();
    let client = Client::new(site.dns);
    let segment = || {
        client.told("www.corp.example");
        let told = site.queries().pop().unwrap();
        (told["segment"].as_str().unwrap().to_owned(), told["labels"]["pod"].as_str().unwrap_or("-").to_owned())
    };
    let is = |segment: &str, pod: &str| (segment.to_owned(), pod.to_owned());
    assert_eq!(segment(), is("loop", "-"));
    site.file("clients.toml", one);
    until("the file is read", || segment() == is("pods", "api-1"));
    let listed = site.run(&["client", "list"]).stdout;
    assert!(listed.contains("127.0.0.1  pods     taken out  file  pod=api-1\n"), "{listed}");

    // By hand counts before the file; a mistake there changes nothing.
    let ended = site.run(&["client", "set", "127.0.0.1", "--segment", "loop", "--label", "pod=hand"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(segment(), is("loop", "hand"));
    site.file("clients.toml", "[[client]]\naddress = \"127.0.0.1/8\"\n");
    until("the mistake is told", || changes(&site, "feed").iter().any(|record| record["why"].is_string()));
    let why = changes(&site, "feed").pop().unwrap()["why"].as_str().unwrap().to_owned();
    assert!(why.contains("clients.toml:2:11: `address` cannot be \"127.0.0.1/8\""), "{why}");
    assert_eq!(site.run(&["client", "remove", "127.0.0.1"]).code, Some(0));
    assert_eq!(segment(), is("pods", "api-1"));

    // A start with that mistake might put who is named into wider segments.
    assert_eq!(node.stop(), Some(0));
    let mut node = site.spawn();
    assert_eq!(node.wait(), Some(2));
    assert!(node.stderr().contains("clients.toml:2:11: `address` cannot be"), "{}", node.stderr());
    site.file("clients.toml", one);
    let mut node = site.start();
    assert_eq!(segment(), is("pods", "api-1"));
    assert_eq!(changes(&site, "feed").pop().unwrap()["clients"], 1);
    let ended = site.run(&["forget", "127.0.0.1", "--json"]);
    assert!(ended.stdout.contains("\"placed_by_file\":true"), "{ended:?}");
    let ended = site.run(&["forget", "127.0.0.1"]);
    assert!(ended.stdout.starts_with("127.0.0.1: forgotten, and the watched file still places it; "), "{ended:?}");

    // What cannot be read is told once, and read as soon as it can be.
    let feeds = || changes(&site, "feed").len();
    let before = feeds();
    fs::remove_file(site.path("clients.toml")).unwrap();
    fs::create_dir(site.path("clients.toml")).unwrap();
    until("that is told", || feeds() == before + 1);
    let told = changes(&site, "feed").pop().unwrap();
    assert!(told["why"].as_str().unwrap().contains("cannot be read: Is a directory"), "{told}");
    assert_eq!(segment(), is("pods", "api-1"));
    assert_eq!(site.run(&["client", "set", "10.9.9.9", "--segment", "pods", "--for", "1s"]).code, Some(0));
    until("it was looked at again", || changes(&site, "end").len() == 1);
    assert_eq!(feeds(), before + 1);
    fs::remove_dir(site.path("clients.toml")).unwrap();
    site.file("clients.toml", one);

    // Without the file nobody is named; what is placed by hand for a time goes back by itself.
    fs::remove_file(site.path("clients.toml")).unwrap();
    until("nobody is placed", || segment() == is("loop", "-"));
    assert_eq!(site.run(&["client", "set", "127.0.0.1", "--segment", "pods", "--for", "2s"]).code, Some(0));
    assert_eq!(segment(), is("pods", "-"));
    until("it went back", || segment() == is("loop", "-"));
    let ended = changes(&site, "end").pop().unwrap();
    assert_eq!((&ended["client"], &ended["segments"][0]), (&"127.0.0.1".into(), &"pods".into()));
    assert_eq!(node.stop(), Some(0));
    site.verified();
}

#[test]
fn changes_that_cannot_be_read_keep_the_node_from_starting() {
    let site = Site::new();
    let mut node = site.start();
    assert_eq!(site.run(&["deny", "a.example.com", "--reason", "x"]).code, Some(0));
    assert_eq!(node.stop(), Some(0));
    let file = fs::read_dir(site.path("state")).unwrap().map(|entry| entry.unwrap().path());
    let file = file.into_iter().find(|path| path.ends_with("changes.json")).unwrap();
    let whole = fs::read_to_string(&file).unwrap();
    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    let mut node = site.spawn();
    assert_eq!(node.wait(), Some(1));
    assert!(node.stderr().contains("changes.json cannot be read: EOF while parsing"), "{}", node.stderr());
    fs::write(&file, whole.replace("\"version\": 1", "\"version\": 2")).unwrap();
    let mut node = site.spawn();
    assert_eq!(node.wait(), Some(1));
    assert!(node.stderr().contains("it is of version 2, and this one knows 1"), "{}", node.stderr());
}

#[test]
fn what_is_open_is_revoked_and_a_client_is_forgotten() {
    let site = Site::new();
    let mut node = site.start();
    let client = Client::new(site.dns);
    let open = || site.run(&["grants", "--json"]).stdout != "[]\n";
    assert_eq!(addresses(&client.told("www.corp.example")), ["192.0.2.80"]);
    assert!(open());
    for filter in [
        &["--name", "corp.example", "--below"][..],
        &["--address", "192.0.2.0/24"],
        &["--rule", "corp"],
        &["--client", "::ffff:127.0.0.1"],
    ] {
        assert_eq!(addresses(&client.told("www.corp.example")), ["192.0.2.80"], "it may be opened again");
        let ended = site.run(&[&["revoke", "--reason", "moved"], filter].concat());
        assert_eq!(
            (ended.code, ended.stdout.as_str()),
            (Some(0), "revoked; 1 grants closed\n"),
            "{filter:?} {ended:?}"
        );
        assert!(!open());
    }
    assert_eq!(changes(&site, "revoke").len(), 4);
    let why = site.records().into_iter().rfind(|record| record["op"] == "revoke" && record["type"] == "grant");
    let why = why.unwrap()["why"].as_str().unwrap().to_owned();
    assert!(why.starts_with("revoked by ") && why.ends_with(": moved"), "{why}");

    // What is told of a client goes with it: where it was placed, and the rules that were made for it.
    site.file("policy/pods.toml", "[[segment]]\nname = \"pods\"\n");
    assert_eq!(site.run(&["reload"]).code, Some(0));
    assert_eq!(site.run(&["client", "set", "127.0.0.1", "--segment", "pods"]).code, Some(0));
    let allow = ["allow", "www.corp.example", "--client", "127.0.0.1", "--for", "1h", "--reason", "x"];
    assert_eq!(site.run(&allow).code, Some(0));
    assert_eq!(addresses(&client.told("www.corp.example")), ["192.0.2.80"]);
    let told = site.queries().pop().unwrap();
    assert_eq!(told["segment"], "pods");
    assert!(told["rule"].as_str().unwrap().starts_with("runtime-"), "{told}");
    let ended = site.run(&["forget", "127.0.0.1", "--json"]);
    let forgotten: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(
        (ended.code, &forgotten["taken_out"], &forgotten["rules"]),
        (Some(0), &true.into(), &1.into()),
        "{ended:?}"
    );
    assert!(!open());
    assert_eq!(status(&site)["changes"], serde_json::json!({ "rules": [], "clients": 0 }));
    let why = &changes(&site, "retract")[0]["why"];
    assert_eq!(why, "its address is another's");
    let ended = site.run(&["revoke", "--reason", "x"]);
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("nothing is named"), "{}", ended.stderr);
    assert_eq!(node.stop(), Some(0));
    site.verified();
}

#[test]
fn an_end_that_cuts_closes_what_the_rule_added_to_another() {
    let site = Site::new();
    site.file(
        "policy/web.toml",
        "[[rule]]\nid = \"a\"\naction = \"allow\"\nsegments = [\"loop\"]\nnames = [\"www.corp.example\"]\n",
    );
    let mut node = site.start();
    let client = Client::new(site.dns);
    let allow = ["allow", "www.corp.example", "--segment", "loop", "--ports", "tcp/22", "--cut", "--reason", "x"];
    assert_eq!(site.run(&[&allow[..], &["--for", "4s"]].concat()).code, Some(0));
    assert_eq!(addresses(&client.told("www.corp.example")), ["192.0.2.80"]);
    // Both carry the id of the file's rule.
    assert_eq!(site.queries().pop().unwrap()["rule"], "a");
    assert!(site.run(&["grants"]).stdout.contains("tcp/22"));
    until("it has ended", || changes(&site, "end").len() == 1);
    let ended = changes(&site, "end").remove(0);
    assert_eq!((&ended["revoked"], &ended["cut"]), (&1.into(), &0.into()), "{ended}");
    let open = site.run(&["grants"]).stdout;
    assert!(open.contains("tcp/443") && !open.contains("tcp/22"), "{open}");

    // While no node runs it ends, and cuts nothing.
    assert_eq!(site.run(&[&allow[..], &["--for", "1h"]].concat()).code, Some(0));
    node.kill();
    let file = site.path("state/changes.json");
    let mut kept: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    kept["changes"][0]["ends"] = 1.into();
    fs::write(&file, kept.to_string()).unwrap();
    let mut node = site.start();
    let ended = changes(&site, "end").pop().unwrap();
    assert!(ended["change"].is_string() && ended["cut"].is_null(), "{ended}");
    assert_eq!(node.stop(), Some(0));
    site.verified();
}

#[test]
fn a_deny_that_could_not_be_written_is_written_as_soon_as_it_can_be() {
    let site = Site::new();
    let mut node = site.start();
    assert_eq!(site.run(&["deny", "a.example.com", "--reason", "x"]).code, Some(0));
    let file = site.path("state/changes.json");
    let new = file.with_extension("json.new");
    fs::create_dir(&new).unwrap();
    let ended = site.run(&["deny", "b.example.com", "--reason", "x"]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("it is in force and could not be written"), "{}", ended.stderr);
    let ended = site.run(&["allow", "c.example.com", "--segment", "loop", "--for", "1h", "--reason", "x"]);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.stderr.contains("nothing was changed"), "{}", ended.stderr);
    fs::remove_dir(&new).unwrap();
    until("it is written", || fs::read_to_string(&file).unwrap().contains("b.example.com"));
    assert!(!fs::read_to_string(&file).unwrap().contains("c.example.com"));
    assert_eq!(node.stop(), Some(0));
}
