//! What the rules that allow a name open, taken apart so that two sets of rules can be compared: whatever is opened by
//! one and covered by the other is no difference, whichever rules say it.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::document::write_duration;
use crate::net::{Prefix, Services};
use crate::policy::rule::Cname;
use crate::policy::{Https, Rule};
use crate::record::RecordType;
use crate::time::Wall;

/// Which CNAME chains a rule accepts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Chain {
    Trust,
    Inspect,
    Pinned(Arc<BTreeSet<String>>),
}

impl Chain {
    pub(super) fn of(cname: &Cname) -> Self {
        match cname {
            Cname::Trust => Self::Trust,
            Cname::Inspect => Self::Inspect,
            Cname::Pinned(pins) => Self::Pinned(Arc::new(pins.written())),
        }
    }

    fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Trust, _) | (Self::Inspect, Self::Inspect) => true,
            (Self::Pinned(pins), Self::Pinned(others)) => others.is_subset(pins),
            _ => false,
        }
    }
}

/// One part of what is opened.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Part {
    terms: Terms,
    what: What,
}

/// For which answers and addresses it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Terms {
    within: Option<Prefix>,
    /// And public addresses, as ever.
    private: Option<Prefix>,
    chain: Chain,
    /// Of hints: these addresses.
    family: Option<RecordType>,
    /// The end of the rule.
    ends: Option<Wall>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum What {
    /// The records are told.
    Told,
    /// They are told whole.
    Whole,
    Services(Services),
    Hold(Duration),
}

impl Terms {
    fn cover(&self, other: &Self) -> bool {
        let within = |prefix: &Option<Prefix>, other: &Option<Prefix>| match (prefix, other) {
            (None, _) => true,
            (Some(prefix), Some(other)) => prefix.contains(other),
            (Some(_), None) => false,
        };
        let lifted = other.private.is_none() || self.private.is_some() && within(&self.private, &other.private);
        within(&self.within, &other.within)
            && lifted
            && self.chain.covers(&other.chain)
            && self.family == other.family
            && self.ends.is_none_or(|end| other.ends.is_some_and(|other| other <= end))
    }
}

/// What rules that allow a type open with its records. Where one of them lets HTTPS records pass, those that do decide
/// alone of the chains that it accepts.
pub(super) fn of_all(rules: &[&Rule], kind: RecordType) -> Vec<Part> {
    let silences = |pass: &Rule, other: &Rule| {
        let lasts = pass.expires.is_none_or(|end| other.expires.is_some_and(|other| other <= end));
        pass.https == Https::Pass && lasts && Chain::of(&pass.cname).covers(&Chain::of(&other.cname))
    };
    let silent = |rule: &&Rule| {
        kind.is_service() && rule.https != Https::Pass && rules.iter().any(|other| silences(other, rule))
    };
    rules.iter().copied().filter(|rule| !silent(rule)).flat_map(|rule| of(rule, kind)).collect()
}

/// What a rule opens with the records of a type that it allows.
fn of(rule: &Rule, kind: RecordType) -> Vec<Part> {
    let chain = Chain::of(&rule.cname);
    let plain = |family| Terms { within: None, private: None, chain: chain.clone(), family, ends: rule.expires };
    let mut parts = vec![Part { terms: plain(None), what: What::Told }];
    if kind.is_service() && rule.https == Https::Pass {
        parts.push(Part { terms: plain(None), what: What::Whole });
    }
    let families = match kind {
        RecordType::A | RecordType::AAAA => vec![None],
        _ if kind.is_service() => rule.types.iter().filter(|kind| kind.is_address()).map(|kind| Some(*kind)).collect(),
        _ => Vec::new(),
    };
    let split = |prefixes: &[Prefix]| Prefix::aggregate(&prefixes.to_vec()).into_iter().map(Some).collect::<Vec<_>>();
    let mut within = split(&rule.within);
    let mut private = split(&rule.private);
    private.push(None);
    if within.is_empty() {
        within.push(None);
    }
    for family in families {
        for within in &within {
            for private in &private {
                // What is lifted concerns the addresses in it alone; the others are a part of their own.
                let within = match (*within, *private) {
                    (within, None) => within,
                    (None, lifted) => lifted,
                    (Some(within), Some(lifted)) if within.contains(&lifted) => Some(lifted),
                    (Some(within), Some(lifted)) if lifted.contains(&within) => Some(within),
                    _ => continue,
                };
                let terms = Terms { within, private: *private, ..plain(family) };
                let hold = rule.hold.map(What::Hold);
                let opened = rule.ports.iter().copied().map(What::Services).chain(hold);
                parts.extend(opened.map(|what| Part { terms: terms.clone(), what }));
            }
        }
    }
    parts
}

