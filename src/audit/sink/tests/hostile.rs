//! Names to break what reads the log, delivered by every kind: one record each, with the same name.
//!
//! `dnstap` and `http` have their servers, and this, in tests of their own.

use std::io::Read;
use std::net::{TcpListener, UdpSocket};

use super::*;
use crate::audit::fixture::hostile;
use crate::audit::sink::KINDS;
use crate::name::Name;

#[test]
fn every_kind_has_its_row() {
    let kinds: Vec<&str> = KINDS.iter().map(|kind| kind.name).collect();
    assert_eq!(kinds, ["dnstap", "file", "http", "syslog"], "deliver the hostile names by the new kind too");
}

/// A log of hostile names alone, delivered by a sink until `arrived` holds.
fn deliver(directory: &Directory, keys: &str, mut arrived: impl FnMut() -> bool) {
    let log: String = hostile().into_iter().map(|(_, line)| line + "\n").collect();
    fs::write(directory.log(), log).unwrap();
    let clock = Clock::system();
    let (log, shards) = directory.open(&clock, 2, 1);
    let common = "[[sink]]\nname = \"copy\"\nlinger = \"0s\"\nfrom = \"oldest\"\ntypes = [\"query\"]\n";
    let sinks = start(directory, &format!("{common}{keys}"), &log);
    until("all of them arrive", &mut arrived);
    drop(shards);
    log.close().unwrap();
    sinks.stop(PATIENCE);
}

fn count() -> usize {
    hostile().len()
}

/// The names of these records are those that were asked for.
fn assert_names(records: &[String]) {
    let told: Vec<Name> = records
        .iter()
        .map(|record| {
            let record: serde_json::Value = serde_json::from_str(record).unwrap();
            Name::parse(record["qname"].as_str().unwrap()).unwrap()
        })
        .collect();
    let asked: Vec<Name> = hostile().into_iter().map(|(name, _)| name).collect();
    assert_eq!(told, asked);
}

#[test]
fn by_file() {
    let directory = Directory::new();
    deliver(&directory, "kind = \"file\"\nfile = \"copy.jsonl\"\n", || copy(&directory).lines().count() >= count());
    assert_names(&copy(&directory).split_terminator('\n').map(str::to_owned).collect::<Vec<_>>());
}

/// MSG of a message, whose structured data is read as RFC 5424 §6.3 says, and says what the record does.
fn msg(message: &str) -> String {
    let (header, rest) = message.split_once(" [outgate@32473 ").unwrap();
    assert!(header.starts_with('<') && header.contains(">1 2026-") && header.ends_with(" query"), "{header}");
    let (mut rest, mut parameters) = (rest, Vec::new());
    loop {
        let (name, value) = rest.split_once("=\"").unwrap();
        let (mut text, mut escaped, mut end) = (String::new(), false, None);
        for (at, character) in value.char_indices() {
            match character {
                '"' | '\\' | ']' if escaped => text.push(character),
                '\\' => {}
                '"' => {
                    end = Some(at);
                    break;
                }
                other => text.push(other),
            }
            escaped = character == '\\' && !escaped;
        }
        parameters.push((name.to_owned(), text));
        rest = &value[end.unwrap() + 1..];
        match rest.strip_prefix("] ") {
            Some(msg) => {
                let record: serde_json::Value = serde_json::from_str(msg).unwrap();
                let said = ["id", "segment", "verdict"]
                    .map(|name| (name.to_owned(), record[name].as_str().unwrap().to_owned()));
                assert_eq!(parameters, said);
                return msg.to_owned();
            }
            None => rest = rest.strip_prefix(' ').unwrap(),
        }
    }
}

#[test]
fn by_syslog_over_tcp() {
    let directory = Directory::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let messages = std::sync::Arc::new(parking_lot::Mutex::new(Vec::new()));
    let came = std::sync::Arc::clone(&messages);
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let (mut stream, _) = listener.accept().unwrap();
        let mut piece = [0; 4096];
        while let Ok(read) = stream.read(&mut piece) {
            bytes.extend_from_slice(&piece[..read]);
            while let Some(blank) = bytes.iter().position(|octet| *octet == b' ') {
                let length: usize = std::str::from_utf8(&bytes[..blank]).unwrap().parse().unwrap();
                if bytes.len() <= blank + length {
                    break;
                }
                let message = bytes[blank + 1..=blank + length].to_vec();
                bytes.drain(..=blank + length);
                came.lock().push(String::from_utf8(message).unwrap());
            }
            if read == 0 {
                return;
            }
        }
    });
    let keys = format!("kind = \"syslog\"\nserver = \"tcp://127.0.0.1:{port}\"\n");
    deliver(&directory, &keys, || messages.lock().len() >= count());
    assert_names(&messages.lock().iter().map(|message| msg(message)).collect::<Vec<_>>());
}

#[test]
fn by_syslog_over_udp() {
    let directory = Directory::new();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut messages = Vec::new();
    // The largest record is larger than the default.
    let keys = format!("kind = \"syslog\"\nserver = \"udp://{}\"\nlimit = \"60KiB\"\n", socket.local_addr().unwrap());
    deliver(&directory, &keys, || {
        let mut message = vec![0; 1 << 16];
        while let Ok(length) = socket.recv(&mut message) {
            messages.push(String::from_utf8(message[..length].to_vec()).unwrap());
        }
        messages.len() >= count()
    });
    assert_names(&messages.iter().map(|message| msg(message)).collect::<Vec<_>>());
}
