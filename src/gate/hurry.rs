//! What a node that stops says to those who still wait: no longer.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

/// Raised once. From then on a job of the slow path ends, closed, as soon as it is looked at; whoever polls jobs waits for
/// it to be raised too, and looks.
#[derive(Debug, Default)]
pub struct Hurry {
    raised: AtomicBool,
    waiting: Notify,
}

impl Hurry {
    /// Raises it.
    pub fn raise(&self) {
        self.raised.store(true, Ordering::Release);
        self.waiting.notify_waiters();
    }

    /// Whether it was raised.
    pub(super) fn is_raised(&self) -> bool {
        self.raised.load(Ordering::Acquire)
    }

    /// Waits until it is raised.
    pub async fn raised(&self) {
        // Made before the look: it hears whoever is told of from here on.
        let raised = self.waiting.notified();
        if !self.is_raised() {
            raised.await;
        }
    }
}
