//! Rules that can never matter: all their names are denied for everybody whom they are for, or others open at least as much.
//!
//! Names are gone through once, those above before those below. A rule that has one name of its own matters, and is not
//! looked at again: so a large policy costs little more than its names.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use smallvec::SmallVec;

use super::index::Index;
use super::pattern::glob_matches;
use super::patterns::{Globs, Spot};
use super::rule::{Action, Cname, Https, Rule};
use super::runtime::Rules;
use super::verdict::RuleIndex;
use crate::document::{Warning, WarningKind};
use crate::net::Prefix;

/// Comparisons of rules after which the rest is taken to matter: some 100 ms.
const WORK: usize = 2_000_000;
/// Of one rule, the different lists of rules that make its names needless; with more it is taken to matter.
const LISTS: usize = 16;

/// Rules each of which makes a name needless.
type Covers = SmallVec<[RuleIndex; 2]>;

/// What lies above a name.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Above {
    /// The `**` patterns there: a place in [`Walk::chains`], from 1.
    chain: u32,
    /// Something is reserved there.
    reserved: bool,
    /// The `*` pattern of the name directly above, and the place of its globs in [`Walk::globs`], from 1.
    one: u32,
    globs: u32,
}

/// A pattern, and what could make it needless.
struct Sight<'a> {
    /// Its number in the index.
    number: u32,
    /// Other patterns that match all that it matches.
    wider: SmallVec<[u32; 8]>,
    /// Wildcards that allow do not match it.
    reserved: bool,
    index: &'a Index,
}

struct Walk<'a> {
    index: &'a Index,
    rules: &'a Rules,
    /// Each the chain above it, and a pattern.
    chains: Vec<(u32, u32)>,
    globs: Vec<&'a Globs>,
    /// By place; what is as at the root is left out.
    above: HashMap<u32, Above, RandomState>,
    /// Of each rule: it matters.
    matters: Vec<bool>,
    /// Of each pattern: all its rules matter.
    settled: Vec<bool>,
    found: HashMap<RuleIndex, Vec<Covers>, RandomState>,
    work: usize,
}

/// What to say of rules that never matter.
pub(super) fn warnings(index: &Index, rules: &Rules) -> Vec<Warning> {
    // Denies stay: which of two names a record is of use.
    let matters = rules.iter().map(|rule| rule.action == Action::Deny || !rule.networks.is_empty()).collect();
    let mut walk = Walk {
        index,
        rules,
        chains: Vec::new(),
        globs: Vec::new(),
        above: HashMap::default(),
        matters,
        settled: vec![false; index.numbers()],
        found: HashMap::default(),
        work: WORK,
    };
    for spot in index.spots() {
        walk.visit(&spot);
    }
    walk.finish()
}

impl<'a> Walk<'a> {
    fn visit(&mut self, spot: &Spot<'a>) {
        let root = spot.place == spot.above;
        let above = if root { Above::default() } else { self.above.get(&spot.above).copied().unwrap_or_default() };
        let reserved = above.reserved || spot.reserved;
        let mut chain = above.chain;
        if spot.many > 0 {
            self.chains.push((chain, spot.many));
            chain = u32::try_from(self.chains.len()).unwrap_or(0);
        }
        let globs = if spot.globs.is_empty() { 0 } else { self.keep(spot.globs) };
        let own = Above { chain, reserved, one: spot.one, globs };
        if own != Above::default() {
            self.above.insert(spot.place, own);
        }
        if spot.exact > 0 && !self.is_settled(spot.exact) {
            let mut wider = self.chain(above.chain);
            wider.extend([above.one].into_iter().filter(|number| *number > 0));
            let globs = (above.globs as usize).checked_sub(1).and_then(|at| self.globs.get(at));
            let matching = globs.into_iter().flat_map(|globs| globs.iter());
            wider.extend(matching.filter(|(glob, _)| glob_matches(glob, spot.label)).map(|(_, number)| *number));
            let reserved = reserved || matches!(spot.label, b"wpad" | b"isatap");
            self.judge(&Sight { number: spot.exact, wider, reserved, index: self.index });
        }
        if spot.many > 0 && !self.is_settled(spot.many) {
            let wider = self.chain(above.chain);
            self.judge(&Sight { number: spot.many, wider, reserved: false, index: self.index });
        }
        if spot.one > 0 && !self.is_settled(spot.one) {
            let wider = self.chain(chain);
            self.judge(&Sight { number: spot.one, wider, reserved: false, index: self.index });
        }
        for (_, number) in spot.globs.iter().filter(|(_, number)| *number > 0) {
            if !self.is_settled(*number) {
                let mut wider = self.chain(chain);
                wider.extend([spot.one].into_iter().filter(|number| *number > 0));
                self.judge(&Sight { number: *number, wider, reserved: false, index: self.index });
            }
        }
    }

