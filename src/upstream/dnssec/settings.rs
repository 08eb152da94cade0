//! `dnssec`, `insecure` and `anchors` of `[[upstream]]`.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use hickory_net::proto::dnssec::TrustAnchors;

use crate::document::{Found, Table, read_text};
use crate::name::Name;
use crate::upstream::query::Wanted;

/// What is done about an upstream's DNSSEC.
#[derive(Clone, Debug, Default)]
pub enum Mode {
    /// Nothing is asked for and nothing is told.
    #[default]
    Off,
    /// What the server says it validated (AD) is told so, where nobody else can have said it: over TLS, or from this host.
    Trust,
    /// It is validated here.
    Validate {
        /// Names that are taken as unsigned with all below them (RFC 7646).
        insecure: Arc<[Name]>,
        /// The keys that are trusted without proof.
        anchors: Anchors,
    },
}

impl Mode {
    /// What is asked of the servers for it.
    pub(in crate::upstream) const fn wanted(&self) -> Wanted {
        match self {
            Self::Off => Wanted { dnssec_ok: false, checking_disabled: false },
            Self::Trust => Wanted { dnssec_ok: true, checking_disabled: false },
            Self::Validate { .. } => Wanted { dnssec_ok: true, checking_disabled: true },
        }
    }
}

/// Keys that are trusted without proof.
#[derive(Clone)]
pub struct Anchors(Arc<TrustAnchors>);

impl Anchors {
    /// DNSKEY records in presentation format, one a line.
    ///
    /// # Errors
    /// Which of it is no key.
    pub fn parse(text: &str) -> Result<Self, String> {
        let keys: TrustAnchors = text.parse().map_err(|error| format!("{error}"))?;
        Ok(Self(Arc::new(keys)))
    }

    pub(super) fn keys(&self) -> Arc<TrustAnchors> {
        Arc::clone(&self.0)
    }
}

impl Default for Anchors {
    /// The root's keys of 2017 and 2024 (20326 and 38696).
    fn default() -> Self {
        Self(Arc::new(TrustAnchors::default()))
    }
}

impl fmt::Debug for Anchors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Anchors")
    }
}

/// Reads the mode of one `[[upstream]]` and notes its mistakes.
pub(in crate::upstream) fn read_mode(table: &Table, base: &Path) -> Mode {
    const MODES: &str = "write \"off\", \"trust\" or \"validate\"";
    let document = table.document();
    let mode = table.string("dnssec");
    let insecure: Option<Vec<Found<Name>>> = table.parsed_list("insecure", "write a name like \"corp.example\"");
    let anchors = table.string("anchors");
    let validates = mode.as_ref().is_some_and(|mode| mode.value == "validate");
    for key in ["insecure", "anchors"] {
        if table.has(key) && !validates {
            let fact = format!("`{key}` means something only with dnssec = \"validate\"");
            document.note(&table.span_of(key), fact, "add dnssec = \"validate\", or remove it");
        }
    }
    match mode {
        None => Mode::Off,
        Some(mode) => match &*mode.value {
            "off" => Mode::Off,
            "trust" => Mode::Trust,
            "validate" => Mode::Validate {
                insecure: insecure.unwrap_or_default().into_iter().map(|name| name.value).collect(),
                anchors: anchors.map(|file| read_anchors(table, base, &file)).unwrap_or_default(),
            },
            other => {
                document.note(&mode.span, format!("\"{other}\" is nothing to do about DNSSEC"), MODES);
                Mode::Off
            }
        },
    }
}

fn read_anchors(table: &Table, base: &Path, file: &Found<String>) -> Anchors {
    const REMEDY: &str = "write DNSKEY records, one a line, as in `. 3600 IN DNSKEY 257 3 13 <base64>`";
    let path = base.join(&file.value);
    let read = read_text(&path).map_err(|error| error.to_string());
    read.and_then(|text| Anchors::parse(&text)).unwrap_or_else(|error| {
        let fact = format!("the trust anchors in {} cannot be used: {error}", path.display());
        table.document().note(&file.span, fact, REMEDY);
        Anchors::default()
    })
}
