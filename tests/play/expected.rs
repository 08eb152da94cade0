//! EXPECT and LOG: what a reply and a record should be, and in what they differ.

use std::net::IpAddr;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinEncodable};
use serde_json::Value;

use super::script::{addresses, name, number_of, rdata};
use super::traffic::{octets, subnet};
use crate::gate::Reply;

/// A comparison with a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bound {
    Is(u32),
    AtMost(u32),
    AtLeast(u32),
}

impl Bound {
    pub(crate) fn holds(self, number: u32) -> bool {
        match self {
            Self::Is(wanted) => number == wanted,
            Self::AtMost(most) => number <= most,
            Self::AtLeast(least) => number >= least,
        }
    }
}

/// What the client should see.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    /// `None`: silence.
    pub(crate) rcode: Option<String>,
    /// The whole answer section in order: type and data.
    pub(crate) answers: Vec<(String, String)>,
    pub(crate) ttl: Option<Bound>,
    pub(crate) ede: Option<(u16, String)>,
    /// The data of the client subnet option.
    pub(crate) subnet: Option<Vec<u8>>,
    /// The data of the cookie option.
    pub(crate) cookie: Option<Vec<u8>>,
    pub(crate) flags: Option<Vec<String>>,
    pub(crate) truncated: bool,
    pub(crate) bytes: Option<Bound>,
    /// The owner of the SOA in the authority section.
    pub(crate) soa: Option<String>,
}

impl Wanted {
    pub(crate) fn check(&self, reply: Option<&Reply>) -> Result<(), String> {
        let (rcode, reply) = match (&self.rcode, reply) {
            (None, None) => return Ok(()),
            (None, Some(reply)) => return Err(format!("expected silence, got {}", reply.message)),
            (Some(rcode), None) => return Err(format!("expected {rcode}, got silence")),
            (Some(rcode), Some(reply)) => (rcode, reply),
        };
        let message = &reply.message;
        let got = code(message.metadata.response_code);
        if got != *rcode {
            return Err(format!("expected {rcode}, got {got}{}", told(reply)));
        }
        self.check_answers(reply)?;
        let ttls = message.answers.iter().chain(&message.authorities).map(|record| record.ttl);
        if let Some((bound, ttl)) =
            self.ttl.and_then(|bound| Some((bound, ttls.clone().find(|ttl| !bound.holds(*ttl))?)))
        {
            return Err(format!("expected a TTL that {bound:?}, got {ttl}"));
        }
        if self.ttl.is_some() && ttls.count() == 0 {
            return Err("expected a TTL, and there is no record".to_owned());
        }
        match (&self.ede, reply.ede()) {
            (None, None) => {}
            (Some((code, part)), Some((got, text))) if *code == got && text.contains(part) => {}
            (wanted, got) => return Err(format!("expected the extended error {wanted:?}, got {got:?}")),
        }
        if reply.option(10) != self.cookie.as_deref() {
            return Err(format!("expected the cookie {:02x?}, got {:02x?}", self.cookie, reply.option(10)));
        }
        if reply.option(8) != self.subnet.as_deref() {
            return Err(format!("expected the client subnet {:?}, got {:?}", self.subnet, reply.option(8)));
        }
        if let Some(flags) = &self.flags
            && reply.flags() != *flags
        {
            return Err(format!("expected the flags {flags:?}, got {:?}", reply.flags()));
        }
        if message.metadata.truncation != self.truncated {
            return Err(format!("expected tc to be {}, got {}", self.truncated, message.metadata.truncation));
        }
        let length = u32::try_from(reply.len()).unwrap();
        if let Some(bound) = self.bytes.filter(|bound| !bound.holds(length)) {
            return Err(format!("expected a length that {bound:?}, got {length}"));
        }
        if let Some(owner) = &self.soa {
            let got: Vec<String> = message
                .authorities
                .iter()
                .filter(|record| record.record_type() == RecordType::SOA)
                .map(|record| record.name.to_lowercase().to_ascii())
                .collect();
            if got != [owner.as_str()] {
                return Err(format!("expected the SOA of {owner}, got {got:?}"));
            }
        }
        Ok(())
    }

    /// The answer section: a chain of owners from the question's name, each record of the type and data expected.
    fn check_answers(&self, reply: &Reply) -> Result<(), String> {
        let message = &reply.message;
        let mut owner = message.queries.first().map(|query| query.name().to_lowercase().to_ascii());
        let mut got = Vec::new();
        for record in &message.answers {
            let name = record.name.to_lowercase().to_ascii();
            if owner.as_ref() != Some(&name) {
                return Err(format!("expected a record of {}, got one of {name}", owner.unwrap_or_default()));
            }
            if let RData::CNAME(target) = &record.data {
                owner = Some(target.0.to_lowercase().to_ascii());
            }
            got.push((record.record_type().to_string().to_lowercase(), data(&record.data)));
        }
        if got == self.answers {
            return Ok(());
        }
        let words = |answers: &[(String, String)]| {
            let words: Vec<String> = answers.iter().map(|(kind, data)| format!("{kind} {data}")).collect();
            if words.is_empty() { "no answer".to_owned() } else { words.join(" ") }
        };
        Err(format!("expected {}, got {}", words(&self.answers), words(&got)))
    }
}

