//! The thread: look, read the log to its end, judge, write.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use foldhash::quality::RandomState;

use super::gauges::Gauges;
use super::history::{ERROR, History};
use super::judge::{Judged, Shared, Told, place};
use super::rules::statics;
use super::settings::Settings;
use super::table::{Key, Live, Table};
use crate::app::history::Sources;
use crate::audit::{self, Event, FlowOp, HistoryEvent, Meter, Recorded, Shard};
use crate::firewall::{self, Endpoints, GATHERED, Refused, Seen, Sight, Witness};
use crate::flow::{Carrier, Class, Detail, Flow, Index, Judgement, Limits};
use crate::gate::Gate;
use crate::net::local_addresses;
use crate::time::{Tick, Wall};

/// How long it waits for something to happen; what the log says meanwhile is read then.
const IDLE: Duration = Duration::from_secs(1);
/// How long events gather, so that a busy gateway is not woken for each.
const GATHER: Duration = Duration::from_millis(20);
/// How often flows are looked for that nobody tells the end of.
const SWEEP: Duration = Duration::from_secs(60);
/// How often this host's addresses are looked at.
const ADDRESSES: Duration = Duration::from_secs(10);
/// Records of the log between two looks, while it is read from the start on.
const STRIDE: u32 = 4096;
/// Sights that wait at most while the log is read; what is beyond is lost.
const WAITING: usize = 1 << 18;

pub(super) struct Parts {
    pub(super) settings: Settings,
    pub(super) firewall: firewall::Settings,
    pub(super) file: PathBuf,
    pub(super) meter: Meter,
    pub(super) gate: Arc<Gate>,
    pub(super) shard: Shard,
    pub(super) witness: Box<dyn Witness>,
    pub(super) gauges: Arc<Gauges>,
    pub(super) stopped: UnixStream,
}

/// See the module.
pub(super) struct Watcher {
    parts: Parts,
    index: Index,
    history: History,
    log: Option<audit::History>,
    table: Table,
    shared: Shared,
    sources: Sources,
    /// The epoch of the rulebook that these are of.
    epoch: u64,
    /// This host's addresses, and when they were looked at.
    here: (HashSet<IpAddr>, Tick),
    /// The host governs itself: all its addresses are one client.
    of_host: bool,
    /// What was seen and not judged yet, and between which times it happened.
    sights: Vec<(Sight, Between)>,
    /// A look that came to the end left nothing behind: what is seen later happened after it.
    looked: Wall,
    /// Events were lost since [`Watcher::heard_all`].
    lost: bool,
    /// Until then everything was heard of.
    heard_all: Wall,
    /// Flows that began before anybody listened: the kernel does not tell of their end. With what they carried when last seen.
    silent: HashMap<Key, Seen, RandomState>,
    sweep_at: Tick,
    /// Of the last error that was told.
    failing: Option<String>,
}

/// The kernel does not say of everything when it happened; then it was between these.
#[derive(Clone, Copy, Debug)]
struct Between {
    since: Wall,
    by: Wall,
}

impl Watcher {
    pub(super) fn new(parts: Parts) -> Self {
        let limits = Limits { lookback: parts.settings.lookback, ..Limits::default() };
        let now = parts.gate.clock.now();
        Self {
            index: Index::new(limits),
            history: History::default(),
            log: None,
            table: Table::new(parts.settings.max_flows),
            shared: Shared::default(),
            sources: Sources::default(),
            epoch: 0,
            here: (local_addresses(), now.tick),
            of_host: parts.firewall.plan.local_clients_only(),
            sights: Vec::new(),
            looked: now.wall,
            lost: false,
            heard_all: now.wall,
            silent: HashMap::default(),
            sweep_at: now.tick + SWEEP,
            failing: None,
            parts,
        }
    }

    /// Until it is told to stop.
    pub(super) fn run(mut self) {
        self.follow();
        self.look();
        self.begin();
        while !self.is_stopped(Duration::ZERO) {
            if let Err(error) = self.parts.witness.wait(self.parts.stopped.as_fd(), IDLE) {
                self.fail(&error);
            }
            if self.is_stopped(GATHER) {
                break;
            }
            self.step();
        }
    }

    /// Waits so long at most; whether it is to end.
    fn is_stopped(&self, longest: Duration) -> bool {
        use std::io::Read;
        let timeout = if longest.is_zero() { Duration::from_micros(1) } else { longest };
        let _ = self.parts.stopped.set_read_timeout(Some(timeout));
        // The other end is dropped; nothing is ever written to it.
        matches!((&self.parts.stopped).read(&mut [0]), Ok(0))
    }

