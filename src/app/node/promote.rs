//! Promotion: a candidate that was decided for long enough becomes the policy.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{RunningNode, changes, event, record};
use crate::app::changes::Desk;
use crate::app::load::{self, CANDIDATE, Loaded};
use crate::app::promotion::{Order, Promotion, Staged};
use crate::audit::PolicyEvent;
use crate::document::Mistake;
use crate::gate::{Candidate, Dissents, Rulebook, Secrets};
use crate::policy::{Dissent, revision_of};
use crate::serve::{PromoteOrder, Who};

impl RunningNode {
    /// Puts the candidate in force, or goes back to the policy directory; or says why not, and changes nothing.
    pub(super) async fn promote_now(self: &Arc<Self>, who: &Who, order: &PromoteOrder) -> Result<Value, String> {
        let _loading = self.loading.lock().await;
        let mut desk = self.desk.lock().await;
        let before = self.parts.gate.rulebook();
        let result = if order.revert {
            self.take_back(&mut desk, who, order, &before).await
        } else {
            self.put_in_force(&mut desk, who, order, &before).await
        };
        if let Err(why) = &result {
            tracing::warn!(%who, why, "not promoted");
        }
        result
    }

    async fn put_in_force(
        self: &Arc<Self>,
        desk: &mut Desk,
        who: &Who,
        order: &PromoteOrder,
        before: &Rulebook,
    ) -> Result<Value, String> {
        let candidate = before.candidate.as_ref().ok_or_else(|| self.why_none())?;
        let dissents = candidate.dissents(0);
        if dissents.total() > 0 && !order.accept {
            return Err(refusal(&dissents));
        }
        let (node, known) = (Arc::clone(self), Arc::clone(candidate));
        let mut promoted = Order {
            // Where one was promoted before, the directory has still to change.
            over: before.policy.revision(),
            revision: known.policy.revision(),
            at: self.parts.gate.clock.now().wall.to_string(),
            who: who.to_string(),
            reason: order.reason.clone(),
            accepted: dissents.total(),
        };
        if let Some(earlier) = self.beside.load().promotion() {
            promoted.over = u64::from_str_radix(&earlier.over, 16).unwrap_or(promoted.over);
        }
        let loaded = tokio::task::spawn_blocking(move || node.load_candidate(&known, promoted)).await;
        let ((loaded, secrets), staged) = loaded.map_err(|error| format!("the load broke off: {error}"))??;
        let (rulebook, revoked) = self.swap(loaded, secrets, before, desk).await.map_err(|mistakes| list(&mistakes))?;
        let kept = staged.commit().err().map(|error| {
            let why =
                "the promotion is not in the state directory: a reload or a restart goes back to [policy].directory";
            tracing::error!(%error, "{why}");
            format!("{why} ({error})")
        });
        let accepted = match dissents.total() {
            0 => String::new(),
            count => format!("; {count} disagreements accepted"),
        };
        let why = format!("{who}{}{accepted}", because(order));
        self.record_change(desk, "promote", (before, &rulebook), revoked, &why).await;
        tracing::warn!(%who, revision = format!("{:016x}", rulebook.policy.revision()), revoked, "the candidate is promoted");
        Ok(done(&rulebook, before, revoked, kept))
    }

    async fn record_change(
        &self,
        desk: &mut Desk,
        op: &'static str,
        (before, rulebook): (&Rulebook, &Rulebook),
        revoked: u64,
        why: &str,
    ) {
        let changes = changes(&before.policy, &rulebook.policy, rulebook.loaded).await;
        let (previous, changes) = (Some(before.policy.revision()), changes.as_ref());
        record(
            &mut desk.shard,
            PolicyEvent { previous, revoked, changes, why: Some(why), ..event(rulebook, rulebook.loaded, op) },
        );
    }

    /// Why there is no candidate to promote.
    fn why_none(&self) -> String {
        if self.parts.config.candidate.is_none() {
            return "there is no candidate; name its directory as [policy].candidate".to_owned();
        }
        match self.beside.load().mistakes() {
            [] => "the candidate is the policy in force already".to_owned(),
            mistakes => format!("the candidate has mistakes; correct them and reload\n{}", list(mistakes)),
        }
    }

    /// The policy that the candidate's files are, and the promotion, which does not count yet. They must be those that were
    /// decided all the while.
    fn load_candidate(&self, known: &Candidate, order: Order) -> Result<((Loaded, Secrets), Staged), String> {
        let config = &self.parts.config;
        let Some(directory) = &config.candidate else { return Err(self.why_none()) };
        let files = load::read_files(directory, CANDIDATE).map_err(|mistakes| list(&mistakes))?;
        let revision = revision_of(files.iter().cloned(), &directory.display().to_string());
        if revision != known.policy.revision() {
            let known = known.policy.revision();
            return Err(format!(
                "the files of {} are {revision:016x}, and {known:016x} is what was decided beside the policy; \
                 reload, and promote when you have seen what it does",
                directory.display()
            ));
        }
        let promotion = Promotion::new(order, directory, files);
        let staged = promotion.stage(&config.state).map_err(|error| {
            format!("the promotion cannot be written to the state directory {}: {error}", config.state.display())
        })?;
        let loaded = self.load_with(Some(promotion)).map_err(|mistakes| list(&mistakes))?;
        if loaded.0.promotion.is_none() {
            return Err("the policy directory has changed since it was loaded; reload first".to_owned());
        }
        Ok((loaded, staged))
    }

    async fn take_back(
        self: &Arc<Self>,
        desk: &mut Desk,
        who: &Who,
        order: &PromoteOrder,
        before: &Rulebook,
    ) -> Result<Value, String> {
        if self.beside.load().promotion().is_none() {
            return Err("no promotion is in force: the policy is that of [policy].directory".to_owned());
        }
        let (loaded, secrets) = self.load_files(None).await.map_err(|mistakes| list(&mistakes))?;
        let (rulebook, revoked) = self.swap(loaded, secrets, before, desk).await.map_err(|mistakes| list(&mistakes))?;
        let why = format!("{who}{}", because(order));
        self.record_change(desk, "revert", (before, &rulebook), revoked, &why).await;
        tracing::warn!(%who, revoked, "the promotion is taken back");
        Ok(done(&rulebook, before, revoked, None))
    }
}

fn because(order: &PromoteOrder) -> String {
    order.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default()
}

fn refusal(dissents: &Dissents) -> String {
    let count = |dissent: Dissent| dissents.counts.get(dissent as usize).copied().unwrap_or(0);
    format!(
        "since {} the candidate disagreed over {} queries: it would deny {} that pass, let pass {} that are denied, and {} \
         differ otherwise; see `outgate status`, and accept them with --accept",
        dissents.since,
        dissents.total(),
        count(Dissent::Denies),
        count(Dissent::Allows),
        count(Dissent::Differs)
    )
}

fn done(rulebook: &Rulebook, before: &Rulebook, revoked: u64, warning: Option<String>) -> Value {
    json!({
        "revision": format!("{:016x}", rulebook.policy.revision()),
        "previous": format!("{:016x}", before.policy.revision()),
        "segments": rulebook.policy.segments().len(),
        "rules": rulebook.policy.rules_len(),
        "revoked": revoked,
        "warning": warning,
    })
}

fn list(mistakes: &[Mistake]) -> String {
    mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}
