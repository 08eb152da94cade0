//! Names before they stand in a rule: what `check` would say of them. For tools that write rules.

use std::collections::HashMap;

use super::Action;
use super::index::{Index, Reader};
use super::load::in_alphabet;
use super::pattern::{Pattern, PatternError, Reach, Shape};
use super::patterns::MAX_GLOBS;
use super::reserved::{Entry, Reserved, What};
use super::runtime::Rules;
use crate::name::{NameBuf, ancestors, labels};

/// Knows the built-in lists; asks no policy.
#[derive(Debug)]
pub struct Vetter {
    index: Index,
    reserved: Reserved,
}

/// Why a rule should not have a name; each is the end of a sentence that begins with the name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Objection {
    /// It is no name and no wildcard.
    #[error("{0}")]
    Text(#[from] PatternError),
    /// The root: nothing there is opened.
    #[error("is the root")]
    Root,
    /// It would allow a whole top-level domain.
    #[error("would allow a whole top-level domain")]
    TopLevel,
    /// A wildcard directly on a public suffix.
    #[error("is on a public suffix: anyone may have a name below {0}")]
    Tenants(String),
    /// A special-use name, or one below it: nobody serves it, unless a zone or an upstream here does.
    #[error("is answered here: {0} is a special-use name")]
    Special(String),
    /// The same, and nobody can serve it.
    #[error("can never be opened: {0} is a special-use name")]
    Fixed(String),
    /// Of the bypass list.
    #[error("leads round this resolver: {0} is on the bypass list")]
    Bypass(String),
}

impl Objection {
    /// What to do.
    #[must_use]
    pub const fn remedy(&self) -> &'static str {
        match self {
            Self::Text(error) => error.remedy(),
            Self::Root => "name what is meant",
            Self::TopLevel => "write the full suffixes that are meant",
            Self::Tenants(_) => "name the owners that are meant, or write a rule with allow_tenant_wildcard = true",
            Self::Fixed(_) => "remove it",
            Self::Special(_) => "where a zone or an upstream here serves it, write a rule by hand",
            Self::Bypass(_) => "where that is meant, write a rule by hand, with guard = \"override\"",
        }
    }
}

impl Default for Vetter {
    fn default() -> Self {
        let mut reader = Reader::default();
        let reserved = Reserved::new(&mut reader);
        Self { index: reader.finish(&Rules::default(), &HashMap::new()), reserved }
    }
}

impl Vetter {
    /// Globs that one suffix may carry in a policy.
    pub const MAX_GLOBS: usize = MAX_GLOBS;

    /// The pattern that `text` is, where a rule of this action may have it without saying more, and it would do something.
    ///
    /// # Errors
    /// Why it should not.
    pub fn vet(&self, text: &str, action: Action) -> Result<Pattern, Objection> {
        let pattern = Pattern::parse(text)?;
        if pattern.base() == [0] {
            return Err(Objection::Root);
        }
        if action == Action::Deny {
            return Ok(pattern);
        }
        match self.reserved.read(self.index.find(None, pattern.base()).reserved()) {
            Some((_, Entry { what: What::Special { fixed: true, .. }, name, .. })) => {
                return Err(Objection::Fixed(name.to_string()));
            }
            Some((_, Entry { what: What::Special { .. }, name, .. })) => {
                return Err(Objection::Special(name.to_string()));
            }
            Some((_, Entry { what: What::Bypass, name, .. })) => return Err(Objection::Bypass(name.to_string())),
            _ => {}
        }
        match pattern.reach() {
            Reach::TopLevel => Err(Objection::TopLevel),
            Reach::Tenants => Err(Objection::Tenants(pattern.base.to_string())),
            Reach::Owner => Ok(pattern),
        }
    }
}

/// 1 to 63 of `[A-Za-z0-9_.-]`: what segments and rules may be called.
#[must_use]
pub fn is_id(text: &str) -> bool {
    in_alphabet(text)
}

/// What its owner registered of a name: it, or the one above it that is directly below the nearest public suffix. `None`: it
/// is a public suffix itself.
#[must_use]
pub fn registrable(name: &[u8]) -> Option<&[u8]> {
    let mut registered = None;
    for base in ancestors(name) {
        let mut whole = NameBuf::new();
        labels(base).try_for_each(|label| whole.push_label(label)).ok()?;
        // Of the root nothing else can be said than of a top-level domain.
        if base == [0] || (Pattern { shape: Shape::Many, base: whole }).reach() != Reach::Owner {
            return registered;
        }
        registered = Some(base);
    }
    None
}

impl Pattern {
    /// The whole name where the pattern is one, else what follows its first label; canonical wire form.
    #[must_use]
    pub fn base(&self) -> &[u8] {
        &self.base
    }

    /// True where a `*` stands among other characters of a label.
    #[must_use]
    pub const fn is_glob(&self) -> bool {
        matches!(self.shape, Shape::Glob(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Settings, Source, compile};

    #[test]
    fn knows_what_was_registered() {
        let rows = [
            ("a.b.example.com", "example.com"),
            ("example.com", "example.com"),
            ("com", "-"),
            ("x.co.uk", "x.co.uk"),
            ("a.x.github.io", "x.github.io"),
            ("github.io", "-"),
            ("a.b.eu-west-1.compute.amazonaws.com", "b.eu-west-1.compute.amazonaws.com"),
            ("www.service.corp", "service.corp"),
            ("printer", "-"),
            (".", "-"),
        ];
        for (name, expected) in rows {
            let name = crate::name::Name::parse(name).unwrap();
            let found = registrable(name.as_wire()).map(|wire| crate::name::Name::from_wire(wire).unwrap().to_string());
            assert_eq!(found.as_deref().unwrap_or("-"), expected, "{name}");
        }
    }

    #[test]
    fn says_what_check_would_say() {
        let vetter = Vetter::default();
        let rows = [
            ("api.example.com", Ok("api.example.com")),
            ("**.Example.com.", Ok("**.example.com")),
            ("github.io", Ok("github.io")),
            ("wpad.example.com", Ok("wpad.example.com")),
            ("*", Err("would match every name")),
            (".", Err("is the root")),
            ("**.zip", Err("would allow a whole top-level domain")),
            ("*.github.io", Err("is on a public suffix: anyone may have a name below github.io")),
            ("x.corp.internal", Err("is answered here: internal is a special-use name")),
            ("**.onion", Err("can never be opened: onion is a special-use name")),
            ("x.dns.google", Err("leads round this resolver: dns.google is on the bypass list")),
        ];
        for (text, expected) in rows {
            let allow = vetter.vet(text, Action::Allow);
            let said = allow.as_ref().map(ToString::to_string).map_err(ToString::to_string);
            assert_eq!(said.as_deref().map_err(String::as_str), expected, "{text}");
            for (action, vetted) in [("allow", allow), ("deny", vetter.vet(text, Action::Deny))] {
                let rule = format!(
                    "[[segment]]\nname = \"s\"\n[[rule]]\nid = \"r\"\naction = \"{action}\"\nsegments = [\"s\"]\n\
                     names = [{text:?}]\n"
                );
                let compiled = compile([Source { file: "x.toml".to_owned(), text: rule }], &Settings::default());
                let clean = compiled.is_ok_and(|policy| policy.warnings().is_empty());
                // The root is a name to a policy, and opens nothing.
                assert!(text == "." || clean == vetted.is_ok(), "{action} {text}");
            }
        }
    }
}
