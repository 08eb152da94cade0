//! [`inspect`]: may these addresses be opened, and what of the answer may be told? [`Policy::upholds`] asks the same
//! of one element that is open already.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use super::decide::{Rules, Ruling};
use super::guard::Guarded;
use super::rule::Cname;
use super::verdict::{Asker, Basis, Cleared, Opening, Permit, Reason, RuleIndex, SegmentIndex, Withheld};
use super::{GrantScope, Policy, Rule};
use crate::name::Name;
use crate::net::{Element, Prefix, Scope, Service, canonical};
use crate::record::{AddressTrust, Answer, Origin, Rcode, Record, RecordType};

/// The longest CNAME chain, counted in names after the question's own. As Unbound had it; public chains stay below.
const MAX_CHAIN: usize = 8;
/// The most addresses of one answer that are told and opened.
const MAX_ADDRESSES: usize = 16;

/// May these addresses be opened, and what of the answer may be told?
#[must_use]
pub fn inspect(permit: Permit, mut answer: Answer) -> Cleared {
    let cnames = answer.records.iter().filter(|record| record.kind == RecordType::CNAME).count();
    let (end, chain) = if cnames > MAX_CHAIN {
        (permit.question.name.clone(), Vec::new())
    } else {
        answer.chain(&permit.question.name)
    };
    let records = keep_chain(std::mem::take(&mut answer.records), &permit, &chain, &end);
    let inspected = if cnames > MAX_CHAIN {
        Err(Held::new(Reason::Cname, None, format!("{cnames} CNAME records are more than {MAX_CHAIN}")))
    } else if permit.observed.is_some() {
        // Enforcing would not have asked: whatever came may be told here, and nothing is opened for it.
        Ok((records.clone(), Vec::new()))
    } else {
        permit.policy.admit_answer(&permit, &chain, &answer.origin, &records)
    };
    let (openings, withheld) = match inspected {
        Ok((kept, openings)) => {
            answer.records = kept;
            (openings, None)
        }
        Err(Held { reason, rule, why }) => {
            if permit.observing {
                answer.records = records;
            } else {
                answer.rcode = Rcode::NOERROR;
                answer.soa = None;
            }
            (Vec::new(), Some(Withheld { reason, rule, why: why.into(), enforced: !permit.observing }))
        }
    };
    let policy = &permit.policy;
    let basis = Basis {
        client: permit.asker.client,
        forwarder: policy.forwarder(permit.asker).cloned(),
        question: permit.question.clone(),
        chain: chain.into(),
        origin: answer.origin.clone(),
        segment: Arc::clone(&permit.segment().name),
        rule: permit.rule().map_or_else(|| Arc::from(""), |rule| Arc::clone(policy.rule_id(rule))),
    };
    Cleared { answer, openings, basis: Arc::new(basis), withheld, permit }
}

/// Why an answer is withheld.
struct Held {
    reason: Reason,
    rule: Option<RuleIndex>,
    why: String,
}

impl Held {
    const fn new(reason: Reason, rule: Option<RuleIndex>, why: String) -> Self {
        Self { reason, rule, why }
    }
}

/// What one rule says of one address.
enum Admission {
    Admitted,
    Outside,
    Guarded(Guarded),
}

/// The CNAMEs from the question's name to `end`, then the records of the asked type there. Anything else is dropped.
fn keep_chain(records: Vec<Record>, permit: &Permit, chain: &[Name], end: &Name) -> Vec<Record> {
    let kind = permit.question.kind;
    let mut kept = Vec::with_capacity(records.len());
    let mut owner = &permit.question.name;
    for next in chain {
        let link = records.iter().find(|record| record.name == *owner && record.target().as_ref() == Some(next));
        kept.extend(link.cloned());
        owner = next;
    }
    let asked = |record: &Record| {
        record.name == *end
            && record.kind == kind
            && kind != RecordType::CNAME
            && (record.address().is_some() || !kind.is_address())
    };
    kept.extend(records.into_iter().filter(asked));
    kept
}

