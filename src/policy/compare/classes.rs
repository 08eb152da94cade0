//! Segments of both policies by name, and classes of them: segments that the same rules concern are decided alike, and
//! one of them is looked at for all.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::opens::Chain;
use crate::net::{Prefix, Services};
use crate::policy::index::Audience;
use crate::policy::{Action, Https, Policy, Rule, RuleIndex, SegmentIndex};
use crate::record::RecordType;

/// Classes, sorted.
pub(super) type Set = Rc<[u32]>;

/// A segment in the old policy and in the new one.
pub(super) struct Joint {
    pub(super) name: Arc<str>,
    pub(super) of: [Option<SegmentIndex>; 2],
}

/// See the module.
pub(super) struct Classes<'a> {
    pub(super) policies: [&'a Policy; 2],
    /// In order of name.
    pub(super) joints: Vec<Joint>,
    /// The joints of each class; never empty.
    members: Vec<Vec<u32>>,
    /// What each rule does, as a number that rules which do the same share.
    tokens: [Vec<u32>; 2],
    /// The classes of each audience.
    audiences: RefCell<[HashMap<*const SegmentIndex, Set>; 2]>,
    everybody: [Set; 2],
    class_of: Vec<u32>,
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
        }
    }
}

impl<'a> Classes<'a> {
    pub(super) fn new(policies: [&'a Policy; 2]) -> Self {
        let mut of: BTreeMap<&Arc<str>, [Option<SegmentIndex>; 2]> = BTreeMap::new();
        for (side, policy) in policies.iter().enumerate() {
            for (index, segment) in (0..).zip(&policy.segments) {
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
        let (class_of, members) = part(policies, &joints, &joint_of);
        let everybody = [0, 1].map(|side| {
            let present = |members: &&Vec<u32>| {
                let joint = members.first().and_then(|joint| joints.get(*joint as usize));
                joint.is_some_and(|joint| joint.of.get(side).copied().flatten().is_some())
            };
            (0..).zip(&members).filter(|(_, members)| present(members)).map(|(class, _)| class).collect()
        });
        let mut known = HashMap::new();
        let tokens = policies.map(|policy| {
            let mut token = |rule| {
                let next = u32::try_from(known.len()).unwrap_or(u32::MAX);
                *known.entry(Token::of(rule)).or_insert(next)
            };
            policy.rules.iter().map(&mut token).collect()
        });
        let audiences = RefCell::default();
        Self { policies, joints, members, tokens, audiences, everybody, class_of, joint_of }
    }

    /// The segment that stands for a class, in both policies.
    pub(super) fn of(&self, class: u32) -> [Option<SegmentIndex>; 2] {
        let joint = self.members.get(class as usize).and_then(|members| members.first());
        joint.and_then(|joint| self.joints.get(*joint as usize)).map_or([None; 2], |joint| joint.of)
    }

    /// How many there are.
    pub(super) const fn len(&self) -> usize {
        self.members.len()
    }

    /// The names of the segments of some classes, sorted.
    pub(super) fn names(&self, classes: impl Iterator<Item = u32>) -> Vec<Arc<str>> {
        let members = classes.filter_map(|class| self.members.get(class as usize)).flatten();
        let mut joints: Vec<u32> = members.copied().collect();
        joints.sort_unstable();
        joints.iter().filter_map(|joint| Some(Arc::clone(&self.joints.get(*joint as usize)?.name))).collect()
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

    /// The classes that a rule of one policy concerns.
    pub(super) fn concerned(&self, side: usize, rule: RuleIndex) -> Set {
        let audience = self.policies.get(side).map(|policy| &policy.rule(rule).audience);
        match audience {
            Some(Audience::All) => self.everybody.get(side).map(Rc::clone).unwrap_or_default(),
            Some(Audience::Listed(listed)) => {
                let mut audiences = self.audiences.borrow_mut();
                let Some(known) = audiences.get_mut(side) else { return Set::default() };
                let classes = || {
                    let joints = listed.iter().filter_map(|segment| {
                        self.joint_of.get(side).and_then(|joints| joints.get(segment.0 as usize)).copied()
                    });
                    let classes = joints.filter_map(|joint| self.class_of.get(joint as usize).copied());
                    classes.collect::<BTreeSet<u32>>().into_iter().collect()
                };
                Rc::clone(known.entry(listed.as_ptr()).or_insert_with(classes))
            }
            None => Set::default(),
        }
    }
}

/// What tells the segments of one class from others: in which policies they are, what they filter, and which lists of
/// segments of rules and of upstreams name them.
#[derive(Default, PartialEq, Eq, Hash)]
struct Signature {
    of: [bool; 2],
    filters: [bool; 2],
    lists: Vec<u32>,
}

/// Classes: the one of each joint, and the joints of each.
fn part(policies: [&Policy; 2], joints: &[Joint], joint_of: &[Vec<u32>; 2]) -> (Vec<u32>, Vec<Vec<u32>>) {
    let mut signatures: Vec<Signature> = Vec::new();
    for joint in joints {
        let filters = |(policy, of): (&&Policy, &Option<SegmentIndex>)| of.is_some_and(|of| policy.filters_aaaa(of));
        let mut both = policies.iter().zip(&joint.of).map(filters);
        let filters = [both.next().unwrap_or_default(), both.next().unwrap_or_default()];
        signatures.push(Signature { of: joint.of.map(|of| of.is_some()), filters, lists: Vec::new() });
    }
    let mut list = 0;
    for (policy, joint_of) in policies.iter().zip(joint_of) {
        let mut seen = HashSet::new();
        let audiences = policy.rules.iter().map(|rule| &rule.audience);
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
    let mut known: HashMap<Signature, u32> = HashMap::new();
    let mut members: Vec<Vec<u32>> = Vec::new();
    let mut class_of = Vec::with_capacity(joints.len());
    for (joint, signature) in (0..).zip(signatures) {
        let class = *known.entry(signature).or_insert_with(|| {
            members.push(Vec::new());
            u32::try_from(members.len() - 1).unwrap_or(u32::MAX)
        });
        class_of.push(class);
        if let Some(members) = members.get_mut(class as usize) {
            members.push(joint);
        }
    }
    (class_of, members)
}
