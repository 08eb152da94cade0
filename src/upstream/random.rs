//! Randomness in stock: a query needs some twenty octets of it, and a system call for each costs more than the rest of
//! making the query. What was given is forgotten.

use std::fmt;

use parking_lot::Mutex;

/// Octets fetched at once: for about fifty queries.
const STOCK: usize = 1024;

/// Octets of the system's random number generator, each given once.
pub(super) struct Random(Mutex<Stock>);

struct Stock {
    octets: [u8; STOCK],
    /// How many of them, from the front, were not given yet.
    left: usize,
}

impl Default for Random {
    fn default() -> Self {
        Self(Mutex::new(Stock { octets: [0; STOCK], left: 0 }))
    }
}

impl fmt::Debug for Random {
    /// What is in stock is nobody's business.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Random")
    }
}

impl Random {
    /// Fills `target`, which is shorter than the stock.
    ///
    /// # Errors
    /// The system has no randomness to give.
    pub(super) fn fill(&self, target: &mut [u8]) -> Result<(), getrandom::Error> {
        let Stock { octets, left } = &mut *self.0.lock();
        if *left < target.len() {
            getrandom::fill(octets)?;
            *left = STOCK;
        }
        let begin = left.checked_sub(target.len()).ok_or(getrandom::Error::UNEXPECTED)?;
        let given = octets.get_mut(begin..*left).ok_or(getrandom::Error::UNEXPECTED)?;
        target.copy_from_slice(given);
        given.fill(0);
        *left = begin;
        Ok(())
    }

    /// So many octets.
    ///
    /// # Errors
    /// The system has no randomness to give.
    pub(super) fn take<const N: usize>(&self) -> Result<[u8; N], getrandom::Error> {
        let mut octets = [0; N];
        self.fill(&mut octets)?;
        Ok(octets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_octet_is_given_twice() {
        let random = Random::default();
        let given: HashSet<[u8; 12]> = (0..1000).map(|_| random.take().unwrap()).collect();
        assert_eq!(given.len(), 1000);
        let Stock { octets, left } = &*random.0.lock();
        assert!(octets[*left..].iter().all(|octet| *octet == 0), "what was given is forgotten");
        assert!(octets[..*left].iter().any(|octet| *octet != 0));
    }
}
