//! The other nodes in front of the same clients. They share nothing: each opens what it answers. What an operator changes
//! at one is told to all over mutual TLS, and each says whether it is in force there.
//!
//! A peer that is away or hangs keeps nobody waiting for longer than [`PATIENCE`], and no answer at all. When it is back, both
//! tell each other the rules that stand and those that were taken back: these have ids, so that nothing is made twice, and
//! what was taken back does not come back. What is done once, revoking and forgetting, is told late, for [`LATE`] at most; it
//! waits in the file of changes meanwhile.

mod door;
mod link;
mod message;
mod settings;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::{Notify, oneshot};
use tokio::time::sleep;
use tokio_rustls::rustls::{ClientConfig, ServerConfig};

pub(super) use self::door::serve;
pub(super) use self::link::link;
use self::message::Standing;
use self::settings::PeerSettings;
pub(super) use self::settings::Settings;
use crate::app::changes::{Late, News};
use crate::document::Mistake;
use crate::metric::{self, Registry};
use crate::time::{Now, Tick, Wall};

/// How long an operator's command waits for the peers to confirm.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often a node says that it lives.
const BEAT: Duration = Duration::from_secs(1);
/// After so long without a word a connection ends.
const SILENT: Duration = Duration::from_secs(3);
/// How late is told what is done once. Most of what it was to close has ended by then.
const LATE: Duration = Duration::from_secs(3600);
/// What waits to be told to one peer.
const WAITING: usize = 256;
/// Of what is done once, so many are remembered as done.
const DONE: usize = 1_024;

/// See the module.
pub(super) struct Peers {
    all: Vec<Arc<Peer>>,
    settings: Option<Settings>,
    tls: Mutex<Option<Tls>>,
    refusals: Refusals,
    /// What was told once and is done, or being done.
    done: Mutex<VecDeque<String>>,
}

/// Both sides of a connection.
#[derive(Clone)]
struct Tls {
    dials: Arc<ClientConfig>,
    takes: Arc<ServerConfig>,
}

/// Who was refused at the door, by why.
#[derive(Debug, Default)]
struct Refusals {
    /// No TLS, or no certificate that is believed.
    tls: AtomicU64,
    /// A certificate of nobody who is configured.
    stranger: AtomicU64,
    /// Another version.
    version: AtomicU64,
    /// What is no frame, says nothing, or is out of turn.
    message: AtomicU64,
}

/// One of them.
struct Peer {
    settings: PeerSettings,
    state: Mutex<State>,
    /// There is something to tell.
    wake: Notify,
    /// Ends its connection to our door, once there is a newer one.
    newer: Mutex<Arc<Notify>>,
}

#[derive(Default)]
struct State {
    /// Our connection to it stands.
    connected: bool,
    /// Why it does not.
    why: String,
    /// What it said last of itself.
    said: Option<Standing>,
    /// All that stands, as far as it was not told since it is connected.
    standing: VecDeque<News>,
    waiting: VecDeque<Waiting>,
    /// What it was told, under this number, and did not answer yet.
    under_way: Option<(u64, Waiting)>,
    /// It did not take all: when it is told again.
    again: Option<Tick>,
}

/// What waits to be told.
struct Waiting {
    news: News,
    /// When it was said.
    at: Wall,
    /// What is done once is given up then.
    until: Tick,
    /// Nobody may wait any more.
    reply: Option<oneshot::Sender<Result<Value, String>>>,
}

