//! `outgate enforce`: the enforcer of a gateway, a process of its own.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use clap::Args;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::rustls::ServerConfig;

use crate::app::cli::{Failure, print};
use crate::app::config::{DEFAULT_STATE, host_name, read_health};
use crate::app::start::lock_state;
use crate::app::verb::run::{Signals, diagnose};
use crate::document::{Document, Mistake, Table, read_text};
use crate::enforce::{DeskParts, Door, Entrance, RESOLVERS};
use crate::firewall;
use crate::firewall::remote::socket;
use crate::gate::WORDS;
use crate::metric::{self, Registry};
use crate::net::Prefix;
use crate::policy::NeverGranted;
use crate::serve::health::{self, Health};
use crate::serve::{Readiness, Socket};
use crate::time::Clock;
use crate::trust::ClientTls;

pub(crate) const AFTER_HELP: &str = "It opens nothing by itself: resolvers that it knows do, by `kind = \"remote\"`. See docs/gateways.md.\n\
    Exit code: 0 stopped by a signal, 1 it cannot run, 2 mistakes in the file.\n\n\
    Example:\n  outgate enforce -c /etc/outgate/enforce.toml";

/// The options.
#[derive(Args, Clone, Debug)]
pub(crate) struct Arguments {
    /// Configuration file
    #[arg(short, long = "config", value_name = "FILE", default_value = "enforce.toml")]
    config: PathBuf,
    /// Say every mistake in the file and end
    #[arg(long)]
    check: bool,
}

/// `enforce.toml`.
#[derive(Debug)]
pub(crate) struct Settings {
    node: String,
    state: PathBuf,
    listen: Listen,
    resolvers: Vec<String>,
    never_grant: Vec<Prefix>,
    max_grants: usize,
    health: Option<SocketAddr>,
    firewall: firewall::Settings,
}

/// Where resolvers reach it.
#[derive(Debug)]
enum Listen {
    Tls(SocketAddr, ClientTls),
    Socket(PathBuf),
}

