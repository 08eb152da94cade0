//! One validation under way: what it was given, what it asks, and how much it may cost.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::future::ready;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::stream::{Stream, once};
use hickory_net::NetError;
use hickory_net::proto::ProtoError;
use hickory_net::proto::dnssec::PublicKey;
use hickory_net::proto::dnssec::rdata::DNSSECRData;
use hickory_net::proto::op::{DnsRequest, DnsResponse, Message, Query};
use hickory_net::proto::rr::{Name as HickoryName, RData, RecordType as Kind};
use hickory_net::runtime::TokioRuntimeProvider;
use hickory_net::xfer::DnsHandle;
use tokio::time::Instant;

use super::keys::Keys;
use super::link::{Link, ours};
use super::reply::asked_for;
use crate::name::Name;
use crate::record::{Question, RecordType};
use crate::time::Clock;
use crate::upstream::failure::UpstreamError;
use crate::upstream::inflight::Inflight;
use crate::upstream::{Ports, Upstream};

/// Questions for keys and delegations in one validation: a name of twenty labels in signed zones needs forty.
const MAX_QUESTIONS: u32 = 64;
/// Signatures in all that one validation reads; each is tried with at most two keys of its tag. A chain through three zones
/// of four labels reads some thirty.
const MAX_SIGNATURES: usize = 96;
/// Signatures of one RRset: two algorithms while two keys of each are in use make four.
const MAX_PER_SET: usize = 8;
/// NSEC3 records of one message: a denial needs three.
const MAX_NSEC3: usize = 8;
/// Keys of one message.
const MAX_KEYS: usize = 16;
/// Octets of a key. RFC 3110 §2: "For interoperability, the exponent and modulus are each limited to 4096 bits in length";
/// exponents have five octets at most, where one is said of what length. The time that a signature takes grows with the
/// square of it.
const MAX_KEY: usize = 1 + 5 + 512;

tokio::task_local! {
    /// The validation that this task is at.
    pub(super) static WORK: Work;
}

/// See the module.
pub(super) struct Work {
    /// The link under proof: the validator is told it when it asks.
    given: RefCell<Option<(Question, Message)>>,
    /// Keys are asked for at and above these names.
    names: Vec<Name>,
    questions: Cell<u32>,
    signatures: Cell<usize>,
    /// What was asked, or known from before.
    used: RefCell<Vec<Question>>,
    /// The first question of this link that had no answer.
    failure: RefCell<Option<UpstreamError>>,
    /// When it has to end.
    deadline: Instant,
}

/// More of something than any honest zone has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Excess {
    Signatures,
    SignaturesOfSet,
    Nsec3,
    Keys,
    Key,
}

impl fmt::Display for Excess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signatures => write!(f, "more than {MAX_SIGNATURES} signatures would have to be read"),
            Self::SignaturesOfSet => write!(f, "a record set has more than {MAX_PER_SET} signatures"),
            Self::Nsec3 => write!(f, "a reply has more than {MAX_NSEC3} NSEC3 records"),
            Self::Keys => write!(f, "a reply has more than {MAX_KEYS} keys"),
            Self::Key => f.write_str("a key is longer than one of RSA with 4,096 bits"),
        }
    }
}

impl Work {
    /// The proof of `links`, which `response` holds.
    ///
    /// # Errors
    /// [`Excess`], before anything was computed.
    pub(super) fn new(response: &DnsResponse, links: &[Link], deadline: Instant) -> Result<Self, Excess> {
        let work = Self {
            given: RefCell::default(),
            names: links.iter().map(|link| link.name.clone()).collect(),
            questions: Cell::new(0),
            signatures: Cell::new(0),
            used: RefCell::default(),
            failure: RefCell::default(),
            deadline,
        };
        work.count(response)?;
        Ok(work)
    }

    /// Puts a link under proof.
    pub(super) fn give(&self, link: &Link) {
        let question = Question { name: link.name.clone(), kind: RecordType(link.kind()) };
        *self.given.borrow_mut() = Some((question, link.message.clone()));
        *self.failure.borrow_mut() = None;
    }

    /// What its outcome rests on.
    pub(super) fn used(&self) -> Vec<Question> {
        self.used.take()
    }

    /// Why a question for keys had no answer, where one had none.
    pub(super) fn failure(&self) -> Option<UpstreamError> {
        self.failure.borrow().clone()
    }

    /// Counts what a message would have to be computed for.
    fn count(&self, message: &Message) -> Result<(), Excess> {
        self.signatures.set(self.signatures.get() + weigh(message)?);
        if self.signatures.get() > MAX_SIGNATURES { Err(Excess::Signatures) } else { Ok(()) }
    }

