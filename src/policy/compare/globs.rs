//! Labels for every set of globs that a label can match together: a walk over all of them at once, letter by letter,
//! until no new set of states is reached.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use crate::name::MAX_LABEL;

/// An octet that no glob holds: globs are plain ASCII. It stands for every other letter.
const OTHER: u8 = 0xff;

/// Sets of states that are looked at for the globs of one name. Globs that share letters and overlap much need more; a
/// guess, far above what files hold.
const STATES: usize = 4096;

/// What the globs of one suffix have in common.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Overlaps {
    /// Sets of globs, by their places, with a label that matches these and no others.
    pub(super) labels: Vec<(Vec<usize>, Vec<u8>)>,
    /// Not every set was reached.
    pub(super) open: bool,
}

/// The places that a match of one glob may have come to; bit `n`: before its `n`th octet.
type Places = u128;

/// A glob without the stars that say nothing; `None` where no label is long enough.
fn plain(glob: &[u8]) -> Option<Vec<u8>> {
    let mut plain: Vec<u8> = glob.to_vec();
    plain.dedup_by(|a, b| *a == b'*' && *b == b'*');
    let letters = plain.iter().filter(|octet| **octet != b'*').count();
    (letters <= MAX_LABEL && plain.len() < 128).then_some(plain)
}

fn rest_on_stars(glob: &[u8], mut places: Places) -> Places {
    for (at, _) in glob.iter().enumerate().filter(|(_, octet)| **octet == b'*') {
        if places >> at & 1 == 1 {
            places |= 1 << (at + 1);
        }
    }
    places
}

fn step(glob: &[u8], places: Places, octet: u8) -> Places {
    let mut next = 0;
    for (at, wanted) in glob.iter().enumerate().filter(|(at, _)| places >> at & 1 == 1) {
        if *wanted == b'*' {
            next |= 1 << at;
        } else if *wanted == octet {
            next |= 1 << (at + 1);
        }
    }
    rest_on_stars(glob, next)
}

/// Every set of these globs that a label matches, but for the labels that are `taken`.
pub(super) fn overlaps(globs: &[&[u8]], taken: impl Fn(&[u8]) -> bool) -> Overlaps {
    let globs: Vec<(usize, Vec<u8>)> =
        globs.iter().enumerate().filter_map(|(at, glob)| Some((at, plain(glob)?))).collect();
    let letters: BTreeSet<u8> =
        globs.iter().flat_map(|(_, glob)| glob.iter().copied()).filter(|o| *o != b'*').collect();
    let letters: Vec<u8> = std::iter::once(OTHER).chain(letters).collect();
    let mut found: HashMap<Vec<usize>, Vec<u8>> = HashMap::new();
    let mut overlaps = Overlaps::default();
    let start: Vec<Places> = globs.iter().map(|(_, glob)| rest_on_stars(glob, 1)).collect();
    let mut seen = HashSet::from([(false, start.clone())]);
    let mut open = VecDeque::from([(false, start, Vec::new())]);
    while let Some((other, places, label)) = open.pop_front() {
        let matched = globs.iter().zip(&places).filter(|((_, glob), places)| *places >> glob.len() & 1 == 1);
        let matched: Vec<usize> = matched.map(|((at, _), _)| *at).collect();
        if !label.is_empty() && !matched.is_empty() && !found.contains_key(&matched) && !taken(&label) {
            found.insert(matched, label.clone());
        }
        if label.len() == MAX_LABEL {
            continue;
        }
        for letter in &letters {
            let next: Vec<Places> =
                globs.iter().zip(&places).map(|((_, glob), places)| step(glob, *places, *letter)).collect();
            // A label with an octet that no glob holds is a way of its own to the same states: it is never taken.
            let key = (other || *letter == OTHER, next);
            if key.1.iter().all(|places| *places == 0) || seen.contains(&key) {
                continue;
            }
            if seen.len() >= STATES {
                overlaps.open = true;
                continue;
            }
            seen.insert(key.clone());
            let mut longer = label.clone();
            longer.push(*letter);
            open.push_back((key.0, key.1, longer));
        }
    }
    overlaps.labels = found.into_iter().collect();
    overlaps.labels.sort();
    overlaps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::pattern::glob_matches;
    use proptest::prelude::*;

    fn sets(globs: &[&str], taken: &[&str]) -> Vec<Vec<usize>> {
        let globs: Vec<&[u8]> = globs.iter().map(|glob| glob.as_bytes()).collect();
        let overlaps = overlaps(&globs, |label| taken.iter().any(|taken| taken.as_bytes() == label));
        assert!(!overlaps.open);
        overlaps.labels.into_iter().map(|(set, _)| set).collect()
    }

    #[test]
    fn finds_what_globs_have_in_common() {
        assert_eq!(sets(&["a*", "b*"], &[]), [vec![0], vec![1]]);
        assert_eq!(sets(&["a*", "*b"], &[]), [vec![0], vec![0, 1], vec![1]]);
        assert_eq!(sets(&["a*", "ab*"], &[]), [vec![0], vec![0, 1]]);
        assert_eq!(
            sets(&["a*", "*a", "*a*a*"], &["aa"]),
            [vec![0], vec![0, 1], vec![0, 1, 2], vec![0, 2], vec![1], vec![1, 2], vec![2]]
        );
        // Only the label "a" is of both and not of the third.
        assert!(!sets(&["a*", "*a", "*a*a*"], &["a"]).contains(&vec![0, 1]));
        assert_eq!(sets(&[&"a".repeat(64)], &[]), Vec::<Vec<usize>>::new());
    }

    proptest! {
        #[test]
        fn every_label_matches_a_set_that_was_found(
            globs in prop::collection::vec("[ab*]{0,3}\\*[ab]{0,2}", 1..5),
            labels in prop::collection::vec("[abc]{1,6}", 20),
        ) {
            let globs: Vec<&[u8]> = globs.iter().map(String::as_bytes).collect();
            let overlaps = overlaps(&globs, |_| false);
            let set = |label: &[u8]| (0..globs.len()).filter(|at| glob_matches(globs[*at], label)).collect::<Vec<_>>();
            for (found, label) in &overlaps.labels {
                prop_assert_eq!(found, &set(label));
            }
            for label in labels {
                let set = set(label.as_bytes());
                prop_assert!(set.is_empty() || overlaps.labels.iter().any(|(found, _)| *found == set), "{} {:?}", label, set);
            }
        }
    }
}
