//! Formats: how a record is written. JSON is what the file holds; the others are made from its lines.
//!
//! A new format is one file here and one row of [`FORMATS`].

mod dnstap;
pub(super) mod frames;
pub(super) mod json;
pub(super) mod text;

use self::frames::Control;

/// One form of a record.
#[derive(Clone, Copy, Debug)]
pub struct Format {
    /// The word in the configuration and on the command line.
    pub name: &'static str,
    /// Appends what a line of the file, without its line feed, is in this format, without an end of its own. `false`, and
    /// nothing is appended: the format has no form for such a record.
    pub write: fn(line: &str, out: &mut Vec<u8>) -> bool,
    /// How records follow each other.
    pub framing: Framing,
}

/// How records follow each other in a file or a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// One line each, ended by a line feed.
    Lines,
    /// What is appended is whole frames of Frame Streams, between a frame that begins a file and one that ends it.
    Frames,
}

impl Framing {
    /// Appends what stands before the first record of a file.
    pub fn begin(self, out: &mut Vec<u8>) {
        if self == Self::Frames {
            Control::Start.write(out);
        }
    }

    /// Appends what stands behind each record.
    pub fn end_record(self, out: &mut Vec<u8>) {
        if self == Self::Lines {
            out.push(b'\n');
        }
    }

    /// Appends what stands behind the last record of a file.
    pub fn end(self, out: &mut Vec<u8>) {
        if self == Self::Frames {
            Control::Stop.write(out);
        }
    }
}

/// Every format.
pub const FORMATS: &[Format] = &[
    Format { name: "json", write: json_line, framing: Framing::Lines },
    Format { name: "text", write: text_line, framing: Framing::Lines },
    Format { name: "dnstap", write: dnstap::write, framing: Framing::Frames },
];

fn json_line(line: &str, out: &mut Vec<u8>) -> bool {
    out.extend_from_slice(line.as_bytes());
    true
}

fn text_line(line: &str, out: &mut Vec<u8>) -> bool {
    out.extend_from_slice(text::render_line(line, false).as_bytes());
    true
}
