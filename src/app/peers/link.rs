//! The connection to one peer, made anew when it ends: what is changed here is told there.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, split};
use tokio::sync::{mpsc, watch};
use tokio::time::{interval, sleep, timeout};

use super::message::{Answer, Standing, VERSION, Words, read, write};
use super::{BEAT, Peer, SILENT, State, Tls, Waiting};
use crate::app::changes::News;
use crate::app::node::RunningNode;
use crate::firewall::remote::dial;
use crate::time::{Now, Tick};

/// How long a connection may take to be made, its first words included.
const CONNECT: Duration = Duration::from_secs(2);
/// How long it is left alone between two trials.
const REST: Duration = Duration::from_millis(500);
/// When all is told again to a peer that did not take all.
const AGAIN: Duration = Duration::from_secs(60);

/// Tells the peer at `place` until `stop`.
pub(in crate::app) async fn link(node: Arc<RunningNode>, place: usize, mut stop: watch::Receiver<bool>) {
    let Some(peer) = node.peers().all.get(place).map(Arc::clone) else { return };
    tokio::select! {
        _ = stop.wait_for(|stop| *stop) => {}
        () = keep(&node, &peer) => {}
    }
}

async fn keep(node: &RunningNode, peer: &Peer) {
    let mut told = String::new();
    loop {
        let Some(tls) = node.peers().tls() else { return };
        let ended = match timeout(CONNECT, connect(peer, tls)).await {
            Ok(Ok(stream)) => {
                tracing::info!(peer = peer.settings.name, "connected to a peer");
                told.clear();
                peer.is_back(node.now().tick, || News::all(&node.changes.load()));
                let ended = attend(stream, node, peer).await;
                peer.is_away();
                ended
            }
            Ok(Err(why)) => why,
            Err(_) => "it does not answer".into(),
        };
        if ended != told {
            tracing::warn!(peer = peer.settings.name, why = %ended, "a peer cannot be reached");
        }
        told.clone_from(&ended);
        peer.state.lock().why = ended;
        sleep(REST).await;
    }
}

async fn connect(peer: &Peer, tls: Tls) -> Result<impl AsyncRead + AsyncWrite + Unpin + use<>, String> {
    let settings = &peer.settings;
    let mut stream = dial((&settings.host, settings.port), settings.shown.clone(), tls.dials).await?;
    write(&mut stream, &Words::Hello { version: VERSION }).await.map_err(|error| error.to_string())?;
    match read(&mut stream).await {
        Ok(Answer::Welcome { version: VERSION }) => Ok(stream),
        Ok(Answer::Welcome { version }) => Err(format!("it speaks version {version}, this node {VERSION}")),
        Ok(Answer::Refused(why)) => Err(format!("it refused: {why}")),
        Ok(_) => Err("it does not speak as a peer".into()),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Err("it closed the connection".into()),
        Err(error) => Err(error.to_string()),
    }
}

/// Tells and hears until the connection ends; why it did.
async fn attend(stream: impl AsyncRead + AsyncWrite + Unpin, node: &RunningNode, peer: &Peer) -> String {
    let (mut from, mut to) = split(stream);
    let (hears, mut heard) = mpsc::channel(1);
    let reader = async {
        loop {
            let answer = match timeout(SILENT, read::<Answer>(&mut from)).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(error)) => break error.to_string(),
                Err(_) => break "it says nothing".to_owned(),
            };
            if hears.send(answer).await.is_err() {
                break "it is not heard any more".to_owned();
            }
        }
    };
    let writer = async {
        let (mut beats, mut number) = (interval(BEAT), 0);
        loop {
            let next = peer.state.lock().next(number + 1, node.now());
            let words = match next {
                Some(news) => {
                    number += 1;
                    Words::Tell { number, news }
                }
                None => tokio::select! {
                    _ = beats.tick() => {
                        let mut state = peer.state.lock();
                        if state.again.is_some_and(|again| again <= node.now().tick) && state.standing.is_empty() {
                            state.again = None;
                            state.standing = News::all(&node.changes.load()).into();
                        }
                        Words::Beat(node.standing())
                    }
                    () = peer.wake.notified() => continue,
                    answer = heard.recv() => {
                        let Some(answer) = answer else { break "it ended".to_owned() };
                        match peer.hear(answer, node.now().tick) {
                            Ok(()) => continue,
                            Err(why) => break why,
                        }
                    }
                },
            };
            match timeout(SILENT, write(&mut to, &words)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => break error.to_string(),
                Err(_) => break "it takes nothing".to_owned(),
            }
        }
    };
    tokio::select! {
        why = reader => why,
        why = writer => why,
    }
}

impl Peer {
    /// A connection stands: all is told. What is changed from here on waits; what was before, is in `all`.
    fn is_back(&self, now: Tick, all: impl FnOnce() -> Vec<News>) {
        let mut state = self.state.lock();
        state.give_up_late(&self.settings.name, now);
        state.connected = true;
        state.again = None;
        state.standing = VecDeque::from(all());
    }

    /// It stands no more. What is done once waits; rules are all told again.
    fn is_away(&self) {
        let mut state = self.state.lock();
        state.connected = false;
        state.standing.clear();
        if let Some((_, waiting)) = state.under_way.take() {
            state.waiting.push_front(waiting);
        }
        state.waiting.retain_mut(|waiting| {
            waiting.reply = None;
            waiting.news.once().is_some()
        });
    }

    fn hear(&self, answer: Answer, now: Tick) -> Result<(), String> {
        match answer {
            Answer::Beat(said) => {
                let mut state = self.state.lock();
                if state.said.as_ref().is_some_and(|known| known.revision != said.revision) {
                    tracing::info!(peer = self.settings.name, revision = said.revision, "a peer has another policy");
                }
                state.said = Some(said);
                Ok(())
            }
            Answer::Done { number, became } => {
                let mut state = self.state.lock();
                let Some((_, Waiting { news, reply, .. })) = state.under_way.take_if(|(known, _)| *known == number)
                else {
                    return Err("it answered what it was not told".into());
                };
                if let (Err(why), None) = (&became, news.once()) {
                    tracing::warn!(
                        peer = self.settings.name,
                        why,
                        "rules are not in force at a peer; it is told again"
                    );
                    state.again = Some(now + AGAIN);
                }
                if let Some(reply) = reply {
                    // Nobody may wait any more.
                    drop(reply.send(became));
                }
                Ok(())
            }
            Answer::Refused(why) => Err(format!("it refused: {why}")),
            Answer::Welcome { .. } => Err("it does not speak as a peer".into()),
        }
    }
}

impl State {
    /// What is told next, under this number; `None`: it has not answered, or there is nothing.
    fn next(&mut self, number: u64, now: Now) -> Option<News> {
        if self.under_way.is_some() {
            return None;
        }
        let standing =
            self.standing.pop_front().map(|news| Waiting { news, at: now.wall, until: now.tick, reply: None });
        let waiting = standing.or_else(|| self.waiting.pop_front())?;
        let news = waiting.news.clone();
        self.under_way = Some((number, waiting));
        Some(news)
    }
}

impl RunningNode {
    /// How this node is.
    pub(super) fn standing(&self) -> Standing {
        Standing {
            node: self.config().node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: self.revision(),
        }
    }

    fn now(&self) -> Now {
        self.gate().clock.now()
    }
}
