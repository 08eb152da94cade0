//! A master file as entries: lines joined by parentheses, comments gone, escapes left in place (RFC 1035 §5.1).
//!
//! The text is split here and not by hickory's lexer because every mistake needs its place, and because that lexer
//! takes the quotes of a string within parentheses for letters, knows no `@` in record data, and reads the decimal
//! `\DDD` as something else.

/// A mistake at an offset of one zone's text.
#[derive(Debug)]
pub(super) struct Fault {
    /// Octets from the start of the text; included files stand behind it ([`Texts`](super::include::Texts)).
    pub(super) at: usize,
    /// What is wrong.
    pub(super) fact: String,
    /// What to do.
    pub(super) remedy: String,
}

impl Fault {
    pub(super) fn new(at: usize, fact: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { at, fact: fact.into(), remedy: remedy.into() }
    }
}

/// One word or one quoted string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token<'a> {
    /// As written, without the quotes of a quoted string.
    pub(super) raw: &'a str,
    /// It stood in quotes.
    pub(super) quoted: bool,
    /// Where it begins.
    pub(super) at: usize,
}

impl Token<'_> {
    /// The octets that are meant: `\DDD` is one octet, `\c` is `c` itself. `None` where `\DDD` is not three digits
    /// up to 255, or nothing follows the backslash.
    pub(super) fn octets(self) -> Option<Vec<u8>> {
        let mut octets = Vec::with_capacity(self.raw.len());
        let mut rest = self.raw.bytes();
        while let Some(byte) = rest.next() {
            octets.push(match byte {
                b'\\' => match rest.next()? {
                    first @ b'0'..=b'9' => {
                        let digits = [first, rest.next()?, rest.next()?];
                        std::str::from_utf8(&digits).ok()?.parse().ok()?
                    }
                    other => other,
                },
                other => other,
            });
        }
        Some(octets)
    }
}

/// A line that is not blank, or several within parentheses.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    /// It begins with a blank: "the RR is assumed to be owned by the last stated owner".
    pub(super) inherits: bool,
    /// At least one.
    pub(super) tokens: Vec<Token<'a>>,
    /// Where its last token ends.
    pub(super) end: usize,
}

/// Splits a text. A broken entry is an `Err`; the next one is read all the same.
pub(super) struct Entries<'a> {
    text: &'a str,
    at: usize,
    /// What the places of its tokens and faults are counted from.
    base: usize,
}

impl<'a> Entries<'a> {
    pub(super) const fn new(text: &'a str, base: usize) -> Self {
        Self { text, at: 0, base }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// The text from `start` to here. Both stand next to an ASCII octet or at the end, so on a character.
    fn since(&self, start: usize) -> &'a str {
        self.text.get(start..self.at).unwrap_or_default()
    }

    /// Up to the end of the line, which is not passed.
    fn comment(&mut self) {
        let rest = self.text.get(self.at..).unwrap_or_default();
        self.at += rest.find('\n').unwrap_or(rest.len());
    }

