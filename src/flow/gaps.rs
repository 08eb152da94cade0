//! Gaps: times of which not everything is known.

use super::Detail;

/// Gaps that are kept apart; beyond, the two nearest are one.
const GAPS: usize = 1024;

/// Times that lack something, in order and apart, and what they lack.
#[derive(Default)]
pub(super) struct Gaps {
    lost: Vec<(u64, u64, Detail)>,
}

impl Gaps {
    pub(super) fn add(&mut self, from: u64, to: u64, what: Detail) {
        let (mut from, mut to, mut what) = (from.min(to), to.max(from), what);
        self.lost.retain(|(start, end, kind)| {
            let apart = *end < from || to < *start;
            if !apart {
                (from, to, what) = (from.min(*start), to.max(*end), what.min(*kind));
            }
            apart
        });
        let at = self.lost.partition_point(|(start, ..)| *start < from);
        self.lost.insert(at, (from, to, what));
        if self.lost.len() > GAPS {
            let nearest = self.lost.windows(2).enumerate().min_by_key(|(_, pair)| match pair {
                [(_, end, _), (start, ..)] => start - end,
                _ => u64::MAX,
            });
            if let Some(at) = nearest.map(|(at, _)| at) {
                let (_, end, kind) = self.lost.remove(at + 1);
                if let Some((_, to, what)) = self.lost.get_mut(at) {
                    (*to, *what) = (end, (*what).min(kind));
                }
            }
        }
    }

    /// What is lacking of this time, both ends included.
    pub(super) fn within(&self, from: u64, to: u64) -> Option<Detail> {
        let at = self.lost.partition_point(|(_, end, _)| *end < from);
        self.lost.get(at).filter(|(start, ..)| *start <= to).map(|(.., what)| *what)
    }

    pub(super) fn prune(&mut self, horizon: u64) {
        self.lost.retain(|(_, end, _)| *end >= horizon);
    }
}
