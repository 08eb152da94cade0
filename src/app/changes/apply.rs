//! How a change comes into force: laid over the policy, written down, swapped in, recorded. One after the other, reloads
//! among them.

use std::net::IpAddr;
use std::sync::Arc;

use serde_json::{Value, json};

use super::change::{Author, Change, Placed, Retracted};
use super::tell::{Ends, added, record, tell, told_closed, told_cut, told_unsaved};
use super::{Book, Contents, Feed};
use crate::app::node::RunningNode;
use crate::audit::{ChangeEvent, Shard};
use crate::document::{Mistake, Warning, WarningKind};
use crate::firewall::Cut;
use crate::gate::{Closed, GrantsOf};
use crate::name::Name;
use crate::net::{Prefix, canonical, parse_prefix};
use crate::policy::{GrantScope, Policy};
use crate::serve::{ChangeAction, ChangeOrder, ForgetOrder, PlaceOrder, RevokeOrder, Who};
use crate::time::Wall;

/// What a change needs, in one hand at a time.
pub(in crate::app) struct Desk {
    /// Records of policies and changes.
    pub(in crate::app) shard: Shard,
    pub(in crate::app) book: Book,
    /// The policy of the files, over which changes are laid.
    pub(in crate::app) files: Arc<Policy>,
    /// The watched file of clients, until it is watched.
    pub(in crate::app) feed: Option<Feed>,
}

/// What a change came to.
pub(super) struct Done {
    pub(super) closed: Closed,
    /// Why it is not in the file, where it is not.
    pub(super) unsaved: Option<String>,
    /// The rules that are not heard, each with why.
    pub(super) left_out: Vec<(String, String)>,
}

impl Desk {
    /// The policy of the files with what is changed; what of it cannot be laid over them is left out and told.
    pub(in crate::app) fn laid(&self, files: &Policy) -> (Policy, Vec<Warning>) {
        let (policy, unlaid) = files.with(&self.book.contents.runtime());
        (policy, unlaid.into_iter().flat_map(|(_, mistakes)| mistakes).map(left_out).collect())
    }
}

