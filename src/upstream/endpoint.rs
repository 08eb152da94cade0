//! One server as it is written: how it is asked, where, and by what an encrypted one proves who it is.
//!
//! ```text
//! udp://192.0.2.53            tcp://[2001:db8::53]:5353
//! tls://192.0.2.53#dns.example.org            tls://192.0.2.53:853#sha256/BASE64=
//! https://192.0.2.53/dns-query#dns.example.org,sha256/BASE64=
//! ```

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hyper::http::uri::PathAndQuery;
use tokio_rustls::rustls::pki_types::ServerName;

/// Schemes that the interface names and this version does not speak.
const PLANNED: [&str; 3] = ["quic", "h3", "sdns"];
/// What stands before the digest of a key.
const PIN: &str = "sha256/";
/// The path of a server that names none: the one that servers have by custom.
const PATH: &str = "/dns-query";

/// One server of an upstream.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServerSettings {
    /// Where it listens.
    pub address: SocketAddr,
    /// How it is asked.
    pub transport: Transport,
}

/// How a server is asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// Datagrams; TCP for what does not fit, or where forged replies are seen.
    Udp,
    /// TCP alone.
    Tcp,
    /// DNS over TLS (RFC 7858), never in clear.
    Tls(Proof),
    /// DNS over HTTPS (RFC 8484) at this path, never in clear.
    Https(Proof, Arc<str>),
}

/// What an encrypted server must show: a certificate for its name, a key, or both. One of them is there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Proof {
    /// The name or address that its certificate must be for.
    pub name: Option<ServerName<'static>>,
    /// SHA-256 digests of keys (SubjectPublicKeyInfo), one of which must be its own.
    pub pins: Arc<[Pin]>,
}

/// The SHA-256 digest of a public key (RFC 7858 §4.2).
pub type Pin = [u8; 32];

impl Transport {
    /// Its word in status and metrics.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
            Self::Tls(_) => "tls",
            Self::Https(..) => "https",
        }
    }

    /// What it must prove, where it is encrypted.
    #[must_use]
    pub const fn proof(&self) -> Option<&Proof> {
        match self {
            Self::Udp | Self::Tcp => None,
            Self::Tls(proof) | Self::Https(proof, _) => Some(proof),
        }
    }
}

/// Without the digests of keys.
impl fmt::Display for ServerSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.transport.as_str(), self.address)?;
        if let Transport::Https(_, path) = &self.transport {
            f.write_str(path)?;
        }
        match self.transport.proof().and_then(|proof| proof.name.as_ref()) {
            Some(name) => write!(f, "#{}", name.to_str()),
            None => Ok(()),
        }
    }
}

/// What is wrong with the text, and what would be right.
pub(super) type Wrong = (String, &'static str);

const CLEAR: &str = "write \"udp://192.0.2.53:53\" or \"tcp://[2001:db8::53]:53\"";
const ENCRYPTED: &str =
    "write \"tls://192.0.2.53#dns.example.org\" or \"https://192.0.2.53/dns-query#dns.example.org\"";
const PROVEN: &str = "write its name behind a #, \"tls://192.0.2.53#dns.example.org\", the digest of its key, \
                      \"tls://192.0.2.53#sha256/…=\", or both with a comma between them";

/// Reads one server; see the module.
pub(super) fn read(text: &str) -> Result<ServerSettings, Wrong> {
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err((format!("server \"{text}\" does not say how to ask it"), CLEAR));
    };
    let (place, proof) = rest.split_once('#').map_or((rest, None), |(place, proof)| (place, Some(proof)));
    match scheme {
        "udp" | "tcp" if proof.is_some() => {
            Err((format!("server \"{text}\" is asked in clear text, where nobody can prove a name"), ENCRYPTED))
        }
        "udp" => Ok(ServerSettings { address: address(text, place, 53, CLEAR)?, transport: Transport::Udp }),
        "tcp" => Ok(ServerSettings { address: address(text, place, 53, CLEAR)?, transport: Transport::Tcp }),
        "tls" => {
            let address = address(text, place, 853, ENCRYPTED)?;
            Ok(ServerSettings { address, transport: Transport::Tls(read_proof(text, proof)?) })
        }
        "https" => {
            let (place, path) = place.find('/').map_or((place, PATH), |at| place.split_at(at));
            let address = address(text, place, 443, ENCRYPTED)?;
            let (path, proof) = (read_path(text, path)?, read_proof(text, proof)?);
            if proof.name.is_none() {
                return Err((format!("server \"{text}\" has no name: HTTP asks for one"), ENCRYPTED));
            }
            Ok(ServerSettings { address, transport: Transport::Https(proof, path) })
        }
        planned if PLANNED.contains(&planned) => {
            Err((format!("{planned}:// is not supported by this version"), "use udp://, tcp://, tls:// or https://"))
        }
        other => Err((format!("\"{other}://\" is not a way to ask a server"), CLEAR)),
    }
}

