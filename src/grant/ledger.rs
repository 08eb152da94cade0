//! The ledger: offer, acknowledge, settle, expire, revoke.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use foldhash::quality::RandomState;
use smallvec::SmallVec;

use crate::grant::{Change, Terms};
use crate::net::{Element, Scope, SegmentId, Service};
use crate::policy::{Basis, Cleared};
use crate::time::Tick;

/// How many elements may be live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// For one client.
    pub client: usize,
    /// For one segment, its clients' elements included.
    pub segment: usize,
    /// In all.
    pub all: usize,
}

impl Default for Caps {
    fn default() -> Self {
        Self { client: 4_096, segment: 262_144, all: 1_048_576 }
    }
}

/// Which cap an offer met with nothing in grace to evict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// The client's.
    Client,
    /// The segment's.
    Segment,
    /// The node's.
    All,
}

impl Full {
    /// One clause for the record and the client.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Client => "this client has too many open addresses",
            Self::Segment => "this segment has too many open addresses",
            Self::All => "this node has too many open addresses",
        }
    }
}

/// One reason for which an element is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// The answer that needed it.
    pub basis: Arc<Basis>,
    /// No client was told longer.
    pub told_until: Tick,
    /// It counts until here.
    pub open_until: Tick,
}

/// One live element, for listings and snapshots.
#[derive(Clone, Copy, Debug)]
pub struct Held<'a> {
    /// Which.
    pub element: &'a Element,
    /// When the firewalls drop it; `None` while no acknowledgement has come.
    pub in_force: Option<Tick>,
    /// Why.
    pub reasons: &'a [Reason],
}

/// Proof that everything an answer needs is open for at least as long as the answer is told.
///
/// Made by [`Ledger::settle`] and [`Granted::nothing_to_open`] alone.
#[derive(Debug)]
pub struct Granted {
    cleared: Cleared,
    told_until: Tick,
    open_until: Option<Tick>,
}

impl Granted {
    /// An answer without openings is granted at once; one with openings comes back.
    ///
    /// # Errors
    /// The answer, where it does need openings.
    #[expect(clippy::result_large_err, reason = "the answer goes back to a caller that holds it by value anyway")]
    pub fn nothing_to_open(cleared: Cleared, told_until: Tick) -> Result<Self, Cleared> {
        if cleared.openings().is_empty() { Ok(Self { cleared, told_until, open_until: None }) } else { Err(cleared) }
    }

    /// The answer.
    #[must_use]
    pub const fn cleared(&self) -> &Cleared {
        &self.cleared
    }

    /// It may be told until here.
    #[must_use]
    pub const fn told_until(&self) -> Tick {
        self.told_until
    }

    /// The first of its openings ends here; `None` where it needed none.
    #[must_use]
    pub const fn open_until(&self) -> Option<Tick> {
        self.open_until
    }
}

/// An answer whose openings are in the batch being filled, or open already.
#[derive(Debug)]
pub struct Offered {
    cleared: Cleared,
    told_until: Tick,
    changed: Vec<(Element, Tick, bool)>,
}

impl Offered {
    /// The answer that was offered.
    #[must_use]
    pub const fn cleared(&self) -> &Cleared {
        &self.cleared
    }

    /// No client is told longer.
    #[must_use]
    pub const fn told_until(&self) -> Tick {
        self.told_until
    }

    /// The elements that this offer put into the batch, each with its new end and whether it was open before.
    #[must_use]
    pub fn changed(&self) -> &[(Element, Tick, bool)] {
        &self.changed
    }
}

/// A reason that was taken away before its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revoked {
    /// The element.
    pub element: Element,
    /// The reason that is gone.
    pub basis: Arc<Basis>,
    /// The end that the remaining reasons give it; `None`: it is closed.
    pub remains: Option<Tick>,
}

