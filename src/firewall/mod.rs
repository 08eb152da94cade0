//! Firewalls: one trait, one table of backends, one folder each.
//!
//! A backend is driven by one thread, the granter. When [`Firewall::apply`] returns, the changes that it does
//! not list as failed are in force: "in the kernel", never "received".

mod cut;
mod memory;
pub mod nftables;
pub mod remote;
mod witness;

use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

pub use self::cut::{Cut, Cutter};
pub use self::memory::{Memory, MemoryHandle, Mode};
pub use self::witness::{Count, Endpoints, GATHERED, Looked, Refused, Seen, Sight, Sought, Witness};
use crate::document::{Mistake, Table};
use crate::grant::Change;
use crate::net::{Element, Prefix, Services};
use crate::policy::Layout;
use crate::time::{Clock, Tick};

/// One firewall.
pub trait Firewall: Send {
    /// The name from `[[firewall]]`; a metric label.
    fn name(&self) -> &str;

    /// Whether answers wait for it.
    fn required(&self) -> bool;

    /// Takes over whatever this node left in place before (or sets up anew), lays `layout` out, and lists the
    /// elements that are live with the time at which each ends. Called once before the doors open and again
    /// after [`Firewall::drifted`] said that somebody else changed something. No moment passes in which
    /// everything is open, or a live flow is cut.
    ///
    /// # Errors
    /// The firewall cannot be used.
    fn adopt(&mut self, layout: &Layout, now: Tick) -> Result<Vec<(Element, Tick)>, FirewallError>;

    /// As [`Firewall::adopt`], but puts exactly `live` in force, in one instant, instead of listing what is: where there
    /// is much of it, that is quicker. `false`, and nothing was done: this firewall cannot.
    ///
    /// # Errors
    /// The firewall cannot be used.
    fn restore(&mut self, _layout: &Layout, _live: &[(Element, Tick)], _now: Tick) -> Result<bool, FirewallError> {
        Ok(false)
    }

    /// Begins to be taken over, where it is on another machine: as [`Firewall::adopt`], but nothing waits. What it holds
    /// comes by [`Firewall::listed`].
    ///
    /// # Errors
    /// The firewall cannot be used.
    fn begin_adopting(&mut self, _layout: &Layout) -> Result<(), FirewallError> {
        Err(FirewallError::NotAdopted)
    }

    /// Some of what it holds; `None`: nothing came yet.
    ///
    /// # Errors
    /// The firewall cannot be used.
    fn listed(&mut self) -> Result<Option<Listed>, FirewallError> {
        Err(FirewallError::NotAdopted)
    }

    /// Is shown what is set once nothing may wait for it any more, where it is on another machine.
    fn heed(&mut self, _hurry: &Arc<AtomicBool>) {}

    /// Is told that it has now all that it is to have: it may count from here on.
    fn caught_up(&mut self) {}

    /// Replaces the layout, atomically; elements stay.
    ///
    /// # Errors
    /// The old layout is still in force.
    fn arrange(&mut self, layout: &Layout) -> Result<(), FirewallError>;

    /// Is told what the next [`Firewall::apply`] will be called with, so that it is under way while others are waited for.
    fn begin(&mut self, _changes: &[Change], _now: Tick) {}

    /// What became of what was begun, as [`Firewall::apply`] would say; `None`: that is not known yet.
    ///
    /// # Errors
    /// None of the changes can be relied upon.
    fn became(&mut self) -> Result<Option<Vec<usize>>, FirewallError> {
        Err(FirewallError::NotAdopted)
    }

    /// Applies changes, atomically where the backend can; the indexes of those that failed, in order. A failing
    /// change never takes another one down with it.
    ///
    /// # Errors
    /// None of the changes can be relied upon.
    fn apply(&mut self, changes: &[Change], now: Tick) -> Result<Vec<usize>, FirewallError>;

    /// What ends the live connections that `cuts` take, and of those that it let begin no others: their next packet is
    /// judged like one that begins. Nothing has been done yet. Elements that let them begin are to be closed before.
    fn cutter(&self, cuts: &Arc<[Cut]>) -> Cutter;

    /// Whether somebody else changed what is ours since the last call. Does not block.
    ///
    /// # Errors
    /// It cannot be told; the caller adopts again.
    fn drifted(&mut self) -> Result<bool, FirewallError>;

    /// True where it is on another machine: it may be away for a time, also when the node starts.
    fn is_away(&self) -> bool {
        false
    }

