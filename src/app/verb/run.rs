//! `outgate run`.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tracing_subscriber::EnvFilter;

use crate::app::cli::{ConfigFile, Failure};
use crate::app::config::Config;
use crate::app::flow;
use crate::app::node::{Doors, RunningNode};
use crate::app::notify;
use crate::app::peers;
use crate::app::start::{Built, Started, start};
use crate::app::watch::Watch;
use crate::audit::Log;
use crate::gate::Warmer;
use crate::net::local_addresses;
use crate::serve::tcp::Speech;
use crate::serve::{Given, admin, health, tcp};

/// How often the log looks after itself.
const LOG_TICK: Duration = Duration::from_secs(1);

/// How long queries that wait for others may go on waiting when the node stops; then they end with SERVFAIL, and their
/// clients ask again. Meanwhile nobody else is answered: an upstream that hangs must not make that felt.
const WAIT: Duration = Duration::from_millis(500);

/// Doors that are still there so long after the node began to stop are cut. Every query has been concluded before: what
/// waits is given up after [`WAIT`], and a client that does not take its answer then is left alone by its connection.
const DRAIN: Duration = Duration::from_millis(1500);

/// How long a reload that was begun may take when the node is to stop. Queries are answered meanwhile.
const RELOAD: Duration = Duration::from_secs(6);

/// How long sinks may take for what is in the log and to say farewell, and no more for one that hangs in the resolver of names
/// or in a file system; and where a next process is expected, which goes on with it.
const SINKS: [Duration; 2] = [Duration::from_secs(8), Duration::from_millis(500)];

/// What is shown where RUST_LOG does not say. The validator prints whole messages of whoever sends forged ones; records tell
/// of those. What peers send wrong over QUIC is counted.
const DIAGNOSTICS: &str = "info,hickory_net=off,hickory_proto=off,quinn_proto=error,quinn_udp=warn";

/// Serves until SIGTERM or SIGINT.
pub(crate) fn run(file: &ConfigFile) -> Result<ExitCode, Failure> {
    // First of all: these are known by the numbers of their descriptors.
    let given = Given::take().map_err(Failure::Mistakes)?;
    diagnose();
    let config = Config::read(file).map_err(Failure::Mistakes)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("slow").build();
    let runtime =
        runtime.map_err(|error| Failure::Failed(format!("no runtime: {error}; raise the limit of threads")))?;
    // Before anything is bound: a signal that comes early must not be lost.
    let signals = runtime.block_on(async { Signals::new() })?;
    // Before anything is loaded: what changes meanwhile is seen.
    let watch = runtime.block_on(async { Watch::new(&config) }).map_err(Failure::Failed)?;
    let started = runtime.block_on(start(config, given))?;
    let ended = serve(&runtime, started, signals, watch);
    // Dropped, it would wait for a reload that hangs.
    runtime.shutdown_background();
    ended
}

/// Shows diagnostics on the standard error.
pub(super) fn diagnose() {
    // RUST_LOG chooses what is shown of the diagnostics; queries are in the audit log, never here.
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DIAGNOSTICS));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        // Without it, a message that cannot be written is told by eprintln!, which panics where standard error is
        // gone: no reason for a node to end.
        .log_internal_errors(false)
        .init();
}

/// The signals that the node obeys.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    pub(super) fn new() -> Result<Self, Failure> {
        let on = |kind| signal(kind).map_err(|error| Failure::Failed(format!("no signals: {error}")));
        Ok(Self {
            terminate: on(SignalKind::terminate())?,
            interrupt: on(SignalKind::interrupt())?,
            hangup: on(SignalKind::hangup())?,
        })
    }

    /// Waits for the next one: whether it is to read its files again, and not to stop.
    pub(super) async fn wants_reload(&mut self) -> bool {
        tokio::select! {
            _ = self.terminate.recv() => false,
            _ = self.interrupt.recv() => false,
            _ = self.hangup.recv() => true,
        }
    }
}

