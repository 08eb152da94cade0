//! Which records a sink takes, and which of those it takes one by one.

use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::time::Duration;

use super::line::Head;
use crate::document::Table;

/// Names with segment and rule that are remembered as seen, twice this many at most.
const SIGHTS: usize = 1 << 15;

/// Record types that the log may hold.
const TYPES: &[&str] = &["query", "grant", "policy", "change", "flow", "alert", "summary", "log"];

/// `verdicts`, `segments` and `types`; what is `None` does not matter.
#[derive(Clone, Debug, Default)]
pub(super) struct Filter {
    verdicts: Option<Vec<String>>,
    segments: Option<Vec<String>>,
    types: Option<Vec<String>>,
}

impl Filter {
    /// Reads the keys; mistakes are noted in the document.
    pub(super) fn read(table: &Table) -> Self {
        let list = |key: &'static str, known: &[&str]| {
            let found = table.strings(key)?;
            if found.is_empty() {
                let fact = format!("`{key}` is empty: nothing would pass");
                table.document().note(&table.span_of(key), fact, "name some, or leave the key out");
            }
            for word in found.iter().filter(|word| !known.is_empty() && !known.contains(&word.value.as_str())) {
                let words: Vec<_> = known.iter().map(|word| format!("\"{word}\"")).collect();
                let fact = format!("`{key}` cannot hold \"{}\"", word.value);
                table.document().note(&word.span, fact, format!("write some of {}", words.join(", ")));
            }
            Some(found.into_iter().map(|word| word.value).collect())
        };
        Self {
            verdicts: list("verdicts", &["allow", "deny", "error"]),
            segments: list("segments", &[]),
            types: list("types", TYPES),
        }
    }

    /// Whether the sink takes such a record. Verdicts are of queries and flows, segments of queries, grants and flows:
    /// other records pass.
    pub(super) fn admits(&self, head: &Head<'_>) -> bool {
        let among = |list: &Option<Vec<String>>, word: Option<&str>| {
            list.as_ref().is_none_or(|list| word.is_some_and(|word| list.iter().any(|one| one == word)))
        };
        let kind = &*head.kind;
        among(&self.types, Some(kind))
            && (!matches!(kind, "query" | "flow") || among(&self.verdicts, head.outcome()))
            && (!matches!(kind, "query" | "grant" | "flow") || among(&self.segments, head.segment.as_deref()))
    }
}

/// `detail`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Detail {
    /// Every record.
    Full,
    /// What somebody should look at.
    Notable,
    /// That, and what else there was in sums over this time.
    Summary(Duration),
}

impl Detail {
    /// Reads the key; mistakes are noted in the document.
    pub(super) fn read(table: &Table) -> Self {
        let Some(word) = table.string("detail") else { return Self::Full };
        let window = word.value.strip_prefix("summary:").and_then(crate::document::parse_duration);
        match (word.value.as_str(), window) {
            ("full", _) => Self::Full,
            ("notable", _) => Self::Notable,
            (_, Some(window)) if (Duration::from_secs(1)..=Duration::from_secs(3600)).contains(&window) => {
                Self::Summary(window)
            }
            _ => {
                let fact = format!("`detail` cannot be \"{}\"", word.value);
                let remedy = "write \"full\", \"notable\", or \"summary:60s\" with a time from 1s to 1h";
                table.document().note(&word.span, fact, remedy);
                Self::Full
            }
        }
    }
}

/// Names that were seen: each (segment, name, rule) is notable once. At the cap the older half is forgotten, and what is
/// seen again then is told again.
#[derive(Default)]
pub(super) struct Sights {
    hash: RandomState,
    now: HashSet<u64>,
    before: HashSet<u64>,
}

