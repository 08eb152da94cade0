//! `[[upstream]]`: which servers answer for which zones and segments.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use super::dnssec::{self, Mode};
use super::endpoint::{self, ServerSettings, Transport};
use crate::document::{Document, Found, Place, Span, Table};
use crate::name::Name;
use crate::net::Prefix;
use crate::trust::Named;

/// One `[[upstream]]`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its name in records and metrics.
    pub name: Arc<str>,
    /// The zones it answers for; empty: everything.
    pub zones: Vec<Name>,
    /// The segments it answers for, each with its place, for the app to check; empty: every segment.
    pub segments: Vec<(Arc<str>, Option<Place>)>,
    /// The servers in order of preference.
    pub servers: Vec<ServerSettings>,
    /// Its answers may hold these private addresses.
    pub private: Vec<Prefix>,
    /// Who issues the certificates of its encrypted servers; `None`: any authority that the system trusts.
    pub authorities: Option<Named>,
    /// What is done about its DNSSEC.
    pub dnssec: Mode,
}

impl Settings {
    /// One upstream for everything, its servers asked over UDP: the system's resolvers.
    #[must_use]
    pub fn for_everything(name: &str, servers: impl IntoIterator<Item = SocketAddr>) -> Self {
        let servers =
            servers.into_iter().map(|address| ServerSettings { address, transport: Transport::Udp }).collect();
        let (zones, segments, private) = (Vec::new(), Vec::new(), Vec::new());
        Self { name: Arc::from(name), zones, segments, servers, private, authorities: None, dnssec: Mode::Off }
    }

    /// Reads every `[[upstream]]` of a configuration and notes its mistakes; empty where there is none. Relative paths
    /// begin at `base`.
    #[must_use]
    pub fn read_all(root: &Table, base: &Path) -> Vec<Self> {
        let mut upstreams = Vec::new();
        let mut names = HashMap::new();
        let mut claims = HashMap::new();
        for table in root.tables("upstream") {
            let document = table.document().clone();
            let name = read_name(&table);
            if let Some(first) = names.insert(name.value.clone(), name.span.clone()) {
                let fact = format!("a second upstream is named \"{}\"", name.value);
                let remedy = format!("give it another name; the first is at {}", document.place(&first));
                document.note(&name.span, fact, remedy);
            }
            let zones = read_zones(&table);
            let segments = table.strings("segments").unwrap_or_default();
            check_claims(&mut claims, &document, &name, &zones, &segments, table.span());
            let servers = read_servers(&table);
            let authorities = read_authorities(&table, &servers, base);
            upstreams.push(Self {
                name: Arc::from(name.value),
                zones: zones.into_iter().map(|zone| zone.value).collect(),
                segments: segments
                    .into_iter()
                    .map(|segment| (Arc::from(segment.value), Some(document.place(&segment.span))))
                    .collect(),
                servers,
                private: read_private(&table),
                authorities,
                dnssec: dnssec::read_mode(&table, base),
            });
            table.finish(&[]);
        }
        upstreams
    }
}

fn read_name(table: &Table) -> Found<String> {
    let name =
        table.string("name").unwrap_or_else(|| Found { value: "default".to_owned(), span: table.span_of("name") });
    if name.value.is_empty() || name.value.len() > 63 || name.value.contains(|c: char| !c.is_ascii_graphic()) {
        table.document().note(
            &name.span,
            format!("\"{}\" cannot name an upstream", name.value.escape_debug()),
            "write 1 to 63 ASCII letters, digits, - or _",
        );
    }
    name
}

fn read_zones(table: &Table) -> Vec<Found<Name>> {
    let zones: Vec<Found<Name>> = table.parsed_list("zones", "write a zone like \"corp.example\"").unwrap_or_default();
    for zone in &zones {
        if zone.value.labels().next() == Some(b"*") {
            let fact = format!("\"{}\" is not a zone: an upstream answers for everything below its zones", zone.value);
            let remedy = match zone.value.parent() {
                Some(parent) => format!("write \"{parent}\""),
                None => String::new(),
            };
            table.document().note(&zone.span, fact, remedy);
        }
    }
    zones
}

/// (zone, segment; `None`: every segment) → who claimed it first.
type Claims = HashMap<(Name, Option<String>), String>;

