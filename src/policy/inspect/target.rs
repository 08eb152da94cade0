//! Targets: the names that MX, SRV, HTTPS and SVCB records send a client to.

use super::{Admitted, Held};
use crate::name::Name;
use crate::policy::Policy;
use crate::policy::decide::{Case, Ruling};
use crate::policy::verdict::Reason;
use crate::record::{Record, RecordType};
use crate::time::Wall;

/// Records that are kept of an answer, and why others are not.
#[derive(Default)]
pub(super) struct Kept {
    pub(super) records: Vec<Record>,
    told: bool,
    left_out: usize,
    first: Option<Held>,
    hints: Option<Held>,
}

impl Kept {
    /// A CNAME that leads to the records.
    pub(super) fn lead(&mut self, record: &Record) {
        self.records.push(record.clone());
    }

    pub(super) fn keep(&mut self, record: Record) {
        self.records.push(record);
        self.told = true;
    }

    pub(super) fn leave_out(&mut self, why: Held) {
        self.left_out += 1;
        self.first.get_or_insert(why);
    }

    /// A record is kept, but hints in it are not.
    pub(super) fn lacks_hints(&mut self, why: Held) {
        self.hints.get_or_insert(why);
    }

    /// What is told; the answer is withheld where nothing is left of it.
    pub(super) fn finish(self) -> Result<Admitted, Held> {
        let left_out = match self.first {
            Some(held) if !self.told => return Err(held),
            Some(held) if self.left_out == 1 => Some(format!("a record is left out: {}", held.why)),
            Some(held) => Some(format!("{} records are left out: {}", self.left_out, held.why)),
            None => self.hints.map(|held| format!("hints are left out: {}", held.why)),
        };
        Ok(Admitted { records: self.records, left_out, ..Admitted::default() })
    }
}

impl Policy {
    /// An answer of MX or SRV records: those whose host this segment may ask for itself.
    pub(super) fn admit_hosts(&self, case: Case, records: &[Record], mut until: Wall) -> Result<Admitted, Held> {
        let mut kept = Kept::default();
        for record in records {
            if record.kind == RecordType::CNAME {
                kept.lead(record);
                continue;
            }
            let Some(host) = record.host() else {
                let why = format!("the {} record of {} cannot be read", record.kind, record.name);
                kept.leave_out(Held::new(Reason::Upstream, None, why));
                continue;
            };
            // RFC 7505 §3 and RFC 2782: a host that is the root says that there is no such service.
            match if host == Name::root() { None } else { self.refuses_target(case, &host, &mut until) } {
                None => kept.keep(record.clone()),
                Some(held) => kept.leave_out(held),
            }
        }
        Ok(Admitted { until, ..kept.finish()? })
    }

    /// Why a client of this segment is not sent to `target`: it may not ask for an address of it itself.
    /// Else `until` is lowered to when it may not any more.
    pub(super) fn refuses_target(&self, case: Case, target: &Name, until: &mut Wall) -> Option<Held> {
        let mut denied = None;
        for kind in [RecordType::A, RecordType::AAAA] {
            match self.rule_on(case, target.as_wire(), kind) {
                Ruling::Allowed(rules) => {
                    *until = self.first_end(&rules).map_or(*until, |end| end.min(*until));
                    return None;
                }
                Ruling::Refused { rule, reason, .. } => denied = rule.filter(|_| reason == Reason::Rule),
                // Loopback and the like: an answer from elsewhere has no business there.
                Ruling::Answered(_) => denied = None,
            }
        }
        let why = match denied {
            Some(rule) => format!("the answer leads to {target}, which rule {} denies", self.rule_id(rule)),
            None => format!("the answer leads to {target}, whose addresses no rule allows"),
        };
        Some(Held::new(Reason::Cname, denied, why))
    }
}

#[cfg(test)]
mod tests {
    use crate::policy::inspect;
    use crate::policy::testing::{answer, permit, policy, summary, upstream};
    use crate::record::RecordType;

