//! What is changed at this node is told to its peers, once it is in force here.

use std::sync::Arc;

use serde_json::Value;

use super::RunningNode;
use crate::app::changes::{Author, News};
use crate::app::peers::Peers;
use crate::serve::{ChangeOrder, ForgetOrder, RevokeOrder, Who};

impl RunningNode {
    /// The other nodes in front of the same clients.
    pub(in crate::app) const fn peers(&self) -> &Arc<Peers> {
        &self.parts.peers
    }

    /// Whether there are any.
    pub(in crate::app) fn has_peers(&self) -> bool {
        self.parts.peers.len() > 0
    }

    /// Of the policy in force, as it is told.
    pub(in crate::app) fn revision(&self) -> String {
        format!("{:016x}", self.parts.gate.rulebook().policy.revision())
    }

    pub(super) async fn change_everywhere(&self, who: &Who, order: ChangeOrder) -> Result<Value, Vec<String>> {
        let told = self.change(who, order).await?;
        let id = told.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
        Ok(self.told_everywhere(told, &News::of(&self.changes.load(), &id)).await)
    }

    pub(super) async fn retract_everywhere(&self, who: &Who, id: &str, why: &str) -> Result<Value, Vec<String>> {
        let told = self.retract(who, id, why).await?;
        Ok(self.told_everywhere(told, &News::of(&self.changes.load(), id)).await)
    }

    pub(super) async fn revoke_everywhere(&self, who: &Who, order: RevokeOrder) -> Result<Value, Vec<String>> {
        let (author, id) = (Author::of(who), once()?);
        let told = self.revoke(&author, order.clone()).await?;
        Ok(self.told_everywhere(told, &News::Revoke { id, author, order }).await)
    }

    pub(super) async fn forget_everywhere(&self, who: &Who, order: ForgetOrder) -> Result<Value, Vec<String>> {
        let (author, id, at) = (Author::of(who), once()?, self.parts.gate.clock.now().wall.0);
        let told = self.forget(&author, order.clone(), None).await?;
        Ok(self.told_everywhere(told, &News::Forget { id, author, at, order }).await)
    }

    /// Adds to what became of a change here what became of it at each peer. Nothing is locked meanwhile: two nodes that are
    /// told of something at once do not wait for each other.
    async fn told_everywhere(&self, mut told: Value, news: &News) -> Value {
        if self.has_peers() {
            let peers = self.parts.peers.tell(news, self.parts.gate.clock.now()).await;
            if news.once().is_some() {
                self.keep_late(&mut told).await;
            }
            if let Some(told) = told.as_object_mut() {
                told.insert("node".into(), self.parts.config.node.as_str().into());
                told.insert("peers".into(), peers.into());
            }
        }
        told
    }
}

/// An id of what is done once.
fn once() -> Result<String, Vec<String>> {
    let random = getrandom::u64().map_err(|error| vec![format!("the system gives no random numbers: {error}")])?;
    Ok(format!("{random:016x}"))
}
