//! Whom a record is about, as much of it as a sink may learn. What stands for an address is an address again, so that it
//! keeps its type in every format and every store.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::document::{Mistake, Table};
use crate::trust::Named;

/// `client`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Redaction {
    /// As it is.
    Plain,
    /// A pseudonym, from a key of the operator's or, where there is none, one of the node's own.
    Hmac(Option<Named>),
    /// The network that it is in: 24 bits of IPv4, 56 of IPv6.
    Prefix,
}

impl Redaction {
    /// Reads the keys `client` and `client_key`; mistakes are noted in the document.
    pub(super) fn read(table: &Table, base: &Path) -> Self {
        let key = Named::read(table, "client_key", base);
        let word = table.string("client");
        let redaction = match word.as_ref().map_or("plain", |word| word.value.as_str()) {
            "plain" => Self::Plain,
            "hmac" => Self::Hmac(key.clone()),
            "prefix" => Self::Prefix,
            other => {
                let fact = format!("`client` cannot be \"{other}\"");
                let span = table.span_of("client");
                table.document().note(&span, fact, "write \"plain\", \"hmac\" or \"prefix\"");
                return Self::Plain;
            }
        };
        if key.is_some() && !matches!(redaction, Self::Hmac(_)) {
            let fact = "`client_key` is of no use here";
            table.document().note(&table.span_of("client_key"), fact, "add client = \"hmac\", or leave it out");
        }
        redaction
    }

    /// Makes it ready; the node's own key is made where there is none yet.
    ///
    /// # Errors
    /// The key cannot be read or made.
    pub(super) fn redactor(&self, state: &Path) -> Result<Redactor, Mistake> {
        Ok(match self {
            Self::Plain => Redactor::Plain,
            Self::Prefix => Redactor::Prefix,
            Self::Hmac(Some(named)) => keyed(named.secret()?.as_bytes()),
            Self::Hmac(None) => {
                let path = state.join("sinks").join("client.key");
                let key = own_key(&path).map_err(|error| {
                    let fact = format!("{} cannot be used: {error}", path.display());
                    Mistake::general(fact, "let the service's user read and write it, or name a file in client_key")
                })?;
                keyed(key.trim_ascii())
            }
        })
    }
}

fn keyed(key: &[u8]) -> Redactor {
    // RFC 2104 §2: "The key for HMAC can be of any length".
    Hmac::<Sha256>::new_from_slice(key).map_or(Redactor::Prefix, |hmac| Redactor::Hmac(Box::new(hmac)))
}

/// The key of a node whose operator named none: 32 random octets in hex.
fn own_key(path: &Path) -> io::Result<Vec<u8>> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        read => return read,
    }
    let mut key = [0; 32];
    getrandom::fill(&mut key).map_err(io::Error::other)?;
    let text = data_encoding::HEXLOWER.encode(&key);
    let next = path.with_extension("key.next");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&next)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&next, path)?;
    Ok(text.into_bytes())
}

/// Rewrites lines.
#[derive(Clone, Debug)]
pub(super) enum Redactor {
    Plain,
    Prefix,
    Hmac(Box<Hmac<Sha256>>),
}

impl Redactor {
    /// Whether every line stays as it is.
    pub(super) const fn is_plain(&self) -> bool {
        matches!(self, Self::Plain)
    }

    /// What stands for an address.
    fn of(&self, address: IpAddr) -> IpAddr {
        match self {
            Self::Plain => address,
            Self::Prefix => match address {
                IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits() & !0xff).into(),
                IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 72 << 72).into(),
            },
            // RFC 6666 §3: 100::/64 is for discarding, no client has an address of it.
            Self::Hmac(hmac) => {
                let mut hmac = hmac.as_ref().clone();
                match address {
                    IpAddr::V4(address) => hmac.update(&address.octets()),
                    IpAddr::V6(address) => hmac.update(&address.octets()),
                }
                let digest: [u8; 32] = hmac.finalize().into_bytes().into();
                let low = digest.iter().take(8).fold(0, |low, octet| low << 8 | u128::from(*octet));
                Ipv6Addr::from_bits(0x0100 << 112 | low).into()
            }
        }
    }

    /// A line of the log without its client: in every `client`, in every value that is the same address, and every
    /// address in `why` and `text`, which are written for people.
    pub(super) fn line(&self, line: &str, out: &mut String) {
        out.clear();
        let client = client_of(line);
        let (mut key, mut rest) = ("", line);
        while let Some((before, string, after)) = next_string(rest) {
            out.push_str(before);
            if after.starts_with(':') {
                key = string;
                out.push_str(string);
            } else if matches!(key, "why" | "text") {
                self.text(string, out);
            } else {
                let address = string.parse().ok().filter(|address| key == "client" || client == Some(*address));
                match address {
                    Some(address) => out.push_str(&self.of(address).to_string()),
                    None => out.push_str(string),
                }
            }
            out.push('"');
            rest = after;
        }
        out.push_str(rest);
    }

    /// A sentence without the addresses in it.
    fn text(&self, text: &str, out: &mut String) {
        let part = |c: char| c.is_ascii_hexdigit() || matches!(c, '.' | ':');
        let mut rest = text;
        while !rest.is_empty() {
            // What an escape stands for is no part of an address.
            let escape = if rest.starts_with("\\u") { 6 } else { 2 * usize::from(rest.starts_with('\\')) };
            let (token, after) = if escape > 0 {
                (0, escape.min(rest.len()))
            } else {
                let token = rest.find(|c| !part(c)).unwrap_or(rest.len());
                let other = rest[token..].find(|c| part(c) || c == '\\').unwrap_or(rest.len() - token);
                (token, token + other)
            };
            let (now, next) = rest.split_at(after);
            let (token, other) = now.split_at(token);
            self.token(token, out);
            out.push_str(other);
            rest = next;
        }
    }

    /// What may be an address, perhaps with a port or at the end of a sentence.
    fn token(&self, token: &str, out: &mut String) {
        let bare = token.trim_end_matches([':', '.']);
        if let Ok(address) = token.parse::<IpAddr>().or_else(|_| bare.parse()) {
            let rest = if token.parse::<IpAddr>().is_ok() { "" } else { &token[bare.len()..] };
            out.push_str(&self.of(address).to_string());
            out.push_str(rest);
        } else if let Ok(SocketAddr::V4(address)) = bare.parse() {
            out.push_str(&format!("{}:{}", self.of((*address.ip()).into()), address.port()));
            out.push_str(&token[bare.len()..]);
        } else {
            out.push_str(token);
        }
    }
}

/// The address in a record's own `client`.
fn client_of(line: &str) -> Option<IpAddr> {
    let (_, rest) = line.split_once(",\"client\":\"")?;
    rest.split_once('"')?.0.parse().ok()
}

/// The next string of a line of JSON: what stands before it with its quote, the string, and what stands behind its quote.
fn next_string(line: &str) -> Option<(&str, &str, &str)> {
    let open = line.find('"')? + 1;
    let (before, rest) = line.split_at(open);
    let mut escaped = false;
    let close = rest.bytes().position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    })?;
    Some((before, &rest[..close], &rest[close + 1..]))
}
