//! The fast path: top to bottom on one screen, no await, no lock across a system call.

use std::sync::Arc;

use crate::audit::{CacheUse, RecordId, Transport};
use crate::cache::Wanted;
use crate::gate::arrival::{Arrival, Said};
use crate::gate::inflight::Slot;
use crate::gate::reply::{Conclusion, Failure, Outbox, Sealing};
use crate::gate::{Designation, Gate, Rulebook, who};
use crate::metric::Path;
use crate::policy::{Permit, Reason, Verdict, decide};
use crate::record::{ExtendedError, Question};
use crate::wire;

/// See [`Job::tries`]: more rulebooks within one query's life are a fault of who loads them.
const TRIES: u8 = 8;

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
        mut packet: &[u8],
        mut arrival: Arrival,
        outbox: &mut Outbox<R>,
        route: impl FnOnce() -> R,
    ) -> Fast {
        let id = outbox.reserve();
        let (policy, tick) = (&rulebook.policy, arrival.at.tick);
        let Outbox { near, batch } = outbox;
        near.enter(rulebook.edition());
        let now = batch.now(&self.clock, &arrival);
        // Over streams it stands before the first message alone, and the door has read it.
        if arrival.transport == Transport::Udp && policy.takes_proxy(arrival.sender()) {
            packet = arrival.read_header(packet);
        }
        let mut room = wire::Canonical::new();
        let mut read = wire::parse(packet, &mut room);
        if matches!(arrival.said, Said::Unproxied)
            || arrival.transport == Transport::Doq
            || read.as_ref().is_ok_and(|query| query.echo.subnet.is_some())
        {
            read = arrival.judge(policy, read);
        }
        let client = arrival.client().ip();
        let of_client = self.cover.client(client);
        let sealing = |asker| Sealing { id, arrival: &arrival, asker, rulebook, now, path: Path::Fast };
        // Whom a forwarder names is looked up; a sender that asks for itself is mostly known from before.
        let named = if matches!(arrival.said, Said::Nothing) { None } else { Some(arrival.asker(policy)) };
        let query = match read {
            Ok(query) => query,
            Err(malformed) => {
                let asker = named.unwrap_or_else(|| near.client(client, of_client, || policy.asker(client)));
                batch.seal_malformed(&sealing(asker), &malformed, route);
                return Fast::Done;
            }
        };
        let asked = self.cover.asked(query.name, query.kind);
        let named_by = named.flatten().and_then(|asker| asker.named_by());
        let wanted = Wanted::new(client, of_client, &asked).named_by(named_by);
        // While it is not known what a firewall holds, the granter has the word.
        let ready = self.granter.counts().ready();
        if ready
            && named.is_none_or(|asker| asker.is_some())
            && let Some(kept) = near.get(&wanted, tick)
        {
            batch.tell(&sealing(Some(kept.asker)), &query, (&kept.reply, kept.until), CacheUse::Hit, route);
            return Fast::Done;
        }
        let Some(asker) = named.unwrap_or_else(|| near.client(client, of_client, || policy.asker(client))) else {
            batch.seal(&sealing(None), &query, &Conclusion::NoSegment, route);
            return Fast::Done;
        };
        let who = who(policy, asker);
        if ready && let Some(covered) = self.cover.get(who, &asked, rulebook.epoch, tick) {
            batch.tell(&sealing(Some(asker)), &query, (&covered.reply, covered.until), CacheUse::Hit, route);
            let renews = covered.until.told - covered.reply.renewed_within();
            if renews <= tick
                && let Verdict::Permit(permit) = decide(policy, asker, query.name, query.kind, arrival.at.wall)
            {
                // What is asked for again is there again before it ends: nobody waits for it.
                self.refreshes.renew(who, permit, covered.until.told, id);
            }
            near.put(&wanted, asker, covered, renews, tick);
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
            Verdict::Refuse(refusal) => {
                let own = self.pointer(rulebook, &refusal, &query, arrival.at);
                return settle(&own.map_or(Conclusion::Refused(refusal), Conclusion::Answered));
            }
            Verdict::Answer(own) => return settle(&Conclusion::Answered(own)),
        };
        // What a forwarder names no client of is its own share; what it does is its client's.
        let is_forwarder = asker.named_by().is_none() && policy.forwarder(asker).is_some();
        let Some(slot) = self.slots.take(who.segment, client, is_forwarder) else {
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
        let (id, arrival, now) = (job.id, &job.arrival, self.clock.now());
        let asker = arrival.asker(&rulebook.policy);
        let sealing = Sealing { id, arrival, asker, rulebook: &rulebook, now, path: Path::Slow };
        // It was parsed before it became a job; that it parses again is not taken on faith.
        match wire::parse(&job.packet, &mut wire::Canonical::new()) {
            Ok(mut query) => {
                query.echo.subnet = query.echo.subnet.filter(|_| matches!(arrival.said, Said::Subnet(_)));
                outbox.batch.seal(&sealing, &query, &conclusion, route);
            }
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
