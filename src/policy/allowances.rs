//! What allow rules name, one pattern of one rule at a time, and which of them were asked for.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use smallvec::SmallVec;

use super::pattern::glob_matches;
use super::patterns::Mark;
use super::rule::Action;
use super::verdict::RuleIndex;
use super::{Asker, Policy};
use crate::name::{ancestors, labels};
use crate::record::RecordType;

/// Every pattern of every allow rule of a policy, numbered from 0.
#[derive(Debug)]
pub struct Allowances {
    all: Vec<Allowance>,
    by_base: HashMap<Box<[u8]>, SmallVec<[u32; 2]>, RandomState>,
}

/// One pattern of one rule.
#[derive(Clone, Debug)]
pub struct Allowance {
    /// The rule.
    pub rule: RuleIndex,
    /// As it is written.
    pub pattern: Box<str>,
    shape: Shape,
}

/// As [`Mark`].
#[derive(Clone, Debug)]
enum Shape {
    Exact,
    One,
    Many,
    Glob(Box<[u8]>),
}

impl Policy {
    /// What its allow rules name.
    #[must_use]
    pub fn allowances(&self) -> Allowances {
        let mut allowances = Allowances { all: Vec::new(), by_base: HashMap::default() };
        let index = &self.index;
        index.patterns().each(|base, mark, number| {
            for rule in index.posted(number) {
                if self.rule(rule).action != Action::Allow {
                    continue;
                }
                let shape = match mark {
                    Mark::Exact => Shape::Exact,
                    Mark::One => Shape::One,
                    Mark::Many => Shape::Many,
                    Mark::Glob(glob) => Shape::Glob(glob.into()),
                };
                let number = u32::try_from(allowances.all.len()).unwrap_or(u32::MAX);
                allowances.all.push(Allowance { rule, pattern: mark.written(base).into(), shape });
                allowances.by_base.entry(base.into()).or_default().push(number);
            }
        });
        allowances
    }
}

impl Allowances {
    /// Every one; its place is its number.
    #[must_use]
    pub fn all(&self) -> &[Allowance] {
        &self.all
    }

    /// The numbers of those by which this asker may ask for `name` (canonical wire form), whenever its rule counts.
    pub fn of(&self, policy: &Policy, asker: Asker, name: &[u8], kind: RecordType, mut each: impl FnMut(usize)) {
        let rules = policy.matching(asker, name);
        let first = labels(name).next().unwrap_or_default();
        for (above, base) in ancestors(name).enumerate() {
            for number in self.by_base.get(base).into_iter().flatten() {
                let Some(allowance) = self.all.get(*number as usize) else { continue };
                let matches = match &allowance.shape {
                    Shape::Exact => above == 0,
                    Shape::One => above == 1,
                    Shape::Many => above > 0,
                    Shape::Glob(glob) => above == 1 && glob_matches(glob, first),
                };
                if matches && rules.contains(&allowance.rule) && policy.rule(allowance.rule).types.contains(&kind) {
                    each(*number as usize);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{asker, name, policy};

    #[test]
    fn a_name_is_of_every_pattern_that_allows_it() {
        let policy = policy(
            r#"
[[segment]]
name    = "a"
clients = ["192.0.2.0/24"]
[[segment]]
name    = "b"
clients = ["198.51.100.0/24"]
[[rule]]
id       = "one"
action   = "allow"
segments = ["a"]
names    = ["www.example.com", "*.example.com", "unused.example.com"]
except   = ["secret.example.com"]
[[rule]]
id       = "two"
action   = "allow"
segments = ["*"]
names    = ["**.example.com", "w*.example.com"]
types    = ["A", "TXT"]
[[rule]]
id       = "never"
action   = "deny"
segments = ["*"]
names    = ["www.example.com"]
"#,
        );
        let all = policy.allowances();
        let mut written: Vec<_> =
            all.all().iter().map(|one| format!("{} {}", policy.rule_id(one.rule), one.pattern)).collect();
        written.sort();
        assert_eq!(
            written,
            [
                "one *.example.com",
                "one unused.example.com",
                "one www.example.com",
                "two **.example.com",
                "two w*.example.com"
            ]
        );
        let rows = [
            (
                "192.0.2.1",
                "www.example.com",
                "A",
                "one *.example.com one www.example.com two **.example.com two w*.example.com",
            ),
            ("192.0.2.1", "www.example.com", "TXT", "two **.example.com two w*.example.com"),
            ("198.51.100.1", "www.example.com", "A", "two **.example.com two w*.example.com"),
            ("192.0.2.1", "secret.example.com", "A", "two **.example.com"),
            ("192.0.2.1", "a.b.example.com", "A", "two **.example.com"),
            ("192.0.2.1", "example.com", "A", ""),
        ];
        for (client, asked, kind, expected) in rows {
            let mut found = Vec::new();
            all.of(&policy, asker(&policy, client), name(asked).as_wire(), kind.parse().unwrap(), |number| {
                let one = &all.all()[number];
                found.push(format!("{} {}", policy.rule_id(one.rule), one.pattern));
            });
            found.sort();
            assert_eq!(found.join(" "), expected, "{client} {asked} {kind}");
        }
    }
}