impl Policy {
    /// The records that may be told and the openings they need.
    fn admit_answer(
        &self,
        permit: &Permit,
        chain: &[Name],
        origin: &Origin,
        records: &[Record],
    ) -> Result<(Vec<Record>, Vec<Opening>), Held> {
        let asker = permit.asker;
        let kind = permit.question.kind;
        let rules = self.trusting(asker.segment, &permit.rules, kind, chain)?;
        if !kind.is_address() {
            return Ok((records.to_vec(), Vec::new()));
        }
        let mut kept = Vec::with_capacity(records.len());
        let mut openings: Vec<Opening> = Vec::new();
        let mut told: SmallVec<[IpAddr; MAX_ADDRESSES]> = SmallVec::new();
        let mut trimmed = None;
        for record in records {
            let Some(address) = record.address() else {
                kept.push(record.clone());
                continue;
            };
            // Every address is judged, also those past the cap: one bad address condemns its RRset.
            let admitting = self.admitting_rules(&rules, origin, address)?;
            if admitting.is_empty() {
                trimmed = Some(address);
            } else if told.len() < MAX_ADDRESSES && !told.contains(&address) {
                let from = self.scope(asker, address)?;
                self.open(&admitting, from, address, &mut openings);
                told.push(address);
                kept.push(record.clone());
            }
        }
        if let (Some(address), true) = (trimmed, told.is_empty()) {
            let rule = rules.first().copied();
            let who = rule.map_or("", |rule| self.rule_id(rule));
            return Err(Held::new(Reason::Address, rule, format!("{address} is not within what rule {who} names")));
        }
        Ok((kept, openings))
    }

    /// The rules that accept this CNAME chain.
    fn trusting(
        &self,
        segment: SegmentIndex,
        rules: &[RuleIndex],
        kind: RecordType,
        chain: &[Name],
    ) -> Result<Rules, Held> {
        if chain.len() > MAX_CHAIN {
            let why = format!("a chain of {} names is longer than {MAX_CHAIN}", chain.len());
            return Err(Held::new(Reason::Cname, None, why));
        }
        for name in chain {
            if let Some(rule) = self.denied(segment, name.as_wire()) {
                let why = format!("the answer leads to {name}, which rule {} denies", self.rule_id(rule));
                return Err(Held::new(Reason::Cname, Some(rule), why));
            }
        }
        let distrusted = |rule: RuleIndex| {
            chain.iter().find(|name| match &self.rule(rule).cname {
                Cname::Trust => false,
                Cname::Inspect => !matches!(self.rule_on(segment, name.as_wire(), kind), Ruling::Allowed(_)),
                Cname::Pinned(pins) => !pins.contains(name.as_wire()),
            })
        };
        let trusting: Rules = rules.iter().copied().filter(|rule| distrusted(*rule).is_none()).collect();
        match rules.first().filter(|_| trusting.is_empty()) {
            None => Ok(trusting),
            Some(rule) => {
                let name = distrusted(*rule).map(ToString::to_string).unwrap_or_default();
                let why = format!("the answer leads to {name}, which rule {} does not trust", self.rule_id(*rule));
                Err(Held::new(Reason::Cname, Some(*rule), why))
            }
        }
    }

