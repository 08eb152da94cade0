//! Addresses: which rules admit one, for whom it is opened, and what of it.

use std::cmp::Reverse;
use std::net::IpAddr;
use std::time::Duration;

use smallvec::SmallVec;

use super::{Admitted, Held};
use crate::net::{Element, Prefix, Scope, Service};
use crate::policy::asker::Asker;
use crate::policy::decide::{Case, Rules};
use crate::policy::guard::Guarded;
use crate::policy::verdict::{Opening, Permit, Reason, RuleIndex};
use crate::policy::{GrantScope, Policy, Rule};
use crate::record::{AddressTrust, Origin, Record};
use crate::time::Wall;

/// The most addresses of one answer that are told and opened.
pub(in crate::policy) const MAX_ADDRESSES: usize = 16;

/// The end of a rule that has none, for comparisons.
pub(super) const NEVER: Wall = Wall(u64::MAX);

/// What one rule says of one address.
enum Admission {
    Admitted,
    Outside,
    Guarded(Guarded),
}

/// The addresses of one answer that are told, and what is opened for them.
pub(super) struct Told<'a> {
    pub(super) policy: &'a Policy,
    pub(super) case: Case,
    pub(super) origin: &'a Origin,
    asker: Asker,
    addresses: SmallVec<[IpAddr; MAX_ADDRESSES]>,
    pub(super) openings: Vec<Opening>,
    /// When what vouches for the answer's names ends; [`NEVER`]: it does not.
    pub(super) until: Wall,
}

impl<'a> Told<'a> {
    pub(super) fn none(policy: &'a Policy, permit: &Permit, origin: &'a Origin, until: Wall) -> Self {
        let (asker, case) = (permit.asker, permit.asker.case(permit.decided));
        Self { policy, case, origin, asker, addresses: SmallVec::new(), openings: Vec::new(), until }
    }

    pub(super) fn holds(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address)
    }

    pub(super) fn is_full(&self) -> bool {
        self.addresses.len() >= MAX_ADDRESSES
    }

    /// Opens an address for the rules that admit it.
    pub(super) fn add(&mut self, admitting: &[RuleIndex], address: IpAddr) -> Result<(), Held> {
        let from = self.policy.scope(self.asker, address)?;
        let opening = self.policy.opening(admitting, from);
        let Some(rule) = admitting.first().filter(|_| opening.is_empty()) else {
            self.policy.open(&opening, from, address, &mut self.openings);
            self.addresses.push(address);
            return Ok(());
        };
        let why = format!(
            "rule {} is for single clients, and {address} could only be opened for the whole segment",
            self.policy.rule_id(*rule)
        );
        Err(Held::new(Reason::Family, Some(*rule), why))
    }

    /// How far it is, to go back to.
    pub(super) fn mark(&self) -> (usize, usize) {
        (self.addresses.len(), self.openings.len())
    }

    /// Takes back what was added after a mark.
    pub(super) fn back_to(&mut self, (addresses, openings): (usize, usize)) {
        self.addresses.truncate(addresses);
        self.openings.truncate(openings);
    }
}

impl Policy {
    /// An answer of addresses: the records that may be told, and the openings they need.
    pub(super) fn admit_addresses(
        &self,
        rules: &[RuleIndex],
        mut told: Told<'_>,
        records: &[Record],
    ) -> Result<Admitted, Held> {
        let mut kept = Vec::with_capacity(records.len());
        let mut trimmed = None;
        for record in records {
            let Some(address) = record.address() else {
                kept.push(record.clone());
                continue;
            };
            // Every address is judged, also those past the cap: one bad address condemns its RRset.
            let admitting = self.admitting_rules(rules, told.origin, address, told.case.now)?;
            if admitting.is_empty() {
                trimmed = Some(address);
            } else if !told.is_full() && !told.holds(address) {
                told.add(&admitting, address)?;
                kept.push(record.clone());
            }
        }
        if let (Some(address), true) = (trimmed, told.addresses.is_empty()) {
            return Err(self.outside(rules, address));
        }
        Ok(Admitted { records: kept, openings: told.openings, until: told.until, ..Admitted::default() })
    }

