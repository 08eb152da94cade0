//! Reply: bytes and record sealed together. The bytes leave an [`Outbox`] only after its records were handed
//! to the kernel (I7); an answer with addresses is told only from a [`Prepared`], and that is made only from a
//! [`crate::grant::Granted`].

mod own;
mod prepared;

use std::ops::Range;
use std::sync::Arc;

pub use self::prepared::Prepared;
use crate::audit::{
    AuditError, CacheUse, Event, Outcome, QueryEvent, RecordId, Rendered, Ruled, Shadow, Shard, Stated, Statement,
    Transport,
};
use crate::cache::{Covered, Local, Until};
use crate::gate::candidate::Live;
use crate::gate::cookie::Proof;
use crate::gate::designation::Designation;
use crate::gate::{Arrival, Candidate, Rulebook, STREAM_IDLE};
use crate::grant::answer_ttl;
use crate::metric::{Cached, Path, Sample, SegmentSlot, Tally};
use crate::policy::{Asker, Judged, Own, Reason, Refusal, Segment, Shown};
use crate::record::{ExtendedError, Rcode, Record, RecordType};
use crate::time::{Clock, Now, Tick, Ttl};
use crate::wire::{self, Fault, Malformed, Query, Written};

/// What became of a query.
#[derive(Clone, Debug)]
pub enum Conclusion {
    /// It is told.
    Told {
        /// What, and for how long.
        covered: Covered<Prepared>,
        /// What the cache did for it.
        cache: CacheUse,
    },
    /// It asks for our encrypted doors.
    Designated(Arc<Designation>),
    /// This node answers it itself.
    Answered(Own),
    /// The policy refuses it.
    Refused(Refusal),
    /// The client is in no segment.
    NoSegment,
    /// Something failed: SERVFAIL.
    Failed(Failure),
}

/// Why a query failed closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The record's reason.
    pub reason: Reason,
    /// What the client is told.
    pub ede: ExtendedError,
    /// The record's `why`.
    pub why: Box<str>,
    /// The upstream that failed.
    pub upstream: Option<Arc<str>>,
    /// It failed before, and was not tried again.
    pub remembered: bool,
}

impl Failure {
    /// A failure that is no upstream's: the record says what the client is told.
    #[must_use]
    pub fn new(reason: Reason, code: u16, text: impl Into<Box<str>>) -> Self {
        let ede = ExtendedError::new(code, text);
        Self { reason, why: ede.text.clone(), ede, upstream: None, remembered: false }
    }

    /// The same for those who ask again. RFC 8914 §4.14: "The resolver is returning the SERVFAIL RCODE from its cache."
    ///
    /// What is bogus stays so: the client is told the same.
    pub(super) fn remembered(self) -> Self {
        let code = if self.reason == Reason::Dnssec { self.ede.code } else { ExtendedError::CACHED_ERROR };
        Self { ede: ExtendedError::new(code, self.ede.text), remembered: true, ..self }
    }

    /// About how many bytes it takes.
    pub(super) fn weight(&self) -> usize {
        size_of::<Self>() + self.why.len() + self.ede.text.len()
    }
}

/// What one thread seals its replies with: those that it told last, and the batch that is being sealed.
#[derive(Debug)]
pub struct Outbox<R> {
    pub(super) near: Near,
    pub(super) batch: Batch<R>,
}

/// What this thread told last, to whom, and who its clients are.
pub(super) type Near = Local<Prepared>;

/// The replies of one batch and their records, with the thread's shard of the log and its tally.
#[derive(Debug)]
pub(super) struct Batch<R> {
    shard: Shard,
    tally: Tally,
    bytes: Vec<u8>,
    replies: Vec<(Range<usize>, R)>,
    samples: Vec<Sample>,
    /// The last reading of the clock, and how many replies were sealed since.
    read: (Tick, usize),
    /// The last batch could not be recorded: said once, not once a batch.
    silenced: bool,
}

/// A batch whose records are in the kernel: its bytes may leave.
#[derive(Debug)]
pub struct Released<'a, R> {
    outbox: &'a mut Outbox<R>,
}

