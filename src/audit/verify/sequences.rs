//! Which sequences of which shard were seen, and what the holes mean.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::report::{Finding, Report};
use crate::audit::RecordId;
use crate::audit::ranges::{Range, Ranges};

/// Holes and shards that are followed, about 100 MB; a log has one range per shard and hole.
const FOLLOWED: usize = 1 << 20;

/// How long a query may be on its way, in microseconds: the 1.9 s that the gate allows, and room for a slow disk.
/// Ids are given at receipt and written with the answer, so holes this close to where a process stopped are queries
/// that were never answered.
const ON_ITS_WAY: u64 = 5_000_000;

/// One shard of one process.
#[derive(Default)]
struct Track {
    seen: Ranges,
    declared: Ranges,
    /// The highest sequence that a heartbeat or the last record named, and when.
    reached: u64,
    reached_at: u64,
}

/// One process.
#[derive(Default)]
struct Boot {
    first_at: u64,
    last_at: u64,
    /// It ended in order.
    closed: bool,
    /// When it first found that another program had taken its file away: what is missing from then on is not too old to be
    /// kept.
    reopened_at: Option<u64>,
}

/// Everything seen so far.
#[derive(Default)]
pub(super) struct Sequences {
    tracks: HashMap<(u64, u16), Track>,
    boots: BTreeMap<u64, Boot>,
    /// Ranges over all tracks.
    followed: usize,
    too_many: bool,
}

impl Sequences {
    /// Notes a record; false where its id was seen before.
    pub(super) fn see(&mut self, id: RecordId, at: u64) -> bool {
        let known = self.tracks.contains_key(&(id.boot, id.shard));
        if self.too_many || (self.followed >= FOLLOWED && !known) {
            self.too_many = true;
            return true;
        }
        let boot = self.boots.entry(id.boot).or_insert(Boot { first_at: at, ..Boot::default() });
        boot.first_at = boot.first_at.min(at);
        boot.last_at = boot.last_at.max(at);
        let track = self.tracks.entry((id.boot, id.shard)).or_default();
        let before = track.seen.len();
        let new = track.seen.insert(id.sequence, at);
        self.followed = (self.followed + track.seen.len()).saturating_sub(before) + usize::from(!known);
        self.too_many = self.followed > FOLLOWED;
        new
    }

    /// Notes what a `gap` record of the shard of `id` names.
    pub(super) fn declare(&mut self, id: RecordId, ranges: &[(u64, u64)]) {
        if let Some(track) = self.tracks.get_mut(&(id.boot, id.shard)) {
            let before = track.declared.len();
            for (first, last) in ranges {
                track.declared.cover(*first, *last);
            }
            self.followed = (self.followed + track.declared.len()).saturating_sub(before);
        }
    }

    /// Notes how far the shards of a process had come.
    pub(super) fn reach(&mut self, boot: u64, sequences: &BTreeMap<u16, u64>, at: u64, closed: bool) {
        for (shard, sequence) in sequences.iter().filter(|(_, sequence)| **sequence > 0) {
            if self.tracks.len() >= FOLLOWED {
                self.too_many = true;
                return;
            }
            let track = self.tracks.entry((boot, *shard)).or_default();
            if *sequence > track.reached {
                (track.reached, track.reached_at) = (*sequence, at);
            }
        }
        if let Some(boot) = self.boots.get_mut(&boot) {
            boot.closed |= closed;
        }
    }

    /// Notes that another program took the file away from a process.
    pub(super) fn reopen(&mut self, boot: u64, at: u64) {
        if let Some(boot) = self.boots.get_mut(&boot) {
            boot.reopened_at.get_or_insert(at);
        }
    }

    /// Whether a process ended without a word so soon after this that it may have been doing then what it did last.
    pub(super) fn was_killed(&self, boot: u64, at: u64) -> bool {
        self.boots.get(&boot).is_some_and(|boot| !boot.closed && boot.last_at.saturating_sub(at) < ON_ITS_WAY)
    }

    /// Says what every hole is.
    pub(super) fn conclude(self, report: &mut Report) {
        report.boots = self.boots.len() as u64;
        if self.too_many {
            report.find(Finding::TooMany);
            return;
        }
        let keys: BTreeSet<_> = self.tracks.keys().copied().collect();
        for (boot_number, shard) in keys {
            let (Some(track), Some(boot)) = (self.tracks.get(&(boot_number, shard)), self.boots.get(&boot_number))
            else {
                continue;
            };
            // The first record of a process is the first of shard 0.
            let whole = self.tracks.get(&(boot_number, 0)).is_some_and(|own| own.seen.contains(1));
            let end = track.seen.last().unwrap_or(0).max(track.reached);
            let name = |part: Range| (RecordId { boot: boot_number, shard, sequence: part.first }, part.last);
            for hole in track.seen.holes(end, track.reached_at) {
                for part in track.declared.missing_of(hole) {
                    let (first, last) = name(part);
                    let head = part.first == 1 || hole.at.saturating_sub(boot.first_at) < ON_ITS_WAY;
                    // That is noticed within a second; who asked before may have been answered after it.
                    let taken = boot.reopened_at.is_some_and(|at| at < hole.at.saturating_add(ON_ITS_WAY));
                    let tail = boot.last_at.saturating_sub(hole.at) < ON_ITS_WAY;
                    report.find(if !whole && head && !taken {
                        Finding::BeforeKept { first, last }
                    } else if !boot.closed && tail {
                        Finding::InFlight { first, last }
                    } else {
                        Finding::Gap { first, last }
                    });
                }
                let mut undeclared = Ranges::default();
                for part in track.declared.missing_of(hole) {
                    undeclared.cover(part.first, part.last);
                }
                for part in undeclared.missing_of(hole) {
                    let (first, last) = name(part);
                    report.find(Finding::Declared { first, last });
                }
            }
        }
    }
}
