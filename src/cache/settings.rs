//! `[cache]` of the configuration.

use std::time::Duration;

use crate::document::Table;

const DAY: Duration = Duration::from_secs(86_400);
/// Below this, an answer of many records would not fit.
const LEAST: u64 = 8 << 20;

/// `[cache]`: how much is kept, and for how long past its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Bytes of answers, prepared replies and failures.
    pub size: usize,
    /// How long past its end an answer is told where upstream gives none.
    pub stale: Duration,
}

impl Default for Settings {
    /// 256 MiB: a million clients' names, as many as there may be grants, take 120 bytes each. RFC 8767 §5: the maximum
    /// stale timer is "between 1 and 3 days".
    fn default() -> Self {
        Self { size: 256 << 20, stale: DAY }
    }
}

impl Settings {
    /// Reads `[cache]` of the root table; mistakes are noted in its document.
    #[must_use]
    pub fn read(root: &Table) -> Self {
        let mut settings = Self::default();
        let Some(table) = root.table("cache") else { return settings };
        match table.size("size") {
            Some(size) if size < LEAST => {
                table.document().note(&table.span_of("size"), "`size` is too small", "write \"8MiB\" or more");
            }
            Some(size) => settings.size = usize::try_from(size).unwrap_or(usize::MAX),
            None => {}
        }
        if let Some(stale) = table.duration("stale", Duration::ZERO..=7 * DAY) {
            settings.stale = stale;
        }
        table.finish(&[]);
        settings
    }

    /// The share of answers.
    #[must_use]
    pub const fn answers(&self) -> usize {
        self.size / 4
    }

    /// The share of failures.
    #[must_use]
    pub const fn failures(&self) -> usize {
        self.size / 64
    }

    /// The share of prepared replies: the rest.
    #[must_use]
    pub const fn replies(&self) -> usize {
        self.size - self.answers() - self.failures()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Document;

    fn read(text: &str) -> (Settings, Vec<String>) {
        let (document, root) = Document::parse("outgate.toml", text);
        let settings = Settings::read(&root);
        (settings, document.take_mistakes().iter().map(ToString::to_string).collect())
    }

    #[test]
    fn reads_every_key_and_says_what_is_wrong() {
        let (settings, mistakes) = read("[cache]\nsize = \"8MiB\"\nstale = \"0s\"\n");
        assert_eq!((settings, mistakes), (Settings { size: 8 << 20, stale: Duration::ZERO }, Vec::new()));
        let shares = [settings.answers(), settings.failures(), settings.replies()];
        assert!(shares.iter().sum::<usize>() == 8 << 20 && shares.iter().all(|share| *share > 0));
        let (_, mistakes) = read("[cache]\nsize = \"1MiB\"\nstale = \"8d\"\n");
        assert_eq!(mistakes.len(), 2, "{mistakes:?}");
        assert!(mistakes.iter().any(|mistake| mistake.contains("write \"8MiB\" or more")), "{mistakes:?}");
    }
}
