//! kill -9 at any instant: no answer without its record, and the next start is never prevented.

use std::collections::HashSet;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hickory_proto::op::Message;
use serde_json::Value;

use crate::dns::{Client, Stream, a, addresses};
use crate::durability;
use crate::harness::Site;
use crate::upstream::Upstream;

/// How many times a node is killed under load; more by `tests/crash --kills 50`.
fn kills() -> u64 {
    std::env::var("OUTGATE_KILLS").ok().map_or(10, |kills| kills.parse().unwrap())
}

/// Some moment of the first fifth of a second under load.
fn moment() -> Duration {
    Duration::from_micros(RandomState::new().hash_one(()) % 200_000)
}

/// An answer that a client holds: its port, the query's id, the name.
type Held = (u16, u16, String);

/// Asks until the node is `killed`; every answer that came.
fn ask_until(killed: &AtomicBool, site: &Site, round: u64, over_tcp: bool) -> Vec<Held> {
    let mut held = Vec::new();
    let mut hold = |port: u16, packet: &[u8]| {
        let reply = Message::from_vec(packet).unwrap();
        let name = reply.queries[0].name().to_ascii().trim_end_matches('.').to_owned();
        held.push((port, reply.metadata.id, name));
    };
    let questions = (0_u64..).map(|number| match number % 4 {
        0 => a("www.corp.example"),
        1 => a(&format!("x{}.example.net", number % 16)),
        2 => a(&format!("r{round}-{number}.example.net")),
        _ => a("example.org"),
    });
    if over_tcp {
        // Killed before it could be reached: nothing was received.
        let Ok(mut stream) = Stream::connect(site.dns) else { return held };
        let port = stream.0.local_addr().unwrap().port();
        for question in questions {
            let sent = std::io::Write::write_all(&mut stream.0, &crate::dns::framed(&question.to_vec().unwrap()));
            let Some(packet) = sent.ok().and_then(|()| stream.receive()) else { break };
            hold(port, &packet);
        }
    } else {
        let client = Client::new(site.dns).patience(Duration::from_millis(5));
        let port = client.socket.local_addr().unwrap().port();
        // A window of eight: there is always something on its way.
        for (number, question) in questions.enumerate() {
            // An error: nobody listens there any more.
            let sent = client.socket.send(&question.to_vec().unwrap());
            if number < 8 && sent.is_ok() {
                continue;
            }
            let packet = std::iter::from_fn(|| Some(client.receive()))
                .find(|packet| packet.is_some() || sent.is_err() || killed.load(Ordering::SeqCst));
            let Some(packet) = packet.flatten() else { break };
            hold(port, &packet);
        }
        // What had been sent when it was killed.
        while let Some(packet) = client.receive() {
            hold(port, &packet);
        }
    }
    held
}

#[test]
fn every_answer_that_was_received_has_its_record() {
    killed_under_load("process");
}

#[test]
fn every_answer_that_was_received_has_its_record_on_the_disk() {
    killed_under_load("disk");
}

