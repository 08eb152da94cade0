//! What holds for every policy: random small ones against the plain definition, rule by rule.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt::Write as _;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proptest::test_runner::TestCaseError;

use super::pattern::{Pattern, Shape};
use super::testing::{NOW, address, answer, asker, name, upstream, verdict, zone};
use super::{
    Action, Cleared, Policy, Reason, RuleIndex, Runtime, Settings, Source, Verdict, Voice, compile, decide, inspect,
};
use crate::document::{Warning, WarningKind};
use crate::name::{is_within, labels};
use crate::record::service::{Service, key};
use crate::record::{AddressTrust, Origin, Record, RecordType};
use crate::time::Ttl;

pub(super) const CLIENTS: [&str; 3] = ["192.0.2.1", "198.51.100.1", "203.0.113.1"];
const SEGMENTS: &str = r#"
[[segment]]
name    = "s0"
clients = ["192.0.2.0/24"]
[[segment]]
name    = "s1"
clients = ["198.51.100.0/24", "2001:db8::/32"]
scope   = "segment"
[[segment]]
name    = "s2"
clients = ["203.0.113.0/24"]
refusal = "refused"
"#;
const TYPES: [RecordType; 3] = [RecordType::A, RecordType::AAAA, RecordType::TXT];
pub(super) const ASKED: [RecordType; 4] = [RecordType::A, RecordType::AAAA, RecordType::TXT, RecordType::HTTPS];
const ADDRESS_TYPES: [RecordType; 2] = [RecordType::A, RecordType::AAAA];
const ADDRESSES: [&str; 10] = [
    "192.88.98.1",
    "192.88.98.200",
    "10.20.0.5",
    "10.30.0.5",
    "127.0.0.1",
    "169.254.169.254",
    "8.8.8.8",
    "2606:2800::1",
    "2606:2800::2",
    "64:ff9b::10.20.0.5",
];

/// One rule as it is written.
#[derive(Clone, Debug)]
pub(super) struct Spec {
    id: String,
    deny: bool,
    pub(super) segments: Vec<usize>,
    pub(super) names: Vec<String>,
    pub(super) except: Vec<String>,
    types: Vec<RecordType>,
    private: bool,
    within: bool,
    cname: &'static str,
    https: &'static str,
}

impl Spec {
    pub(super) fn called(self, id: String) -> Self {
        Self { id, ..self }
    }

    fn write(&self) -> String {
        let action = if self.deny { "deny" } else { "allow" };
        let segments: Vec<_> = self.segments.iter().map(|segment| format!("s{segment}")).collect();
        let segments = if self.segments.len() == 3 { vec!["*".to_owned()] } else { segments };
        let mut text = format!(
            "[[rule]]\nid = {:?}\naction = {action:?}\nsegments = {segments:?}\nnames = {:?}\nexcept = {:?}\n",
            self.id, self.names, self.except
        );
        if !self.deny {
            let types: Vec<_> = self.types.iter().map(ToString::to_string).collect();
            writeln!(text, "types = {types:?}\ncname = {}\nhttps = {:?}", self.cname, self.https).unwrap();
            if self.private {
                text.push_str("private = [\"10.20.0.0/16\"]\n");
            }
            if self.within {
                text.push_str("within = [\"192.88.98.0/25\", \"10.0.0.0/8\", \"2606:2800::/127\"]\n");
            }
        }
        text
    }

    fn allows(&self, kind: RecordType) -> bool {
        if kind.is_service() { self.https != "nodata" } else { self.types.contains(&kind) }
    }

    /// How near the rule is to a name: the smaller, the more specific. `None`: it does not name it.
    fn nearness(&self, segment: usize, wire: &[u8]) -> Option<(bool, Reverse<usize>, bool)> {
        let of = |list: &[String]| {
            let patterns = list.iter().map(|text| Pattern::parse(text).unwrap());
            let found = patterns.filter(|pattern| pattern.matches(wire)).map(|pattern| {
                let labels = labels(&pattern.base).count() + usize::from(pattern.shape != Shape::Exact);
                (pattern.shape != Shape::Exact, Reverse(labels), pattern.shape == Shape::Many)
            });
            found.min()
        };
        if !self.segments.contains(&segment) || of(&self.except).is_some() { None } else { of(&self.names) }
    }
}

