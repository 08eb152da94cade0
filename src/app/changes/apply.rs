//! How a change comes into force: laid over the policy, written down, swapped in, recorded. One after the other, reloads
//! among them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::change::{Author, Change, Placed, network};
use super::{Book, Contents, Feed};
use crate::app::node::RunningNode;
use crate::audit::{ChangeEvent, Event, Shard};
use crate::document::{Mistake, Warning, WarningKind};
use crate::firewall::Cut;
use crate::gate::{Closed, GrantQuery, GrantsOf};
use crate::name::Name;
use crate::net::{Element, canonical};
use crate::policy::{GrantScope, Policy};
use crate::serve::{ChangeAction, ChangeOrder, ForgetOrder, PlaceOrder, RevokeOrder, Who};
use crate::time::Wall;

/// How often is looked for what has ended, and for another version of the watched file.
const LOOK: Duration = Duration::from_secs(1);

/// What a change needs, in one hand at a time.
pub(in crate::app) struct Desk {
    /// Records of policies and changes.
    pub(in crate::app) shard: Shard,
    pub(in crate::app) book: Book,
    /// The policy of the files, over which changes are laid.
    pub(in crate::app) files: Arc<Policy>,
    /// The watched file of clients.
    pub(in crate::app) feed: Option<Feed>,
    /// What is open under rules that end soon and then cut connections too, by their ids.
    pub(in crate::app) to_cut: HashMap<String, Vec<Element>>,
}

/// What a change came to.
struct Done {
    closed: Closed,
    /// Why it is not in the file, where it is not.
    unsaved: Option<String>,
}

/// What was cut in each firewall.
type Ends = Vec<(Arc<str>, Result<u64, String>)>;

impl Desk {
    /// The policy of the files with what is changed; what of it cannot be laid over them is left out and told.
    pub(in crate::app) fn laid(&self, files: &Policy) -> (Policy, Vec<Warning>) {
        let (policy, unlaid) = files.with(&self.book.contents.runtime());
        (policy, unlaid.into_iter().flat_map(|(_, mistakes)| mistakes).map(left_out).collect())
    }
}

/// A change that is left out, as operators are warned of it.
pub(in crate::app) const fn left_out(said: Mistake) -> Warning {
    Warning { said, kind: WarningKind::Change }
}

impl RunningNode {
    /// Makes a rule.
    pub(in crate::app) async fn change(&self, who: &Who, order: ChangeOrder) -> Result<Value, Vec<String>> {
        let mut desk = self.desk.lock().await;
        let now = self.gate().clock.now().wall;
        let policy = Arc::clone(&self.gate().rulebook().policy);
        let segment = order.client.and_then(|client| policy.asker(client)).map(|asker| policy.segment(asker));
        if let Some(shared) = segment.filter(|segment| segment.scope == GrantScope::Segment) {
            let fact = format!("its segment {} opens for everyone in it; name the segment", shared.name);
            return Err(vec![fact]);
        }
        let segment = segment.map(|segment| &*segment.name);
        let is_known = |name: &String| name == "*" || policy.segments().iter().any(|segment| *segment.name == **name);
        if let Some(unknown) = order.segments.iter().find(|name| !is_known(name)) {
            return Err(vec![format!("no segment is named \"{unknown}\"; name one of the policy")]);
        }
        let denies = order.action == ChangeAction::Deny;
        let id = fresh_id(&desk.book.contents).map_err(|why| vec![why])?;
        let change = Change::new(id, Author::of(who), order, segment, now).map_err(|why| vec![why])?;
        let mut contents = desk.book.contents.clone();
        contents.add(change.clone()).map_err(|why| vec![why])?;
        // Who denies something in haste is not kept from it by a full disk.
        let Done { closed, unsaved } = self.put(&mut desk, contents, &change.id, denies).await?;
        let revoked = closed.reasons;
        let mut told = json!({ "id": change.id, "until": change.ends.map(|ends| Wall(ends).to_string()) });
        told_closed(&mut told, &closed);
        let cut = if denies {
            let granter = &self.gate().granter;
            let mut ends = granter.cut_closed(closed.elements).await;
            let networks = change.networks();
            if !networks.is_empty() {
                // In both directions: what stalls now would go on when the deny ends.
                let both = |one| [Cut { to: Some(one), ..Cut::default() }, Cut { from: Some(one), ..Cut::default() }];
                let cuts = networks.into_iter().flat_map(both);
                ends = added(ends, granter.cut(cuts.collect()).await);
            }
            told_cut(&mut told, &ends)
        } else {
            None
        };
        told_unsaved(&mut told, unsaved.as_deref());
        let by = change.author.to_string();
        let event = ChangeEvent {
            op: change.order.action.as_str(),
            by: Some(&by),
            revoked,
            cut,
            unsaved: unsaved.is_some(),
            ..change.event(now)
        };
        record(&mut desk.shard, event);
        tracing::warn!(%who, id = change.id, action = change.order.action.as_str(), revoked, cut, "a rule was made");
        Ok(told)
    }

