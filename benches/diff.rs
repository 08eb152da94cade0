//! What `outgate diff` takes: two policies of a million names read and compared, and a recorded log put to both, plain and
//! packed. It runs the program, and shows its processor time and the most memory that it held.
//!
//! `cargo bench --bench diff`; `OUTGATE_RECORDS=10000000` for a log of another length than 1,000,000.

#![expect(clippy::expect_used, reason = "a benchmark's own data")]
#![expect(clippy::disallowed_methods, reason = "it times a process")]

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;

const SEGMENTS: usize = 1000;
const NAMES: usize = 1000;

/// A policy of a million names in a thousand segments, and `more`.
fn policy(directory: &Path, more: &str) {
    let mut text = String::new();
    for segment in 0..SEGMENTS {
        let (high, low) = (segment / 250, segment % 250);
        let names: Vec<String> = (0..NAMES).map(|name| format!("\"h{name}.z{segment}.example.org\"")).collect();
        let wild: Vec<String> = (0..10).map(|name| format!("\"*.w{name}.z{segment}.example.net\"")).collect();
        write!(
            text,
            "[[segment]]\nname = \"s{segment}\"\nclients = [\"10.{high}.{low}.0/24\"]\n[[rule]]\nid = \"r{segment}\"\n\
             action = \"allow\"\nsegments = [\"s{segment}\"]\nnames = [{}]\n[[rule]]\nid = \"w{segment}\"\n\
             action = \"allow\"\nsegments = [\"s{segment}\"]\nnames = [{}]\n",
            names.join(", "),
            wild.join(", ")
        )
        .expect("a String takes all");
    }
    fs::create_dir_all(directory).expect("a directory below the temporary one");
    fs::write(directory.join("policy.toml"), text + more).expect("room for 40 MB");
}

/// One record; as this program writes them, of 450 to 500 bytes.
fn record(out: &mut impl std::io::Write, number: u64) -> std::io::Result<()> {
    // A few names are asked for often: the square of an even spread.
    let spread = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    let name = ((spread * spread) >> 24) % 100_000;
    let (segment, host) = (name / 100, name % 100);
    let (high, low) = (segment / 250, segment % 250);
    let second = number / 2000;
    let ts = format!(
        "2026-11-{:02}T{:02}:{:02}:{:02}.{:06}Z",
        14 + second / 86_400 % 7,
        second / 3600 % 24,
        second / 60 % 60,
        second % 60,
        number % 2000 * 500
    );
    writeln!(
        out,
        "{{\"v\":1,\"type\":\"query\",\"id\":\"7f3a91c20b1d44e0-3-{number}\",\"ts\":\"{ts}\",\"node\":\"og-eu1-a\",\
         \"client\":\"10.{high}.{low}.{}\",\"port\":{},\"transport\":\"udp\",\"segment\":\"s{segment}\",\"tags\":\
         {{\"service\":\"s{segment}\"}},\"qid\":{},\"qname\":\"h{host}.z{segment}.example.org\",\"qtype\":\"A\",\
         \"verdict\":\"allow\",\"reason\":\"rule\",\"rule\":\"r{segment}\",\"policy\":\"9c1f5be27a40d3e1\",\
         \"rcode\":\"NOERROR\",\"flags\":[\"RD\",\"RA\"],\"bytes\":64,\"cache\":\"hit\",\"answers\":[{{\"name\":\
         \"h{host}.z{segment}.example.org\",\"type\":\"A\",\"ttl\":300,\"data\":\"198.51.100.{}\"}}],\"grant\":\
         {{\"ports\":[\"tcp/443\"],\"until\":\"{ts}\"}},\"upstream\":\"default\",\"latency_us\":{}}}",
        number % 200 + 1,
        1024 + number % 60_000,
        number % 65_536,
        host + 1,
        number % 90 + 10,
    )
}

/// Runs the program; its seconds of processor time, by the clock, and the last line that it said.
fn run(directory: &Path, arguments: &[&str]) -> (f64, f64, String) {
    let spent = || {
        let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("the kernel says what children took");
        let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
        seconds(usage.user_time()) + seconds(usage.system_time())
    };
    let (before, started) = (spent(), Instant::now());
    let mut command = Command::new(env!("CARGO_BIN_EXE_outgate"));
    let output = command.args(arguments).current_dir(directory).stderr(Stdio::inherit()).output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let last = text.lines().last().unwrap_or("nothing differs").to_owned();
    (spent() - before, started.elapsed().as_secs_f64(), last)
}

fn main() {
    let records: u64 = std::env::var("OUTGATE_RECORDS").ok().and_then(|text| text.parse().ok()).unwrap_or(1_000_000);
    let directory: PathBuf = std::env::temp_dir().join(format!("outgate-bench-diff-{}", std::process::id()));
    let name = "[[rule]]\nid = \"more\"\naction = \"allow\"\nsegments = [\"s17\"]\nnames = [\"new.example.org\"]\n";
    let wild = "[[rule]]\nid = \"more\"\naction = \"allow\"\nsegments = [\"*\"]\nnames = [\"*.z5.example.org\"]\n\
                ports = [\"tcp/8443\"]\n";
    let deny = "[[rule]]\nid = \"more\"\naction = \"deny\"\nsegments = [\"*\"]\nnames = [\"**.example.org\"]\n";
    for (to, more) in [("old", ""), ("name", name), ("wild", wild), ("deny", deny)] {
        policy(&directory.join(to), more);
    }
    fs::write(directory.join("outgate.toml"), "[zones]\ndirectory = \"zones\"\n").expect("room for a file");
    fs::create_dir_all(directory.join("zones")).expect("a directory");
    println!("{:<44} {:>8} {:>8}", "1,000,000 names, 1,000 segments", "cpu s", "s");
    for to in ["old", "name", "wild", "deny"] {
        let (spent, took, last) = run(&directory, &["diff", "old", to]);
        println!("{:<44} {spent:>8.2} {took:>8.2}  {last}", format!("old → {to}"));
    }
    let log = directory.join("query.jsonl");
    let mut out = BufWriter::new(File::create(&log).expect("room for a log"));
    for number in 0..records {
        record(&mut out, number).expect("room for a log");
    }
    out.flush().expect("room for a log");
    let bytes = fs::metadata(&log).map(|metadata| metadata.len()).unwrap_or(0);
    println!("\nlog: {records} records, {bytes} bytes");
    let (alone, ..) = run(&directory, &["diff", "old", "name"]);
    let packed = [("zstd -3", "query.jsonl.zst", "zstd"), ("gzip -6", "query.jsonl.gz", "gzip")];
    for (what, file, packer) in [("plain", "query.jsonl", "")].into_iter().chain(packed) {
        if !packer.is_empty() {
            let made = Command::new(packer).args(["-q", "-k", "-f"]).arg(&log).status();
            if !made.is_ok_and(|status| status.success()) {
                println!("{what:<44} {packer} is not here");
                continue;
            }
        }
        let (spent, took, last) = run(&directory, &["diff", "old", "name", "--log", file]);
        let rate = records as f64 / (spent - alone);
        println!("{what:<44} {spent:>8.2} {took:>8.2}  {rate:.0} records/cpu s; {last}");
    }
    let most = getrusage(UsageWho::RUSAGE_CHILDREN).map(|usage| usage.max_rss()).unwrap_or(0);
    println!("most memory: {} MiB", most / 1024);
    let _ = fs::remove_dir_all(&directory);
}
