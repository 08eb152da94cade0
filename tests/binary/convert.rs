//! `outgate log convert`: what a node wrote, in every format, from archives and the current file.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::dns::{Client, a};
use crate::harness::Site;
use crate::upstream::Upstream;

#[test]
fn a_nodes_log_becomes_ecs_and_ocsf() {
    let upstream = Upstream::start();
    let site = Site::new().with_servers(&[upstream.address]);
    let mut node = site.start();
    for name in ["www.example.com", "Denied.Example.ORG"] {
        Client::from([127, 0, 0, 1].into(), site.dns).ask(&a(name)).unwrap();
    }
    assert_eq!(node.stop(), Some(0));

    let native = site.run(&["log", "convert", "--to", "json"]);
    assert_eq!(native.code, Some(0), "{}", native.stderr);
    assert!(native.stderr.starts_with("2 queries and "), "{}", native.stderr);
    let records = json(&native.stdout);
    for (format, id, name) in [("ecs", "/event/id", "/dns/question/name"), ("ocsf", "/metadata/uid", "/query/hostname")]
    {
        let ended = site.run(&["log", "convert", "--to", format]);
        assert_eq!((ended.code, &ended.stderr), (Some(0), &native.stderr));
        let converted = json(&ended.stdout);
        assert_eq!(converted.len(), records.len());
        for (record, converted) in records.iter().zip(&converted) {
            assert_eq!(converted.pointer(id), record.get("id"));
            assert_eq!(converted.pointer(name), record.get("qname"));
        }
        // The same into a file, which is there whole or not at all.
        let ended_too = site.run(&["log", "convert", "--to", format, "-o", "converted"]);
        assert_eq!((ended_too.code, ended_too.stdout.as_str()), (Some(0), ""), "{}", ended_too.stderr);
        assert_eq!(std::fs::read_to_string(site.path("converted")).unwrap(), ended.stdout);
        assert!(!site.path("converted.new").exists());
    }
    let text = site.run(&["log", "convert", "--to", "text"]).stdout;
    assert!(text.contains(" → ") && !text.contains('\x1b'), "{text}");
}

#[test]
fn what_cannot_be_converted_is_said() {
    let site = Site::new();
    site.file("own.jsonl", "noise\n{\"v\":1,\"type\":\"log\",\"id\":\"1-0-1\",\"ts\":\"later\",\"op\":\"open\"}\n");
    site.file("cut.jsonl.gz", "\u{1f}");
    std::fs::write(site.path("cut.jsonl.gz"), [0x1f, 0x8b, 8, 0]).unwrap();
    for (arguments, code, told) in [
        (&["absent.jsonl", "--to", "ecs"][..], 1, "outgate: absent.jsonl: there is no such log; name its current file"),
        (&["own.jsonl", "--to", "xml"], 2, "[possible values: json, text, dnstap, ecs, ocsf"),
        (&["own.jsonl"], 2, "--to <FORMAT>"),
        (
            &["own.jsonl", "--to", "ecs", "-o", "own.jsonl"],
            2,
            "outgate: --output own.jsonl is the log itself; name another",
        ),
        (&["own.jsonl", "--to", "ecs", "-o", "no/such"], 1, "outgate: no/such cannot be written: No such file"),
        (
            &["own.jsonl", "--to", "ecs"],
            0,
            "1 lines are no record; the first is line 1\n1 records have no form in ecs\n",
        ),
        (&["cut.jsonl.gz", "--to", "ecs"], 1, "cut.jsonl.gz: not read beyond line 0"),
    ] {
        let ended = site.run(&[&["log", "convert"], arguments].concat());
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(code), ""), "{arguments:?} {}", ended.stderr);
        assert!(ended.stderr.contains(told), "{arguments:?} {}", ended.stderr);
    }
}

#[test]
fn a_closed_pipe_ends_it_quietly() {
    let site = Site::new();
    let record =
        r#"{"v":1,"type":"query","id":"1-1-1","ts":"2026-11-21T03:53:04.117302Z","verdict":"deny","reason":"default"}"#;
    site.file("long.jsonl", &format!("{record}\n").repeat(20_000));
    let mut convert = Command::new(env!("CARGO_BIN_EXE_outgate"))
        .args(["log", "convert", "--to", "ecs"])
        .arg(site.path("long.jsonl"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(convert.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.ends_with("}\n"));
    let ended = convert.wait_with_output().unwrap();
    assert_eq!((ended.status.code(), String::from_utf8_lossy(&ended.stderr).as_ref()), (Some(0), ""));
}

fn json(lines: &str) -> Vec<Value> {
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}
