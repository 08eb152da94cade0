//! Who asks, in parts: segments of both policies by name, and of each the clients that rules tell apart. Parts that the
//! same rules concern are of one class; they are decided alike, and one of them is looked at for all.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::opens::Chain;
use crate::net::{Prefix, Services};
use crate::policy::index::Audience;
use crate::policy::{Action, Https, Policy, Rule, RuleIndex, SegmentIndex};
use crate::record::RecordType;
use crate::time::Wall;

/// Classes, sorted.
pub(super) type Set = Rc<[u32]>;

/// A segment in the old policy and in the new one.
pub(super) struct Joint {
    pub(super) name: Arc<str>,
    pub(super) of: [Option<SegmentIndex>; 2],
}

/// A segment, or clients of it.
struct Part {
    joint: u32,
    /// `None`: those that no rule names.
    clients: Option<Prefix>,
    /// One of them.
    client: IpAddr,
}

/// A client that is in no prefix.
const ANYBODY: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// See the module.
pub(super) struct Classes<'a> {
    pub(super) policies: [&'a Policy; 2],
    pub(super) now: Wall,
    /// In order of name.
    pub(super) joints: Vec<Joint>,
    parts: Vec<Part>,
    /// The parts of each class; never empty.
    members: Vec<Vec<u32>>,
    /// What each rule does, as a number that rules which do the same share.
    tokens: [Vec<u32>; 2],
    /// The classes of each audience.
    audiences: RefCell<[HashMap<*const SegmentIndex, Set>; 2]>,
    everybody: [Set; 2],
    /// The classes of each joint's parts.
    classes_of: Vec<Vec<u32>>,
    joint_of: [Vec<u32>; 2],
}

/// What a rule does to the names that it names.
#[derive(PartialEq, Eq, Hash)]
struct Token {
    denies: bool,
    types: BTreeSet<RecordType>,
    ports: BTreeSet<Services>,
    https: &'static str,
    hold: Option<Duration>,
    chain: Chain,
    within: BTreeSet<Prefix>,
    private: BTreeSet<Prefix>,
    except: BTreeSet<String>,
    expires: Option<Wall>,
    clients: BTreeSet<Prefix>,
    networks: BTreeSet<Prefix>,
}

impl Token {
    fn of(rule: &Rule) -> Self {
        Self {
            denies: rule.action == Action::Deny,
            types: rule.types.iter().copied().collect(),
            ports: rule.ports.iter().copied().collect(),
            https: Https::as_str(rule.https),
            hold: rule.hold,
            chain: Chain::of(&rule.cname),
            within: rule.within.iter().copied().collect(),
            private: rule.private.iter().copied().collect(),
            except: rule.except.written(),
            expires: rule.expires,
            clients: rule.clients.iter().copied().collect(),
            networks: rule.networks.iter().copied().collect(),
        }
    }
}