impl<R> Released<'_, R> {
    /// Each reply with its route.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &R)> + Clone {
        let Batch { bytes, replies, .. } = &self.outbox.batch;
        replies.iter().filter_map(|(range, route)| Some((bytes.get(range.clone())?, route)))
    }
}

impl<R> Drop for Released<'_, R> {
    fn drop(&mut self) {
        self.outbox.batch.clear();
    }
}

/// What sealing a reply takes from its surroundings.
pub(super) struct Sealing<'a> {
    /// The record's id.
    pub(super) id: RecordId,
    /// From whom, how, when.
    pub(super) arrival: &'a Arrival,
    /// Who asks, by `rulebook`.
    pub(super) asker: Option<Asker>,
    /// What describes the verdict.
    pub(super) rulebook: &'a Rulebook,
    /// The end of its latency, the start of its TTL.
    pub(super) now: Now,
    /// Who concluded it.
    pub(super) path: Path,
}

/// What became of a query, as its record says it.
struct Told<'a> {
    outcome: Outcome,
    reason: Reason,
    rcode: Option<Rcode>,
    written: Written,
    /// What the query's cookie proves, where it shows the server's half.
    proof: Option<Proof>,
    cache: Option<CacheUse>,
    ttl: Ttl,
    open_until: Option<Tick>,
    /// Of a prepared reply: what is said of it instead of the fields below.
    rendered: Option<&'a Rendered>,
    enforced: bool,
    /// What a candidate says of a prepared reply's answer.
    judged: Option<&'a Judged>,
    answers: &'a [Record],
    rule: Option<Ruled<'a>>,
    ede: Option<&'a ExtendedError>,
    why: Option<&'a str>,
    upstream: Option<&'a str>,
}

/// Replies per reading of the clock.
const PER_READING: usize = 8;

/// Replies that wait for the disk together, of one thread.
const TOGETHER: usize = 1024;

const SILENCE: Written = Written { len: 0, truncated: false, flags: 0, options: 0 };

impl<R> Outbox<R> {
    /// An empty outbox over a shard.
    #[must_use]
    pub fn new(shard: Shard, tally: Tally) -> Self {
        let batch = Batch {
            shard,
            tally,
            bytes: Vec::new(),
            replies: Vec::new(),
            samples: Vec::new(),
            read: (Tick(0), 0),
            silenced: false,
        };
        Self { near: Near::default(), batch }
    }

    /// The id of the record of a packet that was just received.
    pub fn reserve(&mut self) -> RecordId {
        self.batch.shard.reserve()
    }

    /// Whether nothing waits to be recorded.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.batch.samples.is_empty()
    }

    /// The octets of the replies that wait to be recorded.
    #[must_use]
    pub const fn size(&self) -> usize {
        self.batch.bytes.len()
    }

    /// Whether more may be sealed before this is released: its records will wait for the disk, and what came meanwhile
    /// waits with them.
    #[must_use]
    pub const fn takes_more(&self) -> bool {
        self.batch.shard.waits() && self.batch.samples.len() < TOGETHER
    }

    /// Writes the batch's records, in one write; then its bytes may leave.
    ///
    /// # Errors
    /// The records could not be written: the batch is dropped, its clients hear nothing.
    pub fn release(&mut self) -> Result<Released<'_, R>, AuditError> {
        let batch = &mut self.batch;
        let committed = batch.shard.commit();
        for mut sample in batch.samples.drain(..) {
            if committed.is_err() {
                sample = Sample {
                    verdict: Outcome::Error as u8,
                    reason: Reason::Audit as u8,
                    refused: true,
                    response: None,
                    cache: None,
                    ..sample
                };
            }
            batch.tally.count(&sample);
        }
        batch.read.1 = 0;
        let before = std::mem::replace(&mut batch.silenced, committed.is_err());
        match committed {
            Ok(()) => {
                if before {
                    tracing::info!("the query log can be written again; answers are sent again");
                }
                Ok(Released { outbox: self })
            }
            Err(error) => {
                batch.clear();
                if !before {
                    tracing::error!(%error, "no record, no answer: clients hear nothing until the query log can be written");
                }
                Err(error)
            }
        }
    }
}

