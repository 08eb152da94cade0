//! What is changed while the node runs: rules of operators, and clients that somebody places in a segment. Both are laid
//! over a policy of files, which is not read again for it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::group::Groups;
use super::index;
use super::link::{Choices, Linker};
use super::load::{number, spread_networks};
use super::reserved::Reserved;
use super::rule::{self, Action, Rule, RuleDraft};
use super::segment::Segment;
use super::verdict::{RuleIndex, SegmentIndex};
use super::{Asker, Policy, Source};
use crate::document::{Document, Mistake};
use crate::net::{Prefix, PrefixMap, canonical};

/// What is laid over a policy.
#[derive(Clone, Debug, Default)]
pub struct Runtime {
    /// Rules as policy files have them, their ids beginning with `runtime-`. Each is a text of its own: a mistake in one
    /// concerns no other.
    pub rules: Vec<Source>,
    /// Clients with the segment that each is of, whatever the prefixes of segments say.
    pub clients: Vec<Placement>,
}

/// A client that somebody placed in a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Which.
    pub client: IpAddr,
    /// Its segment's name.
    pub segment: Arc<str>,
    /// A JSON object that its records carry; empty: none.
    pub labels: Arc<str>,
}

/// A placement as a policy knows it.
#[derive(Clone, Debug)]
pub(super) struct Placed {
    pub(super) segment: SegmentIndex,
    labels: Arc<str>,
}

/// The rules of files in order of id, and behind them those that were made while the node runs.
#[derive(Clone, Debug, Default)]
pub(super) struct Rules {
    filed: Arc<[Rule]>,
    later: Arc<[Rule]>,
}

