//! The slow path: five steps in a row, two of them waits, one deadline for all of it.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, timeout_at};

use crate::audit::{CacheUse, RecordId};
use crate::cache::{Covered, Found, Known, Lately, Until};
use crate::gate::reply::{Conclusion, Failure, Prepared};
use crate::gate::{Finished, Gate, Job, NotGranted, Rulebook, who};
use crate::grant::Granted;
use crate::policy::{Judged, Permit, Reason, Verdict, decide, inspect, judge};
use crate::record::{Answer, ExtendedError, Proof, Question, Rcode};
use crate::time::{Tick, Ttl, Wall};
use crate::upstream::{Ports, Upstream, UpstreamError};
use crate::wire::REFUSAL_TTL;

/// A chain left open is followed over at most so many answers (as the chain of one answer is).
const MAX_FOLLOWED: usize = 8;

/// How often a query is decided anew because the policy changed under it.
const MAX_STALE: usize = 8;

/// A wait for the firewall ends this much before the query's deadline, so that what was waited for is still told.
const MARGIN: Duration = Duration::from_millis(10);

/// Where there is an answer that has ended, an upstream is waited for until so much is left of the query's deadline: 1.2 s
/// in all, also along a chain. RFC 8767 §5 recommends 1.8 s, "just under" what clients wait; the rest is the firewalls'.
const STALE_BEFORE: Duration = Duration::from_millis(700);
const STALE_TTL: Ttl = Ttl::from_wire(30);

/// An answer that is asked for in the last tenth of its life, or in its last seconds, is renewed (as Unbound does; the
/// seconds are guessed: a second before its end it is not told any more). Shorter lives are not: all of them would be.
const RENEWED_WITHIN: Duration = Duration::from_secs(2);
const RENEWED_FROM: Duration = Duration::from_secs(5);

/// What a name is resolved for.
#[derive(Clone, Copy)]
pub(super) struct Asking<'a> {
    /// The query; `None` where a rule keeps the name warm.
    pub(super) id: Option<RecordId>,
    /// Of the runtime that this runs on.
    pub(super) ports: &'a Ports,
    pub(super) deadline: Instant,
    /// What is known and ends here, or before, is asked for anew; zero where any answer will do.
    pub(super) renews: Tick,
}

/// An answer that is granted.
pub(super) struct Opened {
    pub(super) granted: Granted,
    source: Source,
    /// How often the cover had been flushed before.
    flushes: u64,
    /// What the candidate says of it.
    judged: Option<Box<Judged>>,
}

/// An answer with what is known of it.
pub(super) struct Resolved {
    answer: Answer,
    told_until: Tick,
    source: Source,
}

/// Where an answer comes from.
struct Source {
    origin: Option<RecordId>,
    cache: CacheUse,
    /// As it is kept for others; of a chain that was followed, its first part.
    known: Option<Arc<Known<Option<RecordId>, Prepared>>>,
    /// Whether it may be told again.
    lasts: bool,
}

impl Gate {
    /// Settles what the fast path could not. Always concludes, closed where anything fails, and where it is polled after
    /// [`Gate::hurry`] was raised at once. `ports` are those of the runtime that this runs on.
    pub async fn slow(&self, mut job: Job, ports: &Ports) -> Finished {
        let permit = job.permit.take();
        let walked = {
            let mut walk = pin!(self.walk(&job, permit, ports));
            poll_fn(|context| match walk.as_mut().poll(context) {
                Poll::Pending if self.hurry.is_raised() => {
                    let why = "the server is stopping; ask again";
                    Poll::Ready(Err(Failure::new(Reason::Shutdown, ExtendedError::NOT_READY, why)))
                }
                polled => polled,
            })
            .await
        };
        let (conclusion, rulebook) =
            walked.unwrap_or_else(|failure| (Conclusion::Failed(failure), self.rulebook.load_full()));
        Finished { job, conclusion, rulebook }
    }

