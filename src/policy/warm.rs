//! Warm rules: names that are resolved and opened for whole segments before anybody asks.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use smallvec::SmallVec;

use super::decide::Ruling;
use super::index::Audience;
use super::link::Linker;
use super::rule::Rule;
use super::segment::Segment;
use super::verdict::{Basis, Permit, SegmentIndex};
use super::{Action, Asker, Policy};
use crate::document::Mistake;
use crate::record::{Question, RecordType};
use crate::time::Wall;

/// The most names that are kept warm, each counted once a segment: each is asked for again and again (guessed; at a TTL of
/// 30 s they are some 350 questions a second).
const MAX_WARM: usize = 4_096;

/// Stands for the client where nobody asked. No packet comes from there (RFC 1122 §3.2.1.3), and no client of a segment
/// has this address.
const NOBODY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// A name that is kept warm for a segment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Warm {
    /// The segment's name.
    pub segment: Arc<str>,
    /// What is asked: A or AAAA.
    pub question: Question,
}

/// A warm name may be resolved and opened for its segment, under the warm rules that name it and no other; `None` where
/// `policy` keeps it warm no more.
#[must_use]
pub fn decide_warm(policy: &Arc<Policy>, warm: &Warm, now: Wall) -> Option<Permit> {
    let segment = policy.place_of(&warm.segment)?;
    let Question { name, kind } = &warm.question;
    let asker = Asker::of_segment(segment);
    let Ruling::Allowed(rules) = policy.rule_on(asker.case(now), name.as_wire(), *kind) else { return None };
    let rules: SmallVec<_> = rules.into_iter().filter(|rule| policy.rule(*rule).warm.contains(name)).collect();
    let question = warm.question.clone();
    let permit =
        Permit { policy: Arc::clone(policy), asker, question, rules, observed: None, observing: false, decided: now };
    (!permit.rules.is_empty()).then_some(permit)
}

impl Policy {
    /// The names that are kept warm, each once a segment and type, and only where the segment has a source of that family.
    #[must_use]
    pub fn warm(self: &Arc<Self>, now: Wall) -> Vec<Warm> {
        let mut found = BTreeSet::new();
        for rule in self.rules.iter().filter(|rule| !rule.warm.is_empty()) {
            for (segment, kind) in self.segments.iter().enumerate().flat_map(|segment| {
                rule.types.iter().filter(|kind| kind.is_address()).map(move |kind| (segment, *kind))
            }) {
                let (place, segment) = segment;
                let reaches = if kind == RecordType::A { segment.has_four } else { segment.has_six };
                let here = u32::try_from(place).is_ok_and(|place| rule.audience.contains(SegmentIndex(place)));
                if reaches && here {
                    found.extend(rule.warm.iter().map(|name| (place, name.clone(), kind)));
                }
            }
        }
        let warm = found.into_iter().filter_map(|(place, name, kind)| {
            let segment = Arc::clone(&self.segments.get(place)?.name);
            Some(Warm { segment, question: Question { name, kind } })
        });
        warm.filter(|warm| decide_warm(self, warm, now).is_some()).collect()
    }
}

impl Asker {
    /// Stands for a segment.
    pub(super) const fn of_segment(segment: SegmentIndex) -> Self {
        Self { client: NOBODY, named: false, segment, voucher: None }
    }

    /// Whether it stands for its segment: nobody asked.
    pub(super) const fn is_segment(&self) -> bool {
        self.client.is_unspecified()
    }
}

impl Basis {
    /// Whether nobody asked: a rule keeps the name warm.
    #[must_use]
    pub const fn is_warm(&self) -> bool {
        self.client.is_unspecified()
    }
}

