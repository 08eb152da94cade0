//! What one node tells another of changes, and how it comes into force there: as if it had been said to that one.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Contents;
use super::apply::{Desk, Done};
use super::change::{Author, Change, Retracted};
use super::tell::{record, told_closed, told_cut, told_unsaved};
use crate::app::node::RunningNode;
use crate::audit::ChangeEvent;
use crate::serve::{ChangeAction, ForgetOrder, RevokeOrder};

/// Rules of one telling: about so many octets of JSON, above those of any one, and well below a frame.
const PART: usize = 1 << 20;

/// What is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::app) enum News {
    /// Rules that stand, and rules that were taken back. Told again and again it changes nothing more.
    Standing { changes: Vec<Change>, retracted: Vec<Retracted> },
    /// What is open was closed.
    Revoke { id: String, author: Author, order: RevokeOrder },
    /// A client was forgotten.
    Forget {
        id: String,
        author: Author,
        /// Microseconds since 1970.
        at: u64,
        order: ForgetOrder,
    },
}

/// What was done once and waits for peers, as it is kept over a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::app) struct Late {
    /// Microseconds since 1970.
    pub(in crate::app) at: u64,
    /// The names of those that have not confirmed it.
    pub(in crate::app) peers: Vec<String>,
    pub(in crate::app) news: News,
}

impl News {
    /// What is done once and stands nowhere afterwards; its id.
    pub(in crate::app) fn once(&self) -> Option<&str> {
        match self {
            Self::Standing { .. } => None,
            Self::Revoke { id, .. } | Self::Forget { id, .. } => Some(id),
        }
    }

    /// What became of one rule.
    pub(in crate::app) fn of(contents: &Contents, id: &str) -> Self {
        let changes = contents.changes.iter().filter(|change| change.id == id).cloned().collect();
        let retracted = contents.retracted.iter().filter(|retracted| retracted.id == id).cloned().collect();
        Self::Standing { changes, retracted }
    }

    /// All that stands, in parts. What was taken back comes first: it is not brought back in between.
    pub(in crate::app) fn all(contents: &Contents) -> Vec<Self> {
        let standing = |changes: &[Change], retracted: &[Retracted]| Self::Standing {
            changes: changes.to_vec(),
            retracted: retracted.to_vec(),
        };
        let mut all = parts(&contents.retracted, |part| standing(&[], part));
        all.extend(parts(&contents.changes, |part| standing(part, &[])));
        all
    }
}

fn parts<T: Serialize>(of: &[T], as_news: impl Fn(&[T]) -> News) -> Vec<News> {
    let (mut all, mut begin, mut octets) = (Vec::new(), 0, 0);
    for (at, one) in of.iter().enumerate() {
        octets += serde_json::to_vec(one).map_or(PART, |text| text.len());
        if octets >= PART || at + 1 == of.len() {
            all.extend(of.get(begin..=at).map(&as_news));
            (begin, octets) = (at + 1, 0);
        }
    }
    all
}

impl RunningNode {
    /// Writes down what waits for peers, so that a restart does not lose it. Where that fails it is `told`.
    pub(in crate::app) async fn keep_late(&self, told: &mut Value) {
        let mut desk = self.desk.lock().await;
        told_unsaved(told, self.write_late(&mut desk).as_deref());
    }

    /// The same; why it failed. It is then tried again every second.
    pub(super) fn write_late(&self, desk: &mut Desk) -> Option<String> {
        let late = self.peers().late(self.gate().clock.tick());
        if late == desk.book.contents.late {
            return None;
        }
        desk.book.contents.late = late;
        let failed = desk.book.save(&desk.book.contents).err();
        desk.book.unsaved = failed.is_some();
        failed.map(|error| error.to_string())
    }

