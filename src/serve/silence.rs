//! What the operator is told of replies without a record: that it began and that it ended, not each one. A full
//! disk may cost thousands a second, and their messages often go to the same disk.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::audit::AuditError;

/// Whether one outbox's last replies were dropped because their records could not be written.
#[derive(Debug, Default)]
pub(super) struct Silence(AtomicBool);

impl Silence {
    /// A batch was dropped.
    pub(super) fn begin(&self, error: &AuditError) {
        if !self.0.swap(true, Relaxed) {
            tracing::error!(%error, "no record, no answer: replies are dropped until the query log can be written");
        }
    }

    /// A batch was recorded.
    pub(super) fn end(&self) {
        // A plain load first: the usual case must not write a shared line.
        if self.0.load(Relaxed) && self.0.swap(false, Relaxed) {
            tracing::info!("the query log can be written again, and queries are answered");
        }
    }
}
