//! Files → rulebook: the policy directory, the zones, what both must know of the configuration; and the certificate.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::statvfs::{FsFlags, statvfs};

use crate::app::config::Config;
use crate::app::promotion::Promotion;
use crate::document::{Mistake, Warning, WarningKind};
use crate::grant::Caps;
use crate::name::Name;
use crate::net::{Prefix, local_addresses};
use crate::policy::{self, Policy, Site};
use crate::serve::tls::Identity;
use crate::time::Wall;
use crate::upstream::{self, Upstreams};
use crate::zones::Zones;

/// The largest policy file read: a million names are about 40 MB.
const LARGEST_FILE: u64 = 256 << 20;

/// What one load has read.
pub(super) struct Loaded {
    pub(super) policy: Arc<Policy>,
    pub(super) zones: Zones,
    /// Certificate and key, where the configuration names them.
    pub(super) identity: Option<Identity>,
    /// What should be known of them.
    pub(super) warnings: Vec<Warning>,
    /// The candidate, where the configuration names one, or what is wrong with it: that stops nothing.
    pub(super) candidate: Option<Result<Arc<Policy>, Vec<Mistake>>>,
    /// What the policy is instead of the files of its directory.
    pub(super) promotion: Option<Promotion>,
}

/// Reads and checks everything that a reload reads; every mistake of every file.
///
/// While the policy directory is the one that `promotion` took the place of, its files are the policy.
pub(super) fn load(
    config: &Config,
    upstreams: &Upstreams,
    promotion: Option<Promotion>,
    now: Wall,
) -> Result<Loaded, Vec<Mistake>> {
    let mut mistakes = Vec::new();
    // The policy must know which names the zones hold; what is wrong with them is told after what is wrong with it.
    let zones = Zones::load(&config.zones.directory, config.zones.optional);
    let settings = settings(config, upstreams, zones.as_ref().ok());
    let mut promotion = promotion.filter(|promotion| {
        let revision = read_files(&config.policy_directory, DIRECTORY)
            .map(|files| policy::revision_of(files, &config.policy_directory.display().to_string()));
        revision.is_ok_and(|revision| format!("{revision:016x}") == promotion.over)
    });
    let compiled = match &mut promotion {
        Some(promotion) => compile_promoted(promotion, &settings),
        None => compile_directory(&config.policy_directory, DIRECTORY, &settings),
    };
    let policy = compiled.map_err(|more| mistakes.extend(more)).ok();
    let zones = zones.map_err(|more| mistakes.extend(more)).ok();
    let mut warnings = Vec::new();
    warn_of_clear_text(config, &mut warnings);
    warn_of_local(&settings.sites, &mut warnings);
    let mut of_identity = Vec::new();
    let identity = config.tls.as_ref().map(|tls| Identity::load(tls, now, &mut of_identity)).transpose();
    warnings.extend(of_identity.into_iter().map(|said| Warning { said, kind: WarningKind::Certificate }));
    let identity = identity.unwrap_or_else(|more| {
        mistakes.extend(more);
        None
    });
    if let Some(policy) = &policy {
        check_views(config, policy, &mut mistakes);
    }
    // What it is compiled with is whole only where the zones are.
    let candidate = config.candidate.as_ref().filter(|_| mistakes.is_empty()).map(|directory| {
        let policy = compile_directory(directory, CANDIDATE, &settings)?;
        let mut mistakes = Vec::new();
        check_views(config, &policy, &mut mistakes);
        if mistakes.is_empty() { Ok(Arc::new(policy)) } else { Err(mistakes) }
    });
    match (policy, zones) {
        (Some(policy), Some(mut zones)) if mistakes.is_empty() => {
            for zone in config.upstreams.iter().flat_map(|upstream| &upstream.zones) {
                zones.carve(zone);
            }
            Ok(Loaded { policy: Arc::new(policy), zones, identity, warnings, candidate, promotion })
        }
        _ => Err(mistakes),
    }
}

/// The policies of two directories, both under this configuration; every mistake of every file.
pub(super) fn policies(
    config: &Config,
    upstreams: &Upstreams,
    directories: [&Path; 2],
) -> Result<[Arc<Policy>; 2], Vec<Mistake>> {
    let zones = Zones::load(&config.zones.directory, config.zones.optional)?;
    let settings = settings(config, upstreams, Some(&zones));
    match directories.map(|directory| compile_directory(directory, "the argument", &settings)) {
        [Ok(old), Ok(new)] => Ok([Arc::new(old), Arc::new(new)]),
        [old, new] => Err([old.err(), new.err()].into_iter().flatten().flatten().collect()),
    }
}

/// What a policy must know of the rest.
fn settings(config: &Config, upstreams: &Upstreams, zones: Option<&Zones>) -> policy::Settings {
    policy::Settings {
        forwarders: config.forwarders.clone(),
        client_ca: config.tls.as_ref().is_some_and(crate::serve::tls::Settings::has_client_ca),
        own_addresses: own_addresses(config, upstreams),
        never_grant: Vec::new(),
        sites: sites(config, zones),
        caps: Some(caps()),
        directory: String::new(),
    }
}

