//! `outgate probe`: what it says of everything that can be seen, and that it sends to nobody else.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, ResponseCode};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{RData, Record, RecordType};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::{Ended, OUTGATE, Site, end, free_port, in_own_network, loopback, privileged, until};
use crate::programs::are_here;
use crate::upstream::Upstream;

/// `outgate probe` without the ways around that are tried by themselves.
fn probe(arguments: &[&str]) -> Ended {
    end(Command::new(OUTGATE).args(["probe", "--without", "all", "--timeout", "1s"]).args(arguments))
}

/// The lines without what differs from run to run: durations are `T`.
fn lines(text: &str) -> Vec<String> {
    let plain = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let timed = words.iter().enumerate().map(|(at, word)| {
            let unit = words.get(at + 1).copied().unwrap_or_default().trim_end_matches([',', ';', ':']);
            let is_time = ["ms", "s"].contains(&unit) && word.parse::<f64>().is_ok();
            if is_time { "T" } else { word }
        });
        timed.collect::<Vec<_>>().join(" ")
    };
    text.lines().map(plain).collect()
}

fn reply(question: &Message, code: ResponseCode, addresses: &[RData], ede: Option<(u8, &str)>) -> Message {
    let asked = question.queries[0].clone();
    let mut reply = Message::response(question.metadata.id, question.metadata.op_code);
    reply.metadata.response_code = code;
    for address in addresses.iter().filter(|address| address.record_type() == asked.query_type()) {
        reply.add_answer(Record::from_rdata(asked.name().clone(), 60, address.clone()));
    }
    reply.add_query(asked);
    if let Some((code, text)) = ede {
        let mut edns = Edns::new();
        edns.options_mut().insert(EdnsOption::Unknown(15, [&[0, code], text.as_bytes()].concat()));
        reply.set_edns(edns);
    }
    reply
}

/// A resolver that says of each name what its first label tells.
fn resolver() -> Upstream {
    let lost = std::sync::Mutex::new(std::collections::HashSet::new());
    Upstream::octets(loopback(free_port()), move |question, stream| {
        use ResponseCode::{NXDomain, NoError, Refused, ServFail};
        let (name, kind) = (question.queries[0].name().to_ascii(), question.queries[0].query_type());
        let here = [RData::A(A::new(127, 0, 0, 1))];
        let say = |code, ede| reply(question, code, &[], ede);
        let both = [RData::A(A::new(127, 0, 0, 1)), RData::AAAA(AAAA::new(0, 0, 0, 0, 0, 0, 0, 1))];
        let said = match name.split('.').next().unwrap() {
            "here" => reply(question, NoError, &here, None),
            "both" => reply(question, NoError, &both, None),
            "many" => reply(
                question,
                NoError,
                &[127, 126, 125, 124, 123, 122, 121, 120, 119].map(|last| RData::A(A::new(127, 0, 0, last))),
                None,
            ),
            "long" if !stream => {
                let mut cut = reply(question, NoError, &[], None);
                cut.metadata.truncation = true;
                cut
            }
            "long" => reply(question, NoError, &here, None),
            "lost" if lost.lock().unwrap().insert((name.clone(), kind)) => return None,
            "lost" => reply(question, NoError, &here, None),
            "half" if kind == RecordType::AAAA => say(ServFail, Some((22, "no upstream answers"))),
            "half" => reply(question, NoError, &here, None),
            "blocked" => say(NXDomain, Some((15, "denied by rule no-trackers"))),
            "stranger" => say(Refused, Some((18, "this client is in no segment"))),
            "refused" => say(Refused, None),
            "gone" => say(NXDomain, None),
            "empty" => say(NoError, None),
            "broken" => say(ServFail, Some((22, "no upstream answers"))),
            "hidden" => say(NXDomain, Some((15, "\u{1b}[2Jno"))),
            _ => return None,
        };
        Some(said.to_vec().unwrap())
    })
}

