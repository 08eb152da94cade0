//! Under which names an address is open, and for whom: what a reverse look-up is answered with. (who, address) → names.

use std::hash::BuildHasher;
use std::net::IpAddr;

use foldhash::quality::RandomState;
use smallvec::SmallVec;

use crate::cache::cover::Who;
use crate::cache::shards::Shards;
use crate::name::Name;
use crate::time::Tick;

/// The most names of one address that are kept for one client: on the addresses of a content network there may be any
/// number. The one that ends first gives way.
const MOST: usize = 8;

/// Names, each with the end of what was opened under it.
pub type Names = SmallVec<[(Name, Tick); 1]>;

/// See the module. Bounded in bytes; what was not asked for gives way, and its address has no name then.
#[derive(Debug)]
pub struct Named {
    table: Shards<(Who, IpAddr), Names>,
    hasher: RandomState,
}

impl Named {
    /// An empty table of at most `bytes`.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self { table: Shards::new(bytes), hasher: RandomState::default() }
    }

    /// The names under which `address` is open for `who`, in order.
    #[must_use]
    pub fn get(&self, who: Who, address: IpAddr, now: Tick) -> Names {
        let live = |names: &Names| Some(names.iter().filter(|(_, until)| *until > now).cloned().collect());
        let is = |key: &(Who, IpAddr), _: &_| *key == (who, address);
        self.table.get(self.hash(who, address), is, live).unwrap_or_default()
    }

    /// Adds a name under which `address` was opened until then.
    pub fn put(&self, who: Who, address: IpAddr, name: &Name, until: Tick, now: Tick) {
        let mut names: Names = self.get(who, address, now);
        match names.binary_search_by(|(known, _)| known.cmp(name)) {
            Ok(at) => {
                if let Some((_, known)) = names.get_mut(at) {
                    *known = until.max(*known);
                }
            }
            Err(at) => {
                names.insert(at, (name.clone(), until));
                if names.len() > MOST {
                    let first = names.iter().enumerate().min_by_key(|(_, (_, until))| *until).map(|(at, _)| at);
                    first.map(|at| names.remove(at));
                }
            }
        }
        // With each allocation's own.
        let weight = names.iter().map(|(name, _)| 56 + name.as_wire().len()).sum();
        let is = |key: &(Who, IpAddr), _: &_| *key == (who, address);
        self.table.put(self.hash(who, address), is, ((who, address), names), weight, || 0, self.table.flushes());
    }

    fn hash(&self, who: Who, address: IpAddr) -> u64 {
        self.hasher.hash_one((who.segment, who.client, address))
    }

    /// How many bytes, as charged.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.table.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::SegmentId;

    fn who(client: u8) -> Who {
        Who { segment: SegmentId(1), client: Some([192, 0, 2, client].into()) }
    }

    fn told(named: &Named, client: u8, now: u64) -> Vec<String> {
        let names = named.get(who(client), [198, 51, 100, 1].into(), Tick(now));
        names.iter().map(|(name, _)| name.to_string()).collect()
    }

    #[test]
    fn a_name_is_told_to_whom_it_was_opened_while_it_is_open() {
        let named = Named::new(1 << 20);
        let put = |client, name: &str, until| {
            let name = Name::parse(name).unwrap();
            named.put(who(client), [198, 51, 100, 1].into(), &name, Tick(until), Tick(0));
        };
        put(1, "b.example", 20);
        put(1, "a.example", 10);
        put(1, "b.example", 5);
        assert_eq!(told(&named, 1, 9), ["a.example", "b.example"], "in order; an end never comes nearer");
        assert_eq!(told(&named, 1, 10), ["b.example"]);
        assert!(told(&named, 1, 20).is_empty());
        assert!(told(&named, 2, 9).is_empty(), "another client's");
    }

    #[test]
    fn of_many_names_those_are_kept_that_end_last() {
        let named = Named::new(1 << 20);
        for number in 0..20_u64 {
            let name = Name::parse(&format!("{number:02}.example")).unwrap();
            named.put(who(1), [198, 51, 100, 1].into(), &name, Tick(100 + number), Tick(0));
        }
        let expected: Vec<String> = (12..20).map(|number| format!("{number:02}.example")).collect();
        assert_eq!(told(&named, 1, 0), expected);
        assert!(named.bytes() < 2_000);
    }
}
