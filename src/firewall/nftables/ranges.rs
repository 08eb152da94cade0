//! Nested prefixes as disjoint ranges: the kernel's interval sets refuse what overlaps.

use crate::net::Prefix;

/// The numbers from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Range {
    pub(super) first: u128,
    pub(super) last: u128,
}

impl Range {
    /// The addresses of a prefix, as numbers.
    pub(super) fn of(prefix: Prefix) -> Self {
        match prefix {
            Prefix::V4(prefix) => {
                Self { first: prefix.network().to_bits().into(), last: prefix.broadcast().to_bits().into() }
            }
            Prefix::V6(prefix) => Self { first: prefix.network().to_bits(), last: prefix.broadcast().to_bits() },
        }
    }
}

/// Disjoint ranges, in order, each with what `value` makes of the prefixes that hold it, from the shortest to the
/// longest; neighbours of one value are one range. All prefixes are of one family.
///
/// Two prefixes are disjoint, or one holds the other: a stack of the open ones is all it takes.
pub(super) fn flatten<T, V: PartialEq>(
    mut prefixes: Vec<(Prefix, T)>,
    value: impl Fn(&[(Prefix, T)]) -> V,
) -> Vec<(Range, V)> {
    prefixes.sort_by_key(|(prefix, _)| (Range::of(*prefix).first, prefix.prefix_len()));
    let mut flat: Vec<(Range, V)> = Vec::with_capacity(prefixes.len());
    let mut emit = |first: u128, last: u128, open: &[(Prefix, T)]| {
        if open.is_empty() || first > last {
            return;
        }
        let value = value(open);
        match flat.last_mut() {
            Some((range, before)) if *before == value && range.last.checked_add(1) == Some(first) => range.last = last,
            _ => flat.push((Range { first, last }, value)),
        }
    };
    let mut open: Vec<(Prefix, T)> = Vec::new();
    // The first number that is not written yet; `None` past the last one there is.
    let mut at = Some(0);
    for (prefix, item) in prefixes {
        let range = Range::of(prefix);
        while let Some(last) = open.last().map(|(prefix, _)| Range::of(*prefix).last).filter(|last| *last < range.first)
        {
            if let Some(at) = at {
                emit(at, last, &open);
            }
            at = last.checked_add(1);
            open.pop();
        }
        if let (Some(at), Some(before)) = (at, range.first.checked_sub(1)) {
            emit(at, before, &open);
        }
        at = Some(range.first);
        open.push((prefix, item));
    }
    while let Some(last) = open.last().map(|(prefix, _)| Range::of(*prefix).last) {
        if let Some(at) = at {
            emit(at, last, &open);
        }
        at = last.checked_add(1);
        open.pop();
    }
    flat
}

/// The union of ranges: disjoint, in order, neighbours joined.
pub(super) fn union(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.sort_unstable();
    let mut joined: Vec<Range> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match joined.last_mut() {
            Some(before) if before.last.checked_add(1).is_none_or(|next| range.first <= next) => {
                before.last = before.last.max(range.last);
            }
            _ => joined.push(range),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use ipnet::IpNet;
    use proptest::prelude::*;

    use super::*;
    use crate::net::PrefixMap;

    fn top(open: &[(Prefix, u8)]) -> u8 {
        open.last().map_or(0, |(_, value)| *value)
    }

    #[test]
    fn the_longest_prefix_wins_to_the_ends_of_the_space() {
        let all = vec![
            ("0.0.0.0/0".parse().unwrap(), 1),
            ("192.0.2.0/24".parse().unwrap(), 2),
            ("192.0.2.64/26".parse().unwrap(), 1),
            ("255.255.255.255/32".parse().unwrap(), 3),
        ];
        let n = |text: &str| u128::from(text.parse::<Ipv4Addr>().unwrap().to_bits());
        let r = |first, last| Range { first: n(first), last: n(last) };
        let wanted = [
            (r("0.0.0.0", "192.0.1.255"), 1),
            (r("192.0.2.0", "192.0.2.63"), 2),
            (r("192.0.2.64", "192.0.2.127"), 1),
            (r("192.0.2.128", "192.0.2.255"), 2),
            (r("192.0.3.0", "255.255.255.254"), 1),
            (r("255.255.255.255", "255.255.255.255"), 3),
        ];
        assert_eq!(flatten(all, top), wanted);
        let whole = flatten(vec![("::/0".parse().unwrap(), 7), ("ff00::/8".parse().unwrap(), 7)], top);
        assert_eq!(whole, [(Range { first: 0, last: u128::MAX }, 7)]);
    }

    proptest! {
        #[test]
        fn ranges_agree_with_longest_prefix_match(
            four in any::<bool>(),
            seeds in prop::collection::vec((any::<u8>(), any::<u8>(), 0u8..=16, 1u8..4), 0..24),
            probes in prop::collection::vec((any::<u8>(), any::<u8>()), 0..64),
        ) {
            // Sixteen bits of the space are used: prefixes nest often.
            let address = |high: u8, low: u8| if four {
                IpAddr::V4(Ipv4Addr::new(192, 0, high, low))
            } else {
                IpAddr::V6(Ipv6Addr::from_bits(0x2001_0db8 << 96 | u128::from(high) << 8 | u128::from(low)))
            };
            let base = if four { 16 } else { 112 };
            let mut map = PrefixMap::default();
            let mut list: Vec<(IpNet, u8)> = Vec::new();
            for (high, low, length, value) in seeds {
                let prefix = IpNet::new(address(high, low), base + length).unwrap().trunc();
                if map.insert(prefix, value).is_none() {
                    list.push((prefix, value));
                } else {
                    list.iter_mut().find(|(known, _)| *known == prefix).unwrap().1 = value;
                }
            }
            let flat = flatten(list, top);
            prop_assert!(flat.windows(2).all(|pair| pair[0].0.last < pair[1].0.first));
            prop_assert!(flat.windows(2).all(|pair| pair[0].0.last + 1 != pair[1].0.first || pair[0].1 != pair[1].1));
            for (high, low) in probes {
                let probe = address(high, low);
                let number = match probe { IpAddr::V4(a) => a.to_bits().into(), IpAddr::V6(a) => a.to_bits() };
                let found = flat.iter().find(|(range, _)| range.first <= number && number <= range.last).map(|(_, value)| value);
                prop_assert_eq!(found, map.longest(probe));
            }
        }

        #[test]
        fn a_union_holds_the_same_numbers(ranges in prop::collection::vec((0u128..64, 0u128..16), 0..12), probe in 0u128..90) {
            let ranges: Vec<_> = ranges.into_iter().map(|(first, more)| Range { first, last: first + more }).collect();
            let joined = union(ranges.clone());
            let holds = |list: &[Range]| list.iter().any(|r| r.first <= probe && probe <= r.last);
            prop_assert_eq!(holds(&joined), holds(&ranges));
            prop_assert!(joined.windows(2).all(|pair| pair[0].last + 1 < pair[1].first));
        }
    }
}
