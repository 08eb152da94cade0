//! A disk that fills up while it serves: no record, no answer; and back again by itself.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::dns::{Client, Stream, a};
use crate::harness::{Node, Site, end, privileged, small_disk, until, with_own_mounts};
use crate::programs::{are_here, command};
use crate::upstream::Upstream;

/// Takes all the room that is left on the disk of `path`.
pub(crate) fn fill(path: &Path) {
    let mut file = fs::File::create(path).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    while file.write_all(&[0]).is_ok() {}
}

fn ready(site: &Site) -> (u16, Value) {
    let (status, body) = site.get("/health/ready").unwrap();
    (status, serde_json::from_str(&body).unwrap())
}

/// A node with its log on a disk of 2 MiB, the only one that will be full.
fn on_a_small_disk(on_full: &str, test: impl FnOnce(&Site, Node) + Send) {
    if !privileged() {
        return;
    }
    with_own_mounts(|| {
        let upstream = Upstream::start();
        let site = Site::new().with_servers(&[upstream.address]);
        small_disk(&site.path("disk"), 2 << 20);
        let site = site.with(
            "audit",
            format!(
                "[audit]\nfile = \"disk/query.jsonl\"\non_full = \"{on_full}\"\nrotate_size = \"1MiB\"\n\
                 max_size = \"2MiB\"\nmin_free = \"1KiB\""
            ),
        );
        let node = site.start();
        test(&site, node);
    });
}

#[test]
fn a_full_disk_silences_it_until_there_is_room() {
    on_a_small_disk("refuse", |site, mut node| {
        let client = Client::new(site.dns);
        client.told("www.corp.example");
        fill(&site.path("disk/filler"));
        // What is allocated ahead is used up first; then clients hear nothing.
        let impatient = Client::new(site.dns).patience(Duration::from_millis(300));
        let refused = || site.metric("outgate_audit_refused_total");
        let mut asked = 0;
        while refused() == 0.0 {
            asked += (0..100).take_while(|_| impatient.ask(&a("www.corp.example")).is_some()).count();
            assert!(asked < 20_000, "the disk is not full");
        }
        let (status, body) = ready(site);
        assert_eq!((status, &body["waiting"]), (503, &serde_json::json!(["the query log cannot be written"])));
        // Whatever is asked, and however.
        let before = refused();
        for name in ["example.org", "x.example.net", "www.corp.example"] {
            assert!(impatient.ask(&a(name)).is_none(), "{name}");
        }
        // What nobody was told is not open either.
        for (name, open) in [("x.example.net", false), ("www.corp.example", true)] {
            let grants: Value = serde_json::from_str(&site.run(&["grants", "--json", "--name", name]).stdout).unwrap();
            assert_eq!(!grants.as_array().unwrap().is_empty(), open, "{name}: {grants}");
        }
        let mut stream = Stream::new(site.dns);
        stream.0.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        stream.send(&a("www.corp.example").to_vec().unwrap());
        assert_eq!(stream.receive(), None);
        assert!(refused() >= before + 4.0);
        let status: Value = serde_json::from_str(&site.run(&["status", "--json"]).stdout).unwrap();
        assert_eq!(status["audit"]["usable"], false);
        assert!(site.run(&["status"]).code == Some(0));
        assert_eq!(site.get("/health/live").unwrap().0, 200);

        fs::remove_file(site.path("disk/filler")).unwrap();
        until("it answers again", || impatient.ask(&a("www.corp.example")).is_some());
        until("it is ready again", || ready(site).0 == 200);
        client.told("www.corp.example");
        let lost = refused();
        assert_eq!(node.stop(), Some(0));
        let text = fs::read_to_string(site.path("disk/query.jsonl")).unwrap();
        assert!(text.lines().any(|line| line.contains("\"op\":\"gap\"")), "no gap is declared");
        let said = site.verified();
        assert!(lost >= 5.0 && said.contains("could not be written, as declared"), "{said}");
    });
}

