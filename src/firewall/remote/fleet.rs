//! Fleet: what this resolver knows of all its gateways, and so of the other resolvers that drive them.
//!
//! A gateway lets nothing new through [`FENCE`] after it last heard a resolver that lives. It cannot tell one that is
//! dead from one that it is cut off from; the others can: every enforcer says whom it hears, and every resolver passes
//! that on to the other enforcers. So nothing is shared but the gateways.
//!
//! | after | |
//! |---|---|
//! | [`BEAT`] | a resolver says that it lives, and the enforcer how it is |
//! | [`ALIVE`] | a resolver that was not heard is not told as one that lives |
//! | [`FENCE`] | an enforcer that does not hear a living resolver is not ready: new flows are to be led elsewhere |
//! | [`FENCED`] | a resolver that does not hear an enforcer may tell addresses without it |

use std::time::Duration;

use parking_lot::Mutex;

use super::message::Standing;
use crate::time::Tick;

/// How often a resolver says that it lives.
pub const BEAT: Duration = Duration::from_millis(250);
/// For how long one that was heard is told as one that lives. With it and two beats the word of a death is out before
/// [`FENCE`]: no gateway fences because of it.
pub const ALIVE: Duration = Duration::from_secs(1);
/// When an enforcer that does not hear a living resolver is not ready.
pub const FENCE: Duration = Duration::from_secs(2);
/// When a resolver may go on without an enforcer: twice [`FENCE`], for the way of what leads flows.
pub const FENCED: Duration = Duration::from_secs(4);

/// For how long somebody has to be heard until all know it who are to: until those have fenced that do not hear him though he
/// lives, and flows are led elsewhere. The word takes two beats.
const KNOWN: Duration = FENCE.saturating_add(BEAT).saturating_add(BEAT);

/// All gateways of one resolver.
#[derive(Debug, Default)]
pub struct Fleet(Mutex<Vec<Gateway>>);

#[derive(Debug, Default)]
struct Gateway {
    name: String,
    /// When it last said how it is; before that, when it began to be waited for.
    heard: Tick,
    /// Since when it is heard without a pause.
    since: Tick,
    /// Addresses were told without it since it was last caught up with.
    gone_without: bool,
    /// What it said then.
    said: Option<Standing>,
    /// Whom it hears, and since when it says so.
    hears: Vec<(String, Tick)>,
}

impl Gateway {
    fn says_now(&self, now: Tick) -> Option<&Standing> {
        self.said.as_ref().filter(|_| now.since(self.heard) < ALIVE)
    }

    /// Where it has heard us for long enough that all others know that we live, and those have fenced that do not hear us.
    fn knows_us(&self, now: Tick) -> Option<&Standing> {
        self.says_now(now).filter(|_| now.since(self.since) >= KNOWN)
    }

    /// Whether it has heard another resolver for long enough that what is said here was passed on by that one.
    fn has_heard(&self, other: &str, now: Tick) -> bool {
        self.hears.iter().any(|(name, since)| name == other && now.since(*since) >= KNOWN)
    }
}

impl Fleet {
    /// A new gateway's place.
    pub(super) fn enrol(&self, name: &str, now: Tick) -> usize {
        let mut gateways = self.0.lock();
        gateways.push(Gateway { name: name.to_owned(), heard: now, ..Gateway::default() });
        gateways.len() - 1
    }

    /// A gateway said how it is.
    pub(super) fn heard(&self, place: usize, said: Standing, now: Tick) {
        if let Some(gateway) = self.0.lock().get_mut(place) {
            if gateway.said.is_none() || now.since(gateway.heard) >= ALIVE {
                gateway.since = now;
                gateway.hears.clear();
            }
            let hears = std::mem::take(&mut gateway.hears);
            let since = |name: &String| hears.iter().find(|(known, _)| known == name).map_or(now, |(_, since)| *since);
            gateway.hears = said.heard.iter().map(|name| (name.clone(), since(name))).collect();
            gateway.heard = now;
            gateway.said = Some(said);
        }
    }

