//! Gold decisions: what a policy is to say of questions, written down beside it and tried against it.
//!
//! A `[[case]]` is a client, a segment or tags; names and types; and what is expected. It is decided as a query would be.

use std::net::IpAddr;
use std::sync::Arc;

use super::segment::one_of;
use super::verdict::{Said, SegmentIndex};
use super::{Asker, Policy, Reason, Shown, decide};
use crate::document::{Document, Found, Mistake, Place, Table};
use crate::name::Name;
use crate::net::{Service, Services};
use crate::record::RecordType;
use crate::time::Wall;

/// One `[[case]]`.
#[derive(Debug)]
pub struct Case {
    /// Where it stands.
    pub place: Place,
    /// What it is for, in its writer's words.
    pub comment: Option<Box<str>>,
    who: Who,
    names: Vec<Name>,
    kinds: Vec<RecordType>,
    at: Option<Wall>,
    expected: Expected,
}

/// Whose question it is.
#[derive(Debug)]
enum Who {
    Client(IpAddr, Option<Box<str>>),
    /// Whoever is in it: rules for single clients are not heard.
    Segment(String, Place),
    /// Each segment that has them, as in `where`.
    Tags(Vec<(String, Vec<String>)>, Place),
}

/// What is expected; what is `None` is not looked at.
#[derive(Debug)]
struct Expected {
    allows: bool,
    reason: Option<Reason>,
    rule: Option<Box<str>>,
    ports: Option<Vec<Services>>,
    shown: Option<Option<Shown>>,
}

/// A decision that is not as it was expected.
#[derive(Debug, PartialEq, Eq)]
pub struct Tried {
    /// The name.
    pub name: Name,
    /// The type.
    pub kind: RecordType,
    /// `192.0.2.7`, or `segment office`.
    pub asked_by: String,
    /// What differs: the key, what was expected, what is said.
    pub differs: Vec<(&'static str, String, String)>,
}

/// Reads the cases of a file; every mistake of it.
///
/// # Errors
/// The mistakes.
pub fn read_cases(file: &str, text: String) -> Result<Vec<Case>, Vec<Mistake>> {
    let (document, root) = Document::parse(file, text);
    let cases = root.tables("case").into_iter().filter_map(read).collect();
    root.finish(&[]);
    let mistakes = document.take_mistakes();
    if mistakes.is_empty() { Ok(cases) } else { Err(mistakes) }
}

fn read(table: Table) -> Option<Case> {
    let document = table.document().clone();
    let who = read_who(&table);
    let names = read_names(&table);
    let kinds = match table.string_or_strings("type") {
        None => vec![RecordType::A],
        Some(found) => {
            let found = found.map_or_else(|several| several, |one| vec![one]);
            let kinds = found.iter().filter_map(|text| {
                let kind = text.value.parse().ok();
                if kind.is_none() {
                    let fact = format!("\"{}\" is not a record type", text.value);
                    document.note(&text.span, fact, "write A, AAAA, TXT or TYPE731");
                }
                kind
            });
            kinds.collect()
        }
    };
    let at = table.moment("at");
    if !table.has("verdict") {
        document.note(table.span(), "the case expects nothing", "add verdict = \"allow\", or \"deny\"");
    }
    let allows = one_of(&table, "verdict", &[("allow", true), ("deny", false)]);
    let expected = Expected {
        allows: allows?,
        reason: one_of(&table, "reason", &Reason::ALL.map(|reason| (reason.as_str(), reason))),
        rule: table.string("rule").map(|rule| rule.value.into()),
        ports: read_ports(&table),
        shown: {
            let refusals = Shown::ALL.map(|(word, shown)| (word, Some(shown)));
            one_of(&table, "shown", &[&[("answer", None)], refusals.as_slice()].concat())
        },
    };
    let comment = table.string("comment").map(|found| found.value.into());
    let place = document.place(table.span());
    table.finish(&[]);
    Some(Case { place, comment, who: who?, names, kinds, at, expected })
}

fn read_who(table: &Table) -> Option<Who> {
    let document = table.document();
    let ways = ["client", "segment", "tags"];
    let given: Vec<&'static str> = ways.into_iter().filter(|key| table.has(key)).collect();
    let certificate = table.string("certificate");
    let way = match given.as_slice() {
        [way] => *way,
        [] => {
            let remedy = "add client = \"…\", segment = \"…\", or tags = { … }";
            document.note(table.span(), "the case does not say who asks", remedy);
            return None;
        }
        [_, second, ..] => {
            document.note(&table.span_of(second), "the case says twice who asks", "leave one of them");
            return None;
        }
    };
    let place = document.place(&table.span_of(way));
    match way {
        "client" => {
            let client = table.parsed("client", "write an address, e.g. \"192.0.2.7\"")?;
            Some(Who::Client(client.value, certificate.map(|name| name.value.into())))
        }
        "segment" => Some(Who::Segment(table.string("segment")?.value, place)),
        _ => {
            let tags = table.table("tags")?.free_strings();
            let values = |found: Vec<Found<String>>| found.into_iter().map(|value| value.value).collect();
            Some(Who::Tags(tags.into_iter().map(|(key, found)| (key.value, values(found))).collect(), place))
        }
    }
}

fn read_names(table: &Table) -> Vec<Name> {
    let document = table.document();
    let one = table.string("name");
    let several = table.strings("names");
    if !table.has("name") && several.as_ref().is_none_or(Vec::is_empty) {
        document.note(table.span(), "the case asks for no name", "add name = \"…\", or names = [\"…\"]");
    }
    let all = one.into_iter().chain(several.into_iter().flatten());
    let names = all.filter_map(|found| {
        let name = Name::parse(&found.value);
        name.map_err(|why| {
            document.note(&found.span, format!("\"{}\" is not a name: {why}", found.value), "write a whole name");
        })
        .ok()
    });
    names.collect()
}

fn read_ports(table: &Table) -> Option<Vec<Services>> {
    let remedy = "write \"tcp/443\", \"udp/5000-5010\", \"icmp\" or \"any\"";
    let found = table.parsed_list::<Services>("ports", remedy)?;
    let services: Vec<Service> = found.iter().flat_map(|ports| ports.value.expand()).collect();
    Some(Services::merge(&services))
}

impl Case {
    /// How many decisions it is, were it for one segment.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.names.len() * self.kinds.len()
    }