/// Every zone may be claimed once for a segment, and once for the rest.
fn check_claims(
    claims: &mut Claims,
    document: &Document,
    name: &Found<String>,
    zones: &[Found<Name>],
    segments: &[Found<String>],
    table: &Span,
) {
    let everything = [Found { value: Name::root(), span: table.clone() }];
    for zone in if zones.is_empty() { &everything } else { zones } {
        let mut claim = |segment: Option<&Found<String>>| {
            let key = (zone.value.clone(), segment.map(|segment| segment.value.clone()));
            let Some(first) = claims.get(&key) else {
                claims.insert(key, name.value.clone());
                return;
            };
            let what = if zones.is_empty() { "everything".to_owned() } else { format!("\"{}\"", zone.value) };
            let whom = segment.map_or_else(String::new, |segment| format!(" for segment \"{}\"", segment.value));
            document.note(
                &zone.span,
                format!("upstream \"{}\" claims {what}{whom}, and so does \"{first}\"", name.value),
                "merge the two, or give them different zones or segments",
            );
        };
        if segments.is_empty() {
            claim(None);
        }
        segments.iter().for_each(|segment| claim(Some(segment)));
    }
}

fn read_servers(table: &Table) -> Vec<ServerSettings> {
    let document = table.document();
    let found = table.strings("servers");
    if found.as_ref().is_none_or(Vec::is_empty) {
        let remedy = "write servers = [\"udp://192.0.2.53:53\"] with the address of your resolver";
        document.note(&table.span_of("servers"), "the upstream has no `servers`", remedy);
    }
    let mut servers = Vec::new();
    for text in found.unwrap_or_default() {
        match endpoint::read(&text.value) {
            Ok(server) if servers.contains(&server) => {
                document.note(&text.span, format!("server \"{}\" is listed twice", text.value), "remove one");
            }
            Ok(server) => servers.push(server),
            Err((fact, remedy)) => document.note(&text.span, fact, remedy),
        }
    }
    servers
}

fn read_authorities(table: &Table, servers: &[ServerSettings], base: &Path) -> Option<Named> {
    let named = Named::read(table, "ca", base)?;
    let is_named = |server: &ServerSettings| server.transport.proof().is_some_and(|proof| proof.name.is_some());
    if !servers.iter().any(is_named) {
        let fact = "`ca` is of no use: no server is to show a certificate for a name";
        table.document().note(
            &table.span_of("ca"),
            fact,
            "remove it, or write servers as \"tls://192.0.2.53#dns.example.org\"",
        );
    }
    Some(named)
}

