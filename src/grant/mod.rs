//! The ledger: which element is open, for which reasons, until when.

mod change;

pub use change::Change;
