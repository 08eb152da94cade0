//! Sinks of kind `file` behind a log that is written, rotated and stopped.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use super::{Settings, Sinks};
use crate::audit::Log;
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
    let (mut log, mut shards) = directory.open(&clock, 1, 1);
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
        Settings::read_all(&root, directory.path());
        let mistakes = document.take_mistakes();
        assert!(mistakes.iter().any(|mistake| mistake.to_string().contains("cannot carry the format")), "{mistakes:?}");
    }
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
