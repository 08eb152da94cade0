//! What the fast path costs between receive and send: `cargo bench --bench fast`. A thousand queries a run, in batches
//! of 64, each recorded; allocations are counted, and there must be none.

mod stage;

use divan::counter::ItemsCount;
use divan::{AllocProfiler, Bencher, black_box};
use outgate::policy::GrantScope;
use stage::{Asked, Size, Stage};

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

fn main() {
    divan::main();
}

fn bench(bencher: Bencher<'_, '_>, size: Size, queries: impl FnOnce(&Stage) -> Vec<Asked>) {
    let mut stage = Stage::new(size);
    let queries = queries(&stage);
    stage.run(&queries);
    bencher.counter(ItemsCount::new(queries.len())).bench_local(|| stage.run(black_box(&queries)));
}

/// A policy of so many names, a thousand of them cached.
const fn size(allowed: usize, scope: GrantScope) -> Size {
    Size { allowed, cached: 1_000, clients: 1, scope }
}

/// Cached and open for the client.
#[divan::bench(args = [10_000])]
fn hit(bencher: Bencher<'_, '_>, allowed: usize) {
    bench(bencher, size(allowed, GrantScope::Client), Stage::cached);
}

/// Cached and open for the client's segment.
#[divan::bench(args = [10_000])]
fn hit_of_a_segment(bencher: Bencher<'_, '_>, allowed: usize) {
    bench(bencher, size(allowed, GrantScope::Segment), Stage::cached);
}

/// Under nothing that is allowed.
#[divan::bench(args = [10_000])]
fn denied(bencher: Bencher<'_, '_>, allowed: usize) {
    bench(bencher, size(allowed, GrantScope::Client), Stage::denied);
}

/// Answered with FORMERR.
#[divan::bench(args = [10_000])]
fn malformed(bencher: Bencher<'_, '_>, allowed: usize) {
    bench(bencher, size(allowed, GrantScope::Client), Stage::malformed);
}