    fn keep(&mut self, globs: &'a Globs) -> u32 {
        self.globs.push(globs);
        u32::try_from(self.globs.len()).unwrap_or(0)
    }

    /// The patterns of a chain.
    fn chain(&self, chain: u32) -> SmallVec<[u32; 8]> {
        let link = |chain: u32| (chain as usize).checked_sub(1).and_then(|at| self.chains.get(at));
        std::iter::successors(link(chain), |(above, _)| link(*above)).map(|(_, number)| *number).collect()
    }

    fn is_settled(&self, number: u32) -> bool {
        self.settled.get(number as usize).copied().unwrap_or(true)
    }

    fn matters(&self, rule: RuleIndex) -> bool {
        self.matters.get(rule.0 as usize).copied().unwrap_or(true)
    }

    /// Looks at every rule that names a pattern.
    fn judge(&mut self, sight: &Sight<'a>) {
        let mut last = None;
        let mut settled = true;
        for rule in sight.index.rules(sight.number, self.rules, None) {
            if self.matters(rule) || last == Some(rule) {
                continue;
            }
            last = Some(rule);
            let covers = if self.work == 0 { Covers::new() } else { self.covers(sight, rule) };
            let lists = self.found.entry(rule).or_default();
            if covers.is_empty() || (lists.len() == LISTS && !lists.contains(&covers)) {
                self.found.remove(&rule);
                if let Some(matters) = self.matters.get_mut(rule.0 as usize) {
                    *matters = true;
                }
                continue;
            }
            settled = false;
            if !lists.contains(&covers) {
                lists.push(covers);
            }
        }
        if let Some(known) = self.settled.get_mut(sight.number as usize) {
            *known = settled;
        }
    }

    /// The rules that make this pattern of this rule needless: one that denies, or all that open as much.
    fn covers(&mut self, sight: &Sight<'_>, needless: RuleIndex) -> Covers {
        let rules = self.rules;
        let (mut covers, rule) = (Covers::new(), rules.of(needless));
        let patterns = std::iter::once((sight.number, false)).chain(sight.wider.iter().map(|number| (*number, true)));
        for (number, wider) in patterns {
            for other in sight.index.rules(number, rules, Some(rule.audience.first())) {
                self.work = self.work.saturating_sub(1);
                let by = rules.of(other);
                if other == needless || covers.contains(&other) || !outlives(by, rule) {
                    continue;
                }
                match by.action {
                    Action::Deny => return Covers::from_slice(&[other]),
                    Action::Allow if wider && sight.reserved => {}
                    Action::Allow if opens_as_much(by, rule) => covers.push(other),
                    Action::Allow => {}
                }
            }
        }
        covers
    }

    /// Of rules that make each other needless the first stays.
    fn finish(self) -> Vec<Warning> {
        let Self { rules, mut found, .. } = self;
        let mut order: Vec<RuleIndex> = found.keys().copied().collect();
        order.sort_by(|a, b| rules.of(*b).place.cmp(&rules.of(*a).place));
        let mut needless = Vec::new();
        let mut warnings = Vec::new();
        for index in order {
            let lists = found.remove(&index).unwrap_or_default();
            let stays = |covers: &Covers| covers.iter().copied().find(|cover| !needless.contains(cover));
            let Some(mut by) = lists.iter().map(stays).collect::<Option<Vec<_>>>() else { continue };
            needless.push(index);
            by.sort_unstable();
            by.dedup();
            warnings.extend(warning(rules, rules.of(index), &by));
        }
        warnings
    }
}

fn warning(rules: &Rules, rule: &Rule, by: &[RuleIndex]) -> Option<Warning> {
    let first = rules.of(*by.first()?);
    let more = match by.len() {
        1 => String::new(),
        count => format!(" and {} more", count - 1),
    };
    let by_all = format!("{} ({}){more}", first.id, first.place);
    let denied = by.iter().all(|index| rules.of(*index).action == Action::Deny);
    let (kind, fact, remedy) = if denied {
        let fact = format!("the rule {} can allow nothing: all its names are denied by {by_all}", rule.id);
        (WarningKind::Denied, fact, "remove it, or narrow what denies")
    } else {
        let fact = format!("the rule {} opens nothing that is not open by {by_all}", rule.id);
        (WarningKind::Redundant, fact, "remove it")
    };
    Some(Warning::at(kind, rule.place.clone(), fact, remedy))
}