impl Sights {
    /// Whether it is new.
    fn is_first(&mut self, head: &Head<'_>) -> bool {
        let text =
            |text: &Option<_>| Option::map(text.as_ref(), |text: &crate::audit::records::Text<'_>| text.to_string());
        let sight = self.hash.hash_one((text(&head.segment), text(&head.qname), text(&head.rule)));
        if self.now.contains(&sight) {
            return false;
        }
        if self.now.len() >= SIGHTS {
            self.before = std::mem::take(&mut self.now);
        }
        self.now.insert(sight);
        !self.before.contains(&sight)
    }

    /// Whether somebody should look at it: whatever did not pass, or would not, or passed for the first time; what was
    /// taken back or failed; flows that no grant explains; and everything that is not of a query, grant or flow.
    pub(super) fn notable(&mut self, head: &Head<'_>) -> bool {
        match &*head.kind {
            "query" => {
                let first = self.is_first(head);
                head.outcome() != Some("allow") || !head.enforced || head.shadow.is_some() || first
            }
            "grant" => matches!(head.op.as_deref(), Some("fail" | "revoke")),
            "flow" => head.outcome() != Some("allow") || !matches!(head.class.as_deref(), Some("exact" | "static")),
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Document;

    fn head(line: &str) -> Head<'_> {
        Head::read(line.as_bytes()).unwrap().0
    }

    fn record(kind: &str, rest: &str) -> String {
        format!(r#"{{"v":1,"type":"{kind}","id":"1-1-1","ts":"2026-11-21T03:53:04.117302Z"{rest}}}"#)
    }

    #[test]
    fn a_filter_says_nothing_of_records_without_the_field() {
        let text = "verdicts = [\"deny\"]\nsegments = [\"office\"]\ntypes = [\"query\", \"flow\", \"log\"]\n";
        let (document, table) = Document::parse("outgate.toml", text);
        let filter = Filter::read(&table);
        assert_eq!(document.take_mistakes(), []);
        for (kind, rest, passes) in [
            ("query", r#","segment":"office","verdict":"deny""#, true),
            ("query", r#","segment":"office","verdict":"allow""#, false),
            ("query", r#","segment":"shop","verdict":"deny""#, false),
            ("query", r#","verdict":"deny""#, false),
            ("flow", r#","segment":"office","action":"deny""#, true),
            ("flow", r#","segment":"office","action":"allow""#, false),
            ("grant", r#","segment":"office""#, false),
            ("log", r#","op":"heartbeat""#, true),
        ] {
            assert_eq!(filter.admits(&head(&record(kind, rest))), passes, "{kind} {rest}");
        }
    }

    #[test]
    fn what_somebody_should_look_at() {
        let mut sights = Sights::default();
        let seen = r#","segment":"s","qname":"a.example","rule":"r","verdict":"allow""#;
        for (kind, rest, notable) in [
            ("query", seen.to_owned(), true),
            ("query", seen.to_owned(), false),
            ("query", format!(r#"{seen},"enforced":false"#), true),
            ("query", format!(r#"{seen},"shadow":{{"kind":"denies"}}"#), true),
            ("query", seen.replace("\"r\"", "\"other\""), true),
            ("query", seen.replace("allow", "deny"), true),
            ("query", seen.replace("allow", "error"), true),
            ("grant", r#","op":"open""#.to_owned(), false),
            ("grant", r#","op":"fail""#.to_owned(), true),
            ("grant", r#","op":"revoke""#.to_owned(), true),
            ("flow", r#","action":"allow","class":"exact""#.to_owned(), false),
            ("flow", r#","action":"allow","class":"static""#.to_owned(), false),
            ("flow", r#","action":"allow","class":"stale""#.to_owned(), true),
            ("flow", r#","action":"deny","class":"exact""#.to_owned(), true),
            ("policy", String::new(), true),
            ("log", r#","op":"heartbeat""#.to_owned(), true),
            ("later", String::new(), true),
        ] {
            assert_eq!(sights.notable(&head(&record(kind, &rest))), notable, "{kind} {rest}");
        }
    }

    #[test]
    fn sights_are_bounded_and_forget_the_oldest() {
        let mut sights = Sights::default();
        let line = |name: usize| record("query", &format!(r#","qname":"n{name}.example","verdict":"allow""#));
        for name in 0..3 * SIGHTS {
            assert!(sights.notable(&head(&line(name))));
            assert!(sights.now.len() <= SIGHTS && sights.before.len() <= SIGHTS);
        }
        assert!(!sights.notable(&head(&line(3 * SIGHTS - 1))));
        assert!(sights.notable(&head(&line(0))));
    }
}
