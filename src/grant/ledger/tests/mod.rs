//! The ledger against a plain model ([`model`]), and what the model is too small for.

mod model;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::entry::MAX_REASONS;
use super::*;
use crate::name::Name;
use crate::net::Scope;
use crate::policy::{Policy, Settings, Source, Verdict, compile, decide, inspect};
use crate::record::{AddressTrust, Answer, Origin, Rcode, Record, RecordType};
use crate::time::{Ttl, Wall};

const START: Tick = Tick(1_000_000_000_000);

/// Short enough that a minute of model time passes through every phase of a grant.
const TERMS: Terms = Terms {
    ttl_min: Duration::from_secs(5),
    ttl_max: Duration::from_secs(60),
    grace: Duration::from_secs(10),
    hold: Duration::from_secs(20),
};

const POLICY: &str = r#"
[[segment]]
name    = "shop"
clients = ["192.0.2.0/26"]
[[segment]]
name    = "desk"
clients = ["192.0.2.64/26"]
[[segment]]
name    = "hall"
clients = ["192.0.2.128/26"]
scope   = "segment"
[[rule]]
id       = "web"
action   = "allow"
segments = ["*"]
names    = ["a.example.org", "b.example.org", "**.many.example.org"]
[[rule]]
id       = "deep"
action   = "allow"
segments = ["*"]
names    = ["deep.example.org"]
ports    = ["tcp/443", "tcp/22"]
hold     = "2m"
"#;

fn policy(text: &str) -> Arc<Policy> {
    let source = Source { file: "test.toml".to_owned(), text: text.to_owned() };
    Arc::new(compile([source], &Settings::default()).unwrap())
}

