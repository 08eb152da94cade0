//! Upstream: the resolvers that answer what the policy permits.
//!
//! Promised here:
//! - Nothing is asked without a [`Permit`], and nothing is asked by itself: no probe (I1).
//! - What is sent is a function of the permitted name and type and of our own randomness alone (I2).
//! - A reply counts only from the server asked, with its id, its question and its letter case; whoever guesses is
//!   answered by TCP.
//! - Of an answer only the chain from the name to its RRset is kept, or the SOA that says there is none.
//! - A server that is to be asked over TLS is never asked in clear text, and not at all before it proved who it is.
//! - Everything ends at the caller's deadline, and every failure says what each server did.
//!
//! ```text
//! Upstreams.route ─► Upstream ─► inflight: asked once ─► failover: which servers, when
//!                     server: one of them ─► query ─► udp ─ truncated, suspect ─► connection: tcp
//!                                                   └─ encrypted ─► connection: tls, with tcp or https in it
//!                                    Answer ◄─ answer ◄─ wire::parse_reply ◄─ reply
//! ```

mod answer;
mod connection;
mod cookie;
mod dnssec;
#[cfg(test)]
mod encrypted;
mod endpoint;
mod failover;
mod failure;
#[cfg(test)]
mod fake;
mod health;
mod https;
mod inflight;
mod query;
mod random;
mod server;
mod settings;
mod system;
mod tcp;
mod tls;
mod udp;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use foldhash::quality::RandomState;
use tokio::time::Instant;
use tokio_rustls::rustls::RootCertStore;

use crate::document::Mistake;
use crate::name::{Name, ancestors};
use crate::policy::Permit;
use crate::record::{AddressTrust, Answer, Origin, Question};
use crate::time::Clock;
use crate::trust;

pub use dnssec::{Anchors, Mode};
pub use endpoint::{Pin, Proof, ServerSettings, Transport};
pub use failure::{Attempts, Failure, HttpFault, Nonsense, TlsFault, UpstreamError};
pub use server::ServerHealth;
pub use settings::Settings;
pub use system::system_servers;

/// An exchange ends this much before the caller's deadline, so that what each server did is still told.
const MARGIN: Duration = Duration::from_millis(20);

/// Which upstream's view of the names an answer belongs to: answers of different views are never mixed. Numbers from
/// 0 in the order of the settings, for one [`Upstreams`] only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ViewId(pub u32);

/// One upstream: servers that give the same answers.
#[derive(Debug)]
pub struct Upstream {
    view: ViewId,
    origin: Origin,
    private: Arc<[crate::net::Prefix]>,
    servers: Vec<server::Server>,
    dnssec: Mode,
    keys: Arc<dnssec::Keys>,
}

impl Upstream {
    /// What its answers are kept apart by.
    #[must_use]
    pub const fn view(&self) -> ViewId {
        self.view
    }

    /// Its name.
    #[must_use]
    pub const fn name(&self) -> &Arc<str> {
        &self.origin.name
    }

    /// The private addresses that its answers may hold.
    #[must_use]
    pub const fn private(&self) -> &Arc<[crate::net::Prefix]> {
        &self.private
    }

    /// Its servers' addresses, which are never granted to a client.
    pub fn servers(&self) -> impl Iterator<Item = SocketAddr> {
        self.servers.iter().map(|server| server.address)
    }

    /// Its servers as they are asked.
    pub fn described(&self) -> impl Iterator<Item = ServerSettings> {
        self.servers.iter().map(server::Server::described)
    }

    /// Asks the servers. Private: [`Upstreams::resolve`] demands a permit.
    async fn exchange(
        &self,
        question: &Question,
        ports: &Ports,
        deadline: Instant,
    ) -> Result<server::Reply, UpstreamError> {
        failover::exchange(&self.servers, question, &self.origin, ports, deadline).await
    }
}

/// Where questions leave from: sockets and a connection of their own to every server, for each runtime that asks, so that
/// no reply wakes another thread. Each server has at least 512 ports of each runtime before one is used again.
#[derive(Debug)]
pub struct Ports {
    /// In the order of the servers' numbers.
    of_servers: Vec<Port>,
    random: random::Random,
}

