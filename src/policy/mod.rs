//! Policy: text → rules → index, and the three questions put to it: [`Policy::asker`] (who is this),
//! [`decide()`] (may this be resolved), [`inspect()`] (may these addresses be opened).
//!
//! Pure: takes text and values, returns values; opens no file, reads no clock.
//!
//! - Unmatched is denied. A deny that names a name wins; otherwise allows add up. The order of files never matters.
//! - Names that are not left to the rules alone (`reserved`) are decided in the same place as all others.
//! - `openings ⊆ answer ⊆ allowed`: what is opened is told, what is told passed the guard and a rule.
//! - [`opine`] says of a policy that is not in force what [`decide()`] would.
//! - [`Policy::upholds`] asks the same functions again, so a grant and its re-decision cannot disagree.

mod ageing;
mod allowances;
mod asker;
mod cases;
mod compare;
mod decide;
mod demand;
mod explain;
mod group;
mod guard;
mod index;
mod inspect;
mod link;
mod load;
mod names;
mod opened;
mod opinion;
mod overlap;
mod pattern;
mod patterns;
#[cfg(test)]
mod properties;
mod reserved;
mod resolvers;
mod rule;
mod runtime;
mod segment;
mod sites;
mod special;
#[cfg(test)]
mod testing;
mod verdict;
mod vet;
mod warm;
mod wide;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::fast::RandomState;

pub use self::guard::NeverGranted;
use crate::document::Warning;
use crate::net::{Prefix, PrefixMap, SegmentId, Services};
use crate::time::Wall;
pub use allowances::{Allowance, Allowances};
pub use asker::{Asker, Forwarder, Identity};
pub use cases::{Case, Tried, read_cases};
pub use compare::{
    Change, Comparison, Listed, Moved, NameChange, NetworkChange, NetworkWord, SegmentChange, Summary, Word, compare,
    compare_question,
};
pub use decide::decide;
pub use demand::Caps;
pub use explain::Voice;
pub use inspect::inspect;
pub use load::{Settings, Source, compile, revision_of};
pub use opinion::{Dissent, Judged, Opinion, Standing, judge, opine};
pub use pattern::Pattern;
pub use rule::{Action, Https, MAX_HOLD, Rule};
use runtime::{Placed, Rules};
pub use runtime::{Placement, Runtime};
pub use segment::{GrantScope, Segment};
pub use sites::{Server, Site};
pub use verdict::{
    Basis, Cleared, Opening, Own, Permit, Reason, Refusal, ReservedIndex, RuleIndex, Said, SegmentIndex, Shown,
    Verdict, Withheld,
};
pub use vet::{Objection, Vetter, is_id, registrable};
pub use warm::{Warm, decide_warm};

/// A compiled policy: immutable, numbered, shared. Made by [`compile`].
///
/// What is read from files is shared by every policy that [`Policy::with`] makes of it.
#[derive(Clone, Debug)]
pub struct Policy {
    revision: u64,
    /// In order of name.
    segments: Arc<[Segment]>,
    /// The same without what was laid over them.
    filed: Arc<[Segment]>,
    rules: Rules,
    directory: Arc<asker::Directory>,
    index: Arc<index::Index>,
    reserved: Arc<reserved::Reserved>,
    guard: Arc<guard::Guard>,
    /// The deny rules for networks.
    denials: Vec<RuleIndex>,
    /// What those of them that have no end close.
    denied: Arc<PrefixMap<RuleIndex>>,
    sentences: Arc<explain::Sentences>,
    warnings: Arc<[Warning]>,
    /// Clients that were placed while the node runs.
    placed: HashMap<IpAddr, Placed, RandomState>,
    /// The names of the rules that were made while the node runs.
    later: Option<Arc<index::Index>>,
}

/// What the firewalls must know of a policy besides grants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Every segment, sorted by name.
    pub segments: Vec<SegmentLayout>,
    /// What is closed to everybody, whatever else is open (deny rules for `networks`); sorted.
    pub denied: Vec<Prefix>,
}

