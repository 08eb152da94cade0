//! `[peers]` and `[[peer]]`.

use std::net::SocketAddr;
use std::path::Path;

use tokio_rustls::rustls::pki_types::ServerName;

use crate::document::Table;
use crate::firewall::remote::split;
use crate::trust::ClientTls;

/// The port where `server` names none. Not registered.
const PORT: u16 = 8954;
/// The most peers: each tells each.
const MOST: usize = 16;

/// Who the peers are, and how they are talked to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::app) struct Settings {
    /// Where they reach this node.
    pub(in crate::app) listen: SocketAddr,
    pub(in crate::app) tls: ClientTls,
    pub(super) peers: Vec<PeerSettings>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PeerSettings {
    /// The name in its certificate.
    pub(super) name: String,
    pub(super) shown: ServerName<'static>,
    pub(super) host: String,
    pub(super) port: u16,
}

impl Settings {
    /// Reads both tables; mistakes are noted in their document. `None`: the node has no peers.
    pub(in crate::app) fn read(root: &Table, base: &Path) -> Option<Self> {
        let peers = read_peers(root);
        let Some(table) = root.table("peers") else {
            if root.has("peer") {
                let remedy = "add [peers] with listen, ca, certificate and key";
                root.document().note(&root.span_of("peer"), "[[peer]] needs `[peers]`", remedy);
            }
            return None;
        };
        let note = |key, fact: &str, remedy: &str| table.document().note(&table.span_of(key), fact, remedy);
        let listen = table.parsed("listen", "write an address with its port: \"192.0.2.1:8954\"");
        if !table.has("listen") {
            note("listen", "`listen` is missing", "add listen = \"192.0.2.1:8954\", where the peers reach it");
        }
        let tls = ClientTls::read(&table, base);
        tls.require_mutual(&table, "listen", "[peers] needs TLS");
        if !root.has("peer") {
            note("listen", "there is no [[peer]]", "add the other nodes, with the name in the certificate of each");
        }
        table.finish(&[]);
        Some(Self { listen: listen?.value, tls, peers })
    }
}

fn read_peers(root: &Table) -> Vec<PeerSettings> {
    let mut peers: Vec<PeerSettings> = Vec::new();
    for table in root.tables("peer") {
        let document = table.document().clone();
        let (name, server) = (table.required_string("name"), table.string("server"));
        let server = server.or_else(|| name.clone());
        if let (Some(name), Some(server)) = (name, server) {
            let shown = ServerName::try_from(name.value.clone()).ok();
            if shown.is_none() {
                let fact = format!("\"{}\" is no name that a certificate could have", name.value);
                document.note(&name.span, fact, "write the name in the peer's certificate: \"ns2.corp.example\"");
            }
            if peers.iter().any(|known| known.name.eq_ignore_ascii_case(&name.value)) {
                document.note(&name.span, format!("\"{}\" is there twice", name.value), "remove one");
            }
            let at = split(&server.value, PORT);
            if at.is_none() {
                let remedy = "write a name or an address, and its port where it is not 8954: \"ns2.corp.example:8954\"";
                document.note(&server.span, "`server` is no host", remedy);
            }
            if let (Some(shown), Some((host, port))) = (shown, at) {
                peers.push(PeerSettings { name: name.value, shown, host, port });
            }
        }
        if peers.len() > MOST {
            document.note(table.span(), format!("more than {MOST} peers"), "tell fewer nodes of changes");
        }
        table.finish(&[]);
    }
    peers
}
