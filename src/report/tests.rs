use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::policy::{Settings, Source, compile};

const MINUTE: u64 = 60_000_000;

fn query<'a>(minute: u64, client: u8, qname: &'a str, fate: Fate, rule: &'a str) -> Asked<'a> {
    Asked {
        id: "1-1-1",
        at: Wall(minute * MINUTE),
        client: [192, 0, 2, client].into(),
        certificate: None,
        segment: "office",
        tag: "blue",
        qname,
        qtype: "A",
        fate,
        reason: if rule.is_empty() { "default" } else { "rule" },
        rule,
        addresses: &[],
        open_until: None,
    }
}

fn flow<'a>(minute: u64, class: Class, qname: &'a str, rule: &'a str, bytes: u64) -> Went<'a> {
    Went {
        at: Wall(minute * MINUTE),
        step: Step::Ended,
        client: [192, 0, 2, 1].into(),
        segment: "office",
        tag: "blue",
        address: [198, 51, 100, 7].into(),
        service: "tcp/443",
        passed: true,
        class: Some(class),
        detail: None,
        qname,
        rule,
        query: "1-1-1",
        names: &[],
        late: None,
        bytes: Some((bytes, 0)),
    }
}

fn finish(report: impl Report + 'static, limit: usize) -> Sheet {
    Box::new(report).finish(Some((Wall(MINUTE), Wall(100 * MINUTE))), limit)
}

/// The rows of a table, as text.
fn rows(sheet: &Sheet, key: &str) -> Vec<String> {
    let table = sheet.tables.iter().find(|table| table.key == key).unwrap();
    table.rows.iter().map(|row| row.iter().map(shown).collect::<Vec<_>>().join(" | ")).collect()
}

fn shown(cell: &Cell) -> String {
    match cell {
        Cell::Empty => "-".into(),
        Cell::Text(text) => text.clone(),
        Cell::Count(count) | Cell::Bytes(count) => count.to_string(),
        Cell::Share(part, whole) => percent(*part, *whole),
        Cell::Moment(at) => format!("{}m", at.0 / MINUTE),
        Cell::Span(span) => format!("{}s", span.as_secs()),
        Cell::List(all, more) => format!("{}{}", all.join(","), if *more { "+" } else { "" }),
    }
}

fn since(minute: u64) -> Period {
    Period { since: Some(Wall(minute * MINUTE)), until: None }
}

#[test]
fn top_counts_a_flow_for_what_it_may_have_been() {
    let mut top = Top::new(By::Name, since(10));
    let names = [("b.example", "one"), ("a.example", "one")];
    let ambiguous = Went { names: &names, detail: Some(Detail::SameRule), ..flow(20, Class::Ambiguous, "", "", 200) };
    for one in [
        flow(5, Class::Exact, "before.example", "one", 1_000_000),
        flow(20, Class::Exact, "a.example", "one", 700),
        ambiguous,
        flow(20, Class::Static, "", "time", 50),
        flow(20, Class::None, "denied.example", "", 50),
        Went { step: Step::Began, ..flow(20, Class::Exact, "a.example", "one", 9) },
        Went { step: Step::Refused, passed: false, ..flow(20, Class::None, "x.example", "", 9) },
    ] {
        top.went(&one);
    }
    let sheet = finish(top, 3);
    assert_eq!(
        rows(&sheet, "rows"),
        [
            "700 | 0 | 1 | 70.0 % | a.example",
            "200 | 0 | 1 | 20.0 % | a.example or b.example",
            "50 | 0 | 1 | 5.0 % | (none)"
        ]
    );
    let table = &sheet.tables[0];
    let [other, total] =
        [&table.other, &table.total].map(|row| row.as_ref().unwrap().iter().map(shown).collect::<Vec<_>>());
    assert_eq!((other.join(" | ").as_str(), table.unlisted), ("50 | 0 | 1 | 5.0 % | other (1 rows)", 1));
    assert_eq!(total.join(" | "), "1000 | 0 | 4 | 100.0 % | total");
    assert!(
        sheet.notes[1].starts_with("70.0 % of the bytes carry exactly one name; 95.0 % one name"),
        "{:?}",
        sheet.notes
    );
    assert!(sheet.notes[0].starts_with("from 1970-01-01T00:10:00"), "{:?}", sheet.notes);
}