    /// Takes one of the questions that this may ask; why not, where it may not.
    fn may_ask(&self, question: &Question) -> Result<Instant, &'static str> {
        if ![RecordType::DNSKEY, RecordType::DS, RecordType::NS].contains(&question.kind) {
            return Err("only keys and delegations are asked for");
        }
        if !self.names.iter().any(|name| name.is_within(&question.name)) {
            return Err("only names above those of the answer are asked for");
        }
        self.used.borrow_mut().push(question.clone());
        self.questions.set(self.questions.get() + 1);
        if self.questions.get() > MAX_QUESTIONS {
            Err("too many keys would have to be asked for")
        } else {
            Ok(self.deadline)
        }
    }
}

/// Exchanges under way, each with how often everything had been forgotten when it began.
type UnderWay = Inflight<(u64, Question), Arc<[u8]>>;

/// How many signatures a message has, where it has no more of anything than an honest one.
fn weigh(message: &Message) -> Result<usize, Excess> {
    let mut sets: HashMap<(&HickoryName, Kind), usize> = HashMap::new();
    let (mut signatures, mut nsec3, mut keys, mut longest) = (0, 0, 0, 0);
    for record in message.answers.iter().chain(&message.authorities) {
        match &record.data {
            RData::DNSSEC(DNSSECRData::NSEC3(_)) => nsec3 += 1,
            RData::DNSSEC(DNSSECRData::DNSKEY(key)) => {
                keys += 1;
                longest = longest.max(key.public_key().public_bytes().len());
            }
            _ if record.record_type() == Kind::RRSIG => {
                signatures += 1;
                let covered = super::link::covered(record).unwrap_or(Kind::ZERO);
                *sets.entry((&record.name, covered)).or_default() += 1;
            }
            _ => {}
        }
    }
    match () {
        () if sets.values().any(|signatures| *signatures > MAX_PER_SET) => Err(Excess::SignaturesOfSet),
        () if nsec3 > MAX_NSEC3 => Err(Excess::Nsec3),
        () if keys > MAX_KEYS => Err(Excess::Keys),
        () if longest > MAX_KEY => Err(Excess::Key),
        () if signatures > MAX_SIGNATURES => Err(Excess::Signatures),
        () => Ok(signatures),
    }
}

/// What the validator asks: the link under proof, what was asked before, the upstream.
#[derive(Clone)]
pub(super) struct Asker {
    pub(super) upstream: Arc<Upstream>,
    pub(super) ports: Arc<Ports>,
    pub(super) keys: Arc<Keys>,
    pub(super) inflight: Arc<UnderWay>,
    pub(super) clock: Clock,
}

impl DnsHandle for Asker {
    type Response = Pin<Box<dyn Stream<Item = Result<DnsResponse, NetError>> + Send>>;
    type Runtime = TokioRuntimeProvider;

    fn send(&self, request: DnsRequest) -> Self::Response {
        let asked = request.queries.first();
        let asked = asked.and_then(|query| {
            let question = Question { name: ours(query.name())?, kind: RecordType(query.query_type().into()) };
            Some((query.clone(), question))
        });
        let Some((query, question)) = asked else {
            return Box::pin(once(ready(Err(NetError::from("a question that cannot be asked")))));
        };
        let given = WORK
            .try_with(|work| work.given.borrow_mut().take_if(|(of, _)| *of == question).map(|(_, message)| message));
        if let Ok(Some(message)) = given {
            return Box::pin(once(ready(DnsResponse::from_message(message).map_err(NetError::from))));
        }
        let asker = self.clone();
        Box::pin(once(async move { asker.ask(query, question).await }))
    }
}

impl Asker {
    async fn ask(self, query: Query, question: Question) -> Result<DnsResponse, NetError> {
        let no_work = || NetError::from("there is no validation under way");
        let deadline = WORK.try_with(|work| work.may_ask(&question)).map_err(|_| no_work())?.map_err(NetError::from)?;
        if let Some(known) = self.keys.get(&question, self.clock.tick()) {
            return DnsResponse::from_buffer(known.to_vec()).map_err(NetError::from);
        }
        // What was asked before everything was forgotten is not shared, nor kept.
        let key = (self.keys.clears(), question);
        let fetched = self.inflight.join(&key, deadline, || self.fetch(&query, &key, deadline)).await;
        let message = match fetched {
            Ok(message) => message,
            Err(error) => {
                let text = error.to_string();
                let _kept = WORK.try_with(|work| work.failure.borrow_mut().get_or_insert(error).to_string());
                return Err(NetError::from(text));
            }
        };
        let response = DnsResponse::from_buffer(message.to_vec()).map_err(NetError::from)?;
        let counted = WORK.try_with(|work| work.count(&response)).map_err(|_| no_work())?;
        counted.map_err(|excess| NetError::from(excess.to_string()))?;
        Ok(response)
    }

