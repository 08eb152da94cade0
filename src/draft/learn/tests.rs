use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::draft::testing::checked;
use crate::policy::Action;

const DAY: u64 = 86_400_000_000;
/// 2026-11-14.
const BEGIN: u64 = 1_794_614_400_000_000;

struct Log(Learner);

impl Log {
    fn new() -> Self {
        Self(Learner::new(LearnTerms::default()))
    }

    /// `DAY CLIENT NAME TYPE`, each once.
    fn passed(&mut self, rows: &[(u64, u32, &str, &str)]) {
        for (day, client, name, kind) in rows {
            self.one((*day, *client, name, kind), Fate::Passed, Some(true), &[]);
        }
    }

    /// The name asked for by two clients on three days.
    fn usual(&mut self, name: &str, kind: &str) {
        self.passed(&[(0, 1, name, kind), (1, 2, name, kind), (2, 1, name, kind)]);
    }

    fn one(
        &mut self,
        (day, client, name, kind): (u64, u32, &str, &str),
        fate: Fate,
        exists: Option<bool>,
        ports: &[Services],
    ) {
        self.0.see(&Seen {
            at: Wall(BEGIN + day * DAY),
            client: IpAddr::V4(Ipv4Addr::from_bits(0xc000_0200 + client)),
            segment: "office",
            name: Name::parse(name).unwrap().as_wire(),
            kind: kind.parse().unwrap(),
            fate,
            exists,
            ports,
        });
    }

    fn learned(self) -> Learned {
        let learned = self.0.finish("query.jsonl");
        checked(&learned.draft);
        learned
    }
}

#[test]
fn rules_are_grouped_by_what_was_registered_with_evidence_for_each_line() {
    let mut log = Log::new();
    log.usual("www.example.org", "A");
    log.usual("www.example.org", "HTTPS");
    log.usual("api.example.org", "AAAA");
    log.usual("_ldap._tcp.example.org", "SRV");
    log.usual("team.github.io", "A");
    for number in 0..12 {
        let name = format!("img-{number}.cdn.example.net");
        log.passed(&[(number / 3, 1, &name, "A"), (number / 3 + 1, 2, &name, "A")]);
    }
    let learned = log.learned();
    let expected = r#"# Learned from query.jsonl: 39 queries of 2 clients, 2026-11-14 … 2026-11-18.
# 5 lines allow 16 of the names that were asked for, and 100.0 % of those queries.
#
# Read every line before it is used: these clients asked for it, whatever made them ask.
# Ports are those that rules opened before; where no rule did, they are tcp/443, the default: no record says by
# which port a client connected.

# example.net: 24 queries.
[[rule]]
id       = "office-example.net"
action   = "allow"
segments = ["office"]
names    = [
    "img-*.cdn.example.net",  # 12 names, new ones on 4 days: img-0 img-1 img-2 …; 24 queries, 2 clients, 5 days, 2026-11-14 … 2026-11-18
]

# example.org: 9 queries.
[[rule]]
id       = "office-example.org"
action   = "allow"
segments = ["office"]
names    = [
    "api.example.org",  # 3 queries, 2 clients, 3 days, 2026-11-14 … 2026-11-16
    "www.example.org",  # 6 queries, 2 clients, 3 days, 2026-11-14 … 2026-11-16
]
https    = "filter"

# example.org: 3 queries.
[[rule]]
id       = "office-example.org-2"
action   = "allow"
segments = ["office"]
names    = [
    "_ldap._tcp.example.org",  # 3 queries, 2 clients, 3 days, 2026-11-14 … 2026-11-16
]
types    = ["SRV"]

# team.github.io: 3 queries.
[[rule]]
id       = "office-team.github.io"
action   = "allow"
segments = ["office"]
names    = [
    "team.github.io",  # 3 queries, 2 clients, 3 days, 2026-11-14 … 2026-11-16
]
"#;
    assert_eq!(learned.draft.to_string(), expected, "{}", learned.draft);
    assert_eq!((learned.queries, learned.covered, learned.lines, learned.names), (39, 39, 5, 16));
}

