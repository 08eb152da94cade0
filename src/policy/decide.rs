//! [`decide`]: may this question be resolved?

use std::net::IpAddr;
use std::sync::Arc;

use smallvec::SmallVec;

use super::asker::Asker;
use super::index::{Found, Hit};
use super::reserved::{Bar, What};
use super::rule::is_no_data;
use super::verdict::{Own, Permit, Reason, Refusal, ReservedIndex, RuleIndex, SegmentIndex, Shown, Verdict};
use super::{Action, Policy};
use crate::name::Name;
use crate::record::{Question, RecordType};
use crate::time::Wall;

/// Rules that admit a question, the most specific first.
pub(super) type Rules = SmallVec<[RuleIndex; 4]>;

/// Whose question it is, and when.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    pub(super) segment: SegmentIndex,
    pub(super) client: IpAddr,
    pub(super) now: Wall,
}

impl Asker {
    pub(super) const fn case(&self, now: Wall) -> Case {
        Case { segment: self.segment, client: self.client, now }
    }
}

/// What the rules of a segment say of a question, whether they are enforced or not.
pub(super) enum Ruling {
    /// These rules admit it; never empty.
    Allowed(Rules),
    /// Refused.
    Refused {
        rule: Option<RuleIndex>,
        reason: Reason,
        shown: Shown,
        /// The name that is not left to the rules, where it is that.
        reserved: Option<ReservedIndex>,
        /// The allow rules that would admit it else. `None`: it never passes, also where a segment observes.
        overruled: Option<Rules>,
    },
    /// Answered here.
    Answered(Own),
}

/// May this question be resolved? `name` is canonical: complete, wire format, lower case; anything else is refused as
/// malformed. Allocates nothing for a refusal.
#[must_use]
pub fn decide(policy: &Arc<Policy>, asker: Asker, name: &[u8], kind: RecordType, now: Wall) -> Verdict {
    match weigh(policy, asker, name, kind, now) {
        Weighed::Pass { rules, observed, observing } => {
            let Ok(name) = Name::from_wire(name) else { return Verdict::Refuse(malformed(asker)) };
            let (policy, question) = (Arc::clone(policy), Question { name, kind });
            Verdict::Permit(Permit { policy, asker, question, rules, observed, observing, decided: now })
        }
        Weighed::Refuse(refusal) => Verdict::Refuse(refusal),
        Weighed::Answer(own) => Verdict::Answer(own),
    }
}

/// A [`Verdict`] whose permit is not made yet.
pub(super) enum Weighed {
    /// It may be resolved; the fields are those of [`Permit`].
    Pass {
        rules: Rules,
        observed: Option<(Option<RuleIndex>, Reason)>,
        observing: bool,
    },
    Refuse(Refusal),
    Answer(Own),
}

/// What [`decide`] says, of a policy that need not be shared.
#[inline]
pub(super) fn weigh(policy: &Policy, asker: Asker, name: &[u8], kind: RecordType, now: Wall) -> Weighed {
    // A length octet is at most 63, so an octet `A`..`Z` is always part of a label. A name that is not lower case could
    // slip past a deny.
    if name.iter().fold(false, |upper, byte| upper | byte.is_ascii_uppercase()) {
        return Weighed::Refuse(malformed(asker));
    }
    let segment = policy.segment(asker);
    let observing = segment.observes(now);
    match policy.rule_on(asker.case(now), name, kind) {
        Ruling::Allowed(rules) => Weighed::Pass { rules, observed: None, observing },
        // Observing lets pass what a rule would refuse; it does not make IPv6 where there is none.
        Ruling::Refused { rule, overruled: Some(_), .. }
            if observing && kind == RecordType::AAAA && segment.filter_aaaa =>
        {
            let (reason, shown) = (Reason::Family, Shown::NoData);
            Weighed::Refuse(Refusal { asker, rule, reason, shown, reserved: None })
        }
        Ruling::Refused { rule, reason, shown, reserved, overruled } => {
            match overruled.filter(|_| observing && !is_no_data(kind)) {
                Some(rules) => Weighed::Pass { rules, observed: Some((rule, reason)), observing },
                None => Weighed::Refuse(Refusal { asker, rule, reason, shown, reserved }),
            }
        }
        Ruling::Answered(own) => Weighed::Answer(own),
    }
}

