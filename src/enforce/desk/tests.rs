//! The desk, driven as a door drives it, over a firewall that only remembers.

use std::path::Path;
use std::sync::mpsc::SyncSender;

use super::*;
use crate::firewall::{Memory, MemoryHandle, Mode};
use crate::net::{Element, SegmentId, Service};
use crate::policy::SegmentLayout;
use crate::time::machine_start;

/// A desk of two resolvers.
struct Site {
    directory: PathBuf,
    max_grants: usize,
    clock: Clock,
}

struct Running {
    tasks: SyncSender<Task>,
    figures: Arc<Figures>,
    handle: MemoryHandle,
    clock: Clock,
    number: std::cell::Cell<u64>,
}

impl Site {
    fn new(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("outgate-enforce-{}-{name}", std::process::id()));
        drop(std::fs::remove_dir_all(&directory));
        std::fs::create_dir_all(&directory).unwrap();
        Self { directory, max_grants: 4, clock: Clock::manual() }
    }

    /// Of the firewall that the process before left.
    fn start(&self, firewall: Memory) -> Running {
        let handle = firewall.handle();
        self.start_with(Box::new(firewall), handle)
    }

    fn start_with(&self, firewall: Box<dyn Firewall>, handle: MemoryHandle) -> Running {
        let parts = DeskParts {
            firewall,
            resolvers: vec!["ns1.example".into(), "ns2.example".into()],
            state: self.directory.clone(),
            never: NeverGranted::new(vec!["203.0.113.0/24".parse().unwrap()]),
            max_grants: self.max_grants,
            clock: self.clock.clone(),
        };
        let (tasks, figures) = start(parts).unwrap();
        let clock = self.clock.clone();
        Running { tasks, figures, handle, clock, number: std::cell::Cell::new(0) }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.directory));
    }
}

impl Running {
    fn order(&self, who: Holder, what: What) -> Became {
        let (reply, mut reports) = mpsc::unbounded_channel();
        let connection = Arc::new(AtomicBool::new(true));
        self.number.set(self.number.get() + 1);
        self.tasks.send(Task { who, number: self.number.get(), what, place: None, connection, reply }).unwrap();
        reports.blocking_recv().unwrap().became.unwrap()
    }

    fn apply(&self, who: Holder, changes: &[Change]) -> Result<Vec<u32>, String> {
        let now = self.clock.tick();
        let changes = changes.iter().map(|change| Held::of(change, now)).collect();
        match self.order(who, What::Apply(Changes { changes })) {
            Became::Done(done) => Ok(done.failed),
            Became::Refused(why) => Err(why),
            other => panic!("{other:?}"),
        }
    }

    fn adopt(&self, who: Holder, layout: &Layout) -> Vec<Element> {
        match self.order(who, What::Adopt(LayoutMessage::new(layout, self.clock.now().wall))) {
            Became::Holds(holds) => holds.elements.iter().map(|held| held.element().unwrap()).collect(),
            other => panic!("{other:?}"),
        }
    }

    fn open(&self, number: u8, seconds: u64) -> Change {
        Change::Open { element: element(number), until: self.clock.tick() + Duration::from_secs(seconds) }
    }

    fn in_force(&self) -> Vec<Element> {
        self.handle.elements().into_iter().map(|(element, _)| element).collect()
    }
}

fn element(number: u8) -> Element {
    format!("192.0.2.1>198.51.100.{number}:tcp/443").parse().unwrap()
}

fn close(number: u8) -> Change {
    Change::Close { element: element(number) }
}

fn layout(name: &str, denied: &str) -> Layout {
    let segment = SegmentLayout {
        id: SegmentId::of(name),
        name: name.into(),
        observe: false,
        sources: vec!["192.0.2.0/24".parse().unwrap()],
        networks: Vec::new(),
        ends: Vec::new(),
    };
    Layout { segments: vec![segment], denied: vec![denied.parse().unwrap()] }
}

#[test]
fn the_end_of_one_resolvers_closes_no_others() {
    let site = Site::new("ends");
    let desk = site.start(Memory::new("gateway", site.clock.clone()));
    assert_eq!(desk.apply(0, &[desk.open(1, 60), desk.open(2, 60)]), Ok(vec![]));
    assert_eq!(desk.apply(1, &[desk.open(1, 30)]), Ok(vec![]));
    assert_eq!(desk.apply(0, &[close(1), close(2)]), Ok(vec![]));
    assert_eq!(desk.in_force(), [element(1)]);
    site.clock.advance(Duration::from_secs(29));
    assert_eq!(desk.in_force(), [element(1)], "as long as the other one wants it");
    site.clock.advance(Duration::from_secs(1));
    assert_eq!(desk.in_force(), []);
}