/// The way from one runtime to one server.
#[derive(Debug)]
struct Port {
    sockets: udp::Sockets,
    connection: connection::Connection,
}

impl Ports {
    fn new<'a>(servers: impl Iterator<Item = &'a server::Server>) -> Self {
        let port = |server: &server::Server| Port {
            sockets: udp::Sockets::new(server.address),
            connection: connection::Connection::new(Arc::clone(server.link())),
        };
        Self { of_servers: servers.map(port).collect(), random: random::Random::default() }
    }
}

/// All upstreams, and who answers for which name.
#[derive(Debug)]
pub struct Upstreams {
    upstreams: Vec<Arc<Upstream>>,
    zones: HashMap<Name, Zone, RandomState>,
    inflight: inflight::Inflight<(u64, ViewId, Question), Answer>,
    /// How often [`Upstreams::forget`] was called.
    forgotten: AtomicU64,
    validators: dnssec::Validators,
}

/// The upstreams of one zone.
#[derive(Debug, Default)]
struct Zone {
    views: HashMap<Arc<str>, usize, RandomState>,
    rest: Option<usize>,
}

/// How to connect to each server of an upstream.
fn links(settings: &Settings) -> Result<Vec<(Transport, connection::Link)>, Mistake> {
    let is_named = |server: &ServerSettings| server.transport.proof().is_some_and(|proof| proof.name.is_some());
    let authorities = match settings.servers.iter().any(is_named) {
        true => trust::authorities(settings.authorities.as_ref())?,
        false => Arc::new(RootCertStore::empty()),
    };
    let link = |server: &ServerSettings| match connection::Link::new(server, &authorities) {
        Ok(link) => Ok((server.transport.clone(), link)),
        Err(error) => {
            Err(Mistake::general(format!("{server} cannot be asked over TLS: {error}"), "name other authorities"))
        }
    };
    settings.servers.iter().map(link).collect()
}