/// The definition: look at every rule.
fn naive(specs: &[Spec], segment: usize, asked: &str, kind: RecordType) -> Result<Vec<String>, (Reason, String)> {
    let asked = name(asked);
    let mut near: Vec<_> =
        specs.iter().filter_map(|spec| Some((spec.nearness(segment, asked.as_wire())?, &spec.id, spec))).collect();
    near.sort_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)));
    if let Some((_, id, _)) = near.iter().find(|(.., spec)| spec.deny) {
        return Err((Reason::Rule, (*id).clone()));
    }
    let admitting: Vec<_> =
        near.iter().filter(|(.., spec)| spec.allows(kind)).map(|(_, id, _)| (*id).clone()).collect();
    match near.first() {
        None => Err((Reason::Default, String::new())),
        Some((_, id, _)) if admitting.is_empty() => Err((Reason::Type, (*id).clone())),
        Some(_) => Ok(admitting),
    }
}

/// Every name that the generated policies can tell apart, and a few more.
fn universe() -> Vec<String> {
    universe_of(&["a", "b", "ab"], 3)
}

/// The names of these labels below `example.org`, so many labels deep, and those above.
pub(super) fn universe_of(labels: &[&str], depth: usize) -> Vec<String> {
    let mut names = vec![".".to_owned(), "org".to_owned(), "example.org".to_owned()];
    let mut level = vec!["example.org".to_owned()];
    for _ in 0..depth {
        level = level.iter().flat_map(|base| labels.iter().map(move |label| format!("{label}.{base}"))).collect();
        names.extend(level.iter().cloned());
    }
    names
}

fn a_name() -> impl Strategy<Value = String> {
    prop::collection::vec(select(vec!["a", "b", "ab"]), 0..3)
        .prop_map(|labels| labels.iter().fold("example.org".to_owned(), |base, label| format!("{label}.{base}")))
}

fn a_pattern() -> impl Strategy<Value = String> {
    (select(vec!["", "", "*.", "**.", "a*.", "*b."]), a_name()).prop_map(|(shape, base)| format!("{shape}{base}"))
}

fn a_rule() -> impl Strategy<Value = Spec> {
    let names = prop::collection::btree_set(a_pattern(), 1..4).prop_map(|names| names.into_iter().collect());
    let except = prop::collection::vec(a_pattern(), 0..2);
    let segments = subsequence(vec![0, 1, 2], 1..=3);
    let types = subsequence(TYPES.to_vec(), 1..=3);
    let cname = select(vec!["\"trust\"", "\"trust\"", "\"inspect\"", "[\"**.example.org\"]"]);
    let https = select(vec!["nodata", "filter", "filter", "pass"]);
    let flags = (prop::bool::weighted(0.2), any::<bool>(), prop::bool::weighted(0.3));
    (names, except, segments, types, (cname, https), flags).prop_map(
        |(names, except, segments, types, (cname, https), (deny, private, within))| Spec {
            id: String::new(),
            deny,
            segments,
            names,
            except,
            types,
            private,
            within,
            cname,
            https,
        },
    )
}