/// The parts that `others` does not cover.
pub(super) fn beyond(parts: &[Part], others: &[Part]) -> Vec<Part> {
    let mut left = Vec::new();
    for Part { terms, what } in parts {
        let covering = others.iter().filter(|other| other.terms.cover(terms)).map(|other| other.what);
        let rest = match *what {
            What::Services(services) => {
                let covering = covering.filter_map(|what| match what {
                    What::Services(services) => Some(services),
                    _ => None,
                });
                subtract(services, covering).into_iter().map(What::Services).collect()
            }
            What::Hold(hold) => {
                let mut covering = covering;
                let covered = covering.any(|what| matches!(what, What::Hold(other) if other >= hold));
                if covered { Vec::new() } else { vec![What::Hold(hold)] }
            }
            told => {
                let mut covering = covering;
                if covering.any(|what| what == told) { Vec::new() } else { vec![told] }
            }
        };
        left.extend(rest.into_iter().map(|what| Part { terms: terms.clone(), what }));
    }
    left.sort();
    left.dedup();
    left
}

/// The same without what another part covers.
pub(super) fn plain(mut parts: Vec<Part>) -> Vec<Part> {
    let covers = |part: &Part, other: &Part| beyond(std::slice::from_ref(other), std::slice::from_ref(part)).is_empty();
    parts.sort();
    let mut kept: Vec<Part> = Vec::new();
    for part in parts {
        if !kept.iter().any(|other| covers(other, &part)) {
            kept.retain(|other| !covers(&part, other));
            kept.push(part);
        }
    }
    kept
}

/// What is left of services without others.
pub(super) fn subtract(services: Services, others: impl Iterator<Item = Services>) -> Vec<Services> {
    let mut left = vec![services];
    for other in others {
        left = left.into_iter().flat_map(|services| without(services, other)).collect();
    }
    left
}

fn without(services: Services, other: Services) -> Vec<Services> {
    let range = |(first, last): (u16, u16), (from, to): (u16, u16), make: fn(u16, u16) -> Services| {
        if to < first || from > last {
            return vec![make(first, last)];
        }
        let before = from.checked_sub(1).filter(|end| *end >= first).map(|end| make(first, end));
        let after = to.checked_add(1).filter(|start| *start <= last).map(|start| make(start, last));
        before.into_iter().chain(after).collect()
    };
    match (services, other) {
        (_, Services::Any) | (Services::Icmp, Services::Icmp) => Vec::new(),
        (Services::Tcp(first, last), Services::Tcp(from, to)) => range((first, last), (from, to), Services::Tcp),
        (Services::Udp(first, last), Services::Udp(from, to)) => range((first, last), (from, to), Services::Udp),
        _ => vec![services],
    }
}

/// The parts for people, those of the same terms together.
pub(super) fn written(parts: &[Part]) -> Vec<String> {
    // That the records are told is plain where addresses are opened.
    let plain = parts.iter().any(|part| matches!(part.what, What::Services(_)));
    let parts: Vec<&Part> = parts.iter().filter(|part| !plain || part.what != What::Told).collect();
    let groups = parts.chunk_by(|a, b| a.terms == b.terms);
    let written = |group: &[&Part]| {
        let what: Vec<String> = group.iter().map(|part| part.what.to_string()).collect();
        group.first().map(|part| format!("{}{}", what.join(" "), part.terms))
    };
    groups.filter_map(written).collect()
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Told => f.write_str("the records"),
            Self::Whole => f.write_str("the records unfiltered"),
            Self::Services(services) => services.fmt(f),
            Self::Hold(hold) => write!(f, "held {}", write_duration(*hold)),
        }
    }
}