impl Peers {
    /// Those of a configuration.
    ///
    /// # Errors
    /// A file of certificates cannot be used.
    pub(super) fn new(settings: Option<&Settings>) -> Result<Self, Mistake> {
        let peers = settings.map(|settings| settings.peers.as_slice()).unwrap_or_default();
        let peer = |settings: &PeerSettings| Peer {
            settings: settings.clone(),
            state: Mutex::new(State { why: "it was not reached yet".into(), ..State::default() }),
            wake: Notify::new(),
            newer: Mutex::default(),
        };
        Ok(Self {
            all: peers.iter().map(|settings| Arc::new(peer(settings))).collect(),
            settings: settings.cloned(),
            tls: Mutex::new(settings.map(Tls::read).transpose()?),
            refusals: Refusals::default(),
            done: Mutex::default(),
        })
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// Reads the certificates again; new connections use them.
    ///
    /// # Errors
    /// A file cannot be used: those before stay in use.
    pub(super) fn renew(&self) -> Result<(), Mistake> {
        if let Some(settings) = &self.settings {
            *self.tls.lock() = Some(Tls::read(settings)?);
        }
        Ok(())
    }

    fn tls(&self) -> Option<Tls> {
        self.tls.lock().clone()
    }

    /// Tells all of them; how each confirmed it, after [`PATIENCE`] at most.
    pub(super) async fn tell(&self, news: &News, now: Now) -> Vec<Value> {
        if let Some(id) = news.once() {
            self.begin(id);
        }
        let asked: Vec<_> = self.all.iter().map(|peer| (&peer.settings.name, peer.ask(news, now))).collect();
        let patience = sleep(PATIENCE);
        tokio::pin!(patience);
        let mut told = Vec::new();
        for (name, asked) in asked {
            let became = match asked {
                Err(why) => Err(why),
                Ok(reply) => tokio::select! {
                    biased;
                    reply = reply => reply.unwrap_or_else(|_| Err("the connection ended before it answered; it is told when it is back".into())),
                    () = &mut patience => Err("it has not confirmed within 2 s; it is told, and may still do it".into()),
                },
            };
            told.push(match became {
                Ok(mut became) => {
                    if let Some(became) = became.as_object_mut() {
                        became.insert("name".into(), name.as_str().into());
                        became.insert("in_force".into(), true.into());
                    }
                    became
                }
                Err(why) => json!({ "name": name, "in_force": false, "why": why }),
            });
        }
        told
    }

    /// Takes up what waited for peers when the process before this one ended.
    pub(super) fn take_up(&self, late: &[Late], now: Now) {
        for peer in &self.all {
            let its: Vec<_> = late.iter().filter(|late| late.peers.contains(&peer.settings.name)).collect();
            let oldest = its.len().saturating_sub(WAITING);
            let waiting = its.into_iter().skip(oldest).map(|late| {
                // The clock may have been set meanwhile: nothing waits for longer than from now on.
                let age = Duration::from_micros(now.wall.0.saturating_sub(late.at));
                let until = now.tick + LATE.saturating_sub(age);
                Waiting { news: late.news.clone(), at: Wall(late.at), until, reply: None }
            });
            peer.state.lock().waiting.extend(waiting);
        }
    }

    /// What is done once and waits for peers, oldest first.
    pub(super) fn late(&self, now: Tick) -> Vec<Late> {
        let mut late = BTreeMap::new();
        for peer in &self.all {
            let (name, mut state) = (&peer.settings.name, peer.state.lock());
            state.give_up_late(name, now);
            let under_way = state.under_way.iter().map(|(_, waiting)| waiting);
            for Waiting { news, at, .. } in under_way.chain(&state.waiting) {
                let Some(id) = news.once() else { continue };
                let waits = || Late { at: at.0, peers: Vec::new(), news: news.clone() };
                late.entry((at.0, id.to_owned())).or_insert_with(waits).peers.push(name.clone());
            }
        }
        late.into_values().collect()
    }

    /// Whether something that is done once is new here; it is then known as done.
    fn begin(&self, id: &str) -> bool {
        let mut done = self.done.lock();
        if done.iter().any(|known| known == id) {
            return false;
        }
        if done.len() >= DONE {
            done.pop_front();
        }
        done.push_back(id.to_owned());
        true
    }

    /// It was not done after all.
    fn undone(&self, id: &str) {
        self.done.lock().retain(|known| known != id);
    }

    /// What a node's status says of them.
    pub(super) fn status(&self, revision: &str) -> Vec<Value> {
        let one = self.all.iter().map(|peer| {
            let (PeerSettings { name, host, port, .. }, state) = (&peer.settings, peer.state.lock());
            let said = state.said.as_ref();
            json!({
                "name": name, "server": format!("{host}:{port}"), "connected": state.connected,
                "why": (!state.connected).then_some(&state.why),
                "node": said.map(|said| &said.node), "version": said.map(|said| &said.version),
                "revision": said.map(|said| &said.revision),
                "differs": said.is_some_and(|said| said.revision != revision),
                "waiting": state.waiting.len() + state.standing.len() + usize::from(state.under_way.is_some()),
            })
        });
        one.collect()
    }

    /// Their metrics.
    pub(super) fn measure(&self, registry: &Registry, revision: &str) {
        if self.settings.is_none() {
            return;
        }
        for peer in &self.all {
            let (label, state) = ([peer.settings.name.as_str()], peer.state.lock());
            let differs = state.said.as_ref().is_some_and(|said| said.revision != revision);
            registry.set_gauge(metric::PEER_UP, label, f64::from(u8::from(state.connected)));
            registry.set_gauge(metric::PEER_POLICY_DIFFERS, label, f64::from(u8::from(differs)));
        }
        let Refusals { tls, stranger, version, message } = &self.refusals;
        for (why, count) in [("tls", tls), ("stranger", stranger), ("version", version), ("message", message)] {
            registry.absolute(metric::PEER_REFUSED, [why], count.load(Ordering::Relaxed));
        }
    }
}

impl Tls {
    fn read(settings: &Settings) -> Result<Self, Mistake> {
        Ok(Self { dials: Arc::new(settings.tls.config()?), takes: Arc::new(settings.tls.server_config()?) })
    }
}

impl State {
    /// Gives up what is too old to be told.
    fn give_up_late(&mut self, peer: &str, now: Tick) {
        let known = self.waiting.len();
        self.waiting.retain(|waiting| waiting.news.once().is_none() || now < waiting.until);
        let late = known - self.waiting.len();
        if late > 0 {
            tracing::warn!(peer, late, "what was revoked or forgotten here is too old to be told");
        }
    }
}

impl Peer {
    /// Lets it be told; where its answer comes.
    ///
    /// # Errors
    /// It cannot be now, and how it will be.
    fn ask(&self, news: &News, now: Now) -> Result<oneshot::Receiver<Result<Value, String>>, String> {
        let mut state = self.state.lock();
        let once = news.once().is_some();
        if state.waiting.len() >= WAITING {
            // Rules are all told again; of what is done once the oldest is given up.
            let oldest = state.waiting.iter().position(|waiting| waiting.news.once().is_some());
            match oldest.filter(|_| once) {
                Some(oldest) => {
                    state.waiting.remove(oldest);
                    tracing::warn!(peer = self.settings.name, "it is not told of the oldest that waits: too much does");
                }
                None => {
                    state.again = Some(now.tick);
                    return Err(format!("{WAITING} changes wait to be told to it; it is told when they are"));
                }
            }
        }
        let (reply, receiver) = oneshot::channel();
        if state.connected || once {
            state.waiting.push_back(Waiting {
                news: news.clone(),
                at: now.wall,
                until: now.tick + LATE,
                reply: Some(reply),
            });
            self.wake.notify_one();
        }
        if state.connected {
            return Ok(receiver);
        }
        let for_long = if once { ", within the hour" } else { "" };
        Err(format!("it cannot be reached: {}; it is told when it is back{for_long}", state.why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer() -> Peer {
        let settings = PeerSettings {
            name: "ns2.example".into(),
            shown: "ns2.example".try_into().unwrap(),
            host: "192.0.2.2".into(),
            port: 8954,
        };
        Peer { settings, state: Mutex::default(), wake: Notify::new(), newer: Mutex::default() }
    }

    fn revoke(id: usize) -> News {
        let text =
            format!(r#"{{ "revoke": {{ "id": "{id}", "author": {{ "uid": 0 }}, "order": {{ "reason": "x" }} }} }}"#);
        serde_json::from_str(&text).unwrap()
    }

    fn rule() -> News {
        News::Standing { changes: Vec::new(), retracted: Vec::new() }
    }

    #[test]
    fn what_is_done_once_waits_for_a_peer_and_rules_do_not() {
        let peer = peer();
        assert!(peer.ask(&rule(), Now::default()).unwrap_err().ends_with("it is told when it is back"));
        assert!(peer.ask(&revoke(1), Now::default()).unwrap_err().ends_with("within the hour"));
        assert_eq!(peer.state.lock().waiting.len(), 1);
        for id in 2..=WAITING + 2 {
            assert!(peer.ask(&revoke(id), Now::default()).is_err());
        }
        let state = peer.state.lock();
        let ids: Vec<_> = state.waiting.iter().filter_map(|waiting| waiting.news.once()).collect();
        assert_eq!((ids.len(), ids[0]), (WAITING, "3"), "the oldest are given up");
    }

    #[test]
    fn rules_that_do_not_fit_are_told_with_all_others() {
        let peer = peer();
        peer.state.lock().connected = true;
        for _ in 0..WAITING {
            assert!(peer.ask(&rule(), Now::default()).is_ok());
        }
        assert!(peer.ask(&rule(), Now { tick: Tick(7), wall: Wall(0) }).is_err());
        let state = peer.state.lock();
        assert_eq!((state.waiting.len(), state.again), (WAITING, Some(Tick(7))));
    }

    #[test]
    fn what_waits_for_peers_is_taken_up_again_and_ends() {
        let peers = |names: &[&str]| {
            let named = |name: &&str| {
                let mut peer = peer();
                peer.settings.name = (*name).to_owned();
                Arc::new(peer)
            };
            Peers { all: names.iter().map(named).collect(), ..Peers::new(None).unwrap() }
        };
        let before = peers(&["ns2.example", "ns3.example"]);
        let at = |micros| Now { tick: Tick(micros), wall: Wall(micros) };
        assert!(before.all[0].ask(&revoke(1), at(5)).is_err());
        for peer in &before.all {
            assert!(peer.ask(&revoke(2), at(7)).is_err());
        }
        assert!(before.all[0].ask(&rule(), at(8)).is_err());
        // What is told and not answered waits as well.
        {
            let mut state = before.all[1].state.lock();
            state.under_way = state.waiting.pop_front().map(|waiting| (1, waiting));
        }
        let late = before.late(Tick(9));
        let names: Vec<_> = late.iter().map(|late| (late.at, late.news.once(), late.peers.len())).collect();
        assert_eq!(names, [(5, Some("1"), 1), (7, Some("2"), 2)]);

        let after = peers(&["ns3.example", "ns4.example"]);
        // The machine was started anew, and its clock was set: an hour is left of what seems to come from the future.
        after.take_up(&late, Now { tick: Tick(0), wall: Wall(0) });
        let waits = Late { peers: vec!["ns3.example".into()], ..late[1].clone() };
        assert_eq!(after.late(Tick(0)), [waits]);
        let hour = u64::try_from(LATE.as_micros()).unwrap();
        assert_eq!(after.late(Tick(hour - 1)).len(), 1);
        assert_eq!(after.late(Tick(hour)), []);
        let ago = peers(&["ns3.example"]);
        ago.take_up(&late, Now { tick: Tick(0), wall: Wall(7 + hour - 5) });
        assert_eq!((ago.late(Tick(4)).len(), ago.late(Tick(5)).len()), (1, 0));
    }

    #[test]
    fn what_is_done_once_is_done_once() {
        let peers = Peers::new(None).unwrap();
        assert!(peers.begin("a") && !peers.begin("a"));
        peers.undone("a");
        assert!(peers.begin("a"));
        for id in 0..DONE {
            assert!(peers.begin(&id.to_string()));
        }
        assert_eq!(peers.done.lock().len(), DONE);
    }
}
