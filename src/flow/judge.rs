//! Judging a flow: its class, the names it may have gone by, and why.

use std::cmp::Reverse;
use std::fmt::Write as _;

use smallvec::SmallVec;

use super::index::{Client, Index, Said, micros};
use super::interval::Span;
use super::track::Track;
use super::{Class, Detail, Flow, QueryId};
use crate::net::canonical;
use crate::time::Wall;

/// Names that a judgement lists.
const NAMES: usize = 8;

/// One name that a flow may have gone by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named<'a> {
    /// The name in presentation format.
    pub qname: &'a str,
    /// The rule's id; empty: none.
    pub rule: &'a str,
    /// The query that was told it.
    pub query: Option<QueryId>,
    /// When it was told, or opened.
    pub told: Wall,
    /// Until when it was open.
    pub until: Wall,
}

/// What a flow went out by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement<'a> {
    /// The class.
    pub class: Class,
    /// The same more exactly.
    pub detail: Option<Detail>,
    /// The client's segment, as far as it is known.
    pub segment: Option<&'a str>,
    /// The name, where the flow is exact, stale or to another service.
    pub name: Option<Named<'a>>,
    /// The names where it is ambiguous, the one told last first.
    pub names: Vec<Named<'a>>,
    /// Names beyond those.
    pub names_omitted: u64,
    /// Of a static flow: the rule, where there is one.
    pub rule: Option<&'a str>,
    /// The name that is denied to the client, and of which others were told the address; of `peer_name` the name that
    /// they were told it for.
    pub elsewhere: Option<&'a str>,
    /// How long after the end of what was told, of `cached` after the end of the grant, it began, in microseconds.
    pub late_us: Option<u64>,
    /// How long it lived on after the grant had ended, in microseconds.
    pub outlived_us: Option<u64>,
    /// How long before the name was denied, in microseconds.
    denied_us: Option<u64>,
    /// Open for the segment, not told to the client.
    wide: bool,
    /// The firewall refused it.
    denied: bool,
}

/// A candidate: the interval, and what of it is told.
struct Candidate {
    span: Span,
    name: u32,
    rule: u32,
    holds: bool,
    told: Wall,
    query: super::interval::Asked,
}

/// What the intervals of a track say of one flow.
#[derive(Default)]
struct Found {
    /// Open for this service, one for each name.
    open: SmallVec<[Candidate; 4]>,
    /// The last to end of those that ended before.
    ended: Option<Span>,
    /// The last to end of those that open other services.
    other: Option<Span>,
}

impl Index {
    /// Says what a flow went out by.
    #[must_use]
    pub fn judge<'a>(&'a self, flow: &Flow<'a>) -> Judgement<'a> {
        let client = self.clients.get(&canonical(flow.client));
        let own = client.map_or(u32::MAX, |client| client.segment);
        let segment = flow.segment.or_else(|| self.text_of(own));
        let mut judgement = Judgement {
            class: Class::Unknown,
            detail: None,
            segment,
            name: None,
            names: Vec::new(),
            names_omitted: 0,
            rule: None,
            elsewhere: None,
            late_us: None,
            outlived_us: None,
            denied_us: None,
            wide: false,
            denied: flow.denied,
        };
        let address = canonical(flow.address);
        if let Some(opening) = self.statics.find(segment, address, flow.carrier, flow.at) {
            judgement.class = Class::Static;
            judgement.rule = opening.rule.as_deref();
            return judgement;
        }
        let number = self.addresses.find(&address);
        let number_of_segment = flow.segment.map_or(Some(own), |segment| self.texts.find(segment));
        let wide = number_of_segment.and_then(|segment| self.wide.get(&segment));
        let mut told = self.found(client.map(|client| &client.track), number, flow);
        let mut opened = Found::default();
        if told.open.is_empty() {
            opened = self.found(wide, number, flow);
            judgement.wide = !opened.open.is_empty();
        }
        let open = if judgement.wide { &mut opened.open } else { &mut told.open };
        if !open.is_empty() {
            self.by_names(&mut judgement, open, flow);
            return judgement;
        }
        let later = |one: Option<Span>, other: Option<Span>| one.into_iter().chain(other).max_by_key(|span| span.open);
        (judgement.class, judgement.detail) = match (later(told.ended, opened.ended), later(told.other, opened.other)) {
            _ if !flow.started => (Class::Unknown, Some(Detail::Start)),
            (Some(span), _) => self.cached(&mut judgement, client, &span, flow),
            (None, other) => {
                self.without(&mut judgement, client, other, number, flow, [client.map(|client| &client.track), wide])
            }
        };
        judgement
    }

