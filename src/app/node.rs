//! The running node: what operators ask of it, and the reload.

mod beside;
mod figures;
mod follow;
mod peers;
mod promote;
mod sinks;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use serde_json::{Value, json};

use crate::app::changes::{Contents, Desk};
use crate::app::config::Config;
use crate::app::cookies;
use crate::app::flow::Flows;
use crate::app::load::{self, Loaded};
use crate::app::peers::Peers;
use crate::app::promotion::Promotion;
use crate::audit::{Event, Meter, PolicyEvent, Shard, Sinks, Transport};
use crate::cache;
use crate::document::{Mistake, Warning, WarningKind};
use crate::gate::{Designation, Door, Gate, GrantEntry, GrantQuery, Rulebook, Secrets};
use crate::metric::{self, Registry};
use crate::net::{Scope, Service, Services};
use crate::policy::{Policy, Summary};
use crate::serve::tcp::Streams;
use crate::serve::tls::{Identity, Tls};
use crate::serve::{
    ChangeOrder, ClientRow, FlushOrder, Flushed, ForgetOrder, GrantFilter, GrantRow, Node, PlaceOrder, PromoteOrder,
    Readiness, RevokeOrder, Who, health::Health,
};
use crate::time::Wall;
use crate::upstream::ServerHealth;
pub(super) use beside::{Beside, Found};
use figures::{number, room};

/// How long before a rule ends, or a segment begins to enforce, it is told: two weeks to ask whoever owns it.
pub(super) const SOON: Duration = Duration::from_secs(14 * 86_400);

/// What a running node is made of.
pub(super) struct NodeParts {
    pub(super) config: Config,
    pub(super) gate: Arc<Gate>,
    pub(super) registry: Registry,
    pub(super) meter: Meter,
    pub(super) sinks: Arc<Sinks>,
    /// `None`: no flows are recorded.
    pub(super) flows: Option<Flows>,
    pub(super) streams: Arc<Streams>,
    /// `None`: no encrypted door.
    pub(super) tls: Option<Arc<Tls>>,
    pub(super) doors: Doors,
    pub(super) peers: Arc<Peers>,
    /// Why there is no upstream, where there is none.
    pub(super) no_upstream: Option<Mistake>,
    pub(super) boot: u64,
}

/// Where queries are taken.
pub(super) struct Doors {
    /// Over UDP and TCP.
    pub(super) dns: Vec<SocketAddr>,
    /// Over TLS.
    pub(super) tls: Vec<SocketAddr>,
    /// Over HTTPS.
    pub(super) https: Vec<SocketAddr>,
    /// Over QUIC.
    pub(super) quic: Vec<SocketAddr>,
    /// Over HTTP/3.
    pub(super) h3: Vec<SocketAddr>,
}

impl Doors {
    /// Each address with each transport that it takes.
    fn each(&self) -> impl Iterator<Item = (&SocketAddr, Transport)> {
        let dns = self.dns.iter().flat_map(|address| [(address, Transport::Udp), (address, Transport::Tcp)]);
        let encrypted = [
            (&self.tls, Transport::Dot),
            (&self.https, Transport::Doh),
            (&self.quic, Transport::Doq),
            (&self.h3, Transport::Doh3),
        ];
        dns.chain(
            encrypted.into_iter().flat_map(|(door, transport)| door.iter().map(move |address| (address, transport))),
        )
    }
}

impl Doors {
    /// What clients that know only our address are told of the encrypted ones.
    pub(super) fn designation(&self, identity: &Identity) -> Option<Designation> {
        let (name, addresses) = identity.names()?;
        const PATH: Option<&str> = Some("/dns-query{?dns}");
        let doors: [(_, &[&str], _); 4] = [
            (&self.tls, &["dot"], None),
            (&self.https, &["h2", "http/1.1"], PATH),
            (&self.quic, &["doq"], None),
            (&self.h3, &["h3"], PATH),
        ];
        let doors = doors
            .into_iter()
            .filter_map(|(door, protocols, path)| Some(Door { protocols, port: door.first()?.port(), path }));
        Designation::new(name, addresses, &doors.collect::<Vec<_>>())
    }
}

/// See the module.
pub(super) struct RunningNode {
    parts: NodeParts,
    /// What the last load said of the certificate.
    warnings: ArcSwap<Vec<Warning>>,
    /// And of the candidate.
    beside: ArcSwap<Beside>,
    started: Wall,
    /// Held through a load, so that two are done one after the other; taken before the desk, which changes need meanwhile.
    pub(super) loading: tokio::sync::Mutex<()>,
    /// Held through a swap and a change, so that two are done one after the other.
    pub(super) desk: tokio::sync::Mutex<Desk>,
    /// What is changed while it runs, for who only looks.
    pub(super) changes: ArcSwap<Contents>,
    stopping: AtomicBool,
    reload_failures: AtomicU64,
}

