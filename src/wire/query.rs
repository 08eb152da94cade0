//! [`parse`]: a client's packet → [`Query`], or [`Malformed`] with all that its record and reply need.

use super::edns::{Edns, Opt};
use super::reader::Reader;
use super::{Fault, HEADER, IN, UDP_SIZE_PLAIN, flag};
use crate::name::{MAX_WIRE, Name};
use crate::record::{Question, Rcode, RecordType};

/// A query that can be decided: opcode QUERY, one question, class IN, a type that can have an answer (ANY
/// among them).
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// The name, canonical.
    pub name: &'a [u8],
    /// The type.
    pub kind: RecordType,
    /// What the reply repeats.
    pub echo: Echo<'a>,
}

impl Query<'_> {
    /// An owned copy of what is asked.
    #[must_use]
    pub fn question(&self) -> Question {
        // What `parse` read is a name.
        Question { name: Name::from_wire(self.name).unwrap_or_else(|_| Name::root()), kind: self.kind }
    }
}

/// What a reply takes from its query, and nothing else does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo<'a> {
    /// The id.
    pub id: u16,
    /// The opcode, 0..=15.
    pub opcode: u8,
    /// RD.
    pub recursion_desired: bool,
    /// AD: whether the answer is authentic is understood (RFC 6840 §5.7).
    pub authentic_data: bool,
    /// CD.
    pub checking_disabled: bool,
    /// The question section as sent, its letters' case included; empty where it could not be read.
    pub question: &'a [u8],
    /// The client's EDNS; without it the reply has none either.
    pub edns: Option<Edns>,
    /// The data of its client subnet option, which its reply repeats; of two, none that can be read. Nobody's word unless
    /// it is known whose it is.
    pub subnet: Option<&'a [u8]>,
    /// The data of its first cookie option, of a length that a cookie can have.
    pub cookie: Option<&'a [u8]>,
}

impl Echo<'_> {
    const fn new(id: u16, flags: u16) -> Self {
        let [high, _] = flags.to_be_bytes();
        Self {
            id,
            opcode: high >> 3 & 0xf,
            recursion_desired: flags & flag::RD != 0,
            authentic_data: flags & flag::AD != 0,
            checking_disabled: flags & flag::CD != 0,
            question: &[],
            edns: None,
            subnet: None,
            cookie: None,
        }
    }

    /// The longest datagram that may answer: 512 without EDNS, at most 1232 with it.
    #[must_use]
    pub fn udp_limit(&self) -> usize {
        self.edns.map_or(UDP_SIZE_PLAIN, |edns| edns.size).into()
    }
}

/// A packet that does not become a [`Query`].
#[derive(Clone, Copy, Debug)]
pub struct Malformed<'a> {
    /// What is wrong.
    pub why: Fault,
    /// The id; `None` below two octets.
    pub id: Option<u16>,
    /// The first question's name, canonical, where it could be read.
    pub name: Option<&'a [u8]>,
    /// Its type.
    pub kind: Option<RecordType>,
    /// What to answer (by [`write_refusal`](super::write_refusal)); `None`: silence.
    pub answer: Option<(Rcode, Echo<'a>)>,
}

/// Where [`parse`] writes the canonical name that its result borrows. On the caller's stack: a result that held the
/// name itself would be copied from frame to frame.
#[derive(Clone, Debug)]
pub struct Canonical([u8; ROOM]);

/// Octets lower-cased at once: two registers of SSE2, and the whole of most names.
const CHUNK: usize = 32;
const ROOM: usize = MAX_WIRE.next_multiple_of(CHUNK);

impl Default for Canonical {
    fn default() -> Self {
        Self::new()
    }
}

impl Canonical {
    /// Room for one name.
    #[must_use]
    pub const fn new() -> Self {
        Self([0; ROOM])
    }

