mod disk;
mod packed;

use std::io::{Read as _, Write as _};
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::time::Duration;

use super::*;
use crate::audit::fixture::{Directory, query, write};
use crate::audit::{Finding, RecordId, Report, Tail, verify};

const SECOND: Duration = Duration::from_secs(1);

fn check(directory: &Directory) -> Report {
    verify(&directory.log(), &mut |_| ()).unwrap()
}

fn archives(directory: &Directory) -> Vec<PathBuf> {
    let archive = Archive::beside(&directory.log()).unwrap();
    archive.list().unwrap().iter().map(|archived| archive.path(&archived.name)).collect()
}

/// Writes and ticks until the file was rotated `times` times; then closes in order.
fn rotated(directory: &Directory, clock: &Clock, boot: u64, times: u64) {
    let (mut log, mut shards) = directory.open(clock, boot, 1);
    while log.counts().rotations < times {
        write(&mut shards[0], clock, 10);
        clock.advance(SECOND);
        log.tick().unwrap();
    }
    drop(shards);
    log.close().unwrap();
}

#[test]
fn nothing_is_lost_while_shards_write_and_the_file_rotates() {
    let directory = Directory::new();
    let clock = Clock::system();
    let (mut log, shards) = directory.open(&clock, 1, 4);
    let working = AtomicUsize::new(shards.len());
    let rotated = AtomicBool::new(false);
    let written = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for mut shard in shards {
            let (clock, working, rotated, written) = (&clock, &working, &rotated, &written);
            scope.spawn(move || {
                // Until there were rotations, however slow the log's thread is.
                for batch in (0..100_000).take_while(|batch| *batch < 100 || !rotated.load(Ordering::SeqCst)) {
                    let mut ids: Vec<_> = (0..8).map(|_| shard.reserve()).collect();
                    ids.rotate_left(batch % 8);
                    for id in ids {
                        shard.append(id, &query(clock.now().wall));
                    }
                    shard.commit().unwrap();
                    written.fetch_add(8, Ordering::SeqCst);
                }
                drop(shard);
                working.fetch_sub(1, Ordering::SeqCst);
            });
        }
        while working.load(Ordering::SeqCst) > 0 {
            log.tick().unwrap();
            rotated.store(log.counts().rotations > 3, Ordering::SeqCst);
        }
    });
    let counts = log.counts();
    log.close().unwrap();
    assert!(counts.rotations > 3, "{counts:?}");
    let report = check(&directory);
    assert!(report.is_clean() && report.notes.is_empty(), "{report}");
    assert!(report.records >= written.into_inner() + 2 * counts.rotations, "{report}");
    for path in archives(&directory) {
        let mut first = String::new();
        io::BufRead::read_line(&mut io::BufReader::new(File::open(path).unwrap()), &mut first).unwrap();
        assert!(first.contains("\"op\":\"open\""), "{first}");
    }
}

#[test]
fn a_second_process_is_refused() {
    let directory = Directory::new();
    let clock = Clock::manual();
    let (log, shards) = directory.open(&clock, 1, 1);
    let error = Log::open(directory.settings(), "node", clock.clone(), 2, 1).err().unwrap();
    assert_eq!(error, AuditError::Locked(directory.log()));
    drop(shards);
    log.close().unwrap();
    directory.open(&clock, 3, 1);
}

#[test]
fn a_restart_goes_on_and_names_the_process_before() {
    let directory = Directory::new();
    let clock = Clock::manual();
    rotated(&directory, &clock, 1, 2);
    rotated(&directory, &clock, 2, 2);
    let text = directory.text();
    assert!(text.contains("\"op\":\"rotate\""), "{text}");
    let report = check(&directory);
    assert!(report.is_clean() && report.notes.is_empty(), "{report}");
    assert_eq!((report.boots, report.files), (2, 5));
    let mut all = String::new();
    for path in archives(&directory) {
        File::open(path).unwrap().read_to_string(&mut all).unwrap();
    }
    assert!(all.contains("\"why\":\"start\"") && all.contains("\"previous_boot\":\"0000000000000001\""));
}

