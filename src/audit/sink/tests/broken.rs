//! What comes between a sink and its log: power cuts, archives that move or cannot be read, connections that break, threads
//! that hang.

use std::fs::File;
use std::io::Read;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::audit::sink::cursor::{Mark, Position};
use crate::audit::sink::lost::Lost;

/// The lines that come next, and what is missing before them.
fn next(follower: &mut Follower) -> (Vec<String>, Vec<Lost>) {
    let (mut lines, mut lost) = (String::new(), Vec::new());
    loop {
        match follower.next().unwrap() {
            Next::Line(line) => lines += &(String::from_utf8(line.to_vec()).unwrap() + "\n"),
            Next::Lost(one) => lost.push(one),
            Next::Damaged(_) => {}
            Next::End => return (ids(&lines), lost),
        }
    }
}

#[test]
fn a_log_that_a_power_cut_shortened_is_gone_on_with_where_it_was_cut() {
    for sink_is_late in [false, true] {
        let directory = Directory::new();
        let clock = Clock::manual();
        let settings = crate::audit::Settings { rotate_size: 1 << 20, ..directory.settings() };
        let run = |boot: u64, with_sink: bool| {
            let (log, mut shards) = Log::open(settings.clone(), "node", clock.clone(), boot, 1).unwrap();
            let sinks = with_sink.then(|| start(&directory, SINK, &log));
            write(&mut shards[0], &clock, 40);
            drop(shards);
            log.close().unwrap();
            sinks.inspect(|sinks| sinks.stop(PATIENCE));
        };
        run(1, true);
        let length = directory.text().len() as u64;
        // The last of it had not come to the disk.
        File::options().write(true).open(directory.log()).unwrap().set_len(length / 2).unwrap();
        run(2, !sink_is_late);
        assert!(directory.text().len() as u64 > length, "the cursor lies amid what was written since");
        run(3, true);
        let delivered = ids(&copy(&directory));
        let is_record = |line: &&str| serde_json::from_str::<serde_json::Value>(line).is_ok();
        let written: String = directory.text().lines().filter(is_record).map(|line| format!("{line}\n")).collect();
        for id in ids(&written) {
            let times = delivered.iter().filter(|delivered| **delivered == id).count();
            assert!(times == 1 || (times == 2 && sink_is_late), "{id}: {times} times");
        }
    }
}

#[test]
fn a_cursor_knows_the_record_before_it() {
    let directory = Directory::new();
    let log = [line("1-0-1", 1), line("1-0-2", 2), line("1-0-3", 3)];
    fs::write(directory.log(), log.concat()).unwrap();
    let readers = Readers::default();
    let mut follower = Follower::open(&directory.log(), (&readers, "siem"), None, From::Oldest).unwrap();
    follower.next().unwrap();
    follower.next().unwrap();
    let position = follower.position().cloned().unwrap();
    let text = serde_json::to_string(&position).unwrap();
    assert!(text.ends_with(&format!("\"offset\":{},\"last\":\"0000000000000001-0-2\"}}", 2 * log[0].len())), "{text}");
    assert_eq!(serde_json::from_str::<Position>(&text).unwrap(), position);
    // Of a cursor as it was saved before, only that a line ends there is known.
    let old: Position = serde_json::from_str(&text.replace(",\"last\":\"0000000000000001-0-2\"", "")).unwrap();
    assert_eq!(old.last, None);
    for (to, expected) in [
        (position.clone(), vec!["1-0-3"]),
        (old.clone(), vec!["1-0-3"]),
        (
            Position { offset: position.offset - log[0].len() as u64, ..position.clone() },
            vec!["1-0-1", "1-0-2", "1-0-3"],
        ),
        (Position { offset: old.offset + 1, ..old.clone() }, vec!["1-0-1", "1-0-2", "1-0-3"]),
        (Position { offset: 9999, ..old }, vec!["1-0-1", "1-0-2", "1-0-3"]),
    ] {
        follower.seek(&to).unwrap();
        assert_eq!(next(&mut follower), (expected.into_iter().map(str::to_owned).collect(), vec![]), "{to:?}");
    }
}

#[test]
fn a_file_that_is_packed_before_a_line_of_it_was_read_is_read() {
    let directory = Directory::new();
    fs::create_dir(directory.path().join("archive")).unwrap();
    let readers = Readers::default();
    let archive = Archive::beside(&directory.log()).unwrap();
    fs::write(directory.log(), line("1-0-1", 1)).unwrap();
    let mut follower = Follower::open(&directory.log(), (&readers, "siem"), None, From::Oldest).unwrap();
    let name = "query-20261121T035304Z-0.jsonl";
    readers.archived(identity_of(&directory.log()).unwrap(), name, &archive);
    let packed = zstd::encode_all(fs::read(directory.log()).unwrap().as_slice(), 1).unwrap();
    fs::write(archive.path(&format!("{name}.zst")), packed).unwrap();
    fs::write(directory.path().join("next"), line("1-0-2", 2)).unwrap();
    fs::rename(directory.path().join("next"), directory.log()).unwrap();
    readers.moved(identity_of(&directory.log()).unwrap());
    assert_eq!(follower.let_go().unwrap(), []);
    assert_eq!(next(&mut follower), (vec!["1-0-1".to_owned(), "1-0-2".to_owned()], vec![]));
}

