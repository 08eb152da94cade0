//! What is told of HTTPS and SVCB, and what is opened for it, case by case.

use crate::net::Element;
use crate::policy::inspect;
use crate::policy::testing::{NOW, answer, permit, policy, summary, upstream};
use crate::record::RecordType;

const TEXT: &str = r#"
[[segment]]
name    = "shop"
clients = ["192.0.2.0/24", "2001:db8:1::/48"]
[[segment]]
name    = "four"
clients = ["198.51.100.0/24"]
[[segment]]
name    = "flat"
clients = ["203.0.113.0/24", "2001:db8:2::/48"]
filter_aaaa = true

[[rule]]
id       = "web"
action   = "allow"
segments = ["*"]
names    = ["web.example.com", "_x.example.com", "both.example.com"]
ports    = ["tcp/443", "udp/443", "tcp/8443"]
https    = "filter"
[[rule]]
id       = "whole"
action   = "allow"
segments = ["*"]
names    = ["whole.example.com", "both.example.com"]
https    = "pass"
[[rule]]
id       = "narrow"
action   = "allow"
segments = ["*"]
names    = ["narrow.example.com"]
within   = ["192.88.98.0/25"]
https    = "filter"
[[rule]]
id       = "four-only"
action   = "allow"
segments = ["*"]
names    = ["four.example.com"]
types    = ["A"]
https    = "filter"
[[rule]]
id       = "cdn"
action   = "allow"
segments = ["*"]
names    = ["cdn.example.net", "bad.example.net"]
[[rule]]
id       = "no-bad"
action   = "deny"
segments = ["*"]
names    = ["bad.example.net"]
"#;

const SHOP: &str = "192.0.2.1";
const OPENED: [&str; 3] =
    ["192.0.2.1 > 192.88.98.1 tcp/443", "192.0.2.1 > 192.88.98.1 tcp/8443", "192.0.2.1 > 192.88.98.1 udp/443"];