#[test]
fn a_torn_tail_is_ended_at_start_and_found() {
    let directory = Directory::new();
    let clock = Clock::manual();
    let (log, mut shards) = directory.open(&clock, 1, 1);
    write(&mut shards[0], &clock, 3);
    let unanswered = shards[0].reserve();
    write(&mut shards[0], &clock, 1);
    // kill -9: no destructor runs. The lock goes with the descriptors.
    for seat in log.meter.seats().iter() {
        let null = File::options().append(true).open("/dev/null").unwrap();
        *seat.handle.lock() = Handle::of(null);
    }
    drop((shards, log));
    File::options().append(true).open(directory.log()).unwrap().write_all(b"{\"v\":1,\"ty").unwrap();

    let (log, mut shards) = directory.open(&clock, 2, 1);
    write(&mut shards[0], &clock, 1);
    drop(shards);
    log.close().unwrap();
    let text = directory.text();
    assert!(text.contains("\"previous_boot\":\"0000000000000001\"") && text.contains("\"torn\":10"));
    let report = check(&directory);
    let place = ("query.jsonl".to_owned(), 6);
    let in_flight = Finding::InFlight { first: unanswered, last: 4 };
    assert_eq!((report.faults, report.notes), (vec![], vec![Finding::Unfinished { place: place.clone() }, in_flight]));
    // Where it cannot have been a kill, or may have been worse.
    let good = directory.text();
    let machine = machine_start();
    let (before, after) = good.split_once("\"previous_boot\"").unwrap();
    let (torn, close) = ("{\"v\":1,\"ty\n", good.lines().last().unwrap());
    let rows = [
        ("the machine was started anew", format!("{before}\"previous_boot\"{}", after.replace(&machine, "another"))),
        ("nobody says that it was not", good.replace("\"machine\"", "\"other\"")),
        ("it is no beginning of a record", good.replace(torn, &torn.replace('1', "0"))),
        ("the process ended in order", good.replace(torn, "").replacen(close, &format!("{torn}{close}"), 1)),
    ];
    for (fact, text) in rows {
        assert_ne!(text, good, "{fact}");
        fs::write(directory.log(), text).unwrap();
        let report = check(&directory);
        assert!(matches!(&report.faults[..], [Finding::Torn { .. }]), "{fact}: {report}");
    }
}

/// Another thread may have written behind what one was killed over, with or without a line feed between.
#[test]
fn a_line_cut_by_a_kill_is_known_by_its_process_and_time() {
    let directory = Directory::new();
    let clock = Clock::manual();
    let (log, mut shards) = directory.open(&clock, 1, 2);
    write(&mut shards[0], &clock, 4);
    clock.advance(SECOND * 60);
    write(&mut shards[1], &clock, 4);
    mem::forget((log, shards));
    let good = directory.text();
    let lines: Vec<&str> = good.lines().collect();
    assert_eq!(lines.len(), 9);
    for (cut, end, is_fault) in [(8, "", false), (8, "\n", false), (6, "", false), (3, "", true), (4, "\n", true)] {
        let line = |(number, line): (usize, &&str)| match number == cut {
            true => format!("{}{end}", &line[..100]),
            false => format!("{line}\n"),
        };
        fs::write(directory.log(), lines.iter().enumerate().map(line).collect::<String>()).unwrap();
        let report = check(&directory);
        let is_torn = |fault: &Finding| matches!(fault, Finding::Torn { .. });
        let is_unfinished = |note: &Finding| matches!(note, Finding::Unfinished { .. });
        let found = (report.faults.iter().any(is_torn), report.notes.iter().any(is_unfinished));
        assert_eq!(found, (is_fault, !is_fault), "{cut} {end:?}: {report}");
    }
}

#[test]
fn tampering_is_found() {
    type Edit = fn(&str) -> String;
    type Expected = fn(&Finding) -> bool;
    let rows: [(&str, bool, Edit, Expected); 6] = [
        (
            "a line of an archive is deleted",
            true,
            |text| remove_line(text, 5),
            |finding| matches!(finding, Finding::Changed { .. }),
        ),
        ("and leaves a hole", true, |text| remove_line(text, 5), |finding| matches!(finding, Finding::Gap { .. })),
        (
            "a line of an archive is edited",
            true,
            |text| text.replacen("example.org", "example.net", 1),
            |finding| matches!(finding, Finding::Changed { .. }),
        ),
        (
            "a line of the current file is deleted",
            false,
            |text| remove_line(text, 2),
            |finding| matches!(finding, Finding::Gap { .. }),
        ),
        (
            "a line is doubled",
            false,
            |text| text.lines().fold(text.to_owned(), |text, line| text + line + "\n"),
            |finding| matches!(finding, Finding::Twice { .. }),
        ),
        (
            "a seal is edited",
            false,
            |text| text.replacen("\"chain\":\"", "\"chain\":\"0", 2),
            |finding| matches!(finding, Finding::Unlinked { .. }),
        ),
    ];
    for (fact, archived, edit, expected) in rows {
        let directory = Directory::new();
        let clock = Clock::manual();
        rotated(&directory, &clock, 1, 2);
        let (log, mut shards) = directory.open(&clock, 2, 1);
        write(&mut shards[0], &clock, 8);
        drop(shards);
        log.close().unwrap();
        assert!(check(&directory).is_clean());
        let path = if archived { archives(&directory).remove(0) } else { directory.log() };
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, edit(&text)).unwrap();
        let report = check(&directory);
        assert!(report.faults.iter().any(expected), "{fact}: {report}");
    }
}

