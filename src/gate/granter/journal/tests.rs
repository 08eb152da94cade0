//! What comes back of what was written, whatever happened in between.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;

use super::*;
use crate::grant::{Caps, Reason, Terms};
use crate::name::Name;
use crate::net::Prefix;
use crate::record::{AddressTrust, Origin, Question, RecordType};

type Reasons = BTreeMap<Element, Vec<Reason>>;

fn empty() -> Ledger {
    Ledger::new(Terms::default(), Caps::default())
}

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
        let mut ledger = empty();
        let journal = Journal::of_boot(self.0.join("journal"), boot, &mut ledger).unwrap();
        let held = ledger.held(0..ledger.slots());
        (journal, held.map(|held| (*held.element, held.reasons().collect())).collect())
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

fn basis(name: &str, trust: AddressTrust) -> Basis {
    Basis {
        client: "2001:db8::7".parse().unwrap(),
        forwarder: Some(Arc::from("coredns")),
        certificate: None,
        question: Question { name: Name::parse(name).unwrap(), kind: RecordType::AAAA },
        chain: [Name::parse("a\\.b.example.net").unwrap(), Name::root()].into(),
        targets: [].into(),
        origin: Origin { name: Arc::from("corp"), trust },
        segment: Arc::from("shop"),
        rule: Arc::from("web"),
    }
}

fn upstream(private: &[&str]) -> AddressTrust {
    AddressTrust::Upstream(private.iter().map(|prefix| prefix.parse().unwrap()).collect())
}

/// A journal of boot "b" with these names, open for one element each until 100 s.
fn write(place: &Place, names: &[&str]) -> Journal {
    let (mut journal, _) = place.open("b");
    journal.rewrite(&empty()).unwrap();
    for name in names {
        open_here(&mut journal, name);
    }
    journal
}