/// The upstreams of the configuration; without any, the system's resolvers less ourselves. Where there are none either
/// the mistake is a warning: local zones are answered all the same.
pub(super) fn upstreams(config: &Config) -> (Vec<upstream::Settings>, Option<Mistake>) {
    if !config.upstreams.is_empty() {
        return (config.upstreams.clone(), None);
    }
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    match upstream::system_servers(&text, &config.listen.dns) {
        Ok(servers) => (vec![upstream::Settings::for_everything("system", servers)], None),
        Err(warning) => (Vec::new(), Some(warning)),
    }
}

/// How much a node takes, as a policy is judged by it.
fn caps() -> policy::Caps {
    let Caps { client, segment, all } = Caps::default();
    policy::Caps { client, segment, all }
}

/// Who serves names besides the upstreams for everything: local zones, and upstreams that are named for a zone.
fn sites(config: &Config, zones: Option<&Zones>) -> Vec<Site> {
    let local = zones.into_iter().flat_map(Zones::apexes);
    let local = local.map(|apex| Site { apex: apex.clone(), server: policy::Server::Zone });
    let upstreams = config.upstreams.iter().flat_map(|upstream| {
        let segments: Vec<_> = upstream.segments.iter().map(|(segment, _)| Arc::clone(segment)).collect();
        let server = policy::Server::Upstream(segments);
        upstream.zones.iter().map(move |zone| Site { apex: zone.clone(), server: server.clone() })
    });
    local.chain(upstreams).collect()
}

/// RFC 6762 §3: "any fully qualified name ending in ".local." MUST be sent to the mDNS IPv4 link-local multicast address".
fn warn_of_local(sites: &[Site], warnings: &mut Vec<Warning>) {
    let Ok(local) = Name::parse("local") else { return };
    for Site { apex, .. } in sites.iter().filter(|site| site.apex.is_within(&local)) {
        let fact =
            format!("the zone {apex} is served, and many hosts ask names below local by multicast alone (RFC 6762)");
        let remedy = "name it otherwise, for instance below internal or home.arpa";
        warnings.push(Warning::general(WarningKind::Multicast, fact, remedy));
    }
}

/// What no answer may open whatever a rule says: this host and the upstream servers.
fn own_addresses(config: &Config, upstreams: &Upstreams) -> Vec<Prefix> {
    let listening =
        config.listen.dns.iter().chain(&config.listen.tls).map(SocketAddr::ip).filter(|ip| !ip.is_unspecified());
    let servers = upstreams.all().iter().flat_map(|upstream| upstream.servers()).map(|server| server.ip());
    let all: HashSet<IpAddr> = local_addresses().into_iter().chain(listening).chain(servers).collect();
    all.into_iter().map(Prefix::from).collect()
}

/// Whoever can keep encrypted servers from answering has those in clear text beside them asked, which he can forge.
fn warn_of_clear_text(config: &Config, warnings: &mut Vec<Warning>) {
    for upstream in &config.upstreams {
        let encrypted = upstream.servers.iter().filter(|server| server.transport.proof().is_some()).count();
        if encrypted > 0 && encrypted < upstream.servers.len() {
            let fact = format!(
                "upstream \"{}\" has servers that are asked in clear text where the encrypted ones fail",
                upstream.name
            );
            warnings.push(Warning::general(WarningKind::ClearText, fact, "remove one kind or the other"));
        }
    }
}

/// `segments` of `[[upstream]]` must exist.
fn check_views(config: &Config, policy: &Policy, mistakes: &mut Vec<Mistake>) {
    let known: HashSet<&str> = policy.segments().iter().map(|segment| &*segment.name).collect();
    for (segment, place) in config.upstreams.iter().flat_map(|upstream| &upstream.segments) {
        if !known.contains(&**segment) {
            let fact = format!("no policy file has a segment \"{segment}\"");
            let remedy = "correct `segments`, or add the segment to the policy";
            mistakes.push(Mistake { place: place.clone(), fact, remedy: remedy.into() });
        }
    }
}

/// The keys that name directories of policy files.
pub(super) const DIRECTORY: &str = "[policy].directory";
pub(super) const CANDIDATE: &str = "[policy].candidate";

/// Reads and compiles the files of a directory.
fn compile_directory(directory: &Path, key: &'static str, settings: &policy::Settings) -> Result<Policy, Vec<Mistake>> {
    let mut mistakes = Vec::new();
    let Found { files, .. } = policy_files(directory, key, &mut mistakes);
    let mut unread = Vec::new();
    let settings = policy::Settings { directory: directory.display().to_string(), ..settings.clone() };
    // One after the other: they are not all in memory at once.
    let compiled = policy::compile(files.into_iter().filter_map(|path| read_file(path, &mut unread)), &settings);
    mistakes.extend(unread);
    match compiled {
        Ok(policy) if mistakes.is_empty() => Ok(policy),
        Ok(_) => Err(mistakes),
        Err(more) => Err(mistakes.into_iter().chain(more).collect()),
    }
}