fn remove_line(text: &str, number: usize) -> String {
    text.lines().enumerate().filter(|(index, _)| *index != number).map(|(_, line)| format!("{line}\n")).collect()
}

#[test]
fn an_archive_that_vanished_is_missed_and_one_that_was_removed_is_not() {
    let directory = Directory::new();
    let clock = Clock::manual();
    rotated(&directory, &clock, 1, 3);
    fs::remove_file(&archives(&directory)[1]).unwrap();
    assert!(check(&directory).faults.iter().any(|fault| matches!(fault, Finding::Missing { .. })));

    let directory = Directory::new();
    let settings = Settings { max_size: 64 << 10, ..directory.settings() };
    let (mut log, mut shards) = Log::open(settings, "node", clock.clone(), 1, 1).unwrap();
    while log.counts().removed < 3 {
        write(&mut shards[0], &clock, 10);
        clock.advance(SECOND);
        log.tick().unwrap();
        // What is not sealed yet is kept, for as long as that takes.
        while !log.unsealed.is_empty() {
            log.sealed.extend(log.sealer.wait(Duration::from_secs(20)));
            log.tell_sealed().unwrap();
        }
    }
    drop(shards);
    clock.advance(HEARTBEAT);
    log.tick().unwrap();
    log.close().unwrap();
    let report = check(&directory);
    assert!(report.is_clean(), "{report}");
    assert!(
        report.removed > 0 && report.notes.iter().all(|note| matches!(note, Finding::BeforeKept { .. })),
        "{report}"
    );
    let total: u64 = archives(&directory).iter().map(|path| path.metadata().unwrap().len()).sum();
    assert!(total <= 64 << 10);
}

#[test]
fn a_file_that_was_moved_or_cut_by_others_is_noticed() {
    let directory = Directory::new();
    let clock = Clock::manual();
    let (mut log, mut shards) = directory.open(&clock, 1, 1);
    write(&mut shards[0], &clock, 5);
    log.tick().unwrap();
    let moved = directory.path().join("moved");
    fs::rename(directory.log(), &moved).unwrap();
    write(&mut shards[0], &clock, 1);
    log.tick().unwrap();
    write(&mut shards[0], &clock, 1);
    assert_eq!(fs::read_to_string(&moved).unwrap().lines().count(), 7);
    let text = directory.text();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 2);
    assert!(lines[0].contains("\"op\":\"reopen\",\"why\":\"moved away by another program\""), "{text}");

    File::options().write(true).open(directory.log()).unwrap().set_len(0).unwrap();
    log.tick().unwrap();
    write(&mut shards[0], &clock, 1);
    let text = directory.text();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 2);
    assert!(lines[0].contains("\"op\":\"reopen\",\"why\":\"cut short by another program\""), "{text}");

    // Longer again than it was before anybody looked.
    File::options().write(true).open(directory.log()).unwrap().set_len(0).unwrap();
    write(&mut shards[0], &clock, 20);
    log.tick().unwrap();
    assert!(directory.text().lines().last().unwrap().contains("cut short by another program"));
    drop(shards);
    log.close().unwrap();
    let report = check(&directory);
    let missing = report.faults.iter().filter(|fault| matches!(fault, Finding::Gap { .. })).count();
    assert_eq!((missing, report.faults.len()), (2, 2), "of both shards: {report}");
    assert!(matches!(&report.notes[..], [Finding::Reopened { .. }]), "{report}");
}

