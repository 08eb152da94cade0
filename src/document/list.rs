//! Lists of plain strings, read where they stand: a list of a million names is never a million values.
//!
//! A TOML parser makes tokens and values of a whole text, of such a list some twenty times its size. So [`Rest::of`] cuts
//! out what is inside every list whose items are all plain strings before the parser sees the text, and [`Items`] reads
//! it from the text when it is asked for. Whatever is not certainly such a list is left to the parser, which says what
//! is wrong with it.

use std::ops::Range;

/// What remains of a text without what is inside its plain lists: each is `[]`.
pub(super) struct Rest {
    pub(super) text: String,
    /// Where in `text` something was cut out, and how many bytes of the whole text were cut out so far.
    cuts: Vec<(usize, usize)>,
}

impl Rest {
    pub(super) fn of(text: &str) -> Self {
        let mut rest = Self { text: String::new(), cuts: Vec::new() };
        let mut kept = 0;
        let mut cut = 0;
        for inside in plain_lists(text) {
            rest.text.push_str(text.get(kept..inside.start).unwrap_or_default());
            cut += inside.len();
            kept = inside.end;
            rest.cuts.push((rest.text.len(), cut));
        }
        rest.text.push_str(text.get(kept..).unwrap_or_default());
        rest
    }

    /// Where in the whole text the byte at `at` of the rest stands.
    pub(super) fn whole(&self, at: usize) -> usize {
        let before = self.cuts.partition_point(|(place, _)| *place <= at);
        let cut = before.checked_sub(1).and_then(|last| self.cuts.get(last)).map_or(0, |(_, cut)| *cut);
        at + cut
    }
}

/// What is between the brackets of each plain list that is a value, in order.
///
/// Follows the text only as far as it must to tell strings and comments from the rest. Text that is no TOML may lead it
/// astray, but what it finds is a list all the same, and what was wrong before that is still there for the parser.
fn plain_lists(text: &str) -> impl Iterator<Item = Range<usize>> {
    let bytes = text.as_bytes();
    let mut at = 0;
    std::iter::from_fn(move || {
        while let Some(byte) = bytes.get(at) {
            match byte {
                b'#' => at = line_end(bytes, at),
                b'"' | b'\'' => at = string_end(bytes, at, *byte),
                b'=' => {
                    at += 1;
                    while matches!(bytes.get(at), Some(b' ' | b'\t')) {
                        at += 1;
                    }
                    if bytes.get(at) == Some(&b'[')
                        && let Some(end) = Items::new(text, at).end()
                    {
                        let inside = at + 1..end;
                        at = end + 1;
                        return Some(inside);
                    }
                }
                _ => at += 1,
            }
        }
        None
    })
}

/// The end of the line, or of the text.
fn line_end(bytes: &[u8], at: usize) -> usize {
    bytes.iter().skip(at).position(|byte| *byte == b'\n').map_or(bytes.len(), |length| at + length)
}

/// Behind the string of any kind whose first quote is at `at`; a string of one line ends with it at the latest.
fn string_end(bytes: &[u8], at: usize, quote: u8) -> usize {
    let quotes = |at: usize| bytes.iter().skip(at).take(5).take_while(|byte| **byte == quote).count();
    let multiline = quotes(at) >= 3;
    let mut at = at + if multiline { 3 } else { 1 };
    while let Some(byte) = bytes.get(at) {
        at += match byte {
            b'\\' if quote == b'"' => 2,
            b'\n' if !multiline => return at,
            // TOML 1.0: up to two quotes may stand before the three that end a string.
            byte if *byte == quote && multiline => match quotes(at) {
                few @ ..3 => few,
                many => return at + many,
            },
            byte if *byte == quote => return at + 1,
            _ => 1,
        };
    }
    bytes.len()
}

/// The items of a plain list, each with where it stands, quotes included.
#[derive(Clone)]
pub(super) struct Items<'a> {
    text: &'a str,
    at: usize,
    /// An item may come next: a comma or the opening bracket was last.
    separated: bool,
}

/// What comes next in a list.
enum Next {
    /// An item: the bytes between its quotes.
    Item(Range<usize>),
    /// The closing bracket.
    End(usize),
    /// Something else: this is no plain list.
    Other,
}

