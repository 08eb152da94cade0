//! What really went out, as the node's own log tells it: flows that the firewall let pass and packets that it refused, each
//! with the look-up that it went out by.
//!
//! A thread of its own looks at what the kernel tells, reads the node's log to its end, and only then judges: what is
//! written before sent is in the file before any flow can begin. Nothing waits for it; where it cannot keep up, the kernel
//! says that events were lost, and what began or ended meanwhile is unknown.

mod gauges;
mod history;
mod judge;
mod rules;
mod settings;
mod table;
mod watcher;

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

pub(in crate::app) use self::gauges::Gauges;
pub(in crate::app) use self::settings::Settings;
use self::watcher::Watcher;
use crate::audit::{Meter, Shard};
use crate::firewall;
use crate::gate::Gate;

/// The thread that watches.
pub(in crate::app) struct Flows {
    pub(in crate::app) gauges: Arc<Gauges>,
    remarks: Vec<String>,
}

impl Flows {
    /// What cannot be told, and the remedy.
    pub(in crate::app) fn remarks(&self) -> Vec<String> {
        let untold = self.gauges.untold.load(Ordering::Relaxed);
        let full =
            format!("{untold} flows found no room in the table and were judged at their end; raise [flow] max_flows");
        self.remarks.iter().cloned().chain((untold > 0).then_some(full)).collect()
    }
}

/// What it is made from.
pub(in crate::app) struct Parts<'a> {
    pub(in crate::app) settings: &'a Settings,
    pub(in crate::app) firewalls: &'a [firewall::Settings],
    /// The log's current file.
    pub(in crate::app) file: &'a std::path::Path,
    pub(in crate::app) meter: &'a Meter,
    pub(in crate::app) gate: Arc<Gate>,
    pub(in crate::app) shard: Shard,
}

/// The running thread; dropped, it is told to end.
pub(in crate::app) struct Running {
    stop: UnixStream,
    thread: JoinHandle<()>,
}

impl Running {
    /// Ends it.
    pub(in crate::app) fn stop(self) {
        drop(self.stop);
        if self.thread.join().is_err() {
            tracing::error!("the thread that watches flows had panicked");
        }
    }
}

/// Begins to watch.
///
/// # Errors
/// One sentence: what is to be watched cannot be.
pub(in crate::app) fn start(parts: Parts<'_>) -> Result<(Flows, Running), String> {
    let Parts { settings, firewalls, file, meter, gate, shard } = parts;
    let firewall = firewalls.iter().find(|firewall| firewall.plan.has_witness());
    let firewall = firewall.ok_or("[flow] has no firewall that tells of flows")?;
    let of = |error: &dyn std::fmt::Display| format!("[flow], firewall \"{}\": {error}", firewall.common.name);
    let witness = firewall.plan.witness(&settings.sought()).map_err(|error| of(&error))?;
    let witness = witness.ok_or_else(|| of(&"it does not tell of flows"))?;
    let remarks = witness.remarks().to_vec();
    let gauges = Arc::<Gauges>::default();
    let (stop, stopped) = UnixStream::pair().map_err(|error| of(&error))?;
    let parts = watcher::Parts {
        settings: settings.clone(),
        firewall: firewall.clone(),
        file: file.to_path_buf(),
        meter: meter.clone(),
        gate,
        shard: shard.tolerant(),
        witness,
        gauges: Arc::clone(&gauges),
        stopped,
    };
    let thread = std::thread::Builder::new().name("flow".into()).spawn(move || Watcher::new(parts).run());
    let thread = thread.map_err(|error| of(&format!("no thread: {error}")))?;
    Ok((Flows { gauges, remarks }, Running { stop, thread }))
}