impl RunningNode {
    pub(super) fn new(mut parts: NodeParts, warnings: Vec<Warning>, beside: Beside, desk: Desk) -> Self {
        let started = parts.gate.clock.now().wall;
        let Doors { dns, tls, https, quic, h3 } = &mut parts.doors;
        [dns, tls, https, quic, h3].into_iter().for_each(|addresses| addresses.sort());
        Self {
            warnings: ArcSwap::from_pointee(warnings),
            beside: ArcSwap::from_pointee(beside),
            started,
            changes: ArcSwap::from_pointee(desk.book.contents.clone()),
            loading: tokio::sync::Mutex::default(),
            desk: tokio::sync::Mutex::new(desk),
            stopping: AtomicBool::new(false),
            reload_failures: AtomicU64::new(0),
            parts,
        }
    }

    pub(super) const fn config(&self) -> &Config {
        &self.parts.config
    }

    pub(super) const fn gate(&self) -> &Arc<Gate> {
        &self.parts.gate
    }

    /// What the operator should know, though it starts nothing and stops nothing.
    pub(super) fn warnings(&self, policy: &Policy) -> Vec<String> {
        let loaded = self.warnings.load();
        let ageing = policy.ageing(self.parts.gate.clock.now().wall, SOON);
        let beside = self.beside.load();
        let first = beside.warnings().map(|warning| warning.to_string());
        let first = first.chain(self.parts.no_upstream.iter().map(ToString::to_string));
        let first = first.chain(self.parts.flows.iter().flat_map(Flows::remarks));
        first.chain(loaded.iter().chain(policy.warnings()).chain(&ageing).map(ToString::to_string)).collect()
    }

    /// Where queries are taken.
    pub(super) const fn doors(&self) -> &Doors {
        &self.parts.doors
    }

