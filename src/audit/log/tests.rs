use std::io::{Read as _, Write as _};
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use super::*;
use crate::audit::fixture::{Directory, query, write};
use crate::audit::group::Group;
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

/// What packs an archive, and takes its plain form away.
fn pack(path: &Path, edit: impl FnOnce(Vec<u8>) -> Vec<u8>) {
    let packed = compress_to_vec(&*fs::read(path).unwrap(), CompressionLevel::Fastest);
    fs::write(path.with_extension("jsonl.zst"), edit(packed)).unwrap();
    fs::remove_file(path).unwrap();
}

fn read_all(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    decoded(File::open(path).unwrap()).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn packed_archives_are_as_good_as_those_that_were_closed() {
    type Edit = fn(Vec<u8>) -> Vec<u8>;
    type Expected = fn(&Finding) -> bool;
    let rows: [(&str, Edit, Expected); 3] = [
        ("as it was", |packed| packed, |_| false),
        (
            "an octet is changed",
            |mut packed| {
                let middle = packed.len() / 2;
                packed[middle] ^= 1;
                packed
            },
            |finding| matches!(finding, Finding::Damaged { .. }),
        ),
        (
            "it is cut short",
            |packed| packed[..packed.len() - 100].to_vec(),
            |finding| matches!(finding, Finding::Damaged { line, .. } if *line > 0),
        ),
    ];
    for (fact, edit, expected) in rows {
        let directory = Directory::new();
        let clock = Clock::manual();
        rotated(&directory, &clock, 1, 3);
        for path in &archives(&directory)[1..] {
            pack(path, |packed| packed);
        }
        pack(&archives(&directory)[0], edit);
        // A killed process may leave both.
        let both = &archives(&directory)[2];
        fs::write(both.with_extension(""), read_all(both)).unwrap();
        rotated(&directory, &clock, 2, 2);
        let report = check(&directory);
        assert_eq!(report.is_clean(), fact == "as it was", "{fact}: {report}");
        assert!(report.is_clean() || report.faults.iter().any(expected), "{fact}: {report}");
        assert_eq!(report.files, 6);
    }
    // Repacked after its contents were edited, and where the log's newest file is a packed one.
    let directory = Directory::new();
    let clock = Clock::manual();
    rotated(&directory, &clock, 1, 2);
    let path = &archives(&directory)[1];
    fs::write(path, fs::read_to_string(path).unwrap().replacen("example.org", "example.net", 1)).unwrap();
    archives(&directory).iter().for_each(|path| pack(path, |packed| packed));
    let changed = |finding: &Finding| matches!(finding, Finding::Changed { .. });
    assert!(matches!(&check(&directory).faults[..], [fault] if changed(fault)));
    fs::remove_file(directory.log()).unwrap();
    let (log, shards) = directory.open(&clock, 2, 1);
    drop(shards);
    log.close().unwrap();
    assert!(directory.text().lines().next().unwrap().contains("\"previous_boot\":\"0000000000000001\""));
}

#[test]
fn tail_goes_on_in_archives_that_were_packed_meanwhile() {
    let directory = Directory::new();
    let clock = Clock::manual();
    let (mut log, mut shards) = directory.open(&clock, 1, 1);
    let mut tail = Tail::open(&directory.log(), usize::MAX).unwrap();
    while log.counts().rotations < 3 {
        write(&mut shards[0], &clock, 10);
        clock.advance(SECOND);
        log.tick().unwrap();
    }
    archives(&directory).iter().for_each(|path| pack(path, |packed| packed));
    write(&mut shards[0], &clock, 5);
    let (mut seen, mut nothing) = (0, 0);
    while nothing < 4 {
        match tail.next_line().unwrap() {
            Some(line) => seen += u64::from(line.contains("\"type\":\"query\"")),
            None => nothing += 1,
        }
    }
    assert_eq!(seen, log.meter().seats()[1].records.load(Ordering::Relaxed));
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
            log.sealed.extend(log.sealer.wait());
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

/// A small file system of its own; `None` where this user may not mount one.
struct Small(PathBuf);

impl Small {
    fn mount(directory: &Directory) -> Option<Self> {
        let path = directory.path().to_path_buf();
        match mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), Some("size=256k")) {
            Ok(()) => Some(Self(path)),
            Err(error) => {
                assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "needs root, to mount a tmpfs: {error}");
                eprintln!("skipped: needs root, to mount a tmpfs ({error})");
                None
            }
        }
    }

    fn fill(&self) -> PathBuf {
        let path = self.0.join("ballast");
        let mut file = File::create(&path).unwrap();
        for size in [4096, 1] {
            while file.write_all(&vec![b'x'; size]).is_ok() {}
        }
        path
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_full_disk_refuses_then_recovers_and_the_gap_is_declared() {
    for on_full in [OnFull::Refuse, OnFull::Drop] {
        let directory = Directory::new();
        let Some(small) = Small::mount(&directory) else { return };
        let clock = Clock::manual();
        let settings = Settings { on_full, rotate_size: 32 << 10, ..directory.settings() };
        let (mut log, mut shards) = Log::open(settings, "node", clock.clone(), 1, 1).unwrap();
        write(&mut shards[0], &clock, 3);
        let ballast = small.fill();
        // The blocks that were allocated are still there to be written to.
        write(&mut shards[0], &clock, 3);
        let mut results = Vec::new();
        for _ in 0..150 {
            let id = shards[0].reserve();
            shards[0].append(id, &query(clock.now().wall));
            results.push(shards[0].commit());
        }
        assert!(!log.usable());
        let failed = results.iter().filter(|result| result.is_err()).count();
        let counts = log.counts();
        match on_full {
            OnFull::Refuse => {
                assert_eq!(results.last(), Some(&Err(AuditError::NoSpace(directory.log()))));
                assert_eq!((counts.refused, counts.dropped), (failed as u64, 0));
            }
            OnFull::Drop => {
                assert_eq!(failed, 0);
                assert!(counts.dropped > 0 && counts.refused == 0);
            }
        }
        log.tick().unwrap_err();
        fs::remove_file(ballast).unwrap();
        clock.advance(RETRY);
        log.tick().unwrap();
        assert!(log.usable());
        write(&mut shards[0], &clock, 2);
        drop(shards);
        log.close().unwrap();
        let report = check(&directory);
        let lost: u64 = report
            .notes
            .iter()
            .map(|note| match note {
                Finding::Declared { first, last } if first.shard == 1 => last - first.sequence + 1,
                _ => 0,
            })
            .sum();
        assert_eq!(lost, counts.refused + counts.dropped, "{report}");
        assert!(report.faults.iter().all(|fault| matches!(fault, Finding::Torn { .. })), "{report}");
    }
}

#[test]
fn a_disk_that_does_not_keep_a_file_loses_no_answer_and_is_given_up() {
    let directory = Directory::new();
    let clock = Clock::manual();
    let settings = Settings { durability: Durability::Disk, ..directory.settings() };
    let (mut log, mut shards) = Log::open(settings, "node", clock.clone(), 1, 2).unwrap();
    let (fails, kept) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let path = directory.log();
    let length = || fs::metadata(directory.log()).unwrap().len();
    log.current.keep_by({
        let (fails, kept) = (Arc::clone(&fails), Arc::clone(&kept));
        Group::by(move || {
            kept.store(fs::metadata(&path).unwrap().len(), Ordering::SeqCst);
            if fails.load(Ordering::SeqCst) { Err(nix::errno::Errno::EIO.into()) } else { Ok(()) }
        })
    });
    for seat in log.meter.seats().iter() {
        *seat.handle.lock() = log.current.handle(&directory.log()).unwrap();
    }
    for _ in 0..3 {
        write(&mut shards[0], &clock, 2);
        assert_eq!(kept.load(Ordering::SeqCst), length(), "what was committed is on the disk");
    }
    let try_one = |shard: &mut Shard| {
        let id = shard.reserve();
        shard.append(id, &query(clock.now().wall));
        shard.commit()
    };
    fails.store(true, Ordering::SeqCst);
    let error = try_one(&mut shards[0]).unwrap_err().to_string();
    assert!(error.ends_with("the disk did not keep what was written: I/O error; check the disk and the path"), "{error}");
    // That a later one would succeed says nothing; nothing more is written to that file, by nobody.
    fails.store(false, Ordering::SeqCst);
    let before = length();
    try_one(&mut shards[0]).unwrap_err();
    try_one(&mut shards[1]).unwrap_err();
    assert_eq!(length(), before);
    assert!(!log.usable());
    assert_eq!(log.counts().refused, 3);

    log.tick().unwrap();
    assert!(log.usable());
    let first = directory.text().lines().next().unwrap().to_owned();
    assert!(first.contains("\"op\":\"open\",\"why\":\"the disk did not keep the file before\""), "{first}");
    write(&mut shards[0], &clock, 1);
    write(&mut shards[1], &clock, 1);
    let text = directory.text();
    let gaps: Vec<&str> = text.lines().filter(|line| line.contains("\"op\":\"gap\"")).collect();
    assert!(gaps[0].contains("\"lost\":2,\"ranges\":[[7,8]]"), "{gaps:?}");
    assert!(gaps[1].contains("\"lost\":1,\"ranges\":[[1,1]]"), "{gaps:?}");
    drop(shards);
    log.close().unwrap();
    let report = check(&directory);
    // The one that was written and not kept is still in this memory, and may be or not be on a disk.
    let lost = |shard, sequence| Finding::Declared { first: RecordId { boot: 1, shard, sequence }, last: sequence };
    assert_eq!((report.faults, report.notes), (vec![], vec![lost(1, 8), lost(2, 1)]));
}

#[test]
fn what_the_disk_says_to_a_write_is_told_and_declared() {
    let directory = Directory::new();
    let clock = Clock::manual();
    let (log, mut shards) = directory.open(&clock, 1, 1);
    write(&mut shards[0], &clock, 1);
    // Nothing is mapped at its beginning: EIO.
    let broken = File::options().write(true).open("/proc/self/mem").unwrap();
    let file = mem::replace(&mut *log.meter.seats()[1].handle.lock(), Handle::of(broken));
    let id = shards[0].reserve();
    shards[0].append(id, &query(clock.now().wall));
    let error = shards[0].commit().unwrap_err().to_string();
    assert!(error.ends_with("query.jsonl: Input/output error (os error 5); check the disk and the path"), "{error}");
    *log.meter.seats()[1].handle.lock() = file;
    write(&mut shards[0], &clock, 1);
    drop(shards);
    log.close().unwrap();
    let report = check(&directory);
    assert_eq!((report.faults, report.notes), (vec![], vec![Finding::Declared { first: id, last: 2 }]));
}

#[test]
fn an_archive_that_cannot_be_written_to_holds_nothing_up() {
    let directory = Directory::new();
    let clock = Clock::manual();
    let (mut log, mut shards) = directory.open(&clock, 1, 1);
    let archive = directory.path().join("archive");
    fs::remove_dir(&archive).unwrap();
    fs::write(&archive, "").unwrap();
    let error = loop {
        write(&mut shards[0], &clock, 10);
        clock.advance(SECOND);
        if let Err(error) = log.tick() {
            break error.to_string();
        }
    };
    assert!(error.contains("archive") && error.contains("the directory does not exist; create it"), "{error}");
    // It goes on in the file that it has, and rotates as soon as it can.
    write(&mut shards[0], &clock, 10);
    fs::remove_file(&archive).unwrap();
    fs::create_dir(&archive).unwrap();
    clock.advance(RETRY);
    log.tick().unwrap();
    assert_eq!(log.counts().rotations, 1);
    drop(shards);
    log.close().unwrap();
    let report = check(&directory);
    assert!(report.is_clean() && report.notes.is_empty(), "{report}");
}

#[test]
fn a_disk_too_full_for_a_file_is_known_at_start() {
    let directory = Directory::new();
    let Some(_small) = Small::mount(&directory) else { return };
    let settings = Settings { rotate_size: 1 << 20, ..directory.settings() };
    let error = Log::open(settings.clone(), "node", Clock::manual(), 1, 1).err().unwrap();
    assert_eq!(error, AuditError::NoSpace(directory.log()));
    Log::open(Settings { on_full: OnFull::Drop, ..settings }, "node", Clock::manual(), 1, 1).unwrap();
}

#[test]
fn blocks_are_allocated_ahead_and_given_back() {
    use std::os::unix::fs::MetadataExt;
    let allocated = |path: &Path| path.metadata().unwrap().blocks() * 512;
    let directory = Directory::new();
    let clock = Clock::manual();
    let settings = Settings { rotate_size: 1 << 20, ..directory.settings() };
    let (mut log, mut shards) = Log::open(settings, "node", clock.clone(), 1, 1).unwrap();
    if allocated(&directory.log()) < 1 << 20 {
        eprintln!("skipped: this file system cannot allocate ahead");
        return;
    }
    log.rotate(&directory.log(), "rotate").unwrap();
    write(&mut shards[0], &clock, 1);
    assert!(allocated(&directory.log()) >= 1 << 20);
    drop(shards);
    log.close().unwrap();
    for path in archives(&directory).iter().chain([&directory.log()]) {
        assert!(allocated(path) < 1 << 16, "{}", path.display());
    }
}
