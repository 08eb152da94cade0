//! One sink's thread: reads, offers, waits, and keeps the cursor.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::cursor::{Cursor, Position, Saved, VERSION};
use super::follow::{Follower, Next};
use super::gauges::Gauges;
use super::intake::{Intake, Taken};
use super::lost::Lost;
use super::readers::Readers;
use super::settings::{From, Settings};
use super::{Batch, Deliver, Delivered, Record};
use crate::audit::read::micros;
use crate::time::{Clock, Tick};

/// How long a sink that has read everything looks away.
const LOOK: Duration = Duration::from_millis(100);
/// How often the cursor is saved at most.
const SAVE: Duration = Duration::from_secs(1);
/// The most lines that are read before it looks at what else is to be done: few may be delivered.
const READ: usize = 1 << 16;
/// How long a stop waits for what is not delivered yet.
const DRAIN: Duration = Duration::from_secs(5);
/// Between two attempts at most; doubled each time.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Gaps that wait to be told; the last ones are told as one beyond that.
const GAPS: usize = 64;

/// What a sink's thread is made from.
pub(super) struct Make {
    pub(super) settings: Settings,
    pub(super) file: PathBuf,
    pub(super) state: PathBuf,
    pub(super) node: String,
    pub(super) cursor: Cursor,
    pub(super) readers: Readers,
    pub(super) gauges: Arc<Gauges>,
    pub(super) clock: Clock,
    pub(super) stop: Arc<AtomicBool>,
}

impl Make {
    /// Runs until the stop.
    pub(super) fn run(self) {
        let Self { settings, file, state, node, cursor, readers, gauges, clock, stop } = self;
        let last = cursor.last().cloned();
        let from = if cursor.damaged {
            tracing::warn!(
                sink = settings.name,
                "its cursor is damaged: everything that is still there is delivered again"
            );
            From::Oldest
        } else {
            settings.from
        };
        let (follower, redactor) = loop {
            let position = last.as_ref().and_then(|last| last.position.as_ref());
            let follower =
                Follower::open(&file, (&readers, &settings.name), position, from).map_err(|error| error.to_string());
            let redactor = settings.client.redactor(&state).map_err(|mistake| mistake.to_string());
            match follower.and_then(|follower| Ok((follower, redactor?))) {
                Ok(ready) => break ready,
                Err(why) => fail(&settings, &gauges, &why),
            }
            if stop.load(Ordering::Relaxed) {
                return;
            }
            thread::park_timeout(FIRST_WAIT);
        };
        let mut engine = Engine {
            deliver: None,
            intake: Intake::new(settings.clone(), redactor),
            follower,
            cursor,
            pending: VecDeque::new(),
            octets: 0,
            lost: Vec::new(),
            lines: 0,
            summing: None,
            unsure: VecDeque::new(),
            doubted: Vec::new(),
            back: None,
            since: Tick::default(),
            retry_at: Tick::default(),
            wait: FIRST_WAIT,
            saved_at: Tick::default(),
            node,
            settings,
            gauges,
            clock,
            stop,
        };
        for lost in last.map(|last| last.lost).unwrap_or_default() {
            engine.miss(lost);
        }
        engine.run();
    }
}

/// A record that is not delivered yet.
struct Pending {
    record: Record,
    /// Before the first line that it was made from; `None`: it tells of a gap.
    start: Option<Reached>,
}

/// A place in the log, and how many lines were read before it.
#[derive(Clone)]
struct Reached {
    lines: u64,
    at: Position,
}

