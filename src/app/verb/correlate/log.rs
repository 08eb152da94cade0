//! The query logs of all nodes, read at once, each by its own thread, and merged by time.
//!
//! Each is read twice: first for what is missing, because a `gap` record may stand long behind what it declares.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};
use std::vec;

use crate::app::cli::Failure;
use crate::app::history::{Fact, Reading as Read};
use crate::audit::{QueriesRead, Recorded, read_records};
use crate::flow::{Detail, Index};
use crate::time::Wall;

/// Facts that go from one thread to another at once, and how many such loads may lie between.
const LOAD: usize = 1024;
const LOADS: usize = 8;
/// A log that says nothing for so long has ended: it beats every 30 seconds.
const SILENCE: u64 = 30_000_000;
/// Facts between two prunings.
const STEP: u64 = 1 << 14;
/// Gaps of one log that are kept apart; the last one has those beyond.
const GAPS: usize = 1 << 16;

type Scouting<'s> = ScopedJoinHandle<'s, Result<Vec<(Wall, Wall)>, String>>;
type Reading<'s> = ScopedJoinHandle<'s, Result<QueriesRead, String>>;

/// One node's log.
struct Log {
    loads: Receiver<Vec<Fact>>,
    facts: vec::IntoIter<Fact>,
    head: Option<Fact>,
    last: Wall,
}

impl Log {
    fn step(&mut self) {
        self.head = self.facts.next().or_else(|| {
            self.facts = self.loads.recv().ok()?.into_iter();
            self.facts.next()
        });
    }
}

/// All of them.
pub(super) struct Logs<'s> {
    logs: Vec<Log>,
    readings: Vec<(String, Reading<'s>)>,
    /// What is missing in any of them, the earliest last.
    gaps: Vec<(Wall, Wall)>,
    taken: u64,
}

impl<'s> Logs<'s> {
    pub(super) fn open<'e: 's>(scope: &'s Scope<'s, 'e>, paths: &[PathBuf]) -> Result<Self, Failure> {
        let scouts: Vec<Scouting<'s>> = paths.iter().cloned().map(|path| scope.spawn(move || missing(path))).collect();
        let mut gaps = Vec::new();
        for scout in scouts {
            let found = scout.join().unwrap_or_else(|_| Err("the reader of a log failed".to_owned()));
            gaps.extend(found.map_err(Failure::Failed)?);
        }
        gaps.sort_unstable_by(|one, other| other.cmp(one));
        let mut opened = Self { logs: Vec::new(), readings: Vec::new(), gaps, taken: 0 };
        for path in paths {
            let (send, loads) = sync_channel(LOADS);
            let name = path.display().to_string();
            let path = path.clone();
            opened.readings.push((name, scope.spawn(move || read(path, &send))));
            opened.logs.push(Log { loads, facts: Vec::new().into_iter(), head: None, last: Wall(0) });
        }
        opened.logs.iter_mut().for_each(Log::step);
        Ok(opened)
    }

    /// Says from when on everything is known: from where the last of the logs begins.
    pub(super) fn begin(&self, index: &mut Index) {
        let heads = || self.logs.iter().filter_map(|log| log.head.as_ref());
        // Of a node whose log says nothing, nothing is known.
        if heads().count() < self.logs.len() {
            return;
        }
        let young = heads().filter(|fact| !fact.is_first()).map(|fact| fact.at).max();
        match young {
            Some(at) => index.begin(at, false),
            None => index.begin(Wall(0), true),
        }
    }

    /// Hands over what was written until then.
    pub(super) fn advance(&mut self, index: &mut Index, until: u64) {
        while let Some((from, to)) = self.gaps.pop_if(|(from, _)| from.0 <= until) {
            index.gap(from, to, Detail::LogGap);
        }
        loop {
            let heads = self.logs.iter_mut().filter(|log| log.head.is_some());
            let Some(log) = heads.min_by_key(|log| log.head.as_ref().map(|fact| fact.at)) else { return };
            let Some(fact) = log.head.take_if(|fact| fact.at.0 <= until) else { return };
            fact.apply(index);
            log.last = log.last.max(fact.at);
            log.step();
            if log.head.is_none() {
                index.gap(Wall(log.last.0.saturating_add(SILENCE)), Wall(u64::MAX), Detail::LogGap);
            }
            self.taken += 1;
            if self.taken.is_multiple_of(STEP) {
                index.prune(fact.at);
            }
        }
    }

    /// Stops reading; what was read of each log.
    pub(super) fn finish(self) -> Result<Vec<String>, Failure> {
        drop(self.logs);
        let mut told = Vec::new();
        for (name, reading) in self.readings {
            let read = reading.join().unwrap_or_else(|_| Err(format!("{name}: its reader failed")));
            told.push(read.map_err(Failure::Failed)?.to_string());
        }
        Ok(told)
    }
}

/// What a log lacks.
fn missing(path: PathBuf) -> Result<Vec<(Wall, Wall)>, String> {
    let (mut gaps, mut read): (Vec<(Wall, Wall)>, _) = (Vec::new(), Read::default());
    let mut add = |fact: Fact| {
        let Some((from, to)) = fact.missing() else { return };
        let full = gaps.len() >= GAPS;
        match gaps.last_mut() {
            Some(last) if full || (last.0 <= to && from <= last.1) => *last = (last.0.min(from), last.1.max(to)),
            _ => gaps.push((from, to)),
        }
    };
    let mut each = |record: Recorded<'_>| read.take(record).into_iter().flatten().for_each(&mut add);
    read_records(&[path], &mut |_| (), &mut each).map_err(|error| error.to_string())?;
    read.rest(Wall(u64::MAX)).into_iter().for_each(add);
    Ok(gaps)
}

fn read(path: PathBuf, send: &SyncSender<Vec<Fact>>) -> Result<QueriesRead, String> {
    let (mut load, mut read) = (Vec::with_capacity(LOAD), Read::default());
    let mut each = |record: Recorded<'_>| {
        load.extend(read.take(record).into_iter().flatten());
        if load.len() >= LOAD {
            // Nobody wants more: all flows are judged.
            let _ = send.send(std::mem::replace(&mut load, Vec::with_capacity(LOAD)));
        }
    };
    let account = read_records(&[path], &mut |_| (), &mut each).map_err(|error| error.to_string())?;
    load.extend(read.rest(Wall(u64::MAX)));
    let _ = send.send(load);
    Ok(account)
}
