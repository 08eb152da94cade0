//! What is known of one name, or of several together: how often it was asked for, by whom, when. Bounded.

use std::fmt;
use std::net::IpAddr;

use smallvec::SmallVec;

use crate::net::Services;
use crate::record::RecordType;
use crate::time::Wall;

/// As many clients as are told apart for one name; from there on it is "or more".
const CLIENTS: usize = 8;
/// Types that are kept of one name.
const TYPES: usize = 8;

/// Which clients, up to [`CLIENTS`] of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Clients(SmallVec<[u32; 4]>);

impl Clients {
    fn add(&mut self, client: u32) {
        if self.0.len() < CLIENTS && !self.0.contains(&client) {
            self.0.push(client);
        }
    }

    pub(super) fn count(&self) -> usize {
        self.0.len()
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Evidence {
    pub(super) queries: u64,
    pub(super) clients: Clients,
    pub(super) first: Wall,
    pub(super) last: Wall,
    /// A bit for each day from the first one of the log; the last bit is for all from there on.
    pub(super) days: u64,
    /// The types that were asked for.
    pub(super) types: SmallVec<[RecordType; 3]>,
    /// What was open for it, where a rule opened it.
    pub(super) ports: Vec<Services>,
    /// An answer said that it exists.
    pub(super) found: bool,
    /// An answer said that it does not.
    pub(super) gone: bool,
    /// A rule denied it.
    pub(super) denied: bool,
}

/// A day of the wall clock, from 1970-01-01.
pub(super) const fn day(at: Wall) -> u64 {
    at.0 / 86_400_000_000
}

impl Evidence {
    pub(super) fn new(at: Wall) -> Self {
        Self {
            queries: 0,
            clients: Clients::default(),
            first: at,
            last: at,
            days: 0,
            types: SmallVec::new(),
            ports: Vec::new(),
            found: false,
            gone: false,
            denied: false,
        }
    }

    /// One query more, `day` days after the first one of the log.
    pub(super) fn add(&mut self, at: Wall, day: u64, client: u32, kind: RecordType) {
        self.queries += 1;
        self.clients.add(client);
        self.first = self.first.min(at);
        self.last = self.last.max(at);
        self.days |= 1 << day.min(63);
        if self.types.len() < TYPES && !self.types.contains(&kind) {
            self.types.push(kind);
        }
    }

    /// All that is known of both.
    pub(super) fn join(&mut self, other: &Self) {
        self.queries += other.queries;
        other.clients.0.iter().for_each(|client| self.clients.add(*client));
        self.first = self.first.min(other.first);
        self.last = self.last.max(other.last);
        self.days |= other.days;
        for kind in &other.types {
            if !self.types.contains(kind) {
                self.types.push(*kind);
            }
        }
    }

    /// On how many days.
    pub(super) const fn day_count(&self) -> u32 {
        self.days.count_ones()
    }

    /// The day of the first query.
    pub(super) const fn first_day(&self) -> u32 {
        self.days.trailing_zeros()
    }
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = |count: usize| if count == 1 { "" } else { "s" };
        let clients = self.clients.count();
        let more = if clients == CLIENTS { " or more" } else { "" };
        let queries = if self.queries == 1 { "query" } else { "queries" };
        write!(f, "{} {queries}, {clients}{more} client{}, ", self.queries, plural(clients))?;
        let [first, last] = [self.first, self.last].map(|at| at.to_string().chars().take(10).collect::<String>());
        if first == last {
            return f.write_str(&first);
        }
        write!(f, "{} days, {first} … {last}", self.day_count())
    }
}

/// Numbers for clients, so that a name keeps four octets of each.
#[derive(Debug, Default)]
pub(super) struct Numbers(std::collections::HashMap<IpAddr, u32, foldhash::fast::RandomState>);

impl Numbers {
    /// As many clients as are told apart in all; those after them are as one.
    const MOST: usize = 1 << 20;

    pub(super) fn of(&mut self, client: IpAddr) -> u32 {
        let next = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        match self.0.get(&client) {
            Some(known) => *known,
            None if self.0.len() < Self::MOST => *self.0.entry(client).or_insert(next),
            None => next,
        }
    }

    pub(super) fn count(&self) -> usize {
        self.0.len()
    }
}