fn read_private(table: &Table) -> Vec<Prefix> {
    let found: Vec<Found<Prefix>> =
        table.parsed_list("private", "write a prefix like \"10.0.0.0/8\"").unwrap_or_default();
    for prefix in &found {
        if prefix.value != prefix.value.trunc() {
            let fact = format!("prefix {} has bits set behind its length", prefix.value);
            table.document().note(&prefix.span, fact, format!("write \"{}\"", prefix.value.trunc()));
        }
    }
    found.into_iter().map(|prefix| prefix.value.trunc()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Vec<Settings>, Vec<String>) {
        let (document, table) = Document::parse("outgate.toml", text);
        let settings = Settings::read_all(&table, Path::new("/etc/outgate"));
        table.finish(&[]);
        (settings, document.take_mistakes().iter().map(ToString::to_string).collect())
    }

    #[test]
    fn reads_an_upstream() {
        let (settings, mistakes) = read(
            "[[upstream]]\nservers = [\"udp://192.0.2.53\", \"tcp://[2001:db8::53]:5353\", \"udp://2001:db8::53\"]\n\
             [[upstream]]\nname = \"corp\"\nzones = [\"Corp.Example\"]\nsegments = [\"office\"]\n\
             servers = [\"udp://192.0.2.54:54\"]\nprivate = [\"10.0.0.0/8\"]\n",
        );
        assert_eq!(mistakes, [""; 0]);
        let [default, corp] = settings.as_slice() else { unreachable!("two upstreams") };
        assert_eq!((&*default.name, default.zones.len(), default.segments.len()), ("default", 0, 0));
        let servers: Vec<_> =
            default.servers.iter().map(|server| (server.address.to_string(), server.transport.clone())).collect();
        assert_eq!(
            servers,
            [
                ("192.0.2.53:53".to_owned(), Transport::Udp),
                ("[2001:db8::53]:5353".to_owned(), Transport::Tcp),
                ("[2001:db8::53]:53".to_owned(), Transport::Udp),
            ]
        );
        assert_eq!(corp.zones, [Name::parse("corp.example").unwrap()]);
        assert_eq!(corp.private, ["10.0.0.0/8".parse().unwrap()]);
        let (segment, place) = &corp.segments[0];
        assert_eq!((&**segment, place.as_ref().unwrap().to_string().as_str()), ("office", "outgate.toml:6:13"));
    }

    #[test]
    fn names_every_mistake_with_its_place() {
        let servers = "servers = [\"udp://192.0.2.53\"]\n";
        for (text, expected) in [
            ("[[upstream]]\n", "outgate.toml:1:1: the upstream has no `servers`"),
            ("[[upstream]]\nservers = [\"192.0.2.53\"]\n", "outgate.toml:2:12: server \"192.0.2.53\" does not say"),
            (
                "[[upstream]]\nservers = [\"tls://9.9.9.9\"]\n",
                "outgate.toml:2:12: server \"tls://9.9.9.9\" does not say",
            ),
            (
                "[[upstream]]\nservers = [\"udp://192.0.2.1\", \"udp://192.0.2.1:53\"]\n",
                "outgate.toml:2:31: server \"udp://192.0.2.1:53\" is listed twice",
            ),
            (
                &format!("[[upstream]]\nzones = [\"*.example.org\"]\n{servers}"),
                "outgate.toml:2:10: \"*.example.org\" is not a zone",
            ),
            (
                &format!("[[upstream]]\nprivate = [\"10.0.0.1/8\"]\n{servers}"),
                "outgate.toml:2:12: prefix 10.0.0.1/8 has bits",
            ),
            (&format!("[[upstream]]\nca = \"ca.pem\"\n{servers}"), "outgate.toml:2:6: `ca` is of no use: no server"),
            (&format!("[[upstream]]\nname = \"a b\"\n{servers}"), "outgate.toml:2:8: \"a b\" cannot name an upstream"),
            (
                &format!("[[upstream]]\n{servers}[[upstream]]\nzones = [\"a.example\"]\n{servers}"),
                "outgate.toml:3:1: a second upstream is named \"default\"",
            ),
            (
                &format!("[[upstream]]\n{servers}[[upstream]]\nname = \"b\"\n{servers}"),
                "outgate.toml:3:1: upstream \"b\" claims everything, and so does \"default\"",
            ),
            (
                &format!(
                    "[[upstream]]\nsegments = [\"s\"]\n{servers}[[upstream]]\nname = \"b\"\nsegments = [\"t\", \"s\"]\n{servers}"
                ),
                "outgate.toml:4:1: upstream \"b\" claims everything for segment \"s\", and so does \"default\"",
            ),
            (
                &format!("[[upstream]]\ndnssec = \"yes\"\n{servers}"),
                "outgate.toml:2:10: \"yes\" is nothing to do about DNSSEC",
            ),
            (
                &format!("[[upstream]]\ninsecure = [\"corp.example\"]\n{servers}"),
                "outgate.toml:2:12: `insecure` means something only with dnssec = \"validate\"",
            ),
            (
                &format!("[[upstream]]\ndnssec = \"validate\"\nanchors = \"/nowhere\"\n{servers}"),
                "outgate.toml:3:11: the trust anchors in /nowhere cannot be used: No such file",
            ),
            (
                &format!("[[upstream]]\ndnssec = \"validate\"\nanchors = \"/etc/passwd\"\n{servers}"),
                "outgate.toml:3:11: the trust anchors in /etc/passwd cannot be used: ",
            ),
            (
                &format!("[[upstream]]\nforward_first = true\n{servers}"),
                "outgate.toml:2:1: `forward_first` is not a key here",
            ),
        ] {
            let (_, mistakes) = read(text);
            assert!(mistakes.len() == 1 && mistakes[0].starts_with(expected), "{text}: {mistakes:?}");
            assert!(mistakes[0].contains('\n'), "a remedy: {mistakes:?}");
        }
    }

    #[test]
    fn reads_who_issues_certificates() {
        let (settings, mistakes) =
            read("[[upstream]]\nservers = [\"tls://9.9.9.9#dns.example\"]\nca = \"tls/ca.pem\"\n");
        assert_eq!(mistakes, [""; 0]);
        let authorities = settings[0].authorities.as_ref().unwrap();
        assert_eq!(authorities.path, Path::new("/etc/outgate/tls/ca.pem"));
        assert_eq!(authorities.place.to_string(), "outgate.toml:3:6");
    }

    #[test]
    fn a_view_and_the_rest_may_share_a_zone() {
        let (_, mistakes) = read(
            "[[upstream]]\nservers = [\"udp://192.0.2.53\"]\n\
             [[upstream]]\nname = \"view\"\nsegments = [\"s\"]\nservers = [\"udp://192.0.2.54\"]\n",
        );
        assert_eq!(mistakes, [""; 0]);
    }
}
