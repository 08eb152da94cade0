//! Reading a log in its order: what it says, and where it lacks records.
//!
//! Records are missing
//! - where a line or a file could not be read, from the record before it to the one behind it; not so where a killed process
//!   left a line that it was writing, for its answer was never sent;
//! - before a `gap` record, from the last record of its shard on, or from a heartbeat by which what is missing had not been
//!   asked for yet;
//! - before an `open` of another start of the machine, where nobody closed the log: the kernel had not written all of it;
//! - before a `reopen`;
//! - where the log's own records, which are numbered one by one, lack a number, or another process writes than the one that
//!   opened the log: a file between is gone.

use std::collections::{BTreeMap, HashMap};

use super::Fact;
use crate::audit::{Notice, RecordId, Recorded};
use crate::time::Wall;

/// A log whose next record is so much older goes on with the file of another one.
const OTHER: u64 = 60_000_000;

/// How far a log has been read.
#[derive(Debug, Default)]
pub(in crate::app) struct Reading {
    /// When the record before was written, and the latest of all.
    before: Option<(Wall, Wall)>,
    /// Lines and files that could not be read since.
    missing: u64,
    writer: Option<Writer>,
}

/// The process that writes the log.
#[derive(Debug, Default)]
struct Writer {
    boot: u64,
    /// The start of the machine.
    machine: Option<Box<str>>,
    /// It ended in order.
    closed: bool,
    /// The number of the last record of the log about itself.
    own: Option<u64>,
    /// When each shard wrote last.
    shards: HashMap<u16, Wall>,
    /// The last heartbeat: when, and the number that each shard had come to.
    beat: Option<(Wall, BTreeMap<u16, u64>)>,
}

impl Reading {
    /// What a record says, behind what is missing before it.
    pub(in crate::app) fn take(&mut self, record: Recorded<'_>) -> [Option<Fact>; 2] {
        let (id, notice) = match record {
            Recorded::Query(query) => (&query.id, None),
            Recorded::Grant(grant) => (&grant.id, None),
            Recorded::Notice(notice) => (&notice.id, Some(notice)),
            Recorded::Missing => {
                self.missing += 1;
                return [None, None];
            }
            Recorded::Flow(_) | Recorded::Policy(_) => return [None, None],
        };
        let id = id.parse::<RecordId>().ok();
        let Some(fact) = Fact::of(record) else { return [None, None] };
        let at = fact.at;
        let from = self.before.and_then(|(before, latest)| self.lacks(id, notice, at, before, latest));
        self.note(id, notice, at);
        self.missing = 0;
        self.before = Some((at, self.before.map_or(at, |(_, latest)| latest.max(at))));
        [from.map(|from| Fact::gap(from, at)), Some(fact)]
    }

    /// What is missing behind the last record, up to `now`.
    pub(in crate::app) fn rest(&self, now: Wall) -> Option<Fact> {
        let (before, _) = self.before.filter(|_| self.missing > 0)?;
        Some(Fact::gap(before, now))
    }

    /// When the latest record was written.
    pub(in crate::app) fn latest(&self) -> Option<Wall> {
        self.before.map(|(_, latest)| latest)
    }

    /// From when on records are missing before this one.
    fn lacks(
        &self,
        id: Option<RecordId>,
        notice: Option<&Notice<'_>>,
        at: Wall,
        before: Wall,
        latest: Wall,
    ) -> Option<Wall> {
        let op = notice.map_or("", |notice| &*notice.op);
        let opened = notice.filter(|notice| &*notice.op == "open" && notice.why.as_deref() == Some("start"));
        let of_another_log = at.0.saturating_add(OTHER) < latest.0;
        let same_machine = |notice: &Notice<'_>| {
            let machine = notice.machine.as_deref().filter(|machine| !machine.is_empty());
            machine.is_some() && self.writer.as_ref().is_some_and(|writer| writer.machine.as_deref() == machine)
        };
        let unfinished = opened.is_some_and(|notice| notice.torn > 0 && same_machine(notice));
        let mut from = (self.missing > u64::from(unfinished) || op == "reopen").then_some(before);
        if let Some(notice) = notice.filter(|_| op == "gap") {
            let begin = self.begin_of_gap(id, notice).unwrap_or(before);
            from = Some(from.map_or(begin, |from| from.min(begin)));
        }
        let (Some(id), Some(writer)) = (id, &self.writer) else { return from };
        let torn_apart = match opened {
            Some(notice) if !notice.is_first() => {
                let follows = notice.previous().is_some_and(|boot| boot == writer.boot);
                !follows || !(writer.closed || same_machine(notice))
            }
            Some(_) => false,
            None if id.boot != writer.boot => true,
            None => id.shard == 0 && writer.own.is_some_and(|own| id.sequence > own + 1),
        };
        from.or((torn_apart && !of_another_log).then_some(before))
    }

    /// When what a `gap` record declares can have been answered first.
    fn begin_of_gap(&self, id: Option<RecordId>, notice: &Notice<'_>) -> Option<Wall> {
        if let Some(first) = notice.first() {
            return Some(first);
        }
        let (id, writer) = (id?, self.writer.as_ref()?);
        let wrote = writer.shards.get(&id.shard).copied();
        let lost = notice.ranges.first().map(|(first, _)| *first);
        let beat = writer.beat.as_ref().filter(|(_, sequences)| {
            let reached = sequences.get(&id.shard);
            lost.zip(reached).is_some_and(|(lost, reached)| *reached < lost)
        });
        // A shard that never wrote: since its process began.
        wrote.max(beat.map(|(at, _)| *at)).or_else(|| writer.shards.values().min().copied())
    }

    fn note(&mut self, id: Option<RecordId>, notice: Option<&Notice<'_>>, at: Wall) {
        let Some(id) = id else { return };
        if self.writer.as_ref().is_none_or(|writer| writer.boot != id.boot) {
            self.writer = Some(Writer { boot: id.boot, ..Writer::default() });
        }
        let Some(writer) = &mut self.writer else { return };
        writer.shards.insert(id.shard, at);
        if id.shard == 0 {
            writer.own = Some(id.sequence);
        }
        let Some(notice) = notice else { return };
        writer.closed = &*notice.op == "close";
        match &*notice.op {
            "open" | "reopen" => writer.machine = notice.machine.as_deref().map(Into::into),
            "heartbeat" => writer.beat = Some((at, notice.sequences.clone())),
            _ => {}
        }
    }
}