    /// Why an address that no rule admits is withheld.
    pub(super) fn outside(&self, rules: &[RuleIndex], address: IpAddr) -> Held {
        let rule = rules.first().copied();
        let who = rule.map_or("", |rule| self.rule_id(rule));
        Held::new(Reason::Address, rule, format!("{address} is not within what rule {who} names"))
    }

    /// The rules that admit this address, perhaps none; `Err` where the guard forbids it to all of them.
    pub(super) fn admitting_rules(
        &self,
        rules: &[RuleIndex],
        origin: &Origin,
        address: IpAddr,
        now: Wall,
    ) -> Result<Rules, Held> {
        if let Some(rule) = self.denies_address(address, now) {
            let why = format!("rule {} denies {address}", self.rule_id(rule));
            return Err(Held::new(Reason::Address, Some(rule), why));
        }
        let mut admitting = Rules::new();
        let mut outside = false;
        let mut forbidden = None;
        for rule in rules {
            match self.admission(self.rule(*rule), origin, address) {
                Admission::Admitted => admitting.push(*rule),
                Admission::Outside => outside = true,
                Admission::Guarded(guarded) => forbidden = forbidden.or(Some(guarded)),
            }
        }
        match forbidden {
            Some(guarded) if admitting.is_empty() && !outside => {
                Err(Held::new(Reason::Address, None, guarded.to_string()))
            }
            _ => Ok(admitting),
        }
    }

    fn admission(&self, rule: &Rule, origin: &Origin, address: IpAddr) -> Admission {
        let holds = |prefixes: &[Prefix], address: IpAddr| prefixes.iter().any(|prefix| prefix.contains(&address));
        let lifted = |address: IpAddr| {
            holds(&rule.private, address)
                || match &origin.trust {
                    AddressTrust::Zone => true,
                    AddressTrust::Upstream(private) => holds(private, address),
                }
        };
        match self.guard.refuses(address, lifted) {
            Some(guarded) => Admission::Guarded(guarded),
            None if rule.within.is_empty() || holds(&rule.within, address) => Admission::Admitted,
            None => Admission::Outside,
        }
    }

    /// For whom `address` is opened when `asker` is told it.
    pub(super) fn scope(&self, asker: Asker, address: IpAddr) -> Result<Scope, Held> {
        let segment = self.segment(asker);
        let own = segment.scope == GrantScope::Client && !asker.is_segment();
        if own && asker.client.is_ipv4() == address.is_ipv4() {
            Ok(Scope::Client(asker.client))
        } else if segment.reaches(address) {
            Ok(Scope::Segment(segment.id))
        } else {
            let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
            let why = format!("segment {} has no {family} source", segment.name);
            Err(Held::new(Reason::Family, None, why))
        }
    }

    /// Those of the rules that open an address for `from`: a rule for single clients opens nothing for a segment.
    pub(super) fn opening(&self, admitting: &[RuleIndex], from: Scope) -> Rules {
        let for_all = |rule: &RuleIndex| matches!(from, Scope::Client(_)) || self.rule(*rule).clients.is_empty();
        admitting.iter().copied().filter(for_all).collect()
    }

    /// Adds what the rules open of one address. `any` stands for every other service.
    fn open(&self, opening: &[RuleIndex], from: Scope, to: IpAddr, openings: &mut Vec<Opening>) {
        let rules = opening.iter().map(|rule| self.rule(*rule));
        let hold: Option<Duration> = rules.clone().filter_map(|rule| rule.hold).max();
        let opened = rules.flat_map(|rule| {
            rule.ports.iter().flat_map(|ports| ports.expand()).map(|service| (service, rule.expires.unwrap_or(NEVER)))
        });
        let mut services: Vec<(Service, Wall)> = opened.collect();
        if services.iter().any(|(service, _)| *service == Service::Any) {
            services.retain(|(service, _)| *service == Service::Any);
        }
        // Of what several rules open the last end counts.
        services.sort_unstable_by_key(|(service, ends)| (*service, Reverse(*ends)));
        services.dedup_by_key(|(service, _)| *service);
        openings.extend(services.into_iter().map(|(service, ends)| Opening {
            element: Element { from, to, service },
            hold,
            ends: Some(ends).filter(|ends| *ends != NEVER),
        }));
    }
}
