//! What policy costs per question, and a policy to load: `cargo bench --bench policy`. Allocations are counted; a
//! refusal must show none.
//!
//! Every question is another name, in no order: a policy of a million names is larger than the caches, and what that
//! costs is part of the answer. Each sample is [`BATCH`] questions.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a benchmark's own data")]

use std::cell::Cell;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use divan::counter::ItemsCount;
use divan::{AllocProfiler, Bencher, black_box};
use outgate::name::Name;
use outgate::policy::{Policy, Settings, Source, Verdict, compile, decide};
use outgate::record::RecordType;
use outgate::time::Wall;

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

fn main() {
    divan::main();
}

/// Questions in one sample.
const BATCH: usize = 1000;
/// A moment at which nothing observes.
const NOW: Wall = Wall(1_000_000_000_000_000);
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const SEGMENT: &str = "[[segment]]\nname = \"s\"\nclients = [\"192.0.2.0/24\"]\n";

/// The name of a number: two of three are hosts of a domain that others share.
fn written(number: usize) -> String {
    let domain = number / 3;
    let tld = ["com", "net", "org", "de", "io", "fr", "jp", "info"][domain % 8];
    match number % 3 {
        0 => format!("site{domain:x}.{tld}"),
        1 => format!("www.site{domain:x}.{tld}"),
        _ => format!("api.site{domain:x}.{tld}"),
    }
}

/// Every number below `count` once, in no order a prefetcher knows.
fn shuffled(count: usize) -> Vec<usize> {
    let mut numbers: Vec<usize> = (0..count).collect();
    let mut state = 1_u64;
    for at in (1..count).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        numbers.swap(at, (state >> 33) as usize % (at + 1));
    }
    numbers
}

fn rules(names: usize, prefix: &str, a_rule: usize) -> String {
    let mut text = String::new();
    for number in 0..names {
        if number % a_rule == 0 {
            let end = if number == 0 { "" } else { "]\n" };
            let id = number / a_rule;
            write!(text, "{end}[[rule]]\nid = \"r{id}\"\naction = \"allow\"\nsegments = [\"*\"]\nnames = [\n").unwrap();
        }
        writeln!(text, "  \"{prefix}{}\",", written(number)).unwrap();
    }
    text + "]\n"
}

fn load(text: String) -> Arc<Policy> {
    let source = Source { file: "bench.toml".to_owned(), text };
    Arc::new(compile([source], &Settings::default()).unwrap())
}

/// Questions that are put one after the other, round and round.
struct Questions {
    wires: Vec<u8>,
    at: Cell<usize>,
}

impl Questions {
    fn new(names: impl Iterator<Item = String>) -> Self {
        let mut wires = Vec::new();
        for name in names {
            let name = Name::parse(&name).unwrap();
            wires.push(name.as_wire().len() as u8);
            wires.extend_from_slice(name.as_wire());
        }
        Self { wires, at: Cell::new(0) }
    }

    fn next(&self) -> &[u8] {
        let at = self.at.get() % self.wires.len();
        let end = at + 1 + usize::from(self.wires[at]);
        self.at.set(end);
        &self.wires[at + 1..end]
    }
}

fn ask(bencher: Bencher<'_, '_>, policy: &Arc<Policy>, questions: &Questions, permitted: bool) {
    let asker = policy.asker(CLIENT).unwrap();
    bencher.counter(ItemsCount::new(BATCH)).bench_local(|| {
        for _ in 0..BATCH {
            let verdict = decide(policy, asker, questions.next(), RecordType::A, NOW);
            assert_eq!(matches!(black_box(verdict), Verdict::Permit(_)), permitted);
        }
    });
}

const SIZES: [usize; 2] = [1_000, 1_000_000];

#[divan::bench(args = SIZES)]
fn allowed(bencher: Bencher<'_, '_>, names: usize) {
    let policy = load(SEGMENT.to_owned() + &rules(names, "", 1000));
    let questions = Questions::new(shuffled(names).into_iter().map(written));
    ask(bencher, &policy, &questions, true);
}

#[divan::bench(args = SIZES)]
fn wildcard(bencher: Bencher<'_, '_>, names: usize) {
    let policy = load(SEGMENT.to_owned() + &rules(names, "**.", 1000));
    let questions = Questions::new(shuffled(names).into_iter().map(|number| format!("a.b.{}", written(number))));
    ask(bencher, &policy, &questions, true);
}

/// Names under nothing that is allowed.
#[divan::bench(args = SIZES)]
fn denied(bencher: Bencher<'_, '_>, names: usize) {
    let policy = load(SEGMENT.to_owned() + &rules(names, "", 1000));
    let questions = Questions::new(shuffled(200_000).into_iter().map(|number| format!("x{number:x}.no{number:x}.com")));
    ask(bencher, &policy, &questions, false);
}

/// Names that no rule names, below and beside names that rules name: the longest way to a refusal.
#[divan::bench(args = SIZES)]
fn denied_nearby(bencher: Bencher<'_, '_>, names: usize) {
    let policy = load(SEGMENT.to_owned() + &rules(names, "", 1000));
    let questions = Questions::new(shuffled(names).into_iter().map(|number| format!("x.{}", written(number))));
    ask(bencher, &policy, &questions, false);
}

/// Who asks, where each segment has sixteen /28 and a /48.
#[divan::bench(args = [10, 10_000])]
fn asker(bencher: Bencher<'_, '_>, segments: u32) {
    let mut text = String::new();
    for segment in 0..segments {
        write!(text, "[[segment]]\nname = \"s{segment}\"\nclients = [\"2001:db8:{segment:x}::/48\"").unwrap();
        for part in 0..16 {
            let at = Ipv4Addr::from_bits((10 << 24) + (segment << 9) + (part << 5));
            write!(text, ", \"{at}/28\"").unwrap();
        }
        text.push_str("]\n");
    }
    let policy = load(text);
    let clients = shuffled(segments as usize * 16);
    let clients: Vec<Ipv4Addr> =
        clients.into_iter().map(|number| Ipv4Addr::from_bits((10 << 24) + ((number as u32) << 5) + 7)).collect();
    let mut at = 0;
    bencher.counter(ItemsCount::new(BATCH)).bench_local(|| {
        for _ in 0..BATCH {
            assert!(black_box(policy.asker(clients[at % clients.len()].into())).is_some());
            at += 1;
        }
    });
}

#[divan::bench(args = [100_000], sample_count = 10)]
fn compile_names(bencher: Bencher<'_, '_>, names: usize) {
    let text = SEGMENT.to_owned() + &rules(names, "", 1000);
    bencher.counter(ItemsCount::new(names)).with_inputs(|| text.clone()).bench_local_values(load);
}
