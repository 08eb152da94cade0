//! The index against an oracle: lists that are searched from end to end, and the definitions of the room's front page.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use proptest::prelude::*;

use crate::flow::{Carrier, Class, Denied, Detail, Ended, Flow, For, Index, Limits, Opened, Told, Unlisted};
use crate::net::Services;
use crate::time::Wall;

const LOOKBACK: u64 = 300;
const NAMES: [&str; 3] = ["a.example", "b.example", "c.example"];
const RULES: [&str; 2] = ["web", "api"];
const SEGMENTS: [&str; 2] = ["one", "two"];

/// Everything by number; times in seconds.
#[derive(Clone, Copy, Debug)]
struct Step {
    at: u64,
    what: What,
    client: u8,
    name: usize,
    rule: usize,
    address: u8,
    services: usize,
    short: u64,
    long: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Tell,
    Open,
    OpenWide,
    Adopt,
    End,
    EndWide,
    Deny,
    Gap,
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    at: u64,
    client: u8,
    known: bool,
    address: u8,
    carrier: Carrier,
    started: bool,
    error: u64,
}

fn services(number: usize) -> &'static [Services] {
    const SETS: [&[Services]; 4] = [
        &[Services::Tcp(443, 443)],
        &[Services::Tcp(80, 80), Services::Tcp(443, 443)],
        &[Services::Udp(443, 443)],
        &[Services::Any],
    ];
    SETS[number % SETS.len()]
}

fn client(number: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, number])
}

/// The first two are in the first segment, the third in the other.
fn segment(client: u8) -> &'static str {
    SEGMENTS[usize::from(client >= 2)]
}

fn address(number: u8) -> IpAddr {
    IpAddr::from([198, 51, 100, number])
}

const fn wall(seconds: u64) -> Wall {
    Wall((1_000_000 + seconds) * 1_000_000)
}

/// One interval, of a client or a segment.
#[derive(Clone, Debug)]
struct Open {
    /// `None`: of the whole segment.
    client: Option<u8>,
    segment: &'static str,
    name: &'static str,
    rule: &'static str,
    address: u8,
    services: Vec<Services>,
    from: u64,
    told: u64,
    open: u64,
}

