//! dig and kdig over every transport.

use std::process::Command;

use crate::dns::{Client, code, extended_error, query, with_edns};
use crate::harness::{Site, ZONE, end, free_port, loopback};
use crate::tls::renew;

/// What a program showed: the code, and each answer's data with its type.
fn shown(text: &str) -> (String, Vec<String>) {
    let status = text
        .split_once("opcode: ")
        .and_then(|(_, rest)| rest.split_once("status: "))
        .map_or("", |(_, rest)| rest.split([',', ';', '\n']).next().unwrap());
    let section = text.split_once(";; ANSWER SECTION:\n").map_or("", |(_, rest)| rest.split("\n\n").next().unwrap());
    let data =
        |line: &str| line.split("\tIN\t").nth(1).unwrap().replace('\t', " ").replace("Corp.Example", "corp.example");
    let mut answers: Vec<String> = section.lines().map(data).collect();
    answers.sort();
    (status.to_owned(), answers)
}

#[test]
fn dig_and_kdig_are_told_the_same_over_udp_tcp_tls_and_https() {
    let [tls, https] = [loopback(free_port()), loopback(free_port())];
    let site = Site::new();
    let long = vec![format!("\"{}\"", "x".repeat(200)); 9].join(" ");
    site.file("zones/corp.example.zone", &format!("{ZONE}long TXT {long}\napi CNAME www\n"));
    let listen = format!("[listen]\ndns = [\"{}\"]\nworkers = 1\ntls = [\"{tls}\"]\nhttps = [\"{https}\"]", site.dns);
    let certificate = "[tls]\ncertificate = \"tls/cert.pem\"\nkey = \"tls/key.pem\"";
    let site = site.with("listen", listen).with("tls", certificate);
    renew(&site);
    let mut node = site.start();
    let authority = format!("+tls-ca={}", site.path("tls/cert.pem").display());
    let strict = [&*authority, "+tls-hostname=dns.example.org"];
    let doors = [
        ("udp", site.dns, vec![]),
        ("tcp", site.dns, vec!["+tcp"]),
        ("dot", tls, [&["+tls"][..], &strict].concat()),
        ("doh", https, [&["+https"][..], &strict].concat()),
    ];
    for (name, kind, status, count) in [
        ("www.corp.example", "A", "NOERROR", 1),
        ("www.corp.example", "AAAA", "NOERROR", 1),
        ("API.Corp.Example", "A", "NOERROR", 2),
        ("long.corp.example", "TXT", "NOERROR", 1),
        ("www.corp.example", "MX", "NOERROR", 0),
        ("www.corp.example", "TYPE731", "NOERROR", 0),
        ("never.corp.example", "A", "NXDOMAIN", 0),
        ("none.corp.example", "A", "NXDOMAIN", 0),
    ] {
        let mut told = Vec::new();
        for program in ["dig", "kdig"] {
            for (transport, address, options) in &doors {
                let (host, port) = (format!("@{}", address.ip()), address.port().to_string());
                // Each tries once: a second query would be in the log.
                let once = if program == "dig" { "+tries=1" } else { "+retry=0" };
                let fixed = [&*host, "-p", &port, once, "+edns", name, kind];
                let before = site.queries().len();
                let ended = end(Command::new(program).args(fixed).args(options));
                assert_eq!(ended.code, Some(0), "{program} {transport} {name} {kind}: {ended:?}");
                let (is, answers) = shown(&ended.stdout);
                assert_eq!((&*is, answers.len()), (status, count), "{program} {transport} {name} {kind}: {ended:?}");
                told.push(answers);
                let records = site.queries().split_off(before);
                // What is cut over UDP is asked again over TCP by the programs themselves.
                let cut = *transport == "udp" && name.starts_with("long");
                let by: Vec<_> = records.iter().map(|record| record["transport"].as_str().unwrap()).collect();
                assert_eq!(by, if cut { vec!["udp", "tcp"] } else { vec![*transport] }, "{program} {name}");
            }
        }
        assert!(told.iter().all(|answers| *answers == told[0]), "{name} {kind}: {told:?}");
    }
    // What a refusal says is shown to those who debug.
    let (host, port) = (format!("@{}", site.dns.ip()), site.dns.port().to_string());
    let ended = end(Command::new("dig").args([&*host, "-p", &port, "never.corp.example"]));
    assert!(ended.stdout.contains("EDE: 15 (Blocked): (denied by rule never"), "{}", ended.stdout);
    let reply =
        Client::new(site.dns).ask(&with_edns(query("never.corp.example", hickory_proto::rr::RecordType::A), 1232));
    let reply = reply.unwrap();
    assert_eq!((u16::from(code(&reply)), extended_error(&reply)), (3, Some(15)));
    assert_eq!(node.stop(), Some(0));
    site.verified();
}

/// One question by `dig`: the whole text, and the query records of it.
fn dug(site: &Site, arguments: &[&str]) -> (String, Vec<serde_json::Value>) {
    let (host, port) = (format!("@{}", site.dns.ip()), site.dns.port().to_string());
    let before = site.queries().len();
    let ended = end(Command::new("dig").args([&*host, "-p", &port, "+tries=1"]).args(arguments));
    (ended.stdout, site.queries().split_off(before))
}

