use std::io::Write;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;

use super::*;
use crate::audit::archive::Archive;
use crate::audit::fixture::{Directory, write};
use crate::audit::{Encoder, Event, FlowEvent, FlowOp, Log, Outcome, RecordId};
use crate::flow::{self, Carrier, Class, Detail, Origin, QueryId};
use crate::net::Service;
use crate::time::{Clock, Wall};

const ALLOWED: &str = r#"{"v":1,"type":"query","id":"1-1-1","ts":"2026-11-21T03:53:04.117302Z","node":"n","client":"192.0.2.1","port":5,"transport":"udp","asked_by":"edge","certificate":"a.example","segment":"checkout","tags":{"service":"checkout"},"qid":7,"qname":"api.example.com","qtype":"A","verdict":"allow","reason":"rule","rule":"api","policy":"9c1f5be27a40d3e1","rcode":"NOERROR","flags":["RD"],"bytes":90,"cache":"hit","answers":[{"name":"api.example.com","type":"A","ttl":60,"data":"198.51.100.7"},{"name":"api.example.com","type":"TXT","ttl":60,"data":"\\# 2 0161"}],"grant":{"ports":["tcp/443","udp/5000-5010","icmp"],"until":"2026-11-21T03:58:04.000000Z"},"latency_us":42}"#;
const OBSERVED: &str = r#"{"type":"query","verdict":"deny","reason":"default","enforced":false,"id":"1-1-2","client":"2001:db8::1","ts":"2026-11-21T03:53:05.000000Z","qname":"a\\.b.example"}"#;
const GRANT: &str = r#"{"v":1,"type":"grant","id":"1-2-1","ts":"2026-11-21T03:53:04.117302Z","node":"n","op":"open"}"#;

/// What is read of these paths: the ids, and the account.
fn read(paths: &[PathBuf]) -> (Vec<String>, QueriesRead) {
    let mut ids = Vec::new();
    let read = read_queries(paths, &mut |_| (), &mut |query| ids.push(query.id.to_string())).unwrap();
    (ids, read)
}

fn line(sequence: usize) -> String {
    ALLOWED.replace("1-1-1", &format!("1-1-{sequence}")) + "\n"
}