#[test]
fn says_of_every_name_what_came_of_it() {
    let resolver = resolver();
    let at = resolver.address.to_string();
    let open = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = open.local_addr().unwrap().port();
    let closed = free_port();
    let ask = "ask the node: `outgate grants --address` says whether it is open, `outgate explain` which ports the rule opens";
    let rule = "`outgate explain --client` with this machine's address says which rule refuses it";
    let unsaid = "the answer does not say that it is policy: name one that exists, or ask the resolver itself";
    let rows: Vec<(&str, u16, i32, String)> = vec![
        ("here", port, 0, "ok  : resolved in T ms, connected to 1 address in T ms".into()),
        ("long", port, 0, "ok  : resolved in T ms, connected to 1 address in T ms".into()),
        ("here", closed, 1, format!("FAIL: told, but 127.0.0.1 refused by a reset — {ask}")),
        ("both", port, 1, format!("FAIL: told, but ::1 refused by a reset; 1 others connected — {ask}")),
        ("many", port, 1, "FAIL: told, but 127.0.0.120 refused by a reset; 127.0.0.121 refused by a reset;".into()),
        ("lost", port, 0, "warn: resolved in T ms, connected to 1 address in T ms — no answer in half the time, so it was asked again: look for loss on the way, or a slow upstream".into()),
        ("half", port, 0, "warn: resolved in T ms, connected to 1 address in T ms; AAAA: SERVFAIL, EDE 22 (No Reachable Authority): no upstream answers — clients ask both types and may wait for this one".into()),
        ("blocked", port, 1, format!("FAIL: NXDOMAIN, EDE 15 (Blocked): denied by rule no-trackers — {rule}")),
        ("stranger", port, 1, format!("FAIL: REFUSED, EDE 18 (Prohibited): this client is in no segment — {rule}")),
        ("gone", port, 1, "FAIL: NXDOMAIN — see that the name is right, and has addresses".into()),
        ("empty", port, 1, "FAIL: no address (NOERROR) — see that the name is right, and has addresses".into()),
        ("broken", port, 1, "FAIL: SERVFAIL, EDE 22 (No Reachable Authority): no upstream answers — it failed behind the resolver: the record in its log says where".into()),
        ("silent", port, 1, "FAIL: no answer in 1s — see that the resolver runs, and that this machine may reach it".into()),
        ("blocked", 0, 0, "ok  : NXDOMAIN, EDE 15 (Blocked): denied by rule no-trackers".into()),
        ("stranger", 0, 0, "ok  : REFUSED, EDE 18 (Prohibited): this client is in no segment".into()),
        ("refused", 0, 0, "ok  : REFUSED".into()),
        ("hidden", 0, 0, "ok  : NXDOMAIN, EDE 15 (Blocked): \\u001b[2Jno".into()),
        ("gone", 0, 0, format!("warn: NXDOMAIN — {unsaid}")),
        ("empty", 0, 0, format!("warn: no address (NOERROR) — {unsaid}")),
        ("broken", 0, 0, "warn: SERVFAIL, EDE 22 (No Reachable Authority): no upstream answers — it failed and was not refused: it may be answered once that is mended".into()),
        ("here", 0, 1, "FAIL: told 127.0.0.1 — `outgate explain here.example A` says which rule allows it".into()),
        ("silent", 0, 1, "FAIL: no answer in 1s — nothing is known of it: see that the resolver runs".into()),
    ];
    for (label, port, code, expected) in rows {
        let name = format!("{label}.example");
        let (flag, word, target) = match port {
            0 => ("--denied", "denied ", name),
            port => ("--allowed", "allowed", format!("{name}:{port}")),
        };
        let ended = probe(&["--resolver", &at, flag, &target]);
        let (state, said) = expected.split_once(": ").unwrap();
        let expected = format!("{state} {word} {target} at {at}  {said}");
        let first = lines(&ended.stdout).into_iter().next().unwrap();
        assert!(first == expected || (label == "many" && first.starts_with(&expected)), "{first}\n{expected}");
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(code), ""), "{first}");
        let strict = i32::from(code == 1 || state == "warn");
        // What was lost before is not lost again.
        if label != "lost" {
            let ended = probe(&["--resolver", &at, flag, &target, "--strict", "--quiet"]);
            assert_eq!(ended.code, Some(strict), "{}", ended.stdout);
            assert_eq!(ended.stdout.contains(&target), state != "ok  ", "{}", ended.stdout);
        }
        if label == "many" {
            assert_eq!(first.matches("refused by a reset").count(), 8, "{first}");
        }
    }
}

