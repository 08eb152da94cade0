//! What becomes of a batch while its requests are made.

use std::collections::VecDeque;
use std::time::Duration;

use super::super::Delivered;

/// The records of one batch, by what is known of them.
#[derive(Default)]
pub(super) struct Tally {
    /// How many were taken.
    pub(super) taken: usize,
    /// To be offered again.
    pub(super) again: Vec<usize>,
    /// Never to be taken.
    pub(super) refused: Vec<(usize, String)>,
    /// Not taken, by a server that did not say for certain that the record is the reason. It is, where others were taken.
    pub(super) suspects: Vec<(usize, String)>,
    /// Why those are to be offered again.
    pub(super) why: Option<String>,
    wait: Option<Duration>,
}

impl Tally {
    /// No more requests now: these and all that was not sent are for later.
    pub(super) fn later(
        &mut self,
        piece: Vec<usize>,
        unsent: &mut VecDeque<Vec<usize>>,
        why: String,
        wait: Option<Duration>,
    ) {
        self.again.extend(piece);
        self.again.extend(unsent.drain(..).flatten());
        self.why = Some(why);
        self.wait = wait;
    }

    /// A reply that speaks of each record of a request.
    pub(super) fn each(
        &mut self,
        piece: &[usize],
        again: &[usize],
        suspects: Vec<(usize, String)>,
        why: Option<String>,
    ) {
        self.taken += piece.len().saturating_sub(again.len() + suspects.len());
        let index = |at: usize| piece.get(at).copied();
        self.again.extend(again.iter().filter_map(|at| index(*at)));
        self.suspects.extend(suspects.into_iter().filter_map(|(at, why)| Some((index(at)?, why))));
        self.why = why.or(self.why.take());
    }

    /// What the engine is told.
    pub(super) fn done(mut self) -> Delivered {
        if self.taken > 0 {
            self.refused.append(&mut self.suspects);
        } else {
            self.why = self.why.or_else(|| Some(self.suspects.first()?.1.clone()));
            self.again.extend(self.suspects.iter().map(|(index, _)| *index));
        }
        self.again.sort_unstable();
        self.refused.sort_unstable();
        match (self.taken, self.again.is_empty(), self.refused.is_empty()) {
            (_, true, true) => Delivered::All,
            (0, false, true) => Delivered::Failed { why: self.why.unwrap_or_default(), wait: self.wait },
            _ => Delivered::Some { again: self.again, refused: self.refused, wait: self.wait },
        }
    }
}