const LISTEN: &str = "[enforce].listen";

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tls(address, _) => write!(f, "{address}"),
            Self::Socket(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Listen {
    /// Whether the files that it names can be used.
    fn check(&self) -> Result<(), Mistake> {
        match self {
            Self::Tls(_, tls) => tls.server_config().map(drop),
            Self::Socket(_) => Ok(()),
        }
    }

    async fn open(&self) -> Result<(Entrance<Socket>, Option<Certificates>), Failure> {
        match self {
            Self::Tls(address, tls) => {
                let config = tls.server_config().map_err(|mistake| Failure::Mistakes(vec![mistake]))?;
                let (shown, newest) = watch::channel(Arc::new(config));
                let entrance = Entrance::Tls(bind(*address, LISTEN).await?, newest);
                Ok((entrance, Some(Certificates { tls: tls.clone(), shown })))
            }
            Self::Socket(path) => {
                let socket = Socket::bind(path, LISTEN).await;
                Ok((Entrance::Socket(socket.map_err(|error| Failure::Failed(error.to_string()))?), None))
            }
        }
    }
}

/// What the door shows and believes.
struct Certificates {
    tls: ClientTls,
    shown: watch::Sender<Arc<ServerConfig>>,
}

impl Certificates {
    /// Reads them again, for connections that follow.
    fn renew(&self) -> Result<(), Mistake> {
        self.shown.send_replace(Arc::new(self.tls.server_config()?));
        Ok(())
    }
}

impl Settings {
    /// Reads the text of `file`.
    ///
    /// # Errors
    /// Every mistake.
    fn parse(file: &Path, text: &str) -> Result<Self, Vec<Mistake>> {
        let (document, root) = Document::parse(&file.display().to_string(), text);
        let base = file.parent().map(Path::to_owned).unwrap_or_default();
        let node = root.string("node").map_or_else(host_name, |node| node.value);
        let state = root.string("state").map_or_else(|| PathBuf::from(DEFAULT_STATE), |state| state.value.into());
        let max_grants = root.integer("max_grants", 1..=16_000_000).and_then(|most| usize::try_from(most).ok());
        let never_grant = root.parsed_list("never_grant", "write a prefix, e.g. \"10.0.0.0/8\"").unwrap_or_default();
        let door = Self::read_door(&root, &base);
        let health = read_health(&root);
        let mut firewalls = firewall::Settings::read_all(&root, &base);
        if !root.has("firewall") {
            document.note(
                &root.span_of("node"),
                "there is no [[firewall]]",
                "add the one of this gateway, kind = \"nftables\"",
            );
        } else if firewalls.len() > 1 {
            document.note(
                &root.span_of("firewall"),
                "there is more than one [[firewall]]",
                "run one enforcer for each",
            );
        }
        if firewalls.iter().any(|firewall| firewall.kind == "remote") {
            let remedy = "let the resolvers drive that enforcer themselves";
            document.note(&root.span_of("firewall"), "an enforcer cannot drive another one", remedy);
        }
        root.finish(&[]);
        let mistakes = document.take_mistakes();
        match (door, firewalls.pop()) {
            (Some((listen, resolvers)), Some(firewall)) if mistakes.is_empty() => Ok(Self {
                node,
                state: if state.is_relative() { base.join(state) } else { state },
                listen,
                resolvers,
                never_grant: never_grant.into_iter().map(|found| found.value).collect(),
                max_grants: max_grants.unwrap_or(1_000_000),
                health,
                firewall,
            }),
            _ => Err(mistakes),
        }
    }

    /// Who may drive it, and where.
    fn read_door(root: &Table, base: &Path) -> Option<(Listen, Vec<String>)> {
        let Some(table) = root.table("enforce") else {
            root.document().note(
                &root.span_of("enforce"),
                "`[enforce]` is missing",
                "add it, with listen, resolvers, ca, certificate and key",
            );
            return None;
        };
        let note = |key, fact: &str, remedy: &str| table.document().note(&table.span_of(key), fact, remedy);
        let listen = Self::read_listen(&table, base);
        let resolvers: Vec<_> = table.strings("resolvers").unwrap_or_default();
        if !table.has("resolvers") || resolvers.is_empty() {
            let remedy = "add resolvers = [\"ns1.corp.example\"]: the names in their certificates";
            note("resolvers", "`resolvers` names nobody", remedy);
        }
        if resolvers.len() > RESOLVERS {
            note("resolvers", "`resolvers` names more than 16", "drive this gateway by fewer");
        }
        for (place, resolver) in resolvers.iter().enumerate() {
            let fact = match &resolver.value {
                name if tokio_rustls::rustls::pki_types::ServerName::try_from(name.as_str()).is_err() => {
                    "no name that a certificate could have"
                }
                name if name.contains(char::is_whitespace) => "no name that a certificate could have",
                name if resolvers.iter().take(place).any(|known| known.value == *name) => "there twice",
                _ => continue,
            };
            let fact = format!("\"{}\" is {fact}", resolver.value);
            table.document().note(&resolver.span, fact, "write each resolver's name once, as in its certificate");
        }
        if matches!(listen, Some(Listen::Socket(_))) && resolvers.len() > 1 {
            let remedy = "name that of this machine; others need an address, with certificates";
            note("resolvers", "one resolver alone can drive a gateway over a socket", remedy);
        }
        table.finish(&[]);
        Some((listen?, resolvers.into_iter().map(|found| found.value).collect()))
    }

    fn read_listen(table: &Table, base: &Path) -> Option<Listen> {
        let note = |fact: &str, remedy: &str| table.document().note(&table.span_of("listen"), fact, remedy);
        let tls = ClientTls::read(table, base);
        if !table.has("listen") {
            note("`listen` is missing", "add listen = \"192.0.2.1:8953\", where the resolvers reach it");
            return None;
        }
        let listen = table.string("listen")?;
        if let Some(path) = socket(table, &listen, base, &tls) {
            return Some(Listen::Socket(path));
        }
        tls.require_mutual(table, "listen", "the door needs TLS");
        match listen.value.parse() {
            Ok(address) => Some(Listen::Tls(address, tls)),
            Err(_) => {
                let remedy = "write an address with its port, \"192.0.2.1:8953\", or a socket, \"unix:/run/outgate-enforce/socket\"";
                note("`listen` is no address", remedy);
                None
            }
        }
    }
}

/// Serves until SIGTERM or SIGINT; SIGHUP reads the certificates again.
pub(crate) fn enforce(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let text = read_text(&arguments.config).map_err(|error| {
        let fact = format!("{} cannot be read: {error}", arguments.config.display());
        Failure::Mistakes(vec![Mistake::general(
            fact,
            "name the configuration with -c, or make it readable for this user",
        )])
    })?;
    let settings = Settings::parse(&arguments.config, &text).map_err(Failure::Mistakes)?;
    settings.listen.check().map_err(|mistake| Failure::Mistakes(vec![mistake]))?;
    if arguments.check {
        print("no mistakes\n")?;
        return Ok(ExitCode::SUCCESS);
    }
    diagnose();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime =
        runtime.map_err(|error| Failure::Failed(format!("no runtime: {error}; raise the limit of threads")))?;
    runtime.block_on(async {
        let mut signals = Signals::new()?;
        let _lock = lock_state(&settings.state)?;
        let (entrance, certificates) = settings.listen.open().await?;
        let monitoring = match settings.health {
            Some(address) => Some(bind(address, "[health].listen").await?),
            None => None,
        };
        let clock = Clock::system();
        let name = settings.firewall.common.name.clone();
        let firewall = settings.firewall.build(&clock);
        let firewall = firewall.map_err(|error| Failure::Failed(format!("firewall \"{name}\": {error}")))?;
        let parts = DeskParts {
            firewall,
            resolvers: settings.resolvers.clone(),
            state: settings.state.clone(),
            never: NeverGranted::new(settings.never_grant.clone()),
            max_grants: settings.max_grants,
            clock,
        };
        let door = Door::open(parts).map_err(Failure::Failed)?;
        let (stop, stopped) = watch::channel(false);
        if let Some(listener) = monitoring {
            let registry = Registry::new(WORDS);
            let gateway = Arc::new(Gateway { door: Arc::clone(&door), registry, firewall: name });
            tokio::spawn(health::serve(listener, gateway, stopped.clone()));
        }
        let serving = tokio::spawn(Arc::clone(&door).serve(entrance, stopped));
        tracing::info!(node = settings.node, listen = %settings.listen, "the enforcer waits for resolvers; what is open stays open until its end");
        while signals.wants_reload().await {
            match certificates.as_ref().map(Certificates::renew) {
                None => tracing::info!("a socket has no certificates: there is nothing to read again"),
                Some(Ok(())) => tracing::info!("certificates read again"),
                Some(Err(mistake)) => tracing::error!(%mistake, "the certificates before stay in use"),
            }
        }
        tracing::info!("stopping: what is open stays open until its end");
        let _ = stop.send(true);
        drop(serving.await);
        Ok(ExitCode::SUCCESS)
    })
}

async fn bind(address: SocketAddr, key: &str) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|error| {
        Failure::Failed(format!("{key} {address} cannot be bound: {error}; stop who uses it, or correct {key}"))
    })
}

