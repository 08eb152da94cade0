//! Response policy zones (draft-vixie-dnsop-dns-rpz): what each name's trigger does, as allows and denies.
//!
//! In such a zone the most specific trigger decides, while in a policy a deny wins over every allow. So a deny excepts the
//! names inside it that pass, and an allow excepts those inside it whose trigger cannot be said here. What is excepted is
//! excepted of a whole rule: a deny that is inside such a name is in another rule, one layer deeper.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use foldhash::fast::RandomState;

use super::names::{Names, Taken};
use super::text::Ids;
use super::{Draft, Entry, Heading, Rule};
use crate::document::{Mistake, Place};
use crate::name::{Name, ancestors, labels};
use crate::policy::{Action, Vetter};
use crate::record::{Record, RecordType};

/// What a name's trigger does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    Pass,
    Refuse,
    /// Something that cannot be said here.
    Other,
}

/// The names that one trigger matches: one name, or all below one. Ordered as they are written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Trigger {
    base: Name,
    below: bool,
}

impl Trigger {
    fn written(&self) -> String {
        match self.below {
            true if self.base.as_wire() == [0] => "**".to_owned(),
            true => format!("**.{}", self.base),
            false => self.base.to_string(),
        }
    }
}

struct Said {
    trigger: Trigger,
    does: Does,
    at: usize,
}

/// Rules that do what the triggers of a zone for names do. `place` says where a record stands.
#[must_use]
pub fn rpz<'r>(
    file: &str,
    records: impl IntoIterator<Item = &'r (usize, Record)>,
    apex: &Name,
    place: &dyn Fn(usize) -> Place,
    heading: &Heading,
) -> Draft {
    let mut reader =
        Reader { apex, place, said: Vec::new(), known: Default::default(), left: Vec::new(), nodata: 0, drops: 0 };
    for (at, record) in records {
        reader.record(*at, record);
    }
    reader.finish(file, heading)
}

struct Reader<'a> {
    apex: &'a Name,
    place: &'a dyn Fn(usize) -> Place,
    /// In the order of the file.
    said: Vec<Said>,
    /// Where each trigger is: whole names, and wildcards.
    known: [HashMap<Name, usize, RandomState>; 2],
    left: Vec<Mistake>,
    nodata: usize,
    drops: usize,
}