    /// Takes a rule back before its end.
    pub(in crate::app) async fn retract(&self, who: &Who, id: &str, why: &str) -> Result<Value, Vec<String>> {
        let mut desk = self.desk.lock().await;
        let now = self.gate().clock.now().wall;
        let mut contents = desk.book.contents.clone();
        let Some(at) = contents.changes.iter().position(|change| change.id == id) else {
            return Err(vec![format!("no change has the id {id}; `outgate status` lists those that stand")]);
        };
        let change = contents.changes.remove(at);
        let allows = change.order.action == ChangeAction::Allow;
        let done = self.put(&mut desk, contents, id, allows).await?;
        let Done { closed, unsaved } = done;
        let by = Author::of(who).to_string();
        let (why, revoked) = (Some(why).filter(|why| !why.is_empty()), closed.reasons);
        let mut told = json!({ "id": id });
        told_closed(&mut told, &closed);
        told_unsaved(&mut told, unsaved.as_deref());
        let unsaved = unsaved.is_some();
        record(
            &mut desk.shard,
            ChangeEvent { op: "retract", by: Some(&by), why, revoked, unsaved, ..change.event(now) },
        );
        tracing::warn!(%who, id, revoked, "a rule was taken back");
        Ok(told)
    }

    /// Places a client in a segment.
    pub(in crate::app) async fn place(&self, who: &Who, order: PlaceOrder) -> Result<Value, Vec<String>> {
        let mut desk = self.desk.lock().await;
        let now = self.gate().clock.now().wall;
        let client = canonical(order.client);
        let placed = Placed::new(order, now).map_err(|why| vec![why])?;
        if client.is_unspecified() || client.is_multicast() {
            return Err(vec![format!("{client} is nobody's address")]);
        }
        if !desk.files.segments().iter().any(|segment| *segment.name == *placed.segment) {
            return Err(vec![format!("no policy file has a segment \"{}\"", placed.segment)]);
        }
        let mut contents = desk.book.contents.clone();
        contents.place(client, placed.clone()).map_err(|why| vec![why])?;
        let Done { closed, .. } = self.put(&mut desk, contents, "", false).await?;
        let (by, segments) = (Author::of(who).to_string(), [placed.segment]);
        let until = placed.ends.map(Wall);
        let event = ChangeEvent {
            at: now,
            op: "place",
            by: Some(&by),
            client: Some(client),
            segments: &segments,
            until,
            clients: Some(desk.book.contents.placed()),
            revoked: closed.reasons,
            ..ChangeEvent::default()
        };
        record(&mut desk.shard, event);
        let mut told = json!({ "client": client, "until": until.map(|until| until.to_string()) });
        told_closed(&mut told, &closed);
        Ok(told)
    }

    /// Takes a client out of the segment that it was placed in.
    pub(in crate::app) async fn take_out(&self, who: &Who, client: IpAddr) -> Result<Value, Vec<String>> {
        let mut desk = self.desk.lock().await;
        let now = self.gate().clock.now().wall;
        let client = canonical(client);
        let mut contents = desk.book.contents.clone();
        if contents.clients.remove(&client).is_none() {
            let by_file = contents.fed.contains_key(&client);
            let remedy = if by_file { "the watched file places it" } else { "`outgate client list` shows who is" };
            return Err(vec![format!("{client} was not placed by hand; {remedy}")]);
        }
        let Done { closed, unsaved } = self.put(&mut desk, contents, "", true).await?;
        let by = Author::of(who).to_string();
        let event = ChangeEvent {
            at: now,
            op: "take_out",
            by: Some(&by),
            client: Some(client),
            clients: Some(desk.book.contents.placed()),
            revoked: closed.reasons,
            unsaved: unsaved.is_some(),
            ..ChangeEvent::default()
        };
        record(&mut desk.shard, event);
        let mut told = json!({ "client": client });
        told_closed(&mut told, &closed);
        told_unsaved(&mut told, unsaved.as_deref());
        Ok(told)
    }