    /// Whether it asks for nothing.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Policy {
    /// Decides a case, at `now` where it names no time, and gives each decision that differs to `failed`; how many there
    /// were.
    ///
    /// # Errors
    /// The case is for a segment that is not there.
    pub fn try_case(self: &Arc<Self>, case: &Case, now: Wall, mut failed: impl FnMut(Tried)) -> Result<usize, Mistake> {
        let askers = self.askers(&case.who)?;
        let now = case.at.unwrap_or(now);
        for (asker, name, kind) in askers.iter().flat_map(|asker| {
            let questions = case.names.iter().flat_map(|name| case.kinds.iter().map(move |kind| (name, *kind)));
            questions.map(move |(name, kind)| (*asker, name, kind))
        }) {
            let differs = self.differs(&case.expected, asker, name, kind, now);
            if !differs.is_empty() {
                let asked_by = match (&case.who, asker) {
                    (Who::Client(client, _), _) => client.to_string(),
                    (_, Some(asker)) => format!("segment {}", self.segment(asker).name),
                    (_, None) => String::new(),
                };
                failed(Tried { name: name.clone(), kind, asked_by, differs });
            }
        }
        Ok(askers.len() * case.len())
    }

    fn differs(
        self: &Arc<Self>,
        expected: &Expected,
        asker: Option<Asker>,
        name: &Name,
        kind: RecordType,
        now: Wall,
    ) -> Vec<(&'static str, String, String)> {
        let verdict = asker.map(|asker| decide(self, asker, name.as_wire(), kind, now));
        let said = verdict.as_ref().map_or(Said::NO_SEGMENT, super::Verdict::said);
        let mut differs = Vec::new();
        if expected.allows != said.allows {
            let word = |allows| if allows { "allow" } else { "deny" };
            let observed = if said.enforced { "" } else { ", not enforced" };
            differs.push(("verdict", word(expected.allows).to_owned(), format!("{}{observed}", word(said.allows))));
        }
        if let Some(reason) = expected.reason.filter(|reason| *reason != said.reason) {
            differs.push(("reason", reason.as_str().to_owned(), said.reason.as_str().to_owned()));
        }
        let rule = said.rule.map(|rule| self.rule(rule));
        // Whoever reads that a verdict differs looks for the rule that gave it.
        let wrong = !differs.is_empty();
        match (&expected.rule, rule) {
            (Some(id), rule) if rule.is_none_or(|rule| *rule.id != **id) => {
                let expected = match self.rules.iter().find(|rule| *rule.id == **id) {
                    Some(rule) => format!("{id}  {}", rule.place),
                    None => format!("{id}  no rule has this id"),
                };
                let said = rule.map_or_else(|| "none".to_owned(), |rule| format!("{}  {}", rule.id, rule.place));
                differs.push(("rule", expected, said));
            }
            (None, Some(rule)) if wrong => {
                differs.push(("rule", String::new(), format!("{}  {}", rule.id, rule.place)));
            }
            _ => {}
        }
        if let Some(ports) = &expected.ports {
            let said = verdict.as_ref().map(super::Verdict::ports).unwrap_or_default();
            if *ports != said {
                differs.push(("ports", listed(ports), listed(&said)));
            }
        }
        if let Some(shown) = expected.shown.filter(|shown| *shown != said.shown) {
            let word = |shown: Option<Shown>| shown.map_or("answer", Shown::as_str).to_owned();
            differs.push(("shown", word(shown), word(said.shown)));
        }
        differs
    }

