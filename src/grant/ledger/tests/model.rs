//! Random histories: the real ledger, a plain model of what was granted, and a firewall that replays every change
//! and drops elements at their end.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::sample::select;

use super::*;

const CLIENTS: [&str; 5] = ["192.0.2.1", "192.0.2.2", "192.0.2.65", "192.0.2.129", "192.0.2.130"];
const NAMES: [&str; 4] = ["a.example.org", "b.example.org", "deep.example.org", "x.many.example.org"];

/// All of them are met: a client of "shop" can have 8 elements, "shop" 16, all segments 32.
const CAPS: Caps = Caps { client: 5, segment: 8, all: 14 };

#[derive(Clone, Debug)]
enum Step {
    /// A client asks for a name and is given addresses (bits of 1 to 4).
    Offer {
        client: usize,
        name: usize,
        addresses: u8,
        ttl: u64,
    },
    /// The batch is applied; the changes at the bits of `failed` fail.
    Flush {
        failed: u64,
        fault: Fault,
    },
    Pass {
        milliseconds: u64,
    },
    Expire,
    Revoke(Keep),
    /// The process ends; a new one adopts what the firewall holds. `journalled`: it ended after the batch was
    /// journalled and before it was applied.
    Restart {
        keep: Keep,
        journalled: bool,
    },
    /// Somebody else takes elements away, adds one, and holds one longer.
    Tamper {
        lost: u64,
        stretched: usize,
    },
}

/// What a firewall does with changes of which it says that they failed.
#[derive(Clone, Copy, Debug)]
struct Fault {
    /// It made them all the same (one of several firewalls did).
    made: bool,
    /// It takes them back when told to.
    taken_back: bool,
}

/// What a policy upholds.
#[derive(Clone, Copy, Debug)]
enum Keep {
    All,
    NotName(usize),
    NotClient(usize),
    Neither(usize, usize),
}

impl Keep {
    fn upholds(self, basis: &Basis) -> bool {
        let named = |name: usize| basis.question.name == Name::parse(NAMES[name]).unwrap();
        let asked = |client: usize| basis.client == CLIENTS[client].parse::<IpAddr>().unwrap();
        match self {
            Self::All => true,
            Self::NotName(name) => !named(name),
            Self::NotClient(client) => !asked(client),
            Self::Neither(name, client) => !named(name) && !asked(client),
        }
    }
}

/// A reason as the model knows it: the ledger's end is somewhere between.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    least: Tick,
    most: Tick,
}

/// What a client was told: these elements are open until then.
#[derive(Debug)]
struct Promise {
    basis: Arc<Basis>,
    elements: BTreeSet<Element>,
    told_until: Tick,
}

struct World {
    policy: Arc<Policy>,
    ledger: Ledger,
    now: Tick,
    firewall: BTreeMap<Element, Tick>,
    /// A change of it failed and was not taken back: the firewall may hold it against the ledger's word.
    doubtful: BTreeSet<Element>,
    /// A process ended while something was doubtful. What it left open was adopted, whatever the caps say.
    crowded: bool,
    /// A firewall was read: it may hold elements longer by [`ROUNDING`].
    read: bool,
    reasons: BTreeMap<(Element, Name), Bounds>,
    /// Offers of the batch, and whether something was revoked since.
    waiting: Vec<(Offered, bool)>,
    promises: Vec<Promise>,
    ever_offered: BTreeSet<Element>,
    journal: BTreeMap<Element, Vec<Reason>>,
}

type Snapshot = (BTreeMap<Element, String>, Vec<Change>);

impl World {
    fn new() -> Self {
        Self {
            policy: policy(POLICY),
            ledger: Ledger::new(TERMS, CAPS),
            now: START,
            firewall: BTreeMap::new(),
            doubtful: BTreeSet::new(),
            crowded: false,
            read: false,
            reasons: BTreeMap::new(),
            waiting: Vec::new(),
            promises: Vec::new(),
            ever_offered: BTreeSet::new(),
            journal: BTreeMap::new(),
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Offer { client, name, addresses, ttl } => self.offer(client, name, addresses, ttl),
            Step::Flush { failed, fault } => self.flush(failed, fault),
            Step::Pass { milliseconds } => self.now = self.now + Duration::from_millis(milliseconds),
            Step::Expire => {
                self.ledger.expire(self.now, usize::MAX);
                assert!(self.ledger.table.iter().all(|(_, entry)| entry.place.open_until > self.now));
            }
            Step::Revoke(keep) => self.revoke(keep),
            Step::Restart { keep, journalled } => self.restart(keep, journalled),
            Step::Tamper { lost, stretched } => self.tamper(lost, stretched),
        }
        let now = self.now;
        self.firewall.retain(|_, until| *until > now);
        self.promises.retain(|promise| promise.told_until > now);
        self.check();
    }

