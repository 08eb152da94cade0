//! Wildcards: where exact names would not do, because machines make new ones.

use std::collections::{BTreeMap, BTreeSet};

use super::evidence::Evidence;
use super::propose::{Line, Member, Segment, joined};
use super::shape::shape;
use super::shown;
use crate::draft::names::{Names, Taken, is_hosting};
use crate::name::{ancestors, labels};
use crate::policy::{Action, Objection, registrable};

/// Distinct labels that a wildcard needs; twice as many where the depth varies as well.
const LABELS: usize = 8;
/// The longest labels of a wildcard's names, on average: longer ones may carry data.
const LONGEST: usize = 32;
/// Days on which a wildcard needs new labels.
const NEW_ON: usize = 3;
/// Names of a wildcard that stand behind it.
const EXAMPLES: usize = 3;

impl<'a> Segment<'a> {
    /// Proposes wildcards where machines make names.
    pub(super) fn wildcards(&mut self, patterns: &mut Names<'_>) {
        if !self.days {
            return;
        }
        // One label of a shape: `img-*.cdn.example.net`.
        let mut groups: BTreeMap<(&[u8], String), Vec<Member<'a>>> = BTreeMap::new();
        for (name, evidence) in self.candidates() {
            if let (Some(label), Some(base)) = (labels(name).next(), ancestors(name).nth(1))
                && let Some(shape) = shape(label)
            {
                groups.entry((base, shape)).or_default().push((name, evidence));
            }
        }
        for ((base, shape), members) in groups {
            // Without a letter that stays, only below a name of that owner.
            let bare = !shape.contains(|c: char| c.is_ascii_alphanumeric()) && registrable(base) == Some(base);
            self.wildcard(&format!("{shape}.{}", shown(base)), base, members, LABELS, bare, patterns);
        }
        // More labels, the second of a shape: `**.pods.example.net`.
        let mut deeper: BTreeMap<&[u8], Vec<Member<'a>>> = BTreeMap::new();
        for (name, evidence) in self.candidates() {
            if let (Some(second), Some(base)) = (labels(name).nth(1), ancestors(name).nth(2))
                && shape(second).is_some()
            {
                deeper.entry(base).or_default().push((name, evidence));
            }
        }
        for (base, members) in deeper {
            let bare = registrable(base).is_none_or(|owner| owner == base || is_hosting(owner));
            self.wildcard(&format!("**.{}", shown(base)), base, members, 2 * LABELS, bare, patterns);
        }
    }

    /// Names that may be among those of a wildcard, in order.
    fn candidates(&self) -> Vec<Member<'a>> {
        let usual = |evidence: &Evidence| {
            let types = evidence.types.iter().all(|kind| kind.is_address() || kind.is_service());
            types && !evidence.denied && !evidence.types.is_empty() && (evidence.found || !evidence.gone)
        };
        let names = self.table.names.iter().map(|(name, evidence)| (&**name, evidence));
        let mut names: Vec<_> =
            names.filter(|(name, evidence)| usual(evidence) && !self.taken.contains(name)).collect();
        names.sort_unstable_by_key(|(name, _)| *name);
        names
    }

    fn wildcard(
        &mut self,
        pattern: &str,
        base: &'a [u8],
        members: Vec<Member<'a>>,
        labels: usize,
        bare: bool,
        patterns: &mut Names<'_>,
    ) {
        let Some((_, first)) = members.first() else { return };
        let mut all = Evidence { queries: 0, ..(*first).clone() };
        members.iter().for_each(|(_, evidence)| all.join(evidence));
        let new_on: BTreeSet<u32> = members.iter().map(|(_, evidence)| evidence.first_day()).collect();
        let late = members.iter().filter(|(_, evidence)| evidence.first_day() > all.first_day()).count();
        let strong =
            members.len() >= labels && all.clients.count() >= 2 && new_on.len() >= NEW_ON && late * 4 >= members.len();
        if !strong {
            return;
        }
        if let Err(Objection::Tenants(_) | Objection::TopLevel) = self.vetter.vet(pattern, Action::Allow) {
            // Names there are proposed one by one.
            *self.tenants.entry(shown(base)).or_default() += members.len();
        }
        if bare || self.is_channel(base, &members) || matches!(patterns.take(pattern), Taken::Refused(..)) {
            return;
        }
        // What of them is before the base and its dot.
        let before = |name: &[u8]| {
            let mut text = shown(name);
            text.truncate(text.len().saturating_sub(shown(base).len() + 1));
            text
        };
        let plain: Vec<String> = members.iter().take(EXAMPLES).map(|(name, _)| before(name)).collect();
        let more = if members.len() > EXAMPLES { " …" } else { "" };
        let line = Line {
            pattern: pattern.to_owned(),
            comment: format!(
                "{} names, new ones on {} days: {}{more}; {all}",
                members.len(),
                new_on.len(),
                plain.join(" ")
            ),
            wild: true,
            queries: all.queries,
            names: members.len(),
            types: BTreeSet::new(),
            https: all.types.iter().any(|kind| kind.is_service()),
            ports: joined(members.iter().map(|(_, evidence)| *evidence)),
        };
        self.put(base, line);
        self.taken.extend(members.iter().map(|(name, _)| *name));
    }

    /// Names that are long, or each asked for once, or more than are kept: what is asked may be what is sent.
    fn is_channel(&self, base: &[u8], members: &[Member<'_>]) -> bool {
        let below = registrable(base).and_then(|owner| self.table.below.get(owner));
        let length: usize = members.iter().filter_map(|(name, _)| labels(name).next()).map(<[u8]>::len).sum();
        let again = members.iter().filter(|(_, one)| one.clients.count() > 1 || one.day_count() > 1).count();
        below.is_some_and(|below| below.past > 0) || length > LONGEST * members.len() || again * 4 < members.len()
    }
}
