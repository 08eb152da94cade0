//! `exposure`: what else a granted address leads to: other names that were told to be there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use foldhash::fast::RandomState;
use smallvec::SmallVec;

use super::sheet::{Cell, Column, Sheet, Table, number, text};
use super::{Asked, Fate, Needs, Opened, Period, Report, Step, Went, reach};
use crate::time::Wall;

/// Different texts, names and rules together, some 100 octets each.
const TEXTS: usize = 500_000;
/// Addresses, some 150 octets each.
const ADDRESSES: usize = 500_000;
/// Names and rules of one address.
const EACH: usize = 64;
/// Names that a row shows.
const SHOWN: usize = 8;

/// Texts by number.
#[derive(Debug, Default)]
struct Texts {
    numbers: HashMap<Box<str>, u32, RandomState>,
    all: Vec<Box<str>>,
}

impl Texts {
    fn number(&mut self, text: &str) -> Option<u32> {
        if let Some(known) = self.numbers.get(text) {
            return Some(*known);
        }
        let number = u32::try_from(self.all.len()).ok().filter(|_| self.all.len() < TEXTS)?;
        self.all.push(text.into());
        self.numbers.insert(text.into(), number);
        Some(number)
    }

    fn text(&self, number: u32) -> &str {
        self.all.get(number as usize).map_or("", |text| text)
    }
}

/// What is known of one address.
#[derive(Debug, Default)]
struct Seat {
    names: SmallVec<[u32; 4]>,
    /// Rule and name of what was granted.
    granted: SmallVec<[(u32, u32); 2]>,
    /// Bytes and flows by rule.
    went: SmallVec<[(u32, u64, u64); 1]>,
    /// There are more names than were kept.
    more: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Exposure {
    period: Period,
    texts: Texts,
    seats: HashMap<IpAddr, Seat, RandomState>,
    flows: bool,
    /// What was seen of names or addresses that there was no room for.
    past: u64,
}

impl Exposure {
    /// Begins with nothing.
    #[must_use]
    pub fn new(period: Period) -> Self {
        Self { period, texts: Texts::default(), seats: HashMap::default(), flows: false, past: 0 }
    }

    fn seat(&mut self, address: IpAddr) -> Option<&mut Seat> {
        if self.seats.len() >= ADDRESSES && !self.seats.contains_key(&address) {
            self.past += 1;
            return None;
        }
        Some(self.seats.entry(address).or_default())
    }

    fn number(&mut self, text: &str) -> Option<u32> {
        let number = self.texts.number(text);
        self.past += u64::from(number.is_none());
        number
    }

    /// Every (rule, address) that was granted, with what else is there.
    fn shared(&self) -> Vec<Shared> {
        let mut all = Vec::new();
        for (address, seat) in &self.seats {
            let rules: BTreeSet<u32> = seat.granted.iter().map(|(rule, _)| *rule).collect();
            for rule in rules {
                let own = |name: &u32| seat.granted.contains(&(rule, *name));
                let others: Vec<u32> = seat.names.iter().filter(|name| !own(name)).copied().collect();
                let names = seat.granted.iter().filter(|(of, _)| *of == rule).map(|(_, name)| *name).collect();
                let (bytes, flows) =
                    seat.went.iter().find(|(of, ..)| *of == rule).map_or((0, 0), |(_, bytes, flows)| (*bytes, *flows));
                all.push(Shared { rule, address: *address, names, others, more: seat.more, bytes, flows });
            }
        }
        all
    }
}

/// One address under one rule.
struct Shared {
    rule: u32,
    address: IpAddr,
    names: Vec<u32>,
    others: Vec<u32>,
    more: bool,
    bytes: u64,
    flows: u64,
}

/// All addresses of one rule.
#[derive(Default)]
struct OfRule {
    addresses: u64,
    shared: u64,
    others: BTreeSet<u32>,
    more: bool,
    bytes: u64,
    to_shared: u64,
}

impl Report for Exposure {
    fn needs(&self) -> Needs {
        Needs { answers: true, grants: false }
    }

    fn asked(&mut self, query: &Asked<'_>) {
        if query.addresses.is_empty() || !matches!(query.fate, Fate::Allowed | Fate::Passed) {
            return;
        }
        let Some(name) = self.number(query.qname) else { return };
        for address in query.addresses {
            self.seat(*address).into_iter().for_each(|seat| seat.name(name));
        }
    }

    fn opened(&mut self, grant: &Opened<'_>) {
        let (Some(rule), Some(name)) = (self.number(grant.rule), self.number(grant.qname)) else { return };
        let within = self.period.has_begun(grant.at);
        let Some(seat) = self.seat(grant.address) else { return };
        seat.name(name);
        if within && !seat.granted.contains(&(rule, name)) {
            if seat.granted.len() < EACH {
                seat.granted.push((rule, name));
            } else {
                seat.more = true;
            }
        }
    }