#[test]
fn top_counts_queries_where_there_are_no_flows() {
    for (by, expected) in [
        (By::Name, ["2 | 1 | 66.6 % | a.example", "1 | 1 | 33.3 % | b.example"].as_slice()),
        (By::Rule, &["2 | 2 | 66.6 % | one", "1 | 0 | 33.3 % | (no rule)"]),
        (By::Segment, &["3 | 2 | 100.0 % | office"]),
        (By::Tag("team".into()), &["3 | 2 | 100.0 % | blue"]),
    ] {
        let mut top = Top::new(by, Period::default());
        top.asked(&query(1, 1, "a.example", Fate::Allowed, "one"));
        top.asked(&query(2, 1, "a.example", Fate::Denied, ""));
        top.asked(&query(3, 1, "b.example", Fate::Passed, "one"));
        let sheet = finish(top, 9);
        assert!(sheet.tables[0].title.contains("no flow records"), "{}", sheet.tables[0].title);
        assert_eq!(rows(&sheet, "rows"), expected);
    }
}

proptest! {
    #[test]
    fn top_adds_up(
        flows in prop::collection::vec((0_usize..6, 0_u8..30, 0_u64..10_000), 1..200),
        limit in 0_usize..12,
        by in prop::sample::select(vec![By::Name, By::Rule, By::Segment, By::Tag("x".into())]),
    ) {
        let mut top = Top::new(by, Period::default());
        for (class, name, bytes) in &flows {
            top.went(&flow(1, Class::ALL[*class], &format!("n{name}.example"), "one", *bytes));
        }
        let sheet = finish(top, limit);
        let table = &sheet.tables[0];
        let bytes = |row: &Vec<Cell>| if let [Cell::Bytes(out), _, Cell::Count(flows), ..] = row[..] { (out, flows) } else { panic!() };
        let sum = table.rows.iter().chain(&table.other).map(bytes).fold((0, 0), |sum, row| (sum.0 + row.0, sum.1 + row.1));
        prop_assert_eq!(sum, bytes(table.total.as_ref().unwrap()));
        prop_assert_eq!(sum, (flows.iter().map(|(.., bytes)| bytes).sum::<u64>(), flows.len() as u64));
        prop_assert_eq!(sum.0, sheet.tables[1].rows.iter().map(|row| bytes(row).0).sum::<u64>());
    }
}

#[test]
fn blocked_says_who_asked_for_what() {
    let mut blocked = Blocked::new(false, since(10));
    let mut by_domain = Blocked::new(true, since(10));
    for report in [&mut blocked, &mut by_domain] {
        report.asked(&query(5, 1, "before.example.com", Fate::Denied, ""));
        report.asked(&query(20, 1, "a.example.com", Fate::Denied, ""));
        report.asked(&query(30, 2, "a.example.com", Fate::Denied, ""));
        report.asked(&query(40, 2, "b.example.com", Fate::Denied, ""));
        report.asked(&query(40, 2, "b.example.com", Fate::Denied, "never"));
        report.asked(&query(40, 2, "b.example.com", Fate::Passed, ""));
        report.asked(&query(40, 2, "b.example.com", Fate::Allowed, "one"));
        let refused = flow(50, Class::None, "a.example.com", "", 0);
        report.went(&Went { step: Step::Refused, passed: false, detail: Some(Detail::DeniedName), ..refused });
        report.went(&refused);
    }
    let sheet = finish(blocked, 9);
    assert_eq!(
        rows(&sheet, "names"),
        [
            "2 | 20m | 30m | a.example.com | default | - | 192.0.2.1,192.0.2.2 | office",
            "1 | 40m | 40m | b.example.com | default | - | 192.0.2.2 | office",
            "1 | 40m | 40m | b.example.com | rule | never | 192.0.2.2 | office",
        ]
    );
    assert_eq!(
        rows(&sheet, "destinations"),
        ["1 | 50m | 50m | 198.51.100.7 | tcp/443 | a.example.com | denied_name | 192.0.2.1 | office"]
    );
    assert!(sheet.notes.iter().any(|note| note.starts_with("1 queries more passed")), "{:?}", sheet.notes);
    assert_eq!(
        rows(&finish(by_domain, 9), "names"),
        [
            "3 | 20m | 40m | example.com | default | - | 192.0.2.1,192.0.2.2 | office",
            "1 | 40m | 40m | example.com | rule | never | 192.0.2.2 | office",
        ]
    );
}

