//! One file per verb.

pub(super) mod change;
pub(super) mod check;
pub(super) mod correlate;
pub(super) mod diff;
pub(super) mod enforce;
pub(super) mod explain;
pub(super) mod import;
pub(super) mod learn;
pub(super) mod log;
pub(super) mod node;
pub(super) mod probe;
pub(super) mod report;
pub(super) mod run;
pub(super) mod test;
