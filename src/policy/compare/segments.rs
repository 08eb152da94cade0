//! Segments themselves: what is said of them, whose clients and flows are whose, and what static rules open.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::classes::Classes;
use super::opens::subtract;
use super::{Moved, NetworkChange, NetworkWord, SegmentChange};
use crate::document::Place;
use crate::net::{Prefix, PrefixMap, Services};
use crate::policy::{Action, GrantScope, Policy, Rule, Segment, SegmentIndex, Shown};
use crate::time::Wall;

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
    let mut found = classes.policies.iter().zip(of).map(|(policy, of)| policy.filed.get(of?.0 as usize));
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
        let segment = policy.filed.get(segment?.0 as usize)?;
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

/// What static rules open and did not, or opened and do not; and what is denied to everybody.
pub(super) fn networks(classes: &Classes<'_>) -> Vec<NetworkChange> {
    let now = classes.now;
    let mut grouped: BTreeMap<NetworkChange, Vec<u32>> = BTreeMap::new();
    for class in 0..u32::try_from(classes.len()).unwrap_or(u32::MAX) {
        let sides = segments(classes, classes.of(class));
        let [before, after] = sides.map(|segment| {
            let all = segment.map(|segment| segment.networks.as_slice()).unwrap_or_default();
            all.iter().filter(|(.., ends)| ends.is_none_or(|ends| now < ends)).copied().collect::<Vec<Static>>()
        });
        if before == after {
            continue;
        }
        for (side, change, these, others) in
            [(0, NetworkWord::Closed, &before, &after), (1, NetworkWord::Opened, &after, &before)]
        {
            let mut beyond: BTreeMap<(Prefix, Option<Wall>), BTreeSet<Services>> = BTreeMap::new();
            for (prefix, services, ends) in these {
                let lasts = |other: &Option<Wall>| other.is_none_or(|other| ends.is_some_and(|ends| ends <= other));
                let covering = others.iter().filter(|(other, _, ends)| other.contains(prefix) && lasts(ends));
                let left = subtract(*services, covering.map(|(_, services, _)| *services));
                if !left.is_empty() {
                    beyond.entry((*prefix, *ends)).or_default().extend(left);
                }
            }
            for ((network, ends), services) in beyond {
                let segment = classes.of(class).get(side).copied().flatten();
                let rules = named(classes, side, Action::Allow, network, segment);
                let services = services.into_iter().collect();
                let change = NetworkChange { change, segments: Vec::new(), network, services, ends, rules };
                grouped.entry(change).or_default().push(class);
            }
        }
    }
    let mut changes = denied(classes);
    for (change, found) in grouped {
        let segments = classes.names(found.into_iter(), true);
        if !segments.is_empty() {
            changes.push(NetworkChange { segments, ..change });
        }
    }
    changes
}

/// One static opening, and its end.
type Static = (Prefix, Services, Option<Wall>);

/// What is closed to everybody and was not, and the other way round.
fn denied(classes: &Classes<'_>) -> Vec<NetworkChange> {
    let [before, after] = classes.policies.map(|policy| {
        let all = policy.denying(classes.now);
        all.flat_map(|(_, rule)| rule.networks.iter().map(|prefix| (*prefix, rule.expires))).collect::<BTreeSet<_>>()
    });
    let mut changes = Vec::new();
    for (side, change, these, others) in
        [(0, NetworkWord::Freed, &before, &after), (1, NetworkWord::Denied, &after, &before)]
    {
        for (network, ends) in these {
            let lasts = |other: &Option<Wall>| other.is_none_or(|other| ends.is_some_and(|ends| ends <= other));
            if !others.iter().any(|(other, ends)| other.contains(network) && lasts(ends)) {
                let rules = named(classes, side, Action::Deny, *network, None);
                let (segments, services) = (Vec::new(), Vec::new());
                changes.push(NetworkChange { change, segments, network: *network, services, ends: *ends, rules });
            }
        }
    }
    changes
}

/// The rules of one policy that name a network.
fn named(
    classes: &Classes<'_>,
    side: usize,
    action: Action,
    network: Prefix,
    segment: Option<SegmentIndex>,
) -> Vec<(Arc<str>, Place)> {
    let rules = classes.policies.get(side).into_iter().flat_map(|policy| policy.rules.filed());
    let naming = |rule: &&Rule| {
        let concerned = segment.is_none_or(|segment| rule.audience.contains(segment));
        rule.action == action && rule.lives(classes.now) && concerned && rule.networks.contains(&network)
    };
    rules.filter(naming).map(|rule| (Arc::clone(&rule.id), rule.place.clone())).collect()
}