    /// The other resolvers that gateways besides this one hear.
    pub(super) fn alive(&self, place: usize, now: Tick) -> Vec<String> {
        let gateways = self.0.lock();
        let others = gateways.iter().enumerate().filter(|(at, _)| *at != place);
        let said = others.filter_map(|(_, gateway)| gateway.says_now(now));
        let mut alive: Vec<_> = said.flat_map(|said| said.heard.iter().filter(|name| **name != said.you)).collect();
        alive.sort_unstable();
        alive.dedup();
        alive.into_iter().cloned().collect()
    }

    /// Whether addresses were told without a gateway since it was last caught up with.
    pub(super) fn went_without(&self, place: usize) -> bool {
        self.0.lock().get(place).is_some_and(|gateway| gateway.gone_without)
    }

    /// A gateway has all again.
    pub(super) fn caught_up(&self, place: usize) {
        if let Some(gateway) = self.0.lock().get_mut(place) {
            gateway.gone_without = false;
        }
    }

    /// Whether flows are not led through a gateway any more, as far as can be known from here; from then on it counts as one
    /// without which addresses are told.
    ///
    /// # Errors
    /// Why they may still be.
    pub(super) fn is_fenced(&self, place: usize, now: Tick) -> Result<(), String> {
        let mut gateways = self.0.lock();
        let Some(gateway) = gateways.get(place) else { return Err("it is not known".into()) };
        // It is back, knows that it lacks something, and lets nothing new through until it has that.
        let is_back = gateway.gone_without
            && now.since(gateway.since) >= 2 * BEAT
            && gateway.says_now(now).is_some_and(|said| !said.waiting.is_empty());
        if is_back {
            return Ok(());
        }
        if now.since(gateway.heard) < FENCED {
            return Err("it was heard less than 4 s ago".into());
        }
        let fresh: Vec<_> = gateways.iter().filter(|gateway| gateway.knows_us(now).is_some()).collect();
        if fresh.is_empty() {
            return Err("no other gateway has heard this resolver for 2.5 s".into());
        }
        let said = gateways.iter().filter_map(|gateway| gateway.said.as_ref());
        for other in said.flat_map(|said| said.known.iter().filter(|name| **name != said.you)) {
            // It passes on that we live, and the gateway fences if it hears it.
            let passes_on = fresh.iter().any(|fresh| fresh.has_heard(other, now));
            let was_gone = gateway.said.as_ref().is_some_and(|said| !said.heard.contains(other));
            if !passes_on && !was_gone {
                return Err(format!(
                    "the resolver {other} is silent too, or was until now, and may still drive it; bring one of them back, or take the \
                     firewall {} out of the configuration",
                    gateway.name
                ));
            }
        }
        if let Some(gateway) = gateways.get_mut(place) {
            gateway.gone_without = true;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(you: &str, heard: &[&str]) -> Standing {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        Standing { you: you.into(), known: names(&["a", "b"]), heard: names(heard), ..Standing::default() }
    }

    fn at(millis: u64) -> Tick {
        Tick(0) + Duration::from_millis(millis)
    }

    /// What the resolver a knows, five seconds after the first gateway last said something.
    fn fenced(last_of_it: Option<&[&str]>, now_of_another: Option<&[&str]>) -> Result<(), String> {
        let fleet = Fleet::default();
        let (one, two) = (fleet.enrol("one", at(0)), fleet.enrol("two", at(0)));
        if let Some(heard) = last_of_it {
            fleet.heard(one, said("a", heard), at(0));
        }
        if let Some(heard) = now_of_another {
            for millis in (2400..5000).step_by(500) {
                fleet.heard(two, said("a", heard), at(millis));
            }
        }
        fleet.is_fenced(one, at(5000))
    }

    #[test]
    fn a_gateway_is_given_up_where_it_must_have_fenced() {
        // The other resolver is heard: it tells the gateway that we live.
        assert_eq!(fenced(Some(&["a", "b"]), Some(&["a", "b"])), Ok(()));
        assert_eq!(fenced(None, Some(&["a", "b"])), Ok(()));
        // It was gone before: it drives nobody.
        assert_eq!(fenced(Some(&["a"]), Some(&["a"])), Ok(()));
        // Both fell silent at once: it may drive the gateway, and not know of us.
        let why = fenced(Some(&["a", "b"]), Some(&["a"])).unwrap_err();
        assert!(why.starts_with("the resolver b is silent too, or was until now"), "{why}");
        assert!(fenced(None, Some(&["a"])).is_err());
        // Cut off from all: nothing is known.
        assert_eq!(fenced(Some(&["a", "b"]), None).unwrap_err(), "no other gateway has heard this resolver for 2.5 s");
    }

    #[test]
    fn not_before_its_time() {
        let fleet = Fleet::default();
        let (one, two) = (fleet.enrol("one", at(0)), fleet.enrol("two", at(0)));
        fleet.heard(one, said("a", &["a", "b"]), at(1000));
        for now in (1000..=5000).step_by(250) {
            fleet.heard(two, said("a", &["a", "b"]), at(now));
            assert_eq!(fleet.is_fenced(one, at(now)).is_ok(), now == 5000, "{now}");
            assert_eq!(fleet.went_without(one), now == 5000);
        }
        fleet.heard(one, said("a", &["a", "b"]), at(5000));
        assert!(fleet.is_fenced(one, at(5000)).is_err(), "it came back");
        assert!(fleet.went_without(one));
        let lacking =
            || Standing { waiting: "a told addresses that are not open here yet".into(), ..said("a", &["a", "b"]) };
        fleet.heard(one, lacking(), at(5250));
        assert!(fleet.is_fenced(one, at(5250)).is_err(), "it may not know yet");
        fleet.heard(one, lacking(), at(5500));
        assert_eq!(fleet.is_fenced(one, at(5500)), Ok(()));
        fleet.caught_up(one);
        assert!(!fleet.went_without(one));
    }

    /// After a pause of this process: that it lives has to be known before anybody fences because of it.
    #[test]
    fn who_was_away_itself_waits_until_that_is_known() {
        let fleet = Fleet::default();
        let (one, two) = (fleet.enrol("one", at(0)), fleet.enrol("two", at(0)));
        fleet.heard(one, said("a", &["a", "b"]), at(0));
        fleet.heard(two, said("a", &["a", "b"]), at(0));
        for now in (10_000..=12_500).step_by(250) {
            fleet.heard(two, said("a", &["a", "b"]), at(now));
            assert_eq!(fleet.is_fenced(one, at(now)).is_ok(), now == 12_500, "{now}");
        }
    }

    /// It may have begun to drive the gateway without knowing yet that we live.
    #[test]
    fn who_was_away_passes_nothing_on_at_first() {
        let fleet = Fleet::default();
        let (one, two) = (fleet.enrol("one", at(0)), fleet.enrol("two", at(0)));
        fleet.heard(one, said("a", &["a", "b"]), at(0));
        for now in (0..=6500).step_by(250) {
            let hears: &[&str] = if (500..4000).contains(&now) { &["a"] } else { &["a", "b"] };
            fleet.heard(two, said("a", hears), at(now));
            assert_eq!(fleet.is_fenced(one, at(now)).is_ok(), now == 6500, "{now}");
        }
    }

    #[test]
    fn who_lives_is_told_by_other_gateways_and_for_a_second() {
        let fleet = Fleet::default();
        let (one, two) = (fleet.enrol("one", at(0)), fleet.enrol("two", at(0)));
        fleet.heard(one, said("a", &["a", "b"]), at(0));
        assert_eq!(fleet.alive(one, at(0)), [""; 0], "it knows itself whom it hears");
        assert_eq!(fleet.alive(two, at(0)), ["b"]);
        assert_eq!(fleet.alive(two, at(999)), ["b"]);
        assert_eq!(fleet.alive(two, at(1000)), [""; 0]);
    }
}