/// HERE is open for a name until 100.
fn open_here(journal: &mut Journal, name: &str) {
    journal.opened(&basis(name, AddressTrust::Zone), Tick(50), [(element(HERE), Tick(100))].into_iter());
    journal.write().unwrap();
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
        journal.opened(basis, Tick(told as u64), ends.into_iter());
    }
    journal.write().unwrap();
    let (_, reasons) = place.open("b");
    for (element, open_until) in ends {
        let expected = bases.iter().enumerate().map(|(told, basis)| Reason {
            basis: basis.clone(),
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
    journal.opened(&basis("a.example.org", AddressTrust::Zone), Tick(60), [(element(HERE), Tick(200))].into_iter());
    journal.opened(&basis("a.example.org", AddressTrust::Zone), Tick(60), [(element(THERE), Tick(200))].into_iter());
    journal.write().unwrap();
    let (_, reasons) = place.open("b");
    assert_eq!(names(&reasons, HERE), ["b.example.org", "a.example.org"]);
    assert_eq!(reasons[&element(HERE)][1].open_until, Tick(200));
    journal.closed([element(HERE)].iter());
    journal.write().unwrap();
    let (_, reasons) = place.open("b");
    assert!(names(&reasons, HERE).is_empty());
    assert_eq!(names(&reasons, THERE), ["a.example.org"]);
}

#[test]
fn a_rewriting_that_cannot_be_finished_is_given_up() {
    let place = Place::new();
    let mut journal = write(&place, &["a.example.org"]);
    journal.begin_rewriting().unwrap();
    journal.closed([element(HERE)].iter());
    journal.file = OpenOptions::new().append(true).open("/dev/full").unwrap();
    assert_eq!(journal.finish_rewriting().unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert!(journal.rewriting.is_none(), "it would take in all that is written from here on");
    journal.named = COMPACT_FROM.max(2 * journal.rewritten);
    assert!(journal.is_large(), "it is tried again");
}

#[test]
fn a_journal_of_another_boot_or_version_is_void() {
    let place = Place::new();
    drop(write(&place, &["a.example.org"]));
    assert_eq!(place.open("b").1.len(), 1);
    assert!(place.open("c").1.is_empty());
    let text = place.text();
    assert!(text.starts_with("outgate-journal 2 b\n"), "{text}");
    std::fs::write(place.0.join("journal"), text.replace("journal 2", "journal 3")).unwrap();
    assert!(place.open("b").1.is_empty());
}

/// What another release of the same version writes and reads: a change of it needs another version.
#[test]
fn the_text_of_this_version_stays_as_it_is() {
    const KEPT: &str = r#"outgate-journal 2 b
=0 {"forwarder":"coredns","kind":28,"origin":"corp","segment":"shop","rule":"web"}
+0 2001:db8::7 50 2 a.example.org a\.b.example.net . 192.0.2.1>198.51.100.7:tcp/443 100 ;
=1 {"forwarder":"coredns","kind":28,"origin":"corp","private":["10.0.0.0/8"],"segment":"shop","rule":"web"}
+1 2001:db8::7 60 2 b.example.org a\.b.example.net . #0000002a>2001:db8::7:icmp 200 ;
- 192.0.2.1>198.51.100.7:tcp/443 ;
"#;
    let place = Place::new();
    let mut journal = write(&place, &["a.example.org"]);
    let private = basis("b.example.org", upstream(&["10.0.0.0/8"]));
    journal.opened(&private, Tick(60), [(element(THERE), Tick(200))].into_iter());
    journal.closed([element(HERE)].iter());
    journal.write().unwrap();
    assert_eq!(place.text(), KEPT);
    // A later release may say more of what it defines, and have lines of other kinds: they are passed over.
    let later = KEPT.replace("\"kind\":28", "\"kind\":28,\"later\":[1]").replace("- 192", "? later ;\n- 192");
    std::fs::write(place.0.join("journal"), later).unwrap();
    let (_, reasons) = place.open("b");
    assert_eq!((names(&reasons, THERE), names(&reasons, HERE)), (vec!["b.example.org".to_owned()], Vec::new()));
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
        open_here(&mut journal, "c.example.org");
        assert_eq!(names(&place.open("b").1, HERE).last().unwrap(), "c.example.org", "cut at {cut}");
    }
}

/// A full disk takes half a line, and has room again.
#[test]
fn a_write_that_fails_takes_no_later_line_along() {
    let place = Place::new();
    let mut journal = write(&place, &["a.example.org"]);
    let good = std::mem::replace(&mut journal.file, File::open("/dev/null").unwrap());
    let other = Basis { rule: Arc::from("other"), ..basis("b.example.org", AddressTrust::Zone) };
    journal.opened(&other, Tick(50), [(element(HERE), Tick(100))].into_iter());
    journal.write().unwrap_err();
    journal.file = good;
    journal.file.write_all(b"=1 {\"kind\":").unwrap();
    journal.opened(&other, Tick(50), [(element(HERE), Tick(100))].into_iter());
    journal.write().unwrap();
    open_here(&mut journal, "c.example.org");
    let (_, reasons) = place.open("b");
    assert_eq!(names(&reasons, HERE), ["a.example.org", "b.example.org", "c.example.org"]);
    let rules: Vec<&str> = reasons[&element(HERE)].iter().map(|reason| &*reason.basis.rule).collect();
    assert_eq!(rules, ["web", "other", "web"], "what was defined in vain is defined again");
}

/// HERE for a and b, THERE for a and c, live for long.
fn live() -> (Ledger, Reasons) {
    let mut ledger = empty();
    let mut all = Reasons::new();
    let far = Tick(1 << 40);
    for (at, names) in [(HERE, ["a.example.org", "b.example.org"]), (THERE, ["a.example.org", "c.example.org"])] {
        for name in names {
            let reason = Reason { basis: basis(name, upstream(&["10.0.0.0/8"])), told_until: far, open_until: far };
            ledger.recall(element(at), &reason.basis, far, far);
            all.entry(element(at)).or_default().push(reason);
        }
        ledger.confirm(&element(at), far);
    }
    ledger.adopt(Tick(1), |_, _| true);
    (ledger, all)
}

#[test]
fn rewriting_keeps_exactly_what_is_live() {
    let place = Place::new();
    let mut journal = write(&place, &["old.example.org"]);
    let (ledger, live) = live();
    journal.rewrite(&ledger).unwrap();
    assert_eq!(place.open("b").1, live);
    open_here(&mut journal, "d.example.org");
    assert_eq!(names(&place.open("b").1, HERE), ["a.example.org", "b.example.org", "d.example.org"]);
}

/// I8: whatever is written while it is rewritten slot by slot is in the new journal, and until that is whole, in the old.
#[test]
fn nothing_is_lost_while_it_is_rewritten() {
    for between in 0..=2 {
        let place = Place::new();
        let mut journal = write(&place, &["old.example.org"]);
        let (mut ledger, _) = live();
        let names_of = |place: &Place| {
            let reasons = place.open("b").1;
            [names(&reasons, HERE), names(&reasons, THERE)].map(|mut names| {
                names.sort();
                names
            })
        };
        journal.begin_rewriting().unwrap();
        for slot in 0..=2 {
            if slot == between {
                // With a rule of its own, so that it has to be defined in both; and one is closed.
                let other = Basis { rule: Arc::from("other"), ..basis("n.example.org", AddressTrust::Zone) };
                let far = Tick(1 << 40);
                journal.opened(&other, far, [(element(HERE), far)].into_iter());
                journal.closed([element(THERE)].iter());
                journal.write().unwrap();
                ledger.abandon([&element(THERE)]);
                drop(ledger.take_batch());
                assert_eq!(names_of(&place), [vec!["n.example.org", "old.example.org"], vec![]], "the old one");
            }
            journal.rewrite_slots(&ledger, slot..slot + 1).unwrap();
        }
        journal.finish_rewriting().unwrap();
        let expected = ["a.example.org", "b.example.org", "n.example.org"].map(str::to_owned).to_vec();
        assert_eq!(names_of(&place), [expected, vec![]], "{between}");
        open_here(&mut journal, "later.example.org");
        assert_eq!(names_of(&place)[0].len(), 4);
    }
}

#[test]
fn a_rewriting_that_fails_leaves_the_old_journal() {
    let place = Place::new();
    let mut journal = write(&place, &["a.example.org"]);
    let (ledger, _) = live();
    journal.begin_rewriting().unwrap();
    journal.rewriting.as_mut().unwrap().file = File::open("/dev/null").unwrap();
    journal.rewrite_slots(&ledger, 0..2).unwrap();
    journal.finish_rewriting().unwrap_err();
    open_here(&mut journal, "b.example.org");
    assert_eq!(names(&place.open("b").1, HERE), ["a.example.org", "b.example.org"]);
}

#[test]
fn it_is_large_when_it_has_doubled() {
    let place = Place::new();
    let mut journal = write(&place, &[]);
    let elements = vec![(element(HERE), Tick(100)); COMPACT_FROM / 2];
    let grow = |journal: &mut Journal| {
        journal.opened(&basis("a.example.org", AddressTrust::Zone), Tick(50), elements.iter().copied());
        journal.write().unwrap();
        journal.is_large()
    };
    assert_eq!((grow(&mut journal), grow(&mut journal)), (false, true));
    journal.begin_rewriting().unwrap();
    assert!(!grow(&mut journal), "it is being rewritten");
    journal.finish_rewriting().unwrap();
    assert_eq!((journal.named, journal.rewritten), (COMPACT_FROM / 2, 0), "what was written meanwhile");
    assert!(grow(&mut journal));
    // As many as that are live: not before as many again.
    (journal.rewritten, journal.named) = (COMPACT_FROM, COMPACT_FROM);
    assert_eq!((grow(&mut journal), grow(&mut journal)), (false, true));
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
        words in any::<(Option<String>, Option<String>, String, String, String)>(),
        name in a_name(),
        kind in any::<u16>(),
        chain in prop::collection::vec(a_name(), 0..4),
        targets in prop::collection::vec(a_name(), 0..3),
        private in prop::option::of(prop::collection::vec(a_prefix(), 0..4)),
    ) {
        let (forwarder, certificate, origin, segment, rule) = words;
        let trust = private.map_or(AddressTrust::Zone, |private| AddressTrust::Upstream(private.into()));
        let basis = Basis {
            client,
            forwarder: forwarder.map(Arc::from),
            certificate: certificate.map(Arc::from),
            question: Question { name, kind: RecordType(kind) },
            chain: chain.into(),
            targets: targets.into(),
            origin: Origin { name: Arc::from(origin), trust },
            segment: Arc::from(segment),
            rule: Arc::from(rule),
        };
        let place = Place::new();
        let (mut journal, _) = place.open("b");
        journal.rewrite(&empty()).unwrap();
        journal.opened(&basis, Tick(1), [(element(HERE), Tick(2))].into_iter());
        journal.write().unwrap();
        prop_assert_eq!(place.text().lines().count(), 3, "one line each");
        let reason = Reason { basis, told_until: Tick(1), open_until: Tick(2) };
        prop_assert_eq!(place.open("b").1, Reasons::from([(element(HERE), vec![reason])]));
    }

    /// Whatever is in the file, it is read to its end, and what is not ours gives no reasons.
    #[test]
    fn any_file_is_read(bytes in prop::collection::vec(any::<u8>(), 0..512), cut in any::<prop::sample::Index>()) {
        let place = Place::new();
        std::fs::write(place.0.join("journal"), &bytes).unwrap();
        prop_assert!(place.open("b").1.is_empty());
        // Ours, with a piece of it replaced.
        drop(write(&place, &["a.example.org", "b.example.org"]));
        let mut text = place.text().into_bytes();
        let cut = cut.index(text.len());
        text.splice(cut..(cut + bytes.len() / 8).min(text.len()), bytes.iter().copied().take(16));
        std::fs::write(place.0.join("journal"), &text).unwrap();
        place.open("b");
    }

    /// As [`Element`] shows itself, so that it is read as it was.
    #[test]
    fn elements_are_written_as_they_are_shown(from in any::<IpAddr>(), to in any::<IpAddr>(), number in any::<u32>(), port in 1u16.., which in 0..5) {
        use crate::net::{Scope, SegmentId, Service};
        let (from, service) = match which {
            0 => (Scope::Client(from), Service::Tcp(port)),
            1 => (Scope::Segment(SegmentId(number)), Service::Tcp(port)),
            2 => (Scope::Client(from), Service::Udp(port)),
            3 => (Scope::Client(from), Service::Icmp),
            _ => (Scope::Segment(SegmentId(number)), Service::Any),
        };
        let element = Element { from, to, service };
        let mut text = Vec::new();
        text::closed(&mut text, [element].iter());
        prop_assert_eq!(String::from_utf8(text).unwrap(), format!("- {element} ;\n"));
    }
}