/// Clocks that show the same.
fn both(tick: Tick) -> Now {
    Now { tick, wall: Wall(tick.0) }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// `192.88.98.N`: a public address.
fn address(last: u8) -> IpAddr {
    IpAddr::from([192, 88, 98, last])
}

/// The inspected answer to `client`'s question for the addresses of `name`.
fn cleared(policy: &Arc<Policy>, client: &str, name: &str, addresses: &[u8]) -> Cleared {
    let asker = policy.asker(client.parse().unwrap()).unwrap();
    let name = Name::parse(name).unwrap();
    let Verdict::Permit(permit) = decide(policy, asker, name.as_wire(), RecordType::A, Wall(0)) else {
        panic!("{name} is refused")
    };
    let record = |last: &u8| Record::of_address(name.clone(), Ttl::from_wire(60), address(*last));
    let answer = Answer {
        rcode: Rcode::NOERROR,
        authoritative: false,
        records: addresses.iter().map(record).collect(),
        soa: None,
        ede: None,
        proof: None,
        origin: Origin { name: Arc::from("default"), trust: AddressTrust::Upstream(Arc::from([])) },
    };
    let cleared = inspect(permit, answer);
    assert!(!cleared.openings().is_empty());
    cleared
}

impl Ledger {
    /// What is filed is what was there to file, and the firewalls or the batch know every element's end.
    fn check(&self, now: Tick) {
        let mut clients: BTreeMap<IpAddr, usize> = BTreeMap::new();
        let mut segments: BTreeMap<SegmentId, usize> = BTreeMap::new();
        let mut grace: BTreeSet<Element> = BTreeSet::new();
        let alarms: BTreeSet<(Tick, Slot)> = self.alarms.iter().map(|Reverse(alarm)| *alarm).collect();
        for (element, entry) in self.table.iter() {
            let latest = |of: fn(&Kept) -> Tick| entry.reasons.iter().map(of).max().unwrap();
            assert_eq!(entry.place.open_until, latest(|reason| reason.open_until), "{element}");
            assert_eq!(entry.place.told_until, latest(|reason| reason.told_until), "{element}");
            assert!(entry.reasons.iter().all(|reason| reason.told_until <= reason.open_until), "{element}");
            assert!(entry.reasons.len() <= MAX_REASONS, "{element}");
            let until = entry.place.open_until;
            let batched = (entry.batched.0 == self.batch_number).then(|| self.batch[entry.batched.1 as usize]);
            let told = Change::Open { element: *element, until };
            assert!(batched.is_none_or(|change| change == told), "{element}: {batched:?} for {until:?}");
            assert!(batched.is_some() || entry.in_force == until, "{element}: {entry:?}");
            assert!(entry.in_force <= until, "{element}: {entry:?}");

            *segments.entry(entry.place.segment).or_default() += 1;
            if let Scope::Client(client) = element.from {
                *clients.entry(client).or_default() += 1;
            }
            // It is looked at in time: when its grace begins, and when it ends.
            let slot = self.table.find(element).unwrap();
            assert!(alarms.contains(&(entry.alarm, slot)), "{element}: {entry:?}");
            assert!(entry.alarm <= until, "{element}: {entry:?}");
            if entry.links.in_grace {
                assert!(entry.place.told_until < now, "{element}: {entry:?}");
                grace.insert(*element);
            } else {
                assert!(entry.alarm <= entry.place.told_until + NEXT, "{element}: {entry:?}");
            }
        }
        let listed = |slots: &mut dyn Iterator<Item = Slot>| -> Vec<Element> {
            slots.map(|slot| *self.table.element(slot).unwrap()).collect()
        };
        let all = listed(&mut self.owners.grace(&self.table));
        assert_eq!((all.len(), all.into_iter().collect::<BTreeSet<_>>()), (grace.len(), grace.clone()));
        for (client, count) in &clients {
            assert_eq!(self.owners.of_client(*client), *count);
            let theirs = grace.iter().filter(|element| element.from == Scope::Client(*client)).count();
            let own = listed(&mut self.owners.grace_of_client(&self.table, *client));
            assert!(own.iter().all(|element| element.from == Scope::Client(*client)));
            assert_eq!(own.len(), theirs);
        }
        for (segment, count) in &segments {
            assert_eq!(self.owners.of_segment(*segment), *count);
            let of = |element: &&Element| self.table.get(element).unwrap().place.segment == *segment;
            let theirs = grace.iter().filter(of).count();
            let own = listed(&mut self.owners.grace_of_segment(&self.table, *segment));
            assert!(own.iter().all(|element| of(&element)));
            assert_eq!(own.len(), theirs);
        }
        assert_eq!(self.owners.counts(), (clients.len(), segments.len()));
        let batched = self.table.iter().filter(|(_, entry)| entry.batched.0 == self.batch_number).count();
        assert_eq!(batched + self.gone.len(), self.batch.len());
        for (element, at) in &self.gone {
            let change = self.batch[*at as usize];
            assert_eq!(change.element(), element);
            assert!(!matches!(change, Change::Open { until, .. } if until > now), "{change:?} and it is gone");
        }
    }

    /// Takes the batch and acknowledges all of it.
    fn flush(&mut self, now: Tick) -> Vec<Change> {
        let batch = self.take_batch();
        assert_eq!(self.acknowledge(&batch, &[]), []);
        self.check(now);
        batch
    }

    fn only(&self) -> &Entry {
        assert_eq!(self.len(), 1);
        self.table.iter().next().unwrap().1
    }

    fn revoke_all(&mut self, now: Tick, keep: impl FnMut(&Basis, &Element) -> bool) -> Vec<Revoked> {
        self.revoke(0..self.slots(), now, keep)
    }
}

fn opened(batch: &[Change]) -> Vec<u64> {
    let until = |change: &Change| match change {
        Change::Open { until, .. } => until.since(START).as_secs(),
        Change::Close { .. } => 0,
    };
    batch.iter().map(until).collect()
}

const ASKER: &str = "192.0.2.1";

#[test]
fn a_second_offer_joins_the_batch_of_the_first() {
    let policy = policy(POLICY);
    let mut ledger = Ledger::new(TERMS, Caps::default());
    let first = ledger.offer(cleared(&policy, ASKER, "a.example.org", &[1]), START + seconds(5), both(START)).unwrap();
    let later = START + seconds(1);
    let second =
        ledger.offer(cleared(&policy, ASKER, "a.example.org", &[1]), START + seconds(30), both(later)).unwrap();
    let third = ledger.offer(cleared(&policy, ASKER, "b.example.org", &[1]), START + seconds(5), both(later)).unwrap();
    let effects = |offered: &Offered| offered.added().iter().map(|added| added.effect).collect::<Vec<_>>();
    assert_eq!(effects(&first), [Effect::Opens(START + seconds(20))]);
    assert_eq!(effects(&second), [Effect::Opens(START + seconds(40))]);
    // It is the journal that must know the reason of the third; the element ends with the second.
    assert_eq!(effects(&third), [Effect::Opens(START + seconds(40))]);
    assert_eq!(third.added()[0].open_until, START + seconds(21));
    assert_eq!(opened(&ledger.flush(START)), [40]);
    for offered in [first, second, third] {
        assert_eq!(ledger.settle(offered, START).granted.unwrap().open_until(), Some(START + seconds(40)));
    }
}

#[test]
fn an_element_that_fails_fails_every_offer_that_wanted_it() {
    let policy = policy(POLICY);
    let mut ledger = Ledger::new(TERMS, Caps::default());
    let first = ledger.offer(cleared(&policy, ASKER, "a.example.org", &[1, 2]), START, both(START)).unwrap();
    let second = ledger.offer(cleared(&policy, ASKER, "b.example.org", &[2]), START, both(START)).unwrap();
    let batch = ledger.take_batch();
    let failed = *batch[1].element();
    assert_eq!(ledger.acknowledge(&batch, &[1]), [Change::Close { element: failed }]);
    ledger.check(START);
    assert_eq!(ledger.settle(first, START).granted.unwrap_err(), [failed]);
    assert_eq!(ledger.settle(second, START).granted.unwrap_err(), [failed]);
    assert_eq!(ledger.len(), 1);
}

#[test]
fn a_renewal_that_fails_leaves_what_was_in_force() {
    let policy = policy(POLICY);
    let mut ledger = Ledger::new(TERMS, Caps::default());
    let _ = ledger.offer(cleared(&policy, ASKER, "a.example.org", &[1]), START, both(START)).unwrap();
    ledger.flush(START);
    let now = START + seconds(15);
    let short = ledger.offer(cleared(&policy, ASKER, "b.example.org", &[1]), START + seconds(18), both(now)).unwrap();
    let long = ledger.offer(cleared(&policy, ASKER, "a.example.org", &[1]), START + seconds(40), both(now)).unwrap();
    let batch = ledger.take_batch();
    assert_eq!(opened(&batch), [50]);
    // One firewall may have made it: all are told what is in force.
    assert_eq!(opened(&ledger.acknowledge(&batch, &[0])), [20]);
    ledger.check(START);
    ledger.settle(short, now).granted.unwrap();
    ledger.settle(long, now).granted.unwrap_err();
    ledger.expire(START + seconds(20), 1);
    assert_eq!(ledger.len(), 0);
}

/// A lowered end is not forgotten: what is offered while it waits in the batch raises it again.
#[test]
fn an_offer_after_a_revocation_is_not_promised_what_was_revoked() {
    let policy = policy(POLICY);
    let mut ledger = Ledger::new(TERMS, Caps::default());
    let _ = ledger.offer(cleared(&policy, ASKER, "deep.example.org", &[1]), START, both(START)).unwrap();
    let _ = ledger.offer(cleared(&policy, ASKER, "a.example.org", &[1]), START, both(START)).unwrap();
    ledger.flush(START);
    let revoked = ledger.revoke_all(START, |basis, _| &*basis.rule != "deep");
    let remains: Vec<_> = revoked.iter().map(|one| one.remains.map(|end| end.since(START).as_secs())).collect();
    assert_eq!(remains.iter().flatten().collect::<Vec<_>>(), [&20], "443 stays for the other name, 22 closes");
    let told_until = START + seconds(50);
    let offered = ledger.offer(cleared(&policy, ASKER, "b.example.org", &[1]), told_until, both(START)).unwrap();
    assert_eq!(offered.added()[0].effect, Effect::Extends(START + seconds(60)));
    let mut ends = opened(&ledger.flush(START));
    ends.sort_unstable();
    assert_eq!(ends, [0, 60]);
    assert!(ledger.settle(offered, START).granted.is_ok());

    // Without the batch in between, too: the ledger does not believe in the old end until it is told so.
    ledger.revoke_all(START, |basis, _| basis.question.name != Name::parse("b.example.org").unwrap());
    assert_eq!(ledger.only().in_force, START + seconds(20));
}

/// I5: `**.many.example.org` cannot fill an element with reasons, and nobody's time is cut by trying.
#[test]
fn at_the_cap_of_reasons_the_first_to_end_gives_way() {
    let policy = policy(POLICY);
    let mut ledger = Ledger::new(TERMS, Caps::default());
    let told = START + seconds(60);
    let _ = ledger.offer(cleared(&policy, ASKER, "a.example.org", &[1]), told, both(START)).unwrap();
    let hold = cleared(&policy, ASKER, "deep.example.org", &[1]);
    let _ = ledger.offer(hold, START, both(START)).unwrap();
    for n in 0..3 * MAX_REASONS {
        let name = format!("n{n}.many.example.org");
        let now = START + seconds(51);
        let offered = ledger.offer(cleared(&policy, ASKER, &name, &[1]), now, both(now)).unwrap();
        ledger.flush(START);
        ledger.settle(offered, now).granted.unwrap();
    }
    let entry = ledger.table.iter().map(|(_, entry)| entry).find(|entry| entry.reasons.len() > 1).unwrap();
    assert_eq!(entry.reasons.len(), MAX_REASONS);
    assert_eq!(entry.place.open_until, START + seconds(120));
    assert!(entry.reasons.iter().all(|reason| !reason.basis.unpack().question.name.to_string().starts_with("a.")));
    assert_eq!(entry.place.told_until, told, "what was told for the one that gave way still counts");
}

#[test]
fn reasons_that_have_ended_are_dropped() {
    let policy = policy(POLICY);
    let mut ledger = Ledger::new(TERMS, Caps::default());
    let _ = ledger.offer(cleared(&policy, ASKER, "a.example.org", &[1]), START, both(START)).unwrap();
    let now = START + seconds(15);
    let _ = ledger.offer(cleared(&policy, ASKER, "b.example.org", &[1]), now, both(now)).unwrap();
    let now = START + seconds(25);
    let _ = ledger.offer(cleared(&policy, ASKER, "c.many.example.org", &[1]), now, both(now)).unwrap();
    let names: Vec<_> =
        ledger.only().reasons.iter().map(|reason| reason.basis.unpack().question.name.to_string()).collect();
    assert_eq!(names, ["b.example.org", "c.many.example.org"]);
}

/// A client that moved to another segment takes its elements along, under that segment's cap.
#[test]
fn elements_count_against_the_segment_of_the_last_answer() {
    let (old, new) =
        (policy(POLICY), policy(&POLICY.replace("192.0.2.0/26", "192.0.2.192/26").replace(".64/26", ".0/25")));
    let (shop, desk) = (SegmentId::of("shop"), SegmentId::of("desk"));
    let mut ledger = Ledger::new(TERMS, Caps { segment: 2, ..Caps::default() });
    let _ = ledger.offer(cleared(&old, ASKER, "a.example.org", &[1, 2]), START, both(START)).unwrap();
    let _ = ledger.offer(cleared(&new, "192.0.2.65", "a.example.org", &[1]), START, both(START)).unwrap();
    ledger.flush(START);
    assert_eq!((ledger.owners.of_segment(shop), ledger.owners.of_segment(desk)), (2, 1));
    let _ = ledger.offer(cleared(&new, ASKER, "a.example.org", &[1]), START, both(START)).unwrap();
    ledger.flush(START);
    assert_eq!((ledger.owners.of_segment(shop), ledger.owners.of_segment(desk)), (1, 2));
    let full = ledger.offer(cleared(&new, ASKER, "a.example.org", &[2]), START, both(START)).unwrap_err();
    assert_eq!(full, Full::Segment);
}

#[test]
fn what_is_adopted_ends_with_the_reasons_that_are_upheld() {
    let policy = policy(POLICY);
    let cleared = cleared(&policy, ASKER, "a.example.org", &[1]);
    let (element, basis) = (cleared.openings()[0].element, cleared.basis());
    let at = |second: u64| START + seconds(second);
    // (in force until, the reason's told and open end) → the element's end, its told end, what a firewall is told
    let rows = [
        (100, Some((30, 100)), Some((100, 60)), None, "as it was; all that a TTL can be may have been told since"),
        (100, Some((80, 100)), Some((100, 80)), None, "the journal may know of more than could be told now"),
        (100, Some((30, 50)), Some((50, 50)), Some(50), "a reason of the longer end is not upheld"),
        (40, Some((30, 50)), Some((40, 40)), None, "another firewall lost it"),
        (100, Some((0, 0)), None, Some(0), "ended"),
        (100, None, None, Some(0), "no reason"),
    ];
    for (in_force, journalled, ends, change, why) in rows {
        let mut ledger = Ledger::new(TERMS, Caps::default());
        if let Some((told, open)) = journalled {
            ledger.recall(element, basis, at(told), at(open));
        }
        ledger.confirm(&element, at(in_force));
        ledger.adopt(START, |_, _| true);
        ledger.check(START);
        let place = ledger.table.get(&element).map(|entry| entry.place);
        let place =
            place.map(|place| (place.open_until.since(START).as_secs(), place.told_until.since(START).as_secs()));
        assert_eq!(place, ends, "{why}");
        let changes = ledger.repair(&[(element, at(in_force))], START);
        assert_eq!(opened(&changes), change.into_iter().collect::<Vec<_>>(), "{why}");
        assert_eq!(ledger.take_batch(), []);
    }
}

/// The journal in its order, then what the firewalls hold.
#[test]
fn the_last_word_on_a_reason_counts_and_the_longest_firewall() {
    let policy = policy(POLICY);
    let cleared = |name| cleared(&policy, ASKER, name, &[1]);
    let (one, other) = (cleared("a.example.org"), cleared("b.example.org"));
    let element = one.openings()[0].element;
    let at = |second: u64| START + seconds(second);
    let mut ledger = Ledger::new(TERMS, Caps::default());
    ledger.recall(element, one.basis(), at(1), at(90));
    ledger.forget(&element);
    ledger.recall(element, other.basis(), at(1), at(30));
    ledger.recall(element, one.basis(), at(1), at(99));
    ledger.recall(element, one.basis(), at(1), at(40));
    ledger.confirm(&element, at(70));
    ledger.confirm(&element, at(60));
    ledger.adopt(START, |basis, _| basis.question.name != Name::parse("b.example.org").unwrap());
    let entry = ledger.only();
    assert_eq!((entry.reasons.len(), entry.in_force), (1, at(40)));
    assert_eq!(entry.reasons[0].basis.unpack(), **one.basis());
    // What no firewall holds is not open, whatever the journal says.
    let mut ledger = Ledger::new(TERMS, Caps::default());
    ledger.recall(element, one.basis(), at(1), at(90));
    ledger.adopt(START, |_, _| true);
    assert!(ledger.is_empty());
}

/// However many of a large batch fail, in whatever order they are listed.
#[test]
fn many_failures_cost_no_more_than_the_batch() {
    let policy = policy(&POLICY.replace("\"tcp/443\", \"tcp/22\"", "\"tcp/1-128\""));
    let mut ledger = Ledger::new(TERMS, Caps::default());
    let addresses: Vec<u8> = (0..16).collect();
    for client in 1..=60 {
        let client = format!("192.0.2.{client}");
        let _ = ledger.offer(cleared(&policy, &client, "deep.example.org", &addresses), START, both(START)).unwrap();
    }
    let batch = ledger.take_batch();
    assert_eq!(batch.len(), 60 * 16 * 128);
    let failed: Vec<usize> = (0..batch.len()).rev().filter(|at| at % 3 != 0).collect();
    assert_eq!(ledger.acknowledge(&batch, &failed).len(), failed.len());
    assert_eq!(ledger.len(), batch.len() - failed.len());
    ledger.check(START);
}
