//! What of a policy time changes by itself: rules that end, segments that begin to enforce.

use std::time::Duration;

use super::Policy;
use crate::document::{Warning, WarningKind};
use crate::time::Wall;

impl Policy {
    /// What has ended, and what ends within so long, the soonest first. Rules that were made while the node runs are meant
    /// to end, and are left out.
    #[must_use]
    pub fn ageing(&self, now: Wall, within: Duration) -> Vec<Warning> {
        let mut found: Vec<(Wall, Warning)> = Vec::new();
        let mut add = |end: Wall, warning: &dyn Fn() -> Warning| {
            if end.0.saturating_sub(now.0) <= u64::try_from(within.as_micros()).unwrap_or(u64::MAX) {
                found.push((end, warning()));
            }
        };
        for rule in self.rules.filed() {
            let Some(end) = rule.expires else { continue };
            add(end, &|| {
                let (when, id, place) = (end.seen_from(now), &rule.id, rule.place.clone());
                if end <= now {
                    let fact = format!("the rule {id} ended {when}");
                    Warning::at(WarningKind::Expired, place, fact, "remove it, or give it a later end")
                } else {
                    let fact = format!("the rule {id} ends {when}");
                    Warning::at(WarningKind::Expiring, place, fact, "give it a later end, or let it go")
                }
            });
        }
        for segment in self.filed.iter() {
            let Some(end) = segment.observe_until else { continue };
            add(end, &|| {
                let (when, name, place) = (end.seen_from(now), &segment.name, segment.place.clone());
                if end <= now {
                    let fact =
                        format!("the segment {name} was to observe until {end}, and enforces since then: {when}");
                    Warning::at(WarningKind::Enforcing, place, fact, "write mode = \"enforce\", without `until`")
                } else {
                    let fact = format!("the segment {name} begins to enforce {when}");
                    let remedy = "see `outgate log tail --verdict deny` for what it will refuse, or move `until`";
                    Warning::at(WarningKind::EnforcingSoon, place, fact, remedy)
                }
            });
        }
        found.sort();
        found.into_iter().map(|(_, warning)| warning).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::testing::policy;

    #[test]
    fn says_what_ended_and_what_ends_soon() {
        let policy = policy(
            r#"
[[segment]]
name  = "old"
mode  = "observe"
until = 2030-01-01T00:00:00Z
[[segment]]
name  = "new"
mode  = "observe"
until = 2030-01-20T00:00:00Z
[[rule]]
id = "gone"
action = "allow"
segments = ["*"]
names = ["a.example.com"]
expires = 2030-01-09T23:00:00Z
[[rule]]
id = "going"
action = "allow"
segments = ["*"]
names = ["b.example.com"]
expires = 2030-01-10T00:01:30Z
[[rule]]
id = "later"
action = "deny"
segments = ["*"]
names = ["c.example.com"]
expires = 2030-01-24T00:00:00Z
[[rule]]
id = "stays"
action = "allow"
segments = ["*"]
names = ["d.example.com"]
"#,
        );
        let now = Wall::from_civil(2030, 1, 10, 0);
        let days = |days: u64| Duration::from_secs(days * 86_400);
        let told = |within| {
            let ageing = policy.ageing(now, within).into_iter();
            ageing.map(|warning| format!("{}: {}", warning.kind.as_str(), warning.said.fact)).collect::<Vec<_>>()
        };
        let past = [
            "enforcing: the segment old was to observe until 2030-01-01T00:00:00.000000Z, and enforces since then: 9 days ago",
            "expired: the rule gone ended 60 minutes ago",
        ];
        assert_eq!(told(days(0)), past);
        assert_eq!(
            told(days(14)),
            [
                past[0],
                past[1],
                "expiring: the rule going ends in 90 seconds",
                "enforcing_soon: the segment new begins to enforce in 10 days",
                "expiring: the rule later ends in 14 days",
            ]
        );
    }
}
