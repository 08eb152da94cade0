//! The fast path: top to bottom on one screen, no await, no lock across a system call.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::audit::{CacheUse, RecordId, Transport};
use crate::cache::Wanted;
use crate::gate::inflight::Slot;
use crate::gate::reply::{Conclusion, Failure, Outbox, Sealing};
use crate::gate::{Designation, Gate, Rulebook, who};
use crate::metric::Path;
use crate::net::canonical;
use crate::policy::{Permit, Reason, Verdict, decide};
use crate::record::{ExtendedError, Question};
use crate::time::Now;
use crate::wire;

/// See [`Job::tries`]: more rulebooks within one query's life are a fault of who loads them.
const TRIES: u8 = 8;

/// One datagram or stream message, besides its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// Who sent it.
    pub peer: SocketAddr,
    /// How.
    pub transport: Transport,
    /// When it was received.
    pub at: Now,
}

impl Arrival {
    /// The peer's address in canonical form.
    #[must_use]
    pub const fn client(&self) -> IpAddr {
        canonical(self.peer.ip())
    }
}

/// A query for the slow path.
#[derive(Debug)]
pub struct Job {
    /// The query as it came.
    pub packet: Box<[u8]>,
    /// From whom, how, when.
    pub arrival: Arrival,
    /// What is asked.
    pub question: Question,
    /// That it may be resolved, as the fast path decided; the slow path takes it, or decides anew.
    pub permit: Option<Permit>,
    /// Its record's id.
    pub id: RecordId,
    /// Its place on the slow path.
    pub slot: Slot,
    /// How often more it is decided anew where a rulebook comes between its answer and the door.
    pub tries: u8,
}

/// A job with its conclusion, on the way back to the door that received it.
#[derive(Debug)]
pub struct Finished {
    /// The job.
    pub job: Job,
    /// What became of it.
    pub conclusion: Conclusion,
    /// The rulebook that it was decided under.
    pub rulebook: Arc<Rulebook>,
}

/// What the fast path made of a packet.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "it is taken apart where it is returned; a box would allocate")]
pub enum Fast {
    /// Sealed in the outbox, or recorded as silence.
    Done,
    /// For [`Gate::slow`]; the door seals it with [`Gate::finish`].
    Slow(Job),
}

impl Gate {
    /// One packet, as far as it goes without waiting. `route` is where its reply goes.
    pub fn fast<R>(
        &self,
        rulebook: &Rulebook,
        packet: &[u8],
        arrival: Arrival,
        outbox: &mut Outbox<R>,
        route: impl FnOnce() -> R,
    ) -> Fast {
        let id = outbox.reserve();
        let (policy, client, tick) = (&rulebook.policy, arrival.client(), arrival.at.tick);
        let Outbox { near, batch } = outbox;
        near.enter(rulebook.edition());
        let now = batch.now(&self.clock, &arrival);
        let sealing = |asker| Sealing { id, arrival, asker, rulebook, now, path: Path::Fast };
        let of_client = self.cover.client(client);
        let mut room = wire::Canonical::new();
        let query = match wire::parse(packet, &mut room) {
            Ok(query) => query,
            Err(malformed) => {
                let asker = near.client(client, of_client, || policy.asker(client));
                batch.seal_malformed(&sealing(asker), &malformed, route);
                return Fast::Done;
            }
        };
        let asked = self.cover.asked(query.name, query.kind);
        let wanted = Wanted::new(client, of_client, &asked);
        // While it is not known what a firewall holds, the granter has the word.
        let ready = self.granter.counts().ready();
        if ready && let Some(kept) = near.get(&wanted, tick) {
            batch.tell(&sealing(Some(kept.asker)), &query, (&kept.reply, kept.until), CacheUse::Hit, route);
            return Fast::Done;
        }
        let asker = near.client(client, of_client, || policy.asker(client));
        let Some(asker) = asker else {
            batch.seal(&sealing(None), &query, &Conclusion::NoSegment, route);
            return Fast::Done;
        };
        let who = who(policy, asker);
        if ready && let Some(covered) = self.cover.get(who, &asked, rulebook.epoch, tick) {
            batch.tell(&sealing(Some(asker)), &query, (&covered.reply, covered.until), CacheUse::Hit, route);
            near.put(&wanted, asker, covered, tick);
            return Fast::Done;
        }
        let settle = |conclusion: &Conclusion| {
            batch.seal(&sealing(Some(asker)), &query, conclusion, route);
            Fast::Done
        };
        let verdict = decide(policy, asker, query.name, query.kind, arrival.at.wall);
        // RFC 9462 §6.4: who answers it serves all of resolver.arpa. A rule may deny it.
        if let Some(designation) = rulebook.designation.as_ref().filter(|_| Designation::answers(&query))
            && !matches!(&verdict, Verdict::Refuse(refusal) if refusal.reason == Reason::Rule)
        {
            return settle(&Conclusion::Designated(Arc::clone(designation)));
        }
        let permit = match verdict {
            Verdict::Permit(permit) => permit,
            Verdict::Refuse(refusal) => return settle(&Conclusion::Refused(refusal)),
        };
        let Some(slot) = self.slots.take(who.segment, client, policy.forwarder(asker).is_some()) else {
            let text = "too many queries of this client wait for an answer";
            return settle(&Conclusion::Failed(Failure::new(Reason::Rate, ExtendedError::OTHER, text)));
        };
        let question = permit.question().clone();
        Fast::Slow(Job { packet: packet.into(), arrival, question, permit: Some(permit), id, slot, tries: TRIES })
    }

    /// Seals what the slow path concluded, on the door's own thread. An answer whose rulebook is not in force any more may
    /// stand on grants that are revoked (I6): it is not told, and its job comes back to be decided anew.
    #[must_use]
    pub fn finish<R>(&self, finished: Finished, outbox: &mut Outbox<R>, route: impl FnOnce() -> R) -> Option<Job> {
        let Finished { mut job, mut conclusion, rulebook } = finished;
        if matches!(conclusion, Conclusion::Told { .. }) && rulebook.epoch != self.rulebook.load().epoch {
            if let Some(left) = job.tries.checked_sub(1) {
                job.tries = left;
                return Some(job);
            }
            let text = "the policy is changing too fast; ask again";
            conclusion = Conclusion::Failed(Failure::new(Reason::Rule, ExtendedError::NOT_READY, text));
        }
        let (id, arrival, now) = (job.id, job.arrival, self.clock.now());
        let asker = rulebook.policy.asker(arrival.client());
        let sealing = Sealing { id, arrival, asker, rulebook: &rulebook, now, path: Path::Slow };
        // It was parsed before it became a job; that it parses again is not taken on faith.
        match wire::parse(&job.packet, &mut wire::Canonical::new()) {
            Ok(query) => outbox.batch.seal(&sealing, &query, &conclusion, route),
            Err(malformed) => outbox.batch.seal_malformed(&sealing, &malformed, route),
        }
        None
    }

    /// The rulebook in force.
    #[must_use]
    pub fn rulebook(&self) -> Arc<Rulebook> {
        self.rulebook.load_full()
    }
}
