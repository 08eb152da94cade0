use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::*;
use crate::audit::{Log, Settings, read_records};
use crate::flow::{Carrier, Class, Flow, Index, Limits};
use crate::time::Clock;

/// A directory of its own, for one log.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("outgate-history-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn log(&self) -> PathBuf {
        self.0.join("query.jsonl")
    }

    /// What the log lacks, in seconds from the start, and what else it says.
    fn missing(&self) -> (Vec<(u64, u64)>, Vec<Fact>) {
        let (mut reading, mut gaps, mut facts) = (Reading::default(), Vec::new(), Vec::new());
        let mut take = |fact: Fact| match fact.missing() {
            Some((from, to)) => gaps.push((from.0 / 1_000_000 - START, to.0 / 1_000_000 - START)),
            None => facts.push(fact),
        };
        read_records(&[self.log()], &mut |_| (), &mut |record| {
            reading.take(record).into_iter().flatten().for_each(&mut take);
        })
        .unwrap();
        reading.rest(second(9999)).into_iter().for_each(take);
        (gaps, facts)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// 2026-01-01T00:00:00Z.
const START: u64 = 1_767_225_600;

const fn second(seconds: u64) -> Wall {
    Wall((START + seconds) * 1_000_000)
}

/// A line: `boot-shard-sequence`, when, and the rest; of a query, without a rest.
type Line<'a> = (&'a str, u64, &'a str);
/// What a log is, its lines, and the times that it lacks.
type Row<'a> = (&'a str, &'a [Line<'a>], &'a [(u64, u64)]);

fn line((id, at, rest): Line<'_>) -> String {
    let (boot, id) = id.split_once('-').unwrap();
    let kind = if rest.is_empty() { "query" } else { "log" };
    let rest = match rest {
        "" => r#""client":"192.0.2.7","qname":"a.example","qtype":"A","verdict":"allow","reason":"rule""#,
        rest => rest,
    };
    format!(
        "{{\"v\":1,\"type\":\"{kind}\",\"id\":\"{boot:0>16}-{id}\",\"ts\":\"{}\",\"node\":\"n\",{rest}}}",
        second(at)
    )
}

const FIRST: Line<'static> = ("a-0-1", 0, r#""op":"open","why":"start","machine":"m1""#);
const AGAIN: &str = r#""op":"open","why":"start","machine":"m1","previous_boot":"000000000000000a""#;
const KILLED: &str = r#""op":"open","why":"start","machine":"m1","previous_boot":"000000000000000a","torn":9"#;
const REBOOTED: &str = r#""op":"open","why":"start","machine":"m2","previous_boot":"000000000000000a""#;
const CLOSE: &str = r#""op":"close","sequences":{}"#;
const BEAT: &str = r#""op":"heartbeat","sequences":{"1":1,"2":7}"#;

