//! Grants: the ledger of what is open, for which reasons, until when.
//!
//! A kernel element is the maximum over its live reasons: two names on one address hold one element, and the
//! end of one never closes the other. The ledger says what a firewall should be told ([`Change`]) and believes
//! that it is so only once told ([`Ledger::acknowledge`]); a [`Granted`] is made when every opening of an answer
//! has been acknowledged to last at least as long as the answer is told.

mod change;
mod lease;
mod ledger;
mod settings;

pub use change::Change;
pub use lease::{Lease, Terms, answer_ttl};
pub use ledger::{Added, Caps, Compared, Effect, Full, Granted, Held, Ledger, Offered, Reason, Revoked, Settled};