/// Whether `by` is heard wherever and whenever `rule` is.
fn outlives(by: &Rule, rule: &Rule) -> bool {
    by.expires.is_none_or(|end| rule.expires.is_some_and(|own| own <= end))
        && by.except.is_empty()
        && by.audience.includes(&rule.audience)
        && (by.clients.is_empty() || (!rule.clients.is_empty() && within(&rule.clients, &by.clients)))
}

/// Whether all that `rule` opens is open by `by`, where both are heard, and a record is as well served by it.
fn opens_as_much(by: &Rule, rule: &Rule) -> bool {
    let same = |own: &Option<Box<str>>, other| own.is_none() || own == other;
    rule.warm.is_empty()
        && rule.types.iter().all(|kind| by.types.contains(kind))
        && (rule.https == Https::NoData || rule.https == by.https)
        && rule.hold <= by.hold
        && rule
            .ports
            .iter()
            .all(|ports| ports.expand().all(|service| by.ports.iter().any(|other| other.contains(service))))
        && matches!((&by.cname, &rule.cname), (Cname::Trust, _) | (Cname::Inspect, Cname::Inspect))
        && (by.within.is_empty() || (!rule.within.is_empty() && within(&rule.within, &by.within)))
        && within(&rule.private, &by.private)
        && same(&rule.owner, &by.owner)
        && same(&rule.reason, &by.reason)
        && same(&rule.ticket, &by.ticket)
}

/// Whether each prefix lies in one of `others`.
fn within(prefixes: &[Prefix], others: &[Prefix]) -> bool {
    prefixes.iter().all(|prefix| others.iter().any(|other| other.contains(prefix)))
}

#[cfg(test)]
mod tests {
    use crate::policy::testing::policy;

    const SEGMENTS: &str = r#"
[[segment]]
name    = "shop"
clients = ["192.0.2.0/24"]
[[segment]]
name    = "till"
clients = ["198.51.100.0/24"]
"#;

    fn rule(id: &str, rest: &str) -> String {
        let action = if rest.starts_with("deny") { "deny" } else { "allow" };
        let segments = if rest.contains("segments") { "" } else { "segments = [\"*\"]\n" };
        let rest = rest.trim_start_matches("deny").replace("; ", "\n");
        format!("[[rule]]\nid = \"{id}\"\naction = \"{action}\"\n{segments}{rest}\n")
    }

    /// The ids of the rules that are warned of, with the word.
    fn told(rules: &[&str]) -> String {
        let ids = ["a", "b", "c", "d"];
        let text: String = rules.iter().zip(ids).map(|(rest, id)| rule(id, rest.trim())).collect();
        let policy = policy(&format!("{SEGMENTS}{text}"));
        let told = policy.warnings().iter().filter(|warning| warning.said.fact.starts_with("the rule"));
        told.map(|warning| {
            let id = warning.said.fact.split(' ').nth(2).unwrap();
            let by = warning.said.fact.split("by ").nth(1).unwrap();
            format!("{id} {} {}", warning.kind.as_str(), by.split(" (").next().unwrap())
        })
        .collect::<Vec<_>>()
        .join(", ")
    }

