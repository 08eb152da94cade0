//! Linking: the checks that look across files, and what one part says by name of another.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroU32;
use std::sync::Arc;

use super::asker::{Directory, Forwarder, Identity, Relay};
use super::guard::{Guard, Row};
use super::index::Audience;
use super::load::{Placed, number};
use super::reserved::{Entry, Reserved};
use super::rule::{Action, RUNTIME, Rule, RuleDraft};
use super::segment::{GrantScope, Segment, SegmentDraft};
use super::verdict::{RuleIndex, SegmentIndex};
use crate::document::{Mistake, Place, Warning, WarningKind};
use crate::net::Prefix;

/// The segments as rules choose them.
pub(super) struct Choices<'a> {
    by_name: HashMap<&'a str, SegmentIndex>,
    by_tag: HashMap<(&'a str, &'a str), Vec<SegmentIndex>>,
    /// Rules that say the same of their segments share the list.
    lists: HashSet<Arc<[SegmentIndex]>>,
}

impl<'a> Choices<'a> {
    pub(super) fn new(segments: &'a [Segment]) -> Self {
        let mut choices = Self { by_name: HashMap::new(), by_tag: HashMap::new(), lists: HashSet::new() };
        for (index, segment) in segments.iter().enumerate() {
            let index = number(index, SegmentIndex);
            choices.by_name.insert(&segment.name, index);
            for (key, value) in &segment.tags {
                choices.by_tag.entry((key, value)).or_default().push(index);
            }
        }
        choices
    }

    /// Takes out the segments of a rule that there are not, unless none of them is there.
    pub(super) fn forget_unknown(&self, draft: &mut RuleDraft) {
        let is_known = |name: &Placed<String>| name.value == "*" || self.by_name.contains_key(name.value.as_str());
        if let Some(segments) = draft.segments.as_mut().filter(|segments| segments.iter().any(is_known)) {
            segments.retain(is_known);
        }
    }

    fn shared(&mut self, list: Vec<SegmentIndex>) -> Arc<[SegmentIndex]> {
        if let Some(known) = self.lists.get(list.as_slice()) {
            return Arc::clone(known);
        }
        let list: Arc<[SegmentIndex]> = list.into();
        self.lists.insert(Arc::clone(&list));
        list
    }
}

/// Collects what is wrong while it links.
pub(super) struct Linker {
    pub(super) guard: Arc<Guard>,
    /// Somebody's certificates are trusted.
    has_client_ca: bool,
    /// What is linked was made while the node runs.
    runtime: bool,
    pub(super) mistakes: Vec<Mistake>,
    pub(super) warnings: Vec<Warning>,
}

impl Linker {
    pub(super) const fn new(guard: Arc<Guard>, has_client_ca: bool, runtime: bool) -> Self {
        Self { guard, has_client_ca, runtime, mistakes: Vec::new(), warnings: Vec::new() }
    }

    fn mistake(&mut self, place: &Place, fact: String, remedy: &str) {
        self.mistakes.push(Mistake::at(place.clone(), fact, remedy));
    }