    /// The conclusion, and the rulebook that it was reached under. Both of its waits end before the deadline by
    /// themselves.
    async fn walk(
        &self,
        job: &Job,
        mut decided: Option<Permit>,
        ports: &Ports,
    ) -> Result<(Conclusion, Arc<Rulebook>), Failure> {
        let deadline = Instant::now() + self.deadlines.query;
        let asking = Asking { id: Some(job.id), ports, deadline, renews: Tick(0) };
        for _ in 0..MAX_STALE {
            // A policy that was loaded since the fast path decides: the client has been told nothing yet.
            let rulebook = self.rulebook.load_full();
            let wall = self.clock.now().wall;
            let permit = match decided.take().filter(|permit| still_decides(&rulebook, permit, wall)) {
                Some(permit) => permit,
                None => {
                    let Some(asker) = job.arrival.asker(&rulebook.policy) else {
                        return Ok((Conclusion::NoSegment, rulebook));
                    };
                    match decide(&rulebook.policy, asker, job.question.name.as_wire(), job.question.kind, wall) {
                        Verdict::Permit(permit) => permit,
                        Verdict::Refuse(refusal) => return Ok((Conclusion::Refused(refusal), rulebook)),
                        Verdict::Answer(own) => return Ok((Conclusion::Answered(own), rulebook)),
                    }
                }
            };
            let Some(opened) = self.open(&rulebook, permit, &asking).await? else { continue };
            let Opened { granted, source, flushes, judged } = opened;
            self.name_addresses(&rulebook, &granted);
            let covered = self.prepare(&rulebook, &granted, &source, judged);
            if source.lasts {
                self.keep(&rulebook, &granted, covered.clone(), flushes);
            }
            return Ok((Conclusion::Told { covered, cache: source.cache }, rulebook));
        }
        Err(Failure::new(Reason::Rule, ExtendedError::NOT_READY, "the policy is changing too fast; ask again"))
    }

    /// Resolves what is permitted, inspects it and has it opened; `None` where it has to be decided anew.
    pub(super) async fn open(
        &self,
        rulebook: &Rulebook,
        permit: Permit,
        asking: &Asking<'_>,
    ) -> Result<Option<Opened>, Failure> {
        let flushes = self.cover.flushes();
        let Resolved { answer, told_until, source } = self.resolve_chain(rulebook, &permit, asking).await?;
        let now = self.clock.now();
        if permit.ends().is_some_and(|ends| ends <= now.wall) {
            // What a rule opened, or a segment let pass while it observed, it does not any more.
            return Ok(None);
        }
        let shown = rulebook.candidate.as_ref().map(|candidate| (candidate, answer.clone()));
        let cleared = inspect(permit, answer);
        let told_until = cleared.ends().map_or(told_until, |ends| told_until.min(now.tick_at(ends)));
        let judged = shown.and_then(|(candidate, answer)| judge(&candidate.policy, &cleared, answer)).map(Box::new);
        let told_until = match cleared.withheld() {
            // Like any refusal it may be kept for a moment only: a corrected rule shows soon.
            Some(withheld) if withheld.enforced => told_until.min(now.tick + REFUSAL_TTL.duration()),
            _ => told_until,
        };
        let granted = match Granted::nothing_to_open(cleared, told_until) {
            Ok(granted) => granted,
            Err(cleared) => {
                let offer = self.granter.offer(cleared, told_until, asking.id);
                let patience = Instant::now() + self.deadlines.firewall;
                match timeout_at(patience.min(asking.deadline - MARGIN), offer).await {
                    Ok(Ok(granted)) => granted,
                    Ok(Err(NotGranted::Stale)) => return Ok(None),
                    Ok(Err(refused)) => return Err(refused.into()),
                    Err(_) => {
                        return Err(Failure::new(
                            Reason::Firewall,
                            ExtendedError::NOT_READY,
                            "the firewall did not acknowledge in time",
                        ));
                    }
                }
            }
        };
        Ok((self.rulebook.load().epoch == rulebook.epoch).then_some(Opened { granted, source, flushes, judged }))
    }

    /// Whether this permit would be given now, by the policy in force.
    pub(super) fn stands(&self, permit: &Permit) -> bool {
        let (rulebook, wall) = (self.rulebook.load(), self.clock.now().wall);
        still_decides(&rulebook, permit, wall) || {
            let Question { name, kind } = permit.question();
            Arc::ptr_eq(permit.policy(), &rulebook.policy)
                && matches!(decide(&rulebook.policy, permit.asker(), name.as_wire(), *kind, wall), Verdict::Permit(_))
        }
    }

    /// Renews what was told on this permit, where it still stands. Where that fails, nothing has changed.
    pub(super) async fn renew(&self, permit: Permit, asking: &Asking<'_>) {
        let rulebook = self.rulebook.load_full();
        if still_decides(&rulebook, &permit, self.clock.now().wall)
            && let Ok(Some(Opened { granted, source, flushes, judged })) = self.open(&rulebook, permit, asking).await
            && source.lasts
        {
            self.keep(&rulebook, &granted, self.prepare(&rulebook, &granted, &source, judged), flushes);
        }
    }