    /// What a track has for this flow.
    fn found(&self, track: Option<&Track>, address: Option<u32>, flow: &Flow<'_>) -> Found {
        let mut found = Found::default();
        let (Some(track), Some(address)) = (track, address) else { return found };
        let (at, error) = (flow.at.0, micros(flow.error));
        let begin = at.saturating_sub(micros(self.limits.lookback));
        for span in track.of(address).filter(|span| span.from <= at.saturating_add(error)) {
            let Some((name, rule, services)) = self.reasons.get(span.reason).copied() else { continue };
            let services = self.services.get(services);
            let carried =
                services.is_some_and(|services| services.iter().any(|services| flow.carrier.is_in(*services)));
            let open = span.covers(at, error);
            if !open && span.open.saturating_add(error) < begin {
                continue;
            }
            if !carried {
                latest(&mut found.other, span);
            } else if !open {
                latest(&mut found.ended, span);
            } else {
                let (told, query) = span.telling(at, error);
                let candidate = Candidate { holds: span.holds(at, error), span, name, rule, told, query };
                match found.open.iter_mut().find(|known| known.name == name) {
                    None => found.open.push(candidate),
                    Some(known) if (candidate.holds, candidate.told) >= (known.holds, known.told) => *known = candidate,
                    Some(_) => {}
                }
            }
        }
        found
    }

    /// One name or several that were open.
    fn by_names<'a>(&'a self, judgement: &mut Judgement<'a>, open: &mut SmallVec<[Candidate; 4]>, flow: &Flow<'_>) {
        open.sort_unstable_by_key(|candidate| Reverse((candidate.told, candidate.name)));
        let until = open.iter().map(|candidate| candidate.span.open).max().unwrap_or(0);
        judgement.outlived_us = flow.end.and_then(|end| end.0.checked_sub(until)).filter(|outlived| *outlived > 0);
        judgement.names_omitted = open.len().saturating_sub(NAMES) as u64;
        let named = |candidate: &Candidate| self.named(&candidate.span, candidate.told, candidate.query);
        match open.as_slice() {
            [one] => judgement.name = Some(named(one)),
            all => judgement.names.extend(all.iter().take(NAMES).map(named)),
        }
        (judgement.class, judgement.detail) = match open.as_slice() {
            [one] if one.holds => (Class::Exact, None),
            [one] => {
                judgement.late_us = Some(flow.at.0.saturating_sub(one.span.told));
                (Class::Stale, Some(Detail::Grace))
            }
            all => {
                let one_rule = all.windows(2).all(|pair| matches!(pair, [one, other] if one.rule == other.rule));
                (Class::Ambiguous, Some(if one_rule { Detail::SameRule } else { Detail::Mixed }))
            }
        };
    }

    /// The last name had ended.
    fn cached<'a>(
        &'a self,
        judgement: &mut Judgement<'a>,
        client: Option<&Client>,
        span: &Span,
        flow: &Flow<'_>,
    ) -> (Class, Option<Detail>) {
        // It may have been told once more in what is missing, or not listed.
        if let Some(lost) = self.gaps.within(span.open, flow.at.0.saturating_add(micros(flow.error))) {
            return (Class::Unknown, Some(lost));
        }
        if client.is_some_and(|client| client.was_told_more(span.open, flow)) {
            return (Class::Unknown, Some(Detail::Unlisted));
        }
        let (told, query) = span.telling(flow.at.0, micros(flow.error));
        judgement.name = Some(self.named(span, told, query));
        judgement.late_us = Some(flow.at.0.saturating_sub(span.open));
        (Class::Stale, Some(Detail::Cached))
    }

    /// No name opened it.
    fn without<'a>(
        &'a self,
        judgement: &mut Judgement<'a>,
        client: Option<&'a Client>,
        other: Option<Span>,
        address: Option<u32>,
        flow: &Flow<'_>,
        tracks: [Option<&Track>; 2],
    ) -> (Class, Option<Detail>) {
        let (at, error) = (flow.at.0, micros(flow.error));
        let begin = at.saturating_sub(micros(self.limits.lookback));
        let unknown = |why| (Class::Unknown, Some(why));
        if client.is_none() && flow.segment.is_none() {
            return unknown(Detail::Nat);
        }
        if let Some(lost) = self.gaps.within(begin.saturating_sub(error), at.saturating_add(error)) {
            return unknown(lost);
        }
        let forgotten = tracks.into_iter().flatten().any(|track| track.forgotten() >= begin && track.forgotten() > 0);
        let no_room = client.is_none() && self.refused > 0;
        if self.since.is_none_or(|since| since > begin) || self.horizon > begin || forgotten || no_room {
            return unknown(Detail::Young);
        }
        if client.is_some_and(|client| client.was_told_more(begin, flow)) {
            return unknown(Detail::Unlisted);
        }
        let none = |why| (Class::None, Some(why));
        if let Some(span) = other {
            let (told, query) = span.telling(at, error);
            judgement.name = Some(self.named(&span, told, query));
            return none(Detail::OtherService);
        }
        let said = |said: &&Said| said.first <= at.saturating_add(error) && said.last >= begin;
        let heard = address.and_then(|address| self.heard.get(address as usize)).map_or(&[][..], Vec::as_slice);
        let denied = client.map_or(&[][..], |client| client.denied.as_slice());
        let denied = denied.iter().filter(said);
        let denied = denied.filter(|denied| heard.iter().filter(said).any(|heard| heard.name == denied.name));
        if let Some(denied) = denied.max_by_key(|said| said.last) {
            judgement.elsewhere = self.text_of(denied.name);
            let last = if denied.last <= at { denied.last } else { denied.first };
            judgement.denied_us = Some(at.saturating_sub(last));
            return none(Detail::DeniedName);
        }
        match heard.iter().filter(said).max_by_key(|said| said.last) {
            Some(heard) => {
                judgement.elsewhere = self.text_of(heard.name);
                none(Detail::PeerName)
            }
            // It may have been told to others, and there was no room to note it.
            None if self.unheard >= begin && self.unheard > 0 => unknown(Detail::Young),
            None => none(Detail::UnknownAddress),
        }
    }

    fn named(&self, span: &Span, told: Wall, query: super::interval::Asked) -> Named<'_> {
        let (name, rule, _) = self.reasons.get(span.reason).copied().unwrap_or_default();
        Named {
            qname: self.text_of(name).unwrap_or_default(),
            rule: self.text_of(rule).unwrap_or_default(),
            query: query.id(&self.writers),
            told,
            until: Wall(span.open),
        }
    }

    fn text_of(&self, number: u32) -> Option<&str> {
        self.texts.get(number).map(|text| &**text)
    }
}