#[test]
fn new_is_what_the_segment_never_asked_for() {
    let mut fresh = Fresh::new(since(10));
    let other = Asked { segment: "lab", ..query(5, 1, "b.example", Fate::Allowed, "one") };
    for one in [
        query(5, 1, "a.example", Fate::Allowed, "one"),
        other,
        query(20, 1, "a.example", Fate::Allowed, "one"),
        query(22, 2, "b.example", Fate::Allowed, "two"),
        query(21, 1, "b.example", Fate::Passed, "one"),
        query(22, 1, "denied.example", Fate::Denied, ""),
        query(23, 1, "c.example", Fate::Allowed, "one"),
        // Of before, and behind in the file.
        query(9, 1, "c.example", Fate::Allowed, "one"),
    ] {
        fresh.asked(&one);
    }
    let sheet = finish(fresh, 9);
    assert_eq!(rows(&sheet, "rows"), ["21m | 2 | office | b.example | one | 192.0.2.2,192.0.2.1 | 1-1-1"]);
    let mut all = Fresh::new(Period::default());
    all.asked(&query(5, 1, "a.example", Fate::Allowed, "one"));
    let sheet = finish(all, 9);
    assert!(sheet.notes.iter().any(|note| note.ends_with("every name is new to it")), "{:?}", sheet.notes);
}

#[test]
fn unused_is_what_nobody_asked_for() {
    let text = r#"
[[segment]]
name    = "office"
clients = ["192.0.2.0/24"]
[[rule]]
id       = "used"
action   = "allow"
segments = ["office"]
names    = ["a.example.com", "*.example.com", "never.example.net"]
[[rule]]
id       = "adds"
action   = "allow"
segments = ["office"]
names    = ["a.example.com"]
ports    = ["tcp/8443"]
[[rule]]
id       = "once"
action   = "allow"
segments = ["office"]
names    = ["once.example.org", "twice.example.org"]
owner    = "web"
ticket   = "NET-7"
[[rule]]
id       = "static"
action   = "allow"
segments = ["office"]
networks = ["192.88.98.0/24"]
ports    = ["tcp/22"]
[[rule]]
id       = "never"
action   = "deny"
segments = ["office"]
names    = ["never.example.com"]
"#;
    let file = Source { file: "p.toml".into(), text: text.into() };
    let policy = Arc::new(compile([file], &Settings::default()).unwrap());
    let made = |flows: bool| {
        let mut unused = Unused::new(Arc::clone(&policy), since(10));
        unused.asked(&query(5, 1, "once.example.org", Fate::Allowed, "once"));
        unused.asked(&query(20, 1, "a.example.com", Fate::Allowed, "used"));
        unused.asked(&query(20, 1, "gone.example.com", Fate::Allowed, "gone"));
        unused.asked(&query(20, 1, "never.example.com", Fate::Denied, "never"));
        unused.added(Wall(15 * MINUTE), &["once", "gone"]);
        if flows {
            unused.went(&flow(20, Class::Exact, "a.example.com", "used", 1));
        }
        finish(unused, 9)
    };
    let sheet = made(false);
    assert_eq!(rows(&sheet, "rules"), ["once | 2 names | 5m | 15m | web | NET-7 | p.toml:16:1"]);
    assert_eq!(rows(&sheet, "names"), ["used | never.example.net | - | - | - | - | p.toml:5:1"]);
    let has =
        |sheet: &Sheet, text: &str| assert!(sheet.notes.iter().any(|note| note.contains(text)), "{:?}", sheet.notes);
    has(&sheet, "1 rules are younger than that time");
    has(&sheet, "1 rules for networks are not judged");
    has(&sheet, "1 queries were allowed by rules that the policy does not have");
    let sheet = made(true);
    assert_eq!(rows(&sheet, "rules").len(), 2, "{:?}", rows(&sheet, "rules"));
}

