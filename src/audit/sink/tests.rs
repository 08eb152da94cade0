//! Sinks of kind `file` behind a log that is written, rotated and stopped.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use super::follow::{Follower, Next};
use super::settings::From;
use super::{Readers, Settings, Sinks};
use crate::audit::Log;
use crate::audit::file::identity_of;
use crate::audit::fixture::{Directory, write};
use crate::document::Document;
use crate::time::Clock;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// What `[[sink]]` tables say.
fn settings(text: &str, base: &Path) -> Vec<Settings> {
    let (document, root) = Document::parse("outgate.toml", text);
    let settings = Settings::read_all(&root, base);
    assert_eq!(document.take_mistakes(), []);
    settings
}

const SINK: &str = "[[sink]]\nname = \"copy\"\nkind = \"file\"\nfile = \"copy.jsonl\"\nlinger = \"0s\"\n";

fn start(directory: &Directory, text: &str, log: &Log) -> Sinks {
    let settings = settings(text, directory.path());
    Sinks::start(&settings, &directory.log(), &directory.path().join("state"), &log.meter(), &Clock::system()).unwrap()
}

/// The ids of a file's records, in order.
fn ids(text: &str) -> Vec<String> {
    let id = |line: &str| line.split("\"id\":\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    text.lines().map(id).collect()
}

fn copy(directory: &Directory) -> String {
    fs::read_to_string(directory.path().join("copy.jsonl")).unwrap_or_default()
}

/// Every line of the log, archives first.
fn whole(directory: &Directory) -> String {
    let mut archives: Vec<_> =
        fs::read_dir(directory.path().join("archive")).unwrap().map(|entry| entry.unwrap().path()).collect();
    archives.sort();
    archives.push(directory.log());
    archives.into_iter().map(|path| fs::read_to_string(path).unwrap()).collect()
}

fn until(what: &str, fact: impl Fn() -> bool) {
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
        sinks.stop();
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
    sinks.stop();
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
    sinks.stop();
    for (kind, format) in [("file", "dnstap"), ("dnstap", "json")] {
        let text = format!(
            "[[sink]]\nname = \"a\"\nkind = \"{kind}\"\nformat = \"{format}\"\nfile = \"a\"\nurl = \"unix:///a\"\n"
        );
        let (document, root) = Document::parse("outgate.toml", &text);
        let _ = Settings::read_all(&root, directory.path());
        let mistakes = document.take_mistakes();
        assert!(mistakes.iter().any(|mistake| mistake.to_string().contains("cannot carry the format")), "{mistakes:?}");
    }
}

#[test]
fn an_archive_is_wanted_until_its_records_are_delivered() {
    let directory = Directory::new();
    let clock = Clock::manual();
    let (mut log, mut shards) = directory.open(&clock, 1, 1);
    let sink = SINK.replace("copy.jsonl", "later/copy.jsonl");
    let sinks = start(&directory, &sink, &log);
    for _ in 0..2 {
        write(&mut shards[0], &clock, 60);
        clock.advance(Duration::from_secs(1));
        log.tick().unwrap();
    }
    let wanted = || log.meter().readers().oldest_wanted().map(|archived| archived.name);
    let first = fs::read_dir(directory.path().join("archive")).unwrap();
    let first = first.map(|entry| entry.unwrap().file_name().into_string().unwrap()).min();
    until("everything is read", || sinks.each().all(|(_, gauges)| gauges.failures() > 0));
    assert_eq!(wanted(), first);
    fs::create_dir(directory.path().join("later")).unwrap();
    until("everything is delivered", || wanted().is_none());
    drop(shards);
    log.close().unwrap();
    sinks.stop();
}

#[test]
fn the_next_file_is_found_though_this_one_is_packed_and_the_clock_was_set_back() {
    let directory = Directory::new();
    let archive = directory.path().join("archive");
    fs::create_dir(&archive).unwrap();
    let line = |id: &str, minute: u32| {
        format!(
            "{{\"v\":1,\"type\":\"log\",\"id\":\"{id}\",\"ts\":\"2026-11-21T03:{minute:02}:00.000000Z\",\"node\":\"n\"}}\n"
        )
    };
    let first = archive.join("query-20261121T035304Z-0.jsonl");
    fs::write(&first, line("1-0-1", 50)).unwrap();
    fs::write(archive.join("query-20261121T035304Z-1.jsonl"), line("1-0-2", 10)).unwrap();
    fs::write(directory.log(), line("1-0-3", 11)).unwrap();
    let readers = Readers::default();
    readers.moved(identity_of(&directory.log()).unwrap());
    let mut follower = Follower::open(&directory.log(), &readers, None, From::Oldest).unwrap();
    let mut read = Vec::new();
    while let Next::Line(line) = follower.next().unwrap() {
        read.push(String::from_utf8(line.to_vec()).unwrap() + "\n");
        if read.len() == 1 {
            let packed = compress_to_vec(fs::read(&first).unwrap().as_slice(), CompressionLevel::Fastest);
            fs::write(archive.join("query-20261121T035304Z-0.jsonl.zst"), packed).unwrap();
            fs::remove_file(&first).unwrap();
        }
    }
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
    sinks.stop();
    let ids: BTreeSet<_> = ids(&copy(&directory)).into_iter().collect();
    assert_eq!(ids.len(), 4);
}
