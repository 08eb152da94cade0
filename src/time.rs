//! Time: the only place that reads a clock.
//!
//! Two clocks, never mixed: [`Tick`] for how long things last, [`Wall`] for what the log says.

use std::fmt;
use std::ops::{Add, Sub};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// A moment of `CLOCK_MONOTONIC`, in microseconds. The kernel times set elements by the same clock, and it
/// goes on across a restart of the process (not of the machine).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tick(pub u64);

/// A moment of the wall clock, in microseconds since 1970-01-01T00:00:00Z. For records only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Wall(pub u64);

/// One reading of both clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// How long things last.
    pub tick: Tick,
    /// What the log says.
    pub wall: Wall,
}

impl Now {
    /// The wall time at which `tick` was or will be, as seen from this reading.
    #[must_use]
    pub const fn wall_at(self, tick: Tick) -> Wall {
        Wall(self.wall.0.saturating_add(tick.0).saturating_sub(self.tick.0))
    }
}

/// A time to live in whole seconds, at most 2^31 − 1 (RFC 2181 §8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ttl(u32);

impl Ttl {
    /// The longest, some 68 years (RFC 2181 §8).
    pub const MAX: Self = Self(i32::MAX as u32);
    /// Zero seconds.
    pub const ZERO: Self = Self(0);

    /// A TTL as it stands on the wire. RFC 2181 §8: "Implementations should treat TTL values received with
    /// the most significant bit set as if the entire value received was zero."
    #[must_use]
    pub const fn from_wire(seconds: u32) -> Self {
        Self(if seconds > 0x7fff_ffff { 0 } else { seconds })
    }

    /// Whole seconds.
    #[must_use]
    pub const fn seconds(self) -> u32 {
        self.0
    }

    /// As a duration.
    #[must_use]
    pub const fn duration(self) -> Duration {
        Duration::from_secs(self.0 as u64)
    }

    /// The whole seconds of a duration, rounded down.
    #[must_use]
    pub fn from_duration(duration: Duration) -> Self {
        Self(u32::try_from(duration.as_secs()).unwrap_or(0x7fff_ffff).min(0x7fff_ffff))
    }
}

impl Tick {
    /// The time from `earlier` to here; zero where `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Tick {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for Tick {
    type Output = Self;

    fn sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)))
    }
}

impl Now {
    /// The tick at which the wall clock will show `wall`, as both run now; now where that is past.
    #[must_use]
    pub fn tick_at(&self, wall: Wall) -> Tick {
        self.tick + Duration::from_micros(wall.0.saturating_sub(self.wall.0))
    }
}

impl Wall {
    /// A date of the Gregorian calendar and the seconds since its midnight, in UTC; what lies before 1970 is 1970.
    #[must_use]
    pub fn from_civil(year: i64, month: i64, day: i64, seconds: i64) -> Self {
        let seconds = days(year, month, day).saturating_mul(86_400).saturating_add(seconds);
        Self(u64::try_from(seconds).unwrap_or(0).saturating_mul(1_000_000))
    }
}

impl Wall {
    /// How far off it is, in words: `in 3 days`, `2 hours ago`.
    #[must_use]
    pub fn seen_from(self, now: Self) -> String {
        let seconds = self.0.abs_diff(now.0) / 1_000_000;
        let (count, unit) = match seconds {
            0..120 => (seconds, "second"),
            120..7_200 => (seconds / 60, "minute"),
            7_200..172_800 => (seconds / 3_600, "hour"),
            _ => (seconds / 86_400, "day"),
        };
        let plural = if count == 1 { "" } else { "s" };
        if self > now { format!("in {count} {unit}{plural}") } else { format!("{count} {unit}{plural} ago") }
    }
}

impl fmt::Display for Wall {
    /// RFC 3339 in UTC with microseconds: `2026-11-21T03:53:04.117302Z`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0 / 1_000_000;
        let (year, month, day) = civil(seconds / 86_400);
        let of_day = seconds % 86_400;
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:06}Z",
            of_day / 3600,
            of_day / 60 % 60,
            of_day % 60,
            self.0 % 1_000_000
        )
    }
}

/// Days since 1970-01-01 → (year, month, day) of the Gregorian calendar; Howard Hinnant, "chrono-compatible
/// low-level date algorithms", `civil_from_days`, for days ≥ 0.
const fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + if month <= 2 { 1 } else { 0 };
    (year, month, day_of_year - (153 * shifted + 2) / 5 + 1)
}

/// (year, month, day) of the Gregorian calendar → days since 1970-01-01; the same, `days_from_civil`.
const fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let shifted = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * shifted + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// Where time comes from: the system, or a test's hand.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System,
    Manual(Arc<AtomicU64>),
}

impl Clock {
    /// The machine's clocks.
    #[must_use]
    pub const fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that stands still until [`Clock::advance`]; both readings start at 1,000,000 s.
    #[must_use]
    pub fn manual() -> Self {
        Self(Source::Manual(Arc::new(AtomicU64::new(1_000_000_000_000))))
    }

    /// Moves a manual clock forward; a system clock is left alone.
    pub fn advance(&self, by: Duration) {
        if let Source::Manual(micros) = &self.0 {
            micros.fetch_add(u64::try_from(by.as_micros()).unwrap_or(u64::MAX), Ordering::SeqCst);
        }
    }

    /// Reads both clocks.
    #[must_use]
    pub fn now(&self) -> Now {
        match &self.0 {
            Source::System => {
                Now { tick: Tick(read(ClockId::CLOCK_MONOTONIC)), wall: Wall(read(ClockId::CLOCK_REALTIME)) }
            }
            Source::Manual(micros) => {
                let micros = micros.load(Ordering::SeqCst);
                Now { tick: Tick(micros), wall: Wall(micros) }
            }
        }
    }

    /// Reads the monotonic clock alone.
    #[must_use]
    pub fn tick(&self) -> Tick {
        match &self.0 {
            Source::System => Tick(read(ClockId::CLOCK_MONOTONIC)),
            Source::Manual(micros) => Tick(micros.load(Ordering::SeqCst)),
        }
    }
}

/// Both clocks always exist on Linux; an error, which cannot happen, reads as zero and so fails closed:
/// every lease looks ended.
fn read(clock: ClockId) -> u64 {
    clock_gettime(clock)
        .map(|spec| {
            u64::try_from(spec.tv_sec()).unwrap_or(0) * 1_000_000 + u64::try_from(spec.tv_nsec()).unwrap_or(0) / 1000
        })
        .unwrap_or(0)
}

/// The kernel's name for this start of the machine (random(4), `boot_id`): as long as it stays, so does what was written but
/// not yet on a disk. Empty where it cannot be read.
#[must_use]
pub fn machine_start() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_rfc3339() {
        for (micros, text) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (1_795_233_184_117_302, "2026-11-21T03:53:04.117302Z"),
            (1_709_164_800_000_001, "2024-02-29T00:00:00.000001Z"),
        ] {
            assert_eq!(Wall(micros).to_string(), text);
        }
    }

    #[test]
    fn a_ttl_with_the_top_bit_is_zero() {
        assert_eq!(Ttl::from_wire(0x8000_0000), Ttl::ZERO);
        assert_eq!(Ttl::from_wire(0x7fff_ffff).seconds(), 0x7fff_ffff);
    }

    #[test]
    fn wall_follows_tick() {
        let now = Now { tick: Tick(50), wall: Wall(1_000) };
        assert_eq!(now.wall_at(Tick(60)), Wall(1_010));
        assert_eq!(now.wall_at(Tick(40)), Wall(990));
    }
}
