//! The order to put a candidate in force.

use super::{decode, encode};

/// The longest reason: records hold as much of it.
const REASON: usize = 256;

/// What is to become of the candidate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PromoteOrder {
    /// Over what it disagrees is known and meant.
    pub accept: bool,
    /// Goes back to the policy directory instead.
    pub revert: bool,
    /// Why; in the record.
    pub reason: Option<String>,
}

impl PromoteOrder {
    /// Reads the query string of a request: `accept=true&reason=SEC-123`.
    ///
    /// # Errors
    /// One sentence that says which part is wrong.
    pub fn parse(query: &str) -> Result<Self, String> {
        let mut order = Self::default();
        let mut seen = Vec::new();
        for part in query.split('&').filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            let value = decode(value).ok_or_else(|| format!("the value of {key:?} is not percent-encoded UTF-8"))?;
            if seen.contains(&key) {
                return Err(format!("{key:?} is there twice"));
            }
            seen.push(key);
            let truth = || value.parse().map_err(|_| format!("{key}: {value:?} is not true or false"));
            match key {
                "accept" => order.accept = truth()?,
                "revert" => order.revert = truth()?,
                "reason" if value.len() > REASON => return Err(format!("reason: it is longer than {REASON} bytes")),
                "reason" => order.reason = Some(value).filter(|reason| !reason.is_empty()),
                _ => return Err(format!("{key:?} is unknown; write accept, revert or reason")),
            }
        }
        if order.accept && order.revert {
            return Err("accept: there is nothing to accept where a promotion is taken back".to_owned());
        }
        Ok(order)
    }

    /// The query string that [`PromoteOrder::parse`] reads back.
    #[must_use]
    pub fn query(&self) -> String {
        let reason = self.reason.as_ref().map(|reason| format!("&reason={}", encode(reason))).unwrap_or_default();
        format!("accept={}&revert={}{reason}", self.accept, self.revert)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_order_says_what_is_wrong_with_it() {
        let long = format!("reason={}", "x".repeat(REASON + 1));
        for (query, says) in [
            ("accept=1", "accept: \"1\" is not true or false"),
            ("accept=true&accept=true", "\"accept\" is there twice"),
            ("accept=true&revert=true", "accept: there is nothing to accept where a promotion is taken back"),
            ("reason=%ff", "the value of \"reason\" is not percent-encoded UTF-8"),
            (&*long, "reason: it is longer than 256 bytes"),
            ("all=true", "\"all\" is unknown; write accept, revert or reason"),
        ] {
            assert_eq!(PromoteOrder::parse(query), Err(says.to_owned()), "{query}");
        }
        assert_eq!(PromoteOrder::parse(""), Ok(PromoteOrder::default()));
    }

    proptest! {
        #[test]
        fn an_order_survives_its_query(accept: bool, reason in prop::option::of(".{1,60}")) {
            let order = PromoteOrder { accept, revert: false, reason };
            prop_assert_eq!(PromoteOrder::parse(&order.query()), Ok(order));
        }

        #[test]
        fn no_query_panics(query in ".{0,100}") {
            let _ = PromoteOrder::parse(&query);
        }
    }
}
