//! [`parse`]: a client's packet → [`Query`], or [`Malformed`] with all that its record and reply need.

use std::borrow::Cow;

use super::edns::{Edns, Opt};
use super::reader::Reader;
use super::{Fault, HEADER, IN, UDP_SIZE_PLAIN, flag};
use crate::name::NameBuf;
use crate::record::{Question, Rcode, RecordType};

/// A query that can be decided: opcode QUERY, one question, class IN, a type that can have an answer (ANY
/// among them).
#[derive(Clone, Debug)]
pub struct Query<'a> {
    /// The name, canonical.
    pub name: NameBuf,
    /// The type.
    pub kind: RecordType,
    /// What the reply repeats.
    pub echo: Echo<'a>,
}

impl Query<'_> {
    /// An owned copy of what is asked.
    #[must_use]
    pub fn question(&self) -> Question {
        Question { name: self.name.to_name(), kind: self.kind }
    }
}

/// What a reply takes from its query, and nothing else does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Echo<'a> {
    /// The id.
    pub id: u16,
    /// The opcode, 0..=15.
    pub opcode: u8,
    /// RD.
    pub recursion_desired: bool,
    /// CD.
    pub checking_disabled: bool,
    /// The question section as sent, its letters' case included; empty where it could not be read.
    pub question: Cow<'a, [u8]>,
    /// The client's EDNS; without it the reply has none either.
    pub edns: Option<Edns>,
}

impl Echo<'_> {
    fn new(id: u16, flags: u16) -> Self {
        Self {
            id,
            opcode: u8::try_from(flags >> 11 & 0xf).unwrap_or(0),
            recursion_desired: flags & flag::RD != 0,
            checking_disabled: flags & flag::CD != 0,
            question: Cow::Borrowed(&[]),
            edns: None,
        }
    }

    /// An echo that outlives the packet.
    #[must_use]
    pub fn into_owned(self) -> Echo<'static> {
        Echo { question: Cow::Owned(self.question.into_owned()), ..self }
    }

    /// The longest datagram that may answer: 512 without EDNS, at most 1232 with it.
    #[must_use]
    pub fn udp_limit(&self) -> usize {
        self.edns.map_or(UDP_SIZE_PLAIN, |edns| edns.size).into()
    }
}

/// A packet that does not become a [`Query`].
#[derive(Clone, Debug)]
pub struct Malformed<'a> {
    /// What is wrong.
    pub why: Fault,
    /// The id; `None` below two octets.
    pub id: Option<u16>,
    /// The first question's name, where it could be read.
    pub name: Option<NameBuf>,
    /// Its type.
    pub kind: Option<RecordType>,
    /// What to answer (by [`write_refusal`](super::write_refusal)); `None`: silence.
    pub answer: Option<(Rcode, Echo<'a>)>,
}

/// The first question.
struct Asked {
    name: NameBuf,
    kind: RecordType,
    class: u16,
}

/// Reads a client's packet. Allocates nothing.
///
/// # Errors
/// [`Malformed`]; where several things are wrong, the first in the order opcode, count of questions, octets,
/// class, type, sections.
#[expect(clippy::result_large_err, reason = "the name is on the stack either way; a box would allocate")]
pub fn parse(packet: &[u8]) -> Result<Query<'_>, Malformed<'_>> {
    let mut reader = Reader::new(packet);
    let id = reader.u16().ok();
    let silence = |why| Malformed { why, id, name: None, kind: None, answer: None };
    let (Some(id), Ok(flags)) = (id, reader.u16()) else { return Err(silence(Fault::Short)) };
    if packet.len() < HEADER {
        return Err(silence(Fault::Short));
    }
    if flags & flag::QR != 0 {
        return Err(silence(Fault::Response));
    }
    let mut echo = Echo::new(id, flags);
    let mut asked = None;
    let fault = read(&mut reader, &mut echo, &mut asked).err();
    match (fault, asked) {
        (None, Some(Asked { name, kind, .. })) => Ok(Query { name, kind, echo }),
        (fault, asked) => {
            let why = fault.unwrap_or(Fault::QuestionCount);
            let (name, kind) = asked.map(|asked| (asked.name, asked.kind)).unzip();
            Err(Malformed { why, id: Some(id), name, kind, answer: why.rcode().map(|rcode| (rcode, echo)) })
        }
    }
}

