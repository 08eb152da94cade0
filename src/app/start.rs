//! From a configuration to a node that serves: everything that can fail is tried before a door opens.

use std::fs::{DirBuilder, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::sync::watch;

use crate::app::changes::{Book, Desk, Feed};
use crate::app::cli::Failure;
use crate::app::config::Config;
use crate::app::cookies;
use crate::app::flow;
use crate::app::load::{self, Loaded};
use crate::app::node::{Beside, Doors, Found, NodeParts, RunningNode};
use crate::app::peers::Peers;
use crate::app::promotion::Promotion;
use crate::app::sockets::{Sockets, judge};
use crate::audit::{Log, Meter, Shard, Sinks};
use crate::cache::{Answers, Cover, Failures, LOCAL_BYTES, Named};
use crate::document::Mistake;
use crate::firewall;
use crate::gate::{
    Deadlines, Gate, Granter, GranterParts, Hurry, Outbox, Passed, Refresher, Refreshes, Rulebook, Secrets, Slots,
    WORDS, WarmCounts,
};
use crate::grant::{Caps, Ledger};
use crate::metric::{self, Registry};
use crate::serve::tcp::{Limits, Streams};
use crate::serve::tls::Tls;
use crate::serve::udp::{Bound, Worker};
use crate::serve::{Given, Socket, StreamDoor, quic};
use crate::time::Clock;
use crate::upstream::Upstreams;

/// Memory for the names under which addresses are open: about 200 bytes for each client and address.
const NAMED_BYTES: usize = 16 << 20;

/// All of a query on the slow path: below the 2 s at which the quickest stubs ask again.
const QUERY_DEADLINE: Duration = Duration::from_millis(1900);

/// Shards of the log besides its own: the granter, the stream doors, the node; then one per worker, and of the flows.
const FIXED_SHARDS: u16 = 3;

/// A node that is ready to serve; nothing answers yet.
pub(super) struct Started {
    pub(super) built: Built,
    pub(super) log: Log,
    pub(super) sinks: Arc<Sinks>,
    pub(super) streams: Vec<tokio::net::TcpListener>,
    pub(super) tls_streams: Vec<tokio::net::TcpListener>,
    pub(super) https_streams: Vec<tokio::net::TcpListener>,
    pub(super) quic: Vec<quic::Door>,
    pub(super) health: Option<tokio::net::TcpListener>,
    pub(super) peers: Option<tokio::net::TcpListener>,
    pub(super) admin: Socket,
    /// The service manager holds sockets: what waits in them is for the next process.
    pub(super) followed: bool,
    pub(super) stop: (watch::Sender<bool>, watch::Receiver<bool>),
    /// Held for the life of the process: one node per state directory.
    pub(super) lock: Flock<std::fs::File>,
}

/// The rooms above the log; they hold its shards.
pub(super) struct Built {
    pub(super) node: Arc<RunningNode>,
    pub(super) workers: Vec<Worker>,
    pub(super) granter: std::thread::JoinHandle<()>,
    pub(super) stream_door: Arc<StreamDoor>,
    pub(super) stream_limits: Arc<Streams>,
    pub(super) tls: Option<Arc<Tls>>,
    pub(super) refresher: Refresher,
    /// `None`: no flows are recorded.
    pub(super) watcher: Option<flow::Running>,
}

/// What they are built from.
struct Parts {
    config: Config,
    clock: Clock,
    upstreams: Upstreams,
    no_upstream: Option<Mistake>,
    loaded: Loaded,
    secrets: Secrets,
    book: Book,
    feed: Option<Feed>,
    udp: Bound,
    doors: Doors,
    peers: Arc<Peers>,
    meter: Meter,
    sinks: Arc<Sinks>,
    boot: u64,
}

/// Tries everything that can fail, in the order in which it can be undone. Called inside the runtime.
pub(super) async fn start(config: Config, given: Given) -> Result<Started, Failure> {
    raise_file_limit();
    let clock = Clock::system();
    let (upstream_settings, no_upstream) = load::upstreams(&config);
    let upstreams = Upstreams::new(upstream_settings, &clock).map_err(Failure::Mistakes)?;
    let promotion = Promotion::read(&config.state).map_err(Failure::Mistakes)?;
    let loaded = load::load(&config, &upstreams, promotion, clock.now().wall).map_err(Failure::Mistakes)?;
    check_files(&config).map_err(Failure::Mistakes)?;
    judge(&given, &config).map_err(Failure::Mistakes)?;
    let followed = !given.is_empty();
    let peers = Peers::new(config.peers.as_ref()).map_err(|mistake| Failure::Mistakes(vec![mistake]))?;
    let lock = lock_state(&config.state)?;
    let secrets = cookies::secrets(&config.state).map_err(|mistake| Failure::Failed(mistake.to_string()))?;
    let mut book = Book::open(&config.state, clock.now().wall).map_err(Failure::Failed)?;
    peers.take_up(&book.contents.late, clock.now());
    let mut feed = config.clients_file.clone().map(Feed::new);
    // Whom it names is of its segment from the first query on: without it he might be of a wider one.
    if let Some(fed) = feed.as_mut().and_then(Feed::look) {
        book.contents.fed = fed.map_err(Failure::Mistakes)?;
    }

    let sockets = Sockets::open(&config, given)?;
    let doors = sockets.doors();
    // The workers, the runtime that the streams share, what refreshes answers and what keeps names warm have ports
    // of their own.
    let files = upstreams.sockets() * (config.listen.workers + 3) + OTHER_FILES;
    let admin = Socket::bind(&config.admin_socket, "[admin].socket").await;
    let admin = admin.map_err(|error| Failure::Failed(error.to_string()))?;

    let boot = random()?;
    let own = FIXED_SHARDS + u16::from(config.flow.is_some());
    let workers = u16::try_from(config.listen.workers).unwrap_or(u16::MAX - own);
    let (log, shards) = Log::open(config.audit.clone(), &config.node, clock.clone(), boot, own + workers)
        .map_err(|error| Failure::Failed(error.to_string()))?;
    let meter = log.meter();
    let sinks = match Sinks::start(&config.sinks, &config.audit.file, &config.state, &config.node, &meter, &clock) {
        Ok(sinks) => Arc::new(sinks),
        Err(why) => {
            drop(shards);
            let _ = log.close();
            return Err(Failure::Failed(why));
        }
    };
    let Sockets { udp, streams, tls: tls_streams, https: https_streams, quic, h3, health, peers: peers_door } = sockets;
    let parts = Parts {
        config,
        clock,
        upstreams,
        no_upstream,
        loaded,
        secrets,
        book,
        feed,
        udp,
        doors,
        peers: Arc::new(peers),
        meter,
        sinks: Arc::clone(&sinks),
        boot,
    };
    match build(parts, shards) {
        Ok(built) => {
            judge_file_limit(files);
            Ok(Started {
                built,
                log,
                sinks,
                streams,
                tls_streams,
                https_streams,
                quic: quic.into_iter().chain(h3).collect(),
                health,
                peers: peers_door,
                admin,
                followed,
                stop: watch::channel(false),
                lock,
            })
        }
        Err(failure) => {
            // A log without its last record is that of a process that was killed. The failure matters more than
            // one of this.
            let _ = log.close();
            Err(failure)
        }
    }
}

/// Builds the rooms from the bottom up.
fn build(parts: Parts, shards: Vec<Shard>) -> Result<Built, Failure> {
    let Parts {
        config,
        clock,
        upstreams,
        no_upstream,
        loaded,
        secrets,
        book,
        feed,
        udp,
        doors,
        peers,
        meter,
        sinks,
        boot,
    } = parts;
    let Loaded { policy: files, zones, identity, mut warnings, candidate, promotion } = loaded;
    if promotion.is_none() {
        Promotion::forget(&config.state);
    }
    let mut shards = shards.into_iter();
    let mut shard = || shards.next().ok_or_else(|| Failure::Failed("the log gave too few shards".into()));

    let desk = Desk { shard: shard()?, book, files, feed };
    let (policy, unlaid) = desk.laid(&desk.files);
    warnings.extend(unlaid);

    let registry = Registry::new(WORDS);
    let now = clock.now().wall;
    let candidate = candidate.map(|candidate| candidate.map(|policy| Arc::new(desk.laid(&policy).0)));
    let found = Found { candidate, promotion, policy: &policy, before: None, now, asked: 0 };
    let (candidate, beside) = Beside::new(found);
    let rulebook = Rulebook::new(Arc::new(policy), zones, 1, now, registry.tallies())
        .beside(candidate)
        .designating(identity.as_ref().and_then(|identity| doors.designation(identity)))
        .giving_cookies(secrets);
    let rulebook = Arc::new(ArcSwap::from_pointee(rulebook));
    let build = |settings: &firewall::Settings| {
        let name = &settings.common.name;
        let firewall = settings.build(&clock);
        let firewall = firewall.map_err(|error| Failure::Failed(format!("firewall \"{name}\": {error}")))?;
        Ok((firewall, registry.histogram(metric::FIREWALL_ACK, [name])))
    };
    let firewalls = config.firewalls.iter().map(build).collect::<Result<Vec<_>, Failure>>()?;
    // They are told one after the other; without any, the granter's thread alone is waited for.
    let required = config.firewalls.iter().filter(|firewall| firewall.common.required);
    let firewall_deadline: Duration = required.map(|firewall| firewall.common.deadline).sum();
    let firewall_deadline = if firewall_deadline.is_zero() { QUERY_DEADLINE } else { firewall_deadline };
    let parts = GranterParts {
        ledger: Ledger::new(config.terms, Caps::default()),
        firewalls,
        held: registry.histogram(metric::ANSWERS_HELD, []),
        shard: shard()?,
        rulebook: Arc::clone(&rulebook),
        clock: clock.clone(),
    };
    let (granter, granter_thread) =
        Granter::start(parts, &config.state).map_err(|error| Failure::Failed(error.to_string()))?;

    let (refreshes, refresher) = Refreshes::new();
    let gate = Arc::new(Gate {
        rulebook,
        upstreams,
        answers: Answers::new(config.cache.answers(), config.cache.stale),
        failures: Failures::new(config.cache.failures()),
        refreshes,
        warm: WarmCounts::default(),
        // What the doors' threads keep is on top: it must not push out what all of them share.
        cover: Cover::new(config.cache.replies() + (config.listen.workers + 1) * LOCAL_BYTES),
        named: Named::new(NAMED_BYTES),
        granter,
        slots: Slots::default(),
        passed: Passed::default(),
        terms: config.terms,
        deadlines: Deadlines { query: QUERY_DEADLINE, firewall: firewall_deadline },
        hurry: Hurry::default(),
        clock,
    });
    let stream_door = StreamDoor::new(Arc::clone(&gate), Outbox::new(shard()?, registry.tallies().register()));
    let mut outboxes = Vec::new();
    for _ in 0..config.listen.workers {
        outboxes.push((shard()?, registry.tallies().register()));
    }
    let workers = udp
        .workers(&gate, outboxes)
        .map_err(|error| Failure::Failed(format!("no runtime for a worker: {error}; raise the limit of open files")))?;
    let flows = config.flow.as_ref().map(|settings| {
        let (firewalls, file) = (config.firewalls.as_slice(), config.audit.file.as_path());
        let (meter, gate, shard) = (&meter, Arc::clone(&gate), shard()?);
        flow::start(flow::Parts { settings, firewalls, file, meter, gate, shard }).map_err(Failure::Failed)
    });
    let (flows, watcher) = flows.transpose()?.unzip();
    let stream_limits = Streams::new(Limits::default());
    let tls = identity.map(Tls::new);
    let parts = NodeParts {
        config,
        gate,
        registry,
        meter,
        sinks,
        flows,
        streams: Arc::clone(&stream_limits),
        tls: tls.clone(),
        doors,
        peers,
        no_upstream,
        boot,
    };
    let node = RunningNode::new(parts, warnings, beside, desk);
    Ok(Built {
        node: Arc::new(node),
        workers,
        granter: granter_thread,
        stream_door: Arc::new(stream_door),
        stream_limits,
        tls,
        refresher,
        watcher,
    })
}

/// Makes the state directory and takes its lock.
pub(super) fn lock_state(state: &Path) -> Result<Flock<std::fs::File>, Failure> {
    let failed = |error: std::io::Error| {
        let remedy = match error.kind() {
            std::io::ErrorKind::PermissionDenied => {
                "let it belong to the user that outgate runs as, or correct `state`"
            }
            std::io::ErrorKind::StorageFull => "free some space there",
            _ => "correct `state`",
        };
        Failure::Failed(format!("the state directory {} cannot be used: {error}; {remedy}", state.display()))
    };
    DirBuilder::new().recursive(true).mode(0o750).create(state).map_err(failed)?;
    let file = OpenOptions::new().create(true).append(true).mode(0o640).open(state.join("lock")).map_err(failed)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        nix::errno::Errno::EWOULDBLOCK => Failure::Failed(format!(
            "another outgate uses the state directory {}; stop it first, or give this one a `state` of its own",
            state.display()
        )),
        error => failed(error.into()),
    })
}

