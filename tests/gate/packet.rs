//! Packets as a client builds and reads them, by a library that the product answers without.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::rdata::HTTPS;
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::rdata::svcb::{SVCB, SvcParamValue};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};

/// A query.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) name: Name,
    pub(crate) kind: RecordType,
    /// The size in its OPT record; `None`: no OPT record.
    pub(crate) edns: Option<u16>,
    pub(crate) dnssec_ok: bool,
    pub(crate) version: u8,
    pub(crate) recursion_desired: bool,
    pub(crate) checking_disabled: bool,
    pub(crate) authentic_data: bool,
    pub(crate) class: DNSClass,
    pub(crate) opcode: OpCode,
    pub(crate) options: Vec<(u16, Vec<u8>)>,
}

impl Ask {
    /// A query as most stubs send it, with EDNS.
    pub(crate) fn new(name: &str, kind: RecordType) -> Self {
        let mut name = Name::from_ascii(name).unwrap();
        name.set_fqdn(true);
        Self {
            name,
            kind,
            edns: Some(1232),
            dnssec_ok: false,
            version: 0,
            recursion_desired: true,
            checking_disabled: false,
            authentic_data: false,
            class: DNSClass::IN,
            opcode: OpCode::Query,
            options: Vec::new(),
        }
    }

    /// As octets.
    pub(crate) fn bytes(&self, id: u16) -> Vec<u8> {
        let mut message = Message::new(id, MessageType::Query, self.opcode);
        message.metadata.recursion_desired = self.recursion_desired;
        message.metadata.checking_disabled = self.checking_disabled;
        message.metadata.authentic_data = self.authentic_data;
        let mut query = Query::query(self.name.clone(), self.kind);
        query.set_query_class(self.class);
        message.add_query(query);
        if let Some(size) = self.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(size).set_version(self.version).set_dnssec_ok(self.dnssec_ok);
            for (code, data) in &self.options {
                edns.options_mut().insert(EdnsOption::Unknown(*code, data.clone()));
            }
            message.set_edns(edns);
        }
        message.to_vec().unwrap()
    }
}

/// A reply.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) message: Message,
    bytes: Vec<u8>,
}

impl Reply {
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, String> {
        let message = Message::from_vec(bytes).map_err(|error| format!("the reply cannot be read: {error}"))?;
        Ok(Self { message, bytes: bytes.to_vec() })
    }

    /// The addresses told, those that services hint at among them, with their TTLs.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = (IpAddr, u32)> {
        self.message.answers.iter().flat_map(|record| {
            let addresses: Vec<IpAddr> = match &record.data {
                RData::A(address) => vec![address.0.into()],
                RData::AAAA(address) => vec![address.0.into()],
                RData::HTTPS(HTTPS(service)) | RData::SVCB(service) => hints(service),
                _ => Vec::new(),
            };
            addresses.into_iter().map(|address| (address, record.ttl))
        })
    }

    /// The extended error.
    pub(crate) fn ede(&self) -> Option<(u16, String)> {
        let (code, text) = self.option(15)?.split_first_chunk::<2>()?;
        Some((u16::from_be_bytes(*code), String::from_utf8_lossy(text).into_owned()))
    }

    /// The data of an EDNS option, as it was sent.
    pub(crate) fn option(&self, code: u16) -> Option<&[u8]> {
        // The OPT is the last record: root, type, class, TTL, length, options.
        let opt = b"\0\0\x29";
        self.message.edns.as_ref()?;
        let start = (12..self.bytes.len()).find(|at| {
            let length = self.bytes.get(at + 9..at + 11).map(|field| u16::from_be_bytes([field[0], field[1]]).into());
            self.bytes[*at..].starts_with(opt) && length.map(|length: usize| at + 11 + length) == Some(self.bytes.len())
        })?;
        let mut options = &self.bytes[start + 11..];
        while let Some(([c, d, l, m], rest)) = options.split_first_chunk::<4>() {
            let (data, rest) = rest.split_at_checked(u16::from_be_bytes([*l, *m]).into())?;
            if u16::from_be_bytes([*c, *d]) == code {
                return Some(data);
            }
            options = rest;
        }
        None
    }

    /// Those of the header's flags that are set.
    pub(crate) fn flags(&self) -> Vec<&'static str> {
        let of = &self.message.metadata;
        let flags = [
            (of.authoritative, "AA"),
            (of.truncation, "TC"),
            (of.recursion_desired, "RD"),
            (of.recursion_available, "RA"),
            (of.authentic_data, "AD"),
            (of.checking_disabled, "CD"),
        ];
        flags.into_iter().filter(|(set, _)| *set).map(|(_, name)| name).collect()
    }

    /// How long it is.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// What every reply repeats of its query and what it never says.
    pub(crate) fn check_echo(&self, query: &[u8]) -> Result<(), String> {
        let (asked, told) = (&query[..12], &self.bytes[..12]);
        let flag = |octet: usize, bit: u8| (asked[octet] & bit != 0, told[octet] & bit != 0);
        let wrong = [
            ("the id is not the query's", asked[..2] != told[..2]),
            ("QR is not set", told[2] & 0x80 == 0),
            ("the opcode is not the query's", asked[2] & 0x78 != told[2] & 0x78),
            ("RD is not the query's", flag(2, 0x01).0 != flag(2, 0x01).1),
            ("CD is not the query's", flag(3, 0x10).0 != flag(3, 0x10).1),
            ("RA is not set", told[3] & 0x80 == 0),
            ("AD is set", told[3] & 0x20 != 0),
        ];
        if let Some((fact, _)) = wrong.iter().find(|(_, wrong)| *wrong) {
            return Err((*fact).to_owned());
        }
        // The question with its letters as they were sent, octet for octet.
        let questions = u16::from_be_bytes([told[4], told[5]]);
        let question = if questions == 1 {
            let name = self.bytes[12..].iter().position(|byte| *byte == 0).unwrap_or(0);
            &self.bytes[12..12 + name + 5]
        } else {
            &[]
        };
        if query.get(12..12 + question.len()) != Some(question) {
            return Err("the question is not the query's, octet for octet".to_owned());
        }
        Ok(())
    }
}

fn hints(service: &SVCB) -> Vec<IpAddr> {
    let of = |value: &SvcParamValue| -> Vec<IpAddr> {
        match value {
            SvcParamValue::Ipv4Hint(list) => list.0.iter().map(|address| address.0.into()).collect(),
            SvcParamValue::Ipv6Hint(list) => list.0.iter().map(|address| address.0.into()).collect(),
            _ => Vec::new(),
        }
    };
    service.svc_params.iter().flat_map(|(_, value)| of(value)).collect()
}
