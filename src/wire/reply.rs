//! Replies: [`Template`], the part of an answer that is the same for every client, and its one writer.

use super::compression::Compressor;
use super::edns::{opt_length, push_opt};
use super::{Echo, HEADER, IN, TCP_LIMIT, flag, rdata};
use crate::name::Name;
use crate::record::{ExtendedError, Proof, Question, Rcode, Record, RecordType};
use crate::time::Ttl;

/// How long a refusal may be kept: a client learns of a new rule within this time.
pub const REFUSAL_TTL: Ttl = Ttl::from_wire(5);

/// The SOA of a refusal as it follows any question: owned by the question's name (a pointer), TTL 5 s,
/// outgate.invalid hostmaster.outgate.invalid, serial 1, refresh 3600, retry 600, expire 86400, minimum 5.
const REFUSAL_SOA: &[u8; 77] = b"\xc0\x0c\x00\x06\x00\x01\x00\x00\x00\x05\x00\x41\
    \x07outgate\x07invalid\x00\x0ahostmaster\x07outgate\x07invalid\x00\
    \x00\x00\x00\x01\x00\x00\x0e\x10\x00\x00\x02\x58\x00\x01\x51\x80\x00\x00\x00\x05";

/// The answer and authority sections of the answer to one question, encoded. The id, the question's case,
/// the flags RD and CD, the EDNS and the TTL are put in when it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// The question's name, both sections, and two octets for each TTL in them: where it stands. All that a reply is
    /// known by and made of is in one place, so that a reply that no processor's cache holds is waited for once.
    octets: Box<[u8]>,
    /// Where the sections end.
    end: u32,
    /// The length of the name; they begin behind it.
    name: u8,
    authoritative: bool,
    authentic: bool,
    kind: RecordType,
    rcode: Rcode,
    answers: u16,
    authority: u16,
    ede: Option<Box<ExtendedError>>,
}

/// What a template says in the header's flags.
#[derive(Clone, Copy)]
struct Flags {
    authoritative: bool,
    authentic: bool,
}

/// What was appended to the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// How many octets.
    pub len: usize,
    /// TC is set: the records did not fit.
    pub truncated: bool,
    /// Octets 2 and 3 of the header.
    pub flags: u16,
    /// The octets of its EDNS options, which end it.
    pub options: usize,
}

impl Template {
    /// Encodes `records` as the answer section, `soa` as the authority section of a negative answer. Not authentic.
    #[must_use]
    pub fn new(
        question: &Question,
        rcode: Rcode,
        authoritative: bool,
        records: &[Record],
        soa: Option<&Record>,
        ede: Option<&ExtendedError>,
    ) -> Self {
        let flags = Flags { authoritative, authentic: false };
        Self::of_sections(question, rcode, flags, records.iter(), soa.into_iter(), ede)
    }

    /// Encodes `records` and `soa` as an authentic answer (RFC 4035 §3.2.3): for those who want no signatures, and with those of
    /// `proof` for those who do.
    #[must_use]
    pub fn authentic(
        question: &Question,
        rcode: Rcode,
        records: &[Record],
        soa: Option<&Record>,
        ede: Option<&ExtendedError>,
        proof: &Proof,
    ) -> [Self; 2] {
        let flags = Flags { authoritative: false, authentic: true };
        let (answers, authority) = (records.iter().chain(&proof.answers), soa.into_iter().chain(&proof.authority));
        [
            Self::of_sections(question, rcode, flags, records.iter(), soa.into_iter(), ede),
            Self::of_sections(question, rcode, flags, answers, authority, ede),
        ]
    }

