//! A sink against a server that does as Splunk, `_bulk` and a receiver of lines do, and against those that do not.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use self::collector::{Act, Collector, Speaks};
use super::super::settings::Keys;
use super::super::{Batch, Deliver, Delivered, Record};
use super::api::APIS;
use super::client::Reply;
use super::{Http, settings};
use crate::audit::fixture::{Directory, hostile};
use crate::audit::format::FORMATS;
use crate::document::Document;

#[path = "../../../../../tests/collector/mod.rs"]
mod collector;
mod keys;

/// The settings of some keys, and every mistake in them.
fn settings(base: &Path, text: &str) -> (Option<settings::Settings>, Vec<String>) {
    let (document, table) = Document::parse("outgate.toml", text);
    let settings = settings::parse(&Keys { table: &table, base, log: Path::new("query.jsonl") });
    table.finish(&[]);
    (settings, document.take_mistakes().iter().map(ToString::to_string).collect())
}

fn sink(base: &Path, text: &str) -> Result<Http, String> {
    let (settings, mistakes) = settings(base, text);
    assert_eq!(mistakes, [""; 0], "{text}");
    Http::new(settings.unwrap())
}

const fn word(speaks: Speaks) -> &'static str {
    match speaks {
        Speaks::Splunk => "splunk",
        Speaks::Bulk => "elasticsearch",
        Speaks::Lines => "ndjson",
    }
}

const ALL: [Speaks; 3] = [Speaks::Splunk, Speaks::Bulk, Speaks::Lines];

/// A server, and a sink that delivers to it.
fn pair(speaks: Speaks, more: &str) -> (Collector, Http) {
    let collector = Collector::start(speaks, None);
    let text = format!("api = \"{}\"\nurl = \"http://{}\"\n{more}", word(speaks), collector.address);
    let sink = sink(Path::new(""), &text).unwrap();
    (collector, sink)
}

/// Names that somebody may ask for to break what reads them.
const HOSTILE: &[&str] = &[
    "plain.example.org",
    "quote\\\".example",
    "back\\\\\\\\",
    "\\\\000\\\\010.example",
    "{\\\"create\\\":{}}",
    "\u{2028}\u{2029}\u{feff}",
    "{{qname}}${env:HOME}%n",
    "'; drop table --",
    "</script>",
    "|=,\\t\\n",
];

fn record(number: usize, qname: &str) -> Record {
    let id = format!("7f3a91c20b1d44e0-0-{number}");
    let bytes = format!("{{\"v\":1,\"type\":\"query\",\"id\":\"{id}\",\"qname\":\"{qname}\"}}").into_bytes();
    Record {
        id: id.into(),
        kind: "query".into(),
        ts: "2026-11-21T03:53:04.117302Z".into(),
        node: "og-\"a".into(),
        segment: None,
        verdict: None,
        bytes,
    }
}

fn records(count: usize) -> Vec<Record> {
    (0..count).map(|number| record(number, HOSTILE[number % HOSTILE.len()])).collect()
}

fn deliver(sink: &mut Http, records: &[Record]) -> Delivered {
    sink.deliver(&Batch { records })
}

/// Why nothing was taken.
fn failure(delivered: Delivered) -> (String, Option<Duration>) {
    match delivered {
        Delivered::Failed { why, wait } => (why, wait),
        other => panic!("not a failure: {other:?}"),
    }
}

/// Each record reached the server, once, as it is.
fn assert_taken(collector: &Collector, records: &[Record]) {
    let state = collector.state.lock();
    assert_eq!(state.taken.len(), records.len());
    for record in records {
        let expected: Value = serde_json::from_slice(&record.bytes).unwrap();
        assert_eq!(state.taken[&*record.id], [expected]);
    }
}

#[test]
fn every_api_has_its_row_in_these_tests() {
    let words: Vec<&str> = ALL.iter().map(|speaks| word(*speaks)).collect();
    assert_eq!(APIS.iter().map(|api| api.name).collect::<Vec<_>>(), words);
}

