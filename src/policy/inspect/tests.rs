//! What is told, what is opened and what is withheld, case by case.

use super::inspect;
use crate::net::{Element, Scope, Service};
use crate::policy::Reason;
use crate::policy::testing::{NOW, address, answer, permit, policy, summary, upstream, zone};
use crate::record::{Origin, RecordType};

const TEXT: &str = r#"
[[segment]]
name    = "shop"
clients = ["192.0.2.0/24", "2001:db8:1::/48"]
[[segment]]
name    = "four"
clients = ["198.51.100.0/24"]
[[segment]]
name    = "nat"
clients = ["203.0.113.0/24"]
connects_from = ["192.0.2.99"]
[[segment]]
name    = "lab"
clients = ["192.0.2.64/26"]
mode    = "observe"
until   = 2030-01-01T00:00:00Z

[[rule]]
id       = "web"
action   = "allow"
segments = ["*"]
names    = ["**.example.com"]
types    = ["A", "AAAA", "TXT"]
[[rule]]
id       = "db"
action   = "allow"
segments = ["*"]
names    = ["db.example.com"]
ports    = ["tcp/5432-5433", "tcp/443"]
within   = ["10.20.0.0/16", "192.88.98.0/24"]
private  = ["10.0.0.0/8"]
hold     = "10m"
[[rule]]
id       = "all"
action   = "allow"
segments = ["*"]
names    = ["any.example.com"]
ports    = ["any"]
[[rule]]
id       = "pinned"
action   = "allow"
segments = ["*"]
names    = ["pinned.example.org"]
cname    = ["**.cdn.example.net"]
[[rule]]
id       = "narrow"
action   = "allow"
segments = ["*"]
names    = ["narrow.example.org"]
within   = ["192.88.98.0/25"]
[[rule]]
id       = "inspected"
action   = "allow"
segments = ["*"]
names    = ["inspected.example.org"]
cname    = "inspect"
[[rule]]
id       = "no-ads"
action   = "deny"
segments = ["*"]
names    = ["ads.example.net"]
"#;

