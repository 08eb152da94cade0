//! `[audit]` of the configuration.

use std::path::PathBuf;
use std::time::Duration;

use crate::document::Table;

/// Keys that the interface or its plans name and this version does not build.
const PLANNED: &[&str] = &["sinks", "detail"];

const MIB: u64 = 1 << 20;

/// A collector that was away for a while still finds the file that it was reading.
const COMPRESS_AFTER: Duration = Duration::from_secs(3600);
const COMPRESS_LATEST: Duration = Duration::from_secs(365 * 86_400);

/// What happens to an answer whose record cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFull {
    /// It is not sent: no record, no answer.
    Refuse,
    /// It is sent; the record is counted, and its id named by a `gap` record later.
    Drop,
}

/// What a record has survived before its answer is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// The end of the process: it is in the kernel.
    #[default]
    Process,
    /// The end of the machine: it is on the disk. What is written meanwhile waits for the disk together.
    Disk,
}

/// Where the log is and how much of it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The current file; closed ones go to `archive/` beside it.
    pub file: PathBuf,
    /// What happens when a record cannot be written.
    pub on_full: OnFull,
    /// What a record has survived before its answer is sent.
    pub durability: Durability,
    /// The size at which the file is closed, in bytes; as much is allocated when it is opened.
    pub rotate_size: u64,
    /// The most that archives and current file may take together, in bytes.
    pub max_size: u64,
    /// The least that the file system keeps free, in bytes. The default is `rotate_size`: room for the next file.
    pub min_free: u64,
    /// How long after it was closed a file is packed; `None`: never.
    pub compress_after: Option<Duration>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            file: PathBuf::from("./query.jsonl"),
            on_full: OnFull::Refuse,
            durability: Durability::Process,
            rotate_size: 256 * MIB,
            max_size: 20_480 * MIB,
            min_free: 256 * MIB,
            compress_after: Some(COMPRESS_AFTER),
        }
    }
}

impl Settings {
    /// Reads `[audit]`; mistakes are noted in its document, and the default stands in for what is wrong.
    #[must_use]
    pub fn parse(table: Table) -> Self {
        let mut settings = Self::default();
        if let Some(file) = table.string("file") {
            if file.value.is_empty() || file.value.ends_with('/') {
                table.document().note(&file.span, "`file` is not the path of a file", "write file = \"query.jsonl\"");
            } else {
                settings.file = PathBuf::from(file.value);
            }
        }
        if let Some(word) = table.string("on_full") {
            match word.value.as_str() {
                "refuse" => settings.on_full = OnFull::Refuse,
                "drop" => settings.on_full = OnFull::Drop,
                other => {
                    let fact = format!("`on_full` cannot be \"{other}\"");
                    table.document().note(&word.span, fact, "write \"refuse\" (no record, no answer) or \"drop\"");
                }
            }
        }
        if let Some(word) = table.string("durability") {
            match word.value.as_str() {
                "process" => settings.durability = Durability::Process,
                "disk" => settings.durability = Durability::Disk,
                other => {
                    let fact = format!("`durability` cannot be \"{other}\"");
                    let remedy = "write \"process\" (a record survives a kill) or \"disk\" (and a power cut)";
                    table.document().note(&word.span, fact, remedy);
                }
            }
        }
        let at_least = |key: &'static str, least: u64, default: u64, remedy: &str| match table.size(key) {
            Some(size) if size < least => {
                table.document().note(&table.span_of(key), format!("`{key}` is too small"), remedy);
                default
            }
            size => size.unwrap_or(default),
        };
        settings.rotate_size = at_least("rotate_size", MIB, settings.rotate_size, "write \"1MiB\" or more");
        let least = settings.rotate_size.saturating_mul(2);
        let remedy = "write at least twice rotate_size: the current file and one archive";
        settings.max_size = at_least("max_size", least, settings.max_size.max(least), remedy);
        settings.min_free = table.size("min_free").unwrap_or(settings.rotate_size);
        let after = table.duration("compress_after", Duration::ZERO..=COMPRESS_LATEST).unwrap_or(COMPRESS_AFTER);
        settings.compress_after = table.boolean("compress").unwrap_or(true).then_some(after);
        table.finish(PLANNED);
        settings
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Document;

    fn read(text: &str) -> (Settings, Vec<String>) {
        let (document, table) = Document::parse("outgate.toml", text);
        let settings = Settings::parse(table);
        (settings, document.take_mistakes().iter().map(ToString::to_string).collect())
    }

    #[test]
    fn reads_every_key() {
        let (settings, mistakes) = read(
            "file = \"/var/log/q.jsonl\"\non_full = \"drop\"\ndurability = \"disk\"\nrotate_size = \"2MiB\"\nmax_size = \"4MiB\"\ncompress_after = \"1d\"",
        );
        assert_eq!(mistakes, [""; 0]);
        let expected = Settings {
            file: PathBuf::from("/var/log/q.jsonl"),
            on_full: OnFull::Drop,
            durability: Durability::Disk,
            rotate_size: 2 * MIB,
            max_size: 4 * MIB,
            min_free: 2 * MIB,
            compress_after: Some(Duration::from_secs(86_400)),
        };
        assert_eq!(settings, expected);
        assert_eq!(read("compress = false\ncompress_after = \"1h\"").0.compress_after, None);
        assert_eq!(read("").0, Settings::default());
    }

    #[test]
    fn refuses_what_is_wrong_or_only_planned_by_name() {
        for (text, part) in [
            ("file = \"log/\"", "not the path of a file"),
            ("on_full = \"ignore\"", "`on_full` cannot be \"ignore\""),
            ("rotate_size = \"1KiB\"", "`rotate_size` is too small"),
            ("rotate_size = \"4MiB\"\nmax_size = \"4MiB\"", "`max_size` is too small"),
            ("durability = \"commit\"", "`durability` cannot be \"commit\""),
            ("compress = \"yes\"", "`compress`"),
            ("compress_after = \"400d\"", "`compress_after`"),
            ("detail = \"x\"", "`detail` is not supported by this version"),
            ("on_ful = \"drop\"", "did you mean `on_full`?"),
        ] {
            let (_, mistakes) = read(text);
            assert!(mistakes.len() == 1 && mistakes[0].contains(part), "{text}: {mistakes:?}");
        }
    }
}