#[test]
fn what_is_not_proposed_is_told_with_why() {
    let mut log = Log::new();
    log.usual("www.example.org", "A");
    log.usual("denied.example.org", "A");
    log.one((1, 1, "denied.example.org", "A"), Fate::Denied, None, &[]);
    log.passed(&[
        (0, 1, "once.example.org", "A"),
        (0, 1, "evil.example.org", "ANY"),
        (1, 2, "evil.example.org", "ANY"),
    ]);
    log.passed(&[
        (2, 2, "evil.example.org", "ANY"),
        (0, 1, r"a\032b.example.org", "A"),
        (0, 1, "7.2.0.192.in-addr.arpa", "PTR"),
    ]);
    for _ in 0..3 {
        log.one((0, 1, "wwww.example.org", "A"), Fate::Passed, Some(false), &[]);
        log.one((1, 2, "www.example.org.corp.example", "A"), Fate::Passed, Some(false), &[]);
        log.one((1, 2, "printer", "A"), Fate::Passed, Some(false), &[]);
        log.passed(&[(0, 1, r"a\032b.example.org", "A"), (1, 2, "dns.google", "A"), (0, 1, "dns.google", "A")]);
        log.passed(&[(0, 1, "qwrtzpsdfgh.com", "A"), (1, 2, "qwrtzpsdfgh.com", "A")]);
    }
    log.passed(&[(3, 1, r"a\032b.example.org", "A")]);
    log.one((1, 1, "allowed.example.org", "A"), Fate::Allowed, Some(true), &[Services::Tcp(25, 25)]);
    log.one((1, 1, "refused.example.org", "A"), Fate::Refused, None, &[]);
    log.one((1, 1, "x.onion", "A"), Fate::Barred, None, &[]);
    log.one((1, 1, "slow.example.org", "A"), Fate::Other, None, &[]);
    let learned = log.learned();
    assert_eq!(learned.lines, 1);
    let text = learned.draft.to_string();
    let (_, tail) = text.split_once("]\n\n#").unwrap();
    let expected = r" Not proposed for the segment office:
# 1 names, 4 queries: a rule denies them
#   denied.example.org  4 queries, 2 clients, 3 days, 2026-11-14 … 2026-11-16
# 1 names, 1 queries: asked for by one client on one day, or twice at most
#   once.example.org  1 query, 1 client, 2026-11-14
# 1 names, 6 queries: the registered name looks random, and few clients or days know it
#   qwrtzpsdfgh.com  6 queries, 2 clients, 2 days, 2026-11-14 … 2026-11-15
# 1 names, 3 queries: no such name
#   wwww.example.org  3 queries, 1 client, 2026-11-14
# 1 names, 3 queries: no such name: another one with a search suffix behind it
#   www.example.org.corp.example  3 queries, 1 client, 2026-11-15
# 1 names, 3 queries: a single label: a search list, or a look-up of the host's own
#   printer  3 queries, 1 client, 2026-11-15
# 1 names, 5 queries: not a name of a host
#   a\032b.example.org  5 queries, 1 client, 2 days, 2026-11-14 … 2026-11-17
# 1 names, 6 queries: answered here, or on the bypass list: no rule opens them without saying more
#   dns.google  6 queries, 2 clients, 2 days, 2026-11-14 … 2026-11-15
# 1 names, 3 queries: asked for with unusual types alone
#   evil.example.org  3 queries, 2 clients, 3 days, 2026-11-14 … 2026-11-16
# 1 reverse look-ups: answered from what is open
# 1 queries that rules allow already
# 1 queries that were refused: nobody observed them
# 1 queries that a rule denies
# 1 queries for names that are not left to rules, or with answers that are withheld
# 1 queries that were answered here, or not at all
";
    assert_eq!(tail, expected, "{tail}");
}

