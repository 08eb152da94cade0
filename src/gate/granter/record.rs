//! The records of grants: what opened, was extended, lowered, revoked, adopted, or failed.

use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

use crate::audit::{AuditError, BackendAck, Event, GrantEvent, GrantOp, RecordId, Shard};
use crate::grant::{Added, Effect, Held, Revoked};
use crate::net::{Element, Services};
use crate::policy::Basis;
use crate::time::{Now, Tick};

/// The granter's shard of the log.
pub(super) struct GrantLog(Shard);

/// Who acknowledged, with the time it took.
pub(super) type Acks = [(Arc<str>, u64)];

impl GrantLog {
    pub(super) const fn new(shard: Shard) -> Self {
        Self(shard)
    }

    /// Writes the records of a batch.
    pub(super) fn commit(&mut self) -> Result<(), AuditError> {
        self.0.commit()
    }

    /// What an offer changed in the firewalls: one record per address, of the services that changed alike.
    pub(super) fn offered(
        &mut self,
        basis: &Basis,
        added: &[Added],
        query: Option<RecordId>,
        failure: Option<&str>,
        backends: &[BackendAck<'_>],
        now: Now,
    ) {
        let step = |added: &Added| match added.effect {
            Effect::Opens(until) => Some((added.element, until, GrantOp::Open)),
            Effect::Extends(until) => Some((added.element, until, GrantOp::Extend)),
            Effect::Joins => None,
        };
        let steps: SmallVec<[(Element, Tick, GrantOp); 4]> = added.iter().filter_map(step).collect();
        for group in steps.chunk_by(|a, b| a.0.from == b.0.from && a.0.to == b.0.to && a.2 == b.2) {
            let Some((element, until, op)) = group.first().copied() else { continue };
            let op = if failure.is_some() { GrantOp::Fail } else { op };
            let event = grant_event(now, op, basis, element, until);
            let services = merge(group);
            self.push(GrantEvent { services: &services, query, why: failure, backends, ..event });
        }
    }

    /// Reasons that were taken away before their end.
    pub(super) fn revoked(&mut self, revoked: &[Revoked], why: &str, acks: &Acks, now: Now) {
        let backends = backends(acks);
        for one in revoked {
            let op = if one.remains.is_some() { GrantOp::Shorten } else { GrantOp::Revoke };
            let event = grant_event(now, op, &one.basis, one.element, one.remains.unwrap_or(now.tick));
            let services = [one.element.service.into()];
            self.push(GrantEvent { services: &services, why: Some(why), backends: &backends, ..event });
        }
    }

    /// An element that was found in force at start and is still right.
    pub(super) fn adopted(&mut self, held: &Held<'_>, now: Now) {
        let Some((until, reason)) = held.in_force.zip(held.reasons().next()) else { return };
        let event = grant_event(now, GrantOp::Adopt, &reason.basis, *held.element, until);
        self.push(GrantEvent { services: &[held.element.service.into()], ..event });
    }

    fn push(&mut self, event: GrantEvent<'_>) {
        let id = self.0.reserve();
        self.0.append(id, &Event::Grant(event));
    }
}

/// The services of elements of one address; most often it is one.
fn merge(group: &[(Element, Tick, GrantOp)]) -> SmallVec<[Services; 1]> {
    match group {
        [(element, ..)] => smallvec![element.service.into()],
        _ => Services::merge(&group.iter().map(|(element, ..)| element.service).collect::<Vec<_>>()).into(),
    }
}

/// As they are recorded.
pub(super) fn backends(acks: &Acks) -> Vec<BackendAck<'_>> {
    acks.iter().map(|(name, acked_us)| BackendAck { name, acked_us: *acked_us }).collect()
}

fn grant_event<'a>(now: Now, op: GrantOp, basis: &'a Basis, element: Element, until: Tick) -> GrantEvent<'a> {
    GrantEvent {
        at: now.wall,
        op,
        client: (!basis.is_warm()).then_some(basis.client),
        element,
        segment: &basis.segment,
        rule: &basis.rule,
        qname: &basis.question.name,
        services: &[],
        until: now.wall_at(until),
        query: None,
        why: None,
        backends: &[],
    }
}