fn compile_promoted(promotion: &mut Promotion, settings: &policy::Settings) -> Result<Policy, Vec<Mistake>> {
    let settings = policy::Settings { directory: promotion.directory.clone(), ..settings.clone() };
    policy::compile(promotion.take_files(), &settings).map_err(|mut mistakes| {
        let fact = format!("the policy that was promoted from {} cannot be used any more", promotion.directory);
        let remedy = "change a file of [policy].directory, or remove promoted.json from the state directory";
        mistakes.insert(0, Mistake::general(fact, remedy));
        mistakes
    })
}

/// The files of a directory, all of them.
pub(super) fn read_files(directory: &Path, key: &'static str) -> Result<Vec<policy::Source>, Vec<Mistake>> {
    let mut mistakes = Vec::new();
    let found = policy_files(directory, key, &mut mistakes);
    let files = found.files.into_iter().filter_map(|path| read_file(path, &mut mistakes)).collect();
    if mistakes.is_empty() { Ok(files) } else { Err(mistakes) }
}

/// What there is of a policy.
#[derive(Default)]
pub(super) struct Found {
    /// In order of their paths.
    pub(super) files: Vec<PathBuf>,
    /// The directories that were read, as they really are.
    pub(super) directories: HashSet<PathBuf>,
}

/// Every `*.toml` below the directory; `tests/` is left out, links may not leave it, and what
/// everybody may write is nobody's policy.
pub(super) fn policy_files(directory: &Path, key: &'static str, mistakes: &mut Vec<Mistake>) -> Found {
    let root = match directory.canonicalize() {
        Ok(root) => root,
        Err(error) => {
            let fact = format!("the policy directory {} cannot be read: {error}", directory.display());
            mistakes.push(Mistake::general(fact, format!("create it, or correct {key}")));
            return Found::default();
        }
    };
    let mut files = Vec::new();
    let mut pending = vec![directory.to_owned()];
    // A directory may be there twice, and hold a link to itself.
    let mut visited = HashSet::from([root.clone()]);
    while let Some(at) = pending.pop() {
        refuse_open(&at, mistakes);
        let entries = match std::fs::read_dir(&at) {
            Ok(entries) => entries,
            Err(error) => {
                unreadable(&at, &error, mistakes);
                continue;
            }
        };
        for entry in entries {
            let entry = match entry {
                Ok(entry) => entry,
                // The file that is missed might be one that denies.
                Err(error) => {
                    unreadable(&at, &error, mistakes);
                    continue;
                }
            };
            let path = entry.path();
            let name = entry.file_name();
            let is_policy = path.extension().is_some_and(|extension| extension == "toml");
            // What an editor leaves beside it for a moment may be gone by now.
            if !is_policy && entry.file_type().is_ok_and(|kind| kind.is_file()) {
                continue;
            }
            // A Kubernetes volume keeps its files behind ..data; the links beside it lead there.
            if name.to_string_lossy().starts_with('.') || name == "tests" {
                continue;
            }
            match path.canonicalize() {
                Ok(real) if !real.starts_with(&root) => {
                    let fact = format!("{} is a link out of the policy directory", path.display());
                    mistakes.push(Mistake::general(fact, "copy the file into the directory"));
                }
                Ok(real) if real.is_dir() => {
                    if visited.insert(real) {
                        pending.push(path);
                    }
                }
                Ok(real) if real.is_file() && is_policy => {
                    refuse_open(&real, mistakes);
                    files.push(path);
                }
                Ok(_) => {}
                Err(error) => unreadable(&path, &error, mistakes),
            }
        }
    }
    files.sort();
    Found { files, directories: visited }
}

/// Refuses what everybody may write. A volume that Kubernetes makes of a ConfigMap has the mode 0777, and nobody can write there.
fn refuse_open(path: &Path, mistakes: &mut Vec<Mistake>) {
    let open = path.metadata().is_ok_and(|metadata| metadata.mode() & 0o002 != 0);
    let fixed = || statvfs(path).is_ok_and(|volume| volume.flags().contains(FsFlags::ST_RDONLY));
    if open && !fixed() {
        let fact = format!("{} can be written by everybody", path.display());
        mistakes.push(Mistake::general(fact, format!("chmod o-w {}", path.display())));
    }
}

fn read_file(path: PathBuf, mistakes: &mut Vec<Mistake>) -> Option<policy::Source> {
    if path.metadata().is_ok_and(|metadata| metadata.len() > LARGEST_FILE) {
        let fact = format!("{} is larger than {} MiB", path.display(), LARGEST_FILE >> 20);
        mistakes.push(Mistake::general(fact, "split it"));
        return None;
    }
    match std::fs::read_to_string(&path) {
        Ok(text) => Some(policy::Source { file: path.display().to_string(), text }),
        Err(error) => {
            unreadable(&path, &error, mistakes);
            None
        }
    }
}

fn unreadable(path: &Path, error: &std::io::Error, mistakes: &mut Vec<Mistake>) {
    let fact = format!("{} cannot be read: {error}", path.display());
    mistakes.push(Mistake::general(fact, "make it readable for this user, and UTF-8"));
}