impl Client {
    /// Whether it was told addresses that nobody knows, open at `since` or later, before a flow began.
    fn was_told_more(&self, since: u64, flow: &Flow<'_>) -> bool {
        let ((from, until), error) = (self.unlisted, micros(flow.error));
        until > 0 && until.saturating_add(error) >= since && from <= flow.at.0.saturating_add(error)
    }
}

fn latest(known: &mut Option<Span>, span: Span) {
    if known.is_none_or(|known| known.open <= span.open) {
        *known = Some(span);
    }
}

impl<'a> Judgement<'a> {
    /// The name, where it is one: that it went to, or of `denied_name` the one that is denied.
    #[must_use]
    pub fn qname(&self) -> Option<&'a str> {
        let denied = self.elsewhere.filter(|_| self.detail == Some(Detail::DeniedName));
        self.name.map(|name| name.qname).or(denied)
    }

    /// The rule, where it is one: of the network, of the name, or of all names.
    #[must_use]
    pub fn rule(&self) -> Option<&'a str> {
        let shared = self.names.first().filter(|_| self.detail == Some(Detail::SameRule));
        self.rule.or(self.name.as_ref().or(shared).map(|name| name.rule)).filter(|rule| !rule.is_empty())
    }

    /// Why, in a sentence; `None`: there is no more to say than the class and the names.
    #[must_use]
    pub fn why(&self) -> Option<String> {
        let late = seconds(self.late_us.unwrap_or(0));
        let elsewhere = self.elsewhere.unwrap_or("another name");
        let mut text = String::new();
        let _ = match (self.class, self.detail) {
            (Class::Exact | Class::Ambiguous, _) if self.denied => {
                write!(text, "it was open by then, and the firewall refused it all the same")
            }
            (Class::Exact | Class::Ambiguous, _) if self.wide => {
                write!(text, "open for the whole segment, not asked for by this client")
            }
            (Class::Exact | Class::Ambiguous, _) => return None,
            (Class::Static, _) if self.rule.is_some() => return None,
            (Class::Static, _) => write!(text, "a resolver, or part of the network's own services"),
            (Class::Stale, Some(Detail::Grace)) => {
                write!(text, "connected {late} after the told TTL had ended, still open")
            }
            (Class::Stale, _) => write!(text, "connected {late} after its grant ended"),
            (_, Some(Detail::DeniedName)) => {
                write!(text, "the name {elsewhere} was denied {} before", seconds(self.denied_us.unwrap_or(0)))
            }
            (_, Some(Detail::PeerName)) => {
                write!(text, "no name of this client has this address; others were told it for {elsewhere}")
            }
            (_, Some(Detail::OtherService)) => {
                write!(text, "the port is not among those opened for {}", self.qname().unwrap_or("its name"))
            }
            (Class::None, _) => {
                write!(text, "no name of this client has this address: hard-coded, or resolved elsewhere")
            }
            (_, Some(Detail::LogGap)) => write!(text, "records of the query log are missing from that time"),
            (_, Some(Detail::Unlisted)) => {
                write!(text, "this client was told more addresses than the record of its query has room for")
            }
            (_, Some(Detail::EventsLost)) => write!(text, "events were lost about then"),
            (_, Some(Detail::Start)) => write!(text, "its beginning was not seen"),
            (_, Some(Detail::Nat)) => {
                write!(text, "this client never asked here and is in no segment: translated, perhaps")
            }
            (Class::Unknown, _) => write!(text, "what is known of the queries does not reach back far enough"),
        };
        Some(text)
    }
}

/// A time span for people.
fn seconds(micros: u64) -> String {
    match micros {
        0..10_000_000 => format!("{}.{} s", micros / 1_000_000, micros / 100_000 % 10),
        10_000_000..600_000_000 => format!("{} s", micros / 1_000_000),
        _ => format!("{} min", micros / 60_000_000),
    }
}