#[test]
fn what_is_never_granted_and_too_much_is_refused_whoever_asks() {
    let site = Site::new("never");
    let desk = site.start(Memory::new("gateway", site.clock.clone()));
    let to = |to: &str| Change::Open {
        element: Element { to: to.parse().unwrap(), service: Service::Any, ..element(1) },
        until: desk.clock.tick() + Duration::from_secs(9),
    };
    let never = [to("169.254.169.254"), to("127.0.0.1"), to("8.8.8.8"), to("203.0.113.9"), to("::ffff:10.0.0.1")];
    assert_eq!(desk.apply(0, &never), Ok(vec![0, 1, 2, 3, 4]));
    assert_eq!(desk.figures.never.load(Ordering::Relaxed), 5);
    let day = Change::Open { element: element(9), until: desk.clock.tick() + Duration::from_secs(26 * 3600) };
    assert_eq!(desk.apply(0, &[day]), Ok(vec![0]), "nothing is held for longer than a rule can say");
    // Four at most, and those that are open already may be extended.
    let many: Vec<_> = (1..=6).map(|number| desk.open(number, 9)).collect();
    assert_eq!(desk.apply(0, &many), Ok(vec![4, 5]));
    assert_eq!(desk.apply(0, &[desk.open(1, 20), desk.open(7, 9)]), Ok(vec![1]));
    assert_eq!(desk.apply(1, &[desk.open(7, 9)]), Ok(vec![]), "another resolver has room of its own");
    assert_eq!(desk.figures.full.load(Ordering::Relaxed), 3);
}

#[test]
fn what_the_firewall_does_not_take_is_not_held() {
    let site = Site::new("fails");
    let desk = site.start(Memory::new("gateway", site.clock.clone()));
    desk.apply(0, &[desk.open(1, 60)]).unwrap();
    desk.handle.set_mode(Mode::FailTo(element(2).to));
    assert_eq!(desk.apply(0, &[desk.open(2, 60), desk.open(3, 60), desk.open(2, 90)]), Ok(vec![0, 2]));
    desk.handle.set_mode(Mode::Stall);
    assert_eq!(desk.apply(0, &[desk.open(4, 60), close(1)]), Err("no acknowledgement within the deadline".into()));
    desk.handle.set_mode(Mode::Ack);
    // It is repaired before the next order: what was acknowledged is in force, and nothing else.
    assert_eq!(desk.adopt(0, &layout("build", "203.0.113.0/24")).len(), 2);
    assert_eq!(desk.in_force(), [element(1), element(3)]);
    desk.handle.lose();
    assert_eq!(desk.apply(1, &[]), Ok(vec![]));
    assert_eq!(desk.in_force(), [element(1), element(3)], "what somebody else closed is open again");
}

#[test]
fn a_restart_keeps_what_is_open_and_for_whom() {
    let site = Site::new("restart");
    let first = site.start(Memory::new("gateway", site.clock.clone()));
    let wanted = layout("build", "203.0.113.0/24");
    assert_eq!(first.adopt(0, &wanted), []);
    first.apply(0, &[first.open(1, 60), first.open(2, 60)]).unwrap();
    first.apply(1, &[first.open(2, 30)]).unwrap();
    drop(first);
    // The kernel kept nothing, or all, or more.
    for left in [vec![], vec![1, 2], vec![1, 2, 3]] {
        let mut kernel = Memory::new("gateway", site.clock.clone());
        let now = site.clock.tick();
        let open = |number: &u8| Change::Open { element: element(*number), until: now + Duration::from_secs(60) };
        kernel.apply(&left.iter().map(open).collect::<Vec<_>>(), now).unwrap();
        let again = site.start(kernel);
        assert_eq!(again.in_force(), [element(1), element(2)]);
        assert_eq!(again.handle.layout(), wanted, "before a resolver is heard");
        assert_eq!(again.adopt(1, &wanted), [element(2)]);
    }
    let again = site.start(Memory::new("gateway", site.clock.clone()));
    again.apply(0, &[close(2)]).unwrap();
    assert_eq!(again.in_force(), [element(1), element(2)], "the other resolver holds it");
}

