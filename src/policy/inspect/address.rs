//! Addresses: which rules admit one, for whom it is opened, and what of it.

use std::net::IpAddr;
use std::time::Duration;

use smallvec::SmallVec;

use super::{Admitted, Held};
use crate::net::{Element, Prefix, Scope, Service};
use crate::policy::asker::Asker;
use crate::policy::decide::Rules;
use crate::policy::guard::Guarded;
use crate::policy::verdict::{Opening, Reason, RuleIndex};
use crate::policy::{GrantScope, Policy, Rule};
use crate::record::{AddressTrust, Origin, Record};

/// The most addresses of one answer that are told and opened.
pub(super) const MAX_ADDRESSES: usize = 16;

/// What one rule says of one address.
enum Admission {
    Admitted,
    Outside,
    Guarded(Guarded),
}

/// The addresses of one answer that are told, and what is opened for them.
pub(super) struct Told<'a> {
    pub(super) policy: &'a Policy,
    pub(super) asker: Asker,
    pub(super) origin: &'a Origin,
    addresses: SmallVec<[IpAddr; MAX_ADDRESSES]>,
    pub(super) openings: Vec<Opening>,
}

impl<'a> Told<'a> {
    pub(super) fn none(policy: &'a Policy, asker: Asker, origin: &'a Origin) -> Self {
        Self { policy, asker, origin, addresses: SmallVec::new(), openings: Vec::new() }
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
        self.policy.open(admitting, from, address, &mut self.openings);
        self.addresses.push(address);
        Ok(())
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
        asker: Asker,
        origin: &Origin,
        records: &[Record],
    ) -> Result<Admitted, Held> {
        let mut kept = Vec::with_capacity(records.len());
        let mut told = Told::none(self, asker, origin);
        let mut trimmed = None;
        for record in records {
            let Some(address) = record.address() else {
                kept.push(record.clone());
                continue;
            };
            // Every address is judged, also those past the cap: one bad address condemns its RRset.
            let admitting = self.admitting_rules(rules, origin, address)?;
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
        Ok(Admitted { records: kept, openings: told.openings, ..Admitted::default() })
    }

    /// Why an address that no rule admits is withheld.
    pub(super) fn outside(&self, rules: &[RuleIndex], address: IpAddr) -> Held {
        let rule = rules.first().copied();
        let who = rule.map_or("", |rule| self.rule_id(rule));
        Held::new(Reason::Address, rule, format!("{address} is not within what rule {who} names"))
    }

    /// The rules that admit this address, perhaps none; `Err` where the guard forbids it to all of them.
    pub(super) fn admitting_rules(&self, rules: &[RuleIndex], origin: &Origin, address: IpAddr) -> Result<Rules, Held> {
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

    /// Adds what the rules open of one address. `any` stands for every other service.
    fn open(&self, admitting: &[RuleIndex], from: Scope, to: IpAddr, openings: &mut Vec<Opening>) {
        let rules = admitting.iter().map(|rule| self.rule(*rule));
        let hold: Option<Duration> = rules.clone().filter_map(|rule| rule.hold).max();
        let mut services: Vec<Service> =
            rules.flat_map(|rule| rule.ports.iter()).flat_map(|ports| ports.expand()).collect();
        if services.contains(&Service::Any) {
            services = vec![Service::Any];
        }
        services.sort_unstable();
        services.dedup();
        openings.extend(services.into_iter().map(|service| Opening { element: Element { from, to, service }, hold }));
    }
}
