//! What the engine looks at in a line of the log.

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::Record;
use crate::audit::format::Format;
use crate::audit::read::behind_torn;
use crate::audit::records::Text;

/// Fields of a record; those of one type only are absent in the others.
#[derive(Debug, Deserialize)]
pub(super) struct Head<'a> {
    #[serde(rename = "type", borrow)]
    pub(super) kind: Text<'a>,
    #[serde(borrow)]
    pub(super) id: Text<'a>,
    #[serde(borrow)]
    pub(super) ts: Text<'a>,
    #[serde(borrow)]
    pub(super) node: Option<Text<'a>>,
    #[serde(borrow)]
    pub(super) segment: Option<Text<'a>>,
    #[serde(borrow)]
    pub(super) client: Option<Text<'a>>,
    #[serde(borrow)]
    pub(super) qname: Option<Text<'a>>,
    #[serde(borrow)]
    pub(super) rule: Option<Text<'a>>,
    #[serde(borrow)]
    pub(super) verdict: Option<Text<'a>>,
    #[serde(default = "enforced")]
    pub(super) enforced: bool,
    pub(super) shadow: Option<IgnoredAny>,
    #[serde(borrow)]
    pub(super) op: Option<Text<'a>>,
    #[serde(borrow)]
    pub(super) action: Option<Text<'a>>,
    #[serde(borrow)]
    pub(super) class: Option<Text<'a>>,
    #[serde(default)]
    pub(super) bytes_out: u64,
    #[serde(default)]
    pub(super) bytes_in: u64,
}

const fn enforced() -> bool {
    true
}

impl<'a> Head<'a> {
    /// Reads a line, or the record that stands behind a torn one; with the text of the record.
    pub(super) fn read(line: &'a [u8]) -> Option<(Self, &'a str)> {
        let read = |line: &'a [u8]| {
            let text = std::str::from_utf8(line).ok()?;
            Some((serde_json::from_str(text).ok()?, text))
        };
        read(line).or_else(|| read(behind_torn(line)?))
    }

    /// The verdict of a query; of a flow, what became of it.
    pub(super) fn outcome(&self) -> Option<&str> {
        self.verdict.as_ref().or(self.action.as_ref()).map(|word| &**word)
    }

    /// The record in a format, made from `text`, which is that of the head or says less; `None`: there is no form for it.
    pub(super) fn record(&self, text: &str, format: &Format) -> Option<Record> {
        let mut bytes = Vec::with_capacity(text.len());
        (format.write)(text, &mut bytes).then(|| Record {
            id: (*self.id).into(),
            kind: (*self.kind).into(),
            ts: (*self.ts).into(),
            node: self.node.as_ref().map(|node| (**node).into()).unwrap_or_default(),
            segment: self.segment.as_ref().map(|segment| (**segment).into()),
            verdict: self.outcome().map(Into::into),
            bytes,
        })
    }
}