/// So many rules, which have no ids yet.
pub(super) fn a_rule_of(count: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Spec>> {
    prop::collection::vec(a_rule(), count)
}

fn a_policy() -> impl Strategy<Value = Vec<Spec>> {
    prop::collection::vec(a_rule(), 0..8).prop_map(|mut specs| {
        for (index, spec) in specs.iter_mut().enumerate() {
            spec.id = format!("r{index}");
        }
        specs
    })
}

/// Rules that are much like each other: one thing of a copy is of another rule.
fn a_policy_of_copies() -> impl Strategy<Value = Vec<Spec>> {
    let copies = prop::collection::vec((any::<prop::sample::Index>(), a_rule(), 0..6), 1..5);
    (prop::collection::vec(a_rule(), 1..4), copies).prop_map(|(mut specs, copies)| {
        for (of, other, thing) in copies {
            let mut copy = of.get(&specs).clone();
            match thing {
                0 => copy.names = other.names,
                1 => copy.types = other.types,
                2 => copy.cname = other.cname,
                3 => copy.https = other.https,
                4 => (copy.within, copy.private) = (other.within, other.private),
                _ => copy.segments = other.segments,
            }
            specs.push(copy);
        }
        for (index, spec) in specs.iter_mut().enumerate() {
            spec.id = format!("r{index}");
            if index % 2 == 0 {
                spec.except.clear();
            }
        }
        specs
    })
}

pub(super) fn build(specs: impl Iterator<Item = Spec>) -> Arc<Policy> {
    let mut files = vec![Source { file: "segments.toml".to_owned(), text: SEGMENTS.to_owned() }];
    files.extend(specs.map(|spec| Source { file: format!("{}.toml", spec.id), text: spec.write() }));
    Arc::new(compile(files, &Settings::default()).unwrap())
}

fn an_answer() -> impl Strategy<Value = (Vec<String>, Vec<&'static str>, Origin)> {
    let origin = prop_oneof![Just(upstream(&[])), Just(upstream(&["10.20.0.0/16", "64:ff9b::/96"])), Just(zone())];
    (prop::collection::vec(a_name(), 0..4), prop::collection::vec(select(ADDRESSES.to_vec()), 0..5), origin)
}

/// The answer that leads from `asked` over `chain` to `addresses`; a name twice in it is left out, to have no loop.
fn given(asked: &str, chain: &[String], addresses: &[&str], origin: &Origin) -> (crate::record::Answer, Vec<String>) {
    let mut passed = vec![asked.to_owned()];
    for next in chain {
        if !passed.contains(next) {
            passed.push(next.clone());
        }
    }
    let links = passed.windows(2).map(|pair| format!("{} CNAME {}", pair[0], pair[1]));
    let end = passed.last().unwrap();
    let lines: Vec<_> = links.chain(addresses.iter().map(|address| format!("{end} {address}"))).collect();
    (answer(origin.clone(), &lines.iter().map(String::as_str).collect::<Vec<_>>()), passed)
}

/// Whether somebody may vouch for an address of [`ADDRESSES`]: `None`: nobody; `Some(false)`: nobody needs to.
fn needs_voucher(address: &str) -> Option<bool> {
    match address {
        "127.0.0.1" | "169.254.169.254" | "8.8.8.8" => None,
        _ => Some(address.starts_with("10.") || address.starts_with("64:")),
    }
}

fn vouches(origin: &Origin) -> bool {
    match &origin.trust {
        AddressTrust::Zone => true,
        AddressTrust::Upstream(private) => !private.is_empty(),
    }
}

/// I3: granted ⊆ answered ⊆ allowed.
fn check_cleared(policy: &Policy, cleared: &Cleared, specs: &[Spec], segment: usize, passed: &[String]) {
    let told: Vec<_> = cleared.answer().records.iter().filter_map(Record::address).collect();
    if cleared.withheld().is_some() {
        assert!(cleared.answer().records.is_empty() && cleared.openings().is_empty());
    }
    for opening in cleared.openings() {
        assert!(told.contains(&opening.element.to), "opened and not told: {opening:?}");
        assert!(policy.upholds(cleared.basis(), &opening.element, NOW).is_some(), "not upheld: {opening:?}");
    }
    let kind = cleared.permit().question().kind;
    for to in told {
        assert!(cleared.openings().iter().any(|opening| opening.element.to == to), "told and not opened: {to}");
        let text = ADDRESSES.iter().find(|text| address(text) == to).unwrap();
        let needs = needs_voucher(text).unwrap_or_else(|| panic!("{text} is never granted"));
        let rules = naive(specs, segment, &passed[0], kind).unwrap();
        let lifting = specs.iter().any(|spec| rules.contains(&spec.id) && spec.private && *text == "10.20.0.5");
        assert!(!needs || vouches(&cleared.basis().origin) || lifting, "nobody vouches for {text}");
        for name in passed {
            let ruling = naive(specs, segment, name, kind);
            assert!(!matches!(ruling, Err((Reason::Rule, _))), "the chain passes the denied {name}");
        }
    }
}

/// The data of an HTTPS record: parameters of any kind, hints among them; sometimes cut, or with an octet changed.
fn a_service() -> impl Strategy<Value = Vec<u8>> {
    let hints = |key: u16, six: bool| {
        let of_family: Vec<_> = ADDRESSES.into_iter().filter(|text| text.contains(':') == six).collect();
        let octets = |text: &&str| match address(text) {
            std::net::IpAddr::V4(address) => address.octets().to_vec(),
            std::net::IpAddr::V6(address) => address.octets().to_vec(),
        };
        let list = prop::collection::vec(select(of_family), 1..4);
        list.prop_map(move |list| (key, list.iter().flat_map(octets).collect::<Vec<u8>>()))
    };
    let other = select(vec![
        (key::MANDATORY, vec![0, 4]),
        (key::ALPN, b"\x02h2".to_vec()),
        (key::PORT, vec![1, 187]),
        (key::ECH, vec![1, 2, 3]),
        (667, vec![192, 0, 2, 1]),
    ]);
    let parameter = prop_oneof![3 => hints(key::IPV4_HINT, false), 2 => hints(key::IPV6_HINT, true), 2 => other];
    let parameters = prop::collection::vec(parameter, 0..4);
    let target = prop_oneof![3 => Just(".".to_owned()), 2 => a_name()];
    let fault = prop::option::weighted(0.1, (any::<prop::sample::Index>(), any::<Option<u8>>()));
    (select(vec![1_u16, 1, 1, 0]), target, parameters, fault).prop_map(|(priority, target, parameters, fault)| {
        let parameters: BTreeMap<_, _> = parameters.into_iter().collect();
        let parameters = parameters.into_iter().map(|(key, value)| (key, value.into())).collect();
        let mut data = Vec::new();
        Service { priority, target: name(&target), parameters }.write(&mut data);
        match fault {
            Some((at, Some(octet))) => *at.get_mut(&mut data) = octet,
            Some((at, None)) => data.truncate(at.index(data.len())),
            None => {}
        }
        data
    })
}

fn check_services(
    policy: &Policy,
    cleared: &Cleared,
    specs: &[Spec],
    segment: usize,
    passed: &[String],
) -> Result<(), TestCaseError> {
    let (asked, owner) = (&passed[0], name(passed.last().unwrap()));
    let rules = naive(specs, segment, asked, RecordType::HTTPS).unwrap();
    let rules: Vec<_> = specs.iter().filter(|spec| rules.contains(&spec.id)).collect();
    let passes = rules.iter().any(|spec| spec.https == "pass");
    let may_ask = |target: &str| ADDRESS_TYPES.iter().any(|kind| naive(specs, segment, target, *kind).is_ok());
    let mut told = BTreeSet::new();
    for record in cleared.answer().records.iter().filter(|record| record.kind.is_service()) {
        let service = Service::read(&record.data).expect("what is told can be read");
        told.extend(service.hints());
        let own = service.target.as_wire() == [0] || service.target == owner;
        prop_assert!(own || may_ask(&service.target.to_string()), "it leads to {}", service.target);
        let filtered = |(key, _): &(u16, _)| matches!(*key, key::ECH | 667);
        prop_assert!(passes || !service.parameters.iter().any(filtered), "{service}");
    }
    let opened: BTreeSet<_> = cleared.openings().iter().map(|opening| opening.element.to).collect();
    prop_assert_eq!(&told, &opened, "told and opened are the same");
    for opening in cleared.openings() {
        prop_assert!(policy.upholds(cleared.basis(), &opening.element, NOW).is_some(), "not upheld: {:?}", opening);
    }
    for to in told {
        let text = ADDRESSES.iter().find(|text| address(text) == to);
        // An octet of a hint was changed: it is some other address, and the guard has seen it.
        let Some(text) = text else { continue };
        let needs = needs_voucher(text).unwrap_or_else(|| panic!("{text} is never granted"));
        let lifting = rules.iter().any(|spec| spec.private && *text == "10.20.0.5");
        prop_assert!(!needs || vouches(&cleared.basis().origin) || lifting, "nobody vouches for {}", text);
        let kind = if to.is_ipv4() { RecordType::A } else { RecordType::AAAA };
        prop_assert!(rules.iter().any(|spec| spec.allows(kind)), "no rule allows {}", kind);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn the_index_agrees_with_the_definition(specs in a_policy()) {
        let policy = build(specs.iter().cloned());
        let reversed = build(specs.iter().rev().cloned());
        let universe = universe();
        for (segment, client) in CLIENTS.iter().enumerate() {
            let mut permitted = Vec::new();
            let mut gone = Vec::new();
            for asked in &universe {
                let mut open = false;
                for kind in ASKED {
                    let said = verdict(&policy, client, asked, kind, NOW);
                    prop_assert_eq!(&said, &verdict(&reversed, client, asked, kind, NOW), "order of files: {}", asked);
                    match naive(&specs, segment, asked, kind) {
                        Ok(rules) => {
                            open = true;
                            prop_assert_eq!(said, format!("permit {}", rules.join(" ")), "{} {}", asked, kind);
                        }
                        Err((reason, rule)) => {
                            let ends: Vec<_> = said.split(' ').collect();
                            prop_assert_eq!(ends[0], reason.as_str(), "{} {}", asked, kind);
                            prop_assert_eq!(ends.get(2).copied().unwrap_or_default(), rule, "{} {}", asked, kind);
                            if ends[1] == "NoData" {
                                continue;
                            }
                            prop_assert!(reason != Reason::Type);
                            gone.push(name(asked));
                        }
                    }
                }
                if open {
                    permitted.push(name(asked));
                }
                let near = policy.matching(asker(&policy, client), name(asked).as_wire());
                let expected = specs.iter().filter(|spec| {
                    spec.nearness(segment, name(asked).as_wire()).is_some()
                });
                prop_assert_eq!(near.len(), expected.count());
            }
            // RFC 8020: what is said not to exist has nothing below it.
            for gone in gone {
                for below in &permitted {
                    prop_assert!(!is_within(below.as_wire(), gone.as_wire()), "{} is gone, {} is not", gone, below);
                }
            }
        }
    }

    /// What is listed of the rules is what decides.
    #[test]
    fn explain_is_decide(
        specs in a_policy(),
        ends in prop::collection::vec((0usize..8, any::<bool>()), 0..4),
    ) {
        let policy = {
            let mut files = vec![Source { file: "segments.toml".to_owned(), text: SEGMENTS.to_owned() }];
            files.extend(specs.iter().enumerate().map(|(at, spec)| {
                let ended = ends.iter().find(|(rule, _)| *rule == at);
                let end = ended.map_or("", |(_, past)| if *past { "expires = 2001-01-01T00:00:00Z\n" } else { "expires = 2030-01-01T00:00:00Z\n" });
                // Where all share what is opened no rule is for single clients.
                let alone = !spec.segments.contains(&1) && at % 3 == 0;
                let clients = if alone { "clients = [\"192.0.2.1\"]\n" } else { "" };
                Source { file: format!("{}.toml", spec.id), text: format!("{}{end}{clients}", spec.write()) }
            }));
            Arc::new(compile(files, &Settings::default()).unwrap())
        };
        for (client, asked) in CLIENTS.iter().flat_map(|client| universe().into_iter().map(move |asked| (client, asked))) {
            let (asker, asked) = (asker(&policy, client), name(&asked));
            let listed = policy.matching(asker, asked.as_wire());
            let heard: Vec<_> = listed.into_iter().filter(|rule| policy.voice(*rule, asker, NOW) == Voice::Heard).collect();
            let denies = heard.iter().find(|rule| policy.rule(**rule).action == Action::Deny).copied();
            for kind in ASKED {
                let of_type = |rule: &RuleIndex| policy.rule(*rule).types.contains(&kind);
                let allows: Vec<_> = heard.iter().copied().filter(of_type).collect();
                match decide(&policy, asker, asked.as_wire(), kind, NOW) {
                    Verdict::Permit(permit) => {
                        prop_assert!(denies.is_none());
                        prop_assert_eq!(permit.rules(), &allows, "{} {}", asked, kind);
                    }
                    Verdict::Refuse(refusal) => {
                        prop_assert!(denies.is_some() || allows.is_empty(), "{} {}", asked, kind);
                        prop_assert_eq!(refusal.rule, denies.or(heard.first().copied()), "{} {}", asked, kind);
                    }
                    Verdict::Answer(own) => prop_assert!(false, "{:?}", own),
                }
            }
        }
    }

    /// Made while the node runs or written in files, rules say the same; and an allow that is added, in either way, takes
    /// nothing away.
    #[test]
    fn rules_say_the_same_wherever_they_are(
        specs in a_policy(),
        at in 0..8_usize,
        added in a_rule(),
        (chain, addresses, origin) in an_answer(),
    ) {
        let (filed, later) = specs.split_at(at.min(specs.len()));
        let added = Spec { id: "r9".to_owned(), deny: false, ..added };
        let laid_over = |specs: &[Spec], later: &[Spec]| {
            let made = |spec: &Spec| Spec { id: format!("runtime-{}", spec.id), ..spec.clone() };
            let rules = later.iter().map(|spec| Source { file: spec.id.clone(), text: made(spec).write() });
            let (policy, left_out) = build(specs.iter().cloned()).with(&Runtime { rules: rules.collect(), clients: Vec::new() });
            assert!(left_out.is_empty(), "{left_out:?}");
            Arc::new(policy)
        };
        let all = build(specs.iter().cloned());
        let mixed = laid_over(filed, later);
        let more = laid_over(&specs, std::slice::from_ref(&added));
        for (client, asked) in CLIENTS.iter().flat_map(|client| universe().into_iter().map(move |asked| (client, asked))) {
            for kind in TYPES {
                let [all, mixed, more] = [&all, &mixed, &more].map(|policy| {
                    match decide(policy, asker(policy, client), name(&asked).as_wire(), kind, NOW) {
                        Verdict::Permit(permit) => {
                            let six = kind == RecordType::AAAA;
                            let of_family = addresses.iter().copied().filter(|text| text.contains(':') == six);
                            let (answer, _) = given(&asked, &chain, &of_family.collect::<Vec<_>>(), &origin);
                            let cleared = inspect(permit, answer);
                            Ok(cleared.openings().iter().map(|opening| opening.element).collect::<HashSet<_>>())
                        }
                        Verdict::Refuse(refusal) => Err(refusal.reason),
                        Verdict::Answer(own) => Err(own.reason()),
                    }
                });
                prop_assert_eq!(&all, &mixed, "{} {} {}", client, asked, kind);
                match (all, more) {
                    (Ok(open), Ok(more)) => prop_assert!(open.is_subset(&more), "{} {} {}", client, asked, kind),
                    (Ok(_), Err(reason)) => prop_assert!(false, "{} {} {}: {:?}", client, asked, kind, reason),
                    (Err(Reason::Rule), more) => prop_assert_eq!(more, Err(Reason::Rule), "a deny wins: {}", asked),
                    (Err(_), _) => {}
                }
            }
        }
    }

    /// What `check` calls needless can go, all of it at once: the same names and types are permitted, and of any answer
    /// the same is opened.
    #[test]
    fn a_rule_that_is_called_needless_is(specs in a_policy_of_copies(), (chain, addresses, origin) in an_answer()) {
        let policy = build(specs.iter().cloned());
        let needless = |spec: &&Spec| {
            let told = |warning: &&Warning| warning.said.place.as_ref().is_some_and(|place| *place.file == *format!("{}.toml", spec.id));
            let kinds = [WarningKind::Denied, WarningKind::Redundant];
            policy.warnings().iter().filter(|warning| kinds.contains(&warning.kind)).any(|warning| told(&warning))
        };
        let fewer = build(specs.iter().filter(|spec| !needless(spec)).cloned());
        for (client, asked) in CLIENTS.iter().flat_map(|client| universe().into_iter().map(move |asked| (client, asked))) {
            for kind in ASKED {
                let said = [&policy, &fewer].map(|policy| {
                    match decide(policy, asker(policy, client), name(&asked).as_wire(), kind, NOW) {
                        Verdict::Permit(permit) => {
                            let six = kind == RecordType::AAAA;
                            let of_family = addresses.iter().copied().filter(|text| text.contains(':') == six);
                            let (answer, _) = given(&asked, &chain, &of_family.collect::<Vec<_>>(), &origin);
                            Ok(inspect(permit, answer).openings().to_vec())
                        }
                        Verdict::Refuse(refusal) => Err(refusal.reason),
                        Verdict::Answer(own) => Err(own.reason()),
                    }
                });
                prop_assert_eq!(&said[0], &said[1], "{} {} {}", client, asked, kind);
            }
        }
    }

    #[test]
    fn granted_is_answered_is_allowed(
        specs in a_policy(),
        (chain, addresses, origin) in an_answer(),
        six in any::<bool>(),
    ) {
        let policy = build(specs.iter().cloned());
        let kind = if six { RecordType::AAAA } else { RecordType::A };
        let addresses: Vec<_> = addresses.into_iter().filter(|text| text.contains(':') == six).collect();
        for (segment, client) in CLIENTS.iter().enumerate() {
            for asked in universe() {
                let Verdict::Permit(permit) =
                    decide(&policy, asker(&policy, client), name(&asked).as_wire(), kind, NOW) else { continue };
                let (answer, passed) = given(&asked, &chain, &addresses, &origin);
                let cleared = inspect(permit, answer);
                check_cleared(&policy, &cleared, &specs, segment, &passed);
            }
        }
    }

    /// I3 for addresses that nobody asked for: no hint is told that the guard did not see and that is not open.
    #[test]
    fn hinted_is_granted_is_allowed(
        specs in a_policy(),
        services in prop::collection::vec(a_service(), 0..4),
        (chain, _, origin) in an_answer(),
    ) {
        let policy = build(specs.iter().cloned());
        for (segment, client) in CLIENTS.iter().enumerate() {
            for asked in universe() {
                let kind = RecordType::HTTPS;
                let Verdict::Permit(permit) =
                    decide(&policy, asker(&policy, client), name(&asked).as_wire(), kind, NOW) else { continue };
                let (mut answer, passed) = given(&asked, &chain, &[], &origin);
                let end = name(passed.last().unwrap());
                let record = |data: &Vec<u8>| {
                    Record { name: end.clone(), kind, ttl: Ttl::from_wire(60), data: data.as_slice().into() }
                };
                answer.records.extend(services.iter().map(record));
                let cleared = inspect(permit, answer);
                check_services(&policy, &cleared, &specs, segment, &passed)?;
            }
        }
    }

    #[test]
    fn nothing_that_is_read_makes_it_panic(text in "\\PC{0,200}", bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = compile([Source { file: "x.toml".to_owned(), text: text.clone() }], &Settings::default());
        let rule = format!("[[rule]]\nid = \"r\"\naction = \"allow\"\nsegments = [\"*\"]\nnames = [{text:?}]\n");
        let _ = compile([Source { file: "x.toml".to_owned(), text: rule }], &Settings::default());
        let policy = build(std::iter::empty());
        let _ = decide(&policy, asker(&policy, CLIENTS[0]), &bytes, RecordType::A, NOW);
    }
}
