//! The log is rotated, moved and cut under load, while others follow it.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::dns::{Client, a};
use crate::harness::{Site, until};
use crate::programs::{Running, are_here, command};

/// Four clients that ask without pause while `work` goes on; how many answers they had.
pub(crate) fn under_load(site: &Site, work: impl FnOnce()) -> usize {
    let (over, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let client = Client::new(site.dns).patience(Duration::from_millis(50));
                let question = a("www.corp.example").to_vec().unwrap();
                while !over.load(Ordering::SeqCst) {
                    let sent = (0..32).filter(|_| client.socket.send(&question).is_ok()).count();
                    let held = (0..sent).take_while(|_| client.receive().is_some()).count();
                    answered.fetch_add(held, Ordering::SeqCst);
                }
            });
        }
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        over.store(true, Ordering::SeqCst);
        if let Err(panic) = done {
            std::panic::resume_unwind(panic);
        }
    });
    answered.into_inner()
}

/// Follows a file as collectors do: by its inode and an offset in it, its archives being no concern of theirs. Once the
/// name stands for another file, the one that was read is read to its end, and then the other one from its beginning.
fn follow(path: &Path, over: &AtomicBool) -> Vec<u8> {
    let mut seen = Vec::new();
    let mut file = File::open(path).unwrap();
    loop {
        // Looked at before reading: what is written later is in what is read later.
        let last = over.load(Ordering::SeqCst);
        let moved = fs::metadata(path).is_ok_and(|now| now.ino() != file.metadata().unwrap().ino());
        file.read_to_end(&mut seen).unwrap();
        if moved {
            file = File::open(path).unwrap();
        } else if last {
            return seen;
        } else {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The whole log, as it lies there.
fn whole(site: &Site) -> Vec<u8> {
    let mut files: Vec<_> = fs::read_dir(site.path("archive")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.push(site.path("query.jsonl"));
    files.iter().flat_map(|path| fs::read(path).unwrap()).collect()
}

fn lines(bytes: &[u8]) -> usize {
    bytes.iter().filter(|octet| **octet == b'\n').count()
}

#[test]
fn who_follows_the_file_sees_every_record_once() {
    for durability in ["process", "disk"] {
        let site = Site::new().with(
            "audit",
            format!("[audit]\nfile = \"query.jsonl\"\nrotate_size = \"1MiB\"\ndurability = \"{durability}\""),
        );
        let mut node = site.start();
        let log = site.path("query.jsonl");
        let tailed = site.path("tailed");
        let mut tail = are_here(&["tail"]).then(|| {
            let mut tail = command("tail");
            tail.args(["-F", "-n", "+1"]).arg(&log).stdout(Stdio::from(File::create(&tailed).unwrap()));
            Running::start(&mut tail)
        });
        let over = AtomicBool::new(false);
        let (followed, answered) = std::thread::scope(|scope| {
            let follower = scope.spawn(|| follow(&log, &over));
            let archives = || fs::read_dir(site.path("archive")).unwrap().count();
            let answered = under_load(&site, || until("four files are closed", || archives() >= 4));
            assert_eq!(node.stop(), Some(0));
            over.store(true, Ordering::SeqCst);
            (follower.join().unwrap(), answered)
        });
        let all = whole(&site);
        assert!(site.queries().len() >= answered && answered > 1000, "{answered}");
        assert_eq!(lines(&followed), lines(&all), "{durability}: by inode and offset");
        assert!(followed == all, "{durability}: the same records, in another order");
        if let Some(tail) = &mut tail {
            until("tail has read it", || fs::metadata(&tailed).unwrap().len() >= all.len() as u64);
            tail.kill();
            let tailed = fs::read(&tailed).unwrap();
            assert_eq!(lines(&tailed), lines(&all), "{durability}: tail -F");
            assert!(tailed == all, "{durability}: the same records, in another order");
        }
        site.verified();
    }
}

/// What logrotate does without copytruncate: the file is moved, and nobody says so.
#[test]
fn a_file_that_is_moved_away_under_load_loses_nothing() {
    let site = Site::new();
    let mut node = site.start();
    let (log, moved) = (site.path("query.jsonl"), site.path("query.jsonl.1"));
    let answered = under_load(&site, || {
        until("there are records", || fs::metadata(&log).unwrap().len() > 200_000);
        fs::rename(&log, &moved).unwrap();
        until("it goes on in a new file", || fs::metadata(&log).is_ok_and(|now| now.len() > 200_000));
    });
    assert_eq!(node.stop(), Some(0));
    let first = fs::read_to_string(&log).unwrap().lines().next().unwrap().to_owned();
    assert!(first.contains("\"op\":\"reopen\",\"why\":\"moved away by another program\""), "{first}");
    // Without the file that was moved, verify names what is missing; with both, nothing is.
    let ended = site.run(&["log", "verify"]);
    assert_eq!(ended.code, Some(1), "{}", ended.stdout);
    assert!(ended.stdout.contains("query.jsonl:1: moved away by another program"), "{}", ended.stdout);
    assert!(ended.stdout.contains("fault  missing: "), "{}", ended.stdout);
    let both = [fs::read(&moved).unwrap(), fs::read(&log).unwrap()].concat();
    fs::write(&log, both).unwrap();
    assert!(site.queries().len() >= answered);
    let said = site.verified();
    assert!(!said.contains("missing"), "{said}");
}

/// What logrotate does with copytruncate. The file is full again within the second in which that can be noticed.
#[test]
fn a_file_that_is_cut_under_load_is_noticed_and_what_is_missing_named() {
    // Large enough that what is written until the scan below has found it is not rotated away.
    let audit = "[audit]\nfile = \"query.jsonl\"\nrotate_size = \"512MiB\"\nmin_free = \"64MiB\"";
    let site = Site::new().with("audit", audit);
    let mut node = site.start();
    let (log, copy) = (site.path("query.jsonl"), site.path("query.jsonl.1"));
    under_load(&site, || {
        until("there are records", || fs::metadata(&log).unwrap().len() > 100_000);
        fs::copy(&log, &copy).unwrap();
        File::options().write(true).open(&log).unwrap().set_len(0).unwrap();
        // Searched by the optimised standard library: the file grows faster than a loop of ours would read it.
        let noticed = || String::from_utf8_lossy(&fs::read(&log).unwrap()).contains("\"op\":\"reopen\"");
        until("it is noticed", noticed);
    });
    assert_eq!(node.stop(), Some(0));
    let text = fs::read_to_string(&log).unwrap();
    assert!(text.contains("\"op\":\"reopen\",\"why\":\"cut short by another program\""));
    let ended = site.run(&["log", "verify"]);
    assert_eq!(ended.code, Some(1), "{}", ended.stdout);
    assert!(ended.stdout.contains(": cut short by another program"), "{}", ended.stdout);
    // What is named as missing and what is there are all that there ever was.
    let missing: u64 = ended
        .stdout
        .lines()
        .filter_map(|line| line.strip_prefix("fault  missing: ")?.split(' ').next()?.parse::<u64>().ok())
        .sum();
    let close: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    let reserved: u64 = close["sequences"].as_object().unwrap().values().map(|last| last.as_u64().unwrap()).sum();
    let verdict = ended.stdout.lines().find_map(|line| line.strip_prefix("NOT WHOLE: ")).unwrap();
    let there: u64 = verdict.split(' ').next().unwrap().parse().unwrap();
    assert_eq!(missing + there, reserved, "{}", ended.stdout);
    assert!(missing >= lines(&fs::read(&copy).unwrap()) as u64);
}
