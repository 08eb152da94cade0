//! The journal's lines.
//!
//! ```text
//! outgate-journal 2 BOOT_ID
//! =0 {"kind":1,"origin":"default","private":[],"segment":"shop","rule":"web"}
//! +0 192.0.2.1 5000000 1 www.example.org a.example.net 192.0.2.1>198.51.100.7:tcp/443 5360000 ;
//! - 192.0.2.1>198.51.100.7:tcp/443 ;
//! ```
//!
//! `=` gives a number to what the reasons of many openings have in common; a later one may give it to something else.
//! `+` opens: the number, who asked, until when it was told (a [`Tick`]), how many names the CNAME chain has (`2+1`: and
//! how many targets service records), the name asked for and those, then elements, each with its end. `-` closes. A line
//! that does not end as it should was torn.

use std::collections::HashMap;
use std::io::Write;
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::quality::RandomState;
use serde::{Deserialize, Serialize};

use crate::grant::Ledger;
use crate::name::{self, Name};
use crate::net::{Element, Prefix, Scope, Service};
use crate::policy::Basis;
use crate::record::{AddressTrust, Origin, Question, RecordType};
use crate::time::Tick;

/// How a journal of this version begins; one of another version is void.
const BEGIN: &str = "outgate-journal 2 ";

/// The end of a line that is whole.
const END: &str = " ;";

/// What the reasons of one segment's openings under one rule have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Context {
    forwarder: Option<Arc<str>>,
    certificate: Option<Arc<str>>,
    kind: RecordType,
    origin: Origin,
    segment: Arc<str>,
    rule: Arc<str>,
}

/// A [`Context`] as it is written.
#[derive(Serialize, Deserialize)]
struct Definition {
    #[serde(skip_serializing_if = "Option::is_none", default)]
    forwarder: Option<Arc<str>>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    certificate: Option<Arc<str>>,
    kind: u16,
    origin: Arc<str>,
    /// `None`: a local zone; else the upstream's private prefixes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    private: Option<Vec<String>>,
    segment: Arc<str>,
    rule: Arc<str>,
}

impl From<&Basis> for Context {
    fn from(basis: &Basis) -> Self {
        Self {
            forwarder: basis.forwarder.clone(),
            certificate: basis.certificate.clone(),
            kind: basis.question.kind,
            origin: basis.origin.clone(),
            segment: Arc::clone(&basis.segment),
            rule: Arc::clone(&basis.rule),
        }
    }
}

impl From<&Context> for Definition {
    fn from(context: &Context) -> Self {
        Self {
            forwarder: context.forwarder.clone(),
            certificate: context.certificate.clone(),
            kind: context.kind.0,
            origin: Arc::clone(&context.origin.name),
            private: match &context.origin.trust {
                AddressTrust::Zone => None,
                AddressTrust::Upstream(private) => Some(private.iter().map(ToString::to_string).collect()),
            },
            segment: Arc::clone(&context.segment),
            rule: Arc::clone(&context.rule),
        }
    }
}

impl Definition {
    fn read(self) -> Option<Context> {
        let trust = match self.private {
            None => AddressTrust::Zone,
            Some(private) => {
                let private = private.iter().map(|prefix| prefix.parse::<Prefix>()).collect::<Result<Vec<_>, _>>();
                AddressTrust::Upstream(private.ok()?.into())
            }
        };
        Some(Context {
            forwarder: self.forwarder,
            certificate: self.certificate,
            kind: RecordType(self.kind),
            origin: Origin { name: self.origin, trust },
            segment: self.segment,
            rule: self.rule,
        })
    }
}

/// The contexts that were defined, with their numbers. As many as configuration has, times the reloads since the last
/// rewriting.
#[derive(Debug, Default)]
pub(super) struct Contexts(HashMap<Context, u32, RandomState>);

impl Contexts {
    /// The number of the context of `basis`; `define` is given it the first time.
    pub(super) fn number(&mut self, basis: &Basis, define: impl FnOnce(u32, &Context)) -> u32 {
        let context = Context::from(basis);
        if let Some(number) = self.0.get(&context) {
            return *number;
        }
        let number = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        define(number, &context);
        self.0.insert(context, number);
        number
    }
}

pub(super) fn begin(out: &mut Vec<u8>, boot: &str) {
    out.extend_from_slice(BEGIN.as_bytes());
    out.extend_from_slice(boot.as_bytes());
    out.push(b'\n');
}

pub(super) fn define(out: &mut Vec<u8>, number: u32, context: &Context) {
    out.push(b'=');
    decimal(out, number.into());
    out.push(b' ');
    // Strings and numbers into memory: there is nothing that can fail.
    let _ = serde_json::to_writer(&mut *out, &Definition::from(context));
    out.push(b'\n');
}

pub(super) fn opened(
    out: &mut Vec<u8>,
    context: u32,
    basis: &Basis,
    told_until: Tick,
    elements: impl Iterator<Item = (Element, Tick)>,
) {
    out.push(b'+');
    decimal(out, context.into());
    out.push(b' ');
    address(out, basis.client);
    out.push(b' ');
    decimal(out, told_until.0);
    out.push(b' ');
    decimal(out, basis.chain.len() as u64);
    if !basis.targets.is_empty() {
        out.push(b'+');
        decimal(out, basis.targets.len() as u64);
    }
    for name in std::iter::once(&basis.question.name).chain(&*basis.chain).chain(&*basis.targets) {
        out.push(b' ');
        presentation(out, name);
    }
    for (one, until) in elements {
        out.push(b' ');
        element(out, &one);
        out.push(b' ');
        decimal(out, until.0);
    }
    out.extend_from_slice(END.as_bytes());
    out.push(b'\n');
}

