//! From a line of the log to what a sink takes of it: filter, detail, redaction, format.

use super::Record;
use super::filter::{Detail, Sights};
use super::line::Head;
use super::redact::Redactor;
use super::settings::Settings;
use super::summary::Window;
use crate::audit::RecordId;

/// What a line came to.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// The sums of the window before it, which it ended.
    pub(super) sums: Vec<Record>,
    /// The record itself.
    pub(super) record: Option<Record>,
    /// It is the first of a window: what comes from here on is summed.
    pub(super) begins: bool,
}

/// What one sink remembers of the lines that it has read.
pub(super) struct Intake {
    settings: Settings,
    redactor: Redactor,
    sights: Sights,
    window: Window,
    line: String,
}

impl Intake {
    pub(super) fn new(settings: Settings, redactor: Redactor) -> Self {
        Self { settings, redactor, sights: Sights::default(), window: Window::default(), line: String::new() }
    }

    /// Whether lines are in a sum that is not delivered yet.
    pub(super) fn is_summing(&self) -> bool {
        !self.window.is_empty()
    }

    /// Forgets the sums and what was seen: lines are read again.
    pub(super) fn again(&mut self) {
        self.window.clear();
        self.sights = Sights::default();
    }

    /// Takes a line; `None`: it is no record.
    pub(super) fn take(&mut self, line: &[u8]) -> Option<Taken> {
        let (head, text) = Head::read(line)?;
        let mut taken = Taken::default();
        if let Detail::Summary(length) = self.settings.detail
            && self.window.is_over(&head, length)
        {
            for line in self.window.take(length) {
                taken.sums.extend(self.format(&line));
            }
        }
        if !self.settings.filter.admits(&head) {
            return Some(taken);
        }
        let alone = match self.settings.detail {
            Detail::Full => true,
            Detail::Notable | Detail::Summary(_) => self.sights.notable(&head),
        };
        if !alone
            && let Detail::Summary(length) = self.settings.detail
            && let Ok(id) = head.id.parse::<RecordId>()
        {
            taken.begins = self.window.is_empty();
            self.window.add(&head, id, length);
        }
        if !alone {
            return Some(taken);
        }
        if self.redactor.is_plain() {
            taken.record = head.record(text, self.settings.format);
        } else {
            self.redactor.line(text, &mut self.line);
            taken.record = head.record(&self.line, self.settings.format);
        }
        Some(taken)
    }

    /// A line of the engine's own in the sink's format.
    pub(super) fn format(&self, line: &str) -> Option<Record> {
        let (head, text) = Head::read(line.as_bytes())?;
        head.record(text, self.settings.format)
    }
}