impl<R> Batch<R> {
    fn clear(&mut self) {
        self.bytes.clear();
        self.replies.clear();
    }

    /// The time at which a packet's reply is sealed. The clock is read for the first reply of a batch and for every
    /// eighth: a reading takes as long as looking up an answer does, eight replies take a few microseconds.
    pub(super) fn now(&mut self, clock: &Clock, arrival: &Arrival) -> Now {
        let (tick, sealed) = &mut self.read;
        if *sealed % PER_READING == 0 {
            *tick = clock.tick();
        }
        *sealed += 1;
        let tick = arrival.at.tick.max(*tick);
        Now { tick, wall: arrival.at.wall_at(tick) }
    }

    /// Seals the reply to a query that could be read.
    pub(super) fn seal(
        &mut self,
        sealing: &Sealing<'_>,
        query: &Query<'_>,
        conclusion: &Conclusion,
        route: impl FnOnce() -> R,
    ) {
        let policy = &sealing.rulebook.policy;
        let told = match conclusion {
            Conclusion::Told { covered, cache } => {
                return self.tell(sealing, query, (&covered.reply, covered.until), *cache, route);
            }
            Conclusion::Designated(designation) => return self.designate(sealing, query, designation, route),
            Conclusion::Answered(own) => return self.answer(sealing, query, own, route),
            Conclusion::Refused(refusal) => {
                let rcode = match refusal.shown {
                    Shown::NxDomain => Rcode::NXDOMAIN,
                    Shown::NoData => Rcode::NOERROR,
                    Shown::Refused => Rcode::REFUSED,
                };
                let rule = refusal.rule.map(|rule| policy.rule(rule).into());
                let ede = policy.describe(refusal);
                // Which name it is, and which list says so, is nowhere else in the record.
                let why = (refusal.reason == Reason::Special).then_some(&*ede.text);
                Told { rule, why, ..Told::refusal(Outcome::Deny, refusal.reason, rcode, ede) }
            }
            Conclusion::NoSegment => {
                let ede = policy.describe_no_segment(sealing.arrival.is_unnamed(policy));
                Told::refusal(Outcome::Deny, Reason::NoSegment, Rcode::REFUSED, ede)
            }
            Conclusion::Failed(failure) => Told {
                why: Some(&failure.why),
                cache: failure.remembered.then_some(CacheUse::Failure),
                upstream: failure.upstream.as_deref(),
                ..Told::refusal(Outcome::Error, failure.reason, Rcode::SERVFAIL, &failure.ede)
            },
        };
        let start = self.bytes.len();
        let rcode = told.rcode.unwrap_or(Rcode::SERVFAIL);
        let written = wire::write_refusal(&mut self.bytes, &query.echo, rcode, told.ede, limit(sealing, query));
        let (written, proof) = self.extend(written, &query.echo, sealing);
        self.record(sealing, Some(query.echo.id), Some((query.name, query.kind)), &Told { written, proof, ..told });
        self.replies.push((start..self.bytes.len(), route()));
    }

    /// Seals an answer that is granted.
    pub(super) fn tell(
        &mut self,
        sealing: &Sealing<'_>,
        query: &Query<'_>,
        (prepared, until): (&Prepared, Until),
        cache: CacheUse,
        route: impl FnOnce() -> R,
    ) {
        let ttl = answer_ttl(until.told, sealing.now.tick);
        let start = self.bytes.len();
        let template = match &prepared.signed {
            Some(signed) if query.echo.edns.is_some_and(|edns| edns.dnssec_ok) => signed,
            _ => &prepared.template,
        };
        let written = template.write(&mut self.bytes, &query.echo, ttl, limit(sealing, query));
        let (written, proof) = self.extend(written, &query.echo, sealing);
        let told = Told {
            rcode: Some(prepared.template.rcode()),
            written,
            proof,
            cache: Some(cache),
            ttl,
            open_until: until.open(),
            rendered: Some(&prepared.rendered),
            enforced: prepared.enforced,
            judged: prepared.judged.as_deref(),
            ..Told::nothing(prepared.outcome, prepared.reason)
        };
        self.record(sealing, Some(query.echo.id), Some((query.name, query.kind)), &told);
        self.replies.push((start..self.bytes.len(), route()));
    }

