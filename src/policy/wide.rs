//! Wildcards through which data could leave: those that hold names of other owners, and those with a type whose data is free.

use super::link::Linker;
use super::load::Placed;
use super::pattern::{Pattern, Shape};
use super::rule::RuleDraft;
use super::sites::Sites;
use crate::document::{Document, Found, Warning, WarningKind};
use crate::name::Name;
use crate::record::RecordType;

/// Domains that are no public suffixes themselves and have some below them.
const TENANTS: &str = include_str!("tenants.txt");

/// Wildcards of one rule that are told of.
const TOLD: usize = 8;

/// What is wide about a wildcard.
pub(super) enum Wide {
    /// It holds this public suffix.
    Tenants(&'static str),
    /// The rule has this type.
    Channel(RecordType),
}

/// The wildcards of one rule, as they are read.
pub(super) struct Wildcards {
    channel: Option<RecordType>,
    found: Vec<Placed<(Pattern, Wide)>>,
}

impl Wildcards {
    /// Of a rule with these types.
    pub(super) fn with(types: &[RecordType]) -> Self {
        Self { channel: types.iter().copied().find(|kind| is_free(*kind)), found: Vec::new() }
    }

    /// Looks at one of its patterns; `tenants`: it may hold names of others.
    pub(super) fn check(&mut self, document: &Document, entry: &Found<&str>, pattern: &Pattern, tenants: bool) {
        if pattern.shape != Shape::Many || self.found.len() >= TOLD {
            return;
        }
        let held = if tenants { None } else { held_by(pattern) };
        for wide in held.map(Wide::Tenants).into_iter().chain(self.channel.map(Wide::Channel)) {
            self.found.push(Placed { value: (pattern.clone(), wide), place: document.place(&entry.span) });
        }
    }

    pub(super) fn finish(self) -> Vec<Placed<(Pattern, Wide)>> {
        self.found
    }
}

/// Whether records of this type hold whatever their owner writes.
const fn is_free(kind: RecordType) -> bool {
    matches!(kind, RecordType::TXT | RecordType::SPF | RecordType::KEY | RecordType::OPENPGPKEY | RecordType::SMIMEA)
        || kind.mnemonic().is_none()
}

/// The public suffix that a wildcard holds.
fn held_by(pattern: &Pattern) -> Option<&'static str> {
    let base = pattern.base.to_name();
    rows().find(|(host, _)| Name::parse(host).is_ok_and(|host| host == base)).map(|(_, suffix)| suffix)
}

fn rows() -> impl Iterator<Item = (&'static str, &'static str)> {
    let lines = TENANTS.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.split_once(' ')).map(|(host, suffix)| (host, suffix.trim()))
}

impl Linker {
    /// What is served here is nobody else's.
    pub(super) fn warn_of_wildcards(&mut self, drafts: &[RuleDraft], sites: &Sites) {
        for Placed { value: (pattern, wide), place } in drafts.iter().flat_map(|draft| &draft.wide) {
            let base = pattern.base.to_name();
            let warning = match wide {
                Wide::Tenants(suffix) => {
                    let fact = format!("\"{pattern}\" holds {suffix}, and anybody may have a name there");
                    let remedy = "name what is meant of it, or add allow_tenant_wildcard = true";
                    Warning::at(WarningKind::Tenants, place.clone(), fact, remedy)
                }
                Wide::Channel(_) if sites.own(&base) => continue,
                Wide::Channel(kind) => {
                    let fact = format!(
                        "\"{pattern}\" with {kind}: any name there can be asked for and answered with any text, so that \
                         data can pass both ways"
                    );
                    let remedy = format!("name the names whose {kind} is needed, in a rule of their own");
                    Warning::at(WarningKind::Channel, place.clone(), fact, remedy)
                }
            };
            self.warnings.push(warning);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::pattern::Reach;
    use crate::policy::testing::policy_with;
    use crate::policy::{Server, Settings, Site};

    #[test]
    fn every_line_of_the_list_shows_that_it_belongs_there() {
        assert!(rows().count() > 30);
        for (host, suffix) in rows() {
            let reach = |base: &str| Pattern::parse(&format!("**.{base}")).unwrap().reach();
            assert_eq!((reach(host), reach(suffix)), (Reach::Owner, Reach::Tenants), "{host}");
            assert!(suffix.ends_with(&format!(".{host}")), "{host}");
        }
    }

    #[test]
    fn says_which_wildcards_are_wide() {
        let text = r#"
[[segment]]
name = "s"
[[rule]]
id       = "wide"
action   = "allow"
segments = ["s"]
names    = ["**.amazonaws.com", "*.amazonaws.com", "s3.amazonaws.com", "**.example.com"]
[[rule]]
id       = "known"
action   = "allow"
segments = ["s"]
names    = ["**.windows.net"]
allow_tenant_wildcard = true
[[rule]]
id       = "text"
action   = "allow"
segments = ["s"]
names    = ["**.example.net", "*.example.net", "a.example.net", "**.corp.example", "**.up.example"]
types    = ["A", "TXT"]
[[rule]]
id       = "no"
action   = "deny"
segments = ["s"]
names    = ["**.amazonaws.com.cn"]
"#;
        let site = |apex: &str, server| Site { apex: apex.parse().unwrap(), server };
        let sites = vec![
            site("corp.example", Server::Zone),
            site("up.example", Server::Upstream(Vec::new())),
            site(".", Server::Upstream(Vec::new())),
        ];
        let policy = policy_with(text, &Settings { sites, ..Settings::default() });
        let told: Vec<_> = policy.warnings().iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "test.toml:8:13: \"**.amazonaws.com\" holds s3.amazonaws.com, and anybody may have a name there\n  name \
                 what is meant of it, or add allow_tenant_wildcard = true",
                "test.toml:19:13: \"**.example.net\" with TXT: any name there can be asked for and answered with any \
                 text, so that data can pass both ways\n  name the names whose TXT is needed, in a rule of their own",
            ]
        );
    }
}