    /// Not ready from here on: load balancers look elsewhere while it drains.
    pub(super) fn stopping(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Records the policy that the node starts with, and what is laid over it.
    pub(super) async fn record_start(&self) {
        let rulebook = self.parts.gate.rulebook();
        let mut desk = self.desk.lock().await;
        let event = event(&rulebook, rulebook.loaded, "load");
        record(&mut desk.shard, event);
        self.record_standing(&mut desk);
    }

    /// Loads everything anew and swaps it in, or changes nothing.
    pub(super) async fn reload_now(self: &Arc<Self>) -> Result<Value, Vec<Mistake>> {
        let _loading = self.loading.lock().await;
        let loaded = match Promotion::read(&self.parts.config.state) {
            Ok(promotion) => self.load_files(promotion).await,
            Err(mistakes) => Err(mistakes),
        };
        // Not before: denies must not wait for a load.
        let mut desk = self.desk.lock().await;
        let gate = &self.parts.gate;
        let before = gate.rulebook();
        let result = match loaded {
            Ok((loaded, secrets)) => self.swap(loaded, secrets, &before, &mut desk).await,
            Err(mistakes) => Err(mistakes),
        };
        match result {
            Ok((rulebook, revoked)) => {
                drop(desk);
                let policy = &rulebook.policy;
                let changes = changes(&before.policy, policy, rulebook.loaded).await;
                let mut desk = self.desk.lock().await;
                let previous = Some(before.policy.revision());
                let event = event(&rulebook, rulebook.loaded, "reload");
                record(&mut desk.shard, PolicyEvent { previous, revoked, changes: changes.as_ref(), ..event });
                tracing::info!(
                    revision = format!("{:016x}", policy.revision()),
                    rules = policy.rules_len(),
                    revoked,
                    "policy reloaded"
                );
                let of_candidate: Vec<_> = self.beside.load().mistakes().iter().map(ToString::to_string).collect();
                Ok(json!({
                    "revision": format!("{:016x}", policy.revision()),
                    "previous": format!("{:016x}", before.policy.revision()),
                    "segments": policy.segments().len(),
                    "rules": policy.rules_len(),
                    "revoked": revoked,
                    "candidate_mistakes": of_candidate,
                }))
            }
            Err(mistakes) => {
                self.reload_failures.fetch_add(1, Ordering::Relaxed);
                let first = mistakes.first().map(ToString::to_string).unwrap_or_default();
                let at = gate.clock.now().wall;
                let previous = Some(before.policy.revision());
                record(&mut desk.shard, PolicyEvent { previous, why: Some(&first), ..event(&before, at, "refused") });
                tracing::error!(mistakes = mistakes.len(), first, "reload refused; the policy before stays in force");
                Err(mistakes)
            }
        }
    }

    /// Reads and compiles all files. A million names take a while: not on a thread of the runtime.
    async fn load_files(self: &Arc<Self>, promotion: Option<Promotion>) -> Result<(Loaded, Secrets), Vec<Mistake>> {
        let node = Arc::clone(self);
        let loaded = tokio::task::spawn_blocking(move || node.load_with(promotion)).await;
        loaded.unwrap_or_else(|error| Err(vec![Mistake::general(format!("the load broke off: {error}"), "")]))
    }

    fn load_with(&self, promotion: Option<Promotion>) -> Result<(Loaded, Secrets), Vec<Mistake>> {
        let NodeParts { config, gate, .. } = &self.parts;
        let loaded = load::load(config, &gate.upstreams, promotion, gate.clock.now().wall)?;
        Ok((loaded, cookies::secrets(&config.state).map_err(|mistake| vec![mistake])?))
    }

    /// Swaps it in; the rulebook in force and how many grants went.
    async fn swap(
        &self,
        loaded: Loaded,
        secrets: Secrets,
        before: &Rulebook,
        desk: &mut Desk,
    ) -> Result<(Arc<Rulebook>, u64), Vec<Mistake>> {
        let gate = &self.parts.gate;
        let now = gate.clock.now().wall;
        let Loaded { policy: files, zones, identity, mut warnings, candidate, promotion } = loaded;
        let (policy, left_out) = desk.laid(&files);
        warnings.extend(left_out);
        let candidate = candidate.map(|candidate| candidate.map(|policy| Arc::new(desk.laid(&policy).0)));
        let found = Found { candidate, promotion, policy: &policy, before: Some(before), now, asked: self.asked() };
        let (candidate, beside) = Beside::new(found);
        let designation = identity.as_ref().and_then(|identity| self.parts.doors.designation(identity));
        let rulebook = Rulebook::new(Arc::new(policy), zones, before.epoch + 1, now, self.parts.registry.tallies());
        let rulebook = Arc::new(rulebook.designating(designation).giving_cookies(secrets).beside(candidate));
        let swapped = gate.swap(Arc::clone(&rulebook)).await;
        let revoked = swapped.map(|closed| closed.reasons).map_err(|(name, error)| {
            vec![Mistake::general(format!("firewall \"{name}\" refused the new policy: {error}"), "")]
        })?;
        desk.files = files;
        if let Some((tls, identity)) = self.parts.tls.as_ref().zip(identity)
            && tls.renew(identity)
        {
            tracing::info!(valid_until = %tls.not_after(), "another certificate is served to new connections");
        }
        self.parts
            .peers
            .renew()
            .unwrap_or_else(|mistake| tracing::error!(%mistake, "peers see the certificate before"));
        warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        beside.warnings().for_each(|warning| tracing::warn!("{warning}"));
        if beside.promotion().is_none() {
            Promotion::forget(&self.parts.config.state);
        }
        self.warnings.store(Arc::new(warnings));
        self.beside.store(Arc::new(beside));
        Ok((rulebook, revoked))
    }

    /// How many queries there were so far.
    fn asked(&self) -> u64 {
        self.parts.registry.tallies().verdicts().iter().sum()
    }
}

/// What a reload changed. A million names take a while: not on a thread of the runtime.
async fn changes(before: &Arc<Policy>, after: &Arc<Policy>, now: Wall) -> Option<Summary> {
    let (before, after) = (Arc::clone(before), Arc::clone(after));
    tokio::task::spawn_blocking(move || Summary::new(&before, &after, now)).await.ok()
}

/// What is recorded of a load; `rulebook` is the one in force after it.
fn event<'a>(rulebook: &Rulebook, at: Wall, op: &'a str) -> PolicyEvent<'a> {
    PolicyEvent {
        at,
        op,
        revision: rulebook.policy.revision(),
        previous: None,
        segments: rulebook.policy.segments().len(),
        rules: rulebook.policy.rules_len(),
        revoked: 0,
        changes: None,
        why: None,
    }
}