#[test]
fn what_is_open_without_a_journal_stays_until_its_end() {
    let site = Site::new("lost");
    let mut kernel = Memory::new("gateway", site.clock.clone());
    let until = site.clock.tick() + Duration::from_secs(9);
    kernel.apply(&[Change::Open { element: element(1), until }], site.clock.tick()).unwrap();
    let desk = site.start(kernel);
    assert_eq!(desk.adopt(0, &Layout::default()), [], "it is nobody's");
    assert_eq!(desk.in_force(), [element(1)]);
    site.clock.advance(Duration::from_secs(9));
    assert_eq!(desk.in_force(), []);
}

#[test]
fn what_one_resolver_denies_is_denied() {
    let site = Site::new("layouts");
    let desk = site.start(Memory::new("gateway", site.clock.clone()));
    desk.adopt(0, &layout("build", "203.0.113.0/24"));
    desk.adopt(1, &layout("deploy", "198.51.100.0/24"));
    let both = Layout {
        denied: vec!["198.51.100.0/24".parse().unwrap(), "203.0.113.0/24".parse().unwrap()],
        ..layout("deploy", "203.0.113.0/24")
    };
    assert_eq!(desk.handle.layout(), both, "the segments are those of whoever spoke last");
    assert_eq!(desk.figures.layouts.load(Ordering::Relaxed), 2);
    desk.order(0, What::Arrange(LayoutMessage::new(&layout("deploy", "198.51.100.0/24"), Wall(0))));
    assert_eq!(desk.handle.layout(), layout("deploy", "198.51.100.0/24"));
    assert_eq!(desk.figures.layouts.load(Ordering::Relaxed), 1);
    assert!(Path::new(&site.directory).join("layout").exists());
}

#[test]
fn who_left_is_not_obeyed_any_more() {
    let site = Site::new("left");
    let desk = site.start(Memory::new("gateway", site.clock.clone()));
    let (reply, mut reports) = mpsc::unbounded_channel();
    let connection = Arc::new(AtomicBool::new(false));
    let changes = vec![Held::of(&desk.open(1, 60), desk.clock.tick())];
    let what = What::Apply(Changes { changes });
    desk.tasks.send(Task { who: 0, number: 1, what, place: None, connection, reply }).unwrap();
    assert_eq!(reports.blocking_recv(), None);
    assert_eq!(desk.in_force(), []);
}

/// While no resolver is heard, too, and over a restart.
#[test]
fn a_layout_of_another_start_of_the_machine_is_forgotten_however_often_it_starts() {
    let site = Site::new("boots");
    let desk = site.start(Memory::new("gateway", site.clock.clone()));
    desk.adopt(0, &layout("build", "203.0.113.0/24"));
    drop(desk);
    let other_start = |file: &str, begin: &str| {
        let path = site.directory.join(file);
        let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).replacen(&machine_start(), "another", 1);
        assert!(text.starts_with(&format!("{begin}another\n")), "{file} begins otherwise");
        std::fs::write(&path, text).unwrap();
    };
    other_start("holds", "outgate-holds 1 ");
    other_start("layout", LAYOUT);
    for _ in 0..2 {
        let again = site.start(Memory::new("gateway", site.clock.clone()));
        assert_eq!(again.handle.layout(), Layout::default());
    }
}

#[test]
fn what_ends_in_a_layout_ends_by_itself() {
    let site = Site::new("until");
    let mut wanted = layout("build", "203.0.113.0/24");
    let after = |seconds: u64| Wall(site.clock.now().wall.0 + seconds * 1_000_000);
    let network = ("198.51.100.0/24".parse().unwrap(), "tcp/22".parse().unwrap());
    let segment = &mut wanted.segments[0];
    (segment.observe, segment.networks) = (true, vec![network]);
    segment.ends = vec![(None, after(20)), (Some(network), after(10))];
    let first = site.start(Memory::new("gateway", site.clock.clone()));
    first.adopt(0, &wanted);
    let in_force = |desk: &Running| {
        let segment = desk.handle.layout().segments.remove(0);
        (segment.observe, segment.networks.len())
    };
    assert_eq!(in_force(&first), (true, 1));
    site.clock.advance(Duration::from_secs(10));
    until(|| in_force(&first) == (true, 0));
    assert_eq!(first.apply(0, &[]), Ok(vec![]), "it can be used");
    drop(first);
    let again = site.start(Memory::new("gateway", site.clock.clone()));
    assert_eq!(in_force(&again), (true, 0));
    drop(again);
    site.clock.advance(Duration::from_secs(10));
    let again = site.start(Memory::new("gateway", site.clock.clone()));
    assert_eq!(in_force(&again), (false, 0), "it ended while there was no process");
}

