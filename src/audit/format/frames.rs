//! Frame Streams: how frames of octets follow each other in a file, or on a connection of which both ends speak.
//!
//! A data frame has its length before it, 32 bits in network order. A length of 0 escapes a control frame: its own
//! length, its type, and fields. The format has no RFC; it is that of `fstrm/control.h` of its reference library.
//!
//! ```text
//! a file, and a receiver that says nothing     START frames… STOP
//! a connection                                 READY ← ACCEPT, START frames… STOP ← FINISH
//! ```

use std::io::{self, Read};

/// The content type of dnstap's frames.
pub(in crate::audit) const DNSTAP: &str = "protobuf:dnstap.Dnstap";

/// "The maximum length in bytes of an 'Accept', 'Start', or 'Stop' control frame payload", the type included.
const MAX_CONTROL: usize = 512;

/// The field that holds a content type.
const CONTENT_TYPE: u32 = 1;

/// What a control frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::audit) enum Control {
    /// The receiver takes these content types.
    Accept,
    /// Data follows.
    Start,
    /// No data follows.
    Stop,
    /// The sender has these content types.
    Ready,
    /// The receiver has read all before STOP.
    Finish,
}

impl Control {
    const ALL: [(Self, u32); 5] =
        [(Self::Accept, 1), (Self::Start, 2), (Self::Stop, 3), (Self::Ready, 4), (Self::Finish, 5)];

    /// Appends it; with the content type, where it is of a kind that has one.
    pub(in crate::audit) fn write(self, out: &mut Vec<u8>) {
        let number = Self::ALL.iter().find(|(control, _)| *control == self).map_or(0, |(_, number)| *number);
        let field = match self {
            Self::Stop | Self::Finish => None,
            Self::Accept | Self::Start | Self::Ready => Some(DNSTAP),
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

    /// Reads one, and whether its sender speaks of dnstap: one that names no content type speaks of any.
    ///
    /// # Errors
    /// Those of the reader; `InvalidData` where it is no control frame.
    pub(in crate::audit) fn read(from: &mut impl Read) -> io::Result<(Self, bool)> {
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("{what} is no Frame Streams"));
        if number(from)? != 0 {
            return Err(invalid("what it said"));
        }
        let length = usize::try_from(number(from)?).ok().filter(|length| (4..=MAX_CONTROL).contains(length));
        let mut frame = vec![0; length.ok_or_else(|| invalid("the length of what it said"))?];
        from.read_exact(&mut frame)?;
        let mut rest = frame.as_slice();
        let kind = number(&mut rest)?;
        let (control, _) =
            Self::ALL.into_iter().find(|(_, known)| *known == kind).ok_or_else(|| invalid("a word of it"))?;
        let (mut named, mut meant) = (false, false);
        while !rest.is_empty() {
            let (field, length) = (number(&mut rest)?, number(&mut rest)?);
            let value = usize::try_from(length).ok().and_then(|length| rest.split_off(..length));
            let value = value.ok_or_else(|| invalid("a field of it"))?;
            if field == CONTENT_TYPE {
                named = true;
                meant |= value == DNSTAP.as_bytes();
            }
        }
        Ok((control, meant || !named))
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

fn number(from: &mut impl Read) -> io::Result<u32> {
    let mut octets = [0; 4];
    from.read_exact(&mut octets)?;
    Ok(u32::from_be_bytes(octets))
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

    #[test]
    fn reads_what_it_writes() {
        for (control, _) in Control::ALL {
            let mut out = Vec::new();
            control.write(&mut out);
            let mut rest = out.as_slice();
            assert_eq!(Control::read(&mut rest).unwrap(), (control, true));
            assert!(rest.is_empty());
            for end in 0..out.len() {
                assert_eq!(Control::read(&mut &out[..end]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
            }
        }
    }

    #[test]
    fn knows_its_content_type_among_others() {
        let accept = |types: &[&[u8]]| {
            let fields: Vec<u8> =
                types.iter().flat_map(|name| [&[0, 0, 0, 1, 0, 0, 0, name.len() as u8], *name].concat()).collect();
            [&[0; 4], &length_of(4 + fields.len())[..], &[0, 0, 0, 1], &fields].concat()
        };
        for (types, meant) in [
            (&[][..], true),
            (&[DNSTAP.as_bytes()], true),
            (&[b"text", DNSTAP.as_bytes()], true),
            (&[b"text"], false),
            (&[b""], false),
        ] {
            assert_eq!(Control::read(&mut &*accept(types)).unwrap(), (Control::Accept, meant), "{types:?}");
        }
    }

    #[test]
    fn refuses_what_is_no_control_frame() {
        for (reason, octets) in [
            ("a data frame", b"HTTP/1.1 400".as_slice()),
            ("no type", b"\0\0\0\0\0\0\0\x03\0\0\0"),
            ("too long", b"\0\0\0\0\0\0\x02\x01"),
            ("an unknown type", b"\0\0\0\0\0\0\0\x04\0\0\0\x06"),
            ("a field longer than its frame", b"\0\0\0\0\0\0\0\x0d\0\0\0\x01\0\0\0\x01\0\0\0\x02a"),
        ] {
            assert_eq!(Control::read(&mut &*octets).unwrap_err().kind(), io::ErrorKind::InvalidData, "{reason}");
        }
        // Half a field.
        Control::read(&mut b"\0\0\0\0\0\0\0\x06\0\0\0\x01\0\0".as_slice()).unwrap_err();
    }
}
