//! A week is learned, the next one is decided: what the rules allow of it, and what they should not.
//!
//! The weeks are made up: forty clients of an office use three hundred services as Zipf has it; some services make new
//! names every day; and there is what every log holds: typing mistakes, search suffixes, pages seen once, random names,
//! tenants of hosting suffixes, and names that carry data.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};

use super::{Fate, LearnTerms, Learned, Learner, Seen};
use crate::draft::testing::{allowed, heading};
use crate::name::Name;
use crate::policy::Action;
use crate::record::RecordType;
use crate::time::Wall;

const CLIENTS: u64 = 40;
const SERVICES: u64 = 300;
const DAY: u64 = 86_400_000_000;

/// xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn text(&mut self, letters: &[u8], length: usize) -> String {
        (0..length).map(|_| char::from(letters[self.below(letters.len() as u64) as usize])).collect()
    }

    /// A rank by Zipf's law, about: the logarithm of it is uniform.
    fn rank(&mut self, count: u64) -> u64 {
        let top = (count as f64 + 1.0).ln() * self.below(10_000) as f64 / 10_000.0;
        (top.exp() as u64 - 1).min(count - 1)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Kind {
    /// What a service needs, by a name of its own.
    Service,
    /// What a service needs, by a name that is new every day.
    Shard,
    /// The same by a name directly below a public suffix, one for each service.
    Tenant,
    /// The same, new every day: nobody can tell those names from others'.
    Unknowable,
    Denied,
    /// Nobody needs it again.
    Junk,
}

struct Query {
    at: u64,
    client: u64,
    name: String,
    record: RecordType,
    kind: Kind,
    exists: bool,
}

const HEX: &[u8] = b"0123456789abcdef";
const BASE32: &[u8] = b"abcdefghijklmnopqrstuvwxyz234567";

/// What one visit of a service asks for.
fn visit(random: &mut Random, day: u64) -> Vec<(String, Kind, RecordType)> {
    let service = random.rank(SERVICES);
    let owner = format!("service{service}.example");
    let hosts = ["www", "api", "static", "login", "cdn", "telemetry"];
    let mut asked = Vec::new();
    for host in hosts.iter().take(2 + service as usize % 5) {
        if random.chance(60) {
            asked.push((format!("{host}.{owner}"), Kind::Service, RecordType::A));
            if random.chance(30) {
                asked.push((format!("{host}.{owner}"), Kind::Service, RecordType::HTTPS));
            }
        }
    }
    // Every day has new shards, and some of the day before.
    let number = day * 6 + random.below(12);
    match service % 12 {
        0 => asked.push((format!("img-{number}.cdn.{owner}"), Kind::Shard, RecordType::A)),
        3 => asked.push((format!("r{}---sn-{:06x}a1.{owner}", number % 7, number * 7919), Kind::Shard, RecordType::A)),
        6 => asked.push((format!("{:010x}.edge.{owner}", number * 0x9e37_79b9), Kind::Shard, RecordType::AAAA)),
        9 => asked.push((format!("a.pod-{number}x.pods.{owner}"), Kind::Shard, RecordType::A)),
        4 => asked.push((format!("kv{number}.blob.core.windows.net"), Kind::Unknowable, RecordType::A)),
        7 => asked.push((format!("d{:08x}.cloudfront.net", service * 0x9e37), Kind::Tenant, RecordType::A)),
        8 => asked.push((format!("team{service}.github.io"), Kind::Tenant, RecordType::A)),
        _ => {}
    }
    if service == 5 {
        asked.push((format!("_imaps._tcp.{owner}"), Kind::Service, RecordType::SRV));
    }
    asked
}

fn junk(random: &mut Random) -> (String, bool) {
    let service = random.rank(SERVICES);
    match random.below(7) {
        0 => (format!("www.servce{}.example", random.below(100_000)), false),
        1 => (format!("www.service{service}.example.corp.example"), false),
        2 => (format!("{}.com", random.text(b"bcdfghjklmnpqrstvwxz", 14)), random.chance(10)),
        3 => (random.text(b"abcdefghijklmnop", 9), false),
        4 => (format!("shop{}.example", random.below(1 << 30)), true),
        5 => (format!("{}.github.io", random.text(b"aeioubcd", 9)), true),
        _ => (format!("user-{}.service{service}.example", random.below(1 << 40)), true),
    }
}

fn week(number: u64, random: &mut Random) -> Vec<Query> {
    let mut queries = Vec::new();
    for day in number * 7..number * 7 + 7 {
        // Fewer at the weekend.
        let visits = if day % 7 >= 5 { 400 } else { 2_000 };
        for _ in 0..visits {
            let (at, client) = (day * DAY + random.below(DAY), random.below(CLIENTS));
            for (name, kind, record) in visit(random, day) {
                queries.push(Query { at, client, name, record, kind, exists: true });
            }
            if random.chance(8) {
                let (name, exists) = junk(random);
                queries.push(Query { at, client, name, record: RecordType::A, kind: Kind::Junk, exists });
            }
        }
        for at in 0..300 {
            // Two clients send what they hold by names.
            let name = format!("{}.t.tunnel.example", random.text(BASE32, 40));
            let short = format!("{}.s.tunnel2.example", random.text(HEX, 8));
            for name in [name, short] {
                let (at, client) = (day * DAY + at * 1_000_000, random.below(2));
                queries.push(Query { at, client, name, record: RecordType::A, kind: Kind::Junk, exists: true });
            }
        }
        for client in 0..20 {
            let name = "ads.tracker.example".to_owned();
            queries.push(Query {
                at: day * DAY,
                client,
                name,
                record: RecordType::A,
                kind: Kind::Denied,
                exists: true,
            });
        }
    }
    queries
}

fn learn(queries: &[Query]) -> Learned {
    let mut learner = Learner::new(LearnTerms::default());
    for query in queries {
        learner.see(&Seen {
            at: Wall(1_700_000_000_000_000 / DAY * DAY + query.at),
            client: IpAddr::V4(Ipv4Addr::from_bits(0xc000_0200 + query.client as u32)),
            segment: &heading().segments[0],
            name: Name::parse(&query.name).unwrap().as_wire(),
            kind: query.record,
            fate: if query.kind == Kind::Denied { Fate::Denied } else { Fate::Passed },
            exists: Some(query.exists),
            ports: &[],
        });
    }
    learner.finish("query.jsonl")
}

#[test]
fn a_week_is_learned_and_the_next_one_is_allowed() {
    for seed in [1, 2] {
        let mut random = Random(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
        let (first, second) = (week(0, &mut random), week(1, &mut random));
        let learned = learn(&first);
        assert_eq!(learn(&first).draft.to_string(), learned.draft.to_string(), "the same each time");
        let asked: Vec<_> = second.iter().map(|query| (query.name.as_str(), query.record)).collect();
        let mut counts: BTreeMap<Kind, (u64, u64)> = BTreeMap::new();
        let mut wide = HashSet::new();
        for (query, allowed) in second.iter().zip(allowed(&learned.draft, &asked)) {
            let (all, some) = counts.entry(query.kind).or_default();
            *all += 1;
            *some += u64::from(allowed);
            if allowed && matches!(query.kind, Kind::Junk | Kind::Denied) {
                wide.insert(query.name.as_str());
            }
        }
        let share = |kinds: &[Kind]| {
            let found = kinds.iter().filter_map(|kind| counts.get(kind));
            let (all, some) = found.fold((0, 0), |sum, more| (sum.0 + more.0, sum.1 + more.1));
            some as f64 * 100.0 / all as f64
        };
        let needed = [Kind::Service, Kind::Shard, Kind::Tenant, Kind::Unknowable];
        let [own, shards, tenants, unknowable] = needed.map(|kind| share(&[kind]));
        let needed = share(&needed);
        println!(
            "{} queries, {} lines, {:.2} names a line; of the next week {needed:.1} %: own names {own:.1} %, new names \
             {shards:.1} %, names below public suffixes {tenants:.1} %, new ones there {unknowable:.1} %; of {} queries \
             for what nobody needs {}",
            learned.queries,
            learned.lines,
            learned.names as f64 / learned.lines as f64,
            counts.get(&Kind::Junk).map_or(0, |(all, _)| *all),
            wide.len(),
        );
        let patterns: Vec<&str> =
            learned.draft.rules.iter().flat_map(|rule| &rule.names).map(|entry| entry.name.as_str()).collect();
        for pattern in patterns.iter().filter(|pattern| pattern.contains('*')) {
            let base = pattern.split_once('.').unwrap().1;
            assert!(base.ends_with(".example") && !base.contains("tunnel"), "{pattern}");
        }
        assert_eq!(learned.draft.count(Action::Deny), 0);
        assert!(!patterns.contains(&"ads.tracker.example"), "a rule denied it");
        assert!(wide.is_empty(), "{wide:?}");
        assert!(own >= 98.0 && shards >= 75.0 && tenants >= 95.0 && needed >= 93.0);
    }
}
