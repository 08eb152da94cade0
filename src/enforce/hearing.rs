//! Hearing: which resolvers live, and so whether new flows may be led through this gateway. Timing is that of
//! [`crate::firewall::remote`].

use std::time::Duration;

use crate::firewall::remote::message::Beat;
use crate::firewall::remote::{ALIVE, FENCE};
use crate::time::Tick;

/// How long an address that a resolver told is used: the longest `ttl_max` that is usual.
const TOLD: Duration = Duration::from_secs(300);

/// What is known of one resolver.
#[derive(Clone, Debug, Default)]
struct Resolver {
    name: String,
    /// When it was last heard, and has not left since.
    heard: Option<Tick>,
    /// When it was last heard.
    last: Tick,
    /// When it last said that this gateway has all that it wants open.
    drove: Option<Tick>,
    /// It told addresses that are not open here, or may have, and has not caught up.
    lacks: bool,
    /// So long it may have told what is not open here: it was never heard to have all here.
    begins_until: Tick,
    /// Whom it said to be alive then.
    alive: Vec<String>,
}

impl Resolver {
    fn is_within(at: Option<Tick>, now: Tick, time: Duration) -> bool {
        at.is_some_and(|at| now.since(at) < time)
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Hearing(Vec<Resolver>);

impl Hearing {
    /// Of resolvers that were not heard yet: any of them may have gone on without this gateway, and a restart of its own may
    /// have made it forget that.
    pub(super) fn new(names: &[String], now: Tick) -> Self {
        let resolver = |name: &String| Resolver { name: name.clone(), begins_until: now + TOLD, ..Resolver::default() };
        Self(names.iter().map(resolver).collect())
    }

    /// A resolver said that it lives.
    pub(super) fn heard(&mut self, who: usize, beat: Beat, now: Tick) {
        self.judge(now);
        if let Some(resolver) = self.0.get_mut(who) {
            // It goes on without this gateway by what it hears, not by what is heard of it.
            let heard_us = now - Duration::from_micros(beat.heard_ago);
            (resolver.heard, resolver.last) = (Some(heard_us), now);
            if beat.caught_up {
                resolver.drove = resolver.drove.max(Some(heard_us));
                (resolver.lacks, resolver.begins_until) = (false, Tick(0));
            } else {
                resolver.lacks |= beat.went_without;
            }
            // Who has not caught up knows little of others.
            resolver.alive = if beat.caught_up { beat.alive } else { Vec::new() };
        }
    }

    /// Notes who may go on without this gateway from here on, though he is heard again, or whoever said that he lives is gone.
    fn judge(&mut self, now: Tick) {
        let alone = !self.driving(now).any(|(_, drives)| drives);
        let absent: Vec<usize> = (0..self.0.len())
            .filter(|at| alone || self.0.get(*at).is_some_and(|resolver| self.witness(resolver, now).is_some()))
            .collect();
        for at in absent {
            if let Some(resolver) = self.0.get_mut(at).filter(|resolver| resolver.drove.is_some() || !alone) {
                (resolver.lacks, resolver.last) = (true, if alone { resolver.last } else { now });
            }
        }
    }

    /// Who says that a resolver lives which is not heard here.
    fn witness(&self, resolver: &Resolver, now: Tick) -> Option<&str> {
        let is_here =
            Resolver::is_within(resolver.heard, now, FENCE) || Resolver::is_within(resolver.drove, now, FENCE);
        let hears = |other: &&Resolver| Resolver::is_within(other.heard, now, ALIVE);
        let mut others = self.0.iter().filter(|_| !is_here).filter(hears);
        others.find(|other| other.alive.contains(&resolver.name)).map(|other| &*other.name)
    }

    /// Its connection ended: it does not count as alive by what it said. It may be there again before it counts as gone.
    pub(super) fn left(&mut self, who: usize, now: Tick) {
        self.judge(now);
        if let Some(resolver) = self.0.get_mut(who) {
            resolver.heard = None;
        }
    }

    /// Everybody's name.
    pub(super) fn names(&self) -> Vec<String> {
        self.0.iter().map(|resolver| resolver.name.clone()).collect()
    }

    /// Who is heard.
    pub(super) fn all_heard(&self, now: Tick) -> Vec<String> {
        let heard = self.0.iter().filter(|resolver| Resolver::is_within(resolver.heard, now, ALIVE));
        heard.map(|resolver| resolver.name.clone()).collect()
    }

    /// Every resolver, and whether it drives this gateway.
    pub(super) fn driving(&self, now: Tick) -> impl Iterator<Item = (&str, bool)> {
        self.0.iter().map(move |resolver| (&*resolver.name, Resolver::is_within(resolver.drove, now, FENCE)))
    }

    /// Whether new flows may be led through this gateway: what any living resolver tells is open here, or waits for it.
    ///
    /// # Errors
    /// Why not, as a clause.
    pub(super) fn is_ready(&mut self, now: Tick) -> Result<(), String> {
        self.judge(now);
        if !self.driving(now).any(|(_, drives)| drives) {
            return Err(match self.0.iter().any(|resolver| resolver.drove.is_some()) {
                true => "no resolver was heard for 2 s".into(),
                false => "no resolver has brought this gateway up to date yet".into(),
            });
        }
        for resolver in &self.0 {
            let name = &resolver.name;
            if let Some(witness) = self.witness(resolver, now) {
                return Err(format!("{name} lives, as {witness} says, and is not heard here"));
            }
            // Who is heard waits for this gateway, whether it has caught up or not; unless it went on without it.
            if resolver.lacks && now.since(resolver.last) < TOLD {
                return Err(format!("{name} told addresses that are not open here yet"));
            }
            if now < resolver.begins_until && Resolver::is_within(resolver.heard, now, FENCE) {
                return Err(format!("{name} has not brought this gateway up to date yet"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Tick {
        Tick(0) + Duration::from_millis(millis)
    }

    fn beat(caught_up: bool, alive: &[&str]) -> Beat {
        Beat { caught_up, alive: alive.iter().map(|name| (*name).to_owned()).collect(), ..Beat::default() }
    }

    fn two() -> Hearing {
        Hearing::new(&["a".into(), "b".into()], at(0))
    }

    #[test]
    fn not_ready_before_a_resolver_brought_it_up_to_date() {
        let mut hearing = two();
        assert_eq!(hearing.is_ready(at(0)).unwrap_err(), "no resolver has brought this gateway up to date yet");
        hearing.heard(0, beat(false, &[]), at(0));
        assert!(hearing.is_ready(at(0)).is_err());
        hearing.heard(0, beat(true, &[]), at(100));
        assert_eq!(hearing.is_ready(at(100)), Ok(()));
        // Another one was there before: what it told may not be open here. One that begins anew waits for this gateway.
        hearing.heard(1, beat(false, &[]), at(200));
        assert_eq!(hearing.is_ready(at(200)).unwrap_err(), "b has not brought this gateway up to date yet");
        hearing.heard(1, beat(true, &[]), at(220));
        hearing.heard(1, beat(false, &[]), at(240));
        assert_eq!(hearing.is_ready(at(240)), Ok(()));
        // One that went on without it has told what is not open here.
        hearing.heard(1, Beat { went_without: true, ..beat(false, &[]) }, at(300));
        assert_eq!(hearing.is_ready(at(300)).unwrap_err(), "b told addresses that are not open here yet");
        hearing.left(1, at(300));
        for millis in (400..300_300).step_by(1000) {
            hearing.heard(0, beat(true, &[]), at(millis));
            assert!(hearing.is_ready(at(millis)).is_err());
        }
        hearing.heard(0, beat(true, &[]), at(300_300));
        assert_eq!(hearing.is_ready(at(300_300)), Ok(()), "what it told is over");
        hearing.heard(1, Beat { went_without: true, ..beat(true, &[]) }, at(300_400));
        assert_eq!(hearing.is_ready(at(300_400)), Ok(()));
    }

    #[test]
    fn it_fences_two_seconds_after_it_heard_nobody() {
        let mut hearing = two();
        hearing.heard(0, beat(true, &[]), at(0));
        assert_eq!(hearing.is_ready(at(1999)), Ok(()));
        assert_eq!(hearing.is_ready(at(2000)).unwrap_err(), "no resolver was heard for 2 s");
    }

    /// One resolver dies: the word of its death is out before it matters.
    #[test]
    fn the_death_of_a_resolver_fences_nobody() {
        let mut hearing = two();
        hearing.heard(1, beat(true, &[]), at(0));
        hearing.left(1, at(300));
        for millis in (0..5000).step_by(250) {
            // The other gateways hear b for a second after its last beat, and tell it with the beat after that.
            let alive: &[&str] = if millis <= 1500 { &["b"] } else { &[] };
            hearing.heard(0, beat(true, alive), at(millis));
            assert_eq!(hearing.is_ready(at(millis)), Ok(()), "{millis}");
        }
    }

    /// One link is cut: the other resolver says that it lives.
    #[test]
    fn it_fences_where_a_living_resolver_is_not_heard() {
        let mut hearing = two();
        hearing.heard(1, beat(true, &["a"]), at(0));
        for millis in (0..5000).step_by(250) {
            hearing.heard(0, beat(true, &["b"]), at(millis));
            assert_eq!(hearing.is_ready(at(millis)).is_ok(), millis < 2000, "{millis}");
        }
        assert_eq!(hearing.is_ready(at(4999)).unwrap_err(), "b lives, as a says, and is not heard here");
        // Paused, it is heard again and drives again.
        hearing.heard(1, beat(true, &[]), at(5000));
        assert_eq!(hearing.is_ready(at(5000)), Ok(()));
    }

    /// Whoever said that it lives is restarted, and the resolver that is cut off is still there.
    #[test]
    fn it_stays_fenced_where_the_witness_goes() {
        let mut hearing = two();
        for millis in (0..4000).step_by(250) {
            if millis == 0 {
                hearing.heard(1, beat(true, &["a"]), at(millis));
            }
            hearing.heard(0, beat(true, &["b"]), at(millis));
        }
        assert!(hearing.is_ready(at(4000)).is_err());
        hearing.left(0, at(4000));
        assert!(hearing.is_ready(at(4000)).is_err(), "b told addresses without it");
        hearing.heard(0, beat(true, &[]), at(4250));
        assert_eq!(hearing.is_ready(at(4250)).unwrap_err(), "b told addresses that are not open here yet");
        hearing.heard(1, beat(true, &[]), at(4500));
        assert_eq!(hearing.is_ready(at(4500)), Ok(()));
    }

    /// Nobody was heard: any of them may have gone on without it.
    #[test]
    fn who_comes_back_first_does_not_speak_for_the_others() {
        let mut hearing = two();
        hearing.heard(0, beat(true, &[]), at(0));
        hearing.heard(1, beat(true, &[]), at(0));
        assert!(hearing.is_ready(at(5000)).is_err());
        hearing.heard(0, beat(true, &[]), at(6000));
        assert_eq!(hearing.is_ready(at(6000)).unwrap_err(), "b told addresses that are not open here yet");
        hearing.heard(1, beat(true, &[]), at(6250));
        assert_eq!(hearing.is_ready(at(6250)), Ok(()));
    }

    /// Its beats come, and it hears nothing from here.
    #[test]
    fn a_way_that_is_cut_in_one_direction_fences_in_time() {
        let mut hearing = two();
        for millis in (0..4000).step_by(250) {
            hearing.heard(0, beat(true, &["b"]), at(millis));
            if millis <= 1250 {
                hearing.heard(1, Beat { heard_ago: millis * 1000, ..beat(true, &["a"]) }, at(millis));
            }
            assert_eq!(hearing.is_ready(at(millis)).is_ok(), millis < 2000, "{millis}");
        }
    }

    /// One that went on without this gateway and was restarted itself does not know that it did.
    #[test]
    fn after_a_restart_everybody_who_is_heard_has_to_catch_up() {
        let mut hearing = two();
        hearing.heard(0, beat(true, &[]), at(0));
        assert_eq!(hearing.is_ready(at(0)), Ok(()), "nobody else is there");
        hearing.heard(1, beat(false, &[]), at(100));
        assert_eq!(hearing.is_ready(at(100)).unwrap_err(), "b has not brought this gateway up to date yet");
        hearing.heard(1, beat(true, &[]), at(200));
        assert_eq!(hearing.is_ready(at(200)), Ok(()));
        // Not for longer than what it told is used: what it tells since waits for this gateway.
        let mut hearing = two();
        for (millis, ready) in [(299_900, false), (300_000, true)] {
            hearing.heard(0, beat(true, &[]), at(millis));
            hearing.heard(1, beat(false, &[]), at(millis));
            assert_eq!(hearing.is_ready(at(millis)).is_ok(), ready, "{millis}");
        }
    }
}
