//! Durability, as the kernel sees it: what is written, what is waited for, what is sent, in which order.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use crate::dns::{Client, Stream, a};
use crate::harness::{Site, until};
use crate::programs::{Running, are_here, command};
use crate::upstream::Upstream;

/// A site whose records are waited for in this way.
pub(crate) fn site(durability: &str) -> Site {
    let audit = format!("[audit]\nfile = \"query.jsonl\"\nrotate_size = \"64MiB\"\ndurability = \"{durability}\"");
    Site::new().with("audit", audit)
}

/// What `strace` saw of threads that wrote to the log and sent: how often replies were sent, how often before what their
/// thread had written was on the disk, and how many waits there were.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    sent: usize,
    unkept: usize,
    waits: usize,
}

fn read(trace: &Path) -> Seen {
    let mut seen = Seen::default();
    // A thread's log has been written up to this line; the waits that began after it, and whether one ended.
    let mut unkept: HashMap<&str, usize> = HashMap::new();
    let mut waiting: HashMap<&str, usize> = HashMap::new();
    let mut kept_from = 0;
    let text = fs::read_to_string(trace).unwrap();
    for (at, line) in text.lines().enumerate() {
        let Some((thread, call)) = line.split_once(' ').map(|(thread, call)| (thread, call.trim_start())) else {
            continue;
        };
        let log = call.contains("query.jsonl");
        let ended = !call.ends_with("<unfinished ...>");
        if call.starts_with("write(") && log || call.starts_with("<... write resumed>") && unkept.contains_key(thread) {
            unkept.insert(thread, at);
        } else if call.starts_with("fdatasync(") && log {
            waiting.insert(thread, at);
        }
        if call.contains("fdatasync") && ended && call.ends_with("= 0") {
            seen.waits += 1;
            kept_from = waiting.remove(thread).map_or(kept_from, |began| kept_from.max(began));
        }
        let udp = call.starts_with("sendmmsg(");
        let stream = call.starts_with("sendto(") && call.contains("TCP:");
        if udp || stream {
            seen.sent += 1;
            seen.unkept += usize::from(unkept.get(thread).is_some_and(|written| *written >= kept_from));
        }
    }
    seen
}

#[test]
fn no_answer_leaves_before_the_disk_has_its_record() {
    if !are_here(&["strace"]) {
        return;
    }
    let upstream = Upstream::start();
    for durability in ["process", "disk"] {
        let site = site(durability).with_servers(&[upstream.address]);
        let mut node = site.start();
        let trace = site.path("trace");
        let mut strace = command("strace");
        strace.args(["-f", "-yy", "-s", "8", "-e", "trace=write,fdatasync,sendmmsg,sendto", "-o"]).arg(&trace);
        let mut strace = Running::start(strace.args(["-p", &node.id().to_string()]));
        let traced = |node: &crate::harness::Node| {
            let status = fs::read_to_string(format!("/proc/{}/status", node.id())).unwrap();
            !status.contains("TracerPid:\t0")
        };
        until("it is traced", || traced(&node));
        let client = Client::new(site.dns);
        for number in 0..60 {
            client.told("www.corp.example");
            client.told(&format!("x{number}.example.net"));
            client.told("example.org");
        }
        let mut stream = Stream::new(site.dns);
        (0..20).for_each(|_| drop(stream.ask(&a("www.corp.example"))));
        assert_eq!(node.stop(), Some(0));
        until("strace ends", || strace.0.try_wait().unwrap().is_some());
        let seen = read(&trace);
        assert!(seen.sent >= 150, "{durability}: {seen:?}");
        match durability {
            "disk" => assert!(seen.unkept == 0 && seen.waits >= 150, "{seen:?}"),
            _ => assert!(seen.unkept >= 150 && seen.waits == 0, "{seen:?}"),
        }
        site.verified();
    }
}
