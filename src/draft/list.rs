//! Lists of names, one a line: plain, as a hosts file, with leading dots or `*.`, or `||name^`.

use std::net::IpAddr;
use std::sync::Arc;

use super::names::{Names, Taken, is_host_text};
use super::{Draft, Entry, Heading, Rule};
use crate::document::{Mistake, Place};
use crate::net::Prefix;
use crate::policy::{Action, Vetter};

/// What a list does not say of itself.
#[derive(Clone, Copy, Debug)]
pub struct ListTerms {
    /// What its names are for.
    pub action: Action,
    /// Each plain name stands for the names below it as well.
    pub below: bool,
}

/// One rule with the names of a list.
#[must_use]
pub fn list(file: &str, text: &str, heading: &Heading, terms: ListTerms) -> Draft {
    let vetter = Vetter::default();
    let mut reader = Reader {
        names: Names::new(&vetter, terms.action),
        rule: Rule::new(super::text::Ids::default().take(&heading.id), terms.action, heading),
        terms,
        file: Arc::from(file),
        left: Vec::new(),
        stars: 0,
    };
    for (number, line) in (1..).zip(text.trim_start_matches('\u{feff}').lines()) {
        reader.line(number, line);
    }
    let Reader { rule, left, stars, names, .. } = reader;
    let mut notes: Vec<String> = names.reaching().into_iter().collect();
    if stars > 0 {
        let read = match terms.action {
            Action::Allow => "was read as exactly one label more; write \"**.\" where any depth is meant",
            Action::Deny => "was read as any depth",
        };
        notes.push(format!("\"*.\" before {stars} names {read}"));
    }
    let rules = if rule.names.is_empty() { Vec::new() } else { vec![rule] };
    Draft { head: vec![format!("From the list {file}.")], rules, left, notes, ..Draft::default() }
}

struct Reader<'v> {
    names: Names<'v>,
    rule: Rule,
    terms: ListTerms,
    file: Arc<str>,
    left: Vec<Mistake>,
    /// Names that began with `*.`.
    stars: usize,
}

