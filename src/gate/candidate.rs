//! The candidate: a policy that is decided beside the one in force on every query, and never obeyed. What it would do
//! otherwise is in the record of the query, and counted here by segment, name and type.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;
use parking_lot::Mutex;

use crate::audit::{Outcome, Shadow};
use crate::gate::Arrival;
use crate::name::Name;
use crate::policy::{Dissent, Judged, Opinion, Policy, Reason, Segment, Standing, opine};
use crate::record::RecordType;
use crate::time::Wall;

/// Rows of the table. Where it is full a new row takes the place of the least of some others, which is counted on
/// together with all that have no row: names that are asked for once push out none that are asked for often.
const ROWS: usize = 1_024;
/// So many rows, all over the table, are looked at for that.
const LOOKED_AT: usize = 16;

/// A policy beside the one in force.
#[derive(Debug)]
pub struct Candidate {
    /// The policy.
    pub policy: Arc<Policy>,
    notes: Arc<Mutex<Notes>>,
}

/// What the policy in force said of a query.
pub(super) struct Live<'a> {
    pub(super) outcome: Outcome,
    pub(super) enforced: bool,
    pub(super) reason: Reason,
    pub(super) segment: Option<&'a Segment>,
    /// An answer was inspected.
    pub(super) inspected: bool,
    /// What the candidate said of that answer.
    pub(super) judged: Option<&'a Judged>,
}

/// Over what a candidate disagreed.
#[derive(Clone, Debug)]
pub struct Dissents {
    /// From when on it was asked.
    pub since: Wall,
    /// How many queries there had been before.
    pub asked_before: u64,
    /// How often, in the order of [`Dissent::ALL`].
    pub counts: [u64; Dissent::ALL.len()],
    /// When for the first and the last time.
    pub between: Option<(Wall, Wall)>,
    /// Those of `counts` that are in no row.
    pub unlisted: u64,
    /// The most frequent first.
    pub rows: Vec<DissentRow>,
}

/// Over what question a candidate disagreed.
#[derive(Clone, Debug)]
pub struct DissentRow {
    /// The segment of the clients under the policy in force; `None`: they have none.
    pub segment: Option<Arc<str>>,
    /// What was asked for.
    pub name: Name,
    /// Of which type.
    pub kind: RecordType,
    /// In what.
    pub dissent: Dissent,
    /// Why, the last time.
    pub reason: Reason,
    /// The candidate's rule, the last time.
    pub rule: Option<Arc<str>>,
    /// How often.
    pub count: u64,
    /// The last time.
    pub last: Wall,
}

impl Dissents {
    /// How often it disagreed in all.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }
}

impl Candidate {
    /// A candidate that is asked from `now` on, when there had been so many queries.
    #[must_use]
    pub fn new(policy: Arc<Policy>, now: Wall, asked_before: u64) -> Self {
        let dissents = Dissents {
            since: now,
            asked_before,
            counts: [0; Dissent::ALL.len()],
            between: None,
            unlisted: 0,
            rows: Vec::new(),
        };
        let notes = Notes { dissents, places: HashMap::default(), hand: 0 };
        Self { policy, notes: Arc::new(Mutex::new(notes)) }
    }

    /// The candidate of another load of the same files: what was noted stands.
    #[must_use]
    pub fn again(&self, policy: Arc<Policy>) -> Self {
        Self { policy, notes: Arc::clone(&self.notes) }
    }

    /// Over what it disagreed, with `most` rows at most.
    #[must_use]
    pub fn dissents(&self, most: usize) -> Dissents {
        let mut dissents = self.notes.lock().dissents.clone();
        dissents.rows.sort_by_key(|row| Reverse((row.count, row.last)));
        dissents.unlisted += dissents.rows.iter().skip(most).map(|row| row.count).sum::<u64>();
        dissents.rows.truncate(most);
        dissents
    }

    /// What it says of a query, where that is something else; and takes note of it.
    pub(super) fn judge<'a>(
        &'a self,
        arrival: &Arrival,
        (name, kind): (&[u8], RecordType),
        live: &Live<'a>,
    ) -> Option<Shadow<'a>> {
        let policy = &*self.policy;
        let asker = arrival.asker(policy);
        let decided = asker.map(|asker| opine(policy, asker, name, kind, arrival.at.wall));
        let decided = decided.unwrap_or(Opinion::denied(Reason::NoSegment, None));
        // What it said of the answer was said for one of its segments.
        let judged = live.judged.filter(|judged| asker.is_some_and(|asker| asker.place() == judged.place));
        let judged = judged.filter(|_| decided.standing != Standing::Denied);
        let opinion = judged.map_or(decided, |judged| judged.opinion);
        let dissent = dissent(live, kind, &opinion, judged)?;
        let rule = opinion.rule.map(|rule| policy.rule_id(rule));
        let segment = asker.map(|asker| &policy.segment(asker).name);
        self.notes.lock().note(arrival.at.wall, (name, kind), dissent, live.segment, (opinion.reason, rule));
        Some(Shadow {
            dissent,
            outcome: if opinion.standing == Standing::Allowed { Outcome::Allow } else { Outcome::Deny },
            enforced: opinion.standing != Standing::Observed,
            reason: opinion.reason,
            rule: rule.map(|rule| &**rule),
            segment: segment.filter(|name| live.segment.is_none_or(|live| live.name != **name)).map(|name| &**name),
            policy: policy.revision(),
            why: judged.and_then(|judged| judged.why.as_deref()),
        })
    }
}

