//! Domain names in canonical form, and the only place that compares them.
//!
//! A [`Name`] is lower case, uncompressed wire format (RFC 4034 §6.2), so that equality, hashing and
//! "is below" are byte operations. Hot paths work on borrowed wire slices and [`NameBuf`], which live
//! on the stack.

use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// The longest name on the wire, root label included (RFC 1035 §2.3.4).
pub const MAX_WIRE: usize = 255;
/// The longest label (RFC 1035 §2.3.4).
pub const MAX_LABEL: usize = 63;

/// A complete domain name: lower case, wire format, at most 255 octets, ending in the root label.
///
/// Cheap to clone. Look-ups in a map keyed by `Name` take a wire slice (`&[u8]`).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Arc<[u8]>);

/// Why text or bytes are not a domain name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Two dots in a row, a leading dot, or no text at all.
    #[error("it has an empty label")]
    EmptyLabel,
    /// A label of more than 63 octets.
    #[error("a label is longer than 63 octets")]
    LabelTooLong,
    /// More than 255 octets on the wire.
    #[error("the name is longer than 255 octets")]
    NameTooLong,
    /// A `\` that is not followed by three digits up to 255 or by one character.
    #[error("a backslash must be followed by three digits up to 255 or by one character")]
    BadEscape,
    /// Letters outside ASCII that are not a valid internationalised label (RFC 5891).
    #[error("it is not a valid internationalised name")]
    BadUnicode,
    /// The bytes end early, go on after the root, or hold a compression pointer.
    #[error("the bytes are not one complete uncompressed name")]
    BadWire,
}

impl Name {
    /// The root, `.`.
    #[must_use]
    pub fn root() -> Self {
        Self(Arc::from([0u8].as_slice()))
    }

    /// Reads presentation format (RFC 1035 §5.1): `\DDD` and `\c` escapes, trailing dot optional, `.` is
    /// the root. Letters outside ASCII go through IDNA (RFC 5891).
    ///
    /// # Errors
    /// [`NameError`] says what is wrong with the text.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        NameBuf::parse(text).map(|name| name.to_name())
    }

    /// Takes one complete uncompressed name and lower-cases it.
    ///
    /// # Errors
    /// [`NameError::BadWire`] where the bytes are not exactly one name, or its size limits are passed.
    pub fn from_wire(wire: &[u8]) -> Result<Self, NameError> {
        let mut buf = NameBuf::new();
        let mut rest = wire;
        loop {
            let (&length, tail) = rest.split_first().ok_or(NameError::BadWire)?;
            if length == 0 {
                return if tail.is_empty() { Ok(buf.to_name()) } else { Err(NameError::BadWire) };
            }
            let length = usize::from(length);
            if length > MAX_LABEL || length > tail.len() {
                return Err(NameError::BadWire);
            }
            let (label, after) = tail.split_at(length);
            buf.push_label(label)?;
            rest = after;
        }
    }

    /// The wire form, root label included.
    #[must_use]
    pub fn as_wire(&self) -> &[u8] {
        &self.0
    }

    /// Labels from the leftmost to the one below the root.
    pub fn labels(&self) -> impl Iterator<Item = &[u8]> {
        labels(&self.0)
    }

    /// How many labels, the root not counted.
    #[must_use]
    pub fn label_count(&self) -> usize {
        self.labels().count()
    }

    /// True for `ancestor` itself and everything below it.
    #[must_use]
    pub fn is_within(&self, ancestor: &Self) -> bool {
        is_within(&self.0, &ancestor.0)
    }

    /// The name one label shorter; `None` for the root.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        ancestors(&self.0).nth(1).map(|wire| Self(Arc::from(wire)))
    }

    /// This name with one more label in front.
    ///
    /// # Errors
    /// The size limits of [`NameError`].
    pub fn child(&self, label: &[u8]) -> Result<Self, NameError> {
        let mut buf = NameBuf::new();
        buf.push_label(label)?;
        for label in self.labels() {
            buf.push_label(label)?;
        }
        Ok(buf.to_name())
    }
}

impl Borrow<[u8]> for Name {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for Name {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_presentation(&self.0, f)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_presentation(&self.0, f)
    }
}