    fn snapshot(&self) -> Snapshot {
        // What the ledger files it under may change: it looks what is in grace by now.
        let shown = |entry: &Entry| format!("{:?} {:?} {:?}", entry.reasons, entry.in_force, entry.place);
        let entries = self.ledger.table.iter().map(|(element, entry)| (*element, shown(entry)));
        (entries.collect(), self.ledger.batch.clone())
    }

    /// The elements that nobody is told any more and that no batch touches.
    fn in_grace(&self, spared: &BTreeSet<Element>) -> BTreeSet<Element> {
        let promised = |element: &Element| self.promises.iter().any(|promise| promise.elements.contains(element));
        let grace = self.ledger.held(0..usize::MAX).filter(|held| {
            held.in_force.is_some()
                && held.reasons().all(|reason| reason.told_until < self.now)
                && !spared.contains(held.element)
                && !self.ledger.batch.iter().any(|change| change.element() == held.element)
        });
        let grace: BTreeSet<Element> = grace.map(|held| *held.element).collect();
        assert!(!grace.iter().any(promised), "I4, I5: what was told counts as told");
        grace
    }

    /// I5: exactly as many elements as needed give way, in grace all of them, and the client's own where its own cap
    /// is met; where too few are in grace, nothing changes.
    fn offer(&mut self, client: usize, name: usize, addresses: u8, ttl: u64) {
        let now = self.now;
        let addresses: Vec<u8> = (0..4).filter(|bit| addresses & (1 << bit) != 0).map(|bit| bit + 1).collect();
        let cleared = cleared(&self.policy, CLIENTS[client], NAMES[name], &addresses);
        let (openings, basis) = (cleared.openings().to_vec(), Arc::clone(cleared.basis()));
        let told_until = TERMS.told_until(Ttl::from_wire(u32::try_from(ttl).unwrap()), now);

        let ended = |entry: &Entry| entry.reasons.iter().all(|reason| reason.open_until <= now);
        let live = self.ledger.table.iter().filter(|(_, entry)| !ended(entry));
        let before: BTreeMap<Element, SegmentId> =
            live.map(|(element, entry)| (*element, entry.place.segment)).collect();
        let mut unchanged = self.snapshot();
        unchanged.0.retain(|element, _| before.contains_key(element));
        let wanted: BTreeSet<Element> = openings.iter().map(|opening| opening.element).collect();
        let added = wanted.iter().filter(|element| !before.contains_key(element)).count();
        let own =
            |element: &Element| matches!(element.from, Scope::Client(_)) && element.from == openings[0].element.from;
        let segment = SegmentId::of(&basis.segment);
        let theirs = |element: &Element| before.get(element) == Some(&segment);
        let excess = |have: usize, cap: usize| (have + added).saturating_sub(cap);
        let personal = matches!(openings[0].element.from, Scope::Client(_));
        let over_client = if personal { excess(before.keys().filter(|e| own(e)).count(), CAPS.client) } else { 0 };
        let over_segment = excess(before.keys().filter(|e| theirs(e)).count(), CAPS.segment);
        let over_all = excess(before.len(), CAPS.all);
        let grace: BTreeSet<Element> = self.in_grace(&wanted).into_iter().filter(|e| before.contains_key(e)).collect();
        let count = |of: &dyn Fn(&Element) -> bool| grace.iter().filter(|element| of(element)).count();

        match self.ledger.offer(cleared, told_until, both(now)) {
            Err(full) => {
                let (have, need) = match full {
                    Full::Client => (count(&own), over_client),
                    Full::Segment => (count(&theirs), over_segment),
                    Full::All => (grace.len(), over_all),
                };
                assert!(have < need, "I5: {full:?} with {have} in grace, {need} needed");
                assert_eq!(self.snapshot(), unchanged, "I5: a refused offer changes nothing");
            }
            Ok(offered) => {
                let gone: BTreeSet<Element> =
                    before.keys().filter(|element| self.ledger.table.get(element).is_none()).copied().collect();
                assert!(gone.is_subset(&grace), "I5: evicted before its told end");
                assert_eq!(gone.len(), over_client.max(over_segment).max(over_all), "I5: as many as needed");
                assert!(gone.iter().filter(|e| own(e)).count() >= over_client);
                assert!(over_segment + over_all > 0 || gone.iter().all(own), "I5: evicted another's");
                self.reasons.retain(|(element, _), _| !gone.contains(element));
                for opening in &openings {
                    let lease = TERMS.lease(told_until, opening.hold, None, now);
                    let key = (opening.element, basis.question.name.clone());
                    let known = self.reasons.get(&key).filter(|known| known.most > now).copied();
                    let known = known.unwrap_or(Bounds { least: now, most: now });
                    // What is in force within half the grace of what is asked for is not touched.
                    let least = known.least.max(lease.open_until - TERMS.grace / 2);
                    self.reasons.insert(key, Bounds { least, most: known.most.max(lease.open_until) });
                    self.ever_offered.insert(opening.element);
                }
                self.waiting.push((offered, false));
            }
        }
    }