fn dissent(live: &Live<'_>, kind: RecordType, opinion: &Opinion, judged: Option<&Judged>) -> Option<Dissent> {
    let denied = opinion.standing == Standing::Denied;
    let own = live.reason == Reason::Special || (live.reason == Reason::Local && kind == RecordType::PTR);
    match (live.outcome, live.enforced) {
        // What this node answers of itself it answers under any policy that has no rule against it.
        (Outcome::Allow, _) if own => (denied && opinion.reason == Reason::Rule).then_some(Dissent::Denies),
        (Outcome::Error, _) => denied.then_some(Dissent::Denies),
        // It has not seen an answer that was withheld, unless it was shown that one.
        (Outcome::Deny, true) => (!denied && (!live.inspected || judged.is_some())).then_some(Dissent::Allows),
        (Outcome::Allow, _) | (Outcome::Deny, false) => {
            let standing = if live.outcome == Outcome::Allow { Standing::Allowed } else { Standing::Observed };
            let differs = opinion.standing != standing || judged.is_some_and(|judged| judged.why.is_some());
            if denied { Some(Dissent::Denies) } else { differs.then_some(Dissent::Differs) }
        }
    }
}

type Key = (Option<Arc<str>>, Name, RecordType, Dissent);

#[derive(Debug)]
struct Notes {
    dissents: Dissents,
    places: HashMap<Key, usize, RandomState>,
    /// Where the search for a row to give up begins.
    hand: usize,
}

impl Notes {
    fn note(
        &mut self,
        at: Wall,
        (name, kind): (&[u8], RecordType),
        dissent: Dissent,
        segment: Option<&Segment>,
        (reason, rule): (Reason, Option<&Arc<str>>),
    ) {
        let Dissents { counts, between, unlisted, rows, .. } = &mut self.dissents;
        if let Some(count) = counts.get_mut(dissent as usize) {
            *count += 1;
        }
        let first = between.map_or(at, |(first, _)| first.min(at));
        *between = Some((first, between.map_or(at, |(_, last)| last.max(at))));
        let Ok(name) = Name::from_wire(name) else {
            *unlisted += 1;
            return;
        };
        let key: Key = (segment.map(|segment| Arc::clone(&segment.name)), name, kind, dissent);
        if let Some(row) = self.places.get(&key).and_then(|place| rows.get_mut(*place)) {
            row.count += 1;
            row.last = row.last.max(at);
            row.reason = reason;
            if row.rule.as_ref() != rule {
                row.rule = rule.cloned();
            }
            return;
        }
        let (segment, name, ..) = key.clone();
        let row = DissentRow { segment, name, kind, dissent, reason, rule: rule.cloned(), count: 1, last: at };
        let place = if rows.len() < ROWS {
            rows.push(row);
            rows.len() - 1
        } else {
            self.hand = (self.hand + 1) % ROWS;
            let looked_at = (0..LOOKED_AT).map(|step| (self.hand + step * (ROWS / LOOKED_AT)) % ROWS);
            let least = looked_at.min_by_key(|place| rows.get(*place).map(|row| (row.count, row.last))).unwrap_or(0);
            if let Some(taken) = rows.get_mut(least) {
                let gone = std::mem::replace(taken, row);
                *unlisted += gone.count;
                self.places.remove(&(gone.segment, gone.name, gone.kind, gone.dissent));
            }
            least
        };
        self.places.insert(key, place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: usize) -> Name {
        Name::parse(&format!("n{number}.example.com")).unwrap()
    }

    fn notes() -> Notes {
        let policy = crate::policy::compile([], &crate::policy::Settings::default()).unwrap();
        let candidate = Candidate::new(Arc::new(policy), Wall(1), 0);
        Arc::into_inner(candidate.notes).unwrap().into_inner()
    }

    fn note(notes: &mut Notes, number: usize, at: u64) {
        let asked = (name(number), RecordType::A);
        notes.note(Wall(at), (asked.0.as_wire(), asked.1), Dissent::Denies, None, (Reason::Default, None));
    }

    /// I5: names that nobody asks for twice fill the table at nobody's expense who is asked for more.
    #[test]
    fn names_asked_once_push_out_none_that_is_asked_often() {
        let mut notes = notes();
        for round in 0..3 {
            (0..ROWS / 2).for_each(|number| note(&mut notes, number, round));
        }
        for number in ROWS..20 * ROWS {
            note(&mut notes, number, number as u64);
        }
        assert_eq!((notes.dissents.rows.len(), notes.places.len()), (ROWS, ROWS));
        for number in 0..ROWS / 2 {
            let place = notes.places[&(None, name(number), RecordType::A, Dissent::Denies)];
            assert_eq!(notes.dissents.rows[place].count, 3, "{number}");
        }
        let listed: u64 = notes.dissents.rows.iter().map(|row| row.count).sum();
        assert_eq!(listed + notes.dissents.unlisted, notes.dissents.total(), "nothing is lost of the sum");
        assert_eq!(notes.dissents.between, Some((Wall(0), Wall(20 * ROWS as u64 - 1))));
    }
}
