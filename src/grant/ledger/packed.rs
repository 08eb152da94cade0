//! A [`Basis`] in few bytes: a million of them are live at once.
//!
//! What many have in common is kept once; the names are one string of octets.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::quality::RandomState;

use crate::name::{self, Name};
use crate::policy::Basis;
use crate::record::{Origin, Question, RecordType};

/// A basis: 42 bytes, and those of its names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Packed {
    common: Arc<Common>,
    /// The name that was asked, those of the chain and the targets, one behind the other in wire form, so that the root
    /// label ends each.
    names: Box<[u8]>,
    client: IpAddr,
    /// How many of the names, at their end, are targets.
    targets: u8,
}

/// What the bases of one segment's grants under one rule have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Common {
    forwarder: Option<Arc<str>>,
    certificate: Option<Arc<str>>,
    kind: RecordType,
    origin: Origin,
    segment: Arc<str>,
    rule: Arc<str>,
}

impl Common {
    fn is_of(&self, basis: &Basis) -> bool {
        self.kind == basis.question.kind
            && self.rule == basis.rule
            && self.segment == basis.segment
            && self.forwarder == basis.forwarder
            && self.certificate == basis.certificate
            && self.origin == basis.origin
    }
}

impl Packed {
    /// Whether it is of the same question under the same rule, and both of a query or neither: then one is the other renewed. An address that was told
    /// by A and hinted at by HTTPS has two reasons: either may go without the other.
    pub(super) fn is_of(&self, basis: &Basis) -> bool {
        // Names are told apart by their ends: none is the beginning of another.
        self.names.starts_with(basis.question.name.as_wire())
            && self.common.kind == basis.question.kind
            && self.common.rule == basis.rule
            && self.client.is_unspecified() == basis.is_warm()
    }

    /// Whether a policy would decide it as it would `basis`, whose client has the same element.
    pub(super) fn is_decided_as(&self, basis: &Basis) -> bool {
        self.common.is_of(basis)
            && usize::from(self.targets) == basis.targets.len()
            && names(basis).flatten().eq(&*self.names)
    }

    /// As it was.
    pub(super) fn unpack(&self) -> Basis {
        let mut rest = &*self.names;
        let mut names = std::iter::from_fn(|| {
            let (name, tail) = name::split_first(rest)?;
            rest = tail;
            Name::from_wire(name).ok()
        });
        let name = names.next().unwrap_or(Name::root());
        let mut chain: Vec<Name> = names.collect();
        let targets = chain.split_off(chain.len().saturating_sub(self.targets.into()));
        let Common { forwarder, certificate, kind, origin, segment, rule } = &*self.common;
        Basis {
            client: self.client,
            forwarder: forwarder.clone(),
            certificate: certificate.clone(),
            question: Question { name, kind: *kind },
            chain: chain.into(),
            targets: targets.into(),
            origin: origin.clone(),
            segment: Arc::clone(segment),
            rule: Arc::clone(rule),
        }
    }
}

fn names(basis: &Basis) -> impl Iterator<Item = &[u8]> {
    std::iter::once(&basis.question.name).chain(&*basis.chain).chain(&*basis.targets).map(Name::as_wire)
}

/// Packs bases, and knows what those that are live have in common.
#[derive(Debug, Default)]
pub(super) struct Packer {
    commons: HashSet<Arc<Common>, RandomState>,
    /// One offer after the other is of the same rule and segment.
    last: Option<Arc<Common>>,
    /// Those of nobody are swept out when there are twice as many as the last time left.
    sweep_at: usize,
}

/// Never swept below this many.
const SWEEP_FROM: usize = 64;

impl Packer {
    pub(super) fn pack(&mut self, basis: &Basis) -> Packed {
        let common = match &self.last {
            Some(last) if last.is_of(basis) => Arc::clone(last),
            _ => self.common(basis),
        };
        let mut octets = Vec::with_capacity(names(basis).map(<[u8]>::len).sum());
        names(basis).for_each(|name| octets.extend_from_slice(name));
        // An answer has far fewer.
        let targets = u8::try_from(basis.targets.len()).unwrap_or(u8::MAX);
        Packed { common, names: octets.into(), client: basis.client, targets }
    }

    fn common(&mut self, basis: &Basis) -> Arc<Common> {
        let common = Common {
            forwarder: basis.forwarder.clone(),
            certificate: basis.certificate.clone(),
            kind: basis.question.kind,
            origin: basis.origin.clone(),
            segment: Arc::clone(&basis.segment),
            rule: Arc::clone(&basis.rule),
        };
        let known = self.commons.get(&common).cloned().unwrap_or_else(|| {
            if self.commons.len() >= self.sweep_at.max(SWEEP_FROM) {
                self.commons.retain(|common| Arc::strong_count(common) > 1);
                self.sweep_at = 2 * self.commons.len();
            }
            let new = Arc::new(common);
            self.commons.insert(Arc::clone(&new));
            new
        });
        self.last = Some(Arc::clone(&known));
        known
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::record::AddressTrust;

    fn basis(client: IpAddr, names: &[&str], rule: &str) -> Basis {
        let mut names = names.iter().map(|name| Name::parse(name).unwrap());
        Basis {
            client,
            forwarder: None,
            certificate: None,
            question: Question { name: names.next().unwrap(), kind: RecordType::A },
            chain: names.collect(),
            targets: Arc::from([]),
            origin: Origin { name: Arc::from("default"), trust: AddressTrust::Zone },
            segment: Arc::from("shop"),
            rule: Arc::from(rule),
        }
    }

    fn a_basis() -> impl Strategy<Value = Basis> {
        let name = prop::sample::select(vec![".", "a.example.org", "b.example.org", "example.org", "org"]);
        let names = prop::collection::vec(name.clone(), 1..4);
        let targets = prop::collection::vec(name.prop_map(|name| Name::parse(name).unwrap()), 0..3);
        let kind = prop::sample::select(vec![RecordType::A, RecordType::HTTPS]);
        (any::<[u8; 4]>(), names, targets, kind, prop::sample::select(vec!["web", "db"])).prop_map(
            |(client, names, targets, kind, rule)| {
                let basis = basis(client.into(), &names, rule);
                let question = Question { kind, ..basis.question };
                Basis { targets: targets.into(), question, ..basis }
            },
        )
    }

    proptest! {
        #[test]
        fn a_basis_comes_back_and_is_told_apart(one in a_basis(), other in a_basis()) {
            let packed = Packer::default().pack(&one);
            prop_assert_eq!(packed.unpack(), one.clone());
            let same = one.question == other.question && one.rule == other.rule;
            prop_assert_eq!(packed.is_of(&other), same);
            let decided = same && one.chain == other.chain && one.targets == other.targets;
            prop_assert_eq!(packed.is_decided_as(&other), decided);
        }
    }

    #[test]
    fn what_nobody_has_any_more_is_swept_out() {
        let mut packer = Packer::default();
        let client = IpAddr::from([192, 0, 2, 1]);
        let kept = packer.pack(&basis(client, &["a.example.org"], "kept"));
        for number in 0..10 * SWEEP_FROM {
            packer.pack(&basis(client, &["a.example.org"], &format!("rule-{number}")));
        }
        assert!(packer.commons.len() <= 2 * SWEEP_FROM, "{}", packer.commons.len());
        assert!(Arc::ptr_eq(&packer.pack(&kept.unpack()).common, &kept.common));
    }
}
