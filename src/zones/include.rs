//! `$INCLUDE`: one zone's text from several files (RFC 1035 §5.1), with one count of offsets over all of them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Source;
use super::entry::{Fault, Token};
use crate::document::{Lines, Mistake};

/// The largest text of one zone, in octets, all its files together; guessed: room for a million records.
pub(super) const MAX_TEXT: usize = 64 << 20;

/// How deep files may include files; guessed. It also ends what includes itself.
const MAX_DEPTH: usize = 8;

/// Reads the file at a path, which is relative to where the program runs.
pub(super) type Open<'o> = &'o dyn Fn(&Path) -> Result<Source, Mistake>;

/// The texts of one zone. Offsets count on from each text to the next that is begun.
pub(super) struct Texts<'o> {
    open: Open<'o>,
    /// The files that are being read, each included by the one before it.
    stack: Vec<Arc<str>>,
    /// What was included, and the offset of its first octet.
    included: Vec<(usize, Source)>,
    /// The offset of the next text.
    end: usize,
}

impl<'o> Texts<'o> {
    /// Begins with the zone's own file, at offset 0.
    pub(super) fn new(source: &Source, open: Open<'o>) -> Self {
        Self { open, stack: vec![Arc::clone(&source.file)], included: Vec::new(), end: source.text.len() + 1 }
    }

    /// Opens the file that `token` names, which is relative to the file that includes it; its offset.
    pub(super) fn begin(&mut self, token: Token<'_>) -> Result<(usize, Source), Fault> {
        let fault = |fact: String, remedy: &str| Fault::new(token.at, fact, remedy);
        if self.stack.len() > MAX_DEPTH {
            let fact = format!("files include files more than {MAX_DEPTH} deep");
            return Err(fault(fact, "let no file include itself, or one that includes it"));
        }
        let written = token.octets().and_then(|octets| String::from_utf8(octets).ok());
        let written = written.ok_or_else(|| fault(format!("\"{}\" is not a path", token.raw), "correct it"))?;
        let includer = self.stack.last().map_or("", |file| &**file);
        let path: PathBuf = Path::new(includer).parent().unwrap_or(Path::new("")).join(written);
        let source = (self.open)(&path).map_err(|mistake| {
            let fact = mistake.place.map_or_else(|| mistake.fact.clone(), |place| format!("{place}: {}", mistake.fact));
            fault(fact, &mistake.remedy)
        })?;
        let base = self.end;
        self.end += source.text.len() + 1;
        if self.end > MAX_TEXT {
            let fact = format!("the zone's files are larger than {} MiB together", MAX_TEXT >> 20);
            return Err(fault(fact, "split it into several zones"));
        }
        self.stack.push(Arc::clone(&source.file));
        Ok((base, source))
    }

    /// Its last line was read.
    pub(super) fn end(&mut self, base: usize, source: Source) {
        self.stack.pop();
        self.included.push((base, source));
    }

    /// The faults of all texts as mistakes: the zone's own file first, each file's in the order of their places.
    pub(super) fn placed(mut self, source: &Source, mut faults: Vec<Fault>) -> Vec<Mistake> {
        faults.sort_by_key(|fault| fault.at);
        self.included.sort_by_key(|(base, _)| *base);
        let mut texts = self.included.iter().map(|(base, source)| (*base, source)).peekable();
        let (mut base, mut current) = (0, lines(source));
        let mut mistakes = Vec::with_capacity(faults.len());
        for fault in faults {
            while let Some((next, source)) = texts.next_if(|(next, _)| *next <= fault.at) {
                (base, current) = (next, lines(source));
            }
            mistakes.push(Mistake::at(current.place(fault.at - base), fault.fact, fault.remedy));
        }
        mistakes
    }
}