    fn apply(&mut self, change: &Change) {
        match *change {
            Change::Open { element, until } if until > self.now => self.firewall.insert(element, until),
            Change::Open { element, .. } | Change::Close { element } => self.firewall.remove(&element),
        };
    }

    /// As the granter does it: openings under their basis, then closings.
    fn write_journal(&mut self, batch: &[Change]) {
        for (offered, _) in &self.waiting {
            for added in offered.added() {
                let basis = (**offered.cleared().basis()).clone();
                let known = self.journal.entry(added.element).or_default();
                known.retain(|reason| reason.basis.question.name != basis.question.name);
                known.push(Reason { basis, told_until: offered.told_until(), open_until: added.open_until });
            }
        }
        self.write_closings(batch);
    }

    fn write_closings(&mut self, changes: &[Change]) {
        for change in changes {
            if let Change::Close { element } = change {
                self.journal.remove(element);
            }
        }
    }

    /// I4: what is granted is open at that moment until the told end at least; what is not, failed or was revoked.
    fn flush(&mut self, failed: u64, fault: Fault) {
        let batch = self.ledger.take_batch();
        let elements: BTreeSet<&Element> = batch.iter().map(Change::element).collect();
        assert_eq!(elements.len(), batch.len(), "one change per element");
        self.write_journal(&batch);
        let failed: Vec<usize> = (0..batch.len()).filter(|at| *at < 64 && failed & (1 << at) != 0).collect();
        for (at, change) in batch.iter().enumerate() {
            if failed.contains(&at) {
                self.doubtful.insert(*change.element());
            } else {
                self.doubtful.remove(change.element());
            }
            if fault.made || !failed.contains(&at) {
                self.apply(change);
            }
        }
        let back = self.ledger.acknowledge(&batch, &failed);
        let meant: BTreeSet<&Element> = back.iter().map(Change::element).collect();
        self.write_closings(&back);
        let refused: BTreeSet<&Element> = failed.iter().map(|at| batch[*at].element()).collect();
        assert_eq!(meant, refused, "every failed change is taken back, and no other");
        for change in back.iter().filter(|_| fault.taken_back) {
            self.apply(change);
            self.doubtful.remove(change.element());
        }
        for element in refused.iter().copied() {
            let end = self.ledger.table.get(element).map(|entry| entry.place.open_until);
            self.reasons.retain(|(of, _), _| of != element || end.is_some());
            for ((_, _), bounds) in self.reasons.iter_mut().filter(|((of, _), _)| of == element) {
                bounds.least = bounds.least.min(end.unwrap());
            }
        }
        for (offered, revoked) in std::mem::take(&mut self.waiting) {
            let basis = Arc::clone(offered.cleared().basis());
            let told_until = offered.told_until();
            let elements: BTreeSet<Element> =
                offered.cleared().openings().iter().map(|opening| opening.element).collect();
            match self.ledger.settle(offered, self.now).granted {
                Ok(granted) => {
                    for element in &elements {
                        let until = self.firewall.get(element).copied().unwrap_or_default();
                        assert!(until >= granted.told_until().max(self.now), "I4: {element} is told and not open");
                        assert!(granted.open_until().is_some_and(|end| end <= until));
                    }
                    self.promises.push(Promise { basis, elements, told_until });
                }
                Err(missing) => {
                    let expected = |element: &Element| refused.contains(element) || revoked || told_until <= self.now;
                    assert!(missing.iter().all(expected), "{missing:?} is open and was not granted");
                }
            }
        }
    }