impl Reader<'_> {
    fn leave(&mut self, at: usize, fact: impl Into<String>, remedy: &str) {
        self.left.push(Mistake::at((self.place)(at), fact, remedy));
    }

    fn record(&mut self, at: usize, record: &Record) {
        let Some(owner) = below(&record.name, self.apex) else {
            return self.leave(
                at,
                format!("{} is outside the zone {}", record.name, self.apex),
                "name the zone with --origin, or correct it",
            );
        };
        if owner.as_wire() == [0] {
            // The zone's own SOA and NS.
            return;
        }
        if let Some(kind) = owner.labels().last().filter(|label| label.starts_with(b"rpz-")) {
            let kind = String::from_utf8_lossy(kind).into_owned();
            let (fact, remedy) = match kind.as_str() {
                "rpz-ip" => {
                    ("the addresses of answers", "to narrow a rule write `within`; some are never opened anyway")
                }
                "rpz-client-ip" => ("who asks", "make a segment of these clients"),
                "rpz-nsdname" | "rpz-nsip" => ("a name's servers", "nothing here looks at them"),
                _ => ("something unknown", "remove it"),
            };
            return self.leave(at, format!("{owner} is a trigger for {fact}"), remedy);
        }
        let Some(trigger) = trigger(&owner) else {
            return self.leave(at, format!("{owner} has a `*` that is no wildcard"), "write the names that are meant");
        };
        let does = self.act(at, record, &owner, &trigger);
        let [exact, wild] = &mut self.known;
        let known = if trigger.below { wild } else { exact };
        match known.get(&trigger.base).and_then(|known| self.said.get_mut(*known)) {
            Some(first) if first.does == does => {}
            Some(first) => {
                first.does = Does::Other;
                let line = (self.place)(first.at).line;
                let fact = format!("{owner} does something else on line {line}");
                self.leave(at, fact, "keep one of them; neither was carried over");
            }
            None => {
                known.insert(trigger.base.clone(), self.said.len());
                self.said.push(Said { trigger, does, at });
            }
        }
    }

    /// What a record does, by the actions of the draft's section 3.
    fn act(&mut self, at: usize, record: &Record, owner: &Name, trigger: &Trigger) -> Does {
        let target = (record.kind == RecordType::CNAME).then(|| Name::from_wire(&record.data).ok()).flatten();
        let Some(target) = target else {
            let fact = format!("{owner} is answered with {} data of the list's own", record.kind);
            self.leave(at, fact, "put it into a local zone");
            return Does::Other;
        };
        match target.to_string().as_str() {
            "." => Does::Refuse,
            "*" => {
                self.nodata += 1;
                Does::Refuse
            }
            "rpz-passthru" => Does::Pass,
            "rpz-drop" => {
                self.drops += 1;
                Does::Refuse
            }
            "rpz-tcp-only" => {
                self.leave(at, format!("{owner} is answered over TCP alone"), "nothing here does that");
                Does::Other
            }
            // The form that older zones have for passing.
            _ if target == trigger.base && !trigger.below => Does::Pass,
            other => {
                self.leave(at, format!("{owner} is sent to {other}"), "put a CNAME into a local zone");
                Does::Other
            }
        }
    }

    /// The wildcards that hold what a trigger matches, and more; without the one for every name, which no rule has.
    fn holders(&self, said: &Said) -> impl Iterator<Item = &Said> {
        let [_, wild] = &self.known;
        let above = ancestors(said.trigger.base.as_wire()).skip(1).filter(|base| *base != [0]);
        above.filter_map(|base| self.said.get(*wild.get(base)?))
    }

    fn finish(mut self, file: &str, heading: &Heading) -> Draft {
        let vetter = Vetter::default();
        let mut notes = Vec::new();
        let layer = |said: &Said| {
            let through = if said.does == Does::Refuse { Does::Pass } else { Does::Other };
            self.holders(said).filter(|holder| holder.does == through).count()
        };
        let mut rules: BTreeMap<(bool, usize), (Vec<Entry>, BTreeSet<String>)> = BTreeMap::new();
        for said in &self.said {
            for holder in self.holders(said) {
                let allows = match (holder.does, said.does) {
                    (Does::Refuse, Does::Pass) => false,
                    (Does::Pass, Does::Other) => true,
                    _ => continue,
                };
                rules.entry((allows, layer(holder))).or_default().1.insert(said.trigger.written());
            }
        }
        let mut allows = Names::new(&vetter, Action::Allow);
        let mut denies = Names::new(&vetter, Action::Deny);
        let mut everything = false;
        let mut refused = Vec::new();
        for said in self.said.iter().filter(|said| said.does != Does::Other) {
            let Said { trigger, does, at } = said;
            if *does == Does::Refuse && trigger.below && trigger.base.as_wire() == [0] {
                everything = true;
                continue;
            }
            let names = if *does == Does::Pass { &mut allows } else { &mut denies };
            let written = trigger.written();
            match names.take(&written) {
                Taken::New(name) => {
                    let rule = rules.entry((*does == Does::Pass, layer(said))).or_default();
                    rule.0.push(Entry { name, comment: String::new() });
                }
                Taken::Again => {}
                Taken::Refused(why, remedy) => refused.push((*at, format!("\"{written}\" {why}"), remedy)),
            }
        }
        refused.into_iter().for_each(|(at, fact, remedy)| self.leave(at, fact, remedy));
        notes.extend(allows.reaching());
        if everything {
            notes.push("a trigger for every name is not needed: what no rule allows is denied".to_owned());
        }
        for (count, said) in [(self.nodata, "answered without data"), (self.drops, "not answered")] {
            if count > 0 {
                notes.push(format!("{count} names that are {said} there see the `refusal` of their segment here"));
            }
        }
        let mut ids = Ids::default();
        let rules = rules.into_iter().filter(|(_, (names, _))| !names.is_empty());
        let rules = rules.map(|((allows, _), (names, except))| {
            let (action, word) = if allows { (Action::Allow, "allow") } else { (Action::Deny, "deny") };
            let except = except.into_iter().collect();
            Rule { names, except, ..Rule::new(ids.take(&format!("{}-{word}", heading.id)), action, heading) }
        });
        self.left.sort();
        let head = vec![format!("From the response policy zone {} in {file}.", self.apex)];
        Draft { head, rules: rules.collect(), left: self.left, notes, ..Draft::default() }
    }
}