#[test]
fn a_resolver_that_is_not_there_is_no_refusal() {
    let at = loopback(free_port()).to_string();
    let ended = probe(&["--resolver", &at, "--denied", "a.example", "--allowed", "b.example"]);
    assert_eq!(
        lines(&ended.stdout),
        [
            format!(
                "FAIL allowed b.example:443 at {at}  refused: ICMP port unreachable from 127.0.0.1 — see that the resolver runs, and that this machine may reach it"
            ),
            format!(
                "FAIL denied  a.example at {at}  refused: ICMP port unreachable from 127.0.0.1 — nothing is known of it: see that the resolver runs"
            ),
            "2 checks: 0 ok, 2 FAIL, T s".to_owned(),
        ]
    );
    assert_eq!(ended.code, Some(1));
}

#[test]
fn a_node_is_asked_as_its_clients_ask_it() {
    let site = Site::new();
    let _node = site.start();
    let at = site.dns.to_string();
    let ended = probe(&[
        "--resolver",
        &at,
        "--denied",
        "never.corp.example",
        "--denied",
        "elsewhere.example",
        "--denied",
        "www.corp.example",
    ]);
    let said = lines(&ended.stdout);
    assert_eq!(
        said[0],
        format!("ok   denied  never.corp.example at {at}  NXDOMAIN, EDE 15 (Blocked): denied by rule never")
    );
    assert_eq!(
        said[1],
        format!(
            "ok   denied  elsewhere.example at {at}  NXDOMAIN, EDE 15 (Blocked): no rule allows this name for segment loop"
        )
    );
    assert_eq!(
        said[2],
        format!(
            "FAIL denied  www.corp.example at {at}  told 192.0.2.80 — `outgate explain www.corp.example A` says which rule allows it"
        )
    );
    assert_eq!(said[3], "note: nothing allowed was tried; a machine without a network would refuse the rest as well");
    assert_eq!(ended.code, Some(1));
}

#[test]
fn a_program_reads_the_same() {
    let resolver = resolver();
    let at = resolver.address.to_string();
    let open = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = format!("here.example:{}", open.local_addr().unwrap().port());
    let way = open.local_addr().unwrap().to_string();
    let ended =
        probe(&["--json", "--resolver", &at, "--allowed", &target, "--denied", "gone.example", "--blocked", &way]);
    let said: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((said["holds"].as_bool(), ended.code), (Some(false), Some(1)), "{said}");
    assert_eq!([&said["ok"], &said["warn"], &said["fail"]], [1, 1, 1]);
    let checks = said["checks"].as_array().unwrap();
    let states: Vec<_> =
        checks.iter().map(|check| [&check["check"], &check["target"], &check["resolver"], &check["state"]]).collect();
    assert_eq!(
        serde_json::json!(states),
        serde_json::json!([
            ["allowed", target, at, "ok"],
            ["denied", "gone.example", at, "warn"],
            ["blocked", format!("tcp/{way}"), null, "fail"],
        ])
    );
    assert!(checks[0]["resolve_us"].is_u64() && checks[0]["connect_us"].is_u64() && checks[0]["remedy"].is_null());
    assert!(checks[2]["connect_us"].is_null() && checks[2]["seen"].as_str().unwrap().starts_with("connected in "));
}