/// Upstream sockets and connections need descriptors: takes as many as the hard limit allows. Failing leaves the soft
/// limit as it is, and what then runs short says so.
fn raise_file_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// Besides the ports to upstream servers: connections of clients, sockets, the log, the journal.
const OTHER_FILES: usize = 2_048;

/// Says where the limit of open files is too low for the load that `wanted` of them are for.
fn judge_file_limit(wanted: usize) {
    if let Ok((soft, _)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < wanted as u64
    {
        tracing::warn!(
            "at most {soft} files may be open, and under load the ports to upstream servers and the connections of clients take up to {wanted}; raise LimitNOFILE of the service, or `ulimit -n`, or lower `workers`"
        );
    }
}

fn random() -> Result<u64, Failure> {
    getrandom::u64().map_err(|error| Failure::Failed(format!("the system gives no random numbers: {error}")))
}

/// Whether the files that sinks and firewalls name are of use.
fn check_files(config: &Config) -> Result<(), Vec<Mistake>> {
    let sinks = config.sinks.iter().filter_map(|sink| sink.check().err());
    let firewalls = config.firewalls.iter().filter_map(|firewall| firewall.plan.check().err());
    let mistakes: Vec<_> = firewalls.chain(sinks).collect();
    if mistakes.is_empty() { Ok(()) } else { Err(mistakes) }
}

/// What `check` validates beyond the configuration's own text.
pub(super) fn check(config: &Config) -> Result<(Loaded, Upstreams), Vec<Mistake>> {
    let (settings, _) = load::upstreams(config);
    let clock = Clock::system();
    let upstreams = Upstreams::new(settings, &clock)?;
    let loaded = load::load(config, &upstreams, None, clock.now().wall)?;
    check_files(config)?;
    Peers::new(config.peers.as_ref()).map_err(|mistake| vec![mistake])?;
    Ok((loaded, upstreams))
}
