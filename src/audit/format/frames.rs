//! Frame Streams: how frames of octets follow each other in a file.
//!
//! A data frame has its length before it, 32 bits in network order. A length of 0 escapes a control frame: its own
//! length, its type, and fields. The format has no RFC; it is that of `fstrm/control.h` of its reference library.
//!
//! A file is START, frames, STOP.

/// The content type of dnstap's frames.
const DNSTAP: &str = "protobuf:dnstap.Dnstap";

/// The field that holds a content type.
const CONTENT_TYPE: u32 = 1;

/// What a control frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Control {
    /// Data follows.
    Start,
    /// No data follows.
    Stop,
}

impl Control {
    const ALL: [(Self, u32); 2] = [(Self::Start, 2), (Self::Stop, 3)];

    /// Appends it; with the content type, where it is of a kind that has one.
    pub(super) fn write(self, out: &mut Vec<u8>) {
        let number = Self::ALL.iter().find(|(control, _)| *control == self).map_or(0, |(_, number)| *number);
        let field = match self {
            Self::Stop => None,
            Self::Start => Some(DNSTAP),
        };
        out.extend_from_slice(&0_u32.to_be_bytes());
        out.extend_from_slice(&length_of(4 + field.map_or(0, |field| 8 + field.len())));
        out.extend_from_slice(&number.to_be_bytes());
        if let Some(field) = field {
            out.extend_from_slice(&CONTENT_TYPE.to_be_bytes());
            out.extend_from_slice(&length_of(field.len()));
            out.extend_from_slice(field.as_bytes());
        }
    }
}

/// Appends a data frame of what `write` appends.
pub(super) fn push_frame(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    write(out);
    let length = length_of(out.len() - start - 4);
    if let Some(field) = out.get_mut(start..start + 4) {
        field.copy_from_slice(&length);
    }
}

/// No frame of ours is near the limit of its length: a record has at most 8 KiB.
fn length_of(octets: usize) -> [u8; 4] {
    u32::try_from(octets).unwrap_or(u32::MAX).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_what_the_reference_library_writes() {
        let mut out = Vec::new();
        Control::Start.write(&mut out);
        assert_eq!(out, b"\0\0\0\0\0\0\0\x22\0\0\0\x02\0\0\0\x01\0\0\0\x16protobuf:dnstap.Dnstap");
        out.clear();
        Control::Stop.write(&mut out);
        assert_eq!(out, b"\0\0\0\0\0\0\0\x04\0\0\0\x03");
        out.clear();
        push_frame(&mut out, |out| out.extend_from_slice(b"data"));
        assert_eq!(out, b"\0\0\0\x04data");
    }
}