impl Upstreams {
    /// Upstreams as configured: of two that claim the same, the first has it. Opens no connection yet; reads whom to
    /// trust, where a server must show a certificate.
    ///
    /// # Errors
    /// There is nobody to trust, or the file that says whom cannot be read.
    pub fn new(settings: Vec<Settings>, clock: &Clock) -> Result<Self, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        let mut zones: HashMap<Name, Zone, RandomState> = HashMap::default();
        let mut upstreams = Vec::with_capacity(settings.len());
        let mut numbers = 0..;
        for (index, settings) in settings.into_iter().enumerate() {
            let links = links(&settings).unwrap_or_else(|mistake| {
                mistakes.push(mistake);
                Vec::new()
            });
            let names = if settings.zones.is_empty() { vec![Name::root()] } else { settings.zones };
            for name in names {
                let zone = zones.entry(name).or_default();
                for (segment, _) in &settings.segments {
                    zone.views.entry(Arc::clone(segment)).or_insert(index);
                }
                if settings.segments.is_empty() {
                    zone.rest.get_or_insert(index);
                }
            }
            let private: Arc<[_]> = Arc::from(settings.private);
            let wanted = settings.dnssec.wanted();
            upstreams.push(Arc::new(Upstream {
                view: ViewId(u32::try_from(index).unwrap_or(u32::MAX)),
                origin: Origin { name: settings.name, trust: AddressTrust::Upstream(Arc::clone(&private)) },
                private,
                // The servers first: a zip whose first runs out takes nothing from the second.
                servers: (links.into_iter().zip(numbers.by_ref()))
                    .map(|((transport, link), number)| server::Server::new(number, transport, link, wanted, clock))
                    .collect(),
                dnssec: settings.dnssec,
                keys: Arc::default(),
            }));
        }
        mistakes.dedup();
        let validators = dnssec::Validators::new(&upstreams, clock);
        let (inflight, forgotten) = (inflight::Inflight::new(), AtomicU64::new(0));
        let upstreams = Self { upstreams, zones, inflight, forgotten, validators };
        if mistakes.is_empty() { Ok(upstreams) } else { Err(mistakes) }
    }

    /// Who answers for `name` (wire format, lower case) in `segment`: the longest zone for this segment or for all;
    /// of two equally long, the one for this segment. `None`: nobody.
    #[must_use]
    pub fn route(&self, segment: &str, name: &[u8]) -> Option<&Arc<Upstream>> {
        let index = ancestors(name).find_map(|ancestor| {
            let zone = self.zones.get(ancestor)?;
            zone.views.get(segment).copied().or(zone.rest)
        })?;
        self.upstreams.get(index)
    }

    /// Ports for one runtime; none is open yet.
    #[must_use]
    pub fn ports(&self) -> Ports {
        Ports::new(self.upstreams.iter().flat_map(|upstream| &upstream.servers))
    }

    /// How many sockets one runtime's ports take up under load.
    #[must_use]
    pub fn sockets(&self) -> usize {
        self.upstreams.iter().flat_map(|upstream| &upstream.servers).map(server::Server::sockets).sum()
    }

    /// The answer of `upstream` to the question that `permit` permits, asked from `ports`, which are those of the
    /// runtime that this runs on. The same question of the same view is asked once, however many wait for it.
    ///
    /// # Errors
    /// [`UpstreamError`], at the latest at `deadline`.
    pub async fn resolve(
        &self,
        upstream: &Upstream,
        permit: &Permit,
        ports: &Ports,
        deadline: Instant,
    ) -> Result<Answer, UpstreamError> {
        self.ask_once(upstream, permit.question(), ports, deadline).await
    }

    async fn ask_once(
        &self,
        upstream: &Upstream,
        question: &Question,
        ports: &Ports,
        deadline: Instant,
    ) -> Result<Answer, UpstreamError> {
        let key = (self.forgotten.load(Ordering::Relaxed), upstream.view, question.clone());
        let ends = deadline.checked_sub(MARGIN).unwrap_or(deadline);
        self.inflight.join(&key, deadline, || self.ask(upstream, question, ports, ends)).await
    }

    /// One exchange, and whatever is done about DNSSEC.
    async fn ask(
        &self,
        upstream: &Upstream,
        question: &Question,
        ports: &Ports,
        deadline: Instant,
    ) -> Result<Answer, UpstreamError> {
        let mut reply = upstream.exchange(question, ports, deadline).await?;
        match &upstream.dnssec {
            Mode::Validate { .. } => {
                let upstream = usize::try_from(upstream.view.0).ok().and_then(|place| self.upstreams.get(place));
                let upstream = upstream.ok_or(UpstreamError::Busy)?;
                return self.validators.validate(upstream, question, reply, deadline).await;
            }
            Mode::Trust if reply.authentic => dnssec::prove(&mut reply.answer, question, &reply.message),
            Mode::Trust | Mode::Off => {}
        }
        Ok(reply.answer)
    }

    /// Forgets what servers said of keys and delegations. Who asks from now on does not share what was asked before.
    pub fn forget(&self) {
        self.forgotten.fetch_add(1, Ordering::Relaxed);
        self.upstreams.iter().for_each(|upstream| upstream.keys.clear());
    }

    /// Every upstream, in the order of the settings.
    #[must_use]
    pub fn all(&self) -> &[Arc<Upstream>] {
        &self.upstreams
    }

    /// The state of every server.
    #[must_use]
    pub fn health(&self) -> Vec<ServerHealth> {
        let of_upstream = |upstream: &Arc<Upstream>| {
            upstream.servers.iter().map(|server| server.report(upstream.name())).collect::<Vec<_>>()
        };
        self.upstreams.iter().flat_map(of_upstream).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::RecordType;
    use fake::{Fake, good, question};

    fn settings(name: &str, zones: &[&str], segments: &[&str], servers: &[ServerSettings]) -> Settings {
        Settings {
            name: Arc::from(name),
            zones: zones.iter().map(|zone| Name::parse(zone).unwrap()).collect(),
            segments: segments.iter().map(|segment| (Arc::from(*segment), None)).collect(),
            servers: servers.to_vec(),
            private: Vec::new(),
            authorities: None,
            dnssec: Mode::Off,
        }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[test]
    fn the_longest_zone_wins_then_the_view() {
        let upstreams = Upstreams::new(
            vec![
                settings("default", &[], &[], &[]),
                settings("corp", &["corp.example", "10.in-addr.arpa"], &[], &[]),
                settings("office", &["corp.example"], &["office"], &[]),
                settings("lab", &["lab.corp.example"], &["lab"], &[]),
                settings("guests", &[], &["guests"], &[]),
            ],
            &Clock::manual(),
        )
        .unwrap();
        for (segment, name, expected) in [
            ("build", "www.example.org", "default"),
            ("build", ".", "default"),
            ("guests", "www.example.org", "guests"),
            ("build", "corp.example", "corp"),
            ("build", "a.b.corp.example", "corp"),
            ("build", "notcorp.example", "default"),
            ("build", "1.0.0.10.in-addr.arpa", "corp"),
            ("office", "corp.example", "office"),
            ("guests", "corp.example", "corp"),
            ("lab", "x.lab.corp.example", "lab"),
            ("office", "x.lab.corp.example", "office"),
            ("build", "x.lab.corp.example", "corp"),
        ] {
            let name = Name::parse(name).unwrap();
            let upstream = upstreams.route(segment, name.as_wire()).unwrap();
            assert_eq!(&**upstream.name(), expected, "{segment} {name}");
        }
        let only = Upstreams::new(vec![settings("corp", &["corp.example"], &[], &[])], &Clock::manual()).unwrap();
        assert!(only.route("build", question().name.as_wire()).is_none());
    }

    #[tokio::test]
    async fn a_hundred_who_ask_the_same_are_one_packet_in_each_view() {
        let fake = Fake::start(|seen, _| vec![good(&seen.message)]).await;
        let servers = [fake.settings()];
        let upstreams = Upstreams::new(
            vec![settings("default", &[], &[], &servers), settings("office", &[], &["office"], &servers)],
            &Clock::system(),
        );
        let upstreams = Arc::new(upstreams.unwrap());
        let mut asking = tokio::task::JoinSet::new();
        let ports = [Arc::new(upstreams.ports()), Arc::new(upstreams.ports())];
        for number in 0..200 {
            let upstreams = Arc::clone(&upstreams);
            // Of several threads.
            let ports = Arc::clone(&ports[number / 2 % 2]);
            asking.spawn(async move {
                let segment = if number % 2 == 0 { "build" } else { "office" };
                let upstream = upstreams.route(segment, question().name.as_wire()).unwrap();
                let answer = upstreams.ask_once(upstream, &question(), &ports, soon()).await.unwrap();
                (segment, answer.origin.name)
            });
        }
        for (segment, upstream) in asking.join_all().await {
            assert_eq!(&*upstream, if segment == "office" { "office" } else { "default" });
        }
        assert_eq!(fake.seen().len(), 2);
        assert_eq!(upstreams.health().iter().map(|server| server.answered).collect::<Vec<_>>(), [1, 1]);
    }

    /// I2: whoever asks, in whatever segment and at whatever time, the packets are the same but for id and case.
    #[tokio::test]
    async fn i2_packets_of_one_question_are_alike() {
        let fake = Fake::start(|seen, _| vec![good(&seen.message)]).await;
        let upstreams =
            Upstreams::new(vec![settings("default", &[], &[], &[fake.settings()])], &Clock::system()).unwrap();
        let asked = Question { name: Name::parse("WWW.Example.ORG.").unwrap(), kind: RecordType::A };
        for (segment, question) in [("build", question()), ("office", asked), ("build", question())] {
            let upstream = upstreams.route(segment, question.name.as_wire()).unwrap();
            upstreams.ask_once(upstream, &question, &upstreams.ports(), soon()).await.unwrap();
        }
        let seen = fake.seen();
        let masked = |message: &[u8]| {
            let mut message = message.to_vec();
            message[..2].fill(0);
            message[12..29].make_ascii_lowercase();
            message
        };
        assert_eq!(seen.len(), 3);
        assert!(seen.iter().all(|one| masked(&one.message) == masked(&seen[0].message)));
        assert!(seen.iter().any(|one| one.message != seen[0].message));
        assert!(seen.iter().any(|one| one.from.port() != seen[0].from.port()));
    }
}
