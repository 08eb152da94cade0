//! What is asked upstream while no client waits for it: the same question once, so many at once, each with a permit and
//! a deadline like any other.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use foldhash::quality::RandomState;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::audit::RecordId;
use crate::cache::Who;
use crate::gate::Gate;
use crate::gate::slow::Asking;
use crate::policy::Permit;
use crate::record::Question;
use crate::time::Tick;
use crate::upstream::Ports;

/// Refreshes under way at once; past it none is begun, and who would have waited asks in its own place (guessed: an eighth
/// of the exchanges that there may be).
const MOST: usize = 1_024;

/// What is refreshed once at a time.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    /// An upstream's answer.
    Answer(u32, Question),
    /// What somebody was told.
    Reply(Who, Question),
}

type Table = Mutex<HashMap<Key, watch::Receiver<()>, RandomState>>;

/// Where refreshes are ordered.
#[derive(Debug)]
pub struct Refreshes {
    orders: mpsc::Sender<Order>,
    under_way: Arc<Table>,
}

/// Who makes them.
#[derive(Debug)]
pub struct Refresher(mpsc::Receiver<Order>);

/// What is to be done.
#[derive(Debug)]
struct Order {
    work: Work,
    /// The query that made it necessary.
    id: Option<RecordId>,
    place: Place,
}

#[derive(Debug)]
enum Work {
    /// To ask upstream, for those who wait or come later.
    Ask(Permit),
    /// To renew what was told until here.
    Renew(Permit, Tick),
}

/// A refresh's place among those under way. Dropping it gives it back, and tells those who wait.
#[derive(Debug)]
struct Place {
    under_way: Arc<Table>,
    key: Key,
    ended: watch::Sender<()>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.under_way.lock().remove(&self.key);
    }
}

/// What becomes of an order.
enum Entered {
    /// It is under way already.
    Joined(Refresh),
    /// It is to be made.
    First(Place),
    /// There is no room.
    Full,
}

/// A refresh under way.
#[derive(Debug)]
pub(super) struct Refresh(watch::Receiver<()>);

impl Refresh {
    /// Waits until it has ended, in whatever way: the tables know what came of it.
    pub(super) async fn ended(mut self) {
        // Nothing is ever sent: it ends with an error, when the sender is dropped.
        let _ = self.0.changed().await;
    }
}

impl Refreshes {
    /// Nothing is under way; nothing is made before [`Refresher::run`].
    #[must_use]
    pub fn new() -> (Self, Refresher) {
        let (orders, inbox) = mpsc::channel(MOST);
        (Self { orders, under_way: Arc::default() }, Refresher(inbox))
    }

    /// Has the permitted question asked, or joins who asks it already; `None` where there is no room.
    pub(super) fn begin(&self, view: u32, permit: &Permit, id: Option<RecordId>) -> Option<Refresh> {
        let place = match self.enter(Key::Answer(view, permit.question().clone())) {
            Entered::Joined(refresh) => return Some(refresh),
            Entered::First(place) => place,
            Entered::Full => return None,
        };
        let refresh = Refresh(place.ended.subscribe());
        // An order that is refused gives its place back.
        self.orders.try_send(Order { work: Work::Ask(permit.clone()), id, place }).ok()?;
        Some(refresh)
    }

    /// Has renewed what `who` was told until `told`, unless that is under way or there is no room.
    pub(super) fn renew(&self, who: Who, permit: Permit, told: Tick, id: RecordId) {
        if let Entered::First(place) = self.enter(Key::Reply(who, permit.question().clone())) {
            // Refused, it gives its place back, and what was told ends.
            let _ = self.orders.try_send(Order { work: Work::Renew(permit, told), id: Some(id), place });
        }
    }

    fn enter(&self, key: Key) -> Entered {
        let mut under_way = self.under_way.lock();
        let full = under_way.len() >= MOST;
        match under_way.entry(key) {
            Entry::Occupied(entry) => Entered::Joined(Refresh(entry.get().clone())),
            Entry::Vacant(_) if full => Entered::Full,
            Entry::Vacant(entry) => {
                let (ended, waiting) = watch::channel(());
                let key = entry.key().clone();
                entry.insert(waiting);
                Entered::First(Place { under_way: Arc::clone(&self.under_way), key, ended })
            }
        }
    }