    fn of_sections<'a>(
        question: &'a Question,
        rcode: Rcode,
        Flags { authoritative, authentic }: Flags,
        records: impl Iterator<Item = &'a Record>,
        authority: impl Iterator<Item = &'a Record>,
        ede: Option<&ExtendedError>,
    ) -> Self {
        let asked = question.name.as_wire();
        let mut encoder = Encoder {
            body: Vec::new(),
            ttls: Vec::new(),
            base: HEADER + asked.len() + 4,
            names: Compressor::new(asked),
        };
        let (answers, authority) = (encoder.push_all(records), encoder.push_all(authority));
        let Encoder { body, ttls, .. } = encoder;
        let mut octets = Vec::with_capacity(asked.len() + body.len() + 2 * ttls.len());
        octets.extend_from_slice(asked);
        octets.extend_from_slice(&body);
        let end = u32::try_from(octets.len()).unwrap_or(u32::MAX);
        octets.extend(ttls.iter().flat_map(|place| place.to_be_bytes()));
        Self {
            octets: octets.into(),
            end,
            name: u8::try_from(asked.len()).unwrap_or(u8::MAX),
            authoritative,
            authentic,
            kind: question.kind,
            rcode,
            answers,
            authority,
            ede: ede.cloned().map(Box::new),
        }
    }

    /// The name that it answers, canonical.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        self.octets.get(..self.name.into()).unwrap_or_default()
    }

    /// Whether this is what it answers; `name` is canonical.
    #[must_use]
    pub fn answers(&self, name: &[u8], kind: RecordType) -> bool {
        self.kind == kind && self.octets.get(..self.name.into()) == Some(name)
    }

    /// The code that [`write`](Self::write) gives.
    #[must_use]
    pub const fn rcode(&self) -> Rcode {
        self.rcode
    }

    /// About how many bytes it takes besides itself.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.octets.len() + self.ede.as_ref().map_or(0, |ede| size_of_val(&**ede) + ede.text.len())
    }

    /// Appends the reply to `echo`, which asks this template's question, in whatever case. Every record is told
    /// with `ttl`. At most `limit` octets ([`Echo::udp_limit`] or [`TCP_LIMIT`], never under 512) are written: an
    /// extended error gives way first, then all records, with TC. Allocates only where `out` lacks capacity.
    ///
    /// An echo of a question of another length cannot be answered from here and gets SERVFAIL.
    pub fn write(&self, out: &mut Vec<u8>, echo: &Echo<'_>, ttl: Ttl, limit: usize) -> Written {
        let ede = self.ede.as_ref().map(|ede| (ede.code, &*ede.text));
        let name = usize::from(self.name);
        if echo.question.len() != name + 4 {
            return Reply { ede, ..Reply::empty(Rcode::SERVFAIL) }.write(out, echo, ttl, limit);
        }
        let (body, ttls) = self.octets.split_at_checked(self.end as usize).unwrap_or_default();
        Reply {
            rcode: self.rcode,
            authoritative: self.authoritative,
            authentic: self.authentic,
            answers: self.answers,
            authority: self.authority,
            body: body.get(name..).unwrap_or_default(),
            ttls: ttls.as_chunks().0,
            ede,
        }
        .write(out, echo, ttl, limit)
    }
}

/// Appends a reply without answers: an error, or a refusal. NXDOMAIN and NOERROR (NODATA) carry an SOA, owned by the
/// question's own name, so that a client keeps them for [`REFUSAL_TTL`] (RFC 2308 §5) and learns nothing of where
/// zones begin. Other codes carry none. `limit` as in [`Template::write`].
pub fn write_refusal(
    out: &mut Vec<u8>,
    echo: &Echo<'_>,
    rcode: Rcode,
    ede: Option<&ExtendedError>,
    limit: usize,
) -> Written {
    let mut reply = Reply::empty(rcode);
    reply.ede = ede.map(|ede| (ede.code, &*ede.text));
    if (rcode == Rcode::NXDOMAIN || rcode == Rcode::NOERROR) && !echo.question.is_empty() {
        (reply.authority, reply.body) = (1, REFUSAL_SOA);
    }
    reply.write(out, echo, REFUSAL_TTL, limit)
}

/// The SOA that [`write_refusal`] tells for `name`, for a [`Template`] of a negative answer of our own making.
#[must_use]
pub fn refusal_soa(name: &Name) -> Record {
    let data = REFUSAL_SOA.split_at(12).1;
    Record { name: name.clone(), kind: RecordType::SOA, ttl: REFUSAL_TTL, data: data.into() }
}

/// The records of a reply being encoded.
struct Encoder<'a> {
    body: Vec<u8>,
    ttls: Vec<u16>,
    /// The offset of the body in the message.
    base: usize,
    names: Compressor<'a>,
}

impl<'a> Encoder<'a> {
    /// Appends a section; its count in the header. A section of more has a body beyond every limit, and is never written.
    fn push_all(&mut self, records: impl Iterator<Item = &'a Record>) -> u16 {
        let pushed = records.map(|record| self.push(record)).count();
        u16::try_from(pushed).unwrap_or(u16::MAX)
    }