    /// Seals the reply to what is not a query, or records the silence that it gets.
    pub(super) fn seal_malformed(
        &mut self,
        sealing: &Sealing<'_>,
        malformed: &Malformed<'_>,
        route: impl FnOnce() -> R,
    ) {
        let start = self.bytes.len();
        let mut told = Told { why: Some(malformed.why.as_str()), ..Told::nothing(Outcome::Deny, Reason::Malformed) };
        // A stranger's junk gets no reply: nothing here is worth reflecting off.
        let forwarder = || sealing.rulebook.policy.forwarder_at(sealing.arrival.sender());
        if let Some((rcode, echo)) = malformed.answer.as_ref()
            && (sealing.asker.is_some() || forwarder().is_some())
        {
            // What a subnet is worth is not known yet.
            let echo = &wire::Echo { subnet: None, ..*echo };
            let mut rcode = *rcode;
            if malformed.why == Fault::CookieAlone {
                (told.outcome, told.reason) = (Outcome::Allow, Reason::Local);
                // RFC 7873 §5.4, of a wrong server cookie.
                let proof = cookie(sealing, echo).and_then(|(_, proof)| proof);
                rcode = if proof == Some(Proof::Invalid) { Rcode::BADCOOKIE } else { rcode };
            }
            told.written = wire::write_refusal(&mut self.bytes, echo, rcode, None, wire::UDP_SIZE_PLAIN.into());
            (told.written, told.proof) = self.extend(told.written, echo, sealing);
            told.rcode = Some(rcode);
            self.replies.push((start..self.bytes.len(), route()));
        }
        let asked = malformed.name.zip(malformed.kind);
        self.record(sealing, malformed.id, asked, &told);
    }

    /// Adds to the reply just written for whom it is, where its query says so, the cookie that it has, and what only
    /// streams are told; what the query's cookie proves.
    fn extend(&mut self, written: Written, echo: &wire::Echo<'_>, sealing: &Sealing<'_>) -> (Written, Option<Proof>) {
        let written = match echo.subnet {
            Some(_) => wire::echo_subnet(&mut self.bytes, written, echo),
            None => written,
        };
        let (written, proof) = match cookie(sealing, echo) {
            Some((server, proof)) => (wire::echo_cookie(&mut self.bytes, written, echo, server), proof),
            None => (written, None),
        };
        let options = match sealing.arrival.transport {
            Transport::Udp => return (written, proof),
            Transport::Tcp => wire::StreamOptions { idle: Some(STREAM_IDLE), encrypted: false },
            Transport::Dot => wire::StreamOptions { idle: Some(STREAM_IDLE), encrypted: true },
            // HTTP and QUIC keep their connections by their own rules.
            Transport::Doh | Transport::Doq | Transport::Doh3 => wire::StreamOptions { idle: None, encrypted: true },
        };
        (wire::extend(&mut self.bytes, written, echo, options), proof)
    }