#[test]
fn mistakes_are_told_with_their_places() {
    let site = Site::new();
    site.file(
        "probe.toml",
        "resolvers = [\"192.0.2\"]\nallowed = [\"a..b\", \"www.example.org:x\"]\ndenied = [\"192.0.2.1\"]\nblocked = [\"203.0.113.5\"]\n\
         timeout = \"1h\"\nevry = \"30s\"\n[around]\ndns = [\"one\"]\ncluod = []\n",
    );
    let ended = site.run(&["probe", "--file", "probe.toml"]);
    assert_eq!(
        ended.stderr,
        r#"outgate: 9 mistakes; nothing was started or changed
probe.toml:1:14: `resolvers` cannot hold "192.0.2"
  write an address, e.g. 192.0.2.1 or 192.0.2.1:5300
probe.toml:2:12: `allowed` cannot hold "a..b"
  it has an empty label; write a domain name, e.g. registry.example
probe.toml:2:20: `allowed` cannot hold "www.example.org:x"
  write NAME:PORT, e.g. registry.example:443
probe.toml:3:11: `denied` cannot hold "192.0.2.1"
  write a name, not an address; what must not be reached is named by --blocked
probe.toml:4:12: `blocked` cannot hold "203.0.113.5"
  write ADDRESS:PORT, with udp/ before it for UDP, e.g. 203.0.113.5:443 or udp/[2001:db8::5]:53
probe.toml:5:11: `timeout` = "1h" is out of range
  write a duration from 100ms to 30s
probe.toml:6:1: `evry` is not a key here
  did you mean `every`?
probe.toml:8:8: `dns` cannot hold "one"
  write an address, e.g. "203.0.113.53"
probe.toml:9:1: `cluod` is not a key here
  did you mean `cloud`?
"#
    );
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""));
    for (arguments, text) in [
        (&[][..], "there is nothing to try; name --allowed, --denied or --blocked"),
        (
            &["--blocked", "127.0.0.1:1", "--metrics", "127.0.0.1:0"],
            "--metrics shows what goes on; say with --every how often it is tried",
        ),
        (
            &["--file", "nowhere.toml"],
            "1 mistake; nothing was started or changed\nnowhere.toml cannot be read: No such file or directory (os error 2)\n  name the file with --file, or make it readable for this user",
        ),
    ] {
        let ended = probe(arguments);
        assert_eq!((ended.code, ended.stderr), (Some(2), format!("outgate: {text}\n")));
    }
    let many: Vec<String> = (1..=1001).map(|port| format!("--blocked=127.0.0.1:{port}")).collect();
    let ended = probe(&many.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(ended.stderr, "outgate: 1001 checks are more than 1000; leave out names or resolvers\n");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let held = TcpListener::bind(taken).unwrap();
    let ended = probe(&["--blocked", "127.0.0.1:1", "--every", "1s", "--metrics", &taken.to_string()]);
    assert_eq!(
        ended.stderr,
        format!(
            "outgate: --metrics {taken}: Address already in use (os error 98); name another address, or stop what listens there\n"
        )
    );
    assert_eq!(ended.code, Some(1));
    drop(held);
}

/// Where there is nothing but loopback the ways around that are tried by themselves can be tried.
#[test]
fn the_usual_ways_around_are_tried_unless_they_are_left_out() {
    if !privileged() || !are_here(&["ip"]) {
        return;
    }
    in_own_network(|| {
        let run = |arguments: &[&str]| end(Command::new(OUTGATE).arg("probe").args(arguments));
        let ended = run(&[]);
        let said = lines(&ended.stdout);
        assert_eq!(said.len(), 50, "{}", ended.stdout);
        assert!(
            said[..48].iter().all(|line| line.starts_with("ok   ") && line.ends_with("  no route from here")),
            "{}",
            ended.stdout
        );
        assert_eq!((said[0].as_str(), ended.code), ("ok   dns     udp/1.1.1.1:53  no route from here", Some(0)));
        assert_eq!(said[49], "48 checks: 48 ok, T s");
        let ended = run(&["--without", "dns,dot", "--without", "doh"]);
        assert!(
            ended.stdout.ends_with("8 checks: 8 ok, 0.0 s\n")
                && ended.stdout.contains("ok   cloud   tcp/168.63.129.16:53"),
            "{}",
            ended.stdout
        );
    });
}