#[derive(Default)]
struct Oracle {
    open: Vec<Open>,
    asked: BTreeSet<u8>,
    told: Vec<(u64, &'static str, u8)>,
    denied: Vec<(u64, u8, &'static str)>,
    gaps: Vec<(u64, u64)>,
}

impl Oracle {
    /// Prolongs the interval that is the same but for its times, if it is still open; or begins one.
    fn put(&mut self, new: Open) {
        let same = |known: &&mut Open| {
            (known.client, known.name, known.rule, known.address) == (new.client, new.name, new.rule, new.address)
                && (known.client.is_some() || known.segment == new.segment)
                && known.services == new.services
                && new.from <= known.open
        };
        match self.open.iter_mut().rev().find(same) {
            Some(known) => (known.told, known.open) = (known.told.max(new.told), known.open.max(new.open)),
            None => self.open.push(new),
        }
    }

    fn take(&mut self, step: &Step) {
        let Step { at, what, client, name, rule, address, short, long, .. } = *step;
        let (name, rule, segment) = (NAMES[name], RULES[rule], segment(client));
        let new = |client, told, open| Open {
            client,
            segment,
            name,
            rule,
            address,
            services: services(step.services).to_vec(),
            from: at,
            told,
            open,
        };
        match what {
            What::Tell => {
                self.asked.insert(client);
                self.told.push((at, name, address));
                self.put(new(Some(client), at + short, at + short.max(long)));
            }
            What::Open | What::Adopt => {
                self.asked.insert(client);
                let mut found = false;
                for known in &mut self.open {
                    let same =
                        (known.client, known.name, known.rule, known.address) == (Some(client), name, rule, address);
                    if same && known.from <= at && at <= known.open {
                        (known.open, found) = (known.open.max(at + long), true);
                    }
                }
                if !found {
                    self.put(new(Some(client), if what == What::Adopt { at + long } else { at }, at + long));
                }
            }
            What::OpenWide => self.put(new(None, at + long, at + long)),
            What::End | What::EndWide => {
                let wide = what == What::EndWide;
                let cut = services(step.services);
                let mut left = Vec::new();
                for known in &mut self.open {
                    let whose = if wide { known.segment == segment } else { known.client == Some(client) };
                    let same = (known.name, known.rule, known.address) == (name, rule, address);
                    if !(whose && same && known.from <= at && at < known.open) {
                        continue;
                    }
                    // Ports one by one; any service is left as it is by the loss of some.
                    let lost = |one: &Services| cut.contains(&Services::Any) || cut.contains(one);
                    let rest: Vec<_> = known.services.iter().copied().filter(|one| !lost(one)).collect();
                    if !rest.is_empty() {
                        left.push(Open { services: rest, from: at, told: known.told.max(at), ..known.clone() });
                    }
                    (known.told, known.open) = (known.told.min(at), known.open.min(at));
                }
                left.into_iter().for_each(|rest| self.put(rest));
            }
            What::Deny => {
                self.asked.insert(client);
                self.denied.push((at, client, name));
            }
            What::Gap => self.gaps.push((at.saturating_sub(short), at)),
        }
    }

    fn judge(&self, flow: &Asked) -> (Class, Option<Detail>, BTreeSet<&'static str>) {
        let Asked { at, error, .. } = *flow;
        let begin = at as i64 - LOOKBACK as i64;
        let carried = |open: &&Open| open.services.iter().any(|services| flow.carrier.is_in(*services));
        let of = |own: bool| {
            self.open.iter().filter(move |open| {
                open.address == flow.address
                    && if own {
                        open.client == Some(flow.client)
                    } else {
                        open.client.is_none() && open.segment == segment(flow.client)
                    }
            })
        };
        let known = flow.known || self.asked.contains(&flow.client);
        let now = |open: &&Open| open.from <= at + error && at < open.open + error;
        for own in [true, false] {
            // Without its segment, nobody knows what is open for it.
            if !own && !known {
                continue;
            }
            let open: Vec<_> = of(own).filter(carried).filter(now).collect();
            let names: BTreeSet<_> = open.iter().map(|open| open.name).collect();
            if names.len() == 1 {
                let holds = open.iter().any(|open| at < open.told + error);
                return if holds { (Class::Exact, None, names) } else { (Class::Stale, Some(Detail::Grace), names) };
            }
            if names.len() > 1 {
                return (Class::Ambiguous, None, names);
            }
        }
        let none = BTreeSet::new();
        if !flow.started {
            return (Class::Unknown, Some(Detail::Start), none);
        }
        let all = || of(true).chain(of(false).filter(|_| known)).filter(|open| open.from <= at + error);
        let recent = |open: &&Open| (open.open + error) as i64 >= begin;
        let missing =
            |from: i64, to: i64| self.gaps.iter().any(|(start, end)| *start as i64 <= to && *end as i64 >= from);
        let until = (at + error) as i64;
        if let Some(last) = all().filter(carried).filter(recent).map(|open| open.open).max() {
            if missing(last as i64, until) {
                return (Class::Unknown, Some(Detail::LogGap), none);
            }
            let names = all().filter(carried).filter(|open| open.open == last).map(|open| open.name).collect();
            return (Class::Stale, Some(Detail::Cached), names);
        }
        if !known {
            return (Class::Unknown, Some(Detail::Nat), none);
        }
        if missing(begin - error as i64, until) {
            return (Class::Unknown, Some(Detail::LogGap), none);
        }
        let others: Vec<_> = all().filter(|open| !carried(open) && (now(open) || recent(open))).collect();
        if let Some(last) = others.iter().map(|open| open.open).max() {
            let names = others.iter().filter(|open| open.open == last).map(|open| open.name).collect();
            return (Class::None, Some(Detail::OtherService), names);
        }
        // Said at all before, and not for the last time before the look-back.
        let lately = |times: &mut dyn Iterator<Item = u64>| {
            let times: Vec<u64> = times.collect();
            times.iter().any(|time| *time <= at + error) && times.iter().any(|time| *time as i64 >= begin)
        };
        let heard = |name: &str| {
            lately(
                &mut self.told.iter().filter(|(_, told, to)| *told == name && *to == flow.address).map(|told| told.0),
            )
        };
        let denied = |name: &str| {
            lately(
                &mut self
                    .denied
                    .iter()
                    .filter(|(_, who, what)| *who == flow.client && *what == name)
                    .map(|said| said.0),
            )
        };
        let detail = if NAMES.iter().any(|name| heard(name) && denied(name)) {
            Detail::DeniedName
        } else if NAMES.iter().any(|name| heard(name)) {
            Detail::PeerName
        } else {
            Detail::UnknownAddress
        };
        (Class::None, Some(detail), none)
    }
}

fn feed(index: &mut Index, step: &Step) {
    let Step { at, what, client: number, name, rule, address: to, services: set, short, long } = *step;
    let (qname, rule, segment, services) = (NAMES[name], RULES[rule], segment(number), services(set));
    let scope = match what {
        What::OpenWide | What::EndWide => For::Segment,
        _ => For::Client(client(number)),
    };
    match what {
        What::Tell => index.told(&Told {
            at: wall(at),
            client: client(number),
            segment: Some(segment),
            qname,
            rule,
            query: None,
            addresses: &[address(to)],
            unlisted: Unlisted::None,
            services,
            told_until: wall(at + short),
            open_until: wall(at + long),
        }),
        What::Open | What::OpenWide | What::Adopt => index.opened(&Opened {
            at: wall(at),
            to: scope,
            segment,
            qname,
            rule,
            query: None,
            address: address(to),
            services,
            until: wall(at + long),
            adopted: what == What::Adopt,
        }),
        What::End | What::EndWide => index.ended(&Ended {
            at: wall(at),
            to: scope,
            segment,
            qname,
            rule,
            address: address(to),
            services,
            until: wall(at),
        }),
        What::Deny => {
            index.denied(&Denied { at: wall(at), client: client(number), segment: Some(segment), qname: Some(qname) });
        }
        What::Gap => index.gap(wall(at.saturating_sub(short)), wall(at), Detail::LogGap),
    }
}

fn step() -> impl Strategy<Value = Step> {
    let what = prop_oneof![
        8 => Just(What::Tell),
        2 => Just(What::Open),
        2 => Just(What::OpenWide),
        1 => Just(What::Adopt),
        2 => Just(What::End),
        1 => Just(What::EndWide),
        2 => Just(What::Deny),
        1 => Just(What::Gap),
    ];
    // Few of everything, and mostly the same, so that what is told meets what was told before; and round times, so that
    // ends and beginnings fall together.
    let rule = prop_oneof![5 => Just(0_usize), 1 => Just(1)];
    let set = prop_oneof![6 => Just(0_usize), 1 => Just(1), 1 => Just(2), 1 => Just(3)];
    let client = prop_oneof![4 => Just(0_u8), 1 => Just(1), 1 => Just(2)];
    let times = (1..20_u64, 1..40_u64).prop_map(|(short, long)| (short * 2, long * 2));
    let at = (0..10_u64).prop_map(|at| at * 2);
    (at, what, client, 0..2_usize, rule, 0..2_u8, set, times).prop_map(
        |(at, what, client, name, rule, address, services, (short, long))| {
            // Few gaps, and short ones: they hide everything else.
            let short = if what == What::Gap { short / 8 } else { short };
            Step { at, what, client, name, rule, address, services, short, long }
        },
    )
}

fn asked() -> impl Strategy<Value = Asked> {
    let carrier = prop_oneof![4 => Just(Carrier::Tcp(443)), 1 => Just(Carrier::Tcp(80)), 1 => Just(Carrier::Icmp)];
    let client = prop_oneof![4 => Just(0_u8), 1 => Just(1), 1 => Just(2)];
    let at = prop_oneof![8 => 0..600_u64, 1 => 0..1500_u64];
    (at, client, any::<bool>(), 0..3_u8, carrier, prop::bool::weighted(0.9), 0..4_u64).prop_map(
        |(at, client, known, address, carrier, started, error)| Asked {
            at,
            client,
            known,
            address,
            carrier,
            started,
            error,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_class_is_as_the_definitions_say(
        mut steps in prop::collection::vec(step(), 0..60),
        flows in prop::collection::vec(asked(), 1..40),
        prune in any::<bool>(),
    ) {
        let mut now = 0;
        for step in &mut steps {
            now += step.at;
            step.at = now;
        }
        let mut index = Index::new(Limits { lookback: Duration::from_secs(LOOKBACK), ..Limits::default() });
        index.begin(Wall(0), true);
        let mut oracle = Oracle::default();
        for step in &steps {
            feed(&mut index, step);
            oracle.take(step);
            if prune {
                index.prune(wall(step.at));
            }
        }
        for asked in flows {
            // What was forgotten is not asked for.
            let asked = Asked { at: if prune { now + asked.at / 100 } else { asked.at }, ..asked };
            let judgement = index.judge(&Flow {
                at: wall(asked.at),
                end: None,
                client: client(asked.client),
                segment: asked.known.then(|| segment(asked.client)),
                address: address(asked.address),
                carrier: asked.carrier,
                started: asked.started,
                denied: false,
                error: Duration::from_secs(asked.error),
            });
            let (class, detail, names) = oracle.judge(&asked);
            prop_assert_eq!(judgement.class, class, "{:?} of {:?}", asked, steps);
            let several = judgement.class == Class::Ambiguous;
            prop_assert!(several || judgement.detail == detail, "{:?} is not {:?}: {:?} of {:?}", judgement.detail, detail, asked, steps);
            let told: BTreeSet<_> = judgement.name.iter().chain(&judgement.names).map(|named| named.qname).collect();
            prop_assert!(
                if several || matches!(class, Class::Exact) { told == names } else { told.is_subset(&names) && (told.is_empty() == names.is_empty()) },
                "{:?} are not {:?}: {:?} of {:?}", told, names, asked, steps
            );
        }
    }
}