fn address(text: &str, place: &str, port: u16, remedy: &'static str) -> Result<SocketAddr, Wrong> {
    let literal = || place.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(place).parse::<IpAddr>();
    let Ok(address) = place.parse().or_else(|_| literal().map(|address| SocketAddr::new(address, port))) else {
        return Err((format!("server \"{text}\" has no address: a host name would have to be resolved first"), remedy));
    };
    let ip = address.ip();
    if address.port() == 0 || ip.is_unspecified() || ip.is_multicast() || ip == IpAddr::from([255; 4]) {
        return Err((format!("no server can have the address {address}"), remedy));
    }
    Ok(address)
}

fn read_path(text: &str, path: &str) -> Result<Arc<str>, Wrong> {
    if path.contains('{') {
        let fact = format!("server \"{text}\" has a template for its path");
        return Err((fact, "write the path alone, without {?dns}: queries are posted"));
    }
    match path.parse::<PathAndQuery>() {
        Ok(_) => Ok(path.into()),
        Err(error) => Err((format!("server \"{text}\" has no path of a URL: {error}"), ENCRYPTED)),
    }
}

fn read_proof(text: &str, proof: Option<&str>) -> Result<Proof, Wrong> {
    let Some(proof) = proof.filter(|proof| !proof.is_empty()) else {
        return Err((format!("server \"{text}\" does not say how it proves who it is"), PROVEN));
    };
    let (mut name, mut pins) = (None, Vec::new());
    for part in proof.split(',') {
        if let Some(digest) = part.strip_prefix(PIN) {
            let octets = data_encoding::BASE64.decode(digest.as_bytes()).ok();
            let Some(pin) = octets.and_then(|octets| Pin::try_from(octets).ok()) else {
                let fact = format!("\"{part}\" is not the digest of a key: it has 44 letters of base64");
                return Err((fact, "docs/configuration.md has the command that prints it"));
            };
            pins.push(pin);
        } else if name.is_some() {
            return Err((format!("server \"{text}\" has two names"), PROVEN));
        } else {
            let read =
                ServerName::try_from(part).map_err(|_| (format!("\"{part}\" is no name of a server"), PROVEN))?;
            name = Some(read.to_owned());
        }
    }
    Ok(Proof { name, pins: pins.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256/AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    fn digest() -> Pin {
        std::array::from_fn(|at| u8::try_from(at).unwrap())
    }

    fn proof(name: Option<&'static str>, pins: &[Pin]) -> Proof {
        Proof { name: name.map(|name| ServerName::try_from(name).unwrap()), pins: pins.into() }
    }

    #[test]
    fn reads_every_way_to_ask() {
        let tls = |name, pins: &[Pin]| Transport::Tls(proof(name, pins));
        let https = |path: &str, name, pins: &[Pin]| Transport::Https(proof(Some(name), pins), path.into());
        let both = format!("tls://192.0.2.53#dns.example.org,{DIGEST},{DIGEST}");
        for (text, address, transport, shown) in [
            ("udp://192.0.2.53", "192.0.2.53:53", Transport::Udp, "udp://192.0.2.53:53"),
            ("udp://2001:db8::53", "[2001:db8::53]:53", Transport::Udp, "udp://[2001:db8::53]:53"),
            ("tcp://[2001:db8::53]:5353", "[2001:db8::53]:5353", Transport::Tcp, "tcp://[2001:db8::53]:5353"),
            (
                "tls://192.0.2.53#dns.example.org",
                "192.0.2.53:853",
                tls(Some("dns.example.org"), &[]),
                "tls://192.0.2.53:853#dns.example.org",
            ),
            (
                "tls://[2001:db8::53]:8853#2001:db8::53",
                "[2001:db8::53]:8853",
                tls(Some("2001:db8::53"), &[]),
                "tls://[2001:db8::53]:8853#2001:db8::53",
            ),
            (&format!("tls://192.0.2.53#{DIGEST}"), "192.0.2.53:853", tls(None, &[digest()]), "tls://192.0.2.53:853"),
            (
                &both,
                "192.0.2.53:853",
                tls(Some("dns.example.org"), &[digest(), digest()]),
                "tls://192.0.2.53:853#dns.example.org",
            ),
            (
                "https://192.0.2.53#dns.example.org",
                "192.0.2.53:443",
                https("/dns-query", "dns.example.org", &[]),
                "https://192.0.2.53:443/dns-query#dns.example.org",
            ),
            (
                "https://[2001:db8::53]:8443/q?x=1#a.example",
                "[2001:db8::53]:8443",
                https("/q?x=1", "a.example", &[]),
                "https://[2001:db8::53]:8443/q?x=1#a.example",
            ),
        ] {
            let read = read(text).unwrap();
            assert_eq!(read, ServerSettings { address: address.parse().unwrap(), transport }, "{text}");
            assert_eq!(read.to_string(), shown);
        }
    }

    #[test]
    fn says_what_is_wrong() {
        for (text, expected) in [
            ("192.0.2.53", "server \"192.0.2.53\" does not say how to ask it"),
            ("smtp://192.0.2.53", "\"smtp://\" is not a way to ask a server"),
            ("quic://192.0.2.53#a.example", "quic:// is not supported by this version"),
            ("udp://192.0.2.53#a.example", "server \"udp://192.0.2.53#a.example\" is asked in clear text, where"),
            ("udp://dns.example.org", "server \"udp://dns.example.org\" has no address"),
            ("tls://dns.example.org", "server \"tls://dns.example.org\" has no address"),
            ("tls://192.0.2.53/q#a.example", "server \"tls://192.0.2.53/q#a.example\" has no address"),
            ("udp://0.0.0.0", "no server can have the address 0.0.0.0:53"),
            ("tls://192.0.2.53:0#a.example", "no server can have the address 192.0.2.53:0"),
            ("tls://192.0.2.53", "server \"tls://192.0.2.53\" does not say how it proves who it is"),
            ("tls://192.0.2.53#", "server \"tls://192.0.2.53#\" does not say how it proves"),
            ("tls://192.0.2.53#a..b", "\"a..b\" is no name of a server"),
            ("tls://192.0.2.53#a.example,", "server \"tls://192.0.2.53#a.example,\" has two names"),
            ("tls://192.0.2.53#a.example,b.example", "server \"tls://192.0.2.53#a.example,b.example\" has two names"),
            ("tls://192.0.2.53#sha256/AAEC", "\"sha256/AAEC\" is not the digest of a key"),
            ("tls://192.0.2.53#sha256/*", "\"sha256/*\" is not the digest of a key"),
            ("https://192.0.2.53/dns-query", "server \"https://192.0.2.53/dns-query\" does not say how it proves"),
            (&format!("https://192.0.2.53#{DIGEST}"), &format!("server \"https://192.0.2.53#{DIGEST}\" has no name")),
            ("https://a.example/dns-query", "server \"https://a.example/dns-query\" has no address"),
            ("https://192.0.2.53/q{?dns}#a.example", "server \"https://192.0.2.53/q{?dns}#a.example\" has a template"),
            ("https://192.0.2.53/a b#a.example", "server \"https://192.0.2.53/a b#a.example\" has no path of a URL"),
        ] {
            let (fact, remedy) = read(text).unwrap_err();
            assert!(fact.starts_with(expected) && !remedy.is_empty(), "{text}: {fact}");
        }
    }
}
