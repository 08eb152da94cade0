//! What an operator closes, whatever the policy says.

use tokio::task::JoinHandle;

use super::*;
use crate::cache::Known;
use crate::net::{Prefix, Scope, Service};

const PLACES: &str = r#"
[[segment]]
name    = "shop"
clients = ["192.0.2.0/24"]
[[segment]]
name    = "yard"
clients = ["203.0.113.0/25", "203.0.113.192/26"]
scope   = "segment"
[[rule]]
id       = "api"
action   = "allow"
segments = ["*"]
names    = ["*.example.com"]
[[rule]]
id       = "deep"
action   = "allow"
segments = ["*"]
names    = ["*.api.example.com"]
"#;

impl World {
    /// An offer of this name's answer, 198.51.100.`last`, to a client.
    fn offers(&self, client: &str, name: &str, last: u8) -> impl Future<Output = Result<(), NotGranted>> + use<> {
        let now = self.clock.now();
        let policy = Arc::clone(&self.gate.rulebook().policy);
        let asker = policy.asker(client.parse().unwrap()).unwrap();
        let name = Name::parse(name).unwrap();
        let Verdict::Permit(permit) = decide(&policy, asker, name.as_wire(), RecordType::A, now.wall) else {
            panic!("the policy allows it");
        };
        let records = vec![Record::of_address(name, Ttl::from_wire(60), [198, 51, 100, last].into())];
        let cleared = inspect(permit, Answer { records, ..answer() });
        let gate = Arc::clone(&self.gate);
        async move { gate.granter.offer(cleared, now.tick + Duration::from_secs(60), None).await.map(drop) }
    }

    fn opens(&self, client: &str, name: &str, last: u8) {
        self.runtime.block_on(self.offers(client, name, last)).unwrap();
    }

    fn close(&self, filter: GrantsOf) -> Closed {
        self.runtime.block_on(self.gate.close(filter, "an operator says so".into()))
    }

    /// Whether a reply to [`question`] stands ready for a client.
    fn is_prepared(&mut self) -> bool {
        let mut packet = Vec::new();
        crate::wire::encode_query(&mut packet, 1, &question(), false, || false);
        let arrival = Arrival::new("192.0.2.1:40000".parse().unwrap(), Transport::Udp, self.clock.now());
        let gate = Arc::clone(&self.gate);
        match gate.fast(&gate.rulebook(), &packet, arrival, &mut self.outbox, || ()) {
            Fast::Done => true,
            Fast::Slow(job) => {
                let finished = self.runtime.block_on(gate.slow(job, &gate.upstreams.ports()));
                assert!(gate.finish(finished, &mut self.outbox, || ()).is_none());
                false
            }
        }
    }
}

fn to(address: &str) -> GrantsOf {
    GrantsOf { address: address.parse().ok(), ..GrantsOf::default() }
}

fn of(name: &str) -> GrantsOf {
    GrantsOf { name: Name::parse(name).ok(), ..GrantsOf::default() }
}