    fn went(&mut self, flow: &Went<'_>) {
        self.flows = true;
        if !flow.passed || flow.step != Step::Ended || flow.rule.is_empty() || !self.period.has_begun(flow.at) {
            return;
        }
        let Some(rule) = self.number(flow.rule) else { return };
        let bytes = flow.bytes.map_or(0, |(out, back)| out.saturating_add(back));
        let Some(seat) = self.seat(flow.address) else { return };
        let full = seat.went.len() >= EACH;
        match seat.went.iter_mut().find(|(of, ..)| *of == rule) {
            Some((_, sum, flows)) => (*sum, *flows) = (sum.saturating_add(bytes), *flows + 1),
            None if full => seat.more = true,
            None => seat.went.push((rule, bytes, 1)),
        }
    }

    fn finish(self: Box<Self>, span: Option<(Wall, Wall)>, limit: usize) -> Sheet {
        let mut notes = reach(self.period, span);
        notes.push(
            "other names are those that somebody here asked for: an address of a hosting service leads to more"
                .to_owned(),
        );
        if !self.flows {
            notes.push("the log has no flow records: bytes are not known, and the order is by other names".to_owned());
        }
        if self.past > 0 {
            notes.push(format!(
                "there was room for {ADDRESSES} addresses and {TEXTS} names: {} records more are not in the tables",
                self.past
            ));
        }
        let mut all = self.shared();
        let mut rules: BTreeMap<u32, OfRule> = BTreeMap::new();
        for one in &all {
            let sum = rules.entry(one.rule).or_default();
            sum.addresses += 1;
            sum.bytes += one.bytes;
            if !one.others.is_empty() {
                sum.shared += 1;
                sum.to_shared += one.bytes;
                sum.others.extend(&one.others);
                sum.more |= one.more;
            }
        }
        let granted = all.len();
        all.retain(|one| !one.others.is_empty());
        all.sort_by_key(|one| {
            (std::cmp::Reverse((one.bytes, one.others.len())), self.texts.text(one.rule), one.address)
        });
        let shared = all.len();
        let names = |numbers: &mut dyn Iterator<Item = u32>, more: bool| {
            let mut told: Vec<String> = numbers.map(|number| self.texts.text(number).to_owned()).collect();
            told.sort_unstable();
            let more = more || told.len() > SHOWN;
            told.truncate(SHOWN);
            Cell::List(told, more)
        };
        let mut rules: Vec<(u32, OfRule)> = rules.into_iter().collect();
        rules.sort_by_key(|(rule, sum)| {
            (std::cmp::Reverse((sum.to_shared, sum.others.len(), sum.shared)), self.texts.text(*rule))
        });
        let count = rules.len();
        let rows = rules.into_iter().take(limit).map(|(rule, sum)| {
            vec![
                Cell::Bytes(sum.to_shared),
                Cell::Bytes(sum.bytes),
                Cell::Count(sum.shared),
                Cell::Count(sum.addresses),
                Cell::Count(sum.others.len() as u64),
                self.texts.text(rule).into(),
                names(&mut sum.others.iter().copied(), sum.more),
            ]
        });
        let by_rule = table(
            "rules",
            "By rule".to_owned(),
            vec![
                number("bytes_shared", "to shared"),
                number("bytes", "all bytes"),
                number("shared", "shared"),
                number("addresses", "addresses"),
                number("others", "others"),
                text("rule", "rule"),
                text("other_names", "other names there"),
            ],
            rows.collect(),
            count,
            "no address was granted",
        );
        let rows = all.iter().take(limit).map(|one| {
            vec![
                Cell::Bytes(one.bytes),
                Cell::Count(one.flows),
                Cell::Count(one.others.len() as u64),
                Cell::Text(one.address.to_string()),
                self.texts.text(one.rule).into(),
                names(&mut one.names.iter().copied(), false),
                names(&mut one.others.iter().copied(), one.more),
            ]
        });
        let by_address = table(
            "addresses",
            format!("Granted addresses that lead to other names: {shared} of {granted}"),
            vec![
                number("bytes", "bytes"),
                number("flows", "flows"),
                number("others", "others"),
                text("address", "address"),
                text("rule", "rule"),
                text("names", "granted for"),
                text("other_names", "other names there"),
            ],
            rows.collect(),
            shared,
            "no other name is known to be at one",
        );
        Sheet { report: "exposure", notes, tables: vec![by_rule, by_address] }
    }
}

impl Seat {
    fn name(&mut self, name: u32) {
        if !self.names.contains(&name) {
            if self.names.len() < EACH {
                self.names.push(name);
            } else {
                self.more = true;
            }
        }
    }
}

fn table(
    key: &'static str,
    title: String,
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
    count: usize,
    empty: &'static str,
) -> Table {
    let unlisted = count.saturating_sub(rows.len()) as u64;
    Table { key, title, columns, rows, other: None, total: None, unlisted, empty }
}