    /// Prepares the reply.
    fn prepare(
        &self,
        rulebook: &Rulebook,
        granted: &Granted,
        source: &Source,
        judged: Option<Box<Judged>>,
    ) -> Covered<Prepared> {
        let hold = |reply: Prepared| {
            let weight = reply.weight();
            self.cover.hold(reply, weight)
        };
        // What upstream gave, and will again; a name that is not there is not waited for.
        let renewed = source.known.is_some() && !granted.cleared().answer().records.is_empty();
        let life = self.terms.told_until(granted.cleared().answer().ttl(), Tick(0)).since(Tick(0));
        let within = if renewed && life >= RENEWED_FROM { RENEWED_WITHIN.max(life / 10) } else { Duration::ZERO };
        let reply = Prepared::new(granted, source.origin, within).judged(judged);
        let reply = match &source.known {
            Some(known) => known.share(reply, hold),
            None => hold(reply),
        };
        let until = Until::new(granted.told_until(), granted.open_until());
        Covered { epoch: rulebook.epoch, until, reply }
    }

    /// Keeps a reply for those whom it was granted to.
    fn keep(&self, rulebook: &Rulebook, granted: &Granted, covered: Covered<Prepared>, flushes: u64) {
        let permit = granted.cleared().permit();
        let who = who(&rulebook.policy, permit.asker());
        let Question { name, kind } = permit.question();
        self.cover.put(who, &self.cover.asked(name.as_wire(), *kind), covered, flushes);
    }

    /// The answer to a permitted question. An upstream is expected to recurse; a chain that is left open (a local
    /// zone's CNAME to the outside is one) is followed only where the same client may ask the target itself.
    async fn resolve_chain(
        &self,
        rulebook: &Rulebook,
        permit: &Permit,
        asking: &Asking<'_>,
    ) -> Result<Resolved, Failure> {
        let mut whole = self.resolve(rulebook, permit, asking).await?;
        let kind = permit.question().kind;
        for _ in 0..MAX_FOLLOWED {
            let Some(target) = open_end(&whole.answer, permit.question()) else { return Ok(whole) };
            let wall = self.clock.now().wall;
            let next = match decide(&rulebook.policy, permit.asker(), target.as_wire(), kind, wall) {
                Verdict::Permit(next) => next,
                // What the client would be told of it: the name is there, and nothing of this type.
                Verdict::Refuse(refusal) if refusal.reason == Reason::Type => return Ok(whole),
                Verdict::Refuse(_) | Verdict::Answer(_) => {
                    let text = format!("the answer ends in a CNAME to {target}, which this client may not ask for");
                    return Err(Failure::new(Reason::Cname, ExtendedError::OTHER, text));
                }
            };
            let part = self.resolve(rulebook, &next, asking).await?;
            whole.told_until = whole.told_until.min(part.told_until);
            if let Some(ends) = next.ends() {
                whole.told_until = whole.told_until.min(self.clock.now().tick_at(ends));
            }
            whole.source.lasts &= part.source.lasts;
            whole.answer.rcode = part.answer.rcode;
            whole.answer.authoritative &= part.answer.authoritative;
            whole.answer.records.extend(part.answer.records);
            whole.answer.soa = part.answer.soa;
            // That one part is stale is said of the whole.
            let stale = whole.answer.ede.take().filter(|_| whole.source.cache == CacheUse::Stale);
            whole.answer.ede = stale.or(part.answer.ede);
            whole.answer.proof = joined(whole.answer.proof.take(), part.answer.proof);
            // The addresses are the last answer's, and so is the trust in them.
            whole.answer.origin = part.answer.origin;
            if whole.source.cache != CacheUse::Stale && matches!(part.source.cache, CacheUse::Miss | CacheUse::Stale) {
                whole.source.cache = part.source.cache;
            }
        }
        Err(Failure::new(Reason::Cname, ExtendedError::OTHER, "the CNAME chain is too long"))
    }

    async fn resolve(&self, rulebook: &Rulebook, permit: &Permit, asking: &Asking<'_>) -> Result<Resolved, Failure> {
        let question = permit.question();
        let now = self.clock.tick();
        if let Some(answer) = rulebook.zones.answer(question) {
            let told_until = self.terms.told_until(answer.ttl(), now);
            let source = Source { origin: asking.id, cache: CacheUse::Zone, known: None, lasts: true };
            return Ok(Resolved { answer, told_until, source });
        }
        let segment = permit.segment();
        let Some(upstream) = self.upstreams.route(&segment.name, question.name.as_wire()) else {
            let text = format!("no upstream serves {} for segment {}", question.name, segment.name);
            return Err(Failure::new(Reason::Upstream, ExtendedError::NO_REACHABLE_AUTHORITY, text));
        };
        self.ask(upstream, permit, asking).await
    }

