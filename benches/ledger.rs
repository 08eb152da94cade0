//! What the granter's thread pays in the ledger: for an answer that opens, for one that is open already, for one at a
//! cap, and for asking of every live element whether it is still upheld.
//!
//! Each offer is of one address and one port, with its batch taken and acknowledged. The rows of one kind must not grow
//! much with what is live.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use divan::{Bencher, black_box};
use outgate::grant::{Caps, Ledger, Terms};
use outgate::name::Name;
use outgate::policy::{Cleared, Policy, Settings, Source, Verdict, compile, decide, inspect};
use outgate::record::{AddressTrust, Answer, Origin, Rcode, Record, RecordType};
use outgate::time::{Now, Tick, Ttl, Wall};

const LIVE: &[usize] = &[1_000, 100_000];

const START: Tick = Tick(1_000_000_000_000);
const WALL: Wall = Wall(0);

fn main() {
    divan::main();
}

#[expect(clippy::unwrap_used, reason = "a benchmark's own data")]
fn policy() -> Arc<Policy> {
    let text = "[[segment]]\nname = \"all\"\nclients = [\"10.0.0.0/8\"]\n\
                [[rule]]\nid = \"web\"\naction = \"allow\"\nsegments = [\"*\"]\nnames = [\"api.example.org\"]\n";
    let source = Source { file: "policy.toml".to_owned(), text: text.to_owned() };
    Arc::new(compile([source], &Settings::default()).unwrap())
}

/// The answer to the `n`-th client.
#[expect(clippy::unwrap_used, clippy::panic, reason = "a benchmark's own data")]
fn cleared(policy: &Arc<Policy>, n: usize) -> Cleared {
    let client = IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0001 + u32::try_from(n).unwrap()));
    let name = Name::parse("api.example.org").unwrap();
    let asker = policy.asker(client).unwrap();
    let Verdict::Permit(permit) = decide(policy, asker, name.as_wire(), RecordType::A, WALL) else {
        panic!("the name is refused")
    };
    let address = IpAddr::V4(Ipv4Addr::new(192, 88, 98, 1));
    let answer = Answer {
        rcode: Rcode::NOERROR,
        authoritative: false,
        records: vec![Record::of_address(name, Ttl::from_wire(60), address)],
        soa: None,
        ede: None,
        proof: None,
        origin: Origin { name: Arc::from("default"), trust: AddressTrust::Upstream(Arc::from([])) },
    };
    inspect(permit, answer)
}

#[expect(clippy::unwrap_used, reason = "a benchmark's own data")]
fn grant(ledger: &mut Ledger, cleared: Cleared, now: Tick) {
    let offered = ledger.offer(cleared, now + Duration::from_secs(60), Now { tick: now, wall: WALL }).unwrap();
    let batch = ledger.take_batch();
    let _ = ledger.acknowledge(&batch, &[]);
    drop(black_box(ledger.settle(offered, now)));
    ledger.expire(now, 64);
}

fn filled(policy: &Arc<Policy>, live: usize, caps: Caps) -> Ledger {
    let mut ledger = Ledger::new(Terms::default(), caps);
    for n in 0..live {
        grant(&mut ledger, cleared(policy, n), START);
    }
    ledger
}

/// One grant after another at `now`, each to the next client from `first` on; from the first on, to those that are
/// live.
fn grants(bencher: Bencher<'_, '_>, live: usize, first: usize, caps: Caps, now: Tick) {
    let policy = policy();
    let mut ledger = filled(&policy, live, caps);
    let mut n = first;
    bencher
        .with_inputs(|| {
            n += 1;
            cleared(&policy, if first == 0 { n % live } else { n })
        })
        .bench_local_values(|cleared| grant(&mut ledger, cleared, now));
}

#[divan::bench(args = LIVE, sample_count = 50, sample_size = 10)]
fn new(bencher: Bencher<'_, '_>, live: usize) {
    let caps = Caps { segment: 1 << 20, ..Caps::default() };
    grants(bencher, live, 10_000_000, caps, START);
}

#[divan::bench(args = LIVE, sample_count = 50, sample_size = 10)]
fn renewed(bencher: Bencher<'_, '_>, live: usize) {
    grants(bencher, live, 0, Caps::default(), START + Duration::from_secs(90));
}

#[divan::bench(args = LIVE, sample_count = 50, sample_size = 10)]
fn open_already(bencher: Bencher<'_, '_>, live: usize) {
    grants(bencher, live, 0, Caps::default(), START);
}

#[divan::bench(args = LIVE, sample_count = 50, sample_size = 10)]
fn new_at_a_cap(bencher: Bencher<'_, '_>, live: usize) {
    let caps = Caps { segment: live, ..Caps::default() };
    grants(bencher, live, 10_000_000, caps, START + Duration::from_secs(90));
}

/// Every live reason is decided again, and upheld.
#[divan::bench(args = LIVE, sample_count = 20)]
fn revoke_none(bencher: Bencher<'_, '_>, live: usize) {
    let policy = policy();
    let mut ledger = filled(&policy, live, Caps::default());
    bencher.bench_local(|| {
        ledger.revoke(0..live, START, |basis, element| policy.upholds(basis, element, WALL).is_some()).len()
    });
}

/// The ledger's own part of it.
#[divan::bench(args = LIVE, sample_count = 20)]
fn revoke_none_undecided(bencher: Bencher<'_, '_>, live: usize) {
    let mut ledger = filled(&policy(), live, Caps::default());
    bencher.bench_local(|| ledger.revoke(0..live, START, |_, _| black_box(true)).len());
}

#[divan::bench(args = LIVE, sample_count = 5)]
fn revoke_all(bencher: Bencher<'_, '_>, live: usize) {
    let policy = policy();
    bencher
        .with_inputs(|| filled(&policy, live, Caps::default()))
        .bench_local_refs(|ledger| (ledger.revoke(0..live, START, |_, _| false).len(), ledger.take_batch().len()));
}
