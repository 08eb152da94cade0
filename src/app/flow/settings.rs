//! `[flow]` of the configuration.

use std::time::Duration;

use crate::document::Table;
use crate::firewall::{self, Sought};

/// What is recorded of flows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::app) struct Settings {
    /// Those that the firewall lets pass.
    conntrack: bool,
    /// Packets that it refuses.
    refused: bool,
    /// A record when a flow begins, besides the one when it ends.
    pub(super) open: bool,
    /// How far back is known who was told what.
    pub(super) lookback: Duration,
    /// Live flows that are known at once.
    pub(super) max_flows: usize,
    /// The memory in which the kernel keeps what was not looked at yet, in bytes.
    buffer: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            conntrack: true,
            refused: true,
            open: false,
            lookback: Duration::from_secs(3600),
            max_flows: 1_000_000,
            buffer: 16 << 20,
        }
    }
}

impl Settings {
    /// Reads `[flow]`; `None` where there is none. Mistakes are noted in its document.
    pub(in crate::app) fn read(root: &Table, firewalls: &[firewall::Settings]) -> Option<Self> {
        let table = root.table("flow")?;
        let mut settings = Self::default();
        let boolean = |key, default| table.boolean(key).unwrap_or(default);
        settings.conntrack = boolean("conntrack", settings.conntrack);
        settings.refused = boolean("refused", settings.refused);
        settings.open = boolean("open", settings.open);
        let lookback = table.duration("lookback", Duration::from_secs(600)..=Duration::from_secs(7 * 86_400));
        settings.lookback = lookback.unwrap_or(settings.lookback);
        let most = table.integer("max_flows", 1_000..=16_000_000).and_then(|most| usize::try_from(most).ok());
        settings.max_flows = most.unwrap_or(settings.max_flows);
        if let Some(buffer) = table.size("buffer") {
            if (64 << 10..=1 << 30).contains(&buffer) {
                settings.buffer = usize::try_from(buffer).unwrap_or(settings.buffer);
            } else {
                let fact = "`buffer` is out of range";
                table.document().note(&table.span_of("buffer"), fact, "write a size from \"64KiB\" to \"1GiB\"");
            }
        }
        if !firewalls.iter().any(|firewall| firewall.plan.has_witness()) {
            let remedy = "add a [[firewall]] of kind = \"nftables\", or remove [flow]";
            table.document().note(table.span(), "[flow] has no firewall that tells of flows", remedy);
        }
        table.finish(&[]);
        Some(settings)
    }

    /// What is asked of the firewall.
    pub(super) const fn sought(&self) -> Sought {
        Sought { flows: self.conntrack, refused: self.refused, buffer: self.buffer }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Document;

    fn read(text: &str) -> (Option<Settings>, Vec<String>) {
        let text = format!("[[firewall]]\nname = \"a\"\nkind = \"nftables\"\nhook = \"sets\"\n{text}");
        let (document, root) = Document::parse("outgate.toml", text);
        let firewalls = firewall::Settings::read_all(&root, std::path::Path::new(""));
        let settings = Settings::read(&root, &firewalls);
        (settings, document.take_mistakes().iter().map(ToString::to_string).collect())
    }

    #[test]
    fn reads_every_key() {
        assert_eq!(read(""), (None, Vec::new()));
        assert_eq!(read("[flow]\n"), (Some(Settings::default()), Vec::new()));
        let text = "[flow]\nconntrack = false\nrefused = false\nopen = true\nlookback = \"2h\"\nmax_flows = 5000\nbuffer = \"1MiB\"\n";
        let wanted = Settings {
            conntrack: false,
            refused: false,
            open: true,
            lookback: Duration::from_secs(7200),
            max_flows: 5000,
            buffer: 1 << 20,
        };
        assert_eq!(read(text), (Some(wanted), Vec::new()));
    }

    #[test]
    fn mistakes_name_fact_and_remedy() {
        for (text, part) in [
            ("[flow]\nbuffer = \"1KiB\"\n", "`buffer` is out of range\n  write a size"),
            ("[flow]\nlookback = \"1s\"\n", "`lookback`"),
            ("[flow]\nmax_flows = 0\n", "`max_flows`"),
            ("[flow]\nconntrak = true\n", "did you mean `conntrack`?"),
        ] {
            let (_, mistakes) = read(text);
            assert!(mistakes.len() == 1 && mistakes[0].contains(part), "{text}: {mistakes:?}");
        }
        let (document, root) = Document::parse("outgate.toml", "[flow]\n");
        Settings::read(&root, &firewall::Settings::read_all(&root, std::path::Path::new("")));
        let mistakes = document.take_mistakes();
        assert!(mistakes[0].to_string().contains("[flow] has no firewall that tells of flows\n  add a [[firewall]]"));
    }
}