fn record(shard: &mut Shard, event: PolicyEvent<'_>) {
    let id = shard.reserve();
    shard.append(id, &Event::Policy(event));
    if let Err(error) = shard.commit() {
        tracing::error!(%error, "a policy record could not be written");
    }
}

impl Node for Arc<RunningNode> {
    fn status(&self) -> Value {
        let NodeParts { config, gate, meter, doors, boot, .. } = &self.parts;
        let now = gate.clock.now();
        let rulebook = gate.rulebook();
        let policy = &rulebook.policy;
        let counts = gate.granter.counts();
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (audit, queries) = (meter.counts(), self.parts.registry.tallies().verdicts());
        let mut observe = Vec::new();
        for segment in policy.segments().iter().filter(|segment| segment.observes(now.wall)) {
            observe
                .push(json!({ "segment": &*segment.name, "until": segment.observe_until.map(|end| end.to_string()) }));
        }
        let mut upstreams: Vec<Value> = Vec::new();
        let health = gate.upstreams.health();
        for upstream in gate.upstreams.all() {
            let servers = health.iter().filter(|server| server.upstream == *upstream.name());
            let servers: Vec<Value> = servers
                .map(|server| {
                    json!({
                        "address": server.address.to_string(), "transport": server.transport,
                        "srtt_us": server.round_trip.map(|trip| u64::try_from(trip.as_micros()).unwrap_or(u64::MAX)),
                        "answered": server.answered, "timeouts": server.timeouts, "failures": server.failures,
                        "mismatches": server.mismatches, "out": server.out, "connections": server.connections,
                        "handshakes": server.handshakes, "handshake_failures": server.handshake_failures,
                    })
                })
                .collect();
            upstreams.push(json!({ "name": &**upstream.name(), "servers": servers }));
        }
        let firewalls = config.firewalls.iter().zip(&counts.enforcers).map(|(settings, firewall)| {
            let (elements, capacity) = room(firewall, counts);
            json!({
                "name": &*firewall.name, "kind": settings.kind, "required": firewall.required,
                "ready": firewall.usable.load(Ordering::Relaxed),
                "fenced": firewall.fenced.load(Ordering::Relaxed),
                "elements": elements, "capacity": capacity,
                "last_ack_us": load(&firewall.last_ack_us), "errors": load(&firewall.errors),
                "repairs": load(&firewall.repairs),
            })
        });
        let firewalls: Vec<Value> = firewalls.collect();
        let (candidate, promoted) = self.beside.load().status(config, &rulebook, queries.iter().sum());
        let doors = doors
            .each()
            .map(|(address, transport)| json!({ "address": address.to_string(), "transport": transport.as_str() }));
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "node": config.node,
            "boot": format!("{boot:016x}"),
            "uptime_s": now.wall.0.saturating_sub(self.started.0) / 1_000_000,
            "policy": {
                "revision": format!("{:016x}", policy.revision()),
                "segments": policy.segments().len(), "rules": policy.rules_len(),
                "loaded_at": rulebook.loaded.to_string(), "observe": observe,
                "reload_failures": load(&self.reload_failures),
                "candidate": candidate, "promoted": promoted,
            },
            "changes": self.changes.load().status(),
            "peers": self.parts.peers.status(&self.revision()),
            "zones": { "zones": rulebook.zones.len(), "records": rulebook.zones.records() },
            "doors": doors.collect::<Vec<_>>(),
            "firewalls": firewalls,
            "upstreams": upstreams,
            "grants": { "live": load(&counts.live), "pending": load(&counts.pending) },
            "audit": {
                "file": config.audit.file.display().to_string(), "usable": meter.usable(),
                "records": audit.records, "refused": audit.refused, "gaps": audit.gaps,
            },
            "sinks": sinks::status(&self.parts.sinks, now.wall),
            "cache": { "entries": gate.answers.len(), "bytes": gate.answers.bytes() + gate.cover.bytes() },
            "queries": { "allow": queries[0], "deny": queries[1], "error": queries[2] },
            "warnings": self.warnings(policy),
        })
    }

    async fn grants(&self, filter: &GrantFilter) -> Vec<GrantRow> {
        let gate = &self.parts.gate;
        let query = GrantQuery {
            client: filter.client,
            address: filter.address,
            name: filter.name.clone(),
            segment: filter.segment.clone(),
            rule: None,
            limit: filter.limit,
        };
        let now = gate.clock.tick();
        let mut rows: HashMap<_, (GrantEntry, Vec<Service>)> = HashMap::new();
        for entry in gate.granter.list(query).await {
            let key = (entry.from, entry.to, entry.basis.question.name.clone(), Arc::clone(&entry.basis.rule));
            let service = entry.service;
            rows.entry(key).or_insert((entry, Vec::new())).1.push(service);
        }
        let mut rows: Vec<GrantRow> = rows
            .into_values()
            .map(|(entry, services)| GrantRow {
                client: if let Scope::Client(client) = entry.from { Some(client) } else { None },
                segment: entry.basis.segment.to_string(),
                rule: entry.basis.rule.to_string(),
                name: entry.basis.question.name.to_string(),
                address: entry.to,
                services: Services::merge(&services).iter().map(ToString::to_string).collect(),
                until: entry.until.1.to_string(),
                remaining_s: entry.until.0.since(now).as_secs(),
            })
            .collect();
        rows.sort_by(|a, b| {
            (&a.segment, a.client, &a.name, a.address).cmp(&(&b.segment, b.client, &b.name, b.address))
        });
        rows
    }

    async fn change(&self, who: &Who, order: ChangeOrder) -> Result<Value, Vec<String>> {
        self.change_everywhere(who, order).await
    }

    async fn retract(&self, who: &Who, id: &str, why: &str) -> Result<Value, Vec<String>> {
        self.retract_everywhere(who, id, why).await
    }

    async fn revoke(&self, who: &Who, order: RevokeOrder) -> Result<Value, Vec<String>> {
        self.revoke_everywhere(who, order).await
    }

    async fn forget(&self, who: &Who, order: ForgetOrder) -> Result<Value, Vec<String>> {
        self.forget_everywhere(who, order).await
    }

    async fn place(&self, who: &Who, order: PlaceOrder) -> Result<Value, Vec<String>> {
        RunningNode::place(self, who, order).await
    }

    async fn take_out(&self, who: &Who, client: IpAddr) -> Result<Value, Vec<String>> {
        RunningNode::take_out(self, who, client).await
    }

    fn clients(&self) -> Vec<ClientRow> {
        self.changes.load().rows()
    }

    async fn reload(&self, who: &Who) -> Result<Value, Vec<String>> {
        tracing::info!(%who, "reload asked for");
        self.reload_now().await.map_err(|mistakes| mistakes.iter().map(ToString::to_string).collect())
    }

    async fn promote(&self, who: &Who, order: &PromoteOrder) -> Result<Value, String> {
        self.promote_now(who, order).await
    }

    fn flush(&self, who: &Who, order: &FlushOrder) -> Flushed {
        let FlushOrder { name, below } = order.clone();
        let cache::Flushed { answers, failures, replies } = self.parts.gate.flush(&cache::Flush { name, below });
        tracing::info!(%who, name = %order.name, below = order.below, answers, failures, replies, "cache flushed");
        Flushed { answers, failures, replies }
    }
}