/// Twelve names below `base`, new ones on four days, each asked for by two clients.
fn shards(log: &mut Log, label: impl Fn(u64) -> String, base: &str) {
    for number in 0..12 {
        let name = format!("{}.{base}", label(number));
        log.passed(&[(number / 3, 1, &name, "A"), (number / 3 + 1, 2, &name, "A"), (number / 3 + 1, 1, &name, "A")]);
    }
}

#[test]
fn a_wildcard_needs_machines_and_an_owner() {
    let wild = |fill: &dyn Fn(&mut Log)| {
        let mut log = Log::new();
        fill(&mut log);
        let learned = log.learned();
        let names = learned.draft.rules.into_iter().flat_map(|rule| rule.names).map(|entry| entry.name);
        names.filter(|name| name.contains('*')).collect::<Vec<_>>().join(" ")
    };
    let number = |n: u64| format!("s{n}");
    let bare = |n: u64| format!("{}", n * 7919);
    let word = |n: u64| "abcdefghijkl"[n as usize..].chars().take(1).chain("shop".chars()).collect::<String>();
    let long = |n: u64| format!("{:040x}", u128::from(n) << 90);
    assert_eq!(wild(&|log| shards(log, number, "example.net")), "s*.example.net");
    assert_eq!(wild(&|log| shards(log, bare, "cdn.example.net")), "*.cdn.example.net");
    assert_eq!(
        wild(&|log| shards(log, bare, "example.net")),
        "",
        "nothing of the label stays, and all of the owner is below"
    );
    let dashed = |n: u64| format!("{}-{n}", n * 7919);
    assert_eq!(wild(&|log| shards(log, dashed, "example.net")), "", "a dash is nothing that stays");
    assert_eq!(wild(&|log| shards(log, word, "example.net")), "", "people chose these");
    assert_eq!(wild(&|log| shards(log, long, "cdn.example.net")), "", "long enough to carry data");
    for suffix in ["github.io", "blob.core.windows.net", "co.uk", "corp", "eu-west-1.compute.amazonaws.com"] {
        assert_eq!(wild(&|log| shards(log, number, suffix)), "", "{suffix}");
    }
    let deep = |log: &mut Log, base: &str| {
        for half in ["a", "b"] {
            shards(log, |n| format!("{half}.pod-{n}"), base);
        }
    };
    assert_eq!(wild(&|log| deep(log, "pods.example.net")), "**.pods.example.net");
    assert_eq!(wild(&|log| deep(log, "example.net")), "", "all of the owner is below");
    assert_eq!(wild(&|log| deep(log, "core.windows.net")), "", "others have names somewhere below");
    let one_client = |log: &mut Log| {
        for number in 0..12 {
            let name = format!("s{number}.example.net");
            log.passed(&[
                (number / 3, 1, &name, "A"),
                (number / 3 + 1, 1, &name, "A"),
                (number / 3 + 1, 1, &name, "A"),
            ]);
        }
    };
    assert_eq!(wild(&one_client), "", "one client is no pattern");
    let once = |log: &mut Log| {
        for number in 0..40 {
            log.passed(&[(number / 8, 1 + (number % 3) as u32, &format!("s{number}.example.net"), "A")]);
        }
    };
    assert_eq!(wild(&once), "", "each asked for once: it may be what is sent");
    let old = |log: &mut Log| {
        for number in 0..12 {
            log.usual(&format!("s{number}.example.net"), "A");
        }
    };
    assert_eq!(wild(&old), "", "no new names: the names themselves will do");
}

