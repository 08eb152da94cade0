//! What one query costs in instructions, step by step and as a whole. `bench/instructions` runs this under callgrind,
//! which counts what the function [`counted`] executes; a count does not depend on how fast or how busy a machine is.
//!
//! Alone it lists its scenarios; `instructions NAME TURNS` sets one up and takes so many turns of it.

mod stage;

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use outgate::audit::{
    CacheUse, Encoder, Event, Outcome, QueryEvent, RecordId, Rendered, Ruled, Stated, Statement, Transport,
};
use outgate::cache::{Cover, Covered, Reply, Until, Who};
use outgate::name::Name;
use outgate::net::{SegmentId, Services};
use outgate::policy::{GrantScope, Reason, Settings, Source, Verdict, compile, decide};
use outgate::record::{Question, Rcode, Record, RecordType};
use outgate::time::{Tick, Ttl, Wall};
use outgate::wire::{Canonical, Template, encode_query, parse};
use stage::{Asked, Size, Stage};

/// What is counted.
struct Scenario {
    name: &'static str,
    set: fn() -> Turn,
    /// Its set-up takes long under callgrind.
    slow: bool,
}

type Turn = Box<dyn FnMut()>;

const SCENARIOS: &[Scenario] = &[
    // The steps.
    Scenario { name: "parse", set: parses, slow: false },
    Scenario { name: "decide_1k", set: || decides(1_000), slow: false },
    Scenario { name: "decide_1m", set: || decides(1_000_000), slow: true },
    Scenario { name: "cover", set: covers, slow: false },
    Scenario { name: "write", set: writes, slow: false },
    Scenario { name: "record", set: records, slow: false },
    // From the packet to the reply that may leave: its record has been written to a file.
    Scenario { name: "hot", set: || fast(GrantScope::Client, Stage::cached), slow: false },
    Scenario { name: "hot_segment", set: || fast(GrantScope::Segment, Stage::cached), slow: false },
    Scenario { name: "denied", set: || fast(GrantScope::Client, Stage::denied), slow: false },
    Scenario { name: "malformed", set: || fast(GrantScope::Client, Stage::malformed), slow: false },
];

/// Queries of a turn, each for another name.
const QUERIES: usize = 1_000;

/// Nothing but this is counted: `bench/instructions` knows its name.
#[inline(never)]
fn counted(turn: &mut dyn FnMut(), turns: usize) {
    for _ in 0..turns {
        turn();
    }
}

fn main() {
    // `cargo bench` adds an option of its own.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    if let [name, turns] = *words
        && let Some(scenario) = SCENARIOS.iter().find(|scenario| scenario.name == name)
        && let Ok(turns) = turns.parse()
    {
        let mut turn = (scenario.set)();
        // Buffers grow and tables are touched in the first.
        turn();
        counted(&mut turn, turns);
        return;
    }
    for scenario in SCENARIOS {
        println!("{} {QUERIES} {}", scenario.name, if scenario.slow { "slow" } else { "quick" });
    }
}

/// One packet after another is read.
fn parses() -> Turn {
    let packets: Vec<Vec<u8>> = (0..QUERIES).map(|n| query(&stage::allowed(n))).collect();
    Box::new(move || {
        for packet in &packets {
            assert!(parse(black_box(packet), &mut Canonical::new()).is_ok());
        }
    })
}

/// A thousand names, spread over a policy of `names`, are allowed.
#[expect(clippy::unwrap_used, reason = "a benchmark's own data")]
fn decides(names: usize) -> Turn {
    let source = Source { file: "policy.toml".into(), text: stage::policy(names, GrantScope::Client) };
    let policy = Arc::new(compile([source], &Settings::default()).unwrap());
    let asker = policy.asker(stage::address(1)).unwrap();
    let asked: Vec<Name> = (0..QUERIES).map(|n| Name::parse(&stage::allowed(n * (names / QUERIES))).unwrap()).collect();
    Box::new(move || {
        for name in &asked {
            let verdict = decide(&policy, asker, black_box(name.as_wire()), RecordType::A, Wall(0));
            assert!(matches!(verdict, Verdict::Permit(_)));
        }
    })
}

/// A reply of type A.
struct Named(Name);

impl Reply for Named {
    fn answers(&self, name: &[u8], kind: RecordType) -> bool {
        kind == RecordType::A && self.0.as_wire() == name
    }

    fn name(&self) -> &[u8] {
        self.0.as_wire()
    }
}