fn killed_under_load(durability: &str) {
    let upstream = Upstream::start();
    let site = durability::site(durability).with_servers(&[upstream.address]);
    let mut held: Vec<Held> = Vec::new();
    let kills = kills();
    for round in 0..kills {
        let mut node = site.start();
        let killed = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (site, killed) = (&site, &killed);
            let askers: Vec<_> =
                (0..4).map(|number| scope.spawn(move || ask_until(killed, site, round, number == 3))).collect();
            std::thread::sleep(moment());
            node.kill();
            killed.store(true, Ordering::SeqCst);
            held.extend(askers.into_iter().flat_map(|asker| asker.join().unwrap()));
        });
    }
    assert!(held.len() as u64 > 20 * kills, "too few answers to say anything: {}", held.len());
    let recorded: HashSet<Held> = site
        .queries()
        .iter()
        .map(|record| {
            let number = |key: &str| u16::try_from(record[key].as_u64().unwrap()).unwrap();
            (number("port"), number("qid"), record["qname"].as_str().unwrap().to_owned())
        })
        .collect();
    let lost: Vec<&Held> = held.iter().filter(|answer| !recorded.contains(answer)).collect();
    assert!(lost.is_empty(), "{} of {} answers without a record, {:?} first", lost.len(), held.len(), lost[0]);
    // Each process goes on where the one before was cut off.
    let opens: Vec<Value> = site.records().into_iter().filter(|record| record["op"] == "open").collect();
    let opens: Vec<&Value> = opens.iter().filter(|record| record["type"] == "log").collect();
    assert_eq!(opens.len() as u64, kills);
    for pair in opens.windows(2) {
        assert_eq!(pair[1]["previous_boot"], pair[0]["boot"]);
    }
    assert_eq!(site.start().stop(), Some(0));
    // A kill may meet a write half done: no answer had left for it.
    let said = site.verified();
    let last = said.lines().last().unwrap();
    println!("{durability}: {kills} kills, {} answers, none without its record; {last}", held.len());
}

#[test]
fn no_journal_prevents_a_start() {
    let upstream = Upstream::start();
    let site = Site::new().with_servers(&[upstream.address]);
    let journal = site.path("state/journal");
    let mut node = site.start();
    Client::new(site.dns).told("x.example.net");
    node.kill();
    let good = fs::read(&journal).unwrap();
    let lines = good.iter().filter(|octet| **octet == b'\n').count();
    assert!(lines >= 2, "a header and an opening: {}", String::from_utf8_lossy(&good));
    let text = String::from_utf8(good.clone()).unwrap();
    let rows: [(&str, Vec<u8>); 9] = [
        ("a torn last line", good[..good.len() - 10].to_vec()),
        ("a torn first line", good[10..].to_vec()),
        ("nothing", Vec::new()),
        ("no header", text.split_once('\n').unwrap().1.into()),
        ("random bytes", (0..100_000_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect()),
        ("zeros, as after a power failure", [good.as_slice(), &[0; 4096]].concat()),
        ("another version", text.replacen("outgate-journal 2", "outgate-journal 3", 1).into()),
        ("another boot of the machine", text.replacen("outgate-journal 2 ", "outgate-journal 2 0", 1).into()),
        ("lines of the future", format!("{text}future 1 2 ;\n").into()),
    ];
    for (what, bytes) in rows {
        assert!(what.starts_with("torn") || bytes != good, "{what} is no damage");
        fs::write(&journal, &bytes).unwrap();
        // What a rewrite that was cut off leaves beside it.
        fs::write(site.path("state/journal.new"), &bytes).unwrap();
        let mut node = site.start();
        assert_eq!(addresses(&Client::new(site.dns).told("x.example.net")), ["198.51.100.7"], "{what}");
        let grants: Value = serde_json::from_str(&site.run(&["grants", "--json"]).stdout).unwrap();
        assert_eq!(grants.as_array().unwrap().len(), 1, "{what}: {grants}");
        assert_eq!(node.stop(), Some(0), "{what}");
    }
    site.verified();
}

#[test]
fn no_log_of_a_killed_process_prevents_a_start() {
    let site = Site::new();
    let mut node = site.start();
    Client::new(site.dns).told("www.corp.example");
    node.kill();
    let good = fs::read(site.path("query.jsonl")).unwrap();
    for bytes in [&good[..good.len() - 7], b"", b"\n", b"\0\0\0\0", b"\xff\xfe{\"v\":1", b"{\"v\":1,\"type\":\"log\""] {
        fs::write(site.path("query.jsonl"), bytes).unwrap();
        let mut node = site.start();
        Client::new(site.dns).told("www.corp.example");
        assert_eq!(node.stop(), Some(0));
        assert_eq!(site.queries().last().unwrap()["verdict"], "allow", "{bytes:02x?}");
    }
}