    /// Closes what is open now; what the policy allows is open again for who asks again.
    pub(in crate::app) async fn revoke(&self, who: &Who, order: RevokeOrder) -> Result<Value, Vec<String>> {
        let RevokeOrder { client, address, name, below, segment, rule, cut, reason } = order;
        let named = |name: String| Name::parse(&name).map_err(|why| vec![format!("name: {name:?}: {why}")]);
        let network = |text: String| {
            network(&text).ok_or_else(|| vec![format!("address: {text:?} is neither an address nor a prefix")])
        };
        let (name, address) = (name.map(named).transpose()?, address.map(network).transpose()?);
        let of =
            GrantsOf { client, address, name, below, segment: segment.map(Into::into), rule: rule.map(Into::into) };
        if of == GrantsOf::default() {
            return Err(vec!["nothing is named; name a client, an address, a name, a segment or a rule".into()]);
        }
        if reason.trim().is_empty() {
            return Err(vec!["a reason is missing; say what it is for".into()]);
        }
        let mut desk = self.desk.lock().await;
        let now = self.gate().clock.now().wall;
        let targets: Vec<String> =
            [of.name.as_ref().map(Name::to_string), of.address.map(|address| address.to_string())]
                .into_iter()
                .flatten()
                .collect();
        let segments: Vec<String> = of.segment.iter().map(ToString::to_string).collect();
        let by = Author::of(who).to_string();
        let closed = self.gate().close(of, format!("revoked by {by}: {reason}").into()).await;
        let mut told = json!({});
        told_closed(&mut told, &closed);
        let revoked = closed.reasons;
        let cut = if cut { told_cut(&mut told, &self.gate().granter.cut_closed(closed.elements).await) } else { None };
        let event = ChangeEvent {
            at: now,
            op: "revoke",
            by: Some(&by),
            targets: &targets,
            client,
            segments: &segments,
            why: Some(&reason),
            revoked,
            cut,
            ..ChangeEvent::default()
        };
        record(&mut desk.shard, event);
        tracing::warn!(%who, revoked, cut, "grants were revoked");
        Ok(told)
    }

    /// Closes and cuts everything of a client, and takes it out where it was placed: its address is about to be another's.
    pub(in crate::app) async fn forget(&self, who: &Who, order: ForgetOrder) -> Result<Value, Vec<String>> {
        let ForgetOrder { client, reason } = order;
        let client = canonical(client);
        let mut desk = self.desk.lock().await;
        let now = self.gate().clock.now().wall;
        let by = Author::of(who).to_string();
        let mut contents = desk.book.contents.clone();
        let was_placed = contents.clients.remove(&client).is_some();
        let rules = contents.changes.len();
        contents.changes.retain(|change| change.order.client != Some(client));
        let rules = rules - contents.changes.len();
        let unsaved =
            if was_placed || rules > 0 { self.put(&mut desk, contents, "", true).await?.unsaved } else { None };
        let of = GrantsOf { client: Some(client), ..GrantsOf::default() };
        let closed = self.gate().close(of, format!("forgotten by {by}: {reason}").into()).await;
        let ends = self.gate().granter.cut(vec![Cut { from: Some(client.into()), ..Cut::default() }]).await;
        let mut told = json!({ "client": client, "taken_out": was_placed, "rules": rules });
        told_closed(&mut told, &closed);
        told_unsaved(&mut told, unsaved.as_deref());
        let (cut, revoked) = (told_cut(&mut told, &ends), closed.reasons);
        let event = ChangeEvent {
            at: now,
            op: "forget",
            by: Some(&by),
            client: Some(client),
            why: Some(&reason),
            revoked,
            cut,
            unsaved: unsaved.is_some(),
            ..ChangeEvent::default()
        };
        record(&mut desk.shard, event);
        tracing::warn!(%who, %client, revoked, cut, "a client was forgotten");
        Ok(told)
    }

