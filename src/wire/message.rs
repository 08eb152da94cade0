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
    read_message(packet, |reader, count| match count {
        0 => Ok((None, None)),
        1 => {
            let (octets, question) = read_question(reader)?;
            let name = question.name.clone();
            Ok((Some((octets, question)), Some(name)))
        }
        _ => Err(Fault::QuestionCount),
    })
}

/// Reads a whole message that is known to repeat the question `asked`, in whatever letter case. As [`parse_message`],
/// but the question is not read again and left out, and its records share its name's memory.
///
/// # Errors
/// Those of [`parse_message`].
pub fn parse_reply(packet: &[u8], asked: &Question) -> Result<Message, Fault> {
    read_message(packet, |reader, count| {
        if count != 1 {
            return Err(Fault::QuestionCount);
        }
        reader.take(asked.name.as_wire().len() + 4)?;
        Ok((None, Some(asked.name.clone())))
    })
}

/// A question section as it stands and what it asks, where it is wanted; the name at its beginning.
type Asked = (Option<(Box<[u8]>, Question)>, Option<Name>);

fn read_message<'a>(
    packet: &'a [u8],
    question: impl FnOnce(&mut Reader<'a>, u16) -> Result<Asked, Fault>,
) -> Result<Message, Fault> {
    if packet.len() < HEADER {
        return Err(Fault::Short);
    }
    let mut reader = Reader::new(packet);
    let (id, flags) = (reader.u16()?, reader.u16()?);
    let [questions, answers, authority, additional] = [reader.u16()?, reader.u16()?, reader.u16()?, reader.u16()?];
    let (question, first) = question(&mut reader, questions)?;
    let mut sections = Sections { reader, owner: first.clone(), first, opt: None };
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
    let start = reader.clone();
    let name = Name::from_wire(reader.plain_name()?).map_err(|_| Fault::Label)?;
    let (kind, class) = (RecordType(reader.u16()?), reader.u16()?);
    if class != IN {
        return Err(Fault::Class);
    }
    Ok((reader.since(&start).into(), Question { name, kind }))
}

/// The three sections of records, read one after the other.
struct Sections<'a> {
    reader: Reader<'a>,
    /// The name that begins where the header ends. Most owners are a pointer to it.
    first: Option<Name>,
    /// The owner of the record before: many have the same, and share its memory.
    owner: Option<Name>,
    opt: Option<Opt<'a>>,
}