    /// Segments in order of name, and whose the clients, flows and certificates are.
    pub(super) fn link_segments(&mut self, mut drafts: Vec<SegmentDraft>) -> (Vec<Segment>, Directory) {
        drafts.sort_by(|a, b| (&a.segment.name, &a.segment.place).cmp(&(&b.segment.name, &b.segment.place)));
        let mut segments: Vec<Segment> = Vec::with_capacity(drafts.len());
        let mut ids: HashMap<u32, usize> = HashMap::new();
        let mut directory = Directory::default();
        let mut shown: HashMap<Arc<str>, (SegmentIndex, Place)> = HashMap::new();
        let mut owners: [HashMap<Prefix, (Arc<str>, Place)>; 2] = [HashMap::new(), HashMap::new()];
        for draft in drafts {
            let segment = draft.segment;
            if let Some(first) = segments.last().filter(|last| last.name == segment.name) {
                let fact = format!("the segment {} is defined already, at {}", segment.name, first.place);
                self.mistake(&segment.place, fact, "rename one");
                continue;
            }
            if let Some(first) = ids.insert(segment.id.0, segments.len()).and_then(|at| segments.get(at)) {
                let fact = format!(
                    "the names {} and {} ({}) share the number {:?} in the kernel",
                    segment.name, first.name, first.place, segment.id
                );
                self.mistake(&segment.place, fact, "rename one");
            }
            let [askers, sources] = &mut owners;
            for (prefixes, owners) in [(&draft.clients, askers), (&draft.sources, sources)] {
                for prefix in prefixes {
                    let own = (Arc::clone(&segment.name), prefix.place.clone());
                    match owners.get(&prefix.value) {
                        Some((owner, first)) if *owner != segment.name => {
                            let fact = format!("{} belongs to the segment {owner} already, at {first}", prefix.value);
                            self.mistake(&prefix.place, fact, "leave it to one segment");
                        }
                        _ => drop(owners.insert(prefix.value, own)),
                    }
                }
            }
            let index = number(segments.len(), SegmentIndex);
            for prefix in &draft.clients {
                directory.clients.insert(prefix.value, index);
            }
            for prefix in &draft.sources {
                directory.sources.insert(prefix.value, index);
            }
            for Placed { value, place } in draft.certificates {
                match shown.insert(Arc::clone(&value), (index, place.clone())) {
                    Some((other, first)) if other != index => {
                        let fact = format!("certificates of {value} name a segment already, at {first}");
                        self.mistake(&place, fact, "leave it to one segment");
                    }
                    Some(_) => {}
                    None => {
                        directory.names.push(Arc::clone(&value));
                        directory.certificates.insert(value, (None, index));
                        if !self.has_client_ca {
                            let fact = "a certificate names this segment, and `client_ca` of [tls] trusts nobody's";
                            self.warnings.push(Warning::at(
                                WarningKind::NoAuthority,
                                place,
                                fact,
                                "name the authority's file there",
                            ));
                        }
                    }
                }
            }
            segments.push(segment);
        }
        (segments, directory)
    }

    /// Rules in order of id, and where the rule of each draft's number is among them.
    pub(super) fn link_rules(
        &mut self,
        mut drafts: Vec<RuleDraft>,
        segments: &[Segment],
        choices: &mut Choices<'_>,
    ) -> (Vec<Rule>, HashMap<u32, RuleIndex>) {
        drafts.sort_by(|a, b| (&a.rule.id, &a.rule.place).cmp(&(&b.rule.id, &b.rule.place)));
        let mut rules: Vec<Rule> = Vec::with_capacity(drafts.len());
        let mut numbers = HashMap::with_capacity(drafts.len());
        for draft in drafts {
            if let Some(first) = rules.last().filter(|last| last.id == draft.rule.id) {
                let fact = format!("the rule {} is defined already, at {}", first.id, first.place);
                self.mistake(&draft.rule.place, fact, "give one of them another id");
                continue;
            }
            if draft.rule.id.starts_with(RUNTIME) != self.runtime {
                let id = &draft.rule.id;
                let (fact, remedy) = match self.runtime {
                    true => (format!("the id {id} is one of rules that files have"), "let it begin with runtime-"),
                    false => {
                        (format!("the id {id} is one of rules that are made while the node runs"), "give it another id")
                    }
                };
                self.mistake(&draft.rule.place, fact, remedy);
            }
            self.check_private(&draft);
            let audience = self.choose(&draft, choices, segments);
            self.check_audience(&draft, &audience, segments);
            numbers.insert(draft.number, number(rules.len(), RuleIndex));
            rules.push(Rule { audience, ..draft.rule });
        }
        (rules, numbers)
    }

