//! What a reload changes, in short: by id and by pattern, without deciding a single name. It is in the record of every
//! reload, so it must be cheap: one walk over the patterns of both policies.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use super::classes::Classes;
use super::segments;
use crate::policy::{Policy, RuleIndex};
use crate::time::Wall;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// By name.
    pub segments: Listed,
    /// By id.
    pub rules: Listed,
    /// Names and patterns that no rule named before.
    pub names_added: u64,
    /// Names and patterns that no rule names any more.
    pub names_removed: u64,
}

/// What came, went, and is not what it was; each sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// There only now.
    pub added: Vec<Arc<str>>,
    /// There only before.
    pub removed: Vec<Arc<str>>,
    /// There still, and says something else.
    pub changed: Vec<Arc<str>>,
}

impl Summary {
    /// What `new` says and `old` did not. Empty where at most owners, reasons, tickets, comments and the order of things
    /// differ.
    #[must_use]
    pub fn new(old: &Policy, new: &Policy, now: Wall) -> Self {
        let classes = Classes::new([old, new], now);
        let mut summary = Self { segments: of_segments(&classes), ..Self::default() };
        let mut renamed = Renamed { policies: [old, new], seen: HashSet::new(), ids: BTreeSet::new() };
        let [before, after] = [old, new].map(|policy| policy.index.patterns());
        before.each(|base, mark, number| {
            let now = after.number(base, mark);
            summary.names_removed += u64::from(now == 0);
            renamed.look(number, now);
        });
        after.each(|base, mark, number| {
            if before.number(base, mark) == 0 {
                summary.names_added += 1;
                renamed.look(0, number);
            }
        });
        summary.rules = of_rules(&classes, &renamed.ids);
        summary
    }
}

fn of_segments(classes: &Classes<'_>) -> Listed {
    let mut listed = Listed::default();
    let mut changed = BTreeSet::new();
    for change in segments::changed(classes) {
        match (change.before, change.after) {
            (None, _) => listed.added.push(change.segment),
            (_, None) => listed.removed.push(change.segment),
            _ => drop(changed.insert(change.segment)),
        }
    }
    let moved = segments::moved(classes).into_iter().flat_map(|moved| moved.before.into_iter().chain(moved.after));
    changed.extend(moved.map(|(name, _)| name));
    changed.retain(|name| !listed.added.contains(name) && !listed.removed.contains(name));
    listed.changed = changed.into_iter().collect();
    listed
}

fn of_rules(classes: &Classes<'_>, renamed: &BTreeSet<Arc<str>>) -> Listed {
    let mut both: BTreeMap<&Arc<str>, [Option<RuleIndex>; 2]> = BTreeMap::new();
    for (side, policy) in classes.policies.iter().enumerate() {
        for (number, rule) in (0..).zip(policy.rules.filed()) {
            if let Some(place) = both.entry(&rule.id).or_default().get_mut(side) {
                *place = Some(RuleIndex(number));
            }
        }
    }
    let mut listed = Listed::default();
    for (id, of) in both {
        let [Some(before), Some(after)] = of else {
            let list = if of.first() == Some(&None) { &mut listed.added } else { &mut listed.removed };
            list.push(Arc::clone(id));
            continue;
        };
        // Segments that came or went are told as such.
        let concerned = |side, rule| {
            let all = classes.concerned(side, rule);
            all.iter().copied().filter(|class| classes.of(*class).iter().all(Option::is_some)).collect::<Vec<_>>()
        };
        let same = classes.token(0, before) == classes.token(1, after)
            && concerned(0, before) == concerned(1, after)
            && !renamed.contains(id);
        if !same {
            listed.changed.push(Arc::clone(id));
        }
    }
    listed
}

/// Finds the rules that do not name what they named.
struct Renamed<'a> {
    policies: [&'a Policy; 2],
    seen: HashSet<(u32, u32)>,
    ids: BTreeSet<Arc<str>>,
}

impl Renamed<'_> {
    /// Looks at the rules of one pattern in both policies.
    fn look(&mut self, old: u32, new: u32) {
        if !self.seen.insert((old, new)) {
            return;
        }
        let ids = |policy: &Policy, posting| -> BTreeSet<Arc<str>> {
            policy.index.posted(posting).into_iter().map(|rule| Arc::clone(policy.rule_id(rule))).collect()
        };
        let [before, after] = self.policies;
        let (before, after) = (ids(before, old), ids(after, new));
        self.ids.extend(before.symmetric_difference(&after).cloned());
    }
}
