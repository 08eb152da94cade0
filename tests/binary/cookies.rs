//! DNS cookies: with Knot, which answers nothing over UDP without one of its own; and with dig and kdig, as their server.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::dns::{Client, addresses};
use crate::harness::{Site, end, free_port, loopback, until};
use crate::programs::{Running, are_here, command};

#[test]
fn knot_is_shown_the_cookie_that_it_gave() {
    if !are_here(&["knotd"]) {
        return;
    }
    let address = loopback(free_port());
    let site = Site::new().with_servers(&[address]);
    let root = site.directory.display();
    site.file(
        "knot/example.net.zone",
        "$TTL 60\n@ SOA ns hostmaster 1 3600 600 86400 60\n@ NS ns\nns A 198.51.100.1\n* A 198.51.100.7\n",
    );
    site.file(
        "knot/knot.conf",
        &format!(
            "server:\n    rundir: \"{root}/knot\"\n    listen: 127.0.0.1@{}\n    udp-workers: 1\n    tcp-workers: 1\n    \
             background-workers: 1\ncontrol:\n    listen: \"{root}/knot/control\"\ndatabase:\n    storage: \
             \"{root}/knot/database\"\nmod-cookies:\n  - id: default\n    badcookie-slip: 1\ntemplate:\n  - id: default\n    \
             storage: \"{root}/knot\"\n    global-module: mod-cookies/default\nzone:\n  - domain: example.net\n    file: \
             \"example.net.zone\"\n",
            address.port(),
        ),
    );
    let _knot = Running::start(command("knotd").arg("-c").arg(site.path("knot/knot.conf")));
    until("knot listens", || std::net::TcpStream::connect(address).is_ok());
    // Who shows no cookie is answered as ever; who shows half of one gets BADCOOKIE.
    until("knot has loaded its zone", || addresses(&Client::new(address).told("a.example.net")) == ["198.51.100.7"]);
    let mut node = site.start();
    for number in 0..20 {
        assert_eq!(addresses(&Client::new(site.dns).told(&format!("n{number}.example.net"))), ["198.51.100.7"]);
    }
    // All over UDP, none of them doubted.
    assert_eq!(counters(&site), [20.0, 0.0, 0.0, 0.0]);
    assert_eq!(node.stop(), Some(0));
    site.verified();
}

/// Answers, connections, mismatches, failures.
fn counters(site: &Site) -> [f64; 4] {
    ["answers", "connections", "mismatches", "failures"]
        .map(|what| site.metric(&format!("outgate_upstream_{what}_total{{upstream=\"default\"}}")))
}

/// One question by `dig` or `kdig`: all that it says, the cookie that came back, and what the record says of the one shown.
fn asked(site: &Site, program: &str, options: &[&str]) -> (String, String, Option<String>) {
    let (host, port) = (format!("@{}", site.dns.ip()), site.dns.port().to_string());
    let before = site.queries().len();
    let ended = end(Command::new(program).args([&*host, "-p", &port]).args(options));
    let word = |word: &&str| word.len() == 48 && word.bytes().all(|octet| octet.is_ascii_hexdigit());
    let cookie = ended.stdout.split_whitespace().find(word).unwrap_or_default().to_lowercase();
    let records = site.queries().split_off(before);
    assert_eq!(records.len(), 1, "{ended:?}");
    (ended.stdout, cookie, records[0]["cookie"].as_str().map(str::to_owned))
}

#[test]
fn dig_and_kdig_are_given_cookies_that_last_a_restart_and_a_change_of_secrets() {
    if !are_here(&["dig", "kdig"]) {
        return;
    }
    let site = Site::new();
    let mut node = site.start();
    let file = site.path("state/cookies");
    let secret = std::fs::read_to_string(&file).unwrap();
    assert_eq!((secret.len(), file.metadata().unwrap().permissions().mode() & 0o777), (33, 0o600));
    let www = ["www.corp.example", "A"];
    let (said, cookie, shown) = asked(&site, "dig", &[&["+cookie"][..], &www].concat());
    assert!(said.contains("(good)") && cookie.len() == 48, "{said}");
    assert_eq!(shown, None);
    // Another program, a refusal, TCP.
    let again = format!("+cookie={cookie}");
    for (program, options) in [
        ("dig", &["+tcp", "www.corp.example"][..]),
        ("dig", &["never.corp.example"]),
        ("dig", &["+header-only", "+noad"]),
    ] {
        let (said, same, shown) = asked(&site, program, &[&[&*again][..], options].concat());
        assert_eq!((same, shown.as_deref()), (cookie.clone(), Some("valid")), "{program} {options:?}: {said}");
    }
    let (said, _, shown) = asked(&site, "kdig", &[&["+cookie"][..], &www].concat());
    assert_eq!((said.contains("NOERROR") && !said.contains("WARNING"), shown), (true, None), "{said}");
    // Of another address, and of a cookie that nobody gave.
    let (_, other, shown) = asked(&site, "dig", &[&["-b", "127.0.0.2", &*again][..], &www].concat());
    assert_eq!((other != cookie, shown.as_deref()), (true, Some("invalid")));
    let wrong = format!("+cookie={}{}", &cookie[..16], "0".repeat(32));
    let (said, fresh, shown) = asked(&site, "dig", &["+header-only", "+noad", "+nobadcookie", &wrong]);
    assert!(said.contains("BADCOOKIE"), "{said}");
    assert_eq!((fresh.len(), shown.as_deref()), (48, Some("invalid")));

    // The secret lasts a restart.
    assert_eq!(node.stop(), Some(0));
    let mut node = site.start();
    let valid = |shown: Option<String>| shown.as_deref() == Some("valid");
    let (_, same, shown) = asked(&site, "dig", &[&[&*again][..], &www].concat());
    assert!(same == cookie && valid(shown));
    // Another secret before it, and then alone: the old cookies are good as long as theirs is there.
    let next = "445536bcd2513298075a5d379663c962";
    site.file("state/cookies", &format!("{next}\n{secret}"));
    assert_eq!(site.run(&["reload"]).code, Some(0));
    let (_, renewed, shown) = asked(&site, "dig", &[&[&*again][..], &www].concat());
    assert!(renewed != cookie && valid(shown), "{renewed}");
    site.file("state/cookies", next);
    assert_eq!(site.run(&["reload"]).code, Some(0));
    let (_, _, shown) = asked(&site, "dig", &[&[&*again][..], &www].concat());
    assert_eq!(shown.as_deref(), Some("invalid"));
    let renewed = format!("+cookie={renewed}");
    // What is no secret is refused, with its place; what was in force stays.
    site.file("state/cookies", &format!("{next}\nsecret\n"));
    let refused = site.run(&["reload"]);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.stderr.contains("state/cookies:2:1: not a secret"), "{refused:?}");
    assert!(valid(asked(&site, "dig", &[&[&*renewed][..], &www].concat()).2));
    // Another node with the same file takes its cookies.
    let beside = Site::new();
    beside.file("state/cookies", next);
    let mut second = beside.start();
    let (_, same, shown) = asked(&beside, "dig", &[&[&*renewed][..], &www].concat());
    assert!(valid(shown) && renewed.ends_with(&same));
    assert_eq!((node.stop(), second.stop()), (Some(0), Some(0)));
    // Where the file is broken nothing starts.
    let mut broken = site.spawn();
    assert_eq!(broken.wait(), Some(1));
    assert!(broken.stderr().contains("state/cookies:2:1"), "{}", broken.stderr());
    site.verified();
}
