//! What a policy says of a query that another one decides: an [`Opinion`], which nothing can be resolved or opened with.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;

use super::decide::{Weighed, decide, weigh};
use super::inspect::inspect;
use super::verdict::{Cleared, Reason, RuleIndex, Verdict};
use super::{Asker, Policy};
use crate::net::{Scope, Service, Services};
use crate::record::{Answer, RecordType};
use crate::time::Wall;

/// What becomes of a question under a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// A rule allows it.
    Allowed,
    /// Enforcing would deny it, and the segment observes.
    Observed,
    /// It is refused, or its answer is withheld.
    Denied,
}

/// What a policy says of a question, or of the answer to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opinion {
    /// What becomes of it.
    pub standing: Standing,
    /// Why.
    pub reason: Reason,
    /// The rule that its record would name.
    pub rule: Option<RuleIndex>,
}

/// How a policy disagrees with the one that decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dissent {
    /// It would deny what passes.
    Denies,
    /// It would let pass what is denied.
    Allows,
    /// It passes either way, and the verdict, what is told or what is opened differs.
    Differs,
}

impl Dissent {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Denies, Self::Allows, Self::Differs];

    /// The word in records and metric labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Denies => "denies",
            Self::Allows => "allows",
            Self::Differs => "differs",
        }
    }
}

/// What [`decide`] says, in short: what it would cost to make a permit is not spent.
#[must_use]
pub fn opine(policy: &Policy, asker: Asker, name: &[u8], kind: RecordType, now: Wall) -> Opinion {
    match weigh(policy, asker, name, kind, now) {
        Weighed::Pass { rules, observed: None, .. } => {
            Opinion { standing: Standing::Allowed, reason: Reason::Rule, rule: rules.first().copied() }
        }
        Weighed::Pass { observed: Some((rule, reason)), .. } => Opinion { standing: Standing::Observed, reason, rule },
        Weighed::Refuse(refusal) => Opinion::denied(refusal.reason, refusal.rule),
        Weighed::Answer(own) => Opinion { standing: Standing::Allowed, reason: own.reason(), rule: None },
    }
}

impl Opinion {
    /// It is denied.
    #[must_use]
    pub const fn denied(reason: Reason, rule: Option<RuleIndex>) -> Self {
        Self { standing: Standing::Denied, reason, rule }
    }
}

impl Cleared {
    /// What became of the answer.
    #[must_use]
    pub fn opinion(&self) -> Opinion {
        let first = self.permit.rule();
        match (&self.withheld, self.permit.observed()) {
            (Some(withheld), _) => {
                let standing = if withheld.enforced { Standing::Denied } else { Standing::Observed };
                Opinion { standing, reason: withheld.reason, rule: withheld.rule.or(first) }
            }
            (None, Some((rule, reason))) => Opinion { standing: Standing::Observed, reason, rule },
            (None, None) => Opinion { standing: Standing::Allowed, reason: Reason::Rule, rule: first },
        }
    }
}

/// What another policy says of an answer, for the askers of one of its segments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// The place of the segment among the policy's.
    pub place: usize,
    /// What becomes of the answer.
    pub opinion: Opinion,
    /// Why it is withheld; of one that passes under both policies, what is different.
    pub why: Option<Box<str>>,
}

impl Judged {
    /// About how many bytes it takes.
    #[must_use]
    pub fn weight(&self) -> usize {
        size_of::<Self>() + self.why.as_ref().map_or(0, |why| why.len())
    }
}

/// What `policy` says of an answer that was inspected as `live`, and was `answer` before; `None` where it would not have been
/// asked for.
#[must_use]
pub fn judge(policy: &Arc<Policy>, live: &Cleared, answer: Answer) -> Option<Judged> {
    let (permit, basis) = (&live.permit, &live.basis);
    let client = permit.asker.client;
    let asker = if basis.is_warm() {
        Asker { segment: policy.place_of(&basis.segment)?, voucher: None, ..permit.asker }
    } else {
        match &basis.certificate {
            Some(name) => policy.certified_as(client, name).or_else(|| policy.asker(client)),
            None if permit.asker.named => policy.member(client),
            None => policy.asker(client),
        }?
    };
    let question = &permit.question;
    let Verdict::Permit(other) = decide(policy, asker, question.name.as_wire(), question.kind, permit.decided) else {
        return None;
    };
    let other = inspect(other, answer);
    let opinion = other.opinion();
    let withheld = other.withheld.as_ref().map(|withheld| withheld.why.clone());
    let why = withheld.or_else(|| (live.opinion().standing == opinion.standing).then(|| difference(live, &other))?);
    Some(Judged { place: asker.place(), opinion, why })
}