    /// I6: no live reason is left that is not upheld, and none is gone that is.
    fn revoke(&mut self, keep: Keep) {
        let now = self.now;
        let mut gone = BTreeSet::new();
        for held in self.ledger.held(0..usize::MAX) {
            for reason in held.reasons().filter(|reason| reason.open_until > now) {
                if !keep.upholds(&reason.basis) {
                    gone.insert((*held.element, reason.basis.question.name.clone()));
                }
            }
        }
        let revoked = self.ledger.revoke_all(now, |basis, _| keep.upholds(basis));
        let named: BTreeSet<_> = revoked.iter().map(|one| (one.element, one.basis.question.name.clone())).collect();
        assert_eq!(named, gone, "I6");
        for one in &revoked {
            let remains = self.ledger.table.get(&one.element).map(|entry| entry.place.open_until);
            assert_eq!(one.remains, remains);
        }
        for held in self.ledger.held(0..usize::MAX) {
            let mut live = held.reasons().filter(|reason| reason.open_until > now);
            assert!(live.all(|reason| keep.upholds(&reason.basis)), "I6: {held:?}");
        }
        self.reasons.retain(|key, _| !gone.contains(key));
        for promise in &mut self.promises {
            promise.elements.retain(|element| !gone.contains(&(*element, promise.basis.question.name.clone())));
        }
        self.waiting.iter_mut().for_each(|(_, revoked)| *revoked |= !gone.is_empty());
    }

    /// I8, as far as it is the ledger's: what was told survives, unless it is not upheld any more.
    fn restart(&mut self, keep: Keep, journalled: bool) {
        let batch = self.ledger.take_batch();
        if journalled {
            self.write_journal(&batch);
        }
        self.waiting.clear();
        self.crowded |= !self.doubtful.is_empty();
        self.doubtful.clear();
        self.read = true;
        self.ledger = Ledger::new(TERMS, CAPS);
        self.reasons.clear();
        let now = self.now;
        self.firewall.retain(|_, until| *until > now);
        for (element, reasons) in &self.journal {
            for reason in reasons {
                self.ledger.recall(*element, &reason.basis, reason.told_until, reason.open_until);
            }
        }
        let mut expected = BTreeSet::new();
        for (element, until) in self.firewall.clone() {
            self.ledger.confirm(&element, until);
            let mut reasons = self.journal.get(&element).cloned().unwrap_or_default();
            for reason in reasons.iter().filter(|reason| !keep.upholds(&reason.basis)) {
                for promise in self.promises.iter_mut().filter(|one| one.basis.question == reason.basis.question) {
                    promise.elements.remove(&element);
                }
            }
            reasons.retain(|reason| keep.upholds(&reason.basis));
            for reason in &reasons {
                let end = reason.open_until.min(until);
                self.reasons.insert((element, reason.basis.question.name.clone()), Bounds { least: end, most: end });
            }
            if reasons.iter().any(|reason| reason.open_until > now) {
                expected.insert(element);
            }
        }
        self.ledger.adopt(now, |basis, _| keep.upholds(basis));
        assert_eq!(self.ledger.table.iter().map(|(element, _)| *element).collect::<BTreeSet<_>>(), expected);
        assert!(self.ledger.take_batch().is_empty());
        self.repair();
        self.journal.clear();
        for held in self.ledger.held(0..usize::MAX) {
            self.journal.insert(*held.element, held.reasons().collect());
        }
    }

    /// A firewall is read, and told what is wrong with it.
    fn repair(&mut self) {
        let found: Vec<_> = self.firewall.iter().map(|(element, until)| (*element, *until)).collect();
        let changes = self.ledger.repair(&found, self.now);
        changes.iter().for_each(|change| self.apply(change));
    }

    fn tamper(&mut self, lost: u64, stretched: usize) {
        let mut at = 0;
        self.firewall.retain(|_, _| {
            at += 1;
            at > 64 || lost & (1 << (at - 1)) == 0
        });
        let foreign =
            Element { from: Scope::Segment(SegmentId(7)), to: address(9), service: crate::net::Service::Icmp };
        self.firewall.insert(foreign, self.now + seconds(1000));
        if let Some(until) = self.firewall.values_mut().nth(stretched) {
            *until = *until + seconds(500);
        }
        self.repair();
        assert!(!self.firewall.contains_key(&foreign));
        self.doubtful.clear();
        self.read = true;
    }

