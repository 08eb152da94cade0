//! Segments themselves: what is said of them, whose clients and flows are whose, and what static rules open.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::classes::Classes;
use super::opens::subtract;
use super::{Moved, NetworkChange, SegmentChange};
use crate::document::Place;
use crate::net::{Prefix, PrefixMap, Services};
use crate::policy::index::Audience;
use crate::policy::{GrantScope, Policy, Segment, SegmentIndex, Shown};

/// Segments that came, went, or say something else of themselves.
pub(super) fn changed(classes: &Classes<'_>) -> Vec<SegmentChange> {
    let mut changes = Vec::new();
    for joint in &classes.joints {
        let [before, after] = segments(classes, joint.of);
        let keys = match (before, after) {
            (Some(before), Some(after)) => {
                let both = said(before).into_iter().zip(said(after));
                both.filter(|(before, after)| before != after)
                    .map(|((key, before), (_, after))| (key, before, after))
                    .collect()
            }
            _ => Vec::new(),
        };
        if !keys.is_empty() || before.is_none() || after.is_none() {
            let [before, after] = [before, after].map(|segment| segment.map(|segment| segment.place.clone()));
            changes.push(SegmentChange { segment: Arc::clone(&joint.name), before, after, keys });
        }
    }
    changes
}

fn segments<'a>(classes: &Classes<'a>, of: [Option<SegmentIndex>; 2]) -> [Option<&'a Segment>; 2] {
    let mut found = classes.policies.iter().zip(of).map(|(policy, of)| policy.segments.get(of?.0 as usize));
    [found.next().flatten(), found.next().flatten()]
}

/// What a segment says of itself, key by key.
fn said(segment: &Segment) -> [(&'static str, String); 6] {
    let mode = segment.observe_until.map_or_else(|| "enforce".to_owned(), |until| format!("observe until {until}"));
    let scope = match segment.scope {
        GrantScope::Client => "client",
        GrantScope::Segment => "segment",
    };
    let refusal = match segment.refusal {
        Shown::NxDomain => "nxdomain",
        Shown::NoData => "nodata",
        Shown::Refused => "refused",
    };
    let connects = if segment.clients_connect { "yes" } else { "no" };
    [
        ("mode", mode),
        ("scope", scope.to_owned()),
        ("refusal", refusal.to_owned()),
        ("filter_aaaa", segment.filter_aaaa.to_string()),
        ("clients connect", connects.to_owned()),
        ("tags", segment.tags_json.to_string()),
    ]
}

/// Clients, certificates and flows that are another segment's now, or nobody's.
pub(super) fn moved(classes: &Classes<'_>) -> Vec<Moved> {
    let [old, new] = classes.policies;
    let mut moved = BTreeSet::new();
    let owner = |policy: &Policy, segment: Option<&SegmentIndex>| {
        let segment = policy.segments.get(segment?.0 as usize)?;
        Some((Arc::clone(&segment.name), segment.place.clone()))
    };
    let mut note = |what, subject: String, [before, after]: [Option<(Arc<str>, Place)>; 2]| {
        if before.as_ref().map(|(name, _)| name) != after.as_ref().map(|(name, _)| name) {
            moved.insert(Moved { what, subject, before, after });
        }
    };
    for (what, map) in [
        ("clients", (|policy| &policy.directory.clients) as fn(&Policy) -> &PrefixMap<SegmentIndex>),
        ("sources", |policy| &policy.directory.sources),
    ] {
        for prefix in [old, new].iter().flat_map(|policy| map(policy).prefixes()).collect::<BTreeSet<Prefix>>() {
            let both = [old, new].map(|policy| owner(policy, map(policy).covering(prefix)));
            // Where clients connect themselves, their flows went with them.
            let asked = [old, new].map(|policy| owner(policy, policy.directory.clients.covering(prefix)));
            if what == "clients" || both != asked {
                note(what, prefix.to_string(), both);
            }
        }
    }
    let names = [old, new].iter().flat_map(|policy| policy.directory.certificates.keys()).collect::<BTreeSet<_>>();
    for name in names {
        let found =
            |policy: &Policy| owner(policy, policy.directory.certificates.get(name).map(|(_, segment)| segment));
        note("certificates", name.to_string(), [found(old), found(new)]);
    }
    moved.into_iter().collect()
}

/// What static rules open and did not, or opened and do not.
pub(super) fn networks(classes: &Classes<'_>) -> Vec<NetworkChange> {
    let mut changes: BTreeMap<(bool, Prefix, Vec<Services>), Vec<u32>> = BTreeMap::new();
    let none = Vec::new();
    for class in 0..u32::try_from(classes.len()).unwrap_or(u32::MAX) {
        let [before, after] =
            segments(classes, classes.of(class)).map(|segment| segment.map_or(&none, |s| &s.networks));
        if before == after {
            continue;
        }
        for (opened, these, others) in [(false, before, after), (true, after, before)] {
            let mut beyond: BTreeMap<Prefix, BTreeSet<Services>> = BTreeMap::new();
            for (prefix, services) in these {
                let covering = others.iter().filter(|(other, _)| other.contains(prefix)).map(|(_, services)| *services);
                let left = subtract(*services, covering);
                if !left.is_empty() {
                    beyond.entry(*prefix).or_default().extend(left);
                }
            }
            for (prefix, services) in beyond {
                changes.entry((opened, prefix, services.into_iter().collect())).or_default().push(class);
            }
        }
    }
    let named = |opened: bool, prefix: Prefix, class: u32| {
        let side = usize::from(opened);
        let (policy, segment) = (classes.policies.get(side), classes.of(class).get(side).copied().flatten());
        let rules = policy.into_iter().flat_map(|policy| &policy.rules).filter(|rule| rule.networks.contains(&prefix));
        let concerned = move |audience: &Audience| segment.is_some_and(|segment| audience.contains(segment));
        rules
            .filter(|rule| concerned(&rule.audience))
            .map(|rule| (Arc::clone(&rule.id), rule.place.clone()))
            .collect::<Vec<_>>()
    };
    let mut grouped: BTreeMap<_, Vec<u32>> = BTreeMap::new();
    for ((opened, network, services), found) in changes {
        for class in found {
            let rules = named(opened, network, class);
            grouped.entry((opened, network, services.clone(), rules)).or_default().push(class);
        }
    }
    let change = |((opened, network, services, rules), found): (_, Vec<u32>)| {
        let segments = classes.names(found.into_iter());
        NetworkChange { opened, segments, network, services, rules }
    };
    grouped.into_iter().map(change).collect()
}
