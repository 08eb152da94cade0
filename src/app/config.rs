//! `outgate.toml`: the sum of the rooms' settings.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::app::cli::ConfigFile;
use crate::app::{flow, peers};
use crate::document::{Document, Mistake, Table, read_text};
use crate::grant::Terms;
use crate::net::parse_prefix;
use crate::policy::Identity;
use crate::serve::tls;
use crate::{audit, cache, firewall, policy, upstream, zones};

/// The file that is read where none is named.
const DEFAULT_FILE: &str = "outgate.toml";

/// Where state lies that is kept.
pub(super) const DEFAULT_STATE: &str = ".outgate";

/// The whole configuration. Paths are relative to the file's directory.
pub(super) struct Config {
    /// The file it came from; `None`: the built-in defaults.
    pub(super) file: Option<PathBuf>,
    /// The node's name in every record.
    pub(super) node: String,
    /// Journal and locks.
    pub(super) state: PathBuf,
    pub(super) listen: Listen,
    /// For the encrypted doors; there wherever one of them is.
    pub(super) tls: Option<tls::Settings>,
    pub(super) forwarders: Vec<policy::Forwarder>,
    pub(super) policy_directory: PathBuf,
    /// Who is in which segment, watched; `None`: nobody writes one.
    pub(super) clients_file: Option<PathBuf>,
    /// A policy that is decided beside it.
    pub(super) candidate: Option<PathBuf>,
    /// Both are loaded again when they change.
    pub(super) watch: bool,
    pub(super) zones: zones::Settings,
    /// Empty: the system's resolvers.
    pub(super) upstreams: Vec<upstream::Settings>,
    pub(super) terms: Terms,
    pub(super) cache: cache::Settings,
    pub(super) firewalls: Vec<firewall::Settings>,
    pub(super) audit: audit::Settings,
    pub(super) sinks: Vec<audit::SinkSettings>,
    /// What is recorded of flows; `None`: nothing.
    pub(super) flow: Option<flow::Settings>,
    /// The other nodes in front of the same clients; `None`: it has none.
    pub(super) peers: Option<peers::Settings>,
    /// Where metrics and health are served; `None`: nowhere.
    pub(super) health: Option<SocketAddr>,
    pub(super) admin_socket: PathBuf,
}

/// `[listen]`.
pub(super) struct Listen {
    /// UDP and TCP.
    pub(super) dns: Vec<SocketAddr>,
    /// DNS over TLS.
    pub(super) tls: Vec<SocketAddr>,
    /// DNS over HTTPS.
    pub(super) https: Vec<SocketAddr>,
    /// DNS over QUIC.
    pub(super) quic: Vec<SocketAddr>,
    /// DNS over HTTP/3.
    pub(super) h3: Vec<SocketAddr>,
    /// UDP worker threads; at least 1.
    pub(super) workers: usize,
}

impl Config {
    /// Reads the file that was named, else `outgate.toml` of the working directory, else nothing.
    pub(super) fn read(named: &ConfigFile) -> Result<Self, Vec<Mistake>> {
        let default = Path::new(DEFAULT_FILE);
        let file = named.config.clone().or_else(|| default.exists().then(|| default.to_owned()));
        let text = match &file {
            None => String::new(),
            Some(file) => read_text(file).map_err(|error| {
                let fact = format!("{} cannot be read: {error}", file.display());
                vec![Mistake::general(fact, "name the configuration with -c, or make it readable for this user")]
            })?,
        };
        Self::parse(file, &text)
    }

    /// Reads the text of a configuration file.
    pub(super) fn parse(file: Option<PathBuf>, text: &str) -> Result<Self, Vec<Mistake>> {
        let shown = file.as_ref().map_or_else(|| DEFAULT_FILE.into(), |file| file.display().to_string());
        let (document, root) = Document::parse(&shown, text);
        let base = file.as_deref().and_then(Path::parent).map(Path::to_owned).unwrap_or_default();
        let path = |path: PathBuf| if path.is_relative() { base.join(path) } else { path };
        let node = root.string("node").map_or_else(host_name, |node| node.value);
        let state = root.string("state").map_or_else(|| PathBuf::from(DEFAULT_STATE), |state| state.value.into());
        let tls = tls::Settings::read(&root, &base);
        let listen = read_listen(&root);
        let forwarders = read_forwarders(&root);
        let (policy_directory, candidate, watch) = read_policy(&root);
        let clients_file = read_clients(&root).map(path);
        let mut zones = zones::Settings::read(&root);
        zones.directory = path(zones.directory);
        let upstreams = upstream::Settings::read_all(&root, &base);
        let terms = Terms::read(&root);
        let cache = cache::Settings::read(&root);
        let firewalls = firewall::Settings::read_all(&root, &base);
        let mut audit = root.table("audit").map_or_else(audit::Settings::default, audit::Settings::parse);
        audit.file = path(audit.file);
        let sinks = audit::SinkSettings::read_all(&root, &base, &audit.file);
        let flow = flow::Settings::read(&root, &firewalls);
        let peers = peers::Settings::read(&root, &base);
        let health = read_health(&root);
        let admin_socket = read_admin(&root).unwrap_or_else(|| state.join("admin.sock"));
        root.finish(&["cluster", "tracing", "dnssec"]);
        let mistakes = document.take_mistakes();
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        Ok(Self {
            node,
            state: path(state),
            listen,
            tls,
            forwarders,
            policy_directory: path(policy_directory),
            clients_file,
            candidate: candidate.map(path),
            watch,
            zones,
            upstreams,
            terms,
            cache,
            firewalls,
            audit,
            sinks,
            flow,
            peers,
            health,
            admin_socket: path(admin_socket),
            file,
        })
    }
}