    /// Does what `peer` tells; what became of it, or why it is not in force here.
    pub(in crate::app) async fn take(&self, peer: &str, news: News) -> Result<Value, String> {
        let done = match news {
            News::Standing { changes, retracted } => return self.take_standing(peer, changes, retracted).await,
            News::Revoke { author, order, .. } => self.revoke(&author.told_by(peer), order).await,
            News::Forget { author, at, order, .. } => self.forget(&author.told_by(peer), order, Some(at)).await,
        };
        done.map_err(|why| why.join("; "))
    }

    async fn take_standing(
        &self,
        peer: &str,
        changes: Vec<Change>,
        retracted: Vec<Retracted>,
    ) -> Result<Value, String> {
        let mut desk = self.desk.lock().await;
        let now = self.gate().clock.now().wall;
        let mut contents = desk.book.contents.clone();
        let (mut made, mut gone, mut refused) = (Vec::new(), Vec::new(), Vec::new());
        let mut is_news = false;
        for retracted in retracted.into_iter().filter_map(|retracted| retracted.told_by(peer, now)) {
            let stands = contents.changes.iter().any(|change| change.id == retracted.id);
            if contents.is_retracted(&retracted.id) || !stands && retracted.forgotten_at() <= now.0 {
                continue;
            }
            is_news = true;
            let its = |change: &mut Change| change.id == retracted.id;
            gone.extend(contents.changes.extract_if(.., its).map(|change| (change, retracted.clone())));
            contents.bury(retracted, now);
        }
        let soon = now.0.saturating_add(super::tend::EARLY_MICROS);
        for change in changes {
            // One that ends now may have ended here already.
            if contents.knows(&change.id) || change.ends.is_some_and(|ends| ends <= soon) {
                continue;
            }
            let id = super::change::short(&change.id);
            let added = change.told_by(peer, now).and_then(|change| contents.add(change.clone()).map(|()| change));
            match added {
                Ok(change) => made.push(change),
                Err(why) => refused.push(format!("{id}: {why}")),
            }
        }
        let mut told = json!({});
        if is_news || !made.is_empty() {
            let denied = |change: &Change| change.order.action == ChangeAction::Deny;
            // As for what is said here: neither a deny nor the end of an allow waits for a disk.
            let closes = made.iter().any(denied) || !gone.iter().all(|(change, _)| denied(change));
            let done = self.put(&mut desk, contents, "", closes).await.map_err(|why| why.join("; "))?;
            let Done { closed, unsaved, left_out } = done;
            let revoked = closed.reasons;
            told_closed(&mut told, &closed);
            let cut = if made.iter().any(denied) {
                let networks = made.iter().filter(|change| denied(change)).flat_map(Change::networks).collect();
                told_cut(&mut told, &self.cut_denied(closed, networks).await)
            } else {
                None
            };
            told_unsaved(&mut told, unsaved.as_deref());
            let unsaved = unsaved.is_some();
            for (change, Retracted { author, why, .. }) in &gone {
                let (by, why) = (author.to_string(), Some(&**why).filter(|why| !why.is_empty()));
                let by = Some(&*by);
                record(&mut desk.shard, ChangeEvent { op: "retract", by, why, revoked, unsaved, ..change.event(now) });
            }
            for change in &made {
                let (op, by) = (change.order.action.as_str(), change.author.to_string());
                let (by, cut) = (Some(&*by), cut.filter(|_| denied(change)));
                record(&mut desk.shard, ChangeEvent { op, by, revoked, cut, unsaved, ..change.event(now) });
            }
            let made_here = |id: &str| made.iter().any(|change| change.id == id);
            let left_out = left_out.into_iter().filter(|(id, _)| made_here(id));
            refused.extend(left_out.map(|(id, why)| format!("{id} is left out until it can be heard: {why}")));
            tracing::warn!(peer, made = made.len(), retracted = gone.len(), revoked, cut, "rules came from a peer");
        }
        if refused.is_empty() {
            return Ok(told);
        }
        tracing::warn!(peer, why = refused.join("; "), "rules of a peer are not in force here");
        Err(refused.join("; "))
    }
}