    fn step(&mut self) {
        let before = self.now();
        let more = self.look();
        self.follow();
        self.judge_all();
        // Until the queue is empty the kernel keeps nothing more, and does not say so again.
        if self.lost && !more {
            self.resync();
        }
        if !more {
            self.heard_all = before;
        }
        let now = self.parts.gate.clock.now();
        if now.tick >= self.sweep_at {
            self.sweep_at = now.tick + SWEEP;
            self.sweep();
        }
        self.index.prune(now.wall);
        self.parts.gauges.live.store(self.table.len() as u64, Ordering::Relaxed);
        // What cannot be written is counted by the shard, and named later.
        let _ = self.parts.shard.commit();
    }

    fn now(&self) -> Wall {
        self.parts.gate.clock.now().wall
    }

    /// Tells of an error once, until it is another one.
    fn fail(&mut self, error: &dyn std::fmt::Display) {
        let text = error.to_string();
        if self.failing.as_ref() != Some(&text) {
            tracing::error!(error = text, "flows cannot be told; it is tried again");
            self.failing = Some(text);
        }
        self.is_stopped(IDLE);
    }

    /// Takes what the kernel has to tell; whether there is more.
    fn look(&mut self) -> bool {
        let Self { parts, sights, looked: since, .. } = self;
        let mut full = false;
        let (began, clock) = (parts.gate.clock.now().wall, &parts.gate.clock);
        let looked = parts.witness.look(&mut |sight| {
            if sights.len() < WAITING {
                sights.push((sight, Between { since: *since, by: clock.now().wall }));
            } else {
                full = true;
            }
        });
        match looked {
            Ok(looked) => {
                self.lost |= looked.lost || full;
                parts.gauges.lost.fetch_add(looked.lost_refusals + u64::from(looked.lost || full), Ordering::Relaxed);
                if !looked.more {
                    *since = began;
                }
                looked.more
            }
            Err(error) => {
                self.lost = true;
                self.fail(&error);
                false
            }
        }
    }

    /// Reads the log to its end.
    fn follow(&mut self) {
        self.look_at_addresses();
        let mut read = 0;
        loop {
            let log = match &mut self.log {
                Some(log) => log,
                none => {
                    let lookback = u64::try_from(self.parts.settings.lookback.as_micros()).unwrap_or(u64::MAX);
                    let since = Wall(self.parts.gate.clock.now().wall.0.saturating_sub(lookback));
                    match audit::History::open(&self.parts.file, &self.parts.meter, since) {
                        Ok(log) => none.insert(log),
                        Err(error) => return self.fail(&error),
                    }
                }
            };
            let (index, history) = (&mut self.index, &mut self.history);
            let here = Some(&self.here.0).filter(|_| self.of_host);
            let next = log.next(&mut |event| match event {
                HistoryEvent::Record(record) => history.take(index, record, &|address| place(here, address)),
                HistoryEvent::Missing => history.take(index, Recorded::Missing, &|address| address),
            });
            match next {
                Ok(true) => {}
                Ok(false) => {
                    let now = self.now();
                    return self.history.settle(&mut self.index, now);
                }
                Err(error) => {
                    let now = self.now();
                    self.history.missing(&mut self.index, now);
                    return self.fail(&error);
                }
            }
            read += 1;
            if read % STRIDE == 0 {
                self.look();
                if self.is_stopped(Duration::ZERO) {
                    // What is judged yet is judged by half a log.
                    let now = self.now();
                    self.history.missing(&mut self.index, now);
                    return;
                }
            }
        }
    }

    fn look_at_addresses(&mut self) {
        let now = self.parts.gate.clock.tick();
        if now >= self.here.1 + ADDRESSES {
            self.here = (local_addresses(), now);
        }
    }

    /// The address under which a client's look-ups stand.
    fn place(&self, client: IpAddr) -> IpAddr {
        place(Some(&self.here.0).filter(|_| self.of_host), client)
    }

    /// What the policy in force says of flows.
    fn look_at_rules(&mut self) {
        let gate = &self.parts.gate;
        let rulebook = gate.rulebook();
        if rulebook.epoch != self.epoch {
            self.epoch = rulebook.epoch;
            self.sources = Sources::new(&rulebook.policy);
            self.index.set_statics(statics(&rulebook.policy, &self.parts.firewall, &gate.upstreams));
        }
    }

    /// What lives when it begins to listen.
    fn begin(&mut self) {
        self.look_at_rules();
        let list = self.list();
        // What began while the log was read for the first time is judged by what was written until now.
        self.follow();
        // Without a list, those that live are not told apart from those that began while nobody heard.
        self.lost |= list.is_none();
        for seen in list.unwrap_or_default() {
            self.found(&seen, true);
        }
        self.judge_all();
    }