#[test]
fn what_is_missing_lies_between_the_records_around_it() {
    let torn = ("torn", 0, "");
    #[rustfmt::skip]
    let rows: [Row<'_>; 18] = [
        ("nothing", &[FIRST, ("a-1-1", 10, ""), ("a-2-1", 9, ""), ("a-0-2", 30, BEAT)], &[]),
        ("a line that is no record", &[FIRST, ("a-1-1", 10, ""), torn, ("a-1-2", 20, "")], &[(10, 20)]),
        ("the last line", &[FIRST, ("a-1-1", 10, ""), torn], &[(10, 9999)]),
        ("a killed process", &[FIRST, ("a-1-1", 10, ""), ("b-0-1", 20, AGAIN), ("b-1-1", 21, "")], &[]),
        ("and its unfinished line", &[FIRST, ("a-1-1", 10, ""), torn, ("b-0-1", 20, KILLED)], &[]),
        ("and one more", &[FIRST, ("a-1-1", 10, ""), torn, torn, ("b-0-1", 20, KILLED)], &[(10, 20)]),
        ("a line, then the process was killed", &[FIRST, ("a-1-1", 10, ""), torn, ("b-0-1", 20, AGAIN)], &[(10, 20)]),
        ("a power cut", &[FIRST, ("a-1-1", 10, ""), ("b-0-1", 400, REBOOTED)], &[(10, 400)]),
        ("a power cut, and a torn line", &[FIRST, ("a-1-1", 10, ""), torn, ("b-0-1", 400, REBOOTED)], &[(10, 400)]),
        ("a machine that was shut down", &[FIRST, ("a-0-2", 10, CLOSE), ("b-0-1", 400, REBOOTED)], &[]),
        ("a file between, of the same process", &[FIRST, ("a-0-2", 30, BEAT), ("a-1-1", 31, ""), ("a-0-5", 90, BEAT)], &[(31, 90)]),
        ("a file between, of another", &[FIRST, ("a-0-2", 30, BEAT), ("c-0-1", 90, AGAIN), ("d-0-1", 99, AGAIN)], &[(90, 99)]),
        ("a file whose beginning is not there", &[FIRST, ("a-0-2", 30, BEAT), ("b-1-9", 90, ""), ("b-0-9", 99, BEAT)], &[(30, 90)]),
        ("moved away", &[FIRST, ("a-1-1", 10, ""), ("a-0-2", 20, r#""op":"reopen","why":"moved""#)], &[(10, 20)]),
        ("records that could not be written", &[FIRST, ("a-1-1", 10, ""), ("a-2-1", 20, ""), ("a-1-3", 25, r#""op":"gap","lost":1,"ranges":[[2,2]]"#)], &[(10, 25)]),
        ("not asked for by the heartbeat", &[FIRST, ("a-1-1", 10, ""), ("a-0-2", 20, BEAT), ("a-1-3", 25, r#""op":"gap","lost":1,"ranges":[[2,2]]"#)], &[(20, 25)]),
        ("asked for by the heartbeat", &[FIRST, ("a-2-1", 10, ""), ("a-0-2", 20, BEAT), ("a-2-8", 25, r#""op":"gap","lost":1,"ranges":[[7,7]]"#)], &[(10, 25)]),
        ("a sink's own", &[FIRST, ("a-1-1", 10, ""), ("a-1-2", 40, r#""op":"gap","sink":"s","first":"2026-01-01T00:00:12.000000Z""#)], &[(12, 40)]),
    ];
    let place = Place::new("missing");
    for (what, lines, expected) in rows {
        let text: String = lines
            .iter()
            .map(|row| if row.0 == "torn" { "{\"v\":1,\n".to_owned() } else { line(*row) + "\n" })
            .collect();
        std::fs::write(place.log(), text).unwrap();
        assert_eq!(place.missing().0, expected, "{what}");
    }
}

#[test]
fn archives_that_are_gone_or_broken_are_missing() {
    let place = Place::new("archives");
    let archive = place.0.join("archive");
    std::fs::create_dir_all(&archive).unwrap();
    let rotated = r#""op":"open","why":"rotate","machine":"m1""#;
    let file = |first: u64, at: u64| {
        let opened = if first == 1 { FIRST.2 } else { rotated };
        let ids = [first, first + 1].map(|number| format!("a-0-{number}"));
        line((&ids[0], at, opened))
            + "\n"
            + &line(("a-1-1", at + 10, ""))
            + "\n"
            + &line((&ids[1], at + 20, BEAT))
            + "\n"
    };
    for (number, at) in [(0, 0), (1, 100), (2, 200)] {
        let name = format!("query-20260101T0000{:02}Z-0.jsonl", number + 1);
        std::fs::write(archive.join(name), file(number * 2 + 1, at)).unwrap();
    }
    std::fs::write(place.log(), file(7, 300)).unwrap();
    assert_eq!(place.missing().0, []);
    let middle = archive.join("query-20260101T000002Z-0.jsonl");
    // zstd's magic, and nothing that it could unpack.
    std::fs::write(&middle, [0x28, 0xb5, 0x2f, 0xfd, 1, 2, 3, 4]).unwrap();
    assert_eq!(place.missing().0, [(20, 200)]);
    std::fs::remove_file(middle).unwrap();
    assert_eq!(place.missing().0, [(20, 200)]);
}

/// Whatever a real log does, it lacks nothing of what it wrote.
#[test]
fn a_log_that_was_rotated_and_closed_lacks_nothing() {
    let place = Place::new("real");
    let clock = Clock::manual();
    let settings = || Settings { file: place.log(), rotate_size: 16 << 10, min_free: 0, ..Settings::default() };
    let mut beats = 0;
    for boot in 1..4 {
        let (mut log, shards) = Log::open(settings(), "n", clock.clone(), boot, 2).unwrap();
        for _ in 0..100 {
            clock.advance(Duration::from_secs(31));
            log.tick().unwrap();
            beats += 1;
        }
        drop(shards);
        // The second one is killed.
        if boot != 2 {
            log.close().unwrap();
        }
    }
    let (gaps, facts) = place.missing();
    assert_eq!(gaps, []);
    assert!(facts.len() > beats && place.0.join("archive").read_dir().unwrap().count() > 1, "{}", facts.len());
}

#[test]
fn addresses_that_the_record_has_no_room_for_are_not_nobodys() {
    let answer =
        r#""segment":"office","rule":"web","answers":[{"name":"a.example","type":"A","ttl":60,"data":"198.51.100.7"}]"#;
    let query = |id, at, more: &str| {
        let line = line((id, at, ""));
        line.strip_suffix('}').unwrap().to_owned() + "," + answer + more + "}\n"
    };
    let opened = r#""op":"open","client":"192.0.2.7","scope":"client","segment":"office","rule":"web","qname":"a.example","address":"198.51.100.9","ports":["tcp/443"],"until":"2026-01-01T00:05:00.000000Z","query":"000000000000000a-1-1""#;
    let opened = line(("a-2-1", 10, opened)).replace("\"type\":\"log\"", "\"type\":\"grant\"") + "\n";
    let granted = r#","answers_omitted":1,"grant":{"ports":["tcp/443"],"until":"2026-01-01T00:05:00.000000Z"}"#;
    let place = Place::new("omitted");
    for (what, text, listed, other) in [
        ("all are listed", query("a-1-1", 10, ""), Class::Exact, Class::None),
        ("one is not", query("a-1-1", 10, r#","answers_omitted":1"#), Class::Exact, Class::Unknown),
        (
            "of another type",
            query("a-1-1", 10, r#","answers_omitted":1"#).replace("\"qtype\":\"A\"", "\"qtype\":\"TXT\""),
            Class::Exact,
            Class::None,
        ),
        ("each was opened", opened.clone() + &query("a-1-1", 10, granted), Class::Exact, Class::Exact),
    ] {
        std::fs::write(place.log(), line(FIRST) + "\n" + &text).unwrap();
        let mut index = Index::new(Limits::default());
        index.begin(Wall(0), true);
        place.missing().1.iter().for_each(|fact| fact.apply(&mut index));
        let judge = |address: &str, at| {
            let flow = Flow {
                at: second(at),
                end: None,
                client: IpAddr::from([192, 0, 2, 7]),
                segment: None,
                address: address.parse().unwrap(),
                carrier: Carrier::Tcp(443),
                started: true,
                denied: false,
                error: Duration::ZERO,
            };
            index.judge(&flow)
        };
        assert_eq!((judge("198.51.100.7", 20).class, judge("198.51.100.9", 20).class), (listed, other), "{what}");
        assert_eq!(judge("198.51.100.8", 9).class, Class::None, "{what}: before");
        assert_eq!(judge("198.51.100.8", 5000).class, Class::None, "{what}: long after");
        if other == Class::Unknown {
            let why = judge("198.51.100.9", 20).why().unwrap();
            assert_eq!(why, "this client was told more addresses than the record of its query has room for");
            // It may be that address that was told anew.
            assert_eq!(judge("198.51.100.7", 80).detail, Some(Detail::Unlisted));
        }
    }
}