    /// Ends what has ended, and reads the watched file where it is another one, until it is dropped.
    pub(in crate::app) async fn tend(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK).await;
            let mut desk = self.desk.lock().await;
            self.remember_what_to_cut(&mut desk).await;
            self.end_what_ended(&mut desk).await;
            self.read_feed(&mut desk).await;
        }
    }

    /// What is open under a rule that ends soon is gone from the ledger when it has ended.
    async fn remember_what_to_cut(&self, desk: &mut Desk) {
        let soon = self.gate().clock.now().wall.0 + 2 * u64::try_from(LOOK.as_micros()).unwrap_or(0);
        let changes = desk.book.contents.changes.iter();
        let ending = changes.filter(|change| change.order.cut && change.ends.is_some_and(|ends| ends <= soon));
        let ids: Vec<String> = ending.map(|change| change.id.clone()).collect();
        if ids.is_empty() {
            return;
        }
        let query = GrantQuery { limit: usize::MAX, ..GrantQuery::default() };
        for entry in self.gate().granter.list(query).await {
            if ids.iter().any(|id| **id == *entry.basis.rule) {
                let element = Element { from: entry.from, to: entry.to, service: entry.service };
                let known = desk.to_cut.entry(entry.basis.rule.to_string()).or_default();
                if !known.contains(&element) {
                    known.push(element);
                }
            }
        }
    }

    async fn end_what_ended(&self, desk: &mut Desk) {
        let now = self.gate().clock.now().wall;
        if desk.book.contents.next_end().is_none_or(|end| end > now) {
            return;
        }
        let mut contents = desk.book.contents.clone();
        let ended = contents.end(now);
        let placed = contents.placed();
        let gone = desk.book.contents.placed() - placed;
        match self.put(desk, contents, "", true).await {
            Ok(Done { closed: Closed { reasons: revoked, .. }, unsaved }) => {
                let unsaved = unsaved.is_some();
                for change in &ended {
                    let cut = match desk.to_cut.remove(&change.id) {
                        Some(elements) => told_cut(&mut json!({}), &self.gate().granter.cut_closed(elements).await),
                        None => None,
                    };
                    record(&mut desk.shard, ChangeEvent { op: "end", cut, unsaved, ..change.event(now) });
                }
                if gone > 0 {
                    let event = ChangeEvent {
                        at: now,
                        op: "end",
                        clients: Some(placed),
                        revoked,
                        unsaved,
                        ..ChangeEvent::default()
                    };
                    record(&mut desk.shard, event);
                }
            }
            // Rules that ended are not heard any more all the same.
            Err(mistakes) => {
                tracing::error!(why = mistakes.join("; "), "what ended could not be taken out; it is tried again");
            }
        }
    }

    async fn read_feed(&self, desk: &mut Desk) {
        let Some(said) = desk.feed.as_mut().and_then(Feed::look) else { return };
        let now = self.gate().clock.now().wall;
        let result = match said {
            Ok(fed) if fed == desk.book.contents.fed => return,
            Ok(fed) => {
                let mut contents = desk.book.contents.clone();
                contents.fed = fed;
                self.put(desk, contents, "", true).await
            }
            Err(mistakes) => Err(mistakes.iter().map(ToString::to_string).collect()),
        };
        let (revoked, why) = match result {
            Ok(done) => (done.closed.reasons, None),
            Err(mistakes) => (0, Some(mistakes.join("; "))),
        };
        let placed = desk.book.contents.placed();
        let (op, clients, why) = ("feed", Some(placed), why.as_deref());
        record(&mut desk.shard, ChangeEvent { at: now, op, clients, revoked, why, ..ChangeEvent::default() });
        match (why, desk.feed.as_ref()) {
            (Some(why), Some(feed)) => {
                tracing::error!(file = %feed.path().display(), why, "the file of clients is not taken; what it said before stands");
            }
            _ => tracing::info!(clients = placed, revoked, "clients read"),
        }
    }

    /// Puts `contents` in force: those that cannot be laid over the policy are left out, but for `wanted`, which is then
    /// refused. Where they cannot be written down nothing is done, unless it is to be done `anyway`.
    async fn put(&self, desk: &mut Desk, contents: Contents, wanted: &str, anyway: bool) -> Result<Done, Vec<String>> {
        let (policy, left_out) = desk.files.with(&contents.runtime());
        for (at, mistakes) in left_out {
            match contents.changes.get(at) {
                Some(change) if change.id == wanted => {
                    return Err(mistakes
                        .iter()
                        .map(|mistake| format!("{}; {}", mistake.fact, mistake.remedy))
                        .collect());
                }
                _ => mistakes.iter().for_each(|mistake| tracing::warn!("a change is left out: {mistake}")),
            }
        }
        let unsaved = desk.book.save(&contents).err().map(|error| error.to_string());
        if let Some(why) = unsaved.as_ref().filter(|_| !anyway) {
            return Err(vec![format!("it cannot be written to the state directory: {why}; nothing was changed")]);
        }
        let before = std::mem::replace(&mut desk.book.contents, contents);
        match self.follow(policy, &desk.book.contents.runtime()).await {
            Ok(closed) => {
                self.changes.store(Arc::new(desk.book.contents.clone()));
                Ok(Done { closed, unsaved })
            }
            Err(why) => {
                desk.book.contents = before;
                if let Err(error) = desk.book.save(&desk.book.contents) {
                    tracing::error!(%error, "the file of changes holds one that is not in force");
                }
                Err(vec![why])
            }
        }
    }
}