/// One segment as a firewall sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentLayout {
    /// The segment's number.
    pub id: SegmentId,
    /// Its name, `[A-Za-z0-9_.-]`, at most 63 characters; in log prefixes.
    pub name: Arc<str>,
    /// Everything passes and is logged.
    pub observe: bool,
    /// Where its flows come from. Prefixes of different segments may nest: the longest wins.
    pub sources: Vec<Prefix>,
    /// Static rules for addresses (`networks` rules).
    pub networks: Vec<(Prefix, Services)>,
    /// What of this ends by itself, and when: a static rule; or, without one, that everything passes.
    pub ends: Vec<(Option<(Prefix, Services)>, Wall)>,
}

impl Policy {
    /// 64 bits that differ where the name or the text of a file differs: the `policy` of a record.
    #[must_use]
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    /// The segment of an asker of this policy.
    #[must_use]
    pub fn segment(&self, asker: Asker) -> &Segment {
        #[expect(clippy::indexing_slicing, reason = "an Asker is made by its own policy from its own table")]
        &self.segments[asker.segment.0 as usize]
    }

    /// Every segment, in order of name.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The place of the segment of this name.
    fn place_of(&self, segment: &str) -> Option<SegmentIndex> {
        let place = self.segments.binary_search_by(|known| (*known.name).cmp(segment)).ok()?;
        u32::try_from(place).ok().map(SegmentIndex)
    }

    /// A rule.
    #[must_use]
    pub fn rule(&self, rule: RuleIndex) -> &Rule {
        self.rules.of(rule)
    }

    /// A rule's id.
    #[must_use]
    pub fn rule_id(&self, rule: RuleIndex) -> &Arc<str> {
        &self.rule(rule).id
    }

    /// True where a rule is for single clients: of one segment, not all are decided alike.
    #[must_use]
    pub fn tells_clients_apart(&self) -> bool {
        self.rules.iter().any(|rule| !rule.clients.is_empty())
    }