/// What monitoring sees.
struct Gateway {
    door: Arc<Door>,
    registry: Registry,
    firewall: String,
}

impl Health for Gateway {
    fn readiness(&self) -> Readiness {
        Readiness { waiting: self.door.waiting().into_iter().collect() }
    }

    fn metrics(&self) -> String {
        let (registry, figures, refusals) = (&self.registry, self.door.figures(), self.door.refusals());
        let number = |count: u64| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
        registry.set_info(metric::BUILD, [env!("CARGO_PKG_VERSION")]);
        registry.set_gauge(metric::ENFORCE_READY, [], f64::from(u8::from(self.door.waiting().is_none())));
        registry.set_gauge(metric::ENFORCE_LAYOUTS, [], number(figures.layouts.load(Ordering::Relaxed)));
        for (resolver, drives, held) in self.door.resolvers() {
            registry.set_gauge(metric::ENFORCE_DRIVEN, [&resolver], f64::from(u8::from(drives)));
            registry.set_gauge(metric::ENFORCE_HELD, [&resolver], number(held));
        }
        for (why, count) in [
            ("tls", &refusals.tls),
            ("stranger", &refusals.stranger),
            ("version", &refusals.version),
            ("message", &refusals.message),
            ("never_granted", &figures.never),
            ("max_grants", &figures.full),
        ] {
            registry.absolute(metric::ENFORCE_REFUSED, [why], count.load(Ordering::Relaxed));
        }
        let label = [self.firewall.as_str()];
        let [elements, capacity] = figures.load.each_ref().map(|count| number(count.load(Ordering::Relaxed)));
        registry.set_gauge(metric::FIREWALL_ELEMENTS, label, elements);
        if capacity > 0.0 {
            registry.set_gauge(metric::FIREWALL_CAPACITY, label, elements / capacity);
        }
        registry.absolute(metric::FIREWALL_ERRORS, label, figures.failed.load(Ordering::Relaxed));
        registry.absolute(metric::FIREWALL_DRIFT_REPAIRS, label, figures.repairs.load(Ordering::Relaxed));
        registry.render()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const PAGE: &str = include_str!("../../../docs/gateways.md");

    fn mistakes(text: &str) -> Vec<String> {
        let settings = Settings::parse(Path::new("enforce.toml"), text);
        settings.err().unwrap_or_default().iter().map(ToString::to_string).collect()
    }

    /// The first example of the page.
    fn example() -> &'static str {
        PAGE.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap()
    }

    #[test]
    fn the_example_of_the_documentation_is_valid() {
        let settings = Settings::parse(Path::new("/etc/outgate/enforce.toml"), example()).unwrap();
        assert_eq!(settings.resolvers, ["ns1.corp.example", "ns2.corp.example"]);
        assert_eq!(settings.state, Path::new("/var/lib/outgate-enforce"));
        assert_eq!((settings.max_grants, settings.firewall.kind), (1_000_000, "nftables"));
    }