#[test]
fn what_is_named_is_closed_and_nothing_else() {
    let (place, clock) = (Place::new(), Clock::manual());
    let gateway = Gateway::new(&clock, true);
    let world = World::start(&place, &clock, PLACES, &[&gateway], None);
    let client = |client: &str| GrantsOf { client: client.parse().ok(), ..GrantsOf::default() };
    let within = |name| GrantsOf { below: true, ..of(name) };
    let named = |segment: &str, rule: &str| GrantsOf {
        segment: Some(segment.into()).filter(|_| !segment.is_empty()),
        rule: Some(rule.into()).filter(|_| !rule.is_empty()),
        ..GrantsOf::default()
    };
    for (filter, reasons, closed, still_open) in [
        (to("198.51.100.9/32"), 0, 0, 0),
        (client("192.0.2.9"), 0, 0, 0),
        (client("192.0.2.1"), 3, 2, 0),
        // What is open for a segment is nobody's alone.
        (client("203.0.113.1"), 0, 0, 0),
        (of("api.example.com"), 2, 1, 1),
        (of("example.com"), 0, 0, 0),
        (within("api.example.com"), 3, 2, 1),
        (to("198.51.100.7/32"), 4, 3, 0),
        (to("198.51.100.0/24"), 5, 4, 0),
        (named("yard", ""), 1, 1, 0),
        (named("", "deep"), 1, 1, 0),
        (named("yard", "deep"), 0, 0, 0),
        (GrantsOf { segment: Some("shop".into()), ..of("www.example.com") }, 1, 0, 1),
        (GrantsOf::default(), 5, 4, 0),
    ] {
        world.opens("192.0.2.1", "api.example.com", 7);
        world.opens("192.0.2.1", "www.example.com", 7);
        world.opens("192.0.2.1", "deep.api.example.com", 8);
        world.opens("192.0.2.2", "api.example.com", 7);
        world.opens("203.0.113.1", "www.example.com", 7);
        assert_eq!(gateway.handle.elements().len(), 4);
        let told = world.close(filter.clone());
        assert_eq!(
            (told.reasons, told.elements.len(), told.still_open),
            (reasons, closed, still_open),
            "{filter:?}: {told:?}"
        );
        assert_eq!(gateway.handle.elements().len(), 4 - closed, "{filter:?}");
        assert!(told.elements.iter().all(|gone| gateway.handle.elements().iter().all(|(open, _)| open != gone)));
    }
    world.stop();
    let log = std::fs::read_to_string(place.0.join("query.jsonl")).unwrap();
    let of_operator = |line: &&str| line.contains(r#""why":"an operator says so""#);
    let ops = |op: &str| log.lines().filter(of_operator).filter(|line| line.contains(op)).count();
    assert_eq!((ops(r#""op":"revoke""#) > 0, ops(r#""op":"shorten""#) > 0), (true, true));
}

/// I4: what was prepared is not told any more once it is closed, also where a thread keeps it for itself.
#[test]
fn what_is_closed_is_told_by_nobody() {
    let (place, clock) = (Place::new(), Clock::manual());
    let gateway = Gateway::new(&clock, true);
    let mut world = World::start(&place, &clock, POLICY, &[&gateway], Some("127.0.0.1:9".parse().unwrap()));
    let told_until = clock.now().tick + Duration::from_secs(60);
    let known = Known { answer: answer(), told_until, origin: None, last: Mutex::default() };
    world.gate.answers.put(0, &question(), Arc::new(known), world.gate.answers.flushes());
    assert!(!world.is_prepared());
    // From the cover, and then from the thread's own.
    assert!(world.is_prepared() && world.is_prepared());
    assert_eq!(world.close(to("198.51.100.7/32")).reasons, 1);
    assert_eq!(gateway.handle.elements(), []);
    assert!(!world.is_prepared(), "it is opened again first");
    assert_eq!(gateway.handle.elements().len(), 1);
    assert!(world.is_prepared());
    world.stop();
}

/// What would be opened while it is being closed is decided anew after that, or it would be closed and told.
#[test]
fn an_offer_waits_for_what_is_about_to_close_it() {
    let (place, clock) = (Place::new(), Clock::manual());
    let gateway = Gateway::new(&clock, true);
    let world = World::start(&place, &clock, PLACES, &[&gateway], None);
    let granter = &world.gate.granter;
    world.opens("192.0.2.1", "api.example.com", 7);
    let filter = Arc::new(of("api.example.com"));
    world.runtime.block_on(granter.hold(&filter));
    let waits = world.runtime.spawn(world.offers("192.0.2.1", "api.example.com", 7));
    world.opens("192.0.2.1", "www.example.com", 8);
    world.until(|| granter.counts().pending.load(Ordering::Relaxed) == 1);
    assert!(!waits.is_finished());
    let closed = world.runtime.block_on(granter.close(filter, "".into()));
    assert_eq!((closed.reasons, closed.elements.len()), (1, 1));
    let refused = world.runtime.block_on(waits).unwrap();
    assert!(matches!(refused, Err(NotGranted::Stale)), "{refused:?}");
    assert_eq!(gateway.handle.elements().len(), 1);
    // Who gave up before closing anything holds nobody up.
    let filter = Arc::new(GrantsOf::default());
    world.runtime.block_on(granter.hold(&filter));
    let waits = world.runtime.spawn(world.offers("192.0.2.1", "api.example.com", 9));
    world.until(|| granter.counts().pending.load(Ordering::Relaxed) == 1);
    drop(filter);
    // It may have come after the filter went.
    let let_go = world.runtime.block_on(waits).unwrap();
    assert!(matches!(let_go, Ok(_) | Err(NotGranted::Stale)), "{let_go:?}");
    world.opens("192.0.2.1", "api.example.com", 9);
    world.stop();
}

/// Who asked before it was closed and waits is told what was opened afterwards.
#[test]
fn a_query_under_way_is_decided_anew() {
    let (place, clock) = (Place::new(), Clock::manual());
    let gateway = Gateway::new(&clock, true);
    let mut world = World::start(&place, &clock, POLICY, &[&gateway], Some("127.0.0.1:9".parse().unwrap()));
    let told_until = clock.now().tick + Duration::from_secs(60);
    let known = Known { answer: answer(), told_until, origin: None, last: Mutex::default() };
    world.gate.answers.put(0, &question(), Arc::new(known), world.gate.answers.flushes());
    let filter = Arc::new(to("198.51.100.7/32"));
    world.runtime.block_on(world.gate.granter.hold(&filter));
    let asked = world.ask("192.0.2.1");
    world.until(|| world.gate.granter.counts().pending.load(Ordering::Relaxed) == 1);
    assert_eq!(gateway.handle.elements(), []);
    world.runtime.block_on(world.gate.granter.close(filter, "".into()));
    let finished = world.runtime.block_on(asked).unwrap();
    assert!(matches!(finished.conclusion, Conclusion::Told { .. }), "{:?}", finished.conclusion);
    assert_eq!(gateway.handle.elements().len(), 1);
    drop(finished);
    world.stop();
}

/// I8: a reason that was closed does not come back with a restart, also where its element stayed open.
#[test]
fn what_was_closed_stays_closed_over_a_restart() {
    let (place, clock) = (Place::new(), Clock::manual());
    let gateway = Gateway::new(&clock, true);
    let world = World::start(&place, &clock, PLACES, &[&gateway], None);
    world.opens("192.0.2.1", "api.example.com", 7);
    world.opens("192.0.2.1", "www.example.com", 7);
    world.opens("192.0.2.2", "api.example.com", 7);
    assert_eq!(world.close(of("api.example.com")).still_open, 1);
    world.stop();
    let world = World::start(&place, &clock, PLACES, &[&gateway], None);
    let closed = world.close(GrantsOf::default());
    assert_eq!((closed.reasons, closed.elements.len()), (1, 1));
    world.stop();
}

#[test]
fn a_firewall_that_does_not_close_is_named() {
    let (place, clock) = (Place::new(), Clock::manual());
    let (gateway, advisory) = (Gateway::new(&clock, true), Gateway::new(&clock, false));
    let world = World::start(&place, &clock, PLACES, &[&gateway, &advisory], None);
    world.opens("192.0.2.1", "api.example.com", 7);
    assert_eq!(world.close(GrantsOf::default()).unclosed, [] as [Arc<str>; 0]);
    for (broken, name) in [(&advisory, "advisory"), (&gateway, "gateway")] {
        world.opens("192.0.2.1", "api.example.com", 7);
        broken.broken.store(true, Ordering::SeqCst);
        assert_eq!(world.close(GrantsOf::default()).unclosed, [Arc::from(name)]);
        broken.broken.store(false, Ordering::SeqCst);
        clock.advance(Duration::from_secs(5));
        world.until(|| broken.handle.elements().is_empty());
    }
    world.stop();
}

#[test]
fn the_connections_of_what_was_closed_are_cut() {
    let (place, clock) = (Place::new(), Clock::manual());
    let (gateway, advisory) = (Gateway::new(&clock, true), Gateway::new(&clock, false));
    let world = World::start(&place, &clock, PLACES, &[&gateway, &advisory], None);
    world.opens("192.0.2.1", "api.example.com", 7);
    world.opens("192.0.2.1", "www.example.com", 8);
    world.opens("203.0.113.1", "api.example.com", 7);
    let closed = world.close(GrantsOf::default());
    // Open again, and so not to be cut.
    world.opens("192.0.2.1", "www.example.com", 8);
    let cut_closed = |elements| world.runtime.block_on(world.gate.granter.cut_closed(elements));
    assert_eq!(cut_closed(closed.elements), [("gateway".into(), Ok(0)), ("advisory".into(), Ok(0))]);
    let cut = |from: &str| {
        let prefix = |text: &str| text.parse::<Prefix>().ok();
        Cut { from: prefix(from), to: prefix("198.51.100.7/32"), service: Some(Service::Tcp(443)) }
    };
    for gateway in [&gateway, &advisory] {
        let mut cuts = gateway.handle.take_cuts();
        cuts.sort_by_key(|cut| cut.from);
        assert_eq!(cuts, [cut("192.0.2.1/32"), cut("203.0.113.0/25"), cut("203.0.113.192/26")]);
    }
    advisory.broken.store(true, Ordering::SeqCst);
    let told = world.runtime.block_on(world.gate.granter.cut(vec![Cut::default()]));
    assert_eq!(told, [("gateway".into(), Ok(0)), ("advisory".into(), Err(FirewallError::Deadline.to_string()))]);
    assert_eq!(gateway.handle.take_cuts(), [Cut::default()]);
    assert_eq!(cut_closed(Vec::new())[0], ("gateway".into(), Ok(0)), "nothing is to be done");
    let open: Vec<Element> = gateway.handle.elements().into_iter().map(|(element, _)| element).collect();
    assert!(matches!(open[..], [Element { from: Scope::Client(_), .. }]));
    cut_closed(open);
    assert_eq!(gateway.handle.take_cuts(), []);
    world.stop();
}

/// I5: each cut goes through all connections of the machine.
#[test]
fn so_many_cuts_at_once_and_no_more() {
    let (place, clock) = (Place::new(), Clock::manual());
    let gateway = Gateway::new(&clock, true);
    let world = World::start(&place, &clock, PLACES, &[&gateway], None);
    let cut = || {
        let granter = world.gate.granter.clone();
        world.runtime.spawn(async move { granter.cut(vec![Cut::default()]).await })
    };
    gateway.cutting.store(true, Ordering::SeqCst);
    let cuts: Vec<_> = (0..20).map(|_| cut()).collect();
    world.until(|| cuts.iter().filter(|cut| cut.is_finished()).count() == 4);
    let (refused, cuts): (Vec<_>, Vec<_>) = cuts.into_iter().partition(JoinHandle::is_finished);
    gateway.cutting.store(false, Ordering::SeqCst);
    let refused: Vec<_> = refused.into_iter().map(|cut| world.runtime.block_on(cut).unwrap()).collect();
    assert!(refused.iter().all(|told| told[0].1 == Err("too many cuts are under way".to_owned())), "{refused:?}");
    for cut in cuts {
        assert_eq!(world.runtime.block_on(cut).unwrap(), [("gateway".into(), Ok(0))]);
    }
    world.stop();
}