#[test]
fn exposure_is_what_else_is_there() {
    let mut exposure = Exposure::new(Period::default());
    let [shared, alone] = [[198, 51, 100, 7], [198, 51, 100, 8]].map(IpAddr::from);
    let told = [shared];
    exposure.asked(&Asked { addresses: &told, ..query(1, 1, "other.example", Fate::Passed, "") });
    exposure.asked(&Asked { addresses: &told, ..query(1, 1, "a.example", Fate::Allowed, "one") });
    for (rule, qname, address) in
        [("one", "a.example", shared), ("one", "a.example", alone), ("two", "b.example", shared)]
    {
        exposure.opened(&Opened { at: Wall(MINUTE), segment: "office", rule, qname, address });
    }
    exposure.went(&flow(2, Class::Exact, "a.example", "one", 500));
    exposure.went(&Went { address: alone, ..flow(2, Class::Exact, "a.example", "one", 100) });
    let sheet = finish(exposure, 9);
    assert_eq!(
        rows(&sheet, "rules"),
        ["500 | 600 | 1 | 2 | 2 | one | b.example,other.example", "0 | 0 | 1 | 1 | 2 | two | a.example,other.example"]
    );
    assert_eq!(
        rows(&sheet, "addresses"),
        [
            "500 | 1 | 2 | 198.51.100.7 | one | a.example | b.example,other.example",
            "0 | 0 | 2 | 198.51.100.7 | two | b.example | a.example,other.example"
        ]
    );
}

#[test]
fn late_says_what_hold_would_cover() {
    let mut late = Late::new(Period::default());
    late.asked(&Asked { open_until: Some(Wall(6 * MINUTE)), ..query(1, 1, "a.example", Fate::Allowed, "one") });
    for seconds in 1..=100 {
        let flow = flow(7, Class::Stale, "a.example", "one", 0);
        let refused = Went { step: Step::Refused, passed: false, late: Some(Duration::from_secs(seconds)), ..flow };
        late.went(&refused);
    }
    late.went(&Went {
        query: "9-9-9",
        late: Some(Duration::from_secs(1)),
        ..flow(7, Class::Stale, "a.example", "two", 0)
    });
    late.went(&flow(7, Class::Exact, "a.example", "one", 0));
    let sheet = finish(late, 9);
    assert_eq!(
        rows(&sheet, "rules"),
        [
            "100 | 100 | 50s | 99s | 100s | 400s | one | office | a.example | 192.0.2.1",
            "1 | 0 | 1s | 1s | 1s | - | two | office | a.example | 192.0.2.1"
        ]
    );
    assert!(sheet.notes.iter().any(|note| note.starts_with("of 1 late flows the log does not have the look-up")));
}

#[test]
fn bypass_is_flows_without_a_look_up() {
    let mut bypass = Bypass::new(Period::default());
    let one = flow(7, Class::None, "", "", 10);
    bypass.went(&Went { step: Step::Began, bytes: None, ..one });
    bypass.went(&one);
    bypass.went(&Went { step: Step::Refused, passed: false, service: "udp/53", bytes: None, ..one });
    bypass.went(&flow(8, Class::Exact, "a.example", "one", 1));
    bypass.went(&flow(8, Class::Unknown, "", "", 1));
    let sheet = finish(bypass, 9);
    assert_eq!(
        rows(&sheet, "rows"),
        [
            "1 | 0 | 10 | 0 | 7m | 7m | 192.0.2.1 | office | 198.51.100.7 | tcp/443 | - | hard-coded, or resolved over HTTPS elsewhere",
            "0 | 1 | 0 | 0 | 7m | 7m | 192.0.2.1 | office | 198.51.100.7 | udp/53 | - | asks another resolver",
        ]
    );
    assert!(sheet.notes.iter().any(|note| note.starts_with("1 records more")), "{:?}", sheet.notes);
}