#[test]
fn tells_every_way_around_by_what_comes_back() {
    if !privileged() || !are_here(&["ip", "nft"]) {
        return;
    }
    const RULES: &str = "add table inet probe
        add chain inet probe in { type filter hook input priority 0; }
        add chain inet probe out { type filter hook output priority 0; }
        add rule inet probe in ip daddr 127.0.0.2 ip protocol udp reject with icmp admin-prohibited
        add rule inet probe in ip daddr 127.0.0.2 ip protocol tcp reject with tcp reset
        add rule inet probe in ip daddr 127.0.0.3 udp dport != 7 drop
        add rule inet probe in ip daddr 127.0.0.3 tcp dport 53 drop
        add rule inet probe in tcp dport 8443 tcp flags & (syn | ack) == syn limit rate 1/day burst 1 packets drop
        add rule inet probe in ip6 daddr ::1 tcp dport 53 reject with icmpv6 admin-prohibited
        add rule inet probe out ip daddr 127.0.0.4 drop\n";
    in_own_network(|| {
        let mut nft =
            crate::programs::command("nft").args(["-f", "-"]).stdin(std::process::Stdio::piped()).spawn().unwrap();
        nft.stdin.take().unwrap().write_all(RULES.as_bytes()).unwrap();
        assert!(nft.wait().unwrap().success());
        // What is open, and what an answer looks like.
        let _listening = [53, 443, 853, 8443].map(|port| TcpListener::bind(("127.0.0.1", port)).unwrap());
        let _open = Upstream::octets("127.0.0.5:53".parse().unwrap(), |question, _| {
            assert_eq!(question.queries[0].to_string(), ". IN NS", "nothing else is asked");
            Some(reply(question, ResponseCode::NoError, &[], None).to_vec().unwrap())
        });
        let _own = Upstream::octets("127.0.0.6:53".parse().unwrap(), |question, _| {
            Some(reply(question, ResponseCode::NXDomain, &[], Some((15, "no rule allows this name"))).to_vec().unwrap())
        });
        let quic = UdpSocket::bind("127.0.0.1:443").unwrap();
        let _quic = std::thread::spawn(move || {
            let mut packet = [0; 2048];
            let (length, from) = quic.recv_from(&mut packet).unwrap();
            // RFC 9000: long header, fixed bit, a version that is reserved, in 1200 octets.
            assert_eq!(
                (length, packet[0] & 0xc0, packet[1..5].iter().all(|octet| octet & 0x0f == 0x0a)),
                (1200, 0xc0, true)
            );
            quic.send_to(&[0x80, 0, 0, 0, 0], from).unwrap();
        });
        let site = Site::new();
        site.file(
            "probe.toml",
            "timeout = \"1s\"\nblocked = [\"[::1]:53\", \"tcp/127.0.0.4:1\", \"udp/127.0.0.4:1\", \"udp/127.0.0.1:9\"]\n\
             [around]\ndns = [\"127.0.0.2\", \"127.0.0.3\", \"127.0.0.5\", \"127.0.0.6\"]\ndot = [\"127.0.0.1\"]\ndoh = [\"127.0.0.1\"]\ncloud = []\n",
        );
        let ended = site.run(&["probe", "--file", "probe.toml"]);
        let port = "let nobody but the resolver reach port 53";
        let quic = "open no address of a public resolver: DNS over HTTPS goes round the resolver";
        let tls = "let nobody reach port 853: DNS over TLS and QUIC go round the resolver";
        let itself = "that is the address itself, unless a bridge refuses in its name: name a service that answers";
        assert_eq!(
            lines(&ended.stdout),
            [
                "ok   blocked tcp/[::1]:53  refused: ICMP administratively prohibited from ::1".to_owned(),
                "ok   blocked tcp/127.0.0.4:1  no answer in 1s".into(),
                "ok   blocked udp/127.0.0.4:1  refused by this machine itself".into(),
                format!("warn blocked udp/127.0.0.1:9  refused: ICMP port unreachable from 127.0.0.1 — {itself}"),
                "ok   dns     udp/127.0.0.2:53  refused: ICMP administratively prohibited from 127.0.0.2".into(),
                "ok   dns     tcp/127.0.0.2:53  refused by a reset".into(),
                "ok   dns     udp/127.0.0.3:53  no answer in 1s".into(),
                "ok   dns     tcp/127.0.0.3:53  no answer in 1s".into(),
                format!("FAIL dns     udp/127.0.0.5:53  answered in T ms: NOERROR — {port}"),
                format!("FAIL dns     tcp/127.0.0.5:53  answered in T ms: NOERROR — {port}"),
                "warn dns     udp/127.0.0.6:53  answered in T ms: NXDOMAIN, EDE 15 (Blocked): no rule allows this name — it seems to be led to a resolver that refuses; see that this is yours".into(),
                "warn dns     tcp/127.0.0.6:53  answered in T ms: NXDOMAIN, EDE 15 (Blocked): no rule allows this name — it seems to be led to a resolver that refuses; see that this is yours".into(),
                format!("warn dot     udp/127.0.0.1:853  refused: ICMP port unreachable from 127.0.0.1 — {itself}"),
                format!("FAIL dot     tcp/127.0.0.1:853  connected in T ms — {tls}"),
                format!("FAIL doh     udp/127.0.0.1:443  answered in T ms — {quic}"),
                format!("FAIL doh     tcp/127.0.0.1:443  connected in T ms — {quic}"),
                "note: nothing allowed was tried; a machine without a network would refuse the rest as well".into(),
                "16 checks: 7 ok, 4 warn, 5 FAIL, T s".into(),
            ]
        );
        // The first SYN is dropped: what connects on the second is told as late.
        let resolver = resolver();
        let ended = site.run(&[
            "probe",
            "--without",
            "all",
            "--resolver",
            &resolver.address.to_string(),
            "--allowed",
            "here.example:8443",
        ]);
        assert!(ended.stdout.contains(" ms — the first SYN was lost: a client waits a second"), "{}", ended.stdout);
        assert_eq!(ended.code, Some(0));
    });
}