impl Rules {
    pub(super) fn new(filed: Vec<Rule>) -> Self {
        Self { filed: filed.into(), later: Arc::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.filed.len() + self.later.len()
    }

    pub(super) fn get(&self, index: RuleIndex) -> Option<&Rule> {
        let at = index.0 as usize;
        self.filed.get(at).or_else(|| self.later.get(at.checked_sub(self.filed.len())?))
    }

    pub(super) fn of(&self, index: RuleIndex) -> &Rule {
        let at = index.0 as usize;
        #[expect(clippy::indexing_slicing, reason = "a RuleIndex is made by its own policy from its own table")]
        self.filed.get(at).unwrap_or_else(|| &self.later[at - self.filed.len()])
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Rule> {
        self.filed.iter().chain(&*self.later)
    }

    /// Those of files.
    pub(super) fn filed(&self) -> &[Rule] {
        &self.filed
    }

    /// What deny rules without an end close, each with its rule.
    pub(super) fn denied(&self) -> PrefixMap<RuleIndex> {
        let mut denied = PrefixMap::default();
        for index in self.denials() {
            let rule = self.of(index);
            for prefix in rule.networks.iter().filter(|_| rule.expires.is_none()) {
                denied.insert(*prefix, index);
            }
        }
        denied
    }

    /// The deny rules for networks.
    pub(super) fn denials(&self) -> impl Iterator<Item = RuleIndex> {
        let denies = |(_, rule): &(usize, &Rule)| rule.action == Action::Deny && !rule.networks.is_empty();
        self.iter().enumerate().filter(denies).map(|(at, _)| number(at, RuleIndex))
    }
}

impl Policy {
    /// This policy with other changes laid over it than it has now, and why some of them are left out: by their places in
    /// `runtime.rules`, and behind these in `runtime.clients`.
    #[must_use]
    pub fn with(&self, runtime: &Runtime) -> (Self, Vec<(usize, Vec<Mistake>)>) {
        let mut left_out = Vec::new();
        let mut linker = Linker::new(Arc::clone(&self.guard), true, true);
        let mut index = index::Reader::default();
        let reserved = Reserved::new(&mut index);
        let first = self.rules.filed.len();
        let (mut rules, mut numbers) = (Vec::new(), HashMap::new());
        let mut choices = Choices::new(&self.filed);
        for (at, source) in runtime.rules.iter().enumerate() {
            let (mut drafts, mut mistakes) = read(source, at, &mut index, &reserved);
            // What is denied to several stays denied to those that there are.
            for draft in drafts.iter_mut().filter(|draft| draft.rule.action == Action::Deny) {
                choices.forget_unknown(draft);
            }
            if mistakes.is_empty() {
                let read: Vec<u32> = drafts.iter().map(|draft| draft.number).collect();
                let (linked, _) = linker.link_rules(drafts, &self.filed, &mut choices);
                mistakes = std::mem::take(&mut linker.mistakes);
                if mistakes.is_empty() {
                    numbers.extend(read.into_iter().zip((first + rules.len()..).map(|at| number(at, RuleIndex))));
                    rules.extend(linked);
                    continue;
                }
            }
            left_out.push((at, mistakes));
        }
        let mut segments = None;
        let mut placed = HashMap::default();
        for (at, Placement { client, segment, labels }) in runtime.clients.iter().enumerate() {
            let Some(place) = self.place_of(segment) else {
                let fact = format!("{client} is placed in the segment {segment}, which no policy file defines");
                let mistake = Mistake::general(fact, "place it in another one, or take it out");
                left_out.push((runtime.rules.len() + at, vec![mistake]));
                continue;
            };
            let client = canonical(*client);
            placed.insert(client, Placed { segment: place, labels: Arc::clone(labels) });
            let segments: &mut Vec<Segment> = segments.get_or_insert_with(|| self.filed.to_vec());
            for (at, segment) in segments.iter_mut().enumerate() {
                if at == place.0 as usize {
                    segment.receive(Prefix::from(client));
                } else {
                    segment.release(Prefix::from(client));
                }
            }
        }
        if rules.iter().any(|rule| rule.action == Action::Allow && !rule.networks.is_empty()) {
            spread_networks(segments.get_or_insert_with(|| self.filed.to_vec()), &rules);
        }
        let rules = Rules { filed: Arc::clone(&self.rules.filed), later: rules.into() };
        let later = (!rules.later.is_empty()).then(|| Arc::new(index.finish(&rules, &numbers)));
        let policy = Self {
            segments: segments.map_or_else(|| Arc::clone(&self.filed), Into::into),
            denials: rules.denials().collect(),
            denied: Arc::new(rules.denied()),
            rules,
            placed,
            later,
            ..self.clone()
        };
        (policy, left_out)
    }

    /// The labels of a client that somebody placed: a JSON object, empty where there are none.
    #[must_use]
    pub fn labels(&self, asker: Asker) -> &str {
        if self.placed.is_empty() { "" } else { self.placed.get(&asker.client).map_or("", |placed| &placed.labels) }
    }
}

/// The rules of one text, which are to be one: what else is in it is a mistake.
fn read(source: &Source, at: usize, index: &mut index::Reader, reserved: &Reserved) -> (Vec<RuleDraft>, Vec<Mistake>) {
    let (document, root) = Document::parse(&source.file, source.text.clone());
    let tables = root.tables("rule").into_iter().take(1);
    let read = tables.filter_map(|table| rule::read(table, number(at, |at| at), index, reserved, &Groups::default()));
    let drafts = read.collect();
    root.finish(&[]);
    (drafts, document.take_mistakes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{Element, Scope, SegmentId, Service};
    use crate::policy::inspect;
    use crate::policy::testing::{NOW, address, answer, asker, permit, policy, upstream, verdict};
    use crate::record::RecordType;
    use crate::time::Wall;

    const TEXT: &str = r#"
[[segment]]
name    = "shop"
clients = ["192.0.2.0/24"]
[[segment]]
name    = "till"
clients = ["198.51.100.0/24"]
[[segment]]
name = "pods"
[[rule]]
id       = "web"
action   = "allow"
segments = ["shop", "pods"]
names    = ["**.example.com"]
"#;

    fn source(text: &str) -> Source {
        Source { file: "runtime".to_owned(), text: text.to_owned() }
    }

    fn rule(id: &str, action: &str, segment: &str, rest: &str) -> Source {
        source(&format!("[[rule]]\nid = \"{id}\"\naction = \"{action}\"\nsegments = [\"{segment}\"]\n{rest}\n"))
    }

    fn placed(client: &str, segment: &str, labels: &str) -> Placement {
        Placement { client: address(client), segment: segment.into(), labels: labels.into() }
    }

    fn with(policy: &Policy, runtime: &Runtime) -> (Arc<Policy>, Vec<String>) {
        let (policy, left_out) = policy.with(runtime);
        let told =
            left_out.iter().flat_map(|(at, mistakes)| mistakes.iter().map(move |mistake| format!("{at}: {mistake}")));
        (Arc::new(policy), told.collect())
    }

    #[test]
    fn rules_made_while_it_runs_add_up_with_those_of_files() {
        let files = policy(TEXT);
        let rules = vec![
            rule("runtime-1", "allow", "till", "names = [\"a.example.org\"]\nexpires = 2001-09-10T00:00:00Z"),
            rule("runtime-2", "deny", "*", "names = [\"**.bad.example.com\"]"),
            rule("runtime-3", "allow", "shop", "names = [\"one.example.com\"]\nports = [\"tcp/22\"]"),
        ];
        let (changed, left_out) = with(&files, &Runtime { rules, clients: Vec::new() });
        assert_eq!(left_out, [""; 0]);
        let end = Wall::from_civil(2001, 9, 10, 0);
        let before = Wall(end.0 - 1);
        for (client, name, now, told, told_by_files) in [
            ("198.51.100.1", "a.example.org", before, "permit runtime-1", "default NxDomain"),
            ("198.51.100.1", "a.example.org", end, "default NxDomain", "default NxDomain"),
            ("192.0.2.1", "a.example.org", before, "default NxDomain", "default NxDomain"),
            ("192.0.2.1", "x.bad.example.com", end, "rule NxDomain runtime-2", "permit web"),
            ("192.0.2.1", "bad.example.com", end, "permit web", "permit web"),
            ("192.0.2.1", "one.example.com", end, "permit runtime-3 web", "permit web"),
            ("192.0.2.1", "localhost", end, "special answered 1", "special answered 1"),
        ] {
            assert_eq!(verdict(&changed, client, name, RecordType::A, now), told, "{client} {name}");
            assert_eq!(verdict(&files, client, name, RecordType::A, now), told_by_files, "{client} {name}");
        }
        assert_eq!(
            (changed.rules_len(), changed.next_change(before), changed.revision()),
            (4, Some(end), files.revision())
        );

        // I6 is asked of both kinds.
        let cleared = inspect(permit(&files, "192.0.2.1", "x.bad.example.com", RecordType::A), {
            answer(upstream(&[]), &["x.bad.example.com 192.88.98.1"])
        });
        let element = cleared.openings()[0].element;
        assert!(files.upholds(cleared.basis(), &element, end).is_some());
        assert!(changed.upholds(cleared.basis(), &element, end).is_none());

        let (again, _) = with(&changed, &Runtime::default());
        assert_eq!(verdict(&again, "192.0.2.1", "x.bad.example.com", RecordType::A, end), "permit web");
        assert_eq!(again.rules_len(), 1);
    }

    #[test]
    fn what_is_wrong_is_left_out_alone() {
        let files = policy(TEXT);
        let rules = vec![
            rule("runtime-1", "allow", "attic", "names = [\"a.example.org\"]"),
            rule("mine", "allow", "shop", "names = [\"b.example.org\"]"),
            rule("runtime-3", "allow", "shop", "names = [\"*.com\", \"x.example.org\"]"),
            rule("runtime-4", "deny", "shop", "names = [\"c.example.com\"]"),
            source("[[segment]]\nname = \"more\"\n"),
        ];
        let clients = vec![placed("192.0.2.7", "attic", ""), placed("192.0.2.8", "till", "")];
        let (changed, left_out) = with(&files, &Runtime { rules, clients });
        assert_eq!(
            left_out,
            [
                "0: runtime:4:13: no segment is named \"attic\"\n  name a segment, or \"*\" for all",
                "1: runtime:1:1: the id mine is one of rules that files have\n  let it begin with runtime-",
                "2: runtime:5:10: \"*.com\" would allow a whole top-level domain\n  write the full suffix, e.g. \"*.example.com\"",
                "4: runtime:1:3: `segment` is not a key here\n  remove it; the keys here are rule",
                "5: 192.0.2.7 is placed in the segment attic, which no policy file defines\n  place it in another one, or take it out",
            ]
        );
        let told = |name| verdict(&changed, "192.0.2.1", name, RecordType::A, NOW);
        assert_eq!(told("x.example.org"), "default NxDomain");
        assert_eq!(told("c.example.com"), "rule NoData runtime-4");
        assert_eq!(&*changed.segment(asker(&changed, "192.0.2.8")).name, "till");
    }

    #[test]
    fn a_deny_stands_wherever_its_client_is_and_for_the_segments_that_are_left() {
        let files = policy(&format!(
            "{TEXT}[[segment]]\nname = \"hall\"\nclients = [\"203.0.113.0/24\"]\nscope = \"segment\"\n"
        ));
        let rules = vec![
            rule("runtime-1", "deny", "*", "clients = [\"192.0.2.7\"]\nnames = [\"a.example.com\"]"),
            source(
                "[[rule]]\nid = \"runtime-2\"\naction = \"deny\"\nsegments = [\"shop\", \"gone\"]\nnames = [\"b.example.com\"]\n",
            ),
            rule("runtime-3", "deny", "gone", "names = [\"c.example.com\"]"),
        ];
        let clients = vec![placed("192.0.2.7", "pods", "")];
        let (changed, left_out) = with(&files, &Runtime { rules: rules.clone(), clients });
        assert_eq!(left_out, ["2: runtime:4:13: no segment is named \"gone\"\n  name a segment, or \"*\" for all"]);
        let told = |name| verdict(&changed, "192.0.2.7", name, RecordType::A, NOW);
        assert_eq!(told("a.example.com"), "rule NoData runtime-1", "also in another segment");
        assert_eq!(told("b.example.com"), "permit web");
        let (changed, _) = with(&files, &Runtime { rules, clients: Vec::new() });
        let told = |client, name| verdict(&changed, client, name, RecordType::A, NOW);
        assert_eq!(told("192.0.2.7", "a.example.com"), "rule NoData runtime-1");
        assert_eq!(told("192.0.2.1", "b.example.com"), "rule NoData runtime-2");
        assert_eq!(told("192.0.2.1", "a.example.com"), "permit web");
    }

    #[test]
    fn a_client_that_a_segment_names_alone_leaves_it_with_its_flows() {
        let text = TEXT.replace("\"198.51.100.0/24\"", "\"198.51.100.0/24\", \"198.51.100.9\"");
        let files = policy(&text);
        let clients = vec![placed("198.51.100.9", "pods", "")];
        let (changed, _) = with(&files, &Runtime { rules: Vec::new(), clients });
        let with_it = |policy: &Policy| {
            let nine: Prefix = "198.51.100.9/32".parse().unwrap();
            let segments = policy.layout(NOW).segments;
            let named = segments.iter().filter(|segment| segment.sources.contains(&nine));
            named.map(|segment| segment.name.to_string()).collect::<Vec<_>>()
        };
        assert_eq!((with_it(&files), with_it(&changed)), (vec!["till".to_owned()], vec!["pods".to_owned()]));
    }

    #[test]
    fn files_have_no_ids_of_the_running_node() {
        let text = TEXT.replace("\"web\"", "\"runtime-7\"");
        let mistakes = crate::policy::compile([source(&text)], &crate::policy::Settings::default()).unwrap_err();
        let told: Vec<_> = mistakes.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            ["runtime:10:1: the id runtime-7 is one of rules that are made while the node runs\n  give it another id"]
        );
    }

    #[test]
    fn a_placed_client_is_of_its_segment_whatever_prefixes_say() {
        let files = policy(TEXT);
        let clients = vec![
            placed("192.0.2.9", "pods", r#"{"pod":"a"}"#),
            placed("2001:db8::9", "pods", ""),
            placed("::ffff:203.0.113.9", "till", ""),
        ];
        let (changed, left_out) = with(&files, &Runtime { rules: Vec::new(), clients });
        assert_eq!(left_out, [""; 0]);
        let segment = |policy: &Policy, client: &str| {
            policy
                .asker(address(client))
                .map(|asker| format!("{} {}", policy.segment(asker).name, policy.labels(asker)))
        };
        let rows = ["192.0.2.9", "2001:db8::9", "203.0.113.9", "192.0.2.1"];
        assert_eq!(
            rows.map(|client| segment(&changed, client).unwrap_or_default()),
            [r#"pods {"pod":"a"}"#, "pods ", "till ", "shop "]
        );
        assert_eq!(rows.map(|client| segment(&files, client).unwrap_or_default()), ["shop ", "", "", "shop "]);

        // Firewalls know its flows, and the segment reaches the families that it has.
        let layout = changed.layout(NOW);
        let sources = |name: &str| {
            let of = layout.segments.iter().find(|segment| &*segment.name == name).unwrap();
            of.sources.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(sources("pods"), "192.0.2.9/32 2001:db8::9/128");
        assert_eq!(sources("till"), "198.51.100.0/24 203.0.113.9/32");
        let cleared = inspect(permit(&changed, "192.0.2.9", "a.example.com", RecordType::AAAA), {
            answer(upstream(&[]), &["a.example.com 2606:2800::1"])
        });
        let from = Scope::Segment(SegmentId::of("pods"));
        let element = Element { from, to: address("2606:2800::1"), service: Service::Tcp(443) };
        assert_eq!(cleared.openings().iter().map(|opening| opening.element).collect::<Vec<_>>(), [element]);
        assert!(changed.upholds(cleared.basis(), &element, NOW).is_some());
        assert!(files.upholds(cleared.basis(), &element, NOW).is_none());
    }
}