/// `name` without the labels of `apex` behind it.
fn below(name: &Name, apex: &Name) -> Option<Name> {
    let count = name.label_count().checked_sub(apex.label_count()).filter(|_| name.is_within(apex))?;
    let mut wire: Vec<u8> = Vec::with_capacity(name.as_wire().len());
    for label in name.labels().take(count) {
        wire.push(u8::try_from(label.len()).ok()?);
        wire.extend_from_slice(label);
    }
    wire.push(0);
    Name::from_wire(&wire).ok()
}

/// `None` where a `*` stands that is no wildcard: in a policy's text it would be one.
fn trigger(owner: &Name) -> Option<Trigger> {
    let wild = owner.labels().next() == Some(b"*");
    let base = if wild { owner.parent()? } else { owner.clone() };
    let starred = labels(base.as_wire()).any(|label| label.contains(&b'*'));
    (!starred).then_some(Trigger { base, below: wild })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;
    use crate::draft::testing::{checked, decided, heading, left};
    use crate::time::Ttl;

    /// `OWNER TARGET` or `OWNER TYPE`, a line each, as a zone `rpz`.
    fn read<T: AsRef<str>>(lines: &[T]) -> Draft {
        let record = |(at, line): (usize, &T)| {
            let (owner, does) = line.as_ref().split_once(' ').unwrap();
            let (kind, data) = match does.strip_suffix('.') {
                Some("") => (RecordType::CNAME, vec![0]),
                Some(target) => (RecordType::CNAME, Name::parse(target).unwrap().as_wire().to_vec()),
                None => (does.parse().unwrap(), vec![192, 0, 2, 1]),
            };
            let name = if owner == "@" { "rpz.".to_owned() } else { format!("{owner}.rpz.") };
            (at, Record { name: Name::parse(&name).unwrap(), kind, ttl: Ttl::ZERO, data: data.into() })
        };
        let records: Vec<_> = lines.iter().enumerate().map(record).collect();
        let file = Arc::from("x.rpz");
        let place = |at| Place { file: Arc::clone(&file), line: u32::try_from(at).unwrap() + 1, column: 1 };
        let draft = rpz("x.rpz", &records, &Name::parse("rpz").unwrap(), &place, &heading());
        checked(&draft);
        draft
    }

    #[test]
    fn each_action_has_its_meaning() {
        let draft = read(&[
            "@ SOA",
            "* .",
            "bad.example.com .",
            "*.bad.example.com .",
            "nodata.example.com *.",
            "drop.example.com rpz-drop.",
            "good.example.net rpz-passthru.",
            "old.example.net old.example.net.",
            "*.ads.example.com .",
            "fine.ads.example.com rpz-passthru.",
            "*.example.org rpz-passthru.",
            "walled.example.org garden.example.net.",
            "local.example.org A",
            "local.example.org A",
            "tcp.example.org rpz-tcp-only.",
            "evil.example.org .",
        ]);
        let expected = r#"# From the response policy zone rpz in x.rpz.

[[rule]]
id       = "imported-deny"
action   = "deny"
segments = ["office"]
names    = [
    "bad.example.com",
    "**.bad.example.com",
    "nodata.example.com",
    "drop.example.com",
    "**.ads.example.com",
]
except   = [
    "fine.ads.example.com",
]

[[rule]]
id       = "imported-deny-2"
action   = "deny"
segments = ["office"]
names    = [
    "evil.example.org",
]

[[rule]]
id       = "imported-allow"
action   = "allow"
segments = ["office"]
names    = [
    "good.example.net",
    "old.example.net",
    "fine.ads.example.com",
    "**.example.org",
]
except   = [
    "local.example.org",
    "tcp.example.org",
    "walled.example.org",
]
"#;
        assert_eq!(draft.to_string(), expected);
        assert_eq!(
            left(&draft),
            [
                "12: walled.example.org is sent to garden.example.net",
                "13: local.example.org is answered with A data of the list's own",
                "14: local.example.org is answered with A data of the list's own",
                "15: tcp.example.org is answered over TCP alone",
            ]
        );
        assert_eq!(draft.notes.len(), 3);
    }

    #[test]
    fn tells_what_it_leaves_and_widens_nothing() {
        let draft = read(&[
            "32.1.2.0.192.rpz-ip .",
            "32.1.2.0.192.rpz-client-ip rpz-passthru.",
            "ns.example.com.rpz-nsdname .",
            "x.rpz-new .",
            "*.com rpz-passthru.",
            "*.github.io rpz-passthru.",
            "* rpz-passthru.",
            r"a\*b.example.com rpz-passthru.",
            "x.*.example.com rpz-passthru.",
            "two.example.com .",
            "two.example.com rpz-passthru.",
        ]);
        assert!(draft.rules.is_empty(), "{draft}");
        assert_eq!(
            left(&draft),
            [
                "1: 32.1.2.0.192.rpz-ip is a trigger for the addresses of answers",
                "2: 32.1.2.0.192.rpz-client-ip is a trigger for who asks",
                "3: ns.example.com.rpz-nsdname is a trigger for a name's servers",
                "4: x.rpz-new is a trigger for something unknown",
                "5: \"**.com\" would allow a whole top-level domain",
                "6: \"**.github.io\" is on a public suffix: anyone may have a name below github.io",
                "7: \"**\" would match every name",
                "8: a*b.example.com has a `*` that is no wildcard",
                "9: x.*.example.com has a `*` that is no wildcard",
                "11: two.example.com does something else on line 10",
            ]
        );
    }

    fn a_name() -> impl Strategy<Value = String> {
        prop::collection::vec(select(vec!["a", "b"]), 0..4)
            .prop_map(|labels| labels.iter().fold("example.org".to_owned(), |base, label| format!("{label}.{base}")))
    }

    /// The zone's own rule: an exact name, else the wildcard nearest to the name.
    fn by_definition(zone: &[(bool, String, &str)], asked: &Name) -> Option<bool> {
        let nearest = zone.iter().filter_map(|(wild, base, does)| {
            let base = Name::parse(base).unwrap();
            let matches = if *wild { asked.is_within(&base) && *asked != base } else { *asked == base };
            matches.then_some(((!wild, base.label_count()), *does))
        });
        match nearest.max_by_key(|(near, _)| *near)?.1 {
            "rpz-passthru." => Some(true),
            "." => Some(false),
            _ => None,
        }
    }

    /// Names of every kind that rules treat apart.
    const BASES: [&str; 10] = [
        "example.org",
        "a.example.org",
        "com",
        "co.uk",
        "github.io",
        "s3.amazonaws.com",
        "x.local",
        "localhost",
        "dns.google",
        r"a\034b\\c.example.org",
    ];

    proptest! {
        #[test]
        fn whatever_a_zone_says_the_rules_pass_check(
            lines in prop::collection::vec(
                (
                    select(vec!["", "", "*.", "b.", "a*.", "32.1.2.0.192.rpz-ip."]),
                    select(BASES.to_vec()),
                    select(vec![".", "*.", "rpz-passthru.", "rpz-drop.", "rpz-tcp-only.", "garden.example.net.", "A"]),
                ),
                0..20,
            ),
        ) {
            read(&lines.iter().map(|(before, base, does)| format!("{before}{base} {does}")).collect::<Vec<_>>());
        }

        #[test]
        fn rules_decide_as_the_zone_does(
            triggers in prop::collection::btree_map(
                (any::<bool>(), a_name()), select(vec![".", "rpz-passthru.", "rpz-tcp-only."]), 0..10,
            ),
            asked in prop::collection::vec(a_name(), 10),
        ) {
            let zone: Vec<_> = triggers.into_iter().map(|((wild, base), does)| (wild, base, does)).collect();
            let line = |(wild, base, does): &(bool, String, &str)| {
                format!("{}{base} {does}", if *wild { "*." } else { "" })
            };
            let draft = read(&zone.iter().map(line).collect::<Vec<_>>());
            for (asked, decided) in asked.iter().zip(decided(&draft, &asked)) {
                let expected = by_definition(&zone, &Name::parse(asked).unwrap());
                prop_assert_eq!(decided, expected == Some(true), "{}\n{}", asked, draft);
            }
        }
    }
}