    /// What holds after every step.
    fn check(&self) {
        let now = self.now;
        self.ledger.check(now);

        let mut clients: BTreeMap<Scope, usize> = BTreeMap::new();
        let mut segments: BTreeMap<SegmentId, usize> = BTreeMap::new();
        for (element, entry) in self.ledger.table.iter() {
            *segments.entry(entry.place.segment).or_default() += 1;
            if let Scope::Client(_) = element.from {
                *clients.entry(element.from).or_default() += 1;
            }
        }
        let within = clients.values().all(|count| *count <= CAPS.client)
            && segments.values().all(|count| *count <= CAPS.segment)
            && self.ledger.len() <= CAPS.all;
        assert!(within || self.crowded, "I5: more than a cap allows");

        // One element, many reasons: the ledger has those of the model, each with an end of its own.
        for held in self.ledger.held(0..usize::MAX) {
            for reason in held.reasons().filter(|reason| reason.open_until > now) {
                let bounds = self.reasons.get(&(*held.element, reason.basis.question.name.clone()));
                let bounds = bounds.unwrap_or_else(|| panic!("I3: {} has a reason that nobody gave", held.element));
                assert!(reason.open_until <= bounds.most, "I3: {} ends too late", held.element);
            }
        }
        for ((element, name), bounds) in self.reasons.iter().filter(|(_, bounds)| bounds.least > now) {
            let entry = self.ledger.table.get(element).unwrap_or_else(|| panic!("{element} is gone, {name} holds it"));
            let reason = entry.reasons.iter().find(|reason| reason.basis.unpack().question.name == *name);
            assert!(
                reason.is_some_and(|reason| reason.open_until >= bounds.least),
                "{element} ends before {name} does"
            );
        }

        for promise in &self.promises {
            for element in &promise.elements {
                let until = self.firewall.get(element).copied().unwrap_or_default();
                assert!(until >= promise.told_until, "I4: {element} is cut before {:?}", promise.told_until);
            }
        }

        if !self.ledger.batch.is_empty() {
            return;
        }
        let slack = if self.read { ROUNDING } else { Duration::ZERO };
        for (element, until) in self.firewall.iter().filter(|(element, _)| !self.doubtful.contains(element)) {
            assert!(self.ever_offered.contains(element), "I3: {element} was never offered");
            let most = self.reasons.iter().filter(|((of, _), _)| of == element).map(|(_, bounds)| bounds.most).max();
            let most = most.unwrap_or_else(|| panic!("I3, I6: {element} is open without a reason"));
            assert!(*until <= most + slack, "I3: {element} is open for too long");
        }
        for ((element, name), bounds) in self.reasons.iter().filter(|(_, bounds)| bounds.least > now) {
            let until = self.firewall.get(element).copied().unwrap_or_default();
            assert!(until >= bounds.least, "{element} is closed and {name} needs it");
        }
    }
}

fn a_keep() -> impl Strategy<Value = Keep> {
    let (name, client) = (0..NAMES.len(), 0..CLIENTS.len());
    prop_oneof![
        1 => Just(Keep::All),
        3 => name.clone().prop_map(Keep::NotName),
        2 => client.clone().prop_map(Keep::NotClient),
        1 => (name, client).prop_map(|(name, client)| Keep::Neither(name, client)),
    ]
}

fn a_step() -> impl Strategy<Value = Step> {
    let failed = prop_oneof![3 => Just(0), 1 => any::<u64>(), 1 => Just(u64::MAX)];
    let fault = (any::<bool>(), any::<bool>()).prop_map(|(made, taken_back)| Fault { made, taken_back });
    prop_oneof![
        12 => (0..CLIENTS.len(), 0..NAMES.len(), 1u8..16, select(vec![0u64, 5, 10, 30, 60, 900]))
            .prop_map(|(client, name, addresses, ttl)| Step::Offer { client, name, addresses, ttl }),
        8 => (failed, fault).prop_map(|(failed, fault)| Step::Flush { failed, fault }),
        6 => (0u64..40_000).prop_map(|milliseconds| Step::Pass { milliseconds }),
        1 => Just(Step::Expire),
        2 => a_keep().prop_map(Step::Revoke),
        1 => (a_keep(), any::<bool>()).prop_map(|(keep, journalled)| Step::Restart { keep, journalled }),
        1 => (any::<u64>(), 0usize..8).prop_map(|(lost, stretched)| Step::Tamper { lost, stretched }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// I3, I4, I5, I6 and I8, as far as they are the ledger's: see [`World::check`] and each step.
    #[test]
    fn every_history_keeps_the_invariants(steps in prop::collection::vec(a_step(), 1..80)) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
        }
    }
}
