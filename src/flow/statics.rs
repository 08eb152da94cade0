//! What is open without any look-up: networks of rules, resolvers, infrastructure.

use std::collections::HashMap;

use std::net::IpAddr;

use super::Carrier;
use crate::net::{Prefix, PrefixMap, Services};
use crate::time::Wall;

/// A network that is open to a segment, or to all.
#[derive(Clone, Debug)]
pub struct Static {
    /// For whom; `None`: for every client.
    pub segment: Option<Box<str>>,
    /// The rule's id; `None`: a resolver, or other infrastructure.
    pub rule: Option<Box<str>>,
    /// Where it leads.
    pub network: Prefix,
    /// By what.
    pub services: Vec<Services>,
    /// When the rule ends.
    pub until: Option<Wall>,
}

/// Every static opening, to be found by address.
#[derive(Default)]
pub(super) struct Statics {
    all: Vec<Static>,
    /// For everybody.
    shared: PrefixMap<Vec<u32>>,
    segments: HashMap<Box<str>, PrefixMap<Vec<u32>>>,
}

impl Statics {
    pub(super) fn new(all: Vec<Static>) -> Self {
        let mut statics = Self { all, ..Self::default() };
        for (at, opening) in (0..).zip(&statics.all) {
            let map = match &opening.segment {
                None => &mut statics.shared,
                Some(segment) => statics.segments.entry(segment.clone()).or_default(),
            };
            let mut numbers = map.insert(opening.network, Vec::new()).unwrap_or_default();
            numbers.push(at);
            map.insert(opening.network, numbers);
        }
        statics.segments.values_mut().chain([&mut statics.shared]).for_each(inherit);
        statics
    }

    /// What opens the address to a client of this segment.
    pub(super) fn find(&self, segment: Option<&str>, address: IpAddr, carrier: Carrier, at: Wall) -> Option<&Static> {
        let of_segment = segment.and_then(|segment| self.segments.get(segment));
        let numbers = of_segment.into_iter().chain([&self.shared]).filter_map(|map| map.longest(address)).flatten();
        numbers.filter_map(|number| self.all.get(*number as usize)).find(|opening| {
            opening.until.is_none_or(|until| at < until)
                && opening.services.iter().any(|services| carrier.is_in(*services))
        })
    }
}

/// Gives every prefix what those have that hold it: a look-up then needs the longest alone.
fn inherit(map: &mut PrefixMap<Vec<u32>>) {
    let mut prefixes: Vec<Prefix> = map.prefixes().collect();
    prefixes.sort_unstable_by_key(Prefix::prefix_len);
    for prefix in prefixes {
        let above = prefix.supernet().and_then(|above| map.covering(above)).cloned();
        if let Some(above) = above
            && let Some(mut own) = map.insert(prefix, Vec::new())
        {
            own.extend(above);
            map.insert(prefix, own);
        }
    }
}