impl<'a> Classes<'a> {
    pub(super) fn new(policies: [&'a Policy; 2], now: Wall) -> Self {
        let mut of: BTreeMap<&Arc<str>, [Option<SegmentIndex>; 2]> = BTreeMap::new();
        for (side, policy) in policies.iter().enumerate() {
            for (index, segment) in (0..).zip(policy.filed.iter()) {
                if let Some(place) = of.entry(&segment.name).or_default().get_mut(side) {
                    *place = Some(SegmentIndex(index));
                }
            }
        }
        let joints: Vec<_> = of.into_iter().map(|(name, of)| Joint { name: Arc::clone(name), of }).collect();
        let joint_of = [0, 1].map(|side| {
            // Both are in order of name.
            let present = (0..).zip(&joints).filter(|(_, joint)| joint.of.get(side).copied().flatten().is_some());
            present.map(|(at, _)| at).collect::<Vec<u32>>()
        });
        let parts = parts(policies, &joints, &joint_of);
        let members = members(policies, &joints, &joint_of, &parts);
        let mut classes_of = vec![Vec::new(); joints.len()];
        let mut everybody: [Vec<u32>; 2] = Default::default();
        for (class, members) in (0..).zip(&members) {
            for part in members.iter().filter_map(|part| parts.get(*part as usize)) {
                if let Some(classes) = classes_of.get_mut(part.joint as usize) {
                    classes.push(class);
                }
            }
            let first = members.first().and_then(|part| parts.get(*part as usize));
            let joint = first.and_then(|part| joints.get(part.joint as usize));
            for (everybody, of) in everybody.iter_mut().zip(joint.map_or([None; 2], |joint| joint.of)) {
                everybody.extend(of.map(|_| class));
            }
        }
        let everybody = everybody.map(Set::from);
        let mut known = HashMap::new();
        let tokens = policies.map(|policy| {
            let mut token = |rule| {
                let next = u32::try_from(known.len()).unwrap_or(u32::MAX);
                *known.entry(Token::of(rule)).or_insert(next)
            };
            policy.rules.filed().iter().map(&mut token).collect()
        });
        let audiences = RefCell::default();
        Self { policies, now, joints, parts, members, tokens, audiences, everybody, classes_of, joint_of }
    }

    /// The segment that stands for a class, in both policies.
    pub(super) fn of(&self, class: u32) -> [Option<SegmentIndex>; 2] {
        let joint = self.first(class).and_then(|part| self.joints.get(part.joint as usize));
        joint.map_or([None; 2], |joint| joint.of)
    }

    /// The client that stands for a class.
    pub(super) fn client(&self, class: u32) -> IpAddr {
        self.first(class).map_or(ANYBODY, |part| part.client)
    }

    fn first(&self, class: u32) -> Option<&Part> {
        self.members.get(class as usize).and_then(|members| self.parts.get(*members.first()? as usize))
    }

    /// How many there are.
    pub(super) const fn len(&self) -> usize {
        self.members.len()
    }

    /// The segments of some classes by name, sorted; of single clients with their prefix. With `whole` without those.
    pub(super) fn names(&self, classes: impl Iterator<Item = u32>, whole: bool) -> Vec<Arc<str>> {
        let members = classes.filter_map(|class| self.members.get(class as usize)).flatten();
        let parts = members.filter_map(|part| self.parts.get(*part as usize));
        let mut parts: Vec<_> = parts.map(|part| (part.joint, part.clients)).collect();
        parts.retain(|(_, clients)| !whole || clients.is_none());
        parts.sort_unstable();
        let named = parts.into_iter().filter_map(|(joint, clients)| {
            let name = &self.joints.get(joint as usize)?.name;
            Some(clients.map_or_else(|| Arc::clone(name), |clients| Arc::from(format!("{name} ({clients})"))))
        });
        named.collect()
    }

    /// What a rule of one policy does.
    pub(super) fn token(&self, side: usize, rule: RuleIndex) -> u32 {
        self.tokens.get(side).and_then(|tokens| tokens.get(rule.0 as usize)).copied().unwrap_or(u32::MAX)
    }

    /// Whether rules of the old policy do together what rules of the new one do.
    pub(super) fn alike(&self, old: &[RuleIndex], new: &[RuleIndex]) -> bool {
        let tokens =
            |side, rules: &[RuleIndex]| -> HashSet<u32> { rules.iter().map(|rule| self.token(side, *rule)).collect() };
        tokens(0, old) == tokens(1, new)
    }

    /// The classes that a rule of one policy concerns; none where it has ended.
    pub(super) fn concerned(&self, side: usize, rule: RuleIndex) -> Set {
        let Some(rule) = self.policies.get(side).map(|policy| policy.rule(rule)).filter(|rule| rule.lives(self.now))
        else {
            return Set::default();
        };
        let all = match &rule.audience {
            Audience::All => self.everybody.get(side).map(Rc::clone).unwrap_or_default(),
            Audience::Listed(listed) => {
                let mut audiences = self.audiences.borrow_mut();
                let Some(known) = audiences.get_mut(side) else { return Set::default() };
                let classes = || {
                    let joints = listed.iter().filter_map(|segment| {
                        self.joint_of.get(side).and_then(|joints| joints.get(segment.0 as usize)).copied()
                    });
                    let classes = joints.filter_map(|joint| self.classes_of.get(joint as usize)).flatten().copied();
                    classes.collect::<BTreeSet<u32>>().into_iter().collect()
                };
                Rc::clone(known.entry(listed.as_ptr()).or_insert_with(classes))
            }
        };
        let heard = |class: &u32| rule.clients.iter().any(|prefix| prefix.contains(&self.client(*class)));
        if rule.clients.is_empty() { all } else { all.iter().copied().filter(heard).collect() }
    }
}

/// Every segment, and of each the clients that rules for it name.
fn parts(policies: [&Policy; 2], joints: &[Joint], joint_of: &[Vec<u32>; 2]) -> Vec<Part> {
    let mut named: BTreeMap<u32, BTreeSet<Prefix>> = BTreeMap::new();
    for (policy, joint_of) in policies.iter().zip(joint_of) {
        for rule in policy.rules.filed().iter().filter(|rule| !rule.clients.is_empty()) {
            let concerned = |(index, _): &(u32, &u32)| rule.audience.contains(SegmentIndex(*index));
            for (_, joint) in (0..).zip(joint_of).filter(concerned) {
                named.entry(*joint).or_default().extend(&rule.clients);
            }
        }
    }
    let mut parts = Vec::new();
    for joint in (0..).take(joints.len()) {
        parts.push(Part { joint, clients: None, client: ANYBODY });
        let prefixes: Vec<Prefix> = named.remove(&joint).into_iter().flatten().collect();
        for prefix in &prefixes {
            let inner: Vec<&Prefix> =
                prefixes.iter().filter(|other| *other != prefix && prefix.contains(*other)).collect();
            // Of what longer prefixes leave: the first address, or one behind a longer one.
            let behind = inner.iter().filter_map(|inner| behind(inner));
            let mut candidates = [prefix.addr()].into_iter().chain(behind).filter(|address| prefix.contains(address));
            if let Some(client) = candidates.find(|address| !inner.iter().any(|inner| inner.contains(address))) {
                parts.push(Part { joint, clients: Some(*prefix), client });
            }
        }
    }
    parts
}

/// The address behind the last one of a prefix.
fn behind(prefix: &Prefix) -> Option<IpAddr> {
    match prefix.broadcast() {
        IpAddr::V4(last) => last.to_bits().checked_add(1).map(|bits| Ipv4Addr::from_bits(bits).into()),
        IpAddr::V6(last) => last.to_bits().checked_add(1).map(|bits| Ipv6Addr::from_bits(bits).into()),
    }
}

/// What tells the parts of one class from others: in which policies they are, what they filter, and which lists of
/// segments and of clients name them.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
struct Signature {
    of: [bool; 2],
    filters: [bool; 2],
    lists: Vec<u32>,
    clients: Vec<u32>,
}

/// The parts of each class.
fn members(policies: [&Policy; 2], joints: &[Joint], joint_of: &[Vec<u32>; 2], parts: &[Part]) -> Vec<Vec<u32>> {
    let mut signatures: Vec<Signature> = Vec::new();
    for joint in joints {
        let mut signature = Signature { of: joint.of.map(|of| of.is_some()), ..Signature::default() };
        for (filters, (policy, of)) in signature.filters.iter_mut().zip(policies.iter().zip(joint.of)) {
            *filters = of.is_some_and(|of| policy.filters_aaaa(of));
        }
        signatures.push(signature);
    }
    let mut list = 0;
    for (policy, joint_of) in policies.iter().zip(joint_of) {
        let mut seen = HashSet::new();
        let audiences = policy.rules.filed().iter().map(|rule| &rule.audience);
        for audience in audiences.chain(policy.reserved.sites.each().map(|(_, audience)| audience)) {
            let Audience::Listed(listed) = audience else { continue };
            // Rules that say the same of their segments share the list.
            if !seen.insert(listed.as_ptr()) {
                continue;
            }
            list += 1;
            for joint in listed.iter().filter_map(|segment| joint_of.get(segment.0 as usize)) {
                if let Some(signature) = signatures.get_mut(*joint as usize) {
                    signature.lists.push(list);
                }
            }
        }
    }
    let clients: BTreeSet<&[Prefix]> = policies
        .iter()
        .flat_map(|policy| policy.rules.filed())
        .map(|rule| &*rule.clients)
        .filter(|list| !list.is_empty())
        .collect();
    let mut known: HashMap<Signature, usize> = HashMap::new();
    let mut members: Vec<Vec<u32>> = Vec::new();
    for (number, part) in (0..).zip(parts) {
        let mut signature = signatures.get(part.joint as usize).cloned().unwrap_or_default();
        let naming = (0..).zip(&clients).filter(|(_, list)| list.iter().any(|prefix| prefix.contains(&part.client)));
        signature.clients = naming.map(|(list, _)| list).collect();
        let class = *known.entry(signature).or_insert_with(|| {
            members.push(Vec::new());
            members.len() - 1
        });
        if let Some(members) = members.get_mut(class) {
            members.push(number);
        }
    }
    members
}