    /// Whether it lets nothing new through since it was last heard, so that no answer has to wait for it.
    ///
    /// # Errors
    /// Why answers wait for it.
    fn is_fenced(&self, _now: Tick) -> Result<(), String> {
        Err("it is of this machine".into())
    }

    /// How full the fullest of its tables is; `None` where it cannot tell.
    ///
    /// # Errors
    /// The firewall cannot be asked.
    fn load(&mut self) -> Result<Option<Load>, FirewallError> {
        Ok(None)
    }
}

/// Some of what a firewall holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// Each with its end.
    pub elements: Vec<(Element, Tick)>,
    /// There is more.
    pub more: bool,
}

/// How full a table of a firewall is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Elements, those that are over and still take up room among them.
    pub elements: u32,
    /// How many it may have.
    pub capacity: u32,
}

impl Load {
    /// From 0 to 1.
    #[must_use]
    pub fn ratio(self) -> f64 {
        f64::from(self.elements) / f64::from(self.capacity.max(1))
    }
}

/// What every `[[firewall]]` has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Common {
    /// Unique among the firewalls.
    pub name: String,
    /// Answers wait for it.
    pub required: bool,
    /// How long a change may take.
    pub deadline: Duration,
}

impl Common {
    /// A required firewall with the default deadline.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), required: true, deadline: Duration::from_millis(500) }
    }
}

/// What a kind of firewall made of its keys.
pub trait Plan: Debug + Send + Sync {
    /// The backend. Nothing is touched before [`Firewall::adopt`].
    ///
    /// # Errors
    /// What is configured cannot be.
    fn build(&self, common: &Common, clock: &Clock) -> Result<Box<dyn Firewall>, FirewallError>;

    /// Whether the files that it names are of use.
    ///
    /// # Errors
    /// What is wrong with one.
    fn check(&self) -> Result<(), Mistake> {
        Ok(())
    }

    /// True where only the machine's own flows are governed: clients elsewhere have no use for its grants.
    fn local_clients_only(&self) -> bool {
        false
    }

    /// Where everybody may go without a grant, and by what.
    fn spared(&self) -> Vec<(Prefix, Vec<Services>)> {
        Vec::new()
    }

    /// True where [`Plan::witness`] gives something.
    fn has_witness(&self) -> bool {
        false
    }

    /// What tells which flows passed and which packets were refused. `None`: this firewall cannot tell.
    ///
    /// # Errors
    /// What is sought cannot be had.
    fn witness(&self, _sought: &Sought) -> Result<Option<Box<dyn Witness>>, FirewallError> {
        Ok(None)
    }
}

/// One `[[firewall]]`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its word in [`BACKENDS`].
    pub kind: &'static str,
    /// What every firewall has.
    pub common: Common,
    /// What its kind made of the other keys.
    pub plan: Arc<dyn Plan>,
}

/// What a kind reads its keys with: where relative paths begin, and what the remote ones share.
#[derive(Clone, Debug)]
pub struct Around<'a> {
    /// The directory of the configuration.
    pub base: &'a Path,
    /// All gateways on other machines.
    pub fleet: Arc<remote::Fleet>,
}