    fn push(&mut self, record: &'a Record) {
        self.names.push_name(&mut self.body, self.base, record.name.as_wire());
        self.body.extend_from_slice(&record.kind.0.to_be_bytes());
        self.body.extend_from_slice(&IN.to_be_bytes());
        // Beyond 65,535 octets the body is never written, and its TTLs need no place.
        self.ttls.extend(u16::try_from(self.body.len()).ok());
        self.body.extend_from_slice(&[0; 6]);
        let start = self.body.len();
        match rdata::compressible(record.kind, &record.data) {
            None => self.body.extend_from_slice(&record.data),
            Some(rdata::Parts { prefix, names, tail }) => {
                self.body.extend_from_slice(prefix);
                for name in names {
                    self.names.push_name(&mut self.body, self.base, name);
                }
                self.body.extend_from_slice(tail);
            }
        }
        let length = u16::try_from(self.body.len() - start).unwrap_or(u16::MAX);
        if let Some(field) = self.body.get_mut(start - 2..start) {
            field.copy_from_slice(&length.to_be_bytes());
        }
    }
}

/// A reply about to be written: what does not come from the echo.
#[derive(Clone, Copy)]
struct Reply<'a> {
    rcode: Rcode,
    authoritative: bool,
    authentic: bool,
    answers: u16,
    authority: u16,
    body: &'a [u8],
    ttls: &'a [[u8; 2]],
    ede: Option<(u16, &'a str)>,
}

