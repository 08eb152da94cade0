//! A gateway with much to catch up with, step by step.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::super::enforcers::{Enforcers, Found};
use super::*;
use crate::firewall::{Cut, Cutter, Listed};
use crate::grant::{Caps, Terms};
use crate::name::Name;
use crate::policy::Basis;
use crate::record::{AddressTrust, Origin, Question, RecordType};
use crate::time::Clock;

/// What it lists in one part.
const LISTED: usize = 8192;

/// A gateway elsewhere, as it is seen from here.
#[derive(Default)]
struct Site {
    held: BTreeMap<Element, Tick>,
    listing: Option<VecDeque<Listed>>,
    begun: Vec<Change>,
    /// It answers nothing.
    silent: bool,
    /// What it listed and was told since this was last read.
    work: usize,
    caught_up: bool,
}

impl Site {
    fn make(&mut self, changes: &[Change]) {
        self.work += changes.len();
        for change in changes {
            match *change {
                Change::Open { element, until } => self.held.insert(element, until),
                Change::Close { element } => self.held.remove(&element),
            };
        }
    }
}

struct Distant(Arc<Mutex<Site>>);

impl Firewall for Distant {
    fn name(&self) -> &'static str {
        "gw1"
    }

    fn required(&self) -> bool {
        true
    }

    fn is_away(&self) -> bool {
        true
    }

    fn adopt(&mut self, _: &Layout, _: Tick) -> Result<Found, FirewallError> {
        Err(FirewallError::Away("it waits".into()))
    }

    fn begin_adopting(&mut self, _: &Layout) -> Result<(), FirewallError> {
        let mut site = self.0.lock();
        let all: Vec<_> = site.held.iter().map(|(element, until)| (*element, *until)).collect();
        let mut parts: VecDeque<_> =
            all.chunks(LISTED).map(|part| Listed { elements: part.to_vec(), more: true }).collect();
        parts.push_back(Listed::default());
        site.listing = Some(parts);
        Ok(())
    }

    fn listed(&mut self) -> Result<Option<Listed>, FirewallError> {
        let mut site = self.0.lock();
        if site.silent {
            return Ok(None);
        }
        let part = site.listing.as_mut().unwrap().pop_front().unwrap();
        site.work += part.elements.len();
        Ok(Some(part))
    }

    fn arrange(&mut self, _: &Layout) -> Result<(), FirewallError> {
        Ok(())
    }

    fn begin(&mut self, changes: &[Change], _: Tick) {
        self.0.lock().begun = changes.to_vec();
    }

    fn became(&mut self) -> Result<Option<Vec<usize>>, FirewallError> {
        let mut site = self.0.lock();
        if site.silent {
            return Ok(None);
        }
        let begun = std::mem::take(&mut site.begun);
        site.make(&begun);
        Ok(Some(Vec::new()))
    }

    fn apply(&mut self, changes: &[Change], _: Tick) -> Result<Vec<usize>, FirewallError> {
        self.0.lock().make(changes);
        Ok(Vec::new())
    }

    fn caught_up(&mut self) {
        self.0.lock().caught_up = true;
    }

    fn cutter(&self, _: &Arc<[Cut]>) -> Cutter {
        Box::new(|| Ok(0))
    }

    fn drifted(&mut self) -> Result<bool, FirewallError> {
        if self.0.lock().caught_up { Ok(false) } else { Err(FirewallError::Away("it was away".into())) }
    }
}

fn element(number: u32) -> Element {
    let to = std::net::Ipv4Addr::from(0xc633_0000 + number);
    Element { to: to.into(), .."192.0.2.1>198.51.100.1:tcp/443".parse::<Element>().unwrap() }
}

/// The ledger holds these until then.
fn hold(ledger: &mut Ledger, numbers: impl Iterator<Item = u32>, until: Tick, now: Tick) {
    let basis = Basis {
        client: "192.0.2.1".parse().unwrap(),
        forwarder: None,
        certificate: None,
        question: Question { name: Name::parse("api.example.com").unwrap(), kind: RecordType::A },
        chain: [].into(),
        targets: [].into(),
        origin: Origin { name: Arc::from("zone"), trust: AddressTrust::Zone },
        segment: Arc::from("shop"),
        rule: Arc::from("web"),
    };
    for number in numbers {
        ledger.recall(element(number), &basis, until, until);
        ledger.confirm(&element(number), until);
    }
    ledger.adopt(now, |_, _| true);
}

#[test]
fn much_is_handed_over_in_parts_and_it_counts_once_it_has_all() {
    let clock = Clock::manual();
    let (now, site) = (clock.tick(), Arc::new(Mutex::new(Site::default())));
    let far = now + Duration::from_secs(600);
    let mut ledger = Ledger::new(Terms::default(), Caps::default());
    hold(&mut ledger, 0..40_000, far, now);
    // It has some, some too long, and some that nobody wants.
    let held = (0..10_000).map(|number| (number, far)).chain((10_000..12_000).map(|number| (number, far + HOUR)));
    site.lock().held = held.chain((50_000..56_000).map(|number| (number, far))).map(|(n, t)| (element(n), t)).collect();
    let gateway: Box<dyn Firewall> = Box::new(Distant(Arc::clone(&site)));
    let mut enforcers = Enforcers::new(vec![(gateway, Arc::default())], Arc::default(), clock.clone());
    let counts = Arc::clone(enforcers.counts());
    let mut turns = 0;
    while {
        enforcers.repair(&ledger, Layout::default, now);
        !counts.ready()
    } {
        turns += 1;
        assert!(turns < 100, "it comes to an end");
        assert!(!site.lock().caught_up && enforcers.is_at_it());
        let work = std::mem::take(&mut site.lock().work);
        assert!(work <= LISTED, "{work} in one turn");
        // What it was told already goes, what it was not comes, and it is silent for a while.
        if turns == 11 {
            assert!(site.lock().held.contains_key(&element(12_500)));
            for gone in [0, 12_500, 39_999] {
                ledger.forget(&element(gone));
                enforcers.apply(&[Change::Close { element: element(gone) }], now);
            }
            hold(&mut ledger, 60_000..60_002, far, now);
            enforcers.apply(&[60_000, 60_001].map(|n| Change::Open { element: element(n), until: far }), now);
            site.lock().silent = true;
        }
        if turns == 15 {
            assert_eq!(work, 0);
            site.lock().silent = false;
        }
    }
    assert!(turns > 15 && site.lock().caught_up && !enforcers.is_at_it());
    let wanted: BTreeMap<_, _> = ledger.in_force(now).into_iter().collect();
    assert_eq!(wanted.len(), 39_999);
    assert!(site.lock().held == wanted, "it has what the ledger says, and nothing else");
    // From here on it is told with all others.
    assert!(enforcers.apply(&[Change::Close { element: element(1) }], now).failed.is_empty());
    assert!(!site.lock().held.contains_key(&element(1)));
}

const HOUR: Duration = Duration::from_secs(3600);