/// A real server answers a version that nobody has.
#[cfg(feature = "quic")]
#[test]
fn a_server_of_quic_is_found() {
    let (site, way) = crate::tls::site("quic");
    let _node = site.start();
    let ended = probe(&["--blocked", &format!("udp/{way}")]);
    let first = lines(&ended.stdout).into_iter().next().unwrap();
    assert!(first.starts_with(&format!("FAIL blocked udp/{way}  answered in T ms — ")), "{first}");
    assert_eq!(ended.code, Some(1));
}

#[test]
fn goes_on_and_tells_what_has_changed() {
    let resolver = resolver();
    let at = resolver.address.to_string();
    let site = Site::new();
    let (metrics, way) = (loopback(free_port()), loopback(free_port()));
    let metrics_text = metrics.to_string();
    let out = site.path("told");
    let mut command = site.command(&["probe", "--without", "all", "--every", "1s", "--metrics", &metrics_text]);
    command.args(["--resolver", &at, "--denied", "blocked.example", "--blocked", &way.to_string()]);
    command.stdout(std::fs::File::create(&out).unwrap());
    let mut running = crate::programs::Running::start(&mut command);
    let told = || std::fs::read_to_string(&out).unwrap();
    until("the first round has ended", || {
        get(metrics, "/health/ready").is_some_and(|text| text.starts_with("HTTP/1.1 200"))
    });
    until("it is told", || told().ends_with(" s\n"));
    let first = told();
    let series = |name: &str| {
        let page = get(metrics, "/metrics").unwrap_or_default();
        page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse::<f64>().ok())
    };
    let label = format!("{{check=\"blocked\",target=\"tcp/{way}\",resolver=\"\"}}");
    assert_eq!(
        (series("outgate_probe_holds"), series(&format!("outgate_probe_check_ok{label}"))),
        (Some(1.0), Some(1.0))
    );
    // A hole.
    let hole = TcpListener::bind(way).unwrap();
    until("the hole is seen", || series("outgate_probe_holds") == Some(0.0));
    assert_eq!(series(&format!("outgate_probe_check_ok{label}")), Some(0.0));
    assert!(series(&format!("outgate_probe_failures_total{label}")) >= Some(1.0));
    drop(hole);
    until("it is mended", || series("outgate_probe_holds") == Some(1.0));
    until("that is told", || told().lines().count() >= first.lines().count() + 2);
    let page = get(metrics, "/metrics").unwrap();
    assert!(
        page.contains("# TYPE outgate_probe_failures_total counter")
            && page.contains(&format!("resolver=\"{at}\"}} 1")),
        "{page}"
    );
    let running_id = nix::unistd::Pid::from_raw(i32::try_from(running.0.id()).unwrap());
    nix::sys::signal::kill(running_id, Signal::SIGTERM).unwrap();
    assert_eq!(running.0.wait().unwrap().code(), Some(0), "the last round found nothing");
    // Nothing is said of what stays as it is.
    let told = told();
    let changes: Vec<&str> = told[first.len()..].lines().map(|line| line.split_once(' ').unwrap().1).collect();
    assert_eq!(
        lines(&changes.join("\n")),
        [
            format!(
                "FAIL blocked tcp/{way}  connected in T ms — no rule may open it, and the gateway must refuse what no rule opened"
            ),
            format!("ok   blocked tcp/{way}  refused by a reset"),
        ]
    );
}

fn get(door: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(door).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}