    /// The answer of an upstream: what is known, what it says now, or what it said before.
    async fn ask(&self, upstream: &Upstream, permit: &Permit, asking: &Asking<'_>) -> Result<Resolved, Failure> {
        let (view, question, now) = (upstream.view().0, permit.question(), self.clock.tick());
        let old = match self.answers.get(view, question, now) {
            Some(Found::Lives(known)) if known.told_until > asking.renews => {
                return Ok(Resolved::of(known, CacheUse::Open));
            }
            // Of what nobody waits for nothing stale is of use.
            Some(Found::Ended(old)) if asking.renews == Tick(0) => Some(old),
            _ => None,
        };
        match (old, self.failures.get(view, question, now)) {
            (Some(old), Some(Lately::Rests(failure))) => self.instead(&old, &failure),
            (Some(old), Some(Lately::Doubtful(failure))) => {
                // Nobody waits for what is not expected.
                let _refresh = self.refreshes.begin(view, permit, asking.id);
                self.instead(&old, &failure)
            }
            (Some(old), None) => self.ask_in_time(upstream, permit, asking, &old).await,
            (None, Some(Lately::Rests(failure))) => Err(Failure::clone(&failure)),
            (None, _) => self.fetch(upstream, permit, asking).await,
        }
    }

    /// What an upstream says while there is time to tell what it said before.
    async fn ask_in_time(
        &self,
        upstream: &Upstream,
        permit: &Permit,
        asking: &Asking<'_>,
        old: &Known<Option<RecordId>, Prepared>,
    ) -> Result<Resolved, Failure> {
        let (view, question) = (upstream.view().0, permit.question());
        let Some(refresh) = self.refreshes.begin(view, permit, asking.id) else {
            // Others refresh much: this one asks in its own place.
            return match timeout_at(asking.deadline - STALE_BEFORE, self.fetch(upstream, permit, asking)).await {
                Ok(Ok(resolved)) => Ok(resolved),
                Ok(Err(failure)) => self.instead(old, &failure),
                Err(_) => Ok(self.stale(old, "no upstream answered in time")),
            };
        };
        let _late = timeout_at(asking.deadline - STALE_BEFORE, refresh.ended()).await;
        let now = self.clock.tick();
        match (self.answers.get(view, question, now), self.failures.get(view, question, now)) {
            (Some(Found::Lives(known)), _) => {
                let cache = if known.origin == asking.id { CacheUse::Miss } else { CacheUse::Open };
                Ok(Resolved::of(known, cache))
            }
            (_, Some(Lately::Rests(failure) | Lately::Doubtful(failure))) => self.instead(old, &failure),
            // What upstream said may not be kept.
            (None, None) => self.fetch(upstream, permit, asking).await,
            (Some(Found::Ended(_)), None) => Ok(self.stale(old, "no upstream answered in time")),
        }
    }

    /// The answer that has ended, instead of the failure to get another. But who forges an answer is not to have the one
    /// before it told.
    fn instead(&self, old: &Known<Option<RecordId>, Prepared>, failure: &Failure) -> Result<Resolved, Failure> {
        match failure.reason {
            Reason::Dnssec => Err(failure.clone()),
            _ => Ok(self.stale(old, &failure.ede.text)),
        }
    }

    /// An answer that has ended, as it is told. RFC 8767 §4: "it is RECOMMENDED that they use a TTL of 30 seconds".
    fn stale(&self, old: &Known<Option<RecordId>, Prepared>, why: &str) -> Resolved {
        let mut answer = old.answer.clone();
        let nxdomain = answer.rcode == Rcode::NXDOMAIN;
        let code = if nxdomain { ExtendedError::STALE_NXDOMAIN } else { ExtendedError::STALE };
        answer.ede = Some(ExtendedError::new(code, why));
        // Its signatures may have ended too.
        answer.proof = None;
        let told_until = self.terms.told_until(STALE_TTL, self.clock.tick());
        let source = Source { origin: old.origin, cache: CacheUse::Stale, known: None, lasts: false };
        Resolved { answer, told_until, source }
    }