    /// The segments that a rule is for.
    fn choose(&mut self, draft: &RuleDraft, choices: &mut Choices<'_>, segments: &[Segment]) -> Audience {
        if self.runtime && draft.rule.action == Action::Deny && !draft.rule.clients.is_empty() {
            // Wherever they are: but for segments that share replies, where nothing is said to single clients.
            let alone =
                (0..).map(SegmentIndex).zip(segments).filter(|(_, segment)| segment.scope == GrantScope::Client);
            return Audience::Listed(choices.shared(alone.map(|(index, _)| index).collect()));
        }
        let mut unknown = false;
        let mut listed: Option<Vec<SegmentIndex>> = None;
        if let Some(wanted) = draft.segments.as_ref().filter(|wanted| !wanted.iter().any(|name| name.value == "*")) {
            let known = listed.insert(Vec::new());
            for name in wanted {
                match choices.by_name.get(name.value.as_str()) {
                    Some(index) => known.push(*index),
                    None => {
                        unknown = true;
                        let fact = format!("no segment is named \"{}\"", name.value);
                        self.mistake(&name.place, fact, "name a segment, or \"*\" for all");
                    }
                }
            }
        }
        if let Some(tags) = &draft.tags {
            let mut chosen = listed.take();
            for (key, values) in tags {
                let tagged = values.iter().filter_map(|value| choices.by_tag.get(&(key.as_str(), value.as_str())));
                let mut tagged: Vec<SegmentIndex> = tagged.flatten().copied().collect();
                tagged.sort_unstable();
                match &mut chosen {
                    None => chosen = Some(tagged),
                    Some(chosen) => chosen.retain(|segment| tagged.binary_search(segment).is_ok()),
                }
            }
            listed = Some(chosen.unwrap_or_else(|| choices.by_name.values().copied().collect()));
        }
        let Some(mut listed) = listed else { return Audience::All };
        if listed.is_empty() && !unknown {
            let fact = format!("the rule {} is for no segment", draft.rule.id);
            self.mistake(&draft.choice, fact, "name a segment, or tags that a segment has");
        }
        listed.sort_unstable();
        listed.dedup();
        Audience::Listed(choices.shared(listed))
    }

    /// Where a segment shares what is opened it shares replies too, so nothing is said there to single clients. What is
    /// denied of networks is denied to all.
    fn check_audience(&mut self, draft: &RuleDraft, audience: &Audience, segments: &[Segment]) {
        let Rule { clients, networks, action, .. } = &draft.rule;
        let mut concerned = (0..).map(SegmentIndex).zip(segments).filter(|(index, _)| audience.contains(*index));
        if !clients.is_empty()
            && let Some((_, shared)) = concerned.find(|(_, segment)| segment.scope == GrantScope::Segment)
        {
            let fact = format!(
                "the rule {} is for single clients, and the segment {} ({}) opens for everyone in it",
                draft.rule.id, shared.name, shared.place
            );
            self.mistake(&draft.choice, fact, "leave that segment out, or remove `clients`");
        }
        if *action == Action::Deny && !networks.is_empty() && *audience != Audience::All {
            let fact = format!("the rule {} denies networks to some segments only", draft.rule.id);
            self.mistake(
                &draft.choice,
                fact,
                "write segments = [\"*\"]; what no rule allows is closed to the others already",
            );
        }
    }

    /// `private` never lifts what is never granted.
    fn check_private(&mut self, draft: &RuleDraft) {
        for private in &draft.private {
            let closed = |row: &&Row| !row.local || row.prefix.contains(&private.value);
            if let Some(row) = self.guard.never_within(private.value).find(closed) {
                let fact = format!("`private` {} would open what is never granted: {row}", private.value);
                let remedy = "write only the prefixes that are meant, without this one";
                self.mistakes.push(Mistake::at(private.place.clone(), fact, remedy));
            } else if let Some(row) = self.guard.never_within(private.value).next() {
                let fact = format!("`private` {} holds {}, {row}: that stays closed", private.value, row.prefix);
                let place = private.place.clone();
                self.warnings.push(Warning::at(WarningKind::Private, place, fact, "narrow it to silence this"));
            }
        }
    }