impl std::str::FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::parse(text)
    }
}

/// A name being built or just read from a packet, on the stack. Derefs to its wire form, which is
/// complete (ends in the root label) at all times.
#[derive(Clone)]
pub struct NameBuf {
    wire: [u8; MAX_WIRE],
    length: usize,
}

impl Default for NameBuf {
    fn default() -> Self {
        Self::new()
    }
}

impl NameBuf {
    /// The root.
    #[must_use]
    pub const fn new() -> Self {
        Self { wire: [0; MAX_WIRE], length: 1 }
    }

    /// As [`Name::parse`].
    ///
    /// # Errors
    /// [`NameError`] says what is wrong with the text.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let mut name = Self::new();
        if text == "." {
            return Ok(name);
        }
        let ascii;
        let text = if text.is_ascii() {
            text
        } else {
            ascii = idna::domain_to_ascii(text).map_err(|_| NameError::BadUnicode)?;
            &ascii
        };
        let mut label = [0; MAX_LABEL];
        let mut length = 0;
        let mut bytes = text.bytes();
        let mut ended_with_dot = false;
        while let Some(byte) = bytes.next() {
            ended_with_dot = byte == b'.';
            let octet = match byte {
                b'.' => {
                    name.push_label(label.get(..length).unwrap_or_default())?;
                    length = 0;
                    continue;
                }
                b'\\' => escaped(&mut bytes)?,
                other => other,
            };
            *label.get_mut(length).ok_or(NameError::LabelTooLong)? = octet;
            length += 1;
        }
        if !ended_with_dot {
            name.push_label(label.get(..length).unwrap_or_default())?;
        }
        Ok(name)
    }

    /// Appends one label, lower-cased, to the right of those already there.
    ///
    /// # Errors
    /// An empty label, one over 63 octets, or a name over 255.
    pub fn push_label(&mut self, label: &[u8]) -> Result<(), NameError> {
        if label.is_empty() {
            return Err(NameError::EmptyLabel);
        }
        if label.len() > MAX_LABEL {
            return Err(NameError::LabelTooLong);
        }
        let start = self.length - 1;
        let end = start + 1 + label.len();
        let (Some(target), true) = (self.wire.get_mut(start..end), end < MAX_WIRE) else {
            return Err(NameError::NameTooLong);
        };
        if let Some((length, text)) = target.split_first_mut() {
            *length = u8::try_from(label.len()).unwrap_or(u8::MAX);
            text.copy_from_slice(label);
            text.make_ascii_lowercase();
        }
        self.length = end + 1;
        Ok(())
    }

    /// An owned, shareable copy.
    #[must_use]
    pub fn to_name(&self) -> Name {
        Name(Arc::from(&**self))
    }
}

impl PartialEq for NameBuf {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for NameBuf {}

impl fmt::Display for NameBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_presentation(self, f)
    }
}

impl fmt::Debug for NameBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_presentation(self, f)
    }
}

impl Deref for NameBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.wire.get(..self.length).unwrap_or_default()
    }
}

/// The octet that is escaped by the backslash just read: three digits or one character.
fn escaped(bytes: &mut std::str::Bytes<'_>) -> Result<u8, NameError> {
    let first = bytes.next().ok_or(NameError::BadEscape)?;
    if !first.is_ascii_digit() {
        return Ok(first);
    }
    let mut value = u32::from(first - b'0');
    for _ in 0..2 {
        let digit = bytes.next().filter(u8::is_ascii_digit).ok_or(NameError::BadEscape)?;
        value = value * 10 + u32::from(digit - b'0');
    }
    u8::try_from(value).map_err(|_| NameError::BadEscape)
}

/// Labels of a complete wire name, leftmost first, without the root.
pub fn labels(wire: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = wire;
    std::iter::from_fn(move || {
        let (&length, tail) = rest.split_first()?;
        let (label, after) = tail.split_at_checked(usize::from(length)).filter(|_| length > 0)?;
        rest = after;
        Some(label)
    })
}

/// The name that begins here, root label included, and what follows it; `None` where the bytes end before it does. Its
/// labels are not looked at: [`Name::from_wire`] does that.
#[must_use]
pub fn split_first(wire: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut end = 0;
    loop {
        let label = usize::from(*wire.get(end)?);
        end += 1 + label;
        if label == 0 {
            return wire.split_at_checked(end);
        }
    }
}

