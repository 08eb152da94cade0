//! The sinks that run: one thread each, started and stopped together.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

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
    /// Says nothing, and that all threads have ended.
    ended: Mutex<Receiver<()>>,
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
        let (running, ended): (Sender<()>, _) = channel();
        let mut sinks = Self { running: Vec::new(), stop: Arc::default(), ended: Mutex::new(ended) };
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
            let running = running.clone();
            let run = move || {
                let _until_the_end = running;
                engine.run();
            };
            let thread = thread.spawn(run).map_err(|error| of(format!("no thread: {error}")))?;
            sinks.running.push(Running { settings: settings.clone(), gauges, thread: Mutex::new(Some(thread)) });
        }
        Ok(sinks)
    }

    /// Each sink with its counters.
    pub fn each(&self) -> impl Iterator<Item = (&Settings, &Arc<Gauges>)> {
        self.running.iter().map(|running| (&running.settings, &running.gauges))
    }

    /// Delivers what is in the log and saves the cursors. A sink that takes longer is left as a crash would leave it: what it
    /// has not delivered is delivered after the next start, and perhaps a little of what it has.
    pub fn stop(&self, patience: Duration) {
        self.stop.store(true, Ordering::Relaxed);
        let take = |running: &Running| Some((running.settings.name.clone(), running.thread.lock().take()?));
        let threads: Vec<_> = self.running.iter().filter_map(take).collect();
        for (_, thread) in &threads {
            thread.thread().unpark();
        }
        // Nobody sends anything: it ends with the last of them, or when the time is over.
        let ended = self.ended.lock().recv_timeout(patience);
        for (sink, thread) in threads {
            if !thread.is_finished() && ended == Err(RecvTimeoutError::Timeout) {
                tracing::warn!(
                    sink,
                    "the sink does not end in time; what it has not delivered is delivered after the next start"
                );
            } else if thread.join().is_err() {
                tracing::error!(sink, "the sink had panicked");
            }
        }
    }
}
