//! The upstream's side: [`encode_query`], and [`parse_message`] for what comes back.

use super::edns::{Opt, push_opt};
use super::reader::Reader;
use super::{Fault, HEADER, IN, flag, rdata};
use crate::name::Name;
use crate::record::{ExtendedError, Question, Rcode, Record, RecordType};
use crate::time::Ttl;

/// The most records of a section that are read.
const MAX_RECORDS: u16 = 256;

/// A message from an upstream (or a query, in tests): records of class IN, uncompressed, names in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The id.
    pub id: u16,
    /// QR.
    pub response: bool,
    /// 0 is QUERY.
    pub opcode: u8,
    /// All 12 bits.
    pub rcode: Rcode,
    /// AA.
    pub authoritative: bool,
    /// TC.
    pub truncated: bool,
    /// AD.
    pub authentic: bool,
    /// The question section as it stands (case as sent, RFC 5452 §9.1), and what it asks; some errors have none.
    pub question: Option<(Box<[u8]>, Question)>,
    /// The answer section.
    pub answers: Vec<Record>,
    /// The authority section.
    pub authority: Vec<Record>,
    /// The additional section, its OPT left out.
    pub additional: Vec<Record>,
    /// The OPT.
    pub edns: Option<MessageEdns>,
    /// The first extended error in the OPT.
    pub ede: Option<ExtendedError>,
}

/// An OPT as a message carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageEdns {
    /// The sender's payload size, as it stands.
    pub size: u16,
    /// The version.
    pub version: u8,
    /// DO.
    pub dnssec_ok: bool,
}

/// Appends a query for an upstream: RD, one question of class IN, one OPT without options. A function of its
/// arguments alone (I2). `upper` is asked once for each letter of the name whether to send it in upper case
/// (0x20, draft-vixie-dnsext-dns0x20); `|| false` leaves the name canonical.
pub fn encode_query(out: &mut Vec<u8>, id: u16, question: &Question, dnssec_ok: bool, mut upper: impl FnMut() -> bool) {
    for field in [id, flag::RD, 1, 0, 0, 1] {
        out.extend_from_slice(&field.to_be_bytes());
    }
    // Length octets are at most 63 and so never letters.
    out.extend(
        question
            .name
            .as_wire()
            .iter()
            .map(|byte| if byte.is_ascii_lowercase() && upper() { byte.to_ascii_uppercase() } else { *byte }),
    );
    out.extend_from_slice(&question.kind.0.to_be_bytes());
    out.extend_from_slice(&IN.to_be_bytes());
    push_opt(out, 0, dnssec_ok, None);
}

/// Reads a whole message.
///
/// # Errors
/// The first [`Fault`] met. Of a truncated message (TC) too, every counted record must be there.
pub fn parse_message(packet: &[u8]) -> Result<Message, Fault> {
    if packet.len() < HEADER {
        return Err(Fault::Short);
    }
    let mut reader = Reader::new(packet);
    let (id, flags) = (reader.u16()?, reader.u16()?);
    let [questions, answers, authority, additional] = [reader.u16()?, reader.u16()?, reader.u16()?, reader.u16()?];
    let question = match questions {
        0 => None,
        1 => Some(read_question(&mut reader)?),
        _ => return Err(Fault::QuestionCount),
    };
    let mut sections =
        Sections { reader, owner: question.as_ref().map(|(_, question)| question.name.clone()), opt: None };
    let (answers, authority) = (sections.read(answers, false)?, sections.read(authority, false)?);
    let additional = sections.read(additional, true)?;
    if !sections.reader.is_at_end() {
        return Err(Fault::Trailing);
    }
    let opt = sections.opt;
    let rcode_high = opt.as_ref().map_or(0, |opt| u16::from(opt.rcode_high));
    Ok(Message {
        id,
        response: flags & flag::QR != 0,
        opcode: u8::try_from(flags >> 11 & 0xf).unwrap_or(0),
        rcode: Rcode(rcode_high << 4 | flags & 0xf),
        authoritative: flags & flag::AA != 0,
        truncated: flags & flag::TC != 0,
        authentic: flags & flag::AD != 0,
        question,
        answers,
        authority,
        additional,
        edns: opt.as_ref().map(|opt| MessageEdns { size: opt.size, version: opt.version, dnssec_ok: opt.dnssec_ok }),
        ede: opt.as_ref().and_then(Opt::extended_error),
    })
}

fn read_question(reader: &mut Reader<'_>) -> Result<(Box<[u8]>, Question), Fault> {
    let start = reader.position();
    let name = reader.plain_name()?.to_name();
    let (kind, class) = (RecordType(reader.u16()?), reader.u16()?);
    if class != IN {
        return Err(Fault::Class);
    }
    Ok((reader.since(start).into(), Question { name, kind }))
}

/// The three sections of records, read one after the other.
struct Sections<'a> {
    reader: Reader<'a>,
    /// The owner of the record before: most have the same, and share its memory.
    owner: Option<Name>,
    opt: Option<Opt<'a>>,
}

impl Sections<'_> {
    fn read(&mut self, count: u16, may_hold_opt: bool) -> Result<Vec<Record>, Fault> {
        if count > MAX_RECORDS {
            return Err(Fault::TooManyRecords);
        }
        let mut records = Vec::new();
        for _ in 0..count {
            let owner = self.reader.name()?;
            let raw = self.reader.record()?;
            if RecordType(raw.kind) == RecordType::OPT {
                if self.opt.is_some() || !may_hold_opt {
                    return Err(Fault::SecondOpt);
                }
                if *owner != [0] {
                    return Err(Fault::OptOwner);
                }
                let opt = Opt::from_record(&raw);
                opt.options().try_for_each(|option| option.map(drop))?;
                self.opt = Some(opt);
            } else if raw.class == IN {
                let name = match self.owner.take().filter(|name| name.as_wire() == &*owner) {
                    Some(name) => name,
                    None => owner.to_name(),
                };
                self.owner = Some(name.clone());
                let data = rdata::expand(&raw, &self.reader)?;
                records.push(Record { name, kind: RecordType(raw.kind), ttl: Ttl::from_wire(raw.ttl), data });
            }
        }
        Ok(records)
    }
}