    fn judge_all(&mut self) {
        self.look_at_rules();
        for (sight, between) in std::mem::take(&mut self.sights) {
            match sight {
                Sight::Began(seen) => self.began(&seen, between),
                Sight::Ended(seen) => self.ended(&seen, between),
                Sight::Refused(refused) => self.refused(&refused, between),
            }
        }
    }

    /// Every live flow; `None`: they could not be listed.
    fn list(&mut self) -> Option<Vec<Seen>> {
        let mut list = Vec::new();
        let listed = self.parts.witness.list(&mut |seen| match seen {
            Some(seen) => list.push(seen),
            None => list.clear(),
        });
        match listed {
            Ok(()) => Some(list),
            Err(error) => {
                self.fail(&error);
                None
            }
        }
    }

    fn judged(&mut self, ends: &Endpoints, at: Wall, started: bool, denied: bool) -> Option<Judged> {
        let client = self.place(ends.from);
        let segment = self.sources.of(client).or_else(|| self.sources.of(ends.from)).cloned();
        // What comes from elsewhere, or ends here, does not go out.
        if !denied && (segment.is_none() || self.here.0.contains(&ends.to)) {
            return None;
        }
        let flow = Flow {
            at,
            end: None,
            client,
            segment: segment.as_ref().map(|segment| &*segment.name),
            address: ends.to,
            carrier: Carrier::of(ends.protocol, ends.ports[1]),
            started,
            denied,
            // A refusal is the firewall's own word that nothing was open.
            error: if denied { Duration::ZERO } else { ERROR },
        };
        Some(Judged::new(&self.index.judge(&flow), segment.clone(), started))
    }

    /// As [`Watcher::judged`]; where the address was translated and nothing is known of it, of what it was translated to.
    fn judged_of(&mut self, seen: &Seen, at: Wall, started: bool) -> Option<Judged> {
        let judged = self.judged(&seen.ends, at, started, false)?;
        let Some(to) = seen.translated.filter(|_| matches!(judged.class, Class::None | Class::Unknown)) else {
            return Some(judged);
        };
        let other = self.judged(&Endpoints { to, ..seen.ends }, at, started, false);
        other.filter(|other| !matches!(other.class, Class::None | Class::Unknown)).or(Some(judged))
    }

    fn began(&mut self, seen: &Seen, between: Between) {
        let at = seen.began.or(seen.at).unwrap_or(between.by);
        let Some(judged) = self.judged_of(seen, at, true) else { return };
        self.put(seen, at, judged);
    }

    /// A flow that nobody told the beginning of.
    fn found(&mut self, seen: &Seen, silent: bool) {
        let key = Key::of(seen);
        if self.table.has(&key) {
            return;
        }
        let at = seen.began.unwrap_or_else(|| self.now());
        let judged = match seen.began {
            Some(_) => self.judged_of(seen, at, true),
            None if silent => self.judged_of(seen, at, false),
            None => {
                let why = "its beginning was not heard of: events were lost about then";
                self.judged_of(seen, at, false).map(|judged| Judged::lost(judged.segment, false, why))
            }
        };
        let Some(judged) = judged else { return };
        if silent && self.silent.len() < self.parts.settings.max_flows {
            self.silent.insert(key, *seen);
        }
        self.put(seen, at, judged);
    }

