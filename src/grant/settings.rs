//! `[grant]` of the configuration.

use std::time::Duration;

use crate::document::Table;
use crate::grant::Terms;

const DAY: Duration = Duration::from_secs(86_400);

impl Terms {
    /// Reads `[grant]` of the root table; mistakes are noted in its document.
    #[must_use]
    pub fn read(root: &Table) -> Self {
        let mut terms = Self::default();
        let Some(table) = root.table("grant") else { return terms };
        let second = Duration::from_secs(1);
        if let Some(ttl) = table.duration("ttl_min", second..=Duration::from_secs(3600)) {
            terms.ttl_min = ttl;
        }
        if let Some(ttl) = table.duration("ttl_max", second..=DAY) {
            terms.ttl_max = ttl;
        }
        if terms.ttl_max < terms.ttl_min {
            let fact = "`ttl_max` is below `ttl_min`";
            table.document().note(&table.span_of("ttl_max"), fact, "write ttl_max >= ttl_min");
        }
        if let Some(grace) = table.duration("grace", second..=Duration::from_secs(3600)) {
            terms.grace = grace;
        }
        if let Some(hold) = table.duration("hold", Duration::ZERO..=DAY) {
            terms.hold = hold;
        }
        table.finish(&[]);
        terms
    }
}