#[test]
fn the_tests_of_rfc_8906_get_their_replies() {
    let site = Site::new();
    let mut node = site.start();
    let name = "www.corp.example";
    // RFC 8906 §8.1 and §8.2, with what §3 asks for.
    for (what, options, kind, status) in [
        ("8.1.1 plain DNS", "+noedns +noad +norec", "A", "NOERROR"),
        ("8.1.2 an unknown type", "+noedns +noad +norec", "TYPE1000", "NOERROR"),
        ("8.1.3.1 CD", "+noedns +noad +norec +cd", "A", "NOERROR"),
        ("8.1.3.2 AD", "+noedns +norec +ad", "A", "NOERROR"),
        ("8.1.3.3 the reserved bit", "+noedns +noad +norec +zflag", "A", "NOERROR"),
        ("8.1.3.4 RD", "+noedns +noad +rec", "A", "NOERROR"),
        ("8.1.4 an unknown opcode", "+noedns +noad +opcode=15 +norec +header-only", "A", "NOTIMP"),
        ("8.1.5 TCP", "+noedns +noad +norec +tcp", "A", "NOERROR"),
        ("8.2.1 EDNS", "+edns=0 +nocookie +noad +norec", "A", "NOERROR"),
        ("8.2.2 version 1", "+edns=1 +noednsnegotiation +nocookie +noad +norec", "A", "BADVERS"),
        ("8.2.3 an unknown option", "+edns=0 +noad +norec +ednsopt=100", "A", "NOERROR"),
        ("8.2.4 unknown flags", "+edns=0 +nocookie +noad +norec +ednsflags=0x80", "A", "NOERROR"),
        ("8.2.5 version 1, unknown flags", "+edns=1 +noednsnegotiation +noad +norec +ednsflags=0x80", "A", "BADVERS"),
        ("8.2.6 version 1, an unknown option", "+edns=1 +noednsnegotiation +noad +norec +ednsopt=100", "A", "BADVERS"),
        ("8.2.7 a small buffer", "+norec +dnssec +bufsize=512 +ignore", "TXT", "NOERROR"),
        ("8.2.8 DO", "+edns=0 +nocookie +noad +norec +dnssec", "A", "NOERROR"),
        ("8.2.9 version 1, DO", "+edns=1 +noednsnegotiation +nocookie +noad +norec +dnssec", "A", "BADVERS"),
        ("8.2.10 several options", "+edns=0 +noad +norec +cookie +nsid +expire +subnet=0.0.0.0/0", "A", "NOERROR"),
    ] {
        let arguments: Vec<&str> = options.split(' ').chain([name, kind]).collect();
        let (text, records) = dug(&site, &arguments);
        assert_eq!((shown(&text).0, records.len()), (status.to_owned(), 1), "{what}: {text}");
        // What is not understood is not repeated: the reserved bit, flags, options.
        assert!(!text.contains("MBZ") && !text.contains("OPT=100"), "{what}: {text}");
        assert_eq!(
            text.contains("EDNS: version: 0"),
            options.contains("+edns") || options.contains("+dnssec"),
            "{what}: {text}"
        );
        assert_eq!(shown(&text).1.len(), usize::from(kind == "A" && status == "NOERROR"), "{what}: {text}");
    }
    assert_eq!(node.stop(), Some(0));
    site.verified();
}

#[test]
fn nobody_transfers_a_zone_changes_it_or_asks_for_another_class() {
    let site = Site::new();
    let mut node = site.start();
    for (arguments, status) in [
        (&["corp.example", "AXFR"][..], "REFUSED"),
        (&["+tcp", "corp.example", "IXFR=1"], "REFUSED"),
        (&["version.bind", "CH", "TXT"], "REFUSED"),
        (&["www.corp.example", "HS", "A"], "REFUSED"),
        (&["+opcode=NOTIFY", "corp.example", "SOA"], "NOTIMP"),
        (&["+opcode=STATUS", "corp.example", "SOA"], "NOTIMP"),
    ] {
        let (text, records) = dug(&site, arguments);
        assert!(text.contains("Transfer failed") || shown(&text).0 == status, "{arguments:?}: {text}");
        assert_eq!(records.len(), 1, "{arguments:?}: {text} {records:#?}");
        assert_eq!((&records[0]["verdict"], &records[0]["rcode"]), (&"deny".into(), &status.into()), "{arguments:?}");
    }
    let script = format!(
        "server 127.0.0.1 {}\nzone corp.example\nupdate add evil.corp.example 60 A 192.0.2.66\nsend\n",
        site.dns.port()
    );
    site.file("script", &script);
    let ended = end(Command::new("nsupdate").arg(site.path("script")));
    assert!(ended.stderr.contains("update failed: NOTIMP"), "{ended:?}");
    assert_eq!(shown(&dug(&site, &["evil.corp.example"]).0).0, "NXDOMAIN");
    assert_eq!(node.stop(), Some(0));
    site.verified();
}
