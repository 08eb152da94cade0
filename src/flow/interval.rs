//! Interval: that one name led one client, or a whole segment, to one address for a time; packed, because there are many.

use super::QueryId;
use super::intern::Table;
use crate::time::Wall;

/// An interval as it is worked with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// Number of the address.
    pub(super) address: u32,
    /// Number of the name, the rule and the services.
    pub(super) reason: u32,
    /// The address was enforceably open from here.
    pub(super) from: u64,
    /// What was told last ended here; at least `from`.
    pub(super) told: u64,
    /// The firewall's end; at least `told`.
    pub(super) open: u64,
    /// When it was told last; at least `from`.
    pub(super) last: u64,
    /// The query that began it.
    pub(super) first_query: Asked,
    /// The query that was told it last.
    pub(super) last_query: Asked,
}

/// A query: the number of its process and thread, and 48 bits of its sequence; 89 years of 100,000 a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked(u64);

impl Asked {
    pub(super) const NONE: Self = Self(u64::MAX);

    pub(super) fn new(writers: &mut Table<(u64, u16)>, query: Option<QueryId>) -> Self {
        let Some(QueryId { boot, shard, sequence }) = query else { return Self::NONE };
        // Those beyond have no number: their queries are not told.
        let known = writers.find(&(boot, shard));
        let room = writers.len() < usize::from(u16::MAX);
        let number = known.or_else(|| room.then(|| writers.number(&(boot, shard))));
        match u16::try_from(number.unwrap_or(u32::MAX)) {
            Ok(writer) if writer < u16::MAX => Self(u64::from(writer) << 48 | (sequence & LOW)),
            _ => Self::NONE,
        }
    }

    pub(super) fn id(self, writers: &Table<(u64, u16)>) -> Option<QueryId> {
        let (boot, shard) = *writers.get((self.0 >> 48) as u32).filter(|_| self != Self::NONE)?;
        Some(QueryId { boot, shard, sequence: self.0 & LOW })
    }
}

const LOW: u64 = (1 << 48) - 1;

/// A span in 52 bytes: what follows its beginning as 48 bits of microseconds, nine years.
#[derive(Clone, Copy, Debug)]
pub(super) struct Interval {
    pub(super) address: u32,
    reason: u32,
    from: [u32; 2],
    told: [u16; 3],
    open: [u16; 3],
    last: [u16; 3],
    first_query: [u16; 4],
    last_query: [u16; 4],
}

impl Interval {
    pub(super) fn pack(span: &Span) -> Self {
        let behind = |at: u64| {
            let [a, b, c, _] = words(at.saturating_sub(span.from).min(LOW));
            [a, b, c]
        };
        Self {
            address: span.address,
            reason: span.reason,
            from: [span.from as u32, (span.from >> 32) as u32],
            told: behind(span.told),
            open: behind(span.open),
            last: behind(span.last),
            first_query: words(span.first_query.0),
            last_query: words(span.last_query.0),
        }
    }

    pub(super) fn span(&self) -> Span {
        let from = self.from();
        let behind = |[a, b, c]: [u16; 3]| from + number([a, b, c, 0]);
        Span {
            address: self.address,
            reason: self.reason,
            from,
            told: behind(self.told),
            open: behind(self.open),
            last: behind(self.last),
            first_query: Asked(number(self.first_query)),
            last_query: Asked(number(self.last_query)),
        }
    }

    pub(super) fn from(&self) -> u64 {
        let [low, high] = self.from;
        u64::from(high) << 32 | u64::from(low)
    }

    pub(super) fn open(&self) -> u64 {
        let [a, b, c] = self.open;
        self.from() + number([a, b, c, 0])
    }

    pub(super) const fn reason(&self) -> u32 {
        self.reason
    }

    /// The same under other numbers.
    pub(super) const fn renumbered(mut self, address: u32, reason: u32) -> Self {
        self.address = address;
        self.reason = reason;
        self
    }
}

const fn words(number: u64) -> [u16; 4] {
    [number as u16, (number >> 16) as u16, (number >> 32) as u16, (number >> 48) as u16]
}

fn number([a, b, c, d]: [u16; 4]) -> u64 {
    u64::from(d) << 48 | u64::from(c) << 32 | u64::from(b) << 16 | u64::from(a)
}

impl Span {
    /// Whether it was open at `at`, whose clock may be wrong by `error`.
    pub(super) const fn covers(&self, at: u64, error: u64) -> bool {
        self.from <= at.saturating_add(error) && at < self.open.saturating_add(error)
    }

    /// Whether what was told still held.
    pub(super) const fn holds(&self, at: u64, error: u64) -> bool {
        at < self.told.saturating_add(error)
    }

    /// When it was told last before a flow that began at `at`, and to which query.
    pub(super) const fn telling(&self, at: u64, error: u64) -> (Wall, Asked) {
        if self.last <= at.saturating_add(error) {
            (Wall(self.last), self.last_query)
        } else {
            (Wall(self.from), self.first_query)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked(
            numbers in any::<(u32, u32)>(),
            from in 0..=(1_u64 << 60),
            behind in (0..=LOW, 0..=LOW, 0..=LOW),
            queries in any::<(u64, u64)>(),
        ) {
            let span = Span {
                address: numbers.0,
                reason: numbers.1,
                from,
                told: from + behind.0,
                open: from + behind.1,
                last: from + behind.2,
                first_query: Asked(queries.0),
                last_query: Asked(queries.1),
            };
            let packed = Interval::pack(&span);
            prop_assert_eq!(packed.span(), span);
            prop_assert_eq!((packed.from(), packed.open()), (span.from, span.open));
        }
    }

    #[test]
    fn an_interval_takes_52_bytes() {
        assert_eq!(size_of::<Interval>(), 52);
    }
}