    /// `wire`, at most [`MAX_WIRE`] octets, in lower case. Its length octets are at most 63, and so no letters.
    fn fill(&mut self, wire: &[u8]) -> &[u8] {
        let Some(name) = self.0.get_mut(..wire.len()) else { return &[] };
        name.copy_from_slice(wire);
        let (chunks, _) = self.0.as_chunks_mut::<CHUNK>();
        chunks.iter_mut().take(wire.len().div_ceil(CHUNK)).for_each(|chunk| chunk.make_ascii_lowercase());
        self.0.get(..wire.len()).unwrap_or_default()
    }
}

/// The first question, as it stands.
#[derive(Clone, Copy)]
struct Asked<'a> {
    name: &'a [u8],
    kind: RecordType,
    class: u16,
}

/// Reads a client's packet. Allocates nothing.
///
/// # Errors
/// [`Malformed`]; where several things are wrong, the first in the order opcode, count of questions, octets,
/// class, type, sections.
pub fn parse<'a>(packet: &'a [u8], canonical: &'a mut Canonical) -> Result<Query<'a>, Malformed<'a>> {
    let silence = |why| {
        let id = packet.first_chunk().map(|octets| u16::from_be_bytes(*octets));
        Malformed { why, id, name: None, kind: None, answer: None }
    };
    let Some(&header) = packet.first_chunk::<HEADER>() else { return Err(silence(Fault::Short)) };
    let [id, id_low, flags, flags_low, counts @ ..] = header;
    let (id, flags) = (u16::from_be_bytes([id, id_low]), u16::from_be_bytes([flags, flags_low]));
    if flags & flag::QR != 0 {
        return Err(silence(Fault::Response));
    }
    let mut echo = Echo::new(id, flags);
    let mut asked = None;
    let fault = read(packet, counts, &mut echo, &mut asked).err();
    let name = asked.map(|asked| canonical.fill(asked.name));
    match (fault, asked, name) {
        (None, Some(Asked { kind, .. }), Some(name)) => Ok(Query { name, kind, echo }),
        (fault, asked, name) => {
            let why = fault.unwrap_or(Fault::QuestionCount);
            let kind = asked.map(|asked| asked.kind);
            Err(Malformed { why, id: Some(id), name, kind, answer: why.rcode().map(|rcode| (rcode, echo)) })
        }
    }
}

