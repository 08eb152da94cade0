//! [`Fault`]: why bytes are not the message they should be, and what a client is told of it.

use crate::record::Rcode;

/// What is wrong with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("{}", self.as_str())]
pub enum Fault {
    /// Fewer octets than a header has.
    Short,
    /// QR is set where a query was expected.
    Response,
    /// An opcode other than QUERY.
    Opcode,
    /// Not exactly one question (of an upstream message: more than one).
    QuestionCount,
    /// A question of a class other than IN.
    Class,
    /// AXFR or IXFR.
    Transfer,
    /// A type that stands for no data and cannot be asked for: 0, OPT, NXNAME, TSIG.
    NoSuchQuestion,
    /// A meta type that is not served (RFC 6895 §3.1), such as TKEY or MAILB.
    MetaType,
    /// A query with answer or authority records.
    Sections,
    /// A TSIG record in a query.
    Signed,
    /// The packet ends inside a field.
    Truncated,
    /// Octets after the last counted record.
    Trailing,
    /// A label longer than 63 octets, or of an unknown label type.
    Label,
    /// A name longer than 255 octets.
    NameTooLong,
    /// A compression pointer where none may be.
    Pointer,
    /// A compression pointer that does not lead to earlier octets, or too many in a row.
    PointerLoop,
    /// More than one OPT record, or one outside the additional section.
    SecondOpt,
    /// An OPT record whose owner is not the root.
    OptOwner,
    /// EDNS options that do not fill their record exactly.
    OptLength,
    /// A client subnet that does not have the shape of one.
    Subnet,
    /// A cookie that is too short or too long for one.
    Cookie,
    /// A cookie and no question, which asks for the server's half (RFC 7873 §5.4).
    CookieAlone,
    /// No PROXY header, or a broken one, where every message is to have one.
    Unproxied,
    /// A message id over QUIC, where a stream says what a reply belongs to.
    Id,
    /// The EDNS option edns-tcp-keepalive over QUIC.
    Keepalive,
    /// An EDNS version above 0.
    Version,
    /// More records in a section than are read.
    TooManyRecords,
    /// RDATA that does not have the shape of its type.
    Data,
}

impl Fault {
    /// One clause for the record's `why`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Short => "shorter than a DNS header",
            Self::Response => "a response where a query was expected",
            Self::Opcode => "an opcode other than QUERY",
            Self::QuestionCount => "not exactly one question",
            Self::Class => "a class other than IN",
            Self::Transfer => "a zone transfer",
            Self::NoSuchQuestion => "a type that cannot be asked for",
            Self::MetaType => "a meta type that is not served",
            Self::Sections => "a query with answer or authority records",
            Self::Signed => "a TSIG signature",
            Self::Truncated => "the packet ends inside a field",
            Self::Trailing => "octets after the last record",
            Self::Label => "a label longer than 63 octets",
            Self::NameTooLong => "a name longer than 255 octets",
            Self::Pointer => "a compression pointer in the question",
            Self::PointerLoop => "a compression pointer that does not lead backwards",
            Self::SecondOpt => "a second or misplaced OPT record",
            Self::OptOwner => "an OPT record not owned by the root",
            Self::OptLength => "EDNS options that do not fill their record",
            Self::Subnet => "a client subnet that is none",
            Self::Cookie => "a cookie that is none",
            Self::CookieAlone => "a cookie and no question",
            Self::Unproxied => "no PROXY header, version 2",
            Self::Id => "a message id over QUIC",
            Self::Keepalive => "edns-tcp-keepalive over QUIC",
            Self::Version => "an EDNS version above 0",
            Self::TooManyRecords => "too many records",
            Self::Data => "record data not of the shape of its type",
        }
    }

    /// What a client is told; `None`: silence.
    #[must_use]
    pub const fn rcode(self) -> Option<Rcode> {
        match self {
            // There is no id to answer to; and answering a response invites two servers to talk forever.
            Self::Short | Self::Response => None,
            // RFC 9250 §4.3.3: the connection ends with DOQ_PROTOCOL_ERROR.
            Self::Id | Self::Keepalive => None,
            // RFC 1035 §4.1.1: "Not Implemented - The name server does not support the requested kind of query."
            // RFC 8945 §5.2.1 would have NOTAUTH with a TSIG of our own, which takes an implementation of TSIG.
            Self::Opcode | Self::MetaType | Self::Signed => Some(Rcode::NOTIMP),
            // RFC 1035 §4.1.1: "a name server may not wish to perform a particular operation (e.g., zone transfer)".
            Self::Class | Self::Transfer | Self::Unproxied => Some(Rcode::REFUSED),
            // RFC 6891 §6.1.3: "If a responder does not implement the VERSION level of the request, then it MUST
            // respond with RCODE=BADVERS."
            Self::Version => Some(Rcode::BADVERS),
            // RFC 7873 §5.4, unless the server's half in it is wrong.
            Self::CookieAlone => Some(Rcode::NOERROR),
            Self::QuestionCount
            | Self::NoSuchQuestion
            | Self::Sections
            | Self::Truncated
            | Self::Trailing
            | Self::Label
            | Self::NameTooLong
            | Self::Pointer
            | Self::PointerLoop
            | Self::SecondOpt
            | Self::OptOwner
            | Self::OptLength
            | Self::Subnet
            | Self::Cookie
            | Self::TooManyRecords
            | Self::Data => Some(Rcode::FORMERR),
        }
    }
}