const fn malformed(asker: Asker) -> Refusal {
    Refusal { asker, rule: None, reason: Reason::Malformed, shown: Shown::Refused, reserved: None }
}

impl Ruling {
    /// The same, where it does not pass either while a segment observes.
    fn never_passes(self) -> Self {
        match self {
            Self::Refused { rule, reason, shown, reserved, .. } => {
                Self::Refused { rule, reason, shown, reserved, overruled: None }
            }
            other => other,
        }
    }
}

/// Why a CNAME may not lead to a name.
pub(super) enum Condemned<'a> {
    /// This rule denies it.
    Rule(RuleIndex),
    /// It is not left to the rules alone; one clause.
    Barred(&'a str),
}

/// What the rules of a segment that name a name say of it.
struct Voices {
    /// The deny rule that is the nearest to the name.
    denied: Option<RuleIndex>,
    /// A deny rule denies all names below it as well.
    wholly: bool,
    /// The allow rules for the type, the most specific first.
    allowed: Rules,
    /// The nearest allow rule that does not have the type.
    other_types: Option<RuleIndex>,
}

impl Policy {
    /// The one place where rules are weighed: [`decide`], `cname = "inspect"` and [`Policy::upholds`] all ask here.
    pub(super) fn rule_on(&self, case: Case, name: &[u8], kind: RecordType) -> Ruling {
        let segment = case.segment;
        let found = self.find(name);
        if let Some((bar, reserved)) = self.reserved.bar(&found, segment, name, kind) {
            return self.rule_on_reserved(&found, case, name, kind, (bar, reserved));
        }
        let refused = |rule, reason, shown| {
            let overruled = Some(Rules::new());
            Ruling::Refused { rule, reason, shown, reserved: None, overruled }
        };
        if found.is_stranger() {
            return refused(None, Reason::Default, self.shown(&found, segment, name));
        }
        let voices = self.voices(&found, case, name, kind, Bar::None);
        if voices.denied.is_some() {
            return self.denied_by(&found, segment, name, voices);
        }
        if let Some(nearest) = voices.allowed.first().copied() {
            return self.allowed_by(segment, kind, nearest, voices.allowed);
        }
        match voices.other_types {
            Some(_) if kind == RecordType::ANY => Ruling::Answered(Own::any(name)),
            Some(nearest) => refused(Some(nearest), Reason::Type, Shown::NoData),
            None => refused(None, Reason::Default, self.shown(&found, segment, name)),
        }
    }

    /// Whether the rules open this name; `until` is lowered to the first end among these rules.
    pub(super) fn opens(&self, case: Case, name: &[u8], kind: RecordType, until: &mut Wall) -> bool {
        let Ruling::Allowed(rules) = self.rule_on(case, name, kind) else { return false };
        *until = self.first_end(&rules).map_or(*until, |end| end.min(*until));
        true
    }

    /// When the first of these rules ends; `None`: none of them does.
    pub(super) fn first_end(&self, rules: &[RuleIndex]) -> Option<Wall> {
        rules.iter().filter_map(|rule| self.rule(*rule).expires).min()
    }

    fn allowed_by(&self, segment: SegmentIndex, kind: RecordType, nearest: RuleIndex, rules: Rules) -> Ruling {
        if kind != RecordType::AAAA || !self.filters_aaaa(segment) {
            return Ruling::Allowed(rules);
        }
        let (rule, overruled) = (Some(nearest), Some(Rules::new()));
        Ruling::Refused { rule, reason: Reason::Family, shown: Shown::NoData, reserved: None, overruled }
    }

    fn denied_by(&self, found: &Found<'_>, segment: SegmentIndex, name: &[u8], voices: Voices) -> Ruling {
        // Where the deny covers everything below as well, nothing can be asked there.
        let shown = if voices.wholly { self.refusal_of(segment) } else { self.shown(found, segment, name) };
        let (rule, overruled) = (voices.denied, Some(voices.allowed));
        Ruling::Refused { rule, reason: Reason::Rule, shown, reserved: None, overruled }
    }