fn serve(
    runtime: &tokio::runtime::Runtime,
    started: Started,
    mut signals: Signals,
    mut watch: Option<Watch>,
) -> Result<ExitCode, Failure> {
    let Started {
        built,
        log,
        sinks,
        streams,
        tls_streams,
        https_streams,
        quic,
        health,
        peers,
        admin,
        followed,
        stop,
        lock,
    } = started;
    let Built { node, workers, granter, stream_door, stream_limits, tls, refresher, watcher } = built;
    announce(&node);
    runtime.block_on(node.record_start());
    let refresher = runtime.spawn(refresher.run(Arc::clone(node.gate())));
    let warmer = runtime.spawn(Warmer::new(Arc::clone(node.gate())).run());
    let tender = runtime.spawn(Arc::clone(&node).tend());
    let (stop_doors, stopped) = stop;
    let mut doors = Vec::new();
    let mut listeners: Vec<_> = streams.into_iter().map(|listener| (listener, Speech::Tcp)).collect();
    // Without a certificate nothing is served there, least of all clear text.
    if let Some(tls) = tls {
        listeners.extend(tls_streams.into_iter().map(|listener| (listener, Speech::Dot(Arc::clone(&tls)))));
        listeners.extend(https_streams.into_iter().map(|listener| (listener, Speech::Doh(Arc::clone(&tls)))));
        for door in quic {
            let (gate, limits, stopped) = (Arc::clone(&stream_door), Arc::clone(&stream_limits), stopped.clone());
            doors.push(runtime.spawn(door.serve(Arc::clone(&tls), gate, limits, stopped)));
        }
    }
    for (listener, speech) in listeners {
        let (door, limits, stopped) = (Arc::clone(&stream_door), Arc::clone(&stream_limits), stopped.clone());
        doors.push(runtime.spawn(tcp::serve(listener, speech, door, limits, stopped)));
    }
    // What they tell is finished like a query: it is a change.
    doors.extend(peers.map(|listener| runtime.spawn(peers::serve(listener, Arc::clone(&node), stopped.clone()))));
    doors.extend(
        (0..node.peers().len()).map(|peer| runtime.spawn(peers::link(Arc::clone(&node), peer, stopped.clone()))),
    );
    // Monitoring sees the node drain: its doors close last.
    let (stop_side_doors, drained) = watch::channel(false);
    let side_doors = [
        health.map(|listener| runtime.spawn(health::serve(listener, Arc::new(Arc::clone(&node)), drained.clone()))),
        Some(runtime.spawn(admin::serve(admin, Arc::new(Arc::clone(&node)), drained))),
    ];
    let spawn = |(index, worker): (usize, crate::serve::udp::Worker)| {
        let stopped = stopped.clone();
        std::thread::Builder::new().name(format!("udp-{index}")).spawn(move || worker.run(stopped))
    };
    let workers = workers.into_iter().enumerate().map(spawn).collect::<Result<Vec<_>, _>>();
    let workers = workers.map_err(|error| Failure::Failed(format!("no thread for a worker: {error}")))?;
    let (end_log, log_ends) = tokio::sync::oneshot::channel();
    let log = runtime.spawn(look_after_log(log, log_ends));

    notify::tell(notify::READY);
    runtime.block_on(obey(&node, &mut signals, watch.as_mut()));

    tracing::info!("stopping: no new work is taken, what was taken is answered");
    notify::tell(notify::STOPPING);
    node.stopping();
    let cut = Instant::now() + DRAIN;
    let _ = stop_doors.send(true);
    let gate = Arc::clone(node.gate());
    let hurry = runtime.spawn(async move {
        sleep(WAIT).await;
        gate.hurry.raise();
    });
    for worker in workers {
        if worker.join().is_err() {
            tracing::error!("a worker had panicked");
        }
    }
    runtime.block_on(async {
        let mut are_cut = false;
        for mut door in doors {
            if timeout_at(cut, &mut door).await.is_err() {
                are_cut = true;
                door.abort();
                let _ = door.await;
            }
        }
        if are_cut {
            tracing::warn!("connections whose clients did not take their answers in time are cut");
        }
        drop(stop_side_doors);
        for door in side_doors.into_iter().flatten() {
            door.abort();
            let _ = door.await;
        }
    });
    refresher.abort();
    warmer.abort();
    hurry.abort();
    tender.abort();
    // It holds the node, and with it a shard of the log.
    let _ = runtime.block_on(tender);
    // It holds a shard too.
    watcher.into_iter().for_each(flow::Running::stop);
    let gate = Arc::clone(node.gate());
    let hurry = runtime.spawn(async move {
        sleep_until(cut).await;
        gate.granter.hurry();
    });
    node.gate().granter.stop();
    if granter.join().is_err() {
        tracing::error!("the granter had panicked");
    }
    hurry.abort();
    let _ = runtime.block_on(hurry);
    // Every shard must be gone before the log writes its last record.
    drop(stream_door);
    drop(node);
    let _ = end_log.send(());
    let closed = runtime.block_on(log);
    let closed = match closed {
        Ok(Some(log)) => log.close().map_err(|error| Failure::Failed(format!("the log could not be closed: {error}"))),
        Ok(None) | Err(_) => {
            tracing::error!("the log's thread had ended before");
            Ok(())
        }
    };
    // Its last record is delivered too.
    let [last, next] = SINKS;
    sinks.stop(if followed { next } else { last });
    drop(lock);
    closed?;
    tracing::info!("stopped; the firewall keeps what is open until it ends");
    Ok(ExitCode::SUCCESS)
}

