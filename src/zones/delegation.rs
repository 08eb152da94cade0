//! Delegations: where another server's authority begins, and what a zone may say of it (RFC 1034 §4.2.1).
//!
//! A server of delegations answers with a referral, and whoever asked goes to the servers that it names. Who asks here
//! cannot: a stub resolver takes an answer or nothing, and the firewall lets it ask nobody else. So a name at or below a
//! delegation is resolved like one of no local zone: by the child's own local zone, else by an upstream. Only what
//! the file says itself is told from it: the NS records of the delegation and the addresses of name servers (glue).

use std::collections::{HashMap, HashSet};

use super::entry::Fault;
use super::master::Line;
use super::zone::Zone;
use super::{Held, Zones};
use crate::name::{Name, ancestors};
use crate::record::{Answer, Question, Rcode, RecordType};

/// A zone's owners with their lines.
type Owners<'m> = HashMap<&'m Name, Vec<&'m Line>, foldhash::fast::RandomState>;

impl Zones {
    /// Marks where the zones' delegations begin. A child that is a local zone itself stays, and what another local zone holds
    /// is not its grandparent's to delegate.
    pub(super) fn cut(&mut self) {
        let holds =
            |zone: &Zone, cut: &&Name| self.zone_of(cut.as_wire()).is_some_and(|held| held.apex() == zone.apex());
        let cuts = self.served().flat_map(|zone| zone.cuts.iter().filter(|cut| holds(zone, cut)));
        let cuts: Vec<Name> = cuts.cloned().collect();
        for cut in cuts {
            self.zones.entry(cut).or_insert(Held::Delegated);
        }
    }

    /// Whether the zone `apex` delegates `name` and says something of it.
    pub(super) fn is_delegated(&self, name: &Name, apex: &Name) -> bool {
        self.zones.get(apex).and_then(Held::zone).is_some_and(|zone| zone.delegates(name))
    }

    /// The answer to a question at or below a delegation, as far as the file that delegates has one.
    pub(super) fn delegated(&self, question: &Question) -> Option<Answer> {
        let Question { name, kind } = question;
        let Held::Delegated = ancestors(name.as_wire()).find_map(|ancestor| self.zones.get(ancestor))? else {
            return None;
        };
        let zone = self.zone_above(name.as_wire())?;
        let answer = |authoritative, records, soa| {
            let origin = zone.origin.clone();
            Some(Answer { rcode: Rcode::NOERROR, authoritative, records, soa, ede: None, proof: None, origin })
        };
        match zone.delegated(name, *kind) {
            // RFC 2181 §5.4.1, §6.1: what the parent says of its child is not authoritative.
            Some(records) => answer(false, records.to_vec(), None),
            // RFC 4035 §3.1.4.1: DS is the parent's; without one there, none is.
            None if *kind == RecordType::DS && self.zones.contains_key(name) => {
                answer(true, Vec::new(), Some(zone.negative.clone()))
            }
            None => None,
        }
    }
}

/// The delegations of one zone.
pub(super) struct Delegations {
    cuts: HashSet<Name, foldhash::fast::RandomState>,
    /// The names of their servers.
    servers: HashSet<Name, foldhash::fast::RandomState>,
}

impl Delegations {
    /// Those of the zone `apex`: its NS records below the apex. One below another is not among them.
    pub(super) fn new(apex: &Name, owners: &Owners<'_>) -> Self {
        let is_ns = |line: &&&Line| line.record.kind == RecordType::NS;
        let delegating = |name: &Name, lines: &[&Line]| name != apex && lines.iter().any(|line| is_ns(&line));
        let cuts = owners.iter().filter(|(name, lines)| delegating(name, lines)).map(|(name, _)| (*name).clone());
        let all: HashSet<Name, foldhash::fast::RandomState> = cuts.collect();
        let highest = |cut: &&Name| !ancestors(cut.as_wire()).skip(1).any(|ancestor| all.contains(ancestor));
        let cuts: HashSet<_, _> = all.iter().filter(highest).cloned().collect();
        let lines = cuts.iter().filter_map(|cut| owners.get(cut)).flatten();
        let servers = lines.filter(is_ns).filter_map(|line| Name::from_wire(&line.record.data).ok()).collect();
        Self { cuts, servers }
    }