/// Client, name, the records given, those told, what is opened, and why not all of it is told.
type Row<'a> = (&'a str, &'a str, &'a [&'a str], &'a [&'a str], &'a [&'a str], &'a str);

fn check(rows: &[Row<'_>]) {
    let policy = policy(TEXT);
    for (client, asked, given, told, opened, why) in rows {
        for kind in [RecordType::HTTPS, RecordType::SVCB] {
            let lines: Vec<_> = given.iter().map(|data| format!("{asked} {kind} {data}")).collect();
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            let permit = permit(&policy, client, asked, kind);
            let cleared = inspect(permit, answer(upstream(&[]), &lines));
            let (got, got_opened, withheld) = summary(&cleared);
            let told: Vec<_> = told.iter().map(|data| format!("{asked} {data}")).collect();
            assert_eq!(got, told, "told: {client} {asked} {given:?}");
            assert_eq!(got_opened, *opened, "opened: {client} {asked} {given:?}");
            let said = withheld.or(cleared.left_out().map(str::to_owned)).unwrap_or_default();
            assert_eq!(said.replace(&kind.to_string(), "TYPE"), *why, "{client} {asked} {given:?}");
            for opening in cleared.openings() {
                assert!(policy.upholds(cleared.basis(), &opening.element, NOW).is_some(), "{opening:?}");
            }
        }
    }
}

#[test]
fn a_filter_tells_what_leads_nowhere_else() {
    let web = "web.example.com";
    check(&[
        (SHOP, web, &["1 . alpn=h2,h3"], &["1 . alpn=h2,h3"], &[], ""),
        (SHOP, web, &["1 . alpn=h2 ech=\"AAT+DQAA\""], &["1 . alpn=h2"], &[], ""),
        (SHOP, web, &["1 . key667=hello"], &["1 ."], &[], ""),
        (SHOP, web, &["1 . port=8443"], &["1 . port=8443"], &[], ""),
        (SHOP, web, &["1 . alpn=h3,h2,h3-29,x port=8443"], &["1 . alpn=h2,x port=8443"], &[], ""),
        (SHOP, "narrow.example.com", &["1 . alpn=h2,h3"], &["1 . alpn=h2"], &[], ""),
        (SHOP, "narrow.example.com", &["1 . alpn=doq,h3"], &["1 ."], &[], ""),
        (
            SHOP,
            "narrow.example.com",
            &["1 . mandatory=alpn alpn=h3", "2 . alpn=h3 no-default-alpn", "3 ."],
            &["3 ."],
            &[],
            "2 records are left out: the service is had over UDP alone, which no rule opens at its port",
        ),
        (
            SHOP,
            web,
            &["1 . port=9443", "2 . alpn=h2"],
            &["2 . alpn=h2"],
            &[],
            "a record is left out: the service is at port 9443, which no rule opens",
        ),
        // Targets.
        (SHOP, web, &["1 web.example.com. alpn=h2"], &["1 web.example.com alpn=h2"], &[], ""),
        (SHOP, web, &["1 CDN.example.net. alpn=h2"], &["1 cdn.example.net alpn=h2"], &[], ""),
        (
            SHOP,
            web,
            &["1 other.example.net. alpn=h2 ipv4hint=192.88.98.1"],
            &[],
            &[],
            "cname: the answer leads to other.example.net, whose addresses no rule allows",
        ),
        (
            SHOP,
            web,
            &["1 bad.example.net.", "2 ."],
            &["2 ."],
            &[],
            "a record is left out: the answer leads to bad.example.net, which rule no-bad denies",
        ),
        // Aliases.
        (SHOP, web, &["0 cdn.example.net."], &["0 cdn.example.net"], &[], ""),
        (SHOP, web, &["0 ."], &["0 ."], &[], ""),
        (SHOP, web, &[r"\# 0000000004000458585858"], &["0 ."], &[], ""),
        (
            SHOP,
            web,
            &["0 other.example.net."],
            &[],
            &[],
            "cname: the answer leads to other.example.net, whose addresses no rule allows",
        ),
        // What is called mandatory goes with what is filtered.
        (SHOP, web, &["1 . mandatory=alpn alpn=h2"], &["1 . mandatory=alpn alpn=h2"], &[], ""),
        (
            SHOP,
            web,
            &["1 . mandatory=ech alpn=h2 ech=\"AAT+DQAA\"", "2 ."],
            &["2 ."],
            &[],
            "a record is left out: the service needs key 5, which is filtered",
        ),
        (SHOP, web, &[], &[], &[], ""),
    ]);
}

#[test]
fn a_filter_opens_the_hints_that_it_tells() {
    let web = "web.example.com";
    let private = "hints are left out: 10.0.0.1 is private (10.0.0.0/8, RFC 1918)";
    let six = "segment > 2606:2800::1";
    let six = ["tcp/443", "tcp/8443", "udp/443"].map(|port| format!("{six} {port}"));
    let six: Vec<&str> = OPENED.into_iter().chain(six.iter().map(String::as_str)).collect();
    let told = ["1 . ipv4hint=192.88.98.1"];
    check(&[
        (SHOP, web, &told, &told, &OPENED, ""),
        (
            SHOP,
            web,
            &["1 . ipv4hint=192.88.98.1 ipv6hint=2606:2800::1"],
            &["1 . ipv4hint=192.88.98.1 ipv6hint=2606:2800::1"],
            &six,
            "",
        ),
        (
            SHOP,
            web,
            &["1 cdn.example.net. ipv4hint=192.88.98.1"],
            &["1 cdn.example.net ipv4hint=192.88.98.1"],
            &OPENED,
            "",
        ),
        // The same address twice is opened once.
        (
            SHOP,
            web,
            &["1 . ipv4hint=192.88.98.1", "2 . alpn=h2 ipv4hint=192.88.98.1"],
            &["1 . ipv4hint=192.88.98.1", "2 . alpn=h2 ipv4hint=192.88.98.1"],
            &OPENED,
            "",
        ),
        // One that may never be opened condemns those beside it.
        (SHOP, web, &["1 . alpn=h2 ipv4hint=192.88.98.1,10.0.0.1"], &["1 . alpn=h2"], &[], private),
        (SHOP, web, &["1 . ipv4hint=10.0.0.1 ipv6hint=::1"], &["1 ."], &[], private),
        (
            SHOP,
            web,
            &["1 . mandatory=ipv4hint ipv4hint=10.0.0.1"],
            &[],
            &[],
            "address: the service needs key 4, which is filtered",
        ),
        // What a record that is dropped hinted at is not opened.
        (
            SHOP,
            web,
            &["1 . mandatory=ipv6hint ipv4hint=192.88.98.9 ipv6hint=::1", "2 . ipv4hint=192.88.98.1"],
            &["2 . ipv4hint=192.88.98.1"],
            &OPENED,
            "a record is left out: the service needs key 6, which is filtered",
        ),
        // Outside of `within` it alone is left out.
        (
            SHOP,
            "narrow.example.com",
            &["1 . ipv4hint=192.88.98.200,192.88.98.1"],
            &["1 . ipv4hint=192.88.98.1"],
            &["192.0.2.1 > 192.88.98.1 tcp/443"],
            "",
        ),
        (SHOP, "narrow.example.com", &["1 . ipv4hint=192.88.98.200"], &["1 ."], &[], ""),
        // Families.
        (
            SHOP,
            "four.example.com",
            &["1 . ipv6hint=2606:2800::1"],
            &["1 ."],
            &[],
            "hints are left out: it hints at 2606:2800::1, and rule four-only does not allow AAAA",
        ),
        (
            "198.51.100.1",
            web,
            &["1 . ipv6hint=2606:2800::1"],
            &["1 ."],
            &[],
            "hints are left out: segment four has no IPv6 source",
        ),
        (
            "203.0.113.1",
            web,
            &["1 . alpn=h2 ipv6hint=2606:2800::1"],
            &["1 . alpn=h2"],
            &[],
            "hints are left out: segment flat filters AAAA",
        ),
    ]);
}

#[test]
fn whole_records_pass_or_none_does() {
    let whole = "whole.example.com";
    let opened = ["192.0.2.1 > 192.88.98.1 tcp/443"];
    let record = "1 . alpn=h2 port=9443 ipv4hint=192.88.98.1 ech=0004fe0d0000 key667=6869";
    let given = "1 . alpn=h2 port=9443 ipv4hint=192.88.98.1 ech=\"AAT+DQAA\" key667=hi";
    check(&[
        (SHOP, whole, &[given], &[record], &opened, ""),
        // Of two rules the one that lets pass says what is told, and what is opened.
        (SHOP, "both.example.com", &[given], &[record], &opened, ""),
        (SHOP, whole, &["0 cdn.example.net."], &["0 cdn.example.net"], &[], ""),
        (
            SHOP,
            whole,
            &["1 cdn.example.net. ipv4hint=192.88.98.1"],
            &["1 cdn.example.net ipv4hint=192.88.98.1"],
            &opened,
            "",
        ),
        (
            SHOP,
            whole,
            &["1 .", "2 other.example.net."],
            &[],
            &[],
            "cname: the answer leads to other.example.net, whose addresses no rule allows",
        ),
        (
            SHOP,
            whole,
            &[given, "2 . ipv4hint=127.0.0.1"],
            &[],
            &[],
            "address: 127.0.0.1 is loopback (127.0.0.0/8, RFC 1122)",
        ),
        ("198.51.100.1", whole, &["1 . ipv6hint=2606:2800::1"], &[], &[], "family: segment four has no IPv6 source"),
        // Recipients ignore what an alias hints at, but it would be told.
        (SHOP, whole, &[r"\# 000000000400040a000001"], &[], &[], "address: 10.0.0.1 is private (10.0.0.0/8, RFC 1918)"),
    ]);
}

#[test]
fn a_malformed_record_condemns_its_set() {
    let why = |asked: &str| {
        format!("upstream: the TYPE record of {asked} is malformed: key 1 does not follow the keys before it")
    };
    let data = r"\# 00010000030002003500010003026832";
    for asked in ["web.example.com", "whole.example.com"] {
        check(&[(SHOP, asked, &["1 . alpn=h2", data], &[], &[], &why(asked))]);
    }
}

#[test]
fn hints_and_records_are_bounded() {
    let list = |count: usize| (1..=count).map(|at| format!("192.88.98.{at}")).collect::<Vec<_>>().join(",");
    let of = |asked: &str, lines: &[String]| {
        let policy = policy(TEXT);
        let lines: Vec<_> = lines.iter().map(|line| format!("{asked} HTTPS {line}")).collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let permit = permit(&policy, SHOP, asked, RecordType::HTTPS);
        let cleared = inspect(permit, answer(upstream(&[]), &lines));
        let mut opened: Vec<_> = cleared.openings().iter().map(|opening| opening.element.to).collect();
        opened.dedup();
        (cleared.answer().records.len(), opened.len())
    };
    assert_eq!(of("web.example.com", &[format!("1 . ipv4hint={}", list(16))]), (1, 16));
    assert_eq!(of("web.example.com", &[format!("1 . ipv4hint={}", list(17))]), (1, 0));
    let two = [format!("1 . ipv4hint={}", list(10)), "2 . ipv4hint=192.88.98.100,192.88.98.101".to_owned()];
    assert_eq!(of("web.example.com", &two), (2, 12));
    let more: Vec<_> = (1..=4).map(|at| format!("{at} . ipv4hint=192.88.98.{at}0,{}", list(9))).collect();
    assert_eq!(of("web.example.com", &more), (4, 13));
    let past: Vec<_> = (10..30).map(|at| format!("{} . ipv4hint=192.88.98.{at}", at % 2)).collect();
    assert_eq!(of("web.example.com", &past[..10]), (10, 5), "aliases have none");
    assert_eq!(of("web.example.com", &past), (0, 0), "more than 16 records");
    assert_eq!(of("whole.example.com", &[format!("1 . ipv4hint={}", list(16))]), (1, 16));
    assert_eq!(of("whole.example.com", &[format!("1 . ipv4hint={}", list(17))]), (0, 0));
}

#[test]
fn a_hint_is_upheld_only_by_what_would_grant_it_again() {
    let before = policy(TEXT);
    let of = |asked: &str, line: &str| {
        let permit = permit(&before, SHOP, asked, RecordType::HTTPS);
        let cleared = inspect(permit, answer(upstream(&[]), &[&format!("{asked} HTTPS {line}")]));
        (std::sync::Arc::clone(cleared.basis()), cleared.openings()[0].element)
    };
    let own = of("web.example.com", "1 . ipv4hint=192.88.98.1");
    let elsewhere = of("web.example.com", "1 cdn.example.net. ipv4hint=192.88.98.1");
    let six = of("web.example.com", "1 . ipv6hint=2606:2800::1");
    assert_eq!(own.0.targets.len() + elsewhere.0.targets.len(), 1);
    // What is edited, and whether the hint of the own name, of the target, of the other family is upheld.
    let rows = [
        ("", "", [true, true, true]),
        ("\"filter\"", "\"pass\"", [true, true, true]),
        ("\"filter\"", "\"nodata\"", [false, false, false]),
        ("names    = [\"bad.example.net\"]", "names    = [\"cdn.example.net\"]", [true, false, true]),
        ("names    = [\"cdn.example.net\", ", "names    = [", [true, false, true]),
        ("names    = [\"bad.example.net\"]", "names    = [\"web.example.com\"]", [false, false, false]),
        ("https    = \"filter\"", "https    = \"filter\"\ntypes = [\"AAAA\"]", [false, false, true]),
        ("https    = \"filter\"", "https    = \"filter\"\ntypes = [\"A\"]", [true, true, false]),
        ("https    = \"filter\"", "https    = \"filter\"\nwithin = [\"192.88.97.0/24\"]", [false, false, false]),
        ("clients = [\"192.0.2.0/24\"", "filter_aaaa = true\nclients = [\"192.0.2.0/24\"", [true, true, false]),
    ];
    for (from, to, upheld) in rows {
        let after = policy(&TEXT.replacen(from, to, 1));
        let got = [&own, &elsewhere, &six].map(|(basis, element)| after.upholds(basis, element, NOW).is_some());
        assert_eq!(got, upheld, "{from} → {to}");
    }
    let (basis, element) = own;
    let other = Element { to: "10.1.0.1".parse().unwrap(), ..element };
    assert_eq!(before.upholds(&basis, &other, NOW), None, "an address that the guard forbids");
}
