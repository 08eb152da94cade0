//! What a disk does: it is full, it fails, it cannot be written to.

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::*;
use crate::audit::group::Group;

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
    assert!(
        error.ends_with("the disk did not keep what was written: I/O error; check the disk and the path"),
        "{error}"
    );
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

/// What would be answered meanwhile is in a file that has its name on the disk.
#[test]
fn a_file_whose_name_the_disk_does_not_keep_is_not_written_to() {
    let directory = Directory::new();
    let clock = Clock::manual();
    let settings = Settings { durability: Durability::Disk, ..directory.settings() };
    let (mut log, mut shards) = Log::open(settings, "node", clock.clone(), 1, 1).unwrap();
    log.keep_names = |directory| Err(AuditError::at(directory, &nix::errno::Errno::EIO.into()));
    let mut errors = Vec::new();
    for _ in 0..10 {
        write(&mut shards[0], &clock, 10);
        clock.advance(SECOND);
        errors.extend(log.tick().err());
    }
    assert!(fs::metadata(directory.log()).unwrap().len() > 20 << 10);
    assert_eq!(errors.len(), 1, "it is told, and left alone for a while: {errors:?}");
    assert!(errors[0].to_string().contains("archive: Input/output error"), "{errors:?}");
    assert_eq!((log.counts().rotations, archives(&directory).len()), (0, 0));
    let files = || fs::read_dir(directory.path()).unwrap().count();
    assert_eq!(files(), 2, "the log and its archive");
    // Nor to one that took the place of a file which another program moved away.
    let moved = directory.path().join("moved");
    fs::rename(directory.log(), &moved).unwrap();
    log.tick().unwrap_err();
    write(&mut shards[0], &clock, 1);
    assert_eq!(fs::metadata(directory.log()).unwrap().len(), 0);
    fs::rename(&moved, directory.log()).unwrap();
    // Tried again.
    log.keep_names = keep_names;
    clock.advance(RETRY);
    log.tick().unwrap();
    assert_eq!(log.counts().rotations, 1);
    write(&mut shards[0], &clock, 1);
    drop(shards);
    log.close().unwrap();
    let report = check(&directory);
    assert!(report.is_clean() && report.notes.is_empty(), "{report}");
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
    let mut error = String::new();
    while fs::metadata(directory.log()).unwrap().len() < 20 << 10 {
        write(&mut shards[0], &clock, 10);
        clock.advance(SECOND);
        error = log.tick().err().map_or(error, |error| error.to_string());
    }
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
