//! What happens by itself: what was changed ends, the watched file of clients is another one.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::apply::{Desk, Done};
use super::book::Ended;
use super::change::{Change, Placed};
use super::tell::{added, record, told_cut};
use super::{Contents, Feed};
use crate::app::node::RunningNode;
use crate::audit::ChangeEvent;
use crate::document::Mistake;
use crate::firewall::Cut;
use crate::net::{Prefix, Services};
use crate::policy::Policy;
use crate::time::Wall;

/// How often is looked for what has ended, and for another version of the watched file.
const LOOK: Duration = Duration::from_secs(1);
/// A rule that cuts connections is taken out so long before its end: what is open under it is known as long as it is open.
const EARLY: Duration = Duration::from_micros(EARLY_MICROS);
pub(super) const EARLY_MICROS: u64 = 1_000_000;
/// Clients whose end has a record each; of more at once their number is recorded.
const ENDS_TOLD: usize = 256;
/// The most cuts of a rule for addresses that look at where connections come from.
const MOST_CUTS: usize = 10_000;

/// What the watched file says, where it is another one.
type Said = Result<BTreeMap<IpAddr, Placed>, Vec<Mistake>>;

impl RunningNode {
    /// Records what stands when the node starts, and what ended while none ran.
    pub(in crate::app) fn record_standing(&self, desk: &mut Desk) {
        let now = self.gate().clock.now().wall;
        let ended = std::mem::take(&mut desk.book.ended);
        for change in &ended.changes {
            record(&mut desk.shard, ChangeEvent { op: "end", ..change.event(now) });
        }
        let placed = desk.book.contents.placed();
        tell_ended_clients(desk, &ended.clients, ChangeEvent { at: now, clients: Some(placed), ..Default::default() });
        for change in &desk.book.contents.changes {
            record(&mut desk.shard, ChangeEvent { op: "load", ..change.event(now) });
        }
        if desk.feed.is_some() {
            let event = ChangeEvent { at: now, op: "feed", clients: Some(placed), ..ChangeEvent::default() };
            record(&mut desk.shard, event);
        }
    }

    /// Ends what has ended, and reads the watched file where it is another one, until it is dropped.
    pub(in crate::app) async fn tend(self: Arc<Self>) {
        let mut feed = self.desk.lock().await.feed.take();
        loop {
            tokio::time::sleep(self.rest()).await;
            // Before the desk is taken: a large file takes a while, and denies must not wait for it.
            let said = feed.as_mut().and_then(|feed| tokio::task::block_in_place(|| feed.look()));
            let mut desk = self.desk.lock().await;
            self.end_what_ended(&mut desk).await;
            self.end_what_cuts(&mut desk).await;
            if let Some((feed, said)) = feed.as_mut().zip(said) {
                self.take_fed(&mut desk, feed, said).await;
            }
            self.write_late(&mut desk);
            if desk.book.unsaved && desk.book.save(&desk.book.contents).is_ok() {
                desk.book.unsaved = false;
                tracing::info!("what was changed is in the state directory again");
            }
        }
    }

    /// To the next look; shorter where a rule that cuts ends before.
    fn rest(&self) -> Duration {
        let now = self.gate().clock.now().wall.0;
        let cut = self.changes.load().next_cut().map(|end| end.0.saturating_sub(now));
        let cut = cut.map(|left| Duration::from_micros(left).saturating_sub(EARLY));
        // One that could not be ended is tried again at the next look.
        cut.filter(|rest| !rest.is_zero()).map_or(LOOK, |rest| rest.min(LOOK))
    }

    async fn end_what_ended(&self, desk: &mut Desk) {
        let now = self.gate().clock.now().wall;
        if desk.book.contents.next_end().is_none_or(|end| end > now) {
            return;
        }
        let mut contents = desk.book.contents.clone();
        let Ended { changes, clients } = contents.end(now);
        let Some(done) = self.put_ended(desk, contents).await else { return };
        let unsaved = done.unsaved.is_some();
        for change in &changes {
            record(&mut desk.shard, ChangeEvent { op: "end", unsaved, ..change.event(now) });
        }
        let placed = desk.book.contents.placed();
        let revoked = done.closed.reasons;
        let event = ChangeEvent { at: now, clients: Some(placed), revoked, unsaved, ..ChangeEvent::default() };
        tell_ended_clients(desk, &clients, event);
    }

    /// Ends the rules that cut connections, a little before the kernel ends what is open under them.
    async fn end_what_cuts(&self, desk: &mut Desk) {
        let now = self.gate().clock.now().wall;
        let soon = Wall(now.0 + EARLY_MICROS);
        if desk.book.contents.next_cut().is_none_or(|end| end > soon) {
            return;
        }
        let mut contents = desk.book.contents.clone();
        let ended = contents.end_cutting(soon);
        let policy = Arc::clone(&self.gate().rulebook().policy);
        let Some(done) = self.put_ended(desk, contents).await else { return };
        let granter = &self.gate().granter;
        let mut ends = granter.cut_closed(done.closed.elements).await;
        let cuts: Vec<Cut> = ended.iter().flat_map(|change| cuts(change, &policy)).collect();
        if !cuts.is_empty() {
            ends = added(ends, granter.cut(cuts).await);
        }
        let (cut, revoked, unsaved) = (told_cut(&mut json!({}), &ends), done.closed.reasons, done.unsaved.is_some());
        for change in &ended {
            // What was open under names ended with the rule, and is not known any more.
            let late = change.networks().is_empty() && change.ends.is_some_and(|ends| ends <= now.0);
            if late {
                tracing::warn!(id = change.id, "a rule ended before it was looked at; its connections are not cut");
            }
            let cut = cut.filter(|_| !late);
            record(&mut desk.shard, ChangeEvent { op: "end", cut, revoked, unsaved, ..change.event(now) });
        }
    }