#[derive(Debug)]
struct Entry {
    reasons: SmallVec<[Reason; 1]>,
    /// What the firewalls last acknowledged.
    in_force: Option<Tick>,
    /// The key under which the entry stands in `ends` and `by_owner`: the maximum over its reasons.
    wanted: Tick,
    segment: SegmentId,
}

/// Which element is open, for which reasons, until when. See the room's front page.
#[derive(Debug)]
pub struct Ledger {
    terms: Terms,
    caps: Caps,
    entries: HashMap<Element, Entry, RandomState>,
    /// Every element by its end, and by owner and end: expiry and eviction look at the front.
    ends: BTreeSet<(Tick, Element)>,
    by_owner: BTreeSet<(Scope, Tick, Element)>,
    by_segment: BTreeSet<(SegmentId, Tick, Element)>,
    counts: HashMap<Scope, usize, RandomState>,
    segment_counts: HashMap<SegmentId, usize, RandomState>,
    batch: Vec<Change>,
    batched: HashMap<Element, usize, RandomState>,
}

/// How many of the elements nearest their end are looked at for one that is in grace.
const EVICTION_SCAN: usize = 32;

impl Ledger {
    /// An empty ledger.
    #[must_use]
    pub fn new(terms: Terms, caps: Caps) -> Self {
        Self {
            terms,
            caps,
            entries: HashMap::default(),
            ends: BTreeSet::new(),
            by_owner: BTreeSet::new(),
            by_segment: BTreeSet::new(),
            counts: HashMap::default(),
            segment_counts: HashMap::default(),
            batch: Vec::new(),
            batched: HashMap::default(),
        }
    }

    /// How many elements are live or pending.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether an element is live or pending.
    #[must_use]
    pub fn holds(&self, element: &Element) -> bool {
        self.entries.contains_key(element)
    }