type Read = fn(&Table, &Around<'_>) -> Option<Arc<dyn Plan>>;

/// Every kind of firewall: its word in `kind`, and what reads its keys.
pub const BACKENDS: &[(&str, Read)] = &[
    ("memory", |_, _| Some(Arc::new(memory::Settings))),
    ("nftables", |table, _| Some(Arc::new(nftables::Settings::read(table)?))),
    ("remote", |table, around| Some(Arc::new(remote::Settings::read(table, around.base, &around.fleet)?))),
];

/// Keys that the interface names and no kind here has.
const PLANNED: &[&str] = &["flowtable"];

impl Settings {
    /// The firewall that is used where none is configured: it opens nothing.
    #[must_use]
    pub fn memory() -> Self {
        Self { kind: "memory", common: Common::new("memory"), plan: Arc::new(memory::Settings) }
    }

    /// Reads every `[[firewall]]` of the root table; without any, the memory firewall. Relative paths begin at `base`.
    #[must_use]
    pub fn read_all(root: &Table, base: &Path) -> Vec<Self> {
        let around = Around { base, fleet: Arc::default() };
        let mut all: Vec<Self> = Vec::new();
        let tables = root.tables("firewall");
        let none = tables.is_empty();
        for table in tables {
            let (document, span) = (table.document().clone(), table.span_of("name"));
            let Some(settings) = Self::read(table, &around) else { continue };
            if all.iter().any(|known| known.common.name == settings.common.name) {
                let fact = format!("a second firewall is named \"{}\"", settings.common.name);
                document.note(&span, fact, "give it another name");
            }
            all.push(settings);
        }
        if none { vec![Self::memory()] } else { all }
    }

    /// Reads one `[[firewall]]`; mistakes are noted in its document.
    #[must_use]
    pub fn read(table: Table, around: &Around<'_>) -> Option<Self> {
        let name = table.required_string("name");
        let required = table.boolean("required").unwrap_or(true);
        let deadline = table
            .duration("deadline", Duration::from_millis(10)..=Duration::from_secs(10))
            .unwrap_or(Duration::from_millis(500));
        let plan = table.required_string("kind").and_then(|kind| {
            let backend = BACKENDS.iter().find(|(word, _)| *word == kind.value);
            if backend.is_none() {
                let words: Vec<_> = BACKENDS.iter().map(|(word, _)| format!("\"{word}\"")).collect();
                let fact = format!("`kind` cannot be \"{}\"", kind.value);
                table.document().note(&kind.span, fact, format!("write one of {}", words.join(", ")));
            }
            backend.and_then(|(kind, read)| Some((*kind, read(&table, around)?)))
        });
        table.finish(PLANNED);
        let (kind, plan) = plan?;
        Some(Self { kind, common: Common { name: name?.value, required, deadline }, plan })
    }

    /// The backend. Nothing is touched before [`Firewall::adopt`].
    ///
    /// # Errors
    /// What is configured cannot be.
    pub fn build(&self, clock: &Clock) -> Result<Box<dyn Firewall>, FirewallError> {
        self.plan.build(&self.common, clock)
    }
}

/// Why a firewall cannot be used. Each message is one sentence with its remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FirewallError {
    /// Not allowed to change the firewall.
    #[error(
        "changing nftables needs CAP_NET_ADMIN; run as root or grant it to the service (AmbientCapabilities=CAP_NET_ADMIN)"
    )]
    Forbidden,
    /// The table belongs to another live process.
    #[error("the table {0} is owned by another process; stop the other outgate first")]
    Owned(String),
    /// The kernel lacks something.
    #[error(
        "the kernel does not support {0}; load or build in nf_tables, nft_ct, nft_reject_inet, nft_log and nf_conntrack_netlink"
    )]
    Unsupported(String),
    /// No answer in time.
    #[error("no acknowledgement within the deadline")]
    Deadline,
    /// The rules of hook output let the resolver's own user pass, and that would be root.
    #[error(
        "with hook = \"output\" everything that the resolver's own user sends passes, and that would be root; run outgate as a user of its own, or name it in own_uid"
    )]
    OwnUser,
    /// Another program reads the refusals.
    #[error(
        "another program reads the nflog group {0} (see /proc/net/netfilter/nfnetlink_log), and a group has one reader; stop it, or write another `nflog` for this firewall"
    )]
    Group(u16),
    /// It was used before it was adopted.
    #[error("the firewall is not set up yet; adopt it first")]
    NotAdopted,
    /// It is on another machine and cannot be reached.
    #[error("the enforcer cannot be reached: {0}")]
    Away(String),
    /// The enforcer on another machine said no.
    #[error("the enforcer refused: {0}")]
    Refused(String),
    /// The kernel said no.
    #[error("{what}: {why}")]
    Kernel {
        /// What was tried.
        what: String,
        /// errno and the kernel's own message.
        why: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Document;

    fn around() -> Around<'static> {
        Around { base: Path::new("/etc/outgate"), fleet: Arc::default() }
    }

    fn read(text: &str) -> (Option<Settings>, Vec<String>) {
        let (document, table) = Document::parse("f.toml", text);
        let settings = Settings::read(table, &around());
        (settings, document.take_mistakes().iter().map(ToString::to_string).collect())
    }

    #[test]
    fn an_enforcer_is_on_another_machine_with_certificates_or_on_this_one_without() {
        let tls = "ca = \"ca.pem\"\ncertificate = \"own.pem\"\nkey = \"own.key\"\n";
        for (server, tls, expected) in [
            ("gw1", tls, None),
            ("gw1", "", Some("kind = \"remote\" needs TLS")),
            ("gw 1", tls, Some("`server` is no host")),
            ("unix:/run/outgate-enforce/socket", "", None),
            ("unix:/run/outgate-enforce/socket", tls, Some("a socket of this machine has no TLS")),
            ("unix:", "", Some("it names no socket")),
            ("unix: /run/a", "", Some("it names no socket")),
            (&format!("unix:/{}", "x".repeat(90)), "", Some("the path is too long for a socket")),
        ] {
            let (_, mistakes) = read(&format!("name = \"a\"\nkind = \"remote\"\nserver = \"{server}\"\n{tls}"));
            let found: Vec<_> = mistakes.iter().map(String::as_str).collect();
            match expected {
                Some(fact) => assert!(matches!(found[..], [told] if told.contains(fact)), "{server}: {found:?}"),
                None => assert_eq!(found, [""; 0], "{server}"),
            }
        }
    }

    #[test]
    fn every_kind_is_found_by_its_word() {
        let remote = "server = \"gw1\"\nca = \"ca.pem\"\ncertificate = \"own.pem\"\nkey = \"own.key\"\n";
        for (kind, _) in BACKENDS {
            let keys = if *kind == "remote" { remote } else { "hook = \"sets\"\n" };
            let (settings, mistakes) = read(&format!("name = \"a\"\nkind = \"{kind}\"\n{keys}"));
            let settings = settings.unwrap();
            if *kind != "memory" {
                assert_eq!(mistakes, [""; 0]);
            }
            assert_eq!(settings.common, Common::new("a"));
            let mut firewall = match settings.build(&Clock::manual()) {
                Ok(firewall) => firewall,
                Err(error) => {
                    assert!(*kind == "remote" && error.to_string().contains("/etc/outgate/ca.pem"), "{error}");
                    continue;
                }
            };
            assert_eq!((firewall.name(), firewall.required()), ("a", true));
            if *kind != "memory" {
                assert_eq!(firewall.drifted(), Err(FirewallError::NotAdopted));
            }
        }
    }

    #[test]
    fn reads_every_key_of_nftables() {
        let (settings, mistakes) = read(concat!(
            "name = \"gateway\"\nkind = \"nftables\"\nhook = \"forward\"\ninside = [\"eth1\", \"veth*\"]\n",
            "ungated = [\"10.0.0.0/8\"]\nrequired = false\ndeadline = \"50ms\"\ntable = \"egress\"\nmark = 0x40\n",
            "nflog = 9\nsize = 4096\nresolvers = [\"192.0.2.53\"]\nown_uid = 65533\n",
        ));
        assert_eq!(mistakes, [""; 0]);
        let settings = settings.unwrap();
        assert_eq!(settings.common.deadline, Duration::from_millis(50));
        assert!(!settings.common.required && !settings.plan.local_clients_only());
        let wanted = nftables::Settings {
            table: "egress".into(),
            hook: nftables::Hook::Forward,
            inside: vec!["eth1".into(), "veth*".into()],
            ungated: vec!["10.0.0.0/8".parse().unwrap()],
            mark: 0x40,
            nflog: 9,
            size: 4096,
            resolvers: vec!["192.0.2.53".parse().unwrap()],
            own_uid: Some(65533),
        };
        assert_eq!(format!("{:?}", settings.plan), format!("{wanted:?}"));
    }

    #[test]
    fn mistakes_name_place_fact_and_remedy() {
        let (settings, mistakes) = read(concat!(
            "kind = \"nftables\"\nhook = \"forward\"\nmark = 3\ntable = \"a b\"\n",
            "own_uid = 0\nflowtable = \"accepted\"\nsizes = 4\n",
        ));
        assert!(settings.is_none());
        assert_eq!(
            mistakes,
            [
                "f.toml:1:1: `name` is missing\n  add name = \"…\"",
                "f.toml:2:8: hook = \"forward\" needs `inside`\n  add inside = [\"eth1\"]: what enters there from no segment is refused",
                "f.toml:3:8: `mark` is not a single bit\n  write one bit that nobody else uses, e.g. 0x00010000",
                "f.toml:4:9: `table` is no name for a table of nftables\n  write a letter, then letters, digits, _ and -, at most 63",
                "f.toml:5:11: `own_uid` is root, whose every program would pass\n  run outgate as a user of its own",
                "f.toml:6:1: `flowtable` is not supported by this version\n  remove it",
                "f.toml:7:1: `sizes` is not a key here\n  did you mean `size`?",
            ]
        );
        let (_, mistakes) = read("name = \"a\"\nkind = \"pf\"\n");
        assert_eq!(
            mistakes,
            ["f.toml:2:8: `kind` cannot be \"pf\"\n  write one of \"memory\", \"nftables\", \"remote\""]
        );
    }
}