impl Linker {
    /// Not more than can be kept warm.
    pub(super) fn check_warm(&mut self, segments: &[Segment], rules: &[Rule]) {
        let segments_of = |rule: &Rule| match &rule.audience {
            Audience::All => segments.len(),
            Audience::Listed(listed) => listed.len(),
        };
        let warm = rules.iter().filter(|rule| rule.action == Action::Allow && !rule.warm.is_empty());
        let mut count = 0;
        for rule in warm {
            let before = count;
            count += rule.warm.len() * segments_of(rule);
            if before <= MAX_WARM && count > MAX_WARM {
                let fact = format!("with this rule {count} names are kept warm, each counted once a segment");
                let remedy = format!("keep to {MAX_WARM}: fewer names, or fewer segments");
                self.mistakes.push(Mistake::at(rule.place.clone(), fact, &remedy));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::Name;
    use crate::net::{Element, Scope, SegmentId, Service};
    use crate::policy::testing::{NOW, address, answer, policy, upstream};
    use crate::policy::{Settings, Source, compile, inspect};

    const TEXT: &str = r#"
[[segment]]
name    = "shop"
clients = ["192.0.2.0/24"]
[[segment]]
name    = "till"
clients = ["203.0.113.0/24", "2001:db8::/32"]
[[rule]]
id       = "warm"
action   = "allow"
segments = ["*"]
names    = ["api.example.com", "no.example.com"]
warm     = true
[[rule]]
id       = "more"
action   = "allow"
segments = ["shop"]
names    = ["**.example.com"]
ports    = ["tcp/22"]
[[rule]]
id       = "no"
action   = "deny"
segments = ["*"]
names    = ["no.example.com"]
"#;

    #[test]
    fn each_name_is_warm_for_each_segment_in_each_family_it_has() {
        let policy = policy(TEXT);
        let told: Vec<_> = policy.warm(NOW).iter().map(|warm| format!("{} {}", warm.segment, warm.question)).collect();
        assert_eq!(told, ["shop api.example.com A", "till api.example.com A", "till api.example.com AAAA"]);
        assert!(policy.asker(NOBODY).is_none());
    }

    /// I3, I6: what is warm is opened for the segment, by the warm rule alone, and only while that says so.
    #[test]
    fn opens_for_the_segment_what_the_warm_rule_opens() {
        let before = policy(TEXT);
        let warm = before.warm(NOW).remove(0);
        let permit = decide_warm(&before, &warm, NOW).unwrap();
        let cleared = inspect(permit, answer(upstream(&[]), &["api.example.com 192.88.98.1"]));
        let element = Element {
            from: Scope::Segment(SegmentId::of("shop")),
            to: address("192.88.98.1"),
            service: Service::Tcp(443),
        };
        let opened: Vec<_> = cleared.openings().iter().map(|opening| opening.element).collect();
        assert_eq!(opened, [element]);
        assert!(cleared.basis().is_warm() && &*cleared.basis().rule == "warm");
        for (from, to, upheld) in [
            ("", "", true),
            ("warm     = true", "", false),
            ("\"api.example.com\", ", "", false),
            ("names    = [\"no.example.com\"]", "names    = [\"api.example.com\"]", false),
            ("name    = \"shop\"", "name    = \"stop\"", false),
            ("192.0.2.0/24", "2001:db8:1::/48", false),
        ] {
            let after = policy(&TEXT.replace(from, to).replace("[\"shop\"]", "[\"till\"]"));
            assert_eq!(after.upholds(cleared.basis(), &element, NOW).is_some(), upheld, "{from} → {to}");
        }
        let other = Element { service: Service::Tcp(22), ..element };
        assert!(before.upholds(cleared.basis(), &other, NOW).is_none(), "what other rules open is for who asks");
    }

    fn mistakes(rule: &str) -> Vec<String> {
        let segment = "[[segment]]\nname = \"shop\"\nclients = [\"192.0.2.0/24\"]\n";
        let text = format!("{segment}[[rule]]\nid = \"r\"\nsegments = [\"*\"]\nwarm = true\n{rule}\n");
        let source = Source { file: "p.toml".to_owned(), text };
        compile([source], &Settings::default()).err().unwrap_or_default().iter().map(Mistake::to_string).collect()
    }

    #[test]
    fn says_what_cannot_be_warm() {
        for (rule, says) in [
            (
                "action = \"allow\"\nnames = [\"a.example.com\", \"*.example.com\"]",
                "p.toml:9:27: \"*.example.com\" is no whole name, and the rule keeps its names warm\n  write the names that \
                 are meant, or remove `warm`",
            ),
            (
                "action = \"allow\"\nnames = [\"a.example.com\"]\ntypes = [\"TXT\"]",
                "p.toml:7:8: `warm` opens addresses, and `types` has neither A nor AAAA\n  add one of them, or remove `warm`",
            ),
            (
                "action = \"deny\"\nnames = [\"a.example.com\"]",
                "p.toml:7:8: `warm` in a deny: it refuses the name altogether\n  remove it",
            ),
        ] {
            assert_eq!(mistakes(rule), [says]);
        }
        let names = |count| (0..count).map(|n| format!("\"n{n}.example.com\"")).collect::<Vec<_>>().join(",");
        let rule = |count| format!("action = \"allow\"\nnames = [{}]", names(count));
        assert_eq!(mistakes(&rule(MAX_WARM)), [""; 0]);
        let says = "p.toml:4:1: with this rule 4097 names are kept warm, each counted once a segment\n  keep to 4096: fewer \
                    names, or fewer segments";
        assert_eq!(mistakes(&rule(MAX_WARM + 1)), [says]);
    }

    #[test]
    fn the_same_name_of_two_rules_is_warm_once() {
        let twice = TEXT.replace("id       = \"more\"", "id       = \"more\"\nwarm = true").replace("**.", "api.");
        let names: Vec<Name> = policy(&twice).warm(NOW).into_iter().map(|warm| warm.question.name).collect();
        assert_eq!(names.len(), 3);
    }
}