impl Reader<'_> {
    fn line(&mut self, number: u32, line: &str) {
        // `!` and `[` begin the comments and the title of filter lists.
        if line.trim_start().starts_with(['#', '!', ';', '[']) {
            return;
        }
        let words: Vec<&str> = line.split_whitespace().take_while(|word| !word.starts_with(['#', ';'])).collect();
        match words.as_slice() {
            [] => {}
            [word] => self.word(number, word),
            [address, names @ ..] => match address.parse::<IpAddr>() {
                Ok(address) if address.is_unspecified() || address.is_loopback() => {
                    // What every hosts file begins with: the names of the host itself.
                    let own = |name: &&&str| {
                        !name.contains('.') || **name == "localhost.localdomain" || name.parse::<IpAddr>().is_ok()
                    };
                    names.iter().filter(|name| !own(name)).for_each(|name| self.name(number, name));
                }
                Ok(address) => {
                    let fact = format!("{} has the address {address} here", names.join(" "));
                    self.leave(number, fact, "put it into a local zone");
                }
                Err(_) => self.leave(number, format!("\"{}\" is not one name", words.join(" ")), "write a name a line"),
            },
        }
    }

    /// A line of one word.
    fn word(&mut self, number: u32, word: &str) {
        let address = word.parse::<IpAddr>().is_ok() || word.parse::<Prefix>().is_ok();
        if address {
            self.leave(number, format!("{word} is no name"), "write a rule with `networks`");
        } else if let Some(name) = word.strip_prefix("||").and_then(|rest| rest.strip_suffix('^')) {
            self.with_below(number, name);
        } else if let Some(name) = word.strip_prefix('.') {
            self.with_below(number, name);
        } else if let Some(base) = word.strip_prefix("*.") {
            self.stars += 1;
            match self.terms.action {
                Action::Allow => self.name(number, word),
                Action::Deny => self.name(number, &format!("**.{base}")),
            }
        } else if self.terms.below && !word.contains('*') {
            self.with_below(number, word);
        } else {
            self.name(number, word);
        }
    }

    fn with_below(&mut self, number: u32, name: &str) {
        self.name(number, name);
        if is_host_text(name) && !name.contains('*') {
            self.name(number, &format!("**.{name}"));
        }
    }

    fn name(&mut self, number: u32, name: &str) {
        if !is_host_text(name) {
            self.leave(number, format!("\"{name}\" is not a name of a host"), "write a name a line");
            return;
        }
        match self.names.take(name) {
            Taken::New(name) => self.rule.names.push(Entry { name, comment: String::new() }),
            Taken::Again => {}
            Taken::Refused(why, remedy) => self.leave(number, format!("\"{name}\" {why}"), remedy),
        }
    }

    fn leave(&mut self, line: u32, fact: String, remedy: &str) {
        let place = Place { file: Arc::clone(&self.file), line, column: 1 };
        self.left.push(Mistake::at(place, fact, remedy));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;
    use crate::draft::testing::{checked, heading, left};

    fn read(text: &str, action: Action, below: bool) -> Draft {
        let draft = list("x.txt", text, &heading(), ListTerms { action, below });
        checked(&draft);
        draft
    }

    fn names(draft: &Draft) -> Vec<&str> {
        draft.rules.iter().flat_map(|rule| &rule.names).map(|entry| entry.name.as_str()).collect()
    }

    #[test]
    fn reads_the_forms_that_lists_have() {
        let text = "\u{feff}# title\n! of a filter list\n[Adblock Plus]\n\nb.example.org\r\n  a.example.org # why\n\
                    .dots.example.org\n||adblock.example.org^\n*.star.example.org\nB.EXAMPLE.org.\nbücher.example.net\n\
                    0.0.0.0 localhost 0.0.0.0\n127.0.0.1 ads.example.com track.example.com # two\n::1 ip6-localhost\n\
                    ad*.example.org\n";
        let expected = [
            "b.example.org",
            "a.example.org",
            "dots.example.org",
            "**.dots.example.org",
            "adblock.example.org",
            "**.adblock.example.org",
            "*.star.example.org",
            "xn--bcher-kva.example.net",
            "ads.example.com",
            "track.example.com",
            "ad*.example.org",
        ];
        let allow = read(text, Action::Allow, false);
        assert_eq!(names(&allow), expected);
        assert_eq!(left(&allow), [""; 0]);
        assert_eq!(allow.notes.len(), 1);
        let deny = read(text, Action::Deny, false);
        assert_eq!(names(&deny)[6], "**.star.example.org", "a deny takes the wider meaning");
        let below = read("a.example.org\n*.b.example.org\nads*.example.org", Action::Allow, true);
        assert_eq!(names(&below), ["a.example.org", "**.a.example.org", "*.b.example.org", "ads*.example.org"]);
    }

    #[test]
    fn tells_what_it_leaves_and_widens_nothing() {
        let text = "ok.example.org\n*.com\n.github.io\n*\nhttps://x.example.org/\nx y z\n10.0.0.5 intra.example.org\n\
                    192.0.2.0/24\n@@||x.example.org^\nexample.org##.ad\nmask.icloud.com\nprinter.local\na..b\n";
        let draft = read(text, Action::Allow, false);
        assert_eq!(names(&draft), ["ok.example.org", "github.io"]);
        assert_eq!(
            left(&draft),
            [
                "2: \"*.com\" would allow a whole top-level domain",
                "3: \"**.github.io\" is on a public suffix: anyone may have a name below github.io",
                "4: \"*\" would match every name",
                "5: \"https://x.example.org/\" is not a name of a host",
                "6: \"x y z\" is not one name",
                "7: intra.example.org has the address 10.0.0.5 here",
                "8: 192.0.2.0/24 is no name",
                "9: \"@@||x.example.org^\" is not a name of a host",
                "10: \"example.org##.ad\" is not a name of a host",
                "11: \"mask.icloud.com\" leads round this resolver: mask.icloud.com is on the bypass list",
                "12: \"printer.local\" is answered here: local is a special-use name",
                "13: \"a..b\" is not a name: it has an empty label",
            ]
        );
    }

    proptest! {
        #[test]
        fn whatever_is_listed_the_rules_pass_check(
            lines in prop::collection::vec(("(\\|\\||\\*\\*?\\.|\\.|0\\.0\\.0\\.0 |@@|a\\*|)", select(BASES.to_vec()), "(\\^|\\.| #x|\\$a|)"), 0..20),
            deny in any::<bool>(),
            below in any::<bool>(),
        ) {
            let text: String = lines.iter().map(|(before, base, after)| format!("{before}{base}{after}\n")).collect();
            read(&text, if deny { Action::Deny } else { Action::Allow }, below);
        }

        #[test]
        fn any_text_is_read(text in "[a-c.*|^#! @\\n\\\\\"ü\u{202e}0-2:/]{0,80}") {
            read(&text, Action::Allow, false);
        }
    }

    /// Names of every kind that rules treat apart.
    const BASES: [&str; 16] = [
        "example.org",
        "a.example.org",
        "com",
        "co.uk",
        "github.io",
        "x.github.io",
        "s3.amazonaws.com",
        "ck",
        "compute.amazonaws.com",
        "corp",
        "localhost",
        "x.local",
        "home.arpa",
        "dns.google",
        "wpad.example.org",
        "bücher.de",
    ];

    #[test]
    fn a_suffix_carries_no_more_globs_than_check_takes() {
        let text: String = (0..300).map(|n| format!("a{n}*.example.org\n")).collect();
        let draft = read(&text, Action::Allow, false);
        assert_eq!((draft.count(Action::Allow), draft.left.len()), (256, 44));
    }
}