/// `silence`, or `RCODE` and whatever of the reply is to be looked at.
pub(super) fn read_expect(words: &[String]) -> Result<Wanted, String> {
    let (rcode, words) = words.split_first().ok_or("what?")?;
    if rcode == "silence" {
        return Ok(Wanted::default());
    }
    let mut wanted = Wanted { rcode: Some(rcode.clone()), ..Wanted::default() };
    let mut words = words.iter().peekable();
    while let Some(word) = words.next() {
        let mut next = || words.next().ok_or_else(|| format!("{word} what?"));
        match word.as_str() {
            "a" | "aaaa" => {
                let found = addresses(next()?)?.into_iter().map(|address| (word.clone(), address.to_string()));
                wanted.answers.extend(found);
            }
            "cookie" => wanted.cookie = Some(octets(next()?)?),
            "subnet" => {
                let mut data = subnet(next()?)?;
                // The scope is as long as the source.
                data[3] = data[2];
                wanted.subnet = Some(data);
            }
            "cname" | "ns" | "ptr" => wanted.answers.push((word.clone(), name(next()?)?.to_ascii())),
            "txt" => wanted.answers.push((word.clone(), next()?.clone())),
            "mx" | "srv" | "https" | "svcb" | "hinfo" => {
                // As it comes from the wire: what was read from text is shown in other words.
                let record = Record::from_rdata(Name::root(), 0, rdata(word, next()?)?);
                let octets = record.to_bytes().map_err(|error| error.to_string())?;
                let record = Record::<RData>::from_bytes(&octets).map_err(|error| error.to_string())?;
                wanted.answers.push((word.clone(), data(&record.data)));
            }
            "ttl" | "bytes" => {
                let bound = match next()?.as_str() {
                    "<=" => Bound::AtMost(number_of(words.next())?),
                    ">=" => Bound::AtLeast(number_of(words.next())?),
                    number => Bound::Is(number_of(Some(&number.to_owned()))?),
                };
                *if word == "ttl" { &mut wanted.ttl } else { &mut wanted.bytes } = Some(bound);
            }
            "ede" => wanted.ede = Some((number_of(Some(next()?))?, next()?.clone())),
            "flags" => wanted.flags = Some(next()?.split(',').map(str::to_owned).collect()),
            "tc" => wanted.truncated = true,
            "soa" => wanted.soa = Some(name(next()?)?.to_ascii()),
            _ => return Err(format!("{word} is not a part of a reply")),
        }
    }
    Ok(wanted)
}

/// What else the reply says, to explain an rcode that was not expected.
fn told(reply: &Reply) -> String {
    reply.ede().map(|(code, text)| format!(", extended error {code} \"{text}\"")).unwrap_or_default()
}

fn data(data: &RData) -> String {
    match data {
        RData::A(address) => IpAddr::from(address.0).to_string(),
        RData::AAAA(address) => IpAddr::from(address.0).to_string(),
        RData::CNAME(target) => target.0.to_lowercase().to_ascii(),
        RData::NS(target) => target.0.to_lowercase().to_ascii(),
        RData::PTR(target) => target.0.to_lowercase().to_ascii(),
        RData::TXT(text) => text.txt_data.iter().map(|part| String::from_utf8_lossy(part)).collect(),
        other => other.to_string(),
    }
}

/// A response code in the word of the scenarios.
pub(crate) fn code(rcode: ResponseCode) -> String {
    outgate::record::Rcode(u16::from(rcode)).to_string()
}

/// One `key=value` of LOG.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Field {
    pub(crate) key: String,
    pub(crate) wanted: Should,
}

/// What a field should be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Should {
    Is(String),
    Holds(String),
    Absent,
}

impl Field {
    /// Reads `key=value`, `key~part` or `key=-`.
    pub(crate) fn read(word: &str) -> Option<Self> {
        let at = word.find(['=', '~'])?;
        let (key, value) = (&word[..at], &word[at + 1..]);
        let wanted = match (&word[at..=at], value) {
            ("=", "-") => Should::Absent,
            ("=", _) => Should::Is(value.to_owned()),
            _ => Should::Holds(value.to_owned()),
        };
        Some(Self { key: key.to_owned(), wanted })
    }

    pub(crate) fn check(&self, record: &Value) -> Result<(), String> {
        let found = self.key.split('.').try_fold(record, |at, key| at.get(key));
        let got = found.map(written);
        let right = match (&self.wanted, &got) {
            (Should::Absent, None) => true,
            (Should::Is(wanted), Some(got)) => wanted == got,
            (Should::Holds(part), Some(got)) => got.contains(part),
            _ => false,
        };
        if right {
            return Ok(());
        }
        let got = got.unwrap_or_else(|| "no such field".to_owned());
        match &self.wanted {
            Should::Absent => Err(format!("expected no {}, got {got}", self.key)),
            Should::Is(wanted) => Err(format!("expected {}={wanted}, got {got}", self.key)),
            Should::Holds(part) => Err(format!("expected {} to hold \"{part}\", got {got}", self.key)),
        }
    }
}

/// A value as LOG writes it: lists joined by commas.
fn written(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(list) => list.iter().map(written).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}