struct Engine {
    settings: Settings,
    node: String,
    /// `None`: to be built.
    deliver: Option<Box<dyn Deliver>>,
    intake: Intake,
    follower: Follower,
    cursor: Cursor,
    gauges: Arc<Gauges>,
    clock: Clock,
    stop: Arc<AtomicBool>,
    pending: VecDeque<Pending>,
    /// What they take.
    octets: usize,
    /// Those of them that tell of gaps, in order.
    lost: Vec<Lost>,
    /// Lines that were read.
    lines: u64,
    /// Where the window began that is being summed.
    summing: Option<Reached>,
    /// Where deliveries that may still be lost began, and when they were made.
    unsure: VecDeque<(Tick, Position)>,
    /// Gaps that were told and may have to be told again, and when.
    doubted: Vec<(Tick, Lost)>,
    /// Where to go on instead, as soon as the log can be read.
    back: Option<Position>,
    /// When the first pending record was read.
    since: Tick,
    /// Nothing is offered before.
    retry_at: Tick,
    /// How long the next failure waits at most.
    wait: Duration,
    saved_at: Tick,
}

impl Engine {
    fn run(mut self) {
        let mut stopping: Option<Tick> = None;
        loop {
            self.miss_removed();
            let ended = self.fill();
            let now = self.clock.tick();
            if stopping.is_none() && self.stop.load(Ordering::Relaxed) {
                stopping = Some(now + DRAIN);
                self.retry_at = self.retry_at.min(now);
            }
            let due = self.is_full() || stopping.is_some() || now.since(self.since) >= self.settings.linger;
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
            if !offered && (ended || self.is_full()) {
                thread::park_timeout(LOOK);
            }
        }
    }

    fn is_full(&self) -> bool {
        self.pending.len() >= self.settings.batch || self.octets >= self.settings.batch_size
    }