impl<'a> Items<'a> {
    /// Of the list whose opening bracket is at `open`.
    pub(super) const fn new(text: &'a str, open: usize) -> Self {
        Self { text, at: open + 1, separated: true }
    }

    /// Where the closing bracket stands; `None` where this is no plain list.
    fn end(mut self) -> Option<usize> {
        loop {
            match self.step() {
                Next::Item(_) => {}
                Next::End(at) => return Some(at),
                Next::Other => return None,
            }
        }
    }

    fn step(&mut self) -> Next {
        let bytes = self.text.as_bytes();
        loop {
            match bytes.get(self.at) {
                Some(b' ' | b'\t' | b'\n') => self.at += 1,
                Some(b'\r') if bytes.get(self.at + 1) == Some(&b'\n') => self.at += 2,
                Some(b'#') => {
                    let end = line_end(bytes, self.at);
                    let comment = bytes.get(self.at..end).unwrap_or_default();
                    if !comment.strip_suffix(b"\r").unwrap_or(comment).iter().all(is_plain) {
                        return Next::Other;
                    }
                    self.at = end;
                }
                Some(b',') if !self.separated => {
                    self.separated = true;
                    self.at += 1;
                }
                Some(b']') => return Next::End(self.at),
                Some(quote @ (b'"' | b'\'')) if self.separated => return self.item(bytes, *quote),
                _ => return Next::Other,
            }
        }
    }

    /// The string of one line, without any escape, whose first quote is here.
    fn item(&mut self, bytes: &[u8], quote: u8) -> Next {
        let start = self.at + 1;
        let inside = |byte: &u8| *byte != quote && is_plain(byte) && (*byte != b'\\' || quote == b'\'');
        let end = start + bytes.iter().skip(start).take_while(|byte| inside(byte)).count();
        // Two quotes and a third begin a string of many lines.
        if bytes.get(end) != Some(&quote) || (end == start && bytes.get(end + 1) == Some(&quote)) {
            return Next::Other;
        }
        self.at = end + 1;
        self.separated = false;
        Next::Item(start..end)
    }
}