    /// Who asks; `None`: a client of no segment.
    fn askers(&self, who: &Who) -> Result<Vec<Option<Asker>>, Mistake> {
        match who {
            Who::Client(client, certificate) => Ok(vec![match certificate {
                Some(name) => self.certified(*client, std::slice::from_ref(name)),
                None => self.asker(*client),
            }]),
            Who::Segment(name, place) => match self.place_of(name) {
                Some(segment) => Ok(vec![Some(Asker::of_segment(segment))]),
                None => {
                    let fact = format!("no segment is named \"{name}\"");
                    Err(Mistake::at(place.clone(), fact, "name a segment of the policy"))
                }
            },
            Who::Tags(tags, place) => {
                let has = |segment: &super::Segment| {
                    tags.iter().all(|(key, values)| {
                        segment.tags.iter().any(|(own, value)| own == key && values.contains(value))
                    })
                };
                let places = (0..).map(SegmentIndex).zip(self.segments.iter()).filter(|(_, segment)| has(segment));
                let askers: Vec<_> = places.map(|(place, _)| Some(Asker::of_segment(place))).collect();
                if askers.is_empty() {
                    return Err(Mistake::at(
                        place.clone(),
                        "no segment has these tags",
                        "name tags that a segment has",
                    ));
                }
                Ok(askers)
            }
        }
    }
}