    /// What is said of a name that is not left to the rules alone: a deny is heard as ever, of the allows those that the
    /// bar lets through.
    #[cold]
    fn rule_on_reserved(
        &self,
        found: &Found<'_>,
        case: Case,
        name: &[u8],
        kind: RecordType,
        (bar, reserved): (Bar, ReservedIndex),
    ) -> Ruling {
        let segment = case.segment;
        let voices = self.voices(found, case, name, kind, bar);
        if voices.denied.is_some() {
            let ruling = self.denied_by(found, segment, name, voices);
            return if bar == Bar::All { ruling.never_passes() } else { ruling };
        }
        if let Some(nearest) = voices.allowed.first().copied() {
            return self.allowed_by(segment, kind, nearest, voices.allowed);
        }
        if let Some(records) = self.reserved.answer(reserved, name, kind) {
            let why = self.reserved.entry(reserved).told.text.clone();
            return Ruling::Answered(Own { reason: Reason::Special, records, why });
        }
        let overruled = Some(self.voices(found, case, name, kind, Bar::None).allowed);
        if let Some(rule) = voices.other_types {
            if kind == RecordType::ANY {
                return Ruling::Answered(Own::any(name));
            }
            let (rule, reason) = (Some(rule), Reason::Type);
            return Ruling::Refused { rule, reason, shown: Shown::NoData, reserved: None, overruled };
        }
        // RFC 8020 as below; a zone that nobody serves leads nowhere, whatever a rule says.
        let leads_on = found.leads_on(segment) && (bar != Bar::All || self.reserved.sites.lie_below(name));
        let shown = if leads_on { Shown::NoData } else { Shown::NxDomain };
        let ruling =
            Ruling::Refused { rule: None, reason: Reason::Special, shown, reserved: Some(reserved), overruled };
        if bar == Bar::All { ruling.never_passes() } else { ruling }
    }

