//! `unused`: rules, and names in rules, that nobody asked for in the period.

use std::collections::HashMap;
use std::sync::Arc;

use super::sheet::{Cell, Sheet, Table, text};
use super::{Asked, Fate, Period, Report, Went, reach};
use crate::flow::Class;
use crate::name::NameBuf;
use crate::policy::{Action, Allowances, Policy, Rule, RuleIndex};
use crate::time::Wall;

/// When something was used.
#[derive(Clone, Copy, Debug, Default)]
struct Use {
    /// In the period.
    within: u64,
    /// For the last time before it.
    before: Option<Wall>,
}

impl Use {
    fn add(&mut self, at: Wall, within: bool) {
        if within {
            self.within += 1;
        } else {
            self.before = self.before.max(Some(at));
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Unused {
    policy: Arc<Policy>,
    period: Period,
    allowances: Allowances,
    /// By the number of the allowance.
    patterns: Vec<Use>,
    /// By the rule's id.
    rules: HashMap<Arc<str>, Use>,
    /// When a rule came into the policy, as far as records say.
    added: HashMap<Arc<str>, Wall>,
    flows: bool,
    of_other_policies: u64,
}

impl Unused {
    /// Of the rules of this policy.
    #[must_use]
    pub fn new(policy: Arc<Policy>, period: Period) -> Self {
        let allowances = policy.allowances();
        let rules = policy.rules().filter(|rule| rule.action == Action::Allow);
        let rules = rules.map(|rule| (Arc::clone(&rule.id), Use::default())).collect();
        Self {
            patterns: vec![Use::default(); allowances.all().len()],
            policy,
            period,
            allowances,
            rules,
            added: HashMap::new(),
            flows: false,
            of_other_policies: 0,
        }
    }

    fn row(&self, rule: &Rule, what: Cell, used: Use) -> Vec<Cell> {
        vec![
            (&*rule.id).into(),
            what,
            Cell::moment(used.before),
            Cell::moment(self.added.get(&rule.id).copied()),
            rule.owner.as_deref().unwrap_or_default().into(),
            rule.ticket.as_deref().unwrap_or_default().into(),
            Cell::Text(rule.place.to_string()),
        ]
    }
}

impl Report for Unused {
    fn asked(&mut self, query: &Asked<'_>) {
        // What a rule allowed and what then failed was asked for all the same.
        if !matches!(query.fate, Fate::Allowed | Fate::Failed) || query.rule.is_empty() {
            return;
        }
        let within = self.period.has_begun(query.at);
        match self.rules.get_mut(query.rule) {
            Some(used) => used.add(query.at, within),
            None => self.of_other_policies += 1,
        }
        let (Ok(name), Ok(kind)) = (NameBuf::parse(query.qname), query.qtype.parse()) else { return };
        let Some(asker) = self.policy.recorded(query.client, query.certificate) else { return };
        let Self { policy, allowances, patterns, rules, .. } = self;
        allowances.of(policy, asker, &name, kind, |number| {
            patterns.get_mut(number).into_iter().for_each(|used| used.add(query.at, within));
            // A rule that adds to what another allows is in no record.
            let rule = allowances.all().get(number).map(|allowance| policy.rule_id(allowance.rule));
            if let Some(used) = rule.filter(|id| ***id != *query.rule).and_then(|id| rules.get_mut(id)) {
                used.add(query.at, within);
            }
        });
    }

    fn went(&mut self, flow: &Went<'_>) {
        self.flows = true;
        if flow.class == Some(Class::Static)
            && let Some(used) = self.rules.get_mut(flow.rule)
        {
            used.add(flow.at, self.period.has_begun(flow.at));
        }
    }

    fn added(&mut self, at: Wall, rules: &[&str]) {
        for rule in rules {
            if let Some((id, _)) = self.rules.get_key_value(*rule) {
                let last = self.added.entry(Arc::clone(id)).or_insert(at);
                *last = at.max(*last);
            }
        }
    }

    fn finish(self: Box<Self>, span: Option<(Wall, Wall)>, limit: usize) -> Sheet {
        let mut notes = reach(self.period, span);
        let begin = span.map(|(first, _)| self.period.since.map_or(first, |since| since.max(first)));
        let young = self.added.values().filter(|at| begin.is_some_and(|begin| **at > begin)).count();
        if young > 0 {
            notes.push(format!("{young} rules are younger than that time; `added` says when they came"));
        }
        notes.push(
            "where `added` is empty no record says when the rule came: it may be younger than it looks".to_owned(),
        );
        if self.of_other_policies > 0 {
            notes.push(format!(
                "{} queries were allowed by rules that the policy does not have any more, or that were made at run time",
                self.of_other_policies
            ));
        }
        let unused = |rule: &Rule| self.rules.get(&rule.id).copied().filter(|used| used.within == 0);
        let mut counts: HashMap<RuleIndex, u64> = HashMap::new();
        self.allowances.all().iter().for_each(|one| *counts.entry(one.rule).or_default() += 1);
        let counts: HashMap<&str, u64> =
            counts.into_iter().map(|(rule, count)| (&**self.policy.rule_id(rule), count)).collect();
        let mut rules: Vec<Vec<Cell>> = Vec::new();
        let mut static_rules = 0_u64;
        for rule in self.policy.rules().filter(|rule| rule.action == Action::Allow) {
            let Some(used) = unused(rule) else { continue };
            if !rule.networks.is_empty() && !self.flows {
                static_rules += 1;
                continue;
            }
            let names = counts.get(&*rule.id).copied().unwrap_or(0);
            let what = match (names, rule.networks.len()) {
                (0, networks) => format!("{networks} networks"),
                (names, _) => format!("{names} names"),
            };
            rules.push(self.row(rule, Cell::Text(what), used));
        }
        if static_rules > 0 {
            notes.push(format!(
                "{static_rules} rules for networks are not judged: they are used without a query, and the log has no flow records"
            ));
        }
        let mut names: Vec<Vec<Cell>> = Vec::new();
        for (one, used) in self.allowances.all().iter().zip(&self.patterns) {
            let rule = self.policy.rule(one.rule);
            if used.within == 0 && unused(rule).is_none() {
                names.push(self.row(rule, Cell::Text(one.pattern.to_string()), *used));
            }
        }
        let all = (self.rules.len(), self.allowances.all().len());
        let tables = vec![
            table("rules", format!("Rules that nobody used: {} of {}", rules.len(), all.0), rules, limit),
            table(
                "names",
                format!("Names that nobody asked for, in rules in use: {} of {}", names.len(), all.1),
                names,
                limit,
            ),
        ];
        Sheet { report: "unused", notes, tables }
    }
}

fn table(key: &'static str, title: String, mut rows: Vec<Vec<Cell>>, limit: usize) -> Table {
    let unlisted = rows.len().saturating_sub(limit) as u64;
    rows.truncate(limit);
    let columns = vec![
        text("rule", "rule"),
        text("what", if key == "rules" { "has" } else { "name" }),
        text("last", "last used before"),
        text("added", "added"),
        text("owner", "owner"),
        text("ticket", "ticket"),
        text("place", "place"),
    ];
    Table { key, title, columns, rows, other: None, total: None, unlisted, empty: "all were used" }
}