#[test]
fn each_api_takes_hostile_records_in_order_over_one_connection() {
    for speaks in ALL {
        for gzip in [true, false] {
            let (collector, mut sink) = pair(speaks, &format!("gzip = {gzip}\n"));
            let records = records(40);
            for part in records.chunks(16) {
                assert_eq!(deliver(&mut sink, part), Delivered::All, "{speaks:?}");
            }
            assert_taken(&collector, &records);
            let state = collector.state.lock();
            let sent: Vec<&str> = records.iter().map(|record| &*record.id).collect();
            assert_eq!(state.order, sent, "{speaks:?}");
            assert_eq!((state.connections, state.requests.len()), (1, 3), "{speaks:?}");
            for (_, headers) in &state.requests {
                assert_eq!(headers.contains_key("content-encoding"), gzip);
                assert_eq!(headers["host"], collector.address.to_string());
                assert!(headers["user-agent"].starts_with("outgate/"));
            }
        }
    }
}

#[test]
fn every_format_of_json_reaches_every_api_as_it_is() {
    let formats: Vec<_> = FORMATS.iter().filter(|format| super::carries(format).is_ok()).collect();
    assert!(formats.len() >= 3, "{formats:?}");
    for (format, speaks) in formats.iter().flat_map(|format| ALL.map(|speaks| (*format, speaks))) {
        let (collector, mut sink) = pair(speaks, "");
        let records: Vec<Record> = hostile()
            .iter()
            .enumerate()
            .map(|(number, (_, line))| {
                let mut bytes = Vec::new();
                assert!((format.write)(line, &mut bytes));
                Record { bytes, ..record(number, "") }
            })
            .collect();
        assert_eq!(deliver(&mut sink, &records), Delivered::All, "{} {speaks:?}", format.name);
        let state = collector.state.lock();
        let came: Vec<&Value> = state.taken.values().flatten().collect();
        assert_eq!(came.len(), records.len());
        for record in &records {
            let expected: Value = serde_json::from_slice(&record.bytes).unwrap();
            assert!(came.contains(&&expected), "{} {speaks:?}: {expected}", format.name);
        }
    }
}

#[test]
fn an_envelope_says_when_where_and_what() {
    let (collector, mut sink) = pair(Speaks::Splunk, "index = \"dns\"\nsource = \"a\\\"b\"\n");
    collector.state.lock().index = Some("dns".to_owned());
    assert_eq!(deliver(&mut sink, &records(1)), Delivered::All);
    let expected = json!({
        "time": 1_795_233_184.117302, "host": "og-\"a", "source": "a\"b", "sourcetype": "outgate", "index": "dns",
        "event": null,
    });
    assert_eq!(collector.state.lock().envelopes, [expected]);
}

#[test]
fn what_is_known_already_is_taken_and_what_is_wrong_refused_alone() {
    let (collector, mut sink) = pair(Speaks::Bulk, "index = \"logs-outgate\"\n");
    let records = records(6);
    assert_eq!(deliver(&mut sink, &records[..2]), Delivered::All);
    // The first two are there already.
    collector.script([Act::Items(vec![
        (2, 429, "es_rejected_execution_exception"),
        (3, 400, "document_parsing_exception"),
        (4, 503, "unavailable_shards_exception"),
    ])]);
    match deliver(&mut sink, &records) {
        Delivered::Some { again, refused, wait: None } => {
            assert_eq!(again, [2, 4]);
            assert_eq!(refused.len(), 1);
            assert_eq!(refused[0].0, 3);
            assert!(refused[0].1.starts_with("document_parsing_exception: [1:2] of"), "{refused:?}");
        }
        other => panic!("{other:?}"),
    }
    let again = [records[2].clone(), records[4].clone()];
    assert_eq!(deliver(&mut sink, &again), Delivered::All);
    assert_eq!(collector.state.lock().taken.len(), 5);
}

#[test]
fn a_fault_of_the_index_costs_no_record() {
    let (collector, mut sink) = pair(Speaks::Bulk, "index = \"logs\"\n");
    for (status, kind) in [
        (400, "index_closed_exception"),
        (400, "invalid_index_name_exception"),
        (403, "security_exception"),
        (403, "cluster_block_exception"),
        (404, "index_not_found_exception"),
        (429, "circuit_breaking_exception"),
        // A pipeline that is not there, a limit of fields that is reached: what a record's own fault is called too.
        (400, "illegal_argument_exception"),
        (400, "document_parsing_exception"),
    ] {
        collector.script([Act::Items((0..3).map(|at| (at, status, kind)).collect())]);
        let (why, _) = failure(deliver(&mut sink, &records(3)));
        assert!(why.contains(kind), "{why}");
        assert_eq!(
            why.ends_with("look at the index: its mapping, limits, pipeline"),
            status == 400 && !why.contains("index_")
        );
    }
    assert!(collector.ids().is_empty());
}

