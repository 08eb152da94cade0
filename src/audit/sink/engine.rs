//! The sinks that run: one thread each, started and stopped together.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use parking_lot::Mutex;

use super::cursor::Cursor;
use super::gauges::Gauges;
use super::run::Make;
use super::settings::Settings;
use crate::audit::meter::Meter;
use crate::time::Clock;

/// The sinks that run.
pub struct Sinks {
    running: Vec<Running>,
    stop: Arc<AtomicBool>,
}

struct Running {
    settings: Settings,
    gauges: Arc<Gauges>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Sinks {
    /// Starts a thread for each sink. `meter` is that of the log whose current file is at `file`; cursors are kept below
    /// `state`, `node` is the node's name.
    ///
    /// # Errors
    /// One sentence: a cursor or the log cannot be read, or there is no thread to be had.
    pub fn start(
        settings: &[Settings],
        file: &Path,
        state: &Path,
        node: &str,
        meter: &Meter,
        clock: &Clock,
    ) -> Result<Self, String> {
        let mut sinks = Self { running: Vec::new(), stop: Arc::default() };
        for settings in settings {
            let of = |why: String| format!("sink \"{}\": {why}", settings.name);
            let cursor = Cursor::open(state, &settings.name).map_err(of)?;
            let gauges = Arc::<Gauges>::default();
            let engine = Make {
                settings: settings.clone(),
                file: file.to_path_buf(),
                state: state.to_path_buf(),
                node: node.to_owned(),
                cursor,
                readers: meter.readers().clone(),
                gauges: Arc::clone(&gauges),
                clock: clock.clone(),
                stop: Arc::clone(&sinks.stop),
            };
            let thread = thread::Builder::new().name(format!("sink-{}", settings.name));
            let thread = thread.spawn(move || engine.run()).map_err(|error| of(format!("no thread: {error}")))?;
            sinks.running.push(Running { settings: settings.clone(), gauges, thread: Mutex::new(Some(thread)) });
        }
        Ok(sinks)
    }

    /// Each sink with its counters.
    pub fn each(&self) -> impl Iterator<Item = (&Settings, &Arc<Gauges>)> {
        self.running.iter().map(|running| (&running.settings, &running.gauges))
    }

    /// Delivers what is in the log, for some seconds at most, and saves the cursors.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        let threads: Vec<_> = self.running.iter().filter_map(|running| running.thread.lock().take()).collect();
        for thread in &threads {
            thread.thread().unpark();
        }
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a sink had panicked");
            }
        }
    }
}
