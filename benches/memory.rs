//! What a cached name weighs: `cargo bench --bench memory`. One table: for so many names and clients, the growth of the
//! process per cover while they are asked for once, answers, covers, grants and the log's buffers together.

#[expect(dead_code, reason = "the benchmark of the fast path uses all of it")]
mod stage;

use outgate::policy::GrantScope;
use stage::{Size, Stage};

fn main() {
    println!("{:>8} {:>8} {:>10} {:>10} {:>10}", "names", "clients", "MiB", "B/cover", "charged");
    for (cached, clients) in [(20_000, 1), (1_000, 100)] {
        let mut stage = Stage::empty(Size { allowed: cached, cached, clients, scope: GrantScope::Client });
        let before = resident();
        stage.fill();
        let grown = resident().saturating_sub(before);
        let covers = cached * usize::from(clients);
        let charged = stage.gate.answers.bytes() + stage.gate.cover.bytes();
        println!("{cached:>8} {clients:>8} {:>10} {:>10} {:>10}", grown >> 20, grown / covers, charged / covers);
    }
}

/// Resident bytes of this process.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kibibytes| kibibytes.parse::<usize>().ok()).unwrap_or(0) << 10
}