#[test]
fn a_request_grows_again_where_the_server_takes_more_than_it_did() {
    let (collector, mut sink) = pair(Speaks::Lines, "");
    let requests = || collector.state.lock().requests.len();
    let cost = |sink: &mut Http| {
        let before = requests();
        assert_eq!(deliver(sink, &records(40)), Delivered::All);
        requests() - before
    };
    collector.state.lock().largest = Some(1000);
    cost(&mut sink);
    let small = cost(&mut sink);
    collector.state.lock().largest = None;
    assert_eq!(cost(&mut sink), small, "not at once");
    for _ in 0..super::RAISED + super::STEADY {
        assert_eq!(deliver(&mut sink, &records(1)), Delivered::All);
    }
    assert!(cost(&mut sink) < small);
}

#[test]
fn splunk_names_the_event_that_it_refuses_and_the_others_are_taken() {
    let (collector, mut sink) = pair(Speaks::Splunk, "");
    collector.state.lock().poison = Some("poison");
    let records: Vec<Record> =
        (0..9).map(|number| record(number, if number % 4 == 2 { "poison" } else { "a.example" })).collect();
    match deliver(&mut sink, &records) {
        Delivered::Some { again, refused, wait: None } => {
            assert!(again.is_empty());
            let at: Vec<usize> = refused.iter().map(|(at, _)| *at).collect();
            assert_eq!(at, [2, 6]);
            assert_eq!(refused[0].1, "Error in handling indexed fields (code 15)");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(collector.ids().len(), 7);
}

#[test]
fn a_line_that_cannot_be_read_is_found_where_others_can() {
    let (collector, mut sink) = pair(Speaks::Lines, "");
    collector.state.lock().poison = Some("poison");
    let mut records = records(10);
    records[3] = record(3, "poison");
    match deliver(&mut sink, &records) {
        Delivered::Some { again, refused, wait: None } => {
            assert!(again.is_empty());
            assert_eq!(refused, [(3, "answers 400: a line cannot be read".to_owned())]);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(collector.ids().len(), 9);
    // Where none is taken, it is not the records.
    collector.state.lock().poison = Some("id");
    let before = collector.state.lock().requests.len();
    let (why, _) = failure(deliver(&mut sink, &records));
    assert_eq!(why, "answers 400: a line cannot be read");
    assert!(collector.state.lock().requests.len() < before + 20);
}

#[test]
fn a_request_that_is_too_large_is_halved_and_the_size_remembered() {
    for speaks in ALL {
        let (collector, mut sink) = pair(speaks, "");
        collector.state.lock().largest = Some(1000);
        let records = records(40);
        assert_eq!(deliver(&mut sink, &records[..20]), Delivered::All, "{speaks:?}");
        let first = collector.state.lock().requests.len();
        assert_eq!(deliver(&mut sink, &records[20..]), Delivered::All, "{speaks:?}");
        let second = collector.state.lock().requests.len() - first;
        assert!(second < first, "{speaks:?}: {second} after {first}");
        assert_taken(&collector, &records);
        // One that no request is large enough for, and others that fit.
        let mut more = vec![record(100, &"a".repeat(2000)), record(101, "b.example")];
        match deliver(&mut sink, &more) {
            Delivered::Some { again, refused, .. } => {
                assert!(again.is_empty() && refused.len() == 1 && refused[0].0 == 0, "{again:?} {refused:?}");
                assert!(refused[0].1.contains("too large"), "{refused:?}");
            }
            other => panic!("{other:?}"),
        }
        // Nothing fits: then it is not the records.
        collector.state.lock().largest = Some(10);
        more.remove(0);
        assert!(failure(deliver(&mut sink, &more)).0.contains("too large"));
    }
}

#[test]
fn nothing_is_lost_to_a_server_that_cannot_or_will_not() {
    let hec = |text: &str, code: u64| json!({"text": text, "code": code, "invalid-event-number": 0}).to_string();
    let slow = Some(Duration::from_secs(30));
    let after = Some(Duration::from_secs(7));
    let rows: Vec<(Speaks, Act, &str, Option<Duration>)> = vec![
        (Speaks::Splunk, Act::Say(503, "Retry-After: 7\r\n", hec("Server is busy", 9)), "503: Server is busy", after),
        (
            Speaks::Splunk,
            Act::Say(403, "", hec("Invalid token", 4)),
            "Invalid token (code 4); look at `token_file`",
            slow,
        ),
        (Speaks::Splunk, Act::Say(400, "", hec("Incorrect index", 7)), "write an `index` that", slow),
        (Speaks::Splunk, Act::Say(400, "", hec("Data channel is missing", 10)), "write ack = true", slow),
        (Speaks::Splunk, Act::Say(500, "", hec("Internal server error", 8)), "500: Internal", None),
        (Speaks::Splunk, Act::Say(200, "", "<html>log in".to_owned()), "not as Splunk does; look at `url`", None),
        (Speaks::Splunk, Act::Say(404, "", "no".to_owned()), "404: no; look at `url`", None),
        (Speaks::Bulk, Act::Say(429, "Retry-After: 7\r\n", "{}".to_owned()), "answers 429", after),
        (Speaks::Bulk, Act::Say(200, "", "{\"errors\":true,\"items\":[]}".to_owned()), "0 records where 3", None),
        (Speaks::Bulk, Act::Say(200, "", "[]".to_owned()), "not as _bulk does", None),
        (Speaks::Bulk, Act::Say(401, "", String::new()), "answers 401; name a `token_file`", slow),
        (
            Speaks::Lines,
            Act::Say(302, "Location: https://b.example/\r\n", String::new()),
            "to https://b.example/ (302)",
            None,
        ),
        (Speaks::Lines, Act::Say(503, "Retry-After: 99999\r\n", String::new()), "503", Some(Duration::from_secs(300))),
        (Speaks::Lines, Act::Say(500, "", "\u{1b}[2J".to_owned()), "\\u{1b}[2J", None),
        (Speaks::Lines, Act::Close, "closed the connection without an answer", None),
        (Speaks::Lines, Act::TakeAndClose, "closed the connection without an answer", None),
        (Speaks::Bulk, Act::TakeAndBreak, "ended its reply midway", None),
        (Speaks::Lines, Act::Flood("SSH-2.0-server\r\n", "x"), "speaks no HTTP/1.1", None),
        (Speaks::Lines, Act::Flood("HTTP/1.1 200 OK\r\n", "A: b\r\n"), "speaks no HTTP/1.1", None),
        (
            Speaks::Lines,
            Act::Flood("HTTP/1.1 200 OK\r\nA: ", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"),
            "speaks no HTTP/1.1",
            None,
        ),
        (Speaks::Lines, Act::Silence, "did not answer within 1s", None),
        (Speaks::Lines, Act::Flood("HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 100 Continue\r\n\r\n"), "", None),
    ];
    for (speaks, act, expected, wait) in rows {
        let (collector, mut sink) = pair(speaks, "timeout = \"1s\"\n");
        collector.script([act.clone()]);
        let records = records(3);
        let (why, found) = failure(deliver(&mut sink, &records));
        assert!(why.contains(expected) && !why.contains('\u{1b}'), "{act:?}: {why}");
        assert_eq!(found, wait, "{act:?}: {why}");
        // The next time all is well; what was taken unseen came twice, under the same id.
        assert_eq!(deliver(&mut sink, &records), Delivered::All, "{act:?}");
        assert_eq!(collector.ids().len(), 3);
        let twice = matches!(act, Act::TakeAndClose) || (matches!(act, Act::TakeAndBreak) && speaks != Speaks::Bulk);
        let times = if twice { 2 } else { 1 };
        assert!(collector.state.lock().taken.values().all(|came| came.len() == times), "{act:?}");
    }
}

#[test]
fn a_body_without_an_end_is_read_to_its_bound() {
    let (collector, mut sink) = pair(Speaks::Lines, "");
    let more: &'static str = Box::leak("x".repeat(1 << 20).into_boxed_str());
    collector.script([Act::Flood("HTTP/1.1 500 No\r\nContent-Length: 999999999999\r\n\r\n", more)]);
    let (why, _) = failure(deliver(&mut sink, &records(1)));
    assert!(why.starts_with("answers 500: xxx") && why.len() < 300, "{why}");
    assert_eq!(deliver(&mut sink, &records(1)), Delivered::All);
    assert_eq!(collector.state.lock().connections, 2);
}

#[test]
fn a_connection_that_was_closed_meanwhile_costs_nothing() {
    let (collector, mut sink) = pair(Speaks::Bulk, "");
    let records = records(6);
    for pair in records.chunks(2) {
        assert_eq!(deliver(&mut sink, &pair[..1]), Delivered::All);
        // What the kept connection comes to, as the client sees it; the next one is another.
        collector.script([Act::Close]);
        assert_eq!(deliver(&mut sink, &pair[1..]), Delivered::All);
    }
    assert_taken(&collector, &records);
    assert_eq!(collector.state.lock().connections, 4);
}

#[test]
fn a_server_that_breaks_off_large_requests_is_sent_smaller_ones() {
    let (collector, mut sink) = pair(Speaks::Lines, "");
    collector.state.lock().breaks_off = Some(100_000);
    let records: Vec<Record> = (0..1000).map(|number| record(number, &"a".repeat(500))).collect();
    let mut left = records.clone();
    for _ in 0..8 {
        left = match deliver(&mut sink, &left) {
            Delivered::All => Vec::new(),
            Delivered::Some { again, refused, .. } => {
                assert!(refused.is_empty());
                again.into_iter().map(|index| left[index].clone()).collect()
            }
            Delivered::Failed { why, .. } => {
                assert_eq!(why, "closed the connection without an answer");
                left
            }
        };
        if left.is_empty() {
            break;
        }
    }
    assert_taken(&collector, &records);
}

#[test]
fn a_node_that_stops_does_not_wait_for_a_silent_server() {
    let (collector, mut sink) = pair(Speaks::Lines, "");
    collector.script([Act::Silence]);
    let stop = Arc::<AtomicBool>::default();
    sink.heed(&stop);
    stop.store(true, Ordering::Relaxed);
    // The default is 30 s, and the test would show it.
    let (why, _) = failure(deliver(&mut sink, &records(1)));
    assert_eq!(why, "did not answer before the stop");
}

/// A file in a directory, for its owner alone.
fn secret(directory: &Directory, name: &str, text: &str) -> PathBuf {
    let path = directory.path().join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

#[test]
fn a_token_is_shown_never_told_and_read_again_where_it_is_not_accepted() {
    for (speaks, user, expected) in [
        (Speaks::Splunk, "", "Splunk n3w-s3cret"),
        (Speaks::Bulk, "", "ApiKey n3w-s3cret"),
        (Speaks::Bulk, "user = \"outgate\"", "Basic b3V0Z2F0ZTpuM3ctczNjcmV0"),
        (Speaks::Lines, "", "Bearer n3w-s3cret"),
    ] {
        let directory = Directory::new();
        secret(&directory, "token", "0ld-s3cret\n");
        let collector = Collector::start(speaks, None);
        collector.state.lock().authorization = Some(expected.to_owned());
        let text = format!(
            "api = \"{}\"\nurl = \"http://{}\"\ntoken_file = \"token\"\n{user}\n",
            word(speaks),
            collector.address
        );
        let mut sink = sink(directory.path(), &text).unwrap();
        let (why, wait) = failure(deliver(&mut sink, &records(2)));
        assert!(!why.contains("s3cret") && why.contains("`token_file`"), "{why}");
        assert_eq!(wait, Some(Duration::from_secs(30)));
        assert!(!format!("{:?}", sink.settings).contains("s3cret"));
        secret(&directory, "token", "n3w-s3cret\n");
        // The reply to the old one is what has it read.
        let _refused = deliver(&mut sink, &records(2));
        assert_eq!(deliver(&mut sink, &records(2)), Delivered::All, "{speaks:?}");
    }
}

/// An authority, what it issued to a server and to a client.
fn authority(directory: &Directory) -> (Arc<ServerConfig>, Arc<ServerConfig>) {
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    let authority = params.self_signed(&key).unwrap();
    let issuer = rcgen::Issuer::new(params, key);
    secret(directory, "ca.pem", &authority.pem());
    let issue = |name: &str| {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &issuer).unwrap(), key)
    };
    let (shown, own) = issue("client.example");
    secret(directory, "own.pem", &shown.pem());
    secret(directory, "own.key", &own.serialize_pem());
    let (certificate, key) = issue("127.0.0.1");
    let config = |verify: bool| {
        let builder = ServerConfig::builder();
        let builder = if verify {
            let mut roots = RootCertStore::empty();
            roots.add(authority.der().clone()).unwrap();
            builder.with_client_cert_verifier(WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap())
        } else {
            builder.with_no_client_auth()
        };
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        Arc::new(builder.with_single_cert(vec![certificate.der().clone()], key).unwrap())
    };
    (config(false), config(true))
}

#[test]
fn a_server_proves_itself_and_so_do_we() {
    let directory = Directory::new();
    let (plain, verifying) = authority(&directory);
    let ca = "ca = \"ca.pem\"\n";
    let own = "ca = \"ca.pem\"\ncertificate = \"own.pem\"\nkey = \"own.key\"\n";
    for (config, keys, expected) in
        [(&plain, ca, ""), (&plain, "", "ca = "), (&verifying, own, ""), (&verifying, ca, "`certificate` and `key`")]
    {
        let collector = Collector::start(Speaks::Bulk, Some(Arc::clone(config)));
        let text = format!("api = \"elasticsearch\"\nurl = \"https://{}\"\n{keys}", collector.address);
        let mut sink = sink(directory.path(), &text).unwrap();
        let delivered = deliver(&mut sink, &records(20));
        if expected.is_empty() {
            assert_eq!(delivered, Delivered::All);
            assert_taken(&collector, &records(20));
            assert_eq!(deliver(&mut sink, &records(1)), Delivered::All);
            assert_eq!(collector.state.lock().connections, 1);
        } else {
            let (why, _) = failure(delivered);
            assert!(why.starts_with("TLS fails: ") && why.contains(expected), "{why}");
            assert!(collector.ids().is_empty());
        }
    }
}

#[test]
fn nothing_is_delivered_before_splunk_says_that_it_is_indexed() {
    let (collector, mut sink) = pair(Speaks::Splunk, "ack = true\n");
    // The token does not acknowledge: nothing is sent that would have to be sent again.
    let (why, _) = failure(deliver(&mut sink, &records(3)));
    assert!(why.contains("remove `ack`"), "{why}");
    collector.state.lock().acknowledges = Some(1);
    assert_eq!(deliver(&mut sink, &records(3)), Delivered::All);
    assert_taken(&collector, &records(3));
    // It forgets what it was sent, and the node stops.
    collector.state.lock().acknowledges = Some(usize::MAX);
    let stop = Arc::<AtomicBool>::default();
    sink.heed(&stop);
    stop.store(true, Ordering::Relaxed);
    let (why, _) = failure(deliver(&mut sink, &records(6)));
    assert!(why.contains("did not acknowledge"), "{why}");
    // Without `ack`, such a token says what is missing.
    collector.state.lock().acknowledges = Some(0);
    let text = format!("api = \"splunk\"\nurl = \"http://{}\"\n", collector.address);
    let (why, _) = failure(deliver(&mut super::tests::sink(Path::new(""), &text).unwrap(), &records(1)));
    assert!(why.contains("write ack = true"), "{why}");
}

proptest! {
    /// Whatever a server says, it concerns no more records than it was sent, and loses none by saying nothing sensible.
    #[test]
    fn any_reply_is_read(
        api in 0..APIS.len(),
        status in prop_oneof![Just(200_u16), Just(400), 100..600_u16],
        body in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..200),
            "\\{\"(errors|code|items|acks|error)\":(true|0|6|\"x\"|\\[\\]|\\{\\})(,\"invalid-event-number\":(-1|0|7|99999999999999999999))?\\}"
                .prop_map(String::into_bytes),
        ],
        count in 1..5_usize,
    ) {
        let text = format!("api = \"{}\"\nurl = \"http://127.0.0.1:9\"", APIS[api].name);
        let settings = settings(Path::new(""), &text).0.unwrap();
        let reply = Reply { status, body: body.into(), ..Reply::default() };
        match (APIS[api].judge)(&settings, &reply, count) {
            super::reply::Said::Without { at, .. } => prop_assert!(at < count && status == 400),
            super::reply::Said::Taken(_) => prop_assert!((200..300).contains(&status)),
            super::reply::Said::Each { again, suspects, .. } => prop_assert!(again.len() + suspects.len() <= count),
            _ => {}
        }
    }
}
