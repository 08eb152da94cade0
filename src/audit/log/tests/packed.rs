//! Archives that are packed, by the log and by others.

use super::*;

/// What packs an archive, and takes its plain form away.
fn pack(path: &Path, edit: impl FnOnce(Vec<u8>) -> Vec<u8>) {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(&fs::read(path).unwrap()).unwrap();
    fs::write(path.with_extension("jsonl.zst"), edit(encoder.finish().unwrap())).unwrap();
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
            |finding| matches!(finding, Finding::Damaged { .. }),
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
fn archives_are_packed_once_they_are_sealed_and_old_enough() {
    let directory = Directory::new();
    let clock = Clock::manual();
    let (mut log, mut shards) = directory.open(&clock, 1, 1);
    while log.counts().rotations < 3 {
        write(&mut shards[0], &clock, 10);
        clock.advance(SECOND);
        log.tick().unwrap();
    }
    let packed = || archives(&directory).iter().filter(|path| path.extension().unwrap() == "zst").count();
    let plain: u64 = archives(&directory).iter().map(|path| path.metadata().unwrap().len()).sum();
    log.tick().unwrap();
    assert_eq!((packed(), log.packer.is_busy()), (0, false), "none of them is an hour old");
    clock.advance(SECOND * 3600);
    for _ in 0..10_000 {
        clock.advance(SECOND);
        log.tick().unwrap();
        std::thread::sleep(Duration::from_millis(1));
        if packed() == 3 {
            break;
        }
    }
    assert_eq!((packed(), archives(&directory).len()), (3, 3));
    let small: u64 = archives(&directory).iter().map(|path| path.metadata().unwrap().len()).sum();
    assert!(small * 5 < plain, "{small} of {plain}");
    write(&mut shards[0], &clock, 1);
    drop(shards);
    log.close().unwrap();
    let report = check(&directory);
    assert!(report.is_clean() && report.notes.is_empty() && report.files == 4, "{report}");
}

/// Retention lists archives and then removes them; in between one may be packed.
#[test]
fn an_archive_that_is_packed_just_before_it_is_removed_is_removed_and_told_once() {
    let directory = Directory::new();
    let clock = Clock::manual();
    rotated(&directory, &clock, 1, 3);
    let (mut log, shards) = directory.open(&clock, 2, 1);
    let listed = log.archive.list().unwrap();
    pack(&archives(&directory)[0], |packed| packed);
    let size = archives(&directory)[0].metadata().unwrap().len();
    log.remove(listed[0].clone(), "max_size", clock.tick() + SECOND).unwrap();
    assert_eq!((archives(&directory).len(), log.counts().removed), (2, 1));
    // One that is gone was removed by somebody else, who is to say so.
    log.remove(listed[0].clone(), "max_size", clock.tick() + SECOND).unwrap();
    assert_eq!(log.counts().removed, 1);
    log.tell_removed().unwrap();
    assert!(
        directory
            .text()
            .contains(&format!("\"op\":\"removed\",\"file\":\"{}\",\"bytes\":{size}", listed[0].closed_as()))
    );
    drop(shards);
    log.close().unwrap();
    assert!(check(&directory).is_clean());
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
