//! The enforcer's thread: it owns the firewall, and who holds what in it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use prost::Message as _;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::holds::{Before, Holder, Holds, NOBODY};
use super::journal::Journal;
use crate::firewall::remote::message::{
    Became, CHUNK, Changes, CutMessage, Cutting, Done, EndMessage, Held, Holds as HoldsMessage, LayoutMessage, Report,
    What,
};
use crate::firewall::{Firewall, FirewallError};
use crate::grant::Change;
use crate::net::{Element, Prefix};
use crate::policy::{Layout, NeverGranted};
use crate::time::{Clock, Tick, Wall};

/// How a kept layout begins; the name of the start of the machine follows.
const LAYOUT: &str = "outgate-layout 1 ";
/// How often it looks after itself when nobody asks.
const IDLE: Duration = Duration::from_millis(250);
/// How often what is over is forgotten, and the firewall asked how full it is.
const SWEEP: Duration = Duration::from_secs(5);
/// From so many elements on they are restored instead of listed.
const RESTORED: usize = 50_000;
/// Orders of all resolvers that may wait.
const QUEUE: usize = 1024;
/// The longest that anything is held: a rule's longest `hold`, and its grace (docs/policy.md).
const LONGEST: Duration = Duration::from_secs(25 * 3600);

/// What the thread is given.
pub struct DeskParts {
    /// The firewall of this gateway, before it was adopted.
    pub firewall: Box<dyn Firewall>,
    /// The names of the resolvers; their place is their `Holder`.
    pub resolvers: Vec<String>,
    /// Where the journal and the layout are.
    pub state: PathBuf,
    /// What is never opened, whoever asks.
    pub never: NeverGranted,
    /// How many elements one resolver may hold.
    pub max_grants: usize,
    /// The clock.
    pub clock: Clock,
}

/// An order of a resolver, and where its reports go.
pub(super) struct Task {
    pub(super) who: Holder,
    pub(super) number: u64,
    pub(super) what: What,
    /// Its place among those of its connection that are under way.
    pub(super) place: Option<OwnedSemaphorePermit>,
    /// The connection that it came by: one that ended is not obeyed any more.
    pub(super) connection: Arc<AtomicBool>,
    pub(super) reply: mpsc::UnboundedSender<Report>,
}

/// What others may read of the thread.
#[derive(Debug, Default)]
pub struct Figures {
    /// Elements held by each resolver.
    pub held: Vec<AtomicU64>,
    /// How many different layouts the resolvers gave.
    pub layouts: AtomicU64,
    /// Changes that were refused because the address is never granted.
    pub never: AtomicU64,
    /// Changes that were refused because the resolver holds too many.
    pub full: AtomicU64,
    /// Changes that the firewall did not take.
    pub failed: AtomicU64,
    /// Times that somebody else's change was repaired.
    pub repairs: AtomicU64,
    /// Elements and capacity of the fullest table.
    pub load: [AtomicU64; 2],
    /// It is known what is in force.
    pub usable: AtomicBool,
}

struct Desk {
    firewall: Box<dyn Firewall>,
    holds: Holds,
    /// Elements of each holder, by count.
    counts: Vec<usize>,
    journal: Journal,
    never: NeverGranted,
    max_grants: usize,
    layout_file: PathBuf,
    /// The layout that each resolver gave last.
    layouts: Vec<Option<Layout>>,
    /// The one in force.
    layout: Layout,
    /// What of it ends by itself; what is left is reckoned from the start of the machine.
    ends: Vec<EndMessage>,
    sweep_at: Tick,
    figures: Arc<Figures>,
    clock: Clock,
}