/// What is told or opened otherwise: `tells 1 record less; opens tcp/8443`.
fn difference(live: &Cleared, other: &Cleared) -> Option<Box<str>> {
    let mut told = String::new();
    let mut say = |words: String| {
        let between = if told.is_empty() { "" } else { "; " };
        // Writing to a String cannot fail.
        let _ = write!(told, "{between}{words}");
    };
    let (records, others) = (&live.answer.records, &other.answer.records);
    let less = records.iter().filter(|record| !others.contains(record)).count();
    let more = others.iter().filter(|record| !records.contains(record)).count();
    for (count, word) in [(less, "less"), (more, "more")] {
        if count > 0 {
            say(format!("tells {count} record{} {word}", if count == 1 { "" } else { "s" }));
        }
    }
    // Of an address that only one of them tells it is said already.
    let opened = |cleared: &Cleared, besides: &Cleared| -> BTreeSet<(IpAddr, Service)> {
        let told: BTreeSet<IpAddr> = besides.openings.iter().map(|opening| opening.element.to).collect();
        let shared =
            cleared.openings.iter().map(|opening| opening.element).filter(|element| told.contains(&element.to));
        shared.map(|element| (element.to, element.service)).collect()
    };
    let (ours, theirs) = (opened(live, other), opened(other, live));
    for (only, words) in [(&theirs - &ours, "opens"), (&ours - &theirs, "does not open")] {
        let services: Vec<Service> = only.into_iter().map(|(_, service)| service).collect();
        if !services.is_empty() {
            let services: Vec<_> = Services::merge(&services).iter().map(ToString::to_string).collect();
            say(format!("{words} {}", services.join(", ")));
        }
    }
    let scopes = |cleared: &Cleared| cleared.openings.first().map(|opening| opening.element.from);
    if let (Some(ours), Some(theirs)) = (scopes(live), scopes(other))
        && ours != theirs
    {
        say(match theirs {
            Scope::Client(_) => "opens for the client alone".to_owned(),
            Scope::Segment(_) => format!("opens for all of the segment {}", other.permit.segment().name),
        });
    }
    (!told.is_empty()).then(|| told.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::testing::{NOW, answer, asker, name, permit, policy, upstream};

    const SHOP: &str = "[[segment]]\nname = \"shop\"\nclients = [\"192.0.2.0/24\"]\n";

    fn rule(rest: &str) -> String {
        format!("{SHOP}[[rule]]\nid = \"web\"\naction = \"allow\"\nsegments = [\"shop\"]\n{rest}\n")
    }

    #[test]
    fn an_opinion_is_the_verdict_without_its_permit() {
        let text = rule("names = [\"*.example.com\"]\ntypes = [\"A\"]")
            + "[[rule]]\nid = \"no\"\naction = \"deny\"\nsegments = [\"*\"]\nnames = [\"no.example.com\"]\n"
            + "[[segment]]\nname = \"lab\"\nclients = [\"198.51.100.0/24\"]\nmode = \"observe\"\nuntil = 2030-01-01T00:00:00Z\n";
        let policy = policy(&text);
        for (client, asked, kind, expected) in [
            ("192.0.2.1", "a.example.com", RecordType::A, "Allowed rule web"),
            ("192.0.2.1", "a.example.com", RecordType::AAAA, "Denied type web"),
            ("192.0.2.1", "a.example.com", RecordType::ANY, "Allowed local "),
            ("192.0.2.1", "no.example.com", RecordType::A, "Denied rule no"),
            ("192.0.2.1", "example.com", RecordType::A, "Denied default "),
            ("192.0.2.1", "localhost", RecordType::A, "Allowed special "),
            ("198.51.100.1", "no.example.com", RecordType::A, "Observed rule no"),
            ("198.51.100.1", "www.example.org", RecordType::A, "Observed default "),
        ] {
            let (asker, asked) = (asker(&policy, client), name(asked));
            let Opinion { standing, reason, rule } = opine(&policy, asker, asked.as_wire(), kind, NOW);
            let id = rule.map(|rule| policy.rule_id(rule).to_string()).unwrap_or_default();
            assert_eq!(format!("{standing:?} {} {id}", reason.as_str()), expected, "{asked} {kind}");
            let verdict = decide(&policy, asker, asked.as_wire(), kind, NOW);
            let passes = !matches!(verdict, Verdict::Refuse(_));
            assert_eq!(passes, standing != Standing::Denied, "{asked} {kind}");
        }
    }

    #[test]
    fn says_what_of_an_answer_is_different() {
        let live = policy(&rule("names = [\"www.example.com\"]"));
        let lines = ["www.example.com 198.51.100.7", "www.example.com 198.51.100.8"];
        let told = || answer(upstream(&["198.51.100.0/24"]), &lines);
        let cleared = inspect(permit(&live, "192.0.2.1", "www.example.com", RecordType::A), told());
        for (rest, expected) in [
            ("names = [\"www.example.com\"]", Some("Allowed")),
            ("names = [\"**.example.com\"]\nhold = \"10m\"", Some("Allowed")),
            ("names = [\"api.example.com\"]", None),
            (
                "names = [\"www.example.com\"]\nports = [\"tcp/443-444\", \"icmp\"]",
                Some("Allowed: opens tcp/444, icmp"),
            ),
            (
                "names = [\"www.example.com\"]\nports = [\"tcp/80\"]",
                Some("Allowed: opens tcp/80; does not open tcp/443"),
            ),
            (
                "names = [\"www.example.com\"]\nwithin = [\"198.51.100.8\"]\nports = [\"tcp/80\"]",
                Some("Allowed: tells 1 record less; opens tcp/80; does not open tcp/443"),
            ),
            (
                "names = [\"www.example.com\"]\nwithin = [\"203.0.113.0/24\"]",
                Some("Denied: 198.51.100.8 is not within what rule web names"),
            ),
        ] {
            let other = policy(&rule(rest));
            let judged = judge(&other, &cleared, told()).map(|judged| {
                let why = judged.why.map(|why| format!(": {why}")).unwrap_or_default();
                format!("{:?}{why}", judged.opinion.standing)
            });
            assert_eq!(judged.as_deref(), expected, "{rest}");
        }
        let scoped = rule("names = [\"www.example.com\"]").replace("[[rule]]", "scope = \"segment\"\n[[rule]]");
        let judged = judge(&policy(&scoped), &cleared, told()).unwrap();
        assert_eq!(judged.why.as_deref(), Some("opens for all of the segment shop"));
        // Who asked was named by his address; the other policy does not know it.
        let moved = rule("names = [\"www.example.com\"]").replace("192.0.2.0/24", "198.51.100.0/24");
        assert_eq!(judge(&policy(&moved), &cleared, told()), None);
    }
}
