//! Hearing: which resolvers live, and so whether new flows may be led through this gateway. Timing is that of
//! [`crate::firewall::remote`].

use std::time::Duration;

use crate::firewall::remote::{ALIVE, FENCE};
use crate::time::Tick;

/// What is known of one resolver.
#[derive(Clone, Debug, Default)]
struct Resolver {
    name: String,
    /// When it was last heard.
    heard: Option<Tick>,
    /// When it last said that this gateway has all that it wants open.
    drove: Option<Tick>,
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
    pub fn heard(&mut self, who: usize, drives: bool, alive: Vec<String>, now: Tick) {
        if let Some(resolver) = self.0.get_mut(who) {
            resolver.heard = Some(now);
            if drives {
                resolver.drove = Some(now);
            }
            resolver.alive = alive;
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

    /// Whether new flows may be led through this gateway: every resolver that lives has what it tells open here.
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
            if drives {
                continue;
            }
            if Resolver::is_within(resolver.heard, now, ALIVE) {
                return Err(format!("{name} has not brought this gateway up to date yet"));
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

    fn two() -> Hearing {
        Hearing::new(&["a".into(), "b".into()])
    }

    #[test]
    fn not_ready_before_a_resolver_brought_it_up_to_date() {
        let mut hearing = two();
        assert_eq!(hearing.is_ready(at(0)).unwrap_err(), "no resolver has brought this gateway up to date yet");
        hearing.heard(0, false, vec![], at(0));
        assert!(hearing.is_ready(at(0)).is_err());
        hearing.heard(0, true, vec![], at(100));
        assert_eq!(hearing.is_ready(at(100)), Ok(()));
        // Another one that lives may have told what is not open here.
        hearing.heard(1, false, vec![], at(200));
        assert_eq!(hearing.is_ready(at(200)).unwrap_err(), "b has not brought this gateway up to date yet");
        hearing.heard(1, true, vec![], at(300));
        assert_eq!(hearing.is_ready(at(300)), Ok(()));
    }

    #[test]
    fn it_fences_two_seconds_after_it_heard_nobody() {
        let mut hearing = two();
        hearing.heard(0, true, vec![], at(0));
        assert_eq!(hearing.is_ready(at(1999)), Ok(()));
        assert_eq!(hearing.is_ready(at(2000)).unwrap_err(), "no resolver was heard for 2 s");
    }

    /// One resolver dies: the word of its death is out before it matters.
    #[test]
    fn the_death_of_a_resolver_fences_nobody() {
        let mut hearing = two();
        hearing.heard(1, true, vec![], at(0));
        hearing.left(1);
        for millis in (0..5000).step_by(250) {
            // The other gateways hear b for a second after its last beat, and tell it with the beat after that.
            let alive = if millis <= 1500 { vec!["b".into()] } else { vec![] };
            hearing.heard(0, true, alive, at(millis));
            assert_eq!(hearing.is_ready(at(millis)), Ok(()), "{millis}");
        }
    }

    /// One link is cut: the other resolver says that it lives.
    #[test]
    fn it_fences_where_a_living_resolver_is_not_heard() {
        let mut hearing = two();
        hearing.heard(1, true, vec!["a".into()], at(0));
        for millis in (0..5000).step_by(250) {
            hearing.heard(0, true, vec!["b".into()], at(millis));
            assert_eq!(hearing.is_ready(at(millis)).is_ok(), millis < 2000, "{millis}");
        }
        assert_eq!(hearing.is_ready(at(4999)).unwrap_err(), "b lives, as a says, and is not heard here");
        // Paused, it is heard again and drives again.
        hearing.heard(1, true, vec![], at(5000));
        assert_eq!(hearing.is_ready(at(5000)), Ok(()));
    }
}