/// How many elements.
pub(super) fn closed<'a>(out: &mut Vec<u8>, elements: impl Iterator<Item = &'a Element>) -> usize {
    out.push(b'-');
    let mut count = 0;
    for one in elements {
        out.push(b' ');
        element(out, one);
        count += 1;
    }
    out.extend_from_slice(END.as_bytes());
    out.push(b'\n');
    count
}

fn decimal(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// As [`Element`] is shown, without the machinery of formatting where it is written most.
fn element(out: &mut Vec<u8>, element: &Element) {
    match element.from {
        Scope::Client(client) => address(out, client),
        Scope::Segment(segment) => shown(out, format_args!("#{:08x}", segment.0)),
    }
    out.push(b'>');
    address(out, element.to);
    match element.service {
        Service::Tcp(port) => {
            out.extend_from_slice(b":tcp/");
            decimal(out, port.into());
        }
        other => shown(out, format_args!(":{other}")),
    }
}

fn address(out: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            decimal(out, a.into());
            for octet in [b, c, d] {
                out.push(b'.');
                decimal(out, octet.into());
            }
        }
        IpAddr::V6(address) => shown(out, format_args!("{address}")),
    }
}

fn presentation(out: &mut Vec<u8>, name: &Name) {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if name.labels().flatten().all(plain) && name.labels().next().is_some() {
        for label in name.labels() {
            out.extend_from_slice(label);
            out.push(b'.');
        }
        // It is written without the last dot.
        out.pop();
    } else {
        struct Text<'a>(&'a mut Vec<u8>);
        impl std::fmt::Write for Text<'_> {
            fn write_str(&mut self, text: &str) -> std::fmt::Result {
                self.0.extend_from_slice(text.as_bytes());
                Ok(())
            }
        }
        // Into memory.
        let _ = name::write_presentation(name.as_wire(), &mut Text(out));
    }
}

fn shown(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    // Into memory.
    let _ = out.write_fmt(text);
}

/// Reads a journal line by line.
pub(super) struct Reader {
    begin: String,
    /// What was read is of this boot and version.
    counts: bool,
    contexts: HashMap<u32, Context, RandomState>,
}

impl Reader {
    pub(super) fn new(boot: &str) -> Self {
        Self { begin: format!("{BEGIN}{boot}"), counts: false, contexts: HashMap::default() }
    }

    /// Tells the ledger what one line says; one that is not whole says nothing.
    pub(super) fn read(&mut self, line: &[u8], ledger: &mut Ledger) {
        let Ok(line) = std::str::from_utf8(line) else { return };
        if line.starts_with(BEGIN) {
            self.counts = line == self.begin;
        } else if self.counts {
            // A line that cannot be read says nothing.
            let _ = self.read_line(line, ledger);
        }
    }

    fn read_line(&mut self, line: &str, ledger: &mut Ledger) -> Option<()> {
        match line.split_at_checked(1)? {
            ("=", rest) => {
                let (number, definition) = rest.split_once(' ')?;
                let definition: Definition = serde_json::from_str(definition).ok()?;
                self.contexts.insert(number.parse().ok()?, definition.read()?);
            }
            ("+", rest) => {
                let mut words = rest.strip_suffix(END)?.split(' ');
                let context = self.contexts.get(&words.next()?.parse().ok()?)?;
                let client = words.next()?.parse().ok()?;
                let told_until = Tick(words.next()?.parse().ok()?);
                let links = words.next()?;
                let (links, targets) = links.split_once('+').unwrap_or((links, "0"));
                let mut name = || Name::parse(words.next()?).ok();
                let asked = name()?;
                // However many it claims, each takes a word.
                let mut names = |count: &str| {
                    std::iter::repeat_with(&mut name).take(count.parse().ok()?).collect::<Option<Vec<Name>>>()
                };
                let (chain, targets) = (names(links)?, names(targets)?);
                let basis = context.basis(client, asked, chain, targets);
                while let Some(element) = words.next() {
                    let until = Tick(words.next()?.parse().ok()?);
                    ledger.recall(element.parse().ok()?, &basis, told_until, until);
                }
            }
            ("-", rest) => {
                for element in rest.strip_suffix(END)?.split_ascii_whitespace() {
                    ledger.forget(&element.parse().ok()?);
                }
            }
            _ => {}
        }
        Some(())
    }
}

impl Context {
    fn basis(&self, client: IpAddr, name: Name, chain: Vec<Name>, targets: Vec<Name>) -> Basis {
        Basis {
            client,
            forwarder: self.forwarder.clone(),
            certificate: self.certificate.clone(),
            question: Question { name, kind: self.kind },
            chain: chain.into(),
            targets: targets.into(),
            origin: self.origin.clone(),
            segment: Arc::clone(&self.segment),
            rule: Arc::clone(&self.rule),
        }
    }
}