fn listed(ports: &[Services]) -> String {
    if ports.is_empty() {
        return "none".to_owned();
    }
    ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::testing::{NOW, policy};

    const TEXT: &str = r#"
[[segment]]
name    = "shop"
clients = ["192.0.2.0/24"]
tags    = { environment = "production", risk = "high" }
[[segment]]
name    = "till"
clients = ["198.51.100.0/24"]
refusal = "refused"
tags    = { environment = "production", risk = "low" }
[[segment]]
name    = "lab"
clients = ["203.0.113.0/24"]
mode    = "observe"
until   = 2002-01-01T00:00:00Z
[[rule]]
id       = "web"
action   = "allow"
segments = ["*"]
names    = ["**.example.com"]
ports    = ["tcp/80", "tcp/443", "icmp"]
expires  = 2003-01-01T00:00:00Z
[[rule]]
id       = "api"
action   = "allow"
segments = ["shop"]
names    = ["api.example.com"]
types    = ["A", "TXT"]
ports    = ["tcp/81-90"]
[[rule]]
id       = "no"
action   = "deny"
segments = ["shop", "till"]
names    = ["bad.example.com"]
"#;

    /// Each failure as one line.
    fn tried(case: &str) -> Vec<String> {
        let policy = policy(TEXT);
        let mut told = Vec::new();
        for case in read_cases("c.toml", format!("[[case]]\n{}\n", case.replace("; ", "\n"))).unwrap() {
            let tried = policy.try_case(&case, NOW, |tried| {
                let differs = tried.differs.iter().map(|(key, expected, said)| format!("{key} -{expected} +{said}"));
                let differs = differs.collect::<Vec<_>>().join(", ");
                told.push(format!("{} {} {}: {differs}", tried.name, tried.kind, tried.asked_by));
            });
            tried.unwrap_or_else(|mistake| panic!("{mistake}"));
        }
        told
    }

    #[test]
    fn what_is_as_expected_is_silent() {
        for case in [
            r#"client = "192.0.2.7"; name = "www.example.com"; verdict = "allow""#,
            r#"client = "192.0.2.7"; name = "api.example.com"; verdict = "allow"; rule = "api"; reason = "rule"; shown = "answer"; ports = ["tcp/80-90", "icmp", "tcp/443"]"#,
            r#"segment = "shop"; names = ["a.example.com", "b.example.com"]; type = ["A", "AAAA"]; verdict = "allow"; rule = "web""#,
            r#"segment = "shop"; name = "api.example.com"; type = "TXT"; verdict = "allow"; ports = []"#,
            r#"segment = "shop"; name = "api.example.com"; type = "MX"; verdict = "deny"; reason = "type"; shown = "nodata"; rule = "api""#,
            r#"tags = { environment = "production" }; name = "bad.example.com"; verdict = "deny"; rule = "no""#,
            r#"tags = { environment = "production", risk = ["low", "none"] }; name = "x.example.org"; verdict = "deny"; shown = "refused"; reason = "default""#,
            r#"segment = "lab"; name = "x.example.org"; verdict = "deny"; shown = "answer"; ports = []"#,
            r#"segment = "lab"; name = "x.example.org"; at = 2002-01-01T00:00:00Z; verdict = "deny"; shown = "nxdomain""#,
            r#"client = "192.0.2.7"; name = "www.example.com"; at = 2003-01-01T00:00:00Z; verdict = "deny"; reason = "default""#,
            r#"client = "8.8.8.8"; name = "www.example.com"; verdict = "deny"; reason = "no_segment"; shown = "refused""#,
            r#"segment = "shop"; name = "localhost"; verdict = "allow"; reason = "special"; shown = "answer""#,
        ] {
            assert_eq!(tried(case), [""; 0], "{case}");
        }
    }

    #[test]
    fn what_differs_is_told_with_the_rule() {
        assert_eq!(
            tried(
                r#"tags = { environment = "production" }; names = ["bad.example.com", "x.example.com"]; verdict = "allow"; rule = "web""#
            ),
            [
                "bad.example.com A segment shop: verdict -allow +deny, rule -web  test.toml:16:1 +no  test.toml:30:1",
                "bad.example.com A segment till: verdict -allow +deny, rule -web  test.toml:16:1 +no  test.toml:30:1",
            ]
        );
        assert_eq!(
            tried(r#"client = "192.0.2.7"; name = "www.example.com"; verdict = "deny""#),
            ["www.example.com A 192.0.2.7: verdict -deny +allow, rule - +web  test.toml:16:1"]
        );
        assert_eq!(
            tried(
                r#"segment = "till"; name = "api.example.com"; verdict = "allow"; rule = "gone"; ports = ["tcp/443"]; reason = "type"; shown = "nodata""#
            ),
            [
                "api.example.com A segment till: reason -type +rule, rule -gone  no rule has this id +web  test.toml:16:1, \
              ports -tcp/443 +tcp/80 tcp/443 icmp, shown -nodata +answer"
            ]
        );
        assert_eq!(
            tried(r#"segment = "lab"; name = "x.example.org"; verdict = "allow"; rule = "web"; ports = ["any"]"#),
            ["x.example.org A segment lab: verdict -allow +deny, not enforced, reason"
                .replace(", reason", ", rule -web  test.toml:16:1 +none, ports -any +none")]
        );
    }

    #[test]
    fn every_mistake_is_told_where_it_is() {
        let text = r#"
[[case]]
name    = "a..b"
verdict = "perhaps"
[[case]]
client  = "nowhere"
segment = "shop"
verdict = "allow"
[[case]]
client  = "nowhere"
names   = []
type    = ["A", "BOGUS"]
at      = 2003-01-01
reason  = "mood"
ports   = ["sctp/1"]
shown   = "nothing"
verdict = "allow"
expect  = 1
[[case]]
segment = "shop"
name    = "x.example.com"
"#;
        let told: Vec<_> = read_cases("c.toml", text.to_owned()).unwrap_err().iter().map(ToString::to_string).collect();
        let facts: Vec<_> = told.iter().map(|told| told.lines().next().unwrap()).collect();
        assert_eq!(
            facts,
            [
                "c.toml:2:1: the case does not say who asks",
                "c.toml:3:11: \"a..b\" is not a name: it has an empty label",
                "c.toml:4:11: `verdict` cannot be \"perhaps\"",
                "c.toml:5:1: the case asks for no name",
                "c.toml:7:11: the case says twice who asks",
                "c.toml:9:1: the case asks for no name",
                "c.toml:10:11: `client` cannot be \"nowhere\"",
                "c.toml:12:17: \"BOGUS\" is not a record type",
                "c.toml:13:11: `at` is a date-time",
                "c.toml:14:11: `reason` cannot be \"mood\"",
                "c.toml:15:12: `ports` cannot hold \"sctp/1\"",
                "c.toml:16:11: `shown` cannot be \"nothing\"",
                "c.toml:18:1: `expect` is not a key here",
                "c.toml:19:1: the case expects nothing",
            ]
        );
        let policy = policy(TEXT);
        for (who, expected) in [
            (r#"segment = "attic""#, "c.toml:2:11: no segment is named \"attic\"\n  name a segment of the policy"),
            (r#"tags = { risk = "none" }"#, "c.toml:2:8: no segment has these tags\n  name tags that a segment has"),
        ] {
            let text = format!("[[case]]\n{who}\nname = \"a.example\"\nverdict = \"deny\"\n");
            let cases = read_cases("c.toml", text).unwrap();
            let mistake = policy.try_case(&cases[0], NOW, |_| ()).unwrap_err();
            assert_eq!(mistake.to_string(), expected);
        }
    }
}