/// Reads on after the flags and judges. `echo` and `asked` are filled as far as the packet can be read,
/// whatever is wrong with it: an error is answered with the question and, to a client with EDNS, an OPT.
fn read<'a>(
    packet: &'a [u8],
    counts: [u8; 8],
    echo: &mut Echo<'a>,
    asked: &mut Option<Asked<'a>>,
) -> Result<(), Fault> {
    let [qd, qd_low, an, an_low, ns, ns_low, ar, ar_low] = counts;
    let counts = [[qd, qd_low], [an, an_low], [ns, ns_low], [ar, ar_low]];
    let [questions, answers, authority, additional] = counts.map(|count| u32::from(u16::from_be_bytes(count)));
    let mut reader = Reader::after_header(packet);
    let octets = read_questions(&mut reader, questions, echo, asked)
        .and_then(|()| read_records(&mut reader, [answers + authority, additional], echo));
    if echo.opcode != 0 {
        return Err(Fault::Opcode);
    }
    // RFC 9619 §4: "A DNS message with OPCODE = 0 and QDCOUNT > 1 MUST be treated as an incorrectly formatted
    // message."
    let (1, Some(Asked { kind, class, .. })) = (questions, asked.as_ref()) else {
        // RFC 7873 §5.4: "the QUERY opcode behavior is extended to support queries with an empty Question Section [...],
        // provided that an OPT record is present with a COOKIE option."
        if questions == 0 && answers + authority == 0 && octets.is_ok() && echo.cookie.is_some() {
            return Err(Fault::CookieAlone);
        }
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
    asked: &mut Option<Asked<'a>>,
) -> Result<(), Fault> {
    for index in 0..count {
        let start = reader.clone();
        let name = reader.plain_name()?;
        let (kind, class) = (RecordType(reader.u16()?), reader.u16()?);
        if index == 0 {
            *asked = Some(Asked { name, kind, class });
        }
        if count == 1 {
            echo.question = reader.since(&start);
        }
    }
    Ok(())
}

/// Passes over the records and reads the OPT among them. `counts`: those before the additional section, and in it.
fn read_records<'a>(reader: &mut Reader<'a>, counts: [u32; 2], echo: &mut Echo<'a>) -> Result<(), Fault> {
    let [before, additional] = counts;
    for index in 0..before + additional {
        let owned_by_root = reader.skip_name()? == 1;
        let record = reader.record()?;
        match RecordType(record.kind) {
            RecordType::OPT => {
                // RFC 6891 §6.1.1: "If a query message with more than one OPT RR is received, a FORMERR (RCODE=1)
                // MUST be returned."
                if echo.edns.is_some() || index < before {
                    return Err(Fault::SecondOpt);
                }
                let opt = Opt::from_record(&record);
                let edns = echo.edns.insert(opt.client());
                // RFC 6891 §6.1.2: the owner "MUST be 0 (root domain)".
                if !owned_by_root {
                    return Err(Fault::OptOwner);
                }
                if opt.version != 0 {
                    return Err(Fault::Version);
                }
                let told = opt.read_options(edns)?;
                (echo.subnet, echo.cookie) = (told.subnet, told.cookie);
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

#[cfg(test)]
mod tests {
    use super::*;

    const QUESTION: &[u8] = b"\x03WwW\x07example\x03org\x00\x00\x01\x00\x01";
    const OPT: &[u8] = b"\x00\x00\x29\x10\x00\x00\x00\x80\x00\x00\x00";

    /// Header with id 0x1234, then `parts`.
    fn packet(flags: u16, counts: [u16; 4], parts: &[&[u8]]) -> Vec<u8> {
        let [questions, answers, authority, additional] = counts;
        let header = [0x1234, flags, questions, answers, authority, additional];
        header.into_iter().flat_map(u16::to_be_bytes).chain(parts.concat()).collect()
    }

    fn question(kind: u16, class: u16) -> Vec<u8> {
        [b"\x01a\x00".as_slice(), &kind.to_be_bytes(), &class.to_be_bytes()].concat()
    }

    /// An OPT of version 0 that holds `options`.
    fn opt(options: &[u8]) -> Vec<u8> {
        [&OPT[..9], &u16::try_from(options.len()).unwrap().to_be_bytes(), options].concat()
    }

    #[test]
    fn reads_a_query() {
        let bytes = packet(0x0130, [1, 0, 0, 1], &[QUESTION, OPT]);
        let mut room = Canonical::new();
        let query = parse(&bytes, &mut room).unwrap();
        assert_eq!(query.question().to_string(), "www.example.org A");
        assert_eq!(
            query.echo,
            Echo {
                id: 0x1234,
                opcode: 0,
                recursion_desired: true,
                authentic_data: true,
                checking_disabled: true,
                question: QUESTION,
                edns: Some(Edns { size: 1232, dnssec_ok: true, keepalive: false, padding: false }),
                subnet: None,
                cookie: None,
            }
        );
        assert_eq!(query.echo.udp_limit(), 1232);
    }

    #[test]
    fn clamps_the_size_that_a_client_takes() {
        let limit = |bytes: &[u8]| parse(bytes, &mut Canonical::new()).unwrap().echo.udp_limit();
        for (sent, size) in [(0, 512), (511, 512), (512, 512), (900, 900), (1232, 1232), (1233, 1232), (65_535, 1232)] {
            let mut opt = OPT.to_vec();
            opt[3..5].copy_from_slice(&u16::to_be_bytes(sent));
            let bytes = packet(0, [1, 0, 0, 1], &[QUESTION, &opt]);
            assert_eq!(limit(&bytes), size, "{sent}");
        }
        assert_eq!(limit(&packet(0, [1, 0, 0, 0], &[QUESTION])), 512);
    }

    #[test]
    fn takes_what_a_query_may_have() {
        let long = [[63; 64].as_slice(), &[63; 64], &[63; 64], &[61; 62], b"\x00\x00\x01\x00\x01"].concat();
        let rows: [(&str, Vec<u8>); 11] = [
            ("AD, Z, AA, TC and an rcode in the flags", packet(0x0667, [1, 0, 0, 0], &[QUESTION])),
            ("the root", packet(0, [1, 0, 0, 0], &[b"\x00\x00\x02\x00\x01"])),
            ("a name of 255 octets", packet(0, [1, 0, 0, 0], &[&long])),
            ("an unknown option", packet(0, [1, 0, 0, 1], &[QUESTION, &opt(b"\xff\xf0\x00\x03abc")])),
            ("an empty option", packet(0, [1, 0, 0, 1], &[QUESTION, &opt(b"\x00\x0b\x00\x00")])),
            ("EDNS flags other than DO", packet(0, [1, 0, 0, 1], &[QUESTION, b"\0\0\x29\x04\xd0\0\0\x7f\xff\0\0"])),
            (
                "a record after the OPT (SIG(0)) with a compressed owner",
                packet(0, [1, 0, 0, 2], &[QUESTION, OPT, b"\xc0\x0c\x00\x18\x00\xff\x00\x00\x00\x00\x00\x02zz"]),
            ),
            (
                "a record before the OPT",
                packet(0, [1, 0, 0, 2], &[QUESTION, b"\x01x\x00\x00\x10\x00\x01\x00\x00\x00\x00\x00\x01\x00", OPT]),
            ),
            ("ANY: policy's to judge", packet(0, [1, 0, 0, 0], &[&question(255, 1)])),
            ("a type nobody knows", packet(0, [1, 0, 0, 0], &[&question(65_280, 1)])),
            ("DS", packet(0, [1, 0, 0, 0], &[&question(43, 1)])),
        ];
        for (reason, bytes) in rows {
            let mut room = Canonical::new();
            let read = parse(&bytes, &mut room).map_err(|malformed| malformed.why);
            assert!(read.is_ok(), "{reason}: {read:?}");
        }
    }

    #[test]
    fn is_silent_to_what_is_no_query() {
        let rows: [(&str, &[u8], Fault, Option<u16>); 5] = [
            ("nothing", b"", Fault::Short, None),
            ("half an id", b"\x12", Fault::Short, None),
            ("an id", b"\x12\x34", Fault::Short, Some(0x1234)),
            ("eleven octets", b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00", Fault::Short, Some(0x1234)),
            ("a response", b"\x12\x34\x80\x00\x00\x01\x00\x00\x00\x00\x00\x00", Fault::Response, Some(0x1234)),
        ];
        for (reason, bytes, why, id) in rows {
            let mut room = Canonical::new();
            let malformed = parse(bytes, &mut room).unwrap_err();
            assert_eq!((malformed.why, malformed.id, malformed.answer), (why, id, None), "{reason}");
        }
    }

    /// What must not pass, and what is answered: the rcode, whether the question is echoed, whether there is an OPT.
    #[test]
    #[expect(clippy::type_complexity, reason = "a table")]
    fn answers_hostile_packets_with_an_error() {
        use Fault::*;
        const FORMERR: Rcode = Rcode::FORMERR;
        let one = [1, 0, 0, 0];
        let with_opt = [1, 0, 0, 1];
        let label64 = [[64].as_slice(), &[b'a'; 64], b"\x00\x00\x01\x00\x01"].concat();
        let name256 = [[63; 64].as_slice(), &[63; 64], &[63; 64], &[62; 63], b"\x00\x00\x01\x00\x01"].concat();
        let opt_v1 = b"\x00\x00\x29\x04\xd0\x00\x01\x00\x00\x00\x03???";
        let tsig = b"\x01k\x00\x00\xfa\x00\xff\x00\x00\x00\x00\x00\x00";
        let a_record = b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x00\x00\x04\xc0\x00\x02\x01";
        let rows: [(&str, Vec<u8>, Fault, Rcode, bool, bool); 44] = [
            ("IQUERY", packet(0x0800, one, &[QUESTION]), Opcode, Rcode::NOTIMP, true, false),
            ("STATUS", packet(0x1000, [0; 4], &[]), Opcode, Rcode::NOTIMP, false, false),
            ("NOTIFY", packet(0x2000, one, &[&question(6, 1)]), Opcode, Rcode::NOTIMP, true, false),
            ("UPDATE with EDNS", packet(0x2800, with_opt, &[&question(6, 1), OPT]), Opcode, Rcode::NOTIMP, true, true),
            (
                "UPDATE with TSIG",
                packet(0x2800, with_opt, &[&question(6, 1), tsig]),
                Opcode,
                Rcode::NOTIMP,
                true,
                false,
            ),
            ("DSO", packet(0x3000, [0; 4], &[b"\x00\x01\x00\x00"]), Opcode, Rcode::NOTIMP, false, false),
            (
                "an unknown opcode over garbage",
                packet(0x7800, [9; 4], &[b"\xff\xff"]),
                Opcode,
                Rcode::NOTIMP,
                false,
                false,
            ),
            ("no question", packet(0, [0; 4], &[]), QuestionCount, FORMERR, false, false),
            ("no question but an OPT", packet(0, [0, 0, 0, 1], &[OPT]), QuestionCount, FORMERR, false, true),
            ("two questions", packet(0, [2, 0, 0, 1], &[QUESTION, QUESTION, OPT]), QuestionCount, FORMERR, false, true),
            ("65,535 questions", packet(0, [65_535, 0, 0, 0], &[QUESTION]), QuestionCount, FORMERR, false, false),
            ("a question counted, not there", packet(0, one, &[]), Truncated, FORMERR, false, false),
            ("a name without end", packet(0, one, &[b"\x03www"]), Truncated, FORMERR, false, false),
            ("a label past the end", packet(0, one, &[b"\x3fwww"]), Truncated, FORMERR, false, false),
            ("no type", packet(0, one, &[b"\x01a\x00"]), Truncated, FORMERR, false, false),
            ("half a class", packet(0, one, &[b"\x01a\x00\x00\x01\x00"]), Truncated, FORMERR, false, false),
            ("a label of 64", packet(0, one, &[&label64]), Label, FORMERR, false, false),
            ("a label of type 0x80", packet(0, one, &[b"\x80\x00\x00\x01\x00\x01"]), Label, FORMERR, false, false),
            ("a name of 256", packet(0, one, &[&name256]), NameTooLong, FORMERR, false, false),
            ("a pointer to itself", packet(0, one, &[b"\xc0\x0c\x00\x01\x00\x01"]), Pointer, FORMERR, false, false),
            (
                "a pointer forward",
                packet(0, one, &[b"\x01a\xc0\x10\x00\x00\x01\x00\x01"]),
                Pointer,
                FORMERR,
                false,
                false,
            ),
            (
                "a pointer into the header",
                packet(0, one, &[b"\xc0\x02\x00\x01\x00\x01"]),
                Pointer,
                FORMERR,
                false,
                false,
            ),
            ("class CH", packet(0, one, &[&question(16, 3)]), Class, Rcode::REFUSED, true, false),
            ("class ANY", packet(0, one, &[&question(1, 255)]), Class, Rcode::REFUSED, true, false),
            ("AXFR", packet(0, one, &[&question(252, 1)]), Transfer, Rcode::REFUSED, true, false),
            (
                "IXFR with its SOA",
                packet(0, [1, 0, 1, 0], &[&question(251, 1), a_record]),
                Transfer,
                Rcode::REFUSED,
                true,
                false,
            ),
            ("type 0", packet(0, one, &[&question(0, 1)]), NoSuchQuestion, FORMERR, true, false),
            ("type OPT", packet(0, one, &[&question(41, 1)]), NoSuchQuestion, FORMERR, true, false),
            ("NXNAME", packet(0, one, &[&question(128, 1)]), NoSuchQuestion, FORMERR, true, false),
            ("TKEY", packet(0, with_opt, &[&question(249, 1), OPT]), MetaType, Rcode::NOTIMP, true, true),
            ("MAILB", packet(0, one, &[&question(253, 1)]), MetaType, Rcode::NOTIMP, true, false),
            ("an answer in a query", packet(0, [1, 1, 0, 0], &[QUESTION, a_record]), Sections, FORMERR, true, false),
            (
                "authority in a query",
                packet(0, [1, 0, 1, 1], &[QUESTION, a_record, OPT]),
                Sections,
                FORMERR,
                true,
                true,
            ),
            ("65,535 records, none there", packet(0, [1, 0, 0, 65_535], &[QUESTION]), Truncated, FORMERR, true, false),
            (
                "a record cut in its data",
                packet(0, with_opt, &[QUESTION, &a_record[..15]]),
                Truncated,
                FORMERR,
                true,
                false,
            ),
            ("trailing octets", packet(0, one, &[QUESTION, b"\x00"]), Trailing, FORMERR, true, false),
            ("trailing octets after an OPT", packet(0, with_opt, &[QUESTION, OPT, OPT]), Trailing, FORMERR, true, true),
            ("two OPT", packet(0, [1, 0, 0, 2], &[QUESTION, OPT, OPT]), SecondOpt, FORMERR, true, true),
            (
                "an OPT in the answer section",
                packet(0, [1, 1, 0, 0], &[QUESTION, OPT]),
                SecondOpt,
                FORMERR,
                true,
                false,
            ),
            ("an OPT with an owner", packet(0, with_opt, &[QUESTION, b"\x01a", OPT]), OptOwner, FORMERR, true, true),
            (
                "an option past the OPT's end",
                packet(0, with_opt, &[QUESTION, &opt(b"\x00\x0a\x00\x09abc")]),
                OptLength,
                FORMERR,
                true,
                true,
            ),
            (
                "half an option head",
                packet(0, with_opt, &[QUESTION, &opt(b"\x00\x0a\x00")]),
                OptLength,
                FORMERR,
                true,
                true,
            ),
            (
                "EDNS version 1, its options unread",
                packet(0, with_opt, &[QUESTION, opt_v1]),
                Version,
                Rcode::BADVERS,
                true,
                true,
            ),
            ("TSIG", packet(0, [1, 0, 0, 2], &[QUESTION, OPT, tsig]), Signed, Rcode::NOTIMP, true, true),
        ];
        for (reason, bytes, why, rcode, echoed, edns) in rows {
            let mut room = Canonical::new();
            let malformed = parse(&bytes, &mut room).unwrap_err();
            assert_eq!((malformed.why, malformed.id), (why, Some(0x1234)), "{reason}");
            let (got, echo) = malformed.answer.unwrap();
            assert_eq!((got, !echo.question.is_empty(), echo.edns.is_some()), (rcode, echoed, edns), "{reason}");
            assert_eq!(u16::from(echo.opcode), u16::from_be_bytes([bytes[2], bytes[3]]) >> 11, "{reason}");
            assert!(!echoed || malformed.name.is_some() && malformed.kind.is_some(), "{reason}");
        }
    }

    #[test]
    fn names_the_first_of_two_questions_for_the_record() {
        let bytes = packet(0, [2, 0, 0, 0], &[QUESTION, &question(28, 1)]);
        let mut room = Canonical::new();
        let malformed = parse(&bytes, &mut room).unwrap_err();
        assert_eq!(malformed.name, Some(b"\x03www\x07example\x03org\0".as_slice()));
        assert_eq!(malformed.kind, Some(RecordType::A));
    }
}