#[test]
fn all_means_what_rules_allow_too_with_its_ports() {
    let mut log = Log(Learner::new(LearnTerms { all: true, ..LearnTerms::default() }));
    for day in 0..3 {
        log.one((day, 1, "mail.example.org", "A"), Fate::Allowed, Some(true), &[Services::Tcp(25, 25), Services::Icmp]);
        log.one((day, 1, "wide.example.org", "A"), Fate::Allowed, Some(true), &[Services::Tcp(1, 200)]);
    }
    let learned = log.learned();
    let ports: Vec<_> =
        learned.draft.rules.iter().map(|rule| (rule.names[0].name.as_str(), rule.ports.clone())).collect();
    assert_eq!(
        ports,
        [("wide.example.org", vec![]), ("mail.example.org", vec![Services::Tcp(25, 25), Services::Icmp])]
    );
}

#[test]
fn another_segment_and_one_that_did_not_observe_are_left_alone() {
    let mut log = Log(Learner::new(LearnTerms { segment: Some("attic".to_owned()), ..LearnTerms::default() }));
    log.usual("www.example.org", "A");
    assert_eq!(log.learned().queries, 0);
    let mut log = Log(Learner::new(LearnTerms { segment: Some("office".to_owned()), ..LearnTerms::default() }));
    log.one((0, 1, "www.example.org", "A"), Fate::Refused, None, &[]);
    let learned = log.learned();
    assert_eq!((learned.lines, learned.draft.notes.len()), (0, 1));
}

#[test]
fn what_is_kept_is_bounded() {
    let mut log = Log::new();
    for number in 0..6000 {
        let (name, other) = (format!("x{number}.example.net"), format!("www.{number}.example"));
        log.passed(&[(number / 1000, 1, &name, "A"), (number / 1000, 2, &name, "A"), (0, 1, &other, "A")]);
    }
    let segment = log.0.segments.get("office").unwrap();
    assert_eq!(segment.names.len(), MAX_BELOW + 6000);
    let learned = log.learned();
    assert_eq!(learned.lines, 0, "no wildcard, and each asked for on one day");
    let text = learned.draft.to_string();
    assert!(
        text.contains("# 3808 queries for more than 4096 names below example.net: data may be in them\n"),
        "{text}"
    );
    let mut log = Log::new();
    log.0.names = MAX_NAMES - 1;
    log.usual("a.example.org", "A");
    log.usual("b.example.org", "A");
    let learned = log.learned();
    assert_eq!(learned.lines, 1);
    assert_eq!(learned.draft.notes, ["3 queries were for names beyond the first 500000: they are not looked at"]);
}

const BASES: [&str; 12] = [
    "example.org",
    "cdn.example.org",
    "com",
    "github.io",
    "blob.core.windows.net",
    "corp",
    "x.local",
    "dns.google",
    "localhost",
    "wpad.example.org",
    r"a\034\\b.example.org",
    "1.0.0.127.in-addr.arpa",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn whatever_is_seen_the_rules_pass_check(
        queries in prop::collection::vec(
            (
                (0_u64..6, 0_u32..4, "([a-c]|s[0-9]{1,2}|[0-9a-f]{12}|\\*|_|x-[0-9]|)", "([a-b]|p[0-9]|)"),
                select(BASES.to_vec()),
                select(vec!["A", "AAAA", "HTTPS", "TXT", "ANY", "NULL", "SRV", "TYPE731"]),
                prop::option::weighted(0.9, prop::bool::weighted(0.9)),
            ),
            0..300,
        ),
        all in any::<bool>(),
    ) {
        let mut log = Log(Learner::new(LearnTerms { all, ..LearnTerms::default() }));
        let mut queries = queries;
        queries.extend(queries.clone());
        for ((day, client, first, second), base, kind, exists) in queries {
            let labels = [first.as_str(), &second, base].into_iter().filter(|part| !part.is_empty());
            let name = labels.collect::<Vec<_>>().join(".");
            let fate = if all && client == 0 { Fate::Allowed } else { Fate::Passed };
            log.one((day, client, &name, kind), fate, exists, &[Services::Tcp(443, 443)]);
        }
        let learned = log.learned();
        prop_assert!(learned.covered <= learned.queries);
        prop_assert_eq!(learned.draft.count(Action::Allow), learned.lines);
    }
}