fn lines(source: &Source) -> Lines<'_> {
    Lines::new(Arc::clone(&source.file), &*source.text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Question;
    use crate::zones::Zones;

    const SOA: &str = "$TTL 1h\n@ SOA ns hostmaster 1 1h 15m 7d 5m\n";

    /// Compiles `z/example.org.zone` with these files beside it.
    fn compile(text: &str, files: &[(&str, &str)]) -> Result<Zones, String> {
        let source = Source { file: Arc::from("z/example.org.zone"), text: text.to_owned() };
        let open = |path: &Path| {
            let found = files.iter().find(|(file, _)| Path::new(file) == path);
            let (file, text) = found.ok_or_else(|| Mistake::general(format!("no {}", path.display()), "create it"))?;
            Ok(Source { file: Arc::from(*file), text: (*text).to_owned() })
        };
        Zones::compile_with(&[source], &open)
            .map_err(|mistakes| mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    }

    #[test]
    fn an_included_file_has_its_own_origin_owner_and_ttl_and_changes_none_outside() {
        let text = format!(
            "{SOA}www A 192.0.2.1\n$INCLUDE in/sub.inc sub ; comment\n TXT after\nhost A 192.0.2.2\n$include \"in/low.inc\"\n"
        );
        let sub =
            "$TTL 5\n@ A 192.0.2.3\nwww A 192.0.2.4\n$ORIGIN else\nx A 192.0.2.5\n$INCLUDE low.inc\ny 9 A 192.0.2.6";
        let zones = compile(&text, &[("z/in/sub.inc", sub), ("z/in/low.inc", "low A 192.0.2.7\n")]).unwrap();
        let mut rows = Vec::new();
        for question in [
            "www A",
            "www TXT",
            "host A",
            "sub A",
            "www.sub A",
            "x.else.sub A",
            "y.else.sub A",
            "low.else.sub A",
            "low A",
        ] {
            let (name, kind) = question.split_once(' ').unwrap();
            let name = format!("{name}.example.org").parse().unwrap();
            let answer = zones.answer(&Question { name, kind: kind.parse().unwrap() }).unwrap();
            rows.extend(
                answer
                    .records
                    .iter()
                    .map(|record| format!("{question} {} {}", record.ttl.seconds(), record.data.last().unwrap())),
            );
        }
        assert_eq!(
            rows,
            [
                "www A 3600 1",
                "www TXT 3600 114",
                "host A 3600 2",
                "sub A 5 3",
                "www.sub A 5 4",
                "x.else.sub A 5 5",
                "y.else.sub A 9 6",
                "low.else.sub A 5 7",
                "low A 3600 7"
            ]
        );
    }

    #[test]
    fn mistakes_name_the_file_and_line_they_stand_in() {
        let text = format!("{SOA}$INCLUDE a.inc\nwww A 192.0.2.256\n$INCLUDE b.inc\n");
        let files =
            [("z/a.inc", "x A nowhere\n\n  TXT ok\n$INCLUDE b.inc c\nlast A x"), ("z/b.inc", " A 192.0.2.1\n\"\n")];
        let expected = "\
z/example.org.zone:4:7: \"192.0.2.256\" is not an IPv4 address
  write an IPv4 address here
z/a.inc:1:5: \"nowhere\" is not an IPv4 address
  write an IPv4 address here
z/a.inc:5:8: \"x\" is not an IPv4 address
  write an IPv4 address here
z/b.inc:1:2: the first record has no owner
  write the owner's name, or @, at the start of the line
z/b.inc:2:1: a quote is not closed on its line
  close it with \"
z/b.inc:1:2: the first record has no owner
  write the owner's name, or @, at the start of the line
z/b.inc:2:1: a quote is not closed on its line
  close it with \"";
        assert_eq!(compile(&text, &files).unwrap_err(), expected);
    }

    #[test]
    fn what_cannot_be_included_ends_the_zone_with_one_mistake() {
        let large = "; comment\n".repeat(MAX_TEXT / 10);
        for (line, expected) in [
            ("$INCLUDE", "3:9: $INCLUDE has no value\n  write $INCLUDE hosts.inc"),
            ("$INCLUDE a b c", "3:12: \"b\" is more than $INCLUDE holds\n  remove it"),
            ("$INCLUDE gone", "3:10: no z/gone\n  create it"),
            ("$INCLUDE \\255", "3:10: \"\\255\" is not a path\n  correct it"),
            (
                "$INCLUDE large.inc",
                "3:10: the zone's files are larger than 64 MiB together\n  split it into several zones",
            ),
            (
                "$INCLUDE large.inc a..b",
                "3:20: \"a..b\" is not a domain name: it has an empty label\n  write a name like www, www.example.org. or @",
            ),
        ] {
            let found = compile(&format!("{SOA}{line}\nwww A x\n"), &[("z/large.inc", &large)]).unwrap_err();
            assert_eq!(found, format!("z/example.org.zone:{expected}"), "{line}");
        }
        let again = compile(
            &format!("{SOA}$INCLUDE again.inc\n"),
            &[("z/again.inc", "$INCLUDE again.inc\n$INCLUDE again.inc\n")],
        );
        assert_eq!(
            again.unwrap_err(),
            "z/again.inc:1:10: files include files more than 8 deep\n  let no file include itself, or one that includes it"
        );
    }
}