impl Reply<'_> {
    const fn empty(rcode: Rcode) -> Self {
        Self {
            rcode,
            authoritative: false,
            authentic: false,
            answers: 0,
            authority: 0,
            body: &[],
            ttls: &[],
            ede: None,
        }
    }

    /// Writes what of it has room. Part of each of its two callers: half of it is known there.
    #[inline(always)]
    fn write(self, out: &mut Vec<u8>, echo: &Echo<'_>, ttl: Ttl, limit: usize) -> Written {
        let limit = limit.min(TCP_LIMIT);
        if self.length(echo) <= limit { self.put(out, echo, ttl, 0) } else { self.write_cut(out, echo, ttl, limit) }
    }

    fn length(&self, echo: &Echo<'_>) -> usize {
        HEADER + echo.question.len() + self.body.len() + if echo.edns.is_some() { opt_length(self.ede) } else { 0 }
    }

    /// RFC 8914 §3: an extended error is worth less than the records. First its text goes, then the whole of it, then the
    /// records, and then it may come back.
    #[cold]
    fn write_cut(self, out: &mut Vec<u8>, echo: &Echo<'_>, ttl: Ttl, limit: usize) -> Written {
        let bare = Self { authentic: false, answers: 0, authority: 0, body: &[], ttls: &[], ..self };
        let edes = [self.ede, self.ede.map(|(code, _)| (code, "")), None];
        let cuts = [(self, 0), (bare, flag::TC)]
            .into_iter()
            .flat_map(|(form, cut)| edes.map(|ede| (Self { ede, ..form }, cut)));
        let (form, cut) =
            cuts.clone().find(|(form, _)| form.length(echo) <= limit).unwrap_or((Self { ede: None, ..bare }, flag::TC));
        form.put(out, echo, ttl, cut)
    }

    /// The only place that writes a reply. `cut` is TC where the records did not fit.
    #[inline(always)]
    fn put(self, out: &mut Vec<u8>, echo: &Echo<'_>, ttl: Ttl, cut: u16) -> Written {
        // The upper bits of an extended rcode stand in the OPT (RFC 6891 §6.1.3): without one, 16 would read as
        // NOERROR.
        let rcode = if self.rcode.0 > 0xf && echo.edns.is_none() { Rcode::SERVFAIL.0 } else { self.rcode.0 };
        let mut flags = flag::QR | flag::RA | u16::from(echo.opcode & 0xf) << 11 | rcode & 0xf | cut;
        // RFC 6840 §5.8: AD is for who asked for signatures, or for AD.
        let authentic = self.authentic && (echo.authentic_data || echo.edns.is_some_and(|edns| edns.dnssec_ok));
        for (set, bit) in [
            (self.authoritative, flag::AA),
            (authentic, flag::AD),
            (echo.recursion_desired, flag::RD),
            (echo.checking_disabled, flag::CD),
        ] {
            flags |= if set { bit } else { 0 };
        }
        let ([id, id_low], [high, low]) = (echo.id.to_be_bytes(), flags.to_be_bytes());
        let ([an, an_low], [ns, ns_low]) = (self.answers.to_be_bytes(), self.authority.to_be_bytes());
        let (questions, additional) = (u8::from(!echo.question.is_empty()), u8::from(echo.edns.is_some()));

        let start = out.len();
        out.reserve(self.length(echo));
        out.extend_from_slice(&[id, id_low, high, low, 0, questions, an, an_low, ns, ns_low, 0, additional]);
        out.extend_from_slice(echo.question);
        let base = out.len();
        out.extend_from_slice(self.body);
        if let Some(body) = out.get_mut(base..) {
            let ttl = ttl.seconds().to_be_bytes();
            for &place in self.ttls {
                let place = usize::from(u16::from_be_bytes(place));
                if let Some(field) = body.get_mut(place..).and_then(<[u8]>::first_chunk_mut) {
                    *field = ttl;
                }
            }
        }
        if let Some(edns) = echo.edns {
            let [_, rcode_high] = (rcode >> 4).to_be_bytes();
            push_opt(out, rcode_high, edns.dnssec_ok, self.ede);
        }
        let options = opt_length(self.ede) - opt_length(None);
        Written { len: out.len() - start, truncated: cut != 0, flags, options }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Edns, parse_message};

    const ASKED: &[u8] = b"\x01A\x07eXample\x03org\x00\x00\x01\x00\x01";

    fn question() -> Question {
        Question { name: Name::parse("a.example.org").unwrap(), kind: RecordType::A }
    }

    fn echo(edns: bool) -> Echo<'static> {
        let edns = edns.then_some(Edns { size: 1232, dnssec_ok: true, keepalive: false, padding: false });
        Echo {
            id: 0xabcd,
            opcode: 0,
            recursion_desired: true,
            authentic_data: false,
            checking_disabled: true,
            question: ASKED,
            edns,
            subnet: None,
            cookie: None,
        }
    }

    /// `count` addresses for the question's name.
    fn addresses(count: u8) -> Vec<Record> {
        (0..count)
            .map(|last| Record::of_address(question().name, Ttl::from_wire(9), [192, 0, 2, last].into()))
            .collect()
    }

    #[test]
    fn writes_these_octets() {
        let template = Template::new(&question(), Rcode::NOERROR, true, &addresses(1), None, None);
        let mut out = b"before".to_vec();
        let written = template.write(&mut out, &echo(true), Ttl::from_wire(60), 1232);
        let expected = [
            b"before\xab\xcd\x85\x90\x00\x01\x00\x01\x00\x00\x00\x01".as_slice(),
            ASKED,
            b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\xc0\x00\x02\x00",
            b"\x00\x00\x29\x04\xd0\x00\x00\x80\x00\x00\x00",
        ]
        .concat();
        assert_eq!(out, expected);
        assert_eq!(written, Written { len: expected.len() - 6, truncated: false, flags: 0x8590, options: 0 });
    }

    #[test]
    fn compresses_rdata_of_the_types_of_rfc_1035_alone() {
        let name = question().name;
        let full = name.as_wire().len();
        for (kind, prefix, length) in [
            (RecordType::CNAME, 0, 2),
            (RecordType::PTR, 0, 2),
            (RecordType::MX, 2, 4),
            (RecordType::SRV, 6, 6 + full),
            (RecordType::DNAME, 0, full),
            (RecordType::SVCB, 2, 2 + full),
            (RecordType(731), 0, full),
        ] {
            let data = [&[0; 6][..prefix], name.as_wire()].concat().into();
            let record = Record { name: name.clone(), kind, ttl: Ttl::ZERO, data };
            let template = Template::new(&question(), Rcode::NOERROR, false, &[record], None, None);
            assert_eq!(template.end as usize - usize::from(template.name), 12 + length, "{kind}");
        }
    }

    #[test]
    fn truncates_cleanly() {
        // 12 + 19 + 30 × 16 = 511 octets, 522 with OPT.
        let rows = [
            ("fits without EDNS", 30, false, 512, Some(511)),
            ("one too many without EDNS", 31, false, 512, None),
            ("the OPT does not fit 512", 30, true, 512, None),
            ("fits 522", 30, true, 522, Some(522)),
            ("more than the largest datagram", 75, true, 1232, None),
            ("on a stream", 75, true, TCP_LIMIT, Some(12 + 19 + 75 * 16 + 11)),
        ];
        for (reason, count, edns, limit, expected) in rows {
            let template = Template::new(&question(), Rcode::NOERROR, false, &addresses(count), None, None);
            let mut out = Vec::new();
            let written = template.write(&mut out, &echo(edns), Ttl::ZERO, limit);
            let message = parse_message(&out).unwrap();
            assert_eq!((written.len, written.truncated), (out.len(), expected.is_none()), "{reason}");
            assert_eq!(out.len(), expected.unwrap_or(if edns { 42 } else { 31 }), "{reason}");
            assert_eq!(message.truncated, written.truncated, "{reason}");
            assert_eq!(message.answers.len(), expected.map_or(0, |_| usize::from(count)), "{reason}");
            assert_eq!(message.edns.is_some(), edns, "{reason}");
        }
    }

    #[test]
    fn an_extended_error_gives_way_before_a_record_does() {
        let ede = ExtendedError::new(ExtendedError::BLOCKED, "no rule");
        let template = Template::new(&question(), Rcode::NOERROR, false, &addresses(30), None, Some(&ede));
        let code_alone = ExtendedError::new(ExtendedError::BLOCKED, "");
        let rows = [
            ("whole", 535, true, 30, Some(&ede)),
            ("its text does not fit", 534, true, 30, Some(&code_alone)),
            ("its code fits", 528, true, 30, Some(&code_alone)),
            ("its code does not fit", 527, true, 30, None),
            ("no record fits, so it does", 521, true, 0, Some(&ede)),
            ("a client without EDNS", 1232, false, 30, None),
        ];
        for (reason, limit, edns, answers, expected) in rows {
            let mut out = Vec::new();
            let written = template.write(&mut out, &echo(edns), Ttl::ZERO, limit);
            let message = parse_message(&out).unwrap();
            assert!(written.len <= limit, "{reason}");
            assert_eq!(message.answers.len(), answers, "{reason}");
            assert_eq!(message.ede.as_ref(), expected, "{reason}");
        }
    }

    #[test]
    fn a_refusal_carries_an_soa_that_denies_no_other_name() {
        let ede = ExtendedError::new(ExtendedError::BLOCKED, "no rule allows this name");
        for (rcode, soa) in [
            (Rcode::NXDOMAIN, true),
            (Rcode::NOERROR, true),
            (Rcode::REFUSED, false),
            (Rcode::SERVFAIL, false),
            (Rcode::FORMERR, false),
        ] {
            let mut out = Vec::new();
            let written = write_refusal(&mut out, &echo(true), rcode, Some(&ede), 512);
            let message = parse_message(&out).unwrap();
            assert_eq!((message.rcode, message.ede.as_ref()), (rcode, Some(&ede)));
            assert_eq!(message.authority, if soa { vec![refusal_soa(&question().name)] } else { vec![] });
            assert_eq!(written.flags, 0x8190 | rcode.0);
        }
        let soa = refusal_soa(&question().name);
        assert_eq!((soa.ttl, soa.soa_minimum()), (REFUSAL_TTL, Some(REFUSAL_TTL)));

        let template = Template::new(&question(), Rcode::NXDOMAIN, false, &[], Some(&soa), Some(&ede));
        let (mut a, mut b) = (Vec::new(), Vec::new());
        template.write(&mut a, &echo(true), REFUSAL_TTL, 512);
        write_refusal(&mut b, &echo(true), Rcode::NXDOMAIN, Some(&ede), 512);
        assert_eq!(parse_message(&a), parse_message(&b));
    }

    #[test]
    fn an_error_has_no_more_than_its_query() {
        let unread = |edns| Echo { question: &[], opcode: 5, ..echo(edns) };
        let mut out = Vec::new();
        write_refusal(&mut out, &unread(false), Rcode::NOTIMP, None, 512);
        assert_eq!(out, b"\xab\xcd\xa9\x94\x00\x00\x00\x00\x00\x00\x00\x00");
        out.clear();
        write_refusal(&mut out, &unread(true), Rcode::BADVERS, None, 512);
        assert_eq!(out, b"\xab\xcd\xa9\x90\0\0\0\0\0\0\0\x01\x00\x00\x29\x04\xd0\x01\x00\x80\x00\x00\x00");
        out.clear();
        write_refusal(&mut out, &unread(false), Rcode::BADVERS, None, 512);
        assert_eq!(out[3] & 0xf, 2, "without an OPT there is no rcode 16: SERVFAIL, not NOERROR");
    }

    #[test]
    fn another_question_gets_no_answer() {
        let template = Template::new(&question(), Rcode::NOERROR, false, &addresses(2), None, None);
        let other = Echo { question: b"\x02bb\x07example\x03org\x00\x00\x01\x00\x01", ..echo(false) };
        let mut out = Vec::new();
        template.write(&mut out, &other, Ttl::ZERO, 512);
        let message = parse_message(&out).unwrap();
        assert_eq!((message.rcode, message.answers.len()), (Rcode::SERVFAIL, 0));
    }

    #[test]
    fn an_answer_beyond_every_limit_is_truncated_even_on_a_stream() {
        let records =
            vec![
                Record { name: question().name, kind: RecordType::TXT, ttl: Ttl::ZERO, data: vec![0; 40_000].into() };
                2
            ];
        let template = Template::new(&question(), Rcode::NOERROR, false, &records, None, None);
        let mut out = Vec::new();
        assert!(template.write(&mut out, &echo(false), Ttl::ZERO, usize::MAX).truncated);
        assert_eq!(out.len(), 31);
    }
}