impl<'a> Iterator for Items<'a> {
    type Item = (&'a str, Range<usize>);

    fn next(&mut self) -> Option<Self::Item> {
        match self.step() {
            Next::Item(item) => Some((self.text.get(item.clone())?, item.start - 1..item.end + 1)),
            Next::End(_) | Next::Other => None,
        }
    }
}

/// TOML 1.0: neither strings of one line nor comments hold control characters other than the tab.
const fn is_plain(byte: &u8) -> bool {
    matches!(byte, b'\t' | b' '..=b'~' | 0x80..)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use toml::Spanned;
    use toml::de::{DeTable, DeValue};

    /// Every value of a text with its place, the parser given all of it.
    fn read(text: &str) -> Option<Vec<String>> {
        let (root, errors) = DeTable::parse_recoverable(text);
        let mut found = Vec::new();
        for (key, value) in root.get_ref() {
            walk(key.get_ref(), value, &|at| at, None, &mut found);
        }
        errors.is_empty().then_some(found)
    }

    /// The same, the parser given the rest.
    fn read_apart(text: &str) -> Option<Vec<String>> {
        let rest = Rest::of(text);
        let (root, errors) = DeTable::parse_recoverable(&rest.text);
        let mut found = Vec::new();
        for (key, value) in root.get_ref() {
            walk(key.get_ref(), value, &|at| rest.whole(at), Some(text), &mut found);
        }
        errors.is_empty().then_some(found)
    }

    fn walk(
        key: &str,
        value: &Spanned<DeValue<'_>>,
        whole: &dyn Fn(usize) -> usize,
        text: Option<&str>,
        found: &mut Vec<String>,
    ) {
        let span = value.span();
        let at = whole(span.start);
        match value.get_ref() {
            DeValue::Array(items) if items.is_empty() => {
                found.push(format!("{key} {at}: array"));
                let items = text.into_iter().flat_map(|text| Items::new(text, at));
                found.extend(items.map(|(item, span)| format!("{key} {}: {item:?}", span.start)));
            }
            DeValue::Array(items) => {
                found.push(format!("{key} {at}: array"));
                items.iter().for_each(|item| walk(key, item, whole, text, found));
            }
            DeValue::Table(entries) => {
                found.push(format!("{key} {at}: table"));
                for (inner, value) in entries {
                    let inner = format!("{key}/{}@{}", inner.get_ref(), whole(inner.span().start));
                    walk(&inner, value, whole, text, found);
                }
            }
            DeValue::String(text) => found.push(format!("{key} {at}: {text:?}")),
            other => found.push(format!("{key} {at}: {other:?}")),
        }
    }

    const PIECES: &[&str] = &[
        "\"", "'", "\"\"\"", "\'\'\'", "\\", "[", "]", ",", "=", " = [", "#", "\n", "\r\n", "\r", "\t", "\u{7f}",
        "\u{b}", "{", "}", "ü", "1", " ",
    ];

    fn gap() -> impl Strategy<Value = String> {
        prop::sample::select(vec!["", "", " ", "\n", "\t\r\n  ", " # \"c\" = [\n", "#\n"]).prop_map(str::to_owned)
    }

    fn string() -> impl Strategy<Value = String> {
        let texts = [
            "\"a\"",
            "'a'",
            "\"\"",
            "''",
            "\"ü = ['x']\"",
            "'\\'",
            "\"#\"",
            "\"\\\"\"",
            "\"\\\\\"",
            "\"\"\"\n = [\"x\"]\"\"\"\"",
            "\'\'\'a = ['\n\'\'\'\'\'",
            "\"\"\"\\\"\"\"\"\"\"",
            "\"\t]\"",
        ];
        prop::sample::select(texts.to_vec()).prop_map(str::to_owned)
    }

    fn list() -> impl Strategy<Value = String> {
        let item = (gap(), string(), gap()).prop_map(|(before, text, after)| before + &text + &after);
        (prop::collection::vec(item, 0..4), any::<bool>(), gap()).prop_map(|(items, comma, end)| {
            let comma = if comma && !items.is_empty() { "," } else { "" };
            format!("[{}{comma}{end}]", items.join(","))
        })
    }

    fn value() -> impl Strategy<Value = String> {
        prop_oneof![
            4 => list(),
            2 => string(),
            1 => Just("1".to_owned()),
            1 => Just("1979-05-27T07:32:00Z".to_owned()),
            1 => list().prop_map(|list| format!("[{list}, 1]")),
            1 => list().prop_map(|list| format!("{{ a = {list}, \"b=[\" = 2 }}")),
        ]
    }

    fn document() -> impl Strategy<Value = String> {
        let line = prop_oneof![
            6 => value().prop_map(|value| format!("KEY = {value}\n")),
            1 => value().prop_map(|value| format!("\"KEY = ['\" ={value}\n")),
            1 => Just("[KEY]\n".to_owned()),
            1 => Just("[[many]]\n".to_owned()),
            1 => Just("# don't = [\"x\n".to_owned()),
        ];
        prop::collection::vec(line, 0..6).prop_map(|lines| {
            lines.iter().enumerate().map(|(number, line)| line.replace("KEY", &format!("k{number}"))).collect()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn a_text_reads_the_same_without_its_lists(text in document()) {
            prop_assert!(read(&text).is_some(), "not TOML");
            prop_assert_eq!(read_apart(&text), read(&text));
        }

        #[test]
        fn no_mistake_is_cut_out(
            text in document(),
            at in any::<prop::sample::Index>(),
            remove in 0..3usize,
            piece in prop::sample::select(PIECES),
        ) {
            let starts: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
            let at = at.index(starts.len());
            let until = starts[(at + remove).min(starts.len() - 1)];
            let text = format!("{}{piece}{}", &text[..starts[at]], &text[until..]);
            prop_assert_eq!(read_apart(&text), read(&text));
        }
    }

    #[test]
    fn a_long_list_leaves_nothing_for_the_parser() {
        let text = format!("a = [\n{}]\nb = 1\n", "  \"www.example.org\", # why\n".repeat(1000));
        let rest = Rest::of(&text);
        assert_eq!(rest.text, "a = []\nb = 1\n");
        assert_eq!(Items::new(&text, 4).count(), 1000);
        assert_eq!(rest.whole(4), 4);
        assert_eq!(rest.whole(5), text.len() - 8);
    }
}
