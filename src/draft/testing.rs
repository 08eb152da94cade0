//! Short words for this room's tests.

use std::sync::Arc;

use super::{Draft, Heading};
use crate::name::Name;
use crate::policy::{Policy, Server, Settings, Site, Source, Verdict, compile, decide};
use crate::record::RecordType;
use crate::time::Wall;

pub(super) fn heading() -> Heading {
    Heading { segments: vec!["office".to_owned()], id: "imported".to_owned() }
}

/// Asserts that a policy with the segment takes the draft as it is, without a warning; the policy.
pub(super) fn checked(draft: &Draft) -> Arc<Policy> {
    let segment = "[[segment]]\nname = \"office\"\nclients = [\"192.0.2.0/24\"]\n[[rule]]\nid = \"r\"\naction = \"allow\"\n\
                   segments = [\"*\"]\nnames = [\"example.invalid.org\"]\n";
    let files = [("office.toml", segment.to_owned()), ("draft.toml", draft.to_string())];
    let files = files.map(|(file, text)| Source { file: file.to_owned(), text });
    // What is learned of a special-use name is served here.
    let site = Site { apex: Name::parse("x.local").unwrap(), server: Server::Zone };
    let policy = compile(files, &Settings { sites: vec![site], ..Settings::default() });
    let policy = policy.unwrap_or_else(|mistakes| panic!("{mistakes:#?}\n{draft}"));
    assert!(policy.warnings().is_empty(), "{:?}\n{draft}", policy.warnings());
    assert_eq!(policy.rules_len(), draft.rules.len() + 1);
    Arc::new(policy)
}

/// Whether each name may be asked for, by a policy of the draft alone.
pub(super) fn decided<T: AsRef<str>>(draft: &Draft, names: &[T]) -> Vec<bool> {
    allowed(draft, &names.iter().map(|name| (name.as_ref(), RecordType::A)).collect::<Vec<_>>())
}

/// The same for names with types.
pub(super) fn allowed(draft: &Draft, questions: &[(&str, RecordType)]) -> Vec<bool> {
    let policy = checked(draft);
    let asker = policy.asker("192.0.2.1".parse().unwrap()).unwrap();
    let decided = questions.iter().map(|(name, kind)| {
        let name = Name::parse(name).unwrap();
        let verdict = decide(&policy, asker, name.as_wire(), *kind, Wall(1_000_000_000_000_000));
        matches!(verdict, Verdict::Permit(_))
    });
    decided.collect()
}

/// What was left, as `line: fact`.
pub(super) fn left(draft: &Draft) -> Vec<String> {
    draft.left.iter().map(|left| format!("{}: {}", left.place.as_ref().unwrap().line, left.fact)).collect()
}