/// Takes the firewall over and starts the thread: where orders go, and what can be read of it.
///
/// # Errors
/// The firewall or the state cannot be used, in a sentence.
pub(super) fn start(parts: DeskParts) -> Result<(SyncSender<Task>, Arc<Figures>), String> {
    let DeskParts { firewall, resolvers, state, never, max_grants, clock } = parts;
    let mut holds = Holds::default();
    let unusable = |error: std::io::Error| {
        let remedy = match error.kind() {
            std::io::ErrorKind::StorageFull => "free some space there",
            _ => "let the user that runs outgate write there",
        };
        format!("{}: {error}; {remedy}", state.display())
    };
    let (journal, known) = Journal::open(&state, &resolvers, &mut holds).map_err(unusable)?;
    let layout_file = state.join("layout");
    // Without one nothing has a segment, and nothing passes. That of another start of the machine may be long out of force.
    let (layout, ends) = read_layout(&layout_file, journal.boot()).unwrap_or_default();
    let figures = Figures { held: resolvers.iter().map(|_| AtomicU64::new(0)).collect(), ..Figures::default() };
    let figures = Arc::new(figures);
    let mut desk = Desk {
        firewall,
        holds,
        counts: vec![0; resolvers.len()],
        journal,
        never,
        max_grants,
        layout_file,
        layouts: resolvers.iter().map(|_| None).collect(),
        layout,
        ends,
        sweep_at: Tick(0),
        figures: Arc::clone(&figures),
        clock,
    };
    let now = desk.clock.tick();
    desk.holds.sweep(now);
    desk.end(now);
    desk.take_over(known, now).map_err(|error| format!("firewall \"{}\": {error}", desk.firewall.name()))?;
    desk.tend(now);
    let (tasks, waiting) = sync_channel(QUEUE);
    let thread = std::thread::Builder::new().name("enforcer".into());
    thread
        .spawn(move || desk.run(&waiting))
        .map_err(|error| format!("no thread: {error}; raise the limit of threads"))?;
    Ok((tasks, figures))
}