    const TEXT: &str = r#"
[[segment]]
name    = "shop"
clients = ["192.0.2.0/24"]
[[segment]]
name    = "lab"
clients = ["198.51.100.0/24"]
mode    = "observe"
until   = 2030-01-01T00:00:00Z
[[rule]]
id       = "mail"
action   = "allow"
segments = ["*"]
names    = ["example.com", "_x._tcp.example.com"]
types    = ["MX", "SRV"]
[[rule]]
id       = "hosts"
action   = "allow"
segments = ["shop"]
names    = ["mx1.example.com", "mx2.example.com", "bad.example.com"]
[[rule]]
id       = "six"
action   = "allow"
segments = ["shop"]
names    = ["six.example.com"]
types    = ["AAAA"]
[[rule]]
id       = "texts"
action   = "allow"
segments = ["shop"]
names    = ["text.example.com"]
types    = ["TXT"]
[[rule]]
id       = "no-bad"
action   = "deny"
segments = ["*"]
names    = ["bad.example.com"]
"#;

    #[test]
    fn a_host_is_told_to_who_may_ask_for_it() {
        let policy = policy(TEXT);
        let no_rule = |host: &str| format!("the answer leads to {host}, whose addresses no rule allows");
        let denied = "the answer leads to bad.example.com, which rule no-bad denies";
        // Hosts that are given, those told, what is left out; and, where nothing is told, why.
        let rows: [(&[&str], &[&str], String); 7] = [
            (&["mx1.example.com.", "mx2.example.com."], &["mx1.example.com", "mx2.example.com"], String::new()),
            (&["six.example.com."], &["six.example.com"], String::new()),
            (&["."], &["."], String::new()),
            (&[], &[], String::new()),
            (
                &["mx1.example.net.", "mx2.example.com."],
                &["mx2.example.com"],
                format!("a record is left out: {}", no_rule("mx1.example.net")),
            ),
            (
                &["bad.example.com.", "mx1.example.com.", "mx1.example.net."],
                &["mx1.example.com"],
                format!("2 records are left out: {denied}"),
            ),
            (&["text.example.com."], &[], format!("withheld: cname: {}", no_rule("text.example.com"))),
        ];
        for (kind, asked, numbers) in
            [(RecordType::MX, "example.com", "10"), (RecordType::SRV, "_x._tcp.example.com", "0 5 443")]
        {
            for (given, told, why) in &rows {
                let lines: Vec<_> = given.iter().map(|host| format!("{asked} {kind} {numbers} {host}")).collect();
                let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
                let cleared = inspect(permit(&policy, "192.0.2.1", asked, kind), answer(upstream(&[]), &lines));
                let (got, opened, withheld) = summary(&cleared);
                let told: Vec<_> = told.iter().map(|host| format!("{asked} {numbers} {host}")).collect();
                assert_eq!(got, told, "{given:?}");
                let said = withheld.map(|why| format!("withheld: {why}")).or(cleared.left_out().map(str::to_owned));
                assert_eq!(said.unwrap_or_default(), *why, "{given:?}");
                assert!(opened.is_empty());
            }
        }
    }

    #[test]
    fn a_segment_that_observes_is_told_every_host() {
        let policy = policy(TEXT);
        let lines = ["example.com MX 10 mx1.example.net."];
        let permit = permit(&policy, "198.51.100.1", "example.com", RecordType::MX);
        let (told, _, withheld) = summary(&inspect(permit, answer(upstream(&[]), &lines)));
        assert_eq!(told, ["example.com 10 mx1.example.net"]);
        assert!(withheld.unwrap().starts_with("not enforced: cname: the answer leads to mx1.example.net"));
    }

    #[test]
    fn a_record_that_cannot_be_read_is_left_out() {
        let policy = policy(TEXT);
        let lines = [r"example.com MX \# 000a03", "example.com MX 10 mx1.example.com."];
        let permit = permit(&policy, "192.0.2.1", "example.com", RecordType::MX);
        let cleared = inspect(permit, answer(upstream(&[]), &lines));
        assert_eq!(summary(&cleared).0, ["example.com 10 mx1.example.com"]);
        assert_eq!(cleared.left_out(), Some("a record is left out: the MX record of example.com cannot be read"));
    }
}