    /// Every rule.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter()
    }

    /// How many rules.
    #[must_use]
    pub fn rules_len(&self) -> usize {
        self.rules.len()
    }

    /// What is no mistake and yet worth a look, by place.
    #[must_use]
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// What the firewalls must know at this time; it changes at [`Policy::next_change`].
    #[must_use]
    pub fn layout(&self, now: Wall) -> Layout {
        let segments = self.segments.iter().map(|segment| SegmentLayout {
            id: segment.id,
            name: Arc::clone(&segment.name),
            observe: segment.observes(now),
            sources: segment.sources.clone(),
            networks: segment.open_networks(now),
            ends: segment.ends(now),
        });
        let mut denied: Vec<Prefix> = self.denying(now).flat_map(|(_, rule)| &rule.networks).copied().collect();
        denied.sort_unstable();
        denied.dedup();
        Layout { segments: segments.collect(), denied }
    }

    /// The next moment after `now` at which a segment begins to enforce, or a rule ends.
    #[must_use]
    pub fn next_change(&self, now: Wall) -> Option<Wall> {
        let segments = self.segments.iter().filter_map(|segment| segment.observe_until);
        let rules = self.rules.iter().filter_map(|rule| rule.expires);
        segments.chain(rules).filter(|end| *end > now).min()
    }

    fn find(&self, name: &[u8]) -> index::Found<'_> {
        self.index.find(self.later.as_deref(), name)
    }

    /// The deny rules for networks that count now.
    fn denying(&self, now: Wall) -> impl Iterator<Item = (RuleIndex, &Rule)> {
        let rules = self.denials.iter().map(|rule| (*rule, self.rule(*rule)));
        rules.filter(move |(_, rule)| rule.lives(now))
    }

    /// The deny rule for networks that closes this address now.
    fn denies_address(&self, address: IpAddr, now: Wall) -> Option<RuleIndex> {
        let holds = |(_, rule): &(RuleIndex, &Rule)| rule.networks.iter().any(|prefix| prefix.contains(&address));
        let ending = self.denying(now).filter(|(_, rule)| rule.expires.is_some());
        // Those without an end may be many.
        self.denied.longest(address).copied().or_else(|| ending.into_iter().find(holds).map(|(rule, _)| rule))
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{NOW, asker, policy};
    use super::*;

    #[test]
    fn a_layout_holds_sources_and_static_rules_in_order() {
        let policy = policy(
            r#"
[[segment]]
name    = "office"
clients = ["192.0.2.0/24", "2001:db8::7"]
scope   = "segment"
connects_from = ["client", "198.51.100.1"]
[[segment]]
name    = "branch"
clients = ["203.0.113.0/24"]
connects_from = ["198.51.100.2"]
[[rule]]
id       = "partner"
action   = "allow"
segments = ["office"]
networks = ["192.88.98.0/24"]
ports    = ["tcp/22", "icmp"]
owner    = "platform"
ticket   = "NET-7"
[[rule]]
id       = "time"
action   = "allow"
segments = ["*"]
networks = ["192.88.97.1"]
ports    = ["udp/123"]
[[rule]]
id       = "pages"
action   = "allow"
segments = ["branch"]
names    = ["*.github.io"]
allow_tenant_wildcard = true
"#,
        );
        let written = |layout: &SegmentLayout| {
            let sources = layout.sources.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
            let networks = layout.networks.iter().map(|(to, ports)| format!("{to} {ports}")).collect::<Vec<_>>();
            format!("{}: {sources} | {}", layout.name, networks.join(", "))
        };
        let lines: Vec<_> = policy.layout(NOW).segments.iter().map(written).collect();
        assert_eq!(
            lines,
            [
                "branch: 198.51.100.2/32 | 192.88.97.1/32 udp/123",
                "office: 192.0.2.0/24 198.51.100.1/32 2001:db8::7/128 | 192.88.97.1/32 udp/123, \
                 192.88.98.0/24 tcp/22, 192.88.98.0/24 icmp",
            ]
        );
        let branch = policy.segment(asker(&policy, "203.0.113.1"));
        assert_eq!((branch.scope, branch.id), (GrantScope::Segment, SegmentId::of("branch")));
        let partner = policy.rule(RuleIndex(1));
        assert_eq!((&*partner.id, partner.owner.as_deref(), partner.place.line), ("partner", Some("platform"), 11));
        assert_eq!(partner.ticket.as_deref(), Some("NET-7"));
    }

    #[test]
    fn what_several_rules_open_ends_with_the_last_of_them() {
        let rule = |id: &str, ports: &str, expires: &str| {
            format!(
                "[[rule]]\nid = \"{id}\"\naction = \"allow\"\nsegments = [\"*\"]\nnetworks = [\"192.88.98.0/24\"]\n\
                 ports = [\"{ports}\"]\n{expires}\n"
            )
        };
        let policy = policy(
            &[
                "[[segment]]\nname = \"office\"\nclients = [\"192.0.2.0/24\"]\n".to_owned(),
                rule("one", "tcp/22", "expires = 2001-10-01T00:00:00Z"),
                rule("two", "tcp/22", "expires = 2001-11-01T00:00:00Z"),
                rule("three", "tcp/23", "expires = 2001-11-01T00:00:00Z"),
                rule("four", "tcp/23", ""),
                rule("over", "tcp/24", "expires = 2001-09-01T00:00:00Z"),
            ]
            .concat(),
        );
        let segment = policy.layout(NOW).segments.remove(0);
        assert_eq!(segment.networks.len(), 2);
        assert_eq!(segment.ends, [(Some(segment.networks[0]), Wall::from_civil(2001, 11, 1, 0))]);
    }
}