    /// Why a CNAME may not lead to this name: the deny rule that is the nearest to it, or the bypass list.
    pub(super) fn condemns(&self, case: Case, name: &[u8]) -> Option<Condemned<'_>> {
        let found = self.find(name);
        let bypass = |(_, index): &(Bar, ReservedIndex)| matches!(self.reserved.entry(*index).what, What::Bypass);
        let bar = self.reserved.bar(&found, case.segment, name, RecordType::A).filter(bypass);
        let voices = self.voices(&found, case, name, RecordType::A, bar.map_or(Bar::None, |(bar, _)| bar));
        let opened = !voices.allowed.is_empty() || voices.other_types.is_some();
        let barred = bar.filter(|_| !opened).map(|(_, index)| Condemned::Barred(&self.reserved.entry(index).told.text));
        voices.denied.map(Condemned::Rule).or(barred)
    }

    fn voices(&self, found: &Found<'_>, case: Case, name: &[u8], kind: RecordType, bar: Bar) -> Voices {
        let mut denied: Option<(u16, RuleIndex)> = None;
        let mut wholly = false;
        let mut allowed: SmallVec<[(u16, RuleIndex); 4]> = SmallVec::new();
        let mut other_types: Option<(u16, RuleIndex)> = None;
        for hit in found.hits(&self.rules, case.segment) {
            let rule = self.rule(hit.rule);
            if !rule.is_heard(&case) || rule.except.contains(name) {
                continue;
            }
            let near = (hit.rank, hit.rule);
            let nearer = |known: Option<(u16, RuleIndex)>| Some(known.map_or(near, |known| known.min(near)));
            match rule.action {
                Action::Deny => {
                    wholly |= hit.whole && rule.except.is_empty();
                    denied = nearer(denied);
                }
                // The rank of an exact name is 0.
                Action::Allow if !bar.lets_through(hit.rank == 0) => {}
                Action::Allow if rule.types.contains(&kind) => allowed.push(near),
                Action::Allow => other_types = nearer(other_types),
            }
        }
        allowed.sort_unstable();
        let mut rules = Rules::new();
        for (_, rule) in allowed {
            if !rules.contains(&rule) {
                rules.push(rule);
            }
        }
        let rule = |near: Option<(u16, RuleIndex)>| near.map(|(_, rule)| rule);
        Voices { denied: rule(denied), wholly, allowed: rules, other_types: rule(other_types) }
    }

    pub(super) fn filters_aaaa(&self, segment: SegmentIndex) -> bool {
        self.segments.get(segment.0 as usize).is_some_and(|segment| segment.filter_aaaa)
    }

    fn refusal_of(&self, segment: SegmentIndex) -> Shown {
        self.segments.get(segment.0 as usize).map_or(Shown::NxDomain, |segment| segment.refusal)
    }

    /// What a client sees of a refused name. RFC 8020 §2: NXDOMAIN "means that there is nothing underneath", so it is
    /// never said where this segment may ask something below.
    fn shown(&self, found: &Found<'_>, segment: SegmentIndex, name: &[u8]) -> Shown {
        let leads_on = |hit: Hit| {
            let rule = self.rule(hit.rule);
            hit.whole && rule.action == Action::Allow && !rule.except.covers(name)
        };
        if found.leads_on(segment) || found.hits(&self.rules, segment).any(leads_on) {
            Shown::NoData
        } else {
            self.refusal_of(segment)
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::policy::testing::{NOW, asker, name, policy, policy_with, verdict};
    use crate::policy::{Forwarder, Identity, Policy, Refusal, Settings, Shown, Verdict, decide};
    use crate::record::RecordType;
    use crate::time::Wall;

    const TEXT: &str = r#"
[[segment]]
name    = "shop"
clients = ["192.0.2.0/24"]
tags    = { environment = "production", risk = "high" }
[[segment]]
name    = "till"
clients = ["192.0.2.128/25"]
refusal = "refused"
tags    = { environment = "production", risk = "low" }
[[segment]]
name    = "lab"
clients = ["198.51.100.0/24", "2001:db8::/32"]
mode    = "observe"
until   = 2002-01-01T00:00:00Z

[[rule]]
id       = "exact"
action   = "allow"
segments = ["shop"]
names    = ["api.example.com", "deep.a.b.example.org"]
types    = ["A", "TXT"]
[[rule]]
id       = "a-many"
action   = "allow"
segments = ["shop"]
names    = ["**.example.com"]
except   = ["legacy.example.com", "**.legacy.example.com", "lone.example.com"]
[[rule]]
id       = "one"
action   = "allow"
segments = ["*"]
names    = ["*.example.com"]
[[rule]]
id       = "glob"
action   = "allow"
segments = ["shop"]
names    = ["ap*.example.com"]
[[rule]]
id       = "no-ads"
action   = "deny"
segments = ["*"]
names    = ["ads.example.com", "**.bad.example.com"]
except   = ["fine.bad.example.com"]
[[rule]]
id       = "no-trackers"
action   = "deny"
where    = { environment = "production", risk = ["high", "medium"] }
names    = ["**.track.example.com"]
"#;

    #[test]
    fn says_what_the_rules_say() {
        let policy = policy(TEXT);
        let rows = [
            ("192.0.2.1", "api.example.com", RecordType::A, "permit exact glob one a-many"),
            ("192.0.2.1", "api.example.com", RecordType::AAAA, "permit glob one a-many"),
            ("192.0.2.1", "api.example.com", RecordType::TXT, "permit exact"),
            ("192.0.2.1", "api.example.com", RecordType::MX, "type NoData exact"),
            ("192.0.2.1", "api.example.com", RecordType::HTTPS, "type NoData exact"),
            ("192.0.2.1", "api.example.com", RecordType::ANY, "local answered 1"),
            ("192.0.2.1", "b.a.example.com", RecordType::A, "permit a-many"),
            ("192.0.2.1", "legacy.example.com", RecordType::A, "permit one"),
            ("192.0.2.1", "x.legacy.example.com", RecordType::A, "default NxDomain"),
            ("192.0.2.1", "example.com", RecordType::A, "default NoData"),
            ("192.0.2.1", "com", RecordType::A, "default NoData"),
            ("192.0.2.1", ".", RecordType::A, "default NoData"),
            ("192.0.2.1", "example.org", RecordType::A, "default NoData"),
            ("192.0.2.1", "a.b.example.org", RecordType::A, "default NoData"),
            ("192.0.2.1", "x.deep.a.b.example.org", RecordType::A, "default NxDomain"),
            ("192.0.2.1", "ads.example.com", RecordType::A, "rule NoData no-ads"),
            ("192.0.2.1", "x.bad.example.com", RecordType::A, "rule NoData no-ads"),
            ("192.0.2.1", "fine.bad.example.com", RecordType::A, "permit a-many"),
            ("192.0.2.1", "x.track.example.com", RecordType::TXT, "rule NxDomain no-trackers"),
            // The longest prefix names the segment; what another segment may ask is no hint to this one.
            ("192.0.2.200", "track.example.com", RecordType::A, "permit one"),
            ("192.0.2.200", "x.track.example.com", RecordType::A, "default Refused"),
            ("192.0.2.200", "a.b.example.org", RecordType::A, "default Refused"),
            ("192.0.2.200", "example.com", RecordType::A, "default NoData"),
            ("192.0.2.200", "ads.example.com", RecordType::A, "rule Refused no-ads"),
        ];
        for (client, asked, kind, expected) in rows {
            assert_eq!(verdict(&policy, client, asked, kind, NOW), expected, "{client} {asked} {kind}");
        }
    }

    #[test]
    fn an_observing_segment_lets_refusals_pass_until_its_end() {
        let policy = policy(TEXT);
        let end = Wall(1_009_843_200_000_000);
        assert_eq!(policy.next_change(NOW), Some(end));
        assert_eq!(policy.next_change(end), None);
        let observes = |now| policy.layout(now).segments.iter().map(|segment| segment.observe).collect::<Vec<_>>();
        assert_eq!(observes(NOW), [true, false, false]);
        assert_eq!(observes(end), [false, false, false]);
        let ends = |now| policy.layout(now).segments.into_iter().flat_map(|segment| segment.ends).collect::<Vec<_>>();
        assert_eq!((ends(NOW), ends(end)), (vec![(None, end)], vec![]));
        let rows = [
            ("x.example.com", RecordType::A, "permit one", "permit one"),
            ("x.example.com", RecordType::TXT, "observe type one", "type NoData one"),
            ("ads.example.com", RecordType::A, "observe rule no-ads", "rule NxDomain no-ads"),
            ("example.net", RecordType::A, "observe default", "default NxDomain"),
            ("example.net", RecordType::AXFR, "default NxDomain", "default NxDomain"),
            ("x.example.com", RecordType::ANY, "local answered 1", "local answered 1"),
            ("example.net", RecordType::ANY, "default NxDomain", "default NxDomain"),
        ];
        for (asked, kind, before, after) in rows {
            assert_eq!(verdict(&policy, "2001:db8::1", asked, kind, NOW), before, "{asked} {kind} before");
            assert_eq!(verdict(&policy, "2001:db8::1", asked, kind, end), after, "{asked} {kind} after");
        }
    }

    #[test]
    fn a_segment_without_ipv6_is_told_no_aaaa() {
        let policy = policy(&TEXT.replace("clients =", "filter_aaaa = true\nclients ="));
        let rows = [
            ("192.0.2.1", "x.example.com", RecordType::A, "permit one a-many"),
            ("192.0.2.1", "x.example.com", RecordType::AAAA, "family NoData one"),
            ("192.0.2.1", "deep.a.b.example.org", RecordType::AAAA, "type NoData exact"),
            ("192.0.2.1", "ads.example.com", RecordType::AAAA, "rule NoData no-ads"),
            ("192.0.2.1", "example.net", RecordType::AAAA, "default NxDomain"),
            // To observe makes no IPv6 where there is none; and a name that resolves is not said to be gone.
            ("198.51.100.1", "x.example.com", RecordType::AAAA, "family NoData one"),
            ("198.51.100.1", "ads.example.com", RecordType::AAAA, "family NoData no-ads"),
            ("198.51.100.1", "example.net", RecordType::AAAA, "family NoData"),
            ("198.51.100.1", "example.net", RecordType::A, "observe default"),
        ];
        for (client, asked, kind, expected) in rows {
            assert_eq!(verdict(&policy, client, asked, kind, NOW), expected, "{client} {asked} {kind}");
        }
        let asker = asker(&policy, "192.0.2.1");
        let verdict = decide(&policy, asker, name("x.example.com").as_wire(), RecordType::AAAA, NOW);
        let Verdict::Refuse(refusal) = verdict else { panic!("{verdict:?}") };
        assert_eq!(told(&policy, &refusal), (17, "segment shop filters AAAA"));
    }

    #[test]
    fn refuses_a_name_that_is_not_canonical() {
        let policy = policy(TEXT);
        let asker = asker(&policy, "192.0.2.1");
        for bytes in [b"\x03ADS\x07example\x03com\0".as_slice(), b"\x03api\x07example\x03com"] {
            assert!(matches!(decide(&policy, asker, bytes, RecordType::A, NOW), Verdict::Refuse(_)), "{bytes:?}");
        }
    }

    #[test]
    fn a_forwarder_asks_for_its_segment() {
        let text = "[[segment]]\nname = \"cluster\"\nscope = \"segment\"\nclients = [\"203.0.113.0/24\"]\n";
        let place = crate::document::Place { file: "outgate.toml".into(), line: 1, column: 1 };
        let forwarder = Forwarder {
            name: "coredns".to_owned(),
            addresses: vec!["192.0.2.53/32".parse().unwrap()],
            identity: Identity::None,
            segment: Some("cluster".to_owned()),
            place,
        };
        let policy = policy_with(text, &Settings { forwarders: vec![forwarder], ..Settings::default() });
        let through = asker(&policy, "::ffff:192.0.2.53");
        assert_eq!(policy.forwarder(through).map(AsRef::as_ref), Some("coredns"));
        assert_eq!(policy.forwarder(asker(&policy, "203.0.113.9")), None);
        assert!(policy.asker("192.0.2.54".parse().unwrap()).is_none());
        let Verdict::Refuse(refusal) = decide(&policy, through, name("x.example").as_wire(), RecordType::A, NOW) else {
            panic!("nothing is allowed");
        };
        let reason = super::Reason::Default;
        let expected = Refusal { asker: through, rule: None, reason, shown: Shown::NxDomain, reserved: None };
        assert_eq!(refusal, expected);
        assert_eq!(told(&policy, &refusal), (15, "no rule allows this name for segment cluster"));
    }

    fn told<'a>(policy: &'a Policy, refusal: &Refusal) -> (u16, &'a str) {
        let error = policy.describe(refusal);
        (error.code, &error.text)
    }

    #[test]
    fn a_refused_client_is_told_why() {
        let policy = policy(TEXT);
        let refused = |client: &str, wire: &[u8], kind| match decide(&policy, asker(&policy, client), wire, kind, NOW) {
            Verdict::Refuse(refusal) => refusal,
            other => panic!("{other:?}"),
        };
        let rows = [
            ("192.0.2.1", "ads.example.com", RecordType::A, "denied by rule no-ads"),
            ("192.0.2.1", "api.example.com", RecordType::MX, "rule exact does not allow this type"),
            ("192.0.2.1", "example.net", RecordType::A, "no rule allows this name for segment shop"),
            ("192.0.2.200", "example.net", RecordType::A, "no rule allows this name for segment till"),
        ];
        for (client, asked, kind, expected) in rows {
            let refusal = refused(client, name(asked).as_wire(), kind);
            assert_eq!(told(&policy, &refusal), (15, expected), "{asked}");
        }
        let malformed = refused("192.0.2.1", b"\x03ADS\x07example\x03com\0", RecordType::A);
        assert_eq!(told(&policy, &malformed), (15, "this is not a name"));
        let stranger = policy.describe_no_segment(false);
        assert_eq!((stranger.code, &*stranger.text), (18, "this client is in no segment"));
    }

    #[test]
    fn matching_lists_allow_and_deny_the_most_specific_first() {
        let policy = policy(TEXT);
        let matching = |client: &str, asked: &str| {
            let rules = policy.matching(asker(&policy, client), name(asked).as_wire());
            rules.into_iter().map(|rule| policy.rule_id(rule).to_string()).collect::<Vec<_>>()
        };
        assert_eq!(matching("192.0.2.1", "ads.example.com"), ["no-ads", "one", "a-many"]);
        assert_eq!(matching("192.0.2.1", "x.bad.example.com"), ["no-ads", "a-many"]);
        assert_eq!(matching("192.0.2.200", "ads.example.com"), ["no-ads", "one"]);
        assert!(matching("192.0.2.1", "example.net").is_empty());
    }
}