    /// Whose the clients are, and who asks for them.
    pub(super) fn link_forwarders(
        &mut self,
        forwarders: &[Forwarder],
        segments: &[Segment],
        mut directory: Directory,
    ) -> Directory {
        let mut names: HashMap<&str, &Place> = HashMap::new();
        let mut addresses: HashMap<Prefix, &Forwarder> = HashMap::new();
        for (index, forwarder) in forwarders.iter().enumerate() {
            let Forwarder { name, place, identity, .. } = forwarder;
            if let Some(first) = names.insert(name, place) {
                self.mistake(place, format!("the forwarder {name} is defined already, at {first}"), "rename one");
            }
            let found = forwarder.segment.as_ref().map(|wanted| {
                let at = segments.binary_search_by(|segment| (*segment.name).cmp(wanted.as_str())).ok();
                at.and_then(|at| Some((at, segments.get(at)?))).ok_or(wanted)
            });
            let found = match found.transpose() {
                Ok(found) => found,
                Err(wanted) => {
                    let fact =
                        format!("the forwarder {name} asks for the segment \"{wanted}\", which no policy file defines");
                    self.mistake(place, fact, "name a segment of the policy");
                    continue;
                }
            };
            if *identity == Identity::None
                && let Some((_, segment)) = found
                && segment.scope != GrantScope::Segment
            {
                let fact = format!(
                    "the forwarder {name} hides who asks, and the segment {} ({}) opens for who asks",
                    segment.name, segment.place
                );
                self.mistake(
                    place,
                    fact,
                    "write scope = \"segment\" in that segment, or let the forwarder say who asks: `identity`",
                );
            }
            for prefix in &forwarder.addresses {
                if let Some(first) = addresses.insert(prefix.trunc(), forwarder).filter(|first| first.name != *name) {
                    let fact = format!("{prefix} belongs to the forwarder {} already, at {}", first.name, first.place);
                    self.mistake(place, fact, "leave it to one forwarder");
                }
                let relay = Relay {
                    number: number(index, |index| NonZeroU32::MIN.checked_add(index)),
                    identity: *identity,
                    segment: found.map(|(at, _)| number(at, SegmentIndex)),
                };
                directory.forwarders.insert(*prefix, relay);
            }
            directory.subnets |= *identity == Identity::Subnet;
            directory.proxies |= *identity == Identity::Proxy;
        }
        let names = forwarders.iter().map(|forwarder| Arc::from(forwarder.name.as_str()));
        directory.names.splice(0..0, names);
        directory.forwarder_count = forwarders.len();
        let numbered = (1..).map_while(NonZeroU32::new).zip(&directory.names).skip(forwarders.len());
        for (place, name) in numbered {
            if let Some((voucher, _)) = directory.certificates.get_mut(name) {
                *voucher = Some(place);
            }
        }
        directory
    }

    /// What a rule allows of special-use names that nobody serves here is never opened.
    pub(super) fn warn_of_special_names(&mut self, drafts: &[RuleDraft], reserved: &Reserved) {
        for Placed { value: (name, index), place } in drafts.iter().flat_map(|draft| &draft.special) {
            let Entry { name: top, .. } = reserved.entry(*index);
            if !reserved.sites.concern(name, top) {
                let fact =
                    format!("{name} is allowed and stays refused: {top} is a special-use name, never asked upstream");
                let remedy =
                    format!("add a zone file for it, or an [[upstream]] with zones = [\"{top}\"]; or remove it");
                self.warnings.push(Warning::at(WarningKind::Special, place.clone(), fact, remedy));
            }
        }
    }

    pub(super) fn warn_of_idle_segments(&mut self, segments: &[Segment], rules: &[Rule]) {
        let mut named = HashSet::new();
        for rule in rules {
            match &rule.audience {
                Audience::All => return,
                Audience::Listed(listed) => named.extend(listed.iter().copied()),
            }
        }
        for (index, segment) in segments.iter().enumerate() {
            if !named.contains(&number(index, SegmentIndex)) {
                let fact = format!("no rule names the segment {}: everything is refused to it", segment.name);
                let place = segment.place.clone();
                self.warnings.push(Warning::at(
                    WarningKind::IdleSegment,
                    place,
                    fact,
                    "add a rule for it, or remove it",
                ));
            }
        }
    }
}
