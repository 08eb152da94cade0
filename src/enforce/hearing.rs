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
    /// It told addresses that are not open here, and has not caught up.
    lacks: bool,
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
pub struct Hearing(Vec<Resolver>);

impl Hearing {
    /// Of resolvers that were not heard yet.
    #[must_use]
    pub fn new(names: &[String]) -> Self {
        Self(names.iter().map(|name| Resolver { name: name.clone(), ..Resolver::default() }).collect())
    }

    /// A resolver said that it lives.
    pub fn heard(&mut self, who: usize, beat: Beat, now: Tick) {
        if let Some(resolver) = self.0.get_mut(who) {
            (resolver.heard, resolver.last) = (Some(now), now);
            if beat.caught_up {
                resolver.drove = Some(now);
            }
            resolver.lacks = beat.went_without && !beat.caught_up;
            resolver.alive = beat.alive;
        }
    }

    /// Its connection ended: it does not count as alive by what it said. It may be there again before it counts as gone.
    pub fn left(&mut self, who: usize) {
        if let Some(resolver) = self.0.get_mut(who) {
            resolver.heard = None;
        }
    }

    /// Everybody's name.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.0.iter().map(|resolver| resolver.name.clone()).collect()
    }

    /// Who is heard.
    #[must_use]
    pub fn all_heard(&self, now: Tick) -> Vec<String> {
        let heard = self.0.iter().filter(|resolver| Resolver::is_within(resolver.heard, now, ALIVE));
        heard.map(|resolver| resolver.name.clone()).collect()
    }

    /// Every resolver, and whether it drives this gateway.
    pub fn driving(&self, now: Tick) -> impl Iterator<Item = (&str, bool)> {
        self.0.iter().map(move |resolver| (&*resolver.name, Resolver::is_within(resolver.drove, now, FENCE)))
    }

    /// Whether new flows may be led through this gateway: what any living resolver tells is open here, or waits for it.
    ///
    /// # Errors
    /// Why not, as a clause.
    pub fn is_ready(&self, now: Tick) -> Result<(), String> {
        if !self.driving(now).any(|(_, drives)| drives) {
            return Err(match self.0.iter().any(|resolver| resolver.drove.is_some()) {
                true => "no resolver was heard for 2 s".into(),
                false => "no resolver has brought this gateway up to date yet".into(),
            });
        }
        for (resolver, (name, drives)) in self.0.iter().zip(self.driving(now)) {
            if resolver.lacks && now.since(resolver.last) < TOLD {
                return Err(format!("{name} told addresses that are not open here yet"));
            }
            // Who is heard waits for this gateway, whether it has caught up or not.
            if drives || Resolver::is_within(resolver.heard, now, FENCE) {
                continue;
            }
            let hears = |other: &&Resolver| Resolver::is_within(other.heard, now, ALIVE);
            if let Some(witness) =
                self.0.iter().filter(hears).find(|other| other.alive.iter().any(|alive| alive == name))
            {
                return Err(format!("{name} lives, as {} says, and is not heard here", witness.name));
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
        Beat { caught_up, went_without: false, alive: alive.iter().map(|name| (*name).to_owned()).collect() }
    }

    fn two() -> Hearing {
        Hearing::new(&["a".into(), "b".into()])
    }

    #[test]
    fn not_ready_before_a_resolver_brought_it_up_to_date() {
        let mut hearing = two();
        assert_eq!(hearing.is_ready(at(0)).unwrap_err(), "no resolver has brought this gateway up to date yet");
        hearing.heard(0, beat(false, &[]), at(0));
        assert!(hearing.is_ready(at(0)).is_err());
        hearing.heard(0, beat(true, &[]), at(100));
        assert_eq!(hearing.is_ready(at(100)), Ok(()));
        // Another one that begins waits for this gateway.
        hearing.heard(1, beat(false, &[]), at(200));
        assert_eq!(hearing.is_ready(at(200)), Ok(()));
        // One that went on without it has told what is not open here.
        hearing.heard(1, Beat { went_without: true, ..beat(false, &[]) }, at(300));
        assert_eq!(hearing.is_ready(at(300)).unwrap_err(), "b told addresses that are not open here yet");
        hearing.left(1);
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
        hearing.left(1);
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
}