    /// Asks an upstream, and keeps what comes of it, unless what is known was flushed meanwhile.
    pub(super) async fn fetch(
        &self,
        upstream: &Upstream,
        permit: &Permit,
        asking: &Asking<'_>,
    ) -> Result<Resolved, Failure> {
        let (view, question) = (upstream.view().0, permit.question());
        let (answers, failures) = (self.answers.flushes(), self.failures.flushes());
        let answer = match self.upstreams.resolve(upstream, permit, asking.ports, asking.deadline).await {
            Ok(answer) => answer,
            Err(error) => {
                let bogus = matches!(error, UpstreamError::Bogus { .. });
                if bogus {
                    self.answers.remove(view, question);
                }
                let failure = Failure {
                    reason: if bogus { Reason::Dnssec } else { Reason::Upstream },
                    ede: error.ede(),
                    why: error.to_string().into(),
                    upstream: Some(Arc::clone(upstream.name())),
                    remembered: false,
                };
                if error.is_of_upstream() {
                    let (remembered, weight) = (failure.clone().remembered(), failure.weight());
                    self.failures.put(view, question, remembered, weight, failures, self.clock.tick());
                }
                return Err(failure);
            }
        };
        self.failures.remove(view, question);
        let now = self.clock.tick();
        let told_until = self.terms.told_until(answer.ttl(), now);
        if !answer.may_be_kept() {
            // It takes the place of what was known all the same.
            self.answers.remove(view, question);
            let told_until = told_until.min(now + REFUSAL_TTL.duration());
            let source = Source { origin: asking.id, cache: CacheUse::Miss, known: None, lasts: false };
            return Ok(Resolved { answer, told_until, source });
        }
        let known = Arc::new(Known { answer, told_until, origin: asking.id, last: Mutex::default() });
        self.answers.put(view, question, Arc::clone(&known), answers);
        Ok(Resolved::of(known, CacheUse::Miss))
    }
}

impl Resolved {
    /// An answer that is known.
    fn of(known: Arc<Known<Option<RecordId>, Prepared>>, cache: CacheUse) -> Self {
        let (answer, told_until, origin) = (known.answer.clone(), known.told_until, known.origin);
        Self { answer, told_until, source: Source { origin, cache, known: Some(known), lasts: true } }
    }
}

/// Whether what the fast path permitted would be permitted now: by the same policy, before any of what permits it ends.
fn still_decides(rulebook: &Rulebook, permit: &Permit, now: Wall) -> bool {
    Arc::ptr_eq(permit.policy(), &rulebook.policy) && permit.ends().is_none_or(|ends| now < ends)
}

/// The proof of a chain of two parts: that of both, where both have one.
fn joined(first: Option<Arc<Proof>>, second: Option<Arc<Proof>>) -> Option<Arc<Proof>> {
    let (first, second) = (first?, second?);
    let answers = first.answers.iter().chain(&second.answers).cloned().collect();
    Some(Arc::new(Proof { answers, authority: second.authority.clone() }))
}

/// The name at which the chain from the question breaks off, where it does: a CNAME whose target has neither the
/// asked type nor a negative answer's SOA.
fn open_end(answer: &Answer, question: &Question) -> Option<crate::name::Name> {
    if answer.rcode != Rcode::NOERROR || answer.soa.is_some() || question.kind == crate::record::RecordType::CNAME {
        return None;
    }
    let (end, passed) = answer.chain(&question.name);
    let complete = answer.records.iter().any(|record| record.name == end && record.kind == question.kind);
    (!passed.is_empty() && !complete).then_some(end)
}

impl From<NotGranted> for Failure {
    fn from(refused: NotGranted) -> Self {
        match refused {
            NotGranted::Full(full) => Self::new(Reason::Budget, ExtendedError::OTHER, full.as_str()),
            NotGranted::Firewall(name, why) => {
                Self::new(Reason::Firewall, ExtendedError::NOT_READY, format!("firewall {name}: {why}"))
            }
            NotGranted::Journal(why) => {
                Self::new(Reason::Firewall, ExtendedError::NOT_READY, format!("the journal cannot be written: {why}"))
            }
            NotGranted::Audit => {
                Self::new(Reason::Audit, ExtendedError::NOT_READY, "the grant's record cannot be written")
            }
            NotGranted::Busy | NotGranted::Stale => {
                Self::new(Reason::Rate, ExtendedError::NOT_READY, "too many answers wait for the firewall")
            }
        }
    }
}
