//! The gate: one query's life, on two paths that end in one sealed reply.
//!
//! [`Gate::fast`] runs on the door's own thread: parse, segment, cover, decide. What it cannot settle becomes a
//! [`Job`] for [`Gate::slow`]: resolve, inspect, offer, wait for the firewalls. Both end in a [`Conclusion`], which
//! an [`Outbox`] seals: bytes and record together. The bytes come out of it only after the record has been handed to
//! the kernel.

mod arrival;
mod candidate;
mod cookie;
mod designation;
mod fast;
mod granter;
mod hurry;
mod inflight;
mod pointer;
mod refresh;
mod reply;
mod rulebook;
mod slow;
#[cfg(test)]
mod tests;
mod warm;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

pub use arrival::{Arrival, Said, Shown};
pub use candidate::{Candidate, DissentRow, Dissents};
pub use cookie::Secrets;
pub use designation::{Designation, Door};
pub use fast::{Fast, Finished, Job};
pub use granter::{
    Closed, EnforcerCounts, GrantCounts, GrantEntry, GrantQuery, Granter, GranterError, GranterParts, GrantsOf,
    NotGranted,
};
pub use hurry::Hurry;
pub use inflight::{Slot, Slots};
pub use refresh::{Refresher, Refreshes};
pub use reply::{Conclusion, Failure, Outbox, Prepared, Released};
pub use rulebook::{InUse, Passed, Rulebook};
pub use warm::{WarmCounts, Warmer};

use crate::audit::{Outcome, RecordId, Transport};
use crate::cache::{Answers, Cover, Failures, Named, Who};
use crate::grant::Terms;
use crate::metric::Words;
use crate::policy::{Asker, Dissent, GrantScope, Policy, Reason};
use crate::time::Clock;
use crate::upstream::Upstreams;

const VERDICTS: [&str; 3] = [Outcome::Allow.as_str(), Outcome::Deny.as_str(), Outcome::Error.as_str()];
const TRANSPORTS: [&str; 6] = [
    Transport::Udp.as_str(),
    Transport::Tcp.as_str(),
    Transport::Dot.as_str(),
    Transport::Doh.as_str(),
    Transport::Doq.as_str(),
    Transport::Doh3.as_str(),
];
const DISSENTS: [&str; 3] = [Dissent::Denies.as_str(), Dissent::Allows.as_str(), Dissent::Differs.as_str()];
const REASONS: [&str; Reason::ALL.len()] = {
    let mut words = [""; Reason::ALL.len()];
    let mut at = 0;
    #[expect(clippy::indexing_slicing, reason = "evaluated by the compiler; both arrays have this length")]
    while at < words.len() {
        words[at] = Reason::ALL[at].as_str();
        at += 1;
    }
    words
};

/// The label words of what an [`Outbox`] counts per query, in the order of the enums they stand for.
pub const WORDS: Words = Words { verdicts: &VERDICTS, reasons: &REASONS, transports: &TRANSPORTS, dissents: &DISSENTS };

/// How long a stream may stay without a query. RFC 7766 §6.2.3: "it is RECOMMENDED that the default server
/// application-level idle period be on the order of seconds". Clients that ask are told of it.
pub const STREAM_IDLE: Duration = Duration::from_secs(10);

/// Deadlines of the slow path.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// For all of it: below the 2 s at which the quickest stubs ask again.
    pub query: Duration,
    /// For the firewalls' acknowledgement.
    pub firewall: Duration,
}

/// The gate. One per process, shared by every door.
#[derive(Debug)]
pub struct Gate {
    /// The rulebook in force.
    pub rulebook: Arc<ArcSwap<Rulebook>>,
    /// Upstreams.
    pub upstreams: Upstreams,
    /// What is known.
    pub answers: Answers<Option<RecordId>, Prepared>,
    /// What upstream did not answer.
    pub failures: Failures<Failure>,
    /// What is kept warm.
    pub warm: WarmCounts,
    /// What is asked again while nobody waits for it.
    pub refreshes: Refreshes,
    /// For whom it is open.
    pub cover: Cover<Prepared>,
    /// Under which names addresses are open.
    pub named: Named,
    /// The granter.
    pub granter: Granter,
    /// Room on the slow path.
    pub slots: Slots,
    /// Which threads have passed which epoch.
    pub passed: Passed,
    /// Lease numbers.
    pub terms: Terms,
    /// Deadlines.
    pub deadlines: Deadlines,
    /// Raised when the node stops and those who wait have had their time.
    pub hurry: Hurry,
    /// Time.
    pub clock: Clock,
}

/// For whom a reply to `asker` is prepared: where grants are the segment's, so are the replies.
fn who(policy: &Policy, asker: Asker) -> Who {
    let segment = policy.segment(asker);
    Who { segment: segment.id, client: (segment.scope == GrantScope::Client).then_some(asker.client) }
}