    /// Everything that is live or pending.
    pub fn iter(&self) -> impl Iterator<Item = Held<'_>> {
        self.entries.iter().map(|(element, entry)| Held { element, in_force: entry.in_force, reasons: &entry.reasons })
    }

    /// Puts the openings of an answer that is told until `told_until` into the batch being filled. An opening
    /// that is in force long enough adds nothing; one that is pending joins the same batch.
    ///
    /// # Errors
    /// A cap is met and nothing of that owner is in grace: nothing was added, nobody's grant was cut.
    pub fn offer(&mut self, cleared: Cleared, told_until: Tick, now: Tick) -> Result<Offered, Full> {
        let told_until = told_until.max(now);
        let segment = SegmentId::of(&cleared.basis().segment);
        self.make_room(&cleared, segment, now)?;
        let mut changed = Vec::new();
        for opening in cleared.openings() {
            let lease = self.terms.lease(told_until, opening.hold, now);
            let reason = Reason {
                basis: Arc::clone(cleared.basis()),
                told_until: lease.told_until,
                open_until: lease.open_until,
            };
            if let Some((until, was_open)) = self.add(opening.element, reason, segment) {
                changed.push((opening.element, until, was_open));
            }
        }
        Ok(Offered { cleared, told_until, changed })
    }

    /// Adds or renews a reason; the element's new end and whether it was open before, where a firewall must be
    /// told.
    fn add(&mut self, element: Element, reason: Reason, segment: SegmentId) -> Option<(Tick, bool)> {
        let terms = self.terms;
        if !self.entries.contains_key(&element) {
            *self.counts.entry(element.from).or_default() += 1;
            *self.segment_counts.entry(segment).or_default() += 1;
            let entry = Entry { reasons: SmallVec::new(), in_force: None, wanted: Tick(0), segment };
            self.entries.insert(element, entry);
        }
        let entry = self.entries.get_mut(&element)?;
        let was_open = entry.in_force.is_some();
        let told_until = reason.told_until;
        let renewed = entry.reasons.iter_mut().find(|known| {
            known.basis.question.name == reason.basis.question.name && known.basis.rule == reason.basis.rule
        });
        match renewed {
            Some(known)
                if entry.in_force.is_some_and(|until| terms.covers(until.min(known.open_until), told_until)) =>
            {
                known.told_until = known.told_until.max(told_until);
                return None;
            }
            Some(known) => {
                known.told_until = known.told_until.max(reason.told_until);
                known.open_until = known.open_until.max(reason.open_until);
                known.basis = reason.basis;
            }
            None => entry.reasons.push(reason),
        }
        let wanted = entry.reasons.iter().map(|reason| reason.open_until).max().unwrap_or(Tick(0));
        let segment = entry.segment;
        let before = std::mem::replace(&mut entry.wanted, wanted);
        let enough = entry.in_force.is_some_and(|until| until >= wanted);
        self.reindex(element, segment, Some(before), Some(wanted));
        if enough {
            return None;
        }
        self.change(Change::Open { element, until: wanted });
        Some((wanted, was_open))
    }

    fn reindex(&mut self, element: Element, segment: SegmentId, before: Option<Tick>, after: Option<Tick>) {
        if let Some(before) = before {
            self.ends.remove(&(before, element));
            self.by_owner.remove(&(element.from, before, element));
            self.by_segment.remove(&(segment, before, element));
        }
        if let Some(after) = after {
            self.ends.insert((after, element));
            self.by_owner.insert((element.from, after, element));
            self.by_segment.insert((segment, after, element));
        }
    }

    /// One change per element and batch: the later word replaces the earlier.
    fn change(&mut self, change: Change) {
        match self.batched.get(change.element()) {
            Some(&at) => {
                if let Some(slot) = self.batch.get_mut(at) {
                    *slot = change;
                }
            }
            None => {
                self.batched.insert(*change.element(), self.batch.len());
                self.batch.push(change);
            }
        }
    }

    /// Evicts what is in grace until the new elements of `cleared` fit under every cap.
    fn make_room(&mut self, cleared: &Cleared, segment: SegmentId, now: Tick) -> Result<(), Full> {
        let mut new: HashMap<Scope, usize, RandomState> = HashMap::default();
        let mut keep: Vec<Element> = Vec::new();
        for opening in cleared.openings() {
            if self.entries.contains_key(&opening.element) {
                keep.push(opening.element);
            } else {
                *new.entry(opening.element.from).or_default() += 1;
            }
        }
        let total: usize = new.values().sum();
        // Who is evicted is chosen first for every cap, and closed only when all of them fit.
        let mut evicted: Vec<Element> = Vec::new();
        for (scope, added) in new {
            if let Scope::Client(_) = scope {
                let have = self.counts.get(&scope).copied().unwrap_or(0);
                let first = (scope, Tick(0), lowest(scope));
                let range = self.by_owner.range(first..).take_while(|(owner, ..)| *owner == scope).map(|(_, _, e)| *e);
                self.choose(range, (have + added).saturating_sub(self.caps.client), now, &keep, &mut evicted)
                    .ok_or(Full::Client)?;
            }
        }
        let of_segment = evicted.iter().filter(|element| self.segment_of(element) == Some(segment)).count();
        let have = self.segment_counts.get(&segment).copied().unwrap_or(0) - of_segment;
        let first = (segment, Tick(0), lowest(Scope::Client(IpAddr::V4(Ipv4Addr::UNSPECIFIED))));
        let range = self.by_segment.range(first..).take_while(|(owner, ..)| *owner == segment).map(|(_, _, e)| *e);
        self.choose(range, (have + total).saturating_sub(self.caps.segment), now, &keep, &mut evicted)
            .ok_or(Full::Segment)?;
        let have = self.entries.len() - evicted.len();
        let range = self.ends.iter().map(|(_, element)| *element);
        self.choose(range, (have + total).saturating_sub(self.caps.all), now, &keep, &mut evicted).ok_or(Full::All)?;
        for element in evicted {
            self.remove(&element);
            self.change(Change::Close { element });
        }
        Ok(())
    }

    fn segment_of(&self, element: &Element) -> Option<SegmentId> {
        self.entries.get(element).map(|entry| entry.segment)
    }

    /// Picks `excess` elements in grace from those nearest their end.
    fn choose(
        &self,
        nearest: impl Iterator<Item = Element>,
        excess: usize,
        now: Tick,
        keep: &[Element],
        evicted: &mut Vec<Element>,
    ) -> Option<()> {
        if excess == 0 {
            return Some(());
        }
        let in_grace = |element: &Element| {
            self.entries.get(element).is_some_and(|entry| {
                entry.in_force.is_some()
                    && entry.reasons.iter().all(|reason| reason.told_until < now)
                    && !self.batched.contains_key(element)
            })
        };
        let chosen: Vec<Element> = nearest
            .take(EVICTION_SCAN + excess)
            .filter(|element| in_grace(element) && !keep.contains(element) && !evicted.contains(element))
            .take(excess)
            .collect();
        let enough = chosen.len() == excess;
        evicted.extend(chosen);
        enough.then_some(())
    }

    fn remove(&mut self, element: &Element) -> Option<Entry> {
        let entry = self.entries.remove(element)?;
        self.reindex(*element, entry.segment, Some(entry.wanted), None);
        decrement(&mut self.counts, &element.from);
        decrement(&mut self.segment_counts, &entry.segment);
        Some(entry)
    }

    /// Hands over the batch that was filled; the next one starts empty.
    #[must_use]
    pub fn take_batch(&mut self) -> Vec<Change> {
        self.batched.clear();
        std::mem::take(&mut self.batch)
    }

    /// Every required firewall has applied `changes`, except those at the indexes `failed`.
    pub fn acknowledge(&mut self, changes: &[Change], failed: &[usize]) {
        for (index, change) in changes.iter().enumerate() {
            let Change::Open { element, until } = change else { continue };
            if failed.contains(&index) {
                self.forget_failed(element);
            } else if let Some(entry) = self.entries.get_mut(element) {
                entry.in_force = Some(*until);
            }
        }
    }

    /// A firewall did not take an element: what was in force before goes on until its end, and nothing more is
    /// promised for it.
    fn forget_failed(&mut self, element: &Element) {
        let Some(entry) = self.entries.get_mut(element) else { return };
        let Some(in_force) = entry.in_force else {
            self.remove(element);
            return;
        };
        for reason in &mut entry.reasons {
            reason.open_until = reason.open_until.min(in_force);
            reason.told_until = reason.told_until.min(in_force);
        }
        let (segment, before) = (entry.segment, std::mem::replace(&mut entry.wanted, in_force));
        self.reindex(*element, segment, Some(before), Some(in_force));
    }

    /// The proof that an offered answer may be told: every opening is in force until the told end at least.
    ///
    /// # Errors
    /// The elements that are not.
    pub fn settle(&self, offered: Offered) -> Result<Granted, Vec<Element>> {
        let mut open_until: Option<Tick> = None;
        let mut missing = Vec::new();
        for opening in offered.cleared.openings() {
            match self.entries.get(&opening.element).and_then(|entry| entry.in_force) {
                Some(until) if until >= offered.told_until => {
                    open_until = Some(open_until.map_or(until, |least: Tick| least.min(until)));
                }
                _ => missing.push(opening.element),
            }
        }
        if missing.is_empty() {
            Ok(Granted { cleared: offered.cleared, told_until: offered.told_until, open_until })
        } else {
            Err(missing)
        }
    }

    /// Drops what has ended; the firewalls have dropped it by themselves. How many elements.
    pub fn expire(&mut self, now: Tick) -> usize {
        let mut ended = 0;
        while let Some((until, element)) = self.ends.first().copied().filter(|(until, _)| *until <= now) {
            debug_assert!(until <= now);
            self.remove(&element);
            ended += 1;
        }
        ended
    }

    /// When the next element ends.
    #[must_use]
    pub fn next_end(&self) -> Option<Tick> {
        self.ends.first().map(|(until, _)| *until)
    }

    /// Takes away every reason that `keep` does not uphold (I6): the batch gets the closings, and the lowered
    /// ends of elements that other reasons still hold.
    pub fn revoke(&mut self, now: Tick, mut keep: impl FnMut(&Basis, &Element) -> bool) -> Vec<Revoked> {
        let mut touched: Vec<(Element, SmallVec<[Arc<Basis>; 1]>)> = Vec::new();
        for (element, entry) in &self.entries {
            let gone: SmallVec<[Arc<Basis>; 1]> = entry
                .reasons
                .iter()
                .filter(|reason| reason.open_until > now && !keep(&reason.basis, element))
                .map(|reason| Arc::clone(&reason.basis))
                .collect();
            if !gone.is_empty() {
                touched.push((*element, gone));
            }
        }
        let mut revoked = Vec::new();
        for (element, gone) in touched {
            let Some(entry) = self.entries.get_mut(&element) else { continue };
            entry.reasons.retain(|reason| !gone.iter().any(|basis| Arc::ptr_eq(basis, &reason.basis)));
            let segment = entry.segment;
            let remains = entry.reasons.iter().map(|reason| reason.open_until).max().filter(|end| *end > now);
            match remains {
                Some(end) => {
                    let before = std::mem::replace(&mut entry.wanted, end);
                    let lower = entry.in_force.is_none_or(|until| until > end);
                    self.reindex(element, segment, Some(before), Some(end));
                    if lower {
                        self.change(Change::Open { element, until: end });
                    }
                }
                None => {
                    self.remove(&element);
                    self.change(Change::Close { element });
                }
            }
            revoked.extend(gone.into_iter().map(|basis| Revoked { element, basis, remains }));
        }
        revoked
    }

    /// Takes over an element that was found in force at start, with the reasons that the journal gives for it
    /// and the present policy upholds. Without a reason that still counts the batch gets its closing.
    pub fn adopt(&mut self, element: Element, in_force: Tick, reasons: Vec<Reason>, now: Tick) -> bool {
        let live = reasons.into_iter().filter(|reason| reason.open_until > now);
        let mut adopted = false;
        for mut reason in live {
            reason.open_until = reason.open_until.min(in_force);
            reason.told_until = reason.told_until.min(in_force);
            let segment = SegmentId::of(&reason.basis.segment);
            self.add(element, reason, segment);
            adopted = true;
        }
        // What is in force is known, not to be asked for: forget the opening that `add` put into the batch.
        if let Some(at) = self.batched.remove(&element) {
            self.batch.swap_remove(at);
            if let Some(moved) = self.batch.get(at) {
                self.batched.insert(*moved.element(), at);
            }
        }
        match self.entries.get_mut(&element) {
            Some(entry) => entry.in_force = Some(in_force),
            None => self.change(Change::Close { element }),
        }
        adopted
    }

    /// After a firewall lost or gained elements behind our back: `found` is what it holds; what must be opened again
    /// and what must go. Elements that wait in the batch being filled are left to it.
    #[must_use]
    pub fn repair(&self, found: &HashMap<Element, Tick, RandomState>, now: Tick) -> Vec<Change> {
        let lost = self.entries.iter().filter_map(|(element, entry)| {
            let until = entry.in_force.filter(|until| *until > now)?;
            let held = found.get(element).is_some_and(|held| *held >= until);
            (!held && !self.batched.contains_key(element)).then_some(Change::Open { element: *element, until })
        });
        let foreign = found.keys().filter(|element| !self.entries.contains_key(element));
        lost.chain(foreign.map(|element| Change::Close { element: *element })).collect()
    }
}

fn decrement<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize, RandomState>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

/// The element that sorts before every other of an owner.
const fn lowest(from: Scope) -> Element {
    Element { from, to: IpAddr::V4(Ipv4Addr::UNSPECIFIED), service: Service::Tcp(0) }
}
