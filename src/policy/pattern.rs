//! Name patterns: what a rule's `names` may say, and which names each one matches.
//!
//! | written | matches |
//! |---|---|
//! | `api.example.com` | that name |
//! | `*.example.com` | names with exactly one label more |
//! | `**.example.com` | names with one or more labels more |
//! | `kv*.example.com` | names with one label more, of that shape |
//!
//! The apex (`example.com`) is matched by none of the last three.

use std::fmt;

use psl::Psl as _;
use smallvec::SmallVec;

use crate::name::{MAX_WIRE, NameBuf, NameError, labels, write_presentation};

/// One pattern, in canonical form; it is written as a rule has it.
#[derive(Clone, PartialEq, Eq)]
pub struct Pattern {
    pub(super) shape: Shape,
    /// The whole name where the shape is exact, else what follows the first label.
    pub(super) base: NameBuf,
}

/// What the first label of a pattern says.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Shape {
    /// This very name.
    Exact,
    /// `*`: one label.
    One,
    /// `**`: one or more labels.
    Many,
    /// One label of this shape; `*` stands for any octets, also none.
    Glob(Box<[u8]>),
}

/// Why text is not a pattern; each is the end of a sentence that begins with the pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// `*` or `**` alone.
    #[error("would match every name")]
    Everything,
    /// A `*` in a label that is not the first.
    #[error("has a `*` after the first label")]
    StarInside,
    /// A glob with a backslash or letters outside ASCII in its label.
    #[error("has a label with `*` that is not plain ASCII")]
    GlobText,
    /// The name itself is wrong.
    #[error("is not a name: {0}")]
    Name(#[from] NameError),
}

impl PatternError {
    /// What to write instead.
    pub(super) const fn remedy(&self) -> &'static str {
        match self {
            Self::Everything => "name the suffixes that are meant, e.g. \"**.example.com\"",
            Self::StarInside => {
                "write \"*.example.com\" (one label), \"**.example.com\" (one or more) or \"kv*.example.com\""
            }
            Self::GlobText => "use letters, digits, `-`, `_` and `*` in that label",
            Self::Name(_) => "write a domain name, e.g. \"api.example.com\"",
        }
    }
}

/// How far a wildcard reaches beyond one owner's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// Below a registrable domain: one owner.
    Owner,
    /// Directly below a public suffix: anyone may register a name that matches.
    Tenants,
    /// A whole top-level domain of the public DNS.
    TopLevel,
}

impl Pattern {
    /// Reads one pattern; U-labels become A-labels.
    ///
    /// # Errors
    /// [`PatternError`] says what is wrong.
    pub(super) fn parse(text: &str) -> Result<Self, PatternError> {
        let (first, rest) = split_first_label(text);
        if has_star(rest) {
            return Err(PatternError::StarInside);
        }
        if !has_star(first) {
            return Ok(Self { shape: Shape::Exact, base: NameBuf::parse(text)? });
        }
        let shape = match first {
            "*" => Shape::One,
            "**" => Shape::Many,
            _ if !first.is_ascii() || first.contains('\\') => return Err(PatternError::GlobText),
            _ => Shape::Glob(first.to_ascii_lowercase().into_bytes().into()),
        };
        if rest.is_empty() || rest == "." {
            return Err(PatternError::Everything);
        }
        let base = NameBuf::parse(rest)?;
        // One octet of a label has to fit in front, or nothing could ever match.
        if base.len() + 2 > MAX_WIRE {
            return Err(NameError::NameTooLong.into());
        }
        Ok(Self { shape, base })
    }

    /// How far the pattern reaches, by the public suffix list, its private section included.
    pub(super) fn reach(&self) -> Reach {
        if self.shape == Shape::Exact {
            return Reach::Owner;
        }
        let mut labels: SmallVec<[&[u8]; 8]> = labels(&self.base).collect();
        labels.reverse();
        let whole = self.base.len().saturating_sub(2);
        let suffix = psl::List.find(labels.iter().copied());
        // The list itself has wildcards ("*.ck", "*.compute.amazonaws.com"): then every name below is a suffix.
        let below = psl::List.find(labels.iter().copied().chain(std::iter::once(b"x".as_slice())));
        if labels.len() == 1 && (suffix.typ.is_some() || below.typ.is_some()) {
            Reach::TopLevel
        } else if suffix.len == whole || below.len == whole + 2 {
            Reach::Tenants
        } else {
            Reach::Owner
        }
    }