    /// Up to the closing quote, which is passed; `None` where the line ends first.
    fn quoted(&mut self) -> Option<&'a str> {
        self.at += 1;
        let start = self.at;
        loop {
            match self.peek()? {
                b'"' => break,
                b'\n' => return None,
                b'\\' if self.text.as_bytes().get(self.at + 1).is_some_and(|next| *next != b'\n') => self.at += 2,
                _ => self.at += 1,
            }
        }
        let raw = self.since(start);
        self.at += 1;
        Some(raw)
    }

    /// A word; quotes within it (`alpn="h2,h3"`, RFC 9460 §2.1) belong to it. `None` where such a quote stays open.
    fn word(&mut self) -> Option<&'a str> {
        let start = self.at;
        while let Some(byte) = self.peek() {
            match byte {
                b' ' | b'\t' | b'\r' | b'\n' | 0x0c | b';' | b'(' | b')' => break,
                b'"' => {
                    self.quoted()?;
                }
                b'\\' if self.text.as_bytes().get(self.at + 1).is_some_and(|next| *next != b'\n') => self.at += 2,
                _ => self.at += 1,
            }
        }
        Some(self.since(start))
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let inherits = matches!(self.peek()?, b' ' | b'\t');
            let mut tokens = Vec::new();
            let mut fault = None;
            let mut end = self.base + self.at;
            let mut open: Vec<usize> = Vec::new();
            while let Some(byte) = self.peek() {
                let at = self.base + self.at;
                match byte {
                    b'\n' => {
                        self.at += 1;
                        if open.is_empty() {
                            break;
                        }
                    }
                    b' ' | b'\t' | b'\r' | 0x0c => self.at += 1,
                    b';' => self.comment(),
                    b'(' => {
                        self.at += 1;
                        open.push(at);
                    }
                    b')' => {
                        self.at += 1;
                        if open.pop().is_none() {
                            let new = Fault::new(at, "`)` closes no `(`", "remove it, or write \\) for the character");
                            fault.get_or_insert(new);
                        }
                    }
                    _ => {
                        let quoted = byte == b'"';
                        match if quoted { self.quoted() } else { self.word() } {
                            Some(raw) => {
                                tokens.push(Token { raw, quoted, at });
                                end = self.base + self.at;
                            }
                            None => {
                                let new = Fault::new(at, "a quote is not closed on its line", "close it with \"");
                                fault.get_or_insert(new);
                            }
                        }
                    }
                }
            }
            if let Some(at) = open.pop() {
                fault.get_or_insert(Fault::new(at, "`(` is never closed", "close it with )"));
            }
            match fault {
                Some(fault) => return Some(Err(fault)),
                None if tokens.is_empty() => {}
                None => return Some(Ok(Entry { inherits, tokens, end })),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(text: &str) -> Vec<Result<(bool, Vec<&str>), String>> {
        Entries::new(text, 0)
            .map(|entry| match entry {
                Ok(entry) => Ok((entry.inherits, entry.tokens.iter().map(|token| token.raw).collect())),
                Err(fault) => Err(format!("{}: {}", fault.at, fault.fact)),
            })
            .collect()
    }

    #[test]
    fn splits_lines_as_rfc_1035_says() {
        type Row<'a> = (&'a str, &'a str, &'a [(bool, &'a [&'a str])]);
        let rows: &[Row<'_>] = &[
            ("blank lines and comments are nothing", "\n  ; c\n\t\n;c\r\n", &[]),
            (
                "a leading blank inherits the owner",
                "a A 1\n  A 2\r\n",
                &[(false, &["a", "A", "1"]), (true, &["A", "2"])],
            ),
            (
                "parentheses join lines",
                "a SOA b c ( 1 ; serial\n 2\n) 3\nb",
                &[(false, &["a", "SOA", "b", "c", "1", "2", "3"]), (false, &["b"])],
            ),
            (
                "quotes hold blanks, ; and parentheses",
                r#"a TXT ( "x; (y" "" )"#,
                &[(false, &["a", "TXT", "x; (y", ""])],
            ),
            (
                "a backslash hides the next character",
                r#"a\;b "q\"r" s\ t\("#,
                &[(false, &[r"a\;b", r#"q\"r"#, r"s\ t\("])],
            ),
            ("quotes within a word belong to it", r#"alpn="h2 ,h3" k"#, &[(false, &[r#"alpn="h2 ,h3""#, "k"])]),
            ("neighbouring strings are two", r#""a""b""#, &[(false, &["a", "b"])]),
        ];
        for (reason, text, expected) in rows {
            let expected: Vec<_> = expected.iter().map(|(inherits, words)| Ok((*inherits, words.to_vec()))).collect();
            assert_eq!(words(text), expected, "{reason}");
        }
    }

    #[test]
    fn a_broken_entry_does_not_hide_the_next() {
        let text = "a TXT \"open\nb A 1 )\nc A 1\nd ( e\n f\n";
        let expected = [
            Err("6: a quote is not closed on its line".to_owned()),
            Err("18: `)` closes no `(`".to_owned()),
            Ok((false, vec!["c", "A", "1"])),
            Err("28: `(` is never closed".to_owned()),
        ];
        assert_eq!(words(text), expected);
    }

    #[test]
    fn escapes_are_decimal_octets() {
        let octets = |raw| Token { raw, quoted: true, at: 0 }.octets();
        assert_eq!(octets(r"a\065\.\\\255").unwrap(), b"aA.\\\xff");
        for raw in [r"\25", r"\256", r"\", r"\2x5", r"\1+5"] {
            assert_eq!(octets(raw), None, "{raw}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_split_within_its_bounds(text in "[ab \\t\\n\\r;()\"\\\\é]{0,60}") {
            for entry in Entries::new(&text, 0) {
                match entry {
                    Ok(entry) => for token in entry.tokens {
                        let start = token.at + usize::from(token.quoted);
                        prop_assert_eq!(text.get(start..start + token.raw.len()), Some(token.raw));
                    },
                    Err(fault) => prop_assert!(fault.at < text.len()),
                }
            }
        }
    }
}