fn lines(sequences: std::ops::Range<usize>) -> Vec<u8> {
    sequences.map(line).collect::<String>().into_bytes()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn a_record_is_read_as_it_was_written() {
    let query = Query::read(ALLOWED.as_bytes()).unwrap();
    assert_eq!((&*query.id, query.at().to_string().as_str()), ("1-1-1", &*query.ts));
    assert_eq!(query.client.to_string(), "192.0.2.1");
    let texts = [query.asked_by.as_deref(), query.certificate.as_deref(), query.segment.as_deref()];
    assert_eq!(texts, [Some("edge"), Some("a.example"), Some("checkout")]);
    let texts = [query.qname.as_deref(), query.qtype.as_deref(), query.rule.as_deref(), query.policy.as_deref()];
    assert_eq!(texts, [Some("api.example.com"), Some("A"), Some("api"), Some("9c1f5be27a40d3e1")]);
    assert_eq!((query.verdict, query.enforced, &*query.reason), (Outcome::Allow, true, "rule"));
    let told: Vec<_> = query.answers().iter().map(|told| (told.ttl, told.address())).collect();
    assert_eq!(told, [(60, "198.51.100.7".parse().ok()), (60, None)]);
    let (ports, until) = query.grant().unwrap();
    let ports: Vec<_> = ports.iter().map(ToString::to_string).collect();
    assert_eq!(
        (ports.join(" ").as_str(), until.to_string().as_str()),
        ("tcp/443 udp/5000-5010 icmp", "2026-11-21T03:58:04.000000Z")
    );

    let query = Query::read(OBSERVED.as_bytes()).unwrap();
    assert_eq!((query.verdict, query.enforced, query.qname.as_deref()), (Outcome::Deny, false, Some("a\\.b.example")));
    assert_eq!((query.rule.is_none(), query.grant().is_none(), query.answers().is_empty()), (true, true, true));
    assert!(Query::read(GRANT.as_bytes()).is_none());
}

#[test]
fn grants_are_handed_out_to_who_asks_for_them() {
    let directory = Directory::new();
    let file = directory.path().join("query.jsonl");
    let opened = GRANT.replace(
        r#""op":"open"}"#,
        r#""op":"open","client":"192.0.2.1","scope":"client","segment":"checkout","rule":"api","qname":"api.example.com","address":"198.51.100.7","ports":["tcp/443","udp/5000-5010"],"until":"2026-11-21T03:58:04.000000Z","query":"1-1-1"}"#,
    );
    std::fs::write(&file, format!("{opened}\n{ALLOWED}\n{GRANT}\n")).unwrap();
    let mut told = Vec::new();
    let read = read_records(&[file], &mut |_| (), &mut |record| {
        told.push(match record {
            Recorded::Query(query) => format!("query {} {}", query.id, query.may_tell("198.51.100.7")),
            Recorded::Grant(grant) => format!(
                "{} {} {} {} {} {:?}",
                &*grant.op,
                grant.address,
                grant.until(),
                grant.changes(Service::Udp(5005)),
                grant.changes(Service::Tcp(80)),
                grant.query.as_deref(),
            ),
            other => format!("{other:?}"),
        });
    });
    assert_eq!(
        told,
        ["open 198.51.100.7 2026-11-21T03:58:04.000000Z true false Some(\"1-1-1\")", "query 1-1-1 true", "Missing"],
        "one without its fields is missing"
    );
    let read = read.unwrap();
    assert_eq!((read.queries, read.others, read.damaged), (1, 2, 0));
}

#[test]
fn a_flow_is_read_as_it_was_written() {
    let directory = Directory::new();
    let file = directory.path().join("query.jsonl");
    let named = |qname| flow::Named {
        qname,
        rule: "api",
        query: Some(QueryId { boot: 1, shard: 2, sequence: 3 }),
        told: Wall(1_000_000),
        until: Wall(2_000_000),
    };
    let event = FlowEvent {
        at: Wall(1_795_233_184_117_302),
        op: FlowOp::Close,
        client: "192.0.2.1".parse().unwrap(),
        port: Some(40_112),
        segment: Some(("checkout", "{\"service\":\"checkout\"}")),
        address: "198.51.100.7".parse().unwrap(),
        service: Carrier::Tcp(443),
        denied: false,
        class: Class::Ambiguous,
        detail: Some(Detail::SameRule),
        why: Some("because"),
        qname: None,
        rule: Some("api"),
        query: None,
        names: &[named("a.example"), named("b\\032.example")],
        names_omitted: 4,
        late_us: None,
        outlived_us: Some(5),
        bytes_out: Some(6),
        bytes_in: Some(7),
        packets_out: Some(8),
        packets_in: None,
        end: Some(Wall(1_795_233_185_117_302)),
        started: false,
        source: Origin::Vpc,
    };
    let mut line = Vec::new();
    Encoder::new(1, 2, "node").encode(&mut line, RecordId { boot: 1, shard: 2, sequence: 9 }, &Event::Flow(event));
    std::fs::write(&file, [&line[..], GRANT.as_bytes()].concat()).unwrap();
    let mut flows = 0;
    read_records(&[file], &mut |_| (), &mut |record| {
        let Recorded::Flow(flow) = record else { return assert!(matches!(record, Recorded::Missing), "{record:?}") };
        flows += 1;
        assert_eq!((flow.at(), flow.end()), (Wall(1_795_233_184_117_302), Some(Wall(1_795_233_185_117_302))));
        assert_eq!(
            (&*flow.op, flow.port, flow.service(), flow.denied()),
            ("close", Some(40_112), Some(Carrier::Tcp(443)), false)
        );
        assert_eq!(
            (flow.class(), flow.detail(), flow.rule.as_deref()),
            (Some(Class::Ambiguous), Some(Detail::SameRule), Some("api"))
        );
        assert_eq!((flow.segment.as_deref(), flow.tags()), (Some("checkout"), Some("{\"service\":\"checkout\"}")));
        let names: Vec<_> =
            flow.names().iter().map(|named| format!("{} {:?}", named.qname, named.query.as_deref())).collect();
        assert_eq!(
            names,
            ["a.example Some(\"0000000000000001-2-3\")", "b\\032.example Some(\"0000000000000001-2-3\")"]
        );
        assert_eq!((flow.names_omitted, flow.outlived_us, flow.duration_us), (4, Some(5), Some(1_000_000)));
        assert_eq!(
            (flow.bytes_out, flow.bytes_in, flow.packets_out, flow.packets_in),
            (Some(6), Some(7), Some(8), None)
        );
        assert_eq!((flow.started, &*flow.source), (false, "vpc"));
    })
    .unwrap();
    assert_eq!(flows, 1);
}

#[test]
fn lines_are_handed_out_until_somebody_has_enough() {
    let directory = Directory::new();
    let torn = r#"{"v":1,"type":"query","id":"1-1-1","tags":{"a":"b"}"#;
    let paths = [directory.path().join("a.jsonl"), directory.path().join("b.jsonl")];
    std::fs::write(&paths[0], format!("{ALLOWED}\nnoise\n{torn}\n{torn}{GRANT}\n")).unwrap();
    std::fs::write(&paths[1], format!("{OBSERVED}\n{OBSERVED}")).unwrap();
    for (enough, queries, others, files) in [(9, 3, 1, 2), (3, 2, 1, 2), (2, 1, 1, 1)] {
        let mut lines = Vec::new();
        let read = read_lines(&paths, &mut |_| (), &mut |line| {
            lines.push(line.to_owned());
            if lines.len() < enough { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        let read = read.unwrap();
        assert_eq!((read.queries, read.others, read.damaged, read.files, read.unread), (queries, others, 3, files, 0));
        assert_eq!(lines, [ALLOWED, GRANT, OBSERVED, OBSERVED][..lines.len()]);
    }
}

#[test]
fn a_log_is_read_with_its_archives_in_order_and_once() {
    let directory = Directory::new();
    let clock = Clock::system();
    let (mut log, mut shards): (Log, _) = directory.open(&clock, 1, 1);
    while log.counts().rotations < 3 {
        write(&mut shards[0], &clock, 10);
        clock.advance(Duration::from_secs(1));
        log.tick().unwrap();
    }
    write(&mut shards[0], &clock, 10);
    drop(shards);
    log.close().unwrap();

    let (ids, plain) = read(&[directory.log()]);
    assert_eq!((plain.files, plain.damaged, plain.queries), (4, 0, ids.len() as u64));
    assert!(plain.others > 0 && plain.bytes > 0);
    let expected: Vec<_> = (1..=ids.len()).map(|sequence| format!("{:016x}-1-{sequence}", 1)).collect();
    assert_eq!(ids, expected);

    // Packed archives, one of them not removed yet.
    let archive = Archive::beside(&directory.log()).unwrap();
    let names = archive.list().unwrap();
    for (name, ending, pack) in [(&names[0].name, "zst", zstd as fn(&[u8]) -> Vec<u8>), (&names[1].name, "gz", gzip)] {
        let path = archive.path(name);
        std::fs::write(archive.path(&format!("{name}.{ending}")), pack(&std::fs::read(&path).unwrap())).unwrap();
        if ending == "zst" {
            std::fs::remove_file(path).unwrap();
        }
    }
    assert_eq!(read(&[directory.log()]).0, expected);
    let paths = [directory.path().to_path_buf(), directory.log(), directory.path().join("archive")];
    assert_eq!(read(&paths).0, expected);
    let (closed, _) = read(&paths[2..]);
    assert_eq!(closed, expected[..closed.len()]);
}

#[test]
fn packed_files_are_told_by_what_they_hold() {
    let directory = Directory::new();
    let path = directory.path().join("copy");
    // RFC 8878 §3.1.2: a frame that is skipped.
    let skipped = [0x53, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
    let rows: [(&str, Vec<u8>); 5] = [
        ("plain", lines(1..9)),
        ("zstd", zstd(&lines(1..9))),
        ("frames", [&zstd(&lines(1..5))[..], &skipped, &zstd(&lines(5..9))].concat()),
        ("skipped first", [&skipped[..], &zstd(&lines(1..9))].concat()),
        ("members", [gzip(&lines(1..5)), gzip(&lines(5..9))].concat()),
    ];
    for (what, bytes) in rows {
        std::fs::write(&path, &bytes).unwrap();
        let (ids, account) = read(std::slice::from_ref(&path));
        assert_eq!((ids.len(), account.damaged, account.bytes), (8, 0, bytes.len() as u64), "{what}");
        assert_eq!(account.faults, Vec::<String>::new(), "{what}");
    }
    for packed in [zstd(&lines(1..2000)), gzip(&lines(1..2000))] {
        std::fs::write(&path, &packed[..packed.len() - 9]).unwrap();
        let (_, account) = read(std::slice::from_ref(&path));
        assert!(account.faults[0].contains("not read beyond line"), "{account}");
    }
}

#[test]
fn what_is_no_record_is_counted_and_told() {
    let directory = Directory::new();
    let torn = &ALLOWED[..80];
    let long = format!("{}{}", &ALLOWED[..ALLOWED.len() - 1], " ".repeat(9000));
    let text =
        format!("{ALLOWED}\n{GRANT}\nnoise\n\n{torn}{OBSERVED_V1}\n{long}\n{OBSERVED}\n{torn}", OBSERVED_V1 = ALLOWED);
    std::fs::write(directory.log(), text).unwrap();
    let (ids, account) = read(&[directory.log()]);
    assert_eq!(ids, ["1-1-1", "1-1-1", "1-1-2"]);
    assert_eq!((account.queries, account.others, account.damaged), (3, 1, 4));
    let told = account.to_string();
    assert!(told.ends_with("query.jsonl: 4 lines are no record; the first is line 3"), "{told}");
}

#[test]
fn what_cannot_be_read_is_said() {
    let directory = Directory::new();
    let empty = directory.path().to_path_buf();
    let fail = |path: &Path| read_queries(&[path.into()], &mut |_| (), &mut |_| ()).unwrap_err();
    assert!(matches!(fail(&empty), AuditError::NoLog(_)));
    assert!(matches!(fail(&directory.log()), AuditError::Absent(_)));
}

#[test]
fn progress_covers_all_files() {
    let directory = Directory::new();
    for (name, count) in [("a.jsonl", 70_000), ("b.jsonl.zst", 70_000)] {
        let bytes = OBSERVED.as_bytes().iter().chain(b"\n").copied().collect::<Vec<_>>().repeat(count);
        let bytes = if name.ends_with("zst") { zstd(&bytes) } else { bytes };
        std::fs::write(directory.path().join(name), bytes).unwrap();
    }
    let mut seen = Vec::new();
    let mut progress = |progress: QueriesProgress<'_>| {
        seen.push((progress.read, progress.queries));
        assert!(progress.read <= progress.length);
    };
    let read = read_queries(&[directory.path().into()], &mut progress, &mut |_| ()).unwrap();
    assert_eq!(seen.iter().map(|(_, queries)| *queries).collect::<Vec<_>>(), [65_536, 70_000, 135_536, 140_000]);
    assert!(seen.is_sorted() && seen.last() == Some(&(read.bytes, read.queries)));
}

proptest! {
    #[test]
    fn foreign_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..400), at in 0..400_usize, kind in 0..3) {
        let mut text = lines(1..3);
        let _ = Query::read(&bytes);
        if let Some(byte) = text.get_mut(at) {
            *byte = bytes.first().copied().unwrap_or(0);
        }
        let text = match kind { 0 => text, 1 => zstd(&text), _ => gzip(&text) };
        for source in [bytes.clone(), [&text[..], &bytes].concat(), [&text[..at.min(text.len())], &bytes].concat()] {
            let mut read = QueriesRead::default();
            if let Ok(source) = decoded(io::Cursor::new(source)) {
                let mut each = Each { others: true, give: &mut |_| (), line: None, ended: false };
                read.file(Path::new("x"), &mut Lines::new(source), &mut |_| (), &mut each);
            }
        }
    }
}