    #[test]
    fn says_what_never_matters() {
        let wide = r#"names = ["**.example.com"]"#;
        let one = r#"names = ["www.example.com"]"#;
        let with = |rest: &str| format!("{one}; {rest}");
        let wide_with = |rest: &str| format!("{wide}; {rest}");
        let denied = format!("deny {wide}");
        for (first, second, expected, reason) in [
            // Denied.
            (&*denied, one, "b denied a", "wholly inside"),
            (
                &*denied,
                r#"names = ["a.example.com", "*.b.example.com", "c*.example.com", "**.example.com"]"#,
                "b denied a",
                "in every shape",
            ),
            (&*denied, r#"names = ["a.example.com", "example.com"]"#, "", "a name of its own"),
            (r#"deny names = ["*.example.com"]"#, r#"names = ["a.b.example.com"]"#, "", "one label more"),
            (r#"deny names = ["*.example.com"]"#, r#"names = ["ab*.example.com"]"#, "b denied a", "of that shape"),
            (r#"deny names = ["ab*.example.com"]"#, r#"names = ["abc.example.com"]"#, "b denied a", "a shape it has"),
            (r#"deny names = ["ab*.example.com"]"#, r#"names = ["ac.example.com"]"#, "", "another shape"),
            (
                r#"deny names = ["**.example.com"]; except = ["b.example.com"]"#,
                one,
                "",
                "an exception is not looked into",
            ),
            (&*denied, &with(r#"warm = true"#), "b denied a", "denied though warm"),
            (r#"deny segments = ["shop"]; names = ["**.example.com"]"#, one, "", "to others it says something"),
            (&*denied, &with(r#"segments = ["shop"]"#), "b denied a", "to all"),
            (r#"deny names = ["**.example.com"]; clients = ["192.0.2.0/25"]"#, one, "", "denied to some"),
            (
                r#"deny names = ["**.example.com"]; clients = ["192.0.2.0/25"]"#,
                &with(r#"clients = ["192.0.2.7"]"#),
                "b denied a",
                "denied to it",
            ),
            (r#"deny names = ["**.example.com"]; expires = 2030-01-01T00:00:00Z"#, one, "", "the deny ends"),
            (
                r#"deny names = ["**.example.com"]; expires = 2030-01-01T00:00:00Z"#,
                &with("expires = 2029-01-01T00:00:00Z"),
                "b denied a",
                "it ends before",
            ),
            (&*denied, r#"deny names = ["a.example.com"]"#, "", "denies have names in records"),
            // Needless.
            (wide, one, "b redundant a", "narrower"),
            (one, wide, "a redundant b", "whatever the order"),
            (one, one, "b redundant a", "the same twice: the first stays"),
            (one, r#"names = ["www.example.com", "x.example.org"]"#, "a redundant b", "the same and more"),
            (wide, &with(r#"ports = ["tcp/80"]"#), "", "another port"),
            (
                &wide_with(r#"ports = ["tcp/80-90", "tcp/443", "icmp"]"#),
                &with(r#"ports = ["tcp/80", "tcp/443"]"#),
                "b redundant a",
                "fewer ports",
            ),
            (&wide_with(r#"ports = ["any"]"#), one, "b redundant a", "any port"),
            (wide, &with(r#"types = ["A", "TXT"]"#), "", "another type"),
            (wide, &with(r#"types = ["A"]"#), "b redundant a", "fewer types"),
            (wide, &with(r#"hold = "10m""#), "", "held longer"),
            (&wide_with(r#"hold = "20m""#), &with(r#"hold = "10m""#), "b redundant a", "held as long"),
            (wide, &with("warm = true"), "", "kept warm"),
            (wide, &with(r#"within = ["192.0.2.0/24"]"#), "b redundant a", "within less"),
            (&wide_with(r#"within = ["192.0.2.0/24"]"#), one, "", "not only within"),
            (wide, &with(r#"private = ["10.0.0.0/8"]"#), "", "private addresses"),
            (wide, &with(r#"https = "filter""#), "", "HTTPS records"),
            (&wide_with(r#"cname = "inspect""#), one, "", "more chains"),
            (wide, &with(r#"owner = "web""#), "", "another owner"),
            (&wide_with(r#"owner = "web""#), one, "b redundant a", "nobody in particular"),
            (&wide_with(r#"segments = ["shop"]"#), one, "", "for others too"),
            (&wide_with(r#"expires = 2030-01-01T00:00:00Z"#), one, "", "it stays when that ends"),
            (r#"names = ["*.example.com"]"#, r#"names = ["wpad.example.com"]"#, "", "wildcards do not open it"),
            (
                r#"names = ["**.quad9.net"]"#,
                r#"names = ["dns.quad9.net"]; guard = "override""#,
                "",
                "nor of the bypass list",
            ),
        ] {
            assert_eq!(told(&[first, second]), expected, "{reason}: {first} | {second}");
        }
    }

    #[test]
    fn what_several_rules_make_needless_together_is_said_once() {
        let [x, y] = [r#"names = ["x.example.com"]"#, r#"names = ["y.example.com"]"#];
        let both = r#"names = ["x.example.com", "y.example.com"]"#;
        assert_eq!(told(&[x, y, both]), "c redundant a");
        assert_eq!(told(&[both, x, y]), "b redundant a, c redundant a");
        // One name is denied, the other open already.
        assert_eq!(told(&[r#"deny names = ["x.example.com"]"#, y, both]), "c redundant a");
        assert_eq!(told(&[both, both, both]), "b redundant a, c redundant a");
    }
}
