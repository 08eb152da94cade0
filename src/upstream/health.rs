//! What is known of one server: how long it takes, and whether it failed lately. Pure; takes `now`.

use std::time::Duration;

use crate::time::Tick;

/// The first guess of a round trip, before one was measured; guessed, between a near and a far server.
const FIRST_GUESS: Duration = Duration::from_millis(200);
/// The next server is asked after `1.5 × srtt` within these bounds: below, jitter alone would ask twice;
/// above, too little of the caller's deadline (1.9 s) would be left.
const PATIENCE: (Duration, Duration) = (Duration::from_millis(150), Duration::from_millis(800));
/// This many failures in a row take a server out.
const STRIKES: u32 = 3;
/// For how long, at first; doubled at every failed trial after it.
const OUT_AT_FIRST: Duration = Duration::from_secs(1);
/// And at most.
const OUT_AT_MOST: Duration = Duration::from_secs(30);
/// Servers whose round trips fall into the same step of this width keep their configured order.
const STEP_MS: u128 = 10;

/// How far a server may be relied upon; the order is the order of asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    /// It failed, and its time is over: asked first, for this one question. Behind a faster server it would not be
    /// asked at all, and never be known to have recovered.
    Trial,
    /// Asked in its turn.
    Ready,
    /// Failed lately: asked last.
    Doubtful,
    /// Failed three times in a row: asked only where all others failed.
    Out,
}

/// Round trip and failures of one server.
#[derive(Debug, Default)]
pub(super) struct Health {
    smoothed: Option<Duration>,
    failures: u32,
    out_until: Tick,
    trial_from: Tick,
}

impl Health {
    /// A reply came `round_trip` after its query was first sent: an exact sample where it was sent once, else too
    /// large a one, which errs towards patience. Smoothed by 1/8 as RFC 6298 §2 has it.
    pub(super) fn heard(&mut self, round_trip: Duration) {
        self.smoothed = Some(self.smoothed.map_or(round_trip, |smoothed| (smoothed * 7 + round_trip) / 8));
    }

    /// It gave a good answer: earlier failures are forgotten.
    pub(super) fn answered(&mut self) {
        (self.failures, self.out_until, self.trial_from) = (0, Tick::default(), Tick::default());
    }

    /// It failed. Further failures of a server that is out already say nothing new: they were under way.
    pub(super) fn failed(&mut self, now: Tick) {
        if now < self.out_until {
            return;
        }
        self.failures = self.failures.saturating_add(1);
        let doublings = self.failures.saturating_sub(STRIKES).min(5);
        self.trial_from = now + (OUT_AT_FIRST * (1 << doublings)).min(OUT_AT_MOST);
        if self.failures >= STRIKES {
            self.out_until = self.trial_from;
        }
    }

    /// Where it stands. Once its time is over, one question a second is the trial of a server that failed; it stays
    /// what it was for the others until it answers.
    pub(super) fn standing(&mut self, now: Tick) -> Standing {
        if self.is_well() {
            Standing::Ready
        } else if now >= self.trial_from {
            self.trial_from = now + OUT_AT_FIRST;
            Standing::Trial
        } else if self.failures < STRIKES {
            Standing::Doubtful
        } else {
            Standing::Out
        }
    }

    /// Whether its last answer was a good one, or it was never asked: then it is [`Standing::Ready`] at any time.
    pub(super) const fn is_well(&self) -> bool {
        self.failures == 0
    }

    /// True while it is out.
    pub(super) const fn is_out(&self) -> bool {
        self.failures >= STRIKES
    }

    /// The smoothed round trip; `None` before the first reply.
    pub(super) const fn smoothed(&self) -> Option<Duration> {
        self.smoothed
    }

    /// The smoothed round trip in coarse steps, to order servers by.
    pub(super) fn pace(&self) -> u128 {
        self.smoothed.unwrap_or(FIRST_GUESS).as_millis() / STEP_MS
    }

    /// How long to wait for it before another is asked.
    pub(super) fn patience(&self) -> Duration {
        (self.smoothed.unwrap_or(FIRST_GUESS) * 3 / 2).clamp(PATIENCE.0, PATIENCE.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn three_failures_in_a_row_take_it_out_for_one_second_doubling_to_thirty() {
        let mut health = Health::default();
        let mut now = Tick(1_000_000);
        health.failed(now);
        assert_eq!(health.standing(now), Standing::Doubtful);
        health.failed(now);
        assert_eq!(health.standing(now), Standing::Doubtful);
        health.failed(now);
        for seconds in [1, 2, 4, 8, 16, 30, 30] {
            assert_eq!(health.standing(now), Standing::Out);
            health.failed(now);
            now = now + Duration::from_secs(seconds) - Duration::from_micros(1);
            assert_eq!(health.standing(now), Standing::Out, "still out just before {seconds} s");
            now = now + Duration::from_micros(1);
            assert_eq!(health.standing(now), Standing::Trial);
            assert_eq!(health.standing(now), Standing::Out, "one trial at a time");
            health.failed(now);
        }
        now = now + SECOND * 30;
        assert_eq!(health.standing(now), Standing::Trial);
        health.answered();
        assert_eq!(health.standing(now), Standing::Ready);
        health.failed(now);
        assert_eq!(health.standing(now), Standing::Doubtful, "the count starts anew");
    }

    #[test]
    fn patience_follows_the_round_trip_within_bounds() {
        let mut health = Health::default();
        assert_eq!(health.patience(), Duration::from_millis(300));
        health.heard(Duration::from_millis(1));
        assert_eq!(health.patience(), Duration::from_millis(150));
        for _ in 0..100 {
            health.heard(Duration::from_secs(5));
        }
        assert_eq!(health.patience(), Duration::from_millis(800));
        assert!(health.smoothed().is_some_and(|smoothed| smoothed > Duration::from_secs(4)));
    }
}
