//! The one contract for time: one TTL in, two moments out.
//!
//! ```text
//! now + answer TTL  ≤  told_until  ≤  open_until  ≤  the kernel's expiry
//! ```

use std::time::Duration;

use crate::time::{Tick, Ttl};

/// `[grant]`: how long answers are told and addresses stay open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The least TTL told, whole seconds.
    pub ttl_min: Duration,
    /// The greatest TTL told, whole seconds.
    pub ttl_max: Duration,
    /// How long past the told TTL an address stays open at least: covers stub caches and slow connects.
    pub grace: Duration,
    /// The minimum life of a grant from each answer that renews it.
    pub hold: Duration,
}

impl Default for Terms {
    /// ttl_min 5 s: many stubs ignore less (guessed); ttl_max 300 s; grace 60 s; hold 5 min.
    fn default() -> Self {
        Self {
            ttl_min: Duration::from_secs(5),
            ttl_max: Duration::from_secs(300),
            grace: Duration::from_secs(60),
            hold: Duration::from_secs(300),
        }
    }
}

/// Until when an answer may be told, and until when its addresses must be open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// No client is told a TTL that reaches past this.
    pub told_until: Tick,
    /// Every firewall holds the addresses at least until here; `open_until >= told_until`.
    pub open_until: Tick,
}

/// What a told TTL, in whole seconds, does not show of what is left.
const LESS_THAN_A_SECOND: Duration = Duration::from_millis(999);

impl Terms {
    /// Until when an answer that was fetched at `fetched` with `ttl` may be told: the clamped TTL, and what is less
    /// than a second, so that [`answer_ttl`], which rounds down, tells the full TTL during the first second.
    #[must_use]
    pub fn told_until(&self, ttl: Ttl, fetched: Tick) -> Tick {
        fetched + ttl.duration().clamp(self.ttl_min, self.ttl_max.max(self.ttl_min)) + LESS_THAN_A_SECOND
    }

    /// The lease of an address in an answer that is told at `now` at the earliest and until `told_until` at the
    /// latest, under rules that ask for `hold` and end at `ends`. What is told past their end is no concern of theirs.
    #[must_use]
    pub fn lease(&self, told_until: Tick, hold: Option<Duration>, ends: Option<Tick>, now: Tick) -> Lease {
        let told_until = told_until.max(now);
        let open_until = (told_until + self.grace).max(now + hold.unwrap_or(self.hold).max(self.hold));
        let open_until = ends.map_or(open_until, |ends| open_until.min(ends).max(told_until));
        Lease { told_until, open_until }
    }

    /// An address that is open until `in_force` need not be touched for an answer that asks for `lease`: half the grace
    /// at most is missing, of the hold too. So an address that is asked for all the time is renewed once in that time.
    #[must_use]
    pub fn covers(&self, in_force: Tick, lease: Lease) -> bool {
        in_force >= lease.told_until && in_force + self.grace / 2 >= lease.open_until
    }

    /// The latest end that a process before this one may have told for an address that it left open until
    /// `open_until`: what [`Terms::covers`] let pass is in no journal, and what a rule ends is told to its very end.
    #[must_use]
    pub fn told_at_most(&self, open_until: Tick, now: Tick) -> Tick {
        open_until.min(now + self.ttl_max + LESS_THAN_A_SECOND)
    }
}

/// The TTL to tell at `now`: whole seconds, rounded down, so that `now + ttl <= told_until`.
#[must_use]
pub fn answer_ttl(told_until: Tick, now: Tick) -> Ttl {
    Ttl::from_duration(told_until.since(now))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// I4's arithmetic: whatever upstream says, the told TTL ends before the opening does.
        #[test]
        fn the_told_ttl_never_outlives_the_opening(
            ttl in any::<u32>(), age in 0u64..400_000_000, grace in 0u64..600, hold in 0u64..86_400,
            min in 1u64..60, span in 0u64..3600, rule in prop::option::of(0u64..86_400),
            left in prop::option::of(0u64..90_000_000_000),
        ) {
            let terms = Terms {
                ttl_min: Duration::from_secs(min),
                ttl_max: Duration::from_secs(min + span),
                grace: Duration::from_secs(grace),
                hold: Duration::from_secs(hold),
            };
            let fetched = Tick(1_000_000_000);
            let now = fetched + Duration::from_micros(age);
            let told = terms.told_until(Ttl::from_wire(ttl), fetched);
            prop_assert!(answer_ttl(told, fetched).duration() <= Duration::from_secs(min + span));
            // The gate tells nothing past the end of the rules.
            let ends = left.map(|left| now + Duration::from_micros(left));
            let told = ends.map_or(told, |ends| told.min(ends));
            let lease = terms.lease(told, rule.map(Duration::from_secs), ends, now);
            let ttl = answer_ttl(told, now);
            prop_assert!(now + ttl.duration() <= lease.told_until);
            prop_assert!(lease.told_until <= lease.open_until);
            match ends {
                None => prop_assert!(lease.open_until.since(now) >= Duration::from_secs(hold)),
                Some(ends) => prop_assert!(lease.open_until <= ends.max(now)),
            }
            // What covers a lease lasts as long as it is told, and of the grace half what the rules leave of it; what is
            // told under it is bounded.
            let least = (lease.open_until - terms.grace / 2).max(lease.told_until);
            prop_assert!(terms.covers(least, lease) && least >= lease.told_until);
            prop_assert!(ends.is_some() || least >= lease.told_until + terms.grace / 2);
            prop_assert!(!terms.covers(least - Duration::from_micros(1), lease));
            prop_assert!(lease.told_until <= terms.told_at_most(lease.open_until, now));
        }
    }
}