    /// How many are under way.
    #[must_use]
    pub fn len(&self) -> usize {
        self.under_way.lock().len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Refresher {
    /// Makes what is ordered, until the gate is gone or this is dropped.
    pub async fn run(mut self, gate: Arc<Gate>) {
        let ports = Arc::new(gate.upstreams.ports());
        let mut tasks = JoinSet::new();
        loop {
            tokio::select! {
                order = self.0.recv() => match order {
                    Some(order) => _ = tasks.spawn(refresh(Arc::clone(&gate), Arc::clone(&ports), order)),
                    None => return,
                },
                Some(_) = tasks.join_next() => {}
            }
        }
    }
}

async fn refresh(gate: Arc<Gate>, ports: Arc<Ports>, order: Order) {
    let Order { work, id, place } = order;
    let asking = |renews| Asking { id, ports: &ports, deadline: Instant::now() + gate.deadlines.query, renews };
    match work {
        // A policy that came since it was ordered may refuse it (I1). What comes of it opens nothing and tells nobody: who
        // waits, or comes later, takes it on a permit of its own.
        Work::Ask(permit) if gate.stands(&permit) => {
            let name = permit.question().name.as_wire();
            if let Some(upstream) = gate.upstreams.route(&permit.segment().name, name) {
                // What came of it is in the tables.
                let _ = gate.fetch(upstream, &permit, &asking(Tick(0))).await;
            }
        }
        Work::Ask(_) => {}
        Work::Renew(permit, told) => gate.renew(permit, &asking(told)).await,
    }
    drop(place);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{self, Source, Verdict, decide};
    use crate::record::RecordType;
    use crate::time::Wall;

    fn permit(name: &str) -> Permit {
        let text = "[[segment]]\nname = \"all\"\nclients = [\"192.0.2.0/24\"]\n[[rule]]\nid = \"r\"\naction = \"allow\"\n\
                    segments = [\"*\"]\nnames = [\"*.example.com\"]\n";
        let source = Source { file: "test.toml".to_owned(), text: text.to_owned() };
        let policy = Arc::new(policy::compile([source], &policy::Settings::default()).unwrap());
        let asker = policy.asker("192.0.2.1".parse().unwrap()).unwrap();
        let name = crate::name::Name::parse(&format!("{name}.example.com")).unwrap();
        match decide(&policy, asker, name.as_wire(), RecordType::A, Wall(0)) {
            Verdict::Permit(permit) => permit,
            other => panic!("{other:?}"),
        }
    }

    const ID: Option<RecordId> = None;

    #[tokio::test]
    async fn the_same_question_is_ordered_once_and_all_see_its_end() {
        let (refreshes, mut refresher) = Refreshes::new();
        let waiting = [(1, "a"), (1, "a"), (2, "a"), (1, "b")];
        let mut waiting: Vec<_> =
            waiting.iter().map(|(view, name)| refreshes.begin(*view, &permit(name), ID).unwrap()).collect();
        assert_eq!(refreshes.len(), 3);
        let order = refresher.0.recv().await.unwrap();
        assert!(matches!(order.place.key, Key::Answer(1, _)));
        drop(order);
        for refresh in waiting.drain(..2) {
            refresh.ended().await;
        }
        assert_eq!(refreshes.len(), 2);
        drop(refresher);
        for refresh in waiting {
            refresh.ended().await;
        }
        assert!(refreshes.is_empty(), "what will never be made has no place");
        assert!(refreshes.begin(1, &permit("a"), ID).is_none() && refreshes.is_empty());
    }

    /// I5
    #[tokio::test]
    async fn at_the_cap_none_is_begun_and_those_under_way_are_joined() {
        let (refreshes, mut refresher) = Refreshes::new();
        let permit = permit("a");
        let most = u32::try_from(MOST).unwrap();
        for view in 0..most {
            assert!(refreshes.begin(view, &permit, ID).is_some());
        }
        assert!(refreshes.begin(most, &permit, ID).is_none());
        assert!(refreshes.begin(0, &permit, ID).is_some());
        drop(refresher.0.recv().await);
        assert!(refreshes.begin(most, &permit, ID).is_some());
    }
}