impl Health for Arc<RunningNode> {
    fn readiness(&self) -> Readiness {
        let mut waiting = Vec::new();
        if self.stopping.load(Ordering::Relaxed) {
            waiting.push("the node is stopping".into());
        }
        if !self.parts.gate.granter.counts().ready() {
            waiting.push("a required firewall cannot be used".into());
        }
        if !self.parts.gate.granter.counts().journal_usable.load(Ordering::Relaxed) {
            waiting.push("the journal in the state directory cannot be written".into());
        }
        if !self.parts.meter.usable() {
            waiting.push("the query log cannot be written".into());
        }
        Readiness { waiting }
    }

    fn metrics(&self) -> String {
        let NodeParts { registry, gate, meter, streams, tls, .. } = &self.parts;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counts = gate.granter.counts();
        let rulebook = gate.rulebook();
        registry.set_info(metric::BUILD, [env!("CARGO_PKG_VERSION")]);
        registry.set_info(metric::POLICY_REVISION, [&format!("{:016x}", rulebook.policy.revision())]);
        registry.set_gauge(metric::POLICY_RULES, [], number(rulebook.policy.rules_len() as u64));
        registry.set_gauge(metric::POLICY_SEGMENTS, [], number(rulebook.policy.segments().len() as u64));
        let ageing = rulebook.policy.ageing(gate.clock.now().wall, SOON);
        let expiring = ageing.iter().filter(|warning| warning.kind == WarningKind::Expiring).count();
        registry.set_gauge(metric::POLICY_EXPIRING, [], number(expiring as u64));
        registry.absolute(metric::POLICY_RELOAD_FAILURES, [], load(&self.reload_failures));
        if let Some(usable) = self.beside.load().usable() {
            registry.set_gauge(metric::POLICY_CANDIDATE, [], f64::from(u8::from(usable)));
        }
        registry.set_gauge(metric::ZONES_RECORDS, [], number(rulebook.zones.records() as u64));
        registry.set_gauge(metric::GRANTS, [], number(load(&counts.live)));
        registry.set_gauge(metric::SLOW_QUEUE_DEPTH, [], number(gate.slots.taken() as u64));
        registry.set_gauge(metric::WARM_NAMES, [], number(load(&gate.warm.names)));
        registry.set_gauge(metric::WARM_FAILING, [], number(load(&gate.warm.failing)));
        registry.set_gauge(metric::CACHE_REFRESHES, [], number(gate.refreshes.len() as u64));
        registry.set_gauge(metric::CACHE_ENTRIES, [], number(gate.answers.len() as u64));
        registry.set_gauge(metric::CACHE_BYTES, [], number((gate.answers.bytes() + gate.cover.bytes()) as u64));
        let audit = meter.counts();
        registry.absolute(metric::AUDIT_RECORDS, [], audit.records);
        registry.absolute(metric::AUDIT_BYTES, [], audit.bytes);
        registry.absolute(metric::AUDIT_REFUSED, [], audit.refused);
        registry.absolute(metric::AUDIT_GAPS, [], audit.gaps);
        self.parts.flows.iter().for_each(|flows| flows.gauges.show(registry));
        sinks::measure(&self.parts.sinks, registry, gate.clock.now().wall);
        for firewall in &counts.enforcers {
            let label = [&*firewall.name];
            let (elements, capacity) = room(firewall, counts);
            registry.set_gauge(metric::FIREWALL_ELEMENTS, label, number(elements));
            if let Some(capacity) = capacity {
                registry.set_gauge(metric::FIREWALL_CAPACITY, label, number(elements) / number(capacity));
            }
            let is = |flag: &AtomicBool| f64::from(u8::from(flag.load(Ordering::Relaxed)));
            registry.set_gauge(metric::FIREWALL_READY, label, is(&firewall.usable));
            registry.set_gauge(metric::FIREWALL_FENCED, label, is(&firewall.fenced));
            registry.absolute(metric::FIREWALL_ERRORS, label, load(&firewall.errors));
            registry.absolute(metric::FIREWALL_DRIFT_REPAIRS, label, load(&firewall.repairs));
            registry.absolute(metric::ANSWERS_FAILED_CLOSED, label, load(&firewall.failed_closed));
        }
        self.parts.peers.measure(registry, &self.revision());
        registry.set_gauge(metric::FIREWALL_PENDING, [], number(load(&counts.pending)));
        let health = gate.upstreams.health();
        for upstream in gate.upstreams.all() {
            let servers: Vec<_> = health.iter().filter(|server| server.upstream == *upstream.name()).collect();
            let label = [&**upstream.name()];
            type Count = fn(&ServerHealth) -> u64;
            let counters: [(_, Count); 7] = [
                (metric::UPSTREAM_ANSWERS, |server| server.answered),
                (metric::UPSTREAM_TIMEOUTS, |server| server.timeouts),
                (metric::UPSTREAM_FAILURES, |server| server.failures),
                (metric::UPSTREAM_MISMATCHES, |server| server.mismatches),
                (metric::UPSTREAM_CONNECTIONS, |server| server.connections),
                (metric::UPSTREAM_HANDSHAKES, |server| server.handshakes),
                (metric::UPSTREAM_HANDSHAKE_FAILURES, |server| server.handshake_failures),
            ];
            for (counter, count) in counters {
                registry.absolute(counter, label, servers.iter().map(|server| count(server)).sum());
            }
            for (state, out) in [("up", false), ("out", true)] {
                let count = servers.iter().filter(|server| server.out == out).count();
                registry.set_gauge(metric::UPSTREAM_SERVERS, [&**upstream.name(), state], number(count as u64));
            }
            if let Some(fastest) = servers.iter().filter_map(|server| server.round_trip).min() {
                registry.set_gauge(metric::UPSTREAM_SRTT, label, fastest.as_secs_f64());
            }
        }
        registry.set_gauge(metric::STREAMS, [], number(streams.open() as u64));
        for (ending, count) in streams.endings() {
            registry.absolute(metric::STREAMS_CLOSED, [ending.as_str()], count);
        }
        if let Some(tls) = tls {
            registry.set_gauge(metric::TLS_CERTIFICATE_END, [], number(tls.not_after().0 / 1_000_000));
        }
        registry.render()
    }
}