pub(super) fn host_name() -> String {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    name.unwrap_or_else(|| "outgate".into())
}

fn read_listen(root: &Table) -> Listen {
    let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut listen = Listen {
        dns: vec![SocketAddr::from(([127, 0, 0, 1], 5300))],
        tls: Vec::new(),
        https: Vec::new(),
        quic: Vec::new(),
        h3: Vec::new(),
        workers: 0,
    };
    if let Some(table) = root.table("listen") {
        let remedy = "write an address with its port: \"0.0.0.0:53\" or \"[::]:53\"";
        if table.strings("dns").is_some_and(|addresses| addresses.is_empty()) {
            table.document().note(&table.span_of("dns"), "`dns` is empty: nobody could ask", remedy);
        }
        let addresses = |key, remedy: &str| {
            let found = table.parsed_list::<SocketAddr>(key, remedy)?;
            Some(found.into_iter().map(|found| found.value).collect())
        };
        listen.dns = addresses("dns", remedy).unwrap_or(listen.dns);
        for (key, port, door) in [
            ("tls", 853, &mut listen.tls),
            ("https", 443, &mut listen.https),
            ("quic", 853, &mut listen.quic),
            ("h3", 443, &mut listen.h3),
        ] {
            let remedy = format!("write an address with its port: \"0.0.0.0:{port}\" or \"[::]:{port}\"");
            *door = addresses(key, &remedy).unwrap_or_default();
            if !door.is_empty() && !root.has("tls") {
                let remedy = "add [tls] with `certificate` and `key`";
                table.document().note(&table.span_of(key), format!("`{key}` has no certificate to show"), remedy);
            }
            if !door.is_empty() && ["quic", "h3"].contains(&key) && !cfg!(feature = "quic") {
                let fact =
                    format!("`{key}` needs an outgate that was built with the feature `quic`, and this one was not");
                table.document().note(
                    &table.span_of(key),
                    fact,
                    "build it with `--features quic`, or leave the key out",
                );
            }
        }
        let workers = table.integer("workers", 0..=256).unwrap_or(0);
        listen.workers = usize::try_from(workers).unwrap_or(0);
        table.finish(&[]);
    }
    if listen.workers == 0 {
        listen.workers = cores();
    }
    listen
}

fn read_forwarders(root: &Table) -> Vec<policy::Forwarder> {
    let mut forwarders = Vec::new();
    for table in root.tables("forwarder") {
        let document = table.document().clone();
        let name = table.required_string("name");
        let segment = table.string("segment");
        let remedy = "write the addresses it asks from: \"10.96.0.10\" or \"10.96.0.0/28\"";
        if !table.has("addresses") {
            document.note(table.span(), "`addresses` is missing", remedy);
        }
        let addresses = table.strings("addresses").unwrap_or_default();
        let addresses = addresses.iter().filter_map(|found| {
            let prefix = parse_prefix(&found.value);
            if prefix.is_none() {
                document.note(&found.span, format!("`addresses` cannot hold \"{}\"", found.value), remedy);
            }
            prefix
        });
        let addresses = addresses.collect();
        let identity = table.string("identity").map_or(Some(Identity::None), |word| {
            let known = Identity::ALL.into_iter().find(|(_, known)| *known == word.value);
            if known.is_none() {
                let fact = format!("`identity` cannot be \"{}\"", word.value);
                document.note(&word.span, fact, "write \"none\", \"ecs\" or \"proxy\"");
            }
            known.map(|(identity, _)| identity)
        });
        if identity == Some(Identity::None) && !table.has("segment") {
            let remedy =
                "name the segment that its queries belong to, or let it say who asks: identity = \"ecs\" or \"proxy\"";
            document.note(table.span(), "`segment` is missing", remedy);
        }
        if let (Some(name), Some(identity)) = (name, identity) {
            forwarders.push(policy::Forwarder {
                name: name.value,
                addresses,
                identity,
                segment: segment.map(|segment| segment.value),
                place: document.place(table.span()),
            });
        }
        table.finish(&[]);
    }
    forwarders
}

fn read_policy(root: &Table) -> (PathBuf, Option<PathBuf>, bool) {
    let default = || PathBuf::from("policy");
    let Some(table) = root.table("policy") else { return (default(), None, false) };
    let directory = table.string("directory").map_or_else(default, |directory| directory.value.into());
    let candidate = table.string("candidate").map(|candidate| {
        let path = PathBuf::from(candidate.value);
        if path.starts_with(&directory) || directory.starts_with(&path) {
            let fact =
                "`candidate` and `directory` lie in each other: files of one would be read as those of the other";
            table.document().note(&candidate.span, fact, "give the candidate a directory of its own");
        }
        path
    });
    let watch = table.boolean("watch").unwrap_or(false);
    table.finish(&[]);
    (directory, candidate, watch)
}

fn read_clients(root: &Table) -> Option<PathBuf> {
    let table = root.table("clients")?;
    let file = table.required_string("file");
    table.finish(&[]);
    file.map(|file| file.value.into())
}

pub(super) fn read_health(root: &Table) -> Option<SocketAddr> {
    let table = root.table("health")?;
    let listen = table.parsed("listen", "write an address with its port: \"127.0.0.1:9953\"");
    table.finish(&[]);
    listen.map(|listen| listen.value)
}

fn read_admin(root: &Table) -> Option<PathBuf> {
    let table = root.table("admin")?;
    let socket = table.string("socket");
    table.finish(&["tls", "roles"]);
    socket.map(|socket| socket.value.into())
}