impl Desk {
    fn run(mut self, tasks: &Receiver<Task>) {
        loop {
            let task = match tasks.recv_timeout(IDLE) {
                Ok(task) => Some(task),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let now = self.clock.tick();
            self.end(now);
            self.repair(now);
            if self.sweep_at <= now {
                self.tend(now);
            }
            if let Some(task) = task
                && task.connection.load(Ordering::Acquire)
            {
                self.obey(task);
            }
        }
    }

    /// Puts in force what is held, and nothing else; what is open and nobody is known to hold stays until its end.
    fn take_over(&mut self, known: bool, now: Tick) -> Result<(), FirewallError> {
        let in_force: Vec<_> = if known { self.holds.in_force(now).collect() } else { Vec::new() };
        // To list that much would take long.
        if in_force.len() >= RESTORED && self.firewall.restore(&self.layout, &in_force, now)? {
            self.set_usable(true);
            return Ok(());
        }
        let found = self.firewall.adopt(&self.layout, now)?;
        let mut changes = Vec::new();
        let mut there: HashMap<Element, Tick> = HashMap::with_capacity(found.len());
        for (element, until) in found {
            there.insert(element, until);
            if self.holds.has(&element) {
                continue;
            }
            if known {
                changes.push(Change::Close { element });
            } else {
                self.holds.change(NOBODY, &Change::Open { element, until }, now);
            }
        }
        // The kernel counts in milliseconds and may be a little late.
        let slack = Duration::from_millis(50);
        let is_there = |element: &Element, until: Tick| {
            there.get(element).is_some_and(|held| held.since(until) <= slack && until.since(*held) <= slack)
        };
        // Where nobody is known to hold anything, what was found is all there is.
        let missing = in_force.into_iter().filter(|(element, until)| !is_there(element, *until));
        changes.extend(missing.map(|(element, until)| Change::Open { element, until }));
        let failed = self.firewall.apply(&changes, now)?;
        if !failed.is_empty() {
            return Err(FirewallError::Kernel {
                what: "putting in force what is held".into(),
                why: format!("{} of {} changes were not taken", failed.len(), changes.len()),
            });
        }
        self.set_usable(true);
        Ok(())
    }

    /// Where it is not, the doors answer nobody: to the resolvers it is a gateway that is silent.
    fn set_usable(&self, usable: bool) {
        self.figures.usable.store(usable, Ordering::Release);
    }

    fn is_usable(&self) -> bool {
        self.figures.usable.load(Ordering::Acquire)
    }

    fn repair(&mut self, now: Tick) {
        let usable = self.is_usable();
        if usable && matches!(self.firewall.drifted(), Ok(false)) {
            return;
        }
        let written = self
            .journal
            .trial()
            .map_err(|error| FirewallError::Kernel { what: "writing the journal".into(), why: error.to_string() });
        match written.and_then(|()| self.take_over(true, now)) {
            Ok(()) => {
                self.figures.repairs.fetch_add(1, Ordering::Relaxed);
                tracing::warn!("the firewall was changed by somebody else, or had failed; it is repaired");
            }
            Err(error) => {
                self.set_usable(false);
                if usable {
                    tracing::error!(%error, "the firewall cannot be used; nothing is acknowledged until it can");
                }
            }
        }
    }

    /// Puts the layout in force without what ended by itself: no resolver may be there to say so.
    fn end(&mut self, now: Tick) {
        let (ended, rest): (Vec<_>, _) = std::mem::take(&mut self.ends).into_iter().partition(|end| end.left <= now.0);
        self.ends = rest;
        if ended.is_empty() {
            return;
        }
        for end in ended {
            tracing::info!(segment = end.segment, rule = end.network, "a static rule, or observing, has ended");
            end.take_from(&mut self.layout);
        }
        // Where it is not usable, it is laid out when it is repaired.
        if self.is_usable()
            && let Err(error) = self.firewall.arrange(&self.layout)
        {
            self.set_usable(false);
            tracing::error!(%error, "what ended could not be closed; nothing is acknowledged until it is");
        }
        self.keep_layout();
    }

    fn tend(&mut self, now: Tick) {
        self.sweep_at = now + SWEEP;
        self.holds.sweep(now);
        self.counts.fill(0);
        for (holder, ..) in self.holds.all() {
            if let Some(count) = self.counts.get_mut(usize::from(holder)) {
                *count += 1;
            }
        }
        if let Err(error) = self.journal.tidy(&self.holds) {
            tracing::warn!(%error, "the journal could not be rewritten; it goes on growing");
        }
        if let Ok(Some(load)) = self.firewall.load() {
            let [elements, capacity] = &self.figures.load;
            elements.store(load.elements.into(), Ordering::Relaxed);
            capacity.store(load.capacity.into(), Ordering::Relaxed);
        }
        self.show();
    }

    fn show(&self) {
        for (shown, count) in self.figures.held.iter().zip(&self.counts) {
            shown.store(*count as u64, Ordering::Relaxed);
        }
    }

    fn obey(&mut self, task: Task) {
        let Task { who, number, what, reply, place: _place, .. } = task;
        // Nobody may wait any more.
        let report = |became| drop(reply.send(Report { number, became: Some(became) }));
        let became = match what {
            What::Adopt(layout) => match self.lay(who, &layout) {
                Ok(()) => {
                    let now = self.clock.tick();
                    let held: Vec<_> = self.holds.of(who, now).collect();
                    let mut rest = held.chunks(CHUNK).peekable();
                    while let Some(elements) = rest.next() {
                        let elements = elements.iter().map(|(element, until)| Held::new(element, until.since(now)));
                        let holds = HoldsMessage { elements: elements.collect(), more: rest.peek().is_some() };
                        report(Became::Holds(holds));
                    }
                    if !held.is_empty() {
                        return;
                    }
                    Became::Holds(HoldsMessage::default())
                }
                Err(why) => Became::Refused(why),
            },
            What::Arrange(layout) => match self.lay(who, &layout) {
                Ok(()) => Became::Done(Done::default()),
                Err(why) => Became::Refused(why),
            },
            What::Apply(changes) => match self.apply(who, &changes) {
                Ok(failed) => Became::Done(Done { failed }),
                Err(why) => Became::Refused(why),
            },
            What::Cut(cutting) => return self.cut(&cutting, number, reply),
            What::Hello(_) | What::Beat(_) => return,
        };
        report(became);
    }

    /// Lays out what a resolver wants: its own segments and static rules, and what is denied by any of them.
    fn lay(&mut self, who: Holder, message: &LayoutMessage) -> Result<(), String> {
        let given = message.read().ok_or("the layout cannot be read")?;
        if !self.is_usable() {
            return Err("the firewall cannot be used".into());
        }
        let mut denied: Vec<Prefix> = given.denied.clone();
        let others = self.layouts.iter().enumerate().filter(|(at, _)| *at != usize::from(who));
        denied
            .extend(others.filter_map(|(_, layout)| layout.as_ref()).flat_map(|layout| layout.denied.iter().copied()));
        denied.sort_unstable();
        denied.dedup();
        let next = Layout { segments: given.segments.clone(), denied };
        if next != self.layout {
            if let Err(error) = self.firewall.arrange(&next) {
                self.set_usable(false);
                return Err(error.to_string());
            }
            self.layout = next;
        }
        let now = self.clock.tick();
        let reckoned = |end: &EndMessage| EndMessage { left: end.left.saturating_add(now.0), ..end.clone() };
        self.ends = message.ends.iter().map(reckoned).collect();
        self.keep_layout();
        if let Some(layout) = self.layouts.get_mut(usize::from(who)) {
            *layout = Some(given);
        }
        let mut different: Vec<&Layout> = Vec::new();
        for layout in self.layouts.iter().flatten() {
            if !different.contains(&layout) {
                different.push(layout);
            }
        }
        self.figures.layouts.store(different.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn keep_layout(&self) {
        let message = LayoutMessage { ends: self.ends.clone(), ..LayoutMessage::new(&self.layout, Wall(0)) };
        let next = self.layout_file.with_extension("next");
        let mut kept = format!("{LAYOUT}{}\n", self.journal.boot()).into_bytes();
        message.encode_raw(&mut kept);
        let written = std::fs::write(&next, kept);
        if let Err(error) = written.and_then(|()| std::fs::rename(&next, &self.layout_file)) {
            // An older one may say more than is open by now.
            drop(std::fs::remove_file(&self.layout_file));
            drop(std::fs::remove_file(&next));
            tracing::warn!(%error, "the layout could not be kept; after a restart nothing new passes until a resolver is heard");
        }
    }

    /// Makes a resolver's changes; the indexes of those that failed.
    fn apply(&mut self, who: Holder, changes: &Changes) -> Result<Vec<u32>, String> {
        if !self.is_usable() {
            return Err("the firewall cannot be used".into());
        }
        let now = self.clock.tick();
        let mut failed: Vec<u32> = Vec::new();
        let mut wanted: Vec<(u32, Change)> = Vec::with_capacity(changes.changes.len());
        for (index, held) in (0..).zip(&changes.changes) {
            match held.change(now).filter(|change| self.admits(who, change, wanted.len(), now)) {
                Some(change) => wanted.push((index, change)),
                None => failed.push(index),
            }
        }
        let ends = wanted.iter().map(|(_, change)| match change {
            Change::Open { element, until } => (element, Some(*until)),
            Change::Close { element } => (element, None),
        });
        if let Err(error) = self.journal.write(who, ends) {
            self.set_usable(false);
            tracing::error!(%error, "the journal in the state directory cannot be written; nothing is acknowledged until it can");
            return Err(format!("the journal cannot be written: {error}"));
        }
        let mut made: Vec<(u32, Before)> = Vec::with_capacity(wanted.len());
        let mut in_force = Vec::with_capacity(wanted.len());
        for (index, change) in &wanted {
            let (changed, before) = self.holds.change(who, change, now);
            self.count(who, &before, change);
            in_force.extend(changed.map(|change| (made.len(), change)));
            made.push((*index, before));
        }
        let orders: Vec<Change> = in_force.iter().map(|(_, change)| *change).collect();
        let applied = self.firewall.apply(&orders, now);
        let unmade: Vec<usize> = match &applied {
            Ok(failed) => failed.iter().filter_map(|at| in_force.get(*at).map(|(place, _)| *place)).collect(),
            Err(_) => (0..made.len()).collect(),
        };
        self.put_back(who, made, &unmade, &mut failed);
        self.show();
        if let Err(error) = applied {
            // What is in force is not known any more.
            self.set_usable(false);
            tracing::error!(%error, "the firewall did not take a batch; nothing is acknowledged until it is repaired");
            return Err(error.to_string());
        }
        failed.sort_unstable();
        Ok(failed)
    }

    /// Takes back, newest first, what did not come in force.
    fn put_back(&mut self, who: Holder, made: Vec<(u32, Before)>, unmade: &[usize], failed: &mut Vec<u32>) {
        if unmade.is_empty() {
            return;
        }
        self.figures.failed.fetch_add(unmade.len() as u64, Ordering::Relaxed);
        let back: Vec<_> = (0..).zip(made).filter(|(place, _)| unmade.binary_search(place).is_ok()).collect();
        let ends = back.iter().rev().map(|(_, (_, before))| (before.element(), before.of(who)));
        if let Err(error) = self.journal.write(who, ends) {
            tracing::warn!(%error, "the journal says of changes that failed that they were made");
        }
        for (_, (index, before)) in back.into_iter().rev() {
            self.holds.put_back(before);
            failed.push(index);
        }
    }

    fn count(&mut self, who: Holder, before: &Before, change: &Change) {
        let Some(count) = self.counts.get_mut(usize::from(who)) else { return };
        match (before.of(who), change) {
            (None, Change::Open { .. }) => *count += 1,
            (Some(_), Change::Close { .. }) => *count = count.saturating_sub(1),
            _ => {}
        }
    }

    /// Whether a change may be made here, whatever the resolver decided.
    fn admits(&self, who: Holder, change: &Change, more: usize, now: Tick) -> bool {
        let Change::Open { element, until } = change else { return true };
        if let Some(why) = self.never.refuses(element.to) {
            if self.figures.never.fetch_add(1, Ordering::Relaxed) == 0 {
                tracing::error!(%element, %why, "a resolver wants to open what is never granted; it is refused, and the next ones are counted");
            }
            return false;
        }
        let held = self.counts.get(usize::from(who)).copied().unwrap_or(usize::MAX);
        if held.saturating_add(more) >= self.max_grants && !self.holds.has(element) {
            if self.figures.full.fetch_add(1, Ordering::Relaxed) == 0 {
                tracing::error!(
                    max_grants = self.max_grants,
                    "a resolver holds as many elements as it may; raise max_grants"
                );
            }
            return false;
        }
        until.since(now) <= LONGEST
    }

    /// Ends connections, in a thread of its own: it may take long.
    fn cut(&self, cutting: &Cutting, number: u64, reply: mpsc::UnboundedSender<Report>) {
        let cuts: Option<Arc<[_]>> = cutting.cuts.iter().map(CutMessage::read).collect();
        let became = move |became| Report { number, became: Some(became) };
        let Some(cuts) = cuts else {
            return drop(reply.send(became(Became::Refused("what is to be cut cannot be read".into()))));
        };
        let cutter = self.firewall.cutter(&cuts);
        let run = move || {
            let ended = match cutter() {
                Ok(count) => Became::Ended(count),
                Err(error) => Became::Refused(error.to_string()),
            };
            drop(reply.send(became(ended)));
        };
        // Without a thread the resolver hears nothing, and says so.
        drop(std::thread::Builder::new().name("cut".into()).spawn(run));
    }
}

/// What was kept in this start of the machine.
fn read_layout(path: &Path, boot: &str) -> Option<(Layout, Vec<EndMessage>)> {
    let kept = std::fs::read(path).ok()?;
    let begin = format!("{LAYOUT}{boot}\n");
    let message = LayoutMessage::decode(kept.strip_prefix(begin.as_bytes()).filter(|_| !boot.is_empty())?).ok()?;
    Some((message.read()?, message.ends))
}

#[cfg(test)]
mod tests;