impl fmt::Display for Terms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(within) = self.within.filter(|_| self.within != self.private) {
            write!(f, " within {within}")?;
        }
        if let Some(private) = self.private {
            write!(f, " also private {private}")?;
        }
        match &self.chain {
            Chain::Trust => {}
            Chain::Inspect => f.write_str(" cname inspect")?,
            Chain::Pinned(pins) => write!(f, " cname {}", pins.iter().cloned().collect::<Vec<_>>().join(" "))?,
        }
        if let Some(family) = self.family {
            write!(f, " {family} hints")?;
        }
        if let Some(ends) = self.ends {
            write!(f, " until {ends}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::testing::policy;

    /// What two rules open beyond each other, for A.
    fn compared(old: &str, new: &str) -> (Vec<String>, Vec<String>) {
        let parts = |text: &str| {
            let rules = text.split('|').enumerate().map(|(at, keys)| {
                format!("[[rule]]\nid = \"r{at}\"\naction = \"allow\"\nsegments = [\"*\"]\nnames = [\"a.example\"]\n{keys}\n")
            });
            let policy = policy(&format!("[[segment]]\nname = \"s\"\n{}", rules.collect::<String>()));
            policy.rules.filed().iter().flat_map(|rule| of(rule, RecordType::A)).collect::<Vec<_>>()
        };
        let (old, new) = (parts(old), parts(new));
        (written(&beyond(&old, &new)), written(&beyond(&new, &old)))
    }

    #[test]
    fn what_is_covered_is_no_difference() {
        let none: &[&str] = &[];
        for (old, new, lost, gained) in [
            ("ports = [\"tcp/80\", \"tcp/443\"]", "ports = [\"tcp/443\"] | ports = [\"tcp/80\"]", none, none),
            ("ports = [\"tcp/80-90\"]", "ports = [\"tcp/80-84\", \"tcp/85-90\"]", none, none),
            ("ports = [\"tcp/80-90\"]", "ports = [\"tcp/85\"]", &["tcp/80-84 tcp/86-90"], none),
            ("ports = [\"tcp/1\", \"icmp\"]", "ports = [\"any\"]", none, &["any"]),
            ("ports = [\"tcp/1\"]", "ports = [\"tcp/1\"]\nhold = \"5m\"", none, &["held 5m"]),
            (
                "ports = [\"tcp/1\", \"tcp/2\"]\nhold = \"5m\"",
                "ports = [\"tcp/1\"] | ports = [\"tcp/2\"]\nhold = \"5m\"",
                none,
                none,
            ),
            ("ports = [\"tcp/1\"]", "ports = [\"tcp/1\"] | ports = [\"tcp/1\"]\nwithin = [\"10.0.0.0/8\"]", none, none),
            (
                "ports = [\"tcp/1\"]\nwithin = [\"198.51.100.0/25\", \"198.51.100.128/25\"]",
                "ports = [\"tcp/1\"]\nwithin = [\"198.51.100.0/24\"]",
                none,
                none,
            ),
            ("ports = [\"tcp/1\"]", "ports = [\"tcp/1\"]\nwithin = [\"198.51.100.0/24\"]", &["tcp/1"], none),
            (
                "ports = [\"tcp/1\"]",
                "ports = [\"tcp/1\"]\nprivate = [\"10.0.0.0/8\"]",
                none,
                &["tcp/1 also private 10.0.0.0/8"],
            ),
            ("ports = [\"tcp/1\"]\ncname = \"inspect\"", "ports = [\"tcp/1\"]", none, &["tcp/1"]),
            (
                "ports = [\"tcp/1\"]\ncname = [\"b.example\"]",
                "ports = [\"tcp/1\"]\ncname = [\"b.example\", \"*.c.example\"]",
                none,
                &["tcp/1 cname *.c.example b.example"],
            ),
        ] {
            let lost: Vec<String> = lost.iter().map(|part| (*part).to_owned()).collect();
            let gained: Vec<String> = gained.iter().map(|part| (*part).to_owned()).collect();
            assert_eq!(compared(old, new), (lost, gained), "{old} → {new}");
        }
    }
}