    /// Puts in force what is left; `None`: it could not be, and is tried again.
    async fn put_ended(&self, desk: &mut Desk, contents: Contents) -> Option<Done> {
        // Rules that ended are not heard any more all the same.
        let log = |mistakes: Vec<String>| {
            tracing::error!(why = mistakes.join("; "), "what ended could not be taken out; it is tried again");
        };
        self.put(desk, contents, "", true).await.map_err(log).ok()
    }

    /// Puts what the watched file says in force.
    async fn take_fed(&self, desk: &mut Desk, feed: &mut Feed, said: Said) {
        let now = self.gate().clock.now().wall;
        let result = match said {
            Ok(fed) if fed == desk.book.contents.fed => {
                feed.is_news(None);
                return;
            }
            Ok(fed) => {
                let mut contents = desk.book.contents.clone();
                contents.fed = fed;
                let put = self.put(desk, contents, "", true).await;
                if put.is_err() {
                    feed.again();
                }
                put
            }
            Err(mistakes) => Err(mistakes.iter().map(ToString::to_string).collect()),
        };
        let (revoked, why) = match result {
            Ok(done) => (done.closed.reasons, None),
            Err(mistakes) => (0, Some(mistakes.join("; "))),
        };
        if !feed.is_news(why.clone()) {
            return;
        }
        let placed = desk.book.contents.placed();
        let (op, clients, why) = ("feed", Some(placed), why.as_deref());
        record(&mut desk.shard, ChangeEvent { at: now, op, clients, revoked, why, ..ChangeEvent::default() });
        match why {
            Some(why) => {
                tracing::error!(file = %feed.path().display(), why, "the file of clients is not taken; what it said before stands");
            }
            None => tracing::info!(clients = placed, revoked, "clients read"),
        }
    }
}

/// Records the ends of clients' places.
fn tell_ended_clients(desk: &mut Desk, clients: &[(IpAddr, Placed)], event: ChangeEvent<'_>) {
    for (client, placed) in clients.iter().take(ENDS_TOLD) {
        let segments = [placed.segment.clone()];
        let (client, until) = (Some(*client), placed.ends.map(Wall));
        record(&mut desk.shard, ChangeEvent { op: "end", client, segments: &segments, until, ..event.clone() });
    }
    if let Some(more) = clients.len().checked_sub(ENDS_TOLD).filter(|more| *more > 0) {
        let why = format!("and {more} clients more");
        record(&mut desk.shard, ChangeEvent { op: "end", why: Some(&why), ..event });
    }
}

/// What a rule for addresses let begin: from its segments, to its networks, by its ports.
fn cuts(change: &Change, policy: &Policy) -> Vec<Cut> {
    let segments =
        policy.segments().iter().filter(|segment| change.order.segments.iter().any(|of| **of == *segment.name));
    let mut sources: Vec<_> = segments.flat_map(|segment| &segment.sources).copied().map(Some).collect();
    let networks = change.networks();
    let services = change.order.ports.iter().filter_map(|ports| ports.parse::<Services>().ok());
    let services: Vec<_> = services.flat_map(Services::expand).collect();
    if sources.len() * networks.len() * services.len() > MOST_CUTS {
        sources = vec![None];
    }
    let mut cuts = Vec::new();
    for (from, to) in sources.iter().flat_map(|from| networks.iter().map(move |to| (*from, *to))) {
        if from.is_none_or(|from: Prefix| from.addr().is_ipv4() == to.addr().is_ipv4()) {
            cuts.extend(services.iter().map(|service| Cut { from, to: Some(to), service: Some(*service) }));
        }
    }
    cuts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Settings, Source, compile};

    #[test]
    fn what_is_cut_goes_from_the_segment_to_the_networks_by_the_ports() {
        let text = "[[segment]]\nname = \"shop\"\nclients = [\"192.0.2.0/24\", \"2001:db8::/64\"]\n\
                    [[segment]]\nname = \"till\"\nclients = [\"198.51.100.0/24\"]\n";
        let policy = compile([Source { file: "p".into(), text: text.into() }], &Settings::default()).unwrap();
        let change = |ports: &str| -> Change {
            serde_json::from_str(&format!(
                r#"{{ "id": "runtime-1", "author": {{ "uid": 0 }}, "made": 1, "ends": 2, "order": {{ "action": "allow",
                "targets": ["203.0.113.0/24"], "segments": ["shop"], "ports": ["{ports}"], "reason": "x", "cut": true }} }}"#
            ))
            .unwrap()
        };
        let prefix = |text: &str| text.parse().ok();
        let told = cuts(&change("tcp/22-23"), &policy);
        let cut = |port| Cut {
            from: prefix("192.0.2.0/24"),
            to: prefix("203.0.113.0/24"),
            service: Some(crate::net::Service::Tcp(port)),
        };
        assert_eq!(told, [cut(22), cut(23)]);
        let many = cuts(&change("tcp/1-9000"), &policy);
        assert!(many.len() == 9_000 && many.iter().all(|cut| cut.from.is_none()));
    }
}