    /// Reads until there is a batch, or much that is not delivered, or nothing more; whether there is nothing more.
    fn fill(&mut self) -> bool {
        if let Some(back) = self.back.take()
            && let Err(error) = self.follower.seek(&back)
        {
            fail(&self.settings, &self.gauges, &error.to_string());
            self.back = Some(back);
            return true;
        }
        for _ in 0..READ {
            if self.is_full() {
                break;
            }
            let taken = match self.follower.next() {
                Ok(Next::Line(line)) => {
                    self.gauges.records.fetch_add(1, Ordering::Relaxed);
                    self.gauges.bytes.fetch_add(line.len() as u64 + 1, Ordering::Relaxed);
                    self.intake.take(line)
                }
                Ok(Next::Damaged(_)) => None,
                Ok(Next::Lost(lost)) => {
                    self.miss(lost);
                    continue;
                }
                Ok(Next::End) => return true,
                Err(error) => {
                    fail(&self.settings, &self.gauges, &error.to_string());
                    return true;
                }
            };
            self.lines += 1;
            let Some(taken) = taken else {
                self.gauges.damaged.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            let Some(at) = self.follower.start().cloned() else { continue };
            self.took(taken, Reached { lines: self.lines, at });
        }
        false
    }

    fn took(&mut self, taken: Taken, here: Reached) {
        let Taken { sums, record, begins } = taken;
        if !sums.is_empty() {
            let start = self.summing.take();
            for record in sums {
                self.push(record, start.clone());
            }
        }
        if !self.intake.is_summing() {
            self.summing = None;
        } else if begins {
            self.summing = Some(here.clone());
        }
        if let Some(record) = record {
            self.push(record, Some(here));
        }
    }

    fn push(&mut self, record: Record, start: Option<Reached>) {
        if self.pending.is_empty() {
            self.since = self.clock.tick();
        }
        self.octets += record.bytes.len();
        self.pending.push_back(Pending { record, start });
    }

    /// Notes what was removed before it was read. A sink that takes nothing lets go of a file that was removed, so that its
    /// room is free.
    fn miss_removed(&mut self) {
        let mut missed = Vec::new();
        if self.gauges.down.load(Ordering::Relaxed) && self.back.is_none() {
            match self.follower.let_go() {
                Ok(lost) => missed.extend(lost),
                Err(error) => fail(&self.settings, &self.gauges, &error.to_string()),
            }
        }
        missed.extend(self.follower.missed());
        if missed.is_empty() {
            return;
        }
        for lost in missed {
            self.miss(lost);
        }
        // What is told as missing is never found missing anew.
        self.save(self.clock.tick());
    }

    /// Notes a gap: the sink is told of it, where its format has a form for that, and the journal.
    fn miss(&mut self, lost: Lost) {
        self.gauges.gaps.fetch_add(1, Ordering::Relaxed);
        let (ids, Lost { file, records, why, .. }) = (lost.listed(), lost.clone());
        let told = self.tell(lost);
        tracing::warn!(
            sink = self.settings.name,
            file,
            records,
            ids,
            why,
            "records are missing for this sink; {}",
            if told { "a gap record tells it which" } else { "its format has no form to tell it: this line does" }
        );
    }

    /// Tells the sink of a gap; false where its format has no form for that.
    fn tell(&mut self, lost: Lost) -> bool {
        let last = self.pending.iter().rposition(|one| one.start.is_none());
        let lost = match self.lost.pop() {
            Some(before) if self.lost.len() + 1 >= GAPS => {
                if let Some(one) = last.and_then(|at| self.pending.remove(at)) {
                    self.octets -= one.record.bytes.len();
                }
                before.and(lost)
            }
            before => {
                self.lost.extend(before);
                lost
            }
        };
        let line = lost.line(&self.settings.name, &self.node, self.clock.now().wall);
        let Some(record) = self.intake.format(&line) else { return false };
        self.push(record, None);
        self.lost.push(lost);
        true
    }

    /// Offers the first records.
    fn offer(&mut self) {
        let from = self.reached();
        let mut octets = 0;
        let fits = |one: &&Pending| {
            let first = octets == 0;
            octets += one.record.bytes.len();
            first || octets <= self.settings.batch_size
        };
        let records: Vec<Record> =
            self.pending.iter().take(self.settings.batch).take_while(fits).map(|one| one.record.clone()).collect();
        let deliver = match &mut self.deliver {
            Some(deliver) => deliver,
            None => match self.settings.plan.build() {
                Ok(mut deliver) => {
                    deliver.heed(&self.stop);
                    self.deliver.insert(deliver)
                }
                Err(why) => return self.failed(&why, None),
            },
        };
        match deliver.deliver(&Batch { records: &records }) {
            Delivered::All => {
                let unsure = deliver.unsure();
                self.taken(records.len(), &[], &[], (unsure, from));
            }
            Delivered::Some { again, refused, wait } => {
                let told = self.gauges.refused.load(Ordering::Relaxed);
                if let Some((index, why)) = refused.first().filter(|_| told == 0) {
                    let id = records.get(*index).map(|record| &*record.id).unwrap_or_default();
                    tracing::warn!(
                        sink = self.settings.name,
                        id,
                        why,
                        "a record is refused and passed over; further ones are counted"
                    );
                }
                let refused: Vec<usize> = refused.into_iter().map(|(index, _)| index).collect();
                let unsure = deliver.unsure();
                self.taken(records.len(), &again, &refused, (unsure, from));
                if !again.is_empty() && wait != Some(Duration::ZERO) {
                    self.failed("it wants some records again later", wait);
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
        self.trust(unsure);
    }

    /// Forgets doubts that are over: what was delivered at one of them was followed by others for a tenth of the time.
    fn trust(&mut self, unsure: Duration) {
        let now = self.clock.tick();
        let over = unsure.saturating_add(unsure / 10);
        while self.unsure.front().is_some_and(|(at, _)| now.since(*at) >= over) {
            self.unsure.pop_front();
        }
        self.doubted.retain(|(at, _)| now.since(*at) < over);
    }

    /// Offers again what may be lost.
    fn go_back(&mut self) {
        if let Some((_, position)) = self.unsure.pop_front() {
            self.unsure.clear();
            self.summing = None;
            self.intake.again();
            self.pending.retain(|one| one.start.is_none());
            self.back = Some(position);
        }
        if !self.doubted.is_empty() {
            self.pending.retain(|one| one.start.is_some());
            let told = self.doubted.drain(..).map(|(_, lost)| lost);
            for lost in told.chain(self.lost.drain(..)).collect::<Vec<_>>() {
                self.tell(lost);
            }
        }
        self.octets = self.pending.iter().map(|one| one.record.bytes.len()).sum();
    }

    /// Forgets the first `count` but for those to be offered again. For how long the others may still be lost, and from
    /// where on, is noted.
    fn taken(
        &mut self,
        count: usize,
        again: &[usize],
        refused: &[usize],
        (unsure, from): (Duration, Option<Position>),
    ) {
        let offered: Vec<_> = self.pending.drain(..count.min(self.pending.len())).collect();
        let summed = offered.iter().any(|one| &*one.record.kind == "summary");
        // Those that were offered are the first of all, in the same order.
        let gaps = offered.iter().enumerate().filter(|(_, one)| one.start.is_none());
        let mut waits = gaps.map(|(index, _)| again.contains(&index));
        let now = self.clock.tick();
        let mut told = Vec::new();
        self.lost.retain(|lost| {
            let waits = waits.next() != Some(false);
            told.extend((!waits).then(|| (now, lost.clone())));
            waits
        });
        let gaps = told.len();
        for (at, lost) in told {
            match self.doubted.pop() {
                Some((_, before)) if self.doubted.len() + 1 >= GAPS => self.doubted.push((at, before.and(lost))),
                before => self.doubted.extend(before.into_iter().chain([(at, lost)])),
            }
        }
        for (_, one) in offered.into_iter().enumerate().rev().filter(|(index, _)| again.contains(index)) {
            self.pending.push_front(one);
        }
        self.octets = self.pending.iter().map(|one| one.record.bytes.len()).sum();
        let delivered = count.saturating_sub(again.len() + refused.len());
        self.gauges.delivered.fetch_add(delivered as u64, Ordering::Relaxed);
        self.gauges.refused.fetch_add(refused.len() as u64, Ordering::Relaxed);
        self.wait = FIRST_WAIT;
        if self.gauges.down.swap(false, Ordering::Relaxed) {
            tracing::info!(sink = self.settings.name, "the sink takes records again");
        }
        self.doubt(unsure, from);
        if summed || gaps > 0 {
            // Read again, the lines of a window could make other sums.
            self.save(self.clock.tick());
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

    /// While there is nothing to deliver: whether what was delivered last has arrived.
    fn check(&mut self) {
        let Some(deliver) = &mut self.deliver else { return };
        let unsure = deliver.unsure();
        match deliver.check() {
            Ok(()) => self.trust(unsure),
            Err(why) => {
                self.failed(&why, None);
                self.go_back();
            }
        }
    }

    /// Nothing more is delivered.
    fn end(&mut self) {
        let Some(deliver) = &mut self.deliver else { return };
        match deliver.end() {
            Ok(()) => {
                let unsure = deliver.unsure();
                self.trust(unsure);
            }
            Err(why) => fail(&self.settings, &self.gauges, &why),
        }
    }

    /// Everything before it was delivered, or passed over.
    fn reached(&self) -> Option<Position> {
        let starts = self.pending.iter().filter_map(|one| one.start.as_ref()).chain(&self.summing);
        let first = starts.min_by_key(|start| start.lines).map(|start| &start.at);
        self.back.as_ref().or(first).or_else(|| self.follower.position()).cloned()
    }

    fn save(&mut self, now: Tick) {
        self.saved_at = now;
        let pending = self.pending.iter().filter(|one| one.start.is_some());
        let oldest = pending.clone().next().and_then(|one| micros(&one.record.ts)).unwrap_or(0);
        self.gauges.oldest.store(oldest, Ordering::Relaxed);
        self.gauges.pending.store(pending.count() as u64, Ordering::Relaxed);
        self.gauges.behind.store(self.follower.behind(), Ordering::Relaxed);
        let position = self.unsure.front().map(|(_, position)| position.clone()).or_else(|| self.reached());
        if position.is_none() && self.lost.is_empty() && self.doubted.is_empty() {
            return;
        }
        let lost = self.doubted.iter().map(|(_, lost)| lost).chain(&self.lost).cloned().collect();
        if let Err(error) = self.cursor.save(Saved { v: VERSION, position, lost }) {
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