/// Reads on after the flags and judges. `echo` and `asked` are filled as far as the packet can be read,
/// whatever is wrong with it: an error is answered with the question and, to a client with EDNS, an OPT.
fn read<'a>(reader: &mut Reader<'a>, echo: &mut Echo<'a>, asked: &mut Option<Asked>) -> Result<(), Fault> {
    let counts = [reader.u16()?, reader.u16()?, reader.u16()?, reader.u16()?];
    let [questions, answers, authority, additional] = counts.map(u32::from);
    let octets = read_questions(reader, questions, echo, asked)
        .and_then(|()| read_records(reader, [answers + authority, additional], echo));
    if echo.opcode != 0 {
        return Err(Fault::Opcode);
    }
    // RFC 9619 §4: "A DNS message with OPCODE = 0 and QDCOUNT > 1 MUST be treated as an incorrectly formatted
    // message."
    let (1, Some(Asked { kind, class, .. })) = (questions, asked.as_ref()) else {
        return Err(octets.err().filter(|_| questions == 1).unwrap_or(Fault::QuestionCount));
    };
    octets?;
    if *class != IN {
        return Err(Fault::Class);
    }
    askable(*kind)?;
    if answers + authority != 0 { Err(Fault::Sections) } else { Ok(()) }
}

fn read_questions<'a>(
    reader: &mut Reader<'a>,
    count: u32,
    echo: &mut Echo<'a>,
    asked: &mut Option<Asked>,
) -> Result<(), Fault> {
    for index in 0..count {
        let start = reader.position();
        let name = reader.plain_name()?;
        let (kind, class) = (RecordType(reader.u16()?), reader.u16()?);
        if index == 0 {
            *asked = Some(Asked { name, kind, class });
        }
        if count == 1 {
            echo.question = Cow::Borrowed(reader.since(start));
        }
    }
    Ok(())
}

/// Passes over the records and reads the OPT among them. `counts`: those before the additional section, and in it.
fn read_records(reader: &mut Reader<'_>, counts: [u32; 2], echo: &mut Echo<'_>) -> Result<(), Fault> {
    let [before, additional] = counts;
    for index in 0..before + additional {
        let start = reader.position();
        reader.skip_name()?;
        let owned_by_root = reader.since(start) == [0];
        let record = reader.record()?;
        match RecordType(record.kind) {
            RecordType::OPT => {
                // RFC 6891 §6.1.1: "If a query message with more than one OPT RR is received, a FORMERR (RCODE=1)
                // MUST be returned."
                if echo.edns.is_some() || index < before {
                    return Err(Fault::SecondOpt);
                }
                let opt = Opt::from_record(&record);
                echo.edns = Some(opt.client());
                // RFC 6891 §6.1.2: the owner "MUST be 0 (root domain)".
                if !owned_by_root {
                    return Err(Fault::OptOwner);
                }
                if opt.version != 0 {
                    return Err(Fault::Version);
                }
                opt.options().try_for_each(|option| option.map(drop))?;
            }
            RecordType::TSIG => return Err(Fault::Signed),
            _ => {}
        }
    }
    if reader.is_at_end() { Ok(()) } else { Err(Fault::Trailing) }
}

/// Types that policy may judge: all but the meta types (RFC 6895 §3.1: 128..=255, and OPT); of these ANY alone.
const fn askable(kind: RecordType) -> Result<(), Fault> {
    match kind {
        RecordType::ANY => Ok(()),
        RecordType::AXFR | RecordType::IXFR => Err(Fault::Transfer),
        // RFC 9824 §3.5: a query for NXNAME, 128, is a format error.
        RecordType(0 | 128) | RecordType::OPT | RecordType::TSIG => Err(Fault::NoSuchQuestion),
        RecordType(129..=254) => Err(Fault::MetaType),
        _ => Ok(()),
    }
}