#[test]
fn a_full_disk_does_not_hold_up_the_end() {
    on_a_small_disk("refuse", |site, mut node| {
        fill(&site.path("disk/filler"));
        let client = Client::new(site.dns).patience(Duration::from_millis(300));
        until("the disk is full", || {
            (0..100).all(|_| client.ask(&a("www.corp.example")).is_some());
            ready(site).0 == 503
        });
        let before = site.metric("outgate_audit_refused_total");
        let mut stream = Stream::new(site.dns);
        for _ in 0..300 {
            stream.send(&a("www.corp.example").to_vec().unwrap());
        }
        until("they are refused", || site.metric("outgate_audit_refused_total") >= before + 300.0);
        assert_eq!(node.stop(), Some(1));
        let said = node.stderr();
        assert!(said.contains("no record, no answer"), "{said}");
        let last = said.lines().last().unwrap();
        assert_eq!(
            last,
            "outgate: the log could not be closed: disk/query.jsonl: no space left; free some, or lower [audit] \
             rotate_size and max_size"
        );
        // One message for each reply that was dropped would fill another disk.
        assert!(said.lines().count() < 100, "{} lines", said.lines().count());
        fs::remove_file(site.path("disk/filler")).unwrap();
        assert_eq!(site.start().stop(), Some(0));
    });
}

#[test]
fn with_on_full_drop_it_answers_and_declares_what_is_missing() {
    on_a_small_disk("drop", |site, mut node| {
        let client = Client::new(site.dns);
        fill(&site.path("disk/filler"));
        let usable = || ready(site).0 == 200;
        let mut asked = 0;
        while usable() {
            for _ in 0..200 {
                client.told("www.corp.example");
            }
            asked += 200;
            assert!(asked < 20_000, "the disk is not full");
        }
        client.told("example.org");
        assert_eq!(site.metric("outgate_audit_refused_total"), 0.0);
        fs::remove_file(site.path("disk/filler")).unwrap();
        client.told("www.corp.example");
        until("it is ready again", usable);
        assert!(site.metric("outgate_audit_gaps_total") >= 1.0);
        assert_eq!(node.stop(), Some(0));
        assert!(site.verified().contains("could not be written, as declared"));
    });
}

/// A file system on a file on a small disk: what is written is taken into memory, and the disk below fails to keep it.
#[test]
fn a_disk_that_fails_sends_nothing_it_did_not_keep() {
    if !privileged() || !are_here(&["losetup", "mkfs.ext4", "mount"]) {
        return;
    }
    with_own_mounts(|| {
        let site = crate::durability::site("disk");
        let below = site.path("below");
        small_disk(&below, 4 << 20);
        let (image, disk) = (below.join("image"), site.path("disk"));
        fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
        fs::create_dir(&disk).unwrap();
        let run = |program: &str, words: &[&str], paths: &[&Path]| {
            let ended = end(command(program).args(words).args(paths));
            assert_eq!(ended.code, Some(0), "{program}: {}", ended.stderr);
        };
        // Without a journal, which would take the whole file system down with it.
        run("mkfs.ext4", &["-q", "-O", "^has_journal"], &[&image]);
        run("mount", &["-o", "loop"], &[&image, &disk]);
        let site = site.with(
            "audit",
            "[audit]\nfile = \"disk/query.jsonl\"\nrotate_size = \"1MiB\"\nmin_free = \"1KiB\"\ndurability = \"disk\"",
        );
        let mut node = site.start();
        let client = Client::new(site.dns);
        client.told("www.corp.example");
        fill(&below.join("filler"));
        let impatient = Client::new(site.dns).patience(Duration::from_millis(300));
        let mut held = 1;
        while site.metric("outgate_audit_refused_total") == 0.0 {
            held += (0..50).take_while(|_| impatient.ask(&a("www.corp.example")).is_some()).count();
            assert!(held < 20_000, "the disk does not fail");
        }
        until("it says so", || ready(&site).0 == 503);
        let said = node.stderr();
        assert!(said.contains("the disk did not keep what was written"), "{said}");
        fs::remove_file(below.join("filler")).unwrap();
        // A file that failed is given up at once, the one after it after half a minute.
        crate::harness::until_within(Duration::from_secs(60), "it answers again", || {
            impatient.ask(&a("www.corp.example")).is_some()
        });
        assert_eq!(node.stop(), Some(0));
        let text = fs::read_to_string(site.path("disk/query.jsonl")).unwrap();
        assert!(text.lines().next().unwrap().contains("the disk did not keep the file before"), "{text}");
        assert!(text.contains("\"op\":\"gap\""), "no gap is declared");
    });
}