/// A write is in the file before it is counted: what is looked at between the two is not to be missed for ever.
#[test]
fn a_file_that_was_cut_while_a_shard_writes_is_cut_once() {
    let directory = Directory::new();
    let clock = Clock::manual();
    let (mut log, mut shards) = directory.open(&clock, 1, 1);
    write(&mut shards[0], &clock, 5);
    log.tick().unwrap();
    File::options().write(true).open(directory.log()).unwrap().set_len(0).unwrap();
    let seats = Arc::clone(log.meter.seats());
    let mut writing = seats[1].handle.lock();
    writing.write_all(b"\n").unwrap();
    std::thread::scope(|scope| {
        let looks = scope.spawn(|| log.tick().unwrap());
        // It waits for the count; where it does not, it is through.
        let end = Clock::system().tick() + Duration::from_millis(200);
        while !looks.is_finished() && Clock::system().tick() < end {
            std::thread::yield_now();
        }
        seats[1].bytes.fetch_add(1, Ordering::Relaxed);
        drop(writing);
        looks.join().unwrap();
    });
    log.tick().unwrap();
    write(&mut shards[0], &clock, 1);
    log.tick().unwrap();
    assert_eq!(directory.text().matches("cut short by another program").count(), 1);
}

#[test]
fn a_log_is_closed_though_nobody_seals_any_more() {
    let directory = Directory::new();
    let clock = Clock::manual();
    let (mut log, mut shards) = directory.open(&clock, 1, 1);
    log.sealer = Sealer::ended();
    while log.counts().rotations < 1 {
        write(&mut shards[0], &clock, 10);
        clock.advance(SECOND);
        log.tick().unwrap();
    }
    drop(shards);
    let error = log.close().unwrap_err().to_string();
    assert!(error.ends_with("not sealed: what reads closed files has ended; the next start seals it"), "{error}");
    assert!(directory.text().lines().last().unwrap().contains("\"op\":\"close\""));
    let (log, shards) = directory.open(&clock, 2, 1);
    drop(shards);
    log.close().unwrap();
    let report = check(&directory);
    assert!(report.is_clean() && report.notes.is_empty(), "{report}");
}

#[test]
fn heartbeats_name_every_shard() {
    let directory = Directory::new();
    let clock = Clock::manual();
    let (mut log, mut shards) = directory.open(&clock, 1, 2);
    write(&mut shards[1], &clock, 4);
    log.tick().unwrap();
    clock.advance(HEARTBEAT);
    log.tick().unwrap();
    log.tick().unwrap();
    let text = directory.text();
    assert_eq!(text.matches("\"op\":\"heartbeat\"").count(), 1);
    assert!(text.ends_with("\"op\":\"heartbeat\",\"sequences\":{\"0\":2,\"1\":0,\"2\":4}}\n"), "{text}");
}

#[test]
fn says_what_is_wrong_with_the_path() {
    let clock = Clock::manual();
    let directory = Directory::new();
    let missing = directory.path().join("absent/query.jsonl");
    let settings = Settings { file: missing.clone(), ..directory.settings() };
    let error = Log::open(settings, "node", clock.clone(), 1, 1).err().unwrap();
    assert_eq!(error, AuditError::NoDirectory(missing.clone()));
    assert!(error.to_string().contains("the directory does not exist; create it"), "{error}");
    let settings = Settings { file: directory.path().join("a\u{7}.jsonl"), ..directory.settings() };
    assert!(matches!(Log::open(settings, "node", clock, 1, 1).err().unwrap(), AuditError::Name(_)));
}

#[test]
fn tail_follows_rotations() {
    let directory = Directory::new();
    let clock = Clock::manual();
    let (mut log, mut shards) = directory.open(&clock, 1, 1);
    let mut tail = Tail::open(&directory.log(), usize::MAX).unwrap();
    let mut seen = 0;
    let mut drain = |tail: &mut Tail| {
        while let Some(line) = tail.next_line().unwrap() {
            seen += usize::from(line.contains("\"type\":\"query\""));
        }
        seen
    };
    let mut written = 0;
    while log.counts().rotations < 3 {
        write(&mut shards[0], &clock, 10);
        written += 10;
        clock.advance(SECOND);
        log.tick().unwrap();
        if log.counts().rotations != 1 {
            drain(&mut tail);
        }
    }
    write(&mut shards[0], &clock, 1);
    // A file is left only when its end was seen twice.
    for _ in 0..4 {
        drain(&mut tail);
    }
    assert_eq!(drain(&mut tail), written + 1);
    let mut last = Tail::open(&directory.log(), 1).unwrap();
    assert!(last.next_line().unwrap().unwrap().contains("\"type\":\"query\""));
    assert_eq!(last.next_line().unwrap(), None);
}