impl Sections<'_> {
    fn read(&mut self, count: u16, may_hold_opt: bool) -> Result<Vec<Record>, Fault> {
        /// A pointer to the end of the header.
        const TO_FIRST: &[u8] = &[0xc0, HEADER as u8];
        if count > MAX_RECORDS {
            return Err(Fault::TooManyRecords);
        }
        let mut records = Vec::new();
        for _ in 0..count {
            let rest = self.reader.rest();
            let owner = match &self.first {
                Some(first) if rest.starts_with(TO_FIRST) => {
                    self.reader.take(TO_FIRST.len())?;
                    Some(first.clone())
                }
                // The root: that of the OPT.
                _ if rest.starts_with(&[0]) => {
                    self.reader.take(1)?;
                    None
                }
                _ => Some(self.owner()?),
            };
            let raw = self.reader.record()?;
            if RecordType(raw.kind) == RecordType::OPT {
                if self.opt.is_some() || !may_hold_opt {
                    return Err(Fault::SecondOpt);
                }
                if owner.is_some_and(|owner| owner.as_wire() != [0]) {
                    return Err(Fault::OptOwner);
                }
                let opt = Opt::from_record(&raw);
                opt.options().try_for_each(|option| option.map(drop))?;
                self.opt = Some(opt);
            } else if raw.class == IN {
                let name = owner.unwrap_or_else(Name::root);
                let data = rdata::expand(&raw, &self.reader)?;
                records.push(Record { name, kind: RecordType(raw.kind), ttl: Ttl::from_wire(raw.ttl), data });
            }
        }
        Ok(records)
    }

    fn owner(&mut self) -> Result<Name, Fault> {
        let owner = self.reader.name()?;
        let name = match self.owner.take().filter(|name| name.as_wire() == &*owner) {
            Some(name) => name,
            None => owner.to_name(),
        };
        self.owner = Some(name.clone());
        Ok(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUESTION: &[u8] = b"\x01A\x07example\x00\x00\x01\x00\x01";

    /// A response with these counts of questions, answers, authority, additional, then `parts`.
    fn packet(counts: [u16; 4], parts: &[&[u8]]) -> Vec<u8> {
        let [questions, answers, authority, additional] = counts;
        let header = [7, 0x81a0, questions, answers, authority, additional];
        header.into_iter().flat_map(u16::to_be_bytes).chain(parts.concat()).collect()
    }

    /// A record of class IN, TTL 60, owned by the question's name.
    fn record(kind: u16, data: &[u8]) -> Vec<u8> {
        let length = u16::try_from(data.len()).unwrap().to_be_bytes();
        [b"\xc0\x0c".as_slice(), &kind.to_be_bytes(), b"\x00\x01\x00\x00\x00\x3c", &length, data].concat()
    }

    #[test]
    fn encodes_the_same_query_for_the_same_arguments() {
        let question = Question { name: Name::parse("a1.Example").unwrap(), kind: RecordType::AAAA };
        let encode = |dnssec_ok, upper: bool| {
            let mut out = Vec::new();
            encode_query(&mut out, 0xbeef, &question, dnssec_ok, || upper);
            out
        };
        let expected = b"\xbe\xef\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01\x02a1\x07example\x00\x00\x1c\x00\x01\
            \x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00";
        assert_eq!(encode(false, false), expected);
        assert_eq!(encode(true, false), [&expected[..28], b"\x00\x00\x29\x04\xd0\x00\x00\x80\x00\x00\x00"].concat());
        assert_eq!(encode(false, true)[12..23], *b"\x02A1\x07EXAMPLE");
    }

    #[test]
    fn expands_names_of_the_types_that_may_compress_them() {
        let name: &[u8] = b"\x01a\x07example\x00";
        let p = b"\xc0\x0c";
        let rows: [(&str, u16, Vec<u8>, Vec<u8>); 10] = [
            ("NS", 2, p.to_vec(), name.to_vec()),
            ("CNAME, in lower case", 5, b"\x01B\xc0\x0c".to_vec(), [b"\x01b", name].concat()),
            ("SOA", 6, [p.as_slice(), p, &[9; 20]].concat(), [name, name, &[9; 20]].concat()),
            ("PTR", 12, p.to_vec(), name.to_vec()),
            ("MX", 15, [b"\0\x0a".as_slice(), p].concat(), [b"\0\x0a", name].concat()),
            ("RP", 17, [p.as_slice(), p].concat(), [name, name].concat()),
            ("AFSDB", 18, [b"\0\x01".as_slice(), p].concat(), [b"\0\x01", name].concat()),
            ("SRV", 33, [&[1; 6], p.as_slice()].concat(), [&[1; 6], name].concat()),
            (
                "NAPTR",
                35,
                [b"\0\x01\0\x02\x01u\x00\x02re".as_slice(), p].concat(),
                [b"\0\x01\0\x02\x01u\x00\x02re", name].concat(),
            ),
            ("RFC 3597 §4: unknown types stay as they are", 731, p.to_vec(), p.to_vec()),
        ];
        for (reason, kind, data, expected) in rows {
            let bytes = packet([1, 1, 0, 0], &[QUESTION, &record(kind, &data)]);
            let message = parse_message(&bytes).unwrap();
            assert_eq!(*message.answers[0].data, *expected, "{reason}");
            assert_eq!(message.answers[0].name.as_wire(), name, "{reason}");
        }
    }

    #[test]
    fn reads_header_question_and_edns() {
        let opt = b"\x00\x00\x29\x02\x00\x01\x00\x80\x00\x00\x10\x00\x03\x00\x01x\x00\x0f\x00\x07\x00\x0fno\xff!\x00";
        let chaos = b"\x00\x00\x10\x00\x03\x00\x00\x00\x00\x00\x02\x01v";
        let high_ttl = b"\xc0\x0c\x00\x01\x00\x01\x80\x00\x00\x01\x00\x04\xc0\x00\x02\x01";
        let mut bytes = packet([1, 1, 0, 2], &[QUESTION, high_ttl, chaos, opt]);
        bytes[3] = 0xa7;
        let message = parse_message(&bytes).unwrap();
        assert_eq!(message.question.as_ref().unwrap().0.as_ref(), QUESTION);
        assert_eq!(message.question.as_ref().unwrap().1.to_string(), "a.example A");
        assert_eq!(message.rcode, Rcode(0x17));
        assert_eq!(message.edns, Some(MessageEdns { size: 512, version: 0, dnssec_ok: true }));
        assert_eq!(message.ede, Some(ExtendedError::new(15, "no\u{fffd}!")));
        assert_eq!(message.answers[0].ttl, Ttl::ZERO);
        assert!(message.additional.is_empty(), "other classes are left out");
        assert!(message.response && message.authentic && !message.authoritative && !message.truncated);
    }

    #[test]
    fn a_reply_is_the_message_less_its_question() {
        let asked = Question { name: Name::parse("a.example").unwrap(), kind: RecordType::A };
        let a = record(1, &[192, 0, 2, 1]);
        let root = b"\x00\x00\x02\x00\x01\x00\x00\x00\x3c\x00\x02\xc0\x0c";
        let other = b"\x01B\xc0\x0e\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\xc0\x00\x02\x02";
        let bytes = packet([1, 3, 1, 0], &[QUESTION, &a, other, other, root]);
        let whole = parse_message(&bytes).unwrap();
        let names: Vec<String> = whole.answers.iter().map(|record| record.name.to_string()).collect();
        assert_eq!(names, ["a.example", "b.example", "b.example"]);
        assert_eq!(parse_reply(&bytes, &asked), Ok(Message { question: None, ..whole }));
        for (counts, fault) in [([0, 0, 0, 0], Fault::QuestionCount), ([1, 4, 0, 0], Fault::Truncated)] {
            let parts: &[&[u8]] = if counts[0] == 0 { &[] } else { &[QUESTION, &a] };
            assert_eq!(parse_reply(&packet(counts, parts), &asked), Err(fault));
        }
        assert_eq!(parse_reply(&packet([1, 0, 0, 0], &[&QUESTION[..12]]), &asked), Err(Fault::Truncated));
    }

    #[test]
    fn refuses_hostile_messages() {
        let a = record(1, &[192, 0, 2, 1]);
        let opt: &[u8] = b"\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00";
        let self_owner = b"\xc0\x1b\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\xc0\x00\x02\x01";
        let cname_past_end = [record(5, b"\x01a"), b"\x00".to_vec()].concat();
        let rows: [(&str, Vec<u8>, Fault); 20] = [
            ("eleven octets", vec![0; 11], Fault::Short),
            ("two questions", packet([2, 0, 0, 0], &[QUESTION, QUESTION]), Fault::QuestionCount),
            ("class CH", packet([1, 0, 0, 0], &[b"\x01a\x00\x00\x01\x00\x03"]), Fault::Class),
            ("a compressed question", packet([1, 0, 0, 0], &[b"\xc0\x0c\x00\x01\x00\x01"]), Fault::Pointer),
            ("a record missing", packet([1, 2, 0, 0], &[QUESTION, &a]), Fault::Truncated),
            ("a record too many", packet([1, 0, 0, 0], &[QUESTION, &a]), Fault::Trailing),
            ("257 records", packet([1, 257, 0, 0], &[QUESTION, &a.repeat(257)]), Fault::TooManyRecords),
            ("an owner that is itself", packet([1, 1, 0, 0], &[QUESTION, self_owner]), Fault::PointerLoop),
            ("an A of 3", packet([1, 1, 0, 0], &[QUESTION, &record(1, &[1; 3])]), Fault::Data),
            ("an A of 16", packet([1, 1, 0, 0], &[QUESTION, &record(1, &[1; 16])]), Fault::Data),
            ("an AAAA of 4", packet([1, 1, 0, 0], &[QUESTION, &record(28, &[1; 4])]), Fault::Data),
            ("an empty CNAME", packet([1, 1, 0, 0], &[QUESTION, &record(5, b"")]), Fault::Truncated),
            ("a CNAME that ends after its data", packet([1, 1, 0, 0], &[QUESTION, &cname_past_end]), Fault::Truncated),
            ("a CNAME with a tail", packet([1, 1, 0, 0], &[QUESTION, &record(5, b"\x00x")]), Fault::Data),
            (
                "a CNAME into its own data",
                packet([1, 1, 0, 0], &[QUESTION, &record(5, b"\x01a\xc0\x27")]),
                Fault::PointerLoop,
            ),
            ("an SOA with 19 octets", packet([1, 1, 0, 0], &[QUESTION, &record(6, &[0; 21])]), Fault::Data),
            ("two OPT", packet([1, 0, 0, 2], &[QUESTION, opt, opt]), Fault::SecondOpt),
            ("an OPT in the answer section", packet([1, 1, 0, 0], &[QUESTION, opt]), Fault::SecondOpt),
            ("an OPT with an owner", packet([1, 0, 0, 1], &[QUESTION, b"\x01a", opt]), Fault::OptOwner),
            ("half an option", packet([1, 0, 0, 1], &[QUESTION, &opt[..10], b"\x01\x00"]), Fault::OptLength),
        ];
        for (reason, bytes, fault) in rows {
            assert_eq!(parse_message(&bytes).unwrap_err(), fault, "{reason}");
        }
        let most = packet([1, 256, 0, 0], &[QUESTION, &a.repeat(256)]);
        assert_eq!(parse_message(&most).unwrap().answers.len(), 256);
    }
}
