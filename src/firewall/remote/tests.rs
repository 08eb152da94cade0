//! A firewall on another machine, whose enforcer is played.

use std::path::PathBuf;
use std::sync::atomic::AtomicU32;
use std::sync::mpsc;

use tokio::net::UnixListener;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use super::message::{Done, Gathering, Holds, Order, Report, Standing, read, write};
use super::*;
use crate::document::Document;
use crate::net::{Prefix, SegmentId};
use crate::policy::SegmentLayout;

/// Nothing takes this long; it only bounds a test that fails.
const BOUND: Duration = Duration::from_secs(20);

/// An enforcer that does with each order what a test says.
struct Gateway {
    socket: PathBuf,
    /// What it reports, besides what the test's answers are.
    says: UnboundedSender<Report>,
}

impl Gateway {
    fn new(mut obey: impl FnMut(u64, What) -> Option<Became> + Send + 'static) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let socket = std::env::temp_dir().join(format!("outgate-remote-{}-{number}", std::process::id()));
        let (says, mut said) = unbounded_channel();
        let gateway = Self { socket: socket.clone(), says: says.clone() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let listener = runtime.block_on(async { UnixListener::bind(socket).unwrap() });
        let serve = async move {
            let (stream, _) = listener.accept().await.unwrap();
            let (mut from, mut to) = stream.into_split();
            tokio::spawn(async move {
                while let Some(report) = said.recv().await {
                    drop(write(&mut to, &report).await);
                }
            });
            while let Ok(Order { number, what: Some(what) }) = read::<Order>(&mut from).await {
                let became = match what {
                    What::Hello(_) | What::Beat(_) => Some(Became::Standing(Standing::default())),
                    what => obey(number, what),
                };
                drop(became.map(|became| says.send(Report { number, became: Some(became) })));
            }
        };
        std::thread::spawn(move || runtime.block_on(serve));
        gateway
    }

    fn firewall(&self, deadline: Duration) -> Box<dyn Firewall> {
        let text = format!("server = \"unix:{}\"\n", self.socket.display());
        let settings = Settings::read(&Document::parse("f.toml", &text).1, Path::new("/"), &Arc::default()).unwrap();
        settings.build(&Common { deadline, ..Common::new("gw1") }, &Clock::system()).unwrap()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.socket));
    }
}