/// A firewall that is quicker at putting much in force than at listing it, unless it fails.
struct Restoring {
    memory: Memory,
    listed: Arc<AtomicU64>,
    fails: Arc<AtomicBool>,
}

impl Firewall for Restoring {
    fn name(&self) -> &str {
        self.memory.name()
    }

    fn required(&self) -> bool {
        true
    }

    fn adopt(&mut self, layout: &Layout, now: Tick) -> Result<Vec<(Element, Tick)>, FirewallError> {
        self.listed.fetch_add(1, Ordering::SeqCst);
        self.memory.adopt(layout, now)
    }

    fn restore(&mut self, layout: &Layout, live: &[(Element, Tick)], now: Tick) -> Result<bool, FirewallError> {
        if self.fails.load(Ordering::SeqCst) {
            return Err(FirewallError::Deadline);
        }
        self.memory.handle().lose();
        self.memory.adopt(layout, now)?;
        let open = |(element, until): &(Element, Tick)| Change::Open { element: *element, until: *until };
        self.memory.apply(&live.iter().map(open).collect::<Vec<_>>(), now).map(|failed| failed.is_empty())
    }

    fn arrange(&mut self, layout: &Layout) -> Result<(), FirewallError> {
        self.memory.arrange(layout)
    }

    fn apply(&mut self, changes: &[Change], now: Tick) -> Result<Vec<usize>, FirewallError> {
        self.memory.apply(changes, now)
    }

    fn cutter(&self, cuts: &Arc<[crate::firewall::Cut]>) -> crate::firewall::Cutter {
        self.memory.cutter(cuts)
    }

    fn drifted(&mut self) -> Result<bool, FirewallError> {
        self.memory.drifted()
    }
}

/// From 50,000 elements on nothing is listed: what is held is put in force, and nothing else.
#[test]
fn much_is_restored_as_it_was_held() {
    let mut site = Site::new("restore");
    site.max_grants = 100_000;
    let wanted = layout("build", "203.0.113.0/24");
    let many = |number: u32| Element { to: std::net::Ipv4Addr::from(0xc633_0000 + number).into(), ..element(1) };
    let until_at = site.clock.tick() + Duration::from_secs(600);
    let opens = |numbers: std::ops::Range<u32>| {
        numbers.map(|number| Change::Open { element: many(number), until: until_at }).collect::<Vec<_>>()
    };
    let first = site.start(Memory::new("gateway", site.clock.clone()));
    first.adopt(0, &wanted);
    assert_eq!(first.apply(0, &opens(0..50_000)), Ok(vec![]));
    assert_eq!(first.apply(1, &opens(49_990..50_010)), Ok(vec![]));
    let held = first.handle.elements();
    assert_eq!(held.len(), 50_010);
    drop(first);
    let mut memory = Memory::new("gateway", site.clock.clone());
    memory.apply(&opens(60_000..60_001), site.clock.tick()).unwrap();
    let (handle, listed, fails) = (memory.handle(), Arc::default(), Arc::default());
    let kernel = Restoring { memory, listed: Arc::clone(&listed), fails: Arc::clone(&fails) };
    let again = site.start_with(Box::new(kernel), handle);
    assert!(again.handle.elements() == held);
    assert_eq!((again.handle.layout(), again.adopt(1, &wanted).len()), (wanted, 20));
    // Somebody else closes all: nothing is acknowledged until it is open again.
    fails.store(true, Ordering::SeqCst);
    again.handle.lose();
    assert_eq!(again.apply(1, &[]), Err("the firewall cannot be used".into()));
    fails.store(false, Ordering::SeqCst);
    until(|| again.handle.elements() == held);
    assert_eq!(again.apply(1, &opens(49_990..49_991)), Ok(vec![]));
    assert_eq!(listed.load(Ordering::SeqCst), 0);
}

fn until(done: impl Fn() -> bool) {
    for _ in 0..10_000 {
        if done() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("it does not come to be");
}