/// The name itself, its parent, and so on up to and including the root.
pub fn ancestors(wire: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut next = Some(wire).filter(|wire| !wire.is_empty());
    std::iter::from_fn(move || {
        let current = next?;
        let length = usize::from(current.first().copied().unwrap_or(0));
        next = (length > 0).then(|| current.get(length + 1..)).flatten();
        Some(current)
    })
}

/// True where `wire` is `ancestor` or below it; both complete and lower case. Compares at label
/// boundaries: `hackerexample.com` is not within `example.com`.
#[must_use]
pub fn is_within(wire: &[u8], ancestor: &[u8]) -> bool {
    wire.len() >= ancestor.len() && ancestors(wire).any(|candidate| candidate == ancestor)
}

/// Writes presentation format without a trailing dot: `.` and `\` escaped by a backslash, octets outside
/// `!`..`~` as `\DDD` (RFC 1035 §5.1). The root is `.`.
///
/// # Errors
/// Those of the writer.
pub fn write_presentation(wire: &[u8], out: &mut impl fmt::Write) -> fmt::Result {
    let mut first = true;
    for label in labels(wire) {
        if !std::mem::take(&mut first) {
            out.write_char('.')?;
        }
        for &byte in label {
            match byte {
                b'.' | b'\\' => write!(out, "\\{}", char::from(byte))?,
                b'!'..=b'~' => out.write_char(char::from(byte))?,
                other => write!(out, "\\{other:03}")?,
            }
        }
    }
    if first { out.write_char('.') } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn compares_at_label_boundaries() {
        let zone = Name::parse("example.com").unwrap();
        for (text, within) in
            [("example.com", true), ("a.example.com", true), ("hackerexample.com", false), ("com", false)]
        {
            assert_eq!(Name::parse(text).unwrap().is_within(&zone), within, "{text}");
        }
        assert!(zone.is_within(&Name::root()));
    }

    #[test]
    fn reads_and_refuses_text() {
        let rows: [(&str, Result<&str, NameError>); 9] = [
            ("API.Example.COM.", Ok("api.example.com")),
            (".", Ok(".")),
            ("bücher.example", Ok("xn--bcher-kva.example")),
            (r"a\.b.example", Ok(r"a\.b.example")),
            (r"\000\255.example", Ok(r"\000\255.example")),
            ("a..b", Err(NameError::EmptyLabel)),
            ("", Err(NameError::EmptyLabel)),
            (r"a\25", Err(NameError::BadEscape)),
            (r"a\256", Err(NameError::BadEscape)),
        ];
        for (text, expected) in rows {
            let got = Name::parse(text).map(|name| name.to_string());
            assert_eq!(got, expected.map(str::to_owned), "{text}");
        }
        assert_eq!(Name::parse(&"a".repeat(64)), Err(NameError::LabelTooLong));
        assert_eq!(Name::parse(&vec!["a".repeat(49); 6].join(".")), Err(NameError::NameTooLong));
        assert_eq!(Name::parse(&"a.".repeat(127)).unwrap().as_wire().len(), 255);
    }

    proptest! {
        #[test]
        fn presentation_round_trips(labels in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 0..8)) {
            let mut buf = NameBuf::new();
            for label in &labels { buf.push_label(label).unwrap(); }
            let name = buf.to_name();
            prop_assert_eq!(&Name::parse(&name.to_string()).unwrap(), &name);
            prop_assert_eq!(&Name::from_wire(name.as_wire()).unwrap(), &name);
            prop_assert_eq!(name.label_count(), labels.len());
            prop_assert_eq!(ancestors(name.as_wire()).count(), labels.len() + 1);
        }

        #[test]
        fn wire_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Name::from_wire(&bytes);
            labels(&bytes).for_each(drop);
            if let Some((name, rest)) = split_first(&bytes) {
                prop_assert_eq!(name.len() + rest.len(), bytes.len());
                prop_assert!(name.ends_with(&[0]));
            }
            ancestors(&bytes).for_each(drop);
        }
    }
}