    fn record(&mut self, sealing: &Sealing<'_>, qid: Option<u16>, asked: Option<(&[u8], RecordType)>, told: &Told<'_>) {
        let Sealing { id, arrival, asker, rulebook, now, path } = sealing;
        let policy = &rulebook.policy;
        let segment = asker.map(|asker| policy.segment(asker));
        let client = arrival.client();
        let micros = now.tick.0.saturating_sub(arrival.at.tick.0);
        let shadow = rulebook.candidate.as_ref().and_then(|candidate| shadow(candidate, arrival, segment, asked, told));
        let event = QueryEvent {
            at: arrival.at.wall,
            client: client.ip(),
            port: client.port(),
            transport: arrival.transport,
            asked_by: match asker {
                Some(asker) => policy.forwarder(*asker),
                None => policy.forwarder_at(arrival.sender()),
            }
            .map(|name| &**name),
            certificate: asker.and_then(|asker| policy.certificate(asker)).map(|name| &**name),
            cookie: told.proof.map(Proof::as_str),
            segment: segment.map(|segment| (&*segment.name, &*segment.tags_json)),
            labels: sealing.asker.map_or("", |asker| rulebook.policy.labels(asker)),
            qid,
            stated: match told.rendered {
                Some(rendered) => Stated::Rendered(rendered),
                None => Stated::Plain(Statement {
                    qname: asked.map(|(name, _)| name),
                    qtype: asked.map(|(_, kind)| kind),
                    outcome: told.outcome,
                    enforced: told.enforced,
                    reason: told.reason,
                    rule: told.rule,
                    policy: policy.revision(),
                    rcode: told.rcode,
                    answers: told.answers,
                    services: &[],
                    ede: told.ede,
                    why: told.why,
                    upstream: told.upstream,
                    origin: None,
                }),
            },
            flags: told.written.flags,
            bytes: told.written.len,
            cache: told.cache,
            ttl: told.ttl.seconds(),
            until: told.open_until.map(|until| now.wall_at(until)),
            shadow: shadow.as_ref(),
            latency_us: micros,
        };
        self.samples.push(Sample {
            segment: asker.map_or(SegmentSlot::NONE, |asker| rulebook.slot(asker)),
            verdict: told.outcome as u8,
            reason: told.reason as u8,
            refused: told.outcome != Outcome::Allow,
            response: told.rcode,
            transport: arrival.transport as u8,
            path: *path,
            cache: match told.cache {
                Some(CacheUse::Hit | CacheUse::Open) if told.outcome == Outcome::Allow => Some(Cached::Hit),
                Some(CacheUse::Miss) if told.outcome == Outcome::Allow => Some(Cached::Miss),
                Some(CacheUse::Stale) => Some(Cached::Stale),
                Some(CacheUse::Failure) => Some(Cached::Failure),
                _ => None,
            },
            dissent: shadow.as_ref().map(|shadow| shadow.dissent as u8),
            micros,
        });
        self.shard.append(*id, &Event::Query(event));
    }
}

/// What a candidate says otherwise of what is told; nothing of a message that is no query.
#[cold]
fn shadow<'a>(
    candidate: &'a Candidate,
    arrival: &Arrival,
    segment: Option<&'a Segment>,
    asked: Option<(&[u8], RecordType)>,
    told: &Told<'a>,
) -> Option<Shadow<'a>> {
    let asked = asked.filter(|_| told.reason != Reason::Malformed)?;
    let Told { outcome, enforced, reason, rendered, judged, .. } = *told;
    candidate.judge(arrival, asked, &Live { outcome, enforced, reason, segment, inspected: rendered.is_some(), judged })
}

/// The most octets that may answer, before what [`Batch::extend`] adds of the query's own.
fn limit(sealing: &Sealing<'_>, query: &Query<'_>) -> usize {
    let limit = match sealing.arrival.transport {
        Transport::Udp => query.echo.udp_limit(),
        Transport::Tcp | Transport::Dot | Transport::Doh | Transport::Doq | Transport::Doh3 => wire::TCP_LIMIT,
    };
    limit - wire::subnet_room(&query.echo) - wire::cookie_room(&query.echo)
}

/// The server's half of the query's cookie, where it has one and we give some, and what it proves.
fn cookie(sealing: &Sealing<'_>, echo: &wire::Echo<'_>) -> Option<(wire::ServerCookie, Option<Proof>)> {
    let (secrets, shown) = (sealing.rulebook.cookies.as_ref(), echo.cookie?);
    secrets.map(|secrets| secrets.answer(shown, sealing.arrival.hearer(), sealing.now.wall))
}

impl<'a> Told<'a> {
    const fn nothing(outcome: Outcome, reason: Reason) -> Self {
        Self {
            outcome,
            reason,
            rcode: None,
            written: SILENCE,
            proof: None,
            cache: None,
            ttl: Ttl::ZERO,
            open_until: None,
            rendered: None,
            enforced: true,
            judged: None,
            answers: &[],
            rule: None,
            ede: None,
            why: None,
            upstream: None,
        }
    }

    /// A reply without records, still to be written.
    const fn refusal(outcome: Outcome, reason: Reason, rcode: Rcode, ede: &'a ExtendedError) -> Self {
        Self { rcode: Some(rcode), ede: Some(ede), ..Self::nothing(outcome, reason) }
    }
}
