//! What correlation takes: flows judged a second on one core, look-ups taken in, and the memory of an interval.
//!
//! 10,000 clients with 40 names of 3 addresses each: 1,200,000 intervals. The resident set before and behind is what the
//! system says of the process, with the tables of names and addresses.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a benchmark's own data")]

use std::net::IpAddr;
use std::time::Duration;

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use outgate::flow::{Carrier, Class, Flow, Index, Limits, QueryId, Told, Unlisted};
use outgate::net::Services;
use outgate::time::Wall;

const CLIENTS: u32 = 10_000;
const NAMES: u32 = 40;
const START: u64 = 1_795_230_000_000_000;
/// Flows of one round.
const FLOWS: u32 = 100_000;

fn main() {
    let before = resident();
    let index = filled();
    let holds = index.holds();
    println!(
        "{} intervals of {} clients: {} bytes each by count, {} by the resident set, which grew by {} MB",
        holds.intervals,
        holds.clients,
        holds.bytes / holds.intervals,
        (resident() - before) / holds.intervals,
        (resident() - before) >> 20,
    );
    drop(index);
    divan::main();
}

/// Bytes that the process has in memory.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

fn client(number: u32) -> IpAddr {
    IpAddr::from((0x0a00_0000 + number).to_be_bytes())
}

fn address(name: u32, last: u32) -> IpAddr {
    IpAddr::from((0xc633_0000 + name * 4 + last).to_be_bytes())
}

/// The `n`-th name of a client: some of many, as sites differ.
const fn name(client: u32, n: u32) -> u32 {
    (client.wrapping_mul(31).wrapping_add(n * 97)) % 5_000
}

fn tell(index: &mut Index, number: u32, n: u32, names: &[String], at: u64) {
    let name = name(number, n);
    let addresses = [0, 1, 2].map(|last| address(name, last));
    index.told(&Told {
        at: Wall(at),
        client: client(number),
        segment: Some("all"),
        qname: &names[name as usize],
        rule: "web",
        query: Some(QueryId { boot: 1, shard: 2, sequence: u64::from(number) }),
        addresses: &addresses,
        unlisted: Unlisted::None,
        services: &[Services::Tcp(443, 443)],
        told_until: Wall(at + 60_000_000),
        open_until: Wall(at + 300_000_000),
    });
}

fn names() -> Vec<String> {
    (0..5_000).map(|number| format!("host-{number}.service.example.org")).collect()
}

fn filled() -> Index {
    let mut index = Index::new(Limits::default());
    index.begin(Wall(START), true);
    let names = names();
    for n in 0..NAMES {
        for number in 0..CLIENTS {
            tell(&mut index, number, n, &names, START + u64::from(n));
        }
    }
    index
}

/// Flows of clients in no order: to what they were told, or, `elsewhere`, to what they were not.
fn judge(bencher: Bencher, elsewhere: bool) {
    let index = filled();
    let mut seed = 1_u32;
    bencher.counter(ItemsCount::new(FLOWS)).bench_local(|| {
        let mut exact = 0_u32;
        for _ in 0..FLOWS {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let number = (seed >> 8) % CLIENTS;
            let name = name(number, seed % NAMES) + u32::from(elsewhere) * 5_000;
            let judgement = index.judge(&Flow {
                at: Wall(START + 1_000_000),
                end: None,
                client: client(number),
                segment: None,
                address: address(name, seed % 3),
                carrier: Carrier::Tcp(443),
                started: true,
                denied: false,
                error: Duration::from_secs(1),
            });
            exact += u32::from(judgement.class == Class::Exact);
        }
        black_box(exact)
    });
}

#[divan::bench(sample_count = 20)]
fn flows_that_are_exact(bencher: Bencher) {
    judge(bencher, false);
}

#[divan::bench(sample_count = 20)]
fn flows_to_addresses_that_nobody_was_told(bencher: Bencher) {
    judge(bencher, true);
}

/// Each look-up prolongs three intervals.
#[divan::bench(sample_count = 20)]
fn look_ups_that_refresh(bencher: Bencher) {
    let mut index = filled();
    let names = names();
    let mut at = START;
    bencher.counter(ItemsCount::new(CLIENTS)).bench_local(|| {
        at += 1_000_000;
        for number in 0..CLIENTS {
            tell(&mut index, number, 7, &names, at);
        }
    });
}
