//! A change comes into force: another policy beside the same zones.

use std::sync::Arc;

use super::RunningNode;
use crate::gate::Closed;
use crate::policy::{Policy, Runtime};

impl RunningNode {
    /// Puts another policy in force beside the same zones; what was closed.
    ///
    /// # Errors
    /// One sentence: a firewall refused its layout, and nothing has changed.
    pub(in crate::app) async fn follow(&self, policy: Policy, runtime: &Runtime) -> Result<Closed, String> {
        let gate = &self.parts.gate;
        let before = gate.rulebook();
        let next = before.followed_by(Arc::new(policy), self.parts.registry.tallies());
        // What is changed while it runs counts under the candidate too, were it the policy.
        let candidate = before.candidate.as_ref();
        let candidate = candidate.map(|known| Arc::new(known.again(Arc::new(known.policy.with(runtime).0))));
        let next = next.beside(candidate);
        let swapped = gate.swap(Arc::new(next)).await;
        swapped.map_err(|(name, error)| format!("firewall \"{name}\" refused it: {error}"))
    }
}
