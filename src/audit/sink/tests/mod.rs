//! Sinks behind a log that is written, rotated, cut and stopped; most of them of kind `file`.

mod broken;
mod hostile;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use super::follow::{Follower, Next};
use super::settings::From;
use super::{Readers, Settings, Sinks};
use crate::audit::Log;
use crate::audit::archive::Archive;
use crate::audit::file::identity_of;
use crate::audit::fixture::{Directory, write};
use crate::document::Document;
use crate::time::Clock;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// What `[[sink]]` tables say.
fn settings(text: &str, base: &Path) -> Vec<Settings> {
    let (document, root) = Document::parse("outgate.toml", text);
    let settings = Settings::read_all(&root, base, &base.join("query.jsonl"));
    assert_eq!(document.take_mistakes(), []);
    settings
}

const SINK: &str = "[[sink]]\nname = \"copy\"\nkind = \"file\"\nfile = \"copy.jsonl\"\nlinger = \"0s\"\n";

fn start(directory: &Directory, text: &str, log: &Log) -> Sinks {
    let settings = settings(text, directory.path());
    let state = directory.path().join("state");
    Sinks::start(&settings, &directory.log(), &state, "node", &log.meter(), &Clock::system()).unwrap()
}

/// The ids of a file's records, in order.
fn ids(text: &str) -> Vec<String> {
    let id = |line: &str| line.split("\"id\":\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    text.lines().map(id).collect()
}

fn copy(directory: &Directory) -> String {
    fs::read_to_string(directory.path().join("copy.jsonl")).unwrap_or_default()
}

/// A record of that minute.
fn line(id: &str, minute: u32) -> String {
    format!(
        "{{\"v\":1,\"type\":\"log\",\"id\":\"{id}\",\"ts\":\"2026-11-21T03:{minute:02}:00.000000Z\",\"node\":\"n\"}}\n"
    )
}

/// Every line of the log, archives first.
fn whole(directory: &Directory) -> String {
    let mut archives: Vec<_> =
        fs::read_dir(directory.path().join("archive")).unwrap().map(|entry| entry.unwrap().path()).collect();
    archives.sort();
    archives.push(directory.log());
    archives.into_iter().map(|path| fs::read_to_string(path).unwrap()).collect()
}

fn until(what: &str, mut fact: impl FnMut() -> bool) {
    let clock = Clock::system();
    let end = clock.tick() + PATIENCE;
    while !fact() {
        assert!(clock.tick() < end, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn everything_arrives_once_across_rotations_and_restarts() {
    let directory = Directory::new();
    let clock = Clock::manual();
    for boot in 1..=3 {
        clock.advance(Duration::from_secs(60));
        let (mut log, mut shards) = directory.open(&clock, boot, 2);
        let sinks = start(&directory, SINK, &log);
        for _ in 0..10 {
            for shard in &mut shards {
                write(shard, &clock, 20);
            }
            clock.advance(Duration::from_secs(1));
            log.tick().unwrap();
        }
        drop(shards);
        log.close().unwrap();
        sinks.stop(PATIENCE);
    }
    assert!(fs::read_dir(directory.path().join("archive")).unwrap().count() > 3);
    assert_eq!(copy(&directory), whole(&directory));
}

#[test]
fn a_sink_that_starts_late_begins_where_the_node_did() {
    let directory = Directory::new();
    let clock = Clock::manual();
    fs::write(directory.log(), "").unwrap();
    let (mut log, mut shards) = directory.open(&clock, 1, 1);
    for _ in 0..2 {
        write(&mut shards[0], &clock, 60);
        clock.advance(Duration::from_secs(1));
        log.tick().unwrap();
    }
    let sinks = start(&directory, SINK, &log);
    drop(shards);
    log.close().unwrap();
    sinks.stop(PATIENCE);
    assert_eq!(copy(&directory).len(), whole(&directory).len());
}

#[test]
fn a_record_without_a_form_is_passed_and_a_format_of_frames_needs_a_kind() {
    let directory = Directory::new();
    let clock = Clock::system();
    let (log, mut shards) = directory.open(&clock, 1, 1);
    let frames = "[[sink]]\nname = \"tap\"\nkind = \"dnstap\"\nurl = \"unix:///none.sock\"\n";
    let sinks = start(&directory, frames, &log);
    write(&mut shards[0], &clock, 1);
    until("the query is read", || sinks.each().all(|(_, gauges)| gauges.failures() > 0));
    assert!(sinks.each().all(|(_, gauges)| gauges.damaged.load(std::sync::atomic::Ordering::Relaxed) == 0));
    drop(shards);
    log.close().unwrap();
    sinks.stop(PATIENCE);
    for (kind, format) in [("file", "dnstap"), ("dnstap", "json")] {
        let text = format!(
            "[[sink]]\nname = \"a\"\nkind = \"{kind}\"\nformat = \"{format}\"\nfile = \"a\"\nurl = \"unix:///a\"\n"
        );
        let (document, root) = Document::parse("outgate.toml", &text);
        let _ = Settings::read_all(&root, directory.path(), &directory.log());
        let mistakes = document.take_mistakes();
        assert!(mistakes.iter().any(|mistake| mistake.to_string().contains("cannot carry the format")), "{mistakes:?}");
    }
}

#[test]
fn the_next_file_is_found_though_this_one_is_packed_and_the_clock_was_set_back() {
    let directory = Directory::new();
    let archived = directory.path().join("archive");
    fs::create_dir(&archived).unwrap();
    fs::write(directory.log(), line("1-0-1", 50)).unwrap();
    let readers = Readers::default();
    let mut follower = Follower::open(&directory.log(), (&readers, "siem"), None, From::Oldest).unwrap();
    let mut read = Vec::new();
    let mut go_on = || {
        while let Next::Line(line) = follower.next().unwrap() {
            read.push(String::from_utf8(line.to_vec()).unwrap() + "\n");
        }
    };
    go_on();
    // Read as the current file, it is archived and packed, and one more was current before the one that is.
    let name = "query-20261121T035304Z-0.jsonl";
    let archive = Archive::beside(&directory.log()).unwrap();
    readers.archived(identity_of(&directory.log()).unwrap(), name, &archive);
    let packed = zstd::encode_all(fs::read(directory.log()).unwrap().as_slice(), 1).unwrap();
    fs::write(archived.join(format!("{name}.zst")), packed).unwrap();
    fs::write(archived.join("query-20261121T035304Z-1.jsonl"), line("1-0-2", 10)).unwrap();
    fs::rename(directory.log(), directory.path().join("removed")).unwrap();
    fs::write(directory.log(), line("1-0-3", 11)).unwrap();
    readers.moved(identity_of(&directory.log()).unwrap());
    go_on();
    assert_eq!(ids(&read.concat()), ["1-0-1", "1-0-2", "1-0-3"]);
}

#[test]
fn a_record_arrives_while_the_log_goes_on() {
    let directory = Directory::new();
    let clock = Clock::system();
    let (log, mut shards) = directory.open(&clock, 7, 1);
    let sinks = start(&directory, SINK, &log);
    for count in 1..=3 {
        write(&mut shards[0], &clock, 1);
        until("the record arrives", || ids(&copy(&directory)).len() == count + 1);
    }
    sinks.stop(PATIENCE);
    let ids: BTreeSet<_> = ids(&copy(&directory)).into_iter().collect();
    assert_eq!(ids.len(), 4);
}

/// What a collector that is down misses when its archives are removed is told, exactly, when it is back.
#[test]
fn a_sink_that_was_down_too_long_is_told_what_it_missed() {
    let directory = Directory::new();
    let clock = Clock::manual();
    // A directory in its place: the sink cannot write.
    let copy_path = directory.path().join("copy.jsonl");
    fs::create_dir(&copy_path).unwrap();
    let limits = crate::audit::Settings { max_size: 80 << 10, ..directory.settings() };
    let (mut log, mut shards) = Log::open(limits, "node", clock.clone(), 9, 2).unwrap();
    let sinks = start(&directory, &format!("{SINK}batch = 10\n"), &log);
    until("it is down", || !sinks.each().next().unwrap().1.up());
    let mut written = 0;
    while log.counts().removed < 4 {
        for shard in &mut shards {
            write(shard, &clock, 20);
            written += 20;
        }
        clock.advance(Duration::from_secs(30));
        // It says what was removed unread.
        let _ = log.tick();
        // Only what was read once more in the background is removed.
        std::thread::sleep(Duration::from_millis(2));
    }
    until("the first file is let go of", || sinks.each().next().unwrap().1.gaps() >= log.counts().removed);
    fs::remove_dir(&copy_path).unwrap();
    drop(shards);
    log.close().unwrap();
    until("it is up again", || sinks.each().next().unwrap().1.up());
    sinks.stop(PATIENCE);
    let text = copy(&directory);
    let (gaps, records): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.contains("\"sink\":\"copy\""));
    let mut have: BTreeSet<String> = ids(&records.join("\n")).into_iter().collect();
    let mut missing = 0;
    for gap in &gaps {
        let gap: serde_json::Value = serde_json::from_str(gap).unwrap();
        let mut lost = 0;
        for range in gap["ids"].as_array().unwrap() {
            let (shard, first) = range["first"].as_str().unwrap().rsplit_once('-').unwrap();
            let last = range["last"].as_str().unwrap().rsplit_once('-').unwrap().1;
            let (first, last): (u64, u64) = (first.parse().unwrap(), last.parse().unwrap());
            assert_eq!(range["count"], last - first + 1);
            for sequence in first..=last {
                assert!(have.insert(format!("{shard}-{sequence}")), "{shard}-{sequence} arrived, or is told twice");
                lost += 1;
            }
        }
        assert_eq!(gap["lost"], lost);
        missing += lost;
    }
    assert!(missing > 0 && gaps.len() >= 4, "{gaps:?}");
    let shard = |number: u16| have.iter().filter(|id| id.split('-').nth(1) == Some(&number.to_string())).count();
    assert_eq!(shard(1) + shard(2), written);
}

#[test]
fn what_nobody_must_look_at_is_summed_and_nothing_is_lost() {
    let directory = Directory::new();
    let clock = Clock::manual();
    let text = format!("{SINK}detail = \"summary:10s\"\nfrom = \"oldest\"\n");
    let mut line = String::new();
    for sequence in 1..=200_u64 {
        let ts = crate::time::Wall(1_795_233_180_000_000 + sequence * 100_000);
        line += &format!(
            "{{\"v\":1,\"type\":\"query\",\"id\":\"{:016x}-1-{sequence}\",\"ts\":\"{ts}\",\"node\":\"n\",\"client\":\"192.0.2.{}\",\"segment\":\"s\",\"qname\":\"{}.example\",\"verdict\":\"{}\"}}\n",
            1,
            sequence % 5,
            ["a", "b"][(sequence % 2) as usize],
            if sequence % 50 == 0 { "deny" } else { "allow" },
        );
    }
    fs::write(directory.log(), line).unwrap();
    for _ in 0..2 {
        let (log, shards) = directory.open(&clock, 5, 1);
        clock.advance(Duration::from_secs(3600));
        let sinks = start(&directory, &text, &log);
        drop(shards);
        log.close().unwrap();
        sinks.stop(PATIENCE);
    }
    let mut alone = BTreeSet::new();
    let mut sums = std::collections::BTreeMap::new();
    for line in copy(&directory).lines() {
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
        let id = record["id"].as_str().unwrap().to_owned();
        match record["type"].as_str().unwrap() {
            "query" => _ = alone.insert(id),
            "summary" => _ = sums.insert(id, record["count"].as_u64().unwrap()),
            _ => {}
        }
    }
    // Four denies, and the first sight of two names.
    assert_eq!(alone.len(), 6);
    assert_eq!(sums.values().sum::<u64>() + 6, 200, "{sums:?}");
    assert!(sums.len() >= 4);
}

#[test]
fn no_client_leaves_through_a_redacted_sink() {
    let directory = Directory::new();
    let clock = Clock::system();
    let hostile = "\"why\":\"10.20.7.31 asked, \\b10.20.7.31\\u00e910.20.7.31 and 10.20.7.31:53, [2001:db8::7]:53.\"";
    let line = format!(
        "{{\"v\":1,\"type\":\"query\",\"id\":\"{:016x}-1-1\",\"ts\":\"2026-11-21T03:53:04.117302Z\",\"node\":\"n\",\"client\":\"10.20.7.31\",\"answers\":[{{\"name\":\"a.example\",\"data\":\"198.51.100.7\"}},{{\"data\":\"10.20.7.31\"}}],{hostile},\"targets\":[\"10.20.7.31\"]}}\n",
        1
    );
    fs::write(directory.log(), &line).unwrap();
    for (client, expected) in [("prefix", "10.20.7.0"), ("hmac", "100::")] {
        let sink = SINK.replace("copy", client);
        let (log, shards) = directory.open(&clock, 5, 1);
        let sinks = start(&directory, &format!("{sink}from = \"oldest\"\nclient = \"{client}\"\n"), &log);
        drop(shards);
        log.close().unwrap();
        sinks.stop(PATIENCE);
        let text = fs::read_to_string(directory.path().join(format!("{client}.jsonl"))).unwrap();
        let first = text.lines().next().unwrap();
        let record: serde_json::Value = serde_json::from_str(first).unwrap();
        assert!(!first.contains("7.31") && !first.contains("db8::7"), "{first}");
        let stands: std::net::IpAddr = record["client"].as_str().unwrap().parse().unwrap();
        assert!(record["client"].as_str().unwrap().starts_with(expected), "{first}");
        assert_eq!(record["answers"][0]["data"], "198.51.100.7");
        assert_eq!(record["targets"][0], stands.to_string());
        assert_eq!(record["why"].as_str().unwrap().matches(&stands.to_string()).count(), 4, "{first}");
    }
}
