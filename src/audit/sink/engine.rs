//! The engine: one thread per sink, from the log's lines to what is delivered.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::Mutex;
use serde::Deserialize;

use super::cursor::{Cursor, Position};
use super::follow::{Follower, Next};
use super::gauges::Gauges;
use super::readers::Readers;
use super::settings::Settings;
use super::{Batch, Deliver, Delivered, Record};
use crate::audit::meter::Meter;
use crate::time::{Clock, Tick};

/// How long a sink that has read everything looks away.
const LOOK: Duration = Duration::from_millis(100);
/// How often the cursor is saved at most.
const SAVE: Duration = Duration::from_secs(1);
/// The most lines that are read before it looks at what else is to be done: few may have a form.
const READ: usize = 1 << 16;
/// How long a stop waits for what is not delivered yet.
const DRAIN: Duration = Duration::from_secs(5);
/// Between two attempts; doubled each time.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

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
    /// `state`.
    ///
    /// # Errors
    /// One sentence: a cursor or the log cannot be read, or there is no thread to be had.
    pub fn start(
        settings: &[Settings],
        file: &Path,
        state: &Path,
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

/// What a sink's thread is made from.
struct Make {
    settings: Settings,
    file: std::path::PathBuf,
    cursor: Cursor,
    readers: Readers,
    gauges: Arc<Gauges>,
    clock: Clock,
    stop: Arc<AtomicBool>,
}

impl Make {
    fn run(self) {
        let Self { settings, file, cursor, readers, gauges, clock, stop } = self;
        let last = cursor.last().map(|saved| saved.position.clone());
        let follower = loop {
            match Follower::open(&file, &readers, last.as_ref(), settings.from) {
                Ok(follower) => break follower,
                Err(error) => fail(&settings, &gauges, &error.to_string()),
            }
            if stop.load(Ordering::Relaxed) {
                return;
            }
            thread::park_timeout(FIRST_WAIT);
        };
        let engine = Engine {
            deliver: None,
            follower,
            cursor,
            pending: VecDeque::new(),
            since: Tick::default(),
            retry_at: Tick::default(),
            wait: FIRST_WAIT,
            saved_at: Tick::default(),
            unsure: VecDeque::new(),
            back: None,
            settings,
            gauges,
            clock,
            stop,
        };
        engine.run();
    }
}

/// A record that is not delivered yet.
struct Pending {
    record: Record,
    /// Before the line that it was made from.
    start: Position,
}

struct Engine {
    settings: Settings,
    /// `None`: to be built.
    deliver: Option<Box<dyn Deliver>>,
    follower: Follower,
    cursor: Cursor,
    gauges: Arc<Gauges>,
    clock: Clock,
    stop: Arc<AtomicBool>,
    pending: VecDeque<Pending>,
    /// When the first of them was read.
    since: Tick,
    /// Nothing is offered before.
    retry_at: Tick,
    /// How long the next failure waits at most.
    wait: Duration,
    saved_at: Tick,
    /// Where deliveries that may still be lost began, and when they were made.
    unsure: VecDeque<(Tick, Position)>,
    /// Where to go on instead, as soon as the log can be read.
    back: Option<Position>,
}

impl Engine {
    fn run(mut self) {
        let mut stopping: Option<Tick> = None;
        loop {
            let ended = self.fill();
            let now = self.clock.tick();
            if stopping.is_none() && self.stop.load(Ordering::Relaxed) {
                stopping = Some(now + DRAIN);
                self.retry_at = self.retry_at.min(now);
            }
            let full = self.pending.len() >= self.settings.batch;
            let due = full || stopping.is_some() || now.since(self.since) >= self.settings.linger;
            let offered = !self.pending.is_empty() && due && now >= self.retry_at;
            if offered {
                self.offer();
            } else if self.pending.is_empty() {
                self.check();
            }
            let now = self.clock.tick();
            let over = stopping.is_some_and(|until| now >= until || (ended && self.pending.is_empty()));
            if over {
                self.end();
            }
            if over || now.since(self.saved_at) >= SAVE {
                self.save(now);
            }
            if over {
                return;
            }
            if !offered && (ended || self.pending.len() >= self.settings.batch) {
                thread::park_timeout(LOOK);
            }
        }
    }

    /// Reads until there is a batch, or much without a form, or nothing more; whether there is nothing more.
    fn fill(&mut self) -> bool {
        if let Some(back) = self.back.take()
            && let Err(error) = self.follower.seek(&back)
        {
            fail(&self.settings, &self.gauges, &error.to_string());
            self.back = Some(back);
            return true;
        }
        for _ in 0..READ {
            if self.pending.len() >= self.settings.batch {
                break;
            }
            let line = match self.follower.next() {
                Ok(Next::Line(line)) => line,
                Ok(Next::Damaged(_)) => {
                    self.gauges.damaged.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                Ok(Next::Lost(_)) => {
                    self.gauges.gaps.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                Ok(Next::End) => return true,
                Err(error) => {
                    fail(&self.settings, &self.gauges, &error.to_string());
                    return true;
                }
            };
            let record = match record(line, &self.settings) {
                Some(Some(record)) => record,
                Some(None) => continue,
                None => {
                    self.gauges.damaged.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
            };
            let Some(start) = self.follower.start().cloned() else { continue };
            if self.pending.is_empty() {
                self.since = self.clock.tick();
            }
            self.pending.push_back(Pending { record, start });
        }
        false
    }

    /// Offers the first records.
    fn offer(&mut self) {
        let from = self.delivered_to().cloned();
        let records: Vec<Record> =
            self.pending.iter().take(self.settings.batch).map(|one| one.record.clone()).collect();
        let deliver = match &mut self.deliver {
            Some(deliver) => deliver,
            None => match self.settings.plan.build() {
                Ok(deliver) => self.deliver.insert(deliver),
                Err(why) => return self.failed(&why, None),
            },
        };
        match deliver.deliver(&Batch { records: &records }) {
            Delivered::All => {
                let unsure = deliver.unsure();
                self.taken(records.len(), &[], &[]);
                self.doubt(unsure, from);
            }
            Delivered::Some { again, refused, wait } => {
                for (index, why) in &refused {
                    let id = records.get(*index).map(|record| &*record.id).unwrap_or_default();
                    tracing::warn!(sink = self.settings.name, id, why, "a record is refused and passed over");
                }
                let refused: Vec<usize> = refused.into_iter().map(|(index, _)| index).collect();
                let unsure = deliver.unsure();
                self.taken(records.len(), &again, &refused);
                self.doubt(unsure, from);
                if !again.is_empty() {
                    self.failed("some records are to be offered again", wait);
                }
            }
            Delivered::Failed { why, wait } => {
                self.failed(&why, wait);
                self.go_back();
            }
        }
    }

    /// Notes that what was delivered from `from` on may still be lost, and forgets what cannot be any more.
    fn doubt(&mut self, unsure: Duration, from: Option<Position>) {
        let now = self.clock.tick();
        if let Some(from) = from.filter(|_| !unsure.is_zero()) {
            // One for each tenth of the time is enough.
            if self.unsure.back().is_none_or(|(at, _)| now.since(*at) >= unsure / 10) {
                self.unsure.push_back((now, from));
            }
        }
        // What was delivered then, and within a tenth.
        let over = unsure.saturating_add(unsure / 10);
        while self.unsure.front().is_some_and(|(at, _)| now.since(*at) >= over) {
            self.unsure.pop_front();
        }
    }

    /// Offers again what may be lost.
    fn go_back(&mut self) {
        if let Some((_, position)) = self.unsure.pop_front() {
            self.unsure.clear();
            self.pending.clear();
            self.back = Some(position);
        }
    }

    /// Forgets the first `count` but for those to be offered again.
    fn taken(&mut self, count: usize, again: &[usize], refused: &[usize]) {
        let offered: Vec<_> = self.pending.drain(..count.min(self.pending.len())).collect();
        for (_, one) in offered.into_iter().enumerate().rev().filter(|(index, _)| again.contains(index)) {
            self.pending.push_front(one);
        }
        let delivered = count.saturating_sub(again.len() + refused.len());
        self.gauges.delivered.fetch_add(delivered as u64, Ordering::Relaxed);
        self.gauges.refused.fetch_add(refused.len() as u64, Ordering::Relaxed);
        self.wait = FIRST_WAIT;
        if self.gauges.down.swap(false, Ordering::Relaxed) {
            tracing::info!(sink = self.settings.name, "the sink takes records again");
        }
    }

    /// Leaves it alone for a while: full jitter, so that many nodes do not come back at once.
    fn failed(&mut self, why: &str, wait: Option<Duration>) {
        fail(&self.settings, &self.gauges, why);
        let share = u32::try_from(getrandom::u64().unwrap_or(u64::MAX) >> 40).unwrap_or(0);
        let jitter = self.wait.mul_f64(f64::from(share) / f64::from(1_u32 << 24));
        self.retry_at = self.clock.tick() + wait.unwrap_or(jitter);
        self.wait = (self.wait * 2).min(LONGEST_WAIT);
    }

    fn check(&mut self) {
        let Some(deliver) = &mut self.deliver else { return };
        match deliver.check() {
            Ok(()) => {
                let unsure = deliver.unsure();
                self.doubt(unsure, None);
            }
            Err(why) => {
                self.failed(&why, None);
                self.go_back();
            }
        }
    }

    fn end(&mut self) {
        let Some(deliver) = &mut self.deliver else { return };
        match deliver.end() {
            Ok(()) => {
                let unsure = deliver.unsure();
                self.doubt(unsure, None);
            }
            Err(why) => fail(&self.settings, &self.gauges, &why),
        }
    }

    /// Everything before it was delivered for good.
    fn delivered_to(&self) -> Option<&Position> {
        let unsure = self.back.as_ref().or_else(|| self.unsure.front().map(|(_, position)| position));
        unsure.or_else(|| self.pending.front().map(|first| &first.start)).or_else(|| self.follower.position())
    }

    fn save(&mut self, now: Tick) {
        self.saved_at = now;
        let Some(position) = self.delivered_to().cloned() else { return };
        self.follower.delivered(&position);
        if let Err(error) = self.cursor.save(&position) {
            tracing::warn!(sink = self.settings.name, %error, "the cursor cannot be saved; what is delivered from here on is delivered again after a restart");
        }
    }
}

/// Notes a failure; the journal is told where it is the first, or another one.
fn fail(settings: &Settings, gauges: &Gauges, why: &str) {
    gauges.failures.fetch_add(1, Ordering::Relaxed);
    let before = gauges.last_error.lock().replace(why.to_owned());
    if !gauges.down.swap(true, Ordering::Relaxed) || before.as_deref() != Some(why) {
        tracing::warn!(sink = settings.name, why, "the sink takes no records; they stay in the log");
    }
}

/// What the engine looks at in every record.
#[derive(Deserialize)]
struct Head<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    id: &'a str,
    ts: &'a str,
    #[serde(default)]
    node: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    segment: Option<std::borrow::Cow<'a, str>>,
    verdict: Option<&'a str>,
}

/// A line of the log in the sink's format; the inner `None`: it has no form there. `None`: it is no record.
fn record(line: &[u8], settings: &Settings) -> Option<Option<Record>> {
    let text = std::str::from_utf8(line).ok()?;
    let head: Head<'_> = serde_json::from_str(text).ok()?;
    let mut bytes = Vec::new();
    Some((settings.format.write)(text, &mut bytes).then(|| Record {
        id: head.id.into(),
        kind: head.kind.into(),
        ts: head.ts.into(),
        node: (*head.node).into(),
        segment: head.segment.map(|segment| (*segment).into()),
        verdict: head.verdict.map(Into::into),
        bytes,
    }))
}