    /// The delegation that `name` is at or below.
    pub(super) fn above(&self, name: &Name) -> Option<&Name> {
        ancestors(name.as_wire()).find_map(|ancestor| self.cuts.get(ancestor))
    }

    pub(super) fn into_cuts(self) -> Vec<Name> {
        self.cuts.into_iter().collect()
    }

    /// Notes what cannot stand at or below a delegation, and what is missing there.
    pub(super) fn check(&self, owners: &Owners<'_>, faults: &mut Vec<Fault>) {
        for (name, lines) in owners {
            let Some(cut) = self.above(name) else { continue };
            for Line { at, record } in lines {
                match record.kind {
                    // RFC 4592 §4.2: "the semantics of […] wildcard NS RRSets are not defined".
                    RecordType::NS if record.name == *cut && cut.labels().next() == Some(b"*") => {
                        let fact = format!("{cut} delegates a wildcard");
                        faults.push(Fault::new(*at, fact, "delegate names one by one"));
                    }
                    RecordType::NS if record.name == *cut => self.check_glue(*at, cut, &record.data, owners, faults),
                    kind if kind.is_address() && self.servers.contains(&record.name) => {}
                    kind => {
                        let fact = format!("the {kind} of {name} is hidden by the delegation of {cut}");
                        let remedy = "remove one of them: below NS records stand only the addresses of name servers";
                        faults.push(Fault::new(*at, fact, remedy));
                    }
                }
            }
        }
    }

