//! What a policy is sure to have open at once, against the caps of grants.

use super::index::Index;
use super::inspect::MAX_ADDRESSES;
use super::link::Linker;
use super::rule::{Action, Rule};
use super::runtime::Rules;
use super::segment::Segment;
use super::verdict::SegmentIndex;
use crate::document::{Warning, WarningKind};
use crate::net::Services;

/// How many elements may be open: an element is one address and one port, for one client or segment.
#[derive(Clone, Copy, Debug)]
pub struct Caps {
    /// For one client.
    pub client: usize,
    /// For one segment.
    pub segment: usize,
    /// In all.
    pub all: usize,
}

impl Linker {
    /// Warm names are open whoever asks, each with an address at least.
    pub(super) fn warn_of_warm_demand(&mut self, caps: &Caps, segments: &[Segment], rules: &[Rule]) {
        let mut all = 0;
        let mut of_segment = vec![0; segments.len()];
        for rule in rules.iter().filter(|rule| !rule.warm.is_empty()) {
            let elements = rule.warm.len() * count(&rule.ports);
            let before = all;
            for ((place, segment), open) in (0..).map(SegmentIndex).zip(segments).zip(&mut of_segment) {
                if !rule.audience.contains(place) || segment.sources.is_empty() {
                    continue;
                }
                let less = *open;
                *open += elements;
                all += elements;
                if less <= caps.segment && *open > caps.segment {
                    let fact = format!(
                        "with the rule {} at least {open} elements are kept open for the segment {}, which may have {}",
                        rule.id, segment.name, caps.segment
                    );
                    self.warn_of_cap(rule, fact);
                }
            }
            if before <= caps.all && all > caps.all {
                let fact = format!(
                    "with the rule {} at least {all} elements are kept open, and the node may have {}",
                    rule.id, caps.all
                );
                self.warn_of_cap(rule, fact);
            }
        }
    }

    fn warn_of_cap(&mut self, rule: &Rule, fact: String) {
        let remedy = "keep fewer names warm, or open fewer ports of them";
        self.warnings.push(Warning::at(WarningKind::Caps, rule.place.clone(), fact, remedy));
    }
}

/// Names so many of whose ports are open that one answer takes more than a client may have. A rule alone has too few.
pub(super) fn warnings(caps: &Caps, index: &Index, rules: &Rules) -> Vec<Warning> {
    let mut warnings: Vec<Warning> = Vec::new();
    for number in (1..).take(index.numbers().saturating_sub(1)) {
        let Some(first) = index.rules(number, rules, None).next() else { continue };
        let segment = rules.of(first).audience.first();
        let together = index.rules(number, rules, Some(segment)).map(|index| rules.of(index));
        let together: Vec<&Rule> = together.filter(|rule| rule.action == Action::Allow).collect();
        if together.iter().map(|rule| count(&rule.ports)).sum::<usize>() * MAX_ADDRESSES <= caps.client {
            continue;
        }
        let mut services: Vec<_> =
            together.iter().flat_map(|rule| &rule.ports).flat_map(|ports| ports.expand()).collect();
        services.sort_unstable();
        services.dedup();
        let elements = services.len() * MAX_ADDRESSES;
        let Some(last) = together.iter().max_by_key(|rule| &rule.place).filter(|_| elements > caps.client) else {
            continue;
        };
        let fact = format!(
            "{} rules together open {} ports of a name of the rule {}: an answer of {MAX_ADDRESSES} addresses takes \
             {elements} elements, and a client may have {}",
            together.len(),
            services.len(),
            last.id,
            caps.client
        );
        let warning = Warning::at(WarningKind::Caps, last.place.clone(), fact, "open fewer ports, or \"any\"");
        if !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }
    warnings
}

fn count(ports: &[Services]) -> usize {
    ports.iter().map(|ports| ports.count()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Settings;
    use crate::policy::testing::policy_with;

    fn told(rules: &str) -> Vec<String> {
        let segment = |name, client| format!("[[segment]]\nname = \"{name}\"\nclients = [\"{client}\"]\n");
        let text = format!("{}{}{rules}", segment("a", "192.0.2.0/24"), segment("b", "198.51.100.0/24"));
        let settings = Settings { caps: Some(Caps { client: 4_096, segment: 300, all: 500 }), ..Settings::default() };
        let policy = policy_with(&text, &settings);
        let told = policy.warnings().iter().filter(|warning| warning.kind == WarningKind::Caps);
        told.map(|warning| warning.said.fact.clone()).collect()
    }

    #[test]
    fn warns_of_what_is_sure_not_to_fit() {
        let rule = |id: &str, segment: &str, ports: &str, rest: &str| {
            format!(
                "[[rule]]\nid = \"{id}\"\naction = \"allow\"\nsegments = [\"{segment}\"]\nports = [{ports}]\n\
                 names = [\"{id}.example.com\", \"x.example.com\"]\n{rest}\n"
            )
        };
        let warm = |id, segment, ports| rule(id, segment, ports, "warm = true");
        assert_eq!(told(&warm("one", "a", "\"tcp/1-125\"")), [""; 0]);
        assert_eq!(
            told(&format!("{}{}", warm("one", "a", "\"tcp/1-100\""), warm("two", "*", "\"tcp/1-99\""))),
            [
                "with the rule two at least 398 elements are kept open for the segment a, which may have 300",
                "with the rule two at least 596 elements are kept open, and the node may have 500",
            ]
        );
        let three = |last: &str| {
            let ports = ["\"tcp/1-100\"", "\"tcp/101-200\"", last];
            let rules = ["one", "two", "three"].iter().zip(ports).map(|(id, ports)| rule(id, "*", ports, ""));
            told(&rules.collect::<String>())
        };
        assert_eq!(three("\"tcp/150-256\""), [""; 0]);
        assert_eq!(
            three("\"tcp/201-257\""),
            ["3 rules together open 257 ports of a name of the rule three: an answer of 16 addresses takes 4112 \
              elements, and a client may have 4096"]
        );
    }
}