#[test]
fn an_archive_that_cannot_be_read_is_passed_and_told() {
    let directory = Directory::new();
    let archive = Archive::beside(&directory.log()).unwrap();
    archive.create().unwrap();
    // Nothing can be read from a directory.
    for hour in ["02", "04"] {
        fs::create_dir(archive.path(&format!("query-20261121T{hour}0000Z-0.jsonl"))).unwrap();
    }
    fs::write(archive.path("query-20261121T041000Z-0.jsonl"), line("1-0-3", 50)).unwrap();
    fs::write(directory.log(), line("1-0-4", 55)).unwrap();
    let readers = Readers::default();
    readers.moved(identity_of(&directory.log()).unwrap());
    let began = "2026-11-21T03:10:00.000000Z".to_owned();
    let mark = Arc::new(Mark { first: "1-0-1".to_owned(), began, archive: None });
    let gone = Position { file: mark, offset: 10, last: None };
    let mut follower = Follower::open(&directory.log(), (&readers, "siem"), Some(&gone), From::Oldest).unwrap();
    let (lines, lost) = next(&mut follower);
    assert_eq!(lines, ["1-0-3", "1-0-4"]);
    let files: Vec<_> = lost.iter().map(|lost| lost.file.as_deref()).collect();
    assert_eq!(files, [None, Some("query-20261121T040000Z-0.jsonl")], "the other one is older: {lost:?}");
    assert!(lost[1].why.starts_with("it cannot be read: "), "{lost:?}");
}

/// A server that reads what a gap is told with, and breaks.
#[test]
fn a_gap_that_was_told_over_a_connection_that_broke_is_told_again() {
    let directory = Directory::new();
    let state = directory.path().join("state/sinks");
    fs::create_dir_all(&state).unwrap();
    let lost = "{\"file\":null,\"why\":\"gone\",\"records\":3,\"ids\":[[\"1-1-1\",\"1-1-3\",3]],\"between\":null,\"behind\":\"\"}";
    fs::write(state.join("siem.json"), format!("{{\"v\":1,\"position\":null,\"lost\":[{lost}]}}")).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let told = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&told);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, mut bytes) = (stream.unwrap(), Vec::new());
            let mut piece = [0; 4096];
            while !String::from_utf8_lossy(&bytes).contains("\"id\":\"1-1-1-gap\"") {
                match stream.read(&mut piece) {
                    Ok(read) if read > 0 => bytes.extend_from_slice(&piece[..read]),
                    _ => break,
                }
            }
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    let clock = Clock::system();
    let (log, mut shards) = directory.open(&clock, 1, 1);
    let text =
        format!("[[sink]]\nname = \"siem\"\nkind = \"syslog\"\nserver = \"tcp://127.0.0.1:{port}\"\nlinger = \"0s\"\n");
    let sinks = start(&directory, &text, &log);
    until("it is told again", || {
        write(&mut shards[0], &clock, 1);
        told.load(Ordering::SeqCst) >= 2
    });
    // Nor is it forgotten by a node that stops before it is sure.
    drop(shards);
    log.close().unwrap();
    sinks.stop(PATIENCE);
    let saved = fs::read_to_string(state.join("siem.json")).unwrap();
    assert!(saved.contains("\"ids\":[[\"1-1-1\",\"1-1-3\",3]]"), "{saved}");
}

#[test]
fn a_stop_leaves_a_sink_that_hangs() {
    let directory = Directory::new();
    let listener = UnixListener::bind(directory.path().join("tap.sock")).unwrap();
    let clock = Clock::system();
    let (log, mut shards) = directory.open(&clock, 1, 1);
    let url = directory.path().join("tap.sock");
    let text =
        format!("[[sink]]\nname = \"tap\"\nkind = \"dnstap\"\nurl = \"unix://{}\"\nlinger = \"0s\"\n", url.display());
    let sinks = start(&directory, &text, &log);
    write(&mut shards[0], &clock, 1);
    // It waits for an answer to READY.
    let (mut stream, _) = listener.accept().unwrap();
    stream.read_exact(&mut [0; 8]).unwrap();
    sinks.stop(Duration::from_millis(10));
    stream.set_nonblocking(true).unwrap();
    let mut rest = [0; 256];
    let mut read = stream.read(&mut rest);
    while read.as_ref().is_ok_and(|read| *read > 0) {
        read = stream.read(&mut rest);
    }
    assert!(read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock), "its thread is still there");
    drop(shards);
    log.close().unwrap();
}