/// A change that is left out, as operators are warned of it.
const fn left_out(said: Mistake) -> Warning {
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
        let mut id = Change::fresh_id().map_err(|why| vec![why])?;
        while desk.book.contents.knows(&id) {
            id = Change::fresh_id().map_err(|why| vec![why])?;
        }
        let change = Change::new(id, Author::of(who), order, segment, now).map_err(|why| vec![why])?;
        let mut contents = desk.book.contents.clone();
        contents.add(change.clone()).map_err(|why| vec![why])?;
        // Who denies something in haste is not kept from it by a full disk.
        let Done { closed, unsaved, .. } = self.put(&mut desk, contents, &change.id, denies).await?;
        let revoked = closed.reasons;
        let mut told = json!({ "id": change.id, "until": change.ends.map(|ends| Wall(ends).to_string()) });
        told_closed(&mut told, &closed);
        let cut = if denies { told_cut(&mut told, &self.cut_denied(closed, change.networks()).await) } else { None };
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

    /// Ends the connections that what was closed let begin, and those with denied networks.
    pub(super) async fn cut_denied(&self, closed: Closed, networks: Vec<Prefix>) -> Ends {
        let granter = &self.gate().granter;
        let ends = granter.cut_closed(closed.elements).await;
        if networks.is_empty() {
            return ends;
        }
        // In both directions: what stalls now would go on when the deny ends.
        let both = |one| [Cut { to: Some(one), ..Cut::default() }, Cut { from: Some(one), ..Cut::default() }];
        added(ends, granter.cut(networks.into_iter().flat_map(both).collect()).await)
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
        let (allows, author) = (change.order.action == ChangeAction::Allow, Author::of(who));
        let by = author.to_string();
        if self.has_peers() {
            contents.bury(Retracted::new(&change, author, now, why), now);
        }
        let Done { closed, unsaved, .. } = self.put(&mut desk, contents, id, allows).await?;
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
        let Done { closed, unsaved, .. } = self.put(&mut desk, contents, "", true).await?;
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
    pub(in crate::app) async fn revoke(&self, by: &Author, order: RevokeOrder) -> Result<Value, Vec<String>> {
        let RevokeOrder { client, address, name, below, segment, rule, cut, reason } = order;
        let client = client.map(canonical);
        let named = |name: String| Name::parse(&name).map_err(|why| vec![format!("name: {name:?}: {why}")]);
        let network = |text: String| {
            parse_prefix(&text).ok_or_else(|| vec![format!("address: {text:?} is neither an address nor a prefix")])
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
        let by = by.to_string();
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
        tracing::warn!(by, revoked, cut, "grants were revoked");
        Ok(told)
    }

    /// Closes and cuts everything of a client, and takes it out where it was placed: its address is about to be another's.
    /// What was made for it after `until` stays: where it is told late, that is the next client's.
    pub(in crate::app) async fn forget(
        &self,
        author: &Author,
        order: ForgetOrder,
        until: Option<u64>,
    ) -> Result<Value, Vec<String>> {
        let ForgetOrder { client, reason } = order;
        let client = canonical(client);
        let mut desk = self.desk.lock().await;
        let now = self.gate().clock.now().wall;
        let by = author.to_string();
        let before = |made: u64| until.is_none_or(|until| made <= until);
        let mut contents = desk.book.contents.clone();
        let was_placed = contents.clients.get(&client).is_some_and(|placed| before(placed.made.unwrap_or(0)));
        if was_placed {
            contents.clients.remove(&client);
        }
        let by_file = contents.fed.contains_key(&client);
        let its = |change: &mut Change| change.order.client == Some(client) && before(change.made);
        let rules: Vec<Change> = contents.changes.extract_if(.., its).collect();
        for change in rules.iter().filter(|_| self.has_peers()) {
            contents.bury(Retracted::new(change, author.clone(), now, &reason), now);
        }
        let put = if was_placed || !rules.is_empty() {
            self.put(&mut desk, contents, "", true).await.map(|done| done.unsaved)
        } else {
            Ok(None)
        };
        // Whatever became of that: who has the address next must not find it open.
        let of = GrantsOf { client: Some(client), ..GrantsOf::default() };
        let closed = self.gate().close(of, format!("forgotten by {by}: {reason}").into()).await;
        let ends = self.gate().granter.cut(vec![Cut { from: Some(client.into()), ..Cut::default() }]).await;
        let mut told = json!({ "client": client, "taken_out": was_placed, "rules": rules.len() });
        if by_file {
            tell(&mut told, "placed_by_file", true);
        }
        told_closed(&mut told, &closed);
        let (cut, revoked) = (told_cut(&mut told, &ends), closed.reasons);
        let unsaved = put.as_ref().is_ok_and(Option::is_some);
        let failed = put.as_ref().err().map(|why| {
            let what = "the client is not taken out of its segment, and the rules for it stand";
            format!("{what}: {}", why.join("; "))
        });
        if failed.is_none() {
            for change in &rules {
                let (by, why) = (Some(&*by), Some(&*reason));
                record(&mut desk.shard, ChangeEvent { op: "retract", by, why, unsaved, ..change.event(now) });
            }
        }
        let why = failed.as_ref().map_or_else(|| reason.clone(), |failed| format!("{reason}; {failed}"));
        let event = ChangeEvent {
            at: now,
            op: "forget",
            by: Some(&by),
            client: Some(client),
            why: Some(&why),
            revoked,
            cut,
            unsaved,
            ..ChangeEvent::default()
        };
        record(&mut desk.shard, event);
        tracing::warn!(by, %client, revoked, cut, "a client was forgotten");
        if let Some(failed) = failed {
            let cut = cut.unwrap_or(0);
            return Err(vec![format!(
                "{revoked} grants were closed and {cut} connections cut, but {failed}; try again"
            )]);
        }
        told_unsaved(&mut told, put.ok().flatten().as_deref());
        Ok(told)
    }

    /// Puts `contents` in force: those that cannot be laid over the policy are left out, but for `wanted`, which is then
    /// refused. Where they cannot be written down nothing is done, unless it is to be done `anyway`.
    pub(super) async fn put(
        &self,
        desk: &mut Desk,
        contents: Contents,
        wanted: &str,
        anyway: bool,
    ) -> Result<Done, Vec<String>> {
        let (policy, unlaid) = desk.files.with(&contents.runtime());
        let mut left_out = Vec::new();
        for (at, mistakes) in unlaid {
            let said = mistakes.iter().map(|mistake| format!("{}; {}", mistake.fact, mistake.remedy));
            match contents.changes.get(at) {
                Some(change) if change.id == wanted => return Err(said.collect()),
                Some(change) => left_out.push((change.id.clone(), said.collect::<Vec<_>>().join("; "))),
                None => {}
            }
            mistakes.iter().for_each(|mistake| tracing::warn!("a change is left out: {mistake}"));
        }
        let unsaved = desk.book.save(&contents).err().map(|error| error.to_string());
        if let Some(why) = unsaved.as_ref().filter(|_| !anyway) {
            return Err(vec![format!("it cannot be written to the state directory: {why}; nothing was changed")]);
        }
        let before = std::mem::replace(&mut desk.book.contents, contents);
        match self.follow(policy, &desk.book.contents.runtime()).await {
            Ok(closed) => {
                desk.book.unsaved = unsaved.is_some();
                self.changes.store(Arc::new(desk.book.contents.clone()));
                Ok(Done { closed, unsaved, left_out })
            }
            Err(why) => {
                desk.book.contents = before;
                if let Err(error) = desk.book.save(&desk.book.contents) {
                    desk.book.unsaved = true;
                    tracing::error!(%error, "the file of changes holds one that is not in force; it is tried again");
                }
                Err(vec![why])
            }
        }
    }
}
