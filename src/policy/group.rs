//! Groups: lists of names with a name of their own, written once and named by rules as `"@NAME"`.

use std::cell::Cell;
use std::collections::BTreeMap;

use super::load::in_alphabet;
use super::pattern::Pattern;
use crate::document::{Document, Found, Place, Table, Warning, WarningKind};

/// Every `[[group]]` of a policy.
#[derive(Default)]
pub(super) struct Groups(BTreeMap<String, Group>);

struct Group {
    place: Place,
    /// Each pattern as it is written, and what it means.
    names: Vec<(String, Pattern)>,
    used: Cell<bool>,
}

impl Groups {
    /// Whether rules of this text may name a group.
    pub(super) fn may_be_named_in(text: &str) -> bool {
        text.contains("\"@") || text.contains("'@")
    }

    /// Reads one `[[group]]`; mistakes go to its document.
    pub(super) fn read(&mut self, table: Table) {
        let document = table.document().clone();
        let name = table.required_string("name");
        if !table.has("names") {
            document.note(table.span(), "the group has no names", "add names = [\"…\"]");
        }
        let mut names = Vec::new();
        for entry in table.each("names").into_iter().flatten() {
            if entry.value.starts_with('@') {
                document.note(&entry.span, "a group names another group", "write the names that are meant");
                continue;
            }
            match Pattern::parse(entry.value) {
                Ok(pattern) => names.push((entry.value.to_owned(), pattern)),
                Err(error) => {
                    document.note(&entry.span, format!("\"{}\" {error}", entry.value), error.remedy());
                }
            }
        }
        let place = document.place(table.span());
        table.finish(&[]);
        let Some(name) = name else { return };
        if !in_alphabet(&name.value) {
            let remedy = "write 1 to 63 letters, digits, `_`, `.` or `-`";
            document.note(&name.span, format!("a group cannot be named \"{}\"", name.value), remedy);
        } else if let Some(first) = self.0.get(&name.value) {
            let fact = format!("the group {} is defined already, at {}", name.value, first.place);
            document.note(&name.span, fact, "rename one");
        } else {
            self.0.insert(name.value, Group { place, names, used: Cell::new(false) });
        }
    }

    /// The names that an entry of a list stands for, where it is no name itself.
    pub(super) fn named(
        &self,
        document: &Document,
        entry: &Found<&str>,
    ) -> Option<impl Iterator<Item = (&str, &Pattern)>> {
        let name = entry.value.strip_prefix('@')?;
        let group = self.0.get(name);
        match group {
            Some(group) => group.used.set(true),
            None => {
                document.note(&entry.span, format!("no group is named \"{name}\""), "add a [[group]], or correct it");
            }
        }
        Some(group.into_iter().flat_map(|group| group.names.iter().map(|(text, pattern)| (text.as_str(), pattern))))
    }

    /// What to say of groups that no rule names.
    pub(super) fn unused(&self) -> impl Iterator<Item = Warning> {
        let unused = self.0.iter().filter(|(_, group)| !group.used.get());
        unused.map(|(name, group)| {
            Warning::at(
                WarningKind::UnusedGroup,
                group.place.clone(),
                format!("no rule names the group {name}"),
                "name it as \"@…\", or remove it",
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::policy::testing::{NOW, policy, verdict};
    use crate::policy::{Settings, Source, compile};
    use crate::record::RecordType;

    #[test]
    fn stands_for_its_names_in_every_list() {
        let policy = policy(
            r#"
[[segment]]
name    = "shop"
clients = ["192.0.2.0/24"]
[[rule]]
id       = "code"
action   = "allow"
segments = ["shop"]
names    = ["@forge", "forge.example.com", "one.example.org"]
except   = ["@secret"]
cname    = ["@forge"]
[[rule]]
id       = "other"
action   = "allow"
segments = ["shop"]
names    = ["@forge"]
[[group]]
name  = "forge"
names = ["forge.example.com", "*.forge.example.com"]
[[group]]
name  = "secret"
names = ["admin.forge.example.com"]
[[group]]
name  = "idle"
names = ["idle.example.com"]
"#,
        );
        let told = |name| verdict(&policy, "192.0.2.1", name, RecordType::A, NOW);
        assert_eq!(told("forge.example.com"), "permit code other");
        assert_eq!(told("raw.forge.example.com"), "permit code other");
        assert_eq!(told("admin.forge.example.com"), "permit other");
        assert_eq!(told("one.example.org"), "permit code");
        assert_eq!(told("idle.example.com"), "default NxDomain");
        let warnings: Vec<_> = policy.warnings().iter().map(ToString::to_string).collect();
        assert_eq!(warnings, ["test.toml:23:1: no rule names the group idle\n  name it as \"@…\", or remove it"]);
    }

    #[test]
    fn says_what_is_wrong_where_it_is() {
        let text = r#"
[[segment]]
name = "shop"
[[group]]
name  = "wide"
names = ["*.com", "a..b", "@other", "ok.example.com"]
[[group]]
name  = "wide"
names = ["b.example.com"]
[[group]]
name  = "a b"
[[rule]]
id       = "r"
action   = "allow"
segments = ["shop"]
names    = ["@wide", "@none", "x.example.com", "x.example.com"]
warm     = true
"#;
        let source = Source { file: "a.toml".to_owned(), text: text.to_owned() };
        let mistakes = compile([source], &Settings::default()).unwrap_err();
        let told: String = mistakes.iter().map(|mistake| format!("{mistake}\n")).collect();
        let expected = r#"a.toml:6:19: "a..b" is not a name: it has an empty label
  write a domain name, e.g. "api.example.com"
a.toml:6:27: a group names another group
  write the names that are meant
a.toml:8:9: the group wide is defined already, at a.toml:4:1
  rename one
a.toml:10:1: the group has no names
  add names = ["…"]
a.toml:11:9: a group cannot be named "a b"
  write 1 to 63 letters, digits, `_`, `.` or `-`
a.toml:16:13: "*.com" is no whole name, and the rule keeps its names warm
  write the names that are meant, or remove `warm`
a.toml:16:13: "*.com" would allow a whole top-level domain
  write the full suffix, e.g. "*.example.com"
a.toml:16:22: no group is named "none"
  add a [[group]], or correct it
a.toml:16:48: "x.example.com" is in this list already, at a.toml:16:31
  remove one
"#;
        assert_eq!(told, expected, "\n{told}");
    }
}