    fn put(&mut self, seen: &Seen, at: Wall, judged: Judged) {
        let key = Key::of(seen);
        let judged = self.shared.of(judged);
        let known = self.table.has(&key);
        if !self.table.put(key, Live { since: at, judged: Arc::clone(&judged) }) {
            self.parts.gauges.untold.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if self.parts.settings.open && !known {
            self.write(&judged, &Told::new(FlowOp::Open, at, seen.ends));
        }
    }

    fn ended(&mut self, seen: &Seen, between: Between) {
        let key = Key::of(seen);
        self.silent.remove(&key);
        let live = match self.table.take(&key) {
            Some(live) => live,
            None if !seen.admitted => return,
            None => {
                let at = seen.began.or(seen.ended).or(seen.at).unwrap_or(between.by);
                let Some(judged) = self.judged_of(seen, at, seen.began.is_some()) else { return };
                Live { since: at, judged: Arc::new(judged) }
            }
        };
        let end = seen.ended.or(seen.at).unwrap_or(between.by).max(live.since);
        // Where the kernel keeps it, that is when it began: an event may have come late.
        let since = seen.began.unwrap_or(live.since);
        let outlived_us = self.outlived(&seen.ends, &live.judged, since, end);
        let told =
            Told { end: Some(end), counts: seen.counts, outlived_us, ..Told::new(FlowOp::Close, since, seen.ends) };
        self.close(&live.judged, &told);
    }

    /// How long a flow lived on after what let it begin had ended.
    fn outlived(&self, ends: &Endpoints, judged: &Judged, since: Wall, end: Wall) -> Option<u64> {
        if !matches!(judged.class, Class::Exact | Class::Ambiguous | Class::Stale) {
            return None;
        }
        let lookback = u64::try_from(self.parts.settings.lookback.as_micros()).unwrap_or(u64::MAX);
        let client = self.place(ends.from);
        let flow = Flow {
            at: since,
            end: Some(end),
            client,
            segment: judged.segment.as_ref().map(|segment| &*segment.name),
            address: ends.to,
            carrier: Carrier::of(ends.protocol, ends.ports[1]),
            started: true,
            denied: false,
            error: ERROR,
        };
        if end.0.saturating_sub(since.0) < lookback {
            return self.index.judge(&flow).outlived_us;
        }
        // What it began by is forgotten; what holds its way open at its end is not.
        let Judgement { class, detail, late_us, .. } = self.index.judge(&Flow { at: end, end: None, ..flow });
        match (class, detail) {
            (Class::Stale, Some(Detail::Cached)) => late_us,
            (Class::None, _) => Some(lookback),
            _ => None,
        }
    }

    fn refused(&mut self, refused: &Refused, between: Between) {
        let at = refused.at.unwrap_or(between.by);
        let Some(mut judged) = self.judged(&refused.ends, at, true, true) else { return };
        // Where the kernel says no time, its way may have been opened since: what was refused was refused before that.
        if refused.at.is_none() && judged.is_open() {
            let since = Wall(between.since.0.saturating_sub(u64::try_from(GATHERED.as_micros()).unwrap_or(u64::MAX)));
            let earlier = self.judged(&refused.ends, since, true, true);
            if let Some(earlier) = earlier.filter(|earlier| !earlier.is_open()) {
                judged = earlier;
            }
        }
        let segment = judged.segment.as_ref().map(|segment| &segment.name);
        self.parts.gauges.refused(segment, if refused.denied { "denied" } else { judged.word() });
        let why = refused.denied.then_some("its address is denied to everybody");
        self.write(&judged, &Told { why, ..Told::new(FlowOp::Refuse, at, refused.ends) });
    }

    fn close(&mut self, judged: &Judged, told: &Told<'_>) {
        let segment = judged.segment.as_ref().map(|segment| &segment.name);
        self.parts.gauges.flow(segment, judged.class, told.counts);
        self.write(judged, told);
    }

    fn write(&mut self, judged: &Judged, told: &Told<'_>) {
        let shard = &mut self.parts.shard;
        judged.record(told, |event| {
            let id = shard.reserve();
            shard.append(id, &Event::Flow(event));
        });
    }

    /// Events were lost: what lives is listed. What is not there any more ended meanwhile, and nobody knows when, nor what it
    /// carried; what is new is judged where the kernel says when it began.
    fn resync(&mut self) {
        let from = self.heard_all;
        let Some(list) = self.list() else { return };
        self.lost = false;
        let living: HashSet<Key, RandomState> = list.iter().map(Key::of).collect();
        let gone = self.table.gone(&living);
        // What ended while the list was made may be told of.
        self.look();
        self.follow();
        self.judge_all();
        let why = format!("its end was not heard of: events were lost between {from} and {}", self.now());
        let mut ended = 0_u64;
        for key in gone {
            let Some(live) = self.table.take(&key) else { continue };
            self.silent.remove(&key);
            ended += 1;
            let judged = Judged::lost(live.judged.segment.clone(), live.judged.started, &why);
            self.close(&judged, &Told::new(FlowOp::Close, live.since, key.ends()));
        }
        let before = self.table.len();
        for seen in &list {
            self.found(seen, false);
        }
        let began = self.table.len() - before;
        tracing::warn!(
            from = %from, ended, began,
            "the kernel had no room for what it had to tell of flows: what ended meanwhile is unknown; give [flow] a larger `buffer`"
        );
    }

    /// Looks for the end of flows whose end nobody tells.
    fn sweep(&mut self) {
        self.failing = None;
        if self.silent.is_empty() {
            return;
        }
        let Some(list) = self.list() else { return };
        let mut silent = std::mem::take(&mut self.silent);
        for seen in list {
            let key = Key::of(&seen);
            if silent.remove(&key).is_some() {
                self.silent.insert(key, seen);
            }
        }
        for (key, seen) in silent {
            let Some(live) = self.table.take(&key) else { continue };
            let why =
                "it began before this node listened: its end was noticed later, and its last minute was not counted";
            let told = Told { counts: seen.counts, why: Some(why), ..Told::new(FlowOp::Close, live.since, seen.ends) };
            self.close(&live.judged, &told);
        }
    }
}