    /// True where `wire` (canonical) is one of the pattern's names: the plain definition, which the index must agree with.
    #[cfg(test)]
    pub(super) fn matches(&self, wire: &[u8]) -> bool {
        let base = &*self.base;
        let depth = crate::name::ancestors(wire).position(|ancestor| ancestor == base);
        match (&self.shape, depth) {
            (Shape::Exact, Some(0)) | (Shape::One, Some(1)) | (Shape::Many, Some(1..)) => true,
            (Shape::Glob(glob), Some(1)) => labels(wire).next().is_some_and(|label| glob_matches(glob, label)),
            _ => false,
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.shape {
            Shape::Exact => {}
            Shape::One => f.write_str("*.")?,
            Shape::Many => f.write_str("**.")?,
            Shape::Glob(glob) => write!(f, "{}.", String::from_utf8_lossy(glob))?,
        }
        write_presentation(&self.base, f)
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Splits at the first dot that no backslash escapes.
fn split_first_label(text: &str) -> (&str, &str) {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'.' if !escaped => return (text.get(..at).unwrap_or(text), text.get(at + 1..).unwrap_or("")),
            b'\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    (text, "")
}

/// True where a `*` stands that no backslash escapes.
fn has_star(text: &str) -> bool {
    let mut escaped = false;
    text.bytes().any(|byte| {
        let star = byte == b'*' && !escaped;
        escaped = byte == b'\\' && !escaped;
        star
    })
}

/// True where `label` has the shape `glob`. Each `*` first takes nothing and grows only where the rest fails,
/// so the time is at most the product of two label lengths.
pub(super) fn glob_matches(glob: &[u8], label: &[u8]) -> bool {
    let (mut at, mut read) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while read < label.len() {
        match (glob.get(at), label.get(read)) {
            (Some(b'*'), _) => {
                at += 1;
                retry = Some((at, read));
            }
            (Some(wanted), Some(found)) if wanted == found => {
                at += 1;
                read += 1;
            }
            _ => {
                let Some((after_star, taken)) = retry else { return false };
                retry = Some((after_star, taken + 1));
                (at, read) = (after_star, taken + 1);
            }
        }
    }
    glob.iter().skip(at).all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::Name;

    #[test]
    fn matches_what_it_says() {
        let rows = [
            ("api.example.com", "api.example.com", true),
            ("api.example.com", "x.api.example.com", false),
            ("API.Example.com.", "api.example.com", true),
            ("*.example.com", "a.example.com", true),
            ("*.example.com", "example.com", false),
            ("*.example.com", "b.a.example.com", false),
            ("*.example.com", "a.hackerexample.com", false),
            ("**.example.com", "a.example.com", true),
            ("**.example.com", "c.b.a.example.com", true),
            ("**.example.com", "example.com", false),
            ("kv*.blob.example.net", "kv1.blob.example.net", true),
            ("kv*.blob.example.net", "kv.blob.example.net", true),
            ("kv*.blob.example.net", "x.kv1.blob.example.net", false),
            ("kv*.blob.example.net", "akv1.blob.example.net", false),
            ("KV*-*z.example.net", "kva-bz-z.example.net", true),
            ("kv*-*z.example.net", "kvabz.example.net", false),
            ("*.bücher.example", "a.xn--bcher-kva.example", true),
            (r"\*.example.com", r"\*.example.com", true),
            (r"\*.example.com", "a.example.com", false),
        ];
        for (pattern, name, expected) in rows {
            let matched = Pattern::parse(pattern).unwrap().matches(Name::parse(name).unwrap().as_wire());
            assert_eq!(matched, expected, "{pattern} on {name}");
        }
    }

    #[test]
    fn refuses_what_is_no_pattern() {
        let rows = [
            ("*", PatternError::Everything),
            ("**", PatternError::Everything),
            ("*.", PatternError::Everything),
            ("*..", PatternError::Everything),
            ("a*", PatternError::Everything),
            ("a.*.example.com", PatternError::StarInside),
            ("*.*.example.com", PatternError::StarInside),
            ("bü*.example.com", PatternError::GlobText),
            (r"a\042*.example.com", PatternError::GlobText),
            ("a..example.com", PatternError::Name(NameError::EmptyLabel)),
            ("", PatternError::Name(NameError::EmptyLabel)),
        ];
        for (text, expected) in rows {
            assert_eq!(Pattern::parse(text), Err(expected), "{text}");
        }
        let longest = format!("*.{}", vec!["a"; 127].join("."));
        assert_eq!(Pattern::parse(&longest), Err(PatternError::Name(NameError::NameTooLong)));
    }

    #[test]
    fn knows_how_far_a_wildcard_reaches() {
        let rows = [
            ("*.com", Reach::TopLevel),
            ("**.com", Reach::TopLevel),
            ("*.xn--p1ai", Reach::TopLevel),
            ("*.co.uk", Reach::Tenants),
            ("*.github.io", Reach::Tenants),
            ("*.s3.amazonaws.com", Reach::Tenants),
            ("kv*.blob.core.windows.net", Reach::Tenants),
            ("*.ck", Reach::TopLevel),
            ("*.corp", Reach::Tenants),
            ("**.compute.amazonaws.com", Reach::Tenants),
            ("*.example.com", Reach::Owner),
            ("*.corp.example", Reach::Owner),
            ("*.x.github.io", Reach::Owner),
            ("github.io", Reach::Owner),
        ];
        for (text, expected) in rows {
            assert_eq!(Pattern::parse(text).unwrap().reach(), expected, "{text}");
        }
    }
}