type Row<'a> = (&'a str, &'a str, RecordType, Origin, &'a [&'a str], &'a [&'a str], &'a [&'a str], &'a str);

fn check(rows: &[Row<'_>]) {
    let policy = policy(TEXT);
    for (client, asked, kind, origin, given, told, opened, withheld) in rows {
        let permit = permit(&policy, client, asked, *kind);
        let cleared = inspect(permit, answer(origin.clone(), given));
        let (got_told, got_opened, got_withheld) = summary(&cleared);
        assert_eq!(got_told, *told, "told: {client} {asked} {given:?}");
        assert_eq!(got_opened, *opened, "opened: {client} {asked} {given:?}");
        assert_eq!(got_withheld.unwrap_or_default(), *withheld, "withheld: {client} {asked} {given:?}");
        for opening in cleared.openings() {
            assert!(policy.upholds(cleared.basis(), &opening.element, NOW).is_some(), "{opening:?}");
        }
    }
}

#[test]
fn opens_what_it_tells_for_who_asked() {
    let (a, aaaa) = (RecordType::A, RecordType::AAAA);
    let web = ["web.example.com 192.88.98.1"];
    let six = ["web.example.com 2606:2800::1"];
    check(&[
        ("192.0.2.1", "web.example.com", a, upstream(&[]), &web, &web, &["192.0.2.1 > 192.88.98.1 tcp/443"], ""),
        ("2001:db8:1::1", "web.example.com", a, upstream(&[]), &web, &web, &["segment > 192.88.98.1 tcp/443"], ""),
        ("192.0.2.1", "web.example.com", aaaa, upstream(&[]), &six, &six, &["segment > 2606:2800::1 tcp/443"], ""),
        ("203.0.113.1", "web.example.com", a, upstream(&[]), &web, &web, &["segment > 192.88.98.1 tcp/443"], ""),
        (
            "198.51.100.1",
            "web.example.com",
            aaaa,
            upstream(&[]),
            &six,
            &[],
            &[],
            "family: segment four has no IPv6 source",
        ),
        (
            "192.0.2.1",
            "any.example.com",
            a,
            upstream(&[]),
            &["any.example.com 192.88.98.1"],
            &["any.example.com 192.88.98.1"],
            &["192.0.2.1 > 192.88.98.1 any"],
            "",
        ),
        (
            "192.0.2.1",
            "db.example.com",
            a,
            upstream(&[]),
            &["db.example.com 192.88.98.1", "db.example.com 192.88.98.1"],
            &["db.example.com 192.88.98.1"],
            &[
                "192.0.2.1 > 192.88.98.1 tcp/443 600s",
                "192.0.2.1 > 192.88.98.1 tcp/5432 600s",
                "192.0.2.1 > 192.88.98.1 tcp/5433 600s",
            ],
            "",
        ),
        (
            "192.0.2.1",
            "web.example.com",
            RecordType::TXT,
            upstream(&[]),
            &["web.example.com TXT", "other.example.com TXT", "web.example.com 192.88.98.1"],
            &["web.example.com \\# 2 0178"],
            &[],
            "",
        ),
        ("192.0.2.1", "web.example.com", a, upstream(&[]), &[], &[], &[], ""),
    ]);
}

#[test]
fn one_guarded_address_condemns_its_set_unless_somebody_vouches() {
    let a = RecordType::A;
    let mixed = ["web.example.com 192.88.98.1", "web.example.com 10.0.0.1"];
    let db = ["db.example.com 10.20.0.5", "db.example.com 10.30.0.5"];
    let opened = ["192.0.2.1 > 10.20.0.5 tcp/443 600s", "192.0.2.1 > 10.20.0.5 tcp/5432 600s"];
    let db_opened = [opened[0], opened[1], "192.0.2.1 > 10.20.0.5 tcp/5433 600s"];
    let both = ["192.0.2.1 > 192.88.98.1 tcp/443", "192.0.2.1 > 10.0.0.1 tcp/443"];
    let private = "address: 10.0.0.1 is private (10.0.0.0/8, RFC 1918)";
    let loopback = "address: 127.0.0.1 is loopback (127.0.0.0/8, RFC 1122)";
    let local = ["web.example.com 127.0.0.1"];
    check(&[
        ("192.0.2.1", "web.example.com", a, upstream(&[]), &mixed, &[], &[], private),
        ("192.0.2.1", "web.example.com", a, upstream(&["10.0.0.0/24"]), &mixed, &mixed, &both, ""),
        ("192.0.2.1", "web.example.com", a, zone(), &mixed, &mixed, &both, ""),
        ("192.0.2.1", "web.example.com", a, zone(), &local, &[], &[], loopback),
        ("192.0.2.65", "web.example.com", a, upstream(&[]), &mixed, &mixed, &[], &format!("not enforced: {private}")),
        // `private` of the rule db lifts nothing for web: what is outside `within` of db is trimmed.
        ("192.0.2.1", "db.example.com", a, upstream(&[]), &db, &db[..1], &db_opened, ""),
        (
            "192.0.2.1",
            "narrow.example.org",
            a,
            upstream(&[]),
            &["narrow.example.org 192.88.98.200"],
            &[],
            &[],
            "address: 192.88.98.200 is not within what rule narrow names",
        ),
    ]);
}

#[test]
fn judges_every_name_of_the_chain() {
    let a = RecordType::A;
    let to_ads = ["web.example.com CNAME x.example.net", "x.example.net CNAME ads.example.net"];
    let ads = "cname: the answer leads to ads.example.net, which rule no-ads denies";
    let pinned = ["pinned.example.org CNAME p.cdn.example.net", "p.cdn.example.net 192.88.98.1"];
    let strayed = ["pinned.example.org CNAME p.example.net", "p.example.net 192.88.98.1"];
    let listed = ["inspected.example.org CNAME web.example.com", "web.example.com 192.88.98.1"];
    let unlisted = ["inspected.example.org CNAME web.example.net", "web.example.net 192.88.98.1"];
    let open = ["192.0.2.1 > 192.88.98.1 tcp/443"];
    let shown = |lines: [&str; 2]| lines.map(|line| line.replace("CNAME ", ""));
    let (pinned_told, listed_told) = (shown(pinned), shown(listed));
    let pinned_told: Vec<&str> = pinned_told.iter().map(String::as_str).collect();
    let listed_told: Vec<&str> = listed_told.iter().map(String::as_str).collect();
    check(&[
        ("192.0.2.1", "web.example.com", a, upstream(&[]), &to_ads, &[], &[], ads),
        ("192.0.2.1", "web.example.com", RecordType::TXT, upstream(&[]), &to_ads, &[], &[], ads),
        ("192.0.2.1", "pinned.example.org", a, upstream(&[]), &pinned, &pinned_told, &open, ""),
        (
            "192.0.2.1",
            "pinned.example.org",
            a,
            upstream(&[]),
            &strayed,
            &[],
            &[],
            "cname: the answer leads to p.example.net, which rule pinned does not trust",
        ),
        ("192.0.2.1", "inspected.example.org", a, upstream(&[]), &listed, &listed_told, &open, ""),
        (
            "192.0.2.1",
            "inspected.example.org",
            a,
            upstream(&[]),
            &unlisted,
            &[],
            &[],
            "cname: the answer leads to web.example.net, which rule inspected does not trust",
        ),
        // Records that the chain does not lead to are dropped.
        (
            "192.0.2.1",
            "web.example.com",
            a,
            upstream(&[]),
            &["web.example.com 192.88.98.1", "victim.example.com 192.88.98.2", "web.example.com 2606:2800::1"],
            &["web.example.com 192.88.98.1"],
            &open,
            "",
        ),
    ]);
}

#[test]
fn bounds_chains_and_sets() {
    let policy = policy(TEXT);
    let of = |lines: &[String]| {
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let permit = permit(&policy, "192.0.2.1", "c0.example.com", RecordType::A);
        inspect(permit, answer(upstream(&[]), &lines))
    };
    let chain = |length: usize| {
        let links = (0..length).map(|at| format!("c{at}.example.com CNAME c{}.example.com", at + 1));
        links.chain([format!("c{length}.example.com 192.88.98.1")]).collect::<Vec<_>>()
    };
    assert_eq!(of(&chain(8)).openings().len(), 1);
    assert_eq!(of(&chain(8)).basis().chain.len(), 8);
    let long = of(&chain(9));
    assert!(long.openings().is_empty() && long.answer().records.is_empty());
    assert_eq!(long.withheld().map(|withheld| withheld.reason), Some(Reason::Cname));

    let many: Vec<_> = (1..=40).map(|at| format!("c0.example.com 192.88.98.{at}")).collect();
    let cleared = of(&many);
    assert_eq!((cleared.answer().records.len(), cleared.openings().len()), (16, 16));
    // Past the cap as well, one bad address condemns them all.
    let poisoned: Vec<_> = many.into_iter().chain(["c0.example.com 10.0.0.1".to_owned()]).collect();
    assert!(of(&poisoned).answer().records.is_empty());
}

#[test]
fn what_an_observing_segment_refuses_is_told_and_not_opened() {
    let policy = policy(TEXT);
    let permit = permit(&policy, "192.0.2.65", "example.net", RecordType::A);
    let cleared = inspect(permit, answer(upstream(&[]), &["example.net 192.88.98.1"]));
    assert_eq!(cleared.answer().records.len(), 1);
    assert!(cleared.openings().is_empty() && cleared.withheld().is_none());
}

#[test]
fn a_grant_is_upheld_only_by_what_would_make_it_again() {
    let before = policy(TEXT);
    let permit = permit(&before, "192.0.2.1", "web.example.com", RecordType::A);
    let lines = ["web.example.com CNAME x.example.net", "x.example.net 10.0.0.1"];
    let cleared = inspect(permit, answer(upstream(&["10.0.0.0/24"]), &lines));
    let element = cleared.openings()[0].element;
    let edits = [
        ("", "", true),
        ("\"tcp/5432-5433\"", "\"tcp/1\"", true),
        ("id       = \"web\"", "id       = \"internet\"", true),
        ("names    = [\"**.example.com\"]", "names    = [\"**.example.org\"]", false),
        ("\"A\", \"AAAA\", \"TXT\"", "\"AAAA\"", false),
        ("\"ads.example.net\"", "\"x.example.net\"", false),
        ("\"ads.example.net\"", "\"web.example.com\"", false),
        ("types    = [\"A\"", "cname = \"inspect\"\ntypes    = [\"A\"", false),
        ("types    = [\"A\"", "within = [\"10.1.0.0/16\"]\ntypes    = [\"A\"", false),
        ("types    = [\"A\"", "ports = [\"tcp/80\"]\ntypes    = [\"A\"", false),
        ("types    = [\"A\"", "ports = [\"any\"]\ntypes    = [\"A\"", true),
        ("clients = [\"192.0.2.0/24\"", "scope = \"segment\"\nclients = [\"192.0.2.0/24\"", false),
        ("192.0.2.0/24", "192.0.2.128/25", false),
    ];
    for (from, to, upheld) in edits {
        let after = policy(&TEXT.replace(from, to));
        assert_eq!(after.upholds(cleared.basis(), &element, NOW).is_some(), upheld, "{from} → {to}");
    }
    // Neither another service, nor another address that the guard forbids, nor another client.
    let others = [
        Element { service: Service::Tcp(80), ..element },
        Element { to: address("10.1.0.1"), ..element },
        Element { from: Scope::Client(address("192.0.2.2")), ..element },
    ];
    for other in others {
        assert_eq!(before.upholds(cleared.basis(), &other, NOW), None, "{other:?}");
    }
}