    /// The rules that admit this address, perhaps none; `Err` where the guard forbids it to all of them.
    fn admitting_rules(&self, rules: &[RuleIndex], origin: &Origin, address: IpAddr) -> Result<Rules, Held> {
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
    fn scope(&self, asker: Asker, address: IpAddr) -> Result<Scope, Held> {
        let segment = self.segment(asker);
        let own = segment.scope == GrantScope::Client && asker.forwarder.is_none();
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

    /// The rule by which this policy would grant `element` on `basis` today; `None`: it would not (I6).
    #[must_use]
    pub fn upholds(&self, basis: &Basis, element: &Element) -> Option<RuleIndex> {
        let segment = self.holder(basis, element)?;
        let question = &basis.question;
        let asked = if element.to.is_ipv4() { RecordType::A } else { RecordType::AAAA };
        if question.kind != asked {
            return None;
        }
        let Ruling::Allowed(rules) = self.rule_on(segment, question.name.as_wire(), question.kind) else {
            return None;
        };
        let rules = self.trusting(segment, &rules, question.kind, &basis.chain).ok()?;
        let admitting = self.admitting_rules(&rules, &basis.origin, element.to).ok()?;
        admitting.into_iter().find(|rule| self.rule(*rule).ports.iter().any(|ports| ports.contains(element.service)))
    }

    /// The segment whose grant `element` would be today. What a segment of scope `segment` was granted is the
    /// segment's: who asked may have left it, others were told the same address meanwhile.
    fn holder(&self, basis: &Basis, element: &Element) -> Option<SegmentIndex> {
        let named = self.segments.binary_search_by(|segment| segment.name.cmp(&basis.segment)).ok();
        if let Some((place, segment)) = named.and_then(|place| Some((place, self.segments.get(place)?)))
            && segment.scope == GrantScope::Segment
            && element.from == Scope::Segment(segment.id)
        {
            return segment.reaches(element.to).then(|| u32::try_from(place).ok().map(SegmentIndex)).flatten();
        }
        let asker = self.asker(canonical(basis.client))?;
        (self.scope(asker, element.to).ok()? == element.from).then_some(asker.segment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::testing::{address, answer, permit, policy, summary, upstream, zone};

    const TEXT: &str = r#"
[[segment]]
name    = "shop"
clients = ["192.0.2.0/24", "2001:db8:1::/48"]
[[segment]]
name    = "four"
clients = ["198.51.100.0/24"]
[[segment]]
name    = "nat"
clients = ["203.0.113.0/24"]
connects_from = ["192.0.2.99"]
[[segment]]
name    = "lab"
clients = ["192.0.2.64/26"]
mode    = "observe"
until   = 2030-01-01T00:00:00Z

[[rule]]
id       = "web"
action   = "allow"
segments = ["*"]
names    = ["**.example.com"]
types    = ["A", "AAAA", "TXT"]
[[rule]]
id       = "db"
action   = "allow"
segments = ["*"]
names    = ["db.example.com"]
ports    = ["tcp/5432-5433", "tcp/443"]
within   = ["10.20.0.0/16", "192.88.98.0/24"]
private  = ["10.0.0.0/8"]
hold     = "10m"
[[rule]]
id       = "all"
action   = "allow"
segments = ["*"]
names    = ["any.example.com"]
ports    = ["any"]
[[rule]]
id       = "pinned"
action   = "allow"
segments = ["*"]
names    = ["pinned.example.org"]
cname    = ["**.cdn.example.net"]
[[rule]]
id       = "narrow"
action   = "allow"
segments = ["*"]
names    = ["narrow.example.org"]
within   = ["192.88.98.0/25"]
[[rule]]
id       = "inspected"
action   = "allow"
segments = ["*"]
names    = ["inspected.example.org"]
cname    = "inspect"
[[rule]]
id       = "no-ads"
action   = "deny"
segments = ["*"]
names    = ["ads.example.net"]
"#;

    type Row<'a> = (&'a str, &'a str, RecordType, Origin, &'a [&'a str], &'a [&'a str], &'a [&'a str], &'a str);

    fn check(rows: &[Row<'_>]) {
        let policy = policy(TEXT);
        for (client, asked, kind, origin, given, told, opened, withheld) in rows {
            let permit = permit(&policy, client, asked, *kind);
            let cleared = inspect(permit, answer(origin.clone(), given));
            let (got_told, got_opened, got_withheld) = summary(&cleared);
            assert_eq!(got_told, *told, "told: {client} {asked} {given:?}");
            assert_eq!(got_opened, *opened, "opened: {client} {asked} {given:?}");
            assert_eq!(got_withheld.unwrap_or_default(), *withheld, "withheld: {client} {asked} {given:?}");
            for opening in cleared.openings() {
                assert!(policy.upholds(cleared.basis(), &opening.element).is_some(), "{opening:?}");
            }
        }
    }

    #[test]
    fn opens_what_it_tells_for_who_asked() {
        let (a, aaaa) = (RecordType::A, RecordType::AAAA);
        let web = ["web.example.com 192.88.98.1"];
        let six = ["web.example.com 2606:2800::1"];
        check(&[
            ("192.0.2.1", "web.example.com", a, upstream(&[]), &web, &web, &["192.0.2.1 > 192.88.98.1 tcp/443"], ""),
            ("2001:db8:1::1", "web.example.com", a, upstream(&[]), &web, &web, &["segment > 192.88.98.1 tcp/443"], ""),
            ("192.0.2.1", "web.example.com", aaaa, upstream(&[]), &six, &six, &["segment > 2606:2800::1 tcp/443"], ""),
            ("203.0.113.1", "web.example.com", a, upstream(&[]), &web, &web, &["segment > 192.88.98.1 tcp/443"], ""),
            (
                "198.51.100.1",
                "web.example.com",
                aaaa,
                upstream(&[]),
                &six,
                &[],
                &[],
                "family: segment four has no IPv6 source",
            ),
            (
                "192.0.2.1",
                "any.example.com",
                a,
                upstream(&[]),
                &["any.example.com 192.88.98.1"],
                &["any.example.com 192.88.98.1"],
                &["192.0.2.1 > 192.88.98.1 any"],
                "",
            ),
            (
                "192.0.2.1",
                "db.example.com",
                a,
                upstream(&[]),
                &["db.example.com 192.88.98.1", "db.example.com 192.88.98.1"],
                &["db.example.com 192.88.98.1"],
                &[
                    "192.0.2.1 > 192.88.98.1 tcp/443 600s",
                    "192.0.2.1 > 192.88.98.1 tcp/5432 600s",
                    "192.0.2.1 > 192.88.98.1 tcp/5433 600s",
                ],
                "",
            ),
            (
                "192.0.2.1",
                "web.example.com",
                RecordType::TXT,
                upstream(&[]),
                &["web.example.com TXT", "other.example.com TXT", "web.example.com 192.88.98.1"],
                &["web.example.com \\# 2 0178"],
                &[],
                "",
            ),
            ("192.0.2.1", "web.example.com", a, upstream(&[]), &[], &[], &[], ""),
        ]);
    }

    #[test]
    fn one_guarded_address_condemns_its_set_unless_somebody_vouches() {
        let a = RecordType::A;
        let mixed = ["web.example.com 192.88.98.1", "web.example.com 10.0.0.1"];
        let db = ["db.example.com 10.20.0.5", "db.example.com 10.30.0.5"];
        let opened = ["192.0.2.1 > 10.20.0.5 tcp/443 600s", "192.0.2.1 > 10.20.0.5 tcp/5432 600s"];
        let db_opened = [opened[0], opened[1], "192.0.2.1 > 10.20.0.5 tcp/5433 600s"];
        let both = ["192.0.2.1 > 192.88.98.1 tcp/443", "192.0.2.1 > 10.0.0.1 tcp/443"];
        let private = "address: 10.0.0.1 is private (10.0.0.0/8, RFC 1918)";
        let loopback = "address: 127.0.0.1 is loopback (127.0.0.0/8, RFC 1122)";
        let local = ["web.example.com 127.0.0.1"];
        check(&[
            ("192.0.2.1", "web.example.com", a, upstream(&[]), &mixed, &[], &[], private),
            ("192.0.2.1", "web.example.com", a, upstream(&["10.0.0.0/24"]), &mixed, &mixed, &both, ""),
            ("192.0.2.1", "web.example.com", a, zone(), &mixed, &mixed, &both, ""),
            ("192.0.2.1", "web.example.com", a, zone(), &local, &[], &[], loopback),
            (
                "192.0.2.65",
                "web.example.com",
                a,
                upstream(&[]),
                &mixed,
                &mixed,
                &[],
                &format!("not enforced: {private}"),
            ),
            // `private` of the rule db lifts nothing for web: what is outside `within` of db is trimmed.
            ("192.0.2.1", "db.example.com", a, upstream(&[]), &db, &db[..1], &db_opened, ""),
            (
                "192.0.2.1",
                "narrow.example.org",
                a,
                upstream(&[]),
                &["narrow.example.org 192.88.98.200"],
                &[],
                &[],
                "address: 192.88.98.200 is not within what rule narrow names",
            ),
        ]);
    }

    #[test]
    fn judges_every_name_of_the_chain() {
        let a = RecordType::A;
        let to_ads = ["web.example.com CNAME x.example.net", "x.example.net CNAME ads.example.net"];
        let ads = "cname: the answer leads to ads.example.net, which rule no-ads denies";
        let pinned = ["pinned.example.org CNAME p.cdn.example.net", "p.cdn.example.net 192.88.98.1"];
        let strayed = ["pinned.example.org CNAME p.example.net", "p.example.net 192.88.98.1"];
        let listed = ["inspected.example.org CNAME web.example.com", "web.example.com 192.88.98.1"];
        let unlisted = ["inspected.example.org CNAME web.example.net", "web.example.net 192.88.98.1"];
        let open = ["192.0.2.1 > 192.88.98.1 tcp/443"];
        let shown = |lines: [&str; 2]| lines.map(|line| line.replace("CNAME ", ""));
        let (pinned_told, listed_told) = (shown(pinned), shown(listed));
        let pinned_told: Vec<&str> = pinned_told.iter().map(String::as_str).collect();
        let listed_told: Vec<&str> = listed_told.iter().map(String::as_str).collect();
        check(&[
            ("192.0.2.1", "web.example.com", a, upstream(&[]), &to_ads, &[], &[], ads),
            ("192.0.2.1", "web.example.com", RecordType::TXT, upstream(&[]), &to_ads, &[], &[], ads),
            ("192.0.2.1", "pinned.example.org", a, upstream(&[]), &pinned, &pinned_told, &open, ""),
            (
                "192.0.2.1",
                "pinned.example.org",
                a,
                upstream(&[]),
                &strayed,
                &[],
                &[],
                "cname: the answer leads to p.example.net, which rule pinned does not trust",
            ),
            ("192.0.2.1", "inspected.example.org", a, upstream(&[]), &listed, &listed_told, &open, ""),
            (
                "192.0.2.1",
                "inspected.example.org",
                a,
                upstream(&[]),
                &unlisted,
                &[],
                &[],
                "cname: the answer leads to web.example.net, which rule inspected does not trust",
            ),
            // Records that the chain does not lead to are dropped.
            (
                "192.0.2.1",
                "web.example.com",
                a,
                upstream(&[]),
                &["web.example.com 192.88.98.1", "victim.example.com 192.88.98.2", "web.example.com 2606:2800::1"],
                &["web.example.com 192.88.98.1"],
                &open,
                "",
            ),
        ]);
    }

    #[test]
    fn bounds_chains_and_sets() {
        let policy = policy(TEXT);
        let of = |lines: &[String]| {
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            let permit = permit(&policy, "192.0.2.1", "c0.example.com", RecordType::A);
            inspect(permit, answer(upstream(&[]), &lines))
        };
        let chain = |length: usize| {
            let links = (0..length).map(|at| format!("c{at}.example.com CNAME c{}.example.com", at + 1));
            links.chain([format!("c{length}.example.com 192.88.98.1")]).collect::<Vec<_>>()
        };
        assert_eq!(of(&chain(8)).openings().len(), 1);
        assert_eq!(of(&chain(8)).basis().chain.len(), 8);
        let long = of(&chain(9));
        assert!(long.openings().is_empty() && long.answer().records.is_empty());
        assert_eq!(long.withheld().map(|withheld| withheld.reason), Some(Reason::Cname));

        let many: Vec<_> = (1..=40).map(|at| format!("c0.example.com 192.88.98.{at}")).collect();
        let cleared = of(&many);
        assert_eq!((cleared.answer().records.len(), cleared.openings().len()), (16, 16));
        // Past the cap as well, one bad address condemns them all.
        let poisoned: Vec<_> = many.into_iter().chain(["c0.example.com 10.0.0.1".to_owned()]).collect();
        assert!(of(&poisoned).answer().records.is_empty());
    }

    #[test]
    fn what_an_observing_segment_refuses_is_told_and_not_opened() {
        let policy = policy(TEXT);
        let permit = permit(&policy, "192.0.2.65", "example.net", RecordType::A);
        let cleared = inspect(permit, answer(upstream(&[]), &["example.net 192.88.98.1"]));
        assert_eq!(cleared.answer().records.len(), 1);
        assert!(cleared.openings().is_empty() && cleared.withheld().is_none());
    }

    #[test]
    fn a_grant_is_upheld_only_by_what_would_make_it_again() {
        let before = policy(TEXT);
        let permit = permit(&before, "192.0.2.1", "web.example.com", RecordType::A);
        let lines = ["web.example.com CNAME x.example.net", "x.example.net 10.0.0.1"];
        let cleared = inspect(permit, answer(upstream(&["10.0.0.0/24"]), &lines));
        let element = cleared.openings()[0].element;
        let edits = [
            ("", "", true),
            ("\"tcp/5432-5433\"", "\"tcp/1\"", true),
            ("id       = \"web\"", "id       = \"internet\"", true),
            ("names    = [\"**.example.com\"]", "names    = [\"**.example.org\"]", false),
            ("\"A\", \"AAAA\", \"TXT\"", "\"AAAA\"", false),
            ("\"ads.example.net\"", "\"x.example.net\"", false),
            ("\"ads.example.net\"", "\"web.example.com\"", false),
            ("types    = [\"A\"", "cname = \"inspect\"\ntypes    = [\"A\"", false),
            ("types    = [\"A\"", "within = [\"10.1.0.0/16\"]\ntypes    = [\"A\"", false),
            ("types    = [\"A\"", "ports = [\"tcp/80\"]\ntypes    = [\"A\"", false),
            ("types    = [\"A\"", "ports = [\"any\"]\ntypes    = [\"A\"", true),
            ("clients = [\"192.0.2.0/24\"", "scope = \"segment\"\nclients = [\"192.0.2.0/24\"", false),
            ("192.0.2.0/24", "192.0.2.128/25", false),
        ];
        for (from, to, upheld) in edits {
            let after = policy(&TEXT.replace(from, to));
            assert_eq!(after.upholds(cleared.basis(), &element).is_some(), upheld, "{from} → {to}");
        }
        // Neither another service, nor another address that the guard forbids, nor another client.
        let others = [
            Element { service: Service::Tcp(80), ..element },
            Element { to: address("10.1.0.1"), ..element },
            Element { from: Scope::Client(address("192.0.2.2")), ..element },
        ];
        for other in others {
            assert_eq!(before.upholds(cleared.basis(), &other), None, "{other:?}");
        }
    }
}
