//! Track: the intervals of one client, or of one whole segment, by address.

use super::interval::{Interval, Span};

/// Intervals in the order of their addresses, and of one address in the order in which they began.
#[derive(Default)]
pub(super) struct Track {
    intervals: Vec<Interval>,
    /// Nothing that ended by then is still here for certain.
    forgotten: u64,
}

/// What became of a span that was put in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Put {
    /// It prolongs one that was here.
    Extended,
    /// It is new.
    Added,
    /// It is new, and another one had to go.
    Replaced,
}

impl Track {
    /// The intervals of one address.
    pub(super) fn of(&self, address: u32) -> impl Iterator<Item = Span> {
        let from = self.intervals.partition_point(|interval| interval.address < address);
        let rest = self.intervals.get(from..).unwrap_or_default();
        rest.iter().take_while(move |interval| interval.address == address).map(Interval::span)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = Span> {
        self.intervals.iter().map(Interval::span)
    }

    pub(super) const fn len(&self) -> usize {
        self.intervals.len()
    }

    /// Until when it may have forgotten something for want of room.
    pub(super) const fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// Something that ended then was never here.
    pub(super) fn forgo(&mut self, open: u64) {
        self.forgotten = self.forgotten.max(open);
    }

    /// Heap bytes.
    pub(super) const fn weight(&self) -> usize {
        self.intervals.capacity() * size_of::<Interval>()
    }

    /// Joins the span to the interval of its address and reason that was still open when it began, or adds it. At the
    /// cap, the interval that ended first goes.
    pub(super) fn put(&mut self, span: &Span, cap: usize) -> Put {
        let range = self.range(span.address);
        let known = self.intervals.get(range.clone()).unwrap_or_default();
        let joined = known.iter().rposition(|interval| {
            interval.reason() == span.reason && interval.from() <= span.open && span.from <= interval.open()
        });
        let mut at = range.start + known.partition_point(|interval| interval.from() <= span.from);
        let joined = joined.map(|joined| range.start + joined);
        if let Some(place) = joined.and_then(|joined| self.intervals.get_mut(joined)) {
            *place = Interval::pack(&place.span().joined(span));
            return Put::Extended;
        }
        let mut put = Put::Added;
        if self.intervals.len() >= cap
            && let Some((first, gone)) = self.intervals.iter().enumerate().min_by_key(|(_, interval)| interval.open())
        {
            self.forgotten = self.forgotten.max(gone.open());
            self.intervals.remove(first);
            at -= usize::from(first < at);
            put = Put::Replaced;
        }
        if self.intervals.len() == self.intervals.capacity() {
            // An eighth more at a time: there are many tracks.
            self.intervals.reserve_exact(self.intervals.len() / 8 + 4);
        }
        self.intervals.insert(at, Interval::pack(span));
        put
    }

    /// Changes every interval of an address and reason that was open at `at`: what it returns takes the interval's place.
    pub(super) fn change(
        &mut self,
        address: u32,
        is_it: impl Fn(&Span) -> bool,
        mut change: impl FnMut(Span) -> [Option<Span>; 2],
    ) {
        let range = self.range(address);
        let mut later = Vec::new();
        for at in range.rev() {
            let Some(place) = self.intervals.get_mut(at) else { continue };
            let span = place.span();
            if !is_it(&span) {
                continue;
            }
            let [first, second] = change(span);
            match first {
                Some(first) => *place = Interval::pack(&first),
                None => _ = self.intervals.remove(at),
            }
            later.extend(second);
        }
        for span in later {
            self.put(&span, usize::MAX);
        }
    }

    /// Changes every interval in its place; `None`: it stays as it is.
    pub(super) fn change_each(&mut self, change: impl Fn(Span) -> Option<Span>) {
        for interval in &mut self.intervals {
            if let Some(changed) = change(interval.span()) {
                *interval = Interval::pack(&changed);
            }
        }
    }

    /// Forgets what ended before `horizon`; how many went.
    pub(super) fn prune(&mut self, horizon: u64) -> usize {
        let before = self.intervals.len();
        self.intervals.retain(|interval| interval.open() >= horizon);
        let gone = before - self.intervals.len();
        if self.forgotten < horizon {
            self.forgotten = 0;
        }
        if gone > 0 && self.intervals.capacity() > self.intervals.len() * 5 / 4 + 8 {
            self.intervals.shrink_to(self.intervals.len() * 9 / 8);
        }
        gone
    }

    /// Gives every interval other numbers, which keep the order of addresses.
    pub(super) fn renumber(&mut self, addresses: &[u32], reasons: &[u32]) {
        let place = |places: &[u32], number: u32| places.get(number as usize).copied().unwrap_or(u32::MAX);
        for interval in &mut self.intervals {
            *interval = interval.renumbered(place(addresses, interval.address), place(reasons, interval.reason()));
        }
    }

    fn range(&self, address: u32) -> std::ops::Range<usize> {
        let start = self.intervals.partition_point(|interval| interval.address < address);
        let rest = self.intervals.get(start..).unwrap_or_default();
        start..start + rest.partition_point(|interval| interval.address == address)
    }
}

impl Span {
    /// Both as one: from where the first began to where the last ends.
    fn joined(self, later: &Self) -> Self {
        let told_later = later.last >= self.last;
        Self {
            from: self.from.min(later.from),
            told: self.told.max(later.told),
            open: self.open.max(later.open),
            last: self.last.max(later.last),
            first_query: if later.from < self.from { later.first_query } else { self.first_query },
            last_query: if told_later { later.last_query } else { self.last_query },
            ..self
        }
    }
}