    /// Asks the upstream; what was asked for is kept.
    async fn fetch(
        &self,
        query: &Query,
        (clears, question): &(u64, Question),
        deadline: Instant,
    ) -> Result<Arc<[u8]>, UpstreamError> {
        let reply = self.upstream.exchange(question, &self.ports, deadline).await?;
        let bogus = |error: ProtoError| UpstreamError::Bogus {
            name: question.name.clone(),
            why: format!("what is said of its keys cannot be read: {error}").into(),
        };
        let response = DnsResponse::from_buffer(reply.message).map_err(bogus)?;
        let told = asked_for(&response, query);
        // What is known is not counted again: so what is too much is not kept.
        weigh(&told)
            .map_err(|excess| UpstreamError::Bogus { name: question.name.clone(), why: excess.to_string().into() })?;
        let message: Arc<[u8]> = told.to_vec().map_err(bogus)?.into();
        self.keys.put(question.clone(), Arc::clone(&message), self.clock.tick(), reply.answer.ttl(), *clears);
        Ok(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_net::proto::dnssec::rdata::{DNSKEY, NSEC3, RRSIG, SigInput};
    use hickory_net::proto::dnssec::{Algorithm, Nsec3HashAlgorithm, PublicKeyBuf};
    use hickory_net::proto::op::OpCode;
    use hickory_net::proto::rr::{Record, SerialNumber};
    use std::str::FromStr;

    fn signature(of: Kind) -> RData {
        let input = SigInput {
            type_covered: of,
            algorithm: Algorithm::ECDSAP256SHA256,
            num_labels: 2,
            original_ttl: 60,
            sig_expiration: SerialNumber::new(2),
            sig_inception: SerialNumber::new(1),
            key_tag: 1,
            signer_name: HickoryName::root(),
        };
        RData::DNSSEC(DNSSECRData::RRSIG(RRSIG::from_sig(input, vec![0; 64])))
    }

    fn response(records: impl IntoIterator<Item = (String, RData)>) -> DnsResponse {
        let mut message = Message::response(1, OpCode::Query);
        for (name, data) in records {
            message.add_answer(Record::from_rdata(HickoryName::from_str(&name).unwrap(), 60, data));
        }
        DnsResponse::from_message(message).unwrap()
    }

    fn work(response: &DnsResponse) -> Result<Work, Excess> {
        Work::new(response, &[], Instant::now())
    }

    #[test]
    fn what_costs_is_counted_before_it_is_paid_for() {
        let name = |number: usize| format!("n{number}.example.");
        let (nsec3, key) = (
            NSEC3::new(Nsec3HashAlgorithm::SHA1, false, 1, vec![], vec![0; 20], [Kind::A]),
            DNSKEY::new(true, true, false, PublicKeyBuf::new(vec![1; 64], Algorithm::ECDSAP256SHA256)),
        );
        let (nsec3, key) = (RData::DNSSEC(DNSSECRData::NSEC3(nsec3)), RData::DNSSEC(DNSSECRData::DNSKEY(key)));
        let of_one = |count: usize| response((0..count).map(|_| (name(0), signature(Kind::A))));
        let of_many = |count: usize| response((0..count).map(|number| (name(number), signature(Kind::A))));
        let denials = |count: usize| response((0..count).map(|number| (name(number), nsec3.clone())));
        let keys = |count: usize| response((0..count).map(|_| (name(0), key.clone())));
        let long = |length: usize| {
            let key = DNSKEY::new(true, true, false, PublicKeyBuf::new(vec![1; length], Algorithm::RSASHA256));
            response([(name(0), RData::DNSSEC(DNSSECRData::DNSKEY(key)))])
        };
        for (most, excess, made) in [
            (MAX_PER_SET, Excess::SignaturesOfSet, &of_one as &dyn Fn(usize) -> DnsResponse),
            (MAX_SIGNATURES, Excess::Signatures, &of_many),
            (MAX_NSEC3, Excess::Nsec3, &denials),
            (MAX_KEYS, Excess::Keys, &keys),
            (MAX_KEY, Excess::Key, &long),
        ] {
            assert!(work(&made(most)).is_ok(), "{excess}");
            assert_eq!(work(&made(most + 1)).err(), Some(excess));
        }
        // Over all messages of one validation.
        let work = work(&of_many(MAX_SIGNATURES)).unwrap();
        assert_eq!(work.count(&of_many(1)), Err(Excess::Signatures));
    }

    #[test]
    fn only_keys_above_the_answer_are_asked_for_and_not_for_ever() {
        let question = |name: &str, kind| Question { name: Name::parse(name).unwrap(), kind };
        let mut work = work(&response([])).unwrap();
        work.names = vec![Name::parse("www.example.org").unwrap()];
        for (name, kind, expected) in [
            ("www.example.org", RecordType::DS, true),
            ("example.org", RecordType::DNSKEY, true),
            (".", RecordType::DNSKEY, true),
            ("org", RecordType::NS, true),
            ("org", RecordType::A, false),
            ("x.www.example.org", RecordType::DS, false),
            ("evil.example", RecordType::DS, false),
        ] {
            assert_eq!(work.may_ask(&question(name, kind)).is_ok(), expected, "{name} {kind}");
        }
        for _ in 4..MAX_QUESTIONS {
            assert!(work.may_ask(&question("org", RecordType::DS)).is_ok());
        }
        assert!(work.may_ask(&question("org", RecordType::DS)).is_err());
    }
}