/// SIGHUP reloads, and so does a change of what is watched; SIGTERM and SIGINT end it.
async fn obey(node: &Arc<RunningNode>, signals: &mut Signals, mut watch: Option<&mut Watch>) {
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => return,
            _ = signals.interrupt.recv() => return,
            _ = signals.hangup.recv() => {}
            () = changed(watch.as_deref_mut()) => tracing::info!("the policy files have changed"),
        }
        let reload = node.reload_now();
        tokio::pin!(reload);
        tokio::select! {
            // Its outcome is recorded and logged; the node goes on either way.
            _ = &mut reload => {}
            _ = signals.terminate.recv() => return finish(reload).await,
            _ = signals.interrupt.recv() => return finish(reload).await,
        }
    }
}

async fn changed(watch: Option<&mut Watch>) {
    match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}

/// A reload that was begun is finished before the node stops, unless its files cannot be read to the end (a network
/// file system that hangs).
async fn finish<T>(reload: impl Future<Output = T>) {
    if timeout(RELOAD, reload).await.is_err() {
        tracing::warn!("a reload did not end in time and is given up; the policy before stays in force");
    }
}

/// Rotation, heartbeats, retention: about every second, off the answer path.
async fn look_after_log(mut log: Log, mut end: tokio::sync::oneshot::Receiver<()>) -> Option<Log> {
    loop {
        tokio::select! {
            _ = &mut end => return Some(log),
            () = sleep(LOG_TICK) => {}
        }
        let ticked = tokio::task::spawn_blocking(move || {
            let result = log.tick();
            (log, result)
        });
        let (back, result) = ticked.await.ok()?;
        log = back;
        if let Err(error) = result {
            tracing::error!(%error, "the query log needs attention");
        }
    }
}

/// Says what it serves and what it took for granted.
fn announce(node: &RunningNode) {
    let config = node.config();
    match &config.file {
        Some(file) => tracing::info!(file = %file.display(), "configuration"),
        None => tracing::info!("no configuration file: the built-in defaults are used, each named here"),
    }
    let policy = node.gate().rulebook().policy.clone();
    for warning in node.warnings(&policy) {
        tracing::warn!("{warning}");
    }
    tracing::info!(
        directory = %config.policy_directory.display(),
        revision = format!("{:016x}", policy.revision()),
        segments = policy.segments().len(),
        rules = policy.rules_len(),
        "policy"
    );
    if let Some(directory) = &config.candidate {
        let candidate = node.gate().rulebook().candidate.as_ref().map(|candidate| candidate.policy.revision());
        let revision = candidate.map(|revision| format!("{revision:016x}"));
        tracing::info!(directory = %directory.display(), revision, "candidate");
    }
    tracing::info!(directory = %config.zones.directory.display(), zones = node.gate().rulebook().zones.len(), "zones");
    for upstream in node.gate().upstreams.all() {
        let servers: Vec<String> = upstream.described().map(|server| server.to_string()).collect();
        tracing::info!(name = %upstream.name(), servers = servers.join(", "), "upstream");
    }
    for firewall in &config.firewalls {
        tracing::info!(name = firewall.common.name, required = firewall.common.required, "firewall");
    }
    tracing::info!(state = %config.state.display(), admin = %config.admin_socket.display(), "state");
    tracing::info!(file = %config.audit.file.display(), "query log");
    if let Some(address) = config.health {
        tracing::info!(%address, "health and metrics");
    }
    if let Some(peers) = &config.peers {
        tracing::info!(address = %peers.listen, peers = node.peers().len(), "peers");
    }
    let Doors { dns, tls, https, quic, h3 } = node.doors();
    for address in dns {
        tracing::info!(%address, workers = config.listen.workers, "serving DNS over UDP and TCP");
    }
    for address in tls {
        tracing::info!(%address, "serving DNS over TLS");
    }
    for address in https {
        tracing::info!(%address, "serving DNS over HTTPS");
    }
    for address in quic {
        tracing::info!(%address, "serving DNS over QUIC");
    }
    for address in h3 {
        tracing::info!(%address, "serving DNS over HTTPS with HTTP/3");
    }
    let local = local_addresses();
    if config.firewalls.iter().any(|firewall| firewall.plan.local_clients_only()) && local.is_empty() {
        tracing::warn!("hook = \"output\" governs this host's own flows, and it has no address");
    }
}