    /// RFC 1034 §4.2.1: a server "whose name is itself in the subzone" cannot be found without its address.
    fn check_glue(&self, at: usize, cut: &Name, data: &[u8], owners: &Owners<'_>, faults: &mut Vec<Fault>) {
        let Ok(server) = Name::from_wire(data) else { return };
        let has_address = || owners.get(&server).is_some_and(|of| of.iter().any(|line| line.record.kind.is_address()));
        if server.is_within(cut) && !has_address() {
            let fact = format!("{cut} is delegated to {server}, which is below it and has no address here");
            faults.push(Fault::new(at, fact, format!("add its address (glue): {server}. A 192.0.2.1")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zones::Source;
    use std::sync::Arc;

    const SOA: &str = "$TTL 1h\n@ SOA ns hostmaster 1 1h 15m 7d 5m\n";

    fn compile(files: &[(&str, &str)]) -> Result<Zones, Vec<String>> {
        let source = |(file, text): &(&str, &str)| Source { file: Arc::from(*file), text: format!("{SOA}{text}") };
        let zones = Zones::compile(&files.iter().map(source).collect::<Vec<_>>());
        zones.map_err(|mistakes| mistakes.iter().map(ToString::to_string).collect())
    }

    /// Rcode, AA, how many records, whether there is an SOA; or that the name is not local.
    fn ask(zones: &Zones, question: &str) -> String {
        let (name, kind) = question.split_once(' ').unwrap();
        let answer = zones.answer(&Question { name: name.parse().unwrap(), kind: kind.parse().unwrap() });
        answer.map_or_else(
            || "not local".to_owned(),
            |answer| {
                let aa = if answer.authoritative { " aa" } else { "" };
                let soa = if answer.soa.is_some() { " soa" } else { "" };
                format!("{}{aa} {}{soa}", answer.rcode, answer.records.len())
            },
        )
    }

    const PARENT: &str = "www CNAME www.sub\nhost CNAME ns.sub\n\
        sub NS ns.sub\nsub NS ns.other\nsub NS elsewhere.example.com.\nns.sub A 192.0.2.1\nns.sub AAAA 2001:db8::1\n\
        other NS ns.other\nns.other A 192.0.2.2\nself NS self\nself A 192.0.2.3\na.deep.down NS ns\nns A 192.0.2.4\n* A 192.0.2.5\n";

    #[test]
    fn what_lies_below_a_delegation_is_not_local_but_what_the_file_says_of_it() {
        let zones = compile(&[("example.org.zone", PARENT)]).unwrap();
        for (reason, question, expected) in [
            ("the delegation", "sub.example.org NS", "NOERROR 3"),
            ("its glue", "ns.sub.example.org A", "NOERROR 1"),
            ("the other family of it", "ns.sub.example.org AAAA", "NOERROR 1"),
            ("glue of a sibling (RFC 9471 §3.2)", "ns.other.example.org A", "NOERROR 1"),
            ("a name server that is the delegation itself", "self.example.org A", "NOERROR 1"),
            ("other types of a glue's owner", "ns.sub.example.org TXT", "not local"),
            ("the child's apex", "sub.example.org A", "not local"),
            ("a name of the child; the wildcard is above", "www.sub.example.org A", "not local"),
            ("DS belongs to the parent, at the delegation", "sub.example.org DS", "NOERROR aa 0 soa"),
            ("and not below it", "ns.sub.example.org DS", "not local"),
            ("an empty non-terminal above a delegation", "deep.down.example.org A", "NOERROR aa 0 soa"),
            ("a wildcard beside it", "x.example.org A", "NOERROR aa 1"),
            ("a CNAME into it is open", "www.example.org A", "NOERROR aa 1"),
            ("also to a glue's owner", "host.example.org A", "NOERROR aa 1"),
        ] {
            assert_eq!(ask(&zones, question), expected, "{question}: {reason}");
        }
    }

    #[test]
    fn a_child_that_is_local_answers_and_an_upstream_named_for_it_too() {
        let child = "www A 192.0.2.9\nns.sub A 192.0.2.8\nlow NS ns.low\nns.low A 192.0.2.7\n";
        let mut zones = compile(&[("example.org.zone", PARENT), ("sub.example.org.zone", child)]).unwrap();
        for (question, expected) in [
            ("www.sub.example.org A", "NOERROR aa 1"),
            ("sub.example.org NS", "NOERROR aa 0 soa"),
            ("ns.sub.example.org A", "NXDOMAIN aa 0 soa"),
            ("ns.low.sub.example.org A", "NOERROR 1"),
        ] {
            assert_eq!(ask(&zones, question), expected, "{question}");
        }
        zones.carve(&"other.example.org".parse().unwrap());
        zones.carve(&"down.example.org".parse().unwrap());
        for (question, expected) in [
            ("ns.other.example.org A", "not local"),
            ("a.deep.down.example.org NS", "not local"),
            ("self.example.org NS", "NOERROR 1"),
        ] {
            assert_eq!(ask(&zones, question), expected, "{question}");
        }
        // The child stays where an upstream serves what is around it, and so do its own delegations.
        zones.carve(&"example.org".parse().unwrap());
        zones.carve(&"sub.example.org".parse().unwrap());
        assert_eq!(ask(&zones, "ns.low.sub.example.org A"), "NOERROR 1");
        assert_eq!(zones.len(), 2);
    }

    #[test]
    fn says_what_cannot_stand_there_and_what_is_missing() {
        let text = "sub NS ns.sub\nsub TXT x\nwww.sub A 192.0.2.1\nlow.sub NS ns\n*.w NS ns\nns A 192.0.2.4\n\
                    ns.bare.sub CNAME ns\nbare NS ns.bare\nns.bare TXT x\n";
        let expected = "\
example.org.zone:3:1: sub.example.org is delegated to ns.sub.example.org, which is below it and has no address here
  add its address (glue): ns.sub.example.org. A 192.0.2.1
example.org.zone:4:1: the TXT of sub.example.org is hidden by the delegation of sub.example.org
  remove one of them: below NS records stand only the addresses of name servers
example.org.zone:5:1: the A of www.sub.example.org is hidden by the delegation of sub.example.org
  remove one of them: below NS records stand only the addresses of name servers
example.org.zone:6:1: the NS of low.sub.example.org is hidden by the delegation of sub.example.org
  remove one of them: below NS records stand only the addresses of name servers
example.org.zone:7:1: *.w.example.org delegates a wildcard
  delegate names one by one
example.org.zone:9:1: the CNAME of ns.bare.sub.example.org is hidden by the delegation of sub.example.org
  remove one of them: below NS records stand only the addresses of name servers
example.org.zone:10:1: bare.example.org is delegated to ns.bare.example.org, which is below it and has no address here
  add its address (glue): ns.bare.example.org. A 192.0.2.1
example.org.zone:11:1: the TXT of ns.bare.example.org is hidden by the delegation of bare.example.org
  remove one of them: below NS records stand only the addresses of name servers";
        assert_eq!(compile(&[("example.org.zone", text)]).unwrap_err().join("\n"), expected);
    }
}