    #[test]
    fn every_key_is_documented_and_no_other() {
        let written: BTreeSet<&str> = PAGE
            .split("## enforce.toml")
            .nth(1)
            .and_then(|part| part.split("\n## ").next())
            .unwrap()
            .lines()
            .filter_map(|line| line.strip_prefix("| `"))
            .flat_map(|line| line.split(" | ").next().unwrap().split('`').step_by(2))
            .filter(|key| !key.contains(['[', ' ', ',']) && !key.is_empty())
            .chain(["enforce", "health", "firewall"])
            .collect();
        let known = |text: &str| {
            let said = mistakes(text).join("\n");
            let list = said.split("the keys here are ").nth(1).unwrap().lines().next().unwrap().to_owned();
            list.split(", ").map(str::to_owned).collect::<BTreeSet<_>>()
        };
        let mut all = known(&format!("zzzzzz = 1\n{}", example()));
        all.extend(known(&example().replace("[enforce]", "[enforce]\nzzzzzz = 1")));
        let all: BTreeSet<&str> = all.iter().map(String::as_str).collect();
        assert_eq!(written, all);
    }

    #[test]
    fn mistakes_name_place_fact_and_remedy() {
        assert_eq!(
            mistakes("node = \"gw1\"\n"),
            [
                "enforce.toml:1:1: `[enforce]` is missing\n  add it, with listen, resolvers, ca, certificate and key",
                "enforce.toml:1:8: there is no [[firewall]]\n  add the one of this gateway, kind = \"nftables\"",
            ]
        );
        let text = concat!(
            "[enforce]\nlisten = \"10.0.0.1:8953\"\nresolvers = [\"a b\", \"ns1\", \"ns1\"]\n",
            "[[firewall]]\nname = \"a\"\nkind = \"memory\"\n[[firewall]]\nname = \"b\"\nkind = \"remote\"\nserver = \"gw\"\n",
            "ca = \"ca.pem\"\ncertificate = \"c.pem\"\nkey = \"k.pem\"\n",
        );
        assert_eq!(
            mistakes(text),
            [
                "enforce.toml:2:10: the door needs TLS\n  add ca, certificate and key: both sides know each other by their certificates",
                "enforce.toml:3:14: \"a b\" is no name that a certificate could have\n  write each resolver's name once, as in its certificate",
                "enforce.toml:3:28: \"ns1\" is there twice\n  write each resolver's name once, as in its certificate",
                "enforce.toml:4:1: an enforcer cannot drive another one\n  let the resolvers drive that enforcer themselves",
                "enforce.toml:4:1: there is more than one [[firewall]]\n  run one enforcer for each",
            ]
        );
        let firewall = "[[firewall]]\nname = \"a\"\nkind = \"memory\"\n";
        for (listen, resolvers, expected) in [
            (
                "unix:",
                "\"ns1\"",
                "it names no socket\n  write its path, of at most 90 bytes: \"unix:/run/outgate-enforce/socket\"",
            ),
            (
                "unix: /run/a",
                "\"ns1\"",
                "it names no socket\n  write its path, of at most 90 bytes: \"unix:/run/outgate-enforce/socket\"",
            ),
            (
                "unix:/run/a",
                "\"ns1\", \"ns2\"",
                "one resolver alone can drive a gateway over a socket\n  name that of this machine; others need an address, with certificates",
            ),
            (
                "unix:/run/a\"\nca = \"ca.pem",
                "\"ns1\"",
                "a socket of this machine has no TLS\n  take ca, certificate and key out: who may connect there is said by the mode of the socket",
            ),
            (
                "gw1:8953\"\nca = \"c\"\ncertificate = \"c\"\nkey = \"k",
                "\"ns1\"",
                "`listen` is no address\n  write an address with its port, \"192.0.2.1:8953\", or a socket, \"unix:/run/outgate-enforce/socket\"",
            ),
        ] {
            let found = mistakes(&format!("[enforce]\nlisten = \"{listen}\"\nresolvers = [{resolvers}]\n{firewall}"));
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found.iter().all(|mistake| mistake.ends_with(expected)), "{found:?}, not {expected}");
        }
    }

    #[test]
    fn a_socket_needs_no_certificates() {
        let text = PAGE.split("```toml\n# enforce.toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        let settings = Settings::parse(Path::new("/etc/outgate/enforce.toml"), text).unwrap();
        assert_eq!(settings.listen.to_string(), "unix:/run/outgate-enforce/socket");
    }
}
