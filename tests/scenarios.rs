//! Every tests/scenarios/**/*.scn is played against the whole gate; tests/scenarios/README.md describes the language.
//!
//! `SCENARIO=ttl cargo test --test scenarios` plays those alone whose path holds `ttl`.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

mod gate;
mod play;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many are played at once: most of them wait for nothing.
const AT_ONCE: usize = 4;

#[test]
fn every_scenario_holds() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let chosen = std::env::var("SCENARIO").unwrap_or_default();
    let mut files = Vec::new();
    find(&root.join("tests/scenarios"), &mut files);
    files.sort();
    let below = |path: &Path| path.strip_prefix(root).unwrap().display().to_string();
    files.retain(|path| below(path).contains(&chosen));
    assert!(!files.is_empty(), "no scenario has \"{chosen}\" in its path");
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(path) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                    // A panic is a failure of its scenario, and the others are still played.
                    let played = std::panic::catch_unwind(|| play::play(path));
                    let played = played.unwrap_or_else(|_| Err("1: it panicked; see above".to_owned()));
                    if let Err(fault) = played {
                        failures.lock().unwrap().push(format!("{}:{fault}", below(path)));
                    }
                }
            });
        }
    });
    let mut failures = failures.into_inner().unwrap();
    failures.sort();
    assert!(failures.is_empty(), "{} of {} scenarios failed\n\n{}\n", failures.len(), files.len(), failures.join("\n"));
}

fn find(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            find(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "scn") {
            files.push(path);
        }
    }
}
