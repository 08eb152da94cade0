//! The DNS messages that a record speaks of, made again.

use super::Query;
use crate::audit::records::Told;
use crate::name::Name;
use crate::record::{ExtendedError, Question, Rcode, Record, read_data};
use crate::time::Ttl;
use crate::wire::{Echo, Edns, TCP_LIMIT, Template, UDP_SIZE, write_refusal};

/// Header flags as records name them (RFC 1035 §4.1.1, RFC 4035 §3).
const FLAGS: [(&str, u16); 6] = [("AA", 0x0400), ("TC", TC), ("RD", RD), ("RA", 0x0080), ("AD", 0x0020), ("CD", CD)];
const QR: u16 = 0x8000;
const TC: u16 = 0x0200;
const RD: u16 = 0x0100;
const CD: u16 = 0x0010;

/// An OPT record without options: version 0, datagrams of 1232 octets (RFC 6891 §6.1.2).
const OPT: &[u8; 11] = b"\0\0\x29\x04\xd0\0\0\0\0\0\0";

/// Both messages of a query.
pub(super) struct Messages {
    /// `None` of a packet that had not even an id.
    pub(super) query: Option<Vec<u8>>,
    /// `None` where nothing was sent.
    pub(super) response: Option<Vec<u8>>,
    /// Records of the answer section that are not in the response.
    pub(super) omitted: usize,
}

impl Messages {
    pub(super) fn of(query: &Query<'_>) -> Self {
        let question = query.question();
        let asked = section(question.as_ref());
        let flags = query.flags.iter().filter_map(|flag| FLAGS.iter().find(|(name, _)| **name == **flag));
        let flags = flags.fold(0, |flags, (_, bit)| flags | bit);
        let (answers, unread) = answers(&query.answers);
        let response = query.qid.zip(query.rcode.as_deref().and_then(|rcode| rcode.parse().ok())).map(|(id, rcode)| {
            let reply =
                Reply { query, id, rcode, flags, question: question.as_ref(), asked: &asked, answers: &answers };
            reply.write_as_sent()
        });
        let edns = response.as_ref().map_or(query.cookie.is_some(), |(_, edns)| *edns);
        Self {
            query: query.qid.map(|id| {
                // RD "is copied into the response" (RFC 1035 §4.1.1), and so is CD (RFC 4035 §3.2.2).
                let flags = (flags & (RD | CD)).to_be_bytes();
                let counts = [0, u8::from(question.is_some()), 0, 0, 0, 0, 0, u8::from(edns)];
                let opt = if edns { OPT.as_slice() } else { &[] };
                [&id.to_be_bytes(), &flags, counts.as_slice(), &asked, opt].concat()
            }),
            response: response.map(|(message, _)| message),
            omitted: unread + query.answers_omitted.unwrap_or(0),
        }
    }
}

impl Query<'_> {
    fn question(&self) -> Option<Question> {
        let name = Name::parse(self.qname.as_deref()?).ok()?;
        Some(Question { name, kind: self.qtype.as_deref()?.parse().ok()? })
    }
}

/// A question section, of class IN.
fn section(question: Option<&Question>) -> Vec<u8> {
    let Some(Question { name, kind }) = question else { return Vec::new() };
    [name.as_wire(), &kind.0.to_be_bytes(), b"\0\x01"].concat()
}

/// The records, and how many of them cannot be made again.
fn answers(told: &[Told<'_>]) -> (Vec<Record>, usize) {
    let records = told.iter().filter_map(|told| {
        let (name, kind) = (Name::parse(&told.name).ok()?, told.kind.parse().ok()?);
        Some(Record { name, kind, ttl: Ttl::from_wire(told.ttl), data: read_data(kind, &told.data)?.into() })
    });
    let records: Vec<_> = records.collect();
    let unread = told.len() - records.len();
    (records, unread)
}

/// A response to be made again.
struct Reply<'a> {
    query: &'a Query<'a>,
    id: u16,
    rcode: Rcode,
    flags: u16,
    question: Option<&'a Question>,
    /// The question section.
    asked: &'a [u8],
    answers: &'a [Record],
}

impl Reply<'_> {
    /// The response, and whether it has an OPT. Whether the client had EDNS is not in the record, but the length of what it
    /// got is: that of a response that is whole without an OPT, or that of one with an OPT, is right.
    fn write_as_sent(&self) -> (Vec<u8>, bool) {
        // The upper bits of a code stand in the OPT (RFC 6891 §6.1.3).
        let extended = self.rcode.0 > 0xf;
        let bare = (!extended).then(|| self.write(None));
        let sent = |message: &Vec<u8>| Some(message.len()) == self.query.bytes;
        if let Some(bare) = bare.as_ref().filter(|bare| sent(bare)) {
            return (bare.clone(), false);
        }
        let edns = Edns { size: UDP_SIZE, dnssec_ok: false, keepalive: false, padding: false };
        let full = self.write(Some(edns));
        match bare {
            Some(bare) if !sent(&full) && self.query.ede.is_none() && self.query.cookie.is_none() => (bare, false),
            _ => (full, true),
        }
    }

    fn write(&self, edns: Option<Edns>) -> Vec<u8> {
        let echo = Echo {
            id: self.id,
            opcode: 0,
            recursion_desired: false,
            authentic_data: false,
            checking_disabled: false,
            question: self.asked,
            edns,
            subnet: None,
            cookie: None,
        };
        let ede = self.query.ede.as_ref();
        let ede = ede.map(|ede| ExtendedError::new(ede.code, ede.text.as_deref().unwrap_or_default()));
        let mut message = Vec::new();
        match self.question {
            Some(question) if self.flags & TC != 0 || !self.is_own() => {
                // Outgate tells all records of an answer with one TTL.
                let ttl = self.answers.iter().map(|answer| answer.ttl).min().unwrap_or(Ttl::ZERO);
                let template = Template::new(question, self.rcode, false, self.answers, None, ede.as_ref());
                template.write(&mut message, &echo, ttl, TCP_LIMIT);
            }
            _ => {
                write_refusal(&mut message, &echo, self.rcode, ede.as_ref(), TCP_LIMIT);
            }
        }
        let [high, low] = (QR | self.flags | self.rcode.0 & 0xf).to_be_bytes();
        if let Some(flags) = message.get_mut(2..4) {
            flags.copy_from_slice(&[high, low]);
        }
        message
    }

    /// Whether the node made it by itself: such a denial has an SOA that is always the same.
    fn is_own(&self) -> bool {
        self.answers.is_empty()
            && self.query.answers_omitted.is_none()
            && (&*self.query.verdict != "allow" || &*self.query.reason == "local")
    }
}