/// A thousand covered replies are found.
#[expect(clippy::unwrap_used, reason = "a benchmark's own data")]
fn covers() -> Turn {
    let cover = Cover::new(64 << 20);
    let who = Who { segment: SegmentId(7), client: Some(stage::address(1)) };
    let asked: Vec<Name> = (0..QUERIES).map(|n| Name::parse(&stage::allowed(n)).unwrap()).collect();
    for name in &asked {
        let reply = cover.hold(Named(name.clone()), 500);
        let covered = Covered { epoch: 1, until: Until::new(Tick(300_000_000), None), reply };
        cover.put(who, &cover.asked(name.as_wire(), RecordType::A), covered, 0);
    }
    Box::new(move || {
        for name in &asked {
            let asked = cover.asked(black_box(name.as_wire()), RecordType::A);
            assert!(cover.get(who, &asked, 1, Tick(0)).is_some());
        }
    })
}

/// Replies with two addresses each are written to one query after another.
#[expect(clippy::unwrap_used, reason = "a benchmark's own data")]
fn writes() -> Turn {
    let prepared: Vec<(Vec<u8>, Template)> = (0..QUERIES)
        .map(|n| {
            let packet = query(&stage::allowed(n));
            let question = parse(&packet, &mut Canonical::new()).unwrap().question();
            let template = Template::new(&question, Rcode::NOERROR, false, &addresses(&question.name), None, None);
            (packet, template)
        })
        .collect();
    let mut out = Vec::with_capacity(2048);
    Box::new(move || {
        for (packet, template) in &prepared {
            out.clear();
            let mut name = Canonical::new();
            let query = parse(black_box(packet), &mut name).unwrap();
            template.write(&mut out, &query.echo, Ttl::from_wire(60), 1232);
            black_box(&out);
        }
    })
}

/// Records of cached answers with two addresses are written into the buffer.
#[expect(clippy::unwrap_used, reason = "a benchmark's own data")]
fn records() -> Turn {
    let rendered = |n: usize| {
        let name = Name::parse(&stage::allowed(n)).unwrap();
        Rendered::new(&Statement {
            qname: Some(name.as_wire()),
            qtype: Some(RecordType::A),
            outcome: Outcome::Allow,
            enforced: true,
            reason: Reason::Rule,
            rule: Some(Ruled { id: "service-100", owner: None, ticket: None }),
            policy: 0x9c1f_5be2_7a40_d3e1,
            rcode: Some(Rcode::NOERROR),
            answers: &addresses(&name),
            services: &[Services::Tcp(443, 443)],
            ede: None,
            why: None,
            upstream: Some("default"),
            origin: Some(RecordId { boot: 7, shard: 1, sequence: 1 }),
        })
    };
    let rendered: Vec<Rendered> = (0..QUERIES).map(rendered).collect();
    let mut encoder = Encoder::new(7, 1, "og-eu1-a");
    let mut out = Vec::with_capacity(1 << 20);
    Box::new(move || {
        out.clear();
        for (rendered, n) in rendered.iter().zip(1_u64..) {
            let event = QueryEvent {
                at: Wall(1_795_233_184_117_302 + n),
                client: stage::address(1),
                port: 40_112,
                transport: Transport::Udp,
                asked_by: None,
                certificate: None,
                cookie: None,
                labels: "",
                segment: Some(("shop", r#"{"service":"shop","stage":"bench"}"#)),
                qid: Some(4711),
                stated: Stated::Rendered(rendered),
                flags: 0x8180,
                bytes: 90,
                cache: Some(CacheUse::Hit),
                ttl: 287,
                until: Some(Wall(1_795_233_584_117_302)),
                shadow: None,
                latency_us: 17,
            };
            encoder.encode(&mut out, RecordId { boot: 7, shard: 1, sequence: 100_000 + n }, &Event::Query(event));
        }
        black_box(&out);
    })
}

/// A gate's fast path, in batches, each recorded and released.
fn fast(scope: GrantScope, queries: fn(&Stage) -> Vec<Asked>) -> Turn {
    let mut stage = Stage::new(Size { allowed: 10_000, cached: QUERIES, clients: 1, scope });
    let queries = queries(&stage);
    assert_eq!(queries.len(), QUERIES);
    Box::new(move || {
        black_box(stage.run(black_box(&queries)));
    })
}

#[expect(clippy::unwrap_used, reason = "a benchmark's own data")]
fn query(name: &str) -> Vec<u8> {
    let mut packet = Vec::new();
    let question = Question { name: Name::parse(name).unwrap(), kind: RecordType::A };
    encode_query(&mut packet, 4711, &question, true, || false);
    packet
}

fn addresses(name: &Name) -> Vec<Record> {
    let address = |last| IpAddr::V4(Ipv4Addr::new(198, 51, 100, last));
    [7, 131].map(|last| Record::of_address(name.clone(), Ttl::from_wire(300), address(last))).into()
}
