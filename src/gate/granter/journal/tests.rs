//! What comes back of what was written, whatever happened in between.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;

use super::*;
use crate::grant::{Caps, Terms};
use crate::record::RecordType;

/// A journal's path in a directory of its own, removed at the end.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("outgate-journal-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn open(&self, boot: &str) -> (Journal, Reasons) {
        Journal::of_boot(self.0.join("journal"), boot.to_owned()).unwrap()
    }

    fn text(&self) -> String {
        std::fs::read_to_string(self.0.join("journal")).unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn element(text: &str) -> Element {
    text.parse().unwrap()
}

fn basis(name: &str, trust: AddressTrust) -> Arc<Basis> {
    Arc::new(Basis {
        client: "2001:db8::7".parse().unwrap(),
        forwarder: Some(Arc::from("coredns")),
        question: Question { name: Name::parse(name).unwrap(), kind: RecordType::AAAA },
        chain: [Name::parse("a\\.b.example.net").unwrap(), Name::root()].into(),
        origin: Origin { name: Arc::from("corp"), trust },
        segment: Arc::from("shop"),
        rule: Arc::from("web"),
    })
}

fn upstream(private: &[&str]) -> AddressTrust {
    AddressTrust::Upstream(private.iter().map(|prefix| prefix.parse().unwrap()).collect())
}

/// A journal of boot "b" with these names, open for one element each until 100 s.
fn write(place: &Place, names: &[&str]) -> Journal {
    let (mut journal, _) = place.open("b");
    journal.rewrite(&Ledger::new(Terms::default(), Caps::default())).unwrap();
    for name in names {
        journal.opened(&basis(name, AddressTrust::Zone), Tick(50), &[(element(HERE), Tick(100))]);
        journal.write(false).unwrap();
    }
    journal
}

const HERE: &str = "192.0.2.1>198.51.100.7:tcp/443";
const THERE: &str = "#0000002a>2001:db8::7:icmp";

fn names(reasons: &Reasons, at: &str) -> Vec<String> {
    let reasons = reasons.get(&element(at)).map_or(&[][..], Vec::as_slice);
    reasons.iter().map(|reason| reason.basis.question.name.to_string()).collect()
}

#[test]
fn reasons_come_back_as_they_were() {
    let place = Place::new();
    let mut journal = write(&place, &[]);
    let bases = [
        basis("zone.example.org", AddressTrust::Zone),
        basis("plain.example.org", upstream(&[])),
        basis("private.example.org", upstream(&["10.0.0.0/8", "fd00:20::/64"])),
    ];
    let ends = [(element(HERE), Tick(7)), (element(THERE), Tick(u64::MAX))];
    for (told, basis) in bases.iter().enumerate() {
        journal.opened(basis, Tick(told as u64), &ends);
    }
    journal.write(true).unwrap();
    let (_, reasons) = place.open("b");
    for (element, open_until) in ends {
        let expected = bases.iter().enumerate().map(|(told, basis)| Reason {
            basis: Arc::clone(basis),
            told_until: Tick(told as u64),
            open_until,
        });
        assert_eq!(reasons[&element], expected.collect::<Vec<_>>());
    }
    assert_eq!(reasons.len(), ends.len());
}

#[test]
fn the_last_word_on_a_reason_counts_and_a_closing_ends_all_of_an_element() {
    let place = Place::new();
    let mut journal = write(&place, &["a.example.org", "b.example.org"]);
    journal.opened(&basis("a.example.org", AddressTrust::Zone), Tick(60), &[(element(HERE), Tick(200))]);
    journal.opened(&basis("a.example.org", AddressTrust::Zone), Tick(60), &[(element(THERE), Tick(200))]);
    journal.write(false).unwrap();
    let (_, reasons) = place.open("b");
    assert_eq!(names(&reasons, HERE), ["b.example.org", "a.example.org"]);
    assert_eq!(reasons[&element(HERE)][1].open_until, Tick(200));
    journal.closed([element(HERE)].iter());
    journal.write(true).unwrap();
    let (_, reasons) = place.open("b");
    assert!(names(&reasons, HERE).is_empty());
    assert_eq!(names(&reasons, THERE), ["a.example.org"]);
}

#[test]
fn a_journal_of_another_boot_or_version_is_void() {
    let place = Place::new();
    drop(write(&place, &["a.example.org"]));
    assert_eq!(place.open("b").1.len(), 1);
    assert!(place.open("c").1.is_empty());
    let text = place.text();
    assert!(text.starts_with("{\"boot\":{\"version\":1,\"id\":\"b\"}}\n"), "{text}");
    std::fs::write(place.0.join("journal"), text.replace("\"version\":1", "\"version\":2")).unwrap();
    assert!(place.open("b").1.is_empty());
}

/// A kill at any byte loses that line and no other, and the next process appends after it.
#[test]
fn a_line_torn_anywhere_takes_no_other_along() {
    let place = Place::new();
    drop(write(&place, &["a.example.org", "b.example.org"]));
    let text = place.text();
    let last = text.trim_end().rfind('\n').unwrap() + 1;
    for cut in last..text.len() {
        std::fs::write(place.0.join("journal"), &text[..cut]).unwrap();
        let (mut journal, reasons) = place.open("b");
        // Only the newline is missing from the whole of it.
        let whole = cut == text.len() - 1;
        assert_eq!(names(&reasons, HERE).len(), 1 + usize::from(whole), "cut at {cut}");
        journal.opened(&basis("c.example.org", AddressTrust::Zone), Tick(50), &[(element(HERE), Tick(100))]);
        journal.write(false).unwrap();
        assert_eq!(names(&place.open("b").1, HERE).last().unwrap(), "c.example.org", "cut at {cut}");
    }
}

/// A full disk takes half a line, and has room again.
#[test]
fn a_write_that_fails_takes_no_later_line_along() {
    let place = Place::new();
    let mut journal = write(&place, &["a.example.org"]);
    let good = std::mem::replace(&mut journal.file, File::open("/dev/null").unwrap());
    journal.opened(&basis("b.example.org", AddressTrust::Zone), Tick(50), &[(element(HERE), Tick(100))]);
    journal.write(false).unwrap_err();
    journal.file = good;
    journal.file.write_all(b"{\"open\":{\"basis\":").unwrap();
    journal.opened(&basis("c.example.org", AddressTrust::Zone), Tick(50), &[(element(HERE), Tick(100))]);
    journal.write(false).unwrap();
    assert_eq!(names(&place.open("b").1, HERE), ["a.example.org", "c.example.org"]);
}

#[test]
fn rewriting_keeps_exactly_what_is_live() {
    let place = Place::new();
    let mut journal = write(&place, &["old.example.org"]);
    let mut ledger = Ledger::new(Terms::default(), Caps::default());
    let reason = |name: &str, told, open| Reason {
        basis: basis(name, upstream(&["10.0.0.0/8"])),
        told_until: Tick(told),
        open_until: Tick(open),
    };
    let live = |at, names: [&str; 2]| (element(at), names.map(|name| reason(name, 1 << 40, 1 << 40)).to_vec());
    let live = [live(HERE, ["a.example.org", "b.example.org"]), live(THERE, ["a.example.org", "c.example.org"])];
    for (element, reasons) in &live {
        assert!(ledger.adopt(*element, Tick(1 << 40), reasons.clone(), Tick(1)));
    }
    journal.rewrite(&ledger).unwrap();
    assert_eq!(place.open("b").1, live.iter().cloned().collect());
    journal.opened(&basis("d.example.org", AddressTrust::Zone), Tick(50), &[(element(HERE), Tick(100))]);
    journal.write(false).unwrap();
    assert_eq!(names(&place.open("b").1, HERE), ["a.example.org", "b.example.org", "d.example.org"]);
}

#[test]
fn it_is_rewritten_when_it_has_doubled() {
    let place = Place::new();
    let mut journal = write(&place, &[]);
    let ledger = Ledger::new(Terms::default(), Caps::default());
    let elements = vec![(element(HERE), Tick(100)); COMPACT_FROM / 2];
    let grow = |journal: &mut Journal| {
        journal.opened(&basis("a.example.org", AddressTrust::Zone), Tick(50), &elements);
        journal.write(false).unwrap();
        journal.compact(&ledger).unwrap();
        place.text().lines().count()
    };
    assert_eq!((grow(&mut journal), grow(&mut journal)), (2, 1));
    // As many as that are live: not before as many again.
    journal.rewritten = COMPACT_FROM;
    journal.named = COMPACT_FROM;
    assert_eq!((grow(&mut journal), grow(&mut journal), grow(&mut journal)), (2, 1, 2));
}

fn a_name() -> impl Strategy<Value = Name> {
    let label = prop::collection::vec(any::<u8>(), 1..=63);
    prop::collection::vec(label, 0..4).prop_map(|labels| {
        let mut name = crate::name::NameBuf::new();
        labels.iter().for_each(|label| drop(name.push_label(label)));
        name.to_name()
    })
}

fn a_prefix() -> impl Strategy<Value = Prefix> {
    let four = (any::<[u8; 4]>(), 0u8..=32).prop_map(|(address, length)| (IpAddr::from(address), length));
    let six = (any::<[u8; 16]>(), 0u8..=128).prop_map(|(address, length)| (IpAddr::from(address), length));
    prop_oneof![four, six].prop_map(|(address, length)| Prefix::new(address, length).unwrap())
}

proptest! {
    /// I8: whatever octets a name holds, and whatever a configuration may call things.
    #[test]
    fn a_basis_comes_back_as_it_was(
        client in any::<IpAddr>(),
        words in any::<(Option<String>, String, String, String)>(),
        name in a_name(),
        kind in any::<u16>(),
        chain in prop::collection::vec(a_name(), 0..4),
        private in prop::option::of(prop::collection::vec(a_prefix(), 0..4)),
    ) {
        let (forwarder, origin, segment, rule) = words;
        let trust = private.map_or(AddressTrust::Zone, |private| AddressTrust::Upstream(private.into()));
        let basis = Basis {
            client,
            forwarder: forwarder.map(Arc::from),
            question: Question { name, kind: RecordType(kind) },
            chain: chain.into(),
            origin: Origin { name: Arc::from(origin), trust },
            segment: Arc::from(segment),
            rule: Arc::from(rule),
        };
        let mut text = Vec::new();
        Line::opened(&basis, Tick(1), &[]).write(&mut text);
        prop_assert_eq!(text.iter().filter(|byte| **byte == b'\n').count(), 1, "one line");
        let Ok(Line::Open { basis: line, .. }) = serde_json::from_slice(&text) else { panic!("{text:?}") };
        let read = line.read();
        prop_assert_eq!(read.as_deref(), Some(&basis));
    }
}