impl Change {
    /// What a record of it says, whatever happened to it.
    fn event(&self, now: Wall) -> ChangeEvent<'_> {
        ChangeEvent {
            at: now,
            change: Some(&self.id),
            targets: &self.order.targets,
            client: self.order.client,
            segments: &self.order.segments,
            until: self.ends.map(Wall),
            why: Some(&self.order.reason),
            ticket: self.order.ticket.as_deref(),
            ..ChangeEvent::default()
        }
    }
}

fn record(shard: &mut Shard, event: ChangeEvent<'_>) {
    let id = shard.reserve();
    shard.append(id, &Event::Change(event));
    if let Err(error) = shard.commit() {
        tracing::error!(%error, "a record of a change could not be written");
    }
}

fn tell(told: &mut Value, key: &str, value: impl Into<Value>) {
    if let Some(told) = told.as_object_mut() {
        told.insert(key.into(), value.into());
    }
}

/// What was closed, what of it is open for other reasons, and which firewalls did not take it yet.
fn told_closed(told: &mut Value, closed: &Closed) {
    tell(told, "revoked", closed.reasons);
    tell(told, "still_open", closed.still_open);
    if !closed.unclosed.is_empty() {
        tell(told, "unclosed", closed.unclosed.iter().map(ToString::to_string).collect::<Vec<_>>());
    }
}

/// How many connections ended in all, and which firewalls could not end them.
fn told_cut(told: &mut Value, ends: &Ends) -> Option<u64> {
    let failed = ends.iter().filter_map(|(firewall, end)| Some(format!("{firewall}: {}", end.as_ref().err()?)));
    let failed: Vec<String> = failed.collect();
    let cut = ends.iter().filter_map(|(_, end)| end.as_ref().ok()).sum();
    tell(told, "cut", cut);
    if !failed.is_empty() {
        tell(told, "uncut", failed);
    }
    Some(cut)
}

/// Two rounds of cutting as one.
fn added(mut first: Ends, second: Ends) -> Ends {
    for (firewall, end) in second {
        match first.iter_mut().find(|(name, _)| *name == firewall) {
            Some((_, known @ Ok(_))) if end.is_err() => *known = end,
            Some((_, Ok(known))) => *known += end.unwrap_or(0),
            Some((_, Err(_))) => {}
            None => first.push((firewall, end)),
        }
    }
    first
}

fn told_unsaved(told: &mut Value, unsaved: Option<&str>) {
    if let Some(why) = unsaved {
        tell(told, "unsaved", why);
    }
}

/// An id that no change has: 32 random bits, so that those of several nodes differ too.
fn fresh_id(contents: &Contents) -> Result<String, String> {
    loop {
        let random = getrandom::u32().map_err(|error| format!("the system gives no random numbers: {error}"))?;
        let id = format!("runtime-{random:08x}");
        if contents.changes.iter().all(|change| change.id != id) {
            return Ok(id);
        }
    }
}