fn until<T>(mut poll: impl FnMut() -> Option<T>) -> T {
    for _ in 0..20_000 {
        if let Some(ready) = poll() {
            return ready;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("it does not come to be");
}

fn opens(count: u16) -> (Vec<Change>, Tick) {
    let now = Clock::system().tick();
    let element = |port: u16| format!("192.0.2.1>198.51.100.1:tcp/{}", port + 1).parse().unwrap();
    let open = |port| Change::Open { element: element(port), until: now + Duration::from_secs(60) };
    ((0..count).map(open).collect(), now)
}

#[test]
fn who_does_not_answer_is_waited_for_no_longer_once_it_hurries() {
    let (saw, seen) = mpsc::channel();
    let gateway = Gateway::new(move |_, what| match what {
        What::Adopt(_) => Some(Became::Holds(Holds::default())),
        _ => {
            saw.send(()).unwrap();
            None
        }
    });
    let mut firewall = gateway.firewall(Duration::from_secs(3600));
    let (hurry, clock) = (Arc::new(AtomicBool::new(false)), Clock::system());
    firewall.heed(&hurry);
    firewall.adopt(&Layout::default(), clock.tick()).unwrap();
    let (ends, ended) = mpsc::channel();
    let (changes, now) = opens(1);
    std::thread::spawn(move || ends.send(firewall.apply(&changes, now)));
    seen.recv_timeout(BOUND).unwrap();
    hurry.store(true, Ordering::Release);
    assert_eq!(ended.recv_timeout(BOUND).unwrap(), Err(FirewallError::Deadline));
}

#[test]
fn what_is_begun_is_heard_of_without_waiting() {
    let (changes, now) = opens(20_000);
    let (saw, seen) = mpsc::channel();
    let mut adopted = false;
    let gateway = Gateway::new(move |number, what| {
        if !std::mem::replace(&mut adopted, true) {
            return Some(Became::Holds(Holds::default()));
        }
        let chunk = if let What::Apply(changes) = what { changes.changes.len() } else { 0 };
        saw.send((number, chunk)).unwrap();
        None
    });
    let say = |number, became| gateway.says.send(Report { number, became: Some(became) }).unwrap();
    let mut firewall = gateway.firewall(BOUND);
    firewall.adopt(&Layout::default(), now).unwrap();
    firewall.begin_adopting(&Layout::default()).unwrap();
    let (number, _) = seen.recv_timeout(BOUND).unwrap();
    assert_eq!(firewall.listed(), Ok(None));
    for (part, more) in [(&changes[..3], true), (&changes[3..5], false)] {
        let elements = part.iter().map(|one| Held::of(one, now)).collect();
        say(number, Became::Holds(Holds { elements, more }));
        let listed = until(|| firewall.listed().unwrap());
        assert_eq!((listed.elements.len(), listed.more), (part.len(), more));
    }
    firewall.begin(&changes, now);
    let chunks = [seen.recv_timeout(BOUND).unwrap(), seen.recv_timeout(BOUND).unwrap()];
    assert_eq!(firewall.became(), Ok(None));
    for (number, chunk) in chunks {
        say(number, Became::Done(Done { failed: vec![0, u32::try_from(chunk).unwrap() - 1] }));
    }
    assert_eq!(until(|| firewall.became().unwrap()), [0, CHUNK - 1, CHUNK, 19_999]);
}

#[test]
fn a_layout_of_more_than_a_frame_is_laid_out() {
    let (tells, told) = mpsc::channel();
    let mut gathering = Gathering::default();
    let gateway = Gateway::new(move |_, what| {
        let (What::Adopt(part) | What::Arrange(part)) = what else { return None };
        match gathering.add(part).unwrap() {
            Some(whole) => {
                tells.send(whole).unwrap();
                Some(Became::Holds(Holds::default()))
            }
            None => Some(Became::Done(Done::default())),
        }
    });
    let network = |number: u32| {
        let address = std::net::Ipv6Addr::from((0x2001_0db8_1000_2000 << 64) + u128::from(number));
        (Prefix::from(std::net::IpAddr::from(address)), "tcp/10000-20000".parse().unwrap())
    };
    let segment = SegmentLayout {
        id: SegmentId::of("build"),
        name: "build".into(),
        observe: false,
        sources: Vec::new(),
        networks: (0..400_000).map(network).collect(),
        ends: Vec::new(),
    };
    let layout = Layout { segments: vec![segment], ..Layout::default() };
    let mut firewall = gateway.firewall(BOUND);
    assert_eq!(firewall.adopt(&layout, Clock::system().tick()), Ok(Vec::new()));
    assert!(told.recv_timeout(BOUND).unwrap().read() == Some(layout.clone()));
    assert!(firewall.arrange(&layout).is_ok());
    assert!(told.recv_timeout(BOUND).unwrap().read() == Some(layout.clone()));
}

#[test]
fn a_server_is_a_name_or_an_address() {
    for (text, expected) in [
        ("gw1.corp.example", Some(("gw1.corp.example", 8953))),
        ("gw1.corp.example:1", Some(("gw1.corp.example", 1))),
        ("192.0.2.1", Some(("192.0.2.1", 8953))),
        ("192.0.2.1:99", Some(("192.0.2.1", 99))),
        ("2001:db8::1", Some(("2001:db8::1", 8953))),
        ("[2001:db8::1]:99", Some(("2001:db8::1", 99))),
        ("gw1:0", None),
        ("gw1:x", None),
        ("", None),
        ("https://gw1", None),
    ] {
        assert_eq!(split(text, PORT), expected.map(|(host, port)| (host.to_owned(), port)), "{text}");
    }
}
